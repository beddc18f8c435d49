/* test_history.c - tests of the linearizability checker.
 *
 * First histories that a person can judge, then thousands that a second checker judges: plain.
 * It tries every order, every fate of what is unknown, every ETag that a write may have got and
 * every expiry, and knows none of the fast checker's ideas. */

#include "history.h"

#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- By hand ------------------------------------------------------------------------------ */

#define COUNT(array) (sizeof(array) / sizeof *(array))

static char why[HISTORY_WHY_BYTES];

static void expect_linearizable(const struct history_op *ops, size_t count)
{
    enum history_verdict verdict = history_check(ops, count, why, sizeof why);
    ck_assert_msg(verdict == HISTORY_LINEARIZABLE, "%s", why);
    ck_assert_str_eq(why, "");
}

/* `words`: what the message must contain. */
static void expect_violated(const struct history_op *ops, size_t count, const char *words)
{
    ck_assert_int_eq(history_check(ops, count, why, sizeof why), HISTORY_VIOLATED);
    ck_assert_msg(strstr(why, words) != NULL, "no \"%s\" in: %s", words, why);
}

static struct history_op put(uint64_t start, uint64_t end, uint64_t value)
{
    return (struct history_op){.kind = HISTORY_PUT, .start = start, .end = end, .value = value};
}

static struct history_op put_unknown(uint64_t start, uint64_t value)
{
    return (struct history_op){.kind = HISTORY_PUT,
                               .outcome = HISTORY_UNKNOWN,
                               .start = start,
                               .end = start + 1,
                               .value = value};
}

static struct history_op get(uint64_t start, uint64_t end, uint64_t value)
{
    return (struct history_op){.kind = HISTORY_GET, .start = start, .end = end, .value = value};
}

static struct history_op get_number(uint64_t start, uint64_t end, int64_t number)
{
    return (struct history_op){
        .kind = HISTORY_GET, .start = start, .end = end, .value = (uint64_t)number, .number = true};
}

static struct history_op get_nothing(uint64_t start, uint64_t end)
{
    return (struct history_op){
        .kind = HISTORY_GET, .outcome = HISTORY_REJECTED, .start = start, .end = end};
}

static struct history_op delete (uint64_t start, uint64_t end)
{
    return (struct history_op){.kind = HISTORY_DELETE, .start = start, .end = end};
}

static struct history_op add(uint64_t start, uint64_t end, int64_t delta, int64_t sum)
{
    return (struct history_op){
        .kind = HISTORY_ADD, .start = start, .end = end, .delta = delta, .value = (uint64_t)sum};
}

static struct history_op with_etag(struct history_op op, uint64_t modified)
{
    op.etag[0] = modified;
    op.etag[1] = 7;
    return op;
}

static struct history_op if_etag(struct history_op op, uint64_t modified)
{
    op.condition = HISTORY_IF_ETAG;
    op.etag_expected[0] = modified;
    op.etag_expected[1] = 7;
    return op;
}

static struct history_op on(struct history_op op, enum history_condition condition)
{
    op.condition = condition;
    return op;
}

static struct history_op but(struct history_op op, enum history_outcome outcome)
{
    op.outcome = outcome;
    return op;
}

static struct history_op existed(struct history_op op, enum history_existed what)
{
    op.existed = what;
    return op;
}

static struct history_op gone(struct history_op op, uint64_t from, uint64_t by)
{
    op.gone_from = from;
    op.gone_by = by;
    return op;
}

START_TEST(test_the_empty_history_is_linearizable)
{
    expect_linearizable(NULL, 0);
}
END_TEST

START_TEST(test_a_read_sees_the_write_before_it)
{
    struct history_op good[] = {get_nothing(1, 2),  put(3, 4, 11),
                                get(5, 6, 11),      delete (7, 8),
                                get_nothing(9, 10), but(delete (11, 12), HISTORY_REJECTED)};
    expect_linearizable(good, COUNT(good));
    struct history_op bad[] = {put(3, 4, 11), get_nothing(5, 6)};
    expect_violated(bad, COUNT(bad), "#1 client 0 [5, 6] GET: rejected");
}
END_TEST

START_TEST(test_operations_at_one_time_may_come_in_any_order)
{
    struct history_op either[] = {put(1, 10, 11), put(1, 10, 12),    get(2, 9, 12),
                                  get(2, 9, 11),  get_nothing(2, 9), get(11, 12, 11)};
    expect_linearizable(either, COUNT(either));
    struct history_op same_instant[] = {put(1, 10, 11), get_nothing(10, 12)};
    expect_linearizable(same_instant, COUNT(same_instant));
}
END_TEST

START_TEST(test_two_reads_may_not_disagree_on_the_order_of_two_writes)
{
    struct history_op bad[] = {put(1, 20, 11), put(1, 20, 12), get(2, 3, 11), get(4, 5, 12),
                               get(6, 7, 11)};
    expect_violated(bad, COUNT(bad), "2 of 5 operations");
}
END_TEST

START_TEST(test_a_stale_read_is_a_violation)
{
    struct history_op bad[] = {put(1, 2, 11), put(3, 4, 12), get(5, 6, 11)};
    expect_violated(bad, COUNT(bad), "leaves what #0 wrote: value 11, which must stay for #2.");
}
END_TEST

START_TEST(test_a_value_read_and_then_gone_is_a_violation)
{
    struct history_op bad[] = {put(1, 2, 11), put(3, 20, 12), get(5, 6, 12), get(7, 8, 11)};
    expect_violated(bad, COUNT(bad), "Not linearizable");
    struct history_op unknown[] = {put(1, 2, 11), put_unknown(3, 12), get(5, 6, 12), get(7, 8, 11)};
    expect_violated(unknown, COUNT(unknown), "Not linearizable");
}
END_TEST

START_TEST(test_a_lost_update_is_a_violation)
{
    struct history_op both_swapped[] = {
        with_etag(put(1, 2, 11), 5),
        with_etag(if_etag(put(3, 10, 12), 5), 6),
        with_etag(if_etag(put(3, 10, 13), 5), 7),
    };
    expect_violated(both_swapped, COUNT(both_swapped), "if etag 5-7");
    struct history_op both_created[] = {on(put(3, 10, 12), HISTORY_IF_ABSENT),
                                        on(put(3, 10, 13), HISTORY_IF_ABSENT)};
    expect_violated(both_created, COUNT(both_created), "if absent");
    struct history_op same_sum[] = {add(1, 10, 1, 1), add(1, 10, 1, 1)};
    expect_violated(same_sum, COUNT(same_sum), "ADD +1: ok number 1");
}
END_TEST

