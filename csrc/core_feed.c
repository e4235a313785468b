/* shmcow._core.FeedCore: the feed lock, and the feed's state in the header.
 *
 * Purpose     Exactly one process at a time feeds a store from a source; what it says of that is in the header.
 * Invariants  1. The feed lock is a write lock on the byte SHMCOW_FEED_AT of the lock file, on a description of its own,
 *                kept while the follower runs: the kernel drops it, however the process ends. It is not the writer lock:
 *                who feeds publishes as every other writer does.
 *             2. Only who has the feed lock writes the state, so one slot is always whole (PROTOCOL.md, "The feed").
 */
#include "core.h"

typedef struct {
    PyObject_HEAD
    store_object *store;
    core_map map;
    shmcow_fd *lock;
    uint32_t taken_forks;
    bool taken;
} feed_object;

/* ---- reading: for whoever may read the header ---- */

PyObject *core_feed_state(store_object *store, core_state *state)
{
    shmcow_feed feed;
    int r = shmcow_load_feed(store->h, &core_crc, &feed);
    if (r == SHMCOW_EMPTY)
        Py_RETURN_NONE;
    if (r < 0) {
        PyObject *class = PyObject_GetAttrString(state->errors, "CorruptSegmentError");
        if (class != NULL)
            PyErr_Format(class, "the feed's state in %s is damaged: restart its follower, which writes it anew", store->path);
        Py_XDECREF(class);
        return NULL;
    }
    return Py_BuildValue(
        "{sKsKsKsKsKsKsKsKsKsIsIsNsN}", "started_ns", (unsigned long long)feed.started_ns, "every_ns",
        (unsigned long long)feed.every_ns, "contact_ns", (unsigned long long)feed.contact_ns, "success_ns",
        (unsigned long long)feed.success_ns, "failed_ns", (unsigned long long)feed.failed_ns, "contacts",
        (unsigned long long)feed.contacts, "publishes", (unsigned long long)feed.publishes, "failures",
        (unsigned long long)feed.failures, "failures_in_a_row", (unsigned long long)feed.failures_in_a_row, "pid",
        feed.pid, "uid", feed.uid, "source", core_text(feed.source, sizeof feed.source), "error",
        core_text(feed.error, sizeof feed.error));
}

/* Has anybody the feed lock? 1, 0, or -errno. */
int core_feeding(const store_object *store)
{
    struct stat st;
    char *path = core_join(store->prefix, "lock");
    if (path == NULL) {
        PyErr_Clear();
        return -ENOMEM;
    }
    int fd = shmcow_open_regular(path, O_RDONLY, &st); /* a description of its own: GETLK never reports one's own locks */
    PyMem_Free(path);
    if (fd < 0)
        return fd == -ENOENT ? 0 : fd;
    int r = shmcow_test_byte(fd, SHMCOW_FEED_AT);
    close(fd);
    return r;
}

/* ---- the follower ---- */

