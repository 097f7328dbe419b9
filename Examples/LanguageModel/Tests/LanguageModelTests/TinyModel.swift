// SPDX-License-Identifier: Apache-2.0
// TinyModel.swift - a model of two layers and what it must answer, made by a script once per run.

import Foundation
import LanguageModel
import Synchronization
import Testing

/// Scripts/tiny-model.py makes the file and computes, in double precision, all that is expected of it.
struct TinyModel {
    struct Answer: Decodable, CustomTestStringConvertible {
        let text: String
        let tokens: [Int]
        let pieces: [String]?
        let logits: [Double]
        let greedy: [Int]
        let smallestMargin: Double
        let meanNegativeLogLikelihood: Double

        var testDescription: String { text }
    }

    private struct Answers: Decodable {
        let answers: [Answer]
    }

    let path: String
    let answers: [Answer]

    /// The folder of the package.
    static let package = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    static let shared: TinyModel = {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("tiny-model-\(UUID())")
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            TestFiles.removeAtExit(folder.path)
            let script = Process()
            script.executableURL = URL(fileURLWithPath: "/usr/bin/env")
            script.arguments = ["python3", package.appendingPathComponent("Scripts/tiny-model.py").path, folder.path]
            try script.run()
            script.waitUntilExit()
            let data = try Data(contentsOf: folder.appendingPathComponent("tiny.json"))
            let decoder = JSONDecoder()
            decoder.keyDecodingStrategy = .convertFromSnakeCase
            return TinyModel(
                path: folder.appendingPathComponent("tiny.gguf").path,
                answers: try decoder.decode(Answers.self, from: data).answers)
        } catch {
            fatalError("Scripts/tiny-model.py: \(error)")
        }
    }()

    static var bytes: [UInt8] {
        get throws { Array(try Data(contentsOf: URL(fileURLWithPath: shared.path))) }
    }

    static var tokenizer: Tokenizer {
        get throws { try Tokenizer(GGUFFile(path: shared.path)) }
    }

    static func model(_ options: ModelOptions = ModelOptions()) throws -> LlamaModel {
        try LlamaModel(GGUFFile(path: shared.path), options: options)
    }
}

/// A file of its own.
final class TemporaryFile: Sendable {
    let path: String

    private init(_ bytes: [UInt8]) throws {
        path = FileManager.default.temporaryDirectory.appendingPathComponent("gguf-\(UUID())").path
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    /// A file that is there during a call.
    static func with<Result>(_ bytes: [UInt8], _ body: (String) throws -> Result) throws -> Result {
        let file = try TemporaryFile(bytes)
        defer { try? FileManager.default.removeItem(atPath: file.path) }
        return try body(file.path)
    }

    /// A file that is there until the tests end.
    static func kept(_ bytes: [UInt8]) throws -> TemporaryFile {
        let file = try TemporaryFile(bytes)
        TestFiles.removeAtExit(file.path)
        return file
    }
}

/// Files and folders that go when the process of the tests ends.
enum TestFiles {
    private static let paths = Mutex([String]())
    private static let registration: Int32 = atexit {
        paths.withLock { for path in $0 { try? FileManager.default.removeItem(atPath: path) } }
    }

    static func removeAtExit(_ path: String) {
        _ = registration
        paths.withLock { $0.append(path) }
    }
}
