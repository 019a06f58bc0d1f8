/* AVX2: float activations against codes.
 *
 * Eight packed dwords hold 16 codes each; vpermps looks a code up in a table of eight floats, which
 * repeats, so that the bit above the code does not matter.
 */
#include "avx2.h"

/* One row, one token. Even and odd codes have sums of their own: additions wait for each other. */
AVX2_INLINE float float_row(const uint8_t *packed, size_t bytes, const float *lanes, size_t blocks, const float *scales,
                            size_t group, size_t groups) {
    const __m256 table = _mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0);
    __m256 totals[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, sums[2][2];
    uint8_t buffer[64];
    float each[TP_LANES];
    for (int odd = 0; odd < 2; odd++) sums[odd][0] = sums[odd][1] = _mm256_setzero_ps();
    for (size_t block = 0; block < blocks; block++) {
        _mm_prefetch((const char *)packed + block * 64 + TP_AHEAD, _MM_HINT_T1);
        const uint8_t *source = whole(packed + block * 64, bytes - block * 64, 64, buffer);
        if (scales) lane_scales(scales, block, group, groups, each);
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; half++) {
            __m256i codes = _mm256_loadu_si256((const __m256i *)(source + 32 * half));
            const float *x = lanes + block * TP_BLOCK + 8 * half;
#pragma GCC unroll 16
            for (size_t c = 0; c < 16; c++, codes = _mm256_srli_epi32(codes, 2))
                sums[c % 2][half] = _mm256_fmadd_ps(_mm256_permutevar8x32_ps(table, codes), _mm256_loadu_ps(x + 16 * c),
                                                    sums[c % 2][half]);
            if (!scales) continue;
            __m256 both = _mm256_add_ps(sums[0][half], sums[1][half]);
            totals[half] = _mm256_fmadd_ps(both, _mm256_loadu_ps(each + 8 * half), totals[half]);
            sums[0][half] = sums[1][half] = _mm256_setzero_ps();
        }
    }
    if (scales) return fold_lanes(totals[0], totals[1]);
    return fold_lanes(_mm256_add_ps(sums[0][0], sums[1][0]), _mm256_add_ps(sums[0][1], sums[1][1]));
}

enum {
    MICRO_ROWS = 4,
    MICRO_TOKENS = 3,  /* 12 sums, 3 activations and a weight are all 16 registers */
    CHUNK_BLOCKS = 1,  /* 1 KB of each row and token */
    PANEL_ROWS = 16,  /* 16 KB of weights beside three tokens' 3 KB in the L1 cache */
};

/* Trits as f32 in the activations' order, times their scales: [row][block][code][lane]. */
AVX2_TARGET static void unpack_lanes(const tp_tile *tile, size_t first_row, size_t rows, size_t first_block, size_t blocks,
                                     const float *scales, size_t group, float *panel) {
    const __m256 table = _mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0);
    size_t bytes = tp_row_bytes(tile->columns), groups = scales ? (tile->columns + group - 1) / group : 0;
    uint8_t buffer[64];
    for (size_t row = first_row; row < first_row + rows; row++)
        for (size_t block = first_block; block < first_block + blocks; block++, panel += TP_BLOCK) {
            const uint8_t *here = tile->packed + row * tile->row_bytes + block * 64;
            const uint8_t *source = whole(here, bytes - block * 64, 64, buffer);
            float each[TP_LANES];
            if (scales) lane_scales(scales + row * groups, block, group, groups, each);
            _mm_prefetch((const char *)here + PANEL_ROWS * tile->row_bytes, _MM_HINT_T0);
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; half++) {
                __m256i codes = _mm256_loadu_si256((const __m256i *)(source + 32 * half));
                __m256 scale = scales ? _mm256_loadu_ps(each + 8 * half) : _mm256_set1_ps(1);
                for (size_t c = 0; c < 16; c++, codes = _mm256_srli_epi32(codes, 2)) {
                    __m256 trits = _mm256_permutevar8x32_ps(table, codes);
                    _mm256_store_ps(panel + 16 * c + 8 * half, _mm256_mul_ps(scale, trits));
                }
            }
        }
}

/* Four rows x `tokens` tokens with the sums in registers; `count` floats of each. */
AVX2_INLINE void micro(const float *panel, size_t count, const float *lanes, size_t token_stride, int tokens, int add,
                       float *out, size_t out_stride) {
    __m256 sums[MICRO_TOKENS][MICRO_ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int r = 0; r < MICRO_ROWS; r++) sums[t][r] = _mm256_setzero_ps();
    for (size_t at = 0; at < count; at += 8) {
        __m256 x[MICRO_TOKENS];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) x[t] = _mm256_loadu_ps(lanes + (size_t)t * token_stride + at);
#pragma GCC unroll 8
        for (int r = 0; r < MICRO_ROWS; r++) {
            __m256 w = _mm256_load_ps(panel + (size_t)r * count + at);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) sums[t][r] = _mm256_fmadd_ps(w, x[t], sums[t][r]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        __m256 ab = _mm256_hadd_ps(sums[t][0], sums[t][1]), cd = _mm256_hadd_ps(sums[t][2], sums[t][3]);
        __m256 all = _mm256_hadd_ps(ab, cd);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
        float *line = out + (size_t)t * out_stride;
        _mm_storeu_ps(line, add ? _mm_add_ps(_mm_loadu_ps(line), four) : four);
    }
}

/* Many tokens: as int_matmul in avx2_dots.c. */
AVX2_TARGET static void float_matmul(const tp_tile *tile, const float *lanes, const float *scales, size_t group,
                                     float *out, size_t out_stride) {
    size_t blocks = tp_blocks(tile->columns), token_stride = tile->token_stride;
    float *panel = tile->scratch;
    for (size_t first = 0; first < blocks; first += CHUNK_BLOCKS) {
        size_t chunk = blocks - first < CHUNK_BLOCKS ? blocks - first : CHUNK_BLOCKS, count = chunk * TP_BLOCK;
        int add = first > 0;
        for (size_t start = 0; start < tile->rows; start += PANEL_ROWS) {
            size_t rows = tile->rows - start < PANEL_ROWS ? tile->rows - start : PANEL_ROWS;
            unpack_lanes(tile, start, rows, first, chunk, scales, group, panel);
            for (size_t token = 0; token < tile->tokens; token += MICRO_TOKENS) {
                const float *x = lanes + token * token_stride + first * TP_BLOCK;
                for (size_t row = 0; row < rows; row += MICRO_ROWS) {
                    float *target = out + token * out_stride + start + row;
#define MICRO(n) micro(panel + row * count, count, x, token_stride, n, add, target, out_stride)
                    switch (tile->tokens - token) {
                    case 1: MICRO(1); break;
                    case 2: MICRO(2); break;
                    default: MICRO(3); break;
                    }
#undef MICRO
                }
            }
        }
    }
}

AVX2_TARGET void tp_avx2_float_dots(const tp_tile *tile, const float *lanes, const float *scales,
                                    size_t group, float *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), blocks = tp_blocks(tile->columns);
    size_t groups = scales ? (tile->columns + group - 1) / group : 0;
    if (tile->tokens > 1) {
        float_matmul(tile, lanes, scales, group, out, out_stride);
        return;
    }
    for (size_t row = 0; row < tile->rows; row++) {
        const uint8_t *packed = tile->packed + row * tile->row_bytes;
        out[row] = scales ? float_row(packed, bytes, lanes, blocks, scales + row * groups, group, groups)
                          : float_row(packed, bytes, lanes, blocks, NULL, 0, 0);
    }
}
