/* AVX2: integer products.
 *
 * vpmaddubsw adds pairs of unsigned code * signed activation into 16 bits. With codes of at most 2 a
 * pair lies in -512..508, so 64 of them still fit; then they go to 32 bits.
 */
#include "avx2.h"

enum { MOST_TOKENS = 4 };

AVX2_INLINE __m256i widen(words sums) { return _mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1)); }

/* One row, a few tokens: the sums of all lanes. */
AVX2_INLINE void row_tokens(const uint8_t *packed, size_t bytes, const int8_t *planes, size_t token_stride,
                            int tokens, int32_t results[]) {
    const __m256i three = _mm256_set1_epi8(3);
    __m256i totals[MOST_TOKENS];
    uint8_t buffer[64];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) totals[t] = _mm256_setzero_si256();
    for (size_t at = 0; at < bytes; at += 64) {
        _mm_prefetch((const char *)packed + at + TP_AHEAD, _MM_HINT_T1);
        const uint8_t *source = whole(packed + at, bytes - at, 64, buffer);
        words sums[MOST_TOKENS];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) sums[t] = (words){0};
#pragma GCC unroll 8
        for (size_t half = 0; half < 2; half++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(source + 32 * half));
#pragma GCC unroll 8
            for (size_t p = 0; p < 4; p++) {
                __m256i codes = _mm256_and_si256(_mm256_srli_epi16(v, 2 * (int)p), three);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++) {
                    const int8_t *x = planes + (size_t)t * token_stride + at * 4 + 64 * p + 32 * half;
                    sums[t] += (words)_mm256_maddubs_epi16(codes, _mm256_loadu_si256((const __m256i *)x));
                }
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
            totals[t] = _mm256_add_epi32(totals[t], widen(sums[t]));
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        __m128i a = _mm_add_epi32(_mm256_castsi256_si128(totals[t]), _mm256_extracti128_si256(totals[t], 1));
        a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4e));
        results[t] = _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
    }
}

enum {
    MICRO_ROWS = 4,
    MICRO_TOKENS = 3,  /* 12 sums leave four of the 16 registers */
    CHUNK_BYTES = 512, /* 64 products in each lane of 16 bits, which is what one holds */
    PANEL_ROWS = 8,    /* 16 KB of codes beside three tokens' 2 KB in the L1 cache */
    FEW_TOKENS = 8,    /* up to which unpacking to a panel does not pay */
};

/* Codes of a few rows in plane order, one byte each: [row][plane-ordered column of the chunk]. */
AVX2_TARGET static void unpack_planes(const uint8_t *packed, size_t row_bytes, size_t rows, size_t bytes, uint8_t *panel) {
    const __m256i three = _mm256_set1_epi8(3);
    uint8_t buffer[64];
    for (size_t row = 0; row < rows; row++)
        for (size_t at = 0; at < bytes; at += 64, panel += TP_BLOCK) {
            const uint8_t *here = packed + row * row_bytes + at, *source = whole(here, bytes - at, 64, buffer);
            _mm_prefetch((const char *)here + PANEL_ROWS * row_bytes, _MM_HINT_T0);
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; half++) {
                __m256i v = _mm256_loadu_si256((const __m256i *)(source + 32 * half));
#pragma GCC unroll 4
                for (size_t p = 0; p < 4; p++)
                    _mm256_store_si256((__m256i *)(panel + 64 * p + 32 * half),
                                       _mm256_and_si256(_mm256_srli_epi16(v, 2 * (int)p), three));
            }
        }
}

