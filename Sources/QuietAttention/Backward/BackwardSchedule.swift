// SPDX-License-Identifier: Apache-2.0
// BackwardSchedule.swift - how a backward pass is cut up, and the memory that takes.

import CKernels

/// How the work of a backward pass is cut up.
///
/// A *group* is a key/value head of one sequence with all its query heads. With many groups each is one worker's. Otherwise
/// the workers share one group after another: its keys are cut into *spans*, its rows into *panels*. A span's gradients of
/// keys and values are the sums over panels in ascending order, a panel's gradient of queries that over spans: `SharedSpans`
/// keeps both orders. The bits are those of one worker, since no sum changes its order.
struct BackwardSchedule {
    /// Blocks of 64 keys of one span: enough for a panel to be worth handing over, few enough to keep all workers busy.
    static let spanBlocks = 8
    /// Rows of one panel, a multiple of 64.
    static let panelRows = 384
    /// Rows whose gradients of scores are in memory at once, against one block of keys: 48 KiB, a kernel's panel.
    static let scoreRows = 192
    /// Scores, the gradient of the weights, and the gradients of values, keys and queries are five products of forward's two.
    private static let timesForward = 2.5

    let groups: Int
    let workers, wokenWorkers: Int
    let takesWholeGroups: Bool
    let workspaceBytes: Int
    /// Of a kernel call's own workspace; gradients of scores stand behind it.
    private let kernelBytes: Int
    /// Where the parts of the buffer are that come behind the deltas, and how long it is.
    private let workspaces, counterBytes: Int
    let byteCount: Int
    private let counters: Int
    /// Where the tensors of Float are that stand between the kernels and the caller's; nil where none is needed.
    private let offsets: [FloatTensor: Int]

    /// Sums of gradients where they are not the caller's own memory, and rows as kernels multiply them.
    enum FloatTensor: CaseIterable {
        case queryGradients, keyGradients, valueGradients, queries, keys
        /// What rows add to the numbers of their heads, in the order of the log-sum-exp.
        case rowSums
    }

    /// - Parameters:
    ///   - gradients: where the caller's gradients go, and which are wanted.
    ///   - accumulates: whether they are added to what is there.
    init<Gradient: AttentionScalar>(
        _ attention: Attention, _ gradients: AttentionGradientBuffers<Gradient>, accumulates: Bool
    ) throws(AttentionError) {
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
        kernelBytes = AlignedMemory.aligned(
            max(
                qattn_backward_workspace(
                    attention.kernels.functions, shape.headDimension, shape.valueDimension),
                RowPreparation.byteCount(
                    rows: QATTN_PREPARE_BACKWARD_ROWS, dimension: max(shape.headDimension, shape.valueDimension))))
        let scoreBytes = Self.scoreRows * SequencePlan.block * MemoryLayout<Float>.stride
        workspaceBytes = kernelBytes + (gradients.bias != nil ? scoreBytes : 0)
        let longest = forward.sequences.reduce(0) { max($0, $1.keys) }
        counters = 1 + Self.spans(keys: longest)

        var end = 0
        func take(_ count: Int, _ bytes: Int) throws(AttentionError) -> Int {
            let (part, overflow) = count.multipliedReportingOverflow(by: bytes)
            let next = end.addingReportingOverflow(part)
            guard !overflow, !next.overflow, next.partialValue < Int.max / 2 else {
                throw AttentionError(
                    .memory, "workspace", expected: "at most \(Int.max / 2) bytes", found: "\(count) times \(bytes)")
            }
            defer { end = AlignedMemory.aligned(next.partialValue) }
            return end
        }
        _ = try take(shape.rowCount, MemoryLayout<Float>.stride)
        workspaces = try take(workers, workspaceBytes)
        counterBytes = try take(counters, SharedCounters.stride)
        var offsets: [FloatTensor: Int] = [:]
        let (prepares, rounds) = (attention.preparation != nil, Gradient.storage != .float32)
        let readsQueryGradients = gradients.logScales != nil || gradients.scalableSoftmax != nil
        for (tensor, count, isNeeded) in [
            (
                FloatTensor.queryGradients, shape.queryCount,
                // Scales want the sum of this pass alone.
                prepares || rounds || (accumulates && readsQueryGradients)
            ),
            (.keyGradients, shape.keyCount, prepares || rounds), (.valueGradients, shape.valueCount, rounds),
            (.queries, shape.queryCount, prepares), (.keys, shape.keyCount, prepares),
            (.rowSums, shape.rowCount, gradients.slopes != nil || readsQueryGradients),
        ] where isNeeded {
            offsets[tensor] = try take(count, MemoryLayout<Float>.stride)
        }
        self.offsets = offsets
        byteCount = end
    }

    /// Spans of so many keys, at least one: the first also clears what nobody sees.
    static func spans(keys: Int) -> Int {
        max(1, (SequencePlan.blocks(of: keys) + spanBlocks - 1) / spanBlocks)
    }

    /// Panels of so many rows of one head, at least one: the first also clears the keys.
    static func panels(queries: Int) -> Int { max(1, (queries + panelRows - 1) / panelRows) }

    // MARK: - Parts of the buffer

    func deltas(_ memory: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Float> {
        memory.assumingMemoryBound(to: Float.self)
    }

    func workspace(_ memory: UnsafeMutableRawPointer, worker: Int) -> UnsafeMutablePointer<Float> {
        (memory + workspaces + worker * workspaceBytes).assumingMemoryBound(to: Float.self)
    }

    /// Room for the gradients of the scores of `scoreRows` rows against one block.
    func scoreGradients(_ memory: UnsafeMutableRawPointer, worker: Int) -> UnsafeMutablePointer<Float> {
        let workspace = UnsafeMutableRawPointer(workspace(memory, worker: worker))
        return (workspace + kernelBytes).assumingMemoryBound(to: Float.self)
    }

    /// The counters of shared work, all 0: the next item, and those of `SharedSpans`.
    func counters(_ memory: UnsafeMutableRawPointer) -> SharedCounters {
        SharedCounters(at: memory + counterBytes, count: counters)
    }

    /// Runs the items `0..<count` on all workers.
    func share(
        _ count: Int, _ memory: UnsafeMutableRawPointer,
        _ body: @escaping @Sendable (_ item: Int, _ worker: Int) -> Void
    ) {
        WorkerPool.shared.share(count, counters(memory), workers: workers, woken: wokenWorkers, body)
    }

    /// What rows add to the numbers of their heads; nil where that is not wanted.
    func rowSums(_ memory: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Float>? { tensor(.rowSums, memory) }

    /// A tensor of Float, in the order of the caller's; nil where the caller's own is used.
    func tensor(_ tensor: FloatTensor, _ memory: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Float>? {
        offsets[tensor].map { (memory + $0).assumingMemoryBound(to: Float.self) }
    }
}
