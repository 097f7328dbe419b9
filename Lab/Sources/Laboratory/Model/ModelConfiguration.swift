// SPDX-License-Identifier: Apache-2.0
// ModelConfiguration.swift - what a model is made of. Every field has a default; a JSON file may leave any out.

import QuietAttention

public struct ModelConfiguration: Codable, Sendable, Equatable {
    public enum NormKind: String, Codable, Sendable { case rms, layer }
    public enum Placement: String, Codable, Sendable { case pre, post }
    public enum Activation: String, Codable, Sendable { case relu, gelu, swiglu }
    public enum SinkKind: String, Codable, Sendable { case softmax, softmax1, learned, logKeys }
    public enum GateKind: String, Codable, Sendable { case none, head, element }
    public enum Scaling: String, Codable, Sendable { case constant, logKeys, clippedLogKeys, scalable }
    public enum Positions: String, Codable, Sendable { case none, rotary, collinearStrict, collinearSlack, alibi }
    public enum Initialisation: String, Codable, Sendable { case normal, xavier }
    public enum Products: String, Codable, Sendable { case float32, bfloat16 }

    public var vocabulary = 256
    public var dimension = 64
    public var layers = 2
    public var heads = 4
    public var keyValueHeads = 4
    /// Of the feed-forward layer; 0: there is none.
    public var hidden = 256
    public var activation = Activation.gelu
    public var norm = NormKind.rms
    /// `x + f(norm x)`, or `norm(x + f(x))`.
    public var placement = Placement.pre
    public var causal = true
    public var sink = SinkKind.softmax
    /// The gamma of clipped softmax, 0 or less; nil: not clipped.
    public var clipGamma: Double?
    public var gate = GateKind.none
    public var positions = Positions.rotary
    /// Of dynamic NTK; nil: angles as in training.
    public var ntkFactor: Double?
    public var scaling = Scaling.constant
    /// What scores are multiplied by; nil: 1 / sqrt(d).
    public var scale: Double?
    /// The base of log n, and the length beyond which dynamic NTK sets in.
    public var trainedLength = 64
    public var queryKeyNorm = false
    /// Which numbers attention multiplies, forward and backward; all other products are of Float.
    public var products = Products.float32
    public var initialisation = Initialisation.normal
    /// The standard deviation of normal weights; for Xavier the gain.
    public var deviation = 0.02

    public init() {}

    public var headDimension: Int { dimension / heads }

    /// The s of scalable softmax at first: 1 at the trained length.
    var scalableStart: Double { 1 / naturalLogarithm(Double(trainedLength)) }

    /// How the library turns queries and keys.
    var rotation: AttentionPositions {
        let embedding = RotaryEmbedding(
            scaling: ntkFactor.map { .dynamic(factor: $0, trainedLength: trainedLength) } ?? .none)
        return switch positions {
        case .none, .alibi: .none
        case .rotary: .rotary(embedding)
        case .collinearStrict: .collinear(.strict, embedding)
        case .collinearSlack: .collinear(.slack, embedding)
        }
    }

    /// Checks what the library does not.
    public func check() throws {
        for (name, value) in [
            ("vocabulary", vocabulary), ("dimension", dimension), ("heads", heads), ("keyValueHeads", keyValueHeads),
        ] where value < 1 { throw LabError("\(name): expected 1 or more, got \(value)") }
        for (name, value) in [("layers", layers), ("hidden", hidden)] where value < 0 {
            throw LabError("\(name): expected 0 or more, got \(value)")
        }
        guard dimension % heads == 0 else {
            throw LabError("dimension: expected a multiple of the \(heads) heads, got \(dimension)")
        }
        guard heads % keyValueHeads == 0 else {
            throw LabError("heads: expected a multiple of the \(keyValueHeads) key heads, got \(heads)")
        }
        guard trainedLength >= 2 else { throw LabError("trainedLength: expected 2 or more, got \(trainedLength)") }
        guard deviation >= 0, deviation.isFinite else {
            throw LabError("deviation: expected a finite number, 0 or more, got \(deviation)")
        }
    }
}

extension ModelConfiguration {
    /// Fields that are left out keep their defaults; an unknown field is an error, for it is a misspelt one.
    public init(from decoder: any Decoder) throws {
        self.init()
        let fields = try decoder.container(keyedBy: AnyKey.self)
        let known = Set(CodingKeys.allCases.map(\.rawValue))
        for key in fields.allKeys where !known.contains(key.stringValue) {
            throw LabError("the model has no field \(key.stringValue)")
        }
        let c = try decoder.container(keyedBy: CodingKeys.self)
        func read<Value: Decodable>(_ key: CodingKeys, _ value: inout Value) throws {
            if let found = try c.decodeIfPresent(Value.self, forKey: key) { value = found }
        }
        try read(.vocabulary, &vocabulary)
        try read(.dimension, &dimension)
        try read(.layers, &layers)
        try read(.heads, &heads)
        try read(.keyValueHeads, &keyValueHeads)
        try read(.hidden, &hidden)
        try read(.activation, &activation)
        try read(.norm, &norm)
        try read(.placement, &placement)
        try read(.causal, &causal)
        try read(.sink, &sink)
        clipGamma = try c.decodeIfPresent(Double.self, forKey: .clipGamma)
        try read(.gate, &gate)
        try read(.positions, &positions)
        ntkFactor = try c.decodeIfPresent(Double.self, forKey: .ntkFactor)
        try read(.scaling, &scaling)
        scale = try c.decodeIfPresent(Double.self, forKey: .scale)
        try read(.trainedLength, &trainedLength)
        try read(.queryKeyNorm, &queryKeyNorm)
        try read(.products, &products)
        try read(.initialisation, &initialisation)
        try read(.deviation, &deviation)
    }

    enum CodingKeys: String, CodingKey, CaseIterable {
        case vocabulary, dimension, layers, heads, keyValueHeads, hidden, activation, norm, placement, causal, sink
        case clipGamma, gate, positions, ntkFactor, scaling, scale, trainedLength, queryKeyNorm, products
        case initialisation, deviation
    }

    private struct AnyKey: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }
}
