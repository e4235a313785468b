/* shmcow._core: the module, its constants, and results turned into exceptions (core_fail, and nowhere else). */
#include "core.h"

shmcow_crc_table core_crc;
core_names core_known;

core_state *core_state_of(PyObject *object)
{
    return PyType_GetModuleState(Py_TYPE(object));
}

char *core_join(const char *a, const char *b)
{
    size_t na = strlen(a), nb = strlen(b);
    char *out = PyMem_Malloc(na + nb + 1);
    if (out == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memcpy(out, a, na);
    memcpy(out + na, b, nb + 1);
    return out;
}

/* A tuple of these, which it takes over; NULL among them: there was no memory. */
PyObject *core_pack(PyObject *const *fields, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t k = 0; k < count; k++) {
        if (tuple != NULL && (fields[k] == NULL || PyTuple_SetItem(tuple, k, Py_NewRef(fields[k])) < 0))
            Py_CLEAR(tuple);
        Py_XDECREF(fields[k]);
    }
    return tuple;
}

/* A padded, perhaps unterminated and perhaps hostile string as text. */
PyObject *core_text(const char *text, size_t room)
{
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strnlen(text, room), "replace");
}

/* The descriptor of an object that `make` made (.fd), which is the caller's from here on. -1: an exception is set, and it
   was closed: the object itself never closes it. */
int core_take_fd(PyObject *made)
{
    PyObject *type, *value, *trace;
    PyObject *number = PyObject_GetAttr(made, core_known.fd);
    long fd = number != NULL ? PyLong_AsLong(number) : -1;
    Py_XDECREF(number);
    if (!PyErr_Occurred() && fd >= 0 && fd <= INT_MAX)
        return (int)fd;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_OSError, "%ld is no descriptor", fd);
    PyErr_Fetch(&type, &value, &trace);
    Py_XDECREF(PyObject_CallMethodObjArgs(made, core_known.close_fd, NULL));
    PyErr_Restore(type, value, trace);
    return -1;
}

/* ---- results to exceptions ---- */

static const struct {
    int result;
    const char *class_name;
    const char *text; /* %1$s: the store's name, %2$llu: the version */
} failures[] = {
    {SHMCOW_EMPTY, "NotPublishedError", "no version has been published in store %1$s yet: publish one, or pass default="},
    {SHMCOW_GONE, "VersionGoneError",
     "version %2$llu of store %1$s cannot be opened: it was reclaimed, or never published; hold it, or raise retain="},
    {SHMCOW_ENDED, "StoreDestroyedError", "store %1$s was destroyed: create it again with Writer(...)"},
    {SHMCOW_CORRUPT, "CorruptSegmentError",
     "the generation table of store %1$s contradicts itself: destroy the store and publish again"},
    {SHMCOW_MISSING, "CorruptSegmentError",
     "a segment of store %1$s is missing or is not what its entry says: was it removed or overwritten from outside? "
     "publish again"},
    {SHMCOW_RACED, "WriterBusyError",
     "another writer changed store %1$s although this one held the writer lock: was the lock file removed? nothing was "
     "published, try again"},
    {SHMCOW_QUOTA, "OutOfSharedMemoryError",
     "the new version of store %1$s would exceed max_total_bytes, and no version is left to give up: raise "
     "max_total_bytes, or publish less"},
    {SHMCOW_CROWDED, "OutOfSharedMemoryError", "no generation of store %1$s can be freed for another version"},
};

/* The store's name, out of its header's path. */
static const char *store_name(const char *path)
{
    const char *name = strstr(path, "shmcow.");
    return name != NULL ? name + strlen("shmcow.") : path;
}

static PyObject *fail_protocol(core_state *state, int result, const char *path, unsigned long long version)
{
    for (size_t k = 0; k < sizeof failures / sizeof *failures; k++) {
        if (failures[k].result != result)
            continue;
        PyObject *class = PyObject_GetAttrString(state->errors, failures[k].class_name);
        char text[PATH_MAX + 256];
        snprintf(text, sizeof text, failures[k].text, store_name(path), version);
        if (class != NULL)
            PyErr_SetString(class, text);
        Py_XDECREF(class);
        return NULL;
    }
    return PyErr_Format(PyExc_SystemError, "shmcow: result %d of %s has no exception", result, path);
}

