// SPDX-License-Identifier: Apache-2.0
// CacheSequenceTests.swift - random sequences of appending, forking, truncating and decoding, against lists of tokens.

import QuietAttention
import SeededInputs
import TestSupport
import Testing

/// What is done to a few caches, all forks of one.
private struct CacheCase: PropertyCase {
    enum Step: Equatable {
        /// To a cache, so many tokens.
        case append(Int, Int)
        /// A copy of one cache takes the place of another.
        case fork(Int, Int)
        /// So many of the last tokens are taken back.
        case takeBack(Int, Int)
        /// So many of the last tokens are queries.
        case attend(Int, Int)
    }

    var steps: [Step]
    var keyValueHeads, group, headDimension, valueDimension: Int
    var numbers: CacheNumbers
    var window: Int?
    var rollback: Int
    var maximumTokens: Int?
    var threads: Int

    static let caches = 3

    /// Sizes around those of a page and of a chunk.
    private static func tokens(_ generator: inout SeededGenerator) -> Int {
        switch generator.next(below: 8) {
        case 0...2: 1
        case 3: generator.element(of: [63, 64, 65, 128])
        case 4: generator.element(of: [959, 960, 1000, 1024])
        default: generator.next(in: 1...80)
        }
    }

    static func random(using generator: inout SeededGenerator) -> CacheCase {
        let steps = (0..<generator.next(in: 2...14)).map { _ -> Step in
            let cache = generator.next(below: caches)
            return switch generator.next(below: 10) {
            case 0...3: .append(cache, tokens(&generator))
            case 4...5: .fork(cache, generator.next(below: caches))
            case 6: .takeBack(cache, tokens(&generator))
            default: .attend(cache, generator.next(in: 1...9))
            }
        }
        return CacheCase(
            steps: steps, keyValueHeads: generator.next(in: 1...2), group: generator.next(in: 1...3),
            headDimension: generator.next(in: 1...9), valueDimension: generator.next(in: 1...20),
            numbers: generator.element(of: CacheNumbers.all),
            window: generator.chance(1, outOf: 3) ? tokens(&generator) : nil,
            rollback: generator.chance(1, outOf: 2) ? tokens(&generator) : 0,
            maximumTokens: generator.chance(1, outOf: 6) ? tokens(&generator) : nil, threads: generator.next(in: 1...2))
    }

    var shrunk: [CacheCase] {
        var candidates: [CacheCase] = []
        func add(_ change: (inout CacheCase) -> Void) {
            var candidate = self
            change(&candidate)
            candidates.append(candidate)
        }
        for index in steps.indices { add { $0.steps.remove(at: index) } }
        for index in steps.indices {
            switch steps[index] {
            case .append(let cache, let tokens):
                for fewer in tokens.shrunk(toward: 1) { add { $0.steps[index] = .append(cache, fewer) } }
            case .takeBack(let cache, let tokens):
                for fewer in tokens.shrunk(toward: 1) { add { $0.steps[index] = .takeBack(cache, fewer) } }
            case .attend(let cache, let queries):
                for fewer in queries.shrunk(toward: 1) { add { $0.steps[index] = .attend(cache, fewer) } }
            case .fork: break
            }
        }
        for size in [\Self.keyValueHeads, \.group, \.headDimension, \.valueDimension, \.threads] {
            for smaller in self[keyPath: size].shrunk(toward: 1) { add { $0[keyPath: size] = smaller } }
        }
        if window != nil { add { $0.window = nil } }
        for less in rollback.shrunk() { add { $0.rollback = less } }
        if maximumTokens != nil { add { $0.maximumTokens = nil } }
        if numbers.storage != .float32 { add { $0.numbers = .float32 } }
        return candidates
    }

    var description: String {
        "\(steps), heads \(keyValueHeads * group)/\(keyValueHeads), d\(headDimension), dv\(valueDimension), \(numbers),"
            + " window \(window.map(String.init) ?? "-") and \(rollback), maximum \(maximumTokens.map(String.init) ?? "-"), \(threads) threads"
    }
}

/// A cache as lists: the numbers of its tokens, and where those that it holds begin.
private struct TokenList {
    var tokens: [Int] = []
    var held = 0
    /// Most tokens since the cache was empty.
    var most = 0

