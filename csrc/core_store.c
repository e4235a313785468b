/* shmcow._core.Store: an attached store, and what this process marks in it.
 *
 * A marker says "this process holds (or has seen) that version". The kernel keeps it on the claim descriptor, one for
 * each process and store; here each offset has an ordinary count, and the marker is set at 0 -> 1 and cleared at 1 -> 0.
 */
#include "core.h"

/* ---- markers ---- */

static struct marker_count *find_mark(store_object *store, uint64_t offset)
{
    for (size_t k = 0; k < store->marks_used; k++)
        if (store->marks[k].offset == offset)
            return &store->marks[k];
    return NULL;
}

static char *object_path(const store_object *store, const char *object)
{
    return core_join(store->prefix, object);
}

/* Have a claim descriptor of this very process; when it is new, mark again all that is counted (after a fork, after a
   daemonizer closed everything, after the holds file was made anew). -errno: go on without markers. */
static int ready_claim(store_object *store)
{
    char *path = object_path(store, "holds");
    if (path == NULL) {
        PyErr_Clear();
        return -ENOMEM;
    }
    int r = 0;
    if (!shmcow_fd_valid(store->claim) || shmcow_same_file(path, store->claim->dev, store->claim->ino) == 0) {
        r = shmcow_fd_open(store->claim, path, O_RDONLY);
        for (size_t k = 0; r == 0 && k < store->marks_used; k++)
            r = shmcow_lock_byte(atomic_load(&store->claim->fd), F_RDLCK, store->marks[k].offset);
    }
    PyMem_Free(path);
    store->refused = -r;
    return r;
}

/* One more wants this mark: how many do now, or 0 for lack of memory. That costs accounting only: core_clear finds no
   count and does nothing. */
static uint64_t count_up(store_object *store, uint64_t offset)
{
    struct marker_count *mark = find_mark(store, offset);
    if (mark == NULL && store->marks_used == store->marks_room) {
        size_t room = store->marks_room ? store->marks_room * 2 : 8;
        struct marker_count *more = PyMem_Realloc(store->marks, room * sizeof *more);
        if (more == NULL)
            return 0;
        store->marks = more;
        store->marks_room = room;
    }
    if (mark == NULL) {
        mark = &store->marks[store->marks_used++];
        *mark = (struct marker_count){.offset = offset};
    }
    return ++mark->count;
}

/* One less wants this mark. True: it was the last. */
static bool count_down(store_object *store, uint64_t offset)
{
    struct marker_count *mark = find_mark(store, offset);
    if (mark == NULL || --mark->count > 0)
        return false;
    *mark = store->marks[--store->marks_used];
    return true;
}

static void set_mark(store_object *store, uint64_t offset)
{
    store->refused = -shmcow_lock_byte(atomic_load(&store->claim->fd), F_RDLCK, offset);
}

static void unset_mark(store_object *store, uint64_t offset)
{
    if (shmcow_lock_byte(atomic_load(&store->claim->fd), F_UNLCK, offset) < 0) {
        shmcow_fd_close(store->claim); /* even an unlock can fail (ENOLCK): let go of all, and mark the others again */
        core_refresh(store);
    }
}

void core_mark(store_object *store, uint64_t offset)
{
    uint64_t count = count_up(store, offset);
    if (count > 0 && (count == 1 || !shmcow_fd_valid(store->claim)) && ready_claim(store) == 0)
        set_mark(store, offset);
}

void core_clear(store_object *store, uint64_t offset)
{
    /* In a forked child the descriptor is closed (-1) until the next mark, so a child never clears its parent's. */
    if (count_down(store, offset) && shmcow_fd_valid(store->claim))
        unset_mark(store, offset);
}

/* Mark `version` as seen, and clear the version `before`, which was marked so (0: none), with one look at the descriptor
   for both. Whether the holds file still has its name was looked at when the version was held: one that goes between then
   and now is as one that goes after this. */
void core_see(store_object *store, uint64_t version, uint64_t before)
{
    bool ready = shmcow_fd_valid(store->claim) || ready_claim(store) == 0;
    if (count_up(store, SHMCOW_SEEN_AT + version) == 1 && ready)
        set_mark(store, SHMCOW_SEEN_AT + version);
    if (before != 0 && !ready)
        core_clear(store, SHMCOW_SEEN_AT + before);
    else if (before != 0 && count_down(store, SHMCOW_SEEN_AT + before))
        unset_mark(store, SHMCOW_SEEN_AT + before);
}

