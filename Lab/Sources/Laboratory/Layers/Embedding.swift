// SPDX-License-Identifier: Apache-2.0
// Embedding.swift - a row of a table for every token.

struct Embedding: Sendable {
    let table: Slot
    let dimension: Int

    init(_ name: String, _ builder: inout ModelBuilder) {
        dimension = builder.configuration.dimension
        table = builder.matrix(
            name, outputs: builder.configuration.vocabulary, inputs: builder.configuration.dimension, isTable: true)
    }

    func forward(_ tokens: [Int32], _ parameters: FlatBuffer) -> [Float] {
        [Float](unsafeUninitializedCapacity: tokens.count * dimension) { y, count in
            for (row, token) in tokens.enumerated() {
                (y.baseAddress! + row * dimension).initialize(
                    from: parameters.base + table.offset + Int(token) * dimension, count: dimension)
            }
            count = tokens.count * dimension
        }
    }

    func backward(_ dy: [Float], tokens: [Int32], _ gradients: FlatBuffer) {
        for (row, token) in tokens.enumerated() {
            let target = gradients.base + table.offset + Int(token) * dimension
            for channel in 0..<dimension { target[channel] += dy[row * dimension + channel] }
        }
    }
}
