/* The operations that are stepped, and the images that they start from. */
#include "stepping.h"

step_scene *scene;

static step_world *w;
static uint64_t newest;

static void fail(const char *what)
{
    fprintf(stderr, "VIOLATION: while a scene is set up: %s\n", what);
    exit(3);
}

/* A version to publish: `count` segments, those of `shared` taken over from the current version. No word of it is 0. */
void step_compose(step_world *world, step_job *job, unsigned count, uint32_t shared)
{
    const shmcow_header *h = &world->header;
    uint64_t now = shmcow_load_current(h);
    uint32_t i = shmcow_index_of(now);
    shmcow_entry *e = &job->entry;
    memset(e, (int)(1 + shmcow_version_of(now) % 250), sizeof *e);
    e->segment_count = count;
    e->flags = 0;
    e->origin = e->reserved = 0;
    job->fresh = 0;
    for (uint32_t k = 0; k < SHMCOW_MAX_SEGMENTS; k++) {
        e->segments[k].length = 16;
        if (k < count && shared >> k & 1u && shmcow_version_of(now) != 0 && k < shmcow_listed_count(h, i))
            e->segments[k].id = shmcow_listed_segment(h, i, k);
        else if (k < count)
            job->fresh |= 1u << k;
    }
    job->expected = SHMCOW_DESTROYED;
}

/* An older version again. */
void step_compose_rollback(step_world *world, step_job *job, uint64_t version)
{
    int i = shmcow_find_version(&world->header, version);
    if (i < 0)
        fail("nothing to roll back to");
    shmcow_load_entry(&world->header, (uint32_t)i, &job->entry);
    job->entry.origin = version;
    job->fresh = 0;
    job->expected = SHMCOW_DESTROYED;
}

/* Note what the next version will consist of. */
static void want(step_world *world, const step_job *job)
{
    uint64_t next = world->header.next_segment, v = shmcow_version_of(world->header.current) + 1;
    scene->wanted[v][0] = job->entry.segment_count;
    for (uint32_t k = 0; k < job->entry.segment_count; k++)
        scene->wanted[v][1 + k] = job->fresh >> k & 1u ? ++next : job->entry.segments[k].id;
}

/* Publish at once, as some other process. -> the result */
int step_publish(step_world *world, unsigned count, uint32_t shared)
{
    static step_job job;
    job.crc = scene->job.crc;
    job.op = TURN;
    job.no_room = 0;
    step_compose(world, &job, count, shared);
    want(world, &job);
    step_run(world, &job);
    return job.result;
}

static uint64_t add(unsigned count, uint32_t shared)
{
    if (step_publish(w, count, shared) != SHMCOW_OK)
        fail("a publish failed");
    return ++newest;
}

static void run(int op, uint64_t argument)
{
    static step_job job;
    job.crc = scene->job.crc;
    job.op = op;
    job.argument = argument;
    step_run(w, &job);
    if (job.result < 0)
        fail("an operation failed");
}

static void start(const char *name)
{
    scene = calloc(1, sizeof *scene);
    w = aligned_alloc(PAGE, sizeof *w);
    if (scene == NULL || w == NULL)
        exit(2);
    memset(w, 0, sizeof *w);
    newest = 0;
    scene->name = name;
    scene->before = w;
    shmcow_crc_fill(&scene->job.crc);
    w->header.identity.mode = 0600;
    shmcow_seal_identity(&scene->job.crc, &w->header.identity);
    w->header.retain = SHMCOW_GENERATIONS; /* until the scene says otherwise */
}

/* Some history: what a table looks like that was used for a while, with garbage in its free generations. */
static void used(void)
{
    for (unsigned n = 0; n < 4; n++)
        add(1 + n % PARTS, 0);
    run(RECLAIM, 0);
}

static void publishes(unsigned count, uint32_t shared, uint64_t retain, int result)
{
    w->header.retain = retain;
    step_compose(w, &scene->job, count, shared);
    scene->job.op = PUBLISH;
    scene->result = result;
    want(w, &scene->job);
}

static void full(bool held)
{
    used();
    while (shmcow_find_free(&w->header) >= 0)
        add(1 + newest % 2, newest % 3 == 0);
    if (held)
        for (uint64_t v = 0; v < newest; v++)
            w->marks[v] = shmcow_find_version(&w->header, v) >= 0;
}

static void goes(uint64_t version) { scene->gone[version] = true; }

