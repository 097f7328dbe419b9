// SPDX-License-Identifier: Apache-2.0
// ThreadTests.swift - threads, slots and shared workspaces change no bit.

import Testing

@testable import QuietAttention

extension Attention {
    /// With work spread over all threads however little it is, by shared groups or by whole ones.
    convenience init(
        _ shape: AttentionShape, sink: AttentionSink = .softmax1, mask: AttentionMask = .none,
        bias: BroadcastTensor<Float>? = nil, positions: AttentionPositions = .none, queryKeyNorm: QueryKeyNorm? = nil,
        layout: AttentionLayout? = nil, threads: Int, workspace: AttentionWorkspace? = nil, spread: Bool,
        wholeGroups: Bool = false, products: AttentionProducts = .float32
    ) throws {
        try self.init(
            shape, rules: ScoreRules(sink: sink), mask: mask, bias: bias, positions: positions,
            queryKeyNorm: queryKeyNorm, products: products, layout: layout, threads: threads, workspace: workspace,
            nanosecondsPerWorker: spread ? 1e-9 : WorkerCount.nanosecondsPerWorker,
            nanosecondsPerSharedGroup: wholeGroups ? 1e9 : 0)
    }
}

@Suite struct ThreadTests {
    static let shapes = [
        try! AttentionShape(queryHeads: 1, queries: 200, keys: 300, headDimension: 8),
        try! AttentionShape(batch: 3, queryHeads: 6, keyValueHeads: 3, queries: 33, keys: 129, headDimension: 5),
        try! AttentionShape(batch: 60, queryHeads: 2, queries: 20, keys: 70, headDimension: 3),
        try! AttentionShape(queryHeads: 8, keyValueHeads: 1, queries: 1, keys: 1100, headDimension: 4),
        try! AttentionShape(batch: 2, queryHeads: 3, queries: 5, keys: 0, headDimension: 4),
        try! AttentionShape(
            packed: [0, 1, 1, 98, 200], keyOffsets: [0, 0, 64, 129, 430], queryHeads: 4, keyValueHeads: 2,
            headDimension: 4),
    ]

