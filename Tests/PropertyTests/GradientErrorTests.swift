// SPDX-License-Identifier: Apache-2.0
// GradientErrorTests.swift - how far gradients are from those in Double, and that the error does not grow with length.

import AttentionReference
import Foundation
import QuietAttention
import TestSupport
import Testing

/// With `QUIET_EXHAUSTIVE=1` also long sequences, whose gradients in Double take minutes; in a release build.
@Suite struct GradientErrorTests {
    private static let isExhaustive = ProcessInfo.processInfo.environment["QUIET_EXHAUSTIVE"] == "1"

    /// 2-norm of the error of dq, dk and dv over that of the gradient, in Double over the tensors as they are stored.
    private func errors(
        _ length: Int, _ dimension: Int, _ storage: AttentionCase.StorageChoice, rounded: Bool,
        _ truth: inout ReferenceGradients<Double>?
    ) throws -> [Double] {
        let shape = AttentionCase(queries: length, keys: length, headDimension: dimension) {
            ($0.sink, $0.storage) = (.one, storage)
        }
        let (inputs, loss) = (shape.inputs, shape.loss)
        let exact = truth ?? shape.oracleGradients(inputs, loss)
        truth = exact
        let found = try shape.storedGradients(inputs, loss, rounded: rounded, kernels: KernelSet.available[0])
        return [
            relativeError(found.queries, exact.queries), relativeError(found.keys, exact.keys),
            relativeError(found.values, exact.values),
        ]
    }

    private func words(_ errors: [Double]) -> String {
        "dq, dk, dv off by " + errors.map { String(format: "%.2e", $0) }.joined(separator: ", ")
    }

    @Test("within 6e-7 of unit normal tensors", arguments: isExhaustive ? [256, 1024, 2048, 4096] : [64, 200])
    func unitNormal(length: Int) throws {
        for dimension in Self.isExhaustive ? [64, 128] : [32] {
            var truth: ReferenceGradients<Double>?
            let errors = try errors(length, dimension, .float32, rounded: false, &truth)
            if Self.isExhaustive { print("float32, \(length) x \(length), d \(dimension): \(words(errors))") }
            #expect(errors.allSatisfy { $0 <= 6e-7 }, "\(length), \(words(errors))")
        }
    }

    /// Tensors of 16 bits: what is stored of the output is rounded, which changes delta, and gradients may be rounded, too.
    @Test("the error of bfloat16 does not grow with length", arguments: [false, true])
    func lengthDoesNotMatter(rounded: Bool) throws {
        var first: [Double]?
        for length in Self.isExhaustive ? [256, 1024, 4096, 8192] : [64, 128, 400] {
            var truth: ReferenceGradients<Double>?
            let errors = try errors(length, Self.isExhaustive ? 64 : 16, .bfloat16, rounded: rounded, &truth)
            if Self.isExhaustive { print("bfloat16, rounded: \(rounded), \(length) x \(length): \(words(errors))") }
            let bound = first ?? errors
            // Where nothing is rounded to 16 bits, as of dv, the error is that of sums in Float.
            #expect(zip(errors, bound).allSatisfy { $0 <= max(6e-7, 1.1 * $1) }, "\(length), \(words(errors))")
            #expect(errors.allSatisfy { $0 <= 3e-3 }, "\(length), \(words(errors))")
            first = bound
        }
    }
}
