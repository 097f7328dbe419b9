// SPDX-License-Identifier: Apache-2.0
// Experiment.swift - what an experiment is: variants, what to measure of one with one seed, and tests that can fail.

import Foundation

/// An experiment is a file of this folder and a line of ``Experiments/all``.
public protocol Experiment: Sendable {
    var name: String { get }
    /// What is asked, in one sentence.
    var question: String { get }
    /// How it is done, in a paragraph: sizes, data, where the idea is from.
    var method: String { get }
    var variants: [String] { get }
    /// Trains and measures one variant with one seed.
    func measure(_ variant: String, seed: UInt64, _ bench: Bench) throws -> Measurement
    /// What the claim predicts, and whether it is so. Not asked in quick runs.
    func tests(_ outcome: Outcome) -> [Verdict]
}

public enum Experiments {
    public static let all: [any Experiment] = [
        Outliers(), ScalingExtrapolation(), PositionExtrapolation(), ScaleAndInitialisation(), Laws(), SinkShare(),
    ]
}

/// What one run gave: single numbers, and curves of points (x, y).
public struct Measurement: Codable, Sendable, Equatable {
    public var numbers: [String: Double] = [:]
    public var curves: [String: [[Double]]] = [:]

    public init() {}
}

/// A claim, and what came of it.
public struct Verdict: Codable, Sendable, Equatable {
    public var claim: String
    public var holds: Bool
    public var detail: String

    public init(_ claim: String, _ holds: Bool, _ detail: String) {
        (self.claim, self.holds, self.detail) = (claim, holds, detail)
    }
}

/// All runs of an experiment, and where they were made.
public struct Outcome: Codable, Sendable {
    public struct Run: Codable, Sendable {
        public var variant: String
        public var seed: UInt64
        public var seconds: Double
        public var measurement: Measurement
    }

    public var experiment, question, method, machine, commit, date, command: String
    public var settings: [String: String]
    public var variants: [String]
    public var runs: [Run] = []
    public var verdicts: [Verdict] = []

    /// A number of all seeds of a variant, in the order of seeds.
    public func numbers(_ name: String, _ variant: String) -> [Double] {
        runs.filter { $0.variant == variant }.sorted { $0.seed < $1.seed }.compactMap { $0.measurement.numbers[name] }
    }

    public func mean(_ name: String, _ variant: String) -> Double {
        let values = numbers(name, variant)
        return values.reduce(0, +) / Double(values.count)
    }

    public func text(_ name: String, _ variant: String, _ digits: Int = 3) -> String {
        numbers(name, variant).map { String(format: "%.\(digits)g", $0) }.joined(separator: " ")
    }

    // MARK: - As JSON, where what is no number is a word

    static func read(_ path: String) throws -> Outcome {
        let decoder = JSONDecoder()
        decoder.nonConformingFloatDecodingStrategy = .convertFromString(
            positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
        do { return try decoder.decode(Outcome.self, from: try Data(contentsOf: URL(fileURLWithPath: path))) } catch {
            throw LabError("\(path): is no result: \(error)")
        }
    }

    func write(_ path: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        encoder.nonConformingFloatEncodingStrategy = .convertToString(
            positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
        try (encoder.encode(self) + Data("\n".utf8)).write(to: URL(fileURLWithPath: path), options: .atomic)
    }
}
