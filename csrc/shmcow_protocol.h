/* shmcow: the protocol: publish, hold, reclaim, recover, destroy. Read PROTOCOL.md first.
 *
 * Purpose     The algorithm, and only it: no Python, no system call. What it needs of the world (a lock test, a file
 *             made or unlinked) comes through two small tables of functions, so that the extension, the stress
 *             programs, the sanitizers and the fuzzers compile these same lines.
 * Invariants  1. `current` names a generation that is READY or HELD, from the flip until the next flip.
 *             2. A generation that is READY or HELD lists only whole segments, each of them named.
 *             3. A segment is unlinked only when no generation that is not FREE lists it.
 *             4. A version that was READY is never built again under the same number: versions only grow. (An attempt
 *                that failed before READY gives its number to the next one; no reader ever looked at it.)
 *             5. DOOMED is never left but for FREE.
 *             6. One publish for each recover: recover leaves no BUILDING and no READY, which publish relies on.
 * Who writes  Writers, under the writer lock (but for counters). A compare-and-swap makes each change of state all
 *             the same: should the lock ever be broken from outside, one of the two writers is told (SHMCOW_RACED).
 *             Readers write nothing.
 *
 * Each atomic operation whose order matters says `SYNC name`, and its partner says the same name; PROTOCOL.md has the
 * table. SHMCOW_STEP marks the places where a test build may kill the process.
 */
#ifndef SHMCOW_PROTOCOL_H
#define SHMCOW_PROTOCOL_H

#include <errno.h>

#include "shmcow_format.h"

#ifndef SHMCOW_STEP
#define SHMCOW_STEP(name) ((void)0)
#endif

/* Results: 0 or more is success, -errno is the system's, these are the protocol's own. */
enum shmcow_result {
    SHMCOW_OK = 0,
    SHMCOW_EMPTY = -1000,   /* nothing published yet */
    SHMCOW_GONE = -1001,    /* that version cannot be held any more, or never could */
    SHMCOW_ENDED = -1002,   /* the store was destroyed */
    SHMCOW_CORRUPT = -1003, /* the header or an entry contradicts itself */
    SHMCOW_MISSING = -1004, /* a segment that must be there was removed from outside */
    SHMCOW_RACED = -1005,   /* somebody else changed what only the lock's holder may change */
    SHMCOW_CONFLICT = -1006, /* the current version is not the expected one */
    SHMCOW_QUOTA = -1007,   /* above max_total_bytes, and nothing is left to give up */
    SHMCOW_CROWDED = -1008, /* every generation is in use and none can be forced out */
    SHMCOW_MOVED = -1009    /* internal: look at `current` again */
};

typedef struct {
    int (*marked)(void *ctx, uint64_t version);  /* 1: somebody holds it, 0: nobody, or -errno */
    int (*fill)(void *ctx, uint32_t part, uint64_t segment); /* create, fill, seal; goes on where -ENOSPC stopped it */
    int (*unlink)(void *ctx, uint64_t segment);  /* 0 also when it is not there */
    void (*wake)(void *ctx);                     /* everybody who waits on `current` */
} shmcow_writer_ops;

typedef struct {
    void (*mark)(void *ctx, uint64_t version);
    void (*clear)(void *ctx, uint64_t version);
    int (*map)(void *ctx, const shmcow_entry *entry); /* all segments or none; -ENOENT when a name is gone */
    void (*yield)(void *ctx);
} shmcow_reader_ops;

static inline uint64_t shmcow_version_of(uint64_t current) { return current & SHMCOW_VERSION_MAX; }
static inline uint32_t shmcow_index_of(uint64_t current) { return (uint32_t)(current >> SHMCOW_VERSION_BITS); }
static inline uint64_t shmcow_current_word(uint32_t index, uint64_t version)
{
    return (uint64_t)index << SHMCOW_VERSION_BITS | version;
}
static inline uint64_t shmcow_word(uint64_t version, enum shmcow_state state)
{
    return version << SHMCOW_STATE_BITS | (uint64_t)state;
}
static inline uint64_t shmcow_word_version(uint64_t word) { return word >> SHMCOW_STATE_BITS; }
static inline unsigned shmcow_word_state(uint64_t word) { return (unsigned)(word & 0xFFFFu); }

