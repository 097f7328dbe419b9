// SPDX-License-Identifier: Apache-2.0
// NameIndex.swift - finds a tensor by its name, in a time that does not depend on how many there are.

/// A hash table of places in a list of tensors. It holds four bytes for each of its entries, of which at least half are
/// empty, and no names: those are the tensors'.
///
/// Names are compared by their bytes: `String` would take e with an accent in one scalar and in two for the same name.
struct NameIndex: Sendable {
    /// One more than a place; 0: none.
    private var entries: [UInt32]

    /// Two tensors of one name are an error.
    init(_ tensors: [TensorDescription]) throws(SafetensorsError) {
        var count = 2
        while count < 2 * tensors.count { count *= 2 }
        entries = [UInt32](repeating: 0, count: count)
        for (place, tensor) in tensors.enumerated() {
            let entry = entry(of: tensor.name, in: tensors)
            guard entries[entry] == 0 else { throw .duplicateName(tensor.name) }
            entries[entry] = UInt32(place + 1)
        }
    }

    /// Returns the place of the tensor of that name in the list that this index was made of.
    func place(of name: String, in tensors: [TensorDescription]) -> Int? {
        let entry = entries[entry(of: name, in: tensors)]
        return entry == 0 ? nil : Int(entry) - 1
    }

    /// The entry of that name, or the empty one where it would be.
    private func entry(of name: String, in tensors: [TensorDescription]) -> Int {
        // Its seed differs from run to run, so that nobody can choose names that collide.
        var hasher = Hasher()
        for byte in name.utf8 { hasher.combine(byte) }
        var entry = hasher.finalize() & (entries.count - 1)
        while entries[entry] != 0, !tensors[Int(entries[entry]) - 1].name.utf8.elementsEqual(name.utf8) {
            entry = (entry + 1) & (entries.count - 1)
        }
        return entry
    }
}
