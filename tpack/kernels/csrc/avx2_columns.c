/* AVX2: the orientation in which a packed row holds outputs, and the way from it to the other.
 *
 * 32 packed bytes are 128 output columns. A few rows are worked off while the sums of these columns are
 * in registers; a tile's sums wait in a buffer that stays in the L1 cache.
 */
#include "avx2.h"

enum { MOST_COLUMNS = 2048, STEP_ROWS = 8 };

/* 8 lanes of 16 codes; eight codes at a time have their sums in registers. They wait as
 * [half block][code][lane]. */
AVX2_TARGET void tp_avx2_float_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                                       const float *x, float *out) {
    float sums[MOST_COLUMNS];
    const __m256 trits = _mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0);
    size_t bytes = tp_row_bytes(columns);
    uint8_t buffer[32];
    memset(sums, 0, sizeof sums);
    for (size_t start = 0; start < rows; start += STEP_ROWS) {
        size_t end = start + STEP_ROWS < rows ? start + STEP_ROWS : rows;
        for (size_t at = 0; at < bytes; at += 32)
            for (int upper = 0; upper < 2; upper++) {
                float *target = sums + at * 4 + 64 * upper;
                __m256 total[8];
                for (int c = 0; c < 8; c++) total[c] = _mm256_loadu_ps(target + 8 * c);
                for (size_t row = start; row < end; row++) {
                    const uint8_t *here = packed + row * row_bytes + at;
                    _mm_prefetch((const char *)here + STEP_ROWS * row_bytes, _MM_HINT_T1);
                    __m256i codes = _mm256_loadu_si256(whole(here, bytes - at, 32, buffer));
                    codes = _mm256_srli_epi32(codes, 16 * upper);
                    __m256 table = _mm256_mul_ps(trits, _mm256_set1_ps(x[row]));
                    for (int c = 0; c < 8; c++) {
                        total[c] = _mm256_add_ps(total[c], _mm256_permutevar8x32_ps(table, codes));
                        codes = _mm256_srli_epi32(codes, 2);
                    }
                }
                for (int c = 0; c < 8; c++) _mm256_storeu_ps(target + 8 * c, total[c]);
            }
    }
    for (size_t j = 0; j < columns; j++) out[j] = sums[j / 128 * 128 + j % 16 * 8 + j % 128 / 16];
}

enum {
    WORD_ROWS = 128, /* 64 pairs of products, which is what a sum of 16 bits holds (avx2_dots.c) */
    SHORT_ROWS = 32, /* a quarter: odd planes stay where they are, four times too large */
};

/* Two rows: their bytes interleaved make pairs for vpmaddubsw, plane after plane. */
AVX2_INLINE void add_pair(__m256i a, __m256i b, unsigned pair, words sums[8]) {
    const __m256i even = _mm256_set1_epi8(0x03), odd = _mm256_set1_epi8(0x0c);
    __m256i activations = _mm256_set1_epi16((int16_t)pair);
    __m256i halves[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m256i low = halves[half], high = _mm256_srli_epi16(low, 4);
        sums[half] += (words)_mm256_maddubs_epi16(_mm256_and_si256(low, even), activations);
        sums[2 + half] += (words)_mm256_maddubs_epi16(_mm256_and_si256(low, odd), activations);
        sums[4 + half] += (words)_mm256_maddubs_epi16(_mm256_and_si256(high, even), activations);
        sums[6 + half] += (words)_mm256_maddubs_epi16(_mm256_and_si256(high, odd), activations);
    }
}

/* At most SHORT_ROWS rows, added to sums of 16 bits: [32 bytes][plane][half of the pairs][lane]. */
AVX2_INLINE void add_rows(const uint8_t *packed, size_t row_bytes, size_t rows, size_t bytes, const int8_t *x, words *sums) {
    uint8_t buffer[2][32];
    for (size_t at = 0; at < bytes; at += 32, sums += 8) {
        words sum[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) sum[i] = (words){0};
        const uint8_t *here = packed + at;
        size_t row = 0;
        for (; row + 2 <= rows; row += 2, here += 2 * row_bytes) {
            _mm_prefetch((const char *)here + SHORT_ROWS * row_bytes, _MM_HINT_T1);
            _mm_prefetch((const char *)here + (SHORT_ROWS + 1) * row_bytes, _MM_HINT_T1);
            __m256i a = _mm256_loadu_si256(whole(here, bytes - at, 32, buffer[0]));
            __m256i b = _mm256_loadu_si256(whole(here + row_bytes, bytes - at, 32, buffer[1]));
            add_pair(a, b, (uint8_t)x[row] | (unsigned)(uint8_t)x[row + 1] << 8, sum);
        }
        if (row < rows) {
            __m256i a = _mm256_loadu_si256(whole(here, bytes - at, 32, buffer[0]));
            add_pair(a, _mm256_setzero_si256(), (uint8_t)x[row], sum);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) sums[i] += i & 2 ? sum[i] >> 2 : sum[i];
    }
}

