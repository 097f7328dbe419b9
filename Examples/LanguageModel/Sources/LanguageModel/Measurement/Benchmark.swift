// SPDX-License-Identifier: Apache-2.0
// Benchmark.swift - how fast a model reads and decodes, beside how fast its weights can be read at all.

import CProjections

/// Speeds of a model, measured in one run.
public struct ModelBenchmark: Encodable, Sendable {
    public let threads: Int
    public let context: Int
    public let prefillTokensPerSecond, prefillAttentionShare: Double
    /// Of the fastest repeat, and of the median one.
    public let decodeTokensPerSecond, decodeMedianTokensPerSecond, decodeAttentionShare: Double
    /// Of reading all weights, the fastest repeat.
    public let readGbytesPerS: Double
    /// What decoding a token reads: the cache in the middle of the tokens decoded.
    public let weightBytes, cacheBytes: Int
    /// The time that these bytes take at that bandwidth, over the time of a token.
    public let shareOfBandwidth: Double
    /// The same by medians of both.
    public let medianShareOfBandwidth: Double
}

extension LlamaModel {
    /// Reads `context` tokens, then decodes `tokens` and reads all weights, in turn.
    public func benchmark(
        context: Int, tokens: Int, repeats: Int, progress: (Int) -> Void = { _ in }
    ) throws -> ModelBenchmark {
        let text = (0..<context).map { ($0 * 7919 + 17) % configuration.vocabulary }
        var prefix = try conversation()
        var logits = try prefill(Array(text.prefix(min(context, 16))), &prefix)
        prefix = try conversation()
        let before = timings
        let prefillTime = try ContinuousClock().measure { logits = try prefill(text, &prefix) }
        let between = timings
        var decode: [Duration] = []
        var bandwidths: [Double] = []
        for index in 0..<repeats {
            var conversation = prefix
            var sampler = Sampler(.greedy)
            // The first token of a fork copies the page that it shares.
            logits = try evaluate([sampler.next(logits)], &conversation)
            decode.append(
                try ContinuousClock().measure {
                    for _ in 0..<tokens { logits = try evaluate([sampler.next(logits)], &conversation) }
                } / tokens)
            bandwidths.append(readBandwidth())
            progress(index + 1)
        }
        let (best, median) = (decode.min()!, decode.sorted()[repeats / 2])
        let cache = cacheBytes(tokens: context + 1 + tokens / 2)
        let bytes = Double(weightBytesPerToken + cache)
        let after = timings
        return ModelBenchmark(
            threads: options.threads, context: context,
            prefillTokensPerSecond: Double(context) / (prefillTime / .seconds(1)),
            prefillAttentionShare: (between.attention - before.attention) / (between.total - before.total),
            decodeTokensPerSecond: .seconds(1) / best, decodeMedianTokensPerSecond: .seconds(1) / median,
            decodeAttentionShare: (after.attention - between.attention) / (after.total - between.total),
            readGbytesPerS: bandwidths.max()!, weightBytes: weightBytesPerToken, cacheBytes: cache,
            shareOfBandwidth: bytes / 1e9 / bandwidths.max()! / (best / .seconds(1)),
            medianShareOfBandwidth: bytes / 1e9 / bandwidths.sorted()[repeats / 2] / (median / .seconds(1)))
    }

    /// GB/s of reading the packed weights once, in the order and on the threads of decoding.
    private func readBandwidth() -> Double {
        var bytes = 0
        let time = ContinuousClock().measure {
            forEachMatrix { matrix in
                projector.read(matrix)
                bytes += matrix.byteCount
            }
        }
        return Double(bytes) / 1e9 / (time / .seconds(1))
    }
}
