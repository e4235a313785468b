/* shmcow: the system calls that Python does not offer, or not safely enough. Each returns 0 or more, or -errno.
 *
 * Purpose     File locks on open file descriptions, a file that appears whole or not at all, read-only maps, sleeping
 *             until a word changes, and descriptors that survive fork() and daemonizers.
 * Invariants  1. No Python here: callers may run this with or without the interpreter lock.
 *             2. A forked child never unlocks what its parent locked: it closes (see shmcow_fd). Nor can it write what
 *                its parent may write, unless it may do so itself.
 *             3. `prepare` takes no mutex, so fork() can never dead-lock here; the list of descriptors is only grown.
 */
#ifndef SHMCOW_OS_H
#define SHMCOW_OS_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shmcow_layout.h"

/* ---- descriptors that know about fork ---- */

/* One descriptor of this process. Nodes are never freed, only used again, so that a child may walk the list at any
   moment at which some thread of its parent forked. dev and ino tell whether the number still means our file. */
typedef struct shmcow_fd {
    struct shmcow_fd *next;
    _Atomic int taken;
    _Atomic int fd;
    dev_t dev;
    ino_t ino;
    _Atomic(void *) map; /* a writable map that no child may have, or NULL */
    size_t map_bytes;
} shmcow_fd;

typedef struct {
    _Atomic(shmcow_fd *) all;
    _Atomic uint32_t forks;    /* how many forks lie between this process and the one that loaded the module */
    _Atomic uint32_t started;  /* forks begun in this process */
    _Atomic uint32_t finished; /* forks that have returned in this process */
} shmcow_process;

extern shmcow_process shmcow_this_process;

int shmcow_watch_forks(void);
uint64_t shmcow_fork_stamp(void);
bool shmcow_no_fork_since(uint64_t stamp);
shmcow_fd *shmcow_fd_take(void);
void shmcow_fd_release(shmcow_fd *node);
int shmcow_fd_open(shmcow_fd *node, const char *path, int flags);
void shmcow_fd_close(shmcow_fd *node);
bool shmcow_fd_valid(const shmcow_fd *node);

static inline uint32_t shmcow_forks(void)
{
    return atomic_load_explicit(&shmcow_this_process.forks, memory_order_relaxed);
}

/* ---- locks and markers ---- */

static inline int shmcow_lock_byte(int fd, short type, uint64_t offset)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    int r;
    do
        r = fcntl(fd, F_OFD_SETLK, &lock);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

/* Does some other open file description have a lock among these bytes? 1, and the first byte of one such lock that is
   among them; 0: none. */
static inline int shmcow_test_bytes(int fd, uint64_t offset, uint64_t count, uint64_t *found)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = (off_t)count};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    *found = (uint64_t)lock.l_start > offset ? (uint64_t)lock.l_start : offset; /* a lock may begin before them */
    return lock.l_type != F_UNLCK;
}

static inline int shmcow_test_byte(int fd, uint64_t offset)
{
    uint64_t found;
    return shmcow_test_bytes(fd, offset, 1, &found);
}

/* ---- files ---- */

/* Is `path` the file with this device and inode? 1, 0, or -errno: -ENOENT when there is none. */
static inline int shmcow_same_file(const char *path, dev_t dev, ino_t ino)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return -errno;
    return st.st_dev == dev && st.st_ino == ino;
}

static inline int shmcow_write_all(int fd, const void *data, size_t length)
{
    const char *p = data;
    while (length > 0) {
        ssize_t n = write(fd, p, length); /* stops at 0x7ffff000 bytes by itself */
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        p += n;
        length -= (size_t)n;
    }
    return 0;
}

/* Make `path` appear with all its bytes and its permissions, or not at all. -EEXIST if it is there already.
   uid, gid: (uid_t)-1 and (gid_t)-1 leave the owner alone. */
static inline int shmcow_create_whole(const char *directory, const char *path, const void *data, size_t length,
                                      mode_t mode, uid_t uid, gid_t gid)
{
    char self[64];
    int r = 0;
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    r = shmcow_write_all(fd, data, length);
    if (r == 0 && (uid != (uid_t)-1 || gid != (gid_t)-1) && fchown(fd, uid, gid) < 0)
        r = -errno;
    if (r == 0 && fchmod(fd, mode) < 0)
        r = -errno;
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (r == 0 && linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0)
        r = -errno;
    close(fd);
    return r;
}

/* Give up the numbers 0 to 2 for a higher one: in a process that has closed its standard descriptors whoever prints
   would write into our file, and whoever opens /dev/null there, as daemonizers do, would close it. -> fd, or -1 */
static inline int shmcow_above_standard(int fd)
{
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    int higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int error = errno;
    close(fd);
    errno = error;
    return higher;
}

/* Open a regular file, whatever else has that name: no symlink is followed and no FIFO waited for. -> fd */
static inline int shmcow_open_regular(const char *path, int flags, struct stat *st)
{
    int fd = shmcow_above_standard(open(path, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
    if (fd < 0)
        return -errno;
    int r = fstat(fd, st) < 0 ? -errno : S_ISREG(st->st_mode) ? 0 : -EMEDIUMTYPE;
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

static inline int shmcow_map(int fd, size_t length, bool writable, void **out)
{
    void *at = mmap(NULL, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    *out = at;
    return 0;
}

/* ---- sleep and wake ---- */

/* The low half of `current`: what changes with every version. */
static inline const uint32_t *shmcow_futex_word(const shmcow_header *h)
{
    const uint32_t *halves = (const uint32_t *)(const void *)&h->current;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return halves + 1;
#else
    return halves;
#endif
}

static inline void shmcow_futex_wake(const shmcow_header *h)
{
    (void)syscall(SYS_futex, shmcow_futex_word(h), FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* One word to sleep on, as futex_waitv(2) wants it (Linux 5.16; older kernel headers lack it). */
typedef struct {
    uint64_t value; /* sleep only while the word is this */
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
} shmcow_sleep;
#define SHMCOW_SLEEPS 128u /* the kernel's limit */
#ifndef SHMCOW_SLICE
#define SHMCOW_SLICE 1.0 /* seconds: how long a lost wake-up can go unnoticed; test builds wait longer */
#endif
static_assert(sizeof(shmcow_sleep) == 24, "the kernel's struct futex_waitv: 24 bytes");

void shmcow_ring(void);
uint32_t shmcow_rings(void);
int shmcow_sleep_on(shmcow_sleep *words, uint32_t n, uint32_t rings, double seconds);

static inline shmcow_sleep shmcow_sleep_on_current(const shmcow_header *h, uint64_t current)
{
    return (shmcow_sleep){.value = (uint32_t)current, .address = (uint64_t)(uintptr_t)shmcow_futex_word(h), .flags = 2};
}

#endif
