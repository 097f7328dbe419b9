// SPDX-License-Identifier: Apache-2.0
// RowSums.swift - sums over all rows of a sequence, in the order of one machine: numbers of heads, gains and biases of norms.

import QuietAttention

/// Gradients that need not be computed.
public struct WantedGradients: Sendable {
    /// Of ALiBi's slopes, and by the logarithms of the heads' scales.
    public var slopes = false, logScales = false
    /// Of the norms' gains and biases.
    public var queryGain = false, queryBias = false, keyGain = false, keyBias = false

    public init() {}
}

/// The sum of 16 lanes in a tree: r with r + 8, then r + 4, r + 2, r + 1.
func sumOfLanes(_ values: UnsafeBufferPointer<Float>, from first: Int) -> Float {
    withUnsafeTemporaryAllocation(of: Float.self, capacity: 16) { lanes in
        _ = lanes.initialize(from: values[first..<first + 16])
        for half in [8, 4, 2, 1] {
            for lane in 0..<half { lanes[lane] += lanes[lane + half] }
        }
        return lanes[0]
    }
}

extension World {
    /// Sums of each query head over all rows of a sequence: row i joins lane i mod 16, ascending. The lanes go from stripe to
    /// stripe. Every rank calls this at the same place.
    ///
    /// - Parameter terms: of a row by its place in the rank's `[H, rows]`, one function for each sum.
    /// - Returns: for each of the terms `[H]`, the same on all ranks.
    func sumRows<Element: AttentionScalar>(_ terms: [(Int) -> Float], _ part: OwnPart<Element>) throws -> [[Float]] {
        let (plan, heads, own) = (part.plan, part.shape.queryHeads, part.rows.count)
        let lanes = try Buffer<Float>(terms.count * heads * 16, for: "sums of heads")
        for stripe in 0..<plan.stripes where plan.owner(of: stripe) == rank {
            if stripe > 0, plan.owner(of: stripe - 1) != rank {
                var request = try receive(lanes.bytes, from: plan.owner(of: stripe - 1), tag: 0x10001, "sums of heads")
                try wait(&request)
            }
            let first = part.firstRow(ofStripe: stripe)
            for (number, term) in terms.enumerated() {
                for head in 0..<heads {
                    let lane = (number * heads + head) * 16
                    for (index, row) in plan.rows(ofStripe: stripe).enumerated() {
                        lanes.elements[lane + row % 16] += term(head * own + first + index)
                    }
                }
            }
            let next = stripe + 1
            if next < plan.stripes, plan.owner(of: next) != rank {
                var request = try send(
                    UnsafeRawBufferPointer(lanes.bytes), to: plan.owner(of: next), tag: 0x10001, "sums of heads")
                try wait(&request)
            }
        }
        // Of all ranks' lanes those of the last stripe's owner are the sums.
        let all = try gather(Array(lanes.bytes))
        let last = plan.stripes == 0 ? 0 : plan.owner(of: plan.stripes - 1)
        return all[last].withUnsafeBytes { bytes in
            let lanes = bytes.bindMemory(to: Float.self)
            return terms.indices.map { number in
                (0..<heads).map { sumOfLanes(lanes, from: (number * heads + $0) * 16) }
            }
        }
    }
}

/// The gradients of the gains and biases of norms on one rank: sums over runs of 64 rows.
public struct NormSums {
    /// Rows whose sums are one.
    private static let run = 64

    typealias Sums = (gain: Buffer<Float>?, bias: Buffer<Float>?)

    private let plan: RingPlan
    private let shape: RingShape
    /// `[H, runs, D]`.
    let queries: Sums
    /// By chunk, `[G, runs, D]`.
    let keys: [Int: Sums]

    init(
        _ plan: RingPlan, _ shape: RingShape, rows: Int, chunks: some Sequence<Int>, _ wanted: WantedGradients
    ) throws(RingError) {
        (self.plan, self.shape) = (plan, shape)
        func sums(_ isWanted: Bool, heads: Int, rows: Int) throws(RingError) -> Buffer<Float>? {
            let runs = (rows + Self.run - 1) / Self.run
            return try isWanted ? Buffer(heads * runs * shape.headDimension, for: "the gradients of norms") : nil
        }
        queries = (
            try sums(wanted.queryGain, heads: shape.queryHeads, rows: rows),
            try sums(wanted.queryBias, heads: shape.queryHeads, rows: rows)
        )
        var keys: [Int: Sums] = [:]
        for chunk in chunks {
            let rows = plan.keys(ofChunk: chunk).count
            keys[chunk] = (
                try sums(wanted.keyGain, heads: shape.keyValueHeads, rows: rows),
                try sums(wanted.keyBias, heads: shape.keyValueHeads, rows: rows)
            )
        }
        self.keys = keys
    }

    public enum Parameter: CaseIterable, Sendable { case queryGain, queryBias, keyGain, keyBias }

    /// Adds the gradient of a sequence to `gradient` on rank 0, in the order of one machine: heads ascending, then rows. Every rank
    /// calls this at the same place.
    ///
    /// - Parameter gradient: `[D]`, or `[heads, D]`.
    public func add(_ parameter: Parameter, _ world: World, to gradient: inout [Float]) throws {
        let tensor: SharedTensor =
            switch parameter {
            case .queryGain: stripes(world, queries.gain)
            case .queryBias: stripes(world, queries.bias)
            case .keyGain: chunks { $0.gain }
            case .keyBias: chunks { $0.bias }
            }
        let d = shape.headDimension
        try world.collect(tensor) { head, _, sums in
            let first = gradient.count == d ? 0 : head * d
            for (index, sum) in sums.enumerated() { gradient[first + index % d] += 0 + sum }
        }
    }

    private func stripes(_ world: World, _ sums: Buffer<Float>?) -> SharedTensor {
        .stripes(
            plan, rank: world.rank, heads: shape.queryHeads, dimension: shape.headDimension, rowsOfEntry: Self.run,
            sums!.reading)
    }

    private func chunks(_ sums: @escaping (Sums) -> Buffer<Float>?) -> SharedTensor {
        .chunks(plan, heads: shape.keyValueHeads, dimension: shape.headDimension, rowsOfEntry: Self.run) {
            sums(keys[$0]!)!.reading
        }
    }
}
