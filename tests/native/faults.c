/* Preloaded, makes the n-th call of one function fail, for files below one folder.
 *
 * faults_arm(function, n, error, folder) arms it; faults_seen() tells how many calls there were.
 * `error` below zero asks for something else of a write: -1 for half of the bytes, -2 for all of
 * them with one bit flipped.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char armed[16], below[4096];
static long fails_at, seen;
static int fails_with;

void faults_arm(const char *function, long n, int error, const char *folder) {
    snprintf(armed, sizeof armed, "%s", function);
    snprintf(below, sizeof below, "%s", folder);
    fails_at = n;
    fails_with = error;
    seen = 0;
}

long faults_seen(void) { return seen; }

static int path_counts(const char *path) {
    return below[0] && path && !strncmp(path, below, strlen(below));
}

static int descriptor_counts(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_counts(path);
}

static int hits(const char *function) { return !strcmp(armed, function) && ++seen == fails_at; }

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static ssize_t write_flipped(ssize_t (*real)(int, const void *, size_t), int descriptor, const void *data,
                             size_t count) {
    unsigned char *copy = malloc(count + 1);
    memcpy(copy, data, count);
    copy[count / 2] ^= 8;
    ssize_t written = real(descriptor, copy, count);
    free(copy);
    return written;
}

ssize_t write(int descriptor, const void *data, size_t count) {
    REAL(write);
    if (descriptor_counts(descriptor) && hits("write")) {
        if (fails_with == -2) return write_flipped(real, descriptor, data, count);
        if (fails_with == -1) return real(descriptor, data, count > 1 ? count / 2 : count);
        errno = fails_with;
        return -1;
    }
    return real(descriptor, data, count);
}

ssize_t preadv64v2(int descriptor, const struct iovec *pieces, int count, off64_t offset, int flags) {
    REAL(preadv64v2);
    if (descriptor_counts(descriptor) && hits("preadv")) return errno = fails_with, -1;
    return real(descriptor, pieces, count, offset, flags);
}

int fsync(int descriptor) {
    REAL(fsync);
    if (descriptor_counts(descriptor) && hits("fsync")) return errno = fails_with, -1;
    return real(descriptor);
}

int fchmod(int descriptor, mode_t mode) {
    REAL(fchmod);
    if (descriptor_counts(descriptor) && hits("fchmod")) return errno = fails_with, -1;
    return real(descriptor, mode);
}

int ftruncate64(int descriptor, off64_t length) {
    REAL(ftruncate64);
    if (descriptor_counts(descriptor) && hits("ftruncate")) return errno = fails_with, -1;
    return real(descriptor, length);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (path_counts(to) && hits("rename")) return errno = fails_with, -1;
    return real(from, to);
}

int link(const char *from, const char *to) {
    REAL(link);
    if (path_counts(to) && hits("link")) return errno = fails_with, -1;
    return real(from, to);
}

int linkat(int at, const char *from, int into, const char *to, int flags) {
    REAL(linkat);
    if (path_counts(to) && hits("link")) return errno = fails_with, -1;
    return real(at, from, into, to, flags);
}

int renameat2(int at, const char *from, int into, const char *to, unsigned flags) {
    REAL(renameat2);
    if (path_counts(to) && hits("rename")) return errno = fails_with, -1;
    return real(at, from, into, to, flags);
}

int unlink(const char *path) {
    REAL(unlink);
    if (path_counts(path) && hits("unlink")) return errno = fails_with, -1;
    return real(path);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (path_counts(path) && hits("open")) return errno = fails_with, -1;
    return real(path, flags, mode);
}
