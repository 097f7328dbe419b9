// SPDX-License-Identifier: Apache-2.0
// PanelPlan.swift - which panels there are, which chunks they meet, and in what order.

import QuietAttention

/// Which panels there are, and which chunks they meet: the same on all ranks.
///
/// A panel is a stripe of one query head of each key/value head; panels are numbered by the head within its group, then by stripe.
/// A panel meets the chunks that it sees in ascending order, a chunk the panels that see it: these are the sums of one machine.
package struct PanelPlan {
    package let plan: RingPlan
    package let groupHeads: Int
    /// Chunks that each stripe sees.
    private let seen: [Range<Int>]
    /// Stripes that see a chunk, at most.
    private let span: Int

    package init(plan: RingPlan, groupHeads: Int) {
        (self.plan, self.groupHeads) = (plan, groupHeads)
        seen = (0..<plan.stripes).map(plan.chunksSeen)
        // By how much the number of stripes that see a chunk changes from one to the next.
        var changes = [Int](repeating: 0, count: plan.chunks + 1)
        for chunks in seen {
            changes[chunks.lowerBound] += 1
            changes[chunks.upperBound] -= 1
        }
        var (count, most) = (0, 0)
        for change in changes {
            count += change
            most = max(most, count)
        }
        span = most
    }

    package var panels: Int { groupHeads * plan.stripes }

    func groupHead(_ panel: Int) -> Int { panel / plan.stripes }
    func stripe(_ panel: Int) -> Int { panel % plan.stripes }
    package func chunks(_ panel: Int) -> Range<Int> { seen[stripe(panel)] }
    /// The rank that a panel begins at, and comes home to.
    package func home(of panel: Int) -> Int { plan.owner(of: stripe(panel)) }

    /// The order of all panels, a number of its own for each, which at every chunk is the ascending one. A head follows the
    /// one before as soon as no chunk can see both: under a window it need not wait until that one has passed all chunks.
    package func turn(_ panel: Int) -> Int {
        (stripe(panel) + groupHead(panel) * span) * groupHeads + groupHead(panel)
    }

    /// Of what can be done, the least of these comes first: so panels follow each other closely, one chunk apart.
    func wave(_ panel: Int, _ chunk: Int) -> Int { turn(panel) + chunk * groupHeads }

    /// The first panel from a number on that sees a chunk.
    func panel(from number: Int, seeing chunk: Int) -> Int? {
        (number..<max(number, panels)).first { chunks($0).contains(chunk) }
    }
}
