/* Every variant that runs here against the scalar reference, without Python: what runs under the
 * sanitizers, and under qemu for other processors. Buffers are as long as they must be and start at
 * odd addresses, so that a sanitizer sees every byte too many.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../tpack/kernels/csrc/ops.h"
#include "buffers.h"

static const size_t SIZES[] = {0, 1, 3, 4, 5, 16, 31, 33, 63, 64, 65, 127, 255, 256, 257, 1030};
static const size_t GROUPS[] = {0, 1, 4, 12, 32, 48, 64, 128, 256, 512};
enum { SIZE_COUNT = sizeof SIZES / sizeof *SIZES, GROUP_COUNT = sizeof GROUPS / sizeof *GROUPS };

static int failures;

static void check(const char *variant, const char *what, int good, size_t rows, size_t columns, size_t extra) {
    if (good) return;
    failures++;
    printf("%s: %s differs at (%zu, %zu), %zu\n", variant, what, rows, columns, extra);
}

static int close_to(buffer a, buffer b, size_t columns) {
    const float *x = (const float *)a.data, *y = (const float *)b.data;
    for (size_t i = 0; i < a.bytes / 4; i++)
        if (!(fabsf(x[i] - y[i]) <= 2e-7f * (float)(columns + 64))) return 0;
    return 1;
}

static void codec(const tp_kernels *k, size_t rows, size_t columns) {
    size_t count = rows * columns, bytes = rows * tp_row_bytes(columns);
    buffer trits = make(count, 1), packed[2] = {make(bytes, 3), make(bytes, 3)};
    buffer reals = make(count * 4, 4), halves = make(count * 2, 2);
    for (size_t i = 0; i < count; i++) {
        int trit = (int)(random_bits() % 3) - 1;
        trits.data[i] = (char)trit;
        ((float *)reals.data)[i] = (float)trit;
    }
    tp_scalar.bf16_from_f32((float *)reals.data, count, (uint16_t *)halves.data);
    tp_pack(&tp_scalar, (tp_floats){trits.data, TP_I8}, rows, columns, (uint8_t *)packed[0].data, 1);
    const tp_floats sources[] = {{trits.data, TP_I8}, {reals.data, TP_F32}, {halves.data, TP_BF16}};
    for (int i = 0; i < 3; i++) {
        tp_pack(k, sources[i], rows, columns, (uint8_t *)packed[1].data, 2);
        check(k->name, "pack", equal(packed[0], packed[1]), rows, columns, (size_t)i);
    }
    for (tp_dtype dtype = TP_F32; dtype <= TP_I8; dtype++) {
        size_t size = tp_size_of(dtype);
        buffer out[2] = {make(count * size, size), make(count * size, size)};
        tp_weight weight = {.packed = (uint8_t *)packed[0].data, .rows = rows, .columns = columns};
        tp_dequantize(&tp_scalar, &weight, dtype, out[0].data, 1);
        tp_dequantize(k, &weight, dtype, out[1].data, 2);
        check(k->name, "unpack", equal(out[0], out[1]), rows, columns, dtype);
        free(out[0].base), free(out[1].base);
    }
    if (count) {
        size_t bad = random_bits() % count, column = bad % columns;
        trits.data[bad] = 2;
        check(k->name, "first bad trit", tp_pack(k, sources[0], rows, columns, (uint8_t *)packed[1].data, 2) == (ptrdiff_t)bad, rows, columns, bad);
        packed[0].data[bad / columns * tp_row_bytes(columns) + column / 4] |= (char)(3 << 2 * (column % 4));
        buffer out = make(count, 1);
        tp_weight weight = {.packed = (uint8_t *)packed[0].data, .rows = rows, .columns = columns};
        check(k->name, "first bad code", tp_dequantize(k, &weight, TP_I8, out.data, 2) == (ptrdiff_t)bad, rows, columns, bad);
        free(out.base);
    }
    free(trits.base), free(packed[0].base), free(packed[1].base), free(reals.base), free(halves.base);
}

static void quantization(const tp_kernels *k, size_t rows, size_t columns) {
    size_t count = rows * columns, bytes = rows * tp_row_bytes(columns);
    buffer reals = make(count * 4, 4), halves = make(count * 2, 2);
    for (size_t i = 0; i < count; i++) ((float *)reals.data)[i] = random_bits() % 7 ? random_float() : 0;
    tp_scalar.f16_from_f32((float *)reals.data, count, (uint16_t *)halves.data);
    buffer halves_too = make(count * 2, 2);
    k->f16_from_f32((float *)reals.data, count, (uint16_t *)halves_too.data);
    check(k->name, "f16", equal(halves, halves_too), rows, columns, 0);
    const tp_floats sources[] = {{reals.data, TP_F32}, {halves.data, TP_F16}};
    for (size_t i = 0; i < 2 * GROUP_COUNT; i++) {
        size_t group = GROUPS[i / 2], entries = group == 0 ? 1 : group == 1 ? rows : rows * tp_groups(columns, group);
        buffer sums[2] = {make(entries * 8, 8), make(entries * 8, 8)};
        buffer limits = make(entries * 4, 4), packed[2] = {make(bytes, 1), make(bytes, 1)};
        buffer scales = make(entries * 4, 4);
        buffer squares[2] = {make(rows * 16, 8), make(rows * 16, 8)};
        ptrdiff_t different[2];
        for (size_t e = 0; e < entries; e++) {
            ((float *)limits.data)[e] = 0.5f * fabsf(random_float());
            ((float *)scales.data)[e] = fabsf(random_float());
        }
        const tp_kernels *both[2] = {&tp_scalar, k};
        for (int b = 0; b < 2; b++) {
            memset(sums[b].data, 0, entries * 8);
            memset(squares[b].data, 0, rows * 16);
            tp_survey(both[b], sources[i % 2], rows, columns, group, (double *)sums[b].data, NULL, NULL, 2);
            const float *limit = (float *)limits.data, *scale = (float *)scales.data;
            uint8_t *out = (uint8_t *)packed[b].data;
            tp_quantize(both[b], sources[i % 2], rows, columns, limit, NULL, group, out, NULL, 2);
            different[b] = tp_quantize(both[b], sources[i % 2], rows, columns, limit, scale, group, out, NULL, 2);
            tp_quantize(both[b], sources[i % 2], rows, columns, limit, scale, group, out, (double *)squares[b].data, 2);
        }
        check(k->name, "squares", equal(squares[0], squares[1]), rows, columns, group);
        check(k->name, "first different", different[0] == different[1], rows, columns, group);
        check(k->name, "abs_sums", equal(sums[0], sums[1]), rows, columns, group);
        check(k->name, "quantize", equal(packed[0], packed[1]), rows, columns, group);
        free(sums[0].base), free(sums[1].base), free(limits.base), free(scales.base), free(packed[0].base), free(packed[1].base);
        free(squares[0].base), free(squares[1].base);
    }
    size_t entries = rows * tp_groups(columns, TP_RANGE_GROUP) * 4;
    buffer high[2] = {make(entries, 4), make(entries, 4)}, low[2] = {make(entries, 4), make(entries, 4)};
    for (int i = 0; i < 2; i++) {
        tp_survey(&tp_scalar, sources[i], rows, columns, 0, NULL, (float *)high[0].data, (float *)low[0].data, 1);
        tp_survey(k, sources[i], rows, columns, 0, NULL, (float *)high[1].data, (float *)low[1].data, 2);
        check(k->name, "ranges", equal(high[0], high[1]) && equal(low[0], low[1]), rows, columns, (size_t)i);
    }
    buffer sizes[2] = {make(columns * 4, 4), make(columns * 4, 4)};
    for (int i = 0; i < 2; i++) {
        const tp_kernels *both[2] = {&tp_scalar, k};
        ptrdiff_t two[2];
        for (int b = 0; b < 2; b++) {
            memset(sizes[b].data, 0, columns * 4);
            two[b] = tp_column_sizes(both[b], sources[i], rows, columns, (float *)sizes[b].data, 1 + (unsigned)b);
            if (two[b] == 0) memset(sizes[b].data, 0, columns * 4);
        }
        check(k->name, "column sizes", two[0] == two[1] && equal(sizes[0], sizes[1]), rows, columns, (size_t)i);
    }
    free(sizes[0].base), free(sizes[1].base);
    free(high[0].base), free(high[1].base), free(low[0].base), free(low[1].base);
    free(reals.base), free(halves.base), free(halves_too.base);
}

typedef ptrdiff_t (*product_function)(const tp_kernels *, const tp_product *, const tp_weight *, unsigned);

/* what the scales of products belong to: no sums do to columns */
static size_t pick_scale(size_t number) {
    number %= GROUP_COUNT + 1;
    return number == GROUP_COUNT ? TP_PER_COLUMN : GROUPS[number];
}

