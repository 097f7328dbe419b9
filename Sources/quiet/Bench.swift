// SPDX-License-Identifier: Apache-2.0
// Bench.swift - quiet bench: times seeded inputs beside the limits of the machine, measured in the same run.

import ArgumentParser
import QuietAttention

struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Time attention over seeded inputs, beside what the machine can do at best.",
        discussion: """
            Inputs have zero mean, unit variance and the same bits on every machine.
            The pass `decode` reads keys and values from key/value caches, filled beforehand. The pass `backward` computes \
            the gradients of queries, keys, values and sinks.
            Prints JSON, with among others:
              median_ms, min_ms    of a call, over `runs` runs of `calls_per_run` calls
              gflops               2 pairs (D + E) / median_ms, backward
                                   2 pairs (3 D + 2 E); `pairs` tells which pairs
                                   count: all, half (causal and L = S), or visible
                                   (of other masks)
              fma_peak_gflops      fused multiply-adds at best, on the same threads
              products_peak_gflops the same of tile instructions or dot products, where
                                   products of bfloat16 are made by them; else
                                   fma_peak_gflops
              fraction_of_peak     gflops / products_peak_gflops
              gbytes_per_s         bytes of the keys and values seen, and of their scales,
                                   / median_ms; more than memory gives where they stay
                                   in the CPU's caches
              read_gbytes_per_s    of reading memory on the same threads, in turns with
                                   the calls, the median; read_best_gbytes_per_s the best
              append_ms            decode: to append one token to every cache
              forward_ms           backward: the forward pass of the same step
              peak_rss_bytes       most memory of the process while it computed
              digest               64-bit FNV-1a over the bits of out, then lse, or of
                                   dq, dk, dv, dsink: the same for all machines,
                                   kernel sets and threads
            """)

    @OptionGroup var timing: TimingOptions

    @OptionGroup(title: "Scores and weights") var products: ProductsOption

    @Option(
        name: .customLong("storage"),
        help: ArgumentHelp(
            "Type that inputs are rounded to: f32, bf16 or f16; of the keys and values to decode with, also int8. Outputs are f32. Default: f32, or bf16 to decode with products of it.",
            valueName: "type"),
        transform: Storage.init(parsing:))
    var givenStorage: Storage?

    @Option(help: "Order of dimensions in memory: bhsd (batch, heads, sequence, dimension) or bshd.")
    var layout = Layout.bhsd

    /// A cache for products of bfloat16 is one of bfloat16.
    fileprivate var storage: Storage {
        givenStorage ?? (timing.pass == .decode && products.products == .bf16 ? .bf16 : .f32)
    }

    func validate() throws {
        guard storage != .int8 || timing.pass == .decode else {
            throw ValidationError("--storage: int8 is for the key/value cache, which only decoding reads")
        }
        guard products.products == .f32 || timing.pass != .decode || storage == .bf16 else {
            throw ValidationError("--storage: expected bf16 to decode with --products bf16, got \(storage.rawValue)")
        }
    }

    func run() throws {
        let (problem, seed) = (timing.problem, timing.seed)
        let sink = problem.sink?.sink { _ in
            SeededProblem<Float>.sinkLogits(seed: seed, queryHeads: problem.queryHeads)
        }
        let attention = try timing.options.attention(
            timing.shape, sink: sink, tensors: AttentionTensors(keyLengths: problem.keyLengths?.lengths),
            queryKeyNorm: timing.norms.queryKeyNorm(), products: products.library, layout: layout.library)
        let report =
            switch timing.pass {
            case .forward, .backward:
                switch storage {
                case .f32: try report(attention) { $0 }
                case .bf16: try report(attention, rounding: BFloat16.init)
                case .f16: try reportFloat16(attention)
                case .int8: throw ValidationError("--storage: int8 is for the key/value cache")
                }
            case .decode: try measureDecode(attention)
            }
        try emit(report.json.text(lines: !timing.json))
    }

    private func bytesPerToken(_ shape: AttentionShape) -> Int {
        shape.keyValueHeads * (shape.headDimension + shape.valueDimension) * (storage == .f32 ? 4 : 2)
    }

    /// Times forward or backward over inputs of one element type.
    private func report<Scalar: AttentionScalar>(
        _ attention: Attention, rounding round: (Float) -> Scalar
    ) throws -> BenchReport {
        let problem = try SeededProblem(attention, seed: timing.seed, rounding: round)
        guard timing.pass == .backward else {
            return BenchReport(
                command: self, attention: attention, measurement: try Measurement(of: problem, seconds: timing.seconds),
                bytesPerToken: bytesPerToken(attention.shape))
        }
        let backward = try SeededBackward(problem, seed: timing.seed, rounding: round)
        return BenchReport(
            command: self, attention: attention, measurement: try Measurement(of: backward, seconds: timing.seconds),
            bytesPerToken: bytesPerToken(attention.shape),
            additions: [("forward_ms", .number(backward.secondsOfForward * 1e3))])
    }

    private func measureDecode(_ attention: Attention) throws -> BenchReport {
        let decode = try SeededDecode(
            attention,
            attention: CachedAttention(
                queryHeads: timing.problem.queryHeads, rules: attention.rules, products: attention.products,
                layout: attention.layout, threads: attention.threads, kernels: attention.kernels),
            storage: storage.cache, seed: timing.seed)
        let measurement = try Measurement(of: decode, seconds: timing.seconds)
        return BenchReport(
            command: self, attention: attention, measurement: measurement, bytesPerToken: decode.bytesPerToken,
            additions: [
                ("append_ms", .number(try decode.secondsPerAppend(limit: timing.seconds) * 1e3)),
                ("cache_bytes", .integer(decode.cacheBytes)),
            ])
    }

    private func reportFloat16(_ attention: Attention) throws -> BenchReport {
        #if os(macOS) && arch(x86_64)
            throw ValidationError("--storage: f16 is not available on Macs with Intel processors")
        #else
            try report(attention) { Float16($0) }
        #endif
    }
}