void core_refresh(store_object *store)
{
    if (store->marks_used > 0)
        (void)ready_claim(store);
}

/* ---- Store: attach ---- */

static uint64_t attaches;

static int check_header(core_state *state, store_object *self, const char *path, uint64_t bytes)
{
    shmcow_problem problem = shmcow_check_identity(&core_crc, &self->identity, bytes);
    if (problem == SHMCOW_FINE)
        return 0;
    bool damaged = problem == SHMCOW_BAD_CRC || problem == SHMCOW_BAD_SHAPE || problem == SHMCOW_BAD_LENGTH;
    PyObject *class = PyObject_GetAttrString(state->errors, damaged ? "CorruptSegmentError" : "IncompatibleStoreError");
    if (class == NULL)
        return -1;
    if (problem == SHMCOW_BAD_ABI)
        PyErr_Format(class, "%s cannot be used: expected ABI %u, found %u: use the same shmcow release in all processes, "
                     "or destroy the store with the release that made it", path, SHMCOW_ABI, self->identity.abi);
    else
        PyErr_Format(class, "%s cannot be used: %s: remove it, or use another name", path, shmcow_problem_text(problem));
    Py_DECREF(class);
    return -1;
}

static int read_header(core_state *state, store_object *self, const char *path)
{
    struct stat st;
    void *at = NULL;
    int fd = shmcow_open_regular(path, O_RDONLY, &st);
    if (fd == -ENOENT) {
        PyObject *class = PyObject_GetAttrString(state->errors, "StoreNotFoundError");
        if (class != NULL)
            PyErr_Format(class, "there is no store %s (no %s): has its writer been started?",
                         strstr(path, "shmcow.") ? strstr(path, "shmcow.") + strlen("shmcow.") : path, path);
        Py_XDECREF(class);
        return -1;
    }
    if (fd < 0) {
        core_fail(state, fd, "opening", path, 0);
        return -1;
    }
    ssize_t n = pread(fd, &self->identity, sizeof self->identity, 0);
    int r = n < 0 ? -errno : 0;
    if (r == 0 && check_header(state, self, path, n == sizeof self->identity ? (uint64_t)st.st_size : 0) < 0) {
        close(fd);
        return -1;
    }
    if (r == 0)
        r = shmcow_map(fd, sizeof(shmcow_header), false, &at);
    close(fd);
    if (r < 0) {
        core_fail(state, r, "mapping", path, 0);
        return -1;
    }
    self->h = at;
    self->dev = st.st_dev;
    self->ino = st.st_ino;
    self->uid = st.st_uid;
    self->gid = st.st_gid;
    return 0;
}

static int name_objects(core_state *state, store_object *self, const char *path)
{
    char tail[2 * SHMCOW_EPOCH_BYTES + 3] = ".";
    size_t name_bytes = self->identity.name_bytes;
    size_t path_bytes = strlen(path);
    for (size_t k = 0; k < SHMCOW_EPOCH_BYTES; k++)
        snprintf(tail + 1 + 2 * k, 3, "%02x", self->identity.epoch[k]);
    tail[sizeof tail - 2] = '.';
    if (path_bytes <= name_bytes || path[path_bytes - name_bytes - 1] != '.' ||
        memcmp(path + path_bytes - name_bytes, self->identity.name, name_bytes) != 0) {
        PyObject *class = PyObject_GetAttrString(state->errors, "IncompatibleStoreError");
        PyObject *name = core_text(self->identity.name, name_bytes);
        if (class != NULL && name != NULL)
            PyErr_Format(class, "%s is the header of the store %U: was it moved? move it back, or remove it", path, name);
        Py_XDECREF(class);
        Py_XDECREF(name);
        return -1;
    }
    self->path = core_join(path, "");
    self->prefix = self->path ? core_join(path, tail) : NULL;
    return self->prefix ? 0 : -1;
}

static PyObject *store_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    core_state *state = PyType_GetModuleState(type);
    const char *path;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "s", &path))
        return NULL;
    store_object *self = (store_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->claim = shmcow_fd_take();
    if (self->claim == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    if (read_header(state, self, path) < 0 || name_objects(state, self, path) < 0)
        goto fail;
    self->serial = ++attaches;
    return (PyObject *)self;
fail:
    Py_DECREF(self);
    return NULL;
}

static void store_dealloc(store_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)self);
    shmcow_fd_release(self->claim);
    if (self->h != NULL)
        munmap((void *)(uintptr_t)self->h, sizeof(shmcow_header));
    PyMem_Free(self->marks);
    PyMem_Free(self->prefix);
    PyMem_Free(self->path);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

