// SPDX-License-Identifier: Apache-2.0
// AttendOptionTests.swift - quiet attend with norms, normalisers, recurrences and gates: the library's bits, and what is refused.

import Foundation
import QuietAttention
import Testing

@testable import Safetensors

extension CommandLineTests {
    /// Two query heads on each head of the keys and values, and tensors for norms and gates.
    struct OptionProblem {
        let path: String
        let shape: AttentionShape
        let queries, keys, values: [Float]

        init(_ tests: CommandLineTests) throws {
            func tensor(_ name: String, _ shape: [Int], _ seed: Int) -> NamedTensor {
                NamedTensor(name: name, shape: shape, values: CommandLineTests.numbers(shape.reduce(1, *), seed))
            }
            let others = [
                tensor("q_gain", [8], 2), tensor("q_bias", [8], 3), tensor("k_gain", [8], 5), tensor("k_bias", [8], 11),
                tensor("heads", [4], 1), tensor("rows", [2, 4, 3], 4), tensor("elements", [2, 4, 3, 5], 9),
            ]
            path = try tests.inputs(
                queries: [2, 4, 3, 8], keys: [2, 2, 7, 8], values: [2, 2, 7, 5], others: others)
            shape = try AttentionShape(
                batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 3, keys: 7, headDimension: 8, valueDimension: 5)
            let file = try SafetensorsFile(path: path)
            queries = try file.floats(named: "q")
            keys = try file.floats(named: "k")
            values = try file.floats(named: "v")
        }

        func tensor(_ name: String) throws -> [Float] { try SafetensorsFile(path: path).floats(named: name) }

        func output(_ attention: Attention) throws -> [Float] {
            try attention.forward(queries: queries, keys: keys, values: values).output
        }
    }

    /// Numbers from -33 / 16 to 33 / 16, in an order that repeats after 67.
    static func numbers(_ count: Int, _ seed: Int = 0) -> [Float] {
        (0..<count).map { Float(($0 * 29 + seed) % 67 - 33) / 16 }
    }

    func out(_ path: String, _ options: [String]) throws -> [Float] {
        let run = try QuietProcess(["attend", path, "--output", folder("out.safetensors")] + options)
        try #require(run.status == 0 && run.diagnostics.isEmpty, "\(options): \(run.diagnostics)")
        return try SafetensorsFile(path: folder("out.safetensors")).floats(named: "out")
    }

    // MARK: - Scores

    @Test func attendMultipliesBFloat16() throws {
        let problem = try OptionProblem(self)
        let attention = try Attention(problem.shape, sink: .softmax1, mask: .causal, products: .bfloat16)
        let out = try out(problem.path, ["--sink", "softmax1", "--mask", "causal", "--products", "bf16"])
        #expect(out == (try problem.output(attention)))
        #expect(out != (try self.out(problem.path, ["--sink", "softmax1", "--mask", "causal"])))
        let refused = try QuietProcess([
            "attend", problem.path, "--output", folder("none.safetensors"), "--products", "bf16", "--recurrent",
            "linear",
        ])
        #expect(refused.status != 0 && refused.diagnostics.contains("--products"))
    }

    @Test(
        arguments: [
            ("softmax", .softmax), ("clipped=-0.1", .clippedSoftmax(gamma: .fixed(-0.1))),
            ("clipped=-0.1,1.2", .clippedSoftmax(gamma: .fixed(-0.1), zeta: 1.2)),
            ("clipped-over-n=0.5", .clippedSoftmax(gamma: .overKeys(alpha: 0.5, .visible))),
            ("clipped-over-n=0.5,2", .clippedSoftmax(gamma: .overKeys(alpha: 0.5, .visible), zeta: 2)),
            ("sigmoid", .sigmoid()), ("sigmoid=-2", .sigmoid(bias: .fixed(-2))), ("softpick", .softpick()),
            ("relu2", .reluSquared()), ("relu2=3", .reluSquared(divisor: .fixed(3))),
            ("relu2-normalised", .normalisedReluSquared()), ("relu2-normalised=2", .normalisedReluSquared(sink: 2)),
        ] as [(String, AttentionNormaliser)])
    func normalisersOfAttend(text: String, normaliser: AttentionNormaliser) throws {
        let problem = try OptionProblem(self)
        let expected = try problem.output(
            Attention(
                problem.shape, sink: normaliser.hasSink ? .softmax1 : .softmax, mask: .causal, normaliser: normaliser))
        #expect(try out(problem.path, ["--mask", "causal", "--normaliser", text]) == expected)
    }

