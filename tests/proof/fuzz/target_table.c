/* A table: 1 byte what to do, 15 bytes of text to search for, then a segment's payload, or rows to build one of. */
#include "fuzz.h"
#include "shmcow_table_build.h"

#define SAID 16
#define ROOM 4096
static _Alignas(8) uint8_t payload[ROOM];
static unsigned int sum; /* what is found is read: the sanitizers see whether it may be */

static const uint16_t fields[] = {
    FIELD4(SAID + offsetof(shmcow_table_header, key_kind)),
    FIELD8(SAID + offsetof(shmcow_table_header, rows)),
    FIELD8(SAID + offsetof(shmcow_table_header, homes)),
    FIELD8(SAID + offsetof(shmcow_table_header, cell_count)),
    FIELD4(SAID + offsetof(shmcow_table_header, cell_bytes)),
    FIELD4(SAID + offsetof(shmcow_table_header, distance_max)),
    FIELD8(SAID + offsetof(shmcow_table_header, records_bytes)),
    FIELD8(SAID + offsetof(shmcow_table_header, values_bytes)),
    FIELD8(SAID + offsetof(shmcow_table_header, value_count)),
    FIELD8(SAID + offsetof(shmcow_table_header, length_count)),
    FIELD4(SAID + sizeof(shmcow_table_header)),
    FIELD4(SAID + sizeof(shmcow_table_header) + 4),
    FIELD8(SAID + sizeof(shmcow_table_header) + 16),
};

static void read_all(const uint8_t *at, uint64_t bytes)
{
    for (uint64_t k = 0; k < bytes; k++)
        sum += at[k];
}

static void read_row(const shmcow_table *table, const shmcow_row *row)
{
    uint32_t length;
    read_all(row->key.at, row->key.size);
    const uint8_t *at = shmcow_table_value(table, row, &length);
    if (at != NULL)
        read_all(at, length);
}

static int look_up(const shmcow_table *table, const shmcow_key *key, shmcow_row *row)
{
    uint64_t hash = shmcow_key_hash(table, key);
    shmcow_table_fetch(table, hash);
    int r = shmcow_table_find(table, key, hash, row);
    REQUIRE(r >= -1 && r <= 1);
    if (r == 1)
        read_row(table, row);
    return r;
}

static bool same_value(const shmcow_table *table, const shmcow_row *a, const shmcow_row *b)
{
    uint32_t one, other;
    const uint8_t *x = shmcow_table_value(table, a, &one), *y = shmcow_table_value(table, b, &other);
    return x != NULL && x == y && one == other;
}

/* Rows in their order, in cells, and those that are records. -> rows that were found again under their keys */
static uint64_t use_rows(const shmcow_table *table)
{
    shmcow_row row, again;
    uint64_t found = 0, next;
    for (uint64_t k = 0; k < table->header.rows; k++) {
        shmcow_table_fetch_row(table, k);
        if (shmcow_table_row(table, k, &row)) {
            read_row(table, &row);
            found += look_up(table, &row.key, &again) == 1 && again.key.at == row.key.at && same_value(table, &row, &again);
        }
    }
    REQUIRE(!shmcow_table_row(table, table->header.rows, &row));
    for (uint64_t k = 0; k < table->header.cell_count; k++)
        if (shmcow_table_cell(table, shmcow_cell_at(table, k), &row))
            read_row(table, &row);
    for (uint64_t at = 0; shmcow_table_record(table, at, &row, &next); at = next) {
        REQUIRE(next > at && next <= table->header.records_bytes);
        read_row(table, &row);
    }
    return found;
}

/* All that readers do, whatever the bytes. -> rows that were found again under their keys */
static uint64_t use(const shmcow_table *table, const uint8_t *text, uint64_t bytes)
{
    const shmcow_table_header *h = &table->header;
    shmcow_row row;
    REQUIRE(h->crc == plain_crc(h, 124));
    read_all(table->cells, h->cell_count * h->cell_bytes);
    read_all(table->records, h->records_bytes);
    read_all(table->order, h->rows * 4);
    read_all(table->values.at, table->values.bytes);
    read_all(table->lengths, h->length_count * 4);
    uint64_t found = use_rows(table);
    for (uint32_t k = 0; k <= bytes; k++) {
        shmcow_key key = {text, h->key_kind == SHMCOW_KEY_INT ? 8 : k, h->key_kind == SHMCOW_KEY_INT ? k % 2 : k};
        if (key.size <= bytes)
            look_up(table, &key, &row);
    }
    int r = shmcow_table_longest(table, text, bytes, &row);
    REQUIRE(r != 1 || row.key.size <= bytes);
    if (r == 1)
        read_row(table, &row);
    return found;
}

