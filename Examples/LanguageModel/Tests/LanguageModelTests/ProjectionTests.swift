// SPDX-License-Identifier: Apache-2.0
// ProjectionTests.swift - products of quantised weights: near the exact ones, and the same bits by every set and in any company.

import CProjections
import Foundation
import LanguageModel
import Testing

@Suite struct ProjectionTests {
    /// A random matrix and random rows.
    struct Problem {
        let matrix: lm_matrix
        let rows: [Float]
        let columns: Int
        private let panels: UnsafeMutablePointer<UInt8>

        init(_ type: lm_weight_type, rows: Int, columns: Int, tokens: Int, seed: UInt64) {
            var generator = Sequence(state: seed)
            let blocks = columns / 32
            let panelCount = (rows + 15) / 16
            panels = .allocate(capacity: panelCount * blocks * lm_block_bytes(type))
            panels.initialize(repeating: 0, count: panelCount * blocks * lm_block_bytes(type))
            for row in 0..<rows {
                var bytes: [UInt8] = []
                for _ in 0..<blocks {
                    // float16 from 2^-8 up, of either sign.
                    let scale = UInt16(0x1c00 + generator.next(0x800) + 0x8000 * generator.next(2))
                    let offset = UInt16(0x1c00 + generator.next(0x1800) + 0x8000 * generator.next(2))
                    let scales = type == LM_Q4_1 ? [scale, offset] : [scale]
                    bytes += scales.flatMap { [UInt8($0 & 0xff), UInt8($0 >> 8)] }
                    // -128, too, which quantising itself does not make.
                    bytes += (0..<(type == LM_Q4_1 ? 16 : 32)).map { _ in
                        generator.next(9) == 0 ? 0x80 : UInt8(generator.next(256))
                    }
                }
                lm_pack_row(type, Int32(columns), bytes, Int32(row), panels)
            }
            matrix = lm_matrix(type: type, rows: Int32(rows), columns: Int32(columns), panels: panels)
            self.columns = columns
            self.rows = (0..<tokens * columns).map { index in
                let value = Float(generator.next(1 << 24)) / Float(1 << 23) - 1
                return index % 97 == 0 ? value * 1000 : value
            }
        }

        func free() { panels.deallocate() }

        func product(_ function: lm_project_function, tokens: Range<Int>) -> [Float] {
            let stride = (Int(matrix.rows) + 15) / 16 * 16
            var out = [Float](repeating: .nan, count: tokens.count * stride)
            var activations = [lm_activations](repeating: lm_activations(), count: tokens.count * columns / 32)
            let part = Array(rows[tokens.lowerBound * columns..<tokens.upperBound * columns])
            lm_quantise(part, Int32(tokens.count), Int32(columns), &activations)
            withUnsafePointer(to: matrix) { matrix in
                activations.withUnsafeBufferPointer { activations in
                    out.withUnsafeMutableBufferPointer { out in
                        var product = lm_product(
                            matrix: matrix, activations: activations.baseAddress, tokens: Int32(tokens.count),
                            out: out.baseAddress, out_stride: stride)
                        // In two ranges of panels, as two threads would.
                        function(&product, 0, 1)
                        function(&product, 1, Int32(stride / 16))
                    }
                }
            }
            return (0..<tokens.count).flatMap { out[$0 * stride..<$0 * stride + Int(matrix.rows)] }
        }
    }

    struct Sequence {
        var state: UInt64

        mutating func next(_ bound: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int((state >> 33) % UInt64(bound))
        }
    }

    static let types = [LM_Q4_1, LM_Q8_0]

    @Test(arguments: [0, 1], [32, 96, 576])
    func nearTheExactProduct(type: Int, columns: Int) {
        let problem = Problem(Self.types[type], rows: 50, columns: columns, tokens: 3, seed: UInt64(columns))
        defer { problem.free() }
        let out = problem.product(lm_set_function(0), tokens: 0..<3)
        var weights = [Float](repeating: 0, count: columns)
        for row in 0..<50 {
            withUnsafePointer(to: problem.matrix) { lm_unpack_row($0, Int32(row), &weights) }
            for token in 0..<3 {
                var (sum, bound) = (0.0, 0.0)
                for block in stride(from: 0, to: columns, by: 32) {
                    let x = problem.rows[token * columns + block..<token * columns + block + 32].map(Double.init)
                    let w = weights[block..<block + 32].map(Double.init)
                    sum += zip(x, w).reduce(0) { $0 + $1.0 * $1.1 }
                    // Each element errs by 2^-23 of the largest of its block; the sums of floats, by as much of their terms.
                    bound += x.map(abs).max()! * (w.reduce(0) { $0 + abs($1) } + 64 * w.map(abs).max()!) * 0x1p-23
                }
                #expect(abs(Double(out[token * 50 + row]) - sum) < bound)
            }
        }
    }

