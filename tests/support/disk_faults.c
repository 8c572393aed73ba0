// disk_faults.c - preloaded into a process, lets one chosen call to the file system fail, below a chosen folder.
// Calls are counted from fault_arm(n, error, sticky): call n fails with `error`, without taking place; where sticky,
// every later call that needs space (create, write, make a folder) fails as well, as on a disk that is full.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char root[4096];
static long calls, chosen = -1;
static int failure, stays;

void fault_root(const char *path) { snprintf(root, sizeof root, "%s", path); }
void fault_arm(long n, int error, int sticky) { calls = 0; chosen = n; failure = error; stays = sticky; }
long fault_calls(void) { return calls; }

static int below(const char *path) { return chosen >= 0 && path && root[0] && !strncmp(path, root, strlen(root)); }

static int open_below(int descriptor) {
    char link[64], path[4096];
    if (chosen < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

static int fails(int needs_space) {
    long now = calls++;
    if (now == chosen || (stays && needs_space && now > chosen)) { errno = failure; return 1; }
    return 0;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        REAL(int, name, const char *, int, ...);                                          \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (below(path) && fails(flags & O_CREAT)) return -1;                             \
        return real(path, flags, mode);                                                   \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                      \
    int name(int at, const char *path, int flags, ...) {                                  \
        REAL(int, name, int, const char *, int, ...);                                     \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (below(path) && fails(flags & O_CREAT)) return -1;                             \
        return real(at, path, flags, mode);                                               \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (open_below(descriptor)) {
        // A disk that fills up takes a part first: the caller must notice a short write and go on.
        if (calls + 1 == chosen && size > 1) { calls++; return real(descriptor, data, size / 2); }
        if (fails(1)) return -1;
    }
    return real(descriptor, data, size);
}

int fsync(int descriptor) {
    REAL(int, fsync, int);
    if (open_below(descriptor) && fails(1)) return -1;
    return chosen >= 0 ? 0 : real(descriptor);  // a test of failures, not of the disk's speed
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    return below(to) && fails(0) ? -1 : real(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    return below(to) && fails(0) ? -1 : real(a, from, b, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    return below(path) && fails(1) ? -1 : real(path, mode);
}

int mkdirat(int at, const char *path, mode_t mode) {
    REAL(int, mkdirat, int, const char *, mode_t);
    return below(path) && fails(1) ? -1 : real(at, path, mode);
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    return below(path) && fails(0) ? -1 : real(path);
}

int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    return below(path) && fails(0) ? -1 : real(path);
}

int unlinkat(int at, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    return (below(path) || open_below(at)) && fails(0) ? -1 : real(at, path, flags);
}
