/* shmcow: comparing the items of a node or a leaf with a number (see shmcow_iptable_find.h). Python-free, no system call.
 *
 * Purpose     Say which of the words of a node, or of the deltas of a leaf, is the first above a number.
 * Invariants  1. Nothing but the node or the leaf is read, whatever is in it; the answer is one of its items, or behind them.
 *             2. Both ways to compare say the same of items that ascend.
 *
 * Without a branch: which of them it is, is what a processor cannot guess. SSE2, which each x86-64 has, does it for several
 * at once; the same in plain C is for other machines, and the tests compare the two.
 */
#ifndef SHMCOW_IPTABLE_COMPARE_H
#define SHMCOW_IPTABLE_COMPARE_H

#include <stdint.h>
#include <string.h>

#include "shmcow_address_fast.h"

/* Items are copied, not pointed at: a segment may be opened in memory that is not aligned. */
static inline uint32_t shmcow_load16(const uint8_t *at, uint64_t k)
{
    uint16_t word;
    memcpy(&word, at + 2 * k, sizeof word);
    return word;
}

static inline uint32_t shmcow_load32(const uint8_t *at, uint64_t k)
{
    uint32_t word;
    memcpy(&word, at + 4 * k, sizeof word);
    return word;
}

static inline uint64_t shmcow_load64(const uint8_t *at, uint64_t k)
{
    uint64_t word;
    memcpy(&word, at + 8 * k, sizeof word);
    return word;
}

/* All of these: which of the items that ascend is the first above a number, not counting item 0; as many as there are, if
   none is. */

static inline uint32_t shmcow_above4_plain(const uint8_t *node, uint32_t number)
{
    uint32_t above = 1;
    for (uint32_t k = 1; k < 32; k++)
        above += shmcow_load32(node, k) <= number;
    return above;
}

static inline uint32_t shmcow_above6_plain(const uint8_t *node, uint64_t head)
{
    uint32_t above = 1;
    for (uint32_t k = 1; k < 16; k++)
        above += ((uint64_t)shmcow_load32(node, k) << 32 | shmcow_load32(node, 16 + k)) <= head;
    return above;
}

/* Item 0 is what stands before the first delta. */
static inline uint32_t shmcow_above_delta_plain(const uint8_t *leaf, uint32_t delta, uint32_t slots)
{
    uint32_t above = 1;
    for (uint32_t k = 1; k < slots; k++)
        above += shmcow_load16(leaf, k) <= delta;
    return above;
}

#ifdef SHMCOW_SSE2

/* Four words, as signed numbers of the same order: the others cannot be compared. */
static inline __m128i shmcow_signed(const uint8_t *at)
{
    return _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)at), _mm_set1_epi32(INT32_MIN));
}

static inline __m128i shmcow_all32(uint32_t number)
{
    return _mm_xor_si128(_mm_set1_epi32((int)number), _mm_set1_epi32(INT32_MIN));
}

/* A bit for each of 16 words, from four vectors of 32-bit masks. */
static inline uint32_t shmcow_bits_of(__m128i a, __m128i b, __m128i c, __m128i d)
{
    return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)));
}

/* The first but item 0 of so many. */
static inline uint32_t shmcow_first_of(uint64_t bits, uint32_t items)
{
    return (uint32_t)__builtin_ctzll((bits & ~UINT64_C(1)) | UINT64_C(1) << items);
}

static inline uint32_t shmcow_above4_of16(const uint8_t *node, __m128i n)
{
    return shmcow_bits_of(_mm_cmpgt_epi32(shmcow_signed(node), n), _mm_cmpgt_epi32(shmcow_signed(node + 16), n),
                          _mm_cmpgt_epi32(shmcow_signed(node + 32), n), _mm_cmpgt_epi32(shmcow_signed(node + 48), n));
}

static inline uint32_t shmcow_above4(const uint8_t *node, uint32_t number)
{
    __m128i n = shmcow_all32(number);
    return shmcow_first_of(shmcow_above4_of16(node, n) | (uint64_t)shmcow_above4_of16(node + 64, n) << 16, 32);
}

static inline __m128i shmcow_above6_of4(const uint8_t *node, __m128i high, __m128i low)
{
    __m128i there = shmcow_signed(node);
    return _mm_or_si128(_mm_cmpgt_epi32(there, high),
                        _mm_and_si128(_mm_cmpeq_epi32(there, high), _mm_cmpgt_epi32(shmcow_signed(node + 64), low)));
}

static inline uint32_t shmcow_above6(const uint8_t *node, uint64_t head)
{
    __m128i high = shmcow_all32((uint32_t)(head >> 32)), low = shmcow_all32((uint32_t)head);
    uint32_t bits = shmcow_bits_of(shmcow_above6_of4(node, high, low), shmcow_above6_of4(node + 16, high, low),
                                   shmcow_above6_of4(node + 32, high, low), shmcow_above6_of4(node + 48, high, low));
    return shmcow_first_of(bits, 16);
}

static inline uint32_t shmcow_above_delta(const uint8_t *leaf, uint32_t delta, uint32_t slots)
{
    __m128i d = _mm_set1_epi16((short)delta), zero = _mm_setzero_si128();
    __m128i a = _mm_subs_epu16(_mm_loadu_si128((const __m128i *)(const void *)leaf), d);
    __m128i b = _mm_subs_epu16(_mm_loadu_si128((const __m128i *)(const void *)(leaf + 16)), d);
    __m128i up_to = _mm_packs_epi16(_mm_cmpeq_epi16(a, zero), _mm_cmpeq_epi16(b, zero));
    return (uint32_t)__builtin_ctz((~(uint32_t)_mm_movemask_epi8(up_to) & 0xfffeu) | 1u << slots);
}

#else

#define shmcow_above4 shmcow_above4_plain
#define shmcow_above6 shmcow_above6_plain
#define shmcow_above_delta shmcow_above_delta_plain

#endif

#endif
