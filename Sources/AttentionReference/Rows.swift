// SPDX-License-Identifier: Apache-2.0
// Rows.swift - goes through the rows of a problem, and says which keys each sees.

/// All that one row's result depends on.
struct Row {
    /// Its place in [batch, queryHeads, queries].
    var index: Int
    /// [headDimension].
    var query: UnsafePointer<Float>
    /// [keys][headDimension], of the row's key/value head.
    var keys: UnsafePointer<Float>
    /// [keys][valueDimension], of the row's key/value head.
    var values: UnsafePointer<Float>
    /// The same keys and values where they are kept in int8, or nil.
    var int8: Int8Head?
    /// [keys].
    var isVisible: [Bool]
    /// The key/value head, of all batch items.
    var keyValueHead: Int
    /// [keys], or nil.
    var bias: UnsafePointer<Float>?
    /// Where the row's bias starts in the tensor.
    var biasStart: Int?
    /// The head's sink logit.
    var sink: Float
    /// What `scale` is multiplied by.
    var factor: Double
    /// The constant of the normaliser.
    var constant: Float
    /// The head's ALiBi slope, or 0.
    var slope: Float
    /// The key that ALiBi counts distances from.
    var position: Int
}

extension ReferenceProblem {
    /// Calls `body` with every row, in the order [batch, queryHeads, queries].
    func forEachRow(queries: [Float], keys: [Float], values: [Float], _ body: (Row) -> Void) {
        requireConsistency(queries, keys, values)
        let int8 =
            storage == .int8
            ? Int8Head(
                keys: Int8Rows(keys, dimension: headDimension), values: Int8Rows(values, dimension: valueDimension),
                first: 0) : nil
        let rounded = { (tensor: [Float]) in products == .bfloat16 ? tensor.map(\.roundedForProducts) : tensor }
        forEachRow(rounded(queries), rounded(keys), rounded(values), int8, bias?.values ?? [], body)
    }

    /// Arrays become pointers here, by being arguments: those of empty arrays are valid too, if never read.
    private func forEachRow(
        _ queryData: UnsafePointer<Float>, _ keyData: UnsafePointer<Float>, _ valueData: UnsafePointer<Float>,
        _ int8: Int8Head?, _ biasData: UnsafePointer<Float>, _ body: (Row) -> Void
    ) {
        for batchItem in 0..<batch {
            for head in 0..<queryHeads {
                let keyValueHead = batchItem * keyValueHeads + head / (queryHeads / keyValueHeads)
                for query in 0..<queries {
                    let index = (batchItem * queryHeads + head) * queries + query
                    let biasStart = bias?.rowStart(batch: batchItem, head: head, query: query)
                    body(
                        Row(
                            index: index,
                            query: queryData + index * headDimension,
                            keys: keyData + keyValueHead * keys * headDimension,
                            values: valueData + keyValueHead * keys * valueDimension,
                            int8: int8?.head(keyValueHead, keys: keys),
                            isVisible: visibleKeys(batch: batchItem, head: head, query: query),
                            keyValueHead: keyValueHead,
                            bias: biasStart.map { biasData + $0 },
                            biasStart: biasStart,
                            sink: sinks[head],
                            factor: rowFactors?[index] ?? 1,
                            constant: rowConstants?[index] ?? 0,
                            slope: alibiSlopes?[head] ?? 0,
                            position: place(batch: batchItem, query: query)))
                }
            }
        }
    }

    /// The number of keys that each row sees, in the order [batch, queryHeads, queries].
    public var visibleKeyCounts: [Int] {
        (0..<batch).flatMap { item in
            (0..<queryHeads).flatMap { head in
                (0..<queries).map { visibleKeys(batch: item, head: head, query: $0).count { $0 } }
            }
        }
    }

    /// The key at which a row stands.
    func place(batch batchItem: Int, query: Int) -> Int {
        if let places { return places[batchItem * queries + query] }
        return query + (padsQueries ? keys : keyLengths?[batchItem] ?? keys) - queries
    }

    /// Which keys the row sees: those within its offsets and the batch item's length that neither `allowed` nor a bias
    /// of -infinity hides. A score of -infinity hides nothing.
    func visibleKeys(batch batchItem: Int, head: Int, query: Int) -> [Bool] {
        let row = place(batch: batchItem, query: query) - (keys - queries)
        let first = firstKeyOffset.map { max(0, row + $0) } ?? 0
        let last = min(keyLengths?[batchItem] ?? keys, lastKeyOffset.map { row + $0 } ?? keys)
        let range = first..<max(first, last)
        var isVisible = [Bool](repeating: false, count: keys)
        for key in range { isVisible[key] = true }
        if let allowed {
            let start = allowed.rowStart(batch: batchItem, head: head, query: query)
            for key in range where !allowed.values[start + key] { isVisible[key] = false }
        }
        if let bias {
            let start = bias.rowStart(batch: batchItem, head: head, query: query)
            for key in range where bias.values[start + key] == -.infinity { isVisible[key] = false }
        }
        return isVisible
    }

    private func requireConsistency(_ queryData: [Float], _ keyData: [Float], _ valueData: [Float]) {
        precondition(batch >= 0 && queries >= 0 && keys >= 0, "negative size")
        precondition(headDimension >= 1 && valueDimension >= 1, "dimensions start at 1")
        precondition(queryHeads >= 0 && keyValueHeads >= 1, "heads")
        precondition(queryHeads % keyValueHeads == 0, "query heads are a multiple of key/value heads")
        precondition(Float(scale * log2e).isFinite, "scale log2(e) is finite in Float")
        precondition(sinks.count == queryHeads, "one sink per query head")
        precondition(sinks.allSatisfy { $0 * log2eFloat < .infinity }, "sink log2(e) is finite in Float or -infinity")
        precondition(queryData.count == batch * queryHeads * queries * headDimension, "count of queries")
        precondition(keyData.count == batch * keyValueHeads * keys * headDimension, "count of keys")
        precondition(valueData.count == batch * keyValueHeads * keys * valueDimension, "count of values")
        precondition(keyLengths.map { $0.count == batch && $0.allSatisfy { 0...keys ~= $0 } } ?? true, "key lengths")
        precondition((places?.count ?? batch * queries) == batch * queries, "one place per query")
        allowed?.require("allowed", toFit: self)
        bias?.require("bias", toFit: self)
        let rows = batch * queryHeads * queries
        precondition((rowFactors?.count ?? rows) == rows && (rowConstants?.count ?? rows) == rows, "one per row")
        precondition((alibiSlopes?.count ?? queryHeads) == queryHeads, "one slope per query head")
        precondition(storage == .float32 || products == .float32, "int8 has products of its own")
        precondition(softcap.map { $0 > 0 && $0 < .infinity } ?? true, "softcap")
    }
}
