// SPDX-License-Identifier: Apache-2.0
// AttentionCase+API.swift - runs a case through the public API.

import QuietAttention

extension AttentionCase {
    /// With more than one thread the work is spread over all of them, however little it is.
    public func attention(
        _ inputs: AttentionInputs, positions: AttentionPositions = .none, queryKeyNorm: QueryKeyNorm? = nil,
        kernels: KernelSet, threads: Int = 1
    ) throws -> Attention {
        let shape = try AttentionShape(
            batch: batch, queryHeads: queryHeads, keyValueHeads: keyValueHeads, queries: queries, keys: keys,
            headDimension: headDimension, valueDimension: valueDimension)
        return try Attention(
            shape,
            rules: ScoreRules(
                sink: normaliser.hasSink ? attentionSink(inputs) : .softmax,
                scale: scale == .standard ? nil : inputs.scale, scaling: try attentionScaling, softcap: softcap,
                alibi: hasALiBi ? .standard : nil, normaliser: attentionNormaliser),
            mask: try mask(inputs),
            bias: try inputs.bias.map { try broadcastTensor($0.values, $0.extents) },
            positions: positions, queryKeyNorm: queryKeyNorm,
            products: products == .float32 ? .float32 : .bfloat16,
            layout: layout == .headsFirst ? .batchHeadsSequence : .batchSequenceHeads, threads: threads,
            kernels: kernels, workspace: nil, nanosecondsPerWorker: 1e-9)
    }

    /// The named sinks by their name, so that each way of giving a sink is used.
    private func attentionSink(_ inputs: AttentionInputs) -> AttentionSink {
        if normaliser == .softmaxLogKeys { return .logKeys(offset: Self.logKeysOffset) }
        return switch sink {
        case .none: .softmax
        case .one: .softmax1
        case .count(let quarters): .softmaxN(Double(quarters) / 4)
        case .amid, .farAbove, .farBelow, .mixed: .logits(inputs.sinks)
        }
    }

    private func mask(_ inputs: AttentionInputs) throws -> AttentionMask {
        var mask: AttentionMask =
            switch geometry {
            case .none: .none
            case .causal: .causal
            case .window(let width): .window(width)
            case .around(let before, let after): .window(before: before, after: after)
            }
        if let lengths = inputs.keyLengths {
            mask = mask.keyLengths(lengths, padding: padsQueries ? .queriesAndKeys : .keys)
        }
        if let allowed = inputs.allowed {
            mask = mask.allowing(try broadcastTensor(allowed.values, allowed.extents))
        }
        return mask
    }

    private func broadcastTensor<Element: Sendable>(
        _ values: [Element], _ extents: [Int]
    ) throws -> BroadcastTensor<Element> {
        try BroadcastTensor(values, batch: extents[0], heads: extents[1], queries: extents[2], keys: extents[3])
    }

    /// All outputs, in [batch][heads][queries] order whatever the layout.
    public func run(_ inputs: AttentionInputs, kernels: KernelSet, threads: Int = 1) throws -> AttentionOutputs {
        try run(inputs, try attention(inputs, kernels: kernels, threads: threads))
    }

    public func run(_ inputs: AttentionInputs, _ attention: Attention) throws -> AttentionOutputs {
        switch storage {
        case .float32:
            let result = try attention.forward(
                queries: laidOut(inputs.queries, rows: queries, width: headDimension),
                keys: laidOut(inputs.keys, rows: keys, width: headDimension),
                values: laidOut(inputs.values, rows: keys, width: valueDimension))
            let none = [Float](repeating: 0, count: rowCount)
            return AttentionOutputs(
                output: headsFirst(result.output), logSumExp: normaliser.hasSink ? result.logSumExp : none,
                sinkShare: normaliser.hasSink ? result.sinkShare : none)
        case .bfloat16: return try run(inputs, attention, BFloat16.init)
        case .float16:
            #if os(macOS) && arch(x86_64)
                throw TestFailure("no Float16 on this platform")
            #else
                return try run(inputs, attention) { Float16($0) }
            #endif
        }
    }

    /// The diagnostics of all rows, of inputs in Float.
    public func diagnostics(
        _ inputs: AttentionInputs, _ attention: Attention, epsilon: Double, leadingKeys: Int = 1
    ) throws -> [RowDiagnostics] {
        try attention.diagnostics(
            queries: laidOut(inputs.queries, rows: queries, width: headDimension),
            keys: laidOut(inputs.keys, rows: keys, width: headDimension), epsilon: epsilon, leadingKeys: leadingKeys)
    }

    private func run<Scalar: AttentionScalar>(
        _ inputs: AttentionInputs, _ attention: Attention, _ convert: (Float) -> Scalar
    ) throws -> AttentionOutputs {
        let queryData = laidOut(inputs.queries, rows: queries, width: headDimension).map(convert)
        let keyData = laidOut(inputs.keys, rows: keys, width: headDimension).map(convert)
        let valueData = laidOut(inputs.values, rows: keys, width: valueDimension).map(convert)
        let rows = batch * queryHeads * queries
        var output = [Float](repeating: .nan, count: rows * valueDimension)
        if !normaliser.hasSink {
            var outputSpan = output.mutableSpan
            try attention.forward(
                queries: queryData.span, keys: keyData.span, values: valueData.span, into: &outputSpan)
            let none = [Float](repeating: 0, count: rows)
            return AttentionOutputs(output: headsFirst(output), logSumExp: none, sinkShare: none)
        }
        var logSumExp = [Float](repeating: .nan, count: rows)
        var sinkShare = logSumExp
        var outputSpan = output.mutableSpan
        var logSumExpSpan = logSumExp.mutableSpan
        var sinkShareSpan = sinkShare.mutableSpan
        try attention.forward(
            queries: queryData.span, keys: keyData.span, values: valueData.span, into: &outputSpan,
            logSumExp: &logSumExpSpan, sinkShare: &sinkShareSpan)
        return AttentionOutputs(output: headsFirst(output), logSumExp: logSumExp, sinkShare: sinkShare)
    }

    /// [batch][heads][rows][width] in the case's layout.
    public func laidOut(_ tensor: [Float], rows: Int, width: Int) -> [Float] {
        let heads = batch * rows * width == 0 ? 0 : tensor.count / (batch * rows * width)
        return layout == .headsFirst ? tensor : exchanged(tensor, batch, heads, rows, width)
    }

    /// The output in [batch][heads][rows][width].
    private func headsFirst(_ output: [Float]) -> [Float] {
        headsFirst(output, rows: queries, width: valueDimension)
    }

    /// A tensor in the case's layout as [batch][heads][rows][width].
    func headsFirst(_ tensor: [Float], rows: Int, width: Int) -> [Float] {
        let heads = batch * rows * width == 0 ? 0 : tensor.count / (batch * rows * width)
        return layout == .headsFirst ? tensor : exchanged(tensor, batch, rows, heads, width)
    }
}

/// [batch][first][second][width] as [batch][second][first][width].
private func exchanged(_ tensor: [Float], _ batch: Int, _ first: Int, _ second: Int, _ width: Int) -> [Float] {
    var result: [Float] = []
    result.reserveCapacity(tensor.count)
    for item in 0..<batch {
        for inner in 0..<second {
            for outer in 0..<first {
                result += tensor.rows((item * first + outer) * second + inner, 1, width)
            }
        }
    }
    return result
}

extension AttentionNormaliser {
    /// softmax_1, or no sink where the normaliser has none.
    public var usualSink: AttentionSink { hasSink ? .softmax1 : .softmax }
}
