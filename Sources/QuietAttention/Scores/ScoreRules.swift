// SPDX-License-Identifier: Apache-2.0
// ScoreRules.swift - how the products of queries and keys become weights, said once.

/// How the products of queries and keys become weights, apart from masks and bias: one value for ``Attention`` and
/// ``CachedAttention``, so that training, prefill and decoding of a model share it.
///
///     let rules = ScoreRules(sink: .logits(sinks), softcap: 50)
///     let prefill = try Attention(shape, rules: rules, mask: .causal)
///     let decode = try CachedAttention(queryHeads: 32, rules: rules)
///
/// A score passes through the members in this order, where f is the row's factor of ``scaling`` and m the slope of ``alibi``:
///
///     x = scale f q.k,    x = softcap tanh(x / softcap),    x = x - m |i - j|,    p = normaliser(x, sink)
///
/// What makes no sense together is refused by whoever takes the rules.
public struct ScoreRules: Sendable {
    /// The logit, per query head, of weight that goes to no key.
    public var sink: AttentionSink
    /// What scores are multiplied by, of either sign; nil: 1 / sqrt(headDimension).
    public var scale: Double?
    /// What the scale is multiplied by, row by row.
    public var scaling: ScoreScaling
    /// The bound of scores, before ALiBi and bias; nil: none.
    public var softcap: Double?
    /// The slopes by which scores fall with distance; nil: none.
    public var alibi: ALiBi?
    /// How scores become weights.
    public var normaliser: AttentionNormaliser

    /// - Parameters:
    ///   - sink: the logit, per query head, of weight that goes to no key. There is no default, since a wrong one is silent:
    ///     `.softmax` for models trained without a sink (Llama, Qwen, BERT ...) and for normalisers that have none,
    ///     `.softmax1` for softmax_1, `.logits` for learned sinks (gpt-oss).
    ///   - scale: what scores are multiplied by, of either sign; nil: 1 / sqrt(headDimension).
    ///   - scaling: what the scale is multiplied by, row by row.
    ///   - softcap: scores become `softcap * tanh(score / softcap)`, before ALiBi and bias; nil: they stay.
    ///   - alibi: linear biases; nil: none.
    ///   - normaliser: how scores become weights.
    public init(
        sink: AttentionSink, scale: Double? = nil, scaling: ScoreScaling = .constant, softcap: Double? = nil,
        alibi: ALiBi? = nil, normaliser: AttentionNormaliser = .softmax
    ) {
        (self.sink, self.scale, self.scaling) = (sink, scale, scaling)
        (self.softcap, self.alibi, self.normaliser) = (softcap, alibi, normaliser)
    }
}
