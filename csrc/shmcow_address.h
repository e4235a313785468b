/* shmcow: text to IP address, and back to bytes. Pure functions: no Python, no system call, no allocation.
 *
 * Purpose     Parse what a lookup is given, with the verdicts of Python's ipaddress module.
 * Invariants  1. Nothing outside the given text is read; it need not end with a zero.
 *             2. What is accepted, and the number that it means, is what ipaddress.ip_address says.
 *
 * Source      RFC 4291, section 2.2 (text of IPv6 addresses), RFC 4007, section 11 (scope ids), and what ipaddress makes
 *             of them: decimal octets of 1 to 3 digits without leading zeros; groups of 1 to 4 hexadecimal digits; "::" for
 *             at least one group; a scope id of at least one character, with neither "%" nor "/" in it, which is dropped.
 */
#ifndef SHMCOW_ADDRESS_H
#define SHMCOW_ADDRESS_H

#include "shmcow_address_fast.h"

typedef struct {
    shmcow_u128 number;
    bool wide; /* IPv6 */
} shmcow_address;

#define SHMCOW_MAPPED UINT64_C(0xffff) /* the upper 96 bits of ::ffff:a.b.c.d */

static inline bool shmcow_is_mapped(shmcow_u128 number)
{
    return number >> 32 == SHMCOW_MAPPED;
}

/* An IPv4 address that is written as an IPv6 one is the IPv4 address. */
static inline void shmcow_unmap(shmcow_address *address)
{
    if (address->wide && shmcow_is_mapped(address->number)) {
        address->number = (uint32_t)address->number;
        address->wide = false;
    }
}

static inline bool shmcow_unpack4(const uint8_t *bytes, shmcow_address *address)
{
    address->number = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
    address->wide = false;
    return true;
}

/* 4 or 16 bytes, in network order. */
static inline bool shmcow_unpack(const uint8_t *bytes, uint64_t length, shmcow_address *address)
{
    if (length == 4)
        return shmcow_unpack4(bytes, address);
    if (length != 16)
        return false;
    address->number = 0;
    for (unsigned int k = 0; k < 16; k++)
        address->number = address->number << 8 | bytes[k];
    address->wide = true;
    return true;
}

static inline void shmcow_pack(shmcow_u128 number, uint8_t bytes[16])
{
    for (unsigned int k = 16; k-- > 0; number >>= 8)
        bytes[k] = (uint8_t)number;
}

/* ---- IPv4 ---- */

