/* pack, unpack, dequantize, embedding: lossless, row by row. */
#include <stdatomic.h>
#include <string.h>

#include "ops.h"
#include "parallel.h"

enum { CHUNK = 4096 /* columns converted at a time, in a buffer on the stack */ };

/* Work is split at multiples of SPLIT columns, and rows without padding are one long row. */
enum { SPLIT = 1 << 18 };

typedef struct {
    const tp_kernels *k;
    tp_floats source;
    const tp_weight *weight;
    const int64_t *indices;
    size_t rows, columns, rows_per_task, splits;
    uint8_t *packed;
    tp_dtype dtype;
    char *out;
    atomic_size_t first_bad;
} conversion;

static void note_bad(conversion *c, size_t index) {
    size_t seen = atomic_load(&c->first_bad);
    while (index < seen && !atomic_compare_exchange_weak(&c->first_bad, &seen, index)) continue;
}

static ptrdiff_t run(conversion *c, tp_body body, unsigned threads);

static size_t pack_span(conversion *c, size_t first, size_t columns, uint8_t *packed) {
    if (c->source.dtype == TP_I8) return c->k->pack_i8(tp_at(c->source, first), columns, packed);
    float buffer[CHUNK];
    for (size_t done = 0; done < columns; done += CHUNK) {
        size_t count = columns - done < CHUNK ? columns - done : CHUNK;
        const float *values = tp_as_f32(c->k, c->source, first + done, count, buffer);
        size_t good = c->k->pack_f32(values, count, packed + done / 4);
        if (good < count) return done + good;
    }
    return columns;
}

static void pack_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    conversion *c = context;
    size_t row = task / c->splits * c->rows_per_task, start = task % c->splits * SPLIT;
    size_t count = c->columns - start < SPLIT ? c->columns - start : SPLIT;
    for (size_t last = row + c->rows_per_task; row < last && row < c->rows; row++) {
        uint8_t *packed = c->packed + row * tp_row_bytes(c->columns) + start / 4;
        size_t index = row * c->columns + start, good = pack_span(c, index, count, packed);
        if (good < count) {
            note_bad(c, index + good);
            return;
        }
    }
}

ptrdiff_t tp_pack(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, uint8_t *packed,
                  unsigned threads) {
    conversion c = {.k = k, .source = source, .rows = rows, .columns = columns, .packed = packed};
    return run(&c, pack_task, threads);
}

/* The bits of {-scale, 0, scale} in the output's dtype, by code. */
static size_t expand(const conversion *c, const uint8_t *packed, size_t columns, float scale, void *out) {
    float values[4] = {-scale, 0.0f, scale, 0.0f};
    if (c->dtype == TP_I8) {
        static const uint8_t trits[4] = {0xff, 0, 1, 0};
        return c->k->expand_8(packed, columns, trits, out);
    }
    if (c->dtype == TP_F32) {
        uint32_t table[4];
        memcpy(table, values, sizeof table);
        return c->k->expand_32(packed, columns, table, out);
    }
    uint16_t table[4];
    tp_store(c->k, values, 4, c->dtype, table);
    return c->k->expand_16(packed, columns, table, out);
}

/* Columns start..start+count of one row, each with a scale of its own; start is a multiple of 4. */
static size_t scale_columns(const conversion *c, size_t row, size_t start, size_t count, char *out) {
    const tp_weight *w = c->weight;
    size_t size = tp_size_of(c->dtype);
    const uint8_t *packed = w->packed + row * tp_row_bytes(w->columns);
    static const uint32_t trits[4] = {0xbf800000, 0, 0x3f800000, 0}; /* -1, 0, 1 as floats */
    float buffer[CHUNK], room[CHUNK];
    for (size_t done = 0; done < count; done += CHUNK) {
        float *values = c->dtype == TP_F32 ? (float *)out + done : room;
        size_t some = count - done < CHUNK ? count - done : CHUNK;
        const float *scale = tp_as_f32(c->k, w->scale, start + done, some, buffer);
        size_t good = c->k->expand_32(packed + (start + done) / 4, some, trits, (uint32_t *)values);
        if (good < some) return done + good;
        /* adding zero turns the -0 of a zero trit under a negative scale into 0 */
        for (size_t i = 0; i < some; i++) values[i] = values[i] * scale[i] + 0.0f;
        if (values == room) tp_store(c->k, values, some, c->dtype, out + done * size);
    }
    return count;
}

