/* linear and bit_linear: activations (tokens, inputs) times packed weight (outputs, inputs).
 *
 * The activations are arranged once, then tiles of weight rows are shared out among the threads. Each
 * tile's products come as f32 in a buffer [token][row]; scale, bias and the dtype follow from there.
 */
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "parallel.h"

enum { TOKENS = 256 /* arranged at a time, which bounds the memory */ };

typedef struct {
    const tp_kernels *k;
    const tp_product *product;
    const tp_weight *weight;
    int integer, rounds; /* in integers; in floats that are rounded as for integers */
    size_t blocks, token_stride, first_token, tokens, tile_rows;
    const float *scale, *bias; /* f32; scale NULL where groups are converted tile by tile */
    const float *columns;      /* f32, or NULL: the scales of columns, which go to the activations */
    float *lanes;              /* arranged activations, or */
    int8_t *planes;            /* quantized ones, with */
    float *factors;            /* 127 / max|x| and */
    int32_t *sums;             /* their sums: per token, or per lane where there are groups */
    float *rows;               /* one converted row of x for each worker */
    char *workers;             /* the buffers below for each worker */
    size_t worker_bytes, tile_floats, group_floats, scratch, turned_bytes;
} matmul;

static float *worker_tile(const matmul *m, unsigned worker) {
    return (float *)(m->workers + worker * m->worker_bytes);
}

static const float *scale_token(matmul *m, size_t token, const float *x, float *scaled) {
    size_t columns = m->weight->columns;
    float factor = m->rounds ? m->factors[token] = tp_factor(m->k, x, columns) : 1;
    for (size_t i = 0; i < columns; i++)
        scaled[i] = (m->rounds ? tp_rounded(x[i], factor) : x[i]) * m->columns[i];
    return scaled;
}

static void arrange_token(void *context, size_t token, unsigned worker) {
    matmul *m = context;
    size_t columns = m->weight->columns;
    float *row = m->rows + worker * columns;
    const float *x = tp_as_f32(m->k, m->product->x, (m->first_token + token) * columns, columns, row);
    if (m->columns) x = scale_token(m, token, x, row);
    if (!m->integer) {
        m->k->arrange(x, columns, m->product->tokens, m->lanes + token * m->token_stride);
        return;
    }
    int8_t *planes = m->planes + token * m->token_stride;
    float factor = m->factors[token] = tp_factor(m->k, x, columns);
    if (isfinite(factor))
        m->k->quantize(x, columns, factor, planes);
    else /* every output of this token becomes NaN */
        memset(planes, 0, m->token_stride);
    int32_t *lane_sums = m->sums + token * m->blocks * TP_LANES, sum = 0;
    m->k->lane_sums(planes, m->blocks, lane_sums);
    for (size_t i = 0; i < m->blocks * TP_LANES; i++) sum += lane_sums[i];
    /* kept behind the lane sums of all tokens */
    m->sums[m->tokens * m->blocks * TP_LANES + token] = sum;
}

/* The scales of a tile: whole groups of its rows, or one per row, or the single one. */
static const float *tile_scale(const matmul *m, size_t row, size_t rows, float *buffer) {
    const tp_weight *w = m->weight;
    if (w->group == TP_PER_TENSOR) return m->scale;
    if (w->group == TP_PER_ROW) return m->scale + row;
    size_t groups = tp_groups(w->columns, w->group);
    return tp_as_f32(m->k, w->scale, row * groups, rows * groups, buffer);
}

static void finish(const matmul *m, size_t token, size_t row, size_t rows, float *values) {
    const tp_product *p = m->product;
    if (m->bias)
        for (size_t i = 0; i < rows; i++) values[i] += m->bias[row + i];
    size_t index = (m->first_token + token) * m->weight->rows + row;
    tp_store(m->k, values, rows, p->out_dtype, (char *)p->out + index * tp_size_of(p->out_dtype));
}

