// SPDX-License-Identifier: Apache-2.0
// Checkpoint.swift - a run as a safetensors file, from which it goes on with the same bits.

import Foundation
import Safetensors

public enum Checkpoint {
    /// Written beside and put in its place when it is whole: whatever kills the run, there is the old file or the new one.
    public static func save(_ trainer: Trainer, to path: String) throws {
        var tensors: [NamedTensor] = []
        for slot in trainer.model.parameters.slots {
            for (kind, buffer) in buffers(of: trainer) {
                tensors.append(NamedTensor(name: kind + slot.name, shape: slot.shape, values: buffer[slot]))
            }
        }
        let metadata = [
            "format": "laboratory 1", "step": "\(trainer.step)", "model": try text(trainer.model.configuration),
            "training": try text(trainer.configuration), "losses": try text(trainer.losses.map(\.bitPattern)),
        ]
        try SafetensorsFile.write(tensors, metadata: metadata, to: path)
    }

    /// The first weights, and the batches of all steps as Float, for another program to train the same.
    public static func export(_ trainer: Trainer, to path: String) throws {
        let c = trainer.configuration
        var tensors = trainer.model.parameters.slots.map {
            NamedTensor(name: "model/" + $0.name, shape: $0.shape, values: trainer.parameters[$0])
        }
        let batches = (0..<c.steps).flatMap { step in (0..<c.slices).map { trainer.batch(step: step, slice: $0) } }
        for (name, numbers) in [("tokens", batches.flatMap(\.tokens)), ("targets", batches.flatMap(\.targets))] {
            tensors.append(
                NamedTensor(name: name, shape: [c.steps, c.batch, c.length], values: numbers.map(Float.init)))
        }
        try SafetensorsFile.write(
            tensors, metadata: ["model": try text(trainer.model.configuration), "training": try text(c)], to: path)
    }

    /// Takes the trainer where the file's run was.
    ///
    /// - Throws: ``LabError`` where the file is of another model or another run, SafetensorsError where it is damaged.
    public static func restore(_ trainer: Trainer, from path: String) throws {
        let file = try SafetensorsFile(path: path)
        try checkFormat(file, path)
        let model = try value(ModelConfiguration.self, "model", file, path)
        guard model == trainer.model.configuration else { throw LabError("\(path): is of another model") }
        let training = try value(TrainingConfiguration.self, "training", file, path)
        guard training.withoutThreads == trainer.configuration.withoutThreads else {
            throw LabError("\(path): was trained with other settings")
        }
        let losses = try value([UInt64].self, "losses", file, path).map(Double.init(bitPattern:))
        guard file.metadata["step"] == "\(losses.count)" else {
            throw LabError("\(path): is damaged: \(losses.count) losses at step \(file.metadata["step"] ?? "none")")
        }
        var tensors: [(FlatBuffer, Slot, [Float])] = []
        for slot in trainer.model.parameters.slots {
            for (kind, buffer) in buffers(of: trainer) {
                tensors.append((buffer, slot, try floats(kind + slot.name, slot.shape, file, path)))
            }
        }
        // Nothing is changed before everything is read.
        for (buffer, slot, values) in tensors { buffer[slot] = values }
        trainer.losses = losses
    }

    /// A trained model and its parameters.
    public static func model(at path: String) throws -> (Transformer, FlatBuffer) {
        let file = try SafetensorsFile(path: path)
        try checkFormat(file, path)
        let model = try Transformer(try value(ModelConfiguration.self, "model", file, path), seed: 0)
        let parameters = model.parameters.firstValues()
        for slot in model.parameters.slots {
            parameters[slot] = try floats("model/" + slot.name, slot.shape, file, path)
        }
        return (model, parameters)
    }

    private static func buffers(of trainer: Trainer) -> [(String, FlatBuffer)] {
        [
            ("model/", trainer.parameters), ("first/", trainer.optimiser.first), ("second/", trainer.optimiser.second),
        ]
    }

    private static func checkFormat(_ file: SafetensorsFile, _ path: String) throws {
        guard file.metadata["format"] == "laboratory 1" else {
            throw LabError("\(path): is no checkpoint of this program")
        }
    }

    private static func floats(
        _ name: String, _ shape: [Int], _ file: SafetensorsFile, _ path: String
    ) throws -> [Float] {
        let found = try file.tensor(named: name).shape
        guard found == shape else { throw LabError("\(path): \(name) has the shape \(found), expected \(shape)") }
        return try file.floats(named: name)
    }

    private static func value<Value: Decodable>(
        _ type: Value.Type, _ name: String, _ file: SafetensorsFile, _ path: String
    ) throws -> Value {
        guard let text = file.metadata[name] else { throw LabError("\(path): has no \(name)") }
        do { return try JSONDecoder().decode(type, from: Data(text.utf8)) } catch {
            throw LabError("\(path): \(name) is damaged: \(error)")
        }
    }

    private static func text(_ value: some Encodable) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        return String(decoding: try encoder.encode(value), as: UTF8.self)
    }
}
