// SPDX-License-Identifier: Apache-2.0
// Buffer.swift - memory that messages are sent from and received into.

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// Elements in memory of their own, from a multiple of 64 bytes on, all 0 at first.
public final class Buffer<Element: BitwiseCopyable> {
    public let elements: UnsafeMutableBufferPointer<Element>

    /// - Throws: ``RingError`` where there is no such memory.
    public init(_ count: Int, for what: @autoclosure () -> String) throws(RingError) {
        let (size, overflow) = count.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
        var address: UnsafeMutableRawPointer?
        // More than there is may be promised, and end the process when it is used.
        let memory = sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
        guard !overflow, size < memory, posix_memalign(&address, 64, max(size, 1)) == 0, let address else {
            throw RingError("no memory for \(what()): \(count) elements of \(MemoryLayout<Element>.stride) bytes")
        }
        memset(address, 0, max(size, 1))
        elements = UnsafeMutableBufferPointer(
            start: address.bindMemory(to: Element.self, capacity: count), count: count)
    }

    deinit { free(elements.baseAddress) }

    public var bytes: UnsafeMutableRawBufferPointer { UnsafeMutableRawBufferPointer(elements) }
    public var reading: UnsafeBufferPointer<Element> { UnsafeBufferPointer(elements) }
}

/// Copies `count` elements, as bytes: a loop over slices of a type that the compiler does not know goes through witness tables,
/// and took as long as the kernels.
func copyElements<Element: BitwiseCopyable>(
    _ source: UnsafeBufferPointer<Element>, from first: Int, to target: UnsafeMutableBufferPointer<Element>,
    at place: Int, _ count: Int
) {
    precondition(first >= 0 && first + count <= source.count && place >= 0 && place + count <= target.count)
    guard count > 0 else { return }
    memcpy(target.baseAddress! + place, source.baseAddress! + first, count * MemoryLayout<Element>.stride)
}

/// Where tensors come from: rows `[item, head, row]` of queries, keys, values or the gradient of the output.
public protocol RowSource<Element> {
    associatedtype Element: BitwiseCopyable

    /// Fills `buffer` with adjacent rows of a head.
    func read(
        _ tensor: RowTensor, item: Int, head: Int, rows: Range<Int>, into buffer: UnsafeMutableBufferPointer<Element>
    ) throws
}

public enum RowTensor: Sendable { case queries, keys, values, outputGradient }
