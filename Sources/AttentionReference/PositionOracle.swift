// SPDX-License-Identifier: Apache-2.0
// PositionOracle.swift - the angles of rotary embeddings by the formulas of their authors, with the platform's functions.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Android)
    import Android
#elseif canImport(ucrt)
    import ucrt
#endif

extension ReferencePositions {
    /// theta[j]: what is true.
    public func oracleTheta(_ j: Int) -> Double {
        let r = Double(dimensions)
        let plain = pow(base, -2 * Double(j) / r)
        switch scaling {
        case .none, .xPos: return plain
        case .linear(let factor): return plain / factor
        case .ntk(let factor): return pow(base * pow(factor, r / (r - 2)), -2 * Double(j) / r)
        case .dynamic(let factor, let trainedLength, let length):
            let growth = max(1, factor * Double(length) / Double(trainedLength) - (factor - 1))
            return pow(base * pow(growth, r / (r - 2)), -2 * Double(j) / r)
        case .yarn(let factor, let trainedLength, let betaFast, let betaSlow, _, _, _, let truncate):
            func pair(turning beta: Double) -> Double {
                r * log(Double(trainedLength) / (beta * 2 * .pi)) / (2 * log(base))
            }
            let (first, last) = (pair(turning: betaFast), pair(turning: betaSlow))
            let low = max(truncate ? floor(first) : first, 0)
            let high = min(truncate ? ceil(last) : last, r - 1)
            let interpolated = min(max((Double(j) - low) / max(high - low, 1e-3), 0), 1)
            return plain * (1 - interpolated) + plain / factor * interpolated
        case .longrope(let short, let long, _, let trainedLength, _, let length):
            return plain / (length > trainedLength ? long : short)[j]
        case .llama3(let factor, let lowFreqFactor, let highFreqFactor, let trainedLength):
            let (wavelength, length) = (2 * .pi / plain, Double(trainedLength))
            if wavelength < length / highFreqFactor { return plain }
            if wavelength > length / lowFreqFactor { return plain / factor }
            let smooth = (length / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor)
            return (1 - smooth) * plain / factor + smooth * plain
        case .thetas(let thetas, _): return thetas[j]
        }
    }

    /// What cosines and sines are multiplied by: what is true.
    func oracleFactor(_ position: Int, _ j: Int, _ side: Side) -> Double {
        switch scaling {
        case .yarn(let factor, _, _, _, let given, let mscale, let mscaleAllDim, _):
            if let given { return given }
            if let mscale, let mscaleAllDim, mscale * mscaleAllDim != 0 {
                return (0.1 * mscale * log(factor) + 1) / (0.1 * mscaleAllDim * log(factor) + 1)
            }
            return 0.1 * log(factor) + 1
        case .longrope(_, _, let factor, let trainedLength, let given, _):
            return given ?? sqrt(1 + log(factor) / log(Double(trainedLength)))
        case .thetas(_, let given): return given
        case .xPos(let scaleBase, let centre):
            let r = Double(dimensions)
            let power = pow((2 * Double(j) + 0.4 * r) / (1.4 * r), Double(position - centre) / scaleBase)
            return side == .queries ? power : 1 / power
        default: return 1
        }
    }
}
