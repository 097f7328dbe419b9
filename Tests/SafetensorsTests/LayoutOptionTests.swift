// SPDX-License-Identifier: Apache-2.0
// LayoutOptionTests.swift - quiet attend with the order of dimensions, windows to both sides, gains of each head, and tensors of
// types beside floats of 32 bits.

import Foundation
import QuietAttention
import Testing

@testable import Safetensors

extension CommandLineTests {
    /// Four query heads over two, in two batch items; the file in both orders.
    private struct LayoutProblem {
        let shape: AttentionShape
        let queries, keys, values, logits: [Float]
        var (bhsd, bshd) = ("", "")

        init(_ tests: CommandLineTests) throws {
            shape = try AttentionShape(
                batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 3, keys: 7, headDimension: 8, valueDimension: 5)
            (queries, keys, values, logits) = (
                CommandLineTests.numbers(192), CommandLineTests.numbers(224, 7), CommandLineTests.numbers(140, 31),
                CommandLineTests.numbers(120, 3)
            )
            func write(_ name: String, _ isExchanged: Bool) throws -> String {
                func float(_ name: String, _ heads: Int, _ rows: Int, _ width: Int, _ elements: [Float]) -> StoredTensor
                {
                    let data = isExchanged ? Self.exchanged(elements, heads, rows, width) : elements
                    let shape = isExchanged ? [2, rows, heads] : [2, heads, rows]
                    return StoredTensor(name, .float32, shape + (width == 0 ? [] : [width]), data.map(\.bitPattern))
                }
                return try tests.folder.file(
                    safetensors([
                        float("q", 4, 3, 8, queries), float("k", 2, 7, 8, keys), float("v", 2, 7, 5, values),
                        float("gate", 4, 3, 5, logits), float("gate rows", 4, 3, 0, Array(logits[..<24])),
                        StoredTensor("sinks", .float64, [4], [0.5, -1, 0, 2].map(\.bitPattern)),
                    ]), name: name)
            }
            (bhsd, bshd) = (try write("bhsd.safetensors", false), try write("bshd.safetensors", true))
        }

        /// `[2, outer, inner, width]` as `[2, inner, outer, width]`.
        static func exchanged(_ elements: [Float], _ outer: Int, _ inner: Int, _ width: Int) -> [Float] {
            let width = max(width, 1)
            return (0..<2).flatMap { item in
                (0..<inner).flatMap { i in
                    (0..<outer).flatMap { o -> ArraySlice<Float> in
                        let start = ((item * outer + o) * inner + i) * width
                        return elements[start..<start + width]
                    }
                }
            }
        }
    }

