// SPDX-License-Identifier: Apache-2.0
// Property.swift - runs a property on seeded random cases and shrinks the first case that breaks it.

import SeededInputs

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// A case is a struct of small numbers and choices, never of data: data are made from it, so that a case can be printed,
/// repeated and made smaller.
public protocol PropertyCase: Sendable, CustomStringConvertible {
    static func random(using generator: inout SeededGenerator) -> Self
    /// Cases that are simpler than this one, the simplest first. Every chain of them must end.
    var shrunk: [Self] { get }
}

/// Seed and number of cases: the caller's, or `QUIET_SEED` and `QUIET_CASES` of the environment.
public struct PropertyRun: Sendable {
    public var seed: UInt64
    public var cases: Int

    public init(cases: Int) {
        seed = Self.environment("QUIET_SEED").flatMap(UInt64.init) ?? 20_230_724
        self.cases = Self.environment("QUIET_CASES").flatMap(Int.init) ?? cases
    }

    public init(seed: UInt64, cases: Int) {
        self.seed = seed
        self.cases = cases
    }

    /// Case `index` is case 0 of this seed, so one case can be repeated alone.
    func seed(ofCase index: Int) -> UInt64 { seed &+ UInt64(index) }

    private static func environment(_ name: String) -> String? {
        getenv(name).map { String(cString: $0) }
    }
}

/// Runs `property` on `cases` random cases; throws a ``TestFailure`` with the smallest failing case found, its seed and
/// how to repeat it. A property fails by throwing.
public func forAll<Case: PropertyCase>(
    _ type: Case.Type, cases: Int, _ property: (Case) throws -> Void
) throws {
    try forAll(type, PropertyRun(cases: cases), property)
}

public func forAll<Case: PropertyCase>(
    _ type: Case.Type, _ run: PropertyRun, _ property: (Case) throws -> Void
) throws {
    for index in 0..<run.cases {
        var generator = SeededGenerator(seed: run.seed(ofCase: index))
        let original = Case.random(using: &generator)
        guard let error = failure(of: property, on: original) else { continue }
        let minimal = shrink(original, error, property)
        throw TestFailure(
            """
            \(minimal.error)
                smallest failing case, after \(minimal.steps) steps: \(minimal.value)
                found as case \(index) of seed \(run.seed): \(original)
                repeat with QUIET_SEED=\(run.seed(ofCase: index)) QUIET_CASES=1
            """)
    }
}

private func failure<Case>(of property: (Case) throws -> Void, on value: Case) -> (any Error)? {
    do {
        try property(value)
        return nil
    } catch {
        return error
    }
}

/// Takes the first simpler case that fails too, again and again. The bound ends a shrinking whose cases are slow.
private func shrink<Case: PropertyCase>(
    _ original: Case, _ error: any Error, _ property: (Case) throws -> Void
) -> (value: Case, error: any Error, steps: Int) {
    var (value, error) = (original, error)
    var steps = 0
    var tries = 0
    search: while true {
        for candidate in value.shrunk {
            tries += 1
            if tries > 400 { break search }
            if let found = failure(of: property, on: candidate) {
                (value, error) = (candidate, found)
                steps += 1
                continue search
            }
        }
        break
    }
    return (value, error, steps)
}

extension Int {
    /// Numbers between `least` and self, from the smallest on: least, half way, one less.
    public func shrunk(toward least: Int = 0) -> [Int] {
        guard self > least else { return [] }
        var candidates = [least]
        for candidate in [least + (self - least) / 2, self - 1] where candidate > candidates.last! {
            candidates.append(candidate)
        }
        return candidates
    }
}
