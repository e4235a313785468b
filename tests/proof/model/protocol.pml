/* A Spin model of shmcow: csrc/shmcow_protocol.h, and of shmcow/store.py what creates, destroys and sweeps.

   Purpose     Every interleaving, and a death before every step, within the bounds below.
   Names       Those of the C code. "STEP name (function)" at a transition: SHMCOW_STEP("name") stands before, behind or
               in it; tests/proof/test_model.py compares the list with the C code, both ways, and counts how often
               each was taken.
   Grain       Readers: one shared load, lock or system call a step. Writers: one shared store, marker test or system
               call; what only the lock's holder changes is read together with the next store. Sequentially consistent.
   Not here    Weak memory, CRCs (so a mixed copy must be refused by the second look alone), fork, waiting, removal from
               outside; a segment is one byte.

   Bounds      NW writers, NR readers, NI generations, G turns of writers in all, T holds a reader, KILLS deaths,
               RETAIN. E epochs: 1 is one store that stays; 2 and more: it is created, destroyed, created again.
               -DFREEZE reader 0 may stop for ever at any step. -DNOSPC=n /dev/shm is full n times. -DQUOTA=n segments.
   Mutants     NO_REVAL NO_SECOND_LOOK STATE_ONLY NO_CONDEMNED NO_DOOMED EARLY_FLIP FREE_FIRST UNLINK_SHARED NO_INTENT
               DEAF_JUDGE LOCK_SURVIVES NO_RECOVER READY_LIVES NO_RETAIN NO_PROTECT
               with E > 1: LOCK_FIRST NO_NAMED NO_LOCK_CHECK NO_FINISH */
#ifndef NW
#define NW 2
#endif
#ifndef NR
#define NR 1
#endif
#ifndef NI
#define NI 3
#endif
#ifndef G
#define G 3
#endif
#ifndef T
#define T 1
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef RETAIN
#define RETAIN 0
#endif
#ifndef E
#define E 1
#endif
#ifndef NOSPC
#define NOSPC 0
#endif
#ifndef QUOTA
#define QUOTA 0
#endif
#define NP (NW + NR)
#define NS (2 * G + 1)
#define AUDITOR NP /* one more writer, when all others are done: it must find nothing lost, torn or left */

#define FREE 0
#define BUILDING 1
#define READY 2
#define HELD 3
#define CONDEMNED 4
#define DOOMED 5
#define DESTROYED 255

/* the life of a segment's file; a mapped one stays mapped whatever becomes of its name */
#define NONE 0
#define PART 1
#define WHOLE 2
#define UNLINKED 3

/* ---- shared memory: one header for each epoch ---- */
byte current[E], current_index[E];               /* one word: version and index are always moved together */
byte state[E * NI], version[E * NI];             /* one word */
byte entry_version[E * NI], entry_a[E * NI], entry_b[E * NI]; /* an entry: three words, moved one by one */
byte segment[NS], next_segment = 1;              /* files; ids are never used twice */
/* ---- the kernel's: markers and locks, dropped at a death ---- */
byte mark[NR];
#if E > 1
byte mark_store[NR];
byte header;                                     /* where the header's name leads: epoch + 1, 0: no such name */
byte lock_file[E], lock_files[E];                /* which file has the name (0: none), and how many there were */
bool holds_file[E];
byte owner[E * 4];                               /* of the lock on each file: a lost file may still be locked */
byte epochs;
byte segment_store[NS];                          /* the epoch in a segment's name */
#else
byte owner[1];
#endif
/* ---- ghosts: for assertions and bounds ---- */
byte want_a[E * (G + 1)], want_b[E * (G + 1)];   /* what a version was published with */
bool forced[E * (G + 1)];
byte acked[E];
bool gave_up;
byte turns = G, kills, done;
#if NOSPC > 0
byte nospc = NOSPC;
#endif
bool dead[NP + 1], fin[NP + 1];
#ifdef FREEZE
bool frozen;
#endif

