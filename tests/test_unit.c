/*
 * test_unit.c - the parts of estoraje.c, each by itself: what the log gives back after every kind of
 * harm, what decoders make of hostile lengths, the index and its digests, the clock, what HTTP says.
 *
 *   1  The log in memory       torn, damaged, replayed
 *   2  The log in files        segments, and what is missing
 *   3  The clock               a restart
 *   4  Cleaning                what stays, what goes
 *   5  Decoders                messages, batches, lists, records
 *   6  The index               order, sums, promise floors
 *   7  Text                    percent-encoding, numbers, ranges, entity tags, keys of retries
 *   8  Conditions, histograms
 *   9  Among peers             what one node does while others do, or do not, what they should
 */
#include "lone.h"

#include "deliver.h"

#include <check.h>

static struct lone l;

static struct ballot ballot_at(uint64_t time)
{
    return (struct ballot){1, time, LONE_ID};
}

static struct entry *entry_of(const char *key)
{
    uint16_t partition = key_partition(key, strlen(key));
    return entry_find(&l.node->partitions[partition], key, strlen(key));
}

/* The record of an entry, with so much of its value; null: it is damaged, or not in memory. */
static const struct message *record_of(struct entry *e, uint64_t part)
{
    return record_read(l.node, key_partition(e->key, e->key_bytes), e, 0, part);
}

/* What the node's log holds for a key: its value, "" for a tombstone; NULL: nothing. */
static const char *value_of(const char *key)
{
    static char value[64];
    struct entry *e = entry_of(key);
    if (!e || !(e->flags & FLAG_RECORD))
        return NULL;
    const struct message *m = record_of(e, e->value_bytes);
    ck_assert_ptr_nonnull(m);
    ck_assert_uint_lt(m->value_bytes, sizeof value);
    memcpy(value, message_body(m).value, m->value_bytes);
    value[m->value_bytes] = 0;
    return value;
}

/* All that a start can find out: of two nodes that are one, these are equal. */
static uint64_t state(void)
{
    const struct node *n = l.node;
    uint64_t of[] = {n->keys, n->value_bytes, n->log.live_bytes, n->clock_bound, node_epoch(n)};
    uint64_t sum = XXH3_64bits(of, sizeof of);
    for (unsigned p = 0; p <= PARTITIONS; p++) {
        const struct partition *q = &n->partitions[p];
        sum = XXH3_64bits_withSeed(&q->promise_floor, sizeof q->promise_floor, sum ^ q->digest);
        for (uint32_t i = 0; i < q->count; i++) {
            const struct entry *e = q->entries[i];
            if (!(e->flags & FLAG_RECORD))
                continue;
            sum = XXH3_64bits_withSeed(&e->accepted, sizeof e->accepted, sum ^ e->lsn);
            sum = XXH3_64bits_withSeed(e->key, e->key_bytes, sum ^ e->write_id ^ e->flags);
        }
    }
    return sum;
}

static bool recover(void)
{
    if (l.node)
        lone_node_free(&l);
    lone_node(&l);
    return node_recover(l.node, 0, l.disk.count);
}

/* A node alone in its cluster, with nothing in its log but that; and a lease. */
static void lone_begin(void)
{
    lone_node(&l);
    lone_view(&l, 1, 0, 3);
    lone_tick(&l, 20 * MS, true);
}

static void teardown(void)
{
    lone_free(&l);
}

/* === 1 The log in memory ====================================================================== */

enum { BATCHES = 4, RECORDS = 3 };
static uint64_t batch_start[BATCHES + 1]; /* LSNs */
static uint64_t batch_state[BATCHES + 1]; /* what a start finds when the log ends there */

static void accept_at(uint64_t time, const char *key, const char *value)
{
    lone_accept(&l, ballot_at(time), key, value);
}

/* A log of some batches, each of a few records; in the last, keys of all before are overwritten. */
static void log_make(void)
{
    char key[32];
    lone_begin();
    uint64_t time = l.node->clock;
    batch_start[0] = l.disk.count;
    for (int b = 0; b < BATCHES; b++) {
        for (int r = 0; r < RECORDS; r++) {
            snprintf(key, sizeof key, "%d-%d", b == BATCHES - 1 ? r : b, r);
            accept_at(++time, key, r == 2 ? NULL : b == BATCHES - 1 ? "the last" : "early");
        }
        lone_settle(&l);
        batch_start[b + 1] = l.disk.count;
    }
    struct bytes whole = l.disk;
    for (int b = 0; b <= BATCHES; b++) {
        l.disk.count = batch_start[b];
        ck_assert(recover());
        batch_state[b] = state();
    }
    l.disk = whole;
}

START_TEST(test_a_recovered_node_has_what_was_appended)
{
    log_make();
    ck_assert(recover());
    ck_assert_uint_eq(log_end(l.node), l.disk.count);
    ck_assert_uint_eq(l.node->keys, 6);
    ck_assert_str_eq(value_of("0-0"), "the last");
    ck_assert_str_eq(value_of("1-1"), "the last");
    ck_assert_str_eq(value_of("1-0"), "early");
    ck_assert_str_eq(value_of("2-0"), "early");
    ck_assert(entry_of("2-2")->flags & FLAG_TOMBSTONE);
    ck_assert_ptr_null(value_of("3-0"));
    ck_assert_uint_eq(node_epoch(l.node), 1);
    ck_assert_int_eq(l.node->self, 0);
}
END_TEST

START_TEST(test_recovering_twice_is_recovering_once)
{
    log_make();
    ck_assert(recover());
    uint64_t once = state();
    ck_assert(recover());
    ck_assert_uint_eq(state(), once);
    lone_settle(&l); /* the last batch is written again, and a clock bound behind it */
    uint64_t clock_bound = l.node->clock_bound;
    ck_assert(recover());
    ck_assert_uint_eq(l.node->clock_bound, clock_bound);
    ck_assert_uint_eq(l.node->keys, 6);
    ck_assert_str_eq(value_of("0-0"), "the last");
}
END_TEST

/* What a torn write leaves behind its first bytes: zeros, bits of anything, what stood there before. */
static uint8_t torn_byte(int kind, uint64_t at, uint64_t back)
{
    return kind == 0 ? 0 : kind == 1 ? (uint8_t)(at * 197 + 13) : l.disk.data[at - back];
}

START_TEST(test_a_tail_torn_at_any_byte_is_dropped_and_nothing_else)
{
    log_make();
    uint64_t start = batch_start[BATCHES - 1], end = batch_start[BATCHES];
    uint64_t back = start - batch_start[BATCHES - 2];
    uint8_t *whole = memcpy(allocate(end), l.disk.data, end);
    for (uint64_t cut = start; cut < end; cut++) {
        memcpy(l.disk.data + start, whole + start, end - start);
        for (uint64_t at = cut; at < end; at++)
            l.disk.data[at] = torn_byte(_i, at, back);
        bool torn = memcmp(l.disk.data + start, whole + start, end - start) != 0;
        ck_assert_msg(recover(), "cut after %d bytes", (int)(cut - start));
        ck_assert_uint_eq(state(), batch_state[torn ? BATCHES - 1 : BATCHES]);
        ck_assert_uint_eq(log_end(l.node), torn ? start : end);
    }
    free(whole);
}
END_TEST

START_TEST(test_a_log_cut_off_at_any_byte_ends_before_its_last_whole_batch)
{
    log_make();
    uint64_t end = l.disk.count;
    for (uint64_t count = batch_start[0]; count <= end; count++) {
        int b = 0;
        while (b < BATCHES && batch_start[b + 1] <= count)
            b++;
        l.disk.count = count;
        ck_assert(recover());
        ck_assert_uint_eq(state(), batch_state[b]);
        ck_assert_uint_eq(log_end(l.node), batch_start[b]);
    }
}
END_TEST

/* The record of a batch at which a byte stands, if it stands in its value, or in that one's check. */
static const struct message *value_at(uint64_t at)
{
    for (int b = 0; b < BATCHES - 1; b++)
        for (uint64_t i = batch_start[b] + sizeof(struct log_header); i < batch_start[b + 1];) {
            const struct message *m = (const struct message *)(l.disk.data + i);
            uint64_t value = (uint64_t)((const uint8_t *)message_body(m).value - l.disk.data);
            bool its = (at >= value && at < i + m->bytes) || (at >= i + 4 && at < i + 8);
            if (its && m->type == M_ACCEPT)
                return m;
            i += m->bytes;
        }
    return NULL;
}

/* Damage in a value costs that record; where the log can no longer be split into records, the whole
 * node. A round id in the log is not read any more. */
START_TEST(test_damage_at_any_byte_below_the_last_batch_costs_what_was_damaged)
{
    unsigned values = 0, others = 0;
    log_make();
    recover();
    uint64_t before = state();
    for (uint64_t at = 0; at < batch_start[BATCHES - 1]; at++) {
        const struct message *m = value_at(at);
        l.disk.data[at] ^= (uint8_t)(1 << at % 8);
        bool whole = recover();
        l.disk.data[at] ^= (uint8_t)(1 << at % 8);
        if (m) {
            ck_assert_msg(whole, "byte %d", (int)at);
            const struct entry *e = message_entry(l.node, m);
            bool newest = ballot_equal(e->accepted, m->ballot);
            ck_assert_int_eq((e->flags & FLAG_DAMAGED) != 0, newest);
            values++;
        } else if (whole) {
            ck_assert_uint_eq(state(), before);
            others++;
        }
    }
    ck_assert_uint_gt(values, 0);
    ck_assert_uint_lt(others, batch_start[BATCHES - 1] / 4);
    ck_assert(recover());
}
END_TEST

/* Of each hole between whole batches: from any byte of a batch to its end, or to that of the next. */
START_TEST(test_a_log_with_a_hole_ends_where_the_hole_begins)
{
    log_make();
    uint64_t end = l.disk.count;
    uint8_t *whole = memcpy(allocate(end), l.disk.data, end);
    for (int b = 0; b < BATCHES - 2; b++) {
        for (uint64_t at = batch_start[b]; at < batch_start[b + 1]; at += 8) {
            memset(l.disk.data + at, 0, batch_start[b + 1 + _i] - at);
            bool sound = memcmp(l.disk.data, whole, end) == 0;
            ck_assert(sound || !recover());
            ck_assert(sound || l.node->log.torn);
            ck_assert(sound || log_end(l.node) == batch_start[b]);
            memset(l.disk.data + batch_start[b], 0, end - batch_start[b]);
            ck_assert(recover() && !l.node->log.torn);
            ck_assert_uint_eq(state(), batch_state[b]);
            memcpy(l.disk.data, whole, end);
        }
    }
    free(whole);
}
END_TEST

START_TEST(test_what_a_torn_tail_held_is_not_found_behind_the_next_batch)
{
    log_make();
    l.disk.data[batch_start[BATCHES - 1] + 40] ^= 1;
    ck_assert(recover());
    accept_at(l.node->clock_bound + 1, "new", "shorter");
    lone_settle(&l);
    ck_assert(recover());
    ck_assert_str_eq(value_of("new"), "shorter");
    ck_assert_str_eq(value_of("0-0"), "early");
}
END_TEST

START_TEST(test_an_empty_log_is_whole)
{
    ck_assert(recover());
    ck_assert_uint_eq(log_end(l.node), 0);
    memset(bytes_extend(&l.disk, 5000), 0, 5000);
    ck_assert(recover());
    ck_assert_uint_eq(log_end(l.node), 0);
    ck_assert_int_eq(l.node->self, -1);
}
END_TEST

START_TEST(test_a_log_of_another_version_is_not_treated_as_empty)
{
    log_make();
    for (int b = 0; b < BATCHES; b++)
        l.disk.data[batch_start[b] + 3] ^= 1;
    ck_assert(!recover());
    ck_assert(!l.node->log.torn); /* it must not be cut */
}
END_TEST

START_TEST(test_a_batch_counts_only_where_it_was_written)
{
    log_make();
    uint64_t start = batch_start[1], bytes = batch_start[2] - batch_start[1];
    ck_assert_ptr_nonnull(log_batch(l.disk.data + start, bytes, start));
    ck_assert_ptr_null(log_batch(l.disk.data + start, bytes, start + 8));
    ck_assert_ptr_null(log_batch(l.disk.data + start, bytes - 8, start));
    ck_assert_ptr_null(log_batch(l.disk.data + start, sizeof(struct log_header) - 1, start));
    uint8_t *old = bytes_extend(&l.disk, bytes); /* of a file that is used again */
    memcpy(old, l.disk.data + start, bytes);
    ck_assert(recover());
    ck_assert_uint_eq(state(), batch_state[BATCHES]);
}
END_TEST

START_TEST(test_a_view_and_its_drop_are_one_batch)
{
    lone_begin();
    lone_view(&l, 2, 1, 2); /* it owns all; in the next view, a third */
    char key[32];
    uint64_t time = l.node->clock;
    for (int i = 0; i < 50; i++) {
        snprintf(key, sizeof key, "%d", i);
        accept_at(++time, key, "v");
    }
    lone_settle(&l);
    uint64_t before = l.disk.count, keys = l.node->keys;
    lone_view(&l, 3, 2, 1);
    ck_assert_uint_lt(l.node->keys, keys);
    ck_assert_uint_gt(l.node->keys, 0);
    const struct log_header *h = (const struct log_header *)(l.disk.data + before);
    unsigned views = 0, drops = 0;
    for (size_t at = sizeof *h; at < h->bytes;) {
        const struct message *m = message_parse((const uint8_t *)h + at, h->bytes - at);
        views += m->type == M_VIEW;
        drops += m->type == M_DROP;
        at += m->bytes;
    }
    ck_assert_uint_eq(views, 1);
    ck_assert_uint_ge(drops, 1); /* one a partition */
    uint64_t live = state(), end = l.disk.count;
    ck_assert(recover());
    ck_assert_uint_eq(state(), live);
    for (l.disk.count = before + 8; l.disk.count < end; l.disk.count += 64) {
        ck_assert(recover());
        bool both = node_epoch(l.node) == 3 && l.node->keys < keys;
        ck_assert(both || (node_epoch(l.node) == 2 && l.node->keys == keys));
    }
}
END_TEST

START_TEST(test_views_promise_floors_and_the_clock_bound_are_replayed)
{
    lone_begin();
    for (uint64_t epoch = 2; epoch < 6; epoch++)
        lone_view(&l, epoch, (unsigned)epoch, 3);
    uint16_t p = 0;
    while (!partition_is_ours(l.node, p))
        p++;
    promise_floor_raise(l.node, p, ballot_at(1000));
    promise_floor_raise(l.node, p, ballot_at(500)); /* a promise floor only rises */
    ck_assert_uint_eq(l.node->partitions[p].promise_floor.time, 1000);
    lone_tick(&l, SECOND, true);
    uint64_t clock_bound = l.node->clock_bound,
             promise_floor_lsn = l.node->partitions[p].promise_floor_lsn;
    ck_assert(recover());
    ck_assert_uint_eq(l.node->clock_bound, clock_bound);
    ck_assert_uint_eq(l.node->partitions[p].promise_floor.time, 1000);
    ck_assert_uint_eq(l.node->partitions[p].promise_floor_lsn, promise_floor_lsn);
    ck_assert_uint_eq(l.node->views_count, 5);
    for (size_t e = 0; e < 5; e++)
        ck_assert_uint_eq(l.node->views[e]->epoch, e + 1);
    ck_assert_ptr_eq(l.node->view, l.node->views[4]);
    ck_assert_uint_eq(l.node->view->members_count, 6);
}
END_TEST

START_TEST(test_of_records_in_any_order_the_highest_ballot_is_replayed)
{
    lone_begin();
    struct message m = {.type = M_ACCEPT, .flags = FLAG_RECORD | FLAG_WHOLE, .key_bytes = 1};
    m.partition = key_partition("k", 1);
    m.value_bytes = 1;
    const char *values = "afcebd"; /* appended in this order; a letter is its ballot, too */
    for (const char *at = values; *at; at++) {
        m.ballot = ballot_at(l.node->clock + (uint64_t)*at);
        log_append(l.node, &m, &(struct body){.key = "k", .value = at});
    }
    lone_settle(&l);
    ck_assert(recover());
    ck_assert_str_eq(value_of("k"), "f");
}
END_TEST

START_TEST(test_a_node_that_is_in_no_view_any_more_knows_it_is_gone)
{
    lone_begin();
    struct {
        struct view view;
        struct member member;
    } v = {{2, LONE_CLUSTER, 3, 1}, {.id = 99, .weight = 1, .state = MEMBER_UP}};
    view_adopt(l.node, &v.view);
    lone_settle(&l);
    ck_assert(l.node->gone);
    ck_assert(recover());
    ck_assert(l.node->gone);
}
END_TEST

/* === 2 The log in files ======================================================================= */

static char folder[] = "/tmp/estoraje-unit-XXXXXX";
static struct disk disk;
static uint64_t disk_room;
static char big[1 << 20];

static bool file_log_read(struct node *n, uint64_t lsn, void *to, size_t bytes, bool wait)
{
    (void)n;
    return disk_read(&disk, lsn, to, bytes, wait);
}

static const struct hooks file_hooks = {.reply = lone_reply, .log_read = file_log_read};

