// SPDX-License-Identifier: Apache-2.0
// ScalingExtrapolation.swift - does log n scaling keep masked language models right beyond their length?

struct ScalingExtrapolation: Experiment {
    let name = "scaling"
    let question = "Trained at n = 64, which scaling of scores keeps a masked language model right up to n = 1024?"
    let method = """
        Masked bytes of a text, both directions, 2 layers, d 64, 4 heads, RoPE; scale 1/sqrt(d) times 1, log_64 n, max(1, log_64 \
        n), or a learned s log n per head (SSMax, 1 at n = 64 at first). Su's table (kexue.fm 8823) has a larger model with base \
        512: 43.27 to 11.54% for 1/sqrt(d), 43.11 to 13.58% for log n.
        """
    let variants = ["1/sqrt(d)", "log n", "clipped log n", "SSMax"]
    static let lengths = [64, 128, 256, 512, 1024]

    func measure(_ variant: String, seed: UInt64, _ bench: Bench) throws -> Measurement {
        let data = MaskedText(try bench.text())
        var model = ModelConfiguration()
        (model.vocabulary, model.causal) = (257, false)
        model.scaling = ["log n": .logKeys, "clipped log n": .clippedLogKeys, "SSMax": .scalable][variant] ?? .constant
        var training = TrainingConfiguration()
        (training.steps, training.seed) = (bench.steps ?? (bench.quick ? 10 : 1500), seed)
        let trainer = try bench.train(model, data, training, variant)
        return try byLength(
            trainer.model, trainer, data, lengths: bench.quick ? [64, 128] : Self.lengths,
            tokens: bench.quick ? 512 : 16384)
    }

    func tests(_ o: Outcome) -> [Verdict] {
        ["log n", "clipped log n", "SSMax"].map { variant in
            let name = "accuracy at 1024"
            let better = zip(o.numbers(name, variant), o.numbers(name, "1/sqrt(d)")).count { $0 > $1 }
            return Verdict(
                "\(variant) is right more often than 1/sqrt(d) at n = 1024, with every seed",
                better == o.numbers(name, variant).count,
                "\(o.text(name, variant)) against \(o.text(name, "1/sqrt(d)"))")
        }
    }
}

/// Loss and accuracy at several lengths, over about as many tokens at each, and over so many sequences at least.
func byLength(
    _ model: Transformer, _ trainer: Trainer, _ data: any DataSource, lengths: [Int], tokens: Int, sequences: Int = 1,
    prefix: String = ""
) throws -> Measurement {
    var result = Measurement()
    for length in lengths {
        let value = try model.evaluate(
            data, sequences: max(tokens / length, sequences), length: length, seed: trainer.configuration.seed + 1000,
            parameters: trainer.parameters)
        result.numbers["\(prefix)loss at \(length)"] = value.loss
        result.numbers["\(prefix)accuracy at \(length)"] = value.accuracy
        result.curves["\(prefix)loss by length", default: []].append([Double(length), value.loss])
        result.curves["\(prefix)accuracy by length", default: []].append([Double(length), value.accuracy])
    }
    return result
}
