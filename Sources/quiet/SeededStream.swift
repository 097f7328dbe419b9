// SPDX-License-Identifier: Apache-2.0
// SeededStream.swift - which numbers of a seed are what.

/// Streams of the seed.
enum SeededStream: UInt64 {
    case queries = 0
    case keys = 1
    case values = 2
    // 3 and 4 are those of masks and biases in the tests.
    case sinks = 5
    case outputGradients = 6
}
