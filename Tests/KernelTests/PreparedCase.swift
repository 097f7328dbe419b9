// SPDX-License-Identifier: Apache-2.0
// PreparedCase.swift - rows to prepare, through the C interface and by the reference.

import AttentionReference
import CKernels
import QuietAttention
import SeededInputs
import TestSupport

/// Rows, seven unless told otherwise, and what the reference makes of them.
struct PreparedCase: CustomStringConvertible {
    let positions: PositionCase
    let dimension: Int
    let side: ReferencePositions.Side
    let storage: AttentionCase.StorageChoice
    let places: [Int]
    let rows, table: [Float]

    var description: String { "\(positions), \(dimension) channels, \(side), \(storage), \(places.count) rows" }

    init(
        _ positions: PositionCase, _ dimension: Int, _ side: ReferencePositions.Side,
        _ storage: AttentionCase.StorageChoice, pairs: Int? = nil, count: Int = 7
    ) {
        var positions = positions
        if let pairs { positions.embedding?.dimensions = 2 * pairs }
        (self.positions, self.dimension, self.side, self.storage) = (positions, dimension, side, storage)
        places = (0..<count).map { 3 * $0 * $0 - 2 }
        rows = Self.inputs(count, dimension, storage)
        table = Self.table(positions.reference(headDimension: dimension, length: 100), side, places)
    }

    var norm: ReferenceNorm? { positions.norm.map { ReferenceNorm($0, side) } }
    var turning: ReferencePositions? { positions.reference(headDimension: dimension, length: 100) }

    func requireReferenceBits(_ kernels: KernelTable) throws {
        let memory = PreparedMemory(self, guard: .after)
        let output = StoredRows(
            [Float](repeating: 0.5, count: rows.count), width: dimension, padding: 5, storage: .float32, guard: .after)
        var arguments = memory.arguments
        arguments.out = output.start.assumingMemoryBound(to: Float.self)
        arguments.out_stride = output.stride
        kernels.functions.pointee.prepare(&arguments)

        let context = "\(kernels): \(self)"
        let expected = positions.prepared(rows, positions: places, headDimension: dimension, length: 100, side)
        try requireSameBits("rows", output.values, expected, extents: [places.count, dimension], context)
        guard output.isIntactOutsideRows, memory.isIntact else {
            throw TestFailure("\(context): wrote beside its output")
        }
    }

    /// Normal rows, one with a NaN, one with an infinity, one of zeros, one of tiny numbers.
    private static func inputs(_ count: Int, _ dimension: Int, _ storage: AttentionCase.StorageChoice) -> [Float] {
        var generator = SeededGenerator(seed: UInt64(dimension))
        var rows = generator.normals(count * dimension)
        rows[dimension] = .nan
        rows[3 * dimension - 1] = -.infinity
        for index in 3 * dimension..<4 * dimension { rows[index] = -0.0 }
        for index in 4 * dimension..<5 * dimension { rows[index] *= 0x1p-140 }
        return rows.map(storage.rounded)
    }

    /// `[positions][2][pairs rounded up to lanes]`.
    private static func table(
        _ reference: ReferencePositions?, _ side: ReferencePositions.Side, _ places: [Int]
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

/// The tensors of a case at the edge of their memory, and the arguments that name them.
struct PreparedMemory {
    let arguments: qattn_prepare_args
    private let input: StoredRows
    private let floats: [GuardedBuffer<Float>]

    init(_ prepared: PreparedCase, guard side: GuardedBuffer<UInt8>.Side) {
        input = StoredRows(
            prepared.rows, width: prepared.dimension, padding: 3, storage: prepared.storage, guard: side)
        func guarded(_ values: [Float]?) -> GuardedBuffer<Float>? {
            values.map { GuardedBuffer($0, guard: side == .after ? .after : .before) }
        }
        let norm = prepared.norm
        let (tables, gain, shift) = (guarded(prepared.table), guarded(norm?.gain), guarded(norm?.bias))
        floats = [tables, gain, shift].compactMap { $0 }
        var arguments = qattn_prepare_args()
        arguments.rows = UnsafeRawPointer(input.start)
        arguments.stride = input.stride
        arguments.storage = prepared.storage.kernelStorage
        arguments.count = prepared.places.count
        arguments.dim = prepared.dimension
        arguments.norm = norm.map { $0.kind == .rms ? QATTN_RMS_NORM : QATTN_LAYER_NORM } ?? QATTN_NO_NORM
        arguments.epsilon = norm?.epsilon ?? 0
        arguments.gain = gain.map { UnsafePointer($0.start) }
        arguments.shift = shift.map { UnsafePointer($0.start) }
        arguments.rotation = Self.rotation(prepared.positions.form, prepared.side)
        arguments.pairing = prepared.positions.embedding?.pairing == .interleaved ? QATTN_INTERLEAVED : QATTN_HALVES
        arguments.pairs = (prepared.turning?.dimensions ?? 0) / 2
        arguments.tables = tables.map { UnsafePointer($0.start) }
        self.arguments = arguments
    }

    var isIntact: Bool { input.isIntactOutsideRows && floats.allSatisfy(\.slackIsIntact) }

    private static func rotation(_ form: ReferencePositions.Form, _ side: ReferencePositions.Side) -> qattn_rotation {
        switch (form, side) {
        case (.rotary, _): QATTN_ROTATED
        case (.slack, .queries): QATTN_SLACK_QUERY
        case (.slack, .keys): QATTN_SLACK_KEY
        case (.strict, .queries): QATTN_STRICT_QUERY
        case (.strict, .keys): QATTN_STRICT_KEY
        }
    }
}
