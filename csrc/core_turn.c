/* shmcow._core.TurnGuard: gives back, in C, what a turn of a writer took: the writer lock and the process's mutex.
 *
 * Python runs signal handlers at the entry of Python functions, so a `with` block whose __exit__ is Python can be left
 * by Ctrl-C with everything still taken. Here no Python runs between the end of the block and the release. A guard that
 * is dropped without its __exit__ (an interrupt at the very place before it) gives back when it is deallocated.
 */
#include "core.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *mutex; /* a threading.RLock */
    PyObject *core;  /* a WriterCore, or NULL */
    bool taken;      /* whether it was this guard that took the mutex */
} guard_object;

/* Only the thread that owns the mutex can give it back (and a guard may be dropped in another). */
static bool owns(guard_object *self)
{
    PyObject *owned = self->mutex != NULL ? PyObject_CallMethodObjArgs(self->mutex, core_known.is_owned, NULL) : NULL;
    bool answer = owned != NULL && PyObject_IsTrue(owned) == 1;
    Py_XDECREF(owned);
    PyErr_Clear();
    return answer;
}

static void give_back(guard_object *self)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (self->taken && owns(self)) {
        self->taken = false;
        if (self->core != NULL)
            core_give_back_lock(self->core);
        PyObject *done = PyObject_CallMethodObjArgs(self->mutex, core_known.release, NULL);
        Py_XDECREF(done);
        PyErr_Clear();
    }
    Py_CLEAR(self->core);
    PyErr_Restore(type, value, trace);
}

PyDoc_STRVAR(take_doc, "take_mutex(timeout) -> bool\n\n"
                       "Acquire the mutex within `timeout` seconds. In C, so that no interrupt comes between having it "
                       "and knowing it.");
static PyObject *guard_take(guard_object *self, PyObject *timeout)
{
    if (self->mutex == NULL || self->taken)
        return PyErr_Format(PyExc_RuntimeError, "a turn takes its mutex once");
    PyObject *got = PyObject_CallMethodObjArgs(self->mutex, core_known.acquire, Py_True, timeout, NULL);
    if (got != NULL)
        self->taken = PyObject_IsTrue(got) == 1;
    return got;
}

static PyObject *guard_give_back(guard_object *self, PyObject *ignored)
{
    (void)ignored;
    give_back(self);
    Py_RETURN_NONE;
}

static PyObject *guard_exit(guard_object *self, PyObject *args)
{
    (void)args;
    give_back(self);
    Py_RETURN_NONE;
}

static PyObject *guard_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    return PyType_GenericAlloc(type, 0);
}

static int guard_traverse(guard_object *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->mutex);
    Py_VISIT(self->core);
    return 0;
}

static int guard_clear(guard_object *self)
{
    give_back(self);
    Py_CLEAR(self->mutex);
    return 0;
}

static void guard_dealloc(guard_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack((PyObject *)self);
    guard_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static PyMethodDef guard_methods[] = {
    {"take_mutex", (PyCFunction)guard_take, METH_O, take_doc},
    {"give_back", (PyCFunction)guard_give_back, METH_NOARGS, "give_back() -> None\n\nRelease the writer lock and the mutex, if this thread has them."},
    {"__exit__", (PyCFunction)guard_exit, METH_VARARGS, "__exit__(*exc_info) -> None\n\nAs give_back()."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef guard_members[] = {
    {"_mutex", T_OBJECT_EX, offsetof(guard_object, mutex), 0, "the process's mutex, a threading.RLock"},
    {"core", T_OBJECT_EX, offsetof(guard_object, core), 0, "the WriterCore whose lock is taken"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot guard_slots[] = {
    {Py_tp_doc, "What a turn took, given back in C: see csrc/core_turn.c."},
    {Py_tp_new, guard_new},
    {Py_tp_dealloc, guard_dealloc},
    {Py_tp_traverse, guard_traverse},
    {Py_tp_clear, guard_clear},
    {Py_tp_methods, guard_methods},
    {Py_tp_members, guard_members},
    {0, NULL},
};

static PyType_Spec guard_spec = {
    .name = "shmcow._core.TurnGuard",
    .basicsize = sizeof(guard_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = guard_slots,
};

PyTypeObject *core_make_guard_type(PyObject *module)
{
    return core_add_type(module, &guard_spec);
}