static PyObject *feed_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    core_state *state = PyType_GetModuleState(type);
    PyObject *store;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!", state->store_type, &store))
        return NULL;
    feed_object *self = (feed_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->store = (store_object *)Py_NewRef(store);
    self->lock = shmcow_fd_take();
    if (self->lock == NULL) {
        Py_DECREF((PyObject *)self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void feed_dealloc(feed_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    shmcow_fd_release(self->lock); /* the last close of the description drops the lock */
    if (self->map.h != NULL)       /* after the release: no child hides what is unmapped */
        munmap(self->map.h, sizeof(shmcow_header));
    Py_XDECREF((PyObject *)self->store);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

/* In this very process, and not closed by a daemonizer. */
static bool is_taken(const feed_object *self)
{
    return self->taken && self->taken_forks == shmcow_forks() && shmcow_fd_valid(self->lock);
}

PyDoc_STRVAR(take_doc, "take() -> bool\n\n"
                       "Take the feed lock, once; False: somebody else has it. FileNotFoundError if its file is gone.");
static PyObject *feed_take(feed_object *self, PyObject *ignored)
{
    (void)ignored;
    if (is_taken(self))
        Py_RETURN_TRUE;
    int r = core_ready_map(self->store, self->lock, &self->map);
    while (r >= 0) {
        r = core_ready_fd(self->store, self->lock, "lock", O_RDWR);
        if (r < 0)
            break;
        r = shmcow_lock_byte(atomic_load(&self->lock->fd), F_WRLCK, SHMCOW_FEED_AT);
        if (r == -EAGAIN || r == -EACCES)
            Py_RETURN_FALSE;
        if (r < 0)
            break;
        /* the name may have gone, or been made anew, between open and lock: then this lock excludes nobody */
        uint64_t ino = self->lock->ino;
        r = core_ready_fd(self->store, self->lock, "lock", O_RDWR);
        if (r == 0 && self->lock->ino == ino) {
            self->taken = true;
            self->taken_forks = shmcow_forks();
            Py_RETURN_TRUE;
        }
        if (r < 0)
            shmcow_fd_close(self->lock); /* and with it the lock */
    }
    return core_fail(core_state_of((PyObject *)self), r, "taking the feed lock of", self->store->path, 0);
}

static bool take_text(char *to, size_t room, const char *from, Py_ssize_t length)
{
    if ((size_t)length > room) {
        PyErr_SetString(PyExc_ValueError, "a text is longer than its place in the feed's state");
        return false;
    }
    memcpy(to, from, (size_t)length);
    return true;
}

PyDoc_STRVAR(show_doc, "show(times, counts, source, error) -> None\n\n"
                       "Write the feed's state (feed lock held). times: (started, every, contact, success, failed) in\n"
                       "nanoseconds, counts: (contacts, publishes, failures, failures in a row), texts: bytes.");
static PyObject *feed_show(feed_object *self, PyObject *args)
{
    unsigned long long t[5], n[4];
    const char *source, *error;
    Py_ssize_t source_bytes, error_bytes;
    shmcow_feed feed = {0};
    if (!PyArg_ParseTuple(args, "(KKKKK)(KKKK)y#y#", &t[0], &t[1], &t[2], &t[3], &t[4], &n[0], &n[1], &n[2], &n[3],
                          &source, &source_bytes, &error, &error_bytes) ||
        !take_text(feed.source, sizeof feed.source, source, source_bytes) ||
        !take_text(feed.error, sizeof feed.error, error, error_bytes))
        return NULL;
    if (!is_taken(self))
        return PyErr_Format(PyExc_RuntimeError, "the feed lock is not held by this process");
    feed.started_ns = t[0];
    feed.every_ns = t[1];
    feed.contact_ns = t[2];
    feed.success_ns = t[3];
    feed.failed_ns = t[4];
    feed.contacts = n[0];
    feed.publishes = n[1];
    feed.failures = n[2];
    feed.failures_in_a_row = n[3];
    feed.pid = (uint32_t)getpid();
    feed.uid = (uint32_t)geteuid();
    shmcow_show_feed(self->map.h, &core_crc, &feed);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(release_doc, "release() -> None\n\nGive the feed lock back; in a forked child, nothing: the lock is the parent's.");
static PyObject *feed_release(feed_object *self, PyObject *ignored)
{
    (void)ignored;
    if (is_taken(self))
        shmcow_fd_close(self->lock); /* it has no other lock, and a close cannot fail to drop it */
    self->taken = false;
    Py_RETURN_NONE;
}

static PyObject *feed_get_taken(feed_object *self, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(is_taken(self));
}

static PyMethodDef feed_methods[] = {
    {"take", (PyCFunction)feed_take, METH_NOARGS, take_doc},
    {"show", (PyCFunction)feed_show, METH_VARARGS, show_doc},
    {"release", (PyCFunction)feed_release, METH_NOARGS, release_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef feed_getset[] = {
    {"taken", (getter)feed_get_taken, NULL, "whether this very process has the feed lock through this object", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot feed_slots[] = {
    {Py_tp_doc, "The feed of an attached store: FeedCore(store)."},
    {Py_tp_new, feed_new},
    {Py_tp_dealloc, feed_dealloc},
    {Py_tp_methods, feed_methods},
    {Py_tp_getset, feed_getset},
    {0, NULL},
};

static PyType_Spec feed_spec = {
    .name = "shmcow._core.FeedCore",
    .basicsize = sizeof(feed_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = feed_slots,
};

PyTypeObject *core_make_feed_type(PyObject *module)
{
    return core_add_type(module, &feed_spec);
}
