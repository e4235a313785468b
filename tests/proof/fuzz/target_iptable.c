/* A table of IP ranges: 1 byte what to do, then a segment's payload; or rows to build one of, 4 bytes each, which must answer
 * as looking at all of them does. In that byte, 1: it is rows; 2: references are wide, however few values there are.
 */
#include "fuzz.h"

static uint32_t narrow_words_max = 65535;
#define SHMCOW_NARROW_WORDS_MAX narrow_words_max
#include "shmcow_iptable_build.h"
#include "shmcow_iptable_find.h"

#define ROOM 4096
#define SAID 1
static _Alignas(8) uint8_t payload[ROOM];
static unsigned int sum; /* what is found is read: the sanitizers see whether it may be */

static const uint16_t fields[] = {
    FIELD8(SAID + offsetof(shmcow_iptable_header, bytes)),
    FIELD4(SAID + offsetof(shmcow_iptable_header, rows4)),
    FIELD4(SAID + offsetof(shmcow_iptable_header, rows6)),
    FIELD4(SAID + offsetof(shmcow_iptable_header, intervals4)),
    FIELD4(SAID + offsetof(shmcow_iptable_header, intervals6)),
    FIELD4(SAID + offsetof(shmcow_iptable_header, leaves4)),
    FIELD4(SAID + offsetof(shmcow_iptable_header, leaves6)),
    FIELD4(SAID + offsetof(shmcow_iptable_header, value_words)),
    FIELD4(SAID + offsetof(shmcow_iptable_header, value_count)),
};

static void read_value(const shmcow_iptable *table, uint32_t reference)
{
    uint32_t length;
    const uint8_t *at = shmcow_value_at(&table->values, reference, &length);
    for (uint64_t k = 0; at != NULL && k < length; k++)
        sum += at[k];
}

static void look(const shmcow_iptable *table, shmcow_u128 number, bool wide)
{
    shmcow_address address = {number, wide};
    shmcow_iptable_row row;
    uint32_t value;
    bool sound = shmcow_iptable_find(table, &address, &value);
    if (sound && value != 0)
        read_value(table, value - 1);
    int r = shmcow_iptable_row_of(table, &address, &row);
    REQUIRE(r >= -1 && r <= 1 && (sound || r == -1));
    if (r == 1) {
        REQUIRE(row.wide == wide);
        read_value(table, row.value);
    }
}

static void check_counts(const shmcow_iptable *table, const shmcow_family *family)
{
    uint32_t leaves = family->tree.levels > 0 ? family->tree.count[0] : 0;
    REQUIRE(family->rows > 0 ? family->intervals <= 2 * family->rows + 1 : family->intervals == 0);
    REQUIRE(leaves <= family->intervals && family->intervals <= (uint64_t)leaves * table->slots);
}

/* All that readers do, whatever the bytes. */
static void use(const shmcow_iptable *table, size_t size)
{
    shmcow_u128 number = 0;
    shmcow_iptable_row row;
    check_counts(table, &table->four);
    check_counts(table, &table->six);
    for (unsigned int k = 0; k < 16; k++) {
        look(table, (uint32_t)(number >> 96), false);
        look(table, number, true);
        look(table, ~number, true);
        number = number * 0x9E3779B97F4A7C15u + ((shmcow_u128)(k + 1) << 122) + size;
    }
    look(table, UINT32_MAX, false);
    for (uint64_t k = 0; shmcow_iptable_row_at(table, k, &row); k++) {
        REQUIRE(k < (uint64_t)table->four.rows + table->six.rows);
        look(table, row.first, row.wide);
        look(table, row.last, row.wide);
        read_value(table, row.value);
    }
}

/* ---- rows ---- */

#define ROWS 160u

static unsigned int take_rows(const uint8_t *data, size_t size, shmcow_iptable_row *rows)
{
    unsigned int count = 0;
    for (; count < ROWS && size >= 4; count++, data += 4, size -= 4) {
        bool wide = data[0] & 1;
        unsigned int bits = data[0] >> 1 & 31;
        shmcow_u128 first = data[1], last = data[2];
        if (wide) {
            first <<= bits * 4 > 120 ? 120 : bits * 4;
            last <<= bits * 4 > 120 ? 120 : bits * 4;
        } else {
            first <<= bits > 24 ? 24 : bits;
            last <<= bits > 24 ? 24 : bits;
        }
        rows[count] = (shmcow_iptable_row){wide, first < last ? first : last, first < last ? last : first, data[3]};
    }
    return count;
}

static bool crosses(const shmcow_iptable_row *a, const shmcow_iptable_row *b)
{
    if (a->wide != b->wide || a->last < b->first || b->last < a->first)
        return false;
    bool within = a->first <= b->first && b->last <= a->last, around = b->first <= a->first && a->last <= b->last;
    return within == around;
}

static const shmcow_iptable_row *smallest(const shmcow_iptable_row *rows, unsigned int count, bool wide, shmcow_u128 number)
{
    const shmcow_iptable_row *found = NULL;
    for (const shmcow_iptable_row *row = rows; row < rows + count; row++)
        if (row->wide == wide && row->first <= number && number <= row->last &&
            (found == NULL || row->last - row->first < found->last - found->first))
            found = row;
    return found;
}

