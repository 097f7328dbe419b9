// SPDX-License-Identifier: Apache-2.0
// SharedItems.swift - items of work that workers claim one by one.

extension WorkerPool {
    /// Runs the items `0..<count`, each on the worker that claims it; they are claimed in ascending order.
    ///
    /// - Parameters:
    ///   - counters: whose first counter, 0 at the beginning, is the next item.
    ///   - workers: at most so many.
    ///   - woken: of the workers, those worth waking a thread for.
    ///   - meanwhile: called after each item of the calling thread, on no other.
    func share(
        _ count: Int, _ counters: SharedCounters, workers: Int, woken: Int, meanwhile: () -> Void = {},
        _ body: @escaping @Sendable (_ item: Int, _ worker: Int) -> Void
    ) {
        withoutActuallyEscaping(meanwhile) { meanwhile in
            let meanwhile = Meanwhile(body: meanwhile)
            run(workers: workers, woken: woken) { worker in
                while true {
                    let item = counters.next()
                    guard item < count else { return }
                    body(item, worker)
                    if worker == 0 { meanwhile.body() }
                }
            }
        }
    }
}

/// What the calling thread does between items.
private struct Meanwhile: @unchecked Sendable {
    let body: () -> Void
}
