// SPDX-License-Identifier: Apache-2.0
// Outliers.swift - do sinks and gates cure the weight on the first token, and the outliers said to come of it?

import Foundation
import QuietAttention

struct Outliers: Experiment {
    let name = "outliers"
    let question =
        "Does a head that may put out nothing keep its weight off the first token, and are outliers smaller then?"
    let method = """
        Bigram-Backcopy (Guo et al., arXiv 2410.13835) on the 63 commonest bytes of a text: after a trigger comes the token \
        before it, elsewhere a head has nothing to do. One layer without feed-forward, d 64, one head, pre-RMSNorm, RoPE; 128 \
        tokens, batch 16, Adam at 1e-2 without decay. Measured on 16 fresh sequences after training, at queries that are no \
        trigger unless said otherwise.
        """
    let variants = ["softmax", "softmax_1", "learned sink", "clipped", "gate"]

    func measure(_ variant: String, seed: UInt64, _ bench: Bench) throws -> Measurement {
        let data = try BigramBackcopy(try bench.text())
        var model = ModelConfiguration()
        (model.vocabulary, model.dimension, model.layers, model.heads) = (data.vocabulary, 64, 1, 1)
        (model.keyValueHeads, model.hidden, model.trainedLength) = (1, 0, 128)
        switch variant {
        case "softmax_1": model.sink = .softmax1
        case "learned sink": model.sink = .learned
        case "clipped": model.clipGamma = -0.03
        case "gate": model.gate = .head
        default: break
        }
        var training = TrainingConfiguration()
        (training.steps, training.batch, training.length) = (bench.steps ?? (bench.quick ? 20 : 2000), 16, 128)
        (training.learningRate, training.warmup, training.decline) = (1e-2, 100, .none)
        (training.beta2, training.decay, training.clip, training.seed) = (0.99, 0, 0, seed)
        var growth: [[Double]] = []
        let trainer = try bench.train(model, data, training, variant) { trainer in
            guard trainer.step % 200 == 0 else { return }
            let quiet = try look(trainer, data, seed: seed, sequences: 4).numbers["weight on BOS"]!
            growth.append([Double(trainer.step), quiet])
        }
        var result = try look(trainer, data, seed: seed, sequences: 16)
        result.curves["weight on BOS by step"] = growth
        let evaluation = try trainer.model.evaluate(
            data, sequences: bench.quick ? 4 : 64, length: 128, seed: seed + 1000, parameters: trainer.parameters)
        result.numbers["loss"] = evaluation.loss
        return result
    }

    private func look(
        _ trainer: Trainer, _ data: BigramBackcopy, seed: UInt64, sequences: Int
    ) throws -> Measurement {
        let batch = data.batch(
            sequences: sequences, length: 128, random: Random(seed, 3, trainer.step), testing: true)
        let trace = try trainer.model.forward(
            batch.tokens, batch: sequences, trainer.parameters, workspace: AttentionWorkspace())
        let layer = trace.layers[0]
        let saved = layer.attention!
        let weights = try saved.attention.weights(queries: saved.q, keys: saved.k)
        var (quiet, busy, kept) = ([Double](), [Double](), [Double]())
        for row in 0..<sequences * 128 where row % 128 > 1 {
            let start = row * 128
            let onFirst = Double(weights[start])
            if (1...Int32(data.triggers)).contains(batch.tokens[row]) {
                busy.append(onFirst)
            } else {
                quiet.append(onFirst)
                kept.append(Double(weights[start..<start + 128].reduce(0, +)))
            }
        }
        let norms = (0..<sequences * 128).map { row in
            saved.v[row * 64..<(row + 1) * 64].reduce(0) { $0 + Double($1) * Double($1) }.squareRoot()
        }
        let firsts = stride(from: 0, to: norms.count, by: 128).map { norms[$0] }
        var result = Measurement()
        result.numbers["weight on BOS"] = mean(quiet)
        result.numbers["weight on BOS at triggers"] = mean(busy)
        result.numbers["weight on keys"] = mean(kept)
        result.numbers["norm of BOS' value over median"] = mean(firsts) / median(norms)
        for (name, tensor) in [("residual", trace.residual), ("attention output", layer.attentionOutput)] {
            let statistics = TensorStatistics(tensor)
            result.numbers["\(name): raw kurtosis"] = statistics.rawKurtosis
            result.numbers["\(name): excess kurtosis"] = statistics.excessKurtosis
            result.numbers["\(name): infinity norm"] = statistics.infinityNorm
            result.numbers["\(name): int8, dB"] = statistics.int8SignalToNoise
        }
        return result
    }

    func tests(_ o: Outcome) -> [Verdict] {
        let bos = "weight on BOS"
        let kurtosis = "residual: raw kurtosis"
        let softmax = o.numbers(bos, "softmax")
        let pairs = zip(o.numbers(bos, "softmax_1"), softmax)
        let control =
            softmax.allSatisfy { $0 >= 0.7 } && o.numbers(bos + " at triggers", "softmax").allSatisfy { $0 <= 0.2 }
        func lower(_ variant: String) -> Int {
            zip(o.numbers(kurtosis, variant), o.numbers(kurtosis, "softmax")).count { $0 < $1 }
        }
        let gap = zip(o.numbers("residual: int8, dB", "softmax_1"), o.numbers("residual: int8, dB", "softmax")).map {
            $0 - $1
        }
        return [
            Verdict(
                "positive control: softmax puts 0.7 or more on BOS with every seed, and 0.2 or less at triggers",
                control,
                o.text(bos, "softmax")),
            Verdict(
                "the value of BOS is small under softmax: 0.7 of the median or less",
                o.numbers("norm of BOS' value over median", "softmax").allSatisfy { $0 <= 0.7 },
                o.text("norm of BOS' value over median", "softmax")),
            Verdict(
                "a learned sink and a gate put 0.05 or less on BOS with every seed",
                (o.numbers(bos, "learned sink") + o.numbers(bos, "gate")).allSatisfy { $0 <= 0.05 },
                "sink \(o.text(bos, "learned sink")); gate \(o.text(bos, "gate"))"),
            Verdict(
                "softmax_1 puts less on BOS than softmax with every seed, 0.3 or less by the median",
                pairs.allSatisfy { $0 < $1 } && median(o.numbers(bos, "softmax_1")) <= 0.3, o.text(bos, "softmax_1")),
            Verdict(
                "losses are within 0.01 of softmax's",
                o.variants.allSatisfy { abs(o.mean("loss", $0) - o.mean("loss", "softmax")) <= 0.01 },
                o.variants.map { "\($0) \(String(format: "%.4f", o.mean("loss", $0)))" }.joined(separator: ", ")),
            Verdict(
                "kurtosis of the residual is lower with a learned sink in 4 of 5 pairs or more",
                5 * lower("learned sink") >= 4 * softmax.count, "\(lower("learned sink")) of \(softmax.count)"),
            Verdict(
                "kurtosis of the residual is lower with softmax_1 in 4 of 5 pairs or more",
                5 * lower("softmax_1") >= 4 * softmax.count, "\(lower("softmax_1")) of \(softmax.count)"),
            Verdict(
                "int8 loses less of the residual with softmax_1, in every pair", gap.allSatisfy { $0 > 0 },
                "differences in dB: " + gap.map { String(format: "%.2f", $0) }.joined(separator: " ")),
        ]
    }
}

func mean(_ values: [Double]) -> Double { values.isEmpty ? 0 : values.reduce(0, +) / Double(values.count) }

func median(_ values: [Double]) -> Double {
    let sorted = values.sorted()
    return sorted.isEmpty ? 0 : (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
}
