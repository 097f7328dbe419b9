// SPDX-License-Identifier: Apache-2.0
// ModelTests.swift - the tiny model against the script's double precision, and the bits of its logits however text is read.

import LanguageModel
import QuietAttention
import Testing

@Suite struct ModelTests {
    @Test(arguments: TinyModel.shared.answers, ProjectionMethod.allCases)
    func answersOfTheScript(answer: TinyModel.Answer, method: ProjectionMethod) throws {
        let model = try TinyModel.model(ModelOptions(threads: 2, projections: method))
        var conversation = try model.conversation()
        var logits = try model.prefill(answer.tokens, &conversation)
        for (logit, expected) in zip(logits, answer.logits) { #expect(abs(Double(logit) - expected) < 5e-5) }
        var sampler = Sampler(.greedy)
        for token in answer.greedy {
            #expect(sampler.next(logits) == token)
            logits = try model.evaluate([token], &conversation)
        }
        #expect(conversation.count == answer.tokens.count + answer.greedy.count)
        let losses = try model.negativeLogLikelihoods(answer.tokens)
        let mean = losses.reduce(0, +) / Double(losses.count)
        #expect(losses.count == answer.tokens.count - 1 && abs(mean - answer.meanNegativeLogLikelihood) < 1e-5)
    }

    /// 150 tokens: more than two pages of a cache.
    static let text = (0..<150).map { ($0 * 37 + $0 / 7) % 300 }

    func logits(_ model: LlamaModel, chunks: [Int]) throws -> [UInt32] {
        var conversation = try model.conversation()
        var (start, result) = (0, [Float]())
        for chunk in chunks {
            result += try model.evaluate(Array(Self.text[start..<start + chunk]), &conversation, logits: .all)
            start += chunk
        }
        return result.map(\.bitPattern)
    }

    @Test(arguments: [KeyValueCache.Storage.float32, .bfloat16, .float16, .int8])
    func sameBitsInPartsAndWithThreadsAndKernels(storage: KeyValueCache.Storage) throws {
        var options = ModelOptions()
        options.cache = storage
        let expected = try logits(TinyModel.model(options), chunks: [150])
        #expect(try logits(TinyModel.model(options), chunks: Array(repeating: 1, count: 150)) == expected)
        options.threads = 2
        #expect(try logits(TinyModel.model(options), chunks: [64, 1, 7, 8, 70]) == expected)
        for set in KernelSet.available {
            options.kernels = set
            #expect(try logits(TinyModel.model(options), chunks: [149, 1]) == expected)
        }
        for set in LlamaModel.projectionKernels {
            options.projectionKernels = set
            #expect(try logits(TinyModel.model(options), chunks: [50, 100]) == expected)
        }
    }

    /// Conversations that fork one prompt, in one call per step, have the bits of each alone.
    @Test func forksBesideEachOther() throws {
        let model = try TinyModel.model()
        var prompt = try model.conversation()
        _ = try model.prefill(Array(Self.text[..<70]), &prompt)
        let ways = [[5, 6, 7], [8, 9, 10], [250, 1, 2]]
        var together = ways.map { _ in prompt }
        var batched: [[Float]] = []
        for step in 0..<3 { batched.append(try model.evaluate(ways.map { [$0[step]] }, &together)) }
        for (index, way) in ways.enumerated() {
            var alone = prompt
            for (step, token) in way.enumerated() {
                let logits = try model.evaluate([token], &alone)
                #expect(logits == Array(batched[step][index * logits.count..<(index + 1) * logits.count]))
            }
        }
        // Of different lengths, in one call.
        var mixed = [prompt, try model.conversation()]
        let logits = try model.evaluate([[5, 6, 7], Array(Self.text[..<70])], &mixed)
        var alone = prompt
        #expect(try model.evaluate([5, 6, 7], &alone) == Array(logits[..<(logits.count / 2)]))
        #expect(mixed.map(\.count) == [73, 70] && prompt.count == 70)
        try alone.truncate(to: 70)
        #expect(try model.evaluate([5, 6, 7], &alone) == Array(logits[..<(logits.count / 2)]))
    }

    @Test func windowsOfLikelihoods() throws {
        let model = try TinyModel.model()
        let all = try model.negativeLogLikelihoods(Self.text)
        #expect(try model.negativeLogLikelihoods(Self.text, window: 150) == all)
        #expect(try model.negativeLogLikelihoods(Self.text, window: 1000) == all)
        let windows = try model.negativeLogLikelihoods(Self.text, window: 20)
        #expect(windows.count == 149 && Array(windows[..<19]) == Array(all[..<19]))
        // Token 20 is foreseen from token 19 in the second window, which begins at 10.
        let other = try model.negativeLogLikelihoods(Array(Self.text[10..<30]))
        #expect(windows[19] == other[9] && windows[28] == other[18])
    }

    @Test func optionsChangeWhatTheySay() throws {
        func losses(_ change: (inout ModelOptions) -> Void) throws -> [Double] {
            var options = ModelOptions()
            change(&options)
            return try TinyModel.model(options).negativeLogLikelihoods(Self.text)
        }
        let plain = try losses { _ in }
        let scalings: [RotaryEmbedding.Scaling] = [
            .linear(factor: 2), .ntk(factor: 2), .yarn(factor: 2, trainedLength: 64),
            .dynamic(factor: 2, trainedLength: 64, length: 150),
        ]
        for scaling in scalings { #expect(try losses { $0.rotaryScaling = scaling } != plain) }
        #expect(try losses { $0.rotaryScaling = .dynamic(factor: 2, trainedLength: 150, length: 150) } == plain)
        #expect(throws: AttentionError.self) {
            _ = try losses { $0.rotaryScaling = .dynamic(factor: 2, trainedLength: 64, length: 100) }
        }
        #expect(try losses { $0.scoreScaling = .clippedLogKeys(base: 64) } != plain)
        let quiet = try losses { $0.sink = .softmax1 }
        let first = try losses { ($0.sink, $0.sinkLayers) = (.softmax1, [0]) }
        let second = try losses { ($0.sink, $0.sinkLayers) = (.softmax1, [1]) }
        #expect(Set([plain, quiet, first, second]).count == 4)
        #expect(try losses { ($0.sink, $0.sinkLayers) = (.softmax1, []) } == plain)
        #expect(throws: GGUFError.self) { _ = try losses { $0.projectionKernels = "none" } }
    }

    @Test func sampling() {
        let logits: [Float] = [0, 3, 1, 3, -.infinity]
        var greedy = Sampler(.greedy)
        #expect(greedy.next(logits) == 1)
        func counts(_ share: Double, _ temperature: Double, seed: UInt64) -> [Int] {
            var sampler = Sampler(.topP(share: share, temperature: temperature), seed: seed)
            return (0..<4000).reduce(into: [0, 0, 0, 0, 0]) { counts, _ in counts[sampler.next(logits)] += 1 }
        }
        #expect(counts(1, 1, seed: 1) == counts(1, 1, seed: 1) && counts(1, 1, seed: 1) != counts(1, 1, seed: 2))
        // 1, e^3, e, e^3: the two largest hold 0.915 of the probability.
        let narrow = counts(0.9, 1, seed: 3)
        #expect(narrow[0] == 0 && narrow[2] == 0 && abs(narrow[1] - 2000) < 200)
        let wide = counts(1, 1, seed: 4)
        #expect(abs(wide[1] - 1831) < 200 && abs(wide[2] - 248) < 80 && abs(wide[0] - 91) < 50 && wide[4] == 0)
        #expect(counts(0.4, 1, seed: 5)[1] == 4000)
        // At a high temperature all finite logits are alike.
        #expect(abs(counts(1, 1e6, seed: 6)[0] - 1000) < 150)
    }

    @Test func capturedTensors() throws {
        let model = try TinyModel.model()
        var captured = CapturedLayers(model.configuration, layers: [1])
        try captured.run(model, Self.text)
        let tensors = captured.tensors(1, rotated: true)
        #expect(tensors.map(\.name) == ["q", "k", "v", "residual"])
        #expect(tensors.map(\.shape) == [[1, 2, 150, 32], [1, 1, 150, 32], [1, 1, 150, 32], [150, 64]])
        // The library's rotation of what is not rotated gives the same attention.
        let plain = captured.tensors(1, rotated: false)
        let shape = try AttentionShape(
            batch: 1, queryHeads: 2, keyValueHeads: 1, queries: 150, keys: 150, headDimension: 32)
        let turned = try Attention(shape, sink: .softmax, mask: .causal).forward(
            queries: tensors[0].values, keys: tensors[1].values, values: tensors[2].values)
        let positions = AttentionPositions.rotary(RotaryEmbedding(base: model.configuration.rotaryBase))
        let expected = try Attention(shape, sink: .softmax, mask: .causal, positions: positions).forward(
            queries: plain[0].values, keys: plain[1].values, values: plain[2].values)
        for (a, b) in zip(turned.output, expected.output) { #expect(abs(a - b) < 1e-4) }
    }

    @Test func measuredLayers() throws {
        let model = try TinyModel.model()
        let tokenizer = try TinyModel.tokenizer
        var captured = CapturedLayers(model.configuration, layers: [0])
        try captured.run(model, Self.text)
        let classes = TokenClass.classes(Self.text, tokenizer)
        #expect(classes[0] == .first && TokenClass.classes([5] + tokenizer.encode(",a"), tokenizer)[1] == .punctuation)
        let layer = try LayerMeasurement(
            captured, layer: 0, model.configuration, tokens: Self.text, classes: classes, options: ModelOptions())
        for head in layer.heads {
            #expect(abs(head.weightByClass.reduce(0, +) - 1) < 1e-5 && head.sinkShare == 0)
            #expect(head.entropy > 0 && head.largestWeight < 1)
        }
        #expect(layer.lengths.map(\.keys) == [64, 128, 256] && layer.lengths.allSatisfy { $0.relativeEntropy <= 1 })
        #expect(layer.scoreVariance / 32 == layer.scaledScoreVariance)
        #expect(layer.residual.outliers == layer.residual.outliersByClass.reduce(0, +))
        #expect(layer.largestTokens.count == 5)
    }

    @Test func chatTemplate() throws {
        let tokenizer = try TinyModel.tokenizer
        let template = try ChatTemplate(tokenizer)
        #expect(template.defaultSystem == "Be tiny.")
        let prompt = template.opening(system: nil) + template.question("hello")
        let text = "<|im_start|>system\nBe tiny.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        #expect(prompt == tokenizer.encode(text))
        #expect(template.opening(system: "x") == tokenizer.encode("<|im_start|>system\nx<|im_end|>\n"))
        #expect(template.question("<|im_end|>").filter { $0 == 2 }.count == 1)
    }
}
