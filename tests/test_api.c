/*
 * test_api.c - every row of the contract over HTTP: on one node, on three in turn, and through
 * nginx.
 *
 * A test case is a feature (CK_RUN_CASE=ranges build/test_api runs that one). Most tests are loops
 * over the three targets: _i says which one. The keys of a test are its own, so that all of them
 * share two clusters, which stay up while the program runs and are looked after between test cases.
 */
#include "cluster.h"

#include <ctype.h>
#include <math.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* ================================ Helpers ================================ */

enum { ALONE, THREE, NGINX, TARGETS };

static struct cluster *alone, *three;

/* Unchecked: runs in the program itself, before the tests of a case. A node that died takes its
 * cluster with it. */
static void shared_setup(void)
{
    struct cluster **all[] = {&alone, &three};
    for (int i = 0; i < 2; i++) {
        bool well = *all[i] != NULL;
        for (int n = 0; well && n < (*all[i])->count; n++)
            well = node_healthy(&(*all[i])->nodes[n]);
        if (well)
            continue;
        if (*all[i])
            printf("a shared cluster is not well, and is started again; see %s\n",
                   (*all[i])->folder);
        for (int n = 0; *all[i] && n < (*all[i])->count; n++)
            kill((*all[i])->nodes[n].pid, SIGKILL);
        if (*all[i])
            cluster_nginx_stop(*all[i]);
        *all[i] = cluster_start(i ? 3 : 1, NULL);
        if (i)
            cluster_nginx(*all[i]);
    }
}

static void shared_end(struct cluster *c)
{
    bool well = c != NULL;
    for (int i = 0; c && i < c->count; i++)
        well &= node_stop(c, i) == 0;
    if (c)
        cluster_nginx_stop(c);
    if (well)
        folder_remove(c->folder);
    else if (c)
        printf("not all nodes of a shared cluster stopped as asked: %s\n", c->folder);
}

/* The address to ask next: each request of a test on three nodes goes to another one. */
static const char *at(int target)
{
    static int turn;
    if (target == ALONE)
        return alone->nodes[0].url;
    return target == THREE ? three->nodes[__atomic_fetch_add(&turn, 1, __ATOMIC_SEQ_CST) % 3].url
                           : three->nginx_url;
}

static int port_of(int target)
{
    return atoi(strrchr(at(target), ':') + 1);
}

/* A path of this test alone. */
static char *own(const char *name)
{
    return text("/t%d/%s", (int)getpid(), name);
}

static struct response ask(int target, int status, const char *method, const char *path,
                           const char *headers, const char *body)
{
    const char *url = at(target);
    struct response r = http(url, method, path, headers, body, body ? strlen(body) : 0);
    ck_assert_msg(r.status == status, "%s %s%s %s: %d, not %d: %.200s%s", method, url, path,
                  headers ? headers : "", r.status, status, r.status ? r.body : "", r.error);
    return r;
}

static void has_value(int target, const char *path, const char *value)
{
    struct response r = ask(target, 200, "GET", path, NULL, NULL);
    ck_assert_msg(body_is(&r, value, strlen(value)), "%s is %.100s, not %.100s", path, r.body,
                  value);
}

static void has_none(int target, const char *path)
{
    struct response r = ask(target, 404, "GET", path, NULL, NULL);
    ck_assert_uint_eq(r.body_bytes, 0);
}

static void header_is(const struct response *r, const char *name, const char *value)
{
    const char *got = header(r, name);
    ck_assert_msg(got && !strcmp(got, value), "%s: %s, not %s", name, got ? got : "(none)", value);
}

/* An error says in one line of text what is wrong. */
static void tells_in_one_line(const struct response *r)
{
    const char *type = header(r, "Content-Type");
    ck_assert_msg(type && !strncmp(type, "text/plain", 10), "%d has type %s: %.300s", r->status,
                  type ? type : "(none)", r->body);
    size_t line = strcspn(r->body, "\n");
    ck_assert_msg(line > 5 && line + 1 >= r->body_bytes, "%d says: %.200s", r->status, r->body);
}

/* 16 hex digits, a dash, 16 more, in quotes. */
static const char *etag_of(const struct response *r)
{
    const char *etag = header(r, "ETag");
    ck_assert_msg(etag != NULL, "%d without an ETag", r->status);
    ck_assert_uint_eq(strlen(etag), 35);
    for (int i = 0; i < 35; i++)
        ck_assert_msg(i == 0 || i == 34 ? etag[i] == '"'
                      : i == 17         ? etag[i] == '-'
                                        : isxdigit((unsigned char)etag[i]),
                      "%s", etag);
    return etag;
}

static const char *put_etag(int target, const char *path, const char *value)
{
    struct response r = put(at(target), path, value);
    ck_assert_msg(r.status == 201 || r.status == 204, "PUT %s: %d %s%s", path, r.status, r.error,
                  r.body);
    return etag_of(&r);
}

static char *if_match(const char *etag)
{
    return text("If-Match: %s", etag);
}

static char *if_none_match(const char *etag)
{
    return text("If-None-Match: %s", etag);
}

/* One request of a table, and what must come. */
struct row {
    const char *method, *path, *headers, *body;
    int status;
    int nginx; /* if nginx says so itself, in its own words; -1: not through nginx */
};

/* Paths that begin with "/" are taken as they are, the others are the test's own. */
static struct response row_ask(int target, const struct row *w)
{
    const char *path = *w->path == '/' ? w->path : own(w->path);
    bool own_words = target == NGINX && w->nginx;
    struct response r =
        ask(target, own_words ? w->nginx : w->status, w->method, path, w->headers, w->body);
    if (r.status >= 400 && !own_words && strcmp(w->method, "HEAD") && r.status != 404)
        tells_in_one_line(&r);
    return r;
}

static void rows_ask(int target, const struct row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (target != NGINX || rows[i].nginx >= 0)
            row_ask(target, &rows[i]);
}

/* Many threads that do the same: f(context, index) in each. */
struct crowd {
    void (*f)(void *context, int index);
    void *context;
    int index;
    pthread_t thread;
};

static void *crowd_run(void *argument)
{
    struct crowd *c = argument;
    c->f(c->context, c->index);
    return NULL;
}

static void crowd(int count, void (*f)(void *context, int index), void *context)
{
    struct crowd *all = calloc((size_t)count, sizeof *all);
    for (int i = 0; i < count; i++) {
        all[i] = (struct crowd){f, context, i, 0};
        ck_assert_int_eq(pthread_create(&all[i].thread, NULL, crowd_run, &all[i]), 0);
    }
    for (int i = 0; i < count; i++)
        pthread_join(all[i].thread, NULL);
}

static char *letters(size_t count)
{
    char *s = malloc(count + 1);
    for (size_t i = 0; i < count; i++)
        s[i] = (char)('a' + (i * 7 + i / 26) % 26);
    s[count] = 0;
    return s;
}

static char *percent_decode(const char *s, size_t length, size_t *bytes)
{
    char *decoded = malloc(length + 1);
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned value = (unsigned char)s[i];
        if (s[i] == '%') {
            ck_assert_int_eq(sscanf(s + i + 1, "%2x", &value), 1);
            i += 2;
        }
        decoded[n++] = (char)value;
    }
    decoded[n] = 0;
    if (bytes)
        *bytes = n;
    return decoded;
}

/* ================================ keys ================================ */

START_TEST(test_two_spellings_of_a_key_are_one_key)
{
    put_etag(_i, own("abc~"), "1");
    has_value(_i, own("%61%62c%7e"), "1");
    has_value(_i, own("a%62%63%7E"), "1");
    has_value(_i, text("/%%74%s", own("abc~") + 2), "1");
    ask(_i, 200, "DELETE", own("ab%63~"), NULL, NULL);
    has_none(_i, own("abc~"));
}
END_TEST

START_TEST(test_slashes_and_dots_are_kept_as_they_are)
{
    static const char *const names[] = {"a/b",   "a//b",      "a/../b", "a/./b", "a/b/c.jpg",
                                        "a/..b", "a/.",       "a/..",   "a/...", "a+b",
                                        "a&b=c", "a:b;c,d@e", "a%20b"};
    enum { COUNT = sizeof names / sizeof *names };
    for (int i = 0; i < COUNT; i++)
        ask(_i, 201, "PUT", own(names[i]), NULL, names[i]);
    for (int i = 0; i < COUNT; i++)
        has_value(_i, own(names[i]), names[i]);
}
END_TEST

START_TEST(test_a_key_may_have_any_byte)
{
    for (int byte = _i == NGINX ? 1 : 0; byte < 256; byte++)
        ask(_i, 201, "PUT", own(text("byte-%%%02x-", byte)), NULL, text("%d", byte));
    for (int byte = _i == NGINX ? 1 : 0; byte < 256; byte++)
        has_value(_i, own(text("byte-%%%02X-", byte)), text("%d", byte));
}
END_TEST

START_TEST(test_nothing_is_cut_at_a_zero_byte)
{
    for (int target = ALONE; target <= THREE; target++) {
        ask(target, 201, "PUT", own("zero%00one"), NULL, "1");
        ask(target, 201, "PUT", own("zero%00two"), NULL, "2");
        has_none(target, own("zero"));
        has_value(target, own("zero%00one"), "1");
    }
    ask(NGINX, 400, "GET", own("zero%00one"), NULL, NULL);
}
END_TEST

START_TEST(test_keys_have_at_most_1024_bytes)
{
    size_t used = strlen(own("")) - 1;
    char *longest = letters(1024 - used), *encoded = calloc(1, 3 * 1024 + 1);
    for (size_t i = 0; i < 1024 - used; i++)
        sprintf(encoded + 3 * i, "%%%02x", (unsigned char)longest[i]);
    ask(_i, 201, "PUT", own(longest), NULL, "long");
    has_value(_i, own(encoded), "long");
    struct response r = ask(_i, 414, "PUT", own(text("%sx", longest)), NULL, "longer");
    tells_in_one_line(&r);
    ask(_i, 414, "GET", own(text("%s%%78", encoded)), NULL, NULL);
    ask(_i, 414, "GET", own(letters(4000)), NULL, NULL);
}
END_TEST