/* Columns start..start+count of one row; start is a multiple of 4. */
static size_t dequantize_span(conversion *c, size_t row, size_t start, size_t count, char *out) {
    const tp_weight *w = c->weight;
    if (w->group == TP_PER_COLUMN) return scale_columns(c, row, start, count, out);
    size_t size = tp_size_of(c->dtype), group = tp_grouped(w->group) ? w->group : w->columns;
    const uint8_t *packed = w->packed + row * tp_row_bytes(w->columns);
    for (size_t column = start; column < start + count;) {
        size_t end = column / group * group + group;
        if (end > start + count) end = start + count;
        float buffer[1], scale = 1;
        if (w->scale.data) {
            size_t index = w->group == TP_PER_TENSOR ? 0
                           : w->group == TP_PER_ROW  ? row
                                                     : row * tp_groups(w->columns, group) + column / group;
            scale = *tp_as_f32(c->k, w->scale, index, 1, buffer);
        }
        size_t good = expand(c, packed + column / 4, end - column, scale, out + (column - start) * size);
        if (good < end - column) return column - start + good;
        column = end;
    }
    return count;
}

static void dequantize_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    conversion *c = context;
    size_t row = task / c->splits * c->rows_per_task, start = task % c->splits * SPLIT;
    size_t count = c->columns - start < SPLIT ? c->columns - start : SPLIT;
    for (size_t last = row + c->rows_per_task; row < last && row < c->rows; row++) {
        size_t index = row * c->columns + start;
        size_t good = dequantize_span(c, row, start, count, c->out + index * tp_size_of(c->dtype));
        if (good < count) {
            note_bad(c, index + good);
            return;
        }
    }
}

ptrdiff_t tp_dequantize(const tp_kernels *k, const tp_weight *weight, tp_dtype dtype, void *out,
                        unsigned threads) {
    tp_weight flat = *weight;
    if (weight->group == TP_PER_TENSOR && weight->columns % 4 == 0 && weight->columns) {
        flat.columns *= weight->rows;
        flat.rows = 1;
    }
    conversion c = {.k = k, .weight = &flat, .rows = flat.rows, .columns = flat.columns, .dtype = dtype,
                    .out = out};
    return run(&c, dequantize_task, threads);
}

static ptrdiff_t run(conversion *c, tp_body body, unsigned threads) {
    if (c->columns % 4 == 0 && c->columns && !c->weight) {
        c->columns *= c->rows;
        c->rows = 1;
    }
    if (!c->rows || !c->columns) return TP_GOOD;
    c->splits = (c->columns + SPLIT - 1) / SPLIT;
    c->rows_per_task = c->columns < SPLIT ? (SPLIT + c->columns - 1) / c->columns : 1;
    atomic_init(&c->first_bad, SIZE_MAX);
    size_t tasks = (c->rows + c->rows_per_task - 1) / c->rows_per_task * c->splits;
    tp_parallel(threads, tasks, body, c);
    size_t bad = atomic_load(&c->first_bad);
    return bad == SIZE_MAX ? TP_GOOD : (ptrdiff_t)bad;
}

static void embedding_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    conversion *c = context;
    size_t row_size = c->weight->columns * tp_size_of(c->dtype);
    size_t last = (task + 1) * c->rows_per_task;
    for (size_t i = task * c->rows_per_task; i < last && i < c->rows; i++)
        if (dequantize_span(c, (size_t)c->indices[i], 0, c->weight->columns, c->out + i * row_size) < c->weight->columns)
            note_bad(c, i);
}

ptrdiff_t tp_embedding(const tp_kernels *k, const tp_weight *weight, const int64_t *indices, size_t count,
                       tp_dtype dtype, void *out, unsigned threads) {
    for (size_t i = 0; i < count; i++)
        if (indices[i] < 0 || (uint64_t)indices[i] >= weight->rows) return (ptrdiff_t)i;
    if (!count || !weight->columns) return TP_GOOD;
    conversion c = {.k = k, .weight = weight, .indices = indices, .rows = count, .dtype = dtype, .out = out};
    c.rows_per_task = (SPLIT + weight->columns - 1) / weight->columns;
    atomic_init(&c.first_bad, SIZE_MAX);
    tp_parallel(threads, (count + c.rows_per_task - 1) / c.rows_per_task, embedding_task, &c);
    return atomic_load(&c.first_bad) == SIZE_MAX ? TP_GOOD : TP_BAD_CODE;
}