static void products(const tp_kernels *k, size_t rows, size_t columns, size_t tokens, size_t group) {
    size_t bytes = rows * tp_row_bytes(columns);
    size_t entries = group == TP_PER_TENSOR   ? 1
                     : group == TP_PER_ROW    ? rows
                     : group == TP_PER_COLUMN ? columns
                                              : rows * tp_groups(columns, group);
    buffer packed = make(bytes, 1), scale = make(entries * 4, 4);
    for (size_t i = 0; i < bytes; i++)
        for (int p = 0; p < 4; p++) packed.data[i] = (char)((unsigned)(uint8_t)packed.data[i] << 2 | random_bits() % 3);
    for (size_t i = 0; i < entries; i++) ((float *)scale.data)[i] = random_float();
    const product_function functions[] = {tp_linear, tp_bit_linear, tp_linear_columns, tp_bit_linear_columns};
    for (int f = 0; f < 4; f++) {
        int along = f >= 2, integer = f % 2;
        if (f == 3 && group != TP_PER_TENSOR && group != TP_PER_COLUMN) continue;
        if (f == 1 && group == TP_PER_COLUMN) integer = 0; /* sums of scaled activations */
        size_t inputs = along ? rows : columns, outputs = along ? columns : rows;
        buffer x = make(tokens * inputs * 4, 4), bias = make(outputs * 4, 4);
        buffer out[2] = {make(tokens * outputs * 4, 4), make(tokens * outputs * 4, 4)};
        for (size_t i = 0; i < tokens * inputs; i++) ((float *)x.data)[i] = random_float();
        for (size_t i = 0; i < outputs; i++) ((float *)bias.data)[i] = random_float();
        tp_weight weight = {(uint8_t *)packed.data, rows, columns, group, {scale.data, TP_F32}};
        for (int b = 0; b < 2; b++) {
            tp_product product = {{x.data, TP_F32}, tokens, {bias.data, TP_F32}, TP_F32, out[b].data};
            functions[f](b ? k : &tp_scalar, &product, &weight, b ? 3 : 1);
        }
        static const char *names[] = {"linear", "bit_linear", "linear_columns", "bit_linear_columns"};
        check(k->name, names[f], integer ? equal(out[0], out[1]) : close_to(out[0], out[1], inputs), rows, columns, tokens * 1000 + group);
        free(x.base), free(bias.base), free(out[0].base), free(out[1].base);
    }
    for (tp_dtype dtype = TP_F32; dtype <= TP_BF16; dtype++) {
        size_t one = tp_size_of(dtype), size = one * rows * columns;
        buffer out[2] = {make(size, one), make(size, one)};
        tp_weight weight = {(uint8_t *)packed.data, rows, columns, group, {scale.data, TP_F32}};
        tp_dequantize(&tp_scalar, &weight, dtype, out[0].data, 1);
        tp_dequantize(k, &weight, dtype, out[1].data, 2);
        check(k->name, "dequantize", equal(out[0], out[1]), rows, columns, group);
        free(out[0].base), free(out[1].base);
    }
    free(packed.base), free(scale.base);
}

