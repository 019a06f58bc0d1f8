/* AVX2: codec, conversions, activations. Products are in avx2_dots.c and avx2_floats.c. */
#include "avx2.h"

AVX2_TARGET static size_t pack_i8(const int8_t *trits, size_t columns, uint8_t *packed) {
    const __m256i one = _mm256_set1_epi8(1), two = _mm256_set1_epi8(2);
    uint8_t buffer[32];
    for (size_t j = 0; j < columns; j += 32) {
        size_t left = columns - j;
        __m256i codes = _mm256_add_epi8(_mm256_loadu_si256(whole(trits + j, left, 32, buffer)), one);
        uint32_t good = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(codes, two), two));
        if (~good) return j + (size_t)__builtin_ctz(~good);
        uint64_t bytes = join_codes(codes);
        memcpy(packed + j / 4, &bytes, left >= 32 ? 8 : tp_row_bytes(left));
    }
    return columns;
}

AVX2_TARGET static size_t pack_f32(const float *trits, size_t columns, uint8_t *packed) {
    const __m256 one = _mm256_set1_ps(1), minus = _mm256_set1_ps(-1), nought = _mm256_setzero_ps();
    float buffer[32];
    for (size_t j = 0; j < columns; j += 32) {
        size_t left = columns - j;
        const float *source = whole(trits + j, left * 4, 128, buffer);
        __m256i codes[4];
        for (int i = 0; i < 4; i++) {
            __m256 v = _mm256_loadu_ps(source + 8 * i);
            __m256 positive = _mm256_cmp_ps(v, one, _CMP_EQ_OQ), negative = _mm256_cmp_ps(v, minus, _CMP_EQ_OQ);
            __m256 zero = _mm256_cmp_ps(v, nought, _CMP_EQ_OQ);
            int good = _mm256_movemask_ps(_mm256_or_ps(_mm256_or_ps(positive, negative), zero));
            if (good != 0xff) return j + 8 * (size_t)i + (size_t)__builtin_ctz(~(unsigned)good);
            codes[i] = _mm256_sub_epi32(_mm256_castps_si256(negative), _mm256_castps_si256(positive));
        }
        uint64_t bytes = join_codes(_mm256_add_epi8(narrow(codes), _mm256_set1_epi8(1)));
        memcpy(packed + j / 4, &bytes, left >= 32 ? 8 : tp_row_bytes(left));
    }
    return columns;
}

/* 32 codes of a row; absent ones read as 0. */
AVX2_INLINE uint64_t get_codes(const uint8_t *packed, size_t columns_left) {
    uint64_t codes = 0;
    if (columns_left >= 32) {
        memcpy(&codes, packed, 8);
        return codes;
    }
    memcpy(&codes, packed, tp_row_bytes(columns_left));
    return codes & ((1ull << (2 * columns_left)) - 1);
}

/* the position of the first code 3 among 32, or 32 */
static inline unsigned first_three(uint64_t codes) {
    uint64_t threes = codes & codes >> 1 & 0x5555555555555555;
    return threes ? (unsigned)__builtin_ctzll(threes) / 2 : 32;
}

/* 32 codes to bytes: each packed byte four times; then its low or high nibble, whose two codes are told
 * apart by two tables. */
AVX2_INLINE __m256i spread(uint64_t codes, __m256i lower, __m256i upper) {
    const __m256i four_times = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,
                                                4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi64x((int64_t)codes), four_times);
    __m256i nibbles = _mm256_blend_epi16(bytes, _mm256_srli_epi16(bytes, 4), 0xaa);
    nibbles = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(lower, nibbles), _mm256_shuffle_epi8(upper, nibbles),
                              _mm256_set1_epi16((short)0xff00));
}

AVX2_TARGET static size_t expand_8(const uint8_t *packed, size_t columns, const uint8_t table[4], uint8_t *out) {
    uint8_t tables[2][16];
    for (int i = 0; i < 16; i++) {
        tables[0][i] = table[i & 3];
        tables[1][i] = table[i >> 2];
    }
    const __m256i lower = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)tables[0]));
    const __m256i upper = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)tables[1]));
    for (size_t j = 0; j < columns; j += 32) {
        uint64_t codes = get_codes(packed + j / 4, columns - j);
        unsigned bad = first_three(codes);
        if (bad < 32) return j + bad;
        __m256i values = spread(codes, lower, upper);
        if (columns - j >= 32)
            _mm256_storeu_si256((__m256i *)(out + j), values);
        else
            memcpy(out + j, &values, columns - j);
    }
    return columns;
}

