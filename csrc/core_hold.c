/* shmcow._core.Hold and Part: a version held by this process, and the buffers of its segments.
 *
 * A Hold is the marker and the maps together: Python's own reference count says how many threads, snapshots and views
 * use them, and both go with the last. A process has at most one live Hold for each version.
 */
#include "core.h"

#include <time.h>

#define HOLD_SHORT_LOOKS 16
#define HOLD_COPIED 16384u /* bytes: see is_copied() */

/* ---- what a reader needs of the world (shmcow_reader_ops) ---- */

static void hold_mark(void *ctx, uint64_t version)
{
    core_mark(((hold_object *)ctx)->store, SHMCOW_HELD_AT + version);
}

static void hold_clear(void *ctx, uint64_t version)
{
    core_clear(((hold_object *)ctx)->store, SHMCOW_HELD_AT + version);
}

/* A judge is between two steps. On a busy machine it may have lost its core there, for milliseconds: some short looks, and
   then longer ones, 50 ms in all. */
static void hold_yield(void *ctx)
{
    hold_object *self = ctx;
    const struct timespec pause = {.tv_nsec = 1000000};
    if (self->yields++ < HOLD_SHORT_LOOKS)
        sched_yield();
    else
        nanosleep(&pause, NULL);
}

/* A small segment that will be decoded is read into memory of our own: a map, its page fault and its end would cost more
   than all else in a hold. It is never written again, so the copy is as good. What other codecs store is looked into where
   it lies: all processes share it, and no core dump has it. */
static bool is_copied(const shmcow_entry *entry)
{
    return entry->segment_count == 1 && shmcow_segment_bytes(entry->segments[0].length) <= HOLD_COPIED &&
           (strncmp(entry->codec, "msgpack", sizeof entry->codec) == 0 ||
            strncmp(entry->codec, "json", sizeof entry->codec) == 0);
}

static int copy_segment(int fd, uint64_t bytes, void **out)
{
    char *at = PyMem_Malloc(bytes);
    uint64_t done = 0;
    int r = at == NULL ? -ENOMEM : 0;
    while (r == 0 && done < bytes) {
        ssize_t n = pread(fd, at + done, bytes - done, (off_t)done);
        if (n > 0)
            done += (uint64_t)n;
        else if (n == 0)
            r = -ENOENT; /* somebody else has cut it short since we looked */
        else if (errno != EINTR)
            r = -errno;
    }
    if (r < 0)
        PyMem_Free(at);
    else
        *out = at;
    return r;
}

static void unmap(const hold_object *self, void *at, uint64_t bytes)
{
    if (self->copied)
        PyMem_Free(at);
    else
        munmap(at, bytes);
}

static void unmap_all(hold_object *self)
{
    while (self->mapped > 0) {
        self->mapped--;
        unmap(self, self->maps[self->mapped].at, self->maps[self->mapped].length);
    }
}

/* Map (or copy) one segment, after a look at everything that can be wrong with it. */
static int map_segment(hold_object *self, const shmcow_segment *segment)
{
    char number[32];
    struct stat st;
    void *at = NULL;
    uint64_t bytes = shmcow_segment_bytes(segment->length);
    snprintf(number, sizeof number, "%llu", (unsigned long long)segment->id);
    char *path = core_join(self->store->prefix, number);
    if (path == NULL) {
        PyErr_Clear();
        return -ENOMEM;
    }
    int fd = shmcow_open_regular(path, O_RDONLY, &st);
    PyMem_Free(path);
    if (fd < 0)
        return fd == -ELOOP || fd == -EMEDIUMTYPE || fd == -ENXIO ? -ENOENT : fd; /* not ours, whatever it is */
    int r = (uint64_t)st.st_size != bytes || st.st_uid != self->store->uid ? -ENOENT
            : self->copied                                                 ? copy_segment(fd, bytes, &at)
                                                                           : shmcow_map(fd, bytes, false, &at);
    close(fd);
    if (r < 0)
        return r;
    shmcow_footer footer;
    memcpy(&footer, (const char *)at + bytes - sizeof footer, sizeof footer);
    if (shmcow_check_footer(&core_crc, &footer, self->store->identity.epoch, segment) != SHMCOW_FINE) {
        unmap(self, at, bytes);
        return -ENOENT;
    }
    self->maps[self->mapped].at = at;
    self->maps[self->mapped].length = bytes;
    self->mapped++;
    return 0;
}

