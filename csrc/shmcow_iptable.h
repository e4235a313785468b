/* shmcow: a table of IP ranges in shared memory: its format, and how it is opened. Python-free, no allocation, no system call.
 *
 * Purpose     Say where things are in a segment whose bytes may be anything. shmcow_iptable_find.h looks addresses up.
 * Invariants  1. Whatever the bytes, nothing outside the segment is read.
 *             2. What opens has sections that lie within the segment; what they contain is checked when it is used.
 * Who writes  shmcow_iptable_build.h, in private memory, before the segment is made. Readers map it read-only.
 *
 * Format      A header, then these sections, each at the next multiple of 64 bytes, in the machine's byte order.
 *             For each family that has rows, IPv4 first:
 *               tree       over the first start of each leaf
 *               leaves     64 bytes each, a line of memory: up to 16 intervals, in two widths (see below)
 *               lows       IPv6 only: uint64_t each: the lower half of the leaf's first start
 *               firsts     uint32_t each: how many intervals there are in the leaves before this one
 *               owners     uint32_t for each interval: its row, + 1; 0: none
 *               rows       shmcow_row4 or shmcow_row6 each
 *             and then the values: see shmcow_values.h.
 *             A leaf: uint8_t shift, low; uint16_t delta[15], value[16]. If there are more than 65,535 words of values, so
 *             that some have references that 16 bits do not hold: delta[9], four zero bytes, and uint32_t value[10]. Its
 *             first interval starts at the word that the tree has for it, and interval k at that + (delta[k - 1] << shift).
 *             What fills up deltas is 65,535, which no delta is. `low` is 1 if the lower half of the first start is not 0.
 *             A value is the reference of the innermost row's value, + 1; 0: no row.
 *             A tree over words: the words, in nodes of 128 bytes, the last one filled up with ones; then the first word of
 *             each node, again in nodes; and so on, until there is one node. Words of IPv4 are starts, 32 in a node; those
 *             of IPv6 are upper halves of starts, 16 in a node, which has first the upper halves of these, then the lower
 *             ones. (An index by an address's bits would be uneven: addresses crowd in a few places.)
 *             Intervals are the nested rows made flat: each goes to the next one's start, and the first begins at 0. Rows
 *             are sorted: those that begin first come first, and of those the longest. Where a section is follows from the
 *             counts: there is no offset to forge. Whatever else a later format changes, the magic bytes, the byte order,
 *             the format and the header's CRC stay where they are.
 */
#ifndef SHMCOW_IPTABLE_H
#define SHMCOW_IPTABLE_H

#include <assert.h>
#include <stddef.h>

#include "shmcow_address.h"
#include "shmcow_format.h"
#include "shmcow_values.h"

#define SHMCOW_IPTABLE_MAGIC "shmcowIP"
#define SHMCOW_IPTABLE_FORMAT 2u
#define SHMCOW_IPTABLE_ROWS_MAX ((UINT32_C(1) << 26) - 2) /* of one family: they make twice as many intervals */
#define SHMCOW_IPTABLE_LEVELS 7u /* of a tree: 16^7 is more than there can be */

typedef struct {
    char magic[8];
    uint32_t byte_order;
    uint32_t format;
    uint64_t bytes; /* of all */
    uint32_t rows4, rows6;
    uint32_t intervals4, intervals6;
    uint32_t leaves4, leaves6;
    uint32_t value_words, value_count; /* words of 4 bytes */
    uint32_t zero, crc;                /* of what stands before it */
} shmcow_iptable_header;

static_assert(sizeof(shmcow_iptable_header) == 64 && offsetof(shmcow_iptable_header, crc) == 60, "the format of tables");

typedef struct {
    uint8_t shift, low;
    uint16_t delta[15], value[16];
} shmcow_leaf;
typedef struct {
    uint8_t shift, low;
    uint16_t delta[9];
    uint32_t zero, value[10];
} shmcow_wide_leaf;
#define SHMCOW_LEAF_BYTES 64u
#define SHMCOW_NODE_BYTES 128u
#define SHMCOW_DELTA_MAX 65534u
#ifndef SHMCOW_NARROW_WORDS_MAX /* the fuzzer has its own, so that small tables have either width */
#define SHMCOW_NARROW_WORDS_MAX 65535u
#endif
typedef struct {
    uint32_t first, last, value;
} shmcow_row4;
typedef struct {
    uint64_t first_high, first_low, last_high, last_low;
    uint32_t value, unused;
} shmcow_row6;

