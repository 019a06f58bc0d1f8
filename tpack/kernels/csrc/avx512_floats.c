/* AVX-512: float activations against codes.
 *
 * Sixteen packed dwords hold 16 codes each; vpermps looks codes up in a table of 16 floats by the low
 * four bits of a dword, that is by two codes at once. One table answers for the lower code and a
 * second for the upper, so a shift is needed only for every other code and no mask at all.
 */
#include "avx512.h"

AVX512_INLINE __m512 lower_table(void) {
    return _mm512_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0);
}
AVX512_INLINE __m512 upper_table(void) {
    return _mm512_setr_ps(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0);
}

/* One row, a few tokens; scales NULL: none. */
AVX512_INLINE void row_tokens(const uint8_t *packed, size_t bytes, const float *lanes, size_t token_stride, size_t blocks,
                              const float *scales, size_t group, size_t groups, int tokens, __m512 totals[]) {
    const __m512 lower = lower_table(), upper = upper_table();
    __m512 odd[4]; /* a second sum each, for the latency of the additions */
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) totals[t] = odd[t] = _mm512_setzero_ps();
    for (size_t block = 0; block < blocks; block++) {
        _mm_prefetch((const char *)packed + block * 64 + TP_AHEAD, _MM_HINT_T1);
        __m512i codes = load_block(packed + block * 64, bytes - block * 64);
        __m512 even_sum[4], odd_sum[4];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            even_sum[t] = scales ? _mm512_setzero_ps() : totals[t];
            odd_sum[t] = scales ? _mm512_setzero_ps() : odd[t];
        }
        for (int c = 0; c < 16; c += 2) {
            __m512 even = _mm512_permutexvar_ps(codes, lower), uneven = _mm512_permutexvar_ps(codes, upper);
            codes = _mm512_srli_epi32(codes, 4);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) {
                const float *x = lanes + (size_t)t * token_stride + block * TP_BLOCK + 16 * c;
                even_sum[t] = _mm512_fmadd_ps(even, _mm512_loadu_ps(x), even_sum[t]);
                odd_sum[t] = _mm512_fmadd_ps(uneven, _mm512_loadu_ps(x + 16), odd_sum[t]);
            }
        }
        if (scales) {
            __m512 scale = lane_scales(scales, block, group, groups);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++)
                totals[t] = _mm512_fmadd_ps(_mm512_add_ps(even_sum[t], odd_sum[t]), scale, totals[t]);
        } else {
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) {
                totals[t] = even_sum[t];
                odd[t] = odd_sum[t];
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) totals[t] = _mm512_add_ps(totals[t], odd[t]);
}

enum { MICRO_ROWS = 4, MICRO_TOKENS = 6, CHUNK_BLOCKS = 2 /* ten lines of 2 KB fit the L1 cache */ };

/* Trits as f32 in the activations' order: [row][block][code][lane]. */
AVX512_TARGET static void unpack_lanes(const tp_tile *tile, size_t first_block, size_t blocks,
                                       const float *scales, size_t group, float *panel) {
    const __m512 lower = lower_table(), upper = upper_table();
    size_t bytes = tp_row_bytes(tile->columns), groups = scales ? (tile->columns + group - 1) / group : 0;
    for (size_t row = 0; row < tile->rows; row++) {
        const uint8_t *packed = tile->packed + row * tile->row_bytes;
        float *line = panel + row * blocks * TP_BLOCK;
        for (size_t block = first_block; block < first_block + blocks; block++, line += TP_BLOCK) {
            __m512i codes = load_block(packed + block * 64, bytes - block * 64);
            __m512 scale = scales ? lane_scales(scales + row * groups, block, group, groups) : _mm512_set1_ps(1);
            for (int c = 0; c < 16; c += 2, codes = _mm512_srli_epi32(codes, 4)) {
                _mm512_store_ps(line + 16 * c, _mm512_mul_ps(scale, _mm512_permutexvar_ps(codes, lower)));
                _mm512_store_ps(line + 16 * c + 16, _mm512_mul_ps(scale, _mm512_permutexvar_ps(codes, upper)));
            }
        }
    }
}

