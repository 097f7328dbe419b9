// SPDX-License-Identifier: Apache-2.0
// HeadGradients.swift - the gradients of numbers that a query head has: sinks, ALiBi's slopes, scales.

import CKernels

extension Attention {
    /// `gradients[h] += sum of term over the rows of query head h`, batch items ascending.
    ///
    /// Query i of a sequence joins lane i mod 16, the lanes are added in a tree, and sequences in ascending order: the bits
    /// depend on nothing else. In the mode of the contract, as all of a backward pass is.
    ///
    /// - Parameter term: of a row, by its place in the order of the log-sum-exp.
    func addRowSums(to gradients: UnsafeMutablePointer<Float>, _ term: (Int) -> Float) {
        for number in stride(from: 0, to: schedule.groups, by: max(schedule.keyValueHeads, 1)) {
            let sequence = schedule.group(number).sequence
            for head in 0..<shape.queryHeads {
                let first = rows.sums.offset(start: sequence.queryStart, head: head)
                gradients[head] += orderedSum(sequence.queries) { term(first + $0) }
            }
        }
    }
}

extension BackwardRun {
    /// Adds the gradients of slopes and scales; nil: not wanted. After ``runAll()``, which leaves the deltas, the rows as they
    /// were multiplied and the sums of their gradients.
    func addHeadGradients(
        slopes: UnsafeMutablePointer<Float>?, logScales: UnsafeMutablePointer<Float>?,
        scalableSoftmax: UnsafeMutablePointer<Float>?
    ) {
        if let slopes, let sums = schedule.rowSums(memory) {
            forEachRun { $0.pointee.slope_gradients }
            attention.addRowSums(to: slopes) { sums[$0] }
        }
        guard logScales != nil || scalableSoftmax != nil, let sums = schedule.rowSums(memory) else { return }
        forEachRun { $0.pointee.log_scale_gradients }
        if let logScales { attention.addRowSums(to: logScales) { sums[$0] } }
        if let scalableSoftmax, let factors = try? attention.scaling.divisors() {
            withUnsafeTemporaryAllocation(of: Float.self, capacity: factors.count) { totals in
                totals.initialize(repeating: 0)
                guard let first = totals.baseAddress else { return }
                attention.addRowSums(to: first) { sums[$0] }
                // A -0 that is there counts as +0.
                for head in factors.indices {
                    scalableSoftmax[head] = (scalableSoftmax[head] + 0) + totals[head] / factors[head]
                }
            }
        }
    }

    /// Calls a kernel for all rows, a run of one head's at a time, on all workers; its results are the schedule's row sums.
    private func forEachRun(
        _ kernel:
            @Sendable (UnsafePointer<qattn_kernels>) ->
            (@convention(c) (UnsafePointer<qattn_backward_args>?, UnsafeMutablePointer<Float>?) -> Void)?
    ) {
        guard let kernel = kernel(kernels), let first = schedule.rowSums(memory) else { return }
        let sums = SharedSums(first: first)
        let longest = attention.schedule.sequences.reduce(0) { max($0, $1.queries) }
        let runs = (longest + BackwardSchedule.scoreRows - 1) / BackwardSchedule.scoreRows
        schedule.share(schedule.groups * groupHeads * runs, memory) { number, worker in
            let (place, run) = number.quotientAndRemainder(dividingBy: runs)
            let (groupNumber, head) = place.quotientAndRemainder(dividingBy: groupHeads)
            let group = attention.schedule.group(groupNumber)
            let queries = group.sequence.queries
            let begin = min(run * BackwardSchedule.scoreRows, queries)
            var arguments = arguments(group, worker: worker)
            arguments.row_begin = head * queries + begin
            arguments.row_end = head * queries + min(begin + BackwardSchedule.scoreRows, queries)
            let row = attention.rows.sums.offset(
                start: group.sequence.queryStart, head: group.keyValueHead * groupHeads + head)
            kernel(&arguments, sums.first + row + begin)
        }
    }
}

extension ScoreScaling {
    /// The gradients of the s of scalable softmax, `logScales[h] / s[h]`.
    ///
    /// - Parameter logScales: the gradients by the logarithm of what each head's scores are multiplied by.
    /// - Throws: ``AttentionError`` of kind `composition` for another scaling, `scaling` for an s of 0, `elementCount`.
    public func scalableSoftmaxGradient(logScales: [Float]) throws(AttentionError) -> [Float] {
        let factors = try divisors()
        guard logScales.count == factors.count else {
            throw AttentionError(
                .elementCount, "logScales", expected: "\(factors.count) elements", found: "\(logScales.count)")
        }
        let mode = FloatMode.enter()
        defer { mode.leave() }
        return zip(logScales, factors).map { 0 + $0 / $1 }
    }

    /// The s by which gradients are divided.
    func divisors() throws(AttentionError) -> [Float] {
        guard case .scalableSoftmax(let factors) = self else {
            throw AttentionError(
                .composition, "scaling", expected: "scalable softmax, whose s have gradients", found: name)
        }
        for (head, factor) in factors.enumerated() where Float(factor) == 0 {
            throw AttentionError(
                .scaling, "scaling.scalableSoftmax[\(head)]",
                expected: "a number other than 0 where its gradient is wanted, which is made by a division",
                found: "\(factor)")
        }
        return factors.map { Float($0) }
    }
}