    /// Whether there is room; if so, the numbers are added.
    mutating func append(_ numbers: Range<Int>, window: Int?, rollback: Int, maximumTokens: Int?) -> Bool {
        let begin = window.map { max(held, max(0, tokens.count - rollback - $0 + 1) / 64 * 64) } ?? 0
        if let maximumTokens, tokens.count - begin + numbers.count > maximumTokens { return false }
        held = begin
        tokens += numbers
        most = max(most, tokens.count)
        return true
    }

    /// Whether what is left is of use; if so, the rest goes.
    mutating func takeBack(_ count: Int, window: Int?, rollback: Int) throws -> Bool {
        let length = max(0, tokens.count - count)
        if length > 0, held > max(0, length - (window ?? length) + 1) {
            try require(length < most - rollback, "the rollback margin is not kept")
            return false
        }
        tokens.removeLast(tokens.count - length)
        if length == 0 { (held, most) = (0, 0) }
        return true
    }
}

@Suite struct CacheSequenceTests {
    @Test("random sequences of operations", arguments: kernelSets + KernelSet.emulated)
    func sequences(kernels: KernelSet) throws {
        try forAll(CacheCase.self, cases: caseCount) { try check($0, kernels) }
    }

    private func check(_ shape: CacheCase, _ kernels: KernelSet) throws {
        let empty = try KeyValueCache(
            keyValueHeads: shape.keyValueHeads, headDimension: shape.headDimension,
            valueDimension: shape.valueDimension, storage: shape.numbers.storage, window: shape.window,
            rollbackTokens: shape.rollback, maximumTokens: shape.maximumTokens, products: shape.numbers.products,
            kernels: kernels)
        var caches = [KeyValueCache](repeating: empty, count: CacheCase.caches)
        var lists = [TokenList](repeating: TokenList(), count: CacheCase.caches)
        var next = 0
        for (index, step) in shape.steps.enumerated() {
            switch step {
            case .append(let cache, let count):
                let new = Array(next..<next + count)
                next += count
                let fits = lists[cache].append(
                    new[0]..<new[0] + count, window: shape.window, rollback: shape.rollback,
                    maximumTokens: shape.maximumTokens)
                let keys = tensor(new, shape, .keys)
                let values = tensor(new, shape, .values)
                try requireSuccess(fits, .cacheLimit, index) { try caches[cache].append(keys: keys, values: values) }
            case .fork(let from, let to):
                (caches[to], lists[to]) = (caches[from], lists[from])
            case .takeBack(let cache, let count):
                let length = max(0, lists[cache].tokens.count - count)
                let valid = try lists[cache].takeBack(count, window: shape.window, rollback: shape.rollback)
                try require(
                    valid == (length == 0 || caches[cache].truncationRange.contains(length)),
                    "step \(index): \(caches[cache].truncationRange), \(length)")
                try requireSuccess(valid, .cacheRange, index) { try caches[cache].truncate(to: length) }
            case .attend(let cache, let queries):
                try attend(shape, caches[cache], lists[cache], queries: queries, kernels, step: index)
            }
            for (cache, list) in zip(caches, lists) {
                try require(cache.positions == list.held..<list.tokens.count, "step \(index): \(cache.positions)")
                let pages = (list.tokens.count + 63) / 64 - list.held / 64
                try require(
                    cache.byteCount >= pages * pageBytes(shape) && cache.byteCount % pageBytes(shape) == 0,
                    "step \(index): \(cache.byteCount) bytes for \(pages) pages")
                if (shape.window ?? 1024) < 1024 {
                    try require(
                        cache.byteCount <= (pages + 1) * pageBytes(shape),
                        "step \(index): \(cache.byteCount) bytes for \(pages) pages under a window")
                }
            }
        }
    }

