/* Makes one call of a process fail: the FAULT_AT-th write, allocation, sync, rename or removal of a file under FAULT_UNDER.
 *
 * Preloaded into the program by faults.py. FAULT_KIND is `enospc`, `eio` or `short` (a write that takes half of its bytes;
 * the next one of the file is whole again). FAULT_COUNT, if set, names a file that gets the number of calls seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long calls;

static void tell(void) {
    const char *name = getenv("FAULT_COUNT");
    if (!name) return;
    FILE *file = fopen(name, "w");
    if (!file) return;
    fprintf(file, "%ld\n", atomic_load(&calls));
    fclose(file);
}

__attribute__((constructor)) static void begin(void) { atexit(tell); }

static int path_counts(const char *path) {
    const char *under = getenv("FAULT_UNDER");
    return under && path && strncmp(path, under, strlen(under)) == 0;
}

static int file_counts(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return path_counts(path);
}

/* 0: go on; 1: fail with errno; 2: a short write. */
static int turn(int is_write) {
    long at = atomic_fetch_add(&calls, 1) + 1;
    const char *wanted = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
    if (!wanted || !kind || at != atol(wanted)) return 0;
    if (strcmp(kind, "short") == 0) return is_write ? 2 : 0;
    errno = strcmp(kind, "eio") == 0 ? EIO : ENOSPC;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t n) {
    int fault = file_counts(fd) ? turn(1) : 0;
    if (fault == 1) return -1;
    return REAL(write)(fd, bytes, fault == 2 && n > 1 ? n / 2 : n);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    int fault = file_counts(fd) ? turn(1) : 0;
    if (fault == 1) return -1;
    return REAL(pwrite64)(fd, bytes, fault == 2 && n > 1 ? n / 2 : n, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return pwrite64(fd, bytes, n, at); }

int fsync(int fd) { return file_counts(fd) && turn(0) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return file_counts(fd) && turn(0) ? -1 : REAL(fdatasync)(fd); }

int fallocate64(int fd, int mode, off64_t at, off64_t n) {
    return file_counts(fd) && turn(0) ? -1 : REAL(fallocate64)(fd, mode, at, n);
}

int fallocate(int fd, int mode, off_t at, off_t n) { return fallocate64(fd, mode, at, n); }

int posix_fallocate64(int fd, off64_t at, off64_t n) {
    return file_counts(fd) && turn(0) ? errno : REAL(posix_fallocate64)(fd, at, n);
}

int ftruncate64(int fd, off64_t n) { return file_counts(fd) && turn(0) ? -1 : REAL(ftruncate64)(fd, n); }

int rename(const char *from, const char *to) {
    return path_counts(from) && turn(0) ? -1 : REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) { return path_counts(path) && turn(0) ? -1 : REAL(mkdir)(path, mode); }
