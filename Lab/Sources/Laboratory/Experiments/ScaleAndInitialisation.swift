// SPDX-License-Identifier: Apache-2.0
// ScaleAndInitialisation.swift - what 1/sqrt(d), the first weights and norms of queries and keys do to training.

import Foundation
import QuietAttention

struct ScaleAndInitialisation: Experiment {
    let name = "initialisation"
    let question = "Does training fail without 1/sqrt(d), and which first weights keep or lose variance through depth?"
    let method = """
        Causal bytes of a text, post-norm as in the models the claim is about, 4 layers, d 64, one head of 64, LayerNorm, RoPE: \
        normal weights of deviation 0.02, 1 and 0.001, Xavier's, without the scale, with norms of queries and keys. Beside it, by \
        the same first weights, 8 linear layers of width 64 without activations, whose variance should grow by (64 Var w)^L.
        """
    let variants = ["Xavier", "0.02", "0.001", "1", "Xavier, no scale", "1, no scale", "1, no scale, QK-norm"]

    func measure(_ variant: String, seed: UInt64, _ bench: Bench) throws -> Measurement {
        let data = CausalText(try bench.text())
        var model = ModelConfiguration()
        (model.layers, model.heads, model.keyValueHeads) = (bench.quick ? 2 : 4, 1, 1)
        (model.norm, model.placement) = (.layer, .post)
        if variant.contains("no scale") { model.scale = 1 }
        model.queryKeyNorm = variant.contains("QK-norm")
        if variant.hasPrefix("Xavier") {
            (model.initialisation, model.deviation) = (.xavier, 1)
        } else {
            model.deviation = Double(variant.prefix { $0 != "," })!
        }
        var training = TrainingConfiguration()
        (training.steps, training.seed) = (bench.steps ?? (bench.quick ? 5 : 600), seed)
        (training.learningRate, training.warmup) = (1e-3, 20)
        var curve: [[Double]] = []
        var weights = [0.0]
        var result = Measurement()
        let start = try Trainer(try Transformer(model, seed: seed), data, training)
        weights[0] = try largestWeight(start)
        let trainer = try bench.train(model, data, training, variant) { trainer in
            if trainer.step % 50 == 0 { curve.append([Double(trainer.step), mean(trainer.losses.suffix(50))]) }
        }
        let evaluation = try trainer.model.evaluate(
            data, sequences: bench.quick ? 4 : 128, length: 64, seed: seed + 1000, parameters: trainer.parameters)
        result.numbers = [
            "loss": evaluation.loss, "first loss": trainer.losses[0], "mean largest weight, untrained": weights[0],
            "mean largest weight, trained": try largestWeight(trainer),
        ]
        result.curves = ["training loss by step": curve]
        try addDepth(variant, model, seed, &result)
        return result
    }

    /// The mean over rows and layers of the largest weight of a row: 1 is a head that sees one key alone.
    private func largestWeight(_ trainer: Trainer) throws -> Double {
        let batch = trainer.batch(step: 0, slice: 0)
        let trace = try trainer.model.forward(
            batch.tokens, batch: batch.sequences, trainer.parameters, workspace: AttentionWorkspace())
        return mean(
            try trace.layers.flatMap { layer in
                try layer.attention!.attention.diagnostics(queries: layer.attention!.q, keys: layer.attention!.k)
                    .map(\.largestWeight)
            })
    }

    private func addDepth(
        _ variant: String, _ model: ModelConfiguration, _ seed: UInt64, _ result: inout Measurement
    ) throws {
        guard !variant.contains(",") else { return }
        let width = 64
        var random = Random(seed, 4)
        var x = (0..<256 * width).map { _ in Float(random.normal()) }
        let initialisation: WeightInitialization =
            model.initialisation == .xavier ? .xavierUniform() : .normal(standardDeviation: model.deviation)
        let variance = model.initialisation == .xavier ? 1 / Double(width) : model.deviation * model.deviation
        var curve = [[0, log10(TensorStatistics(x).standardDeviation)]]
        for layer in 1...8 {
            let weights = try initialisation.weights(
                fanIn: width, fanOut: width, seed: seed, stream: UInt64(100 + layer))
            x = (0..<256).flatMap { row in
                (0..<width).map { o in
                    (0..<width).reduce(Float(0)) { $0 + x[row * width + $1] * weights[o * width + $1] }
                }
            }
            curve.append([Double(layer), log10(TensorStatistics(x).standardDeviation)])
        }
        result.curves["log10 of the deviation by linear layer"] = curve
        result.numbers["deviation after 8 linear layers, log10"] = curve[8][1]
        result.numbers["what (64 Var w)^8 predicts, log10"] = 4 * log10(Double(width) * variance)
    }

    func tests(_ o: Outcome) -> [Verdict] {
        let plain = o.numbers("loss", "Xavier")
        func worse(_ variant: String, _ other: [Double]) -> Bool {
            zip(o.numbers("loss", variant), other).allSatisfy { $0 > $1 + 0.05 }
        }
        let law = ["Xavier", "0.02", "0.001", "1"].map {
            o.mean("deviation after 8 linear layers, log10", $0) - o.mean("what (64 Var w)^8 predicts, log10", $0)
        }
        return [
            Verdict(
                "deviation through 8 linear layers is (64 Var w)^4, within 0.15 of its log10",
                law.allSatisfy { abs($0) < 0.15 },
                law.map { String(format: "%+.3f", $0) }.joined(separator: " ")),
            Verdict(
                "with Xavier's weights, no scale costs 0.05 nats or more with every seed",
                worse("Xavier, no scale", plain),
                "\(o.text("loss", "Xavier, no scale", 4)) against \(o.text("loss", "Xavier", 4))"),
            Verdict(
                "weights of deviation 1 cost 0.05 nats or more with every seed", worse("1", plain),
                o.text("loss", "1", 4)),
            Verdict(
                "with those, no scale costs 0.05 nats more with every seed",
                worse("1, no scale", o.numbers("loss", "1")),
                o.text("loss", "1, no scale", 4)),
            Verdict(
                "without scale and weights of 1, an untrained head sees one key: largest weight above 0.95",
                o.numbers("mean largest weight, untrained", "1, no scale").allSatisfy { $0 > 0.95 },
                o.text("mean largest weight, untrained", "1, no scale")),
            Verdict(
                "norms of queries and keys mend it: 0.05 nats or more are won, with every seed",
                worse("1, no scale", o.numbers("loss", "1, no scale, QK-norm")),
                o.text("loss", "1, no scale, QK-norm", 4)),
        ]
    }
}
