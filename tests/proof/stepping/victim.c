/* Runs one operation of the protocol header on a shared image: the code that is stepped. */
#include "stepping.h"

typedef struct {
    step_world *w;
    step_job *job;
} process;

static int op_marked(void *ctx, uint64_t version)
{
    step_world *w = ((process *)ctx)->w;
    return version < VERSIONS && (atomic_load_explicit(&w->marks[version], memory_order_relaxed) != 0 ||
                                  atomic_load_explicit(&w->own[version], memory_order_relaxed) != 0);
}

static int op_fill(void *ctx, uint32_t part, uint64_t segment)
{
    process *p = ctx;
    if (segment >= IDS)
        return -EFBIG;
    atomic_store_explicit(&p->w->named[segment], 1, memory_order_relaxed);
    atomic_store_explicit(&p->w->bytes[segment][0], step_word_of(segment, 0), memory_order_relaxed);
    if (p->job->no_room >> 31 || p->job->no_room >> part & 1u) {
        p->job->no_room &= ~(1u << part);
        return -ENOSPC;
    }
    atomic_store_explicit(&p->w->bytes[segment][1], step_word_of(segment, 1), memory_order_relaxed);
    atomic_store_explicit(&p->w->named[segment], 2, memory_order_relaxed);
    return 0;
}

static int op_unlink(void *ctx, uint64_t segment)
{
    if (segment < IDS)
        atomic_store_explicit(&((process *)ctx)->w->named[segment], 0, memory_order_relaxed);
    return 0;
}

static void op_wake(void *ctx) { (void)ctx; }

static const shmcow_writer_ops writer_ops = {op_marked, op_fill, op_unlink, op_wake};

static void op_mark(void *ctx, uint64_t version)
{
    if (version < VERSIONS)
        atomic_fetch_add_explicit(&((process *)ctx)->w->own[version], 1, memory_order_relaxed);
}

static void op_clear(void *ctx, uint64_t version)
{
    if (version < VERSIONS)
        atomic_fetch_sub_explicit(&((process *)ctx)->w->own[version], 1, memory_order_relaxed);
}

static int op_map(void *ctx, const shmcow_entry *entry)
{
    for (uint32_t k = 0; k < entry->segment_count; k++)
        if (entry->segments[k].id >= IDS ||
            atomic_load_explicit(&((process *)ctx)->w->named[entry->segments[k].id], memory_order_relaxed) == 0)
            return -ENOENT;
    return 0;
}

static void op_yield(void *ctx) { (void)ctx; }

static const shmcow_reader_ops reader_ops = {op_mark, op_clear, op_map, op_yield};

void step_run(step_world *w, step_job *job)
{
    process p = {w, job};
    shmcow_header *h = &w->header;
    int r = 0;
    switch (job->op) {
    case TURN:
        r = shmcow_recover(h, &writer_ops, &p);
        if (r < 0)
            break;
        /* fall through */
    case PUBLISH:
        r = shmcow_publish(h, &writer_ops, &p, &job->crc, &job->entry, job->fresh, job->expected);
        break;
    case RECLAIM: r = shmcow_reclaim(h, &writer_ops, &p, job->argument); break;
    case GIVE_UP: r = shmcow_give_up(h, &writer_ops, &p, job->argument); break;
    case DISCARD: r = shmcow_discard(h, &writer_ops, &p, job->argument, false); break;
    case DROP: r = shmcow_discard(h, &writer_ops, &p, job->argument, true); break;
    case RECOVER: r = shmcow_recover(h, &writer_ops, &p); break;
    case DESTROY:
        shmcow_end(h, &writer_ops, &p);
        r = shmcow_unlink_all(h, &writer_ops, &p);
        break;
    case HOLD: r = shmcow_hold_current(h, &reader_ops, &p, &job->crc, &job->entry); break;
    case HOLD_VERSION:
        r = shmcow_hold_version(h, &reader_ops, &p, &job->crc, job->argument, &job->entry);
        break;
    default: r = -EINVAL;
    }
    job->result = r;
}
