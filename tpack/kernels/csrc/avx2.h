/* What the AVX2 files share. */
#ifndef TPACK_AVX2_H
#define TPACK_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "kernels.h"

#define AVX2_TARGET __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE static inline __attribute__((always_inline)) AVX2_TARGET

/* avx2_dots.c */
void tp_avx2_int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums, int32_t *out,
                      size_t out_stride);
void tp_avx2_int_group_dots(const tp_tile *tile, const int8_t *planes, const int32_t *lane_sums,
                            const float *scales, size_t group, float *out, size_t out_stride);
/* avx2_floats.c */
void tp_avx2_float_dots(const tp_tile *tile, const float *lanes, const float *scales, size_t group,
                        float *out, size_t out_stride);
void tp_avx2_float_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                           const float *x, float *out);
void tp_avx2_int_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                         const int8_t *x, int32_t *out);

/* `size` bytes where they are, or a copy in `buffer` where the row has fewer left: nothing beyond a
 * row is read */
static inline const void *whole(const void *from, size_t left, size_t size, void *buffer) {
    if (left >= size) return from;
    memset(buffer, 0, size);
    memcpy(buffer, from, left);
    return buffer;
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
