// SPDX-License-Identifier: Apache-2.0
// KernelFloatModeTests.swift - every function of the C interface in every floating-point mode of its caller.

import AttentionReference
import CKernels
import SeededInputs
import TestSupport
import Testing

@Suite struct KernelFloatModeTests {
    /// Values so small that outputs are subnormal numbers.
    private static func problem(_ shape: AttentionCase) -> HeadProblem {
        var problem = shape.headProblem(shape.inputs, item: 0, head: 0)
        problem.values = problem.values.map { $0 * 0x1p-128 }
        return problem
    }

    private static let shapes = [
        AttentionCase(queries: 7, keys: 70, headDimension: 20, valueDimension: 17) { $0.geometry = .causal },
        AttentionCase(queries: 2, keys: 1030, headDimension: 8) { ($0.softcap, $0.hasALiBi) = (3, true) },
    ]

    @Test(arguments: KernelTable.available, FloatingPointMode.changing)
    func passes(_ kernels: KernelTable, _ mode: FloatingPointMode) throws {
        for shape in Self.shapes {
            let problem = Self.problem(shape)
            let expected = problem.reference
            #expect(expected.output.contains { $0.isSubnormal })
            for call in [DirectCall(), DirectCall(unpacked: true)] {
                let (actual, isKept) = try mode.run { try call.run(problem, kernels) }
                try requireSameBits(
                    actual, expected, valueDimension: shape.valueDimension, "\(kernels) \(mode) \(shape)")
                #expect(isKept)
            }
        }
    }

    @Test(arguments: KernelTable.available, FloatingPointMode.changing)
    func functions(_ kernels: KernelTable, _ mode: FloatingPointMode) {
        let table = kernels.functions.pointee
        var generator = SeededGenerator(seed: 5)
        let x = (0..<1000).map { _ in generator.nextUniform() * 0.9 + 0.05 }
        var y = x
        let functions = [
            (table.exp2, ReferenceMath.exp2), (table.log2, ReferenceMath.log2), (table.tanh, ReferenceMath.tanh),
        ]
        for (function, reference) in functions {
            let expected = x.map(reference)
            let isKept = mode.run { function?(x, &y, x.count) }.isKept
            #expect(y.map(\.bitPattern) == expected.map(\.bitPattern) && isKept)
        }
    }

    @Test(arguments: KernelTable.available, FloatingPointMode.changing)
    func preparedRows(_ kernels: KernelTable, _ mode: FloatingPointMode) {
        var generator = SeededGenerator(seed: 6)
        let rows = generator.normals(3 * 40).map { $0 * 0x1p-130 }
        func prepared() -> [Float] {
            var out = [Float](repeating: 0, count: rows.count)
            rows.withUnsafeBufferPointer { rows in
                out.withUnsafeMutableBufferPointer { out in
                    var arguments = qattn_prepare_args()
                    arguments.rows = UnsafeRawPointer(rows.baseAddress)
                    (arguments.stride, arguments.out_stride) = (40, 40)
                    (arguments.count, arguments.dim) = (3, 40)
                    (arguments.norm, arguments.epsilon) = (QATTN_RMS_NORM, 0x1p-2)
                    arguments.out = out.baseAddress
                    kernels.functions.pointee.prepare(&arguments)
                }
            }
            return out
        }
        let expected = prepared()
        #expect(expected.contains { $0.isSubnormal })
        let (actual, isKept) = mode.run(prepared)
        #expect(actual.map(\.bitPattern) == expected.map(\.bitPattern) && isKept)
    }
}
