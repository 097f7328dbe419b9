// SPDX-License-Identifier: Apache-2.0
// PositionTests.swift - attention with positions and norms, through the public API: the reference's bits, and what is true
// of each encoding.

import AttentionReference
import Foundation
import SeededInputs
import TestSupport
import Testing

@testable import QuietAttention

@Suite struct PositionTests {
    // MARK: - Bits

    /// Every feature, with what else may be asked for: 140 keys are two blocks and a part, 101 queries two calls.
    private static let shapes: [AttentionCase] = [
        AttentionCase(queries: 5, keys: 140, headDimension: 8, valueDimension: 6) {
            ($0.batch, $0.keyValueHeads, $0.group, $0.geometry) = (2, 2, 2, .causal)
        },
        AttentionCase(queries: 13, keys: 9, headDimension: 12) {
            ($0.sink, $0.storage, $0.layout) = (.amid, .bfloat16, .sequenceFirst)
        },
        AttentionCase(queries: 101, keys: 70, headDimension: 4) { ($0.geometry, $0.bias) = (.window(30), .normal) },
        AttentionCase(queries: 9, keys: 70, headDimension: 8) {
            ($0.geometry, $0.group, $0.softcap, $0.hasALiBi, $0.scaling) = (.causal, 2, 3, true, .scalableSoftmax)
        },
        AttentionCase(queries: 7, keys: 80, headDimension: 6) {
            ($0.normaliser, $0.sink, $0.keyLengths) = (.sigmoidOverKeys, .none, .partial)
        },
        AttentionCase(queries: 6, keys: 75, headDimension: 8) {
            ($0.batch, $0.keyLengths, $0.geometry, $0.hasALiBi, $0.scaling) = (4, .partial, .window(9), true, .logKeys)
        },
        AttentionCase(queries: 6, keys: 75, headDimension: 8) {
            ($0.batch, $0.keyLengths, $0.padsQueries, $0.hasALiBi) = (3, .partial, true, true)
        },
        AttentionCase(queries: 7, keys: 80, headDimension: 6) { $0.normaliser = .clipped },
        // Rows that see nothing of the first chunk: keys are counted from the second one.
        AttentionCase(queries: 3, keys: 1090, headDimension: 4) { $0.geometry = .window(20) },
    ]

    /// What the reference gives, for the features and shapes.
    private static let solved: [(shape: AttentionCase, positions: PositionCase, solved: Solved)] =
        shapes.flatMap { shape in
            let inputs = shape.inputs
            return PositionCase.all(headDimension: shape.headDimension).map { positions in
                let expected = shape.reference(shape.prepared(inputs, positions))
                return (shape, positions, Solved(inputs: inputs, expected: expected))
            }
        }

    @Test("every encoding and norm equals the reference", arguments: kernelSets, 0..<9)
    func equalsTheReference(kernels: KernelSet, number: Int) throws {
        for (shape, positions, solved) in Self.solved where shape == Self.shapes[number] {
            for threads in [1, 2] {
                try requireSameBits(
                    shape.run(
                        solved.inputs,
                        shape.attention(
                            solved.inputs, positions: positions.positions, queryKeyNorm: positions.norm,
                            kernels: kernels, threads: threads)),
                    solved.expected, valueDimension: shape.valueDimension,
                    "\(kernels), \(threads) threads: \(positions): \(shape)")
            }
        }
    }

    @Test("diagnostics see prepared rows", arguments: PositionCase.all(headDimension: 8))
    func diagnostics(positions: PositionCase) throws {
        let shape = AttentionCase(queries: 20, keys: 90, headDimension: 8) { ($0.geometry, $0.group) = (.causal, 2) }
        let (inputs, kernels) = (shape.inputs, kernelSets[0])
        let prepared = shape.prepared(inputs, positions)
        let expected = try shape.attention(prepared, kernels: kernels)
            .diagnostics(queries: prepared.queries, keys: prepared.keys)
        let attention = try shape.attention(
            inputs, positions: positions.positions, queryKeyNorm: positions.norm, kernels: kernels)
        #expect(try attention.diagnostics(queries: inputs.queries, keys: inputs.keys) == expected)
    }

