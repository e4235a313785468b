/* shmcow: how an address is found in a table of IP ranges (see shmcow_iptable.h). Python-free, no allocation, no system call.
 *
 * Purpose     From an address to the most specific row that covers it, whatever the bytes of the table are.
 * Invariants  1. Whatever the bytes, nothing outside the segment is read, and every loop ends.
 *             2. A place that was read from the table is checked before it is used; one that leads out of it is an error.
 *
 * Speed       What a lookup costs is what it waits for: lines of memory, one after the other. The upper levels of a tree
 *             stay in the caches, and a leaf is one line.
 */
#ifndef SHMCOW_IPTABLE_FIND_H
#define SHMCOW_IPTABLE_FIND_H

#include "shmcow_iptable.h"
#include "shmcow_iptable_compare.h"

static inline uint32_t shmcow_least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- the tree ---- */

static inline const uint8_t *shmcow_node_at(const shmcow_tree *tree, uint32_t level, uint32_t node)
{
    return tree->level[level] + (uint64_t)node * SHMCOW_NODE_BYTES;
}

static inline const uint8_t *shmcow_leaf_at(const shmcow_family *family, uint32_t leaf)
{
    return family->leaves + (uint64_t)leaf * SHMCOW_LEAF_BYTES;
}

/* A word of a level; of IPv6, an upper half. */
static inline uint32_t shmcow_word4(const shmcow_tree *tree, uint32_t level, uint32_t k)
{
    return shmcow_load32(tree->level[level], k);
}

static inline uint64_t shmcow_word6(const shmcow_tree *tree, uint32_t level, uint32_t k)
{
    const uint8_t *node = shmcow_node_at(tree, level, k / 16);
    return (uint64_t)shmcow_load32(node, k % 16) << 32 | shmcow_load32(node, 16 + k % 16);
}

/* The last word of a node that is not above what is looked for, or the first; counted in its level. What fills up a node
   counts as the last word before it. */
static inline uint32_t shmcow_step(const shmcow_tree *tree, uint32_t level, uint32_t first, uint32_t above)
{
    return shmcow_least(first + above - 1, tree->count[level] - 1);
}

/* Have one of the leaves fetched that the last node leads to, before it is known which: they lie side by side, so that where
   their page is is looked up while the node is waited for. */
__attribute__((always_inline)) static inline void shmcow_fetch_near(const shmcow_family *family, uint32_t level,
                                                                    uint32_t first, uint32_t fanout)
{
    if (level == 0)
        __builtin_prefetch(shmcow_leaf_at(family, shmcow_least(first + fanout / 2 - 1, family->tree.count[0] - 1)));
}

static inline uint32_t shmcow_leaf_of4(const shmcow_family *four, uint32_t number)
{
    const shmcow_tree *tree = &four->tree;
    uint32_t leaf = 0;
    for (uint32_t level = tree->levels; level-- > 0;) {
        shmcow_fetch_near(four, level, leaf * 32, 32);
        leaf = shmcow_step(tree, level, leaf * 32, shmcow_above4(shmcow_node_at(tree, level, leaf), number));
    }
    return leaf;
}

static inline uint32_t shmcow_leaf_of6(const shmcow_family *six, uint64_t head)
{
    const shmcow_tree *tree = &six->tree;
    uint32_t leaf = 0;
    for (uint32_t level = tree->levels; level-- > 0;) {
        shmcow_fetch_near(six, level, leaf * 16, 16);
        leaf = shmcow_step(tree, level, leaf * 16, shmcow_above6(shmcow_node_at(tree, level, leaf), head));
    }
    return leaf;
}

static inline const shmcow_family *shmcow_family_of(const shmcow_iptable *t, bool wide)
{
    return wide ? &t->six : &t->four;
}

static inline bool shmcow_iptable_empty(const shmcow_iptable *t, bool wide)
{
    return shmcow_family_of(t, wide)->rows == 0;
}

/* The leaf that an address of a family with rows is in. Of IPv6, one behind it may be said instead, which begins with the
   same upper half. */
static inline uint32_t shmcow_iptable_leaf(const shmcow_iptable *t, const shmcow_address *address)
{
    return address->wide ? shmcow_leaf_of6(&t->six, (uint64_t)(address->number >> 64))
                         : shmcow_leaf_of4(&t->four, (uint32_t)address->number);
}

/* ---- the leaf ---- */

/* Where an address is: an interval of a leaf. */
typedef struct {
    uint32_t leaf, slot;
} shmcow_place;

/* Have a leaf fetched that is about to be looked into, and the one beside it: while one is waited for, two cost little more,
   and then half of the leaves are there when they are first asked for. (Four cost more than they save, and so do two where
   many lookups wait together. gcc takes a function that only prefetches for one that does nothing, and leaves calls of it out:
   hence always_inline.) */
__attribute__((always_inline)) static inline void shmcow_iptable_fetch(const shmcow_iptable *t, bool wide, uint32_t leaf)
{
    const shmcow_family *family = shmcow_family_of(t, wide);
    __builtin_prefetch(shmcow_leaf_at(family, leaf));
    __builtin_prefetch(shmcow_leaf_at(family, leaf ^ 1));
}

/* False: the table contradicts itself. */
static inline bool shmcow_place4(const shmcow_iptable *t, uint32_t number, uint32_t leaf, shmcow_place *place)
{
    const uint8_t *at = shmcow_leaf_at(&t->four, leaf);
    uint32_t base = shmcow_word4(&t->four.tree, 0, leaf);
    uint32_t delta = shmcow_least((number - base) >> (at[offsetof(shmcow_leaf, shift)] & 31u), SHMCOW_DELTA_MAX);
    *place = (shmcow_place){leaf, shmcow_above_delta(at, delta, t->slots) - 1};
    return base <= number;
}

