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

    /// The gradients of the output and of the logit of ``gated(_:logit:)``, of the output's gradient:
    ///
    ///     gradient * sigmoid(logit),    (gradient * output) * (z / ((1 + z) (1 + z)))
    ///
    /// Edge cases: where the gradient is 0, nothing is looked at of the output. A gradient of 0 is +0.
    public static func gateGradient(_ output: Float, logit: Float, of gradient: Float) -> (output: Float, logit: Float)
    {
        let product = gradient == 0 ? 0 : gradient * output
        return (gated(gradient, logit: logit) + 0, product * gateSlope(logit) + 0)
    }

    /// The gradient of the logit of a gate on a whole row: the sum of gradient output, channel c joining lane c mod 16 by fma
    /// from +0, the lanes added in a tree, times z / ((1 + z) (1 + z)).
    ///
    /// Edge cases: channels whose gradient is 0 are left out. A gradient of 0 is +0.
    public static func gateGradient(_ output: [Float], logit: Float, of gradient: [Float]) -> Float {
        var sums = LaneSums()
        for c in output.indices where gradient[c] != 0 { sums.add(gradient[c], times: output[c], at: c) }
        return sums.total * gateSlope(logit) + 0
    }

    /// sigmoid'(logit), without the cancellation of 1 - sigmoid.
    private static func gateSlope(_ logit: Float) -> Float {
        let z = exp2(-abs(logit) * log2eFloat)
        return z / ((1 + z) * (1 + z))
    }
}
