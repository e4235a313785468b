/* The protocol over a hostile header: every word that it reads may be anything, and may change while it works.
 *
 * An input is a `control`, then `record`s: the first of them are put into the header, the others are changes from outside,
 * one in each call into the world (mark, map, yield, marked, fill, unlink).
 */
#include "fuzz.h"

typedef struct {
    uint64_t current, asked, next_segment, limit, retain;
    uint8_t action, first, answers, marks; /* answers: what map and fill say; marks: which versions are held */
    uint8_t background, state, count, step; /* so many generations in this state, as in an old store */
    uint32_t fresh, origin;
} control;

typedef struct {
    uint8_t index, flags;
    uint16_t state;
    uint32_t count;
    uint64_t version, said, origin, current;
    struct {
        uint64_t id, length;
    } segments[3];
} record;
enum { SEALED = 1, SAME_VERSION = 2, SETS_CURRENT = 4, POINTS_AT = 8, WORD_ONLY = 16, HAS_FEW = 32 };

static shmcow_header header;
static bool used[SHMCOW_GENERATIONS]; /* entries that are not zeros any more */
static struct {
    control c;
    const uint8_t *data;
    size_t size;
    uint64_t marked;  /* the version that is marked, if `marks` */
    uint32_t marks, maps, calls, changes;
} world;

static void put(uint32_t i, uint64_t word, const record *r)
{
    shmcow_entry entry = {.version = r->said, .segment_count = r->count, .origin = r->origin};
    for (uint32_t k = 0; k < SHMCOW_MAX_SEGMENTS; k++)
        entry.segments[k] = (shmcow_segment){.id = r->segments[k % 3].id + k / 3, .length = r->segments[k % 3].length};
    if (r->flags & SEALED)
        entry.crc = plain_crc(&entry, offsetof(shmcow_entry, crc));
    shmcow_store_entry(&header, i, &entry);
    used[i] = true;
    atomic_store(&header.words[i], word);
}

static void apply(record *r)
{
    uint32_t i = r->index % SHMCOW_GENERATIONS;
    uint64_t version = r->flags & HAS_FEW ? r->version % 16 : r->version & SHMCOW_VERSION_MAX;
    if (r->flags & HAS_FEW) { /* small numbers, so that generations share segments */
        r->count = 1 + r->count % 20;
        for (int k = 0; k < 3; k++)
            r->segments[k].id %= 8;
    }
    if (r->flags & SAME_VERSION)
        r->said = version;
    uint64_t word = version << SHMCOW_STATE_BITS | (r->flags & HAS_FEW ? r->state % 6 : r->state);
    if (r->flags & WORD_ONLY)
        atomic_store(&header.words[i], word);
    else
        put(i, word, r);
    if (r->flags & POINTS_AT)
        atomic_store(&header.current, shmcow_current_word(i, version));
    else if (r->flags & SETS_CURRENT)
        atomic_store(&header.current, r->current);
}

/* Each call into the world is counted: whoever loops for ever is found out. */
static void outside(void)
{
    record r;
    REQUIRE(++world.calls < 50000);
    if (world.size == 0)
        return;
    fuzz_take(&world.data, &world.size, &r, sizeof r);
    apply(&r);
    world.changes++;
}

/* ---- the world ---- */

static void op_mark(void *ctx, uint64_t version)
{
    (void)ctx;
    REQUIRE(world.marks == 0 && version != 0);
    world.marks = 1;
    world.marked = version;
    outside();
}

static void op_clear(void *ctx, uint64_t version)
{
    (void)ctx;
    REQUIRE(world.marks == 1 && version == world.marked);
    world.marks = 0;
}

static int op_map(void *ctx, const shmcow_entry *entry)
{
    (void)ctx;
    REQUIRE(entry->version == world.marked && entry->segment_count - 1 < 16);
    for (uint32_t k = 0; k < entry->segment_count; k++)
        REQUIRE(entry->segments[k].id != 0 && entry->segments[k].length <= SHMCOW_VERSION_MAX);
    outside();
    int answer = world.c.answers >> (world.maps++ % 4 * 2) & 3;
    return answer == 1 ? -ENOENT : answer == 2 ? -ENOMEM : 0;
}

static void op_yield(void *ctx)
{
    (void)ctx;
    outside();
}

static int op_marked(void *ctx, uint64_t version)
{
    (void)ctx;
    outside();
    if (version % 8 == 7 && world.c.marks & 128)
        return -ENOLCK;
    return world.c.marks >> version % 8 & 1;
}

static int op_fill(void *ctx, uint32_t part, uint64_t segment)
{
    (void)ctx;
    REQUIRE(part < SHMCOW_MAX_SEGMENTS && segment != 0);
    outside();
    int answer = world.c.answers >> (world.maps++ % 4 * 2) & 3;
    return answer == 1 ? -ENOSPC : answer == 2 ? -EIO : 0;
}

