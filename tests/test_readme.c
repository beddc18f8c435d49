/*
 * test_readme.c - what README.md says can be typed does what it says: its ten lines of curl, and the
 * backup of all keys, at three nodes behind nginx.
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

/* The lines that are indented by four blanks, without these. */
static char *code_lines(char *part)
{
    char *result = calloc(1, strlen(part) + 2), *to = result, *save;
    for (char *line = strtok_r(part, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        if (strncmp(line, "    ", 4) == 0)
            to += sprintf(to, "%s\n", line + 4);
    return result;
}

/* The backup's loop lists a thousand keys at a time: a smaller page makes it go on. */
static char *with_small_pages(char *script)
{
    char *limit = strstr(script, "limit=1000");
    REQUIRE(limit, "the backup names no limit");
    memcpy(limit, "limit=0007", strlen("limit=0007"));
    return script;
}

START_TEST(test_the_backup_of_the_readme_has_all_keys)
{
    enum { KEYS = 40 };
    static const char *const more[] = {"/photos/2026/a.jpg", "/photos/2026/b.jpg", "/a%20b",
                                       "/%C3%A9t%C3%A9", "/deep/er/and/deeper"};
    struct cluster *c = cluster_of_three();
    for (int i = 0; i < KEYS; i++)
        ck_assert_int_eq(put(c->nginx_url, text("/key-%d", i), text("value %d", i)).status, 201);
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        ck_assert_int_eq(put(c->nginx_url, more[i], more[i]).status, 201);
    ck_assert_int_eq(put(c->nginx_url, "/gone", "gone").status, 201);
    ck_assert_int_eq(status_of(c->nginx_url, "DELETE", "/gone", NULL, NULL), 200);
    char *part = readme_part("**Backup of all keys**", "\n", "\n**");
    char *script = in_folder(c->folder, "backup.sh");
    script_write(script, with_small_pages(replaced(code_lines(part), place(c))));
    struct output got = run(60, "cd %s && sh backup.sh", c->folder);
    REQUIRE(got.status == 0 && !*got.text, "status %d: %s", got.status, got.text);
    for (int i = 0; i < KEYS; i++) {
        char *value = file_read(in_folder(c->folder, "backup/key-%d", i), NULL);
        REQUIRE(value && strcmp(value, text("value %d", i)) == 0, "key-%d: %s", i, value);
    }
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        char *value = file_read(text("%s/backup%s", c->folder, more[i]), NULL);
        REQUIRE(value && strcmp(value, more[i]) == 0, "%s: %s", more[i], value);
    }
    struct output count = run(10, "find %s/backup -type f | wc -l", c->folder);
    ck_assert_int_eq(atoi(count.text), KEYS + (int)(sizeof more / sizeof *more));
    cluster_stop(c);
}
END_TEST

int main(void)
{
    const TTest *tests[] = {test_each_line_of_curl_prints_what_the_readme_says,
                            test_the_backup_of_the_readme_has_all_keys};
    harness_begin("readme");
    Suite *suite = suite_create("readme");
    TCase *lines = tcase_create("lines");
    tcase_set_timeout(lines, 120);
    suite_add_tcase(suite, lines);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (harness_wants(tests[i]))
            tcase_add_test(lines, tests[i]);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    return harness_end(runner);
}
