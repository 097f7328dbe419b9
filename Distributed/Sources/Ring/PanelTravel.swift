// SPDX-License-Identifier: Apache-2.0
// PanelTravel.swift - where panels are, and the messages in which they travel.

import QuietAttention

/// Takes panels in as the rank's ``PanelDesk`` asks for them, sends them on, and takes home the sums of the rank's own.
///
/// Panels are offered: they stay with the sender, which never waits, until the receiver has a seat for them. A rank holds the panels
/// on its seats, and ``atOnce`` of its own on their way to the first chunk, and the sums of as many on their way home.
final class PanelTravel<Query: AttentionScalar, OutputGradient: AttentionScalar> {
    typealias Rows = Panel<Query, OutputGradient>

    /// Panels of the rank that are on their way to others, and sums on their way home.
    private static var atOnce: Int { 4 }

    /// Of an offer: a panel, or its sums alone. Behind these bits is the panel's number.
    private enum Kind: Int {
        case panel = 0x40_0000
        case home = 0
    }

    private let world: World
    private let panels: PanelPlan
    private let layout: PanelLayout
    private let pack: (Rows) -> Void
    private let unpack: (_ panel: Int, _ sums: UnsafeBufferPointer<Float>) -> Void
    private var desk: PanelDesk

    /// The rank's panels that begin elsewhere, by their turns.
    private let departures: [Int]
    private var nextDeparture = 0
    /// Sums that are still to come home from others.
    private var absent: Int
    private var offers: [Int: Offer] = [:]
    private var homeOffers: [Offer] = []
    private var coming: [(panel: Rows, request: Request)] = []
    private var departing: [(panel: Rows, request: Request)] = []
    private var leaving: [(panel: Rows, request: Request)] = []
    private var returning: [(number: Int, sums: Buffer<Float>, request: Request)] = []
    /// On seats, until they have left.
    private var here: [Int: Rows] = [:]
    /// Of panels that are gone.
    private var spare: [Buffer<UInt8>] = []
    private var failure: RingError?

    /// - Parameters:
    ///   - pack: fills a panel of the rank's own, whose sums are 0.
    ///   - unpack: takes the sums of one.
    init(
        _ world: World, _ panels: PanelPlan, _ layout: PanelLayout, pack: @escaping (Rows) -> Void,
        unpack: @escaping (Int, UnsafeBufferPointer<Float>) -> Void
    ) throws(RingError) {
        guard panels.panels <= Kind.panel.rawValue else {
            throw RingError("\(panels.panels) stripes of heads: expected at most \(Kind.panel.rawValue)")
        }
        (self.world, self.panels, self.layout) = (world, panels, layout)
        (self.pack, self.unpack) = (pack, unpack)
        desk = PanelDesk(panels, rank: world.rank)
        let own = (0..<panels.panels).filter { panels.home(of: $0) == world.rank && !panels.chunks($0).isEmpty }
        let plan = panels.plan
        departures = own.filter { plan.owner(of: panels.chunks($0).lowerBound) != world.rank }
            .sorted { panels.turn($0) < panels.turn($1) }
        absent = own.count { plan.owner(of: panels.chunks($0).upperBound - 1) != world.rank }
    }

    private func rows(_ panel: Int) -> Int { panels.plan.rows(ofStripe: panels.stripe(panel)).count }

    // MARK: - Panels

    private func emptyPanel(_ number: Int) throws(RingError) -> Rows {
        let used = spare.popLast()
        let memory = if let used { used } else { try Rows.memory(rows: panels.plan.stripeRows, layout) }
        return Rows(number, rows: rows(number), layout, in: memory)
    }

    private func ownPanel(_ number: Int) throws(RingError) -> Rows {
        let panel = try emptyPanel(number)
        panel.sums.update(repeating: 0)
        pack(panel)
        return panel
    }

    private func send(_ panel: Rows, _ kind: Kind, _ rank: Int) throws(RingError) -> Request {
        let bytes = kind == .home ? UnsafeRawBufferPointer(panel.sums) : UnsafeRawBufferPointer(panel.bytes)
        return try world.offer(bytes, to: rank, tag: kind.rawValue | panel.number, "panel \(panel.number)")
    }

    // MARK: - Messages

