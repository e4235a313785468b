/* shmcow: build a table of IP ranges (see shmcow_iptable.h). Python-free; private memory only.
 *
 * Purpose     From rows in any order to one block of memory, ready to be written into a segment.
 * Invariants  1. A row costs 20 (IPv4) or 48 (IPv6) bytes here, whatever its value.
 *             2. What is laid out is what shmcow_iptable_open accepts, and the same for the same rows in the same order.
 *
 * Nesting     Rows are sorted: those that begin first come first, and of those the longest. So a row's enclosing rows are
 *             open when it comes, the innermost last: a stack, kept as a chain of parents in the rows themselves. A row that
 *             ends after the innermost open one overlaps it without nesting; one of the same ends is there twice.
 */
#ifndef SHMCOW_IPTABLE_BUILD_H
#define SHMCOW_IPTABLE_BUILD_H

#include "shmcow_iptable_find.h"

#define SHMCOW_NOBODY UINT32_MAX

/* Rows as they are collected. `parent`: the innermost row around it, while rows are made flat. */
typedef struct {
    uint32_t first, last, value, number, parent;
} shmcow_draft4;
typedef struct {
    uint64_t first_high, first_low, last_high, last_low;
    uint32_t value, number, parent, unused;
} shmcow_draft6;

typedef struct {
    shmcow_pile rows4, rows6;
    shmcow_values_builder values;
    uint8_t *block; /* the table, when it is finished */
    uint64_t bytes;
    bool drop_clashes; /* leave out rows that clash with one before them, instead of giving up */
    uint32_t dropped;
} shmcow_iptable_builder;

/* Two rows that cannot both be there, by their numbers. */
typedef struct {
    uint32_t number, other;
    bool same; /* of the same ends */
    shmcow_iptable_row row, other_row;
} shmcow_clash;

static inline uint32_t shmcow_drafts(const shmcow_iptable_builder *b, bool wide)
{
    return (uint32_t)(wide ? b->rows6.used / sizeof(shmcow_draft6) : b->rows4.used / sizeof(shmcow_draft4));
}

/* Add a row; its ends are in order and of one family. `number` names it in errors. -ENOMEM; -EFBIG: too many. */
static inline int shmcow_iptable_add(shmcow_iptable_builder *b, const shmcow_iptable_row *row, uint32_t number)
{
    if (shmcow_drafts(b, row->wide) >= SHMCOW_IPTABLE_ROWS_MAX)
        return -EFBIG;
    if (!row->wide) {
        shmcow_draft4 draft = {(uint32_t)row->first, (uint32_t)row->last, row->value, number, SHMCOW_NOBODY};
        uint8_t *at = shmcow_pile_reserve(&b->rows4, sizeof draft);
        if (at == NULL)
            return -ENOMEM;
        memcpy(at, &draft, sizeof draft);
        b->rows4.used += sizeof draft;
        return 0;
    }
    shmcow_draft6 draft = {(uint64_t)(row->first >> 64), (uint64_t)row->first, (uint64_t)(row->last >> 64),
                           (uint64_t)row->last, row->value, number, SHMCOW_NOBODY, 0};
    uint8_t *at = shmcow_pile_reserve(&b->rows6, sizeof draft);
    if (at == NULL)
        return -ENOMEM;
    memcpy(at, &draft, sizeof draft);
    b->rows6.used += sizeof draft;
    return 0;
}

/* ---- sorting ---- */