static_assert(sizeof(shmcow_leaf) == 64 && offsetof(shmcow_leaf, value) == 32, "the format of tables");
static_assert(sizeof(shmcow_wide_leaf) == 64 && offsetof(shmcow_wide_leaf, value) == 24, "the format of tables");
static_assert(offsetof(shmcow_leaf, delta) == 2 && offsetof(shmcow_wide_leaf, delta) == 2, "the format of tables");
static_assert(sizeof(shmcow_row4) == 12 && sizeof(shmcow_row6) == 40, "the format of tables");

typedef struct {
    uint32_t levels;
    uint32_t count[SHMCOW_IPTABLE_LEVELS]; /* words of a level; that of all words comes first */
    const uint8_t *level[SHMCOW_IPTABLE_LEVELS];
} shmcow_tree;

/* The rows of one family. */
typedef struct {
    uint32_t rows, intervals;
    const uint8_t *leaves, *lows, *firsts, *owners, *by_row;
    shmcow_tree tree;
} shmcow_family;

/* A table, opened: what the header said, and where things are. */
typedef struct {
    uint32_t slots; /* intervals that a leaf has room for: 16, or 10 if references are wide */
    shmcow_family four, six;
    shmcow_values values;
    uint32_t value_count;
} shmcow_iptable;

/* A row, or a part of one that a lookup found. */
typedef struct {
    bool wide;
    shmcow_u128 first, last;
    uint32_t value;
} shmcow_iptable_row;

/* ---- the layout ---- */

typedef struct {
    uint64_t tree, leaves, lows, firsts, owners, by_row;
} shmcow_family_layout;
typedef struct {
    shmcow_family_layout four, six;
    uint64_t values, end;
} shmcow_iptable_layout;

static inline uint64_t shmcow_iptable_section(uint64_t *end, uint64_t count, uint64_t size)
{
    uint64_t at = (*end + 63) / 64 * 64;
    *end = at + count * size;
    return at;
}

/* Intervals that a leaf has room for. */
static inline uint32_t shmcow_slots(uint32_t value_words)
{
    return value_words <= SHMCOW_NARROW_WORDS_MAX ? 16 : 10;
}

/* Words of a node: those of IPv6 are twice as long. */
static inline uint32_t shmcow_fanout(bool wide)
{
    return wide ? 16 : 32;
}

static inline uint32_t shmcow_nodes(bool wide, uint32_t words)
{
    return words / shmcow_fanout(wide) + (words % shmcow_fanout(wide) != 0);
}

/* The nodes of all levels of a tree. */
static inline uint64_t shmcow_tree_nodes(bool wide, uint32_t words)
{
    uint64_t nodes = 0;
    for (uint32_t count = words; count > 0; count = count > 1 ? count : 0) {
        count = shmcow_nodes(wide, count);
        nodes += count;
    }
    return nodes;
}

/* Counts are 32 bits wide, so that nothing here overflows. */
static inline shmcow_family_layout shmcow_family_lay_out(uint64_t *end, bool wide, uint32_t rows, uint32_t intervals,
                                                         uint32_t leaves)
{
    shmcow_family_layout l;
    l.tree = shmcow_iptable_section(end, shmcow_tree_nodes(wide, leaves), SHMCOW_NODE_BYTES);
    l.leaves = shmcow_iptable_section(end, leaves, SHMCOW_LEAF_BYTES);
    l.lows = shmcow_iptable_section(end, wide ? leaves : 0, 8);
    l.firsts = shmcow_iptable_section(end, leaves, 4);
    l.owners = shmcow_iptable_section(end, intervals, 4);
    l.by_row = shmcow_iptable_section(end, rows, wide ? sizeof(shmcow_row6) : sizeof(shmcow_row4));
    return l;
}