static PyObject *fail_system(core_state *state, int error, const char *doing, const char *path)
{
    const char *class_name = error == ENOSPC || error == EDQUOT                 ? "OutOfSharedMemoryError"
                             : error == EACCES || error == EPERM || error == EROFS ? "NotOwnerError"
                             : error == EMEDIUMTYPE || error == ELOOP ||
                                     error == EISDIR || error == ENXIO          ? "IncompatibleStoreError"
                                                                                : NULL;
    if (error == ENOMEM)
        return PyErr_NoMemory();
    if (class_name == NULL) {
        PyObject *arguments = Py_BuildValue("(iNs)", error, PyUnicode_FromFormat("%s: %s", doing, strerror(error)), path);
        if (arguments != NULL)
            PyErr_SetObject(PyExc_OSError, arguments);
        Py_XDECREF(arguments);
        return NULL;
    }
    PyObject *class = PyObject_GetAttrString(state->errors, class_name);
    if (class == NULL)
        return NULL;
    if (error == EMEDIUMTYPE || error == ELOOP || error == EISDIR || error == ENXIO)
        PyErr_Format(class, "%s is not a store: expected a regular file made by shmcow, found something else "
                     "(a directory, a link, a FIFO?): move it away or use another name", path);
    else if (error == ENOSPC || error == EDQUOT)
        PyErr_Format(class, "%s %s: no room in shared memory: free some of /dev/shm, or enlarge it", doing, path);
    else if (error == EROFS)
        PyErr_Format(class, "%s %s: %s: publish where /dev/shm is not mounted read-only", doing, path, strerror(error));
    else
        PyErr_Format(class, "%s %s: %s: only the owner of a store may write it, and mode= and group= decide who may "
                     "read it", doing, path, strerror(error));
    Py_DECREF(class);
    return NULL;
}

/* The one place where a result becomes an exception. `doing`: the call that failed. An exception that is set already
   (a callback raised) wins. */
PyObject *core_fail(core_state *state, int result, const char *doing, const char *path, unsigned long long version)
{
    if (PyErr_Occurred())
        return NULL;
    if (result <= SHMCOW_EMPTY)
        return fail_protocol(state, result, path, version);
    return fail_system(state, -result, doing, path);
}

/* ---- functions ---- */

PyDoc_STRVAR(same_doc, "same(a, b) -> bool\n\nWhether two buffers have the same bytes.");
static PyObject *module_same(PyObject *module, PyObject *args)
{
    PyObject *a, *b;
    Py_buffer va, vb;
    bool same;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO", &a, &b) || PyObject_GetBuffer(a, &va, PyBUF_SIMPLE) < 0)
        return NULL;
    if (PyObject_GetBuffer(b, &vb, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&va);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    same = va.len == vb.len && (va.buf == vb.buf || memcmp(va.buf, vb.buf, (size_t)va.len) == 0);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&va);
    PyBuffer_Release(&vb);
    return PyBool_FromLong(same);
}

