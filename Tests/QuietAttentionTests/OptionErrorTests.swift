// SPDX-License-Identifier: Apache-2.0
// OptionErrorTests.swift - what the initialiser of Attention, masks, broadcast tensors and output gates refuse.

import Testing

@testable import QuietAttention

@Suite struct OptionErrorTests {
    private let shape: AttentionShape

    init() throws {
        shape = try AttentionShape(
            batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 3, keys: 5, headDimension: 8)
    }

    @Test(arguments: [Double.nan, .infinity, -.infinity, 1e300, -3e38])
    func scales(_ scale: Double) {
        expectRefusal(.scale, "scale") { _ = try Attention(shape, sink: .softmax1, scale: scale) }
    }

    @Test(arguments: [Double.nan, .infinity, -1, -.leastNonzeroMagnitude])
    func countsOfSoftmaxN(_ n: Double) {
        expectRefusal(.sink, "sink.softmaxN") { _ = try Attention(shape, sink: .softmaxN(n)) }
    }

    @Test(arguments: [Float.nan, .infinity, .greatestFiniteMagnitude])
    func sinkLogits(_ logit: Float) {
        expectRefusal(.sink, "sink.logits[2]") { _ = try Attention(shape, sink: .logits([0, 0, logit, 0])) }
    }

    @Test(arguments: [0, 1, 2, 3, 5])
    func numbersOfSinkLogits(_ count: Int) {
        expectRefusal(.sinkCount, "sink.logits") {
            _ = try Attention(shape, sink: .logits([Float](repeating: 0, count: count)))
        }
    }

    @Test(arguments: [0, -1, Int.min])
    func windows(_ keys: Int) {
        let error = expectRefusal(.window, "mask.window") {
            _ = try Attention(shape, sink: .softmax1, mask: .window(keys))
        }
        #expect(error?.found == "\(keys)")
        guard keys < 0 else { return }
        expectRefusal(.window, "mask.window.before") {
            _ = try Attention(shape, sink: .softmax1, mask: .window(before: keys, after: nil))
        }
        expectRefusal(.window, "mask.window.after") {
            _ = try Attention(shape, sink: .softmax1, mask: .window(before: 1, after: keys))
        }
    }

    @Test func keyLengths() throws {
        expectRefusal(.keyLengthCount, "mask.keyLengths") {
            _ = try Attention(shape, sink: .softmax1, mask: .causal.keyLengths([5]))
        }
        for length in [-1, 6, Int.max, Int.min] {
            expectRefusal(.keyLength, "mask.keyLengths[1]") {
                _ = try Attention(shape, sink: .softmax1, mask: .none.keyLengths([5, length]))
            }
        }
        let packed = try AttentionShape(packed: [0, 3, 5], queryHeads: 1, headDimension: 8)
        expectRefusal(.keyLength, "mask.keyLengths[1]") {
            _ = try Attention(packed, sink: .softmax1, mask: .none.keyLengths([3, 3]))
        }
    }

    /// The weights are those that are multiplied: of rounded queries and keys, themselves rounded to 8 bits.
    @Test func weightsAreOfTheProductsAskedFor() throws {
        func numbers(_ count: Int, _ step: Int) -> [Float] { (0..<count).map { Float($0 * step % 19) / 7 - 1.3 } }
        let (q, k) = (numbers(shape.queryCount, 5), numbers(shape.keyCount, 7))
        let float32 = try Attention(shape, sink: .softmax1).weights(queries: q, keys: k)
        let bfloat16 = try Attention(shape, sink: .softmax1, products: .bfloat16).weights(queries: q, keys: k)
        #expect(float32 != bfloat16)
        for (a, b) in zip(float32, bfloat16) { #expect(abs(a - b) <= 0.05 * a) }
    }

    @Test(arguments: [0, -1, Int.min])
    func threads(_ threads: Int) {
        expectRefusal(.threads, "threads") { _ = try Attention(shape, sink: .softmax1, threads: threads) }
    }

    @Test func broadcastExtents() throws {
        func mask(_ batch: Int, _ heads: Int, _ queries: Int, _ keys: Int) throws {
            let allowed = try BroadcastTensor(
                [Bool](repeating: true, count: batch * heads * queries * keys), batch: batch, heads: heads,
                queries: queries, keys: keys)
            _ = try Attention(shape, sink: .softmax1, mask: .none.allowing(allowed))
        }
        try mask(1, 1, 1, 5)
        try mask(2, 4, 3, 5)
        expectRefusal(.broadcastExtent, "mask.allowing.batch") { try mask(3, 1, 1, 5) }
        // Heads are query heads.
        expectRefusal(.broadcastExtent, "mask.allowing.heads") { try mask(1, 2, 1, 5) }
        expectRefusal(.broadcastExtent, "mask.allowing.queries") { try mask(1, 1, 2, 5) }
        expectRefusal(.broadcastExtent, "mask.allowing.keys") { try mask(1, 1, 1, 1) }
        expectRefusal(.broadcastExtent, "bias.keys") {
            _ = try Attention(shape, sink: .softmax1, bias: BroadcastTensor([0, 0], keys: 2))
        }
    }

    @Test func broadcastTensors() {
        expectRefusal(.elementCount, "values") { _ = try BroadcastTensor([true], keys: 2) }
        expectRefusal(.dimension, "heads") { _ = try BroadcastTensor([true], heads: -1, keys: 1) }
        expectRefusal(.overflow, "keys") { _ = try BroadcastTensor([true], queries: Int.max, keys: 2) }
        func strided(_ extents: BroadcastTensor<Bool>.Extents, _ strides: BroadcastTensor<Bool>.Strides) throws {
            _ = try BroadcastTensor([Bool](repeating: true, count: 12), extents: extents, strides: strides)
        }
        expectRefusal(.broadcastStride, "strides.queries") {
            try strided(.init(queries: 3, keys: 4), .init(batch: 0, heads: 0, queries: -4, keys: 1))
        }
        expectRefusal(.broadcastStride, "strides") {
            try strided(.init(queries: 3, keys: 4), .init(batch: 0, heads: 0, queries: 4, keys: 2))
        }
        expectRefusal(.broadcastStride, "strides") {
            try strided(.init(queries: 3, keys: 4), .init(batch: 0, heads: 0, queries: Int.max, keys: 1))
        }
        #expect(throws: Never.self) {
            try strided(.init(queries: 3, keys: 4), .init(batch: 9, heads: 9, queries: 1, keys: 3))
        }
    }

