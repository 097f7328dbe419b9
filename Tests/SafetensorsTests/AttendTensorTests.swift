// SPDX-License-Identifier: Apache-2.0
// AttendTensorTests.swift - quiet attend with masks, biases, lengths, positions, slopes and factors that a file holds.

import Foundation
import QuietAttention
import Testing

@testable import Safetensors

extension CommandLineTests {
    /// Two batch items with four query heads over two heads of the keys and values, and tensors of every shape and type.
    struct TensorProblem {
        let path: String
        let shape: AttentionShape
        let queries, keys, values: [Float]
        let allowed: [Bool]

        static let keyLengths = [7, 4]
        static let queryPositions = [[3, 3, 90], [-5, 0, 1]].flatMap { $0 }
        static let keyPositions = [0, 4, 5, 9, 80, 81, 82]

        init(_ tests: CommandLineTests) throws {
            (queries, keys, values) = (
                CommandLineTests.numbers(192), CommandLineTests.numbers(224, 7), CommandLineTests.numbers(140, 31)
            )
            let allowed = (0..<168).map { $0 % 5 != 2 && $0 / 7 != 4 }
            self.allowed = allowed
            let mask = allowed.map { UInt8($0 ? 1 : 0) }
            func float(_ name: String, _ shape: [Int], _ elements: [Float]) -> StoredTensor {
                StoredTensor(name, .float32, shape, elements.map(\.bitPattern))
            }
            let factors = Self.factors(24)
            path = try tests.folder.file(
                safetensors([
                    float("q", [2, 4, 3, 8], queries), float("k", [2, 2, 7, 8], keys),
                    float("v", [2, 2, 7, 5], values),
                    StoredTensor("mask", .bool, [2, 4, 3, 7], mask),
                    StoredTensor("mask rows", .uint8, [3, 7], mask[..<21].map { $0 * 255 }),
                    StoredTensor("mask keys", .uint8, [7], Array(mask[..<7])),
                    StoredTensor("mask items", .bool, [2, 1, 1, 7], Array(mask[..<14])),
                    float("bias", [2, 4, 3, 7], CommandLineTests.numbers(168)),
                    float("bias heads", [4, 1, 7], CommandLineTests.numbers(28)),
                    StoredTensor("bias half", .float16, [7], [UInt16](repeating: 0x3c00, count: 6) + [0xfc00]),
                    StoredTensor("lengths", .int64, [2], Self.keyLengths.map(Int64.init)),
                    StoredTensor("far lengths", .int32, [2], [7, 8] as [Int32]),
                    StoredTensor("m", .int64, [2, 3], Self.queryPositions.map(Int64.init)),
                    StoredTensor("n", .int32, [7], Self.keyPositions.map(Int32.init)),
                    StoredTensor("far", .int64, [7], [Int64](repeating: .max, count: 7)),
                    float("heads", [4], Self.factors(4)), float("rows", [2, 4, 3], factors),
                    float("rows of heads", [4, 1], Self.factors(4)), float("rows of items", [2, 1, 1], [0.5, 2]),
                    float("dout", [2, 4, 3, 5], CommandLineTests.numbers(120, 11)),
                    float("dlse", [2, 4, 3], CommandLineTests.numbers(24, 5)),
                    float("gains", [4, 8], Self.factors(32)), float("gain", [8], Self.factors(8)),
                    float("scalar", [], [1]), float("nan", [4], [1, 1, .nan, 1]),
                ]), name: "in.safetensors")
            shape = try AttentionShape(
                batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 3, keys: 7, headDimension: 8, valueDimension: 5)
        }

        static func factors(_ count: Int) -> [Float] { (0..<count).map { 0.25 + Float($0) / 8 } }

        func output(_ attention: Attention) throws -> [Float] {
            try attention.forward(queries: queries, keys: keys, values: values).output
        }
    }

    /// Returns whether the executable and the library agree, bit for bit, and differ from the same without the tensors.
    func expectLibraryBits(_ options: [String], _ make: (TensorProblem) throws -> Attention) throws {
        let problem = try TensorProblem(self)
        let output = try out(problem.path, options)
        #expect(try output == problem.output(make(problem)), "\(options)")
        #expect(try output != problem.output(Attention(problem.shape, sink: .softmax1)), "\(options)")
    }

    // MARK: - Which keys are seen

    @Test func allowedKeys() throws {
        let cases: [(name: String, extents: (Int, Int, Int))] = [
            ("mask", (2, 4, 3)), ("mask rows", (1, 1, 3)), ("mask keys", (1, 1, 1)), ("mask items", (2, 1, 1)),
        ]
        for (name, (batch, heads, queries)) in cases {
            try expectLibraryBits(["--allowed", name, "--mask", "causal"]) { problem in
                let allowed = try BroadcastTensor(
                    Array(problem.allowed[..<(batch * heads * queries * 7)]), batch: batch, heads: heads,
                    queries: queries, keys: 7)
                return try Attention(problem.shape, sink: .softmax1, mask: .causal.allowing(allowed))
            }
        }
    }

