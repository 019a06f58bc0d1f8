/* Arrays of f32, f16 or bf16 seen as f32, and the few allocations. */
#include <stdlib.h>
#include <string.h>

#include "ops.h"

const float *tp_as_f32(const tp_kernels *k, tp_floats array, size_t first, size_t count, float *buffer) {
    if (array.dtype == TP_F32) return (const float *)array.data + first;
    const uint16_t *source = (const uint16_t *)array.data + first;
    (array.dtype == TP_F16 ? k->f32_from_f16 : k->f32_from_bf16)(source, count, buffer);
    return buffer;
}

void tp_store(const tp_kernels *k, const float *values, size_t count, tp_dtype dtype, void *out) {
    if (dtype == TP_F32)
        memcpy(out, values, count * sizeof *values);
    else
        (dtype == TP_F16 ? k->f16_from_f32 : k->bf16_from_f32)(values, count, out);
}

unsigned tp_useful_threads(unsigned threads, double work, double per_thread) {
    double most = work / per_thread;
    return most < 1 ? 1 : most < threads ? (unsigned)most : threads;
}

void *tp_allocate(size_t bytes) {
    return aligned_alloc(64, (bytes / 64 + 1) * 64);
}