static inline uint64_t shmcow_load_current(const shmcow_header *h)
{
    /* SYNC flip: acquire; pairs with the release in shmcow_flip: who sees the version sees its entry and word */
    return atomic_load_explicit(&h->current, memory_order_acquire);
}

static inline uint64_t shmcow_load_word(const shmcow_header *h, uint32_t i)
{
    /* SYNC state: acquire; pairs with the release in shmcow_advance: who sees a state sees what led to it */
    return atomic_load_explicit(&h->words[i], memory_order_acquire);
}

static inline bool shmcow_openable(uint64_t word, uint64_t version)
{
    unsigned state = shmcow_word_state(word);
    return shmcow_word_version(word) == version && (state == SHMCOW_READY || state == SHMCOW_HELD);
}

/* Is its entry still this version's? CONDEMNED, too: it is judged, and nothing of it has gone. */
static inline bool shmcow_intact(uint64_t word, uint64_t version)
{
    return shmcow_openable(word, version) || word == shmcow_word(version, SHMCOW_CONDEMNED);
}

static inline void shmcow_count(shmcow_header *h, enum shmcow_counter which)
{
    /* figures for people: nothing is ordered by them */
    atomic_fetch_add_explicit(&h->counters[which], 1, memory_order_relaxed);
}

/* ---- entries: copied word by word, as in a seqlock whose sequence number is the generation word ---- */

static inline void shmcow_load_entry(const shmcow_header *h, uint32_t i, shmcow_entry *out)
{
    uint64_t words[SHMCOW_ENTRY_WORDS];
    for (size_t k = 0; k < SHMCOW_ENTRY_WORDS; k++)
        words[k] = atomic_load_explicit(&h->entries[i][k], memory_order_relaxed);
    /* SYNC copy: acquire fence; pairs with the fence in shmcow_store_entry: a copy that holds one word of a later
       entry is followed by a look at a later generation word, which then refuses the copy */
    atomic_thread_fence(memory_order_acquire);
    memcpy(out, words, sizeof words);
}

static inline void shmcow_store_entry(shmcow_header *h, uint32_t i, const shmcow_entry *entry)
{
    uint64_t words[SHMCOW_ENTRY_WORDS];
    memcpy(words, entry, sizeof words);
    /* SYNC copy: release fence; pairs with the fence in shmcow_load_entry. Keeps these stores behind the FREE before */
    atomic_thread_fence(memory_order_release);
    for (size_t k = 0; k < SHMCOW_ENTRY_WORDS; k++)
        atomic_store_explicit(&h->entries[i][k], words[k], memory_order_relaxed);
}

/* ---- the feed's state: two slots, of which the turn word shows one ---- */

/* Copy the slot that is shown. SHMCOW_EMPTY: never fed; SHMCOW_MOVED: it was written over meanwhile; SHMCOW_CORRUPT. */
static inline int shmcow_copy_feed(const shmcow_header *h, const shmcow_crc_table *table, shmcow_feed *out)
{
    uint64_t words[SHMCOW_FEED_WORDS];
    /* SYNC feed: acquire; pairs with the release in shmcow_show_feed: who sees the turn sees its slot */
    uint64_t turn = atomic_load_explicit(&h->feed_turn, memory_order_acquire);
    if (turn == 0)
        return SHMCOW_EMPTY;
    for (size_t k = 0; k < SHMCOW_FEED_WORDS; k++)
        words[k] = atomic_load_explicit(&h->feeds[turn % 2][k], memory_order_relaxed);
    /* SYNC feed: acquire fence; pairs with the fence in shmcow_show_feed: a copy that holds one word of a later state is
       followed by a look at a later turn, which then refuses the copy */
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&h->feed_turn, memory_order_relaxed) != turn)
        return SHMCOW_MOVED;
    memcpy(out, words, sizeof words);
    return shmcow_check_feed(table, out) == SHMCOW_FINE ? SHMCOW_OK : SHMCOW_CORRUPT;
}

