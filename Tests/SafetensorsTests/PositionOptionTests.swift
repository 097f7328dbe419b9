// SPDX-License-Identifier: Apache-2.0
// PositionOptionTests.swift - quiet attend and bench with positions and norms.

import Foundation
import Testing

@testable import Safetensors

extension CommandLineTests {
    /// Scores of rotary embeddings depend on m - n alone, those of slack CoCA do not.
    @Test(arguments: [
        ["rope"], ["rope-interleaved", "--rotary-dim", "16"], ["rope", "--rope-scaling", "dynamic=2,64,512"],
        ["rope", "--rope-scaling", "yarn=32,4096", "--rope-base", "150000"], ["rope", "--rope-scaling", "xpos=64"],
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
    ])
    func positionUsageErrors(options: [String]) throws {
        let run = try QuietProcess(["bench"] + options)
        #expect(run.status == 64 && run.output.isEmpty)
    }

    @Test func positionsThatDoNotFitTheFile() throws {
        let path = try inputs()
        try expectFailure(
            ofInput: path, options: ["--positions", "rope", "--rotary-dim", "6"], "head dimension 4, got 6")
        try expectFailure(
            ofInput: path, options: ["--positions", "coca-slack", "--rotary-dim", "2"], "all 4 channels")
        try expectFailure(
            ofInput: path, options: ["--positions", "rope", "--rope-scaling", "dynamic=1,2,4"], "the 5 keys")
    }
}
