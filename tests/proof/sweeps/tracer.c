/* A tracer that stops a victim at the entry and at the exit of its system calls, and kills it there or lets one fail.
 *
 * The victim calls sweep_begin() and sweep_end() around what is under test. Both are visible as a system call that means
 * nothing, prctl(SWEEP_MARK, ...), so that strace sees the same begin and end.
 *
 *   kill    SIGKILL at the entry of the n-th call (it is not carried out) or at its exit (it is)
 *   fail    the n-th call is not carried out and returns -errno. close() is carried out all the same, since Linux frees
 *           the number whatever close() returns; a failing brk() returns the present break, as the kernel's does
 *
 * Of the reads of a directory the first two in a row are counted: how many more there are depends on what else is there.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

long ptrace(int request, ...);

#define SWEEP_MARK 0x53574550
enum { DO_TRACE, DO_KILL_AT_ENTRY, DO_KILL_AT_EXIT, DO_FAIL, DO_FAIL_FROM };
enum { END_EXITED, END_DONE, END_HUNG, END_LOST };

struct sweep_plan {
    int what;       /* DO_... */
    int at;         /* which call, from 1 */
    int error;      /* errno of a call that fails */
    double seconds; /* until a victim counts as hung */
    int end;        /* out: END_... */
    int status;     /* out: of waitpid(), with END_EXITED */
    int struck;     /* out: how often it killed or let fail */
    int calls;      /* out: how many there were */
    int room;
    int *numbers;   /* out: of the calls, in order */
};

/* ---- the victim's side ---- */

void sweep_begin(int traced)
{
    if (traced) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
    }
    syscall(SYS_prctl, SWEEP_MARK, 1, 0, 0, 0);
}

void sweep_end(void)
{
    syscall(SYS_prctl, SWEEP_MARK, 2, 0, 0, 0);
}

void sweep_let_trace(void) /* where Yama lets only a parent trace */
{
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
}

/* ---- registers ---- */

#if defined(__x86_64__)
static void set_register(pid_t pid, size_t offset, long value)
{
    ptrace(PTRACE_POKEUSR, pid, offset, value);
}
static void skip_call(pid_t pid)
{
    set_register(pid, offsetof(struct user_regs_struct, orig_rax), -1);
}
static void set_result(pid_t pid, long value)
{
    set_register(pid, offsetof(struct user_regs_struct, rax), value);
}
static void set_first_argument(pid_t pid, long value)
{
    set_register(pid, offsetof(struct user_regs_struct, rdi), value);
}
#elif defined(__aarch64__)
static void skip_call(pid_t pid)
{
    int none = -1;
    struct iovec iov = {&none, sizeof none};
    ptrace(PTRACE_SETREGSET, pid, NT_ARM_SYSTEM_CALL, &iov);
}
static void set_result(pid_t pid, long value)
{
    struct user_regs_struct regs;
    struct iovec iov = {&regs, sizeof regs};
    ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &iov);
    regs.regs[0] = (unsigned long long)value;
    ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &iov);
}
static void set_first_argument(pid_t pid, long value)
{
    set_result(pid, value);
}
#else
#error "x86-64 or aarch64"
#endif

/* ---- the tracer's side ---- */

static volatile sig_atomic_t late;

static void on_alarm(int number)
{
    (void)number;
    late = 1;
}

static void set_alarm(double seconds)
{
    struct sigaction action;
    struct itimerval timer = {{0, 0}, {(time_t)seconds, (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)}};
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm; /* no SA_RESTART: waitpid() comes back */
    late = 0;
    sigaction(SIGALRM, &action, NULL);
    if (seconds > 0)
        timer.it_interval = (struct timeval){1, 0}; /* again, should the first come just before waitpid() */
    setitimer(ITIMER_REAL, &timer, NULL);
}

static int reap(pid_t pid, struct sweep_plan *plan, int end)
{
    while (!WIFEXITED(plan->status) && !WIFSIGNALED(plan->status))
        if (waitpid(pid, &plan->status, __WALL) < 0 && errno != EINTR)
            break;
    set_alarm(0);
    return plan->end = end;
}

