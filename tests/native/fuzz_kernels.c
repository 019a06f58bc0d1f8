/* The entry points of the kernels on random sizes, dtypes, groups, addresses, codes and values, every
 * variant that runs here against the scalar reference. Built with sanitizers: `make fuzz-kernels`.
 *
 * fuzz_kernels SECONDS [FIRST]: cases from FIRST on, each from its own number alone, so a failure is
 * done again by `fuzz_kernels 0 CASE`.
 */
#include <math.h>
#include <stdio.h>
#include <time.h>

#include "../../tpack/kernels/csrc/ops.h"
#include "buffers.h"

enum { MOST_WEIGHTS = 40000, RUNS = 2 };

static unsigned long current;
static const char *variant;

static void check(int good, const char *what, size_t rows, size_t columns, size_t extra) {
    if (good) return;
    printf("case %lu: %s: %s differs at (%zu, %zu), %zu\n", current, variant, what, rows, columns, extra);
    exit(1);
}

static size_t below(size_t limit) { return random_bits() % limit; }

/* sizes near those where kernels change what they do */
static size_t size_of_dim(size_t limit) {
    static const size_t edges[] = {0, 1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
    size_t size = below(3) ? edges[below(12)] + below(7) : below(limit + 1);
    size = size >= 3 && below(2) ? size - 3 : size;
    return size > limit ? below(limit + 1) : size;
}

static size_t pick_group(size_t step) {
    size_t kind = below(4);
    if (kind < 2) return kind;
    return step * (1 + below(kind == 2 ? 8 : 80));
}

/* of scales, which may also be those of columns */
static size_t pick_scale(void) { return below(5) ? pick_group(4) : TP_PER_COLUMN; }

static size_t entries_of(size_t rows, size_t columns, size_t group) {
    if (group == TP_PER_COLUMN) return columns;
    return group == 0 ? 1 : group == 1 ? rows : rows * tp_groups(columns, group);
}

static unsigned pick_threads(void) { return (unsigned)(1 + below(4)); }

/* values of a float dtype: usual ones, or any bits at all */
static buffer floats_of(size_t count, tp_dtype dtype, int any) {
    size_t size = tp_size_of(dtype);
    buffer b = make(count * size, size * below(4));
    for (size_t i = 0; i < count; i++) {
        float value = below(7) ? random_float() : 0;
        if (any && !below(4)) {
            static const float odd[] = {INFINITY, -INFINITY, NAN, -0.0f, 1e-45f, -1e-45f, 3e38f, 65504, 65520, 6e-8f, 1e-39f};
            value = odd[below(11)];
        }
        if (dtype == TP_F32) ((float *)b.data)[i] = value;
        if (dtype == TP_F16) tp_scalar.f16_from_f32(&value, 1, (uint16_t *)b.data + i);
        if (dtype == TP_BF16) tp_scalar.bf16_from_f32(&value, 1, (uint16_t *)b.data + i);
    }
    return b;
}

static buffer positive(size_t count) {
    buffer b = make(count * 4, 4 * below(4));
    for (size_t i = 0; i < count; i++) ((float *)b.data)[i] = below(9) ? fabsf(random_float()) : 0;
    return b;
}

static buffer codes_of(size_t rows, size_t columns, int bad) {
    buffer b = make(rows * tp_row_bytes(columns), below(64));
    for (size_t i = 0; i < b.bytes; i++) {
        unsigned byte = 0;
        for (int p = 0; p < 4; p++) byte = byte << 2 | random_bits() % 3;
        b.data[i] = (char)(bad && !below(40) ? random_bits() : byte);
    }
    return b;
}

/* the same numbers, where two NaN are the same */
static int same_floats(buffer a, buffer b, tp_dtype dtype) {
    size_t count = a.bytes / tp_size_of(dtype);
    if (!memcmp(a.data, b.data, a.bytes)) return 1;
    if (dtype == TP_I8) return 0;
    for (size_t i = 0; i < count; i++) {
        float x, y;
        if (dtype == TP_F32) x = ((float *)a.data)[i], y = ((float *)b.data)[i];
        else if (dtype == TP_F16) tp_scalar.f32_from_f16((uint16_t *)a.data + i, 1, &x), tp_scalar.f32_from_f16((uint16_t *)b.data + i, 1, &y);
        else tp_scalar.f32_from_bf16((uint16_t *)a.data + i, 1, &x), tp_scalar.f32_from_bf16((uint16_t *)b.data + i, 1, &y);
        if (memcmp(&x, &y, 4) && !(isnan(x) && isnan(y))) return 0;
    }
    return 1;
}

static void packing(const tp_kernels *k, size_t rows, size_t columns) {
    tp_dtype dtype = (tp_dtype)below(4);
    size_t count = rows * columns, size = tp_size_of(dtype);
    buffer source = make(count * size, size * below(4));
    buffer out[2] = {make(rows * tp_row_bytes(columns), below(64)), make(rows * tp_row_bytes(columns), below(64))};
    size_t bad = below(3) ? count : below(count + 1);
    for (size_t i = 0; i < count; i++) {
        float value = (float)(random_bits() % 3) - 1;
        if (i >= bad && !below(20)) value = below(2) ? NAN : 2;
        if (dtype == TP_I8) source.data[i] = (char)(isnan(value) ? -128 : value);
        if (dtype == TP_F32) ((float *)source.data)[i] = value;
        if (dtype == TP_F16) tp_scalar.f16_from_f32(&value, 1, (uint16_t *)source.data + i);
        if (dtype == TP_BF16) tp_scalar.bf16_from_f32(&value, 1, (uint16_t *)source.data + i);
    }
    tp_floats floats = {source.data, dtype};
    ptrdiff_t first[2];
    first[0] = tp_pack(&tp_scalar, floats, rows, columns, (uint8_t *)out[0].data, 1);
    first[1] = tp_pack(k, floats, rows, columns, (uint8_t *)out[1].data, pick_threads());
    check(first[0] == first[1], "first bad trit", rows, columns, dtype);
    check(first[0] != TP_GOOD || equal(out[0], out[1]), "pack", rows, columns, dtype);
    free(source.base), free(out[0].base), free(out[1].base);
}

static void unpacking(const tp_kernels *k, size_t rows, size_t columns) {
    int scaled = (int)below(2);
    tp_dtype dtype = (tp_dtype)below(scaled ? 3 : 4), scale_dtype = (tp_dtype)below(3);
    size_t group = pick_scale(), size = tp_size_of(dtype), count = rows * columns;
    buffer packed = codes_of(rows, columns, below(4) == 0);
    buffer scale = floats_of(entries_of(rows, columns, group), scale_dtype, below(4) == 0);
    tp_weight weight = {(uint8_t *)packed.data, rows, columns, scaled ? group : 0, {scaled ? scale.data : NULL, scale_dtype}};
    buffer out[2] = {make(count * size, size * below(4)), make(count * size, size * below(4))};
    ptrdiff_t first[2];
    first[0] = tp_dequantize(&tp_scalar, &weight, dtype, out[0].data, 1);
    first[1] = tp_dequantize(k, &weight, dtype, out[1].data, pick_threads());
    check(first[0] == first[1], "first bad code", rows, columns, group);
    check(first[0] != TP_GOOD || same_floats(out[0], out[1], dtype), "dequantize", rows, columns, group);
    free(out[0].base), free(out[1].base);
    if (scaled) {
        size_t indices = below(20);
        buffer ids = make(indices * 8, 8);
        for (size_t i = 0; i < indices; i++) {
            int64_t id = rows ? (int64_t)below(rows) : 0;
            static const int64_t odd[] = {-1, INT64_MIN, INT64_MAX, 1 << 20};
            ((int64_t *)ids.data)[i] = below(60) && rows ? id : odd[below(4)];
        }
        for (int b = 0; b < RUNS; b++) {
            out[b] = make(indices * columns * size, size);
            first[b] = tp_embedding(b ? k : &tp_scalar, &weight, (int64_t *)ids.data, indices, dtype, out[b].data, b ? pick_threads() : 1);
        }
        check(first[0] == first[1], "first bad index", rows, columns, indices);
        check(first[0] != TP_GOOD || same_floats(out[0], out[1], dtype), "embedding", rows, columns, indices);
        free(ids.base), free(out[0].base), free(out[1].base);
    }
    free(packed.base), free(scale.base);
}

static void quantizing(const tp_kernels *k, size_t rows, size_t columns) {
    tp_dtype dtype = (tp_dtype)below(3);
    int both_kinds = (int)below(3);
    size_t group = pick_group(both_kinds ? 4 : TP_RANGE_GROUP), entries = entries_of(rows, columns, group);
    size_t ranges = rows * tp_groups(columns, TP_RANGE_GROUP);
    buffer source = floats_of(rows * columns, dtype, below(4) == 0);
    buffer limits = positive(entries), scales = positive(entries);
    tp_floats floats = {source.data, dtype};
    buffer sums[2], high[2], low[2], packed[2], squares[2];
    ptrdiff_t different[2];
    for (int b = 0; b < RUNS; b++) {
        const tp_kernels *which = b ? k : &tp_scalar;
        unsigned threads = b ? pick_threads() : 1;
        sums[b] = make(entries * 8, 8), high[b] = make(ranges * 4, 4), low[b] = make(ranges * 4, 4);
        packed[b] = make(rows * tp_row_bytes(columns), 1), squares[b] = make(rows * 16, 8);
        memset(sums[b].data, 0, sums[b].bytes), memset(squares[b].data, 0, squares[b].bytes);
        double *into = both_kinds == 2 ? NULL : (double *)sums[b].data;
        int ranged = both_kinds != 1;
        tp_survey(which, floats, rows, columns, group, into, ranged ? (float *)high[b].data : NULL, ranged ? (float *)low[b].data : NULL, threads);
        const float *limit = (float *)limits.data, *scale = (float *)scales.data;
        uint8_t *out = (uint8_t *)packed[b].data;
        different[b] = tp_quantize(which, floats, rows, columns, limit, scale, group, out, NULL, threads);
        tp_quantize(which, floats, rows, columns, limit, NULL, group, out, NULL, threads);
        tp_quantize(which, floats, rows, columns, limit, scale, group, out, (double *)squares[b].data, threads);
    }
    for (size_t i = 0; i < sums[0].bytes / 8; i++) {
        double x = ((double *)sums[0].data)[i], y = ((double *)sums[1].data)[i];
        check(x == y || (isnan(x) && isnan(y)), "abs_sums", rows, columns, group);
    }
    for (size_t i = 0; i < rows * 2; i++) {
        double x = ((double *)squares[0].data)[i], y = ((double *)squares[1].data)[i];
        check(x == y || (isnan(x) && isnan(y)), "squares", rows, columns, group);
    }
    check(same_floats(high[0], high[1], TP_F32) && same_floats(low[0], low[1], TP_F32), "ranges", rows, columns, dtype);
    check(equal(packed[0], packed[1]), "quantize", rows, columns, group);
    check(different[0] == different[1], "first different", rows, columns, group);
    for (int b = 0; b < RUNS; b++) free(sums[b].base), free(high[b].base), free(low[b].base), free(packed[b].base), free(squares[b].base);
    free(source.base), free(limits.base), free(scales.base);
}

typedef ptrdiff_t (*product_function)(const tp_kernels *, const tp_product *, const tp_weight *, unsigned);

static void multiplying(const tp_kernels *k, size_t rows, size_t columns) {
    static const product_function functions[] = {tp_linear, tp_bit_linear, tp_linear_columns, tp_bit_linear_columns};
    static const char *names[] = {"linear", "bit_linear", "linear_columns", "bit_linear_columns"};
    size_t which = below(4), tokens = below(4) ? below(6) : below(150);
    int along = which >= 2, integer = which % 2;
    tp_dtype dtype = (tp_dtype)below(3), scale_dtype = (tp_dtype)below(3);
    size_t group = which == 3 ? (below(2) ? TP_PER_COLUMN : TP_PER_TENSOR) : pick_scale();
    size_t inputs = along ? rows : columns, outputs = along ? columns : rows, size = tp_size_of(dtype);
    while (tokens * rows * columns > 20 * MOST_WEIGHTS) tokens /= 2;
    int exact = integer && (along || group != TP_PER_COLUMN); /* sums of integers: in any order alike */
    int any = exact && !below(4), biased = (int)below(2);
    buffer packed = codes_of(rows, columns, 0), scale = floats_of(entries_of(rows, columns, group), scale_dtype, 0);
    buffer x = floats_of(tokens * inputs, dtype, any), bias = floats_of(outputs, dtype, 0);
    buffer out[2] = {make(tokens * outputs * size, size), make(tokens * outputs * size, size * below(4))};
    tp_weight weight = {(uint8_t *)packed.data, rows, columns, group, {scale.data, scale_dtype}};
    for (int b = 0; b < RUNS; b++) {
        tp_product product = {{x.data, dtype}, tokens, {biased ? bias.data : NULL, dtype}, dtype, out[b].data};
        functions[which](b ? k : &tp_scalar, &product, &weight, b ? pick_threads() : 1);
    }
    if (exact) {
        check(same_floats(out[0], out[1], dtype), names[which], rows, columns, tokens * 1000 + group);
    } else if (dtype == TP_F32) { /* |x| and |scale| are at most 1; the half dtypes round this away */
        for (size_t i = 0; i < tokens * outputs; i++) {
            float a = ((float *)out[0].data)[i], b = ((float *)out[1].data)[i];
            check(fabsf(a - b) <= 2e-7f * (float)(inputs + 64), names[which], rows, columns, tokens * 1000 + group);
        }
    }
    free(packed.base), free(scale.base), free(x.base), free(bias.base), free(out[0].base), free(out[1].base);
}

static void converting(const tp_kernels *k, size_t rows, size_t columns) {
    size_t count = rows * columns % 5000;
    buffer wide = make(count * 4, 4 * below(4)), half = make(count * 2, 2 * below(4));
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = random_bits() << 1 ^ random_bits();
        memcpy(wide.data + 4 * i, &bits, 4), memcpy(half.data + 2 * i, &bits, 2);
    }
    buffer narrow[2] = {make(count * 2, 2), make(count * 2, 2)}, widened[2] = {make(count * 4, 4), make(count * 4, 4)};
    tp_scalar.f16_from_f32((float *)wide.data, count, (uint16_t *)narrow[0].data);
    k->f16_from_f32((float *)wide.data, count, (uint16_t *)narrow[1].data);
    check(same_floats(narrow[0], narrow[1], TP_F16), "f16_from_f32", count, 0, 0);
    tp_scalar.bf16_from_f32((float *)wide.data, count, (uint16_t *)narrow[0].data);
    k->bf16_from_f32((float *)wide.data, count, (uint16_t *)narrow[1].data);
    check(same_floats(narrow[0], narrow[1], TP_BF16), "bf16_from_f32", count, 0, 0);
    tp_scalar.f32_from_f16((uint16_t *)half.data, count, (float *)widened[0].data);
    k->f32_from_f16((uint16_t *)half.data, count, (float *)widened[1].data);
    check(same_floats(widened[0], widened[1], TP_F32), "f32_from_f16", count, 0, 0);
    tp_scalar.f32_from_bf16((uint16_t *)half.data, count, (float *)widened[0].data);
    k->f32_from_bf16((uint16_t *)half.data, count, (float *)widened[1].data);
    check(same_floats(widened[0], widened[1], TP_F32), "f32_from_bf16", count, 0, 0);
    tp_read_bytes(k, (uint8_t *)wide.data, wide.bytes, pick_threads()); /* some sum, of its own kind */
    free(wide.base), free(half.base), free(narrow[0].base), free(narrow[1].base), free(widened[0].base), free(widened[1].base);
}

static double seconds_now(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv) {
    static void (*const parts[])(const tp_kernels *, size_t, size_t) = {packing, unpacking, quantizing, multiplying, converting};
    double end = seconds_now() + (argc > 1 ? atof(argv[1]) : 10);
    unsigned long first = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    for (current = first; current == first || seconds_now() < end; current++)
        for (const char *const *name = tp_names(); *name; name++) {
            random_state = 0x9e3779b97f4a7c15u * current;
            random_bits(), random_bits();
            variant = *name;
            size_t columns = size_of_dim(5000), rows = size_of_dim(columns ? MOST_WEIGHTS / columns : 300);
            parts[current % 5](tp_find(*name), rows > 5000 ? 5000 : rows, columns);
        }
    printf("%-12s %10lu executions, each variant of", "C kernels", current - first);
    for (const char *const *name = tp_names(); *name; name++) printf(" %s", *name);
    printf(" equal to scalar\n");
    return 0;
}
