// SPDX-License-Identifier: Apache-2.0
// Clock.swift - durations in seconds.

/// Returns what `body` returns, and the seconds it takes.
func timed<Result>(_ body: () throws -> Result) rethrows -> (result: Result, seconds: Double) {
    let clock = ContinuousClock()
    let start = clock.now
    let result = try body()
    let duration = clock.now - start
    return (result, Double(duration.components.seconds) + Double(duration.components.attoseconds) * 1e-18)
}
