/* shmcow: libFuzzer on the bytes of IP tables (csrc/shmcow_iptable.h), and on their builder.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I csrc tests/proof/fuzz/fuzz_iptable.c -o fuzz_iptable
 *
 * The first byte chooses: a segment of hostile bytes, whose header the mutator seals again so that it is opened and looked
 * at; or rows, from which a table is built that must answer as looking at all rows does.
 */
#include <stdio.h>

#include "shmcow_iptable_build.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);

static shmcow_crc_table crc;

static void setup(void)
{
    if (crc.by_byte[0][1] == 0)
        shmcow_crc_fill(&crc);
}

static void look(const shmcow_iptable *table, shmcow_u128 number, bool wide)
{
    shmcow_address address = {number, wide};
    shmcow_iptable_row row;
    uint32_t value, length;
    if (shmcow_iptable_find(table, &address, &value) && value != 0)
        (void)shmcow_value_at(&table->values, value - 1, &length);
    (void)shmcow_iptable_row_of(table, &address, &row);
}

static void open_hostile(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    shmcow_iptable table;
    if (copy == NULL)
        abort();
    if (size > 0)
        memcpy(copy, data, size);
    if (shmcow_iptable_open(&table, &crc, copy, size) == NULL) {
        shmcow_u128 number = 0;
        for (unsigned int k = 0; k < 64; k++) {
            look(&table, (uint32_t)(number >> 96), false);
            look(&table, number, true);
            look(&table, ~number, true);
            number = number * 0x9E3779B97F4A7C15u + ((shmcow_u128)(k + 1) << 122) + size;
        }
        shmcow_iptable_row row;
        uint32_t length;
        for (uint64_t k = 0; k < 100 && shmcow_iptable_row_at(&table, k, &row); k++) {
            look(&table, row.first, row.wide);
            look(&table, row.last, row.wide);
            (void)shmcow_value_at(&table.values, row.value, &length);
        }
    }
    free(copy);
}

/* ---- rows ---- */

#define ROWS 24u

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
    if (!shmcow_iptable_find(table, &address, &value) || (value != 0) != (expected != NULL))
        abort();
    if (shmcow_iptable_row_of(table, &address, &found) != (expected != NULL))
        abort();
    if (expected != NULL &&
        (found.first != expected->first || found.last != expected->last || found.value != value - 1))
        abort();
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
        if (shmcow_values_add(&builder.values, &value, 1, &rows[a].value) < 0 ||
            shmcow_iptable_add(&builder, &rows[a], a) < 0)
            abort();
    }
    if (shmcow_iptable_finish(&builder, &crc, &clash) != clashes)
        abort();
    if (!clashes) {
        shmcow_iptable table;
        if (shmcow_iptable_open(&table, &crc, builder.block, builder.bytes) != NULL)
            abort();
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    setup();
    if (size == 0)
        return 0;
    if (data[0] & 1)
        build_rows(data + 1, size - 1);
    else
        open_hostile(data + 1, size - 1);
    return 0;
}

/* ---- the mutator ---- */

/* A small table to begin with. */
static size_t seed_table(uint8_t *data, size_t room, unsigned int seed)
{
    shmcow_iptable_builder builder = {0};
    shmcow_clash clash;
    for (uint32_t k = 0; k < 1 + seed % 12; k++) {
        bool wide = (seed >> (k % 7)) & 1;
        shmcow_u128 first = (shmcow_u128)(k * 37 % 256) << (wide ? 120 : 24);
        shmcow_iptable_row row = {wide, first, first + (seed >> 8 & 0xffff), 0};
        if (shmcow_values_add(&builder.values, &k, k % 5, &row.value) < 0 || shmcow_iptable_add(&builder, &row, k) < 0)
            abort();
    }
    size_t size = 0;
    if (shmcow_iptable_finish(&builder, &crc, &clash) == 0 && builder.bytes < room) {
        size = (size_t)builder.bytes + 1;
        data[0] = 0;
        memcpy(data + 1, builder.block, size - 1);
    }
    shmcow_iptable_builder_free(&builder);
    return size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
    shmcow_iptable_header h;
    setup();
    if (seed % 16 == 0) {
        size_t made = seed_table(data, room, seed >> 4);
        if (made > 0)
            return made;
    }
    if (seed % 3 == 0 && size > sizeof h + 1) { /* words behind the header: the indexes */
        size_t at = 1 + sizeof h + (seed >> 4) % (size - sizeof h - 1) / 4 * 4;
        if (at + 4 <= size)
            LLVMFuzzerMutate(data + at, 4, 4);
    } else {
        size = LLVMFuzzerMutate(data, size, room);
    }
    if (size > sizeof h && !(data[0] & 1)) {
        memcpy(&h, data + 1, sizeof h);
        if (seed % 5 != 0) {
            h.bytes = size - 1;
            shmcow_iptable_seal(&crc, &h);
        }
        memcpy(data + 1, &h, sizeof h);
    }
    return size;
}
