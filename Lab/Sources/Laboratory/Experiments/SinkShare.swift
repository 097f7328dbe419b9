// SPDX-License-Identifier: Apache-2.0
// SinkShare.swift - how the sink's share changes with length: s = 0, s = log n, and learned.

import QuietAttention

struct SinkShare: Experiment {
    let name = "sinkshare"
    let question =
        "Does the share of the sink fall with length for s = 0, and stay for s = log n and for learned logits?"
    let method = """
        Causal bytes of a text, 2 layers, d 64, 4 heads, RoPE, trained at n = 64; then the mean sink share over heads, layers and \
        the last 32 rows at n = 64 to 1024, and of the untrained model, where scores are near 0 and the law is 1/(n + 1) for \
        s = 0.
        """
    let variants = ["s = 0", "s = log n", "learned"]
    private let lengths = [64, 128, 256, 512, 1024]

    func measure(_ variant: String, seed: UInt64, _ bench: Bench) throws -> Measurement {
        let data = CausalText(try bench.text())
        var model = ModelConfiguration()
        model.sink = ["s = 0": .softmax1, "s = log n": .logKeys][variant] ?? .learned
        var training = TrainingConfiguration()
        (training.steps, training.seed) = (bench.steps ?? (bench.quick ? 10 : 1500), seed)
        var result = Measurement()
        let untrained = try Trainer(try Transformer(model, seed: seed), data, training)
        try addShares("untrained", untrained, data, bench, &result)
        let trainer = try bench.train(model, data, training, variant)
        try addShares("trained", trainer, data, bench, &result)
        let losses = try byLength(
            trainer.model, trainer, data, lengths: bench.quick ? [64, 128] : lengths, tokens: bench.quick ? 256 : 8192)
        result.numbers.merge(losses.numbers) { $1 }
        result.curves.merge(losses.curves) { $1 }
        return result
    }

    private func addShares(
        _ when: String, _ trainer: Trainer, _ data: any DataSource, _ bench: Bench, _ result: inout Measurement
    ) throws {
        for length in bench.quick ? [64, 128] : lengths {
            let batch = data.batch(
                sequences: 4, length: length, random: Random(trainer.configuration.seed, 8, length), testing: true)
            let trace = try trainer.model.forward(
                batch.tokens, batch: 4, trainer.parameters, workspace: AttentionWorkspace())
            let shares = trace.layers.flatMap { layer in
                let all = layer.attention!.record.sinkShares
                return all.indices.filter { $0 % length >= length - 32 }.map { Double(all[$0]) }
            }
            result.numbers["sink share, \(when), n \(length)"] = mean(shares)
            result.curves["sink share by n, \(when)", default: []].append([Double(length), mean(shares)])
        }
    }

    func tests(_ o: Outcome) -> [Verdict] {
        func ratios(_ variant: String, _ when: String) -> [Double] {
            zip(o.numbers("sink share, \(when), n 1024", variant), o.numbers("sink share, \(when), n 64", variant)).map
            { $0 / $1 }
        }
        func text(_ values: [Double]) -> String {
            values.map { "\(($0 * 1000).rounded() / 1000)" }.joined(separator: " ")
        }
        let (fixed, grown, learned) = (
            ratios("s = 0", "trained"), ratios("s = log n", "trained"), ratios("learned", "trained")
        )
        return [
            Verdict(
                "untrained and s = 0, it is 1/(k + 1) for a row of k keys: within 1% of the mean over the rows, at every n",
                lengths.allSatisfy { n in
                    let law = mean((n - 31...n).map { 1 / Double($0 + 1) })
                    return o.numbers("sink share, untrained, n \(n)", "s = 0").allSatisfy { abs($0 / law - 1) < 0.01 }
                },
                o.text("sink share, untrained, n 64", "s = 0") + "; "
                    + o.text("sink share, untrained, n 1024", "s = 0")),
            Verdict(
                "trained and s = 0, it halves at least from 64 to 1024, with every seed", fixed.allSatisfy { $0 < 0.5 },
                text(fixed)),
            Verdict(
                "s = log n keeps it within a factor of 1.5, with every seed",
                grown.allSatisfy { 0.67 < $0 && $0 < 1.5 }, text(grown)),
            Verdict(
                "learned logits lose it as s = 0 does: half at least, with every seed", learned.allSatisfy { $0 < 0.5 },
                text(learned)),
        ]
    }
}
