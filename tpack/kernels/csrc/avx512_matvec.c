/* AVX-512: one token of floats.
 *
 * Lanes are rows here: 64 packed bytes of 16 rows are transposed, so that a vector holds the same 16
 * columns of 16 rows. Then two columns at once: two codes are the four bits by which vpermps looks up
 * t0 * x0 + t1 * x1 in a table of 16 floats, made once for all rows. A shift, a lookup and an addition
 * do 32 products.
 */
#include "avx512.h"

enum { GROUPS = 4 /* of 16 rows, so that a table is loaded once for 64 */ };

/* Fetches the next four blocks of a part of the rows: 256 adjacent bytes at a time, which memory likes
 * better than 64. Each block of four fetches for a quarter of the rows (the last, if they are fewer,
 * for more). Beyond a row's end the next tile begins. */
AVX512_INLINE void fetch_rows(const tp_tile *tile, const uint8_t *packed, size_t rows, size_t block,
                              size_t blocks, size_t dword) {
    size_t first = block / 4 * 4, share = blocks - first < 4 ? blocks - first : 4, at = (first + 4) * 64;
    if (at >= tile->row_bytes) at = rows * tile->row_bytes;
    for (size_t row = block % 4 * 16 + dword; row < rows; row += share * 16)
#pragma GCC unroll 4
        for (size_t line = 0; line < 4; line++)
            _mm_prefetch((const char *)packed + row * tile->row_bytes + at + 64 * line, _MM_HINT_T1);
}

AVX512_TARGET void tp_avx512_make_tables(const float *x, size_t columns, float *tables) {
    const __m512 first = _mm512_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0);
    const __m512 second = _mm512_setr_ps(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0);
    size_t padded = tp_blocks(columns) * TP_BLOCK;
    for (size_t j = 0; j < padded; j += 2, tables += 16) {
        __m512 x0 = _mm512_set1_ps(j < columns ? x[j] : 0), x1 = _mm512_set1_ps(j + 1 < columns ? x[j + 1] : 0);
        _mm512_storeu_ps(tables, _mm512_fmadd_ps(second, x1, _mm512_mul_ps(first, x0)));
    }
}

AVX512_TARGET void tp_avx512_float_matvec(const tp_tile *tile, const float *tables, float *out) {
    size_t bytes = tp_row_bytes(tile->columns), blocks = tp_blocks(tile->columns);
    for (size_t row = 0; row < tile->rows; row += 16 * GROUPS) {
        const uint8_t *packed = tile->packed + row * tile->row_bytes;
        size_t rows = tile->rows - row < 16 * GROUPS ? tile->rows - row : 16 * GROUPS;
        __m512 totals[GROUPS] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        for (size_t block = 0; block < blocks; block++) {
            __m512i codes[GROUPS][16];
            for (size_t g = 0; g < GROUPS; g++) {
                size_t first = 16 * g, count = first < rows ? rows - first : 0;
                transpose_dwords(packed + (count ? first * tile->row_bytes + block * 64 : 0), tile->row_bytes, count,
                                 bytes - block * 64, 0, codes[g]);
            }
            /* a block's sums begin at zero: the fewer additions in a row, the smaller the error */
            __m512 sums[GROUPS] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
            const float *table = tables + block * TP_BLOCK * TP_TABLE_FLOATS;
            for (int dword = 0; dword < 16; dword++) {
                fetch_rows(tile, packed, rows, block, blocks, (size_t)dword);
                __m512i c0 = codes[0][dword], c1 = codes[1][dword], c2 = codes[2][dword], c3 = codes[3][dword];
#pragma GCC unroll 8
                for (int pair = 0; pair < 8; pair++, table += 16) {
                    __m512 values = _mm512_loadu_ps(table);
                    sums[0] = _mm512_add_ps(sums[0], _mm512_permutexvar_ps(c0, values));
                    sums[1] = _mm512_add_ps(sums[1], _mm512_permutexvar_ps(c1, values));
                    sums[2] = _mm512_add_ps(sums[2], _mm512_permutexvar_ps(c2, values));
                    sums[3] = _mm512_add_ps(sums[3], _mm512_permutexvar_ps(c3, values));
                    c0 = _mm512_srli_epi32(c0, 4);
                    c1 = _mm512_srli_epi32(c1, 4);
                    c2 = _mm512_srli_epi32(c2, 4);
                    c3 = _mm512_srli_epi32(c3, 4);
                }
            }
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) totals[g] = _mm512_add_ps(totals[g], sums[g]);
        }
        for (size_t g = 0; g < GROUPS && 16 * g < rows; g++)
            _mm512_mask_storeu_ps(out + row + 16 * g, (__mmask16)low_bits(rows - 16 * g), totals[g]);
    }
}