START_TEST(test_paths_that_begin_with_an_underscore_are_reserved)
{
    static const struct row rows[] = {
        {"GET", "/_", NULL, NULL, 404, 403},         {"PUT", "/_x", NULL, "v", 404, 403},
        {"GET", "/_x/y", NULL, NULL, 404, 403},      {"GET", "/%5fx", NULL, NULL, 404, 403},
        {"PUT", "/%5F%78", NULL, "v", 404, 403},     {"DELETE", "/_healthy", NULL, NULL, 404, 403},
        {"GET", "/_statuses", NULL, NULL, 404, 403},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
}
END_TEST

START_TEST(test_an_underscore_further_in_is_a_key)
{
    char *keys[] = {text("/%s", own("x") + 1), text("//_mail/%d", (int)getpid()),
                    text("/./_mail/%d", (int)getpid()), text("/x_/%d", (int)getpid()),
                    own("_x/_y")};
    for (int i = 0; i < 5; i++) {
        put_etag(_i, keys[i], keys[i]);
        has_value(_i, keys[i], keys[i]);
        ask(_i, 200, "DELETE", keys[i], NULL, NULL);
    }
}
END_TEST

START_TEST(test_bad_percent_encoding_is_rejected)
{
    static const struct row rows[] = {
        {"GET", "a%zz", NULL, NULL, 400, 400},    {"PUT", "a%4", NULL, "v", 400, 400},
        {"GET", "a%", NULL, NULL, 400, 400},      {"DELETE", "%%41", NULL, NULL, 400, 400},
        {"GET", "a%u1234", NULL, NULL, 400, 400},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
}
END_TEST

/* ================================ values ================================ */

START_TEST(test_put_answers_whether_it_created_or_replaced)
{
    struct response made = ask(_i, 201, "PUT", own("k"), NULL, "one");
    ck_assert_uint_eq(made.body_bytes, 0);
    struct response replaced = ask(_i, 204, "PUT", own("k"), NULL, "two");
    ck_assert_uint_eq(replaced.body_bytes, 0);
    ck_assert_str_gt(etag_of(&replaced), etag_of(&made));
    has_value(_i, own("k"), "two");
}
END_TEST

START_TEST(test_post_stores_too_and_always_answers_200)
{
    for (int i = 0; i < 2; i++) {
        struct response r = ask(_i, 200, "POST", own("k"), NULL, i ? "two" : "one");
        ck_assert_uint_eq(r.body_bytes, 0);
        etag_of(&r);
        has_value(_i, own("k"), i ? "two" : "one");
    }
}
END_TEST

START_TEST(test_get_returns_all_about_a_value)
{
    time_t before = time(NULL);
    const char *etag = put_etag(_i, own("k"), "value");
    struct response r = ask(_i, 200, "GET", own("k"), NULL, NULL);
    ck_assert(body_is(&r, "value", 5));
    header_is(&r, "ETag", etag);
    header_is(&r, "Content-Type", "application/octet-stream");
    header_is(&r, "Content-Length", "5");
    header_is(&r, "Accept-Ranges", "bytes");
    header_is(&r, "X-Content-Type-Options", "nosniff");
    header_is(&r, "Content-Security-Policy", "sandbox");
    ck_assert_ptr_null(header(&r, "Content-Encoding"));
    ck_assert_ptr_null(header(&r, "Estoraje-Expires"));
    struct tm t = {0};
    const char *modified = header(&r, "Last-Modified");
    ck_assert_ptr_nonnull(modified);
    const char *end = strptime(modified, "%a, %d %b %Y %H:%M:%S GMT", &t);
    ck_assert_msg(end && !*end, "%s", modified);
    ck_assert_int_ge(timegm(&t), before - 2);
    ck_assert_int_le(timegm(&t), time(NULL) + 2);
}
END_TEST

START_TEST(test_head_is_get_without_the_body)
{
    put_etag(_i, own("k"), "value");
    struct response g = ask(_i, 200, "GET", own("k"), NULL, NULL);
    struct response h = ask(_i, 200, "HEAD", own("k"), NULL, NULL);
    static const char *const same[] = {"ETag",          "Content-Type",  "Content-Length",
                                       "Last-Modified", "Accept-Ranges", "X-Content-Type-Options"};
    for (int i = 0; i < 6; i++)
        header_is(&h, same[i], header(&g, same[i]));
    ck_assert_uint_eq(h.body_bytes, 0);
    ask(_i, 404, "HEAD", own("none"), NULL, NULL);
}
END_TEST

START_TEST(test_delete_answers_whether_there_was_one)
{
    put_etag(_i, own("k"), "value");
    struct response r = ask(_i, 200, "DELETE", own("k"), NULL, NULL);
    ck_assert_uint_eq(r.body_bytes, 0);
    has_none(_i, own("k"));
    for (int i = 0; i < 2; i++) {
        r = ask(_i, 404, "DELETE", i ? own("never") : own("k"), NULL, NULL);
        ck_assert_uint_eq(r.body_bytes, 0);
    }
    ask(_i, 201, "PUT", own("k"), NULL, "again");
    has_value(_i, own("k"), "again");
}
END_TEST

START_TEST(test_what_is_not_there_is_404_with_an_empty_body)
{
    has_none(_i, own("none"));
    has_none(_i, own("a/b/c"));
    has_none(_i, "/favicon.ico");
}
END_TEST

START_TEST(test_answers_are_never_compressed)
{
    char *value = letters(20000);
    ask(_i, 201, "PUT", own("k"), "Content-Type: text/plain", value);
    for (int i = 0; i < 2; i++) {
        struct response r =
            ask(_i, 200, "GET", own(i ? "" : "k"), "Accept-Encoding: gzip, br", NULL);
        ck_assert_ptr_null(header(&r, "Content-Encoding"));
        ck_assert(i || body_is(&r, value, 20000));
    }
}
END_TEST

START_TEST(test_content_types_are_given_back)
{
    static const char *const types[] = {"text/html; charset=utf-8",
                                        "application/json",
                                        "image/svg+xml",
                                        "application/x-www-form-urlencoded",
                                        "multipart/form-data; boundary=x",
                                        "x/y;a=\"b c\""};
    for (int i = 0; i < 6; i++) {
        char *type = text("Content-Type: %s", types[i]);
        http(at(_i), i % 2 ? "PUT" : "POST", own("k"), type, "a=b&c=%20\r\n--x--", 16);
        struct response r = ask(_i, 200, "GET", own("k"), NULL, NULL);
        header_is(&r, "Content-Type", types[i]);
        ck_assert(body_is(&r, "a=b&c=%20\r\n--x--", 16));
    }
    put_etag(_i, own("k"), "without");
    struct response r = ask(_i, 200, "GET", own("k"), NULL, NULL);
    header_is(&r, "Content-Type", "application/octet-stream");
}
END_TEST

static void check_value_of(int target, const char *path, size_t count)
{
    char *value = malloc(count + 1);
    unsigned x = (unsigned)count + 1;
    for (size_t i = 0; i < count; i++)
        value[i] = (char)((x = x * 1103515245U + 12345U) >> 16);
    struct response r = http(at(target), "PUT", path, NULL, value, count);
    ck_assert_msg(r.status == 201 || r.status == 204, "PUT of %zu bytes: %d %s%s", count, r.status,
                  r.body, r.error);
    /* A disk that took longer than a lease for a large value has cost the lease: it comes back. */
    for (int i = 0; target != ALONE && i < 3; i++)
        AWAIT(node_healthy(&three->nodes[i]), 10);
    struct response g = ask(target, 200, "GET", path, NULL, NULL);
    ck_assert_msg(body_is(&g, value, count), "%zu bytes came back as %zu, or changed", count,
                  g.body_bytes);
    response_free(&g);
    response_free(&r);
    free(value);
}

START_TEST(test_values_of_all_sizes_come_back_as_they_were)
{
    static const size_t sizes[] = {0,     1,     2,      100,           255,     256,
                                   4095,  4096,  4097,   16383,         32768,   65535,
                                   65536, 65537, 262144, (1 << 20) - 1, 1 << 20, 5 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_value_of(_i, own(i % 2 ? "k" : text("k%zu", i)), sizes[i]);
}
END_TEST

START_TEST(test_a_value_of_64_mib_is_kept)
{
    http_timeout_s = 120;
    check_value_of(_i, own("large"), 64 << 20);
    struct response r = http(at(_i), "GET", own("large"), "Range: bytes=-3", NULL, 0);
    ck_assert_int_eq(r.status, 206);
    header_is(&r, "Content-Range",
              text("bytes %d-%d/%d", (64 << 20) - 3, (64 << 20) - 1, 64 << 20));
    ask(_i, 200, "DELETE", own("large"), NULL, NULL);
}
END_TEST

START_TEST(test_chunked_bodies_are_kept)
{
    struct response r = ask(_i, 201, "PUT", own("k"), "Transfer-Encoding: chunked", "in chunks");
    etag_of(&r);
    has_value(_i, own("k"), "in chunks");
    int fd = raw_connect(port_of(_i));
    raw_print(fd, "PUT %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
              own("pieces"));
    for (int i = 0; i < 5; i++)
        raw_print(fd, "%x;ignored=1\r\npiece%d\r\n", 6, i);
    raw_print(fd, "0\r\n\r\n");
    r = raw_receive(fd, 10);
    ck_assert_int_eq(r.status, 201);
    has_value(_i, own("pieces"), "piece0piece1piece2piece3piece4");
    ask(_i, 201, "PUT", own("empty"), "Transfer-Encoding: chunked", "");
    has_value(_i, own("empty"), "");
}
END_TEST

START_TEST(test_later_etags_sort_higher)
{
    char *last = strdup("");
    for (int i = 0; i < 20; i++) {
        const char *etag = put_etag(_i, own("k"), text("%d", i % 3));
        ck_assert_str_gt(etag, last);
        last = strdup(etag);
        if (i % 5 == 4)
            ask(_i, 200, "DELETE", own("k"), NULL, NULL);
    }
}
END_TEST

START_TEST(test_every_node_reads_what_any_wrote)
{
    for (int i = 0; i < 90; i++) {
        char *path = own(text("%d", i));
        ck_assert_int_eq(put(three->nodes[i % 3].url, path, path).status, 201);
        for (int n = 0; n < 3; n++) {
            struct response r = get(three->nodes[n].url, path);
            ck_assert(r.status == 200 && body_is(&r, path, strlen(path)));
        }
        ck_assert_int_eq(status_of(three->nodes[(i + 1) % 3].url, "DELETE", path, NULL, NULL), 200);
        for (int n = 0; n < 3; n++)
            ck_assert_int_eq(status_of(three->nodes[n].url, "GET", path, NULL, NULL), 404);
    }
}
END_TEST

/* ================================ conditions ================================ */

START_TEST(test_if_match_lets_only_the_current_etag_write)
{
    static const char *const methods[] = {"PUT", "POST", "DELETE"};
    for (int m = 0; m < 3; m++) {
        char *path = own(methods[m]), *old = strdup(put_etag(_i, path, "1")),
             *current = strdup(put_etag(_i, path, "2"));
        const char *body = m < 2 ? "3" : NULL;
        struct response r = ask(_i, 412, methods[m], path, if_match(old), body);
        header_is(&r, "ETag", current);
        tells_in_one_line(&r);
        ask(_i, 412, methods[m], path, if_match("\"other\""), body);
        ask(_i, 412, methods[m], path, if_match(text("W/%s", current)), body);
        has_value(_i, path, "2");
        ask(_i, m ? 200 : 204, methods[m], path, if_match(current), body);
        if (m < 2)
            has_value(_i, path, "3");
        else
            has_none(_i, path);
    }
}
END_TEST

START_TEST(test_of_a_list_of_etags_only_the_current_one_counts)
{
    char *etag = strdup(put_etag(_i, own("k"), "one"));
    char *list = text("If-Match: \"x\", %s ,W/\"y\" ", etag);
    ask(_i, 412, "PUT", own("k"), "If-Match: \"x\", \"y\"", "two");
    ask(_i, 412, "PUT", own("k"), text("If-Match: W/%s", etag), "two");
    ask(_i, 204, "PUT", own("k"), list, "two");
    ask(_i, 412, "PUT", own("k"), list, "three");
    struct response r = ask(_i, 200, "GET", own("k"), NULL, NULL);
    /* What strtol takes for a number is no ETag. */
    const char *current = etag_of(&r);
    ask(_i, 412, "PUT", own("k"), text("If-Match: \"+%s", current + 2), "three");
    ask(_i, 412, "PUT", own("k"), text("If-Match: \" %s", current + 2), "three");
    ask(_i, 304, "GET", own("k"), text("If-None-Match: W/%s", current), NULL);
    double start = now();
    ask(_i, 304, "GET", text("%s?wait=1s", own("k")), text("If-None-Match: W/%s, \"x\"", current),
        NULL);
    ck_assert_double_ge(now(), start + 0.9);
}
END_TEST

START_TEST(test_if_match_star_needs_a_value)
{
    struct response r = ask(_i, 412, "PUT", own("k"), "If-Match: *", "1");
    ck_assert_ptr_null(header(&r, "ETag"));
    ask(_i, 412, "POST", own("k"), "If-Match: *", "1");
    ask(_i, 412, "DELETE", own("k"), "If-Match: *", NULL);
    ask(_i, 412, "PUT", own("k"), if_match("\"0000000000000001-0000000000000001\""), "1");
    has_none(_i, own("k"));
    put_etag(_i, own("k"), "1");
    ask(_i, 204, "PUT", own("k"), "If-Match: *", "2");
    ask(_i, 200, "POST", own("k"), "If-Match: *", "3");
    ask(_i, 200, "DELETE", own("k"), "If-Match: *", NULL);
}
END_TEST

START_TEST(test_if_none_match_star_only_creates)
{
    struct response made = ask(_i, 201, "PUT", own("k"), "If-None-Match: *", "1");
    struct response r = ask(_i, 412, "PUT", own("k"), "If-None-Match: *", "2");
    header_is(&r, "ETag", etag_of(&made));
    tells_in_one_line(&r);
    ask(_i, 412, "POST", own("k"), "If-None-Match: *", "2");
    has_value(_i, own("k"), "1");
    ask(_i, 200, "DELETE", own("k"), NULL, NULL);
    ask(_i, 200, "POST", own("k"), "If-None-Match: *", "3");
    has_value(_i, own("k"), "3");
}
END_TEST

START_TEST(test_if_none_match_on_get_saves_the_body)
{
    char *etag = strdup(put_etag(_i, own("k"), "value"));
    static const char *const methods[] = {"GET", "HEAD"};
    for (int m = 0; m < 2; m++) {
        char *same[] = {etag, text("W/%s", etag), text("\"x\", %s", etag), strdup("*")};
        for (int i = 0; i < 4; i++) {
            struct response r = ask(_i, 304, methods[m], own("k"), if_none_match(same[i]), NULL);
            header_is(&r, "ETag", etag);
            ck_assert_uint_eq(r.body_bytes, 0);
        }
        ask(_i, 200, methods[m], own("k"), "If-None-Match: \"other\"", NULL);
        ask(_i, 404, methods[m], own("none"), if_none_match(etag), NULL);
    }
}
END_TEST

START_TEST(test_if_match_on_get_and_head_is_for_the_value_that_it_names)
{
    char *old = strdup(put_etag(_i, own("k"), "0123")),
         *now_etag = strdup(put_etag(_i, own("k"), "4567"));
    const struct row met[] = {
        {"GET", "k", if_match(now_etag), NULL, 200, 0},
        {"HEAD", "k", if_match(now_etag), NULL, 200, 0},
        {"GET", "k", "If-Match: *", NULL, 200, 0},
        {"GET", "k", text("If-Match: %s, \"x\", %s", old, now_etag), NULL, 200, 0},
        {"GET", "k", text("If-Match: %s\nRange: bytes=0-1", now_etag), NULL, 206, 0},
        {"GET", "k", text("If-Match: %s\nIf-None-Match: %s", now_etag, now_etag), NULL, 304, 0},
        {"GET", "k", text("If-Match: %s\nIf-None-Match: %s", now_etag, old), NULL, 200, 0},
    };
    rows_ask(_i, met, sizeof met / sizeof *met);
    const struct row not_met[] = {
        {"GET", "k", if_match(old), NULL, 412, 0},
        {"HEAD", "k", if_match(old), NULL, 412, 0},
        {"GET", "k", text("If-Match: %s\nRange: bytes=2-3", old), NULL, 412, 0},
        {"GET", "k", text("If-Match: %s\nIf-None-Match: %s", old, now_etag), NULL, 412, 0},
        {"GET", "k", text("If-Match: W/%s", now_etag), NULL, 412, 0},
        {"GET", "k", "If-Match: \"else\"", NULL, 412, 0},
    };
    for (size_t i = 0; i < sizeof not_met / sizeof *not_met; i++) {
        struct response r = row_ask(_i, &not_met[i]);
        header_is(&r, "ETag", now_etag);
    }
    ask(_i, 412, "GET", own("none"), "If-Match: *", NULL);
    ask(_i, 412, "GET", own("none"), if_match(old), NULL);
}
END_TEST

START_TEST(test_malformed_conditions_are_rejected)
{
    static const struct row rows[] = {
        {"GET", "k", "If-Match:", NULL, 400, -1},
        {"GET", "k", "If-Match: abc", NULL, 400, 0},
        {"HEAD", "k", "If-Match: \"a\" \"b\"", NULL, 400, 0},
        {"PUT", "k", "If-Match:", "1", 400, -1},
        {"PUT", "k", "If-None-Match:", "1", 400, -1},
        {"PUT", "k", "If-Match: abc", "1", 400, 0},
        {"DELETE", "k", "If-Match: \"abc", NULL, 400, 0},
        {"POST", "k", "If-None-Match: abc", "1", 400, 0},
        {"GET", "k", "If-None-Match: abc\"", NULL, 400, 0},
        {"GET", "k", "If-None-Match:", NULL, 400, -1},
        {"PUT", "k", "If-Match: \"a\" \"b\"", "1", 400, 0},
        {"PUT", "k", "If-Match: **", "1", 400, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    has_none(_i, own("k"));
}
END_TEST

struct race {
    int target;
    char *path;
    int won, lost, other;
    char *bad;
};

static void race_create(void *context, int index)
{
    struct race *r = context;
    const char *url = r->target == THREE ? three->nodes[index % 3].url : at(r->target);
    int status = status_of(url, "PUT", r->path, "If-None-Match: *", text("%d", index));
    __atomic_add_fetch(status == 201   ? &r->won
                       : status == 412 ? &r->lost
                                       : &r->other,
                       1, __ATOMIC_SEQ_CST);
}

START_TEST(test_one_of_many_creators_wins)
{
    for (int round = 0; round < 5; round++) {
        struct race r = {.target = _i, .path = own(text("%d", round))};
        crowd(12, race_create, &r);
        ck_assert_int_eq(r.other, 0);
        ck_assert_int_eq(r.won, 1);
    }
}
END_TEST

enum { SWAPPERS = 6, SWAPS = 12 };

/* Adds one to a number with nothing but GET and If-Match, until it has done so SWAPS times. */
static void race_swap(void *context, int index)
{
    struct race *r = context;
    double end = now() + 60 * slowness();
    for (int done = 0; done < SWAPS && now() < end;) {
        const char *url = r->target == THREE ? three->nodes[index % 3].url : at(r->target);
        struct response g = get(url, r->path);
        if (g.status != 200 || !header(&g, "ETag")) {
            __atomic_add_fetch(&r->other, 1, __ATOMIC_SEQ_CST);
            r->bad = text("GET: %d %s%s", g.status, g.body, g.error);
            return;
        }
        int status = status_of(url, "PUT", r->path, if_match(header(&g, "ETag")),
                               text("%d", atoi(g.body) + 1));
        if (status != 204 && status != 412) {
            __atomic_add_fetch(&r->other, 1, __ATOMIC_SEQ_CST);
            r->bad = text("PUT: %d", status);
        }
        done += status == 204;
        __atomic_add_fetch(status == 204 ? &r->won : &r->lost, 1, __ATOMIC_SEQ_CST);
    }
}

START_TEST(test_no_update_is_lost_to_another)
{
    struct race r = {.target = _i, .path = own("n")};
    put_etag(_i, r.path, "0");
    crowd(SWAPPERS, race_swap, &r);
    ck_assert_msg(r.other == 0, "%s", r.bad);
    has_value(_i, r.path, text("%d", SWAPPERS * SWAPS));
}
END_TEST

/* ================================ ranges ================================ */

START_TEST(test_ranges_are_cut_out)
{
    static const struct {
        const char *range;
        int status;
        const char *value, *content_range;
    } rows[] = {
        {"bytes=0-3", 206, "0123", "bytes 0-3/10"},
        {"bytes=4-", 206, "456789", "bytes 4-9/10"},
        {"bytes=-3", 206, "789", "bytes 7-9/10"},
        {"bytes=0-0", 206, "0", "bytes 0-0/10"},
        {"bytes=9-9", 206, "9", "bytes 9-9/10"},
        {"bytes=5-100", 206, "56789", "bytes 5-9/10"},
        {"bytes=-100", 206, "0123456789", "bytes 0-9/10"},
        {"bytes=0-9", 206, "0123456789", "bytes 0-9/10"},
        {"Bytes=0-3", 206, "0123", "bytes 0-3/10"},
        {"bytes=10-", 416, NULL, "bytes */10"},
        {"bytes=10-12", 416, NULL, "bytes */10"},
        {"bytes=-0", 416, NULL, "bytes */10"},
        {"lines=1-2", 200, "0123456789", NULL},
        {"bytes=5-2", 200, "0123456789", NULL},
        {"bytes=99999999999-1", 200, "0123456789", NULL},
    };
    put_etag(_i, own("k"), "0123456789");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct response r =
            ask(_i, rows[i].status, "GET", own("k"), text("Range: %s", rows[i].range), NULL);
        if (rows[i].content_range)
            header_is(&r, "Content-Range", rows[i].content_range);
        if (rows[i].value)
            ck_assert_msg(body_is(&r, rows[i].value, strlen(rows[i].value)), "%s: %s",
                          rows[i].range, r.body);
        else
            tells_in_one_line(&r);
        if (r.status != 416)
            etag_of(&r);
    }
}
END_TEST

/* Above what comes with the first answer; and its checksum is sent once only. */
START_TEST(test_a_range_of_a_large_value_is_its_part)
{
    enum { SIZE = 300000 };
    char *value = letters(SIZE);
    for (int i = 0; i < SIZE; i++)
        value[i] = (char)('a' + i % 23);
    static const struct {
        const char *range;
        int from, count;
    } rows[] = {{"0-0", 0, 1},        {"299999-", SIZE - 1, 1},
                {"-7", SIZE - 7, 7},  {"1000-250999", 1000, 250000},
                {"-400000", 0, SIZE}, {"5-400000", 5, SIZE - 5},
                {"300000-", 0, 0},    {"5000000000-", 0, 0}};
    const char *etag = put_etag(_i, own("k"), value);
    for (size_t i = 0; i < 2 * sizeof rows / sizeof *rows; i++) {
        int r = (int)(i / 2);
        struct response a = ask(_i, rows[r].count ? 206 : 416, "GET", own("k"),
                                text("Range: bytes=%s", rows[r].range), NULL);
        if (rows[r].count)
            ck_assert_msg(body_is(&a, value + rows[r].from, (size_t)rows[r].count), "%s",
                          rows[r].range);
        if (rows[r].count)
            ck_assert_str_eq(
                header(&a, "Content-Range"),
                text("bytes %d-%d/%d", rows[r].from, rows[r].from + rows[r].count - 1, SIZE));
        a = ask(_i, 200, "HEAD", own("k"), NULL, NULL);
        ck_assert_str_eq(header(&a, "Content-Length"), text("%d", SIZE));
        ck_assert_str_eq(header(&a, "ETag"), etag);
        ask(_i, 304, "GET", own("k"), text("If-None-Match: %s", etag), NULL);
        a = ask(_i, 200, "GET", own("k"), "Range: bytes=1-2\nIf-Range: \"other\"", NULL);
        ck_assert(body_is(&a, value, SIZE));
        a = ask(_i, 200, "GET", own("k"), "If-None-Match: \"other\"", NULL);
        ck_assert(body_is(&a, value, SIZE));
    }
    free(value);
}
END_TEST

START_TEST(test_an_empty_value_has_no_range)
{
    put_etag(_i, own("k"), "");
    struct response r = ask(_i, 416, "GET", own("k"), "Range: bytes=0-", NULL);
    header_is(&r, "Content-Range", "bytes */0");
    ask(_i, 404, "GET", own("none"), "Range: bytes=0-", NULL);
}
END_TEST

START_TEST(test_pieces_of_a_large_value_make_the_whole)
{
    enum { SIZE = 3 << 20, PIECE = 700001 };
    char *value = letters(SIZE);
    put_etag(_i, own("k"), value);
    for (int from = 0; from < SIZE; from += PIECE) {
        struct response r =
            ask(_i, 206, "GET", own("k"), text("Range: bytes=%d-%d", from, from + PIECE - 1), NULL);
        ck_assert(body_is(&r, value + from, (size_t)(from + PIECE < SIZE ? PIECE : SIZE - from)));
    }
}
END_TEST

/* ================================ ttl ================================ */

START_TEST(test_a_key_is_gone_after_its_time_and_not_before)
{
    double start = now();
    struct response r = ask(_i, 201, "PUT", text("%s?ttl=1500ms", own("k")), NULL, "short");
    r = http(at(_i), "GET", own("k"), NULL, NULL, 0);
    if (now() < start + 1.4) {
        ck_assert_int_eq(r.status, 200);
        ck_assert_ptr_nonnull(header(&r, "Estoraje-Expires"));
    }
    double seen = start;
    for (;;) {
        double asked = now();
        r = http(at(_i), "GET", own("k"), NULL, NULL, 0);
        if (r.status != 200)
            break;
        seen = asked;
        ck_assert_double_lt(now(), start + 10 * slowness());
        pause_ms(10);
    }
    ck_assert_int_eq(r.status, 404);
    ck_assert_double_ge(now(), start + 1.4);
    ck_assert_msg(seen < start + 3 * slowness(), "it was there for %.2f s", seen - start);
    for (int i = 0; i < 6; i++)
        has_none(_i, own("k"));
    ask(_i, 201, "PUT", own("k"), NULL, "for good");
}
END_TEST

START_TEST(test_a_time_to_live_runs_from_when_the_body_was_there)
{
    struct tm utc = {0};
    int fd = raw_connect(port_of(_i));
    raw_print(fd, "PUT %s?ttl=1h HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nsl", own("k"));
    pause_ms(2500); /* dates have seconds */
    time_t then = time(NULL);
    raw_print(fd, "ow");
    ck_assert_int_eq(raw_receive(fd, 10).status, 201);
    close(fd);
    struct response r = ask(_i, 200, "GET", own("k"), NULL, NULL);
    ck_assert_ptr_nonnull(strptime(header(&r, "Estoraje-Expires"), "%a, %d %b %Y %T GMT", &utc));
    ck_assert_int_ge(timegm(&utc), then + 3600);
}
END_TEST

START_TEST(test_times_to_live_have_units)
{
    static const char *const good[] = {"60000ms", "60s", "2m", "1h", "3d", "60"};
    for (int i = 0; i < 6; i++) {
        ask(_i, 201, "PUT", text("%s?ttl=%s", own(good[i]), good[i]), NULL, good[i]);
        struct response r = ask(_i, 200, "GET", own(good[i]), NULL, NULL);
        ck_assert_ptr_nonnull(header(&r, "Estoraje-Expires"));
    }
    static const struct row bad[] = {
        {"PUT", "k?ttl=", NULL, "v", 400, 0},
        {"PUT", "k?ttl=x", NULL, "v", 400, 0},
        {"PUT", "k?ttl=-5s", NULL, "v", 400, 0},
        {"PUT", "k?ttl=5x", NULL, "v", 400, 0},
        {"PUT", "k?ttl=s", NULL, "v", 400, 0},
        {"PUT", "k?ttl=99999999999999999999d", NULL, "v", 400, 0},
        {"PUT", "k?ttl=5%20s", NULL, "v", 400, 0},
    };
    rows_ask(_i, bad, sizeof bad / sizeof *bad);
    has_none(_i, own("k"));
}
END_TEST

START_TEST(test_a_write_without_a_time_to_live_stays)
{
    ask(_i, 201, "PUT", text("%s?ttl=400ms", own("k")), NULL, "short");
    ask(_i, 201, "PUT", text("%s?ttl=400ms", own("other")), NULL, "short");
    http(at(_i), "PUT", own("k"), NULL, "long", 4);
    struct response r = ask(_i, 200, "GET", own("k"), NULL, NULL);
    ck_assert_ptr_null(header(&r, "Estoraje-Expires"));
    AWAIT(status_of(at(_i), "GET", own("other"), NULL, NULL) == 404, 5);
    has_value(_i, own("k"), "long");
}
END_TEST

START_TEST(test_an_expired_key_counts_as_none_for_conditions)
{
    ask(_i, 201, "PUT", text("%s?ttl=300ms", own("lock")), "If-None-Match: *", "me");
    double start = now();
    AWAIT(status_of(at(_i), "PUT", text("%s?ttl=300ms", own("lock")), "If-None-Match: *", "you") ==
              201,
          5);
    ck_assert_double_ge(now() - start, 0.2);
    AWAIT(status_of(at(_i), "DELETE", own("lock"), NULL, NULL) == 404, 5);
    ask(_i, 412, "PUT", own("lock"), "If-Match: *", "me");
}
END_TEST

START_TEST(test_a_lock_is_acquired_renewed_and_freed)
{
    char *lock = text("%s?ttl=20s", own("lock"));
    struct response mine = ask(_i, 201, "PUT", lock, "If-None-Match: *", "me");
    ask(_i, 412, "PUT", lock, "If-None-Match: *", "you");
    struct response renewed = ask(_i, 204, "PUT", lock, if_match(etag_of(&mine)), "me");
    ck_assert_str_gt(etag_of(&renewed), etag_of(&mine));
    ask(_i, 412, "DELETE", own("lock"), if_match(etag_of(&mine)), NULL);
    ask(_i, 200, "DELETE", own("lock"), if_match(etag_of(&renewed)), NULL);
    struct response yours = ask(_i, 201, "PUT", lock, "If-None-Match: *", "you");
    ck_assert_str_gt(etag_of(&yours), etag_of(&renewed));
}
END_TEST

/* ================================ wait ================================ */

struct waiter {
    int target;
    const char *path, *headers;
    struct response answer;
    double answered;
    pthread_t thread;
};

static void *waiter_run(void *argument)
{
    struct waiter *w = argument;
    w->answer = http(at(w->target), "GET", w->path, w->headers, NULL, 0);
    w->answered = now();
    return NULL;
}

static struct waiter *waiter_start(int target, const char *path, const char *etag)
{
    struct waiter *w = calloc(1, sizeof *w);
    w->target = target;
    w->path = path;
    w->headers = etag ? if_none_match(etag) : NULL;
    ck_assert_int_eq(pthread_create(&w->thread, NULL, waiter_run, w), 0);
    return w;
}

static struct response waiter_end(struct waiter *w)
{
    pthread_join(w->thread, NULL);
    return w->answer;
}

/* Long enough for a request to have come to wait; if not, the test proves less, but does not
 * fail. */
static void let_them_wait(void)
{
    pause_ms(150);
}

START_TEST(test_a_waiting_get_is_answered_by_the_change)
{
    char *etag = strdup(put_etag(_i, own("k"), "old"));
    for (int i = 0; i < 3; i++) { /* with three nodes each one changes and waits in turn */
        struct waiter *w = waiter_start(_i, text("%s?wait=20s", own("k")), etag);
        let_them_wait();
        double start = now();
        char *value = text("new %d", i);
        etag = strdup(put_etag(_i, own("k"), value));
        struct response r = waiter_end(w);
        ck_assert_int_eq(r.status, 200);
        ck_assert(body_is(&r, value, strlen(value)));
        header_is(&r, "ETag", etag);
        ck_assert_double_lt(w->answered - start, 5 * slowness());
    }
}
END_TEST

START_TEST(test_a_get_can_wait_for_a_key_to_come)
{
    struct waiter *w = waiter_start(_i, text("%s?wait=20s", own("k")), NULL);
    let_them_wait();
    double start = now();
    put_etag(_i, own("k"), "here");
    struct response r = waiter_end(w);
    ck_assert_int_eq(r.status, 200);
    ck_assert(body_is(&r, "here", 4));
    ck_assert_double_lt(w->answered - start, 5 * slowness());
}
END_TEST

START_TEST(test_a_waiting_get_is_answered_by_delete_and_expiry)
{
    for (int i = 0; i < 2; i++) {
        char *path = own(i ? "expires" : "deleted");
        struct response made = ask(_i, 201, "PUT", i ? text("%s?ttl=1s", path) : path, NULL, "v");
        struct waiter *w = waiter_start(_i, text("%s?wait=20s", path), etag_of(&made));
        let_them_wait();
        if (!i)
            ask(_i, 200, "DELETE", path, NULL, NULL);
        struct response r = waiter_end(w);
        ck_assert_int_eq(r.status, 404);
        ck_assert_double_lt(r.seconds, 10 * slowness());
    }
}
END_TEST

START_TEST(test_a_wait_ends_when_its_time_is_over)
{
    char *etag = strdup(put_etag(_i, own("k"), "v"));
    struct response r =
        ask(_i, 304, "GET", text("%s?wait=700ms", own("k")), if_none_match(etag), NULL);
    header_is(&r, "ETag", etag);
    ck_assert_double_ge(r.seconds, 0.65);
    ck_assert_double_lt(r.seconds, 5 * slowness());
    r = ask(_i, 404, "GET", text("%s?wait=700ms", own("none")), NULL, NULL);
    ck_assert_double_ge(r.seconds, 0.65);
}
END_TEST

START_TEST(test_no_wait_where_there_is_nothing_to_wait_for)
{
    char *old = strdup(put_etag(_i, own("k"), "1"));
    put_etag(_i, own("k"), "2");
    struct response r =
        ask(_i, 200, "GET", text("%s?wait=20s", own("k")), if_none_match(old), NULL);
    ck_assert_double_lt(r.seconds, 5 * slowness());
    r = ask(_i, 200, "GET", text("%s?wait=20s", own("k")), NULL, NULL);
    ck_assert_double_lt(r.seconds, 5 * slowness());
}
END_TEST

START_TEST(test_nothing_but_a_change_wakes_a_waiter)
{
    char *etag = strdup(put_etag(_i, own("k"), "v"));
    struct waiter *w = waiter_start(_i, text("%s?wait=2s", own("k")), etag);
    for (int i = 0; i < 20; i++) {
        put_etag(_i, own("other"), "v");
        ask(_i, 412, "PUT", own("k"), "If-None-Match: *", "x");
        has_value(_i, own("k"), "v");
        ask(_i, 412, "DELETE", own("k"), "If-Match: \"x\"", NULL);
    }
    struct response r = waiter_end(w);
    ck_assert_int_eq(r.status, 304);
    ck_assert_double_ge(r.seconds, 1.95);
}
END_TEST

START_TEST(test_bad_waits_are_rejected)
{
    static const struct row rows[] = {
        {"GET", "k?wait=6m", NULL, NULL, 400, 0}, {"GET", "k?wait=301s", NULL, NULL, 400, 0},
        {"GET", "k?wait=x", NULL, NULL, 400, 0},  {"GET", "k?wait=", NULL, NULL, 400, 0},
        {"PUT", "k?wait=5s", NULL, "v", 400, 0},  {"DELETE", "k?wait=5s", NULL, NULL, 400, 0},
        {"POST", "k?wait=5s", NULL, "v", 400, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    has_none(_i, own("k"));
}
END_TEST

static void raise_open_files(void)
{
    struct rlimit l;
    getrlimit(RLIMIT_NOFILE, &l);
    l.rlim_cur = l.rlim_max;
    setrlimit(RLIMIT_NOFILE, &l);
}

START_TEST(test_thousands_wait_at_once_and_others_are_served)
{
    enum { WAITERS = 2000 };
    raise_open_files();
    int *fds = calloc(WAITERS, sizeof *fds);
    for (int i = 0; i < WAITERS; i++) {
        fds[i] = raw_connect(three->nodes[i % 3].port);
        raw_print(fds[i], "GET %s?wait=60s HTTP/1.1\r\nHost: x\r\n\r\n",
                  own(i % 100 ? "k" : "never"));
    }
    for (int i = 0; i < 30; i++)
        put_etag(THREE, own("served"), text("%d", i));
    put_etag(THREE, own("k"), "now");
    double end = now() + 30 * slowness();
    for (int i = 0; i < WAITERS; i++) {
        if (i % 100) {
            struct response r = raw_receive(fds[i], end - now());
            ck_assert_msg(r.status == 200 && body_is(&r, "now", 3), "waiter %d: %d %s", i, r.status,
                          r.error);
        } else {
            ck_assert(!raw_closed(fds[i], 0));
        }
        close(fds[i]);
    }
    has_value(THREE, own("served"), "29");
}
END_TEST

START_TEST(test_a_waiting_client_that_leaves_is_noticed)
{
    enum { WAITERS = 50 };
    const struct node *n = &alone->nodes[0];
    double before = node_metric(n, "estoraje_http_requests_in_flight");
    int fds[WAITERS];
    for (int i = 0; i < WAITERS; i++) {
        fds[i] = raw_connect(n->port);
        raw_print(fds[i], "GET %s?wait=5m HTTP/1.1\r\nHost: x\r\n\r\n", own("never"));
    }
    AWAIT(node_metric(n, "estoraje_http_requests_in_flight") >= before + WAITERS, 10);
    for (int i = 0; i < WAITERS; i++)
        close(fds[i]);
    AWAIT(node_metric(n, "estoraje_http_requests_in_flight") <= before + 5, 20);
}
END_TEST

/* ================================ counters ================================ */

static long long add(int target, const char *path, const char *by)
{
    struct response r = ask(target, 200, "POST", text("%s?op=add&by=%s", path, by), NULL, NULL);
    char *end;
    long long number = strtoll(r.body, &end, 10);
    ck_assert_msg(end != r.body && (!*end || !strcmp(end, "\n")), "the new number is: %s", r.body);
    return number;
}

START_TEST(test_counters_count)
{
    ck_assert_int_eq(add(_i, own("n"), "5"), 5);
    ck_assert_int_eq(add(_i, own("n"), "-3"), 2);
    ck_assert_int_eq(add(_i, own("n"), "0"), 2);
    ck_assert_int_eq(add(_i, own("n"), "-7"), -5);
    ck_assert_int_eq(atoll(ask(_i, 200, "GET", own("n"), NULL, NULL).body), -5);
    put_etag(_i, own("n"), "41");
    ck_assert_int_eq(add(_i, own("n"), "1"), 42);
    ask(_i, 200, "DELETE", own("n"), NULL, NULL);
    ck_assert_int_eq(add(_i, own("n"), "1"), 1);
}
END_TEST

START_TEST(test_counters_reject_what_is_no_64_bit_integer)
{
    static const char *const bad[] = {"", "x", "1.5", "12x", "9223372036854775808", "1 2"};
    for (int i = 0; i < 6; i++) {
        put_etag(_i, own("n"), bad[i]);
        struct response r = ask(_i, 409, "POST", text("%s?op=add&by=1", own("n")), NULL, NULL);
        tells_in_one_line(&r);
        has_value(_i, own("n"), bad[i]);
    }
    put_etag(_i, own("n"), "9223372036854775807");
    ask(_i, 409, "POST", text("%s?op=add&by=1", own("n")), NULL, NULL);
    has_value(_i, own("n"), "9223372036854775807");
    ck_assert_int_eq(add(_i, own("n"), "-9223372036854775808"), -1);
    put_etag(_i, own("n"), "-9223372036854775808");
    ask(_i, 409, "POST", text("%s?op=add&by=-1", own("n")), NULL, NULL);
}
END_TEST

START_TEST(test_bad_counts_are_rejected)
{
    static const struct row rows[] = {
        {"POST", "n?op=add&by=", NULL, NULL, 400, 0},
        {"POST", "n?op=add&by=x", NULL, NULL, 400, 0},
        {"POST", "n?op=add&by=1.5", NULL, NULL, 400, 0},
        {"POST", "n?op=mul&by=2", NULL, NULL, 400, 0},
        {"POST", "n?op=", NULL, NULL, 400, 0},
        {"POST", "n?op=add&by=9223372036854775808", NULL, NULL, 400, 0},
        {"PUT", "n?op=add&by=1", NULL, "", 400, 0},
        {"GET", "n?op=add&by=1", NULL, NULL, 400, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    has_none(_i, own("n"));
}
END_TEST

static void race_add(void *context, int index)
{
    struct race *r = context;
    for (int i = 0; i < 40; i++) {
        const char *url = r->target == THREE ? three->nodes[(index + i) % 3].url : at(r->target);
        int status = status_of(url, "POST", text("%s?op=add&by=1", r->path), NULL, NULL);
        __atomic_add_fetch(status == 200 ? &r->won : &r->other, 1, __ATOMIC_SEQ_CST);
    }
}

START_TEST(test_no_count_is_lost_or_made_twice)
{
    struct race r = {.target = _i, .path = own("n")};
    crowd(8, race_add, &r);
    ck_assert_int_eq(r.other, 0);
    ck_assert_int_eq(r.won, 8 * 40);
    ck_assert_int_eq(add(_i, r.path, "0"), 8 * 40);
}
END_TEST

static void race_add_with_body(void *context, int index)
{
    struct race *r = context;
    const char *url = three->nodes[index % 3].url;
    for (int i = 0; i < 40; i++) {
        int status = status_of(url, "POST", text("%s?op=add&by=1", r->path), NULL, "not needed");
        __atomic_add_fetch(status == 200 ? &r->won : &r->other, 1, __ATOMIC_SEQ_CST);
    }
}

/* While nodes duel for the key. */
START_TEST(test_a_body_that_a_count_does_not_need_is_no_damaged_frame)
{
    struct race r = {.path = own("n")};
    crowd(9, race_add_with_body, &r);
    for (int i = 0; i < 3; i++)
        ck_assert_ptr_null(strstr(file_read(three->nodes[i].log, NULL), "a damaged frame"));
    ck_assert_int_eq(r.won, 9 * 40);
}
END_TEST

/* ================================ listings ================================ */

/* The lines of a listing, decoded, each with the next address's path or NULL. */
struct lines {
    char **keys;
    int count;
    char *next;
};

static char *link_next(const struct response *r)
{
    const char *link = header(r, "Link");
    if (!link)
        return NULL;
    ck_assert_msg(*link == '<' && strstr(link, ">; rel=\"next\""), "Link: %s", link);
    ck_assert(link[1] == '/' && link[2] != '/');
    return strndup(link + 1, strcspn(link + 1, ">"));
}

static struct lines list(int target, const char *path)
{
    struct response r = ask(target, 200, "GET", path, NULL, NULL);
    struct lines l = {.next = link_next(&r)};
    l.keys = calloc(r.body_bytes + 1, sizeof *l.keys);
    for (char *line = r.body, *end; (end = strchr(line, '\n')); line = end + 1) {
        for (char *c = line; c < end; c++)
            ck_assert_msg(*c > ' ' && *c < 127,
                          "a byte of a key that should be percent-encoded: %d", *c);
        l.keys[l.count++] = percent_decode(line, (size_t)(end - line), NULL);
    }
    return l;
}

/* Follows the links: no page may be longer than that. */
static struct lines list_all(int target, const char *path, int page)
{
    struct lines all = {.keys = calloc(200000, sizeof *all.keys)};
    char *next = strdup(path);
    for (int pages = 0; next; pages++) {
        ck_assert_int_lt(pages, 1000);
        struct lines l = list(target, next);
        ck_assert_int_le(l.count, page);
        ck_assert_int_lt(all.count + l.count, 200000);
        memcpy(all.keys + all.count, l.keys, (size_t)l.count * sizeof *l.keys);
        all.count += l.count;
        next = l.next;
    }
    return all;
}

static void lines_are(const struct lines *l, const char *const *names, int count)
{
    for (int i = 0; i < count && i < l->count; i++)
        ck_assert_str_eq(l->keys[i], own(names[i]) + 1);
    ck_assert_int_eq(l->count, count);
}

/* In byte order. */
static const char *const listed[] = {"l/ ",   "l/%",  "l/A", "l/a",       "l/a/b",
                                     "l/a/c", "l/aa", "l/b", "l/\xc3\xa9"};
enum { LISTED = sizeof listed / sizeof *listed };

static void put_listed(int target)
{
    static const char *const others[] = {"k", "l", "l0", "m/a"};
    static const char *const names[] = {"l/%c3%a9", "l/aa",  "l/a",     "l/b",  "l/A",
                                        "l/a/c",    "l/%25", "l/a%2fb", "l/%20"};
    for (int i = 0; i < LISTED; i++)
        put_etag(target, own(names[i]), names[i]);
    for (int i = 0; i < 4; i++)
        put_etag(target, own(others[i]), "");
}

START_TEST(test_a_path_that_ends_in_a_slash_lists_the_keys_below)
{
    put_listed(_i);
    struct lines l = list(_i, own("l/"));
    lines_are(&l, listed, LISTED);
    ck_assert_ptr_null(l.next);
    l = list(_i, own("l/a/"));
    lines_are(&l, listed + 4, 2);
    l = list(_i, own("nothing/"));
    ck_assert_int_eq(l.count, 0);
}
END_TEST

START_TEST(test_a_prefix_need_not_end_in_a_slash)
{
    put_listed(_i);
    struct lines l = list(_i, text("/?prefix=%s", own("l/a") + 1));
    lines_are(&l, listed + 3, 4);
    l = list(_i, text("/?prefix=%%74%s", own("l%2F%c3") + 2));
    lines_are(&l, listed + 8, 1);
    l = list(_i, text("/?prefix=%s&limit=2", own("l/a") + 1));
    lines_are(&l, listed + 3, 2);
    l = list_all(_i, text("/?prefix=%s&limit=2", own("l/a") + 1), 2);
    lines_are(&l, listed + 3, 4);
}
END_TEST

START_TEST(test_pages_make_the_whole_list)
{
    put_listed(_i);
    for (int limit = 1; limit <= LISTED + 1; limit++) {
        struct lines l = list_all(_i, text("%s?limit=%d", own("l/"), limit), limit);
        lines_are(&l, listed, LISTED);
    }
    struct lines l = list(_i, text("%s?after=%s", own("l/"), own("l/a/b") + 1));
    lines_are(&l, listed + 5, LISTED - 5);
    l = list(_i, text("%s?after=%s&limit=1", own("l/"), own("l/a%2fb0") + 1));
    lines_are(&l, listed + 5, 1);
}
END_TEST

START_TEST(test_the_next_page_is_on_the_same_host_whatever_the_key)
{
    put_etag(_i, text("/%s", own("double/1")), "");
    put_etag(_i, text("/%s", own("double/2")), "");
    struct lines l = list_all(_i, text("/%s?limit=1", own("double/")), 1);
    ck_assert_int_eq(l.count, 2);
}
END_TEST

START_TEST(test_the_next_page_is_encoded_however_the_path_was_spelt)
{
    put_etag(_i, own("q%22%3e/1"), "");
    put_etag(_i, own("q%22%3e/2"), "");
    struct lines l = list_all(_i, own("q\">/?limit=1"), 1);
    ck_assert_int_eq(l.count, 2);
    struct response r = ask(_i, 200, "GET", own("q\">/?limit=1"), "Accept: application/json", NULL);
    ck_assert_ptr_nonnull(strstr(r.body, text("\"next\":\"%s", own("q%22%3E/?limit=1&after="))));
}
END_TEST

/* Its name for the next page is over 4 KB long. */
START_TEST(test_a_list_of_long_keys_has_a_next_page_and_puts_no_node_aside)
{
    char d[6 * 170 + 1], a[6 * 300 + 1];
    for (int i = 0; i < 300; i++)
        memcpy(a + 6 * i, "%D1%84", 7);
    memcpy(d, a, sizeof d), d[6 * 170] = 0;
    char *key = own(text("%s/%s", d, a));
    put_etag(_i, text("%s1", key), "v");
    put_etag(_i, text("%s2", key), "v");
    for (int i = 0; i < 4; i++) {
        struct response r =
            get(at(_i), text("/?limit=1&prefix=%s&after=%s", key + 1, text("%s0", key) + 1));
        ck_assert_int_eq(r.status, 200);
        const char *link = header(&r, "Link");
        ck_assert_uint_gt(strlen(link), 4096);
        char *next = strndup(link + 1, strcspn(link, ">") - 1);
        r = get(at(_i), next);
        ck_assert_str_eq(r.body, text("%s2\n", key + 1));
        has_none(_i, own("none"));
    }
}
END_TEST

START_TEST(test_what_is_deleted_or_expired_is_not_listed)
{
    put_etag(_i, own("l/a"), "");
    put_etag(_i, own("l/b"), "");
    ask(_i, 201, "PUT", text("%s?ttl=300ms", own("l/c")), NULL, "");
    ask(_i, 200, "DELETE", own("l/a"), NULL, NULL);
    AWAIT(status_of(at(_i), "GET", own("l/c"), NULL, NULL) == 404, 5);
    struct lines l = list(_i, own("l/"));
    static const char *const rest[] = {"l/b"};
    lines_are(&l, rest, 1);
}
END_TEST

enum { LONG_LIST = 2300 };

static void list_put(void *context, int index)
{
    for (int i = index; i < LONG_LIST; i += 8)
        put(at(*(int *)context), own(text("l/%05d", i * 7919 % LONG_LIST)), "");
}

START_TEST(test_a_long_list_comes_in_pages_of_a_thousand)
{
    enum { COUNT = LONG_LIST };
    crowd(8, list_put, &_i);
    ck_assert_int_eq(list(_i, own("l/")).count, 1000);
    struct lines l = list_all(_i, own("l/"), 1000);
    ck_assert_int_eq(l.count, COUNT);
    for (int i = 0; i < COUNT; i++)
        ck_assert_str_eq(l.keys[i], own(text("l/%05d", i)) + 1);
    ck_assert_int_eq(list(_i, text("%s?limit=100000", own("l/"))).count, COUNT);
    char *prefix = own("l/");
    l = list(_i, text("/?prefix=%s&limit=%d", prefix + 1, COUNT));
    ck_assert_int_eq(l.count, COUNT);
}
END_TEST

static void list_put_long_names(void *context, int index)
{
    char rest[900] = "";
    memset(rest, 'x', sizeof rest - 1);
    for (int i = index; i < LONG_LIST; i += 8)
        put(at(*(int *)context), own(text("l/%05d%s", i, rest)), "");
}

START_TEST(test_many_listings_at_once_hold_up_nobody)
{
    enum { LISTINGS = 40 };
    int target = THREE, fds[LISTINGS];
    crowd(8, list_put_long_names, &target);
    put_etag(THREE, own("served"), "soon");
    for (int i = 0; i < LISTINGS; i++) {
        fds[i] = raw_connect(three->nodes[0].port);
        raw_print(fds[i], "GET %s?limit=100000 HTTP/1.1\r\nHost: x\r\n\r\n", own("l/"));
    }
    for (int i = 0; i < 20; i++) {
        double asked = now();
        has_value(THREE, own("served"), "soon");
        ck_assert_double_lt(now() - asked, 0.7 * slowness());
    }
    for (int i = 0; i < LISTINGS; i++) {
        struct response r = raw_receive(fds[i], 30 * slowness());
        ck_assert_msg(r.status == 200, "listing %d: %d %s", i, r.status, r.error);
        ck_assert_uint_gt(r.body_bytes, LONG_LIST * 900);
        close(fds[i]);
    }
}
END_TEST

START_TEST(test_json_has_more_of_each_key)
{
    put_etag(_i, own("j/a"), "12345");
    ask(_i, 201, "PUT", text("%s?ttl=1h", own("j/b\"%22")), NULL, "");
    const char *etag = put_etag(_i, own("j/c"), "1");
    struct response r =
        ask(_i, 200, "GET", text("%s?limit=2", own("j/")), "Accept: application/json", NULL);
    ck_assert(!strncmp(header(&r, "Content-Type"), "application/json", 16));
    ck_assert_int_eq(json_count(r.body, "keys"), 2);
    ck_assert_str_eq(json_string(r.body, "keys.0.key"), own("j/a") + 1);
    ck_assert_double_eq(json_number(r.body, "keys.0.size"), 5);
    ck_assert_uint_ge(strlen(json_string(r.body, "keys.0.etag")), 33);
    ck_assert_ptr_nonnull(json_at(r.body, "keys.0.modified"));
    char *expires = json_string(r.body, "keys.0.expires");
    ck_assert_msg(!*expires || !strcmp(expires, "null"), "expires: %s", expires);
    ck_assert_msg(strlen(json_string(r.body, "keys.1.expires")) > 4, "%s", r.body);
    char *next = json_string(r.body, "next");
    ck_assert_msg(*next && strcmp(next, "null"), "next: %s", r.body);
    r = ask(_i, 200, "GET", link_next(&r), "Accept: application/json", NULL);
    ck_assert_int_eq(json_count(r.body, "keys"), 1);
    ck_assert_ptr_nonnull(strstr(json_string(r.body, "keys.0.etag"), strndup(etag + 1, 33)));
    next = json_string(r.body, "next");
    ck_assert_msg(!*next || !strcmp(next, "null"), "next: %s", r.body);
    r = ask(_i, 200, "GET", own("nothing/"), "Accept: application/json", NULL);
    ck_assert_int_eq(json_count(r.body, "keys"), 0);
}
END_TEST

START_TEST(test_restic_lists_names_and_sizes)
{
    static const char *const restic = "Accept: application/vnd.x.restic.rest.v2";
    put_etag(_i, own("repo/data/aa"), "12345");
    put_etag(_i, own("repo/data/bb"), "");
    put_etag(_i, own("repo/data/bb/deeper"), "1");
    put_etag(_i, own("repo/database"), "1");
    struct response r = ask(_i, 200, "GET", own("repo/data/"), restic, NULL);
    ck_assert_str_eq(header(&r, "Content-Type"), "application/vnd.x.restic.rest.v2");
    ck_assert_int_eq(json_count(r.body, ""), 2);
    ck_assert_str_eq(json_string(r.body, "0.name"), "aa");
    ck_assert_double_eq(json_number(r.body, "0.size"), 5);
    ck_assert_str_eq(json_string(r.body, "1.name"), "bb");
    ck_assert_double_eq(json_number(r.body, "1.size"), 0);
    r = ask(_i, 200, "GET", own("repo/locks/"), restic, NULL);
    ck_assert_int_eq(json_count(r.body, ""), 0);
    r = ask(_i, 200, "POST", text("%s?create=true", own("repo/")), NULL, NULL);
    ck_assert_uint_eq(r.body_bytes, 0);
    ck_assert_int_eq(list(_i, own("repo/")).count, 4);
}
END_TEST

START_TEST(test_bad_listings_are_rejected)
{
    static const struct row rows[] = {
        {"GET", "l/?limit=x", NULL, NULL, 400, 0},
        {"GET", "l/?limit=-1", NULL, NULL, 400, 0},
        {"GET", "l/?limit=100001", NULL, NULL, 400, 0},
        {"GET", "l/?limit=", NULL, NULL, 400, 0},
        {"GET", "l/?after=%zz", NULL, NULL, 400, 0},
        {"GET", "/?prefix=%", NULL, NULL, 400, 0},
        {"PUT", "l/", NULL, "v", 405, 0},
        {"DELETE", "l/", NULL, NULL, 405, 0},
        {"PUT", "/", NULL, "v", 405, 0},
        {"POST", "l/", NULL, "v", 405, 0},
        {"POST", "l/?create=x", NULL, "v", 400, 0},
        {"POST", "l/?limit=1", NULL, "v", 400, 0},
        {"GET", "l/?create=true", NULL, NULL, 400, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
}
END_TEST

/* ================================ consistency ================================ */

START_TEST(test_each_consistency_reads_and_writes)
{
    ask(_i, 201, "PUT", text("%s?consistency=quorum", own("k")), NULL, "quorum");
    has_value(_i, text("%s?consistency=quorum", own("k")), "quorum");
    ask(_i, 204, "PUT", text("%s?consistency=all", own("k")), NULL, "all");
    for (int i = 0; i < 3; i++)
        has_value(_i, text("%s?consistency=one", own("k")), "all");
    has_value(_i, own("k"), "all");
    struct response r = ask(_i, 200, "PUT", text("%s?consistency=one", own("k")), NULL, "one");
    ck_assert_uint_eq(r.body_bytes, 0);
    r = ask(_i, 200, "PUT", text("%s?consistency=one", own("new")), NULL, "one");
    for (int i = 0; i < 2; i++)
        AWAIT((r = get(at(_i), own(i ? "new" : "k"))).status == 200 && body_is(&r, "one", 3), 10);
    static const char *const consistencies[] = {"quorum", "all", "one"};
    for (int i = 0; i < 3; i++) {
        r = get(at(_i), text("%s?consistency=%s&limit=1", own(""), consistencies[i]));
        ck_assert_str_eq(r.body, text("%s\n", own("k") + 1));
        char *next = strndup(header(&r, "Link") + 1, strcspn(header(&r, "Link"), ">") - 1);
        ck_assert_int_eq(strstr(next, "consistency=one") != NULL, i == 2);
        ck_assert_str_eq(get(at(_i), next).body, text("%s\n", own("new") + 1));
    }
    ask(_i, 200, "DELETE", text("%s?consistency=one", own("k")), NULL, NULL);
    AWAIT(status_of(at(_i), "GET", own("k"), NULL, NULL) == 404, 10);
    ask(_i, 201, "PUT", text("%s?consistency=all", own("k")), "If-None-Match: *", "again");
    ask(_i, 412, "PUT", text("%s?consistency=all", own("k")), "If-None-Match: *", "again");
}
END_TEST

START_TEST(test_consistency_one_has_no_conditions_and_no_counters)
{
    static const struct row rows[] = {
        {"PUT", "k?consistency=one", "If-None-Match: *", "v", 400, 0},
        {"PUT", "k?consistency=one", "If-Match: *", "v", 400, 0},
        {"DELETE", "k?consistency=one", "If-Match: \"x\"", NULL, 400, 0},
        {"POST", "k?consistency=one&op=add&by=1", NULL, NULL, 400, 0},
        {"PUT", "k?consistency=two", NULL, "v", 400, 0},
        {"GET", "k?consistency=", NULL, NULL, 400, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    has_none(_i, own("k"));
}
END_TEST

/* ================================ retries ================================ */

static double unix_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static char *idempotency(double ago, const char *rest, bool retry)
{
    return text("Idempotency-Key: %.3f-%d-%s%s", unix_time() - ago, (int)getpid(), rest,
                retry ? "\nEstoraje-Retry: 1" : "");
}

static char *as_retry(const char *headers)
{
    return text("%s\nEstoraje-Retry: 1", headers);
}

START_TEST(test_a_repeated_put_gets_the_first_answer_and_is_not_applied_again)
{
    char *key = idempotency(0, "a", false);
    struct response first = ask(_i, 201, "PUT", own("k"), key, "mine");
    put_etag(_i, own("k"), "yours");
    for (int i = 0; i < 3; i++) {
        struct response r = ask(_i, 201, "PUT", own("k"), as_retry(key), "mine");
        header_is(&r, "ETag", etag_of(&first));
        has_value(_i, own("k"), "yours");
    }
}
END_TEST

START_TEST(test_a_repeated_count_counts_once)
{
    char *key = idempotency(0, "a", false), *path = text("%s?op=add&by=1", own("n"));
    add(_i, own("n"), "10");
    ck_assert_int_eq(atoi(ask(_i, 200, "POST", path, key, NULL).body), 11);
    add(_i, own("n"), "100");
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(atoi(ask(_i, 200, "POST", path, as_retry(key), NULL).body), 11);
    ck_assert_int_eq(add(_i, own("n"), "0"), 111);
}
END_TEST

START_TEST(test_a_repeated_delete_or_condition_gets_the_first_answer)
{
    put_etag(_i, own("d"), "v");
    char *key = idempotency(0, "d", false);
    ask(_i, 200, "DELETE", own("d"), key, NULL);
    ask(_i, 200, "DELETE", own("d"), as_retry(key), NULL);
    ask(_i, 201, "PUT", own("d"), NULL, "again");
    ask(_i, 200, "DELETE", own("d"), as_retry(key), NULL);
    has_value(_i, own("d"), "again");
    key = text("%s\nIf-None-Match: *", idempotency(0, "c", false));
    ask(_i, 201, "PUT", own("c"), key, "v");
    ask(_i, 201, "PUT", own("c"), as_retry(key), "v");
    char *etag = strdup(put_etag(_i, own("m"), "1"));
    key = text("%s\nIf-Match: %s", idempotency(0, "m", false), etag);
    ask(_i, 204, "PUT", own("m"), key, "2");
    ask(_i, 204, "PUT", own("m"), as_retry(key), "2");
}
END_TEST

START_TEST(test_a_repeat_of_a_rejected_write_gets_the_same_rejection)
{
    char *keys[3];
    for (int i = 0; i < 3; i++)
        keys[i] = idempotency(0, text("r%d", i), false);
    char *create = text("%s\nIf-None-Match: *", keys[0]);
    put_etag(_i, own("c"), "there");
    ask(_i, 412, "PUT", own("c"), create, "mine");
    ask(_i, 404, "DELETE", own("d"), keys[1], NULL);
    ask(_i, 409, "POST", text("%s?op=add", own("c")), keys[2], "");
    ask(_i, 200, "DELETE", own("c"), NULL, NULL);
    put_etag(_i, own("d"), "late");
    ask(_i, 412, "PUT", own("c"), as_retry(create), "mine");
    ask(_i, 404, "DELETE", own("d"), as_retry(keys[1]), NULL);
    ask(_i, 409, "POST", text("%s?op=add", own("c")), as_retry(keys[2]), "");
    has_none(_i, own("c"));
    has_value(_i, own("d"), "late");
}
END_TEST

START_TEST(test_a_repeat_that_was_rejected_stays_rejected)
{
    put_etag(_i, own("c"), "there");
    char *key = text("%s\nIf-None-Match: *", idempotency(0, "c", true));
    ask(_i, 412, "PUT", own("c"), key, "v");
    ask(_i, 200, "DELETE", own("c"), NULL, NULL);
    ask(_i, 412, "PUT", own("c"), key, "v");
    has_none(_i, own("c"));
    key = idempotency(0, "d", true);
    ask(_i, 404, "DELETE", own("d"), key, NULL);
    put_etag(_i, own("d"), "v");
    ask(_i, 404, "DELETE", own("d"), key, NULL);
    has_value(_i, own("d"), "v");
}
END_TEST

START_TEST(test_the_same_key_on_another_request_is_another_write)
{
    char *key = idempotency(0, "a", true);
    ask(_i, 201, "PUT", own("k"), key, "1");
    ask(_i, 204, "PUT", own("k"), key, "2");
    has_value(_i, own("k"), "2");
    ask(_i, 204, "PUT", own("k"), text("%s\nContent-Type: text/plain", key), "2");
    ask(_i, 200, "POST", own("k"), key, "1");
    has_value(_i, own("k"), "1");
    ask(_i, 201, "PUT", own("other"), key, "1");
    ask(_i, 204, "PUT", text("%s?ttl=1h", own("k")), key, "1");
    ask(_i, 200, "DELETE", own("k"), key, NULL);
}
END_TEST

START_TEST(test_a_write_whose_key_is_over_a_minute_old_is_503_and_the_text_says_how_far)
{
    for (int mark = 0; mark < 2; mark++) {
        struct response r = ask(_i, 503, "PUT", own("k"), idempotency(75.5, "a", mark), "late");
        ck_assert_ptr_nonnull(strstr(r.body, "75 s behind"));
        ck_assert_int_eq(header(&r, "Estoraje-Outcome") != NULL, mark || _i == NGINX);
        ck_assert_int_eq(header(&r, "Idempotency-Key") != NULL, mark || _i == NGINX);
        tells_in_one_line(&r);
        has_none(_i, own("k"));
    }
    ask(_i, 201, "PUT", own("k"), idempotency(30, "b", true), "in time");
}
END_TEST

START_TEST(test_a_write_made_ahead_takes_no_time_from_other_keys)
{
    double start = now();
    ask(_i, 201, "PUT", text("%s?ttl=4s", own("lock")), "If-None-Match: *", "me");
    for (int i = 0; i < 3; i++)
        ask(_i, 201, "PUT", own(text("k%d", i)), idempotency(-4.5 - 60 * i, "e", false), "v");
    for (int node = 0; node < 3; node++) {
        struct response r = http(at(_i), "GET", own("lock"), NULL, NULL, 0);
        ck_assert_msg(r.status == 200 || now() > start + 3.9, "gone after %.2f s", now() - start);
    }
    start = now();
    ask(_i, 201, "PUT", text("%s?ttl=500ms", own("short")), NULL, "v");
    AWAIT(status_of(at(_i), "GET", own("short"), NULL, NULL) == 404, 3);
}
END_TEST

/* Estoraje-Retry: 0 says that this try is the first: not that none is under way when it is late. */
START_TEST(test_a_first_try_that_comes_late_is_unknown_too)
{
    ask(_i, 200, "PUT", text("%s?consistency=one", own("k")), NULL, "later");
    char *late = text("%s\nEstoraje-Retry: 0", idempotency(2, "z", false));
    struct response r = ask(_i, 503, "PUT", own("k"), late, "early");
    header_is(&r, "Estoraje-Outcome", "unknown");
    has_value(_i, own("k"), "later");
    ask(_i, 201, "PUT", own("other"), late, "in time");
}
END_TEST

START_TEST(test_a_write_follows_one_of_consistency_one)
{
    for (int i = 0; i < 200; i++) {
        ask(_i, 200, "DELETE", text("%s?consistency=one", own("k")), NULL, NULL);
        ask(_i, 201, "PUT", own("k"), NULL, "v");
    }
}
END_TEST

/* Proxies count, each request with a key of its own; every other one's clock is half a second behind. */
static void race_add_keyed(void *context, int index)
{
    struct race *r = context;
    const char *url = r->target == THREE ? three->nodes[index % 3].url : at(r->target);
    for (int i = 0; i < 250; i++) {
        char *key = idempotency(index % 2 * 0.5, text("%d-%d", index, i), false);
        struct response got = http(url, "POST", r->path, text("%s\nEstoraje-Retry: 0", key), "", 0);
        if (got.status != 200)
            r->bad = text("%d %s", got.status, got.body);
        __atomic_add_fetch(got.status == 200 ? &r->won : &r->other, 1, __ATOMIC_SEQ_CST);
        response_free(&got);
    }
}

START_TEST(test_a_proxy_whose_clock_is_behind_gets_unknown_no_more_often)
{
    struct race r = {.target = _i, .path = text("%s?op=add", own("n"))};
    crowd(8, race_add_keyed, &r);
    ck_assert_msg(r.other <= (_i == ALONE ? 0 : 20), "%d of 2000: %s", r.other, r.bad);
    int sum = add(_i, own("n"), "0");
    ck_assert_msg(r.won <= sum && sum <= r.won + r.other, "%d of %d", sum, r.won);
}
END_TEST

/* With a UUID, too, the answer to a repeat is never a guess. */
START_TEST(test_a_repeat_whose_answer_was_let_go_is_unknown_and_an_unmarked_one_is_a_new_write)
{
    char *path = own("n"), *by = text("%s?op=add", path), *uuid = "Idempotency-Key: 4-e5f6";
    char *timed = idempotency(0, "t", false);
    ask(_i, 200, "POST", by, uuid, "");
    ask(_i, 200, "POST", by, timed, "");
    for (int i = 0; i < 257; i++) { /* that may be repeated, too */
        char *other = idempotency(0, text("%d", i), false);
        ck_assert_int_eq(atoi(ask(_i, 200, "POST", by, other, "").body), i + 3);
    }
    char *const keys[] = {uuid, timed};
    for (int i = 0; i < 2; i++) {
        struct response r = ask(_i, 503, "POST", by, as_retry(keys[i]), "");
        header_is(&r, "Estoraje-Outcome", "unknown");
        header_is(&r, "Idempotency-Key", keys[i] + strlen("Idempotency-Key: "));
        tells_in_one_line(&r);
    }
    ck_assert_int_eq(add(_i, path, "0"), 259);
    ask(_i, 200, "POST", by, uuid, "");
    ck_assert_int_eq(add(_i, path, "0"), 260);
}
END_TEST

START_TEST(test_a_mark_is_0_or_1_or_the_time_of_the_first_try)
{
    const struct row rows[] = {
        {"PUT", "bad", "Estoraje-Retry: yes", "v", 400, 0},
        {"PUT", "bad", "Estoraje-Retry: 2\nIdempotency-Key: a", "v", 400, 0},
        {"PUT", "k", "Estoraje-Retry: 1\nIdempotency-Key: a", "v", 201, 0},
        {"PUT", "k", text("Estoraje-Retry: %.3f\nIdempotency-Key: a", unix_time()), "v", 201, 0},
        {"PUT", "k", "Estoraje-Retry: 1\nIdempotency-Key: b", "v", 204, 0},
        {"PUT", "one?consistency=one", "Estoraje-Retry: 1", "v", 200, 0},
        {"PUT", "none", "Estoraje-Retry: 1", "v", 201, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    has_none(_i, own("bad"));
}
END_TEST

START_TEST(test_answers_unknown_put_no_node_aside)
{
    put_etag(_i, own("k"), "v");
    for (int i = 0; i < 8; i++) {
        ask(_i, 503, "PUT", own("old"), idempotency(75, text("o%d", i), true), "v");
        for (int j = 0; j < 4; j++)
            has_value(_i, own("k"), "v");
    }
}
END_TEST

START_TEST(test_any_idempotency_key_of_1_to_255_bytes_is_accepted)
{
    char *most = letters(255), *quoted = idempotency(0, "q", false) + strlen("Idempotency-Key: ");
    const char *const keys[] = {"a",
                                "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
                                "17637120-7dec-11d0-a765-00a0c91e6bf6",
                                "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
                                text("\"%s\"", quoted),
                                "-abc",
                                "12a4.5-abc",
                                "1e9-abc",
                                ",;=()<>@[]?{}/\\ \x80\xff!",
                                most,
                                idempotency(-7, "7", false) + strlen("Idempotency-Key: "),
                                idempotency(-3600, "h", false) + strlen("Idempotency-Key: "),
                                idempotency(59, "59", false) + strlen("Idempotency-Key: ")};
    static const char *const marks[] = {"", "\nEstoraje-Retry: 0"};
    for (size_t i = 0; i < 2 * sizeof keys / sizeof *keys; i++) {
        char *path = own(text("n%zu", i)), *by = text("%s?op=add&by=1", path);
        char *headers = text("Idempotency-Key: %s", keys[i / 2]);
        char *first = text("%s%s", headers, marks[i % 2]);
        ck_assert_str_eq(ask(_i, 200, "POST", by, first, NULL).body, "1");
        add(_i, path, "10");
        ck_assert_str_eq(ask(_i, 200, "POST", by, headers, NULL).body, "1");
        ck_assert_str_eq(ask(_i, 200, "POST", by, as_retry(headers), NULL).body, "1");
        ck_assert_int_eq(add(_i, path, "0"), 11);
    }
}
END_TEST

/* As through nginx, which gives the keys that it makes to nobody: it sends the next request on a
 * connection when the answer to the one before has come. */
START_TEST(test_a_node_forgets_an_answer_that_has_come_and_that_nobody_asks_for_again)
{
    const char *url = three->nodes[0].url;
    for (int came = 0; came < 2; came++) {
        char *path = own(text("n%d", came)), *by = text("%s?op=add", path),
             *key = idempotency(0, "f", false);
        int fd = raw_connect(three->nodes[0].port);
        raw_print(fd,
                  "POST %s HTTP/1.1\r\nHost: x\r\n%s\r\nEstoraje-Retry: 0\r\n"
                  "Estoraje-Forget: 1\r\nContent-Length: 0\r\n\r\n",
                  by, key);
        ck_assert_str_eq(raw_receive(fd, 10).body, "1");
        if (came) {
            raw_print(fd, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", own("none"));
            ck_assert_int_eq(raw_receive(fd, 10).status, 404);
        }
        close(fd);
        ck_assert_str_eq(http(url, "POST", by, NULL, "", 0).body, "2");
        struct response r = http(url, "POST", by, as_retry(key), "", 0);
        ck_assert_int_eq(r.status, came ? 503 : 200);
        if (came)
            header_is(&r, "Estoraje-Outcome", "unknown");
        ck_assert_str_eq(http(url, "POST", text("%s?op=add&by=0", path), NULL, "", 0).body, "2");
    }
}
END_TEST

START_TEST(test_malformed_idempotency_keys_are_rejected)
{
    const struct row rows[] = {
        {"PUT", "k", text("Idempotency-Key: %s", letters(256)), "v", 400, 0},
        {"PUT", "k", text("Idempotency-Key: %s", letters(1000)), "v", 400, 0},
        {"DELETE", "k", "Idempotency-Key:", NULL, 400, -1},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    has_none(_i, own("k"));
}
END_TEST

START_TEST(test_consistency_one_ignores_idempotency_keys)
{
    ask(_i, 200, "PUT", text("%s?consistency=one", own("k")), "Idempotency-Key: nonsense", "v");
    AWAIT(status_of(at(_i), "GET", own("k"), NULL, NULL) == 200, 10);
}
END_TEST

/* ================================ errors ================================ */

START_TEST(test_unknown_or_misplaced_parameters_are_rejected)
{
    static const struct row rows[] = {
        {"PUT", "k?tttl=1s", NULL, "v", 400, 0},   {"POST", "k?x", NULL, "v", 400, 0},
        {"DELETE", "k?force", NULL, NULL, 400, 0}, {"POST", "k?by=1&opp=add", NULL, "v", 400, 0},
        {"GET", "k?ttl=1s", NULL, NULL, 400, 0},   {"PUT", "k?limit=5", NULL, "v", 400, 0},
        {"PUT", "k?%zz=5", NULL, "v", 400, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    has_none(_i, own("k"));
}
END_TEST

START_TEST(test_a_read_may_have_parameters_that_nobody_knows)
{
    put_etag(_i, own("info/refs"), "v");
    static const char *const queries[] = {
        "service=git-upload-pack", "v=3", "x", "=", "%zz=%zz", "a=1&a=1"};
    for (size_t i = 0; i < sizeof queries / sizeof *queries; i++) {
        has_value(_i, text("%s?%s", own("info/refs"), queries[i]), "v");
        ask(_i, 200, "HEAD", text("%s?%s", own("info/refs"), queries[i]), NULL, NULL);
        struct response r = get(at(_i), text("%s?%s", own("info/"), queries[i]));
        ck_assert_str_eq(r.body, text("%s\n", own("info/refs") + 1));
        ck_assert_int_eq(get(at(_i), text("/_status?%s", queries[i])).status, 200);
    }
}
END_TEST

/* As HTML forms and every library write it. */
START_TEST(test_a_plus_in_a_query_is_a_space_and_in_a_path_it_is_a_plus)
{
    put_etag(_i, own("my%20docs/a"), "space");
    put_etag(_i, own("my+docs/a"), "plus");
    char *prefix = text("/?prefix=t%d/my", (int)getpid());
    struct response r = get(at(_i), text("%s+docs/", prefix));
    ck_assert_str_eq(r.body, text("%s\n", own("my%20docs/a") + 1));
    r = get(at(_i), text("%s%%20docs/", prefix));
    ck_assert_str_eq(r.body, text("%s\n", own("my%20docs/a") + 1));
    r = get(at(_i), text("%s%%2Bdocs/", prefix));
    ck_assert_str_eq(r.body, text("%s\n", own("my%2Bdocs/a") + 1));
    has_value(_i, own("my+docs/a"), "plus");
    has_value(_i, own("my%2bdocs/a"), "plus");
}
END_TEST

START_TEST(test_a_part_of_a_value_is_not_written)
{
    put_etag(_i, own("k"), "0123456789");
    static const char *const methods[] = {"PUT", "POST", "DELETE"};
    for (int i = 0; i < 6; i++) {
        const char *path = i / 3 ? text("%s?consistency=one", own("k")) : own("k");
        struct response r =
            ask(_i, 400, methods[i % 3], path, "Content-Range: bytes 5-9/10", "56789");
        tells_in_one_line(&r);
    }
    has_value(_i, own("k"), "0123456789");
}
END_TEST

START_TEST(test_what_a_page_of_another_site_sends_changes_nothing)
{
    put_etag(_i, own("k"), "mine");
    static const char *const cross = "Sec-Fetch-Site: cross-site";
    const struct row rows[] = {
        {"PUT", "k", cross, "v", 403, 0},
        {"POST", "k", text("%s\nContent-Type: text/plain", cross), "v", 403, 0},
        {"POST", "k?op=add", cross, "", 403, 0},
        {"PUT", "k?consistency=one", cross, "v", 403, 0},
        {"DELETE", "k", cross, NULL, 403, 0},
        {"POST", "l/?create=true", cross, "", 403, 0},
        {"DELETE", "/_nodes/1234567890abcdef", cross, NULL, 403, 403},
        {"POST", "/_mail", cross, "x", 403, 403},
        {"POST", "/_mail", "Content-Type: text/plain", "x", 400, 403},
        {"POST", "/_mail", "Content-Type: application/x-www-form-urlencoded", "x", 400, 403},
        {"GET", "k", cross, NULL, 200, 0},
        {"HEAD", "k", cross, NULL, 200, 0},
        {"GET", "/_health", cross, NULL, 200, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    has_value(_i, own("k"), "mine");
    ask(_i, 204, "PUT", own("k"), "Sec-Fetch-Site: same-origin", "v");
    ask(_i, 204, "PUT", own("k"), "Sec-Fetch-Site: none", "v");
}
END_TEST

START_TEST(test_other_methods_are_405_with_allow)
{
    static const struct row rows[] = {
        {"PATCH", "k", NULL, "v", 405, 0},         {"OPTIONS", "k", NULL, NULL, 405, 0},
        {"BREW", "k", NULL, NULL, 405, 0},         {"TRACE", "k", NULL, NULL, 405, 0},
        {"PUT", "/_health", NULL, "v", 405, 403},  {"POST", "/_ready", NULL, "v", 405, 403},
        {"POST", "/_status", NULL, "v", 405, 403}, {"DELETE", "/_metrics", NULL, NULL, 405, 403},
        {"GET", "/_mail", NULL, NULL, 405, 403},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct response r = row_ask(_i, &rows[i]);
        if (_i == NGINX && rows[i].nginx)
            continue;
        ck_assert_msg(header(&r, "Allow") != NULL, "%s %s: no Allow", rows[i].method, rows[i].path);
        if (*rows[i].path != '/')
            for (const char *const *m =
                     (const char *const[]){"GET", "HEAD", "PUT", "POST", "DELETE", NULL};
                 *m; m++)
                ck_assert_msg(strstr(header(&r, "Allow"), *m) != NULL, "Allow: %s",
                              header(&r, "Allow"));
    }
}
END_TEST

START_TEST(test_a_write_without_a_length_is_411)
{
    for (int target = ALONE; target <= NGINX; target++) {
        static const char *const methods[] = {"PUT", "POST"};
        for (int m = 0; m < 2; m++) {
            int fd = raw_connect(port_of(target));
            raw_print(fd, "%s %s HTTP/1.1\r\nHost: x\r\n\r\n", methods[m], own("k"));
            struct response r = raw_receive(fd, 10);
            if (target == NGINX) /* which sends a length of 0 itself */
                ck_assert_int_ge(r.status, 200);
            else
                ck_assert_int_eq(r.status, 411);
            if (target != NGINX)
                tells_in_one_line(&r);
            close(fd);
        }
    }
}
END_TEST

START_TEST(test_every_error_says_what_is_wrong_in_one_line)
{
    put_etag(_i, own("there"), "0123");
    const struct row rows[] = {
        {"GET", "there?wait=x", NULL, NULL, 400, 0},
        {"PUT", "there", "If-None-Match: *", "v", 412, 0},
        {"PUT", own(letters(1100)), NULL, "v", 414, 0},
        {"GET", "there", "Range: bytes=9-", NULL, 416, 0},
        {"PATCH", "there", NULL, "v", 405, 0},
    };
    rows_ask(_i, rows, sizeof rows / sizeof *rows);
    struct response r = ask(_i, 431, "GET", own("there"), text("X-Long: %s", letters(20000)), NULL);
    tells_in_one_line(&r);
    r = get(alone->nodes[0].url, "/_unknown");
    ck_assert_int_eq(r.status, 404);
    tells_in_one_line(&r);
    has_value(_i, own("there"), "0123");
}
END_TEST

START_TEST(test_a_value_over_the_limit_is_413_and_changes_nothing)
{
    struct cluster *c = cluster_start(1, (const char *const[]){"--max-value", "100k", NULL});
    const char *url = c->nodes[0].url;
    char *most = letters(100 << 10), *more = letters((100 << 10) + 1);
    ck_assert_int_eq(put(url, "/k", most).status, 201);
    for (int i = 0; i < 3; i++) {
        struct response r = http(url, i == 2 ? "POST" : "PUT", "/k",
                                 i ? "Transfer-Encoding: chunked" : NULL, more, strlen(more));
        ck_assert_int_eq(r.status, 413);
        tells_in_one_line(&r);
        ck_assert_msg(strpbrk(r.body, "0123456789"), "does not name the limit: %s", r.body);
    }
    int fd = raw_connect(c->nodes[0].port);
    raw_print(fd, "PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n");
    ck_assert_int_eq(raw_receive(fd, 10).status, 413);
    close(fd);
    struct response r = get(url, "/k");
    ck_assert(body_is(&r, most, strlen(most)));
    cluster_stop(c);
}
END_TEST

START_TEST(test_nginx_names_the_limit_of_values_too)
{
    size_t bytes = (64 << 20) + 1;
    char *value = letters(bytes);
    for (int chunked = 0; chunked < 2; chunked++) {
        struct response r = http(at(NGINX), "PUT", own("k"),
                                 chunked ? "Transfer-Encoding: chunked" : NULL, value, bytes);
        ck_assert_int_eq(r.status, 413);
        tells_in_one_line(&r);
        ck_assert_ptr_nonnull(strstr(r.body, "64 MiB"));
        has_none(NGINX, own("k"));
    }
    free(value);
}
END_TEST

START_TEST(test_what_does_not_fit_in_memory_is_503_and_comes_later)
{
    enum { HALVES = 4, SIZE = 3 << 20 };
    struct cluster *c = cluster_start(1, (const char *const[]){"--memory", "10M", NULL});
    const char *url = c->nodes[0].url;
    char *value = letters(SIZE);
    int fds[HALVES];
    for (int i = 0; i < HALVES; i++) {
        fds[i] = raw_connect(c->nodes[0].port);
        raw_print(fds[i], "PUT /half%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", i, SIZE);
        raw_send(fds[i], value, SIZE - 1000);
    }
    struct response r = {0};
    AWAIT(node_metric(&c->nodes[0], "estoraje_http_requests_in_flight") >= HALVES, 5);
    AWAIT((r = put(url, "/k", value)).status == 503, 5);
    ck_assert_ptr_nonnull(header(&r, "Retry-After"));
    ck_assert_ptr_null(header(&r, "Estoraje-Outcome"));
    tells_in_one_line(&r);
    ck_assert_int_eq(status_of(url, "GET", "/_health", NULL, NULL), 200);
    for (int i = 0; i < HALVES; i++)
        close(fds[i]);
    AWAIT(status_of(url, "GET", "/k", NULL, NULL) == 200 || put(url, "/k", value).status < 300, 10);
    cluster_stop(c);
}
END_TEST

/* ================================ wire ================================ */

START_TEST(test_ambiguous_requests_are_400_and_the_connection_is_closed)
{
    static const struct {
        const char *what, *request;
        size_t bytes; /* 0: all up to the NUL */
    } rows[] = {
        {"both lengths",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: "
         "chunked\r\n\r\n0\r\n\r\n",
         0},
        {"both, the other way round",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: "
         "5\r\n\r\n0\r\n\r\n",
         0},
        {"two lengths",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 0},
        {"the same length twice",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", 0},
        {"a list of lengths", "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\na", 0},
        {"+1", "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 0},
        {"-1", "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\na", 0},
        {"0x1", "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\na", 0},
        {"1x", "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n\r\na", 0},
        {"no number", "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\na", 0},
        {"a length beyond 64 bits",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551617\r\n\r\na", 0},
        {"a length with a GET's twin",
         "GET /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 0},
        {"chunked twice",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
         "chunked\r\n\r\n0\r\n\r\n",
         0},
        {"chunked, chunked",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
         0},
        {"gzip",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 0},
        {"identity", "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n", 0},
        {"an unknown coding",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 0},
        {"an empty coding", "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
         0},
        {"two hosts", "GET /wire HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 0},
        {"no host", "GET /wire HTTP/1.1\r\nAccept: x\r\n\r\n", 0},
        {"white space before the colon",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length : 1\r\n\r\na", 0},
        {"a tab before the colon", "GET /wire HTTP/1.1\r\nHost: x\r\nX-Any\t: 1\r\n\r\n", 0},
        {"a NUL in a header", "GET /wire HTTP/1.1\r\nHost: x\r\nX-Any: a\0b\r\n\r\n", 45},
        {"a NUL in the path", "GET /wi\0re HTTP/1.1\r\nHost: x\r\n\r\n", 33},
        {"a NUL in the method", "GET\0 /wire HTTP/1.1\r\nHost: x\r\n\r\n", 32},
        {"a NUL behind a length", "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 1\0\r\n\r\na",
         52},
        {"a NUL behind the last value", "GET /wire HTTP/1.1\r\nHost: x\r\nX: a\0\r\n\r\n", 38},
        {"a NUL behind a value", "GET /wire HTTP/1.1\r\nX: a\0\r\nHost: x\r\n\r\n", 38},
        {"a folded length", "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n 1\r\n\r\na", 0},
        {"a folded coding",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 0},
        {"a length that goes on",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n 0\r\n\r\na", 0},
        {"two conditions",
         "GET /wire HTTP/1.1\r\nHost: x\r\nIf-None-Match: \"a\"\r\nIf-None-Match: "
         "\"b\"\r\n\r\n",
         0},
        {"a bare CR in a header", "GET /wire HTTP/1.1\r\nHost: x\r\nX-Any: a\rb\r\n\r\n", 0},
        {"a bare CR in a type",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nContent-Type: a\rb\r\nContent-Length: 1\r\n\r\na", 0},
        {"a control in a header", "GET /wire HTTP/1.1\r\nHost: x\r\nX-Any: a\x01z\r\n\r\n", 0},
        {"a DEL in a header", "GET /wire HTTP/1.1\r\nHost: x\r\nX-Any: a\x7fz\r\n\r\n", 0},
        {"a control in a header's name", "GET /wire HTTP/1.1\r\nHost: x\r\nX\x01: a\r\n\r\n", 0},
        {"a bare CR in the path", "GET /wi\rre HTTP/1.1\r\nHost: x\r\n\r\n", 0},
        {"a control in the path", "GET /wi\x02re HTTP/1.1\r\nHost: x\r\n\r\n", 0},
        {"a tab in the path", "GET /wi\tre HTTP/1.1\r\nHost: x\r\n\r\n", 0},
        {"a control in the query", "GET /wire?a=\x02 HTTP/1.1\r\nHost: x\r\n\r\n", 0},
        {"a bad chunk",
         "PUT /wire HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
         "chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
         0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int fd = raw_connect(port_of(_i));
        raw_send(fd, rows[i].request, rows[i].bytes ? rows[i].bytes : strlen(rows[i].request));
        struct response r = raw_receive(fd, 10);
        bool too_long = r.status == 413 && !strcmp(rows[i].what, "a length beyond 64 bits");
        bool rejected = r.status == 400 || too_long || (_i == NGINX && r.status == 501);
        ck_assert_msg(rejected, "%s: %d %.200s%s", rows[i].what, r.status, r.body, r.error);
        if (_i != NGINX && header(&r, "Content-Type")) /* else it did not get beyond the library */
            tells_in_one_line(&r);
        bool keeps = _i == NGINX && strstr(rows[i].request, "X-Any: a"); /* a node's word, to it */
        ck_assert_msg(keeps || raw_closed(fd, 5), "%s: the connection stays open", rows[i].what);
        close(fd);
    }
    has_none(_i, "/wire");
}
END_TEST

START_TEST(test_a_smuggled_request_is_not_served)
{
    put_etag(_i, own("k"), "safe");
    static const char *const tricks[] = {
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Transfer-Encoding : chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 0",
    };
    for (int i = 0; i < 4; i++) {
        int fd = raw_connect(port_of(_i));
        raw_print(fd,
                  "PUT %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n0\r\n\r\nDELETE %s HTTP/1.1\r\nHost: "
                  "x\r\n\r\n",
                  own("other"), tricks[i], own("k"));
        ck_assert_int_eq(raw_receive(fd, 10).status, 400);
        ck_assert(raw_closed(fd, 5));
        close(fd);
        has_value(_i, own("k"), "safe");
    }
}
END_TEST

START_TEST(test_pipelined_requests_are_answered_in_order)
{
    int fd = raw_connect(port_of(_i));
    for (int i = 0; i < 10; i++)
        raw_print(fd,
                  "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%dGET %s "
                  "HTTP/1.1\r\nHost: x\r\n\r\n",
                  own("k"), i, own("k"));
    for (int i = 0; i < 10; i++) {
        struct response r = raw_receive(fd, 10);
        ck_assert_int_eq(r.status, i ? 204 : 201);
        r = raw_receive(fd, 10);
        ck_assert_int_eq(r.status, 200);
        ck_assert(body_is(&r, text("%d", i), 1));
    }
    close(fd);
}
END_TEST

START_TEST(test_a_client_may_ask_before_it_sends)
{
    int fd = raw_connect(port_of(_i));
    raw_print(fd, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
              own("k"));
    char c[12];
    ck_assert_int_eq(recv(fd, c, sizeof c, MSG_PEEK | MSG_WAITALL), 12);
    ck_assert_int_eq(strncmp(c, "HTTP/1.1 100", 12), 0);
    raw_print(fd, "hello");
    ck_assert_int_eq(raw_receive(fd, 10).status, 201);
    close(fd);
    has_value(_i, own("k"), "hello");
}
END_TEST

START_TEST(test_the_whole_address_may_stand_in_the_request_line)
{
    put_etag(_i, own("k"), "v");
    int fd = raw_connect(port_of(_i));
    raw_print(fd, "GET http://any.example%s HTTP/1.1\r\nHost: any.example\r\n\r\n", own("k"));
    struct response r = raw_receive(fd, 10);
    ck_assert_int_eq(r.status, 200);
    ck_assert_str_eq(r.body, "v");
    close(fd);
}
END_TEST

START_TEST(test_odd_but_well_formed_requests_are_served)
{
    static const struct {
        const char *before, *behind; /* the key */
        int status;
    } rows[] = {
        {"PUT /", " HTTP/1.1\r\nHost: x\r\nContent-Type: a/b \r\nContent-Length: 1\r\n\r\na", 201},
        {"GET /", " HTTP/1.1\r\nHost: x\r\nX-Any: a\tb \r\n\r\n", 200},
        {"GET HTTP://any.example/", " HTTP/1.1\r\nHost: x\r\n\r\n", 200},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int fd = raw_connect(port_of(_i));
        raw_print(fd, "%s%s%s", rows[i].before, own("k") + 1, rows[i].behind);
        struct response r = raw_receive(fd, 10);
        ck_assert_msg(r.status == rows[i].status, "%s: %d %s", rows[i].behind, r.status, r.body);
        close(fd);
    }
    int fd = raw_connect(port_of(_i));
    raw_print(fd, "GET http://any.example HTTP/1.1\r\nHost: any.example\r\n\r\n");
    ck_assert_int_eq(raw_receive(fd, 10).status, 200);
    raw_print(fd, "GET http://any.example?limit=1 HTTP/1.1\r\nHost: any.example\r\n\r\n");
    ck_assert_int_eq(raw_receive(fd, 10).status, 200);
    close(fd);
    if (_i == NGINX)
        return;
    fd = raw_connect(port_of(_i));
    raw_print(fd, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
    struct response r = raw_receive(fd, 10);
    ck_assert_int_eq(r.status, 405);
    ck_assert_ptr_nonnull(header(&r, "Allow"));
    close(fd);
}
END_TEST

/* As `printf ... | nc -N` does it. */
START_TEST(test_a_client_that_sends_no_more_gets_its_answer)
{
    char *put = text("PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", own("k"));
    char *wait = text("GET %s?wait=3s HTTP/1.1\r\nHost: x\r\n\r\n", own("none"));
    for (int i = 0; i < 60 && _i != NGINX; i++) { /* which takes it for one that left */
        int fd = raw_connect(port_of(_i));
        raw_send(fd, put, strlen(put));
        if (i % 2)
            pause_ms(1);
        shutdown(fd, SHUT_WR);
        struct response r = raw_receive(fd, 10);
        ck_assert_msg(r.status == (i ? 204 : 201), "%d: %d %s", i, r.status, r.error);
        ck_assert(raw_closed(fd, 5));
        close(fd);
    }
    int fd = raw_connect(port_of(_i == NGINX ? THREE : _i));
    raw_send(fd, wait, strlen(wait));
    shutdown(fd, SHUT_WR);
    struct response r = raw_receive(fd, 10);
    if (r.status == 100)
        r = raw_receive(fd, 10);
    ck_assert_int_eq(r.status, 404);
    close(fd);
}
END_TEST

START_TEST(test_clients_that_leave_in_the_middle_are_noticed_at_once)
{
    enum { CLIENTS = 200 };
    struct cluster *c = cluster_start(1, NULL);
    const struct node *n = &c->nodes[0];
    char *half = letters(30000);
    for (int i = 0; i < CLIENTS; i++) {
        int fd = raw_connect(n->port);
        if (i % 4)
            raw_print(fd, "PUT /k%d HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", i);
        else
            raw_print(fd, "PUT /k%d HTTP/1.1\r\nHo", i);
        if (i % 4)
            raw_send(fd, half, 30000);
        close(fd);
    }
    AWAIT(node_metric(n, "process_open_fds") < 100, 3);
    AWAIT(node_metric(n, "estoraje_http_requests_in_flight") <= 1, 3);
    double begun = now();
    ck_assert_int_eq(node_stop(c, 0), 0);
    ck_assert_double_lt(now() - begun, 3 * slowness());
    cluster_stop(c);
}
END_TEST

START_TEST(test_http_1_0_clients_are_served)
{
    put_etag(_i, own("k"), "old");
    int fd = raw_connect(port_of(_i));
    raw_print(fd, "GET %s HTTP/1.0\r\n\r\n", own("k"));
    struct response r = raw_receive(fd, 10);
    ck_assert_int_eq(r.status, 200);
    ck_assert(body_is(&r, "old", 3));
    ck_assert(raw_closed(fd, 10));
    close(fd);
}
END_TEST

START_TEST(test_a_connection_serves_many_requests)
{
    int fd = raw_connect(port_of(_i));
    for (int i = 0; i < 50; i++) {
        raw_print(fd, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", own("none"));
        ck_assert_int_eq(raw_receive(fd, 10).status, 404);
    }
    raw_print(fd, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", own("none"));
    ck_assert_int_eq(raw_receive(fd, 10).status, 404);
    ck_assert(raw_closed(fd, 10));
    close(fd);
}
END_TEST

START_TEST(test_noise_is_answered_or_closed_and_hurts_nobody)
{
    put_etag(_i, own("k"), "safe");
    unsigned x = 12345;
    for (int i = 0; i < 60; i++) {
        char noise[600];
        for (size_t b = 0; b < sizeof noise; b++)
            noise[b] = (char)((x = x * 1103515245U + 12345U) >> 16);
        int fd = raw_connect(port_of(_i));
        if (i % 2)
            raw_print(fd, "GET %s HTTP/1.1\r\nHost: x\r\n", own("k"));
        raw_send(fd, noise, sizeof noise);
        raw_print(fd, "\r\n\r\n\r\n\r\n");
        close(fd);
    }
    has_value(_i, own("k"), "safe");
}
END_TEST

/* ================================ reserved ================================ */

START_TEST(test_health_is_ok)
{
    struct response r = ask(_i, 200, "GET", "/_health", NULL, NULL);
    ck_assert_msg(!strncmp(r.body, "ok", 2), "%s", r.body);
}
END_TEST

/* It does not matter to nginx, and is none of its clients' business. */
START_TEST(test_ready_is_ok_at_a_node_that_has_all_its_data)
{
    if (_i != NGINX)
        AWAIT(status_of(at(_i), "GET", "/_ready", NULL, NULL) == 200, 20);
    struct response r = ask(_i, _i == NGINX ? 403 : 200, "GET", "/_ready", NULL, NULL);
    ck_assert(_i == NGINX || !strcmp(r.body, "ok\n"));
}
END_TEST

START_TEST(test_status_describes_the_cluster)
{
    struct response r = ask(_i, 200, "GET", "/_status", NULL, NULL);
    int members = _i == ALONE ? 1 : 3;
    ck_assert(!strncmp(header(&r, "Content-Type"), "application/json", 16));
    ck_assert_int_eq(json_count(r.body, "members"), members);
    static const char *const numbers[] = {"epoch", "keys", "bytes", "transition.complete",
                                          "transition.to_do"};
    for (int i = 0; i < 5; i++)
        ck_assert_msg(!isnan(json_number(r.body, numbers[i])), "no %s in %.300s", numbers[i],
                      r.body);
    ck_assert_msg(*json_string(r.body, "node") && *json_string(r.body, "version") &&
                      *json_string(r.body, "cluster"),
                  "%.300s", r.body);
    for (int m = 0; m < members; m++) {
        static const char *const strings[] = {"id",     "address", "zone",
                                              "weight", "live",    "lease_ms"};
        for (int i = 0; i < 6; i++)
            ck_assert_msg(json_at(r.body, text("members.%d.%s", m, strings[i])) != NULL,
                          "no %s in %.300s", strings[i], r.body);
        ck_assert_str_eq(json_string(r.body, text("members.%d.state", m)), "up");
        ck_assert_str_eq(json_string(r.body, text("members.%d.live", m)), "true");
    }
}
END_TEST

START_TEST(test_status_counts_tombstones)
{
    ask(_i, 201, "PUT", own("k"), NULL, "v");
    ask(_i, 200, "DELETE", own("k"), NULL, NULL);
    AWAIT(json_number(ask(_i, 200, "GET", "/_status", NULL, NULL).body, "tombstones") >= 1, 10);
}
END_TEST

START_TEST(test_nodes_are_listed_one_a_line)
{
    struct response r = ask(_i, 200, "GET", "/_nodes", NULL, NULL);
    const struct cluster *c = _i == ALONE ? alone : three;
    for (int i = 0; i < c->count; i++)
        ck_assert_msg(strstr(r.body, text("%s\n", c->nodes[i].address)) != NULL, "%s", r.body);
    int lines = 0;
    for (const char *s = r.body; (s = strchr(s, '\n')); s++)
        lines++;
    ck_assert_int_eq(lines, c->count);
}
END_TEST

START_TEST(test_the_owners_of_a_key_are_listed)
{
    char *first = NULL;
    for (int i = 0; i < 3; i++) {
        struct response r =
            ask(_i, 200, "GET", i ? "/_nodes/photos/%61.jpg" : "/_nodes/photos/a.jpg", NULL, NULL);
        ck_assert_int_eq(json_count(r.body, "owners"), _i == ALONE ? 1 : 3);
        ck_assert_uint_eq(strlen(json_string(r.body, "hash")), 16);
        double partition = json_number(r.body, "partition");
        ck_assert(partition >= 0 && partition < 1024);
        ck_assert_uint_eq((unsigned long)partition,
                          strtoul(json_string(r.body, "hash"), NULL, 16) >> 54);
        char *owners = text("%s %s", json_string(r.body, "hash"), json_string(r.body, "owners"));
        if (first)
            ck_assert_str_eq(owners, first); /* by every node, in the same order */
        first = owners;
    }
    if (_i != NGINX)
        ask(_i, 200, "GET", "/_nodes/%00x", NULL, NULL);
}
END_TEST

START_TEST(test_the_ring_page_is_a_page)
{
    struct response r = ask(_i, 200, "GET", "/_ring", NULL, NULL);
    ck_assert(!strncmp(header(&r, "Content-Type"), "text/html", 9));
    ck_assert_ptr_nonnull(strstr(r.body, "</html>"));
}
END_TEST

START_TEST(test_metrics_please_promtool)
{
    put_etag(_i, own("k"), "v");
    struct response r = ask(_i, 200, "GET", "/_metrics", NULL, NULL);
    ck_assert(!strncmp(header(&r, "Content-Type"), "text/plain", 10));
    static const char *const names[] = {
        "estoraje_http_requests_total{",
        "estoraje_http_request_duration_seconds_bucket{",
        "estoraje_http_request_duration_seconds_sum{",
        "estoraje_http_requests_in_flight",
        "estoraje_keys",
        "estoraje_data_bytes",
        "estoraje_log_bytes",
        "estoraje_log_garbage_bytes",
        "estoraje_fsync_duration_seconds_bucket{",
        "estoraje_batch_records_bucket{",
        "estoraje_lease_expirations_total",
        "estoraje_epoch",
        "estoraje_partitions_owned",
        "estoraje_partitions_incomplete",
        "estoraje_proposals_total{",
        "estoraje_repairs_total{",
        "estoraje_build_info{version=",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        ck_assert_msg(strstr(r.body, text("\n%s", names[i])) != NULL, "no %s", names[i]);
    static const char *const of_peers[] = {
        "estoraje_peer_up{peer=", "estoraje_peer_messages_total{peer=",
        "estoraje_clock_offset_seconds{peer="};
    for (int i = 0; _i != ALONE && i < 3; i++)
        ck_assert_msg(strstr(r.body, text("\n%s", of_peers[i])) != NULL, "no %s", of_peers[i]);
    ck_assert_ptr_null(strstr(r.body, own("k") + 1));
    if (!installed("promtool"))
        return;
    char *path = in_folder(harness_folder(), "metrics-%d", (int)getpid());
    file_write(path, r.body, r.body_bytes);
    struct output o = run(20, "promtool check metrics <%s", path);
    ck_assert_msg(o.status == 0 && !*o.text, "%s", o.text);
}
END_TEST

START_TEST(test_all_metrics_are_there_from_the_start)
{
    static const char *const names[] = {"http_requests_total", "peer_up", "peer_messages_total",
                                        "clock_offset_seconds"};
    struct cluster *c = cluster_new(NULL, false);
    cluster_add(c);
    node_start(c, 0);
    struct response r = {0};
    AWAIT((r = get(c->nodes[0].url, "/_metrics")).status == 200, 10);
    for (int i = 0; i < 4; i++)
        ck_assert_msg(strstr(r.body, text("\n# TYPE estoraje_%s ", names[i])), "no %s", names[i]);
    ck_assert_ptr_nonnull(strstr(r.body, "requests_total{method=\"PUT\",code=\"200\"} 0\n"));
    cluster_stop(c);
}
END_TEST

START_TEST(test_metrics_count_requests_and_keys)
{
    const struct node *n = &alone->nodes[0];
    double keys = node_metric(n, "estoraje_keys");
    for (int i = 0; i < 20; i++)
        put_etag(ALONE, own(text("%d", i)), "0123456789");
    ck_assert_double_ge(node_metric(n, "estoraje_keys"), keys + 20);
    double before = node_metric(n, "estoraje_http_requests_total{method=\"GET\",code=\"404\"}");
    for (int i = 0; i < 5; i++)
        has_none(ALONE, own("none"));
    double after = node_metric(n, "estoraje_http_requests_total{method=\"GET\",code=\"404\"}");
    ck_assert_double_eq(after, 5 + (isnan(before) ? 0 : before));
}
END_TEST

START_TEST(test_nothing_dangerous_is_reached_through_nginx)
{
    static const struct row rows[] = {
        {"POST", "/_mail", NULL, "x", 0, 403},
        {"DELETE", "/_nodes/1234567890abcdef", NULL, NULL, 0, 403},
        {"POST", "/%5fmail", NULL, "x", 0, 403},
        {"GET", "/_mail", NULL, NULL, 0, 403},
        {"DELETE", "/_nodes", NULL, NULL, 0, 403},
        {"GET", "/_anything", NULL, NULL, 0, 403},
        {"DELETE", "/%5Fnodes/1234567890abcdef", NULL, NULL, 0, 403},
    };
    rows_ask(NGINX, rows, sizeof rows / sizeof *rows);
    for (int target = ALONE; target <= THREE; target++)
        if (status_of(at(target), "POST", "/_mail", NULL,
                      "no frame at all, but long enough to be one") /
                100 ==
            2)
            ck_abort_msg("noise is accepted as a frame");
}
END_TEST

START_TEST(test_the_last_member_cannot_leave)
{
    struct response r =
        ask(ALONE, 409, "DELETE", text("/_nodes/%s", node_id(&alone->nodes[0])), NULL, NULL);
    tells_in_one_line(&r);
    ask(ALONE, 404, "DELETE", "/_nodes/0000000000000001", NULL, NULL);
    ask(THREE, 404, "DELETE", "/_nodes/0000000000000001", NULL, NULL);
}
END_TEST

/* ================================ options ================================ */

static const char *binary(void)
{
    const char *path = getenv("ESTORAJE_BIN");
    return path ? path : "./estoraje";
}

/* A folder of this test. */
static char *fresh(const char *name)
{
    return in_folder(harness_folder(), "%s-%d", name, (int)getpid());
}

static char *secret_file(const char *name, const char *secret)
{
    char *path = fresh(name);
    file_write(path, secret, strlen(secret));
    return path;
}

START_TEST(test_wrong_usage_is_2_and_says_why)
{
    char *data = fresh("data"), *port = text("127.0.0.1:%d", free_port());
    char *lines[] = {
        text("--no-such-option"),
        text("--listen %s --data %s --force-new-cluster", port, data),
        text("--listen %s --data %s --bootstrap-expect 3", port, data),
        text("--listen %s --data %s --bootstrap-expect 1 --bootstrap", port, data),
        text("--listen %s --data %s --bootstrap-expect 2 --join a:1,b:1,c:1", port, data),
        text("--listen"),
        text("--listen nonsense --data %s --bootstrap", data),
        text("--listen %s --data %s --bootstrap --replicas x", port, data),
        text("--listen %s --data %s --bootstrap --replicas 0", port, data),
        text("--listen %s --data %s --bootstrap --max-value 12q", port, data),
        text("--listen %s --data %s --bootstrap --lease x", port, data),
        text("--listen %s --data %s --bootstrap --sync sometimes", port, data),
        text("--listen %s --data %s --bootstrap --log-level loud", port, data),
        text("--listen %s --data %s --join nonsense", port, data),
        text("--listen %s --data %s --bootstrap stray", port, data),
        text("--listen %s --data %s --join :", port, data),
        text("--listen %s --data %s --join a:1,,b:2", port, data),
        text("--listen %s --data %s --join a:1,", port, data),
        text("--listen %s --data %s --join a:1 --bootstrap", port, data),
        text("--listen ::1:8001 --data %s --bootstrap", data),
        text("--listen %s --data %s --bootstrap --secret-file %s", port, data,
             secret_file("short", "only 15 bytes..\nthis does not count")),
        text("--listen %s --data %s --bootstrap --secret-file %s/none", port, data, data),
        text("--listen %s --data %s --bootstrap --secret-file %s", port, data,
             secret_file("blank", "\n")),
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct output o = run(10, "exec %s %s", binary(), lines[i]);
        ck_assert_msg(o.status == 2, "%s: %d %s", lines[i], o.status, o.text);
        ck_assert_uint_gt(strlen(o.text), 10);
    }
}
END_TEST

/* Starts it, and returns what it said until it served or ended; it is stopped then. */
static char *said_at_start(const char *options, int *status)
{
    char *log = fresh("said");
    pid_t pid =
        process_start((const char *[]){"sh", "-c", text("exec %s %s", binary(), options), NULL},
                      NULL, log, SIGKILL);
    *status = -1;
    for (double end = now() + 20 * slowness(); now() < end && *status < 0; pause_ms(10)) {
        char *said = file_read(log, NULL);
        if (said && strstr(said, "msg=\"serving\""))
            kill(pid, SIGTERM);
        free(said);
        *status = process_wait(pid, 0);
    }
    char *said = file_read(log, NULL);
    unlink(log);
    return said;
}

START_TEST(test_a_node_that_others_can_reach_needs_a_secret)
{
    static const char *const open[] = {"0.0.0.0", "[::]"}, *const near[] = {"127.0.0.2", "[::1]"};
    char *secret = secret_file("long", "a secret of more than 16 bytes\n");
    int status;
    for (int i = 0; i < 2; i++) {
        char *start = text("--advertise 127.0.0.1:1 --data %s --bootstrap --listen", fresh("data"));
        char *said = said_at_start(text("%s %s:%d", start, open[i], free_port()), &status);
        ck_assert_msg(status == 2, "%d: %s", status, said);
        ck_assert_msg(strstr(said, "--secret-file") && strstr(said, "--insecure"), "%s", said);
        ck_assert_ptr_eq(strchr(said, '\n'), said + strlen(said) - 1);
        said = said_at_start(text("%s %s:%d --insecure", start, open[i], free_port()), &status);
        ck_assert_msg(status == 0, "%d: %s", status, said);
        said = said_at_start(text("%s %s:%d --secret-file %s", start, open[i], free_port(), secret),
                             &status);
        ck_assert_msg(status == 0, "%d: %s", status, said);
        said = said_at_start(text("%s %s:%d", start, near[i], free_port()), &status);
        ck_assert_msg(status == 0, "%d: %s", status, said);
        folder_remove(fresh("data"));
    }
}
END_TEST

START_TEST(test_files_that_every_user_can_read_are_logged_at_start)
{
    char *data = fresh("data"), *secret = secret_file("wide", "a secret of more than 16 bytes\n");
    char *start = text("--listen 127.0.0.1:%d --bootstrap --data %s --secret-file %s", free_port(),
                       data, secret);
    int status;
    chmod(secret, 0644);
    char *said = said_at_start(start, &status);
    ck_assert_msg(strstr(said, "chmod") && strstr(said, secret) && !strstr(said, data), "%s", said);
    chmod(secret, 0600);
    chmod(data, 0755);
    said = said_at_start(start, &status);
    ck_assert_msg(strstr(said, "chmod") && strstr(said, data) && !strstr(said, secret), "%s", said);
    chmod(data, 0700);
    said = said_at_start(start, &status);
    ck_assert_msg(status == 0 && !strstr(said, "chmod"), "%s", said);
    folder_remove(data);
}
END_TEST

START_TEST(test_the_log_is_never_written_through_a_link)
{
    char *data = fresh("data"), *other = fresh("precious");
    char *start = text("--listen 127.0.0.1:%d --bootstrap --data %s", free_port(), data);
    int status;
    file_write(other, "precious", 8);
    ck_assert_int_eq(mkdir(data, 0700), 0);
    ck_assert_int_eq(symlink(other, text("%s/0000000000.log", data)), 0);
    char *said = said_at_start(start, &status);
    ck_assert_msg(status == 1 && strstr(said, "0000000000.log"), "%d: %s", status, said);
    ck_assert_str_eq(file_read(other, NULL), "precious");
    folder_remove(data);
}
END_TEST

START_TEST(test_an_empty_folder_needs_bootstrap_or_join)
{
    struct output o =
        run(10, "exec %s --listen 127.0.0.1:%d --data %s", binary(), free_port(), fresh("data"));
    ck_assert_int_eq(o.status, 2);
    ck_assert_msg(strstr(o.text, "--bootstrap") && strstr(o.text, "--join"), "%s", o.text);
}
END_TEST

START_TEST(test_help_names_every_option)
{
    struct output o = run(10, "exec %s --help", binary());
    ck_assert_int_eq(o.status, 0);
    static const char *const options[] = {"--listen",
                                          "--advertise",
                                          "--data",
                                          "--bootstrap",
                                          "--join",
                                          "--replicas",
                                          "--zone",
                                          "--weight",
                                          "--lease",
                                          "--evict-after",
                                          "--max-value",
                                          "--memory",
                                          "--sync",
                                          "--secret-file",
                                          "--insecure",
                                          "--tls-cert",
                                          "--tls-key",
                                          "--tls-ca",
                                          "--log-level",
                                          "--help",
                                          "--version",
                                          "ESTORAJE_",
                                          "--bootstrap-expect",
                                          "--force-new-cluster"};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        ck_assert_msg(strstr(o.text, options[i]) != NULL, "no %s in %s", options[i], o.text);
    o = run(10, "exec %s --version", binary());
    ck_assert_int_eq(o.status, 0);
    ck_assert_msg(strpbrk(o.text, "0123456789") != NULL, "%s", o.text);
}
END_TEST

START_TEST(test_options_can_come_from_the_environment)
{
    struct cluster *c = cluster_new(NULL, false);
    cluster_add(c);
    struct node *n = &c->nodes[0];
    const char *environment[] = {text("ESTORAJE_LISTEN=127.0.0.1:%d", n->port),
                                 text("ESTORAJE_DATA=%s/data", n->folder),
                                 "ESTORAJE_BOOTSTRAP=1",
                                 "ESTORAJE_MAX_VALUE=1k",
                                 "ESTORAJE_ZONE=attic",
                                 "ESTORAJE_WEIGHT=3",
                                 "ESTORAJE_LEASE=3s",
                                 "ESTORAJE_EVICT_AFTER=90",
                                 "ESTORAJE_MEMORY=64M",
                                 "ESTORAJE_SYNC=always",
                                 "ESTORAJE_REPLICAS=2",
                                 "ESTORAJE_LOG_LEVEL=info",
                                 text("ESTORAJE_ADVERTISE=127.0.0.1:%d", n->port),
                                 NULL};
    n->pid = process_start((const char *const[]){binary(), NULL}, environment, n->log, SIGKILL);
    AWAIT(node_healthy(n), 20);
    struct response r = get(n->url, "/_status");
    ck_assert_str_eq(json_string(r.body, "members.0.zone"), "attic");
    ck_assert_double_eq(json_number(r.body, "members.0.weight"), 3);
    ck_assert_int_eq(put(n->url, "/k", letters(1025)).status, 413);
    ck_assert_int_eq(put(n->url, "/k", letters(1024)).status, 201);
    cluster_stop(c);
    static const char *const wrong[] = {"REPLICAS=x", "BOOTSTRAP=perhaps",
                                        "BOOTSTRAP=", "BOOTSTRAP=no"};
    for (int i = 0; i < 4; i++) {
        struct output o =
            run(10, "ESTORAJE_VERSION=7 ESTORAJE_%s exec %s --listen 127.0.0.1:%d --data %s",
                wrong[i], binary(), free_port(), fresh("data"));
        ck_assert_msg(o.status == 2 && (i > 1 || strstr(o.text, "ESTORAJE_")), "%s: %d %s",
                      wrong[i], o.status, o.text);
    }
}
END_TEST

START_TEST(test_two_processes_never_share_a_folder)
{
    struct output o = run(10, "exec %s --listen 127.0.0.1:%d --data %s/data", binary(), free_port(),
                          alone->nodes[0].folder);
    ck_assert_int_eq(o.status, 1);
    ck_assert_uint_gt(strlen(o.text), 10);
    ck_assert(node_healthy(&alone->nodes[0]));
}
END_TEST

START_TEST(test_a_port_in_use_is_1_and_says_so)
{
    struct output o = run(10, "exec %s --listen 127.0.0.1:%d --data %s --bootstrap", binary(),
                          alone->nodes[0].port, fresh("data"));
    ck_assert_int_eq(o.status, 1);
    ck_assert_msg(strstr(o.text, text("%d", alone->nodes[0].port)) != NULL, "%s", o.text);
}
END_TEST

START_TEST(test_a_node_comes_back_with_what_it_had_and_without_options)
{
    struct cluster *c = cluster_start(1, NULL);
    struct node *n = &c->nodes[0];
    char *id = node_id(n);
    for (int i = 0; i < 200; i++)
        ck_assert_int_eq(put(n->url, text("/%d", i), text("value %d", i)).status, 201);
    for (int how = 0; how < 3; how++) {
        if (how == 0)
            ck_assert_int_eq(node_stop(c, 0), 0);
        else
            node_kill(c, 0);
        node_start(c, 0);
        AWAIT(node_healthy(n), 20);
        ck_assert_str_eq(node_id(n), id);
        for (int i = 0; i < 200; i++) {
            struct response r = get(n->url, text("/%d", i));
            ck_assert(r.status == 200 &&
                      body_is(&r, text("value %d", i), strlen(text("value %d", i))));
        }
    }
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_node_never_changes_its_cluster)
{
    struct cluster *c = cluster_start(1, NULL);
    ck_assert_int_eq(node_stop(c, 0), 0);
    c->nodes[0].options[0] = "--join";
    c->nodes[0].options[1] = text("127.0.0.1:%d,%s", free_port(), alone->nodes[0].address);
    node_start(c, 0);
    ck_assert_int_eq(process_wait(c->nodes[0].pid, 10), 1);
    c->nodes[0].pid = 0;
    ck_assert_ptr_nonnull(strstr(file_read(c->nodes[0].log, NULL), "is of another cluster"));
    struct response r = get(alone->nodes[0].url, "/_status");
    ck_assert_int_eq(json_count(r.body, "members"), 1);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_node_starts_with_the_join_of_its_first_start)
{
    struct cluster *c = cluster_start(2, NULL);
    const char *lists[] = {c->nodes[0].address, text("127.0.0.1:%d", free_port())};
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(node_stop(c, 1), 0);
        c->nodes[1].options[0] = "--join";
        c->nodes[1].options[1] = lists[i];
        node_start(c, 1);
        cluster_await(c, 2, 10);
    }
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_node_without_a_cluster_says_so_at_once)
{
    struct cluster *c = cluster_new(NULL, false);
    cluster_add(c);
    struct node *n = &c->nodes[0];
    const char *argv[] = {binary(),
                          "--listen",
                          n->address,
                          "--data",
                          fresh("data"),
                          "--join",
                          text("127.0.0.1:%d", free_port()),
                          NULL};
    n->pid = process_start(argv, NULL, n->log, SIGKILL);
    AWAIT(status_of(n->url, "GET", "/_status", NULL, NULL) == 200, 10);
    struct response answers[] = {
        get(n->url, "/k"), put(n->url, "/k", "v"), get(n->url, "/d/"),
        http(n->url, "DELETE", text("/_nodes/%s", node_id(n)), NULL, "", 0)};
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(answers[i].status, 503);
        ck_assert_double_lt(answers[i].seconds, 1 * slowness());
        ck_assert_str_eq(answers[i].body,
                         i % 2 ? "not a member of a cluster yet; nothing was changed\n"
                               : "not a member of a cluster yet\n");
    }
    static const char *const paths[] = {"/k", "/k?consistency=one", "/k?consistency=all"};
    for (int i = 0; i < 3; i++) {
        struct response r = http(n->url, "PUT", paths[i], "Estoraje-Retry: 1", "v", 1);
        ck_assert_int_eq(r.status, 503);
        ck_assert_str_eq(header(&r, "Estoraje-Outcome"), "unknown");
    }
    cluster_stop(c);
}
END_TEST

/* As certificates and containers have names. */
START_TEST(test_nodes_have_names_and_serve_ipv6_and_ipv4_at_once)
{
    if (access("/proc/net/if_inet6", R_OK)) {
        printf("left out: there is no IPv6\n");
        return;
    }
    struct cluster *c = cluster_new(NULL, false);
    char *first = NULL;
    for (int i = 0; i < 2; i++) {
        cluster_add(c);
        struct node *n = &c->nodes[i];
        char *name = text("localhost:%d", n->port);
        const char *argv[] = {binary(),
                              "--listen",
                              text("[::]:%d", n->port),
                              "--data",
                              fresh(i ? "data2" : "data1"),
                              "--advertise",
                              name,
                              "--insecure",
                              i ? "--join" : "--bootstrap",
                              first,
                              NULL};
        first = name;
        n->pid = process_start(argv, NULL, n->log, SIGKILL);
        AWAIT(status_of(text("http://127.0.0.1:%d", n->port), "GET", "/_ready", NULL, NULL) == 200,
              20);
    }
    ck_assert_int_eq(put(text("http://[::1]:%d", c->nodes[0].port), "/k", "v").status, 201);
    struct response r = get(c->nodes[1].url, "/k");
    ck_assert(body_is(&r, "v", 1));
    r = get(c->nodes[1].url, "/_nodes");
    ck_assert_ptr_nonnull(strstr(r.body, text("localhost:%d\n", c->nodes[0].port)));
    cluster_stop(c);
}
END_TEST

START_TEST(test_sigterm_sigint_and_sighup_stop_it_as_asked)
{
    struct cluster *c = cluster_start(1, NULL);
    ck_assert_int_eq(put(c->nodes[0].url, "/k", "v").status, 201);
    static const int signals[] = {SIGINT, SIGHUP, SIGTERM};
    for (int i = 0; i < 3; i++) {
        node_signal(c, 0, signals[i]);
        ck_assert_int_eq(process_wait(c->nodes[0].pid, 15), 0);
        c->nodes[0].pid = 0;
        node_start(c, 0);
        AWAIT(node_healthy(&c->nodes[0]), 20);
        ck_assert_int_eq(status_of(c->nodes[0].url, "GET", "/k", NULL, NULL), 200);
    }
    cluster_stop(c);
}
END_TEST

START_TEST(test_what_is_under_way_at_sigterm_is_finished)
{
    struct cluster *c = cluster_start(3, NULL);
    int idle = raw_connect(c->nodes[1].port), busy = raw_connect(c->nodes[1].port);
    raw_print(idle, "GET /none HTTP/1.1\r\nHost: x\r\n\r\n");
    ck_assert_int_eq(raw_receive(idle, 10).status, 404);
    raw_print(busy, "PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234");
    pause_ms(200); /* until it is there: if not, it is rejected, which is right too */
    node_signal(c, 1, SIGTERM);
    AWAIT(!node_healthy(&c->nodes[1]), 10);
    raw_print(busy, "56789");
    struct response r = raw_receive(busy, 10);
    ck_assert_msg(r.status == 201 || r.status == 503, "%d %s", r.status, r.error);
    if (r.status == 503)
        ck_assert_ptr_null(header(&r, "Estoraje-Outcome"));
    ck_assert(raw_closed(idle, 10));
    ck_assert_int_eq(process_wait(c->nodes[1].pid, 15), 0);
    c->nodes[1].pid = 0;
    struct response g = get(c->nodes[0].url, "/k");
    ck_assert_int_eq(g.status, r.status == 201 ? 200 : 404);
    g = get(c->nodes[0].url, "/_status");
    ck_assert_int_eq(json_count(g.body, "members"), 3);
    node_start(c, 1);
    cluster_await(c, 3, 30);
    close(idle);
    close(busy);
    cluster_stop(c);
}
END_TEST

START_TEST(test_while_a_node_finishes_new_requests_get_503)
{
    struct cluster *c = cluster_start(1, NULL);
    const struct node *n = &c->nodes[0];
    int busy = raw_connect(n->port);
    raw_print(busy, "PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234");
    AWAIT(node_metric(n, "estoraje_http_requests_in_flight") >= 2, 10);
    node_signal(c, 0, SIGTERM);
    AWAIT(!node_healthy(n), 10);
    http_fresh = true;
    for (double end = now() + 4; now() < end; pause_ms(50)) {
        struct response r = get(n->url, "/k");
        ck_assert_msg(r.status == 503, "%d %s", r.status, r.error);
        ck_assert_str_eq(header(&r, "Connection"), "close");
        for (int one = 0; one < 2; one++) {
            r = http(n->url, "PUT", one ? "/k?consistency=one" : "/k", "Estoraje-Retry: 1", "v", 1);
            ck_assert_str_eq(header(&r, "Estoraje-Outcome"), "unknown");
        }
    }
    raw_print(busy, "56789");
    ck_assert_int_eq(raw_receive(busy, 10).status, 201);
    ck_assert_int_eq(process_wait(n->pid, 5), 0);
    c->nodes[0].pid = 0;
    close(busy);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_wait_at_sigterm_is_answered)
{
    struct cluster *c = cluster_start(1, NULL);
    struct response r = put(c->nodes[0].url, "/k", "v");
    int fds[2] = {raw_connect(c->nodes[0].port), raw_connect(c->nodes[0].port)};
    raw_print(fds[0], "GET /none?wait=1m HTTP/1.1\r\nHost: x\r\n\r\n");
    raw_print(fds[1], "GET /k?wait=1m HTTP/1.1\r\nHost: x\r\nIf-None-Match: %s\r\n\r\n",
              etag_of(&r));
    AWAIT(node_metric(&c->nodes[0], "estoraje_http_requests_in_flight") >= 3, 10);
    node_signal(c, 0, SIGTERM);
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(raw_receive(fds[i], 10).status, i ? 304 : 404);
    ck_assert_int_eq(process_wait(c->nodes[0].pid, 15), 0);
    c->nodes[0].pid = 0;
    cluster_stop(c);
}
END_TEST

START_TEST(test_log_lines_are_logfmt)
{
    struct cluster *c = cluster_start(1, NULL);
    for (int i = 0; i < 50; i++)
        put(c->nodes[0].url, "/k", "v");
    ck_assert_int_eq(node_stop(c, 0), 0);
    char *log = file_read(c->nodes[0].log, NULL), *save = NULL;
    int lines = 0;
    for (char *line = strtok_r(log, "\n", &save); line; line = strtok_r(NULL, "\n", &save), lines++)
        ck_assert_msg(!strncmp(line, "time=", 5) && strstr(line, " level=") &&
                          strstr(line, " msg="),
                      "%s", line);
    ck_assert_int_ge(lines, 1);
    ck_assert_int_lt(lines, 30); /* none for a request */
    cluster_stop(c);
}
END_TEST

START_TEST(test_sync_none_says_what_it_gives_up)
{
    struct cluster *c = cluster_start(1, (const char *const[]){"--sync", "none", NULL});
    ck_assert_int_eq(put(c->nodes[0].url, "/k", "v").status, 201);
    ck_assert_int_eq(status_of(c->nodes[0].url, "GET", "/k", NULL, NULL), 200);
    ck_assert_ptr_nonnull(strstr(file_read(c->nodes[0].log, NULL), "level=warn"));
    cluster_stop(c);
}
END_TEST

START_TEST(test_the_first_node_sets_the_replicas)
{
    struct cluster *c = cluster_start(3, (const char *const[]){"--replicas", "2", NULL});
    for (int i = 0; i < 3; i++) {
        struct response r = get(c->nodes[i].url, "/_nodes/any");
        ck_assert_int_eq(json_count(r.body, "owners"), 2);
        ck_assert_int_eq(put(c->nodes[i].url, "/k", "v").status, i ? 204 : 201);
    }
    cluster_stop(c);
}
END_TEST

static int notify_socket(char **path)
{
    *path = fresh("notify");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    ck_assert_uint_lt(strlen(*path), sizeof address.sun_path);
    strcpy(address.sun_path, *path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct timeval limit = {20, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

static void notified(int fd, const char *what)
{
    for (int i = 0; i < 10; i++) {
        char message[256];
        ssize_t n = recv(fd, message, sizeof message - 1, 0);
        ck_assert_msg(n > 0, "no %s came", what);
        message[n] = 0;
        if (strstr(message, what))
            return;
    }
    ck_abort_msg("no %s came", what);
}

START_TEST(test_systemd_is_notified_of_ready_and_stopping)
{
    char *path;
    int fd = notify_socket(&path);
    struct cluster *c = cluster_new(NULL, false);
    cluster_add(c);
    c->nodes[0].environment[0] = text("NOTIFY_SOCKET=%s", path);
    node_start(c, 0);
    notified(fd, "READY=1");
    ck_assert(node_healthy(&c->nodes[0]));
    node_signal(c, 0, SIGTERM);
    notified(fd, "STOPPING=1");
    ck_assert_int_eq(process_wait(c->nodes[0].pid, 15), 0);
    c->nodes[0].pid = 0;
    cluster_stop(c);
}
END_TEST

/* ================================ secret ================================ */

START_TEST(test_a_secret_is_asked_of_nodes_and_not_of_clients)
{
    const char *options[] = {"--secret-file", secret_file("secret", "open sesame, open\n"), NULL};
    struct cluster *c = cluster_start(3, options);
    for (int i = 0; i < 3; i++) {
        const char *url = c->nodes[i].url;
        ck_assert_int_eq(put(url, "/k", "v").status, i ? 204 : 201);
        struct response r = http(url, "POST", "/_mail", NULL, "x", 1);
        ck_assert_int_eq(r.status, 401);
        ck_assert_str_eq(header(&r, "WWW-Authenticate"), "Bearer");
        tells_in_one_line(&r);
        r = http(url, "DELETE", text("/_nodes/%s", node_id(&c->nodes[0])), NULL, NULL, 0);
        ck_assert_int_eq(r.status, 401);
        ck_assert_int_eq(status_of(url, "GET", "/_status", NULL, NULL), 200);
        ck_assert_int_eq(status_of(url, "PUT", "/_status", NULL, "x"), 405);
        const char *known =
            "Authorization: bearer open sesame, open"; /* RFC 9110, 11.1: in any case */
        ck_assert_int_eq(status_of(url, "DELETE", "/_nodes/x", known, NULL), 404);
    }
    cluster_await(c, 3, 20);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_node_with_another_secret_stays_outside)
{
    const char *options[] = {"--secret-file", secret_file("secret", "open sesame, open\n"), NULL};
    const char *others[] = {"--secret-file", secret_file("other", "open rye, open barley\n"), NULL};
    struct cluster *c = cluster_start(1, options);
    int stranger = cluster_add(c);
    c->options = others;
    node_start(c, stranger);
    ck_assert_int_eq(process_wait(c->nodes[stranger].pid, 3) > 0, 0);
    struct response r = get(c->nodes[0].url, "/_status");
    ck_assert_int_eq(json_count(r.body, "members"), 1);
    ck_assert(!node_healthy(&c->nodes[stranger]));
    char *log = file_read(c->nodes[0].log, NULL), *found = strstr(log, "does not know our secret");
    ck_assert_msg(found && !strstr(found + 1, "does not know our secret"), "%s", log);
    kill(c->nodes[stranger].pid, SIGKILL);
    process_wait(c->nodes[stranger].pid, 10);
    c->nodes[stranger].pid = 0;
    cluster_stop(c);
}
END_TEST

/* A process that listens where a node was receives the others' frames. */
START_TEST(test_the_secret_is_never_sent)
{
    static const char secret[] = "open sesame, open";
    struct sockaddr_in address = {.sin_family = AF_INET};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t bytes = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, bytes) | listen(listener, 8), 0);
    getsockname(listener, (struct sockaddr *)&address, &bytes);
    char received[1 << 16], *port = text("127.0.0.1:%d", free_port()), *log = fresh("log");
    size_t count = 0;
    pid_t pid =
        process_start((const char *[]){binary(), "--listen", port, "--data", fresh("data"),
                                       "--secret-file", secret_file("secret", secret), "--join",
                                       text("127.0.0.1:%d", ntohs(address.sin_port)), NULL},
                      NULL, log, SIGKILL);
    int link = accept(listener, NULL, NULL);
    for (ssize_t more = 1; more > 0 && !memmem(received, count, "eMl", 3); count += (size_t)more)
        more = recv(link, received + count, sizeof received - count, 0);
    ck_assert_ptr_nonnull(memmem(received, count, "POST /_mail", 11));
    ck_assert_ptr_null(memmem(received, count, secret, strlen(secret)));
    kill(pid, SIGKILL);
    process_wait(pid, 10);
    close(link);
    close(listener);
}
END_TEST

START_TEST(test_nodes_talk_tls)
{
    if (!installed("openssl"))
        return;
    char *folder = fresh("tls");
    struct output o = run(60,
                          "mkdir %s && cd %s && printf 'subjectAltName=IP:127.0.0.1\\n' >ext && "
                          "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout "
                          "ca.key -out ca.pem 2>/dev/null && "
                          "openssl req -newkey rsa:2048 -nodes -subj /CN=node -keyout node.key "
                          "-out node.csr 2>/dev/null && "
                          "openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial "
                          "-days 2 -extfile ext -out node.pem "
                          "2>/dev/null",
                          folder, folder);
    ck_assert_msg(o.status == 0, "%s", o.text);
    http_authority = text("%s/ca.pem", folder);
    const char *options[] = {"--tls-cert", text("%s/node.pem", folder),
                             "--tls-key",  text("%s/node.key", folder),
                             "--tls-ca",   http_authority,
                             NULL};
    struct cluster *c = cluster_start(3, options);
    for (int i = 0; i < 30; i++)
        ck_assert_int_eq(put(c->nodes[i % 3].url, text("/%d", i), "v").status, 201);
    for (int i = 0; i < 30; i++)
        ck_assert_int_eq(get(c->nodes[(i + 1) % 3].url, text("/%d", i)).status, 200);
    char *plain = text("http://127.0.0.1:%d", c->nodes[0].port);
    ck_assert_int_ne(status_of(plain, "GET", "/1", NULL, NULL), 200);
    for (int version = 1; version <= 3; version++) {
        o = run(10, "curl -sk --ciphers DEFAULT@SECLEVEL=0 --tlsv1.0 --tls-max 1.%d %s/1", version,
                c->nodes[0].url);
        ck_assert_msg((o.status == 0) == (version >= 2), "TLS 1.%d: %d", version, o.status);
    }
    struct response r = http(c->nodes[0].url, "POST", "/_mail", NULL, "x", 1);
    ck_assert_int_eq(r.status, 401);
    ck_assert_msg(strstr(r.body, "certificate") && !strstr(r.body, "secret"), "%s", r.body);
    cluster_stop(c);
}
END_TEST

/* ================================ clients ================================ */

START_TEST(test_two_thousand_idle_connections_leave_the_others_served)
{
    enum { IDLE = 2000 };
    raise_open_files();
    int *fds = calloc(IDLE, sizeof *fds);
    for (int i = 0; i < IDLE; i++)
        fds[i] = raw_connect(alone->nodes[0].port);
    for (int i = 0; i < 100; i++) {
        put_etag(ALONE, own("k"), text("%d", i));
        has_value(ALONE, own("k"), text("%d", i));
    }
    int served = 0;
    for (int i = 0; i < IDLE; i += 400) { /* an idle one that asks at last */
        raw_print(fds[i], "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", own("k"));
        served += raw_receive(fds[i], 10).status == 200;
    }
    ck_assert_int_eq(served, 5);
    for (int i = 0; i < IDLE; i++)
        close(fds[i]);
    has_value(ALONE, own("k"), "99");
}
END_TEST

/* More connections than there are places for: the longest idle ones are closed, and requests are answered. */
START_TEST(test_idle_connections_make_place_for_others)
{
    enum { IDLE = 700 };
    struct cluster *c = cluster_start(1, (const char *const[]){"--memory", "16M", NULL});
    const char *url = c->nodes[0].url;
    int fds[IDLE], closed = 0;
    for (int i = 0; i < IDLE; i++)
        fds[i] = raw_connect(c->nodes[0].port);
    http_fresh = true;
    for (int i = 0; i < 20; i++) {
        struct response r = put(url, text("/k%d", i), "v");
        ck_assert_int_eq(r.status, 201);
        ck_assert_double_lt(r.seconds, slowness());
        ck_assert_int_eq(status_of(url, "GET", "/_health", NULL, NULL), 200);
    }
    http_fresh = false;
    AWAIT(raw_closed(fds[0], 0), 5);
    for (int i = 0; i < IDLE; i++)
        closed += raw_closed(fds[i], 0);
    ck_assert_int_ge(closed, IDLE - 256);
    ck_assert(!raw_closed(fds[IDLE - 1], 0));
    for (int i = 0; i < IDLE; i++)
        close(fds[i]);
    cluster_stop(c);
}
END_TEST

/* Those that move keep their turn. */
START_TEST(test_who_holds_much_and_stands_still_is_let_go_while_others_wait)
{
    enum { STALLED = 4, SIZE = 3 << 20 };
    struct cluster *c = cluster_start(1, (const char *const[]){"--memory", "10M", NULL});
    const char *url = c->nodes[0].url;
    char *value = letters(SIZE);
    int fds[STALLED];
    for (int i = 0; i < STALLED; i++) {
        fds[i] = raw_connect(c->nodes[0].port);
        raw_print(fds[i], "PUT /half%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", i, SIZE);
        raw_send(fds[i], value, 1000);
    }
    AWAIT(node_metric(&c->nodes[0], "estoraje_http_requests_in_flight") >= STALLED, 5);
    ck_assert_int_eq(put(url, "/k", value).status, 503);
    AWAIT(put(url, "/k", value).status / 100 == 2, 10);
    struct response r = get(url, "/k");
    ck_assert(body_is(&r, value, SIZE));
    for (int i = 0; i < STALLED; i++)
        close(fds[i]);
    cluster_stop(c);
}
END_TEST

START_TEST(test_nginx_disconnects_a_client_that_sends_half_a_request)
{
    int port = port_of(NGINX), head = raw_connect(port), body = raw_connect(port);
    raw_print(head, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Le", own("k"));
    raw_print(body, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf", own("k"));
    ck_assert(raw_closed(head, 15));
    ck_assert(raw_closed(body, 15));
    close(head);
    close(body);
    has_none(NGINX, own("k"));
    struct response r = http(at(NGINX), "GET", own("k"), NULL, NULL, 0);
    ck_assert_str_eq(header(&r, "Server"), "nginx");
}
END_TEST

START_TEST(test_half_sent_requests_leave_the_others_served)
{
    enum { HALF = 300 };
    int port = port_of(_i), fds[HALF];
    for (int i = 0; i < HALF; i++) {
        fds[i] = raw_connect(port);
        if (i % 3 == 0)
            raw_print(fds[i], "PUT %s HT", own("k"));
        else if (i % 3 == 1)
            raw_print(fds[i], "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Le", own("k"));
        else
            raw_print(fds[i], "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nonly this",
                      own("k"));
    }
    for (int i = 0; i < 50; i++) {
        put_etag(_i, own("served"), text("%d", i));
        has_value(_i, own("served"), text("%d", i));
    }
    for (int i = 0; i < HALF; i++)
        close(fds[i]);
    has_none(_i, own("k"));
}
END_TEST

START_TEST(test_a_slow_body_is_stored)
{
    int fd = raw_connect(port_of(_i));
    raw_print(fd, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n", own("k"));
    char *value = letters(40);
    for (int i = 0; i < 40; i++) {
        raw_send(fd, value + i, 1);
        pause_ms(25);
    }
    ck_assert_int_eq(raw_receive(fd, 10).status, 201);
    close(fd);
    has_value(_i, own("k"), value);
}
END_TEST

START_TEST(test_a_client_that_leaves_in_the_middle_stores_nothing)
{
    put_etag(_i, own("old"), "whole");
    for (int i = 0; i < 30; i++) {
        int fd = raw_connect(port_of(_i));
        raw_print(fd, "PUT %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n%s", own(i % 2 ? "k" : "old"),
                  i % 3 ? "Content-Length: 100" : "Transfer-Encoding: chunked",
                  i % 3 ? "half" : "4\r\nhalf\r\n");
        close(fd);
    }
    has_none(_i, own("k"));
    has_value(_i, own("old"), "whole");
}
END_TEST

START_TEST(test_clients_that_leave_in_mid_answer_hurt_nobody)
{
    char *value = letters(4 << 20);
    put_etag(_i, own("k"), value);
    for (int i = 0; i < 30; i++) {
        int fd = raw_connect(port_of(_i));
        raw_print(fd, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", own("k"));
        char c;
        if (i % 2)
            ck_assert_int_eq(recv(fd, &c, 1, 0), 1);
        close(fd);
    }
    has_value(_i, own("k"), value);
}
END_TEST

START_TEST(test_a_slow_reader_gets_all)
{
    enum { SIZE = 8 << 20 };
    char *value = letters(SIZE);
    put_etag(_i, own("k"), value);
    int fd = raw_connect(port_of(_i));
    raw_print(fd, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", own("k"));
    double start = now();
    while (now() < start + 1)
        has_none(_i, own("none"));
    struct response r = raw_receive(fd, 30);
    ck_assert_int_eq(r.status, 200);
    ck_assert(body_is(&r, value, SIZE));
    close(fd);
}
END_TEST

/* ================================ The list ================================ */

struct entry {
    const char *feature;
    const TTest *test;
    bool everywhere; /* on all three targets; else once */
};

static const struct entry *entries(size_t *count)
{
    static struct entry all[256];
    size_t n = 0;
#define EACH(feature, test) all[n++] = (struct entry){feature, test, true}
#define ONCE(feature, test)                                                                        \
    all[n++] = (struct entry)                                                                      \
    {                                                                                              \
        feature, test, false                                                                       \
    }
    EACH("keys", test_two_spellings_of_a_key_are_one_key);
    EACH("keys", test_slashes_and_dots_are_kept_as_they_are);
    EACH("keys", test_a_key_may_have_any_byte);
    ONCE("keys", test_nothing_is_cut_at_a_zero_byte);
    EACH("keys", test_keys_have_at_most_1024_bytes);
    EACH("keys", test_paths_that_begin_with_an_underscore_are_reserved);
    EACH("keys", test_an_underscore_further_in_is_a_key);
    EACH("keys", test_bad_percent_encoding_is_rejected);
    EACH("values", test_put_answers_whether_it_created_or_replaced);
    EACH("values", test_post_stores_too_and_always_answers_200);
    EACH("values", test_get_returns_all_about_a_value);
    EACH("values", test_head_is_get_without_the_body);
    EACH("values", test_delete_answers_whether_there_was_one);
    EACH("values", test_what_is_not_there_is_404_with_an_empty_body);
    EACH("values", test_content_types_are_given_back);
    EACH("values", test_values_of_all_sizes_come_back_as_they_were);
    EACH("values", test_chunked_bodies_are_kept);
    EACH("values", test_answers_are_never_compressed);
    EACH("values", test_later_etags_sort_higher);
    ONCE("values", test_every_node_reads_what_any_wrote);
    EACH("large", test_a_value_of_64_mib_is_kept);
    EACH("conditions", test_if_match_lets_only_the_current_etag_write);
    EACH("conditions", test_of_a_list_of_etags_only_the_current_one_counts);
    EACH("conditions", test_if_match_star_needs_a_value);
    EACH("conditions", test_if_none_match_star_only_creates);
    EACH("conditions", test_if_none_match_on_get_saves_the_body);
    EACH("conditions", test_if_match_on_get_and_head_is_for_the_value_that_it_names);
    EACH("conditions", test_malformed_conditions_are_rejected);
    EACH("conditions", test_one_of_many_creators_wins);
    EACH("conditions", test_no_update_is_lost_to_another);
    EACH("ranges", test_ranges_are_cut_out);
    EACH("ranges", test_a_range_of_a_large_value_is_its_part);
    EACH("ranges", test_an_empty_value_has_no_range);
    EACH("ranges", test_pieces_of_a_large_value_make_the_whole);
    EACH("ttl", test_a_key_is_gone_after_its_time_and_not_before);
    EACH("ttl", test_times_to_live_have_units);
    EACH("ttl", test_a_time_to_live_runs_from_when_the_body_was_there);
    EACH("ttl", test_a_write_without_a_time_to_live_stays);
    EACH("ttl", test_an_expired_key_counts_as_none_for_conditions);
    EACH("ttl", test_a_lock_is_acquired_renewed_and_freed);
    EACH("wait", test_a_waiting_get_is_answered_by_the_change);
    EACH("wait", test_a_get_can_wait_for_a_key_to_come);
    EACH("wait", test_a_waiting_get_is_answered_by_delete_and_expiry);
    EACH("wait", test_a_wait_ends_when_its_time_is_over);
    EACH("wait", test_no_wait_where_there_is_nothing_to_wait_for);
    EACH("wait", test_nothing_but_a_change_wakes_a_waiter);
    EACH("wait", test_bad_waits_are_rejected);
    ONCE("wait", test_thousands_wait_at_once_and_others_are_served);
    ONCE("wait", test_a_waiting_client_that_leaves_is_noticed);
    EACH("counters", test_counters_count);
    EACH("counters", test_counters_reject_what_is_no_64_bit_integer);
    EACH("counters", test_bad_counts_are_rejected);
    EACH("counters", test_no_count_is_lost_or_made_twice);
    ONCE("counters", test_a_body_that_a_count_does_not_need_is_no_damaged_frame);
    EACH("listings", test_a_path_that_ends_in_a_slash_lists_the_keys_below);
    EACH("listings", test_a_prefix_need_not_end_in_a_slash);
    EACH("listings", test_pages_make_the_whole_list);
    EACH("listings", test_a_list_of_long_keys_has_a_next_page_and_puts_no_node_aside);
    EACH("listings", test_what_is_deleted_or_expired_is_not_listed);
    EACH("listings", test_a_long_list_comes_in_pages_of_a_thousand);
    ONCE("listings", test_many_listings_at_once_hold_up_nobody);
    EACH("listings", test_the_next_page_is_on_the_same_host_whatever_the_key);
    EACH("listings", test_the_next_page_is_encoded_however_the_path_was_spelt);
    EACH("listings", test_json_has_more_of_each_key);
    EACH("listings", test_restic_lists_names_and_sizes);
    EACH("listings", test_bad_listings_are_rejected);
    EACH("consistency", test_each_consistency_reads_and_writes);
    EACH("consistency", test_consistency_one_has_no_conditions_and_no_counters);
    EACH("retries", test_a_repeated_put_gets_the_first_answer_and_is_not_applied_again);
    EACH("retries", test_a_repeated_count_counts_once);
    EACH("retries", test_a_repeated_delete_or_condition_gets_the_first_answer);
    EACH("retries", test_a_repeat_of_a_rejected_write_gets_the_same_rejection);
    EACH("retries", test_a_repeat_that_was_rejected_stays_rejected);
    EACH("retries", test_the_same_key_on_another_request_is_another_write);
    EACH("retries", test_a_write_whose_key_is_over_a_minute_old_is_503_and_the_text_says_how_far);
    EACH("retries", test_a_write_made_ahead_takes_no_time_from_other_keys);
    EACH("retries", test_a_first_try_that_comes_late_is_unknown_too);
    EACH("retries", test_a_write_follows_one_of_consistency_one);
    EACH("retries", test_a_proxy_whose_clock_is_behind_gets_unknown_no_more_often);
    EACH("retries",
         test_a_repeat_whose_answer_was_let_go_is_unknown_and_an_unmarked_one_is_a_new_write);
    EACH("retries", test_a_mark_is_0_or_1_or_the_time_of_the_first_try);
    EACH("retries", test_answers_unknown_put_no_node_aside);
    EACH("retries", test_any_idempotency_key_of_1_to_255_bytes_is_accepted);
    ONCE("retries", test_a_node_forgets_an_answer_that_has_come_and_that_nobody_asks_for_again);
    EACH("retries", test_malformed_idempotency_keys_are_rejected);
    EACH("retries", test_consistency_one_ignores_idempotency_keys);
    EACH("errors", test_unknown_or_misplaced_parameters_are_rejected);
    EACH("errors", test_a_read_may_have_parameters_that_nobody_knows);
    EACH("errors", test_a_plus_in_a_query_is_a_space_and_in_a_path_it_is_a_plus);
    EACH("errors", test_a_part_of_a_value_is_not_written);
    EACH("errors", test_what_a_page_of_another_site_sends_changes_nothing);
    EACH("errors", test_other_methods_are_405_with_allow);
    ONCE("errors", test_a_write_without_a_length_is_411);
    EACH("errors", test_every_error_says_what_is_wrong_in_one_line);
    ONCE("errors", test_a_value_over_the_limit_is_413_and_changes_nothing);
    ONCE("errors", test_nginx_names_the_limit_of_values_too);
    ONCE("errors", test_what_does_not_fit_in_memory_is_503_and_comes_later);
    EACH("wire", test_ambiguous_requests_are_400_and_the_connection_is_closed);
    EACH("wire", test_a_smuggled_request_is_not_served);
    EACH("wire", test_pipelined_requests_are_answered_in_order);
    EACH("wire", test_a_client_may_ask_before_it_sends);
    EACH("wire", test_the_whole_address_may_stand_in_the_request_line);
    EACH("wire", test_odd_but_well_formed_requests_are_served);
    EACH("wire", test_a_client_that_sends_no_more_gets_its_answer);
    ONCE("wire", test_clients_that_leave_in_the_middle_are_noticed_at_once);
    EACH("wire", test_http_1_0_clients_are_served);
    EACH("wire", test_a_connection_serves_many_requests);
    EACH("wire", test_noise_is_answered_or_closed_and_hurts_nobody);
    EACH("reserved", test_health_is_ok);
    EACH("reserved", test_ready_is_ok_at_a_node_that_has_all_its_data);
    EACH("reserved", test_status_describes_the_cluster);
    EACH("reserved", test_status_counts_tombstones);
    EACH("reserved", test_nodes_are_listed_one_a_line);
    EACH("reserved", test_the_owners_of_a_key_are_listed);
    EACH("reserved", test_the_ring_page_is_a_page);
    ONCE("reserved", test_nothing_dangerous_is_reached_through_nginx);
    ONCE("reserved", test_the_last_member_cannot_leave);
    EACH("metrics", test_metrics_please_promtool);
    ONCE("metrics", test_all_metrics_are_there_from_the_start);
    ONCE("metrics", test_metrics_count_requests_and_keys);
    ONCE("options", test_wrong_usage_is_2_and_says_why);
    ONCE("options", test_a_node_that_others_can_reach_needs_a_secret);
    ONCE("options", test_files_that_every_user_can_read_are_logged_at_start);
    ONCE("options", test_the_log_is_never_written_through_a_link);
    ONCE("options", test_an_empty_folder_needs_bootstrap_or_join);
    ONCE("options", test_help_names_every_option);
    ONCE("options", test_options_can_come_from_the_environment);
    ONCE("options", test_two_processes_never_share_a_folder);
    ONCE("options", test_a_port_in_use_is_1_and_says_so);
    ONCE("options", test_a_node_comes_back_with_what_it_had_and_without_options);
    ONCE("options", test_a_node_never_changes_its_cluster);
    ONCE("options", test_a_node_starts_with_the_join_of_its_first_start);
    ONCE("options", test_a_node_without_a_cluster_says_so_at_once);
    ONCE("options", test_nodes_have_names_and_serve_ipv6_and_ipv4_at_once);
    ONCE("options", test_sigterm_sigint_and_sighup_stop_it_as_asked);
    ONCE("options", test_what_is_under_way_at_sigterm_is_finished);
    ONCE("options", test_while_a_node_finishes_new_requests_get_503);
    ONCE("options", test_a_wait_at_sigterm_is_answered);
    ONCE("options", test_log_lines_are_logfmt);
    ONCE("options", test_sync_none_says_what_it_gives_up);
    ONCE("options", test_the_first_node_sets_the_replicas);
    ONCE("options", test_systemd_is_notified_of_ready_and_stopping);
    ONCE("secret", test_a_secret_is_asked_of_nodes_and_not_of_clients);
    ONCE("secret", test_a_node_with_another_secret_stays_outside);
    ONCE("secret", test_the_secret_is_never_sent);
    ONCE("secret", test_nodes_talk_tls);
    ONCE("clients", test_two_thousand_idle_connections_leave_the_others_served);
    EACH("clients", test_half_sent_requests_leave_the_others_served);
    ONCE("clients", test_idle_connections_make_place_for_others);
    ONCE("clients", test_who_holds_much_and_stands_still_is_let_go_while_others_wait);
    ONCE("clients", test_nginx_disconnects_a_client_that_sends_half_a_request);
    EACH("clients", test_a_slow_body_is_stored);
    EACH("clients", test_a_client_that_leaves_in_the_middle_stores_nothing);
    EACH("clients", test_clients_that_leave_in_mid_answer_hurt_nobody);
    EACH("clients", test_a_slow_reader_gets_all);
#undef EACH
#undef ONCE
    *count = n;
    return all;
}

static TCase *feature_case(Suite *suite, const char *name)
{
    TCase *c = tcase_create(name);
    tcase_add_unchecked_fixture(c, shared_setup, NULL);
    tcase_set_timeout(c, 60);
    suite_add_tcase(suite, c);
    return c;
}

int main(void)
{
    harness_begin("api");
    Suite *suite = suite_create("api");
    TCase *feature = NULL;
    const char *last = "";
    size_t count;
    const struct entry *all = entries(&count);
    for (size_t i = 0; i < count; i++) {
        if (!harness_wants(all[i].test))
            continue;
        if (strcmp(all[i].feature, last))
            feature = feature_case(suite, last = all[i].feature);
        if (all[i].everywhere)
            tcase_add_loop_test(feature, all[i].test, 0, TARGETS);
        else
            tcase_add_test(feature, all[i].test);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    shared_end(alone);
    shared_end(three);
    return harness_end(runner);
}
