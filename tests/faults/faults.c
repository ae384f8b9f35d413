// A library to preload: one call of the C library on a path below FAULT_BELOW goes wrong.
//
// FAULT_CALL  which calls count: open, read (a file, in any way), write (not pwrite), list (a folder), mkdir, sync, rename.
// FAULT_AT    which of them, from 1; FAULT_EVER=1: all from that one on.
// FAULT_HOW   error:N   the call fails with errno N.
//             short     a read delivers half.
//             end       a read says that the file has ended.
//             cut:N     the file is made N bytes long first.
//             signal:N  the process gets signal N first.
//
// The variables are looked up at each call, so a process can set its own; fault_begin counts from 1 again.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long count;

void fault_begin(void) { count = 0; }
long fault_count(void) { return count; }

// Whether this call fails: -1 with errno set. Otherwise the share of the bytes to read: 0, 1 half, 2 all.
static int fate(const char *call, const char *path) {
    const char *below = getenv("FAULT_BELOW"), *which = getenv("FAULT_CALL"), *how = getenv("FAULT_HOW");
    if (!below || !which || !how || strcmp(which, call) != 0 || strncmp(path, below, strlen(below)) != 0)
        return 2;
    long at = atol(getenv("FAULT_AT")), now = __sync_add_and_fetch(&count, 1);
    if (now != at && !(getenv("FAULT_EVER") && now > at))
        return 2;
    const char *colon = strchr(how, ':');
    long number = colon ? atol(colon + 1) : 0;
    if (!strncmp(how, "error", 5)) {
        errno = (int)number;
        return -1;
    }
    if (!strncmp(how, "cut", 3) && truncate(path, number) != 0)
        abort();
    if (!strncmp(how, "signal", 6))
        kill(getpid(), (int)number);
    return !strcmp(how, "end") ? 0 : !strcmp(how, "short") ? 1 : 2;
}

static int fate_of_file(const char *call, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = 0;
    return fate(call, path);
}

static int fate_at(const char *call, int folder, const char *name) {
    char path[8300], link[64];
    if (name[0] == '/')
        return fate(call, name);
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, path, 4096);
    snprintf(path + (n > 0 ? n : 0), 4100, "/%s", name);
    return fate(call, path);
}

static size_t share(int fate, size_t n) { return fate == 0 ? 0 : fate == 1 ? (n + 1) / 2 : n; }

#define NEXT(result, name, ...) \
    static result (*next)(__VA_ARGS__); \
    if (!next) \
        next = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        NEXT(int, name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return fate_at("open", AT_FDCWD, path) < 0 ? -1 : next(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

ssize_t read(int fd, void *to, size_t n) {
    NEXT(ssize_t, read, int, void *, size_t);
    int f = fate_of_file("read", fd);
    return f < 0 ? -1 : next(fd, to, share(f, n));
}

ssize_t write(int fd, const void *from, size_t n) {
    NEXT(ssize_t, write, int, const void *, size_t);
    return fate_of_file("write", fd) < 0 ? -1 : next(fd, from, n);
}

#define PREAD(name, offset_type) \
    ssize_t name(int fd, void *to, size_t n, offset_type at) { \
        NEXT(ssize_t, name, int, void *, size_t, offset_type); \
        int f = fate_of_file("read", fd); \
        return f < 0 ? -1 : next(fd, to, share(f, n), at); \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

// A direct read is cut at a page. CPython reads with preadv2 where the system has it, with preadv elsewhere.
#define PREADV(name, offset_type, extra_type, extra) \
    ssize_t name(int fd, const struct iovec *to, int parts, offset_type at extra_type) { \
        NEXT(ssize_t, name, int, const struct iovec *, int, offset_type extra_type); \
        int f = fate_of_file("read", fd); \
        struct iovec less = {to->iov_base, share(f, to->iov_len)}; \
        if (fcntl(fd, F_GETFL) & O_DIRECT) \
            less.iov_len -= less.iov_len % 4096; \
        return f < 0 ? -1 : f == 2 ? next(fd, to, parts, at extra) : next(fd, &less, 1, at extra); \
    }
#define NOTHING
#define FLAGS_TYPE , int flags
#define FLAGS , flags
PREADV(preadv, off_t, NOTHING, NOTHING)
PREADV(preadv64, off64_t, NOTHING, NOTHING)
PREADV(preadv2, off_t, FLAGS_TYPE, FLAGS)
PREADV(preadv64v2, off64_t, FLAGS_TYPE, FLAGS)

DIR *opendir(const char *path) {
    NEXT(DIR *, opendir, const char *);
    return fate_at("list", AT_FDCWD, path) < 0 ? NULL : next(path);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(int, mkdir, const char *, mode_t);
    return fate_at("mkdir", AT_FDCWD, path) < 0 ? -1 : next(path, mode);
}

#define SYNC(name) \
    int name(int fd) { \
        NEXT(int, name, int); \
        return fate_of_file("sync", fd) < 0 ? -1 : next(fd); \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    NEXT(int, rename, const char *, const char *);
    return fate_at("rename", AT_FDCWD, to) < 0 ? -1 : next(from, to);
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    NEXT(int, renameat2, int, const char *, int, const char *, unsigned);
    return fate_at("rename", b, to) < 0 ? -1 : next(a, from, b, to, flags);
}
