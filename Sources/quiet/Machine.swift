// SPDX-License-Identifier: Apache-2.0
// Machine.swift - what the system says about the machine and about this process.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

enum Machine {
    /// The model name of the CPU, "unknown" where the system does not tell.
    static var cpu: String {
        #if canImport(Darwin)
            var name = [CChar](repeating: 0, count: 256)
            var size = name.count
            guard sysctlbyname("machdep.cpu.brand_string", &name, &size, nil, 0) == 0 else { return "unknown" }
            return String(decoding: name.prefix(while: { $0 != 0 }).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        #else
            return field("model name", ofFile: "/proc/cpuinfo") ?? "unknown"
        #endif
    }

    /// Bytes of memory in the machine.
    static var physicalMemory: Int {
        sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
    }

    /// The most bytes of memory that this process has had at once.
    static var peakMemory: Int {
        #if !canImport(Darwin)
            // Not getrusage: its maximum starts with what the process that started this one had.
            if let text = field("VmHWM", ofFile: "/proc/self/status"), let kibibytes = Int(text.prefix { $0 != " " }) {
                return kibibytes * 1024
            }
        #endif
        var usage = rusage()
        // RUSAGE_SELF, which glibc's header makes another type than the argument's.
        getrusage(0, &usage)
        #if canImport(Darwin)
            return usage.ru_maxrss
        #else
            return usage.ru_maxrss * 1024
        #endif
    }

    #if !canImport(Darwin)
        /// Returns what stands behind "name:" in the first line that begins so.
        private static func field(_ name: String, ofFile path: String) -> String? {
            guard let file = fopen(path, "r") else { return nil }
            defer { fclose(file) }
            var line = [CChar](repeating: 0, count: 4096)
            while fgets(&line, Int32(line.count), file) != nil {
                let text = String(
                    decoding: line.prefix(while: { $0 != 0 }).map { UInt8(bitPattern: $0) }, as: UTF8.self)
                guard text.hasPrefix(name), let colon = text.firstIndex(of: ":") else { continue }
                let value = text[text.index(after: colon)...].drop(while: \.isWhitespace)
                return String(value.reversed().drop(while: \.isWhitespace).reversed())
            }
            return nil
        }
    #endif
}
