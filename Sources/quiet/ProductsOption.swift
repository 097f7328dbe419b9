// SPDX-License-Identifier: Apache-2.0
// ProductsOption.swift - which numbers are multiplied.

import ArgumentParser
import QuietAttention

struct ProductsOption: ParsableArguments {
    enum Kind: String, CaseIterable, ExpressibleByArgument {
        case f32, bf16
    }

    @Option(
        help: ArgumentHelp(
            "The numbers that are multiplied.",
            discussion: """
                f32               queries, keys, values and weights, the default
                bf16              the same rounded to bfloat16: faster on CPUs
                                  with AMX, and AMD's with AVX512-BF16; the
                                  same bits on others, but slower
                """,
            valueName: "type"))
    var products = Kind.f32

    var library: AttentionProducts { products == .f32 ? .float32 : .bfloat16 }
}