/* The largest sums: every code 2, or any, against activations that are all -128 or all 127. */
static void extremes(const tp_kernels *k, size_t rows, size_t columns, size_t tokens, int codes, int activation) {
    size_t row_bytes = tp_row_bytes(columns), stride = tp_blocks(columns) * TP_BLOCK, outputs = TP_TILE_ROWS;
    buffer packed = make(rows * row_bytes, 1), planes = make(tokens * stride, 1), x = make(rows, 1);
    buffer sums = make(tokens * 4, 4), scratch = {aligned_alloc(64, TP_SCRATCH_BYTES), NULL, 0};
    for (size_t i = 0; i < packed.bytes; i++)
        for (int p = 0; p < 4; p++)
            packed.data[i] = (char)((unsigned)(uint8_t)packed.data[i] << 2 | (codes < 0 ? random_bits() % 3 : (unsigned)codes));
    for (size_t row = 0; row < rows; row++)
        for (size_t j = columns; j < 4 * row_bytes; j++) /* padding is code 1 */
            packed.data[row * row_bytes + j / 4] = (char)((packed.data[row * row_bytes + j / 4] & ~(3 << 2 * (j % 4))) | 1 << 2 * (j % 4));
    memset(x.data, activation, rows);
    for (size_t token = 0; token < tokens; token++) {
        ((int32_t *)sums.data)[token] = activation * (int32_t)columns;
        for (size_t j = 0; j < stride; j++) {
            size_t column = j / TP_BLOCK * TP_BLOCK + j % 64 * 4 + j % TP_BLOCK / 64;
            planes.data[token * stride + j] = (char)(column < columns ? activation : 0);
        }
    }
    const tp_kernels *both[2] = {&tp_scalar, k};
    buffer out[2], along[2];
    for (int b = 0; b < 2; b++) {
        out[b] = make(((tokens - 1) * outputs + (rows + 15) / 16 * 16) * 4, 4);
        along[b] = make(columns * 4, 4);
        memset(along[b].data, 0, columns * 4);
        tp_tile tile = {(uint8_t *)packed.data, row_bytes, rows, columns, tokens, stride, scratch.base};
        both[b]->int_dots(&tile, (int8_t *)planes.data, (int32_t *)sums.data, (int32_t *)out[b].data, outputs);
        if (columns <= 2048)
            both[b]->int_columns((uint8_t *)packed.data, row_bytes, rows, columns, (int8_t *)x.data, (int32_t *)along[b].data);
    }
    int same = 1;
    for (size_t token = 0; token < tokens; token++)
        same &= !memcmp(out[0].data + token * outputs * 4, out[1].data + token * outputs * 4, rows * 4);
    check(k->name, "int_dots of extremes", same, rows, columns, tokens);
    check(k->name, "int_columns of extremes", equal(along[0], along[1]), rows, columns, tokens);
    for (int b = 0; b < 2; b++) free(out[b].base), free(along[b].base);
    free(packed.base), free(planes.base), free(x.base), free(sums.base), free(scratch.base);
}