enum {
    FIRST, SECOND, SHARING, ROLLBACK, FULL_TABLE, FULL_AND_HELD, FULL_ROLLBACK, OVER_QUOTA, FULL_TMPFS, NO_ROOM, CONFLICT,
    SEVERAL, GIVEN_UP, DISCARDED, DROPPED, FINISHED, REPAIRED, WRITERS,
    READ_CURRENT = WRITERS, READ_OLDER, READ_OLDEST_OF_FULL, READ_CONDEMNED, READ_NOTHING, READ_ENDED, READERS
};

static void set_up(int number)
{
    step_job *job = &scene->job;
    switch (number) {
    case FIRST: publishes(3, 0, 4, SHMCOW_OK); break;
    case SECOND:
        used(), add(2, 0);
        publishes(1, 0, 4, SHMCOW_OK);
        break;
    case SHARING: /* 4 to 6 share some; 5 is held, 4 goes but for what 5 shares with it */
        used(), add(3, 3), add(3, 6);
        w->marks[5] = 1;
        publishes(3, 5, 1, SHMCOW_OK);
        goes(4);
        break;
    case ROLLBACK:
        used(), add(2, 0), add(3, 1), add(2, 2);
        publishes(1, 0, 1, SHMCOW_OK);
        step_compose_rollback(w, job, 5);
        want(w, job);
        goes(4), goes(5), goes(6);
        break;
    case FULL_TABLE: /* the oldest that nobody holds gives its place */
        full(false);
        w->marks[4] = w->marks[5] = 1;
        publishes(2, 0, SHMCOW_GENERATIONS, SHMCOW_OK);
        goes(6);
        scene->forced_if_all = 4;
        scene->short_of_room = true;
        break;
    case FULL_AND_HELD:
        full(true);
        publishes(2, 1, SHMCOW_GENERATIONS, SHMCOW_OK);
        goes(4);
        scene->forced[4] = scene->short_of_room = true;
        break;
    case FULL_ROLLBACK: /* what it repeats is the oldest, and is spared */
        full(true);
        publishes(1, 0, SHMCOW_GENERATIONS, SHMCOW_OK);
        step_compose_rollback(w, job, 4);
        want(w, job);
        goes(5);
        scene->forced[5] = scene->short_of_room = true;
        break;
    case OVER_QUOTA:
        used(), add(2, 0), add(2, 0), add(1, 0);
        w->marks[5] = 1;
        w->header.max_total_bytes = 7 * 4096;
        publishes(3, 0, 4, SHMCOW_OK);
        goes(4), goes(6); /* 4 to 7 have 6 pages */
        scene->short_of_room = true;
        break;
    case FULL_TMPFS: /* ENOSPC for two of its parts: two versions are given up */
        used(), add(2, 1), add(1, 0), add(2, 0);
        publishes(3, 2, 4, SHMCOW_OK);
        job->no_room = 5;
        goes(4), goes(5);
        scene->short_of_room = true;
        break;
    case NO_ROOM: /* ... and for good: the publish is dropped */
        used(), add(2, 1), add(1, 0);
        w->marks[5] = 1;
        publishes(3, 1, 4, -ENOSPC);
        job->no_room = 1u << 31;
        goes(4);
        scene->short_of_room = true;
        break;
    case CONFLICT:
        used();
        publishes(1, 0, 4, SHMCOW_CONFLICT);
        job->expected = 2;
        break;
    case SEVERAL: /* 4 to 8 are old; 6 is held */
        used(), add(3, 3), add(3, 6), add(1, 0), add(2, 1), add(1, 0);
        w->marks[6] = 1;
        job->op = RECLAIM;
        job->argument = 1;
        scene->result = 3;
        goes(4), goes(5), goes(7);
        break;
    case GIVEN_UP:
        used(), add(2, 1), add(1, 0), add(1, 0);
        w->marks[4] = 1;
        job->op = GIVE_UP;
        job->argument = 5;
        scene->result = 1;
        goes(6);
        scene->short_of_room = true;
        break;
    case DISCARDED:
        used(), add(3, 1), add(3, 6);
        job->op = DISCARD;
        job->argument = 5;
        scene->result = 1;
        goes(5);
        break;
    case DROPPED: /* held, and 6 shares a segment with it */
        used(), add(3, 1), add(3, 6);
        w->marks[5] = 1;
        job->op = DROP;
        job->argument = 5;
        scene->result = 1;
        goes(5);
        scene->forced[5] = true;
        break;
    case FINISHED:
        used(), add(3, 1), add(3, 6);
        w->marks[5] = 1;
        job->op = DESTROY;
        break;
    case REPAIRED: /* one BUILDING, half filled; one CONDEMNED and held, one CONDEMNED, one DOOMED: no kill leaves all of it */
        used(), add(3, 1), add(3, 6), add(2, 0), add(1, 0);
        w->marks[5] = 1;
        for (uint64_t v = 4, state = SHMCOW_CONDEMNED; v < 7; v++, state = v == 6 ? SHMCOW_DOOMED : SHMCOW_CONDEMNED) {
            int i = shmcow_find_version(&w->header, v);
            w->header.words[i] = shmcow_word(v, (enum shmcow_state)state);
            if (v != 5)
                goes(v);
            if (v == 6)
                w->named[shmcow_listed_segment(&w->header, (uint32_t)i, 0)] = 0;
        }
        publishes(3, 0, 4, 4);
        for (uint32_t k = 0; k < 3; k++)
            job->entry.segments[k].id = ++w->header.next_segment;
        job->entry.version = newest + 1;
        shmcow_seal_entry(&job->crc, &job->entry);
        {
            int i = shmcow_find_free(&w->header);
            shmcow_store_entry(&w->header, (uint32_t)i, &job->entry);
            w->header.words[i] = shmcow_word(newest + 1, SHMCOW_BUILDING);
            w->named[job->entry.segments[0].id] = 1;
        }
        job->op = RECOVER;
        goes(newest + 1);
        break;
    case READ_CURRENT:
        used(), add(3, 3), add(3, 6);
        job->op = HOLD;
        break;
    case READ_OLDER:
        used(), add(3, 3), add(2, 1);
        job->op = HOLD_VERSION;
        job->argument = 5;
        break;
    case READ_OLDEST_OF_FULL:
        full(true);
        job->op = HOLD_VERSION;
        job->argument = 4;
        break;
    case READ_CONDEMNED: /* a writer died there; the next one judges again */
        used(), add(3, 3), add(2, 1);
        w->header.words[shmcow_find_version(&w->header, 5)] = shmcow_word(5, SHMCOW_CONDEMNED);
        job->op = HOLD_VERSION;
        job->argument = 5;
        scene->result = SHMCOW_GONE;
        goes(5);
        break;
    case READ_NOTHING:
        job->op = HOLD;
        scene->result = SHMCOW_EMPTY;
        break;
    case READ_ENDED:
        used();
        run(DESTROY, 0);
        job->op = HOLD;
        scene->result = SHMCOW_ENDED;
        break;
    default: break;
    }
    if (number >= WRITERS)
        w->header.retain = 0; /* whoever writes meanwhile reclaims what it can */
    scene->acknowledged = newest;
}

