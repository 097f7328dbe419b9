// SPDX-License-Identifier: Apache-2.0
// MaskTensors.swift - the boolean mask and the bias of a problem, as kernels find them.

import CKernels

/// A boolean mask and a bias; nil where there is none.
struct MaskTensors {
    let allowed: BroadcastTensor<Bool>?
    let bias: BroadcastTensor<Float>?

    /// Calls `body` with where their values are.
    func withPointers<Result>(_ body: (MaskPointers) -> Result) -> Result {
        guard allowed != nil || bias != nil else { return body(.none) }
        return (allowed?.values ?? []).withUnsafeBytes { values in
            (bias?.values ?? []).withUnsafeBufferPointer { biases in
                body(
                    MaskPointers(
                        mask: values.baseAddress?.assumingMemoryBound(to: UInt8.self), bias: biases.baseAddress,
                        maskStrides: allowed?.strides, biasStrides: bias?.strides))
            }
        }
    }
}

/// Where the values of a ``MaskTensors`` are, during a call.
struct MaskPointers: @unchecked Sendable {
    fileprivate let mask: UnsafePointer<UInt8>?
    fileprivate let bias: UnsafePointer<Float>?
    fileprivate let maskStrides: BroadcastTensor<Bool>.Strides?
    fileprivate let biasStrides: BroadcastTensor<Float>.Strides?

    static let none = MaskPointers(mask: nil, bias: nil, maskStrides: nil, biasStrides: nil)

    /// Tells kernels of what belongs to the query heads from `head` on and the keys from `key` on.
    func add(to problem: inout qattn_problem, item: Int = 0, head: Int, key: Int) {
        if let mask, let strides = maskStrides {
            problem.mask = mask + strides.offset(item: item, head: head, key: key)
            problem.mask_strides = qattn_strides(strides)
        }
        if let bias, let strides = biasStrides {
            problem.bias = bias + strides.offset(item: item, head: head, key: key)
            problem.bias_strides = qattn_strides(strides)
        }
    }
}

extension BroadcastTensor.Strides {
    fileprivate func offset(item: Int, head: Int, key: Int) -> Int { item * batch + head * heads + key * keys }
}

extension qattn_strides {
    fileprivate init<Element>(_ strides: BroadcastTensor<Element>.Strides) {
        self.init(head: strides.heads, query: strides.queries, key: strides.keys)
    }
}
