// SPDX-License-Identifier: Apache-2.0
// Elementary.swift - exp, sigmoid, GELU without calls or branches, so that the compiler makes vectors of loops over them.

/// `e^x`, to 2 units in the last place, x first clamped to [-87, 88]; NaN stays NaN.
///
/// `x = n log 2 + r`, a polynomial in r (Moshier, Cephes, expf.c), and n added to the exponent.
@inline(__always)
func exponential(_ argument: Float) -> Float {
    var x = argument > 88 ? 88 : argument
    x = x < -87 ? -87 : x
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits.
    let shifted = x * 1.442_695_04 + 12_582_912
    let n = shifted - 12_582_912
    let r = (x - n * 0.693_359_375) + n * 2.121_944_4e-4
    var p: Float = 1.987_569_15e-4
    p = p * r + 1.398_199_95e-3
    p = p * r + 8.333_451_9e-3
    p = p * r + 4.166_579_59e-2
    p = p * r + 1.666_666_55e-1
    p = p * r + 5.000_000_1e-1
    return (p * r * r + r + 1) * Float(bitPattern: (shifted.bitPattern &+ 127) &<< 23)
}

/// `1 / (1 + e^-x)`.
@inline(__always)
func sigmoid(_ x: Float) -> Float { 1 / (1 + exponential(-x)) }

/// The error function, to 4e-7: an odd polynomial over an even one on [-4, 4], beyond which it is 1 or -1 to 2e-8.
///
/// *Source*: the coefficients of Eigen's `generic_fast_erf_float`.
@inline(__always)
func errorFunction(_ argument: Float) -> Float {
    var x = argument > 4 ? 4 : argument
    x = x < -4 ? -4 : x
    let s = x * x
    var above: Float = -2.726_142_26e-10
    above = above * s + 2.770_681_42e-8
    above = above * s - 2.101_024_02e-6
    above = above * s - 5.692_506_39e-5
    above = above * s - 7.349_906_3e-4
    above = above * s - 2.954_599_81e-3
    above = above * s - 1.609_603_33e-2
    var below: Float = -1.456_607_18e-5
    below = below * s - 2.133_740_55e-4
    below = below * s - 1.682_826_97e-3
    below = below * s - 7.373_329_17e-3
    below = below * s - 1.426_473_91e-2
    return x * above / below
}

/// `x Phi(x)`, Phi the distribution function of the standard normal distribution.
@inline(__always)
func gelu(_ x: Float) -> Float { 0.5 * x * (1 + errorFunction(x * 0.707_106_78)) }

/// The derivative of ``gelu(_:)``: `Phi(x) + x phi(x)`.
@inline(__always)
func geluSlope(_ x: Float) -> Float {
    0.5 * (1 + errorFunction(x * 0.707_106_78)) + x * 0.398_942_28 * exponential(-0.5 * x * x)
}

/// GELU of every element.
func gelu(_ x: [Float]) -> [Float] { mapped(x) { gelu($0) } }

/// The gradient of GELU's input, from that of its output.
///
/// Its loop is written out: within ``mapped(_:_:_:)`` the compiler leaves the slope a call.
func throughGELU(_ dy: [Float], _ x: [Float]) -> [Float] {
    precondition(dy.count == x.count, "elements of both")
    return [Float](unsafeUninitializedCapacity: x.count) { y, count in
        dy.withUnsafeBufferPointer { dy in
            x.withUnsafeBufferPointer { x in
                for index in 0..<x.count { y[index] = dy[index] * geluSlope(x[index]) }
            }
        }
        count = x.count
    }
}

/// A function of every element.
@inline(__always)
func mapped(_ x: [Float], _ function: (Float) -> Float) -> [Float] {
    [Float](unsafeUninitializedCapacity: x.count) { y, count in
        x.withUnsafeBufferPointer { x in
            for index in 0..<x.count { y[index] = function(x[index]) }
        }
        count = x.count
    }
}

/// A function of elements of both, which are as many.
@inline(__always)
func mapped(_ a: [Float], _ b: [Float], _ function: (Float, Float) -> Float) -> [Float] {
    precondition(a.count == b.count, "elements of both")
    return [Float](unsafeUninitializedCapacity: a.count) { y, count in
        a.withUnsafeBufferPointer { a in
            b.withUnsafeBufferPointer { b in
                for index in 0..<a.count { y[index] = function(a[index], b[index]) }
            }
        }
        count = a.count
    }
}

/// Adds the elements of one to those of another.
func add(_ a: [Float], to sums: inout [Float]) {
    precondition(a.count == sums.count, "elements of both")
    a.withUnsafeBufferPointer { a in
        sums.withUnsafeMutableBufferPointer { sums in for index in 0..<a.count { sums[index] += a[index] } }
    }
}

/// Sums of elements.
func add(_ a: [Float], _ b: [Float]) -> [Float] { mapped(a, b) { $0 + $1 } }
