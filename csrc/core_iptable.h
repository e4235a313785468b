/* shmcow: what tables of IP ranges and their builders share: IP addresses from and to Python objects. */
#ifndef SHMCOW_CORE_IPTABLE_H
#define SHMCOW_CORE_IPTABLE_H

#include "core.h"
#include "shmcow_address.h"

/* The classes of the ipaddress module. */
typedef struct {
    PyObject *address4, *address6;
} core_ipaddress;

int core_ipaddress_load(core_ipaddress *classes);
int core_ipaddress_traverse(core_ipaddress *classes, visitproc visit, void *arg);
void core_ipaddress_clear(core_ipaddress *classes);
int core_address_refuse(PyObject *key);
int core_address_of_other(const core_ipaddress *classes, PyObject *key, shmcow_address *address);
PyObject *core_address_to(const core_ipaddress *classes, bool wide, shmcow_u128 number);

/* The address that text, an ipaddress object or packed bytes mean; -1 with ValueError or TypeError. An IPv4 address that is
   written as an IPv6 one stays one here. */
static inline int core_address_of(const core_ipaddress *classes, PyObject *key, shmcow_address *address)
{
    if (!PyUnicode_CheckExact(key))
        return core_address_of_other(classes, key, address);
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(key, &length);
    if (text == NULL)
        return core_address_of_other(classes, key, address);
    return shmcow_parse_address(text, (uint64_t)length, address) ? 0 : core_address_refuse(key);
}

#endif