    @Test(arguments: [
        ["--mask", "causal"], ["--gate", "gate"], ["--gate", "gate rows"], ["--sink", "tensor=sinks"],
        ["--recurrent", "linear"], ["--positions", "rope", "--value-norm", "rms", "--output-norm", "layer"],
    ])
    func layouts(options: [String]) throws {
        let problem = try LayoutProblem(self)
        let plain = try out(problem.bhsd, options)
        #expect(try out(problem.bhsd, options + ["--layout", "bhsd"]) == plain)
        let lse = options.contains("--recurrent") ? [] : ["--lse"]
        let exchanged = try out(problem.bshd, options + ["--layout", "bshd"] + lse)
        #expect(exchanged == LayoutProblem.exchanged(plain, 4, 3, 5))
        let file = try SafetensorsFile(path: folder("out.safetensors"))
        #expect(try file.tensor(named: "out").shape == [2, 3, 4, 5])
        if !lse.isEmpty { #expect(try file.tensor(named: "lse").shape == [2, 4, 3]) }
    }

    /// What can be told from the shapes is refused, with the option that says which it is.
    @Test func shapesThatLookLikeTheOtherLayout() throws {
        func file(_ q: [Int], _ k: [Int], sinks: Int = 1) throws -> String {
            func tensor(_ name: String, _ shape: [Int]) -> StoredTensor {
                StoredTensor(name, .float32, shape, [UInt32](repeating: 0, count: shape.reduce(1, *)))
            }
            return try folder.file(
                safetensors([tensor("q", q), tensor("k", k), tensor("v", k), tensor("s", [sinks])]),
                name: "shapes.safetensors")
        }
        // Eight heads over two in a sequence of six; one query of 32 heads over 50 keys of eight.
        let grouped = try file([1, 6, 8, 16], [1, 6, 2, 16])
        try expectFailure(ofInput: grouped, "expected --layout bshd")
        #expect(try out(grouped, ["--layout", "bshd"]).count == 6 * 8 * 16)
        #expect(try out(grouped, ["--layout", "bhsd"]).count == 6 * 8 * 16)
        try expectFailure(ofInput: file([1, 1, 32, 16], [1, 50, 8, 16]), "with --layout bshd the shapes fit")
        try expectFailure(
            ofInput: file([1, 4, 1, 16], [1, 2, 50, 16]), options: ["--layout", "bshd"],
            "with --layout bhsd the shapes fit")
        try expectFailure(
            ofInput: file([1, 12, 8, 16], [1, 12, 8, 16], sinks: 8), options: ["--sink", "tensor=s"],
            "--layout bshd reads [batch, sequence, heads, dimension]")
        // More queries than keys, but in no whole number of groups: heads first.
        #expect(try out(file([1, 2, 7, 4], [1, 2, 3, 4]), []).count == 56)
        let run = try QuietProcess(["attend", grouped, "--output", folder("out"), "--layout", "sbhd"])
        #expect(run.status == 64)
    }

    @Test(arguments: [(2, 1), (0, 0), (0, 9), (9, 0)])
    func windowsToBothSides(before: Int, after: Int) throws {
        try expectLibraryBits(["--mask", "window=\(before),\(after)"]) {
            try Attention($0.shape, sink: .softmax1, mask: .window(before: before, after: after))
        }
    }

    @Test(arguments: ["window=1,2,3", "window=-1,2", "window=1,", "window=,1", "window=0", "window=a,b", "window"])
    func windowsThatAreNone(mask: String) throws {
        let run = try QuietProcess(["bench", "--mask", mask])
        #expect(run.status == 64 && run.output.isEmpty)
    }

    @Test(arguments: ["none", "linear"])
    func gainsOfEachHead(recurrent: String) throws {
        let problem = try TensorProblem(self)
        let (gains, keyGains) = (Self.numbers(32, 5), Self.numbers(16, 2))
        func float(_ name: String, _ shape: [Int], _ elements: [Float]) -> StoredTensor {
            StoredTensor(name, .float32, shape, elements.map(\.bitPattern))
        }
        let path = try folder.file(
            safetensors([
                float("q", [2, 4, 3, 8], problem.queries), float("k", [2, 2, 7, 8], problem.keys),
                float("v", [2, 2, 7, 5], problem.values), float("g", [4, 8], gains), float("h", [2, 8], keyGains),
            ]), name: "gains.safetensors")
        let options = ["--qk-norm", "rms", "--query-gain", "g", "--key-gain", "h"]
        let norm = QueryKeyNorm.rms(queryGain: gains, keyGain: keyGains)
        if recurrent == "none" {
            #expect(
                try out(path, options)
                    == problem.output(Attention(problem.shape, sink: .softmax1, queryKeyNorm: norm)))
            try expectFailure(ofInput: path, options: ["--qk-norm", "rms", "--key-gain", "g"], "[8] or [2, 8]")
            return
        }
        func normalised(_ rows: [Float], _ gain: [Float], _ heads: Int) throws -> [Float] {
            let size = rows.count / (2 * heads)
            return try (0..<2 * heads).flatMap { index -> [Float] in
                var part = Array(rows[index * size..<(index + 1) * size])
                let head = index % heads
                try RMSNorm(dimension: 8, gain: Array(gain[head * 8..<(head + 1) * 8])).apply(to: &part)
                return part
            }
        }
        let expected = try RecurrentAttention(.linear, problem.shape, isCausal: false).forward(
            queries: normalised(problem.queries, gains, 4), keys: normalised(problem.keys, keyGains, 2),
            values: problem.values)
        #expect(try out(path, options + ["--recurrent", "linear"]) == expected)
    }

    /// F64 is rounded once; masks and lengths may be integers of any kind; a mask of F64 may hold its least number.
    @Test func otherTypes() throws {
        let problem = try TensorProblem(self)
        func double(_ name: String, _ shape: [Int], _ elements: [Double]) -> StoredTensor {
            StoredTensor(name, .float64, shape, elements.map(\.bitPattern))
        }
        let fine = problem.queries.map { Double($0) + 1e-3 / 3 }
        let mask = (0..<7).map { $0 % 3 }
        let path = try folder.file(
            safetensors([
                double("q", [2, 4, 3, 8], fine), double("k", [2, 2, 7, 8], problem.keys.map(Double.init)),
                double("v", [2, 2, 7, 5], problem.values.map(Double.init)),
                StoredTensor("i64", .int64, [7], mask.map { Int64($0) << 32 }),
                StoredTensor("i32", .int32, [7], mask.map(Int32.init)),
                StoredTensor("u8", .uint8, [7], mask.map(UInt8.init)),
                StoredTensor("lengths", .uint32, [2], [7, 4] as [UInt32]),
                double("least rows", [7], [Double](repeating: -.greatestFiniteMagnitude, count: 7)),
                double("far", [2, 4, 3, 8], fine.map { $0 * 1e300 }),
            ]), name: "types.safetensors")
        func expected(_ mask: AttentionMask) throws -> [Float] {
            try Attention(problem.shape, sink: .softmax1, mask: mask)
                .forward(queries: fine.map { Float($0) }, keys: problem.keys, values: problem.values).output
        }
        #expect(try out(path, []) == expected(.none))
        let allowed = try expected(.none.allowing(BroadcastTensor(mask.map { $0 != 0 }, keys: 7)))
        for name in ["i64", "i32", "u8"] { #expect(try out(path, ["--allowed", name]) == allowed) }
        #expect(try out(path, ["--key-lengths", "lengths"]) == expected(.none.keyLengths([7, 4])))
        let masked = try out(path, ["--bias", "least rows", "--sink", "softmax"])
        let mean = (0..<7).reduce(Float(0)) { $0 + problem.values[$1 * 5] } / 7
        #expect(abs(masked[0] - mean) < 1e-6)
        try expectFailure(ofInput: path, options: ["--queries", "far"], "beyond the range of F32")
    }
}
