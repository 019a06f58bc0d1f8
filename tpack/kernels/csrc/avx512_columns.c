/* AVX-512: the orientation in which a packed row holds outputs.
 *
 * 64 packed bytes are 256 output columns: 16 sums of 16 lanes. Several rows are worked off while the
 * sums are in registers; a tile's sums wait in a buffer that stays in the L1 cache.
 */
#include "avx512.h"

#include <string.h>

enum { MOST_COLUMNS = 2048, STEP_ROWS = 16 };

/* Two rows at once: two codes make the four bits by which vpermps looks up t0 * x0 + t1 * x1. */
AVX512_TARGET void tp_avx512_float_columns(const uint8_t *packed, size_t row_bytes, size_t rows,
                                           size_t columns, const float *x, float *out) {
    float sums[MOST_COLUMNS]; /* [block][code][lane] */
    const __m512 first_trit = _mm512_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0);
    const __m512 second_trit = _mm512_setr_ps(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m512i even = _mm512_set1_epi8(0x33);
    size_t bytes = tp_row_bytes(columns);
    memset(sums, 0, tp_blocks(columns) * TP_BLOCK * sizeof *sums);
    for (size_t start = 0; start < rows; start += STEP_ROWS) {
        size_t end = start + STEP_ROWS < rows ? start + STEP_ROWS : rows;
        for (size_t at = 0; at < bytes; at += 64) {
            float *block = sums + at * 4;
            __m512 total[16];
            for (int c = 0; c < 16; c++) total[c] = _mm512_loadu_ps(block + 16 * c);
            for (size_t row = start; row < end; row += 2) {
                const uint8_t *here = packed + row * row_bytes + at;
                _mm_prefetch((const char *)here + STEP_ROWS * row_bytes, _MM_HINT_T1);
                _mm_prefetch((const char *)here + (STEP_ROWS + 1) * row_bytes, _MM_HINT_T1);
                __m512i a = load_block(here, bytes - at), b = _mm512_setzero_si512();
                __m512 table = _mm512_mul_ps(first_trit, _mm512_set1_ps(x[row]));
                if (row + 1 < end) {
                    b = load_block(here + row_bytes, bytes - at);
                    table = _mm512_fmadd_ps(second_trit, _mm512_set1_ps(x[row + 1]), table);
                }
                /* nibbles: codes 0, 2, 4.. of both rows, and codes 1, 3, 5.. (truth tables pick by mask) */
                __m512i evens = _mm512_ternarylogic_epi32(even, a, _mm512_slli_epi32(b, 2), 0xca);
                __m512i odds = _mm512_ternarylogic_epi32(even, _mm512_srli_epi32(a, 2), b, 0xca);
                for (int c = 0; c < 16; c += 2) {
                    total[c] = _mm512_add_ps(total[c], _mm512_permutexvar_ps(evens, table));
                    total[c + 1] = _mm512_add_ps(total[c + 1], _mm512_permutexvar_ps(odds, table));
                    evens = _mm512_srli_epi32(evens, 4);
                    odds = _mm512_srli_epi32(odds, 4);
                }
            }
            for (int c = 0; c < 16; c++) _mm512_storeu_ps(block + 16 * c, total[c]);
        }
    }
    const __m512i starts = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
    for (size_t j = 0; j < columns; j += TP_BLOCK) {
        int left = columns - j < TP_BLOCK ? (int)(columns - j) : TP_BLOCK;
        for (int c = 0; c < 16; c++) {
            __mmask16 present = _mm512_cmplt_epi32_mask(starts, _mm512_set1_epi32(left - c));
            _mm512_mask_i32scatter_ps(out + j + c, present, starts, _mm512_loadu_ps(sums + j + 16 * c), 4);
        }
    }
}

/* Four rows at once: their bytes interleaved make dwords, one vpdpbusd each plane. */
AVX512_TARGET void tp_avx512_int_columns(const uint8_t *packed, size_t row_bytes, size_t rows,
                                         size_t columns, const int8_t *x, int32_t *out) {
    int32_t sums[MOST_COLUMNS]; /* [block][quarter][plane][lane], plane p scaled by 4^p */
    const __m512i three = _mm512_set1_epi8(3);
    const __m512i masks[4] = {three, _mm512_slli_epi32(three, 2), _mm512_slli_epi32(three, 4),
                              _mm512_slli_epi32(three, 6)};
    size_t bytes = tp_row_bytes(columns);
    int32_t x_sum = 0;
    for (size_t row = 0; row < rows; row++) x_sum += x[row];
    memset(sums, 0, tp_blocks(columns) * TP_BLOCK * sizeof *sums);
    for (size_t start = 0; start < rows; start += STEP_ROWS) {
        size_t end = start + STEP_ROWS < rows ? start + STEP_ROWS : rows;
        for (size_t at = 0; at < bytes; at += 64) {
            int32_t *block = sums + at * 4;
            __m512i total[16];
            for (int i = 0; i < 16; i++) total[i] = _mm512_loadu_si512(block + 16 * i);
            for (size_t row = start; row < end; row += 4) {
                const uint8_t *here = packed + row * row_bytes + at;
                __m512i line[4];
                int8_t four[4] = {0};
                for (size_t r = 0; r < 4; r++) {
                    _mm_prefetch((const char *)here + (STEP_ROWS + r) * row_bytes, _MM_HINT_T1);
                    line[r] = row + r < end ? load_block(here + r * row_bytes, bytes - at) : _mm512_setzero_si512();
                    if (row + r < end) four[r] = x[row + r];
                }
                int32_t broadcast;
                memcpy(&broadcast, four, 4);
                __m512i activations = _mm512_set1_epi32(broadcast);
                __m512i low01 = _mm512_unpacklo_epi8(line[0], line[1]), high01 = _mm512_unpackhi_epi8(line[0], line[1]);
                __m512i low23 = _mm512_unpacklo_epi8(line[2], line[3]), high23 = _mm512_unpackhi_epi8(line[2], line[3]);
                __m512i quarter[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                                      _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
                for (int q = 0; q < 4; q++)
                    for (int p = 0; p < 4; p++)
                        total[4 * q + p] = _mm512_dpbusd_epi32(total[4 * q + p],
                                                               _mm512_and_si512(quarter[q], masks[p]), activations);
            }
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(block + 16 * i, total[i]);
        }
    }
    for (size_t j = 0; j < columns; j++) {
        /* unpacking worked within 16 bytes: byte 16a + 4q + b is lane 4a + b of quarter q */
        size_t byte = j % TP_BLOCK / 4, plane = j % 4;
        size_t lane = byte / 16 * 4 + byte % 4, quarter = byte % 16 / 4;
        int32_t sum = sums[j / TP_BLOCK * TP_BLOCK + quarter * 64 + plane * 16 + lane];
        out[j] += (sum >> 2 * plane) - x_sum;
    }
}