#if E > 1
#define STORE store
#else
#define STORE 0
#endif
#define AT(i) (STORE * NI + (i))
#define V(v) (STORE * (G + 1) + (v))
#define NOW current[STORE]
#define LISTS(g, x) (state[AT(g)] != FREE && (entry_a[AT(g)] == (x) || entry_b[AT(g)] == (x)))
#define HELD_BETWEEN(g, v) (state[AT(g)] == HELD && version[AT(g)] > (v) && version[AT(g)] < NOW)
#if NI == 2
#define LISTED(x, but) ((0 != but && LISTS(0, x)) || (1 != but && LISTS(1, x)))
#define NEWER(v) (HELD_BETWEEN(0, v) + HELD_BETWEEN(1, v))
#define ANY_FREE (state[AT(0)] == FREE || state[AT(1)] == FREE)
#else
#define LISTED(x, but) ((0 != but && LISTS(0, x)) || (1 != but && LISTS(1, x)) || (2 != but && LISTS(2, x)))
#define NEWER(v) (HELD_BETWEEN(0, v) + HELD_BETWEEN(1, v) + HELD_BETWEEN(2, v))
#define ANY_FREE (state[AT(0)] == FREE || state[AT(1)] == FREE || state[AT(2)] == FREE)
#endif
#if E > 1
#define MARKS(r, v) (mark[r] == (v) && mark_store[r] == STORE)
#else
#define MARKS(r, v) (mark[r] == (v))
#endif
#if NR > 1
#define MARKED(v) (MARKS(0, v) || MARKS(1, v))
#else
#define MARKED(v) MARKS(0, v)
#endif

/* op_unlink */
#define UNLINK(x) \
    assert(NOW == DESTROYED || NOW == 0 || (entry_a[AT(current_index[STORE])] != (x) && entry_b[AT(current_index[STORE])] != (x))); \
    if :: segment[x] != NONE -> segment[x] = UNLINKED :: else fi

/* ---- shmcow_drop ---- */
inline shmcow_drop(g) {
#ifdef FREE_FIRST
    d_step { state[AT(g)] = FREE };
#endif
#ifdef UNLINK_SHARED
#define SPARED(x, g) false
#else
#define SPARED(x, g) LISTED(x, g)
#endif
    d_step { if :: entry_a[AT(g)] == 0 || SPARED(entry_a[AT(g)], g) -> skip :: else -> UNLINK(entry_a[AT(g)]) fi }; /* STEP drop.unlink (shmcow_drop) */
    d_step { if :: entry_b[AT(g)] == 0 || SPARED(entry_b[AT(g)], g) -> skip :: else -> UNLINK(entry_b[AT(g)]) fi }; /* STEP drop.unlink (shmcow_drop) */
    d_step { state[AT(g)] = FREE } /* STEP drop.free (shmcow_drop) */
}

/* ---- shmcow_judge: got = 1 when generation i was reclaimed ---- */
inline shmcow_judge(force) {
#ifndef NO_CONDEMNED
    d_step { state[AT(i)] = CONDEMNED }; /* STEP judge.condemned (shmcow_judge) */
#endif
#ifdef DEAF_JUDGE
    d_step { held = false };
#else
    d_step { held = MARKED(version[AT(i)]) }; /* the marker is tested (op_marked) */
#endif
    if
    :: d_step { held && !(force) -> state[AT(i)] = HELD; held = false; got = 0 } /* it lives */
    :: d_step { /* STEP judge.doomed (shmcow_judge) */ !held || (force) -> forced[V(version[AT(i)])] = forced[V(version[AT(i)])] || held; held = false; got = 1;
#ifndef NO_DOOMED
                state[AT(i)] = DOOMED
#endif
       };
       shmcow_drop(i)
    fi
}

/* ---- shmcow_recover ---- */
inline shmcow_recover() {
    i = 0;
    do
    :: atomic { i < NI && (state[AT(i)] == FREE || state[AT(i)] == HELD) -> i++ }
    :: atomic { i < NI && state[AT(i)] == BUILDING -> skip }; shmcow_drop(i); i++ /* STEP recover.next (shmcow_recover) */
#ifdef READY_LIVES
    :: d_step { i < NI && state[AT(i)] == READY -> state[AT(i)] = HELD; i++ }
#else
    :: atomic { i < NI && state[AT(i)] == READY && version[AT(i)] > NOW -> skip }; shmcow_drop(i); i++ /* STEP recover.next (shmcow_recover) */
    :: d_step { i < NI && state[AT(i)] == READY && version[AT(i)] <= NOW -> state[AT(i)] = HELD; i++ } /* STEP recover.next (shmcow_recover) */
#endif
    :: atomic { i < NI && state[AT(i)] == CONDEMNED -> skip }; shmcow_judge(false); i++ /* STEP recover.next (shmcow_recover) */
    :: atomic { i < NI && state[AT(i)] == DOOMED -> skip }; shmcow_drop(i); i++ /* STEP recover.next (shmcow_recover) */
    :: atomic { i >= NI -> i = 0; got = 0; break }
    od
}

