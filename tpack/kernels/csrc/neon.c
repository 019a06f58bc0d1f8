/* NEON with the dot-product instructions (every 64-bit Arm core since 2018).
 *
 * vdotq_s32 adds four signed products into each 32-bit lane: a lane is four packed bytes here too.
 * What the compiler vectorizes well by itself is taken from the scalar reference.
 */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#include "scalar.h"

#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))

enum { MOST_TOKENS = 4, MOST_COLUMNS = 2048 };

/* `size` bytes where they are, or a copy in `buffer` where the row has fewer left */
static inline const void *whole(const void *from, size_t left, size_t size, void *buffer) {
    if (left >= size) return from;
    memset(buffer, 0, size);
    memcpy(buffer, from, left);
    return buffer;
}

/* 64 codes, deinterleaved by position in the byte, to 16 packed bytes */
static inline uint8x16_t join_codes(uint8x16x4_t codes) {
    uint8x16_t low = vorrq_u8(codes.val[0], vshlq_n_u8(codes.val[1], 2));
    return vorrq_u8(low, vorrq_u8(vshlq_n_u8(codes.val[2], 4), vshlq_n_u8(codes.val[3], 6)));
}

static size_t pack_i8(const int8_t *trits, size_t columns, uint8_t *packed) {
    int8_t buffer[64];
    uint8_t bytes[16];
    for (size_t j = 0; j < columns; j += 64) {
        size_t left = columns - j;
        int8x16x4_t v = vld4q_s8(whole(trits + j, left, 64, buffer));
        uint8x16x4_t codes;
        uint8x16_t largest = vdupq_n_u8(0);
        for (int p = 0; p < 4; p++) {
            codes.val[p] = vreinterpretq_u8_s8(vaddq_s8(v.val[p], vdupq_n_s8(1)));
            largest = vmaxq_u8(largest, codes.val[p]);
        }
        if (vmaxvq_u8(largest) > 2)
            while (trits[j] >= -1 && trits[j] <= 1) j++;
        if (vmaxvq_u8(largest) > 2) return j;
        vst1q_u8(bytes, join_codes(codes));
        memcpy(packed + j / 4, bytes, left >= 64 ? 16 : tp_row_bytes(left));
    }
    return columns;
}

/* 64 weights as f32, with zeros where the row has fewer left */
static const float *take(const void *weights, tp_dtype dtype, size_t left, float buffer[64]) {
    if (dtype == TP_F32) return whole(weights, left * 4, 256, buffer);
    memset(buffer, 0, 256);
    (dtype == TP_F16 ? tp_scalar_f32_from_f16 : tp_scalar_f32_from_bf16)(weights, left < 64 ? left : 64, buffer);
    return buffer;
}

static void pack_threshold(const void *weights, tp_dtype dtype, size_t columns, float threshold, uint8_t *packed) {
    const float32x4_t high = vdupq_n_f32(threshold), low = vdupq_n_f32(-threshold);
    float buffer[64];
    uint8_t codes[64], bytes[16];
    for (size_t j = 0; j < columns; j += 64) {
        size_t left = columns - j;
        const float *source = take((const char *)weights + j * tp_size_of(dtype), dtype, left, buffer);
        for (int i = 0; i < 64; i += 8) {
            uint16x4_t half[2];
            for (int k = 0; k < 2; k++) {
                float32x4_t v = vld1q_f32(source + i + 4 * k);
                /* a comparison that holds is -1 */
                half[k] = vmovn_u32(vsubq_u32(vcltq_f32(v, low), vcgtq_f32(v, high)));
            }
            uint8x8_t trits = vmovn_u16(vcombine_u16(half[0], half[1]));
            vst1_u8(codes + i, vadd_u8(trits, vdup_n_u8(1)));
        }
        vst1q_u8(bytes, join_codes(vld4q_u8(codes)));
        memcpy(packed + j / 4, bytes, left >= 64 ? 16 : tp_row_bytes(left));
    }
}

static size_t expand_8(const uint8_t *packed, size_t columns, const uint8_t table[4], uint8_t *out) {
    uint8_t sixteen[16] = {table[0], table[1], table[2], table[3]};
    const uint8x16_t values = vld1q_u8(sixteen), three = vdupq_n_u8(3);
    size_t j = 0;
    for (; j + 64 <= columns; j += 64) {
        uint8x16_t bytes = vld1q_u8(packed + j / 4);
        uint8x16x4_t codes = {{vandq_u8(bytes, three), vandq_u8(vshrq_n_u8(bytes, 2), three),
                               vandq_u8(vshrq_n_u8(bytes, 4), three), vshrq_n_u8(bytes, 6)}};
        uint8x16_t largest = vmaxq_u8(vmaxq_u8(codes.val[0], codes.val[1]), vmaxq_u8(codes.val[2], codes.val[3]));
        if (vmaxvq_u8(largest) == 3) break; /* the loop for the rest finds out where */
        for (int p = 0; p < 4; p++) codes.val[p] = vqtbl1q_u8(values, codes.val[p]);
        vst4q_u8(out + j, codes);
    }
    return j + tp_scalar_expand_8(packed + j / 4, columns - j, table, out + j);
}

