/* What a writer does: judge, drop, recover, reclaim, make room, publish, end. */
static void test_drop(void)
{
    begin();
    put(0, 1, SHMCOW_HELD, 10, 3, 100);
    put(1, 2, SHMCOW_HELD, 11, 1, 100);
    CHECK(shmcow_drop(h, &writer, NULL, 0) == SHMCOW_OK && word(0) == shmcow_word(1, SHMCOW_FREE));
    CHECK(strcmp(world.log, "drop.unlink unlink:10 drop.unlink unlink:12 drop.free ") == 0);
    begin();
    put(63, 1, SHMCOW_DOOMED, 10, 3, 100);
    world.unlink_error[1] = -EIO;
    CHECK(shmcow_drop(h, &writer, NULL, 63) == -EIO && word(63) == shmcow_word(1, SHMCOW_DOOMED) && world.unlinks == 2);
    CHECK(shmcow_advance(h, 63, 1, SHMCOW_HELD, SHMCOW_FREE) == SHMCOW_RACED);
    CHECK(shmcow_advance(h, 63, 2, SHMCOW_DOOMED, SHMCOW_FREE) == SHMCOW_RACED);
    CHECK(shmcow_advance(h, 63, 1, SHMCOW_DOOMED, SHMCOW_FREE) == SHMCOW_OK);
    shmcow_entry stale = {.version = 4, .segment_count = 1, .segments = {{.id = 80}, {.id = 81}}};
    shmcow_store_entry(h, 2, &stale); /* what is behind the list is not this generation's */
    h->words[2] = shmcow_word(4, SHMCOW_BUILDING);
    unsigned before = world.unlinks;
    CHECK(shmcow_drop(h, &writer, NULL, 2) == SHMCOW_OK && world.unlinks == before + 1);
    world.unlinks = before;
    put(3, 4, SHMCOW_BUILDING, 0, 2, 100); /* an id of 0 is none */
    world.unlinks = 2;
    CHECK(shmcow_drop(h, &writer, NULL, 3) == SHMCOW_OK && world.unlinks == 3 && strstr(world.log, "unlink:1 ") != NULL);
}

static void sees_condemned(uint64_t version) { CHECK(word((uint32_t)version - 1) == shmcow_word(version, SHMCOW_CONDEMNED)); }
static void sees_doomed(uint64_t segment)
{
    CHECK(word((uint32_t)segment / 10 - 1) == shmcow_word(segment / 10, SHMCOW_DOOMED));
}

static void judge_begin(void)
{
    begin();
    history(0, 3);
    world.at_mark_test = sees_condemned;
    world.at_unlink = sees_doomed;
}

static void test_judge(void)
{
    judge_begin();
    CHECK(shmcow_judge(h, &writer, NULL, 0, false) == 1 && word(0) == shmcow_word(1, SHMCOW_FREE) && !world.named[10]);
    CHECK(counted(SHMCOW_COUNT_RECLAIMED) == 1 && counted(SHMCOW_COUNT_FORCED) == 0);
    CHECK(strcmp(world.log, "judge.condemned judge.doomed drop.unlink unlink:10 drop.free ") == 0);
    world.marks[2] = 1;
    CHECK(shmcow_judge(h, &writer, NULL, 1, false) == 0 && word(1) == shmcow_word(2, SHMCOW_HELD) && world.unlinks == 1);
    world.marks[2] = -EIO; /* who cannot tell leaves it alone */
    CHECK(shmcow_judge(h, &writer, NULL, 1, false) == 0 && word(1) == shmcow_word(2, SHMCOW_HELD));
    h->words[1] = shmcow_word(2, SHMCOW_CONDEMNED);
    CHECK(shmcow_judge(h, &writer, NULL, 1, false) == 0 && word(1) == shmcow_word(2, SHMCOW_HELD));
    CHECK(shmcow_judge(h, &writer, NULL, 1, true) == 1 && word(1) == shmcow_word(2, SHMCOW_FREE));
    CHECK(counted(SHMCOW_COUNT_RECLAIMED) == 1 && counted(SHMCOW_COUNT_FORCED) == 1);
    judge_begin();
    CHECK(shmcow_judge(h, &writer, NULL, 0, true) == 1 && counted(SHMCOW_COUNT_RECLAIMED) == 1);
    h->words[1] = shmcow_word(2, SHMCOW_READY);
    world.at_mark_test = NULL;
    CHECK(shmcow_judge(h, &writer, NULL, 1, false) == SHMCOW_RACED && word(1) == shmcow_word(2, SHMCOW_READY));
    world.marks[2] = 1;
    CHECK(shmcow_judge(h, &writer, NULL, 1, false) == SHMCOW_RACED);
    world.marks[2] = 0;
    h->words[1] = shmcow_word(2, SHMCOW_CONDEMNED);
    world.unlink_error[1] = -EPERM;
    CHECK(shmcow_judge(h, &writer, NULL, 1, false) == -EPERM && word(1) == shmcow_word(2, SHMCOW_DOOMED));
}

static void steal(uint64_t version)
{
    h->words[0] = shmcow_word(version, SHMCOW_DOOMED); /* a writer on a lost lock */
}

