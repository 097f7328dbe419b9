// SPDX-License-Identifier: Apache-2.0
// AttentionCase.swift - one attention problem as a handful of numbers and choices, and the data made from them.

import AttentionReference
import Foundation
import SeededInputs

/// A problem small enough to print; ``inputs`` makes its data, always the same.
public struct AttentionCase: Hashable, Sendable {
    public var batch = 1
    public var keyValueHeads = 1
    /// Query heads per key/value head.
    public var group = 1
    public var queries: Int
    public var keys: Int
    public var headDimension: Int
    public var valueDimension: Int
    public var family = InputFamily.unitNormal
    public var sink = SinkChoice.one
    public var scale = ScaleChoice.standard
    public var geometry = Geometry.none
    public var keyLengths = LengthChoice.none
    /// Whether queries are padded as keys are, and so do not move with key lengths.
    public var padsQueries = false
    public var allowed = AllowedChoice.none
    public var bias = BiasChoice.none
    public var broadcast = Broadcast.none
    public var layout = LayoutChoice.headsFirst
    public var storage = StorageChoice.float32
    public var scaling = ScalingChoice.none
    public var softcap: Double?
    public var hasALiBi = false
    public var normaliser = NormaliserChoice.softmax
    public var products = ReferenceProducts.float32
    public var seed: UInt64 = 1

    public init(
        queries: Int, keys: Int, headDimension: Int, valueDimension: Int? = nil,
        _ change: (inout Self) -> Void = { _ in }
    ) {
        self.queries = queries
        self.keys = keys
        self.headDimension = headDimension
        self.valueDimension = valueDimension ?? headDimension
        change(&self)
    }

    public var queryHeads: Int { keyValueHeads * group }

    /// Sinks that a wrong sum shows: dropped, added twice, scaled, left out of the maximum.
    public enum SinkChoice: Hashable, Sendable {
        /// No sink: softmax.
        case none
        /// Sink 0: softmax_1.
        case one
        /// softmax_n, `n = quarters / 4`.
        case count(quarters: Int)
        /// One logit per query head: amid the scores, 200 above, 200 below, or those and -inf in turn.
        case amid, farAbove, farBelow, mixed
    }

    public enum ScaleChoice: String, Hashable, Sendable, CaseIterable {
        case standard, one, zero, negative
    }

    public enum Geometry: Hashable, Sendable {
        case none, causal
        /// The last `width` keys, itself included; no key after the row's own.
        case window(Int)
        /// From `before` keys before the row's own to `after` behind it; nil is no bound.
        case around(before: Int?, after: Int?)
    }

    public enum LengthChoice: String, Hashable, Sendable, CaseIterable { case none, full, partial, zeroFirst }

    public enum AllowedChoice: String, Hashable, Sendable, CaseIterable {
        case none, all, random, sparse, nothing, rowsWithout, blocksWithout
    }

    public enum BiasChoice: String, Hashable, Sendable, CaseIterable {
        case none, normal, large, excluding, notANumber
    }

    /// Which axes of mask and bias have an extent of 1.
    public enum Broadcast: String, Hashable, Sendable, CaseIterable {
        case none, batch, batchAndHeads, allButKeys, heads, queries

        var sharesBatch: Bool { [.batch, .batchAndHeads, .allButKeys].contains(self) }
        var sharesHeads: Bool { [.heads, .batchAndHeads, .allButKeys].contains(self) }
        var sharesQueries: Bool { [.queries, .allButKeys].contains(self) }
    }

    public enum LayoutChoice: String, Hashable, Sendable, CaseIterable { case headsFirst, sequenceFirst }

    /// Factors of rows: by formulas, or one each.
    public enum ScalingChoice: String, Hashable, Sendable, CaseIterable {
        case none, clippedLogKeys, logKeys, logKeysPerDimension, scalableSoftmax, table
    }

    public enum NormaliserChoice: String, Hashable, Sendable, CaseIterable {
        case softmax, softmaxLogKeys, clipped, clippedOverKeys, sigmoid, sigmoidOverKeys, softpick, reluSquared,
            reluSquaredOverKeys, normalisedReluSquared, quietReluSquared

        /// Whether the case's sink counts.
        public var hasSink: Bool { [.softmax, .softmaxLogKeys, .clipped, .clippedOverKeys].contains(self) }
    }

    public enum StorageChoice: String, Hashable, Sendable, CaseIterable { case float32, float16, bfloat16 }
}