/* ---- shmcow_older: the next of its list, oldest first, in i; NI: no more. The `keep` newest are left out ---- */
inline shmcow_older(protect, keep) {
    i = NI; k = 0;
    do
    :: k < NI ->
       if
       :: state[AT(k)] == HELD && version[AT(k)] < NOW && version[AT(k)] != (protect) && version[AT(k)] > oldest &&
          NEWER(version[AT(k)]) >= keep && (i == NI || version[AT(k)] < version[AT(i)]) -> i = k
       :: else
       fi; k++
    :: else -> break
    od;
    k = 0; if :: i < NI -> oldest = version[AT(i)] :: else -> oldest = 0 fi
}

#ifdef NO_RETAIN
#define KEEP 0
#else
#define KEEP RETAIN
#endif
inline shmcow_reclaim() {
    do
    :: d_step { shmcow_older(0, KEEP) };
       if
       :: atomic { i == NI -> i = 0; break }
       :: atomic { i < NI -> skip }; shmcow_judge(false)
       fi
    od;
    got = 0
}

#ifdef NO_PROTECT
#define SPARE(v) 0
#else
#define SPARE(v) v
#endif
/* got = 1: the oldest unheld version went, although it is retained */
inline shmcow_give_up(protect) {
    got = 0;
    do
    :: d_step { shmcow_older(SPARE(protect), 0) };
       if
       :: atomic { i == NI -> i = 0; break }
       :: atomic { i < NI -> gave_up = true }; shmcow_judge(false);
          if :: d_step { got == 1 -> oldest = 0; i = 0 }; break :: atomic { got == 0 -> skip } fi
       fi
    od
}

inline find_free() { mine = 0; do :: mine < NI && state[AT(mine)] != FREE -> mine++ :: else -> break od }

/* mine: a generation to build in, or NI */
inline shmcow_take_generation(protect) {
    if
    :: atomic { ANY_FREE -> skip }
    :: atomic { !ANY_FREE -> skip };
       shmcow_give_up(protect);
       if
       :: atomic { got == 1 -> skip }
       :: atomic { got == 0 -> skip };
          d_step { shmcow_older(SPARE(protect), 0); oldest = 0 };
          if
          :: atomic { i == NI -> i = 0; assert(NI == 2 && protect != 0) } /* CROWDED: never because of readers */
          :: atomic { i < NI -> gave_up = true }; shmcow_judge(true) /* forced: although it is held */
          fi
       fi
    fi;
    d_step { find_free(); got = 0; i = 0 }
}

/* distinct segments that are listed: the bytes of shmcow_total_bytes */
inline shmcow_total_bytes() {
    total = 0; k = 1;
    do :: k < NS -> if :: LISTED(k, NI) -> total++ :: else fi; k++ :: else -> break od;
    k = 0
}

inline op_fill(x) {
    do
#if NOSPC > 0
    :: d_step { nospc > 0 -> nospc-- }; shmcow_give_up(0); /* -ENOSPC */
       if :: atomic { got == 1 -> got = 0 } :: atomic { got == 0 -> failed = true; break } fi
#endif
    :: d_step { segment[x] = PART }; /* STEP publish.fill (shmcow_fill_segments, make_file) STEP fill.write (core_fill) */
       d_step { segment[x] = WHOLE }; break /* STEP fill.written (core_fill) STEP fill.sealed (core_fill) */
    od
}

#ifdef EARLY_FLIP
#define FLIP_EARLY d_step { NOW = v; current_index[STORE] = mine; want_a[V(v)] = a; want_b[V(v)] = b; state[AT(mine)] = READY };
#else
#define FLIP_EARLY
#endif

