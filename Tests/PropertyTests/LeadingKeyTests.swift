// SPDX-License-Identifier: Apache-2.0
// LeadingKeyTests.swift - which key has most weight, and how much the first keys have: by hand, across blocks, windows and sequences.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct LeadingKeyTests {
    private func row(
        _ x: [Float], sink: AttentionSink = .softmax1, leadingKeys: Int = 1, kernels: KernelSet = kernelSets[0]
    ) throws -> RowDiagnostics {
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: x.count, headDimension: 1)
        return try Attention(shape, sink: sink, scale: 1, kernels: kernels)
            .diagnostics(queries: [1], keys: x, leadingKeys: leadingKeys)[0]
    }

    @Test("weights by hand", arguments: kernelSets)
    func byHand(kernels: KernelSet) throws {
        let x: [Float] = [2, -1, 3, 0.5]
        let total = x.reduce(1) { $0 + exp(Double($1)) }
        for count in 0...5 {
            let found = try row(x, leadingKeys: count, kernels: kernels)
            let expected = x.prefix(count).reduce(0) { $0 + exp(Double($1)) } / total
            #expect(abs(found.leadingWeight - expected) < 1e-6 && found.heaviestKey == 2)
        }
        let all = try row(x, sink: .softmax, leadingKeys: .max, kernels: kernels)
        #expect(abs(all.leadingWeight - 1) < 1e-12)
    }

    /// In every block of keys, and the first of several.
    @Test("heaviest keys", arguments: kernelSets)
    func heaviestKeys(kernels: KernelSet) throws {
        for key in [0, 1, 63, 64, 65, 127, 128, 999] {
            var x = [Float](repeating: -1, count: 1000)
            x[key] = 4
            x[999] = 4
            #expect(try row(x, kernels: kernels).heaviestKey == key)
        }
        #expect(try row([-5, -5], kernels: kernels).heaviestKey == 0)
        // A sink that takes all the weight changes nothing about which score is largest.
        let drowned = try row([1, 2], sink: .logits([5000]), kernels: kernels)
        #expect(drowned.heaviestKey == 1 && drowned.leadingWeight == 0)
    }

    /// Keys are counted from the first of the sequence, also where a window hides it.
    @Test("windows and masks", arguments: kernelSets)
    func windows(kernels: KernelSet) throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 200, keys: 200, headDimension: 1)
        let rows = try Attention(shape, sink: .softmax, mask: .window(70), scale: 1, kernels: kernels).diagnostics(
            queries: [Float](repeating: 1, count: 200), keys: (0..<200).map { -Float($0) / 4 }, leadingKeys: 2)
        for (index, row) in rows.enumerated() {
            let first = max(0, index - 69)
            #expect(row.heaviestKey == first)
            let weights = (first...index).map { exp(-Double($0) / 4) }
            let leading = (first...index).reduce(0) { $0 + ($1 < 2 ? exp(-Double($1) / 4) : 0) }
            #expect(abs(row.leadingWeight - leading / weights.reduce(0, +)) < 1e-6)
        }
        #expect(rows[199].leadingWeight == 0)
    }

    @Test func nothingToWeigh() throws {
        let nan = try row([1, .nan])
        #expect(nan.heaviestKey == nil && nan.leadingWeight.isNaN)
        let shape = try AttentionShape(queryHeads: 1, queries: 2, keys: 0, headDimension: 1)
        let none = try Attention(shape, sink: .softmax1).diagnostics(queries: [1, 1], keys: [])
        #expect(none.allSatisfy { $0.heaviestKey == nil && $0.leadingWeight == 0 })
        #expect {
            _ = try row([1], leadingKeys: -1)
        } throws: {
            ($0 as? AttentionError)?.kind == .leadingKeys
        }
    }

    /// Of packed sequences, each counts its own keys.
    @Test func packedSequences() throws {
        let shape = try AttentionShape(packed: [0, 3, 5], queryHeads: 1, headDimension: 1)
        let rows = try Attention(shape, sink: .softmax, scale: 1).diagnostics(
            queries: [1, 1, 1, 1, 1], keys: [0, 5, 0, 9, 1])
        #expect(rows.map(\.heaviestKey) == [1, 1, 1, 0, 0])
        #expect(rows[0].leadingWeight < 0.01 && rows[3].leadingWeight > 0.99)
    }

    @Test func heads() throws {
        let shape = try AttentionShape(batch: 2, queryHeads: 1, queries: 3, keys: 4, headDimension: 1)
        let attention = try Attention(shape, sink: .softmax, mask: .causal, scale: 1)
        let (q, k) = ([1, 1, 1, -1, 1, 1] as [Float], [0, 3, 1, 2, 5, 4, 5, 9] as [Float])
        let rows = try attention.diagnostics(queries: q, keys: k)
        #expect(rows.map(\.heaviestKey) == [1, 1, 1, 1, 0, 3])
        let head = try attention.headDiagnostics(queries: q, keys: k)[0]
        #expect(head.heaviestKey == 1 && abs(head.heaviestKeyShare - 4.0 / 6) < 1e-15)
        #expect(abs(head.leadingWeight - rows.reduce(0) { $0 + $1.leadingWeight } / 6) < 1e-15)
        // Of two keys that share the rows, the first.
        let tie = HeadDiagnostics([rows[5], rows[4]])
        #expect(tie.heaviestKey == 0 && tie.heaviestKeyShare == 0.5)
        let none = HeadDiagnostics([RowDiagnostics]())
        #expect(none.heaviestKey == nil && none.heaviestKeyShare.isNaN && none.leadingWeight.isNaN)
        let broken = try HeadDiagnostics([row([.nan])])
        #expect(broken.heaviestKey == nil && broken.heaviestKeyShare == 0 && broken.leadingWeight.isNaN)
    }
}
