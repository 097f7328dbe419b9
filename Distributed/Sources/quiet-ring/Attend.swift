// SPDX-License-Identifier: Apache-2.0
// Attend.swift - quiet-ring attend: attention over the tensors of a file, of which each rank reads its part.

import ArgumentParser
import QuietAttention
import Ring
import Safetensors

struct Attend: RingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Compute attention over the queries, keys and values of a safetensors file, on all ranks.",
        discussion: """
            Options are those of `quiet attend`, and so is the output, to the bit. Every rank must be able to read the file; \
            rank 0 writes the output. Not offered: normalisers other than softmax, tensors with an entry for each query or \
            key (--allowed, --bias, --row-factors, --query-positions), norms of values and output, gates.
            """)

    @Argument(help: ArgumentHelp("The safetensors file with queries, keys and values.", valueName: "in.safetensors"))
    var input: String

    @OptionGroup var problem: FileProblem

    @OptionGroup(title: "Values and output") var outputs: OutputOptions

    @OptionGroup(title: "Ranks") var ranks: RankOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    var machine: MachineOptions { problem.machine }

    func validate() throws {
        try problem.check()
        try problem.norms.check()
        try problem.scores.checkForRanks()
        for (option, isGiven) in [
            ("--allowed", problem.scoreTensors.allowed != nil), ("--bias", problem.scoreTensors.bias != nil),
            ("--row-factors", problem.scoreTensors.rowFactors != nil),
            ("--query-positions", problem.positionTensors.queryPositions != nil), ("--gate", outputs.gate != nil),
            ("--value-norm", outputs.valueNorm != .none), ("--output-norm", outputs.outputNorm != .none),
        ] where isGiven { throw ValidationError("\(option): is not offered by quiet-ring") }
    }

    func run(_ world: World) throws {
        let (shapes, ring, file) = try world.agreeing {
            let file = try SafetensorsFile(path: input)
            let shapes = try problem.shapes(file)
            return (shapes, try shapes.checking { try problem.ring(file, shapes.shape) }, file)
        }
        let tensors = shapes.tensors.map { "\($0.name) \($0.elementType.rawValue) \($0.shape)" }
        try world.agree(Statement(facts: [("a file with", tensors.joined(separator: ", "))]))
        let types = Set(shapes.tensors.map(\.elementType))
        switch types.count == 1 ? types.first?.storage : nil {
        case .bfloat16: try run(world, ring, shapes, FileRows<BFloat16>(file: file, shapes: shapes))
        #if !(os(macOS) && arch(x86_64))
            case .float16: try run(world, ring, shapes, FileRows<Float16>(file: file, shapes: shapes))
        #endif
        default: try run(world, ring, shapes, FileRows<Float>(file: file, shapes: shapes))
        }
    }

    private func run<Element>(
        _ world: World, _ ring: RingProblem, _ shapes: AttendShapes, _ rows: FileRows<Element>
    ) throws {
        let (shape, layout) = (shapes.shape, shapes.layout)
        let output = try world.agreeing {
            world.rank > 0
                ? nil
                : try SlicedFile(
                    [TensorPlan(name: "out", shape: layout.rows(shape) + [shape.valueDimension])]
                        + (outputs.lse ? [TensorPlan(name: "lse", shape: Layout.bhsd.rows(shape))] : []),
                    for: outputs.output)
        }
        // Where a rank dies, mpirun ends the others by a signal.
        if let output { removeOnSignals(output.temporaryPath) }
        var seconds = 0.0
        for item in 0..<shape.batch {
            let plan = ring.plan(item, ranks: world.size)
            let forward = try world.agreeing {
                let part = try OwnPart(plan, RingShape(shape), rank: world.rank, item: item, rows)
                return try RingForward<Element, Float>(world, part, ring.attention(plan, rows: part.rows))
            }
            seconds += try timed { try forward.run() }.seconds
            try write(world, forward, item, shapes, to: output)
        }
        try report(world, ring, shape, seconds: seconds)
        // One that cannot write ends all.
        try world.agreeing { try output?.commit() }
    }

    private func write<Element>(
        _ world: World, _ forward: RingForward<Element, Float>, _ item: Int, _ shapes: AttendShapes,
        to output: SlicedFile?
    ) throws {
        let (shape, plan) = (shapes.shape, forward.part.plan)
        let (heads, e) = (shape.queryHeads, shape.valueDimension)
        let results = SharedTensor.stripes(
            plan, rank: world.rank, heads: heads, dimension: e, forward.output.reading)
        try world.collect(results) { head, rows, values in
            if shapes.layout == .bhsd {
                let first = ((item * heads + head) * shape.queries + rows.lowerBound) * e
                try output?.write(Array(values), of: "out", from: first)
            } else {
                for (index, row) in rows.enumerated() {
                    let first = ((item * shape.queries + row) * heads + head) * e
                    try output?.write(Array(values[index * e..<(index + 1) * e]), of: "out", from: first)
                }
            }
        }
        guard outputs.lse else { return }
        let sums = SharedTensor.stripes(plan, rank: world.rank, heads: heads, dimension: 1, forward.logSumExp.reading)
        try world.collect(sums) { head, rows, values in
            try output?.write(
                Array(values), of: "lse", from: (item * heads + head) * shape.queries + rows.lowerBound)
        }
    }

    private func report(_ world: World, _ ring: RingProblem, _ shape: AttentionShape, seconds: Double) throws {
        let measures = try RankMeasures(world, seconds: seconds)
        guard world.rank == 0 else { return }
        let members: [(name: String, value: JSONValue)] =
            shape.members + [("ranks", .integer(world.size)), ("kernels", .string(measures.kernels(ring)))]
            + measures.members
        if json {
            try emit(JSONValue.object(members).text())
        } else {
            try emit(members.map { "\($0.name)  \($0.value.text())" }.joined(separator: "\n"))
        }
    }
}

extension FileProblem {
    func shapes(_ file: SafetensorsFile) throws -> AttendShapes {
        let shapes = try AttendShapes(file, tensors)
        for tensor in shapes.tensors where !ElementType.readable.contains(tensor.elementType) {
            throw SafetensorsError.unsupportedElementType(
                tensor: tensor.name, elementType: tensor.elementType, expected: ElementType.readable)
        }
        return shapes
    }

    func ring(_ file: SafetensorsFile, _ shape: AttentionShape) throws -> RingProblem {
        let tensors = try AttentionTensors(file, scoreTensors, positionTensors, shape)
        let arguments = try options.arguments(
            shape, sink: scoreTensors.sink?.sink { try file.floats(named: $0) }, tensors: tensors,
            queryKeyNorm: norms.queryKeyNorm(normTensors.vectors(file, shape)))
        let ring = try RingProblem(shape, options, arguments, tensors)
        // Whatever is refused is refused by every rank, before anybody waits for it.
        try KeyLengths.check(tensors.keyLengths, shape)
        if shape.batch > 0 { _ = try ring.attention(ring.plan(0, ranks: 1), rows: [0]) }
        return ring
    }
}

extension KeyLengths {
    static func check(_ lengths: [Int]?, _ shape: AttentionShape) throws {
        guard let lengths else { return }
        try KeyLengths(parsing: lengths.map(String.init).joined(separator: ",")).check(shape)
    }
}
