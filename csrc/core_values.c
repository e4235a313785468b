/* shmcow: values of a table, decoded on demand (see core_values.h).
 *
 * The cache is bounded, so that a process that looks up everything does not end up with a private copy of everything: it
 * keeps at most 4,096 values, four for each set, that weigh no more than 256 KiB together (see weight_of). Beyond that, a
 * hand that walks over the sets takes one out for each that comes; but 256 values stay, however large, within 16 MiB.
 * Plain scalars are decoded here (MessagePack: msgpack.org, the specification of 2017); a Python decoder has the rest,
 * and gets a copy of the bytes, so that no value can point into the segment.
 */
#include "core_values.h"

static_assert(CORE_CACHE_SETS == 1u << 10 && CORE_CACHE_SEEN == 1u << 12, "the upper 10 and 12 of 32 bits are taken");

static uint64_t big_endian(const uint8_t *p, unsigned int bytes)
{
    uint64_t n = 0;
    for (unsigned int k = 0; k < bytes; k++)
        n = n << 8 | p[k];
    return n;
}

static PyObject *text_of(const uint8_t *p, uint64_t length, uint64_t head, uint64_t bytes)
{
    return head + bytes == length ? PyUnicode_DecodeUTF8((const char *)p + head, (Py_ssize_t)bytes, NULL) : NULL;
}

static PyObject *blob_of(const uint8_t *p, uint64_t length, uint64_t head, uint64_t bytes)
{
    return head + bytes == length ? PyBytes_FromStringAndSize((const char *)p + head, (Py_ssize_t)bytes) : NULL;
}

static PyObject *signed_of(const uint8_t *p, unsigned int bytes)
{
    uint64_t n = big_endian(p, bytes), sign = UINT64_C(1) << (8 * bytes - 1);
    return PyLong_FromLongLong((long long)((n ^ sign) - sign));
}

/* A scalar of an allowed kind; NULL without an exception: it is the Python decoder's. */
static PyObject *decode_scalar(const uint8_t *p, uint64_t length, unsigned int allowed)
{
    if (length == 0)
        return NULL;
    uint8_t lead = p[0];
    unsigned int size = 1u << (lead & 3); /* of the integers 0xcc to 0xd3 */
    if (lead >= 0xa0 && lead <= 0xbf)
        return allowed & CORE_STR ? text_of(p, length, 1, lead & 0x1f) : NULL;
    if (lead >= 0xd9 && lead <= 0xdb) {
        unsigned int head = 1u << (lead - 0xd9);
        return allowed & CORE_STR && length > head ? text_of(p, length, 1 + head, big_endian(p + 1, head)) : NULL;
    }
    if (lead <= 0x7f || lead >= 0xe0)
        return allowed & CORE_INT && length == 1 ? PyLong_FromLong((int8_t)lead) : NULL;
    if (lead >= 0xcc && lead <= 0xd3) {
        if (!(allowed & CORE_INT) || length != 1 + size)
            return NULL;
        return lead <= 0xcf ? PyLong_FromUnsignedLongLong(big_endian(p + 1, size)) : signed_of(p + 1, size);
    }
    if (lead == 0xcb && allowed & CORE_FLOAT && length == 9) {
        uint64_t bits = big_endian(p + 1, 8);
        double number;
        memcpy(&number, &bits, sizeof number);
        return PyFloat_FromDouble(number);
    }
    if (lead >= 0xc4 && lead <= 0xc6) {
        unsigned int head = 1u << (lead - 0xc4);
        return allowed & CORE_BYTES && length > head ? blob_of(p, length, 1 + head, big_endian(p + 1, head)) : NULL;
    }
    if ((lead == 0xc2 || lead == 0xc3) && allowed & CORE_BOOL && length == 1)
        return PyBool_FromLong(lead == 0xc3);
    if (lead == 0xc0 && allowed & CORE_NIL && length == 1)
        return Py_NewRef(Py_None);
    return NULL;
}

/* A value, not from the cache and not into it. */
PyObject *core_values_decode_at(const core_values *values, const uint8_t *at, uint32_t length)
{
    PyObject *value = decode_scalar(at, length, values->scalars);
    if (value != NULL)
        return value;
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
            return NULL;
        PyErr_Clear(); /* the Python decoder says it better */
    }
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)length);
    if (bytes == NULL)
        return NULL;
    value = PyObject_CallFunctionObjArgs(values->decode, bytes, NULL);
    Py_DECREF(bytes);
    return value;
}

/* ---- the cache ---- */

static void drop_cache(core_values *values)
{
    core_cache *cache = values->cache;
    values->cache = NULL; /* first: a finalizer may look something up */
    for (unsigned int k = 0; cache != NULL && k < CORE_CACHE_SETS; k++)
        for (unsigned int way = 0; way < CORE_CACHE_WAYS; way++)
            Py_XDECREF(cache->sets[k].value[way]);
    PyMem_Free(cache);
}

static bool have_cache(core_values *values)
{
    if (values->cache == NULL)
        values->cache = PyMem_Calloc(1, sizeof *values->cache);
    return values->cache != NULL; /* without one: slower, and right */
}

/* The bytes that a value counts for: those that a number or a text (of ASCII) takes. What Python decodes takes four
   to eight times that, and counts no more than a text of its length: to decode it again costs ten times the lookup. */
