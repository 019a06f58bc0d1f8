/* Random numbers, and buffers that a sanitizer watches to the last byte. */
#ifndef TPACK_TEST_BUFFERS_H
#define TPACK_TEST_BUFFERS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state = 1;

static uint32_t random_bits(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static float random_float(void) { return (float)random_bits() / 1073741824.0f - 1.0f; }

/* a buffer that ends where its last element does, at an odd offset where the element allows it */
typedef struct {
    char *base, *data;
    size_t bytes;
} buffer;

static buffer make(size_t bytes, size_t offset) {
    buffer b = {malloc(bytes + offset ? bytes + offset : 1), NULL, bytes};
    if (!b.base) abort();
    b.data = b.base + offset;
    memset(b.data, 0x5a, bytes);
    return b;
}

static int equal(buffer a, buffer b) { return !memcmp(a.data, b.data, a.bytes); }

#endif
