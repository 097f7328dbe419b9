// SPDX-License-Identifier: Apache-2.0
// TimedProblem.swift - what bench can time.

import QuietAttention

/// A problem with its inputs and room for its outputs.
protocol TimedProblem {
    /// Most threads of a call.
    var threads: Int { get }
    /// Threads that a call really uses.
    var threadsInUse: Int { get throws }
    var kernels: KernelSet { get }
    var products: AttentionProducts { get }
    var workspaceBytes: Int { get }
    /// Of the bits of the results.
    var digest: String { get }
    func run() throws
}
