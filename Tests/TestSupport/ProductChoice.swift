// SPDX-License-Identifier: Apache-2.0
// ProductChoice.swift - the products that tests ask for, and the kernel sets that make them.

import AttentionReference
import QuietAttention

extension ReferenceProducts {
    /// The argument of tests that hold for both.
    public static let all: [ReferenceProducts] = [.float32, .bfloat16]

    /// Those of this CPU; of products of bfloat16 also the sets whose instructions are emulated.
    public var kernelSets: [KernelSet] {
        self == .bfloat16 ? KernelSet.available + KernelSet.emulated : KernelSet.available
    }
}
