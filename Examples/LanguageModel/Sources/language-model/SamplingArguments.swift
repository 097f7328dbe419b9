// SPDX-License-Identifier: Apache-2.0
// SamplingArguments.swift - how the next token is chosen.

import ArgumentParser
import LanguageModel

struct SamplingArguments: ParsableArguments {
    @Flag(help: "Take the most likely token every time.")
    var greedy = false

    @Option(
        help: "Take one of the most likely tokens, as few as hold this share of the probability: above 0, at most 1.")
    var topP = 0.9

    @Option(help: "What logits are divided by before that, above 0: below 1 likely tokens become likelier.")
    var temperature = 0.7

    @Option(help: "Equal seeds give equal texts.")
    var seed: UInt64 = 0

    func validate() throws {
        guard topP > 0, topP <= 1 else { throw ValidationError("--top-p: expected above 0, at most 1, got \(topP)") }
        guard temperature > 0, temperature.isFinite else {
            throw ValidationError("--temperature: expected a finite number above 0, got \(temperature)")
        }
    }

    /// - Parameter stream: texts that begin alike go on differently.
    func sampler(stream: Int = 0) -> Sampler {
        let method: Sampler.Method = greedy ? .greedy : .topP(share: topP, temperature: temperature)
        return Sampler(method, seed: seed &+ UInt64(stream) &* 0xda94_2042_e4dd_58b5)
    }
}
