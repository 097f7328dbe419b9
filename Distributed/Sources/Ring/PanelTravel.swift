// SPDX-License-Identifier: Apache-2.0
// PanelTravel.swift - where panels are, and the messages in which they travel.

import QuietAttention

/// Receives panels for the tasks to come, sends them on, and takes home the sums of the rank's own.
///
/// Every rank posts what it receives in the order of its tasks, and never waits to send: of all tasks that are not done, the
/// first one's panel is on its way to a rank that waits for it or will soon.
final class PanelTravel<Query: AttentionScalar, OutputGradient: AttentionScalar> {
    typealias Rows = Panel<Query, OutputGradient>

    /// Panels asked for before they are needed, and messages of other kinds under way.
    private static var ahead: Int { 4 }

    private enum Kind: Int {
        case start = 0x4000
        case onward = 0x8000
        case home = 0xc000
    }

    private let world: World
    private let panels: PanelPlan
    private let layout: PanelLayout
    private let tasks: [(panel: Int, chunk: Int)]
    private let pack: (_ panel: Int) throws(RingError) -> Rows
    private let unpack: (_ panel: Int, _ sums: UnsafeBufferPointer<Float>) -> Void

    /// Tasks whose panels come from elsewhere, the rank's panels that begin elsewhere, and those that end there: in order.
    private let arrivals: [Int]
    private let departures, returns: [Int]
    private var nextArrival = 0, nextDeparture = 0, nextReturn = 0
    private var arriving: [Int: (panel: Rows, request: Request?)] = [:]
    private var departing: [(panel: Rows, request: Request)] = []
    private var passing: [(panel: Rows, request: Request)] = []
    private var returning: [(number: Int, sums: Buffer<Float>, request: Request)] = []
    /// Between two chunks of this rank.
    private var held: [Int: Rows] = [:]
    private var failure: RingError?

    init(
        _ world: World, _ panels: PanelPlan, _ layout: PanelLayout, _ tasks: [(panel: Int, chunk: Int)],
        pack: @escaping (Int) throws(RingError) -> Rows,
        unpack: @escaping (Int, UnsafeBufferPointer<Float>) -> Void
    ) {
        (self.world, self.panels, self.layout, self.tasks) = (world, panels, layout, tasks)
        (self.pack, self.unpack) = (pack, unpack)
        let (plan, rank) = (panels.plan, world.rank)
        arrivals = tasks.indices.filter { Self.origin(of: tasks[$0], panels) != rank }
        func own(_ place: (Int) -> Int) -> [Int] {
            let numbers = (0..<panels.panels).filter {
                let chunks = panels.chunks($0)
                return !chunks.isEmpty && plan.owner(of: panels.stripe($0)) == rank && plan.owner(of: place($0)) != rank
            }
            return numbers.sorted {
                (panels.wave($0, place($0)), place($0)) < (panels.wave($1, place($1)), place($1))
            }
        }
        departures = own { panels.chunks($0).lowerBound }
        returns = own { panels.chunks($0).upperBound - 1 }
    }

    /// The rank that a task's panel comes from.
    private static func origin(of task: (panel: Int, chunk: Int), _ panels: PanelPlan) -> Int {
        task.chunk == panels.chunks(task.panel).lowerBound
            ? panels.plan.owner(of: panels.stripe(task.panel)) : panels.plan.owner(of: task.chunk - 1)
    }

    private func rows(_ panel: Int) -> Int { panels.plan.rows(ofStripe: panels.stripe(panel)).count }

    private func tag(_ kind: Kind, _ panel: Int) -> Int { kind.rawValue | panel & 0x3fff }

    // MARK: - Messages

    /// Gets messages on; between pieces of work.
    func poll() {
        guard failure == nil else { return }
        do throws(RingError) { try step() } catch { failure = error }
    }

