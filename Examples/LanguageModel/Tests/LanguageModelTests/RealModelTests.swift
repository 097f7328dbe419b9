// SPDX-License-Identifier: Apache-2.0
// RealModelTests.swift - SmolLM2-135M-Instruct against transformers, where its file is: named by LANGUAGE_MODEL, or fetched.

import Foundation
import LanguageModel
import QuietAttention
import Testing

/// The file that the script fetch gets; nil without it.
private let realModel: String? = {
    let fetched = TinyModel.package.appendingPathComponent("Models/SmolLM2-135M-Instruct.Q4_1.gguf").path
    let path = ProcessInfo.processInfo.environment["LANGUAGE_MODEL"] ?? fetched
    return FileManager.default.fileExists(atPath: path) ? path : nil
}()

@Suite(.enabled(if: realModel != nil, "Examples/LanguageModel/fetch gets the model"), .serialized)
struct RealModelTests {
    struct Expected: Decodable {
        struct Continuation: Decodable {
            let prompt: String
            let tokens: [Int]
            let top5: [[Double]]
            let greedy: [Int]
            let text: String
            let smallestMargin: Double
        }

        let generate: [Continuation]
    }

    let expected: Expected
    let path: String

    init() throws {
        let url = try #require(
            Bundle.module.url(forResource: "smollm2", withExtension: "json", subdirectory: "Fixtures"))
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        expected = try decoder.decode(Expected.self, from: Data(contentsOf: url))
        path = try #require(realModel)
    }

    @Test func tokens() throws {
        let tokenizer = try Tokenizer(GGUFFile(path: path))
        for continuation in expected.generate {
            #expect(tokenizer.encode(continuation.prompt) == continuation.tokens)
            #expect(tokenizer.decode(continuation.greedy) == continuation.text)
        }
    }

    /// Logits to 2e-3, greedy tokens where the margin is above 5e-3: with one and two threads, and every kernel set.
    @Test(arguments: KernelSet.available.map(\.name) + ["blas"])
    func greedyContinuations(kernels: String) throws {
        var options = ModelOptions(threads: 2, projections: kernels == "blas" ? .blas : .exact)
        if kernels != "blas" { options.kernels = try KernelSet(named: kernels) }
        // The portable attention emulates the fused multiply-add where there is none; two texts are enough of it.
        let count = kernels == "portable" ? 2 : expected.generate.count
        let two = try continuations(options, count)
        options.threads = 1
        let one = try continuations(options, count)
        if kernels != "blas" { #expect(one == two) }
    }

    private func continuations(_ options: ModelOptions, _ count: Int) throws -> [[Float]] {
        let model = try LlamaModel(GGUFFile(path: path), options: options)
        return try expected.generate[..<count].map { continuation in
            var conversation = try model.conversation()
            let first = try model.prefill(continuation.tokens, &conversation)
            for pair in continuation.top5 { #expect(abs(Double(first[Int(pair[0])]) - pair[1]) < 2e-3) }
            var (sampler, logits) = (Sampler(.greedy), first)
            for token in continuation.greedy {
                let best = sampler.next(logits)
                if best != token {
                    // Only where the two are as good as equal.
                    #expect(logits[best] - logits[token] < 5e-3 && continuation.smallestMargin < 5e-3)
                    break
                }
                logits = try model.evaluate([token], &conversation)
            }
            return first
        }
    }
}