static void test_judge_is_raced(void)
{
    begin();
    history(0, 2);
    world.at_mark_test = steal;
    CHECK(shmcow_judge(h, &writer, NULL, 0, false) == SHMCOW_RACED && world.unlinks == 0);
    history(0, 2);
    world.marks[1] = 1;
    CHECK(shmcow_judge(h, &writer, NULL, 0, false) == SHMCOW_RACED);
    history(0, 2);
    CHECK(shmcow_reclaim(h, &writer, NULL, 0) == SHMCOW_RACED);
}

static void test_recover(void)
{
    begin();
    history(0, 5);
    put(10, 6, SHMCOW_BUILDING, 60, 2, 100);
    put(11, 6, SHMCOW_READY, 70, 1, 100);
    h->words[4] = shmcow_word(5, SHMCOW_READY); /* current */
    h->words[3] = shmcow_word(4, SHMCOW_READY);
    h->words[0] = shmcow_word(1, SHMCOW_DOOMED);
    h->words[1] = shmcow_word(2, SHMCOW_CONDEMNED);
    h->words[2] = shmcow_word(3, SHMCOW_CONDEMNED);
    world.marks[3] = 1;
    CHECK(shmcow_recover(h, &writer, NULL) == 7 && counted(SHMCOW_COUNT_RECOVERED) == 7);
    CHECK(!world.named[60] && !world.named[61] && !world.named[70] && !world.named[10] && !world.named[20]);
    CHECK(world.named[30] && world.named[40] && world.named[50] && world.unlinks == 5);
    for (uint32_t i = 0; i < 64; i++)
        CHECK(shmcow_word_state(word(i)) == (i >= 2 && i <= 4 ? SHMCOW_HELD : SHMCOW_FREE));
    CHECK(shmcow_recover(h, &writer, NULL) == 0 && counted(SHMCOW_COUNT_RECOVERED) == 7);
    const enum shmcow_state states[] = {SHMCOW_BUILDING, SHMCOW_READY, SHMCOW_CONDEMNED, SHMCOW_DOOMED};
    for (int k = 0; k < 4; k++) {
        put(63, 9, states[k], 90, 1, 100);
        world.unlink_error[world.unlinks] = -EIO;
        CHECK(shmcow_recover(h, &writer, NULL) == -EIO && counted(SHMCOW_COUNT_RECOVERED) == 7);
    }
    h->words[63] = shmcow_word(9, (enum shmcow_state)6);
    CHECK(shmcow_recover(h, &writer, NULL) == SHMCOW_CORRUPT);
    h->current = SHMCOW_DESTROYED;
    CHECK(shmcow_recover(h, &writer, NULL) == SHMCOW_ENDED);
}

static void test_older(void)
{
    uint32_t out[SHMCOW_GENERATIONS];
    begin();
    put(5, 2, SHMCOW_HELD, 20, 1, 100);
    put(63, 4, SHMCOW_HELD, 40, 1, 100);
    put(0, 3, SHMCOW_HELD, 30, 1, 100);
    put(9, 1, SHMCOW_HELD, 10, 1, 100);
    put(7, 5, SHMCOW_HELD, 50, 1, 100);
    put(8, 6, SHMCOW_HELD, 60, 1, 100); /* not of this time: never */
    put(10, 3, SHMCOW_READY, 70, 1, 100);
    make_current(7, 5);
    CHECK(shmcow_older(h, 0, out) == 4 && out[0] == 63 && out[1] == 0 && out[2] == 5 && out[3] == 9);
    CHECK(shmcow_older(h, 3, out) == 3 && out[0] == 63 && out[1] == 5 && out[2] == 9);
    CHECK(shmcow_discard(h, &writer, NULL, 5, true) == SHMCOW_GONE && shmcow_discard(h, &writer, NULL, 9, true) == SHMCOW_GONE);
    world.marks[3] = 1;
    CHECK(shmcow_discard(h, &writer, NULL, 3, false) == 0 && shmcow_discard(h, &writer, NULL, 4, false) == 1);
    CHECK(shmcow_discard(h, &writer, NULL, 4, false) == SHMCOW_GONE && shmcow_discard(h, &writer, NULL, 1, false) == 1);
    CHECK(shmcow_older(h, 0, out) == 2 && counted(SHMCOW_COUNT_FORCED) == 0);
    CHECK(shmcow_discard(h, &writer, NULL, 3, true) == 1 && counted(SHMCOW_COUNT_FORCED) == 1);
    CHECK(shmcow_older(h, 0, out) == 1 && out[0] == 5);
}

