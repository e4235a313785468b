/* shmcow: a table of IP ranges in shared memory: its format, and how it is opened. Python-free, no allocation, no system call.
 *
 * Purpose     Say where things are in a segment whose bytes may be anything. shmcow_iptable_find.h looks addresses up.
 * Invariants  1. Whatever the bytes, nothing outside the segment is read.
 *             2. What opens has sections that lie within the segment; what they contain is checked when it is used.
 * Who writes  shmcow_iptable_build.h, in private memory, before the segment is made. Readers map it read-only.
 *
 * Format      A header, then these sections, each at the next multiple of 64 bytes, in the machine's byte order.
 *             IPv4, if it has rows:
 *               tree       over the first start of each leaf: uint32_t[...]
 *               leaves     8 intervals each: {uint32_t start, value}; the last one filled up with {2^32 - 1, 0}
 *               owners     uint32_t each: the row of the interval, + 1; 0: none
 *               rows       {uint32_t first, last, value}
 *             IPv6, if it has rows:
 *               tree       over the upper half of the first start of each leaf: uint64_t[...]
 *               leaves     8 intervals each: {uint64_t start_high[8]; uint32_t value[8], owner[8]}, the last one filled up
 *                          with {2^64 - 1, 0, 0}; in an owner, the top bit: the lower half of the start is not 0
 *               lows       uint64_t each: the lower half of the interval's start
 *               rows       {uint64_t first_high, first_low, last_high, last_low; uint32_t value, 0}
 *             A tree over words: the words, in nodes of 16, the last one filled up with ones; then the first word of each
 *             node, again in nodes; and so on, until there is one node. (An index by an address's bits would be uneven:
 *             addresses crowd in a few places.)
 *             and then the values: see shmcow_values.h.
 *             Intervals are the nested rows made flat: each goes to the next one's start, the first begins at 0, and
 *             `value` is the reference of the innermost row's value, + 1; 0: no row. Rows are sorted: those that begin first
 *             come first, and of those the longest. Where a section is follows from the counts: there is no offset to forge.
 */
#ifndef SHMCOW_IPTABLE_H
#define SHMCOW_IPTABLE_H

#include <assert.h>
#include <stddef.h>

#include "shmcow_address.h"
#include "shmcow_format.h"
#include "shmcow_values.h"

#define SHMCOW_IPTABLE_MAGIC "shmcowIP"
#define SHMCOW_IPTABLE_FORMAT 1u
#define SHMCOW_IPTABLE_ROWS_MAX ((UINT32_C(1) << 26) - 2) /* of one family: they make twice as many intervals */
#define SHMCOW_IPTABLE_LEVELS 7u /* of a tree: 16^7 is more than there can be */

typedef struct {
    char magic[8];
    uint32_t byte_order;
    uint32_t format;
    uint64_t bytes; /* of all */
    uint32_t rows4, rows6;
    uint32_t intervals4, intervals6;
    uint64_t value_bytes, value_count;
    uint32_t zero, crc; /* of what stands before it */
} shmcow_iptable_header;

static_assert(sizeof(shmcow_iptable_header) == 64 && offsetof(shmcow_iptable_header, crc) == 60, "the format of tables");

typedef struct {
    uint32_t start, value;
} shmcow_interval4;
typedef struct {
    uint64_t high[8];
    uint32_t value[8], owner[8];
} shmcow_leaf6;
#define SHMCOW_HAS_LOW (UINT32_C(1) << 31)
typedef struct {
    uint32_t first, last, value;
} shmcow_row4;
typedef struct {
    uint64_t first_high, first_low, last_high, last_low;
    uint32_t value, unused;
} shmcow_row6;

static_assert(sizeof(shmcow_interval4) == 8 && sizeof(shmcow_leaf6) == 128, "the format of tables");
static_assert(sizeof(shmcow_row4) == 12 && sizeof(shmcow_row6) == 40, "the format of tables");

typedef struct {
    uint32_t levels;
    uint32_t count[SHMCOW_IPTABLE_LEVELS]; /* words of a level; that of all words comes first */
    const uint8_t *level[SHMCOW_IPTABLE_LEVELS];
} shmcow_tree;

/* A table, opened: what the header said, and where things are. */
typedef struct {
    uint32_t rows4, rows6, intervals4, intervals6;
    const uint8_t *leaves4, *owners4, *by_row4, *leaves6, *lows6, *by_row6;
    shmcow_tree tree4, tree6;
    shmcow_values values;
    uint64_t value_count;
} shmcow_iptable;

/* A row, or a part of one that a lookup found. */
typedef struct {
    bool wide;
    shmcow_u128 first, last;
    uint32_t value;
} shmcow_iptable_row;

/* ---- the layout ---- */

typedef struct {
    uint64_t tree4, leaves4, owners4, by_row4, tree6, leaves6, lows6, by_row6, values, end;
} shmcow_iptable_layout;

