// SPDX-License-Identifier: Apache-2.0
// DigestCase.swift - a line of Tests/Fixtures/digests.txt. Tests/CrossTests/cross.c reads the same lines, makes the same
// inputs and runs the kernels where no Swift runs: both must say the same.

import Foundation
import SeededInputs
import TestSupport

/// A seeded case whose digest is known.
struct DigestCase: Sendable, CustomStringConvertible {
    let name: String
    let line: String
    let expected: String
    let problem: HeadProblem
    let storage: AttentionCase.StorageChoice

    var description: String { name }

    /// Digest of out, lse and sink share.
    func digest(_ outputs: AttentionOutputs) -> String {
        var digest = BitDigest()
        digest.add(outputs.output)
        digest.add(outputs.logSumExp)
        digest.add(outputs.sinkShare)
        return digest.hexadecimal
    }

    /// The line with another digest.
    func line(digest: String) -> String { String(line.dropLast(expected.count)) + digest }

    private static let lines: [[String]] = {
        let file = testsDirectory.appendingPathComponent("Fixtures/digests.txt")
        guard let table = try? String(contentsOf: file, encoding: .utf8) else { fatalError("cannot read \(file.path)") }
        return table.split(separator: "\n").filter { !$0.hasPrefix("#") }.map {
            [String($0)] + $0.split(separator: " ").map(String.init)
        }
    }()

    static let all = lines.filter { $0[1] != "function" }.map { DigestCase(line: $0[0], words: Array($0[1...])) }

    /// The digest of `exp2`, `log2` or `tanh`.
    static func functionDigest(_ name: String) -> String? {
        lines.first { $0[1] == "function" && $0[2] == name }?[3]
    }

    private init(line: String, words: [String]) {
        precondition(words.count == 13, "not 13 columns: \(line)")
        self.line = line
        name = words[0]
        expected = words[12]
        storage = ["int8", "pairs"].contains(words[10]) ? .float32 : AttentionCase.StorageChoice(rawValue: words[10])!
        let (queries, keys) = (Int(words[2])!, Int(words[3])!)
        let isCausal = words[8] != "none"
        var problem = HeadProblem(
            queryCount: queries, keyCount: keys, headDimension: Int(words[4])!, valueDimension: Int(words[5])!,
            sink: Float(words[7])!, scale: Double(words[6])!)
        if words[10] == "int8" { problem.packedStorage = .int8 }
        if words[10] == "pairs" { problem.products = .bfloat16 }
        if isCausal { problem.lastKeyOffset = keys - queries + 1 }
        if words[8] == "window" { problem.firstKeyOffset = problem.lastKeyOffset - Int(words[9])! }
        problem.fill(seed: UInt64(words[1])!, extra: words[11])
        for tensor in [\HeadProblem.queries, \.keys, \.values] {
            problem[keyPath: tensor] = problem[keyPath: tensor].map(storage.cut)
        }
        self.problem = problem
    }
}

extension HeadProblem {
    /// The inputs of `seeded_inputs` in cross.c.
    fileprivate mutating func fill(seed: UInt64, extra: String) {
        func normals(_ stream: UInt64, _ count: Int) -> [Float] {
            var generator = SeededGenerator(seed: seed, stream: stream)
            return generator.normals(count)
        }
        queries = normals(0, queryCount * headDimension)
        keys = normals(1, keyCount * headDimension)
        values = normals(2, keyCount * valueDimension)
        switch extra {
        case "rising":
            for row in 0..<queryCount { queries[row * headDimension] = 1 }
            for row in 0..<keyCount { keys[row * headDimension] = 0.25 * Float(row) }
        case "nan":
            keys[keyCount / 2 * headDimension] = .nan
            values[keyCount / 3 * valueDimension] = .nan
        case "mask":
            var generator = SeededGenerator(seed: seed, stream: 3)
            allowed = (0..<queryCount * keyCount).map { _ in generator.next() >> 63 == 1 }
        case "bias":
            bias = normals(4, queryCount * keyCount)
            for index in stride(from: 0, to: bias!.count, by: 5) { bias![index] = -.infinity }
        case "scores":
            rowFactors = (0..<queryCount).map { 0.5 + Double($0 % 7) / 4 }
            (softcap, alibiSlope) = (5, 0.0625)
        case "clipped": (normaliser, constant) = (.clippedSoftmax(zeta: 1.0625), -0.03125)
        case "sigmoid": (normaliser, constant) = (.sigmoid, -3)
        case "softpick": (normaliser, constant) = (.softpick, 0x1p-20)
        case "relu": (normaliser, constant) = (.reluSquared, 100)
        case "quiet_relu": (normaliser, constant) = (.normalisedReluSquared, 1)
        default: precondition(extra == "-", "unknown extra \(extra)")
        }
    }
}

extension AttentionCase.StorageChoice {
    /// The value with its last bits cut off, so that this type holds it; float16 has no subnormal numbers here.
    fileprivate func cut(_ value: Float) -> Float {
        switch self {
        case .float32: value
        case .bfloat16: Float(bitPattern: value.bitPattern & 0xffff_0000)
        case .float16: abs(value) < 0x1p-14 ? value * 0 : Float(bitPattern: value.bitPattern & 0xffff_e000)
        }
    }
}
