/* AVX2: float activations against codes, and the orientation in which a row holds outputs.
 *
 * Eight packed dwords hold 16 codes each; vpermps looks a code up in a table of eight floats, which
 * repeats, so that the bit above the code does not matter.
 */
#include "avx2.h"

enum { PREFETCH = 1536, MOST_TOKENS = 4, MOST_COLUMNS = 2048, STEP_ROWS = 8 };

AVX2_INLINE void row_tokens(const uint8_t *packed, size_t bytes, const float *lanes, size_t token_stride, size_t blocks,
                            const float *scales, size_t group, size_t groups, int tokens, float results[]) {
    const __m256 table = _mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0);
    __m256 totals[MOST_TOKENS][2];
    uint8_t buffer[64];
    float each[TP_LANES];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) totals[t][0] = totals[t][1] = _mm256_setzero_ps();
    for (size_t block = 0; block < blocks; block++) {
        _mm_prefetch((const char *)packed + block * 64 + PREFETCH, _MM_HINT_T0);
        const uint8_t *source = whole(packed + block * 64, bytes - block * 64, 64, buffer);
        __m256i codes[2] = {_mm256_loadu_si256((const __m256i *)source),
                            _mm256_loadu_si256((const __m256i *)(source + 32))};
        __m256 sums[MOST_TOKENS][2];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
            for (int half = 0; half < 2; half++) sums[t][half] = scales ? _mm256_setzero_ps() : totals[t][half];
        for (size_t c = 0; c < 16; c++)
#pragma GCC unroll 8
            for (size_t half = 0; half < 2; half++) {
                __m256 trits = _mm256_permutevar8x32_ps(table, codes[half]);
                codes[half] = _mm256_srli_epi32(codes[half], 2);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++) {
                    const float *x = lanes + (size_t)t * token_stride + block * TP_BLOCK + 16 * c + 8 * half;
                    sums[t][half] = _mm256_fmadd_ps(trits, _mm256_loadu_ps(x), sums[t][half]);
                }
            }
        if (scales) lane_scales(scales, block, group, groups, each);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
            for (int half = 0; half < 2; half++)
                totals[t][half] = scales ? _mm256_fmadd_ps(sums[t][half], _mm256_loadu_ps(each + 8 * half), totals[t][half])
                                         : sums[t][half];
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) results[t] = fold_lanes(totals[t][0], totals[t][1]);
}

AVX2_TARGET void tp_avx2_float_dots(const tp_tile *tile, const float *lanes, const float *scales,
                                    size_t group, float *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), blocks = tp_blocks(tile->columns);
    size_t groups = scales ? (tile->columns + group - 1) / group : 0;
    for (size_t token = 0; token < tile->tokens;) {
        int count = tile->tokens - token >= MOST_TOKENS ? MOST_TOKENS : 1;
        const float *x = lanes + token * tile->token_stride;
        for (size_t row = 0; row < tile->rows; row++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            const float *row_scales = scales ? scales + row * groups : NULL;
            float results[MOST_TOKENS];
            if (count == MOST_TOKENS)
                row_tokens(packed, bytes, x, tile->token_stride, blocks, row_scales, group, groups, MOST_TOKENS, results);
            else
                row_tokens(packed, bytes, x, tile->token_stride, blocks, row_scales, group, groups, 1, results);
            for (size_t t = 0; t < (size_t)count; t++) out[(token + t) * out_stride + row] = results[t];
        }
        token += (size_t)count;
    }
}

/* Columns: 32 packed bytes are 8 lanes of 16 codes. Eight codes at a time have their sums in registers
 * while STEP_ROWS rows pass; the sums wait in a buffer [half block][code][lane]. */

AVX2_TARGET void tp_avx2_float_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                                       const float *x, float *out) {
    float sums[MOST_COLUMNS];
    const __m256 trits = _mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0);
    size_t bytes = tp_row_bytes(columns);
    uint8_t buffer[32];
    memset(sums, 0, sizeof sums);
    for (size_t start = 0; start < rows; start += STEP_ROWS) {
        size_t end = start + STEP_ROWS < rows ? start + STEP_ROWS : rows;
        for (size_t at = 0; at < bytes; at += 32)
            for (int upper = 0; upper < 2; upper++) {
                float *target = sums + at * 4 + 64 * upper;
                __m256 total[8];
                for (int c = 0; c < 8; c++) total[c] = _mm256_loadu_ps(target + 8 * c);
                for (size_t row = start; row < end; row++) {
                    const uint8_t *here = packed + row * row_bytes + at;
                    _mm_prefetch((const char *)here + STEP_ROWS * row_bytes, _MM_HINT_T0);
                    __m256i codes = _mm256_loadu_si256(whole(here, bytes - at, 32, buffer));
                    codes = _mm256_srli_epi32(codes, 16 * upper);
                    __m256 table = _mm256_mul_ps(trits, _mm256_set1_ps(x[row]));
                    for (int c = 0; c < 8; c++) {
                        total[c] = _mm256_add_ps(total[c], _mm256_permutevar8x32_ps(table, codes));
                        codes = _mm256_srli_epi32(codes, 2);
                    }
                }
                for (int c = 0; c < 8; c++) _mm256_storeu_ps(target + 8 * c, total[c]);
            }
    }
    for (size_t j = 0; j < columns; j++) out[j] = sums[j / 128 * 128 + j % 16 * 8 + j % 128 / 16];
}

AVX2_TARGET void tp_avx2_int_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                                     const int8_t *x, int32_t *out) {
    int32_t sums[MOST_COLUMNS];
    const __m256i trits = _mm256_setr_epi32(-1, 0, 1, 0, -1, 0, 1, 0);
    size_t bytes = tp_row_bytes(columns);
    uint8_t buffer[32];
    memset(sums, 0, sizeof sums);
    for (size_t start = 0; start < rows; start += STEP_ROWS) {
        size_t end = start + STEP_ROWS < rows ? start + STEP_ROWS : rows;
        for (size_t at = 0; at < bytes; at += 32)
            for (int upper = 0; upper < 2; upper++) {
                int32_t *target = sums + at * 4 + 64 * upper;
                __m256i total[8];
                for (int c = 0; c < 8; c++) total[c] = _mm256_loadu_si256((const __m256i *)(target + 8 * c));
                for (size_t row = start; row < end; row++) {
                    const uint8_t *here = packed + row * row_bytes + at;
                    _mm_prefetch((const char *)here + STEP_ROWS * row_bytes, _MM_HINT_T0);
                    __m256i codes = _mm256_loadu_si256(whole(here, bytes - at, 32, buffer));
                    codes = _mm256_srli_epi32(codes, 16 * upper);
                    __m256i table = _mm256_mullo_epi32(trits, _mm256_set1_epi32(x[row]));
                    for (int c = 0; c < 8; c++) {
                        total[c] = _mm256_add_epi32(total[c], _mm256_permutevar8x32_epi32(table, codes));
                        codes = _mm256_srli_epi32(codes, 2);
                    }
                }
                for (int c = 0; c < 8; c++) _mm256_storeu_si256((__m256i *)(target + 8 * c), total[c]);
            }
    }
    for (size_t j = 0; j < columns; j++) out[j] += sums[j / 128 * 128 + j % 16 * 8 + j % 128 / 16];
}
