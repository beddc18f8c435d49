/* test_ring.c - the ring is fair, moves little, and is the same on every node. The limits held here
 * are close above the worst that was ever seen, so that a change for the worse is noticed. */
#include "../ring.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    SETS = 12, /* of ids, for each number of members */
    FEWEST = 3,
    MOST = 20,
    REPLICAS = 3,
};

static struct member members[MEMBERS_MAX];
static struct ring ring, later;

struct load {
    double copies[MEMBERS_MAX]; /* partitions it owns at any rank */
    double firsts[MEMBERS_MAX]; /* partitions it owns first */
};

static uint64_t first_of(unsigned count)
{
    return count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
}

/* All members equal and in no zone; another set, other ids. */
static void members_make(unsigned set)
{
    memset(members, 0, sizeof(members));
    for (unsigned m = 0; m < MEMBERS_MAX; m++) {
        uint64_t name[] = {set, m};
        members[m].id = XXH3_64bits(name, sizeof(name));
        members[m].weight = 1;
        members[m].state = MEMBER_UP;
        snprintf(members[m].address, ADDRESS_BYTES, "127.0.0.1:%u", 8001 + m);
    }
}

/* One character a member: its zone. */
static void members_set_zones(const char *zones)
{
    for (unsigned m = 0; zones[m]; m++)
        members[m].zone[0] = zones[m];
}

static uint64_t owners_set(const struct ring *from, unsigned partition)
{
    uint64_t set = 0;
    for (unsigned rank = 0; rank < from->owners_count; rank++)
        set |= UINT64_C(1) << from->owners[partition][rank];
    return set;
}

static struct load load_of(const struct ring *from)
{
    struct load load = {0};
    for (unsigned partition = 0; partition < PARTITIONS; partition++) {
        load.firsts[from->owners[partition][0]]++;
        for (unsigned rank = 0; rank < from->owners_count; rank++)
            load.copies[from->owners[partition][rank]]++;
    }
    return load;
}

/* Copies that a member has in `to` and not in `from`: what must be sent. */
static double copies_moved(const struct ring *from, const struct ring *to)
{
    double moved = 0;
    for (unsigned partition = 0; partition < PARTITIONS; partition++)
        moved += __builtin_popcountll(owners_set(to, partition) & ~owners_set(from, partition));
    return moved;
}

static unsigned zones_count(const struct ring *from, unsigned partition)
{
    unsigned seen[256] = {0}, count = 0;
    for (unsigned rank = 0; rank < from->owners_count; rank++)
        count += !seen[(unsigned char)members[from->owners[partition][rank]].zone[0]]++;
    return count;
}

START_TEST(test_every_partition_has_distinct_owners_that_take_part)
{
    members_make(0);
    uint64_t masks[] = {first_of(1), first_of(2), first_of(9), 0xf0f0, 0x8000000000000001, ~0ull};
    for (unsigned i = 0; i < sizeof(masks) / sizeof(*masks); i++)
        for (unsigned replicas = 1; replicas <= REPLICAS_MAX; replicas++) {
            unsigned count = __builtin_popcountll(masks[i]);
            ring_place(&ring, members, MEMBERS_MAX, masks[i], replicas);
            ck_assert_uint_eq(ring.owners_count, replicas < count ? replicas : count);
            for (unsigned partition = 0; partition < PARTITIONS; partition++) {
                uint64_t owners = owners_set(&ring, partition);
                ck_assert_int_eq(__builtin_popcountll(owners), ring.owners_count);
                ck_assert(!(owners & ~masks[i]));
            }
        }
}
END_TEST

START_TEST(test_one_member_owns_everything)
{
    members_make(0);
    ring_place(&ring, members, 1, 1, REPLICAS);
    ck_assert_uint_eq(ring.owners_count, 1);
    ck_assert(load_of(&ring).firsts[0] == PARTITIONS);
}
END_TEST

START_TEST(test_two_members_both_own_everything_and_are_first_for_half_of_it)
{
    members_make(0);
    ring_place(&ring, members, 2, 3, REPLICAS);
    struct load load = load_of(&ring);
    ck_assert_uint_eq(ring.owners_count, 2);
    for (unsigned m = 0; m < 2; m++) {
        ck_assert_double_eq(load.copies[m], PARTITIONS);
        ck_assert_double_le(load.firsts[m], 1.06 * PARTITIONS / 2);
    }
}
END_TEST

