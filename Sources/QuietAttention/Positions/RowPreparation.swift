// SPDX-License-Identifier: Apache-2.0
// RowPreparation.swift - what is done to queries and keys before scores multiply them, as the kernels are told of it.

import CKernels

/// What is done to rows of queries, and to rows of keys: normalised, then rotated.
struct RowPreparation: Sendable {
    let queries, keys: PreparedSide
    /// nil without an embedding.
    let embedding: RotaryEmbedding?
    /// r; 0 without an embedding.
    let dimensions: Int

    /// nil where nothing is to be done.
    ///
    /// - Parameter queryHeads: nil: not known yet.
    init?(
        _ positions: AttentionPositions, _ norm: QueryKeyNorm?, queryHeads: Int?, keyValueHeads: Int, headDimension: Int
    ) throws(AttentionError) {
        let dimensions = try positions.checkedDimensions(headDimension: headDimension)
        self.dimensions = dimensions
        try norm?.check(queryHeads: queryHeads, keyValueHeads: keyValueHeads, headDimension: headDimension)
        embedding = positions.embedding
        guard norm != nil || embedding != nil else { return nil }
        let rotations =
            switch positions.encoding {
            case .none, .rotary: (QATTN_ROTATED, QATTN_ROTATED)
            case .collinear(.strict, _): (QATTN_STRICT_QUERY, QATTN_STRICT_KEY)
            case .collinear(.slack, _): (QATTN_SLACK_QUERY, QATTN_SLACK_KEY)
            }
        let pairing = positions.embedding?.pairing == .interleaved ? QATTN_INTERLEAVED : QATTN_HALVES
        func side(_ rotation: qattn_rotation, _ gain: [Float]?, _ shift: [Float]?) -> PreparedSide {
            PreparedSide(
                dimension: headDimension, norm: norm, gain: gain, shift: shift, rotation: rotation, pairing: pairing,
                pairs: dimensions / 2)
        }
        queries = side(rotations.0, norm?.queryGain, norm?.queryBias)
        keys = side(rotations.1, norm?.keyGain, norm?.keyBias)
    }

    /// The angles for a sequence with this largest position + 1; nil without an embedding.
    func angles(length: Int) throws(AttentionError) -> RotaryAngles? {
        guard let embedding else { return nil }
        if let most = embedding.scaling.length, length > most {
            throw AttentionError(
                .position, "positions.scaling.length",
                expected: "at least \(length), the largest position of a sequence + 1", found: "\(most)")
        }
        return try RotaryAngles(embedding, dimensions: dimensions, length: length)
    }

    /// Bytes for rows made ready, with each row from a multiple of QATTN_ALIGNMENT on.
    static func byteCount(rows: Int, dimension: Int) -> Int { rows * stride(dimension) * MemoryLayout<Float>.stride }

    /// Elements from one prepared row to the next.
    static func stride(_ dimension: Int) -> Int { (dimension + QATTN_LANES - 1) / QATTN_LANES * QATTN_LANES }
}

/// What is done to the rows of one tensor.
struct PreparedSide: Sendable {
    let dimension: Int
    let norm: QueryKeyNorm?
    /// `[dimension]`, or `[heads, dimension]`.
    let gain, shift: [Float]?
    let rotation: qattn_rotation
    let pairing: qattn_pairing
    let pairs: Int

    /// Prepares `count` rows of a head.
    ///
    /// - Parameters:
    ///   - table: of the first row's position; those of the others follow. Only read where there are pairs.
    ///   - outStride: elements between the rows of `out`; nil: ``RowPreparation/stride(_:)``.
    func prepare(
        _ rows: UnsafeRawPointer, head: Int, stride: Int, storage: AttentionStorage, count: Int,
        table: UnsafePointer<Float>?,
        into out: UnsafeMutablePointer<Float>, outStride: Int? = nil, _ kernels: UnsafePointer<qattn_kernels>
    ) {
        withArguments(rows, head: head, stride: stride, storage: storage, count: count, table: table) { arguments in
            var arguments = arguments
            arguments.out = out
            arguments.out_stride = outStride ?? RowPreparation.stride(dimension)
            kernels.pointee.prepare(&arguments)
        }
    }

    /// What kernels are told of rows to be prepared, or of the gradients of rows that were; all but where the results go.
    func withArguments(
        _ rows: UnsafeRawPointer, head: Int, stride: Int, storage: AttentionStorage, count: Int,
        table: UnsafePointer<Float>?, _ body: (qattn_prepare_args) -> Void
    ) {
        var arguments = qattn_prepare_args()
        arguments.rows = rows
        arguments.stride = stride
        arguments.storage = storage.kernelStorage
        arguments.count = count
        arguments.dim = dimension
        arguments.norm =
            switch norm?.kind {
            case nil: QATTN_NO_NORM
            case .rms: QATTN_RMS_NORM
            case .layer: QATTN_LAYER_NORM
            }
        arguments.epsilon = norm?.epsilon ?? 0
        arguments.rotation = rotation
        arguments.pairing = pairing
        arguments.pairs = pairs
        arguments.tables = table
        (gain ?? []).withUnsafeBufferPointer { gain in
            (shift ?? []).withUnsafeBufferPointer { shift in
                arguments.gain = self.gain == nil ? nil : row(of: gain, head: head)
                arguments.shift = self.shift == nil ? nil : row(of: shift, head: head)
                body(arguments)
            }
        }
    }

    /// The head's vector, or that of all heads.
    private func row(of vectors: UnsafeBufferPointer<Float>, head: Int) -> UnsafePointer<Float>? {
        vectors.baseAddress.map { $0 + vectorOffset(count: vectors.count, head: head) }
    }

    /// Where a head's vector begins among so many elements.
    func vectorOffset(count: Int, head: Int) -> Int { count == dimension ? 0 : head * dimension }

    /// Rows as they are.
    static func unchanged(dimension: Int) -> PreparedSide {
        PreparedSide(
            dimension: dimension, norm: nil, gain: nil, shift: nil, rotation: QATTN_ROTATED, pairing: QATTN_HALVES,
            pairs: 0)
    }
}
