// A library to preload: numbers the calls of the C library on paths below FAULT_BELOW over all threads, and one goes
// wrong.
//
// FAULT_CALL   which calls count; words with commas between. A call is known by its own name (fdatasync, exchange), by
//              its kind: open, read (a file, in any way), write (not pwrite), list (a folder), mkdir, sync, rename; and
//              as one that looks (look) or one that changes files (change). close is neither, and counts if named.
// FAULT_AT     which of them, from 1; FAULT_EVER=1: all from that one on, and a process that tries too often is killed.
// FAULT_HOW    error:N   the call fails with errno N.
//              short     a read or write transfers half.
//              end       it transfers nothing: a read says that the file has ended.
//              cut:N     the file is made N bytes long first.
//              signal:N  the process gets signal N first.
//              kill      the process is killed before the call.
//              torn      it is killed after half of a write.
//              lose      a sync reports EIO, and what it was to make durable are zeros; later syncs do not know of it.
// FAULT_LOG    a file that gets a line for each call that counts when it is done: its name, path, other path, offset,
//              bytes, inode and result, with tabs between; with FAULT_DATA=1 also what was written, in hexadecimal.
// FAULT_NO_EXCHANGE=1  two names cannot be exchanged (EINVAL, as on NFS).
//
// The variables are looked up at each call, so a process can set its own; fault_begin counts from 1 again. A call that
// counts is made under a lock, so that the log has the calls as they happened. What is written through a mapping is not
// seen.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PATH 4352
#define PAGE 4096
#define PATIENCE 20000
#define SEEN 65536

enum fate { ALL, HALF, NONE, TORN, FAIL };

struct call {
    const char *name, *kind, *class;
    char path[PATH], other[PATH];
    int fd, parts;
    long long offset, nbytes;
    unsigned long inode;
    const struct iovec *data;
    int below;
    long number;
    enum fate fate;
};

static long count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *journal;
static struct { unsigned long inode; long long from, to; } unsynced[SEEN];
static int n_unsynced;

void fault_begin(void) { count = 0; }
long fault_count(void) { return count; }

// -- which call it is -------------------------------------------------------------------------------------------------

static void link_target(char *path, const char *where, int fd) {
    char link[64];
    snprintf(link, sizeof link, where, fd);
    ssize_t n = readlink(link, path, 4095);
    path[n > 0 ? n : 0] = 0;
}

static void path_at(char *path, int folder, const char *name) {
    if (name[0] == '/') {
        snprintf(path, PATH, "%s", name);
        return;
    }
    link_target(path, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    size_t n = strlen(path);
    snprintf(path + n, PATH - n, "/%s", name);
}

static struct call of_file(const char *name, const char *kind, const char *class, int fd) {
    struct call c = {.name = name, .kind = kind, .class = class, .fd = fd};
    link_target(c.path, "/proc/self/fd/%d", fd);
    return c;
}

static struct call of_name(const char *name, const char *kind, const char *class, int folder, const char *path) {
    struct call c = {.name = name, .kind = kind, .class = class, .fd = -1};
    path_at(c.path, folder, path);
    return c;
}

static struct call of_two(const char *name, const char *kind, int a, const char *from, int b, const char *to) {
    struct call c = of_name(name, kind, "change", a, from);
    path_at(c.other, b, to);
    return c;
}

static struct call of_span(const char *name, const char *kind, int fd, long long offset, long long nbytes) {
    struct call c = of_file(name, kind, "change", fd);
    c.offset = offset, c.nbytes = nbytes;
    return c;
}

static int is_below(const char *path) {
    const char *below = getenv("FAULT_BELOW");
    return below && strncmp(path, below, strlen(below)) == 0;
}

static int is_one_of(const char *words, const char *word) {
    const char *at = words;
    size_t n = strlen(word);
    while ((at = strstr(at, word)))
        if ((at == words || at[-1] == ',') && (at[n] == ',' || !at[n]))
            return 1;
        else
            at += n;
    return 0;
}

static unsigned long inode_of(const struct call *c) {
    struct stat status;
    return (c->fd >= 0 ? fstat(c->fd, &status) : lstat(c->path, &status)) == 0 ? status.st_ino : 0;
}

// -- what becomes of it -----------------------------------------------------------------------------------------------

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

static void forget(unsigned long inode) {
    for (int i = n_unsynced - 1; i >= 0; i--)
        if (unsynced[i].inode == inode)
            unsynced[i] = unsynced[--n_unsynced];
}

// Zeros over what was written to the file in the range of a sync and is not synced; a sync without a range has all.
static void lose(const struct call *c) {
    char path[64];
    static const char zeros[PAGE];
    snprintf(path, sizeof path, "/proc/self/fd/%d", c->fd);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY);
    long long end = c->nbytes ? c->offset + c->nbytes : 1LL << 62;
    for (int i = 0; fd >= 0 && i < n_unsynced; i++) {
        long long from = unsynced[i].from > c->offset ? unsynced[i].from : c->offset;
        long long to = unsynced[i].to < end ? unsynced[i].to : end;
        for (; unsynced[i].inode == c->inode && from < to; from += PAGE)
            syscall(SYS_pwrite64, fd, zeros, to - from < PAGE ? to - from : PAGE, from);
    }
    if (fd >= 0)
        syscall(SYS_close, fd);
    forget(c->inode);
    errno = EIO;
}