AVX2_TARGET void tp_avx2_int_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                                     const int8_t *x, int32_t *out) {
    words sums[MOST_COLUMNS / 16];
    int32_t totals[MOST_COLUMNS], x_sum = 0;
    size_t bytes = tp_row_bytes(columns), lanes = (bytes + 31) / 32 * 128;
    for (size_t row = 0; row < rows; row++) x_sum += x[row];
    memset(totals, 0, lanes * 4);
    for (size_t start = 0; start < rows;) {
        size_t end = start + WORD_ROWS < rows ? start + WORD_ROWS : rows;
        memset(sums, 0, lanes * 2);
        for (; start < end; start += SHORT_ROWS)
            add_rows(packed + start * row_bytes, row_bytes, end - start < SHORT_ROWS ? end - start : SHORT_ROWS, bytes,
                     x + start, sums);
        for (size_t i = 0; i < lanes / 8; i++) {
            __m256i eight = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)sums + i)), *total = (__m256i *)totals + i;
            _mm256_storeu_si256(total, _mm256_add_epi32(_mm256_loadu_si256(total), eight));
        }
    }
    for (size_t j = 0; j < columns; j++) {
        /* interleaving worked within 16 bytes: byte 16a + 8h + b is lane 8a + b of half h */
        size_t byte = j % 128 / 4, lane = byte / 16 * 8 + byte % 8, half = byte % 16 / 8;
        out[j] += totals[j / 128 * 128 + j % 4 * 32 + half * 16 + lane] - x_sum;
    }
}

/* Rows of each four codes in a dword, turned: bit 8r + 2c and its neighbour go to 8c + 2r. */
AVX2_INLINE __m256i turn(__m256i codes) {
    /* odd columns of even rows; then columns 2 and 3 of rows 0 and 1 */
    __m256i moved = _mm256_and_si256(_mm256_xor_si256(codes, _mm256_srli_epi32(codes, 6)), _mm256_set1_epi32(0x00cc00cc));
    codes = _mm256_xor_si256(codes, _mm256_xor_si256(moved, _mm256_slli_epi32(moved, 6)));
    moved = _mm256_and_si256(_mm256_xor_si256(codes, _mm256_srli_epi32(codes, 12)), _mm256_set1_epi32(0x0000f0f0));
    return _mm256_xor_si256(codes, _mm256_xor_si256(moved, _mm256_slli_epi32(moved, 12)));
}

/* Four vectors of bytes to dwords of one byte of each; those of 16 bytes lie in the order of the bytes. */
AVX2_INLINE void interleave(const __m256i in[4], __m256i out[4]) {
    __m256i low01 = _mm256_unpacklo_epi8(in[0], in[1]), high01 = _mm256_unpackhi_epi8(in[0], in[1]);
    __m256i low23 = _mm256_unpacklo_epi8(in[2], in[3]), high23 = _mm256_unpackhi_epi8(in[2], in[3]);
    out[0] = _mm256_unpacklo_epi16(low01, low23);
    out[1] = _mm256_unpackhi_epi16(low01, low23);
    out[2] = _mm256_unpacklo_epi16(high01, high23);
    out[3] = _mm256_unpackhi_epi16(high01, high23);
}

AVX2_TARGET void tp_avx2_transpose(const uint8_t *packed, size_t row_bytes, uint8_t *out, size_t out_bytes) {
    /* [fours of packed bytes][byte][16 rows]: dwords are columns, in two halves of the 32 bytes */
    __m256i columns[4][4][4];
    for (size_t part = 0; part < 4; part++) {
        __m256i turned[4][4]; /* [fours of packed bytes][four rows] */
        for (size_t four = 0; four < 4; four++) {
            __m256i rows[4], dwords[4];
            for (size_t r = 0; r < 4; r++)
                rows[r] = _mm256_loadu_si256((const __m256i *)(packed + (16 * part + 4 * four + r) * row_bytes));
            interleave(rows, dwords);
            for (size_t i = 0; i < 4; i++) turned[i][four] = turn(dwords[i]);
        }
        for (size_t i = 0; i < 4; i++) {
            __m256i bytes[4];
            interleave(turned[i], bytes);
            for (size_t b = 0; b < 4; b++) columns[i][b][part] = bytes[b];
        }
    }
    for (size_t i = 0; i < 16; i++) { /* packed byte i, and byte 16 + i in the upper halves */
        const __m256i *c = columns[i / 4][i % 4];
        __m256i low01 = _mm256_unpacklo_epi32(c[0], c[1]), high01 = _mm256_unpackhi_epi32(c[0], c[1]);
        __m256i low23 = _mm256_unpacklo_epi32(c[2], c[3]), high23 = _mm256_unpackhi_epi32(c[2], c[3]);
        __m256i lines[4] = {_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
                            _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
        for (size_t column = 0; column < 4; column++) {
            uint8_t *line = out + (4 * i + column) * out_bytes;
            _mm_storeu_si128((__m128i *)line, _mm256_castsi256_si128(lines[column]));
            _mm_storeu_si128((__m128i *)(line + 64 * out_bytes), _mm256_extracti128_si256(lines[column], 1));
        }
    }
}