static uint32_t weight_of(PyObject *value, uint32_t length)
{
    uint64_t weight = (UINT64_C(48) + length + 15) & ~UINT64_C(15);
    if (PyLong_Check(value) || PyFloat_Check(value) || value == Py_None)
        weight = 32;
    return weight < UINT32_MAX ? (uint32_t)weight : UINT32_MAX;
}

static bool weighs_too_much(const core_cache *cache)
{
    return cache->count > CORE_CACHE_FEW ? cache->weight > CORE_CACHE_WEIGHT
                                         : cache->count > 1 && cache->weight > CORE_CACHE_WEIGHT_OF_FEW;
}

/* Take a value out of its place; it is the caller's to let go. */
static PyObject *take_out(core_cache *cache, unsigned int set, unsigned int way)
{
    PyObject *value = cache->sets[set].value[way];
    if (value != NULL) {
        cache->count--;
        cache->weight -= cache->weights[set][way];
    }
    cache->sets[set].name[way] = 0;
    cache->sets[set].value[way] = NULL;
    return value;
}

/* The oldest value of the next set that has any; there must be one. */
static PyObject *take_next(core_cache *cache)
{
    for (;;) {
        unsigned int set = cache->hand++ % CORE_CACHE_SETS;
        for (unsigned int way = CORE_CACHE_WAYS; way-- > 0;)
            if (cache->sets[set].value[way] != NULL)
                return take_out(cache, set, way);
    }
}

static void remember(core_values *values, uint64_t name, uint32_t length, PyObject *value)
{
    if (!have_cache(values))
        return;
    core_cache *cache = values->cache;
    unsigned int at = core_values_mixed(name) >> 22;
    core_cache_set *set = &cache->sets[at];
    PyObject *out = take_out(cache, at, CORE_CACHE_WAYS - 1);
    memmove(&set->name[1], &set->name[0], (CORE_CACHE_WAYS - 1) * sizeof set->name[0]);
    memmove(&set->value[1], &set->value[0], (CORE_CACHE_WAYS - 1) * sizeof set->value[0]);
    memmove(&cache->weights[at][1], &cache->weights[at][0], (CORE_CACHE_WAYS - 1) * sizeof cache->weights[at][0]);
    set->name[0] = name + 1;
    set->value[0] = Py_NewRef(value);
    cache->weights[at][0] = weight_of(value, length);
    cache->weight += cache->weights[at][0];
    cache->count++;
    Py_XDECREF(out); /* a finalizer may look something up, or end the cache */
    while (values->cache == cache && weighs_too_much(cache)) {
        out = take_next(cache);
        Py_DECREF(out);
    }
}

/* What a lookup raises when it comes upon bytes that no builder wrote. */
PyObject *core_table_corrupt(const char *what)
{
    PyObject *errors = PyImport_ImportModule("shmcow.errors");
    PyObject *class = errors != NULL ? PyObject_GetAttrString(errors, "CorruptSegmentError") : NULL;
    if (class != NULL)
        PyErr_Format(class, "a table contradicts itself: %s; it was overwritten from outside: publish again", what);
    Py_XDECREF(class);
    Py_XDECREF(errors);
    return NULL;
}

/* A value, not from the cache and not into it. */
PyObject *core_values_decode(const core_values *values, uint32_t reference, uint32_t *length)
{
    const uint8_t *at = shmcow_value_at(&values->blob, reference, length);
    return at != NULL ? core_values_decode_at(values, at, *length) : core_table_corrupt("a value's reference leads out of it");
}

PyObject *core_values_load(core_values *values, uint32_t reference)
{
    uint32_t length;
    PyObject *value = core_values_decode(values, reference, &length);
    if (value != NULL)
        remember(values, reference, length, value);
    return value;
}

/* Whether a value was asked for lately; 1 in 256 is mistaken for another one. It is noted. */
static bool seen_lately(core_values *values, uint64_t name)
{
    uint32_t mixed = core_values_mixed(name);
    uint8_t *seen = &values->cache->seen[mixed >> 20], part = (uint8_t)(mixed >> 12);
    bool known = *seen == part;
    *seen = part;
    return known;
}

/* A value that only one row has, and that stands beside its key; cached under a name that is no reference. A scalar costs
   less to decode than to keep, so only one that was asked for lately is looked for in the cache, and kept there: else who
   asks for each row once would wait for the cache as well. */
PyObject *core_values_get_along(core_values *values, uint64_t name, const uint8_t *at, uint32_t length)
{
    PyObject *value = NULL;
    if (have_cache(values) && !seen_lately(values, name) && (value = decode_scalar(at, length, values->scalars)) != NULL)
        return value;
    PyErr_Clear(); /* whatever it was is said again */
    value = core_values_cached(values, name);
    if (value == NULL) {
        value = core_values_decode_at(values, at, length);
        if (value != NULL)
            remember(values, name, length, value);
    }
    return value;
}

int core_values_traverse(core_values *values, visitproc visit, void *arg)
{
    Py_VISIT(values->decode);
    for (unsigned int k = 0; values->cache != NULL && k < CORE_CACHE_SETS; k++)
        for (unsigned int way = 0; way < CORE_CACHE_WAYS; way++)
            Py_VISIT(values->cache->sets[k].value[way]);
    return 0;
}

void core_values_clear(core_values *values)
{
    Py_CLEAR(values->decode);
    drop_cache(values);
}
