// SPDX-License-Identifier: Apache-2.0
// WeightGrids.swift - what rows add to the maps of their heads, from any thread and in any order.

/// The sums of ``HeadMap`` for all query heads. In integers, which are the same in any order.
final class WeightGrids: Sendable {
    private let shape: AttentionShape
    private let rowBands, keyBands: Int
    /// Of one head: [R][C] weights, [R] sink shares, [R] counts of rows, distances, rows without a number.
    private let stride: Int
    private let sums: Lock<[Int64]>

    /// One weight in the unit of the sums.
    private static let one = 0x1p32
    /// Distance 0 is in the middle; to either side one for each number of bits that a distance may have.
    private static let distances = 2 * 48 + 1

    init(_ shape: AttentionShape, rowBands: Int, keyBands: Int) throws(AttentionError) {
        self.shape = shape
        self.rowBands = min(rowBands, max(shape.queries, 1))
        self.keyBands = min(keyBands, max(shape.keys, 1))
        stride = self.rowBands * (self.keyBands + 2) + Self.distances + 1
        let count = try CheckedMemory.product("headMaps", stride, shape.queryHeads)
        sums = Lock(try [Int64](for: "headMaps", repeating: 0, count: count))
    }

    private var places: (sinks: Int, rows: Int, distances: Int, undefined: Int) {
        let sinks = rowBands * keyBands
        return (sinks, sinks + rowBands, sinks + 2 * rowBands, sinks + 2 * rowBands + Self.distances)
    }

    // MARK: - Rows

    /// Adds a row that sees a key.
    ///
    /// - Parameters:
    ///   - weights: of the keys that it sees, and the factor that makes weights of them; NaN: it has none.
    ///   - forEachKey: calls what it is given with each of those keys, counted from the first of the sequence.
    func add(
        _ weights: (relative: UnsafeMutableBufferPointer<Float>, factor: Double), sinkShare: Double, row: Int,
        of sequence: SequencePlan, head: Int, forEachKey: ((_ key: Int, _ score: Float) -> Void) -> Void
    ) {
        let (places, start) = (places, head * stride)
        guard !sinkShare.isNaN, !weights.factor.isNaN else {
            sums.withLock { $0[start + places.undefined] &+= 1 }
            return
        }
        let position = sequence.diagonal + sequence.place(row)
        let keys = shape.keys(ofSequence: sequence.item)
        withUnsafeTemporaryAllocation(of: Double.self, capacity: keyBands + Self.distances) { cells in
            cells.initialize(repeating: 0)
            var (index, band, bandEnd) = (0, -1, 0)
            forEachKey { key, _ in
                if key >= bandEnd {
                    band = key * keyBands / keys
                    // The first key of the next band.
                    bandEnd = ((band + 1) * keys + keyBands - 1) / keyBands
                }
                let weight = Double(weights.relative[index])
                index += 1
                cells[band] += weight
                cells[keyBands + Self.distanceBand(position - key)] += weight
            }
            let rowBand = row * rowBands / sequence.queries
            sums.withLock { sums in
                for band in 0..<keyBands {
                    sums[start + rowBand * keyBands + band] &+= Self.units(cells[band] * weights.factor)
                }
                for band in 0..<Self.distances where cells[keyBands + band] != 0 {
                    sums[start + places.distances + band] &+= Self.units(cells[keyBands + band] * weights.factor)
                }
                sums[start + places.sinks + rowBand] &+= Self.units(sinkShare)
                sums[start + places.rows + rowBand] &+= 1
            }
        }
    }

    /// Of a weight, which is at most 1 but for rounding.
    private static func units(_ weight: Double) -> Int64 { Int64((weight * one).rounded()) }

    private static func distanceBand(_ distance: Int) -> Int {
        let bits = Int.bitWidth - distance.magnitude.leadingZeroBitCount
        return distances / 2 + (distance < 0 ? -bits : bits)
    }

    private static func range(ofBand band: Int) -> ClosedRange<Int> {
        let bits = band - distances / 2
        if bits == 0 { return 0...0 }
        let least = 1 << (abs(bits) - 1)
        return bits > 0 ? least...2 * least - 1 : 1 - 2 * least ... -least
    }

    // MARK: - Heads

    func map(ofHead head: Int, _ diagnostics: HeadDiagnostics) -> HeadMap {
        let (places, start) = (places, head * stride)
        let own = sums.withLock { Array($0[start..<start + stride]) }
        let rowCounts = own[places.rows..<places.distances].map { Int($0) }
        func mean(_ sum: Int64, _ rows: Int) -> Double { Double(sum) / Self.one / Double(rows) }
        let all = rowCounts.reduce(0, +)
        let bands = (0..<Self.distances).filter { own[places.distances + $0] != 0 }
        let shown = bands.first.map { $0...bands.last! }.map(Array.init) ?? []
        return HeadMap(
            diagnostics: diagnostics, rowBands: rowBands, keyBands: keyBands,
            weights: (0..<places.sinks).map { mean(own[$0], rowCounts[$0 / keyBands]) },
            sinkShares: (0..<rowBands).map { mean(own[places.sinks + $0], rowCounts[$0]) }, rowCounts: rowCounts,
            weightByDistance: shown.map { band in
                HeadMap.DistanceBand(
                    distances: Self.range(ofBand: band), weight: mean(own[places.distances + band], all))
            },
            undefinedRows: Int(own[places.undefined]))
    }
}
