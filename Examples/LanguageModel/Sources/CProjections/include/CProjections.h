/* SPDX-License-Identifier: Apache-2.0 */
/* CProjections.h - products of quantised weight matrices with rows of activations, and what else a decoder layer does. */
#ifndef CPROJECTIONS_H
#define CPROJECTIONS_H

#include <stddef.h>
#include <stdint.h>

/* Weights
 *
 * A matrix [rows, columns] is kept as in the file, 4 or 8 bits per weight, in panels of 16 rows that lie side by side, so
 * that a vector of 16 lanes holds one number of each row. A block is 32 columns of a panel:
 *
 *     LM_Q4_1   w = d q + m, q in 0..15     8 groups of 4 columns, two per 64 bytes (low and high nibbles): byte 4 r + i of
 *                                           vector j holds columns 8 j + i and 8 j + 4 + i of row r; then d, then m
 *     LM_Q8_0   w = d q, q in -128..127     8 groups of 4 columns, 64 bytes each, q + 128; then d
 *
 * d and m are 16 float16 each. A panel has columns / 32 blocks; the last one is filled up with rows of zeros.
 */
typedef enum { LM_Q4_1 = 3, LM_Q8_0 = 8 } lm_weight_type;

#define LM_PANEL_ROWS    16
#define LM_BLOCK_COLUMNS 32

typedef struct {
    lm_weight_type type;
    int rows, columns;
    const uint8_t *panels;
} lm_matrix;

/* Bytes of a block of a panel. */
size_t lm_block_bytes(lm_weight_type type);

/* Copies row `row` from its form in the file, columns / 32 blocks of d, m, 16 bytes (Q4_1) or d, 32 bytes (Q8_0). */
void lm_pack_row(lm_weight_type type, int columns, const uint8_t *file_row, int row, uint8_t *panels);

/* One row as floats: d q + m or d q, rounded once. */
void lm_unpack_row(const lm_matrix *matrix, int row, float *out);

/* Activations
 *
 * 32 neighbours of a row as integers of 24 bits and their common scale, the integers in three signed bytes each:
 *
 *     x[i] = scale (65536 high[i] + 256 middle[i] + low[i]),   scale = max |x| / 8355711
 *
 * so that the error of an element is at most 2^-23 of the largest of its block: a unit in the last place of such a float. A block whose
 * largest magnitude is below 2^-100 counts as zeros; one with a NaN or an infinity has the scale NaN.
 */
typedef struct {
    int8_t high[LM_BLOCK_COLUMNS], middle[LM_BLOCK_COLUMNS], low[LM_BLOCK_COLUMNS];
    /* The sums of 256 high + middle, and of low. */
    int32_t upper_sum, lower_sum;
    float scale;
    /* 256 upper_sum + lower_sum: S. */
    float total;
    /* 256 high + middle, and low, for processors that multiply words: of each four the even ones before the odd ones. */
    int16_t upper[LM_BLOCK_COLUMNS], lower[LM_BLOCK_COLUMNS];
} lm_activations;

/* Rows [tokens, columns] as blocks [tokens, columns / 32]. */
void lm_quantise(const float *rows, int tokens, int columns, lm_activations *out);

/* out[t * out_stride + r] = sum over c of w[r][c] x[t][c], for the rows of panels first..<last.
 *
 * Per block of 32 columns two sums of integers, exact: U of q (256 high + middle), L of q low; then in floats, blocks in
 * ascending order, from +0,
 *
 *     I = fma(U, 256, L)
 *     Q4_1:  out = fma(scale, fma(d, I, m S), out),  S = 256 upper_sum + lower_sum
 *     Q8_0:  out = fma(d scale, I, out)
 *
 * So the bits of an output depend on its weights and its row of activations alone: not on tokens, threads, panels or the
 * instruction set. `out` has rows of at least 16 * last floats.
 */
typedef struct {
    const lm_matrix *matrix;
    const lm_activations *activations;
    int tokens;
    float *out;
    size_t out_stride;
} lm_product;

/* An instruction set's function for that. */
typedef void (*lm_project_function)(const lm_product *product, int first_panel, int last_panel);

/* The sets that this CPU runs, best first, of "x86_64_v4_vnni", "x86_64_v3" and "portable". NULL beyond the last. */
const char *lm_set_name(int index);
lm_project_function lm_set_function(int index);

/* out[i] = gate[i] / (1 + exp(-gate[i])) up[i]: SwiGLU, the same bits everywhere. `out` may be `gate` or `up`, not overlap them otherwise. */
void lm_swiglu(const float *gate, const float *up, float *out, int count);

/* The sum of bytes, read as fast as one thread can: measures bandwidth. */
uint64_t lm_read(const uint8_t *bytes, size_t count);

/* Threads
 *
 * Runs body(context, part) for all parts, on the caller and `threads` - 1 others that wait a few microseconds for the next
 * call before they sleep.
 */
typedef struct lm_workers lm_workers;
lm_workers *lm_workers_create(int threads);
void lm_workers_run(lm_workers *workers, int parts, void (*body)(void *context, int part), void *context);
void lm_workers_destroy(lm_workers *workers);

#endif
