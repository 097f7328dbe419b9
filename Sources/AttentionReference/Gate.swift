// SPDX-License-Identifier: Apache-2.0
// Gate.swift - a sigmoid gate on the output: the definition of its bits.

extension ReferenceMath {
    /// output * sigmoid(logit), sigmoid(x) = 1 / (1 + z) for x >= 0 and z / (1 + z) below, z = e^-|x|.
    ///
    /// Edge cases: below about -86.6 the gate is 0. A NaN logit gives NaN.
    public static func gated(_ output: Float, logit: Float) -> Float {
        let z = exp2(-abs(logit) * log2eFloat)
        return output * ((logit >= 0 ? 1 : z) / (1 + z))
    }
}