/* The same, again while the follower writes: it does so a few times a second, so this ends at once. */
static inline int shmcow_load_feed(const shmcow_header *h, const shmcow_crc_table *table, shmcow_feed *out)
{
    int r = SHMCOW_MOVED;
    for (int left = 64; left > 0 && r == SHMCOW_MOVED; left--)
        r = shmcow_copy_feed(h, table, out);
    return r == SHMCOW_MOVED ? SHMCOW_CORRUPT : r;
}

/* Show a state, under the feed lock: into the slot that is not shown, then turn. A death in the middle leaves the old
   one shown. */
static inline void shmcow_show_feed(shmcow_header *h, const shmcow_crc_table *table, shmcow_feed *feed)
{
    uint64_t words[SHMCOW_FEED_WORDS];
    uint64_t turn = atomic_load_explicit(&h->feed_turn, memory_order_relaxed);
    uint64_t next = turn == UINT64_MAX ? 2 : turn + 1; /* 0 means never; the other slot in any case */
    shmcow_seal_feed(table, feed);
    memcpy(words, feed, sizeof words);
    /* SYNC feed: release fence; pairs with the fence in shmcow_copy_feed. Keeps these stores behind the turn before */
    atomic_thread_fence(memory_order_release);
    for (size_t k = 0; k < SHMCOW_FEED_WORDS; k++)
        atomic_store_explicit(&h->feeds[next % 2][k], words[k], memory_order_relaxed);
    /* SYNC feed: release; pairs with the acquire in shmcow_copy_feed */
    atomic_store_explicit(&h->feed_turn, next, memory_order_release);
}

/* One segment of an entry, without copying the rest. */
static inline uint64_t shmcow_listed_segment(const shmcow_header *h, uint32_t i, uint32_t k)
{
    size_t at = (offsetof(shmcow_entry, segments) + k * sizeof(shmcow_segment)) / 8;
    return atomic_load_explicit(&h->entries[i][at], memory_order_relaxed);
}

static inline uint64_t shmcow_listed_length(const shmcow_header *h, uint32_t i, uint32_t k)
{
    size_t at = (offsetof(shmcow_entry, segments) + k * sizeof(shmcow_segment)) / 8 + 1;
    return atomic_load_explicit(&h->entries[i][at], memory_order_relaxed);
}

static inline uint32_t shmcow_listed_count(const shmcow_header *h, uint32_t i)
{
    uint64_t word = atomic_load_explicit(&h->entries[i][offsetof(shmcow_entry, segment_count) / 8], memory_order_relaxed);
    uint32_t count;
    memcpy(&count, &word, sizeof count);
    return count <= SHMCOW_MAX_SEGMENTS ? count : SHMCOW_MAX_SEGMENTS;
}

static inline uint64_t shmcow_listed_origin(const shmcow_header *h, uint32_t i)
{
    return atomic_load_explicit(&h->entries[i][offsetof(shmcow_entry, origin) / 8], memory_order_relaxed);
}

/* Does any generation but `but` list the segment? */
static inline bool shmcow_listed(const shmcow_header *h, uint64_t segment, uint32_t but)
{
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        if (i == but || shmcow_word_state(shmcow_load_word(h, i)) == SHMCOW_FREE)
            continue;
        uint32_t count = shmcow_listed_count(h, i);
        for (uint32_t k = 0; k < count; k++)
            if (shmcow_listed_segment(h, i, k) == segment)
                return true;
    }
    return false;
}

