// SPDX-License-Identifier: Apache-2.0
// GridShape.swift - the shapes of Benchmarks/shapes.json, which benchmarks, peers and tests share.

import Foundation

/// One shape worth timing. What the file leaves out has the value a plain self-attention has.
public struct GridShape: Sendable, Hashable, CustomStringConvertible {
    public enum Mask: Sendable, Hashable {
        case none, causal
        case window(Int)
    }

    public var name: String
    public var batch = 1
    public var queryHeads: Int
    public var keyValueHeads: Int
    public var queries: Int
    public var keys: Int
    public var headDimension: Int
    public var valueDimension: Int
    public var mask = Mask.none
    /// One seeded logit per query head instead of softmax_1.
    public var learnedSinks = false
    /// Keys of each batch item that are not padding; nil: all.
    public var keyLengths: [Int]?
    /// Lengths of a packed batch; nil: the batch is not packed.
    public var sequences: [Int]?

    public var description: String { name }

    /// The shapes in the file, in its order.
    public static func load(from file: URL) throws -> [GridShape] {
        struct Shapes: Decodable { let shapes: [GridShape] }
        return try JSONDecoder().decode(Shapes.self, from: Data(contentsOf: file)).shapes
    }
}

extension GridShape: Decodable {
    private enum CodingKeys: String, CodingKey {
        case name, batch, queryHeads, keyValueHeads, queries, keys, headDimension, valueDimension
        case mask, sink, keyLengths, sequences
    }

    public init(from decoder: any Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        name = try fields.decode(String.self, forKey: .name)
        batch = try fields.decodeIfPresent(Int.self, forKey: .batch) ?? 1
        queryHeads = try fields.decode(Int.self, forKey: .queryHeads)
        keyValueHeads = try fields.decodeIfPresent(Int.self, forKey: .keyValueHeads) ?? queryHeads
        headDimension = try fields.decode(Int.self, forKey: .headDimension)
        valueDimension = try fields.decodeIfPresent(Int.self, forKey: .valueDimension) ?? headDimension
        keyLengths = try fields.decodeIfPresent([Int].self, forKey: .keyLengths)
        sequences = try fields.decodeIfPresent([Int].self, forKey: .sequences)
        queries = try sequences?.max() ?? fields.decode(Int.self, forKey: .queries)
        keys = try fields.decodeIfPresent(Int.self, forKey: .keys) ?? queries
        learnedSinks = try fields.decodeIfPresent(String.self, forKey: .sink) == "learned"
        mask = try Self.mask(fields.decodeIfPresent(String.self, forKey: .mask) ?? "none", in: fields)
    }

    private static func mask(_ text: String, in fields: KeyedDecodingContainer<CodingKeys>) throws -> Mask {
        switch text.split(separator: "=", maxSplits: 1).map(String.init) {
        case ["none"]: return .none
        case ["causal"]: return .causal
        case let words where words.count == 2 && words[0] == "window":
            if let width = Int(words[1]), width > 0 { return .window(width) }
        default: break
        }
        throw DecodingError.dataCorruptedError(
            forKey: .mask, in: fields, debugDescription: "mask \"\(text)\" is not none, causal or window=<w>")
    }
}

// MARK: - Counting

extension GridShape {
    /// Where the rows of one sequence are, and what they see.
    struct Sequence {
        var batchItem: Int
        var firstQuery: Int
        var queries: Int
        var firstKey: Int
        var keys: Int
        /// Keys that are not padding.
        var length: Int
        var mask: Mask

        /// Row i sees these keys; causal is aligned bottom right.
        func visible(row: Int) -> Range<Int> {
            let end = row + keys - queries + 1
            switch mask {
            case .none: return 0..<length
            case .causal: return 0..<max(0, min(length, end))
            case .window(let width):
                let last = max(0, min(length, end))
                return min(max(0, end - width), last)..<last
            }
        }

        /// Pairs of query and key that count as work: all of them, half under a causal mask as others count them too, and
        /// of a window only the visible ones.
        var countedPairs: Double {
            switch mask {
            case .none: Double(queries) * Double(length)
            case .causal: Double(queries) * Double(length) / 2
            case .window: Double((0..<queries).reduce(0) { $0 + visible(row: $1).count })
            }
        }
    }

    /// The sequences one after another: of a packed batch, or the batch items.
    var sequenceList: [Sequence] {
        var list: [Sequence] = []
        var firstQuery = 0
        var firstKey = 0
        for item in 0..<(sequences?.count ?? batch) {
            let queries = sequences?[item] ?? queries
            let keys = sequences?[item] ?? keys
            list.append(
                Sequence(
                    batchItem: item, firstQuery: firstQuery, queries: queries, firstKey: firstKey, keys: keys,
                    length: keyLengths?[item] ?? keys, mask: mask))
            firstQuery += queries
            firstKey += keys
        }
        return list
    }

    /// Float operations of one forward pass: a multiply and an add for each element of a key and of a value, for each pair
    /// of query and key that counts.
    public var floatOperations: Double {
        let pairs = sequenceList.reduce(0) { $0 + $1.countedPairs }
        return 2 * Double(headDimension + valueDimension) * Double(queryHeads) * pairs
    }

    /// Bytes that any forward pass moves at least: queries, keys, values and output once each, in float32.
    public var compulsoryBytes: Double {
        let list = sequenceList
        let rows = Double(list.reduce(0) { $0 + $1.queries } * queryHeads)
        let keys = Double(list.reduce(0) { $0 + $1.length } * keyValueHeads)
        return 4 * (rows + keys) * Double(headDimension + valueDimension)
    }
}
