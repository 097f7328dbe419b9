// SPDX-License-Identifier: Apache-2.0
// PositionExtrapolation.swift - RoPE, ALiBi and CoCA beyond the length of training, with and without dynamic NTK.

import Foundation

struct PositionExtrapolation: Experiment {
    let name = "positions"
    let question = "Trained at n = 128, how do perplexity and passkeys hold at greater lengths, by kind of positions?"
    let method = """
        Half of the sequences of a step are bytes of a text, half passkeys of 3 digits within filler, and so is half of the loss; \
        3 layers, d 64, 4 heads. \
        Then both at greater lengths, as trained and with dynamic NTK by factors 1, 2, 4 and 8. The paper (CoCA, arXiv 2309.08646, \
        tables 1 to 3) has 350M parameters, 512 tokens and 5 digits.
        """
    let variants = ["RoPE", "ALiBi", "CoCA strict", "CoCA slack"]

    func measure(_ variant: String, seed: UInt64, _ bench: Bench) throws -> Measurement {
        let (text, passkey) = (CausalText(try bench.text()), Passkey(digits: 3))
        let trained = bench.quick ? 32 : 128
        var model = ModelConfiguration()
        (model.layers, model.trainedLength) = (3, trained)
        model.positions =
            ["ALiBi": .alibi, "CoCA strict": .collinearStrict, "CoCA slack": .collinearSlack][variant] ?? .rotary
        var training = TrainingConfiguration()
        (training.steps, training.length, training.seed) = (bench.steps ?? (bench.quick ? 5 : 1500), trained, seed)
        let trainer = try bench.train(model, Mixture(text: text, passkey: passkey), training, variant)
        let lengths = bench.quick ? [32, 64] : [128, 256, 512, 1024]
        var result = Measurement()
        for factor in variant == "ALiBi" ? [nil] : [nil, 1, 2, 4, 8] as [Double?] {
            let changed = try trainer.model.with { $0.ntkFactor = factor }
            let prefix = factor.map { "NTK \(Int($0)): " } ?? ""
            for (kind, data) in [("text ", text), ("passkey ", passkey)] as [(String, any DataSource)] {
                let part = try byLength(
                    changed, trainer, data, lengths: lengths, tokens: bench.quick ? 128 : 8192,
                    sequences: bench.quick || kind == "text " ? 1 : 64, prefix: prefix + kind)
                result.numbers.merge(part.numbers) { $1 }
                result.curves.merge(part.curves) { $1 }
            }
        }
        return result
    }

    func tests(_ o: Outcome) -> [Verdict] {
        func loss(_ variant: String, _ ntk: String = "") -> [Double] { o.numbers("\(ntk)text loss at 1024", variant) }
        func less(_ a: [Double], _ b: [Double]) -> Bool { zip(a, b).allSatisfy { $0 < $1 } }
        func text(_ a: [Double]) -> String { a.map { String(format: "%.3f", $0) }.joined(separator: " ") }
        func digits(_ length: Int, _ variant: String, _ ntk: String = "") -> [Double] {
            o.numbers("\(ntk)passkey accuracy at \(length)", variant)
        }
        return [
            Verdict(
                "positive control: 0.9 or more of the digits at n = 128, with every kind and seed",
                variants.allSatisfy { digits(128, $0).allSatisfy { $0 >= 0.9 } },
                variants.map { "\($0) \(text(digits(128, $0)))" }.joined(separator: ", ")),
            Verdict(
                "dynamic NTK by 2 finds more of RoPE's digits at n = 256, with every seed",
                less(digits(256, "RoPE"), digits(256, "RoPE", "NTK 2: ")),
                text(digits(256, "RoPE")) + " to " + text(digits(256, "RoPE", "NTK 2: "))),
            Verdict(
                "slack CoCA with dynamic NTK by 2 finds more digits at n = 512 than RoPE with it, with every seed",
                less(digits(512, "RoPE", "NTK 2: "), digits(512, "CoCA slack", "NTK 2: ")),
                text(digits(512, "CoCA slack", "NTK 2: ")) + " against " + text(digits(512, "RoPE", "NTK 2: "))),
            Verdict(
                "RoPE breaks at 8 times its length: 0.5 nats or more are lost, with every seed",
                zip(loss("RoPE"), o.numbers("text loss at 128", "RoPE")).allSatisfy { $0 >= $1 + 0.5 },
                text(loss("RoPE"))),
            Verdict(
                "dynamic NTK by 2 mends it in part, with every seed", less(loss("RoPE", "NTK 2: "), loss("RoPE")),
                text(loss("RoPE", "NTK 2: "))),
            Verdict(
                "slack CoCA extrapolates better than RoPE, with every seed", less(loss("CoCA slack"), loss("RoPE")),
                text(loss("CoCA slack"))),
            Verdict(
                "strict CoCA extrapolates better than RoPE, with every seed", less(loss("CoCA strict"), loss("RoPE")),
                text(loss("CoCA strict"))),
            Verdict(
                "slack CoCA with dynamic NTK by 2 is better than RoPE with it, with every seed",
                less(loss("CoCA slack", "NTK 2: "), loss("RoPE", "NTK 2: ")), text(loss("CoCA slack", "NTK 2: "))),
            Verdict(
                "ALiBi loses less than RoPE, with every seed", less(loss("ALiBi"), loss("RoPE")), text(loss("ALiBi"))),
        ]
    }

    /// Half text, half passkeys, whole sequences of each. The few digits count for as much as all bytes of the text: counted like
    /// bytes, they would be a fortieth of the loss, and are not learned in 1500 steps.
    struct Mixture: DataSource {
        let text: CausalText
        let passkey: Passkey
        var vocabulary: Int { 256 }

        func batch(sequences: Int, length: Int, random: Random, testing: Bool) -> Batch {
            let keys = passkey.batch(sequences: sequences / 2, length: length, random: random, testing: testing)
            var batch = text.batch(
                sequences: sequences - sequences / 2, length: length, random: random, testing: testing)
            let counts = [batch, keys].map { part in Float(part.targets.count { $0 >= 0 }) }
            batch.weights = batch.targets.map { _ in 1 } + keys.targets.map { _ in counts[0] / max(counts[1], 1) }
            batch.sequences = sequences
            batch.tokens += keys.tokens
            batch.targets += keys.targets
            return batch
        }
    }
}