AVX512_INLINE void micro(const float *panel, size_t count, const float *lanes, size_t token_stride,
                         int tokens, int add, float *out, size_t out_stride) {
    __m512 sums[MICRO_TOKENS][MICRO_ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int r = 0; r < MICRO_ROWS; r++) sums[t][r] = _mm512_setzero_ps();
    for (size_t at = 0; at < count; at += 16) {
        __m512 w[MICRO_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < MICRO_ROWS; r++) w[r] = _mm512_load_ps(panel + (size_t)r * count + at);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            __m512 x = _mm512_loadu_ps(lanes + (size_t)t * token_stride + at);
#pragma GCC unroll 8
            for (int r = 0; r < MICRO_ROWS; r++) sums[t][r] = _mm512_fmadd_ps(w[r], x, sums[t][r]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        __m512 *s = sums[t];
        __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1]));
        __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(s[2], s[3]), _mm512_unpackhi_ps(s[2], s[3]));
        __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        __m512 all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        float *line = out + (size_t)t * out_stride;
        _mm_storeu_ps(line, add ? _mm_add_ps(_mm_loadu_ps(line), four) : four);
    }
}

AVX512_TARGET static void float_matmul(const tp_tile *tile, const float *lanes, const float *scales,
                                       size_t group, float *out, size_t out_stride) {
    size_t blocks = tp_blocks(tile->columns), token_stride = tile->token_stride;
    float *panel = tile->scratch;
    for (size_t first = 0; first < blocks; first += CHUNK_BLOCKS) {
        size_t count = blocks - first < CHUNK_BLOCKS ? blocks - first : CHUNK_BLOCKS, columns = count * TP_BLOCK;
        int add = first > 0;
        unpack_lanes(tile, first, count, scales, group, panel);
        for (size_t token = 0; token < tile->tokens; token += MICRO_TOKENS) {
            const float *x = lanes + token * token_stride + first * TP_BLOCK;
            for (size_t row = 0; row < tile->rows; row += MICRO_ROWS) {
                const float *w = panel + row * columns;
                float *target = out + token * out_stride + row;
#define MICRO(n) micro(w, columns, x, token_stride, n, add, target, out_stride)
                switch (tile->tokens - token) {
                case 1: MICRO(1); break;
                case 2: MICRO(2); break;
                case 3: MICRO(3); break;
                case 4: MICRO(4); break;
                case 5: MICRO(5); break;
                default: MICRO(6); break;
                }
#undef MICRO
            }
        }
    }
}

AVX512_TARGET void tp_avx512_float_dots(const tp_tile *tile, const float *lanes, const float *scales,
                                        size_t group, float *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), blocks = tp_blocks(tile->columns);
    size_t groups = scales ? (tile->columns + group - 1) / group : 0;
    if (tile->tokens > 8) {
        float_matmul(tile, lanes, scales, group, out, out_stride);
        return;
    }
    if (tile->tokens == 1 && !scales && tile->rows >= 8) {
        tp_avx512_float_matvec(tile, lanes + blocks * TP_BLOCK, out);
        return;
    }
    for (size_t token = 0; token < tile->tokens;) {
        int count = tile->tokens - token >= 4 ? 4 : 1;
        const float *x = lanes + token * tile->token_stride;
        for (size_t row = 0; row < tile->rows; row++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            __m512 totals[4];
            if (count == 4)
                row_tokens(packed, bytes, x, tile->token_stride, blocks, scales ? scales + row * groups : NULL, group, groups, 4, totals);
            else if (scales)
                row_tokens(packed, bytes, x, tile->token_stride, blocks, scales + row * groups, group, groups, 1, totals);
            else
                row_tokens(packed, bytes, x, tile->token_stride, blocks, NULL, 0, 0, 1, totals);
            for (int t = 0; t < count; t++) out[(token + (size_t)t) * out_stride + row] = fold_lanes(totals[t]);
        }
        token += (size_t)count;
    }
}
