/* The reference in plain C: what every other variant must equal. Clear before fast. */
#include <math.h>
#include <string.h>

#include "float16.h"
#include "scalar.h"

static inline unsigned code_at(const uint8_t *packed, size_t column) {
    return (packed[column / 4] >> (2 * (column % 4))) & 3;
}

static void put_codes(uint8_t *packed, size_t columns, size_t column, unsigned code) {
    unsigned shift = 2 * (unsigned)(column % 4);
    uint8_t *byte = &packed[column / 4];
    if (shift == 0) *byte = column + 4 > columns ? 0x55 : 0; /* pads with code 1 */
    *byte = (uint8_t)((*byte & ~(3u << shift)) | (code << shift));
}

static size_t pack_i8(const int8_t *trits, size_t columns, uint8_t *packed) {
    for (size_t j = 0; j < columns; j++) {
        if (trits[j] < -1 || trits[j] > 1) return j;
        put_codes(packed, columns, j, (unsigned)(trits[j] + 1));
    }
    return columns;
}

size_t tp_scalar_pack_f32(const float *trits, size_t columns, uint8_t *packed) {
    for (size_t j = 0; j < columns; j++) {
        if (trits[j] != -1.0f && trits[j] != 0.0f && trits[j] != 1.0f) return j;
        put_codes(packed, columns, j, (unsigned)((int)trits[j] + 1));
    }
    return columns;
}

static float weight_at(const void *weights, tp_dtype dtype, size_t index) {
    const char *from = (const char *)weights + index * tp_size_of(dtype);
    uint32_t bits;
    uint16_t half;
    if (dtype == TP_F32) {
        memcpy(&bits, from, sizeof bits);
        return tp_float(bits);
    }
    memcpy(&half, from, sizeof half);
    return dtype == TP_F16 ? tp_f32_from_f16(half) : tp_f32_from_bf16(half);
}

static void pack_threshold(const void *weights, tp_dtype dtype, size_t columns, float threshold, uint8_t *packed) {
    for (size_t j = 0; j < columns; j++) {
        float weight = weight_at(weights, dtype, j);
        put_codes(packed, columns, j, weight > threshold ? 2 : weight < -threshold ? 0 : 1);
    }
}

#define EXPAND(name, type)                                                                          \
    size_t name(const uint8_t *packed, size_t columns, const type table[4], type *out) {     \
        for (size_t j = 0; j < columns; j++) {                                                      \
            unsigned code = code_at(packed, j);                                                     \
            if (code == 3) return j;                                                                \
            out[j] = table[code];                                                                   \
        }                                                                                           \
        return columns;                                                                             \
    }
EXPAND(tp_scalar_expand_8, uint8_t)
EXPAND(tp_scalar_expand_16, uint16_t)
EXPAND(tp_scalar_expand_32, uint32_t)

static double fold_doubles(double partial[16]) {
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++) partial[i] += partial[i + half];
    return partial[0];
}

double tp_scalar_abs_sum(const void *weights, tp_dtype dtype, size_t count) {
    double partial[16] = {0};
    for (size_t i = 0; i < count; i++) partial[i % 16] += fabs((double)weight_at(weights, dtype, i));
    return fold_doubles(partial);
}

void tp_scalar_square_sums(const void *weights, tp_dtype dtype, const float *restored, size_t count, double sums[2]) {
    double lost[16] = {0}, total[16] = {0};
    for (size_t i = 0; i < count; i++) {
        float weight = weight_at(weights, dtype, i), difference = weight - restored[i];
        lost[i % 16] += (double)difference * difference;
        total[i % 16] += (double)weight * weight;
    }
    sums[0] = fold_doubles(lost);
    sums[1] = fold_doubles(total);
}

size_t tp_scalar_matches(const void *weights, tp_dtype dtype, const float *restored, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t weight = tp_bits(weight_at(weights, dtype, i)), other = tp_bits(restored[i]);
        if (weight != other && (weight | other) != 0x80000000) return i;
    }
    return count;
}

void tp_scalar_group_range(const void *weights, tp_dtype dtype, size_t columns, float *maxima, float *minima) {
    for (size_t start = 0; start < columns; start += TP_RANGE_GROUP) {
        size_t end = start + TP_RANGE_GROUP < columns ? start + TP_RANGE_GROUP : columns;
        /* magnitudes compare as integers; NaN is above infinity, so it surfaces in the maximum */
        uint32_t largest = 0, smallest = 0x7f800000;
        for (size_t j = start; j < end; j++) {
            uint32_t magnitude = tp_bits(weight_at(weights, dtype, j)) & 0x7fffffff;
            if (magnitude > largest) largest = magnitude;
            if (magnitude && magnitude < smallest) smallest = magnitude;
        }
        maxima[start / TP_RANGE_GROUP] = tp_float(largest);
        minima[start / TP_RANGE_GROUP] = tp_float(smallest);
    }
}