/* Four rows x `tokens` tokens, at most a chunk of columns, with the sums in registers. */
AVX2_INLINE void micro(const uint8_t *panel, size_t columns, const int8_t *planes, size_t token_stride, int tokens,
                       int add, int32_t *out, size_t out_stride) {
    words sums[MICRO_TOKENS][MICRO_ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int r = 0; r < MICRO_ROWS; r++) sums[t][r] = (words){0};
    for (size_t at = 0; at < columns; at += 32) {
        __m256i x[MICRO_TOKENS];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
            x[t] = _mm256_loadu_si256((const __m256i *)(planes + (size_t)t * token_stride + at));
#pragma GCC unroll 8
        for (int r = 0; r < MICRO_ROWS; r++) {
            __m256i codes = _mm256_load_si256((const __m256i *)(panel + (size_t)r * columns + at));
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) sums[t][r] += (words)_mm256_maddubs_epi16(codes, x[t]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        __m256i ab = _mm256_hadd_epi32(widen(sums[t][0]), widen(sums[t][1]));
        __m256i cd = _mm256_hadd_epi32(widen(sums[t][2]), widen(sums[t][3]));
        __m256i all = _mm256_hadd_epi32(ab, cd);
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        __m128i *line = (__m128i *)(out + (size_t)t * out_stride);
        _mm_storeu_si128(line, add ? _mm_add_epi32(_mm_loadu_si128(line), four) : four);
    }
}

/* Many tokens: codes are unpacked once and meet all of them. The panel's rows, like the lines of out,
 * come in fours: what is beyond tile->rows is never looked at. */
AVX2_TARGET static void int_matmul(const tp_tile *tile, const int8_t *planes, const int32_t *sums, int32_t *out,
                                   size_t out_stride) {
    size_t token_stride = tile->token_stride, bytes = tp_row_bytes(tile->columns);
    for (size_t first = 0; first < bytes; first += CHUNK_BYTES) {
        size_t count = bytes - first < CHUNK_BYTES ? bytes - first : CHUNK_BYTES;
        size_t columns = (count + 63) / 64 * TP_BLOCK;
        int add = first > 0;
        for (size_t start = 0; start < tile->rows; start += PANEL_ROWS) {
            size_t rows = tile->rows - start < PANEL_ROWS ? tile->rows - start : PANEL_ROWS;
            uint8_t *panel = tile->scratch;
            unpack_planes(tile->packed + start * tile->row_bytes + first, tile->row_bytes, rows, count, panel);
            for (size_t token = 0; token < tile->tokens; token += MICRO_TOKENS) {
                const int8_t *x = planes + token * token_stride + first * 4;
                for (size_t row = 0; row < rows; row += MICRO_ROWS) {
                    int32_t *target = out + token * out_stride + start + row;
#define MICRO(n) micro(panel + row * columns, columns, x, token_stride, n, add, target, out_stride)
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
    for (size_t token = 0; token < tile->tokens; token++)
        for (size_t row = 0; row < tile->rows; row++) out[token * out_stride + row] -= sums[token];
}

AVX2_TARGET void tp_avx2_int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums,
                                  int32_t *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), token_stride = tile->token_stride;
    if (tile->tokens > FEW_TOKENS) {
        int_matmul(tile, planes, sums, out, out_stride);
        return;
    }
    for (size_t token = 0; token < tile->tokens;) {
        int count = tile->tokens - token >= MOST_TOKENS ? MOST_TOKENS : 1;
        const int8_t *x = planes + token * token_stride;
        for (size_t row = 0; row < tile->rows; row++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            int32_t results[MOST_TOKENS];
            if (count == MOST_TOKENS)
                row_tokens(packed, bytes, x, token_stride, MOST_TOKENS, results);
            else
                row_tokens(packed, bytes, x, token_stride, 1, results);
            for (size_t t = 0; t < (size_t)count; t++)
                out[(token + t) * out_stride + row] = results[t] - sums[token + t];
        }
        token += (size_t)count;
    }
}

AVX2_TARGET static float group_row(const uint8_t *packed, size_t bytes, const int8_t *planes, size_t blocks,
                                   const int32_t *lane_sums, const float *scales, size_t group, size_t groups) {
    const __m256i three = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    __m256 totals[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    uint8_t buffer[64];
    float each[TP_LANES];
    for (size_t block = 0; block < blocks; block++) {
        _mm_prefetch((const char *)packed + block * 64 + TP_AHEAD, _MM_HINT_T1);
        const uint8_t *source = whole(packed + block * 64, bytes - block * 64, 64, buffer);
        lane_scales(scales, block, group, groups, each);
#pragma GCC unroll 8
        for (size_t half = 0; half < 2; half++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(source + 32 * half)), sum = _mm256_setzero_si256();
#pragma GCC unroll 8
            for (size_t p = 0; p < 4; p++) {
                __m256i codes = _mm256_and_si256(_mm256_srli_epi16(v, 2 * (int)p), three);
                const int8_t *x = planes + block * TP_BLOCK + 64 * p + 32 * half;
                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, _mm256_loadu_si256((const __m256i *)x)));
            }
            __m256i x_sums = _mm256_loadu_si256((const __m256i *)(lane_sums + block * TP_LANES + 8 * half));
            __m256i lanes = _mm256_sub_epi32(_mm256_madd_epi16(sum, ones), x_sums);
            __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(lanes), _mm256_loadu_ps(each + 8 * half));
            totals[half] = _mm256_add_ps(totals[half], scaled);
        }
    }
    return fold_lanes(totals[0], totals[1]);
}

AVX2_TARGET void tp_avx2_int_group_dots(const tp_tile *tile, const int8_t *planes, const int32_t *lane_sums,
                                        const float *scales, size_t group, float *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), blocks = tp_blocks(tile->columns);
    size_t groups = (tile->columns + group - 1) / group;
    for (size_t row = 0; row < tile->rows; row++)
        for (size_t token = 0; token < tile->tokens; token++)
            out[token * out_stride + row] =
                group_row(tile->packed + row * tile->row_bytes, bytes, planes + token * tile->token_stride, blocks,
                          lane_sums + token * blocks * TP_LANES, scales + row * groups, group, groups);
}
