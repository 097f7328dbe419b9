// SPDX-License-Identifier: Apache-2.0
// AdamW.swift - Adam with decoupled weight decay, behind a clipped norm of all gradients.

/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `w -= rate (m / c1 / (sqrt(v / c2) + epsilon) + decay w)`, with
/// `c = 1 - b^step`, in the order of PyTorch's AdamW: the decay first.
///
/// *Source*: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101, 2017.
struct AdamW {
    let first, second: FlatBuffer

    init(count: Int) { (first, second) = (FlatBuffer(count: count), FlatBuffer(count: count)) }

    /// One step, counted from 0. Returns the norm of the gradients before they were clipped.
    func update(
        _ parameters: FlatBuffer, _ gradients: FlatBuffer, _ slots: [Slot], step: Int, _ c: TrainingConfiguration
    ) -> Double {
        let norm = sumOfSquares(gradients).squareRoot()
        let factor = Float(c.clip > 0 && norm > c.clip ? c.clip / norm : 1)
        let rate = c.rate(at: step)
        let (b1, b2, epsilon) = (Float(c.beta1), Float(c.beta2), Float(c.epsilon))
        let stepSize = Float(rate / (1 - power(c.beta1, step + 1)))
        let rootOfCorrection = Float((1 - power(c.beta2, step + 1)).squareRoot())
        // Addresses of their own, or every store might change where the buffers are, and the loop would not become vectors.
        let (weights, gradient, moment, square) = (parameters.base, gradients.base, first.base, second.base)
        for slot in slots {
            let keep = Float(slot.decays ? 1 - rate * c.decay : 1)
            for index in slot.offset..<slot.offset + slot.count {
                let g = gradient[index] * factor
                let m = moment[index] + (1 - b1) * (g - moment[index])
                let v = b2 * square[index] + (1 - b2) * g * g
                (moment[index], square[index]) = (m, v)
                weights[index] = weights[index] * keep - stepSize * (m / (v.squareRoot() / rootOfCorrection + epsilon))
            }
        }
        return norm
    }

    /// In Double: 8 sums, of every eighth element each, and then theirs.
    private func sumOfSquares(_ x: FlatBuffer) -> Double {
        var sums = SIMD8<Double>()
        let (base, whole) = (x.base, x.count / 8 * 8)
        for index in stride(from: 0, to: whole, by: 8) {
            let part = SIMD8<Double>(UnsafeRawPointer(base + index).loadUnaligned(as: SIMD8<Float>.self))
            sums += part * part
        }
        return (whole..<x.count).reduce(sums.sum()) { $0 + Double(base[$1]) * Double(base[$1]) }
    }

    private func power(_ base: Double, _ exponent: Int) -> Double {
        var (result, square, rest) = (1.0, base, exponent)
        while rest > 0 {
            if rest & 1 == 1 { result *= square }
            square *= square
            rest >>= 1
        }
        return result
    }
}