static void files_setup(void)
{
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void files_close(void)
{
    if (disk.dir)
        close(disk.dir);
    disk = (struct disk){0};
}

static void files_remove(void)
{
    char path[96], name[32];
    for (uint64_t i = 0; i < 32; i++) {
        segment_name(name, i / 2);
        snprintf(path, sizeof path, "%s/%s%s", folder, name, i % 2 ? ".damaged" : "");
        unlink(path);
    }
}

static void files_teardown(void)
{
    files_close();
    teardown();
    files_remove();
    rmdir(folder);
}

static bool file_exists(uint64_t number)
{
    char path[64], name[32];
    segment_name(name, number);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

static void file_remove(uint64_t number)
{
    char path[64], name[32];
    segment_name(name, number);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    ck_assert_int_eq(unlink(path), 0);
}

static void file_cut(uint64_t number, off_t bytes)
{
    char path[64], name[32];
    segment_name(name, number);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    ck_assert_int_eq(truncate(path, bytes), 0);
}

/* A start of a node on the folder, as it is. */
static bool files_recover(void)
{
    uint64_t start, end;
    if (l.node)
        lone_node_free(&l);
    files_close();
    bool whole = disk_open(&disk, folder, &start, &end);
    struct node *n = lone_node(&l);
    n->hooks = &file_hooks;
    whole &= node_recover(n, start, end);
    if (whole)
        disk.allocated = log_end(n) / SEGMENT_BYTES * SEGMENT_BYTES;
    return whole;
}

/* Writes what the node has to write, as the log's thread would. */
static void files_settle(void)
{
    const struct bytes *batch = l.node->log.flight.count ? &l.node->log.flight : NULL;
    while (batch || (batch = log_flush(l.node))) {
        struct disk_job job = {.batch = batch};
        job.lsn = l.node->log.durable;
        job.first = l.node->log.first;
        disk_write(&disk, &job);
        disk_room = job.room;
        node_durable(l.node, 1 << 30, l.node->log.full);
        batch = NULL;
    }
}

/* A log that begins at an LSN: as if all below were cleaned away. */
static void files_begin(uint64_t lsn)
{
    ck_assert(files_recover());
    struct node *n = l.node;
    n->log.first = n->log.durable = lsn;
    disk.oldest = lsn / SEGMENT_BYTES;
    disk.allocated = disk.oldest * SEGMENT_BYTES;
    node_bootstrap(n, 3);
    clock_bound_raise(n);
    files_settle();
}

static void files_accept(const char *key, const char *value, size_t bytes)
{
    struct message m = {.type = M_ACCEPT, .round_id = 1, .flags = FLAG_RECORD | FLAG_WHOLE};
    struct bytes whole = {0};
    m.ballot = ballot_at(max_u64(clock_tick(l.node), l.node->clock_bound_found + 1));
    m.key_bytes = (uint16_t)strlen(key);
    m.value_bytes = (uint32_t)bytes;
    m.partition = key_partition(key, m.key_bytes);
    message_append(&whole, &m, &(struct body){.key = key, .value = value});
    on_accept(l.node, l.node->self_peer, (const struct message *)whole.data);
    bytes_free(&whole);
}

START_TEST(test_a_batch_that_spans_two_files_is_one)
{
    files_begin(SEGMENT_BYTES - 4096);
    memset(big, 'x', sizeof big);
    files_accept("before", "1", 1);
    files_settle();
    files_accept("big", big, sizeof big);
    files_settle();
    files_accept("after", "2", 1);
    files_settle();
    ck_assert(file_exists(0) && file_exists(1) && !file_exists(2));
    ck_assert(files_recover());
    ck_assert_str_eq(value_of("before"), "1");
    ck_assert_str_eq(value_of("after"), "2");
    struct entry *e = entry_of("big");
    ck_assert(e->lsn < SEGMENT_BYTES && e->lsn + e->record_bytes > SEGMENT_BYTES);
    const struct message *m = record_of(e, e->value_bytes);
    ck_assert_ptr_nonnull(m);
    ck_assert_int_eq(memcmp(message_body(m).value, big, sizeof big), 0);
}
END_TEST

/* The log begins in its second file, and no batch on disk says so yet. */
START_TEST(test_a_disk_that_is_asked_for_room_writes_and_removes_nothing)
{
    files_begin(SEGMENT_BYTES - 4096);
    memset(big, 'x', sizeof big);
    files_accept("big", big, sizeof big);
    files_settle();
    struct node *n = l.node;
    n->log.first = n->log.durable;
    n->log.full = true;
    n->now += 2 * SECOND;
    ck_assert(log_flush(n) == &n->log.flight && log_flush(n) == NULL);
    disk_start(&disk, n->log.durable);
    disk_submit(&disk, &n->log);
    struct disk_job done;
    ck_assert_int_eq(recv(disk.ends[0], &done, sizeof done, 0), sizeof done);
    ck_assert(done.room > 0 && done.room >= disk.ahead_bytes);
    node_durable(n, done.room, false);
    ck_assert(file_exists(0) && files_recover());
    ck_assert_ptr_nonnull(entry_of("big"));
}
END_TEST

START_TEST(test_a_batch_torn_in_its_second_file_is_dropped)
{
    files_begin(SEGMENT_BYTES - 4096);
    files_accept("before", "1", 1);
    files_settle();
    files_accept("big", big, sizeof big);
    files_settle();
    file_cut(1, 5000);
    ck_assert(files_recover());
    ck_assert_str_eq(value_of("before"), "1");
    ck_assert_ptr_null(entry_of("big"));
    files_settle();
    files_accept("again", "2", 1);
    files_settle();
    ck_assert(files_recover());
    ck_assert_str_eq(value_of("again"), "2");
}
END_TEST

/* Files 0, 1 and 2, with a record in each, whole batches in all of them. */
static void files_three(void)
{
    char key[32];
    static char large[SEGMENT_BYTES / 4];
    files_begin(SEGMENT_BYTES - SEGMENT_BYTES / 16);
    for (int i = 0; i < 5; i++) {
        snprintf(key, sizeof key, "%d", i);
        files_accept(key, large, sizeof large);
        files_settle();
    }
    files_accept("end", "e", 1);
    files_settle();
    ck_assert(file_exists(0) && file_exists(1) && file_exists(2));
}

START_TEST(test_a_missing_file_is_corruption)
{
    files_three();
    ck_assert(files_recover());
    file_remove((uint64_t)_i); /* the first, or one in the middle */
    ck_assert(!files_recover());
    ck_assert(!file_exists((uint64_t)_i)); /* looking for it does not make it */
}
END_TEST

START_TEST(test_without_its_last_file_the_log_ends_earlier)
{
    files_three();
    file_remove(2);
    /* Nothing on disk refers to what stood there: the log ends earlier. */
    ck_assert(files_recover());
    ck_assert_ptr_null(entry_of("end"));
    ck_assert_ptr_nonnull(entry_of("0"));
}
END_TEST

START_TEST(test_files_below_the_first_needed_byte_are_removed)
{
    files_three();
    struct node *n = l.node;
    n->log.first = entry_of("4")->lsn - sizeof(struct log_header);
    uint64_t first = n->log.first / SEGMENT_BYTES;
    ck_assert_uint_gt(first, 0);
    files_accept("more", "m", 1);
    files_settle();
    ck_assert(!file_exists(0));
    for (uint64_t i = first; i <= 2; i++)
        ck_assert(file_exists(i));
    ck_assert(files_recover());
    ck_assert_str_eq(value_of("more"), "m");
    ck_assert_ptr_nonnull(entry_of("4"));
    ck_assert_uint_eq(disk.oldest, first);
}
END_TEST

/* Without --sync always the power failed: in the middle there is a hole now. */
START_TEST(test_a_log_that_was_cut_is_whole_and_what_stood_behind_is_set_aside)
{
    char path[96];
    struct stat aside;
    files_three();
    uint64_t hole = entry_of("2")->lsn - sizeof(struct log_header);
    uint64_t behind = entry_of("end")->lsn, end = disk.allocated;
    stream_write(&disk, hole, (const uint8_t *)big, 4096, false);
    ck_assert(!files_recover());
    ck_assert(l.node->log.torn && log_end(l.node) == hole);
    disk_cut(&disk, hole, end);
    ck_assert(files_recover());
    ck_assert(log_end(l.node) == hole && entry_of("1") && !entry_of("2") && !entry_of("end"));
    files_settle();
    for (int i = 0; log_end(l.node) < behind; i++) { /* now where the old batches stood */
        files_accept("new", big, sizeof big / (size_t)(1 + i % 9));
        files_settle();
        ck_assert(files_recover());
        ck_assert(entry_of("1") && entry_of("new") && !entry_of("2") && !entry_of("end"));
        files_settle();
    }
    snprintf(path, sizeof path, "%s/%" PRIu64 ".damaged", folder, hole);
    ck_assert_int_eq(stat(path, &aside), 0);
    ck_assert_uint_eq((uint64_t)aside.st_size, end - hole);
    unlink(path);
}
END_TEST

/* Of the files of files_three; `first`: what is below is removed, 0: it crashes before that. */
static void files_rejoin(uint64_t id, bool damaged, uint64_t lsn, uint64_t first)
{
    static const struct hooks none = {0};
    struct node *n = node_new(id, 7, "127.0.0.1:1", &none, NULL);
    n->wall = LONE_WALL + SECOND;
    struct disk_job job = {.damaged = damaged, .lsn = lsn, .first = first};
    job.batch = node_rejoin(n, l.node, lsn);
    disk_write(&disk, &job);
    struct node *before = l.node;
    l.node = n;
    lone_node_free(&l);
    l.node = before;
}

START_TEST(test_a_node_that_rejoins_keeps_only_its_views)
{
    for (int crash = 1; crash >= 0; crash--) {
        files_three();
        uint64_t lsn = l.node->log.durable + l.node->log.flight.count;
        files_rejoin(0x77, false, lsn, crash ? 0 : lsn);
        ck_assert(file_exists(0) == crash && file_exists(lsn / SEGMENT_BYTES));
        ck_assert(files_recover());
        ck_assert(l.node->id == 0x77 && l.node->self_peer->id == 0x77 && l.node->self < 0);
        ck_assert(!l.node->gone && l.node->keys == 0 && !entry_of("end") && !entry_of("0"));
        ck_assert_uint_eq(node_epoch(l.node), 1);
        ck_assert_uint_eq(l.node->log.live_bytes, l.node->views_bytes);
        files_settle();
        l.node->clock += 10 * SECOND;
        clock_bound_raise(l.node);
        uint64_t bound = l.node->clock_bound;
        files_settle();
        ck_assert(files_recover());
        ck_assert(l.node->id == 0x77 && l.node->clock_bound == bound);
        lone_node_free(&l);
        files_remove();
    }
}
END_TEST

START_TEST(test_a_node_that_rejoins_behind_damage_sets_it_aside)
{
    char path[64];
    files_three();
    file_remove(1);
    ck_assert(!files_recover());
    uint64_t lsn = disk.allocated;
    files_rejoin(0x77, true, lsn, 0);
    ck_assert(!files_recover()); /* it crashed before the end: so it rejoins once more */
    ck_assert_uint_gt(disk.allocated, lsn);
    lsn = disk.allocated;
    files_rejoin(0x78, true, lsn, lsn);
    ck_assert(files_recover());
    ck_assert(l.node->id == 0x78 && l.node->keys == 0 && node_epoch(l.node) == 1);
    ck_assert(!file_exists(0) && !file_exists(2));
    snprintf(path, sizeof path, "%s/0000000000.log.damaged", folder);
    ck_assert_int_eq(access(path, F_OK), 0);
}
END_TEST

START_TEST(test_files_of_other_names_are_no_part_of_the_log)
{
    static const struct {
        const char *name;
        int is;
    } rows[] = {{"0000000000.log", 1},
                {"0000000012.log", 1},
                {"000000000.log", 0},
                {"00000000000.log", 0},
                {"0000000000.log~", 0},
                {"0000000000.log.damaged", 0},
                {"0000000000.lo", 0},
                {"a000000000.log", 0},
                {"lock", 0},
                {".", 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct dirent e = {0};
        strcpy(e.d_name, rows[i].name);
        ck_assert_msg(is_segment(&e) == rows[i].is, "%s", rows[i].name);
    }
}
END_TEST

START_TEST(test_space_is_allocated_ahead_and_reported)
{
    files_begin(0);
    disk.ahead_bytes = 8 << 20;
    files_accept("a", "1", 1);
    files_settle();
    ck_assert_uint_ge(disk_room, 8 << 20);
    ck_assert_uint_ge(disk.allocated, l.node->log.durable + (8 << 20));
    ck_assert_uint_gt(disk.zeroed, l.node->log.durable);
    ck_assert(files_recover()); /* zeros behind the end are no damage */
    ck_assert_str_eq(value_of("a"), "1");
}
END_TEST

START_TEST(test_bytes_that_are_not_there_are_zeros)
{
    files_begin(0);
    uint8_t bytes[64];
    memset(bytes, 1, sizeof bytes);
    ck_assert(disk_read(&disk, l.node->log.durable + (32 << 20), bytes, sizeof bytes, true));
    for (size_t i = 0; i < sizeof bytes; i++)
        ck_assert_uint_eq(bytes[i], 0);
}
END_TEST

/* === 3 The clock ============================================================================== */

static struct bytes batch_make(void)
{
    struct bytes b = {0};
    struct frame *h = bytes_extend(&b, sizeof *h);
    *h = (struct frame){.magic = FRAME_MAGIC, .cluster = LONE_CLUSTER, .from = LONE_ID + 1};
    h->to = LONE_ID;
    h->clock = LONE_WALL;
    h->epoch = 1;
    message_append(&b, &(struct message){.type = M_DIGEST}, NULL);
    h = (struct frame *)b.data;
    h->bytes = (uint32_t)b.count;
    h->check = frame_check(h);
    return b;
}

static void batch_seal(struct bytes *b)
{
    struct frame *h = (struct frame *)b->data;
    h->check = frame_check(h);
}

START_TEST(test_the_clock_never_gives_a_time_twice)
{
    lone_begin();
    struct node *n = l.node;
    uint64_t last = n->clock;
    for (int i = 0; i < 1000; i++) {
        uint64_t passed = i % 3 ? 0 : (uint64_t)i;
        node_time(n, n->now + passed, n->wall + passed - (i % 7 ? 0 : 50));
        uint64_t time = clock_tick(n);
        ck_assert_uint_gt(time, last);
        last = time;
    }
    clock_raise(n, last + SECOND, 0);
    ck_assert_uint_eq(clock_tick(n), last + SECOND + 1);
    clock_raise(n, 5, 0);
    ck_assert_uint_eq(clock_tick(n), last + SECOND + 2);
}
END_TEST

START_TEST(test_a_wall_clock_that_jumps_moves_nothing)
{
    static const int64_t jumps[] = {3600, -3600, -120, 3};
    lone_begin();
    struct node *n = l.node;
    ck_assert(n->has_lease);
    for (size_t i = 0; i < sizeof jumps / sizeof *jumps; i++) {
        uint64_t wall = n->wall + (uint64_t)(jumps[i] * (int64_t)SECOND), start = n->time;
        for (int tick = 1; tick <= 200; tick++) {
            node_tick(n, n->now + 20 * MS, wall + (uint64_t)tick * 20 * MS);
            lone_settle(&l);
        }
        uint64_t passed = n->time - start;
        ck_assert_uint_ge(passed, 4 * SECOND * 15 / 16);
        ck_assert_uint_le(passed, 4 * SECOND * 17 / 16);
        ck_assert_uint_le(n->clock, n->time + SECOND);
        ck_assert_uint_eq(node_latest_time(n), n->time);
    }
    for (int tick = 0; tick < 40 * 60; tick++) /* within half an hour it is led there */
        node_tick(n, n->now + SECOND, n->wall + SECOND);
    ck_assert_uint_eq(n->time, n->wall);
}
END_TEST

/* A node is started with a wrong clock. Until it has a lease, no frame of it carries that time, and it
 * takes the time of a node with a lease. Once it has one, it rejects frames that are far ahead. */
START_TEST(test_a_node_without_a_lease_takes_the_time_of_one_that_has)
{
    struct bytes b = batch_make();
    lone_node(&l);
    struct node *n = l.node;
    node_time(n, n->now, n->wall + 3600 * SECOND);
    n->time = n->wall;
    lone_view(&l, 1, 2, 3);
    ck_assert(!n->has_lease);
    ck_assert_uint_lt(n->clock, LONE_WALL);
    struct frame *h = (struct frame *)b.data;
    h->from = LONE_ID + 1;
    h->to = LONE_ID;
    h->clock = h->latest_time = LONE_WALL + SECOND;
    batch_seal(&b);
    ck_assert(node_receive(n, b.data, b.count));
    ck_assert_uint_eq(n->time, LONE_WALL + SECOND);
    lone_tick(&l, 20 * MS, true);
    ck_assert(n->has_lease);
    ck_assert_uint_lt(n->clock, LONE_WALL + 2 * SECOND);
    h->clock = h->latest_time = LONE_WALL + 13 * SECOND;
    batch_seal(&b);
    ck_assert(node_receive(n, b.data, b.count));
    ck_assert_uint_lt(n->clock, LONE_WALL + 2 * SECOND);
    bytes_free(&b);
}
END_TEST

START_TEST(test_no_frame_leaves_with_a_clock_above_the_durable_bound)
{
    lone_begin();
    lone_view(&l, 2, LONE_PEERS, 3);
    lone_tick(&l, 20 * MS, true);
    struct node *n = l.node;
    struct peer *p = n->member_peer[1];
    struct bytes out = {0};
    message_send(n, p, 0, &(struct message){.type = M_DIGEST}, NULL);
    n->clock = n->clock_bound_durable + 1;
    ck_assert(!frame_take(n, p, 0, &out));
    lone_settle(&l);
    ck_assert_uint_ge(n->clock_bound_durable, n->clock);
    ck_assert(frame_take(n, p, 0, &out));
    ck_assert_uint_le(((const struct frame *)out.data)->clock, n->clock_bound_durable);
    bytes_free(&out);
}
END_TEST

/* The type of the one message that waits for the node itself. */
static int answer_type(void)
{
    ck_assert_uint_gt(l.node->inbox.count, 0);
    const struct message *m = &queue_next(&l.node->inbox, NULL)->message;
    int type = m->type;
    l.node->inbox.count = 0;
    return type;
}

static int prepare_at(uint64_t time, const char *key)
{
    struct message m = {.type = M_PREPARE, .round_id = 1, .ballot = ballot_at(time)};
    struct bytes whole = {0};
    m.key_bytes = (uint16_t)strlen(key);
    m.partition = key_partition(key, m.key_bytes);
    message_append(&whole, &m, &(struct body){.key = key});
    on_prepare(l.node, l.node->self_peer, (const struct message *)whole.data);
    bytes_free(&whole);
    return answer_type();
}

START_TEST(test_a_restart_never_reuses_a_ballot)
{
    lone_begin();
    struct node *n = l.node;
    uint64_t promised = n->clock_bound_durable;
    ck_assert_int_eq(prepare_at(promised, "k"),
                     M_PROMISE); /* the highest that could have been sent */
    ck_assert(recover());
    n = l.node;
    ck_assert_uint_ge(n->clock_bound_found, promised);
    ck_assert_uint_ge(n->clock, promised);
    ck_assert_int_eq(prepare_at(promised, "k"), M_REJECT);
    ck_assert_int_eq(prepare_at(n->clock_bound_found, "other"), M_REJECT);
    ck_assert_uint_gt(clock_tick(n), promised);
    ck_assert_int_eq(prepare_at(n->clock_bound_found + 1, "k"), M_PROMISE);
    uint32_t before = n->log.pending.count;
    accept_at(n->clock_bound_found, "other", "v");
    ck_assert_int_eq(answer_type(), M_REJECT);
    ck_assert_uint_eq(n->log.pending.count, before);
}
END_TEST

START_TEST(test_a_promise_is_kept)
{
    lone_begin();
    uint64_t now = l.node->clock;
    ck_assert_int_eq(prepare_at(now + 10, "k"), M_PROMISE);
    ck_assert_int_eq(prepare_at(now + 9, "k"), M_REJECT);
    accept_at(now + 9, "k", "low");
    ck_assert_int_eq(answer_type(), M_REJECT);
    ck_assert_int_eq(prepare_at(now + 9, "other"), M_PROMISE);
    accept_at(now + 10, "k", "as promised");
    lone_settle(&l);
    ck_assert_str_eq(value_of("k"), "as promised");
    struct ballot late = {2, now + 5, LONE_ID}; /* a later epoch, but an earlier time (R7) */
    ck_assert(!ballot_allowed(l.node, 0, late, ballot_at(now + 10)));
    late.time = now + 10;
    ck_assert(ballot_allowed(l.node, 0, late, ballot_at(now + 10)));
}
END_TEST

START_TEST(test_ballots_are_ordered_by_epoch_then_time_then_node)
{
    static const struct ballot rising[] = {{0, 0, 0}, {0, 0, 1}, {0, 5, 0}, {0, 5, 9},
                                           {1, 0, 0}, {1, 5, 0}, {2, 1, 1}, {2, 1, UINT64_MAX}};
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) {
            ck_assert_int_eq(ballot_compare(rising[i], rising[j]), (i > j) - (i < j));
            ck_assert(ballot_equal(ballot_max(rising[i], rising[j]), rising[i > j ? i : j]));
        }
}
END_TEST

START_TEST(test_random_numbers_differ_and_come_again_from_the_same_seed)
{
    uint64_t seen[1000];
    lone_node(&l);
    for (int i = 0; i < 1000; i++) {
        seen[i] = node_random(l.node);
        for (int j = 0; j < i; j++)
            ck_assert_uint_ne(seen[i], seen[j]);
    }
    lone_node_free(&l);
    lone_node(&l);
    for (int i = 0; i < 1000; i++)
        ck_assert_uint_eq(node_random(l.node), seen[i]);
    uint64_t bits = 0, all = ~UINT64_C(0);
    for (int i = 0; i < 1000; i++) {
        bits |= seen[i];
        all &= seen[i];
    }
    ck_assert_uint_eq(bits, ~UINT64_C(0));
    ck_assert_uint_eq(all, 0);
    struct node *zero = node_new(1, 0, "", &lone_hooks, NULL); /* no seed may get it stuck */
    ck_assert_uint_ne(node_random(zero), node_random(zero));
    free(zero->self_peer);
    free(zero);
}
END_TEST

/* === 4 Cleaning =============================================================================== */

/* Writes a key over and over, until the log was cleaned past `lsn` and says so, or for some time. */
static void clean_some(uint64_t lsn)
{
    static char value[256 << 10];
    memset(value, 'y', sizeof value - 1);
    bool done = false;
    for (int i = 0; i < 300 && !done; i++) {
        done = l.node->log.first > lsn;
        accept_at(clock_tick(l.node), "filler", value);
        lone_settle(&l);
        lone_tick(&l, MS, true);
    }
}

static void clean_past(uint64_t lsn)
{
    clean_some(lsn);
    ck_assert_uint_gt(l.node->log.first, lsn);
}

/* As if the files below what the last batch says is needed were gone. */
static bool recover_from_first(void)
{
    const struct log_header *last = (const struct log_header *)(l.disk.data + l.last_lsn);
    uint64_t first = last->first;
    memset(l.disk.data, 0xdd, first);
    lone_node_free(&l);
    lone_node(&l);
    return node_recover(l.node, first, l.disk.count);
}

START_TEST(test_cleaning_keeps_what_is_live)
{
    char key[32];
    lone_begin();
    promise_floor_raise(l.node, 9, ballot_at(77));
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "%d", i);
        accept_at(clock_tick(l.node), key, "old");
        if (i % 2)
            accept_at(clock_tick(l.node), key, "new");
    }
    accept_at(clock_tick(l.node), "gone", "v");
    accept_at(clock_tick(l.node), "gone", NULL);
    lone_settle(&l);
    clean_past(l.disk.count);
    ck_assert(recover_from_first());
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "%d", i);
        ck_assert_str_eq(value_of(key), i % 2 ? "new" : "old");
    }
    ck_assert(entry_of("gone")->flags & FLAG_TOMBSTONE);
    ck_assert_uint_eq(l.node->keys, 21);
    ck_assert_uint_eq(l.node->partitions[9].promise_floor.time, 77);
    ck_assert_uint_eq(node_epoch(l.node), 1);
    ck_assert_uint_gt(l.node->clock_bound, l.node->wall);
}
END_TEST

