/* shmcow: how an address is found in a table of IP ranges (see shmcow_iptable.h). Python-free, no allocation, no system call.
 *
 * Purpose     From an address to the most specific row that covers it, whatever the bytes of the table are.
 * Invariants  1. Whatever the bytes, nothing outside the segment is read, and every loop ends.
 *             2. A place that was read from the table is checked before it is used; one that leads out of it is an error.
 *
 * Speed       What a lookup costs is what it waits for: lines of memory, one after the other. The upper levels of a tree
 *             stay in the caches, so that few are waited for. The words of a node are compared without a branch: which of
 *             them it is, is what a processor cannot guess.
 */
#ifndef SHMCOW_IPTABLE_FIND_H
#define SHMCOW_IPTABLE_FIND_H

#include "shmcow_iptable.h"

/* Items are copied, not pointed at: a segment may be opened in memory that is not aligned. */
static inline uint32_t shmcow_load32(const uint8_t *at, uint64_t k)
{
    uint32_t word;
    memcpy(&word, at + 4 * k, sizeof word);
    return word;
}

static inline uint64_t shmcow_load64(const uint8_t *at, uint64_t k)
{
    uint64_t word;
    memcpy(&word, at + 8 * k, sizeof word);
    return word;
}

static inline uint32_t shmcow_least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- IPv4 ---- */

typedef uint32_t shmcow_four __attribute__((vector_size(16)));

static inline shmcow_four shmcow_up_to(const uint8_t *at, uint32_t number)
{
    shmcow_four words;
    memcpy(&words, at, sizeof words);
    return (shmcow_four)(words <= (shmcow_four){number, number, number, number}); /* ones, or 0 */
}

/* The last word of a node that is not above the number, or the first; counted in its level. What fills up a node counts as
   the last word before it. */
static inline uint32_t shmcow_step4(const shmcow_tree *tree, uint32_t level, uint32_t node, uint32_t number)
{
    const uint8_t *at = tree->level[level] + (uint64_t)node * 64;
    shmcow_four sum = shmcow_up_to(at, number) + shmcow_up_to(at + 16, number) + shmcow_up_to(at + 32, number) +
                      shmcow_up_to(at + 48, number);
    uint32_t below = 0u - (sum[0] + sum[1] + sum[2] + sum[3]);
    return shmcow_least(node * 16 + (below > 0 ? below - 1 : 0), tree->count[level] - 1);
}

/* The leaf that an address is in. */
static inline uint32_t shmcow_leaf4(const shmcow_iptable *t, uint32_t number)
{
    uint32_t leaf = 0;
    for (uint32_t level = t->tree4.levels; level-- > 0;)
        leaf = shmcow_step4(&t->tree4, level, leaf, number);
    return leaf;
}

static inline uint32_t shmcow_start4(const shmcow_iptable *t, uint32_t k)
{
    return shmcow_load32(t->leaves4, (uint64_t)k * 2);
}

/* The interval that an address is in, if it is in this leaf. */
static inline uint32_t shmcow_interval_in_leaf4(const shmcow_iptable *t, uint32_t number, uint32_t leaf)
{
    const uint8_t *at = t->leaves4 + (uint64_t)leaf * 64;
    uint32_t below = (uint32_t)(shmcow_load32(at, 2) <= number) + (shmcow_load32(at, 4) <= number) +
                     (shmcow_load32(at, 6) <= number) + (shmcow_load32(at, 8) <= number) +
                     (shmcow_load32(at, 10) <= number) + (shmcow_load32(at, 12) <= number) +
                     (shmcow_load32(at, 14) <= number);
    return shmcow_least(leaf * 8 + below, t->intervals4 - 1);
}

/* The value's reference + 1 of an interval; 0: no row covers it. */
static inline uint32_t shmcow_value4(const shmcow_iptable *t, uint32_t k)
{
    return shmcow_load32(t->leaves4, (uint64_t)k * 2 + 1);
}

/* ---- IPv6 ---- */

static inline uint64_t shmcow_head6(shmcow_u128 number)
{
    return (uint64_t)(number >> 64);
}

static inline const uint8_t *shmcow_leaf_of6(const shmcow_iptable *t, uint32_t k)
{
    return t->leaves6 + (uint64_t)(k / 8) * sizeof(shmcow_leaf6);
}

/* The value's reference + 1 of an interval; 0: no row covers it. */
static inline uint32_t shmcow_value6(const shmcow_iptable *t, uint32_t k)
{
    return shmcow_load32(shmcow_leaf_of6(t, k) + offsetof(shmcow_leaf6, value), k % 8);
}

static inline uint32_t shmcow_owner6(const shmcow_iptable *t, uint32_t k)
{
    return shmcow_load32(shmcow_leaf_of6(t, k) + offsetof(shmcow_leaf6, owner), k % 8);
}

