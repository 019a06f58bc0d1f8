/* AVX-512: float weights, in the dtype they come in, to statistics and codes. */
#include "avx512.h"

enum { PREFETCH = 2048 /* bytes ahead in what is read once: the hardware alone stays behind */ };

/* 16 weights from `at` on; zeros where fewer are left */
AVX512_INLINE __m512 load(tp_dtype dtype, const void *weights, size_t at, size_t left) {
    const char *from = (const char *)weights + at * tp_size_of(dtype);
    __mmask16 present = (__mmask16)low_bits(left);
    _mm_prefetch(from + PREFETCH, _MM_HINT_T0);
    if (dtype == TP_F32) return left < 16 ? _mm512_maskz_loadu_ps(present, from) : _mm512_loadu_ps(from);
    __m256i halves = left < 16 ? _mm256_maskz_loadu_epi16(present, from) : _mm256_loadu_si256((const __m256i *)from);
    if (dtype == TP_F16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* the body compiled for each dtype, so that its loop holds no choice */
#define BY_DTYPE(body, ...)                       \
    (dtype == TP_F32   ? body(TP_F32, __VA_ARGS__) \
     : dtype == TP_F16 ? body(TP_F16, __VA_ARGS__) \
                       : body(TP_BF16, __VA_ARGS__))

AVX512_INLINE void pack(tp_dtype dtype, const void *weights, size_t columns, float threshold, uint8_t *packed) {
    const __m512 high = _mm512_set1_ps(threshold), low = _mm512_set1_ps(-threshold);
    size_t j = 0;
    for (; j + 32 <= columns; j += 32) {
        __m512 a = load(dtype, weights, j, 32), b = load(dtype, weights, j + 16, 32);
        uint32_t positive = _mm512_kunpackw(_mm512_cmp_ps_mask(b, high, _CMP_GT_OQ), _mm512_cmp_ps_mask(a, high, _CMP_GT_OQ));
        uint32_t negative = _mm512_kunpackw(_mm512_cmp_ps_mask(b, low, _CMP_LT_OQ), _mm512_cmp_ps_mask(a, low, _CMP_LT_OQ));
        uint64_t codes = interleave(~(positive | negative), positive);
        memcpy(packed + j / 4, &codes, 8);
    }
    for (; j < columns; j += 16) {
        __m512 v = load(dtype, weights, j, columns - j); /* an absent 0 becomes code 1, the padding */
        uint32_t positive = _mm512_cmp_ps_mask(v, high, _CMP_GT_OQ);
        uint32_t negative = _mm512_cmp_ps_mask(v, low, _CMP_LT_OQ);
        put_codes(packed + j / 4, columns - j, interleave(~(positive | negative) & 0xffff, positive));
    }
}

AVX512_TARGET void tp_avx512_pack_threshold(const void *weights, tp_dtype dtype, size_t columns,
                                            float threshold, uint8_t *packed) {
    BY_DTYPE(pack, weights, columns, threshold, packed);
}

/* 16 lanes in double, in two halves */
typedef struct {
    __m512d low, high;
} lanes;

AVX512_INLINE lanes widen(__m512 v) {
    return (lanes){_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
}

AVX512_INLINE double fold_doubles(lanes sum) {
    __m512d eight = _mm512_add_pd(sum.low, sum.high);
    __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

AVX512_INLINE double sum(tp_dtype dtype, const void *weights, size_t count) {
    lanes total = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    for (size_t i = 0; i < count; i += 16) {
        lanes v = widen(_mm512_abs_ps(load(dtype, weights, i, count - i)));
        total = (lanes){_mm512_add_pd(total.low, v.low), _mm512_add_pd(total.high, v.high)};
    }
    return fold_doubles(total);
}

AVX512_TARGET double tp_avx512_abs_sum(const void *weights, tp_dtype dtype, size_t count) {
    return BY_DTYPE(sum, weights, count);
}

/* the square of a float is exact in double, so fused or not makes no difference */
AVX512_INLINE lanes add_squares(lanes total, __m512 v) {
    lanes w = widen(v);
    return (lanes){_mm512_fmadd_pd(w.low, w.low, total.low), _mm512_fmadd_pd(w.high, w.high, total.high)};
}

AVX512_INLINE void squares(tp_dtype dtype, const void *weights, const float *restored, size_t count, double sums[2]) {
    lanes lost = {_mm512_setzero_pd(), _mm512_setzero_pd()}, total = lost;
    for (size_t i = 0; i < count; i += 16) {
        __m512 v = load(dtype, weights, i, count - i);
        __m512 r = load(TP_F32, restored, i, count - i);
        lost = add_squares(lost, _mm512_sub_ps(v, r));
        total = add_squares(total, v);
    }
    sums[0] = fold_doubles(lost);
    sums[1] = fold_doubles(total);
}

AVX512_TARGET void tp_avx512_square_sums(const void *weights, tp_dtype dtype, const float *restored,
                                         size_t count, double sums[2]) {
    BY_DTYPE(squares, weights, restored, count, sums);
}

AVX512_INLINE size_t compare(tp_dtype dtype, const void *weights, const float *restored, size_t count) {
    const __m512i sign = _mm512_set1_epi32((int)0x80000000);
    for (size_t i = 0; i < count; i += 16) {
        __m512i v = _mm512_castps_si512(load(dtype, weights, i, count - i));
        __m512i r = _mm512_castps_si512(load(TP_F32, restored, i, count - i));
        uint32_t different = _mm512_cmpneq_epi32_mask(v, r);
        if (different) { /* the sign of a zero is no difference */
            different &= (uint32_t)_mm512_cmpneq_epi32_mask(_mm512_or_si512(v, r), sign);
            if (different) return i + (size_t)__builtin_ctz(different);
        }
    }
    return count;
}

AVX512_TARGET size_t tp_avx512_matches(const void *weights, tp_dtype dtype, const float *restored, size_t count) {
    return BY_DTYPE(compare, weights, restored, count);
}

AVX512_INLINE __m512i extreme(__m512i a, __m512i b, int largest) {
    return largest ? _mm512_max_epu32(a, b) : _mm512_min_epu32(a, b);
}

/* the largest or smallest lane of each of 16 vectors: halves of two vectors are joined in one */
AVX512_INLINE __m512i reduce_sixteen(__m512i v[16], int largest) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        v[i] = extreme(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]), largest);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = extreme(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]), largest);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        v[i] = extreme(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x88), _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xdd), largest);
    return extreme(_mm512_shuffle_i32x4(v[0], v[1], 0x88), _mm512_shuffle_i32x4(v[0], v[1], 0xdd), largest);
}