START_TEST(test_the_log_stays_under_about_twice_what_is_live)
{
    lone_begin();
    clean_past(0);
    clean_past(l.disk.count);
    const struct log *log = &l.node->log;
    ck_assert_uint_le(log_end(l.node) - log->first,
                      2 * log->live_bytes + CLEAN_SLACK_BYTES + 4 * CLEAN_STEP_BYTES);
}
END_TEST

START_TEST(test_first_moves_only_when_the_copies_are_durable)
{
    lone_begin();
    accept_at(clock_tick(l.node), "live", "v");
    lone_settle(&l);
    clean_past(0);
    struct node *n = l.node;
    uint64_t copied = 0;
    for (int i = 0; i < 300 && !copied; i++) {
        static char value[256 << 10];
        memset(value, 'z', sizeof value - 1);
        accept_at(clock_tick(n), "filler", value);
        lone_settle(&l);
        bool idle = !n->log.cleaned_until;
        uint64_t first = n->log.first;
        node_tick(n, n->now + MS, n->wall + MS);             /* nothing of it is on disk yet */
        if (!idle || n->log.durable >= n->log.cleaned_until) /* there was nothing to copy */
            continue;
        copied = n->log.cleaned_until;
        ck_assert_uint_eq(n->log.first, first);
        node_tick(n, n->now + MS, n->wall + MS);
        ck_assert_uint_eq(n->log.first, first);
        lone_settle(&l);
        ck_assert_uint_ge(n->log.durable, copied);
        node_tick(n, n->now + MS, n->wall + MS);
        ck_assert_uint_gt(n->log.first, first);
    }
    ck_assert_uint_gt(copied, 0);
}
END_TEST

START_TEST(test_a_tombstone_is_forgotten_only_when_nobody_needs_it)
{
    lone_begin();
    struct node *n = l.node;
    struct partition *p = &n->partitions[key_partition("gone", 4)];
    accept_at(clock_tick(n), "gone", "v");
    accept_at(clock_tick(n), "gone", NULL);
    lone_settle(&l);
    struct ballot deleted = entry_of("gone")->accepted;
    clean_past(entry_of("gone")->lsn);
    ck_assert_ptr_nonnull(entry_of("gone")); /* young */
    for (int i = 0; i < 130; i++) { /* alone, it agrees with itself: its sweep raises the floor */
        ck_assert(ballot_compare(p->gc_floor, deleted) < 0 || i > 60);
        lone_tick(&l, SECOND, true);
        for (unsigned j = 0; j < PARTITIONS; j++)
            partition_sweep(n, (uint16_t)j);
    }
    ck_assert_int_ge(ballot_compare(p->gc_floor, deleted), 0);
    ck_assert_ptr_nonnull(entry_of("gone")); /* an older record may be in the log */
    clean_past(entry_of("gone")->lsn);
    ck_assert_ptr_null(entry_of("gone"));
    ck_assert_uint_eq(l.node->keys, 1);
    ck_assert(recover_from_first());
    ck_assert_ptr_null(entry_of("gone"));
    struct ballot floor = l.node->partitions[key_partition("gone", 4)].promise_floor;
    ck_assert_int_ge(ballot_compare(floor, deleted), 0); /* it still covers late messages */
}
END_TEST

START_TEST(test_damage_is_not_copied_into_a_batch_that_is_whole)
{
    lone_begin();
    uint64_t at = sizeof(struct log_header); /* the view is the first of all */
    const struct message *m = message_parse(l.disk.data + at, l.disk.count - at);
    ck_assert_int_eq(m->type, M_VIEW);
    struct view *v = (struct view *)(l.disk.data + at + sizeof *m);
    v->members[0].id ^= 1;
    clean_some(0);
    if (l.node->log.first ==
        0) /* it may stay where it is; if it goes on, then with the true view */
        return;
    ck_assert(recover_from_first());
    ck_assert_int_eq(l.node->self, 0);
}
END_TEST

/* It counts as damaged at its ballot, wherever the log begins, until somebody sends it. */
START_TEST(test_a_damaged_record_that_nobody_has_is_remembered_and_does_not_stop_cleaning)
{
    lone_begin();
    accept_at(clock_tick(l.node), "hurt", "value");
    lone_settle(&l);
    struct ballot accepted = entry_of("hurt")->accepted;
    static const size_t places[] = {offsetof(struct message, partition), /* by none of these can */
                                    offsetof(struct message, ballot),    /* the key be found */
                                    sizeof(struct message), sizeof(struct message) + 5};
    l.disk.data[entry_of("hurt")->lsn + places[_i]] ^= 1;
    clean_past(entry_of("hurt")->lsn);
    for (int starts = 0; starts < 2; starts++) {
        clean_past(entry_of("hurt")->lsn); /* the mark is copied, too */
        ck_assert(recover_from_first());
        ck_assert(entry_of("hurt")->flags & FLAG_DAMAGED && is_live(entry_of("hurt")->flags));
        ck_assert(ballot_equal(entry_of("hurt")->accepted, accepted));
        ck_assert_uint_eq(l.node->keys, 2);
        lone_settle(&l);
    }
    lone_accept(&l, accepted, "hurt", "value");
    lone_settle(&l);
    ck_assert_str_eq(value_of("hurt"), "value");
    ck_assert(recover());
    ck_assert_str_eq(value_of("hurt"), "value");
}
END_TEST

START_TEST(test_a_log_is_cleaned_also_where_the_node_is_no_member)
{
    struct node *n = lone_node(&l);
    n->lease_at = n->now;              /* it was drained, and is left running */
    for (int i = 0; i < 150000; i++) { /* for days */
        node_tick(n, n->now + 2 * SECOND, n->wall + 2 * SECOND);
        lone_settle(&l);
    }
    ck_assert_uint_gt(log_end(n), CLEAN_SLACK_BYTES + 4 * CLEAN_STEP_BYTES);
    ck_assert_uint_le(log_end(n) - n->log.first, CLEAN_SLACK_BYTES + 4 * CLEAN_STEP_BYTES);
}
END_TEST

/* === 5 Decoders =============================================================================== */

/* A message with every part, at the start of bytes that are exactly as long. */
static struct message *message_make(struct bytes *to)
{
    static const struct result answers[2] = {{.write_id = 1}, {.write_id = 2}};
    struct message m = {.type = M_ACCEPT, .flags = FLAG_RECORD | FLAG_WHOLE};
    m.results_count = 2;
    m.key_bytes = 3;
    m.type_bytes = 10;
    m.value_bytes = 5;
    to->count = 0;
    return message_append(to, &m, &(struct body){answers, "key", "text/plain", "value"});
}

START_TEST(test_a_message_is_read_as_it_was_written)
{
    struct bytes b = {0};
    message_make(&b);
    ck_assert_uint_eq(b.count, (104 + 64 + 3 + 10 + 5 + 7) / 8 * 8);
    const struct message *m = message_parse(b.data, b.count);
    ck_assert_ptr_nonnull(m);
    struct body body = message_body(m);
    ck_assert_int_eq(memcmp(body.key, "key", 3), 0);
    ck_assert_int_eq(memcmp(body.type, "text/plain", 10), 0);
    ck_assert_int_eq(memcmp(body.value, "value", 5), 0);
    ck_assert_uint_eq(((const struct result *)body.results)[1].write_id, 2);
    for (const uint8_t *at = (const uint8_t *)body.value + 5; at < b.data + b.count; at++)
        ck_assert_uint_eq(*at, 0);
    bytes_free(&b);
}
END_TEST

START_TEST(test_a_message_that_is_cut_off_is_none)
{
    struct bytes b = {0};
    message_make(&b);
    for (size_t count = 0; count < b.count; count++)
        ck_assert_ptr_null(message_parse(b.data, count));
    bytes_free(&b);
}
END_TEST

START_TEST(test_lengths_that_do_not_add_up_are_no_message)
{
    struct bytes b = {0};
    static const uint32_t lengths[] = {0,   1,   8,          103,        104,
                                       184, 200, 0x7fffffff, 0xfffffff8, 0xffffffff};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct message *m = message_make(&b);
        bool right = lengths[i] == m->bytes;
        m->bytes = lengths[i];
        ck_assert_msg(!message_parse(b.data, b.count) == !right, "bytes %u", lengths[i]);
        m = message_make(&b);
        m->value_bytes = lengths[i];
        right = lengths[i] == 8; /* with zeros behind it, a message of 5 bytes is as long */
        ck_assert_msg(!message_parse(b.data, b.count) == !right, "value_bytes %u", lengths[i]);
        m = message_make(&b);
        m->results_count = (uint16_t)lengths[i];
        ck_assert_msg(!message_parse(b.data, b.count), "answers %u", lengths[i]);
        m = message_make(&b);
        m->key_bytes = (uint16_t)(lengths[i] | 0x10);
        ck_assert_msg(!message_parse(b.data, b.count), "key_bytes %u", lengths[i]);
        m = message_make(&b);
        m->type_bytes = (uint16_t)(lengths[i] | 0x20);
        ck_assert_msg(!message_parse(b.data, b.count), "type_bytes %u", lengths[i]);
    }
    bytes_free(&b);
}
END_TEST