static int op_unlink(void *ctx, uint64_t segment)
{
    (void)ctx;
    int lists = 0;
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        bool has = false;
        uint32_t count = shmcow_listed_count(&header, i);
        if (shmcow_word_state(shmcow_load_word(&header, i)) == SHMCOW_FREE)
            continue;
        for (uint32_t k = 0; k < count && k < SHMCOW_MAX_SEGMENTS; k++)
            has |= shmcow_listed_segment(&header, i, k) == segment;
        lists += has;
    }
    /* nothing goes that another generation lists. (A change from outside may come between the look and the call.) */
    REQUIRE(segment != 0 && (lists <= 1 || world.changes > 0));
    outside();
    return world.c.answers == 255 ? -EACCES : 0;
}

static void op_wake(void *ctx)
{
    (void)ctx;
    outside();
}

static const shmcow_reader_ops reader = {op_mark, op_clear, op_map, op_yield};
static const shmcow_writer_ops writer = {op_marked, op_fill, op_unlink, op_wake};

/* ---- what is done, and what must be true then ---- */

static bool at_rest(void)
{
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        unsigned state = shmcow_word_state(shmcow_load_word(&header, i));
        if (state != SHMCOW_FREE && state != SHMCOW_HELD)
            return false;
    }
    return true;
}

static void hold(uint64_t version)
{
    shmcow_entry out;
    uint64_t before = shmcow_load_current(&header);
    int r = version != 0 ? shmcow_hold_version(&header, &reader, NULL, &fuzz_crc, version, &out)
                         : shmcow_hold_current(&header, &reader, NULL, &fuzz_crc, &out);
    REQUIRE(r <= 0 && r != SHMCOW_MOVED);
    REQUIRE(world.marks == (r == 0)); /* held is marked, and nothing else is */
    if (r == 0) {
        REQUIRE(out.version == world.marked && out.crc == plain_crc(&out, 1532) && world.maps > 0);
        REQUIRE(version == 0 || out.version == version);
        REQUIRE(version != 0 || world.changes > 0 || out.version == shmcow_version_of(before));
    }
    REQUIRE(world.changes > 0 || shmcow_load_current(&header) == before);
}

static void publish(void)
{
    shmcow_entry entry = {.origin = world.c.origin, .segment_count = 1 + world.c.count % SHMCOW_MAX_SEGMENTS};
    uint64_t before = shmcow_load_current(&header);
    for (uint32_t k = 0; k < entry.segment_count; k++)
        entry.segments[k] = (shmcow_segment){.id = k + 1, .length = world.c.asked & SHMCOW_VERSION_MAX};
    bool rest = shmcow_recover(&header, &writer, NULL) >= 0;
    REQUIRE(!rest || world.changes > 0 || at_rest());
    memset(used, true, sizeof used); /* it chooses one of them */
    int r = shmcow_publish(&header, &writer, NULL, &fuzz_crc, &entry, world.c.fresh, SHMCOW_DESTROYED);
    REQUIRE(r <= 0);
    if (r != 0 || world.changes > 0)
        return;
    uint64_t now = shmcow_load_current(&header);
    REQUIRE(shmcow_version_of(now) == shmcow_version_of(before) + 1 && shmcow_index_of(now) < SHMCOW_GENERATIONS);
    REQUIRE(shmcow_openable(shmcow_load_word(&header, shmcow_index_of(now)), shmcow_version_of(now)));
    shmcow_load_entry(&header, shmcow_index_of(now), &entry);
    REQUIRE(shmcow_check_entry(&fuzz_crc, &entry, shmcow_version_of(now)) == SHMCOW_FINE);
    REQUIRE(atomic_load(&header.next_segment) <= SHMCOW_VERSION_MAX);
}

/* Whatever the turn and the slots say, a state is whole or refused, and one that is shown is read. */
static void feed(void)
{
    shmcow_feed out, shown = {.contacts = world.c.asked, .pid = world.c.step};
    atomic_store(&header.feed_turn, world.c.asked);
    atomic_store(&header.feeds[world.c.asked % 2][world.c.step % SHMCOW_FEED_WORDS], world.c.current);
    int r = shmcow_load_feed(&header, &fuzz_crc, &out);
    REQUIRE(world.c.asked == 0 ? r == SHMCOW_EMPTY : r == SHMCOW_OK || r == SHMCOW_CORRUPT);
    REQUIRE(r != SHMCOW_OK || out.crc == plain_crc(&out, offsetof(shmcow_feed, crc)));
    shmcow_show_feed(&header, &fuzz_crc, &shown);
    REQUIRE(shmcow_load_feed(&header, &fuzz_crc, &out) == SHMCOW_OK && memcmp(&out, &shown, sizeof out) == 0);
}

