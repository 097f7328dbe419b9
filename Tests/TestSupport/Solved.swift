// SPDX-License-Identifier: Apache-2.0
// Solved.swift - a case's data and the reference's results, computed once however many kernel sets are compared with it.

import QuietAttention

/// A case, its data, and what every kernel set has to give.
public struct Solved: Sendable {
    public let inputs: AttentionInputs
    public let expected: AttentionOutputs

    public init(inputs: AttentionInputs, expected: AttentionOutputs) {
        self.inputs = inputs
        self.expected = expected
    }
}

extension AttentionCase {
    /// Data and expected results; tests that run at the same time wait for one computation.
    public var solved: Solved {
        SolvedCases.shared.entry(self).value {
            let inputs = inputs
            return Solved(inputs: inputs, expected: reference(inputs))
        }
    }
}

private final class SolvedCases: Sendable {
    static let shared = SolvedCases()
    private let entries = Lock<[AttentionCase: Entry]>([:])

    func entry(_ key: AttentionCase) -> Entry {
        entries.withLock { entries in
            if let entry = entries[key] { return entry }
            let entry = Entry()
            entries[key] = entry
            return entry
        }
    }

    final class Entry: Sendable {
        private let solved = Lock<Solved?>(nil)

        func value(_ compute: () -> Solved) -> Solved {
            solved.withLock { solved in
                if let solved { return solved }
                let value = compute()
                solved = value
                return value
            }
        }
    }
}
