// SPDX-License-Identifier: Apache-2.0
// MachineTests.swift - kernel sets, CPUs and ceilings of the machine at hand.

import QuietAttention
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
