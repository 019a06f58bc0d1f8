#ifndef TPACK_PARALLEL_H
#define TPACK_PARALLEL_H

#include <stddef.h>

/* Called for each task 0..tasks-1, by one of the workers 0..threads-1. */
typedef void (*tp_body)(void *context, size_t task, unsigned worker);

/* Runs the tasks on at most `threads` threads, the calling one among them, and waits for all. */
void tp_parallel(unsigned threads, size_t tasks, tp_body body, void *context);

/* "openmp": torch's pool; "pthread": threads that live for one call */
const char *tp_runtime(void);

/* Once, when the module loads. */
void tp_parallel_init(void);

#endif
