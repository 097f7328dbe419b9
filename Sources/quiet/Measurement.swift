// SPDX-License-Identifier: Apache-2.0
// Measurement.swift - times calls, and the limits of the machine in turns with them.

import QuietAttention

/// What a problem took, and what the machine could do at best in the same minute.
struct Measurement {
    /// Seconds of one call.
    let median, minimum: Double
    /// Timed runs, and calls in each of them.
    let runs, callsPerRun: Int
    /// GFLOP/s of fused multiply-adds on the threads of the problem.
    let fmaPeak: Double
    /// 10^9 bytes per second read from memory on the same threads.
    let readBandwidth: Double
    let threadsInUse: Int
    let workspaceBytes: Int
    let peakMemory: Int
    let digest: String

    /// Turns of timed runs. The clock of a CPU drifts, so the peak is measured before, between and after them.
    private static let turns = 4
    private static let leastRuns = 3
    /// Reading the clock costs some 50 ns twice: runs this long make that nothing.
    private static let leastSecondsPerRun = 50e-6

    init(of problem: some TimedProblem, seconds limit: Double) throws {
        let (threads, kernels) = (problem.threads, problem.kernels)
        // The first call waits for memory and threads, the second tells how long a call is.
        try problem.run()
        let once = try timed { try problem.run() }.seconds
        let calls = max(1, Int((Self.leastSecondsPerRun / max(once, 1e-9)).rounded(.up)))

        // Measuring the machine takes no longer than measuring attention; each repeats five times at least.
        func fmaPeak() -> Double {
            MachineCeilings.fmaPeak(threads: threads, kernels: kernels, seconds: min(limit / Double(Self.turns), 0.1))
        }
        var times: [Double] = []
        var peak = 0.0
        for turn in 1...Self.turns {
            peak = max(peak, fmaPeak())
            let share = limit / Double(Self.turns)
            var spent = 0.0
            while spent < share || turn == Self.turns && times.count < Self.leastRuns {
                let time = try timed { for _ in 0..<calls { try problem.run() } }.seconds
                times.append(time / Double(calls))
                spent += time
            }
        }
        self.fmaPeak = max(peak, fmaPeak())

        times.sort()
        (median, minimum) = ((times[(times.count - 1) / 2] + times[times.count / 2]) / 2, times[0])
        (runs, callsPerRun) = (times.count, calls)
        workspaceBytes = problem.workspaceBytes
        threadsInUse = try problem.threadsInUse
        digest = problem.digest
        // Before the bandwidth: what that reads is no memory of attention.
        peakMemory = Machine.peakMemory
        readBandwidth = MachineCeilings.readBandwidth(threads: threads, kernels: kernels, seconds: min(limit, 0.3))
    }
}
