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
    /// - Parameter seconds: how long to measure, about.
    package static func fmaPeak(threads: Int, kernels: KernelSet, seconds: Double = 0.3) -> Double {
        var rounds = 1024
        // A repeat of a few milliseconds makes the waking of threads small.
        while self.seconds({ _ = kernels.functions.pointee.fma_probe(rounds) }) < 0.004 { rounds *= 2 }
        let measuredRounds = rounds
        let best = bestSeconds(within: seconds) {
            DispatchQueue.concurrentPerform(iterations: threads) { _ in
                _ = kernels.functions.pointee.fma_probe(measuredRounds)
            }
        }
        return Double(threads) * Double(measuredRounds) * Double(kernels.functions.pointee.fma_probe_flops) / best / 1e9
    }

    /// GB/s (10^9 bytes) of reading a buffer well beyond the last cache, shared out among so many threads, each reading
    /// from one place or several side by side: the best of several repeats of each.
    ///
    /// - Parameter seconds: how long to measure, about.
    package static func readBandwidth(threads: Int, kernels: KernelSet, seconds: Double = 0.3) -> Double {
        let count = (256 << 20) / MemoryLayout<Float>.stride
        // As caches and workspaces are: in large pages, which are read faster.
        guard let address = AlignedMemory.allocate(count * MemoryLayout<Float>.stride) else { return .nan }
        defer { AlignedMemory.free(address) }
        nonisolated(unsafe) let data = address.bindMemory(to: Float.self, capacity: count)
        data.initialize(repeating: 1, count: count)
        let best =
            [1, 2, 4, QATTN_READ_STREAMS].map { streams in
                bestSeconds(within: seconds / 4) {
                    DispatchQueue.concurrentPerform(iterations: threads) { thread in
                        let part = count / threads * thread..<count / threads * (thread + 1)
                        _ = kernels.functions.pointee.read_probe(data + part.lowerBound, part.count, streams)
                    }
                }
            }.min() ?? .nan
        return Double(count / threads * threads * MemoryLayout<Float>.stride) / best / 1e9
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
