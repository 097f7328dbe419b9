// SPDX-License-Identifier: Apache-2.0
// PositionOptionTests.swift - quiet attend and bench with positions and norms.

import Foundation
import Testing

@testable import Safetensors

extension CommandLineTests {
    /// Scores of rotary embeddings depend on m - n alone, those of slack CoCA do not.
    @Test(arguments: [
        ["rope"], ["rope-interleaved", "--rotary-dim", "16"], ["rope", "--rope-scaling", "dynamic=2,64,2048"],
        ["rope", "--rope-scaling", "yarn=32,4096", "--rope-base", "150000"], ["rope", "--rope-scaling", "xpos=64"],
        ["rope", "--rope-scaling", "llama3=8,1,4,64"], ["rope", "--rope-scaling", "linear=4"],
        ["rope", "--rope-scaling", "yarn=4,64,beta_fast=16,mscale=1,mscale_all_dim=0.5,truncate=false"],
        ["coca-strict", "--qk-norm", "rms"], ["coca-slack"],
    ])
    func positions(options: [String]) throws {
        func out(_ arguments: [String]) throws -> [Float] {
            let run = try QuietProcess(
                ["attend", Self.example, "--output", folder("out.safetensors"), "--mask", "causal"] + arguments)
            #expect(run.status == 0 && run.diagnostics.isEmpty, "\(run.diagnostics)")
            return try SafetensorsFile(path: folder("out.safetensors")).floats(named: "out")
        }
        func distance(_ a: [Float], _ b: [Float]) -> Float { zip(a, b).map { abs($0 - $1) }.max() ?? .nan }
        let turned = try out(["--positions"] + options)
        let moved = try out(["--positions"] + options + ["--position-offset", "1000"])
        let plain = try SafetensorsFile(path: Self.example).floats(named: "expected.softmax1.causal.out")
        #expect(distance(plain, turned) > 0.01)
        if options == ["coca-slack"] {
            #expect(distance(moved, turned) > 0.01)
        } else {
            #expect(distance(moved, turned) < 1e-3)
        }
    }

    @Test func positionsAreReported() throws {
        let json = try bench(
            "--positions", "rope-interleaved", "--rope-base", "500000", "--rotary-dim", "8", "--qk-norm", "layer")
        #expect(json["positions"] as? String == "rope-interleaved, base 500000, 8 channels")
        #expect(json["qk_norm"] as? String == "layer")
        let decoded = try bench("--positions", "rope", "--pass", "decode", "--mask", "causal")
        let prefilled = try bench("--positions", "rope", "--mask", "causal")
        #expect(decoded["digest"] as? String == prefilled["digest"] as? String)
    }

    @Test(arguments: [
        ["--positions", "alibi"], ["--rope-scaling", "pi=4"], ["--rotary-dim", "8"], ["--position-offset", "3"],
        ["--positions", "rope", "--rope-base", "0.5"], ["--positions", "rope", "--rotary-dim", "7"],
        ["--positions", "rope", "--rope-scaling", "pi"], ["--positions", "rope", "--rope-scaling", "pi=x"],
        ["--positions", "rope", "--rope-scaling", "pi=0.5"], ["--positions", "rope", "--rope-scaling", "yarn=4"],
        ["--positions", "rope", "--rope-scaling", "dynamic=4,1,2,3"], ["--positions", "rope", "--rope-scaling", "="],
        ["--positions", "rope", "--position-offset", "-9223372036854775808"], ["--qk-norm", "batch"],
        ["--positions", "coca-slack", "--rotary-dim", "9"],
        ["--positions", "rope", "--rope-scaling", "llama3=8,4,1,64"],
        ["--positions", "rope", "--rope-scaling", "llama3=8,1,4"],
        ["--positions", "rope", "--rope-scaling", "yarn=4,64,32"],
        ["--positions", "rope", "--rope-scaling", "yarn=4,64,truncate=0"],
        ["--positions", "rope", "--rope-scaling", "yarn=4,64,beta=2"],
        ["--positions", "rope", "--rope-scaling", "yarn=4,64,mscale=1,mscale=2"],
        ["--positions", "rope", "--rope-scaling", "yarn=4,64.5"], ["--positions", "rope", "--rope-scaling", "none=1"],
        ["--positions", "rope", "--rope-scaling", "longrope=4,64"],
    ])
    func positionUsageErrors(options: [String]) throws {
        let run = try QuietProcess(["bench"] + options)
        #expect(run.status == 64 && run.output.isEmpty)
    }

    /// Whether a file's head is that long is only known when it is read.
    @Test(arguments: ["bench", "attend"])
    func rotaryDimensions(command: String) throws {
        let start = command == "bench" ? ["bench"] : ["attend", "in", "--output", "out"]
        for number in ["7", "0", "-2", "1026"] {
            let run = try QuietProcess(start + ["--positions", "rope", "--rotary-dim", number])
            #expect(run.status == 64 && run.output.isEmpty)
            #expect(run.diagnostics.contains("the head dimension, which is 1024 at most, got \(number)"))
        }
    }

