// SPDX-License-Identifier: Apache-2.0
// CeilingsTests.swift - ceilings that a machine can have.

import AttentionGrid
import Testing

@Suite struct CeilingsTests {
    /// There is a peak where there is an instruction, and it is one that a CPU can have.
    @Test func productsOfBFloat16() {
        let peaks = (0..<5).map { _ in (Ceilings.multiplyAdd(threads: 1), Ceilings.bfloat16(threads: 1)) }
        #expect(peaks.allSatisfy { $0.0 > 0.1 && ($0.1 == nil) == (Ceilings.bfloat16Unit == nil) })
        guard let unit = Ceilings.bfloat16Unit else { return }
        #expect(["amx", "avx512_bf16"].contains(unit))
        // Vectors of some CPUs take bfloat16 at half the rate of float32.
        #expect(peaks.compactMap(\.1).max()! > 0.4 * peaks.map(\.0).max()!)
    }
}
