/* shmcow: the layout of a store in shared memory. This file is the ABI: structs and constants, no functions.
 *
 * Purpose     What two processes of different builds must agree on, and nothing else.
 * Invariants  1. Fixed widths only; every size and offset below is asserted.
 *             2. The identity is written once, before the header has a name, and never again.
 *             3. A field that can change while somebody reads is a lock-free 64-bit atomic.
 *             4. A change of any size, offset, constant or meaning bumps SHMCOW_ABI (a golden test fails otherwise).
 * Who writes  Only processes of the owner's uid, and, but for the counters, only under the writer lock; the feed's
 *             state only under the feed lock.
 *             Readers map everything read-only.
 *
 * The names are part of the ABI (directory /dev/shm):
 *     shmcow.<store>                      the header, laid out as `shmcow_header`
 *     shmcow.<store>.<epoch>.lock         empty; the writer lock is a write lock on its byte 0, the feed lock on its byte 1
 *     shmcow.<store>.<epoch>.holds        empty; a reader's marker is a read lock on the byte SHMCOW_HELD_AT + version
 *                                         or SHMCOW_SEEN_AT + version
 *     shmcow.<store>.<epoch>.<segment>    payload, zeros up to SHMCOW_FOOTER_ALIGN, `shmcow_footer`
 * <epoch> is 32 lower-case hexadecimal digits, <segment> a decimal number from 1.
 */
#ifndef SHMCOW_LAYOUT_H
#define SHMCOW_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define SHMCOW_ABI 2u
#define SHMCOW_MAGIC "shmcow\r\n"
#define SHMCOW_FOOTER_MAGIC "cowtail\n"
#define SHMCOW_BYTE_ORDER 0x01020304u /* reads as 0x04030201 on the other kind of machine */

#define SHMCOW_GENERATIONS 64u
#define SHMCOW_MAX_SEGMENTS 16u
#define SHMCOW_EPOCH_BYTES 16u
#define SHMCOW_NAME_BYTES 64u
#define SHMCOW_CODEC_BYTES 32u
#define SHMCOW_FOOTER_ALIGN 64u

#define SHMCOW_WRITER_AT UINT64_C(0) /* bytes of the lock file */
#define SHMCOW_FEED_AT UINT64_C(1)

#define SHMCOW_HELD_AT UINT64_C(0) /* bytes of the holds file */
#define SHMCOW_SEEN_AT (UINT64_C(1) << 62)

/* `current`: generation index << 48 | version. 0: nothing published yet. */
#define SHMCOW_VERSION_BITS 48
#define SHMCOW_VERSION_MAX ((UINT64_C(1) << SHMCOW_VERSION_BITS) - 1)
#define SHMCOW_DESTROYED UINT64_MAX

/* A generation word: version << 16 | state. */
#define SHMCOW_STATE_BITS 16
enum shmcow_state {
    SHMCOW_FREE = 0,      /* lists nothing */
    SHMCOW_BUILDING = 1,  /* write-ahead intent: lists segments that may exist in part */
    SHMCOW_READY = 2,     /* all its segments are whole */
    SHMCOW_HELD = 3,      /* published; stays while current, retained or held by a reader */
    SHMCOW_CONDEMNED = 4, /* being judged: readers keep off; HELD again if somebody holds it */
    SHMCOW_DOOMED = 5     /* judged: its names are being removed; never comes back */
};

typedef struct {
    uint64_t id;     /* 1 and up; never used twice in an epoch */
    uint64_t length; /* payload bytes */
    uint32_t crc;    /* CRC-32 of the payload, if SHMCOW_HAS_CRC */
    uint32_t flags;
} shmcow_segment;
#define SHMCOW_HAS_CRC 1u
#define SHMCOW_IS_TYPED 2u /* its writer checked the payload against a type */

/* What a generation lists, and where it comes from. Strings are UTF-8, padded with zeros, not terminated when full. */
typedef struct {
    uint64_t version;
    uint64_t published_ns; /* CLOCK_REALTIME */
    uint32_t pid;          /* of the writer, in its own pid namespace */
    uint32_t uid;
    uint32_t segment_count;
    uint32_t flags;  /* 0 */
    uint64_t origin; /* the version whose content a rollback repeats, or 0 */
    uint64_t reserved;
    uint8_t fingerprint[16]; /* of the schema; zeros when untyped */
    char codec[SHMCOW_CODEC_BYTES];
    char author[64];
    char type_name[88];
    char source[128];
    char message[256];
    char part_names[SHMCOW_MAX_SEGMENTS][32];
    shmcow_segment segments[SHMCOW_MAX_SEGMENTS];
    uint32_t reserved2;
    uint32_t crc; /* CRC-32 of all bytes before it */
} shmcow_entry;
#define SHMCOW_ENTRY_WORDS (sizeof(shmcow_entry) / 8)

