// SPDX-License-Identifier: Apache-2.0
// Projections.swift - products of weight matrices with rows of activations, on all threads.

import COpenBLAS
import CProjections
import Synchronization

/// How products with weights are computed.
public enum ProjectionMethod: String, Sendable, CaseIterable {
    /// From the weights as they lie in the file, in a fixed order: an output has the same bits for any number of tokens,
    /// threads, and on any processor.
    case exact
    /// From weights widened to float32, by OpenBLAS: bits depend on the number of tokens and threads.
    case blas
}

/// A matrix, and its weights as floats where OpenBLAS needs them.
struct Projection {
    let matrix: WeightMatrix
    let floats: [Float]?

    init(_ matrix: WeightMatrix, _ method: ProjectionMethod) {
        self.matrix = matrix
        floats = method == .blas ? matrix.floats() : nil
    }
}

/// Runs products of several matrices with the same rows.
final class Projector {
    let method: ProjectionMethod
    let threads: Int
    private let workers: OpaquePointer
    private let function: lm_project_function
    private var activations: [lm_activations] = []

    /// The names of the kernel sets that this processor runs, best first.
    static var kernelSets: [String] {
        (0...).lazy.map { lm_set_name(Int32($0)) }.prefix { $0 != nil }.map { String(cString: $0!) }
    }

    /// - Parameter kernels: one of ``kernelSets``; nil: the first. Another name: the failure is nil.
    init?(_ method: ProjectionMethod, threads: Int, kernels: String? = nil) {
        let threads = max(1, min(threads, ModelOptions.mostThreads))
        guard let index = kernels.map({ Self.kernelSets.firstIndex(of: $0) }) ?? 0,
            let workers = lm_workers_create(Int32(threads))
        else { return nil }
        (self.method, self.threads, self.workers) = (method, threads, workers)
        function = lm_set_function(Int32(index))
    }

    deinit { lm_workers_destroy(workers) }

    /// `out[t][r] = sum over c of w[r][c] x[t][c]` for each matrix; the rows of `out` are the matrix's, filled up to 16.
    ///
    /// - Parameters:
    ///   - rows: `[tokens, columns]`.
    ///   - outputs: as many as projections, `[tokens, rows]` each.
    func project(
        _ rows: UnsafePointer<Float>, tokens: Int, _ projections: [Projection],
        into outputs: [UnsafeMutablePointer<Float>]
    ) {
        switch method {
        case .exact: exact(rows, tokens, projections, outputs)
        case .blas: blas(rows, tokens, projections, outputs)
        }
    }

    /// OpenBLAS has one number of threads for all, and must not be told another while it works.
    private static let openBLAS = Mutex(())

    private func blas(
        _ rows: UnsafePointer<Float>, _ tokens: Int, _ projections: [Projection],
        _ outputs: [UnsafeMutablePointer<Float>]
    ) {
        Self.openBLAS.withLock { _ in
            openblas_set_num_threads(Int32(threads))
            for (projection, out) in zip(projections, outputs) { sgemm(rows, tokens, projection, out) }
        }
    }

    private func sgemm(
        _ rows: UnsafePointer<Float>, _ tokens: Int, _ projection: Projection, _ out: UnsafeMutablePointer<Float>
    ) {
        let (n, k) = (Int32(projection.matrix.rows), Int32(projection.matrix.columns))
        projection.floats?.withUnsafeBufferPointer { weights in
            cblas_sgemm(
                CblasRowMajor, CblasNoTrans, CblasTrans, Int32(tokens), n, k, 1, rows, k, weights.baseAddress, k, 0,
                out,
                Int32(projection.matrix.panelCount) * LM_PANEL_ROWS)
        }
    }

    // MARK: - Exact

    /// What the threads share.
    private struct Work {
        let products: UnsafePointer<lm_product>
        let firstPanels: UnsafePointer<Int>
        let count: Int
        let panelsPerPart: Int
        let function: lm_project_function

        /// Runs the panels of a part, which may be of several matrices.
        func run(part: Int) {
            let panels = part * panelsPerPart..<(part + 1) * panelsPerPart
            for index in 0..<count {
                let own = panels.clamped(to: firstPanels[index]..<firstPanels[index + 1])
                if own.isEmpty { continue }
                let first = firstPanels[index]
                function(products + index, Int32(own.lowerBound - first), Int32(own.upperBound - first))
            }
        }
    }

    private func exact(
        _ rows: UnsafePointer<Float>, _ tokens: Int, _ projections: [Projection],
        _ outputs: [UnsafeMutablePointer<Float>]
    ) {
        let columns = projections[0].matrix.columns
        let blocks = tokens * columns / Int(LM_BLOCK_COLUMNS)
        if activations.count < blocks { activations = [lm_activations](repeating: lm_activations(), count: blocks) }
        let views = projections.map(\.matrix.view)
        var firstPanels = [0]
        for projection in projections { firstPanels.append(firstPanels.last! + projection.matrix.panelCount) }
        let panels = firstPanels.last!
        activations.withUnsafeMutableBufferPointer { activations in
            lm_quantise(rows, Int32(tokens), Int32(columns), activations.baseAddress)
            views.withUnsafeBufferPointer { views in
                let products = outputs.indices.map { index in
                    lm_product(
                        matrix: views.baseAddress! + index, activations: activations.baseAddress, tokens: Int32(tokens),
                        out: outputs[index], out_stride: projections[index].matrix.panelCount * Int(LM_PANEL_ROWS))
                }
                products.withUnsafeBufferPointer { products in
                    firstPanels.withUnsafeBufferPointer { firstPanels in
                        run(products.baseAddress!, firstPanels.baseAddress!, outputs.count, panels)
                    }
                }
            }
        }
    }

    /// Multiplications of a part, some 30 microseconds, where there is more than a part a thread. Each part costs a few tenths of a
    /// microsecond as a line of memory travels between cores, and the start of another stretch of memory.
    private static let leastPart = 1 << 20

    private func run(
        _ products: UnsafePointer<lm_product>, _ firstPanels: UnsafePointer<Int>, _ count: Int, _ panels: Int
    ) {
        let product = products.pointee
        let multiplications = panels * Int(LM_PANEL_ROWS * product.matrix.pointee.columns * product.tokens)
        let parts = threads == 1 ? 1 : min(panels, max(threads, min(threads * 8, multiplications / Self.leastPart)))
        let perPart = (panels + parts - 1) / parts
        var work = Work(
            products: products, firstPanels: firstPanels, count: count, panelsPerPart: perPart, function: function)
        lm_workers_run(
            workers, Int32((panels + perPart - 1) / perPart),
            { context, part in context!.assumingMemoryBound(to: Work.self).pointee.run(part: Int(part)) }, &work)
    }

    // MARK: - Bandwidth

    /// Reads all bytes of a matrix once, in as many parts as there are threads.
    func read(_ matrix: WeightMatrix) {
        var bytes = UnsafeBufferPointer(start: matrix.view.panels, count: matrix.byteCount / threads)
        lm_workers_run(
            workers, Int32(threads),
            { context, part in
                let bytes = context!.assumingMemoryBound(to: UnsafeBufferPointer<UInt8>.self).pointee
                // The call is not optimised away: it is another module's.
                _ = lm_read(bytes.baseAddress! + Int(part) * bytes.count, bytes.count)
            }, &bytes)
    }
}