START_TEST(test_one_of_two_swaps_is_rejected)
{
    struct history_op good[] = {
        with_etag(put(1, 2, 11), 5),
        with_etag(if_etag(put(3, 10, 12), 5), 6),
        with_etag(but(if_etag(put(3, 10, 13), 5), HISTORY_REJECTED), 6),
        but(on(put(3, 10, 14), HISTORY_IF_ABSENT), HISTORY_REJECTED),
        on(put(11, 12, 15), HISTORY_IF_PRESENT),
    };
    expect_linearizable(good, COUNT(good));
    good[1].outcome = HISTORY_FAILED;
    good[2].etag[0] = 5;
    expect_violated(good, COUNT(good), "if etag 5-7: rejected, etag 5-7");
}
END_TEST

START_TEST(test_a_swap_fits_the_etag_and_not_the_value)
{
    struct history_op bad[] = {with_etag(put(1, 2, 11), 5), if_etag(put(3, 4, 12), 4)};
    expect_violated(bad, COUNT(bad), "leaves what #0 wrote: value 11");
}
END_TEST

START_TEST(test_a_double_apply_is_a_violation)
{
    struct history_op sum[] = {add(1, 2, 5, 5), get_number(3, 4, 10)};
    expect_violated(sum, COUNT(sum), "leaves what #0 wrote: number 5");
    struct history_op overwritten[] = {put(1, 2, 11), put(3, 4, 12), get(5, 6, 12), get(7, 8, 11)};
    expect_violated(overwritten, COUNT(overwritten), "must stay for #3");
    struct history_op two_etags[] = {with_etag(put(1, 2, 11), 5), with_etag(get(3, 4, 11), 6)};
    expect_violated(two_etags, COUNT(two_etags), "H2: a value has two ETags");
}
END_TEST

START_TEST(test_a_write_applied_after_it_was_rejected_is_a_violation)
{
    struct history_op rejected[] = {put(1, 2, 11),
                                    but(on(put(3, 4, 12), HISTORY_IF_ABSENT), HISTORY_REJECTED),
                                    delete (5, 6), get(7, 8, 12)};
    expect_violated(rejected, COUNT(rejected), "H1: a rejected write was read");
    struct history_op failed[] = {but(put(1, 2, 11), HISTORY_FAILED), get(7, 8, 11)};
    expect_violated(failed, COUNT(failed), "H1: a failed write was read");
    struct history_op unread[] = {but(put(1, 2, 11), HISTORY_FAILED),
                                  existed(put(3, 4, 12), HISTORY_REPLACED)};
    expect_violated(unread, COUNT(unread), "replaced");
}
END_TEST

START_TEST(test_a_value_from_nowhere_is_a_violation)
{
    struct history_op nobody[] = {put(1, 2, 11), get(3, 4, 12)};
    expect_violated(nobody, COUNT(nobody), "H1: a value was read that nobody wrote");
    struct history_op early[] = {get(1, 2, 11), put(3, 4, 11)};
    expect_violated(early, COUNT(early), "H1: a value was read before it was written");
}
END_TEST

START_TEST(test_an_unknown_write_may_be_applied_late)
{
    struct history_op good[] = {put_unknown(1, 11), get_nothing(10, 11), put(12, 13, 12),
                                get(14, 15, 12), get(20, 21, 11)};
    expect_linearizable(good, COUNT(good));
    struct history_op twice[] = {put_unknown(1, 11), get(2, 3, 11), put(12, 13, 12),
                                 get(20, 21, 11)};
    expect_violated(twice, COUNT(twice), "Not linearizable");
    struct history_op unread[] = {put_unknown(1, 11),
                                  but(on(put(9, 10, 12), HISTORY_IF_ABSENT), HISTORY_REJECTED)};
    expect_linearizable(unread, COUNT(unread));
    struct history_op one_for_two[] = {put_unknown(1, 11), delete (2, 3), delete (4, 5)};
    expect_violated(one_for_two, COUNT(one_for_two), "leaves nothing");
}
END_TEST

START_TEST(test_an_unknown_write_may_never_be_applied)
{
    struct history_op good[] = {put_unknown(1, 11), get_nothing(10, 11), get_nothing(50, 60)};
    expect_linearizable(good, COUNT(good));
    struct history_op unmet[] = {put(1, 2, 11), on(put_unknown(3, 12), HISTORY_IF_ABSENT),
                                 get(4, 5, 12)};
    expect_violated(unmet, COUNT(unmet), "if absent: unknown");
}
END_TEST

START_TEST(test_of_two_unknown_writes_the_one_that_fits_more_rarely_is_used_first)
{
    struct history_op good[] = {
        put_unknown(1, 21),
        on(put_unknown(1, 22), HISTORY_IF_ABSENT),
        but(on(put(3, 4, 12), HISTORY_IF_ABSENT), HISTORY_REJECTED),
        delete (5, 6),
        with_etag(put(7, 8, 11), 5),
        but(if_etag(put(9, 10, 13), 5), HISTORY_REJECTED),
    };
    expect_linearizable(good, COUNT(good));
    good[0].outcome = HISTORY_FAILED;
    expect_violated(good, COUNT(good), "if etag 5-7: rejected");
}
END_TEST

START_TEST(test_an_unknown_delete_explains_one_absence)
{
    struct history_op good[] = {put(1, 2, 11), but(delete (3, 4), HISTORY_UNKNOWN), get(5, 6, 11),
                                get_nothing(7, 8)};
    expect_linearizable(good, COUNT(good));
    struct history_op bad[] = {put(1, 2, 11), but(delete (3, 4), HISTORY_UNKNOWN),
                               get_nothing(5, 6), put(7, 8, 12), get_nothing(9, 10)};
    expect_violated(bad, COUNT(bad), "#4");
}
END_TEST

