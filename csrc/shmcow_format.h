/* shmcow: checks of the bytes in shared memory. Pure functions: no Python, no system call, no allocation.
 *
 * Purpose     Everything that parses what another process wrote. Whatever the bytes, the answer is 0 or a problem's name.
 * Invariants  1. Nothing here reads outside the struct that it is given.
 *             2. Nothing is trusted before its checksum, and nothing is used as an index or a length before its range.
 * Who writes  Nobody: callers pass private copies, but for the identity, which never changes.
 */
#ifndef SHMCOW_FORMAT_H
#define SHMCOW_FORMAT_H

#include <stdbool.h>
#include <string.h>

#include "shmcow_crc.h"
#include "shmcow_layout.h"

/* What is wrong with shared bytes. The order is part of the tests, the words are for people. */
typedef enum {
    SHMCOW_FINE = 0,
    SHMCOW_BAD_SIZE,
    SHMCOW_BAD_MAGIC,
    SHMCOW_BAD_ORDER,
    SHMCOW_BAD_ABI,
    SHMCOW_BAD_CRC,
    SHMCOW_BAD_SHAPE,
    SHMCOW_BAD_EPOCH,
    SHMCOW_BAD_VERSION,
    SHMCOW_BAD_COUNT,
    SHMCOW_BAD_SEGMENT,
    SHMCOW_BAD_LENGTH
} shmcow_problem;

static inline const char *shmcow_problem_text(shmcow_problem problem)
{
    static const char *const text[] = {
        [SHMCOW_FINE] = "nothing",
        [SHMCOW_BAD_SIZE] = "its size is not that of a store",
        [SHMCOW_BAD_MAGIC] = "it does not begin with shmcow's magic bytes",
        [SHMCOW_BAD_ORDER] = "it was written by a machine of the other byte order",
        [SHMCOW_BAD_ABI] = "it has another ABI number",
        [SHMCOW_BAD_CRC] = "its checksum is wrong",
        [SHMCOW_BAD_SHAPE] = "its table has another shape",
        [SHMCOW_BAD_EPOCH] = "it belongs to another epoch",
        [SHMCOW_BAD_VERSION] = "it names another version",
        [SHMCOW_BAD_COUNT] = "the number of its segments is out of range",
        [SHMCOW_BAD_SEGMENT] = "it names another segment",
        [SHMCOW_BAD_LENGTH] = "a length in it is wrong",
    };
    return text[problem];
}

static inline shmcow_problem shmcow_check_identity(const shmcow_crc_table *table, const shmcow_identity *id,
                                                   uint64_t file_bytes)
{
    if (file_bytes < sizeof(shmcow_identity))
        return SHMCOW_BAD_SIZE;
    if (memcmp(id->magic, SHMCOW_MAGIC, sizeof id->magic) != 0)
        return SHMCOW_BAD_MAGIC;
    if (id->byte_order != SHMCOW_BYTE_ORDER)
        return SHMCOW_BAD_ORDER;
    if (id->abi != SHMCOW_ABI)
        return SHMCOW_BAD_ABI;
    if (id->crc != shmcow_crc(table, id, offsetof(shmcow_identity, crc)))
        return SHMCOW_BAD_CRC;
    if (id->header_bytes != sizeof(shmcow_header) || id->entry_bytes != sizeof(shmcow_entry) ||
        id->generations != SHMCOW_GENERATIONS || id->max_segments != SHMCOW_MAX_SEGMENTS)
        return SHMCOW_BAD_SHAPE;
    if (id->name_bytes == 0 || id->name_bytes > SHMCOW_NAME_BYTES)
        return SHMCOW_BAD_LENGTH;
    if (file_bytes != sizeof(shmcow_header))
        return SHMCOW_BAD_SIZE;
    return SHMCOW_FINE;
}

static inline void shmcow_seal_identity(const shmcow_crc_table *table, shmcow_identity *id)
{
    memcpy(id->magic, SHMCOW_MAGIC, sizeof id->magic);
    id->byte_order = SHMCOW_BYTE_ORDER;
    id->abi = SHMCOW_ABI;
    id->header_bytes = sizeof(shmcow_header);
    id->entry_bytes = sizeof(shmcow_entry);
    id->generations = SHMCOW_GENERATIONS;
    id->max_segments = SHMCOW_MAX_SEGMENTS;
    id->crc = shmcow_crc(table, id, offsetof(shmcow_identity, crc));
}

