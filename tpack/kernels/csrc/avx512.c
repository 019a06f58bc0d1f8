/* AVX-512: codec, conversions, activations. The products are in avx512_dots.c and its siblings. */
#include "avx512.h"

#include <string.h>

enum { PREFETCH = 2048 /* bytes ahead in what is read once: the hardware alone stays behind */ };

AVX512_TARGET static size_t pack_i8(const int8_t *trits, size_t columns, uint8_t *packed) {
    const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2);
    const __m512i pairs = _mm512_set1_epi16(0x0401), quads = _mm512_set1_epi32(0x00100001);
    for (size_t j = 0; j < columns; j += 64) {
        uint64_t present = low_bits(columns - j);
        /* absent columns load as 0, hence become code 1, the padding */
        __m512i codes = _mm512_add_epi8(_mm512_maskz_loadu_epi8(present, trits + j), one);
        uint64_t bad = _mm512_cmpgt_epu8_mask(codes, two);
        if (bad) return j + (size_t)__builtin_ctzll(bad);
        __m512i words = _mm512_maddubs_epi16(codes, pairs); /* c0 + 4 c1 */
        __m512i dwords = _mm512_madd_epi16(words, quads);   /* + 16 (c2 + 4 c3) */
        size_t bytes = tp_row_bytes(columns - j);
        _mm_mask_storeu_epi8(packed + j / 4, (__mmask16)low_bits(bytes < 16 ? bytes : 16),
                             _mm512_cvtepi32_epi8(dwords));
    }
    return columns;
}

AVX512_TARGET static size_t pack_f32(const float *trits, size_t columns, uint8_t *packed) {
    const __m512 one = _mm512_set1_ps(1), minus = _mm512_set1_ps(-1), nought = _mm512_setzero_ps();
    for (size_t j = 0; j < columns; j += 16) {
        __m512 v = _mm512_maskz_loadu_ps((__mmask16)low_bits(columns - j), trits + j);
        uint32_t positive = _mm512_cmp_ps_mask(v, one, _CMP_EQ_OQ);
        uint32_t zero = _mm512_cmp_ps_mask(v, nought, _CMP_EQ_OQ);
        uint32_t good = positive | zero | _mm512_cmp_ps_mask(v, minus, _CMP_EQ_OQ);
        if (good != 0xffff) return j + (size_t)__builtin_ctz(~good);
        put_codes(packed + j / 4, columns - j, interleave(zero, positive));
    }
    return columns;
}

/* the position of the first code 3 among 32, or 32 */
AVX512_INLINE unsigned first_three(uint64_t codes) {
    return (unsigned)_tzcnt_u64(codes & codes >> 1 & 0x5555555555555555) / 2;
}

AVX512_INLINE uint64_t get_codes(const uint8_t *packed, size_t columns_left) {
    uint64_t codes = 0; /* absent columns read as code 0 */
    if (columns_left >= 32)
        memcpy(&codes, packed, 8);
    else {
        for (size_t i = 0; i < tp_row_bytes(columns_left); i++) codes |= (uint64_t)packed[i] << (8 * i);
        codes &= low_bits(2 * columns_left);
    }
    return codes;
}

AVX512_TARGET static size_t expand_8(const uint8_t *packed, size_t columns, const uint8_t table[4],
                                     uint8_t *out) {
    uint32_t quad;
    memcpy(&quad, table, 4);
    const __m512i values = _mm512_set1_epi32((int)quad), three = _mm512_set1_epi8(3);
    const __m512i low_half = _mm512_set1_epi64(0x0e0c0a0806040200), step = _mm512_set1_epi64(0x1010101010101010);
    /* bit offset of byte i of the result in a qword that repeats 8 packed bytes: 2 * (i % 32) */
    const __m512i eighths = _mm512_setr_epi64(0, 1, 2, 3, 0, 1, 2, 3);
    const __m512i offsets = _mm512_add_epi8(
        low_half, _mm512_mullo_epi64(eighths, step));
    for (size_t j = 0; j < columns; j += 64) {
        uint64_t first = get_codes(packed + j / 4, columns - j);
        uint64_t second = columns - j > 32 ? get_codes(packed + j / 4 + 8, columns - j - 32) : 0;
        __m512i source = _mm512_inserti64x4(_mm512_set1_epi64((int64_t)first), _mm256_set1_epi64x((int64_t)second), 1);
        __m512i codes = _mm512_and_si512(_mm512_multishift_epi64_epi8(offsets, source), three);
        _mm512_mask_storeu_epi8(out + j, low_bits(columns - j), _mm512_shuffle_epi8(values, codes));
        unsigned bad = first_three(first);
        if (bad < 32) return j + bad;
        if ((bad = first_three(second)) < 32) return j + 32 + bad;
    }
    return columns;
}

