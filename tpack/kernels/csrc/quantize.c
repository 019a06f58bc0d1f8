/* Float weights to codes: sums for absmean, ranges for exact detection, thresholds to codes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "parallel.h"

enum { CHUNK = TP_SUM_CHUNK, TASK_COLUMNS = 1 << 18 };

typedef struct {
    const tp_kernels *k;
    tp_floats source;
    size_t rows, columns, group, segments, segment; /* segment: columns that share a value */
    const float *thresholds;
    double *sums;
    float *maxima, *minima;
    uint8_t *packed;
    size_t rows_per_task, splits;
} weights;

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Segments of a row; a whole tensor is one row of one segment. */
static weights describe(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, size_t group) {
    weights w = {.k = k, .source = source, .rows = rows, .columns = columns, .group = group};
    w.segment = group > TP_PER_ROW ? group : columns;
    w.segments = columns ? tp_groups(columns, w.segment) : 0;
    return w;
}

static double sum_span(const weights *w, size_t first, size_t count) {
    float buffer[CHUNK];
    return w->k->abs_sum(tp_as_f32(w->k, w->source, first, count, buffer), count);
}

/* The chunks of a tensor's sum, which are added up in order afterwards. */
static void chunk_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    weights *w = context;
    size_t total = w->rows * w->columns, per_task = TASK_COLUMNS / CHUNK;
    for (size_t chunk = task * per_task; chunk < (task + 1) * per_task && chunk * CHUNK < total; chunk++)
        w->sums[chunk] = sum_span(w, chunk * CHUNK, smaller(CHUNK, total - chunk * CHUNK));
}

static void sums_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    weights *w = context;
    size_t last = smaller((task + 1) * w->rows_per_task, w->rows);
    for (size_t row = task * w->rows_per_task; row < last; row++)
        for (size_t s = 0; s < w->segments; s++) {
            size_t end = smaller((s + 1) * w->segment, w->columns);
            double sum = 0;
            for (size_t start = s * w->segment; start < end; start += CHUNK)
                sum += sum_span(w, row * w->columns + start, smaller(CHUNK, end - start));
            w->sums[row * w->segments + s] = sum;
        }
}

static ptrdiff_t first_not_finite(const weights *w) {
    float buffer[1];
    size_t total = w->rows * w->columns;
    for (size_t i = 0; i < total; i++)
        if (!isfinite(*tp_as_f32(w->k, w->source, i, 1, buffer))) return (ptrdiff_t)i;
    return TP_GOOD;
}

ptrdiff_t tp_abs_sums(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, size_t group,
                      double *sums, unsigned threads) {
    weights w = describe(k, source, rows, columns, group);
    size_t total = rows * columns;
    int finite = 1;
    if (group == TP_PER_TENSOR) {
        size_t chunks = (total + CHUNK - 1) / CHUNK;
        w.sums = tp_allocate(chunks * sizeof *sums);
        if (!w.sums) return TP_NO_MEMORY;
        tp_parallel(threads, (total + TASK_COLUMNS - 1) / TASK_COLUMNS, chunk_task, &w);
        sums[0] = 0;
        for (size_t chunk = 0; chunk < chunks; chunk++) sums[0] += w.sums[chunk];
        finite = isfinite(sums[0]);
        free(w.sums);
    } else if (total) {
        w.sums = sums;
        w.rows_per_task = (TASK_COLUMNS + columns - 1) / columns;
        tp_parallel(threads, (rows + w.rows_per_task - 1) / w.rows_per_task, sums_task, &w);
        for (size_t i = 0; i < rows * w.segments; i++) finite &= isfinite(sums[i]) != 0;
    } else if (group == TP_PER_ROW) {
        memset(sums, 0, rows * sizeof *sums);
    }
    /* a sum of finite floats cannot overflow a double, so a sum tells whether to look */
    return finite ? TP_GOOD : first_not_finite(&w);
}

static void ranges_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    weights *w = context;
    float buffer[CHUNK];
    size_t row = task / w->splits * w->rows_per_task, start = task % w->splits * TASK_COLUMNS;
    size_t end = smaller(start + TASK_COLUMNS, w->columns);
    for (size_t last = smaller(row + w->rows_per_task, w->rows); row < last; row++) {
        for (size_t column = start; column < end; column += CHUNK) {
            size_t count = smaller(CHUNK, end - column);
            size_t entry = row * tp_groups(w->columns, TP_RANGE_GROUP) + column / TP_RANGE_GROUP;
            const float *values = tp_as_f32(w->k, w->source, row * w->columns + column, count, buffer);
            w->k->group_range(values, count, w->maxima + entry, w->minima + entry);
        }
    }
}

/* Tasks of TASK_COLUMNS weights: a part of a long row, or several short rows. */
static void run_rows(weights *w, tp_body body, unsigned threads) {
    if (!w->rows || !w->columns) return;
    w->splits = (w->columns + TASK_COLUMNS - 1) / TASK_COLUMNS;
    w->rows_per_task = w->splits > 1 ? 1 : (TASK_COLUMNS + w->columns - 1) / w->columns;
    tp_parallel(threads, (w->rows + w->rows_per_task - 1) / w->rows_per_task * w->splits, body, w);
}

ptrdiff_t tp_ranges(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, float *maxima,
                    float *minima, unsigned threads) {
    weights w = describe(k, source, rows, columns, TP_PER_ROW);
    if (columns % TP_RANGE_GROUP == 0 && columns) { /* no group is cut short: one long row */
        w.columns = w.segment = rows * columns;
        w.rows = 1;
    }
    w.maxima = maxima;
    w.minima = minima;
    run_rows(&w, ranges_task, threads);
    return TP_GOOD;
}

static void quantize_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    weights *w = context;
    float buffer[CHUNK];
    size_t row = task / w->splits * w->rows_per_task, start = task % w->splits * TASK_COLUMNS;
    size_t end = smaller(start + TASK_COLUMNS, w->columns);
    for (size_t last = smaller(row + w->rows_per_task, w->rows); row < last; row++) {
        for (size_t column = start; column < end;) {
            size_t segment = column / w->segment;
            size_t stop = smaller(smaller((segment + 1) * w->segment, end), column + CHUNK);
            size_t index = w->group == TP_PER_TENSOR ? 0 : row * w->segments + segment;
            const float *values = tp_as_f32(w->k, w->source, row * w->columns + column, stop - column, buffer);
            w->k->pack_threshold(values, stop - column, w->thresholds[index],
                                 w->packed + row * tp_row_bytes(w->columns) + column / 4);
            column = stop;
        }
    }
}

ptrdiff_t tp_quantize(const tp_kernels *k, tp_floats source, size_t rows, size_t columns,
                      const float *thresholds, size_t group, uint8_t *packed, unsigned threads) {
    weights w = describe(k, source, rows, columns, group);
    if (group == TP_PER_TENSOR && columns % 4 == 0 && columns) {
        w.columns = w.segment = rows * columns;
        w.rows = 1;
    }
    w.thresholds = thresholds;
    w.packed = packed;
    run_rows(&w, quantize_task, threads);
    return TP_GOOD;
}
