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

#include <errno.h>
#include <stdlib.h>

#include "shmcow_iptable_pack.h"

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

/* Whoever begins where another has begun is more specific. */
static inline void shmcow_emit(const shmcow_iptable_builder *b, shmcow_packer *p, shmcow_u128 start, uint32_t owner)
{
    if (p->intervals == 0 || p->start != start)
        shmcow_pack_start(p, start);
    if (owner == SHMCOW_NOBODY)
        shmcow_pack_value(p, 0, 0);
    else
        shmcow_pack_value(p, shmcow_draft_at(b, p->wide, owner).value + 1, owner + 1);
}

/* Close what ends before `next`, the innermost first. */
static inline uint32_t shmcow_close_rows(const shmcow_iptable_builder *b, shmcow_packer *p, uint32_t open, shmcow_u128 next)
{
    while (open != SHMCOW_NOBODY) {
        shmcow_draft row = shmcow_draft_at(b, p->wide, open);
        if (row.last >= next)
            break;
        open = *row.parent;
        shmcow_emit(b, p, row.last + 1, open);
    }
    return open;
}

static inline bool shmcow_flatten(const shmcow_iptable_builder *b, shmcow_packer *p, shmcow_clash *clash)
{
    uint32_t rows = shmcow_drafts(b, p->wide), open = SHMCOW_NOBODY;
    const shmcow_u128 highest = p->wide ? ~(shmcow_u128)0 : UINT32_MAX;
    if (rows > 0)
        shmcow_emit(b, p, 0, SHMCOW_NOBODY);
    for (uint32_t k = 0; k < rows; k++) {
        shmcow_draft row = shmcow_draft_at(b, p->wide, k);
        open = shmcow_close_rows(b, p, open, row.first);
        if (open != SHMCOW_NOBODY) {
            shmcow_draft around = shmcow_draft_at(b, p->wide, open);
            bool same = around.first == row.first && around.last == row.last;
            if (same || row.last > around.last) {
                *clash = (shmcow_clash){around.number, row.number, same,
                                        {p->wide, around.first, around.last, around.value},
                                        {p->wide, row.first, row.last, row.value}};
                return false;
            }
        }
        *row.parent = open;
        open = k;
        shmcow_emit(b, p, row.first, k);
    }
    shmcow_close_rows(b, p, open, highest);
    shmcow_pack_end(p);
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

static inline void shmcow_iptable_fill(shmcow_iptable_builder *b, const shmcow_crc_table *crc, shmcow_iptable_header *h)
{
    shmcow_iptable_layout l = shmcow_iptable_lay_out(h);
    shmcow_clash never;
    uint8_t *block = b->block;
    uint32_t slots = shmcow_slots(h->value_words);
    shmcow_iptable_seal(crc, h);
    memcpy(block, h, sizeof *h);
    shmcow_packer four = shmcow_pack_into(block, &l.four, false, slots, h->leaves4);
    shmcow_packer six = shmcow_pack_into(block, &l.six, true, slots, h->leaves6);
    shmcow_flatten(b, &four, &never);
    shmcow_flatten(b, &six, &never);
    shmcow_store_rows(b, block + l.four.by_row, block + l.six.by_row);
    if (h->value_words > 0)
        memcpy(block + l.values, b->values.pile.at, (size_t)h->value_words * 4);
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
    const uint32_t value_words = (uint32_t)(b->values.pile.used / 4), slots = shmcow_slots(value_words);
    shmcow_packer four = {.wide = false, .slots = slots}, six = {.wide = true, .slots = slots};
    int r = shmcow_flatten(b, &four, clash) && shmcow_flatten(b, &six, clash) ? 0 : 1;
    if (r == 0) {
        shmcow_iptable_header h = {
            .rows4 = shmcow_drafts(b, false), .rows6 = shmcow_drafts(b, true),
            .intervals4 = four.intervals, .intervals6 = six.intervals, .leaves4 = four.leaves, .leaves6 = six.leaves,
            .value_words = value_words, .value_count = (uint32_t)b->values.count,
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
