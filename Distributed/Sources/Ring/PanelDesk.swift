// SPDX-License-Identifier: Apache-2.0
// PanelDesk.swift - which panels a rank takes in, and which one it works at.

/// What one rank does next in the backward pass: decided when it is to be done, from what is there.
///
/// The order of a rank's work may be any that keeps the two of ``PanelPlan``, and none is fixed before: a rank whose next
/// panel is late works at another. Panels sit on one of ``seats`` seats, from when they are asked for until the next rank has
/// taken them.
///
/// No run stops, whatever the delays. Of all meetings of panels and chunks that are still to come, take the first one by the turn
/// of its panel, then by chunk. Its panel has passed all chunks before, and its chunk has met all panels before: so the panel is
/// on offer to the chunk's owner, whose own first meeting it is. A seat is left for it: panels of later turns never take the last
/// one, and those of earlier turns have passed all of their chunks, go home, and are taken there without any seat.
package struct PanelDesk {
    /// Panels at a rank, at most: those that it waits for, works at, or sends on.
    package static let seats = 8

    /// One of the rank's chunks: the panel to meet next, and the one after it.
    private struct Queue {
        let chunk: Int
        var next, following: Int?
    }

    private enum Seat {
        case coming, here, leaving
    }

    /// Where a panel goes from here.
    package enum Destination: Equatable {
        case stays
        case onward(rank: Int)
        case home(rank: Int)
    }

    package typealias Task = (panel: Int, chunk: Int)

    private let panels: PanelPlan
    private let rank: Int
    private var queues: [Queue]
    /// By panel: the chunk that it came for.
    private var seated: [Int: (chunk: Int, seat: Seat)] = [:]
    private var offered: [Int: Int] = [:]

    package init(_ panels: PanelPlan, rank: Int) {
        (self.panels, self.rank) = (panels, rank)
        queues = panels.plan.chunks(of: rank).map { chunk in
            let next = panels.panel(from: 0, seeing: chunk)
            return Queue(
                chunk: chunk, next: next, following: next.flatMap { panels.panel(from: $0 + 1, seeing: chunk) })
        }
    }

    /// The rank's first meeting to come, by the turn of its panel and then by chunk; nil: it is done.
    package var first: Task? {
        queues.compactMap { queue in queue.next.map { ($0, queue.chunk) } }
            .min { (panels.turn($0.0), $0.1) < (panels.turn($1.0), $1.1) }
    }

    /// Panels on seats.
    package var count: Int { seated.count }

    // MARK: - Coming

    /// Another rank has a panel for the next of this rank's chunks that it sees.
    package mutating func offer(_ panel: Int) {
        let chunks = panels.chunks(panel)
        offered[panel] = queues.first { chunks.contains($0.chunk) && ($0.next ?? .max) <= panel }?.chunk
    }

    /// Whether a panel can be had for a chunk: it is on offer, or begins here.
    private func isThere(_ panel: Int, for chunk: Int) -> Bool {
        guard seated[panel] == nil else { return false }
        return offered[panel] == chunk || panels.chunks(panel).lowerBound == chunk && panels.home(of: panel) == rank
    }

    /// A panel to ask for now, from the rank that offers it or from the rank's own rows. It has a seat from here on.
    ///
    /// Only the next two of each chunk are asked for: others would sit and wait.
    package mutating func take() -> Int? {
        guard seated.count < Self.seats, let first else { return nil }
        let turn = panels.turn(first.panel)
        let isLastSeatLeft = seated.keys.count { panels.turn($0) > turn } >= Self.seats - 1
        var best: Task?
        for queue in queues {
            for panel in [queue.next, queue.following].compactMap(\.self) where isThere(panel, for: queue.chunk) {
                if isLastSeatLeft, panels.turn(panel) > turn { continue }
                if best.map({ panels.wave($0.panel, $0.chunk) > panels.wave(panel, queue.chunk) }) ?? true {
                    best = (panel, queue.chunk)
                }
            }
        }
        guard let best else { return nil }
        offered[best.panel] = nil
        seated[best.panel] = (best.chunk, .coming)
        return best.panel
    }

    /// A panel that was asked for is there.
    package mutating func arrive(_ panel: Int) { seated[panel]?.seat = .here }

    // MARK: - Work

    /// What to work at now; nil: nothing that is there has its turn.
    package var task: Task? {
        queues.compactMap { queue in
            queue.next.flatMap { panel in
                seated[panel].flatMap { $0.chunk == queue.chunk && $0.seat == .here ? (panel, queue.chunk) : nil }
            }
        }.min { panels.wave($0.0, $0.1) < panels.wave($1.0, $1.1) }
    }

    /// A panel has met the chunk that it came for: where it goes.
    package mutating func finish(_ panel: Int) -> Destination {
        let chunk = seated[panel]!.chunk
        let index = queues.firstIndex { $0.chunk == chunk }!
        queues[index].next = queues[index].following
        queues[index].following = queues[index].next.flatMap { panels.panel(from: $0 + 1, seeing: chunk) }
        if chunk + 1 == panels.chunks(panel).upperBound {
            let home = panels.home(of: panel)
            seated[panel] = home == rank ? nil : (chunk, .leaving)
            return .home(rank: home)
        }
        let next = panels.plan.owner(of: chunk + 1)
        seated[panel] = next == rank ? (chunk + 1, .here) : (chunk, .leaving)
        return next == rank ? .stays : .onward(rank: next)
    }

    /// Another rank has taken a panel.
    package mutating func leave(_ panel: Int) { seated[panel] = nil }
}
