/* shmcow._core.WriterCore: the writable side of an attached store, and the writer lock.
 *
 * The protocol runs in C. The names of segments are made and unlinked by Python (shmcow/segments.py, posix_ipc), called
 * back as segments.make(name) -> object with .fd, and segments.unlink_segment(name, uid) -> errno. Both may raise; what they
 * raise passes through, and the protocol leaves nothing behind.
 */
#include "core.h"

typedef struct {
    PyObject_HEAD
    store_object *store;
    PyObject *segments; /* the module shmcow.segments */
    core_map map;
    shmcow_fd *lock;
    shmcow_fd *test; /* markers are tested on a description of its own: GETLK never reports one's own locks */
    uint32_t locked_forks;
    bool locked;
    /* during one publish: */
    shmcow_entry *entry;
    core_filling *fillings;
} writer_object;

/* ---- what the protocol needs of the world (shmcow_writer_ops) ---- */

static int op_marked(void *ctx, uint64_t version)
{
    writer_object *self = ctx;
    return shmcow_test_byte(atomic_load(&self->test->fd), SHMCOW_HELD_AT + version);
}

/* A segment's name as shm_open() wants it: with one slash. */
static PyObject *segment_name(const writer_object *self, uint64_t segment)
{
    return PyUnicode_FromFormat("%s%llu", strrchr(self->store->prefix, '/'), (unsigned long long)segment);
}

