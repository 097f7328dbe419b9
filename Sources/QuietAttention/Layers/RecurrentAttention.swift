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
        for (name, found, expected) in [
            ("queries", queries.count, shape.queryCount), ("keys", keys.count, shape.keyCount),
            ("values", values.count, shape.valueCount),
        ] where found != expected {
            throw AttentionError(.elementCount, name, expected: "\(expected) elements", found: "\(found)")
        }
        var output = try [Float](for: "output", repeating: 0, count: shape.outputCount)
        try inFloatMode { () throws(AttentionError) in
            for head in HeadRows.all(shape, layout) {
                var run = try RecurrentHead(self, head, queries: queries, keys: keys, values: values)
                run.compute()
                run.write(to: &output)
            }
        }
        return output
    }
}

/// One head: numerators and denominators of all rows, and the state that goes over the keys.
private struct RecurrentHead {
    let kind: RecurrentAttention.Kind
    let isCausal: Bool
    let rows: HeadRows
    let headDimension, valueDimension: Int
    let decay: Double
    let queries, keys, values: [Float]
    /// [D][E]: sum_j decay^distance phi(k[j]) v[j].
    private var state: [Double]
    /// [D]: the same sum without values; of retention only [0] counts: the sum of the decays.
    private var weights: [Double]
    /// [L][E] and [L].
    private var numerators, denominators: [Double]

    init(
        _ attention: RecurrentAttention, _ rows: HeadRows, queries: [Float], keys: [Float], values: [Float]
    ) throws(AttentionError) {
        (kind, isCausal, self.rows) = (attention.kind, attention.isCausal, rows)
        (headDimension, valueDimension) = (attention.shape.headDimension, attention.shape.valueDimension)
        decay = kind == .linear ? 1 : 1 - Double(sign: .plus, exponent: max(-60, -5 - rows.queryHead), significand: 1)
        (self.queries, self.keys, self.values) = (queries, keys, values)
        state = [Double](repeating: 0, count: headDimension * valueDimension)
        weights = [Double](repeating: 0, count: headDimension)
        numerators = try [Double](for: "numerators", repeating: 0, count: rows.queryCount * valueDimension)
        denominators = try [Double](for: "denominators", repeating: 0, count: rows.queryCount)
    }

    mutating func compute() {
        let offset = rows.keyCount - rows.queryCount
        // Forward: keys up to the row's own.
        for key in 0..<rows.keyCount {
            decayState()
            add(key: key)
            if key >= offset { read(row: key - offset) }
        }
        if isCausal { return }
        // Backward: keys behind the row's own, and for rows that stand before the first key all of them.
        state.withUnsafeMutableBufferPointer { $0.update(repeating: 0) }
        weights.withUnsafeMutableBufferPointer { $0.update(repeating: 0) }
        for place in stride(from: rows.keyCount - 1, through: offset, by: -1) {
            if place + 1 < rows.keyCount, place + 1 >= 0 { add(key: place + 1) }
            decayState()
            read(row: place - offset)
        }
    }

    private mutating func decayState() {
        if decay == 1 { return }
        for index in state.indices { state[index] *= decay }
        weights[0] *= decay
    }

    private mutating func add(key: Int) {
        let (keyStart, valueStart) = (rows.keys[key], rows.values[key])
        for d in 0..<headDimension {
            let feature = feature(keys[keyStart + d])
            for e in 0..<valueDimension {
                state[d * valueDimension + e] += feature * Double(values[valueStart + e])
            }
            if kind == .linear { weights[d] += feature }
        }
        if kind == .retention { weights[0] += 1 }
    }

    private mutating func read(row: Int) {
        let start = rows.queries[row]
        for d in 0..<headDimension {
            let feature = feature(queries[start + d])
            for e in 0..<valueDimension {
                numerators[row * valueDimension + e] += feature * state[d * valueDimension + e]
            }
            if kind == .linear { denominators[row] += feature * weights[d] }
        }
        if kind == .retention { denominators[row] += weights[0] }
    }

    /// elu(x) + 1 of linear attention; retention takes queries and keys as they are.
    private func feature(_ x: Float) -> Double {
        if kind == .retention || x.isNaN { return Double(x) }
        return x > 0 ? Double(x) + 1 : ElementaryFunctions.exponential(Double(x))
    }

    func write(to output: inout [Float]) {
        for row in 0..<rows.queryCount {
            let divisor =
                kind == .linear ? denominators[row] : (denominators[row] * Double(headDimension)).squareRoot()
            if divisor == 0 { continue }
            for e in 0..<valueDimension {
                output[rows.output[row] + e] = Float(numerators[row * valueDimension + e] / divisor)
            }
        }
    }
}
