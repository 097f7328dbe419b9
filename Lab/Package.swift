// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
// Package.swift - the laboratory: small models trained from scratch on this library's attention. A package of its own, so that
// the library's users never resolve what it needs.

import PackageDescription

let package = Package(
    name: "Laboratory",
    platforms: [.macOS(.v15)],
    dependencies: [
        .package(name: "QuietAttention", path: ".."),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    ],
    targets: [
        .systemLibrary(
            name: "COpenBLAS", path: "Systems/COpenBLAS", pkgConfig: "openblas",
            providers: [.apt(["libopenblas-dev"]), .brew(["openblas"])]),
        .target(
            name: "Laboratory",
            dependencies: [
                "COpenBLAS", .product(name: "QuietAttention", package: "QuietAttention"),
                .product(name: "Safetensors", package: "QuietAttention"),
            ]),
        .executableTarget(
            name: "lab",
            dependencies: [
                "COpenBLAS", "Laboratory", .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Sources/lab-command"),
        .testTarget(
            name: "LaboratoryTests",
            dependencies: ["Laboratory", .product(name: "Safetensors", package: "QuietAttention")]),
    ],
    swiftLanguageModes: [.v6]
)
