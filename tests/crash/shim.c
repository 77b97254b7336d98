/* Faults between the gateway and its disk, and a wall clock that jumps, preloaded into the gateway alone.
 *
 * Writes and syncs of files below DISK_FAULT_DIR are counted in DISK_FAULT_COUNTS (two 64-bit numbers: writes, syncs).
 * DISK_FAULT_DO says what happens to those whose number lies between DISK_FAULT_FROM and DISK_FAULT_TO, as long as the
 * file DISK_FAULT_WHILE exists (always, where none is named):
 *
 *   kill-before-sync, kill-after-sync, kill-before-write, kill-after-write   SIGKILL
 *   torn-write      half of it is written, then SIGKILL
 *   short-write     half of it is written, and that is said
 *   short-enospc    half of the first one is written, and the rest and all that follow find the disk full
 *   enospc, eio     writes fail
 *   sync-eio        syncs fail
 *
 * The file CLOCK_SHIFT holds one 64-bit number of seconds by which the wall clock is wrong; it may change at any time.
 * The monotonic clock is right.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct counts {
    _Atomic uint64_t writes;
    _Atomic uint64_t syncs;
};

static struct counts own, *counts = &own;
static char dir[PATH_MAX];
static size_t dir_len;
static _Atomic int64_t right, *shift = &right;
static const char *fault = "", *while_file;
static uint64_t from = 1, to = UINT64_MAX;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    return dlsym(RTLD_NEXT, name);
}

static uint64_t number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void begin_clock(void) {
    const char *file = getenv("CLOCK_SHIFT");
    int fd = file ? open(file, O_RDONLY) : -1;
    if (fd < 0) return;
    void *shared = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, fd, 0);
    if (shared != MAP_FAILED) shift = shared;
    close(fd);
}

__attribute__((constructor)) static void begin(void) {
    begin_clock();
    const char *named = getenv("DISK_FAULT_DIR"), *file = getenv("DISK_FAULT_COUNTS");
    if (!named) return;
    strncpy(dir, named, sizeof dir - 1);
    dir_len = strlen(dir);
    if (getenv("DISK_FAULT_DO")) fault = getenv("DISK_FAULT_DO");
    while_file = getenv("DISK_FAULT_WHILE");
    from = number("DISK_FAULT_FROM", 1);
    to = number("DISK_FAULT_TO", UINT64_MAX);
    int fd = file ? open(file, O_RDWR | O_CREAT, 0600) : -1;
    if (fd < 0 || syscall(SYS_ftruncate, fd, (long)sizeof *counts)) return;
    void *shared = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared != MAP_FAILED) counts = shared;
    close(fd);
}

static int is_ours(int fd) {
    char link[64] = "/proc/self/fd/", path[PATH_MAX], digits[16];
    int at = 0, n = fd;
    if (!dir_len || fd < 0) return 0;
    do digits[at++] = '0' + n % 10; while (n /= 10);
    char *end = link + strlen(link);
    while (at) *end++ = digits[--at];
    *end = 0;
    ssize_t len = readlink(link, path, sizeof path - 1);
    /* The index of the log is made anew at each start, in the room that its forerunner has just given back. */
    if (len > 4 && !memcmp(path + len - 4, "-shm", 4) && strstr(fault, "enospc")) return 0;
    return len > (ssize_t)dir_len && !memcmp(path, dir, dir_len) && path[dir_len] == '/';
}

static int is_on(const char *name, uint64_t n) {
    return !strcmp(fault, name) && n >= from && n <= to && (!while_file || !access(while_file, F_OK));
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static int fails(int error) {
    errno = error;
    return -1;
}

/* What is to be done with a write of `len` bytes: how many of them to write. -1: fail with errno. */
static ssize_t allowed(uint64_t n, size_t len) {
    static _Atomic int began;
    size_t half = len > 1 ? len / 2 : len;
    if (is_on("kill-before-write", n)) die();
    if (is_on("enospc", n)) return fails(ENOSPC);
    if (is_on("eio", n)) return fails(EIO);
    if (is_on("short-enospc", n) && atomic_exchange(&began, 1)) return fails(ENOSPC);
    if (is_on("short-enospc", n) || is_on("short-write", n) || is_on("torn-write", n)) return (ssize_t)half;
    return (ssize_t)len;
}

static void written(uint64_t n) {
    int error = errno;
    if (is_on("kill-after-write", n) || is_on("torn-write", n)) die();
    errno = error;
}

#define WRITE(fd, len, call_whole, call_part)                                                                         \
    if (!is_ours(fd)) return call_whole;                                                                              \
    uint64_t n = atomic_fetch_add(&counts->writes, 1) + 1;                                                            \
    ssize_t may = allowed(n, len);                                                                                    \
    if (may < 0) return -1;                                                                                           \
    ssize_t done = (size_t)may == (size_t)(len) ? call_whole : call_part;                                             \
    written(n);                                                                                                       \
    return done

static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return sum;
}