AVX2_TARGET static size_t expand_16(const uint8_t *packed, size_t columns, const uint16_t table[4], uint16_t *out) {
    uint64_t quad;
    memcpy(&quad, table, 8);
    const __m256i values = _mm256_set1_epi64x((int64_t)quad), step = _mm256_set1_epi16(0x0202);
    const __m256i codes_low = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,
                                               0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    const __m256i codes_high = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,
                                                0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (size_t j = 0; j < columns; j += 32) {
        uint64_t codes = get_codes(packed + j / 4, columns - j);
        unsigned bad = first_three(codes);
        if (bad < 32) return j + bad;
        __m256i bytes = spread(codes, codes_low, codes_high), result[2];
        for (int half = 0; half < 2; half++) {
            __m128i sixteen = half ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
            __m256i index = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(sixteen), step); /* bytes 2c and 2c + 1 */
            index = _mm256_add_epi8(index, _mm256_set1_epi16(0x0100));
            result[half] = _mm256_shuffle_epi8(values, index);
        }
        memcpy(out + j, result, 2 * (columns - j < 32 ? columns - j : 32));
    }
    return columns;
}

AVX2_TARGET static size_t expand_32(const uint8_t *packed, size_t columns, const uint32_t table[4], uint32_t *out) {
    /* the table repeats, so the bit above a code needs no mask */
    const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    const __m256i shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    for (size_t j = 0; j < columns; j += 32) {
        uint64_t codes = get_codes(packed + j / 4, columns - j);
        unsigned bad = first_three(codes);
        if (bad < 32) return j + bad;
        __m256i result[4];
        for (int i = 0; i < 4; i++) {
            __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32((int)(codes >> (16 * i))), shifts);
            result[i] = _mm256_permutevar8x32_epi32(values, index);
        }
        memcpy(out + j, result, 4 * (columns - j < 32 ? columns - j : 32));
    }
    return columns;
}

AVX2_TARGET static void f32_from_f16(const uint16_t *in, size_t count, float *out) {
    uint16_t buffer[8];
    for (size_t i = 0; i < count; i += 8) {
        __m256 v = _mm256_cvtph_ps(_mm_loadu_si128(whole(in + i, (count - i) * 2, 16, buffer)));
        memcpy(out + i, &v, 4 * (count - i < 8 ? count - i : 8));
    }
}

AVX2_TARGET static void f32_from_bf16(const uint16_t *in, size_t count, float *out) {
    uint16_t buffer[8];
    for (size_t i = 0; i < count; i += 8) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128(whole(in + i, (count - i) * 2, 16, buffer)));
        v = _mm256_slli_epi32(v, 16);
        memcpy(out + i, &v, 4 * (count - i < 8 ? count - i : 8));
    }
}

AVX2_TARGET static void f16_from_f32(const float *in, size_t count, uint16_t *out) {
    float buffer[8];
    for (size_t i = 0; i < count; i += 8) {
        __m256 v = _mm256_loadu_ps(whole(in + i, (count - i) * 4, 32, buffer));
        __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
        memcpy(out + i, &half, 2 * (count - i < 8 ? count - i : 8));
    }
}

AVX2_TARGET static void bf16_from_f32(const float *in, size_t count, uint16_t *out) {
    float buffer[8];
    for (size_t i = 0; i < count; i += 8) {
        __m256 v = _mm256_loadu_ps(whole(in + i, (count - i) * 4, 32, buffer));
        __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
        __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(high, _mm256_set1_epi32(1)));
        __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
        __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
        __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        memcpy(out + i, &packed, 2 * (count - i < 8 ? count - i : 8));
    }
}

AVX2_TARGET static float abs_max(const float *x, size_t count) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256();
    float buffer[8];
    for (size_t i = 0; i < count; i += 8) {
        __m256i v = _mm256_loadu_si256(whole(x + i, (count - i) * 4, 32, buffer));
        largest = _mm256_max_epu32(largest, _mm256_and_si256(v, magnitude));
    }
    uint32_t bits = reduce(largest, 1);
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