    @Test(arguments: ["lengths", "7,4"])
    func keyLengths(text: String) throws {
        try expectLibraryBits(["--key-lengths", text, "--mask", "window=4", "--scaling", "log=2"]) { problem in
            try Attention(
                problem.shape, sink: .softmax1, mask: .window(4).keyLengths(TensorProblem.keyLengths),
                scaling: .logKeys(base: 2))
        }
    }

    /// The last query stands at each item's last key; `--padding both` leaves it at the last place.
    @Test(arguments: [nil, "keys", "both"])
    func padding(text: String?) throws {
        let options = [
            "--key-lengths", "lengths", "--mask", "causal", "--alibi", "--positions", "rope", "--scaling", "log=2",
        ]
        try expectLibraryBits(options + (text.map { ["--padding", $0] } ?? [])) { problem in
            try Attention(
                problem.shape, sink: .softmax1,
                mask: .causal.keyLengths(
                    TensorProblem.keyLengths, padding: text == "both" ? .queriesAndKeys : .keys),
                scaling: .logKeys(base: 2), alibi: .standard, positions: .rotary())
        }
    }

    // MARK: - Scores

    @Test func biases() throws {
        try expectLibraryBits(["--bias", "bias", "--softcap", "3", "--alibi"]) { problem in
            let bias = try BroadcastTensor(CommandLineTests.numbers(168), batch: 2, heads: 4, queries: 3, keys: 7)
            return try Attention(problem.shape, sink: .softmax1, softcap: 3, alibi: .standard, bias: bias)
        }
        try expectLibraryBits(["--bias", "bias heads"]) { problem in
            try Attention(
                problem.shape, sink: .softmax1, bias: BroadcastTensor(CommandLineTests.numbers(28), heads: 4, keys: 7))
        }
        try expectLibraryBits(["--bias", "bias half"]) { problem in
            try Attention(
                problem.shape, sink: .softmax1, bias: BroadcastTensor([1, 1, 1, 1, 1, 1, -.infinity], keys: 7))
        }
    }

    @Test func slopesAndFactors() throws {
        try expectLibraryBits(["--alibi-slopes", "heads"]) { problem in
            try Attention(problem.shape, sink: .softmax1, alibi: .slopes(TensorProblem.factors(4)))
        }
        try expectLibraryBits(["--ssmax", "heads", "--mask", "causal"]) { problem in
            let s = TensorProblem.factors(4).map(Double.init)
            return try Attention(problem.shape, sink: .softmax1, mask: .causal, scaling: .scalableSoftmax(s))
        }
        let tables: [(name: String, factors: [Float], extents: (Int, Int, Int))] = [
            ("rows", TensorProblem.factors(24), (2, 4, 3)), ("rows of heads", TensorProblem.factors(4), (1, 4, 1)),
            ("rows of items", [0.5, 2], (2, 1, 1)),
        ]
        for (name, factors, (batch, heads, queries)) in tables {
            try expectLibraryBits(["--row-factors", name]) { problem in
                let table = try BroadcastTensor(
                    factors.map(Double.init), batch: batch, heads: heads, queries: queries, keys: 1)
                return try Attention(problem.shape, sink: .softmax1, scaling: .table(table))
            }
        }
    }

    @Test func positionsOfTokens() throws {
        let options = ["--positions", "rope", "--query-positions", "m", "--key-positions", "n"]
        let positions = AttentionPositions.rotary().identifiers(
            queries: TensorProblem.queryPositions, keys: TensorProblem.keyPositions)
        try expectLibraryBits(options) { try Attention($0.shape, sink: .softmax1, positions: positions) }
        try expectLibraryBits(options + ["--position-offset", "12"]) {
            try Attention($0.shape, sink: .softmax1, positions: positions.offset(by: 12))
        }
    }

    /// Everything at once; inspect reads the same tensors.
    @Test func tensorsTogether() throws {
        let options = [
            "--mask", "causal", "--allowed", "mask items", "--key-lengths", "lengths", "--bias", "bias",
            "--alibi-slopes",
            "heads", "--row-factors", "rows",
        ]
        func attention(_ problem: TensorProblem) throws -> Attention {
            let allowed = try BroadcastTensor(Array(problem.allowed[..<14]), batch: 2, keys: 7)
            return try Attention(
                problem.shape, sink: .softmax1, mask: .causal.keyLengths(TensorProblem.keyLengths).allowing(allowed),
                scaling: .table(
                    BroadcastTensor(
                        TensorProblem.factors(24).map(Double.init), batch: 2, heads: 4, queries: 3, keys: 1)),
                alibi: .slopes(TensorProblem.factors(4)),
                bias: BroadcastTensor(CommandLineTests.numbers(168), batch: 2, heads: 4, queries: 3, keys: 7))
        }
        try expectLibraryBits(options, attention)
        let problem = try TensorProblem(self)
        let diagnostics = try attention(problem).headDiagnostics(queries: problem.queries, keys: problem.keys)
        let json = try QuietProcess(["inspect", problem.path, "--json"] + options).json
        let heads = try #require((json["attention"] as? [[String: Any]])?.first?["heads"] as? [[String: Any]])
        for (head, expected) in zip(heads, diagnostics) {
            #expect(abs(try #require(head["sink_share"] as? Double) - expected.sinkShare) < 1e-7)
        }
        #expect(heads.count == 4)
    }

