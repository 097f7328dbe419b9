// SPDX-License-Identifier: Apache-2.0
// AttentionCase+Property.swift - random attention cases, and simpler ones of a case that fails.

import SeededInputs

extension AttentionCase: PropertyCase {
    /// Mostly small; every option is used often enough to meet every other.
    public static func random(using generator: inout SeededGenerator) -> AttentionCase {
        let queries =
            generator.chance(1, outOf: 3)
            ? generator.element(of: Sizes.queries) : generator.next(in: 1...24)
        var keys =
            generator.chance(1, outOf: 3)
            ? generator.element(of: Sizes.keys) : generator.next(in: 1...200)
        if queries > 20 { keys = min(keys, 260) }
        var result = AttentionCase(
            queries: queries, keys: keys, headDimension: generator.next(in: 1...20),
            valueDimension: generator.next(in: 1...36))
        if generator.chance(1, outOf: 8) {
            result.headDimension = generator.element(of: Sizes.headDimensions.filter { $0 < 200 })
        }
        result.batch = generator.next(in: 1...2)
        result.keyValueHeads = generator.next(in: 1...2)
        result.group = generator.next(in: 1...3)
        result.sink = generator.element(of: [
            .none, .one, .count(quarters: generator.next(in: 1...40)), .amid, .amid, .farAbove, .farBelow, .mixed,
        ])
        if generator.chance(1, outOf: 4) { result.scale = generator.element(of: ScaleChoice.allCases) }
        result.geometry = generator.element(of: [
            .none, .causal, .causal, .window(generator.next(in: 1...keys)),
            .around(before: generator.next(in: 0...keys), after: generator.next(in: 0...9)),
        ])
        if generator.chance(1, outOf: 4) { result.keyLengths = generator.element(of: LengthChoice.allCases) }
        if result.keyLengths != .none { result.padsQueries = generator.chance(1, outOf: 3) }
        if generator.chance(1, outOf: 3) { result.allowed = generator.element(of: AllowedChoice.allCases) }
        if generator.chance(1, outOf: 3) { result.bias = generator.element(of: [.normal, .excluding]) }
        result.broadcast = generator.element(of: Broadcast.allCases)
        result.layout = generator.element(of: LayoutChoice.allCases)
        result.seed = generator.next()
        return result
    }

    /// One property simpler: smaller sizes first, then options switched off.
    public var shrunk: [AttentionCase] {
        var candidates: [AttentionCase] = []
        func shrink(_ size: WritableKeyPath<Self, Int>) {
            for smaller in self[keyPath: size].shrunk(toward: 1) { add(size, smaller) }
        }
        func add<Value: Equatable>(_ property: WritableKeyPath<Self, Value>, _ simple: Value) {
            if self[keyPath: property] == simple { return }
            var candidate = self
            candidate[keyPath: property] = simple
            candidates.append(candidate)
        }
        for size in [\Self.batch, \.keyValueHeads, \.group, \.queries, \.keys, \.headDimension, \.valueDimension] {
            shrink(size)
        }
        add(\.allowed, .none)
        add(\.bias, .none)
        add(\.broadcast, .none)
        add(\.padsQueries, false)
        add(\.keyLengths, .none)
        add(\.geometry, .none)
        add(\.scale, .standard)
        add(\.layout, .headsFirst)
        add(\.storage, .float32)
        add(\.scaling, .none)
        add(\.softcap, nil)
        add(\.hasALiBi, false)
        add(\.normaliser, .softmax)
        add(\.products, .float32)
        if sink != .none && sink != .one { add(\.sink, .one) }
        add(\.family, .unitNormal)
        if seed > 9 { add(\.seed, 1) }
        return candidates
    }
}
