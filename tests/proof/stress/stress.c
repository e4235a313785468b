/* shmcow: the protocol header under threads: the very lines that the extension compiles, in a world of its own.
 *
 * One mapping, threads for processes (ThreadSanitizer sees through neither two mappings nor two processes). What the
 * kernel does is done here without ordering anything: names and markers are relaxed atomics, so that every order that
 * the protocol needs must come from the protocol. A thread may die at any SHMCOW_STEP: it jumps out of what it was
 * doing, and "the kernel" drops its lock and its markers. Memory of a segment is never used for another: a mapping
 * outlives its name.
 *
 *     stress PUBLISHES SEED [hoard]      exit 0: nothing was found; the last line has the figures
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void step(const char *name);
#define SHMCOW_STEP(name) step(name)
#include "shmcow_protocol.h"

#define WRITERS 3
#define READERS 3
#define WORDS 8
#define IDS (1u << 20)
#define VERSIONS (1u << 20)
#define PARTS 3u

static shmcow_header header; /* plain memory: one mapping */
static shmcow_crc_table crc;
static uint64_t (*memory)[WORDS];   /* of each segment */
static _Atomic unsigned char *named; /* by segment */
static _Atomic unsigned *marks;      /* by version: what the kernel counts */
static _Atomic uint64_t (*wanted)[PARTS]; /* by version: the segments that it was published with */
static _Atomic unsigned char *forced;     /* by version: its names may go although it is held */
static _Atomic long names_alive;
static _Atomic uint64_t acknowledged; /* the newest version whose publish has returned */
static _Atomic int stop, violations;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the writer lock: the kernel orders writers */
static unsigned long publishes;
static bool hoard;

enum { PUBLISHED, REFUSED, DIED_WRITING, RECOVERED, HOLDS, OLDER, GONE, DIED_READING, AUDITS, FIGURES };
static const char *const figure_names[FIGURES] = {"published", "refused", "writers died", "recovered", "holds",
                                                  "older held", "older gone", "readers died", "audits"};
static _Atomic unsigned long figures[FIGURES];

static void count(int which) { atomic_fetch_add_explicit(&figures[which], 1, memory_order_relaxed); }

static void violation(const char *what, unsigned long long version)
{
    if (atomic_fetch_add_explicit(&violations, 1, memory_order_relaxed) < 5)
        fprintf(stderr, "VIOLATION: %s (version %llu)\n", what, version);
    atomic_store_explicit(&stop, 1, memory_order_relaxed);
}

/* ---- a thread that may die ---- */

typedef struct {
    uint64_t random;
    long fuse; /* dies when it has burnt down */
    bool mortal;
    jmp_buf grave;
    /* of a writer */
    shmcow_entry *entry;
    unsigned no_space; /* parts for which "no room" was said already */
    /* of a reader */
    uint64_t marked; /* the version that it is marking, 0: none */
} thread_state;

static _Thread_local thread_state *me;

static uint64_t chance(thread_state *t, uint64_t n) /* xorshift64*: G. Marsaglia 2003, S. Vigna 2016 */
{
    t->random ^= t->random >> 12;
    t->random ^= t->random << 25;
    t->random ^= t->random >> 27;
    return (t->random * UINT64_C(0x2545F4914F6CDD1D) >> 33) % n;
}

static void step(const char *name)
{
    if (me == NULL)
        return;
    if (name[0] == 'w' && chance(me, 4) == 0) /* a mutant's window */
        usleep(30);
    if (chance(me, 6) == 0)
        sched_yield();
    if (chance(me, 4000) == 0)
        usleep(300); /* a stopped process */
    if (me->mortal && --me->fuse == 0)
        longjmp(me->grave, 1);
}

/* ---- the world ---- */

static uint64_t word_of(uint64_t segment, unsigned k) { return segment * UINT64_C(0x9E3779B97F4A7C15) + k; }

static int op_marked(void *ctx, uint64_t version)
{
    (void)ctx;
    return atomic_load_explicit(&marks[version], memory_order_relaxed) > 0;
}

static int op_fill(void *ctx, uint32_t part, uint64_t segment)
{
    thread_state *t = ctx;
    if (segment >= IDS)
        return -EFBIG;
    if (!atomic_load_explicit(&named[segment], memory_order_relaxed)) {
        atomic_store_explicit(&named[segment], 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&names_alive, 1, memory_order_relaxed);
    }
    SHMCOW_STEP("fill.write");
    for (unsigned k = 0; k < WORDS / 2; k++)
        memory[segment][k] = word_of(segment, k);
    if (!(t->no_space >> part & 1u) && chance(t, 12) == 0) {
        t->no_space |= 1u << part;
        return -ENOSPC;
    }
    SHMCOW_STEP("fill.written");
    for (unsigned k = WORDS / 2; k < WORDS; k++)
        memory[segment][k] = word_of(segment, k);
    SHMCOW_STEP("fill.sealed");
    return 0;
}

