// SPDX-License-Identifier: Apache-2.0
// AttentionScalar.swift - the element types that kernels read and write.

import CKernels

/// An element type that the kernels read and write: `Float`, `Float16` (not on Macs with Intel processors) and
/// ``BFloat16``.
///
/// 16-bit inputs are widened exactly and all arithmetic is in Float: the output has the bits it has for inputs widened
/// beforehand. A 16-bit output is rounded once, at the end, to nearest even.
///
/// The kernels know these types only: do not add conformances.
public protocol AttentionScalar: Sendable, BitwiseCopyable {
    /// The format in memory.
    static var storage: AttentionStorage { get }
}

/// The format of a tensor's elements in memory.
public enum AttentionStorage: Sendable, Hashable, CaseIterable {
    case float32, float16, bfloat16

    /// Bytes of one element.
    public var byteCount: Int { self == .float32 ? 4 : 2 }

    var kernelStorage: qattn_storage {
        switch self {
        case .float32: QATTN_FLOAT32
        case .float16: QATTN_FLOAT16
        case .bfloat16: QATTN_BFLOAT16
        }
    }
}

extension Float: AttentionScalar {
    public static var storage: AttentionStorage { .float32 }
}

#if !(os(macOS) && arch(x86_64))
    extension Float16: AttentionScalar {
        public static var storage: AttentionStorage { .float16 }
    }
#endif

extension BFloat16: AttentionScalar {
    public static var storage: AttentionStorage { .bfloat16 }
}
