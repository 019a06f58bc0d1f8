/* Functions of the reference that other variants use as they are. */
#ifndef TPACK_SCALAR_H
#define TPACK_SCALAR_H

#include "kernels.h"

size_t tp_scalar_pack_f32(const float *trits, size_t columns, uint8_t *packed);
double tp_scalar_abs_sum(const void *weights, tp_dtype dtype, size_t count);
void tp_scalar_group_range(const void *weights, tp_dtype dtype, size_t columns, float *maxima, float *minima);
int tp_scalar_column_sizes(const void *weights, tp_dtype dtype, size_t columns, float *sizes);
void tp_scalar_square_sums(const void *weights, tp_dtype dtype, const float *restored, size_t count, double sums[2]);
size_t tp_scalar_matches(const void *weights, tp_dtype dtype, const float *restored, size_t count);
void tp_scalar_f32_from_f16(const uint16_t *in, size_t count, float *out);
void tp_scalar_f32_from_bf16(const uint16_t *in, size_t count, float *out);
void tp_scalar_f16_from_f32(const float *in, size_t count, uint16_t *out);
void tp_scalar_bf16_from_f32(const float *in, size_t count, uint16_t *out);
float tp_scalar_abs_max(const float *x, size_t count);
void tp_scalar_arrange(const float *x, size_t columns, size_t tokens, float *lanes);
void tp_scalar_rescale(const int32_t *sums, size_t count, const float *scale, int per_row, float factor, float *out);
void tp_scalar_transpose(const uint8_t *packed, size_t row_bytes, uint8_t *out, size_t out_bytes);
uint64_t tp_scalar_read_bytes(const uint8_t *data, size_t count);
void tp_scalar_quantize(const float *x, size_t columns, float factor, int8_t *planes);
size_t tp_scalar_expand_8(const uint8_t *packed, size_t columns, const uint8_t table[4], uint8_t *out);
size_t tp_scalar_expand_16(const uint8_t *packed, size_t columns, const uint16_t table[4], uint16_t *out);
size_t tp_scalar_expand_32(const uint8_t *packed, size_t columns, const uint32_t table[4], uint32_t *out);

#endif
