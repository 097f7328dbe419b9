// SPDX-License-Identifier: Apache-2.0
// CommandLineTests.swift - quiet as a process: its results on real data, its exit status, what it leaves behind.

import Foundation
import QuietAttention
import Testing

@testable import Safetensors

@Suite struct CommandLineTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    /// Real queries, keys and values `[1, 2, 192, 32]`, with results computed in float64.
    static let example = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("Examples/Data/minilm-small.safetensors").path

    static func kernelSets() throws -> [String] {
        try #require(try QuietProcess("info", "--json").json["kernels_available"] as? [String])
    }

    /// Writes a file with queries, keys and values of these shapes, all elements small and different.
    func inputs(
        queries: [Int] = [1, 2, 3, 4], keys: [Int] = [1, 2, 5, 4], values: [Int] = [1, 2, 5, 4],
        elementType: ElementType = .float32, others: [NamedTensor] = []
    ) throws -> String {
        func tensor(_ name: String, _ shape: [Int], seed: Int) -> NamedTensor {
            let values = (0..<shape.reduce(1, *)).map { Float(($0 * 37 + seed) % 101 - 50) / 32 }
            return NamedTensor(name: name, shape: shape, values: values, elementType: elementType)
        }
        let path = folder("in.safetensors")
        let tensors = [tensor("q", queries, seed: 1), tensor("k", keys, seed: 7), tensor("v", values, seed: 31)]
        try SafetensorsFile.write(tensors + others, to: path)
        return path
    }

    func attend(_ input: String, _ arguments: String...) throws -> SafetensorsFile {
        let output = folder("out.safetensors")
        let run = try QuietProcess(["attend", input, "--output", output] + arguments)
        #expect(run.status == 0 && run.diagnostics.isEmpty, "\(run.diagnostics)")
        return try SafetensorsFile(path: output)
    }

    // MARK: - attend: results

    @Test(arguments: ["softmax", "softmax1"], ["none", "causal"])
    func realDataAgainstFloat64(sink: String, mask: String) throws {
        let result = try attend(Self.example, "--sink", sink, "--mask", mask, "--lse")
        let expected = try SafetensorsFile(path: Self.example)
        let out = try result.floats(named: "out")
        let expectedOut = try expected.floats(named: "expected.\(sink).\(mask).out")
        #expect(try result.tensor(named: "out").shape == [1, 2, 192, 32])
        for head in 0..<2 {
            let elements = head * 192 * 32..<(head + 1) * 192 * 32
            let error = elements.reduce(0.0) { $0 + pow(Double(out[$1]) - Double(expectedOut[$1]), 2) }.squareRoot()
            let norm = elements.reduce(0.0) { $0 + pow(Double(expectedOut[$1]), 2) }.squareRoot()
            #expect(error <= 3e-7 * norm, "head \(head): \(error / norm)")
        }
        #expect(try result.tensor(named: "lse").shape == [1, 2, 192])
        for (row, lse) in zip(
            try result.floats(named: "lse"), try expected.floats(named: "expected.\(sink).\(mask).lse"))
        {
            #expect(abs(row - lse) <= 6e-7 * max(1, abs(lse)))
        }
    }

    @Test func everyKernelSetAndThreadCountWritesTheSameBytes() throws {
        var files: Set<[UInt8]> = []
        for kernels in try Self.kernelSets() {
            for threads in ["1", "2"] {
                _ = try attend(Self.example, "--mask", "window=50", "--lse", "--kernels", kernels, "--threads", threads)
                files.insert(try bytes(ofFile: folder("out.safetensors")))
            }
        }
        #expect(files.count == 1)
    }

    @Test(arguments: [ElementType.float16, .bfloat16])
    func halfPrecisionInputsAreWidened(type: ElementType) throws {
        // The inputs are exact in both types.
        let wide = try attend(inputs(), "--lse")
        let half = try attend(inputs(elementType: type), "--lse")
        #expect(try half.floats(named: "out") == wide.floats(named: "out"))
        #expect(try half.floats(named: "lse") == wide.floats(named: "lse"))
        #expect(try half.tensor(named: "out").elementType == .float32)
    }

    @Test func groupedHeadsOtherValuesAndLogitsFromTheFile() throws {
        let shape = [2, 4, 3, 8]
        let path = try inputs(
            queries: shape, keys: [2, 2, 5, 8], values: [2, 2, 5, 3],
            others: [
                NamedTensor(name: "zeros", shape: [4], values: [0, 0, 0, 0]),
                NamedTensor(name: "sinks", shape: [4], values: [0, 1, -2, -.infinity]),
            ])
        let softmax1 = try attend(path, "--sink", "softmax1")
        #expect(try softmax1.tensor(named: "out").shape == [2, 4, 3, 3])
        #expect(softmax1.tensors.count == 1, "lse was not asked for")
        let plain = try softmax1.floats(named: "out")
        #expect(try attend(path, "--sink", "tensor=zeros").floats(named: "out") == plain)
        #expect(try attend(path, "--sink", "n=1").floats(named: "out") == plain)
        let learned = try attend(path, "--sink", "tensor=sinks").floats(named: "out")
        #expect(learned[..<9] == plain[..<9])
        let softmax = try attend(path, "--sink", "softmax").floats(named: "out")
        #expect(learned[27..<36] == softmax[27..<36])
        #expect(learned[9..<18] != plain[9..<18])
    }

    @Test func report() throws {
        let path = try inputs()
        let output = folder("out.safetensors")
        let run = try QuietProcess("attend", path, "--output", output, "--scale", "-0.5", "--json")
        let json = try run.json
        #expect(run.output.split(separator: "\n").count == 1)
        #expect(json["queries"] as? Int == 3 && json["keys"] as? Int == 5 && json["scale"] as? Double == -0.5)
        let shares = try #require(json["mean_sink_share"] as? [Double])
        #expect(shares.count == 2 && shares.allSatisfy { 0 < $0 && $0 < 1 })
        let text = try QuietProcess("attend", path, "--output", output).output
        #expect(text.contains("sink share") && text.contains("GFLOP/s") && text.contains("[1, 2, 3, 4] F32"))
    }

    @Test func emptyWork() throws {
        let result = try attend(inputs(queries: [1, 2, 3, 4], keys: [1, 2, 0, 4], values: [1, 2, 0, 4]), "--lse")
        #expect(try result.floats(named: "out") == [Float](repeating: 0, count: 24))
        #expect(try result.floats(named: "lse") == [Float](repeating: 0, count: 6))
        let none = try attend(inputs(queries: [1, 2, 0, 4]))
        #expect(try none.tensor(named: "out").shape == [1, 2, 0, 4])
    }

    /// Without an element, a few bytes of header may speak of any number of sequences and heads.
    @Test func emptyWorkOfManySequencesOrHeads() throws {
        func empty(batch: Int, heads: Int, rows: Int = 0) throws -> String {
            let tensors = ["q", "k", "v"].map {
                #""\#($0)":{"dtype":"F32","shape":[\#(batch),\#(heads),\#(rows),8],"data_offsets":[0,0]}"#
            }
            return try folder.file(safetensors("{" + tensors.joined(separator: ",") + "}", dataBytes: 0))
        }
        let sequences = try empty(batch: 1 << 40, heads: 2)
        _ = try attend(sequences)
        #expect(try QuietProcess("inspect", sequences).output.contains(" nan"))
        let rows = try empty(batch: 0, heads: 1, rows: 1 << 40)
        _ = try attend(rows, "--scaling", "log=2")
        _ = try attend(rows, "--sink", "log-keys")
        _ = try attend(rows, "--normaliser", "sigmoid")
        _ = try attend(rows, "--positions", "rope")
        try expectFailure(
            ofInput: empty(batch: 1, heads: 1 << 31), options: ["--alibi"], "queryHeads: expected 0 to 1048576")
    }

    // MARK: - attend: what cannot be used

    /// Status 1, one line on standard error that begins with quiet: and contains `words`, nothing new in the folder.
    func expectFailure(_ arguments: [String], _ words: String..., environment: [String: String] = [:]) throws {
        let before = try folder.names
        let run = try QuietProcess(arguments, environment: environment)
        #expect(run.status == 1)
        #expect(run.output.isEmpty)
        #expect(run.diagnostics.hasPrefix("quiet: ") && run.diagnostics.filter { $0 == "\n" }.count == 1)
        for word in words { #expect(run.diagnostics.contains(word), "\(run.diagnostics)") }
        #expect(try folder.names == before)
    }

    func expectFailure(ofInput input: String, options: [String] = [], _ words: String) throws {
        try expectFailure(["attend", input, "--output", folder("out.safetensors")] + options, words)
    }

    @Test func truncatedFiles() throws {
        let whole = try bytes(ofFile: Self.example)
        for count in [0, 7, 8, 500, whole.count / 2, whole.count - 1] {
            try expectFailure(ofInput: folder.file(Array(whole.prefix(count))), "safetensors file")
        }
        try expectFailure(ofInput: folder.file(whole + [0]), "cover only")
        try expectFailure(ofInput: folder("missing"), "No such file")
        try expectFailure(ofInput: folder.path, "not a regular file")
    }

    @Test func lyingHeaders() throws {
        let header = #"{"q":{"dtype":"F32","shape":[1,1,SIZE,1],"data_offsets":[0,END]}}"#
        for (size, end, words) in [
            ("9223372036854775807", "4", "overflows"), ("1000000000000", "4000000000000", "truncated"),
            ("2", "4", "do not make"),
            ("-1", "4", "shape holds"), ("1", "-4", "data_offsets holds"),
        ] {
            let text = header.replacingOccurrences(of: "SIZE", with: size).replacingOccurrences(of: "END", with: end)
            try expectFailure(ofInput: folder.file(safetensors(text, dataBytes: 4)), words)
        }
        try expectFailure(
            ofInput: folder.file(safetensors("{}", dataBytes: 0, headerLength: 1 << 62)), "over the limit")
    }

    @Test func wrongTypesNamesAndShapes() throws {
        let sinks = [
            NamedTensor(name: "short", shape: [1], values: [0]),
            NamedTensor(name: "nan", shape: [2], values: [0, .nan]),
        ]
        let good = try inputs(others: sinks)
        try expectFailure(ofInput: good, options: ["--queries", "x"], "no tensor \"x\"")
        try expectFailure(
            ofInput: good, options: ["--queries", "short"], "expected the shape [batch, heads, sequence, dimension]")
        try expectFailure(ofInput: good, options: ["--sink", "tensor=short"], "2 logits")
        try expectFailure(ofInput: good, options: ["--sink", "tensor=nan"], "nan")
        try expectFailure(ofInput: good, options: ["--sink", "tensor=none"], "no tensor \"none\"")
        let shapes: [(q: [Int], k: [Int], v: [Int], words: String)] = [
            ([1, 2, 3, 4], [2, 2, 5, 4], [2, 2, 5, 4], "expected batch 1"),
            ([1, 2, 3, 4], [1, 2, 5, 3], [1, 2, 5, 4], "expected dimension 4"),
            ([1, 2, 3, 4], [1, 2, 5, 4], [1, 1, 5, 4], "expected heads 2"),
            ([1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 6, 4], "expected sequence 5"),
            ([1, 3, 3, 4], [1, 2, 5, 4], [1, 2, 5, 4], "expected heads that divide the 3 of \"q\", got 2"),
            ([1, 2, 3, 0], [1, 2, 5, 0], [1, 2, 5, 4], "headDimension"),
            ([1, 1, 1, 1025], [1, 1, 1, 1025], [1, 1, 1, 4], "headDimension"),
        ]
        for (queries, keys, values, words) in shapes {
            try expectFailure(ofInput: inputs(queries: queries, keys: keys, values: values), words)
        }
        let integers =
            #"{"q":{"dtype":"I32","shape":[1,1,1,1],"data_offsets":[0,4]},"#
            + #""k":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[4,8]},"#
            + #""v":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[8,12]}}"#
        try expectFailure(ofInput: folder.file(safetensors(integers, dataBytes: 12)), "tensor \"q\" has dtype I32")
    }

    @Test func outputsThatCannotBeWritten() throws {
        let input = try inputs()
        let before = try bytes(ofFile: input)
        try expectFailure(["attend", input, "--output", folder("no/out")], "cannot write")
        try expectFailure(["attend", input, "--output", folder.path], "not a regular file")
        try expectFailure(["attend", input, "--output", input], "is the input")
        try FileManager.default.createSymbolicLink(atPath: folder("link"), withDestinationPath: input)
        try expectFailure(["attend", input, "--output", folder("link")], "is the input")
        #expect(try bytes(ofFile: input) == before)
    }

    @Test func environmentWithoutSuchKernels() throws {
        try expectFailure(
            ["attend", inputs(), "--output", folder("out")], "QUIET_ATTENTION_KERNELS",
            environment: ["QUIET_ATTENTION_KERNELS": "abacus"])
    }

    // MARK: - Usage

    @Test(arguments: [
        ["nonsense"], ["attend"], ["attend", "in"], ["attend", "in", "--output"],
        ["attend", "in", "--output", "out", "more"],
        ["attend", "in", "--output", "out", "--mask", "window=0"],
        ["attend", "in", "--output", "out", "--mask", "diagonal"],
        ["attend", "in", "--output", "out", "--sink", "n=-1"], ["attend", "in", "--output", "out", "--sink", "n=inf"],
        ["attend", "in", "--output", "out", "--sink", "learned"],
        ["attend", "in", "--output", "out", "--scale", "nan"],
        ["attend", "in", "--output", "out", "--threads", "0"], ["attend", "in", "--output", "out", "--threads", "-1"],
        ["attend", "in", "--output", "out", "--kernels", "abacus"],
        ["bench", "--pass", "sideways"], ["bench", "--storage", "int8"],
        ["bench", "--storage", "f64"], ["bench", "--sink", "tensor=x"], ["bench", "--layout", "sbhd"],
        ["bench", "--seconds", "0"], ["bench", "--seconds", "nan"], ["bench", "--threads", "100000"],
        ["bench", "--query-heads", "3", "--kv-heads", "2"], ["bench", "--head-dim", "1025"],
        ["bench", "--queries", "9999999999999999999"], ["bench", "--batch", "9223372036854775807"],
        ["bench", "--seed=-1"], ["bench", "--products", "f16"],
        ["bench", "--products", "bf16", "--pass", "decode", "--storage", "f32"],
        ["bench", "--products", "bf16", "--pass", "decode", "--storage", "int8"],
        ["info", "more"],
    ])
    func usageErrors(arguments: [String]) throws {
        let run = try QuietProcess(arguments)
        #expect(run.status == 64)
        #expect(run.output.isEmpty)
        #expect(run.diagnostics.hasPrefix("Error: ") && run.diagnostics.contains("Usage: quiet"))
    }

    @Test(arguments: ["--batch", "--query-heads", "--kv-heads", "--queries", "--keys", "--head-dim", "--value-dim"])
    func extentsOfNothing(option: String) throws {
        for extent in ["0", "-1"] {
            let run = try QuietProcess("bench", option, extent)
            #expect(run.status == 64 && run.output.isEmpty)
            #expect(run.diagnostics.hasPrefix("Error: \(option): expected 1 or more, got \(extent)\n"))
        }
    }

    @Test(arguments: [[], ["--help"], ["--version"], ["attend", "--help"], ["bench", "--help"], ["info", "--help"]])
    func help(arguments: [String]) throws {
        let run = try QuietProcess(arguments)
        #expect(run.status == 0 && !run.output.isEmpty && run.diagnostics.isEmpty)
    }

    // MARK: - info and bench

    @Test func info() throws {
        let json = try QuietProcess("info", "--json").json
        #expect(json["version"] as? String == "0.1.0")
        let sets = try #require(json["kernels_available"] as? [String])
        #expect(sets.contains("portable") && sets.contains(json["kernels"] as? String ?? ""))
        #expect(json["threads"] as? Int ?? 0 >= 1)
        let tiles = json["kernels"] as? String == "x86_64_amx"
        let dots = json["kernels"] as? String == "x86_64_v4_bf16"
        #expect(json["bfloat16_products"] as? String == (tiles ? "tiles" : dots ? "dots" : "fma"))
        #expect(json["int8_products"] as? String == (tiles ? "tiles" : "pairs"))
        let set = try KernelSet(named: #require(json["kernels"] as? String))
        #expect(json["cache_reads"] as? String == (set.readsInQuarters ? "four" : "one"))
        let text = try QuietProcess("info").output
        #expect(
            text.contains("portable")
                && text.contains(
                    tiles ? "by tile instructions" : dots ? "by dot-product instructions" : "by fused multiply-adds")
        )
        #expect(text.contains(tiles ? "int8 by tile instructions" : "int8 by pairs"))
        let forced = try QuietProcess(["info", "--json"], environment: ["QUIET_ATTENTION_KERNELS": "portable"]).json
        #expect(forced["kernels"] as? String == "portable")
    }

    static let small = [
        "bench", "--query-heads", "4", "--kv-heads", "2", "--queries", "70", "--keys", "130", "--head-dim", "16",
        "--value-dim", "9", "--seconds", "0.001", "--json",
    ]

    func bench(_ arguments: String...) throws -> [String: Any] {
        let run = try QuietProcess(Self.small + arguments)
        #expect(run.status == 0 && run.output.split(separator: "\n").count == 1, "\(run.diagnostics)")
        return try run.json
    }

    @Test func benchReportsWhatTheContractAsksFor() throws {
        let json = try bench("--mask", "causal", "--storage", "bf16", "--sink", "learned")
        for name in [
            "median_ms", "min_ms", "runs", "gflops", "fma_peak_gflops", "products_peak_gflops", "fraction_of_peak",
            "gbytes_per_s", "read_gbytes_per_s", "read_best_gbytes_per_s", "workspace_bytes", "peak_rss_bytes",
            "threads",
        ] {
            #expect((json[name] as? Double ?? -1) > 0, "\(name)")
        }
        #expect(json["runs"] as? Int ?? 0 >= 3)
        #expect(json["cpu"] is String && json["kernels"] is String)
        let (gflops, median) = (try #require(json["gflops"] as? Double), try #require(json["median_ms"] as? Double))
        // 2 pairs (D + Dv) in four heads: row i of 70 sees the keys up to i + 60.
        #expect(json["pairs"] as? String == "visible")
        let operations = Double(4 * (70 * 60 + 70 * 71 / 2) * 2 * (16 + 9))
        let ratio = gflops * median * 1e6 / operations
        #expect(abs(ratio - 1) < 1e-5)
        #expect((json["digest"] as? String)?.count == 16)
    }

    /// Half of the pairs of a causal mask only where a triangle is left of them: 8 queries over 4096 keys see nearly all.
    @Test(arguments: [
        (["--mask", "causal", "--keys", "70"], "half", 70 * 70 / 2),
        (["--mask", "causal", "--keys", "70", "--key-lengths", "30"], "visible", 30 * 31 / 2),
        (["--mask", "none", "--key-lengths", "30"], "all", 70 * 30),
        (["--mask", "causal", "--queries", "1", "--pass", "decode"], "visible", 130),
    ])
    func pairsThatCount(options: [String], name: String, pairs: Int) throws {
        let json = try QuietProcess(Self.small + options).json
        #expect(json["pairs"] as? String == name)
        let (gflops, median) = (try #require(json["gflops"] as? Double), try #require(json["median_ms"] as? Double))
        #expect(abs(gflops * median * 1e6 / Double(4 * 2 * pairs * (16 + 9)) - 1) < 1e-5)
    }

    @Test func digestsDependOnTheProblemAlone() throws {
        func digest(_ arguments: [String]) throws -> String {
            try #require(try QuietProcess(Self.small + arguments).json["digest"] as? String)
        }
        let expected = try digest([])
        for kernels in try Self.kernelSets() { #expect(try digest(["--kernels", kernels]) == expected) }
        #expect(try digest(["--threads", "2", "--layout", "bshd"]) == expected)
        let others = try [["--seed", "2"], ["--sink", "softmax"], ["--mask", "window=9"], ["--storage", "bf16"]].map(
            digest)
        #expect(Set(others + [expected]).count == 5)
        // Caches for products of bfloat16 are of bfloat16, however the inputs were rounded.
        let products = try digest(["--products", "bf16"])
        #expect(products != expected)
        for storage in [[], ["--storage", "bf16"]] {
            #expect(try digest(["--products", "bf16", "--pass", "decode", "--mask", "none"] + storage) == products)
        }
    }

    @Test func digestsOfGradientsDependOnTheProblemAlone() throws {
        func digest(_ products: String, _ arguments: String...) throws -> String {
            let options = ["--pass", "backward", "--mask", "causal", "--sink", "learned", "--products", products]
            let json = try QuietProcess(Self.small + options + arguments).json
            #expect(json["products"] as? String == (products == "f32" ? "float32" : "bfloat16"))
            return try #require(json["digest"] as? String)
        }
        let expected = try digest("bf16", "--threads", "2", "--layout", "bshd")
        for kernels in try Self.kernelSets() { #expect(try digest("bf16", "--kernels", kernels) == expected) }
        #expect(try digest("f32") != expected)
    }

    @Test func benchRefusesMoreMemoryThanThereIs() throws {
        try expectFailure(["bench", "--query-heads", "1", "--queries", "1000000000000"], "the machine has")
    }
}
