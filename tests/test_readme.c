/*
 * test_readme.c - what README.md says can be typed does what it says: its ten lines of curl at
 * three nodes behind nginx, backup and restore.
 */
#include "cluster.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char address[] = "127.0.0.1:8000", arrow[] = "# -> ";

/* A copy of `from` with the address in it replaced. */
static char *replaced(const char *from, const char *by)
{
    char *result = calloc(1, strlen(from) + 16 * strlen(by) + 1), *to = result;
    const char *at;
    for (; (at = strstr(from, address)); from = at + strlen(address)) {
        memcpy(to, from, (size_t)(at - from));
        to = stpcpy(to + (at - from), by);
    }
    strcpy(to, from);
    return result;
}

static char *without_space_at_end(char *s)
{
    size_t count = strlen(s);
    while (count && isspace((unsigned char)s[count - 1]))
        s[--count] = 0;
    return s;
}

/* What stands in README.md behind a heading, from one text to another. */
static char *readme_part(const char *heading, const char *from, const char *to)
{
    char *readme = file_read("README.md", NULL);
    REQUIRE(readme, "tests are to be run in the project's folder: there is no README.md");
    char *at = strstr(readme, heading);
    REQUIRE(at, "README.md has no part '%s'", heading);
    char *start = strstr(at + strlen(heading), from);
    REQUIRE(start, "nothing to type under '%s'", heading);
    start += strlen(from);
    char *end = strstr(start, to);
    REQUIRE(end, "no end under '%s'", heading);
    *end = 0;
    return start;
}

static struct cluster *cluster_of_three(void)
{
    struct cluster *c = cluster_start(3, NULL);
    cluster_nginx(c);
    return c;
}

/* The cluster's nginx, as README.md would write it. */
static const char *place(const struct cluster *c)
{
    return text("127.0.0.1:%d", c->nginx_port);
}

static void script_write(const char *path, const char *script)
{
    file_write(path, script, strlen(script));
}

