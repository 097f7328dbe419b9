// SPDX-License-Identifier: Apache-2.0
// LlamaModel+Evaluate.swift - reads tokens into conversations, and returns logits.

import CProjections
import QuietAttention

/// Which tokens get logits.
public enum LogitRows: Sendable {
    case none
    /// The last token of each conversation.
    case last
    /// All tokens, in the order of the call.
    case all
}

/// What a layer sees, for those who want to look: valid during the call alone.
public struct LayerTrace {
    public let layer: Int
    /// Of all conversations together.
    public let tokens: Int
    /// The residual stream that enters the layer, `[tokens, width]`.
    public let residual: UnsafeBufferPointer<Float>
    /// Before the rotation, `[tokens, heads, dimension]`.
    public let queries, keys, values: UnsafeBufferPointer<Float>
}

extension LlamaModel {
    /// Reads tokens into one conversation.
    public func evaluate(
        _ tokens: [Int], _ conversation: inout Conversation, logits: LogitRows = .last,
        trace: ((LayerTrace) -> Void)? = nil
    ) throws -> [Float] {
        var conversations = [conversation]
        // One owner of each page: appending to a shared one would copy it.
        conversation.caches = []
        defer { conversation = conversations[0] }
        return try evaluate([tokens], &conversations, logits: logits, trace: trace)
    }

    /// Reads tokens into several conversations at once, each of its own length.
    ///
    /// - Parameters:
    ///   - tokens: one list per conversation, each with a token or more.
    ///   - logits: which tokens get logits.
    ///   - trace: called for each layer, after queries, keys and values are computed.
    /// - Returns: `[rows, vocabulary]`.
    /// - Throws: ``AttentionError``; conversations may have read the tokens in some layers then, and ``Conversation/truncate(to:)``
    ///   brings them back.
    public func evaluate(
        _ tokens: [[Int]], _ conversations: inout [Conversation], logits: LogitRows = .last,
        trace: ((LayerTrace) -> Void)? = nil
    ) throws -> [Float] {
        precondition(tokens.count == conversations.count && tokens.allSatisfy { !$0.isEmpty })
        let start = ContinuousClock.now
        var batch = Batch(tokens)
        memory.reserve(tokens: batch.count, configuration)
        for (row, token) in tokens.joined().enumerated() {
            embedding.unpack(row: token, into: memory.residual.address + row * configuration.width)
        }
        for layer in layers.indices {
            try attend(layer, &batch, &conversations, trace)
            try feedForward(layers[layer], batch.count)
        }
        let result = try self.logits(batch.rows(logits))
        timings.total += .now - start
        timings.attention += batch.attention
        return result
    }

    /// Where the tokens of a call are.
    private struct Batch {
        /// The first row of each conversation, and the end.
        let offsets: [Int]
        var attention = Duration.zero

        init(_ tokens: [[Int]]) {
            offsets = tokens.reduce(into: [0]) { $0.append($0.last! + $1.count) }
        }

        var count: Int { offsets.last! }

        func rows(_ logits: LogitRows) -> [Int] {
            switch logits {
            case .none: []
            case .last: offsets.dropFirst().map { $0 - 1 }
            case .all: Array(0..<count)
            }
        }
    }

    private func attend(
        _ index: Int, _ batch: inout Batch, _ conversations: inout [Conversation], _ trace: ((LayerTrace) -> Void)?
    ) throws {
        let (layer, c, tokens) = (layers[index], configuration, batch.count)
        try normalise(layer.attentionNorm, tokens)
        projector.project(
            memory.normalised.address, tokens: tokens, [layer.queries, layer.keys, layer.values],
            into: [memory.queries.address, memory.keys.address, memory.values.address])
        let queries = UnsafeBufferPointer(memory.queries[count: tokens * c.queryHeads * c.headDimension])
        let keys = UnsafeBufferPointer(memory.keys[count: tokens * c.keyValueHeads * c.headDimension])
        let values = UnsafeBufferPointer(memory.values[count: keys.count])
        trace?(
            LayerTrace(
                layer: index, tokens: tokens, residual: UnsafeBufferPointer(memory.residual[count: tokens * c.width]),
                queries: queries, keys: keys, values: values))
        let start = ContinuousClock.now
        let row = c.keyValueHeads * c.headDimension
        for item in conversations.indices {
            let part = batch.offsets[item] * row..<batch.offsets[item + 1] * row
            try conversations[item].caches[index].append(
                keys: UnsafeBufferPointer(rebasing: keys[part]), values: UnsafeBufferPointer(rebasing: values[part]))
        }
        try layer.attention.attend(
            queries: queries, caches: conversations.map { $0.caches[index] }, queryOffsets: batch.offsets,
            into: memory.mixed[count: queries.count])
        batch.attention += .now - start
        projector.project(memory.mixed.address, tokens: tokens, [layer.output], into: [memory.change.address])
        addChange(tokens)
    }

    private func feedForward(_ layer: Layer, _ tokens: Int) throws {
        try normalise(layer.feedForwardNorm, tokens)
        projector.project(
            memory.normalised.address, tokens: tokens, [layer.gate, layer.up],
            into: [memory.gate.address, memory.up.address])
        lm_swiglu(
            memory.gate.address, memory.up.address, memory.gate.address, Int32(tokens * configuration.feedForwardWidth))
        projector.project(memory.gate.address, tokens: tokens, [layer.down], into: [memory.change.address])
        addChange(tokens)
    }

    private func normalise(_ norm: RMSNorm, _ tokens: Int) throws {
        let count = tokens * configuration.width
        memory.normalised.address.update(from: memory.residual.address, count: count)
        var rows = memory.normalised[count: count].mutableSpan
        try norm.apply(to: &rows)
    }

    private func addChange(_ tokens: Int) {
        let (residual, change) = (memory.residual.address, memory.change.address)
        for index in 0..<tokens * configuration.width { residual[index] += change[index] }
    }

    /// The logits of rows of the residual stream.
    private func logits(_ rows: [Int]) throws -> [Float] {
        guard !rows.isEmpty else { return [] }
        let (width, vocabulary) = (configuration.width, configuration.vocabulary)
        for (index, row) in rows.enumerated() {
            (memory.normalised.address + index * width).update(
                from: memory.residual.address + row * width, count: width)
        }
        var normalised = memory.normalised[count: rows.count * width].mutableSpan
        try outputNorm.apply(to: &normalised)
        let stride = head.matrix.panelCount * Int(LM_PANEL_ROWS)
        memory.logits.reserve(rows.count * stride)
        projector.project(memory.normalised.address, tokens: rows.count, [head], into: [memory.logits.address])
        return [Float](unsafeUninitializedCapacity: rows.count * vocabulary) { buffer, count in
            for row in rows.indices {
                (buffer.baseAddress! + row * vocabulary).initialize(
                    from: memory.logits.address + row * stride, count: vocabulary)
            }
            count = rows.count * vocabulary
        }
    }
}
