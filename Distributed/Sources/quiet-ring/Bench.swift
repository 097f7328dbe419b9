// SPDX-License-Identifier: Apache-2.0
// Bench.swift - quiet-ring bench: times all ranks together over seeded inputs, and tells the digest of the results.

import ArgumentParser
import QuietAttention
import Ring

struct Bench: RingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Time attention over seeded inputs on all ranks.",
        discussion: """
            Inputs, options and digest are those of `quiet bench`: the digest is the same for any number of ranks.
            Prints JSON, with among others:
              median_ms, min_ms    of a run, from the first rank's start to the last
                                   one's end
              gflops               2 pairs (D + E) / median_ms, backward
                                   2 pairs (3 D + 2 E), of the pairs that are seen
              fma_peak_gflops      fused multiply-adds at best, all ranks together
              fraction_of_peak     gflops / fma_peak_gflops
              bytes_sent           by all ranks in one run
              waiting_ms           of a run with nothing to do but wait: the mean of
                                   ranks; longest_wait_ms of the rank that waits most
              peak_rss_bytes       most memory of a rank
              digest               64-bit FNV-1a over the bits of out, then lse, or of
                                   dq, dk, dv, dsink
            The pass `decode` shares a sequence's keys and values, [head, key, channel] in memory, among ranks by runs of \
            chunks; states go from rank to rank.
            """)

    enum Storage: String, CaseIterable {
        case f32, bf16, f16
    }

    @OptionGroup var timing: TimingOptions

    @OptionGroup(title: "Ranks") var ranks: RankOptions

    @Option(
        help: ArgumentHelp("Type that inputs are rounded to: f32, bf16 or f16. Outputs are f32.", valueName: "type"),
        transform: Storage.init(parsing:))
    var storage = Storage.f32

    func validate() throws { try timing.scores.checkForRanks() }

    func run(_ world: World) throws {
        switch storage {
        case .f32: try run(world) { $0 }
        case .bf16: try run(world, BFloat16.init)
        case .f16:
            #if os(macOS) && arch(x86_64)
                throw ValidationError("--storage: f16 is not available on Macs with Intel processors")
            #else
                try run(world) { Float16($0) }
            #endif
        }
    }

    var machine: MachineOptions { timing.machine }

    private var ring: RingProblem {
        get throws {
            let (shape, options) = (try timing.shape, timing.options)
            let tensors = AttentionTensors(keyLengths: timing.problem.keyLengths?.lengths)
            let sink = timing.problem.sink?.sink { _ in
                var generator = SeededGenerator(seed: timing.seed, stream: SeededStream.sinks.rawValue)
                return generator.normals(shape.queryHeads)
            }
            let arguments = try options.arguments(
                shape, sink: sink, tensors: tensors, queryKeyNorm: timing.norms.queryKeyNorm())
            return try RingProblem(shape, options, arguments, tensors)
        }
    }

    private func run<Element: AttentionScalar>(
        _ world: World, _ round: @escaping (Float) -> Element
    ) throws {
        let timed: any RingRun = try world.agreeing {
            let ring = try ring
            let rows = SeededRows(shape: ring.shape, seed: timing.seed, round: round)
            return switch timing.pass {
            case .forward: try TimedForward(world, ring, rows)
            case .backward: try TimedBackward(world, ring, rows)
            case .decode: try TimedDecode(world, ring, rows)
            }
        }
        try timed.prepare()
        var times: [Double] = []
        try timed.run()
        world.resetMeasures()
        // Times are the same on all ranks, and so is the number of runs.
        while times.isEmpty || times.reduce(0, +) < timing.seconds {
            try world.agree(Statement())
            let own = try Ring.timed { try timed.run() }
            times.append(try world.numbers([own]).map { $0[0] }.max()!)
        }
        let kernels = try machine.kernelSet ?? Attention.preferredKernels()
        let measures = try RankMeasures(
            world, seconds: 0,
            peak: kernels.measuredPeak(threads: machine.threads ?? Attention.availableThreads()))
        let digest = try timed.digest()
        guard world.rank == 0 else { return }
        try emit(report(world, timed, times.sorted(), measures, kernels, digest).text(lines: !timing.json))
    }

    private func report(
        _ world: World, _ timed: any RingRun, _ times: [Double], _ measures: RankMeasures, _ kernels: KernelSet,
        _ digest: String
    ) throws -> JSONValue {
        let median = (times[(times.count - 1) / 2] + times[times.count / 2]) / 2
        let gflops = timed.operations / median / 1e9
        // The waits of what stands between runs count, too: exchanges of a few bytes.
        let runs = Double(times.count)
        return .object(
            [("pass", .string(timing.pass.rawValue))] + (try timing.shape).members + [
                ("mask", .string("\(timing.scores.mask)")), ("storage", .string(storage.rawValue)),
                ("ranks", .integer(world.size)),
                ("threads", .integer(machine.threads ?? Attention.availableThreads())),
                ("kernels", .string(kernels.name)), ("cpu", .string(Machine.cpu)), ("runs", .integer(times.count)),
                ("median_ms", .number(median * 1e3)), ("min_ms", .number(times[0] * 1e3)),
                ("gflops", .number(gflops)), ("fma_peak_gflops", .number(measures.peak)),
                ("fraction_of_peak", .number(gflops / measures.peak)),
                ("bytes_sent", .integer(Int(measures.bytesSent / runs))),
                ("waiting_ms", .number(measures.waiting / runs * 1e3)),
                ("longest_wait_ms", .number(measures.longestWait / runs * 1e3)),
                ("peak_rss_bytes", .integer(Int(measures.peakMemory))), ("digest", .string(digest)),
            ])
    }
}

extension Attention {
    static func availableThreads() -> Int {
        (try? Attention(AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 1), sink: .softmax1).threads)
            ?? 1
    }
}
