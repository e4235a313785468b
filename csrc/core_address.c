/* shmcow: IP addresses from and to Python objects (see core_iptable.h). */
#include "core_iptable.h"

int core_ipaddress_load(core_ipaddress *classes)
{
    PyObject *module = PyImport_ImportModule("ipaddress");
    if (module == NULL)
        return -1;
    classes->address4 = PyObject_GetAttrString(module, "IPv4Address");
    if (classes->address4 != NULL) /* with an exception set, a lookup that works may clear it */
        classes->address6 = PyObject_GetAttrString(module, "IPv6Address");
    Py_DECREF(module);
    return classes->address6 != NULL ? 0 : -1;
}

int core_ipaddress_traverse(core_ipaddress *classes, visitproc visit, void *arg)
{
    Py_VISIT(classes->address4);
    Py_VISIT(classes->address6);
    return 0;
}

void core_ipaddress_clear(core_ipaddress *classes)
{
    Py_CLEAR(classes->address4);
    Py_CLEAR(classes->address6);
}

int core_address_refuse(PyObject *key)
{
    PyErr_Format(PyExc_ValueError, "%R is no IP address: expected text such as '192.0.2.1' or '2001:db8::1', or 4 or 16 bytes",
                 key);
    return -1;
}

static int address_of_bytes(PyObject *key, PyObject *bytes, bool packed, shmcow_address *address)
{
    char *data;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(bytes, &data, &length) < 0)
        return -1;
    bool fine = packed ? shmcow_unpack((const uint8_t *)data, (uint64_t)length, address)
                       : shmcow_parse_address(data, (uint64_t)length, address);
    return fine ? 0 : core_address_refuse(key);
}

/* What is not exactly a str, and a str that UTF-8 cannot encode: it may be in a scope id. */
int core_address_of_other(const core_ipaddress *classes, PyObject *key, shmcow_address *address)
{
    PyObject *bytes;
    PyErr_Clear();
    if (PyBytes_Check(key))
        return address_of_bytes(key, key, true, address);
    bool text = PyUnicode_Check(key);
    if (text) {
        bytes = PyUnicode_AsEncodedString(key, "utf-8", "surrogatepass");
    } else {
        int found = PyObject_IsInstance(key, classes->address4);
        if (found == 0)
            found = PyObject_IsInstance(key, classes->address6);
        if (found < 0)
            return -1;
        if (found == 0) {
            PyObject *class = PyObject_GetAttrString((PyObject *)Py_TYPE(key), "__name__");
            if (class != NULL)
                PyErr_Format(PyExc_TypeError, "an IP address is text, an IPv4Address or IPv6Address, or 4 or 16 bytes, "
                             "found %S", class);
            Py_XDECREF(class);
            return -1;
        }
        bytes = PyObject_GetAttrString(key, "packed");
    }
    int r = bytes != NULL ? address_of_bytes(key, bytes, !text, address) : -1;
    Py_XDECREF(bytes);
    return r;
}

PyObject *core_address_to(const core_ipaddress *classes, bool wide, shmcow_u128 number)
{
    if (!wide)
        return PyObject_CallFunction(classes->address4, "k", (unsigned long)number);
    uint8_t packed[16];
    shmcow_pack(number, packed);
    return PyObject_CallFunction(classes->address6, "y#", (const char *)packed, (Py_ssize_t)sizeof packed);
}