int main(void) {
    for (const char *const *name = tp_names(); *name; name++) {
        const tp_kernels *k = tp_find(*name);
        for (size_t r = 0; r < SIZE_COUNT; r++)
            for (size_t c = 0; c < SIZE_COUNT; c++) {
                if (SIZES[r] > 70 && SIZES[c] > 70) continue;
                codec(k, SIZES[r], SIZES[c]);
                quantization(k, SIZES[r], SIZES[c]);
                static const size_t tokens[] = {0, 1, 2, 5, 8, 17};
                for (size_t t = 0; t < 6; t++)
                    products(k, SIZES[r], SIZES[c], tokens[t], pick_scale(r + c + t));
            }
        for (size_t g = 0; g <= GROUP_COUNT; g++) products(k, 70, 2100, 33 + g, pick_scale(g));
        products(k, 257, 260, 130, 0);
        for (int codes = -1; codes < 3; codes++)
            for (int activation = -128; activation < 128; activation += 255)
                for (size_t tokens = 1; tokens < 40; tokens += 1 + tokens / 3) {
                    extremes(k, 13, 4100, tokens, codes, activation);
                    extremes(k, 256, 257, tokens, codes, activation);
                }
        products(k, 70000, 5, 1, 0); /* more rows than the column kernels take at once */
        printf("%s: %s\n", *name, failures ? "FAILED" : "equal to scalar");
    }
    return failures != 0;
}
