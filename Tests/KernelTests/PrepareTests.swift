// SPDX-License-Identifier: Apache-2.0
// PrepareTests.swift - prepared rows of every kernel set against the reference, bit for bit.

import AttentionReference
import CKernels
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct PrepareTests {
    /// Pairs around lanes, channels behind them; every storage, side and way of preparing.
    private static let cases: [PreparedCase] = [4, 16, 30, 34, 64, 130].flatMap { dimension in
        zip(0..., PositionCase.all(headDimension: dimension)).flatMap { index, positions in
            ReferencePositions.Side.allCases.map { side in
                let storages = AttentionCase.StorageChoice.available
                return PreparedCase(positions, dimension, side, storages[(index + dimension / 2) % storages.count])
            }
        }
    }

    /// One channel; an odd number of which all but one are turned; the most there are.
    private static let dimensions: [PreparedCase] = [
        PreparedCase(PositionCase("one", nil, norm: .rms()), 1, .queries, .float32),
        PreparedCase(PositionCase("odd", RotaryEmbedding(dimensions: 34)), 35, .queries, .bfloat16),
        PreparedCase(PositionCase("odd, layer", RotaryEmbedding(dimensions: 34), norm: .layer()), 35, .keys, .float32),
        PreparedCase(PositionCase("large", RotaryEmbedding(pairing: .interleaved)), 1024, .keys, .float32),
        PreparedCase(PositionCase("large, rms", RotaryEmbedding(), norm: .rms()), 1023, .keys, .float32, pairs: 511),
    ]

    @Test("prepared rows", arguments: KernelTable.available)
    func rows(kernels: KernelTable) throws {
        for prepared in Self.cases { try prepared.requireReferenceBits(kernels) }
    }

    @Test("prepared rows of odd and large dimensions", arguments: KernelTable.available)
    func dimensions(kernels: KernelTable) throws {
        for prepared in Self.dimensions { try prepared.requireReferenceBits(kernels) }
    }
}

/// Seven rows, and what the reference makes of them.
private struct PreparedCase {
    let positions: PositionCase
    let dimension: Int
    let side: ReferencePositions.Side
    let storage: AttentionCase.StorageChoice
    let rows, table, expected: [Float]

    static let places = (0..<7).map { 3 * $0 * $0 - 2 }

    init(
        _ positions: PositionCase, _ dimension: Int, _ side: ReferencePositions.Side,
        _ storage: AttentionCase.StorageChoice, pairs: Int? = nil
    ) {
        var positions = positions
        if let pairs { positions.embedding?.dimensions = 2 * pairs }
        (self.positions, self.dimension, self.side, self.storage) = (positions, dimension, side, storage)
        rows = Self.inputs(dimension, storage)
        table = Self.table(positions.reference(headDimension: dimension, length: 100), side)
        expected = positions.prepared(
            rows, positions: Self.places, headDimension: dimension, length: 100, side)
    }

    func requireReferenceBits(_ kernels: KernelTable) throws {
        let input = StoredRows(rows, width: dimension, padding: 3, storage: storage, guard: .after)
        let output = StoredRows(
            [Float](repeating: 0.5, count: rows.count), width: dimension, padding: 5, storage: .float32, guard: .after)
        let tables = GuardedBuffer(table)
        let norm = positions.norm.map { ReferenceNorm($0, side) }
        let (gain, shift) = (norm?.gain.map { GuardedBuffer($0) }, norm?.bias.map { GuardedBuffer($0) })
        var arguments = qattn_prepare_args()
        arguments.rows = UnsafeRawPointer(input.start)
        arguments.stride = input.stride
        arguments.storage = storage.kernelStorage
        arguments.count = Self.places.count
        arguments.dim = dimension
        arguments.norm = norm.map { $0.kind == .rms ? QATTN_RMS_NORM : QATTN_LAYER_NORM } ?? QATTN_NO_NORM
        arguments.epsilon = norm?.epsilon ?? 0
        arguments.gain = gain.map { UnsafePointer($0.start) }
        arguments.shift = shift.map { UnsafePointer($0.start) }
        arguments.rotation = rotation(positions.form, side)
        arguments.pairing = positions.embedding?.pairing == .interleaved ? QATTN_INTERLEAVED : QATTN_HALVES
        arguments.pairs = (positions.reference(headDimension: dimension, length: 100)?.dimensions ?? 0) / 2
        arguments.tables = UnsafePointer(tables.start)
        arguments.out = output.start.assumingMemoryBound(to: Float.self)
        arguments.out_stride = output.stride
        kernels.functions.pointee.prepare(&arguments)

        let context = "\(kernels): \(positions), \(dimension) channels, \(side), \(storage)"
        try requireSameBits("rows", output.values, expected, extents: [Self.places.count, dimension], context)
        guard output.isIntactOutsideRows, input.isIntactOutsideRows else {
            throw TestFailure("\(context): wrote beside its output")
        }
    }

    /// Normal rows, one with a NaN, one with an infinity, one of zeros, one of tiny numbers.
    private static func inputs(_ dimension: Int, _ storage: AttentionCase.StorageChoice) -> [Float] {
        var generator = SeededGenerator(seed: UInt64(dimension))
        var rows = generator.normals(places.count * dimension)
        rows[dimension] = .nan
        rows[3 * dimension - 1] = -.infinity
        for index in 3 * dimension..<4 * dimension { rows[index] = -0.0 }
        for index in 4 * dimension..<5 * dimension { rows[index] *= 0x1p-140 }
        return rows.map(storage.rounded)
    }

    private func rotation(_ form: ReferencePositions.Form, _ side: ReferencePositions.Side) -> qattn_rotation {
        switch (form, side) {
        case (.rotary, _): QATTN_ROTATED
        case (.slack, .queries): QATTN_SLACK_QUERY
        case (.slack, .keys): QATTN_SLACK_KEY
        case (.strict, .queries): QATTN_STRICT_QUERY
        case (.strict, .keys): QATTN_STRICT_KEY
        }
    }

    /// `[positions][2][pairs rounded up to lanes]`.
    private static func table(
        _ reference: ReferencePositions?, _ side: ReferencePositions.Side
    ) -> [Float] {
        guard let reference else { return [] }
        let pairs = reference.dimensions / 2
        let padding = [Float](repeating: 0, count: (16 - pairs % 16) % 16)
        return places.flatMap { place in
            let values = (0..<pairs).map { reference.cosineAndSine(position: place, pair: $0, side) }
            return values.map(\.cosine) + padding + values.map(\.sine) + padding
        }
    }
}
