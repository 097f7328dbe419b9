// SPDX-License-Identifier: Apache-2.0
// SeededInputsTests.swift - the generator's bits are fixed for ever, and its numbers are distributed as documented.

import SeededInputs
import Testing

@Suite struct SeededInputsTests {
    /// The first is the sequence that implementations of SplitMix64 are commonly checked against.
    @Test func knownBits() {
        var plain = SeededGenerator(seed: 0)
        #expect(
            (0..<3).map { _ in plain.next() } == [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f])
        var stream = SeededGenerator(seed: 1, stream: 2)
        #expect(
            (0..<3).map { _ in stream.next() } == [0x7018_eb47_a52c_2595, 0x08f7_286c_e09e_407e, 0x064a_6ba6_2c45_25c1])
        var normal = SeededGenerator(seed: 1, stream: 2)
        #expect(normal.normals(3).map(\.bitPattern) == [0xbf25_c916, 0xc014_d35d, 0xbf0c_52fe])
    }

    @Test func skippingEqualsDrawing() {
        var drawn = SeededGenerator(seed: 7, stream: 1)
        _ = drawn.normals(1000)
        var skipped = SeededGenerator(seed: 7, stream: 1)
        skipped.skip(words: 1000 * SeededGenerator.wordsPerNormal)
        #expect(drawn.normals(5) == skipped.normals(5))
    }

    /// Bounds of five standard errors of a sample of n: mean 1 / sqrt(n), variance sqrt(1.85 / n), kurtosis about sqrt(24 / n).
    @Test(arguments: 0..<3 as Range<UInt64>)
    func normalsAreCentredWithUnitVariance(stream: UInt64) {
        let count = 200_000
        var generator = SeededGenerator(seed: 42, stream: stream)
        let values = generator.normals(count).map(Double.init)
        func moment(_ power: Int) -> Double {
            values.reduce(0) { sum, value in sum + (0..<power).reduce(1) { product, _ in product * value } }
                / Double(count)
        }
        let root = Double(count).squareRoot()
        #expect(abs(moment(1)) < 5 / root)
        #expect(abs(moment(2) - 1) < 5 * 1.36 / root)
        #expect(abs(moment(3)) < 5 * 3.6 / root)
        #expect(abs(moment(4) - 2.85) < 5 * 9 / root)
        #expect(values.allSatisfy { abs($0) < 4.9 })
        #expect(values.contains { abs($0) > 3.5 })
    }

    @Test func streamsDiffer() {
        var first = SeededGenerator(seed: 5, stream: 0)
        var second = SeededGenerator(seed: 5, stream: 1)
        let products = zip(first.normals(50_000), second.normals(50_000)).map { Double($0 * $1) }
        #expect(abs(products.reduce(0, +)) < 5 * Double(50_000).squareRoot())
    }

    @Test(arguments: [1, 2, 3, 10, 64, 1000])
    func integersAreUniform(bound: Int) {
        var generator = SeededGenerator(seed: UInt64(bound))
        var counts = [Int](repeating: 0, count: bound)
        let perValue = 400
        for _ in 0..<bound * perValue { counts[generator.next(below: bound)] += 1 }
        #expect(counts.allSatisfy { abs($0 - perValue) < 120 }, "six standard deviations of 20")
    }

    @Test func rangesAndUniforms() {
        var generator = SeededGenerator(seed: 3)
        for _ in 0..<2000 {
            #expect((-3...5).contains(generator.next(in: -3...5)))
            #expect((0..<1).contains(generator.nextUniform()))
            #expect([10, 20, 30].contains(generator.element(of: [10, 20, 30])))
        }
        #expect((0..<100).allSatisfy { _ in generator.chance(1, outOf: 1) && !generator.chance(0, outOf: 3) })
        #expect(generator.next(below: Int.max) >= 0)
    }

    @Test func digest() {
        var digest = BitDigest()
        #expect(digest.hexadecimal == "cbf29ce484222325")
        digest.add([1, -2.5, .infinity])
        #expect(digest.hexadecimal == "ff40d869edc3cad5")
        var notANumber = BitDigest()
        notANumber.add(-Float(nan: 0x123, signaling: false))
        #expect(notANumber.value == 0x4a98_877f_9ba2_f898)
    }
}
