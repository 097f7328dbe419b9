// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
// Package.swift - an example program, beside the library that it uses.

import PackageDescription

let package = Package(
    name: "Decode",
    platforms: [.macOS(.v15)],
    dependencies: [.package(name: "QuietAttention", path: "../..")],
    targets: [
        .executableTarget(name: "Decode", dependencies: [.product(name: "QuietAttention", package: "QuietAttention")])
    ]
)