static inline shmcow_problem shmcow_check_entry(const shmcow_crc_table *table, const shmcow_entry *entry,
                                                uint64_t version)
{
    if (entry->crc != shmcow_crc(table, entry, offsetof(shmcow_entry, crc)))
        return SHMCOW_BAD_CRC;
    if (entry->version != version)
        return SHMCOW_BAD_VERSION;
    if (entry->segment_count == 0 || entry->segment_count > SHMCOW_MAX_SEGMENTS)
        return SHMCOW_BAD_COUNT;
    for (uint32_t k = 0; k < entry->segment_count; k++) {
        if (entry->segments[k].id == 0)
            return SHMCOW_BAD_SEGMENT;
        if (entry->segments[k].length > SHMCOW_VERSION_MAX)
            return SHMCOW_BAD_LENGTH;
    }
    return SHMCOW_FINE;
}

static inline void shmcow_seal_entry(const shmcow_crc_table *table, shmcow_entry *entry)
{
    entry->crc = shmcow_crc(table, entry, offsetof(shmcow_entry, crc));
}

static inline shmcow_problem shmcow_check_feed(const shmcow_crc_table *table, const shmcow_feed *feed)
{
    return feed->crc == shmcow_crc(table, feed, offsetof(shmcow_feed, crc)) ? SHMCOW_FINE : SHMCOW_BAD_CRC;
}

static inline void shmcow_seal_feed(const shmcow_crc_table *table, shmcow_feed *feed)
{
    feed->crc = shmcow_crc(table, feed, offsetof(shmcow_feed, crc));
}

/* Bytes of a data segment's file: payload, padding, footer. */
static inline uint64_t shmcow_segment_bytes(uint64_t length)
{
    return (length + SHMCOW_FOOTER_ALIGN - 1) / SHMCOW_FOOTER_ALIGN * SHMCOW_FOOTER_ALIGN + sizeof(shmcow_footer);
}

/* What the file costs: tmpfs gives whole pages. */
static inline uint64_t shmcow_segment_cost(uint64_t length)
{
    return (shmcow_segment_bytes(length) + 4095) / 4096 * 4096;
}

static inline shmcow_problem shmcow_check_footer(const shmcow_crc_table *table, const shmcow_footer *footer,
                                                 const uint8_t *epoch, const shmcow_segment *segment)
{
    if (memcmp(footer->magic, SHMCOW_FOOTER_MAGIC, sizeof footer->magic) != 0)
        return SHMCOW_BAD_MAGIC;
    if (footer->abi != SHMCOW_ABI)
        return SHMCOW_BAD_ABI;
    if (footer->crc != shmcow_crc(table, footer, offsetof(shmcow_footer, crc)))
        return SHMCOW_BAD_CRC;
    if (memcmp(footer->epoch, epoch, SHMCOW_EPOCH_BYTES) != 0)
        return SHMCOW_BAD_EPOCH;
    if (footer->segment != segment->id)
        return SHMCOW_BAD_SEGMENT;
    if (footer->length != segment->length)
        return SHMCOW_BAD_LENGTH;
    if (footer->payload_crc != segment->crc || footer->flags != segment->flags)
        return SHMCOW_BAD_CRC;
    return SHMCOW_FINE;
}

static inline void shmcow_seal_footer(const shmcow_crc_table *table, shmcow_footer *footer)
{
    memcpy(footer->magic, SHMCOW_FOOTER_MAGIC, sizeof footer->magic);
    footer->abi = SHMCOW_ABI;
    footer->crc = shmcow_crc(table, footer, offsetof(shmcow_footer, crc));
}

/* What the openers of tables say of one that another release has made, to be compared with: its header is in order. */
static inline const char *shmcow_other_format(void)
{
    static const char words[] = "it is of another format: give readers and writers the same shmcow";
    return words;
}

#endif