static void check(const shmcow_iptable *table, const shmcow_iptable_row *rows, unsigned int count, bool wide,
                  shmcow_u128 number)
{
    const shmcow_iptable_row *expected = smallest(rows, count, wide, number);
    shmcow_address address = {number, wide};
    shmcow_iptable_row found;
    uint32_t value;
    REQUIRE(shmcow_iptable_find(table, &address, &value) && (value != 0) == (expected != NULL));
    REQUIRE(shmcow_iptable_row_of(table, &address, &found) == (expected != NULL));
    if (expected != NULL)
        REQUIRE(found.first == expected->first && found.last == expected->last && found.value == value - 1);
}

static void build_rows(const uint8_t *data, size_t size)
{
    shmcow_iptable_row rows[ROWS];
    shmcow_iptable_builder builder = {0};
    shmcow_clash clash;
    unsigned int count = take_rows(data, size, rows);
    bool clashes = false;
    for (unsigned int a = 0; a < count; a++) {
        for (unsigned int b = 0; b < a; b++)
            clashes |= crosses(&rows[a], &rows[b]);
        uint8_t value = (uint8_t)rows[a].value;
        REQUIRE(shmcow_values_add(&builder.values, &value, 1, &rows[a].value) >= 0);
        REQUIRE(shmcow_iptable_add(&builder, &rows[a], a) == 0);
    }
    REQUIRE(shmcow_iptable_finish(&builder, &fuzz_crc, &clash) == clashes);
    if (!clashes) {
        shmcow_iptable table;
        REQUIRE(shmcow_iptable_open(&table, &fuzz_crc, builder.block, builder.bytes) == NULL);
        for (unsigned int a = 0; a < count; a++) {
            shmcow_u128 top = rows[a].wide ? ~(shmcow_u128)0 : UINT32_MAX;
            check(&table, rows, count, rows[a].wide, rows[a].first);
            check(&table, rows, count, rows[a].wide, rows[a].last);
            check(&table, rows, count, rows[a].wide, (rows[a].first - 1) & top);
            check(&table, rows, count, rows[a].wide, (rows[a].last + 1) & top);
        }
    }
    shmcow_iptable_builder_free(&builder);
}

static void fuzz_one(const uint8_t *data, size_t size)
{
    uint8_t said;
    shmcow_iptable table;
    fuzz_take(&data, &size, &said, SAID);
    narrow_words_max = said & 2 ? 0 : 65535;
    if (said & 1) {
        build_rows(data, size);
        return;
    }
    size = size < ROOM ? size : ROOM;
    uint8_t *at = payload + ROOM - size; /* its end is the end of the array */
    memcpy(at, data, size);
    ASAN_POISON_MEMORY_REGION(payload, (size_t)(at - payload));
    if (shmcow_iptable_open(&table, &fuzz_crc, at, size) == NULL)
        use(&table, size);
    ASAN_UNPOISON_MEMORY_REGION(payload, ROOM);
}

/* ---- the mutator ---- */

/* A table that is whole. */
static size_t make_table(uint8_t *data, size_t room, uint32_t random)
{
    shmcow_iptable_builder builder = {0};
    shmcow_clash clash;
    for (uint32_t k = 0; k < 1 + random % 24; k++) {
        bool wide = (random >> (k % 7)) & 1;
        shmcow_u128 first = (shmcow_u128)(k * 37 % 256) << (wide ? 120 : 24);
        shmcow_iptable_row row = {wide, first, first + (random >> 8 & 0xffff), 0};
        REQUIRE(shmcow_values_add(&builder.values, &k, k % 5, &row.value) >= 0);
        REQUIRE(shmcow_iptable_add(&builder, &row, k) == 0);
    }
    size_t size = 0;
    data[0] = random >> 7 & 2;
    narrow_words_max = data[0] & 2 ? 0 : 65535;
    if (shmcow_iptable_finish(&builder, &fuzz_crc, &clash) == 0 && builder.bytes + SAID < room) {
        size = (size_t)builder.bytes + SAID;
        memcpy(data + SAID, builder.block, size - SAID);
    }
    shmcow_iptable_builder_free(&builder);
    return size;
}

static size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random)
{
    shmcow_iptable_header h;
    if (random % 16 == 0) {
        size_t made = make_table(data, room, random / 16);
        size = made > 0 ? made : size;
    }
    if (size < SAID + sizeof h || data[0] & 1)
        return size;
    if (random % 8 == 1) /* one of the counts is not what it should be, by much or by little */
        fuzz_poke(data, size, fields, sizeof fields / sizeof *fields, random / 8);
    else if (random % 8 == 2)
        data[fields[random / 8 % (sizeof fields / sizeof *fields)] & 0x7FFF] += random & 256 ? 8 : 1;
    else if (random % 8 < 6) { /* words behind the header */
        size_t at = SAID + sizeof h + random / 8 % (size - SAID - sizeof h + 1) / 4 * 4;
        if (at + 4 <= size)
            LLVMFuzzerMutate(data + at, 4, 4);
    }
    memcpy(&h, data + SAID, sizeof h);
    if (random % 4 != 0) { /* what follows is as long as the counts say, if there is room */
        uint64_t end = shmcow_iptable_lay_out(&h).end;
        if (h.intervals4 < 256 && h.intervals6 < 256 && h.rows4 < 256 && h.rows6 < 256 && h.leaves4 < 256 &&
            h.leaves6 < 256 && end <= room - SAID) {
            if (size < SAID + end)
                memset(data + size, 0, SAID + (size_t)end - size);
            size = SAID + (size_t)end;
        }
        h.bytes = size - SAID;
    }
    shmcow_iptable_seal(&fuzz_crc, &h);
    memcpy(data + SAID, &h, sizeof h);
    return size;
}
