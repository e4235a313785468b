/* shmcow._core.TableBuilder: rows into a table (shmcow_table_build.h), one after the other, and its bytes.
 *
 * What it keeps of a row is its key's bytes and a reference: many million rows need no Python objects but the one that is
 * being added. Other threads get their turn, signals are looked at, and the layout is made without the interpreter lock.
 */
#include "core_table.h"
#include "shmcow_table_build.h"

#define BREATHS 4096u /* so many rows between two looks at signals and other threads */

typedef struct {
    PyObject_HEAD
    shmcow_table_builder builder;
    core_state *state;
    PyObject *failed; /* (row, key, value) that encode() failed for */
    bool busy;
} core_builder;

static int refuse(core_builder *self, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    PyObject *message = PyUnicode_FromFormatV(format, args);
    va_end(args);
    PyObject *class = message != NULL ? PyObject_GetAttrString(self->state->errors, "ValidationError") : NULL;
    if (class != NULL)
        PyErr_SetObject(class, message);
    Py_XDECREF(class);
    Py_XDECREF(message);
    return -1;
}

static unsigned long long row_of(const core_builder *self)
{
    return self->builder.rows + 1;
}

/* The key of a row: exactly of the table's kind. 0 or -1 with an exception. */
static int take_key(core_builder *self, PyObject *object, core_key *out)
{
    static const char *const names[] = {"", "str", "bytes", "int"};
    uint32_t kind = self->builder.key_kind;
    bool fits = kind == SHMCOW_KEY_STR ? PyUnicode_Check(object)
                : kind == SHMCOW_KEY_BYTES ? PyBytes_Check(object)
                                           : PyLong_Check(object) && !PyBool_Check(object);
    if (!fits) {
        PyObject *type = PyType_GetName(Py_TYPE(object));
        if (type != NULL)
            refuse(self, "row %llu: the key %.80R is of the type %U, expected %s", row_of(self), object, type, names[kind]);
        Py_XDECREF(type);
        return -1;
    }
    int r = core_key_take(kind, object, out);
    if (r == 0 && kind == SHMCOW_KEY_STR)
        return refuse(self, "row %llu: the key %.80R is no text that UTF-8 has bytes for, or is 4 GiB long", row_of(self), object);
    if (r == 0 && kind == SHMCOW_KEY_BYTES)
        return refuse(self, "row %llu: a key is 4 GiB long, or longer", row_of(self));
    if (r == 0)
        return refuse(self, "row %llu: the key %.80R is out of range: expected -2**63 to 2**64 - 1", row_of(self), object);
    return r > 0 ? 0 : -1;
}

static int fail_to_add(core_builder *self, int error)
{
    if (error == -EFBIG)
        return refuse(self, "row %llu: the table is full: it has at most 2**31 rows, 32 GiB of keys and values, and 8 GiB "
                      "of different values", row_of(self));
    PyErr_NoMemory();
    return -1;
}

/* Encode a value, once for equal ones. 0 or -1 with an exception. */
static int add_value(core_builder *self, PyObject *key, PyObject *value, PyObject *encode, uint32_t *reference)
{
    char *at;
    Py_ssize_t length;
    PyObject *encoded = PyObject_CallFunctionObjArgs(encode, value, NULL);
    if (encoded == NULL) {
        PyObject *type, *exception, *traceback;
        PyErr_Fetch(&type, &exception, &traceback);
        Py_CLEAR(self->failed);
        self->failed = Py_BuildValue("(KOO)", row_of(self), key, value);
        if (self->failed == NULL)
            PyErr_Clear();
        PyErr_Restore(type, exception, traceback);
        return -1;
    }
    int r = PyBytes_AsStringAndSize(encoded, &at, &length);
    if (r == 0 && (uint64_t)length > UINT32_MAX)
        r = refuse(self, "row %llu: the value of the key %.80R takes 4 GiB, or more", row_of(self), key);
    else if (r == 0) {
        r = shmcow_values_add(&self->builder.values, at, (uint32_t)length, reference);
        r = r < 0 ? fail_to_add(self, r) : 0;
    }
    Py_DECREF(encoded);
    return r;
}

static int add_row(core_builder *self, PyObject *key, PyObject *value, PyObject *encode)
{
    core_key taken;
    uint64_t slot;
    uint32_t reference = 0;
    if (take_key(self, key, &taken) < 0)
        return -1;
    uint64_t hash = shmcow_hash(taken.key.at, taken.key.size, self->builder.seed);
    int r = shmcow_table_reserve(&self->builder, &taken.key, hash, &slot);
    if (r == 0)
        return refuse(self, "row %llu: the key %.80R is repeated: row %llu has it already", row_of(self), key,
                      (unsigned long long)slot);
    if (r < 0)
        return fail_to_add(self, r);
    if (add_value(self, key, value, encode, &reference) < 0)
        return -1;
    r = shmcow_table_append(&self->builder, &taken.key, hash, slot, reference);
    return r < 0 ? fail_to_add(self, r) : 0;
}

