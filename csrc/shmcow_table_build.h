/* shmcow: how the table of shmcow_table.h is made. Python-free; it allocates private memory and nothing else.
 *
 * Purpose     Rows are added one after the other, and a repeated key is found at once; then everything is laid out in one
 *             block, which goes into the segment as it is.
 * Invariants  1. While rows are added, an index with a random seed finds repeated keys: whoever chooses the keys cannot
 *                make them collide.
 *             2. Equal rows in equal order make equal bytes, so that a version can share the segment of another: the seed
 *                in the block is taken from the records themselves, and another one if some row came to be far from home.
 *             3. Rows are collected as records, in their order, each with its value's reference. Then they are copied, once:
 *                into cells, or into records if they do not fit. A value that is used once, and short, goes along.
 */
#ifndef SHMCOW_TABLE_BUILD_H
#define SHMCOW_TABLE_BUILD_H

#include "shmcow_table.h"

#define SHMCOW_TABLE_TAG UINT64_C(0xFFFFFF)              /* the bits of a hash that the index has, above: */
#define SHMCOW_TABLE_PLACE ((UINT64_C(1) << 40) - 1)     /* 1 + the record's place / 8 */
#define SHMCOW_TABLE_RECORDS_MAX (UINT64_C(8) << 32)     /* bytes that 32 bits reach */
#define SHMCOW_SEEDS_TRIED 8u
#define SHMCOW_SPARE_HOMES 3u /* one more home for so many rows: 3 of 4 are full */
#define SHMCOW_ALONG_MAX 256u /* bytes of a value that goes along with its key */
#define SHMCOW_SHORT_KEY 65536u /* lengths below are marked in a bitmap */

typedef struct {
    uint32_t key_kind;
    bool finished;
    uint8_t schema[16];
    uint64_t seed; /* of the index */
    uint64_t rows;
    shmcow_pile block; /* room for a header, then the records */
    uint64_t *index;   /* open addressing, of a power of two; 0 is an empty one */
    uint64_t index_count;
    shmcow_values_builder values;
    uint64_t short_lengths[SHMCOW_SHORT_KEY / 64];
    shmcow_pile long_lengths; /* uint32_t, unsorted */
} shmcow_table_builder;

static inline int shmcow_table_begin(shmcow_table_builder *builder, uint32_t key_kind, uint64_t seed)
{
    *builder = (shmcow_table_builder){.key_kind = key_kind, .seed = seed};
    builder->values.seed = seed;
    if (shmcow_pile_reserve(&builder->block, sizeof(shmcow_table_header)) == NULL)
        return -ENOMEM;
    memset(builder->block.at, 0, sizeof(shmcow_table_header));
    builder->block.used = sizeof(shmcow_table_header);
    return 0;
}

static inline void shmcow_table_builder_free(shmcow_table_builder *builder)
{
    shmcow_pile_free(&builder->block);
    shmcow_pile_free(&builder->long_lengths);
    shmcow_values_builder_free(&builder->values);
    free(builder->index);
    builder->index = NULL;
}

/* The records so far, as a table that has nothing else. */
static inline shmcow_table shmcow_table_records(const shmcow_table_builder *builder)
{
    shmcow_table table = {.records = builder->block.at + sizeof(shmcow_table_header)};
    table.header.key_kind = builder->key_kind;
    table.header.records_bytes = builder->block.used - sizeof(shmcow_table_header);
    return table;
}

static inline int shmcow_index_grow(shmcow_table_builder *builder)
{
    uint64_t count = builder->index_count == 0 ? 1024 : builder->index_count * 2;
    uint64_t *index = calloc((size_t)count, sizeof *index);
    if (index == NULL)
        return -ENOMEM;
    shmcow_table table = shmcow_table_records(builder);
    shmcow_row row;
    for (uint64_t at = 0, next; shmcow_table_record(&table, at, &row, &next); at = next) {
        uint64_t hash = shmcow_hash(row.key.at, row.key.size, builder->seed);
        uint64_t slot = hash >> 32 & (count - 1);
        while (index[slot] != 0)
            slot = (slot + 1) & (count - 1);
        index[slot] = (hash & SHMCOW_TABLE_TAG) << 40 | (at / 8 + 1);
    }
    free(builder->index);
    builder->index = index;
    builder->index_count = count;
    return 0;
}