static inline uint64_t shmcow_iptable_section(uint64_t *end, uint64_t count, uint64_t size)
{
    uint64_t at = (*end + 63) / 64 * 64;
    *end = at + count * size;
    return at;
}

static inline uint32_t shmcow_leaves(uint32_t intervals)
{
    return intervals / 8 + (intervals % 8 != 0);
}

static inline uint32_t shmcow_nodes(uint32_t words)
{
    return words / 16 + (words % 16 != 0);
}

/* The nodes of all levels of a tree. */
static inline uint64_t shmcow_tree_nodes(uint32_t words)
{
    uint64_t nodes = 0;
    for (uint32_t count = words; count > 0; count = count > 1 ? count : 0) {
        count = shmcow_nodes(count);
        nodes += count;
    }
    return nodes;
}

/* Counts are 32 bits wide, so that nothing here overflows. */
static inline shmcow_iptable_layout shmcow_iptable_lay_out(const shmcow_iptable_header *h)
{
    uint64_t end = sizeof *h;
    shmcow_iptable_layout l;
    l.tree4 = shmcow_iptable_section(&end, shmcow_tree_nodes(shmcow_leaves(h->intervals4)), 64);
    l.leaves4 = shmcow_iptable_section(&end, shmcow_leaves(h->intervals4), 64);
    l.owners4 = shmcow_iptable_section(&end, h->intervals4, 4);
    l.by_row4 = shmcow_iptable_section(&end, h->rows4, sizeof(shmcow_row4));
    l.tree6 = shmcow_iptable_section(&end, shmcow_tree_nodes(shmcow_leaves(h->intervals6)), 128);
    l.leaves6 = shmcow_iptable_section(&end, shmcow_leaves(h->intervals6), sizeof(shmcow_leaf6));
    l.lows6 = shmcow_iptable_section(&end, h->intervals6, 8);
    l.by_row6 = shmcow_iptable_section(&end, h->rows6, sizeof(shmcow_row6));
    l.values = shmcow_iptable_section(&end, h->value_bytes, 1);
    l.end = end;
    return l;
}

static inline bool shmcow_iptable_counts(uint32_t rows, uint32_t intervals)
{
    return rows == 0 ? intervals == 0 : rows <= SHMCOW_IPTABLE_ROWS_MAX && intervals > 0 && intervals <= 2 * rows + 1;
}

static inline void shmcow_iptable_seal(const shmcow_crc_table *crc, shmcow_iptable_header *h)
{
    memcpy(h->magic, SHMCOW_IPTABLE_MAGIC, sizeof h->magic);
    h->byte_order = SHMCOW_BYTE_ORDER;
    h->format = SHMCOW_IPTABLE_FORMAT;
    h->crc = shmcow_crc(crc, h, offsetof(shmcow_iptable_header, crc));
}

static inline shmcow_tree shmcow_open_tree(const uint8_t *at, uint32_t words, uint32_t node_bytes)
{
    shmcow_tree tree = {0};
    for (uint32_t count = words; count > 0 && tree.levels < SHMCOW_IPTABLE_LEVELS; count = count > 1 ? count : 0) {
        tree.level[tree.levels] = at;
        tree.count[tree.levels++] = count;
        count = shmcow_nodes(count);
        at += (uint64_t)count * node_bytes;
    }
    return tree;
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
    if (h.format != SHMCOW_IPTABLE_FORMAT)
        return "it has another format: give readers and writers the same shmcow";
    if (h.crc != shmcow_crc(crc, &h, offsetof(shmcow_iptable_header, crc)))
        return "the checksum of its header is wrong";
    if (!shmcow_iptable_counts(h.rows4, h.intervals4) || !shmcow_iptable_counts(h.rows6, h.intervals6) ||
        h.value_bytes > SHMCOW_VALUES_MAX || h.value_count > h.value_bytes / 4)
        return "a count in its header is out of range";
    shmcow_iptable_layout l = shmcow_iptable_lay_out(&h);
    if (h.bytes != bytes || l.end != bytes)
        return "its length is not what its header says";
    *table = (shmcow_iptable){
        .rows4 = h.rows4, .rows6 = h.rows6, .intervals4 = h.intervals4, .intervals6 = h.intervals6,
        .leaves4 = data + l.leaves4, .owners4 = data + l.owners4, .by_row4 = data + l.by_row4,
        .leaves6 = data + l.leaves6, .lows6 = data + l.lows6, .by_row6 = data + l.by_row6,
        .values = {data + l.values, h.value_bytes}, .value_count = h.value_count,
    };
    table->tree4 = shmcow_open_tree(data + l.tree4, shmcow_leaves(h.intervals4), 64);
    table->tree6 = shmcow_open_tree(data + l.tree6, shmcow_leaves(h.intervals6), 128);
    return NULL;
}

#endif
