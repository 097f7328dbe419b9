// SPDX-License-Identifier: Apache-2.0
// DirectCall.swift - one head through the C interface, every tensor beside a page that may not be touched.

import AttentionReference
import CKernels
import EmulatedTiles
import TestSupport

/// A kernel set of the C interface.
struct KernelTable: Sendable, CustomStringConvertible {
    /// Read only, and valid for ever.
    nonisolated(unsafe) let functions: UnsafePointer<qattn_kernels>

    static let available: [KernelTable] = {
        var count = 0
        let sets = qattn_available_kernels(&count)!
        return (0..<count).map { KernelTable(functions: sets[$0]!) }
    }()

    /// The kernels of `x86_64_amx`, their tile instructions in plain C.
    static let emulatedTiles = KernelTable(functions: qattn_emulated_tile_kernels())

    /// Also those of `x86_64_v4_bf16`, their dots in plain C.
    static let emulated = [emulatedTiles, KernelTable(functions: qattn_emulated_dot_kernels())]

    var description: String { String(cString: functions.pointee.name) }
}

/// How a head is given to the kernels.
struct DirectCall: Sendable {
    var guardSide = GuardedBuffer<UInt8>.Side.after
    /// Elements between the rows of queries, keys, values and output.
    var padding = 0
    var storage = AttentionCase.StorageChoice.float32
    var outStorage = AttentionCase.StorageChoice.float32
    /// Distance of a mask's or bias's entries.
    var keyStride = 1
    /// Rows per call of the forward function, QATTN_QUERY_BLOCK at most.
    var rowsPerCall = Int(QATTN_QUERY_BLOCK)
    /// Whether lse and sink shares are asked for; if not, they come back as NaN, and as 0 where there are none.
    var wantsSums = true
    /// The kernels that pack; nil: those that compute.
    var packing: KernelTable?
    /// Whether forward is given rows of keys and values, to pack as it goes.
    var unpacked = false
    /// Whether it is told that blocks or rows are beyond the caches, and of no rows to come.
    var fromMemory = false
    /// How it is told to ask for them.
    var inQuarters = false
    /// Whether blocks of float16 and bfloat16 hold these, and not float32.
    var packsAsStored = false

    fileprivate func blockStorage(_ problem: HeadProblem) -> qattn_storage {
        packsAsStored ? storage.kernelStorage : problem.blockStorage
    }
}

extension AttentionCase.StorageChoice {
    var kernelStorage: qattn_storage {
        switch self {
        case .float32: QATTN_FLOAT32
        case .float16: QATTN_FLOAT16
        case .bfloat16: QATTN_BFLOAT16
        }
    }
}

extension HeadProblem {
    fileprivate var blockStorage: qattn_storage {
        products == .bfloat16 ? QATTN_BFLOAT16_PAIRS : packedStorage == .int8 ? QATTN_INT8 : QATTN_FLOAT32
    }
}

extension ReferenceNormaliser {
    var kernelNormaliser: (qattn_normaliser, zeta: Float, hasSink: Bool) {
        switch self {
        case .softmax: (QATTN_SOFTMAX, 0, true)
        case .clippedSoftmax(let zeta): (QATTN_CLIPPED_SOFTMAX, zeta, true)
        case .sigmoid: (QATTN_SIGMOID, 0, false)
        case .softpick: (QATTN_SOFTPICK, 0, false)
        case .reluSquared: (QATTN_RELU_SQUARED, 0, false)
        case .normalisedReluSquared: (QATTN_NORMALISED_RELU_SQUARED, 0, false)
        }
    }
}

/// A problem of the C interface, with the memory that it points to.
struct DirectProblem {
    private(set) var arguments = qattn_problem()
    private let floats: [GuardedBuffer<Float>]
    private let mask: GuardedBuffer<UInt8>?
    private let factors: GuardedBuffer<Double>?

