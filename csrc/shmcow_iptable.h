/* shmcow: a table of IP ranges in shared memory: its format, and how an address is found in it. Python-free, no
 * allocation, no system call.
 *
 * Purpose     From an address to the most specific row that covers it, whatever the bytes of the segment are.
 * Invariants  1. Whatever the bytes, nothing outside the segment is read, and every loop ends.
 *             2. What opens has sections that lie within the segment; what they contain is checked when it is used.
 * Who writes  shmcow_iptable_build.h, in private memory, before the segment is made. Readers map it read-only.
 *
 * Format      A header, then these sections, each at the next multiple of 64 bytes, in the machine's byte order. For each
 *             family, IPv4 first, if it has rows:
 *               coarse     uint32_t[2^bits], by the first bits of an address: where the bucket's part of `fine` begins (27
 *                          bits) and, above, by how many further bits that goes
 *               fine       uint32_t[...]: the interval that the first address of each part is in; after the last part of a
 *                          bucket comes the first of the next one, and after all the last interval. A part that is still
 *                          crowded has, with the top bit set, the place of its own index in `fine`: by how many further
 *                          bits it goes, the interval of each of its parts, and the interval of the next part
 *               intervals  {uint32_t start, value}, or {uint64_t start_high, start_low; uint32_t value, owner}
 *               owners     of IPv4: uint32_t each: the row of the interval, + 1; 0: none
 *               rows       {uint32_t first, last, value}, or {uint64_t first_high, first_low, last_high, last_low; uint32_t
 *                          value, 0}
 *             and then the values: see shmcow_values.h. Dense buckets have many parts, so that few intervals are left to
 *             search, and those lie side by side.
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
#define SHMCOW_IPTABLE_DEEP (UINT32_C(1) << 31)
#define SHMCOW_IPTABLE_BITS 16u
#define SHMCOW_IPTABLE_FINE 27u
#define SHMCOW_IPTABLE_FINE_MAX (UINT32_C(1) << SHMCOW_IPTABLE_FINE)

typedef struct {
    char magic[8];
    uint32_t byte_order;
    uint32_t format;
    uint64_t bytes; /* of all */
    uint32_t rows4, rows6;
    uint32_t intervals4, intervals6;
    uint32_t bits4, bits6;
    uint32_t fine4, fine6;
    uint64_t value_bytes, value_count;
    uint32_t zero, crc; /* of what stands before it */
} shmcow_iptable_header;

static_assert(sizeof(shmcow_iptable_header) == 80 && offsetof(shmcow_iptable_header, crc) == 76, "the format of tables");

typedef struct {
    uint32_t start, value;
} shmcow_interval4;
typedef struct {
    uint64_t high, low;
    uint32_t value, row;
} shmcow_interval6;
typedef struct {
    uint32_t first, last, value;
} shmcow_row4;
typedef struct {
    uint64_t first_high, first_low, last_high, last_low;
    uint32_t value, unused;
} shmcow_row6;

static_assert(sizeof(shmcow_interval4) == 8 && sizeof(shmcow_interval6) == 24, "the format of tables");
static_assert(sizeof(shmcow_row4) == 12 && sizeof(shmcow_row6) == 40, "the format of tables");

/* An index: from the first 64 bits of an address (those of IPv4: its 32 bits, then zeros) to a few intervals. */
typedef struct {
    const uint8_t *coarse, *fine;
    uint32_t bits, fine_count, intervals;
} shmcow_ip_index;

/* A table, opened: what the header said, and where things are. */
typedef struct {
    uint32_t rows4, rows6;
    shmcow_ip_index index4, index6;
    const uint8_t *at4, *owners4, *by_row4, *at6, *by_row6;
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
    uint64_t coarse4, fine4, at4, owners4, by_row4, coarse6, fine6, at6, by_row6, values, end;
} shmcow_iptable_layout;

static inline uint64_t shmcow_iptable_section(uint64_t *end, uint64_t count, uint64_t size)
{
    uint64_t at = (*end + 63) / 64 * 64;
    *end = at + count * size;
    return at;
}

/* Counts are 32 bits wide, so that nothing here overflows. */
static inline shmcow_iptable_layout shmcow_iptable_lay_out(const shmcow_iptable_header *h)
{
    uint64_t end = sizeof *h;
    shmcow_iptable_layout l;
    l.coarse4 = shmcow_iptable_section(&end, h->rows4 > 0 ? UINT64_C(1) << h->bits4 : 0, 4);
    l.fine4 = shmcow_iptable_section(&end, h->fine4, 4);
    l.at4 = shmcow_iptable_section(&end, h->intervals4, sizeof(shmcow_interval4));
    l.owners4 = shmcow_iptable_section(&end, h->intervals4, 4);
    l.by_row4 = shmcow_iptable_section(&end, h->rows4, sizeof(shmcow_row4));
    l.coarse6 = shmcow_iptable_section(&end, h->rows6 > 0 ? UINT64_C(1) << h->bits6 : 0, 4);
    l.fine6 = shmcow_iptable_section(&end, h->fine6, 4);
    l.at6 = shmcow_iptable_section(&end, h->intervals6, sizeof(shmcow_interval6));
    l.by_row6 = shmcow_iptable_section(&end, h->rows6, sizeof(shmcow_row6));
    l.values = shmcow_iptable_section(&end, h->value_bytes, 1);
    l.end = end;
    return l;
}