static int kill_and_reap(pid_t pid, struct sweep_plan *plan, int end)
{
    kill(pid, SIGKILL);
    return reap(pid, plan, end);
}

struct progress {
    int counting; /* the begin was seen */
    int failing;  /* the call that is under way returns an error */
    int restore;  /* its first argument was changed, and is `argument` again after it */
    long argument;
};

/* What to do at the entry of a call. 1: it is the end mark. */
static int at_entry(pid_t pid, struct sweep_plan *plan, struct progress *now, const struct ptrace_syscall_info *info)
{
    int number = (int)info->entry.nr;
    now->failing = 0;
    if (number == SYS_prctl && info->entry.args[0] == SWEEP_MARK) {
        if (now->counting)
            return 1;
        now->counting = 2; /* from its exit on */
        return 0;
    }
    if (!now->counting)
        return 0;
    if (number == SYS_getdents64 && plan->calls >= 2 && plan->calls <= plan->room &&
        plan->numbers[plan->calls - 1] == number && plan->numbers[plan->calls - 2] == number)
        return 0;
    if (plan->calls < plan->room)
        plan->numbers[plan->calls] = number;
    plan->calls++;
    int again = plan->what == DO_FAIL_FROM && plan->calls > plan->at && plan->at <= plan->room &&
                number == plan->numbers[plan->at - 1];
    if (plan->calls != plan->at && !again)
        return 0;
    if (plan->what == DO_KILL_AT_ENTRY) {
        plan->struck++;
        kill(pid, SIGKILL);
    }
    if (plan->what == DO_FAIL || plan->what == DO_FAIL_FROM) {
        plan->struck++;
#ifdef SYS_brk
        if (number == SYS_brk) {
            now->restore = 1;
            now->argument = (long)info->entry.args[0];
            set_first_argument(pid, 0);
            return 0;
        }
#endif
        now->failing = 1;
        if (number != SYS_close)
            skip_call(pid);
    }
    return 0;
}

static void at_exit_of(pid_t pid, struct sweep_plan *plan, struct progress *now)
{
#if defined(__x86_64__) /* a call leaves its arguments as they are; on aarch64 the first is the result's place */
    if (now->restore)
        set_first_argument(pid, now->argument);
#endif
    now->restore = 0;
    if (now->failing)
        set_result(pid, -(long)plan->error);
    if (now->counting == 1 && plan->what == DO_KILL_AT_EXIT && plan->calls == plan->at) {
        plan->struck++;
        kill(pid, SIGKILL);
    }
    if (now->counting == 2)
        now->counting = 1;
}

int sweep_run(pid_t pid, struct sweep_plan *plan)
{
    struct progress now = {0, 0, 0, 0};
    plan->calls = plan->struck = 0;
    plan->status = 0x7f; /* neither exited nor killed */
    set_alarm(plan->seconds);
    for (int first = 1;; first = 0) {
        while (waitpid(pid, &plan->status, __WALL) < 0)
            if (errno != EINTR)
                return reap(pid, plan, END_LOST);
            else if (late)
                return kill_and_reap(pid, plan, END_HUNG);
        if (!WIFSTOPPED(plan->status))
            return reap(pid, plan, END_EXITED);
        int signal = WSTOPSIG(plan->status);
        if (first) {
            ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
            signal = 0;
        } else if (signal == (SIGTRAP | 0x80)) {
            struct ptrace_syscall_info info;
            memset(&info, 0, sizeof info);
            signal = 0;
            if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) >= 0) {
                if (info.op == PTRACE_SYSCALL_INFO_ENTRY && at_entry(pid, plan, &now, &info)) {
                    ptrace(PTRACE_DETACH, pid, 0, 0);
                    set_alarm(0);
                    return plan->end = END_DONE;
                }
                if (info.op == PTRACE_SYSCALL_INFO_EXIT)
                    at_exit_of(pid, plan, &now);
            }
        }
        if (late || plan->calls > plan->room)
            return kill_and_reap(pid, plan, END_HUNG);
        ptrace(PTRACE_SYSCALL, pid, 0, signal);
    }
}
