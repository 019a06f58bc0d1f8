/* AVX2: integer products.
 *
 * vpmaddubsw adds pairs of unsigned code * signed activation into 16 bits. With codes of at most 2 a
 * pair is at most 512 in size, so the eight of a block (64 packed bytes) cannot saturate; then they go
 * to 32 bits, lane by lane as everywhere.
 */
#include "avx2.h"

enum { PREFETCH = 1536, MOST_TOKENS = 4 };

/* One row, a few tokens: the sums of all lanes. */
AVX2_INLINE void row_tokens(const uint8_t *packed, size_t bytes, const int8_t *planes, size_t token_stride,
                            int tokens, int32_t results[]) {
    const __m256i three = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    __m256i totals[MOST_TOKENS];
    uint8_t buffer[64];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) totals[t] = _mm256_setzero_si256();
    for (size_t at = 0; at < bytes; at += 64) {
        _mm_prefetch((const char *)packed + at + PREFETCH, _MM_HINT_T0);
        const uint8_t *source = whole(packed + at, bytes - at, 64, buffer);
        __m256i sums[MOST_TOKENS];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) sums[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (size_t half = 0; half < 2; half++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(source + 32 * half));
#pragma GCC unroll 8
            for (size_t p = 0; p < 4; p++) {
                __m256i codes = _mm256_and_si256(_mm256_srli_epi16(v, 2 * (int)p), three);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++) {
                    const int8_t *x = planes + (size_t)t * token_stride + at * 4 + 64 * p + 32 * half;
                    __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_loadu_si256((const __m256i *)x));
                    sums[t] = _mm256_add_epi16(sums[t], pairs);
                }
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
            totals[t] = _mm256_add_epi32(totals[t], _mm256_madd_epi16(sums[t], ones));
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        __m128i a = _mm_add_epi32(_mm256_castsi256_si128(totals[t]), _mm256_extracti128_si256(totals[t], 1));
        a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4e));
        results[t] = _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
    }
}

AVX2_TARGET void tp_avx2_int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums,
                                  int32_t *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), token_stride = tile->token_stride;
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
        _mm_prefetch((const char *)packed + block * 64 + PREFETCH, _MM_HINT_T0);
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
