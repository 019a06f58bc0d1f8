/* Which variants may run on this processor, best first. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* syscall */
#endif
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static uint64_t enabled_state(void) { /* register files that the operating system saves (XCR0) */
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

typedef struct {
    int avx2, avx512, amx;
} features;

static int has(uint32_t word, unsigned bit) { return (word >> bit) & 1; }

static features detect(void) {
    features found = {0};
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 27 /* osxsave */) || !has(c, 12 /* fma */)) return found;
    if (!has(c, 29 /* f16c */)) return found;
    uint64_t state = enabled_state();
    if ((state & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    found.avx2 = has(b, 5);
    found.avx512 = found.avx2 && (state & 0xe0) == 0xe0 && has(b, 16 /* f */) && has(b, 17 /* dq */) &&
                   has(b, 30 /* bw */) && has(b, 31 /* vl */) && has(c, 1 /* vbmi */) && has(c, 11 /* vnni */);
    /* amx.c multiplies both bytes and bfloat16 pairs */
    found.amx = found.avx512 && (state & 0x60000) == 0x60000 && has(d, 22 /* bf16 */) &&
                has(d, 24 /* tile */) && has(d, 25 /* int8 */);
#if defined(__linux__)
    /* the kernel hands out the tile registers on request, once per process */
    enum { ARCH_REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    found.amx = found.amx && syscall(SYS_arch_prctl, ARCH_REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    found.amx = 0;
#endif
    return found;
}

static const char *const *list(void) {
    static const char *names[5];
    if (names[0]) return names;
    features found = detect();
    size_t n = 0;
    if (found.amx) names[n++] = "amx";
    if (found.avx512) names[n++] = "avx512";
    if (found.avx2) names[n++] = "avx2";
    names[n] = "scalar";
    return names;
}

static const tp_kernels *const tables[] = {&tp_amx, &tp_avx512, &tp_avx2, &tp_scalar};

#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20) & 1; /* HWCAP_ASIMDDP */ }
#else
static int has_dotprod(void) { return 1; /* every Apple silicon */ }
#endif

static const char *const *list(void) {
    static const char *names[3];
    if (names[0]) return names;
    size_t n = 0;
    if (has_dotprod()) names[n++] = "neon";
    names[n] = "scalar";
    return names;
}

static const tp_kernels *const tables[] = {&tp_neon, &tp_scalar};

#else
static const char *const *list(void) {
    static const char *names[] = {"scalar", NULL};
    return names;
}

static const tp_kernels *const tables[] = {&tp_scalar};
#endif

const char *const *tp_names(void) { return list(); }

const tp_kernels *tp_find(const char *name) {
    for (const char *const *known = list(); *known; known++)
        for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
            if (!strcmp(*known, name) && tables[i]->name && !strcmp(tables[i]->name, name)) return tables[i];
    return NULL;
}

const tp_kernels *tp_best(void) { return tp_find(*list()); }
