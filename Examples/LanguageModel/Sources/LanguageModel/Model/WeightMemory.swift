// SPDX-License-Identifier: Apache-2.0
// WeightMemory.swift - memory for weights, of which many matrices share a piece.

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// Hands out memory for matrices one behind the other, in the order in which a token reads them, from pieces for which the
/// system is asked for large pages: weights that lie in pages of 4 KB are read a quarter slower.
final class WeightMemory {
    /// Lives as long as a matrix in it.
    final class Piece {
        let address: UnsafeMutableRawPointer
        let byteCount: Int
        fileprivate var used = 0

        fileprivate init?(_ byteCount: Int) {
            var memory: UnsafeMutableRawPointer?
            guard posix_memalign(&memory, WeightMemory.largePage, byteCount) == 0, let memory else { return nil }
            (address, self.byteCount) = (memory, byteCount)
            #if os(Linux)
                // Where there are none, small pages do.
                _ = madvise(memory, byteCount, MADV_HUGEPAGE)
            #endif
        }

        deinit { free(address) }
    }

    private static let largePage = 2 << 20
    private static let pieceBytes = 32 << 20
    private var piece: Piece?

    /// Zeros, aligned to 64 bytes; nil: there is no memory.
    func take(_ byteCount: Int) -> (piece: Piece, address: UnsafeMutableRawPointer)? {
        let rounded = (byteCount + 63) / 64 * 64
        if piece.map({ $0.byteCount - $0.used < rounded }) ?? true {
            piece = Piece(max(Self.pieceBytes, (rounded + Self.largePage - 1) / Self.largePage * Self.largePage))
        }
        guard let piece else { return nil }
        let address = piece.address + piece.used
        piece.used += rounded
        memset(address, 0, rounded)
        return (piece, address)
    }
}