AVX512_TARGET static size_t expand_16(const uint8_t *packed, size_t columns, const uint16_t table[4],
                                      uint16_t *out) {
    uint64_t quad;
    memcpy(&quad, table, 8);
    /* the table repeats, so the bits above a code need no mask */
    const __m512i values = _mm512_set1_epi64((int64_t)quad), step = _mm512_set1_epi64(0x0008000800080008);
    const __m512i offsets = _mm512_add_epi16(
        _mm512_set1_epi64(0x0006000400020000),
        _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), step));
    for (size_t j = 0; j < columns; j += 32) {
        uint64_t codes = get_codes(packed + j / 4, columns - j);
        __m512i index = _mm512_multishift_epi64_epi8(offsets, _mm512_set1_epi64((int64_t)codes));
        _mm512_mask_storeu_epi16(out + j, (__mmask32)low_bits(columns - j),
                                 _mm512_permutexvar_epi16(index, values));
        unsigned bad = first_three(codes);
        if (bad < 32) return j + bad;
    }
    return columns;
}

AVX512_TARGET static size_t expand_32(const uint8_t *packed, size_t columns, const uint32_t table[4],
                                      uint32_t *out) {
    const __m512i values = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    const __m512i shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for (size_t j = 0; j < columns; j += 32) {
        size_t left = columns - j;
        uint64_t codes = get_codes(packed + j / 4, left);
        __m512i low = _mm512_srlv_epi32(_mm512_set1_epi32((int)codes), shifts);
        __m512i high = _mm512_srlv_epi32(_mm512_set1_epi32((int)(codes >> 32)), shifts);
        _mm512_mask_storeu_epi32(out + j, (__mmask16)low_bits(left), _mm512_permutexvar_epi32(low, values));
        if (left > 16)
            _mm512_mask_storeu_epi32(out + j + 16, (__mmask16)low_bits(left - 16),
                                     _mm512_permutexvar_epi32(high, values));
        unsigned bad = first_three(codes);
        if (bad < 32) return j + bad;
    }
    return columns;
}

AVX512_INLINE __m512 load_f32(const float *x, size_t left) {
    return _mm512_maskz_loadu_ps((__mmask16)low_bits(left), x);
}

AVX512_TARGET static void f32_from_f16(const uint16_t *in, size_t count, float *out) {
    for (size_t i = 0; i < count; i += 16) {
        __mmask16 present = (__mmask16)low_bits(count - i);
        _mm512_mask_storeu_ps(out + i, present, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, in + i)));
    }
}

AVX512_TARGET static void f32_from_bf16(const uint16_t *in, size_t count, float *out) {
    for (size_t i = 0; i < count; i += 16) {
        __mmask16 present = (__mmask16)low_bits(count - i);
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, in + i));
        _mm512_mask_storeu_epi32(out + i, present, _mm512_slli_epi32(wide, 16));
    }
}

AVX512_TARGET static void f16_from_f32(const float *in, size_t count, uint16_t *out) {
    for (size_t i = 0; i < count; i += 16) {
        __m256i half = _mm512_cvtps_ph(load_f32(in + i, count - i), _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16(out + i, (__mmask16)low_bits(count - i), half);
    }
}

AVX512_TARGET static void bf16_from_f32(const float *in, size_t count, uint16_t *out) {
    const __m512i half = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1), quiet = _mm512_set1_epi32(0x40);
    for (size_t i = 0; i < count; i += 16) {
        __m512 v = load_f32(in + i, count - i);
        __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
        __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(half, _mm512_and_si512(high, one)));
        __m512i result = _mm512_mask_or_epi32(_mm512_srli_epi32(rounded, 16),
                                              _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), high, quiet);
        _mm256_mask_storeu_epi16(out + i, (__mmask16)low_bits(count - i), _mm512_cvtepi32_epi16(result));
    }
}

AVX512_TARGET static float abs_max(const float *x, size_t count) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += 16) {
        __m512i v = _mm512_castps_si512(load_f32(x + i, count - i));
        largest = _mm512_max_epu32(largest, _mm512_and_si512(v, magnitude));
    }
    uint32_t bits = _mm512_reduce_max_epu32(largest);
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

AVX512_TARGET static void quantize(const float *x, size_t columns, float factor, int8_t *planes) {
    const __m512 factors = _mm512_set1_ps(factor);
    const __m128i by_plane = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    /* the dwords of four such vectors, gathered by plane */
    const __m512i gather = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (size_t j = 0; j < tp_blocks(columns) * TP_BLOCK; j += 64) {
        __m128i part[4];
        for (int i = 0; i < 4; i++) {
            size_t at = j + 16 * (size_t)i, left = at < columns ? columns - at : 0;
            __m512 scaled = _mm512_mul_ps(left ? load_f32(x + at, left) : _mm512_setzero_ps(), factors);
            __m512i rounded = _mm512_cvt_roundps_epi32(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            part[i] = _mm_shuffle_epi8(_mm512_cvtsepi32_epi8(rounded), by_plane);
        }
        __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(part[1], part[0])),
                                         _mm256_set_m128i(part[3], part[2]), 1);
        all = _mm512_permutexvar_epi32(gather, all);
        int8_t *block = planes + j / TP_BLOCK * TP_BLOCK + j % TP_BLOCK / 4;
        _mm_storeu_si128((__m128i *)block, _mm512_castsi512_si128(all));
        _mm_storeu_si128((__m128i *)(block + 64), _mm512_extracti32x4_epi32(all, 1));
        _mm_storeu_si128((__m128i *)(block + 128), _mm512_extracti32x4_epi32(all, 2));
        _mm_storeu_si128((__m128i *)(block + 192), _mm512_extracti32x4_epi32(all, 3));
    }
}