START_TEST(test_a_deleted_key_that_comes_back_is_a_violation)
{
    struct history_op bad[] = {put(1, 2, 11), delete (3, 4), get_nothing(5, 6), get(7, 8, 11)};
    expect_violated(bad, COUNT(bad), "leaves");
    struct history_op unread[] = {put(1, 2, 11), delete (3, 4),
                                  existed(put(5, 6, 12), HISTORY_CREATED), delete (7, 8),
                                  delete (9, 10)};
    expect_violated(unread, COUNT(unread), "leaves nothing");
}
END_TEST

START_TEST(test_etags_never_sort_lower_as_time_goes_on)
{
    struct history_op writes[] = {with_etag(put(1, 2, 11), 5), with_etag(put(3, 4, 12), 4)};
    expect_violated(writes, COUNT(writes), "H3: a later ETag sorts lower");
    struct history_op at_once[] = {with_etag(put(1, 3, 11), 5), with_etag(put(3, 4, 12), 4)};
    expect_linearizable(at_once, COUNT(at_once));
    struct history_op reads[] = {with_etag(get(1, 20, 11), 5), put(1, 20, 11), delete (21, 22),
                                 with_etag(put(23, 24, 12), 3)};
    expect_violated(reads, COUNT(reads), "H3: a later ETag sorts lower");
    struct history_op again[] = {with_etag(get(1, 2, 11), 5), put(1, 9, 11),
                                 with_etag(add(3, 4, 1, 1), 5)};
    expect_violated(again, COUNT(again), "H2: an ETag names two values");
    struct history_op number[] = {with_etag(add(1, 2, 1, 1), 5), with_etag(put(1, 2, 1), 5)};
    number[1].number = true;
    expect_violated(number, COUNT(number), "H2: two writes got one ETag");
    struct history_op early[] = {
        put(1, 2, 11),
        with_etag(but(on(put(3, 4, 12), HISTORY_IF_ABSENT), HISTORY_REJECTED), 5),
        with_etag(put(5, 6, 13), 5),
    };
    expect_violated(early, COUNT(early), "H3: an ETag was returned before its write");
}
END_TEST

START_TEST(test_an_etag_names_one_state_of_a_counter)
{
    struct history_op good[] = {add(1, 2, 1, 1), with_etag(get_number(3, 4, 1), 5), add(5, 6, 1, 2),
                                add(7, 8, -1, 1), with_etag(get_number(9, 10, 1), 8)};
    expect_linearizable(good, COUNT(good));
    good[4].etag[0] = 5;
    expect_violated(good, COUNT(good), "Not linearizable");
    struct history_op gone_by_then[] = {add(1, 2, 1, 1), with_etag(get_number(3, 4, 1), 5),
                                        add(5, 6, 1, 2), if_etag(put_unknown(7, 11), 5),
                                        but(add(9, 10, 1, 0), HISTORY_REJECTED)};
    expect_violated(gone_by_then, COUNT(gone_by_then), "number 2");
}
END_TEST

START_TEST(test_a_rejected_swap_shows_what_the_etag_is_not)
{
    struct history_op bad[] = {add(1, 2, 1, 1), but(if_etag(put(3, 4, 11), 5), HISTORY_REJECTED),
                               with_etag(get_number(5, 6, 1), 5)};
    expect_violated(bad, COUNT(bad), "ok number 1, etag 5-7");
    struct history_op good[] = {bad[0], bad[1], add(5, 6, 1, 2), with_etag(get_number(7, 8, 2), 5)};
    expect_linearizable(good, COUNT(good));
}
END_TEST

START_TEST(test_a_counter_counts_from_nothing_and_only_on_numbers)
{
    struct history_op good[] = {add(1, 2, -3, -3),
                                add(3, 4, 3, 0),
                                get_number(5, 6, 0),
                                put(7, 8, 11),
                                but(add(9, 10, 1, 0), HISTORY_REJECTED),
                                delete (11, 12),
                                add(13, 14, 2, 2)};
    expect_linearizable(good, COUNT(good));
    struct history_op overflow[] = {add(1, 2, INT64_MAX, INT64_MAX),
                                    but(add(3, 4, 1, 0), HISTORY_REJECTED)};
    expect_linearizable(overflow, COUNT(overflow));
    struct history_op rejected[] = {add(1, 2, 3, 3), but(add(3, 4, 1, 0), HISTORY_REJECTED)};
    expect_violated(rejected, COUNT(rejected), "number 3");
    struct history_op unknown[] = {add(1, 2, 1, 1), but(add(1, 2, 5, 0), HISTORY_UNKNOWN),
                                   but(add(1, 2, 5, 0), HISTORY_UNKNOWN), add(30, 31, 1, 12)};
    expect_linearizable(unknown, COUNT(unknown));
    unknown[3].value = 8;
    expect_violated(unknown, COUNT(unknown), "number");
}
END_TEST

START_TEST(test_a_value_expires_within_its_time)
{
    struct history_op good[] = {gone(put(1, 2, 11), 50, 60), get(52, 53, 11), get_nothing(54, 55),
                                get_nothing(70, 71)};
    expect_linearizable(good, COUNT(good));
    struct history_op early[] = {gone(put(1, 2, 11), 50, 60), get_nothing(48, 49)};
    expect_violated(early, COUNT(early), "gone from 50 to 60");
    struct history_op late[] = {gone(put(1, 2, 11), 50, 60), get(61, 62, 11)};
    expect_violated(late, COUNT(late), "GET: ok value 11");
    struct history_op back[] = {gone(put(1, 2, 11), 50, 60), get_nothing(51, 52), get(53, 54, 11)};
    expect_violated(back, COUNT(back), "GET");
    struct history_op replaced[] = {gone(put(1, 2, 11), 50, 60), put(3, 4, 12),
                                    get_nothing(70, 71)};
    expect_violated(replaced, COUNT(replaced), "leaves what #1 wrote");
    struct history_op lock[] = {
        on(gone(put(1, 2, 11), 50, 60), HISTORY_IF_ABSENT),
        but(on(gone(put(3, 4, 12), 50, 60), HISTORY_IF_ABSENT), HISTORY_REJECTED),
        on(gone(put(65, 66, 13), 80, 90), HISTORY_IF_ABSENT),
    };
    expect_linearizable(lock, COUNT(lock));
    struct history_op stolen[] = {
        on(gone(put(1, 2, 11), 50, 60), HISTORY_IF_ABSENT),
        on(gone(put(40, 45, 13), 80, 90), HISTORY_IF_ABSENT),
    };
    expect_violated(stolen, COUNT(stolen), "if absent");
}
END_TEST