START_TEST(test_what_is_beyond_the_limits_is_no_message)
{
    static uint8_t zeros[64 << 10];
    static const struct {
        uint32_t keys, types, results, type, partition;
        bool fine;
    } rows[] = {{KEY_BYTES_MAX, TYPE_BYTES_MAX, RESULTS_MAX, M_PROMISE, PARTITIONS, true},
                {KEY_BYTES_MAX + 1, 0, 0, M_PROMISE, 0, false},
                {0, TYPE_BYTES_MAX + 1, 0, M_PROMISE, 0, false},
                {0, 0, RESULTS_MAX + 1, M_PROMISE, 0, false},
                {0, 0, 0, M_LOG_TYPES, 0, false},
                {0, 0, 0, 255, 0, false},
                {0, 0, 0, M_PROMISE, PARTITIONS + 1, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct bytes b = {0};
        struct message m = {.type = (uint8_t)rows[i].type};
        m.partition = (uint16_t)rows[i].partition;
        m.key_bytes = (uint16_t)rows[i].keys;
        m.type_bytes = (uint16_t)rows[i].types;
        m.results_count = (uint16_t)rows[i].results;
        message_append(&b, &m, &(struct body){zeros, zeros, zeros, zeros});
        ck_assert_msg(!message_parse(b.data, b.count) == !rows[i].fine, "row %zu", i);
        bytes_free(&b);
    }
}
END_TEST

START_TEST(test_each_half_of_a_records_checksum_covers_its_half)
{
    struct bytes b = {0};
    struct message *m = message_make(&b);
    const uint8_t *value = message_body(m).value;
    uint64_t head = message_check(m, false), whole = message_check(m, true);
    ck_assert_uint_eq((uint32_t)whole, (uint32_t)head);
    for (size_t at = 0; at < b.count; at++) {
        bool covered = at >= 16, in_value = b.data + at >= value;
        bool length = at >= 88 && at < 98; /* would move the value */
        if (length || (at >= 16 && at < 20))
            continue;
        b.data[at] ^= 0x10;
        ck_assert((message_check(m, false) != head) == (covered && !in_value));
        ck_assert((message_check(m, true) != whole) == covered);
        b.data[at] ^= 0x10;
    }
    bytes_free(&b);
}
END_TEST

START_TEST(test_a_record_with_any_byte_damaged_is_not_returned)
{
    lone_begin();
    accept_at(clock_tick(l.node), "key", "a value of some length");
    lone_settle(&l);
    struct entry *e = entry_of("key");
    ck_assert(record_of(e, e->value_bytes) && record_of(e, 0));
    uint64_t value = e->lsn + sizeof(struct message) + 3;
    for (uint64_t at = e->lsn; at < e->lsn + e->record_bytes; at++) {
        bool round_id = at >= e->lsn + 8 && at < e->lsn + 16; /* not part of a record */
        bool other_half = at >= e->lsn + 4 && at < e->lsn + 8;
        l.disk.data[at] ^= 4;
        for (int whole = at >= value || other_half; whole < 2; whole++) {
            ck_assert(!record_of(e, whole ? e->value_bytes : 0) == !round_id);
            ck_assert(!(e->flags & FLAG_DAMAGED) == round_id);
            e->flags &= (uint8_t)~FLAG_DAMAGED;
        }
        l.disk.data[at] ^= 4;
    }
    l.cold = true;
    ck_assert(!record_of(e, e->value_bytes) && !(e->flags & FLAG_DAMAGED));
    l.cold = false;
    e->flags |= FLAG_DAMAGED;
    ck_assert_ptr_null(record_of(e, e->value_bytes));
}
END_TEST

START_TEST(test_a_frame_with_any_byte_damaged_is_rejected)
{
    lone_begin();
    struct bytes b = batch_make();
    ck_assert(node_receive(l.node, b.data, b.count));
    for (size_t at = 0; at < b.count; at++) {
        if (at == offsetof(struct frame, mac)) /* that is for the wire */
            at += sizeof((struct frame *)0)->mac;
        b.data[at] ^= 0x20;
        ck_assert(!node_receive(l.node, b.data, b.count));
        b.data[at] ^= 0x20;
    }
    for (size_t count = 0; count < b.count; count++)
        ck_assert(!node_receive(l.node, b.data, count));
    bytes_free(&b);
}
END_TEST

/* R32: whether a frame of member LONE_ID + 1 counts as that member's. */
static bool process_is_followed(uint64_t boot, uint64_t start, uint64_t durable)
{
    struct bytes b = batch_make();
    struct frame *h = (struct frame *)b.data;
    const struct peer *p = peer_make(l.node, h->from, "");
    uint64_t before = p->messages_in;
    h->boot = boot;
    h->start = start;
    h->durable = durable;
    batch_seal(&b);
    ck_assert(node_receive(l.node, b.data, b.count));
    bytes_free(&b);
    return p->messages_in > before;
}

START_TEST(test_of_two_processes_with_one_id_only_the_newer_is_followed)
{
    lone_node(&l);
    lone_view(&l, 1, 2, 3);
    struct node *n = l.node;
    ck_assert(process_is_followed(101, 0, 500));
    ck_assert(process_is_followed(101, 0, 800));
    ck_assert(process_is_followed(101, 0, 700));    /* overtaken */
    ck_assert(!process_is_followed(103, 700, 900)); /* an older copy */
    ck_assert(process_is_followed(105, 800, 800));  /* an honest restart */
    ck_assert(!process_is_followed(101, 0, 800));   /* late */
    ck_assert(!process_is_followed(0, 0, 0));       /* forged: these would count as members */
    ck_assert(!process_is_followed((LONE_ID + 1) ^ (LONE_ID + 2), 0, 0));
    ck_assert(!process_is_followed((LONE_ID + 1) ^ LONE_ID, 0, 0));
    ck_assert(process_is_followed(105, 800, 900));
    const struct peer *copy = peer_make(n, (LONE_ID + 1) ^ 103, "");
    ck_assert_uint_eq(copy->messages_in, 1);
    ck_assert_uint_eq(copy->epoch, STRANGER);
    teardown();
}
END_TEST

START_TEST(test_frames_for_others_or_from_the_future_are_ignored)
{
    lone_begin();
    struct node *n = l.node;
    struct bytes b = batch_make();
    struct frame *h = (struct frame *)b.data;
    static const struct {
        uint64_t cluster, from, to, ahead;
        bool accepted;
    } rows[] = {{LONE_CLUSTER, 50, LONE_ID, 0, true},
                {LONE_CLUSTER, 51, 0, 0, true},
                {0, 52, LONE_ID, 0, true},
                {LONE_CLUSTER + 1, 53, LONE_ID, 0, false},
                {LONE_CLUSTER, 54, LONE_ID + 1, 0, false},
                {LONE_CLUSTER, LONE_ID, LONE_ID, 0, false},
                {LONE_CLUSTER, 55, LONE_ID, 9 * SECOND, true},
                {LONE_CLUSTER, 56, LONE_ID, 11 * SECOND, false},
                {LONE_CLUSTER, 57, LONE_ID, UINT64_MAX / 2, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        h->cluster = rows[i].cluster;
        h->from = rows[i].from;
        h->to = rows[i].to;
        h->clock = h->latest_time = n->wall + rows[i].ahead;
        batch_seal(&b);
        uint64_t clock = n->clock;
        ck_assert(node_receive(n, b.data, b.count));
        bool accepted = peer_make(n, rows[i].from, "")->messages_in > 0;
        ck_assert_msg(accepted == rows[i].accepted, "row %zu", i);
        ck_assert_uint_eq(n->clock, accepted ? max_u64(clock, h->clock) : clock);
    }
    bytes_free(&b);
}
END_TEST

START_TEST(test_a_list_is_read_up_to_its_first_entry_that_is_not_whole)
{
    struct bytes list = {0};
    const char *const keys[] = {"a", "a longer key", ""};
    for (int i = 0; i < 3; i++)
        listed_append(&list,
                      &(struct listed){.key_bytes = (uint16_t)strlen(keys[i]), .write_id = 7},
                      keys[i]);
    for (size_t count = 0; count <= list.count; count++) {
        struct bytes part = {list.data, count, 0};
        size_t at = 0;
        int i = 0;
        for (const struct listed *e; (e = list_next(&part, &at));) {
            ck_assert_uint_eq(e->key_bytes, strlen(keys[i]));
            ck_assert_int_eq(memcmp(e->key, keys[i], e->key_bytes), 0);
            i++;
        }
        ck_assert_uint_le(at, count);
        ck_assert_int_eq(i, count < 64 ? 0 : count < 64 + 72 ? 1 : count < 64 + 72 + 56 ? 2 : 3);
    }
    struct listed *first = (struct listed *)list.data;
    first->key_bytes = UINT16_MAX;
    size_t at = 0;
    ck_assert_ptr_null(list_next(&list, &at));
    ck_assert_uint_eq(at, 0);
    bytes_free(&list);
}
END_TEST

START_TEST(test_a_view_makes_sense_only_with_members_that_do)
{
    struct {
        struct view view;
        struct member members[2];
    } good = {{1, LONE_CLUSTER, 3, 2},
              {{.id = 1, .weight = 1, .state = MEMBER_UP},
               {.id = 2, .weight = 5, .state = MEMBER_JOINING}}},
      v;
    ck_assert(view_makes_sense(&good.view, view_bytes(&good.view)));
    for (size_t bytes = 0; bytes < view_bytes(&good.view) + 9; bytes++)
        ck_assert(view_makes_sense(&good.view, bytes) == (bytes == view_bytes(&good.view)));
#define BAD(change)                                                                                \
    v = good;                                                                                      \
    v.change;                                                                                      \
    ck_assert_msg(!view_makes_sense(&v.view, sizeof v), #change)
    BAD(view.epoch = 0);
    BAD(view.replicas = 0);
    BAD(view.replicas = REPLICAS_MAX + 1);
    BAD(view.members_count = 0);
    BAD(view.members_count = 3);
    BAD(view.members_count = UINT32_MAX);
    BAD(members[1].id = 0);
    BAD(members[1].id = 1);
    BAD(members[1].weight = 0);
    BAD(members[1].weight = WEIGHT_MAX + 1);
    BAD(members[1].state = MEMBER_LOST + 1);
    BAD(members[0].state = MEMBER_JOINING);
    BAD(members[0].zone[0] = memset(v.members[0].zone, 'z', ZONE_BYTES) ? 'z' : 0);
    BAD(members[0].address[0] = memset(v.members[0].address, '1', ADDRESS_BYTES) ? '1' : 0);
    for (const char *bad = "/?#@ %\"\\\n\x7f"; *bad; bad++) {
        BAD(members[1].address[0] = *bad);
        BAD(members[1].zone[0] = strchr("\"\\\n\x7f", *bad) ? *bad : '\n');
    }
#undef BAD
}
END_TEST

/* === 6 The index ============================================================================== */

START_TEST(test_keys_are_ordered_by_their_bytes)
{
    static const char *const rising[] = {"", "\x01", "A", "a", "a/", "aa", "b", "\xff"};
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) {
            int order = key_compare(rising[i], strlen(rising[i]), rising[j], strlen(rising[j]));
            ck_assert_int_eq((order > 0) - (order < 0), (i > j) - (i < j));
        }
    ck_assert_int_lt(key_compare("a", 1, "a\0", 2), 0); /* a NUL is a byte like any other */
}
END_TEST

START_TEST(test_a_partition_is_sorted_whatever_comes_and_goes)
{
    lone_node(&l);
    struct partition *p = &l.node->partitions[5];
    char key[32];
    for (int i = 0; i < 2000; i++) {
        size_t bytes = (size_t)snprintf(key, sizeof key, "%d", (int)(node_random(l.node) % 700));
        struct entry *e = entry_find(p, key, bytes);
        if (e && i % 3 == 0) {
            entry_forget(l.node, p, e);
            ck_assert_ptr_null(entry_find(p, key, bytes));
        } else {
            ck_assert_ptr_eq(entry_make(p, key, bytes), entry_find(p, key, bytes));
        }
    }
    ck_assert_uint_gt(p->count, 100);
    for (uint32_t i = 1; i < p->count; i++)
        ck_assert_int_lt(key_compare(p->entries[i - 1]->key, p->entries[i - 1]->key_bytes,
                                     p->entries[i]->key, p->entries[i]->key_bytes),
                         0);
    ck_assert_uint_eq(partition_seek(p, "", 0), 0);
    ck_assert_uint_eq(partition_seek(p, "~", 1), p->count);
}
END_TEST

START_TEST(test_the_digest_of_a_set_does_not_depend_on_its_order)
{
    uint64_t digests[2];
    for (int backwards = 0; backwards < 2; backwards++) {
        lone_begin();
        uint64_t base = l.node->clock;
        digests[backwards] = 0;
        for (int i = 0; i < 100; i++) {
            int k = backwards ? 99 - i : i;
            char key[32];
            snprintf(key, sizeof key, "%d", k);
            lone_accept(&l, (struct ballot){1, base + 1 + (uint64_t)k, LONE_ID}, key, "v");
        }
        for (unsigned p = 0; p < PARTITIONS; p++)
            digests[backwards] =
                XXH3_64bits_withSeed(&l.node->partitions[p].digest, 8, digests[backwards]);
        lone_node_free(&l);
        l.disk.count = 0;
    }
    ck_assert_uint_eq(digests[0], digests[1]);
}
END_TEST

START_TEST(test_a_digest_is_zero_when_all_is_deleted_and_counts_ballots)
{
    lone_begin();
    char key[32];
    uint16_t one = key_partition("0", 1);
    for (int i = 0; i < 50; i++) {
        snprintf(key, sizeof key, "%d", i);
        accept_at(clock_tick(l.node), key, "value");
    }
    uint64_t before = l.node->partitions[one].digest;
    ck_assert_uint_ne(before, 0);
    ck_assert_uint_eq(l.node->keys, 50);
    ck_assert_uint_eq(l.node->value_bytes, 250);
    accept_at(clock_tick(l.node), "0", "value"); /* the same at another ballot */
    ck_assert_uint_ne(l.node->partitions[one].digest, before);
    for (int i = 0; i < 50; i++) {
        snprintf(key, sizeof key, "%d", i);
        accept_at(clock_tick(l.node), key, NULL);
    }
    for (unsigned p = 0; p < PARTITIONS; p++)
        ck_assert_uint_eq(l.node->partitions[p].digest, 0);
    ck_assert_uint_eq(l.node->keys, 0);
    ck_assert_uint_eq(l.node->value_bytes, 0);
    for (unsigned p = 0; p < PARTITIONS; p++)
        while (l.node->partitions[p].count)
            entry_forget(l.node, &l.node->partitions[p], l.node->partitions[p].entries[0]);
    ck_assert_uint_eq(l.node->log.live_bytes, l.node->views_bytes);
}
END_TEST

START_TEST(test_the_promise_floor_holds_for_keys_without_a_live_record)
{
    lone_begin();
    uint64_t now = l.node->clock;
    accept_at(now + 1, "live", "v");
    accept_at(now + 2, "gone", NULL);
    for (int i = 0; i < 3; i++)
        promise_floor_raise(l.node, key_partition(((const char *[]){"live", "gone", "none"})[i], 4),
                            ballot_at(now + 100));
    lone_settle(&l);
    ck_assert_int_eq(prepare_at(now + 50, "live"), M_PROMISE);
    ck_assert_int_eq(prepare_at(now + 50, "gone"), M_REJECT);
    ck_assert_int_eq(prepare_at(now + 50, "none"), M_REJECT);
    ck_assert_int_eq(prepare_at(now + 101, "none"), M_PROMISE);
}
END_TEST

START_TEST(test_a_dropped_partition_is_empty_and_its_sums_are_gone)
{
    lone_begin();
    uint16_t p = key_partition("k", 1);
    uint64_t live = l.node->log.live_bytes;
    accept_at(clock_tick(l.node), "k", "v");
    promise_floor_raise(l.node, p, ballot_at(5));
    lone_settle(&l);
    ck_assert_int_eq(prepare_at(clock_tick(l.node), "k"), M_PROMISE);
    partition_drop(l.node, &l.node->partitions[p]);
    ck_assert_uint_eq(l.node->partitions[p].count, 0);
    ck_assert_uint_eq(l.node->partitions[p].promise_floor.time, 0);
    ck_assert_uint_eq(l.node->partitions[p].digest, 0);
    ck_assert_uint_eq(l.node->keys, 0);
    ck_assert_uint_eq(l.node->log.live_bytes, live);
}
END_TEST

/* === 7 Text =================================================================================== */

START_TEST(test_percent_encoding_gives_every_byte_back)
{
    uint8_t all[256];
    char text[KEY_TEXT_BYTES];
    for (int i = 0; i < 256; i++)
        all[i] = (uint8_t)i;
    percent_encode(text, all, sizeof all);
    for (const char *at = text; *at; at++)
        ck_assert_msg(isalnum((unsigned char)*at) || strchr("-._~/%", *at), "%c", *at);
    ck_assert_int_eq(percent_decode(text), 256);
    ck_assert_int_eq(memcmp(text, all, 256), 0);
    memset(all, 0xff, sizeof all);
    uint8_t longest[KEY_BYTES_MAX];
    memset(longest, 0xff, sizeof longest);
    ck_assert_uint_eq(strlen(percent_encode(text, longest, sizeof longest)), KEY_TEXT_BYTES - 1);
}
END_TEST

START_TEST(test_percent_signs_need_two_hex_digits)
{
    static const struct {
        const char *text, *key; /* null: malformed */
        int bytes;
    } rows[] = {{"", "", 0},         {"abc", "abc", 3},  {"%61", "a", 1},      {"%6a%6A", "jj", 2},
                {"a%2Fb", "a/b", 3}, {"%00", "\0", 1},   {"a%00b", "a\0b", 3}, {"%2561", "%61", 3},
                {"+", "+", 1},       {"%fF", "\xff", 1}, {"%", NULL, 0},       {"%6", NULL, 0},
                {"a%", NULL, 0},     {"%g1", NULL, 0},   {"%1g", NULL, 0},     {"%%61", NULL, 0},
                {"% 1", NULL, 0},    {"%+1", NULL, 0},   {"%0x", NULL, 0},     {"%-1", NULL, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[16];
        strcpy(text, rows[i].text);
        int bytes = percent_decode(text);
        ck_assert_msg(bytes == (rows[i].key ? rows[i].bytes : -1), "'%s': %d", rows[i].text, bytes);
        if (rows[i].key)
            ck_assert_int_eq(memcmp(text, rows[i].key, (size_t)bytes), 0);
    }
}
END_TEST

START_TEST(test_numbers_times_and_sizes)
{
    static const struct {
        const char *text;
        int kind;
        uint64_t value;
        bool fine;
    } rows[] = {{"0", COUNT, 0, true},
                {"18446744073709551615", COUNT, UINT64_MAX, true},
                {"18446744073709551616", COUNT, 0, false},
                {"7", BYTES, 7, true},
                {"7k", BYTES, 7 << 10, true},
                {"7M", BYTES, 7 << 20, true},
                {"7G", BYTES, UINT64_C(7) << 30, true},
                {"7K", BYTES, 0, false},
                {"7k", COUNT, 0, false},
                {"7s", BYTES, 0, false},
                {"99999999999G", BYTES, 0, false},
                {"30", SECONDS, 30 * SECOND, true},
                {"30s", SECONDS, 30 * SECOND, true},
                {"30ms", SECONDS, 30 * MS, true},
                {"2m", SECONDS, 120 * SECOND, true},
                {"2h", SECONDS, 7200 * SECOND, true},
                {"1d", SECONDS, 86400 * SECOND, true},
                {"1w", SECONDS, 0, false},
                {"300000000d", SECONDS, 0, false},
                {"250", MILLISECONDS, 250 * MS, true},
                {"250ms", MILLISECONDS, 250 * MS, true},
                {"2s", MILLISECONDS, 2 * SECOND, true},
                {"", COUNT, 0, false},
                {"s", SECONDS, 0, false},
                {"-1", COUNT, 0, false},
                {"+1", COUNT, 0, false},
                {" 1", COUNT, 0, false},
                {"1 ", COUNT, 0, false},
                {"1.5", SECONDS, 0, false},
                {"0x10", COUNT, 0, false},
                {"1ss", SECONDS, 0, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t value = 0;
        bool fine = parse_number(rows[i].text, rows[i].kind, &value);
        ck_assert_msg(fine == rows[i].fine, "'%s' as %d", rows[i].text, rows[i].kind);
        if (fine)
            ck_assert_uint_eq(value, rows[i].value);
    }
}
END_TEST

START_TEST(test_a_choice_is_a_whole_word_of_the_list)
{
    ck_assert_uint_eq(choice_find("quorum|one|all", "quorum"), 1);
    ck_assert_uint_eq(choice_find("quorum|one|all", "one"), 2);
    ck_assert_uint_eq(choice_find("quorum|one|all", "all"), 3);
    static const char *const none[] = {"", "al", "alll", "one|all", "ONE", "|"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        ck_assert_uint_eq(choice_find("quorum|one|all", none[i]), 0);
}
END_TEST

START_TEST(test_ranges_name_bytes_of_the_value)
{
    enum { WHOLE_VALUE = -1, NOTHING = -2 };
    static const struct {
        const char *text;
        uint64_t size;
        int from, count; /* of 206; or the value as a whole (200), or nothing (416) */
    } rows[] = {{"bytes=0-0", 10, 0, 1},
                {"bytes=0-9", 10, 0, 10},
                {"bytes=2-5", 10, 2, 4},
                {"bytes=9-9", 10, 9, 1},
                {"bytes=5-", 10, 5, 5},
                {"bytes=0-", 10, 0, 10},
                {"bytes=5-99", 10, 5, 5},
                {"bytes=0-18446744073709551615", 10, 0, 10},
                {"bytes=0-99999999999999999999999", 10, 0, 10},
                {"bytes=-3", 10, 7, 3},
                {"bytes=-10", 10, 0, 10},
                {"bytes=-99", 10, 0, 10},
                {"bytes=-0", 10, 0, NOTHING},
                {"bytes=10-", 10, 0, NOTHING},
                {"bytes=10-20", 10, 0, NOTHING},
                {"bytes=99999999999999999999-", 10, 0, NOTHING},
                {"bytes=0-", 0, 0, NOTHING},
                {"bytes=0-0", 0, 0, NOTHING},
                {"bytes=-1", 0, 0, NOTHING},
                {"bytes=5-2", 10, 0, WHOLE_VALUE},
                {"bytes=-", 10, 0, WHOLE_VALUE},
                {"bytes=", 10, 0, WHOLE_VALUE},
                {"bytes=1", 10, 0, WHOLE_VALUE},
                {"bytes=a-b", 10, 0, WHOLE_VALUE},
                {"bytes=1-2,4-5", 10, 0, WHOLE_VALUE},
                {"bytes= 1-2", 10, 0, WHOLE_VALUE},
                {"bytes=1-2 ", 10, 0, WHOLE_VALUE},
                {"bytes=1--2", 10, 0, WHOLE_VALUE},
                {"bytes=+1-2", 10, 0, WHOLE_VALUE},
                {"items=1-2", 10, 0, WHOLE_VALUE},
                {"", 10, 0, WHOLE_VALUE}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t from = 0, count = 0;
        bool part = parse_range(rows[i].text, rows[i].size, &from, &count);
        ck_assert_msg(part == (rows[i].count != WHOLE_VALUE), "'%s'", rows[i].text);
        if (!part) {
            ck_assert_msg(from == 0 && count == 0, "'%s' is not ignored", rows[i].text);
            continue;
        }
        ck_assert_msg(count == (rows[i].count == NOTHING ? 0 : (uint64_t)rows[i].count), "'%s': %d",
                      rows[i].text, (int)count);
        if (count)
            ck_assert_msg(from == (uint64_t)rows[i].from, "'%s': %d", rows[i].text, (int)from);
    }
}
END_TEST

START_TEST(test_entity_tags_are_two_numbers_in_quotes)
{
#define TAG "0006440b80f0a1c2-00000000000000ff"
    static const struct {
        const char *text;
        bool well, ours;
        const char *rest;
    } rows[] = {
        {"\"" TAG "\"", true, true, ""},
        {"\"" TAG "\", \"x\"", true, true, ", \"x\""},
        {"W/\"" TAG "\"", true, false, ""},
        {"\"x\"", true, false, ""},
        {"\"\"", true, false, ""},
        {"\"0006440B80F0A1C2-00000000000000FF\"", true, false, ""}, /* ours are lower case */
        {"\"6440b80f0a1c2-ff\"", true, false, ""},
        {"\"0006440b80f0a1c2-00000000000000ff0\"", true, false, ""},
        {TAG, false, false, NULL},
        {"\"" TAG, false, false, NULL},
        {"\"", false, false, NULL},
        {"", false, false, NULL},
        {"*", false, false, NULL},
        {"W/", false, false, NULL},
        {"w/\"x\"", false, false, NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct ballot etag;
        const char *rest = parse_etag(rows[i].text, false, &etag);
        ck_assert_msg((rest != NULL) == rows[i].well, "'%s'", rows[i].text);
        if (rest)
            ck_assert_str_eq(rest, rows[i].rest);
        ck_assert_msg(etag.time == (rows[i].ours ? 0x6440b80f0a1c2 : 0), "'%s'", rows[i].text);
        ck_assert_uint_eq(etag.node, rows[i].ours ? 0xff : 0);
    }
#undef TAG
}
END_TEST

START_TEST(test_an_idempotency_key_may_begin_with_a_time)
{
    static const struct {
        const char *text;
        uint64_t time; /* 0: it does not */
    } rows[] = {{"1763712000-a", UINT64_C(1763712000000000)},
                {"1763712000.5-a", UINT64_C(1763712000500000)},
                {"1763712000.123-9f3c", UINT64_C(1763712000123000)},
                {"1763712000.123456-x-y", UINT64_C(1763712000123456)},
                {"1763712000.1234567-", UINT64_C(1763712000123456)},
                {"\"1763712000.25-a\"", UINT64_C(1763712000250000)},
                {"1763712000.-a", UINT64_C(1763712000000000)},
                {"9999999999-a", UINT64_C(9999999999000000)},
                {"0000000000-a", 0},
                {"17637120-1234-4321-8888-123456789012", 0},
                {"1763712000abcdef1763712000abcdef", 0},
                {"f81d4fae-7dec-11d0-a765-00a0c91e6bf6", 0},
                {"\"f81d4fae-7dec-11d0-a765-00a0c91e6bf6\"", 0},
                {"1763712000", 0},
                {"1763712000.5", 0},
                {"-a", 0},
                {"", 0},
                {"\"", 0},
                {" 1763712000-a", 0},
                {"+1763712000-a", 0},
                {"1763712e10-a", 0},
                {"0x17637120-a", 0},
                {"1763712000.2.3-a", 0},
                {".5-a", 0},
                {"176371200-a", 0},
                {"17637120001-a", 0},
                {"1763712000 -a", 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t time = parse_unix_time(rows[i].text, '-');
        ck_assert_msg(time == rows[i].time, "'%s': %" PRIu64, rows[i].text, time);
    }
}
END_TEST

/* === 8 Conditions, histograms ================================================================= */

/* What call_condition makes of a request's headers; -1: it is malformed. */
static int condition_of(uint8_t function, uint8_t flags, const char *match, const char *none,
                        struct ballot *etag)
{
    static struct server server;
    struct call c = {.server = &server, .m = {.function = function, .flags = flags}};
    bool fine = call_condition(&c, match, false) && call_condition(&c, none, true);
    *etag = c.m.ballot;
    if (c.response)
        MHD_destroy_response(c.response);
    bytes_free(&c.body);
    ck_assert(fine == !c.response && (fine || c.status == 400));
    return fine ? c.m.condition : -1;
}

START_TEST(test_conditions_are_read_as_rfc_9110_has_them)
{
#define TAG       "\"0000000000000005-0000000000000007\""
#define OTHER_TAG "\"0000000000000006-0000000000000007\""
    static const struct {
        uint8_t function, flags;
        const char *match, *none;
        int condition;
        uint64_t time;
    } rows[] = {
        {DO_PUT, 0, NULL, NULL, IF_NONE, 0},
        {DO_PUT, 0, "*", NULL, IF_EXISTS, 0},
        {DO_PUT, 0, TAG, NULL, IF_MATCH, 5},
        {DO_DELETE, 0, TAG, NULL, IF_MATCH, 5},
        {DO_PUT, 0, "\"x\"", NULL, IF_MATCH, 0}, /* nobody's: never met */
        {DO_PUT, 0, "W/" TAG, NULL, IF_MATCH, 0},
        {DO_PUT, 0, NULL, "*", IF_ABSENT, 0},
        {DO_PUT, 0, NULL, TAG, -1, 0},
        {DO_PUT, 0, "*", "*", -1, 0},
        {DO_PUT, 0, TAG, "*", -1, 0},
        {DO_PUT, 0, "", NULL, -1, 0},
        {DO_PUT, 0, NULL, "", -1, 0},
        {DO_PUT, 0, "x", NULL, -1, 0},
        {DO_PUT, 0, "\"x\", " TAG ", W/\"y\"", NULL, IF_MATCH, 5},
        {DO_PUT, 0, TAG ", " OTHER_TAG, NULL, -1, 0}, /* both could be ours */
        {DO_READ, 0, NULL, "W/" TAG ", \"x\"", IF_MATCH, 5},
        {DO_READ, FLAG_WATCH, NULL, "W/" TAG ", \"x\"", IF_MATCH, 5},
        {DO_READ, FLAG_WATCH, NULL, OTHER_TAG ", " TAG, -1, 0}, /* which is it to wait for? */
        {DO_PUT, 0, TAG " ", NULL, IF_MATCH, 5},
        {DO_PUT, FLAG_ONE, NULL, NULL, IF_NONE, 0},
        {DO_PUT, FLAG_ONE, "*", NULL, -1, 0},
        {DO_PUT, FLAG_ONE, NULL, "*", -1, 0},
        {DO_READ, 0, NULL, NULL, IF_NONE, 0},
        {DO_READ, 0, "nonsense", NULL, -1, 0},
        {DO_READ, 0, TAG ", " OTHER_TAG, NULL, IF_NONE, 0}, /* the reply is compared with it */
        {DO_READ, 0, NULL, TAG, IF_MATCH, 5},
        {DO_READ, 0, NULL, "\"x\", " TAG, IF_MATCH, 5},
        {DO_READ, 0, NULL, "\"x\" ,W/\"y\",\t" TAG, IF_MATCH, 5},
        {DO_READ, 0, NULL, "*", IF_EXISTS, 0},
        {DO_READ, 0, NULL, TAG ",", -1, 0},
        {DO_READ, 0, NULL, TAG "x", -1, 0},
        {DO_READ, 0, NULL, "", -1, 0},
        {DO_READ, FLAG_ONE, NULL, TAG, IF_MATCH, 5}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct ballot etag;
        int condition =
            condition_of(rows[i].function, rows[i].flags, rows[i].match, rows[i].none, &etag);
        ck_assert_msg(condition == rows[i].condition, "row %zu: %d", i, condition);
        if (condition == IF_MATCH)
            ck_assert_msg(etag.time == rows[i].time, "row %zu", i);
    }
#undef TAG
}
END_TEST

START_TEST(test_conditions_hold_for_the_record_that_is_there)
{
    struct draft none = {0}, gone = {.head = {.flags = FLAG_RECORD | FLAG_TOMBSTONE}};
    struct draft there = {.head = {.flags = FLAG_RECORD, .modified = 5, .write_id = 7}};
    gone.head.modified = 5;
    gone.head.write_id = 7;
    struct draft *drafts[] = {&none, &gone, &there};
    static const struct {
        uint8_t condition;
        struct ballot etag;
        bool holds[3]; /* for none, gone, there */
    } rows[] = {
        {IF_NONE, {0}, {true, true, true}},           {IF_ABSENT, {0}, {true, true, false}},
        {IF_EXISTS, {0}, {false, false, true}},       {IF_MATCH, {0, 5, 7}, {false, false, true}},
        {IF_MATCH, {0, 5, 8}, {false, false, false}}, {IF_MATCH, {0, 6, 7}, {false, false, false}},
        {IF_MATCH, {0, 0, 0}, {false, false, false}}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int d = 0; d < 3; d++) {
            struct message m = {.condition = rows[i].condition, .ballot = rows[i].etag};
            ck_assert_msg(condition_holds(&drafts[d]->head, &m) == rows[i].holds[d], "row %zu, %d",
                          i, d);
        }
}
END_TEST

START_TEST(test_a_counter_adds_to_an_integer_and_to_nothing_else)
{
    static const struct {
        const char *value; /* null: not there */
        int64_t by, sum;
        bool fine;
    } rows[] = {{NULL, 5, 5, true},
                {"0", -3, -3, true},
                {"41", 1, 42, true},
                {"-7", 7, 0, true},
                {"9223372036854775807", 0, INT64_MAX, true},
                {"-9223372036854775808", 0, INT64_MIN, true},
                {"9223372036854775807", 1, 0, false},
                {"-9223372036854775808", -1, 0, false},
                {"9223372036854775808", 0, 0, false},
                {"", 1, 0, false},
                {"x", 1, 0, false},
                {"1x", 1, 0, false},
                {" 1", 1, 0, false},
                {"1 ", 1, 0, false},
                {"1.0", 1, 0, false},
                {"00000000000000000000000000001", 1, 0, false}};
    static struct draft d;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct message m = {.write_id = 3, .number = (uint64_t)rows[i].by};
        d = (struct draft){.head = {.modified = 5, .ballot = {1, 1000, 1}}};
        if (rows[i].value) {
            d.head.flags = FLAG_RECORD;
            d.head.value_bytes = (uint32_t)strlen(rows[i].value);
            d.body.value = rows[i].value;
        }
        ck_assert_msg(draft_add(&d, &m) == rows[i].fine, "row %zu", i);
        ck_assert_msg(!rows[i].fine || d.number == (uint64_t)rows[i].sum, "row %zu", i);
        ck_assert(d.changed == rows[i].fine);
    }
}
END_TEST

START_TEST(test_results_too_many_or_too_old_are_lost_and_the_record_says_until_when)
{
    static struct draft d;
    lone_begin();
    d.head.ballot.time = 100 * SECOND;
    for (size_t i = 0; i < RESULTS_MAX + 10; i++)
        d.results[d.results_count++] = (struct result){.write_id = i, .recorded = 90 * SECOND + i};
    draft_trim(l.node, &d);
    ck_assert_uint_eq(d.results_count, RESULTS_MAX);
    ck_assert_uint_eq(d.head.results_lost_until, 90 * SECOND + 9);
    for (size_t i = 0; i < d.results_count; i++)
        ck_assert_uint_gt(d.results[i].recorded, d.head.results_lost_until);
    d.head.ballot.time = 200 * SECOND;
    draft_trim(l.node, &d);
    ck_assert_uint_eq(d.results_count, 0);
    uint64_t lost_until = d.head.results_lost_until;
    ck_assert_uint_eq(lost_until, 90 * SECOND + RESULTS_MAX + 9);
    d.results[d.results_count++] = (struct result){.recorded = 10 * SECOND};
    draft_trim(l.node, &d);
    ck_assert_uint_eq(d.head.results_lost_until, lost_until); /* it never falls */
}
END_TEST

START_TEST(test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it)
{
    struct histogram h = {{0}, 0};
    for (int i = 0; i < BOUNDS; i++) {
        histogram_add(&h, histogram_bounds[i]);
        ck_assert_uint_eq(h.buckets[i], 1);
        histogram_add(&h, histogram_bounds[i] * 1.01);
        ck_assert_uint_eq(h.buckets[i + 1], 1);
        h.buckets[i + 1] = 0;
    }
    histogram_add(&h, 0);
    histogram_add(&h, 1e9);
    ck_assert_uint_eq(h.buckets[0], 2);
    ck_assert_uint_eq(h.buckets[BOUNDS], 1);
    for (int i = 1; i < BOUNDS; i++)
        ck_assert(histogram_bounds[i] > histogram_bounds[i - 1]);
    struct bytes text = {0};
    print_histogram(&text, "t", "", "help", 1, &h);
    bytes_append(&text, "", 1);
    ck_assert_ptr_nonnull(strstr((char *)text.data, "t_bucket{le=\"0.0001\"} 2\n"));
    ck_assert_ptr_nonnull(strstr((char *)text.data, "t_bucket{le=\"+Inf\"} 16\n"));
    ck_assert_ptr_nonnull(strstr((char *)text.data, "t_count 16\n"));
    bytes_free(&text);
}
END_TEST

/* === 9 Among peers ============================================================================
 *
 * One node; the test plays its peers. `sent_count` empties what the node has queued for them.
 */

static void peers_begin(unsigned peers, uint32_t replicas)
{
    lone_node(&l);
    lone_view(&l, 1, peers, replicas);
    lone_tick(&l, 20 * MS, true);
}

static void peer_sends(uint64_t from, uint64_t clock, const struct message *head,
                       const struct body *body)
{
    struct node *n = l.node;
    message_deliver(n, from, clock, head, body);
    lone_settle(&l);
}

/* How many messages of the type, with all these flags, are queued for peers. Empties the queues.
 * `last`, if not null, receives the head of the last of them. */
static unsigned sent_count(uint8_t type, uint8_t flags, struct message *last)
{
    unsigned count = 0;
    for (size_t i = 0; i < 2 * l.node->peers_count; i++) {
        struct bytes *box = &l.node->peers[i / 2]->outbox[i % 2];
        for (size_t at = sizeof(struct frame); at < box->count;) {
            const struct message *m = (const struct message *)(box->data + at);
            at += m->bytes;
            if (m->type != type || (m->flags & flags) != flags)
                continue;
            count++;
            if (last)
                *last = *m;
        }
        box->count = 0;
    }
    return count;
}

static unsigned rounds(void)
{
    unsigned count = 0;
    for (int i = 0; i < ROUND_BUCKETS; i++)
        for (const struct round *r = LIST_FIRST(&l.node->by_id[i]); r; r = LIST_NEXT(r, by_id))
            count++;
    return count;
}

static struct message request_for(uint8_t function, const char *key, uint64_t issued_at)
{
    struct message m = {.function = function, .flags = FLAG_WHOLE};
    m.key_bytes = (uint16_t)strlen(key);
    m.partition = key_partition(key, m.key_bytes);
    m.write_id = 1;
    m.issued_at = issued_at;
    m.expiry = function == DO_READ ? UINT64_MAX : 0;
    return m;
}

static void request_with(const struct message *m, const char *key, const void *value, uint64_t wait)
{
    node_request(l.node, NULL, m, &(struct body){.key = key, .value = value}, wait);
    lone_settle(&l);
}

static void request(const struct message *m, const char *key)
{
    request_with(m, key, NULL, 0);
}

/* Another key of the same partition. */
static const char *neighbour(const char *of, char key[32])
{
    uint16_t partition = key_partition(of, strlen(of));
    for (int i = 0; !*key || key_partition(key, strlen(key)) != partition; i++)
        snprintf(key, 32, "%d", i);
    return key;
}

/* The peers report the digest and the promise floor that this node has. */
static void peers_agree(uint16_t partition)
{
    const struct partition *p = &l.node->partitions[partition];
    struct message m = {.type = M_DIGEST, .partition = partition, .number = p->digest};
    m.ballot = p->promise_floor;
    for (uint64_t id = LONE_ID + 1; id <= LONE_ID + 2; id++)
        peer_sends(id, l.node->clock, &m, NULL);
}

static void ticks(unsigned count, uint64_t time)
{
    for (unsigned i = 0; i < count; i++)
        lone_tick(&l, time, true);
}

START_TEST(test_a_frame_larger_than_the_limit_is_rejected_by_its_header)
{
    for (int i = 0; i < 4; i++) {
        uint32_t most = i < 2 ? FRAME_BYTES_MAX : sizeof(struct frame), more = i % 2 ? 8 : 0;
        struct server s = {.node = lone_node(&l)};
        struct call c = {.server = &s, .is_peer = i < 2}; /* else the first frame of a POST */
        struct frame b = {.magic = FRAME_MAGIC, .bytes = most + more};
        b.check = frame_check(&(struct frame){.bytes = sizeof b});
        ck_assert_int_eq(frame_piece(&c, (const char *)&b, sizeof b), MHD_YES);
        ck_assert_int_eq(c.response != NULL, more != 0);
        ck_assert_int_eq(c.is_peer, i < 3);
        if (c.response)
            MHD_destroy_response(c.response);
        bytes_free(&c.body);
        lone_free(&l);
    }
    lone_begin();
}
END_TEST

/* A message that is discarded so is sent again, like any other. */
START_TEST(test_while_memory_is_short_few_messages_are_queued_for_a_live_peer)
{
    struct bytes all = {0};
    struct message m = {.type = M_PULL, .value_bytes = OUTBOX_BYTES_DEAD};
    m.flags = FLAG_WHOLE;
    lone_node(&l);
    lone_view(&l, 1, 2, 3);
    lone_tick(&l, 20 * MS, true);
    struct peer *to = l.node->member_peer[1];
    void *value = bytes_extend(&all, OUTBOX_BYTES_DEAD);
    memset(value, 'v', OUTBOX_BYTES_DEAD);
    for (int i = 0; i < 20; i++)
        message_send(l.node, to, 0, &m, &(struct body){.value = value});
    ck_assert_uint_gt(to->outbox[1].count, 20 * OUTBOX_BYTES_DEAD);
    bytes_limit = OUTBOX_BYTES_DEAD / 2; /* `all` alone takes more */
    for (int i = 0; i < 20; i++) {
        message_send(l.node, to, 0, &m, &(struct body){.value = value});
        ck_assert_uint_lt(to->outbox[1].count, 2 * OUTBOX_BYTES_DEAD);
    }
    bytes_limit = UINT64_MAX;
    bytes_free(&all);
}
END_TEST

/* A node that is gone gives up its log. One peer's word must not do that. */
START_TEST(test_one_peers_view_removes_no_node_that_a_majority_still_hears)
{
    lone_node(&l);
    lone_view(&l, 1, 2, 3);
    struct {
        struct view view;
        struct member members[3];
    } v = {{2, LONE_CLUSTER, 3, 2}, {{0}}};
    for (unsigned i = 0; i < 3; i++) {
        v.members[i] = (struct member){.id = LONE_ID + (i + 1) % 3, .weight = 1};
        snprintf(v.members[i].address, ADDRESS_BYTES, "127.0.0.1:%u", i + 2);
        v.members[i].state = i == 2 ? MEMBER_LOST : MEMBER_UP;
    }
    struct message m = {.type = M_VIEW, .flags = FLAG_WHOLE};
    lone_tick(&l, 20 * MS, true);
    accept_at(clock_tick(l.node), "k", "v");
    for (v.view.members_count = 2; v.view.members_count <= 3; v.view.members_count++) {
        m.value_bytes = view_bytes(&v.view);
        for (int i = 0; i < 100; i++) { /* the view comes again and again */
            peer_sends(i % 2 ? LONE_ID + 1 : 99, l.node->clock, &m, &(struct body){.value = &v});
            lone_tick(&l, 20 * MS, true);
        }
        ck_assert(!l.node->gone && l.node->has_lease && node_epoch(l.node) == 1);
    }
    ck_assert_str_eq(value_of("k"), "v");
    ck_assert(recover());
    v.view.members_count = 3;
    for (int i = 0; i < 2 * (int)(l.node->lease / (20 * MS)); i++) {
        ck_assert(!l.node->gone); /* nor just after its start */
        peer_sends(LONE_ID + 1, l.node->clock, &m, &(struct body){.value = &v});
        lone_tick(&l, 20 * MS, false);
    }
    lone_tick(&l, 20 * MS, false);
    peer_sends(LONE_ID + 1, l.node->clock, &m, &(struct body){.value = &v});
    ck_assert(l.node->gone);
}
END_TEST

START_TEST(test_a_tombstone_is_forgotten_while_other_keys_change)
{
    char busy[32] = "";
    peers_begin(2, 3);
    struct node *n = l.node;
    uint16_t at = key_partition("gone", 4);
    struct partition *p = &n->partitions[at];
    uint64_t first = clock_tick(n);
    accept_at(first, "gone", "v");
    accept_at(first, neighbour("gone", busy), "v");
    accept_at(clock_tick(n), "gone", NULL);
    struct ballot deleted = entry_of("gone")->accepted;
    ticks(RESULTS_KEPT_TIME / SECOND + 10, SECOND);
    for (int i = 0; i < 3; i++) {
        peers_agree(at);
        accept_at(clock_tick(n), busy, "changed");
        partition_sweep(n, at);
    }
    ck_assert_int_ge(ballot_compare(p->gc_floor, deleted), 0);
}
END_TEST

START_TEST(test_a_record_below_the_gc_floor_undoes_the_agreement)
{
    char late[32] = "";
    peers_begin(2, 3);
    struct node *n = l.node;
    uint16_t at = key_partition("gone", 4);
    struct partition *p = &n->partitions[at];
    uint64_t first = clock_tick(n), middle = clock_tick(n);
    accept_at(first, neighbour("gone", late), "v");
    accept_at(clock_tick(n), "gone", NULL);
    ticks(RESULTS_KEPT_TIME / SECOND + 10, SECOND);
    for (int i = 0; i < 3; i++) {
        peers_agree(at);
        partition_sweep(n, at);
    }
    ck_assert_int_gt(ballot_compare(p->gc_floor, ballot_at(middle)), 0);
    peers_agree(at);
    accept_at(middle, late, NULL);
    ck_assert_uint_eq(p->gc_floor.time, 0);
    partition_sweep(n, at);
    ck_assert_uint_eq(p->gc_floor.time, 0);
    peers_agree(at); /* as the others have it now too */
    partition_sweep(n, at);
    ck_assert_int_gt(ballot_compare(p->gc_floor, ballot_at(middle)), 0);
}
END_TEST

/* A DELETE of a key that is not there leaves a promise. Folding it raises the promise floor, and all
 * owners must agree again. */
START_TEST(test_promises_are_folded_rarely_but_where_the_owners_agree)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    struct message m = {.type = M_PREPARE, .round_id = 5, .key_bytes = 4};
    uint16_t at = m.partition = key_partition("none", 4);
    struct partition *p = &n->partitions[at];
    unsigned raised = 0;
    for (int i = 0; i < 200; i++) {
        struct ballot before = p->promise_floor;
        m.ballot = (struct ballot){1, clock_tick(n), LONE_ID + 1};
        peer_sends(LONE_ID + 1, n->clock, &m, &(struct body){.key = "none"});
        ticks(9, SECOND);
        entry_of("none")->promised->time -= RESULTS_KEPT_TIME + 10 * SECOND;
        partition_sweep(n, at);
        raised += ballot_compare(p->promise_floor, before) > 0;
    }
    ck_assert_uint_ge(raised, 2);
    ck_assert_uint_le(raised, 4);
    ck_assert_ptr_nonnull(entry_of("none"));
    peers_agree(at);
    partition_sweep(n, at);
    ck_assert_ptr_null(entry_of("none"));
}
END_TEST

/* A write as HTTP hands it to the core: with this Idempotency-Key ("": none), and marked as a repeat
 * or not. */
static struct call keyed(const char *key, uint8_t flags)
{
    static struct server s;
    s.node = l.node;
    struct call c = {.server = &s, .method = POST, .uri = "/k?op=add", .m.flags = flags};
    snprintf(c.retry_key, sizeof c.retry_key, "%s", key);
    c.key_time = parse_unix_time(key, '-');
    call_write_id(&c);
    return c;
}

static char *key_at(uint64_t time)
{
    static char text[40];
    snprintf(text, sizeof text, "%.6f-a", (double)time / 1e6);
    return text;
}

START_TEST(test_no_repeat_counts_as_issued_later_than_its_first_try)
{
    static const int64_t aheads[] = {-59000, -7000, -1001, -1000, -100, 0, 999, 1000, 3000, 5000};
    lone_begin();
    struct node *n = l.node;
    for (size_t i = 0; i < sizeof aheads / sizeof *aheads; i++) {
        struct call first = keyed(key_at((uint64_t)((int64_t)n->wall + aheads[i] * 1000)), 0);
        bool late = aheads[i] < -1000;
        ck_assert_int_eq(!(first.m.flags & FLAG_FIRST), late);
        ck_assert_int_eq(first.m.issued_at < n->wall, late); /* else as it comes */
        uint64_t recorded = max_u64(n->clock, n->wall);
        for (int later = 0; later < 40; later++) {
            node_time(n, n->now + 250 * MS, n->wall + 250 * MS);
            struct call repeat = keyed(first.retry_key, FLAG_REPEAT);
            ck_assert_uint_eq(repeat.m.write_id, first.m.write_id);
            ck_assert_msg(repeat.m.issued_at <= min_u64(first.m.issued_at, recorded),
                          "%" PRId64 " ms ahead", aheads[i]);
            ck_assert(!(repeat.m.flags & FLAG_FIRST));
        }
    }
    ck_assert_uint_eq(keyed("uuid", FLAG_REPEAT).m.issued_at, 0);
    ck_assert_uint_eq(keyed(key_at(n->wall + 6 * SECOND), FLAG_REPEAT).m.issued_at, 0);
    ck_assert_uint_ge(keyed("uuid", 0).m.issued_at, n->wall);
}
END_TEST

START_TEST(test_a_keyless_write_and_its_repeat_with_the_key_of_the_reply_are_one)
{
    lone_begin();
    l.node->clock += 3 * SECOND + 123; /* raised by others */
    for (int i = 0; i < 100; i++) {
        l.node->wall += 777;
        struct call first = keyed("", 0), repeat = keyed(first.retry_key, FLAG_REPEAT);
        ck_assert(first.m.flags & FLAG_FRESH);
        ck_assert_uint_eq(repeat.m.write_id, first.m.write_id);
        ck_assert_uint_le(repeat.m.issued_at, first.m.issued_at);
        ck_assert_uint_gt(repeat.m.issued_at, 0);
    }
}
END_TEST

START_TEST(test_no_key_pushes_the_clock)
{
    lone_begin();
    uint64_t clock = l.node->clock;
    struct message m = keyed(key_at(l.node->wall + 3600 * SECOND), 0).m;
    m.function = DO_PUT;
    m.flags |= FLAG_WHOLE;
    m.key_bytes = 1;
    m.partition = key_partition("k", 1);
    node_request(l.node, NULL, &m, &(struct body){.key = "k"}, 0);
    ck_assert_uint_lt(l.node->clock, clock + SECOND);
}
END_TEST

/* The status of a write to a record that has lost the results up to that time. */
static uint16_t status_after(uint64_t lost_until, struct message m)
{
    static struct draft d;
    d = (struct draft){.head = {.results_lost_until = lost_until}};
    d.head.ballot = (struct ballot){1, clock_tick(l.node), LONE_ID};
    m.function = DO_PUT;
    return (uint16_t)draft_take(l.node, &d, &m).status;
}

START_TEST(test_unknown_is_only_what_could_have_been_lost)
{
    lone_begin();
    struct node *n = l.node;
    uint64_t wall = n->wall;
    struct message first = keyed(key_at(wall), 0).m, repeat = keyed(key_at(wall), FLAG_REPEAT).m,
                   uuid = keyed("uuid", FLAG_REPEAT).m, keyless = keyed("", 0).m;
    ck_assert_uint_eq(status_after(0, uuid), 201);
    ck_assert_uint_eq(status_after(1, uuid), STATUS_UNKNOWN);
    ck_assert_uint_eq(status_after(wall - 6 * SECOND, repeat), 201);
    ck_assert_uint_eq(status_after(wall - 4 * SECOND, repeat), STATUS_UNKNOWN);
    ck_assert_uint_eq(status_after(first.issued_at - 1, first), 201);
    ck_assert_uint_eq(status_after(first.issued_at + 50 * MS, first), 201); /* of a clock ahead */
    ck_assert_uint_eq(status_after(first.issued_at + 200 * MS, first), STATUS_UNKNOWN);
    ck_assert_uint_eq(status_after(wall + 2 * SECOND, keyless), 201);
    struct request sent[] = {{.m = &first}, {.m = &keyless}};
    for (int i = 0; i < 2; i++) {
        sent[i].m->flags &= (uint8_t) ~(FLAG_FRESH | FLAG_FIRST);
        ck_assert_uint_eq(status_after(sent[i].m->issued_at - 1, *sent[i].m), 201);
        ck_assert_uint_eq(status_after(sent[i].m->issued_at, *sent[i].m), STATUS_UNKNOWN);
    }
}
END_TEST

/* A forgotten tombstone took its results_lost_until with it; the promise floor is above that. */
START_TEST(test_a_promise_without_a_record_has_lost_results_up_to_the_floor)
{
    peers_begin(2, 3);
    struct message promise, m = {.type = M_PREPARE, .round_id = 5, .key_bytes = 4};
    m.partition = key_partition("none", 4);
    l.node->partitions[m.partition].promise_floor = (struct ballot){1, 77, LONE_ID};
    m.ballot = (struct ballot){1, clock_tick(l.node), LONE_ID + 1};
    peer_sends(LONE_ID + 1, l.node->clock, &m, &(struct body){.key = "none"});
    ck_assert_uint_eq(sent_count(M_PROMISE, 0, &promise), 1);
    ck_assert_uint_eq(promise.results_lost_until, 77);
}
END_TEST

START_TEST(test_a_repeat_is_never_answered_nothing_was_changed)
{
    static const uint16_t statuses[] = {503, 507, STATUS_UNKNOWN};
    static const char *const outcome = "Estoraje-Outcome";
    for (int i = 0; i < 12; i++) {
        bool repeat = i / 3 % 2, one = i / 6;
        struct call c = {.m = {.function = DO_PUT, .flags = one ? FLAG_ONE : 0}};
        c.m.flags |= repeat ? FLAG_REPEAT : 0;
        strcpy(c.retry_key, "mine");
        call_text(&c, statuses[i % 3], "why");
        bool unknown = repeat || statuses[i % 3] == STATUS_UNKNOWN;
        ck_assert_int_eq(c.status, unknown ? 503 : statuses[i % 3]);
        ck_assert_int_eq(MHD_get_response_header(c.response, outcome) != NULL, unknown);
        ck_assert_int_eq(MHD_get_response_header(c.response, "Idempotency-Key") != NULL,
                         unknown && !one);
        MHD_destroy_response(c.response);
        bytes_free(&c.body);
    }
}
END_TEST

START_TEST(test_a_repeat_is_too_old_by_the_clock_as_the_promises_raised_it)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    struct message m = request_for(DO_PUT, "k", n->wall + SECOND - RESULTS_KEPT_TIME), prepare;
    m.flags |= FLAG_REPEAT;
    request(&m, "k");
    ck_assert_uint_gt(sent_count(M_PREPARE, 0, &prepare), 0);
    struct message promise = {.type = M_PROMISE, .round_id = prepare.round_id};
    for (uint64_t id = LONE_ID + 1; id <= LONE_ID + 2; id++)
        peer_sends(id, n->wall + 5 * SECOND, &promise, NULL);
    ck_assert_uint_eq(sent_count(M_ACCEPT, 0, NULL), 0);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, STATUS_UNKNOWN);
}
END_TEST

/* This node's own promise comes first, and knows of no lost results, as a joiner's: the other owner
 * has forgotten a tombstone. */
START_TEST(test_lost_results_count_whichever_promise_comes_first)
{
    peers_begin(2, 3);
    struct message m = request_for(DO_PUT, "k", 0), prepare;
    m.flags |= FLAG_REPEAT;
    request(&m, "k");
    ck_assert_uint_gt(sent_count(M_PREPARE, 0, &prepare), 0);
    struct message promise = {.type = M_PROMISE, .round_id = prepare.round_id};
    promise.results_lost_until = l.node->wall - 100 * SECOND;
    peer_sends(LONE_ID + 1, l.node->clock, &promise, NULL);
    ck_assert_uint_eq(sent_count(M_ACCEPT, 0, NULL), 0);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, STATUS_UNKNOWN);
}
END_TEST

START_TEST(test_a_round_that_nobody_waits_for_is_over)
{
    peers_begin(4, 5);
    struct message prepare;
    for (int accepts = 0; accepts < 2; accepts++) {
        struct message m = request_for(DO_PUT, "k", l.node->wall);
        m.flags |= FLAG_FRESH;
        unsigned before = l.replies;
        request(&m, "k");
        ck_assert_uint_gt(sent_count(M_PREPARE, 0, &prepare), 0);
        struct message promise = {.type = M_PROMISE, .round_id = prepare.round_id};
        for (uint64_t id = LONE_ID + 1; accepts && id <= LONE_ID + 3; id++)
            peer_sends(id, l.node->clock, &promise, NULL);
        ck_assert_uint_eq(sent_count(M_ACCEPT, 0, NULL) > 0, accepts);
        ticks(150, 20 * MS); /* with leases, but no answers */
        ck_assert_uint_eq(l.replies, before + 1);
        ck_assert_uint_eq(rounds(), 0);
    }
}
END_TEST

/* This node has the value, and the others say nothing. */
START_TEST(test_a_read_of_a_large_value_is_answered_even_if_no_quorum_is)
{
    peers_begin(2, 3);
    size_t bytes = 2 << 20;
    char *value = malloc(bytes + 1);
    memset(value, 'v', bytes);
    value[bytes] = 0;
    accept_at(l.node->wall - 100 * SECOND, "big", value);
    free(value);
    lone_settle(&l);
    struct message m = request_for(DO_READ, "big", 0);
    m.flags = 0;
    request(&m, "big");
    ticks(250, 20 * MS);
    ck_assert_uint_eq(l.replies, 1);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 503);
}
END_TEST

/* 16 MiB, which the disks of the others take 5 s for. */
START_TEST(test_a_large_value_has_time_to_be_stored)
{
    peers_begin(2, 3);
    struct message m = request_for(DO_PUT, "big", l.node->wall), sent;
    m.flags |= FLAG_FRESH;
    m.value_bytes = 16 << 20;
    char *value = calloc(1, m.value_bytes);
    request_with(&m, "big", value, 0);
    free(value);
    ck_assert_uint_gt(sent_count(M_PREPARE, 0, &sent), 0);
    peer_sends(LONE_ID + 1, l.node->clock,
               &(struct message){.type = M_PROMISE, .round_id = sent.round_id}, NULL);
    ck_assert_uint_gt(sent_count(M_ACCEPT, FLAG_WHOLE, &sent), 0);
    ticks(250, 20 * MS);
    ck_assert_uint_eq(l.replies, 0);
    peer_sends(LONE_ID + 1, l.node->clock,
               &(struct message){.type = M_ACCEPTED, .round_id = sent.round_id}, NULL);
    ck_assert_uint_eq(l.replies, 1);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 201);
}
END_TEST