static inline bool shmcow_iptable_counts(uint32_t rows, uint32_t intervals, uint32_t bits, uint32_t fine)
{
    if (rows == 0)
        return intervals == 0 && bits == 0 && fine == 0;
    return rows <= SHMCOW_IPTABLE_ROWS_MAX && bits <= SHMCOW_IPTABLE_BITS && intervals > 0 && intervals <= 2 * rows + 1 &&
           fine > 0 && fine <= UINT32_C(1) << 30;
}

static inline void shmcow_iptable_seal(const shmcow_crc_table *crc, shmcow_iptable_header *h)
{
    memcpy(h->magic, SHMCOW_IPTABLE_MAGIC, sizeof h->magic);
    h->byte_order = SHMCOW_BYTE_ORDER;
    h->format = SHMCOW_IPTABLE_FORMAT;
    h->crc = shmcow_crc(crc, h, offsetof(shmcow_iptable_header, crc));
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
    if (!shmcow_iptable_counts(h.rows4, h.intervals4, h.bits4, h.fine4) ||
        !shmcow_iptable_counts(h.rows6, h.intervals6, h.bits6, h.fine6) ||
        h.value_bytes > SHMCOW_VALUES_MAX || h.value_count > h.value_bytes / 4)
        return "a count in its header is out of range";
    shmcow_iptable_layout l = shmcow_iptable_lay_out(&h);
    if (h.bytes != bytes || l.end != bytes)
        return "its length is not what its header says";
    *table = (shmcow_iptable){
        .rows4 = h.rows4, .rows6 = h.rows6,
        .index4 = {data + l.coarse4, data + l.fine4, h.bits4, h.fine4, h.intervals4},
        .index6 = {data + l.coarse6, data + l.fine6, h.bits6, h.fine6, h.intervals6},
        .at4 = data + l.at4, .owners4 = data + l.owners4, .by_row4 = data + l.by_row4,
        .at6 = data + l.at6, .by_row6 = data + l.by_row6,
        .values = {data + l.values, h.value_bytes}, .value_count = h.value_count,
    };
    return NULL;
}

/* ---- finding ---- */

/* Items are copied, not pointed at: a segment may be opened in memory that is not aligned. */
static inline uint32_t shmcow_load32(const uint8_t *at, uint64_t k)
{
    uint32_t word;
    memcpy(&word, at + 4 * k, sizeof word);
    return word;
}

static inline uint32_t shmcow_start4(const shmcow_iptable *t, uint32_t k)
{
    uint32_t start;
    memcpy(&start, t->at4 + (uint64_t)k * sizeof(shmcow_interval4), sizeof start);
    return start;
}

static inline shmcow_u128 shmcow_start6(const shmcow_iptable *t, uint32_t k)
{
    uint64_t start[2];
    memcpy(start, t->at6 + (uint64_t)k * sizeof(shmcow_interval6), sizeof start);
    return (shmcow_u128)start[0] << 64 | start[1];
}

static inline uint64_t shmcow_head4(uint32_t number)
{
    return (uint64_t)number << 32;
}

static inline uint64_t shmcow_head6(shmcow_u128 number)
{
    return (uint64_t)(number >> 64);
}

static inline uint64_t shmcow_coarse(const shmcow_ip_index *index, uint64_t head)
{
    return head >> 1 >> (63 - index->bits);
}

/* Where an address has to be looked for: intervals low to high, both included. False: the table contradicts itself. */
static inline bool shmcow_bounds(const shmcow_ip_index *index, uint64_t head, uint32_t *low, uint32_t *high)
{
    uint32_t entry = shmcow_load32(index->coarse, shmcow_coarse(index, head));
    uint32_t bits = entry >> SHMCOW_IPTABLE_FINE; /* < 32: with the bits before, less than 64 */
    uint64_t at = (entry & (SHMCOW_IPTABLE_FINE_MAX - 1)) + (head << index->bits >> 1 >> (63 - bits));
    if (at + 1 >= index->fine_count)
        return false;
    *low = shmcow_load32(index->fine, at);
    *high = shmcow_load32(index->fine, at + 1);
    if (*low & SHMCOW_IPTABLE_DEEP) {
        at = *low & ~SHMCOW_IPTABLE_DEEP;
        if (at + 1 >= index->fine_count)
            return false;
        uint32_t more = shmcow_load32(index->fine, at) & 31;
        at += 1 + (head << (index->bits + bits) >> 1 >> (63 - more));
        if (at + 1 >= index->fine_count)
            return false;
        *low = shmcow_load32(index->fine, at);
        *high = shmcow_load32(index->fine, at + 1);
    } else if (*high & SHMCOW_IPTABLE_DEEP) {
        at = *high & ~SHMCOW_IPTABLE_DEEP;
        if (at + 1 >= index->fine_count)
            return false;
        *high = shmcow_load32(index->fine, at + 1);
    }
    return *low <= *high && *high < index->intervals;
}

