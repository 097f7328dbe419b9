// SPDX-License-Identifier: Apache-2.0
// RecurrentHead.swift - one head of linear attention or retention: the state that goes over its keys, and what rows read of it.

/// What a recurrence is computed from.
struct RecurrentTensors {
    let queries, keys, values: UnsafeBufferPointer<Float>
}

/// Sums over what a recurrence has passed, each with the decay of its distance: of x y^T, `[D][E]`, and of x or of a number, `[D]`.
struct RecurrentState {
    var products: [Double]
    var sums: [Double]

    init(headDimension: Int, valueDimension: Int) {
        products = [Double](repeating: 0, count: headDimension * valueDimension)
        sums = [Double](repeating: 0, count: headDimension)
    }

    mutating func clear() {
        products.withUnsafeMutableBufferPointer { $0.update(repeating: 0) }
        sums.withUnsafeMutableBufferPointer { $0.update(repeating: 0) }
    }

    /// Retention alone decays. Its sum without values is a number, the first.
    mutating func decay(by decay: Double) {
        if decay == 1 { return }
        for index in products.indices { products[index] *= decay }
        sums[0] *= decay
    }
}

/// One head: numerators and denominators of all rows.
struct RecurrentHead {
    let kind: RecurrentAttention.Kind
    let isCausal: Bool
    let rows: HeadRows
    let headDimension, valueDimension: Int
    let decay: Double
    let tensors: RecurrentTensors
    /// [L][E] and [L].
    private(set) var numerators, denominators: [Double]

    init(
        _ attention: RecurrentAttention, _ rows: HeadRows, _ tensors: RecurrentTensors
    ) throws(AttentionError) {
        (kind, isCausal, self.rows) = (attention.kind, attention.isCausal, rows)
        (headDimension, valueDimension) = (attention.shape.headDimension, attention.shape.valueDimension)
        decay = kind == .linear ? 1 : 1 - Double(sign: .plus, exponent: max(-60, -5 - rows.queryHead), significand: 1)
        self.tensors = tensors
        numerators = try [Double](for: "numerators", repeating: 0, count: rows.queryCount * valueDimension)
        denominators = try [Double](for: "denominators", repeating: 0, count: rows.queryCount)
        compute()
    }

    private mutating func compute() {
        var (numerators, denominators) = ([Double](), [Double]())
        swap(&numerators, &self.numerators)
        swap(&denominators, &self.denominators)
        forEachRow { row, state in
            let start = rows.queries[row]
            for d in 0..<headDimension {
                let feature = feature(tensors.queries[start + d])
                for e in 0..<valueDimension {
                    numerators[row * valueDimension + e] += feature * state.products[d * valueDimension + e]
                }
                if kind == .linear { denominators[row] += feature * state.sums[d] }
            }
            if kind == .retention { denominators[row] += state.sums[0] }
        }
        (self.numerators, self.denominators) = (numerators, denominators)
    }

    /// Key 0's place among the rows: row i stands at key i + offset.
    var offset: Int { rows.keyCount - rows.queryCount }

    /// Calls `read` for every row that keys come before, with the sums over the keys up to its own; then, where there is no mask, for
    /// every row with the sums over the keys behind its own.
    func forEachRow(_ read: (_ row: Int, _ state: RecurrentState) -> Void) {
        var state = RecurrentState(headDimension: headDimension, valueDimension: valueDimension)
        for key in 0..<rows.keyCount {
            state.decay(by: decay)
            add(key: key, to: &state)
            if key >= offset { read(key - offset, state) }
        }
        if isCausal { return }
        // Rows that stand before the first key have all of them behind their own.
        state.clear()
        for place in stride(from: rows.keyCount - 1, through: offset, by: -1) {
            if place + 1 < rows.keyCount, place + 1 >= 0 { add(key: place + 1, to: &state) }
            state.decay(by: decay)
            read(place - offset, state)
        }
    }

    private func add(key: Int, to state: inout RecurrentState) {
        let (keyStart, valueStart) = (rows.keys[key], rows.values[key])
        for d in 0..<headDimension {
            let feature = feature(tensors.keys[keyStart + d])
            for e in 0..<valueDimension {
                state.products[d * valueDimension + e] += feature * Double(tensors.values[valueStart + e])
            }
            if kind == .linear { state.sums[d] += feature }
        }
        if kind == .retention { state.sums[0] += 1 }
    }

    /// elu(x) + 1 of linear attention; retention takes queries and keys as they are.
    func feature(_ x: Float) -> Double {
        if kind == .retention || x.isNaN { return Double(x) }
        return x > 0 ? Double(x) + 1 : ElementaryFunctions.exponential(Double(x))
    }

    /// What a row's numerators are divided by; 0: it has no output.
    func divisor(row: Int) -> Double {
        kind == .linear ? denominators[row] : (denominators[row] * Double(headDimension)).squareRoot()
    }

    func write(to output: inout [Float]) {
        for row in 0..<rows.queryCount {
            let divisor = divisor(row: row)
            if divisor == 0 { continue }
            for e in 0..<valueDimension {
                output[rows.output[row] + e] = Float(numerators[row * valueDimension + e] / divisor)
            }
        }
    }
}
