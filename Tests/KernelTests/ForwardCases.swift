// SPDX-License-Identifier: Apache-2.0
// ForwardCases.swift - the shapes, inputs, sinks and masks that every kernel set is compared on.

import TestSupport

enum ForwardCases {
    // MARK: - Sizes

    /// Queries around tile rows and query block; keys around lanes, block and chunk; dimensions around lanes and panels.
    /// One size is large at a time.
    static let sizes: [AttentionCase] =
        Sizes.queries.map { AttentionCase(queries: $0, keys: 67, headDimension: 8, valueDimension: 24) }
        + Sizes.keys.map { AttentionCase(queries: 7, keys: $0, headDimension: 9, valueDimension: 16) }
        + Sizes.keys.map { keys in
            AttentionCase(queries: 19, keys: keys, headDimension: 5, valueDimension: 3) { $0.geometry = .causal }
        }
        + Sizes.longKeys.map { keys in
            AttentionCase(queries: 2, keys: keys, headDimension: 4, valueDimension: 17) { $0.sink = .amid }
        }

    static let dimensions: [AttentionCase] =
        Sizes.headDimensions.map { AttentionCase(queries: 7, keys: 66, headDimension: $0) }
        + Sizes.headDimensions.map { AttentionCase(queries: 5, keys: 19, headDimension: $0, valueDimension: 16) }
        + Sizes.headDimensions.map { AttentionCase(queries: 8, keys: 35, headDimension: 16, valueDimension: $0) }
        + [AttentionCase(queries: 3, keys: 70, headDimension: 1024, valueDimension: 1023)]

    static let empty: [AttentionCase] = [
        AttentionCase(queries: 5, keys: 0, headDimension: 4) { $0.sink = .none },
        AttentionCase(queries: 5, keys: 0, headDimension: 4) { ($0.sink, $0.group) = (.mixed, 6) },
        AttentionCase(queries: 0, keys: 5, headDimension: 4),
        AttentionCase(queries: 0, keys: 0, headDimension: 4),
        AttentionCase(queries: 3, keys: 5, headDimension: 4) { $0.batch = 0 },
        AttentionCase(queries: 3, keys: 5, headDimension: 4) { $0.group = 0 },
    ]

    // MARK: - Inputs

    static let sinks: [AttentionCase.SinkChoice] = [
        .none, .one, .count(quarters: 2), .count(quarters: 0), .count(quarters: 4096), .amid, .farAbove, .farBelow,
        .mixed,
    ]

    static let families: [AttentionCase] = InputFamily.allCases.flatMap { family in
        sinks.flatMap { sink in
            [
                AttentionCase(queries: 13, keys: 150, headDimension: 12, valueDimension: 20) {
                    ($0.family, $0.sink, $0.group, $0.geometry) = (family, sink, 2, .causal)
                }
            ]
        }
    }

    /// Chunks that merge: each with every family.
    static let chunks: [AttentionCase] = InputFamily.allCases.flatMap { family in
        [AttentionCase.SinkChoice.none, .amid].map { sink in
            AttentionCase(queries: 7, keys: 2117, headDimension: 4, valueDimension: 18) {
                ($0.family, $0.sink) = (family, sink)
            }
        }
    }

    static let scales: [AttentionCase] = AttentionCase.ScaleChoice.allCases.flatMap { scale in
        InputFamily.allCases.map { family in
            AttentionCase(queries: 8, keys: 70, headDimension: 6) {
                ($0.scale, $0.family, $0.sink) = (scale, family, .amid)
            }
        }
    }

    static let storages: [AttentionCase] = AttentionCase.StorageChoice.available.flatMap { storage in
        AttentionCase.LayoutChoice.allCases.flatMap { layout in
            [InputFamily.unitNormal, .wide, .notANumber, .infinity, .subnormal, .zeros].map { family in
                AttentionCase(queries: 9, keys: 75, headDimension: 19, valueDimension: 33) {
                    ($0.storage, $0.layout, $0.family) = (storage, layout, family)
                    ($0.batch, $0.keyValueHeads, $0.group) = (2, 2, 2)
                }
            }
        }
    }

    // MARK: - Few queries, whose keys and values are read where they stand, or packed as they are met

    static let fewQueries: [AttentionCase] = AttentionCase.StorageChoice.available.flatMap { storage in
        AttentionCase.LayoutChoice.allCases.flatMap { layout in
            fewQueriesSizes.map { queries, group, headDimension, valueDimension in
                AttentionCase(
                    queries: queries, keys: 1100, headDimension: headDimension, valueDimension: valueDimension
                ) {
                    ($0.storage, $0.layout, $0.sink, $0.family) = (storage, layout, .mixed, .wide)
                    ($0.batch, $0.keyValueHeads, $0.group) = (2, 3, group)
                    switch valueDimension {
                    case 16: ($0.geometry, $0.keyLengths) = (.causal, .partial)
                    case 48: ($0.geometry, $0.hasALiBi, $0.softcap) = (.window(100), true, 5)
                    case 80: ($0.allowed, $0.scaling) = (.random, .logKeys)
                    case 32: ($0.bias, $0.normaliser) = (.excluding, .sigmoid)
                    case 144: $0.normaliser = .clipped
                    default: break
                    }
                }
            }
        }
    }

