/* The ring page in a real browser, before three real nodes: tests/page.mjs says what is looked at. */
#include "cluster.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

START_TEST(test_the_ring_page_shows_what_status_says)
{
    struct cluster *c = cluster_start(3, NULL);
    char command[1024];
    snprintf(command, sizeof command, "PLAYWRIGHT_DIR=build node tests/page.mjs %s",
             c->nodes[0].url);
    ck_assert_int_eq(system(command), 0);
    cluster_stop(c);
}
END_TEST

int main(void)
{
    harness_begin("page");
    Suite *suite = suite_create("page");
    TCase *kind = tcase_create("page");
    tcase_set_timeout(kind, 120);
    tcase_add_test(kind, test_the_ring_page_shows_what_status_says);
    suite_add_tcase(suite, kind);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    return harness_end(runner);
}