static const char *const names[READERS] = {
    [FIRST] = "publish, the first", [SECOND] = "publish, one segment", [SHARING] = "publish, two of three shared",
    [ROLLBACK] = "rollback", [FULL_TABLE] = "publish, full table", [FULL_AND_HELD] = "publish, full table, all held",
    [FULL_ROLLBACK] = "rollback to the oldest, full table, all held", [OVER_QUOTA] = "publish, above the quota",
    [FULL_TMPFS] = "publish, ENOSPC twice", [NO_ROOM] = "publish, ENOSPC for good",
    [CONFLICT] = "publish, another version expected", [SEVERAL] = "reclaim", [GIVEN_UP] = "give up", [DISCARDED] = "discard",
    [DROPPED] = "drop, although held", [FINISHED] = "destroy", [REPAIRED] = "recover", [READ_CURRENT] = "hold", [READ_OLDER] = "hold an older one",
    [READ_OLDEST_OF_FULL] = "hold the oldest of a full table", [READ_CONDEMNED] = "hold a condemned one",
    [READ_NOTHING] = "hold in an empty store", [READ_ENDED] = "hold in a destroyed store",
};

int step_scenes(void) { return WRITERS; }
int step_reader_scenes(void) { return READERS; }

/* Ten times as many instructions as others, and much the same as another one's. */
bool step_scene_is_long(int number) { return number == FULL_TABLE || number == FULL_ROLLBACK; }

/* Set one up, and make it the one at work. */
step_scene *step_scene_at(int number)
{
    if (scene != NULL) {
        free(scene->before);
        free(scene);
    }
    start(names[number]);
    set_up(number);
    return scene;
}
