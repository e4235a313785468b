/* shmcow: the object that a table of IP ranges is; for the files of its methods. */
#ifndef SHMCOW_CORE_IPTABLE_TYPE_H
#define SHMCOW_CORE_IPTABLE_TYPE_H

#include "core_iptable.h"
#include "core_values.h"
#include "shmcow_iptable_find.h"

typedef struct {
    PyObject_HEAD
    Py_buffer buffer; /* .obj == NULL: there is none */
    PyObject *view;   /* as it was given */
    shmcow_iptable table;
    core_values values;
    core_ipaddress classes;
} iptable_object;

extern const char core_get_many_doc[];
PyObject *core_iptable_get_many(iptable_object *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
bool core_take_default(const char *method, PyObject *const *args, Py_ssize_t count, PyObject *names, PyObject **other);

static inline PyObject *core_iptable_corrupt(void)
{
    return core_table_corrupt("an index in it leads out of it");
}

#endif
