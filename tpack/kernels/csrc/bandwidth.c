/* Reading memory and nothing else: the yardstick for every kernel that streams weights. */
#include <stdatomic.h>

#include "ops.h"
#include "parallel.h"

enum { PIECE = 65536 };

typedef struct {
    const tp_kernels *k;
    const uint8_t *data;
    size_t count;
    _Atomic uint64_t sum;
} reading;

static void piece_task(void *context, size_t task, unsigned worker) {
    (void)worker;
    reading *r = context;
    size_t start = task * PIECE, left = r->count - start;
    atomic_fetch_add(&r->sum, r->k->read_bytes(r->data + start, left < PIECE ? left : PIECE));
}

uint64_t tp_read_bytes(const tp_kernels *k, const uint8_t *data, size_t count, unsigned threads) {
    reading r = {.k = k, .data = data, .count = count};
    tp_parallel(threads, (count + PIECE - 1) / PIECE, piece_task, &r);
    return atomic_load(&r.sum);
}
