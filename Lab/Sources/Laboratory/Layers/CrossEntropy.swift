// SPDX-License-Identifier: Apache-2.0
// CrossEntropy.swift - the loss: -log of the probability of the right token.

import Foundation

/// `sum over rows of weight (log sum_c e^z[c] - z[target])`, rows with a negative target left out.
enum CrossEntropy {
    /// - Parameters:
    ///   - weight: what the gradient is multiplied by: 1 over what the targets of the whole step count for.
    ///   - weights: what each row counts for; empty: 1.
    ///   - losses: given the loss of each row, 0 where there is no target.
    /// - Returns: the sum of losses, in Double and in the order of rows, and the gradient.
    static func evaluate(
        _ logits: [Float], _ targets: [Int32], vocabulary: Int, weight: Float, weights: [Float] = [],
        losses: UnsafeMutablePointer<Float>? = nil
    ) -> (sum: Double, gradient: [Float], correct: Int) {
        var gradient = [Float](repeating: 0, count: logits.count)
        var (sum, correct) = (0.0, 0)
        for (row, target) in targets.enumerated() {
            losses?[row] = 0
            guard target >= 0 else { continue }
            let start = row * vocabulary
            var (largest, best) = (-Float.infinity, 0)
            for c in 0..<vocabulary where logits[start + c] > largest { (largest, best) = (logits[start + c], c) }
            gradient.withUnsafeMutableBufferPointer { gradient in
                logits.withUnsafeBufferPointer { logits in
                    for c in start..<start + vocabulary { gradient[c] = exponential(logits[c] - largest) }
                }
            }
            let total = gradient[start..<start + vocabulary].reduce(0, +)
            let loss = logf(total) + largest - logits[start + Int(target)]
            losses?[row] = loss
            let own = weights.isEmpty ? 1 : weights[row]
            sum += Double(own) * Double(loss)
            if best == Int(target) { correct += 1 }
            let factor = own * weight / total
            for c in 0..<vocabulary { gradient[start + c] *= factor }
            gradient[start + Int(target)] -= own * weight
        }
        return (sum, gradient, correct)
    }
}
