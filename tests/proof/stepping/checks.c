/* What must hold of an image that a kill leaves: as it is, for readers, and for the next writer; and of an end. */
#include "stepping.h"

unsigned long step_recoveries, step_holds, step_violations, step_violations_at_most = 20;

static step_world scratch; /* a copy, to go on with */
static step_job next;

void step_violation(const char *what, uint64_t version)
{
    if (step_violations++ < 5)
        fprintf(stderr, "VIOLATION: %s (%s, version %llu)\n", what, scene->name, (unsigned long long)version);
    if (step_violations == step_violations_at_most)
        _Exit(1);
}

static int act(step_world *w, int op, uint64_t argument)
{
    next.crc = scene->job.crc;
    next.op = op;
    next.argument = argument;
    step_run(w, &next);
    return next.result;
}

static void let_die(step_world *w) /* the kernel drops its markers */
{
    memset((void *)w->own, 0, sizeof w->own);
}

static bool whole(const step_world *w, uint64_t segment)
{
    return segment < IDS && w->named[segment] == 2 && w->bytes[segment][0] == step_word_of(segment, 0) &&
           w->bytes[segment][1] == step_word_of(segment, 1);
}

/* Of one piece: what was published under that number. */
static bool as_published(uint64_t version, const shmcow_entry *e)
{
    if (version >= VERSIONS || e->version != version || e->segment_count != scene->wanted[version][0])
        return false;
    for (uint32_t k = 0; k < e->segment_count; k++)
        if (e->segments[k].id != scene->wanted[version][1 + k])
            return false;
    return true;
}

static void expect_whole(const step_world *w, uint64_t version, const shmcow_entry *e)
{
    if (!as_published(version, e))
        step_violation("a version that is not of one piece", version);
    for (uint32_t k = 0; k < e->segment_count && k < SHMCOW_MAX_SEGMENTS; k++)
        if (!whole(w, e->segments[k].id))
            step_violation("a segment that is torn or has no name", version);
}

static void expect_names(const step_world *w, uint64_t version)
{
    for (uint64_t k = 0; k < scene->wanted[version][0]; k++)
        if (w->named[scene->wanted[version][1 + k]] == 0)
            step_violation("a held version lost a name", version);
}

/* The table of an image, read as data. `listed`: by any generation that is not FREE. -> versions in these states */
static uint32_t states_of(const step_world *w, unsigned char state[VERSIONS], bool listed[IDS])
{
    uint32_t n = 0;
    memset(state, 0, VERSIONS);
    memset(listed, 0, IDS * sizeof *listed);
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        uint64_t word = w->header.words[i], version = shmcow_word_version(word);
        if (shmcow_word_state(word) == SHMCOW_FREE)
            continue;
        if (version >= VERSIONS || state[version] != 0) {
            step_violation("a version twice in the table, or out of range", version);
            continue;
        }
        state[version] = (unsigned char)shmcow_word_state(word);
        n++;
        for (uint32_t k = 0; k < shmcow_listed_count(&w->header, i); k++) {
            uint64_t segment = shmcow_listed_segment(&w->header, i, k);
            if (segment < IDS)
                listed[segment] = true;
            else
                step_violation("a segment out of range", version);
        }
    }
    return n;
}

/* The image as it is: the rules of PROTOCOL.md that hold at every instruction. */
static void check_raw(const step_world *w, const unsigned char state[VERSIONS], const bool listed[IDS])
{
    uint64_t now = w->header.current, current = shmcow_version_of(now);
    for (uint64_t id = 0; id < IDS; id++)
        if (w->named[id] != 0 && !listed[id])
            step_violation("a name that no generation lists", id);
    if (now == SHMCOW_DESTROYED)
        return;
    if (current < scene->acknowledged || current > scene->acknowledged + 1)
        step_violation("an acknowledged version was lost", current);
    if (current != 0 && !shmcow_openable(w->header.words[shmcow_index_of(now) % SHMCOW_GENERATIONS], current))
        step_violation("the current version cannot be opened", current);
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        uint64_t word = w->header.words[i], version = shmcow_word_version(word);
        if (version > current || !(shmcow_openable(word, version) || shmcow_word_state(word) == SHMCOW_CONDEMNED))
            continue;
        shmcow_entry e;
        shmcow_load_entry(&w->header, i, &e);
        expect_whole(w, version, &e);
    }
    for (uint64_t v = 1; v < VERSIONS; v++) {
        bool alive = state[v] == SHMCOW_READY || state[v] == SHMCOW_HELD ||
                     (state[v] == SHMCOW_CONDEMNED && (w->marks[v] || w->own[v]));
        if (w->marks[v] && !scene->forced[v])
            expect_names(w, v);
        if (!alive && !scene->gone[v] && v <= current && shmcow_find_version(&scene->before->header, v) >= 0)
            step_violation("a version is lost that should have stayed", v);
    }
}

