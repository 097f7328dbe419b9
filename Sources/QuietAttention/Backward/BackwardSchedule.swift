// SPDX-License-Identifier: Apache-2.0
// BackwardSchedule.swift - how a backward pass is cut up, and the memory that takes.

import CKernels

/// How the work of a backward pass is cut up.
///
/// A *group* is a key/value head of one sequence with all its query heads. With many groups each is one worker's. Otherwise
/// the workers share one group after another: its keys are cut into *spans*, its rows into *panels*. A span's gradients of
/// keys and values are one worker's; a panel's gradient of queries is the sum over spans in ascending order, so span n
/// takes up a panel after span n - 1 has left it. The bits are those of one worker, since no sum changes its order.
struct BackwardSchedule {
    /// Blocks of 64 keys of one span: enough for a panel to be worth handing over, few enough to keep all workers busy.
    static let spanBlocks = 8
    /// Rows of one panel, a multiple of 64.
    static let panelRows = 384
    /// Scores, the gradient of the weights, and the gradients of values, keys and queries are five products of forward's two.
    private static let timesForward = 2.5

    let groups: Int
    let workers, wokenWorkers: Int
    let takesWholeGroups: Bool
    let workspaceBytes: Int
    /// Of the deltas, which stand in front of everything, and of the whole buffer.
    let deltaBytes, byteCount: Int
    private let counters: Int

    init(_ attention: Attention) throws(AttentionError) {
        let (forward, shape) = (attention.schedule, attention.shape)
        groups = forward.groups
        let pairs = attention.visiblePairs
        let nanoseconds =
            Self.timesForward * pairs * Double(shape.headDimension + shape.valueDimension)
            / ForwardSchedule.multiplyAddsPerNanosecond
        let worthwhile = WorkerCount(
            nanoseconds: nanoseconds, nanosecondsPerWorker: attention.nanosecondsPerWorker, threads: attention.threads)
        workers = worthwhile.most
        wokenWorkers = worthwhile.woken
        takesWholeGroups = workers == 1 || groups >= 4 * workers
        workspaceBytes = Self.aligned(qattn_backward_workspace(shape.headDimension, shape.valueDimension))
        deltaBytes = Self.aligned(shape.rowCount * MemoryLayout<Float>.stride)
        let longest = forward.sequences.reduce(0) { max($0, $1.keys) }
        counters = 1 + Self.spans(keys: longest)
        let (workspaces, overflow) = workspaceBytes.multipliedReportingOverflow(by: workers)
        let bytes = deltaBytes.addingReportingOverflow(workspaces)
        guard !overflow, !bytes.overflow, bytes.partialValue < Int.max / 2 else {
            throw AttentionError(
                .memory, "workspace", expected: "at most \(Int.max / 2) bytes",
                found: "\(shape.rowCount) rows and \(workers) workers")
        }
        byteCount = bytes.partialValue + counters * SharedCounters.stride
    }

    /// Spans of so many keys, at least one: the first also clears what nobody sees.
    static func spans(keys: Int) -> Int {
        max(1, (SequencePlan.blocks(of: keys) + spanBlocks - 1) / spanBlocks)
    }

    static func panels(queries: Int) -> Int { (queries + panelRows - 1) / panelRows }

    private static func aligned(_ bytes: Int) -> Int {
        (bytes + QATTN_ALIGNMENT - 1) / QATTN_ALIGNMENT * QATTN_ALIGNMENT
    }

    // MARK: - Parts of the buffer

    func deltas(_ memory: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Float> {
        memory.assumingMemoryBound(to: Float.self)
    }

    func workspace(_ memory: UnsafeMutableRawPointer, worker: Int) -> UnsafeMutablePointer<Float> {
        (memory + deltaBytes + worker * workspaceBytes).assumingMemoryBound(to: Float.self)
    }

    /// The counters of shared work, all 0: the next ticket, and the panels that each span has left.
    func counters(_ memory: UnsafeMutableRawPointer) -> SharedCounters {
        SharedCounters(at: memory + deltaBytes + workers * workspaceBytes, count: counters)
    }
}