static inline int shmcow_order4(const void *a, const void *b)
{
    const shmcow_draft4 *x = a, *y = b;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    if (x->last != y->last)
        return x->last > y->last ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

static inline int shmcow_order6(const void *a, const void *b)
{
    const shmcow_draft6 *x = a, *y = b;
    if (x->first_high != y->first_high)
        return x->first_high < y->first_high ? -1 : 1;
    if (x->first_low != y->first_low)
        return x->first_low < y->first_low ? -1 : 1;
    if (x->last_high != y->last_high)
        return x->last_high > y->last_high ? -1 : 1;
    if (x->last_low != y->last_low)
        return x->last_low > y->last_low ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

static inline void shmcow_sort_rows(shmcow_pile *rows, size_t size, int (*order)(const void *, const void *))
{
    for (uint64_t at = size; at < rows->used; at += size)
        if (order(rows->at + at - size, rows->at + at) > 0) { /* most data comes sorted */
            qsort(rows->at, (size_t)rows->used / size, size, order);
            return;
        }
}

/* ---- making rows flat ---- */

typedef struct {
    shmcow_u128 first, last;
    uint32_t value, number;
    uint32_t *parent;
} shmcow_draft;

static inline shmcow_draft shmcow_draft_at(const shmcow_iptable_builder *b, bool wide, uint32_t k)
{
    if (!wide) {
        shmcow_draft4 *draft = (shmcow_draft4 *)(void *)b->rows4.at + k;
        return (shmcow_draft){draft->first, draft->last, draft->value, draft->number, &draft->parent};
    }
    shmcow_draft6 *draft = (shmcow_draft6 *)(void *)b->rows6.at + k;
    return (shmcow_draft){(shmcow_u128)draft->first_high << 64 | draft->first_low,
                          (shmcow_u128)draft->last_high << 64 | draft->last_low, draft->value, draft->number,
                          &draft->parent};
}

/* Where intervals go: only counted, or into their sections. */
typedef struct {
    const shmcow_iptable_builder *b;
    bool wide;
    uint32_t count;
    shmcow_u128 start;  /* of the last */
    uint8_t *at, *owners, *lows;
} shmcow_flat;

static inline void shmcow_emit(shmcow_flat *flat, shmcow_u128 start, uint32_t owner)
{
    bool again = flat->count > 0 && flat->start == start; /* whoever begins there later is more specific */
    if (!again) {
        flat->count++;
        flat->start = start;
    }
    if (flat->at == NULL)
        return;
    uint32_t value = owner == SHMCOW_NOBODY ? 0 : shmcow_draft_at(flat->b, flat->wide, owner).value + 1;
    uint64_t k = flat->count - 1;
    owner = owner == SHMCOW_NOBODY ? 0 : owner + 1;
    if (flat->wide) {
        uint64_t high = (uint64_t)(start >> 64), low = (uint64_t)start;
        uint8_t *leaf = flat->at + k / 8 * sizeof(shmcow_leaf6);
        owner |= low != 0 ? SHMCOW_HAS_LOW : 0;
        memcpy(leaf + k % 8 * 8, &high, 8);
        memcpy(leaf + offsetof(shmcow_leaf6, value) + k % 8 * 4, &value, 4);
        memcpy(leaf + offsetof(shmcow_leaf6, owner) + k % 8 * 4, &owner, 4);
        memcpy(flat->lows + k * 8, &low, 8);
    } else {
        shmcow_interval4 interval = {(uint32_t)start, value};
        memcpy(flat->at + k * sizeof interval, &interval, sizeof interval);
        memcpy(flat->owners + k * 4, &owner, 4);
    }
}

/* Close what ends before `next`, the innermost first. */
static inline uint32_t shmcow_close_rows(shmcow_flat *flat, uint32_t open, shmcow_u128 next)
{
    while (open != SHMCOW_NOBODY) {
        shmcow_draft row = shmcow_draft_at(flat->b, flat->wide, open);
        if (row.last >= next)
            break;
        open = *row.parent;
        shmcow_emit(flat, row.last + 1, open);
    }
    return open;
}

static inline bool shmcow_flatten(shmcow_flat *flat, shmcow_clash *clash)
{
    uint32_t rows = shmcow_drafts(flat->b, flat->wide), open = SHMCOW_NOBODY;
    const shmcow_u128 highest = flat->wide ? ~(shmcow_u128)0 : UINT32_MAX;
    if (rows > 0)
        shmcow_emit(flat, 0, SHMCOW_NOBODY);
    for (uint32_t k = 0; k < rows; k++) {
        shmcow_draft row = shmcow_draft_at(flat->b, flat->wide, k);
        open = shmcow_close_rows(flat, open, row.first);
        if (open != SHMCOW_NOBODY) {
            shmcow_draft around = shmcow_draft_at(flat->b, flat->wide, open);
            bool same = around.first == row.first && around.last == row.last;
            if (same || row.last > around.last) {
                *clash = (shmcow_clash){around.number, row.number, same,
                                        {flat->wide, around.first, around.last, around.value},
                                        {flat->wide, row.first, row.last, row.value}};
                return false;
            }
        }
        *row.parent = open;
        open = k;
        shmcow_emit(flat, row.first, k);
    }
    shmcow_close_rows(flat, open, highest);
    return true;
}

/* ---- all of it ---- */

static inline void shmcow_store_rows(const shmcow_iptable_builder *b, uint8_t *rows4, uint8_t *rows6)
{
    for (uint32_t k = 0; k < shmcow_drafts(b, false); k++) {
        shmcow_draft row = shmcow_draft_at(b, false, k);
        shmcow_row4 there = {(uint32_t)row.first, (uint32_t)row.last, row.value};
        memcpy(rows4 + k * sizeof there, &there, sizeof there);
    }
    for (uint32_t k = 0; k < shmcow_drafts(b, true); k++) {
        shmcow_draft row = shmcow_draft_at(b, true, k);
        shmcow_row6 there = {(uint64_t)(row.first >> 64), (uint64_t)row.first, (uint64_t)(row.last >> 64),
                             (uint64_t)row.last, row.value, 0};
        memcpy(rows6 + k * sizeof there, &there, sizeof there);
    }
}

/* The levels above the words, which lie there; and what fills nodes up. */
static inline void shmcow_fill_tree(uint8_t *level, uint32_t count, uint32_t word_bytes)
{
    uint64_t node_bytes = UINT64_C(16) * word_bytes;
    while (count > 0) {
        uint32_t nodes = shmcow_nodes(count);
        uint8_t *above = level + nodes * node_bytes;
        memset(level + (uint64_t)count * word_bytes, 0xff, nodes * node_bytes - (uint64_t)count * word_bytes);
        for (uint32_t node = 0; nodes > 1 && node < nodes; node++)
            memcpy(above + (uint64_t)node * word_bytes, level + node * node_bytes, word_bytes);
        count = nodes > 1 ? nodes : 0;
        level = above;
    }
}

/* What fills up the last leaf, and the tree over the first start of each: words at the beginning of leaves. */
static inline void shmcow_fill_leaves(uint8_t *tree, uint8_t *leaves, uint32_t intervals, bool wide)
{
    const shmcow_interval4 filler = {UINT32_MAX, 0};
    uint32_t count = shmcow_leaves(intervals), word_bytes = wide ? 8 : 4;
    uint64_t leaf_bytes = wide ? sizeof(shmcow_leaf6) : 64;
    for (uint64_t k = intervals; k < (uint64_t)count * 8; k++)
        if (wide)
            memset(leaves + k / 8 * leaf_bytes + k % 8 * 8, 0xff, 8);
        else
            memcpy(leaves + k * sizeof filler, &filler, sizeof filler);
    for (uint64_t leaf = 0; leaf < count; leaf++)
        memcpy(tree + leaf * word_bytes, leaves + leaf * leaf_bytes, word_bytes);
    shmcow_fill_tree(tree, count, word_bytes);
}

static inline void shmcow_iptable_fill(shmcow_iptable_builder *b, const shmcow_crc_table *crc, shmcow_iptable_header *h)
{
    shmcow_iptable_layout l = shmcow_iptable_lay_out(h);
    shmcow_clash never;
    uint8_t *block = b->block;
    shmcow_iptable_seal(crc, h);
    memcpy(block, h, sizeof *h);
    shmcow_flat flat4 = {b, false, 0, 0, block + l.leaves4, block + l.owners4, NULL};
    shmcow_flat flat6 = {b, true, 0, 0, block + l.leaves6, NULL, block + l.lows6};
    shmcow_flatten(&flat4, &never);
    shmcow_flatten(&flat6, &never);
    shmcow_fill_leaves(block + l.tree4, block + l.leaves4, h->intervals4, false);
    shmcow_fill_leaves(block + l.tree6, block + l.leaves6, h->intervals6, true);
    shmcow_store_rows(b, block + l.by_row4, block + l.by_row6);
    if (h->value_bytes > 0)
        memcpy(block + l.values, b->values.pile.at, (size_t)h->value_bytes);
}

/* Leave out each row that overlaps one before it without nesting, or repeats its range. The rows are sorted. */
static inline void shmcow_drop_clashes(shmcow_iptable_builder *b, bool wide)
{
    shmcow_pile *pile = wide ? &b->rows6 : &b->rows4;
    const size_t size = wide ? sizeof(shmcow_draft6) : sizeof(shmcow_draft4);
    uint32_t rows = shmcow_drafts(b, wide), kept = 0, open = SHMCOW_NOBODY;
    for (uint32_t k = 0; k < rows; k++) {
        shmcow_draft row = shmcow_draft_at(b, wide, k);
        while (open != SHMCOW_NOBODY && shmcow_draft_at(b, wide, open).last < row.first)
            open = *shmcow_draft_at(b, wide, open).parent;
        if (open != SHMCOW_NOBODY) {
            shmcow_draft around = shmcow_draft_at(b, wide, open);
            if (row.last > around.last || (around.first == row.first && around.last == row.last))
                continue;
        }
        memmove(pile->at + kept * size, pile->at + k * size, size);
        *shmcow_draft_at(b, wide, kept).parent = open;
        open = kept++;
    }
    pile->used = kept * size;
    b->dropped += rows - kept;
}

/* Sort, check, and lay out. 0; 1: two rows clash; -ENOMEM; -EFBIG. No row can be added afterwards. */
static inline int shmcow_iptable_finish(shmcow_iptable_builder *b, const shmcow_crc_table *crc, shmcow_clash *clash)
{
    shmcow_sort_rows(&b->rows4, sizeof(shmcow_draft4), shmcow_order4);
    shmcow_sort_rows(&b->rows6, sizeof(shmcow_draft6), shmcow_order6);
    if (b->drop_clashes) {
        shmcow_drop_clashes(b, false);
        shmcow_drop_clashes(b, true);
    }
    shmcow_flat flat4 = {b, false, 0, 0, NULL, NULL, NULL}, flat6 = {b, true, 0, 0, NULL, NULL, NULL};
    int r = shmcow_flatten(&flat4, clash) && shmcow_flatten(&flat6, clash) ? 0 : 1;
    if (r == 0) {
        shmcow_iptable_header h = {
            .rows4 = shmcow_drafts(b, false), .rows6 = shmcow_drafts(b, true),
            .intervals4 = flat4.count, .intervals6 = flat6.count,
            .value_bytes = b->values.pile.used, .value_count = b->values.count,
        };
        h.bytes = b->bytes = shmcow_iptable_lay_out(&h).end;
        b->block = h.bytes > SIZE_MAX / 2 ? NULL : calloc(1, (size_t)h.bytes);
        if (b->block != NULL)
            shmcow_iptable_fill(b, crc, &h);
        else
            r = -ENOMEM;
    }
    shmcow_pile_free(&b->rows4);
    shmcow_pile_free(&b->rows6);
    shmcow_values_builder_free(&b->values);
    return r;
}

static inline void shmcow_iptable_builder_free(shmcow_iptable_builder *b)
{
    shmcow_pile_free(&b->rows4);
    shmcow_pile_free(&b->rows6);
    shmcow_values_builder_free(&b->values);
    free(b->block);
    *b = (shmcow_iptable_builder){0};
}

#endif
