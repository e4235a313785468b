/* Kill points, for a test build only: compiled in with -include, where the product has nothing.
 *
 * Each SHMCOW_STEP("name") calls killpoints_step("name"): it writes the name to a log, and sends this process a signal
 * (SIGKILL, or SIGSTOP to freeze it there) at the n-th step, or at the n-th step of one name. The symbols are weak, so
 * that all files of the extension share one state, and visible, so that a test arms it through ctypes.
 */
#ifndef SHMCOW_KILLPOINTS_H
#define SHMCOW_KILLPOINTS_H

#include <signal.h>
#include <string.h>
#include <unistd.h>

#define SHMCOW_SHARED __attribute__((weak, visibility("default")))
#define SHMCOW_WRITE_MAX ((size_t)256) /* a payload takes several writes: one may die between them */

struct killpoints {
    int log;       /* descriptor that names are written to, one a line; -1: none */
    int signal;    /* sent to this process */
    long left;     /* steps until then; 0: never */
    char name[64]; /* count steps of this name only; "": all */
};

SHMCOW_SHARED struct killpoints killpoints_state = {.log = -1};

SHMCOW_SHARED void killpoints_arm(int log, int signal, long at, const char *name)
{
    strncpy(killpoints_state.name, name, sizeof killpoints_state.name - 1);
    killpoints_state.log = log;
    killpoints_state.signal = signal;
    killpoints_state.left = at;
}

SHMCOW_SHARED void killpoints_line(const char *mark, const char *text)
{
    char line[128] = "";
    strncat(line, mark, 8);
    strncat(line, text, 100);
    strcat(line, "\n");
    if (write(killpoints_state.log, line, strlen(line)) < 0)
        _exit(99);
}

SHMCOW_SHARED void killpoints_step(const char *name)
{
    struct killpoints *state = &killpoints_state;
    if (state->log < 0)
        return;
    killpoints_line("", name);
    if (state->left == 0 || (state->name[0] != 0 && strcmp(state->name, name) != 0) || --state->left > 0)
        return;
    killpoints_line("!", name);
    kill(getpid(), state->signal);
}

#define SHMCOW_STEP(name) killpoints_step(name)

#endif
