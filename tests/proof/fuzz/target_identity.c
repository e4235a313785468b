/* The identity at the head of a header file: 8 bytes file size, then what can be read of the file, up to 192 bytes. */
#include "fuzz.h"

static _Alignas(64) struct {
    shmcow_identity identity;
} file;

static const uint16_t fields[] = {
    FIELD8(0),  FIELD4(8 + offsetof(shmcow_identity, byte_order)), FIELD4(8 + offsetof(shmcow_identity, abi)),
    FIELD4(8 + offsetof(shmcow_identity, header_bytes)), FIELD4(8 + offsetof(shmcow_identity, entry_bytes)),
    FIELD4(8 + offsetof(shmcow_identity, generations)),  FIELD4(8 + offsetof(shmcow_identity, max_segments)),
    FIELD4(8 + offsetof(shmcow_identity, name_bytes)),   FIELD4(8 + offsetof(shmcow_identity, mode)),
};

static bool is_store(const shmcow_identity *id, uint64_t file_bytes)
{
    static const uint8_t head[32] = {'s', 'h', 'm', 'c', 'o', 'w', '\r', '\n', 4, 3, 2, 1, 2, 0, 0, 0,
                                     64, 136, 1, 0, 0, 6, 0, 0, 64, 0, 0, 0, 16, 0, 0, 0};
    return file_bytes == 1024 + 64 * 1536 + 1088 && memcmp(id, head, sizeof head) == 0 && id->name_bytes - 1 < 64 &&
           id->crc == plain_crc(id, 188);
}

static void fuzz_one(const uint8_t *data, size_t size)
{
    uint64_t file_bytes;
    char name[SHMCOW_NAME_BYTES];
    fuzz_take(&data, &size, &file_bytes, sizeof file_bytes);
    size_t readable = file_bytes < sizeof file.identity ? (size_t)file_bytes : sizeof file.identity;
    fuzz_take(&data, &size, &file.identity, sizeof file.identity);
    bool expected = is_store(&file.identity, file_bytes);
    /* who reads beyond the end of the file is reported */
    ASAN_POISON_MEMORY_REGION((uint8_t *)&file.identity + readable, sizeof file.identity - readable);
    shmcow_problem problem = shmcow_check_identity(&fuzz_crc, &file.identity, file_bytes);
    REQUIRE((problem == SHMCOW_FINE) == expected);
    REQUIRE(strlen(shmcow_problem_text(problem)) > 0);
    if (problem == SHMCOW_FINE)
        memcpy(name, file.identity.name, file.identity.name_bytes);
    ASAN_UNPOISON_MEMORY_REGION(&file, sizeof file);
}

static size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random)
{
    shmcow_identity id;
    if (room < 8 + sizeof id)
        return size;
    if (size < 8 + sizeof id)
        memset(data + size, 0, 8 + sizeof id - size);
    size = 8 + sizeof id;
    if (random % 4 == 0)
        fuzz_poke(data, size, fields, sizeof fields / sizeof *fields, random / 4);
    memcpy(&id, data + 8, sizeof id);
    if (random % 8 < 6) { /* all but the checksum stays as it is in the others */
        uint64_t file_bytes = sizeof(shmcow_header);
        shmcow_identity whole = id;
        shmcow_seal_identity(&fuzz_crc, &whole);
        if (random % 8 < 5)
            id = whole;
        if (random % 16 < 8)
            memcpy(data, &file_bytes, sizeof file_bytes);
    }
    id.crc = plain_crc(&id, offsetof(shmcow_identity, crc));
    memcpy(data + 8, &id, sizeof id);
    return size;
}