START_TEST(test_a_write_applied_after_its_expiry_is_never_seen)
{
    struct history_op good[] = {put(1, 2, 10), gone(put_unknown(3, 11), 50, 60), get(70, 71, 10),
                                get_nothing(72, 73)};
    expect_linearizable(good, COUNT(good));
    struct history_op bad[] = {put(1, 2, 10), gone(put_unknown(3, 11), 50, 60), get(70, 71, 11)};
    expect_violated(bad, COUNT(bad), "gone from 50 to 60: unknown");
    /* The read of nothing can be next at once, but then the other read could not follow. */
    struct history_op patient[] = {gone(put(0, 100, 11), 5, 10), get_nothing(20, 30),
                                   get(5, 100, 11)};
    expect_linearizable(patient, COUNT(patient));
    /* The second is made when the first has expired, and that is after its own expiry. */
    struct history_op second[] = {existed(gone(put(1, 5, 11), 50, 60), HISTORY_CREATED),
                                  existed(gone(put(1, 90, 12), 10, 20), HISTORY_CREATED),
                                  get(1, 90, 12)};
    expect_violated(second, COUNT(second), "(expiry)");
    second[1].gone_by = 50;
    expect_linearizable(second, COUNT(second));
}
END_TEST

START_TEST(test_giving_up_is_neither_pass_nor_violation)
{
    enum { ADDS = 40 };
    struct history_op ops[ADDS + 1];
    for (int i = 0; i < ADDS; i++)
        ops[i] = but(add(1, 2, INT64_C(2) << i, 0), HISTORY_UNKNOWN);
    ops[ADDS] = add(5, 6, 0, 1);
    ck_assert_int_eq(history_check(ops, COUNT(ops), why, sizeof why), HISTORY_GAVE_UP);
    ck_assert_ptr_nonnull(strstr(why, "Gave up: too many configurations"));
}
END_TEST

START_TEST(test_names_alone_are_checked_where_the_order_may_be_any)
{
    const struct history_op stale[] = {with_etag(put(0, 1, 1), 10), with_etag(put(2, 3, 2), 20),
                                       with_etag(get(4, 5, 1), 10)};
    expect_violated(stale, COUNT(stale), "H3");
    ck_assert_int_eq(history_check_names(stale, COUNT(stale), why, sizeof why),
                     HISTORY_LINEARIZABLE);
    const struct history_op twice[] = {with_etag(put(0, 1, 1), 10), put(2, 3, 2),
                                       with_etag(get(4, 5, 1), 20)};
    ck_assert_int_eq(history_check_names(twice, COUNT(twice), why, sizeof why), HISTORY_VIOLATED);
    ck_assert_ptr_nonnull(strstr(why, "H2: a value has two ETags"));
    struct history_op rejected[] = {put(0, 9, 1), get(2, 3, 1)};
    rejected[0].condition = HISTORY_IF_PRESENT;
    rejected[0].outcome = HISTORY_REJECTED;
    expect_violated(rejected, COUNT(rejected), "H1: a rejected write was read");
    ck_assert_int_eq(history_check_names(rejected, COUNT(rejected), why, sizeof why),
                     HISTORY_LINEARIZABLE);
    const struct history_op nobodys[] = {put(0, 1, 1), get(2, 3, 2)};
    ck_assert_int_eq(history_check_names(nobodys, COUNT(nobodys), why, sizeof why),
                     HISTORY_VIOLATED);
}
END_TEST

START_TEST(test_a_message_is_cut_where_there_is_no_room)
{
    struct history_op bad[] = {put(1, 2, 11), get_nothing(5, 6)};
    char little[20];
    memset(little, 'x', sizeof little);
    ck_assert_int_eq(history_check(bad, COUNT(bad), little, 10), HISTORY_VIOLATED);
    ck_assert_str_eq(little, "Not linea");
    ck_assert_int_eq(little[10], 'x');
    ck_assert_int_eq(history_check(bad, COUNT(bad), NULL, 0), HISTORY_VIOLATED);
}
END_TEST

/* ---- By chance: an atomic register under concurrent clients ------------------------------- */

static uint64_t random_state;

