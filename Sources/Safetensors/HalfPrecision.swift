// SPDX-License-Identifier: Apache-2.0
// HalfPrecision.swift - float16 and bfloat16 from and to Float, in integers: `Float16` does not exist on every platform.

/// Returns the value of a bfloat16, exactly.
func widenedBFloat16(_ bits: UInt16) -> Float {
    Float(bitPattern: UInt32(bits) << 16)
}

/// Returns the value of a float16, exactly. A NaN keeps its sign and payload.
func widenedFloat16(_ bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let magnitude = UInt32(bits & 0x7fff)
    switch magnitude {
    case ..<0x0400:  // zero and subnormal: magnitude * 2^-24, exact in Float
        return Float(bitPattern: sign | (Float(magnitude) * 0x1p-24).bitPattern)
    case ..<0x7c00:  // normal: the exponent's bias goes from 15 to 127
        return Float(bitPattern: sign | ((magnitude << 13) + (112 << 23)))
    default:  // infinity and NaN
        return Float(bitPattern: sign | 0x7f80_0000 | (magnitude << 13))
    }
}

/// Returns the bfloat16 nearest to `value`, ties to even. A NaN stays a NaN.
func roundedToBFloat16(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    // A NaN whose payload lies in the dropped half would become infinity: the quiet bit keeps it a NaN.
    if value.isNaN { return UInt16(bits >> 16) | 0x0040 }
    return UInt16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)
}

/// Returns the float16 nearest to `value`, ties to even: infinity from 65520 on. A NaN stays a NaN.
func roundedToFloat16(_ value: Float) -> UInt16 {
    let sign = UInt16((value.bitPattern >> 16) & 0x8000)
    let magnitude = value.bitPattern & 0x7fff_ffff
    switch magnitude {
    case ..<0x3880_0000:  // below 2^-14: the last place of 0.5 is 2^-24, so adding 0.5 rounds to float16's subnormals
        return sign | UInt16((Float(bitPattern: magnitude) + 0.5).bitPattern - Float(0.5).bitPattern)
    case ..<0x477f_f000:  // below 65520
        let rounded = magnitude + 0xfff + ((magnitude >> 13) & 1)
        return sign | UInt16((rounded - (112 << 23)) >> 13)
    case ...0x7f80_0000:
        return sign | 0x7c00
    default:
        return sign | 0x7e00 | UInt16((magnitude >> 13) & 0x03ff)
    }
}
