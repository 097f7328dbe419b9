// SPDX-License-Identifier: Apache-2.0
// Likelihood.swift - how well a model foresees a text: the mean negative log-likelihood of its tokens.

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

extension LlamaModel {
    /// The negative log-likelihood, in nats, of each token but the first, given all before it in its window.
    ///
    /// - Parameters:
    ///   - tokens: two or more.
    ///   - window: nil: one window for all. Otherwise windows of so many tokens, 2 and up, each `window / 2` tokens after the one before,
    ///     in which the tokens count that no window before has; so every token but those of the first half window has at least
    ///     half a window before it.
    ///   - progress: called with the tokens read so far, and those to be read in all.
    public func negativeLogLikelihoods(
        _ tokens: [Int], window: Int? = nil, progress: (Int, Int) -> Void = { _, _ in }
    ) throws -> [Double] {
        let window = min(window ?? tokens.count, tokens.count)
        let step = max(1, window / 2)
        var starts = [0]
        while starts.last! + window < tokens.count { starts.append(starts.last! + step) }
        let work = starts.reduce(0) { $0 + min(window, tokens.count - $1) }
        var (losses, done) = ([Double](), 0)
        for start in starts {
            let end = min(start + window, tokens.count)
            var conversation = try conversation()
            for chunk in stride(from: start, to: end, by: Self.chunk) {
                // The logits of a token are for the next one; the last token of a window has none.
                let chunkEnd = min(chunk + Self.chunk, end)
                let first = max(chunk, losses.count)
                let scored = max(0, min(chunkEnd, end - 1) - first)
                let logits = try evaluate(
                    Array(tokens[chunk..<chunkEnd]), &conversation, logits: scored > 0 ? .all : .none)
                for row in 0..<scored {
                    losses.append(loss(logits, row: first - chunk + row, of: tokens[first + row + 1]))
                }
                done += chunkEnd - chunk
                progress(done, work)
            }
        }
        return losses
    }

    /// Tokens read at once: enough to keep matrices busy, few enough for their activations to stay in the caches.
    public static let chunk = 256

    private func loss(_ logits: [Float], row: Int, of token: Int) -> Double {
        let row = logits[row * configuration.vocabulary..<(row + 1) * configuration.vocabulary]
        let top = row.max() ?? 0
        var sum = 0.0
        for logit in row { sum += Double(expf(logit - top)) }
        return log(sum) + Double(top) - Double(row[row.startIndex + token])
    }

    /// Reads a text in parts, and returns the logits of its last token.
    public func prefill(
        _ tokens: [Int], _ conversation: inout Conversation, chunk: Int = LlamaModel.chunk,
        progress: (Int, Int) -> Void = { _, _ in }
    ) throws -> [Float] {
        var logits: [Float] = []
        for start in stride(from: 0, to: tokens.count, by: chunk) {
            let end = min(start + chunk, tokens.count)
            logits = try evaluate(
                Array(tokens[start..<end]), &conversation, logits: end == tokens.count ? .last : .none)
            progress(end, tokens.count)
        }
        return logits
    }
}