extension AttentionCase: CustomStringConvertible {
    /// Everything that is not as usual, so that names of tests stay readable.
    public var description: String {
        var words = ["b\(batch) h\(queryHeads)/\(keyValueHeads) \(queries)x\(keys) d\(headDimension)"]
        if valueDimension != headDimension { words.append("dv\(valueDimension)") }
        words.append("\(family)")
        words.append("sink \(sink)")
        if geometry != .none { words.append("\(geometry)") }
        if scale != .standard { words.append("scale \(scale)") }
        if keyLengths != .none { words.append("lengths \(keyLengths)\(padsQueries ? " of queries, too" : "")") }
        if allowed != .none { words.append("allowed \(allowed)") }
        if bias != .none { words.append("bias \(bias)") }
        if broadcast != .none { words.append("broadcast \(broadcast)") }
        if layout != .headsFirst { words.append("\(layout)") }
        if storage != .float32 { words.append("\(storage)") }
        if scaling != .none { words.append("scaling \(scaling)") }
        if let softcap { words.append("softcap \(softcap)") }
        if hasALiBi { words.append("ALiBi") }
        if normaliser != .softmax { words.append("\(normaliser)") }
        if products != .float32 { words.append("products \(products)") }
        words.append("seed \(seed)")
        return words.joined(separator: ", ")
    }
}

extension AttentionCase {
    public var scaleValue: Double {
        switch scale {
        case .standard: 1 / Double(headDimension).squareRoot()
        case .one: 1
        case .zero: 0
        case .negative: -0.75 / Double(headDimension).squareRoot()
        }
    }

    public var inputs: AttentionInputs {
        var generator = SeededGenerator(seed: seed)
        var queryData = generator.normals(batch * queryHeads * queries * headDimension)
        var keyData = generator.normals(batch * keyValueHeads * keys * headDimension)
        var valueData = generator.normals(batch * keyValueHeads * keys * valueDimension)
        family.shape(
            queries: &queryData, keys: &keyData, values: &valueData, queryCount: queries, keyCount: keys,
            headDimension: headDimension, valueDimension: valueDimension, using: &generator)
        let extents = [
            broadcast.sharesBatch ? 1 : batch, broadcast.sharesHeads ? 1 : queryHeads,
            broadcast.sharesQueries ? 1 : queries, keys,
        ]
        let lengths = lengthValues(&generator)
        let allowedValues = allowedValues(extents, &generator)
        let biasValues = biasValues(extents, &generator)
        return AttentionInputs(
            queries: stored(queryData), keys: stored(keyData), values: stored(valueData),
            sinks: sinkValues(), scale: scaleValue, keyLengths: lengths,
            allowed: allowedValues.map { ($0, extents) }, bias: biasValues.map { ($0, extents) })
    }

    private func sinkValues() -> [Float] {
        (0..<queryHeads).map { head in
            switch sink {
            case .none: -.infinity
            case .one: 0
            case .count(let quarters): Float(log(Double(quarters) / 4))
            case .amid: 1.25 + 0.5 * Float(head % 5)
            case .farAbove: 200 + Float(head)
            case .farBelow: -200 - Float(head)
            case .mixed: [-Float.infinity, 3.5, 0, 150, -150, 0.25][head % 6]
            }
        }
    }

    private func lengthValues(_ generator: inout SeededGenerator) -> [Int]? {
        switch keyLengths {
        case .none: nil
        case .full: [Int](repeating: keys, count: batch)
        case .partial: (0..<batch).map { _ in generator.next(in: 0...keys) }
        case .zeroFirst: (0..<batch).map { $0 == 0 ? 0 : max(0, keys - $0) }
        }
    }

    private func allowedValues(_ extents: [Int], _ generator: inout SeededGenerator) -> [Bool]? {
        if allowed == .none { return nil }
        return (0..<extents.reduce(1, *)).map { index in
            let (key, row) = (index % max(1, keys), index / max(1, keys))
            return switch allowed {
            case .none, .all: true
            case .nothing: false
            case .random: generator.next() % 2 == 0
            case .sparse: generator.next() % 37 == 0
            case .rowsWithout: row % 3 != 0 && generator.next() % 4 != 0
            case .blocksWithout: (key / 64 + row) % 2 == 0 && generator.next() % 8 != 0
            }
        }
    }

    private func biasValues(_ extents: [Int], _ generator: inout SeededGenerator) -> [Float]? {
        if bias == .none { return nil }
        let noise = generator.normals(extents.reduce(1, *))
        return noise.indices.map { index in
            let (key, row) = (index % max(1, keys), index / max(1, keys))
            return switch bias {
            case .none, .normal: noise[index]
            case .large: noise[index] * 150
            case .excluding:
                row % 4 == 1 || (key / 64 + row) % 3 == 0 || generator.next() % 3 == 0 ? -.infinity : noise[index]
            case .notANumber: row % 5 == 2 && key == keys / 2 ? .nan : noise[index]
            }
        }
    }

    private func stored(_ data: [Float]) -> [Float] {
        switch storage {
        case .float32: data
        case .bfloat16: data.map { Float(bitPattern: $0.bitPattern & 0xffff_0000) }
        case .float16: data.map(roundedToFloat16)
        }
    }
}

#if os(macOS) && arch(x86_64)
    /// Float16 does not exist here, so cases with that storage are not run.
    private func roundedToFloat16(_ value: Float) -> Float { value }
#else
    private func roundedToFloat16(_ value: Float) -> Float { Float(Float16(value)) }
#endif
