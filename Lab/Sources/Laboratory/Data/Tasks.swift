// SPDX-License-Identifier: Apache-2.0
// Tasks.swift - made-up data: a passkey within filler, and the task on which attention sinks grow in seconds.

/// A passkey of digits somewhere in filler, asked for at the end; targets are its digits alone.
///
/// *Source*: Mohtashami and Jaggi, "Landmark Attention", arXiv 2305.16300; the filler is CoCA's, arXiv 2309.08646.
public struct Passkey: DataSource {
    public var vocabulary: Int { 256 }
    public let digits: Int
    static let filler = Array("The grass is green. The sky is blue. ".utf8)

    public init(digits: Int = 5) { self.digits = digits }

    /// The shortest sequence that holds key and question.
    public var shortest: Int { 2 * (6 + digits) }

    public func batch(sequences: Int, length: Int, random: Random, testing: Bool) -> Batch {
        var (random, batch) = (random, Batch(sequences: sequences))
        for _ in 0..<sequences {
            let key = (0..<digits).map { _ in UInt8(48 + random.below(10)) }
            let (fact, question) = (Array(" key ".utf8) + key + Array(".".utf8), Array(" key? ".utf8))
            let room = length + 1 - fact.count - question.count - digits
            let place = random.below(max(room, 0) + 1)
            var bytes = (0..<max(room, 0)).map { Self.filler[$0 % Self.filler.count] }
            bytes.insert(contentsOf: fact, at: place)
            bytes += question + key
            let first = length - digits
            batch.tokens += bytes.prefix(length).map(Int32.init)
            batch.targets += (0..<length).map { $0 >= first ? Int32(bytes[$0 + 1]) : -1 }
        }
        return batch
    }
}

/// Sequences of a bigram chain behind a first token BOS; after a trigger comes a copy of the token before the trigger.
///
/// The chain is that of a text's commonest bytes. *Source*: Guo et al., "Active-Dormant Attention Heads", arXiv 2410.13835, 2024.
public struct BigramBackcopy: DataSource {
    public let vocabulary: Int
    public static let begin: Int32 = 0
    /// Tokens 1 to this are triggers: the commonest bytes.
    public let triggers: Int
    /// Cumulative probabilities of the next token, `[symbols + 1, symbols]`; the last row is how often each is.
    private let cumulative: [Double]
    private let symbols: Int

    public init(_ text: ByteText, symbols: Int = 63, triggers: Int = 3) throws {
        var counts = [Int](repeating: 0, count: 256)
        for byte in text.bytes { counts[Int(byte)] += 1 }
        let order = (0..<256).sorted { (counts[$1], $0) < (counts[$0], $1) }.prefix(symbols).filter { counts[$0] > 0 }
        guard order.count > triggers + 1 else { throw LabError("text: too few different bytes") }
        self.symbols = order.count
        self.triggers = triggers
        vocabulary = order.count + 1
        var index = [Int?](repeating: nil, count: 256)
        for (place, byte) in order.enumerated() { index[byte] = place }
        var pairs = [Double](repeating: 0, count: (order.count + 1) * order.count)
        var before: Int?
        for byte in text.bytes {
            let now = index[Int(byte)]
            if let now {
                pairs[order.count * order.count + now] += 1
                if let before { pairs[before * order.count + now] += 1 }
            }
            before = now
        }
        for row in 0...order.count {
            var sum = 0.0
            for column in 0..<order.count {
                sum += pairs[row * order.count + column]
                pairs[row * order.count + column] = sum
            }
        }
        cumulative = pairs
    }

    public func batch(sequences: Int, length: Int, random: Random, testing: Bool) -> Batch {
        var (random, batch) = (random, Batch(sequences: sequences))
        for _ in 0..<sequences {
            var row: [Int32] = [Self.begin, draw(after: symbols, &random)]
            while row[1] <= triggers { row[1] = draw(after: symbols, &random) }
            while row.count <= length {
                let last = row[row.count - 1]
                row.append(last <= triggers ? row[row.count - 2] : draw(after: Int(last) - 1, &random))
            }
            batch.tokens += row.prefix(length)
            batch.targets += row.dropFirst().prefix(length)
        }
        return batch
    }

    private func draw(after row: Int, _ random: inout Random) -> Int32 {
        let range = row * symbols..<(row + 1) * symbols
        let total = cumulative[range.upperBound - 1]
        // A token that nothing followed in the text: any, by how often it is.
        guard total > 0 else { return draw(after: symbols, &random) }
        let mark = random.uniform() * total
        let place = cumulative[range].firstIndex { $0 > mark } ?? range.upperBound - 1
        return Int32(place - range.lowerBound + 1)
    }
}
