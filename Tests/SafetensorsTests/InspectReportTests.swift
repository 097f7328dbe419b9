// SPDX-License-Identifier: Apache-2.0
// InspectReportTests.swift - the page of quiet inspect --report: what it shows, what names cannot do to it, how it is written.

import Foundation
import Testing

@testable import Safetensors

@Suite struct InspectReportTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    private func write(_ tensors: [NamedTensor], name: String = "in.safetensors") throws -> String {
        try SafetensorsFile.write(tensors, to: folder(name))
        return folder(name)
    }

    /// The page of a run that succeeds; its tags are checked.
    private func page(_ arguments: [String]) throws -> String {
        let run = try QuietProcess(["inspect"] + arguments + ["--report", folder("page.html")])
        #expect(run.status == 0 && run.diagnostics.isEmpty, "\(run.diagnostics)")
        let page = String(decoding: try bytes(ofFile: folder("page.html")), as: UTF8.self)
        try requireBalance(page)
        return page
    }

    /// Every element ends, in the order of nesting, and links within the page have a target; nothing is loaded from elsewhere.
    private func requireBalance(_ page: String) throws {
        var open: [String] = []
        var (identifiers, targets): (Set<String>, Set<String>) = ([], [])
        for piece in page.split(separator: "<").dropFirst(page.hasPrefix("<!DOCTYPE html>") ? 1 : 0) {
            let end = try #require(piece.firstIndex(of: ">"), "\(piece.prefix(80))")
            let tag = piece[..<end]
            let name = String(tag.prefix { !$0.isWhitespace && $0 != "/" || $0 == "/" && tag.first == "/" })
            for (attribute, value) in attributes(tag) {
                try #require(!attribute.hasPrefix("on") && attribute != "src", "\(tag)")
                if attribute == "id" { try #require(identifiers.insert(value).inserted, "two places \(value)") }
                if attribute == "href" {
                    try #require(value.hasPrefix("#"), "\(tag)")
                    targets.insert(String(value.dropFirst()))
                }
            }
            if name.hasPrefix("/") {
                try #require(
                    open.popLast() == String(name.dropFirst()), "</\(name.dropFirst())> at \(piece.prefix(80))")
            } else if !tag.hasSuffix("/"), name != "meta" {
                open.append(name)
            }
            try #require(!["script", "img", "iframe", "object", "image", "use"].contains(name.lowercased()))
        }
        try #require(open.isEmpty, "open: \(open)")
        try #require(targets.isSubset(of: identifiers), "\(targets.subtracting(identifiers))")
        try #require(!page.contains("http:") && !page.contains("https:") && !page.contains("url("))
    }

    private func attributes(_ tag: Substring) -> [(String, String)] {
        var found: [(String, String)] = []
        var rest = tag[...]
        while let equals = rest.range(of: "=\"") {
            let name = rest[..<equals.lowerBound].split(whereSeparator: \.isWhitespace).last.map(String.init) ?? ""
            let value = rest[equals.upperBound...].prefix { $0 != "\"" }
            found.append((name, String(value)))
            rest = rest[value.endIndex...].dropFirst()
        }
        return found
    }

    private func head(_ prefix: String, queries: [Float], keys: [Float]) -> [NamedTensor] {
        [
            NamedTensor(name: prefix + "q", shape: [1, 1, queries.count, 1], values: queries),
            NamedTensor(name: prefix + "k", shape: [1, 1, keys.count, 1], values: keys),
            NamedTensor(name: prefix + "v", shape: [1, 1, keys.count, 1], values: keys),
        ]
    }

    // MARK: - What it shows

    @Test func realData() throws {
        let plain = try QuietProcess("inspect", CommandLineTests.example, "--mask", "causal")
        let run = try QuietProcess(
            "inspect", CommandLineTests.example, "--mask", "causal", "--report", folder("page.html"))
        #expect(run.output == plain.output + "written     \(folder("page.html"))\n")
        let page = try page([CommandLineTests.example, "--mask", "causal"])
        for piece in [
            "Head 0", "Head 1", "id=\"a0-1\"", "href=\"#a0-1\"", "Weight on the first key, %",
            "prefers-color-scheme:dark", "@media print",
        ] {
            #expect(page.contains(piece), "\(piece)")
        }
        #expect(
            page.contains("Histogram of 12288 elements") && page.contains("Largest magnitude of each of 32 channels"))
        let size = page.utf8.count
        #expect(size < 80_000, "\(size) bytes")
    }

    /// All rows look at the first of two keys; of four keys, the rows of the other head at all alike.
    @Test func weightsByHand() throws {
        let tensors =
            head("sharp.", queries: [1, 1], keys: [0, -40]) + head("even.", queries: [0, 0, 0, 0], keys: [1, 2, 3, 4])
        let page = try page([write(tensors), "--sink", "softmax"])
        let figures = page.components(separatedBy: "<figure class=\"head\"").dropFirst()
        try #require(figures.count == 2)
        let (even, sharp) = (figures.first!, figures.last!)
        #expect(sharp.contains("first key 100 %, sink 0.0 %, largest 100 %") && sharp.contains("key 0 leads in 100 %"))
        #expect(sharp.contains("<path class=\"c8\" d=\"M0 0h1M0 1h1\"/>"), "\(sharp)")
        // A quarter each: from 20 % up to 40 %.
        #expect(even.contains("<path class=\"c6\" d=\"M0 0h4M0 1h4M0 2h4M0 3h4\"/>"), "\(even)")
        #expect(even.contains("first key 25 %") && even.contains("entropy 1.386"))
        // Of 16 pairs 4 are at distance 0, 3 at 1, 3 at 2 and 3.
        #expect(even.contains("itself: 25 %, 1 back: 19 %, 2 to 3 back: 19 %"), "\(even)")
    }

    @Test func sinks() throws {
        let page = try page([write(head("", queries: [0, 0], keys: [0])), "--sink", "n=3"])
        #expect(page.contains("first key 25 %, sink 75 %"))
        // In the column of the sink: 70 % and up.
        #expect(page.contains("<path class=\"c8\" d=\"M0 0h1M0 1h1\"/>"))
    }

    @Test func channelsWithOutliers() throws {
        var values = (0..<400).map { Float($0 % 3 - 1) }
        values[4 * 50 + 2] = 100
        let page = try page([write([NamedTensor(name: "w", shape: [100, 4], values: values)])])
        #expect(page.contains("channels with elements beyond 6 deviations: 2 (1, up to 100) of 4"))
        #expect(page.contains("Histogram of 400 elements from -100 to 100"))
        #expect(!page.contains("What heads do"))
    }

    @Test func layersByHeadsAndKindsByLayers() throws {
        let layers = (0..<3).flatMap { head("layer\($0).", queries: [1, 2], keys: [1, 0]) }
        let page = try page([write(layers)])
        #expect(page.components(separatedBy: "<figure class=\"head\"").count == 4)
        for layer in 0..<3 { #expect(page.contains("aria-label=\"layer\(layer), head 0: ")) }
        #expect(page.contains("layer*.q") && page.contains("layer*.v"))
    }

    @Test func oddTensors() throws {
        let page = try page([
            write(
                [
                    NamedTensor(name: "none", shape: [0], values: []),
                    NamedTensor(name: "scalar", shape: [], values: [3]),
                    NamedTensor(name: "zeros", shape: [2, 2], values: [0, 0, 0, 0]),
                    NamedTensor(name: "broken", shape: [2], values: [.nan, 1]),
                    NamedTensor(name: "endless", shape: [2], values: [.infinity, 1]),
                    NamedTensor(name: "empty rows", shape: [3, 0], values: []),
                    NamedTensor(name: "tiny", shape: [2], values: [.leastNonzeroMagnitude, -.leastNonzeroMagnitude]),
                    NamedTensor(name: "huge", shape: [2], values: [3.4e38, -3.4e38]),
                ] + head("nan.", queries: [.nan, 1], keys: [1, 2]) + head("no.", queries: [], keys: []))
        ])
        #expect(page.contains("<b>broken</b>") && page.contains("nothing to draw"))
        #expect(page.contains("rows left out for NaN: 1"))
    }

    // MARK: - What names cannot do

    @Test func namesAreText() throws {
        let evil = "<script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;\u{202e}"
        let tensors =
            head(evil + ".", queries: [1, 2], keys: [1, 2]) + [NamedTensor(name: evil, shape: [1, 1], values: [1])]
        let odd = NamedTensor(name: "\"><svg onload=alert(3)>.q", shape: [1, 1, 1, 1], values: [1])
        let path = try write(tensors + [odd], name: "a<b>&'\"c.safetensors")
        let page = try page([path])
        #expect(!page.contains("<script") && !page.contains("<img") && !page.contains("<svg onload"))
        #expect(
            page.contains("&lt;script&gt;alert(&#39;1&#39;)")
                && page.contains("a&lt;b&gt;&amp;&#39;&quot;c.safetensors"))
        #expect(page.contains("&amp;amp;\\u{202e}") && !page.unicodeScalars.contains("\u{202e}"))
        #expect(page.contains("Content-Security-Policy"))
    }

    // MARK: - Large files

    @Test(.timeLimit(.minutes(1)))
    func manyTensorsMakeAPageOfBoundedSize() throws {
        let tensors = (0..<20_000).map { index in
            NamedTensor(name: "model.layers.\(index).weight", shape: [2, 3], values: [1, 2, 3, 4, 5, Float(index)])
        }
        let page = try page([write(tensors)])
        #expect(page.utf8.count < 2_000_000, "\(page.utf8.count) bytes")
        #expect(page.contains("The first 160 of 20000 tensors are drawn"))
        #expect(page.contains("The first 2000 of 20000 tensors are drawn"))
    }

    @Test(.timeLimit(.minutes(1)))
    func manyHeadsMakeAPageOfBoundedSize() throws {
        let count = 600
        let tensors = (0..<count).flatMap { head("\($0).", queries: [1, 2, 3], keys: [1, -2, 3]) }
        let page = try page([write(tensors)])
        #expect(page.utf8.count < 3_000_000, "\(page.utf8.count) bytes")
        #expect(page.contains("The first 400 of 600 heads are drawn"))
    }

    // MARK: - How it is written

    @Test func failuresLeaveNoPage() throws {
        let report = try folder.file(Array("before".utf8), name: "page.html")
        func expectFailure(_ arguments: [String], _ words: String, output: QuietProcess.Output = .captured) throws {
            let run = try QuietProcess(["inspect"] + arguments, output: output)
            #expect(run.status == 1 && run.output.isEmpty && run.diagnostics.contains(words), "\(run.diagnostics)")
            #expect(try bytes(ofFile: report) == Array("before".utf8))
            #expect(try folder.names.filter { $0.hasPrefix(".") }.isEmpty)
        }
        let example = CommandLineTests.example
        try expectFailure([folder("missing"), "--report", report], "No such file")
        try expectFailure([example, "--report", folder("nowhere/page.html")], "cannot write")
        try expectFailure([example, "--report", folder.path], "not a regular file")
        try expectFailure([example, "--report", report], "cannot write to standard output", output: .closed)
        let input = try write(head("", queries: [1], keys: [1]))
        try expectFailure([input, "--report", input], "is the input")
        #expect(try SafetensorsFile(path: input).tensors.count == 3)
    }

    /// What cannot be measured is named on the page, behind which the run fails.
    @Test func faultsAreOnThePage() throws {
        let path = try folder.fileBeyondMemory()
        let run = try QuietProcess("inspect", path, "--report", folder("page.html"))
        #expect(run.status == 1)
        let page = String(decoding: try bytes(ofFile: folder("page.html")), as: UTF8.self)
        try requireBalance(page)
        #expect(page.contains("Left out") && page.contains("more than there is memory"))
    }
}
