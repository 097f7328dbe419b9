// SPDX-License-Identifier: Apache-2.0
// main.swift - the first call a user makes, with an answer that can be worked out by hand.

import QuietAttention

// One query against two keys, both scores 0: softmax_1 gives each key 1 / (1 + 1 + 1), so out = (3 + 6) / 3 = 3.
let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: 2, headDimension: 1)
let attention = try Attention(shape, sink: .softmax1)
var output: [Float] = [0]
try attention.forward(queries: [0], keys: [1, 2], values: [3, 6], into: &output)
print("out =", output[0])
precondition(abs(output[0] - 3) < 1e-6)