START_TEST(test_without_members_nobody_owns_anything)
{
    members_make(0);
    ring_place(&ring, members, 5, 0, REPLICAS);
    ck_assert_uint_eq(ring.owners_count, 0);
    ring_place(&ring, members, 0, ~0ull, REPLICAS);
    ck_assert_uint_eq(ring.owners_count, 0);
}
END_TEST

START_TEST(test_no_member_holds_much_more_than_the_mean)
{
    for (unsigned count = FEWEST; count <= MOST; count++)
        for (unsigned set = 0; set < SETS; set++) {
            members_make(set);
            ring_place(&ring, members, count, ~0ull, REPLICAS);
            struct load load = load_of(&ring);
            for (unsigned m = 0; m < count; m++) {
                ck_assert_double_le(load.copies[m], 1.06 * PARTITIONS * REPLICAS / count);
                ck_assert_double_le(load.firsts[m], 1.07 * PARTITIONS / count);
            }
        }
}
END_TEST

/* On average a newcomer is due replicas / (count + 1) of everything, and that must move. */
START_TEST(test_adding_a_member_moves_little)
{
    double sum = 0, worst = 0;
    for (unsigned count = FEWEST; count < MOST; count++)
        for (unsigned set = 0; set < SETS; set++) {
            members_make(set);
            ring_place(&ring, members, MEMBERS_MAX, first_of(count), REPLICAS);
            ring_place(&later, members, MEMBERS_MAX, first_of(count + 1), REPLICAS);
            double least = PARTITIONS * REPLICAS / (count + 1.0);
            double ratio = copies_moved(&ring, &later) / least;
            sum += ratio / (SETS * (MOST - FEWEST));
            worst = ratio > worst ? ratio : worst;
        }
    ck_assert_double_le(worst, 1.20);
    ck_assert_double_le(sum, 1.04);
}
END_TEST

START_TEST(test_removing_a_member_moves_little_but_what_it_held)
{
    double sum = 0, worst = 0;
    for (unsigned count = FEWEST + 1; count <= MOST; count++)
        for (unsigned set = 0; set < SETS; set++) {
            members_make(set);
            unsigned gone = set % count;
            ring_place(&ring, members, count, ~0ull, REPLICAS);
            ring_place(&later, members, count, ~(1ull << gone), REPLICAS);
            double ratio = copies_moved(&ring, &later) / load_of(&ring).copies[gone];
            sum += ratio / (SETS * (MOST - FEWEST));
            worst = ratio > worst ? ratio : worst;
        }
    ck_assert_double_le(worst, 1.20);
    ck_assert_double_le(sum, 1.04);
}
END_TEST