static int add_pair(core_builder *self, PyObject *row, PyObject *encode)
{
    PyObject *key = NULL, *value = NULL;
    if (PyTuple_Check(row) && PyTuple_Size(row) == 2) {
        key = Py_NewRef(PyTuple_GetItem(row, 0));
        value = Py_NewRef(PyTuple_GetItem(row, 1));
    } else if (PyList_Check(row) && PyList_Size(row) == 2) {
        key = Py_NewRef(PyList_GetItem(row, 0));
        value = Py_NewRef(PyList_GetItem(row, 1));
    } else {
        PyObject *type = PyType_GetName(Py_TYPE(row));
        Py_ssize_t size = PyTuple_Check(row) ? PyTuple_Size(row) : PyList_Check(row) ? PyList_Size(row) : -1;
        if (type != NULL && size >= 0)
            refuse(self, "row %llu: expected a pair (key, value), found a %U of %zd", row_of(self), type, size);
        else if (type != NULL)
            refuse(self, "row %llu: expected a pair (key, value), found %U", row_of(self), type);
        Py_XDECREF(type);
        return -1;
    }
    int r = add_row(self, key, value, encode);
    Py_DECREF(key);
    Py_DECREF(value);
    return r;
}

static bool take_over(core_builder *self)
{
    if (self->busy || self->builder.finished) {
        PyErr_SetString(PyExc_RuntimeError, self->busy ? "the builder is at work already" : "the table is finished");
        return false;
    }
    return self->busy = true;
}

PyDoc_STRVAR(extend_doc, "extend(pairs, encode) -> None\n\nAdd rows; encode(value) gives a value's bytes. After an error it is of no more use.");
static PyObject *builder_extend(core_builder *self, PyObject *args)
{
    PyObject *pairs, *encode, *row;
    if (!PyArg_ParseTuple(args, "OO:extend", &pairs, &encode))
        return NULL;
    PyObject *iterator = PyObject_GetIter(pairs);
    if (iterator == NULL || !take_over(self)) {
        Py_XDECREF(iterator);
        return NULL;
    }
    int r = 0;
    while (r == 0 && (row = PyIter_Next(iterator)) != NULL) {
        r = add_pair(self, row, encode);
        Py_DECREF(row);
        if (r == 0 && self->builder.rows % BREATHS == 0) {
            Py_BEGIN_ALLOW_THREADS
            Py_END_ALLOW_THREADS
            r = PyErr_CheckSignals();
        }
    }
    self->busy = false;
    Py_DECREF(iterator);
    return r < 0 || PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(finish_doc, "finish() -> None\n\nLay everything out; from then on it is a buffer: the segment's payload.");
static PyObject *builder_finish(core_builder *self, PyObject *ignored)
{
    int r;
    (void)ignored;
    if (!take_over(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    r = shmcow_table_finish(&self->builder, &core_crc);
    Py_END_ALLOW_THREADS
    self->busy = false;
    return r < 0 ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

static int builder_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    core_builder *self = (core_builder *)object;
    if (self->busy || !self->builder.finished) {
        PyErr_SetString(PyExc_BufferError, "the table is not finished");
        view->obj = NULL;
        return -1;
    }
    return PyBuffer_FillInfo(view, object, self->builder.block.at, (Py_ssize_t)self->builder.block.used, 1, flags);
}

static PyObject *builder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    unsigned int kind;
    const char *schema;
    Py_ssize_t schema_bytes;
    unsigned long long seed;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "Iy#K:TableBuilder", &kind, &schema, &schema_bytes, &seed))
        return NULL;
    if (kind < SHMCOW_KEY_STR || kind > SHMCOW_KEY_INT || (schema_bytes != 0 && schema_bytes != 16))
        return PyErr_Format(PyExc_ValueError, "a table of the kind %u, with %zd bytes of schema", kind, schema_bytes);
    core_builder *self = (core_builder *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = PyType_GetModuleState(type);
    if (shmcow_table_begin(&self->builder, kind, seed) < 0) {
        Py_DECREF((PyObject *)self);
        return PyErr_NoMemory();
    }
    memcpy(self->builder.schema, schema, (size_t)schema_bytes);
    return (PyObject *)self;
}

static void builder_dealloc(core_builder *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    shmcow_table_builder_free(&self->builder);
    Py_XDECREF(self->failed);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static PyObject *builder_get_failed(core_builder *self, void *ignored)
{
    (void)ignored;
    return Py_NewRef(self->failed != NULL ? self->failed : Py_None);
}

static PyMethodDef builder_methods[] = {
    {"extend", (PyCFunction)builder_extend, METH_VARARGS, extend_doc},
    {"finish", (PyCFunction)builder_finish, METH_NOARGS, finish_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef builder_getset[] = {
    {"failed", (getter)builder_get_failed, NULL, "(row, key, value) that encode() raised for, or None", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot builder_slots[] = {
    {Py_tp_doc, "TableBuilder(kind, schema, seed): rows of a table, and then its bytes. See csrc/shmcow_table_build.h."},
    {Py_tp_new, builder_new},
    {Py_tp_dealloc, builder_dealloc},
    {Py_tp_methods, builder_methods},
    {Py_tp_getset, builder_getset},
    {Py_bf_getbuffer, builder_getbuffer},
    {0, NULL},
};

static PyType_Spec builder_spec = {
    .name = "shmcow._core.TableBuilder",
    .basicsize = sizeof(core_builder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = builder_slots,
};

PyTypeObject *core_make_builder_type(PyObject *module)
{
    return core_add_type(module, &builder_spec);
}