static int op_unlink(void *ctx, uint64_t segment)
{
    (void)ctx;
    if (segment < IDS && atomic_load_explicit(&named[segment], memory_order_relaxed)) {
        atomic_store_explicit(&named[segment], 0, memory_order_relaxed);
        atomic_fetch_sub_explicit(&names_alive, 1, memory_order_relaxed);
    }
    return 0;
}

static void op_wake(void *ctx) { (void)ctx; }

static const shmcow_writer_ops writer_ops = {op_marked, op_fill, op_unlink, op_wake};

static void op_mark(void *ctx, uint64_t version)
{
    thread_state *t = ctx;
    atomic_fetch_add_explicit(&marks[version], 1, memory_order_relaxed);
    t->marked = version;
}

static void op_clear(void *ctx, uint64_t version)
{
    thread_state *t = ctx;
    t->marked = 0;
    atomic_fetch_sub_explicit(&marks[version], 1, memory_order_relaxed);
}

static int op_map(void *ctx, const shmcow_entry *entry)
{
    (void)ctx;
    for (uint32_t k = 0; k < entry->segment_count; k++) {
        if (!atomic_load_explicit(&named[entry->segments[k].id], memory_order_relaxed))
            return -ENOENT;
        SHMCOW_STEP("map.next");
    }
    return 0;
}

static void op_yield(void *ctx)
{
    (void)ctx;
    sched_yield();
}

static const shmcow_reader_ops reader_ops = {op_mark, op_clear, op_map, op_yield};

/* ---- what must hold ---- */

/* Under the writer lock, after a turn that came to its end: the table is at rest, and says exactly what has a name. */
static void audit(void)
{
    uint64_t now = shmcow_load_current(&header);
    uint64_t listed[SHMCOW_GENERATIONS * PARTS];
    long distinct = 0;
    count(AUDITS);
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        uint64_t word = shmcow_load_word(&header, i), version = shmcow_word_version(word);
        if (shmcow_word_state(word) == SHMCOW_FREE)
            continue;
        if (shmcow_word_state(word) != SHMCOW_HELD)
            violation("a generation is not at rest after a turn", version);
        for (uint32_t k = 0; k < shmcow_listed_count(&header, i); k++) {
            uint64_t segment = shmcow_listed_segment(&header, i, k);
            long at = 0;
            if (segment >= IDS || !atomic_load_explicit(&named[segment], memory_order_relaxed))
                violation("a published version lists a segment without a name", version);
            while (at < distinct && listed[at] != segment)
                at++;
            if (at == distinct)
                listed[distinct++] = segment;
        }
    }
    if (distinct != atomic_load_explicit(&names_alive, memory_order_relaxed))
        violation("names are left that no generation lists", shmcow_version_of(now));
    if (shmcow_version_of(now) != 0 &&
        shmcow_load_word(&header, shmcow_index_of(now)) != shmcow_word(shmcow_version_of(now), SHMCOW_HELD))
        violation("the current version's generation is another's", shmcow_version_of(now));
    if (shmcow_version_of(now) < atomic_load_explicit(&acknowledged, memory_order_relaxed))
        violation("an acknowledged version was lost", shmcow_version_of(now));
}

/* What a reader holds: of one piece, whole, as it was published, and named as long as it is held. */
static void inspect(const shmcow_entry *entry)
{
    for (uint32_t k = 0; k < entry->segment_count; k++) {
        uint64_t segment = entry->segments[k].id;
        if (segment != atomic_load_explicit(&wanted[entry->version][k], memory_order_relaxed))
            violation("a hold mixes two versions", entry->version);
        for (unsigned n = 0; n < WORDS; n++)
            if (memory[segment][n] != word_of(segment, n)) {
                violation("a torn segment", entry->version);
                return;
            }
    }
}

static void still_named(const shmcow_entry *entry)
{
    for (uint32_t k = 0; k < entry->segment_count; k++)
        if (!atomic_load_explicit(&named[entry->segments[k].id], memory_order_relaxed) &&
            !atomic_load_explicit(&forced[entry->version], memory_order_relaxed) && !hoard)
            violation("a held version lost a name", entry->version);
}

/* ---- writers ---- */

