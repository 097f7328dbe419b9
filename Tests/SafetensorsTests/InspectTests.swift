// SPDX-License-Identifier: Apache-2.0
// InspectTests.swift - quiet inspect as a process: its numbers against formulas on real data, and what it refuses.

import Foundation
import Testing

@testable import Safetensors

@Suite struct InspectTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    func inspect(_ arguments: String...) throws -> QuietProcess {
        let run = try QuietProcess(["inspect"] + arguments)
        #expect(run.status == 0 && run.diagnostics.isEmpty, "\(run.diagnostics)")
        return run
    }

    func attention(_ run: QuietProcess) throws -> [[String: Any]] {
        try #require(try run.json["attention"] as? [[String: Any]])
    }

    func heads(_ run: QuietProcess) throws -> [[String: Double]] {
        try #require(try attention(run).first?["heads"] as? [[String: Double]])
    }

    func tensors(_ run: QuietProcess) throws -> [String: [String: Any]] {
        let tensors = try #require(try run.json["tensors"] as? [[String: Any]])
        return Dictionary(uniqueKeysWithValues: tensors.map { ($0["name"] as? String ?? "", $0) })
    }

    /// As near as the seven digits that are printed, and weights in Float, allow.
    func isClose(_ actual: Double?, _ expected: Double) -> Bool {
        abs((actual ?? .nan) - expected) <= 3e-6 * max(1, abs(expected))
    }

    // MARK: - Real data

    @Test func tensorsOfRealData() throws {
        let file = try SafetensorsFile(path: CommandLineTests.example)
        let found = try tensors(inspect(CommandLineTests.example, "--json"))
        #expect(Set(found.keys) == Set(file.tensors.map(\.name)))
        let values = try file.floats(named: "q").map(Double.init)
        let n = Double(values.count)
        let mean = values.reduce(0, +) / n
        let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / n
        let fourth = values.reduce(0) { $0 + pow($1 - mean, 4) } / n
        let largest = values.map(abs).max()!
        let q = try #require(found["q"])
        #expect(q["count"] as? Int == values.count && q["dtype"] as? String == "F32")
        #expect(q["shape"] as? [Int] == [1, 2, 192, 32])
        for (name, expected) in [
            ("mean", mean), ("standard_deviation", variance.squareRoot()), ("infinity_norm", largest),
            ("excess_kurtosis", fourth / (variance * variance) - 3), ("raw_kurtosis", fourth / (variance * variance)),
            ("int8_step", largest / 127),
            ("share_beyond_6_deviations", 0),
        ] {
            #expect(isClose(q[name] as? Double, expected), "\(name)")
        }
    }

    @Test func headsOfRealData() throws {
        let file = try SafetensorsFile(path: CommandLineTests.example)
        let (q, k) = (try file.floats(named: "q").map(Double.init), try file.floats(named: "k").map(Double.init))
        let (length, dimension) = (192, 32)
        let found = try heads(
            inspect(CommandLineTests.example, "--mask", "causal", "--sink", "n=2", "--leading-keys", "2", "--json"))
        #expect(found.count == 2)
        let head = 1
        var (share, entropy, keyEntropy, largest, leading) = (0.0, 0.0, 0.0, 0.0, 0.0)
        var heaviest: [Int: Int] = [:]
        for row in 0..<length {
            let query = (head * length + row) * dimension
            let scores = (0...row).map { key -> Double in
                var product = 0.0
                for d in 0..<dimension { product += q[query + d] * k[(head * length + key) * dimension + d] }
                return product / Double(dimension).squareRoot()
            }
            let sum = scores.reduce(2) { $0 + exp($1) }
            let sink = 2 / sum
            let raw = scores.reduce(0) { $0 - exp($1) / sum * log(exp($1) / sum) }
            share += sink
            entropy += raw - sink * log(sink)
            keyEntropy += raw / (1 - sink) + log(1 - sink)
            largest = max(largest, scores.map(abs).max()!)
            leading += scores.prefix(2).reduce(0) { $0 + exp($1) / sum }
            heaviest[scores.firstIndex(of: scores.max()!)!, default: 0] += 1
        }
        let rows = Double(length)
        #expect(isClose(found[head]["sink_share"], share / rows))
        #expect(isClose(found[head]["entropy"], entropy / rows))
        #expect(isClose(found[head]["key_entropy"], keyEntropy / rows))
        #expect(isClose(found[head]["largest_score"], largest))
        #expect(found[head]["rows"] == 192)
        #expect(isClose(found[head]["leading_weight"], leading / rows))
        let (key, count) = try #require(heaviest.max { ($0.value, -$0.key) < ($1.value, -$1.key) })
        #expect(found[head]["heaviest_key"] == Double(key))
        #expect(isClose(found[head]["heaviest_key_share"], Double(count) / rows))
    }

    @Test(arguments: [
        ["--mask", "window=20", "--scale", "0.4", "--sink", "n=3"],
        ["--mask", "causal", "--positions", "rope", "--qk-norm", "rms", "--alibi", "--softcap", "2"],
    ])
    func sinkSharesAreThoseOfAttend(options: [String]) throws {
        let options = options + ["--json"]
        let attend = try QuietProcess(["attend", CommandLineTests.example, "--output", folder("out")] + options)
        let shares = try #require(try attend.json["mean_sink_share"] as? [Double])
        let run = try QuietProcess(["inspect", CommandLineTests.example] + options)
        for (head, share) in zip(try heads(run), shares) { #expect(isClose(head["sink_share"], share)) }
        let attention = try #require(try attention(run).first)
        for name in ["mask", "sink", "scale", "positions"] {
            #expect("\(attention[name] ?? 0)" == "\(try attend.json[name] ?? 1)", "\(name)")
        }
    }

    @Test func everyKernelSetAndThreadCountPrintsTheSame() throws {
        var results: Set<[[String: Double]]> = []
        for kernels in try CommandLineTests.kernelSets() {
            for threads in ["1", "2"] {
                results.insert(
                    try heads(
                        inspect(CommandLineTests.example, "--json", "--kernels", kernels, "--threads", threads)))
            }
        }
        #expect(results.count == 1)
    }

    @Test func tables() throws {
        let text = try inspect(CommandLineTests.example).output
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        #expect(lines[0].hasPrefix("tensor") && lines[0].contains("kurtosis") && lines[0].contains("int8 dB"))
        #expect(lines.contains { $0.hasPrefix("q ") && $0.contains("[1, 2, 192, 32]") && $0.contains("F32") })
        #expect(text.contains("sink softmax1, mask none") && text.contains("epsilon     0.001"))
        let heads = try #require(lines.firstIndex { $0.hasPrefix("head") })
        #expect(lines[heads].contains("top/median") && lines[heads + 2].contains("1  "))
        // Numbers stand under the ends of their titles.
        #expect(lines[heads].count == lines[heads + 1].count)
    }

    // MARK: - Other files

    func write(_ tensors: NamedTensor...) throws -> String {
        let path = folder("in.safetensors")
        try SafetensorsFile.write(tensors, to: path)
        return path
    }

    @Test func tensorsByName() throws {
        let run = try inspect(CommandLineTests.example, "--tensor", "v", "--tensor", "k", "--json")
        #expect(Set(try tensors(run).keys) == ["v", "k"])
        #expect(try attention(run).isEmpty)
        #expect(try inspect(CommandLineTests.example, "--tensor", "v").output.split(separator: "\n").count == 2)
    }

    @Test func filesWithoutQueries() throws {
        let path = try write(
            NamedTensor(name: "weight", shape: [2, 2], values: [1, -1, 1, 9]),
            NamedTensor(name: "a name\nof two lines", shape: [0], values: []),
            NamedTensor(name: "broken", shape: [2], values: [.nan, 1]),
            NamedTensor(name: "q", shape: [1], values: [3]))
        let run = try inspect(path, "--json")
        #expect(try attention(run).isEmpty)
        let found = try tensors(run)
        #expect(found["weight"]?["infinity_norm"] as? Double == 9)
        #expect(found["broken"]?["infinity_norm"] is NSNull && found["broken"]?["count"] as? Int == 2)
        #expect(found["a name\nof two lines"]?["mean"] is NSNull)
        let text = try inspect(path).output
        #expect(text.split(separator: "\n").count == 5 && text.contains("nan") && !text.contains("-nan"))
    }

    @Test func tensorsOfIntegersAreListedOnly() throws {
        let header = #"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#
        let path = try folder.file(safetensors(header, dataBytes: 8))
        let found = try tensors(inspect(path, "--json"))
        #expect(found["ids"]?["dtype"] as? String == "I64" && found["ids"]?["mean"] == nil)
        #expect(try inspect(path).output.contains("I64"))
        try expectFailure([path, "--tensor", "ids"], "dtype I64")
    }

    @Test func groupedHeadsOtherNamesAndLogitsFromTheFile() throws {
        func values(_ count: Int) -> [Float] { (0..<count).map { Float(($0 * 37) % 101 - 50) / 32 } }
        let path = try write(
            NamedTensor(name: "a", shape: [2, 4, 3, 8], values: values(192), elementType: .bfloat16),
            NamedTensor(name: "b", shape: [2, 2, 5, 8], values: values(160)),
            NamedTensor(name: "c", shape: [2, 2, 5, 3], values: values(60)),
            NamedTensor(name: "s", shape: [4], values: [0, 50, -50, -.infinity]))
        let names = ["--queries", "a", "--keys", "b", "--values", "c"]
        let run = try QuietProcess(["inspect", path, "--sink", "tensor=s", "--json"] + names)
        let found = try heads(run)
        #expect(found.count == 4 && found.allSatisfy { $0["rows"] == 6 })
        #expect(found[1]["sink_share"]! > 0.999 && found[3]["sink_share"] == 0)
        #expect(found[3]["entropy"] == found[3]["key_entropy"])
    }

    /// Every q with a k and a v behind the same prefix; matrices of those names are weights.
    @Test func layersAreFoundByTheirPrefixes() throws {
        func tensors(_ prefix: String, _ shape: [Int]) -> [NamedTensor] {
            ["q", "k", "v"].enumerated().map { index, name in
                let values = (0..<shape.reduce(1, *)).map { Float(($0 * 7 + index) % 5) }
                return NamedTensor(name: prefix + name, shape: shape, values: values)
            }
        }
        let path = folder("in.safetensors")
        let layers = tensors("layer0.", [1, 2, 3, 4]) + tensors("layer1.", [1, 1, 5, 2])
        let others = tensors("weights.", [4, 4]) + [NamedTensor(name: "lone.q", shape: [1, 1, 1, 1], values: [1])]
        try SafetensorsFile.write(layers + others, to: path)
        let found = try attention(inspect(path, "--json"))
        #expect(found.map { $0["query_tensor"] as? String } == ["layer0.q", "layer1.q"])
        #expect(found.map { $0["value_tensor"] as? String } == ["layer0.v", "layer1.v"])
        #expect(found.map { ($0["heads"] as? [Any])?.count } == [2, 1])
        let text = try inspect(path).output
        #expect(text.contains("tensors     layer1.q, layer1.k, layer1.v") && !text.contains("tensors     weights"))
    }

    // MARK: - What cannot be used

    /// Status 1, nothing on standard output, one line that begins with quiet: and contains `words`.
    func expectFailure(_ arguments: [String], _ words: String) throws {
        let run = try QuietProcess(["inspect"] + arguments)
        #expect(run.status == 1 && run.output.isEmpty)
        #expect(run.diagnostics.hasPrefix("quiet: ") && run.diagnostics.filter { $0 == "\n" }.count == 1)
        #expect(run.diagnostics.contains(words), "\(run.diagnostics)")
    }

    @Test func failures() throws {
        let whole = try bytes(ofFile: CommandLineTests.example)
        for count in [0, 7, 500, whole.count - 1] {
            try expectFailure([folder.file(Array(whole.prefix(count)))], "safetensors file")
        }
        try expectFailure([folder("missing")], "No such file")
        let example = CommandLineTests.example
        try expectFailure([example, "--tensor", "x"], "no tensor \"x\"")
        try expectFailure([example, "--keys", "x"], "no tensor \"x\"")
        try expectFailure([example, "--sink", "tensor=q"], "2 logits")
        let unfit = try write(
            NamedTensor(name: "q", shape: [1, 2, 3, 4], values: [Float](repeating: 1, count: 24)),
            NamedTensor(name: "k", shape: [1, 2, 3, 2], values: [Float](repeating: 1, count: 12)),
            NamedTensor(name: "v", shape: [1, 2, 3, 2], values: [Float](repeating: 1, count: 12)))
        try expectFailure([unfit, "--queries", "q", "--values", "k", "--keys", "v"], "expected dimension 4")
        #expect(try inspect(unfit, "--tensor", "k").output.contains("[1, 2, 3, 2]"))
    }

    @Test(arguments: [
        [], ["in", "more"], ["in", "--epsilon", "-1"], ["in", "--epsilon", "nan"], ["in", "--leading-keys", "-1"],
        ["in", "--leading-keys", "0"], ["in", "--scale", "inf"],
        ["in", "--mask", "diagonal"], ["in", "--sink", "learned"], ["in", "--normaliser", "sigmoid"],
        ["in", "--tensor"], ["in", "--threads", "0"],
    ])
    func usageErrors(arguments: [String]) throws {
        let run = try QuietProcess(["inspect"] + arguments)
        #expect(run.status == 64 && run.output.isEmpty)
        #expect(run.diagnostics.hasPrefix("Error: ") && run.diagnostics.contains("Usage: quiet inspect"))
    }

    @Test func help() throws {
        let run = try QuietProcess("inspect", "--help")
        #expect(run.status == 0 && run.output.contains("--epsilon") && run.output.contains("kurtosis"))
    }
}
