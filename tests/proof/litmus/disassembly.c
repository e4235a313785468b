/* The functions of the protocol, each under a name that a disassembler finds. */
#include "shmcow_protocol.h"

int flip(shmcow_header *h, uint64_t *from, uint64_t to) { return shmcow_flip(h, from, to); }
void end_store(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx) { shmcow_end(h, ops, ctx); }
uint64_t load_current(const shmcow_header *h) { return shmcow_load_current(h); }
uint64_t load_word(const shmcow_header *h, uint32_t i) { return shmcow_load_word(h, i); }
void load_entry(const shmcow_header *h, uint32_t i, shmcow_entry *out) { shmcow_load_entry(h, i, out); }
void store_entry(shmcow_header *h, uint32_t i, const shmcow_entry *entry) { shmcow_store_entry(h, i, entry); }
int judge(shmcow_header *h, const shmcow_writer_ops *ops, void *ctx, uint32_t i) { return shmcow_judge(h, ops, ctx, i, false); }
int advance(shmcow_header *h, uint32_t i, uint64_t version)
{
    return shmcow_advance(h, i, version, SHMCOW_BUILDING, SHMCOW_READY);
}
int hold_one(const shmcow_header *h, const shmcow_reader_ops *ops, void *ctx, const shmcow_crc_table *table, uint32_t i,
             uint64_t version, shmcow_entry *out)
{
    return shmcow_hold_one(h, ops, ctx, table, i, version, out);
}
