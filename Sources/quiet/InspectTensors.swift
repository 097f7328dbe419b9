// SPDX-License-Identifier: Apache-2.0
// InspectTensors.swift - the tensors of quiet inspect: statistics of each.

import QuietAttention
import Safetensors

/// One tensor and its statistics; nil where its elements are no floats, or cannot be read.
struct MeasuredTensor {
    let tensor: TensorDescription
    let statistics: TensorStatistics?
    /// Of those that a report draws.
    let picture: TensorPicture?

    /// - Parameters:
    ///   - values: the elements; nil: they are not measured.
    ///   - isDrawn: whether there is to be a picture of it.
    init(_ tensor: TensorDescription, values: [Float]?, isDrawn: Bool) {
        self.tensor = tensor
        let statistics = values.map { TensorStatistics($0) }
        self.statistics = statistics
        picture =
            isDrawn
            ? values.flatMap { values in
                statistics.map { TensorPicture(values, channels: tensor.shape.last ?? 1, $0) }
            } : nil
    }

    var name: String { tensor.name }

    static let titles = [
        "tensor", "shape", "type", "mean", "deviation", "largest", "kurtosis", "excess", "beyond 6", "int8 dB",
    ]

    var cells: [String] {
        let names = [printable(tensor.name), shape, tensor.elementType.rawValue]
        guard let statistics else { return names }
        return names
            + [
                statistics.mean, statistics.standardDeviation, statistics.infinityNorm, statistics.rawKurtosis,
                statistics.excessKurtosis, statistics.outlierShare, statistics.int8SignalToNoise,
            ].map { decimal($0, digits: 4, format: "g") }
    }

    /// Of a shape that no tensor has in earnest, the beginning.
    var shape: String { shown(shape: tensor.shape) }

    func report() -> JSONValue {
        var members: [(name: String, value: JSONValue)] = [
            ("name", .string(tensor.name)), ("shape", .array(tensor.shape.map { .integer($0) })),
            ("dtype", .string(tensor.elementType.rawValue)),
        ]
        if let statistics {
            members += [
                ("count", .integer(statistics.count)), ("mean", .number(statistics.mean)),
                ("standard_deviation", .number(statistics.standardDeviation)),
                ("infinity_norm", .number(statistics.infinityNorm)),
                ("raw_kurtosis", .number(statistics.rawKurtosis)),
                ("excess_kurtosis", .number(statistics.excessKurtosis)),
                ("sample_kurtosis", .number(statistics.sampleKurtosis)),
                ("share_beyond_6_deviations", .number(statistics.outlierShare)),
                ("l1_over_l2", .number(statistics.l1OverL2)),
                ("mean_over_maximum", .number(statistics.meanOverMaximum)),
                ("int8_step", .number(statistics.int8Step)),
                ("int8_signal_to_noise_db", .number(statistics.int8SignalToNoise)),
            ]
        }
        return .object(members)
    }
}
