// SPDX-License-Identifier: Apache-2.0
// WritingTests.swift - what is written can be read, byte for byte as the format wants it, or nothing is left behind.

import Foundation
import Testing

@testable import Safetensors

@Suite struct WritingTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    @Test func bytesOfASmallFile() throws {
        let path = folder("out.safetensors")
        try SafetensorsFile.write(
            [
                NamedTensor(name: "b", shape: [1, 2], values: [1, 2], elementType: .bfloat16),
                NamedTensor(name: "a\"\n", shape: [1], values: [-2]),
            ], metadata: ["k": "v"], to: path)
        let header =
            #"{"__metadata__":{"k":"v"},"a\"\u000a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"#
            + #""b":{"dtype":"BF16","shape":[1,2],"data_offsets":[4,8]}}"#
        let padded = header + String(repeating: " ", count: (8 - header.utf8.count % 8) % 8)
        let data: [UInt8] = [0, 0, 0, 0xc0, 0x80, 0x3f, 0, 0x40]
        #expect(try bytes(ofFile: path) == littleEndian(UInt64(padded.utf8.count)) + padded.utf8 + data)
        #expect(padded.utf8.count % 8 == 0)
        #expect(try folder.names == ["out.safetensors"])
    }

    @Test(arguments: 0..<12)
    func roundTrip(length: Int) throws {
        let path = folder("out.safetensors")
        let values: [Float] = [0, -0.0, 1, -1.5, 0x1p-126, 0x1p-149, .infinity, -.infinity, .nan, 3.25e38, 0.1, 7]
        let tensors = [
            NamedTensor(
                name: String(repeating: "n", count: length), shape: [length], values: Array(values.prefix(length))),
            NamedTensor(name: "scalar", shape: [], values: [42]),
            NamedTensor(name: "empty", shape: [3, 0], values: []),
        ]
        try SafetensorsFile.write(tensors, to: path)
        let file = try SafetensorsFile(path: path)
        for tensor in tensors {
            #expect(try file.tensor(named: tensor.name).shape == tensor.shape)
            #expect(try file.floats(named: tensor.name).map(\.bitPattern) == tensor.values.map(\.bitPattern))
        }
    }

    @Test(arguments: [ElementType.float16, .bfloat16])
    func halfPrecisionRoundTrip(type: ElementType) throws {
        let path = folder("out.safetensors")
        // Every value of 16 bits is exact in Float, so it must come back with its bits; a NaN as a NaN.
        let values = (0...UInt16.max).map { type == .float16 ? widenedFloat16($0) : widenedBFloat16($0) }
        let shape = [values.count + 1]
        try SafetensorsFile.write(
            [NamedTensor(name: "x", shape: shape, values: values + [1], elementType: type)], to: path)
        let read = try SafetensorsFile(path: path).floats(named: "x").dropLast()
        #expect(zip(read, values).allSatisfy { $0.bitPattern == $1.bitPattern || $0.isNaN && $1.isNaN })
    }

    @Test func roundingToNearestEven() {
        #expect(roundedToBFloat16(Float(bitPattern: 0x3f80_8000)) == 0x3f80)
        #expect(roundedToBFloat16(Float(bitPattern: 0x3f81_8000)) == 0x3f82)
        #expect(roundedToBFloat16(Float(bitPattern: 0x3f80_8001)) == 0x3f81)
        #expect(roundedToBFloat16(Float.greatestFiniteMagnitude) == 0x7f80)
        #expect(roundedToBFloat16(Float(bitPattern: 0x7f80_0001)) == 0x7fc0)
        #expect(roundedToFloat16(1 + 0x1p-11) == 0x3c00)
        #expect(roundedToFloat16(1 + 0x3p-11) == 0x3c02)
        #expect(roundedToFloat16(65519.996) == 0x7bff)
        #expect(roundedToFloat16(65520) == 0x7c00)
        #expect(roundedToFloat16(-0x1p-25) == 0x8000)
        #expect(roundedToFloat16(0x1.000002p-25) == 0x0001)
        #expect(roundedToFloat16(0x1.ffcp-15) == 0x0400)
        #expect(roundedToFloat16(Float(bitPattern: 0xff80_0001)) == 0xfe00)
    }

    #if !(os(macOS) && arch(x86_64))
        @Test func float16AgreesWithTheStandardLibrary() {
            for bits in 0...UInt16.max where !Float16(bitPattern: bits).isNaN {
                #expect(widenedFloat16(bits).bitPattern == Float(Float16(bitPattern: bits)).bitPattern)
            }
            for step in 0..<100_000 as Range<UInt32> {
                let value = Float(bitPattern: 0x3200_0000 &+ step &* 3701)
                #expect(roundedToFloat16(value) == Float16(value).bitPattern, "\(value)")
            }
        }
    #endif

    // MARK: - What cannot be written

    @Test func tensorsThatMakeNoSense() throws {
        let path = folder("out.safetensors")
        func write(_ tensors: NamedTensor...) throws { try SafetensorsFile.write(tensors, to: path) }
        let one = NamedTensor(name: "x", shape: [1], values: [1])
        #expect(throws: SafetensorsError.duplicateName("x")) { try write(one, one) }
        #expect(throws: SafetensorsError.wrongValueCount(tensor: "x", shape: [2], values: 1)) {
            try write(NamedTensor(name: "x", shape: [2], values: [1]))
        }
        #expect(throws: SafetensorsError.wrongValueCount(tensor: "x", shape: [-1, -1], values: 1)) {
            try write(NamedTensor(name: "x", shape: [-1, -1], values: [1]))
        }
        #expect(throws: SafetensorsError.wrongValueCount(tensor: "x", shape: [Int.max, 2], values: 1)) {
            try write(NamedTensor(name: "x", shape: [Int.max, 2], values: [1]))
        }
        for type in [ElementType.int8, .float64] {
            #expect(
                throws: SafetensorsError.unsupportedElementType(
                    tensor: "x", elementType: type, expected: ElementType.writable)
            ) { try write(NamedTensor(name: "x", shape: [1], values: [1], elementType: type)) }
        }
        #expect(throws: SafetensorsError.reservedName("__metadata__")) {
            try write(NamedTensor(name: "__metadata__", shape: [1], values: [1]))
        }
        #expect(try folder.names.isEmpty)
    }

    @Test func placesThatCannotBeWritten() throws {
        let tensors = [NamedTensor(name: "x", shape: [1], values: [1])]
        #expect(throws: SafetensorsError.self) { try SafetensorsFile.write(tensors, to: folder("no/folder/out")) }
        let existing = SafetensorsError.cannotWrite(path: folder.path, reason: "it exists and is not a regular file")
        #expect(throws: existing) { try SafetensorsFile.write(tensors, to: folder.path) }
        #expect(throws: SafetensorsError.self) { try SafetensorsFile.write(tensors, to: "") }
        #expect(throws: SafetensorsError.self) { try SafetensorsFile.write(tensors, to: folder("out/")) }
        #expect(try folder.names.isEmpty)
    }

    @Test func anExistingFileIsReplaced() throws {
        let path = try folder.file([1, 2, 3], name: "out")
        try SafetensorsFile.write([NamedTensor(name: "x", shape: [1], values: [1])], to: path)
        #expect(try SafetensorsFile(path: path).floats(named: "x") == [1])
        #expect(try folder.names == ["out"])
    }
}