/* A new value; or one part new, and the others shared with what is current; or an older version again. */
static uint32_t compose(thread_state *t, shmcow_entry *entry)
{
    uint64_t now = shmcow_load_current(&header);
    uint32_t older[SHMCOW_GENERATIONS], n = shmcow_older(&header, 0, older), fresh = 1;
    memset(entry, 0, sizeof *entry);
    if (n > 0 && chance(t, 5) == 0) {
        shmcow_load_entry(&header, older[chance(t, n)], entry);
        entry->origin = entry->version;
        return 0;
    }
    entry->segment_count = 1 + (uint32_t)chance(t, PARTS);
    if (shmcow_version_of(now) != 0 && chance(t, 2)) {
        shmcow_entry current;
        shmcow_load_entry(&header, shmcow_index_of(now), &current);
        for (uint32_t k = 1; k < entry->segment_count; k++) {
            if (k < current.segment_count)
                entry->segments[k] = current.segments[k];
            else
                fresh |= 1u << k;
        }
    } else {
        fresh = (1u << entry->segment_count) - 1;
    }
    for (uint32_t k = 0; k < entry->segment_count; k++)
        entry->segments[k].length = WORDS * 8;
    return fresh;
}

static void turn(thread_state *t)
{
    shmcow_entry entry;
    uint64_t before = shmcow_load_current(&header);
    int r = shmcow_recover(&header, &writer_ops, t);
    if (r < 0)
        violation("recovery failed", shmcow_version_of(before));
    for (; r > 0; r--)
        count(RECOVERED);
    atomic_store_explicit(&header.retain, chance(t, 4), memory_order_relaxed);
    atomic_store_explicit(&header.max_total_bytes, hoard || chance(t, 3) ? 0 : 4096 * (6 + chance(t, 6)), memory_order_relaxed);
    uint32_t fresh = compose(t, &entry);
    t->entry = &entry;
    t->no_space = 0;
    /* ghost: what the next version is to consist of; ids of fresh parts are known beforehand under the lock */
    uint64_t next = atomic_load_explicit(&header.next_segment, memory_order_relaxed), version = shmcow_version_of(before) + 1;
    for (uint32_t k = 0; k < entry.segment_count; k++)
        atomic_store_explicit(&wanted[version][k], fresh >> k & 1u ? ++next : entry.segments[k].id, memory_order_relaxed);
    if (hoard) /* a full table: the oldest goes, held or not */
        for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++)
            atomic_store_explicit(&forced[shmcow_word_version(shmcow_load_word(&header, i))], 1, memory_order_relaxed);
    r = shmcow_publish(&header, &writer_ops, t, &crc, &entry, fresh, SHMCOW_DESTROYED);
    if (r == SHMCOW_OK) {
        if (entry.version != version)
            violation("a publish took another version than the next", entry.version);
        atomic_store_explicit(&acknowledged, entry.version, memory_order_relaxed);
        count(PUBLISHED);
    } else if (r == SHMCOW_QUOTA || r == -ENOSPC) {
        count(REFUSED);
    } else {
        violation("a publish failed", (unsigned long long)-r);
    }
    audit();
}

static void *writer(void *arg)
{
    thread_state *t = me = arg;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
#ifndef WITHOUT_LOCK
        pthread_mutex_lock(&lock);
#endif
        t->mortal = chance(t, 3) == 0;
        t->fuse = 1 + (long)chance(t, 24);
        if (setjmp(t->grave) == 0)
            turn(t);
        else
            count(DIED_WRITING);
        t->mortal = false;
        bool done = atomic_load_explicit(&figures[PUBLISHED], memory_order_relaxed) >= publishes ||
                    atomic_load_explicit(&header.next_segment, memory_order_relaxed) > IDS - 64;
#ifndef WITHOUT_LOCK
        pthread_mutex_unlock(&lock);
#endif
        if (done)
            atomic_store_explicit(&stop, 1, memory_order_relaxed);
        if (chance(t, 3) == 0)
            sched_yield();
    }
    return NULL;
}

/* ---- readers ---- */

static void hold_once(thread_state *t, uint64_t *newest)
{
    shmcow_entry entry;
    /* acquire, to have all that was published before: only so can it be asked whether it is missing */
    uint64_t promised = atomic_load_explicit(&acknowledged, memory_order_acquire);
    uint64_t now = shmcow_version_of(shmcow_load_current(&header));
    bool old = now > 1 && chance(t, 3) == 0;
    uint64_t back = hoard ? SHMCOW_GENERATIONS - 6 + chance(t, 8) : chance(t, 6); /* near those that are forced out */
    uint64_t wish = !old ? 0 : back < now ? now - back : 1;
    int r = old ? shmcow_hold_version(&header, &reader_ops, t, &crc, wish, &entry)
                : shmcow_hold_current(&header, &reader_ops, t, &crc, &entry);
    if (r == SHMCOW_EMPTY && promised == 0)
        return;
    if (old && r == SHMCOW_GONE) {
        count(GONE);
        return;
    }
    if (r != SHMCOW_OK) {
        violation(r == SHMCOW_CORRUPT ? "a hold found the table corrupt" : r == SHMCOW_MISSING
                                            ? "a hold missed a segment that is listed" : "a hold failed", now);
        return;
    }
    count(old ? OLDER : HOLDS);
    if (old ? entry.version != wish : entry.version < *newest || entry.version < promised)
        violation("a version that went back", entry.version);
    if (!old)
        *newest = entry.version;
    inspect(&entry);
    still_named(&entry);
    for (uint64_t n = chance(t, 12); n > 0; n--)
        step("held");
    still_named(&entry);
    op_clear(t, entry.version);
}