/* ---- shmcow_build and shmcow_publish: a, b are given when they are shared, else made ---- */
inline shmcow_publish() {
#if QUOTA > 0
    do
    :: d_step { shmcow_total_bytes(); got = (total + (a == 0) + (b == 0) > QUOTA); total = 0 };
       if
       :: atomic { got == 0 -> break }
       :: atomic { got == 1 -> skip }; shmcow_give_up(origin);
          if :: atomic { got == 1 -> skip } :: atomic { got == 0 -> failed = true; break } fi
       fi
    od;
#endif
    if
    :: atomic { failed -> skip }
    :: atomic { !failed -> skip };
       shmcow_take_generation(origin);
       if
       :: atomic { mine == NI -> failed = true }
       :: d_step { mine < NI -> v = NOW + 1; /* STEP publish.list (shmcow_build) */
             if :: a == 0 -> fresh_a = true; a = next_segment; next_segment++ :: else fi;
             if :: b == 0 -> fresh_b = true; b = next_segment; next_segment++ :: else fi;
#if E > 1
             if :: fresh_a -> segment_store[a] = STORE :: else fi; if :: fresh_b -> segment_store[b] = STORE :: else fi
#endif
          };
          d_step { entry_version[AT(mine)] = v }; /* half an entry (shmcow_store_entry) */
          d_step { entry_a[AT(mine)] = a };
          d_step { entry_b[AT(mine)] = b };
#ifndef NO_INTENT
          d_step { assert(state[AT(mine)] == FREE); version[AT(mine)] = v; state[AT(mine)] = BUILDING }; /* STEP publish.building (shmcow_build) */
#endif
          FLIP_EARLY
          part = (fresh_a -> a : (fresh_b -> b : 0));
          do
          :: atomic { failed || part == 0 -> break }
          :: atomic { !failed && part != 0 -> skip }; op_fill(part); part = (fresh_b && part != b -> b : 0)
          od;
          if
          :: atomic { failed -> skip }; shmcow_drop(mine) /* the fill failed */
          :: atomic { !failed -> skip }; /* STEP publish.filled (shmcow_build) */
             d_step { version[AT(mine)] = v; state[AT(mine)] = READY }; /* STEP publish.ready (shmcow_advance) */
             if
#ifdef EARLY_FLIP
             :: skip;
#else
             :: d_step { true -> assert(NOW != DESTROYED && NOW + 1 == v && segment[a] == WHOLE && segment[b] == WHOLE); NOW = v; current_index[STORE] = mine; want_a[V(v)] = a; want_b[V(v)] = b }; /* STEP publish.flipped (shmcow_flip) */
#endif
                d_step { part = 0 }; /* STEP publish.woken (op_wake) */
                d_step { assert(NOW != v || state[AT(mine)] == READY); state[AT(mine)] = HELD; acked[STORE] = v }; /* STEP publish.held (shmcow_advance) */
                shmcow_reclaim();
                d_step { part = 0 } /* STEP publish.reclaimed (shmcow_publish) */
             fi
          fi
       fi
    fi
}

#if E > 1
#define NOWHERE E
#define OWNER owner[store * 4 + fd]
#define NAMED (header == store + 1)
#define RELEASE OWNER = 0; fd = 0
/* ---- store.py: names that are there now, to be unlinked one by one: bits 1.. segments, 16 + 2e holds, 17 + 2e lock ---- */
inline found(mine_too) {
    listing = 0; k = 1;
    do
    :: k < NS ->
       if
       :: (segment[k] == PART || segment[k] == WHOLE) && (mine_too -> segment_store[k] == store : segment_store[k] != store || !LISTED(k, NI)) ->
          listing = listing | (1 << k) /* UNREACHED: strays need removal from outside */
       :: else
       fi; k++
    :: else -> break
    od;
    k = 0;
    do
    :: k < E ->
       if :: holds_file[k] && ((k == store) == (mine_too)) -> listing = listing | (1 << (16 + 2 * k)) :: else fi;
       if :: lock_file[k] != 0 && k != store && !(mine_too) -> listing = listing | (1 << (17 + 2 * k)) :: else fi; k++
    :: else -> break
    od;
    k = 0
}
/* each name is an unlink of its own; in the order of the listing */
inline unlink_found() {
    do
    :: atomic { listing == 0 -> break }
    :: d_step { listing != 0 ->
          k = 0; do :: !(listing & (1 << k)) -> k++ :: else -> break od;
          listing = listing & ~(1 << k);
          if
          :: k < 16 -> assert(segment_store[k] == store -> !LISTED(k, NI) : header != segment_store[k] + 1); if :: segment[k] != NONE -> segment[k] = UNLINKED :: else fi
          :: k >= 16 && (k & 1) -> assert(header != (k - 17) / 2 + 1); lock_file[(k - 17) / 2] = 0
          :: k >= 16 && !(k & 1) -> assert(k == 16 + 2 * store || header != (k - 16) / 2 + 1); holds_file[(k - 16) / 2] = false
          fi; k = 0
       }
    od
}

