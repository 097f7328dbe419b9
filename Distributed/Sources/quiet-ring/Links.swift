// SPDX-License-Identifier: Apache-2.0
// Links.swift - quiet-ring links: what the cost model needs to know of the messages between ranks.

import ArgumentParser
import QuietAttention
import Ring

struct Links: RingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Time messages from each rank to the next.",
        discussion: """
            All ranks send to the next one at the same time, as they do in a pass, and wait for what the one before sends. \
            Prints JSON:
              hop_s                seconds of a message of 8 bytes: the median
              bytes_per_second     that a rank sends: of messages of --bytes, what \
            is above hop_s
            These are t and W of Documentation/Distributed.md.
            """)

    @OptionGroup var machine: MachineOptions

    @OptionGroup(title: "Ranks") var ranks: RankOptions

    @Option(parsing: .unconditional, help: ArgumentHelp("Of a large message, 65536 to 2^30.", valueName: "n"))
    var bytes = 4 << 20

    @Option(parsing: .unconditional, help: ArgumentHelp("Messages of each size.", valueName: "n"))
    var messages = 100

    @Flag(help: "Print the JSON object on one line.")
    var json = false

    func validate() throws {
        guard (1 << 16...1 << 30).contains(bytes) else {
            throw ValidationError("--bytes: expected 65536 to \(1 << 30), got \(bytes)")
        }
        guard (1...1_000_000).contains(messages) else {
            throw ValidationError("--messages: expected 1 to 1000000, got \(messages)")
        }
    }

    func run(_ world: World) throws {
        try world.agreeing {
            guard world.size > 1 else { throw Failure("links: expected 2 ranks or more, got one") }
        }
        let buffers = try world.agreeing {
            (from: try Buffer<UInt8>(bytes, for: "messages"), to: try Buffer<UInt8>(bytes, for: "messages"))
        }
        let short = try seconds(world, buffers, bytes: 8)
        let long = try seconds(world, buffers, bytes: bytes)
        guard world.rank == 0 else { return }
        let members: [(name: String, value: JSONValue)] = [
            ("ranks", .integer(world.size)), ("bytes", .integer(bytes)), ("messages", .integer(messages)),
            ("hop_s", .number(short)), ("bytes_per_second", .number(Double(bytes) / max(long - short, 1e-9))),
        ]
        try emit(JSONValue.object(members).text(lines: !json))
    }

    /// Of one message: the median of each rank's, and of these the largest.
    private func seconds(_ world: World, _ buffers: (from: Buffer<UInt8>, to: Buffer<UInt8>), bytes: Int) throws
        -> Double
    {
        var times: [Double] = []
        for number in 0..<messages + 3 {
            let own = try Ring.timed {
                var incoming = try world.receive(
                    .init(rebasing: buffers.to.bytes[..<bytes]), from: world.previous, tag: 0x10004, "a message")
                var outgoing = try world.send(
                    .init(rebasing: UnsafeRawBufferPointer(buffers.from.bytes)[..<bytes]), to: world.next,
                    tag: 0x10004, "a message")
                try world.wait(&incoming)
                try world.wait(&outgoing)
            }
            // The first ones make connections and touch memory.
            if number >= 3 { times.append(own) }
        }
        return try world.numbers([times.sorted()[times.count / 2]]).map { $0[0] }.max()!
    }
}
