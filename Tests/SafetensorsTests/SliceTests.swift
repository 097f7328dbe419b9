// SPDX-License-Identifier: Apache-2.0
// SliceTests.swift - parts of tensors, read and written.

import Safetensors
import Testing

@Suite struct SliceTests {
    @Test func slicesMakeTheFile() throws {
        let folder = try TemporaryFolder()
        let path = folder("out")
        let plans = [TensorPlan(name: "out", shape: [2, 3]), TensorPlan(name: "lse", shape: [2])]
        let file = try SlicedFile(plans, for: path)
        try file.write([4, 5, 6], of: "out", from: 3)
        try file.write([7, 8], of: "lse", from: 0)
        try file.write([1, 2, 3], of: "out", from: 0)
        #expect(throws: SafetensorsError.self) { try file.write([1, 2], of: "lse", from: 1) }
        #expect(throws: SafetensorsError.self) { try file.write([1], of: "other", from: 0) }
        try file.commit()
        let read = try SafetensorsFile(path: path)
        #expect(try read.floats(named: "out") == [1, 2, 3, 4, 5, 6])
        #expect(try read.floats(named: "lse") == [7, 8])
        #expect(try folder.names == ["out"])
    }

    @Test func nothingIsLeftOfAFileThatWasNotCommitted() throws {
        let folder = try TemporaryFolder()
        _ = try SlicedFile([TensorPlan(name: "out", shape: [1 << 20])], for: folder("out"))
        #expect(try folder.names == [])
    }

    @Test func plansThatMakeNoSense() throws {
        let path = try TemporaryFolder()("out")
        #expect(throws: SafetensorsError.sizeOverflow(tensor: "x", shape: [-1])) {
            _ = try SlicedFile([TensorPlan(name: "x", shape: [-1])], for: path)
        }
        #expect(throws: SafetensorsError.duplicateName("x")) {
            _ = try SlicedFile([TensorPlan(name: "x", shape: [1]), TensorPlan(name: "x", shape: [1])], for: path)
        }
        #expect(throws: SafetensorsError.self) {
            _ = try SlicedFile([TensorPlan(name: "x", shape: [1], elementType: .float16)], for: path)
        }
    }

    @Test func bytesOfATensor() throws {
        let folder = try TemporaryFolder()
        let path = folder("in")
        try SafetensorsFile.write(
            [
                NamedTensor(name: "a", shape: [1], values: [9]),
                NamedTensor(name: "x", shape: [2, 2], values: [1, 2, 3, 4], elementType: .bfloat16),
            ], to: path)
        let file = try SafetensorsFile(path: path)
        var bits = [UInt16](repeating: 0, count: 2)
        try bits.withUnsafeMutableBytes { try file.read(file.tensor(named: "x"), from: 4, into: $0) }
        #expect(bits == [0x4040, 0x4080])
        #expect(throws: SafetensorsError.self) {
            try bits.withUnsafeMutableBytes { try file.read(file.tensor(named: "x"), from: 6, into: $0) }
        }
    }
}
