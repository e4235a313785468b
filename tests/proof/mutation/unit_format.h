/* The checks of bytes: every problem by its name, and each bound on both of its sides. */
static uint32_t slow_crc(const uint8_t *p, size_t n)
{
    uint32_t c = 0xFFFFFFFFu;
    for (; n > 0; n--, p++) {
        c ^= *p;
        for (int bit = 0; bit < 8; bit++)
            c = (c & 1u) != 0 ? (c >> 1) ^ 0xEDB88320u : c >> 1;
    }
    return ~c;
}

static void test_crc(void)
{
    uint8_t data[400];
    for (size_t k = 0; k < sizeof data; k++)
        data[k] = (uint8_t)(k * 37 + 11);
    CHECK(shmcow_crc(&table, "123456789", 9) == 0xCBF43926u);
    for (size_t at = 0; at < 3; at++)
        for (size_t n = 0; n + at <= sizeof data; n++)
            CHECK(shmcow_crc(&table, data + at, n) == slow_crc(data + at, n));
}

static void test_identity(void)
{
    shmcow_identity id = {.name_bytes = 4, .name = "name"};
    const uint64_t whole = sizeof(shmcow_header);
    memset(&id.magic, 1, sizeof id.magic);
    shmcow_seal_identity(&table, &id);
    CHECK(id.byte_order == SHMCOW_BYTE_ORDER && id.abi == SHMCOW_ABI && memcmp(id.magic, SHMCOW_MAGIC, 8) == 0);
    CHECK(shmcow_check_identity(&table, &id, whole) == SHMCOW_FINE);
    CHECK(shmcow_check_identity(&table, &id, whole - 1) == SHMCOW_BAD_SIZE);
    CHECK(shmcow_check_identity(&table, &id, whole + 1) == SHMCOW_BAD_SIZE);
    CHECK(shmcow_check_identity(&table, &id, 0) == SHMCOW_BAD_SIZE);
    CHECK(shmcow_check_identity(&table, &id, sizeof id) == SHMCOW_BAD_SIZE);
    shmcow_identity bad = id;
    bad.abi++; /* a header of another release may be of any size: its number says more than its length */
    CHECK(shmcow_check_identity(&table, &bad, sizeof id) == SHMCOW_BAD_ABI);
    CHECK(shmcow_check_identity(&table, &bad, sizeof id - 1) == SHMCOW_BAD_SIZE);
    bad.byte_order++;
    CHECK(shmcow_check_identity(&table, &bad, whole) == SHMCOW_BAD_ORDER);
    bad.magic[7]++;
    CHECK(shmcow_check_identity(&table, &bad, whole) == SHMCOW_BAD_MAGIC);
    bad = id;
    bad.crc++;
    CHECK(shmcow_check_identity(&table, &bad, whole) == SHMCOW_BAD_CRC);
    uint32_t *shape[] = {&bad.header_bytes, &bad.entry_bytes, &bad.generations, &bad.max_segments};
    for (int k = 0; k < 4; k++) {
        bad = id;
        ++*shape[k];
        bad.crc = shmcow_crc(&table, &bad, offsetof(shmcow_identity, crc));
        CHECK(shmcow_check_identity(&table, &bad, whole) == SHMCOW_BAD_SHAPE);
        CHECK(bad.crc == slow_crc((const uint8_t *)&bad, 188));
    }
    const uint32_t lengths[] = {0, 1, 64, 65};
    for (int k = 0; k < 4; k++) {
        id.name_bytes = lengths[k];
        shmcow_seal_identity(&table, &id);
        CHECK(shmcow_check_identity(&table, &id, whole) == (k == 1 || k == 2 ? SHMCOW_FINE : SHMCOW_BAD_LENGTH));
    }
}

static shmcow_problem checked(shmcow_entry *entry, uint64_t version)
{
    shmcow_seal_entry(&table, entry);
    CHECK(entry->crc == slow_crc((const uint8_t *)entry, 1532));
    return shmcow_check_entry(&table, entry, version);
}

static void test_entry(void)
{
    shmcow_entry entry = {.version = 5, .segment_count = 16};
    for (unsigned k = 0; k < 16; k++)
        entry.segments[k] = (shmcow_segment){.id = k + 1, .length = SHMCOW_VERSION_MAX};
    CHECK(checked(&entry, 5) == SHMCOW_FINE);
    CHECK(checked(&entry, 6) == SHMCOW_BAD_VERSION);
    entry.crc ^= 1;
    CHECK(shmcow_check_entry(&table, &entry, 5) == SHMCOW_BAD_CRC);
    entry.segment_count = 17;
    CHECK(checked(&entry, 5) == SHMCOW_BAD_COUNT);
    entry.segment_count = 0;
    CHECK(checked(&entry, 5) == SHMCOW_BAD_COUNT);
    for (unsigned k = 0; k < 16; k += 5) {
        entry.segment_count = k + 1;
        entry.segments[k].id = 0;
        CHECK(checked(&entry, 5) == SHMCOW_BAD_SEGMENT);
        entry.segments[k].id = 7;
        entry.segments[k].length++;
        CHECK(checked(&entry, 5) == SHMCOW_BAD_LENGTH);
        entry.segments[k].length--;
        CHECK(checked(&entry, 5) == SHMCOW_FINE);
    }
    entry.segments[1].id = 0;
    entry.segment_count = 1; /* what is not listed is not looked at */
    CHECK(checked(&entry, 5) == SHMCOW_FINE);
}