/* The last of the intervals low to high that begins at or before the address; the first is taken to do so. */
static inline uint32_t shmcow_search4(const shmcow_iptable *t, uint32_t number, uint32_t low, uint32_t high)
{
    for (uint32_t left = high - low + 1; left > 1;) {
        uint32_t half = left / 2;
        low += shmcow_start4(t, low + half) <= number ? half : 0;
        left -= half;
    }
    return low;
}

static inline uint32_t shmcow_search6(const shmcow_iptable *t, shmcow_u128 number, uint32_t low, uint32_t high)
{
    for (uint32_t left = high - low + 1; left > 1;) {
        uint32_t half = left / 2;
        low += shmcow_start6(t, low + half) <= number ? half : 0;
        left -= half;
    }
    return low;
}

/* The value's reference + 1 at an address that is in one of the intervals low to high; 0: no row covers it. */
static inline uint32_t shmcow_value4(const shmcow_iptable *t, uint32_t number, uint32_t low, uint32_t high)
{
    uint64_t k = shmcow_search4(t, number, low, high);
    return shmcow_load32(t->at4 + k * sizeof(shmcow_interval4) + offsetof(shmcow_interval4, value), 0);
}

static inline uint32_t shmcow_value6(const shmcow_iptable *t, shmcow_u128 number, uint32_t low, uint32_t high)
{
    uint64_t k = shmcow_search6(t, number, low, high);
    return shmcow_load32(t->at6 + k * sizeof(shmcow_interval6) + offsetof(shmcow_interval6, value), 0);
}

/* The value's reference + 1 at an address; 0: no row covers it. False: the table contradicts itself. */
static inline bool shmcow_iptable_find(const shmcow_iptable *t, const shmcow_address *address, uint32_t *value)
{
    uint32_t low, high;
    *value = 0;
    if ((address->wide ? t->rows6 : t->rows4) == 0)
        return true;
    if (!address->wide) {
        if (!shmcow_bounds(&t->index4, shmcow_head4((uint32_t)address->number), &low, &high))
            return false;
        *value = shmcow_value4(t, (uint32_t)address->number, low, high);
    } else {
        if (!shmcow_bounds(&t->index6, shmcow_head6(address->number), &low, &high))
            return false;
        *value = shmcow_value6(t, address->number, low, high);
    }
    return true;
}

/* A row by its number from 0: first those of IPv4. False: there is none. */
static inline bool shmcow_iptable_row_at(const shmcow_iptable *t, uint64_t k, shmcow_iptable_row *row)
{
    if (k < t->rows4) {
        shmcow_row4 there;
        memcpy(&there, t->by_row4 + k * sizeof there, sizeof there);
        *row = (shmcow_iptable_row){false, there.first, there.last, there.value};
        return true;
    }
    k -= t->rows4;
    if (k >= t->rows6)
        return false;
    shmcow_row6 there;
    memcpy(&there, t->by_row6 + k * sizeof there, sizeof there);
    *row = (shmcow_iptable_row){true, (shmcow_u128)there.first_high << 64 | there.first_low,
                                (shmcow_u128)there.last_high << 64 | there.last_low, there.value};
    return true;
}

/* The most specific row that covers an address: 1, 0: there is none, -1: the table contradicts itself. */
static inline int shmcow_iptable_row_of(const shmcow_iptable *t, const shmcow_address *address, shmcow_iptable_row *row)
{
    uint32_t low, high, owner;
    if ((address->wide ? t->rows6 : t->rows4) == 0)
        return 0;
    if (address->wide) {
        if (!shmcow_bounds(&t->index6, shmcow_head6(address->number), &low, &high))
            return -1;
        uint64_t k = shmcow_search6(t, address->number, low, high);
        owner = shmcow_load32(t->at6 + k * sizeof(shmcow_interval6) + offsetof(shmcow_interval6, row), 0);
    } else {
        if (!shmcow_bounds(&t->index4, shmcow_head4((uint32_t)address->number), &low, &high))
            return -1;
        owner = shmcow_load32(t->owners4, shmcow_search4(t, (uint32_t)address->number, low, high));
    }
    if (owner == 0)
        return 0;
    if (owner > (address->wide ? t->rows6 : t->rows4))
        return -1;
    return shmcow_iptable_row_at(t, (address->wide ? (uint64_t)t->rows4 : 0) + owner - 1, row) ? 1 : -1;
}

#endif
