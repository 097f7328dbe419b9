// SPDX-License-Identifier: Apache-2.0
// TensorErrorTests.swift - tensors with another number of elements: named, and no output is touched.

import Testing

@testable import QuietAttention

@Suite struct TensorErrorTests {
    enum Tensor: String, CaseIterable { case queries, keys, values, output, logSumExp, sinkShare }

    /// A tensor of 7s whose size is off by so many elements if it is the one at fault.
    private func tensor(_ tensor: Tensor, _ count: Int, faulty: Tensor, by difference: Int) -> [Float] {
        [Float](repeating: 7, count: max(0, count + (tensor == faulty ? difference : 0)))
    }

    @Test(arguments: Tensor.allCases, [-1, 1, -10_000])
    func wrongCounts(_ faulty: Tensor, _ difference: Int) throws {
        let shape = try AttentionShape(
            batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 3, keys: 5, headDimension: 8, valueDimension: 6)
        let attention = try Attention(shape, sink: .softmax1)
        let queries = tensor(.queries, shape.queryCount, faulty: faulty, by: difference)
        let keys = tensor(.keys, shape.keyCount, faulty: faulty, by: difference)
        let values = tensor(.values, shape.valueCount, faulty: faulty, by: difference)
        var output = tensor(.output, shape.outputCount, faulty: faulty, by: difference)
        var logSumExp = tensor(.logSumExp, shape.rowCount, faulty: faulty, by: difference)
        var sinkShare = tensor(.sinkShare, shape.rowCount, faulty: faulty, by: difference)

        expectRefusal(.elementCount, faulty.rawValue) {
            var outputSpan = output.mutableSpan
            var sumSpan = logSumExp.mutableSpan
            var shareSpan = sinkShare.mutableSpan
            try attention.forward(
                queries: queries.span, keys: keys.span, values: values.span, into: &outputSpan, logSumExp: &sumSpan,
                sinkShare: &shareSpan)
        }
        if faulty != .logSumExp, faulty != .sinkShare {
            expectRefusal(.elementCount, faulty.rawValue) {
                try attention.forward(queries: queries, keys: keys, values: values, into: &output)
            }
        }
        if faulty == .queries || faulty == .keys || faulty == .values {
            expectRefusal(.elementCount, faulty.rawValue) {
                _ = try attention.forward(queries: queries, keys: keys, values: values)
            }
        }
        #expect((output + logSumExp + sinkShare).allSatisfy { $0 == 7 })
    }

    @Test func errorsSayWhatCame() throws {
        let attention = try Attention(
            AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 4), sink: .softmax1)
        let error = expectRefusal(.elementCount, "keys") {
            _ = try attention.forward(queries: [1, 2, 3, 4], keys: [1, 2, 3], values: [1, 2, 3, 4])
        }
        #expect(error?.description == "keys: expected 4 elements, got 3")
    }

    @Test func memoryThatDoesNotExist() throws {
        let workspace = AttentionWorkspace()
        let small = try workspace.take(byteCount: 64)
        workspace.give(back: small)
        let error = expectRefusal(.memory, "workspace") { _ = try workspace.take(byteCount: 1 << 60) }
        #expect(error?.expected == "\(1 << 60) bytes of memory")
        workspace.removeIdleBuffers()
        #expect(workspace.byteCount == 0)
    }
}
