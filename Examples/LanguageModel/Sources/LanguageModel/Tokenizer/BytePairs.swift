// SPDX-License-Identifier: Apache-2.0
// BytePairs.swift - byte-pair encoding: the pair with the lowest rank is merged, the leftmost first, until none is left.

/// The merges of a vocabulary, by the numbers of tokens.
struct BytePairs {
    struct Merge {
        let rank, token: Int32
    }

    private var merges: [UInt64: Merge] = [:]

    private static func key(_ left: Int32, _ right: Int32) -> UInt64 {
        UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    }

    /// A pair that stands there twice keeps its later rank, as elsewhere.
    mutating func add(_ left: Int32, _ right: Int32, _ merge: Merge) {
        merges[Self.key(left, right)] = merge
    }

    subscript(left: Int32, right: Int32) -> Merge? { merges[Self.key(left, right)] }

    /// Merges until no pair is left, in n log n steps.
    func merged(_ tokens: [Int32]) -> [Int32] {
        guard tokens.count > 1 else { return tokens }
        var chain = Chain(tokens)
        var queue = Queue()
        func push(_ left: Int, _ queue: inout Queue) {
            let right = chain.next[left]
            guard left >= 0, right < tokens.count, let merge = self[chain.tokens[left], chain.tokens[right]] else {
                return
            }
            queue.push(Candidate(rank: merge.rank, position: Int32(left), token: merge.token))
        }
        for left in 0..<tokens.count - 1 { push(left, &queue) }
        while let candidate = queue.pop() {
            let left = Int(candidate.position)
            guard chain.tokens[left] >= 0, chain.next[left] < tokens.count else { continue }
            // What stood here when the candidate was found may be merged by now.
            let pair = self[chain.tokens[left], chain.tokens[chain.next[left]]]
            guard pair?.token == candidate.token else { continue }
            chain.merge(left, into: candidate.token)
            if chain.previous[left] >= 0 { push(chain.previous[left], &queue) }
            push(left, &queue)
        }
        return chain.tokens.filter { $0 >= 0 }
    }

    /// Tokens that know their neighbours; those merged into the one before are -1.
    private struct Chain {
        var tokens: [Int32]
        var next, previous: [Int]

        init(_ tokens: [Int32]) {
            self.tokens = tokens
            next = tokens.indices.map { $0 + 1 }
            previous = tokens.indices.map { $0 - 1 }
        }

        mutating func merge(_ left: Int, into token: Int32) {
            let right = next[left]
            tokens[left] = token
            tokens[right] = -1
            next[left] = next[right]
            if next[left] < tokens.count { previous[next[left]] = left }
        }
    }

    private struct Candidate {
        let rank, position, token: Int32

        func isBefore(_ other: Candidate) -> Bool { (rank, position) < (other.rank, other.position) }
    }

    /// A binary heap.
    private struct Queue {
        private var heap: [Candidate] = []

        mutating func push(_ candidate: Candidate) {
            heap.append(candidate)
            var child = heap.count - 1
            while child > 0, heap[child].isBefore(heap[(child - 1) / 2]) {
                heap.swapAt(child, (child - 1) / 2)
                child = (child - 1) / 2
            }
        }

        mutating func pop() -> Candidate? {
            guard let first = heap.first else { return nil }
            let last = heap.removeLast()
            guard !heap.isEmpty else { return first }
            heap[0] = last
            var parent = 0
            while true {
                let children = [2 * parent + 1, 2 * parent + 2].filter { $0 < heap.count }
                guard let child = children.min(by: { heap[$0].isBefore(heap[$1]) }),
                    heap[child].isBefore(heap[parent])
                else { return first }
                heap.swapAt(child, parent)
                parent = child
            }
        }
    }
}
