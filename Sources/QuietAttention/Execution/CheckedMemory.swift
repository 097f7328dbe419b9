// SPDX-License-Identifier: Apache-2.0
// CheckedMemory.swift - the one way to memory whose size follows from a caller's numbers: an error where there is none.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Sizes that follow from a caller's numbers. A product beyond Int would trap, and so would an array for which the system
/// has no memory: both are found before.
enum CheckedMemory {
    /// The product of numbers that are not negative.
    ///
    /// - Throws: ``AttentionError`` of kind `overflow` when it does not fit into `Int`.
    static func product(_ argument: String, _ factors: Int...) throws(AttentionError) -> Int {
        if factors.contains(0) { return 0 }
        var product = 1
        for factor in factors {
            let (partial, overflow) = product.multipliedReportingOverflow(by: factor)
            guard !overflow else {
                throw AttentionError(
                    .overflow, argument, expected: "at most \(Int.max)",
                    found: factors.map(String.init).joined(separator: " x "))
            }
            product = partial
        }
        return product
    }

    /// Checks that the system would give memory for so many elements. It is asked, and the answer given back at once:
    /// Swift's arrays end the process when they get none.
    ///
    /// - Throws: ``AttentionError`` of kind `memory`.
    static func check<Element>(_ argument: String, count: Int, of _: Element.Type) throws(AttentionError) {
        let (bytes, overflow) = count.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
        // No 64-bit system has addresses for 2^56 bytes. So little as the least asked for here may be missing anywhere.
        if !overflow, bytes < leastAskedFor { return }
        guard !overflow, bytes < 1 << 56, isAvailable(bytes) else {
            throw AttentionError(
                .memory, argument,
                expected: overflow ? "memory for \(count) elements" : "\(bytes) bytes of memory", found: "none")
        }
    }

    private static let leastAskedFor = 1 << 20

    private static func isAvailable(_ bytes: Int) -> Bool {
        // Beside the elements an array has a header.
        let bytes = bytes + 4096
        let address = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0)
        guard let address, address != MAP_FAILED else { return false }
        munmap(address, bytes)
        return true
    }
}

extension Array where Element: BitwiseCopyable {
    /// Equal elements, as many as a caller's numbers say.
    ///
    /// - Parameter argument: what the memory is for.
    /// - Throws: ``AttentionError`` of kind `memory` where the system has none.
    init(for argument: String, repeating element: Element, count: Int) throws(AttentionError) {
        try CheckedMemory.check(argument, count: count, of: Element.self)
        self.init(repeating: element, count: count)
    }
}
