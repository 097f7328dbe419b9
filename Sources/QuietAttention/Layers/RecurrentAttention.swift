// SPDX-License-Identifier: Apache-2.0
// RecurrentAttention.swift - linear attention and retention: baselines whose time grows with the sequence, not its square.

/// Attention without softmax, as a recurrence over the keys: a state of D x E numbers per head stands for all keys so far.
///
/// | kind | output |
/// |---|---|
/// | ``Kind/linear`` | `out[i] = sum_j w[i][j] v[j] / sum_j w[i][j]`, `w[i][j] = phi(q[i]).phi(k[j])`, `phi(x) = elu(x) + 1` |
/// | ``Kind/retention`` | `out[i] = sum_j g^abs(p - j) (q[i].k[j] / sqrt(D)) v[j] / sqrt(sum_j g^abs(p - j))` |
///
/// where elu(x) + 1 is x + 1 above 0 and e^x below, row i stands at key p = i + S - L, and query head h decays by
/// g = 1 - 2^(-5 - h). Causal sums end with key p; others go over all keys.
///
/// Small baselines to compare with, not kernels: plain Swift on one thread, O((L + S) D E) per head. Sums are in Double
/// and in the order of the keys, so the bits are the same on every platform.
///
/// RetNet also divides a row by the sum of its magnitudes, clamped to 1...5e4. A recurrence cannot know that sum, and the
/// norm behind it cancels it: apply ``RMSNorm`` over E to the output, as RetNet does.
///
/// Gradients: ``backward(outputGradient:queries:keys:values:)``.
///
/// *Edge cases*: a row that sees no key puts out 0, and so does a linear row whose weights are all 0. Keys that a row does
/// not see are not read for it.
///
/// *Sources*: Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236, 2020. Sun et al., "Retentive Network", arXiv
/// 2307.08621, 2023; the bidirectional form is the sum of its two directions.
public struct RecurrentAttention: Sendable {
    public enum Kind: Sendable, Hashable, CaseIterable {
        /// Linear attention with elu + 1 as its feature map.
        case linear
        /// Retention, with a decay of its own for every query head.
        case retention
    }

    public let kind: Kind
    /// Shapes of tensors are those of ``Attention``.
    public let shape: AttentionShape
    /// Whether row i sees only the keys up to its own, aligned bottom right.
    public let isCausal: Bool
    public let layout: AttentionLayout

    /// - Parameters:
    ///   - kind: linear attention or retention.
    ///   - shape: the dimensions.
    ///   - isCausal: whether a row sees the keys up to its own, or all.
    ///   - layout: nil: as for ``Attention``.
    public init(_ kind: Kind, _ shape: AttentionShape, isCausal: Bool, layout: AttentionLayout? = nil) {
        (self.kind, self.shape, self.isCausal) = (kind, shape, isCausal)
        self.layout = layout ?? (shape.isPacked ? .batchSequenceHeads : .batchHeadsSequence)
    }

    /// Computes the output `[B, H, L, E]`.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func forward(queries: [Float], keys: [Float], values: [Float]) throws(AttentionError) -> [Float] {
        try shape.checkCounts(queries.count, keys.count, values.count)
        var output = try [Float](for: "output", repeating: 0, count: shape.outputCount)
        try withUnsafeBuffers([queries, keys, values][...]) { inputs throws(AttentionError) in
            let tensors = RecurrentTensors(queries: inputs[0], keys: inputs[1], values: inputs[2])
            try inFloatMode { () throws(AttentionError) in
                for head in HeadRows.all(shape, layout) {
                    try RecurrentHead(self, head, tensors).write(to: &output)
                }
            }
        }
        return output
    }
}
