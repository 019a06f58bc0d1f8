/* Half and bfloat16 to and from float, one value at a time, rounding half to even. */
#ifndef TPACK_FLOAT16_H
#define TPACK_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline uint32_t tp_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float tp_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline float tp_f32_from_bf16(uint16_t bits) { return tp_float((uint32_t)bits << 16); }

static inline uint16_t tp_bf16_from_f32(float value) {
    uint32_t bits = tp_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40); /* stay a NaN */
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float tp_f32_from_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 1023;
    if (exponent == 31) return tp_float(sign | 0x7f800000 | (mantissa ? 0x400000 : 0) | (mantissa << 13));
    if (exponent == 0) { /* zero or subnormal: mantissa * 2^-24 is exact */
        float magnitude = (float)mantissa * 0x1p-24f;
        return tp_float(sign | tp_bits(magnitude));
    }
    return tp_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

static inline uint16_t tp_f16_from_f32(float value) {
    uint32_t bits = tp_bits(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((magnitude >> 13) & 1023));
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 2^16 or more */
    if (magnitude < 0x38800000) { /* below 2^-14: adding 0.5 rounds to a multiple of 2^-24 */
        float rounded = tp_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (tp_bits(rounded) - 0x3f000000));
    }
    uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | ((rounded >> 13) - (112 << 10)));
}

#endif
