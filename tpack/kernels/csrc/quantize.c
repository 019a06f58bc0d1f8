/* Float weights to codes: the statistics that scales come from, thresholds to codes, and what that loses.
 *
 * Rows are cut into spans of at most CHUNK columns. What spans add up to is added in their order
 * afterwards, so that no result depends on who took which.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "parallel.h"

enum { CHUNK = TP_SUM_CHUNK, TASK_WEIGHTS = 1 << 18 };

typedef struct {
    const tp_kernels *k;
    tp_floats source;
    size_t rows, columns, group;
    size_t segment, segments; /* columns of a row that share a value; how many such there are in a row */
    size_t span, spans;       /* columns of a span; how many spans there are in a row */
    size_t spans_per_task;
    double *sums, *span_sums; /* per segment; per span */
    float *maxima, *minima;
    const float *thresholds, *scales;
    uint8_t *packed;
    atomic_size_t first_different;
} weights;

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static weights describe(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, size_t group) {
    weights w = {.k = k, .source = source, .rows = rows, .columns = columns, .group = group};
    w.segment = group > TP_PER_ROW ? group : columns;
    w.segments = columns ? tp_groups(columns, w.segment) : 0;
    w.span = CHUNK;
    w.spans = tp_groups(columns, CHUNK);
    return w;
}

static void run(weights *w, tp_body body, unsigned threads) {
    size_t spans = w->rows * w->spans;
    if (!spans) return;
    w->spans_per_task = TASK_WEIGHTS / smaller(w->span, w->columns);
    tp_parallel(threads, tp_groups(spans, w->spans_per_task), body, w);
}

static const void *values_at(const weights *w, size_t row, size_t column) {
    return tp_at(w->source, row * w->columns + column);
}

/* --- statistics --- */

/* For sums, a span is made of whole groups, or lies in one. */
static void cut_at_groups(weights *w) {
    if (w->group <= TP_PER_ROW) return;
    if (w->segment <= CHUNK) {
        w->span = CHUNK / w->segment * w->segment;
        w->spans = tp_groups(w->columns, w->span);
    } else {
        size_t whole = w->columns / w->segment;
        w->spans = whole * tp_groups(w->segment, CHUNK) + tp_groups(w->columns - whole * w->segment, CHUNK);
    }
}

static void find_span(const weights *w, size_t span, size_t *start, size_t *end) {
    if (w->segment <= CHUNK || w->group <= TP_PER_ROW) {
        *start = span * w->span;
        *end = smaller(*start + w->span, w->columns);
    } else {
        size_t each = tp_groups(w->segment, CHUNK), segment = span / each * w->segment;
        *start = segment + span % each * CHUNK;
        *end = smaller(smaller(*start + CHUNK, segment + w->segment), w->columns);
    }
}

static void survey_span(const weights *w, size_t index) {
    size_t row = index / w->spans, start, end;
    const tp_dtype dtype = w->source.dtype;
    find_span(w, index % w->spans, &start, &end);
    if (w->span_sums)
        w->span_sums[index] = w->k->abs_sum(values_at(w, row, start), dtype, end - start);
    else if (w->sums)
        for (size_t column = start; column < end; column += w->segment)
            w->sums[row * w->segments + column / w->segment] +=
                w->k->abs_sum(values_at(w, row, column), dtype, smaller(w->segment, end - column));
    if (w->maxima) {
        size_t entry = row * tp_groups(w->columns, TP_RANGE_GROUP) + start / TP_RANGE_GROUP;
        w->k->group_range(values_at(w, row, start), dtype, end - start, w->maxima + entry, w->minima + entry);
    }
}

static void survey_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    weights *w = context;
    size_t first = task * w->spans_per_task, last = smaller(first + w->spans_per_task, w->rows * w->spans);
    for (size_t i = first; i < last; i++) survey_span(w, i);
}

static void add_segments(const weights *w) {
    for (size_t i = 0; i < w->rows * w->spans; i++) {
        size_t start, end;
        find_span(w, i % w->spans, &start, &end);
        w->sums[i / w->spans * w->segments + start / w->segment] += w->span_sums[i];
    }
}

/* The sum of a tensor is that of the sums of its rows. */
static void add_rows(const weights *w) {
    for (size_t row = 0; row < w->rows; row++) {
        double sum = 0;
        for (size_t span = 0; span < w->spans; span++) sum += w->span_sums[row * w->spans + span];
        w->sums[0] += sum;
    }
}