int tp_scalar_column_sizes(const void *weights, tp_dtype dtype, size_t columns, float *sizes) {
    int different = 0;
    for (size_t j = 0; j < columns; j++) {
        uint32_t magnitude = tp_bits(weight_at(weights, dtype, j)) & 0x7fffffff, before = tp_bits(sizes[j]);
        different |= before && magnitude && before != magnitude;
        if (magnitude > before) sizes[j] = tp_float(magnitude);
    }
    return different;
}

void tp_scalar_f32_from_f16(const uint16_t *in, size_t count, float *out) {
    for (size_t i = 0; i < count; i++) out[i] = tp_f32_from_f16(in[i]);
}
void tp_scalar_f32_from_bf16(const uint16_t *in, size_t count, float *out) {
    for (size_t i = 0; i < count; i++) out[i] = tp_f32_from_bf16(in[i]);
}
void tp_scalar_f16_from_f32(const float *in, size_t count, uint16_t *out) {
    for (size_t i = 0; i < count; i++) out[i] = tp_f16_from_f32(in[i]);
}
void tp_scalar_bf16_from_f32(const float *in, size_t count, uint16_t *out) {
    for (size_t i = 0; i < count; i++) out[i] = tp_bf16_from_f32(in[i]);
}

float tp_scalar_abs_max(const float *x, size_t count) {
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = tp_bits(x[i]) & 0x7fffffff;
        if (magnitude > largest) largest = magnitude;
    }
    return tp_float(largest);
}

static inline size_t plane_index(size_t column) {
    return column / TP_BLOCK * TP_BLOCK + column % 4 * 64 + column % TP_BLOCK / 4;
}

void tp_scalar_quantize(const float *x, size_t columns, float factor, int8_t *planes) {
    memset(planes, 0, tp_blocks(columns) * TP_BLOCK);
    for (size_t j = 0; j < columns; j++) {
        float rounded = nearbyintf(x[j] * factor);
        planes[plane_index(j)] = (int8_t)(rounded > 127 ? 127 : rounded < -128 ? -128 : rounded);
    }
}

static void lane_sums(const int8_t *planes, size_t blocks, int32_t *sums) {
    memset(sums, 0, blocks * TP_LANES * sizeof *sums);
    for (size_t i = 0; i < blocks * TP_BLOCK; i++)
        sums[i / TP_BLOCK * TP_LANES + i % 64 / 4] += planes[i];
}

void tp_scalar_arrange(const float *x, size_t columns, size_t tokens, float *lanes) {
    (void)tokens;
    memset(lanes, 0, tp_blocks(columns) * TP_BLOCK * sizeof *lanes);
    for (size_t j = 0; j < columns; j++)
        lanes[j / TP_BLOCK * TP_BLOCK + j % 16 * TP_LANES + j % TP_BLOCK / 16] = x[j];
}

static void int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums, int32_t *out,
                     size_t out_stride) {
    size_t token_stride = tile->token_stride;
    for (size_t row = 0; row < tile->rows; row++) {
        const uint8_t *packed = tile->packed + row * tile->row_bytes;
        for (size_t token = 0; token < tile->tokens; token++) {
            const int8_t *x = planes + token * token_stride;
            int32_t sum = -sums[token];
            for (size_t j = 0; j < tile->columns; j++) sum += (int32_t)code_at(packed, j) * x[plane_index(j)];
            out[token * out_stride + row] = sum;
        }
    }
}

