// SPDX-License-Identifier: Apache-2.0
// Relay.swift - chunks of keys and values on their way round the ring.

import QuietAttention

/// Receives the chunks of others from the rank before, sends them on to the rank behind as soon as they are there, and this
/// rank's own.
///
/// A chunk begins at its owner and goes round up to the last rank that needs it. All ranks handle chunks in ascending order,
/// with three of others' in memory: one at work, two on their way. Whoever waits for chunk c waits for ranks nearer to its
/// owner, or for those that still work at chunks before c: so some rank can always go on.
final class Relay<Element: AttentionScalar> {
    private struct Slot {
        let memory: Buffer<Element>
        var tensors: ChunkTensors<Element>?
        var chunk = 0
        var receiving, sending: Request?
        /// Whether the rank is done with it.
        var isReleased = false
    }

    static var slots: Int { 3 }
    /// Own chunks offered at once: the next rank takes them in this order.
    private static var offered: Int { 4 }

    private let world: World
    private let part: OwnPart<Element>
    private let travels: [(hops: Int, isNeeded: Bool)]
    private var slots: [Slot] = []
    /// Of others' chunks and of the rank's own, those that come here and go from here, in ascending order.
    private let incoming, outgoing: [Int]
    private var nextIncoming = 0, nextOutgoing = 0
    private var offers: [Request] = []
    /// What went wrong in ``poll()``.
    private(set) var failure: RingError?

    init(_ world: World, _ part: OwnPart<Element>, _ travels: [(hops: Int, isNeeded: Bool)]) throws(RingError) {
        (self.world, self.part, self.travels) = (world, part, travels)
        let plan = part.plan
        func hops(_ chunk: Int) -> Int { (world.rank + world.size - plan.owner(of: chunk)) % world.size }
        incoming = travels.indices.filter { hops($0) > 0 && hops($0) <= travels[$0].hops }
        outgoing = travels.indices.filter { hops($0) == 0 && travels[$0].hops > 0 }
        let most = ChunkTensors<Element>.count(part.shape, keys: min(plan.keys, RingPlan.chunkKeys))
        for _ in 0..<min(Self.slots, incoming.count) {
            slots.append(Slot(memory: try Buffer(most, for: "keys and values in flight")))
        }
        for index in slots.indices { slots[index].isReleased = true }
    }

    /// Gets messages on; between pieces of work.
    func poll() {
        guard failure == nil else { return }
        do throws(RingError) { try step() } catch { failure = error }
    }

    private func step() throws(RingError) {
        for index in offers.indices.reversed() where try world.isDone(&offers[index]) { offers.remove(at: index) }
        while offers.count < Self.offered, nextOutgoing < outgoing.count {
            let chunk = outgoing[nextOutgoing]
            offers.append(try send(part.chunks[chunk]!, chunk))
            nextOutgoing += 1
        }
        for index in slots.indices { try advance(index) }
        // The next ones, in order: a free slot for each.
        for index in slots.indices where slots[index].isReleased && slots[index].tensors == nil {
            guard nextIncoming < incoming.count else { break }
            try receive(incoming[nextIncoming], into: index)
            nextIncoming += 1
        }
    }

    private func receive(_ chunk: Int, into index: Int) throws(RingError) {
        let tensors = ChunkTensors(slots[index].memory.elements, part.shape, part.plan.keys(ofChunk: chunk))
        (slots[index].tensors, slots[index].chunk) = (tensors, chunk)
        slots[index].isReleased = !travels[chunk].isNeeded
        slots[index].receiving = try world.receive(
            UnsafeMutableRawBufferPointer(tensors.bytes), from: world.previous, tag: Self.tag(chunk),
            "keys \(tensors.range)")
    }

    private func advance(_ index: Int) throws(RingError) {
        guard let tensors = slots[index].tensors else { return }
        if slots[index].receiving != nil {
            guard try world.isDone(&slots[index].receiving!) else { return }
            slots[index].receiving = nil
            let hops = (world.rank + world.size - part.plan.owner(of: slots[index].chunk)) % world.size
            if hops < travels[slots[index].chunk].hops {
                slots[index].sending = try send(tensors, slots[index].chunk)
            }
        }
        if slots[index].sending != nil, try world.isDone(&slots[index].sending!) { slots[index].sending = nil }
        if slots[index].isReleased, slots[index].sending == nil { slots[index].tensors = nil }
    }

    private func send(_ tensors: ChunkTensors<Element>, _ chunk: Int) throws(RingError) -> Request {
        try world.send(
            UnsafeRawBufferPointer(tensors.bytes), to: world.next, tag: Self.tag(chunk), "keys \(tensors.range)")
    }

    private static func tag(_ chunk: Int) -> Int { chunk & 0x3fff }

    // MARK: - Chunks

    /// A chunk of one's own, or of another rank when it is there.
    func chunk(_ chunk: Int) throws(RingError) -> ChunkTensors<Element> {
        if let own = part.chunks[chunk] { return own }
        try world.wait(
            until: { () throws(RingError) in
                try self.step()
                return self.arrived(chunk) != nil
            }, for: { "keys \(self.part.plan.keys(ofChunk: chunk)) from rank \(self.world.previous)" })
        return slots[arrived(chunk)!].tensors!
    }

    private func arrived(_ chunk: Int) -> Int? {
        slots.firstIndex { $0.tensors != nil && $0.chunk == chunk && $0.receiving == nil }
    }

    /// The rank is done with a chunk.
    func release(_ chunk: Int) {
        if let index = arrived(chunk) { slots[index].isReleased = true }
    }

    /// Passes on what is left, and waits until all that was sent has been taken.
    func finish() throws(RingError) {
        if let failure { throw failure }
        try world.wait(
            until: { () throws(RingError) in
                try self.step()
                return self.offers.isEmpty && self.nextOutgoing == self.outgoing.count
                    && self.nextIncoming == self.incoming.count && self.slots.allSatisfy { $0.tensors == nil }
            }, for: { "rank \(self.world.next) to take the keys that are left" })
    }
}
