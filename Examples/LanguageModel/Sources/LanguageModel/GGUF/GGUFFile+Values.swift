// SPDX-License-Identifier: Apache-2.0
// GGUFFile+Values.swift - the values of a file's metadata as what a model expects them to be, and floats of its tensors.

extension GGUFFile {
    public func string(_ key: String) throws(GGUFError) -> String {
        guard case .string(let text) = try value(key) else { throw .wrongType(key: key, expected: "a string") }
        return text
    }

    public func strings(_ key: String) throws(GGUFError) -> [String] {
        guard case .strings(let texts) = try value(key) else {
            throw .wrongType(key: key, expected: "an array of strings")
        }
        return texts
    }

    public func integers(_ key: String) throws(GGUFError) -> [Int64] {
        guard case .integers(let integers) = try value(key) else {
            throw .wrongType(key: key, expected: "an array of integers")
        }
        return integers
    }

    /// An integer within a range; `fallback` where the file has none, within the same.
    public func integer(_ key: String, in range: ClosedRange<Int>, fallback: Int? = nil) throws(GGUFError) -> Int {
        let integer: Int? =
            switch metadata[key] == nil && fallback != nil ? nil : try value(key) {
            case nil: fallback
            case .unsigned(let integer): Int(exactly: integer)
            case .signed(let integer): Int(integer)
            default: throw .wrongType(key: key, expected: "an integer")
            }
        guard let integer, range.contains(integer) else {
            throw .invalidValue(
                key: key, found: integer.map(String.init) ?? "too large",
                expected: "\(range.lowerBound) to \(range.upperBound)")
        }
        return integer
    }

    /// A finite number above 0; `fallback` where the file has none.
    public func positiveNumber(_ key: String, fallback: Double? = nil) throws(GGUFError) -> Double {
        if let fallback, metadata[key] == nil { return fallback }
        guard case .float(let number) = try value(key) else { throw .wrongType(key: key, expected: "a float") }
        guard number > 0, number.isFinite else {
            throw .invalidValue(key: key, found: "\(number)", expected: "a finite number above 0")
        }
        return number
    }

    private func value(_ key: String) throws(GGUFError) -> GGUFValue {
        guard let value = metadata[key] else { throw .missing(key: key) }
        return value
    }

    /// The tensor of that name, of that shape.
    public func tensor(_ name: String, shape: [Int]) throws(GGUFError) -> GGUFTensor {
        guard let tensor = tensor(named: name) else { throw .noSuchTensor(name) }
        guard tensor.shape == shape else {
            throw .unexpectedShape(tensor: name, shape: tensor.shape, expected: shape)
        }
        return tensor
    }

    /// The elements of a vector of float32.
    public func floats(_ name: String, count: Int) throws(GGUFError) -> [Float] {
        let tensor = try tensor(name, shape: [count])
        guard tensor.type == .f32 else { throw .unsupportedTensor(name, type: tensor.type.name, expected: "F32") }
        var floats = [Float](repeating: 0, count: count)
        var failure: GGUFError?
        floats.withUnsafeMutableBytes { bytes in
            do throws(GGUFError) { try read(tensor, rows: 0..<1, into: bytes) } catch { failure = error }
        }
        if let failure { throw failure }
        return floats
    }
}
