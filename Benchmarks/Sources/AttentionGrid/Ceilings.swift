// SPDX-License-Identifier: Apache-2.0
// Ceilings.swift - multiply-adds, products of bfloat16 and reads on several threads at once.

import CCeilings
import Dispatch
import Foundation

/// How fast this machine computes and reads at best.
public enum Ceilings {
    /// GFLOP/s of independent fused multiply-adds on so many threads: one sample of about two milliseconds.
    public static func multiplyAdd(threads: Int) -> Double {
        operations(threads: threads, rounds: 1 << 15, ceilings_multiply_add)
    }

    /// The instruction that multiplies bfloat16 by itself, `amx` or `avx512_bf16`; nil: there is none that may be used, and such
    /// products are multiply-adds.
    public static var bfloat16Unit: String? {
        let unit = String(cString: ceilings_bfloat16_unit())
        return unit.isEmpty ? nil : unit
    }

    /// GFLOP/s of independent products of bfloat16 by that instruction on so many threads: one sample; nil without one.
    public static func bfloat16(threads: Int) -> Double? {
        bfloat16Unit == nil ? nil : operations(threads: threads, rounds: 1 << 12, ceilings_bfloat16)
    }

    private static func operations(
        threads: Int, rounds: Int, _ body: @escaping @Sendable (Int) -> Double
    ) -> Double {
        nonisolated(unsafe) let operations = UnsafeMutablePointer<Double>.allocate(capacity: threads)
        defer { operations.deallocate() }
        let nanoseconds = Clock.nanoseconds {
            DispatchQueue.concurrentPerform(iterations: threads) { thread in
                // Long enough that waking a thread counts for little.
                operations[thread] = (0..<16).reduce(0) { sum, _ in sum + body(rounds) }
            }
        }
        return (0..<threads).reduce(0) { $0 + operations[$1] } / nanoseconds
    }

    /// GB/s of reading a buffer well beyond the last cache, shared out among so many threads: the best of several.
    public static func read(threads: Int, repeats: Int = 10) -> Double {
        let count = (256 << 20) / MemoryLayout<Float>.stride / threads
        guard let memory = ceilings_memory(count * threads) else { return .nan }
        defer { free(memory) }
        memory.initialize(repeating: 1, count: count * threads)
        nonisolated(unsafe) let data = memory
        let times = (0..<repeats).map { _ in
            Clock.nanoseconds {
                DispatchQueue.concurrentPerform(iterations: threads) { thread in
                    _ = ceilings_read(data + thread * count, count)
                }
            }
        }
        let best = times.min()!
        return Double(count * threads * MemoryLayout<Float>.stride) / best
    }
}

enum Clock {
    static func nanoseconds(_ body: () -> Void) -> Double {
        let duration = ContinuousClock().measure(body)
        return Double(duration.components.seconds) * 1e9 + Double(duration.components.attoseconds) * 1e-9
    }
}

extension [Double] {
    /// The middle one of the numbers in order, or the mean of the two middle ones; there is at least one.
    public var median: Double {
        let sorted = sorted()
        return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2
    }
}
