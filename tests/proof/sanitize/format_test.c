/* The checks and sums of shmcow_format.h, the words of shmcow_protocol.h and the comparisons of
   shmcow_iptable_compare.h, at their edges. Ends with 0, or says what is wrong. Built with ASan and UBSan: each struct is
   alone on the heap, so that a byte beside it is a report. */
#include "shmcow_iptable_compare.h"
#include "shmcow_os.h"
#include "shmcow_protocol.h"

#define CHECK(what) ((what) ? (void)checks++ : (void)(printf("line %d: %s\n", __LINE__, #what), exit(1)))
static unsigned checks;
static shmcow_crc_table table;

static uint32_t plain_crc(const uint8_t *p, size_t length)
{
    uint32_t c = ~0u;
    while (length-- > 0) {
        c ^= *p++;
        for (int bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (0xEDB88320u & (0u - (c & 1u)));
    }
    return ~c;
}

/* By tables, and by multiplication where the processor can. */
static void test_crc(bool folds)
{
    table.folds = folds;
    CHECK(shmcow_crc(&table, "123456789", 9) == 0xCBF43926u);
    for (size_t length = 0; length < 400; length++)
        for (size_t at = 0; at < 9; at++) { /* any alignment, and not a byte beyond the end */
            uint8_t *data = malloc(at + length + (at + length == 0));
            for (size_t k = 0; k < at + length; k++)
                data[k] = (uint8_t)(k * 37 + length);
            CHECK(shmcow_crc(&table, data + at, length) == plain_crc(data + at, length));
            free(data);
        }
}

static void test_sizes(void)
{
    static const uint64_t lengths[] = {0, 1, 63, 64, 65, 3967, 3968, 3969, 4096, SHMCOW_VERSION_MAX - 1, SHMCOW_VERSION_MAX};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        uint64_t bytes = shmcow_segment_bytes(lengths[k]), cost = shmcow_segment_cost(lengths[k]);
        CHECK(bytes >= lengths[k] + 128 && bytes < lengths[k] + 128 + 64 && bytes % 64 == 0);
        CHECK(cost >= bytes && cost < bytes + 4096 && cost % 4096 == 0);
    }
}