/* Which row, counted from 1, has its record at this place. */
static inline uint64_t shmcow_row_at(const shmcow_table *table, uint64_t place)
{
    shmcow_row row;
    uint64_t number = 1;
    for (uint64_t at = 0, next; at < place && shmcow_table_record(table, at, &row, &next); at = next)
        number++;
    return number;
}

/* Make room for a key. 1: *slot is its place in the index; 0: row *slot has it already; -ENOMEM, -EFBIG. */
static inline int shmcow_table_reserve(shmcow_table_builder *builder, const shmcow_key *key, uint64_t hash, uint64_t *slot)
{
    if (builder->rows * 2 >= builder->index_count && shmcow_index_grow(builder) < 0)
        return -ENOMEM;
    uint64_t bytes = 8 + shmcow_pad8(key->size), mask = builder->index_count - 1;
    if (builder->block.used + builder->values.pile.used + bytes > SHMCOW_TABLE_RECORDS_MAX - 2 * SHMCOW_ALONG_MAX ||
        builder->index_count > UINT64_C(1) << 32) /* as if all values went along */
        return -EFBIG;
    shmcow_table table = shmcow_table_records(builder);
    shmcow_row row;
    uint64_t next;
    for (*slot = hash >> 32 & mask; builder->index[*slot] != 0; *slot = (*slot + 1) & mask) {
        uint64_t found = builder->index[*slot], place = ((found & SHMCOW_TABLE_PLACE) - 1) * 8;
        if (found >> 40 == (hash & SHMCOW_TABLE_TAG) && shmcow_table_record(&table, place, &row, &next) &&
            shmcow_same_key(&row.key, key)) {
            *slot = shmcow_row_at(&table, place);
            return 0;
        }
    }
    return shmcow_pile_reserve(&builder->block, bytes) != NULL ? 1 : -ENOMEM;
}

static inline int shmcow_table_note_length(shmcow_table_builder *builder, uint32_t size)
{
    if (builder->key_kind == SHMCOW_KEY_INT)
        return 0;
    if (size < SHMCOW_SHORT_KEY) {
        builder->short_lengths[size / 64] |= UINT64_C(1) << size % 64;
        return 0;
    }
    uint8_t *at = shmcow_pile_reserve(&builder->long_lengths, sizeof size);
    if (at == NULL)
        return -ENOMEM;
    memcpy(at, &size, sizeof size);
    builder->long_lengths.used += sizeof size;
    return 0;
}

/* Add a row after shmcow_table_reserve, with nothing in between. 0 or -ENOMEM. */
static inline int shmcow_table_append(shmcow_table_builder *builder, const shmcow_key *key, uint64_t hash, uint64_t slot,
                                      uint32_t value)
{
    if (shmcow_table_note_length(builder, key->size) < 0)
        return -ENOMEM;
    uint8_t *at = builder->block.at + builder->block.used;
    uint64_t padded = shmcow_pad8(key->size), place = builder->block.used - sizeof(shmcow_table_header);
    if (padded > 0)
        memset(at + padded, 0, 8); /* the key's last 8 bytes, before the key */
    memcpy(at, &key->word, sizeof key->word);
    memcpy(at + 4, &value, sizeof value);
    memcpy(at + 8, key->at, key->size);
    builder->block.used += 8 + padded;
    builder->index[slot] = (hash & SHMCOW_TABLE_TAG) << 40 | (place / 8 + 1);
    builder->rows++;
    return 0;
}

/* ---- laying out ---- */