static uint64_t random_next(void)
{
    uint64_t x = random_state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static uint64_t random_below(uint64_t bound)
{
    return random_next() % bound;
}

static bool random_percent(unsigned percent)
{
    return random_below(100) < percent;
}

struct load {
    unsigned clients, ops_each;
    unsigned unknown_percent; /* of all operations */
    unsigned think_max;       /* between an answer and the next question */
    unsigned window_max;      /* from question to answer, half of it on either side of the moment */
    unsigned ttl_percent;     /* of PUTs */
    unsigned number_percent;  /* of PUTs */
    unsigned late_max;        /* how long after its end an unknown write is applied */
    unsigned seen_percent;    /* of ETags that could be seen */
    unsigned kinds[4];        /* weights, in the order of enum history_kind */
};

/* What one operation is to the generator. */
struct planned {
    struct history_op op;
    uint64_t moment; /* when it is applied; UINT64_MAX: never */
};

struct atomic_register {
    bool present, number;
    uint64_t value, gone_at, gone_from, gone_by;
    uint64_t etag[2];
};

static int planned_by_moment(const void *a, const void *b)
{
    const struct planned *x = a, *y = b;
    if (x->moment != y->moment)
        return x->moment < y->moment ? -1 : 1;
    return x->op.value < y->op.value ? -1 : x->op.value > y->op.value;
}

static enum history_kind random_kind(const struct load *load)
{
    const unsigned *kinds = load->kinds;
    uint64_t at = random_below(kinds[0] + kinds[1] + kinds[2] + kinds[3]);
    unsigned kind = 0;
    while (at >= kinds[kind])
        at -= kinds[kind++];
    return (enum history_kind)kind;
}

static struct planned plan(const struct load *load, uint64_t client, uint64_t start, uint64_t id)
{
    struct planned planned = {.moment = start + random_below(load->window_max / 2 + 1)};
    struct history_op *op = &planned.op;
    *op = (struct history_op){.kind = random_kind(load), .client = client, .start = start};
    op->end = planned.moment + random_below(load->window_max / 2 + 1);
    op->value = id; /* for now, of reads too: to sort by */
    if (op->kind != HISTORY_GET && random_percent(50))
        op->condition = (enum history_condition)random_below(4);
    op->number = op->kind == HISTORY_PUT && random_percent(load->number_percent);
    if (op->kind == HISTORY_ADD)
        op->delta = random_percent(90) ? 1 : -1;
    if (op->kind == HISTORY_PUT && random_percent(load->ttl_percent)) {
        op->gone_from = op->end + random_below(4 * load->window_max + 1);
        op->gone_by = op->gone_from + random_below(load->window_max + 1);
    }
    if (random_percent(load->unknown_percent)) {
        op->outcome = HISTORY_UNKNOWN;
        planned.moment += random_below(load->late_max + 1);
        if (random_percent(50))
            planned.moment = UINT64_MAX;
    }
    return planned;
}

static void tell_etag(const struct load *load, struct history_op *op, const uint64_t etag[2])
{
    if (op->outcome == HISTORY_UNKNOWN || !random_percent(load->seen_percent))
        return;
    op->etag[0] = etag[0];
    op->etag[1] = etag[1];
}

/* Does one operation at its moment and writes down what its client sees. */
static void atomic_apply(const struct load *load, struct atomic_register *at,
                         struct planned *planned, const uint64_t etag_known[2], uint64_t etag_next)
{
    struct history_op *op = &planned->op;
    if (at->present && at->gone_at < planned->moment)
        *at = (struct atomic_register){0};
    if (op->condition == HISTORY_IF_ETAG) {
        op->etag_expected[0] = etag_known[0];
        op->etag_expected[1] = etag_known[1];
    }
    bool unknown = op->outcome == HISTORY_UNKNOWN;
    bool met = op->condition == HISTORY_ALWAYS ||
               (op->condition == HISTORY_IF_ABSENT && !at->present) ||
               (op->condition == HISTORY_IF_PRESENT && at->present) ||
               (op->condition == HISTORY_IF_ETAG && at->present &&
                memcmp(op->etag_expected, at->etag, sizeof at->etag) == 0);
    bool rejected = !met ||
                    ((op->kind == HISTORY_GET || op->kind == HISTORY_DELETE) && !at->present) ||
                    (op->kind == HISTORY_ADD && at->present && !at->number);
    if (rejected) {
        if (!unknown)
            op->outcome = HISTORY_REJECTED;
        if (op->kind == HISTORY_ADD || op->kind == HISTORY_GET)
            op->value = 0;
        if (at->present)
            tell_etag(load, op, at->etag);
        return;
    }
    struct atomic_register was = *at;
    uint64_t number = op->number ? op->value % 10 : op->value;
    switch (op->kind) {
    case HISTORY_GET:
        op->value = at->value;
        op->number = at->number;
        tell_etag(load, op, at->etag);
        return;
    case HISTORY_DELETE:
        *at = (struct atomic_register){0};
        return;
    case HISTORY_PUT:
        op->value = number;
        *at = (struct atomic_register){
            .present = true, .number = op->number, .value = number, .gone_at = UINT64_MAX};
        if (op->gone_from != 0)
            at->gone_at = op->gone_from + random_below(op->gone_by - op->gone_from + 1);
        if (!unknown && random_percent(50))
            op->existed = was.present ? HISTORY_REPLACED : HISTORY_CREATED;
        break;
    case HISTORY_ADD:
        if (!at->present)
            at->gone_at = UINT64_MAX;
        at->value += (uint64_t)op->delta;
        at->present = at->number = true;
        op->value = at->value;
        break;
    }
    at->etag[0] = etag_next;
    at->etag[1] = random_next() | 1;
    if (op->kind == HISTORY_PUT) /* counters have no ETag */
        tell_etag(load, op, at->etag);
}

enum { GENERATED_MAX = 5000 };

/* Fills `ops`, which is linearizable by construction, and returns the count. */
static size_t generate(const struct load *load, struct history_op *ops)
{
    static struct planned plans[GENERATED_MAX];
    size_t count = 0;
    for (unsigned client = 0; client < load->clients; client++) {
        uint64_t now = 1;
        for (unsigned i = 0; i < load->ops_each; i++) {
            now += 1 + random_below(load->think_max + 1);
            plans[count] = plan(load, client, now, 1000 + count);
            now = plans[count++].op.end;
        }
    }
    qsort(plans, count, sizeof *plans, planned_by_moment);
    struct atomic_register at = {0};
    uint64_t etag_known[16][2];
    for (int i = 0; i < 16; i++)
        memcpy(etag_known[i], (uint64_t[2]){1, 1}, sizeof etag_known[i]);
    for (size_t i = 0; i < count; i++) {
        struct planned *planned = &plans[i];
        uint64_t *known = etag_known[planned->op.client];
        if (planned->moment == UINT64_MAX) {
            if (planned->op.condition == HISTORY_IF_ETAG)
                memcpy(planned->op.etag_expected, known, sizeof planned->op.etag_expected);
        } else {
            atomic_apply(load, &at, planned, known, 100 + i);
        }
        if (planned->op.etag[0] != 0)
            memcpy(known, planned->op.etag, sizeof etag_known[0]);
        ops[i] = planned->op;
    }
    return count;
}

static struct load random_load(unsigned clients, unsigned ops_each)
{
    struct load load = {
        .clients = clients,
        .ops_each = ops_each,
        .unknown_percent = random_percent(50) ? 0 : 1 + (unsigned)random_below(20),
        .think_max = (unsigned)random_below(20),
        .window_max = 1 + (unsigned)random_below(40),
        .ttl_percent = random_percent(60) ? 0 : (unsigned)random_below(60),
        .number_percent = random_percent(60) ? 0 : (unsigned)random_below(60),
        .late_max = (unsigned)random_below(200),
        .seen_percent = random_percent(40) ? 100 : (unsigned)random_below(101),
    };
    for (int i = 0; i < 4; i++)
        load.kinds[i] = (unsigned)random_below(5);
    load.kinds[HISTORY_PUT]++;
    return load;
}

START_TEST(test_histories_of_an_atomic_register_are_linearizable)
{
    static struct history_op ops[GENERATED_MAX];
    for (uint64_t seed = 0; seed < 1000; seed++) {
        random_state = seed;
        unsigned clients = 2 + (unsigned)random_below(9);
        struct load load = random_load(clients, 1 + (unsigned)random_below(50));
        size_t count = generate(&load, ops);
        enum history_verdict verdict = history_check(ops, count, why, sizeof why);
        ck_assert_msg(verdict == HISTORY_LINEARIZABLE, "seed %" PRIu64 ": %s", seed, why);
    }
}
END_TEST

/* Makes one read see an older value: one that was certainly overwritten when the read began. */
static bool make_stale(struct history_op *ops, size_t count)
{
    size_t from = random_below(count);
    for (size_t i = 0; i < count; i++) {
        struct history_op *read = &ops[(from + i) % count];
        if (read->kind != HISTORY_GET || read->outcome != HISTORY_OK)
            continue;
        const struct history_op *over = NULL; /* the last write to end before the read */
        for (const struct history_op *op = ops; op < ops + count; op++) {
            if (op->kind == HISTORY_PUT && op->outcome == HISTORY_OK && op->end < read->start &&
                (over == NULL || op->start > over->start))
                over = op;
        }
        for (const struct history_op *old = ops; over != NULL && old < ops + count; old++) {
            if (old->kind != HISTORY_PUT || old->outcome != HISTORY_OK || old->number ||
                old->end >= over->start)
                continue;
            read->value = old->value;
            read->number = false;
            memcpy(read->etag, old->etag, sizeof read->etag);
            return true;
        }
    }
    return false;
}

START_TEST(test_one_stale_read_among_many_operations_is_found)
{
    static struct history_op ops[GENERATED_MAX];
    unsigned found = 0;
    for (uint64_t seed = 0; seed < 1000; seed++) {
        random_state = seed;
        unsigned clients = 2 + (unsigned)random_below(9);
        struct load load = random_load(clients, 1 + (unsigned)random_below(50));
        load.kinds[HISTORY_GET] += 2;
        if (seed % 2 == 0)
            load.seen_percent = 0; /* then neither H2 nor H3 can help */
        size_t count = generate(&load, ops);
        if (!make_stale(ops, count))
            continue;
        ck_assert_msg(history_check(ops, count, why, sizeof why) == HISTORY_VIOLATED,
                      "seed %" PRIu64, seed);
        found++;
    }
    ck_assert_uint_gt(found, 700);
}
END_TEST

/* ---- The plain checker -------------------------------------------------------------------- */

enum { PLAIN_OPS_MAX = 8, PLAIN_ETAGS_MAX = 4 * PLAIN_OPS_MAX };

struct plain {
    const struct history_op *ops;
    size_t count;
    uint64_t etags[PLAIN_ETAGS_MAX][2]; /* all that anybody speaks of, without doubles */
    size_t etag_count;
};

/* `etag` is an index into plain.etags, or etag_count for one that nobody speaks of. */
struct plain_state {
    bool present, number;
    uint64_t value, gone_from, gone_by;
    size_t etag;
};

static size_t plain_etag(const struct plain *plain, const uint64_t etag[2])
{
    size_t i = 0;
    while (i < plain->etag_count && memcmp(plain->etags[i], etag, sizeof plain->etags[i]) != 0)
        i++;
    return i;
}

static bool plain_from(const struct plain *plain, unsigned taken, unsigned etags_given,
                       uint64_t moment, struct plain_state state);

/* A write got `etag`; go on if no other write had it. */
static bool plain_give(const struct plain *plain, unsigned taken, unsigned etags_given,
                       uint64_t moment, struct plain_state state, size_t etag)
{
    if (etag < plain->etag_count) {
        if (etags_given & 1u << etag)
            return false;
        etags_given |= 1u << etag;
    }
    state.etag = etag;
    return plain_from(plain, taken, etags_given, moment, state);
}

static bool plain_write(const struct plain *plain, const struct history_op *op, unsigned taken,
                        unsigned etags_given, uint64_t moment, struct plain_state state)
{
    if (op->outcome == HISTORY_OK && (op->etag[0] | op->etag[1]) != 0)
        return plain_give(plain, taken, etags_given, moment, state, plain_etag(plain, op->etag));
    for (size_t etag = 0; etag <= plain->etag_count; etag++) {
        if (plain_give(plain, taken, etags_given, moment, state, etag))
            return true;
    }
    return false;
}

/* Operation `i` is the next. */
static bool plain_take(const struct plain *plain, size_t i, unsigned taken, unsigned etags_given,
                       uint64_t moment, struct plain_state state)
{
    const struct history_op *op = &plain->ops[i];
    taken |= 1u << i;
    if (moment < op->start)
        moment = op->start;
    if (op->outcome != HISTORY_UNKNOWN && moment > op->end)
        return false;
    if (state.present && moment > state.gone_by)
        state = (struct plain_state){0};
    bool met = true;
    if (op->condition == HISTORY_IF_ABSENT)
        met = !state.present;
    if (op->condition == HISTORY_IF_PRESENT)
        met = state.present;
    if (op->condition == HISTORY_IF_ETAG)
        met = state.present && state.etag == plain_etag(plain, op->etag_expected);
    int64_t sum = 0;
    if (op->kind == HISTORY_GET || op->kind == HISTORY_DELETE)
        met = met && state.present;
    if (op->kind == HISTORY_ADD)
        met = met && (!state.present || state.number) &&
              !__builtin_add_overflow((int64_t)state.value, op->delta, &sum);
    bool seen = (op->etag[0] | op->etag[1]) != 0;
    if (op->outcome == HISTORY_REJECTED)
        return !met && (!seen || (state.present && state.etag == plain_etag(plain, op->etag))) &&
               plain_from(plain, taken, etags_given, moment, state);
    if (!met)
        return op->outcome == HISTORY_UNKNOWN &&
               plain_from(plain, taken, etags_given, moment, state);
    switch (op->kind) {
    case HISTORY_GET:
        return (op->outcome == HISTORY_UNKNOWN ||
                (state.number == op->number && state.value == op->value &&
                 (!seen || state.etag == plain_etag(plain, op->etag)))) &&
               plain_from(plain, taken, etags_given, moment, state);
    case HISTORY_DELETE:
        return plain_from(plain, taken, etags_given, moment, (struct plain_state){0});
    case HISTORY_PUT:
        if ((op->existed == HISTORY_CREATED && state.present) ||
            (op->existed == HISTORY_REPLACED && !state.present))
            return false;
        state = (struct plain_state){true, op->number, op->value, op->gone_from, op->gone_by, 0};
        if (op->gone_from == 0)
            state.gone_from = state.gone_by = UINT64_MAX;
        return plain_write(plain, op, taken, etags_given, moment, state);
    case HISTORY_ADD:
        if (op->outcome == HISTORY_OK && op->value != (uint64_t)sum)
            return false;
        if (!state.present)
            state.gone_from = state.gone_by = UINT64_MAX;
        state.present = state.number = true;
        state.value = (uint64_t)sum;
        return plain_write(plain, op, taken, etags_given, moment, state);
    }
    return false;
}

static bool plain_from(const struct plain *plain, unsigned taken, unsigned etags_given,
                       uint64_t moment, struct plain_state state)
{
    bool all = true;
    for (size_t i = 0; i < plain->count; i++) {
        enum history_outcome outcome = plain->ops[i].outcome;
        if ((taken & 1u << i) || outcome == HISTORY_FAILED)
            continue;
        if (outcome != HISTORY_UNKNOWN)
            all = false;
    }
    if (all)
        return true;
    for (size_t i = 0; i < plain->count; i++) {
        if (!(taken & 1u << i) && plain->ops[i].outcome != HISTORY_FAILED &&
            plain_take(plain, i, taken, etags_given, moment, state))
            return true;
    }
    if (state.present && state.gone_from != UINT64_MAX)
        return plain_from(plain, taken, etags_given,
                          state.gone_from > moment ? state.gone_from : moment,
                          (struct plain_state){0});
    return false;
}

static bool plain_etags_sorted(const struct history_op *ops, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < count; j++) {
            const struct history_op *a = &ops[i], *b = &ops[j];
            if (a->outcome > HISTORY_REJECTED || b->outcome > HISTORY_REJECTED || a->etag[0] == 0 ||
                b->etag[0] == 0 || a->end >= b->start)
                continue;
            bool new = b->kind != HISTORY_GET && b->outcome == HISTORY_OK;
            if (a->etag[0] > b->etag[0] || (new && a->etag[0] == b->etag[0]))
                return false;
        }
    }
    return true;
}

