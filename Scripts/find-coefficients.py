#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""find-coefficients.py - finds the float32 coefficients of exp2, log2 and tanh for the kernels and the reference.

    Scripts/find-coefficients.py            writes the two files below
    Scripts/find-coefficients.py --check    finds the coefficients again and compares, writes nothing

Writes CKernels/simd/coefficients.h and Sources/AttentionReference/Coefficients.swift. Needs numpy and mpmath.

    exp2   2^f ~ (((((c6 f + c5) f + c4) f + c3) f + c2) f + c1) f + 1     f in [-1/2, 1/2]
           2^f ~ ((c3 f + c2) f + c1) f + 1, for what is rounded to bfloat16
    log2   log2(1 + u) ~ u (((... (c8 u + c7) u ...) u + c1) u + c0)       u in [sqrt(1/2) - 1, sqrt(2) - 1]
    tanh   tanh(x) ~ x S(x^2), S = (((s4 z + s3) z + s2) z + s1) z + 1     x^2 <= 25/64
           tanh(y) ~ y k P(y^2) / Q(y^2), P and Q = z^4 + ...              y in [-9, 9]

all by Horner's rule with one fused multiply-add in binary32 per coefficient. A Remez exchange in 40 digits gives the
real coefficients. Rounding them costs more than the polynomial's own error, so for exp2 and log2 pairs of the rounded
coefficients are then moved by a few units in the last place, as long as the largest error of the binary32 evaluation
falls. The search looks at some arguments; every round then goes through all of them and adds the worst to those looked
at. Those of the short exp2 and of tanh are rounded and left so, but for the last one of P, which makes the quotient k P / Q 1 at 0.
"""

import argparse
import itertools
import pathlib
import sys

import mpmath
import numpy as np

mpmath.mp.dps = 40

ROOT = pathlib.Path(__file__).resolve().parent.parent
C_HEADER = ROOT / "CKernels" / "simd" / "coefficients.h"
SWIFT_FILE = ROOT / "Sources" / "AttentionReference" / "Coefficients.swift"

LOG2E = 1.4426950408889634  # the double nearest to log2(e)
LN2 = 0.6931471805599453  # the double nearest to ln(2)

# What a move must gain, in units in the last place. numpy's own exp2 and log1p differ between machines by about 1e-8 of
# such a unit: a margin above that makes every machine take the same moves.
MARGIN = 1e-6


def remez(function, low, high, degree, weight=lambda x: 1):
    """Coefficients, highest first, of the polynomial with the least maximum of weight * error, and that maximum."""
    count = degree + 2
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = [middle - half * mpmath.cos(mpmath.pi * i / (count - 1)) for i in range(count)]
    grid = [low + (high - low) * i / 400 for i in range(401)]
    for _ in range(8):
        system = mpmath.matrix(count, count)
        values = mpmath.matrix(count, 1)
        for i, x in enumerate(nodes):
            for k in range(degree + 1):
                system[i, k] = x**k
            system[i, degree + 1] = (-1) ** i / mpmath.mpf(weight(x))
            values[i] = function(x)
        solution = mpmath.lu_solve(system, values)
        polynomial = [solution[degree - k] for k in range(degree + 1)]
        errors = [(function(x) - mpmath.polyval(polynomial, x)) * weight(x) for x in grid]
        nodes = [grid[i] for i in alternating_extrema(errors)]
        if len(nodes) != count:
            raise ArithmeticError("the error does not alternate: use a finer grid")
    return polynomial, abs(solution[degree + 1])


def alternating_extrema(errors):
    """One index per run of equal sign: where the error is largest."""
    picked = []
    for i, error in enumerate(errors):
        if picked and errors[picked[-1]] * error > 0:
            if abs(error) > abs(errors[picked[-1]]):
                picked[-1] = i
        else:
            picked.append(i)
    return picked


def floats_between(low, high, stride):
    """Every stride-th float32 from low to high, both positive, as float64."""
    first, last = (int(np.float32(x).view(np.int32)) for x in (low, high))
    return np.arange(first, last + 1, stride, dtype=np.int32).view(np.float32).astype(np.float64)


def to_float32(x):
    return x.astype(np.float32).astype(np.float64)


def horner(coefficients, x):
    """Horner's rule with binary32 fma: the product of two floats is exact in float64, so is nearly every sum."""
    result = np.full(x.shape, np.float64(coefficients[0]))
    for coefficient in coefficients[1:]:
        result = to_float32(result * x + np.float64(coefficient))
    return result