/* magnitudes compare as integers; absent weights are 0, which never count */
AVX512_INLINE void range(tp_dtype dtype, const void *weights, size_t columns, float *maxima, float *minima) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), infinity = _mm512_set1_epi32(0x7f800000);
    const __m512i one = _mm512_set1_epi32(1);
    for (size_t j = 0; j < columns; j += 16 * TP_RANGE_GROUP) {
        __m512i high[16], low[16];
#pragma GCC unroll 16
        for (size_t g = 0; g < 16; g++) {
            size_t at = j + g * TP_RANGE_GROUP;
            __m512i a = _mm512_setzero_si512(), b = a;
            if (at < columns) a = _mm512_and_si512(_mm512_castps_si512(load(dtype, weights, at, columns - at)), magnitude);
            if (at + 16 < columns) b = _mm512_and_si512(_mm512_castps_si512(load(dtype, weights, at + 16, columns - at - 16)), magnitude);
            high[g] = _mm512_max_epu32(a, b);
            /* one less: a zero wraps to the largest integer, and is never the smallest */
            low[g] = _mm512_min_epu32(_mm512_sub_epi32(a, one), _mm512_sub_epi32(b, one));
        }
        __mmask16 present = (__mmask16)low_bits((columns - j + TP_RANGE_GROUP - 1) / TP_RANGE_GROUP);
        __m512i smallest = _mm512_add_epi32(reduce_sixteen(low, 0), one);
        /* zero where there were only zeros, and beyond infinity where there were only NaNs */
        smallest = _mm512_mask_mov_epi32(_mm512_min_epu32(smallest, infinity), _mm512_testn_epi32_mask(smallest, smallest), infinity);
        _mm512_mask_storeu_epi32(maxima + j / TP_RANGE_GROUP, present, reduce_sixteen(high, 1));
        _mm512_mask_storeu_epi32(minima + j / TP_RANGE_GROUP, present, smallest);
    }
}

AVX512_TARGET void tp_avx512_group_range(const void *weights, tp_dtype dtype, size_t columns, float *maxima,
                                         float *minima) {
    BY_DTYPE(range, weights, columns, maxima, minima);
}

/* two sizes differ where both are not 0: where the smaller is not 0, and is not the larger */
AVX512_INLINE int sizes_of(tp_dtype dtype, const void *weights, size_t columns, float *sizes) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __mmask16 different = 0;
    for (size_t j = 0; j < columns; j += 16) {
        __mmask16 present = (__mmask16)low_bits(columns - j);
        __m512i v = _mm512_and_si512(_mm512_castps_si512(load(dtype, weights, j, columns - j)), magnitude);
        __m512i before = _mm512_maskz_loadu_epi32(present, sizes + j);
        __m512i low = _mm512_min_epu32(v, before), high = _mm512_max_epu32(v, before);
        different |= _mm512_mask_cmpneq_epi32_mask(_mm512_test_epi32_mask(low, low), low, high);
        _mm512_mask_storeu_epi32(sizes + j, present, high);
    }
    return different != 0;
}

AVX512_TARGET int tp_avx512_column_sizes(const void *weights, tp_dtype dtype, size_t columns, float *sizes) {
    return BY_DTYPE(sizes_of, weights, columns, sizes);
}
