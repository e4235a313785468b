/* shmcow: a hash table in shared memory, found, walked and searched in place. Python-free; reading allocates nothing.
 *
 * Purpose     What Table reads: keys that are texts, bytes or integers, each with the reference of a value.
 * Format      Native byte order. header (128 bytes) | cells | records | order | values (shmcow_values.h) | key lengths; zeros
 *             up to the next multiple of 8 after cells, order and values. All places follow from the header's counts.
 *             Cell: as many bytes as the header says, for one row. uint8_t distance: 1 + how many cells it is away from its
 *             home, at most 255; 0: the cell is empty. uint8_t value, uint16_t word, then the key, and then the value itself,
 *             so many bytes as `value` says. The word is the key's length; an integer has 8 bytes, and the word 0, or 1 if
 *             it is 2^63 or more. If `value` is 254, the value's reference comes first, uint32_t, and then the key. If it is
 *             255, the row is a record: the place / 8 of that comes, uint32_t, and the word is 16 bits of the hash.
 *             The home of a hash is the upper half of hash * homes; there are some more cells, so that the last ones have
 *             room behind them. Rows stand in the order of their homes, each at its home or as near behind it as can be.
 *             Record: uint32_t word, uint32_t value, the key, and zeros up to the next multiple of 8; as a cell, but that
 *             the top bit of the value says that it is a length.
 *             Order: uint32_t, the cell of each row, in the order in which they were given.
 *             Values stand in the order in which the rows use them first.
 *             Key lengths: uint32_t, each that occurs, ascending (of integers: none).
 *             Whatever else a later format changes, the magic bytes, the format and the header's CRC stay where they are.
 * Invariants  1. Whatever the bytes, nothing outside of the segment is read, and every loop ends.
 *             2. The header is copied once and checked; nothing else is believed: each cell is checked when it is met.
 *             3. A lookup waits for memory once, if rows are short and of like length: for one cell and the few behind it.
 *                Whoever is not at home or behind it is not there, which the distances tell without a look at the keys.
 * Who writes  shmcow_table_build.h, in private memory, before the segment is made. Readers map it read-only.
 */
#ifndef SHMCOW_TABLE_H
#define SHMCOW_TABLE_H

#include <assert.h>
#include <stddef.h>

#include "shmcow_format.h"
#include "shmcow_values.h"

#define SHMCOW_TABLE_MAGIC "cowtable"
#define SHMCOW_TABLE_FORMAT 2u
#define SHMCOW_TABLE_ALONG (UINT32_C(1) << 31) /* in a record: the value stands behind the key */
#define SHMCOW_LINE 64 /* bytes that memory is fetched in */
#define SHMCOW_CELL_MAX 248u
#define SHMCOW_DISTANCE_MAX 255u /* what a cell says of greater ones, too */

enum shmcow_key_kind { SHMCOW_KEY_STR = 1, SHMCOW_KEY_BYTES = 2, SHMCOW_KEY_INT = 3 };

typedef struct {
    uint8_t distance, value;
    uint16_t word;
    uint32_t more; /* only if the value is not in the cell: */
} shmcow_cell;
#define SHMCOW_CELL_REFERS 254u
#define SHMCOW_CELL_RECORD 255u

static_assert(sizeof(shmcow_cell) == 8 && offsetof(shmcow_cell, more) == 4, "nothing is padded");

typedef struct {
    uint8_t magic[8];
    uint32_t format;
    uint32_t key_kind;
    uint64_t rows;
    uint64_t seed;
    uint64_t homes;
    uint64_t cell_count; /* homes, and what is behind the last one */
    uint64_t records_bytes;
    uint64_t values_bytes; /* of those that do not stand behind a key */
    uint64_t value_count;  /* different ones, with those */
    uint64_t length_count;
    uint8_t schema[16];    /* fingerprint of the values' type; zeros: anything goes */
    uint32_t cell_bytes;   /* a multiple of 4 */
    uint32_t distance_max; /* of a cell from its home */
    uint8_t reserved[20];
    uint32_t crc; /* of all before it */
} shmcow_table_header;

