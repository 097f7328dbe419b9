/* SPDX-License-Identifier: Apache-2.0 */
/* wide_scores.inl.h - biased scores beyond the range of Float.
 *
 * A finite bias may be as large as Float goes, and is larger in base 2. Where there is a bias, scores t are kept as
 *
 *     W(t) = t where |t| <= 2^127,    sign(t) (2^127 + (|t| - 2^127) / 8) beyond
 *
 * which is finite for all sums of two floats times log2(e), ascends with t, and is t itself but for masks that hold
 * Float's least number and the like. */
#ifndef QATTN_WIDE_SCORES_INL_H
#define QATTN_WIDE_SCORES_INL_H

#include "simd/vector.h"

/* Where x is beyond 2^127 and not infinite. */
QATTN_INLINE i32x16 f32x16_is_wide(f32x16 x) {
    const f32x16 magnitude = f32x16_abs(x);
    return (i32x16)(magnitude > f32x16_splat(0x1p127f)) & (i32x16)(magnitude < f32x16_splat(__builtin_inff()));
}

/* W(t) beyond 2^127, from t / 4. */
QATTN_INLINE f32x16 folded_score(f32x16 quarter) {
    const f32x16 folded = f32x16_splat(0x1p127f) + (f32x16_abs(quarter) - f32x16_splat(0x1p125f)) * 0.5f;
    return quarter < f32x16_splat(0) ? -folded : folded;
}

/* W(bias * unit + t); infinite and NaN where t or the bias is. */
QATTN_INLINE f32x16 biased_score(f32x16 t, f32x16 bias, float unit) {
    const f32x16 sum = f32x16_fma(bias, f32x16_splat(unit), t);
    if (f32x16_all_at_most(f32x16_abs(sum), 0x1p127f)) return sum;
    const f32x16 infinity = f32x16_splat(__builtin_inff());
    const f32x16 folded = folded_score(f32x16_fma(bias, f32x16_splat(unit * 0.25f), t * 0.25f));
    const i32x16 is_folded = (i32x16)(f32x16_abs(sum) > f32x16_splat(0x1p127f)) &
                             (i32x16)(f32x16_abs(bias) < infinity) & (i32x16)(f32x16_abs(t) < infinity);
    return is_folded ? folded : sum;
}

/* W(x), of a sink. */
QATTN_INLINE f32x16 wide_sink(f32x16 x) { return f32x16_is_wide(x) ? folded_score(x * 0.25f) : x; }

/* t ln(2) from W(t), where that is beyond 2^127 and x a number; otherwise x. At most Float's largest number, which rounding may pass. */
QATTN_INLINE f32x16 wide_lse(f32x16 wide, f32x16 x) {
    const f32x16 largest = f32x16_splat(0x1.fffffep127f);
    const f32x16 quarter = f32x16_splat(0x1p125f) + (f32x16_abs(wide) - f32x16_splat(0x1p127f)) * 2;
    const f32x16 product = quarter * (4 * QATTN_LN2_F);
    const f32x16 magnitude = product < largest ? product : largest;
    return f32x16_is_wide(wide) & (i32x16)(x == x) ? (wide < f32x16_splat(0) ? -magnitude : magnitude) : x;
}

#endif