    @Test(arguments: shapes, [2, 3, 8])
    func threadsChangeNoBit(_ shape: AttentionShape, _ threads: Int) throws {
        let problem = Problem(shape)
        for mask in [AttentionMask.none, .causal, .window(20)] {
            let expected = try problem.run(Attention(shape, sink: .softmax1, mask: mask, threads: 1)).bits
            for wholeGroups in [false, true] {
                let attention = try Attention(
                    shape, sink: .softmax1, mask: mask, threads: threads, spread: true, wholeGroups: wholeGroups)
                #expect(attention.threadsInUse > 1 || shape.keys == 0)
                // More than once: counters start afresh in used memory.
                for _ in 0..<5 { #expect(try problem.run(attention).bits == expected) }
            }
        }
    }

    @Test func shortWorkUsesOneThread() throws {
        let short = try AttentionShape(queryHeads: 1, queries: 16, keys: 16, headDimension: 64)
        #expect(try Attention(short, sink: .softmax1, threads: 8).threadsInUse == 1)
        let long = try AttentionShape(queryHeads: 12, queries: 1024, keys: 1024, headDimension: 64)
        #expect(try Attention(long, sink: .softmax1, threads: 8).threadsInUse == 8)
        #expect(try Attention(long, sink: .softmax1, threads: Int.max).threadsInUse <= 1024)
        #expect(try Attention(long, sink: .softmax1).threads == availableThreads())
    }

    @Test func manySmallGroupsAreTakenWhole() throws {
        let small = try AttentionShape(batch: 1000, queryHeads: 4, queries: 16, keys: 16, headDimension: 64)
        #expect(try Attention(small, sink: .softmax1, threads: 2).schedule.takesWholeGroups)
        // One long sequence has most of the work: its items are shared.
        let offsets = (0...1000).map { $0 * 16 } + [16000 + 8192]
        let mixed = try AttentionShape(packed: offsets, queryHeads: 4, headDimension: 64)
        #expect(try !Attention(mixed, sink: .softmax1, threads: 2).schedule.takesWholeGroups)
        // One row of many keys: packing them is the work.
        let packing = try AttentionShape(queryHeads: 32, queries: 1, keys: 4096, headDimension: 64)
        #expect(try Attention(packing, sink: .softmax1, threads: 2).threadsInUse == 2)
    }

    @Test func fewRowsArePackedAsTheyGo() throws {
        func schedule(queries: Int, keys: Int = 8192, threads: Int = 1, _ positions: AttentionPositions = .none) throws
            -> ForwardSchedule
        {
            let shape = try AttentionShape(
                queryHeads: 32, keyValueHeads: 8, queries: queries, keys: keys, headDimension: 64)
            return try Attention(shape, sink: .softmax1, positions: positions, threads: threads).schedule
        }
        for threads in [1, 2, 8] { #expect(try schedule(queries: 4, threads: threads).packsAsItGoes) }
        // Memory does not grow with keys.
        #expect(
            try schedule(queries: 4).memory.byteCount == schedule(queries: 4, keys: 100).memory.byteCount)
        // Four heads share one of keys and values.
        let most = try KernelSet.preferred().reading.unpacked_rows / 4
        #expect(try schedule(queries: most).packsAsItGoes && !schedule(queries: most + 1).packsAsItGoes)
        // Fewer groups than workers are shared.
        #expect(try !schedule(queries: 4, threads: 9).packsAsItGoes)
        #expect(try !schedule(queries: 4, .rotary()).packsAsItGoes)
    }

    @Test func tasksShareOneWorkspace() async throws {
        let workspace = AttentionWorkspace()
        let problems = Self.shapes.map { Problem($0) }
        let expected = try problems.map { try $0.run(Attention($0.shape, sink: .softmax1)).bits }
        try await withThrowingTaskGroup(of: Bool.self) { tasks in
            for repeats in 0..<24 {
                let index = repeats % problems.count
                let problem = problems[index]
                tasks.addTask {
                    let attention = try Attention(
                        problem.shape, sink: .softmax1, threads: repeats % 2 + 1, workspace: workspace, spread: true)
                    for _ in 0..<4 where try problem.run(attention).bits != expected[index] { return false }
                    return true
                }
            }
            for try await same in tasks { #expect(same) }
        }
        workspace.removeIdleBuffers()
        #expect(workspace.byteCount == 0)
    }

    @Test func oneAttentionServesManyTasks() async throws {
        let problem = Problem(Self.shapes[1])
        let attention = try Attention(problem.shape, sink: .softmax1, threads: 2, spread: true)
        let expected = try problem.run(attention).bits
        try await withThrowingTaskGroup(of: Bool.self) { tasks in
            for _ in 0..<8 { tasks.addTask { try problem.run(attention).bits == expected } }
            for try await same in tasks { #expect(same) }
        }
    }

    @Test func callsReuseMemory() throws {
        let problem = Problem(Self.shapes[0])
        let attention = try Attention(problem.shape, sink: .softmax1)
        #expect(attention.workspace.byteCount == 0)
        _ = try problem.run(attention)
        let bytes = attention.workspace.byteCount
        #expect(bytes > 0)
        for _ in 0..<3 { _ = try problem.run(attention) }
        #expect(attention.workspace.byteCount == bytes)
        attention.workspace.removeIdleBuffers()
        #expect(attention.workspace.byteCount == 0)
        _ = try problem.run(attention)
        #expect(attention.workspace.byteCount == bytes)
    }

    @Test(arguments: [1, 2, 64])
    func memoryGrowsWithTheSequenceOnly(_ threads: Int) throws {
        func bytes(_ shape: AttentionShape) throws -> Int {
            try Attention(shape, sink: .softmax1, threads: threads).schedule.memory.byteCount
        }
        let long = try bytes(AttentionShape(queryHeads: 1, queries: 32768, keys: 32768, headDimension: 64))
        #expect(long <= 32 << 20)
        let few = try bytes(AttentionShape(queryHeads: 64, queries: 2048, keys: 2048, headDimension: 64))
        let many = try bytes(
            AttentionShape(batch: 1000, queryHeads: 64, queries: 2048, keys: 2048, headDimension: 64))
        #expect(many == few)
    }

    /// Every item of every group has one ticket, packing before computing and groups in order.
    @Test(arguments: shapes)
    func ticketsCoverAllItems(_ shape: AttentionShape) throws {
        // By products of bfloat16 few rows only are computed without packing first, on every CPU.
        let schedule = try Attention(
            shape, sink: .softmax1, mask: .causal, threads: 3, spread: true, products: .bfloat16
        ).schedule
        var next = (group: 0, item: 0)
        for ticket in 0..<schedule.tickets {
            let (group, item) = schedule.item(ticket)
            #expect(group.number == next.group && item == next.item)
            let items =
                ForwardSchedule.packItems(of: group.sequence)
                + ForwardSchedule.computeItems(
                    of: group.sequence, rows: schedule.itemRows, heads: schedule.groupHeads)
            next = item + 1 == items ? (group.number + 1, 0) : (group.number, item + 1)
        }
        #expect(next == (schedule.groups, 0))
    }
}
