/* A program that embeds Python and forks as some application servers do: with fork(), and without Python's hooks
 * (PyOS_BeforeFork, PyOS_AfterFork_Parent, PyOS_AfterFork_Child).
 *
 * embedded MODULE WORKERS ENDING [ARGUMENT...]
 *
 * Imports MODULE in the master, forks WORKERS children, and calls MODULE.worker(k) in child k, MODULE.master(pids) in
 * the master. ENDING says how a child ends: "exit" is _exit(), "finalize" takes the whole interpreter down first, so
 * that every inherited object is deallocated. Python code may fork in C, too: embedded.fork().
 * The thread that runs Python has the interpreter lock all the time, which is all that a child needs. A thread of C
 * that forks beside it (embedded.fork_beside) has no such lock, so it forks at any instruction; its children run no
 * Python, and idle until the program ends.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static PyObject *fork_in_c(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    pid_t pid = fork();
    return pid < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong((long)pid);
}

#define BESIDE_MAX 1000

static long beside[BESIDE_MAX];
static int beside_wanted;
static _Atomic int beside_made;
static pthread_mutex_t beside_mutex = PTHREAD_MUTEX_INITIALIZER; /* held during each fork */

static void *fork_beside_thread(void *ignored)
{
    const struct timespec pause_between = {0, 100000};
    for (int k = 0; k < beside_wanted; k++) {
        pthread_mutex_lock(&beside_mutex);
        pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                pause();
        }
        pthread_mutex_unlock(&beside_mutex);
        beside[k] = (long)pid;
        atomic_store(&beside_made, k + 1);
        nanosleep(&pause_between, NULL);
    }
    for (;;) /* the children are to die with the program, not with this thread */
        pause();
    return ignored;
}

static PyObject *fork_beside(PyObject *module, PyObject *count)
{
    pthread_t thread;
    (void)module;
    beside_wanted = (int)PyLong_AsLong(count);
    if (beside_wanted < 0 || beside_wanted > BESIDE_MAX)
        return PyErr_Format(PyExc_ValueError, "0 to %d forks", BESIDE_MAX);
    errno = pthread_create(&thread, NULL, fork_beside_thread, NULL);
    if (errno != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    pthread_detach(thread);
    Py_RETURN_NONE;
}

static PyObject *hold_forks(PyObject *module, PyObject *hold)
{
    (void)module;
    if (PyObject_IsTrue(hold))
        pthread_mutex_lock(&beside_mutex);
    else
        pthread_mutex_unlock(&beside_mutex);
    Py_RETURN_NONE;
}

static PyObject *forked(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    int made = atomic_load(&beside_made);
    PyObject *pids = PyList_New(made);
    for (int k = 0; pids != NULL && k < made; k++)
        PyList_SetItem(pids, k, PyLong_FromLong(beside[k]));
    return pids;
}

static PyMethodDef methods[] = {
    {"fork", fork_in_c, METH_NOARGS, "fork() -> int\n\nFork without Python's hooks."},
    {"fork_beside", fork_beside, METH_O, "fork_beside(count) -> None\n\nLet a thread without the interpreter lock fork that often."},
    {"hold_forks", hold_forks, METH_O, "hold_forks(hold) -> None\n\nLet no fork of that thread begin or be under way, or go on."},
    {"forked", forked, METH_NOARGS, "forked() -> list[int]\n\nThe pids that fork_beside has made so far."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "embedded", .m_size = -1, .m_methods = methods,
};

static PyObject *make_module(void)
{
    return PyModule_Create(&definition);
}

static int start(int argc, char **argv)
{
    PyConfig config;
    if (PyImport_AppendInittab("embedded", make_module) < 0)
        return -1;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    PyStatus status = PyConfig_SetBytesArgv(&config, argc, argv);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return PyStatus_Exception(status) ? -1 : 0;
}

/* Call a function, steal its argument; 0, or 1 after an exception, which is printed. */
static int call(PyObject *module, const char *function, PyObject *argument)
{
    PyObject *result = argument != NULL ? PyObject_CallMethod(module, function, "O", argument) : NULL;
    Py_XDECREF(argument);
    if (result == NULL)
        PyErr_Print();
    Py_XDECREF(result);
    return result == NULL;
}

int main(int argc, char **argv)
{
    if (argc < 4 || start(argc, argv) < 0)
        return 2;
    PyObject *module = PyImport_ImportModule(argv[1]);
    PyObject *pids = PyList_New(0);
    if (module == NULL || pids == NULL) {
        PyErr_Print();
        return 2;
    }
    for (long k = 0; k < atol(argv[2]); k++) {
        pid_t pid = fork();
        if (pid == 0) {
            int failed = call(module, "worker", PyLong_FromLong(k));
            Py_CLEAR(module);
            Py_CLEAR(pids);
            if (strcmp(argv[3], "finalize") == 0 && Py_FinalizeEx() < 0)
                failed = 1;
            _exit(failed);
        }
        PyObject *number = PyLong_FromLong((long)pid);
        if (pid < 0 || number == NULL || PyList_Append(pids, number) < 0)
            return 2;
        Py_DECREF(number);
    }
    int failed = call(module, "master", pids);
    while (wait(NULL) > 0)
        ;
    Py_DECREF(module);
    return Py_FinalizeEx() < 0 ? 2 : failed;
}