static void test_sizes(void)
{
    const uint64_t lengths[] = {0, 1, 63, 64, 65, 127, 128};
    const uint64_t bytes[] = {128, 192, 192, 192, 256, 256, 256};
    for (int k = 0; k < 7; k++)
        CHECK(shmcow_segment_bytes(lengths[k]) == bytes[k]);
    CHECK(shmcow_segment_cost(0) == 4096 && shmcow_segment_cost(4096 - 128) == 4096);
    CHECK(shmcow_segment_cost((64 << 20) - 128) == 64 << 20);
    CHECK(shmcow_segment_cost(4096 - 127) == 8192 && shmcow_segment_cost(8192 - 128) == 8192);
}

static void test_footer(void)
{
    uint8_t epoch[16] = {1, 2, 3};
    shmcow_segment segment = {.id = 3, .length = 4, .crc = 5, .flags = SHMCOW_HAS_CRC};
    shmcow_footer good = {.segment = 3, .length = 4, .payload_crc = 5, .flags = SHMCOW_HAS_CRC}, bad;
    memcpy(good.epoch, epoch, 16);
    memset(good.magic, 1, 8);
    shmcow_seal_footer(&table, &good);
    CHECK(good.abi == SHMCOW_ABI && memcmp(good.magic, SHMCOW_FOOTER_MAGIC, 8) == 0);
    CHECK(good.crc == slow_crc((const uint8_t *)&good, 124));
    CHECK(shmcow_check_footer(&table, &good, epoch, &segment) == SHMCOW_FINE);
    bad = good;
    bad.crc++;
    CHECK(shmcow_check_footer(&table, &bad, epoch, &segment) == SHMCOW_BAD_CRC);
    bad.abi++;
    CHECK(shmcow_check_footer(&table, &bad, epoch, &segment) == SHMCOW_BAD_ABI);
    bad.magic[7]++;
    CHECK(shmcow_check_footer(&table, &bad, epoch, &segment) == SHMCOW_BAD_MAGIC);
    for (int k = 0; k < 5; k++) {
        const shmcow_problem wanted[] = {SHMCOW_BAD_EPOCH, SHMCOW_BAD_SEGMENT, SHMCOW_BAD_LENGTH, SHMCOW_BAD_CRC,
                                         SHMCOW_BAD_CRC};
        bad = good;
        bad.epoch[15] = k == 0 ? 9 : 0;
        bad.segment += k == 1;
        bad.length += k == 2;
        bad.payload_crc += k == 3;
        bad.flags += k == 4;
        shmcow_seal_footer(&table, &bad);
        CHECK(shmcow_check_footer(&table, &bad, epoch, &segment) == wanted[k]);
    }
    for (int a = SHMCOW_FINE; a <= SHMCOW_BAD_LENGTH; a++)
        for (int b = SHMCOW_FINE; b < a; b++)
            CHECK(strcmp(shmcow_problem_text((shmcow_problem)a), shmcow_problem_text((shmcow_problem)b)) != 0);
}

static void test_format(void)
{
    test_crc();
    test_identity();
    test_entry();
    test_sizes();
    test_footer();
}

/* The feed's state: two slots and a turn; the slot that is not shown is the one that is written. */
static void test_feed(void)
{
    static shmcow_header h;
    shmcow_feed out, feed = {.contacts = 1, .source = "a file", .error = "none"};
    memset(&h, 0, sizeof h);
    memset(&out, 0, sizeof out);
    CHECK(shmcow_load_feed(&h, &table, &out) == SHMCOW_EMPTY);
    for (uint64_t turn = 1; turn < 4; turn++) {
        feed.contacts = turn;
        shmcow_feed kept = out;
        shmcow_show_feed(&h, &table, &feed);
        CHECK(feed.crc == slow_crc((const uint8_t *)&feed, 508));
        CHECK(atomic_load(&h.feed_turn) == turn && memcmp((void *)h.feeds[turn % 2], &feed, sizeof feed) == 0);
        CHECK(memcmp((void *)h.feeds[(turn + 1) % 2], &kept, sizeof kept) == 0);
        CHECK(shmcow_load_feed(&h, &table, &out) == SHMCOW_OK && memcmp(&out, &feed, sizeof feed) == 0);
    }
    for (size_t k = 0; k < SHMCOW_FEED_WORDS; k++) {
        atomic_fetch_xor(&h.feeds[1][k], UINT64_C(1) << k % 64);
        CHECK(shmcow_load_feed(&h, &table, &out) == SHMCOW_CORRUPT);
        atomic_fetch_xor(&h.feeds[1][k], UINT64_C(1) << k % 64);
        atomic_fetch_xor(&h.feeds[0][k], UINT64_C(1) << k % 64);
        CHECK(shmcow_load_feed(&h, &table, &out) == SHMCOW_OK);
    }
    atomic_store(&h.feed_turn, UINT64_MAX);
    shmcow_show_feed(&h, &table, &feed);
    CHECK(atomic_load(&h.feed_turn) == 2 && shmcow_load_feed(&h, &table, &out) == SHMCOW_OK);
}
