// SPDX-License-Identifier: Apache-2.0
// SavedCache.swift - the bytes of a saved cache: how they begin, how they end, and how damage is noticed.

import CKernels

/// A saved cache is a row of 64-bit integers, little-endian, around the pages as they are in memory:
///
///     magic, version, the fields of the header, pages [held][heads][block], checksum of all before it
///
/// Packed blocks are the same for all kernel sets (CKernels.h). Places of tokens that are not there hold zeros.
struct SavedCacheHeader: Equatable {
    var keyValueHeads, headDimension, valueDimension, storage, window, rollbackTokens: UInt64
    /// What tells apart how keys were normalised and rotated.
    var preparation: UInt64
    var count, freedPages: UInt64

    /// "QATTNKVC"
    static let magic: UInt64 = 0x4356_4b4e_5454_4151
    static let version: UInt64 = 1
    static let byteCount = 11 * 8

    init(_ cache: KeyValueCache) {
        keyValueHeads = UInt64(cache.keyValueHeads)
        headDimension = UInt64(cache.headDimension)
        valueDimension = UInt64(cache.valueDimension)
        storage =
            switch (cache.storage, cache.products) {
            case (.float32, _): 0
            case (.float16, _): 1
            case (.bfloat16, .float32): 2
            case (.int8, _): 3
            case (.bfloat16, .bfloat16): 4
            }
        window = UInt64(cache.window ?? 0)
        rollbackTokens = UInt64(cache.rollbackTokens)
        preparation = cache.preparationChecksum
        count = UInt64(cache.count)
        freedPages = UInt64(cache.freedPages)
    }

    private init(words: [UInt64]) {
        (keyValueHeads, headDimension, valueDimension) = (words[2], words[3], words[4])
        (storage, window, rollbackTokens, preparation) = (words[5], words[6], words[7], words[8])
        (count, freedPages) = (words[9], words[10])
    }

    var words: [UInt64] {
        [
            Self.magic, Self.version, keyValueHeads, headDimension, valueDimension, storage, window, rollbackTokens,
            preparation, count, freedPages,
        ]
    }

    private static func damaged(_ found: String) -> AttentionError {
        AttentionError(.savedCache, "bytes", expected: "a saved cache, whole and undamaged", found: found)
    }

    /// Reads the header of so many bytes from their beginning, whatever follows it.
    static func read(_ beginning: RawSpan, of bytes: Int) throws(AttentionError) -> SavedCacheHeader {
        guard beginning.byteCount >= byteCount, bytes >= byteCount + 8, bytes % 8 == 0 else {
            throw damaged("\(bytes) bytes")
        }
        let words = (0..<byteCount / 8).map { beginning.word($0) }
        guard words[0] == magic else { throw damaged("bytes that begin otherwise") }
        guard words[1] == version else {
            throw AttentionError(
                .savedCache, "bytes", expected: "version \(version) of the format", found: "version \(words[1])")
        }
        return SavedCacheHeader(words: words)
    }

    /// Reads the header of bytes that are whole.
    static func read(_ bytes: RawSpan) throws(AttentionError) -> SavedCacheHeader {
        let header = try read(bytes, of: bytes.byteCount)
        var checksum = Checksum()
        bytes.withUnsafeBytes { checksum.add(UnsafeRawBufferPointer(rebasing: $0.dropLast(8))) }
        guard bytes.word(bytes.byteCount / 8 - 1) == checksum.value else { throw damaged("another checksum") }
        return header
    }

    /// The fields that a cache must share, and their names.
    private var shape: [(String, UInt64)] {
        [
            ("key/value heads", keyValueHeads), ("head dimension", headDimension), ("value dimension", valueDimension),
            ("storage", storage), ("window", window), ("rollback", rollbackTokens),
            ("positions and norms", preparation),
        ]
    }

    /// In the order of their numbers. Blocks for products of bfloat16 lie otherwise than those of bfloat16.
    private static let storages = ["float32", "float16", "bfloat16", "int8", "bfloat16 with products of bfloat16"]

    /// A field as messages show it: storages by name, and of a checksum that it is another.
    private static func text(_ field: UInt64, of name: String) -> String {
        switch name {
        case "storage": field < UInt64(storages.count) ? storages[Int(field)] : "\(field)"
        case "positions and norms": "with the checksum \(String(field, radix: 16))"
        case "window": field == 0 ? "none" : "\(field)"
        default: "\(field)"
        }
    }

    /// Checks that a cache made as `cache` was saved.
    func check(restores cache: KeyValueCache) throws(AttentionError) {
        for ((name, expected), (_, found)) in zip(SavedCacheHeader(cache).shape, shape) where expected != found {
            throw AttentionError(
                .cacheShape, "saved cache", expected: "\(name) \(Self.text(expected, of: name)), as of this cache",
                found: Self.text(found, of: name))
        }
        let longest = UInt64(AttentionShape.longestSequence)
        guard count <= longest, freedPages <= longest,
            freedPages <= UInt64(cache.pagesBehindWindow(ofToken: Int(count)))
        else {
            throw AttentionError(
                .savedCache, "bytes", expected: "tokens that a cache can hold",
                found: "\(count) tokens, \(freedPages) pages freed")
        }
    }
}

/// A checksum in which any one changed word changes the sum.
struct Checksum {
    private(set) var value: UInt64 = 0x6a09_e667_f3bc_c908

    mutating func add(_ word: UInt64) {
        value = (value ^ word) &* 0x9e37_79b9_7f4a_7c15
        value ^= value >> 29
    }

    /// Whole words.
    mutating func add(_ bytes: UnsafeRawBufferPointer) {
        for offset in stride(from: 0, to: bytes.count / 8 * 8, by: 8) {
            add(UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self)))
        }
    }
}

extension RawSpan {
    fileprivate func word(_ index: Int) -> UInt64 {
        withUnsafeBytes { UInt64(littleEndian: $0.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self)) }
    }
}

extension KeyValueCache {
    /// Of what is done to keys before they are packed: norms, the form of rotations, and angles at some positions.
    var preparationChecksum: UInt64 {
        guard let preparation else { return 0 }
        return inFloatMode { checksum(of: preparation) }
    }

    private func checksum(of preparation: RowPreparation) -> UInt64 {
        var checksum = Checksum()
        let keys = preparation.keys
        let norm: UInt64 =
            switch keys.norm?.kind {
            case nil: 0
            case .rms: 1
            case .layer: 2
            }
        checksum.add(norm)
        checksum.add(UInt64((keys.norm?.epsilon ?? 0).bitPattern))
        for side in [preparation.queries, keys] {
            checksum.add(UInt64(side.rotation.rawValue))
            checksum.add(UInt64(side.pairing.rawValue))
            checksum.add(UInt64(side.pairs))
            for numbers in [side.gain, side.shift] {
                checksum.add(UInt64(numbers?.count ?? 0))
                for number in numbers ?? [] { checksum.add(UInt64(number.bitPattern)) }
            }
        }
        checksum.add(UInt64(bitPattern: Int64(encoding.offset)))
        if let angles { angles.add(to: &checksum) }
        return checksum.value
    }
}

extension RotaryAngles {
    /// The cosines and sines of a few positions, near and far.
    fileprivate func add(to checksum: inout Checksum) {
        for position in [centre + 1, centre + 2, centre + 1000] where (try? check(position...position)) != nil {
            withUnsafeTemporaryAllocation(of: Float.self, capacity: rowFloats) { row in
                row.initialize(repeating: 0)
                fill(row.baseAddress!, positions: position..<position + 1, .keys)
                for number in row { checksum.add(UInt64(number.bitPattern)) }
            }
        }
    }
}
