// SPDX-License-Identifier: Apache-2.0
// ModelArguments.swift - the options that say which model, and how it is run.

import ArgumentParser
import LanguageModel
import QuietAttention

struct ModelArguments: ParsableArguments {
    @Argument(help: "The model, a GGUF file.")
    var model: String

    @Option(help: "Threads; without it, the CPUs that this process may run on.")
    var threads: Int?

    @Option(help: "Products with weights: exact (the same bits whatever is read together) or blas (OpenBLAS, float32).")
    var projections: ProjectionMethod = .exact

    @Option(help: "Kernels of attention and norms: auto or the name of a set, as quiet info lists them.")
    var kernels = "auto"

    @Option(help: "Kernels of exact projections: auto, \(LlamaModel.projectionKernels.joined(separator: ", ")).")
    var projectionKernels = "auto"

    @Option(help: "How keys and values are stored: f32, bf16, f16 or int8.")
    var cache: CacheStorage = .f32

    @Option(
        help: """
            Angles of the rotary embedding: none or default, linear=FACTOR or pi=FACTOR (interpolation), ntk=FACTOR, dynamic=FACTOR or \
            dynamic-ntk=FACTOR, yarn=FACTOR. Factors are the length wanted over that of training. Dynamic NTK takes the angles \
            of the longest text to come.
            """)
    var ropeScaling: RopeScaling = .none

    @Option(help: "The sink of attention: softmax (as trained), softmax1, n=NUMBER or log-keys=OFFSET.")
    var sink: Sink = Sink(sink: .softmax)

    @Option(help: "The layers that have this sink, such as 0,3,20-29; without it, all.")
    var sinkLayers: LayerList?

    @Option(help: "The factor of scores: none, log=BASE (log n / log BASE), clipped-log=BASE (at least 1).")
    var scaling: Scaling = Scaling(scaling: .constant)

    func validate() throws {
        if let threads, !(1...ModelOptions.mostThreads).contains(threads) {
            throw ValidationError("--threads: expected 1 to \(ModelOptions.mostThreads), got \(threads)")
        }
    }

    /// Says on standard error that a text is longer than those of training, which nothing here makes up for.
    func noteLength(_ tokens: Int, of model: LlamaModel) {
        let trained = model.configuration.contextLength
        guard tokens > trained, case .none = ropeScaling else { return }
        report("note: \(tokens) tokens, and the model was trained on \(trained): --rope-scaling yarn=2 stretches it\n")
    }

    /// - Parameter longest: the tokens of the longest conversation to come.
    func options(_ configuration: LlamaConfiguration, longest: Int) throws -> ModelOptions {
        let threads = try threads ?? CachedAttention(queryHeads: 1, sink: .softmax).threads
        var options = ModelOptions(threads: threads, projections: projections)
        if projectionKernels != "auto" { options.projectionKernels = projectionKernels }
        if kernels != "auto" { options.kernels = try KernelSet(named: kernels) }
        options.cache = cache.storage
        options.rotaryScaling = ropeScaling.scaling(trainedLength: configuration.contextLength, longest: longest)
        options.scoreScaling = scaling.scaling
        options.sink = sink.sink
        options.sinkLayers = try sinkLayers?.checked(configuration.layers)
        return options
    }

    /// Opens the file, and reads the model after `longest` has told how long texts will be.
    func load(longest: (Tokenizer) throws -> Int) throws -> (Tokenizer, LlamaModel) {
        let file = try GGUFFile(path: model)
        let tokenizer = try Tokenizer(file)
        let options = try options(LlamaConfiguration(file), longest: longest(tokenizer))
        return (tokenizer, try LlamaModel(file, options: options))
    }
}

extension ProjectionMethod: ExpressibleByArgument {}

enum CacheStorage: String, ExpressibleByArgument, CaseIterable {
    case f32, bf16, f16, int8

    var storage: KeyValueCache.Storage {
        switch self {
        case .f32: .float32
        case .bf16: .bfloat16
        case .f16: .float16
        case .int8: .int8
        }
    }
}

/// `name` or `name=NUMBER`.
private func nameAndNumber(_ argument: String) -> (name: String, number: Double?)? {
    guard let equals = argument.firstIndex(of: "=") else { return (argument, nil) }
    guard let number = Double(argument[argument.index(after: equals)...]) else { return nil }
    return (String(argument[..<equals]), number)
}

enum RopeScaling: ExpressibleByArgument {
    case none
    case interpolation(Double)
    case ntk(Double)
    case dynamicNTK(Double)
    case yarn(Double)

    init?(argument: String) {
        switch nameAndNumber(argument) {
        case ("none", nil)?, ("default", nil)?: self = .none
        case ("linear", let factor?)?, ("pi", let factor?)?: self = .interpolation(factor)
        case ("ntk", let factor?)?: self = .ntk(factor)
        case ("dynamic", let factor?)?, ("dynamic-ntk", let factor?)?: self = .dynamicNTK(factor)
        case ("yarn", let factor?)?: self = .yarn(factor)
        default: return nil
        }
    }

    var defaultValueDescription: String { "none" }

    func scaling(trainedLength: Int, longest: Int) -> RotaryEmbedding.Scaling {
        switch self {
        case .none: .none
        case .interpolation(let factor): .linear(factor: factor)
        case .ntk(let factor): .ntk(factor: factor)
        case .dynamicNTK(let factor):
            .dynamic(factor: factor, trainedLength: trainedLength, length: max(longest, 1))
        case .yarn(let factor): .yarn(factor: factor, trainedLength: trainedLength)
        }
    }
}

struct Sink: ExpressibleByArgument {
    let sink: AttentionSink

    init(sink: AttentionSink) { self.sink = sink }

    init?(argument: String) {
        switch nameAndNumber(argument) {
        case ("softmax", nil)?: sink = .softmax
        case ("softmax1", nil)?: sink = .softmax1
        case ("n", let n?)?: sink = .softmaxN(n)
        case ("log-keys", let offset)?: sink = .logKeys(offset: Float(offset ?? 0))
        default: return nil
        }
    }

    var defaultValueDescription: String { "softmax" }
}

struct Scaling: ExpressibleByArgument {
    let scaling: ScoreScaling

    init(scaling: ScoreScaling) { self.scaling = scaling }

    init?(argument: String) {
        switch nameAndNumber(argument) {
        case ("none", nil)?: scaling = .constant
        case ("log", let base?)?: scaling = .logKeys(base: base)
        case ("clipped-log", let base?)?: scaling = .clippedLogKeys(base: base)
        default: return nil
        }
    }

    var defaultValueDescription: String { "none" }
}

/// Numbers of layers: `0,3,20-29`.
struct LayerList: ExpressibleByArgument {
    let layers: [Int]

    init?(argument: String) {
        var layers: [Int] = []
        for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
            let bounds = part.split(separator: "-", omittingEmptySubsequences: false).map { Int($0) }
            guard (1...2).contains(bounds.count), let first = bounds[0], let last = bounds.last!, first >= 0,
                first <= last, last < 1 << 16
            else { return nil }
            layers += first...last
        }
        self.layers = layers
    }

    func checked(_ count: Int) throws -> Set<Int> {
        if let layer = layers.first(where: { $0 >= count }) {
            throw Failure("layer \(layer): the model has layers 0 to \(count - 1)")
        }
        return Set(layers)
    }
}