    /// For so many query heads alike.
    init(_ problem: HeadProblem, _ call: DirectCall, heads: Int = 1) {
        let sinks = call.floats([Float](repeating: problem.sink, count: heads))
        let bias = problem.bias.map { call.floats(call.spread($0)) }
        let slopes = problem.alibiSlope.map { call.floats([Float](repeating: $0, count: heads)) }
        let constants = call.floats([problem.constant])
        mask = problem.allowed.map { GuardedBuffer(call.spread($0.map { $0 ? 0x80 : 0 }), guard: call.guardSide) }
        factors = problem.rowFactors.map {
            GuardedBuffer<Double>($0, guard: call.guardSide == .after ? .after : .before)
        }
        floats = [sinks, constants] + [bias, slopes].compactMap { $0 }
        (arguments.normaliser, arguments.zeta, _) = problem.normaliser.kernelNormaliser
        arguments.heads = heads
        arguments.queries = problem.queryCount
        arguments.seq_kv = problem.keyLength
        arguments.scale = problem.scale
        arguments.sinks = UnsafePointer(sinks.start)
        arguments.row_factors = factors.map { UnsafePointer($0.start) }
        arguments.row_factor_strides.query = 1
        arguments.softcap = problem.softcap ?? 0
        arguments.alibi_slopes = slopes.map { UnsafePointer($0.start) }
        arguments.alibi_offset = problem.keyCount - problem.queryCount
        arguments.row_constants = arguments.normaliser == QATTN_SOFTMAX ? nil : UnsafePointer(constants.start)
        arguments.first_key_offset = problem.firstKeyOffset
        arguments.last_key_offset = problem.lastKeyOffset
        arguments.mask = mask.map { UnsafePointer($0.start) }
        arguments.bias = bias.map { UnsafePointer($0.start) }
        let strides = qattn_strides(head: 0, query: problem.keyCount * call.keyStride, key: call.keyStride)
        (arguments.mask_strides, arguments.bias_strides) = (strides, strides)
    }
}

/// What forward keeps of rows for backward.
final class WeightNumbers {
    let references, factors: GuardedBuffer<Float>

    init(rows: Int) {
        references = GuardedBuffer(repeating: .nan, count: rows)
        factors = GuardedBuffer(repeating: .nan, count: rows)
    }
}

extension DirectCall {
    /// Runs `problem`; throws when something outside of the outputs was written.
    func run(
        _ problem: HeadProblem, _ kernels: KernelTable, keeping numbers: WeightNumbers? = nil
    ) throws -> AttentionOutputs {
        let keys = stored(problem.keys, problem, width: problem.headDimension)
        let values = stored(problem.values, problem, width: problem.valueDimension)
        let packed =
            unpacked ? room(problem, blocks: 1) : pack(problem, keys, values, packing ?? kernels)
        let keyValueRows = packArguments(problem, keys, values, 0..<problem.keyLength, at: packed)
        let blocks = keyValueRows.blocks
        let (rows, dimension) = (problem.queryCount, problem.valueDimension)
        let queries = StoredRows(
            problem.queries, width: problem.headDimension, padding: padding, storage: storage, guard: guardSide)
        let out = StoredRows(
            [Float](repeating: 0x1.23p4, count: rows * dimension), width: dimension, padding: padding,
            storage: outStorage, guard: guardSide)
        let hasSink = problem.normaliser.kernelNormaliser.hasSink
        let direct = DirectProblem(problem, self)
        let logSumExp = floats([Float](repeating: hasSink ? .nan : 0, count: rows))
        let sinkShare = floats([Float](repeating: hasSink ? .nan : 0, count: rows))
        let workspace = floats(
            [Float](
                repeating: .nan,
                count: qattn_forward_workspace(problem.headDimension, problem.valueDimension) / 4))
        for first in stride(from: 0, to: rows, by: rowsPerCall) {
            var arguments = qattn_forward_args()
            arguments.queries_base = UnsafeRawPointer(queries.start)
            arguments.query_strides.query = queries.stride
            arguments.query_storage = storage.kernelStorage
            arguments.blocks = blocks
            arguments.problem = direct.arguments
            arguments.row_begin = first
            arguments.row_end = min(first + rowsPerCall, rows)
            arguments.out = out.start
            arguments.out_strides.query = out.stride
            arguments.out_storage = outStorage.kernelStorage
            arguments.lse = wantsSums && hasSink ? logSumExp.start : nil
            arguments.sink_share = wantsSums && hasSink ? sinkShare.start : nil
            arguments.references = numbers?.references.start
            arguments.factors = numbers?.factors.start
            arguments.beyond_caches = fromMemory
            arguments.in_quarters = inQuarters
            if !fromMemory {
                // Rows of prefetch hints are fetched at most, never read: even those that are not there.
                arguments.upcoming.0 = qattn_upcoming_rows(
                    base: queries.start, stride_bytes: 4 * queries.stride, rows: 1 << 10, row_bytes: 4 * queries.width)
                arguments.upcoming.1 = qattn_upcoming_rows(
                    base: UnsafeRawPointer(bitPattern: 64), stride_bytes: -4096, rows: rows, row_bytes: 256)
            }
            arguments.workspace = workspace.start
            withUnsafePointer(to: keyValueRows) {
                arguments.unpacked = unpacked ? $0 : nil
                kernels.functions.pointee.forward(&arguments)
            }
        }
        guard out.isIntactOutsideRows, logSumExp.slackIsIntact, sinkShare.slackIsIntact, workspace.slackIsIntact,
            packed.slackIsIntact, queries.isIntactOutsideRows
        else { throw TestFailure("\(kernels) wrote beside its outputs") }
        withExtendedLifetime(direct) {}
        return AttentionOutputs(output: out.values, logSumExp: logSumExp.array, sinkShare: sinkShare.array)
    }