ptrdiff_t tp_survey(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, size_t group,
                    double *sums, float *maxima, float *minima, unsigned threads) {
    weights w = describe(k, source, rows, columns, group);
    w.sums = sums;
    w.maxima = maxima;
    w.minima = minima;
    if (sums) cut_at_groups(&w);
    size_t spans = rows * w.spans;
    if (sums && (group <= TP_PER_ROW || w.segment > CHUNK)) {
        w.span_sums = tp_allocate(spans * sizeof *sums);
        if (!w.span_sums) return TP_NO_MEMORY;
    }
    run(&w, survey_task, threads);
    if (w.span_sums) {
        if (group == TP_PER_TENSOR) add_rows(&w);
        else add_segments(&w);
    }
    free(w.span_sums);
    return TP_GOOD;
}

/* --- sizes of columns --- */

/* A task is a strip of columns, whose sizes stay in a cache. */
static void join_strip(void *context, size_t task, unsigned worker) {
    (void)worker;
    weights *w = context;
    size_t start = task * w->span, count = smaller(w->span, w->columns - start);
    for (size_t row = 0; row < w->rows && atomic_load(&w->first_different) == SIZE_MAX; row++)
        if (w->k->column_sizes(values_at(w, row, start), w->source.dtype, count, w->maxima + start))
            atomic_store(&w->first_different, 0);
}

ptrdiff_t tp_column_sizes(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, float *sizes,
                          unsigned threads) {
    weights w = describe(k, source, rows, columns, TP_PER_ROW);
    w.maxima = sizes;
    atomic_init(&w.first_different, SIZE_MAX);
    if (rows) tp_parallel(threads, w.spans, join_strip, &w);
    return atomic_load(&w.first_different) == SIZE_MAX ? TP_GOOD : 0;
}

/* --- codes --- */

static void note_different(weights *w, size_t index) {
    size_t seen = atomic_load(&w->first_different);
    while (index < seen && !atomic_compare_exchange_weak(&w->first_different, &seen, index)) continue;
}

static void quantize_span(weights *w, size_t index) {
    float restored[CHUNK];
    size_t row = index / w->spans, first = index % w->spans * CHUNK, end = smaller(first + CHUNK, w->columns);
    const tp_dtype dtype = w->source.dtype;
    for (size_t column = first, stop; column < end; column = stop) {
        size_t segment = column / w->segment;
        size_t set = w->group == TP_PER_TENSOR ? 0 : row * w->segments + segment;
        uint8_t *packed = w->packed + row * tp_row_bytes(w->columns) + column / 4;
        stop = smaller((segment + 1) * w->segment, end);
        w->k->pack_threshold(values_at(w, row, column), dtype, stop - column, w->thresholds[set], packed);
        if (w->scales) {
            const float values[4] = {-w->scales[set], 0.0f, w->scales[set], 0.0f};
            uint32_t table[4];
            memcpy(table, values, sizeof table);
            w->k->expand_32(packed, stop - column, table, (uint32_t *)restored + (column - first));
        }
    }
    if (w->span_sums) {
        w->k->square_sums(values_at(w, row, first), dtype, restored, end - first, w->span_sums + 2 * index);
    } else if (w->scales) {
        size_t same = w->k->matches(values_at(w, row, first), dtype, restored, end - first);
        if (same < end - first) note_different(w, row * w->columns + first + same);
    }
}

/* The last weights first: they were read last when the scales were sought, and may still be in a cache. */
static void quantize_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    weights *w = context;
    size_t spans = w->rows * w->spans, tasks = tp_groups(spans, w->spans_per_task);
    size_t first = (tasks - 1 - task) * w->spans_per_task, last = smaller(first + w->spans_per_task, spans);
    for (size_t i = first; i < last; i++) quantize_span(w, i);
}

ptrdiff_t tp_quantize(const tp_kernels *k, tp_floats source, size_t rows, size_t columns,
                      const float *thresholds, const float *scales, size_t group, uint8_t *packed,
                      double *squares, unsigned threads) {
    weights w = describe(k, source, rows, columns, group);
    w.thresholds = thresholds;
    w.scales = scales;
    w.packed = packed;
    atomic_init(&w.first_different, SIZE_MAX);
    size_t spans = rows * w.spans;
    if (squares) {
        w.span_sums = tp_allocate(spans * 2 * sizeof *squares);
        if (!w.span_sums) return TP_NO_MEMORY;
    }
    run(&w, quantize_task, threads);
    for (size_t i = 0; w.span_sums && i < spans; i++)
        for (size_t s = 0; s < 2; s++) squares[2 * (i / w.spans) + s] += w.span_sums[2 * i + s];
    free(w.span_sums);
    size_t different = atomic_load(&w.first_different);
    return different == SIZE_MAX ? TP_GOOD : (ptrdiff_t)different;
}