/* ---- store.py: _create ---- */
inline create() {
    d_step { lock_files[made] = 1; lock_file[made] = 1 }; /* STEP create.made STEP create.sealed (module_create_empty) */
    d_step { holds_file[made] = true };
    if
    :: d_step { header == 0 -> header = made + 1; made = 0 } /* STEP create.link STEP create.linked (module_create) */
    :: atomic { header != 0 -> skip }; /* EEXIST: somebody else was first */
       d_step { lock_file[made] = 0 };
       d_step { holds_file[made] = false; made = 0 }
    fi
}

/* ---- store.py: end, with shmcow_end and shmcow_unlink_all ---- */
inline end_store() {
    d_step { i = 0 }; /* STEP destroy.end (shmcow_end) */
    d_step { NOW = DESTROYED; i = 0 }; /* STEP destroy.ended (shmcow_end) */
    do
    :: atomic { i < NI && state[AT(i)] == FREE -> i++ }
    :: d_step { i < NI && state[AT(i)] != FREE -> state[AT(i)] = DOOMED }; shmcow_drop(i); i++ /* shmcow_unlink_all */
    :: atomic { i >= NI -> i = 0; break }
    od;
    atomic { found(true) };
    unlink_found();
#ifdef LOCK_FIRST
    atomic { lock_file[store] = 0 };
#endif
    if
#ifdef NO_NAMED
    :: atomic { header != 0 -> skip };
#else
    :: atomic { NAMED -> skip };
#endif
       d_step { assert(NAMED); header = 0 } /* the header: by name */
    :: atomic { !NAMED -> skip }
    fi;
    d_step { lock_file[store] = 0 } /* the lock file, last */
}

