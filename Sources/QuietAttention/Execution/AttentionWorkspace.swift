// SPDX-License-Identifier: Apache-2.0
// AttentionWorkspace.swift - memory that calls reuse.

/// Memory for packed keys and values that calls take, use and return: after the first call of a size, none allocates.
///
/// One workspace serves any number of ``Attention`` objects of any shapes, and calls from several tasks at once: each
/// call has a buffer of its own. It holds as many buffers as calls ran at once.
public final class AttentionWorkspace: Sendable {
    struct Buffer: @unchecked Sendable {
        let address: UnsafeMutableRawPointer
        let byteCount: Int
    }

    private struct Pool {
        var idle: [Buffer] = []
        /// Of all buffers, idle or in use.
        var byteCount = 0

        /// The smallest idle buffer of at least so many bytes: large ones stay for large calls.
        func indexOfSmallest(byteCount: Int) -> Int? {
            var best: Int?
            for index in idle.indices where idle[index].byteCount >= byteCount {
                if best.map({ idle[index].byteCount < idle[$0].byteCount }) ?? true { best = index }
            }
            return best
        }
    }

    private let pool = Lock(Pool())

    public init() {}

    deinit {
        removeIdleBuffers()
    }

    /// Bytes held, by idle buffers and by those in use.
    public var byteCount: Int { pool.withLock { $0.byteCount } }

    /// Gives the memory of idle buffers back to the system.
    public func removeIdleBuffers() {
        let idle = pool.withLock { pool in
            defer { pool.idle = [] }
            pool.byteCount -= pool.idle.reduce(0) { $0 + $1.byteCount }
            return pool.idle
        }
        for buffer in idle { AlignedMemory.free(buffer.address) }
    }

    /// A buffer of at least so many bytes, aligned for the kernels, contents irrelevant.
    func take(byteCount: Int) throws(AttentionError) -> Buffer {
        let (found, outgrown) = pool.withLock { pool -> (Buffer?, Buffer?) in
            if let index = pool.indexOfSmallest(byteCount: byteCount) { return (pool.idle.remove(at: index), nil) }
            // All idle ones are too small: replace one, so that the number of buffers stays that of concurrent calls.
            let outgrown = pool.idle.popLast()
            pool.byteCount -= outgrown?.byteCount ?? 0
            return (nil, outgrown)
        }
        if let found { return found }
        if let outgrown { AlignedMemory.free(outgrown.address) }
        guard let address = AlignedMemory.allocate(byteCount) else {
            throw AttentionError(.memory, "workspace", expected: "\(byteCount) bytes of memory", found: "none")
        }
        pool.withLock { $0.byteCount += byteCount }
        return Buffer(address: address, byteCount: byteCount)
    }

    func give(back buffer: Buffer) {
        pool.withLock { $0.idle.append(buffer) }
    }
}