    @Test(arguments: [0, 1], Array(0..<LlamaModel.projectionKernels.count))
    func sameBitsBySetsAndTokens(type: Int, set: Int) {
        let problem = Problem(Self.types[type], rows: 50, columns: 160, tokens: 21, seed: 11)
        defer { problem.free() }
        let portable = lm_set_function(Int32(LlamaModel.projectionKernels.count - 1))!
        let expected = problem.product(portable, tokens: 0..<21).map(\.bitPattern)
        for tokens in [0..<21, 0..<1, 3..<7, 5..<14, 20..<21] {
            let out = problem.product(lm_set_function(Int32(set)), tokens: tokens).map(\.bitPattern)
            #expect(out.elementsEqual(expected[tokens.lowerBound * 50..<tokens.upperBound * 50]))
        }
    }

    @Test func activationsOfAllSizes() {
        var rows = [Float](repeating: 0, count: 32 * 6)
        rows[32] = 0x1p-101
        rows[64] = .nan
        rows[96] = -.infinity
        (rows[128], rows[129], rows[130]) = (.greatestFiniteMagnitude, -.greatestFiniteMagnitude, 1)
        for index in 0..<32 { rows[160 + index] = Float(index) - 15.5 }
        var blocks = [lm_activations](repeating: lm_activations(), count: 6)
        lm_quantise(rows, 6, 32, &blocks)
        #expect(blocks[0].scale == 0 && blocks[1].scale == 0 && blocks[2].scale.isNaN && blocks[3].scale.isNaN)
        func value(_ block: lm_activations, _ index: Int) -> Double {
            withUnsafeBytes(of: block.upper) { upper in
                withUnsafeBytes(of: block.lower) { lower in
                    // Of each four the even ones come first.
                    let word = index / 4 * 4 + [0, 2, 1, 3][index % 4]
                    let high = upper.loadUnaligned(fromByteOffset: 2 * word, as: Int16.self)
                    let low = lower.loadUnaligned(fromByteOffset: 2 * word, as: Int16.self)
                    return Double(block.scale) * (256 * Double(high) + Double(low))
                }
            }
        }
        #expect(abs(value(blocks[4], 1) / Double(-Float.greatestFiniteMagnitude) - 1) < 1e-6)
        for index in 0..<32 { #expect(abs(value(blocks[5], index) - Double(rows[160 + index])) <= 15.5 * 0x1p-23) }
    }

    @Test func swiGLU() {
        let gate = (-2000...2000).map { Float($0) / 20 } + [.nan, -0.0, 1e30, -1e30]
        let up = gate.indices.map { Float($0 % 7) - 3 }
        var out = [Float](repeating: 0, count: gate.count)
        lm_swiglu(gate, up, &out, Int32(gate.count))
        for (index, x) in gate.enumerated() {
            let expected = Double(x) / (1 + exp(-Double(x))) * Double(up[index])
            if expected.isNaN {
                #expect(out[index].isNaN)
            } else {
                #expect(abs(Double(out[index]) - expected) <= 4e-7 * abs(expected) + 1e-30, "\(x)")
            }
        }
    }

    /// Written over one of its inputs, too, as the model does, and whatever the number of elements.
    @Test(arguments: [1, 7, 8, 100, 1537])
    func swiGLUInPlace(count: Int) {
        let gate = (0..<count).map { Float($0 * 37 % 101) / 7 - 7 }
        let up = gate.indices.map { Float($0 % 13) - 6.5 }
        var expected = [Float](repeating: 0, count: count)
        lm_swiglu(gate, up, &expected, Int32(count))
        for overGate in [true, false] {
            var (ownGate, ownUp) = (gate, up)
            ownGate.withUnsafeMutableBufferPointer { gate in
                ownUp.withUnsafeMutableBufferPointer { up in
                    let out = overGate ? gate.baseAddress! : up.baseAddress!
                    lm_swiglu(gate.baseAddress!, up.baseAddress!, out, Int32(count))
                }
            }
            #expect((overGate ? ownGate : ownUp).map(\.bitPattern) == expected.map(\.bitPattern))
        }
    }

    @Test func partsAreRunOnce() {
        let workers = lm_workers_create(3)!
        defer { lm_workers_destroy(workers) }
        for parts in [0, 1, 2, 3, 17, 64] {
            for _ in 0..<200 {
                var counts = [UInt8](repeating: 0, count: max(parts, 1))
                counts.withUnsafeMutableBytes { bytes in
                    lm_workers_run(
                        workers, Int32(parts),
                        { context, part in context!.assumingMemoryBound(to: UInt8.self)[Int(part)] += 1 },
                        bytes.baseAddress)
                }
                #expect(counts.prefix(parts).allSatisfy { $0 == 1 })
            }
        }
    }
}
