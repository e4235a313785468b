/* Words, entries, and what a reader does: hold the current version, or an older one. */
static void test_words(void)
{
    CHECK(shmcow_index_of(shmcow_current_word(63, 7)) == 63 && shmcow_version_of(shmcow_current_word(63, 7)) == 7);
    CHECK(shmcow_version_of(shmcow_current_word(1, SHMCOW_VERSION_MAX)) == SHMCOW_VERSION_MAX);
    CHECK(shmcow_word(3, SHMCOW_HELD) == (3 << 16 | 3) && shmcow_word_version(3 << 16 | 5) == 3);
    CHECK(shmcow_word_state(7 << 16 | 0xFFFF) == 0xFFFF);
    for (unsigned state = 0; state < 8; state++) {
        bool may = state == SHMCOW_READY || state == SHMCOW_HELD;
        CHECK(shmcow_openable(5 << 16 | state, 5) == may && !shmcow_openable(5 << 16 | state, 6));
    }
    begin();
    for (int k = 0; k < SHMCOW_COUNTERS; k++)
        shmcow_count(h, (enum shmcow_counter)k);
    for (int k = 0; k < SHMCOW_COUNTERS; k++)
        CHECK(counted((enum shmcow_counter)k) == 1);
}

static void test_listing(void)
{
    shmcow_entry in, out;
    begin();
    for (size_t k = 0; k < sizeof in; k++)
        ((uint8_t *)&in)[k] = (uint8_t)(k * 7 + k / 256);
    in.segment_count = 16;
    shmcow_store_entry(h, 63, &in);
    shmcow_store_entry(h, 1, &in);
    shmcow_load_entry(h, 63, &out);
    CHECK(memcmp(&in, &out, sizeof in) == 0);
    shmcow_load_entry(h, 1, &out);
    CHECK(memcmp(&in, &out, sizeof in) == 0);
    CHECK(h->entries[0][191] == 0 && h->entries[2][0] == 0 && h->entries[62][191] == 0);
    for (unsigned k = 0; k < 16; k++) {
        CHECK(shmcow_listed_segment(h, 63, k) == in.segments[k].id);
        CHECK(shmcow_listed_length(h, 63, k) == in.segments[k].length);
    }
    CHECK(shmcow_listed_origin(h, 63) == in.origin);
    const uint32_t counts[] = {0, 1, 15, 16, 17, 0xFFFFFFFFu};
    for (int k = 0; k < 6; k++) {
        in.segment_count = counts[k];
        shmcow_store_entry(h, 0, &in);
        CHECK(shmcow_listed_count(h, 0) == (counts[k] < 16 ? counts[k] : 16));
    }
}

static void test_listed(void)
{
    begin();
    put(0, 1, SHMCOW_HELD, 10, 2, 100);
    put(63, 2, SHMCOW_DOOMED, 30, 16, 5000);
    put(5, 3, SHMCOW_FREE, 50, 1, 100);
    CHECK(shmcow_listed(h, 10, 63) && shmcow_listed(h, 11, 63) && !shmcow_listed(h, 12, 63));
    CHECK(!shmcow_listed(h, 10, 0) && shmcow_listed(h, 30, 0) && shmcow_listed(h, 45, 0) && !shmcow_listed(h, 45, 63));
    CHECK(!shmcow_listed(h, 50, 0));
    CHECK(shmcow_total_bytes(h) == 2 * 4096 + 16 * 8192);
    put(4, 4, SHMCOW_FREE, 10, 1, 100); /* FREE lists nothing: neither itself nor before others */
    CHECK(shmcow_total_bytes(h) == 2 * 4096 + 16 * 8192);
    put(1, 4, SHMCOW_FREE, 70, 1, 100);
    put(2, 5, SHMCOW_HELD, 70, 1, 100);
    CHECK(shmcow_total_bytes(h) == 3 * 4096 + 16 * 8192);
    put(3, 6, SHMCOW_HELD, 11, 1, 100); /* shared with the first */
    CHECK(shmcow_total_bytes(h) == 3 * 4096 + 16 * 8192);
    put(12, 6, SHMCOW_HELD, 10, 2, 100);
    CHECK(shmcow_total_bytes(h) == 3 * 4096 + 16 * 8192);
    put(6, 7, SHMCOW_BUILDING, 71, 3, 100);
    CHECK(shmcow_total_bytes(h) == 6 * 4096 + 16 * 8192);
    shmcow_entry stale = {.version = 8, .segment_count = 1, .segments = {{.id = 80}, {.id = 81}}};
    shmcow_store_entry(h, 7, &stale); /* what is behind the list means nothing */
    h->words[7] = shmcow_word(8, SHMCOW_HELD);
    put(8, 9, SHMCOW_HELD, 81, 1, 100);
    CHECK(shmcow_listed(h, 80, 0) && !shmcow_listed(h, 81, 8));
    CHECK(shmcow_total_bytes(h) == 8 * 4096 + 16 * 8192);
    h->words[7] = h->words[8] = 0;
    h->entries[6][(offsetof(shmcow_entry, segments) + 8) / 8] |= UINT64_C(1) << 60; /* no length overflows */
    CHECK(shmcow_total_bytes(h) == 6 * 4096 + 16 * 8192);
}