static bool plain_linearizable(const struct history_op *ops, size_t count)
{
    struct plain plain = {.ops = ops, .count = count};
    for (size_t i = 0; i < count; i++) {
        const uint64_t *both[] = {ops[i].etag, ops[i].etag_expected};
        for (size_t j = 0; j < 2; j++) {
            if ((both[j][0] | both[j][1]) != 0 && plain_etag(&plain, both[j]) == plain.etag_count)
                memcpy(plain.etags[plain.etag_count++], both[j], sizeof plain.etags[0]);
        }
    }
    return plain_etags_sorted(ops, count) && plain_from(&plain, 0, 0, 0, (struct plain_state){0});
}

/* ---- Both --------------------------------------------------------------------------------- */

static void etag_random(uint64_t etag[2])
{
    etag[0] = 1 + random_below(4);
    etag[1] = 1;
}

/* One operation that fits nothing but the rules of struct history_op. */
static struct history_op random_op(uint64_t id, unsigned time_max, bool ttl)
{
    struct history_op op = {
        .kind = (enum history_kind)random_below(4),
        .outcome = random_percent(70) ? HISTORY_OK : (enum history_outcome)random_below(4),
        .start = 1 + random_below(time_max),
    };
    op.end = op.start + random_below(time_max / 2 + 1);
    if (op.kind != HISTORY_GET && random_percent(40))
        op.condition = (enum history_condition)random_below(4);
    if (op.condition == HISTORY_IF_ETAG)
        etag_random(op.etag_expected);
    if (op.kind == HISTORY_PUT) {
        op.number = random_percent(20);
        op.value = op.number ? random_below(3) : id;
        if (op.outcome == HISTORY_OK && random_percent(20))
            op.existed = (enum history_existed)(1 + random_below(2));
        if (ttl && random_percent(50)) {
            op.gone_from = 1 + random_below(2 * time_max);
            op.gone_by = random_percent(20) ? UINT64_MAX : op.gone_from + random_below(time_max);
        }
    }
    if (op.kind == HISTORY_GET && op.outcome == HISTORY_OK) {
        op.number = random_percent(30);
        op.value = op.number ? random_below(3) : 1000 + random_below(4);
    }
    if (op.kind == HISTORY_ADD) {
        op.delta = (int64_t)random_below(3) - 1;
        op.value = op.outcome == HISTORY_OK ? random_below(3) : 0;
    }
    bool has_etag =
        op.outcome == HISTORY_REJECTED || (op.outcome == HISTORY_OK && op.kind != HISTORY_DELETE);
    if (has_etag && random_percent(25))
        etag_random(op.etag);
    return op;
}