/* Build a table of rows: a byte length, the key, a byte length, the value. -> its rows */
static uint64_t build(shmcow_table_builder *builder, uint32_t kind, const uint8_t *data, size_t size)
{
    uint64_t rows = 0;
    REQUIRE(shmcow_table_begin(builder, kind, size) == 0);
    while (size > 0) {
        uint8_t key_bytes[256], value_bytes[256], length = 0, value_length = 0;
        uint64_t slot;
        uint32_t reference;
        fuzz_take(&data, &size, &length, 1);
        length = kind == SHMCOW_KEY_INT ? 9 : length;
        fuzz_take(&data, &size, key_bytes, length);
        fuzz_take(&data, &size, &value_length, 1);
        fuzz_take(&data, &size, value_bytes, value_length % 32);
        shmcow_key key = {key_bytes, length, length};
        if (kind == SHMCOW_KEY_INT)
            key = (shmcow_key){key_bytes, 8, key_bytes[8] % 2};
        uint64_t hash = shmcow_hash(key.at, key.size, builder->seed);
        int r = shmcow_table_reserve(builder, &key, hash, &slot);
        shmcow_table table = shmcow_table_records(builder);
        shmcow_row row;
        uint64_t number = 0, same = 0;
        for (uint64_t at = 0, next; shmcow_table_record(&table, at, &row, &next); at = next) {
            number++;
            if (row.key.word == key.word && memcmp(row.key.at, key.at, key.size) == 0)
                same = number;
        }
        REQUIRE(r == (same == 0));
        REQUIRE(r == 1 || slot == same);
        if (r == 1) {
            REQUIRE(shmcow_values_add(&builder->values, value_bytes, value_length % 32, &reference) >= 0);
            REQUIRE(shmcow_table_append(builder, &key, hash, slot, reference) == 0);
            rows++;
        }
    }
    REQUIRE(shmcow_table_finish(builder, &fuzz_crc) == 0);
    return rows;
}

static void fuzz_one(const uint8_t *data, size_t size)
{
    uint8_t said[SAID];
    shmcow_table table;
    fuzz_take(&data, &size, said, SAID);
    if (said[0] >= 224) { /* what was built is found again, all of it */
        shmcow_table_builder builder;
        uint64_t rows = build(&builder, said[0] % 3 + 1, data, size);
        REQUIRE(shmcow_table_open(&fuzz_crc, &table, builder.block.at, builder.block.used) == NULL);
        REQUIRE(table.header.rows == rows && use(&table, said + 1, SAID - 1) == rows);
        shmcow_table_builder_free(&builder);
        return;
    }
    size = size < ROOM ? size : ROOM;
    uint8_t *at = payload + ROOM - size; /* its end is the end of the array */
    memcpy(at, data, size);
    ASAN_POISON_MEMORY_REGION(payload, (size_t)(at - payload));
    if (shmcow_table_open(&fuzz_crc, &table, at, size) == NULL)
        use(&table, said + 1, SAID - 1);
    ASAN_UNPOISON_MEMORY_REGION(payload, ROOM);
}

static size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random)
{
    shmcow_table_header h;
    if (size < SAID + sizeof h || data[0] >= 224)
        return size;
    if (random % 8 == 0) { /* a table that is whole, of what is there */
        shmcow_table_builder builder;
        build(&builder, random / 8 % 3 + 1, data + SAID, size - SAID < 300 ? size - SAID : 300);
        if (builder.block.used <= room - SAID) {
            size = SAID + builder.block.used;
            memcpy(data + SAID, builder.block.at, builder.block.used);
        }
        shmcow_table_builder_free(&builder);
    }
    memcpy(&h, data + SAID, sizeof h);
    memcpy(h.magic, SHMCOW_TABLE_MAGIC, sizeof h.magic);
    h.format = SHMCOW_TABLE_FORMAT;
    if (random % 16 < 12) { /* sizes that add up; the rest goes to the key lengths */
        uint64_t left = (size - SAID - sizeof h) & ~UINT64_C(3);
        h.key_kind = h.key_kind % 4 != 0 ? h.key_kind % 4 : 1;
        h.cell_bytes = h.cell_bytes % 64 < 8 ? 8 : h.cell_bytes % 64 & ~3u;
        bool crowded = random % 16 == 3; /* nothing but cells, none of which ends a lookup */
        if (crowded || h.cell_count == 0 || h.cell_count > left / h.cell_bytes)
            h.cell_count = left / h.cell_bytes / (crowded ? 1 : 2) + !crowded;
        for (uint64_t k = 0; crowded && k < h.cell_count; k++)
            data[SAID + sizeof h + k * h.cell_bytes] = (uint8_t)(k + 2 < h.cell_count ? k + 2 : h.cell_count);
        size_t cells = shmcow_pad8(h.cell_count * h.cell_bytes);
        left -= cells <= left ? cells : left; /* if they do not fit, it is refused */
        h.records_bytes = h.records_bytes <= left ? h.records_bytes & ~UINT64_C(7) : left / 2 & ~UINT64_C(7);
        left -= h.records_bytes;
        h.rows = h.rows <= h.cell_count ? h.rows : h.cell_count;
        h.rows = shmcow_pad8(h.rows * 4) <= left ? h.rows : 0;
        left -= shmcow_pad8(h.rows * 4);
        h.values_bytes = h.values_bytes <= left && shmcow_pad8(h.values_bytes) <= left ? h.values_bytes & ~UINT64_C(3) : 0;
        left -= shmcow_pad8(h.values_bytes);
        h.length_count = left / 4;
        size_t end = SAID + sizeof h + cells + h.records_bytes + shmcow_pad8(h.rows * 4) + shmcow_pad8(h.values_bytes) +
                     h.length_count * 4;
        size = end < size ? end : size;
        h.homes = h.homes > 0 && h.homes <= h.cell_count ? h.homes : h.cell_count;
        h.distance_max = !crowded && h.distance_max < h.cell_count ? h.distance_max : (uint32_t)h.cell_count - 1;
    }
    memcpy(data + SAID, &h, sizeof h);
    if (random % 4 == 1) /* and now and then one of them is not what it should be, by much or by little */
        fuzz_poke(data, size, fields, sizeof fields / sizeof *fields, random / 8);
    else if (random % 4 == 2)
        data[SAID + (fields[random / 8 % 10] & 0x7FFF)] += random & 64 ? 4 : 1;
    memcpy(&h, data + SAID, sizeof h);
    h.crc = plain_crc(&h, offsetof(shmcow_table_header, crc));
    memcpy(data + SAID, &h, sizeof h);
    return size;
}