/* ---- Store: methods ---- */

PyDoc_STRVAR(hold_doc, "hold(version=0) -> Hold\n\nHold a version (0: the current one): mark it and map its segments.");
static PyObject *store_hold(store_object *self, PyObject *args)
{
    unsigned long long version = 0;
    if (!PyArg_ParseTuple(args, "|K", &version))
        return NULL;
    return core_hold(self, core_state_of((PyObject *)self), version);
}

/* A marker on one of the versions `first` to `last`: its version, 0 for none, or -1 with an exception set. */
static long long find_marked(store_object *self, uint64_t first, uint64_t last, bool seen)
{
    struct stat st;
    uint64_t base = seen ? SHMCOW_SEEN_AT : SHMCOW_HELD_AT, found = 0;
    char *path = object_path(self, "holds");
    if (path == NULL)
        return -1;
    int fd = shmcow_open_regular(path, O_RDONLY, &st); /* a description of its own: GETLK never reports one's own locks */
    PyMem_Free(path);
    if (fd == -ENOENT) /* nobody can have marked what is not there */
        return 0;
    int r = fd;
    if (fd >= 0) {
        r = shmcow_test_bytes(fd, base + first, last - first + 1, &found);
        close(fd);
    }
    if (r < 0) {
        core_fail(core_state_of((PyObject *)self), r, "testing a marker of", self->path, last);
        return -1;
    }
    return r ? (long long)(found - base) : 0;
}

PyDoc_STRVAR(marked_doc, "marked(version, seen=False) -> bool\n\nWhether any process, this one included, holds (or has seen) a version.");
static PyObject *store_marked(store_object *self, PyObject *args)
{
    unsigned long long version;
    int seen = 0;
    if (!PyArg_ParseTuple(args, "K|p", &version, &seen))
        return NULL;
    version &= SHMCOW_VERSION_MAX;
    long long found = find_marked(self, version, version, seen);
    return found < 0 ? NULL : PyBool_FromLong(found != 0);
}

PyDoc_STRVAR(marked_below_doc, "marked_below(version, seen=False) -> int\n\n"
                               "Some version below this one that any process, this one included, holds (or has seen); 0 for none.");
static PyObject *store_marked_below(store_object *self, PyObject *args)
{
    unsigned long long version;
    int seen = 0;
    if (!PyArg_ParseTuple(args, "K|p", &version, &seen))
        return NULL;
    version &= SHMCOW_VERSION_MAX;
    long long found = version > 1 ? find_marked(self, 1, version - 1, seen) : 0;
    return found < 0 ? NULL : PyLong_FromLongLong(found);
}

PyDoc_STRVAR(named_doc, "named() -> bool\n\nWhether the header's name still leads to this store, not removed or replaced from outside.");
static PyObject *store_named(store_object *self, PyObject *ignored)
{
    (void)ignored;
    int r = shmcow_same_file(self->path, self->dev, self->ino);
    return PyBool_FromLong(r != 0 && r != -ENOENT); /* who cannot look does not know of a removal: nothing is ended for it */
}

PyDoc_STRVAR(refresh_doc, "refresh_claims() -> None\n\nMark again whatever is held, after a fork or when the descriptor was closed.");
static PyObject *store_refresh(store_object *self, PyObject *ignored)
{
    (void)ignored;
    core_refresh(self);
    Py_RETURN_NONE;
}

/* What generation i says: false if it is free, or was reclaimed while we looked. */
static bool look_at(const store_object *self, uint32_t i, uint64_t *word, shmcow_entry *entry, bool *whole)
{
    *word = shmcow_load_word(self->h, i);
    if (shmcow_word_state(*word) == SHMCOW_FREE)
        return false;
    shmcow_load_entry(self->h, i, entry);
    /* SYNC copy: behind the fence in shmcow_load_entry, as in shmcow_hold_one */
    uint64_t again = atomic_load_explicit(&self->h->words[i], memory_order_relaxed);
    *whole = shmcow_check_entry(&core_crc, entry, shmcow_word_version(*word)) == SHMCOW_FINE;
    return shmcow_word_version(again) == shmcow_word_version(*word) && shmcow_word_state(again) != SHMCOW_FREE;
}

