// SPDX-License-Identifier: Apache-2.0
// Comparison.swift - equality of bits and distances, with messages that say where, what and how to repeat it.

/// What a comparison throws: one text, the whole story.
public struct TestFailure: Error, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}

public func hex(_ value: Float) -> String {
    let digits = String(value.bitPattern, radix: 16)
    return "0x" + String(repeating: "0", count: 8 - digits.count) + digits
}

/// Equal bits; any NaN equals any NaN. +0 and -0 differ.
public func sameBits(_ a: Float, _ b: Float) -> Bool {
    a.bitPattern == b.bitPattern || (a.isNaN && b.isNaN)
}

/// The first element whose bits differ, as text; nil when there is none. `extents` turns the index into a place in a
/// tensor of that shape.
public func firstDifference(
    _ name: String, _ actual: [Float], _ expected: [Float], extents: [Int] = []
) -> String? {
    guard actual.count == expected.count else {
        return "\(name) has \(actual.count) elements, expected \(expected.count)"
    }
    guard let index = actual.indices.first(where: { !sameBits(actual[$0], expected[$0]) }) else { return nil }
    let differing = actual.indices.reduce(0) { $0 + (sameBits(actual[$1], expected[$1]) ? 0 : 1) }
    let (a, e) = (actual[index], expected[index])
    return "\(name)\(place(index, in: extents)) is \(a) (\(hex(a))), expected \(e) (\(hex(e)));"
        + " \(differing) of \(actual.count) elements differ"
}

/// Throws unless the bits of all elements are equal.
public func requireSameBits(
    _ name: String, _ actual: [Float], _ expected: [Float], extents: [Int] = [],
    _ context: @autoclosure () -> String
) throws {
    if let difference = firstDifference(name, actual, expected, extents: extents) {
        throw TestFailure("\(difference)\n    in \(context())")
    }
}

/// `[index]`, or `[i, j, k]` in a tensor of these extents.
private func place(_ index: Int, in extents: [Int]) -> String {
    guard extents.count > 1, extents.reduce(1, *) > index else { return "[\(index)]" }
    var rest = index
    var places: [Int] = []
    for extent in extents.reversed() {
        places.append(rest % extent)
        rest /= extent
    }
    return "\([Int](places.reversed())) (element \(index))"
}

/// `|actual - expected| / |expected|` in the 2-norm; NaN or infinity in either makes the result NaN. Where `expected` is
/// all zero the result is `|actual|`.
public func relativeError(_ actual: some Collection<Float>, _ expected: some Collection<Double>) -> Double {
    precondition(actual.count == expected.count)
    var difference = 0.0
    var norm = 0.0
    for (a, e) in zip(actual, expected) {
        difference += (Double(a) - e) * (Double(a) - e)
        norm += e * e
    }
    return norm == 0 ? difference.squareRoot() : (difference / norm).squareRoot()
}

/// Throws unless `|actual - expected| <= tolerance`, elementwise; infinities and NaN must agree.
public func requireClose(
    _ name: String, _ actual: [Float], _ expected: [Double], tolerance: (Double) -> Double, extents: [Int] = [],
    _ context: @autoclosure () -> String
) throws {
    guard actual.count == expected.count else {
        throw TestFailure("\(name) has \(actual.count) elements, expected \(expected.count), in \(context())")
    }
    for (index, (a, e)) in zip(actual, expected).enumerated() {
        let close = e.isNaN ? a.isNaN : e.isInfinite ? Double(a) == e : abs(Double(a) - e) <= tolerance(e)
        if !close {
            throw TestFailure(
                "\(name)\(place(index, in: extents)) is \(a), expected \(e) within \(tolerance(e)),"
                    + " off by \(abs(Double(a) - e))\n    in \(context())")
        }
    }
}
