/* shmcow: what the files about tables share. See core_table.c. */
#ifndef SHMCOW_CORE_TABLE_H
#define SHMCOW_CORE_TABLE_H

#include "core.h"
#include "core_values.h"
#include "shmcow_table.h"

/* A table in shared memory. It owns a buffer, which keeps the version held and mapped. */
typedef struct {
    PyObject_HEAD
    Py_buffer view;
    shmcow_table table;
    core_values values;
    core_state *state;
} core_table;

/* A key taken from a Python object, which must live as long. */
typedef struct {
    shmcow_key key;
    uint64_t number;
    PyObject *owned; /* a copy that the key lies in, or NULL */
} core_key;

int core_key_take_other(uint32_t kind, PyObject *object, core_key *out);
PyObject *core_key_object(const shmcow_table *table, const shmcow_key *key);
PyObject *core_table_subscript(core_table *self, PyObject *key);
int core_table_contains(core_table *self, PyObject *key);
Py_ssize_t core_table_length(core_table *self);
PyObject *core_table_get(core_table *self, PyObject *const *args, Py_ssize_t n, PyObject *names);
PyObject *core_table_get_many(core_table *self, PyObject *args, PyObject *kwargs);
PyObject *core_table_longest(core_table *self, PyObject *text);

/* The value of a row that was found. NULL with an exception. */
static inline PyObject *core_table_value(core_table *self, const shmcow_row *row)
{
    if (!row->along)
        return core_values_get(&self->values, row->value);
    const uint8_t *at = row->key.at + row->key.size;
    return core_values_get_along(&self->values, (UINT64_C(1) << 32) + (uint64_t)(at - self->table.cells), at, row->value);
}

/* 1: *out is set; 0: no key of this kind equals the object; -1: an exception. */
static inline int core_key_take(uint32_t kind, PyObject *object, core_key *out)
{
    Py_ssize_t length;
    out->owned = NULL;
    if (kind == SHMCOW_KEY_STR && PyUnicode_Check(object)) {
        const char *text = PyUnicode_AsUTF8AndSize(object, &length);
        if (text != NULL && (uint64_t)length <= UINT32_MAX) {
            out->key = (shmcow_key){(const uint8_t *)text, (uint32_t)length, (uint32_t)length};
            return 1;
        }
    }
    return core_key_take_other(kind, object, out);
}

#endif