/* ---- store.py: Keeper.attach, Turn._take_long, finish ---- */
inline take_lock() {
    finishing = false;
attach:
    if
    :: atomic { store == NOWHERE && header != 0 -> store = header - 1 }
    :: atomic { store == NOWHERE && header == 0 && epochs < E - (id != AUDITOR) -> store = NOWHERE; made = epochs; epochs++ };
       create(); goto attach
    :: atomic { store == NOWHERE && header == 0 && epochs >= E - (id != AUDITOR) -> goto left } /* the model's bound */
    :: atomic { store != NOWHERE && !NAMED -> store = NOWHERE; goto attach }
    :: atomic { store != NOWHERE && NAMED -> skip }
    fi;
    if :: atomic { NOW == DESTROYED -> finishing = true } :: atomic { NOW != DESTROYED -> skip } fi;
    if
    :: atomic { !finishing && lock_file[store] == 0 -> finishing = true } /* a lost lock file ends the store */
    :: atomic { !finishing && lock_file[store] != 0 -> fd = lock_file[store]; goto try }
    :: atomic { finishing -> skip }
    fi;
finish:
#ifdef NO_FINISH
    atomic { finishing = false; store = NOWHERE; d_step { header = 0 }; goto attach };
#endif
    d_step { NOW = DESTROYED }; /* give_notice: without a lock */
again:
    if :: atomic { !NAMED -> finishing = false; store = NOWHERE; goto attach } :: atomic { NAMED -> skip } fi;
    d_step { if :: lock_file[store] == 0 -> lock_files[store]++; assert(lock_files[store] < 4); lock_file[store] = lock_files[store] :: else fi };
    if :: atomic { lock_file[store] == 0 -> goto again } :: atomic { lock_file[store] != 0 -> fd = lock_file[store] } fi;
try:
    if
    :: atomic { OWNER == 0 -> OWNER = id + 1 } /* STEP lock.taken (writer_try_lock) */
    :: atomic { OWNER != 0 && lock_file[store] != 0 && lock_file[store] != fd -> fd = lock_file[store]; goto try } /* UNREACHED: needs a third writer */
    :: atomic { OWNER != 0 && lock_file[store] == 0 -> fd = 0; if :: finishing -> goto again :: else -> goto attach fi }
    fi;
    if
    :: atomic { lock_file[store] == fd -> skip }
    :: atomic { lock_file[store] != fd && lock_file[store] != 0 -> OWNER = 0; fd = lock_file[store]; goto try } /* UNREACHED: needs a third writer */
    :: atomic { lock_file[store] == 0 -> RELEASE; if :: finishing -> goto again :: else -> goto attach fi }
    fi;
    if
    :: atomic { finishing -> skip }; end_store(); atomic { RELEASE; finishing = false; store = NOWHERE; goto attach }
    :: atomic { !finishing -> skip }
    fi;
#ifndef NO_LOCK_CHECK
    if :: atomic { NOW == DESTROYED -> RELEASE; goto attach } :: atomic { NOW != DESTROYED -> skip } fi;
    if :: atomic { !NAMED -> RELEASE; goto attach } :: atomic { NAMED -> skip } fi;
#endif
    if :: d_step { !holds_file[store] -> holds_file[store] = true } :: atomic { holds_file[store] -> skip } fi;
    shmcow_recover();
    atomic { found(false) };
    unlink_found() /* sweep */
}
#else
#define RELEASE owner[0] = 0
inline take_lock() {
    atomic { owner[0] == 0 -> owner[0] = id + 1 }; /* STEP lock.taken (writer_enter) */
#ifndef NO_RECOVER
    shmcow_recover()
#else
    i = 0
#endif
}
#endif

#define CAN_REPEAT(g) (state[AT(g)] == HELD && version[AT(g)] < NOW)
proctype Writer(byte id) {
    byte i, k, mine, oldest, v, a, b, origin, part, got;
#if QUOTA > 0
    byte total;
#endif
#if E > 1
    byte store = NOWHERE, fd, made;
    int listing;
    bool finishing;
#endif
    bool held, failed, fresh_a, fresh_b;
    { do
      :: atomic { (turns > 0 && id != AUDITOR) || (id == AUDITOR && !fin[AUDITOR]) -> if :: id == AUDITOR -> fin[AUDITOR] = true :: else -> turns-- fi };
         take_lock();
         if
         :: atomic { id != AUDITOR -> skip } /* publish */
         :: atomic { id != AUDITOR && NOW > 0 -> b = entry_b[AT(current_index[STORE])] } /* update: shares a segment */
         :: atomic { id != AUDITOR && (CAN_REPEAT(0) || CAN_REPEAT(1) || CAN_REPEAT(NI - 1)) -> /* rollback: shares both */
               if :: CAN_REPEAT(0) -> i = 0 :: CAN_REPEAT(1) -> i = 1
#if NI > 2
               :: CAN_REPEAT(2) -> i = 2 /* UNREACHED: needs a fifth turn */
#endif
               fi;
               origin = version[AT(i)]; a = entry_a[AT(i)]; b = entry_b[AT(i)]; i = 0 }
#if E > 1
         :: atomic { id != AUDITOR -> skip }; end_store(); goto left /* destroy */
#endif
         :: atomic { id == AUDITOR -> skip }; shmcow_reclaim();
         d_step { /* nothing lost, torn, or left */
            assert(NOW != DESTROYED && NOW >= acked[STORE]);
            assert(NOW == 0 || (state[AT(current_index[STORE])] == HELD && version[AT(current_index[STORE])] == NOW));
            i = 0;
            do
            :: i < NI ->
               assert(state[AT(i)] == FREE || state[AT(i)] == HELD);
               if
               :: state[AT(i)] == HELD ->
                  v = version[AT(i)];
                  assert(v <= NOW && entry_version[AT(i)] == v && entry_a[AT(i)] == want_a[V(v)] && entry_b[AT(i)] == want_b[V(v)]);
                  assert(segment[entry_a[AT(i)]] == WHOLE && segment[entry_b[AT(i)]] == WHOLE);
                  assert(v == NOW || NEWER(v) < RETAIN || MARKED(v));
                  if :: v < NOW -> got++ :: else fi
               :: else
               fi; i++
            :: else -> break
            od;
            assert(gave_up || NOW == 0 || got >= (RETAIN < NOW - 1 -> RETAIN : NOW - 1));
            i = 1;
            do :: i < NS -> assert(segment[i] == NONE || segment[i] == UNLINKED || LISTED(i, NI)); i++ :: else -> break od;
#if E > 1
            i = 0;
            do :: i < E -> assert((lock_file[i] != 0) == (i == store) && holds_file[i] == (i == store)); i++ :: else -> break od;
            i = 0
#endif
         }; goto left
         fi;
         shmcow_publish();
left:    atomic {
#if E > 1
            if :: store != NOWHERE && fd != 0 -> RELEASE :: else fi; made = 0; finishing = false;
#else
            RELEASE;
#endif
            i = 0; mine = 0; v = 0; a = 0; b = 0; origin = 0; part = 0; got = 0; held = false; failed = false; fresh_a = false; fresh_b = false }
      :: atomic { (turns == 0 && id != AUDITOR) || fin[AUDITOR] -> break }
      od
    } unless { dead[id] };
    atomic { i = 0; k = 0; mine = 0; oldest = 0; v = 0; a = 0; b = 0; origin = 0; part = 0; got = 0; held = false; failed = false; fresh_a = false; fresh_b = false;
#if E > 1
             store = 0; fd = 0; made = 0; listing = 0; finishing = false;
#endif
#if QUOTA > 0
             total = 0;
#endif
             fin[id] = true; done++ }
}

