/* The other orientation: activations (tokens, inputs) times packed weight (inputs, outputs).
 *
 * A row of the weight now meets one activation, so a tile is a range of output columns over all rows,
 * and the products are sums of scaled rows, in their order, whatever the tiles and threads. For more
 * tokens it pays to transpose the codes of a tile, and to go on as matmul.c does.
 */
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "parallel.h"

enum {
    TILE = 2048, /* columns: 512 packed bytes of each row */
    LEAST_TILE = 512,
    CHUNK_ROWS = 65536,
};

typedef struct {
    const tp_kernels *k;
    const tp_product *product;
    const tp_weight *weight;
    int integer;
    size_t width, tile, tiles; /* columns that share scales, of a tile, and tiles in the former */
    float *x;            /* (tokens, inputs) as f32 */
    int8_t *quantized;
    float *factors;
    char *workers;
    size_t worker_bytes;
} columns_job;

static void read_token(void *context, size_t token, unsigned worker) {
    (void)worker;
    columns_job *c = context;
    size_t inputs = c->weight->rows;
    float *line = c->x + token * inputs;
    const float *x = tp_as_f32(c->k, c->product->x, token * inputs, inputs, line);
    if (x != line) memcpy(line, x, inputs * sizeof *line);
    if (!c->integer) return;
    float factor = c->factors[token] = tp_factor(c->k, line, inputs);
    for (size_t i = 0; i < inputs; i++) c->quantized[token * inputs + i] = (int8_t)tp_rounded(line[i], factor);
}

static void tile_task(void *context, size_t task, unsigned worker) {
    columns_job *c = context;
    const tp_weight *w = c->weight;
    size_t segment = task / c->tiles, start = segment * c->width + task % c->tiles * c->tile;
    size_t end = (segment + 1) * c->width < w->columns ? (segment + 1) * c->width : w->columns;
    if (start >= end) return;
    size_t count = end - start < c->tile ? end - start : c->tile, row_bytes = tp_row_bytes(w->columns);
    const uint8_t *packed = w->packed + start / 4;
    float *out = (float *)(c->workers + worker * c->worker_bytes), *bias = out + TILE;
    float *widened = bias + TILE, *scaled = widened + TILE;
    float one[1], scale = w->group == TP_PER_TENSOR ? *tp_as_f32(c->k, w->scale, 0, 1, one) : 1;
    const float *added = c->product->bias.data ? tp_as_f32(c->k, c->product->bias, start, count, bias) : NULL;
    const float *columns = w->group == TP_PER_COLUMN ? tp_as_f32(c->k, w->scale, start, count, widened) : NULL;

    for (size_t token = 0; token < c->product->tokens; token++) {
        const float *x = c->x + token * w->rows;
        if (c->integer) {
            int32_t *sums = (int32_t *)out;
            memset(sums, 0, count * sizeof *sums);
            for (size_t row = 0; row < w->rows; row += CHUNK_ROWS) {
                size_t rows = w->rows - row < CHUNK_ROWS ? w->rows - row : CHUNK_ROWS;
                c->k->int_columns(packed + row * row_bytes, row_bytes, rows, count,
                                  c->quantized + token * w->rows + row, sums);
            }
            c->k->rescale(sums, count, columns ? columns : &scale, columns != NULL, c->factors[token], out);
        } else {
            if (w->group == TP_PER_ROW || tp_grouped(w->group)) {
                size_t groups = w->group == TP_PER_ROW ? 1 : tp_groups(w->columns, w->group);
                for (size_t row = 0; row < w->rows; row++)
                    scaled[row] = x[row] * *tp_as_f32(c->k, w->scale, row * groups + segment, 1, one);
                x = scaled;
            }
            c->k->float_columns(packed, row_bytes, w->rows, count, x, out);
            if (columns)
                for (size_t i = 0; i < count; i++) out[i] *= columns[i];
            else if (w->group == TP_PER_TENSOR)
                for (size_t i = 0; i < count; i++) out[i] *= scale;
        }
        if (added)
            for (size_t i = 0; i < count; i++) out[i] += added[i];
        size_t index = token * w->columns + start;
        tp_dtype dtype = c->product->out_dtype;
        tp_store(c->k, out, count, dtype, (char *)c->product->out + index * tp_size_of(dtype));
    }
}

/* Scales of rows go to the activations, and scales of columns are those of the rows that the columns
 * become; scales of groups have no place in the transposed weight. */
static ptrdiff_t multiply_transposed(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                                     unsigned threads, int integer) {
    static const float one = 1;
    size_t inputs = weight->rows, values = product->tokens * inputs;
    tp_weight turned = *weight;
    tp_product same = *product;
    turned.rows = weight->columns;
    turned.columns = inputs;
    if (weight->group == TP_PER_COLUMN) turned.group = TP_PER_ROW;
    float *x = NULL;
    if (weight->group == TP_PER_ROW) {
        float buffer[1];
        if (!(x = tp_allocate(values * sizeof *x))) return TP_NO_MEMORY;
        const float *given = tp_as_f32(k, product->x, 0, values, x);
        for (size_t row = 0; row < inputs; row++) {
            float scale = *tp_as_f32(k, weight->scale, row, 1, buffer);
            for (size_t i = row; i < values; i += inputs) x[i] = given[i] * scale;
        }
        same.x = (tp_floats){x, TP_F32};
        turned.group = TP_PER_TENSOR;
        turned.scale = (tp_floats){&one, TP_F32};
    }
    ptrdiff_t result = tp_multiply(k, &same, &turned, threads, integer, 1);
    free(x);
    return result;
}

static ptrdiff_t multiply(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                          unsigned threads, int integer) {
    if (!product->tokens || !weight->columns) return TP_GOOD;
    if (product->tokens >= k->turn_from[integer] && !tp_grouped(weight->group))
        return multiply_transposed(k, product, weight, threads, integer);
    size_t inputs = weight->rows, values = product->tokens * inputs;
    columns_job c = {.k = k, .product = product, .weight = weight, .integer = integer};
    c.width = tp_grouped(weight->group) ? weight->group : weight->columns;
    double work = (double)values * (double)weight->columns;
    threads = tp_useful_threads(threads, work, 1 << 18);
    c.tile = TILE;
    while (c.tile > LEAST_TILE && weight->columns < c.tile * threads) c.tile /= 2;
    c.tiles = (c.width + c.tile - 1) / c.tile;
    c.worker_bytes = (3 * TILE + inputs + 15) / 16 * 64;
    c.x = tp_allocate(values * 4);
    c.quantized = integer ? tp_allocate(values) : NULL;
    c.factors = integer ? tp_allocate(product->tokens * 4) : NULL;
    c.workers = tp_allocate(threads * c.worker_bytes);
    ptrdiff_t result = TP_NO_MEMORY;
    if (c.x && c.workers && (!integer || (c.quantized && c.factors))) {
        size_t segments = tp_groups(weight->columns, c.width);
        tp_parallel(tp_useful_threads(threads, (double)values, 1 << 15), product->tokens, read_token, &c);
        tp_parallel(threads, segments * c.tiles, tile_task, &c);
        result = TP_GOOD;
    }
    free(c.workers);
    free(c.factors);
    free(c.quantized);
    free(c.x);
    return result;
}

ptrdiff_t tp_linear_columns(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                            unsigned threads) {
    return multiply(k, product, weight, threads, 0);
}

ptrdiff_t tp_bit_linear_columns(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                                unsigned threads) {
    return multiply(k, product, weight, threads, 1);
}