/* Of a gathered write, a part is what fits into its first buffer. */
static size_t first(const struct iovec *parts, ssize_t may) {
    return parts->iov_len < (size_t)may ? parts->iov_len : (size_t)may;
}

ssize_t write(int fd, const void *buffer, size_t len) {
    WRITE(fd, len, REAL(write)(fd, buffer, len), REAL(write)(fd, buffer, (size_t)may));
}

ssize_t pwrite(int fd, const void *buffer, size_t len, off_t at) {
    WRITE(fd, len, REAL(pwrite)(fd, buffer, len, at), REAL(pwrite)(fd, buffer, (size_t)may, at));
}

ssize_t pwrite64(int fd, const void *buffer, size_t len, off64_t at) {
    WRITE(fd, len, REAL(pwrite64)(fd, buffer, len, at), REAL(pwrite64)(fd, buffer, (size_t)may, at));
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    WRITE(fd, total(parts, count), REAL(writev)(fd, parts, count),
          REAL(write)(fd, parts->iov_base, first(parts, may)));
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    WRITE(fd, total(parts, count), REAL(pwritev)(fd, parts, count, at),
          REAL(pwrite)(fd, parts->iov_base, first(parts, may), at));
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    WRITE(fd, total(parts, count), REAL(pwritev64)(fd, parts, count, at),
          REAL(pwrite64)(fd, parts->iov_base, first(parts, may), at));
}

/* Files that grow are written to as well. */
#define GROW(fd, grows, call, failed)                                                                                 \
    if (!is_ours(fd)) return call;                                                                                    \
    uint64_t n = atomic_fetch_add(&counts->writes, 1) + 1;                                                            \
    if (is_on("kill-before-write", n)) die();                                                                         \
    if (is_on("eio", n)) return failed(EIO);                                                                          \
    if ((grows) && (is_on("enospc", n) || is_on("short-enospc", n))) return failed(ENOSPC);                           \
    int done = call;                                                                                                  \
    written(n);                                                                                                       \
    return done

static int grows(int fd, off64_t to) {
    struct stat now;
    return fstat(fd, &now) || to > now.st_size;
}

int ftruncate(int fd, off_t len) {
    GROW(fd, grows(fd, len), REAL(ftruncate)(fd, len), fails);
}

int ftruncate64(int fd, off64_t len) {
    GROW(fd, grows(fd, len), REAL(ftruncate64)(fd, len), fails);
}

int fallocate(int fd, int mode, off_t at, off_t len) {
    GROW(fd, 1, REAL(fallocate)(fd, mode, at, len), fails);
}

int fallocate64(int fd, int mode, off64_t at, off64_t len) {
    GROW(fd, 1, REAL(fallocate64)(fd, mode, at, len), fails);
}

int posix_fallocate(int fd, off_t at, off_t len) {
    GROW(fd, 1, REAL(posix_fallocate)(fd, at, len), (int));
}

int posix_fallocate64(int fd, off64_t at, off64_t len) {
    GROW(fd, 1, REAL(posix_fallocate64)(fd, at, len), (int));
}

#define SYNC(fd, call)                                                                                                \
    if (!is_ours(fd)) return call;                                                                                    \
    uint64_t n = atomic_fetch_add(&counts->syncs, 1) + 1;                                                             \
    if (is_on("kill-before-sync", n)) die();                                                                          \
    if (is_on("sync-eio", n)) return fails(EIO);                                                                      \
    int done = call;                                                                                                  \
    if (is_on("kill-after-sync", n)) die();                                                                           \
    return done

int fsync(int fd) {
    SYNC(fd, REAL(fsync)(fd));
}

int fdatasync(int fd) {
    SYNC(fd, REAL(fdatasync)(fd));
}

int sync_file_range(int fd, off64_t at, off64_t len, unsigned flags) {
    SYNC(fd, REAL(sync_file_range)(fd, at, len, flags));
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static __typeof__(&clock_gettime) original;
    if (!original) original = REAL(clock_gettime);
    int done = original(clock, now);
    if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static __typeof__(&gettimeofday) original;
    if (!original) original = REAL(gettimeofday);
    int done = original(now, zone);
    if (!done && now) now->tv_sec += *shift;
    return done;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
