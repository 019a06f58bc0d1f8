/* The kernels of tpack: one table of functions per instruction set.
 *
 * Layout t2: column j of a row sits in byte j/4 at bits 2*(j%4); code = trit + 1; rows are padded to
 * whole bytes with code 1. Pointers may be unaligned, and nothing outside a row's bytes is ever read.
 *
 * scalar.c is the reference in C: every other table gives the same integers, and the same floats
 * wherever a comment here fixes an order of operations.
 */
#ifndef TPACK_KERNELS_H
#define TPACK_KERNELS_H

#include <stddef.h>
#include <stdint.h>

typedef enum { TP_F32 = 0, TP_F16 = 1, TP_BF16 = 2, TP_I8 = 3 } tp_dtype;

static inline size_t tp_size_of(tp_dtype dtype) {
    return dtype == TP_F32 ? 4 : dtype == TP_I8 ? 1 : 2;
}

enum {
    TP_BLOCK = 256,      /* columns in 64 packed bytes: the unit of the arranged activations */
    TP_LANES = 16,       /* a lane is 16 adjacent columns: four packed bytes, one 32-bit sum */
    TP_TILE_ROWS = 256,  /* most weight rows in one call of the *_dots functions */
    TP_SUM_CHUNK = 4096, /* elements summed in one go by abs_sum */
    TP_RANGE_GROUP = 32, /* columns per entry of the exact-detection statistics */
    /* bytes of packed weights that the products prefetch ahead, to the L2 cache: far enough for the
     * memory, whose own prefetchers stay behind */
    TP_AHEAD = 12288,
};

/* working memory that a worker hands to the *_dots functions, 64-byte aligned; none for one token */
#define TP_SCRATCH_BYTES ((size_t)768 * 1024)

static inline size_t tp_blocks(size_t columns) { return (columns + TP_BLOCK - 1) / TP_BLOCK; }
static inline size_t tp_row_bytes(size_t columns) { return (columns + 3) / 4; }

/* A tile of weight rows against activations. */
typedef struct {
    const uint8_t *packed; /* first byte of the first row */
    size_t row_bytes;      /* bytes from row to row */
    size_t rows;           /* 1..TP_TILE_ROWS */
    size_t columns;         /* at least 1 */
    size_t tokens;
    size_t token_stride;   /* elements of the arranged or quantized activations from token to token */
    void *scratch;         /* TP_SCRATCH_BYTES of this worker */
} tp_tile;

