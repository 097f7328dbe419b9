// SPDX-License-Identifier: Apache-2.0
// AvailableThreads.swift - the CPUs this process may run on.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

#if os(Linux)
    /// The C library's, which its headers hide from Swift behind _GNU_SOURCE.
    @_silgen_name("sched_getaffinity")
    private func schedGetAffinity(_ process: Int32, _ byteCount: Int, _ mask: UnsafeMutableRawPointer) -> Int32
#endif

/// The CPUs this process may run on, at least 1: what its affinity mask leaves of the machine.
package func availableThreads() -> Int {
    #if os(Linux)
        // Room for 16384 CPUs: the system refuses masks that are too small for the machine.
        var mask = [UInt](repeating: 0, count: 16384 / UInt.bitWidth)
        if schedGetAffinity(0, mask.count * MemoryLayout<UInt>.stride, &mask) == 0 {
            return max(1, mask.reduce(0) { $0 + $1.nonzeroBitCount })
        }
    #endif
    return max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))
}
