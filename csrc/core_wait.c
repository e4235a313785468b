/* shmcow._core: wait(), ring() and rings(): sleep without the interpreter lock until a store's `current` changes. */
#include "core.h"

/* watched: a tuple of (Store, word), each the word that the caller saw. Nobody can change a tuple while we sleep. */
static int take_watched(PyObject *watched, shmcow_sleep *words, uint32_t *n)
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
        words[k] = shmcow_sleep_on_current(((store_object *)store)->h, word);
    }
    *n = (uint32_t)count;
    return 0;
}

PyObject *core_wait(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    shmcow_sleep words[SHMCOW_SLEEPS];
    PyObject *watched;
    unsigned int rings;
    double seconds;
    uint32_t n = 0;
    int r;
    if (!PyArg_ParseTuple(args, "IO!d", &rings, &PyTuple_Type, &watched, &seconds) || take_watched(watched, words, &n) < 0)
        return NULL;
    if (!(seconds >= 0 && seconds <= 3600)) {
        PyErr_SetString(PyExc_ValueError, "a slice of sleep is 0 to 3600 seconds");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    r = shmcow_sleep_on(words, n, rings, seconds);
    Py_END_ALLOW_THREADS
    if (r < 0)
        return core_fail(state, r, "waiting on", "the futex of a store", 0);
    if (PyErr_CheckSignals() < 0)
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