    private func step() throws(RingError) {
        for task in Array(arriving.keys) where arriving[task]!.request != nil {
            if try world.isDone(&arriving[task]!.request!) { arriving[task]!.request = nil }
        }
        for index in departing.indices.reversed() where try world.isDone(&departing[index].request) {
            departing.remove(at: index)
        }
        for index in passing.indices.reversed() where try world.isDone(&passing[index].request) {
            passing.remove(at: index)
        }
        for index in returning.indices.reversed() where try world.isDone(&returning[index].request) {
            unpack(returning[index].number, returning[index].sums.reading)
            returning.remove(at: index)
        }
        while arriving.count < Self.ahead, nextArrival < arrivals.count {
            try arrive(arrivals[nextArrival])
            nextArrival += 1
        }
        while departing.count < Self.ahead, nextDeparture < departures.count {
            let number = departures[nextDeparture]
            let panel = try pack(number)
            let to = panels.plan.owner(of: panels.chunks(number).lowerBound)
            departing.append((panel, try send(panel, .start, to)))
            nextDeparture += 1
        }
        while returning.count < Self.ahead, nextReturn < returns.count {
            let number = returns[nextReturn]
            let sums = try Buffer<Float>(
                layout.heads * rows(number) * layout.sumFloats, for: "gradients in flight")
            let from = panels.plan.owner(of: panels.chunks(number).upperBound - 1)
            let request = try world.receive(
                sums.bytes, from: from, tag: tag(.home, number), "the gradient of panel \(number)")
            returning.append((number, sums, request))
            nextReturn += 1
        }
    }

    private func arrive(_ index: Int) throws(RingError) {
        let task = tasks[index]
        let panel = try Rows(task.panel, rows: rows(task.panel), layout)
        let kind = task.chunk == panels.chunks(task.panel).lowerBound ? Kind.start : .onward
        let request = try world.receive(
            panel.bytes, from: Self.origin(of: task, panels), tag: tag(kind, task.panel),
            "panel \(task.panel) for chunk \(task.chunk)")
        arriving[index] = (panel, request)
    }

    private func send(_ panel: Rows, _ kind: Kind, _ rank: Int) throws(RingError) -> Request {
        let bytes = kind == .home ? UnsafeRawBufferPointer(panel.sums) : UnsafeRawBufferPointer(panel.bytes)
        return try world.send(bytes, to: rank, tag: tag(kind, panel.number), "panel \(panel.number)")
    }

    // MARK: - Tasks

    /// The panel of a task, when it is there.
    func panel(ofTask index: Int) throws(RingError) -> Rows {
        if let failure { throw failure }
        let task = tasks[index]
        if let panel = held.removeValue(forKey: task.panel) { return panel }
        if Self.origin(of: task, panels) == world.rank { return try pack(task.panel) }
        try world.wait(
            until: { () throws(RingError) in
                try self.step()
                return self.arriving[index].map { $0.request == nil } ?? false
            }, for: { "panel \(task.panel) from rank \(Self.origin(of: task, self.panels))" })
        return arriving.removeValue(forKey: index)!.panel
    }

    /// Sends a panel to the owner of the chunk that follows, or its sums home.
    func passOn(_ panel: Rows, after chunk: Int) throws(RingError) {
        let isLast = chunk + 1 == panels.chunks(panel.number).upperBound
        let next =
            isLast ? panels.plan.owner(of: panels.stripe(panel.number)) : panels.plan.owner(of: chunk + 1)
        if next != world.rank {
            passing.append((panel, try send(panel, isLast ? .home : .onward, next)))
        } else if isLast {
            unpack(panel.number, UnsafeBufferPointer(panel.sums))
        } else {
            held[panel.number] = panel
        }
        try step()
    }

    /// Waits until all of the rank's own sums are home, and all that was sent has been taken.
    func finish() throws(RingError) {
        if let failure { throw failure }
        try world.wait(
            until: { () throws(RingError) in
                try self.step()
                return self.departing.isEmpty && self.nextDeparture == self.departures.count && self.passing.isEmpty
                    && self.returning.isEmpty && self.nextReturn == self.returns.count
            }, for: { "gradients to come home" })
    }
}