    @Test func reportsOfTensors() throws {
        let problem = try TensorProblem(self)
        let start = ["attend", problem.path, "--output", folder("out")]
        let options = ["--allowed", "mask rows", "--alibi-slopes", "heads", "--ssmax", "heads", "--key-lengths", "7,4"]
        let json = try QuietProcess(start + options + ["--json"]).json
        #expect(json["allowed"] as? String == "mask rows" && json["alibi_slopes"] as? String == "heads")
        #expect(json["ssmax"] as? String == "heads" && json["key_lengths"] as? String == "7,4")
        #expect(json["alibi"] as? String == "slopes" && json["scaling"] as? String == "ssmax" && json["bias"] == nil)
        let text = try QuietProcess(start + options).output
        #expect(text.contains("\nwith        --allowed \"mask rows\" --key-lengths 7,4 --alibi-slopes heads"))
        let factors = try QuietProcess(start + ["--row-factors", "rows", "--json"]).json
        #expect(factors["scaling"] as? String == "row factors" && factors["alibi"] as? String == "none")
        #expect(try !QuietProcess(start).output.contains("\nwith "))
    }

    // MARK: - What is refused

    @Test(arguments: [
        (["--query-positions", "m", "--key-positions", "n"], "needs --positions"),
        (["--positions", "rope", "--query-positions", "m"], "need each other"),
        (["--row-factors", "rows", "--scaling", "log=2"], "--row-factors: expected no --scaling"),
        (["--ssmax", "heads", "--row-factors", "rows"], "--ssmax: expected no --row-factors"),
        (["--alibi-slopes", "heads", "--alibi"], "--alibi-slopes: expected no --alibi"),
        (["--padding", "both"], "--padding: expected --key-lengths beside it"),
        (["--key-lengths", "7,4", "--padding", "left"], "expected keys or both"),
        (["--recurrent", "linear", "--key-lengths", "3"], "--key-lengths: is for scores"),
        (["--recurrent", "retention", "--allowed", "b"], "--allowed: is for scores"),
    ])
    func refusedTensors(options: [String], words: String) throws {
        let run = try QuietProcess(["attend", "in", "--output", "out"] + options)
        #expect(run.status == 64 && run.output.isEmpty)
        #expect(run.diagnostics.split(separator: "\n").first?.contains(words) == true, "\(run.diagnostics)")
    }

    /// What an output file held before stays.
    @Test func tensorsThatDoNotFit() throws {
        let problem = try TensorProblem(self)
        let output = try folder.file([1, 2, 3], name: "out.safetensors")
        let positions = ["--positions", "rope", "--query-positions"]
        for (options, words) in [
            (["--allowed", "x"], "no tensor \"x\""),
            (["--allowed", "bias"], "tensor \"bias\" has dtype F32, only BOOL, U8, I8, U16"),
            (
                ["--allowed", "lengths"],
                "expected the shape [1 or 2, 1 or 4, 1 or 3, 7], or its last dimensions alone, got [2]"
            ),
            (["--bias", "mask"], "tensor \"mask\" has dtype BOOL"), (["--bias", "scalar"], "got []"),
            (["--bias", "rows of items"], "got [2, 1, 1]"),
            (
                ["--key-lengths", "heads"],
                "tensor \"heads\": expected the shape [2], a number of keys for each batch item"
            ),
            (["--key-lengths", "far lengths"], "mask.keyLengths[1]: expected 0 to 7, got 8"),
            (["--key-lengths", "7"], "2 lengths, one per batch item"), (["--key-lengths", "-1,2"], "got -1"),
            (["--alibi-slopes", "lengths"], "expected the shape [4], a slope for each query head, got [2]"),
            (["--alibi-slopes", "nan"], "alibi.slopes[2]"), (["--ssmax", "rows"], "expected the shape [4]"),
            (["--row-factors", "bias heads"], "expected the shape [1 or 2, 1 or 4, 1 or 3], or its last"),
            (["--row-factors", "rows", "--normaliser", "relu2-normalised"], "factor cancels"),
            (
                positions + ["n", "--key-positions", "n"],
                "expected the shape [3], [1, 3] or [2, 3], the position of each query"
            ),
            (positions + ["m", "--key-positions", "far"], "at most 2^40 from 0"),
        ] {
            try expectFailure(ofInput: problem.path, options: options, words)
        }
        #expect(try bytes(ofFile: output) == [1, 2, 3])
    }
}
