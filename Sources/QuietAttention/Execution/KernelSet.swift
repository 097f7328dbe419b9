// SPDX-License-Identifier: Apache-2.0
// KernelSet.swift - the kernels of one instruction set.

import CKernels

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// The kernels of one instruction set: `portable`, `x86_64_v3`, `x86_64_v4`, `x86_64_v4_bf16`,
/// `x86_64_amx` or `arm64_neon`.
///
/// All sets give the same bits; they differ in speed. The best one that the CPU runs is the default, unless the
/// environment variable `QUIET_ATTENTION_KERNELS` names another.
public struct KernelSet: Sendable, Hashable, CustomStringConvertible {
    /// Read only, and valid for ever.
    nonisolated(unsafe) let functions: UnsafePointer<qattn_kernels>

    /// The sets this CPU can run, best first. `portable` is always among them.
    public static let available: [KernelSet] = {
        var count = 0
        let sets = qattn_available_kernels(&count)
        return (0..<count).compactMap { sets?[$0].map(KernelSet.init(functions:)) }
    }()

    /// The features of this CPU that decide which sets run, such as `["avx2", "fma"]`.
    public static var cpuFeatures: [String] {
        String(cString: qattn_cpu_features()).split(separator: " ").map(String.init)
    }

    /// The set of that name.
    ///
    /// - Throws: ``AttentionError`` of kind `kernelSet` when there is none, or this CPU cannot run it.
    public init(named name: String) throws(AttentionError) {
        self = try Self.named(name, argument: "kernels")
    }

    /// `x86_64_v4`, ...
    public var name: String { String(cString: functions.pointee.name) }

    public var description: String { name }

    /// Whether products of bfloat16 and int8 are made by tile instructions.
    package var hasTiles: Bool { functions.pointee.has_tiles }

    /// Whether products of bfloat16 are made by instructions that multiply pairs, tile instructions or others; else they are
    /// fused multiply-adds of widened numbers.
    package var multipliesPairs: Bool { functions.pointee.band_rows > 0 }

    /// Most rows of a call.
    var queryBlock: Int { functions.pointee.query_block }

    /// Rows that share the loads of keys and values in blocks of that storage.
    func tileRows(_ storage: qattn_storage) -> Int {
        let inBands = storage == QATTN_INT8 ? hasTiles : storage == QATTN_BFLOAT16_PAIRS && multipliesPairs
        return inBands ? functions.pointee.band_rows : functions.pointee.tile_rows
    }

    /// As many rows of a call over such blocks as waste nothing.
    func callRows(_ storage: qattn_storage) -> Int { queryBlock / tileRows(storage) * tileRows(storage) }

    /// How caches and rows are best read on this CPU.
    package var reading: qattn_reading { qattn_reading_of(functions) }

    /// Whether four places of a block of a cache are asked for at once where it comes from memory; else one.
    package var readsInQuarters: Bool { reading.in_quarters }

    /// Of functions that are valid for ever.
    package init(functions: UnsafePointer<qattn_kernels>) { self.functions = functions }

    private static func named(_ name: String, argument: String) throws(AttentionError) -> KernelSet {
        guard let set = available.first(where: { $0.name == name }) else {
            throw AttentionError(
                .kernelSet, argument, expected: "one of \(available.map(\.name).joined(separator: ", "))",
                found: String(name.prefix(100)).debugDescription)
        }
        return set
    }

    /// The name of the environment variable that forces the default.
    static let environmentVariable = "QUIET_ATTENTION_KERNELS"

    /// The set to use where none was asked for.
    static func preferred() throws(AttentionError) -> KernelSet {
        try preferred(forced: getenv(environmentVariable).map { String(cString: $0) })
    }

    /// The best set, or the one whose name the environment forces; an empty name forces nothing.
    static func preferred(forced name: String?) throws(AttentionError) -> KernelSet {
        guard let name, !name.isEmpty else { return available[0] }
        return try named(name, argument: environmentVariable)
    }
}
