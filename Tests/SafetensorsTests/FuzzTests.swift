// SPDX-License-Identifier: Apache-2.0
// FuzzTests.swift - files changed at random never crash the reader.

import Foundation
import Testing

@testable import Safetensors

@Suite struct FuzzTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    /// No mutation of a valid file crashes the reader; where it still opens, all of it can be read.
    @Test(arguments: 0..<8 as Range<UInt64>)
    func mutationsNeverCrash(seed: UInt64) throws {
        let header =
            #"{"__metadata__":{"a":"b"},"q":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#
            + #""k":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"v":{"dtype":"F16","shape":[0],"data_offsets":[32,32]}} "#
        let valid = safetensors(header, dataBytes: 32)
        _ = try SafetensorsFile(path: folder.file(valid))
        var generator = Mutations(state: seed)
        var opened = 0
        for _ in 0..<500 {
            let path = try folder.file(generator.mutate(valid))
            guard let file = try? SafetensorsFile(path: path) else { continue }
            opened += 1
            #expect(file.tensors.allSatisfy { file.contains($0.name) })
            for tensor in file.tensors where ElementType.readable.contains(tensor.elementType) {
                #expect(try file.floats(named: tensor.name).count == tensor.count)
            }
        }
        #expect(opened > 0, "every mutation was refused: the mutations are too coarse to test anything")
    }
}

/// Random edits of a file: bytes changed, removed, repeated and swapped for what has meaning in a header.
private struct Mutations {
    var state: UInt64

    /// Knuth's linear congruential generator; the high bits are good enough to choose by.
    mutating func next(below bound: Int) -> Int {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return Int((state >> 33) % UInt64(bound))
    }

    mutating func mutate(_ file: [UInt8]) -> [UInt8] {
        var file = file
        for _ in 0...next(below: 4) where !file.isEmpty {
            let place = next(below: file.count)
            switch next(below: 6) {
            case 0: file[place] ^= 1 << next(below: 8)
            case 1: file[place] = UInt8(next(below: 256))
            case 2: file[place] = Array("{}[]\",:0123456789-e.\\ ".utf8)[next(below: 22)]
            case 3: file.removeSubrange(place..<min(file.count, place + 1 + next(below: 8)))
            case 4: file.insert(contentsOf: file[place..<min(file.count, place + 1 + next(below: 30))], at: place)
            default: file.removeLast(next(below: file.count))
            }
        }
        // Half of the time the length is made to fit again, so that mutations reach beyond the first check.
        if file.count >= 8, next(below: 2) == 0, let end = file.lastIndex(of: UInt8(ascii: "}")), end >= 8 {
            file.replaceSubrange(0..<8, with: littleEndian(UInt64(end - 7)))
        }
        return file
    }
}