static void *reader(void *arg)
{
    thread_state *t = me = arg;
    uint64_t newest = 0;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        t->mortal = chance(t, 8) == 0;
        t->fuse = 1 + (long)chance(t, 8);
        if (setjmp(t->grave) == 0) {
            hold_once(t, &newest);
        } else {
            count(DIED_READING);
            if (t->marked != 0)
                op_clear(t, t->marked); /* by the kernel */
        }
        if (t->marked != 0)
            violation("a marker was left", t->marked);
        t->mortal = false;
    }
    return NULL;
}

/* Holds more versions than the table has room for. */
static void *hoarder(void *arg)
{
    thread_state *t = me = arg;
    uint64_t held[SHMCOW_GENERATIONS + 16] = {0};
    uint64_t newest = 0;
    size_t at = 0;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        shmcow_entry entry;
        int r = shmcow_hold_current(&header, &reader_ops, t, &crc, &entry);
        if (r == SHMCOW_OK && entry.version == newest) {
            op_clear(t, entry.version);
            sched_yield();
        } else if (r == SHMCOW_OK) {
            if (held[at] != 0)
                op_clear(t, held[at]);
            inspect(&entry);
            held[at] = newest = entry.version;
            at = (at + 1) % (sizeof held / sizeof *held);
        } else if (r != SHMCOW_EMPTY) {
            violation("the hoarder's hold failed", (unsigned long long)-r);
        }
        t->marked = 0;
    }
    for (size_t k = 0; k < sizeof held / sizeof *held; k++)
        if (held[k] != 0)
            op_clear(t, held[k]);
    return NULL;
}

/* ---- all together ---- */

static thread_state states[WRITERS + READERS + 1];

static void last_turn(void)
{
    thread_state *t = me = &states[0];
    t->mortal = false;
    (void)shmcow_recover(&header, &writer_ops, t);
    (void)shmcow_reclaim(&header, &writer_ops, t, 0);
    audit();
    uint64_t now = shmcow_load_current(&header);
    long listed = shmcow_version_of(now) ? (long)shmcow_listed_count(&header, shmcow_index_of(now)) : 0;
    if (atomic_load_explicit(&names_alive, memory_order_relaxed) != listed)
        violation("after the last reclaim something is left", (unsigned long long)names_alive);
    for (uint64_t v = 0; v <= shmcow_version_of(now); v++)
        if (atomic_load_explicit(&marks[v], memory_order_relaxed) != 0)
            violation("a marker without a reader", v);
}

int main(int argc, char **argv)
{
    pthread_t threads[WRITERS + READERS + 1];
    size_t n = 0;
    publishes = argc > 1 ? strtoul(argv[1], NULL, 10) : 10000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    hoard = argc > 3;
    if (publishes > VERSIONS - 1000)
        return 2;
    memory = calloc(IDS, sizeof *memory);
    named = calloc(IDS, sizeof *named);
    marks = calloc(VERSIONS, sizeof *marks);
    wanted = calloc(VERSIONS, sizeof *wanted);
    forced = calloc(VERSIONS, sizeof *forced);
    if (!memory || !named || !marks || !wanted || !forced)
        return 2;
    shmcow_crc_fill(&crc);
    crc.folds = false; /* the slower way: others come between more often */
    for (size_t k = 0; k < sizeof states / sizeof *states; k++)
        states[k].random = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15) ^ (k + 1) * UINT64_C(0xD1B54A32D192ED03);
    for (; n < WRITERS; n++)
        pthread_create(&threads[n], NULL, writer, &states[n]);
    for (; n < WRITERS + READERS; n++)
        pthread_create(&threads[n], NULL, reader, &states[n]);
    if (hoard) {
        pthread_create(&threads[n], NULL, hoarder, &states[n]);
        n++;
    }
    for (size_t k = 0; k < n; k++)
        pthread_join(threads[k], NULL);
    last_turn();
    for (int k = 0; k < FIGURES; k++)
        printf("%s %lu, ", figure_names[k], (unsigned long)figures[k]);
    printf("reclaimed %llu, given up %llu, forced %llu, violations %d\n",
           (unsigned long long)header.counters[SHMCOW_COUNT_RECLAIMED],
           (unsigned long long)header.counters[SHMCOW_COUNT_GIVEN_UP],
           (unsigned long long)header.counters[SHMCOW_COUNT_FORCED], (int)violations);
    return violations != 0;
}
