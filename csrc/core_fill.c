/* shmcow: fill a segment: its owner, then payload, padding and footer, its permissions, and close. See core.h.
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

/* Take over the descriptor of a file that was just made. */
int core_fill_begin(core_filling *filling, int fd)
{
    struct stat st;
    filling->done = 0;
    filling->node = shmcow_fd_take();
    fd = shmcow_above_standard(fd);
    if (filling->node == NULL || fd < 0 || fstat(fd, &st) < 0) {
        int error = filling->node == NULL ? ENOMEM : errno;
        core_fill_end(filling);
        if (fd >= 0)
            close(fd);
        return -error;
    }
    filling->node->dev = st.st_dev;
    filling->node->ino = st.st_ino;
    /* SYNC node: release; pairs with close_own. SYNC fork: seq_cst, before the caller's second look */
    atomic_store_explicit(&filling->node->fd, fd, memory_order_seq_cst);
    return 0;
}

/* Give the file to the store's owner, before a byte is in it: the owner can remove it then, should root be killed. */
int core_fill_give(core_filling *filling, const store_object *store, core_state *state)
{
    uid_t uid = geteuid() == store->uid ? (uid_t)-1 : store->uid;
    gid_t gid = getegid() == store->gid ? (gid_t)-1 : store->gid;
    if ((uid == (uid_t)-1 && gid == (gid_t)-1) || fchown(atomic_load(&filling->node->fd), uid, gid) == 0)
        return 0;
    if (errno != EINVAL)
        return -errno;
    PyObject *class = PyObject_GetAttrString(state->errors, "NotOwnerError");
    if (class != NULL)
        PyErr_Format(class, "nothing can be published in %s: its objects belong to a user or group that this process's user "
                     "namespace has no number for: publish from outside of it, or map that group", store->path);
    Py_XDECREF(class);
    return -ECANCELED;
}

void core_fill_end(core_filling *filling)
{
    shmcow_fd_release(filling->node);
    filling->node = NULL;
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
static int write_out(core_filling *filling, const Py_buffer *views, Py_ssize_t n, const char *tail, size_t tail_bytes)
{
    struct iovec iov[SHMCOW_IOVECS];
    int used;
    while ((used = next_batch(iov, views, n, tail, tail_bytes, filling->done)) > 0) {
        ssize_t written;
        int error = 0;
        SHMCOW_STEP("fill.write");
        Py_BEGIN_ALLOW_THREADS
        written = writev(atomic_load(&filling->node->fd), iov, used);
        if (written < 0)
            error = errno;
        Py_END_ALLOW_THREADS
        if (error == EINTR && PyErr_CheckSignals() < 0)
            return -ECANCELED;
        if (error != 0 && error != EINTR)
            return -error;
        if (written > 0)
            filling->done += (uint64_t)written;
    }
    return 0;
}

static int seal(core_filling *filling, const store_object *store)
{
    int fd = atomic_load(&filling->node->fd);
    SHMCOW_STEP("fill.written");
    if (fchmod(fd, store->identity.mode & 0444) < 0)
        return -errno;
    SHMCOW_STEP("fill.sealed");
    if (atomic_exchange(&filling->node->fd, -1) == fd)
        close(fd);
    return 0;
}

/* Padding up to the footer's place, and the footer. */
static size_t make_tail(char *tail, const store_object *store, const shmcow_segment *segment, const char *codec)
{
    size_t padding = (size_t)(shmcow_segment_bytes(segment->length) - sizeof(shmcow_footer) - segment->length);
    shmcow_footer footer = {.segment = segment->id,
                            .length = segment->length,
                            .payload_crc = segment->crc,
                            .flags = segment->flags};
    memset(tail, 0, padding);
    memcpy(footer.epoch, store->identity.epoch, SHMCOW_EPOCH_BYTES);
    memcpy(footer.codec, codec, strnlen(codec, sizeof footer.codec - 1));
    shmcow_seal_footer(&core_crc, &footer);
    memcpy(tail + padding, &footer, sizeof footer);
    return padding + sizeof footer;
}

/* Write and seal. After -ENOSPC it may be called again, and goes on where the room ended. */
int core_fill(core_filling *filling, const store_object *store, const shmcow_segment *segment)
{
    char tail[SHMCOW_FOOTER_ALIGN + sizeof(shmcow_footer)];
    Py_ssize_t n = PyList_Size(filling->views), got = 0;
    uint64_t length = 0;
    int r = -ECANCELED;
    Py_buffer *views = n < 0 ? NULL : PyMem_Calloc((size_t)n + 1, sizeof *views);
    if (views == NULL)
        return PyErr_Occurred() ? -ECANCELED : -ENOMEM;
    for (; got < n; got++) {
        if (PyObject_GetBuffer(PyList_GetItem(filling->views, got), &views[got], PyBUF_SIMPLE) < 0)
            break;
        length += (uint64_t)views[got].len;
    }
    if (got == n && length != segment->length)
        PyErr_SetString(PyExc_ValueError, "a part's buffers are not as long as it said");
    else if (got == n)
        r = write_out(filling, views, n, tail, make_tail(tail, store, segment, filling->codec));
    if (r == 0)
        r = seal(filling, store);
    while (got > 0)
        PyBuffer_Release(&views[--got]);
    PyMem_Free(views);
    return r;
}