static void test_entry(void)
{
    shmcow_entry *entry = calloc(1, sizeof *entry);
    for (uint32_t count = 0; count < 40; count++) {
        entry->version = count;
        entry->segment_count = count;
        for (uint32_t k = 0; k < count && k < SHMCOW_MAX_SEGMENTS; k++)
            entry->segments[k] = (shmcow_segment){.id = k + 1, .length = SHMCOW_VERSION_MAX};
        shmcow_seal_entry(&table, entry);
        CHECK(shmcow_check_entry(&table, entry, count) == (count - 1 < 16 ? SHMCOW_FINE : SHMCOW_BAD_COUNT));
        CHECK(shmcow_check_entry(&table, entry, count + 1) == SHMCOW_BAD_VERSION);
    }
    entry->segment_count = UINT32_MAX;
    shmcow_seal_entry(&table, entry);
    CHECK(shmcow_check_entry(&table, entry, entry->version) == SHMCOW_BAD_COUNT);
    for (size_t bit = 0; bit < sizeof *entry * 8; bit++) {
        ((uint8_t *)entry)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(shmcow_check_entry(&table, entry, entry->version) == SHMCOW_BAD_CRC);
        ((uint8_t *)entry)[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    free(entry);
}

static void test_identity(void)
{
    shmcow_identity *id = calloc(1, sizeof *id);
    id->name_bytes = SHMCOW_NAME_BYTES;
    shmcow_seal_identity(&table, id);
    CHECK(shmcow_check_identity(&table, id, sizeof(shmcow_header)) == SHMCOW_FINE);
    CHECK(shmcow_check_identity(&table, id, sizeof(shmcow_header) + 1) == SHMCOW_BAD_SIZE);
    for (uint64_t bytes = 0; bytes < sizeof *id; bytes++) { /* a file that ends early is not read beyond its end */
        void *file = malloc(bytes + (bytes == 0));
        memcpy(file, id, bytes);
        CHECK(shmcow_check_identity(&table, file, bytes) == SHMCOW_BAD_SIZE);
        free(file);
    }
    for (uint32_t n = 0; n < 200; n++) {
        id->name_bytes = n < 100 ? n : UINT32_MAX - n;
        shmcow_seal_identity(&table, id);
        CHECK(shmcow_check_identity(&table, id, sizeof(shmcow_header)) == (n - 1 < 64 ? SHMCOW_FINE : SHMCOW_BAD_LENGTH));
    }
    free(id);
}

static void test_words(void)
{
    shmcow_header *h = calloc(1, sizeof *h);
    CHECK(shmcow_index_of(SHMCOW_DESTROYED) == 65535 && shmcow_version_of(SHMCOW_DESTROYED) == SHMCOW_VERSION_MAX);
    CHECK(shmcow_current_word(63, SHMCOW_VERSION_MAX) >> 48 == 63);
    CHECK(shmcow_word_version(shmcow_word(SHMCOW_VERSION_MAX, SHMCOW_DOOMED)) == SHMCOW_VERSION_MAX);
    memset((void *)h->entries, 0xFF, sizeof h->entries); /* counts and lengths of a damaged table */
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++)
        atomic_store(&h->words[i], UINT64_MAX);
    CHECK(shmcow_listed_count(h, 63) == SHMCOW_MAX_SEGMENTS && shmcow_listed(h, UINT64_MAX, 0));
    /* all of them list the same segment, and each lists it sixteen times */
    CHECK(shmcow_total_bytes(h) == 16 * shmcow_segment_cost(SHMCOW_VERSION_MAX));
    CHECK(shmcow_find_version(h, SHMCOW_VERSION_MAX) == SHMCOW_GONE && shmcow_find_free(h) == SHMCOW_CROWDED);
    free(h);
}

/* Whatever way numbers are compared, with SSE2 or in plain C, it is the same. Each is alone on the heap, at any alignment. */
static void test_comparisons(void)
{
    static const uint32_t edges[] = {0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff, 0x10000, 0x7fffffff, 0x80000000u, 0xfffffffeu,
                                     UINT32_MAX};
    const size_t count = sizeof edges / sizeof *edges;
    for (uint32_t at = 0; at < 5; at++) {
        uint8_t *node4 = (uint8_t *)malloc(at + 128) + at, *node6 = (uint8_t *)malloc(at + 128) + at;
        uint8_t *leaf = (uint8_t *)malloc(at + 32) + at;
        for (uint32_t step = 0; step < 64; step++) {
            for (uint32_t k = 0; k < 32; k++) { /* they ascend, and some are the same */
                uint64_t number = edges[step % count] + ((uint64_t)k * step * 0x400000 >> 2 * (step % 16));
                uint32_t word = number < UINT32_MAX ? (uint32_t)number : UINT32_MAX, half = word >> 3;
                uint16_t delta = (uint16_t)(k * step * 70 < 0xffff ? k * step * 70 : 0xffff);
                memcpy(node4 + 4 * k, &word, 4);
                if (k >= 16)
                    continue;
                memcpy(node6 + 4 * k, &half, 4);
                memcpy(node6 + 64 + 4 * k, &word, 4);
                memcpy(leaf + 2 * k, &delta, 2);
            }
            for (size_t k = 0; k < 32 + count; k++) {
                uint32_t number = k < 32 ? shmcow_load32(node4, k) : edges[k - 32];
                for (uint32_t off = 0; off < 3; off++) {
                    uint32_t asked = number + off - 1, delta = (uint16_t)asked < 0xffff ? (uint16_t)asked : 0xfffe;
                    uint64_t head = (uint64_t)shmcow_load32(node6, k % 16) << 32 | asked;
                    CHECK(shmcow_above4(node4, asked) == shmcow_above4_plain(node4, asked));
                    CHECK(shmcow_above6(node6, head) == shmcow_above6_plain(node6, head));
                    CHECK(shmcow_above_delta(leaf, delta, 16) == shmcow_above_delta_plain(leaf, delta, 16));
                    CHECK(shmcow_above_delta(leaf, delta, 10) == shmcow_above_delta_plain(leaf, delta, 10));
                }
            }
        }
        free(node4 - at);
        free(node6 - at);
        free(leaf - at);
    }
}

int main(void)
{
    shmcow_crc_fill(&table);
    bool folds = table.folds;
    test_crc(false);
    test_crc(folds);
    test_sizes();
    test_entry();
    test_identity();
    test_words();
    test_comparisons();
    for (int k = SHMCOW_FINE; k <= SHMCOW_BAD_LENGTH; k++)
        CHECK(strlen(shmcow_problem_text((shmcow_problem)k)) > 0);
    printf("%u checks\n", checks);
    return 0;
}