static void report(void)
{
    feed();
    uint64_t total = shmcow_total_bytes(&header);
    REQUIRE(total % 4096 == 0);
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        shmcow_entry entry;
        if (atomic_load(&header.words[i]) == 0)
            continue;
        shmcow_load_entry(&header, i, &entry);
        (void)shmcow_check_entry(&fuzz_crc, &entry, shmcow_word_version(shmcow_load_word(&header, i)));
    }
}

static void act(void)
{
    switch (world.c.action % 8) {
    case 0: hold(0); break;
    case 1: hold(world.c.asked & SHMCOW_VERSION_MAX); break;
    case 2: hold(0); world.marks = 0; hold(world.c.asked % 16); break;
    case 3: publish(); break;
    case 4: publish(); publish(); break;
    case 5: REQUIRE(shmcow_reclaim(&header, &writer, NULL, world.c.retain) <= (int)SHMCOW_GENERATIONS); break;
    case 6: (void)shmcow_discard(&header, &writer, NULL, world.c.asked % 16, world.c.asked & 16); report(); break;
    default:
        shmcow_end(&header, &writer, NULL);
        (void)shmcow_unlink_all(&header, &writer, NULL);
        REQUIRE(shmcow_load_current(&header) == SHMCOW_DESTROYED || world.changes > 0);
    }
}

static void fuzz_one(const uint8_t *data, size_t size)
{
    record r;
    memset(&header, 0, offsetof(shmcow_header, entries));
    memset(&world, 0, sizeof world);
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) /* each input finds the same header */
        if (used[i])
            memset((void *)header.entries[i], 0, sizeof header.entries[i]);
    memset(used, 0, sizeof used);
    fuzz_take(&data, &size, &world.c, sizeof world.c);
    atomic_store(&header.current, world.c.current);
    atomic_store(&header.next_segment, world.c.next_segment);
    atomic_store(&header.max_total_bytes, world.c.limit);
    atomic_store(&header.retain, world.c.retain);
    uint32_t background = world.c.background < 80 ? world.c.background : 0;
    for (uint32_t i = 0; i < background && i < SHMCOW_GENERATIONS; i++) {
        used[i] = true;
        atomic_store(&header.words[i], shmcow_word(1 + i, world.c.state % 6));
        atomic_store(&header.entries[i][offsetof(shmcow_entry, segment_count) / 8], world.c.step % 3);
        atomic_store(&header.entries[i][offsetof(shmcow_entry, segments) / 8], 1 + i * (world.c.step % 4u));
    }
    for (unsigned k = 0; k < world.c.first % 16u && size > 0; k++) {
        fuzz_take(&data, &size, &r, sizeof r);
        apply(&r);
    }
    world.data = data;
    world.size = size;
    act();
}

static const uint16_t fields[] = {FIELD8(offsetof(control, current)), FIELD8(offsetof(control, asked)),
                                  FIELD8(offsetof(control, next_segment)), FIELD8(offsetof(control, limit)),
                                  FIELD8(offsetof(control, retain))};
static const uint16_t places[] = {FIELD4(offsetof(record, count)), FIELD8(offsetof(record, version)),
                                  FIELD8(offsetof(record, said)), FIELD8(offsetof(record, current)),
                                  FIELD8(offsetof(record, segments)), FIELD8(offsetof(record, segments) + 8)};

static size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random)
{
    size_t n = size > sizeof(control) ? (size - sizeof(control) + sizeof(record) - 1) / sizeof(record) : 1;
    size_t whole = sizeof(control) + n * sizeof(record);
    if (whole > room)
        return size;
    if (size < whole)
        memset(data + size, 0, whole - size);
    size_t at = sizeof(control) + random / 16 % n * sizeof(record);
    record r;
    memcpy(&r, data + at, sizeof r);
    switch (random % 16) {
    case 0: fuzz_poke(data, size, fields, sizeof fields / sizeof *fields, random / 16); return whole;
    case 1: fuzz_poke(data + at, sizeof r, places, sizeof places / sizeof *places, random / 16); return whole;
    case 2: /* the entry that `current` points at: whole, and of this version */
        r.flags |= SEALED | SAME_VERSION | POINTS_AT | HAS_FEW;
        r.flags &= (uint8_t)~WORD_ONLY;
        r.state = (uint16_t)(SHMCOW_READY + random / 1024 % 3);
        for (int k = 0; k < 3; k++)
            r.segments[k].id = random / 4096 % 8 + (uint64_t)k, r.segments[k].length %= 10000;
        break;
    case 3: r.flags |= SEALED | SAME_VERSION | HAS_FEW; break;
    case 4: r.state = (uint16_t)(random / 1024 % 8); break;
    case 5: data[offsetof(control, first)] = (uint8_t)(random / 1024 % 4); return whole;
    case 6: data[offsetof(control, action)] = (uint8_t)(random / 1024 % 8); return whole;
    case 7: data[offsetof(control, background)] = (uint8_t)(random / 1024 % 80); return whole;
    default: return whole;
    }
    memcpy(data + at, &r, sizeof r);
    return whole;
}
