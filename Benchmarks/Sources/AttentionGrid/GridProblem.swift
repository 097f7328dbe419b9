// SPDX-License-Identifier: Apache-2.0
// GridProblem.swift - a shape with its tensors, computed by our kernels and by the unfused baseline, in turns.

import QuietAttention

/// One shape's tensors and both ways to compute it.
public final class GridProblem {
    public let shape: GridShape
    public let threads: Int
    public private(set) var output: [Float]
    public private(set) var unfusedOutput: [Float]
    private let queries: [Float]
    private let keys: [Float]
    private let values: [Float]
    private let attention: Attention
    private let unfused: UnfusedAttention

    public init(_ shape: GridShape, threads: Int = 1) throws {
        self.shape = shape
        self.threads = threads
        var random = Normals(seed: 1)
        let attentionShape = try shape.attentionShape()
        queries = random.next(attentionShape.queryCount)
        keys = random.next(attentionShape.keyCount)
        values = random.next(attentionShape.valueCount)
        let sinks = shape.learnedSinks ? random.next(shape.queryHeads) : Array(repeating: 0, count: shape.queryHeads)
        output = Array(repeating: 0, count: attentionShape.outputCount)
        unfusedOutput = output
        attention = try Attention(
            attentionShape, sink: shape.learnedSinks ? .logits(sinks) : .softmax1, mask: shape.attentionMask(),
            threads: threads)
        unfused = UnfusedAttention(shape, sinks: sinks, threads: threads)
    }

    /// The instruction set in use.
    public var kernels: String { attention.kernels.name }
    /// Bytes our kernels keep besides the tensors, once they have run.
    public var workspaceBytes: Int { attention.workspace.byteCount }
    /// Bytes the baseline keeps besides the tensors.
    public var unfusedWorkspaceBytes: Int { unfused.workspaceBytes }

    public func run() throws {
        try attention.forward(queries: queries, keys: keys, values: values, into: &output)
    }

    public func runUnfused() {
        unfused.forward(queries: queries, keys: keys, values: values, into: &unfusedOutput)
    }
}

// MARK: - Measuring

/// One turn each: the machine, our kernels, the baseline, one right after the other.
public struct Turn: Sendable {
    /// GFLOP/s of independent multiply-adds.
    public var peak: Double
    /// Nanoseconds of one forward pass.
    public var nanoseconds: Double
    /// Nanoseconds of one unfused forward pass.
    public var unfusedNanoseconds: Double
}

extension GridProblem {
    /// Calls that together take about a millisecond, for clocks and caches: at least one. Runs a few.
    public func callsPerTurn() throws -> Int {
        try run()
        let nanoseconds = try timed(calls: 1)
        return max(1, Int(1e6 / nanoseconds))
    }

    public func turn(calls: Int) throws -> Turn {
        let before = Ceilings.multiplyAdd(threads: threads)
        let nanoseconds = try timed(calls: calls)
        let after = Ceilings.multiplyAdd(threads: threads)
        return Turn(
            peak: (before + after) / 2, nanoseconds: nanoseconds,
            unfusedNanoseconds: Clock.nanoseconds { for _ in 0..<calls { runUnfused() } } / Double(calls))
    }

    private func timed(calls: Int) throws -> Double {
        var failure: (any Error)?
        let nanoseconds = Clock.nanoseconds {
            do { for _ in 0..<calls { try run() } } catch { failure = error }
        }
        if let failure { throw failure }
        return nanoseconds / Double(calls)
    }
}

/// What is known of a shape after some turns: a row of the table.
public struct GridRow: Sendable, Encodable {
    public var name: String
    public var turns: Int
    public var medianMs: Double
    public var gflops: Double
    public var fmaPeakGflops: Double
    public var fractionOfPeak: Double
    public var openblasMs: Double
    /// The baseline's time over ours.
    public var ratioToOpenblas: Double
    public var workspaceBytes: Int
    public var openblasWorkspaceBytes: Int
    public var flopsPerByte: Double
    public var kernels: String

    /// Ratios are medians over turns of what was measured in the same turn: what else runs on the machine lowers both.
    public init(_ problem: GridProblem, turns: [Turn]) {
        name = problem.shape.name
        self.turns = turns.count
        let nanoseconds = turns.map(\.nanoseconds).median
        medianMs = nanoseconds / 1e6
        gflops = problem.shape.floatOperations / nanoseconds
        fmaPeakGflops = turns.map(\.peak).max()!
        fractionOfPeak = turns.map { problem.shape.floatOperations / $0.nanoseconds / $0.peak }.median
        openblasMs = turns.map(\.unfusedNanoseconds).median / 1e6
        ratioToOpenblas = turns.map { $0.unfusedNanoseconds / $0.nanoseconds }.median
        workspaceBytes = problem.workspaceBytes
        openblasWorkspaceBytes = problem.unfusedWorkspaceBytes
        flopsPerByte = problem.shape.floatOperations / problem.shape.compulsoryBytes
        kernels = problem.kernels
    }
}

// MARK: - In the words of the library

extension GridShape {
    func attentionShape() throws -> AttentionShape {
        if let sequences {
            let offsets = sequences.reduce(into: [0]) { $0.append($0.last! + $1) }
            return try AttentionShape(
                packed: offsets, queryHeads: queryHeads, keyValueHeads: keyValueHeads, headDimension: headDimension,
                valueDimension: valueDimension)
        }
        return try AttentionShape(
            batch: batch, queryHeads: queryHeads, keyValueHeads: keyValueHeads, queries: queries, keys: keys,
            headDimension: headDimension, valueDimension: valueDimension)
    }

    func attentionMask() -> AttentionMask {
        let band: AttentionMask =
            switch mask {
            case .none: .none
            case .causal: .causal
            case .window(let width): .window(width)
            }
        return keyLengths.map { band.keyLengths($0) } ?? band
    }
}

/// Numbers of mean 0 and variance 1: sums of twelve uniform ones, from SplitMix64.
struct Normals {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    private mutating func uniform() -> Float {
        state &+= 0x9e37_79b9_7f4a_7c15
        var word = state
        word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
        word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
        return Float((word ^ (word >> 31)) >> 40) * 0x1p-24
    }

    mutating func next(_ count: Int) -> [Float] {
        (0..<count).map { _ in (0..<12).reduce(-6) { sum, _ in sum + uniform() } }
    }
}
