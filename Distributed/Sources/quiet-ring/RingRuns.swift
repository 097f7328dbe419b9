// SPDX-License-Identifier: Apache-2.0
// RingRuns.swift - what bench times on every rank: forward and backward passes over all sequences of a batch.

import QuietAttention
import Ring

/// Something that all ranks run together.
protocol RingRun {
    /// Of all ranks, in one run.
    var operations: Double { get }

    /// What comes before the timed runs.
    func prepare() throws
    func run() throws
    /// Of the results, on rank 0.
    func digest() throws -> String
}

extension RingProblem {
    /// Of products over so many channels of each pair that is seen, of all ranks' rows.
    fileprivate func operations(_ world: World, channels: Int) throws -> Double {
        let pairs = try (0..<shape.batch).reduce(0.0) { sum, item in
            let plan = plan(item, ranks: world.size)
            return try sum + attention(plan, rows: 0..<plan.queries).visiblePairs
        }
        return 2 * pairs * Double(channels)
    }
}

struct TimedForward<Element: AttentionScalar>: RingRun {
    private let world: World
    private let ring: RingProblem
    private let items: [RingForward<Element, Float>]
    let operations: Double

    init(_ world: World, _ ring: RingProblem, _ rows: SeededRows<Element>) throws {
        (self.world, self.ring) = (world, ring)
        let shape = ring.shape
        items = try (0..<shape.batch).map { item in
            let plan = ring.plan(item, ranks: world.size)
            let part = try OwnPart(plan, RingShape(shape), rank: world.rank, item: item, rows)
            return try RingForward(world, part, ring.attention(plan, rows: part.rows))
        }
        operations = try ring.operations(world, channels: shape.headDimension + shape.valueDimension)
    }

    func prepare() {}

    func run() throws { for item in items { try item.run() } }

    func digest() throws -> String {
        var digest = BitDigest()
        for item in items {
            let results = SharedTensor.stripes(
                item.part.plan, rank: world.rank, heads: ring.shape.queryHeads, dimension: ring.shape.valueDimension,
                item.output.reading)
            try world.collect(results) { digest.add($2) }
        }
        for item in items {
            let sums = SharedTensor.stripes(
                item.part.plan, rank: world.rank, heads: ring.shape.queryHeads, dimension: 1, item.logSumExp.reading)
            try world.collect(sums) { digest.add($2) }
        }
        return digest.hexadecimal
    }
}

struct TimedBackward<Element: AttentionScalar>: RingRun {
    private let world: World
    private let ring: RingProblem
    private let items: [(plan: RingPlan, backward: RingBackward<Element, Element>)]
    let operations: Double

    init(_ world: World, _ ring: RingProblem, _ rows: SeededRows<Element>) throws {
        (self.world, self.ring) = (world, ring)
        let shape = ring.shape
        items = try (0..<shape.batch).map { item in
            let plan = ring.plan(item, ranks: world.size)
            let part = try OwnPart(plan, RingShape(shape), rank: world.rank, item: item, rows)
            let forward = try RingForward<Element, Element>(world, part, ring.attention(plan, rows: part.rows))
            let backward = try RingBackward(world, forward, item: item, rows) {
                try ring.attention(plan, rows: $0, multiplied: true)
            }
            return (plan, backward)
        }
        operations = try ring.operations(world, channels: 3 * shape.headDimension + 2 * shape.valueDimension)
    }

    func prepare() throws { for item in items { try item.backward.runForward() } }

    func run() throws { for item in items { try item.backward.run() } }

    func digest() throws -> String {
        let shape = ring.shape
        var digest = BitDigest()
        func add(_ tensor: SharedTensor) throws { try world.collect(tensor) { digest.add($2) } }
        for item in items {
            try add(
                .stripes(
                    item.plan, rank: world.rank, heads: shape.queryHeads, dimension: shape.headDimension,
                    item.backward.queryGradient.reading))
        }
        for item in items { try addKeys(item.plan, shape.headDimension, item.backward.keyGradients, add) }
        for item in items { try addKeys(item.plan, shape.valueDimension, item.backward.valueGradients, add) }
        var sinks = [Float](repeating: 0, count: shape.queryHeads)
        for item in items {
            for (head, sum) in item.backward.sinkGradient.enumerated() { sinks[head] += sum }
        }
        digest.add(sinks)
        return digest.hexadecimal
    }

    /// Gradients of keys; those of padding are 0.
    private func addKeys(
        _ plan: RingPlan, _ dimension: Int, _ sums: [Int: Buffer<Float>],
        _ add: (SharedTensor) throws -> Void
    ) throws {
        for head in 0..<ring.shape.keyValueHeads {
            try add(
                .chunks(plan, heads: 1, dimension: dimension) { chunk in
                    let count = plan.keys(ofChunk: chunk).count * dimension
                    return .init(rebasing: sums[chunk]!.elements[head * count..<(head + 1) * count])
                })
            let padding = ring.shape.keys - plan.keys
            if padding > 0 {
                let zeros = [Float](repeating: 0, count: padding * dimension)
                try zeros.withUnsafeBufferPointer { zeros in
                    try add(
                        SharedTensor(heads: 1, rank: 0, rows: plan.keys..<ring.shape.keys, dimension: dimension, zeros))
                }
            }
        }
    }
}

struct TimedDecode<Element: AttentionScalar>: RingRun {
    private let items: [RingDecode<Element>]
    let operations: Double

    init(_ world: World, _ ring: RingProblem, _ rows: SeededRows<Element>) throws {
        let shape = ring.shape
        items = try (0..<shape.batch).map { item in
            let plan = ring.plan(item, ranks: world.size)
            return try RingDecode(world, ring.attention(plan, rows: 0..<plan.queries), item: item, rows)
        }
        operations = try ring.operations(world, channels: shape.headDimension + shape.valueDimension)
    }

    func prepare() {}

    func run() throws { for item in items { try item.run() } }

    func digest() -> String {
        var digest = BitDigest()
        for item in items { digest.add(item.output.elements) }
        for item in items { digest.add(item.logSumExp.elements) }
        return digest.hexadecimal
    }
}