    /// Gets messages on; between pieces of work.
    func poll() {
        guard failure == nil else { return }
        do throws(RingError) { try step() } catch { failure = error }
    }

    private func step() throws(RingError) {
        try end()
        while let offer = try world.findOffer() {
            if offer.tag & Kind.panel.rawValue == 0 {
                homeOffers.append(offer)
            } else {
                let number = offer.tag & (Kind.panel.rawValue - 1)
                offers[number] = offer
                desk.offer(number)
            }
        }
        while let number = desk.take() { try take(number) }
        while departing.count < Self.atOnce, nextDeparture < departures.count {
            let panel = try ownPanel(departures[nextDeparture])
            let to = panels.plan.owner(of: panels.chunks(panel.number).lowerBound)
            departing.append((panel, try send(panel, .panel, to)))
            nextDeparture += 1
        }
        while returning.count < Self.atOnce, let offer = homeOffers.popLast() {
            let count = layout.heads * rows(offer.tag) * layout.sumFloats
            let sums = try Buffer<Float>(count, for: "gradients in flight")
            let request = try world.take(offer, into: sums.bytes, "the gradient of panel \(offer.tag)")
            returning.append((offer.tag, sums, request))
        }
    }

    /// What has become of messages.
    private func end() throws(RingError) {
        for index in coming.indices.reversed() where try world.isDone(&coming[index].request) {
            let panel = coming.remove(at: index).panel
            here[panel.number] = panel
            desk.arrive(panel.number)
        }
        for index in departing.indices.reversed() where try world.isDone(&departing[index].request) {
            spare.append(departing.remove(at: index).panel.memory)
        }
        for index in leaving.indices.reversed() where try world.isDone(&leaving[index].request) {
            let panel = leaving.remove(at: index).panel
            spare.append(panel.memory)
            desk.leave(panel.number)
        }
        for index in returning.indices.reversed() where try world.isDone(&returning[index].request) {
            unpack(returning[index].number, returning[index].sums.reading)
            returning.remove(at: index)
            absent -= 1
        }
    }

    /// A panel that has got a seat.
    private func take(_ number: Int) throws(RingError) {
        guard let offer = offers.removeValue(forKey: number) else {
            here[number] = try ownPanel(number)
            return desk.arrive(number)
        }
        let panel = try emptyPanel(number)
        coming.append((panel, try world.take(offer, into: panel.bytes, "panel \(number)")))
    }

    // MARK: - Tasks

    /// What to do now, when its panel is there; nil: all is done.
    func next() throws(RingError) -> (panel: Rows, chunk: Int)? {
        if let failure { throw failure }
        guard let first = desk.first else { return nil }
        try world.wait(
            until: { () throws(RingError) in
                if self.desk.task != nil { return true }
                try self.step()
                return self.desk.task != nil
            },
            for: { [panels] in
                let chunk = first.chunk
                let from =
                    chunk == panels.chunks(first.panel).lowerBound
                    ? panels.home(of: first.panel) : panels.plan.owner(of: chunk - 1)
                return "panel \(first.panel) for chunk \(chunk) from rank \(from)"
            })
        let task = desk.task!
        return (here[task.panel]!, task.chunk)
    }

    /// Sends a panel to the owner of the chunk that follows, or its sums home.
    func passOn(_ panel: Rows) throws(RingError) {
        switch desk.finish(panel.number) {
        case .stays: break
        case .onward(let rank):
            here[panel.number] = nil
            leaving.append((panel, try send(panel, .panel, rank)))
        case .home(let rank) where rank == world.rank:
            here[panel.number] = nil
            unpack(panel.number, UnsafeBufferPointer(panel.sums))
            spare.append(panel.memory)
        case .home(let rank):
            here[panel.number] = nil
            leaving.append((panel, try send(panel, .home, rank)))
        }
        try step()
    }

    /// Waits until all of the rank's own sums are home, and all that was sent has been taken.
    func finish() throws(RingError) {
        if let failure { throw failure }
        try world.wait(
            until: { () throws(RingError) in
                try self.step()
                return self.departing.isEmpty && self.nextDeparture == self.departures.count && self.leaving.isEmpty
                    && self.absent == 0
            }, for: { "gradients to come home" })
    }
}
