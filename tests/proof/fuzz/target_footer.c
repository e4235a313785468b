/* A data segment, as a reader maps it: 24 bytes what the entry says of it, 16 bytes epoch, then the file. */
#include "fuzz.h"

#define FILE_MOST 1024
static _Alignas(64) uint8_t file[FILE_MOST];
#define SAID (sizeof(shmcow_segment) + SHMCOW_EPOCH_BYTES)

static bool is_footer(const shmcow_footer *f, const uint8_t *epoch, const shmcow_segment *s)
{
    return memcmp(f, "cowtail\n", 8) == 0 && memcmp(f->epoch, epoch, 16) == 0 && f->segment == s->id && f->abi == 2 &&
           f->length == s->length && f->payload_crc == s->crc && f->flags == s->flags && f->crc == plain_crc(f, 124);
}

static void fuzz_one(const uint8_t *data, size_t size)
{
    shmcow_segment segment;
    uint8_t epoch[SHMCOW_EPOCH_BYTES];
    shmcow_footer footer;
    fuzz_take(&data, &size, &segment, sizeof segment);
    fuzz_take(&data, &size, epoch, sizeof epoch);
    if (segment.id == 0 || segment.length > SHMCOW_VERSION_MAX) /* shmcow_check_entry has refused these */
        return;
    size_t file_bytes = size < FILE_MOST ? size : FILE_MOST;
    memcpy(file, data, file_bytes);
    /* as map_segment in core_hold.c: the file has exactly this size, or it is not looked at */
    uint64_t bytes = shmcow_segment_bytes(segment.length);
    if (bytes != file_bytes)
        return;
    ASAN_POISON_MEMORY_REGION(file + file_bytes, FILE_MOST - file_bytes);
    memcpy(&footer, file + bytes - sizeof footer, sizeof footer);
    shmcow_problem problem = shmcow_check_footer(&fuzz_crc, &footer, epoch, &segment);
    REQUIRE((problem == SHMCOW_FINE) == is_footer(&footer, epoch, &segment));
    if (problem == SHMCOW_FINE) {
        /* the two lengths agree, so whoever checks a segment alone reads inside of it */
        REQUIRE(footer.length <= file_bytes - sizeof footer);
        REQUIRE(shmcow_crc(&fuzz_crc, file, (size_t)footer.length) == plain_crc(file, (size_t)footer.length));
    }
    ASAN_UNPOISON_MEMORY_REGION(file, FILE_MOST);
}

static size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random)
{
    shmcow_segment segment;
    shmcow_footer footer;
    size_t least = SAID + sizeof footer;
    if (room < least)
        return size;
    if (size < least)
        memset(data + size, 0, least - size);
    size = size < least ? least : size;
    size_t length = (random >> 8) % 200, bytes;
    memcpy(&segment, data, sizeof segment);
    if (random % 16 < 12 || segment.length > room)
        segment.length = length;
    segment.id += segment.id == 0;
    bytes = (size_t)shmcow_segment_bytes(segment.length);
    if (SAID + bytes > room)
        return size;
    if (SAID + bytes > size)
        memset(data + size, 0, SAID + bytes - size);
    size = SAID + bytes;
    memcpy(&footer, data + size - sizeof footer, sizeof footer);
    if (random % 8 < 6) {
        memcpy(footer.epoch, data + sizeof segment, SHMCOW_EPOCH_BYTES);
        footer.segment = segment.id;
        footer.length = segment.length;
        footer.payload_crc = segment.crc;
        footer.flags = segment.flags;
        /* and now and then one of them is not what it should be */
        if (random % 64 / 8 == 0)
            footer.length = fuzz_edge(random >> 6);
        if (random % 64 / 8 == 1)
            footer.segment = fuzz_edge(random >> 6);
        if (random % 64 / 8 == 2)
            footer.epoch[random >> 6 & 15] ^= 1;
        if (random % 64 / 8 == 3)
            footer.payload_crc ^= 1;
    }
    if (random % 128 != 0) {
        shmcow_seal_footer(&fuzz_crc, &footer);
        if (random % 128 == 1)
            footer.abi ^= 2, footer.crc = shmcow_crc(&fuzz_crc, &footer, offsetof(shmcow_footer, crc));
    }
    memcpy(data, &segment, sizeof segment);
    memcpy(data + size - sizeof footer, &footer, sizeof footer);
    return size;
}
