/* Publish: the order of things, without room, raced, and the end of a store. */
static int publish(shmcow_entry *entry, uint32_t fresh, uint64_t expected)
{
    return shmcow_publish(h, &writer, NULL, &table, entry, fresh, expected);
}

static void test_publish(void)
{
    begin();
    history(0, 2);
    h->retain = 1;
    shmcow_entry entry = fresh_entry(3, 100);
    entry.segments[1].id = 20;
    CHECK(publish(&entry, 5, SHMCOW_DESTROYED) == SHMCOW_OK && entry.version == 3);
    CHECK(entry.segments[0].id == 30 && entry.segments[1].id == 20 && entry.segments[2].id == 31);
    CHECK(h->next_segment == 31 && h->current == shmcow_current_word(2, 3) && word(2) == shmcow_word(3, SHMCOW_HELD));
    CHECK(strcmp(world.log, "publish.list publish.building publish.fill fill:0=30 publish.fill fill:2=31 "
                            "publish.filled publish.ready publish.flipped wake publish.woken publish.held "
                            "judge.condemned judge.doomed drop.unlink unlink:10 drop.free publish.reclaimed ") == 0);
    CHECK(counted(SHMCOW_COUNT_PUBLISHED) == 1 && counted(SHMCOW_COUNT_ROLLED_BACK) == 0 && world.wakes == 1);
    CHECK(hold_current() == SHMCOW_OK && held.segment_count == 3 && hold_version(2) == SHMCOW_OK);
    entry = fresh_entry(1, 100);
    CHECK(publish(&entry, 1, 2) == SHMCOW_CONFLICT && counted(SHMCOW_COUNT_CONFLICTS) == 1 && h->next_segment == 31);
    entry.origin = 2;
    entry.segments[0].id = 20;
    CHECK(publish(&entry, 0, 3) == SHMCOW_OK && entry.version == 4 && entry.segments[0].id == 20);
    CHECK(counted(SHMCOW_COUNT_ROLLED_BACK) == 1 && counted(SHMCOW_COUNT_PUBLISHED) == 1 && world.fills == 2);
    h->current = SHMCOW_DESTROYED;
    CHECK(publish(&entry, 0, SHMCOW_DESTROYED) == SHMCOW_ENDED);
    make_current(0, SHMCOW_VERSION_MAX);
    CHECK(publish(&entry, 0, SHMCOW_DESTROYED) == SHMCOW_CROWDED);
    make_current(0, SHMCOW_VERSION_MAX - 1);
    CHECK(publish(&entry, 0, SHMCOW_DESTROYED) == SHMCOW_OK && entry.version == SHMCOW_VERSION_MAX);
    begin();
    entry = fresh_entry(16, 4000);
    CHECK(publish(&entry, 0xFFFF, 0) == SHMCOW_OK && entry.version == 1 && world.parts_filled == 0xFFFF);
    CHECK(h->next_segment == 16 && entry.segments[0].id == 1 && entry.segments[15].id == 16);
}

static void test_publish_without_room(void)
{
    begin();
    history(0, 4);
    h->retain = 10;
    shmcow_entry entry = fresh_entry(2, 100);
    entry.segments[1].id = 20;
    world.fill_error[0] = world.fill_error[1] = -ENOSPC;
    CHECK(publish(&entry, 1, SHMCOW_DESTROYED) == SHMCOW_OK && !world.named[10] && world.named[20] && !world.named[30] == 0);
    CHECK(counted(SHMCOW_COUNT_GIVEN_UP) == 2 && world.fills == 3); /* version 2 went, its segment is shared */
    for (int k = 3; k < 10; k++)
        world.fill_error[k] = -ENOSPC;
    entry = fresh_entry(1, 100);
    CHECK(publish(&entry, 1, SHMCOW_DESTROYED) == -ENOSPC && shmcow_version_of(h->current) == 5);
    CHECK(!world.named[entry.segments[0].id] && shmcow_recover(h, &writer, NULL) == 0 && world.wakes == 1);
    begin();
    history(0, 2);
    world.fill_error[0] = -EIO;
    CHECK(publish(&entry, 1, SHMCOW_DESTROYED) == -EIO && world.named[10] && word(2) == shmcow_word(3, SHMCOW_FREE));
    CHECK(!world.named[30] && h->next_segment == 30);
    world.fill_error[1] = -ENOSPC;
    world.unlink_error[1] = -EPERM;
    CHECK(publish(&entry, 1, SHMCOW_DESTROYED) == -EPERM);
    begin();
    history(0, 4);
    h->retain = 10;
    h->max_total_bytes = 5 * 4096; /* two fresh parts of three: of two pages each, and one */
    entry = fresh_entry(3, 100);
    entry.segments[0].length = 4096;
    entry.segments[1] = (shmcow_segment){.id = 40, .length = 1 << 20};
    CHECK(publish(&entry, 5, SHMCOW_DESTROYED) == SHMCOW_OK && !world.named[20] && world.named[30]);
    h->max_total_bytes = 4096;
    CHECK(publish(&entry, 5, SHMCOW_DESTROYED) == SHMCOW_QUOTA);
    begin();
    history(0, 64);
    world.unlink_error[0] = -EIO;
    entry = fresh_entry(1, 100);
    CHECK(publish(&entry, 1, SHMCOW_DESTROYED) == -EIO && world.fills == 0);
}