static shmcow_entry held;
static int hold_current(void) { return shmcow_hold_current(h, &reader, NULL, &table, &held); }
static int hold_version(uint64_t version) { return shmcow_hold_version(h, &reader, NULL, &table, version, &held); }
static void now_marked(uint64_t version, int marks)
{
    CHECK(world.marks[version] == marks);
    CHECK((int)world.marked - (int)world.cleared == marks);
}

static void publish_at_map(void)
{
    world.at_map = NULL;
    put(3, 4, SHMCOW_HELD, 40, 1, 100);
    make_current(3, 4);
    h->words[2] = shmcow_word(3, SHMCOW_DOOMED);
}

static void publish_at_mark(const char *name)
{
    if (strcmp(name, "hold.marked") == 0) {
        world.at_step = NULL;
        publish_at_map();
    }
}

static void give_up_at_map(void)
{
    world.at_map = NULL;
    h->current = SHMCOW_DESTROYED; /* and the successor sweeps the names; the words stay as they were */
}

static void doom_at_map(void) { h->words[1] = shmcow_word(2, SHMCOW_DOOMED); }
static void live_again(void)
{
    if (world.yields == 64)
        h->words[2] = shmcow_word(3, SHMCOW_HELD);
}

static void test_hold_current(void)
{
    begin();
    CHECK(hold_current() == SHMCOW_EMPTY);
    h->current = SHMCOW_DESTROYED;
    CHECK(hold_current() == SHMCOW_ENDED);
    history(0, 1);
    CHECK(hold_current() == SHMCOW_OK && held.version == 1);
    begin();
    history(0, 3);
    CHECK(hold_current() == SHMCOW_OK && held.version == 3 && held.segments[0].id == 30);
    CHECK(strcmp(world.log, "hold.marked hold.copied hold.held ") == 0);
    now_marked(3, 1);
    h->words[2] = shmcow_word(3, SHMCOW_READY);
    CHECK(hold_current() == SHMCOW_OK && world.yields == 0);
    world.maps = 0;
    for (unsigned index = 64; index < 0x10000; index = index * 2 + 1) { /* beyond the table: refused, not read */
        make_current(index, 3);
        CHECK(hold_current() == SHMCOW_CORRUPT && world.marked == 2);
    }
    make_current(63, 3);
    CHECK(hold_current() == SHMCOW_CORRUPT && world.maps == 0); /* the same word twice: not for ever */
    now_marked(3, 2);
    put(63, 3, SHMCOW_HELD, 30, 1, 100);
    CHECK(hold_current() == SHMCOW_OK);
    history(0, 3);
    h->entries[2][20] ^= 1;
    CHECK(hold_current() == SHMCOW_CORRUPT && world.maps == 1);
    now_marked(3, 3);
}

