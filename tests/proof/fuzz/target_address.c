/* The text of an address or of a network, and nothing else: what is read, and that it means what inet_pton says it means. */
#include <arpa/inet.h>

#include "fuzz.h"
#include "shmcow_address.h"

#define ROOM 512
static char place[ROOM];

static void check4(const char *text, uint64_t size, const char *terminated)
{
    uint32_t fast = 0, slow = 0;
    struct in_addr there;
    bool read = shmcow_parse4_fast(text, size, &fast);
    REQUIRE(read == shmcow_parse4_slow(text, size, &slow) && (!read || fast == slow));
    REQUIRE(read == (inet_pton(AF_INET, terminated, &there) == 1) && (!read || ntohl(there.s_addr) == fast));
}

static void check6(const char *text, uint64_t size, const char *terminated)
{
    shmcow_u128 number = 0;
    struct in6_addr there;
    uint8_t packed[16];
    bool read = shmcow_parse6_plain(text, size, &number);
    shmcow_pack(number, packed);
    REQUIRE(read == (inet_pton(AF_INET6, terminated, &there) == 1));
    REQUIRE(!read || memcmp(packed, &there, sizeof packed) == 0);
    shmcow_u128 fast = 0;
    bool taken = shmcow_parse6_fast(text, size, &fast);
    REQUIRE(!taken || (read && fast == number));
#ifdef SHMCOW_SSE2
    bool dotted = memchr(text, '.', size) != NULL, gap = strstr(terminated, "::") != NULL;
    REQUIRE(taken == (read && size >= SHMCOW_TEXT6_MIN && !dotted && !gap));
#endif
}

static void fuzz_one(const uint8_t *data, size_t size)
{
    char terminated[ROOM + 1] = {0};
    shmcow_address address, again;
    shmcow_network network;
    size = size < ROOM ? size : ROOM;
    char *text = place + ROOM - size; /* its end is the end of the array */
    memcpy(text, data, size);
    memcpy(terminated, data, size);
    ASAN_POISON_MEMORY_REGION(place, (size_t)(text - place));
    if (strlen(terminated) == size) {
        check4(text, size, terminated);
        check6(text, size, terminated);
    }
    bool read = shmcow_parse_address(text, size, &address);
    const char *scope = size > 0 ? memchr(text, '%', size) : NULL;
    if (read && scope != NULL) { /* inet_pton knows no scope ids */
        REQUIRE(address.wide && size > (size_t)(scope - text) + 1 && memchr(scope, '/', size - (size_t)(scope - text)) == NULL);
        REQUIRE(memchr(scope + 1, '%', size - (size_t)(scope - text) - 1) == NULL);
        REQUIRE(shmcow_parse_address(text, (uint64_t)(scope - text), &again) && again.number == address.number);
    }
    if (shmcow_parse_network(text, size, &network) == SHMCOW_NETWORK) {
        shmcow_u128 hosts = network.last ^ network.first.number;
        REQUIRE((hosts & (hosts + 1)) == 0 && (network.first.number & hosts) == 0);
        REQUIRE(network.first.wide || network.last <= UINT32_MAX);
        REQUIRE(hosts == 0 || memchr(text, '/', size) != NULL);
    }
    if (shmcow_unpack((const uint8_t *)text, size, &address)) {
        uint8_t packed[16];
        shmcow_pack(address.number, packed);
        REQUIRE(memcmp(packed + 16 - size, text, size) == 0 && address.wide == (size == 16));
    }
    ASAN_UNPOISON_MEMORY_REGION(place, ROOM);
}

/* Most changes are to characters that such texts have. */
static size_t fuzz_repair(uint8_t *data, size_t size, size_t room, uint32_t random)
{
    static const char allowed[] = "0123456789abcdefABCDEF:::....%/0125";
    (void)room;
    for (size_t k = 0; k < size; k++)
        if (random % 4 != 0 && memchr(allowed, data[k], sizeof allowed - 1) == NULL)
            data[k] = (uint8_t)allowed[data[k] % (sizeof allowed - 1)];
    return random % 16 < 12 && size > 43 ? 43 : size;
}
