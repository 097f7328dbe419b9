// SPDX-License-Identifier: Apache-2.0
// PanelDeskTests.swift - all ranks' desks in one process, with messages that take as long as they like.

import QuietAttention
import Ring
import Testing

/// The desks of all ranks, and what is under way between them.
private struct SimulatedRun {
    private enum Event {
        /// A rank sees that it may have a panel.
        case offers(rank: Int, panel: Int)
        /// A panel has come to the rank that asked for it.
        case comes(rank: Int, panel: Int)
        /// A rank has done what it worked at.
        case ends(rank: Int)
    }

    let panels: PanelPlan
    let ranks: Int
    private var desks: [PanelDesk]
    private var generator: SeededNumbers
    private var events: [(time: Int, event: Event)] = []
    private var departures: [[Int]]
    private var departing: [Int]
    /// By panel: the rank that has it, and whether it left the rank's own rows.
    private var holders: [Int: (rank: Int, isHome: Bool)] = [:]
    private var works: [PanelDesk.Task?]
    private let longest: Int
    /// In the order in which they were met.
    private(set) var chunksOfPanel: [Int: [Int]] = [:], panelsOfChunk: [Int: [Int]] = [:]
    private(set) var home: [Int] = []
    private(set) var mostSeats = 0

    /// - Parameter longest: delay of a message, in units of the shortest task.
    init(_ panels: PanelPlan, seed: UInt64, longest: Int) {
        (self.panels, self.longest) = (panels, longest)
        let ranks = panels.plan.ranks
        self.ranks = ranks
        desks = (0..<ranks).map { PanelDesk(panels, rank: $0) }
        generator = SeededNumbers(state: seed)
        works = Array(repeating: nil, count: ranks)
        departing = Array(repeating: 0, count: ranks)
        departures = (0..<ranks).map { rank in
            (0..<panels.panels).filter { panel in
                panels.home(of: panel) == rank && !panels.chunks(panel).isEmpty
                    && panels.plan.owner(of: panels.chunks(panel).lowerBound) != rank
            }.sorted { panels.turn($0) < panels.turn($1) }
        }
    }

    private mutating func after(_ most: Int, _ now: Int, _ event: Event) {
        events.append((now + Int.random(in: 0...most, using: &generator), event))
    }

    /// Until nothing more happens.
    mutating func run() {
        var now = 0
        while true {
            for rank in 0..<ranks { act(rank, now) }
            guard let index = events.indices.min(by: { events[$0].time < events[$1].time }) else { return }
            let (time, event) = events.remove(at: index)
            now = time
            switch event {
            case .offers(let rank, let panel): desks[rank].offer(panel)
            case .comes(let rank, let panel): come(rank, panel)
            case .ends(let rank): end(rank, now)
            }
        }
    }

    private mutating func act(_ rank: Int, _ now: Int) {
        while departing[rank] < 4, !departures[rank].isEmpty {
            let panel = departures[rank].removeFirst()
            departing[rank] += 1
            holders[panel] = (rank, true)
            after(longest, now, .offers(rank: panels.plan.owner(of: panels.chunks(panel).lowerBound), panel: panel))
        }
        while let panel = desks[rank].take() { after(longest, now, .comes(rank: rank, panel: panel)) }
        mostSeats = max(mostSeats, desks[rank].count)
        guard works[rank] == nil, let task = desks[rank].task else { return }
        works[rank] = task
        after(8, now, .ends(rank: rank))
    }

    private mutating func come(_ rank: Int, _ panel: Int) {
        if let holder = holders.removeValue(forKey: panel) {
            if holder.isHome { departing[holder.rank] -= 1 } else { desks[holder.rank].leave(panel) }
        }
        desks[rank].arrive(panel)
    }

    private mutating func end(_ rank: Int, _ now: Int) {
        let (panel, chunk) = works[rank]!
        works[rank] = nil
        chunksOfPanel[panel, default: []].append(chunk)
        panelsOfChunk[chunk, default: []].append(panel)
        switch desks[rank].finish(panel) {
        case .stays: break
        case .onward(let next):
            holders[panel] = (rank, false)
            after(longest, now, .offers(rank: next, panel: panel))
        case .home(let owner):
            home.append(panel)
            if owner != rank { desks[rank].leave(panel) }
        }
    }
}

/// A linear congruential generator: the same everywhere.
private struct SeededNumbers: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state ^ state >> 29
    }
}

@Suite struct PanelDeskTests {
    private static let masks: [AttentionMask] = [
        .causal, .none, .window(before: 2500, after: 0), .window(before: 100, after: 300),
    ]

    @Test(arguments: [1, 2, 3, 4, 7], [1, 3])
    func everyMeetingOnceAndInOrderWhateverTheDelays(ranks: Int, groupHeads: Int) {
        for (index, mask) in Self.masks.enumerated() {
            for (queries, keys, diagonal) in [(9000, 9000, 0), (1500, 7000, 5500), (5000, 3000, -2000), (0, 4000, 0)] {
                let plan = RingPlan(ranks: ranks, queries: queries, keys: keys, diagonal: diagonal, mask: mask)
                let panels = PanelPlan(plan: plan, groupHeads: groupHeads)
                for (seed, longest) in [(1, 0), (2, 3), (3, 200), (4, 5000)] {
                    var run = SimulatedRun(panels, seed: UInt64(seed + 10 * index), longest: longest)
                    run.run()
                    check(run, panels)
                }
            }
        }
    }

    private func check(_ run: SimulatedRun, _ panels: PanelPlan) {
        var panelsOfChunk: [Int: [Int]] = [:]
        for panel in 0..<panels.panels {
            let chunks = Array(panels.chunks(panel))
            #expect(run.chunksOfPanel[panel] ?? [] == chunks)
            for chunk in chunks { panelsOfChunk[chunk, default: []].append(panel) }
        }
        #expect(run.panelsOfChunk == panelsOfChunk)
        #expect(run.home.sorted() == (0..<panels.panels).filter { !panels.chunks($0).isEmpty })
        #expect(run.mostSeats <= PanelDesk.seats)
    }

    @Test(arguments: masks)
    func turnsAscendAtEveryChunk(mask: AttentionMask) {
        let plan = RingPlan(ranks: 3, queries: 9000, keys: 9000, diagonal: 0, mask: mask)
        let panels = PanelPlan(plan: plan, groupHeads: 3)
        for chunk in 0..<plan.chunks {
            let turns = (0..<panels.panels).filter { panels.chunks($0).contains(chunk) }.map(panels.turn)
            #expect(turns == turns.sorted())
        }
        #expect(Set((0..<panels.panels).map(panels.turn)).count == panels.panels)
    }
}
