// SPDX-License-Identifier: Apache-2.0
// EvaluationMemory.swift - the tensors between the steps of a layer, kept from call to call.

/// Floats, of which there are always enough.
final class FloatBuffer {
    private(set) var address: UnsafeMutablePointer<Float>
    private var capacity = 0

    init() { address = UnsafeMutablePointer<Float>.allocate(capacity: 1) }
    deinit { address.deallocate() }

    func reserve(_ count: Int) {
        guard count > capacity else { return }
        address.deallocate()
        address = UnsafeMutablePointer<Float>.allocate(capacity: count)
        address.initialize(repeating: 0, count: count)
        capacity = count
    }

    subscript(count count: Int) -> UnsafeMutableBufferPointer<Float> {
        UnsafeMutableBufferPointer(start: address, count: count)
    }
}

/// The tensors of a layer, `[tokens, ...]`.
final class EvaluationMemory {
    let residual = FloatBuffer()
    let normalised = FloatBuffer()
    let queries = FloatBuffer()
    let keys = FloatBuffer()
    let values = FloatBuffer()
    let mixed = FloatBuffer()
    let gate = FloatBuffer()
    let up = FloatBuffer()
    let change = FloatBuffer()
    let logits = FloatBuffer()

    func reserve(tokens: Int, _ configuration: LlamaConfiguration) {
        let c = configuration
        for buffer in [residual, normalised, change] { buffer.reserve(tokens * c.width) }
        for buffer in [queries, mixed] { buffer.reserve(tokens * c.queryHeads * c.headDimension) }
        for buffer in [keys, values] { buffer.reserve(tokens * c.keyValueHeads * c.headDimension) }
        for buffer in [gate, up] { buffer.reserve(tokens * c.feedForwardWidth) }
    }
}

/// Where time went.
public struct EvaluationTimings: Sendable {
    /// Of all calls, and of attention within them, caches included.
    public internal(set) var total, attention: Duration

    init() { (total, attention) = (.zero, .zero) }

    /// Attention's share of the time, 0...1.
    public var attentionShare: Double { total == .zero ? 0 : attention / total }
}