static inline bool shmcow_parse4_slow(const char *text, uint64_t length, uint32_t *number)
{
    uint32_t sum = 0, octets = 0;
    for (uint64_t k = 0;; k++, octets++) {
        uint32_t octet = 0;
        uint64_t begin = k;
        for (; k < length && text[k] >= '0' && text[k] <= '9' && k - begin < 3; k++)
            octet = octet * 10 + (uint32_t)(text[k] - '0');
        if (octets == 4 || k == begin || octet > 255 || (text[begin] == '0' && k - begin > 1))
            return false;
        sum = sum << 8 | octet;
        if (k == length)
            break;
        if (text[k] != '.')
            return false;
    }
    *number = sum;
    return octets == 3;
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

static inline uint64_t shmcow_text_word(const char *text, unsigned int bytes)
{
    uint64_t word = 0;
    memcpy(&word, text, bytes);
    return word;
}

/* One bit for each byte that is a dot. */
static inline uint32_t shmcow_dots(uint64_t word)
{
    const uint64_t low7 = UINT64_C(0x7f7f7f7f7f7f7f7f);
    uint64_t other = word ^ UINT64_C(0x2e2e2e2e2e2e2e2e);
    uint64_t found = ~(((other & low7) + low7) | other | low7);
    return (uint32_t)((found >> 7) * UINT64_C(0x0102040810204080) >> 56);
}

/* The octet between two places of the text; *bad is set if it is none. */
static inline uint32_t shmcow_octet(shmcow_u128 text, uint32_t begin, uint32_t end, uint32_t *bad)
{
    static const uint8_t least[4] = {0, 0, 10, 100}; /* smaller, with so many digits: a leading zero */
    uint32_t digits = end - begin, shift = ((0u - digits) & 3u) * 8;
    uint32_t word = ((uint32_t)(text >> (8 * (begin & 15u))) << shift) ^ (UINT32_C(0x30303030) << shift);
    uint32_t octet = (word >> 24) + 10 * (word >> 16 & 0xffu) + 100 * (word >> 8 & 0xffu);
    *bad |= (((word + UINT32_C(0x76767676)) | word) & UINT32_C(0x80808080)) | (digits - 1 > 2) | (octet > 255) |
            (octet < least[digits & 3u]);
    return octet;
}

/* Without a branch for a digit: the lengths of octets are what a processor cannot guess. */
static inline bool shmcow_parse4_fast(const char *text, uint64_t length, uint32_t *number)
{
    if (length < 7 || length > 15)
        return false;
    shmcow_u128 all;
    if (length >= 8)
        all = shmcow_text_word(text, 8) | (shmcow_u128)shmcow_text_word(text + length - 8, 8) << (8 * (length - 8));
    else
        all = shmcow_text_word(text, 4) | shmcow_text_word(text + 3, 4) << 24;
    /* The guards above bit 15 stand for dots that are missing; what is found there is no octet. */
    uint32_t dots = shmcow_dots((uint64_t)all) | shmcow_dots((uint64_t)(all >> 64)) << 8 | UINT32_C(0x70000);
    uint32_t bad = 0, first = (uint32_t)__builtin_ctz(dots);
    dots &= dots - 1;
    uint32_t second = (uint32_t)__builtin_ctz(dots);
    dots &= dots - 1;
    uint32_t third = (uint32_t)__builtin_ctz(dots);
    *number = shmcow_octet(all, 0, first, &bad) << 24 | shmcow_octet(all, first + 1, second, &bad) << 16 |
              shmcow_octet(all, second + 1, third, &bad) << 8 |
              shmcow_octet(all, third + 1, (uint32_t)length, &bad);
    return bad == 0;
}

#else

static inline bool shmcow_parse4_fast(const char *text, uint64_t length, uint32_t *number)
{
    return shmcow_parse4_slow(text, length, number);
}

#endif

/* ---- IPv6 ---- */

/* The value of a hexadecimal digit, or 255. */
static const uint8_t shmcow_hex[256] = {
#define SHMCOW_NO16 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255
#define SHMCOW_AF16 255, 10, 11, 12, 13, 14, 15, 255, 255, 255, 255, 255, 255, 255, 255, 255
    SHMCOW_NO16, SHMCOW_NO16, SHMCOW_NO16,
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 255, 255, 255, 255, 255,
    SHMCOW_AF16, SHMCOW_NO16, SHMCOW_AF16, SHMCOW_NO16,
    SHMCOW_NO16, SHMCOW_NO16, SHMCOW_NO16, SHMCOW_NO16, SHMCOW_NO16, SHMCOW_NO16, SHMCOW_NO16, SHMCOW_NO16,
#undef SHMCOW_NO16
#undef SHMCOW_AF16
};

/* One to four hexadecimal digits. How many there are, or 0. Most groups have four: those take one branch. */
static inline uint32_t shmcow_group(const char *text, uint64_t length, uint32_t *group)
{
    if (length >= 4) {
        uint32_t a = shmcow_hex[(uint8_t)text[0]], b = shmcow_hex[(uint8_t)text[1]];
        uint32_t c = shmcow_hex[(uint8_t)text[2]], d = shmcow_hex[(uint8_t)text[3]];
        *group = a << 12 | b << 8 | c << 4 | d;
        if ((a | b | c | d) < 16)
            return 4;
    }
    uint32_t digits = 0, digit;
    *group = 0;
    for (; digits < length && digits < 4 && (digit = shmcow_hex[(uint8_t)text[digits]]) < 16; digits++)
        *group = *group << 4 | digit;
    return digits;
}

/* Eight groups to a number; the last `after` of `groups` stand at the end. */
static inline shmcow_u128 shmcow_join_groups(uint16_t *all, uint32_t groups, uint32_t after)
{
    if (groups < 8) {
        memmove(all + 8 - after, all + groups - after, after * sizeof *all);
        memset(all + groups - after, 0, (8 - groups) * sizeof *all);
    }
    uint64_t high = (uint64_t)all[0] << 48 | (uint64_t)all[1] << 32 | (uint64_t)all[2] << 16 | all[3];
    uint64_t low = (uint64_t)all[4] << 48 | (uint64_t)all[5] << 32 | (uint64_t)all[6] << 16 | all[7];
    return (shmcow_u128)high << 64 | low;
}

/* Without a scope id. */
static inline bool shmcow_parse6_plain(const char *text, uint64_t length, shmcow_u128 *number)
{
    uint16_t all[8];
    uint32_t groups = 0, gap = 9; /* the groups before the gap; 9: there is none */
    uint64_t k = 0;
    if (length < 2)
        return false;
    if (text[0] == ':') {
        if (text[1] != ':')
            return false;
        gap = 0;
        k = 2;
    }
    while (k < length) {
        uint32_t group, digits = shmcow_group(text + k, length - k, &group);
        if (groups == 8)
            return false;
        if (k + digits < length && text[k + digits] == '.') {
            if (groups == 7 || !shmcow_parse4_slow(text + k, length - k, &group))
                return false;
            all[groups++] = (uint16_t)(group >> 16);
            all[groups++] = (uint16_t)group;
            break;
        }
        if (digits == 0)
            return false;
        all[groups++] = (uint16_t)group;
        k += digits;
        if (k == length)
            break;
        if (text[k++] != ':' || k == length)
            return false;
        if (text[k] == ':') {
            if (gap != 9)
                return false;
            gap = groups;
            k++;
        }
    }
    if (gap == 9 ? groups != 8 : groups > 7)
        return false;
    *number = shmcow_join_groups(all, groups, gap == 9 ? 0 : groups - gap);
    return true;
}

static inline bool shmcow_parse6(const char *text, uint64_t length, shmcow_u128 *number)
{
    if (shmcow_parse6_fast(text, length, number) || shmcow_parse6_plain(text, length, number))
        return true;
    const char *scope = length > 0 ? memchr(text, '%', length) : NULL;
    if (scope == NULL)
        return false;
    uint64_t head = (uint64_t)(scope - text), rest = length - head - 1;
    return rest > 0 && memchr(scope + 1, '%', rest) == NULL && memchr(scope + 1, '/', rest) == NULL &&
           shmcow_parse6_plain(text, head, number);
}

/* ---- both ---- */

static inline bool shmcow_parse_address(const char *text, uint64_t length, shmcow_address *address)
{
    uint32_t number;
    address->wide = false;
    if (shmcow_parse4_fast(text, length, &number)) {
        address->number = number;
        return true;
    }
    address->wide = true;
    return shmcow_parse6(text, length, &address->number);
}

typedef struct {
    shmcow_address first;
    shmcow_u128 last;
} shmcow_network;

enum shmcow_network_verdict { SHMCOW_NETWORK, SHMCOW_NO_NETWORK, SHMCOW_HOST_BITS };

/* "address/bits" or a lone address. Netmasks for bits are the caller's business: they are no network here. */
static inline enum shmcow_network_verdict shmcow_parse_network(const char *text, uint64_t length, shmcow_network *network)
{
    const char *slash = length > 0 ? memchr(text, '/', length) : NULL;
    uint64_t head = slash != NULL ? (uint64_t)(slash - text) : length;
    if (!shmcow_parse_address(text, head, &network->first))
        return SHMCOW_NO_NETWORK;
    uint32_t width = network->first.wide ? 128 : 32, bits = width;
    if (slash != NULL) {
        uint64_t digits = length - head - 1;
        bits = 0;
        if (digits == 0 || digits > 3)
            return SHMCOW_NO_NETWORK;
        for (uint64_t k = head + 1; k < length; k++) {
            if (text[k] < '0' || text[k] > '9')
                return SHMCOW_NO_NETWORK;
            bits = bits * 10 + (uint32_t)(text[k] - '0');
        }
        if (bits > width)
            return SHMCOW_NO_NETWORK;
    }
    shmcow_u128 hosts = width == bits ? 0 : ~(shmcow_u128)0 >> (128 - (width - bits));
    if ((network->first.number & hosts) != 0)
        return SHMCOW_HOST_BITS;
    network->last = network->first.number | hosts;
    return SHMCOW_NETWORK;
}

#endif
