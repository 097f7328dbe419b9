// SPDX-License-Identifier: Apache-2.0
// Linear.swift - y = x W^T, by OpenBLAS.

import COpenBLAS

/// A linear layer without bias: `y[r][o] = sum_i x[r][i] W[o][i]`, W `[out, in]` as PyTorch stores it.
///
/// OpenBLAS runs on the caller's thread alone: how it cuts a product among threads would change the order of sums.
struct Linear: Sendable {
    let weight: Slot
    let inputs, outputs: Int

    init(_ name: String, inputs: Int, outputs: Int, _ builder: inout ModelBuilder) {
        (self.inputs, self.outputs) = (inputs, outputs)
        weight = builder.matrix(name, outputs: outputs, inputs: inputs)
    }

    func forward(_ x: [Float], _ parameters: FlatBuffer) -> [Float] {
        let rows = x.count / inputs
        return [Float](unsafeUninitializedCapacity: rows * outputs) { y, count in
            multiply(.no, .yes, rows, outputs, inputs, x, parameters.base + weight.offset, 0, y.baseAddress!)
            count = rows * outputs
        }
    }

    /// `base + x W^T`.
    func forward(_ x: [Float], addedTo base: [Float], _ parameters: FlatBuffer) -> [Float] {
        let rows = x.count / inputs
        precondition(base.count == rows * outputs, "a sum for every output")
        var y = base
        y.withUnsafeMutableBufferPointer {
            multiply(.no, .yes, rows, outputs, inputs, x, parameters.base + weight.offset, 1, $0.baseAddress!)
        }
        return y
    }

    /// Returns dx = dy W, and adds dW = dy^T x.
    func backward(_ dy: [Float], x: [Float], _ parameters: FlatBuffer, _ gradients: FlatBuffer) -> [Float] {
        let rows = x.count / inputs
        addWeightGradient(dy, x, gradients)
        return [Float](unsafeUninitializedCapacity: rows * inputs) { dx, count in
            multiply(.no, .no, rows, inputs, outputs, dy, parameters.base + weight.offset, 0, dx.baseAddress!)
            count = rows * inputs
        }
    }

    /// Adds dy W to dx, and dW = dy^T x: for inputs of several layers.
    func addBackward(
        _ dy: [Float], x: [Float], _ parameters: FlatBuffer, _ gradients: FlatBuffer, to dx: inout [Float]
    ) {
        precondition(dx.count == x.count, "a gradient for every input")
        addWeightGradient(dy, x, gradients)
        dx.withUnsafeMutableBufferPointer {
            multiply(
                .no, .no, x.count / inputs, inputs, outputs, dy, parameters.base + weight.offset, 1, $0.baseAddress!)
        }
    }

    private func addWeightGradient(_ dy: [Float], _ x: [Float], _ gradients: FlatBuffer) {
        x.withUnsafeBufferPointer {
            multiply(
                .yes, .no, outputs, inputs, x.count / inputs, dy, $0.baseAddress!, 1, gradients.base + weight.offset)
        }
    }
}

enum Transposed { case no, yes }

/// `c = a b + beta c`, c `[m, n]`, with k summed over; a and b as they lie, or transposed.
private func multiply(
    _ aTransposed: Transposed, _ bTransposed: Transposed, _ m: Int, _ n: Int, _ k: Int, _ a: [Float],
    _ b: UnsafePointer<Float>, _ beta: Float, _ c: UnsafeMutablePointer<Float>
) {
    cblas_sgemm(
        CblasRowMajor, aTransposed == .yes ? CblasTrans : CblasNoTrans, bTransposed == .yes ? CblasTrans : CblasNoTrans,
        Int32(m), Int32(n), Int32(k), 1, a, Int32(aTransposed == .yes ? m : k), b,
        Int32(bTransposed == .yes ? k : n), beta, c, Int32(n))
}

/// What training asks of its process; once, before any product.
///
/// OpenBLAS stays on the thread that calls it. The allocator keeps what is freed: a step asks for the arrays of the step
/// before it, and the system clears every page that it gives.
public func prepareProcess() {
    openblas_set_num_threads(1)
    keep_freed_memory()
}