/* Written once, before the header gets its name. */
typedef struct {
    char magic[8];
    uint32_t byte_order;
    uint32_t abi;
    uint32_t header_bytes;
    uint32_t entry_bytes;
    uint32_t generations;
    uint32_t max_segments;
    uint8_t epoch[SHMCOW_EPOCH_BYTES];
    uint64_t created_ns;
    uint32_t mode; /* permission bits that the creator asked for */
    uint32_t name_bytes;
    char name[SHMCOW_NAME_BYTES];
    uint32_t reserved[15];
    uint32_t crc; /* CRC-32 of all bytes before it */
} shmcow_identity;

/* What the process that feeds a store from a source says of it. Times are CLOCK_REALTIME, 0: never. The counts are those
   of all followers of this epoch, one after the other. Strings as in an entry. */
typedef struct {
    uint64_t started_ns; /* the follower */
    uint64_t every_ns;   /* it promised to look at the source that often; 0: nothing */
    uint64_t contact_ns; /* it last asked the source, however that went */
    uint64_t success_ns; /* what the source has was last published, or found unchanged */
    uint64_t failed_ns;
    uint64_t contacts;
    uint64_t publishes;
    uint64_t failures;
    uint64_t failures_in_a_row; /* since the last success */
    uint32_t pid;               /* of the follower, in its own pid namespace */
    uint32_t uid;
    char source[128];
    char error[256]; /* of the last failure */
    uint64_t reserved[5];
    uint32_t reserved2;
    uint32_t crc; /* CRC-32 of all bytes before it */
} shmcow_feed;
#define SHMCOW_FEED_WORDS (sizeof(shmcow_feed) / 8)

enum shmcow_counter {
    SHMCOW_COUNT_PUBLISHED,
    SHMCOW_COUNT_ROLLED_BACK,
    SHMCOW_COUNT_CONFLICTS,
    SHMCOW_COUNT_REFUSED,   /* values that failed a check before the flip */
    SHMCOW_COUNT_RECLAIMED, /* versions */
    SHMCOW_COUNT_GIVEN_UP,  /* retained versions that went to make room */
    SHMCOW_COUNT_FORCED,    /* held versions whose names went because the table was full */
    SHMCOW_COUNT_RECOVERED, /* generations that a dead writer left half-done */
    SHMCOW_COUNT_SWEPT,     /* names that belonged to nothing */
    SHMCOW_COUNTERS
};

typedef struct {
    shmcow_identity identity;

    /* settings and notes: by a writer that holds the lock */
    _Alignas(64) _Atomic uint64_t retain;
    _Atomic uint64_t max_total_bytes; /* 0: no limit */
    _Atomic uint64_t next_segment;
    _Atomic uint64_t lock_pid; /* a hint for people: who took the writer lock last */

    /* the one word that readers look at: alone on its cache line, so that counting does not disturb them */
    _Alignas(64) _Atomic uint64_t current;

    _Alignas(64) _Atomic uint64_t counters[24];

    _Alignas(64) _Atomic uint64_t words[SHMCOW_GENERATIONS];
    /* each entry is a shmcow_entry, moved word by word (a reader may copy it while a writer reuses it) */
    _Alignas(64) _Atomic uint64_t entries[SHMCOW_GENERATIONS][SHMCOW_ENTRY_WORDS];

    /* the feed's state: feeds[feed_turn % 2] is shown, the other one is the follower's to write. 0: never fed */
    _Alignas(64) _Atomic uint64_t feed_turn;
    _Alignas(64) _Atomic uint64_t feeds[2][SHMCOW_FEED_WORDS]; /* each is a shmcow_feed, moved word by word */
} shmcow_header;

/* At the end of a data segment; repeats what the entry says, so that a segment can be checked alone. */
typedef struct {
    char magic[8];
    uint8_t epoch[SHMCOW_EPOCH_BYTES];
    uint64_t segment;
    uint64_t length;
    uint32_t payload_crc;
    uint32_t flags;
    char codec[SHMCOW_CODEC_BYTES];
    uint32_t abi;
    uint32_t reserved[10];
    uint32_t crc; /* CRC-32 of all bytes before it */
} shmcow_footer;

#define SHMCOW_AT(type, field, offset) \
    static_assert(offsetof(type, field) == (offset), #type "." #field " moved: bump SHMCOW_ABI")

static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "shmcow needs lock-free 64-bit atomics");
static_assert(sizeof(_Atomic uint64_t) == 8, "an atomic word is 8 bytes");

static_assert(sizeof(shmcow_segment) == 24, "shmcow_segment: 24 bytes");
SHMCOW_AT(shmcow_segment, id, 0);
SHMCOW_AT(shmcow_segment, length, 8);
SHMCOW_AT(shmcow_segment, crc, 16);
SHMCOW_AT(shmcow_segment, flags, 20);

