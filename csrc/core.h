/* shmcow: what the files of the extension share. Binding only: the algorithm is in shmcow_protocol.h.
 *
 * Purpose     Types, module state, and the one function that turns results into exceptions.
 * Invariants  1. Everything in a process is guarded by the interpreter lock, but for what fork() needs (shmcow_os.h).
 *             2. No Python code runs between the marker and the map of a hold.
 *             3. Whoever exports a buffer owns the mapping: memory is never unmapped under a live view.
 */
#ifndef SHMCOW_CORE_H
#define SHMCOW_CORE_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <structmember.h>

#include "shmcow_os.h"
#include "shmcow_protocol.h"

/* A dict with these keys and no values: what others are copied from. */
#define CORE_FORM_KEYS 12
typedef struct {
    PyObject *blank, *keys[CORE_FORM_KEYS];
} core_form;

typedef struct {
    PyTypeObject *store_type;
    PyTypeObject *hold_type;
    PyTypeObject *part_type;
    PyTypeObject *writer_type;
    PyTypeObject *slot_type;
    PyTypeObject *guard_type;
    PyTypeObject *feed_type;
    PyTypeObject *table_type;
    PyTypeObject *walk_type;
    PyTypeObject *builder_type;
    PyTypeObject *iptable_type;
    PyTypeObject *iptable_builder_type;
    PyObject *errors; /* the module shmcow.errors */
    core_form entry_form, part_form;
} core_state;

extern shmcow_crc_table core_crc;

typedef struct hold_object hold_object;

/* An attached store: one for each process and epoch. */
typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    char *path;   /* of the header */
    char *prefix; /* of the other objects: path.epoch. */
    dev_t dev;
    ino_t ino;
    uid_t uid;
    gid_t gid;
    const shmcow_header *h;
    shmcow_identity identity;
    uint64_t serial; /* grows with every attach of the process */
    shmcow_fd *claim; /* carries the markers of this process */
    struct marker_count *marks;
    size_t marks_used, marks_room;
    hold_object *holds; /* those alive, borrowed */
    int refused;        /* why the kernel would not take a marker (errno), or 0 */
} store_object;

struct marker_count {
    uint64_t offset;
    uint64_t count;
};

/* A header mapped for writing. */
typedef struct {
    shmcow_header *h;
    uint32_t forks; /* shmcow_forks() when it was mapped: a child's is none (hide_map) */
} core_map;

/* A version held by this process: the marker is set while one of these is alive. */
struct hold_object {
    PyObject_HEAD
    store_object *store;
    hold_object *next, *previous;
    shmcow_entry entry;
    uint32_t mapped, yields;
    bool copied; /* what `maps` leads to is memory of our own, no mapping */
    struct {
        void *at;
        size_t length;
    } maps[SHMCOW_MAX_SEGMENTS];
};

/* A segment that is being made. */
typedef struct {
    PyObject *views;   /* list of buffers, borrowed */
    const char *codec; /* borrowed */
    shmcow_fd *node;   /* NULL before the file is made, and again when it is sealed */
    uint64_t done;     /* bytes written so far */
} core_filling;

/* Names of what is called: whoever gives back for lack of memory must not need any to look them up, and each publish
   asks for most of them (a name that is not interned is found in no method cache). */
typedef struct {
    PyObject *acquire, *close_fd, *fd, *is_owned, *make, *release, *unlink_segment;
} core_names;
extern core_names core_known;

int core_take_fd(PyObject *made);
int core_fill_begin(core_filling *filling, int fd);
int core_fill_give(core_filling *filling, const store_object *store, core_state *state);
int core_fill(core_filling *filling, const store_object *store, const shmcow_segment *segment);
void core_fill_end(core_filling *filling);

int core_ready_map(const store_object *store, shmcow_fd *node, core_map *map);
int core_ready_fd(const store_object *store, shmcow_fd *node, const char *object, int flags);

PyObject *core_fail(core_state *state, int result, const char *doing, const char *path, unsigned long long version);
core_state *core_state_of(PyObject *object);
PyTypeObject *core_add_type(PyObject *module, PyType_Spec *spec);
PyObject *core_text(const char *text, size_t room);
PyObject *core_pack(PyObject *const *fields, Py_ssize_t count);
PyObject *core_other_format(uint32_t found, uint32_t expected);

PyTypeObject *core_make_store_type(PyObject *module);
PyTypeObject *core_make_hold_type(PyObject *module);
PyTypeObject *core_make_part_type(PyObject *module);
PyTypeObject *core_make_writer_type(PyObject *module);
PyTypeObject *core_make_slot_type(PyObject *module);
PyTypeObject *core_make_guard_type(PyObject *module);
PyTypeObject *core_make_feed_type(PyObject *module);
PyTypeObject *core_make_table_type(PyObject *module);
PyTypeObject *core_make_walk_type(PyObject *module);
PyTypeObject *core_make_builder_type(PyObject *module);
PyTypeObject *core_make_iptable_type(PyObject *module);
PyTypeObject *core_make_iptable_builder_type(PyObject *module);

void core_mark(store_object *store, uint64_t offset);
void core_clear(store_object *store, uint64_t offset);
void core_see(store_object *store, uint64_t version, uint64_t before);
void core_refresh(store_object *store);
PyObject *core_hold(store_object *store, core_state *state, uint64_t version);
PyObject *core_entry_dict(const core_state *state, const shmcow_entry *entry);
int core_make_forms(core_state *state);
void core_clear_form(core_form *form);
PyObject *core_feed_state(store_object *store, core_state *state);
int core_feeding(const store_object *store);
bool core_is_store(PyObject *object);
void core_give_back_lock(PyObject *writer);
char *core_join(const char *a, const char *b);

PyObject *core_wait(PyObject *module, PyObject *args);
PyObject *core_ring(PyObject *module, PyObject *ignored);
PyObject *core_rings(PyObject *module, PyObject *ignored);

#endif