AVX512_TARGET static void lane_sums(const int8_t *planes, size_t blocks, int32_t *sums) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (size_t block = 0; block < blocks; block++) {
        __m512i sum = _mm512_setzero_si512();
        for (int p = 0; p < 4; p++)
            sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(planes + block * TP_BLOCK + 64 * p));
        _mm512_storeu_si512(sums + block * TP_LANES, sum);
    }
}

AVX512_TARGET void tp_avx512_arrange(const float *x, size_t columns, size_t tokens, float *lanes) {
    if (tokens == 1) tp_avx512_make_tables(x, columns, lanes + tp_blocks(columns) * TP_BLOCK);
    const __m512i starts = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
    for (size_t j = 0; j < columns; j += TP_BLOCK) {
        int left = columns - j < TP_BLOCK ? (int)(columns - j) : TP_BLOCK;
        for (int code = 0; code < 16; code++) {
            __mmask16 present = _mm512_cmplt_epi32_mask(starts, _mm512_set1_epi32(left - code));
            __m512 v = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), present, starts, x + j + code, 4);
            _mm512_storeu_ps(lanes + j + 16 * code, v);
        }
    }
}

AVX512_TARGET static void rescale(const int32_t *sums, size_t count, const float *scale, int per_row,
                                  float factor, float *out) {
    const __m512 factors = _mm512_set1_ps(factor);
    for (size_t j = 0; j < count; j += 16) {
        __mmask16 present = (__mmask16)low_bits(count - j);
        __m512 scales = per_row ? _mm512_maskz_loadu_ps(present, scale + j) : _mm512_set1_ps(*scale);
        __m512 sum = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(present, sums + j));
        _mm512_mask_storeu_ps(out + j, present, _mm512_div_ps(_mm512_mul_ps(sum, scales), factors));
    }
}

AVX512_TARGET static uint64_t read_bytes(const uint8_t *data, size_t count) {
    __m512i a = _mm512_setzero_si512(), b = a;
    size_t i = 0;
    for (; i + 128 <= count; i += 128) { /* the sums of 64-bit words will do: nothing must be skipped */
        _mm_prefetch((const char *)data + i + PREFETCH, _MM_HINT_T0);
        _mm_prefetch((const char *)data + i + PREFETCH + 64, _MM_HINT_T0);
        a = _mm512_add_epi64(a, _mm512_loadu_si512(data + i));
        b = _mm512_add_epi64(b, _mm512_loadu_si512(data + i + 64));
    }
    uint64_t lanes[8], sum = 0; /* the reduction of the header adds signed numbers, which may overflow */
    _mm512_storeu_si512(lanes, _mm512_add_epi64(a, b));
    for (int i = 0; i < 8; i++) sum += lanes[i];
    for (; i < count; i++) sum += data[i];
    return sum;
}

#define AVX512_TABLE(variant, arrange_, floats_for_many, ints, floats)                              \
    {                                                                                               \
        .name = variant, .pack_i8 = pack_i8, .pack_f32 = pack_f32, .pack_threshold = tp_avx512_pack_threshold, \
        .expand_8 = expand_8, .expand_16 = expand_16, .expand_32 = expand_32, .abs_sum = tp_avx512_abs_sum, \
        .group_range = tp_avx512_group_range, .column_sizes = tp_avx512_column_sizes, .square_sums = tp_avx512_square_sums,         \
        .matches = tp_avx512_matches, .f32_from_f16 = f32_from_f16, .f32_from_bf16 = f32_from_bf16,   \
        .f16_from_f32 = f16_from_f32, .bf16_from_f32 = bf16_from_f32, .abs_max = abs_max,           \
        .quantize = quantize, .lane_sums = lane_sums, .arrange = arrange_,                          \
        .arranged_floats = {1 + TP_TABLE_FLOATS, floats_for_many}, .int_dots = ints,                                     \
        .int_group_dots = tp_avx512_int_group_dots, .float_dots = floats, .rescale = rescale,       \
        .float_columns = tp_avx512_float_columns, .int_columns = tp_avx512_int_columns,             \
        .transpose = tp_avx2_transpose, .turn_from = {16, 20}, .read_bytes = read_bytes,            \
    }

const tp_kernels tp_avx512 =
    AVX512_TABLE("avx512", tp_avx512_arrange, 1, tp_avx512_int_dots, tp_avx512_float_dots);
/* the same but for many tokens: amx.c */
const tp_kernels tp_amx =
    AVX512_TABLE("amx", tp_amx_arrange, TP_AMX_FLOATS, tp_amx_int_dots, tp_amx_float_dots);