static inline int shmcow_compare_lengths(const void *a, const void *b)
{
    uint32_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Write the lengths that occur, ascending; -> how many. With NULL they are only counted. */
static inline uint64_t shmcow_put_lengths(const shmcow_table_builder *builder, uint8_t *out)
{
    uint64_t count = 0, many = builder->long_lengths.used / 4;
    for (uint32_t size = 0; size < SHMCOW_SHORT_KEY; size++)
        if (builder->short_lengths[size / 64] >> size % 64 & 1) {
            if (out != NULL)
                memcpy(out + count * 4, &size, sizeof size);
            count++;
        }
    for (uint64_t k = 0; k < many; k++) {
        const uint8_t *at = builder->long_lengths.at + k * 4;
        if (k > 0 && memcmp(at, at - 4, 4) == 0)
            continue;
        if (out != NULL)
            memcpy(out + count * 4, at, 4);
        count++;
    }
    return count;
}

/* The new block, and what is to be known of what was collected. */
typedef struct {
    const shmcow_table_builder *builder;
    shmcow_table old, table;
    uint8_t *uses;  /* two bits for each reference: 1: its value goes along with its key */
    uint32_t *next; /* for each home: how many rows have it, and then the cell for the next one of them */
    uint8_t *at, *cells, *records;
    uint64_t bytes, records_used;
    uint32_t *order;
} shmcow_layout;

static inline uint32_t shmcow_uses(const shmcow_layout *l, uint32_t reference)
{
    return l->uses[reference / 4] >> reference % 4 * 2 & 3u;
}

static inline void shmcow_set_uses(shmcow_layout *l, uint32_t reference, uint32_t uses)
{
    l->uses[reference / 4] = (uint8_t)(l->uses[reference / 4] | uses << reference % 4 * 2);
}

/* Mark the values that are used once and short. -> bytes of the others */
static inline uint64_t shmcow_choose_values(shmcow_layout *l)
{
    const shmcow_pile *pile = &l->builder->values.pile;
    shmcow_row row;
    uint64_t bytes = 0;
    for (uint64_t at = 0, next; shmcow_table_record(&l->old, at, &row, &next); at = next)
        shmcow_set_uses(l, row.value, shmcow_uses(l, row.value) == 0 ? 1 : 2);
    for (uint64_t at = 0; at < pile->used;) {
        uint32_t length = shmcow_load32(pile->at + at), reference = (uint32_t)(at / 4);
        if (length > SHMCOW_ALONG_MAX)
            shmcow_set_uses(l, reference, 2);
        bytes += shmcow_uses(l, reference) == 1 ? 0 : shmcow_padded_value(length);
        at += shmcow_padded_value(length);
    }
    return bytes;
}

/* Copy the values that stay among themselves. Where such a one was collected, its new reference is left. */
static inline void shmcow_put_values(shmcow_layout *l, uint8_t *out)
{
    const shmcow_pile *pile = &l->builder->values.pile;
    uint32_t used = 0; /* words */
    for (uint64_t at = 0; at < pile->used;) {
        uint64_t padded = shmcow_padded_value(shmcow_load32(pile->at + at));
        if (shmcow_uses(l, (uint32_t)(at / 4)) != 1) {
            memcpy(out + (uint64_t)used * 4, pile->at + at, (size_t)padded);
            memcpy(pile->at + at, &used, sizeof used);
            used += (uint32_t)(padded / 4);
        }
        at += padded;
    }
}

/* The value of a row that was collected: its bytes if it goes along, and *value is how many; else NULL, and *value is what
   was collected as a length, and then left as a reference. */
static inline const uint8_t *shmcow_along(const shmcow_layout *l, const shmcow_row *row, uint32_t *value)
{
    const uint8_t *entry = l->builder->values.pile.at + (uint64_t)row->value * 4;
    *value = shmcow_load32(entry);
    return shmcow_uses(l, row->value) == 1 ? entry + 4 : NULL;
}

/* Bytes of a row's key, and of what goes along. */
static inline uint64_t shmcow_row_bytes(const shmcow_layout *l, const shmcow_row *row)
{
    uint32_t value;
    return row->key.size + (uint64_t)(shmcow_along(l, row, &value) != NULL ? value : 0);
}

/* Bytes of the cell that a row would need. */
static inline uint64_t shmcow_cell_for(const shmcow_layout *l, const shmcow_row *row)
{
    uint32_t value;
    bool along = shmcow_along(l, row, &value) != NULL;
    uint64_t bytes = shmcow_row_bytes(l, row) + (along ? offsetof(shmcow_cell, more) : sizeof(shmcow_cell));
    return bytes > sizeof(shmcow_cell) ? (bytes + 3) / 4 * 4 : sizeof(shmcow_cell);
}

/* Cells as large as they can be without taking an eighth more than those of the best size; and what the records take then. */
static inline void shmcow_choose_cells(shmcow_layout *l)
{
    enum { STEPS = SHMCOW_CELL_MAX / 4, FEWEST = sizeof(shmcow_cell) / 4 };
    uint64_t wanting[STEPS + 2] = {0}; /* bytes of records, by the least cell that would have room instead */
    uint64_t totals[STEPS + 1], least = UINT64_MAX, records = 0;
    uint32_t largest = FEWEST;
    shmcow_row row;
    for (uint64_t at = 0, next; shmcow_table_record(&l->old, at, &row, &next); at = next) {
        uint64_t step = shmcow_cell_for(l, &row) / 4;
        wanting[step <= STEPS ? step : STEPS + 1] += 8 + shmcow_pad8(shmcow_row_bytes(l, &row));
        largest = step <= STEPS && step > largest ? (uint32_t)step : largest;
    }
    for (uint32_t step = STEPS + 1; step-- > FEWEST;) {
        records += wanting[step + 1];
        totals[step] = records + l->table.header.homes * step * 4;
        least = totals[step] < least ? totals[step] : least;
    }
    while (totals[largest] > least + least / 8)
        largest--;
    l->table.header.cell_bytes = largest * 4;
    for (uint32_t step = largest + 1; step <= STEPS + 1; step++)
        l->table.header.records_bytes += wanting[step];
}

/* Give each home its cells: as with linear probing, in the order of the homes. */
static inline void shmcow_place_homes(shmcow_layout *l)
{
    shmcow_table_header *h = &l->table.header;
    uint64_t cell = 0;
    shmcow_row row;
    memset(l->next, 0, (size_t)h->homes * sizeof *l->next);
    for (uint64_t at = 0, next; shmcow_table_record(&l->old, at, &row, &next); at = next)
        l->next[shmcow_table_home(&l->table, shmcow_key_hash(&l->table, &row.key))]++;
    h->distance_max = 0;
    for (uint64_t home = 0; home < h->homes; home++) {
        uint32_t rows = l->next[home];
        cell = cell > home ? cell : home;
        l->next[home] = (uint32_t)cell;
        cell += rows;
        if (rows > 0 && cell - 1 - home > h->distance_max)
            h->distance_max = (uint32_t)(cell - 1 - home);
    }
    h->cell_count = cell > h->homes ? cell : h->homes;
}

/* Write a row that does not fit into a cell. -> its place */
static inline uint64_t shmcow_put_record(shmcow_layout *l, const shmcow_row *row)
{
    uint32_t value;
    const uint8_t *along = shmcow_along(l, row, &value);
    const uint64_t place = l->records_used;
    uint8_t *at = l->records + place;
    uint32_t word = along != NULL ? value | SHMCOW_TABLE_ALONG : value;
    memcpy(at, &row->key.word, sizeof row->key.word);
    memcpy(at + 4, &word, sizeof word);
    memcpy(at + 8, row->key.at, row->key.size);
    if (along != NULL)
        memcpy(at + 8 + row->key.size, along, value);
    l->records_used += 8 + shmcow_pad8(shmcow_row_bytes(l, row));
    return place;
}

static inline void shmcow_put_cell(shmcow_layout *l, uint64_t k, uint64_t distance, const shmcow_row *row, uint64_t hash)
{
    uint8_t *at = l->cells + k * l->table.header.cell_bytes;
    uint32_t value;
    const uint8_t *along = shmcow_along(l, row, &value);
    const uint64_t head = along != NULL ? offsetof(shmcow_cell, more) : sizeof(shmcow_cell);
    shmcow_cell cell = {
        .distance = (uint8_t)(distance < SHMCOW_DISTANCE_MAX ? distance + 1 : SHMCOW_DISTANCE_MAX),
        .value = (uint8_t)(along != NULL ? value : SHMCOW_CELL_REFERS), .word = (uint16_t)row->key.word, .more = value,
    };
    if (shmcow_cell_for(l, row) <= l->table.header.cell_bytes) {
        memcpy(at, &cell, sizeof cell); /* what follows may cover its end */
        memcpy(at + head, row->key.at, row->key.size);
        if (along != NULL)
            memcpy(at + head + row->key.size, along, value);
    } else {
        cell.value = SHMCOW_CELL_RECORD;
        cell.word = shmcow_table_tag(hash);
        cell.more = (uint32_t)(shmcow_put_record(l, row) / 8);
        memcpy(at, &cell, sizeof cell);
    }
}

static inline void shmcow_put_rows(shmcow_layout *l)
{
    uint32_t *order = l->order;
    shmcow_row row;
    for (uint64_t at = 0, next; shmcow_table_record(&l->old, at, &row, &next); at = next) {
        uint64_t hash = shmcow_key_hash(&l->table, &row.key), home = shmcow_table_home(&l->table, hash);
        uint32_t cell = l->next[home]++;
        *order++ = cell;
        shmcow_put_cell(l, cell, cell - home, &row, hash);
    }
}

/* Everything about the table but its bytes. -ENOMEM */
static inline int shmcow_plan(shmcow_layout *l)
{
    const shmcow_table_builder *builder = l->builder;
    shmcow_table_header *h = &l->table.header;
    l->old = shmcow_table_records(builder);
    l->uses = calloc((size_t)(builder->values.pile.used / 16) + 1, 1);
    memcpy(h->magic, SHMCOW_TABLE_MAGIC, sizeof h->magic);
    memcpy(h->schema, builder->schema, sizeof h->schema);
    h->format = SHMCOW_TABLE_FORMAT;
    h->key_kind = builder->key_kind;
    h->rows = builder->rows;
    h->homes = builder->rows + builder->rows / SHMCOW_SPARE_HOMES + 1;
    h->value_count = builder->values.count;
    h->length_count = shmcow_put_lengths(builder, NULL);
    l->next = malloc((size_t)h->homes * sizeof *l->next);
    if (l->uses == NULL || l->next == NULL)
        return -ENOMEM;
    h->values_bytes = shmcow_choose_values(l);
    shmcow_choose_cells(l);
    uint64_t digest = shmcow_hash(l->old.records, (size_t)l->old.header.records_bytes, h->homes);
    for (unsigned int tried = 0; tried < SHMCOW_SEEDS_TRIED; tried++) {
        h->seed = digest + tried;
        shmcow_place_homes(l);
        if (h->distance_max < SHMCOW_DISTANCE_MAX)
            break;
    }
    return 0;
}

/* The block, and all that goes into it. -ENOMEM */
static inline int shmcow_fill(shmcow_layout *l)
{
    const shmcow_table_header *h = &l->table.header;
    const uint64_t cells = shmcow_pad8(h->cell_count * h->cell_bytes), order = shmcow_pad8(h->rows * 4);
    const uint64_t values = shmcow_pad8(h->values_bytes);
    l->bytes = sizeof *h + cells + h->records_bytes + order + values + h->length_count * 4;
    l->at = l->bytes > SIZE_MAX / 2 ? NULL : calloc(1, (size_t)l->bytes);
    if (l->at == NULL)
        return -ENOMEM;
    l->cells = l->at + sizeof *h;
    l->records = l->cells + cells;
    l->order = (uint32_t *)(void *)(l->records + h->records_bytes);
    shmcow_put_values(l, l->records + h->records_bytes + order);
    shmcow_put_rows(l);
    shmcow_put_lengths(l->builder, l->records + h->records_bytes + order + values);
    return 0;
}

/* Lay out everything in the block. 0 or -ENOMEM; then the builder takes no more rows. */
static inline int shmcow_table_finish(shmcow_table_builder *builder, const shmcow_crc_table *crc)
{
    free(builder->index);
    builder->index = NULL;
    builder->index_count = 0;
    builder->finished = true;
    if (builder->long_lengths.used > 0)
        qsort(builder->long_lengths.at, (size_t)(builder->long_lengths.used / 4), 4, shmcow_compare_lengths);
    shmcow_layout layout = {.builder = builder};
    shmcow_table_header *h = &layout.table.header;
    int r = shmcow_plan(&layout);
    if (r == 0)
        r = shmcow_fill(&layout);
    free(layout.uses);
    free(layout.next);
    if (r < 0)
        return r;
    h->crc = shmcow_crc(crc, h, offsetof(shmcow_table_header, crc));
    memcpy(layout.at, h, sizeof *h);
    free(builder->block.at);
    builder->block = (shmcow_pile){layout.at, layout.bytes, layout.bytes};
    shmcow_values_builder_free(&builder->values);
    return 0;
}

#endif