/* An OSError that says ENOSPC is an answer; anything else passes through. */
static int take_no_space(void)
{
    PyObject *type, *value, *trace;
    int error = ECANCELED;
    if (!PyErr_ExceptionMatches(PyExc_OSError))
        return -error;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *number = PyObject_GetAttrString(value, "errno");
    if (number != NULL && number != Py_None)
        error = (int)PyLong_AsLong(number);
    Py_XDECREF(number);
    PyErr_Clear();
    if (error != ENOSPC) {
        PyErr_Restore(type, value, trace);
        return -ECANCELED;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return -ENOSPC;
}

/* Python ran, and a signal handler may have forked: the child must not go on with its parent's turn. */
static int still_ours(const writer_object *self)
{
    if (self->locked_forks == shmcow_forks())
        return 0;
    if (!PyErr_Occurred()) {
        PyObject *class = PyObject_GetAttrString(core_state_of((PyObject *)self)->errors, "WriterBusyError");
        if (class != NULL)
            PyErr_SetString(class, "this process was forked inside publish: the writer lock is the parent's, and only "
                                   "the parent publishes");
        Py_XDECREF(class);
    }
    return -ECANCELED;
}

/* posix_ipc's exceptions into ours. */
static void translate(writer_object *self, PyObject *name)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *ours = PyObject_CallMethod(self->segments, "translated", "OO", value, name);
    if (ours != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(ours), ours);
    Py_XDECREF(ours);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

static int op_unlink(void *ctx, uint64_t segment);

/* Make the file of a segment, and take its descriptor over. */
static int make_file(writer_object *self, core_filling *filling, uint64_t segment)
{
    PyObject *name = segment_name(self, segment);
    if (name == NULL)
        return -ECANCELED;
    /* C calls C (a functools.partial of posix_ipc's type): no signal handler can run between shm_open() and the line
       that takes the descriptor over, and lose it */
    PyObject *object = PyObject_CallMethodObjArgs(self->segments, core_known.make, name, NULL);
    if (object == NULL)
        translate(self, name);
    Py_DECREF(name);
    if (object == NULL)
        return take_no_space();
    int fd = core_take_fd(object);
    Py_DECREF(object);
    if (fd < 0)
        return -ECANCELED; /* the protocol drops what is listed, and with it the file */
    int r = core_fill_begin(filling, fd);
    if (r == 0)
        r = core_fill_give(filling, self->store, core_state_of((PyObject *)self));
    if (r < 0) { /* after -ENOSPC the protocol comes again, and must find the name free */
        core_fill_end(filling);
        (void)op_unlink(self, segment);
    }
    return r;
}

/* A fork in C, in a thread that lacks the interpreter lock, may have copied the descriptor before the list knew of it:
   such a child would keep the segment's memory for its whole life. Of an empty file there is nothing to keep. */
static int make_unshared(writer_object *self, core_filling *filling, uint64_t segment)
{
    for (int attempt = 0;; attempt++) {
        uint64_t stamp = shmcow_fork_stamp();
        int r = make_file(self, filling, segment);
        if (r < 0 || shmcow_no_fork_since(stamp) || attempt == 100)
            return r;
        core_fill_end(filling);
        r = op_unlink(self, segment);
        if (r < 0)
            return r;
    }
}

static int op_fill(void *ctx, uint32_t part, uint64_t segment)
{
    writer_object *self = ctx;
    core_filling *filling = &self->fillings[part];
    int r = filling->node == NULL ? make_unshared(self, filling, segment) : 0;
    if (r == 0)
        r = still_ours(self);
    if (r == 0)
        r = core_fill(filling, self->store, &self->entry->segments[part]);
    if (r == -ENOSPC)
        return r; /* keeps what is written: the protocol makes room and comes again */
    core_fill_end(filling);
    return r < 0 ? r : still_ours(self);
}

static int op_unlink(void *ctx, uint64_t segment)
{
    writer_object *self = ctx;
    PyObject *type, *value, *trace;
    if (still_ours(self) < 0)
        return -ECANCELED;
    PyErr_Fetch(&type, &value, &trace); /* cleaning up after an exception must not lose it */
    PyObject *name = segment_name(self, segment), *owner = PyLong_FromLong((long)self->store->uid), *done = NULL;
    if (name != NULL && owner != NULL)
        done = PyObject_CallMethodObjArgs(self->segments, core_known.unlink_segment, name, owner, NULL);
    long error = done != NULL ? PyLong_AsLong(done) : ECANCELED;
    Py_XDECREF(name);
    Py_XDECREF(owner);
    Py_XDECREF(done);
    if (error < 0 || error > 4095)
        error = ECANCELED;
    if (type != NULL)
        PyErr_Restore(type, value, trace);
    return error != 0 ? -(int)error : still_ours(self);
}

static void op_wake(void *ctx)
{
    shmcow_futex_wake(((writer_object *)ctx)->map.h);
}

static const shmcow_writer_ops writer_ops = {op_marked, op_fill, op_unlink, op_wake};

/* ---- create and destroy the object ---- */

/* Have the header mapped for writing, in this very process: a forked child has lost its parent's map (hide_map). */
int core_ready_map(const store_object *store, shmcow_fd *node, core_map *map)
{
    struct stat st;
    void *at = NULL;
    if (map->h != NULL && map->forks == shmcow_forks())
        return 0;
    int fd = shmcow_open_regular(store->path, O_RDWR, &st);
    if (fd < 0)
        return fd == -ENOENT ? SHMCOW_ENDED : fd;
    int r = st.st_dev != store->dev || st.st_ino != store->ino ? SHMCOW_ENDED
            : st.st_size != (off_t)sizeof(shmcow_header)       ? SHMCOW_CORRUPT
                                                         : shmcow_map(fd, sizeof(shmcow_header), true, &at);
    close(fd);
    if (r < 0)
        return r;
    if (map->h != NULL)
        munmap(map->h, sizeof(shmcow_header));
    map->h = at;
    map->forks = shmcow_forks();
    node->map_bytes = sizeof(shmcow_header);
    atomic_store(&node->map, at); /* SYNC node: release; pairs with the exchange in hide_map */
    return 0;
}

static int ready_map(writer_object *self)
{
    return core_ready_map(self->store, self->lock, &self->map);
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    core_state *state = PyType_GetModuleState(type);
    PyObject *store, *segments;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!O", state->store_type, &store, &segments))
        return NULL;
    writer_object *self = (writer_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->store = (store_object *)Py_NewRef(store);
    self->segments = Py_NewRef(segments);
    self->lock = shmcow_fd_take();
    self->test = shmcow_fd_take();
    int r = self->lock != NULL && self->test != NULL ? ready_map(self) : -ENOMEM;
    if (r < 0) {
        core_fail(state, r, "opening for writing", self->store->path, 0);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void writer_dealloc(writer_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    shmcow_fd_release(self->lock); /* the last close of the description drops the lock */
    shmcow_fd_release(self->test);
    if (self->map.h != NULL) /* after the release: no child hides what is unmapped */
        munmap(self->map.h, sizeof(shmcow_header));
    Py_XDECREF((PyObject *)self->store);
    Py_XDECREF(self->segments);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

/* ---- the writer lock ---- */

/* Have `node` open on the file that has the name now. */
int core_ready_fd(const store_object *store, shmcow_fd *node, const char *object, int flags)
{
    char *path = core_join(store->prefix, object);
    if (path == NULL)
        return -ENOMEM;
    int r = shmcow_fd_valid(node) ? shmcow_same_file(path, node->dev, node->ino) : 0;
    if (r == 0)
        r = shmcow_fd_open(node, path, flags);
    PyMem_Free(path);
    return r < 0 ? r : 0;
}

static bool still_there(writer_object *self, const shmcow_fd *node, const char *object)
{
    char path[PATH_MAX];
    size_t prefix = strlen(self->store->prefix), rest = strlen(object) + 1;
    if (prefix + rest > sizeof path)
        return false;
    memcpy(path, self->store->prefix, prefix);
    memcpy(path + prefix, object, rest);
    return shmcow_same_file(path, node->dev, node->ino) == 1;
}

static void now_locked(writer_object *self)
{
    self->locked = true;
    self->locked_forks = shmcow_forks();
    atomic_store_explicit(&self->map.h->lock_pid, (uint64_t)getpid(), memory_order_relaxed);
}

PyDoc_STRVAR(try_lock_doc, "try_lock() -> bool\n\nTry to take the writer lock, once. FileNotFoundError if its file is gone.");
static PyObject *writer_try_lock(writer_object *self, PyObject *ignored)
{
    (void)ignored;
    int r = ready_map(self);
    while (r >= 0) {
        r = core_ready_fd(self->store, self->lock, "lock", O_RDWR);
        if (r < 0)
            break;
        r = shmcow_lock_byte(atomic_load(&self->lock->fd), F_WRLCK, SHMCOW_WRITER_AT);
        if (r == -EAGAIN || r == -EACCES)
            Py_RETURN_FALSE;
        if (r < 0)
            break;
        SHMCOW_STEP("lock.taken");
        /* the name may have gone, or been made anew, between open and lock: then this lock excludes nobody */
        uint64_t ino = self->lock->ino;
        r = core_ready_fd(self->store, self->lock, "lock", O_RDWR);
        if (r == 0 && self->lock->ino == ino) {
            now_locked(self);
            Py_RETURN_TRUE;
        }
        if (r < 0) {
            shmcow_fd_close(self->lock); /* and with it the lock */
            break;
        }
    }
    return core_fail(core_state_of((PyObject *)self), r, "taking the writer lock", self->store->path, 0);
}

static bool holds_lock(const writer_object *self)
{
    return self->locked && self->locked_forks == shmcow_forks();
}

static void let_go_of_lock(writer_object *self)
{
    /* even an unlock can fail (ENOLCK): then the last close of the description drops the lock */
    if (holds_lock(self) && shmcow_fd_valid(self->lock) &&
        shmcow_lock_byte(atomic_load(&self->lock->fd), F_UNLCK, SHMCOW_WRITER_AT) < 0)
        shmcow_fd_close(self->lock);
    self->locked = false;
}

void core_give_back_lock(PyObject *writer)
{
    core_state *state = core_state_of(writer);
    if (state != NULL && Py_TYPE(writer) == state->writer_type)
        let_go_of_lock((writer_object *)writer);
}

/* The ordinary case of recover: nobody died, and there is nothing to do. */
static bool at_rest(const shmcow_header *h)
{
    unsigned odd = 0;
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        unsigned state = shmcow_word_state(shmcow_load_word(h, i));
        odd |= (unsigned)(state != SHMCOW_FREE && state != SHMCOW_HELD);
    }
    return !odd;
}

PyDoc_STRVAR(enter_doc, "enter() -> bool\n\n"
                        "Take the writer lock if it is free and everything is where it was at the last turn: "
                        "descriptors, names, the store, nothing to recover. False: nothing is taken, and why is for "
                        "others to find out.");
static PyObject *writer_enter(writer_object *self, PyObject *ignored)
{
    (void)ignored;
    if (ready_map(self) < 0 || !shmcow_fd_valid(self->lock) ||
        shmcow_lock_byte(atomic_load(&self->lock->fd), F_WRLCK, SHMCOW_WRITER_AT) < 0)
        Py_RETURN_FALSE;
    SHMCOW_STEP("lock.taken");
    now_locked(self);
    /* all of it after the lock: whoever takes a name away by the rules holds the lock meanwhile */
    if (still_there(self, self->lock, "lock") && shmcow_fd_valid(self->test) && still_there(self, self->test, "holds") &&
        shmcow_same_file(self->store->path, self->store->dev, self->store->ino) == 1 &&
        shmcow_load_current(self->map.h) != SHMCOW_DESTROYED && at_rest(self->map.h))
        Py_RETURN_TRUE;
    let_go_of_lock(self);
    Py_RETURN_FALSE;
}

PyDoc_STRVAR(unlock_doc, "unlock() -> None\n\nRelease the writer lock; in a forked child, nothing: the lock is the parent's.");
static PyObject *writer_unlock(writer_object *self, PyObject *ignored)
{
    (void)ignored;
    let_go_of_lock(self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(ready_doc, "ready_holds() -> bool\n\nOpen the holds file for tests. False if it is gone.");
static PyObject *writer_ready_holds(writer_object *self, PyObject *ignored)
{
    (void)ignored;
    int r = core_ready_fd(self->store, self->test, "holds", O_RDONLY);
    if (r == -ENOENT)
        Py_RETURN_FALSE;
    struct stat st;
    mode_t mode = self->store->identity.mode & 0444;
    int fd = atomic_load(&self->test->fd);
    /* whoever made it anew may have died before it gave it its permissions: then readers could not mark */
    if (r == 0 && fstat(fd, &st) == 0 && (st.st_mode & 0777) != mode && fchmod(fd, mode) < 0)
        r = -errno;
    if (r < 0)
        return core_fail(core_state_of((PyObject *)self), r, "opening the holds file of", self->store->path, 0);
    Py_RETURN_TRUE;
}

/* ---- the protocol's verbs ---- */

static bool may_write(const writer_object *self)
{
    bool may = holds_lock(self) && shmcow_fd_valid(self->lock); /* a daemonizer may have closed it in mid-turn */
    if (!may && (!self->locked || still_ours(self) == 0))
        PyErr_SetString(PyExc_RuntimeError, "the writer lock is not held by this process");
    return may;
}

static PyObject *answer(writer_object *self, int result, const char *doing, unsigned long long version)
{
    if (result < 0 || PyErr_Occurred())
        return core_fail(core_state_of((PyObject *)self), result, doing, self->store->path, version);
    return PyLong_FromLong(result);
}

PyDoc_STRVAR(recover_doc, "recover() -> int\n\nFinish or undo what dead writers left. -> generations repaired");
static PyObject *writer_recover(writer_object *self, PyObject *ignored)
{
    (void)ignored;
    if (!may_write(self))
        return NULL;
    return answer(self, shmcow_recover(self->map.h, &writer_ops, self), "recovering", 0);
}

PyDoc_STRVAR(reclaim_doc, "reclaim(keep) -> int\n\nReclaim unheld versions beyond the `keep` newest older ones. -> how many");
static PyObject *writer_reclaim(writer_object *self, PyObject *args)
{
    unsigned long long keep;
    if (!PyArg_ParseTuple(args, "K", &keep) || !may_write(self))
        return NULL;
    return answer(self, shmcow_reclaim(self->map.h, &writer_ops, self, keep), "reclaiming versions of", 0);
}

PyDoc_STRVAR(discard_doc, "discard(version, force=False) -> int\n\n"
                          "Reclaim one older version now. 0: somebody holds it. With `force` its names go all the same.");
static PyObject *writer_discard(writer_object *self, PyObject *args)
{
    unsigned long long version;
    int force = 0;
    if (!PyArg_ParseTuple(args, "K|p", &version, &force) || !may_write(self))
        return NULL;
    return answer(self, shmcow_discard(self->map.h, &writer_ops, self, version, force != 0), "reclaiming a version of", version);
}

PyDoc_STRVAR(give_notice_doc, "give_notice() -> None\n\nSay DESTROYED without the writer lock, when its file was lost: "
                              "no flip can succeed from here on.");
static PyObject *writer_give_notice(writer_object *self, PyObject *ignored)
{
    (void)ignored;
    if (ready_map(self) == 0) /* else it has no name any more, and nobody comes to it */
        shmcow_end(self->map.h, &writer_ops, self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(end_doc, "end() -> int\n\nDestroy, first half: tell everybody, and unlink all data segments.");
static PyObject *writer_end(writer_object *self, PyObject *ignored)
{
    (void)ignored;
    if (!may_write(self))
        return NULL;
    shmcow_end(self->map.h, &writer_ops, self);
    return answer(self, shmcow_unlink_all(self->map.h, &writer_ops, self), "destroying", 0);
}

static bool take_text(char *to, size_t room, const char *from, Py_ssize_t length)
{
    if ((size_t)length > room) {
        PyErr_SetString(PyExc_ValueError, "a text is longer than its place in the entry");
        return false;
    }
    memcpy(to, from, (size_t)length);
    return true;
}

/* parts: a tuple of (name, segment: 0 for a fresh one, length, crc, flags, codec, list of buffers or None) */
static bool take_parts(shmcow_entry *entry, PyObject *parts, core_filling *fillings, uint32_t *fresh)
{
    Py_ssize_t n = PyTuple_Check(parts) ? PyTuple_Size(parts) : -1;
    if (n < 1 || n > (Py_ssize_t)SHMCOW_MAX_SEGMENTS) {
        PyErr_Format(PyExc_ValueError, "a version has 1 to %u parts", SHMCOW_MAX_SEGMENTS);
        return false;
    }
    for (Py_ssize_t k = 0; k < n; k++) {
        const char *name;
        Py_ssize_t name_bytes;
        unsigned long long id, length;
        unsigned int crc, flags;
        if (!PyArg_ParseTuple(PyTuple_GetItem(parts, k), "y#KKIIyO", &name, &name_bytes, &id, &length, &crc, &flags,
                              &fillings[k].codec, &fillings[k].views) ||
            !take_text(entry->part_names[k], sizeof entry->part_names[k], name, name_bytes))
            return false;
        if (id == 0 && !PyList_Check(fillings[k].views)) {
            PyErr_SetString(PyExc_TypeError, "a fresh part has a list of buffers");
            return false;
        }
        entry->segments[k] = (shmcow_segment){.id = id, .length = length, .crc = crc, .flags = flags};
        if (id == 0)
            *fresh |= 1u << k;
    }
    entry->segment_count = (uint32_t)n;
    return true;
}

/* who and what: tuples of bytes, each with its place in the entry */
static bool take_texts(shmcow_entry *entry, PyObject *schema, PyObject *said)
{
    const char *text[6];
    Py_ssize_t length[6];
    return PyArg_ParseTuple(schema, "y#y#y#", &text[0], &length[0], &text[1], &length[1], &text[2], &length[2]) &&
           PyArg_ParseTuple(said, "y#y#y#", &text[3], &length[3], &text[4], &length[4], &text[5], &length[5]) &&
           take_text((char *)entry->fingerprint, sizeof entry->fingerprint, text[0], length[0]) &&
           take_text(entry->codec, sizeof entry->codec, text[1], length[1]) &&
           take_text(entry->type_name, sizeof entry->type_name, text[2], length[2]) &&
           take_text(entry->message, sizeof entry->message, text[3], length[3]) &&
           take_text(entry->author, sizeof entry->author, text[4], length[4]) &&
           take_text(entry->source, sizeof entry->source, text[5], length[5]);
}

PyDoc_STRVAR(publish_doc, "publish(origin, schema, said, parts) -> int\n\n"
                          "Publish a version: see shmcow_publish. schema: (fingerprint, codec, type_name), said: "
                          "(message, author, source), all bytes. -> the new version");
static PyObject *writer_publish(writer_object *self, PyObject *args)
{
    PyObject *schema, *said, *parts;
    unsigned long long origin;
    uint32_t fresh = 0;
    struct timespec now;
    shmcow_entry entry = {0};
    core_filling fillings[SHMCOW_MAX_SEGMENTS] = {0};
    if (!PyArg_ParseTuple(args, "KOOO", &origin, &schema, &said, &parts) || !take_texts(&entry, schema, said) ||
        !take_parts(&entry, parts, fillings, &fresh) || !may_write(self))
        return NULL;
    clock_gettime(CLOCK_REALTIME, &now);
    entry.origin = origin;
    entry.published_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    entry.pid = (uint32_t)getpid();
    entry.uid = (uint32_t)geteuid();
    self->entry = &entry;
    self->fillings = fillings;
    int r = shmcow_publish(self->map.h, &writer_ops, self, &core_crc, &entry, fresh, SHMCOW_DESTROYED);
    for (uint32_t k = 0; k < entry.segment_count; k++)
        core_fill_end(&fillings[k]);
    self->entry = NULL;
    self->fillings = NULL;
    if (r == SHMCOW_OK && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception))
        PyErr_WriteUnraisable((PyObject *)self); /* from tidying up after the flip: the version is published all the same */
    if (r < 0 || PyErr_Occurred())
        return core_fail(core_state_of((PyObject *)self), r, "publishing in", self->store->path, entry.version);
    return PyLong_FromUnsignedLongLong(entry.version);
}

PyDoc_STRVAR(configure_doc, "configure(retain, max_total_bytes) -> None\n\nChange the store's settings (writer lock held).");
static PyObject *writer_configure(writer_object *self, PyObject *args)
{
    unsigned long long retain, max_total_bytes;
    if (!PyArg_ParseTuple(args, "KK", &retain, &max_total_bytes) || !may_write(self))
        return NULL;
    atomic_store_explicit(&self->map.h->retain, retain, memory_order_relaxed);
    atomic_store_explicit(&self->map.h->max_total_bytes, max_total_bytes, memory_order_relaxed);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(count_doc, "count(counter, n) -> None\n\nAdd to one of the store's counters, by its place in the layout header.");
static PyObject *writer_count(writer_object *self, PyObject *args)
{
    unsigned int which;
    unsigned long long n;
    if (!PyArg_ParseTuple(args, "IK", &which, &n))
        return NULL;
    if (which < SHMCOW_COUNTERS && ready_map(self) == 0)
        atomic_fetch_add_explicit(&self->map.h->counters[which], n, memory_order_relaxed);
    Py_RETURN_NONE;
}

static PyObject *writer_get_locked(writer_object *self, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(holds_lock(self));
}

static PyMethodDef writer_methods[] = {
    {"try_lock", (PyCFunction)writer_try_lock, METH_NOARGS, try_lock_doc},
    {"enter", (PyCFunction)writer_enter, METH_NOARGS, enter_doc},
    {"unlock", (PyCFunction)writer_unlock, METH_NOARGS, unlock_doc},
    {"ready_holds", (PyCFunction)writer_ready_holds, METH_NOARGS, ready_doc},
    {"recover", (PyCFunction)writer_recover, METH_NOARGS, recover_doc},
    {"reclaim", (PyCFunction)writer_reclaim, METH_VARARGS, reclaim_doc},
    {"discard", (PyCFunction)writer_discard, METH_VARARGS, discard_doc},
    {"give_notice", (PyCFunction)writer_give_notice, METH_NOARGS, give_notice_doc},
    {"end", (PyCFunction)writer_end, METH_NOARGS, end_doc},
    {"publish", (PyCFunction)writer_publish, METH_VARARGS, publish_doc},
    {"configure", (PyCFunction)writer_configure, METH_VARARGS, configure_doc},
    {"count", (PyCFunction)writer_count, METH_VARARGS, count_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef writer_getset[] = {
    {"locked", (getter)writer_get_locked, NULL, "whether this very process holds the writer lock through this object", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_doc, "The writable side of an attached store: WriterCore(store)."},
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, writer_methods},
    {Py_tp_getset, writer_getset},
    {0, NULL},
};

static PyType_Spec writer_spec = {
    .name = "shmcow._core.WriterCore",
    .basicsize = sizeof(writer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = writer_slots,
};

PyTypeObject *core_make_writer_type(PyObject *module)
{
    return core_add_type(module, &writer_spec);
}