class Exp2:
    """Error of 2^f in units in the last place of the result."""

    def __init__(self):
        # With the constant term fixed at 1 the other six are those of (2^f - 1) / f.
        real, error = remez(
            lambda f: mpmath.expm1(f * mpmath.ln(2)) / f if f else mpmath.ln(2), mpmath.mpf(-0.5), mpmath.mpf(0.5), 5
        )
        self.start = [np.float32(float(c)) for c in real] + [np.float32(1)]
        self.free = range(6)
        self.polynomial_error = error / 2
        positive = floats_between(2.0**-4, 0.5, 251)
        self.sample = np.concatenate([positive, -positive])

    @staticmethod
    def arguments():
        """Every float of magnitude 2^-4 and more, in parts: below, the last rounding, half a unit, is nearly all."""
        for exponent in (-4, -3, -2):
            positive = floats_between(2.0**exponent, 2.0 ** (exponent + 1), 1)
            for part in np.array_split(positive, 16):
                yield part
                yield -part

    @staticmethod
    def error(coefficients, f):
        exact = np.exp2(f)
        unit = np.where(exact < 1, 2.0**-24, 2.0**-23)
        return np.abs(horner(coefficients, f) - exact) / unit


class ShortExp2:
    """2^f where the result is rounded to eight bits: an error of 2^-12 is a sixteenth of that rounding's."""

    def __init__(self):
        real, _ = remez(
            lambda f: mpmath.expm1(f * mpmath.ln(2)) / f if f else mpmath.ln(2), mpmath.mpf(-0.5), mpmath.mpf(0.5), 2
        )
        self.coefficients = [np.float32(float(c)) for c in real] + [np.float32(1)]
        f = np.linspace(-0.5, 0.5, 100001)
        self.error = float(np.abs(horner(self.coefficients, to_float32(f)) / np.exp2(to_float32(f)) - 1).max())


class Log2:
    """Error of log2(1 + u), with exponent 0, in units in the last place of the result."""

    def __init__(self):
        low, high = mpmath.sqrt(0.5) - 1, mpmath.sqrt(2) - 1
        real, error = remez(lambda u: mpmath.log1p(u) / u / mpmath.ln(2) if u else 1 / mpmath.ln(2), low, high, 8)
        self.start = [np.float32(float(c)) for c in real]
        self.free = range(9)
        self.polynomial_error = error * high
        self.sample = self.mantissas(601)

    @staticmethod
    def mantissas(stride):
        """u = z - 1 for z in [sqrt(1/2), sqrt(2)], without z = 1, where the result is exactly 0."""
        u = floats_between(0.5**0.5, 2.0**0.5, stride) - 1
        return u[u != 0]

    @staticmethod
    def arguments():
        """Every u there is, in parts."""
        yield from np.array_split(Log2.mantissas(1), 16)

    @staticmethod
    def error(coefficients, u):
        exact = np.log1p(u) * LOG2E
        unit = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 23)
        return np.abs(to_float32(horner(coefficients, u) * u) - exact) / unit

    @staticmethod
    def absolute_error(coefficients):
        """Largest error of fma(u, P(u), e) over max(1, |result|)."""
        u = Log2.mantissas(1)
        product = horner(coefficients, u) * u
        worst = 0.0
        for exponent in (-2, -1, 0, 1, 2):
            exact = np.log1p(u) * LOG2E + exponent
            error = np.abs(to_float32(product + exponent) - exact)
            worst = max(worst, float((error / np.maximum(1, np.abs(exact))).max()))
        return worst