START_TEST(test_load_follows_weight)
{
    const unsigned weights[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    for (unsigned set = 0; set < SETS; set++) {
        members_make(set);
        for (unsigned m = 0; m < 10; m++)
            members[m].weight = weights[m];
        ring_place(&ring, members, 10, ~0ull, REPLICAS);
        struct load load = load_of(&ring);
        for (unsigned m = 0; m < 10; m++) {
            double share = PARTITIONS * weights[m] / 55.0;
            ck_assert_double_le(load.firsts[m], 1.05 * share + 1);
            ck_assert_double_le(load.copies[m], 1.05 * share * REPLICAS + 1);
            ck_assert_double_ge(load.copies[m], 0.75 * share * REPLICAS);
        }
    }
}
END_TEST

START_TEST(test_too_heavy_a_member_holds_one_copy_of_all_and_the_others_share_the_rest)
{
    for (unsigned set = 0; set < SETS; set++) {
        members_make(set);
        members[0].weight = WEIGHT_MAX;
        ring_place(&ring, members, 5, ~0ull, REPLICAS);
        struct load load = load_of(&ring);
        ck_assert_double_eq(load.copies[0], PARTITIONS);
        for (unsigned m = 1; m < 5; m++)
            ck_assert_double_le(load.copies[m], 1.2 * PARTITIONS * 2 / 4);
    }
}
END_TEST

START_TEST(test_owners_stand_in_as_many_zones_as_there_are)
{
    const char *zones[] = {"aabbcc", "aaabbbcccddd", "aabbc",  "aaaaaabc",
                           "aaab",   "aaaa",         "abcdefg"};
    for (unsigned i = 0; i < sizeof(zones) / sizeof(*zones); i++)
        for (unsigned set = 0; set < SETS; set++) {
            unsigned count = strlen(zones[i]), most = zones[i][count - 1] - 'a' + 1;
            members_make(set);
            members_set_zones(zones[i]);
            ring_place(&ring, members, count, ~0ull, REPLICAS);
            for (unsigned partition = 0; partition < PARTITIONS; partition++)
                ck_assert_uint_eq(zones_count(&ring, partition), most < 3 ? most : 3);
        }
}
END_TEST

START_TEST(test_equal_zones_cost_no_balance)
{
    for (unsigned set = 0; set < SETS; set++) {
        members_make(set);
        members_set_zones("aaabbbccc");
        ring_place(&ring, members, 9, ~0ull, REPLICAS);
        struct load load = load_of(&ring);
        for (unsigned m = 0; m < 9; m++) {
            ck_assert_double_le(load.copies[m], 1.07 * PARTITIONS * REPLICAS / 9);
            ck_assert_double_le(load.firsts[m], 1.08 * PARTITIONS / 9);
        }
    }
}
END_TEST

START_TEST(test_order_state_and_address_of_members_change_nothing)
{
    struct member other[MEMBERS_MAX];
    for (unsigned set = 0; set < SETS; set++) {
        const unsigned count = 5 + set;
        members_make(set);
        members_set_zones("abcabcabc");
        members[3].weight = 4;
        for (unsigned m = 0; m < count;
             m++) { /* 7 is prime to 5..16 but 7 and 14: stride 3 there */
            unsigned stride = count % 7 ? 7 : 3;
            other[m * stride % count] = members[m];
            other[m * stride % count].state = m % 3;
            other[m * stride % count].address[0] = 'x';
        }
        ring_place(&ring, members, count, ~0ull, REPLICAS);
        ring_place(&later, other, count, ~0ull, REPLICAS);
        for (unsigned partition = 0; partition < PARTITIONS; partition++)
            for (unsigned rank = 0; rank < REPLICAS; rank++)
                ck_assert_uint_eq(members[ring.owners[partition][rank]].id,
                                  other[later.owners[partition][rank]].id);
    }
}
END_TEST

START_TEST(test_who_does_not_take_part_changes_nothing)
{
    members_make(1);
    members_set_zones("abcab");
    ring_place(&ring, members, 5, ~0ull, REPLICAS);
    members[6].weight = WEIGHT_MAX;
    members[7].zone[0] = 'c';
    ring_place(&later, members, MEMBERS_MAX, first_of(5), REPLICAS);
    ck_assert_mem_eq(&ring, &later, sizeof(ring));
}
END_TEST

/* Nodes of two versions must agree on who owns what, or neither finds the other's quorums. If this
 * fails, what was changed needs a new protocol version. */
START_TEST(test_placement_is_the_same_in_every_version)
{
    members_make(7);
    members_set_zones("abcabcabcd");
    members[2].weight = 3;
    ring_place(&ring, members, 10, ~0ull, REPLICAS);
    ck_assert_uint_eq(XXH3_64bits(ring.owners, sizeof(ring.owners)),
                      UINT64_C(13605707634917041380));
}
END_TEST

START_TEST(test_the_largest_cluster_is_placed)
{
    members_make(2);
    for (unsigned m = 0; m < MEMBERS_MAX; m++)
        members[m].weight = WEIGHT_MAX;
    ring_place(&ring, members, MEMBERS_MAX, ~0ull, REPLICAS_MAX);
    struct load load = load_of(&ring);
    for (unsigned m = 0; m < MEMBERS_MAX; m++)
        ck_assert_double_le(load.copies[m], 1.07 * PARTITIONS * REPLICAS_MAX / MEMBERS_MAX);
}
END_TEST

int main(void)
{
    const TTest *tests[] = {
        test_every_partition_has_distinct_owners_that_take_part,
        test_one_member_owns_everything,
        test_two_members_both_own_everything_and_are_first_for_half_of_it,
        test_without_members_nobody_owns_anything,
        test_no_member_holds_much_more_than_the_mean,
        test_adding_a_member_moves_little,
        test_removing_a_member_moves_little_but_what_it_held,
        test_load_follows_weight,
        test_too_heavy_a_member_holds_one_copy_of_all_and_the_others_share_the_rest,
        test_owners_stand_in_as_many_zones_as_there_are,
        test_equal_zones_cost_no_balance,
        test_order_state_and_address_of_members_change_nothing,
        test_who_does_not_take_part_changes_nothing,
        test_placement_is_the_same_in_every_version,
        test_the_largest_cluster_is_placed,
    };
    TCase *ring_case = tcase_create("ring");
    for (unsigned i = 0; i < sizeof(tests) / sizeof(*tests); i++)
        tcase_add_test(ring_case, tests[i]);
    Suite *suite = suite_create("ring");
    suite_add_tcase(suite, ring_case);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
