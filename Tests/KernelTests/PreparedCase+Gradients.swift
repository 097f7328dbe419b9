// SPDX-License-Identifier: Apache-2.0
// PreparedCase+Gradients.swift - from gradients of prepared rows back to the rows, through the C interface and by the reference,
// every tensor beside a page that may not be touched.

import AttentionReference
import CKernels
import SeededInputs
import TestSupport

extension PreparedCase {
    private struct Gradients {
        var rows, gain, bias: [Float]
    }

    /// Every other case is added to what is there and has its guard pages before the tensors; a third has gradients of 16 bits.
    func requireReferenceGradients(_ kernels: KernelTable, _ index: Int) throws {
        let (accumulates, guardSide) = (index % 2 == 1, index % 4 < 2 ? GuardedBuffer<UInt8>.Side.after : .before)
        let storages = AttentionCase.StorageChoice.available
        let gradientStorage = storages[index / 2 % storages.count]
        let gradients = preparedGradients
        let start = start(of: gradients.count, gradientStorage, accumulates)
        let expected = expectedGradients(gradients, start, gradientStorage, accumulates)
        let actual = try run(kernels, gradients, start, gradientStorage, accumulates, guardSide)
        let context = "\(kernels): gradients of \(self), in \(gradientStorage), added to some: \(accumulates)"
        try requireSameBits("dx", actual.rows, expected.rows, extents: [places.count, dimension], context)
        if norm?.gain != nil { try requireSameBits("dgain", actual.gain, expected.gain, context) }
        if norm?.bias != nil { try requireSameBits("dbias", actual.bias, expected.bias, context) }
    }

    /// Normal numbers; 0 of both signs for the rows with NaN and infinity, so that sums of gains are numbers, and for the last.
    private var preparedGradients: [Float] {
        var generator = SeededGenerator(seed: UInt64(dimension) + 5)
        var gradients = generator.normals(places.count * dimension)
        for row in [1, 2, places.count - 1] {
            for c in row * dimension..<(row + 1) * dimension { gradients[c] = c % 2 == 0 ? 0 : -0.0 }
        }
        return gradients
    }

    /// What is there before: -0 among it where gradients are added.
    private func start(
        of count: Int, _ storage: AttentionCase.StorageChoice, _ accumulates: Bool
    ) -> [Float] {
        guard accumulates else { return [Float](repeating: .nan, count: count) }
        return (0..<count).map { $0 % 3 == 0 ? -0.0 : storage.rounded(Float($0 % 17) / 3 - 2) }
    }

    private func expectedGradients(
        _ gradients: [Float], _ start: [Float], _ storage: AttentionCase.StorageChoice, _ accumulates: Bool
    ) -> Gradients {
        let given = places.indices.map { rows.rows($0, 1, dimension) }
        let turnedBack = places.indices.map { index in
            let gradient = gradients.rows(index, 1, dimension)
            let row = norm?.normalised(given[index]) ?? given[index]
            return turning?.gradient(row, of: gradient, position: places[index], side) ?? gradient
        }
        let result = zip(given, turnedBack).flatMap { norm?.gradient($0, of: $1) ?? $1 }
        let sums = norm?.parameterGradients(given, of: turnedBack, addedTo: parameters)
        return Gradients(
            rows: zip(result, start).map { storage.rounded((accumulates ? $1 + 0 : 0) + $0) },
            gain: sums?.gain ?? [], bias: sums?.bias ?? [])
    }

    /// What gains and biases are added to.
    private var parameters: (gain: [Float], bias: [Float]) {
        ((0..<dimension).map { Float($0 % 5) - 2 }, (0..<dimension).map { $0 % 4 == 0 ? -0.0 : Float($0 % 3) })
    }

    private func run(
        _ kernels: KernelTable, _ gradients: [Float], _ start: [Float], _ storage: AttentionCase.StorageChoice,
        _ accumulates: Bool, _ side: GuardedBuffer<UInt8>.Side
    ) throws -> Gradients {
        let memory = PreparedMemory(self, guard: side)
        func guarded(_ values: [Float]) -> GuardedBuffer<Float> {
            GuardedBuffer(values, guard: side == .after ? .after : .before)
        }
        let input = StoredRows(gradients, width: dimension, padding: 2, storage: .float32, guard: side)
        let output = StoredRows(start, width: dimension, padding: 4, storage: storage, guard: side)
        let (gain, bias) = (guarded(parameters.gain), guarded(parameters.bias))
        let lanes = (dimension + Int(QATTN_LANES) - 1) / Int(QATTN_LANES) * Int(QATTN_LANES)
        let workspace = guarded([Float](repeating: .nan, count: Int(QATTN_PREPARE_BACKWARD_ROWS) * lanes))
        var arguments = qattn_prepare_backward_args()
        arguments.prepare = memory.arguments
        arguments.gradients = UnsafePointer(input.start.assumingMemoryBound(to: Float.self))
        arguments.gradient_stride = input.stride
        arguments.row_gradients = output.start
        arguments.row_gradient_stride = output.stride
        arguments.row_gradient_storage = storage.kernelStorage
        arguments.accumulates = accumulates
        arguments.gain_gradient = norm?.gain == nil ? nil : gain.start
        arguments.shift_gradient = norm?.bias == nil ? nil : bias.start
        arguments.workspace = workspace.start
        kernels.functions.pointee.prepare_backward(&arguments)
        guard memory.isIntact, input.isIntactOutsideRows, output.isIntactOutsideRows,
            [gain, bias, workspace].allSatisfy(\.slackIsIntact)
        else { throw TestFailure("\(kernels): \(self): wrote beside its gradients") }
        return Gradients(rows: output.values, gain: gain.array, bias: bias.array)
    }
}