static inline shmcow_u128 shmcow_base6(const shmcow_family *six, uint32_t leaf)
{
    return (shmcow_u128)shmcow_word6(&six->tree, 0, leaf) << 64 | shmcow_load64(six->lows, leaf);
}

/* Of all leaves up to this one, the last that does not begin behind an address, or the first. Rare, so kept apart. */
__attribute__((noinline, cold)) static uint32_t shmcow_leaf_before6(const shmcow_family *six, shmcow_u128 number,
                                                                    uint32_t leaf)
{
    uint32_t low = 0;
    for (uint32_t left = leaf + 1; left > 1;) {
        uint32_t half = left / 2;
        low += shmcow_base6(six, low + half) <= number ? half : 0;
        left -= half;
    }
    return low;
}

static inline bool shmcow_place6(const shmcow_iptable *t, shmcow_u128 number, uint32_t leaf, shmcow_place *place)
{
    const shmcow_family *six = &t->six;
    const uint8_t *at = shmcow_leaf_at(six, leaf);
    shmcow_u128 base = (shmcow_u128)shmcow_word6(&six->tree, 0, leaf) << 64;
    if (at[offsetof(shmcow_leaf, low)] != 0) { /* most starts have no lower half: then none is fetched */
        base |= shmcow_load64(six->lows, leaf);
        if (base > number) {
            leaf = shmcow_leaf_before6(six, number, leaf);
            at = shmcow_leaf_at(six, leaf);
            base = shmcow_base6(six, leaf);
        }
    }
    shmcow_u128 delta = (number - base) >> (at[offsetof(shmcow_leaf, shift)] & 127u);
    uint32_t least = delta < SHMCOW_DELTA_MAX ? (uint32_t)delta : SHMCOW_DELTA_MAX;
    *place = (shmcow_place){leaf, shmcow_above_delta(at, least, t->slots) - 1};
    return base <= number;
}

/* Where an address is that shmcow_iptable_leaf said this leaf for. False: the table contradicts itself. */
static inline bool shmcow_iptable_place(const shmcow_iptable *t, const shmcow_address *address, uint32_t leaf,
                                        shmcow_place *place)
{
    return address->wide ? shmcow_place6(t, address->number, leaf, place)
                         : shmcow_place4(t, (uint32_t)address->number, leaf, place);
}

/* The value's reference + 1 at a place; 0: no row covers it. */
static inline uint32_t shmcow_iptable_value(const shmcow_iptable *t, bool wide, const shmcow_place *place)
{
    const uint8_t *at = shmcow_leaf_at(shmcow_family_of(t, wide), place->leaf);
    return t->slots == 16 ? shmcow_load16(at + offsetof(shmcow_leaf, value), place->slot)
                          : shmcow_load32(at + offsetof(shmcow_wide_leaf, value), place->slot);
}

/* ---- lookups ---- */

/* The value's reference + 1 at an address; 0: no row covers it. False: the table contradicts itself. */
static inline bool shmcow_iptable_find(const shmcow_iptable *t, const shmcow_address *address, uint32_t *value)
{
    shmcow_place place;
    *value = 0;
    if (shmcow_iptable_empty(t, address->wide))
        return true;
    uint32_t leaf = shmcow_iptable_leaf(t, address);
    shmcow_iptable_fetch(t, address->wide, leaf);
    if (!shmcow_iptable_place(t, address, leaf, &place))
        return false;
    *value = shmcow_iptable_value(t, address->wide, &place);
    return true;
}

/* A row by its number from 0: first those of IPv4. False: there is none. */
static inline bool shmcow_iptable_row_at(const shmcow_iptable *t, uint64_t k, shmcow_iptable_row *row)
{
    if (k < t->four.rows) {
        shmcow_row4 there;
        memcpy(&there, t->four.by_row + k * sizeof there, sizeof there);
        *row = (shmcow_iptable_row){false, there.first, there.last, there.value};
        return true;
    }
    k -= t->four.rows;
    if (k >= t->six.rows)
        return false;
    shmcow_row6 there;
    memcpy(&there, t->six.by_row + k * sizeof there, sizeof there);
    *row = (shmcow_iptable_row){true, (shmcow_u128)there.first_high << 64 | there.first_low,
                                (shmcow_u128)there.last_high << 64 | there.last_low, there.value};
    return true;
}

/* The most specific row that covers an address: 1, 0: there is none, -1: the table contradicts itself. */
static inline int shmcow_iptable_row_of(const shmcow_iptable *t, const shmcow_address *address, shmcow_iptable_row *row)
{
    const shmcow_family *family = shmcow_family_of(t, address->wide);
    shmcow_place place;
    if (family->rows == 0)
        return 0;
    if (!shmcow_iptable_place(t, address, shmcow_iptable_leaf(t, address), &place))
        return -1;
    uint64_t k = (uint64_t)shmcow_load32(family->firsts, place.leaf) + place.slot;
    if (k >= family->intervals)
        return -1;
    uint32_t owner = shmcow_load32(family->owners, k);
    if (owner == 0)
        return 0;
    if (owner > family->rows)
        return -1;
    return shmcow_iptable_row_at(t, (address->wide ? (uint64_t)t->four.rows : 0) + owner - 1, row) ? 1 : -1;
}

#endif