static_assert(sizeof(shmcow_entry) == 1536, "shmcow_entry: 1536 bytes");
SHMCOW_AT(shmcow_entry, version, 0);
SHMCOW_AT(shmcow_entry, published_ns, 8);
SHMCOW_AT(shmcow_entry, pid, 16);
SHMCOW_AT(shmcow_entry, uid, 20);
SHMCOW_AT(shmcow_entry, segment_count, 24);
SHMCOW_AT(shmcow_entry, flags, 28);
SHMCOW_AT(shmcow_entry, origin, 32);
SHMCOW_AT(shmcow_entry, reserved, 40);
SHMCOW_AT(shmcow_entry, fingerprint, 48);
SHMCOW_AT(shmcow_entry, codec, 64);
SHMCOW_AT(shmcow_entry, author, 96);
SHMCOW_AT(shmcow_entry, type_name, 160);
SHMCOW_AT(shmcow_entry, source, 248);
SHMCOW_AT(shmcow_entry, message, 376);
SHMCOW_AT(shmcow_entry, part_names, 632);
SHMCOW_AT(shmcow_entry, segments, 1144);
SHMCOW_AT(shmcow_entry, reserved2, 1528);
SHMCOW_AT(shmcow_entry, crc, 1532);

static_assert(sizeof(shmcow_identity) == 192, "shmcow_identity: 192 bytes");
SHMCOW_AT(shmcow_identity, magic, 0);
SHMCOW_AT(shmcow_identity, byte_order, 8);
SHMCOW_AT(shmcow_identity, abi, 12);
SHMCOW_AT(shmcow_identity, header_bytes, 16);
SHMCOW_AT(shmcow_identity, entry_bytes, 20);
SHMCOW_AT(shmcow_identity, generations, 24);
SHMCOW_AT(shmcow_identity, max_segments, 28);
SHMCOW_AT(shmcow_identity, epoch, 32);
SHMCOW_AT(shmcow_identity, created_ns, 48);
SHMCOW_AT(shmcow_identity, mode, 56);
SHMCOW_AT(shmcow_identity, name_bytes, 60);
SHMCOW_AT(shmcow_identity, name, 64);
SHMCOW_AT(shmcow_identity, reserved, 128);
SHMCOW_AT(shmcow_identity, crc, 188);

static_assert(sizeof(shmcow_feed) == 512, "shmcow_feed: 512 bytes");
SHMCOW_AT(shmcow_feed, started_ns, 0);
SHMCOW_AT(shmcow_feed, every_ns, 8);
SHMCOW_AT(shmcow_feed, contact_ns, 16);
SHMCOW_AT(shmcow_feed, success_ns, 24);
SHMCOW_AT(shmcow_feed, failed_ns, 32);
SHMCOW_AT(shmcow_feed, contacts, 40);
SHMCOW_AT(shmcow_feed, publishes, 48);
SHMCOW_AT(shmcow_feed, failures, 56);
SHMCOW_AT(shmcow_feed, failures_in_a_row, 64);
SHMCOW_AT(shmcow_feed, pid, 72);
SHMCOW_AT(shmcow_feed, uid, 76);
SHMCOW_AT(shmcow_feed, source, 80);
SHMCOW_AT(shmcow_feed, error, 208);
SHMCOW_AT(shmcow_feed, reserved, 464);
SHMCOW_AT(shmcow_feed, reserved2, 504);
SHMCOW_AT(shmcow_feed, crc, 508);

static_assert(sizeof(shmcow_header) == 1024 + 1536 * SHMCOW_GENERATIONS + 1088, "shmcow_header: 100,416 bytes");
SHMCOW_AT(shmcow_header, identity, 0);
SHMCOW_AT(shmcow_header, retain, 192);
SHMCOW_AT(shmcow_header, max_total_bytes, 200);
SHMCOW_AT(shmcow_header, next_segment, 208);
SHMCOW_AT(shmcow_header, lock_pid, 216);
SHMCOW_AT(shmcow_header, current, 256);
SHMCOW_AT(shmcow_header, counters, 320);
SHMCOW_AT(shmcow_header, words, 512);
SHMCOW_AT(shmcow_header, entries, 1024);
SHMCOW_AT(shmcow_header, feed_turn, 99328);
SHMCOW_AT(shmcow_header, feeds, 99392);
static_assert(SHMCOW_COUNTERS <= 24, "the counters outgrew their place");

static_assert(sizeof(shmcow_footer) == 128, "shmcow_footer: 128 bytes");
SHMCOW_AT(shmcow_footer, magic, 0);
SHMCOW_AT(shmcow_footer, epoch, 8);
SHMCOW_AT(shmcow_footer, segment, 24);
SHMCOW_AT(shmcow_footer, length, 32);
SHMCOW_AT(shmcow_footer, payload_crc, 40);
SHMCOW_AT(shmcow_footer, flags, 44);
SHMCOW_AT(shmcow_footer, codec, 48);
SHMCOW_AT(shmcow_footer, abi, 80);
SHMCOW_AT(shmcow_footer, reserved, 84);
SHMCOW_AT(shmcow_footer, crc, 124);

#endif
