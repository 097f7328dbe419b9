// SPDX-License-Identifier: Apache-2.0
// DigestTests.swift - digests of seeded cases that are the same on every machine.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@Suite struct DigestTests {
    @Test("the reference gives the table's digests", arguments: DigestCase.all)
    func reference(digestCase: DigestCase) {
        let digest = digestCase.digest(digestCase.problem.reference)
        #expect(
            digest == digestCase.expected, "the line would be\n\(digestCase.line(digest: digest))")
    }

    @Test("kernels give the table's digests", arguments: KernelTable.available + KernelTable.emulated, DigestCase.all)
    func kernels(kernels: KernelTable, digestCase: DigestCase) throws {
        guard AttentionCase.StorageChoice.available.contains(digestCase.storage) else { return }
        let call = DirectCall(storage: digestCase.storage)
        let digest = digestCase.digest(try call.run(digestCase.problem, kernels))
        #expect(digest == digestCase.expected)
    }

    /// The arguments of `run_function` in cross.c: multiples of 1/512 from -130 to 1.
    @Test func exp2OfTheReference() {
        var digest = BitDigest()
        for index in 0...131 * 512 { digest.add(ReferenceMath.exp2(Float(index) / 512 - 130)) }
        #expect(digest.hexadecimal == DigestCase.functionDigest("exp2"))
    }

    /// Multiples of 1/2048 from -10 to 10.
    @Test func tanhOfTheReference() {
        var digest = BitDigest()
        for index in 0...20 * 2048 { digest.add(ReferenceMath.tanh(Float(index) / 2048 - 10)) }
        #expect(digest.hexadecimal == DigestCase.functionDigest("tanh"))
    }

    /// Floats of all binades.
    @Test func log2OfTheReference() {
        var digest = BitDigest()
        for index in 0..<UInt32(65536) {
            digest.add(ReferenceMath.log2(Float(bitPattern: 0x0080_0000 + index * 0x7ef1)))
        }
        #expect(digest.hexadecimal == DigestCase.functionDigest("log2"))
    }

    /// The rows and tables of `run_prepare` in cross.c.
    @Test func preparedRowsOfTheReference() {
        let (count, dimension, pairs) = (5, 40, 17)
        func normals(_ stream: UInt64, _ count: Int) -> [Float] {
            var generator = SeededGenerator(seed: 16, stream: stream)
            return generator.normals(count)
        }
        let (rows, tables) = (normals(0, count * dimension), normals(1, count * 64))
        let (gain, shift) = (normals(2, dimension), normals(3, dimension))
        let norms = [
            nil, ReferenceNorm(.rms, epsilon: 0.25, gain: gain),
            ReferenceNorm(.layer, epsilon: 0.25, gain: gain, bias: shift),
        ]
        let rotations: [(ReferencePositions.Form, ReferencePositions.Side)] = [
            (.rotary, .keys), (.slack, .queries), (.slack, .keys), (.strict, .queries), (.strict, .keys),
        ]
        var digest = BitDigest()
        for pairing in [ReferencePositions.Pairing.halves, .interleaved] {
            for (form, side) in rotations {
                let positions = ReferencePositions(dimensions: 2 * pairs, pairing: pairing, form: form)
                for norm in norms {
                    for row in 0..<count {
                        let values = rows.rows(row, 1, dimension)
                        digest.add(
                            positions.turned(norm?.normalised(values) ?? values, side) { j in
                                (tables[row * 64 + j], tables[row * 64 + 32 + j])
                            })
                    }
                }
            }
        }
        #expect(digest.hexadecimal == DigestCase.functionDigest("prepare"), "digest \(digest.hexadecimal)")
    }
}