/* Four lanes of a block: codes of 16 packed bytes by plane. */
static inline void cut_planes(const uint8_t *packed, int8x16_t codes[4]) {
    uint8x16_t bytes = vld1q_u8(packed), three = vdupq_n_u8(3);
    codes[0] = vreinterpretq_s8_u8(vandq_u8(bytes, three));
    codes[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 2), three));
    codes[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 4), three));
    codes[3] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 6));
}

DOTPROD static void lane_sums(const int8_t *planes, size_t blocks, int32_t *sums) {
    const int8x16_t ones = vdupq_n_s8(1);
    for (size_t i = 0; i < blocks * 4; i++) {
        int32x4_t sum = vdupq_n_s32(0);
        for (size_t p = 0; p < 4; p++)
            sum = vdotq_s32(sum, ones, vld1q_s8(planes + i / 4 * TP_BLOCK + 64 * p + i % 4 * 16));
        vst1q_s32(sums + 4 * i, sum);
    }
}

DOTPROD static void int_dots(const tp_tile *tile, const int8_t *planes, const int32_t *sums, int32_t *out,
                             size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), token_stride = tile->token_stride;
    for (size_t first = 0; first < tile->tokens; first += MOST_TOKENS) {
        size_t tokens = tile->tokens - first < MOST_TOKENS ? tile->tokens - first : MOST_TOKENS;
        for (size_t row = 0; row < tile->rows; row++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            int32x4_t totals[MOST_TOKENS] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
            uint8_t buffer[16];
            for (size_t at = 0; at < bytes; at += 16) {
                int8x16_t codes[4];
                cut_planes(whole(packed + at, bytes - at, 16, buffer), codes);
                for (size_t t = 0; t < tokens; t++) {
                    const int8_t *x = planes + (first + t) * token_stride + at / 64 * TP_BLOCK + at % 64;
                    for (size_t p = 0; p < 4; p++) totals[t] = vdotq_s32(totals[t], codes[p], vld1q_s8(x + 64 * p));
                }
            }
            for (size_t t = 0; t < tokens; t++)
                out[(first + t) * out_stride + row] = vaddvq_s32(totals[t]) - sums[first + t];
        }
    }
}

/* The 16 lanes added in halves, in the order that kernels.h fixes. */
static inline float fold_lanes(const float32x4_t quarters[4]) {
    float32x4_t a = vaddq_f32(vaddq_f32(quarters[0], quarters[2]), vaddq_f32(quarters[1], quarters[3]));
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}

/* The scales of four lanes, columns `column` on. */
static inline float32x4_t lane_scales(const float *scales, size_t column, size_t group, size_t groups) {
    float each[4];
    for (size_t i = 0; i < 4; i++) {
        size_t index = (column + i * TP_LANES) / group;
        each[i] = index < groups ? scales[index] : 0;
    }
    return vld1q_f32(each);
}

DOTPROD static void int_group_dots(const tp_tile *tile, const int8_t *planes, const int32_t *x_lane_sums,
                                   const float *scales, size_t group, float *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), blocks = tp_blocks(tile->columns);
    size_t groups = (tile->columns + group - 1) / group;
    for (size_t row = 0; row < tile->rows; row++)
        for (size_t token = 0; token < tile->tokens; token++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            const int8_t *x = planes + token * tile->token_stride;
            const int32_t *x_sums = x_lane_sums + token * blocks * TP_LANES;
            float32x4_t totals[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
            uint8_t buffer[16];
            for (size_t at = 0; at < bytes; at += 16) {
                int8x16_t codes[4];
                cut_planes(whole(packed + at, bytes - at, 16, buffer), codes);
                int32x4_t sum = vnegq_s32(vld1q_s32(x_sums + at / 4));
                for (size_t p = 0; p < 4; p++)
                    sum = vdotq_s32(sum, codes[p], vld1q_s8(x + at / 64 * TP_BLOCK + 64 * p + at % 64));
                float32x4_t scale = lane_scales(scales + row * groups, at * 4, group, groups);
                totals[at % 64 / 16] = vaddq_f32(totals[at % 64 / 16], vmulq_f32(vcvtq_f32_s32(sum), scale));
            }
            out[token * out_stride + row] = fold_lanes(totals);
        }
}

