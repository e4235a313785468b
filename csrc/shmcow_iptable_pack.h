/* shmcow: intervals of IP addresses into leaves, and the tree over them (see shmcow_iptable.h). Python-free; private memory only.
 *
 * Purpose     Take the intervals of one family in order, twice: to count the leaves that they fill, and to write them.
 * Invariants  1. Both times the same intervals fill the same leaves.
 *             2. An interval is in a leaf only if its start can be told exactly from the leaf's first one.
 *
 * A leaf takes intervals as long as it has room, and as long as the differences to its first start, without the trailing
 * zeros that they have in common, fit into a delta. How many zeros that are is known when the leaf is full: until then
 * the differences are kept here.
 */
#ifndef SHMCOW_IPTABLE_PACK_H
#define SHMCOW_IPTABLE_PACK_H

#include "shmcow_iptable.h"

typedef struct {
    bool wide;
    uint32_t slots;               /* that a leaf has */
    uint32_t intervals, leaves;   /* so far */
    uint32_t used;                /* slots of the last leaf */
    shmcow_u128 start;            /* of the last interval */
    shmcow_u128 base, bits;       /* of the last leaf: its first start, and what all differences have set */
    shmcow_u128 difference[16];   /* of the last leaf */
    uint8_t *tree, *at, *lows, *firsts, *owners; /* at == NULL: intervals are only counted */
} shmcow_packer;

static inline uint32_t shmcow_trailing_zeros(shmcow_u128 bits)
{
    if ((uint64_t)bits != 0)
        return (uint32_t)__builtin_ctzll((uint64_t)bits);
    return bits != 0 ? 64 + (uint32_t)__builtin_ctzll((uint64_t)(bits >> 64)) : 0;
}

/* ---- the tree ---- */

static inline uint64_t shmcow_word_offset(bool wide, uint32_t k)
{
    return wide ? (uint64_t)(k / 16) * SHMCOW_NODE_BYTES + k % 16 * 4 : (uint64_t)k * 4;
}

static inline void shmcow_put_word(uint8_t *level, bool wide, uint32_t k, shmcow_u128 start)
{
    uint8_t *at = level + shmcow_word_offset(wide, k);
    uint32_t word = (uint32_t)(wide ? start >> 96 : start), low = (uint32_t)(start >> 64);
    memcpy(at, &word, sizeof word);
    if (wide)
        memcpy(at + 64, &low, sizeof low);
}

/* The levels above the words, which lie there. What fills nodes up lies there, too. */
static inline void shmcow_fill_tree(uint8_t *level, bool wide, uint32_t words)
{
    const uint64_t node_bytes = SHMCOW_NODE_BYTES;
    for (uint32_t nodes = shmcow_nodes(wide, words); nodes > 1; nodes = shmcow_nodes(wide, nodes)) {
        uint8_t *above = level + nodes * node_bytes;
        for (uint32_t node = 0; node < nodes; node++) {
            memcpy(above + shmcow_word_offset(wide, node), level + node * node_bytes, 4);
            if (wide)
                memcpy(above + shmcow_word_offset(wide, node) + 64, level + node * node_bytes + 64, 4);
        }
        level = above;
    }
}

/* ---- leaves ---- */

static inline uint8_t *shmcow_last_leaf(const shmcow_packer *p)
{
    return p->at + (uint64_t)(p->leaves - 1) * SHMCOW_LEAF_BYTES;
}

static inline bool shmcow_leaf_takes(const shmcow_packer *p, shmcow_u128 start)
{
    shmcow_u128 difference = start - p->base;
    return p->leaves > 0 && p->used < p->slots &&
           difference >> shmcow_trailing_zeros(p->bits | difference) <= SHMCOW_DELTA_MAX;
}

/* The last leaf gets no more intervals: write its deltas. */
static inline void shmcow_close_leaf(shmcow_packer *p)
{
    if (p->at == NULL || p->leaves == 0)
        return;
    uint8_t *leaf = shmcow_last_leaf(p);
    uint8_t shift = (uint8_t)shmcow_trailing_zeros(p->bits);
    leaf[offsetof(shmcow_leaf, shift)] = shift;
    leaf[offsetof(shmcow_leaf, low)] = p->wide && (uint64_t)p->base != 0;
    for (uint32_t k = 1; k < p->slots; k++) {
        uint16_t delta = k < p->used ? (uint16_t)(p->difference[k] >> shift) : UINT16_MAX;
        memcpy(leaf + 2 * k, &delta, sizeof delta);
    }
}

static inline void shmcow_begin_leaf(shmcow_packer *p, shmcow_u128 start)
{
    shmcow_close_leaf(p);
    if (p->at != NULL) {
        uint64_t low = (uint64_t)start;
        shmcow_put_word(p->tree, p->wide, p->leaves, start);
        memcpy(p->firsts + (uint64_t)p->leaves * 4, &p->intervals, 4);
        if (p->wide)
            memcpy(p->lows + (uint64_t)p->leaves * 8, &low, sizeof low);
    }
    p->leaves++;
    p->used = 0;
    p->base = start;
    p->bits = 0;
}

/* The next interval; starts ascend. */
static inline void shmcow_pack_start(shmcow_packer *p, shmcow_u128 start)
{
    if (!shmcow_leaf_takes(p, start))
        shmcow_begin_leaf(p, start);
    p->difference[p->used++] = start - p->base;
    p->bits |= start - p->base;
    p->start = start;
    p->intervals++;
}

/* What the last interval means: a value's reference + 1, and a row + 1. It may be said again. */
static inline void shmcow_pack_value(shmcow_packer *p, uint32_t value, uint32_t owner)
{
    if (p->at == NULL)
        return;
    uint8_t *leaf = shmcow_last_leaf(p);
    uint16_t narrow = (uint16_t)value;
    if (p->slots == 16)
        memcpy(leaf + offsetof(shmcow_leaf, value) + 2 * (p->used - 1), &narrow, sizeof narrow);
    else
        memcpy(leaf + offsetof(shmcow_wide_leaf, value) + 4 * (p->used - 1), &value, sizeof value);
    memcpy(p->owners + (uint64_t)(p->intervals - 1) * 4, &owner, sizeof owner);
}

/* ---- a family ---- */

/* Intervals that are written; without a block they are counted. */
static inline shmcow_packer shmcow_pack_into(uint8_t *block, const shmcow_family_layout *l, bool wide, uint32_t slots,
                                             uint32_t leaves)
{
    memset(block + l->tree, 0xff, (size_t)(shmcow_tree_nodes(wide, leaves) * SHMCOW_NODE_BYTES));
    return (shmcow_packer){
        .wide = wide, .slots = slots, .tree = block + l->tree, .at = block + l->leaves, .lows = block + l->lows,
        .firsts = block + l->firsts, .owners = block + l->owners,
    };
}

static inline void shmcow_pack_end(shmcow_packer *p)
{
    shmcow_close_leaf(p);
    if (p->at != NULL)
        shmcow_fill_tree(p->tree, p->wide, p->leaves);
}

#endif