AVX2_TARGET static void quantize(const float *x, size_t columns, float factor, int8_t *planes) {
    const __m256 factors = _mm256_set1_ps(factor);
    const __m256i by_plane = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
                                              0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    float buffer[32];
    for (size_t j = 0; j < tp_blocks(columns) * TP_BLOCK; j += 32) {
        size_t left = j < columns ? columns - j : 0;
        const float *source = whole(left ? x + j : x, left * 4, 128, buffer);
        __m256i parts[4];
        for (int i = 0; i < 4; i++)
            parts[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(source + 8 * i), factors));
        __m256i bytes = _mm256_shuffle_epi8(narrow(parts), by_plane);
        uint64_t lines[4];
        _mm256_storeu_si256((__m256i *)lines, _mm256_permutevar8x32_epi32(bytes, order));
        int8_t *block = planes + j / TP_BLOCK * TP_BLOCK + j % TP_BLOCK / 4;
        for (int p = 0; p < 4; p++) memcpy(block + 64 * p, &lines[p], 8);
    }
}

AVX2_TARGET static void lane_sums(const int8_t *planes, size_t blocks, int32_t *sums) {
    const __m256i bytes = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
    for (size_t half = 0; half < 2 * blocks; half++) {
        __m256i sum = _mm256_setzero_si256();
        for (int p = 0; p < 4; p++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(planes + half / 2 * TP_BLOCK + half % 2 * 32 + 64 * (size_t)p));
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(bytes, v));
        }
        _mm256_storeu_si256((__m256i *)(sums + half * 8), _mm256_madd_epi16(sum, words));
    }
}

AVX2_TARGET static void arrange(const float *x, size_t columns, size_t tokens, float *lanes) {
    (void)tokens;
    const __m256i starts = _mm256_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112);
    for (size_t j = 0; j < tp_blocks(columns) * TP_BLOCK; j += 128) { /* half a block */
        int left = j >= columns ? 0 : columns - j < 128 ? (int)(columns - j) : 128;
        float *target = lanes + j / TP_BLOCK * TP_BLOCK + j % TP_BLOCK / 16;
        for (int code = 0; code < 16; code++) {
            __m256i present = _mm256_cmpgt_epi32(_mm256_set1_epi32(left - code), starts);
            __m256 v = _mm256_mask_i32gather_ps(_mm256_setzero_ps(), left ? x + j + code : x, starts,
                                                _mm256_castsi256_ps(present), 4);
            _mm256_storeu_ps(target + 16 * code, v);
        }
    }
}

AVX2_TARGET static void rescale(const int32_t *sums, size_t count, const float *scale, int per_row,
                                float factor, float *out) {
    for (size_t j = 0; j < count; j++) out[j] = (float)sums[j] * scale[per_row ? j : 0] / factor;
}

AVX2_TARGET static uint64_t read_bytes(const uint8_t *data, size_t count) {
    __m256i a = _mm256_setzero_si256(), b = a;
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
        _mm_prefetch((const char *)data + i + 2048, _MM_HINT_T0);
        a = _mm256_add_epi64(a, _mm256_loadu_si256((const __m256i *)(data + i)));
        b = _mm256_add_epi64(b, _mm256_loadu_si256((const __m256i *)(data + i + 32)));
    }
    uint64_t parts[4], sum = 0;
    _mm256_storeu_si256((__m256i *)parts, _mm256_add_epi64(a, b));
    for (int p = 0; p < 4; p++) sum += parts[p];
    for (; i < count; i++) sum += data[i];
    return sum;
}

const tp_kernels tp_avx2 = {
    .name = "avx2", .pack_i8 = pack_i8, .pack_f32 = pack_f32, .pack_threshold = tp_avx2_pack_threshold,
    .expand_8 = expand_8, .expand_16 = expand_16, .expand_32 = expand_32, .abs_sum = tp_avx2_abs_sum,
    .group_range = tp_avx2_group_range, .column_sizes = tp_avx2_column_sizes, .square_sums = tp_avx2_square_sums,
    .matches = tp_avx2_matches, .f32_from_f16 = f32_from_f16, .f32_from_bf16 = f32_from_bf16,
    .f16_from_f32 = f16_from_f32, .bf16_from_f32 = bf16_from_f32, .abs_max = abs_max,
    .quantize = quantize, .lane_sums = lane_sums, .arrange = arrange, .arranged_floats = {1, 1}, .int_dots = tp_avx2_int_dots,
    .int_group_dots = tp_avx2_int_group_dots, .float_dots = tp_avx2_float_dots, .rescale = rescale,
    .float_columns = tp_avx2_float_columns, .int_columns = tp_avx2_int_columns,
    .transpose = tp_avx2_transpose, .turn_from = {4, 9}, .read_bytes = read_bytes,
};