/* Changes one thing that a client saw, mostly to another thing seen in this history. */
static void mutate(struct history_op *ops, size_t count)
{
    struct history_op *op = &ops[random_below(count)], *other = &ops[random_below(count)];
    bool has_etag = op->outcome == HISTORY_REJECTED ||
                    (op->outcome == HISTORY_OK && op->kind != HISTORY_DELETE);
    switch (random_below(6)) {
    case 0:
        if (op->kind == HISTORY_GET && other->kind != HISTORY_DELETE) {
            op->value = other->value;
            op->number = other->number || other->kind == HISTORY_ADD;
        }
        break;
    case 1:
        if (has_etag)
            memcpy(op->etag, other->etag, sizeof op->etag);
        break;
    case 2:
        op->outcome = (enum history_outcome)random_below(4);
        op->existed = HISTORY_NOT_KNOWN;
        memset(op->etag, 0, sizeof op->etag);
        break;
    case 3:
        op->start += random_below(10);
        op->end += 10;
        break;
    case 4:
        if (op->condition == HISTORY_IF_ETAG && other->etag[0] != 0)
            memcpy(op->etag_expected, other->etag, sizeof op->etag);
        break;
    case 5:
        if (op->kind == HISTORY_ADD)
            op->value = other->value % 4;
        break;
    }
}

