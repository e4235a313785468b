/* shmcow: the decoded values of a table in shared memory, and a bounded cache of them. See core_values.c. */
#ifndef SHMCOW_CORE_VALUES_H
#define SHMCOW_CORE_VALUES_H

#include "core.h"
#include "shmcow_values.h"

#define CORE_CACHE_WAYS 4u
#define CORE_CACHE_SETS 1024u
#define CORE_CACHE_SEEN 4096u
#define CORE_CACHE_FEW 256u                           /* so many values may weigh more */
#define CORE_CACHE_WEIGHT (UINT64_C(256) << 10)       /* bytes, as weight_of counts them */
#define CORE_CACHE_WEIGHT_OF_FEW (UINT64_C(16) << 20)

/* Scalars that are decoded here; everything else is the Python decoder's. */
enum core_scalar {
    CORE_NIL = 1,
    CORE_BOOL = 2,
    CORE_INT = 4,
    CORE_FLOAT = 8,
    CORE_STR = 16,
    CORE_BYTES = 32
};

typedef struct {
    uint64_t name[CORE_CACHE_WAYS]; /* + 1; 0: empty */
    PyObject *value[CORE_CACHE_WAYS];
} core_cache_set;

typedef struct {
    core_cache_set sets[CORE_CACHE_SETS];
    uint8_t seen[CORE_CACHE_SEEN]; /* a part of the name of what was asked for last: see core_values_get_along */
    uint32_t weights[CORE_CACHE_SETS][CORE_CACHE_WAYS];
    uint64_t weight;    /* of all values */
    unsigned int count; /* of them */
    unsigned int hand;  /* the set that is looked into when one has to go */
} core_cache;

typedef struct {
    shmcow_values blob;
    PyObject *decode;      /* bytes -> value */
    unsigned int scalars;  /* of enum core_scalar */
    core_cache *cache;     /* made at the first miss */
} core_values;

PyObject *core_table_corrupt(const char *what);
PyObject *core_values_decode(const core_values *values, uint32_t reference, uint32_t *length);
PyObject *core_values_decode_at(const core_values *values, const uint8_t *at, uint32_t length);
PyObject *core_values_load(core_values *values, uint32_t reference);
PyObject *core_values_get_along(core_values *values, uint64_t name, const uint8_t *at, uint32_t length);
int core_values_traverse(core_values *values, visitproc visit, void *arg);
void core_values_clear(core_values *values);

/* A value is cached under a name: its reference, or, if it stands beside its key, any greater number. */
static inline uint32_t core_values_mixed(uint64_t name)
{
    return (uint32_t)(name ^ name >> 32) * UINT32_C(0x9E3779B1);
}

static inline PyObject *core_values_cached(const core_values *values, uint64_t name)
{
    if (values->cache != NULL) {
        core_cache_set *set = &values->cache->sets[core_values_mixed(name) >> 22];
        for (unsigned int way = 0; way < CORE_CACHE_WAYS; way++)
            if (set->name[way] == name + 1)
                return Py_NewRef(set->value[way]);
    }
    return NULL;
}

/* The value at a reference: the same object as long as it stays in the cache. NULL with an exception. */
static inline PyObject *core_values_get(core_values *values, uint32_t reference)
{
    PyObject *value = core_values_cached(values, reference);
    return value != NULL ? value : core_values_load(values, reference);
}

/* Have a value fetched that is about to be asked for. */
__attribute__((always_inline)) static inline void core_values_fetch(const core_values *values, uint32_t reference)
{
    if ((uint64_t)reference * 4 < values->blob.bytes)
        __builtin_prefetch(values->blob.at + (uint64_t)reference * 4);
}

#endif
