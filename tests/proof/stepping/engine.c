/* Stops an operation in its own process: behind each instruction (the trap flag), or around each access to the shared
 * image (pages that may not be touched: the fault is in front of the access, a single step is behind it).
 *
 * The image is a private mapping, so that a hook may fork(): the child goes on with the operation, from this very
 * instruction, in a copy of the world.
 */
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "stepping.h"

#define TRAP_FLAG 0x100

step_world *step_shared;
unsigned long step_instructions;

static step_world *shadow; /* the image as it was behind the last instruction */
static const step_hooks *hooks;
static enum step_mode mode;
static volatile sig_atomic_t on;
static void *page_at; /* of the access that is being stepped */

static void protect(bool closed)
{
    size_t header = offsetof(step_world, marks);
    char *at = (char *)step_shared;
    int marks = PROT_NONE, others = mode == ACCESSES ? PROT_NONE : PROT_READ;
    if (!closed)
        marks = others = PROT_READ | PROT_WRITE;
    else if (mode == STORES)
        marks = PROT_READ;
    if (mprotect(at, header, others) != 0 || mprotect(at + header, PAGE, marks) != 0 ||
        mprotect(at + header + PAGE, sizeof *step_shared - header - PAGE, others) != 0)
        abort();
}

static void compare(void)
{
    uint32_t length, first;
    if (mode == EVERY_INSTRUCTION) {
        first = step_difference(step_shared, shadow, &length);
    } else { /* only what the instruction touched can have changed: naturally aligned words, which cross no page */
        size_t page = (size_t)((char *)page_at - (char *)step_shared);
        const unsigned char *x = (unsigned char *)step_shared + page, *y = (unsigned char *)shadow + page;
        uint32_t from = 0, to = PAGE;
        if (memcmp(x, y, PAGE) == 0)
            return;
        while (x[from] == y[from])
            from++;
        while (x[to - 1] == y[to - 1])
            to--;
        from &= ~7u;
        length = ((to + 7) & ~7u) - from;
        first = (uint32_t)page + from;
    }
    if (length == 0)
        return;
    if (hooks->after != NULL)
        hooks->after(first, length);
    memcpy((char *)shadow + first, (char *)step_shared + first, length);
}

static void on_fault(int signal_number, siginfo_t *info, void *context)
{
    ucontext_t *c = context;
    char *at = info->si_addr;
    if (!on || at < (char *)step_shared || at >= (char *)(step_shared + 1)) {
        signal(signal_number, SIG_DFL); /* a true crash: it comes again */
        return;
    }
    page_at = (void *)((uintptr_t)at & ~(uintptr_t)(PAGE - 1));
    protect(false);
    if (hooks->before != NULL)
        hooks->before();
    if (on)
        c->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
}

static void on_trap(int signal_number, siginfo_t *info, void *context)
{
    (void)signal_number, (void)info;
    ucontext_t *c = context;
    if (!on) {
        c->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
        return;
    }
    step_instructions++;
    compare();
    if (mode != EVERY_INSTRUCTION) {
        c->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
        if (on)
            protect(true);
    }
}

void step_engine_begin(void)
{
    struct sigaction act = {0};
    step_shared = mmap(NULL, 2 * sizeof *step_shared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (step_shared == MAP_FAILED)
        abort();
    shadow = step_shared + 1;
    act.sa_flags = SA_SIGINFO | SA_NODEFER;
    act.sa_sigaction = on_fault;
    sigaction(SIGSEGV, &act, NULL);
    act.sa_sigaction = on_trap;
    sigaction(SIGTRAP, &act, NULL);
}

/* In a hook: the rest of the operation runs freely. (Of a child, mostly.) */
void step_engine_let_go(void) { on = 0; }

/* Run the operation on step_shared. */
void step_engine_run(enum step_mode how, step_job *job, const step_hooks *what)
{
    mode = how;
    hooks = what;
    if (mode == FREELY) {
        step_run(step_shared, job);
        return;
    }
    memcpy(shadow, step_shared, sizeof *shadow);
    on = 1;
    if (mode == EVERY_INSTRUCTION)
        __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq" ::: "memory", "cc");
    else
        protect(true);
    step_run(step_shared, job);
    if (mode == EVERY_INSTRUCTION)
        __asm__ volatile("pushfq; andq $~0x100, (%%rsp); popfq" ::: "memory", "cc");
    else if (on)
        protect(false);
    on = 0;
}
