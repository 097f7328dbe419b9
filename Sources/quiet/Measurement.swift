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
    /// The same of the unit that multiplies what the problem multiplies: tiles, dots, or fused multiply-adds.
    let productsPeak: Double
    /// 10^9 bytes per second read from memory on the same threads: the median of turns, and the best of them.
    let readBandwidth, bestReadBandwidth: Double
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
        // Before the bandwidth: what that reads is no memory of attention.
        peakMemory = Machine.peakMemory

        // Measuring the machine takes no longer than measuring attention; each repeats five times at least.
        let peakSeconds = min(limit / Double(Self.turns), 0.1)
        let multipliesPairs = problem.products == .bfloat16 && kernels.multipliesPairs
        var times: [Double] = []
        var (fmaPeak, pairPeak) = (0.0, 0.0)
        func measurePeaks() {
            fmaPeak = max(fmaPeak, MachineCeilings.fmaPeak(threads: threads, kernels: kernels, seconds: peakSeconds))
            guard multipliesPairs else { return }
            let peak = MachineCeilings.pairPeak(threads: threads, kernels: kernels, seconds: peakSeconds)
            pairPeak = max(pairPeak, peak ?? 0)
        }
        var memory = ReadTurns(MachineCeilings.ReadProbe(threads: threads, kernels: kernels))
        for turn in 1...Self.turns {
            measurePeaks()
            let share = limit / Double(Self.turns)
            var spent = 0.0
            while spent < share || turn == Self.turns && times.count < Self.leastRuns {
                let time = try timed { for _ in 0..<calls { try problem.run() } }.seconds
                times.append(time / Double(calls))
                spent += time
            }
            memory.measure(seconds: min(share, 0.1))
        }
        measurePeaks()
        (self.fmaPeak, productsPeak) = (fmaPeak, multipliesPairs ? pairPeak : fmaPeak)

        (median, minimum) = (times.median, times.min()!)
        (runs, callsPerRun) = (times.count, calls)
        workspaceBytes = problem.workspaceBytes
        threadsInUse = try problem.threadsInUse
        digest = problem.digest
        (readBandwidth, bestReadBandwidth) = (memory.median, memory.best)
    }
}

/// Bandwidth measured between turns of attention, as often: both have the same neighbours, and medians compare.
private struct ReadTurns {
    private let probe: MachineCeilings.ReadProbe?
    private var turns = [[Double]](repeating: [], count: MachineCeilings.ReadProbe.streams.count)

    init(_ probe: MachineCeilings.ReadProbe?) { self.probe = probe }

    /// Reads from every number of places once, and again until so many seconds have passed.
    mutating func measure(seconds: Double) {
        guard let probe else { return }
        var spent = 0.0
        repeat {
            for (index, streams) in MachineCeilings.ReadProbe.streams.enumerated() {
                let turn = timed { probe.bandwidth(streams: streams) }
                turns[index].append(turn.result)
                spent += turn.seconds
            }
        } while spent < seconds
    }

    /// Of the number of places that is fastest; NaN without memory to read.
    var median: Double { turns.compactMap { $0.isEmpty ? nil : $0.median }.max() ?? .nan }
    var best: Double { turns.joined().max() ?? .nan }
}

extension [Double] {
    /// The middle one of the numbers in order, or the mean of the two middle ones; there is at least one.
    fileprivate var median: Double {
        let sorted = sorted()
        return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2
    }
}
