// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
// Package.swift - products, then targets in three parts: public, implementation details, tests.

import PackageDescription

// Optimised although the build is for debugging: under sanitizers the reference takes most of a test's time. Only where asked
// for, because a package with such flags cannot be depended on by version.
let referenceSettings: [SwiftSetting] =
    Context.environment["QUIET_OPTIMISED_REFERENCE"] == nil
    ? [] : [.unsafeFlags(["-O", "-wmo", "-num-threads", "2"])]

let package = Package(
    name: "QuietAttention",
    platforms: [.macOS(.v15)],
    products: [
        .library(name: "QuietAttention", targets: ["QuietAttention"]),
        .library(name: "AttentionReference", targets: ["AttentionReference"]),
        .library(name: "Differentiation", targets: ["Differentiation"]),
        .library(name: "Safetensors", targets: ["Safetensors"]),
    ],
    dependencies: [
        // For the command line only. `quiet` is no declared product, and so a package that uses the libraries does not
        // resolve this; `swift run quiet` finds the target all the same.
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0")
    ],
    targets: [
        // MARK: - Public
        .target(name: "QuietAttention", dependencies: ["CKernels", "CheckedFiles", "SeededInputs"]),
        .target(name: "AttentionReference", swiftSettings: referenceSettings),
        // Attention for Swift's automatic differentiation, which not every toolchain has: apart, so that nothing else needs it.
        .target(name: "Differentiation", dependencies: ["QuietAttention"]),
        .target(name: "Safetensors", dependencies: ["CheckedFiles"]),
        .executableTarget(
            name: "quiet",
            dependencies: [
                "QuietAttention", "Safetensors", "SeededInputs",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]),

        // MARK: - Implementation details
        .target(
            name: "CKernels", path: "CKernels",
            cSettings: [
                .headerSearchPath("."),
                .define("NDEBUG", .when(configuration: .release)),
                .enableWarning("all"), .enableWarning("extra"),
                .treatAllWarnings(as: .error),
            ],
            // AttentionReference and CKernels call fma(); on Linux that symbol lives in libm.
            linkerSettings: [.linkedLibrary("m")]),
        .target(name: "SeededInputs"),
        // Files read with every length checked, and replaced whole.
        .target(name: "CheckedFiles"),
        .target(
            name: "TestSupport",
            dependencies: ["EmulatedTiles", "QuietAttention", "AttentionReference", "SeededInputs"],
            path: "Tests/TestSupport"),
        // Kernels of tile instructions and of dots, which few machines have, in plain C.
        .target(
            name: "EmulatedTiles", dependencies: ["CKernels"], path: "Tests/EmulatedTiles",
            cSettings: [
                .headerSearchPath("../../CKernels"), .enableWarning("all"), .enableWarning("extra"),
                .treatAllWarnings(as: .error),
            ]),

        // MARK: - Tests
        .testTarget(
            name: "DifferentiationTests",
            dependencies: ["Differentiation", "QuietAttention", "SeededInputs", "TestSupport"]),
        .testTarget(
            name: "KernelTests",
            dependencies: [
                "CKernels", "EmulatedTiles", "QuietAttention", "AttentionReference", "SeededInputs", "TestSupport",
            ]),
        .testTarget(
            name: "PropertyTests",
            dependencies: ["QuietAttention", "AttentionReference", "SeededInputs", "TestSupport"]),
        .testTarget(
            name: "QuietAttentionTests",
            dependencies: ["EmulatedTiles", "QuietAttention", "AttentionReference", "SeededInputs", "TestSupport"]),
        .testTarget(name: "ReferenceTests", dependencies: ["AttentionReference", "SeededInputs", "TestSupport"]),
        .testTarget(name: "SafetensorsTests", dependencies: ["CheckedFiles", "Safetensors", "QuietAttention"]),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .c11
)
