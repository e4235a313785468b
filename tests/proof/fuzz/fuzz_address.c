/* shmcow: libFuzzer on the text of addresses and networks (csrc/shmcow_address.h).
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I csrc tests/proof/fuzz/fuzz_address.c -o fuzz_address
 *
 * What is checked beyond memory: both IPv4 parsers agree with each other, and both families with inet_pton wherever that has
 * an opinion (it knows no scope ids).
 */
#include <arpa/inet.h>
#include <stdlib.h>

#include "shmcow_address.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check4(const char *text, size_t size, const char *terminated)
{
    uint32_t fast = 0, slow = 0;
    struct in_addr there;
    bool read = shmcow_parse4_fast(text, size, &fast);
    if (read != shmcow_parse4_slow(text, size, &slow) || (read && fast != slow))
        abort();
    if (read != (inet_pton(AF_INET, terminated, &there) == 1) || (read && ntohl(there.s_addr) != fast))
        abort();
}

static void check6(const char *text, size_t size, const char *terminated)
{
    shmcow_u128 number = 0;
    struct in6_addr there;
    uint8_t packed[16];
    bool read = shmcow_parse6_plain(text, size, &number);
    shmcow_pack(number, packed);
    if (read != (inet_pton(AF_INET6, terminated, &there) == 1) || (read && memcmp(packed, &there, sizeof packed) != 0))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size == 0 ? 1 : size); /* of exactly that size: the sanitizer sees a byte read too far */
    char *terminated = calloc(1, size + 1);
    shmcow_address address;
    shmcow_network network;
    if (text == NULL || terminated == NULL)
        abort();
    if (size > 0) {
        memcpy(text, data, size);
        memcpy(terminated, data, size);
    }
    if (strlen(terminated) == size) {
        check4(text, size, terminated);
        check6(text, size, terminated);
    }
    (void)shmcow_parse_address(text, size, &address);
    if (shmcow_parse_network(text, size, &network) == SHMCOW_NETWORK && network.last < network.first.number)
        abort();
    (void)shmcow_unpack(data, size, &address);
    free(text);
    free(terminated);
    return 0;
}
