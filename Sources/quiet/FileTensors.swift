// SPDX-License-Identifier: Apache-2.0
// FileTensors.swift - tensors of a file that must have a certain shape.

import QuietAttention
import Safetensors

/// An option whose value is the name of a tensor; nil: it was not given.
struct NamedOption {
    let name: String
    let tensor: String?

    init(_ name: String, _ tensor: String?) { (self.name, self.tensor) = (name, tensor) }

    /// What reports call it: `--query-gain` is query_gain there.
    var member: String { String(name.dropFirst(2).map { $0 == "-" ? "_" : $0 }) }
    /// What its gradient is called: that of `--query-gain` dquery_gain.
    var gradient: String { "d" + member }
}

extension SafetensorsFile {
    /// Returns the shape of a tensor, which must be one of these.
    ///
    /// - Parameter meaning: what the tensor holds, for the message of the refusal.
    @discardableResult
    func checkShape(of name: String, _ shapes: [Int]..., meaning: String) throws -> [Int] {
        try checkShape(of: name, shapes, meaning: meaning)
    }

    /// Returns the shape of a tensor, which must be one of these.
    @discardableResult
    func checkShape(of name: String, _ shapes: [[Int]], meaning: String) throws -> [Int] {
        let found = try tensor(named: name).shape
        guard shapes.contains(found) else {
            let listed = shapes.map { "\($0)" }
            let expected = listed.dropLast().joined(separator: ", ")
            throw Failure(
                "tensor \(quoted(name)): expected the shape \(expected)\(expected.isEmpty ? "" : " or ")"
                    + "\(listed[listed.count - 1]), \(meaning), got \(found)")
        }
        return found
    }

    /// Returns the elements of a tensor that must have this shape.
    func floats(named name: String, shape: [Int], _ meaning: String) throws -> [Float] {
        try checkShape(of: name, shape, meaning: meaning)
        return try floats(named: name)
    }

    /// Returns the extents `[batch, heads, queries, keys]` of a tensor that batch items, heads or rows may share: there its
    /// extent is 1, or missing if there is none before it.
    ///
    /// - Parameter keys: nil: the tensor has no such dimension, and 1 is returned for it.
    func sharedShape(of name: String, _ shape: AttentionShape, keys: Int?) throws -> [Int] {
        let found = try tensor(named: name).shape
        let rows = [shape.batch, shape.queryHeads, shape.queries].map { $0 == 1 ? [1] : [1, $0] }
        let expected = rows + (keys.map { [[$0]] } ?? [])
        let fits = zip(found.reversed(), expected.reversed()).allSatisfy { $1.contains($0) }
        guard fits, (1...expected.count).contains(found.count) else {
            let listed = expected.map { $0.map(String.init).joined(separator: " or ") }
            throw Failure(
                "tensor \(quoted(name)): expected the shape [\(listed.joined(separator: ", "))], or its last "
                    + "dimensions alone, got \(found)")
        }
        let missing = [Int](repeating: 1, count: expected.count - found.count)
        return missing + found + (keys == nil ? [1] : [])
    }
}
