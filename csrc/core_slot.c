/* shmcow._core.Slot: the fast path of a reader. get() is one atomic load, a few compares and the cached object.
 *
 * A Python subclass provides _slow_get() and _slow_snapshot(), called when the current word is not the one whose value
 * is cached, after a fork, and once in every SLOT_LOOKS calls (has the store's name been removed or replaced?).
 */
#include "core.h"

#define SLOT_LOOKS 2048
#define SLOT_LOOKS_ENDED 8 /* the store was destroyed: its successor is looked for more often */
#define SLOT_NOTHING (SHMCOW_DESTROYED - 1) /* no current word looks like this: the slow path is taken */

typedef struct {
    PyObject_HEAD
    const _Atomic uint64_t *current; /* in the store's header, or `nowhere` */
    uint64_t word;                   /* of the cached value */
    uint32_t forks;
    uint32_t countdown;
    PyObject *value;
    PyObject *snapshot;
    store_object *store; /* keeps the header mapped */
    store_object *seen_in; /* where `version` is marked as seen, which tells operators which one this is */
    uint64_t serial, version; /* what is cached: attach and version, both only grow */
} slot_object;

static const _Atomic uint64_t nowhere;

static inline int slot_fresh(slot_object *self)
{
    /* SYNC flip: acquire; pairs with the release in shmcow_flip */
    uint64_t now = atomic_load_explicit(self->current, memory_order_acquire);
    return now == self->word && self->forks == shmcow_forks() && --self->countdown != 0;
}

/* The slow path is for changes. When only the countdown has run out, and the store still has its name, nothing has
   changed: a look at that takes a system call or two, and no Python. */
static bool slot_still(slot_object *self)
{
    if (self->countdown != 0 || self->store == NULL ||
        atomic_load_explicit(self->current, memory_order_relaxed) != self->word || self->forks != shmcow_forks() ||
        shmcow_same_file(self->store->path, self->store->dev, self->store->ino) != 1)
        return false;
    core_refresh(self->store);
    /* a destroyed store keeps its name while it is being removed: its successor may come at any moment */
    self->countdown = self->word == SHMCOW_DESTROYED ? SLOT_LOOKS_ENDED : SLOT_LOOKS;
    return true;
}

__attribute__((noinline)) static PyObject *slot_slow(slot_object *self, PyObject **cached, const char *method)
{
    if (slot_still(self))
        return Py_NewRef(*cached);
    self->countdown = 1;
    return PyObject_CallMethod((PyObject *)self, method, NULL);
}

static PyObject *slot_get(slot_object *self, PyObject *ignored)
{
    (void)ignored;
    if (slot_fresh(self))
        return Py_NewRef(self->value);
    return slot_slow(self, &self->value, "_slow_get");
}

static PyObject *slot_snapshot(slot_object *self, PyObject *ignored)
{
    (void)ignored;
    if (slot_fresh(self))
        return Py_NewRef(self->snapshot);
    return slot_slow(self, &self->snapshot, "_slow_snapshot");
}

static bool is_store(PyObject *object)
{
    if (core_is_store(object))
        return true;
    PyErr_SetString(PyExc_TypeError, "expected a Store");
    return false;
}

/* Marks the new version before the old one is cleared, so that operators always see one. */
static void slot_see(slot_object *self, store_object *store, uint64_t version)
{
    bool same = self->seen_in == store;
    core_see(store, version, same ? self->version : 0);
    if (!same && self->seen_in != NULL)
        core_clear(self->seen_in, SHMCOW_SEEN_AT + self->version);
}

PyDoc_STRVAR(install_doc, "_install(store, word, version, value, snapshot) -> bool\n\n"
                          "Cache what a version decoded to, and mark it as seen, unless something newer is cached already.");