/* Most starts have no lower half: then none is fetched. */
static inline bool shmcow_begins_by6(const shmcow_iptable *t, uint32_t k, shmcow_u128 number)
{
    uint64_t high = shmcow_load64(shmcow_leaf_of6(t, k), k % 8), head = shmcow_head6(number);
    return high < head || (high == head && (!(shmcow_owner6(t, k) & SHMCOW_HAS_LOW) ||
                                            shmcow_load64(t->lows6, k) <= (uint64_t)number));
}

static inline uint32_t shmcow_up_to6(const uint8_t *at, uint64_t head)
{
    return (uint32_t)(shmcow_load64(at, 0) <= head) + (shmcow_load64(at, 1) <= head) + (shmcow_load64(at, 2) <= head) +
           (shmcow_load64(at, 3) <= head) + (shmcow_load64(at, 4) <= head) + (shmcow_load64(at, 5) <= head) +
           (shmcow_load64(at, 6) <= head) + (shmcow_load64(at, 7) <= head);
}

/* As shmcow_step4. */
static inline uint32_t shmcow_step6(const shmcow_tree *tree, uint32_t level, uint32_t node, uint64_t head)
{
    const uint8_t *at = tree->level[level] + (uint64_t)node * 128;
    uint32_t below = shmcow_up_to6(at, head) + shmcow_up_to6(at + 64, head);
    return shmcow_least(node * 16 + (below > 0 ? below - 1 : 0), tree->count[level] - 1);
}

/* The leaf that an address is in. */
static inline uint32_t shmcow_leaf6_of(const shmcow_iptable *t, uint64_t head)
{
    uint32_t leaf = 0;
    for (uint32_t level = t->tree6.levels; level-- > 0;)
        leaf = shmcow_step6(&t->tree6, level, leaf, head);
    return leaf;
}

/* The interval that an address is in, if it is in this leaf or, with the same upper half, before it. */
static inline uint32_t shmcow_interval_in_leaf6(const shmcow_iptable *t, shmcow_u128 number, uint32_t leaf)
{
    const uint8_t *at = t->leaves6 + (uint64_t)leaf * sizeof(shmcow_leaf6);
    __builtin_prefetch(at + 64);
    uint32_t below = shmcow_up_to6(at, shmcow_head6(number));
    uint32_t k = shmcow_least(leaf * 8 + (below > 0 ? below - 1 : 0), t->intervals6 - 1), low = 0;
    if (shmcow_begins_by6(t, k, number))
        return k;
    for (uint32_t left = k + 1; left > 1;) { /* intervals that share their upper halves: rare */
        uint32_t half = left / 2;
        low += shmcow_begins_by6(t, low + half, number) ? half : 0;
        left -= half;
    }
    return low;
}

/* ---- both ---- */

static inline bool shmcow_iptable_empty(const shmcow_iptable *t, bool wide)
{
    return (wide ? t->rows6 : t->rows4) == 0;
}

/* The interval that an address of a family with rows is in. False: the table contradicts itself. */
static inline bool shmcow_iptable_interval(const shmcow_iptable *t, const shmcow_address *address, uint32_t *k)
{
    uint32_t number = (uint32_t)address->number;
    if (!address->wide) {
        *k = shmcow_interval_in_leaf4(t, number, shmcow_leaf4(t, number));
        return shmcow_start4(t, *k) <= number;
    }
    *k = shmcow_interval_in_leaf6(t, address->number, shmcow_leaf6_of(t, shmcow_head6(address->number)));
    return shmcow_begins_by6(t, *k, address->number);
}

/* The value's reference + 1 at an address; 0: no row covers it. False: the table contradicts itself. */
static inline bool shmcow_iptable_find(const shmcow_iptable *t, const shmcow_address *address, uint32_t *value)
{
    uint32_t k;
    *value = 0;
    if (shmcow_iptable_empty(t, address->wide))
        return true;
    if (!shmcow_iptable_interval(t, address, &k))
        return false;
    *value = address->wide ? shmcow_value6(t, k) : shmcow_value4(t, k);
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
    uint32_t k;
    if (shmcow_iptable_empty(t, address->wide))
        return 0;
    if (!shmcow_iptable_interval(t, address, &k))
        return -1;
    uint32_t owner = address->wide ? shmcow_owner6(t, k) & ~SHMCOW_HAS_LOW : shmcow_load32(t->owners4, k);
    if (owner == 0)
        return 0;
    if (owner > (address->wide ? t->rows6 : t->rows4))
        return -1;
    return shmcow_iptable_row_at(t, (address->wide ? (uint64_t)t->rows4 : 0) + owner - 1, row) ? 1 : -1;
}

#endif
