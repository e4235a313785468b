/* shmcow: a hash table in shared memory, found, walked and searched in place. Python-free; reading allocates nothing.
 *
 * Purpose     What Table reads: keys that are texts, bytes or integers, each with the reference of a value.
 * Format      Native byte order. header (128 bytes) | records | values (shmcow_values.h), zeros up to the next multiple
 *             of 8 | slots | key lengths. All places follow from the header's counts.
 *             Record: uint32_t word, uint32_t value's reference, the key, zeros up to the next multiple of 8. The word is
 *             the key's length in bytes; an integer has 8, and the word 0, or 1 if it is 2^63 or more. In the order in
 *             which they were given.
 *             Slot: uint64_t; the upper 24 bits are the lower 24 of the hash, the others 1 + the record's place / 8; 0 is
 *             an empty one. The home of a hash is the upper half of hash * slots: no power of two, hence always 2/3 full.
 *             The next slots follow; none is further from its home than the header says.
 *             Key lengths: uint32_t, each that occurs, ascending (of integers: none).
 * Invariants  1. Whatever the bytes, nothing outside of the segment is read, and every loop ends.
 *             2. The header is copied once and checked; nothing else is believed: each record is checked when it is met.
 *             3. A lookup touches one or two lines of slots, one record and one value.
 * Who writes  shmcow_table_build.h, in private memory, before the segment is made. Readers map it read-only.
 */
#ifndef SHMCOW_TABLE_H
#define SHMCOW_TABLE_H

#include <assert.h>
#include <stddef.h>

#include "shmcow_format.h"
#include "shmcow_values.h"

#define SHMCOW_TABLE_MAGIC "cowtable"
#define SHMCOW_TABLE_FORMAT 1u
#define SHMCOW_TABLE_TAG UINT64_C(0xFFFFFF)
#define SHMCOW_TABLE_RECORD ((UINT64_C(1) << 40) - 1) /* the bits of a slot that say where the record is */

enum shmcow_key_kind { SHMCOW_KEY_STR = 1, SHMCOW_KEY_BYTES = 2, SHMCOW_KEY_INT = 3 };

typedef struct {
    uint8_t magic[8];
    uint32_t format;
    uint32_t key_kind;
    uint64_t rows;
    uint64_t seed;
    uint64_t slot_count;
    uint64_t probe_max; /* slots to look at, at most */
    uint64_t records_bytes;
    uint64_t values_bytes;
    uint64_t value_count; /* different ones */
    uint64_t length_count;
    uint8_t schema[16]; /* fingerprint of the values' type; zeros: anything goes */
    uint8_t reserved[28];
    uint32_t crc; /* of all before it */
} shmcow_table_header;

static_assert(sizeof(shmcow_table_header) == 128, "the header is two cache lines");
static_assert(offsetof(shmcow_table_header, rows) == 16 && offsetof(shmcow_table_header, schema) == 80 &&
                  offsetof(shmcow_table_header, crc) == 124, "nothing is padded");

typedef struct {
    shmcow_table_header header; /* a private copy */
    const uint8_t *records;
    const uint8_t *slots;
    const uint8_t *lengths;
    shmcow_values values;
} shmcow_table;

/* A key as it is looked up: its bytes, and the word of its record. */
typedef struct {
    const uint8_t *at;
    uint32_t size;
    uint32_t word;
} shmcow_key;

typedef struct {
    shmcow_key key;
    uint32_t value;
    uint64_t next; /* where the next record is */
} shmcow_record;

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
    if (h->format != SHMCOW_TABLE_FORMAT)
        return "it has another format number";
    if (h->crc != shmcow_crc(crc, h, offsetof(shmcow_table_header, crc)))
        return "the checksum of its header is wrong";
    if (h->key_kind < SHMCOW_KEY_STR || h->key_kind > SHMCOW_KEY_INT)
        return "its keys are of an unknown kind";
    bytes -= sizeof *h;
    if (h->records_bytes > bytes || h->records_bytes % 8 != 0)
        return "the size of its records is wrong";
    bytes -= h->records_bytes;
    if (h->values_bytes > bytes || h->values_bytes % 4 != 0 || shmcow_pad8(h->values_bytes) > bytes)
        return "the size of its values is wrong";
    bytes -= shmcow_pad8(h->values_bytes);
    if (h->slot_count == 0 || h->slot_count > bytes / 8 || h->probe_max > h->slot_count)
        return "the number of its slots is wrong";
    bytes -= h->slot_count * 8;
    if (h->length_count > bytes / 4 || h->length_count * 4 != bytes || h->length_count > h->rows)
        return "the number of its key lengths is wrong";
    if (h->rows > h->records_bytes / 8 || h->rows > h->slot_count || h->value_count > h->rows)
        return "the number of its rows is wrong";
    table->records = at + sizeof *h;
    table->values = (shmcow_values){table->records + h->records_bytes, h->values_bytes};
    table->slots = table->values.at + shmcow_pad8(h->values_bytes);
    table->lengths = table->slots + h->slot_count * 8;
    return NULL;
}

