// SPDX-License-Identifier: Apache-2.0
// AttentionCase+StoredGradients.swift - a training step in the case's layout and storage, for spans.

import AttentionReference
import QuietAttention

extension AttentionCase {
    /// Gradients of Float, or of the tensors' own type, [batch][heads][rows][width] and as Floats.
    public func storedGradients(
        _ inputs: AttentionInputs, _ loss: ReferenceLoss, rounded: Bool, kernels: KernelSet, threads: Int = 1
    ) throws -> AttentionGradients {
        let attention = try attention(inputs, kernels: kernels, threads: threads)
        switch storage {
        case .float32: return try step(inputs, loss, attention, { $0 }, { $0 }, { $0 })
        case .bfloat16:
            if rounded { return try step(inputs, loss, attention, BFloat16.init, BFloat16.init, Float.init) }
            return try step(inputs, loss, attention, BFloat16.init, { $0 }, { $0 })
        case .float16:
            #if os(macOS) && arch(x86_64)
                throw TestFailure("no Float16 on this platform")
            #else
                let store: (Float) -> Float16 = { Float16($0) }
                if rounded { return try step(inputs, loss, attention, store, store, { Float($0) }) }
                return try step(inputs, loss, attention, store, { $0 }, { $0 })
            #endif
        }
    }

    private func step<Scalar: AttentionScalar, Gradient: AttentionScalar>(
        _ inputs: AttentionInputs, _ loss: ReferenceLoss, _ attention: Attention, _ store: (Float) -> Scalar,
        _ begin: (Float) -> Gradient, _ widen: (Gradient) -> Float
    ) throws -> AttentionGradients {
        let q = laidOut(inputs.queries, rows: queries, width: headDimension).map(store)
        let k = laidOut(inputs.keys, rows: keys, width: headDimension).map(store)
        let v = laidOut(inputs.values, rows: keys, width: valueDimension).map(store)
        let dout = laidOut(loss.outputGradient, rows: queries, width: valueDimension).map(store)
        var output = [Scalar](repeating: store(0), count: dout.count)
        var record = ForwardRecord()
        var outputSpan = output.mutableSpan
        try attention.forward(
            queries: q.span, keys: k.span, values: v.span, into: &outputSpan, recording: &record)
        // Buffers are written whole.
        func filled(_ count: Int) -> [Gradient] { [Gradient](repeating: begin(7), count: count) }
        var (dq, dk, dv) = (filled(q.count), filled(k.count), filled(v.count))
        var sinks = [Float](repeating: 7, count: normaliser.hasSink ? queryHeads : 0)
        var dqSpan = dq.mutableSpan
        var dkSpan = dk.mutableSpan
        var dvSpan = dv.mutableSpan
        var sinkSpan = sinks.mutableSpan
        let sums = loss.logSumExpGradient ?? []
        try attention.backward(
            outputGradient: dout.span, logSumExpGradient: loss.logSumExpGradient == nil ? nil : sums.span,
            queries: q.span, keys: k.span, values: v.span, output: output.span, record: record,
            queryGradients: &dqSpan, keyGradients: &dkSpan, valueGradients: &dvSpan, sinkGradients: &sinkSpan)
        return AttentionGradients(
            queries: headsFirst(dq.map(widen), rows: queries, width: headDimension),
            keys: headsFirst(dk.map(widen), rows: keys, width: headDimension),
            values: headsFirst(dv.map(widen), rows: keys, width: valueDimension), sinks: sinks)
    }
}
