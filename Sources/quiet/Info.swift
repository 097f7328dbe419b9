// SPDX-License-Identifier: Apache-2.0
// Info.swift - quiet info: what this machine offers.

import ArgumentParser
import QuietAttention

struct Info: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Tell what this machine offers: CPU features, kernel sets, threads.",
        discussion: """
            The environment variable QUIET_ATTENTION_KERNELS names the kernel set to use instead of the best one.
            `caches` tells how decoding reads keys and values from memory, which is chosen for the CPU: from the beginning \
            to the end, or from four places at once.
            """)

    @Flag(help: "Print one JSON object.")
    var json = false

    func run() throws {
        // Any shape will do: a problem knows the kernels and threads that it would use.
        let attention = try Attention(
            AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 1), sink: .softmax1)
        let available = KernelSet.available.map(\.name)
        let features = KernelSet.cpuFeatures
        let kernels = attention.kernels
        let hasTiles = kernels.hasTiles
        if json {
            let members: [(String, JSONValue)] = [
                ("version", .string(Quiet.version)),
                ("cpu", .string(Machine.cpu)),
                ("cpu_features", .array(features.map(JSONValue.string))),
                ("kernels_available", .array(available.map(JSONValue.string))),
                ("kernels", .string(kernels.name)),
                ("bfloat16_products", .string(hasTiles ? "tiles" : kernels.multipliesPairs ? "dots" : "fma")),
                ("int8_products", .string(hasTiles ? "tiles" : "pairs")),
                ("cache_reads", .string(kernels.readsInQuarters ? "four" : "one")),
                ("threads", .integer(attention.threads)),
            ]
            try emit(JSONValue.object(members).text())
        } else {
            try emit(
                """
                version   \(Quiet.version)
                cpu       \(Machine.cpu)
                features  \(features.joined(separator: " "))
                kernels   \(kernels.name), of \(available.joined(separator: ", "))
                products  \(Self.products(kernels))
                caches    \(Self.reads(inQuarters: kernels.readsInQuarters))
                threads   \(attention.threads)
                """)
        }
    }

    /// How decoding reads blocks from memory: cpu/dispatch.c.
    private static func reads(inQuarters: Bool) -> String {
        inQuarters ? "read from four places of memory at once" : "read from memory in one run"
    }

    private static func products(_ kernels: KernelSet) -> String {
        if kernels.hasTiles { return "of many rows with bfloat16 and int8 by tile instructions" }
        let unit =
            kernels.multipliesPairs
            ? "of many rows with bfloat16 by dot-product instructions" : "of bfloat16 by fused multiply-adds"
        return unit + ", of int8 by pairs of 16-bit integers"
    }
}
