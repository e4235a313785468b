/* shmcow under single-stepping: the world that an operation runs in, and who is who.
 *
 * The shared image is all that outlives a process: the header, the names and bytes of the segments, and the markers.
 * Here it is one struct, so that "killed behind this instruction" is a copy of it. What a process owns (its job, its
 * stack) is not in it.
 *
 *     victim.c   runs an operation of csrc/shmcow_protocol.h; compiled with the flags, and for the machine, in question
 *     scenes.c   what the operations are, and from which images they start
 *     checks.c   what must hold for an image that a kill leaves, and at the end of an operation
 *     engine.c   stops behind each instruction, or around each access to the image (x86-64)
 *     images.c   how images are told apart
 *     main.c     puts them together
 *     remote.c   in the place of engine.c: steps another machine's instructions, in an emulator; target.c is its other end
 */
#ifndef STEPPING_H
#define STEPPING_H

#include <stdio.h>
#include <stdlib.h>

#include "shmcow_protocol.h"

#define IDS 512u
#define VERSIONS 160u
#define PARTS 3u
#define PAGE 4096u

/* The shared image. Segments of two words: a word of each is written by its fill, one after the other. */
typedef struct {
    _Alignas(PAGE) shmcow_header header;
    _Alignas(PAGE) _Atomic unsigned char marks[VERSIONS]; /* of readers that live on */
    _Atomic unsigned char own[VERSIONS];                  /* of the reader that is stepped: gone with it */
    _Alignas(PAGE) _Atomic unsigned char named[IDS];      /* 0: no such name, 1: created, 2: sealed */
    _Atomic uint64_t bytes[IDS][2];
} step_world;

enum step_op { PUBLISH, RECLAIM, GIVE_UP, DISCARD, DROP, RECOVER, TURN, DESTROY, HOLD, HOLD_VERSION };

/* What a process is to do, and what came of it. */
typedef struct {
    int op;
    int result;
    uint32_t fresh;       /* PUBLISH, TURN */
    uint32_t no_room;     /* fills that say ENOSPC: bit k once for part k, bit 31: always */
    uint64_t expected;    /* PUBLISH */
    uint64_t argument;    /* a version, or how many are kept */
    shmcow_entry entry;   /* PUBLISH: in and out, HOLD: out */
    shmcow_crc_table crc;
} step_job;

/* An operation, the image that it starts from, and what it may do. */
typedef struct {
    const char *name;
    step_world *before;
    step_job job;
    int result;                 /* what it must return when nobody kills it */
    uint64_t acknowledged;      /* the newest version whose publish has returned */
    bool gone[VERSIONS];        /* versions that it reclaims */
    bool forced[VERSIONS];      /* ... although somebody holds them */
    uint64_t forced_if_all;     /* ... once a reader holds all of them */
    bool short_of_room;         /* with a further holder another version may go, or the publish may be refused */
    uint64_t wanted[VERSIONS][1 + PARTS]; /* how many segments, and which: as each version was composed */
} step_scene;

static inline uint64_t step_word_of(uint64_t segment, unsigned k)
{
    return segment * UINT64_C(0x9E3779B97F4A7C15) + k + 1;
}

/* victim.c */
void step_run(step_world *w, step_job *job);

/* scenes.c */
extern step_scene *scene; /* the one at work */
step_scene *step_scene_at(int number);
int step_scenes(void);
int step_reader_scenes(void);
bool step_scene_is_long(int number);
void step_compose(step_world *w, step_job *job, unsigned count, uint32_t shared);
void step_compose_rollback(step_world *w, step_job *job, uint64_t version);
int step_publish(step_world *w, unsigned count, uint32_t shared);

/* checks.c */
extern unsigned long step_recoveries, step_holds, step_violations, step_violations_at_most;
void step_violation(const char *what, uint64_t version);
void step_check_image(const step_world *image);
void step_check_end(const step_world *w, const step_job *job);
void step_check_met_writer(const step_world *w, const step_job *job, uint64_t held);
void step_check_met_reader(step_world *w, const step_job *job, uint64_t current_before, bool must, bool may_end);

/* engine.c; but for meetings, remote.c too */
enum step_mode { EVERY_INSTRUCTION, STORES, STORES_AND_MARKS, ACCESSES, FREELY };
typedef struct {
    void (*before)(void);                            /* in front of an access; not in EVERY_INSTRUCTION */
    void (*after)(uint32_t offset, uint32_t length); /* behind an instruction that changed the image there */
} step_hooks;
extern step_world *step_shared;
extern unsigned long step_instructions;
void step_engine_begin(void);
void step_engine_run(enum step_mode mode, step_job *job, const step_hooks *hooks);
void step_engine_let_go(void);

/* images.c: how images are told apart */
uint64_t step_hash(const step_world *w);
bool step_is_new(uint64_t hash);
uint32_t step_difference(const step_world *a, const step_world *b, uint32_t *length);

#endif
