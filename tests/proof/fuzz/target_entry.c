/* An entry of the generation table: 8 bytes version asked for, then the entry. */
#include "fuzz.h"

static shmcow_entry entry;

#define SEGMENT(k, field) (8 + offsetof(shmcow_entry, segments) + (k) * sizeof(shmcow_segment) + (field))
static const uint16_t fields[] = {
    FIELD8(0),
    FIELD8(8 + offsetof(shmcow_entry, version)),
    FIELD4(8 + offsetof(shmcow_entry, segment_count)),
    FIELD4(8 + offsetof(shmcow_entry, segment_count)),
    FIELD8(8 + offsetof(shmcow_entry, origin)),
    FIELD8(SEGMENT(0, 0)),
    FIELD8(SEGMENT(0, 8)),
    FIELD8(SEGMENT(1, 0)),
    FIELD8(SEGMENT(1, 8)),
    FIELD8(SEGMENT(15, 0)),
    FIELD8(SEGMENT(15, 8)),
};

/* What readers go on with: an array of `count` lengths that are added up, rounded and mapped. */
static void use(const shmcow_entry *e, uint64_t asked)
{
    REQUIRE(e->version == asked && e->crc == plain_crc(e, 1532));
    REQUIRE(e->segment_count - 1 < 16);
    for (uint32_t k = 0; k < e->segment_count; k++) {
        uint64_t length = e->segments[k].length, bytes = shmcow_segment_bytes(length);
        REQUIRE(e->segments[k].id != 0);
        REQUIRE(length <= bytes && bytes - length >= 128 && bytes - length < 128 + 64 && bytes % 64 == 0);
        REQUIRE(bytes <= (uint64_t)INT64_MAX); /* an off_t, and a Py_ssize_t */
        REQUIRE(shmcow_segment_cost(length) >= bytes && shmcow_segment_cost(length) % 4096 == 0);
    }
}

/* A refusal has its reason: nothing that is whole is refused. */
static bool has_reason(const shmcow_entry *e, uint64_t asked, shmcow_problem problem)
{
    bool bad = false;
    switch (problem) {
    case SHMCOW_BAD_CRC: return e->crc != plain_crc(e, 1532);
    case SHMCOW_BAD_VERSION: return e->version != asked;
    case SHMCOW_BAD_COUNT: return e->segment_count == 0 || e->segment_count >= 17;
    case SHMCOW_BAD_SEGMENT:
        for (uint32_t k = 0; k < e->segment_count; k++)
            bad |= e->segments[k].id == 0;
        return bad;
    case SHMCOW_BAD_LENGTH:
        for (uint32_t k = 0; k < e->segment_count; k++)
            bad |= e->segments[k].length >> 48 != 0;
        return bad;
    default: return false;
    }
}

static void fuzz_one(const uint8_t *data, size_t size)
{
    uint64_t asked;
    fuzz_take(&data, &size, &asked, sizeof asked);
    fuzz_take(&data, &size, &entry, sizeof entry);
    shmcow_problem problem = shmcow_check_entry(&fuzz_crc, &entry, asked);
    if (problem == SHMCOW_FINE)
        use(&entry, asked);
    else
        REQUIRE(has_reason(&entry, asked, problem));
}

static size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random)
{
    if (room < 8 + sizeof(shmcow_entry))
        return size;
    if (size < 8 + sizeof(shmcow_entry))
        memset(data + size, 0, 8 + sizeof(shmcow_entry) - size);
    size = 8 + sizeof(shmcow_entry);
    if (random % 4 < 2)
        fuzz_poke(data, size, fields, sizeof fields / sizeof *fields, random / 4);
    if (random % 8 < 7)
        memcpy(data, data + 8, 8); /* the version asked for */
    uint32_t crc = plain_crc(data + 8, offsetof(shmcow_entry, crc));
    memcpy(data + 8 + offsetof(shmcow_entry, crc), &crc, sizeof crc);
    return size;
}
