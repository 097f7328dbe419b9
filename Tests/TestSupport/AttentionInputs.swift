// SPDX-License-Identifier: Apache-2.0
// AttentionInputs.swift - the data of a case, and changes to them.

/// The data of a case. Tensors are [batch][heads][sequence][dimension] here, whatever the case's layout is, and hold
/// values that the case's storage type can hold.
public struct AttentionInputs: Sendable {
    public var queries, keys, values: [Float]
    /// One per query head, natural units.
    public var sinks: [Float]
    public var scale: Double
    /// One per batch item.
    public var keyLengths: [Int]?
    public var allowed: (values: [Bool], extents: [Int])?
    public var bias: (values: [Float], extents: [Int])?
}

extension AttentionCase {
    /// The case with these sinks given as logits.
    public func with(sinks: [Float], _ inputs: inout AttentionInputs) -> AttentionCase {
        inputs.sinks = sinks
        var result = self
        result.sink = .amid
        return result
    }

    /// The case with the unit matrix as values, so that output row i holds the weights of row i's keys.
    public func withUnitValues(_ inputs: inout AttentionInputs) -> AttentionCase {
        var result = self
        result.valueDimension = max(1, keys)
        inputs.values = (0..<batch * keyValueHeads * keys * result.valueDimension).map {
            $0 / result.valueDimension % keys == $0 % result.valueDimension ? 1 : 0
        }
        return result
    }

    /// The sink logits that the case's heads have, after changes of ``AttentionInputs/sinks``; per row.
    public func sinkOfRow(_ row: Int, _ inputs: AttentionInputs) -> Float {
        inputs.sinks[row / queries % queryHeads]
    }

    public var rowCount: Int { batch * queryHeads * queries }
}
