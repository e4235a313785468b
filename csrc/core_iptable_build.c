/* shmcow._core.IPTableBuilder: takes the rows of a table of IP ranges one by one, and is its bytes when it is finished. */
#include "core_iptable.h"
#include "core_values.h"
#include "shmcow_iptable_build.h"

enum stage { TAKING, FINISHING, FINISHED, FAILED };

typedef struct {
    PyObject_HEAD
    shmcow_iptable_builder builder;
    core_ipaddress classes;
    PyObject *prove; /* called with the bytes of each distinct value */
    enum stage stage;
} builder_object;

/* ---- one row ---- */

static int network_of(builder_object *self, PyObject *key, shmcow_iptable_row *row)
{
    Py_ssize_t length;
    shmcow_network network;
    if (!PyUnicode_Check(key)) { /* a lone address */
        if (core_address_of(&self->classes, key, &network.first) < 0)
            return -1;
        *row = (shmcow_iptable_row){network.first.wide, network.first.number, network.first.number, 0};
        return 0;
    }
    const char *text = PyUnicode_AsUTF8AndSize(key, &length);
    enum shmcow_network_verdict verdict = SHMCOW_NO_NETWORK;
    if (text == NULL)
        PyErr_Clear();
    else
        verdict = shmcow_parse_network(text, (uint64_t)length, &network);
    if (verdict == SHMCOW_NETWORK) {
        *row = (shmcow_iptable_row){network.first.wide, network.first.number, network.last, 0};
        return 0;
    }
    PyErr_Format(PyExc_ValueError, verdict == SHMCOW_HOST_BITS ? "%R has host bits set" : "%R is no network", key);
    return -1;
}

static int range_of(builder_object *self, PyObject *first, PyObject *last, shmcow_iptable_row *row)
{
    shmcow_address from, to;
    if (core_address_of(&self->classes, first, &from) < 0 || core_address_of(&self->classes, last, &to) < 0)
        return -1;
    if (from.wide != to.wide) {
        PyErr_Format(PyExc_ValueError, "%R and %R are not of one family", first, last);
        return -1;
    }
    if (from.number > to.number) {
        PyErr_Format(PyExc_ValueError, "the first address %R is behind the last, %R", first, last);
        return -1;
    }
    *row = (shmcow_iptable_row){from.wide, from.number, to.number, 0};
    return 0;
}

static int add_value(builder_object *self, PyObject *bytes, uint32_t *reference)
{
    char *data;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(bytes, &data, &length) < 0)
        return -1;
    if (length > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a value has more than 4 GiB");
        return -1;
    }
    int r = shmcow_values_add(&self->builder.values, data, (uint32_t)length, reference);
    if (r == -ENOMEM)
        PyErr_NoMemory();
    else if (r < 0)
        PyErr_SetString(PyExc_OverflowError, "the distinct values have more than 8 GiB");
    if (r <= 0)
        return r;
    PyObject *proven = PyObject_CallFunctionObjArgs(self->prove, bytes, NULL);
    Py_XDECREF(proven);
    return proven != NULL ? 0 : -1;
}

PyDoc_STRVAR(add_doc,
             "add($self, first, last, value, number, /)\n--\n\n"
             "Add a row: a network (last is None) or a range, the bytes of its value, and a number that names it in errors.");