static inline shmcow_iptable_layout shmcow_iptable_lay_out(const shmcow_iptable_header *h)
{
    uint64_t end = sizeof *h;
    shmcow_iptable_layout l;
    l.four = shmcow_family_lay_out(&end, false, h->rows4, h->intervals4, h->leaves4);
    l.six = shmcow_family_lay_out(&end, true, h->rows6, h->intervals6, h->leaves6);
    l.values = shmcow_iptable_section(&end, h->value_words, 4);
    l.end = end;
    return l;
}

static inline bool shmcow_iptable_counts(uint32_t rows, uint32_t intervals, uint32_t leaves, uint32_t slots)
{
    if (rows == 0)
        return intervals == 0 && leaves == 0;
    return rows <= SHMCOW_IPTABLE_ROWS_MAX && intervals > 0 && intervals <= 2 * rows + 1 && leaves <= intervals &&
           (uint64_t)leaves * slots >= intervals;
}

static inline void shmcow_iptable_seal(const shmcow_crc_table *crc, shmcow_iptable_header *h)
{
    memcpy(h->magic, SHMCOW_IPTABLE_MAGIC, sizeof h->magic);
    h->byte_order = SHMCOW_BYTE_ORDER;
    h->format = SHMCOW_IPTABLE_FORMAT;
    h->crc = shmcow_crc(crc, h, offsetof(shmcow_iptable_header, crc));
}

static inline shmcow_tree shmcow_open_tree(const uint8_t *at, bool wide, uint32_t words)
{
    shmcow_tree tree = {0};
    for (uint32_t count = words; count > 0 && tree.levels < SHMCOW_IPTABLE_LEVELS; count = count > 1 ? count : 0) {
        tree.level[tree.levels] = at;
        tree.count[tree.levels++] = count;
        count = shmcow_nodes(wide, count);
        at += (uint64_t)count * SHMCOW_NODE_BYTES;
    }
    return tree;
}

static inline shmcow_family shmcow_open_family(const uint8_t *data, const shmcow_family_layout *l, bool wide,
                                               uint32_t rows, uint32_t intervals, uint32_t leaves)
{
    return (shmcow_family){
        .rows = rows, .intervals = intervals,
        .leaves = data + l->leaves, .lows = data + l->lows, .firsts = data + l->firsts,
        .owners = data + l->owners, .by_row = data + l->by_row,
        .tree = shmcow_open_tree(data + l->tree, wide, leaves),
    };
}

/* Open a table: NULL, or what is wrong with it. */
static inline const char *shmcow_iptable_open(shmcow_iptable *table, const shmcow_crc_table *crc, const uint8_t *data,
                                              uint64_t bytes)
{
    shmcow_iptable_header h;
    if (bytes < sizeof h)
        return "it is too short for a table";
    memcpy(&h, data, sizeof h);
    if (memcmp(h.magic, SHMCOW_IPTABLE_MAGIC, sizeof h.magic) != 0)
        return "it does not begin as a table of IP ranges does";
    if (h.byte_order != SHMCOW_BYTE_ORDER)
        return "it was written by a machine of the other byte order";
    if (h.crc != shmcow_crc(crc, &h, offsetof(shmcow_iptable_header, crc)))
        return "the checksum of its header is wrong";
    if (h.format != SHMCOW_IPTABLE_FORMAT)
        return shmcow_other_format();
    uint32_t slots = shmcow_slots(h.value_words);
    if (!shmcow_iptable_counts(h.rows4, h.intervals4, h.leaves4, slots) ||
        !shmcow_iptable_counts(h.rows6, h.intervals6, h.leaves6, slots) || h.value_count > h.value_words)
        return "a count in its header is out of range";
    shmcow_iptable_layout l = shmcow_iptable_lay_out(&h);
    if (h.bytes != bytes || l.end != bytes)
        return "its length is not what its header says";
    *table = (shmcow_iptable){
        .slots = slots,
        .four = shmcow_open_family(data, &l.four, false, h.rows4, h.intervals4, h.leaves4),
        .six = shmcow_open_family(data, &l.six, true, h.rows6, h.intervals6, h.leaves6),
        .values = {data + l.values, (uint64_t)h.value_words * 4}, .value_count = h.value_count,
    };
    return NULL;
}

#endif