class Tanh:
    """tanh(y) = y k P(y^2) / Q(y^2): the least largest relative error on [0, 9]; beyond, tanh(9) is off by 3e-8.

    P and Q have the leading coefficient 1: Horner's rule then starts with a sum, not with a fused multiply-add.
    Near 0, x S(x^2) takes half the time. How far is a choice: at 5/8, S is more accurate than the quotient there."""

    DEGREE = 4
    LIMIT = 9
    NEAR = 25 / 64  # of x^2

    def __init__(self):
        self.find_quotient()
        # With the constant term fixed at 1 the other four are those of (tanh(x) / x - 1) / z, z = x^2, whose errors
        # count z-fold in the sum.
        real, self.near_error = remez(
            lambda z: (self.slope(z) - 1) / z,
            mpmath.mpf(self.NEAR) / 1000,
            mpmath.mpf(self.NEAR),
            3,
            weight=lambda z: z / self.slope(z),
        )
        self.near = [np.float32(float(c)) for c in real] + [np.float32(1)]

    @staticmethod
    def slope(z):
        return mpmath.tanh(mpmath.sqrt(z)) / mpmath.sqrt(z)

    def find_quotient(self):
        count = 2 * self.DEGREE + 2
        grid = [mpmath.mpf(self.LIMIT) * (i or mpmath.mpf(1) / 50) / 400 for i in range(401)]
        nodes = [self.LIMIT * (1 - mpmath.cos(mpmath.pi * (i + mpmath.mpf(1) / 2) / count)) / 2 for i in range(count)]
        error, q = mpmath.mpf(0), [mpmath.mpf(1)]
        for _ in range(20):
            for _ in range(5):
                p, q, error = self.exchange(nodes, q, error)
            errors = [mpmath.polyval(p, y * y) / mpmath.polyval(q, y * y) * y / mpmath.tanh(y) - 1 for y in grid]
            nodes = [grid[i] for i in alternating_extrema(errors)]
            if len(nodes) != count:
                raise ArithmeticError("the error does not alternate: use a finer grid")
        self.factor = np.float32(float(p[0] / q[0]))
        self.numerator, self.denominator = ([np.float32(float(c / x[0])) for c in x[1:]] for x in (p, q))
        self.numerator[-1] = np.float32(float(self.denominator[-1]) / float(self.factor))
        self.quotient_error = abs(error)

    def exchange(self, nodes, q, error):
        """P, Q (highest first, Q ends with 1) and e with P - f Q (1 +- e) = 0 at the nodes; q and error from before."""
        count = len(nodes)
        system, values = mpmath.matrix(count, count), mpmath.matrix(count, 1)
        for i, y in enumerate(nodes):
            f, z, sign = mpmath.tanh(y) / y, y * y, (-1) ** i
            for k in range(self.DEGREE + 1):
                system[i, k] = z**k
            for k in range(1, self.DEGREE + 1):
                system[i, self.DEGREE + k] = -f * z**k * (1 + sign * error)
            slope = f * sign * mpmath.polyval(q, z)
            system[i, count - 1] = -slope
            values[i] = f * (1 + sign * error) - slope * error
        x = list(mpmath.lu_solve(system, values))
        return x[self.DEGREE :: -1], x[2 * self.DEGREE : self.DEGREE : -1] + [mpmath.mpf(1)], x[-1]

    def largest_errors(self):
        """Near 0 and beyond, in units in the last place, over every 97th float from 2^-12 on; below, tanh(y) is y."""
        y = floats_between(2.0**-12, float(self.LIMIT), 97)
        z, exact = to_float32(y * y), np.tanh(y)
        unit = 2.0 ** (np.floor(np.log2(exact)) - 23)
        p, q = (horner([np.float32(1)] + c, z) for c in (self.numerator, self.denominator))
        quotient = to_float32(to_float32(to_float32(y * self.factor) * p) / q)
        near = to_float32(y * horner(self.near, z))
        is_near = z <= self.NEAR
        errors = np.abs(np.where(is_near, near, quotient) - exact) / unit
        return float(errors[is_near].max()), float(errors[~is_near].max())


def moved(coefficient, units):
    return np.int32(int(np.float32(coefficient).view(np.int32)) + units).view(np.float32)


def search(problem):
    """Coefficients after the search, and their largest error over all arguments."""
    best, sample = list(problem.start), problem.sample
    found = (np.inf, best)
    for _ in range(3):
        best = descend(problem, best, sample)
        largest, worst = worst_arguments(problem, best)
        found = min(found, (largest, best), key=lambda pair: pair[0])
        sample = np.concatenate([sample, worst])
    return found[1], found[0]


def worst_arguments(problem, coefficients):
    """The largest error over all arguments, and the eight worst of each part."""
    largest, worst = 0.0, []
    for part in problem.arguments():
        error = problem.error(coefficients, part)
        largest = max(largest, float(error.max()))
        worst.append(part[np.argpartition(error, -8)[-8:]])
    return largest, np.concatenate(worst)


