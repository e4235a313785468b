/* shmcow: the values of a table in shared memory, each stored once. Python-free; reading allocates nothing.
 *
 * Purpose     What Table and IPTable share: a blob of values, found by a reference, and how it is built.
 * Format      At each reference r, at the byte 4 * r: uint32_t length, the bytes, zeros up to the next multiple of 4.
 * Invariants  1. Whatever the blob and the reference, nothing outside the blob is read.
 *             2. The builder gives equal bytes the same reference.
 * Who writes  A builder, in private memory, before the segment is made. Readers map it read-only.
 *
 * The hash multiplies two 64-bit words to 128 bits and folds the halves, as wyhash does (Wang Yi, github.com/wangyi-fudan/
 * wyhash); it is seeded, so that nobody can prepare keys that collide in a table that is built later.
 */
#ifndef SHMCOW_VALUES_H
#define SHMCOW_VALUES_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SHMCOW_VALUES_MAX (UINT64_C(4) << 31) /* bytes of values that 31-bit references reach */

/* ---- hashing ---- */

static inline uint64_t shmcow_mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t shmcow_word_of(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint64_t shmcow_half_of(const uint8_t *p)
{
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* Both factors of each product depend on the seed: were one a constant, keys that make the other 0 would all collide. */
static inline uint64_t shmcow_hash(const void *data, size_t length, uint64_t seed)
{
    const uint64_t odd1 = UINT64_C(0x9E3779B97F4A7C15), odd2 = UINT64_C(0xD1B54A32D192ED03);
    const uint8_t *p = data;
    uint64_t state = seed ^ odd1, secret = shmcow_mix(seed ^ odd2, odd1), low = 0, high = 0;
    size_t left = length;
    for (; left > 16; left -= 16, p += 16)
        state = shmcow_mix(shmcow_word_of(p) ^ state, shmcow_word_of(p + 8) ^ secret);
    if (length >= 16) { /* the last 16 bytes, which may overlap what was taken */
        low = shmcow_word_of(p + left - 16);
        high = shmcow_word_of(p + left - 8);
    } else if (length >= 8) {
        low = shmcow_word_of(p);
        high = shmcow_word_of(p + length - 8);
    } else if (length >= 4) {
        low = shmcow_half_of(p);
        high = shmcow_half_of(p + length - 4);
    } else if (length > 0) {
        low = (uint64_t)p[0] << 16 | (uint64_t)p[length / 2] << 8 | p[length - 1];
    }
    return shmcow_mix(shmcow_mix(low ^ state, high ^ secret) ^ odd2, odd1 ^ length);
}

/* ---- reading ---- */

typedef struct {
    const uint8_t *at;
    uint64_t bytes;
} shmcow_values;

/* What a value takes. */
static inline uint64_t shmcow_padded_value(uint32_t length)
{
    return (4 + (uint64_t)length + 3) & ~UINT64_C(3);
}

/* The bytes of a value, or NULL if the reference leads nowhere. */
static inline const uint8_t *shmcow_value_at(const shmcow_values *values, uint32_t reference, uint32_t *length)
{
    uint64_t at = (uint64_t)reference * 4;
    if (values->bytes < 4 || at > values->bytes - 4)
        return NULL;
    memcpy(length, values->at + at, sizeof *length);
    return *length <= values->bytes - at - 4 ? values->at + at + 4 : NULL;
}

/* ---- memory that grows ---- */

typedef struct {
    uint8_t *at;
    uint64_t used, room;
} shmcow_pile;

/* Room for so many more bytes, or NULL. What is there may move. */
static inline uint8_t *shmcow_pile_reserve(shmcow_pile *pile, uint64_t bytes)
{
    if (bytes > pile->room - pile->used) {
        uint64_t room = pile->room + pile->room / 2 + bytes + 64;
        uint8_t *at = room > SIZE_MAX / 2 ? NULL : realloc(pile->at, (size_t)room);
        if (at == NULL)
            return NULL;
        pile->at = at;
        pile->room = room;
    }
    return pile->at + pile->used;
}

static inline void shmcow_pile_free(shmcow_pile *pile)
{
    free(pile->at);
    *pile = (shmcow_pile){0};
}

/* ---- building ---- */

/* Open addressing over what was added: 0 is an empty slot, anything else a reference + 1. */
typedef struct {
    shmcow_pile pile;
    uint32_t *slots;
    uint64_t slot_count; /* a power of two, or 0 */
    uint64_t count;
    uint64_t seed;
} shmcow_values_builder;

static inline bool shmcow_values_equal(const shmcow_values_builder *builder, uint32_t reference, const void *data,
                                       uint32_t length)
{
    shmcow_values values = {builder->pile.at, builder->pile.used};
    uint32_t there;
    const uint8_t *at = shmcow_value_at(&values, reference, &there);
    return at != NULL && there == length && memcmp(at, data, length) == 0;
}

static inline int shmcow_values_grow(shmcow_values_builder *builder)
{
    uint64_t slot_count = builder->slot_count == 0 ? 1024 : builder->slot_count * 2;
    uint32_t *slots = calloc((size_t)slot_count, sizeof *slots);
    if (slots == NULL)
        return -ENOMEM;
    for (uint64_t at = 0; at < builder->pile.used;) {
        uint32_t length;
        memcpy(&length, builder->pile.at + at, sizeof length);
        uint64_t slot = shmcow_hash(builder->pile.at + at + 4, length, builder->seed) & (slot_count - 1);
        while (slots[slot] != 0)
            slot = (slot + 1) & (slot_count - 1);
        slots[slot] = (uint32_t)(at / 4) + 1;
        at += shmcow_padded_value(length);
    }
    free(builder->slots);
    builder->slots = slots;
    builder->slot_count = slot_count;
    return 0;
}

/* Add a value. 1: it is new, 0: there was an equal one; *reference is set. -ENOMEM; -EFBIG: the blob is full. */
static inline int shmcow_values_add(shmcow_values_builder *builder, const void *data, uint32_t length, uint32_t *reference)
{
    if (builder->count * 2 >= builder->slot_count && shmcow_values_grow(builder) < 0)
        return -ENOMEM;
    uint64_t slot = shmcow_hash(data, length, builder->seed) & (builder->slot_count - 1);
    for (; builder->slots[slot] != 0; slot = (slot + 1) & (builder->slot_count - 1)) {
        *reference = builder->slots[slot] - 1;
        if (shmcow_values_equal(builder, *reference, data, length))
            return 0;
    }
    uint64_t padded = shmcow_padded_value(length);
    if (builder->pile.used + padded > SHMCOW_VALUES_MAX - 4)
        return -EFBIG;
    uint8_t *at = shmcow_pile_reserve(&builder->pile, padded);
    if (at == NULL)
        return -ENOMEM;
    memset(at + padded - 4, 0, 4);
    memcpy(at, &length, sizeof length);
    memcpy(at + 4, data, length);
    *reference = (uint32_t)(builder->pile.used / 4);
    builder->pile.used += padded;
    builder->slots[slot] = *reference + 1;
    builder->count++;
    return 1;
}

static inline void shmcow_values_builder_free(shmcow_values_builder *builder)
{
    shmcow_pile_free(&builder->pile);
    free(builder->slots);
    *builder = (shmcow_values_builder){0};
}

#endif