START_TEST(test_what_is_late_is_sent_again_each_time_after_twice_as_long)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    struct message m = request_for(DO_PUT, "k", n->wall);
    m.flags |= FLAG_FRESH;
    uint64_t began = n->now, sent_ms[8];
    unsigned sends = 0;
    request(&m, "k");
    for (unsigned replies = l.replies; l.replies == replies; ticks(1, 10 * MS))
        if (sent_count(M_PREPARE, 0, NULL) > 0)
            sent_ms[sends++] = (n->now - began) / MS;
    ck_assert_uint_eq(sends, 5);
    for (unsigned i = 0; i < sends; i++)
        ck_assert_uint_eq(sent_ms[i], ((1u << i) - 1) * 100);
}
END_TEST

/* 20 clients, each with a megabyte; the peers answer all that they are asked. */
START_TEST(test_large_writes_wait_for_one_another_and_all_are_done)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    uint32_t bytes = 1 << 20;
    char *value = calloc(1, bytes), key[8];
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "big%d", i);
        struct message m = request_for(DO_PUT, key, n->wall + (unsigned)i);
        m.flags |= FLAG_FRESH;
        m.write_id = 100 + (unsigned)i;
        m.value_bytes = bytes;
        request_with(&m, key, value, 0);
    }
    free(value);
    ck_assert_uint_eq(rounds(), LARGE_BYTES_MAX / bytes);
    struct message sent;
    for (unsigned done = 0; done < 20; done++) {
        ck_assert_uint_eq(l.replies, done);
        ck_assert_uint_le(n->large_bytes, LARGE_BYTES_MAX);
        const struct round *r = NULL;
        for (int i = 0; i < ROUND_BUCKETS && !r; i++)
            r = LIST_FIRST(&n->by_id[i]);
        sent = (struct message){.round_id = r->round_id, .type = M_PROMISE};
        peer_sends(LONE_ID + 1, n->clock, &sent, NULL);
        sent.type = M_ACCEPTED;
        peer_sends(LONE_ID + 1, n->clock, &sent, NULL);
        ck_assert_uint_eq(((struct message *)l.reply.data)->status, 201);
    }
    ck_assert_uint_eq(l.replies, 20);
    ck_assert_uint_eq(rounds(), 0);
    ck_assert_uint_eq(n->large_bytes, 0);
}
END_TEST

