/* AVX-512 VNNI: integer products.
 *
 * One vpdpbusd multiplies 64 unsigned codes by 64 signed activations. A plane (the codes at bits 2p of
 * each byte) is cut out of 64 packed bytes with one AND and no shift; its codes are then 4^p times
 * too large, so each plane has its own sums, shifted at the end. A 32-bit lane takes in at most
 * 4 * 128 * 128 = 2^16 in size per block, so 2^15 blocks (8 M columns) cannot overflow it.
 */
#include "avx512.h"

/* Each of four vectors summed up, in the order a, b, c, d. */
AVX512_INLINE __m128i sum_four(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

AVX512_INLINE void add_block(__m512i block, const int8_t *x, __m512i sums[4]) {
    const __m512i three = _mm512_set1_epi8(3);
#pragma GCC unroll 8
    for (int p = 0; p < 4; p++) {
        __m512i codes = _mm512_and_si512(block, _mm512_slli_epi32(three, 2 * (unsigned)p));
        sums[p] = _mm512_dpbusd_epi32(sums[p], codes, _mm512_loadu_si512(x + 64 * p));
    }
}

AVX512_INLINE __m512i row_lanes(const uint8_t *packed, size_t bytes, const int8_t *planes) {
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                       _mm512_setzero_si512()};
    size_t at = 0;
    for (; at + 64 <= bytes; at += 64) {
        _mm_prefetch((const char *)packed + at + TP_AHEAD, _MM_HINT_T1);
        add_block(_mm512_loadu_si512(packed + at), planes + at * 4, sums);
    }
    if (at < bytes) add_block(load_block(packed + at, bytes - at), planes + at * 4, sums);
    /* arithmetic shifts are exact: a plane's sums are multiples of 4^p */
    __m512i low = _mm512_add_epi32(sums[0], _mm512_srai_epi32(sums[1], 2));
    __m512i high = _mm512_add_epi32(_mm512_srai_epi32(sums[2], 4), _mm512_srai_epi32(sums[3], 6));
    return _mm512_add_epi32(low, high);
}

/* One token. A row at a time streams best; summing up the lanes of four rows together is cheaper. */
AVX512_TARGET static void int_matvec(const tp_tile *tile, const int8_t *planes, int32_t sum, int32_t *out) {
    size_t bytes = tp_row_bytes(tile->columns), row = 0;
    for (; row + 4 <= tile->rows; row += 4) {
        __m512i lanes[4];
        for (size_t r = 0; r < 4; r++)
            lanes[r] = row_lanes(tile->packed + (row + r) * tile->row_bytes, bytes, planes);
        __m128i four = _mm_sub_epi32(sum_four(lanes[0], lanes[1], lanes[2], lanes[3]), _mm_set1_epi32(sum));
        _mm_storeu_si128((__m128i *)(out + row), four);
    }
    for (; row < tile->rows; row++)
        out[row] = _mm512_reduce_add_epi32(row_lanes(tile->packed + row * tile->row_bytes, bytes, planes)) - sum;
}

/* One row, a few tokens: the codes are cut out once and shifted into place. */
AVX512_INLINE void row_tokens(const uint8_t *packed, size_t bytes, const int8_t *planes,
                              size_t token_stride, int tokens, __m512i sums[]) {
    const __m512i three = _mm512_set1_epi8(3);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) sums[t] = _mm512_setzero_si512();
    for (size_t at = 0; at < bytes; at += 64) {
        _mm_prefetch((const char *)packed + at + TP_AHEAD, _MM_HINT_T1);
        __m512i block = load_block(packed + at, bytes - at);
#pragma GCC unroll 8
        for (int p = 0; p < 4; p++) {
            __m512i codes = _mm512_and_si512(_mm512_srli_epi32(block, 2 * (unsigned)p), three);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) {
                const int8_t *x = planes + (size_t)t * token_stride + at * 4 + 64 * (size_t)p;
                sums[t] = _mm512_dpbusd_epi32(sums[t], codes, _mm512_loadu_si512(x));
            }
        }
    }
}