static_assert(sizeof(shmcow_table_header) == 128, "the header is two cache lines");
static_assert(offsetof(shmcow_table_header, rows) == 16 && offsetof(shmcow_table_header, schema) == 80 &&
                  offsetof(shmcow_table_header, cell_bytes) == 96 && offsetof(shmcow_table_header, crc) == 124,
              "nothing is padded");

typedef struct {
    shmcow_table_header header; /* a private copy */
    const uint8_t *cells;
    const uint8_t *records;
    const uint8_t *order;
    const uint8_t *lengths;
    shmcow_values values;
} shmcow_table;

/* A key as it is looked up: its bytes, and the word of its record. */
typedef struct {
    const uint8_t *at;
    uint32_t size;
    uint32_t word;
} shmcow_key;

/* A row: its key, and its value: a reference, or bytes behind the key. */
typedef struct {
    shmcow_key key;
    uint32_t value; /* a reference or a length */
    bool along;     /* a length */
} shmcow_row;

static inline uint64_t shmcow_pad8(uint64_t bytes)
{
    return (bytes + 7) & ~UINT64_C(7);
}

static inline uint64_t shmcow_scale(uint64_t hash, uint64_t slot_count)
{
    return (uint64_t)((unsigned __int128)hash * slot_count >> 64);
}