START_TEST(test_a_large_write_queued_too_long_is_answered_nothing_was_changed)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    uint32_t bytes = LARGE_BYTES_MAX;
    char *value = calloc(1, bytes);
    for (unsigned i = 0; i < 2; i++) {
        struct message m = request_for(DO_PUT, i ? "b" : "a", n->wall);
        m.flags |= FLAG_FRESH;
        m.write_id = 100 + i;
        m.value_bytes = bytes;
        request_with(&m, i ? "b" : "a", value, 0);
        ticks(10, 20 * MS);
    }
    free(value);
    while (l.replies < 2)
        ticks(1, 20 * MS);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 503);
    ck_assert_uint_eq(n->large_bytes, 0);
    ck_assert(STAILQ_EMPTY(&n->large));
}
END_TEST

static uint16_t results_of(const char *key)
{
    return record_of(entry_of(key), 0)->results_count;
}

START_TEST(test_a_record_lists_the_results_that_somebody_may_still_ask_for)
{
    lone_begin();
    lone_tick(&l, SECOND, true);
    for (uint64_t i = 1; i <= 40; i++) {
        struct message m = request_for(DO_PUT, "k", l.node->wall);
        m.write_id = i;
        request(&m, "k");
        if (i % 4 != 0)
            node_delivered(l.node, i);
        ck_assert_uint_eq(results_of("k"), (i - 1) / 4 + 1); /* with its own */
    }
    struct message repeat = request_for(DO_PUT, "k", l.node->wall);
    repeat.flags |= FLAG_REPEAT;
    repeat.write_id = 4;
    request(&repeat, "k");
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 204);
    repeat.write_id = 5; /* was applied, and is not applied again */
    request(&repeat, "k");
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, STATUS_UNKNOWN);
    ck_assert_uint_eq(entry_of("k")->write_id, 40);
}
END_TEST

/* Answered within the time of a request, not of the wait: also when the wait had begun. */
START_TEST(test_a_wait_without_a_quorum_is_503_soon)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    struct message m = request_for(DO_READ, "k", 0), read, answer = {.type = M_READ_REPLY};
    m.flags = FLAG_WATCH;
    m.condition = IF_ABSENT;
    request_with(&m, "k", NULL, 60 * SECOND);
    if (_i) {
        ck_assert_uint_gt(sent_count(M_READ, 0, &read), 0);
        answer.round_id = read.round_id;
        for (uint64_t id = LONE_ID + 1; id <= LONE_ID + 2; id++)
            peer_sends(id, n->clock, &answer, NULL);
    }
    ticks(100, 20 * MS);
    ck_assert_uint_eq(l.replies, 0);
    ticks(_i ? 150 : 25, 20 * MS);
    ck_assert_uint_eq(l.replies, 1);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 503);
}
END_TEST

START_TEST(test_consistency_all_is_503_at_once_when_an_owner_is_away)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    for (int away = 0; away < 2; away++) {
        struct message m = request_for(DO_PUT, "k", n->wall);
        m.flags |= FLAG_ALL | FLAG_FRESH;
        n->member_peer[2]->heard_at = away ? 0 : n->now;
        request(&m, "k");
        ck_assert_uint_eq(sent_count(M_PREPARE, 0, NULL), away ? 0 : 2);
        ck_assert_uint_eq(l.replies, away);
    }
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 503);
}
END_TEST

/* A node that lost its disk is a new member at the address of one that leaves. */
START_TEST(test_an_address_with_two_members_is_listed_once)
{
    peers_begin(2, 3);
    struct server s = {.node = l.node};
    struct bytes out = {0};
    strcpy(l.node->member_peer[2]->address, l.node->member_peer[1]->address);
    l.node->view->members[1].state = MEMBER_LEAVING;
    print_nodes(&out, &s);
    print_peers(&out, l.node);
    bytes_append(&out, "", 1);
    const char *text = (char *)out.data, *at = text;
    unsigned count = 0;
    for (; (at = strstr(at, "127.0.0.1:2")); at++)
        count++;
    ck_assert_msg(count == 5, "%s", text);
    ck_assert_ptr_nonnull(strstr(text, "estoraje_peer_up{peer=\"127.0.0.1:2\"} 1\n"));
    bytes_free(&out);
}
END_TEST

/* Its owners agree, and send 20 MB by a slow link. */
START_TEST(test_a_value_under_way_is_not_asked_for_again_soon)
{
    char key[32] = "";
    peers_begin(4, 3);
    for (int i = 0; !*key || partition_owners(l.node, key_partition(key, strlen(key))) & 1; i++)
        snprintf(key, sizeof key, "%d", i);
    struct message m = request_for(DO_READ, key, 0);
    m.flags = 0;
    request(&m, key);
    struct message read = {0};
    sent_count(M_READ, 0, &read);
    struct message answer = {.type = M_READ_REPLY, .flags = FLAG_RECORD, .value_bytes = 20 << 20};
    answer.round_id = read.round_id;
    answer.partition = read.partition;
    answer.ballot = ballot_at(l.node->wall - 100 * SECOND);
    uint64_t owners = partition_owners(l.node, answer.partition);
    owners &= ~nearest_owner(l.node, answer.partition); /* whose answer is on its way */
    for (unsigned i = 0; i < 5; i++)
        if (owners >> i & 1)
            peer_sends(LONE_ID + i, l.node->clock, &answer, NULL);
    unsigned asked = 0;
    for (int i = 0; i < 1000 && !l.replies; i++) {
        lone_tick(&l, 20 * MS, true);
        asked += sent_count(M_READ, FLAG_WHOLE, NULL);
    }
    ck_assert_uint_eq(l.replies, 1);
    ck_assert_uint_ge(asked, 1);
    ck_assert_uint_le(asked, 4);
}
END_TEST

/* The nearest owner says that it is too large to come at once; each further reply agrees. */
START_TEST(test_a_large_value_is_asked_for_once)
{
    char key[32] = "";
    peers_begin(4, 3);
    for (int i = 0; !*key || partition_owners(l.node, key_partition(key, strlen(key))) & 1; i++)
        snprintf(key, sizeof key, "%d", i);
    struct message m = request_for(DO_READ, key, 0), read;
    request(&m, key);
    ck_assert_uint_eq(sent_count(M_READ, 0, &read), 3);
    struct message reply = {.type = M_READ_REPLY, .round_id = read.round_id};
    reply.partition = read.partition;
    reply.ballot = ballot_at(l.node->wall - 100 * SECOND);
    uint64_t owners = partition_owners(l.node, reply.partition),
             nearest = nearest_owner(l.node, reply.partition);
    reply.number = 20 << 20;
    reply.flags = FLAG_RECORD | FLAG_WHOLE;
    for (uint64_t left = owners, next = nearest; left; next = left & -left) {
        peer_sends(LONE_ID + (uint64_t)__builtin_ctzll(next), l.node->clock, &reply, NULL);
        left &= ~next;
        reply.flags = FLAG_RECORD;
        reply.value_bytes = 20 << 20;
    }
    ck_assert_uint_eq(sent_count(M_READ, FLAG_WHOLE, NULL), 1);
}
END_TEST

START_TEST(test_a_damaged_record_is_reported_as_such_and_repaired)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    accept_at(n->wall - 100 * SECOND, "k", "value"); /* the reply comes from the index */
    lone_settle(&l);
    struct message m = {.type = M_PREPARE, .round_id = 5, .key_bytes = 1};
    m.partition = key_partition("k", 1);
    m.ballot = (struct ballot){1, clock_tick(n), LONE_ID + 1};
    struct body body = {.key = "k"};
    struct message promise;
    peer_sends(LONE_ID + 1, n->clock, &m, &body);
    ck_assert_uint_eq(sent_count(M_PROMISE, 0, &promise), 1);
    ck_assert(!(promise.flags & FLAG_DAMAGED));
    entry_of("k")->flags |= FLAG_DAMAGED;
    m.ballot.time = clock_tick(n);
    peer_sends(LONE_ID + 1, n->clock, &m, &body);
    ck_assert_uint_eq(sent_count(M_PROMISE, FLAG_DAMAGED, &promise), 1);
    ck_assert(ballot_equal(promise.ballot, entry_of("k")->accepted));
    m.type = M_READ;
    peer_sends(LONE_ID + 1, n->clock, &m, &body);
    ck_assert_uint_eq(sent_count(M_READ_REPLY, 0, NULL), 0);
    partition_sweep(n, m.partition);
    lone_settle(&l);
    ck_assert_uint_eq(n->repairs, 1);
    ck_assert_uint_eq(sent_count(M_PREPARE, 0, NULL), 2);
}
END_TEST

/* A record at ballot 9 is damaged here. The peers have one at ballot 5 or, damaged too, at 9. The one at
 * 9 may have been chosen, unless all owners replied and most of them have a lower ballot. */
START_TEST(test_what_is_damaged_counts_as_lost_only_where_it_cannot_have_been_chosen)
{
    static const struct {
        unsigned peers;        /* all are owners */
        uint8_t first, second; /* flags of their promises; 0: no reply */
        bool goes_on;
    } rows[] = {
        {1, FLAG_RECORD, 0, true},
        {1, 0, 0, false},
        {1, FLAG_RECORD | FLAG_DAMAGED, 0, false},
        {2, FLAG_RECORD, 0, false},
        {2, FLAG_RECORD, FLAG_RECORD, true},
        {2, FLAG_RECORD, FLAG_RECORD | FLAG_DAMAGED, false},
    };
    peers_begin(rows[_i].peers, 3);
    struct node *n = l.node;
    struct message m = request_for(DO_PUT, "k", n->wall), prepare;
    uint64_t then = n->wall - 100 * SECOND;
    accept_at(then + 9, "k", "value");
    lone_settle(&l);
    entry_of("k")->flags |= FLAG_DAMAGED;
    m.flags |= FLAG_FRESH;
    request(&m, "k");
    ck_assert_uint_gt(sent_count(M_PREPARE, 0, &prepare), 0);
    for (unsigned i = 0; i < rows[_i].peers; i++) {
        uint8_t flags = i ? rows[_i].second : rows[_i].first;
        struct message promise = {.type = M_PROMISE, .flags = flags, .round_id = prepare.round_id};
        promise.ballot = ballot_at(then + (flags & FLAG_DAMAGED ? 9 : 5));
        if (flags)
            peer_sends(LONE_ID + 1 + i, n->clock, &promise, NULL);
    }
    ck_assert_uint_eq(sent_count(M_ACCEPT, FLAG_WHOLE, NULL),
                      rows[_i].goes_on ? rows[_i].peers : 0);
}
END_TEST

/* A disk of a fixed size. After each batch the node learns how much of it is left. */
static void full_settle(uint64_t bytes)
{
    const struct bytes *batch;
    struct node *n = l.node;
    node_run(n);
    while ((batch = log_flush(n))) {
        lone_write(&l, batch, n->log.durable);
        uint64_t used = log_end(n) - n->log.first / SEGMENT_BYTES * SEGMENT_BYTES;
        ck_assert_msg(used <= bytes, "a batch is written where there is no space");
        node_durable(n, bytes - used, n->log.full);
    }
}

START_TEST(test_a_full_disk_is_cleaned_before_clock_bounds_use_it_up)
{
    char key[32], *value = calloc(1, 1 << 20);
    lone_begin();
    struct node *n = l.node;
    memset(value, 'v', (1 << 20) - 1);
    for (int i = 0; i < 6; i++) {
        snprintf(key, sizeof key, "%d", i);
        accept_at(clock_tick(n), key, value);
        lone_settle(&l);
    }
    free(value);
    uint64_t bytes = log_end(n) + ROOM_RECORDS;
    n->log.full = true;
    n->log.room = ROOM_RECORDS;
    for (int i = 0; i < 80000; i++) {
        node_tick(n, n->now + 500 * MS, n->wall + 500 * MS);
        full_settle(bytes);
        ck_assert_msg(frame_may_leave(n), "silent after %d ticks", i);
    }
    ck_assert_uint_gt(n->log.first, SEGMENT_BYTES);
}
END_TEST

