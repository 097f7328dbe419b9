// SPDX-License-Identifier: Apache-2.0
// AttentionSink.swift - the sink logit: softmax, softmax_1, softmax_n, learned sinks.

/// The sink logit s of each query head: weight that goes to no key.
///
///     p[j] = e^x[j] / (e^s + sum_k e^x[k]),    sinkShare = e^s / (e^s + sum_k e^x[k]),    sinkShare + sum_j p[j] = 1
///
/// A row whose scores are all far below s puts out (almost) nothing, where softmax would have to spread a weight of 1.
/// The sink is not scaled, biased, masked or windowed: it is a logit beside the finished scores. It is not the "sink
/// tokens" of streaming caches, which are keys with values.
///
/// *Sources*: softmax_1: Miller, "Attention Is Off By One", 2023. One learned logit per query head: OpenAI, gpt-oss, 2025.
public enum AttentionSink: Sendable, Hashable {
    /// s = -inf: plain softmax. The sink has no share.
    case softmax
    /// s = 0: softmax_1, `e^x[j] / (1 + sum_k e^x[k])`, QuietAttention.
    case softmax1
    /// s = log n: softmax_n, `e^x[j] / (n + sum_k e^x[k])`, for a finite real n >= 0; n = 0 is softmax, n = 1 softmax_1.
    case softmaxN(Double)
    /// One logit per query head, in natural units; -inf makes that head a softmax. NaN and what exceeds
    /// ``largestLogit`` are refused.
    case logits([Float])
    /// s[i] = log n[i] + offset, with n[i] the keys that row i sees by every mask: the sink's share stays what it was as keys
    /// are added, where that of a fixed logit falls. A row that sees no key has no sink.
    case logKeys(offset: Float = 0)

    /// Largest logit: kernels multiply logits by log2(e), and the product must be finite.
    public static let largestLogit: Float = 2.3e38

    /// The logit of a sink that is the same for all heads; nil: one per head.
    func uniformLogit() throws(AttentionError) -> Float? {
        switch self {
        case .softmax: return -.infinity
        case .softmax1: return 0
        case .softmaxN(let n):
            guard n >= 0, n.isFinite else {
                throw AttentionError(.sink, "sink.softmaxN", expected: "a finite number, 0 or more", found: "\(n)")
            }
            if n == 0 { return -.infinity }
            // Subnormal numbers are taken by way of larger ones: 2^64 n.
            return Float(
                n.isNormal
                    ? ElementaryFunctions.logarithm(n)
                    : ElementaryFunctions.logarithm(n * 0x1p64) - ElementaryFunctions.logarithm(0x1p64))
        case .logits: return nil
        case .logKeys(let offset):
            guard abs(offset) <= Self.largestLogit / 2 else {
                throw AttentionError(.sink, "sink.logKeys", expected: "a finite number", found: "\(offset)")
            }
            return offset
        }
    }

    /// The name, as errors call it.
    var name: String {
        switch self {
        case .softmax: "softmax"
        case .softmax1: "softmax_1"
        case .softmaxN(let n): "softmax_n with n = \(n)"
        case .logits: "learned logits"
        case .logKeys: "log n of the visible keys"
        }
    }

    /// Whether the logit depends on the number of keys that a row sees.
    var countsKeys: Bool { if case .logKeys = self { true } else { false } }

    /// The logits given one by one; empty for a sink that is the same for all heads.
    func checkedLogits(queryHeads: Int) throws(AttentionError) -> [Float] {
        guard case .logits(let logits) = self else { return [] }
        guard logits.count == queryHeads else {
            throw AttentionError(
                .sinkCount, "sink.logits", expected: "\(queryHeads) logits, one per query head",
                found: "\(logits.count)")
        }
        for (head, logit) in logits.enumerated() where !(logit <= Self.largestLogit) {
            throw AttentionError(
                .sink, "sink.logits[\(head)]", expected: "a number up to \(Self.largestLogit) or -inf",
                found: "\(logit)")
        }
        return logits
    }
}