def descend(problem, best, sample):
    """Moves pairs of coefficients by up to two units each, as long as that helps."""
    least = problem.error(best, sample).max()
    moves = [m for m in itertools.product((-2, -1, 0, 1, 2), repeat=2) if m != (0, 0)]
    improved = True
    while improved:
        improved = False
        # The lowest places of a coefficient matter most for the low powers: those last in the list.
        for i, j in itertools.combinations(reversed(problem.free), 2):
            for a, b in moves:
                trial = list(best)
                trial[i], trial[j] = moved(best[i], a), moved(best[j], b)
                # A few hundred arguments refuse most trials at a small part of the cost.
                if problem.error(trial, sample[-512:]).max() >= least - MARGIN:
                    continue
                error = problem.error(trial, sample).max()
                if error < least - MARGIN:
                    best, least, improved = trial, error, True
    return best


def hexadecimal(x):
    """A float literal that C11 and Swift both read, without trailing zeros."""
    mantissa, exponent = float(x).hex().split("p")
    mantissa = mantissa.rstrip("0") if "." in mantissa else mantissa
    return mantissa.rstrip(".") + "p" + exponent


def c_array(name, coefficients):
    lines = "".join(f"    {hexadecimal(c)}f,\n" for c in coefficients)
    return f"static const float {name}[{len(coefficients)}] = {{\n{lines}}};\n"


def swift_constants(coefficients, name="c"):
    degree = len(coefficients) - 1
    return "".join(f"    static let {name}{degree - k}: Float = {hexadecimal(c)}\n" for k, c in enumerate(coefficients))


def generate():
    exp2_problem, short, log2_problem, tanh = Exp2(), ShortExp2(), Log2(), Tanh()
    near_error, far_error = tanh.largest_errors()
    exp2, exp2_error = search(exp2_problem)
    log2, log2_error = search(log2_problem)
    facts = {
        "exp2_error": f"{exp2_error:.2f}",
        "exp2_polynomial": mpmath.nstr(exp2_problem.polynomial_error, 2),
        "short_error": f"{short.error:.1e}",
        "log2_error": f"{log2_error:.2f}",
        "log2_absolute": f"{Log2.absolute_error(log2):.1e}",
        "log2_polynomial": mpmath.nstr(log2_problem.polynomial_error, 2),
        "tanh_error": f"{far_error:.2f}",
        "tanh_near": hexadecimal(np.float32(Tanh.NEAR)),
        "near_error": f"{near_error:.2f}",
        "near_polynomial": mpmath.nstr(tanh.near_error, 2),
        "tanh_quotient": mpmath.nstr(tanh.quotient_error, 2),
    }
    header = C_TEMPLATE.format(
        **facts,
        log2e=repr(LOG2E),
        log2e_float=hexadecimal(np.float32(LOG2E)),
        ln2_float=hexadecimal(np.float32(LN2)),
        exp2=c_array("qattn_exp2_coefficients", exp2),
        short=c_array("qattn_short_exp2_coefficients", short.coefficients),
        log2=c_array("qattn_log2_coefficients", log2),
        tanh_factor=hexadecimal(tanh.factor),
        tanh_s=c_array("qattn_near_tanh", tanh.near),
        tanh_p=c_array("qattn_tanh_numerator", tanh.numerator),
        tanh_q=c_array("qattn_tanh_denominator", tanh.denominator),
    )
    swift = SWIFT_TEMPLATE.format(
        **facts,
        log2e=repr(LOG2E),
        log2e_float=hexadecimal(np.float32(LOG2E)),
        ln2_float=hexadecimal(np.float32(LN2)),
        exp2=swift_constants(exp2),
        short=swift_constants(short.coefficients),
        log2=swift_constants(log2),
        tanh_factor=hexadecimal(tanh.factor),
        tanh_s=swift_constants(tanh.near, "s"),
        tanh_p=swift_constants(tanh.numerator, "p"),
        tanh_q=swift_constants(tanh.denominator, "q"),
    )
    return {C_HEADER: header, SWIFT_FILE: swift}


