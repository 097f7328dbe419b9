// SPDX-License-Identifier: Apache-2.0
// ArrayBuffers.swift - several arrays or spans as unsafe buffers at once.

/// Calls `body` with the buffers of the arrays, in their order.
func withUnsafeBuffers<Result>(
    _ arrays: ArraySlice<[Float]>, _ buffers: [UnsafeBufferPointer<Float>] = [],
    _ body: ([UnsafeBufferPointer<Float>]) throws(AttentionError) -> Result
) throws(AttentionError) -> Result {
    guard let first = arrays.first else { return try body(buffers) }
    return try first.withUnsafeBufferPointer { buffer throws(AttentionError) in
        try withUnsafeBuffers(arrays.dropFirst(), buffers + [buffer], body)
    }
}

/// Calls `body` with the buffers of the three inputs of a pass.
func withUnsafeBuffers<Input>(
    queries: Span<Input>, keys: Span<Input>, values: Span<Input>,
    _ body: (
        _ queries: UnsafeBufferPointer<Input>, _ keys: UnsafeBufferPointer<Input>, _ values: UnsafeBufferPointer<Input>
    ) throws(AttentionError) -> Void
) throws(AttentionError) {
    try queries.withUnsafeBufferPointer { queries throws(AttentionError) in
        try keys.withUnsafeBufferPointer { keys throws(AttentionError) in
            try values.withUnsafeBufferPointer { values throws(AttentionError) in try body(queries, keys, values) }
        }
    }
}
