// SPDX-License-Identifier: Apache-2.0
// CacheNumbers.swift - the kinds of caches: what they store, and which numbers attention over them multiplies.

import QuietAttention

/// What a cache stores and multiplies.
public struct CacheNumbers: Sendable, Hashable, CustomStringConvertible {
    public let storage: KeyValueCache.Storage
    public let products: AttentionProducts

    private init(_ storage: KeyValueCache.Storage, _ products: AttentionProducts = .float32) {
        (self.storage, self.products) = (storage, products)
    }

    public static let float32 = CacheNumbers(.float32)
    public static let float16 = CacheNumbers(.float16)
    public static let bfloat16 = CacheNumbers(.bfloat16)
    public static let int8 = CacheNumbers(.int8)
    public static let bfloat16Products = CacheNumbers(.bfloat16, .bfloat16)

    /// All that make sense.
    public static let all = KeyValueCache.Storage.allCases.map { CacheNumbers($0) } + [bfloat16Products]

    public var description: String { products == .float32 ? "\(storage)" : "\(storage) with its products" }

    /// A number as such a cache rounds it, except for one that products round by themselves, and for int8, whose scale is that
    /// of a row.
    public func rounded(_ x: Float) -> Float {
        guard products == .float32 else { return x }
        return switch storage {
        case .float32, .int8: x
        case .bfloat16: AttentionCase.StorageChoice.bfloat16.rounded(x)
        case .float16: AttentionCase.StorageChoice.float16.rounded(x)
        }
    }
}