static void take_place(const char *name)
{
    if (strcmp(name, "publish.list") == 0)
        h->words[2] = shmcow_word(3, SHMCOW_BUILDING);
}
static void flip_first(const char *name)
{
    if (strcmp(name, "publish.ready") == 0)
        make_current(0, 3);
}
static void end_first(const char *name)
{
    if (strcmp(name, "publish.ready") == 0)
        h->current = SHMCOW_DESTROYED;
}
static void lose_build(const char *name)
{
    if (strcmp(name, "publish.filled") == 0)
        h->words[2] = shmcow_word(3, SHMCOW_DOOMED);
}

static void test_publish_is_raced(void)
{
    void (*const steps[])(const char *) = {take_place, flip_first, end_first, lose_build};
    const int wanted[] = {SHMCOW_RACED, SHMCOW_RACED, SHMCOW_ENDED, SHMCOW_RACED};
    for (int k = 0; k < 4; k++) {
        begin();
        history(0, 2);
        shmcow_entry entry = fresh_entry(1, 100);
        world.at_step = steps[k];
        CHECK(publish(&entry, 1, SHMCOW_DESTROYED) == wanted[k] && world.wakes == 0);
        if (k == 1 || k == 2)
            CHECK(word(2) == shmcow_word(3, SHMCOW_FREE) && !world.named[entry.segments[0].id]);
        else
            CHECK(world.unlinks == 0);
        CHECK(counted(SHMCOW_COUNT_PUBLISHED) == 0);
    }
    const uint64_t last = SHMCOW_VERSION_MAX - SHMCOW_MAX_SEGMENTS;
    for (uint64_t next = last - 1; next <= last + 1; next++) {
        begin();
        history(0, 2);
        h->next_segment = next;
        shmcow_entry entry = fresh_entry(1, 100);
        CHECK(publish(&entry, 1, SHMCOW_DESTROYED) == (next > last ? SHMCOW_CORRUPT : SHMCOW_OK));
    }
}

static void sees_end(uint64_t segment)
{
    (void)segment;
    CHECK(h->current == SHMCOW_DESTROYED && world.wakes == 1);
}

static void test_end(void)
{
    begin();
    history(0, 5);
    for (uint32_t i = 0; i < 5; i++)
        h->words[i] = shmcow_word(i + 1, (enum shmcow_state)(i + 1));
    put(63, 9, SHMCOW_HELD, 90, 2, 100);
    world.at_unlink = sees_end;
    shmcow_end(h, &writer, NULL);
    CHECK(h->current == SHMCOW_DESTROYED && strcmp(world.log, "destroy.end destroy.ended wake ") == 0);
    world.unlink_error[6] = -EIO;
    CHECK(shmcow_unlink_all(h, &writer, NULL) == -EIO && word(63) == shmcow_word(9, SHMCOW_DOOMED));
    for (uint32_t i = 0; i < 5; i++)
        CHECK(word(i) == shmcow_word(i + 1, SHMCOW_FREE) && !world.named[10 * (i + 1)]);
    CHECK(shmcow_unlink_all(h, &writer, NULL) == SHMCOW_OK && word(63) == shmcow_word(9, SHMCOW_FREE));
    CHECK(world.unlinks == 9 && shmcow_unlink_all(h, &writer, NULL) == SHMCOW_OK && world.unlinks == 9);
}
