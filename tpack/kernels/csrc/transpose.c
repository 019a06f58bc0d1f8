/* A packed matrix transposed while packed: four rows of four codes are 32 bits, turned by two swaps. */
#include <string.h>

#include "ops.h"
#include "parallel.h"

enum {
    TILE_BYTES = 64, /* packed bytes of each row in a task: a cache line, 256 rows of the result */
    TILE_ROWS = 64,  /* rows at a time: 16 bytes of each row of the result */
};

typedef struct {
    const uint8_t *packed;
    size_t rows, columns;
    uint8_t *out;
} transposition;

/* Bit 8r + 2c and its neighbour, the code in row r and column c, go to 8c + 2r. */
static inline uint32_t turn(uint32_t codes) {
    uint32_t moved = (codes ^ codes >> 6) & 0x00cc00cc; /* odd columns of even rows */
    codes ^= moved ^ moved << 6;
    moved = (codes ^ codes >> 12) & 0x0000f0f0; /* columns 2 and 3 of rows 0 and 1 */
    return codes ^ moved ^ moved << 12;
}

static void tile_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    const transposition *t = context;
    size_t in_bytes = tp_row_bytes(t->columns), out_bytes = tp_row_bytes(t->rows);
    size_t first = task * TILE_BYTES, bytes = in_bytes - first < TILE_BYTES ? in_bytes - first : TILE_BYTES;
    size_t columns = t->columns - 4 * first < 4 * bytes ? t->columns - 4 * first : 4 * bytes;
    uint32_t results[TILE_BYTES][4][TILE_ROWS / 16]; /* [byte][column in it][16 rows] */
    for (size_t row = 0; row < t->rows; row += TILE_ROWS) {
        size_t rows = t->rows - row < TILE_ROWS ? t->rows - row : TILE_ROWS, count = tp_row_bytes(rows);
        for (size_t part = 0; part < TILE_ROWS / 16; part++) {
            uint8_t lines[16][TILE_BYTES]; /* rows that are not there pad with code 1 */
            uint32_t turned[4][TILE_BYTES];
            for (size_t r = 0; r < 16; r++) {
                size_t here = row + 16 * part + r;
                memset(lines[r], 0x55, TILE_BYTES);
                if (here < t->rows) memcpy(lines[r], t->packed + here * in_bytes + first, bytes);
            }
            for (int q = 0; q < 4; q++)
                for (int b = 0; b < TILE_BYTES; b++)
                    turned[q][b] = turn((uint32_t)lines[4 * q][b] | (uint32_t)lines[4 * q + 1][b] << 8 |
                                        (uint32_t)lines[4 * q + 2][b] << 16 | (uint32_t)lines[4 * q + 3][b] << 24);
            /* byte c of the four words makes a word of column c */
            for (int c = 0; c < 4; c++)
                for (int b = 0; b < TILE_BYTES; b++)
                    results[b][c][part] = (turned[0][b] >> 8 * c & 255) | (turned[1][b] >> 8 * c & 255) << 8 |
                                          (turned[2][b] >> 8 * c & 255) << 16 | (turned[3][b] >> 8 * c & 255) << 24;
        }
        uint8_t *out = t->out + 4 * first * out_bytes + row / 4;
        for (size_t column = 0; column < columns; column++)
            memcpy(out + column * out_bytes, results[column / 4][column % 4], count);
    }
}

void tp_transpose(const uint8_t *packed, size_t rows, size_t columns, uint8_t *out, unsigned threads) {
    transposition t = {packed, rows, columns, out};
    threads = tp_useful_threads(threads, (double)rows * (double)columns, 1 << 18);
    tp_parallel(threads, (tp_row_bytes(columns) + TILE_BYTES - 1) / TILE_BYTES, tile_task, &t);
}
