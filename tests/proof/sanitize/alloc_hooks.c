/* Let the n-th allocation of the extension fail. Compiled into a copy of the extension, for CPython only.
 *
 * An allocation is the extension's if C code of the extension, or C code that it called, asks for it: not if Python code
 * runs in between (the extension is compiled with -finstrument-functions, and each Python frame is counted as outside).
 * Hooked are Python's three allocators, and calloc() and realloc() of the extension (-Dcalloc=alloc_calloc).
 */
#include <Python.h>

extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
#define EXPORTED __attribute__((visibility("default")))

static PyMemAllocatorEx below[3];
static __thread int inside;
static long seen, fails_at;
static int fails_on; /* from there on, all of them */
static int deep;     /* Python code that the extension calls is the extension's, too */

static int refused(void)
{
    if (inside <= 0 || fails_at <= 0)
        return 0;
    seen++;
    return fails_on ? seen >= fails_at : seen == fails_at;
}

void __cyg_profile_func_enter(void *function, void *from);
void __cyg_profile_func_exit(void *function, void *from);
void __cyg_profile_func_enter(void *function, void *from)
{
    (void)function;
    (void)from;
    inside++;
}

void __cyg_profile_func_exit(void *function, void *from)
{
    (void)function;
    (void)from;
    inside--;
}

static PyObject *frame(PyThreadState *thread, struct _PyInterpreterFrame *f, int throws)
{
    int before = inside;
    inside = deep ? before : 0;
    PyObject *result = _PyEval_EvalFrameDefault(thread, f, throws);
    inside = before;
    return result;
}

void *alloc_calloc(size_t n, size_t size);
void *alloc_calloc(size_t n, size_t size)
{
    return refused() ? NULL : __libc_calloc(n, size);
}

void *alloc_realloc(void *old, size_t size);
void *alloc_realloc(void *old, size_t size)
{
    return refused() ? NULL : __libc_realloc(old, size);
}

static void *my_malloc(void *a, size_t size)
{
    PyMemAllocatorEx *below_it = a;
    return refused() ? NULL : below_it->malloc(below_it->ctx, size);
}

static void *my_calloc(void *a, size_t n, size_t size)
{
    PyMemAllocatorEx *below_it = a;
    return refused() ? NULL : below_it->calloc(below_it->ctx, n, size);
}

static void *my_realloc(void *a, void *old, size_t size)
{
    PyMemAllocatorEx *below_it = a;
    return refused() ? NULL : below_it->realloc(below_it->ctx, old, size);
}

static void my_free(void *a, void *old)
{
    PyMemAllocatorEx *below_it = a;
    below_it->free(below_it->ctx, old);
}

EXPORTED void alloc_install(void)
{
    static const PyMemAllocatorDomain domains[] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
    for (int k = 0; k < 3; k++) {
        PyMem_GetAllocator(domains[k], &below[k]);
        PyMemAllocatorEx mine = {&below[k], my_malloc, my_calloc, my_realloc, my_free};
        PyMem_SetAllocator(domains[k], &mine);
    }
    _PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), frame);
}

/* how: 0: the n-th; 1: from the n-th on; 2: the n-th, counting Python code that the extension calls. */
EXPORTED void alloc_arm(long n, int how)
{
    seen = 0;
    fails_on = how == 1;
    deep = how == 2;
    fails_at = n;
}

/* So many more were seen in a forked child. */
EXPORTED void alloc_count(long n)
{
    seen += n;
}

/* -> how many allocations there were */
EXPORTED long alloc_disarm(void)
{
    fails_at = 0;
    return seen;
}
