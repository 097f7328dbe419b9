// SPDX-License-Identifier: Apache-2.0
// Sampler.swift - which token comes next: the most likely one, or one by chance among the likely ones.

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// Chooses tokens by their logits.
public struct Sampler: Sendable {
    public enum Method: Sendable, Equatable {
        /// The largest logit; of equal ones the first.
        case greedy
        /// By chance, with probabilities `softmax(logits / temperature)`, among the fewest most likely tokens whose
        /// probabilities sum to `share` or more.
        case topP(share: Double, temperature: Double)
    }

    public let method: Method
    private var state: UInt64

    /// - Parameter seed: equal seeds and logits give equal tokens.
    public init(_ method: Method, seed: UInt64 = 0) {
        (self.method, state) = (method, seed)
    }

    public mutating func next(_ logits: [Float]) -> Int {
        switch method {
        case .greedy: Self.largest(logits)
        case .topP(let share, let temperature): sample(logits, share, temperature)
        }
    }

    private static func largest(_ logits: [Float]) -> Int {
        var (best, value) = (0, -Float.infinity)
        for (index, logit) in logits.enumerated() where logit > value { (best, value) = (index, logit) }
        return best
    }

    private mutating func sample(_ logits: [Float], _ share: Double, _ temperature: Double) -> Int {
        let top = Double(logits.max() ?? 0)
        let weights = logits.map { exp((Double($0) - top) / temperature) }
        let total = weights.reduce(0, +)
        // What is below a millionth of the largest cannot be among the chosen, but for a share of 1.
        let candidates = weights.indices.filter { share >= 1 || weights[$0] > 1e-6 * (1 - share) }
        let ordered = candidates.sorted { (weights[$0], $1) > (weights[$1], $0) }
        var (kept, sum) = (0, 0.0)
        while kept < ordered.count, sum < share * total {
            sum += weights[ordered[kept]]
            kept += 1
        }
        var place = uniform() * sum
        for index in ordered.prefix(kept) {
            place -= weights[index]
            if place < 0 { return index }
        }
        return ordered.prefix(kept).last ?? Self.largest(logits)
    }

    /// 0..<1, by SplitMix64.
    private mutating func uniform() -> Double {
        state &+= 0x9e37_79b9_7f4a_7c15
        var bits = state
        bits = (bits ^ bits >> 30) &* 0xbf58_476d_1ce4_e5b9
        bits = (bits ^ bits >> 27) &* 0x94d0_49bb_1331_11eb
        return Double((bits ^ bits >> 31) >> 11) * 0x1p-53
    }
}
