// SPDX-License-Identifier: Apache-2.0
// BFloat16Tests.swift - every value, ties, NaN and overflow.

import QuietAttention
import Testing

@Suite struct BFloat16Tests {
    @Test func everyValueSurvives() {
        for bits in 0...UInt16.max {
            let value = BFloat16(bitPattern: bits)
            let back = BFloat16(Float(value))
            #expect(back.bitPattern == bits || (Float(value).isNaN && Float(back).isNaN))
        }
    }

    /// Between two neighbours: the nearer one, and in the middle the even one.
    @Test func nearestTiesToEven() {
        for upper in stride(from: UInt32(0), to: 0xff7f, by: 1) where upper & 0x7f80 != 0x7f80 {
            let bits = upper << 16
            #expect(BFloat16(Float(bitPattern: bits | 0x7fff)).bitPattern == UInt16(upper))
            #expect(BFloat16(Float(bitPattern: bits | 0x8000)).bitPattern == UInt16(upper + (upper & 1)))
            #expect(BFloat16(Float(bitPattern: bits | 0x8001)).bitPattern == UInt16(upper + 1))
        }
    }

    @Test func edges() {
        #expect(BFloat16(Float.greatestFiniteMagnitude).bitPattern == 0x7f80)
        #expect(BFloat16(-Float.infinity).bitPattern == 0xff80)
        // A NaN whose only bit would be cut off.
        #expect(Float(BFloat16(Float(bitPattern: 0x7f80_0001))).isNaN)
        #expect(Float(BFloat16(Float(bitPattern: 0xffff_ffff))).isNaN)
        #expect(BFloat16(Float(0)) == BFloat16(-Float(0)))
        #expect(BFloat16(Float.nan) != BFloat16(Float.nan))
        #expect(BFloat16(1.5).description == "1.5")
        #expect(MemoryLayout<BFloat16>.stride == 2)
    }
}