/* The clock reaches its bound, because there is no room even for a new bound. Nobody restarts the
 * node; the disk is given more space. */
START_TEST(test_a_silent_node_of_a_full_disk_goes_on_when_the_disk_has_room_again)
{
    lone_begin();
    struct node *n = l.node;
    uint64_t end = log_end(n), bytes = end + ROOM_CLEANING - 1;
    n->log.full = true;
    n->log.room = ROOM_CLEANING - 1;
    for (int i = 0; i < 200; i++) {
        node_tick(n, n->now + 500 * MS, n->wall + 500 * MS);
        full_settle(bytes);
    }
    ck_assert(!frame_may_leave(n));
    ck_assert_uint_eq(log_end(n), end);
    for (int i = 0; i < 4; i++) {
        node_tick(n, n->now + 500 * MS, n->wall + 500 * MS);
        full_settle(bytes + SEGMENT_BYTES);
    }
    ck_assert(frame_may_leave(n));
}
END_TEST

START_TEST(test_a_joiner_stops_where_the_disk_is_too_small)
{
    struct node *n = lone_node(&l);
    n->log.room = ROOM_CLEANING;
    ck_assert(!node_is_too_small(n));
    n->log.full = true;
    ck_assert(node_is_too_small(n));
    n->gone = true; /* it rejoins under a new id, without its log */
    ck_assert(!node_is_too_small(n));
    lone_node_free(&l);
    lone_begin();
    l.node->log.room = ROOM_CLEANING;
    l.node->log.full = true;
    ck_assert(!node_is_too_small(l.node));
}
END_TEST

/* Cleaning ends with so little room that the next clock bound does not fit. */
START_TEST(test_cleaned_space_is_freed_though_no_clock_bound_fits)
{
    lone_begin();
    struct node *n = l.node;
    n->log.full = true;
    n->log.room = ROOM_CLEANING - 1;
    n->log.cleaned = n->log.cleaned_until = n->log.durable;
    node_tick(n, n->now + 500 * MS, n->wall + 500 * MS);
    const struct bytes *batch = log_flush(n);
    ck_assert_ptr_nonnull(batch);
    ck_assert_uint_gt(batch->count, 0);
    ck_assert_uint_eq(((const struct log_header *)batch->data)->first, n->log.durable);
}
END_TEST

/* A chain of views larger than the room kept for cleaning, on a disk that has no more. */
START_TEST(test_views_are_appended_only_where_there_is_room)
{
    struct {
        struct view view;
        struct member member;
    } v = {{1, LONE_CLUSTER, 3, 1}, {.id = LONE_ID, .weight = 1, .state = MEMBER_UP}};
    lone_begin();
    struct node *n = l.node;
    for (int i = 0; i < 700; i++) {
        v.view.epoch = node_epoch(n) + 1;
        view_adopt(n, &v.view);
        lone_settle(&l);
    }
    ck_assert_uint_gt(n->views_bytes, ROOM_CLEANING);
    clean_past(0);
    lone_settle(&l);
    uint64_t bytes =
        log_end(n) - n->log.first / SEGMENT_BYTES * SEGMENT_BYTES + ROOM_CLEANING + 8192;
    n->log.full = true;
    n->log.room = ROOM_CLEANING + 8192;
    n->log.cleaned = n->log.durable;
    n->log.cleaned_until = 0;
    n->log.clean_next = VIEWS_PARTITION + 1;
    for (int i = 0; i < 100; i++) {
        node_tick(n, n->now + 20 * MS, n->wall + 20 * MS);
        full_settle(bytes);
    }
    struct message m = {.type = M_VIEW, .flags = FLAG_WHOLE, .value_bytes = sizeof v};
    v.view.epoch = node_epoch(n) + 1;
    for (int has_room = 0; has_room < 2; has_room++) {
        n->log.room = has_room ? 1 << 30 : ROOM_CLEANING + 8192;
        peer_sends(LONE_ID + 1, n->clock, &m, &(struct body){.value = &v});
        ck_assert_uint_eq(node_epoch(n), v.view.epoch - 1 + (uint64_t)has_room);
    }
}
END_TEST

START_TEST(test_no_promise_floor_is_raised_where_a_full_disk_has_little_room)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    struct message m = {.type = M_PREPARE, .round_id = 5, .key_bytes = 4};
    uint16_t at = m.partition = key_partition("none", 4);
    m.ballot = (struct ballot){1, clock_tick(n), LONE_ID + 1};
    peer_sends(LONE_ID + 1, n->clock, &m, &(struct body){.key = "none"});
    entry_of("none")->promised->time -= RESULTS_KEPT_TIME + 10 * SECOND;
    n->log.full = true;
    n->log.room = ROOM_FLOORS / 2;
    uint64_t end = log_end(n);
    partition_sweep(n, at);
    ck_assert_uint_eq(log_end(n), end);
    ck_assert_ptr_nonnull(entry_of("none")); /* the promise is kept, one way or the other */
    n->log.room = ROOM_RECORDS;
    partition_sweep(n, at);
    ck_assert_uint_gt(log_end(n), end);
    ck_assert_ptr_null(entry_of("none"));
}
END_TEST

START_TEST(test_a_node_has_promised_nothing_before_it_was_a_member)
{
    struct {
        struct view view;
        struct member members[3];
    } v = {{1, LONE_CLUSTER, 3, 2}, {{0}}};
    lone_node(&l);
    for (int i = 0; i < 3; i++) {
        v.members[i] = (struct member){.id = LONE_ID + 2 - (uint64_t)i, .weight = 1};
        v.members[i].state = i < 2 ? MEMBER_UP : MEMBER_JOINING;
        snprintf(v.members[i].address, ADDRESS_BYTES, "127.0.0.1:%d", i);
    }
    view_adopt(l.node, &v.view);
    ticks(10, SECOND); /* its frames need a clock bound */
    ck_assert(recover());
    l.node->wall += 20 * SECOND;
    v.view.epoch = 2;
    v.view.members_count = 3;
    view_adopt(l.node, &v.view);
    lone_settle(&l);
    ticks(1, 20 * MS);
    struct message m = {.type = M_ACCEPT, .flags = FLAG_RECORD | FLAG_WHOLE, .key_bytes = 1};
    m.ballot = (struct ballot){1, LONE_WALL - 1000 * SECOND, 5};
    m.partition = key_partition("k", 1);
    peer_sends(LONE_ID + 1, LONE_WALL, &m, &(struct body){.key = "k"}); /* it was pulled */
    ck_assert_uint_eq(l.node->repairs, 0);
    ck_assert_uint_eq(l.node->keys, 1);
    ck_assert(recover()); /* now it may have */
    ck_assert_uint_eq(l.node->clock_bound_found, l.node->clock_bound);
}
END_TEST

/* A node that is no member asks to join; the first voter is live. */
START_TEST(test_a_voter_without_a_lease_does_not_keep_others_from_proposing)
{
    for (int has = 1; has >= 0; has--) {
        struct {
            struct view view;
            struct member members[3];
        } v = {{1, LONE_CLUSTER, 3, 3}, {{0}}};
        struct heartbeat beat = {0};
        struct message m = {.type = M_HEARTBEAT, .flags = FLAG_WHOLE, .value_bytes = sizeof beat};
        lone_node(&l);
        beat.heard[0] = LONE_ID ^ l.node->boot;
        for (int i = 0; i < 3; i++) {
            v.members[i] = (struct member){.id = LONE_ID - 1 + (uint64_t)i, .weight = 1};
            v.members[i].state = MEMBER_UP;
            snprintf(v.members[i].address, ADDRESS_BYTES, "127.0.0.1:%d", i);
        }
        view_adopt(l.node, &v.view);
        lone_settle(&l);
        ticks(3, 20 * MS);
        sent_count(M_PREPARE, 0, NULL);
        m.key_bytes = 1;
        m.status = 1;
        m.number = (uint64_t)has;
        peer_sends(LONE_ID - 1, l.node->clock, &m, &(struct body){.key = "a", .value = &beat});
        m.number = 0;
        peer_sends(99, l.node->clock, &m, &(struct body){.key = "b", .value = &beat});
        ticks(3, 20 * MS);
        ck_assert_uint_eq(sent_count(M_PREPARE, 0, NULL) > 0, !has);
        teardown();
    }
}
END_TEST

/* The record of an old view's register is damaged, and nobody has another: it is asked for again and
 * again, and what that took is given back. */
START_TEST(test_repairs_of_a_views_register_end)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    struct message m = {.type = M_ACCEPT, .round_id = 1, .flags = FLAG_RECORD | FLAG_WHOLE};
    m.partition = VIEWS_PARTITION;
    m.key_bytes = 6;
    m.ballot = (struct ballot){1, n->clock, LONE_ID};
    peer_sends(LONE_ID + 1, n->clock, &m, &(struct body){.key = "view/1"});
    struct partition *p = &n->partitions[VIEWS_PARTITION];
    ck_assert_uint_eq(p->count, 1);
    pull_damaged(n, VIEWS_PARTITION, p->entries[0]);
    ck_assert_uint_eq(n->repairs, 1);
    ck_assert_uint_eq(sent_count(M_PULL, 0, NULL), 2);
    ticks(200, 20 * MS);
    ck_assert_uint_eq(n->repairs, 0);
    sent_count(M_PULL, 0, NULL);
    ticks(1000, 20 * MS);
    ck_assert_uint_gt(sent_count(M_PULL, 0, NULL), 0);
    lone_view(&l, node_epoch(n) + 1, 2, 3);
    ck_assert_uint_eq(n->repairs, 0);
}
END_TEST

/* Seeds have no id: what awaits durability is kept apart by the peer that it is for. */
START_TEST(test_every_seed_is_asked_also_while_the_log_is_being_written)
{
    struct node *n = lone_node(&l);
    struct peer *seeds[] = {peer_make(n, 0, "127.0.0.1:2"), peer_make(n, 0, "127.0.0.1:3")};
    node_tick(n, n->now + 20 * MS, n->wall + 20 * MS);
    ck_assert_uint_gt(log_end(n), n->log.durable); /* by a clock bound */
    lone_settle(&l);
    for (int i = 0; i < 2; i++)
        ck_assert_uint_gt(seeds[i]->outbox[0].count, 0);
    ck_assert_uint_eq(sent_count(M_HEARTBEAT, 0, NULL), 2);
}
END_TEST

/* What the key's round took waits for promises until the ttl of its first write is over. The second:
 * a read, a write that wants it absent. */
START_TEST(test_what_expired_in_the_queue_is_not_there_for_what_was_queued_behind_it)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    struct message prepare, m = request_for(DO_PUT, "k", n->wall);
    m.flags |= FLAG_FRESH;
    request(&m, "k");
    m.write_id = 2;
    m.expiry = node_latest_time(n) + 300 * MS;
    request(&m, "k");
    m = request_for(_i ? DO_PUT : DO_READ, "k", n->wall);
    m.flags |= _i ? FLAG_FRESH : 0;
    m.write_id = 3;
    m.condition = _i ? IF_ABSENT : IF_NONE;
    struct request *q = request_make(n, &m, &(struct body){.key = "k"});
    q->tries = READ_TRIES;
    request_admit(n, q);
    for (unsigned round = 0; round < 2; round++) {
        ck_assert_uint_gt(sent_count(M_PREPARE, 0, &prepare), 0);
        ticks(round ? 4 : 0, 100 * MS);
        struct message answer = {.type = M_PROMISE, .round_id = prepare.round_id};
        peer_sends(LONE_ID + 1, n->clock, &answer, NULL);
        answer.type = M_ACCEPTED;
        peer_sends(LONE_ID + 1, n->clock, &answer, NULL);
    }
    ck_assert_uint_eq(l.replies, 3);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, _i ? 201 : 404);
}
END_TEST

/* Two owners disagree: they get reads, then prepares and accepts. The third is away. */
static void owners_disagree(const struct message *m, uint64_t away)
{
    struct node *n = l.node;
    struct message sent, record = {.flags = FLAG_RECORD | FLAG_WHOLE, .write_id = 5};
    record.ballot = ballot_at(n->wall - 100 * SECOND);
    record.modified = record.ballot.time;
    n->member_peer[away]->heard_at = 0;
    request_with(m, "k", NULL, 60 * SECOND);
    for (unsigned i = 0; i < READ_TRIES; i++) {
        ck_assert_uint_gt(sent_count(M_READ, 0, &sent), 0);
        record.type = M_READ_REPLY;
        record.round_id = sent.round_id;
        peer_sends(LONE_ID + 1, n->clock, &record, NULL);
    }
    ck_assert_uint_gt(sent_count(M_PREPARE, 0, &sent), 0);
    record.type = M_PROMISE;
    record.round_id = sent.round_id;
    peer_sends(LONE_ID + 1, n->clock, &record, NULL);
    peer_sends(LONE_ID + 1, n->clock,
               &(struct message){.type = M_ACCEPTED, .round_id = sent.round_id}, NULL);
}

/* All as for a quorum, or README would be wrong. */
START_TEST(test_a_read_of_consistency_all_needs_a_quorum_alone)
{
    peers_begin(2, 3);
    struct message m = request_for(DO_READ, "k", 0);
    m.flags = FLAG_ALL;
    owners_disagree(&m, 2);
    ck_assert_uint_eq(l.replies, 1);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 200);
}
END_TEST

/* What a round finds differs from what the client has: it is not read again until owners agree. */
START_TEST(test_a_wait_on_a_key_that_is_written_all_the_time_is_answered)
{
    peers_begin(2, 3);
    struct message m = request_for(DO_READ, "k", 0);
    m.flags = FLAG_WATCH;
    m.condition = _i ? IF_MATCH : IF_ABSENT;
    m.ballot = ballot_at(7);
    owners_disagree(&m, 2);
    ck_assert_uint_eq(l.replies, 1);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 200);
}
END_TEST

/* A joiner has nothing yet: an owner of the old ring answers for it, also if that takes a while. */
START_TEST(test_a_joiner_that_is_not_complete_does_not_answer_consistency_one)
{
    struct {
        struct view view;
        struct member members[4];
    } v = {{1, LONE_CLUSTER, 3, 4}, {{0}}};
    lone_node(&l);
    for (int i = 0; i < 4; i++) {
        v.members[i] = (struct member){.id = LONE_ID + (uint64_t)i, .weight = 1};
        v.members[i].state = i ? MEMBER_UP : MEMBER_JOINING;
        snprintf(v.members[i].address, ADDRESS_BYTES, "127.0.0.1:%d", i);
    }
    view_adopt(l.node, &v.view);
    lone_settle(&l);
    ticks(3, 20 * MS);
    char key[32] = "";
    for (int i = 0; !(partition_owners(l.node, key_partition(key, strlen(key))) & 1); i++)
        snprintf(key, sizeof key, "%d", i);
    struct message m = request_for(DO_READ, key, 0), read;
    m.flags = FLAG_ONE;
    sent_count(M_READ, 0, NULL);
    request(&m, key);
    ticks(8, 20 * MS);
    ck_assert_uint_eq(l.replies, 0);
    ck_assert_uint_gt(sent_count(M_READ, FLAG_WHOLE, &read), 0);
    struct message answer = {
        .type = M_READ_REPLY, .flags = FLAG_RECORD | FLAG_WHOLE, .round_id = read.round_id};
    answer.ballot = ballot_at(l.node->wall);
    peer_sends(LONE_ID + 1, l.node->clock, &answer, NULL);
    ck_assert_uint_eq(l.replies, 1);
    ck_assert_uint_eq(((struct message *)l.reply.data)->status, 200);
}
END_TEST

/* It was doubled or held up in the network: what it says of this node is out of date. */
START_TEST(test_a_heartbeat_older_than_the_last_one_is_ignored)
{
    struct heartbeat hears = {0}, deaf = {0};
    struct message m = {.type = M_HEARTBEAT, .flags = FLAG_WHOLE, .value_bytes = sizeof hears};
    m.key_bytes = m.status = 1;
    peers_begin(2, 3);
    hears.heard[0] = LONE_ID ^ l.node->boot;
    uint64_t then = l.node->clock;
    const struct peer *p = l.node->member_peer[1];
    peer_sends(p->id, then + SECOND, &m, &(struct body){.key = "a", .value = &hears});
    ck_assert(p->hears_us);
    peer_sends(p->id, then, &m, &(struct body){.key = "a", .value = &deaf});
    ck_assert(p->hears_us);
    peer_sends(p->id, then + 2 * SECOND, &m, &(struct body){.key = "a", .value = &deaf});
    ck_assert(!p->hears_us);
}
END_TEST

/* A ballot or a promise floor is never above the clock of its frame; a record's time is by a little. */
START_TEST(test_times_above_the_clock_of_their_frame_are_rejected)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    uint64_t clock = n->clock, far = _i ? clock + 2 * SECOND : UINT64_MAX;
    struct partition *p = &n->partitions[key_partition("k", 1)];
    struct message m = {.type = M_DIGEST, .partition = key_partition("k", 1), .number = p->digest};
    m.ballot = ballot_at(_i ? clock + 1 : far);
    peer_sends(LONE_ID + 1, clock, &m, NULL);
    ck_assert_uint_eq(p->promise_floor.time, 0);
    m.type = M_PREPARE;
    m.key_bytes = 1;
    peer_sends(LONE_ID + 1, clock, &m, &(struct body){.key = "k"});
    m.type = M_ACCEPT;
    m.flags = FLAG_RECORD | FLAG_WHOLE;
    peer_sends(LONE_ID + 1, clock, &m, &(struct body){.key = "k"});
    m.ballot = ballot_at(clock);
    m.modified = far;
    peer_sends(LONE_ID + 1, clock, &m, &(struct body){.key = "k"});
    m.modified = 0;
    m.results_lost_until = far;
    peer_sends(LONE_ID + 1, clock, &m, &(struct body){.key = "k"});
    ck_assert_uint_eq(p->count, 0);
    m.results_lost_until = 0;
    peer_sends(LONE_ID + 1, clock, &m, &(struct body){.key = "k"});
    ck_assert_uint_eq(p->count, 1);
}
END_TEST

START_TEST(test_a_node_that_is_no_member_may_only_ask_to_join)
{
    static const uint8_t types[] = {M_PREPARE, M_ACCEPT, M_READ,     M_LIST,
                                    M_PULL,    M_DIGEST, M_HEARTBEAT};
    struct heartbeat beat = {.leave = ~UINT64_C(0)};
    peers_begin(2, 3);
    beat.heard[0] = LONE_ID ^ l.node->boot;
    struct node *n = l.node;
    struct partition *p = &n->partitions[key_partition("k", 1)];
    for (int member = 0; member < 2; member++) {
        bool leaves = false;
        for (size_t i = 0; i < sizeof types; i++) {
            struct message m = {.type = types[i], .flags = FLAG_RECORD | FLAG_WHOLE, .round_id = 5};
            m.partition = key_partition("k", 1);
            m.key_bytes = m.status = 1;
            m.function = DO_PUT;
            m.ballot = ballot_at(m.type == M_DIGEST ? n->clock : n->clock + 1);
            m.value_bytes = m.type == M_HEARTBEAT ? sizeof beat : 0;
            peer_sends(member ? LONE_ID + 1 : 99, n->clock + 2, &m,
                       &(struct body){.key = "k", .value = &beat});
        }
        for (unsigned i = 0; i < 3; i++)
            leaves |= n->member_peer[i]->leave;
        ck_assert_int_eq(leaves && n->self_peer->leave, member);
        ck_assert_int_eq(p->count && p->promise_floor.time, member);
    }
}
END_TEST

START_TEST(test_an_address_or_a_zone_that_no_option_allows_is_ignored)
{
    static const char *const bad[] = {"a/b:1", "a\"b:1", "a\nb:1", "a\\b:1", "u@b:1",
                                      "a b:1", "a?b:1",  "a#b:1",  "a%b:1",  "\x7f:1"};
    struct heartbeat beat = {0};
    struct message m = {.type = M_HEARTBEAT, .flags = FLAG_WHOLE, .value_bytes = sizeof beat};
    peers_begin(2, 3);
    beat.heard[0] = LONE_ID ^ l.node->boot;
    const struct peer *p = l.node->member_peer[1];
    m.status = 1;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bool zone = strpbrk(bad[i], "\"\\\n\x7f");
        struct body body = {.key = bad[i], .type = "", .value = &beat};
        m.key_bytes = (uint16_t)strlen(bad[i]);
        m.type_bytes = 0;
        peer_sends(p->id, l.node->clock, &m, &body);
        body.key = "b:2";
        body.type = bad[i];
        m.key_bytes = 3;
        m.type_bytes = (uint16_t)strlen(bad[i]);
        if (zone)
            peer_sends(p->id, l.node->clock, &m, &body);
        ck_assert_str_eq(p->address, "127.0.0.1:2");
    }
    m.type_bytes = 7;
    peer_sends(p->id, l.node->clock, &m,
               &(struct body){.key = "b:2", .type = "aisle 7", .value = &beat});
    ck_assert_str_eq(p->zone, "aisle 7");
    ck_assert_str_eq(p->address, "b:2");
}
END_TEST

