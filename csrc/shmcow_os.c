/* shmcow: descriptors that survive fork() and daemonizers. See shmcow_os.h.
 *
 * Purpose     A forked child inherits its parent's open file descriptions, and with them the parent's markers and
 *             writer lock: they would outlive the parent. The child must close them, at once, and must never unlock
 *             them, which would take them from its parent. Servers that fork in C do not run Python's hooks, so this
 *             is done by pthread_atfork.
 * Invariants  1. A node is complete before it is in the list, and stays there.
 *             2. Whoever closes the number takes it out of the node first (exchange), so that it is closed once.
 */
#include "shmcow_os.h"

#include <pthread.h>

shmcow_process shmcow_this_process;

static void before_fork(void)
{
    /* SYNC fork: seq_cst; pairs with the loads in shmcow_fork_stamp and shmcow_no_fork_since */
    atomic_fetch_add_explicit(&shmcow_this_process.started, 1, memory_order_seq_cst);
}

static void in_parent(void)
{
    /* SYNC fork: release; pairs with the first load in shmcow_fork_stamp */
    atomic_fetch_add_explicit(&shmcow_this_process.finished, 1, memory_order_seq_cst);
}

/* Does the number still mean our file? A daemonizer may have closed it, and another file have got it. An fstat() that
   fails for any other reason than that tells nothing: giving up a good descriptor would leave its locks taken. */
static bool means_our_file(const shmcow_fd *node, int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return errno != EBADF;
    return st.st_dev == node->dev && st.st_ino == node->ino;
}

/* close() only if the number still means our file.
   Unlock before you close where a lock must go: fork copies descriptors before memory, so a child may have a copy of a
   descriptor that its memory says is closed already. */
static void close_own(shmcow_fd *node)
{
    /* SYNC node: acquire; pairs with the stores of a number: who sees it sees its device and inode */
    int fd = atomic_exchange_explicit(&node->fd, -1, memory_order_acq_rel);
    if (fd >= 0 && means_our_file(node, fd))
        close(fd);
}

/* A child may give up its rights (a worker of a root master): it must not keep its parent's map of a header. Zeros take
   the place, so that a child that was forked in the middle of a publish comes to its end. */
static void hide_map(shmcow_fd *node)
{
    /* SYNC node: acquire; pairs with the store in ready_map: who sees the map sees its size */
    void *at = atomic_exchange_explicit(&node->map, NULL, memory_order_acq_rel);
    if (at != NULL)
        (void)mmap(at, node->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void in_child(void)
{
    shmcow_process *p = &shmcow_this_process;
    int saved = errno;
    /* SYNC fds: acquire; pairs with the release in shmcow_fd_take: a node in the list is whole */
    for (shmcow_fd *node = atomic_load_explicit(&p->all, memory_order_acquire); node; node = node->next) {
        close_own(node);
        hide_map(node);
    }
    atomic_store_explicit(&p->finished, atomic_load_explicit(&p->started, memory_order_relaxed), memory_order_relaxed);
    atomic_fetch_add_explicit(&p->forks, 1, memory_order_relaxed);
    errno = saved;
}

int shmcow_watch_forks(void)
{
    static _Atomic int watching;
    if (atomic_exchange(&watching, 1))
        return 0;
    int r = pthread_atfork(before_fork, in_parent, in_child);
    if (r != 0)
        atomic_store(&watching, 0);
    return -r;
}

shmcow_fd *shmcow_fd_take(void)
{
    shmcow_process *p = &shmcow_this_process;
    shmcow_fd *node;
    for (node = atomic_load_explicit(&p->all, memory_order_acquire); node; node = node->next) {
        int no = 0;
        /* SYNC node: acquire; pairs with the release in shmcow_fd_release: the last owner has done with it */
        if (atomic_compare_exchange_strong(&node->taken, &no, 1))
            return node;
    }
    node = calloc(1, sizeof *node);
    if (node == NULL)
        return NULL;
    atomic_store(&node->taken, 1);
    atomic_store(&node->fd, -1);
    node->next = atomic_load_explicit(&p->all, memory_order_relaxed);
    /* SYNC fds: release; pairs with the acquire in in_child */
    while (!atomic_compare_exchange_weak_explicit(&p->all, &node->next, node, memory_order_release,
                                                  memory_order_relaxed))
        ;
    return node;
}

void shmcow_fd_release(shmcow_fd *node)
{
    if (node == NULL)
        return;
    close_own(node);
    atomic_store(&node->map, NULL);
    /* SYNC node: release; pairs with the swap of `taken` in shmcow_fd_take */
    atomic_store(&node->taken, 0);
}

void shmcow_fd_close(shmcow_fd *node)
{
    close_own(node);
}

bool shmcow_fd_valid(const shmcow_fd *node)
{
    int fd = atomic_load(&node->fd); /* SYNC node: acquire; pairs with the stores of a number */
    return fd >= 0 && means_our_file(node, fd);
}

/* The number was handed out anew, so whoever else claims it lost it to a daemonizer's closerange(). Without this, two
   nodes on one file would share a description, and exclude nobody. */
static void disown(const shmcow_fd *but, int fd)
{
    /* SYNC fds: acquire; pairs with the release in shmcow_fd_take */
    shmcow_fd *node = atomic_load_explicit(&shmcow_this_process.all, memory_order_acquire);
    for (; node; node = node->next) {
        int same = fd;
        if (node != but)
            (void)atomic_compare_exchange_strong(&node->fd, &same, -1);
    }
}

/* SYNC fork: `started` and `finished` are read before and after, as in a seqlock; pairs with before_fork, in_parent.
   What was opened in between, and is in the list by the time of the second look, has been copied by no fork that would
   not find it there. (A fork in C may run beside us, in a thread that does not have the interpreter lock.) */
uint64_t shmcow_fork_stamp(void)
{
    shmcow_process *p = &shmcow_this_process;
    uint32_t finished = atomic_load_explicit(&p->finished, memory_order_seq_cst);
    uint32_t started = atomic_load_explicit(&p->started, memory_order_seq_cst);
    return (uint64_t)started << 32 | finished;
}

bool shmcow_no_fork_since(uint64_t stamp)
{
    uint32_t started = (uint32_t)(stamp >> 32), finished = (uint32_t)stamp;
    /* SYNC fork: seq_cst; with the store of the number before it, and before_fork: one of the two sees the other */
    return started == finished &&
           atomic_load_explicit(&shmcow_this_process.started, memory_order_seq_cst) == started;
}

/* Open anew, and make sure that no child got a copy of the description before the list knew of it. */
int shmcow_fd_open(shmcow_fd *node, const char *path, int flags)
{
    close_own(node);
    for (;;) {
        struct stat st;
        uint64_t stamp = shmcow_fork_stamp();
        int fd = shmcow_open_regular(path, flags, &st);
        if (fd < 0)
            return fd;
        disown(node, fd);
        node->dev = st.st_dev;
        node->ino = st.st_ino;
        /* SYNC node: release; pairs with close_own, shmcow_fd_valid. SYNC fork: seq_cst, before the second look */
        atomic_store_explicit(&node->fd, fd, memory_order_seq_cst);
        if (shmcow_no_fork_since(stamp))
            return 0;
        close_own(node); /* a child may have inherited this description: never mark anything through it */
        sched_yield();
    }
}