    @Test func outputGates() throws {
        expectRefusal(.dimension, "valueDimension") { _ = try OutputGate(.head, valueDimension: 0) }
        let head = try OutputGate(.head, valueDimension: 3)
        let element = try OutputGate(.element, valueDimension: 3)
        var output: [Float] = [1, 2, 3, 4, 5, 6]
        expectRefusal(.elementCount, "logits") { try head.apply(logits: [0, 0, 0], to: &output) }
        expectRefusal(.elementCount, "logits") { try element.apply(logits: [0, 0], to: &output) }
        #expect(output == [1, 2, 3, 4, 5, 6])
        var odd: [Float] = [1, 2, 3, 4]
        expectRefusal(.elementCount, "output") { try element.apply(logits: odd, to: &odd) }
        var none: [Float] = []
        try head.apply(logits: [], to: &none)
        let six = [Float](repeating: 0, count: 6)
        expectRefusal(.elementCount, "logits") {
            _ = try head.gradients(logits: [1], output: six, outputGradient: six)
        }
        expectRefusal(.elementCount, "output") {
            _ = try head.gradients(logits: [1, 2], output: [1], outputGradient: six)
        }
        expectRefusal(.elementCount, "outputGradient") {
            _ = try head.gradients(logits: [1, 2], output: six, outputGradient: [1])
        }
        for (argument, counts) in [("gradients.output", (5, 2)), ("gradients.logits", (6, 3))] {
            var gradients = OutputGateGradients(
                output: [Float](repeating: 1, count: counts.0), logits: [Float](repeating: 1, count: counts.1))
            let before = gradients
            expectRefusal(.elementCount, argument) {
                try head.addGradients(logits: [1, 2], output: six, outputGradient: six, to: &gradients)
            }
            #expect(gradients == before)
        }
        #expect(try head.gradients(logits: [], output: [], outputGradient: []).logits.isEmpty)
    }

    @Test func kernelSetNames() throws {
        let error = expectRefusal(.kernelSet, "kernels") { _ = try KernelSet(named: "vax") }
        #expect(error?.expected.contains("portable") == true)
        expectRefusal(.kernelSet, "kernels") { _ = try KernelSet(named: "") }
        // In one line, which steers no terminal.
        let long = expectRefusal(.kernelSet, "kernels") {
            _ = try KernelSet(named: "\u{1b}[31m\n" + String(repeating: "x", count: 100_000))
        }
        #expect(long.map { $0.found.count < 200 && !$0.found.unicodeScalars.contains { $0.value < 32 } } == true)
    }

    /// The environment of a process is one for all its tests: they use what the initialiser uses.
    @Test func kernelSetForcedByTheEnvironment() throws {
        expectRefusal(.kernelSet, "QUIET_ATTENTION_KERNELS") { _ = try KernelSet.preferred(forced: "vax") }
        #expect(try KernelSet.preferred(forced: nil) == KernelSet.available[0])
        #expect(try KernelSet.preferred(forced: "") == KernelSet.available[0])
        #expect(try KernelSet.preferred(forced: "portable").name == "portable")
    }
}