#define OPENABLE(x, t) ((state[AT(x)] == READY || state[AT(x)] == HELD) && version[AT(x)] == t)
#ifdef NO_REVAL
#define LOOK true
#define SECOND_LOOK true
#else
#ifdef STATE_ONLY
#define LOOK (state[AT(x)] == READY || state[AT(x)] == HELD)
#define SECOND_LOOK LOOK
#else
#define LOOK OPENABLE(x, t)
#ifdef NO_SECOND_LOOK
#define SECOND_LOOK true
#else
#define SECOND_LOOK (LOOK || JUDGED) /* condemned since the first look: that judge sees our mark */
#endif
#endif
#endif
#define JUDGED (state[AT(x)] == CONDEMNED && version[AT(x)] == t)

proctype Reader(byte id) {
    byte n, t, x, last, seen, c, a, b;
    bool old;
#if E > 1
    byte store;
#endif
    { do
      :: atomic { n < T -> n++;
#if E > 1
            if :: header != 0 -> if :: store != header - 1 -> store = header - 1; seen = 0 :: else fi :: else -> goto next fi;
#endif
            if :: true -> old = false
               :: NOW > 0 && NOW != DESTROYED -> old = true; t = 1; do :: t < NOW -> t++ :: break od
            fi };
again:   if
         :: atomic { !old -> t = NOW; x = current_index[STORE]; /* shmcow_hold_current */
               if :: t == 0 || t == DESTROYED -> goto let_go :: else fi;
               assert(t != last); /* the same word twice: SHMCOW_CORRUPT */
               assert(t >= seen) }
         :: atomic { old -> x = 0; if :: NOW == DESTROYED || t > NOW -> goto let_go :: else fi }; /* shmcow_hold_version */
            do /* shmcow_find_version */
            :: atomic { x < NI && version[AT(x)] == t && state[AT(x)] >= READY && state[AT(x)] <= CONDEMNED -> break }
            :: atomic { x < NI && !(version[AT(x)] == t && state[AT(x)] >= READY && state[AT(x)] <= CONDEMNED) -> x++ }
            :: atomic { x == NI -> goto let_go } /* SHMCOW_GONE */
            od
         fi;
         atomic { mark[id] = t; /* STEP hold.marked (shmcow_hold_one) */
#if E > 1
                  mark_store[id] = store; assert(holds_file[store] || NOW == DESTROYED || !NAMED)
#endif
         };
         if
         :: atomic { !JUDGED && LOOK -> skip }
         :: atomic { JUDGED -> skip }; /* yields, up to 64 times: it may be over by then, or not */
            if :: atomic { LOOK -> skip } :: atomic { !LOOK -> goto moved } fi
         :: atomic { !JUDGED && !LOOK -> goto moved }
         fi;
         c = entry_version[AT(x)]; /* shmcow_load_entry */
         a = entry_a[AT(x)];
         b = entry_b[AT(x)];
         if
         :: atomic { SECOND_LOOK -> assert(c == t && a == want_a[V(t)] && b == want_b[V(t)]) } /* STEP hold.copied (shmcow_hold_one) */
         :: atomic { !SECOND_LOOK -> goto moved }
         fi;
         if /* hold_map: open and map one after the other */
         :: atomic { segment[a] == UNLINKED -> assert(forced[V(t)] || NOW == DESTROYED); goto missing }
         :: atomic { segment[a] != UNLINKED -> assert(segment[a] == WHOLE) }
         fi;
         if
         :: atomic { segment[b] == UNLINKED -> assert(forced[V(t)] || NOW == DESTROYED); goto missing }
         :: atomic { segment[b] != UNLINKED -> assert(segment[b] == WHOLE); if :: !old -> seen = t :: else fi } /* STEP hold.held (shmcow_hold_one) */
         fi;
         atomic { assert(forced[V(t)] || NOW == DESTROYED || (segment[a] == WHOLE && segment[b] == WHOLE)); goto let_go }; /* used, then let go */
missing: atomic { assert(!OPENABLE(x, t)) }; /* SHMCOW_MISSING is for names that were removed from outside */
moved:   atomic { mark[id] = 0; x = 0; a = 0; b = 0; c = 0;
#if E > 1
                  mark_store[id] = 0;
#endif
                  if :: !old -> last = t; t = 0; goto again :: else -> t = 0 fi };
let_go:  atomic { mark[id] = 0; t = 0; x = 0; a = 0; b = 0; c = 0; last = 0; old = false;
#if E > 1
                  mark_store[id] = 0;
#endif
                };
next:    skip
      :: atomic { n == T -> break }
      od
#ifdef FREEZE
    } unless { dead[NW + id] || (id == 0 && frozen) };
    atomic { if :: id == 0 && frozen && !dead[NW] -> skip :: else -> mark[id] = 0 fi; /* stopped for ever: its marker stays */
#else
    } unless { dead[NW + id] };
    atomic { mark[id] = 0;
#endif
             n = 0; t = 0; x = 0; last = 0; seen = 0; c = 0; a = 0; b = 0; old = false; fin[NW + id] = true; done++ }
}

