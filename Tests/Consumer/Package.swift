// swift-tools-version: 6.0
// SPDX-License-Identifier: Apache-2.0
// Package.swift - a package that uses the library as any other would: by URL and version. Scripts/check fills in FOLDER.

import PackageDescription

let package = Package(
    name: "Consumer",
    platforms: [.macOS(.v15)],
    dependencies: [.package(url: "file://FOLDER/QuietAttention", from: "0.1.0")],
    targets: [
        .executableTarget(name: "Consumer", dependencies: [.product(name: "QuietAttention", package: "QuietAttention")])
    ]
)