/* A whole hold of each version, and of the current one. */
static void check_readers(const step_world *image, const unsigned char state[VERSIONS])
{
    step_world *w = &scratch;
    uint64_t now = image->header.current, current = shmcow_version_of(now);
    bool ended = now == SHMCOW_DESTROYED;
    memcpy(w, image, sizeof *w);
    let_die(w);
    for (uint64_t v = 0; v <= (ended ? 1 : current + 1) && v < VERSIONS; v++) {
        int r = act(w, v == 0 ? HOLD : HOLD_VERSION, v);
        uint64_t wish = v == 0 ? current : v;
        bool good = !ended && wish <= current && wish < VERSIONS && (state[wish] == SHMCOW_READY || state[wish] == SHMCOW_HELD);
        int expected = ended ? SHMCOW_ENDED : good ? SHMCOW_OK : v == 0 && current == 0 ? SHMCOW_EMPTY : SHMCOW_GONE;
        step_holds++;
        if (r != expected)
            step_violation("a reader has another answer than the table gives", wish);
        if (r == SHMCOW_OK) {
            expect_whole(w, wish, &next.entry);
            if (w->own[wish]-- != 1)
                step_violation("a hold without its marker", wish);
        }
    }
    uint32_t length;
    if (memcmp(w->own, (const unsigned char[VERSIONS]){0}, VERSIONS) != 0)
        step_violation("a marker was left", current);
    memcpy((void *)w->own, (const void *)image->own, sizeof w->own);
    (void)step_difference(w, image, &length);
    if (length != 0)
        step_violation("a reader wrote", current);
}

/* At rest: all is HELD or FREE, exactly these versions, and what they list has a name, and nothing else has. */
static void expect_rest(const step_world *w, const bool there[VERSIONS])
{
    unsigned char state[VERSIONS];
    bool listed[IDS];
    states_of(w, state, listed);
    for (uint64_t v = 1; v < VERSIONS; v++) {
        if (state[v] != 0 && state[v] != SHMCOW_HELD)
            step_violation("a generation is not at rest", v);
        else if (there[v] && !state[v])
            step_violation("a version is lost that should have stayed", v);
        else if (!there[v] && state[v])
            step_violation("a version stays that should have gone", v);
    }
    for (uint64_t id = 0; id < IDS; id++) {
        if (listed[id] && !whole(w, id))
            step_violation("a listed segment is torn or has no name", id);
        if (!listed[id] && w->named[id] != 0)
            step_violation("a name is left that no generation lists", id);
    }
}

static void reclaimed(const step_world *w, bool there[VERSIONS], uint64_t current, uint64_t keep)
{
    for (uint64_t v = current; v-- > 1;) {
        if (!there[v])
            continue;
        if (keep > 0)
            keep--;
        else if (w->marks[v] == 0 && w->own[v] == 0)
            there[v] = false;
    }
}

