// SPDX-License-Identifier: Apache-2.0
// KernelSets.swift - the kernel sets that tests run, the comparison they share, and the test that none was left out.

import CKernels
import Foundation
import QuietAttention
import TestSupport
import Testing

/// The argument of every test that runs kernels.
let kernelSets = KernelSet.available

/// The names of the sets that a comparison ran.
private let setsCompared = Lock<Set<String>>([])

/// Throws unless the kernel set gives the reference's bits for the case.
func requireReferenceBits(_ shape: AttentionCase, _ kernels: KernelSet, threads: Int = 1) throws {
    let solved = shape.solved
    let actual = try shape.run(solved.inputs, kernels: kernels, threads: threads)
    setsCompared.withLock { _ = $0.insert(kernels.name) }
    try requireSameBits(
        actual, solved.expected, valueDimension: shape.valueDimension, "\(kernels), \(threads) threads: \(shape)")
}

@Suite struct CoverageTests {
    @Test func everyKernelSetOfThisCPUIsCompared() throws {
        var count = 0
        let offered = qattn_available_kernels(&count)!
        let names = (0..<count).map { String(cString: offered[$0]!.pointee.name) }
        #expect(kernelSets.map(\.name) == names)
        #expect(KernelTable.available.map(\.description) == names)
        #expect(Set(names) == namesExpected)

        for kernels in kernelSets {
            try requireReferenceBits(AttentionCase(queries: 2, keys: 3, headDimension: 4), kernels)
        }
        #expect(setsCompared.withLock { $0 }.isSuperset(of: names))
    }

    /// Sets that all CPUs share read as suits the one at hand; of the others it is known.
    @Test func howCachesAreRead() throws {
        #if os(Linux)
            let processors = try String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)
            let isIntels = processors.contains("GenuineIntel")
            for kernels in kernelSets {
                let reading = kernels.reading
                let inQuarters = kernels.name == "x86_64_amx" || isIntels && kernels.name.hasPrefix("x86_64_v4")
                #expect(kernels.readsInQuarters == inQuarters)
                #expect(reading.cached_most == (inQuarters ? 1 << 20 : 64 << 20))
                #if arch(x86_64)
                    #expect(reading.cached_above == (inQuarters || isIntels ? 0 : 16 << 20))
                    #expect(reading.unpacked_rows == (isIntels ? 132 : 16))
                #endif
            }
        #endif
    }

    /// Dots take half the time of multiply-adds on CPUs of others, and twice as long on Intel's.
    @Test func whichSetIsTheBest() throws {
        #if os(Linux)
            let names = kernelSets.map(\.name)
            guard let dots = names.firstIndex(of: "x86_64_v4_bf16"), let v4 = names.firstIndex(of: "x86_64_v4") else {
                return
            }
            let processors = try String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)
            #expect((dots < v4) == !processors.contains("GenuineIntel"))
        #endif
    }

    /// The sets that this CPU's features ask for, in the words of the features rather than the dispatcher's.
    private var namesExpected: Set<String> {
        let features = Set(KernelSet.cpuFeatures)
        var names: Set = ["portable"]
        #if arch(x86_64)
            if features.isSuperset(of: ["avx2", "fma"]) { names.insert("x86_64_v3") }
            if features.contains("avx512f") { names.insert("x86_64_v4") }
            if features.contains("avx512bf16") { names.insert("x86_64_v4_bf16") }
            if features.contains("amx") { names.insert("x86_64_amx") }
        #elseif arch(arm64)
            if features.contains("neon") { names.insert("arm64_neon") }
        #endif
        return names
    }
}
