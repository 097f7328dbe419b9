// SPDX-License-Identifier: Apache-2.0
// EntryPointTests.swift - arrays, spans, unsafe buffers, storage types and layouts give the same bits.

import QuietAttention
import Testing

@Suite struct EntryPointTests {
    private let problem: Problem

    init() throws {
        problem = Problem(
            try AttentionShape(
                batch: 2, queryHeads: 6, keyValueHeads: 2, queries: 5, keys: 70, headDimension: 17, valueDimension: 9))
    }

    @Test func arraysSpansAndBuffersAgree() throws {
        let attention = try Attention(problem.shape, sink: .softmax1, mask: .causal)
        let expected = try problem.run(attention)
        #expect(expected.output.contains { $0 != 0 })

        var array = [Float](repeating: .nan, count: problem.shape.outputCount)
        try attention.forward(queries: problem.queries, keys: problem.keys, values: problem.values, into: &array)
        #expect(bits(array) == bits(expected.output))

        var spanned = [Float](repeating: .nan, count: problem.shape.outputCount)
        var span = spanned.mutableSpan
        try attention.forward(
            queries: problem.queries.span, keys: problem.keys.span, values: problem.values.span, into: &span)
        #expect(bits(spanned) == bits(expected.output))

        #expect(try buffers(attention, Float.self, Float.self).bits == expected.bits)
    }

    @Test func sumsAreOptional() throws {
        let attention = try Attention(problem.shape, sink: .softmax1)
        let expected = try problem.run(attention)
        for (wantsSum, wantsShare) in [(true, false), (false, true)] {
            var result = expected
            result.output = result.output.map { _ in .nan }
            result.logSumExp = result.logSumExp.map { _ in 7 }
            result.sinkShare = result.sinkShare.map { _ in 7 }
            let untouched = result.logSumExp
            try result.output.withUnsafeMutableBufferPointer { output in
                try result.logSumExp.withUnsafeMutableBufferPointer { sum in
                    try result.sinkShare.withUnsafeMutableBufferPointer { share in
                        try problem.queries.withUnsafeBufferPointer { queries in
                            try problem.keys.withUnsafeBufferPointer { keys in
                                try problem.values.withUnsafeBufferPointer { values in
                                    try attention.forward(
                                        queries: queries, keys: keys, values: values, into: output,
                                        logSumExp: wantsSum ? sum : nil, sinkShare: wantsShare ? share : nil)
                                }
                            }
                        }
                    }
                }
            }
            #expect(bits(result.output) == bits(expected.output))
            #expect(bits(result.logSumExp) == bits(wantsSum ? expected.logSumExp : untouched))
            #expect(bits(result.sinkShare) == bits(wantsShare ? expected.sinkShare : untouched))
        }
    }

    /// The problem in other storage types, through unsafe buffers; outputs widened.
    private func buffers<Input: StoredScalar, Output: StoredScalar>(
        _ attention: Attention, _ input: Input.Type, _ output: Output.Type
    ) throws -> AttentionResult {
        let (queries, keys, values) = (
            problem.queries.map(Input.stored), problem.keys.map(Input.stored), problem.values.map(Input.stored)
        )
        var out = [Output](repeating: .stored(.nan), count: problem.shape.outputCount)
        var sum = [Float](repeating: .nan, count: problem.shape.rowCount)
        var share = sum
        try queries.withUnsafeBufferPointer { queries in
            try keys.withUnsafeBufferPointer { keys in
                try values.withUnsafeBufferPointer { values in
                    try out.withUnsafeMutableBufferPointer { out in
                        try sum.withUnsafeMutableBufferPointer { sum in
                            try share.withUnsafeMutableBufferPointer { share in
                                try attention.forward(
                                    queries: queries, keys: keys, values: values, into: out, logSumExp: sum,
                                    sinkShare: share)
                            }
                        }
                    }
                }
            }
        }
        return AttentionResult(output: out.map(\.widened), logSumExp: sum, sinkShare: share)
    }

    private func checkStorage<Scalar: StoredScalar>(_ type: Scalar.Type, _ kernels: KernelSet) throws {
        let attention = try Attention(problem.shape, sink: .softmax1, kernels: kernels)
        var widened = problem
        widened.queries = problem.queries.map { Scalar.stored($0).widened }
        widened.keys = problem.keys.map { Scalar.stored($0).widened }
        widened.values = problem.values.map { Scalar.stored($0).widened }
        let expected = try widened.run(attention)
        #expect(try buffers(attention, type, Float.self).bits == expected.bits)
        let rounded = expected.output.map { Scalar.stored($0).widened }
        #expect(try bits(buffers(attention, type, type).output) == bits(rounded))
        #expect(try buffers(attention, type, type).logSumExp == expected.logSumExp)
    }

    @Test(arguments: KernelSet.available)
    func bfloat16IsWidenedExactlyAndRoundedOnce(_ kernels: KernelSet) throws {
        try checkStorage(BFloat16.self, kernels)
    }

    #if !(os(macOS) && arch(x86_64))
        @Test(arguments: KernelSet.available)
        func float16IsWidenedExactlyAndRoundedOnce(_ kernels: KernelSet) throws {
            try checkStorage(Float16.self, kernels)
        }
    #endif

    @Test func layoutsAgree() throws {
        let shape = problem.shape
        let expected = try problem.run(Attention(shape, sink: .softmax1, mask: .causal))
        var other = problem
        other.queries = problem.exchanged(problem.queries, heads: shape.queryHeads, sequence: shape.queries)
        other.keys = problem.exchanged(problem.keys, heads: shape.keyValueHeads, sequence: shape.keys)
        other.values = problem.exchanged(problem.values, heads: shape.keyValueHeads, sequence: shape.keys)
        let result = try other.run(Attention(shape, sink: .softmax1, mask: .causal, layout: .batchSequenceHeads))
        let output = problem.exchanged(expected.output, heads: shape.queryHeads, sequence: shape.queries)
        #expect(bits(result.output) == bits(output))
        #expect(bits(result.logSumExp) == bits(expected.logSumExp))
        #expect(bits(result.sinkShare) == bits(expected.sinkShare))
    }

    @Test(arguments: KernelSet.available)
    func kernelSetsByNameAgree(_ kernels: KernelSet) throws {
        let named = try KernelSet(named: kernels.name)
        #expect(named == kernels)
        let attention = try Attention(problem.shape, sink: .softmax1, kernels: named)
        #expect(attention.kernels.name == kernels.name)
        #expect(try problem.run(attention).bits == problem.run(Attention(problem.shape, sink: .softmax1)).bits)
    }
}

/// A storage type with conversions, for the tests.
private protocol StoredScalar: AttentionScalar {
    static func stored(_ value: Float) -> Self
    var widened: Float { get }
}

extension Float: StoredScalar {
    static func stored(_ value: Float) -> Float { value }
    var widened: Float { self }
}

extension BFloat16: StoredScalar {
    static func stored(_ value: Float) -> BFloat16 { BFloat16(value) }
    var widened: Float { Float(self) }
}

#if !(os(macOS) && arch(x86_64))
    extension Float16: StoredScalar {
        static func stored(_ value: Float) -> Float16 { Float16(value) }
        var widened: Float { Float(self) }
    }
#endif
