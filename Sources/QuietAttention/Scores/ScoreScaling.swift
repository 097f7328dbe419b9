// SPDX-License-Identifier: Apache-2.0
// ScoreScaling.swift - what the scale of a row's scores is multiplied by.

/// A number of keys that a formula refers to.
public enum KeyCount: Sendable, Hashable {
    /// The same for all rows, such as the length of training; positive.
    case fixed(Double)
    /// The keys n[i] that row i sees, by every mask: range, key length, boolean mask, bias of -inf. A sink never counts.
    case visible
}

/// A factor per row: scores are `scale * f[i] * q[i].k[j]`, with n[i] the keys that row i sees by every mask.
///
/// Attention gets flatter as keys are added; a scale that grows with log n keeps its entropy near what it was at the length
/// of training. Under a sink any such factor also moves the sink's share: the sink is not scaled.
///
/// A row that sees no key has factor 0; there is nothing it would scale.
///
/// *Sources*: Su, "Attention scaling by entropy invariance", 2021 (kexue.fm 8823, 9034), and clipped, 2024 (9948); scalable
/// softmax: Nakanishi, arXiv 2501.19399.
public enum ScoreScaling: Sendable {
    /// `f = 1`.
    case constant
    /// `f[i] = max(1, log n[i] / log base)`: as in training up to `base` keys, sharper beyond. The form to start with: up to
    /// `base` keys nothing changes, where the other forms flatten short rows, and a row of one key keeps its score.
    case clippedLogKeys(base: Double = 512)
    /// `f[i] = log n[i] / log base`. With n = 1 the factor is 0: harmless under softmax, whereas softmax_1 then gives the
    /// only key one half, whatever its score.
    case logKeys(base: Double = 512)
    /// `f[i] = kappa log n[i] / sqrt(d)`, which makes the whole scale `kappa log n[i] / d` where it is 1 / sqrt(d).
    case logKeysPerDimension(kappa: Double)
    /// `f[i] = s[h] log n[i]`, one learned s per query head: scalable softmax.
    case scalableSoftmax([Double])
    /// `f` as given, `[batch or 1, heads or 1, queries or 1, 1]`: keys has extent 1.
    case table(BroadcastTensor<Double>)

    var isConstant: Bool { if case .constant = self { true } else { false } }

    /// Whether factors depend on the keys that a row sees.
    var countsKeys: Bool {
        switch self {
        case .constant, .table: false
        case .clippedLogKeys, .logKeys, .logKeysPerDimension, .scalableSoftmax: true
        }
    }

    /// The name, as errors call it.
    var name: String {
        switch self {
        case .constant: "constant"
        case .clippedLogKeys: "clipped log n"
        case .logKeys: "log n"
        case .logKeysPerDimension: "kappa log n / sqrt(d)"
        case .scalableSoftmax: "scalable softmax"
        case .table: "a table"
        }
    }

    /// Whether factors differ between heads.
    var isPerHead: Bool {
        switch self {
        case .scalableSoftmax: true
        case .table(let table): table.extents.heads > 1
        default: false
        }
    }

    /// The factor of a row that sees `keys` keys.
    func factor(keys: Int, headDimension: Int, item: Int, head: Int, query: Int) -> Double {
        switch self {
        case .constant: return 1
        case .table(let table):
            let strides = table.strides
            return table.values[item * strides.batch + head * strides.heads + query * strides.queries]
        case _ where keys == 0: return 0
        case .clippedLogKeys(let base):
            return max(1, ElementaryFunctions.logarithm(Double(keys)) / ElementaryFunctions.logarithm(base))
        case .logKeys(let base):
            return ElementaryFunctions.logarithm(Double(keys)) / ElementaryFunctions.logarithm(base)
        case .logKeysPerDimension(let kappa):
            return kappa * ElementaryFunctions.logarithm(Double(keys)) / Double(headDimension).squareRoot()
        case .scalableSoftmax(let s): return s[head] * ElementaryFunctions.logarithm(Double(keys))
        }
    }

    /// Checks bases, counts and extents.
    func check(fits shape: AttentionShape) throws(AttentionError) {
        switch self {
        case .constant: break
        case .clippedLogKeys(let base), .logKeys(let base):
            guard base > 1, base.isFinite else {
                throw AttentionError(
                    .scaling, "scaling.base", expected: "a finite number above 1", found: "\(base)")
            }
        case .logKeysPerDimension(let kappa):
            guard kappa.isFinite else {
                throw AttentionError(.scaling, "scaling.kappa", expected: "a finite number", found: "\(kappa)")
            }
        case .scalableSoftmax(let s):
            guard s.count == shape.queryHeads else {
                throw AttentionError(
                    .scaling, "scaling.scalableSoftmax", expected: "\(shape.queryHeads) numbers, one per query head",
                    found: "\(s.count)")
            }
        case .table(let table):
            try table.check("scaling.table", fits: shape, keys: 1)
        }
    }
}
