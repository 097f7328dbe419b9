// SPDX-License-Identifier: Apache-2.0
// ArrayBuffers.swift - several arrays as unsafe buffers at once.

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