/* A group that is no multiple of a lane: group after group, in plain C for every variant. */
static void odd_groups(const matmul *m, const tp_tile *tile, const float *scales, float *out) {
    size_t columns = tile->columns, group = m->weight->group, groups = tp_groups(columns, group);
    for (size_t row = 0; row < tile->rows; row++)
        for (size_t token = 0; token < tile->tokens; token++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            size_t base = token * m->token_stride;
            float total = 0;
            for (size_t g = 0; g < groups; g++) {
                size_t end = (g + 1) * group < columns ? (g + 1) * group : columns;
                int32_t integer = 0;
                float real = 0;
                for (size_t j = g * group; j < end; j++) {
                    int trit = ((packed[j / 4] >> 2 * (j % 4)) & 3) - 1;
                    size_t block = base + j / TP_BLOCK * TP_BLOCK, byte = j % TP_BLOCK / 4;
                    if (m->integer)
                        integer += trit * m->planes[block + j % 4 * 64 + byte];
                    else
                        real += (float)trit * m->lanes[block + j % 16 * TP_LANES + byte / 4];
                }
                total += (m->integer ? (float)integer : real) * scales[row * groups + g];
            }
            out[token * TP_TILE_ROWS + row] = total;
        }
}

static void tile_task(void *context, size_t task, unsigned worker) {
    const matmul *m = context;
    const tp_weight *w = m->weight;
    size_t row = task * m->tile_rows, rows = w->rows - row < m->tile_rows ? w->rows - row : m->tile_rows;
    size_t row_bytes = tp_row_bytes(w->columns);
    float *values = worker_tile(m, worker);
    int32_t *sums = (int32_t *)values; /* rescaled in place */
    float *buffer = values + m->tile_floats;
    tp_tile tile = {w->packed + row * row_bytes, row_bytes, rows, w->columns, m->tokens, m->token_stride,
                    m->scratch ? buffer + m->group_floats : NULL};
    if (m->turned_bytes) {
        uint8_t *turned = (uint8_t *)(buffer + m->group_floats) + m->scratch;
        tp_transpose(m->k, w->packed + row / 4, tp_row_bytes(w->rows), w->columns, rows, turned);
        tile.packed = turned;
        tile.row_bytes = tp_transposed_bytes(w->columns);
    }
    const float *scale = tile_scale(m, row, rows, buffer);
    const int32_t *token_sums = m->sums + m->tokens * m->blocks * TP_LANES;
    int grouped = tp_grouped(w->group);

    if (!w->columns) /* no variant needs to think of it */
        memset(values, 0, m->tile_floats * sizeof *values);
    else if (grouped && w->group % TP_LANES)
        odd_groups(m, &tile, scale, values);
    else if (!m->integer)
        m->k->float_dots(&tile, m->lanes, grouped ? scale : NULL, w->group, values, TP_TILE_ROWS);
    else if (grouped)
        m->k->int_group_dots(&tile, m->planes, m->sums, scale, w->group, values, TP_TILE_ROWS);
    else
        m->k->int_dots(&tile, m->planes, token_sums, sums, TP_TILE_ROWS);

    for (size_t token = 0; token < m->tokens; token++) {
        float *line = values + token * TP_TILE_ROWS;
        if (m->integer && !grouped)
            m->k->rescale(sums + token * TP_TILE_ROWS, rows, scale, w->group == TP_PER_ROW,
                          m->factors[token], line);
        else if (m->integer)
            for (size_t i = 0; i < rows; i++) line[i] /= m->factors[token];
        else if (!grouped)
            for (size_t i = 0; i < rows; i++) line[i] *= scale[w->group == TP_PER_ROW ? i : 0];
        if (m->rounds)
            for (size_t i = 0; i < rows; i++) line[i] /= m->factors[token];
        finish(m, token, row, rows, line);
    }
}

/* One allocation, cut up: a small product should not wait for the allocator ten times. */
static size_t reserve(size_t *total, size_t bytes) {
    size_t offset = *total;
    *total += (bytes + 63) / 64 * 64;
    return offset;
}

