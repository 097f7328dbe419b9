// SPDX-License-Identifier: Apache-2.0
// RecurrentHeadGradients.swift - the gradients of one head of linear attention or retention, as two recurrences: one over the
// keys, for its queries, and one over the rows, for its keys and values.

/// One head's gradients. With N the numerators of a row, Z its divisor, phi the feature map (of retention the identity):
///
///     out = N / Z          dN = dout / Z          dZ = - (dout.out) / Z, of retention 0: there Z does not depend on the queries
///     dphi(q) = S dN + s dZ            S, s: sums of phi(k) v^T and phi(k) over the keys that the row sees
///     dphi(k) = T v + t                T, t: sums of phi(q) dN^T and phi(q) dZ over the rows that see the key
///     dv      = T^T phi(k)
///
/// A row without output, or whose dout is 0, is not read.
struct RecurrentHeadGradients {
    private let head: RecurrentHead
    /// dN, [L][E], and dZ, [L].
    private let numerators, divisors: [Double]
    private let isRead: [Bool]

    /// - Parameter gradient: of the output.
    init(_ head: RecurrentHead, of gradient: UnsafeBufferPointer<Float>) throws(AttentionError) {
        let (count, width) = (head.rows.queryCount, head.valueDimension)
        var numerators = try [Double](for: "gradients", repeating: 0, count: count * width)
        var divisors = [Double](repeating: 0, count: count)
        var isRead = [Bool](repeating: false, count: count)
        for row in 0..<count {
            let (divisor, start) = (head.divisor(row: row), head.rows.output[row])
            guard divisor != 0, gradient[start..<start + width].contains(where: { $0 != 0 }) else { continue }
            isRead[row] = true
            for e in row * width..<(row + 1) * width {
                numerators[e] = Double(gradient[start + e - row * width]) / divisor
                if head.kind == .linear { divisors[row] -= numerators[e] * (head.numerators[e] / divisor) }
            }
        }
        self.head = head
        (self.numerators, self.divisors, self.isRead) = (numerators, divisors, isRead)
    }

    /// Adds the gradients of the queries to sums [L][D].
    func addQueries(to sums: inout [Double]) {
        let (rows, dimension) = (head.rows, head.headDimension)
        var features = [Double](repeating: 0, count: rows.queryCount * dimension)
        head.forEachRow { row, state in
            guard isRead[row] else { return }
            for d in 0..<dimension {
                features[row * dimension + d] += product(state, d, numerators, row)
                if head.kind == .linear { features[row * dimension + d] += state.sums[d] * divisors[row] }
            }
        }
        for row in 0..<rows.queryCount where isRead[row] {
            for d in 0..<dimension {
                sums[row * dimension + d] +=
                    features[row * dimension + d] * head.slope(head.tensors.queries[rows.queries[row] + d])
            }
        }
    }

    /// Adds the gradients of the keys to sums [S][D], and those of the values to sums [S][E].
    func addKeys(to keys: inout [Double], values: inout [Double]) {
        let (rows, dimension, width) = (head.rows, head.headDimension, head.valueDimension)
        forEachKey { key, state in
            let (keyStart, valueStart) = (rows.keys[key], rows.values[key])
            for d in 0..<dimension {
                let x = head.tensors.keys[keyStart + d]
                var sum = head.kind == .linear ? state.sums[d] : 0
                for e in 0..<width {
                    sum += state.products[d * width + e] * Double(head.tensors.values[valueStart + e])
                    values[key * width + e] += state.products[d * width + e] * head.feature(x)
                }
                keys[key * dimension + d] += sum * head.slope(x)
            }
        }
    }

    /// sum of state[d][e] vector[e], of a row of vectors [rows][E].
    private func product(_ state: RecurrentState, _ d: Int, _ vectors: [Double], _ row: Int) -> Double {
        let width = head.valueDimension
        var sum = 0.0
        for e in 0..<width { sum += state.products[d * width + e] * vectors[row * width + e] }
        return sum
    }

    /// Calls `read` for every key with the sums over the rows from its own on; then, where there is no mask, with those over the
    /// rows before its own.
    private func forEachKey(_ read: (_ key: Int, _ state: RecurrentState) -> Void) {
        let (rows, offset) = (head.rows, head.offset)
        var state = RecurrentState(headDimension: head.headDimension, valueDimension: head.valueDimension)
        for key in stride(from: rows.keyCount - 1, through: 0, by: -1) {
            state.decay(by: head.decay)
            if key >= offset { add(row: key - offset, to: &state) }
            read(key, state)
        }
        if head.isCausal { return }
        state.clear()
        for place in stride(from: offset, to: rows.keyCount, by: 1) {
            state.decay(by: head.decay)
            if place >= 0 { read(place, state) }
            add(row: place - offset, to: &state)
        }
    }

    private func add(row: Int, to state: inout RecurrentState) {
        guard isRead[row] else { return }
        let (start, width) = (head.rows.queries[row], head.valueDimension)
        for d in 0..<head.headDimension {
            let feature = head.feature(head.tensors.queries[start + d])
            for e in 0..<width { state.products[d * width + e] += feature * numerators[row * width + e] }
            if head.kind == .linear { state.sums[d] += feature * divisors[row] }
        }
    }
}

extension RecurrentHead {
    /// phi'(x): 1 above 0, e^x below; of retention 1.
    fileprivate func slope(_ x: Float) -> Double {
        if kind == .retention || x > 0 { return 1 }
        return x.isNaN ? .nan : ElementaryFunctions.exponential(Double(x))
    }
}