/* Bytes of all segments that some generation lists, each counted once. */
static inline uint64_t shmcow_total_bytes(const shmcow_header *h)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        if (shmcow_word_state(shmcow_load_word(h, i)) == SHMCOW_FREE)
            continue;
        uint32_t count = shmcow_listed_count(h, i);
        for (uint32_t k = 0; k < count; k++) {
            bool counted = false; /* in an earlier generation */
            for (uint32_t j = 0; j < i && !counted; j++) {
                if (shmcow_word_state(shmcow_load_word(h, j)) == SHMCOW_FREE)
                    continue;
                for (uint32_t m = 0; m < shmcow_listed_count(h, j) && !counted; m++)
                    counted = shmcow_listed_segment(h, j, m) == shmcow_listed_segment(h, i, k);
            }
            if (!counted)
                total += shmcow_segment_cost(shmcow_listed_length(h, i, k) & SHMCOW_VERSION_MAX);
        }
    }
    return total;
}

/* ---- changes of state (writer lock held) ---- */

static inline int shmcow_advance(shmcow_header *h, uint32_t i, uint64_t version, enum shmcow_state from,
                                 enum shmcow_state to)
{
    uint64_t expected = shmcow_word(version, from);
    /* SYNC state: release; pairs with the acquire in shmcow_load_word */
    if (!atomic_compare_exchange_strong_explicit(&h->words[i], &expected, shmcow_word(version, to),
                                                 memory_order_acq_rel, memory_order_acquire))
        return SHMCOW_RACED;
    return SHMCOW_OK;
}

/* Unlink what only generation i lists, then free it. Leaves the state alone on failure: whoever comes next goes on. */
static inline int shmcow_drop(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx, uint32_t i)
{
    uint64_t word = shmcow_load_word(h, i);
    uint32_t count = shmcow_listed_count(h, i);
    for (uint32_t k = 0; k < count; k++) {
        uint64_t segment = shmcow_listed_segment(h, i, k);
        if (segment == 0 || shmcow_listed(h, segment, i))
            continue;
        SHMCOW_STEP("drop.unlink");
        int r = ops->unlink(ctx, segment);
        if (r < 0)
            return r;
    }
    SHMCOW_STEP("drop.free");
    /* names first, FREE last: a crash in between leaves a list that says what is still to be unlinked */
    return shmcow_advance(h, i, shmcow_word_version(word), (enum shmcow_state)shmcow_word_state(word), SHMCOW_FREE);
}

/* Reclaim generation i if nobody holds it, or in any case if `force`. 1: reclaimed, 0: held, or a problem. */
static inline int shmcow_judge(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx, uint32_t i, bool force)
{
    uint64_t word = shmcow_load_word(h, i);
    uint64_t version = shmcow_word_version(word);
    int r = SHMCOW_OK;
    if (shmcow_word_state(word) == SHMCOW_HELD)
        r = shmcow_advance(h, i, version, SHMCOW_HELD, SHMCOW_CONDEMNED);
    if (r < 0)
        return r;
    SHMCOW_STEP("judge.condemned");
    /* SYNC judge: seq_cst fence between "condemn" and "is it marked?"; pairs with the fence in shmcow_hold_one between
       "mark" and "is it openable?": one of the two sees the other. The kernel's own locking does not order this: a
       test for a lock may look at an empty list without taking the spinlock */
    atomic_thread_fence(memory_order_seq_cst);
    int held = ops->marked(ctx, version);
    if (held != 0 && !force) { /* a test that fails says "held": the worst case is a version that stays */
        r = shmcow_advance(h, i, version, SHMCOW_CONDEMNED, SHMCOW_HELD);
        return r < 0 ? r : 0;
    }
    r = shmcow_advance(h, i, version, SHMCOW_CONDEMNED, SHMCOW_DOOMED);
    if (r < 0)
        return r;
    SHMCOW_STEP("judge.doomed");
    shmcow_count(h, held != 0 ? SHMCOW_COUNT_FORCED : SHMCOW_COUNT_RECLAIMED);
    r = shmcow_drop(h, ops, ctx, i);
    return r < 0 ? r : 1;
}

