// SPDX-License-Identifier: Apache-2.0
// WeightMatrix.swift - a matrix of quantised weights, packed for the kernels and no larger than in the file.

import CProjections

/// A matrix `[rows, columns]` of Q4_1 or Q8_0 weights in panels of 16 rows.
public final class WeightMatrix: @unchecked Sendable {
    public let rows, columns: Int
    /// Bytes of the packed weights.
    public let byteCount: Int
    private let type: lm_weight_type
    /// Written by the initialiser alone, in the memory below.
    private let panels: UnsafeMutablePointer<UInt8>
    private let memory: WeightMemory.Piece

    /// Reads a matrix a few rows at a time.
    ///
    /// - Parameters:
    ///   - memory: where the panels go.
    ///   - source: the row of the file that becomes row r.
    init(
        _ file: GGUFFile, _ name: String, rows: Int, columns: Int, memory: WeightMemory,
        source: (Int) -> Int = { $0 }
    ) throws(GGUFError) {
        let tensor = try file.tensor(name, shape: [rows, columns])
        switch tensor.type {
        case .q41: type = LM_Q4_1
        case .q80: type = LM_Q8_0
        default: throw .unsupportedTensor(name, type: tensor.type.name, expected: "Q4_1 or Q8_0")
        }
        (self.rows, self.columns) = (rows, columns)
        let blocks = columns / Int(LM_BLOCK_COLUMNS)
        byteCount = (rows + Int(LM_PANEL_ROWS) - 1) / Int(LM_PANEL_ROWS) * blocks * lm_block_bytes(type)
        guard let (piece, address) = memory.take(byteCount) else {
            throw .cannotRead(path: name, reason: "no memory for \(byteCount) bytes")
        }
        (self.memory, panels) = (piece, address.assumingMemoryBound(to: UInt8.self))
        try fill(file, tensor, source)
    }

    private func fill(_ file: GGUFFile, _ tensor: GGUFTensor, _ source: (Int) -> Int) throws(GGUFError) {
        var bytes = [UInt8](repeating: 0, count: rows * tensor.rowBytes)
        var failure: GGUFError?
        bytes.withUnsafeMutableBytes { bytes in
            do throws(GGUFError) { try file.read(tensor, rows: 0..<rows, into: bytes) } catch { failure = error }
        }
        if let failure { throw failure }
        bytes.withUnsafeBufferPointer { bytes in
            for row in 0..<rows {
                lm_pack_row(
                    type, Int32(columns), bytes.baseAddress! + source(row) * tensor.rowBytes, Int32(row), panels)
            }
        }
    }

    /// The matrix as the kernels see it, valid while this object lives.
    var view: lm_matrix { lm_matrix(type: type, rows: Int32(rows), columns: Int32(columns), panels: panels) }

    /// Panels of 16 rows.
    var panelCount: Int { (rows + Int(LM_PANEL_ROWS) - 1) / Int(LM_PANEL_ROWS) }

    /// Writes one row, `columns` floats.
    func unpack(row: Int, into out: UnsafeMutablePointer<Float>) {
        withUnsafePointer(to: view) { lm_unpack_row($0, Int32(row), out) }
    }

    /// All weights as floats, `[rows, columns]`.
    func floats() -> [Float] {
        [Float](unsafeUninitializedCapacity: rows * columns) { buffer, count in
            for row in 0..<rows { unpack(row: row, into: buffer.baseAddress! + row * columns) }
            count = rows * columns
        }
    }
}
