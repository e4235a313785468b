/* What every fuzz target shares. A target is one file: what it does with an input, and how an input is made well-formed.
 *
 *     void fuzz_one(const uint8_t *data, size_t size)       run what is under test, and REQUIRE what must hold then
 *     size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random)
 *                                                           give an input its checksums and its shape; -> its size
 *
 * A mutant of the source asks `fuzz_planted`, so that one build has all of them (see fuzz_runs.py).
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <sanitizer/asan_interface.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fuzz_planted __attribute__((unused)); /* which planted bug is on; 0: none */

#include "shmcow_protocol.h"

#define REQUIRE(what) ((what) ? (void)0 : fuzz_fail(#what, __LINE__))
#define NO_INSTRUMENTS __attribute__((no_sanitize("address", "undefined", "coverage")))

static shmcow_crc_table fuzz_crc;

__attribute__((noreturn, noinline)) static void fuzz_fail(const char *what, int line)
{
    fprintf(stderr, "REQUIRED, line %d: %s\n", line, what);
    __builtin_trap();
}

/* CRC-32 in its plainest form, a byte at a time: what the one under test is compared with. */
NO_INSTRUMENTS static inline uint32_t plain_crc(const void *data, size_t length)
{
    static uint32_t table[256];
    const uint8_t *p = data;
    uint32_t c = ~0u;
    if (table[1] == 0)
        for (uint32_t n = 0; n < 256; n++) {
            uint32_t r = n;
            for (int bit = 0; bit < 8; bit++)
                r = r >> 1 ^ (0xEDB88320u & (0u - (r & 1u)));
            table[n] = r;
        }
    while (length-- > 0)
        c = table[(c ^ *p++) & 0xFFu] ^ c >> 8;
    return ~c;
}

/* Take the next bytes of an input; zeros when it has ended. */
static inline void fuzz_take(const uint8_t **data, size_t *size, void *out, size_t bytes)
{
    size_t n = *size < bytes ? *size : bytes;
    memset(out, 0, bytes);
    memcpy(out, *data, n);
    *data += n;
    *size -= n;
}

/* Numbers at which a check may be off by one, or a sum may overflow. */
static inline uint64_t fuzz_edge(uint32_t random)
{
    static const uint64_t edges[] = {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 191, 192, 255, 256, 4095, 4096, 65535,
                                     65536, 100415, 100416, UINT32_MAX, SHMCOW_VERSION_MAX - 1, SHMCOW_VERSION_MAX,
                                     SHMCOW_VERSION_MAX + 1, UINT64_MAX >> 1, UINT64_MAX - 127, UINT64_MAX - 63,
                                     UINT64_MAX - 1, UINT64_MAX};
    return edges[random % (sizeof edges / sizeof *edges)];
}

/* Put an edge into one of the fields of an input. */
static inline void fuzz_poke(uint8_t *data, size_t size, const uint16_t *fields, size_t count, uint32_t random)
{
    size_t at = fields[random % count] & 0x7FFFu, bytes = fields[random % count] & 0x8000u ? 8 : 4;
    uint64_t value = fuzz_edge(random / 64);
    if (at + bytes <= size)
        memcpy(data + at, &value, bytes);
}
#define FIELD4(offset) (uint16_t)(offset)
#define FIELD8(offset) (uint16_t)((offset) | 0x8000u)

static void fuzz_one(const uint8_t *data, size_t size);
static size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *planted = getenv("FUZZ_PLANTED");
    (void)argc;
    (void)argv;
    shmcow_crc_fill(&fuzz_crc);
    fuzz_planted = planted != NULL ? atoi(planted) : 0;
    return 0;
}

/* Most inputs are made well-formed after each change: else none would come past a checksum. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
    size = LLVMFuzzerMutate(data, size, room);
    return seed % 8 != 0 ? fuzz_repair(data, size, room, seed / 8) : size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_one(data, size);
    return 0;
}

#endif