PyDoc_STRVAR(generations_doc, "generations() -> list[tuple[int, int, dict | None]]\n\n"
                              "(version, state, entry) of every generation that is not free; None: a damaged entry.");
static PyObject *store_generations(store_object *self, PyObject *ignored)
{
    (void)ignored;
    core_state *state = core_state_of((PyObject *)self);
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < SHMCOW_GENERATIONS; i++) {
        shmcow_entry entry;
        uint64_t word;
        bool whole;
        if (!look_at(self, i, &word, &entry, &whole))
            continue;
        PyObject *row = Py_BuildValue("(KIN)", (unsigned long long)shmcow_word_version(word), shmcow_word_state(word),
                                      whole ? core_entry_dict(state, &entry) : Py_NewRef(Py_None));
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

PyDoc_STRVAR(entry_doc, "entry() -> dict | None\n\n"
                        "What the current version's entry says; None: there is none, or it is damaged. Nothing is held.");
static PyObject *store_entry(store_object *self, PyObject *ignored)
{
    (void)ignored;
    uint64_t current = shmcow_load_current(self->h), word;
    uint32_t i = shmcow_index_of(current);
    shmcow_entry entry;
    bool whole;
    if (current == 0 || current == SHMCOW_DESTROYED || i >= SHMCOW_GENERATIONS || !look_at(self, i, &word, &entry, &whole) ||
        !whole || entry.version != shmcow_version_of(current))
        Py_RETURN_NONE;
    return core_entry_dict(core_state_of((PyObject *)self), &entry);
}

PyDoc_STRVAR(counters_doc, "counters() -> list[int]\n\nThe store's counters, in the order of the layout header.");
static PyObject *store_counters(store_object *self, PyObject *ignored)
{
    (void)ignored;
    PyObject *list = PyList_New(SHMCOW_COUNTERS);
    for (int k = 0; list != NULL && k < SHMCOW_COUNTERS; k++) {
        PyObject *n = PyLong_FromUnsignedLongLong(atomic_load_explicit(&self->h->counters[k], memory_order_relaxed));
        if (n == NULL || PyList_SetItem(list, k, n) < 0)
            Py_CLEAR(list);
    }
    return list;
}

PyDoc_STRVAR(feed_doc, "feed() -> dict | None\n\n"
                       "What the process that feeds the store said last; None: it was never fed. CorruptSegmentError: damaged.");
static PyObject *store_feed(store_object *self, PyObject *ignored)
{
    (void)ignored;
    return core_feed_state(self, core_state_of((PyObject *)self));
}

PyDoc_STRVAR(feeding_doc, "feeding() -> bool\n\n"
                          "Whether any process, this one included, has the feed lock. NotOwnerError: only the owner may look.");
static PyObject *store_feeding(store_object *self, PyObject *ignored)
{
    (void)ignored;
    int r = core_feeding(self);
    if (r < 0)
        return core_fail(core_state_of((PyObject *)self), r, "looking at the feed lock of", self->path, 0);
    return PyBool_FromLong(r);
}

static PyObject *get_word(store_object *self, void *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLongLong(shmcow_load_current(self->h));
}

static PyObject *get_version(store_object *self, void *ignored)
{
    (void)ignored;
    uint64_t now = shmcow_load_current(self->h);
    if (now == SHMCOW_DESTROYED)
        return core_fail(core_state_of((PyObject *)self), SHMCOW_ENDED, "reading", self->path, 0);
    return PyLong_FromUnsignedLongLong(shmcow_version_of(now));
}

enum { GET_SERIAL, GET_UID, GET_GID, GET_MODE, GET_CREATED, GET_RETAIN, GET_MAX_TOTAL, GET_LOCK_PID, GET_REFUSED, GET_BYTES };

static PyObject *get_number(store_object *self, void *which)
{
    unsigned long long value = 0;
    switch ((intptr_t)which) {
    case GET_SERIAL: value = self->serial; break;
    case GET_UID: value = self->uid; break;
    case GET_GID: value = self->gid; break;
    case GET_MODE: value = self->identity.mode; break;
    case GET_CREATED: value = self->identity.created_ns; break;
    case GET_RETAIN: value = atomic_load_explicit(&self->h->retain, memory_order_relaxed); break;
    case GET_MAX_TOTAL: value = atomic_load_explicit(&self->h->max_total_bytes, memory_order_relaxed); break;
    case GET_LOCK_PID: value = atomic_load_explicit(&self->h->lock_pid, memory_order_relaxed); break;
    case GET_REFUSED: value = (unsigned long long)self->refused; break;
    case GET_BYTES: value = shmcow_total_bytes(self->h); break;
    default: break;
    }
    return PyLong_FromUnsignedLongLong(value);
}

static PyObject *get_text(store_object *self, void *which)
{
    if (which == NULL)
        return core_text(self->identity.name, self->identity.name_bytes);
    return PyUnicode_DecodeFSDefault((intptr_t)which == 1 ? self->path : self->prefix);
}

static PyObject *get_epoch(store_object *self, void *ignored)
{
    (void)ignored;
    return PyBytes_FromStringAndSize((const char *)self->identity.epoch, SHMCOW_EPOCH_BYTES);
}

static PyMethodDef store_methods[] = {
    {"hold", (PyCFunction)store_hold, METH_VARARGS, hold_doc},
    {"marked", (PyCFunction)store_marked, METH_VARARGS, marked_doc},
    {"marked_below", (PyCFunction)store_marked_below, METH_VARARGS, marked_below_doc},
    {"named", (PyCFunction)store_named, METH_NOARGS, named_doc},
    {"refresh_claims", (PyCFunction)store_refresh, METH_NOARGS, refresh_doc},
    {"generations", (PyCFunction)store_generations, METH_NOARGS, generations_doc},
    {"entry", (PyCFunction)store_entry, METH_NOARGS, entry_doc},
    {"counters", (PyCFunction)store_counters, METH_NOARGS, counters_doc},
    {"feed", (PyCFunction)store_feed, METH_NOARGS, feed_doc},
    {"feeding", (PyCFunction)store_feeding, METH_NOARGS, feeding_doc},
    {NULL, NULL, 0, NULL},
};

#define NUMBER(name, which, doc) {name, (getter)get_number, NULL, doc, (void *)(intptr_t)(which)}
static PyGetSetDef store_getset[] = {
    {"name", (getter)get_text, NULL, "the store's name", NULL},
    {"path", (getter)get_text, NULL, "the header's path", (void *)1},
    {"prefix", (getter)get_text, NULL, "what the paths of all other objects begin with", (void *)2},
    {"epoch", (getter)get_epoch, NULL, "16 random bytes, new at each creation", NULL},
    {"word", (getter)get_word, NULL, "the current word as it is", NULL},
    {"version", (getter)get_version, NULL, "the current version, 0 before the first", NULL},
    NUMBER("serial", GET_SERIAL, "grows with every attach of this process"),
    NUMBER("uid", GET_UID, "the owner"),
    NUMBER("gid", GET_GID, "the group"),
    NUMBER("mode", GET_MODE, "permission bits"),
    NUMBER("created_ns", GET_CREATED, "time of creation, nanoseconds since 1970"),
    NUMBER("retain", GET_RETAIN, "older versions kept openable"),
    NUMBER("max_total_bytes", GET_MAX_TOTAL, "limit of all segments together, 0 for none"),
    NUMBER("lock_pid", GET_LOCK_PID, "who took the writer lock last: a hint"),
    NUMBER("markers_refused", GET_REFUSED, "errno if the kernel refused a marker, else 0"),
    NUMBER("total_bytes", GET_BYTES, "bytes of all segments that some generation lists"),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef store_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(store_object, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot store_slots[] = {
    {Py_tp_doc, "An attached store, read-only: Store(header_path)."},
    {Py_tp_new, store_new},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, store_methods},
    {Py_tp_getset, store_getset},
    {Py_tp_members, store_members},
    {0, NULL},
};

static PyType_Spec store_spec = {
    .name = "shmcow._core.Store",
    .basicsize = sizeof(store_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = store_slots,
};

PyTypeObject *core_make_store_type(PyObject *module)
{
    return core_add_type(module, &store_spec);
}

/* By its dealloc, which no other type has: type flags and module states of foreign objects are not ours to read. */
bool core_is_store(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return (PyType_GetFlags(type) & Py_TPFLAGS_HEAPTYPE) != 0 &&
           PyType_GetSlot(type, Py_tp_dealloc) == (void *)store_dealloc;
}