static void test_hold_is_moved_on(void)
{
    begin();
    history(0, 3);
    world.at_step = publish_at_mark;
    CHECK(hold_current() == SHMCOW_OK && held.version == 4);
    now_marked(4, 1);
    begin();
    history(0, 3);
    world.at_map = publish_at_map;
    world.map_error[0] = -ENOENT;
    CHECK(hold_current() == SHMCOW_OK && held.version == 4 && world.maps == 2);
    now_marked(4, 1);
    begin();
    history(0, 3);
    world.map_error[0] = -ENOENT; /* gone, and yet the word says HELD */
    CHECK(hold_current() == SHMCOW_MISSING);
    now_marked(3, 0);
    begin();
    history(0, 3);
    world.at_map = give_up_at_map;
    world.map_error[0] = -ENOENT;
    CHECK(hold_current() == SHMCOW_ENDED);
    now_marked(3, 0);
    begin();
    history(0, 3);
    world.map_error[0] = -EMFILE;
    CHECK(hold_current() == -EMFILE);
    now_marked(3, 0);
    h->words[2] = shmcow_word(3, SHMCOW_CONDEMNED);
    CHECK(hold_current() == SHMCOW_CORRUPT && world.yields == 64);
    now_marked(3, 0);
    world.yields = 0;
    world.at_yield = live_again;
    CHECK(hold_current() == SHMCOW_OK && world.yields == 64);
    h->words[2] = shmcow_word(4, SHMCOW_CONDEMNED); /* another version's judge: nothing to wait for */
    world.yields = 0;
    CHECK(hold_current() == SHMCOW_CORRUPT && world.yields == 0);
}

static void test_hold_version(void)
{
    begin();
    h->current = SHMCOW_DESTROYED;
    CHECK(hold_version(1) == SHMCOW_ENDED);
    history(60, 4);
    CHECK(hold_version(0) == SHMCOW_GONE && hold_version(5) == SHMCOW_GONE && world.marked == 0);
    CHECK(hold_version(4) == SHMCOW_OK && hold_version(1) == SHMCOW_OK && held.version == 1);
    put(10, 0, SHMCOW_HELD, 90, 1, 1);
    CHECK(hold_version(0) == SHMCOW_GONE);
    h->entries[0][0] = shmcow_word(77, SHMCOW_HELD);
    CHECK(shmcow_find_version(h, 77) == SHMCOW_GONE); /* what lies behind the words is none of them */
    const enum shmcow_state states[] = {SHMCOW_FREE, SHMCOW_BUILDING, SHMCOW_DOOMED};
    for (int k = 0; k < 3; k++) {
        h->words[61] = shmcow_word(2, states[k]);
        CHECK(shmcow_find_version(h, 2) == SHMCOW_GONE && hold_version(2) == SHMCOW_GONE);
    }
    CHECK(world.marked == 2);
    h->words[61] = shmcow_word(2, SHMCOW_CONDEMNED);
    CHECK(shmcow_find_version(h, 2) == 61 && hold_version(2) == SHMCOW_GONE && world.yields == 64);
    h->words[61] = shmcow_word(2, SHMCOW_READY);
    CHECK(shmcow_find_version(h, 2) == 61 && hold_version(2) == SHMCOW_OK);
    put(5, 9, SHMCOW_HELD, 99, 1, 1); /* published meanwhile, say: above `current` as we looked */
    CHECK(hold_version(9) == SHMCOW_GONE);
    begin();
    history(0, 3);
    world.at_map = doom_at_map;
    world.map_error[0] = -ENOENT;
    CHECK(hold_version(2) == SHMCOW_GONE && world.maps == 1);
    now_marked(2, 0);
    history(0, 3);
    h->entries[0][3] ^= 2;
    CHECK(hold_version(1) == SHMCOW_CORRUPT);
    now_marked(1, 0);
}

static void test_reading(void)
{
    test_words();
    test_listing();
    test_listed();
    test_hold_current();
    test_hold_is_moved_on();
    test_hold_version();
}