    @Test("tables equal the reference", arguments: PositionCase.all(headDimension: 12))
    func tables(positions: PositionCase) throws {
        guard let embedding = positions.embedding, embedding.scaling != .xPos(scaleBase: 64, centre: 30) else { return }
        let dimensions = try embedding.checkedDimensions(headDimension: 12)
        let angles = try RotaryAngles(embedding, dimensions: dimensions, length: 200)
        let reference = ReferencePositions(embedding, headDimension: 12, length: 200)
        // Times a power of two an angle is exact, and times one less it is not.
        let places = [-3, 0, 1, 2, 1023, 12_345, 1 << 20, (1 << 20) - 1, 1 << 40, (1 << 40) - 1]
        let table = try RotaryTable(angles, positions: places, .keys)
        for (row, place) in places.enumerated() {
            for pair in 0..<dimensions / 2 {
                let (cosine, sine) = reference.cosineAndSine(position: place, pair: pair, .keys)
                let first = table.address + row * angles.rowFloats
                #expect(first[pair] == cosine && first[angles.rowFloats / 2 + pair] == sine)
            }
        }
    }

    // MARK: - Where rows stand

    private func problem(
        _ shape: AttentionShape, _ positions: AttentionPositions, mask: AttentionMask = .causal,
        sink: AttentionSink = .softmax1, norm: QueryKeyNorm? = nil, change: (inout [[Float]]) -> Void = { _ in }
    ) throws -> AttentionOutputs {
        var generator = SeededGenerator(seed: 11)
        var tensors = [shape.queryCount, shape.keyCount, shape.valueCount].map { generator.normals($0) }
        change(&tensors)
        let result = try Attention(shape, sink: sink, mask: mask, positions: positions, queryKeyNorm: norm)
            .forward(queries: tensors[0], keys: tensors[1], values: tensors[2])
        return AttentionOutputs(output: result.output, logSumExp: result.logSumExp, sinkShare: result.sinkShare)
    }

    /// Names of the positions that rows have anyway change nothing, shared by batch items or one for each.
    @Test("identifiers", arguments: [RotaryEmbedding(), RotaryEmbedding(scaling: .xPos(scaleBase: 64, centre: 9))])
    func identifiers(embedding: RotaryEmbedding) throws {
        let shape = try AttentionShape(batch: 3, queryHeads: 2, queries: 5, keys: 70, headDimension: 6)
        let expected = try problem(shape, .rotary(embedding))
        let (queries, keys) = (Array(65..<70), Array(0..<70))
        let shared = AttentionPositions.rotary(embedding).identifiers(queries: queries, keys: keys)
        #expect(try problem(shape, shared) == expected)
        let each = AttentionPositions.rotary(embedding).identifiers(
            queries: queries + queries + queries, keys: keys + keys + keys)
        #expect(try problem(shape, each) == expected)
        let moved = AttentionPositions.rotary(embedding).identifiers(
            queries: queries.map { $0 - 4 }, keys: keys.map { $0 - 4 })
        #expect(try problem(shape, moved) != expected)
        #expect(try problem(shape, moved.offset(by: 4)) == expected)
    }

    /// Left padding: an item whose first keys are hidden and whose positions count from behind them.
    @Test func identifiersOfEachItem() throws {
        let whole = try AttentionShape(batch: 2, queryHeads: 1, queries: 1, keys: 80, headDimension: 4)
        let padding = 7
        let allowed = try BroadcastTensor((0..<160).map { $0 < 80 || $0 >= 80 + padding }, batch: 2, keys: 80)
        let positions = AttentionPositions.rotary().identifiers(
            queries: [79, 79 - padding], keys: Array(0..<80) + (0..<80).map { $0 - padding })
        let outputs = try problem(whole, positions, mask: .causal.allowing(allowed))
        let plain = try problem(whole, .rotary(), mask: .causal.allowing(allowed))
        #expect(outputs.output.prefix(4) == plain.output.prefix(4))
        // The second item's scores depend on m - n alone, so only the roundings of its angles differ.
        let difference = zip(outputs.output.suffix(4), plain.output.suffix(4)).map { abs($0 - $1) }
        #expect(difference.allSatisfy { $0 < 1e-5 } && outputs.output.suffix(4) != plain.output.suffix(4))
    }

    @Test("packed sequences count from their own starts", arguments: PositionCase.all(headDimension: 6))
    func packed(positions: PositionCase) throws {
        let (queryOffsets, keyOffsets) = ([0, 5, 5, 75, 76], [0, 70, 75, 140, 345])
        let shape = try AttentionShape(packed: queryOffsets, keyOffsets: keyOffsets, queryHeads: 1, headDimension: 6)
        var generator = SeededGenerator(seed: 12)
        let (queries, keys) = (generator.normals(shape.queryCount), generator.normals(shape.keyCount))
        let whole = try Attention(
            shape, sink: .softmax1, mask: .causal, positions: positions.positions, queryKeyNorm: positions.norm
        ).forward(queries: queries, keys: keys, values: keys)
        for item in 0..<4 {
            let rows = queryOffsets[item]..<queryOffsets[item + 1]
            let keyRows = keyOffsets[item]..<keyOffsets[item + 1]
            let single = try AttentionShape(
                queryHeads: 1, queries: rows.count, keys: keyRows.count, headDimension: 6)
            let part = keys.rows(keyRows.lowerBound, keyRows.count, 6)
            let result = try Attention(
                single, sink: .softmax1, mask: .causal, positions: positions.positions, queryKeyNorm: positions.norm
            ).forward(queries: queries.rows(rows.lowerBound, rows.count, 6), keys: part, values: part)
            #expect(result.output == whole.output.rows(rows.lowerBound, rows.count, 6), "sequence \(item)")
        }
    }

