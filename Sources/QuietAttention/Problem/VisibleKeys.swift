// SPDX-License-Identifier: Apache-2.0
// VisibleKeys.swift - how many keys each row sees, by every mask.

/// The number n of keys that each row sees. Sinks are not keys.
struct VisibleKeys {
    private let shape: AttentionShape
    /// By batch item, or one for all.
    private let plans: [SequencePlan?]
    private let allowed: BroadcastTensor<Bool>?
    private let bias: BroadcastTensor<Float>?

    init(
        _ shape: AttentionShape, plans: [SequencePlan], isUniform: Bool, allowed: BroadcastTensor<Bool>?,
        bias: BroadcastTensor<Float>?
    ) {
        self.shape = shape
        self.allowed = allowed
        self.bias = bias
        if isUniform {
            self.plans = [plans.first]
        } else {
            var byItem = [SequencePlan?](repeating: nil, count: shape.batch)
            for plan in plans { byItem[plan.item] = plan }
            self.plans = byItem
        }
    }

    /// Rows that may differ, and where their numbers are kept.
    struct Rows {
        let batch, heads, queries: Int
        var count: Int { batch * heads * queries }
        var strides: BroadcastTensor<Double>.Strides {
            .init(
                batch: batch == 1 ? 0 : heads * queries, heads: heads == 1 ? 0 : queries, queries: queries == 1 ? 0 : 1,
                keys: 0)
        }

        init(batch: Int, heads: Int, queries: Int) {
            (self.batch, self.heads, self.queries) = (batch, heads, queries)
        }

        /// Where nothing depends on the keys that a row sees: those of a table, or a single one for all.
        init(of scaling: ScoreScaling, _ shape: AttentionShape) {
            guard case .table(let table) = scaling else {
                self.init(batch: 1, heads: 1, queries: 1)
                return
            }
            let extents = table.extents
            self.init(
                batch: extents.batch == 1 ? 1 : shape.batch, heads: extents.heads == 1 ? 1 : shape.queryHeads,
                queries: extents.queries == 1 ? 1 : shape.queries)
        }

        /// The row whose numbers are kept at an index.
        subscript(index: Int) -> (item: Int, head: Int, query: Int) {
            (index / queries / heads, index / queries % heads, index % queries)
        }
    }

    /// The rows whose n or whose factor may differ.
    func rows(of scaling: ScoreScaling) -> Rows {
        var (batch, heads) = (plans.count > 1 ? shape.batch : 1, scaling.isPerHead ? shape.queryHeads : 1)
        func cover(_ extents: (batch: Int, heads: Int)?) {
            if let extents, extents.batch > 1 { batch = shape.batch }
            if let extents, extents.heads > 1 { heads = shape.queryHeads }
        }
        cover(allowed.map { ($0.extents.batch, $0.extents.heads) })
        cover(bias.map { ($0.extents.batch, $0.extents.heads) })
        if case .table(let table) = scaling { cover((table.extents.batch, table.extents.heads)) }
        return Rows(batch: batch, heads: heads, queries: shape.queries)
    }

    /// n of a row.
    func count(item: Int, head: Int, query: Int) -> Int {
        guard let plan = plans[plans.count == 1 ? 0 : item], query < plan.queries else { return 0 }
        if let counts = plan.keyCounts { return counts[query] }
        let first = max(0, plan.place(query) + plan.firstKeyOffset)
        let last = min(plan.keys, plan.place(query) + plan.lastKeyOffset)
        guard first < last else { return 0 }
        if allowed == nil, bias == nil { return last - first }
        return (first..<last).count { key in
            let key = key + plan.keyOrigin
            if let allowed, !allowed.entry(item, head, query, key) { return false }
            if let bias, bias.entry(item, head, query, key) == -.infinity { return false }
            return true
        }
    }
}

extension BroadcastTensor {
    fileprivate func entry(_ item: Int, _ head: Int, _ query: Int, _ key: Int) -> Element {
        values[item * strides.batch + head * strides.heads + query * strides.queries + key * strides.keys]
    }
}
