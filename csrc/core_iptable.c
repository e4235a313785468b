/* shmcow._core.IPTable: a table of IP ranges in shared memory, looked up in place. The base of IPTableView.
 *
 * It owns a buffer of the segment, and so keeps its version held. Nothing in it changes but the cache of decoded values.
 */
#include "core_iptable_type.h"

/* ---- lookups ---- */

/* The value for an address: a new reference, or NULL with *missing set, or NULL with an exception. */
__attribute__((always_inline)) static inline PyObject *look_up(iptable_object *self, PyObject *key, bool *missing)
{
    shmcow_address address;
    uint32_t value;
    *missing = false;
    if (core_address_of(&self->classes, key, &address) < 0)
        return NULL;
    shmcow_unmap(&address);
    if (!shmcow_iptable_find(&self->table, &address, &value))
        return core_iptable_corrupt();
    if (value == 0) {
        *missing = true;
        return NULL;
    }
    return core_values_get(&self->values, value - 1);
}

static PyObject *iptable_subscript(iptable_object *self, PyObject *key)
{
    bool missing;
    PyObject *value = look_up(self, key, &missing);
    if (missing)
        PyErr_SetObject(PyExc_KeyError, key);
    return value;
}

static int iptable_contains(iptable_object *self, PyObject *key)
{
    shmcow_address address;
    uint32_t value;
    if (core_address_of(&self->classes, key, &address) < 0)
        return -1;
    shmcow_unmap(&address);
    if (shmcow_iptable_find(&self->table, &address, &value))
        return value != 0;
    core_iptable_corrupt();
    return -1;
}

static Py_ssize_t iptable_length(iptable_object *self)
{
    return (Py_ssize_t)self->table.four.rows + (Py_ssize_t)self->table.six.rows;
}

PyDoc_STRVAR(get_doc,
             "get($self, ip, /, default=None)\n--\n\n"
             "The value of the most specific row that covers an address.\n\n"
             "Args:\n"
             "    ip: text, an IPv4Address or IPv6Address, or 4 or 16 bytes in network order.\n"
             "    default: returned if no row covers it.\n\n"
             "Raises:\n"
             "    ValueError: the text is no address, or the bytes are not 4 or 16.\n"
             "    TypeError: it is of another type.\n"
             "    DecodeError: the value does not decode.\n"
             "    CorruptSegmentError: the table was overwritten from outside.\n\n"
             "Concurrency: any thread.");
static PyObject *iptable_get(iptable_object *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *other;
    bool missing;
    if (!core_take_default("get", args, count, names, &other))
        return NULL;
    PyObject *value = look_up(self, args[0], &missing);
    return missing ? Py_NewRef(other) : value;
}

/* ---- rows ---- */

PyDoc_STRVAR(network_doc,
             "network_of($self, ip, /)\n--\n\n"
             "The most specific row that covers an address: its first and last address, as ipaddress objects.\n\n"
             "Args:\n"
             "    ip: as for get().\n\n"
             "Raises:\n"
             "    KeyError: no row covers it.\n"
             "    ValueError, TypeError, CorruptSegmentError: as get().\n\n"
             "Concurrency: any thread.");
static PyObject *iptable_network_of(iptable_object *self, PyObject *key)
{
    shmcow_address address;
    shmcow_iptable_row row;
    if (core_address_of(&self->classes, key, &address) < 0)
        return NULL;
    shmcow_unmap(&address);
    int found = shmcow_iptable_row_of(&self->table, &address, &row);
    if (found < 0)
        return core_iptable_corrupt();
    if (found == 0) {
        PyErr_SetObject(PyExc_KeyError, key);
        return NULL;
    }
    PyObject *first = core_address_to(&self->classes, row.wide, row.first);
    PyObject *last = first != NULL ? core_address_to(&self->classes, row.wide, row.last) : NULL;
    PyObject *both = last != NULL ? PyTuple_Pack(2, first, last) : NULL;
    Py_XDECREF(first);
    Py_XDECREF(last);
    return both;
}

PyDoc_STRVAR(row_doc, "_row($self, k, /)\n--\n\nThe row with that number, from 0, in address order: (first, last, value).");
static PyObject *iptable_row(iptable_object *self, PyObject *number)
{
    shmcow_iptable_row row;
    Py_ssize_t k = PyLong_AsSsize_t(number);
    if (k == -1 && PyErr_Occurred())
        return NULL;
    if (k < 0 || !shmcow_iptable_row_at(&self->table, (uint64_t)k, &row))
        return PyErr_Format(PyExc_IndexError, "row %zd of %zd", k, iptable_length(self));
    PyObject *value = core_values_get(&self->values, row.value);
    PyObject *first = value != NULL ? core_address_to(&self->classes, row.wide, row.first) : NULL;
    PyObject *last = first != NULL ? core_address_to(&self->classes, row.wide, row.last) : NULL;
    PyObject *all = last != NULL ? PyTuple_Pack(3, first, last, value) : NULL;
    Py_XDECREF(value);
    Py_XDECREF(first);
    Py_XDECREF(last);
    return all;
}