/* Finish or undo what a writer that died left behind. First thing under the writer lock. -> generations repaired */
static inline int shmcow_recover(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx)
{
    uint64_t now = shmcow_load_current(h);
    int repaired = 0;
    if (now == SHMCOW_DESTROYED)
        return SHMCOW_ENDED;
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        uint64_t word = shmcow_load_word(h, i);
        uint64_t version = shmcow_word_version(word);
        int r;
        switch (shmcow_word_state(word)) {
        case SHMCOW_FREE:
        case SHMCOW_HELD:
            continue;
        case SHMCOW_BUILDING: /* never seen by a reader */
            r = shmcow_drop(h, ops, ctx, i);
            break;
        case SHMCOW_READY: /* the flip decides */
            r = version > shmcow_version_of(now) ? shmcow_drop(h, ops, ctx, i)
                                                 : shmcow_advance(h, i, version, SHMCOW_READY, SHMCOW_HELD);
            break;
        case SHMCOW_CONDEMNED: /* judge again: a reader may have come meanwhile */
            r = shmcow_judge(h, ops, ctx, i, false);
            break;
        case SHMCOW_DOOMED: /* some names are gone: it can only go on */
            r = shmcow_drop(h, ops, ctx, i);
            break;
        default:
            r = SHMCOW_CORRUPT;
        }
        if (r < 0)
            return r;
        SHMCOW_STEP("recover.next");
        shmcow_count(h, SHMCOW_COUNT_RECOVERED);
        repaired++;
    }
    return repaired;
}

/* The HELD generations older than `current`, but for `protect`, newest first. -> how many */
static inline uint32_t shmcow_older(const shmcow_header *h, uint64_t protect, uint32_t out[SHMCOW_GENERATIONS])
{
    uint64_t current = shmcow_version_of(shmcow_load_current(h));
    uint64_t version[SHMCOW_GENERATIONS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        uint64_t word = shmcow_load_word(h, i);
        uint64_t v = shmcow_word_version(word);
        if (shmcow_word_state(word) != SHMCOW_HELD || v >= current || v == protect)
            continue;
        uint32_t at = n++;
        for (; at > 0 && version[at - 1] < v; at--) {
            version[at] = version[at - 1];
            out[at] = out[at - 1];
        }
        version[at] = v;
        out[at] = i;
    }
    return n;
}

/* Reclaim every unheld version beyond the `keep` newest older ones. -> versions reclaimed */
static inline int shmcow_reclaim(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx, uint64_t keep)
{
    uint32_t older[SHMCOW_GENERATIONS];
    uint32_t n = shmcow_older(h, 0, older);
    int reclaimed = 0;
    for (uint32_t k = n; k > 0 && k > keep; k--) {
        int r = shmcow_judge(h, ops, ctx, older[k - 1], false);
        if (r < 0)
            return r;
        reclaimed += r;
    }
    return reclaimed;
}

/* Give up the oldest unheld version although it is retained. 1: one went, 0: there was none. */
static inline int shmcow_give_up(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx, uint64_t protect)
{
    uint32_t older[SHMCOW_GENERATIONS];
    for (uint32_t k = shmcow_older(h, protect, older); k > 0; k--) {
        int r = shmcow_judge(h, ops, ctx, older[k - 1], false);
        if (r > 0)
            shmcow_count(h, SHMCOW_COUNT_GIVEN_UP);
        if (r != 0)
            return r;
    }
    return 0;
}

/* The version with this number, reclaimed now if nobody holds it, or in any case if `force`. 1: gone, 0: held. */
static inline int shmcow_discard(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx, uint64_t version, bool force)
{
    uint32_t older[SHMCOW_GENERATIONS];
    for (uint32_t k = shmcow_older(h, 0, older); k > 0; k--)
        if (shmcow_word_version(shmcow_load_word(h, older[k - 1])) == version)
            return shmcow_judge(h, ops, ctx, older[k - 1], force);
    return SHMCOW_GONE;
}

/* ---- publish (writer lock held, after shmcow_recover) ---- */

static inline int shmcow_find_free(const shmcow_header *h)
{
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++)
        if (shmcow_word_state(shmcow_load_word(h, i)) == SHMCOW_FREE)
            return (int)i;
    return SHMCOW_CROWDED;
}

