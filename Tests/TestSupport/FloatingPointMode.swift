// SPDX-License-Identifier: Apache-2.0
// FloatingPointMode.swift - threads in a floating-point mode other than the usual one.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// A floating-point mode of the calling thread, as bits of the CPU's control register, and what it is called.
public struct FloatingPointMode: Sendable, CustomStringConvertible {
    public let description: String
    private let set, cleared: UInt64

    private init(_ description: String, set: UInt64 = 0, cleared: UInt64 = 0) {
        (self.description, self.set, self.cleared) = (description, set, cleared)
    }

    #if arch(x86_64)
        /// The usual one, and modes in which results are different ones.
        public static let changing = [
            FloatingPointMode("usual"), FloatingPointMode("flush to zero", set: 0x8000),
            FloatingPointMode("denormals are zero", set: 0x40),
            FloatingPointMode("both", set: 0x8040), FloatingPointMode("downwards", set: 0x2000),
            FloatingPointMode("upwards", set: 0x4000), FloatingPointMode("towards zero", set: 0x6000),
            FloatingPointMode("towards zero, no subnormal numbers", set: 0xe040),
        ]
        /// Modes in which something raises a signal.
        public static let trapping =
            [
                ("invalid", 0x80), ("denormal", 0x100), ("division by zero", 0x200), ("overflow", 0x400),
                ("underflow", 0x800), ("inexact", 0x1000), ("anything", 0x1f80),
            ].map { FloatingPointMode("trapping \($0.0)", cleared: $0.1) }
        private static let flags: UInt64 = 0x3f
        /// That of a division by zero, which no computation here raises.
        private static let flag: UInt64 = 4
    #else
        public static let changing = [
            FloatingPointMode("usual"), FloatingPointMode("flush to zero", set: 1 << 24),
            FloatingPointMode("default NaN", set: 1 << 25),
            FloatingPointMode("upwards", set: 1 << 22), FloatingPointMode("downwards", set: 2 << 22),
            FloatingPointMode("towards zero", set: 3 << 22),
        ]
        /// CPUs without traps, which are most, take no notice.
        public static let trapping = [FloatingPointMode("trapping anything", set: 0x9f00)]
        private static let flags: UInt64 = 0
        private static let flag: UInt64 = 0
    #endif

    /// The control register of this thread, without the flags of exceptions that were raised.
    public static var current: UInt64 { register & ~flags }

    private static var register: UInt64 {
        var environment = fenv_t()
        fegetenv(&environment)
        #if arch(x86_64)
            return UInt64(environment.__mxcsr)
        #else
            return UInt64(environment.__fpcr)
        #endif
    }

    private static func set(register: UInt64) {
        var environment = fenv_t()
        fegetenv(&environment)
        #if arch(x86_64)
            environment.__mxcsr = .init(register)
        #else
            environment.__fpcr = .init(register)
        #endif
        fesetenv(&environment)
    }

    /// What came of `body` in this mode, with a flag raised before; and whether it left mode and flags as they were.
    public func run<Result>(_ body: () throws -> Result) rethrows -> (result: Result, isKept: Bool) {
        let before = Self.register
        let during = (before & ~cleared & ~Self.flags) | set | Self.flag
        Self.set(register: during)
        defer { Self.set(register: before) }
        let result = try body()
        return (result, Self.register == during)
    }
}
