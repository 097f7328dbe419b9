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

    @OptionGroup(title: "Gradients") var gradients: GradientOptions

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
        try gradients.check(problem.scores.normaliser, outputs, isRecurrent: false)
    }

    func run(_ world: World) throws {
        let (shapes, ring, file, given) = try world.agreeing {
            let file = try SafetensorsFile(path: input)
            try outputs.checkIsNot(input)
            let shapes = try problem.shapes(file)
            return try shapes.checking {
                (
                    shapes, try problem.ring(file, shapes.shape, gradients), file,
                    try GradientTensors(file, gradients, shapes)
                )
            }
        }
        let tensors = shapes.tensors + (given?.all ?? [])
        let described = tensors.map { "\($0.name) \($0.elementType.rawValue) \($0.shape)" }
        try world.agree(Statement(facts: [("a file with", described.joined(separator: ", "))]))
        let types = Set(tensors.map(\.elementType))
        switch types.count == 1 ? types.first?.storage : nil {
        case .bfloat16: try run(world, ring, FileRows<BFloat16>(file: file, shapes: shapes, gradients: given))
        #if !(os(macOS) && arch(x86_64))
            case .float16: try run(world, ring, FileRows<Float16>(file: file, shapes: shapes, gradients: given))
        #endif
        default: try run(world, ring, FileRows<Float>(file: file, shapes: shapes, gradients: given))
        }
    }

    private func run<Element>(_ world: World, _ ring: RingProblem, _ rows: FileRows<Element>) throws {
        let shape = rows.shapes.shape
        let output = try world.agreeing {
            try AttendOutput(
                world, rows.shapes, outputs, SharedGradients(rows.file, problem, gradients, shape, ring.arguments))
        }
        var seconds = 0.0
        var shared = output.shared
        for item in 0..<shape.batch {
            let plan = ring.plan(item, ranks: world.size)
            let (forward, backward) = try world.agreeing {
                let part = try OwnPart(plan, RingShape(shape), rank: world.rank, item: item, rows)
                let forward = try RingForward<Element, Float>(world, part, ring.attention(plan, rows: part.rows))
                return (forward, try makeBackward(world, ring, forward, item, rows))
            }
            seconds += try timed {
                guard let backward else { return try forward.run() }
                try backward.runForward()
                try backward.run()
            }.seconds
            try output.write(forward, item)
            guard let backward else { continue }
            try output.write(backward, plan, item)
            try shared?.add(backward, world)
        }
        if let shared { try output.write(shared) }
        try report(world, ring, shape, seconds: seconds)
        // One that cannot write ends all.
        try world.agreeing { try output.commit() }
    }

    private func makeBackward<Element>(
        _ world: World, _ ring: RingProblem, _ forward: RingForward<Element, Float>, _ item: Int,
        _ rows: FileRows<Element>
    ) throws -> RingBackward<Element, Float>? {
        guard let given = rows.gradients else { return nil }
        let plan = forward.part.plan
        let floats = FileRows<Float>(file: rows.file, shapes: rows.shapes, gradients: given)
        return try RingBackward(
            world, forward, item: item, rows,
            logSumExpGradient: given.logSumExp.map { tensor in
                { head, range, buffer in
                    try floats.read(tensor, .bhsd, item: item, head: head, rows: range, into: buffer)
                }
            },
            wanted: problem.wantedGradients, attention: { try ring.attention(plan, rows: $0, multiplied: true) })
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
        for tensor in shapes.tensors { try tensor.checkReadable() }
        return shapes
    }

    func ring(_ file: SafetensorsFile, _ shape: AttentionShape, _ gradients: GradientOptions) throws -> RingProblem {
        let tensors = try AttentionTensors(file, scoreTensors, positionTensors, shape)
        let arguments = try options.arguments(
            shape, sink: scoreTensors.sink?.sink { try file.floats(named: $0) }, tensors: tensors,
            queryKeyNorm: norms.queryKeyNorm(normTensors.vectors(file, shape)))
        let ring = try RingProblem(shape, options, arguments, tensors)
        // Whatever is refused is refused by every rank, before anybody waits for it.
        try KeyLengths.check(tensors.keyLengths, shape)
        if shape.batch > 0 { _ = try ring.attention(ring.plan(0, ranks: 1), rows: [0]) }
        if gradients.gradients, scoreTensors.ssmax != nil {
            _ = try arguments.rules.scaling.scalableSoftmaxGradient(
                logScales: [Float](repeating: 0, count: shape.queryHeads))
        }
        return ring
    }

    /// Those of whatever the file holds.
    var wantedGradients: WantedGradients {
        var wanted = WantedGradients()
        (wanted.slopes, wanted.logScales) = (scoreTensors.alibiSlopes != nil, scoreTensors.ssmax != nil)
        (wanted.queryGain, wanted.queryBias) = (normTensors.queryGain != nil, normTensors.queryBias != nil)
        (wanted.keyGain, wanted.keyBias) = (normTensors.keyGain != nil, normTensors.keyBias != nil)
        return wanted
    }
}

extension KeyLengths {
    static func check(_ lengths: [Int]?, _ shape: AttentionShape) throws {
        guard let lengths else { return }
        try KeyLengths(parsing: lengths.map(String.init).joined(separator: ",")).check(shape)
    }
}
