/* shmcow._core.Table and TableWalk: the base of TableView, and its iterators. Lookups are in core_table.c. */
#include "core_table.h"

#define BREATHS 4096u /* so many steps between two looks at signals and other threads */
#define AHEAD 8u       /* rows lie anywhere: so many are fetched before they are asked for */

/* ---- walking, in the order in which the rows were given ---- */

typedef struct {
    PyObject_HEAD
    core_table *of; /* NULL at the end */
    uint64_t number; /* of the next row */
    long what; /* 0: keys, 1: values, 2: pairs */
} core_walk;

static PyObject *walk_next(core_walk *self)
{
    core_table *of = self->of;
    shmcow_row row;
    if (of == NULL)
        return NULL;
    if (self->number == of->table.header.rows) {
        self->of = NULL;
        Py_DECREF((PyObject *)of);
        return NULL;
    }
    shmcow_table_fetch_row(&of->table, self->number + AHEAD);
    if (!shmcow_table_row(&of->table, self->number, &row))
        return core_table_corrupt("a row has no cell");
    PyObject *key = self->what != 1 ? core_key_object(&of->table, &row.key) : NULL;
    if (self->what != 1 && key == NULL)
        return NULL;
    PyObject *found = key;
    if (self->what != 0) {
        PyObject *value = core_table_value(of, &row);
        found = value == NULL || self->what == 1 ? value : PyTuple_Pack(2, key, value);
        Py_XDECREF(key);
        if (self->what == 2)
            Py_XDECREF(value);
    }
    if (found != NULL)
        self->number++;
    return found;
}

static PyObject *walk_hint(core_walk *self, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLongLong(self->of == NULL ? 0 : self->of->table.header.rows - self->number);
}

static int walk_traverse(core_walk *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT((PyObject *)self->of);
    return 0;
}

static int walk_clear(core_walk *self)
{
    PyObject *of = (PyObject *)self->of;
    self->of = NULL;
    Py_XDECREF(of);
    return 0;
}

