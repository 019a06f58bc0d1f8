/* Threads for the kernels.
 *
 * Linking with -fopenmp would bring the system's libgomp into a process in which torch already runs
 * its own bundled copy: two pools that fight for the same cores. So nothing is linked. Once torch is
 * loaded, GOMP_parallel is looked up through libtorch_cpu itself, which by the rules of dlsym gives
 * the very runtime torch uses, whatever its file is called (LLVM's and Intel's export the same
 * function), and our work runs on torch's own threads.
 *
 * Without torch, or after a fork (where libgomp's pool is dead and would be waited for forever), each
 * call starts threads of its own and joins them: some 30 us, which only long calls pay.
 *
 * Tasks are handed out as they are asked for, so a team smaller than wanted, or a core busy elsewhere,
 * only shifts work; no result depends on who ran a task. They come in runs that shrink towards the
 * end: neighbouring tasks read neighbouring memory, which the prefetchers have already seen.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* dl_iterate_phdr, RTLD_NOLOAD */
#endif
#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#if defined(__linux__)
#include <link.h>
#endif

typedef struct {
    tp_body body;
    void *context;
    size_t tasks;
    unsigned threads;
    atomic_size_t next_task;
    atomic_uint next_worker;
} team;

static void work(void *argument) {
    team *shared = argument;
    unsigned worker = atomic_fetch_add(&shared->next_worker, 1);
    if (worker >= shared->threads) return;
    size_t first = atomic_load(&shared->next_task);
    while (first < shared->tasks) {
        size_t run = (shared->tasks - first) / (4 * (size_t)shared->threads) + 1;
        if (!atomic_compare_exchange_weak(&shared->next_task, &first, first + run)) continue;
        for (size_t task = first; task < first + run; task++) shared->body(shared->context, task, worker);
        first = atomic_load(&shared->next_task);
    }
}

typedef void (*gomp_parallel)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

static atomic_int forked;

static void after_fork(void) { atomic_store(&forked, 1); }

void tp_parallel_init(void) { pthread_atfork(NULL, NULL, after_fork); }

#if defined(__linux__)
typedef struct {
    unsigned long long loads; /* how many libraries were ever loaded: changes when torch comes in */
    char path[1024];
} search;

static int read_loads(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size;
    ((search *)data)->loads = info->dlpi_adds;
    return 1;
}

static int find_torch(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size;
    search *found = data;
    if (!info->dlpi_name || !strstr(info->dlpi_name, "libtorch_cpu")) return 0;
    if (strlen(info->dlpi_name) >= sizeof found->path) return 0;
    strcpy(found->path, info->dlpi_name);
    return 1;
}

static gomp_parallel find_openmp(void) {
    static _Atomic(gomp_parallel) openmp;
    static _Atomic unsigned long long searched_at;
    gomp_parallel found = atomic_load(&openmp);
    if (found) return found;
    search state = {0};
    dl_iterate_phdr(read_loads, &state);
    if (state.loads == atomic_load(&searched_at)) return NULL;
    atomic_store(&searched_at, state.loads);
    if (!dl_iterate_phdr(find_torch, &state)) return NULL;
    void *torch = dlopen(state.path, RTLD_LAZY | RTLD_NOLOAD);
    if (!torch) return NULL;
    /* dlsym gives an object pointer; POSIX says that it holds a function's address */
    void *symbol = dlsym(torch, "GOMP_parallel");
    memcpy(&found, &symbol, sizeof found);
    atomic_store(&openmp, found);
    return found;
}
#else
static gomp_parallel find_openmp(void) { return NULL; }
#endif

const char *tp_runtime(void) { return !atomic_load(&forked) && find_openmp() ? "openmp" : "pthread"; }

static void *thread_main(void *argument) {
    work(argument);
    return NULL;
}

static void run_own_threads(team *shared) {
    enum { MOST = 64 };
    pthread_t handles[MOST];
    unsigned started = 0;
    while (started + 1 < shared->threads && started < MOST &&
           pthread_create(&handles[started], NULL, thread_main, shared) == 0)
        started++;
    work(shared);
    while (started) pthread_join(handles[--started], NULL);
}

void tp_parallel(unsigned threads, size_t tasks, tp_body body, void *context) {
    team shared = {.body = body, .context = context, .tasks = tasks, .threads = threads};
    if (threads > tasks) shared.threads = (unsigned)tasks;
    gomp_parallel parallel;
    if (shared.threads <= 1) {
        for (size_t task = 0; task < tasks; task++) body(context, task, 0);
    } else if (!atomic_load(&forked) && (parallel = find_openmp())) {
        parallel(work, &shared, shared.threads, 0);
    } else {
        run_own_threads(&shared);
    }
}