static enum fate decide(struct call *c) {
    const char *how = getenv("FAULT_HOW"), *at = getenv("FAULT_AT");
    long first = at ? atol(at) : 0;
    if (!how || !first || (c->number != first && !(getenv("FAULT_EVER") && c->number > first)))
        return ALL;
    if (c->number > first + PATIENCE)
        die();
    const char *colon = strchr(how, ':');
    long number = colon ? atol(colon + 1) : 0;
    if (!strncmp(how, "error", 5)) {
        errno = (int)number;
        return FAIL;
    }
    if (!strcmp(how, "lose") && !strcmp(c->kind, "sync")) {
        lose(c);
        return FAIL;
    }
    if (!strncmp(how, "cut", 3) && truncate(c->path, number) != 0)
        abort();
    if (!strncmp(how, "signal", 6))
        kill(getpid(), (int)number);
    if (!strcmp(how, "kill") || (!strcmp(how, "torn") && !c->parts))
        die();
    return !strcmp(how, "end") ? NONE : !strcmp(how, "short") ? HALF : !strcmp(how, "torn") ? TORN : ALL;
}

static enum fate begin(struct call *c) {
    const char *which = getenv("FAULT_CALL");
    c->below = which && (is_below(c->path) || (c->other[0] && is_below(c->other)));
    if (!c->below)
        return c->fate = ALL;
    pthread_mutex_lock(&lock);
    c->inode = inode_of(c);
    if (c->offset < 0)
        c->offset = lseek(c->fd, 0, fcntl(c->fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    if (is_one_of(which, c->name) || is_one_of(which, c->kind) || is_one_of(which, c->class)) {
        c->number = __sync_add_and_fetch(&count, 1);
        c->fate = decide(c);
    }
    return c->fate;
}

static void report(const struct call *c, long long result) {
    const char *path = getenv("FAULT_LOG");
    if (!path || (!journal && !(journal = fopen(path, "ae"))))
        return;
    fprintf(journal, "%s\t%s\t%s\t%lld\t%lld\t%lu\t%lld\t", c->name, c->path, c->other, c->offset, c->nbytes, c->inode,
            result);
    long long left = getenv("FAULT_DATA") && !strcmp(c->class, "change") ? result : 0;
    for (int part = 0; part < c->parts && left > 0; part++)
        for (size_t i = 0; i < c->data[part].iov_len && left > 0; i++, left--)
            fprintf(journal, "%02x", ((const unsigned char *)c->data[part].iov_base)[i]);
    fputc('\n', journal);
    fflush(journal);
}

static long long end(struct call *c, long long result) {
    int error = errno;
    if (!c->below)
        return result;
    if (c->fate == TORN)
        die();
    if (!c->inode && result >= 0)
        c->inode = inode_of(c);
    if (c->parts && result > 0 && !strcmp(c->class, "change") && n_unsynced < SEEN) {
        unsynced[n_unsynced].inode = c->inode, unsynced[n_unsynced].from = c->offset;
        unsynced[n_unsynced++].to = c->offset + result;
    }
    if (!strcmp(c->name, "fsync") || !strcmp(c->name, "fdatasync"))
        forget(c->inode);
    if (c->number)
        report(c, result);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

// How many of n bytes are transferred; a direct transfer is cut at a page.
static size_t share(const struct call *c, size_t n) {
    size_t part = c->fate == NONE ? 0 : c->fate == HALF || c->fate == TORN ? (n + 1) / 2 : n;
    return part < n && fcntl(c->fd, F_GETFL) & O_DIRECT ? part - part % PAGE : part;
}

// -- the calls --------------------------------------------------------------------------------------------------------

#define NEXT(result, name, ...) \
    static result (*next)(__VA_ARGS__); \
    if (!next) \
        next = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define ARGS(...) __VA_ARGS__

// Types, parameters and arguments have their parentheses.
#define WRAP(name, types, params, args, made) \
    int name params { \
        static int(*next) types; \
        if (!next) \
            next = (int(*) types)dlsym(RTLD_NEXT, #name); \
        struct call c = made; \
        begin(&c); \
        return (int)end(&c, c.fate >= FAIL ? -1 : next args); \
    }

// Of a call that did not fail, the descriptor.
#define OPEN(name, at, types, params, args) \
    int name(params, int flags, ...) { \
        NEXT(int, name, types, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        struct call c = of_name("open", "open", flags & (O_CREAT | O_TRUNC) ? "change" : "look", at, path); \
        c.nbytes = flags; \
        begin(&c); \
        return (int)end(&c, c.fate >= FAIL ? -1 : next(args, flags, mode)); \
    }
OPEN(open, AT_FDCWD, const char *, const char *path, path)
OPEN(open64, AT_FDCWD, const char *, const char *path, path)
OPEN(openat, at, ARGS(int, const char *), ARGS(int at, const char *path), ARGS(at, path))
OPEN(openat64, at, ARGS(int, const char *), ARGS(int at, const char *path), ARGS(at, path))

#define TRANSFER(name, label, class_, buffer, at, types, params, args) \
    ssize_t name(int fd, buffer bytes, size_t n params) { \
        NEXT(ssize_t, name, int, buffer, size_t types); \
        struct iovec data = {(void *)bytes, n}; \
        struct call c = of_span(label, label, fd, at, n); \
        c.class = class_, c.data = &data, c.parts = 1; \
        begin(&c); \
        return end(&c, c.fate >= FAIL ? -1 : next(fd, bytes, share(&c, n) args)); \
    }
#define NOTHING
#define OFFSET(type) ARGS(, type offset)
TRANSFER(read, "read", "look", void *, -1, NOTHING, NOTHING, NOTHING)
TRANSFER(pread, "read", "look", void *, offset, ARGS(, off_t), OFFSET(off_t), ARGS(, offset))
TRANSFER(pread64, "read", "look", void *, offset, ARGS(, off64_t), OFFSET(off64_t), ARGS(, offset))
TRANSFER(write, "write", "change", const void *, -1, NOTHING, NOTHING, NOTHING)
TRANSFER(pwrite, "pwrite", "change", const void *, offset, ARGS(, off_t), OFFSET(off_t), ARGS(, offset))
TRANSFER(pwrite64, "pwrite", "change", const void *, offset, ARGS(, off64_t), OFFSET(off64_t), ARGS(, offset))

// CPython reads with preadv2 where the system has it, with preadv elsewhere. Cut short, it is of the first part alone.
#define VECTOR(name, label, class_, type, types, params, args) \
    ssize_t name(int fd, const struct iovec *data, int parts, type offset params) { \
        NEXT(ssize_t, name, int, const struct iovec *, int, type types); \
        struct call c = of_span(label, label, fd, offset, data->iov_len); \
        c.class = class_, c.data = data, c.parts = parts; \
        begin(&c); \
        struct iovec less = {data->iov_base, share(&c, data->iov_len)}; \
        return end(&c, c.fate >= FAIL  ? -1 \
                       : c.fate == ALL ? next(fd, data, parts, offset args) \
                                       : next(fd, &less, 1, offset args)); \
    }
#define VECTORS(name, name64, name2, name64v2, label, class_) \
    VECTOR(name, label, class_, off_t, NOTHING, NOTHING, NOTHING) \
    VECTOR(name64, label, class_, off64_t, NOTHING, NOTHING, NOTHING) \
    VECTOR(name2, label, class_, off_t, ARGS(, int), ARGS(, int flags), ARGS(, flags)) \
    VECTOR(name64v2, label, class_, off64_t, ARGS(, int), ARGS(, int flags), ARGS(, flags))
VECTORS(preadv, preadv64, preadv2, preadv64v2, "read", "look")
VECTORS(pwritev, pwritev64, pwritev2, pwritev64v2, "pwrite", "change")

#define OF_FD(name, kind) WRAP(name, (int), (int fd), (fd), of_file(#name, kind, "change", fd))
OF_FD(fsync, "sync")
OF_FD(fdatasync, "sync")
WRAP(sync_file_range, (int, off64_t, off64_t, unsigned), (int fd, off64_t from, off64_t n, unsigned flags),
     (fd, from, n, flags), of_span("sync_file_range", "sync", fd, from, n))
#define TRUNCATE(name, type) \
    WRAP(name, (int, type), (int fd, type n), (fd, n), of_span("ftruncate", "size", fd, 0, n))
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
#define ALLOCATE(name, type) \
    WRAP(name, (int, int, type, type), (int fd, int mode, type from, type n), (fd, mode, from, n), \
         of_span("fallocate", "size", fd, from, n))
ALLOCATE(fallocate, off_t)
ALLOCATE(fallocate64, off64_t)

// It returns the error.
#define POSIX_ALLOCATE(name, type) \
    int name(int fd, type from, type n) { \
        NEXT(int, name, int, type, type); \
        struct call c = of_span("fallocate", "size", fd, from, n); \
        begin(&c); \
        return (int)end(&c, c.fate >= FAIL ? errno : next(fd, from, n)); \
    }
POSIX_ALLOCATE(posix_fallocate, off_t)
POSIX_ALLOCATE(posix_fallocate64, off64_t)

#define HERE AT_FDCWD
#define TWO_NAMES (const char *from, const char *to)
#define TWO_PLACES int a, const char *from, int b, const char *to
WRAP(rename, TWO_NAMES, TWO_NAMES, (from, to), of_two("rename", "rename", HERE, from, HERE, to))
WRAP(renameat, (TWO_PLACES), (TWO_PLACES), (a, from, b, to), of_two("rename", "rename", a, from, b, to))
WRAP(link, TWO_NAMES, TWO_NAMES, (from, to), of_two("link", "link", HERE, from, HERE, to))
WRAP(linkat, (TWO_PLACES, int), (TWO_PLACES, int flags), (a, from, b, to, flags),
     of_two("link", "link", a, from, b, to))

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    NEXT(int, renameat2, int, const char *, int, const char *, unsigned);
    struct call c = of_two(flags & RENAME_EXCHANGE ? "exchange" : "rename", "rename", a, from, b, to);
    if (flags & RENAME_EXCHANGE && getenv("FAULT_NO_EXCHANGE")) {
        errno = EINVAL;
        return -1;
    }
    begin(&c);
    return (int)end(&c, c.fate >= FAIL ? -1 : next(a, from, b, to, flags));
}

#define ONE_NAME(label, at) of_name(label, label, "change", at, path)
WRAP(unlink, (const char *), (const char *path), (path), ONE_NAME("unlink", HERE))
WRAP(unlinkat, (int, const char *, int), (int at, const char *path, int flags), (at, path, flags),
     ONE_NAME(flags & AT_REMOVEDIR ? "rmdir" : "unlink", at))
WRAP(rmdir, (const char *), (const char *path), (path), ONE_NAME("rmdir", HERE))
WRAP(mkdir, (const char *, mode_t), (const char *path, mode_t mode), (path, mode), ONE_NAME("mkdir", HERE))
WRAP(mkdirat, (int, const char *, mode_t), (int at, const char *path, mode_t mode), (at, path, mode),
     ONE_NAME("mkdir", at))
WRAP(symlink, TWO_NAMES, (const char *to, const char *path), (to, path), ONE_NAME("symlink", HERE))
WRAP(symlinkat, (const char *, int, const char *), (const char *to, int at, const char *path), (to, at, path),
     ONE_NAME("symlink", at))
WRAP(utimensat, (int, const char *, const struct timespec *, int),
     (int at, const char *path, const struct timespec times[2], int flags), (at, path, times, flags),
     ONE_NAME("times", at))
WRAP(futimens, (int, const struct timespec *), (int fd, const struct timespec times[2]), (fd, times),
     of_file("times", "times", "change", fd))

// Whatever it says, the descriptor is gone.
int close(int fd) {
    NEXT(int, close, int);
    struct call c = of_file("close", "close", "neither", fd);
    begin(&c);
    int error = errno, result = next(fd);
    c.fd = -1;
    errno = error;
    return (int)end(&c, c.fate >= FAIL ? -1 : result);
}

DIR *opendir(const char *path) {
    NEXT(DIR *, opendir, const char *);
    struct call c = of_name("list", "list", "look", HERE, path);
    begin(&c);
    DIR *folder = c.fate >= FAIL ? NULL : next(path);
    end(&c, folder ? 0 : -1);
    return folder;
}