    /// The angles of an item are those of its own length, whatever it is padded to.
    @Test func dynamicNTKCountsKeyLengths() throws {
        let positions = AttentionPositions.rotary(
            RotaryEmbedding(scaling: .dynamic(factor: 2, trainedLength: 16)))
        let shape = try AttentionShape(batch: 2, queryHeads: 1, queries: 3, keys: 90, headDimension: 8)
        let lengths = AttentionMask.none.keyLengths([90, 33], padding: .queriesAndKeys)
        let padded = try problem(shape, positions, mask: lengths)
        let named = positions.identifiers(queries: [87, 88, 89], keys: Array(0..<90))
        #expect(try problem(shape, named, mask: lengths) == padded)
        let fixed = AttentionPositions.rotary(
            RotaryEmbedding(scaling: .dynamic(factor: 2, trainedLength: 16, length: 90)))
        let longest = try problem(shape, fixed, mask: lengths)
        #expect(padded.output.prefix(24) == longest.output.prefix(24))
        #expect(padded.output.suffix(24) != longest.output.suffix(24))
    }

    /// As in transformers: the largest position + 1, wherever the sequence begins and whatever its positions are called.
    @Test("angles go by the largest position", arguments: ["dynamic NTK", "LongRoPE"])
    func anglesGoByTheLargestPosition(name: String) throws {
        let positions = try #require(PositionCase.all(headDimension: 8).first { $0.name == name })
        let shape = try AttentionShape(batch: 2, queryHeads: 1, queries: 3, keys: 20, headDimension: 8)
        func fixed(_ length: Int) -> AttentionPositions {
            var embedding = positions.embedding!
            switch embedding.scaling {
            case .longrope(let short, let long, let factor, let trained, _, _):
                embedding.scaling = .longrope(
                    shortFactor: short, longFactor: long, factor: factor, trainedLength: trained, length: length)
            default: embedding.scaling = .dynamic(factor: 2, trainedLength: 40, length: length)
            }
            return .rotary(embedding)
        }
        // Positions 30 to 49 and 100 to 119, all below and all above the trained length of each.
        for start in [0, 30, 100] {
            let moved = try problem(shape, positions.positions.offset(by: start))
            #expect(try problem(shape, fixed(start + 20).offset(by: start)) == moved)
            #expect(throws: AttentionError.self) { try problem(shape, fixed(start + 19).offset(by: start)) }
        }
        #expect(try problem(shape, fixed(20).offset(by: 100 - 100)) != problem(shape, fixed(120)))
        // Each item by its own names, of queries and of keys that are no padding.
        let keys = Array(0..<20) + Array(100..<120)
        let named = positions.positions.identifiers(queries: [17, 18, 19, 117, 118, 119], keys: keys)
        let both = try problem(shape, named)
        for (item, length) in [(0, 20), (1, 120)] {
            let alone = try problem(
                shape, fixed(120).identifiers(queries: [17, 18, 19, 117, 118, 119], keys: keys))
            let short = try problem(
                shape, fixed(item == 0 ? 20 : 120).identifiers(queries: [17, 18, 19], keys: Array(0..<20)))
            let rows = item * 24..<(item + 1) * 24
            if length == 120 { #expect(both.output[rows] == alone.output[rows]) }
            if length == 20 { #expect(both.output[rows] == short.output[rows]) }
        }
    }

    // MARK: - What is true of encodings

    @Test("depends on m - n alone", arguments: PositionCase.all(headDimension: 8))
    func relative(positions: PositionCase) throws {
        guard let embedding = positions.embedding else { return }
        let shape = try AttentionShape(queryHeads: 2, queries: 40, keys: 40, headDimension: 8)
        var moved = positions.positions.offset(by: 20)
        // Moved beyond their trained lengths, these have other angles.
        if embedding.scaling.dependsOnLength { return }
        if case .xPos(let scaleBase, let centre) = embedding.scaling {
            // Factors move with their centre.
            moved = .rotary(RotaryEmbedding(scaling: .xPos(scaleBase: scaleBase, centre: centre + 5))).offset(by: 20)
        }
        let expected = try problem(shape, positions.positions, norm: positions.norm)
        let actual = try problem(shape, moved, norm: positions.norm)
        let error = relativeError(actual.output, expected.output.map(Double.init))
        if positions.form == .slack { #expect(error > 0.01) } else { #expect(error < 2e-6) }
    }

    /// A zero vector stays zero when it is turned: a ghost key in front of all keys, which every row sees, is softmax_1.
    @Test("a zero key in front is softmax_1", arguments: PositionCase.all(headDimension: 8))
    func zeroPrefix(positions: PositionCase) throws {
        // LayerNorm with a bias, and the length of dynamic scaling, see the ghost.
        guard positions.norm?.queryBias == nil, positions.embedding?.scaling.countsPositions != true else { return }
        let (queries, keys) = (30, 90)
        let shape = try AttentionShape(queryHeads: 1, queries: queries, keys: keys, headDimension: 8)
        let withGhost = try AttentionShape(queryHeads: 1, queries: queries, keys: keys + 1, headDimension: 8)
        let moved = positions.positions.offset(by: 1)
        var tensors: [[Float]] = []
        let quiet = try problem(shape, moved, norm: positions.norm) { tensors = $0 }
        let ghost = [Float](repeating: 0, count: 8)
        let plain = try problem(withGhost, positions.positions, sink: .softmax, norm: positions.norm) {
            $0 = [tensors[0], ghost + tensors[1], ghost + tensors[2]]
        }
        #expect(relativeError(quiet.output, plain.output.map(Double.init)) < 1e-6)
        for (a, b) in zip(quiet.logSumExp, plain.logSumExp) { #expect(abs(a - b) < 2e-6 * max(1, abs(a))) }
    }

    /// In a causal row the score with the key at the row's own position is sum t |q|^2, 0 or more.
    @Test("strict CoCA keeps half of every row for keys", arguments: [4, 16, 64])
    func strictSinkShare(dimension: Int) throws {
        let shape = try AttentionShape(queryHeads: 4, queries: 50, keys: 50, headDimension: dimension)
        let strict = try problem(shape, .collinear(.strict))
        #expect(strict.sinkShare.allSatisfy { $0 <= 0.5 })
        let rope = try problem(shape, .rotary())
        #expect(rope.sinkShare.contains { $0 > 0.5 })
    }

    /// |q.k| <= headDimension after RMSNorm and LayerNorm, so every weight of softmax_1 has a least and a largest value.
    @Test("norms bound scores", arguments: QueryKeyNorm.Kind.allCases)
    func normsBoundScores(kind: QueryKeyNorm.Kind) throws {
        let shape = try AttentionShape(queryHeads: 2, queries: 20, keys: 20, headDimension: 9)
        let norm: QueryKeyNorm = kind == .rms ? .rms() : .layer()
        let scale = { (tensors: inout [[Float]]) in
            tensors[0] = tensors[0].map { $0 * 1e6 }
            tensors[1] = zip(0..., tensors[1]).map { $0 % 7 == 0 ? $1 * -3e5 : $1 * 1e-2 }
        }
        for positions in [AttentionPositions.none, .rotary(RotaryEmbedding(dimensions: 8))] {
            let outputs = try problem(shape, positions, mask: .none, norm: norm, change: scale)
            // Scores are within -3...3 = 9 / sqrt(9).
            let (least, most) = (1 / (1 + 20 * exp(3.00001)), 1 / (1 + 20 * exp(-3.00001)))
            #expect(outputs.sinkShare.allSatisfy { (least...most).contains(Double($0)) })
        }
    }
}

extension AttentionCase {
    /// The inputs with queries and keys prepared by the reference.
    func prepared(_ inputs: AttentionInputs, _ positions: PositionCase) -> AttentionInputs {
        var result = inputs
        func length(_ item: Int) -> Int { inputs.keyLengths?[item] ?? keys }
        func end(_ item: Int) -> Int { padsQueries ? keys : length(item) }
        result.queries = (0..<batch * queryHeads).flatMap { head in
            positions.prepared(
                inputs.queries.rows(head * queries, queries, headDimension),
                positions: end(head / queryHeads) - queries..<end(head / queryHeads),
                headDimension: headDimension, length: length(head / queryHeads), .queries)
        }
        result.keys = (0..<batch * keyValueHeads).flatMap { head in
            positions.prepared(
                inputs.keys.rows(head * keys, keys, headDimension), positions: 0..<keys,
                headDimension: headDimension, length: length(head / keyValueHeads), .keys)
        }
        return result
    }
}