/* Every member has a place, however many strangers have sent heartbeats. */
START_TEST(test_strangers_leave_a_place_for_every_member)
{
    struct heartbeat beat = {0};
    struct message m = {.type = M_HEARTBEAT, .flags = FLAG_WHOLE, .value_bytes = sizeof beat};
    struct {
        struct view view;
        struct member members[MEMBERS_MAX];
    } v = {{1, LONE_CLUSTER, 3, MEMBERS_MAX}, {{0}}};
    peers_begin(2, 3);
    struct node *n = l.node;
    m.key_bytes = m.status = 1;
    for (uint64_t id = 1000; id < 1300; id++)
        peer_sends(id, n->clock, &m, &(struct body){.key = "a", .value = &beat});
    for (uint64_t epoch = 2; epoch < 8; epoch++) {
        v.view.epoch = epoch;
        for (unsigned i = 0; i < MEMBERS_MAX; i++) {
            v.members[i] = (struct member){.id = 2000 + epoch * MEMBERS_MAX + i, .weight = 1};
            v.members[i].state = MEMBER_UP;
            v.members[i].address[0] = 'a';
        }
        v.members[0].id = LONE_ID;
        view_adopt(n, &v.view);
        for (unsigned i = 0; i < MEMBERS_MAX; i++)
            ck_assert_uint_eq(n->member_peer[i]->id, v.members[i].id);
        lone_settle(&l);
        sent_count(M_VIEW, 0, NULL);
    }
}
END_TEST

/* A hybrid clock is raised by the others' clocks, so it does not show whose clock is wrong. */
START_TEST(test_the_clock_offset_is_of_wall_clocks)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    struct bytes frame = {0};
    struct message m = {.type = M_VIEW};
    n->clock += 3 * SECOND; /* raised by the third node, whose clock is fast */
    node_run(n);
    lone_settle(&l);
    sent_count(M_VIEW, 0, NULL);
    m.round_id = 1;
    messages_send(n, 2, 0, &m, NULL);
    ck_assert(frame_take(n, n->member_peer[1], 0, &frame));
    struct frame *b = (struct frame *)frame.data;
    ck_assert_uint_ge(b->clock, n->wall + 3 * SECOND);
    b->from = b->to;
    b->to = n->id;
    b->check = frame_check(b);
    ck_assert(node_receive(n, frame.data, frame.count));
    ck_assert_int_eq(n->member_peer[1]->clock_offset, 0);
    bytes_free(&frame);
}
END_TEST

/* Nothing is sent but heartbeats and digests, and the clock bound has to be ahead of them. */
START_TEST(test_an_idle_node_seldom_writes_its_log)
{
    unsigned batches = 0;
    peers_begin(2, 3);
    for (int i = 0; i < 3000; i++) {
        uint64_t last = l.last_lsn;
        lone_tick(&l, 20 * MS, true);
        batches += l.last_lsn != last;
        ck_assert(frame_may_leave(l.node));
    }
    ck_assert_uint_ge(batches, 1);
    ck_assert_uint_le(batches, 40); /* a minute */
}
END_TEST

/* 600 ms for each batch. The first times, the node cannot know it. */
START_TEST(test_a_slow_disk_does_not_silence_a_node)
{
    peers_begin(2, 3);
    struct node *n = l.node;
    uint64_t silent = 0, done_at = 0;
    for (int i = 0; i < 3000; i++) {
        const struct bytes *batch = n->log.flight.count ? NULL : log_flush(n);
        if (batch) {
            lone_write(&l, batch, n->log.durable);
            done_at = n->now + 600 * MS;
        }
        for (int peer = 0; peer < 3; peer++)
            n->member_peer[peer]->heard_at = n->now;
        node_tick(n, n->now + 20 * MS, n->wall + 20 * MS);
        if (i % 10 == 0) /* there is always something to write */
            accept_at(clock_tick(n), "k", "v");
        if (n->log.flight.count && n->now >= done_at)
            node_durable(n, 1 << 30, n->log.full);
        silent += i > 200 && !frame_may_leave(n);
    }
    ck_assert_uint_eq(silent, 0);
}
END_TEST

START_TEST(test_seeds_of_long_ago_leave_their_places_to_others)
{
    char address[ADDRESS_BYTES];
    struct message m = {.type = M_VIEW};
    peers_begin(2, 3);
    struct node *n = l.node;
    for (int i = 0; i < 4 * MEMBERS_MAX; i++) {
        snprintf(address, sizeof address, "127.0.0.2:%d", i);
        peer_make(n, 0, address);
    }
    size_t full = n->peers_count;
    ticks(1, 61 * SECOND);
    peer_sends(99, n->clock, &m, NULL);
    bool known = false;
    for (size_t i = 0; i < n->peers_count; i++)
        known |= n->peers[i]->id == 99;
    ck_assert(known);
    ck_assert_uint_eq(n->peers_count, full);
}
END_TEST

/* Two keys are in one partition. A watch that was set too long ago is forgotten without a reply. */
START_TEST(test_a_watch_is_notified_of_its_own_key_alone)
{
    char other[32] = "";
    const char *keys[] = {"k", neighbour("k", other)};
    peers_begin(2, 3);
    struct node *n = l.node;
    struct message m = request_for(DO_READ, "k", 0), answer;
    m.type = M_READ;
    m.flags = FLAG_WATCH;
    for (int i = 0; i < 2; i++) {
        m.round_id = 7 + (uint64_t)i;
        m.key_bytes = (uint16_t)strlen(keys[i]);
        peer_sends(LONE_ID + 1, n->clock, &m, &(struct body){.key = keys[i]});
    }
    ck_assert_uint_eq(sent_count(M_READ_REPLY, 0, NULL), 2);
    accept_at(clock_tick(n), "k", "v");
    lone_settle(&l);
    ck_assert_uint_eq(sent_count(M_READ_REPLY, 0, &answer), 1);
    ck_assert_uint_eq(answer.round_id, 7);
    accept_at(clock_tick(n), "k", "w");
    lone_settle(&l);
    ck_assert_uint_eq(sent_count(M_READ_REPLY, 0, NULL), 0);
    ticks(3000, 20 * MS);
    for (int i = 0; i < PARTITIONS; i++)
        ck_assert_uint_eq(n->partitions[i].watches.count, 0);
    accept_at(clock_tick(n), keys[1], "v");
    lone_settle(&l);
    ck_assert_uint_eq(sent_count(M_READ_REPLY, 0, NULL), 0);
}
END_TEST

/* Of four members, three of which own each partition, the last leaves: this one gets the rest. */
START_TEST(test_after_a_restart_what_was_not_owned_is_pulled_at_once)
{
    peers_begin(3, 3);
    ck_assert(recover());
    struct node *n = l.node;
    unsigned kept = 0, given = 0;
    struct {
        struct view view;
        struct member members[MEMBERS_MAX];
    } v;
    uint64_t owned[VIEWS_PARTITION + 1];
    memcpy(owned, n->owners[0], sizeof owned);
    memcpy(&v, n->view, view_bytes(n->view));
    v.view.epoch = 2;
    v.members[3].state = MEMBER_LEAVING;
    view_adopt(n, &v.view);
    lone_settle(&l);
    struct message m = {.type = M_ACCEPT, .flags = FLAG_RECORD | FLAG_WHOLE};
    m.ballot = ballot_at(LONE_WALL - 100 * SECOND);
    for (int i = 0; i < 100; i++) {
        char key[32];
        m.key_bytes = (uint16_t)snprintf(key, sizeof key, "%d", i);
        m.partition = key_partition(key, m.key_bytes);
        peer_sends(LONE_ID + 1, n->clock, &m, &(struct body){.key = key});
        bool had = owned[m.partition] & 1, stored = entry_of(key) && entry_of(key)->lsn;
        ck_assert_msg(stored == !had, "%s", had ? "owned before, and not rejected" : "rejected");
        kept += had;
        given += !had;
    }
    ck_assert_uint_gt(kept, 0);
    ck_assert_uint_gt(given, 0);
}
END_TEST

/* Parts I to IV know nothing of files, sockets, threads and clocks: the compiler has not seen their
 * headers there. */
START_TEST(test_the_core_compiles_without_the_machine)
{
    static const char core[] = "sed '/^.. === Part V/,$d' estoraje.c";
    char line[512];
    ck_assert_int_eq(system("grep -q '^.. === Part V' estoraje.c"), 0);
    snprintf(line, sizeof line,
             "said=$(%s | gcc -std=gnu11 -D_GNU_SOURCE -I. -fsyntax-only "
             "-Werror=implicit-function-declaration -x c - 2>&1) || { echo \"$said\"; false; }",
             core);
    ck_assert_int_eq(system(line), 0);
    snprintf(
        line, sizeof line,
        "! %s | grep -E 'include <(sys/(socket|mman|stat|uio|file)|fcntl|unistd|poll|pthread|time|"
        "microhttpd|curl/curl)'",
        core);
    ck_assert_int_eq(system(line), 0);
}
END_TEST

/* One test: in a chapter, with files or without, once or for each of some numbers. */
struct row {
    const char *chapter;
    const TTest *test;
    int times;
};

int main(void)
{
    const struct row rows[] = {
        {"core", test_the_core_compiles_without_the_machine, 1},
        {"log", test_a_recovered_node_has_what_was_appended, 1},
        {"log", test_recovering_twice_is_recovering_once, 1},
        {"log", test_a_tail_torn_at_any_byte_is_dropped_and_nothing_else, 3},
        {"log", test_a_log_cut_off_at_any_byte_ends_before_its_last_whole_batch, 1},
        {"log", test_damage_at_any_byte_below_the_last_batch_costs_what_was_damaged, 1},
        {"log", test_a_log_with_a_hole_ends_where_the_hole_begins, 2},
        {"log", test_what_a_torn_tail_held_is_not_found_behind_the_next_batch, 1},
        {"log", test_an_empty_log_is_whole, 1},
        {"log", test_a_batch_counts_only_where_it_was_written, 1},
        {"log", test_a_log_of_another_version_is_not_treated_as_empty, 1},
        {"log", test_a_view_and_its_drop_are_one_batch, 1},
        {"log", test_views_promise_floors_and_the_clock_bound_are_replayed, 1},
        {"log", test_of_records_in_any_order_the_highest_ballot_is_replayed, 1},
        {"log", test_a_node_that_is_in_no_view_any_more_knows_it_is_gone, 1},
        {"log", test_one_peers_view_removes_no_node_that_a_majority_still_hears, 1},
        {"peers", test_a_frame_larger_than_the_limit_is_rejected_by_its_header, 1},
        {"peers", test_while_memory_is_short_few_messages_are_queued_for_a_live_peer, 1},
        {"files", test_a_batch_that_spans_two_files_is_one, 1},
        {"files", test_a_disk_that_is_asked_for_room_writes_and_removes_nothing, 1},
        {"files", test_a_batch_torn_in_its_second_file_is_dropped, 1},
        {"files", test_a_missing_file_is_corruption, 2},
        {"files", test_a_log_that_was_cut_is_whole_and_what_stood_behind_is_set_aside, 1},
        {"files", test_without_its_last_file_the_log_ends_earlier, 1},
        {"files", test_files_below_the_first_needed_byte_are_removed, 1},
        {"files", test_a_node_that_rejoins_keeps_only_its_views, 1},
        {"files", test_a_node_that_rejoins_behind_damage_sets_it_aside, 1},
        {"files", test_files_of_other_names_are_no_part_of_the_log, 1},
        {"files", test_space_is_allocated_ahead_and_reported, 1},
        {"files", test_bytes_that_are_not_there_are_zeros, 1},
        {"clock", test_the_clock_never_gives_a_time_twice, 1},
        {"clock", test_a_wall_clock_that_jumps_moves_nothing, 1},
        {"clock", test_a_node_without_a_lease_takes_the_time_of_one_that_has, 1},
        {"clock", test_no_frame_leaves_with_a_clock_above_the_durable_bound, 1},
        {"clock", test_a_restart_never_reuses_a_ballot, 1},
        {"clock", test_a_promise_is_kept, 1},
        {"clock", test_ballots_are_ordered_by_epoch_then_time_then_node, 1},
        {"clock", test_random_numbers_differ_and_come_again_from_the_same_seed, 1},
        {"cleaning", test_cleaning_keeps_what_is_live, 1},
        {"cleaning", test_the_log_stays_under_about_twice_what_is_live, 1},
        {"cleaning", test_damage_is_not_copied_into_a_batch_that_is_whole, 1},
        {"cleaning", test_first_moves_only_when_the_copies_are_durable, 1},
        {"cleaning", test_a_tombstone_is_forgotten_only_when_nobody_needs_it, 1},
        {"cleaning", test_a_damaged_record_that_nobody_has_is_remembered_and_does_not_stop_cleaning,
         4},
        {"cleaning", test_a_log_is_cleaned_also_where_the_node_is_no_member, 1},
        {"decoders", test_a_message_is_read_as_it_was_written, 1},
        {"decoders", test_a_message_that_is_cut_off_is_none, 1},
        {"decoders", test_lengths_that_do_not_add_up_are_no_message, 1},
        {"decoders", test_what_is_beyond_the_limits_is_no_message, 1},
        {"decoders", test_each_half_of_a_records_checksum_covers_its_half, 1},
        {"decoders", test_a_record_with_any_byte_damaged_is_not_returned, 1},
        {"decoders", test_a_frame_with_any_byte_damaged_is_rejected, 1},
        {"decoders", test_of_two_processes_with_one_id_only_the_newer_is_followed, 1},
        {"decoders", test_frames_for_others_or_from_the_future_are_ignored, 1},
        {"decoders", test_a_list_is_read_up_to_its_first_entry_that_is_not_whole, 1},
        {"decoders", test_a_view_makes_sense_only_with_members_that_do, 1},
        {"index", test_keys_are_ordered_by_their_bytes, 1},
        {"index", test_a_partition_is_sorted_whatever_comes_and_goes, 1},
        {"index", test_the_digest_of_a_set_does_not_depend_on_its_order, 1},
        {"index", test_a_digest_is_zero_when_all_is_deleted_and_counts_ballots, 1},
        {"index", test_the_promise_floor_holds_for_keys_without_a_live_record, 1},
        {"index", test_a_dropped_partition_is_empty_and_its_sums_are_gone, 1},
        {"text", test_percent_encoding_gives_every_byte_back, 1},
        {"text", test_percent_signs_need_two_hex_digits, 1},
        {"text", test_numbers_times_and_sizes, 1},
        {"text", test_a_choice_is_a_whole_word_of_the_list, 1},
        {"text", test_ranges_name_bytes_of_the_value, 1},
        {"text", test_entity_tags_are_two_numbers_in_quotes, 1},
        {"text", test_an_idempotency_key_may_begin_with_a_time, 1},
        {"conditions", test_conditions_are_read_as_rfc_9110_has_them, 1},
        {"conditions", test_conditions_hold_for_the_record_that_is_there, 1},
        {"conditions", test_a_counter_adds_to_an_integer_and_to_nothing_else, 1},
        {"conditions", test_results_too_many_or_too_old_are_lost_and_the_record_says_until_when, 1},
        {"conditions", test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it, 1},
        {"peers", test_a_tombstone_is_forgotten_while_other_keys_change, 1},
        {"peers", test_a_record_below_the_gc_floor_undoes_the_agreement, 1},
        {"peers", test_promises_are_folded_rarely_but_where_the_owners_agree, 1},
        {"peers", test_no_repeat_counts_as_issued_later_than_its_first_try, 1},
        {"peers", test_a_keyless_write_and_its_repeat_with_the_key_of_the_reply_are_one, 1},
        {"peers", test_no_key_pushes_the_clock, 1},
        {"peers", test_unknown_is_only_what_could_have_been_lost, 1},
        {"peers", test_a_promise_without_a_record_has_lost_results_up_to_the_floor, 1},
        {"peers", test_a_repeat_is_never_answered_nothing_was_changed, 1},
        {"peers", test_lost_results_count_whichever_promise_comes_first, 1},
        {"peers", test_a_repeat_is_too_old_by_the_clock_as_the_promises_raised_it, 1},
        {"peers", test_a_round_that_nobody_waits_for_is_over, 1},
        {"peers", test_a_read_of_a_large_value_is_answered_even_if_no_quorum_is, 1},
        {"peers", test_a_large_value_has_time_to_be_stored, 1},
        {"peers", test_a_record_lists_the_results_that_somebody_may_still_ask_for, 1},
        {"peers", test_what_is_late_is_sent_again_each_time_after_twice_as_long, 1},
        {"peers", test_large_writes_wait_for_one_another_and_all_are_done, 1},
        {"peers", test_a_large_write_queued_too_long_is_answered_nothing_was_changed, 1},
        {"peers", test_a_wait_without_a_quorum_is_503_soon, 2},
        {"peers", test_consistency_all_is_503_at_once_when_an_owner_is_away, 1},
        {"peers", test_an_address_with_two_members_is_listed_once, 1},
        {"peers", test_a_value_under_way_is_not_asked_for_again_soon, 1},
        {"peers", test_a_large_value_is_asked_for_once, 1},
        {"peers", test_a_damaged_record_is_reported_as_such_and_repaired, 1},
        {"peers", test_what_is_damaged_counts_as_lost_only_where_it_cannot_have_been_chosen, 6},
        {"peers", test_a_full_disk_is_cleaned_before_clock_bounds_use_it_up, 1},
        {"peers", test_a_joiner_stops_where_the_disk_is_too_small, 1},
        {"peers", test_a_silent_node_of_a_full_disk_goes_on_when_the_disk_has_room_again, 1},
        {"peers", test_cleaned_space_is_freed_though_no_clock_bound_fits, 1},
        {"peers", test_views_are_appended_only_where_there_is_room, 1},
        {"peers", test_no_promise_floor_is_raised_where_a_full_disk_has_little_room, 1},
        {"peers", test_a_node_has_promised_nothing_before_it_was_a_member, 1},
        {"peers", test_a_voter_without_a_lease_does_not_keep_others_from_proposing, 1},
        {"peers", test_repairs_of_a_views_register_end, 1},
        {"peers", test_every_seed_is_asked_also_while_the_log_is_being_written, 1},
        {"peers", test_seeds_of_long_ago_leave_their_places_to_others, 1},
        {"peers", test_a_watch_is_notified_of_its_own_key_alone, 1},
        {"peers", test_after_a_restart_what_was_not_owned_is_pulled_at_once, 1},
        {"peers", test_an_idle_node_seldom_writes_its_log, 1},
        {"peers", test_a_slow_disk_does_not_silence_a_node, 1},
        {"peers", test_what_expired_in_the_queue_is_not_there_for_what_was_queued_behind_it, 2},
        {"peers", test_a_read_of_consistency_all_needs_a_quorum_alone, 1},
        {"peers", test_a_wait_on_a_key_that_is_written_all_the_time_is_answered, 2},
        {"peers", test_a_joiner_that_is_not_complete_does_not_answer_consistency_one, 1},
        {"peers", test_a_heartbeat_older_than_the_last_one_is_ignored, 1},
        {"peers", test_the_clock_offset_is_of_wall_clocks, 1},
        {"peers", test_times_above_the_clock_of_their_frame_are_rejected, 2},
        {"peers", test_a_node_that_is_no_member_may_only_ask_to_join, 1},
        {"peers", test_an_address_or_a_zone_that_no_option_allows_is_ignored, 1},
        {"peers", test_strangers_leave_a_place_for_every_member, 1},
    };
    Suite *suite = suite_create("unit");
    TCase *chapter = NULL;
    const char *last = "";
    log_level = LEVEL_ERROR;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (strcmp(rows[i].chapter, last) != 0) {
            chapter = tcase_create(last = rows[i].chapter);
            bool files = strcmp(last, "files") == 0;
            tcase_add_checked_fixture(chapter, files ? files_setup : NULL,
                                      files ? files_teardown : teardown);
            suite_add_tcase(suite, chapter);
        }
        tcase_add_loop_test(chapter, rows[i].test, 0, rows[i].times);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
