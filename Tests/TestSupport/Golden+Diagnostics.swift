// SPDX-License-Identifier: Apache-2.0
// Golden+Diagnostics.swift - golden metrics of a tensor, and of a row whose entropy is normalised.

extension Golden {
    /// Metrics of one tensor, and a row whose entropy is brought to ln 2.
    public struct Diagnostics: Decodable, Sendable {
        public let x: [GoldenNumber]
        public let infinityNorm, excessKurtosis, sampleKurtosis, l1OverL2, meanOverMaximum: Double
        public let entropyNormalisation: EntropyNormalisation

        public struct EntropyNormalisation: Decodable, Sendable {
            public let p: [Double]
            public let gamma: Double
            public let normalised: [Double]

            enum CodingKeys: String, CodingKey {
                case p
                case gamma = "gamma_f64"
                case normalised = "p_new_f64"
            }
        }

        enum CodingKeys: String, CodingKey {
            case x
            case infinityNorm = "inf_norm_f64"
            case excessKurtosis = "kurtosis_excess_population (softmax1 org)_f64"
            case sampleKurtosis = "kurtosis_raw_sample_std_eps1e-6 (Qualcomm)_f64"
            case l1OverL2 = "l1_over_sqrt_n_l2_f64"
            case meanOverMaximum = "mean_abs_over_max_abs_f64"
            case entropyNormalisation = "entropy_normalisation"
        }
    }
}