START_TEST(test_each_line_of_curl_prints_what_the_readme_says)
{
    struct cluster *c = cluster_of_three();
    char *lines = readme_part("## Ten lines of curl", "```sh\n", "```"), *save;
    char *script = in_folder(c->folder, "line.sh");
    int count = 0;
    for (char *line = strtok_r(lines, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *expected = strstr(line, arrow);
        REQUIRE(expected, "a line does not say what it prints: %s", line);
        *expected = 0;
        expected += strlen(arrow);
        if (strcmp(expected, "(nothing)") == 0)
            expected = "";
        script_write(script, replaced(line, place(c)));
        struct output got = run(20, "sh %s", script);
        REQUIRE(got.status == 0, "status %d of: %s\n%s", got.status, line, got.text);
        without_space_at_end(got.text);
        REQUIRE(strcmp(got.text, expected) == 0, "%s\nprints '%s', not '%s'", line, got.text,
                expected);
        count++;
    }
    ck_assert_int_eq(count, 10);
    cluster_stop(c);
}
END_TEST

/* A script of operate/, with smaller pages, so that it has to go on to the next. */
static char *script_of(const char *folder, const char *name)
{
    char *script = file_read(text("operate/%s", name), NULL);
    REQUIRE(script, "tests are to be run in the project's folder: there is no operate/%s", name);
    char *path = in_folder(folder, "%s", name), *limit = strstr(script, "limit=1000");
    if (limit)
        memcpy(limit, "limit=0007", strlen("limit=0007"));
    script_write(path, script);
    return path;
}

static void back_up(const struct cluster *c, int node, const char *to)
{
    struct output got =
        run(60, "sh %s %s %s", script_of(c->folder, "backup.sh"), c->nodes[node].url, to);
    REQUIRE(got.status == 0 && !*got.text, "status %d: %s", got.status, got.text);
}

static void restore(const struct cluster *c, const char *from)
{
    struct output got =
        run(60, "sh %s %s %s", script_of(c->folder, "restore.sh"), c->nodes[0].url, from);
    REQUIRE(got.status == 0 && !*got.text, "status %d: %s", got.status, got.text);
}

/* Names that are no names of files, that mean something to a shell, to curl or to awk, or that are
 * one number. */
static char **strange_keys(void)
{
    static const char *const some[] = {"/a",
                                       "/a/b",
                                       "/a//b",
                                       "/.",
                                       "/..",
                                       "/../etc/passwd",
                                       "/./x",
                                       "//lead",
                                       "/%0A",
                                       "/x%0Ay",
                                       "/%00",
                                       "/a%20b",
                                       "/%C3%A9t%C3%A9",
                                       "/%22q%22%5C",
                                       "/a%3Fb%23",
                                       "/%7B1-3%7D",
                                       "/%5B1-3%5D",
                                       "/%25",
                                       "/$(false)",
                                       "/'",
                                       "/*",
                                       "/-K",
                                       "/@x",
                                       "/1",
                                       "/1.0",
                                       "/01",
                                       "/1e0",
                                       "/%09t%09",
                                       "/photos/2026/a.jpg"};
    enum { SOME = sizeof some / sizeof *some, LONG = 1024 };
    char **keys = calloc(SOME + 3, sizeof *keys), *at;
    for (int i = 0; i < SOME; i++)
        keys[i] = strdup(some[i]);
    keys[SOME] = at = calloc(1, LONG + 2);
    memset(at, 'k', LONG + 1);
    *at = '/';
    keys[SOME + 1] = at = calloc(1, 3 * LONG + 2);
    *at++ = '/';
    for (int i = 0; i < LONG; i++)
        at = stpcpy(at, "%FF");
    return keys;
}

/* The listing without what a restored key cannot have, and whole seconds of its expiry. */
static char *keys_listed(const char *url)
{
    struct output got =
        run(20,
            "curl -sf -H 'Accept: application/json' '%s/?limit=1000' | sed -E 's/\\},/},\\n/g' | "
            "sed -E 's/\"(etag|modified)\":[^,]*,//g; s/(\"expires\":[0-9]*)\\.[0-9]*/\\1/'",
            url);
    REQUIRE(got.status == 0 && *got.text, "%d %s", got.status, got.text);
    return got.text;
}

START_TEST(test_a_backup_brings_back_every_key_with_type_and_expiry)
{
    static const char type[] = "text/x; a=\"b\\c\"";
    struct cluster *from = cluster_of_three(), *to = cluster_start(1, NULL);
    char **keys = strange_keys(), *backup = in_folder(from->folder, "backup");
    const char *url = from->nodes[0].url;
    for (char **key = keys; *key; key++)
        ck_assert_int_eq(
            http(url, "PUT", *key, text("Content-Type: %s", type), *key, strlen(*key)).status, 201);
    ck_assert_int_eq(put(url, "/empty", "").status, 201);
    ck_assert_int_eq(put(url, "/later?ttl=1h", "later").status, 201);
    ck_assert_int_eq(put(url, "/soon?ttl=1s", "soon").status, 201);
    ck_assert_int_eq(put(url, "/gone", "gone").status, 201);
    ck_assert_int_eq(status_of(url, "DELETE", "/gone", NULL, NULL), 200);
    back_up(from, 1, backup);
    AWAIT(get(url, "/soon").status == 404, 10);
    restore(to, backup);
    ck_assert_str_eq(keys_listed(url), keys_listed(to->nodes[0].url));
    for (char **key = keys; *key; key++) {
        struct response r = get(to->nodes[0].url, *key);
        ck_assert_msg(r.status == 200 && body_is(&r, *key, strlen(*key)), "%s: %d", *key, r.status);
        ck_assert_str_eq(header(&r, "Content-Type"), type);
    }
    cluster_stop(to);
    cluster_stop(from);
}
END_TEST

START_TEST(test_of_two_backups_the_later_value_of_a_key_is_restored)
{
    static const char *const both[] = {"/1", "/1.0", "/k"};
    struct cluster *a = cluster_start(1, NULL), *b = cluster_start(1, NULL),
                   *to = cluster_start(1, NULL);
    const char *one = a->nodes[0].url, *two = b->nodes[0].url, *url = to->nodes[0].url;
    for (int i = 0; i < 3; i++) { /* the even ones are later in a, the odd ones in b */
        ck_assert_int_eq(put(i % 2 ? one : two, both[i], "earlier").status, 201);
        ck_assert_int_eq(put(i % 2 ? two : one, both[i], "later").status, 201);
    }
    ck_assert_int_eq(put(one, "/of-a", "a").status, 201);
    ck_assert_int_eq(put(two, "/of-b", "b").status, 201);
    ck_assert_int_eq(put(one, "/there", "of the backup").status, 201);
    ck_assert_int_eq(put(url, "/there", "of the new cluster").status, 201);
    char *folders[] = {in_folder(a->folder, "backup"), in_folder(b->folder, "backup")};
    back_up(a, 0, folders[0]);
    back_up(b, 0, folders[1]);
    restore(to, text("%s %s", folders[0], folders[1]));
    for (int i = 0; i < 3; i++)
        ck_assert_str_eq(get(url, both[i]).body, "later");
    ck_assert_str_eq(get(url, "/of-a").body, "a");
    ck_assert_str_eq(get(url, "/of-b").body, "b");
    ck_assert_str_eq(get(url, "/there").body, "of the new cluster");
    cluster_stop(to);
    cluster_stop(b);
    cluster_stop(a);
}
END_TEST

START_TEST(test_a_backup_that_cannot_be_whole_says_so)
{
    struct cluster *c = cluster_start(3, NULL);
    ck_assert_int_eq(put(c->nodes[0].url, "/k", "v").status, 201);
    node_kill(c, 1);
    node_kill(c, 2);
    struct output got = run(60, "sh %s %s %s", script_of(c->folder, "backup.sh"), c->nodes[0].url,
                            in_folder(c->folder, "backup"));
    ck_assert_msg(got.status != 0 && *got.text, "status %d: %s", got.status, got.text);
    cluster_stop(c);
}
END_TEST

/* The nodes' keys together. */
static double copies(const struct cluster *c)
{
    double sum = 0;
    for (int i = 0; i < c->count; i++)
        sum += json_number(get(c->nodes[i].url, "/_status").body, "keys");
    return sum;
}

/* "most of all machines are lost for good", where there are more with data. */
START_TEST(test_three_of_five_lost_for_good_cost_no_key_that_another_held)
{
    enum { COUNT = 300 };
    struct cluster *c = cluster_start(5, NULL), *to = cluster_start(3, NULL);
    char *folders[2];
    bool held[COUNT] = {0};
    int lost = 0;
    for (int i = 0; i < COUNT; i++)
        ck_assert_int_eq(put(c->nodes[i % 5].url, text("/k/%d", i), text("value %d", i)).status,
                         201);
    AWAIT(copies(c) == COUNT * 3, 20);
    for (int i = 0; i < COUNT; i++) {
        struct response r = get(c->nodes[0].url, text("/_nodes/k/%d", i));
        for (int n = 0; n < 2; n++)
            held[i] |= strstr(json_string(r.body, "owners"), node_id(&c->nodes[n])) != NULL;
        lost += !held[i];
    }
    for (int n = 2; n < 5; n++) {
        node_kill(c, n);
        folder_remove(in_folder(c->nodes[n].folder, "data"));
    }
    for (int n = 0; n < 2; n++)
        AWAIT(status_of(c->nodes[n].url, "GET", "/k/0", NULL, NULL) == 503, 20);
    for (int n = 0; n < 2; n++) {
        ck_assert_int_eq(node_stop(c, n), 0);
        c->nodes[n].options[0] = "--force-new-cluster";
        node_start(c, n);
        AWAIT(node_ready(&c->nodes[n]), 20);
        folders[n] = in_folder(c->folder, "backup-%d", n);
        back_up(c, n, folders[n]);
    }
    restore(to, text("%s %s", folders[0], folders[1]));
    for (int i = 0; i < COUNT; i++) {
        struct response r = get(to->nodes[i % 3].url, text("/k/%d", i));
        ck_assert_msg(r.status == (held[i] ? 200 : 404), "k/%d: %d", i, r.status);
        ck_assert(!held[i] || !strcmp(r.body, text("value %d", i)));
    }
    printf("%d of %d keys were held by the lost alone\n", lost, COUNT);
    ck_assert(lost > 0 && lost < COUNT / 4);
    cluster_stop(to);
    cluster_stop(c);
}
END_TEST

int main(void)
{
    const TTest *tests[] = {test_each_line_of_curl_prints_what_the_readme_says,
                            test_a_backup_brings_back_every_key_with_type_and_expiry,
                            test_of_two_backups_the_later_value_of_a_key_is_restored,
                            test_a_backup_that_cannot_be_whole_says_so,
                            test_three_of_five_lost_for_good_cost_no_key_that_another_held};
    return harness_run("readme", 120, tests, sizeof tests / sizeof *tests);
}
