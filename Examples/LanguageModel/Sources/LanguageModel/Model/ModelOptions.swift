// SPDX-License-Identifier: Apache-2.0
// ModelOptions.swift - how a model is run: threads, projections, what attention does differently from training.

import QuietAttention

/// How a model is run.
public struct ModelOptions: Sendable {
    /// More threads than these are not started.
    public static let mostThreads = 4096

    public var threads: Int
    public var projections: ProjectionMethod
    /// The kernels of the exact projections, of ``LlamaModel/projectionKernels``; nil: the best.
    public var projectionKernels: String?
    /// The kernels of attention, norms and caches; nil: the best.
    public var kernels: KernelSet?
    /// How keys and values are stored.
    public var cache: KeyValueCache.Storage
    /// How the rotary embedding is stretched to longer texts than those of training.
    public var rotaryScaling: RotaryEmbedding.Scaling
    /// The factor of scores, row by row.
    public var scoreScaling: ScoreScaling
    /// The sink of the layers in ``sinkLayers``; all others have plain softmax.
    public var sink: AttentionSink
    /// nil: all.
    public var sinkLayers: Set<Int>?

    /// As the model was trained.
    public init(threads: Int = 1, projections: ProjectionMethod = .exact) {
        (self.threads, self.projections) = (threads, projections)
        (cache, rotaryScaling, scoreScaling, sink) = (.float32, .none, .constant, .softmax)
    }
}
