// SPDX-License-Identifier: Apache-2.0
// Bench.swift - language-model bench: the speed of reading and of decoding, beside what memory allows.

import ArgumentParser
import Foundation
import LanguageModel

struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Times reading a text and decoding, beside this machine's bandwidth.",
        discussion: """
            Decoding a token reads all weights and the cache. What that takes at the bandwidth that reading the same weights \
            alone has, measured between the repeats, over the time of a token, is its share of the bandwidth.
            """)

    @OptionGroup var model: ModelArguments

    @Option(help: "Tokens of the text that is read first.")
    var context = 128

    @Option(help: "Tokens decoded per repeat.")
    var tokens = 32

    @Option(help: "Repeats; the best and the median count.")
    var repeats = 5

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        for (name, value) in [("context", context), ("tokens", tokens), ("repeats", repeats)] {
            guard (1...1 << 20).contains(value) else {
                throw ValidationError("--\(name): expected 1 to \(1 << 20), got \(value)")
            }
        }
    }

    func run() throws {
        let (_, model) = try model.load { _ in context + tokens * 2 }
        let progress = Progress("repeats")
        let result = try model.benchmark(context: context, tokens: tokens, repeats: repeats) {
            progress.update($0, of: repeats)
        }
        progress.finish()
        if json { return try printJSON(result) }
        try emit(
            String(
                format: "prefill  %8.1f tokens/s (%d tokens, attention %.0f %%)", result.prefillTokensPerSecond,
                context, 100 * result.prefillAttentionShare),
            String(
                format: "decode   %8.1f tokens/s (median %.1f, attention %.0f %%)", result.decodeTokensPerSecond,
                result.decodeMedianTokensPerSecond, 100 * result.decodeAttentionShare),
            String(
                format: "bandwidth %7.1f GB/s; a token reads %.1f MB of weights and %.2f MB of keys and values",
                result.readGbytesPerS, Double(result.weightBytes) / 1e6, Double(result.cacheBytes) / 1e6),
            String(
                format: "decoding takes its bytes at %.2f of the bandwidth (median %.2f)", result.shareOfBandwidth,
                result.medianShareOfBandwidth))
    }
}
