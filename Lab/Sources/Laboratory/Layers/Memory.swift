// SPDX-License-Identifier: Apache-2.0
// Memory.swift - the numbers of a model: one flat buffer, and where in it each tensor lies.

/// What went wrong, in words for whoever started the run.
public struct LabError: Error, Sendable, Equatable, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}

/// Floats at a fixed address, all 0 at first: parameters, gradients, moments. One thread writes at a time.
public final class FlatBuffer: @unchecked Sendable {
    public let base: UnsafeMutablePointer<Float>
    public let count: Int

    public init(count: Int) {
        self.count = count
        base = .allocate(capacity: max(count, 1))
        clear()
    }

    deinit { base.deallocate() }

    public func clear() { base.initialize(repeating: 0, count: max(count, 1)) }

    public var array: [Float] { Array(UnsafeBufferPointer(start: base, count: count)) }

    public subscript(slot: Slot) -> [Float] {
        get { Array(UnsafeBufferPointer(start: base + slot.offset, count: slot.count)) }
        set {
            precondition(newValue.count == slot.count, "a tensor keeps its size")
            newValue.withUnsafeBufferPointer { (base + slot.offset).update(from: $0.baseAddress!, count: slot.count) }
        }
    }

    func buffer(_ slot: Slot) -> UnsafeMutableBufferPointer<Float> {
        UnsafeMutableBufferPointer(start: base + slot.offset, count: slot.count)
    }

    func copy(_ other: FlatBuffer) {
        precondition(other.count == count, "buffers of one model")
        base.update(from: other.base, count: count)
    }

    func add(_ other: FlatBuffer) {
        precondition(other.count == count, "buffers of one model")
        let (sums, values) = (base, other.base)
        for index in 0..<count { sums[index] += values[index] }
    }

    /// Adds to a slot, element by element.
    func add(_ values: [Float], to slot: Slot) {
        precondition(values.count == slot.count, "a gradient has the size of its tensor")
        for index in 0..<slot.count { base[slot.offset + index] += values[index] }
    }
}

/// A tensor within a flat buffer.
public struct Slot: Sendable, Hashable {
    public let name: String
    public let shape: [Int]
    public let offset: Int
    /// Whether weight decay applies: to matrices, not to gains, biases, sinks.
    public let decays: Bool

    public var count: Int { shape.reduce(1, *) }
}

/// The tensors of a model, in the order in which they were added. First values are drawn when they are added.
public struct ParameterList: Sendable {
    public private(set) var slots: [Slot] = []
    public private(set) var count = 0
    private(set) var first: [[Float]] = []

    mutating func add(_ name: String, _ shape: [Int], decays: Bool = false, _ values: [Float]) -> Slot {
        let slot = Slot(name: name, shape: shape, offset: count, decays: decays)
        precondition(values.count == slot.count, "first values fit the shape")
        slots.append(slot)
        first.append(values)
        count += slot.count
        return slot
    }

    /// A buffer that holds the first values.
    public func firstValues() -> FlatBuffer {
        let buffer = FlatBuffer(count: count)
        for (slot, values) in zip(slots, first) { buffer[slot] = values }
        return buffer
    }
}