    @Test(
        arguments: [
            ("none", .constant), ("log=4", .logKeys(base: 4)), ("clipped-log=4", .clippedLogKeys(base: 4)),
            ("kappa-log=2", .logKeysPerDimension(kappa: 2)), ("ssmax=0.5", .scalableSoftmax([0.5, 0.5, 0.5, 0.5])),
        ] as [(String, ScoreScaling)])
    func scalingsOfAttend(text: String, scaling: ScoreScaling) throws {
        let problem = try OptionProblem(self)
        let attention = try Attention(
            problem.shape, sink: .softmax1, mask: .window(4), scale: -0.3, scaling: scaling, softcap: 3,
            alibi: .standard)
        let options = ["--mask", "window=4", "--scale", "-0.3", "--scaling", text, "--softcap", "3", "--alibi"]
        #expect(try out(problem.path, options) == problem.output(attention))
    }

    @Test(
        arguments: [
            ("softmax", .softmax), ("n=2.5", .softmaxN(2.5)), ("log-keys", .logKeys()),
            ("log-keys=-1", .logKeys(offset: -1)),
        ] as [(String, AttentionSink)])
    func sinksOfAttend(text: String, sink: AttentionSink) throws {
        let problem = try OptionProblem(self)
        let expected = try problem.output(Attention(problem.shape, sink: sink, mask: .causal))
        #expect(try out(problem.path, ["--mask", "causal", "--sink", text]) == expected)
    }

    // MARK: - Norms

    @Test func normsOfQueriesAndKeys() throws {
        let problem = try OptionProblem(self)
        func gain(_ name: String) throws -> [Float] { try problem.tensor(name) }
        let cases: [([String], QueryKeyNorm)] = [
            (["rms"], .rms()), (["layer"], .layer()), (["rms", "--norm-epsilon", "0.5"], .rms(epsilon: 0.5)),
            (["rms", "--key-gain", "k_gain"], .rms(keyGain: try gain("k_gain"))),
            (
                ["rms", "--query-gain", "q_gain", "--key-gain", "k_gain"],
                .rms(queryGain: try gain("q_gain"), keyGain: try gain("k_gain"))
            ),
            (
                ["layer", "--query-gain", "q_gain", "--query-bias", "q_bias", "--key-bias", "k_bias"],
                .layer(queryGain: try gain("q_gain"), queryBias: try gain("q_bias"), keyBias: try gain("k_bias"))
            ),
        ]
        var outputs: Set<[Float]> = []
        for (options, norm) in cases {
            let attention = try Attention(
                problem.shape, sink: .softmax1, mask: .causal, positions: .rotary(RotaryEmbedding()), queryKeyNorm: norm
            )
            let output = try out(problem.path, ["--mask", "causal", "--positions", "rope", "--qk-norm"] + options)
            #expect(try output == problem.output(attention), "\(options)")
            outputs.insert(output)
        }
        #expect(outputs.count == cases.count)
    }

    /// First values are normalised, then comes attention, then the norm of the output, then the gate.
    @Test(arguments: ["rms", "layer"], [[], ["--recurrent", "retention"]])
    func normsOfValuesAndOutput(norm: String, method: [String]) throws {
        let problem = try OptionProblem(self)
        func normalised(_ rows: [Float]) throws -> [Float] {
            var rows = rows
            if norm == "rms" {
                try RMSNorm(dimension: 5, epsilon: 0.25).apply(to: &rows)
            } else {
                try LayerNorm(dimension: 5, epsilon: 0.25).apply(to: &rows)
            }
            return rows
        }
        let (q, k, v) = (problem.queries, problem.keys, try normalised(problem.values))
        var expected = try normalised(
            method.isEmpty
                ? Attention(problem.shape, sink: .softmax1).forward(queries: q, keys: k, values: v).output
                : RecurrentAttention(.retention, problem.shape, isCausal: false).forward(queries: q, keys: k, values: v)
        )
        try OutputGate(.element, valueDimension: 5).apply(logits: problem.tensor("elements"), to: &expected)
        let options = ["--value-norm", norm, "--output-norm", norm, "--norm-epsilon", "0.25", "--gate", "elements"]
        #expect(try out(problem.path, options + method) == expected)
    }

    // MARK: - Gates

