/* Some columns of a packed matrix, transposed while packed. */
#include <string.h>

#include "ops.h"

enum { IN_ROWS = 64, IN_BYTES = 32, OUT_BYTES = 16 /* of k->transpose */ };

void tp_transpose(const tp_kernels *k, const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                  uint8_t *out) {
    size_t bytes = tp_row_bytes(columns), out_bytes = tp_transposed_bytes(rows);
    for (size_t row = 0; row < rows; row += IN_ROWS, out += OUT_BYTES)
        for (size_t at = 0; at < bytes; at += IN_BYTES) {
            const uint8_t *here = packed + row * row_bytes + at;
            size_t rows_left = rows - row, bytes_left = bytes - at;
            if (rows_left >= IN_ROWS && bytes_left >= IN_BYTES) {
                k->transpose(here, row_bytes, out + 4 * at * out_bytes, out_bytes);
                continue;
            }
            uint8_t edge[IN_ROWS][IN_BYTES]; /* what is not there pads with code 1 */
            memset(edge, 0x55, sizeof edge);
            for (size_t r = 0; r < rows_left && r < IN_ROWS; r++)
                memcpy(edge[r], here + r * row_bytes, bytes_left < IN_BYTES ? bytes_left : IN_BYTES);
            k->transpose(edge[0], IN_BYTES, out + 4 * at * out_bytes, out_bytes);
        }
}