    /// Compares with attention over tensors of all tokens; over int8, with a cache to which they were appended at once.
    private func attend(
        _ shape: CacheCase, _ cache: KeyValueCache, _ list: TokenList, queries: Int, _ kernels: KernelSet, step: Int
    ) throws {
        let queryHeads = shape.keyValueHeads * shape.group
        guard queries <= list.tokens.count else {
            let data = tensor(Array(0..<queries), shape, .queries)
            let attention = try CachedAttention(
                queryHeads: queryHeads, sink: .softmax1, products: shape.numbers.products, kernels: kernels)
            try requireSuccess(false, .cacheRange, step) { _ = try attention.attend(queries: data, cache: cache) }
            return
        }
        // The first of the queries may see no token that is gone.
        let first = max(0, list.tokens.count - queries - (shape.window ?? list.tokens.count) + 1)
        let attention = try CachedAttention(
            queryHeads: queryHeads, sink: .softmax1, products: shape.numbers.products, threads: shape.threads,
            kernels: kernels)
        let data = tensor(Array(step * 100..<step * 100 + queries), shape, .queries)
        guard first / 64 * 64 >= list.held else {
            try requireSuccess(false, .cacheRange, step) { _ = try attention.attend(queries: data, cache: cache) }
            return
        }
        let result = try attention.attend(queries: data, cache: cache)
        let (keys, values) = (tensor(list.tokens, shape, .keys), tensor(list.tokens, shape, .values))
        let mask = shape.window.map(AttentionMask.window) ?? .causal
        let expected: AttentionResult
        if shape.numbers.storage == .int8 {
            var fresh = try KeyValueCache(
                keyValueHeads: shape.keyValueHeads, headDimension: shape.headDimension,
                valueDimension: shape.valueDimension, storage: .int8, kernels: kernels)
            try fresh.append(keys: keys, values: values)
            expected = try attention.attend(queries: data, cache: fresh, mask: mask)
        } else {
            let attention = try Attention(
                AttentionShape(
                    queryHeads: queryHeads, keyValueHeads: shape.keyValueHeads, queries: queries,
                    keys: list.tokens.count, headDimension: shape.headDimension,
                    valueDimension: shape.valueDimension), sink: .softmax1, mask: mask,
                products: shape.numbers.products,
                kernels: kernels)
            expected = try attention.forward(queries: data, keys: keys, values: values)
        }
        try requireSameBits("out", result.output, expected.output, "step \(step), \(kernels)")
        try requireSameBits("lse", result.logSumExp, expected.logSumExp, "step \(step), \(kernels)")
        try requireSameBits("sink share", result.sinkShare, expected.sinkShare, "step \(step), \(kernels)")
    }

    private enum Tensor: UInt64 {
        case queries, keys, values
    }

    /// `[heads][numbers][dimension]`, from the numbers of the tokens; what a cache holds exactly, unless it is int8 or products round it.
    private func tensor(_ numbers: [Int], _ shape: CacheCase, _ tensor: Tensor) -> [Float] {
        let heads = tensor == .queries ? shape.keyValueHeads * shape.group : shape.keyValueHeads
        let dimension = tensor == .values ? shape.valueDimension : shape.headDimension
        return (0..<heads).flatMap { head in
            numbers.flatMap { number -> [Float] in
                var generator = SeededGenerator(
                    seed: UInt64(number), stream: tensor.rawValue * 1000 + UInt64(head))
                let row = generator.normals(dimension)
                return tensor == .queries ? row : row.map(shape.numbers.rounded)
            }
        }
    }

    private func pageBytes(_ shape: CacheCase) -> Int {
        let (filled, element, scales) =
            switch (shape.numbers.storage, shape.numbers.products) {
            case (.float32, _): (1, 4, 0)
            case (.float16, _), (.bfloat16, .float32): (1, 2, 0)
            case (.bfloat16, .bfloat16): (32, 2, 64)
            case (.int8, _): (2, 1, 2 * 64 * 4)
            }
        let channels = (shape.headDimension + filled - 1) / filled * filled
        let row = channels + (shape.valueDimension + 15) / 16 * 16
        return shape.keyValueHeads * (64 * row * element + scales)
    }

    private func requireSuccess(
        _ succeeds: Bool, _ kind: AttentionError.Kind, _ step: Int, _ body: () throws -> Void
    ) throws {
        do {
            try body()
            try require(succeeds, "step \(step): no error of kind \(kind)")
        } catch let error as AttentionError {
            try require(!succeeds && error.kind == kind, "step \(step): \(error)")
        }
    }
}
