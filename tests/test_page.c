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
    const TTest *tests[] = {test_the_ring_page_shows_what_status_says};
    return harness_run("page", 120, tests, 1);
}
