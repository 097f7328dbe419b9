// SPDX-License-Identifier: Apache-2.0
// AttendGradientTests.swift - quiet attend --gradients writes what the library computes.

import Foundation
import QuietAttention
import Testing

@testable import Safetensors

extension CommandLineTests {
    /// Runs `attend --gradients` on a problem with tensors, and the library.
    private func gradients(
        _ options: [String], _ make: (TensorProblem) throws -> Attention
    ) throws -> (file: SafetensorsFile, library: AttentionGradients) {
        let problem = try TensorProblem(self)
        _ = try out(problem.path, ["--gradients"] + options)
        let attention = try make(problem)
        var record = ForwardRecord()
        let result = try attention.forward(
            queries: problem.queries, keys: problem.keys, values: problem.values, recording: &record)
        let library = try attention.backward(
            outputGradient: Self.numbers(120, 11),
            logSumExpGradient: options.contains("--lse-gradient") ? Self.numbers(24, 5) : nil,
            queries: problem.queries, keys: problem.keys, values: problem.values, output: result.output,
            record: record)
        return (try SafetensorsFile(path: folder("out.safetensors")), library)
    }

    /// A tensor's shape and elements are these.
    private func expect(
        _ name: String, _ shape: [Int], _ values: [Float], in file: SafetensorsFile,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        #expect(try file.tensor(named: name).shape == shape, sourceLocation: sourceLocation)
        #expect(try file.floats(named: name) == values, "\(name)", sourceLocation: sourceLocation)
        #expect(values.contains { $0 != 0 }, "\(name)", sourceLocation: sourceLocation)
    }

    @Test(arguments: AttentionProducts.allCases)
    func gradientsOfTheTensors(products: AttentionProducts) throws {
        let option = products == .float32 ? "f32" : "bf16"
        let (file, library) = try gradients(["--lse-gradient", "dlse", "--mask", "causal", "--products", option]) {
            try Attention($0.shape, sink: .softmax1, mask: .causal, products: products)
        }
        try expect("dq", [2, 4, 3, 8], library.queries, in: file)
        try expect("dk", [2, 2, 7, 8], library.keys, in: file)
        try expect("dv", [2, 2, 7, 5], library.values, in: file)
        try expect("dsink", [4], library.sinks, in: file)
        #expect(!file.contains("dbias"))
    }

    @Test(arguments: AttentionProducts.allCases)
    func gradientsOfSlopesAndScales(products: AttentionProducts) throws {
        let option = products == .float32 ? "f32" : "bf16"
        let (file, library) = try gradients(["--alibi-slopes", "heads", "--ssmax", "heads", "--products", option]) {
            try Attention(
                $0.shape, sink: .softmax1, scaling: .scalableSoftmax(TensorProblem.factors(4).map(Double.init)),
                alibi: .slopes(TensorProblem.factors(4)), products: products)
        }
        try expect("dslope", [4], library.slopes, in: file)
        try expect("dssmax", [4], library.scalableSoftmax, in: file)
    }

    /// Each as its own tensor: of all heads, or of each.
    @Test func gradientsOfNorms() throws {
        let (gains, gain) = (TensorProblem.factors(32), TensorProblem.factors(8))
        let (layer, ofLayer) = try gradients([
            "--qk-norm", "layer", "--positions", "rope", "--query-gain", "gains", "--query-bias", "gain", "--key-bias",
            "gain",
        ]) {
            try Attention(
                $0.shape, sink: .softmax1, positions: .rotary(RotaryEmbedding()),
                queryKeyNorm: .layer(queryGain: gains, queryBias: gain, keyBias: gain))
        }
        try expect("dquery_gain", [4, 8], ofLayer.queryGain, in: layer)
        try expect("dquery_bias", [8], ofLayer.queryBias, in: layer)
        try expect("dkey_bias", [8], ofLayer.keyBias, in: layer)
        #expect(!layer.contains("dkey_gain"))
        let (rms, ofRMS) = try gradients(["--qk-norm", "rms", "--key-gain", "gain"]) {
            try Attention($0.shape, sink: .softmax1, queryKeyNorm: .rms(keyGain: gain))
        }
        try expect("dkey_gain", [8], ofRMS.keyGain, in: rms)
    }

    /// As the tensor of the bias, whatever it shares.
    @Test func gradientsOfBiases() throws {
        let (whole, ofWhole) = try gradients(["--bias", "bias", "--softcap", "3"]) {
            let bias = try BroadcastTensor(Self.numbers(168), batch: 2, heads: 4, queries: 3, keys: 7)
            return try Attention($0.shape, sink: .softmax1, softcap: 3, bias: bias)
        }
        try expect("dbias", [2, 4, 3, 7], ofWhole.bias, in: whole)
        let (shared, ofShared) = try gradients(["--bias", "bias heads"]) {
            try Attention($0.shape, sink: .softmax1, bias: BroadcastTensor(Self.numbers(28), heads: 4, keys: 7))
        }
        try expect("dbias", [4, 1, 7], ofShared.bias, in: shared)
        let (hiding, ofHiding) = try gradients(["--bias", "bias half"]) {
            try Attention($0.shape, sink: .softmax1, bias: BroadcastTensor([1, 1, 1, 1, 1, 1, -.infinity], keys: 7))
        }
        try expect("dbias", [7], ofHiding.bias, in: hiding)
        #expect(ofHiding.bias[6] == 0)
    }
}
