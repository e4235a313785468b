/* shmcow._core.IPTable.get_many: many lookups at once, so that they wait for memory together.
 *
 * Each goes as far as it can without memory that is likely to be far away, asks for that, and lets the next one go.
 */
#include "core_iptable_type.h"

#define TOGETHER 32

/* One of the lookups. */
typedef struct {
    shmcow_address address;
    uint32_t leaf;
    bool none;
} pending;

/* The arguments of get and get_many: one, and a default by place or name. */
bool core_take_default(const char *method, PyObject *const *args, Py_ssize_t count, PyObject *names, PyObject **other)
{
    Py_ssize_t named = names != NULL ? PyTuple_Size(names) : 0;
    *other = Py_None;
    if (count == 1 && named == 0)
        return true;
    bool fine = (count == 2 && named == 0) ||
                (count == 1 && named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "default") == 0);
    if (fine)
        *other = args[1];
    else
        PyErr_Format(PyExc_TypeError, "%s() takes one argument and default=", method);
    return fine;
}

static int take_keys(iptable_object *self, PyObject *keys, pending *those)
{
    const shmcow_iptable *t = &self->table;
    int count = 0;
    for (; count < TOGETHER; count++) {
        PyObject *key = PyIter_Next(keys);
        if (key == NULL)
            return PyErr_Occurred() ? -1 : count;
        pending *one = &those[count];
        int r = core_address_of(&self->classes, key, &one->address);
        Py_DECREF(key);
        if (r < 0)
            return -1;
        shmcow_unmap(&one->address);
        one->none = shmcow_iptable_empty(t, one->address.wide);
        if (one->none)
            continue;
        one->leaf = shmcow_iptable_leaf(t, &one->address);
        __builtin_prefetch(shmcow_leaf_at(shmcow_family_of(t, one->address.wide), one->leaf));
    }
    return count;
}

/* The value's reference + 1; 0: no row covers the address. False: the table contradicts itself. */
static bool find_value(const shmcow_iptable *t, const pending *one, uint32_t *value)
{
    *value = 0;
    if (one->none)
        return true;
    shmcow_place place;
    if (!shmcow_iptable_place(t, &one->address, one->leaf, &place))
        return false;
    *value = shmcow_iptable_value(t, one->address.wide, &place);
    return true;
}

static int add_values(iptable_object *self, const pending *those, int count, PyObject *other, PyObject *found)
{
    for (const pending *one = those; one < those + count; one++) {
        uint32_t reference;
        if (!find_value(&self->table, one, &reference)) {
            core_iptable_corrupt();
            return -1;
        }
        PyObject *value = reference != 0 ? core_values_get(&self->values, reference - 1) : Py_NewRef(other);
        int r = value != NULL ? PyList_Append(found, value) : -1;
        Py_XDECREF(value);
        if (r < 0)
            return -1;
    }
    return 0;
}

const char core_get_many_doc[] =
    "get_many($self, ips, /, default=None)\n--\n\n"
    "The values for many addresses, as a list: faster than one by one, since memory is asked for ahead.\n\n"
    "Args:\n"
    "    ips: an iterable of what get() takes.\n"
    "    default: in the list where no row covers an address.\n\n"
    "Raises:\n"
    "    ValueError, TypeError, DecodeError, CorruptSegmentError: as get().\n\n"
    "Concurrency: any thread.";
PyObject *core_iptable_get_many(iptable_object *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *other;
    pending those[TOGETHER];
    if (!core_take_default("get_many", args, count, names, &other))
        return NULL;
    PyObject *keys = PyObject_GetIter(args[0]);
    PyObject *found = keys != NULL ? PyList_New(0) : NULL;
    int taken = found != NULL ? TOGETHER : -1;
    while (taken == TOGETHER) {
        taken = take_keys(self, keys, those);
        if (taken > 0 && add_values(self, those, taken, other, found) < 0)
            taken = -1;
    }
    Py_XDECREF(keys);
    if (taken < 0)
        Py_CLEAR(found);
    return found;
}
