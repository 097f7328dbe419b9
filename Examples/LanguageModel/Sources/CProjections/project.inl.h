/* SPDX-License-Identifier: Apache-2.0 */
/* project.inl.h - all tokens of a range of panels, in tiles of LM_TILE; included once per instruction set. */

void LM_PROJECT(const lm_product *product, int first, int last) {
    const lm_matrix *matrix = product->matrix;
    const int blocks = matrix->columns / LM_BLOCK_COLUMNS;
    const size_t panel_bytes = blocks * block_bytes(matrix->type);
    for (int index = first; index < last; index++) {
        const uint8_t *panel = matrix->panels + index * panel_bytes;
        const lm_activations *x = product->activations;
        float *out = product->out + (size_t)index * LM_PANEL_ROWS;
        int left = product->tokens;
        while (left > 0) {
            const int tokens = left >= 8 ? 8 : left >= 4 ? 4 : 1;
            if (matrix->type == LM_Q4_1) {
                if (tokens == 8) {
                    LM_TILE(LM_Q4_1, panel, blocks, x, 8, out, product->out_stride);
                } else if (tokens == 4) {
                    LM_TILE(LM_Q4_1, panel, blocks, x, 4, out, product->out_stride);
                } else {
                    LM_TILE(LM_Q4_1, panel, blocks, x, 1, out, product->out_stride);
                }
            } else {
                if (tokens == 8) {
                    LM_TILE(LM_Q8_0, panel, blocks, x, 8, out, product->out_stride);
                } else if (tokens == 4) {
                    LM_TILE(LM_Q8_0, panel, blocks, x, 4, out, product->out_stride);
                } else {
                    LM_TILE(LM_Q8_0, panel, blocks, x, 1, out, product->out_stride);
                }
            }
            x += (size_t)tokens * blocks;
            out += tokens * product->out_stride;
            left -= tokens;
        }
    }
}
