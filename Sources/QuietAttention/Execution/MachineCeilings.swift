// SPDX-License-Identifier: Apache-2.0
// MachineCeilings.swift - how fast this machine could be at best, for benchmarks.

import CKernels
import Dispatch

/// How fast this machine computes and reads at best, measured with the kernels' own instructions: what the speed of
/// attention is compared with.
package enum MachineCeilings {
    /// GFLOP/s of independent fused multiply-adds, two operations each, on so many threads at once: the best of several
    /// repeats.
    ///
    /// - Parameters:
    ///   - threads: more than there are CPUs count as so many.
    ///   - seconds: how long to measure, about; at most 60.
    package static func fmaPeak(threads: Int, kernels: KernelSet, seconds: Double = 0.3) -> Double {
        let functions = kernels.functions.pointee
        return peak(of: functions.fma_probe, flops: functions.fma_probe_flops, threads: threads, seconds: seconds)
    }

    /// The same of products of bfloat16 by instructions that multiply pairs; nil where the set has fused multiply-adds for them.
    package static func pairPeak(threads: Int, kernels: KernelSet, seconds: Double = 0.3) -> Double? {
        let functions = kernels.functions.pointee
        guard let probe = functions.pair_probe else { return nil }
        return peak(of: probe, flops: functions.pair_probe_flops, threads: threads, seconds: seconds)
    }

    private static func peak(
        of probe: @escaping @convention(c) (Int) -> Float, flops: Int, threads: Int, seconds: Double
    ) -> Double {
        let threads = min(threads, availableThreads())
        var rounds = 1024
        // A repeat of a few milliseconds makes the waking of threads small.
        while self.seconds({ _ = probe(rounds) }) < 0.004 { rounds *= 2 }
        let measuredRounds = rounds
        let best = bestSeconds(within: seconds) { onThreads(threads) { _ in _ = probe(measuredRounds) } }
        return Double(threads) * Double(measuredRounds) * Double(flops) / best / 1e9
    }

    /// Reads a buffer well beyond the last cache, shared out among threads, each reading from one place or several side
    /// by side: CPUs differ in which is fastest.
    package final class ReadProbe {
        private let threads: Int
        private let kernels: KernelSet
        private let count: Int
        private let data: UnsafeMutablePointer<Float>

        /// nil when there is no such memory.
        package init?(threads: Int, kernels: KernelSet, byteCount: Int = 256 << 20) {
            (self.threads, self.kernels) = (min(threads, availableThreads()), kernels)
            count = byteCount / MemoryLayout<Float>.stride
            // As caches and workspaces are: in large pages, which are read faster.
            guard let address = AlignedMemory.allocate(byteCount) else { return nil }
            data = address.bindMemory(to: Float.self, capacity: count)
            data.initialize(repeating: 1, count: count)
        }

        deinit { AlignedMemory.free(data) }

        /// The numbers of places.
        package static let streams = [1, 2, 4, QATTN_READ_STREAMS]

        /// GB/s (10^9 bytes) of reading all of it once from so many places.
        package func bandwidth(streams: Int) -> Double {
            let part = count / threads
            nonisolated(unsafe) let data = data
            let (kernels, threads) = (kernels, threads)
            let seconds = MachineCeilings.seconds {
                MachineCeilings.onThreads(threads) { thread in
                    _ = kernels.functions.pointee.read_probe(data + thread * part, part, streams)
                }
            }
            return Double(part * threads * MemoryLayout<Float>.stride) / seconds / 1e9
        }
    }

    /// Runs `body` so many times at once, as far as there are threads: what is left runs here, one after another.
    private static func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
        let ends = DispatchSemaphore(value: 0)
        let others = (1..<max(count, 1)).filter { number in
            SystemThread.start {
                body(number)
                ends.signal()
            }
        }
        for number in 0..<count where !others.contains(number) { body(number) }
        for _ in others { ends.wait() }
    }

    private static func seconds(_ body: () -> Void) -> Double {
        let duration = ContinuousClock().measure(body)
        return Double(duration.components.seconds) + Double(duration.components.attoseconds) * 1e-18
    }

    /// The shortest of at least five repeats.
    private static func bestSeconds(within limit: Double, _ body: () -> Void) -> Double {
        var best = Double.infinity
        var spent = 0.0
        var repeats = 0
        while repeats < 5 || spent < limit {
            let time = seconds(body)
            best = min(best, time)
            spent += time
            repeats += 1
        }
        return best
    }
}

extension KernelSet {
    /// What the processor can multiply at best, measured: 10^9 operations a second of independent fused multiply-adds, two
    /// each, on so many threads at once.
    ///
    /// - Parameters:
    ///   - threads: more than there are CPUs count as so many.
    ///   - seconds: how long to measure, about.
    public func measuredPeak(threads: Int, seconds: Double = 0.1) -> Double {
        MachineCeilings.fmaPeak(threads: max(threads, 1), kernels: self, seconds: min(seconds, 60))
    }
}