/* Codes of a tile's rows in plane order, one byte each: [row][plane-ordered column of the chunk]. */
AVX512_TARGET static void unpack_planes(const tp_tile *tile, size_t first_byte, size_t bytes, uint8_t *panel) {
    const __m512i three = _mm512_set1_epi8(3);
    size_t stride = (bytes + 63) / 64 * TP_BLOCK;
    for (size_t row = 0; row < tile->rows; row++) {
        const uint8_t *packed = tile->packed + row * tile->row_bytes + first_byte;
        uint8_t *line = panel + row * stride;
        for (size_t at = 0; at < bytes; at += 64) {
            __m512i block = load_block(packed + at, bytes - at);
#pragma GCC unroll 8
            for (int p = 0; p < 4; p++)
                _mm512_store_si512(line + at * 4 + 64 * (size_t)p,
                                   _mm512_and_si512(_mm512_srli_epi32(block, 2 * (unsigned)p), three));
        }
    }
}

/* 16 sums: with more, GCC copies them to memory and back around each vpdpbusd */
enum { MICRO_ROWS = 4, MICRO_TOKENS = 4, CHUNK_BYTES = 512 /* eight lines of 2 KB fit the L1 cache */ };

/* 4 rows x `tokens` tokens in registers; columns are bytes in plane order. */
AVX512_INLINE void micro(const uint8_t *panel, size_t panel_stride, const int8_t *planes,
                         size_t token_stride, size_t columns, int tokens, int add, int32_t *out,
                         size_t out_stride) {
    __m512i sums[MICRO_TOKENS][MICRO_ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int r = 0; r < MICRO_ROWS; r++) sums[t][r] = _mm512_setzero_si512();
    for (size_t at = 0; at < columns; at += 64) {
        __m512i codes[MICRO_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < MICRO_ROWS; r++)
            codes[r] = _mm512_load_si512(panel + (size_t)r * panel_stride + at);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            __m512i x = _mm512_loadu_si512(planes + (size_t)t * token_stride + at);
#pragma GCC unroll 8
            for (int r = 0; r < MICRO_ROWS; r++) sums[t][r] = _mm512_dpbusd_epi32(sums[t][r], codes[r], x);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        __m128i *line = (__m128i *)(out + (size_t)t * out_stride);
        __m128i four = sum_four(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
        _mm_storeu_si128(line, add ? _mm_add_epi32(_mm_loadu_si128(line), four) : four);
    }
}

/* Many tokens: a tile's codes are unpacked once, chunk by chunk, and reused for all of them. The
 * panel's rows, like the lines of out, come in fours: what is beyond tile->rows is never looked at. */
AVX512_TARGET static void int_matmul(const tp_tile *tile, const int8_t *planes, int32_t *out, size_t out_stride) {
    size_t token_stride = tile->token_stride, bytes = tp_row_bytes(tile->columns);
    uint8_t *panel = tile->scratch;
    for (size_t first = 0; first < bytes; first += CHUNK_BYTES) {
        size_t count = bytes - first < CHUNK_BYTES ? bytes - first : CHUNK_BYTES;
        size_t columns = (count + 63) / 64 * TP_BLOCK;
        int add = first > 0;
        unpack_planes(tile, first, count, panel);
        for (size_t token = 0; token < tile->tokens; token += MICRO_TOKENS) {
            const int8_t *x = planes + token * token_stride + first * 4;
            for (size_t row = 0; row < tile->rows; row += MICRO_ROWS) {
                const uint8_t *codes = panel + row * columns;
                int32_t *target = out + token * out_stride + row;
#define MICRO(n) micro(codes, columns, x, token_stride, columns, n, add, target, out_stride)
                switch (tile->tokens - token) {
                case 1: MICRO(1); break;
                case 2: MICRO(2); break;
                case 3: MICRO(3); break;
                default: MICRO(4); break;
                }
#undef MICRO
            }
        }
    }
}

AVX512_TARGET void tp_avx512_int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums,
                                      int32_t *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), token_stride = tile->token_stride;
    if (tile->tokens == 1) {
        int_matvec(tile, planes, sums[0], out);
        return;
    }
    if (tile->tokens > 16) {
        int_matmul(tile, planes, out, out_stride);
    } else {
        for (size_t row = 0; row < tile->rows; row++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            for (size_t token = 0; token < tile->tokens;) {
                const int8_t *x = planes + token * token_stride;
                size_t left = tile->tokens - token, count = left >= 8 ? 8 : left >= 4 ? 4 : 1;
                __m512i lanes[8];
                int32_t results[8];
                if (count == 8)
                    row_tokens(packed, bytes, x, token_stride, 8, lanes);
                else if (count == 4)
                    row_tokens(packed, bytes, x, token_stride, 4, lanes);
                else
                    row_tokens(packed, bytes, x, token_stride, 1, lanes);
                if (count == 1) results[0] = _mm512_reduce_add_epi32(lanes[0]);
                for (size_t t = 0; t + 4 <= count; t += 4)
                    _mm_storeu_si128((__m128i *)(results + t),
                                     sum_four(lanes[t], lanes[t + 1], lanes[t + 2], lanes[t + 3]));
                for (size_t t = 0; t < count; t++) out[(token + t) * out_stride + row] = results[t];
                token += count;
            }
        }
    }
    for (size_t token = 0; token < tile->tokens; token++)
        for (size_t row = 0; row < tile->rows; row++) out[token * out_stride + row] -= sums[token];
}