static void test_reclaim(void)
{
    begin();
    history(0, 6);
    world.marks[2] = 1;
    CHECK(shmcow_reclaim(h, &writer, NULL, 5) == 0 && shmcow_reclaim(h, &writer, NULL, 100) == 0);
    CHECK(shmcow_reclaim(h, &writer, NULL, 2) == 2 && !world.named[10] && world.named[20] && !world.named[30]);
    CHECK(world.named[40] && counted(SHMCOW_COUNT_RECLAIMED) == 2);
    CHECK(shmcow_reclaim(h, &writer, NULL, 0) == 2 && world.named[60] && world.named[20]);
    world.marks[2] = 0;
    CHECK(shmcow_reclaim(h, &writer, NULL, 0) == 1 && shmcow_reclaim(h, &writer, NULL, 0) == 0);
    begin();
    history(0, 3);
    world.unlink_error[1] = -EIO;
    CHECK(shmcow_reclaim(h, &writer, NULL, 0) == -EIO);
}

static void test_give_up(void)
{
    begin();
    history(0, 4);
    world.marks[1] = 1;
    CHECK(shmcow_give_up(h, &writer, NULL, 2) == 1 && world.named[10] && world.named[20] && !world.named[30]);
    CHECK(counted(SHMCOW_COUNT_GIVEN_UP) == 1);
    CHECK(shmcow_give_up(h, &writer, NULL, 0) == 1 && !world.named[20] && counted(SHMCOW_COUNT_GIVEN_UP) == 2);
    CHECK(shmcow_give_up(h, &writer, NULL, 0) == 0 && counted(SHMCOW_COUNT_GIVEN_UP) == 2);
    world.marks[1] = 0;
    world.unlink_error[2] = -EIO;
    CHECK(shmcow_give_up(h, &writer, NULL, 0) == -EIO && counted(SHMCOW_COUNT_GIVEN_UP) == 2);
    CHECK(shmcow_find_free(h) == 1);
}

static void test_take_generation(void)
{
    begin();
    CHECK(shmcow_take_generation(h, &writer, NULL, 0) == 0);
    history(0, 63);
    CHECK(shmcow_take_generation(h, &writer, NULL, 0) == 63);
    history(0, 64);
    CHECK(shmcow_find_free(h) == SHMCOW_CROWDED);
    world.marks[1] = 1;
    CHECK(shmcow_take_generation(h, &writer, NULL, 2) == 2 && world.named[10] && world.named[20] && !world.named[30]);
    history(0, 64);
    for (int v = 1; v <= 64; v++)
        world.marks[v] = 1;
    CHECK(shmcow_take_generation(h, &writer, NULL, 1) == 1 && counted(SHMCOW_COUNT_FORCED) == 1 && world.named[10]);
    history(0, 64);
    CHECK(shmcow_take_generation(h, &writer, NULL, 0) == 0 && counted(SHMCOW_COUNT_FORCED) == 2);
    history(0, 64);
    world.unlink_error[world.unlinks] = -EIO;
    CHECK(shmcow_take_generation(h, &writer, NULL, 0) == -EIO);
    history(0, 64);
    make_current(1, 2); /* one is older, and held */
    world.marks[1] = 1;
    CHECK(shmcow_take_generation(h, &writer, NULL, 0) == 0);
    history(0, 64);
    h->entries[0][0] = 0; /* what lies behind the words is none of them */
    make_current(0, 1); /* nothing is older */
    CHECK(shmcow_take_generation(h, &writer, NULL, 0) == SHMCOW_CROWDED);
}

static void test_quota(void)
{
    begin();
    history(0, 4);
    CHECK(shmcow_keep_quota(h, &writer, NULL, UINT64_MAX / 2, 0) == SHMCOW_OK);
    h->max_total_bytes = 4096;
    h->words[0] = h->words[1] = h->words[2] = h->words[3] = 0;
    CHECK(shmcow_keep_quota(h, &writer, NULL, 4096, 0) == SHMCOW_OK);
    history(0, 4);
    h->max_total_bytes = 5 * 4096;
    CHECK(shmcow_keep_quota(h, &writer, NULL, 5 * 4096 + 1, 0) == SHMCOW_QUOTA && world.unlinks == 0);
    CHECK(shmcow_keep_quota(h, &writer, NULL, 4096, 0) == SHMCOW_OK && world.unlinks == 0);
    CHECK(shmcow_keep_quota(h, &writer, NULL, 4097, 0) == SHMCOW_OK && world.unlinks == 1);
    CHECK(shmcow_keep_quota(h, &writer, NULL, 4 * 4096, 0) == SHMCOW_OK && world.unlinks == 3 && world.named[40]);
    CHECK(shmcow_keep_quota(h, &writer, NULL, 5 * 4096, 0) == SHMCOW_QUOTA && world.unlinks == 3);
    begin();
    history(0, 3);
    h->max_total_bytes = 3 * 4096;
    CHECK(shmcow_keep_quota(h, &writer, NULL, 2 * 4096, 1) == SHMCOW_QUOTA && world.named[10] && !world.named[20]);
    world.unlink_error[1] = -EIO;
    CHECK(shmcow_keep_quota(h, &writer, NULL, 2 * 4096, 0) == -EIO);
}

#include "unit_publish.h"

static void test_writing(void)
{
    test_drop();
    test_judge();
    test_judge_is_raced();
    test_recover();
    test_older();
    test_reclaim();
    test_give_up();
    test_take_generation();
    test_quota();
    test_publish();
    test_publish_without_room();
    test_publish_is_raced();
    test_end();
}
