/* shmcow: sleep until one of several words changes, or until somebody in this process rings. See shmcow_os.h.
 *
 * Purpose     A reader sleeps on the `current` word of its store, which a writer in another process wakes. Closing a
 *             reader, or adding a store to those that a thread watches, must end such a sleep from inside the process,
 *             and may not disturb the readers of other processes: hence a second word, private to the process.
 * Invariants  1. No wake-up is lost: whoever sleeps says what it has seen of each word, and the kernel compares before it
 *                puts anybody to sleep (a ring between the look and the sleep is seen as a change).
 *             2. A sleep ends after its time, whatever happens: a writer may die between flip and wake, and a hostile
 *                reader may requeue sleepers. Callers sleep in slices of SHMCOW_SLICE, and look again.
 */
#include "shmcow_os.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#define FUTEX_IS_32_BITS 2u

static _Atomic uint32_t rings;
static _Atomic int no_waitv; /* an old kernel, or a sandbox that knows no futex_waitv */

uint32_t shmcow_rings(void)
{
    /* SYNC ring: acquire; pairs with the release in shmcow_ring: who sees the ring sees what was rung for */
    return atomic_load_explicit(&rings, memory_order_acquire);
}

void shmcow_ring(void)
{
    /* SYNC ring: release; pairs with the acquire in shmcow_rings */
    atomic_fetch_add_explicit(&rings, 1, memory_order_release);
    (void)syscall(SYS_futex, &rings, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL, 0);
}

static struct timespec after(double seconds)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    long long ns = t.tv_nsec + (long long)((seconds - (double)(long long)seconds) * 1e9);
    t.tv_sec += (time_t)seconds + (time_t)(ns / 1000000000);
    t.tv_nsec = (long)(ns % 1000000000);
    return t;
}

static bool changed(const shmcow_sleep *words, uint32_t n)
{
    for (uint32_t k = 0; k < n; k++) {
        const _Atomic uint32_t *word = (const _Atomic uint32_t *)(uintptr_t)words[k].address;
        if (atomic_load_explicit(word, memory_order_relaxed) != (uint32_t)words[k].value)
            return true;
    }
    return false;
}

/* Without futex_waitv one word can be slept on, and the others are looked at fifty times a second. */
static int sleep_on_one(const shmcow_sleep *words, uint32_t n, const struct timespec *until)
{
    for (;;) {
        struct timespec now, slice = {.tv_nsec = 20000000};
        clock_gettime(CLOCK_MONOTONIC, &now);
        long long left = (until->tv_sec - now.tv_sec) * 1000000000LL + until->tv_nsec - now.tv_nsec;
        if (changed(words, n))
            return 0;
        if (left <= 0)
            return 1;
        if (left < slice.tv_nsec)
            slice.tv_nsec = (long)left;
        int operation = words[0].flags & FUTEX_PRIVATE_FLAG ? FUTEX_WAIT | FUTEX_PRIVATE_FLAG : FUTEX_WAIT;
        if (syscall(SYS_futex, (uint32_t *)(uintptr_t)words[0].address, operation, (uint32_t)words[0].value, &slice, NULL,
                    0) < 0 && errno != ETIMEDOUT)
            return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    }
}

/* Sleep until one of the `n` words, or the count of rings, is not what it was, or a signal comes: 0; or until the time is
   up: 1. `words` has room for one more than `n`. Whoever was woken looks for himself what has changed. */
int shmcow_sleep_on(shmcow_sleep *words, uint32_t n, uint32_t rings_seen, double seconds)
{
    struct timespec until = after(seconds);
    words[n] = (shmcow_sleep){.value = rings_seen, .address = (uint64_t)(uintptr_t)&rings,
                              .flags = FUTEX_IS_32_BITS | FUTEX_PRIVATE_FLAG};
    if (!atomic_load_explicit(&no_waitv, memory_order_relaxed)) {
        if (syscall(SYS_futex_waitv, words, n + 1, 0, &until, CLOCK_MONOTONIC) >= 0)
            return 0;
        if (errno == ETIMEDOUT)
            return changed(words, n + 1) ? 0 : 1;
        if (errno == EAGAIN || errno == EINTR)
            return 0;
        if (errno == ENOMEM)
            return -errno;
        /* ENOSYS, or whatever a sandbox answers that does not know the call (EPERM, EACCES) */
        atomic_store_explicit(&no_waitv, 1, memory_order_relaxed);
    }
    return sleep_on_one(words, n + 1, &until);
}
