// SPDX-License-Identifier: Apache-2.0
// SeededRows.swift - rows drawn from a seed: those of `quiet bench`, each where it stands.

import QuietAttention
import Ring

/// Rows of tensors in the order [batch, heads, sequence, dimension].
struct SeededRows<Element: AttentionScalar>: RowSource {
    let shape: AttentionShape
    let seed: UInt64
    let round: (Float) -> Element

    func read(
        _ tensor: RowTensor, item: Int, head: Int, rows: Range<Int>, into buffer: UnsafeMutableBufferPointer<Element>
    ) {
        let (stream, heads, sequence, dimension): (SeededStream, Int, Int, Int) =
            switch tensor {
            case .queries: (.queries, shape.queryHeads, shape.queries, shape.headDimension)
            case .keys: (.keys, shape.keyValueHeads, shape.keys, shape.headDimension)
            case .values: (.values, shape.keyValueHeads, shape.keys, shape.valueDimension)
            case .outputGradient: (.outputGradients, shape.queryHeads, shape.queries, shape.valueDimension)
            }
        var generator = SeededGenerator(seed: seed, stream: stream.rawValue)
        let before = ((item * heads + head) * sequence + rows.lowerBound) * dimension
        generator.skip(words: before * SeededGenerator.wordsPerNormal)
        for index in buffer.indices { buffer[index] = round(generator.nextNormal()) }
    }
}