static void walk_dealloc(core_walk *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack((PyObject *)self);
    walk_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static PyMethodDef walk_methods[] = {
    {"__length_hint__", (PyCFunction)walk_hint, METH_NOARGS, "__length_hint__() -> int\n\nHow many rows are left."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot walk_slots[] = {
    {Py_tp_doc, "An iterator over a table's keys, values or pairs."},
    {Py_tp_dealloc, walk_dealloc},
    {Py_tp_traverse, walk_traverse},
    {Py_tp_clear, walk_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, walk_next},
    {Py_tp_methods, walk_methods},
    {0, NULL},
};

static PyType_Spec walk_spec = {
    .name = "shmcow._core.TableWalk",
    .basicsize = sizeof(core_walk),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = walk_slots,
};

static PyObject *walk_over(core_table *self, long what)
{
    core_walk *walk = (core_walk *)PyType_GenericAlloc(self->state->walk_type, 0);
    if (walk == NULL)
        return NULL;
    walk->of = (core_table *)Py_NewRef((PyObject *)self);
    walk->what = what;
    return (PyObject *)walk;
}

/* ---- Table ---- */

static PyObject *table_iter(core_table *self)
{
    return walk_over(self, 0);
}

static PyObject *table_walk_values(core_table *self, PyObject *ignored)
{
    (void)ignored;
    return walk_over(self, 1);
}

static PyObject *table_walk_items(core_table *self, PyObject *ignored)
{
    (void)ignored;
    return walk_over(self, 2);
}

/* Look at signals, and let other threads run, now and then. */
static int breathe(uint64_t *steps)
{
    if (++*steps % BREATHS != 0)
        return 0;
    Py_BEGIN_ALLOW_THREADS
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals();
}

/* (row, key, exception): what a value's decoder raised, and a row that has it. */
static PyObject *culprit(const core_table *self, uint64_t row, const shmcow_key *key)
{
    PyObject *type, *exception, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return NULL;
    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    PyObject *shown = core_key_object(&self->table, key);
    if (shown == NULL) {
        PyErr_Clear();
        shown = Py_NewRef(Py_None);
    }
    PyObject *found = exception == NULL ? NULL : Py_BuildValue("(KNO)", (unsigned long long)row, shown, exception);
    Py_XDECREF(type);
    Py_XDECREF(exception);
    Py_XDECREF(traceback);
    return found;
}

/* Decode what a row is the first to use. 1: done; 0: there was nothing to decode; -1: an exception. */
static int prove_value(core_table *self, const shmcow_row *row, uint64_t *at)
{
    uint32_t length;
    const uint8_t *bytes = shmcow_table_value(&self->table, row, &length);
    if (bytes == NULL)
        return core_table_corrupt("a value's reference leads out of it"), -1;
    if (!row->along && (uint64_t)row->value * 4 != *at) /* they stand in the order in which rows use them first */
        return 0;
    *at += row->along ? 0 : shmcow_padded_value(length);
    PyObject *value = core_values_decode_at(&self->values, bytes, length);
    Py_XDECREF(value);
    return value != NULL ? 1 : -1;
}

static uint64_t full_cells(const shmcow_table *table)
{
    uint64_t full = 0;
    for (uint64_t k = 0; k < table->header.cell_count; k++)
        full += *shmcow_cell_at(table, k) != 0;
    return full;
}

PyDoc_STRVAR(prove_doc, "_prove() -> None or (row, key, exception)\n\nLook at every row, and decode each different value once.");
static PyObject *table_prove(core_table *self, PyObject *ignored)
{
    (void)ignored;
    uint64_t at = 0, count = 0, steps = 0;
    shmcow_row row;
    for (uint64_t number = 0; number < self->table.header.rows; number++) {
        shmcow_table_fetch_row(&self->table, number + AHEAD);
        if (!shmcow_table_row(&self->table, number, &row))
            return core_table_corrupt("a row has no cell");
        int r = prove_value(self, &row, &at);
        if (r < 0)
            return culprit(self, number + 1, &row.key);
        count += (uint64_t)r;
        if (breathe(&steps) < 0)
            return NULL;
    }
    if (at != self->values.blob.bytes || count != self->table.header.value_count)
        return core_table_corrupt("its values are not as many as it says");
    if (full_cells(&self->table) != self->table.header.rows)
        return core_table_corrupt("it has another number of full cells than of rows");
    Py_RETURN_NONE;
}

/* What opening a table raises that another release has made. */
PyObject *core_other_format(uint32_t found, uint32_t expected)
{
    PyObject *errors = PyImport_ImportModule("shmcow.errors");
    PyObject *class = errors != NULL ? PyObject_GetAttrString(errors, "CodecMismatchError") : NULL;
    if (class != NULL)
        PyErr_Format(class,
                     "it is a table of format %u, made by another release of shmcow, and this one reads and writes format "
                     "%u: use the same release in all processes, or publish it from its source with this one",
                     (unsigned int)found, (unsigned int)expected);
    Py_XDECREF(class);
    Py_XDECREF(errors);
    return NULL;
}

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *data, *decode;
    unsigned int scalars;
    core_state *state = NULL;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "OOI:Table", &data, &decode, &scalars))
        return NULL;
    for (PyTypeObject *base = type; base != NULL && state == NULL; base = PyType_GetSlot(base, Py_tp_base)) {
        PyErr_Clear(); /* a class made in Python has no module state */
        state = PyType_GetModuleState(base);
    }
    core_table *self = state != NULL ? (core_table *)PyType_GenericAlloc(type, 0) : NULL;
    if (self == NULL)
        return NULL;
    self->state = state;
    if (PyObject_GetBuffer(data, &self->view, PyBUF_SIMPLE) == 0) {
        const char *problem = shmcow_table_open(&core_crc, &self->table, self->view.buf, (uint64_t)self->view.len);
        self->values.blob = self->table.values;
        self->values.scalars = scalars;
        self->values.decode = Py_NewRef(decode);
        if (problem == NULL)
            return (PyObject *)self;
        if (problem == shmcow_other_format())
            core_other_format(self->table.header.format, SHMCOW_TABLE_FORMAT);
        else
            core_table_corrupt(problem);
    }
    Py_DECREF((PyObject *)self);
    return NULL;
}

/* The buffer's owner is not visited: the collector would clear a memoryview under the buffer that it has given away. It
 * leads to the mapping, and never back to here. */
static int table_traverse(core_table *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    return core_values_traverse(&self->values, visit, arg);
}

/* The buffer stays until the end: a finalizer may still look something up. */
static int table_clear(core_table *self)
{
    core_values_clear(&self->values);
    return 0;
}

