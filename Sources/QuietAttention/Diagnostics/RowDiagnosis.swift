// SPDX-License-Identifier: Apache-2.0
// RowDiagnosis.swift - the rows of a kernel call as diagnostics in place of output, a few rows' scores at a time.

import CKernels

/// What a run makes of rows instead of output.
final class RowDiagnosis: @unchecked Sendable {
    /// With values of one element.
    let shape: AttentionShape
    let schedule: ForwardSchedule
    /// [B][H][L].
    let results: UnsafeMutablePointer<RowDiagnostics>
    let epsilon: Double
    let leadingKeys: Int
    let grids: WeightGrids?
    /// One per worker, of ``byteCount(keys:)``.
    let buffers: UnsafeMutableRawPointer
    /// Most keys that a row's blocks hold.
    let keys: Int

    init(
        shape: AttentionShape, schedule: ForwardSchedule, results: UnsafeMutablePointer<RowDiagnostics>,
        epsilon: Double, leadingKeys: Int, grids: WeightGrids?, buffers: UnsafeMutableRawPointer, keys: Int
    ) {
        (self.shape, self.schedule, self.results) = (shape, schedule, results)
        (self.epsilon, self.leadingKeys, self.grids, self.buffers, self.keys) = (
            epsilon, leadingKeys, grids, buffers, keys
        )
    }

    /// A pair of query and key takes at least so many times as long as in a forward pass.
    static let timesForward = 4.0
    /// Rows whose scores are held at once: two tiles of the kernels.
    static let rows = 12

    /// The scores of some rows as kernels give them, [block][row][key of the block], and of one row its scores and weights.
    static func byteCount(keys: Int) -> Int { (rows + 2) * keys * MemoryLayout<Float>.size }

    /// The diagnostics of the rows of a kernel call.
    ///
    /// - Parameters:
    ///   - head: the query head of all the rows.
    ///   - result: where that of row 0 goes.
    func run(
        _ arguments: qattn_forward_args, _ sequence: SequencePlan, head: Int, kernels: KernelSet, sink: Float,
        worker: Int, result: UnsafeMutablePointer<RowDiagnostics>
    ) {
        let scores = (buffers + worker * Self.byteCount(keys: keys)).assumingMemoryBound(to: Float.self)
        var part = arguments
        for begin in stride(from: arguments.row_begin, to: arguments.row_end, by: Self.rows) {
            part.row_begin = begin
            part.row_end = min(begin + Self.rows, arguments.row_end)
            let blocks = blocks(of: part)
            for block in blocks {
                kernels.functions.pointee.scores(
                    &part, block, scores + (block - blocks.lowerBound) * Self.rows * SequencePlan.block)
            }
            for row in begin..<part.row_end {
                // A sink that grows with the row's keys has that part of its logit here.
                let sink =
                    sink + (part.problem.row_constants.map { $0[row * part.problem.row_constant_strides.query] } ?? 0)
                let visible = gather(row - begin, blocks: blocks, from: scores, origin: sequence.keyOrigin)
                let diagnostics = RowDiagnostics(
                    visible, sink: sink, epsilon: epsilon, isBiased: part.problem.bias != nil, kernels: kernels)
                (result + row).initialize(to: diagnostics)
                guard let grids, diagnostics.visibleKeys > 0 else { continue }
                grids.add(
                    weights(visible, diagnostics, kernels: kernels), sinkShare: diagnostics.sinkShare, row: row,
                    of: sequence, head: head
                ) { visit in forEachKey(row - begin, blocks: blocks, of: scores, origin: sequence.keyOrigin, visit) }
            }
        }
    }

    /// The blocks with a key that some of the rows see, masks and biases aside.
    private func blocks(of arguments: qattn_forward_args) -> Range<Int> {
        let first = max(0, arguments.row_begin + arguments.problem.first_key_offset)
        let last = min(arguments.problem.seq_kv, arguments.row_end - 1 + arguments.problem.last_key_offset)
        return first < last ? first / SequencePlan.block..<SequencePlan.blocks(of: last) : 0..<0
    }

    /// The keys whose score of a row is above -inf, ascending and counted from the first of the sequence.
    private func forEachKey(
        _ row: Int, blocks: Range<Int>, of scores: UnsafeMutablePointer<Float>, origin: Int,
        _ visit: (_ key: Int, _ score: Float) -> Void
    ) {
        for block in blocks {
            let source = scores + ((block - blocks.lowerBound) * Self.rows + row) * SequencePlan.block
            for key in 0..<SequencePlan.block where source[key] != -.infinity {
                visit(origin + block * SequencePlan.block + key, source[key])
            }
        }
    }

    /// A row's scores above -inf, side by side, and room for its weights.
    private func gather(
        _ row: Int, blocks: Range<Int>, from scores: UnsafeMutablePointer<Float>, origin: Int
    ) -> VisibleScores {
        let visible = scores + Self.rows * keys
        var (count, leading, top, topKey) = (0, 0, -Float.infinity, 0)
        forEachKey(row, blocks: blocks, of: scores, origin: origin) { key, score in
            visible[count] = score
            count += 1
            if key < leadingKeys { leading = count }
            if score > top { (top, topKey) = (score, key) }
        }
        return VisibleScores(
            scores: UnsafeBufferPointer(start: visible, count: count),
            weights: UnsafeMutableBufferPointer(start: visible + keys, count: count), leading: leading, topKey: topKey)
    }

    /// The weights of a row that was diagnosed, relative to its largest, in the place of their scores' magnitudes; and the
    /// factor that makes weights of them.
    private func weights(
        _ row: VisibleScores, _ diagnostics: RowDiagnostics, kernels: KernelSet
    ) -> (relative: UnsafeMutableBufferPointer<Float>, factor: Double) {
        let maximum = row.scores.reduce(-.infinity) { max($0, $1) }
        for index in row.scores.indices { row.weights[index] = row.scores[index] - maximum }
        kernels.functions.pointee.exp2(row.weights.baseAddress, row.weights.baseAddress, row.scores.count)
        return (row.weights, diagnostics.largestWeight)
    }
}
