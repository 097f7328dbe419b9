// SPDX-License-Identifier: Apache-2.0
// FloatMode.swift - calls compute in the floating-point mode of the contract, and leave their caller's as it was.

import CKernels

/// The floating-point mode of a thread: rounding, what becomes of subnormal numbers, which exceptions are raised, and the
/// flags of those that were.
///
/// Everything public that computes in floating point does so within ``inFloatMode(_:)``, or between ``enter()`` and
/// ``leave()``. Kernels see to it by themselves, and helper threads have the contract's mode from their start.
struct FloatMode {
    private let caller: qattn_float_mode

    /// Sets the mode of the contract.
    static func enter() -> FloatMode { FloatMode(caller: qattn_enter_float_mode()) }

    /// Restores the caller's, flags included.
    func leave() { qattn_leave_float_mode(caller) }
}

/// Computes in the mode of the contract.
///
/// The optimiser takes floating-point arithmetic for something that depends on its operands alone, and could move it to
/// either side of a change of mode. It cannot move what is in a function of its own: so this one is not optimised, and
/// what it calls is never taken into it.
@_optimize(none) @inline(never)
func inFloatMode<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    let mode = FloatMode.enter()
    defer { mode.leave() }
    return try body()
}