/* A generation to build in: a free one; else the oldest unheld one's; else the oldest one's, held or not. */
static inline int shmcow_take_generation(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx, uint64_t protect)
{
    int i = shmcow_find_free(h);
    if (i >= 0)
        return i;
    int r = shmcow_give_up(h, ops, ctx, protect);
    if (r == 0) {
        uint32_t older[SHMCOW_GENERATIONS];
        uint32_t n = shmcow_older(h, protect, older);
        r = n > 0 ? shmcow_judge(h, ops, ctx, older[n - 1], true) : SHMCOW_CROWDED;
    }
    return r < 0 ? r : shmcow_find_free(h);
}

/* Stay below max_total_bytes with `more` bytes added, giving up retained versions for it. */
static inline int shmcow_keep_quota(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx, uint64_t more,
                                    uint64_t protect)
{
    uint64_t limit = atomic_load_explicit(&h->max_total_bytes, memory_order_relaxed);
    if (limit != 0 && more > limit)
        return SHMCOW_QUOTA; /* hopeless: give nothing up for it */
    while (limit != 0 && shmcow_total_bytes(h) + more > limit) {
        int r = shmcow_give_up(h, ops, ctx, protect);
        if (r <= 0)
            return r < 0 ? r : SHMCOW_QUOTA;
    }
    return SHMCOW_OK;
}

/* `fresh` bit k: segment k is to be made; otherwise the entry already names a segment that another version lists. */
static inline int shmcow_fill_segments(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx,
                                       const shmcow_entry *entry, uint32_t fresh)
{
    for (uint32_t k = 0; k < entry->segment_count; k++) {
        if (!(fresh >> k & 1u))
            continue;
        SHMCOW_STEP("publish.fill");
        int r;
        while ((r = ops->fill(ctx, k, entry->segments[k].id)) == -ENOSPC) {
            /* the new version lists what it shares since BUILDING, so nothing needs protection any more */
            int gave = shmcow_give_up(h, ops, ctx, 0);
            if (gave <= 0)
                return gave < 0 ? gave : -ENOSPC;
        }
        if (r < 0)
            return r;
    }
    return SHMCOW_OK;
}

static inline int shmcow_flip(shmcow_header *h, uint64_t *from, uint64_t to)
{
    /* SYNC flip: release; pairs with the acquire in shmcow_load_current. The linearization point of publish */
    return atomic_compare_exchange_strong_explicit(&h->current, from, to, memory_order_acq_rel, memory_order_acquire)
               ? SHMCOW_OK
           : *from == SHMCOW_DESTROYED ? SHMCOW_ENDED
                                       : SHMCOW_RACED;
}

/* Everything before the flip: -> the generation, READY, or a problem with nothing left behind. */
static inline int shmcow_build(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx,
                               const shmcow_crc_table *table, shmcow_entry *entry, uint32_t fresh)
{
    uint64_t more = 0;
    if (atomic_load_explicit(&h->next_segment, memory_order_relaxed) > SHMCOW_VERSION_MAX - SHMCOW_MAX_SEGMENTS)
        return SHMCOW_CORRUPT; /* overwritten from outside: ids would begin again, at those of living segments */
    for (uint32_t k = 0; k < entry->segment_count; k++)
        if (fresh >> k & 1u)
            more += shmcow_segment_cost(entry->segments[k].length);
    int r = shmcow_keep_quota(h, ops, ctx, more, entry->origin);
    if (r < 0)
        return r;
    r = shmcow_take_generation(h, ops, ctx, entry->origin);
    if (r < 0)
        return r;
    uint32_t i = (uint32_t)r;
    for (uint32_t k = 0; k < entry->segment_count; k++)
        if (fresh >> k & 1u)
            entry->segments[k].id = 1 + atomic_fetch_add_explicit(&h->next_segment, 1, memory_order_relaxed);
    shmcow_seal_entry(table, entry);
    SHMCOW_STEP("publish.list");
    shmcow_store_entry(h, i, entry);
    uint64_t was = shmcow_load_word(h, i);
    if (shmcow_word_state(was) != SHMCOW_FREE ||
        /* SYNC state: release; pairs with the acquire in shmcow_load_word: BUILDING is seen with its list */
        !atomic_compare_exchange_strong_explicit(&h->words[i], &was, shmcow_word(entry->version, SHMCOW_BUILDING),
                                                 memory_order_acq_rel, memory_order_acquire))
        return SHMCOW_RACED;
    SHMCOW_STEP("publish.building");
    r = shmcow_fill_segments(h, ops, ctx, entry, fresh);
    if (r < 0) {
        (void)shmcow_drop(h, ops, ctx, i); /* what this cannot remove, the next recover will */
        return r;
    }
    SHMCOW_STEP("publish.filled");
    r = shmcow_advance(h, i, entry->version, SHMCOW_BUILDING, SHMCOW_READY);
    return r < 0 ? r : (int)i;
}