static void expect_agreement(const struct history_op *ops, size_t count, uint64_t seed,
                             unsigned verdicts[2])
{
    bool plain = plain_linearizable(ops, count);
    enum history_verdict verdict = history_check(ops, count, why, sizeof why);
    if (verdict != (plain ? HISTORY_LINEARIZABLE : HISTORY_VIOLATED)) {
        for (size_t i = 0; i < count; i++)
            fprintf(stderr,
                    "#%zu kind %d if %d outcome %d existed %d [%" PRIu64 ", %" PRIu64
                    "] value %" PRIu64 "%s delta %" PRId64 " etag %" PRIx64 "-%" PRIx64
                    " expected %" PRIx64 "-%" PRIx64 " gone %" PRIu64 " %" PRIu64 "\n",
                    i, (int)ops[i].kind, (int)ops[i].condition, (int)ops[i].outcome,
                    (int)ops[i].existed, ops[i].start, ops[i].end, ops[i].value,
                    ops[i].number ? "n" : "", ops[i].delta, ops[i].etag[0], ops[i].etag[1],
                    ops[i].etag_expected[0], ops[i].etag_expected[1], ops[i].gone_from,
                    ops[i].gone_by);
        ck_abort_msg("seed %" PRIu64 ": plain says %d, fast says %d: %s", seed, plain, (int)verdict,
                     why);
    }
    verdicts[plain]++;
}

START_TEST(test_the_plain_checker_agrees_on_random_small_histories)
{
    struct history_op ops[PLAIN_OPS_MAX];
    unsigned verdicts[2] = {0, 0};
    for (uint64_t seed = 0; seed < 60000; seed++) {
        random_state = seed;
        size_t count = 1 + random_below(6);
        bool ttl = random_percent(40);
        unsigned time_max = 4 + (unsigned)random_below(20);
        for (size_t i = 0; i < count; i++)
            ops[i] = random_op(1000 + i, time_max, ttl);
        expect_agreement(ops, count, seed, verdicts);
    }
    ck_assert_uint_gt(verdicts[false], 6000);
    ck_assert_uint_gt(verdicts[true], 6000);
}
END_TEST

START_TEST(test_the_plain_checker_agrees_on_changed_histories_of_a_register)
{
    struct history_op ops[PLAIN_OPS_MAX];
    unsigned verdicts[2] = {0, 0};
    for (uint64_t seed = 0; seed < 30000; seed++) {
        random_state = seed;
        struct load load = random_load(2 + (unsigned)random_below(3), 2);
        load.late_max = (unsigned)random_below(60);
        size_t count = generate(&load, ops);
        for (uint64_t left = random_below(4); left > 0; left--)
            mutate(ops, count);
        expect_agreement(ops, count, seed, verdicts);
    }
    ck_assert_uint_gt(verdicts[false], 3000);
    ck_assert_uint_gt(verdicts[true], 3000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("history");
    TCase *hand = tcase_create("by hand");
    tcase_add_test(hand, test_the_empty_history_is_linearizable);
    tcase_add_test(hand, test_a_read_sees_the_write_before_it);
    tcase_add_test(hand, test_operations_at_one_time_may_come_in_any_order);
    tcase_add_test(hand, test_two_reads_may_not_disagree_on_the_order_of_two_writes);
    tcase_add_test(hand, test_a_stale_read_is_a_violation);
    tcase_add_test(hand, test_a_value_read_and_then_gone_is_a_violation);
    tcase_add_test(hand, test_a_lost_update_is_a_violation);
    tcase_add_test(hand, test_one_of_two_swaps_is_rejected);
    tcase_add_test(hand, test_a_swap_fits_the_etag_and_not_the_value);
    tcase_add_test(hand, test_a_double_apply_is_a_violation);
    tcase_add_test(hand, test_a_write_applied_after_it_was_rejected_is_a_violation);
    tcase_add_test(hand, test_a_value_from_nowhere_is_a_violation);
    tcase_add_test(hand, test_an_unknown_write_may_be_applied_late);
    tcase_add_test(hand, test_an_unknown_write_may_never_be_applied);
    tcase_add_test(hand, test_of_two_unknown_writes_the_one_that_fits_more_rarely_is_used_first);
    tcase_add_test(hand, test_an_unknown_delete_explains_one_absence);
    tcase_add_test(hand, test_a_deleted_key_that_comes_back_is_a_violation);
    tcase_add_test(hand, test_etags_never_sort_lower_as_time_goes_on);
    tcase_add_test(hand, test_an_etag_names_one_state_of_a_counter);
    tcase_add_test(hand, test_a_rejected_swap_shows_what_the_etag_is_not);
    tcase_add_test(hand, test_a_counter_counts_from_nothing_and_only_on_numbers);
    tcase_add_test(hand, test_a_value_expires_within_its_time);
    tcase_add_test(hand, test_a_write_applied_after_its_expiry_is_never_seen);
    tcase_add_test(hand, test_giving_up_is_neither_pass_nor_violation);
    tcase_add_test(hand, test_names_alone_are_checked_where_the_order_may_be_any);
    tcase_add_test(hand, test_a_message_is_cut_where_there_is_no_room);
    tcase_set_timeout(hand, 60);
    suite_add_tcase(suite, hand);
    TCase *chance = tcase_create("by chance");
    tcase_add_test(chance, test_histories_of_an_atomic_register_are_linearizable);
    tcase_add_test(chance, test_one_stale_read_among_many_operations_is_found);
    tcase_add_test(chance, test_the_plain_checker_agrees_on_random_small_histories);
    tcase_add_test(chance, test_the_plain_checker_agrees_on_changed_histories_of_a_register);
    tcase_set_timeout(chance, 300);
    suite_add_tcase(suite, chance);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
