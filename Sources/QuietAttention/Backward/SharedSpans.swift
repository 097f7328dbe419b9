// SPDX-License-Identifier: Apache-2.0
// SharedSpans.swift - in which order the workers of one group take its spans of keys and its panels of rows.

import Synchronization

/// The spans of a group, each of which takes up all panels of rows in ascending order, a panel only after the span before
/// has left it. Whoever finds a span that nobody holds and whose next panel is free may hold it, from panel to panel.
///
/// A worker does not wait with the span it began: under a causal mask the span before has more work, and whoever follows it
/// would be late by the difference. It lets go of the span and takes another, a later one for the most part.
///
/// *No deadlock.* The first unfinished span waits for none: a worker holds it, which waits for nothing, or anyone may.
struct SharedSpans: Sendable {
    /// Of each span, from counter 1 on: twice the panels that it has left, and 1 if a worker holds it.
    private let counters: SharedCounters
    private let spans, panels: Int

    /// - Parameter counters: `1 + spans` of them, all 0.
    init(_ counters: SharedCounters, spans: Int, panels: Int) {
        (self.counters, self.spans, self.panels) = (counters, spans, panels)
    }

    /// Takes part in the work until all spans have left all panels.
    func work(_ body: (_ span: Int, _ panel: Int) -> Void) {
        var (first, pause) = (0, SpinPause())
        while true {
            while first < spans, panelsLeft(by: first) == panels { first += 1 }
            guard first < spans else { return }
            guard let held = (first..<spans).first(where: hold) else {
                pause.pause()
                continue
            }
            pause = SpinPause()
            run(held, body)
        }
    }

    private func panelsLeft(by span: Int) -> Int { counters[span + 1].pointee.load(ordering: .acquiring) / 2 }

    private func isFree(_ panel: Int, of span: Int) -> Bool {
        panel < panels && (span == 0 || panelsLeft(by: span - 1) > panel)
    }

    /// Whether the span is the caller's now, with a panel to begin with.
    private func hold(_ span: Int) -> Bool {
        let state = counters[span + 1].pointee.load(ordering: .acquiring)
        guard state % 2 == 0, isFree(state / 2, of: span) else { return false }
        return counters[span + 1].pointee.compareExchange(
            expected: state, desired: state + 1, ordering: .acquiring
        ).exchanged
    }

    /// Takes a span that the caller holds through the panels that are free, and lets go of it.
    private func run(_ span: Int, _ body: (_ span: Int, _ panel: Int) -> Void) {
        var panel = panelsLeft(by: span)
        while isFree(panel, of: span) {
            body(span, panel)
            panel += 1
            counters[span + 1].pointee.store(2 * panel + 1, ordering: .releasing)
        }
        counters[span + 1].pointee.store(2 * panel, ordering: .releasing)
    }
}
