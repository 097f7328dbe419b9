// SPDX-License-Identifier: Apache-2.0
// Agreement.swift - ranks tell each other how they are, and go on together or not at all.

/// What a rank tells the others before they go on: that it failed, or what must be the same on all.
public struct Statement: Sendable {
    /// Why this rank cannot go on; nil: it can.
    public var failure: String?
    /// Exit status that goes with the failure.
    public var status: Int32 = 1
    /// What must be the same everywhere, by name.
    public var facts: [(name: String, value: String)] = []

    public init(failure: String? = nil, status: Int32 = 1, facts: [(name: String, value: String)] = []) {
        (self.failure, self.status, self.facts) = (failure, status, facts)
    }

    /// Bytes of a statement on its way. Longer ones are cut, which their length and digest give away.
    private static let bytes = 4096

    private static let separator: Character = "\u{1f}"

    fileprivate var encoded: [UInt8] {
        let words = failure.map { ["failure", "\(status)", $0] } ?? ["facts"] + facts.flatMap { [$0.name, $0.value] }
        var text = Array(
            words.map { $0.filter { $0 != Self.separator && $0 != "\0" } }.joined(separator: "\(Self.separator)").utf8)
        if text.count >= Self.bytes {
            let hash = text.reduce(UInt64(14_695_981_039_346_656_037)) { ($0 ^ UInt64($1)) &* 1_099_511_628_211 }
            text = text.prefix(Self.bytes - 32) + Array("... \(String(hash, radix: 16))".utf8)
        }
        return text + [UInt8](repeating: 0, count: Self.bytes - text.count)
    }

    fileprivate init(decoding bytes: [UInt8]) {
        let text = String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        let words = text.split(separator: Self.separator, omittingEmptySubsequences: false).map(String.init)
        if words.first == "failure", words.count > 2 {
            self.init(failure: words.dropFirst(2).joined(separator: " "), status: Int32(words[1]) ?? 1)
        } else {
            self.init(
                facts: stride(from: 1, to: words.count, by: 2).map {
                    (words[$0], $0 + 1 < words.count ? words[$0 + 1] : "")
                })
        }
    }
}

/// Why ranks end together: the same on all of them.
public struct Disagreement: Error {
    /// The rank that it is about, and what there is to say.
    public let rank: Int
    public let reason: String
    public let status: Int32
}

extension World {
    /// Ends together, or goes on together: every rank calls this at the same place.
    ///
    /// - Throws: ``Disagreement``, the same on all ranks: the first that failed, or whose facts are not those of rank 0; or
    ///   ``RingError`` when one does not come.
    public func agree(_ own: Statement) throws {
        let all = try gather(own.encoded).map { Statement(decoding: $0) }
        for (rank, statement) in all.enumerated() {
            if let failure = statement.failure {
                throw Disagreement(rank: rank, reason: failure, status: statement.status)
            }
        }
        for (rank, statement) in all.enumerated() {
            for (own, first) in zip(statement.facts, all[0].facts) where own.value != first.value {
                throw Disagreement(
                    rank: rank, reason: "has \(own.name) \(own.value), rank 0 has \(first.value)", status: 1)
            }
            guard statement.facts.count == all[0].facts.count else {
                throw Disagreement(rank: rank, reason: "is another version of the program than rank 0", status: 1)
            }
        }
    }

    /// Runs `body` on every rank; where it fails on one, all end.
    public func agreeing<Result>(_ body: () throws -> Result) throws -> Result {
        var result: Result?
        var statement = Statement()
        do { result = try body() } catch { statement.failure = "\(error)" }
        try agree(statement)
        return result!
    }
}
