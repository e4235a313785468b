/* shmcow: how the table of shmcow_table.h is made. Python-free; it allocates private memory and nothing else.
 *
 * Purpose     Rows are added one after the other, and a repeated key is found at once; then everything is laid out in one
 *             block, which goes into the segment as it is.
 * Invariants  1. While rows are added, an index with a random seed finds repeated keys: whoever chooses the keys cannot
 *                make them collide.
 *             2. Equal rows in equal order make equal bytes, so that a version can share the segment of another: the seed
 *                in the block is taken from the records themselves, and another one if some key came to lie far away.
 *             3. The records are made where they stay: the block is never copied, but by realloc.
 */
#ifndef SHMCOW_TABLE_BUILD_H
#define SHMCOW_TABLE_BUILD_H

#include "shmcow_table.h"

#define SHMCOW_PROBES_WANTED 1024u
#define SHMCOW_SEEDS_TRIED 8u
#define SHMCOW_SHORT_KEY 65536u /* lengths below are marked in a bitmap */

typedef struct {
    uint32_t key_kind;
    bool finished;
    uint8_t schema[16];
    uint64_t seed; /* of the index */
    uint64_t rows;
    shmcow_pile block; /* room for a header, then the records */
    uint64_t *index;   /* as the slots of a table, but of a power of two */
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
    shmcow_record record;
    for (uint64_t at = 0; shmcow_table_record(&table, at, &record); at = record.next) {
        uint64_t hash = shmcow_hash(record.key.at, record.key.size, builder->seed);
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
    shmcow_record record;
    uint64_t row = 1;
    for (uint64_t at = 0; at < place && shmcow_table_record(table, at, &record); at = record.next)
        row++;
    return row;
}

/* Make room for a key. 1: *slot is its place in the index; 0: row *slot has it already; -ENOMEM, -EFBIG. */
static inline int shmcow_table_reserve(shmcow_table_builder *builder, const shmcow_key *key, uint64_t hash, uint64_t *slot)
{
    if (builder->rows * 2 >= builder->index_count && shmcow_index_grow(builder) < 0)
        return -ENOMEM;
    uint64_t bytes = 8 + shmcow_pad8(key->size), mask = builder->index_count - 1;
    if (builder->block.used + bytes > SHMCOW_TABLE_RECORD * 8 || builder->index_count > UINT64_C(1) << 32)
        return -EFBIG;
    shmcow_table table = shmcow_table_records(builder);
    shmcow_record record;
    for (*slot = hash >> 32 & mask; builder->index[*slot] != 0; *slot = (*slot + 1) & mask) {
        uint64_t found = builder->index[*slot], place = ((found & SHMCOW_TABLE_RECORD) - 1) * 8;
        if (found >> 40 == (hash & SHMCOW_TABLE_TAG) && shmcow_table_record(&table, place, &record) &&
            record.key.word == key->word && memcmp(record.key.at, key->at, key->size) == 0) {
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

/* Give each record its slot. -> the number of slots that a lookup must look at, at most */
static inline uint64_t shmcow_put_slots(const shmcow_table *table, uint8_t *slots)
{
    uint64_t slot_count = table->header.slot_count, most = 0;
    shmcow_record record;
    memset(slots, 0, (size_t)slot_count * 8);
    for (uint64_t at = 0; shmcow_table_record(table, at, &record); at = record.next) {
        uint64_t hash = shmcow_key_hash(table, &record.key), slot = shmcow_scale(hash, slot_count), probes = 1;
        for (; shmcow_load64(slots + slot * 8) != 0; probes++)
            slot = slot + 1 == slot_count ? 0 : slot + 1;
        uint64_t filled = (hash & SHMCOW_TABLE_TAG) << 40 | (at / 8 + 1);
        memcpy(slots + slot * 8, &filled, sizeof filled);
        most = probes > most ? probes : most;
    }
    return most;
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
    shmcow_table table = shmcow_table_records(builder);
    shmcow_table_header *h = &table.header;
    memcpy(h->magic, SHMCOW_TABLE_MAGIC, sizeof h->magic);
    memcpy(h->schema, builder->schema, sizeof h->schema);
    h->format = SHMCOW_TABLE_FORMAT;
    h->rows = builder->rows;
    h->slot_count = builder->rows + builder->rows / 2 + 1;
    h->values_bytes = builder->values.pile.used;
    h->value_count = builder->values.count;
    h->length_count = shmcow_put_lengths(builder, NULL);
    uint64_t values_padded = shmcow_pad8(h->values_bytes), values_at = builder->block.used;
    uint64_t total = values_at + values_padded + h->slot_count * 8 + h->length_count * 4;
    uint8_t *at = total > SIZE_MAX / 2 ? NULL : realloc(builder->block.at, (size_t)total);
    if (at == NULL)
        return -ENOMEM;
    builder->block = (shmcow_pile){at, total, total};
    table.records = at + sizeof *h;
    if (values_padded > 0) {
        memset(at + values_at + values_padded - 8, 0, 8);
        memcpy(at + values_at, builder->values.pile.at, (size_t)h->values_bytes);
    }
    shmcow_values_builder_free(&builder->values);
    uint8_t *slots = at + values_at + values_padded;
    uint64_t digest = shmcow_hash(table.records, (size_t)h->records_bytes, h->slot_count);
    for (unsigned int tried = 0; tried < SHMCOW_SEEDS_TRIED; tried++) {
        h->seed = digest + tried;
        h->probe_max = shmcow_put_slots(&table, slots);
        if (h->probe_max <= SHMCOW_PROBES_WANTED)
            break;
    }
    shmcow_put_lengths(builder, slots + h->slot_count * 8);
    h->crc = shmcow_crc(crc, h, offsetof(shmcow_table_header, crc));
    memcpy(at, h, sizeof *h);
    return 0;
}

#endif