static PyObject *slot_install(slot_object *self, PyObject *args)
{
    PyObject *store, *value, *snapshot;
    unsigned long long word, version;
    if (!PyArg_ParseTuple(args, "OKKOO", &store, &word, &version, &value, &snapshot))
        return NULL;
    if (!is_store(store))
        return NULL;
    store_object *from = (store_object *)store;
    bool newer = self->value == NULL || from->serial > self->serial ||
                 (from->serial == self->serial && version > self->version);
    if (!newer)
        Py_RETURN_FALSE;
    slot_see(self, from, version);
    PyObject *old[] = {self->value, self->snapshot, (PyObject *)self->seen_in, (PyObject *)self->store};
    self->value = Py_NewRef(value);
    self->snapshot = Py_NewRef(snapshot);
    self->store = (store_object *)Py_NewRef(store);
    self->seen_in = (store_object *)Py_NewRef(store);
    self->serial = from->serial;
    self->version = version;
    self->current = &from->h->current;
    self->word = word;
    self->forks = shmcow_forks();
    self->countdown = SLOT_LOOKS;
    for (size_t k = 0; k < sizeof old / sizeof *old; k++) /* may run finalizers, which may call get(): the slot is whole again by now */
        Py_XDECREF(old[k]);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(accept_doc, "_accept(store, word) -> bool\n\n"
                         "Keep returning the cached value while the store's current word is this one. False: nothing is "
                         "cached.");
static PyObject *slot_accept(slot_object *self, PyObject *args)
{
    PyObject *store;
    unsigned long long word;
    if (!PyArg_ParseTuple(args, "OK", &store, &word))
        return NULL;
    if (!is_store(store))
        return NULL;
    if (self->value == NULL)
        Py_RETURN_FALSE;
    PyObject *old = (PyObject *)self->store;
    self->store = (store_object *)Py_NewRef(store);
    self->current = &self->store->h->current;
    self->word = word;
    self->forks = shmcow_forks();
    self->countdown = word == SHMCOW_DESTROYED ? SLOT_LOOKS_ENDED : SLOT_LOOKS;
    Py_XDECREF(old);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(forget_doc, "_forget() -> None\n\nDrop what is cached: every call takes the slow path until the next _install.");
static PyObject *slot_forget(slot_object *self, PyObject *ignored)
{
    (void)ignored;
    if (self->seen_in != NULL)
        core_clear(self->seen_in, SHMCOW_SEEN_AT + self->version);
    PyObject *old[] = {self->value, self->snapshot, (PyObject *)self->seen_in, (PyObject *)self->store};
    self->value = self->snapshot = NULL;
    self->store = self->seen_in = NULL;
    self->current = &nowhere;
    self->word = SLOT_NOTHING;
    for (size_t k = 0; k < sizeof old / sizeof *old; k++)
        Py_XDECREF(old[k]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(cached_doc, "_cached() -> tuple[int, int, object, object] | None\n\n"
                         "(serial of the attach, version, value, snapshot) as cached.");
static PyObject *slot_cached(slot_object *self, PyObject *ignored)
{
    (void)ignored;
    if (self->value == NULL)
        Py_RETURN_NONE;
    PyObject *const fields[] = {PyLong_FromUnsignedLongLong(self->serial), PyLong_FromUnsignedLongLong(self->version),
                                Py_NewRef(self->value), Py_NewRef(self->snapshot)};
    return core_pack(fields, sizeof fields / sizeof *fields);
}

static PyObject *slot_pass(slot_object *self, PyObject *ignored)
{
    (void)self;
    (void)ignored;
    Py_RETURN_NONE;
}

static PyObject *slot_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    slot_object *self = (slot_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->current = &nowhere;
    self->word = SLOT_NOTHING;
    return (PyObject *)self;
}

static int slot_traverse(slot_object *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->value);
    Py_VISIT(self->snapshot);
    return 0;
}

static int slot_clear(slot_object *self)
{
    Py_XDECREF(slot_forget(self, NULL));
    return 0;
}

static void slot_dealloc(slot_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack((PyObject *)self);
    slot_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

PyDoc_STRVAR(get_doc,
             "get()\n\nReturn the current value: one atomic load while nothing changed.\n\n"
             "Returns:\n    The value, the same object for every thread until the version changes; or `default`.\n\n"
             "Raises:\n    StoreNotFoundError, NotPublishedError: there is no value yet, and no `default`.\n"
             "    ShmcowError: the newest version cannot be used, and there is no good one yet, or on_bad=\"raise\".\n\n"
             "Concurrency: any thread; waits for nobody, but for a first version with attach_timeout. After a fork the\n"
             "child counts as a reader of its own.");
PyDoc_STRVAR(snapshot_doc,
             "snapshot()\n\nReturn the current Snapshot: value, version and where it comes from, which belong together.\n\n"
             "Returns:\n    The Snapshot, the same object until the version changes.\n\n"
             "Raises:\n    As get(); `default` does not apply.\n\n"
             "Concurrency: as get().");

static PyMethodDef slot_methods[] = {
    {"get", (PyCFunction)slot_get, METH_NOARGS, get_doc},
    {"snapshot", (PyCFunction)slot_snapshot, METH_NOARGS, snapshot_doc},
    {"_install", (PyCFunction)slot_install, METH_VARARGS, install_doc},
    {"_accept", (PyCFunction)slot_accept, METH_VARARGS, accept_doc},
    {"_forget", (PyCFunction)slot_forget, METH_NOARGS, forget_doc},
    {"_cached", (PyCFunction)slot_cached, METH_NOARGS, cached_doc},
    {"_pass", (PyCFunction)slot_pass, METH_NOARGS, "_pass() -> None\n\nNothing: what get() is measured against."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slot_slots[] = {
    {Py_tp_doc, "The cache behind Reader.get(): see csrc/core_slot.c."},
    {Py_tp_new, slot_new},
    {Py_tp_dealloc, slot_dealloc},
    {Py_tp_traverse, slot_traverse},
    {Py_tp_clear, slot_clear},
    {Py_tp_methods, slot_methods},
    {0, NULL},
};

static PyType_Spec slot_spec = {
    .name = "shmcow._core.Slot",
    .basicsize = sizeof(slot_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slot_slots,
};

PyTypeObject *core_make_slot_type(PyObject *module)
{
    return core_add_type(module, &slot_spec);
}