/* SIGKILL before any step; the kernel drops what the process held */
#ifdef LOCK_SURVIVES
#define DROP_LOCKS(p) skip
#else
#if E > 1
#define DROP_LOCKS(p) i = 0; do :: i < E * 4 -> if :: owner[i] == p + 1 -> owner[i] = 0 :: else fi; i++ :: else -> i = 0; break od
#else
#define DROP_LOCKS(p) if :: owner[0] == p + 1 -> owner[0] = 0 :: else fi
#endif
#endif
#define KILL_WRITER(p) d_step { kills < KILLS && !dead[p] && !fin[p] -> dead[p] = true; DROP_LOCKS(p); kills++ }
#define KILL_READER(r) d_step { kills < KILLS && !dead[NW + r] && !fin[NW + r] -> dead[NW + r] = true; kills++; mark[r] = 0 }
#ifdef FREEZE
#define STOPPED frozen
#else
#define STOPPED true
#endif
proctype Kernel() {
#if E > 1
    byte i;
#endif
end: do
    :: KILL_WRITER(0)
#if NW > 1
    :: KILL_WRITER(1)
#endif
    :: KILL_READER(0)
#if NR > 1
    :: KILL_READER(1)
#endif
#ifdef FREEZE
    :: atomic { !frozen && !fin[NW] && !dead[NW] -> frozen = true }
#endif
    :: atomic { (kills == KILLS && STOPPED) || done == NP -> break }
    od
}

init {
    atomic {
        run Writer(0);
#if NW > 1
        run Writer(1);
#endif
        run Reader(0);
#if NR > 1
        run Reader(1);
#endif
        run Kernel()
    };
end: atomic { done == NP -> run Writer(AUDITOR) }
}