PyDoc_STRVAR(crc32_doc, "crc32(data) -> int\n\nThe CRC-32 of a buffer, as zlib.crc32 has it.");
static PyObject *module_crc32(PyObject *module, PyObject *data)
{
    Py_buffer view;
    uint32_t crc;
    (void)module;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (view.len < 1 << 16) /* some 10 us at most */
        crc = shmcow_crc(&core_crc, view.buf, (size_t)view.len);
    else {
        Py_BEGIN_ALLOW_THREADS
        crc = shmcow_crc(&core_crc, view.buf, (size_t)view.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *module_forks(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    return PyLong_FromUnsignedLong(shmcow_forks());
}

PyDoc_STRVAR(empty_doc, "create_empty(make, name, mode, uid, gid) -> int\n\n"
                        "Make an empty object, make(name).fd, and give it its owner (-1: as it is) and permissions. -> 0, "
                        "or the errno of the latter. In C, so that no signal handler runs while the descriptor is open.");
static PyObject *module_create_empty(PyObject *module, PyObject *args)
{
    PyObject *make;
    const char *name;
    unsigned int mode;
    long uid, gid;
    (void)module;
    if (!PyArg_ParseTuple(args, "OsIll", &make, &name, &mode, &uid, &gid))
        return NULL;
    PyObject *object = PyObject_CallFunction(make, "s", name);
    if (object == NULL)
        return NULL;
    int fd = core_take_fd(object);
    Py_DECREF(object);
    if (fd < 0 && !PyErr_ExceptionMatches(PyExc_MemoryError))
        return NULL;
    if (fd < 0) { /* an answer: the name is there by now, and the caller unlinks it */
        PyErr_Clear();
        return PyLong_FromLong(ENOMEM);
    }
    int error = 0;
    SHMCOW_STEP("create.made");
    if ((uid != -1 || gid != -1) && fchown(fd, (uid_t)uid, (gid_t)gid) < 0)
        error = errno;
    if (error == 0 && fchmod(fd, mode) < 0)
        error = errno;
    close(fd);
    SHMCOW_STEP("create.sealed");
    return PyLong_FromLong(error);
}

PyDoc_STRVAR(create_doc,
             "create_header(path, directory, epoch, name, created_ns, mode, uid, gid, retain, max_total_bytes)\n\n"
             "Make a store's header appear whole. -> False if the name exists already.");
static PyObject *module_create(PyObject *module, PyObject *args)
{
    core_state *state = PyModule_GetState(module);
    const char *path, *directory, *name;
    const unsigned char *epoch;
    Py_ssize_t epoch_bytes;
    unsigned long long created_ns, retain, max_total_bytes;
    unsigned int mode;
    long uid, gid;
    if (!PyArg_ParseTuple(args, "ssy#sKIllKK", &path, &directory, &epoch, &epoch_bytes, &name, &created_ns, &mode, &uid,
                          &gid, &retain, &max_total_bytes))
        return NULL;
    if (epoch_bytes != SHMCOW_EPOCH_BYTES || strlen(name) == 0 || strlen(name) > SHMCOW_NAME_BYTES) {
        PyErr_SetString(PyExc_ValueError, "epoch has 16 bytes and name 1 to 64");
        return NULL;
    }
    shmcow_header *image = PyMem_Calloc(1, sizeof *image);
    if (image == NULL)
        return PyErr_NoMemory();
    memcpy(image->identity.epoch, epoch, SHMCOW_EPOCH_BYTES);
    memcpy(image->identity.name, name, strlen(name));
    image->identity.name_bytes = (uint32_t)strlen(name);
    image->identity.created_ns = created_ns;
    image->identity.mode = mode;
    atomic_store_explicit(&image->retain, retain, memory_order_relaxed);
    atomic_store_explicit(&image->max_total_bytes, max_total_bytes, memory_order_relaxed);
    shmcow_seal_identity(&core_crc, &image->identity);
    SHMCOW_STEP("create.link");
    int r = shmcow_create_whole(directory, path, image, sizeof *image, mode, (uid_t)uid, (gid_t)gid);
    SHMCOW_STEP("create.linked");
    PyMem_Free(image);
    if (r < 0 && r != -EEXIST)
        return core_fail(state, r, "creating", path, 0);
    return PyBool_FromLong(r == 0);
}

/* ---- the module ---- */

PyTypeObject *core_add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL)
        return NULL;
    if (PyModule_AddType(module, (PyTypeObject *)type) < 0) {
        Py_DECREF(type);
        return NULL;
    }
    return (PyTypeObject *)type;
}

static int add_constants(PyObject *module)
{
    static const struct {
        const char *name;
        unsigned long long value;
    } constants[] = {
        {"ABI", SHMCOW_ABI},
        {"GENERATIONS", SHMCOW_GENERATIONS},
        {"MAX_SEGMENTS", SHMCOW_MAX_SEGMENTS},
        {"NAME_BYTES", SHMCOW_NAME_BYTES},
        {"CODEC_BYTES", SHMCOW_CODEC_BYTES},
        {"HEADER_BYTES", sizeof(shmcow_header)},
        {"ENTRY_BYTES", sizeof(shmcow_entry)},
        {"FOOTER_BYTES", sizeof(shmcow_footer)},
        {"FOOTER_ALIGN", SHMCOW_FOOTER_ALIGN},
        {"VERSION_MAX", SHMCOW_VERSION_MAX},
        {"DESTROYED", SHMCOW_DESTROYED},
        {"HAS_CRC", SHMCOW_HAS_CRC},
        {"IS_TYPED", SHMCOW_IS_TYPED},
        {"WRITER_AT", SHMCOW_WRITER_AT},
        {"FEED_AT", SHMCOW_FEED_AT},
        {"HELD_AT", SHMCOW_HELD_AT},
        {"SEEN_AT", SHMCOW_SEEN_AT},
    };
    for (size_t k = 0; k < sizeof constants / sizeof *constants; k++) {
        PyObject *value = PyLong_FromUnsignedLongLong(constants[k].value);
        int r = value == NULL ? -1 : PyModule_AddObjectRef(module, constants[k].name, value);
        Py_XDECREF(value);
        if (r < 0)
            return -1;
    }
    return 0;
}

static int module_exec(PyObject *module)
{
    core_state *state = PyModule_GetState(module);
    shmcow_crc_fill(&core_crc);
    int r = shmcow_watch_forks();
    if (r < 0) {
        errno = -r;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if ((core_known.acquire = PyUnicode_InternFromString("acquire")) == NULL ||
        (core_known.close_fd = PyUnicode_InternFromString("close_fd")) == NULL ||
        (core_known.fd = PyUnicode_InternFromString("fd")) == NULL ||
        (core_known.is_owned = PyUnicode_InternFromString("_is_owned")) == NULL ||
        (core_known.make = PyUnicode_InternFromString("make")) == NULL ||
        (core_known.release = PyUnicode_InternFromString("release")) == NULL ||
        (core_known.unlink_segment = PyUnicode_InternFromString("unlink_segment")) == NULL)
        return -1;
    if (core_make_forms(state) < 0 || (state->errors = PyImport_ImportModule("shmcow.errors")) == NULL ||
        (state->store_type = core_make_store_type(module)) == NULL ||
        (state->hold_type = core_make_hold_type(module)) == NULL ||
        (state->part_type = core_make_part_type(module)) == NULL ||
        (state->writer_type = core_make_writer_type(module)) == NULL ||
        (state->slot_type = core_make_slot_type(module)) == NULL ||
        (state->guard_type = core_make_guard_type(module)) == NULL ||
        (state->feed_type = core_make_feed_type(module)) == NULL ||
        (state->table_type = core_make_table_type(module)) == NULL ||
        (state->walk_type = core_make_walk_type(module)) == NULL ||
        (state->builder_type = core_make_builder_type(module)) == NULL ||
        (state->iptable_type = core_make_iptable_type(module)) == NULL ||
        (state->iptable_builder_type = core_make_iptable_builder_type(module)) == NULL)
        return -1;
    return add_constants(module);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    core_state *state = PyModule_GetState(module);
    Py_VISIT(state->store_type);
    Py_VISIT(state->hold_type);
    Py_VISIT(state->part_type);
    Py_VISIT(state->writer_type);
    Py_VISIT(state->slot_type);
    Py_VISIT(state->guard_type);
    Py_VISIT(state->feed_type);
    Py_VISIT(state->table_type);
    Py_VISIT(state->walk_type);
    Py_VISIT(state->builder_type);
    Py_VISIT(state->iptable_type);
    Py_VISIT(state->iptable_builder_type);
    Py_VISIT(state->errors);
    return 0;
}

static int module_clear(PyObject *module)
{
    core_state *state = PyModule_GetState(module);
    Py_CLEAR(state->store_type);
    Py_CLEAR(state->hold_type);
    Py_CLEAR(state->part_type);
    Py_CLEAR(state->writer_type);
    Py_CLEAR(state->slot_type);
    Py_CLEAR(state->guard_type);
    Py_CLEAR(state->feed_type);
    Py_CLEAR(state->table_type);
    Py_CLEAR(state->walk_type);
    Py_CLEAR(state->builder_type);
    Py_CLEAR(state->iptable_type);
    Py_CLEAR(state->iptable_builder_type);
    Py_CLEAR(state->errors);
    core_clear_form(&state->entry_form);
    core_clear_form(&state->part_form);
    return 0;
}

static PyMethodDef functions[] = {
    {"create_empty", module_create_empty, METH_VARARGS, empty_doc},
    {"create_header", module_create, METH_VARARGS, create_doc},
    {"wait", core_wait, METH_VARARGS,
     "wait(rings, watched, seconds) -> None\n\n"
     "Sleep, without the interpreter lock, until the current word of one of the (Store, word) in the tuple `watched` is\n"
     "another, rings() is another, a signal comes, a header was removed, or the time is up. May return for no reason."},
    {"ring", core_ring, METH_NOARGS, "ring() -> None\n\nEnd every wait() of this process."},
    {"rings", core_rings, METH_NOARGS, "rings() -> int\n\nHow often ring() was called; take it before looking, and give it to wait()."},
    {"crc32", module_crc32, METH_O, crc32_doc},
    {"same", module_same, METH_VARARGS, same_doc},
    {"forks", module_forks, METH_NOARGS, "forks() -> int\n\nHow many forks lie between this process and the one that imported the module."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmcow._core",
    .m_doc = "The C helper of shmcow: one atomic load to read, one compare-and-swap to publish.",
    .m_size = sizeof(core_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
