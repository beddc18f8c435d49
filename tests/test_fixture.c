/*
 * test_fixture.c - a data directory that an earlier version wrote is read by this one, to the last
 * record. `make fixture` writes tests/data-VERSION.tar.gz again; those of released versions stay.
 *
 * It holds records of each kind, and a chain of views: a second node joined and left again, so that
 * the first can go on alone.
 */
#include "cluster.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { LONG_BYTES = 100000, VIEWS = 5 };

/* What is there, and what it is answered with. */
static const struct stored {
    const char *path, *query, *headers, *value; /* value NULL: long_value() */
} records[] = {
    {"/value", "", NULL, "plain"},
    {"/empty", "", NULL, ""},
    {"/type", "", "Content-Type: text/x; a=\"b\"", "typed"},
    {"/expires", "?ttl=30000d", "Content-Type: text/plain", "far away"},
    {"/keyed", "", "Idempotency-Key: a-key-of-a-client", "remembered"},
    {"/one", "?consistency=one", NULL, "of one owner"},
    {"/all", "?consistency=all", NULL, "of all owners"},
    {"/a/b%00%0A%FF", "", NULL, "strange name"},
    {"/long", "", NULL, NULL},
};
enum { RECORDS = sizeof records / sizeof *records };

static char *long_value(void)
{
    char *value = calloc(1, LONG_BYTES + 1);
    for (int i = 0; i < LONG_BYTES; i++)
        value[i] = (char)('a' + i % 26);
    return value;
}

static const char *value_of(const struct stored *s)
{
    return s->value ? s->value : long_value();
}

/* Keys, sizes, ETags, dates and expiries. */
static char *listing(const char *url)
{
    struct response r = http(url, "GET", "/", "Accept: application/json", NULL, 0);
    ck_assert_int_eq(r.status, 200);
    return r.body;
}

static void second_node_comes_and_goes(struct cluster *c)
{
    int i = cluster_add(c);
    node_start(c, i);
    cluster_await(c, 2, 30);
    char *path = text("/_nodes/%s", node_id(&c->nodes[i]));
    ck_assert_int_eq(status_of(c->nodes[0].url, "DELETE", path, NULL, NULL), 202);
    AWAIT(json_count(get(c->nodes[0].url, "/_status").body, "members") == 1, 60);
    node_kill(c, i);
    folder_remove(c->nodes[i].folder);
}

/* A data directory with all of it, in the cluster's folder as data.tar.gz, with its listing. */
static char *fixture_make(void)
{
    struct cluster *c =
        cluster_start(1, (const char *const[]){"--evict-after", "1", "--max-value", "128k", NULL});
    const char *url = c->nodes[0].url;
    for (int i = 0; i < RECORDS; i++) {
        const struct stored *s = &records[i];
        const char *value = value_of(s);
        int status =
            http(url, "PUT", text("%s%s", s->path, s->query), s->headers, value, strlen(value))
                .status;
        ck_assert_msg(status == 200 || status == 201, "%s: %d", s->path, status);
    }
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(status_of(url, "POST", "/counter?op=add&by=-7", NULL, NULL), 200);
    ck_assert_int_eq(put(url, "/deleted", "gone").status, 201);
    ck_assert_int_eq(status_of(url, "DELETE", "/deleted", NULL, NULL), 200);
    second_node_comes_and_goes(c);
    cluster_await(c, 1, 60);
    node_stop(c, 0);
    node_start(c, 0); /* its log has records of two runs */
    AWAIT(node_healthy(&c->nodes[0]), 20);
    AWAIT(put(url, "/value", "plain").status == 204, 20);
    cluster_await(c, 1, 20); /* the second may have been about to join again */
    char *keys = listing(url);
    ck_assert_int_eq(node_stop(c, 0), 0);
    file_write(in_folder(c->folder, "listing.json"), keys, strlen(keys));
    char *made = in_folder(harness_folder(), "made.tar.gz");
    struct output got = run(30,
                            "cd %s && cp -r --sparse=always %s data && tar --owner=0 --group=0 "
                            "-Scf - data listing.json | gzip -9 >%s",
                            c->folder, c->nodes[0].folder, made);
    ck_assert_msg(got.status == 0, "%s", got.text);
    return made;
}

static void fixture_read(const char *archive)
{
    struct cluster *c = cluster_new(NULL, false);
    cluster_add(c);
    struct output got = run(30, "cd %s && tar xzf %s && rm -rf %s && mv data %s", c->folder,
                            archive, c->nodes[0].folder, c->nodes[0].folder);
    ck_assert_msg(got.status == 0, "%s: %s", archive, got.text);
    const char *url = c->nodes[0].url;
    for (int run = 0; run < 2; run++) { /* the second time what it then wrote itself, too */
        node_start(c, 0);
        AWAIT(node_healthy(&c->nodes[0]), 20);
        for (int i = 0; i < RECORDS; i++) {
            const struct stored *s = &records[i];
            struct response r = get(url, s->path);
            ck_assert_msg(r.status == 200 && strcmp(r.body, value_of(s)) == 0, "%s: %d", s->path,
                          r.status);
            const char *type = s->headers ? strstr(s->headers, "Content-Type: ") : NULL;
            if (type)
                ck_assert_str_eq(header(&r, "Content-Type"), type + strlen("Content-Type: "));
            ck_assert_int_eq(header(&r, "Estoraje-Expires") != NULL,
                             strstr(s->query, "ttl") != NULL);
        }
        ck_assert_str_eq(get(url, "/counter").body, "-21");
        ck_assert_int_eq(get(url, "/deleted").status, 404);
        ck_assert_str_eq(listing(url), file_read(in_folder(c->folder, "listing.json"), NULL));
        ck_assert_double_ge(node_metric(&c->nodes[0], "estoraje_epoch"), VIEWS);
        ck_assert_int_eq(put(url, "/new", "new").status, 201);
        ck_assert_int_eq(status_of(url, "DELETE", "/new", NULL, NULL), 200);
        ck_assert_int_eq(node_stop(c, 0), 0);
    }
    cluster_stop(c);
}

START_TEST(test_what_this_version_writes_it_reads)
{
    fixture_read(fixture_make());
}
END_TEST

START_TEST(test_data_of_earlier_versions_is_read)
{
    glob_t found;
    ck_assert_int_eq(glob("tests/data-*.tar.gz", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++)
        fixture_read(realpath(found.gl_pathv[i], NULL));
}
END_TEST

/* Not a test: what `make fixture` does. */
START_TEST(test_fixture_is_made)
{
    struct output got = run(30, "cp %s tests/data-$(%s --version | sed 's/.* //').tar.gz",
                            fixture_make(), getenv("ESTORAJE_BIN"));
    ck_assert_msg(got.status == 0, "%s", got.text);
}
END_TEST

int main(void)
{
    const TTest *tests[] = {test_what_this_version_writes_it_reads,
                            test_data_of_earlier_versions_is_read};
    const TTest *making[] = {test_fixture_is_made};
    bool make = getenv("FIXTURE") != NULL;
    return harness_run("fixture", 240, make ? making : tests, make ? 1 : 2);
}