static int hold_map(void *ctx, const shmcow_entry *entry)
{
    hold_object *self = ctx;
    int r = 0;
    self->copied = is_copied(entry);
    for (uint32_t k = 0; k < entry->segment_count && r == 0; k++)
        r = map_segment(self, &entry->segments[k]);
    if (r < 0)
        unmap_all(self);
    return r;
}

static const shmcow_reader_ops reader_ops = {hold_mark, hold_clear, hold_map, hold_yield};

/* ---- Hold ---- */

static hold_object *find_hold(store_object *store, uint64_t version)
{
    for (hold_object *hold = store->holds; hold != NULL; hold = hold->next)
        if (hold->entry.version == version)
            return hold;
    return NULL;
}

PyObject *core_hold(store_object *store, core_state *state, uint64_t version)
{
    uint64_t now = shmcow_load_current(store->h);
    uint64_t wanted = version != 0 ? version : shmcow_version_of(now);
    hold_object *self = find_hold(store, wanted);
    if (self != NULL && (version != 0 || now != SHMCOW_DESTROYED)) {
        core_refresh(store); /* in a forked child: this is where it becomes a holder of its own */
        return Py_NewRef((PyObject *)self);
    }
    self = (hold_object *)PyType_GenericAlloc(state->hold_type, 0);
    if (self == NULL)
        return NULL;
    self->store = (store_object *)Py_NewRef((PyObject *)store);
    int r = version != 0 ? shmcow_hold_version(store->h, &reader_ops, self, &core_crc, version, &self->entry)
                         : shmcow_hold_current(store->h, &reader_ops, self, &core_crc, &self->entry);
    if (r < 0) {
        self->entry.version = 0; /* nothing is marked: dealloc must not clear */
        Py_DECREF((PyObject *)self);
        core_refresh(store); /* as above: in a forked child what it inherited is marked even when there is nothing new */
        return core_fail(state, r, "opening a segment of", store->path, wanted);
    }
    hold_object *twin = find_hold(store, self->entry.version);
    self->next = store->holds;
    if (store->holds != NULL)
        store->holds->previous = self;
    store->holds = self;
    if (twin != NULL) { /* the version moved on to one that is held already: one Hold for each version */
        Py_INCREF((PyObject *)twin);
        Py_DECREF((PyObject *)self);
        return (PyObject *)twin;
    }
    return (PyObject *)self;
}