/* ---- finding ---- */

/* The record at a place; false: it does not lie inside of the records. */
static inline bool shmcow_table_record(const shmcow_table *table, uint64_t at, shmcow_record *record)
{
    uint64_t bytes = table->header.records_bytes;
    if (bytes < 8 || at > bytes - 8)
        return false;
    bool integer = table->header.key_kind == SHMCOW_KEY_INT;
    record->key.word = shmcow_load32(table->records + at);
    record->value = shmcow_load32(table->records + at + 4);
    record->key.size = integer ? 8 : record->key.word;
    record->key.at = table->records + at + 8;
    if (record->key.size > bytes - at - 8 || (integer && record->key.word > 1))
        return false;
    record->next = at + 8 + shmcow_pad8(record->key.size);
    return true;
}

/* Find a key whose hash is known. 1: *value is set; 0: it is not there; -1: the table contradicts itself. */
static inline int shmcow_table_find(const shmcow_table *table, const shmcow_key *key, uint64_t hash, uint32_t *value)
{
    uint64_t slot_count = table->header.slot_count, at = shmcow_scale(hash, slot_count);
    for (uint64_t n = table->header.probe_max; n > 0; n--) {
        uint64_t slot = shmcow_load64(table->slots + at * 8);
        if (slot == 0)
            return 0;
        if (slot >> 40 == (hash & SHMCOW_TABLE_TAG)) {
            shmcow_record record;
            if (!shmcow_table_record(table, ((slot & SHMCOW_TABLE_RECORD) - 1) * 8, &record))
                return -1;
            if (record.key.word == key->word && memcmp(record.key.at, key->at, key->size) == 0) {
                *value = record.value;
                return 1;
            }
        }
        at = at + 1 == slot_count ? 0 : at + 1;
    }
    return 0;
}

/* Have a key's slot fetched, and, when that is there, its record: for who looks up many. */
static inline void shmcow_table_fetch_slot(const shmcow_table *table, uint64_t hash)
{
    __builtin_prefetch(table->slots + shmcow_scale(hash, table->header.slot_count) * 8);
}

static inline void shmcow_table_fetch_record(const shmcow_table *table, uint64_t hash)
{
    uint64_t slot_count = table->header.slot_count, at = shmcow_scale(hash, slot_count);
    for (uint64_t n = table->header.probe_max < 8 ? table->header.probe_max : 8; n > 0; n--) {
        uint64_t slot = shmcow_load64(table->slots + at * 8);
        if (slot == 0)
            return;
        if (slot >> 40 == (hash & SHMCOW_TABLE_TAG)) {
            uint64_t place = ((slot & SHMCOW_TABLE_RECORD) - 1) * 8;
            if (place < table->header.records_bytes)
                __builtin_prefetch(table->records + place);
            return;
        }
        at = at + 1 == slot_count ? 0 : at + 1;
    }
}

/* ---- searching ---- */

/* The longest key that the text begins with: *size is its length. Results as of shmcow_table_find. */
static inline int shmcow_table_longest(const shmcow_table *table, const uint8_t *text, uint64_t bytes, uint32_t *size,
                                       uint32_t *value)
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
        *size = shmcow_load32(table->lengths + low * 4);
        if (*size > bytes)
            return -1; /* they do not ascend */
        shmcow_key key = {text, *size, *size};
        int r = shmcow_table_find(table, &key, shmcow_key_hash(table, &key), value);
        if (r != 0)
            return r;
    }
    return 0;
}

#endif
