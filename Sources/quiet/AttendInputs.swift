// SPDX-License-Identifier: Apache-2.0
// AttendInputs.swift - queries, keys and values read from a file, and checked against each other.

import ArgumentParser
import QuietAttention
import Safetensors

/// The shapes of queries, keys and values that fit together.
struct AttendShapes {
    /// Of queries, keys and values.
    let tensors: [TensorDescription]
    let shape: AttentionShape
    let layout: Layout
    /// Whether the shapes would also fit in the other layout, and none was asked for.
    let isAmbiguous: Bool

    init(_ file: SafetensorsFile, _ names: TensorNames) throws {
        let tensors = try names.all.map { try file.tensor(named: $0) }
        self.tensors = tensors
        layout = names.layout ?? .bhsd
        for tensor in tensors where tensor.shape.count != 4 {
            throw Failure(
                "tensor \(quoted(tensor.name)): expected the shape [\(layout.dimensions.joined(separator: ", "))], got "
                    + shown(shape: tensor.shape))
        }
        let fitsOther = layout.other.fits(tensors)
        isAmbiguous = names.layout == nil && fitsOther
        if names.layout == nil { try Self.refuseSequencesThatLookLikeHeads(tensors) }
        do {
            try layout.check(tensors)
            shape = try layout.shape(tensors)
        } catch  where fitsOther {
            throw Failure("\(error); with --layout \(layout.other.rawValue) the shapes fit")
        }
    }

    /// What is refused where heads are taken for a sequence.
    private static let refusals: Set<AttentionError.Kind> = [
        .elementCount, .headGroups, .sinkCount, .keyLength, .broadcastExtent, .alibi, .positionCount,
    ]

    /// Runs `body`, which checks other tensors against the shape; what it refuses may be for the wrong layout.
    func checking<Result>(_ body: () throws -> Result) throws -> Result {
        do {
            return try body()
        } catch
            where isAmbiguous
            && (error is Failure || (error as? AttentionError).map { Self.refusals.contains($0.kind) } == true)
        {
            throw Failure("\(error); --layout bshd reads [batch, sequence, heads, dimension]")
        }
    }

    /// As many heads of queries as of keys, and several times as many queries as keys: where grouped heads stand behind the
    /// sequence this is what they look like, and rows of another meaning would come out without a word.
    private static func refuseSequencesThatLookLikeHeads(_ tensors: [TensorDescription]) throws {
        let (q, k) = (tensors[0].shape, tensors[1].shape)
        guard q[1] == k[1], q[1] > 1, k[2] > 0, q[2] > k[2], q[2].isMultiple(of: k[2]) else { return }
        throw Failure(
            "tensors \(q) and \(k) may be \(q[2]) heads over \(k[2]), in a sequence of \(q[1]), or \(q[2]) queries over "
                + "\(k[2]) keys: expected --layout bshd for [batch, sequence, heads, dimension], or --layout bhsd")
    }
}

/// Queries, keys and values that fit together.
struct AttendInputs {
    private let shapes: AttendShapes
    var queries, keys, values: [Float]
    /// `[1, 12, 192, 32] F32`, for each of the three.
    let descriptions: [String]

    var shape: AttentionShape { shapes.shape }
    /// That of the file; what is held here is [batch, heads, sequence, dimension].
    var layout: Layout { shapes.layout }

    init(_ file: SafetensorsFile, _ names: TensorNames) throws {
        shapes = try AttendShapes(file, names)
        func read(_ tensor: TensorDescription) throws -> [Float] {
            let elements = try file.floats(named: tensor.name)
            if names.layout != .bshd { return elements }
            return exchanged(elements, tensor.shape[1], tensor.shape[2], dimension: tensor.shape[3])
        }
        let tensors = shapes.tensors
        (queries, keys, values) = (try read(tensors[0]), try read(tensors[1]), try read(tensors[2]))
        descriptions = tensors.map { "\($0.shape) \($0.elementType.rawValue)" }
    }

    func checking<Result>(_ body: () throws -> Result) throws -> Result { try shapes.checking(body) }

    /// Rows `[batch, H, L, ...]` of an output as the file's layout has them.
    func arranged(_ rows: [Float], dimension: Int) -> [Float] {
        layout == .bhsd ? rows : exchanged(rows, shape.queryHeads, shape.queries, dimension: dimension)
    }