static void hold_dealloc(hold_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    store_object *store = self->store;
    unmap_all(self);
    if (self->entry.version != 0) {
        if (self->previous != NULL)
            self->previous->next = self->next;
        else
            store->holds = self->next;
        if (self->next != NULL)
            self->next->previous = self->previous;
        core_clear(store, SHMCOW_HELD_AT + self->entry.version);
    }
    Py_XDECREF((PyObject *)store);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

/* ---- what an entry says, for Python ---- */

static const char *const said[] = {"version", "published_ns", "pid", "uid", "origin", "fingerprint", "codec", "author",
                                   "type_name", "source", "message", "parts"};
static const char *const listed[] = {"name", "segment", "length", "crc", "flags"};
enum { SAID = sizeof said / sizeof *said, LISTED = sizeof listed / sizeof *listed };
static_assert(SAID <= CORE_FORM_KEYS && LISTED <= CORE_FORM_KEYS, "a form has room for its keys");

static int make_form(core_form *form, const char *const *names, int count)
{
    form->blank = PyDict_New();
    for (int k = 0; k < count; k++)
        if (form->blank == NULL || (form->keys[k] = PyUnicode_InternFromString(names[k])) == NULL ||
            PyDict_SetItem(form->blank, form->keys[k], Py_None) < 0)
            return -1;
    return 0;
}

/* A dict of these values, which it takes over; NULL among them: there was no memory. It is copied from a blank one, not
   built anew: this is a noticeable part of the first get() of a version. */
static PyObject *fill_form(const core_form *form, PyObject *const *values, int count)
{
    PyObject *filled = PyDict_Copy(form->blank);
    for (int k = 0; k < count; k++) {
        if (filled != NULL && (values[k] == NULL || PyDict_SetItem(filled, form->keys[k], values[k]) < 0))
            Py_CLEAR(filled);
        Py_XDECREF(values[k]);
    }
    return filled;
}

static PyObject *listed_part(const core_state *state, const shmcow_entry *entry, uint32_t k)
{
    const shmcow_segment *segment = &entry->segments[k];
    PyObject *const values[LISTED] = {
        core_text(entry->part_names[k], sizeof entry->part_names[k]), PyLong_FromUnsignedLongLong(segment->id),
        PyLong_FromUnsignedLongLong(segment->length),                 PyLong_FromUnsignedLong(segment->crc),
        PyLong_FromUnsignedLong(segment->flags),
    };
    return fill_form(&state->part_form, values, LISTED);
}

/* Everything that an entry says. */
PyObject *core_entry_dict(const core_state *state, const shmcow_entry *entry)
{
    PyObject *parts = PyList_New(0);
    for (uint32_t k = 0; parts != NULL && k < entry->segment_count; k++) {
        PyObject *part = listed_part(state, entry, k);
        if (part == NULL || PyList_Append(parts, part) < 0)
            Py_CLEAR(parts);
        Py_XDECREF(part);
    }
    if (parts == NULL)
        return NULL;
    PyObject *const values[SAID] = {
        PyLong_FromUnsignedLongLong(entry->version),
        PyLong_FromUnsignedLongLong(entry->published_ns),
        PyLong_FromUnsignedLong(entry->pid),
        PyLong_FromUnsignedLong(entry->uid),
        PyLong_FromUnsignedLongLong(entry->origin),
        PyBytes_FromStringAndSize((const char *)entry->fingerprint, sizeof entry->fingerprint),
        core_text(entry->codec, sizeof entry->codec),
        core_text(entry->author, sizeof entry->author),
        core_text(entry->type_name, sizeof entry->type_name),
        core_text(entry->source, sizeof entry->source),
        core_text(entry->message, sizeof entry->message),
        parts,
    };
    return fill_form(&state->entry_form, values, SAID);
}

int core_make_forms(core_state *state)
{
    int r = make_form(&state->entry_form, said, SAID);
    return r < 0 ? r : make_form(&state->part_form, listed, LISTED);
}

void core_clear_form(core_form *form)
{
    Py_CLEAR(form->blank);
    for (int k = 0; k < CORE_FORM_KEYS; k++)
        Py_CLEAR(form->keys[k]);
}

static PyObject *hold_get_entry(hold_object *self, void *ignored)
{
    (void)ignored;
    return core_entry_dict(core_state_of((PyObject *)self), &self->entry);
}

/* For messages. */
static PyObject *hold_str(hold_object *self)
{
    PyObject *name = core_text(self->store->identity.name, self->store->identity.name_bytes);
    PyObject *text = name == NULL ? NULL
                                  : PyUnicode_FromFormat("version %llu of store %U",
                                                         (unsigned long long)self->entry.version, name);
    Py_XDECREF(name);
    return text;
}

static PyObject *hold_get_version(hold_object *self, void *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLongLong(self->entry.version);
}

static PyObject *hold_get_store(hold_object *self, void *ignored)
{
    (void)ignored;
    return Py_NewRef((PyObject *)self->store);
}

/* ---- Part: the buffer of one segment; it keeps its Hold alive, and so does every view of it ---- */

typedef struct {
    PyObject_HEAD
    hold_object *hold;
    uint32_t k;
} part_object;

static int part_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    part_object *self = (part_object *)object;
    return PyBuffer_FillInfo(view, object, self->hold->maps[self->k].at,
                             (Py_ssize_t)self->hold->entry.segments[self->k].length, 1, flags);
}

