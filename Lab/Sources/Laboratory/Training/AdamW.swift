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
        var squares = 0.0
        for index in 0..<gradients.count { squares += Double(gradients.base[index]) * Double(gradients.base[index]) }
        let norm = squares.squareRoot()
        let factor = Float(c.clip > 0 && norm > c.clip ? c.clip / norm : 1)
        let rate = c.rate(at: step)
        let (b1, b2, epsilon) = (Float(c.beta1), Float(c.beta2), Float(c.epsilon))
        let stepSize = Float(rate / (1 - power(c.beta1, step + 1)))
        let rootOfCorrection = Float((1 - power(c.beta2, step + 1)).squareRoot())
        for slot in slots {
            let keep = Float(slot.decays ? 1 - rate * c.decay : 1)
            for index in slot.offset..<slot.offset + slot.count {
                let g = gradients.base[index] * factor
                let m = first.base[index] + (1 - b1) * (g - first.base[index])
                let v = b2 * second.base[index] + (1 - b2) * g * g
                (first.base[index], second.base[index]) = (m, v)
                parameters.base[index] =
                    parameters.base[index] * keep - stepSize * (m / (v.squareRoot() / rootOfCorrection + epsilon))
            }
        }
        return norm
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
