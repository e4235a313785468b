/* In the place of engine.c: the operation runs on another machine, emulated by qemu's user mode, and is stepped through
 * its gdb stub. Image and job are in a file that both have mapped.
 *
 *     STEP_EMULATOR   qemu-aarch64        STEP_TARGET   target.c and victim.c, compiled for that machine
 *     STEP_FOLDER     for the file        STEP_BEGIN    the address of step_begin in it, in hexadecimal
 *     STEP_EXCLUSIVES set: it has pairs of load-exclusive and store-exclusive
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stepping.h"

step_world *step_shared;
unsigned long step_instructions;

static step_world shadow;
static step_job *its_job;
static _Atomic int *phase;
static int stub = -1;
static pid_t emulator;

static void give_up(const char *what)
{
    fprintf(stderr, "the emulator: %s\n", what);
    exit(4);
}

static const char *setting(const char *name)
{
    const char *value = getenv(name);
    if (value == NULL)
        give_up(name);
    return value;
}

/* One packet there, one back, into a static buffer. (GDB Remote Serial Protocol; the `+` acknowledges the last one.) */
static const char *ask(const char *packet)
{
    static char answer[4096];
    char out[128];
    unsigned sum = 0;
    size_t n = 0;
    for (const char *p = packet; *p; p++)
        sum += (unsigned char)*p;
    int length = snprintf(out, sizeof out, "+$%s#%02x", packet, sum & 0xFF);
    if (write(stub, out, (size_t)length) != length)
        give_up("its stub does not listen");
    for (;;) { /* up to "#xx" behind a "$" */
        ssize_t got = read(stub, answer + n, sizeof answer - 1 - n);
        if (got <= 0)
            give_up("its stub has gone");
        n += (size_t)got;
        answer[n] = 0;
        const char *begin = strchr(answer, '$'), *end = begin ? strchr(begin, '#') : NULL;
        if (end != NULL && end + 2 < answer + n)
            return begin + 1;
        if (n >= sizeof answer - 1)
            give_up("an endless answer");
    }
}

static void expect_stop(const char *answer)
{
    if (answer[0] != 'T' || answer[1] != '0' || answer[2] != '5')
        give_up(answer);
}

/* A step by itself loses the monitor between a load-exclusive and its store (the emulator does as the machine), and the
   pair would be tried for ever. So it is run as one: only its store can change the image. */
#define TEXT_AT UINT64_C(0x400000) /* of a static program */
static const uint32_t *text;
static bool exclusives;

static int64_t branch_of(uint32_t code) /* b.cond, cbz, cbnz: how far, in instructions */
{
    if ((code & 0xFF000010u) != 0x54000000u && (code & 0x7E000000u) != 0x34000000u)
        return 0;
    return (int64_t)((code >> 5 & 0x7FFFFu) ^ 0x40000u) - 0x40000;
}

static void step_once(void)
{
    uint64_t pc = 0, stops[16];
    char packet[64];
    unsigned n = 0;
    if (exclusives) {
        const char *registers = ask("g");
        for (int k = 7; k >= 0; k--) {
            unsigned byte = 0;
            sscanf(registers + (32 * 8 + k) * 2, "%2x", &byte);
            pc = pc << 8 | byte;
        }
        const uint32_t *code = text + (pc - TEXT_AT) / 4;
        if ((*code & 0x3FE00000u) == 0x08400000u) { /* ldxr, ldaxr */
            uint32_t k = 1;
            for (; k < 16 && (code[k] & 0x3FE00000u) != 0x08000000u; k++)
                if (branch_of(code[k]) != 0)
                    stops[n++] = pc + (uint64_t)((int64_t)k + branch_of(code[k])) * 4;
            if (k == 16)
                give_up("a load-exclusive without its store");
            stops[n++] = pc + (k + 1) * 4;
            step_instructions += k;
        }
    }
    if (n == 0) {
        expect_stop(ask("s"));
        return;
    }
    for (unsigned k = 0; k < n; k++) {
        snprintf(packet, sizeof packet, "Z0,%llx,4", (unsigned long long)stops[k]);
        (void)ask(packet);
    }
    expect_stop(ask("c"));
    for (unsigned k = 0; k < n; k++) {
        snprintf(packet, sizeof packet, "z0,%llx,4", (unsigned long long)stops[k]);
        (void)ask(packet);
    }
}

static void end_emulator(void)
{
    if (emulator <= 0)
        return;
    kill(emulator, SIGKILL);
    waitpid(emulator, NULL, 0);
    emulator = 0;
}

void step_engine_begin(void)
{
    char image[256], packet[64];
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t phase_at = sizeof(step_world) + (sizeof(step_job) + 63) / 64 * 64;
    snprintf(image, sizeof image, "%s/image", setting("STEP_FOLDER"));
    snprintf(at.sun_path, sizeof at.sun_path, "%s/stub", setting("STEP_FOLDER"));
    unlink(at.sun_path);
    int fd = open(image, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)(phase_at + 2 * PAGE)) != 0)
        give_up("no file for the image");
    step_shared = mmap(NULL, phase_at + 64, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (step_shared == MAP_FAILED)
        give_up("no map of the image");
    its_job = (step_job *)(step_shared + 1);
    phase = (_Atomic int *)((char *)step_shared + phase_at);
    exclusives = getenv("STEP_EXCLUSIVES") != NULL;
    int program = open(setting("STEP_TARGET"), O_RDONLY | O_CLOEXEC);
    text = mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE, program, 0);
    if (program < 0 || text == MAP_FAILED)
        give_up("no program");
    emulator = fork();
    if (emulator == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execlp(setting("STEP_EMULATOR"), setting("STEP_EMULATOR"), "-g", at.sun_path, setting("STEP_TARGET"), image,
               (char *)NULL);
        _exit(127);
    }
    atexit(end_emulator);
    stub = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    for (int n = 0; connect(stub, (struct sockaddr *)&at, sizeof at) != 0; n++) {
        if (n == 3000)
            give_up("its stub does not come");
        usleep(10000);
    }
    (void)ask("qSupported");
    snprintf(packet, sizeof packet, "Z0,%s,4", setting("STEP_BEGIN"));
    if (strncmp(ask(packet), "OK", 2) != 0)
        give_up("no breakpoint");
    expect_stop(ask("c"));
}

void step_engine_let_go(void) { give_up("meetings are not for it"); }

/* Whatever the mode: stops behind each instruction. */
void step_engine_run(enum step_mode how, step_job *job, const step_hooks *hooks)
{
    (void)how;
    memcpy(&shadow, step_shared, sizeof shadow);
    memcpy(its_job, job, sizeof *job);
    *phase = 0;
    while (*phase != 2) {
        uint32_t length, first;
        step_once();
        if (*phase == 0)
            continue;
        step_instructions++;
        first = step_difference(step_shared, &shadow, &length);
        if (length == 0)
            continue;
        hooks->after(first, length);
        memcpy((char *)&shadow + first, (char *)step_shared + first, length);
    }
    memcpy(job, its_job, sizeof *job);
    expect_stop(ask("c"));
}
