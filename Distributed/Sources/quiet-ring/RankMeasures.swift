// SPDX-License-Identifier: Apache-2.0
// RankMeasures.swift - what all ranks measured, at every rank.

import QuietAttention
import Ring

/// Time, bytes and waits of all ranks.
struct RankMeasures {
    /// Of the slowest rank.
    let seconds: Double
    /// Handed over by all ranks together, in all runs so far.
    let bytesSent: Double
    /// Spent waiting: the mean of ranks, and the most of one.
    let waiting, longestWait: Double
    /// The most memory of one rank.
    let peakMemory: Double
    /// 10^9 fused multiply-adds at best, of all ranks together; 0: not measured.
    let peak: Double

    init(_ world: World, seconds: Double, peak: Double = 0) throws {
        let own = [seconds, Double(world.bytesSent), world.secondsWaiting, Double(Machine.peakMemory), peak]
        let all = try world.numbers(own)
        func column(_ index: Int) -> [Double] { all.map { $0[index] } }
        self.seconds = column(0).max()!
        bytesSent = column(1).reduce(0, +)
        waiting = column(2).reduce(0, +) / Double(world.size)
        longestWait = column(2).max()!
        peakMemory = column(3).max()!
        self.peak = column(4).reduce(0, +)
    }

    func kernels(_ ring: RingProblem) -> String {
        ring.kernels?.name ?? (try? Attention.preferredKernels().name) ?? "unknown"
    }

    var members: [(name: String, value: JSONValue)] {
        [
            ("seconds", .number(seconds)), ("bytes_sent", .integer(Int(bytesSent))),
            ("waiting_s", .number(waiting)), ("longest_wait_s", .number(longestWait)),
            ("peak_rss_bytes", .integer(Int(peakMemory))),
        ]
    }
}

extension World {
    /// Numbers of every rank, in order.
    func numbers(_ own: [Double]) throws -> [[Double]] {
        let bytes = own.flatMap { value in withUnsafeBytes(of: value.bitPattern) { Array($0) } }
        return try gather(bytes).map { bytes in
            bytes.withUnsafeBytes { raw in
                (0..<own.count).map {
                    Double(bitPattern: raw.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self))
                }
            }
        }
    }
}