static PyObject *builder_add(builder_object *self, PyObject *const *args, Py_ssize_t count)
{
    shmcow_iptable_row row;
    if (count != 4)
        return PyErr_Format(PyExc_TypeError, "add() takes 4 arguments");
    unsigned long number = PyLong_AsUnsignedLong(args[3]);
    if (number == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    if (self->stage != TAKING)
        return PyErr_Format(PyExc_ValueError, "the table is finished");
    if ((args[1] == Py_None ? network_of(self, args[0], &row) : range_of(self, args[0], args[1], &row)) < 0)
        return NULL;
    if (row.wide && shmcow_is_mapped(row.first) && shmcow_is_mapped(row.last)) {
        row.wide = false;
        row.first = (uint32_t)row.first;
        row.last = (uint32_t)row.last;
    }
    if (add_value(self, args[2], &row.value) < 0)
        return NULL;
    if (self->stage != TAKING) /* finished by what was called in between */
        return PyErr_Format(PyExc_ValueError, "the table is finished");
    int r = shmcow_iptable_add(&self->builder, &row, (uint32_t)number);
    if (r == -ENOMEM)
        return PyErr_NoMemory();
    if (r < 0)
        return PyErr_Format(PyExc_OverflowError, "a table has at most %u rows of one family", SHMCOW_IPTABLE_ROWS_MAX);
    return Py_NewRef(Py_None);
}

/* ---- all rows ---- */

PyDoc_STRVAR(finish_doc,
             "finish($self, drop_clashes=False, /)\n--\n\n"
             "Sort the rows, resolve their nesting and lay the table out: from now on the object exports its bytes.\n"
             "-> how many rows were left out, or two that clash: (same range?, (number, first, last), (number, first, last)).");
static PyObject *builder_finish(builder_object *self, PyObject *args)
{
    shmcow_clash clash = {0};
    int r, drop = 0;
    if (!PyArg_ParseTuple(args, "|p", &drop))
        return NULL;
    self->builder.drop_clashes = drop != 0;
    if (self->stage != TAKING)
        return PyErr_Format(PyExc_ValueError, "the table is finished");
    self->stage = FINISHING;
    Py_BEGIN_ALLOW_THREADS
    r = shmcow_iptable_finish(&self->builder, &core_crc, &clash);
    Py_END_ALLOW_THREADS
    self->stage = r == 0 ? FINISHED : FAILED;
    if (r == -ENOMEM)
        return PyErr_NoMemory();
    if (r < 0)
        return PyErr_Format(PyExc_OverflowError, "the table is too large");
    if (r == 0)
        return PyLong_FromUnsignedLong(self->builder.dropped);
    return Py_BuildValue("(N(INN)(INN))", PyBool_FromLong(clash.same), clash.number,
                         core_address_to(&self->classes, clash.row.wide, clash.row.first),
                         core_address_to(&self->classes, clash.row.wide, clash.row.last), clash.other,
                         core_address_to(&self->classes, clash.other_row.wide, clash.other_row.first),
                         core_address_to(&self->classes, clash.other_row.wide, clash.other_row.last));
}

static int builder_getbuffer(builder_object *self, Py_buffer *view, int flags)
{
    if (self->stage != FINISHED) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "the table is not finished");
        return -1;
    }
    return PyBuffer_FillInfo(view, (PyObject *)self, self->builder.block, (Py_ssize_t)self->builder.bytes, 1, flags);
}

/* ---- the type ---- */

static PyObject *builder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *prove;
    unsigned long long seed;
    if (kwargs != NULL && PyDict_Size(kwargs) > 0)
        return PyErr_Format(PyExc_TypeError, "IPTableBuilder takes no keyword arguments");
    if (!PyArg_ParseTuple(args, "OK", &prove, &seed))
        return NULL;
    builder_object *self = (builder_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->prove = Py_NewRef(prove);
    self->builder.values.seed = seed;
    if (core_ipaddress_load(&self->classes) < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static int builder_traverse(builder_object *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->prove);
    return core_ipaddress_traverse(&self->classes, visit, arg);
}

static int builder_clear(builder_object *self)
{
    Py_CLEAR(self->prove);
    return 0;
}

static void builder_dealloc(builder_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack((PyObject *)self);
    Py_CLEAR(self->prove);
    core_ipaddress_clear(&self->classes);
    shmcow_iptable_builder_free(&self->builder);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static PyMethodDef builder_methods[] = {
    {"add", (PyCFunction)(void (*)(void))builder_add, METH_FASTCALL, add_doc},
    {"finish", (PyCFunction)builder_finish, METH_VARARGS, finish_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot builder_slots[] = {
    {Py_tp_doc, "IPTableBuilder(prove, seed, /)\n--\n\nBuild a table of IP ranges; a buffer of its bytes when it is finished."},
    {Py_tp_new, builder_new},
    {Py_tp_dealloc, builder_dealloc},
    {Py_tp_traverse, builder_traverse},
    {Py_tp_clear, builder_clear},
    {Py_tp_methods, builder_methods},
    {Py_bf_getbuffer, builder_getbuffer},
    {0, NULL},
};

static PyType_Spec builder_spec = {
    .name = "shmcow._core.IPTableBuilder",
    .basicsize = sizeof(builder_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = builder_slots,
};

PyTypeObject *core_make_iptable_builder_type(PyObject *module)
{
    return core_add_type(module, &builder_spec);
}
