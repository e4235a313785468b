/* shmcow._core.Fresh: a segment that is being made: it owns the descriptor, writes payload, padding and footer, and
 * seals.
 *
 * The file itself is made by Python (shmcow/segments.py, posix_ipc). Its descriptor is in the list that a forked child
 * closes (shmcow_os.h): a copy in a child would keep the segment's memory for the child's whole life.
 */
#include "core.h"

#include <sys/uio.h>

#ifndef SHMCOW_WRITE_MAX
#define SHMCOW_WRITE_MAX ((size_t)0x7ffff000) /* what one write() takes at most; test builds take less */
#endif
#define SHMCOW_IOVECS 64

typedef struct {
    PyObject_HEAD
    shmcow_fd *node;
    uint64_t done; /* bytes written so far: after ENOSPC it goes on from here */
} fresh_object;

static PyObject *fresh_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct stat st;
    int fd;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    fresh_object *self = (fresh_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->node = shmcow_fd_take();
    if (self->node == NULL || fstat(fd, &st) < 0) {
        Py_DECREF((PyObject *)self);
        return self->node == NULL ? PyErr_NoMemory() : PyErr_SetFromErrno(PyExc_OSError);
    }
    self->node->dev = st.st_dev;
    self->node->ino = st.st_ino;
    atomic_store_explicit(&self->node->fd, fd, memory_order_seq_cst);
    return (PyObject *)self;
}

static void fresh_dealloc(fresh_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    shmcow_fd_release(self->node);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

/* The next write: what follows the first `done` bytes of payload and tail, as far as it fits. -> iovecs, 0: all done */
static int next_batch(struct iovec *iov, const Py_buffer *views, Py_ssize_t n, const char *tail, size_t tail_bytes,
                      uint64_t done)
{
    int used = 0;
    size_t room = SHMCOW_WRITE_MAX;
    for (Py_ssize_t k = 0; k <= n && used < SHMCOW_IOVECS && room > 0; k++) {
        const char *at = k < n ? views[k].buf : tail;
        size_t bytes = k < n ? (size_t)views[k].len : tail_bytes;
        if (done >= bytes) {
            done -= bytes;
            continue;
        }
        size_t take = bytes - done < room ? bytes - (size_t)done : room;
        iov[used++] = (struct iovec){(void *)(uintptr_t)(at + done), take};
        room -= take;
        done = 0;
    }
    return used;
}

/* Write all that is left, the interpreter lock released. 0 or -errno; -ECANCELED with an exception set. */
static int write_out(fresh_object *self, const Py_buffer *views, Py_ssize_t n, const char *tail, size_t tail_bytes)
{
    struct iovec iov[SHMCOW_IOVECS];
    int used;
    while ((used = next_batch(iov, views, n, tail, tail_bytes, self->done)) > 0) {
        ssize_t written;
        int error = 0;
        SHMCOW_STEP("fill.write");
        Py_BEGIN_ALLOW_THREADS
        written = writev(atomic_load(&self->node->fd), iov, used);
        if (written < 0)
            error = errno;
        Py_END_ALLOW_THREADS
        if (error == EINTR && PyErr_CheckSignals() < 0)
            return -ECANCELED;
        if (error != 0 && error != EINTR)
            return -error;
        if (written > 0)
            self->done += (uint64_t)written;
    }
    return 0;
}

static int seal(fresh_object *self, unsigned int mode, long uid, long gid)
{
    int fd = atomic_load(&self->node->fd);
    SHMCOW_STEP("fill.written");
    if ((uid != -1 || gid != -1) && fchown(fd, (uid_t)uid, (gid_t)gid) < 0)
        return -errno;
    if (fchmod(fd, mode) < 0)
        return -errno;
    SHMCOW_STEP("fill.sealed");
    shmcow_fd_release(self->node);
    self->node = NULL;
    return 0;
}

/* Padding up to the footer's place, and the footer. */
static size_t make_tail(char *tail, const uint8_t *epoch, uint64_t segment, uint64_t length, uint32_t crc,
                        uint32_t flags, const char *codec)
{
    size_t padding = (size_t)(shmcow_segment_bytes(length) - sizeof(shmcow_footer) - length);
    shmcow_footer footer = {.segment = segment, .length = length, .payload_crc = crc, .flags = flags};
    memset(tail, 0, padding);
    memcpy(footer.epoch, epoch, SHMCOW_EPOCH_BYTES);
    memcpy(footer.codec, codec, strlen(codec));
    shmcow_seal_footer(&core_crc, &footer);
    memcpy(tail + padding, &footer, sizeof footer);
    return padding + sizeof footer;
}

PyDoc_STRVAR(fill_doc, "fill(views, epoch, segment, payload_crc, flags, codec, mode, uid, gid) -> None\n\n"
                       "Write the payload (a list of buffers) and the footer, then give the file its owner (-1: as it "
                       "is) and its permissions, and close it. After OSError(ENOSPC), call it again with the same.");
static PyObject *fresh_fill(fresh_object *self, PyObject *args)
{
    PyObject *list;
    const unsigned char *epoch;
    const char *codec;
    Py_ssize_t epoch_bytes, got = 0;
    unsigned long long segment;
    unsigned int crc, flags, mode;
    long uid, gid;
    char tail[SHMCOW_FOOTER_ALIGN + sizeof(shmcow_footer)];
    uint64_t length = 0;
    if (!PyArg_ParseTuple(args, "Oy#KIIsIll", &list, &epoch, &epoch_bytes, &segment, &crc, &flags, &codec, &mode, &uid,
                          &gid))
        return NULL;
    Py_ssize_t n = PyList_Check(list) ? PyList_Size(list) : -1;
    if (n < 0 || epoch_bytes != SHMCOW_EPOCH_BYTES || strlen(codec) >= SHMCOW_CODEC_BYTES || self->node == NULL) {
        PyErr_SetString(PyExc_ValueError, "views is a list, epoch has 16 bytes, codec at most 31, and it is filled once");
        return NULL;
    }
    Py_buffer *views = PyMem_Calloc((size_t)n + 1, sizeof *views);
    if (views == NULL)
        return PyErr_NoMemory();
    int r = 0;
    for (; got < n; got++) {
        if (PyObject_GetBuffer(PyList_GetItem(list, got), &views[got], PyBUF_SIMPLE) < 0)
            break;
        length += (uint64_t)views[got].len;
    }
    if (got == n) {
        size_t tail_bytes = make_tail(tail, epoch, segment, length, crc, flags, codec);
        r = write_out(self, views, n, tail, tail_bytes);
        if (r == 0)
            r = seal(self, mode, uid, gid);
    }
    while (got > 0)
        PyBuffer_Release(&views[--got]);
    PyMem_Free(views);
    if (r < 0 && !PyErr_Occurred()) {
        errno = -r;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef fresh_methods[] = {
    {"fill", (PyCFunction)fresh_fill, METH_VARARGS, fill_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot fresh_slots[] = {
    {Py_tp_doc, "A segment that is being made: Fresh(fd) takes the descriptor over."},
    {Py_tp_new, fresh_new},
    {Py_tp_dealloc, fresh_dealloc},
    {Py_tp_methods, fresh_methods},
    {0, NULL},
};

static PyType_Spec fresh_spec = {
    .name = "shmcow._core.Fresh",
    .basicsize = sizeof(fresh_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = fresh_slots,
};

PyTypeObject *core_make_fresh_type(PyObject *module)
{
    return core_add_type(module, &fresh_spec);
}
