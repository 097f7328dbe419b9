// SPDX-License-Identifier: Apache-2.0
// FunctionTests.swift - exp2, log2 and tanh of every kernel set against the reference, bit for bit.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@Suite struct FunctionTests {
    /// All kinds of arguments that exp2 is defined for: -infinity to 126, NaN.
    static let exp2Arguments: [Float] = {
        var generator = SeededGenerator(seed: 2)
        var arguments: [Float] = [
            0, -0.0, 1, -1, 0.5, -0.5, .nan, -.infinity, -124, -125, -126, -127, -149, -150, -151, -1000, -0x1p30,
            -.greatestFiniteMagnitude, Float.leastNonzeroMagnitude, -.leastNonzeroMagnitude, .leastNormalMagnitude,
            -.leastNormalMagnitude, Float(1).nextDown, Float(-125).nextUp, Float(-125).nextDown, 0x1p-24, -0x1p-25,
        ]
        // Around every integer and every tie of the rounding to integers.
        for twice in -252...252 {
            let x = Float(twice) / 2
            arguments += [x.nextDown, x, min(x.nextUp, 126)]
        }
        for _ in 0..<20_000 { arguments.append(1 - 130 * generator.nextUniform()) }
        for _ in 0..<20_000 {
            // Any negative bits, and positive ones up to 1.
            let bits = UInt32(truncatingIfNeeded: generator.next())
            let value = Float(bitPattern: bits)
            arguments.append(value <= 1 || value.isNaN ? value : -value)
        }
        return arguments
    }()

    /// All kinds of arguments that log2 is defined for: positive normal numbers, infinity, NaN.
    static let log2Arguments: [Float] = {
        var generator = SeededGenerator(seed: 3)
        let special: [Float] = [1, 2, 0.5, .nan, .infinity, .leastNormalMagnitude, .greatestFiniteMagnitude]
        var arguments = special
        for exponent in Int32(-126)...127 {
            let power = Float(bitPattern: UInt32(exponent + 127) << 23)
            // The power itself, and where its binade's z goes from sqrt(2) to sqrt(1/2).
            for x in [power, power * 0x1.6a09e6p0] {
                arguments += [x.nextDown, x, x.nextUp].filter { $0.isNormal }
            }
        }
        for _ in 0..<40_000 {
            let bits = UInt32(truncatingIfNeeded: generator.next()) & 0x7fff_ffff
            let value = Float(bitPattern: bits)
            arguments.append(value.isNormal ? value : 1 + generator.nextUniform())
        }
        return arguments
    }()

    @Test(arguments: KernelTable.available)
    func exp2(kernels: KernelTable) throws {
        try compare("exp2", Self.exp2Arguments, kernels.functions.pointee.exp2, ReferenceMath.exp2, kernels)
    }

    @Test(arguments: KernelTable.available)
    func log2(kernels: KernelTable) throws {
        try compare("log2", Self.log2Arguments, kernels.functions.pointee.log2, ReferenceMath.log2, kernels)
    }

    @Test(arguments: KernelTable.available)
    func tanh(kernels: KernelTable) throws {
        var generator = SeededGenerator(seed: 4)
        var arguments: [Float] = [0, -0.0, 9, -9, Float(9).nextUp, Float(9).nextDown, .infinity, -.infinity, .nan]
        arguments += [0.625, -0.625, Float(0.625).nextUp, Float(0.625).nextDown]
        for _ in 0..<2048 { arguments.append(generator.nextUniform() - 0.5) }  // vectors that are near 0 in every lane
        for _ in 0..<20_000 { arguments.append(20 * generator.nextUniform() - 10) }
        for _ in 0..<20_000 { arguments.append(Float(bitPattern: UInt32(truncatingIfNeeded: generator.next()))) }
        try compare("tanh", arguments, kernels.functions.pointee.tanh, ReferenceMath.tanh, kernels)
    }

    /// All arguments in one call, and the first few in calls of 1 to 33, which end in every lane.
    private func compare(
        _ name: String, _ arguments: [Float],
        _ function: (UnsafePointer<Float>?, UnsafeMutablePointer<Float>?, Int) -> Void,
        _ reference: (Float) -> Float, _ kernels: KernelTable
    ) throws {
        let expected = arguments.map(reference)
        for count in Array(1...33) + [arguments.count] {
            let input = GuardedBuffer(Array(arguments[..<count]))
            let output = GuardedBuffer<Float>(count: count)
            function(input.start, output.start, count)
            let actual = output.array
            if let index = actual.indices.first(where: { !sameBits(actual[$0], expected[$0]) }) {
                throw TestFailure(
                    "\(kernels): \(name)(\(arguments[index])) = \(actual[index]) (\(hex(actual[index]))),"
                        + " expected \(expected[index]) (\(hex(expected[index]))), \(count) arguments")
            }
            #expect(output.slackIsIntact)
        }
    }
}
