// SPDX-License-Identifier: Apache-2.0
// MachineTests.swift - kernel sets, CPUs and ceilings of the machine at hand.

import EmulatedTiles
import QuietAttention
import TestSupport
import Testing

@Suite struct MachineTests {
    @Test func portableIsAlwaysThere() {
        let names = KernelSet.available.map(\.name)
        #expect(names.contains("portable"))
        #expect(Set(names).count == names.count)
        #expect(KernelSet.available.allSatisfy { $0.description == $0.name })
    }

    @Test func thisProcessMayRunSomewhere() {
        #expect((1...16384).contains(availableThreads()))
    }

    @Test(arguments: KernelSet.available)
    func ceilingsAreMeasured(_ kernels: KernelSet) {
        let peak = MachineCeilings.fmaPeak(threads: 1, kernels: kernels, seconds: 0.01)
        #expect(peak > 0.01 && peak < 1e4)
        let pairs = MachineCeilings.pairPeak(threads: 1, kernels: kernels, seconds: 0.01)
        #expect(kernels.hasTiles == (kernels.name == "x86_64_amx"))
        #expect((pairs != nil) == (kernels.hasTiles || kernels.name == "x86_64_v4_bf16"))
        #expect(kernels.multipliesPairs == (pairs != nil))
        if let pairs, kernels == KernelSet.available[0] { #expect(pairs > peak) }
    }

    /// Four tiles of 16 rows and 16 columns are multiplied by 32 factors each round, and sums are of ones.
    @Test func theProbeOfTilesCountsWhatItMultiplies() throws {
        let kernels = qattn_emulated_tile_kernels().pointee
        let before = qattn_emulated_products()
        #expect(kernels.pair_probe(3) == 96)
        #expect(qattn_emulated_products() - before == 12 && !qattn_emulated_tiles_are_held())
        #expect(kernels.pair_probe_flops == 4 * 16 * 16 * 32 * 2)
        let peak = try #require(MachineCeilings.pairPeak(threads: 1, kernels: .emulatedTiles, seconds: 0.01))
        #expect(KernelSet.emulatedTiles.hasTiles && peak > 0.001)
    }

    /// Twelve chains of 16 sums, or fewer where the registers are, take two products of 1 each round.
    @Test func theProbeOfDotsCountsWhatItMultiplies() {
        let kernels = qattn_emulated_dot_kernels().pointee
        let before = qattn_emulated_dots()
        #expect(kernels.pair_probe(3) == 6)
        #expect((qattn_emulated_dots() - before) * 16 * 4 == 3 * kernels.pair_probe_flops)
        #expect(KernelSet.emulatedDots.multipliesPairs && !KernelSet.emulatedDots.hasTiles)
    }

    @Test func bandwidthIsMeasured() throws {
        let probe = try #require(
            MachineCeilings.ReadProbe(threads: 2, kernels: KernelSet.available[0], byteCount: 1 << 20))
        for streams in MachineCeilings.ReadProbe.streams {
            let bandwidth = probe.bandwidth(streams: streams)
            #expect(bandwidth > 0.01 && bandwidth < 1e5)
        }
    }
}
