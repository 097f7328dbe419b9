// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
// Package.swift - a language model on this library's attention: a package of its own, so that the library's users never
// resolve what it needs.

import PackageDescription

let package = Package(
    name: "LanguageModelExample",
    platforms: [.macOS(.v15)],
    dependencies: [
        .package(name: "QuietAttention", path: "../.."),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    ],
    targets: [
        .systemLibrary(
            name: "COpenBLAS", path: "Systems/COpenBLAS", pkgConfig: "openblas",
            providers: [.apt(["libopenblas-dev"])]),
        .target(
            name: "CProjections",
            cSettings: [
                .define("NDEBUG", .when(configuration: .release)),
                .enableWarning("all"), .enableWarning("extra"),
                .treatAllWarnings(as: .error),
            ],
            linkerSettings: [.linkedLibrary("m"), .linkedLibrary("pthread", .when(platforms: [.linux]))]),
        .target(
            name: "LanguageModel",
            dependencies: [
                "COpenBLAS", "CProjections", .product(name: "QuietAttention", package: "QuietAttention"),
            ]),
        .executableTarget(
            name: "language-model",
            dependencies: [
                "COpenBLAS", "LanguageModel", .product(name: "Safetensors", package: "QuietAttention"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]),
        .testTarget(
            name: "LanguageModelTests",
            dependencies: ["LanguageModel", "CProjections", .product(name: "Safetensors", package: "QuietAttention")],
            resources: [.copy("Fixtures")]),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .c11
)