    @Test(arguments: [
        ["--positions", "rope", "--rotary-dim", "66"], ["--positions", "coca-slack", "--rotary-dim", "62"],
        ["--positions", "rope", "--head-dim", "7"], ["--positions", "coca-strict", "--head-dim", "7"],
    ])
    func rotaryDimensionsThatDoNotFitTheHead(options: [String]) throws {
        let run = try QuietProcess(["bench"] + options)
        #expect(run.status == 64 && run.output.isEmpty)
        let head = options.contains("--head-dim") ? "7" : "64"
        #expect(run.diagnostics.contains("head dimension \(head)") || run.diagnostics.contains("all \(head) channels"))
    }

    /// A file with queries and keys at 100 to 106, and angles and factors as tensors.
    private func ropeFile(_ others: [StoredTensor]) throws -> String {
        func float(_ name: String, _ shape: [Int], _ elements: [Float]) -> StoredTensor {
            StoredTensor(name, .float32, shape, elements.map(\.bitPattern))
        }
        return try folder.file(
            safetensors(
                [
                    float("q", [1, 1, 3, 8], Self.numbers(24)), float("k", [1, 1, 7, 8], Self.numbers(56, 7)),
                    float("v", [1, 1, 7, 5], Self.numbers(35, 31)),
                ] + others), name: "in.safetensors")
    }

    /// Each scaling by its name, and by its formula as angles of one's own.
    @Test(arguments: ["llama3=8,1,4,64", "dynamic=2,64", "longrope=4,64,attention_factor=1", "linear=3"])
    func scalingsAreAngles(scaling: String) throws {
        let plain = (0..<4).map { pow(100.0, -Double($0) / 4) }
        let short = [1.0, 2, 3, 4]
        let long = [1.5, 4, 8, 16]
        let thetas: [Double] =
            switch scaling.prefix(4) {
            case "llam":
                plain.map { theta in
                    let turns = 64 * theta / (2 * .pi)
                    let smooth = min(max((turns - 1) / 3, 0), 1)
                    return theta * (smooth + (1 - smooth) / 8)
                }
            // The largest position + 1 is 107.
            case "dyna": (0..<4).map { pow(100 * pow(2 * 107.0 / 64 - 1, 8.0 / 6), -Double($0) / 4) }
            case "long": zip(plain, long).map { $0 / $1 }
            default: plain.map { $0 / 3 }
            }
        let path = try ropeFile([
            StoredTensor("theta", .float64, [4], thetas.map(\.bitPattern)),
            StoredTensor("short", .float64, [4], short.map(\.bitPattern)),
            StoredTensor("long", .float64, [4], long.map(\.bitPattern)),
        ])
        let options = ["--positions", "rope", "--position-offset", "100"]
        let lists = scaling.hasPrefix("long") ? ["--rope-short-factor", "short", "--rope-long-factor", "long"] : []
        let named = try out(path, options + ["--rope-base", "100", "--rope-scaling", scaling] + lists)
        let given = try out(path, options + ["--rope-thetas", "theta"])
        #expect(zip(named, given).allSatisfy { abs($0 - $1) < 1e-6 })
        let unscaled = try out(path, options + ["--rope-base", "100"])
        #expect(zip(named, unscaled).contains { abs($0 - $1) > 1e-3 })
    }

    @Test func listsOfAngles() throws {
        let path = try ropeFile([
            StoredTensor("three", .float64, [3], [1.0, 2, 3].map(\.bitPattern)),
            StoredTensor("five", .float64, [5], [1.0, 2, 3, 4, 5].map(\.bitPattern)),
            StoredTensor("square", .float64, [2, 2], [1.0, 2, 3, 4].map(\.bitPattern)),
            StoredTensor("m", .uint32, [1, 3], [4, 5, 6] as [UInt32]),
            StoredTensor("n", .int64, [1, 7], [0, 1, 2, 3, 4, 5, 6] as [Int64]),
        ])
        let rope = ["--positions", "rope"]
        // Three angles turn six channels.
        #expect(try out(path, rope + ["--rope-thetas", "three"]) != out(path, rope))
        #expect(
            try out(path, rope + ["--query-positions", "m", "--key-positions", "n"]) == out(path, rope))
        try expectFailure(ofInput: path, options: rope + ["--rope-thetas", "five"], "positions.dimensions")
        try expectFailure(ofInput: path, options: rope + ["--rope-thetas", "square"], "[r/2]")
        try expectFailure(
            ofInput: path,
            options: rope + [
                "--rope-scaling", "longrope=4,64", "--rope-short-factor", "three", "--rope-long-factor", "five",
            ],
            "positions.scaling.shortFactor: expected 4 elements")
        for options in [
            ["--rope-thetas", "three"], rope + ["--rope-thetas", "three", "--rope-scaling", "linear=2"],
            rope + ["--rope-scaling", "longrope=4,64", "--rope-short-factor", "three"],
            rope + ["--rope-short-factor", "three", "--rope-long-factor", "five"],
        ] {
            let run = try QuietProcess(["attend", path, "--output", folder("out.safetensors")] + options)
            #expect(run.status == 64 && run.output.isEmpty, "\(options)")
        }
    }

    @Test func positionsThatDoNotFitTheFile() throws {
        let path = try inputs()
        try expectFailure(
            ofInput: path, options: ["--positions", "rope", "--rotary-dim", "6"], "head dimension 4, got 6")
        try expectFailure(
            ofInput: path, options: ["--positions", "coca-slack", "--rotary-dim", "2"], "all 4 channels")
        try expectFailure(
            ofInput: path, options: ["--positions", "rope", "--rope-scaling", "dynamic=1,2,4"], "at least 5")
    }
}