/* Publish `entry` (its version and fresh segment ids are set here). 0: published, whatever becomes of the tidying up
   afterwards. `expected`: the version that must be current, or SHMCOW_DESTROYED for any. */
static inline int shmcow_publish(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx,
                                 const shmcow_crc_table *table, shmcow_entry *entry, uint32_t fresh, uint64_t expected)
{
    uint64_t now = shmcow_load_current(h);
    if (now == SHMCOW_DESTROYED)
        return SHMCOW_ENDED;
    if (expected != SHMCOW_DESTROYED && expected != shmcow_version_of(now)) {
        shmcow_count(h, SHMCOW_COUNT_CONFLICTS);
        return SHMCOW_CONFLICT;
    }
    if (shmcow_version_of(now) == SHMCOW_VERSION_MAX)
        return SHMCOW_CROWDED;
    entry->version = shmcow_version_of(now) + 1;
    int r = shmcow_build(h, ops, ctx, table, entry, fresh);
    if (r < 0)
        return r;
    uint32_t i = (uint32_t)r;
    SHMCOW_STEP("publish.ready");
    r = shmcow_flip(h, &now, shmcow_current_word(i, entry->version));
    if (r < 0) {
        (void)shmcow_drop(h, ops, ctx, i);
        return r;
    }
    SHMCOW_STEP("publish.flipped");
    ops->wake(ctx);
    SHMCOW_STEP("publish.woken");
    (void)shmcow_advance(h, i, entry->version, SHMCOW_READY, SHMCOW_HELD);
    shmcow_count(h, entry->origin != 0 ? SHMCOW_COUNT_ROLLED_BACK : SHMCOW_COUNT_PUBLISHED);
    SHMCOW_STEP("publish.held");
    (void)shmcow_reclaim(h, ops, ctx, atomic_load_explicit(&h->retain, memory_order_relaxed));
    SHMCOW_STEP("publish.reclaimed");
    return SHMCOW_OK;
}

/* The end of a store, first half: no version is current any more, and everybody is told. Never undone. */
static inline void shmcow_end(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx)
{
    SHMCOW_STEP("destroy.end");
    /* SYNC flip: release; pairs with the acquire in shmcow_load_current */
    atomic_store_explicit(&h->current, SHMCOW_DESTROYED, memory_order_release);
    SHMCOW_STEP("destroy.ended");
    ops->wake(ctx);
}

/* Second half: the names of all data segments that the table lists. */
static inline int shmcow_unlink_all(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx)
{
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        uint64_t word = shmcow_load_word(h, i);
        enum shmcow_state state = (enum shmcow_state)shmcow_word_state(word);
        int r = SHMCOW_OK;
        if (state == SHMCOW_FREE)
            continue;
        if (state != SHMCOW_DOOMED) /* a reader half-way through a hold finds DOOMED, and looks at `current` again */
            r = shmcow_advance(h, i, shmcow_word_version(word), state, SHMCOW_DOOMED);
        if (r == SHMCOW_OK)
            r = shmcow_drop(h, ops, ctx, i);
        if (r < 0)
            return r;
    }
    return SHMCOW_OK;
}

/* ---- hold (readers; no lock) ---- */