typedef struct {
    const char *name;

    /* --- codec. A returned index is the first bad value, or `columns` when all are good. --- */
    size_t (*pack_i8)(const int8_t *trits, size_t columns, uint8_t *packed);
    size_t (*pack_f32)(const float *trits, size_t columns, uint8_t *packed);
    /* out[j] = table[code j]; code 3 is bad */
    size_t (*expand_8)(const uint8_t *packed, size_t columns, const uint8_t table[4], uint8_t *out);
    size_t (*expand_16)(const uint8_t *packed, size_t columns, const uint16_t table[4], uint16_t *out);
    size_t (*expand_32)(const uint8_t *packed, size_t columns, const uint32_t table[4], uint32_t *out);

    /* --- float weights, in the dtype they come in --- */
    /* code 2 where w > threshold, 0 where w < -threshold, else 1 (also for NaN); threshold >= 0 */
    void (*pack_threshold)(const void *weights, tp_dtype dtype, size_t columns, float threshold, uint8_t *packed);
    /* sum of |w| of at most TP_SUM_CHUNK values in double: value i is added to partial sum i % 16,
     * then the 16 partial sums are folded in halves (i with i + 8, 4, 2, 1) */
    double (*abs_sum)(const void *weights, tp_dtype dtype, size_t count);
    /* per 32 columns: the largest |w|, and the smallest nonzero |w| (+inf where there is none) */
    void (*group_range)(const void *weights, tp_dtype dtype, size_t columns, float *maxima, float *minima);
    /* sizes[j] = max(sizes[j], |w|) as integers, of one row after the other; whether a column with a
     * size that is not 0 got another one */
    int (*column_sizes)(const void *weights, tp_dtype dtype, size_t columns, float *sizes);
    /* sums[0] of (w - restored)^2, the difference rounded to float, and sums[1] of w^2; in double and
     * in the order of abs_sum */
    void (*square_sums)(const void *weights, tp_dtype dtype, const float *restored, size_t count, double sums[2]);
    /* the first index at which weight and restored differ in any bit, or `count`; -0 equals 0 */
    size_t (*matches)(const void *weights, tp_dtype dtype, const float *restored, size_t count);

    /* --- conversions --- */
    void (*f32_from_f16)(const uint16_t *in, size_t count, float *out);
    void (*f32_from_bf16)(const uint16_t *in, size_t count, float *out);
    void (*f16_from_f32)(const float *in, size_t count, uint16_t *out);
    void (*bf16_from_f32)(const float *in, size_t count, uint16_t *out);

    /* --- activations --- */
    /* the largest |x|; +inf or NaN if there is any such value */
    float (*abs_max)(const float *x, size_t count);
    /* planes[block][plane][byte] = clamp(round_half_even(x[256*block + 4*byte + plane] * factor)),
     * the order in which masked packed bytes meet them; zero beyond `columns` */
    void (*quantize)(const float *x, size_t columns, float factor, int8_t *planes);
    /* lane_sums[block][lane] = sum of the 16 quantized activations of that lane */
    void (*lane_sums)(const int8_t *planes, size_t blocks, int32_t *sums);
    /* lanes[block][code][lane] = x[256*block + 16*lane + code]; zero beyond `columns`. A variant may
     * keep a form of its own behind it; what a column takes in all, and what is kept, may depend on
     * whether there is one token or more. */
    void (*arrange)(const float *x, size_t columns, size_t tokens, float *lanes);
    size_t arranged_floats[2]; /* for one token; for more */

    /* --- products: out[token * out_stride + row] --- */
    /* the integer sum of trit * activation; sums[token] = sum of the token's activations */
    void (*int_dots)(const tp_tile *tile, const int8_t *planes, const int32_t *sums, int32_t *out,
                     size_t out_stride);
    /* With scales[row * groups + column / group], group a multiple of 16. Each lane accumulates in
     * float, block after block: sum += (float)(lane's integer sum) * scale, both rounded, no fma;
     * the 16 lanes are then folded in halves (i with i + 8, 4, 2, 1). */
    void (*int_group_dots)(const tp_tile *tile, const int8_t *planes, const int32_t *lane_sums,
                           const float *scales, size_t group, float *out, size_t out_stride);
    /* scales NULL: the sum of trit * x; otherwise scaled per group as above (order not fixed) */
    void (*float_dots)(const tp_tile *tile, const float *lanes, const float *scales, size_t group,
                       float *out, size_t out_stride);
    /* out[j] = ((float)sums[j] * scale[j or 0]) / factor, in this order */
    void (*rescale)(const int32_t *sums, size_t count, const float *scale, int per_row, float factor,
                    float *out);

    /* --- the other orientation: `rows` packed rows of `columns` outputs, one token --- */
    void (*float_columns)(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                          const float *x, float *out);
    /* rows at most 65536; x_sum = sum of x; out is added to */
    void (*int_columns)(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                        const int8_t *x, int32_t *out);

    /* 64 rows of 32 packed bytes to 128 rows of 16: row and column of each code change places */
    void (*transpose)(const uint8_t *packed, size_t row_bytes, uint8_t *out, size_t out_bytes);
    /* tokens (of floats, of integers) from which to transpose is faster than *_columns token by token */
    size_t turn_from[2];

    /* bytes added up, for measuring what the memory gives */
    uint64_t (*read_bytes)(const uint8_t *data, size_t count);
} tp_kernels;

/* Each is NULL-named where it was not compiled; dispatch.c decides which may run here. */
extern const tp_kernels tp_scalar;
#if defined(__x86_64__)
extern const tp_kernels tp_avx2, tp_avx512, tp_amx;
#endif
#if defined(__aarch64__)
extern const tp_kernels tp_neon;
#endif

/* dispatch.c */
const tp_kernels *tp_find(const char *name); /* NULL: unknown here, or the processor lacks it */
const tp_kernels *tp_best(void);
const char *const *tp_names(void); /* those that run here, best first, NULL-terminated */

#endif