ptrdiff_t tp_multiply(const tp_kernels *k, const tp_product *product, const tp_weight *weight, unsigned threads,
                      int integer, int turned) {
    if (!product->tokens || !weight->rows) return TP_GOOD;
    static const float one = 1;
    int per_column = weight->group == TP_PER_COLUMN, rounds = per_column && integer;
    tp_floats column_scale = weight->scale;
    tp_weight unscaled = *weight;
    if (per_column) { /* sums of scaled activations are no longer integers */
        unscaled.group = TP_PER_TENSOR;
        unscaled.scale = (tp_floats){&one, TP_F32};
        weight = &unscaled;
        integer = 0;
    }
    size_t columns = weight->columns, blocks = tp_blocks(columns);
    size_t most = product->tokens < TOKENS ? product->tokens : TOKENS;
    int grouped = tp_grouped(weight->group);
    threads = tp_useful_threads(threads, (double)weight->rows * (double)columns * (double)most, 1 << 18);

    matmul m = {.k = k, .product = product, .weight = weight, .integer = integer, .rounds = rounds, .blocks = blocks};
    /* a cache line more, or tokens a power of two apart would compete for the same few cache sets */
    m.token_stride = blocks * TP_BLOCK * (integer ? 1 : k->arranged_floats[most > 1]) + (integer ? 64 : 16);
    /* for many tokens, tall tiles read the activations less often; from a weight that is turned they
     * take more of each cache line, and no less than k->transpose gives */
    m.tile_rows = most < 64 && !turned ? 64 : TP_TILE_ROWS;
    size_t least_rows = turned ? 128 : 16;
    while (threads > 1 && m.tile_rows > least_rows && weight->rows < 4 * m.tile_rows * threads) m.tile_rows /= 2;
    m.tile_floats = (most - 1) * TP_TILE_ROWS + m.tile_rows;
    if (grouped && weight->scale.dtype != TP_F32)
        m.group_floats = (m.tile_rows * tp_groups(columns, weight->group) + 15) / 16 * 16;
    m.scratch = most > 1 ? TP_SCRATCH_BYTES : 0;
    m.turned_bytes = turned ? m.tile_rows * tp_transposed_bytes(columns) : 0;
    m.worker_bytes = (m.tile_floats + m.group_floats) * 4 + m.scratch + m.turned_bytes;

    size_t total = 0, scales = weight->group == TP_PER_TENSOR ? 1 : grouped ? 0 : weight->rows;
    size_t scale_at = reserve(&total, scales * 4), bias_at = reserve(&total, weight->rows * 4);
    size_t columns_at = reserve(&total, per_column ? columns * 4 : 0);
    size_t rows_at = reserve(&total, product->x.dtype == TP_F32 && !per_column ? 0 : columns * threads * 4);
    size_t x_at = reserve(&total, most * m.token_stride * (integer ? 1 : 4));
    size_t factors_at = reserve(&total, most * 4);
    size_t sums_at = reserve(&total, integer ? most * (blocks * TP_LANES + 1) * 4 : 0);
    size_t workers_at = reserve(&total, threads * m.worker_bytes);
    char *memory = tp_allocate(total);
    if (!memory) return TP_NO_MEMORY;
    m.rows = (float *)(memory + rows_at);
    m.lanes = (float *)(memory + x_at);
    m.planes = (int8_t *)(memory + x_at);
    m.factors = (float *)(memory + factors_at);
    m.sums = (int32_t *)(memory + sums_at);
    m.workers = memory + workers_at;
    if (scales) m.scale = tp_as_f32(k, weight->scale, 0, scales, (float *)(memory + scale_at));
    if (per_column) m.columns = tp_as_f32(k, column_scale, 0, columns, (float *)(memory + columns_at));
    if (product->bias.data) m.bias = tp_as_f32(k, product->bias, 0, weight->rows, (float *)(memory + bias_at));

    size_t tiles = (weight->rows + m.tile_rows - 1) / m.tile_rows;
    for (m.first_token = 0; m.first_token < product->tokens; m.first_token += most) {
        m.tokens = product->tokens - m.first_token < most ? product->tokens - m.first_token : most;
        unsigned few = tp_useful_threads(threads, (double)m.tokens * (double)columns, 1 << 15);
        tp_parallel(few, m.tokens, arrange_token, &m);
        tp_parallel(threads, tiles, tile_task, &m);
    }
    free(memory);
    return TP_GOOD;
}

ptrdiff_t tp_linear(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                    unsigned threads) {
    return tp_multiply(k, product, weight, threads, 0, 0);
}

ptrdiff_t tp_bit_linear(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                        unsigned threads) {
    return tp_multiply(k, product, weight, threads, 1, 0);
}