/* Hold generation i, which should be `version`. SHMCOW_MOVED: it is not any more; nothing is left marked. */
static inline int shmcow_hold_one(const shmcow_header *h, const shmcow_reader_ops *ops, void *ctx,
                                  const shmcow_crc_table *table, uint32_t i, uint64_t version, shmcow_entry *out)
{
    ops->mark(ctx, version); /* a kernel that refuses markers costs accounting only: go on */
    SHMCOW_STEP("hold.marked");
    /* SYNC judge: seq_cst fence between "mark" and "is it openable?"; pairs with the fence in shmcow_judge */
    atomic_thread_fence(memory_order_seq_cst);
    int r = SHMCOW_MOVED;
    uint64_t word = shmcow_load_word(h, i);
    for (int look = 0; look < 64 && word == shmcow_word(version, SHMCOW_CONDEMNED); look++) {
        ops->yield(ctx); /* a judge that comes after our mark lets it live: give it a moment, never more */
        word = shmcow_load_word(h, i);
    }
    if (shmcow_openable(word, version)) {
        shmcow_load_entry(h, i, out);
        /* the fence in shmcow_load_entry keeps this look behind the copy (SYNC copy). Condemned since the first look: that
           judge comes after our mark, and lets it live */
        if (shmcow_intact(atomic_load_explicit(&h->words[i], memory_order_relaxed), version)) {
            SHMCOW_STEP("hold.copied");
            r = shmcow_check_entry(table, out, version) == SHMCOW_FINE ? ops->map(ctx, out) : SHMCOW_CORRUPT;
            if (r == -ENOENT) /* forced out between the look and the map; swept with a store that was given up; or damage? */
                r = !shmcow_openable(shmcow_load_word(h, i), version)   ? SHMCOW_MOVED
                    : shmcow_load_current(h) == SHMCOW_DESTROYED ? SHMCOW_ENDED
                                                                  : SHMCOW_MISSING;
        }
    }
    if (r < 0)
        ops->clear(ctx, version);
    SHMCOW_STEP("hold.held");
    return r;
}

static inline int shmcow_find_version(const shmcow_header *h, uint64_t version)
{
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        uint64_t word = shmcow_load_word(h, i);
        unsigned state = shmcow_word_state(word);
        if (shmcow_word_version(word) == version && state >= SHMCOW_READY && state <= SHMCOW_CONDEMNED)
            return (int)i;
    }
    return SHMCOW_GONE;
}

/* Hold the current version, whatever it is by then. Lock-free: a second look means that a writer published. */
static inline int shmcow_hold_current(const shmcow_header *h, const shmcow_reader_ops *ops, void *ctx,
                                      const shmcow_crc_table *table, shmcow_entry *out)
{
    uint64_t last = 0;
    for (;;) {
        uint64_t now = shmcow_load_current(h);
        if (now == SHMCOW_DESTROYED)
            return SHMCOW_ENDED;
        if (shmcow_version_of(now) == 0)
            return SHMCOW_EMPTY;
        /* a generation stops being openable only after the flip away from it: the same word again is a lie */
        if (now == last || shmcow_index_of(now) >= SHMCOW_GENERATIONS)
            return SHMCOW_CORRUPT;
        int r = shmcow_hold_one(h, ops, ctx, table, shmcow_index_of(now), shmcow_version_of(now), out);
        if (r != SHMCOW_MOVED)
            return r;
        last = now;
    }
}

/* Hold an older version, if it can still be held. */
static inline int shmcow_hold_version(const shmcow_header *h, const shmcow_reader_ops *ops, void *ctx,
                                      const shmcow_crc_table *table, uint64_t version, shmcow_entry *out)
{
    uint64_t now = shmcow_load_current(h);
    if (now == SHMCOW_DESTROYED)
        return SHMCOW_ENDED;
    if (version == 0 || version > shmcow_version_of(now))
        return SHMCOW_GONE;
    int i = shmcow_find_version(h, version);
    if (i < 0)
        return i;
    int r = shmcow_hold_one(h, ops, ctx, table, (uint32_t)i, version, out);
    return r == SHMCOW_MOVED ? SHMCOW_GONE : r;
}

#endif
