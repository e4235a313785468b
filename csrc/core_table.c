/* shmcow: how shmcow._core.Table looks up keys (shmcow_table.h); the type itself is in core_table_type.c.
 *
 * Behaves as a dict: the same keys are found (True and 1.0 find 1), a KeyError carries the key, and what is unhashable
 * raises TypeError. Values are decoded when they are asked for (core_values.h).
 */
#include "core_table.h"

#define TOGETHER 16 /* keys whose cells are fetched at the same time */

/* ---- keys ---- */

static int take_int(PyObject *object, core_key *out)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (number == -1 && overflow == 0 && PyErr_Occurred())
        return -1;
    out->number = (uint64_t)number;
    if (overflow > 0) {
        out->number = PyLong_AsUnsignedLongLong(object);
        if (out->number == UINT64_MAX && PyErr_Occurred()) {
            PyErr_Clear(); /* beyond 64 bits */
            return 0;
        }
    }
    out->key = (shmcow_key){(const uint8_t *)&out->number, 8, overflow > 0};
    return overflow >= 0;
}

/* Another kind of number: it is the key that it equals, as in a dict. */
static int take_number(PyObject *object, core_key *out)
{
    PyObject *real = PyComplex_Check(object) ? PyFloat_FromDouble(PyComplex_RealAsDouble(object)) : Py_NewRef(object);
    PyObject *number = real != NULL ? PyNumber_Long(real) : NULL;
    int r = number != NULL ? PyObject_RichCompareBool(number, object, Py_EQ) : -1;
    if (r == 1)
        r = take_int(number, out);
    if (r < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* a NaN, an infinity, or something that is no integer */
        r = 0;
    }
    Py_XDECREF(real);
    Py_XDECREF(number);
    return r;
}

static int take_bytes(PyObject *object, core_key *out)
{
    char *at;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(object, &at, &length) < 0)
        return -1;
    if ((uint64_t)length > UINT32_MAX)
        return 0;
    out->key = (shmcow_key){(const uint8_t *)at, (uint32_t)length, (uint32_t)length};
    return 1;
}

int core_key_take_other(uint32_t kind, PyObject *object, core_key *out)
{
    if (PyErr_Occurred()) { /* a text that UTF-8 has no bytes for: no table has it */
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    if (kind == SHMCOW_KEY_INT && PyLong_Check(object))
        return take_int(object, out);
    if (kind == SHMCOW_KEY_BYTES && PyBytes_Check(object))
        return take_bytes(object, out);
    if (PyObject_Hash(object) == -1)
        return -1;
    if (kind == SHMCOW_KEY_INT && PyNumber_Check(object))
        return take_number(object, out);
    if (kind == SHMCOW_KEY_BYTES && PyMemoryView_Check(object)) {
        out->owned = PyBytes_FromObject(object);
        int r = out->owned != NULL ? take_bytes(out->owned, out) : -1;
        if (r != 1)
            Py_CLEAR(out->owned);
        return r;
    }
    return 0;
}

PyObject *core_key_object(const shmcow_table *table, const shmcow_key *key)
{
    if (table->header.key_kind == SHMCOW_KEY_BYTES)
        return PyBytes_FromStringAndSize((const char *)key->at, (Py_ssize_t)key->size);
    if (table->header.key_kind == SHMCOW_KEY_INT) {
        uint64_t number = shmcow_load64(key->at);
        return key->word ? PyLong_FromUnsignedLongLong(number) : PyLong_FromLongLong((long long)number);
    }
    PyObject *text = PyUnicode_DecodeUTF8((const char *)key->at, (Py_ssize_t)key->size, NULL);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        return core_table_corrupt("a key is no text");
    }
    return text;
}

/* ---- looking up ---- */

/* 1: *row is set; 0: it is not there; -1: an exception. */
static inline int look_up(core_table *self, PyObject *object, shmcow_row *row)
{
    core_key key;
    int r = core_key_take(self->table.header.key_kind, object, &key);
    if (r <= 0)
        return r;
    r = shmcow_table_find(&self->table, &key.key, shmcow_key_hash(&self->table, &key.key), row);
    if (key.owned != NULL)
        Py_DECREF(key.owned);
    if (r < 0)
        core_table_corrupt("a cell leads to no record");
    return r;
}

PyObject *core_table_subscript(core_table *self, PyObject *key)
{
    shmcow_row row;
    int r = look_up(self, key, &row);
    if (r > 0)
        return core_table_value(self, &row);
    if (r == 0) {
        PyObject *args = PyTuple_Pack(1, key); /* a tuple would be taken for the arguments */
        if (args != NULL)
            PyErr_SetObject(PyExc_KeyError, args);
        Py_XDECREF(args);
    }
    return NULL;
}

int core_table_contains(core_table *self, PyObject *key)
{
    shmcow_row row;
    return look_up(self, key, &row);
}

Py_ssize_t core_table_length(core_table *self)
{
    return (Py_ssize_t)self->table.header.rows;
}

PyObject *core_table_get(core_table *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    shmcow_row row;
    PyObject *otherwise = n > 1 ? args[1] : Py_None;
    if (names != NULL && PyTuple_Size(names) > 0) {
        if (n != 1 || PyTuple_Size(names) != 1 ||
            PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "default") != 0)
            n = -1;
        otherwise = args[1];
    }
    if (n < 1 || n > 2) {
        PyErr_SetString(PyExc_TypeError, "get() takes a key and a default");
        return NULL;
    }
    int r = look_up(self, args[0], &row);
    if (r > 0)
        return core_table_value(self, &row);
    return r == 0 ? Py_NewRef(otherwise) : NULL;
}

