// SPDX-License-Identifier: Apache-2.0
// ForeignFormat.swift - what a file is that is no safetensors file but is called one, told by its first bytes.

/// Returns what a file that begins with these bytes seems to be, and what to do about it; nil where nothing is known.
///
/// A safetensors file may begin with any eight bytes that are a length, so only files that were refused are asked.
func foreignFormat(_ start: [UInt8]) -> String? {
    for (magic, name) in magicNumbers where start.starts(with: magic) { return name }
    // A pickle begins with its protocol, 2 to 5. As a length, that would be one with zeros behind.
    if start.count >= 8, start[0] == 0x80, (2...5).contains(start[1]), start[2..<8].contains(where: { $0 != 0 }) {
        return "a Python pickle, as torch.save once wrote; convert it where PyTorch is at hand"
    }
    let text = String(decoding: start, as: UTF8.self).drop(while: \.isWhitespace)
    let beginning = text.prefix(15).lowercased()
    if beginning.hasPrefix("<!doctype html") || beginning.hasPrefix("<html") || beginning.hasPrefix("<?xml") {
        return "a page of the web, \(beginning.hasPrefix("<?xml") ? "XML" : "HTML"): the download fetched a page, "
            + "perhaps an error or a request to log in, instead of the file"
    }
    guard text.first == "{" else { return nil }
    if text.contains("\"weight_map\"") {
        return
            "a JSON index (model.safetensors.index.json): it names the files that hold the tensors, one of which is wanted"
    }
    return "JSON text, such as a configuration or an error of a server"
}

/// So many bytes say what a file is.
let foreignFormatBytes = 4096

private let magicNumbers: [(magic: [UInt8], name: String)] = [
    (
        Array("version https://git-lfs".utf8),
        "a Git LFS pointer: the file itself was not downloaded; `git lfs pull` fetches it"
    ),
    (
        Array("PK\u{3}\u{4}".utf8),
        "a zip archive, as torch.save writes (.pt, .pth, .bin); convert it where PyTorch is at hand"
    ),
    (Array("GGUF".utf8), "a GGUF file, the format of llama.cpp"),
    ([0x93] + Array("NUMPY".utf8), "an array of NumPy (.npy)"),
    ([0x89] + Array("HDF\r\n\u{1a}\n".utf8), "an HDF5 file, as Keras writes (.h5)"),
    ([0x1f, 0x8b], "compressed by gzip"),
    ([0x28, 0xb5, 0x2f, 0xfd], "compressed by zstd"),
    ([0xfd] + Array("7zXZ".utf8), "compressed by xz"),
]
