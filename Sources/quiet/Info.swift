// SPDX-License-Identifier: Apache-2.0
// Info.swift - quiet info: what this machine offers.

import ArgumentParser
import QuietAttention

struct Info: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Tell what this machine offers: CPU features, kernel sets, threads.",
        discussion:
            "The environment variable QUIET_ATTENTION_KERNELS names the kernel set to use instead of the best one.")

    @Flag(help: "Print one JSON object.")
    var json = false

    func run() throws {
        // Any shape will do: a problem knows the kernels and threads that it would use.
        let attention = try Attention(
            AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 1), sink: .softmax1)
        let available = KernelSet.available.map(\.name)
        let features = KernelSet.cpuFeatures
        let hasTiles = attention.kernels.hasTiles
        if json {
            let members: [(String, JSONValue)] = [
                ("version", .string(Quiet.version)),
                ("cpu", .string(Machine.cpu)),
                ("cpu_features", .array(features.map(JSONValue.string))),
                ("kernels_available", .array(available.map(JSONValue.string))),
                ("kernels", .string(attention.kernels.name)),
                ("bfloat16_products", .string(hasTiles ? "tiles" : "fma")),
                ("int8_products", .string(hasTiles ? "tiles" : "pairs")),
                ("cache_reads", .string(attention.kernels.readsInQuarters ? "four" : "one")),
                ("threads", .integer(attention.threads)),
            ]
            try emit(JSONValue.object(members).text())
        } else {
            try emit(
                """
                version   \(Quiet.version)
                cpu       \(Machine.cpu)
                features  \(features.joined(separator: " "))
                kernels   \(attention.kernels.name), of \(available.joined(separator: ", "))
                products  \(Self.products(byTiles: hasTiles))
                caches    \(Self.reads(inQuarters: attention.kernels.readsInQuarters))
                threads   \(attention.threads)
                """)
        }
    }

    /// How decoding reads blocks from memory: cpu/dispatch.c.
    private static func reads(inQuarters: Bool) -> String {
        inQuarters ? "read from memory in four places at once" : "read from memory in one run"
    }

    private static func products(byTiles hasTiles: Bool) -> String {
        hasTiles
            ? "of many rows with bfloat16 and int8 by tile instructions"
            : "of bfloat16 by fused multiply-adds, of int8 by pairs of 16-bit integers"
    }
}
