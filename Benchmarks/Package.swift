// swift-tools-version: 6.1
// SPDX-License-Identifier: Apache-2.0
// Package.swift - benchmarks, apart from the library so that its users never resolve what they need.

import PackageDescription

let package = Package(
    name: "AttentionBenchmarks",
    platforms: [.macOS(.v15)],
    dependencies: [
        .package(name: "QuietAttention", path: ".."),
        .package(url: "https://github.com/ordo-one/benchmark", exact: "1.38.1", traits: []),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    ],
    targets: [
        .systemLibrary(
            name: "COpenBLAS", path: "Systems/COpenBLAS", pkgConfig: "openblas",
            providers: [.apt(["libopenblas-dev", "liblapacke-dev"])]),
        .target(name: "CCeilings"),
        .target(
            name: "AttentionGrid",
            dependencies: ["COpenBLAS", "CCeilings", .product(name: "QuietAttention", package: "QuietAttention")]),
        .executableTarget(
            name: "grid",
            dependencies: [
                "AttentionGrid", "COpenBLAS", .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]),
        .executableTarget(
            name: "AttentionBenchmark",
            dependencies: ["AttentionGrid", "COpenBLAS", .product(name: "Benchmark", package: "benchmark")],
            path: "Benchmarks/AttentionBenchmark",
            plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
        .testTarget(
            name: "AttentionGridTests",
            dependencies: ["AttentionGrid", .product(name: "QuietAttention", package: "QuietAttention")]),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .c11
)