typedef struct {
    PyObject *object;
    core_key key;
    uint64_t hash;
    int found; /* 1: row is set */
    shmcow_row row;
} wanted;

/* Look up some keys together: each wait for memory is one for all of them. The objects are ours to let go. */
static int look_up_together(core_table *self, wanted *keys, int n, PyObject *otherwise, PyObject *out)
{
    const shmcow_table *table = &self->table;
    int r = 0;
    for (int k = 0; k < n; k++) {
        keys[k].found = r < 0 ? -1 : core_key_take(table->header.key_kind, keys[k].object, &keys[k].key);
        r = keys[k].found < 0 ? -1 : 0;
        if (keys[k].found > 0) {
            keys[k].hash = shmcow_key_hash(table, &keys[k].key.key);
            shmcow_table_fetch(table, keys[k].hash);
        }
    }
    for (int k = 0; k < n && r == 0; k++)
        if (keys[k].found > 0) {
            keys[k].found = shmcow_table_find(table, &keys[k].key.key, keys[k].hash, &keys[k].row);
            if (keys[k].found > 0 && !keys[k].row.along)
                core_values_fetch(&self->values, keys[k].row.value);
            if (keys[k].found < 0) {
                core_table_corrupt("a cell leads to no record");
                r = -1;
            }
        }
    for (int k = 0; k < n; k++) {
        PyObject *value = r < 0               ? NULL
                          : keys[k].found > 0 ? core_table_value(self, &keys[k].row)
                                              : Py_NewRef(otherwise);
        if (value == NULL || PyList_Append(out, value) < 0)
            r = -1;
        Py_XDECREF(value);
    }
    for (int k = 0; k < n; k++) {
        Py_XDECREF(keys[k].key.owned);
        Py_DECREF(keys[k].object);
    }
    return r;
}

PyObject *core_table_get_many(core_table *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"keys", "default", NULL};
    PyObject *keys, *otherwise = Py_None, *key;
    wanted batch[TOGETHER];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:get_many", names, &keys, &otherwise))
        return NULL;
    PyObject *iterator = PyObject_GetIter(keys), *out = iterator != NULL ? PyList_New(0) : NULL;
    int n = 0, r = out == NULL ? -1 : 0;
    while (r == 0 && (key = PyIter_Next(iterator)) != NULL) {
        batch[n].key.owned = NULL;
        batch[n++].object = key;
        if (n == TOGETHER) {
            r = look_up_together(self, batch, n, otherwise, out);
            n = 0;
        }
    }
    if (r == 0 && !PyErr_Occurred()) {
        r = look_up_together(self, batch, n, otherwise, out);
        n = 0;
    }
    while (n > 0)
        Py_DECREF(batch[--n].object);
    Py_XDECREF(iterator);
    if (r < 0 || PyErr_Occurred())
        Py_CLEAR(out);
    return out;
}

/* The bytes to search in; *owned keeps them. A half of a surrogate pair is in no key, but a key may come before it. */
static int take_text(uint32_t kind, PyObject *text, const char **at, Py_ssize_t *length, PyObject **owned)
{
    if (kind == SHMCOW_KEY_INT || !(kind == SHMCOW_KEY_STR ? PyUnicode_Check(text) : PyBytes_Check(text))) {
        PyErr_SetString(PyExc_TypeError,
                        kind == SHMCOW_KEY_INT   ? "integers have no prefixes: longest_prefix is for keys of str or bytes"
                        : kind == SHMCOW_KEY_STR ? "longest_prefix takes a str, as the keys are"
                                                 : "longest_prefix takes bytes, as the keys are");
        return -1;
    }
    if (kind == SHMCOW_KEY_STR && (*at = PyUnicode_AsUTF8AndSize(text, length)) != NULL) {
        *owned = Py_NewRef(text);
        return 0;
    }
    PyErr_Clear();
    *owned = kind == SHMCOW_KEY_STR ? PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass") : Py_NewRef(text);
    if (*owned == NULL)
        return -1;
    *at = PyBytes_AsString(*owned);
    *length = PyBytes_Size(*owned);
    return 0;
}

PyObject *core_table_longest(core_table *self, PyObject *text)
{
    const char *at;
    Py_ssize_t length;
    PyObject *owned, *result = NULL;
    shmcow_row row;
    if (take_text(self->table.header.key_kind, text, &at, &length, &owned) < 0)
        return NULL;
    int r = shmcow_table_longest(&self->table, (const uint8_t *)at, (uint64_t)length, &row);
    if (r < 0)
        core_table_corrupt("a cell leads to no record, or the key lengths do not ascend");
    else if (r == 0)
        result = Py_NewRef(Py_None);
    else {
        shmcow_key found = {(const uint8_t *)at, row.key.size, row.key.word};
        PyObject *prefix = core_key_object(&self->table, &found);
        PyObject *of = prefix != NULL ? core_table_value(self, &row) : NULL;
        result = of != NULL ? PyTuple_Pack(2, prefix, of) : NULL;
        Py_XDECREF(prefix);
        Py_XDECREF(of);
    }
    Py_DECREF(owned);
    return result;
}
