/* Single-steps the protocol header (x86-64).
 *
 *     kills      a kill behind each instruction; then in the recovery from each image that it leaves, and in the recovery
 *                from each image that this leaves, until nothing new comes. Stops behind each instruction, but for two
 *                long operations and the recoveries, which stop behind each store: the images are the same
 *     stores     the same, and all stops are behind stores
 *     every      the same, and all stops are behind instructions
 *     once       a kill behind each instruction, and no further one in the recovery
 *     meet       a reader's hold anywhere in an operation of a writer, and turns of writers anywhere in a reader's hold
 *     meet-two   and turns at two places
 *
 * exit 0: nothing was found; a line of figures for each operation. stepping WHAT [SECONDS [first]]: ends itself after
 * about so many seconds; at the first violation.
 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "stepping.h"

static time_t deadline;
static volatile sig_atomic_t out_of_time;

static void on_alarm(int signal_number)
{
    if (out_of_time++ == 6) /* a weakened protocol may never come to an end */
        _exit(signal_number);
}

static void watch_the_time(void) /* a child does so for itself */
{
    time_t left = deadline - time(NULL);
    struct itimerval timer = {{10, 0}, {left > 0 ? left : 1, 0}};
    struct sigaction act = {.sa_flags = SA_RESTART, .sa_handler = on_alarm};
    sigaction(SIGALRM, &act, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* ---- kills ---- */

typedef struct {
    uint32_t offset, length;
    bool new;
    unsigned char bytes[64];
} change;

typedef struct journal {
    change *at;
    size_t n, room;
    uint64_t hash;
} journal;

static journal *log_now;
static unsigned long images, kills;
static int deepest; /* kills in a row that each left an image never seen before */

static void on_change(uint32_t offset, uint32_t length)
{
    static step_world copy;
    journal *j = log_now;
    if (length > sizeof j->at->bytes)
        step_violation("one instruction changed more than 64 bytes", length);
    if (j->n == j->room) {
        j->room = j->room ? 2 * j->room : 256;
        j->at = realloc(j->at, j->room * sizeof *j->at);
        if (j->at == NULL)
            exit(2);
    }
    change *c = &j->at[j->n++];
    c->offset = offset;
    c->length = length;
    memcpy(c->bytes, (char *)step_shared + offset, length <= 64 ? length : 64);
    kills++;
    j->hash = step_hash(step_shared);
    c->new = step_is_new(j->hash);
    if (!c->new)
        return;
    images++;
    memcpy(&copy, step_shared, sizeof copy); /* a check that a mutant misleads leaves the operation alone */
    step_check_image(&copy);
}

static const step_hooks collecting = {NULL, on_change};

static step_job recovery(const step_world *image)
{
    step_job job = scene->job;
    job.op = image->header.current == SHMCOW_DESTROYED ? DESTROY : RECOVER;
    return job;
}

/* Kill the recovery from each new image of a journal, wherever it can be; and so on, until nothing new comes. */
static void successors(const step_world *image, const journal *from, enum step_mode mode, int depth)
{
    if (depth > deepest)
        deepest = depth;
    if (depth > 64) {
        step_violation("recovery that is killed again and again makes no progress", 0);
        return;
    }
    step_world *at = aligned_alloc(PAGE, sizeof *at);
    if (at == NULL)
        exit(2);
    memcpy(at, image, sizeof *at);
    for (size_t k = 0; k < from->n; k++) {
        journal mine = {0};
        memcpy((char *)at + from->at[k].offset, from->at[k].bytes, from->at[k].length);
        if (!from->at[k].new || out_of_time)
            continue;
        step_job job = recovery(at);
        memcpy(step_shared, at, sizeof *step_shared);
        log_now = &mine;
        step_engine_run(mode, &job, &collecting);
        successors(at, &mine, mode, depth + 1);
        free(mine.at);
    }
    free(at);
}

/* A reader's death: its markers are all that it may have changed. */
static void on_reader_change(uint32_t offset, uint32_t length)
{
    size_t own = offsetof(step_world, own);
    kills++;
    if (offset < own || offset + length > own + sizeof step_shared->own)
        step_violation("a reader wrote", offset);
}

static void kill_everywhere(enum step_mode first, enum step_mode deeper)
{
    static const step_hooks reading = {NULL, on_reader_change};
    unsigned long total[4] = {0};
    for (int n = 0; n < step_reader_scenes() && !out_of_time; n++) {
        step_scene_at(n);
        bool reader = n >= step_scenes();
        step_job job = scene->job;
        journal slow = {0}, fast = {0};
        step_instructions = images = kills = step_recoveries = step_holds = 0;
        step_check_image(scene->before);
        memcpy(step_shared, scene->before, sizeof *step_shared);
        log_now = &slow;
        step_engine_run(step_scene_is_long(n) && deeper == STORES ? STORES : first, &job, reader ? &reading : &collecting);
        step_check_end(step_shared, &job);
        unsigned long stepped = step_instructions, found = images;
        if (!reader && deeper == STORES) { /* once more, stopped at stores: the same images */
            job = scene->job;
            memcpy(step_shared, scene->before, sizeof *step_shared);
            log_now = &fast;
            step_engine_run(STORES, &job, &collecting);
            if (fast.n != slow.n || fast.hash != slow.hash || images != found)
                step_violation("stops at stores miss images", fast.n);
        }
        kills = 0;
        if (!reader && deeper != FREELY)
            successors(scene->before, &slow, deeper, 0);
        printf("%-44s %7lu stops, %4lu images; in recovery %6lu kills, %5lu images; checked: %6lu recoveries, %7lu holds\n",
               scene->name, stepped, found, kills, images - found, step_recoveries, step_holds);
        total[0] += stepped, total[1] += images, total[2] += step_recoveries, total[3] += step_holds;
        free(slow.at);
        free(fast.at);
    }
    printf("in all: stops %lu, images %lu, recoveries %lu, holds %lu, kills in a row %d\n", total[0], total[1], total[2],
           total[3], deepest);
}

/* ---- meetings ---- */

static step_job *job_now;
static _Atomic unsigned long *meetings; /* shared with all children */
static int turn, turns_left, left_to_meet;
static uint64_t met_held;
static bool must_hold;

static bool child(void) /* a copy of the world, that goes on from here */
{
    fflush(stdout);
    ++*meetings;
    pid_t pid = fork();
    if (pid < 0)
        exit(2);
    if (pid == 0) {
        watch_the_time();
        return true;
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if ((!WIFEXITED(status) || WEXITSTATUS(status) != 0) && ++step_violations >= step_violations_at_most)
        exit(1);
    return false;
}

/* In front of a store, or a look at a marker: here a reader comes, and stays. */
static void reader_comes(void)
{
    static step_job hold;
    uint64_t current = shmcow_version_of(step_shared->header.current);
    for (int kind = 0; kind < 4; kind++) {
        uint64_t version = 0, nth = 0;
        if (kind > 1) /* the first two that go */
            for (uint64_t v = 1; v < VERSIONS && version == 0; v++)
                if (scene->gone[v] && ++nth == (uint64_t)kind - 1)
                    version = v;
        if ((kind > 1 && version == 0) || step_shared->header.current == SHMCOW_DESTROYED || !child())
            continue;
        step_engine_let_go();
        hold.crc = scene->job.crc;
        for (uint64_t v = kind == 1 ? 1 : version; v <= (kind == 1 ? current : version); v++) {
            hold.op = v == 0 ? HOLD : HOLD_VERSION;
            hold.argument = v;
            step_run(step_shared, &hold);
        }
        met_held = version != 0 ? version : current;
        if (kind == 1)
            scene->forced[scene->forced_if_all] = true;
        left_to_meet = 0;
        return;
    }
}

static void one_turn(void)
{
    int n = turn;
    static step_job t;
    t.crc = scene->job.crc;
    t.op = DESTROY;
    if (step_shared->header.current == SHMCOW_DESTROYED)
        n = 4;
    if (n < 4) {
        for (; n >= 0; n--)
            if (step_publish(step_shared, 1 + (unsigned)n % 3, (uint32_t)n) != SHMCOW_OK)
                step_violation("a publish beside a reader failed", 0);
    } else if (n == 4) {
        step_run(step_shared, &t);
    } else {
        t.op = RECLAIM;
        step_run(step_shared, &t);
    }
}

/* In front of an access of a reader: here writers have turns. */
static void writers_come(void)
{
    for (int n = 0; n < 6 && !out_of_time; n++) {
        if (!child())
            continue;
        turn = n;
        int i = shmcow_find_version(&step_shared->header, job_now->argument);
        must_hold = job_now->op == HOLD_VERSION && n != 4 && turns_left == 1 && i >= 0 &&
                    shmcow_openable(step_shared->header.words[i], job_now->argument) &&
                    step_shared->own[job_now->argument] != 0 && shmcow_find_free(&step_shared->header) >= 0;
        one_turn();
        left_to_meet = 0;
        if (--turns_left == 0 || n == 4)
            step_engine_let_go();
        else
            continue;
        return;
    }
}

static void meet(int turns)
{
    unsigned long all = 0;
    meetings = mmap(NULL, sizeof *meetings, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (meetings == MAP_FAILED)
        exit(2);
    static const step_hooks with_reader = {reader_comes, NULL}, with_writers = {writers_come, NULL};
    for (int n = step_reader_scenes() - 1; n >= 0 && !out_of_time; n--) {
        step_scene_at(n);
        bool reader = n >= step_scenes();
        static step_job job;
        job = scene->job;
        job_now = &job;
        *meetings = 0;
        left_to_meet = 1;
        turns_left = turns;
        turn = -1;
        met_held = 0;
        must_hold = false;
        memcpy(step_shared, scene->before, sizeof *step_shared);
        step_engine_run(reader ? ACCESSES : STORES_AND_MARKS, &job, reader ? &with_writers : &with_reader);
        if (left_to_meet == 0) { /* a copy in which they met */
            if (reader)
                step_check_met_reader(step_shared, &job, scene->acknowledged, must_hold, turn == 4 || scene->result == SHMCOW_ENDED);
            else
                step_check_met_writer(step_shared, &job, met_held);
            _exit(step_violations != 0);
        }
        printf("%-44s %8lu meetings\n", scene->name, (unsigned long)*meetings);
        all += *meetings;
    }
    printf("in all: meetings %lu\n", all);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    deadline = time(NULL) + (argc > 2 ? atoi(argv[2]) : 600);
    watch_the_time();
    if (argc > 3) /* a mutant is caught by its first violation */
        step_violations_at_most = 1;
    setvbuf(stdout, NULL, _IOLBF, 0); /* what was reached is seen, whatever comes */
    step_engine_begin();
    if (strcmp(what, "kills") == 0)
        kill_everywhere(EVERY_INSTRUCTION, STORES);
    else if (strcmp(what, "stores") == 0)
        kill_everywhere(STORES, STORES);
    else if (strcmp(what, "every") == 0)
        kill_everywhere(EVERY_INSTRUCTION, EVERY_INSTRUCTION);
    else if (strcmp(what, "once") == 0)
        kill_everywhere(EVERY_INSTRUCTION, FREELY);
    else if (strcmp(what, "meet") == 0)
        meet(1);
    else if (strcmp(what, "meet-two") == 0)
        meet(2);
    else
        return 2;
    printf("violations %lu%s\n", step_violations, out_of_time ? "; out of time, the last operation is not complete" : "");
    return step_violations != 0;
}