    private static let fewQueriesSizes = [
        (1, 1, 20, 16), (1, 8, 21, 48), (4, 4, 21, 80), (3, 5, 20, 32), (16, 1, 21, 20), (17, 1, 20, 64),
        (2, 2, 132, 144),
        (4, 1, 4, 20), (1, 1, 136, 21),
    ]

    // MARK: - Heads

    static let heads: [AttentionCase] = [(1, 1), (1, 5), (2, 3), (4, 1), (3, 2)].flatMap { keyValueHeads, group in
        AttentionCase.LayoutChoice.allCases.map { layout in
            AttentionCase(queries: 7, keys: 65, headDimension: 10, valueDimension: 7) {
                ($0.batch, $0.keyValueHeads, $0.group) = (2, keyValueHeads, group)
                ($0.layout, $0.sink, $0.geometry) = (layout, .mixed, .causal)
            }
        }
    }

    // MARK: - Masks

    static let geometries: [AttentionCase] = [
        AttentionCase.Geometry.causal, .window(1), .window(5), .window(63), .window(64), .window(65), .window(1100),
        .around(before: 0, after: 0), .around(before: 3, after: 9), .around(before: nil, after: 70),
        .around(before: 70, after: nil), .around(before: nil, after: nil),
    ].flatMap { geometry in
        [(13, 13), (1, 140), (20, 140), (70, 33), (100, 101), (3, 1090)].map { queries, keys in
            AttentionCase(queries: queries, keys: keys, headDimension: 4, valueDimension: 5) {
                ($0.geometry, $0.sink, $0.group) = (geometry, .mixed, 2)
            }
        }
    }

    static let lengths: [AttentionCase] = AttentionCase.LengthChoice.allCases.flatMap { choice in
        [AttentionCase.Geometry.none, .causal, .window(30)].map { geometry in
            AttentionCase(queries: 9, keys: 135, headDimension: 6) {
                ($0.keyLengths, $0.geometry, $0.batch, $0.sink) = (choice, geometry, 4, .amid)
            }
        }
    }

    /// Of lengths that leave queries where they are.
    static let paddedQueries = lengths.map { shape in
        var shape = shape
        shape.padsQueries = true
        return shape
    }

    static let masks: [AttentionCase] = AttentionCase.AllowedChoice.allCases.flatMap { allowed in
        [AttentionCase.Broadcast.none, .batch, .batchAndHeads, .allButKeys].flatMap { broadcast in
            [(AttentionCase.Geometry.none, 130), (.causal, 64), (.window(40), 1100)].map { geometry, keys in
                AttentionCase(queries: 8, keys: keys, headDimension: 4, valueDimension: 6) {
                    ($0.allowed, $0.broadcast, $0.geometry) = (allowed, broadcast, geometry)
                    ($0.batch, $0.group, $0.sink, $0.family) = (2, 2, .mixed, .wide)
                }
            }
        }
    }

    static let biases: [AttentionCase] = AttentionCase.BiasChoice.allCases.flatMap { bias in
        AttentionCase.Broadcast.allCases.flatMap { broadcast in
            [(AttentionCase.Geometry.none, 130), (.causal, 63), (.window(40), 1100)].map { geometry, keys in
                AttentionCase(queries: 8, keys: keys, headDimension: 4, valueDimension: 6) {
                    ($0.bias, $0.broadcast, $0.geometry) = (bias, broadcast, geometry)
                    ($0.batch, $0.group, $0.sink) = (2, 2, .mixed)
                }
            }
        }
    }

    /// All at once.
    static let mixtures: [AttentionCase] = (1...12).map { seed in
        AttentionCase(queries: 11 + seed, keys: 60 * seed, headDimension: 2 + seed, valueDimension: 20 - seed) {
            $0.seed = UInt64(seed)
            ($0.batch, $0.keyValueHeads, $0.group) = (2, 1 + seed % 2, 2)
            $0.family = InputFamily.allCases[seed % InputFamily.allCases.count]
            $0.sink = sinks[seed % sinks.count]
            $0.geometry = seed % 2 == 0 ? .window(10 * seed) : .causal
            ($0.allowed, $0.bias) = (.random, seed % 3 == 0 ? .notANumber : .excluding)
            ($0.keyLengths, $0.layout) = (.partial, seed % 4 < 2 ? .sequenceFirst : .headsFirst)
        }
    }
}
