/* AVX2: float weights, in the dtype they come in, to statistics and codes. */
#include "avx2.h"

enum { STEP = 32 /* weights taken at a time */ };

/* the next STEP weights, or a copy padded with zeros where fewer are left */
AVX2_INLINE const void *take(tp_dtype dtype, const void *weights, size_t at, size_t count, void *buffer) {
    const char *from = (const char *)weights + at * tp_size_of(dtype);
    _mm_prefetch(from + 2048, _MM_HINT_T0);
    if (dtype == TP_F32) _mm_prefetch(from + 2048 + 64, _MM_HINT_T0);
    return whole(from, (count - at) * tp_size_of(dtype), STEP * tp_size_of(dtype), buffer);
}

/* 8 of them */
AVX2_INLINE __m256 load(tp_dtype dtype, const void *taken, size_t part) {
    const char *from = (const char *)taken + 8 * part * tp_size_of(dtype);
    if (dtype == TP_F32) return _mm256_loadu_ps((const float *)from);
    __m128i halves = _mm_loadu_si128((const __m128i *)from);
    if (dtype == TP_F16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* the body compiled for each dtype, so that its loop holds no choice */
#define BY_DTYPE(body, ...)                       \
    (dtype == TP_F32   ? body(TP_F32, __VA_ARGS__) \
     : dtype == TP_F16 ? body(TP_F16, __VA_ARGS__) \
                       : body(TP_BF16, __VA_ARGS__))

AVX2_INLINE void pack(tp_dtype dtype, const void *weights, size_t columns, float threshold, uint8_t *packed) {
    const __m256 high = _mm256_set1_ps(threshold), low = _mm256_set1_ps(-threshold);
    float buffer[STEP];
    for (size_t j = 0; j < columns; j += STEP) {
        const void *source = take(dtype, weights, j, columns, buffer);
        __m256i codes[4];
        for (size_t i = 0; i < 4; i++) {
            __m256 v = load(dtype, source, i);
            __m256 positive = _mm256_cmp_ps(v, high, _CMP_GT_OQ), negative = _mm256_cmp_ps(v, low, _CMP_LT_OQ);
            codes[i] = _mm256_sub_epi32(_mm256_castps_si256(negative), _mm256_castps_si256(positive));
        }
        uint64_t bytes = join_codes(_mm256_add_epi8(narrow(codes), _mm256_set1_epi8(1)));
        memcpy(packed + j / 4, &bytes, columns - j >= STEP ? 8 : tp_row_bytes(columns - j));
    }
}

AVX2_TARGET void tp_avx2_pack_threshold(const void *weights, tp_dtype dtype, size_t columns, float threshold,
                                        uint8_t *packed) {
    BY_DTYPE(pack, weights, columns, threshold, packed);
}

/* 16 lanes in double, in four parts */
AVX2_INLINE double fold_doubles(const __m256d sums[4]) {
    __m256d four = _mm256_add_pd(_mm256_add_pd(sums[0], sums[2]), _mm256_add_pd(sums[1], sums[3]));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

AVX2_INLINE double sum(tp_dtype dtype, const void *weights, size_t count) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    float buffer[STEP];
    for (size_t i = 0; i < count; i += STEP) {
        const void *source = take(dtype, weights, i, count, buffer);
        for (size_t part = 0; part < 4; part++) {
            __m256 v = _mm256_and_ps(load(dtype, source, part), magnitude);
            size_t at = 2 * (part % 2);
            sums[at] = _mm256_add_pd(sums[at], _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
            sums[at + 1] = _mm256_add_pd(sums[at + 1], _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
        }
    }
    return fold_doubles(sums);
}

AVX2_TARGET double tp_avx2_abs_sum(const void *weights, tp_dtype dtype, size_t count) {
    return BY_DTYPE(sum, weights, count);
}

/* the square of a float is exact in double, so fused or not makes no difference */
AVX2_INLINE void add_squares(__m256d sums[4], size_t part, __m256 v) {
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
    size_t at = 2 * (part % 2);
    sums[at] = _mm256_fmadd_pd(low, low, sums[at]);
    sums[at + 1] = _mm256_fmadd_pd(high, high, sums[at + 1]);
}

AVX2_INLINE void squares(tp_dtype dtype, const void *weights, const float *restored, size_t count, double sums[2]) {
    __m256d lost[4], total[4];
    for (size_t i = 0; i < 4; i++) lost[i] = total[i] = _mm256_setzero_pd();
    float buffer[STEP], other_buffer[STEP];
    for (size_t i = 0; i < count; i += STEP) {
        const void *source = take(dtype, weights, i, count, buffer);
        const float *other = whole(restored + i, (count - i) * 4, STEP * 4, other_buffer);
        for (size_t part = 0; part < 4; part++) {
            __m256 v = load(dtype, source, part);
            add_squares(lost, part, _mm256_sub_ps(v, _mm256_loadu_ps(other + 8 * part)));
            add_squares(total, part, v);
        }
    }
    sums[0] = fold_doubles(lost);
    sums[1] = fold_doubles(total);
}

AVX2_TARGET void tp_avx2_square_sums(const void *weights, tp_dtype dtype, const float *restored, size_t count,
                                     double sums[2]) {
    BY_DTYPE(squares, weights, restored, count, sums);
}

AVX2_INLINE size_t compare(tp_dtype dtype, const void *weights, const float *restored, size_t count) {
    const __m256i sign = _mm256_set1_epi32((int)0x80000000);
    float buffer[STEP], other_buffer[STEP];
    for (size_t i = 0; i < count; i += STEP) {
        const void *source = take(dtype, weights, i, count, buffer);
        const float *other = whole(restored + i, (count - i) * 4, STEP * 4, other_buffer);
        for (size_t part = 0; part < 4; part++) {
            __m256i v = _mm256_castps_si256(load(dtype, source, part));
            __m256i r = _mm256_loadu_si256((const __m256i *)(other + 8 * part));
            __m256i same = _mm256_or_si256(_mm256_cmpeq_epi32(v, r),
                                           _mm256_cmpeq_epi32(_mm256_or_si256(v, r), sign)); /* -0 and 0 */
            unsigned good = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(same));
            if (good != 0xff) return i + 8 * part + (size_t)__builtin_ctz(~good);
        }
    }
    return count;
}

AVX2_TARGET size_t tp_avx2_matches(const void *weights, tp_dtype dtype, const float *restored, size_t count) {
    return BY_DTYPE(compare, weights, restored, count);
}

AVX2_INLINE void range(tp_dtype dtype, const void *weights, size_t columns, float *maxima, float *minima) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), one = _mm256_set1_epi32(1);
    float buffer[STEP];
    for (size_t j = 0; j < columns; j += TP_RANGE_GROUP) {
        const void *source = take(dtype, weights, j, columns, buffer);
        __m256i largest = _mm256_setzero_si256(), smallest = _mm256_set1_epi32(-1);
        for (size_t part = 0; part < 4; part++) {
            __m256i v = _mm256_and_si256(_mm256_castps_si256(load(dtype, source, part)), magnitude);
            largest = _mm256_max_epu32(largest, v);
            /* one less: a zero wraps to the largest integer, and is never the smallest */
            smallest = _mm256_min_epu32(smallest, _mm256_sub_epi32(v, one));
        }
        uint32_t high = reduce(largest, 1), low = reduce(smallest, 0) + 1;
        if (low == 0 || low > 0x7f800000) low = 0x7f800000;
        memcpy(&maxima[j / TP_RANGE_GROUP], &high, 4);
        memcpy(&minima[j / TP_RANGE_GROUP], &low, 4);
    }
}

AVX2_TARGET void tp_avx2_group_range(const void *weights, tp_dtype dtype, size_t columns, float *maxima,
                                     float *minima) {
    BY_DTYPE(range, weights, columns, maxima, minima);
}

/* two sizes differ where both are not 0: where the smaller is not 0, and is not the larger */
AVX2_INLINE int sizes_of(tp_dtype dtype, const void *weights, size_t columns, float *sizes) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), zero = _mm256_setzero_si256();
    __m256i different = zero;
    float buffer[STEP], other_buffer[STEP];
    for (size_t j = 0; j < columns; j += STEP) {
        size_t left = columns - j;
        const void *source = take(dtype, weights, j, columns, buffer);
        float *own = left < STEP ? other_buffer : sizes + j;
        if (left < STEP) whole(sizes + j, left * 4, STEP * 4, other_buffer);
        for (size_t part = 0; part < 4; part++) {
            __m256i v = _mm256_and_si256(_mm256_castps_si256(load(dtype, source, part)), magnitude);
            __m256i before = _mm256_loadu_si256((const __m256i *)(own + 8 * part));
            __m256i low = _mm256_min_epu32(v, before), high = _mm256_max_epu32(v, before);
            __m256i fits = _mm256_or_si256(_mm256_cmpeq_epi32(low, high), _mm256_cmpeq_epi32(low, zero));
            different = _mm256_or_si256(different, _mm256_cmpeq_epi32(fits, zero));
            _mm256_storeu_si256((__m256i *)(own + 8 * part), high);
        }
        if (left < STEP) memcpy(sizes + j, other_buffer, left * 4);
    }
    return !_mm256_testz_si256(different, different);
}

AVX2_TARGET int tp_avx2_column_sizes(const void *weights, tp_dtype dtype, size_t columns, float *sizes) {
    return BY_DTYPE(sizes_of, weights, columns, sizes);
}
