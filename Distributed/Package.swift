// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
// Package.swift - attention over several machines: a package of its own, so that the library's users never resolve MPI.

import PackageDescription

let package = Package(
    name: "DistributedAttention",
    platforms: [.macOS(.v15)],
    products: [.library(name: "Ring", targets: ["Ring"])],
    dependencies: [
        .package(name: "QuietAttention", path: ".."),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    ],
    targets: [
        .systemLibrary(
            name: "COpenMPI", path: "Systems/COpenMPI", pkgConfig: "ompi-c",
            providers: [.apt(["libopenmpi-dev"]), .brew(["open-mpi"])]),
        // What is used of MPI, whose macros Swift does not see.
        .target(
            name: "CRing", dependencies: ["COpenMPI"],
            cSettings: [.enableWarning("all"), .enableWarning("extra"), .treatAllWarnings(as: .error)]),
        .target(name: "Ring", dependencies: ["CRing", .product(name: "QuietAttention", package: "QuietAttention")]),
        .testTarget(
            name: "RingTests", dependencies: ["Ring", .product(name: "QuietAttention", package: "QuietAttention")],
            path: "Tests/RingTests"),
        .executableTarget(
            name: "quiet-ring",
            dependencies: [
                "Ring", .product(name: "QuietAttention", package: "QuietAttention"),
                .product(name: "Safetensors", package: "QuietAttention"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .c11
)
