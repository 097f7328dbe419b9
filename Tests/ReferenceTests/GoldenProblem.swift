// SPDX-License-Identifier: Apache-2.0
// GoldenProblem.swift - the cases of golden.json as problems for the reference.

import AttentionReference
import Foundation
import TestSupport
import Testing

extension Golden.Attention {
    /// The whole case. golden.json has scales that depend on the row: `n` is what it sees.
    var problem: ReferenceProblem {
        var problem = ReferenceProblem(
            queries: queryCount, keys: keyCount, headDimension: headDimension, valueDimension: valueDimension,
            sinks: [Float(sink.value)])
        switch mask {
        case "none": break
        case "causal_bottom_right": problem = problem.causal
        case "causal_window_2": problem = problem.window(2)
        default: Issue.record("unknown mask \(mask)")
        }
        problem.rowFactors = visibleKeys.map(scaleFactor)
        problem.bias = bias.map { name in
            let values = (0..<queryCount * keyCount).map { biasValue(name, $0 / keyCount, $0 % keyCount) }
            return ReferenceBroadcast(values, extents: [1, 1, queryCount, keyCount])
        }
        return problem
    }

    private func scaleFactor(visibleKeys: Int) -> Double {
        guard visibleKeys > 0 else { return 1 }
        let binaryLogarithm = log2(Double(visibleKeys))
        switch scale {
        case "1/sqrt(d)": return 1
        case "log512(n)/sqrt(d)": return binaryLogarithm / 9
        case "max(1,log_4(n))/sqrt(d)": return max(1, binaryLogarithm / 2)
        default:
            Issue.record("unknown scale \(scale)")
            return .nan
        }
    }

    private func biasValue(_ name: String, _ row: Int, _ key: Int) -> Float {
        switch name {
        case "-(i-j)/4": -Float(row - key) / 4
        case "+j/4 (column only)": Float(key) / 4
        default: .nan
        }
    }
}