    /// The keys that rows may see, or their values.
    func stored(_ tensor: [Float], _ problem: HeadProblem, width: Int) -> StoredRows {
        StoredRows(
            tensor.rows(0, problem.keyLength, width), width: width, padding: padding, storage: storage, guard: guardSide
        )
    }

    /// Room for so many blocks. What the kernels do not write stays NaN.
    private func room(_ problem: HeadProblem, blocks: Int) -> GuardedBuffer<Float> {
        let bytes = qattn_block_bytes(blockStorage(problem), problem.headDimension, problem.valueDimension)
        return floats([Float](repeating: .nan, count: blocks * bytes / 4))
    }

    /// Packs the head in two calls, so that a block's place does not depend on where a call starts.
    private func pack(
        _ problem: HeadProblem, _ keys: StoredRows, _ values: StoredRows, _ kernels: KernelTable
    ) -> GuardedBuffer<Float> {
        let blockCount = (problem.keyLength + Int(QATTN_KEY_BLOCK) - 1) / Int(QATTN_KEY_BLOCK)
        let packed = room(problem, blocks: blockCount)
        let middle = blockCount / 2 * Int(QATTN_KEY_BLOCK)
        for part in [0..<middle, middle..<problem.keyLength] where !part.isEmpty {
            var arguments = packArguments(problem, keys, values, part, at: packed)
            kernels.functions.pointee.pack(&arguments)
        }
        return packed
    }

    private func packArguments(
        _ problem: HeadProblem, _ keys: StoredRows, _ values: StoredRows, _ part: Range<Int>,
        at packed: GuardedBuffer<Float>
    ) -> qattn_pack_args {
        qattn_pack_args(
            keys: UnsafeRawPointer(keys.start + part.lowerBound * keys.stride * storage.size),
            values: UnsafeRawPointer(values.start + part.lowerBound * values.stride * storage.size),
            key_stride: keys.stride, value_stride: values.stride, key_storage: storage.kernelStorage,
            value_storage: storage.kernelStorage, key_begin: part.lowerBound, key_end: part.upperBound,
            blocks: blocks(problem, at: packed))
    }

    private func blocks(_ problem: HeadProblem, at packed: GuardedBuffer<Float>) -> qattn_blocks {
        qattn_blocks(
            base: UnsafeMutableRawPointer(packed.start), table: nil, storage: blockStorage(problem),
            head_dim: problem.headDimension, value_dim: problem.valueDimension)
    }

    func floats(_ values: [Float]) -> GuardedBuffer<Float> {
        GuardedBuffer(values, guard: guardSide == .after ? .after : .before)
    }

    /// Entries `keyStride` apart. What lies between them would show: a mask of 1, a bias of NaN.
    func spread(_ mask: [UInt8]) -> [UInt8] { spread(mask, between: 1) }
    func spread(_ bias: [Float]) -> [Float] { spread(bias, between: .nan) }

    private func spread<Element>(_ entries: [Element], between filler: Element) -> [Element] {
        guard keyStride > 1, !entries.isEmpty else { return entries }
        let spread = entries.flatMap { [$0] + [Element](repeating: filler, count: keyStride - 1) }
        return spread.dropLast(keyStride - 1)
    }
}
