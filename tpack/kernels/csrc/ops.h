/* Whole operations on whole tensors: what module.c offers to Python. The callers have checked every
 * argument. They split the work into tasks, run them on threads, and return -1 (or TP_NO_MEMORY)
 * where the kernels return "all good". */
#ifndef TPACK_OPS_H
#define TPACK_OPS_H

#include <math.h>

#include "kernels.h"

enum { TP_GOOD = -1, TP_NO_MEMORY = -2, TP_BAD_CODE = -3 };

/* `group` says what a scale (or a sum, or a threshold) belongs to. Sums and thresholds have no columns. */
enum { TP_PER_TENSOR = 0, TP_PER_ROW = 1, TP_PER_COLUMN = 2 /* a multiple of 4: so many columns of a row */ };

typedef struct {
    const void *data;
    tp_dtype dtype;
} tp_floats;

typedef struct {
    const uint8_t *packed;
    size_t rows, columns, group;
    tp_floats scale; /* 1, rows, columns, or rows * ceil(columns / group) values */
} tp_weight;

typedef struct {
    tp_floats x; /* (tokens, inputs) */
    size_t tokens;
    tp_floats bias; /* (outputs,); data NULL: none */
    tp_dtype out_dtype;
    void *out; /* (tokens, outputs) */
} tp_product;

/* convert.c: indices returned are flat, over rows * columns */
ptrdiff_t tp_pack(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, uint8_t *packed,
                  unsigned threads);
ptrdiff_t tp_dequantize(const tp_kernels *k, const tp_weight *weight, tp_dtype dtype, void *out,
                        unsigned threads);
/* the index is that of the first bad element of `indices`; TP_BAD_CODE: a row that they name holds code 3 */
ptrdiff_t tp_embedding(const tp_kernels *k, const tp_weight *weight, const int64_t *indices, size_t count,
                       tp_dtype dtype, void *out, unsigned threads);

/* quantize.c: sources are float */
/* Adds |w| to `sums` (NULL: does not), by `group`, in chunks of a row's or group's TP_SUM_CHUNK columns,
 * one after the other (of a tensor, row sums); writes the ranges of every TP_RANGE_GROUP columns (NULL: does not). With both,
 * a group is a multiple of TP_RANGE_GROUP. */
ptrdiff_t tp_survey(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, size_t group,
                    double *sums, float *maxima, float *minima, unsigned threads);
/* Joins the |w| of each column to `sizes` (columns,), 0 where all before are 0. Returns 0 where a column
 * has two, and may have left rows unread then; else TP_GOOD. */
ptrdiff_t tp_column_sizes(const tp_kernels *k, tp_floats source, size_t rows, size_t columns, float *sizes,
                          unsigned threads);
/* Packs by thresholds. With `scales` (by `group` too), what was packed is unpacked again and compared with
 * the source: with `squares` (rows, 2), the two sums of square_sums are added to them, chunk after chunk
 * of a row's TP_SUM_CHUNK columns; without, the first index that differs is returned. */
ptrdiff_t tp_quantize(const tp_kernels *k, tp_floats source, size_t rows, size_t columns,
                      const float *thresholds, const float *scales, size_t group, uint8_t *packed,
                      double *squares, unsigned threads);

/* matmul.c: weight (outputs, inputs) */
ptrdiff_t tp_linear(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                    unsigned threads);
ptrdiff_t tp_bit_linear(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                        unsigned threads);

/* both of them; `turned`: packed holds (columns, rows), and is transposed tile by tile */
ptrdiff_t tp_multiply(const tp_kernels *k, const tp_product *product, const tp_weight *weight, unsigned threads,
                      int integer, int turned);

/* columns.c: weight (inputs, outputs); tp_bit_linear_columns takes a scale per tensor or column */
ptrdiff_t tp_linear_columns(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                            unsigned threads);
ptrdiff_t tp_bit_linear_columns(const tp_kernels *k, const tp_product *product, const tp_weight *weight,
                                unsigned threads);

/* transpose.c: a packed matrix (rows, columns) whose rows lie row_bytes apart, to (columns, rows). The
 * result's rows lie tp_transposed_bytes(rows) apart; there is room for a multiple of 128 of them. */
void tp_transpose(const tp_kernels *k, const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                  uint8_t *out);

uint64_t tp_read_bytes(const tp_kernels *k, const uint8_t *data, size_t count, unsigned threads);

/* --- shared by the files above (floats.c) --- */

/* Whether scales belong to groups. */
static inline int tp_grouped(size_t group) { return group > TP_PER_COLUMN; }

static inline size_t tp_groups(size_t columns, size_t group) { return (columns + group - 1) / group; }

static inline const void *tp_at(tp_floats array, size_t index) {
    return (const char *)array.data + index * tp_size_of(array.dtype);
}

/* What the activations of one token are multiplied by before they are rounded to int8; NaN if one of them
 * is not finite. */
static inline float tp_factor(const tp_kernels *k, const float *x, size_t count) {
    float largest = k->abs_max(x, count);
    return isfinite(largest) ? 127.0f / (largest > 1e-5f ? largest : 1e-5f) : NAN;
}

static inline float tp_rounded(float x, float factor) {
    if (!isfinite(factor)) return 0;
    /* adding and taking away 1.5 * 2^23 rounds to an integer, half to even */
    float rounded = (x * factor + 0x1.8p23f) - 0x1.8p23f;
    return rounded > 127 ? 127 : rounded < -128 ? -128 : rounded;
}

/* whole cache lines and one more, or rows a power of two apart would compete for the same few sets */
static inline size_t tp_transposed_bytes(size_t rows) { return (tp_row_bytes(rows) + 63) / 64 * 64 + 64; }

/* `count` values from `first` on as f32: the array itself where it is f32, else converted to buffer */
const float *tp_as_f32(const tp_kernels *k, tp_floats array, size_t first, size_t count, float *buffer);
void tp_store(const tp_kernels *k, const float *values, size_t count, tp_dtype dtype, void *out);
/* fewer threads where the work (in bytes or multiply-adds) does not pay for waking them */
unsigned tp_useful_threads(unsigned threads, double work, double per_thread);
void *tp_allocate(size_t bytes); /* 64-byte aligned; never a size of zero */

#endif