    @Test(arguments: ["heads", "rows", "elements"])
    func gates(name: String) throws {
        let problem = try OptionProblem(self)
        var logits = try problem.tensor(name)
        if name == "heads" { logits = (0..<24).map { logits[$0 / 3 % 4] } }
        var expected = try problem.output(Attention(problem.shape, sink: .softmax))
        try OutputGate(name == "elements" ? .element : .head, valueDimension: 5).apply(logits: logits, to: &expected)
        #expect(try out(problem.path, ["--sink", "softmax", "--gate", name]) == expected)
    }

    /// softmax_1 is softmax behind a gate whose logit is the log-sum-exp, here on real data by way of two files.
    @Test func softmaxOneAsAGate() throws {
        let lse = try attend(Self.example, "--sink", "softmax", "--lse").floats(named: "lse")
        let file = try SafetensorsFile(path: Self.example)
        let path = folder("gated.safetensors")
        try SafetensorsFile.write(
            ["q", "k", "v"].map {
                NamedTensor(name: $0, shape: [1, 2, 192, 32], values: try file.floats(named: $0))
            } + [NamedTensor(name: "gate", shape: [1, 2, 192], values: lse)], to: path)
        let gated = try out(path, ["--sink", "softmax", "--gate", "gate"])
        for (a, b) in zip(gated, try out(path, ["--sink", "softmax1"])) { #expect(abs(a - b) < 2e-6) }
    }

    // MARK: - Recurrences

    @Test(arguments: [RecurrentAttention.Kind.linear, .retention], [true, false])
    func recurrences(kind: RecurrentAttention.Kind, isCausal: Bool) throws {
        let problem = try OptionProblem(self)
        var (q, k) = (problem.queries, problem.keys)
        try RMSNorm(dimension: 8, gain: problem.tensor("q_gain")).apply(to: &q)
        try RMSNorm(dimension: 8).apply(to: &k)
        let expected = try RecurrentAttention(kind, problem.shape, isCausal: isCausal).forward(
            queries: q, keys: k, values: problem.values)
        let options = [
            "--recurrent", "\(kind)", "--mask", isCausal ? "causal" : "none", "--qk-norm", "rms", "--query-gain",
            "q_gain",
        ]
        #expect(try out(problem.path, options) == expected)
    }

    @Test func reportsOfOptions() throws {
        let problem = try OptionProblem(self)
        let start = ["attend", problem.path, "--output", folder("out")]
        let recurrent = ["--recurrent", "linear", "--mask", "causal", "--gate", "rows", "--qk-norm", "layer"]
        let json = try QuietProcess(start + recurrent + ["--json"]).json
        #expect(json["recurrent"] as? String == "linear" && json["gate"] as? String == "row")
        #expect(json["qk_norm"] as? String == "layer" && json["sink"] == nil && json["kv_heads"] as? Int == 2)
        #expect((json["mean_sink_share"] as? [Any])?.isEmpty == true && json["gflops"] as? Double ?? 0 > 0)
        let text = try QuietProcess(start + recurrent).output
        #expect(text.contains("linear attention, mask causal") && text.contains("a gate for each row"))
        let norms = try QuietProcess(
            start + ["--qk-norm", "rms", "--key-gain", "k_gain", "--output-norm", "rms", "--json"])
        #expect(try norms.json["key_gain"] as? String == "k_gain" && norms.json["output_norm"] as? String == "rms")
        #expect(try norms.json["gate"] as? String == "none" && norms.json["query_gain"] == nil)
    }

    // MARK: - What is refused

    @Test(arguments: [
        (["--qk-norm", "batch"], "expected none, rms or layer"), (["--norm-epsilon", "1e-5"], "no norm"),
        (["--qk-norm", "rms", "--norm-epsilon", "0"], "positive, finite"),
        (["--qk-norm", "rms", "--norm-epsilon", "-1"], "positive, finite"),
        (["--qk-norm", "rms", "--norm-epsilon", "1e-5x"], "--norm-epsilon"),
        (["--query-gain", "g"], "--query-gain: needs --qk-norm"),
        (["--qk-norm", "rms", "--key-bias", "b"], "--key-bias: a norm by the root mean square has no bias"),
        (["--recurrent", "lstm"], "expected linear or retention"),
        (["--recurrent", "linear", "--sink", "softmax1"], "--sink: linear attention has no softmax denominator"),
        (["--recurrent", "linear", "--lse"], "--lse: linear attention"),
        (["--recurrent", "retention", "--mask", "window=3"], "cannot forget the keys behind a window"),
        (["--recurrent", "retention", "--scale", "2"], "--scale: is for scores, and retention has none"),
        (["--recurrent", "linear", "--scaling", "log=2"], "--scaling: is for scores"),
        (["--recurrent", "linear", "--softcap", "2"], "--softcap: is for scores"),
        (["--recurrent", "linear", "--alibi"], "--alibi: is for scores"),
        (["--recurrent", "linear", "--normaliser", "sigmoid"], "--normaliser: is for scores"),
        (["--recurrent", "linear", "--positions", "rope"], "--positions: is for scores"),
        (["--normaliser", "sigmoid", "--sink", "softmax1"], "sink: expected none with sigmoid"),
        (["--normaliser", "softpick", "--sink", "tensor=s"], "got learned logits"),
        (["--normaliser", "clipped=0", "--sink", "log-keys"], "got log n of the visible keys"),
        (["--sink", "log-keys=nan"], "sink.logKeys: expected a finite number"),
        (["--normaliser", "softpick", "--lse"], "--lse: the normaliser softpick has no log-sum-exp"),
        (["--normaliser", "relu2-normalised", "--scaling", "log=2"], "where a row's factor cancels"),
        (["--rope-base", "500"], "need --positions"),
    ])
    func refusedOptions(options: [String], words: String) throws {
        let run = try QuietProcess(["attend", "in", "--output", "out"] + options)
        #expect(run.status == 64 && run.output.isEmpty)
        let lines = run.diagnostics.split(separator: "\n")
        #expect(lines.first?.hasPrefix("Error: ") == true && lines.first?.contains(words) == true, "\(run.diagnostics)")
        #expect(lines.contains { $0.hasPrefix("Usage: quiet attend") })
    }

    /// What an output file held before stays.
    @Test func tensorsThatDoNotFitTheOptions() throws {
        let problem = try OptionProblem(self)
        let output = try folder.file([1, 2, 3], name: "out.safetensors")
        for (options, words) in [
            (["--qk-norm", "rms", "--query-gain", "x"], "no tensor \"x\""),
            (["--qk-norm", "rms", "--query-gain", "heads"], "tensor \"heads\": expected the shape [8]"),
            (["--qk-norm", "layer", "--key-bias", "q"], "tensor \"q\": expected the shape [8]"),
            (["--gate", "x"], "no tensor \"x\""),
            (["--gate", "q_gain"], "expected the shape [4], [2, 4, 3] or [2, 4, 3, 5]"),
            (["--gate", "v", "--recurrent", "linear"], "expected the shape [4], [2, 4, 3] or [2, 4, 3, 5]"),
        ] {
            try expectFailure(ofInput: problem.path, options: options, words)
        }
        #expect(try bytes(ofFile: output) == [1, 2, 3])
    }

    @Test func gatesOfIntegers() throws {
        let data = ["q", "k", "v"].enumerated().map { index, name in
            #""\#(name)":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[\#(4 * index),\#(4 * index + 4)]},"#
        }
        let gate = #""z":{"dtype":"I32","shape":[1],"data_offsets":[12,16]}}"#
        let path = try folder.file(safetensors("{" + data.joined() + gate, dataBytes: 16))
        try expectFailure(ofInput: path, options: ["--gate", "z"], "tensor \"z\" has dtype I32")
    }

    /// A table of formulas is only one if no line of it was wrapped.
    @Test(arguments: ["attend", "inspect", "bench"])
    func formulasOfTheHelp(command: String) throws {
        let lines = try QuietProcess(command, "--help").output.split(separator: "\n")
        #expect(lines.allSatisfy { $0.count <= 80 })
        for beginning in [
            "rms               x / sqrt(mean x^2 + epsilon) gain",
            "sigmoid[=<b>]     1 / (1 + e^-(x[j] + b)), b = -log n",
            "rope              (R(m) q).(R(n) k)", "window=<w>        of those the last w",
        ] {
            #expect(lines.contains { $0.hasPrefix("        " + beginning) }, "\(beginning)")
        }
        // Labels stand 8 columns from the left, formulas 26: a line that begins at 8 is a label, or has both.
        for line in lines where line.prefix(while: { $0 == " " }).count == 8 {
            #expect(!line.dropFirst(8).contains(" ") || line.dropFirst(25).first == " ", "\(line)")
        }
    }
}