PyDoc_STRVAR(decode_doc, "_decode_values($self, /)\n--\n\nDecode each distinct value once. -> how many there are");
static PyObject *iptable_decode_values(iptable_object *self, PyObject *ignored)
{
    (void)ignored;
    uint64_t at = 0, count = 0;
    for (; at < self->values.blob.bytes; count++) {
        uint32_t length;
        if (shmcow_value_at(&self->values.blob, (uint32_t)(at / 4), &length) == NULL)
            return core_table_corrupt("a value is longer than the rest of it");
        PyObject *value = core_values_get(&self->values, (uint32_t)(at / 4));
        if (value == NULL)
            return NULL;
        Py_DECREF(value);
        at += shmcow_padded_value(length);
    }
    return count == self->table.value_count ? PyLong_FromUnsignedLongLong(count)
                                            : core_table_corrupt("it has another number of values");
}

/* ---- the type ---- */

static PyObject *iptable_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *view, *decode;
    unsigned int scalars;
    if (kwargs != NULL && PyDict_Size(kwargs) > 0)
        return PyErr_Format(PyExc_TypeError, "IPTable takes no keyword arguments");
    if (!PyArg_ParseTuple(args, "OOI", &view, &decode, &scalars))
        return NULL;
    iptable_object *self = (iptable_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->view = Py_NewRef(view);
    self->values.decode = Py_NewRef(decode);
    self->values.scalars = scalars;
    if (core_ipaddress_load(&self->classes) < 0 || PyObject_GetBuffer(view, &self->buffer, PyBUF_SIMPLE) < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    const char *problem =
        shmcow_iptable_open(&self->table, &core_crc, self->buffer.buf, (uint64_t)self->buffer.len);
    if (problem != NULL) {
        if (problem == shmcow_other_format()) {
            shmcow_iptable_header h;
            memcpy(&h, self->buffer.buf, sizeof h);
            core_other_format(h.format, SHMCOW_IPTABLE_FORMAT);
        } else
            core_table_corrupt(problem);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    self->values.blob = self->table.values;
    return (PyObject *)self;
}

static int iptable_traverse(iptable_object *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->view);
    int r = core_ipaddress_traverse(&self->classes, visit, arg);
    return r != 0 ? r : core_values_traverse(&self->values, visit, arg);
}

/* The classes and the buffer stay: whoever finds the object in its last moments may still look something up. */
static int iptable_clear(iptable_object *self)
{
    core_values_clear(&self->values);
    return 0;
}

static void iptable_dealloc(iptable_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack((PyObject *)self);
    core_values_clear(&self->values);
    core_ipaddress_clear(&self->classes);
    PyBuffer_Release(&self->buffer);
    Py_CLEAR(self->view);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static PyMethodDef iptable_methods[] = {
    {"get", (PyCFunction)(void (*)(void))iptable_get, METH_FASTCALL | METH_KEYWORDS, get_doc},
    {"get_many", (PyCFunction)(void (*)(void))core_iptable_get_many, METH_FASTCALL | METH_KEYWORDS, core_get_many_doc},
    {"network_of", (PyCFunction)iptable_network_of, METH_O, network_doc},
    {"_row", (PyCFunction)iptable_row, METH_O, row_doc},
    {"_decode_values", (PyCFunction)iptable_decode_values, METH_NOARGS, decode_doc},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "for annotations"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef iptable_members[] = {
    {"_view", T_OBJECT_EX, offsetof(iptable_object, view), READONLY, "the memoryview of its bytes"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot iptable_slots[] = {
    {Py_tp_doc, "IPTable(view, decode, scalars, /)\n--\n\nA table of IP ranges, opened in a buffer; the base of IPTableView."},
    {Py_tp_new, iptable_new},
    {Py_tp_dealloc, iptable_dealloc},
    {Py_tp_traverse, iptable_traverse},
    {Py_tp_clear, iptable_clear},
    {Py_tp_methods, iptable_methods},
    {Py_tp_members, iptable_members},
    {Py_mp_subscript, iptable_subscript},
    {Py_mp_length, iptable_length},
    {Py_sq_contains, iptable_contains},
    {0, NULL},
};

static PyType_Spec iptable_spec = {
    .name = "shmcow._core.IPTable",
    .basicsize = sizeof(iptable_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = iptable_slots,
};

PyTypeObject *core_make_iptable_type(PyObject *module)
{
    return core_add_type(module, &iptable_spec);
}