/* The next writer: recovers, publishes, reclaims; then the readers let go, and it reclaims again. */
static void check_next_writer(const step_world *image, const unsigned char state[VERSIONS])
{
    step_world *w = &scratch;
    bool there[VERSIONS] = {false};
    uint64_t current = shmcow_version_of(image->header.current), at_rest = 0, ids = image->header.next_segment;
    step_recoveries++;
    memcpy(w, image, sizeof *w);
    let_die(w);
    if (image->header.current == SHMCOW_DESTROYED) {
        if (act(w, RECOVER, 0) != SHMCOW_ENDED || act(w, DESTROY, 0) != SHMCOW_OK)
            step_violation("a destroyed store could not be finished", 0);
        expect_rest(w, there);
        return;
    }
    for (uint64_t v = 1; v <= current && v < VERSIONS; v++)
        at_rest += there[v] = state[v] == SHMCOW_READY || state[v] == SHMCOW_HELD ||
                              (state[v] == SHMCOW_CONDEMNED && w->marks[v] != 0);
    if (act(w, RECOVER, 0) < 0)
        step_violation("recovery failed", current);
    expect_rest(w, there);
    if (w->header.current != image->header.current)
        step_violation("recovery moved the current version", current);
    uint64_t rested = step_hash(w);
    if (act(w, RECOVER, 0) != 0 || step_hash(w) != rested)
        step_violation("recovery found something to do twice", current);
    w->header.retain = 1;
    w->header.max_total_bytes = 0;
    if (at_rest == SHMCOW_GENERATIONS) { /* a place is made: the oldest unheld one's, or else the oldest one's */
        uint64_t oldest = 0;
        for (uint64_t v = current; v-- > 1;)
            if (there[v] && (oldest == 0 || w->marks[v] == 0 || w->marks[oldest] != 0))
                oldest = v;
        there[oldest] = false;
    }
    uint64_t were[1 + PARTS];
    memcpy(were, scene->wanted[current + 1], sizeof were); /* a number that never was flipped is used again */
    if (step_publish(w, 2, 1) != SHMCOW_OK || w->header.current % (SHMCOW_VERSION_MAX + 1) != current + 1)
        step_violation("the next publish failed", current + 1);
    if (scene->wanted[current + 1][2] <= ids)
        step_violation("a segment's number is used twice", current + 1);
    there[current + 1] = true;
    reclaimed(w, there, current + 1, 1);
    expect_rest(w, there);
    if (act(w, HOLD, 0) != SHMCOW_OK)
        step_violation("the next version cannot be held", current + 1);
    else
        expect_whole(w, current + 1, &next.entry);
    memcpy(scene->wanted[current + 1], were, sizeof were);
    let_die(w);
    act(w, RECLAIM, 0);
    reclaimed(w, there, current + 1, 0);
    expect_rest(w, there);
    memset((void *)w->marks, 0, sizeof w->marks);
    act(w, RECLAIM, 0);
    reclaimed(w, there, current + 1, 0);
    expect_rest(w, there);
}

/* Readers that came late, marked all there is, and now wait for a verdict: what is condemned must be fit to live. */
static void check_late_readers(const step_world *image, const unsigned char state[VERSIONS])
{
    step_world *w = &scratch;
    bool there[VERSIONS] = {false};
    uint64_t current = shmcow_version_of(image->header.current);
    if (image->header.current == SHMCOW_DESTROYED)
        return;
    memcpy(w, image, sizeof *w);
    for (uint64_t v = 1; v <= current && v < VERSIONS; v++) {
        w->marks[v] = 1;
        there[v] = state[v] >= SHMCOW_READY && state[v] <= SHMCOW_CONDEMNED;
    }
    if (act(w, RECOVER, 0) < 0)
        step_violation("recovery beside readers failed", current);
    expect_rest(w, there);
}

/* An image that a kill leaves. */
void step_check_image(const step_world *image)
{
    unsigned char state[VERSIONS];
    bool listed[IDS];
    states_of(image, state, listed);
    check_raw(image, state, listed);
    check_readers(image, state);
    check_next_writer(image, state);
    check_late_readers(image, state);
}

static void survivors(const step_world *w, bool there[VERSIONS])
{
    memset(there, 0, VERSIONS * sizeof *there);
    for (uint32_t i = 0; i < SHMCOW_GENERATIONS; i++) {
        uint64_t word = w->header.words[i], version = shmcow_word_version(word);
        if (shmcow_word_state(word) != SHMCOW_FREE && version < VERSIONS)
            there[version] = true;
    }
}