static inline uint64_t shmcow_load64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static inline uint32_t shmcow_load32(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static inline uint64_t shmcow_key_hash(const shmcow_table *table, const shmcow_key *key)
{
    return shmcow_hash(key->at, key->size, table->header.seed);
}

/* ---- opening ---- */

/* Look at the header of a segment's payload. NULL: it is a table; else what is wrong with it, for people. */
static inline const char *shmcow_table_open(const shmcow_crc_table *crc, shmcow_table *table, const void *payload,
                                            uint64_t bytes)
{
    const shmcow_table_header *h = &table->header;
    const uint8_t *at = payload;
    if (bytes < sizeof *h)
        return "it is too short to have a header";
    memcpy(&table->header, at, sizeof *h);
    if (memcmp(h->magic, SHMCOW_TABLE_MAGIC, sizeof h->magic) != 0)
        return "it does not begin with a table's magic bytes";
    if (h->crc != shmcow_crc(crc, h, offsetof(shmcow_table_header, crc)))
        return "the checksum of its header is wrong";
    if (h->format != SHMCOW_TABLE_FORMAT)
        return shmcow_other_format();
    if (h->key_kind < SHMCOW_KEY_STR || h->key_kind > SHMCOW_KEY_INT)
        return "its keys are of an unknown kind";
    bytes -= sizeof *h;
    if (h->cell_bytes < sizeof(shmcow_cell) || h->cell_bytes > SHMCOW_CELL_MAX || h->cell_bytes % 4 != 0 ||
        h->cell_count > bytes / h->cell_bytes || shmcow_pad8(h->cell_count * h->cell_bytes) > bytes || h->homes == 0 ||
        h->homes > h->cell_count || h->distance_max >= h->cell_count)
        return "the number of its cells is wrong";
    bytes -= shmcow_pad8(h->cell_count * h->cell_bytes);
    if (h->records_bytes > bytes || h->records_bytes % 8 != 0)
        return "the size of its records is wrong";
    bytes -= h->records_bytes;
    if (h->rows > h->cell_count || h->rows > bytes / 4 || shmcow_pad8(h->rows * 4) > bytes || h->value_count > h->rows)
        return "the number of its rows is wrong";
    bytes -= shmcow_pad8(h->rows * 4);
    if (h->values_bytes > bytes || h->values_bytes % 4 != 0 || shmcow_pad8(h->values_bytes) > bytes)
        return "the size of its values is wrong";
    bytes -= shmcow_pad8(h->values_bytes);
    if (h->length_count > bytes / 4 || h->length_count * 4 != bytes || h->length_count > h->rows)
        return "the number of its key lengths is wrong";
    table->cells = at + sizeof *h;
    table->records = table->cells + shmcow_pad8(h->cell_count * h->cell_bytes);
    table->order = table->records + h->records_bytes;
    table->values = (shmcow_values){table->order + shmcow_pad8(h->rows * 4), h->values_bytes};
    table->lengths = table->values.at + shmcow_pad8(h->values_bytes);
    return NULL;
}

/* ---- rows ---- */

/* The record at a place; false: it does not lie inside of the records. */
static inline bool shmcow_table_record(const shmcow_table *table, uint64_t at, shmcow_row *row, uint64_t *next)
{
    const uint64_t bytes = table->header.records_bytes;
    if (bytes < 8 || at > bytes - 8)
        return false;
    const bool integer = table->header.key_kind == SHMCOW_KEY_INT;
    uint32_t word = shmcow_load32(table->records + at), value = shmcow_load32(table->records + at + 4);
    row->key = (shmcow_key){table->records + at + 8, integer ? 8 : word, word};
    row->along = value & SHMCOW_TABLE_ALONG;
    row->value = value & ~SHMCOW_TABLE_ALONG;
    uint64_t size = (uint64_t)row->key.size + (row->along ? row->value : 0);
    *next = at + 8 + shmcow_pad8(size);
    return size <= bytes - at - 8 && !(integer && word > 1);
}

static inline const uint8_t *shmcow_cell_at(const shmcow_table *table, uint64_t k)
{
    return table->cells + k * table->header.cell_bytes;
}

/* What is in a cell, which is not empty; false: it does not fit, or leads to no record. */
static inline bool shmcow_table_cell(const shmcow_table *table, const uint8_t *at, shmcow_row *row)
{
    const bool integer = table->header.key_kind == SHMCOW_KEY_INT;
    shmcow_cell cell;
    uint64_t next;
    memcpy(&cell, at, sizeof cell);
    if (cell.value == SHMCOW_CELL_RECORD)
        return shmcow_table_record(table, (uint64_t)cell.more * 8, row, &next);
    row->along = cell.value != SHMCOW_CELL_REFERS;
    row->value = row->along ? cell.value : cell.more;
    const uint32_t head = row->along ? offsetof(shmcow_cell, more) : sizeof cell;
    row->key = (shmcow_key){at + head, integer ? 8 : cell.word, cell.word};
    return head + row->key.size + (row->along ? row->value : 0) <= table->header.cell_bytes && !(integer && cell.word > 1);
}

/* The bytes of a row's value, or NULL if its reference leads nowhere. */
static inline const uint8_t *shmcow_table_value(const shmcow_table *table, const shmcow_row *row, uint32_t *length)
{
    *length = row->value;
    return row->along ? row->key.at + row->key.size : shmcow_value_at(&table->values, row->value, length);
}

/* ---- finding ---- */

static inline uint64_t shmcow_table_home(const shmcow_table *table, uint64_t hash)
{
    return shmcow_scale(hash, table->header.homes);
}

static inline uint16_t shmcow_table_tag(uint64_t hash)
{
    return (uint16_t)hash;
}

/* As memcmp, which a call costs more than most keys do. */
static inline bool shmcow_same_bytes(const uint8_t *a, const uint8_t *b, uint32_t size)
{
    if (size < 8 || size > 64)
        return memcmp(a, b, size) == 0;
    for (uint32_t k = 0; k < size - 8; k += 8)
        if (shmcow_word_of(a + k) != shmcow_word_of(b + k))
            return false;
    return shmcow_word_of(a + size - 8) == shmcow_word_of(b + size - 8);
}

/* Of the same length, if their words are the same. */
static inline bool shmcow_same_key(const shmcow_key *a, const shmcow_key *b)
{
    return a->word == b->word && shmcow_same_bytes(a->at, b->at, b->size);
}

/* 1: the cell has the key, and *row is set; 0: another one; -1: the table contradicts itself. */
static inline int shmcow_table_try(const shmcow_table *table, const uint8_t *at, const shmcow_key *key, uint64_t hash,
                                   shmcow_row *row)
{
    shmcow_cell cell;
    memcpy(&cell, at, sizeof cell);
    if (cell.word != (cell.value == SHMCOW_CELL_RECORD ? shmcow_table_tag(hash) : key->word))
        return 0;
    if (!shmcow_table_cell(table, at, row))
        return -1;
    return shmcow_same_key(&row->key, key);
}

/* Have a cell fetched, and two lines behind it, where most rows end: they are waited for together.
   (gcc takes a function that only prefetches for one that does nothing, and leaves calls of it out: hence always_inline.) */
__attribute__((always_inline)) static inline void shmcow_fetch_cell(const shmcow_table *table, const uint8_t *at)
{
    __builtin_prefetch(at);
    __builtin_prefetch(at + SHMCOW_LINE < table->records ? at + SHMCOW_LINE : at);
    __builtin_prefetch(at + 2 * SHMCOW_LINE < table->records ? at + 2 * SHMCOW_LINE : at);
}

/* Have a key's cell fetched: for who looks up many. */
__attribute__((always_inline)) static inline void shmcow_table_fetch(const shmcow_table *table, uint64_t hash)
{
    shmcow_fetch_cell(table, shmcow_cell_at(table, shmcow_table_home(table, hash)));
}

/* Find a key whose hash is known. 1: *row is set; 0: it is not there; -1: the table contradicts itself. */
static inline int shmcow_table_find(const shmcow_table *table, const shmcow_key *key, uint64_t hash, shmcow_row *row)
{
    const uint64_t home = shmcow_table_home(table, hash), most = table->header.distance_max;
    const uint64_t left = table->header.cell_count - home;
    const uint8_t *at = shmcow_cell_at(table, home);
    shmcow_fetch_cell(table, at);
    for (uint64_t d = 0; d <= most && d < left; d++, at += table->header.cell_bytes) {
        uint32_t there = *at, own = d < SHMCOW_DISTANCE_MAX ? (uint32_t)d + 1 : SHMCOW_DISTANCE_MAX;
        if (there < own) /* empty, or its home is behind this one */
            return 0;
        if (there == own) {
            int r = shmcow_table_try(table, at, key, hash, row);
            if (r != 0)
                return r;
        } else if (there > most + 1) {
            return -1;
        }
    }
    return 0;
}

/* The row with a number, from 0, in the order in which they were given. */
static inline bool shmcow_table_row(const shmcow_table *table, uint64_t number, shmcow_row *row)
{
    if (number >= table->header.rows)
        return false;
    uint64_t cell = shmcow_load32(table->order + number * 4);
    return cell < table->header.cell_count && *shmcow_cell_at(table, cell) != 0 &&
           shmcow_table_cell(table, shmcow_cell_at(table, cell), row);
}

/* Have a row fetched that is about to be asked for. */
__attribute__((always_inline)) static inline void shmcow_table_fetch_row(const shmcow_table *table, uint64_t number)
{
    uint64_t cell = number < table->header.rows ? shmcow_load32(table->order + number * 4) : 0;
    if (cell < table->header.cell_count)
        shmcow_fetch_cell(table, shmcow_cell_at(table, cell));
}

/* ---- searching ---- */

/* The longest key that the text begins with. Results as of shmcow_table_find. */
static inline int shmcow_table_longest(const shmcow_table *table, const uint8_t *text, uint64_t bytes,
                                       shmcow_row *row)
{
    uint64_t low = 0, high = table->header.length_count;
    while (low < high) { /* the first length that is too long */
        uint64_t middle = low + (high - low) / 2;
        if (shmcow_load32(table->lengths + middle * 4) > bytes)
            high = middle;
        else
            low = middle + 1;
    }
    while (low-- > 0) {
        uint32_t size = shmcow_load32(table->lengths + low * 4);
        if (size > bytes)
            return -1; /* they do not ascend */
        shmcow_key key = {text, size, size};
        int r = shmcow_table_find(table, &key, shmcow_key_hash(table, &key), row);
        if (r != 0)
            return r;
    }
    return 0;
}

#endif