C_TEMPLATE = """\
/* SPDX-License-Identifier: Apache-2.0 */
/* coefficients.h - coefficients of exp2, log2 and tanh. Written by Scripts/find-coefficients.py: change that. */
#ifndef QATTN_COEFFICIENTS_H
#define QATTN_COEFFICIENTS_H

#define QATTN_LOG2E   {log2e} /* log2(e), a double */
#define QATTN_LOG2E_F {log2e_float}f     /* the same, rounded to float */
#define QATTN_LN2_F   {ln2_float}f      /* ln(2), rounded to float */

/* 2^f = (((((c[0] f + c[1]) f + c[2]) f + c[3]) f + c[4]) f + c[5]) f + c[6], f in [-1/2, 1/2].
 * Largest error: {exp2_polynomial} in real numbers, {exp2_error} ulp by Horner's rule with fma in float32. */
{exp2}
/* 2^f = ((c[0] f + c[1]) f + c[2]) f + c[3], f in [-1/2, 1/2], for what is rounded to bfloat16.
 * Largest error: {short_error} of the value. */
{short}
/* log2(1 + u) = u P(u), P(u) = (... (c[0] u + c[1]) u + ...) u + c[8], u in [sqrt(1/2) - 1, sqrt(2) - 1].
 * Largest error: {log2_polynomial} in real numbers, {log2_error} ulp by Horner's rule with fma in float32, and
 * {log2_absolute} max(1, |e + u P(u)|) for fma(u, P(u), e) with an integer e. */
{log2}
/* tanh(x) = x S(x^2), S(z) = (((c[0] z + c[1]) z + c[2]) z + c[3]) z + c[4], x^2 <= QATTN_TANH_NEAR.
 * Largest error: {near_polynomial} of the value in real numbers, {near_error} ulp in float32. */
#define QATTN_TANH_NEAR {tanh_near}f
{tanh_s}
/* tanh(y) = y k P(y^2) / Q(y^2), y in [-9, 9], P(z) = z^4 + c[0] z^3 + ... + c[3], and Q likewise; beyond, tanh(9) is off
 * by 3e-8 at most. Largest error: {tanh_quotient} of the value in real numbers, {tanh_error} ulp in float32. */
#define QATTN_TANH_LIMIT  9
#define QATTN_TANH_FACTOR {tanh_factor}f /* k */
{tanh_p}
{tanh_q}
#endif
"""

SWIFT_TEMPLATE = """\
// SPDX-License-Identifier: Apache-2.0
// Coefficients.swift - coefficients of exp2, log2 and tanh. Written by Scripts/find-coefficients.py: change that.

/// log2(e).
let log2e: Double = {log2e}
/// log2(e), rounded to Float.
let log2eFloat: Float = {log2e_float}
/// ln(2), rounded to Float.
let ln2Float: Float = {ln2_float}

/// 2^f = (((((c6 f + c5) f + c4) f + c3) f + c2) f + c1) f + c0 for f in [-1/2, 1/2].
/// Largest error: {exp2_polynomial} in real numbers, {exp2_error} ulp by Horner's rule with fma in Float.
enum Exp2Coefficients {{
{exp2}}}

/// 2^f = ((c3 f + c2) f + c1) f + c0 for f in [-1/2, 1/2], for what is rounded to bfloat16.
/// Largest error: {short_error} of the value.
enum ShortExp2Coefficients {{
{short}}}

/// log2(1 + u) = u P(u), P(u) = (... (c8 u + c7) u + ...) u + c0, for u in [sqrt(1/2) - 1, sqrt(2) - 1].
/// Largest error: {log2_polynomial} in real numbers, {log2_error} ulp by Horner's rule with fma in Float, and
/// {log2_absolute} max(1, |e + u P(u)|) for fma(u, P(u), e) with an integer e.
enum Log2Coefficients {{
{log2}}}

/// tanh(x) = x S(x^2) for x^2 <= near; S = (((s4 z + s3) z + s2) z + s1) z + s0.
/// Largest error: {near_polynomial} of the value in real numbers, {near_error} ulp in Float.
///
/// tanh(y) = y k P(y^2) / Q(y^2) beyond, y in [-9, 9]; P = (((z + p3) z + p2) z + p1) z + p0, and Q likewise.
/// Largest error: {tanh_quotient} of the value in real numbers, {tanh_error} ulp in Float.
enum TanhCoefficients {{
    static let near: Float = {tanh_near}
{tanh_s}
    /// Beyond, tanh(9) is off by 3e-8 at most.
    static let limit: Float = 9
    /// k.
    static let factor: Float = {tanh_factor}
{tanh_p}{tanh_q}}}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    check = parser.parse_args().check
    stale = []
    for path, text in generate().items():
        if not check:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        sys.exit("not what find-coefficients.py finds: " + ", ".join(stale))


if __name__ == "__main__":
    main()
