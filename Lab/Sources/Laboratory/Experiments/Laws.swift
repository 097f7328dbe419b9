// SPDX-License-Identifier: Apache-2.0
// Laws.swift - entropy, noise and concentration of attention on random vectors, against closed forms.

import Foundation
import QuietAttention

struct Laws: Experiment {
    let name = "laws"
    let question = "Do the entropy of attention, its answer to noise and its concentration follow their closed forms?"
    let method = """
        No training. Entropy: normal queries and keys, d 64, n = 64 to 4096, scale 1/sqrt(d) times 1 or log_512 n; mean field has \
        H = log n - 1/2 + O(1/n) for scores of variance 1. Noise: normal noise of deviation 1.5 on every score moves the sink of \
        softmax_1 by -sigma^2/2 and does nothing to softmax's sum. Concentration: S = E f / sqrt(E f^2) over keys N(mu, \
        sigma^2 I), exp: e^(-gamma^2/2), gamma = sigma |q|; relu^2 by the moments of a rectified normal.
        """
    let variants = ["measured"]

    func measure(_ variant: String, seed: UInt64, _ bench: Bench) throws -> Measurement {
        var result = Measurement()
        try addEntropy(seed, bench, &result)
        try addNoise(seed, bench, &result)
        addConcentration(seed, bench, &result)
        return result
    }

    private func addEntropy(_ seed: UInt64, _ bench: Bench, _ result: inout Measurement) throws {
        let (d, rows) = (64, 64)
        var random = Random(seed, 5)
        func vectors(_ count: Int) -> [Float] { (0..<count * d).map { _ in Float(random.normal()) } }
        let queries = vectors(rows)
        for n in bench.quick ? [64, 256] : [64, 256, 1024, 4096] {
            let keys = vectors(n)
            let shape = try AttentionShape(queryHeads: 1, queries: rows, keys: n, headDimension: d)
            for (name, scaling) in [("1/sqrt(d)", .constant), ("log_512 n", .logKeys(base: 512))]
                as [(String, ScoreScaling)]
            {
                let attention = try Attention(shape, sink: .softmax, scaling: scaling, threads: 1)
                let entropy = mean(try attention.diagnostics(queries: queries, keys: keys).map(\.entropy))
                result.numbers["entropy, \(name), n \(n)"] = entropy
                result.curves["entropy by n, \(name)", default: []].append([Double(n), entropy])
            }
            result.numbers["log n - entropy, 1/sqrt(d), n \(n)"] =
                log(Double(n)) - result.numbers["entropy, 1/sqrt(d), n \(n)"]!
        }
    }

    /// One row of zero queries whose scores are a bias: noise, and what it does to the sink share.
    private func addNoise(_ seed: UInt64, _ bench: Bench, _ result: inout Measurement) throws {
        let n = bench.quick ? 4096 : 65536
        var random = Random(seed, 6)
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: n, headDimension: 1)
        for sigma in [0, 0.5, 1, 1.5] {
            // Scores of -log n: without noise the keys weigh together what the sink does.
            let scores = (0..<n).map { _ in Float(sigma * random.normal() - log(Double(n))) }
            let bias = try BroadcastTensor(scores, keys: n)
            let attention = try Attention(shape, sink: .softmax1, bias: bias, threads: 1)
            let zeros = [Float](repeating: 0, count: n)
            let share = Double(try attention.forward(queries: [0], keys: zeros, values: zeros).sinkShare[0])
            let predicted = 1 / (1 + exp(sigma * sigma / 2))
            result.numbers["sink share, noise \(sigma)"] = share
            result.numbers["sink share, noise \(sigma), less the closed form"] = share - predicted
            result.curves["sink share by deviation of noise", default: []].append([sigma, share])
        }
    }

    private func addConcentration(_ seed: UInt64, _ bench: Bench, _ result: inout Measurement) {
        let count = bench.quick ? 20_000 : 400_000
        for (beta, gamma) in [(0.0, 0.5), (0, 1), (-1, 1), (1, 1)] {
            var random = Random(seed, 7, Int(beta * 10), Int(gamma * 10))
            var (e1, e2, r1, r2) = (0.0, 0.0, 0.0, 0.0)
            for _ in 0..<count {
                let score = beta + gamma * random.normal()
                let (e, r) = (exp(score), score > 0 ? score * score : 0)
                (e1, e2, r1, r2) = (e1 + e, e2 + e * e, r1 + r, r2 + r * r)
            }
            let n = Double(count)
            let (soft, squared) = (e1 / n / (e2 / n).squareRoot(), r1 / n / (r2 / n).squareRoot())
            let name = "beta \(beta), gamma \(gamma)"
            result.numbers["S of exp, \(name)"] = soft
            result.numbers["S of exp, \(name), less the closed form"] = soft - exp(-gamma * gamma / 2)
            result.numbers["S of relu^2, \(name)"] = squared
            result.numbers["S of relu^2, \(name), less the closed form"] = squared - rectified(beta, gamma)
        }
    }

    /// E max(x, 0)^2 / sqrt(E max(x, 0)^4) of x ~ N(b, g^2), by the recursion m[k] = b m[k-1] + (k - 1) g^2 m[k-2].
    private func rectified(_ b: Double, _ g: Double) -> Double {
        let m0 = 0.5 * erfc(-b / g / 2.squareRoot())
        let m1 = b * m0 + g * exp(-b * b / (2 * g * g)) / (2 * Double.pi).squareRoot()
        let m2 = b * m1 + g * g * m0
        let m3 = b * m2 + 2 * g * g * m1
        return m2 / (b * m3 + 3 * g * g * m2).squareRoot()
    }

    func tests(_ o: Outcome) -> [Verdict] {
        func largest(_ part: String) -> Double {
            o.runs.flatMap { $0.measurement.numbers }
                .filter { $0.key.hasPrefix(part) && $0.key.hasSuffix("closed form") }.map { abs($0.value) }.max()
                ?? .infinity
        }
        let gap = o.numbers("log n - entropy, 1/sqrt(d), n 4096", "measured")
        return [
            Verdict(
                "at n = 4096 log n - H is 1/2, within 0.1", gap.allSatisfy { abs($0 - 0.5) < 0.1 },
                gap.map { String(format: "%.3f", $0) }.joined(separator: " ")),
            Verdict(
                "noise moves the sink as the closed form has it, within 0.02", largest("sink") < 0.02,
                String(format: "%.4f at most", largest("sink"))),
            Verdict(
                "concentration of exp follows e^(-gamma^2/2), within 0.02", largest("S of exp") < 0.02,
                String(format: "%.4f at most", largest("S of exp"))),
            Verdict(
                "concentration of relu^2 follows its moments, within 0.02", largest("S of relu") < 0.02,
                String(format: "%.4f at most", largest("S of relu"))),
        ]
    }
}
