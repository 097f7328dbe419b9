// SPDX-License-Identifier: Apache-2.0
// Data.swift - what models learn from: a batch of tokens and of targets, drawn for a step.

import Foundation

/// Tokens `[sequences, length]`, and what is to be said at each place; -1 where nothing is.
public struct Batch: Sendable, Equatable {
    public var sequences: Int
    public var tokens: [Int32]
    public var targets: [Int32]
    /// What each target counts for in the loss; empty: all alike.
    public var weights: [Float]

    public init(sequences: Int, tokens: [Int32] = [], targets: [Int32] = [], weights: [Float] = []) {
        (self.sequences, self.tokens, self.targets, self.weights) = (sequences, tokens, targets, weights)
    }

    /// What all targets count for together.
    var totalWeight: Double {
        if weights.isEmpty { return Double(targets.count { $0 >= 0 }) }
        return zip(targets, weights).reduce(0) { $1.0 >= 0 ? $0 + Double($1.1) : $0 }
    }
}

/// A source of batches: the same seed, step and slice always give the same.
public protocol DataSource: Sendable {
    /// Tokens are below this.
    var vocabulary: Int { get }
    func batch(sequences: Int, length: Int, random: Random, testing: Bool) -> Batch
}

/// The bytes of a text, the first part for training, the rest for tests.
public struct ByteText: Sendable {
    public let bytes: [UInt8]
    public let trainingCount: Int

    /// - Parameter testShare: of the text, from its end.
    public init(_ bytes: [UInt8], testShare: Double = 0.1) throws {
        guard testShare >= 0, testShare < 1 else {
            throw LabError("testShare: expected 0 to below 1, got \(testShare)")
        }
        self.bytes = bytes
        trainingCount = bytes.count - Int(Double(bytes.count) * testShare)
    }

    public init(path: String, testShare: Double = 0.1) throws {
        guard let data = FileManager.default.contents(atPath: path) else { throw LabError("\(path): cannot be read") }
        try self.init(Array(data), testShare: testShare)
    }

    /// Checks that windows of so many bytes and one more fit both parts.
    public func check(length: Int) throws {
        let shorter = min(trainingCount, bytes.count - trainingCount)
        guard shorter > length + 1 else {
            throw LabError(
                "text: expected more than \(length + 1) bytes for training and as many for tests, got \(trainingCount) and "
                    + "\(bytes.count - trainingCount)")
        }
    }

    func window(_ count: Int, _ random: inout Random, testing: Bool) -> ArraySlice<UInt8> {
        let part = testing ? trainingCount..<bytes.count : 0..<trainingCount
        let start = part.lowerBound + random.below(part.count - count + 1)
        return bytes[start..<start + count]
    }
}

/// The next byte at every place.
public struct CausalText: DataSource {
    public let text: ByteText
    public var vocabulary: Int { 256 }

    public init(_ text: ByteText) { self.text = text }

    public func batch(sequences: Int, length: Int, random: Random, testing: Bool) -> Batch {
        var (random, batch) = (random, Batch(sequences: sequences))
        for _ in 0..<sequences {
            let window = text.window(length + 1, &random, testing: testing).map(Int32.init)
            batch.tokens += window.dropLast()
            batch.targets += window.dropFirst()
        }
        return batch
    }
}

/// Bytes that were hidden: 15% of places are targets, of which 80% show the mask (256), 10% another byte, 10% themselves.
///
/// *Source*: Devlin et al., "BERT", arXiv 1810.04805, 2018.
public struct MaskedText: DataSource {
    public let text: ByteText
    public var vocabulary: Int { 257 }

    public init(_ text: ByteText) { self.text = text }

    public func batch(sequences: Int, length: Int, random: Random, testing: Bool) -> Batch {
        var (random, batch) = (random, Batch(sequences: sequences))
        for _ in 0..<sequences {
            for byte in text.window(length, &random, testing: testing) {
                guard random.uniform() < 0.15 else {
                    batch.tokens.append(Int32(byte))
                    batch.targets.append(-1)
                    continue
                }
                let choice = random.uniform()
                batch.tokens.append(choice < 0.8 ? 256 : choice < 0.9 ? Int32(random.below(256)) : Int32(byte))
                batch.targets.append(Int32(byte))
            }
        }
        return batch
    }
}