/// Element types of the inputs.
enum Storage: String, CaseIterable {
    case f32, bf16, f16, int8

    var cache: KeyValueCache.Storage {
        switch self {
        case .f32: .float32
        case .bf16: .bfloat16
        case .f16: .float16
        case .int8: .int8
        }
    }
}

/// What bench prints.
struct BenchReport {
    let command: Bench
    let attention: Attention
    let measurement: Measurement
    /// Of the keys and values of all heads.
    let bytesPerToken: Int
    /// Members of the pass's own.
    var additions: [(name: String, value: JSONValue)] = []

    private var shape: AttentionShape { attention.shape }

    /// Bytes of the keys and values that some query sees.
    private var keyValueBytes: Double {
        // Row 0 sees the first key of all, the last row the last one.
        var seen = shape.queries == 0 ? 0 : shape.keys
        if case .window(let width) = command.timing.scores.mask {
            seen = min(seen, shape.queries - 1 + min(width, shape.keys))
        }
        guard let lengths = command.timing.problem.keyLengths?.lengths else {
            return Double(shape.batch) * Double(seen) * Double(bytesPerToken)
        }
        return Double(lengths.reduce(0) { $0 + min($1, seen) }) * Double(bytesPerToken)
    }

    var json: JSONValue {
        let operations = FloatOperations(
            attention, mask: command.timing.scores.mask, isBackward: command.timing.pass == .backward)
        let gflops = operations.count / measurement.median / 1e9
        return .object(
            problem + [
                ("kernels", .string(attention.kernels.name)),
                ("threads", .integer(attention.threads)),
                ("threads_used", .integer(measurement.threadsInUse)),
                ("cpu", .string(Machine.cpu)),
                ("runs", .integer(measurement.runs)),
                ("calls_per_run", .integer(measurement.callsPerRun)),
                ("median_ms", .number(measurement.median * 1e3)),
                ("min_ms", .number(measurement.minimum * 1e3)),
                ("pairs", .string(operations.pairs)),
                ("gflops", .number(gflops)),
                ("fma_peak_gflops", .number(measurement.fmaPeak)),
                ("products_peak_gflops", .number(measurement.productsPeak)),
                ("fraction_of_peak", .number(gflops / measurement.productsPeak)),
                ("gbytes_per_s", .number(keyValueBytes / measurement.median / 1e9)),
                ("read_gbytes_per_s", .number(measurement.readBandwidth)),
                ("read_best_gbytes_per_s", .number(measurement.bestReadBandwidth)),
                ("workspace_bytes", .integer(measurement.workspaceBytes)),
                ("peak_rss_bytes", .integer(measurement.peakMemory)),
                ("digest", .string(measurement.digest)),
            ] + additions)
    }

    private var problem: [(name: String, value: JSONValue)] {
        [("pass", .string(command.timing.pass.rawValue))]
            + command.timing.options.members(attention, sink: command.timing.problem.sink) + [
                ("key_lengths", .array((command.timing.problem.keyLengths?.lengths ?? []).map(JSONValue.integer))),
                ("storage", .string(command.storage.rawValue)),
                ("layout", .string(command.layout.rawValue)),
                ("seed", .string("\(command.timing.seed)")),
            ]
    }
}