static void table_dealloc(core_table *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack((PyObject *)self);
    core_values_clear(&self->values);
    PyBuffer_Release(&self->view);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static PyObject *table_get_kind(core_table *self, void *ignored)
{
    static const char *const names[] = {"", "str", "bytes", "int"};
    (void)ignored;
    return PyUnicode_FromString(names[self->table.header.key_kind]);
}

static PyObject *table_get_schema(core_table *self, void *ignored)
{
    (void)ignored;
    return PyBytes_FromStringAndSize((const char *)self->table.header.schema, sizeof self->table.header.schema);
}

static PyObject *table_get_distinct(core_table *self, void *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLongLong(self->table.header.value_count);
}

static PyObject *table_get_data(core_table *self, void *ignored)
{
    (void)ignored;
    return self->view.obj != NULL ? PyMemoryView_FromObject(self->view.obj) : Py_NewRef(Py_None);
}

PyDoc_STRVAR(get_doc,
             "get(key, default=None)\n\nReturn the value of a key, or the default if it is not there.\n\n"
             "Raises:\n    TypeError: the key is unhashable.\n"
             "    DecodeError, CorruptSegmentError: the value does not decode, or the segment was overwritten.\n\n"
             "Concurrency: any thread.");
PyDoc_STRVAR(get_many_doc,
             "get_many(keys, default=None) -> list\n\nReturn the values of many keys, in their order; the default where there is none.\n\n"
             "Faster than one lookup after the other: the memory of several keys is waited for at the same time.\n\n"
             "Args:\n    keys: an iterable.\n    default: what stands for a key that is not there.\n\n"
             "Raises:\n    As get().\n\nConcurrency: any thread.");
PyDoc_STRVAR(longest_doc,
             "longest_prefix(text) -> (key, value) or None\n\nReturn the longest key that a text begins with, and its value: routing.\n\n"
             "One lookup for each length that keys have, from the longest on. The empty key is a prefix of every text.\n\n"
             "Raises:\n    TypeError: the keys are integers, or the text is not what they are, str or bytes.\n"
             "    DecodeError, CorruptSegmentError: as get().\n\nConcurrency: any thread.");

static PyMethodDef table_methods[] = {
    {"get", (PyCFunction)(void (*)(void))core_table_get, METH_FASTCALL | METH_KEYWORDS, get_doc},
    {"get_many", (PyCFunction)(void (*)(void))core_table_get_many, METH_VARARGS | METH_KEYWORDS, get_many_doc},
    {"longest_prefix", (PyCFunction)core_table_longest, METH_O, longest_doc},
    {"_walk_values", (PyCFunction)table_walk_values, METH_NOARGS, "_walk_values()\n\nIterate over the values, in the order of the rows."},
    {"_walk_items", (PyCFunction)table_walk_items, METH_NOARGS, "_walk_items()\n\nIterate over (key, value), in the order of the rows."},
    {"_prove", (PyCFunction)table_prove, METH_NOARGS, prove_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef table_getset[] = {
    {"_kind", (getter)table_get_kind, NULL, "what the keys are: \"str\", \"bytes\" or \"int\"", NULL},
    {"_schema", (getter)table_get_schema, NULL, "fingerprint of the values' type; zeros: anything goes", NULL},
    {"_distinct", (getter)table_get_distinct, NULL, "how many different values there are", NULL},
    {"_data", (getter)table_get_data, NULL, "the payload, as it was given", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot table_slots[] = {
    {Py_tp_doc, "A hash table in shared memory: see csrc/shmcow_table.h."},
    {Py_tp_new, table_new},
    {Py_tp_dealloc, table_dealloc},
    {Py_tp_traverse, table_traverse},
    {Py_tp_clear, table_clear},
    {Py_tp_iter, table_iter},
    {Py_tp_methods, table_methods},
    {Py_tp_getset, table_getset},
    {Py_mp_subscript, core_table_subscript},
    {Py_mp_length, core_table_length},
    {Py_sq_contains, core_table_contains},
    {0, NULL},
};

static PyType_Spec table_spec = {
    .name = "shmcow._core.Table",
    .basicsize = sizeof(core_table),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = table_slots,
};

PyTypeObject *core_make_walk_type(PyObject *module)
{
    return core_add_type(module, &walk_spec);
}

PyTypeObject *core_make_table_type(PyObject *module)
{
    return core_add_type(module, &table_spec);
}
