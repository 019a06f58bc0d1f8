/* What the AVX2 files share. */
#ifndef TPACK_AVX2_H
#define TPACK_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "kernels.h"

#define AVX2_TARGET __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE static inline __attribute__((always_inline)) AVX2_TARGET

/* Sixteen sums. As __m256i they would be of another type than the intrinsics inside are made of, which
 * costs GCC a register and a copy for each sum. */
typedef int16_t words __attribute__((vector_size(32)));

/* avx2_weights.c */
void tp_avx2_pack_threshold(const void *weights, tp_dtype dtype, size_t columns, float threshold, uint8_t *packed);
double tp_avx2_abs_sum(const void *weights, tp_dtype dtype, size_t count);
void tp_avx2_group_range(const void *weights, tp_dtype dtype, size_t columns, float *maxima, float *minima);
int tp_avx2_column_sizes(const void *weights, tp_dtype dtype, size_t columns, float *sizes);
void tp_avx2_square_sums(const void *weights, tp_dtype dtype, const float *restored, size_t count, double sums[2]);
size_t tp_avx2_matches(const void *weights, tp_dtype dtype, const float *restored, size_t count);
/* avx2_dots.c */
void tp_avx2_int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums, int32_t *out,
                      size_t out_stride);
void tp_avx2_int_group_dots(const tp_tile *tile, const int8_t *planes, const int32_t *lane_sums,
                            const float *scales, size_t group, float *out, size_t out_stride);
/* avx2_floats.c */
void tp_avx2_float_dots(const tp_tile *tile, const float *lanes, const float *scales, size_t group,
                        float *out, size_t out_stride);
/* avx2_columns.c */
void tp_avx2_float_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                           const float *x, float *out);
void tp_avx2_int_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                         const int8_t *x, int32_t *out);
void tp_avx2_transpose(const uint8_t *packed, size_t row_bytes, uint8_t *out, size_t out_bytes);

/* `size` bytes where they are, or a copy in `buffer` where the row has fewer left: nothing beyond a
 * row is read */
static inline const void *whole(const void *from, size_t left, size_t size, void *buffer) {
    if (left >= size) return from;
    memset(buffer, 0, size);
    memcpy(buffer, from, left);
    return buffer;
}

/* 32 codes, one to a byte, to 8 packed bytes. */
AVX2_INLINE uint64_t join_codes(__m256i codes) {
    __m256i words = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0401));      /* c0 + 4 c1 */
    __m256i dwords = _mm256_madd_epi16(words, _mm256_set1_epi32(0x00100001));    /* + 16 (c2 + 4 c3) */
    const __m256i low_bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                               -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i bytes = _mm256_shuffle_epi8(dwords, low_bytes);
    __m128i both = _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    return (uint64_t)_mm_cvtsi128_si64(both);
}

/* Codes of 32 floats to bytes; the packs work within 128-bit halves, hence the permutation. */
AVX2_INLINE __m256i narrow(const __m256i codes[4]) {
    __m256i words = _mm256_packs_epi32(codes[0], codes[1]), more = _mm256_packs_epi32(codes[2], codes[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words, more), order);
}

/* the largest or the smallest of 8 */
AVX2_INLINE uint32_t reduce(__m256i v, int largest) {
    __m128i a = _mm256_castsi256_si128(v), b = _mm256_extracti128_si256(v, 1);
    for (int step = 0; step < 3; step++) {
        a = largest ? _mm_max_epu32(a, b) : _mm_min_epu32(a, b);
        b = step ? _mm_shuffle_epi32(a, 0xb1) : _mm_shuffle_epi32(a, 0x4e);
    }
    return (uint32_t)_mm_cvtsi128_si32(a);
}

/* The scales of the 16 lanes of a block; a group is a multiple of a lane. */
static inline void lane_scales(const float *scales, size_t block, size_t group, size_t groups, float each[TP_LANES]) {
    for (size_t i = 0; i < TP_LANES; i++) {
        size_t index = (block * TP_BLOCK + i * TP_LANES) / group;
        each[i] = index < groups ? scales[index] : 0;
    }
}

/* 16 lanes in two halves, added up in the order that kernels.h fixes */
AVX2_INLINE float fold_lanes(__m256 low, __m256 high) {
    __m256 a = _mm256_add_ps(low, high);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

#endif
