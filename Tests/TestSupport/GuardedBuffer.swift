// SPDX-License-Identifier: Apache-2.0
// GuardedBuffer.swift - memory that ends at, or starts after, a page that may not be touched.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Room for `count` elements beside a page without access: a read or write of one element too many kills the process.
///
///     .after    | ...slack... | elements |XXXX|      .before   |XXXX| elements | ...slack... |
///
/// The elements of `.after` are aligned to their own size only. The slack on the other side, less than a page, is
/// filled with a pattern; `slackIsIntact` tells whether anything was written there.
///
/// It is `@unchecked Sendable` so that a test can hold one across tasks; it does no locking.
public final class GuardedBuffer<Element: BitwiseCopyable>: @unchecked Sendable {
    public enum Side: String, CaseIterable, Sendable, CustomStringConvertible {
        case after, before
        public var description: String { "guard page \(rawValue)" }
    }

    public let elements: UnsafeMutableBufferPointer<Element>
    private let mapping: UnsafeMutableRawPointer
    private let mappingSize: Int
    private let slack: UnsafeMutableRawBufferPointer

    private static var pattern: UInt8 { 0xA5 }

    public init(count: Int, guard side: Side = .after) {
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let bytes = count * MemoryLayout<Element>.stride
        let body = max(1, (bytes + page - 1) / page) * page
        mappingSize = body + page
        let mapped = mmap(nil, mappingSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0)
        guard let mapped, mapped != UnsafeMutableRawPointer(bitPattern: -1) else {
            fatalError("mmap of \(mappingSize) bytes failed")
        }
        mapping = mapped
        let first: UnsafeMutableRawPointer
        switch side {
        case .after:
            first = mapped + (body - bytes)
            slack = UnsafeMutableRawBufferPointer(start: mapped, count: body - bytes)
            precondition(mprotect(mapped + body, page, PROT_NONE) == 0)
        case .before:
            first = mapped + page
            slack = UnsafeMutableRawBufferPointer(start: first + bytes, count: body - bytes)
            precondition(mprotect(mapped, page, PROT_NONE) == 0)
        }
        elements = UnsafeMutableBufferPointer(
            start: first.bindMemory(to: Element.self, capacity: count), count: count)
        slack.initializeMemory(as: UInt8.self, repeating: Self.pattern)
    }

    public convenience init(_ contents: [Element], guard side: Side = .after) {
        self.init(count: contents.count, guard: side)
        contents.withUnsafeBytes { UnsafeMutableRawBufferPointer(elements).copyMemory(from: $0) }
    }

    public convenience init(repeating value: Element, count: Int, guard side: Side = .after) {
        self.init([Element](repeating: value, count: count), guard: side)
    }

    deinit { munmap(mapping, mappingSize) }

    public var start: UnsafeMutablePointer<Element> { elements.baseAddress! }
    public var array: [Element] { Array(elements) }

    /// False when something wrote on the side that has no guard page.
    public var slackIsIntact: Bool {
        guard let first = slack.baseAddress, slack.count > 1 else { return true }
        // Every byte equals the one before it, and the first is the pattern.
        return slack[0] == Self.pattern && memcmp(first, first + 1, slack.count - 1) == 0
    }
}
