// SPDX-License-Identifier: Apache-2.0
// RopeScaling.swift - a scaling of rotary embeddings as it is written on the command line.

import ArgumentParser
import QuietAttention

/// Numbers of scalings that are as many as pairs.
struct RopeLists {
    /// Of longrope.
    var shortFactor, longFactor: [Double]?
    /// One's own angles, in the place of a scaling.
    var thetas: [Double]?

    /// What can be checked before a file is read.
    static func placeholders(channels: Int) -> RopeLists {
        let ones = [Double](repeating: 1, count: max(0, channels / 2))
        return RopeLists(shortFactor: ones, longFactor: ones)
    }
}

/// `<rope_type>=<number>,...,<key>=<value>,...`
struct RopeScaling: CustomStringConvertible {
    private enum Kind: String, CaseIterable {
        case none, linear, ntk, dynamic, yarn, llama3, longrope, xpos

        /// What stands first, and must.
        var leading: [String] {
            switch self {
            case .none, .xpos: []
            case .linear, .ntk: ["factor"]
            case .dynamic, .yarn, .longrope: ["factor", "original_max_position_embeddings"]
            case .llama3: ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
            }
        }

        /// What may follow; the last one also without its name.
        var following: [String] {
            switch self {
            case .none, .linear, .ntk, .llama3: []
            case .dynamic: ["length"]
            case .yarn: ["beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"]
            case .longrope: ["attention_factor", "length"]
            case .xpos: ["scale_base"]
            }
        }
    }

    /// As it was written.
    let description: String
    private let kind: Kind
    private let values: [String: Double]

    static let none = RopeScaling(description: "none", kind: .none, values: [:])

    /// Whether there is nothing to be done.
    var isNone: Bool { kind == .none }

    private init(description: String, kind: Kind, values: [String: Double]) {
        (self.description, self.kind, self.values) = (description, kind, values)
    }

    init(parsing text: String) throws {
        let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        let names = ["default": Kind.none, "pi": .linear]
        guard let kind = names[parts[0]] ?? Kind(rawValue: parts[0]), kind != .none || parts.count == 1 else {
            throw ValidationError(
                "expected none, linear=<f>, ntk=<f>, dynamic=<f>,<L0>[,<N>], yarn=<f>,<L0>[,<key>=<value>...], "
                    + "llama3=<f>,<low>,<high>,<L0>, longrope=<f>,<L0>[,<key>=<value>...] or xpos[=<b>]")
        }
        let values = try Self.values(parts.count == 2 ? parts[1] : nil, of: kind)
        self.init(description: kind == .none ? "none" : text, kind: kind, values: values)
    }

    private static func values(_ text: String?, of kind: Kind) throws -> [String: Double] {
        var values: [String: Double] = [:]
        var unnamed = kind.leading + (kind == .dynamic || kind == .xpos ? kind.following : [])
        for item in text?.split(separator: ",", omittingEmptySubsequences: false) ?? [] {
            let pair = item.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            let name = pair.count == 2 ? pair[0] : unnamed.first ?? ""
            unnamed.removeAll { $0 == name }
            guard (kind.leading + kind.following).contains(name), values[name] == nil else {
                let keys = (kind.leading + kind.following).joined(separator: ", ")
                throw ValidationError(
                    "\(kind.rawValue): expected \(keys.isEmpty ? "nothing" : keys), each at most once, got \(item)")
            }
            values[name] = try number(pair[pair.count - 1], name)
        }
        if let missing = kind.leading.first(where: { values[$0] == nil }) {
            throw ValidationError("\(kind.rawValue): there is no \(missing)")
        }
        return values
    }

    private static func number(_ text: String, _ name: String) throws -> Double {
        if name == "truncate" {
            guard let isTrue = Bool(text) else {
                throw ValidationError("truncate: expected true or false, got \(text)")
            }
            return isTrue ? 1 : 0
        }
        guard let number = Double(text) else { throw ValidationError("\(name): expected a number, got \(text)") }
        let isLength = name == "length" || name == "original_max_position_embeddings"
        guard !isLength || Int(exactly: number) != nil else {
            throw ValidationError("\(name): expected a whole number, got \(text)")
        }
        return number
    }

    /// - Parameters:
    ///   - firstPosition: of the keys. The factors of xPos are smallest with the middle of the positions as their centre,
    ///     which changes no score.
    ///   - lists: longrope needs two of them.
    func library(firstPosition: Int, keys: Int, _ lists: RopeLists) throws -> RotaryEmbedding.Scaling {
        func value(_ name: String) -> Double { values[name] ?? .nan }
        func length(_ name: String) -> Int? { values[name].flatMap { Int(exactly: $0) } }
        if let thetas = lists.thetas { return .thetas(thetas) }
        let (factor, trained) = (value("factor"), length("original_max_position_embeddings") ?? 0)
        switch kind {
        case .none: return .none
        case .linear: return .linear(factor: factor)
        case .ntk: return .ntk(factor: factor)
        case .dynamic: return .dynamic(factor: factor, trainedLength: trained, length: length("length"))
        case .yarn:
            return .yarn(
                factor: factor, trainedLength: trained, betaFast: values["beta_fast"] ?? 32,
                betaSlow: values["beta_slow"] ?? 1, attentionFactor: values["attention_factor"],
                mscale: values["mscale"], mscaleAllDim: values["mscale_all_dim"], truncate: values["truncate"] != 0)
        case .llama3:
            return .llama3(
                factor: factor, lowFreqFactor: value("low_freq_factor"), highFreqFactor: value("high_freq_factor"),
                trainedLength: trained)
        case .longrope:
            guard let short = lists.shortFactor, let long = lists.longFactor else {
                throw ValidationError(
                    "longrope: needs --rope-short-factor and --rope-long-factor, which commands that read a file have")
            }
            return .longrope(
                shortFactor: short, longFactor: long, factor: factor, trainedLength: trained,
                attentionFactor: values["attention_factor"], length: length("length"))
        case .xpos: return .xPos(scaleBase: values["scale_base"] ?? 512, centre: firstPosition &+ keys / 2)
        }
    }

    /// Whether longrope asks for its lists.
    var needsLists: Bool { kind == .longrope }
}