static void part_dealloc(part_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Py_XDECREF((PyObject *)self->hold);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static PyObject *view_of(hold_object *self, unsigned int k)
{
    core_state *state = core_state_of((PyObject *)self);
    part_object *part = (part_object *)PyType_GenericAlloc(state->part_type, 0);
    if (part == NULL)
        return NULL;
    part->hold = (hold_object *)Py_NewRef((PyObject *)self);
    part->k = k;
    PyObject *view = PyMemoryView_FromObject((PyObject *)part);
    Py_DECREF((PyObject *)part);
    return view;
}

static PyObject *codec_of(const hold_object *self, unsigned int k)
{
    shmcow_footer footer;
    memcpy(&footer, (const char *)self->maps[k].at + self->maps[k].length - sizeof footer, sizeof footer);
    return core_text(footer.codec, sizeof footer.codec);
}

static PyObject *path_of(const hold_object *self, unsigned int k)
{
    return PyUnicode_FromFormat("%s%llu", self->store->prefix, (unsigned long long)self->entry.segments[k].id);
}

/* The number of a part, as the only argument or 0. */
static bool which_part(const hold_object *self, PyObject *args, unsigned int *k)
{
    *k = 0;
    if (!PyArg_ParseTuple(args, "|I", k))
        return false;
    if (*k < self->mapped)
        return true;
    PyErr_Format(PyExc_IndexError, "part %u of %u", *k, self->mapped);
    return false;
}

PyDoc_STRVAR(view_doc, "view(part=0) -> memoryview\n\nThe payload of one segment, read-only; the version stays held while it lives.");
static PyObject *hold_view(hold_object *self, PyObject *args)
{
    unsigned int k;
    return which_part(self, args, &k) ? view_of(self, k) : NULL;
}

PyDoc_STRVAR(codec_doc, "codec(part=0) -> str\n\nName of the codec that encoded one segment, as its footer says.");
static PyObject *hold_codec(hold_object *self, PyObject *args)
{
    unsigned int k;
    return which_part(self, args, &k) ? codec_of(self, k) : NULL;
}

PyDoc_STRVAR(stored_doc, "stored(part=0) -> tuple[memoryview, str, str, str, bool]\n\n"
                         "What shmcow.codecs.StoredPart says of one segment: view, name, codec, path, typed.");
static PyObject *hold_stored(hold_object *self, PyObject *args)
{
    unsigned int k;
    if (!which_part(self, args, &k))
        return NULL;
    const shmcow_entry *entry = &self->entry;
    PyObject *const fields[] = {
        view_of(self, k),
        core_text(entry->part_names[k], sizeof entry->part_names[k]),
        codec_of(self, k),
        path_of(self, k),
        PyBool_FromLong((entry->segments[k].flags & SHMCOW_IS_TYPED) != 0),
    };
    return core_pack(fields, sizeof fields / sizeof *fields);
}

static PyMethodDef hold_methods[] = {
    {"codec", (PyCFunction)hold_codec, METH_VARARGS, codec_doc},
    {"stored", (PyCFunction)hold_stored, METH_VARARGS, stored_doc},
    {"view", (PyCFunction)hold_view, METH_VARARGS, view_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef hold_getset[] = {
    {"entry", (getter)hold_get_entry, NULL, "what the generation's entry says, as a dict", NULL},
    {"version", (getter)hold_get_version, NULL, "the version held", NULL},
    {"store", (getter)hold_get_store, NULL, "the Store it is of", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot hold_slots[] = {
    {Py_tp_doc, "A version held by this process: marked and mapped until the last reference or view goes."},
    {Py_tp_dealloc, hold_dealloc},
    {Py_tp_str, hold_str},
    {Py_tp_methods, hold_methods},
    {Py_tp_getset, hold_getset},
    {0, NULL},
};

static PyType_Spec hold_spec = {
    .name = "shmcow._core.Hold",
    .basicsize = sizeof(hold_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = hold_slots,
};

static PyType_Slot part_slots[] = {
    {Py_tp_doc, "One segment of a held version: exports its payload."},
    {Py_tp_dealloc, part_dealloc},
    {Py_bf_getbuffer, part_getbuffer},
    {0, NULL},
};

static PyType_Spec part_spec = {
    .name = "shmcow._core.Part",
    .basicsize = sizeof(part_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = part_slots,
};

PyTypeObject *core_make_hold_type(PyObject *module)
{
    return core_add_type(module, &hold_spec);
}

PyTypeObject *core_make_part_type(PyObject *module)
{
    return core_add_type(module, &part_spec);
}
