// SPDX-License-Identifier: Apache-2.0
// World.swift - the ranks of a run, messages between them, and what is measured of these.

import CRing

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// Why ranks cannot go on together.
public struct RingError: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}

/// A message on its way. What it is sent from or received into must stay where it is until it is done.
public struct Request {
    var raw: ring_request
    /// For the report of a wait in vain.
    let what: () -> String
}

/// A message that another rank would send: it stays there until it is taken.
struct Offer {
    fileprivate var raw: ring_offer

    var rank: Int { Int(raw.from) }
    var tag: Int { Int(raw.tag) }
    var bytes: Int { raw.bytes }
}

/// The ranks of a run: all processes that `mpirun` started. Used by one thread.
public final class World {
    /// This process among the ranks, and how many there are.
    public let rank, size: Int
    /// Seconds after which a rank that does not answer is reported.
    public var patience = 60.0
    /// Bytes handed over for others, and seconds spent with nothing to do but wait.
    public private(set) var bytesSent = 0
    public private(set) var secondsWaiting = 0.0

    /// Joins the other ranks; a process that `mpirun` did not start is the only one.
    public init() throws(RingError) {
        let error = ring_begin()
        guard error == 0 else { throw RingError("MPI does not start: error \(error)") }
        (rank, size) = (Int(ring_rank()), Int(ring_size()))
    }

    /// Leaves the others; the last call, which waits for all of them.
    public func end() { ring_end() }

    /// Ends all ranks at once.
    public func abort(_ status: Int32) -> Never {
        ring_abort(status)
        exit(status)
    }

    public func resetMeasures() { (bytesSent, secondsWaiting) = (0, 0) }

    public var next: Int { (rank + 1) % size }
    public var previous: Int { (rank + size - 1) % size }

    /// The version of the MPI library.
    public static var library: String {
        let version = String(cString: ring_version())
        return String(version.prefix { $0 != "\n" && $0 != "," })
    }

    // MARK: - Messages

    public func send(
        _ bytes: UnsafeRawBufferPointer, to rank: Int, tag: Int, _ what: @escaping @autoclosure () -> String
    ) throws(RingError) -> Request {
        try send(by: ring_send, bytes, to: rank, tag: tag, what)
    }

    private func send(
        by function: (UnsafeRawPointer?, Int, Int32, Int32, UnsafeMutablePointer<ring_request>) -> Int32,
        _ bytes: UnsafeRawBufferPointer, to rank: Int, tag: Int, _ what: @escaping () -> String
    ) throws(RingError) -> Request {
        bytesSent += bytes.count
        var raw = ring_request()
        try check(function(bytes.baseAddress, bytes.count, Int32(rank), Int32(tag), &raw))
        return Request(raw: raw, what: { "rank \(rank) to take \(what())" })
    }

    public func receive(
        _ bytes: UnsafeMutableRawBufferPointer, from rank: Int, tag: Int, _ what: @escaping @autoclosure () -> String
    ) throws(RingError) -> Request {
        var raw = ring_request()
        try check(ring_receive(bytes.baseAddress, bytes.count, Int32(rank), Int32(tag), &raw))
        return Request(raw: raw, what: { "\(what()) from rank \(rank)" })
    }

    /// As ``send(_:to:tag:_:)``, to a rank that takes it when it has a place for it.
    func offer(
        _ bytes: UnsafeRawBufferPointer, to rank: Int, tag: Int, _ what: @escaping @autoclosure () -> String
    ) throws(RingError) -> Request {
        try send(by: ring_offer_send, bytes, to: rank, tag: tag, what)
    }

    /// An offer of another rank that has not been found before.
    func findOffer() throws(RingError) -> Offer? {
        var (raw, found) = (ring_offer(), Int32(0))
        try check(ring_find_offer(&raw, &found))
        return found == 0 ? nil : Offer(raw: raw)
    }

    /// Once for each offer.
    func take(
        _ offer: Offer, into bytes: UnsafeMutableRawBufferPointer, _ what: @escaping @autoclosure () -> String
    ) throws(RingError) -> Request {
        guard bytes.count == offer.bytes else {
            throw RingError("rank \(offer.rank) sends \(offer.bytes) bytes for \(what()), not \(bytes.count)")
        }
        var (raw, request) = (offer.raw, ring_request())
        try check(ring_take_offer(bytes.baseAddress, &raw, &request))
        return Request(raw: request, what: { "\(what()) from rank \(offer.rank)" })
    }

    /// Whether the message has arrived, or may be forgotten.
    public func isDone(_ request: inout Request) throws(RingError) -> Bool {
        var done: Int32 = 0
        try check(ring_test(&request.raw, &done))
        return done != 0
    }

    /// Waits for a message.
    ///
    /// - Throws: ``RingError`` when it did not come in ``patience`` seconds.
    public func wait(_ request: inout Request) throws(RingError) {
        // A copy, so that the condition may change it.
        var waiting = request
        try wait(until: { () throws(RingError) in try self.isDone(&waiting) }, for: request.what)
        request = waiting
    }

    /// Waits until something is so: looks again and again, at first without a pause.
    public func wait(
        until isSo: () throws(RingError) -> Bool, for what: () -> String
    ) throws(RingError) {
        if try isSo() { return }
        let start = secondsNow()
        var looks = 0
        defer { secondsWaiting += secondsNow() - start }
        while try !isSo() {
            looks += 1
            // A neighbour on the same CPU gets on meanwhile; long waits leave the CPU alone.
            if looks < 1000 { sched_yield() } else { usleep(100) }
            guard looks % 64 != 0 || secondsNow() - start < patience else {
                throw RingError(
                    "waited \(patience) s in vain for \(what()): it does not answer, or computes for so long")
            }
        }
    }

    /// The bytes of every rank, in order: as many from each.
    public func gather(_ bytes: [UInt8]) throws(RingError) -> [[UInt8]] {
        var all = [UInt8](repeating: 0, count: bytes.count * size)
        var failure: RingError?
        bytes.withUnsafeBytes { own in
            all.withUnsafeMutableBytes { all in
                do throws(RingError) {
                    var raw = ring_request()
                    try check(ring_gather(own.baseAddress, own.count, all.baseAddress, &raw))
                    var request = Request(raw: raw, what: { "all ranks to join" })
                    try wait(&request)
                } catch { failure = error }
            }
        }
        if let failure { throw failure }
        return (0..<size).map { Array(all[$0 * bytes.count..<($0 + 1) * bytes.count]) }
    }

    private func check(_ error: Int32) throws(RingError) {
        guard error == 0 else { throw RingError("MPI: \(String(cString: ring_error(error)))") }
    }
}

/// Seconds of a clock that nobody sets.
public func secondsNow() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
}

/// Seconds that `body` takes.
public func timed(_ body: () throws -> Void) rethrows -> Double {
    let start = secondsNow()
    try body()
    return secondsNow() - start
}
