// SPDX-License-Identifier: Apache-2.0
// ReferenceProblem.swift - the sizes, the sink, the scale and the masks of one attention problem.

/// What is to be computed, apart from the queries, keys and values themselves:
///
///     x[i][j] = cap(scale * rowFactor[i] * q[i].k[j]) - slope * |place[i] - j| + bias[i][j]
///     p[i][j] = e^x[i][j] / (e^s + sum_k e^x[i][k])        over the keys k that row i sees, or another normaliser
///     output[i] = sum_j p[i][j] v[j]
///
/// for every batch item and every query head. `s` is the head's sink logit: -infinity gives softmax, 0 softmax_1
/// (Miller's QuietAttention), log n softmax_n, anything else a learned sink as in gpt-oss.
///
/// Query head `h` uses key/value head `h / (queryHeads / keyValueHeads)`.
///
/// Tensors are contiguous arrays of `Float`:
///
/// | tensor | shape |
/// |---|---|
/// | queries | [batch, queryHeads, queries, headDimension] |
/// | keys | [batch, keyValueHeads, keys, headDimension] |
/// | values | [batch, keyValueHeads, keys, valueDimension] |
///
/// A reference is called by tests with arguments known to fit: what does not fit stops the program.
public struct ReferenceProblem: Sendable {
    /// 0 and up.
    public var batch: Int
    /// A multiple of ``keyValueHeads``.
    public var queryHeads: Int
    public var keyValueHeads: Int
    /// Rows per head, 0 and up.
    public var queries: Int
    /// Keys per head, 0 and up.
    public var keys: Int
    /// Length of a query and of a key, 1 and up.
    public var headDimension: Int
    /// Length of a value and of an output row, 1 and up.
    public var valueDimension: Int
    /// Finite, of any sign; `scale * log2(e)` is finite in Float.
    public var scale: Double
    /// One logit per query head, in the units of x; never scaled, biased or masked. -infinity is no sink; otherwise
    /// `sink * log2(e)` is finite in Float.
    public var sinks: [Float]
    /// Row i sees no key before `i + firstKeyOffset`; nil is no bound. Where a row stands elsewhere than at key
    /// `i + keys - queries`, both offsets are as much further.
    public var firstKeyOffset: Int?
    /// Row i sees no key from `i + lastKeyOffset` on; nil is no bound.
    public var lastKeyOffset: Int?
    /// One per batch item, n: no row sees a key from there on, and row i stands at key `i + n - queries`.
    public var keyLengths: [Int]?
    /// Queries are padded as keys are: row i stands at key `i + keys - queries`, whatever the key length.
    public var padsQueries = false
    /// The key at which each row stands, [batch, queries]; nil: see ``keyLengths``.
    public var places: [Int]?
    /// False hides a key from a row.
    public var allowed: ReferenceBroadcast<Bool>?
    /// Added to the scaled scores. A bias of -infinity hides the key, as `allowed` does.
    public var bias: ReferenceBroadcast<Float>?
    /// One per row, [batch, queryHeads, queries]: what `scale` is multiplied by.
    public var rowFactors: [Double]?
    /// Scores become cap * tanh(score / cap), before ALiBi and bias; positive.
    public var softcap: Double?
    /// One per query head: a score falls by slope times the distance of key j from where the row stands.
    public var alibiSlopes: [Float]?
    /// How scores become weights.
    public var normaliser = ReferenceNormaliser.softmax
    /// One per row, [batch, queryHeads, queries]: the constant of the normaliser; nil is 0.
    public var rowConstants: [Float]?
    /// What the keys and values given are kept in, and computed with.
    public var storage = ReferenceStorage.float32
    /// Which numbers are multiplied.
    public var products = ReferenceProducts.float32

    /// A problem without masks and bias.
    ///
    /// - Parameters:
    ///   - keyValueHeads: `queryHeads` if nil.
    ///   - valueDimension: `headDimension` if nil.
    ///   - scale: 1 / sqrt(headDimension) if nil.
    ///   - sinks: One logit per query head.
    public init(
        batch: Int = 1, queryHeads: Int = 1, keyValueHeads: Int? = nil, queries: Int, keys: Int, headDimension: Int,
        valueDimension: Int? = nil, scale: Double? = nil, sinks: [Float]
    ) {
        self.batch = batch
        self.queryHeads = queryHeads
        self.keyValueHeads = keyValueHeads ?? queryHeads
        self.queries = queries
        self.keys = keys
        self.headDimension = headDimension
        self.valueDimension = valueDimension ?? headDimension
        self.scale = scale ?? 1 / Double(headDimension).squareRoot()
        self.sinks = sinks
    }

    /// Every row sees the keys up to its own, where the last row's own key is the last key ("bottom right"). With more
    /// queries than keys the first rows see none.
    public var causal: ReferenceProblem {
        var result = self
        result.lastKeyOffset = keys - queries + 1
        return result
    }

    /// Every row sees its own key, as in ``causal``, and the `width - 1` before it.
    public func window(_ width: Int) -> ReferenceProblem {
        var result = causal
        result.firstKeyOffset = keys - queries - width + 1
        return result
    }
}

/// What keys and values are kept in. Those of 16 bits are given rounded.
public enum ReferenceStorage: Sendable {
    case float32
    /// Integers from -127 to 127 and one scale per key and per value; ``ReferenceProblem/roundedToInt8(_:dimension:)``.
    case int8
}

/// A tensor [batch, heads, queries, keys] of which each of the first three axes may be 1 long and then serves all.
public struct ReferenceBroadcast<Element: Sendable>: Sendable {
    public var values: [Element]
    /// [batch or 1, queryHeads or 1, queries or 1, keys].
    public var extents: [Int]

    public init(_ values: [Element], extents: [Int]) {
        precondition(extents.count == 4 && extents.allSatisfy { $0 >= 0 }, "four extents, not \(extents)")
        precondition(values.count == extents.reduce(1, *), "\(values.count) values do not fill \(extents)")
        self.values = values
        self.extents = extents
    }

    /// Where row (batch, head, query) starts in `values`.
    func rowStart(batch: Int, head: Int, query: Int) -> Int {
        let batch = extents[0] == 1 ? 0 : batch
        let head = extents[1] == 1 ? 0 : head
        let query = extents[2] == 1 ? 0 : query
        return ((batch * extents[1] + head) * extents[2] + query) * extents[3]
    }

    func require(_ name: String, toFit problem: ReferenceProblem) {
        let full = [problem.batch, problem.queryHeads, problem.queries]
        precondition(
            zip(extents, full).allSatisfy { $0 == 1 || $0 == $1 } && extents[3] == problem.keys,
            "\(name) \(extents) does not fit \(full + [problem.keys])")
    }
}

/// What a forward pass gives. Rows are ordered [batch, queryHeads, queries].
public struct ForwardResult<Scalar: BinaryFloatingPoint & Sendable>: Sendable {
    /// [batch, queryHeads, queries, valueDimension].
    public var output: [Scalar]
    /// log(e^s + sum_j e^x[j]) of each row: natural units, sink included.
    public var logSumExp: [Scalar]
    /// e^s / (e^s + sum_j e^x[j]) of each row: the weight that went to the sink.
    public var sinkShare: [Scalar]
}
