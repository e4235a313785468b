/* shmcow: a world for the protocol, that fails when told to: for the C unit test. One thread, and the code's own lines.
 *
 * Segments have names, versions have marks; what each callback was called with is written to a log, together with the
 * steps, so that a test compares the order of things. The header ends where a page ends: one byte further is a crash.
 */
#ifndef SHMCOW_UNIT_H
#define SHMCOW_UNIT_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static void step(const char *name);
#define SHMCOW_STEP(name) step(name)
#include "shmcow_protocol.h"

#define IDS 4096
#define LOG 4096

static shmcow_header *h;
static shmcow_crc_table table;
static int failures;
static struct {
    unsigned char named[IDS];
    int marks[IDS];       /* by version: what the test of its marker answers */
    int fill_error[64];   /* what the n-th fill answers */
    int unlink_error[64]; /* what the n-th unlink answers */
    int map_error[64];
    unsigned fills, unlinks, maps, wakes, marked, cleared, yields, parts_filled;
    void (*at_step)(const char *name);
    void (*at_mark_test)(uint64_t version);
    void (*at_unlink)(uint64_t segment);
    void (*at_map)(void);
    void (*at_yield)(void);
    char log[LOG];
} world;

#define CHECK(what) check((what), #what, __func__, __LINE__)
static void check(int right, const char *what, const char *where, int line)
{
    if (!right) {
        printf("%s, line %d: %s\n", where, line, what);
        fflush(stdout);
        failures++;
        exit(1); /* the first is enough */
    }
}

static void note(const char *text)
{
    if (strlen(world.log) + strlen(text) + 2 < LOG)
        strcat(strcat(world.log, text), " ");
}

static void step(const char *name)
{
    note(name);
    if (world.at_step != NULL)
        world.at_step(name);
}

static int op_marked(void *ctx, uint64_t version)
{
    (void)ctx;
    if (world.at_mark_test != NULL)
        world.at_mark_test(version);
    return version < IDS ? world.marks[version] : 0;
}

static int op_fill(void *ctx, uint32_t part, uint64_t segment)
{
    char text[32];
    (void)ctx;
    snprintf(text, sizeof text, "fill:%u=%u", part, (unsigned)segment);
    note(text);
    world.parts_filled |= 1u << part;
    if (segment < IDS)
        world.named[segment] = 1;
    return world.fill_error[world.fills++ % 64];
}

static int op_unlink(void *ctx, uint64_t segment)
{
    char text[32];
    int error = world.unlink_error[world.unlinks++ % 64];
    (void)ctx;
    snprintf(text, sizeof text, "unlink:%u", (unsigned)segment);
    note(text);
    if (world.at_unlink != NULL)
        world.at_unlink(segment);
    if (error == 0 && segment < IDS)
        world.named[segment] = 0;
    return error;
}

static void op_wake(void *ctx)
{
    (void)ctx;
    world.wakes++;
    note("wake");
}

static const shmcow_writer_ops writer = {op_marked, op_fill, op_unlink, op_wake};

static void op_mark(void *ctx, uint64_t version)
{
    (void)ctx;
    world.marks[version % IDS]++;
    world.marked++;
}

static void op_clear(void *ctx, uint64_t version)
{
    (void)ctx;
    world.marks[version % IDS]--;
    world.cleared++;
}

static int op_map(void *ctx, const shmcow_entry *entry)
{
    (void)ctx;
    (void)entry;
    if (world.at_map != NULL)
        world.at_map();
    return world.map_error[world.maps++ % 64];
}

static void op_yield(void *ctx)
{
    (void)ctx;
    world.yields++;
    if (world.at_yield != NULL)
        world.at_yield();
}

static const shmcow_reader_ops reader = {op_mark, op_clear, op_map, op_yield};

/* An empty store in an empty world. */
static void begin(void)
{
    if (h == NULL) {
        size_t pages = (sizeof *h + 4095) / 4096 * 4096;
        char *at = mmap(NULL, pages + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(at, 4096, PROT_NONE);
        mprotect(at + 4096 + pages, 4096, PROT_NONE);
        h = (shmcow_header *)(void *)(at + 4096 + pages - sizeof *h);
        shmcow_crc_fill(&table);
    }
    memset((void *)h, 0, sizeof *h);
    memset(&world, 0, sizeof world);
}

static uint64_t word(uint32_t i) { return h->words[i]; }
static uint64_t counted(enum shmcow_counter which) { return h->counters[which]; }

/* Generation i is `version` in `state`, of `count` segments from `id` on, of `length` bytes each. */
static void put(uint32_t i, uint64_t version, enum shmcow_state state, uint64_t id, uint32_t count, uint64_t length)
{
    shmcow_entry entry = {.version = version, .segment_count = count};
    for (uint32_t k = 0; k < count; k++) {
        entry.segments[k] = (shmcow_segment){.id = id + k, .length = length};
        if (id + k < IDS)
            world.named[id + k] = 1;
    }
    shmcow_seal_entry(&table, &entry);
    shmcow_store_entry(h, i, &entry);
    h->words[i] = shmcow_word(version, state);
}

static void make_current(uint32_t i, uint64_t version) { h->current = shmcow_current_word(i, version); }

/* Versions 1 to n, in order, in the generations from `first` on; the last one is current. Segments are 10 * version. */
static void history(uint32_t first, uint32_t n)
{
    for (uint32_t k = 0; k < n; k++)
        put(first + k, k + 1, SHMCOW_HELD, 10 * (k + 1), 1, 100);
    make_current(first + n - 1, n);
    h->next_segment = 10 * n + 9;
}

static shmcow_entry fresh_entry(uint32_t count, uint64_t length)
{
    shmcow_entry entry = {.segment_count = count};
    for (uint32_t k = 0; k < count; k++)
        entry.segments[k].length = length;
    return entry;
}

#endif
