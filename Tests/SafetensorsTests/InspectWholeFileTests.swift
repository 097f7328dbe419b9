// SPDX-License-Identifier: Apache-2.0
// InspectWholeFileTests.swift - quiet inspect on files of many tensors, odd ones among them: each costs its own result alone.

import Foundation
import Testing

@testable import Safetensors

extension InspectTests {
    private func trio(_ prefix: String, _ shapes: [[Int]], _ type: ElementType = .float32) -> [NamedTensor] {
        zip(["q", "k", "v"], shapes).map { name, shape in
            let values = (0..<shape.reduce(1, *)).map { Float($0 * 7 % 5) }
            return NamedTensor(name: prefix + name, shape: shape, values: values, elementType: type)
        }
    }

    // MARK: - Odd tensors

    /// Beside a problem that is one, tensors of the same names that are none; with the reason.
    @Test(
        arguments: [
            ([[64, 32, 3, 3], [32, 32, 3, 3], [64, 32, 3, 3]], "expected batch 64"),
            ([[1, 2, 3, 4], [1, 2, 5, 8], [1, 2, 5, 8]], "expected dimension 4"),
            ([[1, 5, 3, 4], [1, 2, 5, 4], [1, 2, 5, 4]], "expected heads that divide the 5 of "),
            ([[1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 6, 4]], "expected sequence 5"),
            ([[1, 1, 1, 1025], [1, 1, 1, 1025], [1, 1, 1, 4]], "headDimension"),
        ] as [([[Int]], String)])
    func oddTrios(shapes: [[Int]], words: String) throws {
        let path = folder("in.safetensors")
        let tensors = trio("block.", shapes) + trio("layer.", [[1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 5, 4]])
        try SafetensorsFile.write(tensors, to: path)
        let run = try inspect(path, "--json")
        #expect(try self.tensors(run).count == 6)
        #expect(try attention(run).map { $0["query_tensor"] as? String } == ["layer.q"])
        let leftOut = try #require(try run.json["left_out"] as? [[String: Any]])
        #expect(leftOut.map { $0["tensors"] as? [String] } == [["block.q", "block.k", "block.v"]])
        #expect((leftOut.first?["reason"] as? String)?.contains(words) == true, "\(leftOut)")
        let text = try inspect(path).output
        #expect(text.contains("left out    block.q, block.k, block.v: ") && text.contains("tensors     layer.q"))
    }

    @Test func triosOfIntegers() throws {
        let data = [Int8](repeating: 1, count: 8)
        let path = try folder.file(safetensors(["q", "k", "v"].map { StoredTensor($0, .int8, [1, 2, 1, 4], data) }))
        let run = try inspect(path, "--json")
        #expect(try tensors(run).count == 3 && attention(run).isEmpty)
        let reason = try #require(try run.json["left_out"] as? [[String: Any]]).first?["reason"] as? String
        #expect(reason?.contains("dtype I8") == true)
    }

    /// An option that fits one of the problems leaves the others out; one that fits none is wrong itself.
    @Test func optionsThatFitSomeProblems() throws {
        let path = folder("in.safetensors")
        let sinks = NamedTensor(name: "s", shape: [4], values: [0, 1, 2, 3])
        let tensors = trio("a.", [[1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 5, 4]])
        let four = trio("b.", [[1, 4, 3, 4], [1, 2, 5, 4], [1, 2, 5, 4]])
        try SafetensorsFile.write(tensors + four + [sinks], to: path)
        let run = try inspect(path, "--sink", "tensor=s", "--json")
        #expect(try attention(run).map { $0["query_tensor"] as? String } == ["b.q"])
        try SafetensorsFile.write(tensors + [sinks], to: path)
        try expectFailure([path, "--sink", "tensor=s"], "expected 2 logits")
    }

    /// Status 1, behind the report of all that can be measured.
    @Test func tensorsBeyondMemory() throws {
        let path = try folder.fileBeyondMemory()
        let run = try QuietProcess("inspect", path, "--json")
        #expect(
            run.status == 1
                && run.diagnostics.hasPrefix("quiet: tensor \"huge\": its elements take 8796093022208 bytes"))
        let found = try tensors(run)
        #expect(found["w"]?["count"] as? Int == 2 && found["huge"]?["count"] == nil)
        #expect((try run.json["faults"] as? [String])?.count == 1)
        try expectFailure([path, "--tensor", "huge"], "more than there is memory")
    }

    // MARK: - Many tensors

    /// So many that a time in proportion to their number's square would be minutes.
    @Test(.timeLimit(.minutes(1)))
    func manyTensors() throws {
        let path = folder("in.safetensors")
        let one = [NamedTensor(name: "layer.7.q", shape: [1, 1, 1, 1], values: [1])]
        let count = 20_000
        let others = (0..<count).map { NamedTensor(name: "model.layers.\($0).w", shape: [1], values: [Float($0)]) }
        try SafetensorsFile.write(others + one, to: path)
        let run = try inspect(path)
        // A head line, one for each tensor, and one for queries without keys and values.
        #expect(run.output.split(separator: "\n").count == count + 3)
        #expect(run.output.contains("left out    layer.7.q, layer.7.k, layer.7.v: "))
    }

    @Test func progressWhereItIsAskedFor() throws {
        let run = try QuietProcess("inspect", CommandLineTests.example, "--progress", "--tensor", "q")
        #expect(run.status == 0 && run.diagnostics == "1 of 1 tensors, 0.00 of 0.00 GB, 0 s left\n")
        #expect(try QuietProcess("inspect", CommandLineTests.example, "--no-progress").diagnostics.isEmpty)
    }

    @Test func manyDimensionsAreCutOff() throws {
        let path = folder("in.safetensors")
        try SafetensorsFile.write(
            [NamedTensor(name: "w", shape: [Int](repeating: 1, count: 40), values: [1])], to: path)
        let cut = "[" + String(repeating: "1, ", count: 16) + "... 40 extents]"
        #expect(try inspect(path).output.contains(cut))
        #expect((try tensors(inspect(path, "--json"))["w"]?["shape"] as? [Int])?.count == 40)
    }

    // MARK: - Prefixes

    @Test func onePrefixAlone() throws {
        let path = folder("in.safetensors")
        let shapes = [[1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 5, 4]]
        try SafetensorsFile.write(trio("layer1.", shapes) + trio("layer12.", shapes), to: path)
        for prefix in ["layer12", "layer12."] {
            let run = try inspect(path, "--prefix", prefix, "--json")
            #expect(try attention(run).map { $0["value_tensor"] as? String } == ["layer12.v"])
        }
        let attend = try QuietProcess("attend", path, "--prefix", "layer1", "--output", folder("out"))
        #expect(attend.status == 0, "\(attend.diagnostics)")
        let named = try QuietProcess(
            "attend", path, "--queries", "layer1.q", "--keys", "layer1.k", "--values", "layer1.v", "--output",
            folder("named"))
        #expect(try named.status == 0 && bytes(ofFile: folder("named")) == bytes(ofFile: folder("out")))
        let mixed = try QuietProcess(
            "attend", path, "--prefix", "layer1", "--queries", "k", "--keys", "q", "--values", "q", "--output",
            folder("mixed"))
        #expect(mixed.status == 0, "\(mixed.diagnostics)")
        try expectFailure([path, "--prefix", "layer2"], "no tensor \"layer2.q\"")
    }
}
