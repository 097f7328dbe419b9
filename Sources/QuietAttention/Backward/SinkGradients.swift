// SPDX-License-Identifier: Apache-2.0
// SinkGradients.swift - the gradients of sink logits, from what backward knows of every row.

extension Attention {
    /// `gradients[h] += sum of -(share * delta)` over batch and rows of query head h, where delta is the part of the incoming
    /// gradient that a row's sink takes, `dout.out - dlse`.
    ///
    /// Query i of a sequence joins lane i mod 16, the lanes are added in a tree, and sequences in ascending order: the bits
    /// depend on nothing else.
    ///
    /// - Parameters:
    ///   - shares: sink shares, in the order of the log-sum-exp.
    ///   - deltas: in the same order.
    func addSinkGradients(
        shares: UnsafePointer<Float>, deltas: UnsafePointer<Float>, to gradients: UnsafeMutablePointer<Float>
    ) {
        for number in stride(from: 0, to: schedule.groups, by: max(schedule.keyValueHeads, 1)) {
            let sequence = schedule.group(number).sequence
            for head in 0..<shape.queryHeads {
                let first = rows.sums.offset(start: sequence.queryStart, head: head)
                gradients[head] += orderedSum(sequence.queries) { -(shares[first + $0] * deltas[first + $0]) }
            }
        }
    }
}
