// SPDX-License-Identifier: Apache-2.0
// AttentionBenchmark.swift - every shape of the grid as a benchmark: our kernels, with the machine and OpenBLAS in turns.

import AttentionGrid
import Benchmark
import COpenBLAS
import Foundation

/// Metrics are integers: rates in thousandths of GFLOP/s, fractions in thousandths.
private enum Metric {
    static let rate = BenchmarkMetric.custom("MFLOP/s", polarity: .prefersLarger, useScalingFactor: false)
    static let fraction = BenchmarkMetric.custom("peak / 1000", polarity: .prefersLarger, useScalingFactor: false)
    static let ratio = BenchmarkMetric.custom(
        "OpenBLAS time / 1000", polarity: .prefersLarger, useScalingFactor: false)
    static let workspace = BenchmarkMetric.custom("workspace bytes", useScalingFactor: false)
}

/// A problem is used by one iteration at a time.
private struct Prepared: @unchecked Sendable {
    let problem: GridProblem
    let calls: Int
}

let benchmarks: @Sendable () -> Void = {
    restart_with_openblas_kernels(CommandLine.unsafeArgv)
    Benchmark.defaultConfiguration = .init(
        metrics: [.wallClock, Metric.rate, Metric.fraction, Metric.ratio, Metric.workspace],
        units: [Metric.rate: .count, Metric.ratio: .count, Metric.fraction: .count, Metric.workspace: .count],
        warmupIterations: 0,
        maxDuration: .seconds(3))
    let environment = ProcessInfo.processInfo.environment
    let threads = environment["ATTENTION_BENCHMARK_THREADS"].flatMap { Int($0) } ?? 1
    let file = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../shapes.json")
    guard let shapes = try? GridShape.load(from: file.standardizedFileURL) else {
        fatalError("no shapes in \(file.standardizedFileURL.path)")
    }
    for shape in shapes {
        Benchmark(shape.name) { (benchmark: Benchmark, prepared: Prepared) throws -> Void in
            let turn = try prepared.problem.turn(calls: prepared.calls)
            let rate = shape.floatOperations / turn.nanoseconds
            benchmark.measurement(Metric.rate, Int(1000 * rate))
            benchmark.measurement(Metric.fraction, Int(1000 * rate / turn.peak))
            benchmark.measurement(Metric.ratio, Int(1000 * turn.unfusedNanoseconds / turn.nanoseconds))
            benchmark.measurement(Metric.workspace, prepared.problem.workspaceBytes)
            benchmark.startMeasurement()
            try prepared.problem.run()
            benchmark.stopMeasurement()
        } setup: {
            let problem = try GridProblem(shape, threads: threads)
            return Prepared(problem: problem, calls: try problem.callsPerTurn())
        }
    }
}