/* The operation came to its end, undisturbed. */
void step_check_end(const step_world *w, const step_job *job)
{
    bool there[VERSIONS];
    if (job->result != scene->result)
        step_violation("an operation has another result", (uint64_t)-job->result);
    survivors(scene->before, there);
    for (uint64_t v = 0; v < VERSIONS; v++)
        there[v] = there[v] && !scene->gone[v] && job->op != DESTROY;
    if (job->op == PUBLISH && job->result == SHMCOW_OK)
        there[scene->acknowledged + 1] = true;
    if (job->op < HOLD)
        expect_rest(w, there);
    else if (job->result == SHMCOW_OK && w->own[job->entry.version] != 1)
        step_violation("a hold without its marker", job->entry.version);
    else if (job->result == SHMCOW_OK)
        expect_whole(w, job->entry.version, &job->entry);
}

/* A writer came to its end, in whose midst a reader came to hold version `held` (0: none), or all. */
void step_check_met_writer(const step_world *w, const step_job *job, uint64_t held)
{
    bool there[VERSIONS], before[VERSIONS];
    uint64_t current = shmcow_version_of(w->header.current);
    survivors(w, there);
    survivors(scene->before, before);
    if (job->op == DESTROY)
        return;
    if (job->result != scene->result && !scene->short_of_room && !(job->op >= RECLAIM && job->result >= 0))
        step_violation("a reader changed a writer's result", held);
    if (current != scene->acknowledged + (job->op == PUBLISH && job->result == SHMCOW_OK))
        step_violation("an acknowledged version was lost", current);
    for (uint64_t v = 1; v <= current; v++) {
        if (!there[v] && before[v] && (w->marks[v] || w->own[v] || !(scene->gone[v] || scene->short_of_room)) &&
            !scene->forced[v])
            step_violation("a version is lost that should have stayed", v);
        if (there[v] && scene->gone[v] && w->marks[v] == 0 && w->own[v] == 0 && !scene->short_of_room)
            step_violation("a version stays that should have gone", v);
        if (w->own[v] != 0 && !scene->forced[v])
            expect_names(w, v);
    }
    expect_rest(w, there);
}

/* A reader came to its end, in whose midst writers had turns. */
void step_check_met_reader(step_world *w, const step_job *job, uint64_t current_before, bool must, bool may_end)
{
    uint64_t v = job->entry.version, asked = job->op == HOLD_VERSION ? job->argument : 0;
    uint64_t held = 0;
    for (uint64_t n = 0; n < VERSIONS; n++)
        held += w->own[n];
    if (job->result == SHMCOW_OK) {
        if (held != 1 || v >= VERSIONS || w->own[v] != 1)
            step_violation("a hold without its marker", v);
        if (asked != 0 ? v != asked : v < current_before)
            step_violation("a version that went back", v);
        if (!as_published(v, &job->entry))
            step_violation("a version that is not of one piece", v);
        for (uint32_t k = 0; k < job->entry.segment_count && k < PARTS; k++) /* it is mapped: a name may go at an end */
            if (w->bytes[job->entry.segments[k].id % IDS][1] != step_word_of(job->entry.segments[k].id, 1))
                step_violation("a torn segment", v);
        if (may_end || v >= VERSIONS)
            return;
        bool crowded = shmcow_find_free(&w->header) < 0;
        if (!crowded)
            expect_names(w, v);
        w->header.retain = 0;
        if (step_publish(w, 1, 0) != SHMCOW_OK || (!crowded && act(w, RECLAIM, 0) < 0))
            step_violation("the next publish failed", v);
        if (!crowded)
            expect_names(w, v);
        return;
    }
    if (held != 0)
        step_violation("a hold that failed left its marker", asked);
    if (must)
        step_violation("a reader whose marker was seen was sent away", asked);
    if (!(job->result == SHMCOW_ENDED && may_end) && !(job->result == SHMCOW_GONE && asked != 0) &&
        !(job->result == SHMCOW_EMPTY && current_before == 0))
        step_violation(job->result == SHMCOW_CORRUPT   ? "a hold found the table corrupt"
                       : job->result == SHMCOW_MISSING ? "a hold missed a segment that is listed" : "a hold failed", asked);
}
