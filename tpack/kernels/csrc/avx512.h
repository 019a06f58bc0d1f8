/* What the AVX-512 files share (the AMX variant reuses the functions declared here). */
#ifndef TPACK_AVX512_H
#define TPACK_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "kernels.h"

#define AVX512_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi,bmi2")))
#define AVX512_INLINE static inline __attribute__((always_inline)) AVX512_TARGET

/* avx512_dots.c */
void tp_avx512_int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums, int32_t *out,
                        size_t out_stride);
void tp_avx512_int_group_dots(const tp_tile *tile, const int8_t *planes, const int32_t *lane_sums,
                              const float *scales, size_t group, float *out, size_t out_stride);
/* avx512_matvec.c: a table of 16 floats for every two columns stands behind the lanes */
enum { TP_TABLE_FLOATS = 8 /* per column */ };
void tp_avx512_make_tables(const float *x, size_t columns, float *tables);
void tp_avx512_float_matvec(const tp_tile *tile, const float *tables, float *out);
/* avx512_floats.c */
void tp_avx512_float_dots(const tp_tile *tile, const float *lanes, const float *scales, size_t group,
                          float *out, size_t out_stride);
/* avx512_columns.c */
void tp_avx512_float_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                             const float *x, float *out);
void tp_avx512_int_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                           const int8_t *x, int32_t *out);

/* avx2_columns.c: AVX-512 has nothing better */
void tp_avx2_transpose(const uint8_t *packed, size_t row_bytes, uint8_t *out, size_t out_bytes);
/* avx512_weights.c */
void tp_avx512_pack_threshold(const void *weights, tp_dtype dtype, size_t columns, float threshold,
                              uint8_t *packed);
double tp_avx512_abs_sum(const void *weights, tp_dtype dtype, size_t count);
void tp_avx512_group_range(const void *weights, tp_dtype dtype, size_t columns, float *maxima, float *minima);
int tp_avx512_column_sizes(const void *weights, tp_dtype dtype, size_t columns, float *sizes);
void tp_avx512_square_sums(const void *weights, tp_dtype dtype, const float *restored, size_t count, double sums[2]);
size_t tp_avx512_matches(const void *weights, tp_dtype dtype, const float *restored, size_t count);
/* avx512.c */
void tp_avx512_arrange(const float *x, size_t columns, size_t tokens, float *lanes);
/* amx.c */
enum { TP_AMX_FLOATS = 3 /* per column: the float itself, three bfloat16 parts, two bytes to spare */ };
void tp_amx_arrange(const float *x, size_t columns, size_t tokens, float *lanes);
void tp_amx_int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums, int32_t *out,
                     size_t out_stride);
void tp_amx_float_dots(const tp_tile *tile, const float *lanes, const float *scales, size_t group,
                       float *out, size_t out_stride);

/* the low `count` bits */
AVX512_INLINE uint64_t low_bits(size_t count) { return _bzhi_u64(~0ull, count < 64 ? (unsigned)count : 64); }

/* 32 codes from two masks: the low bits say "zero", the high bits "positive" */
AVX512_INLINE uint64_t interleave(uint32_t zero, uint32_t positive) {
    return _pdep_u64(zero, 0x5555555555555555) | _pdep_u64(positive, 0xaaaaaaaaaaaaaaaa);
}

/* at most 16 of them */
AVX512_INLINE void put_codes(uint8_t *packed, size_t left, uint64_t codes) {
    if (left >= 16)
        memcpy(packed, &codes, 4);
    else
        for (size_t i = 0; i < tp_row_bytes(left); i++) packed[i] = (uint8_t)(codes >> (8 * i));
}

/* 64 packed bytes, or zeros where the row has fewer left: a masked load never touches what is beyond */
AVX512_INLINE __m512i load_block(const uint8_t *packed, size_t left) {
    return left >= 64 ? _mm512_loadu_si512(packed) : _mm512_maskz_loadu_epi8(low_bits(left), packed);
}

/* 64 packed bytes of each of 16 rows as 16 vectors: vector i holds dword i of all rows.
 * Prefetches `ahead` bytes, not to L1, where the rows would push each other out. */
AVX512_INLINE void transpose_dwords(const uint8_t *packed, size_t row_bytes, size_t rows, size_t left,
                                    size_t ahead, __m512i v[16]) {
    __m512i a[16], b[16];
    if (rows >= 16 && left >= 64) {
#pragma GCC unroll 16
        for (size_t r = 0; r < 16; r++) a[r] = _mm512_loadu_si512(packed + r * row_bytes);
    } else {
        for (size_t r = 0; r < 16; r++)
            a[r] = r < rows ? load_block(packed + r * row_bytes, left) : _mm512_setzero_si512();
    }
    if (ahead)
        for (size_t r = 0; r < rows && r < 16; r++)
            _mm_prefetch((const char *)packed + r * row_bytes + ahead, _MM_HINT_T1);
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) { /* pairs of rows, then fours, within 128 bits */
        b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
        b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            a[r + 2 * i] = _mm512_unpacklo_epi64(b[r + i], b[r + 2 + i]);
            a[r + 2 * i + 1] = _mm512_unpackhi_epi64(b[r + i], b[r + 2 + i]);
        }
    /* a[4g + c] holds, in its 128-bit part q, dword 4q + c of rows 4g..4g+3: transpose the parts */
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512i low02 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), low13 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        __m512i high02 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        __m512i high13 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        v[c] = _mm512_shuffle_i32x4(low02, high02, 0x88);
        v[8 + c] = _mm512_shuffle_i32x4(low02, high02, 0xdd);
        v[4 + c] = _mm512_shuffle_i32x4(low13, high13, 0x88);
        v[12 + c] = _mm512_shuffle_i32x4(low13, high13, 0xdd);
    }
}

/* The scale of each lane of a block; a group is a multiple of a lane. */
AVX512_INLINE __m512 lane_scales(const float *scales, size_t block, size_t group, size_t groups) {
    if (group % TP_BLOCK == 0) return _mm512_set1_ps(scales[block / (group / TP_BLOCK)]);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (TP_BLOCK % group == 0) {
        size_t per_block = TP_BLOCK / group, first = block * per_block;
        size_t count = groups - first < per_block ? groups - first : per_block;
        __m512 loaded = _mm512_maskz_loadu_ps((__mmask16)low_bits(count), scales + first);
        __m512i index = _mm512_srlv_epi32(lane, _mm512_set1_epi32(4 - __builtin_ctzll(per_block)));
        return _mm512_permutexvar_ps(index, loaded);
    }
    float each[TP_LANES];
    for (size_t i = 0; i < TP_LANES; i++) {
        size_t index = (block * TP_BLOCK + i * TP_LANES) / group;
        each[i] = index < groups ? scales[index] : 0;
    }
    return _mm512_loadu_ps(each);
}

/* The 16 lanes added in halves, in the order that kernels.h fixes. */
AVX512_INLINE float fold_lanes(__m512 v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

#endif