    /// The same of rows `[batch, G, S, ...]`.
    func arrangedKeys(_ rows: [Float], dimension: Int) -> [Float] {
        layout == .bhsd ? rows : exchanged(rows, shape.keyValueHeads, shape.keys, dimension: dimension)
    }

    /// The shapes as lines of a report.
    var lines: String {
        let shape = shapes.shape
        let order =
            layout == .bshd
            ? ", bshd"
            : shapes.isAmbiguous
                ? ", taken for \(shape.queryHeads) heads of \(shape.queries) rows; --layout bshd takes it for "
                    + "\(shape.queries) heads of \(shape.queryHeads)" : ""
        return """
            queries     \(descriptions[0])\(order)
            keys        \(descriptions[1])
            values      \(descriptions[2])
            """
    }
}

/// `[..., outer, inner, dimension]` as `[..., inner, outer, dimension]`.
func exchanged(_ elements: [Float], _ outer: Int, _ inner: Int, dimension: Int) -> [Float] {
    guard !elements.isEmpty else { return elements }
    return [Float](unsafeUninitializedCapacity: elements.count) { result, count in
        for start in stride(from: 0, to: elements.count, by: outer * inner * dimension) {
            for (i, o) in (0..<inner).lazy.flatMap({ i in (0..<outer).lazy.map { (i, $0) } }) {
                let (to, from) = (start + (i * outer + o) * dimension, start + (o * inner + i) * dimension)
                for channel in 0..<dimension { result[to + channel] = elements[from + channel] }
            }
        }
        count = elements.count
    }
}

/// Orders of dimensions, by their initials.
enum Layout: String, CaseIterable, ExpressibleByArgument {
    case bhsd, bshd

    var library: AttentionLayout {
        switch self {
        case .bhsd: .batchHeadsSequence
        case .bshd: .batchSequenceHeads
        }
    }

    var other: Layout { self == .bhsd ? .bshd : .bhsd }

    var dimensions: [String] {
        self == .bhsd
            ? ["batch", "heads", "sequence", "dimension"] : ["batch", "sequence", "heads", "dimension"]
    }

    fileprivate var heads: Int { self == .bhsd ? 1 : 2 }
    fileprivate var sequence: Int { self == .bhsd ? 2 : 1 }

    /// Rows of the output: `[batch, H, L]` or `[batch, L, H]`.
    func rows(_ shape: AttentionShape) -> [Int] {
        self == .bhsd
            ? [shape.batch, shape.queryHeads, shape.queries] : [shape.batch, shape.queries, shape.queryHeads]
    }

    /// Rows of keys and values.
    func keyRows(_ shape: AttentionShape) -> [Int] {
        self == .bhsd
            ? [shape.batch, shape.keyValueHeads, shape.keys] : [shape.batch, shape.keys, shape.keyValueHeads]
    }

    /// Refuses queries, keys and values of four dimensions that do not fit each other.
    fileprivate func check(_ tensors: [TensorDescription]) throws {
        let (q, k, v) = (tensors[0], tensors[1], tensors[2])
        for (tensor, axis, other) in [
            (k, 0, q), (v, 0, q), (v, heads, k), (v, sequence, k), (k, 3, q),
        ] where tensor.shape[axis] != other.shape[axis] {
            throw Failure(
                "tensor \(quoted(tensor.name)): expected \(dimensions[axis]) \(other.shape[axis]), as "
                    + "\(quoted(other.name)) has, got \(tensor.shape[axis]) in the shape \(shown(shape: tensor.shape))")
        }
    }

    fileprivate func shape(_ tensors: [TensorDescription]) throws -> AttentionShape {
        let (q, k, v) = (tensors[0].shape, tensors[1].shape, tensors[2].shape)
        do {
            return try AttentionShape(
                batch: q[0], queryHeads: q[heads], keyValueHeads: k[heads], queries: q[sequence], keys: k[sequence],
                headDimension: q[3], valueDimension: v[3])
        } catch {
            guard error.kind == .headGroups else { throw error }
            throw Failure(
                "tensor \(quoted(tensors[1].name)): expected heads that divide the \(q[heads]) of \(quoted(tensors[0].name)), "
                    + "got \(k[heads]) in the shape \(shown(shape: k))")
        }
    }

    fileprivate func fits(_ tensors: [TensorDescription]) -> Bool {
        (try? check(tensors)) != nil && (try? shape(tensors)) != nil
    }
}
