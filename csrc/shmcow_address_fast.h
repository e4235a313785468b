/* shmcow: text to IPv6 address, 16 characters at once. Pure functions: no Python, no system call, no allocation.
 *
 * Purpose     Parse the texts that most lookups are given without a branch for a digit or the length of a group: those are
 *             what a processor cannot guess.
 * Invariants  1. Nothing outside the given text is read.
 *             2. What is accepted, and the number that it means, is what shmcow_parse6_plain says. What is refused may be
 *                an address all the same: only eight groups in 16 characters or more are read here, and nothing where there
 *                is no SSE2, which each x86-64 has.
 */
#ifndef SHMCOW_ADDRESS_FAST_H
#define SHMCOW_ADDRESS_FAST_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) && !defined(SHMCOW_PORTABLE)
#include <emmintrin.h>
#define SHMCOW_SSE2 1
#endif

typedef unsigned __int128 shmcow_u128;

#define SHMCOW_TEXT6_MIN 16u
#define SHMCOW_TEXT6_MAX 39u

#ifdef SHMCOW_SSE2

/* A bit for each character of a text. Others are neither colons nor digits. */
typedef struct {
    uint64_t colons, others;
} shmcow_marks;

static inline __m128i shmcow_up_to8(__m128i bytes, char number)
{
    return _mm_cmpeq_epi8(_mm_subs_epu8(bytes, _mm_set1_epi8(number)), _mm_setzero_si128());
}

static inline shmcow_marks shmcow_marks_of16(__m128i text)
{
    __m128i colon = _mm_cmpeq_epi8(text, _mm_set1_epi8(':'));
    __m128i decimal = shmcow_up_to8(_mm_sub_epi8(text, _mm_set1_epi8('0')), 9);
    __m128i letter = shmcow_up_to8(_mm_sub_epi8(_mm_or_si128(text, _mm_set1_epi8(0x20)), _mm_set1_epi8('a')), 5);
    uint32_t known = (uint32_t)_mm_movemask_epi8(_mm_or_si128(colon, _mm_or_si128(decimal, letter)));
    return (shmcow_marks){(uint32_t)_mm_movemask_epi8(colon), known ^ 0xffffu};
}

static inline shmcow_marks shmcow_marks_at(const char *text)
{
    return shmcow_marks_of16(_mm_loadu_si128((const __m128i *)(const void *)text));
}

/* Pieces of 16 may overlap: a text need not have a multiple of that. */
static inline shmcow_marks shmcow_marks_of(const char *text, uint64_t length)
{
    uint64_t second = length < 32 ? length - 16 : 16, third = length - 16;
    shmcow_marks a = shmcow_marks_at(text), b = shmcow_marks_at(text + second), c = shmcow_marks_at(text + third);
    return (shmcow_marks){a.colons | b.colons << second | c.colons << third,
                          a.others | b.others << second | c.others << third};
}

/* Where groups end: at colons, and where the text does. 0: they are not eight of one to four digits. */
static inline uint64_t shmcow_ends_of8(const char *text, uint64_t length)
{
    const shmcow_marks marks = shmcow_marks_of(text, length);
    const uint64_t end = UINT64_C(1) << length, ends = marks.colons | end, digits = ~marks.colons & (end - 1);
    uint64_t last = ends, run = digits & digits >> 1;
    for (unsigned int k = 0; k < 7; k++)
        last &= last - 1;
    uint64_t wrong = marks.others | (ends & (ends << 1 | 1)) | (run & run >> 2 & digits >> 4);
    return wrong == 0 && last == end ? ends : 0;
}

/* The text of groups that is still to be read. */
typedef struct {
    const char *text;
    uint64_t ends;
    uint32_t begin;
} shmcow_groups;

/* The characters of the next group, the last one in the highest byte. At least four must follow where it begins; or, to
   read the `final` two, must stand before it ends. */
static inline uint32_t shmcow_next_group(shmcow_groups *groups, bool final)
{
    uint32_t end = (uint32_t)__builtin_ctzll(groups->ends), missing = 32 - 8 * (end - groups->begin), word;
    memcpy(&word, groups->text + (final ? end - 4 : groups->begin), sizeof word);
    groups->ends &= groups->ends - 1;
    groups->begin = end + 1;
    return final ? word >> missing << missing : word << missing;
}

static inline __m128i shmcow_next_four(shmcow_groups *groups, bool final)
{
    uint64_t a = shmcow_next_group(groups, false), b = shmcow_next_group(groups, false);
    uint64_t c = shmcow_next_group(groups, final), d = shmcow_next_group(groups, final);
    return _mm_set_epi64x((long long)(c | d << 32), (long long)(a | b << 32));
}

/* Characters to digits, which have four bits each, and these together: eight words of up to 255. */
static inline __m128i shmcow_join_digits(__m128i text)
{
    __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(text, _mm_set1_epi8('9')), _mm_set1_epi8(9));
    __m128i digit = _mm_add_epi8(_mm_and_si128(text, _mm_set1_epi8(15)), letter);
    return _mm_and_si128(_mm_or_si128(_mm_slli_epi16(digit, 4), _mm_srli_epi16(digit, 8)), _mm_set1_epi16(0xff));
}

/* Eight groups, written out. What else there is has fewer digits, and is left to others. */
static inline bool shmcow_parse6_fast(const char *text, uint64_t length, shmcow_u128 *number)
{
    if (length < SHMCOW_TEXT6_MIN || length > SHMCOW_TEXT6_MAX)
        return false;
    shmcow_groups groups = {text, shmcow_ends_of8(text, length), 0};
    if (groups.ends == 0)
        return false;
    __m128i first = shmcow_join_digits(shmcow_next_four(&groups, false));
    __m128i bytes = _mm_packus_epi16(first, shmcow_join_digits(shmcow_next_four(&groups, true)));
    uint64_t halves[2];
    _mm_storeu_si128((__m128i *)(void *)halves, bytes); /* in network order */
    *number = (shmcow_u128)__builtin_bswap64(halves[0]) << 64 | __builtin_bswap64(halves[1]);
    return true;
}

#else

static inline bool shmcow_parse6_fast(const char *text, uint64_t length, shmcow_u128 *number)
{
    (void)text;
    (void)length;
    (void)number;
    return false;
}

#endif
#endif
