/* shmcow._core: wait(), ring() and rings(): sleep without the interpreter lock until a store's `current` changes. */
#include "core.h"

typedef struct {
    uint32_t n;
    const store_object *stores[SHMCOW_SLEEPS]; /* borrowed: the tuple has them */
    shmcow_sleep words[SHMCOW_SLEEPS];
} watch_list;

/* watched: a tuple of (Store, word), each the word that the caller saw. Nobody can change a tuple while we sleep. */
static int take_watched(PyObject *watched, watch_list *list)
{
    Py_ssize_t count = PyTuple_Size(watched);
    if (count < 0 || count >= (Py_ssize_t)SHMCOW_SLEEPS) {
        if (count >= 0)
            PyErr_Format(PyExc_ValueError, "at most %u stores can be watched at once, found %zd", SHMCOW_SLEEPS - 1, count);
        return -1;
    }
    for (Py_ssize_t k = 0; k < count; k++) {
        PyObject *store;
        unsigned long long word;
        PyObject *pair = PyTuple_GetItem(watched, k); /* borrowed */
        if (!PyTuple_Check(pair) || !PyArg_ParseTuple(pair, "OK", &store, &word))
            return PyErr_Occurred() ? -1 : (PyErr_SetString(PyExc_TypeError, "expected (Store, word)"), -1);
        if (!core_is_store(store))
            return PyErr_SetString(PyExc_TypeError, "expected a Store"), -1;
        list->stores[k] = (store_object *)store;
        list->words[k] = shmcow_sleep_on_current(list->stores[k]->h, word);
    }
    list->n = (uint32_t)count;
    return 0;
}

/* Nobody is woken when a header is removed from outside. */
static bool all_named(const watch_list *list)
{
    for (uint32_t k = 0; k < list->n; k++)
        if (shmcow_same_file(list->stores[k]->path, list->stores[k]->dev, list->stores[k]->ino) != 1)
            return false;
    return true;
}

/* Slice by slice, without the interpreter lock but for a moment in between: a signal that came just before a sleep, or was
   taken by another thread, has woken nobody. An idle waiter costs a few microseconds a second. -> -1: an exception is set */
static int sleep_in_slices(core_state *state, watch_list *list, uint32_t rings, double seconds)
{
    for (;;) {
        double slice = seconds < SHMCOW_SLICE ? seconds : SHMCOW_SLICE;
        bool gone;
        int r;
        Py_BEGIN_ALLOW_THREADS
        r = shmcow_sleep_on(list->words, list->n, rings, slice);
        gone = r > 0 && !all_named(list);
        Py_END_ALLOW_THREADS
        if (r < 0)
            core_fail(state, r, "waiting on", "the futex of a store", 0);
        if (r < 0 || PyErr_CheckSignals() < 0)
            return -1;
        seconds -= slice;
        if (r == 0 || seconds <= 0 || gone)
            return 0;
    }
}

PyObject *core_wait(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    watch_list list;
    PyObject *watched;
    unsigned int rings;
    double seconds;
    if (!PyArg_ParseTuple(args, "IO!d", &rings, &PyTuple_Type, &watched, &seconds) || take_watched(watched, &list) < 0)
        return NULL;
    if (!(seconds >= 0 && seconds <= 1e9)) {
        PyErr_Format(PyExc_ValueError, "a sleep is 0 to 1e9 seconds");
        return NULL;
    }
    if (sleep_in_slices(state, &list, rings, seconds) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *core_ring(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    shmcow_ring();
    Py_RETURN_NONE;
}

PyObject *core_rings(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    return PyLong_FromUnsignedLong(shmcow_rings());
}