static void float_dots(const tp_tile *tile, const float *lanes, const float *scales, size_t group,
                       float *out, size_t out_stride) {
    size_t bytes = tp_row_bytes(tile->columns), token_stride = tile->token_stride;
    size_t groups = scales ? (tile->columns + group - 1) / group : 0;
    for (size_t first = 0; first < tile->tokens; first += MOST_TOKENS) {
        size_t tokens = tile->tokens - first < MOST_TOKENS ? tile->tokens - first : MOST_TOKENS;
        for (size_t row = 0; row < tile->rows; row++) {
            const uint8_t *packed = tile->packed + row * tile->row_bytes;
            float32x4_t totals[MOST_TOKENS] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
            uint8_t buffer[16];
            for (size_t at = 0; at < bytes; at += 16) {
                uint32x4_t codes = vreinterpretq_u32_u8(vld1q_u8(whole(packed + at, bytes - at, 16, buffer)));
                float32x4_t sums[MOST_TOKENS];
                for (size_t t = 0; t < tokens; t++) sums[t] = scales ? vdupq_n_f32(0) : totals[t];
                for (size_t c = 0; c < 16; c++, codes = vshrq_n_u32(codes, 2)) {
                    uint32x4_t code = vandq_u32(codes, vdupq_n_u32(3));
                    float32x4_t trits = vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(code), vdupq_n_s32(1)));
                    for (size_t t = 0; t < tokens; t++) {
                        const float *x = lanes + (first + t) * token_stride + at / 64 * TP_BLOCK + 16 * c + at % 64 / 4;
                        sums[t] = vfmaq_f32(sums[t], trits, vld1q_f32(x));
                    }
                }
                for (size_t t = 0; t < tokens; t++)
                    totals[t] = scales ? vfmaq_f32(totals[t], sums[t], lane_scales(scales + row * groups, at * 4, group, groups))
                                       : sums[t];
            }
            for (size_t t = 0; t < tokens; t++) out[(first + t) * out_stride + row] = vaddvq_f32(totals[t]);
        }
    }
}

/* The orientation in which a row holds outputs: a row at a time; the compiler vectorizes the sums. */
static void float_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                          const float *x, float *out) {
    memset(out, 0, columns * sizeof *out);
    int8_t trits[MOST_COLUMNS + 64];
    for (size_t row = 0; row < rows; row++) {
        static const uint8_t table[4] = {0xff, 0, 1, 0};
        expand_8(packed + row * row_bytes, columns, table, (uint8_t *)trits);
        for (size_t j = 0; j < columns; j++) out[j] += x[row] * (float)trits[j];
    }
}

static void int_columns(const uint8_t *packed, size_t row_bytes, size_t rows, size_t columns,
                        const int8_t *x, int32_t *out) {
    int8_t trits[MOST_COLUMNS + 64];
    for (size_t row = 0; row < rows; row++) {
        static const uint8_t table[4] = {0xff, 0, 1, 0};
        expand_8(packed + row * row_bytes, columns, table, (uint8_t *)trits);
        for (size_t j = 0; j < columns; j++) out[j] += (int32_t)x[row] * trits[j];
    }
}

const tp_kernels tp_neon = {
    .name = "neon", .pack_i8 = pack_i8, .pack_f32 = tp_scalar_pack_f32, .pack_threshold = pack_threshold,
    .expand_8 = expand_8, .expand_16 = tp_scalar_expand_16, .expand_32 = tp_scalar_expand_32,
    .abs_sum = tp_scalar_abs_sum, .group_range = tp_scalar_group_range, .column_sizes = tp_scalar_column_sizes,
    .square_sums = tp_scalar_square_sums, .matches = tp_scalar_matches,
    .f32_from_f16 = tp_scalar_f32_from_f16, .f32_from_bf16 = tp_scalar_f32_from_bf16,
    .f16_from_f32 = tp_scalar_f16_from_f32, .bf16_from_f32 = tp_scalar_bf16_from_f32,
    .abs_max = tp_scalar_abs_max, .quantize = tp_scalar_quantize, .lane_sums = lane_sums,
    .arrange = tp_scalar_arrange, .arranged_floats = {1, 1}, .int_dots = int_dots, .int_group_dots = int_group_dots,
    .float_dots = float_dots, .rescale = tp_scalar_rescale, .float_columns = float_columns,
    .int_columns = int_columns, .transpose = tp_scalar_transpose, .turn_from = {16, 16},
    .read_bytes = tp_scalar_read_bytes,
};
#else
typedef int neon_needs_aarch64; /* C forbids an empty file */
#endif
