/* shmcow: CRC-32. Pure functions: no Python, no system call, no allocation.
 *
 * Purpose     The checksum of headers, entries, footers and payloads: CRC-32 of ISO 3309 / zlib (polynomial 0x04C11DB7,
 *             reflected: 0xEDB88320).
 * Invariants  1. Both ways give the same number for the same bytes; which one is taken is decided once, by the processor.
 *             2. Nothing here reads outside the bytes that it is given.
 *
 * By tables, eight bytes at a time: M. Kounavis, F. Berry, "A systematic approach to building high performance
 * software-based CRC generators", 2005. By carry-less multiplication, 64 bytes at a time: V. Gopal et al., "Fast CRC
 * computation for generic polynomials using PCLMULQDQ instruction", Intel, 2009; its constants are powers of x modulo
 * the polynomial, bit-reflected.
 */
#ifndef SHMCOW_CRC_H
#define SHMCOW_CRC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef struct {
    uint32_t by_byte[8][256];
    bool folds; /* whether the processor multiplies without carry */
} shmcow_crc_table;

static inline void shmcow_crc_fill(shmcow_crc_table *table)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++)
            c = (c & 1u) ? (c >> 1) ^ 0xEDB88320u : c >> 1;
        table->by_byte[0][n] = c;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++) {
            uint32_t c = table->by_byte[k - 1][n];
            table->by_byte[k][n] = table->by_byte[0][c & 0xFFu] ^ (c >> 8);
        }
#if defined(__x86_64__)
    table->folds = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#else
    table->folds = false;
#endif
}

/* The CRC so far, not inverted, gone on with by tables. */
static inline uint32_t shmcow_crc_go_on(const shmcow_crc_table *table, uint32_t c, const uint8_t *p, size_t length)
{
    for (; length >= 8; length -= 8, p += 8) {
        uint32_t low = c ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        c = table->by_byte[7][low & 0xFFu] ^ table->by_byte[6][(low >> 8) & 0xFFu] ^
            table->by_byte[5][(low >> 16) & 0xFFu] ^ table->by_byte[4][low >> 24] ^
            table->by_byte[3][p[4]] ^ table->by_byte[2][p[5]] ^ table->by_byte[1][p[6]] ^ table->by_byte[0][p[7]];
    }
    for (; length > 0; length--, p++)
        c = table->by_byte[0][(c ^ *p) & 0xFFu] ^ (c >> 8);
    return c;
}

#if defined(__x86_64__)
#define SHMCOW_FOLDING __attribute__((target("pclmul,sse4.1")))

/* 128 bits moved up by as many bits as the two powers say, and what stands there added. */
static inline SHMCOW_FOLDING __m128i shmcow_crc_fold(__m128i x, __m128i powers, __m128i there)
{
    __m128i low = _mm_clmulepi64_si128(x, powers, 0x00), high = _mm_clmulepi64_si128(x, powers, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

/* The lowest 32 bits alone. */
static inline SHMCOW_FOLDING __m128i shmcow_crc_low(__m128i x)
{
    return _mm_cvtsi32_si128(_mm_cvtsi128_si32(x));
}

/* The CRC so far, not inverted, gone on with for all whole 16 bytes of at least 64. */
static inline SHMCOW_FOLDING uint32_t shmcow_crc_multiply(uint32_t c, const uint8_t *p, size_t length)
{
    const __m128i by_64 = _mm_set_epi64x(0x1C6E41596, 0x154442BD4); /* x^(4*128-32), x^(4*128+32) */
    const __m128i by_16 = _mm_set_epi64x(0x0CCAA009E, 0x1751997D0); /* x^(128-32), x^(128+32) */
    const __m128i by_4 = _mm_cvtsi64_si128(0x163CD6124);            /* x^64 */
    const __m128i barrett = _mm_set_epi64x(0x1F7011641, 0x1DB710641); /* x^64 / the polynomial, and the polynomial */
    const __m128i *at = (const __m128i *)(const void *)p;
    /* four that do not wait for each other: a multiplication takes longer than to begin the next */
    __m128i a = _mm_xor_si128(_mm_loadu_si128(at), _mm_cvtsi32_si128((int)c)), b = _mm_loadu_si128(at + 1);
    __m128i d = _mm_loadu_si128(at + 2), e = _mm_loadu_si128(at + 3);
    for (at += 4, length -= 64; length >= 64; at += 4, length -= 64) {
        a = shmcow_crc_fold(a, by_64, _mm_loadu_si128(at));
        b = shmcow_crc_fold(b, by_64, _mm_loadu_si128(at + 1));
        d = shmcow_crc_fold(d, by_64, _mm_loadu_si128(at + 2));
        e = shmcow_crc_fold(e, by_64, _mm_loadu_si128(at + 3));
    }
    __m128i all = shmcow_crc_fold(shmcow_crc_fold(shmcow_crc_fold(a, by_16, b), by_16, d), by_16, e);
    for (; length >= 16; length -= 16)
        all = shmcow_crc_fold(all, by_16, _mm_loadu_si128(at++));
    /* 128 bits to 96, to 64, to 32 (Barrett's reduction) */
    all = _mm_xor_si128(_mm_srli_si128(all, 8), _mm_clmulepi64_si128(all, by_16, 0x10));
    all = _mm_xor_si128(_mm_srli_si128(all, 4), _mm_clmulepi64_si128(shmcow_crc_low(all), by_4, 0x00));
    __m128i quotient = _mm_clmulepi64_si128(shmcow_crc_low(all), barrett, 0x10);
    __m128i product = _mm_clmulepi64_si128(shmcow_crc_low(quotient), barrett, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(all, product), 1);
}
#endif

static inline uint32_t shmcow_crc(const shmcow_crc_table *table, const void *data, size_t length)
{
    const uint8_t *p = data;
    uint32_t c = 0xFFFFFFFFu;
#if defined(__x86_64__)
    if (table->folds && length >= 64) {
        size_t whole = length & ~(size_t)15;
        c = shmcow_crc_multiply(c, p, whole);
        p += whole;
        length -= whole;
    }
#endif
    return shmcow_crc_go_on(table, c, p, length) ^ 0xFFFFFFFFu;
}

#endif