static float fold(float lanes[TP_LANES]) {
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

static void int_group_dots(const tp_tile *tile, const int8_t *planes, const int32_t *lane_sums,
                           const float *scales, size_t group, float *out, size_t out_stride) {
    size_t columns = tile->columns, blocks = tp_blocks(columns), groups = (columns + group - 1) / group;
    for (size_t row = 0; row < tile->rows; row++) {
        const uint8_t *packed = tile->packed + row * tile->row_bytes;
        for (size_t token = 0; token < tile->tokens; token++) {
            const int8_t *x = planes + token * tile->token_stride;
            float lanes[TP_LANES] = {0};
            for (size_t start = 0; start < columns; start += 16) {
                size_t end = start + 16 < columns ? start + 16 : columns;
                int32_t sum = -lane_sums[token * blocks * TP_LANES + start / 16];
                for (size_t j = start; j < end; j++) sum += (int32_t)code_at(packed, j) * x[plane_index(j)];
                lanes[start / 16 % TP_LANES] += (float)sum * scales[row * groups + start / group];
            }
            out[token * out_stride + row] = fold(lanes);
        }
    }
}

static void float_dots(const tp_tile *tile, const float *lanes, const float *scales, size_t group,
                       float *out, size_t out_stride) {
    size_t columns = tile->columns, token_stride = tile->token_stride;
    size_t groups = scales ? (columns + group - 1) / group : 0;
    for (size_t row = 0; row < tile->rows; row++) {
        const uint8_t *packed = tile->packed + row * tile->row_bytes;
        for (size_t token = 0; token < tile->tokens; token++) {
            float partial[TP_LANES] = {0};
            for (size_t start = 0; start < columns; start += 16) {
                const float *x = lanes + token * token_stride + start / TP_BLOCK * TP_BLOCK + start % TP_BLOCK / 16;
                size_t count = columns - start < 16 ? columns - start : 16;
                float sum = 0;
                for (size_t c = 0; c < count; c++)
                    sum += x[c * TP_LANES] * ((float)code_at(packed, start + c) - 1.0f);
                if (scales) sum *= scales[row * groups + start / group];
                partial[start / 16 % TP_LANES] += sum;
            }
            out[token * out_stride + row] = fold(partial);
        }
    }
}

void tp_scalar_rescale(const int32_t *sums, size_t count, const float *scale, int per_row, float factor,
                    float *out) {
    for (size_t j = 0; j < count; j++) out[j] = (float)sums[j] * scale[per_row ? j : 0] / factor;
}

static void float_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                          const float *x, float *out) {
    memset(out, 0, columns * sizeof *out);
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < columns; j++)
            out[j] += x[row] * ((float)code_at(packed + row * row_bytes, j) - 1.0f);
}

static void int_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                        const int8_t *x, int32_t *out) {
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < columns; j++)
            out[j] += x[row] * ((int32_t)code_at(packed + row * row_bytes, j) - 1);
}

/* Four rows of four codes are 32 bits: bit 8r + 2c and its neighbour, the code in row r and column c,
 * go to 8c + 2r. */
static inline uint32_t turn(uint32_t codes) {
    uint32_t moved = (codes ^ codes >> 6) & 0x00cc00cc; /* odd columns of even rows */
    codes ^= moved ^ moved << 6;
    moved = (codes ^ codes >> 12) & 0x0000f0f0; /* columns 2 and 3 of rows 0 and 1 */
    return codes ^ moved ^ moved << 12;
}

void tp_scalar_transpose(const uint8_t *packed, size_t row_bytes, uint8_t *out, size_t out_bytes) {
    for (size_t four = 0; four < 16; four++)
        for (size_t byte = 0; byte < 32; byte++) {
            uint32_t codes = 0;
            for (size_t r = 0; r < 4; r++) codes |= (uint32_t)packed[(4 * four + r) * row_bytes + byte] << 8 * r;
            codes = turn(codes);
            for (size_t c = 0; c < 4; c++) out[(4 * byte + c) * out_bytes + four] = (uint8_t)(codes >> 8 * c);
        }
}

uint64_t tp_scalar_read_bytes(const uint8_t *data, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) sum += data[i];
    return sum;
}

const tp_kernels tp_scalar = {
    .name = "scalar",
    .pack_i8 = pack_i8,
    .pack_f32 = tp_scalar_pack_f32,
    .pack_threshold = pack_threshold,
    .expand_8 = tp_scalar_expand_8,
    .expand_16 = tp_scalar_expand_16,
    .expand_32 = tp_scalar_expand_32,
    .abs_sum = tp_scalar_abs_sum,
    .group_range = tp_scalar_group_range, .column_sizes = tp_scalar_column_sizes,
    .square_sums = tp_scalar_square_sums,
    .matches = tp_scalar_matches,
    .f32_from_f16 = tp_scalar_f32_from_f16,
    .f32_from_bf16 = tp_scalar_f32_from_bf16,
    .f16_from_f32 = tp_scalar_f16_from_f32,
    .bf16_from_f32 = tp_scalar_bf16_from_f32,
    .abs_max = tp_scalar_abs_max,
    .quantize = tp_scalar_quantize,
    .lane_sums = lane_sums,
    .arrange = tp_scalar_arrange, .arranged_floats = {1, 1},
    .int_dots = int_dots,
    .int_group_dots = int_group_dots,
    .float_dots = float_dots,
    .rescale = tp_scalar_rescale,
    .float_columns = float_columns,
    .int_columns = int_columns,
    .transpose = tp_scalar_transpose, .turn_from = {16, 16},
    .read_bytes = tp_scalar_read_bytes,
};
