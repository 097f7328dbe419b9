// SPDX-License-Identifier: Apache-2.0
// PreparedCache.swift - caches whose keys are normalised or rotated: which positions they take, and the queries that go with them.

import CKernels

extension KeyValueCache {
    /// Checks that tokens may have these positions.
    func checkPositions(_ tokens: Range<Int>) throws(AttentionError) {
        if let length = encoding.embedding?.scaling.length, tokens.upperBound + encoding.offset > length {
            throw AttentionError(
                .cacheLimit, "keys", expected: "positions below \(length), the length that angles are fixed for",
                found: "\(tokens.upperBound + encoding.offset - 1)")
        }
        guard let angles, !tokens.isEmpty else { return }
        try angles.check(tokens.lowerBound + encoding.offset...tokens.upperBound - 1 + encoding.offset)
    }
}

extension KeyValueCache {
    /// Checks that queries may stand at these positions, which the cache's offset has moved.
    fileprivate func checkQueries(_ positions: [Int]) throws(AttentionError) {
        guard let angles, let least = positions.min(), let most = positions.max() else { return }
        if let length = encoding.embedding?.scaling.length, most >= length {
            throw AttentionError(
                .position, "places.positions",
                expected: "positions below \(length), the length that angles are fixed for", found: "\(most)")
        }
        try angles.check(least...most)
    }
}

extension CachedProblem {
    /// The tables of each cache's queries.
    static func queryTables(
        _ caches: [KeyValueCache], _ sequences: [SequencePlan]
    ) throws(AttentionError) -> [RotaryTable?] {
        guard caches.contains(where: { $0.angles != nil }) else { return [] }
        var tables = [RotaryTable?](repeating: nil, count: caches.count)
        for sequence in sequences {
            let cache = caches[sequence.item]
            guard let angles = cache.angles else { continue }
            let positions = sequence.positions.map { $0 + cache.encoding.offset }
            try cache.checkQueries(positions)
            tables[sequence.item] = try RotaryTable(angles, positions: positions, .queries)
        }
        return tables
    }

    /// Room of a worker for so many prepared queries.
    func preparedBytes(rows: Int) -> Int {
        guard caches.contains(where: { $0.preparation != nil }) else { return 0 }
        return RowPreparation.byteCount(rows: rows, dimension: shape.headDimension)
    }
}

extension CachedRun {
    /// Prepares the query rows of an item, and makes its arguments refer to them.
    func prepareQueries(of arguments: inout qattn_forward_args, _ item: CachedSchedule.Item) {
        let plan = schedule.sequences[item.sequence].plan
        let cache = problem.caches[plan.item]
        guard let preparation = cache.preparation else { return }
        let workspace = UnsafeMutableRawPointer(arguments.workspace!)
        let prepared = (workspace + ForwardSchedule.Memory.forwardBytes(problem.shape)).assumingMemoryBound(
            to: Float.self)
        let strides = arguments.query_strides
        let rowFloats = RowPreparation.stride(problem.shape.headDimension)
        var row = item.rows.lowerBound
        while row < item.rows.upperBound {
            let (head, query) = row.quotientAndRemainder(dividingBy: plan.queries)
            let end = min((head + 1) * plan.queries, item.rows.upperBound)
            let table = cache.angles.flatMap { angles in
                problem.queryTables[plan.item].map { UnsafePointer($0.address + query * angles.rowFloats) }
            }
            preparation.queries.prepare(
                arguments.queries_base + (head * strides.head + query * strides.query) * tensors.inputStorage.byteCount,
                head: item.keyValueHead * problem.groupHeads + head, stride: strides.query,
                storage: tensors.inputStorage, count: end - row, table: table,
                into: prepared + (row - item.rows.lowerBound) * rowFloats, kernels)
            row = end
        }
        // The first row of the item is the first one there.
        arguments.queries_base =
            UnsafeRawPointer(prepared) - item.rows.lowerBound * rowFloats * MemoryLayout<Float>.stride
        arguments.query_strides = qattn_strides(head: plan.queries * rowFloats, query: rowFloats, key: 0)
        arguments.query_storage = QATTN_FLOAT32
    }
}