/* One row with a scale per group, a few tokens. */
AVX512_INLINE void group_row(const uint8_t *packed, size_t bytes, const int8_t *planes,
                             size_t token_stride, size_t blocks, const int32_t *lane_sums, const float *scales, size_t group, size_t groups,
                             int tokens, __m512 totals[]) {
    const __m512i three = _mm512_set1_epi8(3);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) totals[t] = _mm512_setzero_ps();
    for (size_t block = 0; block < blocks; block++) {
        _mm_prefetch((const char *)packed + block * 64 + TP_AHEAD, _MM_HINT_T1);
        __m512i codes[4], v = load_block(packed + block * 64, bytes - block * 64);
#pragma GCC unroll 8
        for (int p = 0; p < 4; p++) codes[p] = _mm512_and_si512(_mm512_srli_epi32(v, 2 * (unsigned)p), three);
        __m512 scale = lane_scales(scales, block, group, groups);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            const int8_t *x = planes + (size_t)t * token_stride + block * TP_BLOCK;
            const int32_t *x_sums = lane_sums + ((size_t)t * blocks + block) * TP_LANES;
            __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int p = 0; p < 4; p++)
                sum = _mm512_dpbusd_epi32(sum, codes[p], _mm512_loadu_si512(x + 64 * p));
            sum = _mm512_sub_epi32(sum, _mm512_loadu_si512(x_sums));
            totals[t] = _mm512_add_ps(totals[t], _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
        }
    }
}

AVX512_TARGET void tp_avx512_int_group_dots(const tp_tile *tile, const int8_t *planes,
                                            const int32_t *lane_sums, const float *scales, size_t group,
                                            float *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), blocks = tp_blocks(tile->columns);
    size_t groups = (tile->columns + group - 1) / group;
    for (size_t token = 0; token < tile->tokens;) {
        int count = tile->tokens - token >= 4 ? 4 : 1;
        const int8_t *x = planes + token * tile->token_stride;
        const int32_t *x_sums = lane_sums + token * blocks * TP_LANES;
        for (size_t row = 0; row < tile->rows; row++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            const float *row_scales = scales + row * groups;
            __m512 totals[4];
            if (count == 4)
                group_row(packed, bytes, x, tile->token_stride, blocks, x_sums, row_scales, group, groups, 4, totals);
            else
                group_row(packed, bytes, x, tile->token_stride, blocks, x_sums, row_scales, group, groups, 1, totals);
            for (int t = 0; t < count; t++) out[(token + (size_t)t) * out_stride + row] = fold_lanes(totals[t]);
        }
        token += (size_t)count;
    }
}
