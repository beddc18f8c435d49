/*
 * test_cluster.c - whole clusters of real processes, mostly behind real nginx, and what they must
 * survive.
 *
 * Times are asserted only as bounds far above what is measured on a machine at rest, which is
 * printed. More of it all:
 *   ESTORAJE_TEST_FILES=n   how many files of /usr/include and /usr/share/doc are stored (2000)
 *   ESTORAJE_TEST_KEYS=n    how many keys are moved about (2000)
 *   ESTORAJE_TEST_PAUSE=s   how long a stopped node stays stopped (5)
 *   ESTORAJE_TEST_APART=s   how much time is between two losses of a disk, at least (1)
 *   ESTORAJE_TEST_ROUNDS=n  how many clusters are started in disorder (4), from the seed
 *   ESTORAJE_TEST_SEED=n    on (1)
 *   ESTORAJE_TEST_DRIFT=s   how long clocks drift (6)
 */
#include "cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ================================ Helpers ================================ */

static int setting(const char *name, int otherwise)
{
    const char *s = getenv(name);
    return s ? atoi(s) : otherwise;
}

static void wait_seconds(double seconds)
{
    pause_ms((int)(seconds * 1000));
}

/* Three nodes behind nginx, or more. */
static struct cluster *behind_nginx(int nodes, const char *const *options)
{
    struct cluster *c = cluster_start(nodes, options);
    cluster_nginx(c);
    return c;
}

static struct load *load_through(const char *url, const char *prefix, int clients)
{
    return load_start(&(struct load_plan){.urls = {url},
                                          .prefix = prefix,
                                          .clients = clients,
                                          .keys = 40,
                                          .value_bytes = 100,
                                          .pause_ms = 2});
}

/* About a hundred requests a second. nginx may repeat them. */
enum { PACED_CLIENTS = 5, PACED_KEYS = 50 };

static struct load *load_paced(const struct cluster *c)
{
    return load_start(&(struct load_plan){.urls = {c->nginx_url},
                                          .prefix = "/paced",
                                          .clients = PACED_CLIENTS,
                                          .keys = PACED_KEYS / PACED_CLIENTS,
                                          .value_bytes = 100,
                                          .pause_ms = 45});
}

/* Until that many more requests were answered: so the load is in full swing, however slow the
 * machine is. */
static void load_goes_on(struct load *l, long requests)
{
    long from = load_requests(l);
    AWAIT(load_requests(l) >= from + requests, 60);
}

static struct load_report load_end(struct load *l, const char *what)
{
    struct load_report r = load_stop(l);
    printf("%s: %ld requests, %ld failed, slowest: %s\n", what, r.requests, r.failed,
           r.slowest_what);
    ck_assert_msg(r.wrong == 0, "%ld wrong, the first: %s", r.wrong, r.first_wrong);
    return r;
}

static void load_end_without_failure(struct load *l, const char *what)
{
    struct load_report r = load_end(l, what);
    ck_assert_msg(r.failed == 0, "%ld of %ld failed, the first: %s", r.failed, r.requests,
                  r.first_failure);
}

/* All that was acknowledged is there, through each node that runs. */
static void load_is_there(struct load *l, const struct cluster *c)
{
    for (int i = 0; i < c->count; i++)
        if (c->nodes[i].pid)
            ck_assert_msg(load_check(l, c->nodes[i].url) == 0, "through node %d", i);
}

/* nginx leaves a node alone for a second after it failed, which must be over if the next one is
 * to fail alone: until it hands on a PUT to this one, which was just started and has had none
 * from anybody else. */
static void nginx_asks_again(const struct cluster *c, int i)
{
    const char *made = "estoraje_http_requests_total{method=\"PUT\",code=\"201\"}";
    const char *replaced = "estoraje_http_requests_total{method=\"PUT\",code=\"204\"}";
    double end = now() + 20 * slowness();
    int keys = 0; /* it asks one node for each */
    while (!(node_metric(&c->nodes[i], made) > 0) && !(node_metric(&c->nodes[i], replaced) > 0)) {
        ck_assert_msg(now() < end, "nginx does not ask node %d", i);
        ck_assert_int_ne(put(c->nginx_url, text("/asked%d", keys++), "v").status, 0);
        pause_ms(20);
    }
}

static double slowest_allowed(double seconds)
{
    return seconds * slowness();
}

static char *key_of(int i)
{
    return text("/keys/%d/%d", i % 7, i);
}

static char *value_of(int i)
{
    return text("the value of %d is%*d", i, 50 + i % 90, i);
}

struct many {
    const char *urls[NODES_MAX];
    int count, next, failed;
    const char *method;
    char *first;
};

static void *many_run(void *argument)
{
    struct many *m = argument;
    int urls = 0;
    while (m->urls[urls])
        urls++;
    for (int i; (i = __atomic_fetch_add(&m->next, 1, __ATOMIC_SEQ_CST)) < m->count;) {
        char *key = key_of(i), *value = value_of(i);
        bool puts = !strcmp(m->method, "PUT"), gets = !strcmp(m->method, "GET");
        struct response r = http(m->urls[i % urls], m->method, key, NULL, puts ? value : NULL,
                                 puts ? strlen(value) : 0);
        bool good =
            gets ? r.status == 200 && body_is(&r, value, strlen(value)) : r.status / 100 == 2;
        if (!good && !__atomic_fetch_add(&m->failed, 1, __ATOMIC_SEQ_CST))
            m->first = text("%s %s: %d %.100s%s", m->method, key, r.status, r.body, r.error);
        response_free(&r);
        free(key);
        free(value);
    }
    return NULL;
}

/* PUT, GET (and compare) or DELETE the keys 0 to count - 1, by four clients; none may fail. */
static void keys_do(const char *method, int count, const char *const *urls)
{
    struct many m = {.count = count, .method = method};
    for (int i = 0; urls[i] && i < NODES_MAX - 1; i++)
        m.urls[i] = urls[i];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, many_run, &m), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    ck_assert_msg(m.failed == 0, "%d of %d failed, the first: %s", m.failed, count, m.first);
}

static void keys_on(const char *method, int count, const char *url)
{
    keys_do(method, count, (const char *const[]){url, NULL});
}

static void keys_are_everywhere(int count, const struct cluster *c)
{
    for (int i = 0; i < c->count; i++)
        if (c->nodes[i].pid)
            keys_on("GET", count, c->nodes[i].url);
}

static double status_number(const struct node *n, const char *path)
{
    struct response r = get(n->url, "/_status");
    double number = r.status == 200 ? json_number(r.body, path) : NAN;
    response_free(&r);
    return number;
}

/* What all that run hold together, by their own account. */
static double copies(const struct cluster *c)
{
    double sum = 0;
    for (int i = 0; i < c->count; i++)
        if (c->nodes[i].pid)
            sum += status_number(&c->nodes[i], "keys");
    return sum;
}

/* Each key at its owners and nowhere else: there are count keys in all. */
static void await_copies(const struct cluster *c, int count, int replicas)
{
    double end = now() + 60 * slowness();
    while (copies(c) != (double)count * replicas) {
        ck_assert_msg(now() < end, "%g copies of %d keys", copies(c), count);
        pause_ms(100);
    }
}

static int members(const struct node *n)
{
    struct response r = get(n->url, "/_status");
    int count = r.status == 200 ? json_count(r.body, "members") : -1;
    response_free(&r);
    return count;
}

static char *member_state(const struct node *n, const char *id)
{
    struct response r = get(n->url, "/_status");
    char *state = strdup("none");
    for (int m = 0; m < json_count(r.body, "members"); m++)
        if (!strcmp(json_string(r.body, text("members.%d.id", m)), id))
            state = json_string(r.body, text("members.%d.state", m));
    response_free(&r);
    return state;
}

static int other_than(const struct cluster *c, int i)
{
    for (int other = 0; other < c->count; other++)
        if (other != i && c->nodes[other].pid)
            return other;
    ck_abort_msg("no other node runs");
}

/* The coordinator is the live voter with the smallest id. */
static int coordinator(const struct cluster *c)
{
    int smallest = -1;
    for (int i = 0; i < c->count; i++)
        if (c->nodes[i].pid &&
            (smallest < 0 || strcmp(node_id(&c->nodes[i]), node_id(&c->nodes[smallest])) < 0))
            smallest = i;
    return smallest;
}

static void drain(struct cluster *c, int i)
{
    struct response r = http(c->nodes[other_than(c, i)].url, "DELETE",
                             text("/_nodes/%s", node_id(&c->nodes[i])), NULL, NULL, 0);
    ck_assert_msg(r.status == 202, "%d %s", r.status, r.body);
}

/* What became of a member that is gone: it is stopped, and its folder is left alone. */
static void bury(struct cluster *c, int i)
{
    if (c->nodes[i].pid)
        node_kill(c, i);
}

/* ================================ files ================================ */

struct file {
    char *path;
    size_t bytes;
};

static struct {
    struct file *all;
    int count, next, failed;
    const char *url, *method;
    char *first;
} files;

static bool file_add(const char *path, size_t bytes, void *context)
{
    (void)context;
    if (bytes > 64 << 20)
        return true;
    if (!(files.count & (files.count - 1)))
        files.all = realloc(files.all, (size_t)(files.count * 2 + 1) * sizeof *files.all);
    files.all[files.count++] = (struct file){strdup(path), bytes};
    return files.count < 100000;
}

/* Evenly picked; the empty and the large ones all stay. */
static void files_thin_out(int wanted)
{
    int kept = 0, every = files.count / wanted + 1;
    for (int i = 0; i < files.count; i++)
        if (i % every == 0 || files.all[i].bytes == 0)
            files.all[kept++] = files.all[i];
    files.count = kept;
}

static char *path_encoded(const char *path)
{
    char *encoded = calloc(3, strlen(path) + 1), *to = encoded;
    for (const char *c = path; *c; c++)
        if (strchr("/.-_~", *c) || (*c >= '0' && *c <= '9') ||
            ((*c | 32) >= 'a' && (*c | 32) <= 'z'))
            *to++ = *c;
        else
            to += sprintf(to, "%%%02X", (unsigned char)*c);
    return encoded;
}

static void *files_run(void *argument)
{
    (void)argument;
    for (int i; (i = __atomic_fetch_add(&files.next, 1, __ATOMIC_SEQ_CST)) < files.count;) {
        size_t bytes = 0;
        char *content = file_read(files.all[i].path, &bytes),
             *path = path_encoded(files.all[i].path);
        bool puts = !strcmp(files.method, "PUT");
        struct response r =
            http(files.url, files.method, path, NULL, puts ? content : NULL, puts ? bytes : 0);
        bool good = puts ? r.status == 201 || r.status == 204
                         : r.status == 200 && body_is(&r, content, bytes);
        if (!good && !__atomic_fetch_add(&files.failed, 1, __ATOMIC_SEQ_CST))
            files.first =
                text("%s %s%s: %d, %zu bytes of %zu, %.100s%s", files.method, files.url, path,
                     r.status, r.body_bytes, bytes, r.status == 200 ? "" : r.body, r.error);
        response_free(&r);
        free(path);
        free(content);
    }
    return NULL;
}

static void files_begin(const char *method, const char *url, pthread_t *threads, int count)
{
    files.method = method;
    files.url = url;
    files.next = files.failed = 0;
    for (int i = 0; i < count; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, files_run, NULL), 0);
}

static void files_end(pthread_t *threads, int count)
{
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    ck_assert_msg(files.failed == 0, "%d of %d failed, the first: %s", files.failed, files.count,
                  files.first);
}

static void files_await(double share)
{
    AWAIT(__atomic_load_n(&files.next, __ATOMIC_SEQ_CST) >= share * files.count, 200);
}

START_TEST(test_every_file_put_through_nginx_reads_back_from_every_node)
{
    enum { CLIENTS = 4 };
    folder_walk("/usr/include", file_add, NULL);
    folder_walk("/usr/share/doc", file_add, NULL);
    files_thin_out(setting("ESTORAJE_TEST_FILES", 2000));
    struct cluster *c = behind_nginx(3, NULL);
    pthread_t threads[CLIENTS];
    double start = now();
    files_begin("PUT", c->nginx_url, threads, CLIENTS);
    files_await(.25);
    node_kill(c, 1);
    files_await(.5);
    node_start(c, 1);
    files_await(.6);
    node_start(c, cluster_add(c));
    files_end(threads, CLIENTS);
    printf("%d files put in %.1f s\n", files.count, now() - start);
    cluster_await(c, 4, 120);
    for (int i = 0; i < c->count; i++) {
        files_begin("GET", c->nodes[i].url, threads, CLIENTS);
        files_end(threads, CLIENTS);
    }
    files_begin("GET", c->nginx_url, threads, CLIENTS);
    files_end(threads, CLIENTS);
    cluster_stop(c);
}
END_TEST

/* ================================ failures ================================ */

START_TEST(test_a_killed_node_costs_no_request_and_no_stall)
{
    struct cluster *c = behind_nginx(3, NULL);
    struct load *l = load_through(c->nginx_url, "/load", 6);
    for (int i = 0; i < 3; i++) {
        load_goes_on(l, 300);
        double killed = now();
        node_kill(c, i);
        load_goes_on(l, 600);
        double slowest = load_slowest(l, killed - 1, now());
        printf("node %d killed: the slowest request around it took %.3f s\n", i, slowest);
        ck_assert_msg(slowest < slowest_allowed(1.5), "%.3f s", slowest);
        node_start(c, i);
        cluster_await(c, 3, 40);
        nginx_asks_again(c, i);
    }
    load_end_without_failure(l, "three nodes killed in turn");
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_stopped_node_costs_no_request)
{
    struct cluster *c = behind_nginx(3, NULL);
    const struct load_plan direct = {.urls = {c->nodes[1].url, c->nodes[2].url},
                                     .prefix = "/direct",
                                     .clients = 3,
                                     .keys = 40,
                                     .pause_ms = 2};
    struct load *through = load_through(c->nginx_url, "/nginx", 4), *others = load_start(&direct);
    load_goes_on(others, 300);
    node_signal(c, 0, SIGSTOP);
    wait_seconds(setting("ESTORAJE_TEST_PAUSE", 5));
    node_signal(c, 0, SIGCONT);
    cluster_await(c, 3, 40);
    load_goes_on(through, 100);
    struct load_report r = load_stop(others);
    load_end_without_failure(others, "a node stopped, the others asked");
    ck_assert_msg(r.slowest < slowest_allowed(2.5), "%s", r.slowest_what);
    r = load_stop(through);
    load_end_without_failure(through, "a node stopped, through nginx");
    ck_assert_msg(r.slowest < slowest_allowed(6), "%s", r.slowest_what);
    load_is_there(others, c);
    load_is_there(through, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_node_cut_off_costs_no_request_through_nginx)
{
    struct cluster *c = cluster_start_proxied(3, NULL);
    cluster_nginx(c);
    struct load *l = load_through(c->nginx_url, "/load", 6);
    for (int i = 0; i < 2; i++) {
        load_goes_on(l, 300);
        cluster_isolate(c, i, true);
        AWAIT(!node_healthy(&c->nodes[i]), 15);
        struct response r = put(c->nodes[i].url, "/cut-off", "v");
        ck_assert_int_eq(r.status, 503);
        ck_assert_ptr_nonnull(header(&r, "Retry-After"));
        ck_assert_msg(r.seconds < slowest_allowed(2),
                      "without a lease 503 comes at once, not after %.2f s", r.seconds);
        ck_assert_int_eq(status_of(c->nodes[i].url, "GET", "/cut-off", NULL, NULL), 503);
        load_goes_on(l, 300);
        cluster_isolate(c, i, false);
        cluster_await(c, 3, 40);
    }
    struct load_report r = load_stop(l);
    load_end_without_failure(l, "two nodes cut off in turn");
    ck_assert_msg(r.slowest < slowest_allowed(6), "%s", r.slowest_what);
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_link_cut_one_way_costs_no_request_through_nginx)
{
    struct cluster *c = cluster_start_proxied(3, NULL);
    cluster_nginx(c);
    struct load *l = load_through(c->nginx_url, "/load", 6);
    for (int i = 0; i < 3; i++) {
        load_goes_on(l, 200);
        cluster_cut(c, i, (i + 1) % 3, true);
        wait_seconds(3.5);
        cluster_cut(c, i, (i + 1) % 3, false);
        cluster_await(c, 3, 40);
    }
    load_end_without_failure(l, "each link cut one way");
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_all_killed_at_once_lose_nothing_acknowledged)
{
    struct cluster *c = cluster_start(3, NULL);
    const struct load_plan plan = {.urls = {c->nodes[0].url, c->nodes[1].url, c->nodes[2].url},
                                   .prefix = "/load",
                                   .clients = 8,
                                   .keys = 25,
                                   .put_percent = 80};
    for (int round = 0; round < 4; round++) {
        struct load_plan p = plan;
        p.prefix = text("/load%d", round);
        struct load *l = load_start(&p);
        load_goes_on(l, 800 + 300 * round);
        for (int i = 0; i < 3; i++)
            node_signal(c, i, SIGKILL);
        for (int i = 0; i < 3; i++) {
            process_wait(c->nodes[i].pid, 20);
            c->nodes[i].pid = 0;
        }
        struct load_report r = load_stop(l);
        ck_assert_msg(r.wrong == 0, "%s", r.first_wrong);
        for (int i = 0; i < 3; i++)
            node_start(c, i);
        cluster_await(c, 3, 40);
        printf("killed all: %ld writes acknowledged, %ld unknown, %d keys\n", r.acknowledged,
               r.unknown, load_keys(l));
        load_is_there(l, c);
        ck_assert_int_ge(load_keys(l), 1);
    }
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_minority_answers_503_at_once_and_keeps_its_data)
{
    struct cluster *c = cluster_start(3, NULL);
    keys_on("PUT", 100, c->nodes[0].url);
    node_kill(c, 1);
    node_kill(c, 2);
    const char *url = c->nodes[0].url;
    AWAIT(!node_healthy(&c->nodes[0]), 15);
    static const char *const methods[] = {"PUT", "GET", "DELETE", "POST"};
    for (int i = 0; i < 4; i++) {
        struct response r =
            http(url, methods[i], "/keys/0/0", NULL, i % 2 ? NULL : "v", i % 2 ? 0 : 1);
        if (!strcmp(methods[i], "GET"))
            r = get(url, "/keys/0/0");
        ck_assert_msg(r.status == 503, "%s: %d", methods[i], r.status);
        ck_assert_ptr_nonnull(header(&r, "Retry-After"));
        ck_assert_ptr_null(header(&r, "Estoraje-Outcome"));
        ck_assert_msg(r.seconds < slowest_allowed(2), "%.2f s", r.seconds);
    }
    for (int i = 0; i < 100; i++) {
        struct response r = get(url, text("%s?consistency=one", key_of(i)));
        ck_assert_msg(r.status == 200 || r.status == 404, "%d", r.status);
    }
    struct response list =
        get(url, "/?consistency=one&limit=100000"); /* all that can be read out */
    ck_assert_int_eq(list.status, 200);
    for (int i = 0; i < 100; i++)
        ck_assert_msg(strstr(list.body, text("%s\n", key_of(i) + 1)) != NULL, "%s", key_of(i));
    struct response r = put(url, "/lonely?consistency=one", "still taken");
    ck_assert_int_eq(r.status, 200);
    node_start(c, 1);
    node_start(c, 2);
    cluster_await(c, 3, 40);
    keys_are_everywhere(100, c);
    AWAIT((r = get(c->nodes[1].url, "/lonely")).status == 200 && body_is(&r, "still taken", 11),
          20);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_rolling_restart_costs_no_request)
{
    struct cluster *c = behind_nginx(3, NULL);
    struct load *l = load_through(c->nginx_url, "/load", 6);
    for (int i = 0; i < 3; i++) {
        load_goes_on(l, 200);
        int status = node_stop(c, i);
        ck_assert_int_eq(status, 0);
        node_start(c, i);
        AWAIT(node_ready(&c->nodes[i]), 40);
        nginx_asks_again(c, i);
    }
    load_end_without_failure(l, "restarted in turn");
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_node_that_was_away_catches_up)
{
    int count = setting("ESTORAJE_TEST_KEYS", 2000);
    struct cluster *c = cluster_start(3, NULL);
    keys_on("PUT", count / 2, c->nodes[0].url);
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq(put(c->nodes[0].url, text("/deleted/%d", i), "v").status, 201);
    node_kill(c, 2);
    keys_on("PUT", count, c->nodes[0].url);
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq(status_of(c->nodes[1].url, "DELETE", text("/deleted/%d", i), NULL, NULL),
                         200);
    node_start(c, 2);
    cluster_await(c, 3, 40);
    double start = now();
    await_copies(c, count, 3);
    printf("caught up on %d writes in %.1f s\n", count / 2, now() - start);
    node_kill(c, 0); /* so that what it caught up on is needed */
    keys_on("GET", count, c->nodes[2].url);
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq(status_of(c->nodes[2].url, "GET", text("/deleted/%d", i), NULL, NULL),
                         404);
    cluster_stop(c);
}
END_TEST

/* It puts a node aside for two seconds that does not answer: when all are aside, it asks them anyway. */
START_TEST(test_nginx_asks_a_node_that_is_back_at_once)
{
    struct cluster *c = behind_nginx(3, NULL);
    ck_assert_int_eq(put(c->nodes[0].url, "/k", "v").status, 201);
    for (int n = 0; n < 3; n++)
        node_kill(c, n);
    for (int i = 0; i < 6; i++)
        ck_assert_int_eq(status_of(c->nginx_url, "GET", text("/%d", i), NULL, NULL), 503);
    for (int n = 0; n < 3; n++)
        node_start(c, n);
    AWAIT(status_of(c->nginx_url, "GET", "/k", NULL, NULL) > 0 &&
              status_of(c->nodes[0].url, "GET", "/k", NULL, NULL) == 200,
          20);
    ck_assert_int_eq(status_of(c->nginx_url, "GET", "/k", NULL, NULL), 200);
    cluster_stop(c);
}
END_TEST

/* The others are killed the moment it says so: what it has then is all that there is. */
START_TEST(test_a_node_is_ready_when_what_it_missed_is_there)
{
    int count = setting("ESTORAJE_TEST_KEYS", 2000);
    struct cluster *c = cluster_start(3, NULL);
    keys_on("PUT", count / 2, c->nodes[0].url);
    for (int how = 0; how < 2; how++) { /* down; then frozen, so that it misses the rest */
        if (how)
            node_signal(c, 2, SIGSTOP);
        else
            node_kill(c, 2);
        AWAIT(node_metric(&c->nodes[0],
                          text("estoraje_peer_up{peer=\"%s\"}", c->nodes[2].address)) == 0,
              20);
        keys_on("PUT", how ? count : count * 3 / 4, c->nodes[0].url);
        if (how)
            node_signal(c, 2, SIGCONT);
        else
            node_start(c, 2);
        AWAIT(!node_ready(&c->nodes[2]), 20);
        AWAIT(node_ready(&c->nodes[2]), 40);
    }
    node_kill(c, 0);
    node_kill(c, 1);
    for (int i = 0; i < count; i++)
        ck_assert_int_eq(
            status_of(c->nodes[2].url, "GET", text("%s?consistency=one", key_of(i)), NULL, NULL),
            200);
    AWAIT(!node_ready(&c->nodes[2]), 10);
    struct response r = get(c->nodes[2].url, "/_ready");
    ck_assert_msg(r.status == 503 && strstr(r.body, "lease"), "%d %s", r.status, r.body);
    cluster_stop(c);
}
END_TEST

/* A joiner is healthy long before it has any data. */
START_TEST(test_a_joiner_is_ready_when_it_is_up_and_has_its_share)
{
    int count = setting("ESTORAJE_TEST_KEYS", 2000);
    struct cluster *c = cluster_start(1, NULL);
    keys_on("PUT", count, c->nodes[0].url);
    cluster_add(c);
    node_start(c, 1);
    AWAIT(node_ready(&c->nodes[1]), 60);
    ck_assert_str_eq(member_state(&c->nodes[1], node_id(&c->nodes[1])), "up");
    node_kill(c, 0);
    for (int i = 0; i < count; i++)
        ck_assert_int_eq(
            status_of(c->nodes[1].url, "GET", text("%s?consistency=one", key_of(i)), NULL, NULL),
            200);
    cluster_stop(c);
}
END_TEST

START_TEST(test_deleted_keys_stay_deleted_whichever_node_was_away)
{
    struct cluster *c = cluster_start(3, NULL);
    keys_on("PUT", 150, c->nodes[0].url);
    for (int i = 0; i < 3; i++) {
        node_kill(c, i);
        for (int k = i; k < 150; k += 3)
            ck_assert_int_eq(status_of(c->nodes[(i + 1) % 3].url, "DELETE", key_of(k), NULL, NULL),
                             200);
        node_start(c, i);
        cluster_await(c, 3, 40);
    }
    await_copies(c, 0, 3);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 150; k++)
            ck_assert_int_eq(status_of(c->nodes[i].url, "GET", key_of(k), NULL, NULL), 404);
    cluster_stop(c);
}
END_TEST

/* ================================ moves ================================ */

START_TEST(test_a_joiner_takes_its_share_while_clients_run)
{
    int count = setting("ESTORAJE_TEST_KEYS", 2000);
    struct cluster *c = behind_nginx(3, NULL);
    keys_on("PUT", count, c->nginx_url);
    struct load *l = load_through(c->nginx_url, "/load", 4);
    load_goes_on(l, 200);
    node_start(c, cluster_add(c));
    cluster_await(c, 4, 60);
    load_goes_on(l, 200);
    load_end_without_failure(l, "a fourth joined");
    keys_are_everywhere(count, c);
    load_is_there(l, c);
    AWAIT(copies(c) == status_number(&c->nodes[0], "keys") + status_number(&c->nodes[1], "keys") +
                           status_number(&c->nodes[2], "keys") +
                           status_number(&c->nodes[3], "keys"),
          10);
    double share = status_number(&c->nodes[3], "keys") / copies(c);
    ck_assert_msg(share > .15 && share < .35, "the fourth holds %.2f of all copies", share);
    cluster_stop(c);
}
END_TEST

START_TEST(test_two_can_join_at_once)
{
    struct cluster *c = behind_nginx(3, NULL);
    keys_on("PUT", 500, c->nginx_url);
    struct load *l = load_through(c->nginx_url, "/load", 4);
    node_start(c, cluster_add(c));
    node_start(c, cluster_add(c));
    cluster_await(c, 5, 90);
    load_end_without_failure(l, "two joined");
    keys_are_everywhere(500, c);
    await_copies(c, 500 + load_keys(l), 3);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_member_that_is_drained_right_after_it_joined_stays_away)
{
    struct cluster *c = cluster_start(4, NULL);
    char *id = node_id(&c->nodes[3]);
    drain(c, 3);
    AWAIT(!strcmp(member_state(&c->nodes[0], id), "leaving"), 20);
    AWAIT(strcmp(member_state(&c->nodes[0], id), "leaving"), 60);
    AWAIT(strstr(get(c->nodes[3].url, "/_health").body, "not a member") != NULL, 20);
    ck_assert_str_eq(member_state(&c->nodes[0], id), "none");
    bury(c, 3);
    cluster_await(c, 3, 40);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_drained_member_leaves_and_its_data_stays)
{
    int count = setting("ESTORAJE_TEST_KEYS", 2000);
    struct cluster *c = behind_nginx(4, NULL);
    keys_on("PUT", count, c->nginx_url);
    struct load *l = load_through(c->nginx_url, "/load", 4);
    load_goes_on(l, 100);
    char *id = node_id(&c->nodes[1]);
    drain(c, 1);
    struct response again = http(c->nodes[0].url, "DELETE", text("/_nodes/%s", id), NULL, NULL, 0);
    ck_assert_msg(again.status == 202 || again.status == 404 || again.status == 409, "%d",
                  again.status);
    AWAIT(members(&c->nodes[0]) == 3, 60);
    bury(c, 1);
    cluster_await(c, 3, 40);
    ck_assert_str_eq(member_state(&c->nodes[0], id), "none");
    load_goes_on(l, 100);
    load_end_without_failure(l, "one drained");
    keys_are_everywhere(count, c);
    load_is_there(l, c);
    await_copies(c, count + load_keys(l), 3);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_dead_member_is_evicted_and_joins_again)
{
    int count = setting("ESTORAJE_TEST_KEYS", 2000);
    struct cluster *c = behind_nginx(4, (const char *const[]){"--evict-after", "3", NULL});
    keys_on("PUT", count, c->nginx_url);
    struct load *l = load_through(c->nginx_url, "/load", 4);
    char *id = node_id(&c->nodes[2]);
    node_kill(c, 2);
    AWAIT(members(&c->nodes[0]) == 3, 60);
    cluster_await(c, 3, 40);
    await_copies(c, count + load_keys(l), 3);
    node_start(c, 2);
    cluster_await(c, 4, 90);
    ck_assert_str_ne(node_id(&c->nodes[2]), id);
    load_end_without_failure(l, "one evicted and joined again");
    keys_are_everywhere(count, c);
    load_is_there(l, c);
    await_copies(c, count + load_keys(l), 3);
    cluster_stop(c);
}
END_TEST

START_TEST(test_nobody_is_evicted_when_too_few_would_remain)
{
    struct cluster *c = cluster_start(3, (const char *const[]){"--evict-after", "1", NULL});
    node_kill(c, 2);
    wait_seconds(5);
    ck_assert_int_eq(members(&c->nodes[0]), 3);
    ck_assert_int_eq(put(c->nodes[0].url, "/k", "v").status, 201);
    node_start(c, 2);
    cluster_await(c, 3, 40);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_join_is_called_off_when_the_joiner_dies)
{
    struct cluster *c = cluster_start(3, (const char *const[]){"--evict-after", "3", NULL});
    keys_on("PUT", 1000, c->nodes[0].url);
    double epoch = status_number(&c->nodes[0], "epoch");
    int joiner = cluster_add(c);
    node_start(c, joiner);
    AWAIT(status_number(&c->nodes[0], "epoch") > epoch, 30);
    node_kill(c, joiner);
    if (members(&c->nodes[0]) == 4)
        printf("the joiner was killed as a member or on its way\n");
    AWAIT(members(&c->nodes[0]) == 3, 60);
    cluster_await(c, 3, 40);
    keys_are_everywhere(1000, c);
    node_start(c, joiner);
    cluster_await(c, 4, 60);
    keys_are_everywhere(1000, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_change_goes_on_when_the_coordinator_dies)
{
    struct cluster *c = behind_nginx(4, NULL);
    keys_on("PUT", 1000, c->nginx_url);
    struct load *l = load_through(c->nginx_url, "/load", 4);
    int chief = coordinator(c), leaver = other_than(c, chief);
    double epoch = status_number(&c->nodes[leaver], "epoch");
    drain(c, leaver);
    int witness = 0;
    while (witness == chief || witness == leaver)
        witness++;
    AWAIT(status_number(&c->nodes[witness], "epoch") > epoch, 30);
    node_kill(c, chief);
    wait_seconds(1);
    node_start(c, chief);
    AWAIT(members(&c->nodes[witness]) == 3, 90);
    bury(c, leaver);
    cluster_await(c, 3, 40);
    load_end_without_failure(l, "the coordinator died in a drain");
    keys_are_everywhere(1000, c);
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

/* It is started again with an empty disk, at the same address. */
static void disk_lost(struct cluster *c, int i)
{
    if (c->nodes[i].pid)
        node_kill(c, i);
    folder_remove(in_folder(c->nodes[i].folder, "data"));
    node_start(c, i);
}

static bool is_joining(const struct cluster *c, int i)
{
    return !strcmp(member_state(&c->nodes[other_than(c, i)], node_id(&c->nodes[i])), "joining");
}

START_TEST(test_a_node_that_missed_many_views_follows_them)
{
    struct cluster *c = cluster_start(5, (const char *const[]){"--replicas", "5", NULL});
    keys_on("PUT", 500, c->nodes[0].url);
    node_kill(c, 1);
    for (int times = 0; times < 3; times++) {
        double epoch = status_number(&c->nodes[0], "epoch");
        disk_lost(c, 3);
        AWAIT(status_number(&c->nodes[0], "epoch") == epoch + 2 && members(&c->nodes[0]) == 5, 60);
    }
    keys_on("PUT", 800, c->nodes[0].url);
    node_start(c, 1);
    cluster_await(c, 5, 60);
    keys_are_everywhere(800, c);
    await_copies(c, 800, 5);
    cluster_stop(c);
}
END_TEST

/* Nodes that are started with one and the same command line. */
static struct cluster *cluster_expected(int nodes)
{
    struct cluster *c = cluster_new(NULL, false);
    char *all = "";
    for (int i = 0; i < nodes; i++)
        all = text("%s%slocalhost:%d", all, i ? "," : "", c->nodes[cluster_add(c)].port);
    for (int i = 0; i < nodes; i++) {
        const char *options[] = {"--bootstrap-expect", text("%d", nodes), "--join", all};
        memcpy(c->nodes[i].options, options, sizeof options);
    }
    return c;
}

static void cluster_expected_start(struct cluster *c)
{
    for (int i = 0; i < c->count; i++)
        node_start(c, i);
    cluster_await(c, c->count, 60);
    cluster_nginx(c);
}

static bool noise_write(const char *path, size_t bytes, void *context)
{
    static char noise[1 << 20];
    FILE *random = fopen("/dev/urandom", "r");
    int file = open(path, O_WRONLY | O_CLOEXEC);
    size_t most = *(const size_t *)context;
    ck_assert(random && file >= 0);
    for (size_t at = 0; at < bytes && at < most; at += sizeof noise) {
        size_t part = bytes - at < sizeof noise ? bytes - at : sizeof noise;
        ck_assert_uint_eq(fread(noise, 1, part, random), part);
        ck_assert_int_eq(pwrite(file, noise, part, (off_t)at), (ssize_t)part);
    }
    fclose(random);
    close(file);
    return true;
}

/* It is started again with noise in place of that much of each file of its log. */
static void disk_overwritten(struct cluster *c, int i, size_t most)
{
    if (c->nodes[i].pid)
        node_kill(c, i);
    folder_walk(in_folder(c->nodes[i].folder, "data"), noise_write, &most);
    node_start(c, i);
}

/* Some by removal, some by noise; every second one twice, as the next comes while it joins. */
START_TEST(test_a_disk_lost_five_times_in_a_row_costs_no_request)
{
    struct cluster *c = cluster_expected(3);
    cluster_expected_start(c);
    keys_on("PUT", 20000, c->nginx_url);
    struct load *l = load_paced(c);
    load_goes_on(l, 100);
    int while_joining = 0;
    for (int times = 0; times < 5; times++) {
        double lost = now();
        for (int again = 0; again <= times % 2; again++) {
            if (times % 3 == 0)
                disk_overwritten(c, 2, SIZE_MAX);
            else if (times % 3 == 1 && !again)
                disk_overwritten(c, 2, 1 << 20);
            else
                disk_lost(c, 2);
            AWAIT(is_joining(c, 2) || cluster_at_rest(c, 3), 60);
            while_joining += times % 2 && !again && is_joining(c, 2);
        }
        while (now() < lost + setting("ESTORAJE_TEST_APART", 1))
            pause_ms(10);
    }
    cluster_await(c, 3, 60);
    load_goes_on(l, 100);
    printf("lost while it was joining: %d times\n", while_joining);
    load_end_without_failure(l, "a disk was lost five times");
    keys_are_everywhere(20000, c);
    load_is_there(l, c);
    await_copies(c, 20000 + load_keys(l), 3);
    cluster_stop(c);
}
END_TEST

/* What it says of itself at the moment when it is ready for the first time. */
static double keys_when_ready(const struct node *n)
{
    double end = now() + 120 * slowness();
    while (!node_ready(n)) {
        ck_assert_msg(now() < end, "not ready: %s", get(n->url, "/_ready").body);
        pause_ms(5);
    }
    ck_assert_str_eq(member_state(n, node_id(n)), "up");
    return status_number(n, "keys");
}

/* One after the other is stopped, and started with an empty disk; only /_ready is waited for. */
static void disks_replaced(int nodes)
{
    int count = setting("ESTORAJE_TEST_KEYS", 4000);
    struct cluster *c = cluster_expected(nodes);
    cluster_expected_start(c);
    keys_on("PUT", count, c->nginx_url);
    struct load *l = load_paced(c);
    AWAIT(load_keys(l) == PACED_KEYS, 60); /* from now on no key is new */
    await_copies(c, count + PACED_KEYS, 3);
    double ready[NODES_MAX], begun = now();
    for (int i = 0; i < nodes; i++) {
        ck_assert_int_eq(node_stop(c, i), 0);
        folder_remove(in_folder(c->nodes[i].folder, "data"));
        node_start(c, i);
        ready[i] = keys_when_ready(&c->nodes[i]);
    }
    printf("%d disks with %d keys replaced in %.1f s\n", nodes, count, now() - begun);
    cluster_await(c, nodes, 40);
    load_end_without_failure(l, "all disks replaced");
    await_copies(c, count + PACED_KEYS, 3);
    for (int i = 0; nodes == 3 && i < nodes; i++)
        ck_assert_double_eq(ready[i], count + PACED_KEYS);
    ck_assert_double_eq(ready[nodes - 1], status_number(&c->nodes[nodes - 1], "keys"));
    keys_are_everywhere(count, c);
    load_is_there(l, c);
    cluster_stop(c);
}

START_TEST(test_all_disks_of_three_nodes_are_replaced_in_turn_without_a_failed_request)
{
    disks_replaced(3);
}
END_TEST

START_TEST(test_all_disks_of_five_nodes_are_replaced_in_turn_without_a_failed_request)
{
    disks_replaced(5);
}
END_TEST

static int declare_lost(const struct node *by, const char *ids)
{
    return status_of(by->url, "DELETE", text("/_nodes/%s?lost=true", ids), NULL, NULL);
}

START_TEST(test_nodes_with_one_command_line_make_one_cluster)
{
    struct cluster *c = cluster_expected(3);
    node_start(c, 2);
    node_start(c, 0);
    wait_seconds(1);
    ck_assert(!node_healthy(&c->nodes[0])); /* they wait for the third */
    disk_lost(c, 0);
    node_start(c, 1);
    cluster_await(c, 3, 40);
    keys_on("PUT", 300, c->nodes[1].url);
    disk_lost(c, 1); /* the command line is safe to leave in place */
    cluster_await(c, 3, 40);
    keys_are_everywhere(300, c);
    cluster_stop(c);
}
END_TEST

/* The cluster of those that run and are in one, which must be the same; "": of nobody. */
static char *cluster_of_all(const struct cluster *c)
{
    char *found = "";
    for (int i = 0; i < c->count; i++) {
        struct response r = {0};
        if (c->nodes[i].pid)
            r = get(c->nodes[i].url, "/_status");
        if (r.status == 200 && json_count(r.body, "members") > 0) {
            char *name = json_string(r.body, "cluster");
            ck_assert_msg(!*found || !strcmp(found, name), "two clusters: %s and %s", found, name);
            found = name;
        }
        response_free(&r);
    }
    return found;
}

/* A node without data may lose its disk at any time; of a cluster, one at a time, when all have all. */
static void started_in_disorder(unsigned seed)
{
    struct cluster *c = cluster_expected(3);
    unsigned random = seed;
    int wiped = 0;
    for (int step = 0; step < 12; step++) {
        int i = rand_r(&random) % 3, what = rand_r(&random) % 3;
        bool run = c->nodes[i].pid;
        bool wipe = what == 1 && (!*cluster_of_all(c) || cluster_at_rest(c, 3));
        if (run && (what == 0 || wipe))
            node_kill(c, i);
        if (wipe)
            folder_remove(in_folder(c->nodes[i].folder, "data"));
        wiped += wipe;
        if (!run || wipe)
            node_start(c, i);
        cluster_of_all(c);
        pause_ms(rand_r(&random) % 500);
    }
    for (int i = 0; i < 3; i++)
        if (!c->nodes[i].pid)
            node_start(c, i);
    double start = now();
    cluster_await(c, 3, 60);
    printf("seed %u: %d wiped, one cluster after %.1f s more\n", seed, wiped, now() - start);
    ck_assert_str_ne(cluster_of_all(c), "");
    cluster_stop(c);
}

START_TEST(test_one_command_line_makes_one_cluster_in_whatever_disorder)
{
    unsigned first = (unsigned)setting("ESTORAJE_TEST_SEED", 1);
    for (unsigned i = 0; i < (unsigned)setting("ESTORAJE_TEST_ROUNDS", 4); i++) {
        printf("seed %u\n", first + i);
        started_in_disorder(first + i);
    }
}
END_TEST

/* It has another address from now on, as soon as it is started. */
static void node_moves(struct cluster *c, int i)
{
    struct node *n = &c->nodes[i];
    if (n->pid)
        node_kill(c, i);
    n->port = free_port();
    snprintf(n->address, sizeof n->address, "127.0.0.1:%d", n->port);
    snprintf(n->url, sizeof n->url, "http://127.0.0.1:%d", n->port);
}

START_TEST(test_nodes_that_move_one_after_the_other_cost_no_request)
{
    struct cluster *c = cluster_expected(3);
    cluster_expected_start(c);
    keys_on("PUT", 300, c->nginx_url);
    struct load *l = load_paced(c);
    load_goes_on(l, 100);
    for (int i = 0; i < 3; i++) { /* --join still says the old addresses */
        node_moves(c, i);
        node_start(c, i);
        cluster_nginx_reload(c);
        AWAIT(node_ready(&c->nodes[i]), 40);
    }
    cluster_await(c, 3, 40);
    load_goes_on(l, 100);
    load_end_without_failure(l, "all moved, one after the other");
    keys_are_everywhere(300, c);
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_cluster_whose_nodes_all_move_serves_again)
{
    struct cluster *c = cluster_expected(3);
    cluster_expected_start(c);
    keys_on("PUT", 300, c->nginx_url);
    struct load *l = load_paced(c);
    load_goes_on(l, 100);
    char *all = "";
    for (int i = 0; i < 3; i++) {
        node_moves(c, i);
        all = text("%s%slocalhost:%d", all, i ? "," : "", c->nodes[i].port);
    }
    for (int i = 0; i < 3; i++) {
        c->nodes[i].options[3] = all;
        node_start(c, i);
    }
    cluster_nginx_reload(c);
    cluster_await(c, 3, 40);
    wait_seconds(2.5); /* nginx puts a node aside that did not answer */
    long failed = load_report(l).failed;
    load_goes_on(l, 200);
    struct load_report r = load_end(l, "all moved at once");
    ck_assert_msg(r.failed == failed, "%ld failed later", r.failed - failed);
    keys_are_everywhere(300, c);
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_two_that_moved_in_turn_serve_without_the_third)
{
    struct cluster *c = behind_nginx(3, NULL);
    keys_on("PUT", 300, c->nodes[0].url);
    struct load *l = load_paced(c);
    load_goes_on(l, 100);
    for (int i = 1; i < 3; i++) {
        double epoch = status_number(&c->nodes[0], "epoch");
        node_moves(c, i);
        node_start(c, i);
        cluster_nginx_reload(c);
        AWAIT(status_number(&c->nodes[0], "epoch") > epoch && node_ready(&c->nodes[i]), 40);
    }
    node_kill(c, 0);
    load_goes_on(l, 300);
    load_end_without_failure(l, "two moved, the third is dead");
    for (int i = 1; i < 3; i++) { /* they know each other from the view */
        node_kill(c, i);
        node_start(c, i);
    }
    AWAIT(node_healthy(&c->nodes[1]) && node_healthy(&c->nodes[2]), 40);
    for (int i = 1; i < 3; i++)
        ck_assert_int_eq(put(c->nodes[i].url, text("/after%d", i), "v").status, 201);
    keys_are_everywhere(300, c);
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_two_of_five_that_are_declared_lost_are_given_up)
{
    struct cluster *c = behind_nginx(5, NULL);
    keys_on("PUT", 1000, c->nginx_url);
    struct load *l = load_paced(c);
    AWAIT(load_keys(l) == PACED_KEYS, 60);
    await_copies(c, 1000 + PACED_KEYS, 3);
    char *third = node_id(&c->nodes[3]), *fourth = node_id(&c->nodes[4]);
    for (int i = 3; i < 5; i++) {
        node_kill(c, i);
        folder_remove(in_folder(c->nodes[i].folder, "data"));
        if (i == 3)
            wait_seconds(3); /* so that no write is at these two alone */
    }
    ck_assert_int_eq(load_report(l).failed, 0);
    load_goes_on(l, 10);
    AWAIT(declare_lost(&c->nodes[0], text("%s,%s", third, fourth)) == 202,
          20); /* or a lease runs */
    ck_assert_int_eq(declare_lost(&c->nodes[0], node_id(&c->nodes[1])), 409);
    ck_assert_int_eq(declare_lost(&c->nodes[0], "0123456789abcdef"), 404);
    ck_assert_int_eq(put(c->nodes[0].url, "/k?lost=true", "v").status, 400);
    ck_assert_int_eq(
        status_of(c->nodes[0].url, "DELETE", text("/_nodes/%s?lost=maybe", third), NULL, NULL),
        400);
    ck_assert_int_eq(declare_lost(&c->nodes[0], text("%s;%s", third, fourth)), 404);
    cluster_await(c, 3, 60);
    wait_seconds(.5); /* what began before has been answered */
    struct load_report then = load_report(l);
    printf("%ld of %ld requests failed until the two were given up\n", then.failed, then.requests);
    keys_are_everywhere(1000, c);
    await_copies(c, 1000 + PACED_KEYS, 3);
    ck_assert_int_eq(put(c->nginx_url, "/after", "v").status, 201);
    node_start(c, 3);
    node_start(c, 4);
    cluster_await(c, 5, 90);
    load_goes_on(l, 100);
    struct load_report r = load_end(l, "two of five were given up");
    ck_assert_msg(r.failed == then.failed, "%ld failed later", r.failed - then.failed);
    keys_are_everywhere(1000, c);
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_one_of_three_makes_a_new_cluster_of_its_data)
{
    struct cluster *c = cluster_start(3, NULL);
    keys_on("PUT", 1000, c->nodes[0].url);
    await_copies(c, 1000, 3);
    struct response before = get(c->nodes[0].url, "/_status");
    for (int i = 0; i < 3; i++)
        node_kill(c, i);
    for (int i = 1; i < 3; i++)
        folder_remove(in_folder(c->nodes[i].folder, "data"));
    c->nodes[0].options[0] = "--force-new-cluster";
    node_start(c, 0);
    AWAIT(node_healthy(&c->nodes[0]), 20);
    ck_assert_int_eq(members(&c->nodes[0]), 1);
    struct response after = get(c->nodes[0].url, "/_status");
    ck_assert_str_ne(json_string(before.body, "cluster"), json_string(after.body, "cluster"));
    keys_on("PUT", 1100, c->nodes[0].url);
    node_kill(c, 0);
    c->nodes[0].options[0] = NULL;
    for (int i = 0; i < 3; i++)
        node_start(c, i);
    cluster_await(c, 3, 60);
    keys_are_everywhere(1100, c);
    cluster_stop(c);
}
END_TEST

static char *cluster_name(const struct node *n)
{
    struct response r = get(n->url, "/_status");
    char *name = json_string(r.body, "cluster");
    response_free(&r);
    return name;
}

/* All but the first die for good; the first is started as its options say. */
static void first_remains(struct cluster *c)
{
    for (int i = 0; i < c->count; i++)
        node_kill(c, i);
    for (int i = 1; i < c->count; i++)
        folder_remove(in_folder(c->nodes[i].folder, "data"));
    ck_assert_int_eq(truncate(c->nodes[0].log, 0), 0);
    node_start(c, 0);
}

/* As in a unit file that nobody looks at again. */
START_TEST(test_force_new_cluster_left_in_place_makes_one_new_cluster)
{
    struct cluster *c = cluster_start(3, NULL);
    keys_on("PUT", 300, c->nodes[0].url);
    await_copies(c, 300, 3);
    c->nodes[0].options[0] = "--force-new-cluster";
    for (int times = 0; times < 2; times++) {
        char *old = cluster_name(&c->nodes[0]);
        first_remains(c);
        if (times) { /* it was left in place, so this is not what it was said for */
            AWAIT(get(c->nodes[0].url, "/_status").status == 200, 20);
            ck_assert_ptr_nonnull(strstr(file_read(c->nodes[0].log, NULL), "start without it"));
            ck_assert_str_eq(cluster_name(&c->nodes[0]), old);
            node_kill(c, 0);
            c->nodes[0].options[0] = NULL;
            node_start(c, 0);
            AWAIT(get(c->nodes[0].url, "/_status").status == 200, 20);
            node_kill(c, 0);
            c->nodes[0].options[0] = "--force-new-cluster";
            node_start(c, 0);
        }
        AWAIT(node_healthy(&c->nodes[0]), 20);
        char *made = cluster_name(&c->nodes[0]);
        ck_assert_str_ne(made, old);
        node_start(c, 1);
        node_start(c, 2);
        cluster_await(c, 3, 60);
        node_kill(c, 0);
        node_start(c, 0);
        cluster_await(c, 3, 40);
        for (int i = 0; i < 3; i++)
            ck_assert_str_eq(cluster_name(&c->nodes[i]), made);
        keys_are_everywhere(300, c);
    }
    cluster_stop(c);
}
END_TEST

/* It had nothing to do when it was said. */
START_TEST(test_force_new_cluster_said_to_a_cluster_of_one_takes_it_from_nobody_later)
{
    struct cluster *c = cluster_start(1, NULL);
    ck_assert_int_eq(put(c->nodes[0].url, "/k", "v").status, 201); /* so it is on the disk */
    char *name = cluster_name(&c->nodes[0]);
    c->nodes[0].options[0] = "--force-new-cluster";
    for (int members = 1; members < 4; members += 2) {
        node_kill(c, 0);
        node_start(c, 0);
        cluster_await(c, members, 40);
        while (c->count < 3)
            node_start(c, cluster_add(c));
        cluster_await(c, 3, 40);
        for (int i = 0; i < 3; i++)
            ck_assert_str_eq(cluster_name(&c->nodes[i]), name);
    }
    cluster_stop(c);
}
END_TEST

/* Follows the pages of a listing and counts the keys, which must come in order. */
static int listing_count(const char *url, const char *path)
{
    int count = 0;
    char *last = strdup("");
    char *next = strdup(path);
    for (int pages = 0; next && pages < 1000; pages++) {
        struct response r = get(url, next);
        ck_assert_msg(r.status == 200 || r.status == 503, "%s%s: %d %s", url, next, r.status,
                      r.body);
        if (r.status == 503)
            return -1;
        char *save = NULL;
        for (char *line = strtok_r(r.body, "\n", &save); line;
             line = strtok_r(NULL, "\n", &save), count++) {
            ck_assert_msg(strcmp(line, last) > 0, "%s after %s", line, last);
            free(last);
            last = strdup(line);
        }
        const char *link = header(&r, "Link");
        next = link ? strndup(link + 1, strcspn(link + 1, ">")) : NULL;
        response_free(&r);
    }
    free(last);
    return count;
}

START_TEST(test_a_listing_is_complete_while_data_moves)
{
    enum { COUNT = 1200 };
    struct cluster *c = cluster_start(3, NULL);
    keys_on("PUT", COUNT, c->nodes[0].url);
    int listed = 0, rejected = 0;
    node_start(c, cluster_add(c));
    for (int round = 0; round < 200 && (round < 10 || !cluster_at_rest(c, 4)); round++) {
        int count = listing_count(c->nodes[round % 3].url, "/keys/?limit=333");
        rejected += count < 0;
        listed += count >= 0;
        ck_assert_msg(count < 0 || count == COUNT, "%d keys of %d", count, COUNT);
    }
    ck_assert_msg(listed > 3 * rejected, "%d listings, %d rejected", listed, rejected);
    cluster_await(c, 4, 60);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(listing_count(c->nodes[i].url, "/keys/"), COUNT);
    cluster_stop(c);
}
END_TEST

START_TEST(test_five_nodes_live_through_everything)
{
    int count = setting("ESTORAJE_TEST_KEYS", 2000);
    struct cluster *c = cluster_start_proxied(5, (const char *const[]){"--evict-after", "4", NULL});
    cluster_nginx(c);
    keys_on("PUT", count, c->nginx_url);
    struct load *l = load_through(c->nginx_url, "/load", 4);
    load_goes_on(l, 200);
    node_kill(c, 0);
    AWAIT(members(&c->nodes[1]) == 4, 60);
    cluster_await(c, 4, 40);
    printf("killed and evicted\n");
    node_start(c, cluster_add(c));
    cluster_await(c, 5, 60);
    printf("a new one joined\n");
    drain(c, 1);
    AWAIT(members(&c->nodes[2]) == 4, 60);
    bury(c, 1);
    cluster_await(c, 4, 40);
    printf("drained\n");
    node_signal(c, 2, SIGSTOP);
    wait_seconds(3);
    node_signal(c, 2, SIGCONT);
    cluster_await(c, 4, 40);
    printf("stopped for longer than its lease\n");
    for (int cut = 1; cut >= 0; cut--) {
        for (int other = 4; other <= 5; other++) {
            cluster_cut(c, 3, other, cut);
            cluster_cut(c, other, 3, cut);
        }
        if (cut)
            wait_seconds(3);
    }
    cluster_await(c, 4, 40);
    printf("cut off from two\n");
    struct load_report r = load_end(l, "five nodes");
    ck_assert_msg(r.unknown == 0, "%ld of unknown outcome, the first failure: %s", r.unknown,
                  r.first_failure);
    ck_assert_msg(r.failed * 200 <= r.requests, "%ld of %ld: %s", r.failed, r.requests,
                  r.first_failure);
    keys_are_everywhere(count, c);
    load_is_there(l, c);
    await_copies(c, count + load_keys(l), 3);
    cluster_stop(c);
}
END_TEST

/* ================================ disks ================================ */

struct search {
    const char *what;
    size_t bytes;
    char *path; /* where it was found first */
    long at;
    long found;
};

static bool search_in(const char *path, size_t bytes, void *context)
{
    struct search *s = context;
    size_t count;
    char *content = bytes && !strstr(path, ".damaged") ? file_read(path, &count) : NULL;
    for (char *at = content;
         at && (at = memmem(at, count - (size_t)(at - content), s->what, s->bytes)); at++) {
        s->found++;
        if (!s->path) {
            s->path = strdup(path);
            s->at = at - content;
        }
    }
    free(content);
    return true;
}

static struct search search(const char *folder, const char *what)
{
    struct search s = {.what = what, .bytes = strlen(what)};
    folder_walk(folder, search_in, &s);
    return s;
}

static void flip_bit(const char *path, long at)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    unsigned char c;
    ck_assert_int_eq(pread(fd, &c, 1, at), 1);
    c ^= 4;
    ck_assert_int_eq(pwrite(fd, &c, 1, at), 1);
    close(fd);
}

static char *marked(int i)
{
    return text("the marked value number %05d, which is long enough not to lie in the index of any "
                "node at all",
                i);
}

START_TEST(test_a_flipped_bit_reaches_nobody_and_is_repaired)
{
    struct cluster *c = cluster_start(3, NULL);
    for (int i = 0; i < 30; i++)
        ck_assert_int_eq(put(c->nodes[0].url, text("/k%d", i), marked(i)).status, 201);
    for (int i = 0; i < 30; i += 3) {
        AWAIT(search(c->nodes[1].folder, marked(i)).found > 0, 20);
        struct search s = search(c->nodes[1].folder, marked(i));
        flip_bit(s.path, s.at + 20);
    }
    for (int round = 0; round < 3; round++)
        for (int n = 0; n < 3; n++)
            for (int i = 0; i < 30; i++) {
                struct response r = get(c->nodes[n].url, text("/k%d", i));
                ck_assert_msg(r.status == 200 && body_is(&r, marked(i), strlen(marked(i))),
                              "%d: %s", r.status, r.body);
                r = get(c->nodes[n].url, text("/k%d?consistency=one", i));
                ck_assert_msg(r.status == 200 && body_is(&r, marked(i), strlen(marked(i))),
                              "%d: %s", r.status, r.body);
            }
    for (int i = 0; i < 30; i++) /* whole again on its own disk */
        AWAIT(search(c->nodes[1].folder, marked(i)).found > 0, 40);
    char *id = node_id(&c->nodes[1]);
    node_kill(c, 1);
    ck_assert_int_eq(truncate(c->nodes[1].log, 0), 0);
    node_start(c, 1);
    AWAIT(node_ready(&c->nodes[1]), 40);
    ck_assert_str_eq(node_id(&c->nodes[1]), id);
    ck_assert_ptr_null(strstr(file_read(c->nodes[1].log, NULL), "damaged")); /* it was mended */
    cluster_stop(c);
}
END_TEST

/* Each was found by a GET, and mended: so no node rejoins under a new id when it is restarted. */
START_TEST(test_bits_flipped_on_two_nodes_cost_a_rolling_restart_no_request)
{
    struct cluster *c = behind_nginx(3, NULL);
    char *ids[3];
    for (int i = 0; i < 30; i++)
        ck_assert_int_eq(put(c->nodes[0].url, text("/k%d", i), marked(i)).status, 201);
    for (int n = 0; n < 3; n++)
        ids[n] = node_id(&c->nodes[n]);
    struct load *l = load_paced(c);
    for (int n = 0; n < 2; n++) {
        AWAIT(search(c->nodes[n].folder, marked(7 + n)).found > 0, 20);
        struct search s = search(c->nodes[n].folder, marked(7 + n));
        flip_bit(s.path, s.at + 10);
        ck_assert_int_eq(search(c->nodes[n].folder, marked(7 + n)).found, 0);
    }
    for (int n = 0; n < 3; n++)
        for (int i = 7; i < 9; i++)
            for (int one = 0; one < 2; one++) {
                struct response r =
                    get(c->nodes[n].url, text("/k%d%s", i, one ? "?consistency=one" : ""));
                ck_assert_msg(r.status == 200 && body_is(&r, marked(i), strlen(marked(i))),
                              "k%d: %d %s", i, r.status, r.body);
            }
    for (int n = 0; n < 2; n++)
        AWAIT(search(c->nodes[n].folder, marked(7 + n)).found > 0, 40);
    for (int n = 0; n < 3; n++) {
        ck_assert_int_eq(node_stop(c, n), 0);
        node_start(c, n);
        AWAIT(node_ready(&c->nodes[n]), 40);
        ck_assert_str_eq(node_id(&c->nodes[n]), ids[n]);
    }
    load_goes_on(l, 100);
    load_end_without_failure(l, "two bits flipped, and a rolling restart");
    for (int n = 0; n < 3; n++)
        for (int i = 0; i < 30; i++) {
            struct response r = get(c->nodes[n].url, text("/k%d", i));
            ck_assert_msg(r.status == 200 && body_is(&r, marked(i), strlen(marked(i))), "k%d: %d",
                          i, r.status);
        }
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

static void megabytes_put(const char *url, int count)
{
    enum { SIZE = 1 << 20 };
    char *value = calloc(1, SIZE);
    for (int i = 0; i < count; i++) {
        memset(value, 'a' + i % 26, SIZE);
        struct response r = http(url, "PUT", text("/megabyte/%d", i), NULL, value, SIZE);
        ck_assert_msg(r.status == 201, "%d %s%s", r.status, r.body, r.error);
        response_free(&r);
    }
    free(value);
}

/* A value that is damaged costs a pull, wherever it stands, and no node rejoins under a new id for it. */
START_TEST(test_values_damaged_at_every_node_are_all_there_after_a_restart)
{
    struct cluster *c = cluster_start(3, NULL);
    char *ids[3];
    for (int i = 0; i < 30; i++)
        ck_assert_int_eq(put(c->nodes[0].url, text("/k%d", i), marked(i)).status, 201);
    for (int n = 0; n < 3; n++) {
        ids[n] = node_id(&c->nodes[n]);
        AWAIT(search(c->nodes[n].folder, marked(29)).found > 0, 20);
    }
    for (int n = 0; n < 3; n++)
        node_kill(c, n);
    for (int n = 0; n < 3; n++) {
        struct search s = search(c->nodes[n].folder, marked(7 + n));
        flip_bit(s.path, s.at + 10);
    }
    for (int round = 0; round < 2; round++) { /* then once more, one after the other */
        for (int n = 0; n < 3; n++) {
            if (round)
                node_kill(c, n);
            node_start(c, n);
            if (round)
                AWAIT(node_ready(&c->nodes[n]), 40);
        }
        for (int n = 0; n < 3; n++) {
            AWAIT(node_ready(&c->nodes[n]), 40);
            ck_assert_str_eq(node_id(&c->nodes[n]), ids[n]);
        }
        for (int n = 0; n < 3; n++)
            for (int i = 0; i < 30; i++) {
                struct response r = get(c->nodes[n].url, text("/k%d", i));
                ck_assert_msg(r.status == 200 && body_is(&r, marked(i), strlen(marked(i))),
                              "k%d: %d %s", i, r.status, r.body);
            }
    }
    for (int n = 0; n < 3; n++) /* whole again on its own disk */
        AWAIT(search(c->nodes[n].folder, marked(7 + n)).found > 0, 40);
    cluster_stop(c);
}
END_TEST

START_TEST(test_damage_found_at_start_makes_a_node_rejoin_under_a_new_id)
{
    enum { COUNT = 600 };
    struct cluster *c = behind_nginx(3, (const char *const[]){"--evict-after", "3", NULL});
    for (int i = 0; i < 20; i++)
        ck_assert_int_eq(put(c->nodes[0].url, text("/m%d", i), marked(i)).status, 201);
    keys_on("PUT", COUNT, c->nginx_url);
    for (int kind = 0; kind < 2; kind++) {
        char *id = node_id(&c->nodes[1]), *log = in_folder(c->nodes[1].folder, "data");
        if (kind) /* a later segment shows that there was more in the one that is cut */
            megabytes_put(c->nodes[0].url, 80);
        AWAIT(search(log, marked(7)).found > 0, 20);
        node_kill(c, 1);
        struct search s = search(log, marked(7));
        if (kind)
            ck_assert_int_eq(truncate(s.path, s.at + 10), 0);
        else
            flip_bit(s.path, s.at - 1); /* of its head */
        struct load *l = load_through(c->nginx_url, text("/load%d", kind), 3);
        node_start(c, 1);
        cluster_await(c, 3, 60);
        load_end_without_failure(l, kind ? "a segment cut short"
                                         : "a bit flipped below what was durable");
        ck_assert_msg(strcmp(node_id(&c->nodes[1]), id), "the damaged node is still %s", id);
        keys_are_everywhere(COUNT, c);
        for (int i = 0; i < 20; i++) {
            struct response r = get(c->nodes[1].url, text("/m%d", i));
            ck_assert_msg(r.status == 200 && body_is(&r, marked(i), strlen(marked(i))), "%d: %s",
                          r.status, r.body);
        }
        node_kill(c, kind ? 2 : 0); /* what it has is needed now */
        keys_on("GET", COUNT, c->nodes[1].url);
        node_start(c, kind ? 2 : 0);
        cluster_await(c, 3, 60);
    }
    cluster_stop(c);
}
END_TEST

static bool log_has(const struct node *n, const char *words)
{
    char *log = file_read(n->log, NULL);
    bool has = log && strstr(log, words);
    free(log);
    return has;
}

static const char a_copy_runs[] = "a copy of a node's data directory runs, or an old one";

/* Others know what the old copy has forgotten: it must not take part. */
START_TEST(test_a_directory_restored_from_an_older_copy_joins_under_a_new_id)
{
    struct cluster *c = behind_nginx(3, NULL);
    char *id = node_id(&c->nodes[1]);
    const char *data = in_folder(c->nodes[1].folder, "data");
    keys_on("PUT", 100, c->nginx_url);
    ck_assert_int_eq(run(20, "cp -a %s %s.old", data, data).status, 0);
    struct load *l = load_through(c->nginx_url, "/load", 3);
    load_goes_on(l, 300);
    keys_on("PUT", 300, c->nginx_url);
    node_kill(c, 1);
    ck_assert_int_eq(run(20, "rm -r %s && mv %s.old %s", data, data, data).status, 0);
    node_start(c, 1);
    AWAIT(node_healthy(&c->nodes[1]) && strcmp(node_id(&c->nodes[1]), id), 60);
    cluster_await(c, 3, 60);
    load_goes_on(l, 300);
    load_end_without_failure(l, "a directory restored from a copy");
    ck_assert(log_has(&c->nodes[1], a_copy_runs));
    load_is_there(l, c);
    keys_are_everywhere(300, c);
    node_kill(c, 0); /* what the other has is needed now */
    keys_on("GET", 300, c->nodes[1].url);
    node_start(c, 0);
    cluster_await(c, 3, 60);
    cluster_stop(c);
}
END_TEST

/* A twin is ignored while the first lives, after it, and after a start of its own. */
START_TEST(test_a_twin_serves_nothing_and_says_why)
{
    struct cluster *c = behind_nginx(3, NULL);
    int twin = cluster_add(c);
    struct node *t = &c->nodes[twin], *of = &c->nodes[1];
    char *id = node_id(of);
    keys_on("PUT", 100, c->nginx_url);
    ck_assert_int_eq(
        run(20, "mkdir -p %s && cp -a %s/data %s", t->folder, of->folder, t->folder).status, 0);
    struct load *l = load_through(c->nginx_url, "/load", 3);
    load_goes_on(l, 300);
    node_start(c, twin);
    AWAIT(log_has(t, a_copy_runs) && log_has(&c->nodes[0], a_copy_runs), 30);
    load_goes_on(l, 300);
    ck_assert_int_eq(get(t->url, "/k1").status, 503);
    ck_assert(node_ready(of));
    ck_assert_str_eq(node_id(of), id);
    node_kill(c, 1);
    for (int i = 0; i < 2; i++) {
        for (double end = now() + 5; now() < end; pause_ms(100))
            ck_assert_int_eq(get(t->url, "/k1").status, 503);
        ck_assert_int_eq(node_stop(c, twin), 0);
        if (i == 0)
            node_start(c, twin), pause_ms(500);
    }
    node_start(c, 1);
    cluster_await(c, 3, 60);
    ck_assert_str_eq(node_id(of), id);
    load_end_without_failure(l, "a twin");
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_lone_node_with_a_damaged_log_says_so_and_stops)
{
    struct cluster *c = cluster_start(1, NULL);
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(put(c->nodes[0].url, text("/k%d", i), marked(i)).status, 201);
    node_kill(c, 0);
    struct search s = search(c->nodes[0].folder, marked(50));
    ck_assert_int_ge(s.found, 1);
    flip_bit(s.path, s.at - 1);
    node_start(c, 0);
    int status = process_wait(c->nodes[0].pid, 30);
    ck_assert_int_eq(status, 1);
    c->nodes[0].pid = 0;
    ck_assert_ptr_nonnull(strstr(file_read(c->nodes[0].log, NULL), "level=error"));
    flip_bit(s.path, s.at - 1); /* and it destroyed nothing: put right again, all is there */
    node_start(c, 0);
    AWAIT(node_healthy(&c->nodes[0]), 20);
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(status_of(c->nodes[0].url, "GET", text("/k%d", i), NULL, NULL), 200);
    cluster_stop(c);
}
END_TEST

/* The power fails everywhere, and with --sync none a part that was acknowledged never reached the disk,
 * though what was written behind it did. */
START_TEST(test_with_sync_none_holes_in_all_logs_cost_what_is_behind_them)
{
    struct cluster *c =
        cluster_start(3, (const char *const[]){"--sync", "none", "--lease", "1000", NULL});
    for (int i = 0; i < 60; i++)
        ck_assert_int_eq(put(c->nodes[0].url, text("/k%d", i), marked(i)).status, 201);
    for (int n = 0; n < 3; n++)
        AWAIT(search(c->nodes[n].folder, marked(59)).found > 0, 20);
    for (int n = 0; n < 3; n++)
        node_kill(c, n);
    for (int n = 0; n < 3; n++) {
        struct search s = search(c->nodes[n].folder, marked(30 + n));
        int file = open(s.path, O_WRONLY | O_CLOEXEC);
        ck_assert_int_eq(pwrite(file, (char[1024]){0}, 1024, s.at - 512), 1024);
        close(file);
        c->nodes[n].options[0] = "--sync";
        c->nodes[n].options[1] = "always";
        node_start(c, n);
    }
    for (int n = 0; n < 3; n++) { /* fdatasync kept its word: this is corruption */
        ck_assert_int_eq(process_wait(c->nodes[n].pid, 60), 1);
        c->nodes[n].pid = 0;
        ck_assert_int_gt(search(c->nodes[n].folder, marked(59)).found, 0);
        c->nodes[n].options[0] = NULL;
        node_start(c, n);
    }
    for (int round = 0; round < 2; round++) {
        for (int n = 0; n < 3; n++)
            AWAIT(node_ready(&c->nodes[n]), 60);
        for (int i = 0; i < 25; i++) {
            struct response r = get(c->nodes[i % 3].url, text("/k%d", i));
            ck_assert_msg(r.status == 200 && body_is(&r, marked(i), strlen(marked(i))), "k%d: %d",
                          i, r.status);
        }
        ck_assert_int_eq(status_of(c->nodes[0].url, "GET", "/k50", NULL, NULL), 404);
        ck_assert_int_lt(put(c->nodes[round].url, "/again", marked(99)).status, 300);
        for (int n = 0; n < 3 && !round; n++) { /* the logs are whole now */
            node_kill(c, n);
            ck_assert_int_eq(truncate(c->nodes[n].log, 0), 0);
        }
        for (int n = 0; n < 3 && !round; n++)
            node_start(c, n);
    }
    for (int n = 0; n < 3; n++)
        ck_assert_ptr_null(strstr(file_read(c->nodes[n].log, NULL), "hole in the log"));
    /* Where a majority lives, which may know of what is lost, a node rejoins under a new id. */
    char *id = node_id(&c->nodes[1]);
    for (int i = 0; i < 60; i++)
        ck_assert_int_lt(put(c->nodes[0].url, text("/k%d", i), marked(100 + i)).status, 300);
    AWAIT(search(c->nodes[1].folder, marked(159)).found > 0, 20);
    node_kill(c, 1);
    struct search s = search(c->nodes[1].folder, marked(130));
    int file = open(s.path, O_WRONLY | O_CLOEXEC);
    ck_assert_int_eq(pwrite(file, (char[1024]){0}, 1024, s.at - 512), 1024);
    close(file);
    node_start(c, 1);
    cluster_await(c, 3, 60);
    ck_assert_msg(strcmp(node_id(&c->nodes[1]), id), "the damaged node is still %s", id);
    for (int i = 0; i < 60; i++)
        ck_assert_int_eq(status_of(c->nodes[1].url, "GET", text("/k%d", i), NULL, NULL), 200);
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_torn_tail_is_dropped)
{
    struct cluster *c = cluster_start(1, NULL);
    for (int round = 0; round < 6; round++) {
        for (int i = 0; i < 20; i++)
            ck_assert_int_eq(put(c->nodes[0].url, text("/%d/%d", round, i), marked(i)).status, 201);
        put(c->nodes[0].url, text("/torn/%d", round), text("torn %d %s", round, marked(99)));
        node_kill(c, 0);
        struct search s = search(c->nodes[0].folder, text("torn %d", round));
        ck_assert_int_ge(s.found, 1);
        flip_bit(s.path, s.at + round); /* as if the last write had not reached the disk whole */
        node_start(c, 0);
        AWAIT(node_healthy(&c->nodes[0]), 20);
        for (int i = 0; i < 20; i++)
            ck_assert_int_eq(
                status_of(c->nodes[0].url, "GET", text("/%d/%d", round, i), NULL, NULL), 200);
        struct response r = get(c->nodes[0].url, text("/torn/%d", round));
        ck_assert_msg(r.status == 404, "%d %s", r.status, r.body);
    }
    cluster_stop(c);
}
END_TEST

/* A small disk for a node's data, which goes with this process. False: we may not. */
static bool small_disk(const struct node *n, int mib)
{
    static bool own;
    if (!own && (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)))
        return false;
    own = true;
    mkdir(in_folder(n->folder, "data"), 0755);
    return mount("none", in_folder(n->folder, "data"), "tmpfs", 0, text("size=%dm", mib)) == 0;
}

START_TEST(test_a_full_disk_rejects_writes_and_recovers)
{
    enum { SIZE = 1 << 20, DISK_MIB = 280, FILLER_MIB = 60 };
    struct cluster *c = cluster_new(NULL, false);
    cluster_add(c);
    const struct node *n = &c->nodes[0];
    if (!small_disk(n, DISK_MIB)) {
        printf("left out: only root can mount a small disk\n");
        return;
    }
    node_start(c, 0);
    AWAIT(node_healthy(n), 20);
    char *filler = in_folder(n->folder, "data/filler"), *value = malloc(SIZE + 1);
    int fd = open(filler, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    ck_assert_int_eq(posix_fallocate(fd, 0, FILLER_MIB << 20), 0);
    close(fd);
    int stored = 0;
    struct response r = {0};
    for (int i = 0; i < DISK_MIB; i++) {
        memset(value, 'a' + i % 26, SIZE);
        r = http(n->url, "PUT", text("/k%d", i), NULL, value, SIZE);
        if (r.status != 201)
            break;
        stored++;
        response_free(&r);
    }
    printf("%d values of 1 MiB fit into %d MiB\n", stored, DISK_MIB - FILLER_MIB);
    ck_assert_msg(r.status == 507, "%d %s", r.status, r.body);
    ck_assert_ptr_null(header(&r, "Estoraje-Outcome"));
    ck_assert_int_ge(stored, 30);
    for (int one = 0; one < 2; one++) { /* its first try may have found room */
        const char *path = one ? "/k?consistency=one" : "/k";
        r = http(n->url, "PUT", path, "Estoraje-Retry: 1", value, SIZE);
        ck_assert_int_eq(r.status, 503);
        ck_assert_str_eq(header(&r, "Estoraje-Outcome"), "unknown");
    }
    for (int i = 0; i < stored; i++) {
        memset(value, 'a' + i % 26, SIZE);
        r = get(n->url, text("/k%d", i));
        ck_assert_msg(r.status == 200 && body_is(&r, value, SIZE), "%d", r.status);
        response_free(&r);
    }
    ck_assert_int_eq(unlink(filler), 0);
    AWAIT(http(n->url, "PUT", "/after", NULL, value, SIZE).status / 100 == 2, 30);
    node_kill(c, 0);
    node_start(c, 0);
    AWAIT(node_healthy(n), 30);
    for (int i = 0; i < stored; i++)
        ck_assert_int_eq(status_of(n->url, "HEAD", text("/k%d", i), NULL, NULL), 200);
    cluster_stop(c);
}
END_TEST

static void disk_fill_and_empty(int disk_mib)
{
    enum { SIZE = 1 << 20, TIMES = 5 };
    struct cluster *c = cluster_new(NULL, false);
    cluster_add(c);
    const struct node *n = &c->nodes[0];
    if (!small_disk(n, disk_mib)) {
        printf("left out: only root can mount a small disk\n");
        return;
    }
    node_start(c, 0);
    AWAIT(node_healthy(n), 20);
    char *value = calloc(SIZE, 1);
    for (int i = 0; i < TIMES; i++) {
        int status = 0, stored = 0;
        /* Full for good, whatever can be cleaned: that takes some seconds after much was deleted. */
        for (double last = now(); now() < last + (stored < disk_mib / 4 ? 10 : 2);) {
            status = http(n->url, "PUT", text("/k%d", stored), NULL, value, SIZE).status;
            last = status / 100 == 2 ? now() : last;
            stored += status / 100 == 2;
        }
        ck_assert_int_eq(status, 507);
        ck_assert_int_ge(stored, disk_mib / 4);
        for (int k = 0; k < stored; k++) { /* its files are open then */
            struct response r = get(n->url, text("/k%d", k));
            ck_assert_uint_eq(r.body_bytes, SIZE);
            response_free(&r);
        }
        for (int k = 0; k < stored; k++)
            ck_assert_int_eq(status_of(n->url, "DELETE", text("/k%d", k), NULL, NULL), 200);
        double begun = now();
        for (int k = 0; k < disk_mib / 8; k++)
            AWAIT(http(n->url, "PUT", text("/k%d", k), NULL, value, SIZE).status / 100 == 2,
                  begun + 10 - now());
        printf("%d values in %d MiB deleted: %d are stored after %.1f s\n", stored, disk_mib,
               disk_mib / 8, now() - begun);
    }
    cluster_stop(c);
}

START_TEST(test_a_small_disk_that_is_filled_and_emptied_takes_writes_again)
{
    disk_fill_and_empty(150);
}
END_TEST

START_TEST(test_a_larger_disk_that_is_filled_and_emptied_takes_writes_again)
{
    disk_fill_and_empty(400);
}
END_TEST

START_TEST(test_a_full_disk_of_one_node_stops_nobody)
{
    enum { SIZE = 1 << 20, DISK_MIB = 160, COUNT = 150 };
    struct cluster *c = cluster_new(NULL, false);
    for (int i = 0; i < 3; i++)
        cluster_add(c);
    if (!small_disk(&c->nodes[2], DISK_MIB)) {
        printf("left out: only root can mount a small disk\n");
        return;
    }
    for (int i = 0; i < 3; i++) {
        node_start(c, i);
        AWAIT(i || node_healthy(&c->nodes[0]), 20);
    }
    cluster_await(c, 3, 40);
    char *value = malloc(SIZE + 1);
    for (int i = 0; i < COUNT; i++) {
        memset(value, 'a' + i % 26, SIZE);
        struct response r = http(c->nodes[i % 2].url, "PUT", text("/k%d", i), NULL, value, SIZE);
        ck_assert_msg(r.status == 201, "%d: %d %s", i, r.status, r.body);
        response_free(&r);
    }
    for (int i = 0; i < COUNT; i++) {
        struct response r = get(c->nodes[2].url, text("/k%d", i));
        memset(value, 'a' + i % 26, SIZE);
        ck_assert_msg(r.status == 200 && body_is(&r, value, SIZE), "%d: %d", i, r.status);
        response_free(&r);
    }
    cluster_stop(c);
}
END_TEST

START_TEST(test_a_joiner_whose_disk_is_too_small_stops_and_holds_up_nobody)
{
    enum { SIZE = 1 << 20, DISK_MIB = 40, COUNT = 70 };
    struct cluster *c = cluster_start(3, (const char *const[]){"--evict-after", "3", NULL});
    char *value = calloc(1, SIZE);
    for (int i = 0; i < COUNT; i++)
        ck_assert_int_eq(http(c->nodes[0].url, "PUT", text("/k%d", i), NULL, value, SIZE).status,
                         201);
    int small = cluster_add(c);
    if (!small_disk(&c->nodes[small], DISK_MIB)) {
        printf("left out: only root can mount a small disk\n");
        return;
    }
    node_start(c, small);
    ck_assert_int_eq(process_wait(c->nodes[small].pid, 60), 1);
    c->nodes[small].pid = 0;
    ck_assert_ptr_nonnull(strstr(file_read(c->nodes[small].log, NULL), "joining needs more disk"));
    AWAIT(members(&c->nodes[0]) == 3, 30);
    ck_assert_ptr_nonnull(strstr(file_read(c->nodes[0].log, NULL), "change of members called off"));
    node_start(c, cluster_add(c));
    cluster_await(c, 4, 60);
    for (int i = 0; i < COUNT; i++)
        ck_assert_int_eq(status_of(c->nodes[4].url, "GET", text("/k%d", i), NULL, NULL), 200);
    cluster_stop(c);
}
END_TEST

static char *library_make(const char *folder, const char *source)
{
    char *path = in_folder(folder, "preload.c"), *library = in_folder(folder, "preload.so");
    file_write(path, source, strlen(source));
    struct output o = run(60, "cc -D_GNU_SOURCE -shared -fPIC -o %s %s -ldl", library, path);
    ck_assert_msg(o.status == 0, "%s", o.text);
    return library;
}

/* A library that lets fdatasync fail once a file is there, or take its time. */
static char *failing_library(const char *folder)
{
    static const char source[] =
        "#include <dlfcn.h>\n#include <errno.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        "int fdatasync(int fd)\n{\n"
        "    static int (*real)(int);\n"
        "    if (!real)\n        real = (int (*)(int))dlsym(RTLD_NEXT, \"fdatasync\");\n"
        "    if (getenv(\"SLOW_US\"))\n        usleep(atoi(getenv(\"SLOW_US\")));\n"
        "    else if (access(getenv(\"FAIL_WHEN\"), F_OK) == 0) {\n        errno = EIO;\n"
        "        return -1;\n    }\n"
        "    return real(fd);\n}\n";
    return library_make(folder, source);
}

/* What a file says of a node's clocks. */
struct clock_error {
    long ahead; /* s: the wall clock */
    long ppm;   /* all of them are faster, since this time of the machine's CLOCK_MONOTONIC in s */
    long since;
};

/* A library that makes the clocks wrong. */
static char *clock_library(const char *folder)
{
    static const char source[] =
        "#include <dlfcn.h>\n#include <fcntl.h>\n#include <stdlib.h>\n#include <sys/mman.h>\n"
        "#include <time.h>\n"
        "int clock_gettime(clockid_t clock, struct timespec *t)\n{\n"
        "    static int (*real)(clockid_t, struct timespec *);\n"
        "    static const volatile struct { long ahead, ppm, since; } *error;\n"
        "    if (!real)\n"
        "        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "
        "\"clock_gettime\");\n"
        "    if (!error)\n        error = mmap(0, sizeof *error, PROT_READ, MAP_SHARED,\n"
        "                     open(getenv(\"CLOCK_FILE\"), O_RDONLY | O_CLOEXEC), 0);\n"
        "    struct timespec m;\n"
        "    int result = real(CLOCK_MONOTONIC, &m) | real(clock, t);\n"
        "    if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC && clock != CLOCK_BOOTTIME)\n"
        "        return result;\n"
        "    long us = (m.tv_sec - error->since) * 1000000 + m.tv_nsec / 1000;\n"
        "    long ns = t->tv_nsec + us * error->ppm / 1000 + 1000000000;\n"
        "    t->tv_sec += ns / 1000000000 - 1 + (clock == CLOCK_REALTIME ? error->ahead : 0);\n"
        "    t->tv_nsec = ns % 1000000000;\n"
        "    while (t->tv_nsec < 0) {\n        t->tv_nsec += 1000000000;\n        t->tv_sec--;\n"
        "    }\n"
        "    return result;\n}\n";
    return library_make(folder, source);
}

START_TEST(test_a_failing_fdatasync_ends_the_process_and_loses_nothing)
{
    struct cluster *c = cluster_new(NULL, false);
    for (int i = 0; i < 3; i++)
        cluster_add(c);
    char *when = in_folder(c->folder, "fail");
    c->nodes[1].environment[0] = text("LD_PRELOAD=%s", failing_library(c->folder));
    c->nodes[1].environment[1] = text("FAIL_WHEN=%s", when);
    c->nodes[1].environment[2] = "ASAN_OPTIONS=verify_asan_link_order=0";
    for (int i = 0; i < 3; i++) {
        node_start(c, i);
        AWAIT(i || node_healthy(&c->nodes[0]), 20);
    }
    cluster_await(c, 3, 40);
    cluster_nginx(c);
    struct load *l = load_through(c->nginx_url, "/load", 4);
    load_goes_on(l, 200);
    file_write(when, "", 0);
    ck_assert_int_eq(process_wait(c->nodes[1].pid, 20), 1);
    c->nodes[1].pid = 0;
    ck_assert_ptr_nonnull(strstr(file_read(c->nodes[1].log, NULL), "level=error"));
    load_goes_on(l, 200);
    unlink(when);
    node_start(c, 1);
    cluster_await(c, 3, 40);
    load_end_without_failure(l, "fdatasync failed");
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_slow_disks_are_slow_and_not_away)
{
    struct cluster *c = cluster_new(NULL, false);
    for (int i = 0; i < 3; i++) {
        cluster_add(c);
        c->nodes[i].environment[0] = text("LD_PRELOAD=%s", failing_library(c->folder));
        c->nodes[i].environment[1] = "SLOW_US=600000";
        c->nodes[i].environment[2] = "ASAN_OPTIONS=verify_asan_link_order=0";
        node_start(c, i);
        AWAIT(i || node_healthy(&c->nodes[0]), 20);
    }
    cluster_await(c, 3, 90);
    for (int i = 0; i < 12; i++) {
        char *key = text("/k%d", i);
        AWAIT(put(c->nodes[i % 3].url, key, "v").status / 100 == 2, 20); /* the lease may be new */
        for (int j = 0; j < 3; j++) {
            struct response r = get(c->nodes[j].url, key);
            ck_assert_msg(r.status == 200, "%s: %d %s", key, r.status, r.body);
            response_free(&r);
        }
    }
    cluster_stop(c);
}
END_TEST

static char *clock_file(const struct cluster *c, int i)
{
    return in_folder(c->folder, "clock%d", i);
}

/* Sets the wall clocks of some nodes; what fails later than `seconds` after it, fails the test. */
static void clocks_jump(const struct cluster *c, unsigned nodes, long ahead, double seconds,
                        struct load *l)
{
    double start = now();
    for (int i = 0; i < c->count; i++)
        if (nodes >> i & 1) {
            int fd = open(clock_file(c, i), O_WRONLY);
            ck_assert_int_eq(pwrite(fd, &ahead, sizeof ahead, 0), sizeof ahead);
            close(fd);
        }
    AWAIT(now() > start + seconds, seconds + 1);
    long failed = load_report(l).failed;
    AWAIT(now() > start + seconds + 2, 3);
    load_goes_on(l, 200);
    struct load_report r = load_report(l);
    ck_assert_msg(r.failed == failed, "%ld failed when %x were %ld s ahead, as %s",
                  r.failed - failed, nodes, ahead, r.first_failure);
}

/* Three nodes with clocks of their own, behind nginx, whose clock is right. */
static struct cluster *clocks_start(const long *ppm)
{
    struct cluster *c = cluster_new(NULL, false);
    for (int i = 0; i < 3; i++) {
        cluster_add(c);
        struct clock_error error = {.ppm = ppm[i], .since = (long)now()};
        file_write(clock_file(c, i), &error, sizeof error);
        c->nodes[i].environment[0] = text("LD_PRELOAD=%s", clock_library(c->folder));
        c->nodes[i].environment[1] = text("CLOCK_FILE=%s", clock_file(c, i));
        node_start(c, i);
        AWAIT(i || node_healthy(&c->nodes[0]), 20);
    }
    cluster_await(c, 3, 40);
    cluster_nginx(c);
    return c;
}

START_TEST(test_clocks_that_drift_two_percent_apart_cost_no_request)
{
    struct cluster *c = clocks_start((const long[]){10000, 0, -10000});
    struct load *l = load_paced(c);
    double offset = fabs(status_number(&c->nodes[0], "clock_offset_ms"));
    wait_seconds(setting("ESTORAJE_TEST_DRIFT", 6));
    printf("clocks are %g ms apart, and were %g\n",
           fabs(status_number(&c->nodes[0], "clock_offset_ms")), offset);
    ck_assert_double_gt(fabs(status_number(&c->nodes[0], "clock_offset_ms")), offset);
    for (int i = 0; i < 3; i++)
        ck_assert_msg(node_ready(&c->nodes[i]), "node %d is not ready", i);
    load_end_without_failure(l, "clocks that drift");
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

/* Nobody restarts anything but where it says so. */
START_TEST(test_wall_clocks_that_jump_cost_no_request_for_long)
{
    struct cluster *c = clocks_start((const long[]){0, 0, 0});
    struct load *l = load_through(c->nginx_url, "/load", 4);
    load_goes_on(l, 200);
    clocks_jump(c, 1, 3600, 2, l);
    clocks_jump(c, 1, -120, 2, l);
    clocks_jump(c, 1, 0, 2, l);
    clocks_jump(c, 7, 3600, 4, l);
    clocks_jump(c, 7, 0, 4, l);
    clocks_jump(c, 7, -120, 4, l);
    node_stop(c, 1); /* it is started with its clock two minutes behind the cluster's time */
    node_start(c, 1);
    AWAIT(node_ready(&c->nodes[1]), 40);
    clocks_jump(c, 7, 0, 4, l);
    clocks_jump(c, 4, 3600, 2, l);
    node_stop(c, 2); /* and one an hour ahead of it */
    node_start(c, 2);
    AWAIT(node_ready(&c->nodes[2]), 40);
    clocks_jump(c, 4, 0, 4, l);
    struct load_report r = load_end(l, "clocks that jump");
    ck_assert_int_eq(r.wrong, 0);
    for (int i = 0; i < 3; i++)
        ck_assert_msg(node_ready(&c->nodes[i]), "node %d is not ready", i);
    load_is_there(l, c);
    cluster_stop(c);
}
END_TEST

START_TEST(test_the_log_does_not_grow_without_bound)
{
    enum { KEYS = 24, SIZE = 1 << 20, ROUNDS = 16 };
    struct cluster *c = cluster_start(1, NULL);
    const struct node *n = &c->nodes[0];
    char *value = malloc(SIZE), *large = calloc(1, 30 * SIZE);
    ck_assert_int_eq(http(n->url, "PUT", "/large", NULL, large, 30 * SIZE).status, 201);
    for (int i = 0; i < 20; i++)
        ck_assert_int_eq(put(n->url, text("/gone%d", i), "v").status, 201);
    for (int i = 0; i < 20; i++)
        ck_assert_int_eq(status_of(n->url, "DELETE", text("/gone%d", i), NULL, NULL), 200);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < KEYS; i++) {
            memset(value, 'a' + (round + i) % 26, SIZE);
            struct response r = http(n->url, "PUT", text("/k%d", i), NULL, value, SIZE);
            ck_assert_msg(r.status / 100 == 2, "%d %s", r.status, r.body);
            response_free(&r);
        }
        if (round == ROUNDS / 2) { /* in the middle of cleaning, most likely */
            node_kill(c, 0);
            c->nodes[0].options[0] = "--max-value=1M"; /* what is larger has to be copied, too */
            node_start(c, 0);
            AWAIT(node_healthy(n), 30);
        }
    }
    double segment = 64 << 20;
    AWAIT(node_metric(n, "estoraje_log_garbage_bytes") <=
              node_metric(n, "estoraje_log_bytes") / 2 + segment / 2,
          60);
    printf("%d MiB written, %.0f MiB of log, %.0f MiB of it garbage\n", KEYS * ROUNDS,
           node_metric(n, "estoraje_log_bytes") / (1 << 20),
           node_metric(n, "estoraje_log_garbage_bytes") / (1 << 20));
    AWAIT(node_metric(n, "estoraje_log_bytes") <= 4 * segment, 60);
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < KEYS; i++) {
            memset(value, 'a' + (ROUNDS - 1 + i) % 26, SIZE);
            struct response r = get(n->url, text("/k%d", i));
            ck_assert_msg(r.status == 200 && body_is(&r, value, SIZE), "%d", r.status);
            response_free(&r);
        }
        struct response r = get(n->url, "/large");
        ck_assert(r.status == 200 && body_is(&r, large, 30 * SIZE));
        response_free(&r);
        for (int i = 0; i < 20; i++)
            ck_assert_int_eq(status_of(n->url, "GET", text("/gone%d", i), NULL, NULL), 404);
        node_kill(c, 0);
        node_start(c, 0);
        AWAIT(node_healthy(n), 30);
    }
    cluster_stop(c);
}
END_TEST

/* ================================ retries ================================ */

struct tries {
    const char *url;
    const char *kind;
    int clients, each, good, bad, stop;
    char *first;
};

/* One client's writes, each with one true answer, if it is applied once. */
static void *tries_run(void *argument)
{
    struct tries *t = argument;
    int client = __atomic_fetch_add(&t->clients, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < t->each && !__atomic_load_n(&t->stop, __ATOMIC_SEQ_CST); i++) {
        char *path = text("/%s/%d/%d", t->kind, client, i);
        int status = 0, wanted = 0;
        if (!strcmp(t->kind, "create")) {
            status = status_of(t->url, "PUT", path, "If-None-Match: *", path);
            wanted = 201;
        } else if (!strcmp(t->kind, "delete")) {
            status = status_of(t->url, "DELETE", path, NULL, NULL);
            wanted = 200;
        } else if (!strcmp(t->kind, "match")) {
            struct response r = get(t->url, path);
            status = r.status != 200 ? r.status
                                     : status_of(t->url, "PUT", path,
                                                 text("If-Match: %s", header(&r, "ETag")), "new");
            wanted = 204;
        } else {
            status = status_of(t->url, "POST", "/counter?op=add&by=1", NULL, NULL);
            wanted = 200;
        }
        if (status == wanted)
            __atomic_add_fetch(&t->good, 1, __ATOMIC_SEQ_CST);
        else if (!__atomic_fetch_add(&t->bad, 1, __ATOMIC_SEQ_CST))
            t->first = text("%s %s: %d, not %d", t->kind, path, status, wanted);
        free(path);
    }
    return NULL;
}

enum { TRIERS = 3, KINDS = 4 };
static const char *const kinds[KINDS] = {"create", "delete", "match", "add"};

static void tries_prepare(const char *url, int each)
{
    for (int client = 0; client < TRIERS; client++)
        for (int i = 0; i < each; i++) {
            ck_assert_int_eq(put(url, text("/delete/%d/%d", client, i), "v").status, 201);
            ck_assert_int_eq(put(url, text("/match/%d/%d", client, i), "v").status, 201);
        }
}

static void tries_start(struct tries *all, pthread_t *threads, const char *url, int each)
{
    for (int k = 0; k < KINDS; k++) {
        all[k] = (struct tries){.url = url, .kind = kinds[k], .each = each};
        for (int i = 0; i < TRIERS; i++)
            ck_assert_int_eq(pthread_create(&threads[k * TRIERS + i], NULL, tries_run, &all[k]), 0);
    }
}

static int tries_good(const struct tries *all)
{
    int good = 0;
    for (int k = 0; k < KINDS; k++)
        good += __atomic_load_n(&all[k].good, __ATOMIC_SEQ_CST) +
                __atomic_load_n(&all[k].bad, __ATOMIC_SEQ_CST);
    return good;
}

static void tries_end(struct tries *all, pthread_t *threads)
{
    for (int i = 0; i < KINDS * TRIERS; i++)
        pthread_join(threads[i], NULL);
    for (int k = 0; k < KINDS; k++)
        ck_assert_msg(all[k].bad == 0, "%d of %d, the first: %s", all[k].bad,
                      all[k].good + all[k].bad, all[k].first);
}

static void counter_is(const struct cluster *c, int number)
{
    for (int i = 0; i < c->count; i++) {
        struct response r = get(c->nodes[i].url, "/counter");
        ck_assert_msg(r.status == 200 && atoi(r.body) == number, "%d %s, not %d", r.status, r.body,
                      number);
    }
}

START_TEST(test_writes_whose_node_is_killed_get_their_true_answer_once)
{
    enum { EACH = 250 };
    struct cluster *c = behind_nginx(3, NULL);
    tries_prepare(c->nginx_url, EACH);
    struct tries all[KINDS];
    pthread_t threads[KINDS * TRIERS];
    tries_start(all, threads, c->nginx_url, EACH);
    for (int i = 0; i < 3; i++) {
        AWAIT(tries_good(all) >= (i + 1) * KINDS * TRIERS * EACH / 5, 120);
        node_kill(c, i);
        node_start(c, i);
        cluster_await(c, 3, 40);
        nginx_asks_again(c, i);
    }
    tries_end(all, threads);
    counter_is(c, all[3].good);
    cluster_stop(c);
}
END_TEST

START_TEST(test_writes_whose_node_is_stopped_get_their_true_answer_once)
{
    enum { EACH = 60 };
    struct cluster *c = behind_nginx(3, NULL);
    tries_prepare(c->nginx_url, EACH);
    struct tries all[KINDS];
    pthread_t threads[KINDS * TRIERS];
    tries_start(all, threads, c->nginx_url, EACH);
    AWAIT(tries_good(all) >= KINDS * TRIERS * EACH / 4, 60);
    node_signal(c, 1, SIGSTOP);
    wait_seconds(setting("ESTORAJE_TEST_PAUSE", 5));
    node_signal(c, 1, SIGCONT); /* and what it had begun goes on */
    tries_end(all, threads);
    cluster_await(c, 3, 40);
    for (int again = 0; again < 3; again++) {
        counter_is(c, all[3].good);
        wait_seconds(.5); /* whatever comes late has come */
    }
    for (int client = 0; client < TRIERS; client++)
        for (int i = 0; i < EACH; i++)
            ck_assert_int_eq(
                status_of(c->nodes[i % 3].url, "GET", text("/delete/%d/%d", client, i), NULL, NULL),
                404);
    cluster_stop(c);
}
END_TEST

struct adders {
    const struct cluster *c;
    int next, acknowledged, unknown;
};

static void *adder_run(void *argument)
{
    struct adders *a = argument;
    int turn = __atomic_fetch_add(&a->next, 1, __ATOMIC_SEQ_CST);
    http_fresh = true; /* libcurl must not repeat any */
    for (int i = 0; i < 100; i++) {
        struct response r =
            http(a->c->nodes[(turn + i) % 3].url, "POST", "/counter?op=add&by=1", NULL, NULL, 0);
        if (r.status == 200)
            __atomic_add_fetch(&a->acknowledged, 1, __ATOMIC_SEQ_CST);
        else if ((r.status == 0 && !r.unconnected) || header(&r, "Estoraje-Outcome"))
            __atomic_add_fetch(&a->unknown, 1, __ATOMIC_SEQ_CST);
        response_free(&r);
    }
    return NULL;
}

START_TEST(test_a_counter_ends_at_what_its_clients_were_answered)
{
    enum { ADDERS = 24 };
    struct cluster *c = cluster_start(3, NULL);
    struct adders a = {.c = c};
    pthread_t threads[ADDERS];
    for (int i = 0; i < ADDERS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, adder_run, &a), 0);
    for (int i = 0; i < 2; i++) {
        AWAIT(__atomic_load_n(&a.acknowledged, __ATOMIC_SEQ_CST) >= (i + 1) * ADDERS * 25, 60);
        node_kill(c, i);
        node_start(c, i);
        cluster_await(c, 3, 40);
    }
    for (int i = 0; i < ADDERS; i++)
        pthread_join(threads[i], NULL);
    struct response r = get(c->nodes[0].url, "/counter");
    int number = atoi(r.body);
    printf("counted %d, of %d acknowledged and %d unknown\n", number, a.acknowledged, a.unknown);
    ck_assert_int_ge(number, a.acknowledged);
    ck_assert_int_le(number, a.acknowledged + a.unknown);
    counter_is(c, number);
    cluster_stop(c);
}
END_TEST

static void *holder_run(void *argument)
{
    const struct cluster *c = argument;
    struct response r = http(c->nodes[1].url, "GET", "/lock?wait=60s", NULL, NULL,
                             0); /* it is there: the first answer */
    char *etag = text("If-None-Match: %s", header(&r, "ETag"));
    r = http(c->nodes[2].url, "GET", "/lock?wait=60s", etag, NULL, 0);
    ck_assert_int_eq(r.status, 404); /* it expired: its holder is dead */
    r = http(c->nodes[2].url, "PUT", "/lock?ttl=30s", "If-None-Match: *", "second", 6);
    return (void *)(intptr_t)r.status;
}

START_TEST(test_a_dead_holders_lock_goes_to_the_waiting_client)
{
    struct cluster *c = cluster_start(3, NULL);
    struct response first =
        http(c->nodes[0].url, "PUT", "/lock?ttl=4s", "If-None-Match: *", "first", 5);
    ck_assert_int_eq(first.status, 201);
    pthread_t waiter;
    void *status;
    ck_assert_int_eq(pthread_create(&waiter, NULL, holder_run, c), 0);
    node_kill(c, 0);
    ck_assert_int_eq(pthread_join(waiter, &status), 0);
    ck_assert_int_eq((intptr_t)status, 201);
    struct response r = get(c->nodes[1].url, "/lock");
    ck_assert(body_is(&r, "second", 6));
    ck_assert_str_gt(header(&r, "ETag"), header(&first, "ETag"));
    char *renew = text("If-Match: %s", header(&first, "ETag"));
    ck_assert_int_eq(status_of(c->nodes[1].url, "PUT", "/lock?ttl=4s", renew, "first"), 412);
    cluster_stop(c);
}
END_TEST

/* ================================ others ================================ */

START_TEST(test_prometheus_scrapes_three_nodes)
{
    if (!installed("prometheus"))
        return;
    struct cluster *c = cluster_start(3, NULL);
    char *configuration = in_folder(c->folder, "prometheus.yml");
    char *yaml = text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n- job_name: estoraje\n"
        "  metrics_path: /_metrics\n  static_configs:\n  - targets: ['%s', '%s', '%s']\n",
        c->nodes[0].address, c->nodes[1].address, c->nodes[2].address);
    file_write(configuration, yaml, strlen(yaml));
    int port = free_port();
    const char *argv[] = {"prometheus", text("--config.file=%s", configuration),
                          text("--web.listen-address=127.0.0.1:%d", port),
                          text("--storage.tsdb.path=%s/prometheus", c->folder), NULL};
    pid_t pid = process_start(argv, NULL, in_folder(c->folder, "prometheus.stderr"), SIGKILL);
    char *url = text("http://127.0.0.1:%d", port);
    AWAIT(get(url, "/-/ready").status == 200, 60);
    struct load *l =
        load_start(&(struct load_plan){.urls = {c->nodes[0].url, c->nodes[1].url, c->nodes[2].url},
                                       .prefix = "/load",
                                       .clients = 3,
                                       .keys = 10,
                                       .pause_ms = 5});
    const char *rate =
        "/api/v1/query?query=sum(rate(estoraje_http_requests_total%5B10s%5D))by(instance)";
    struct response r = {0};
    AWAIT((r = get(url, rate)).status == 200 && json_count(r.body, "data.result") == 3, 60);
    for (int i = 0; i < 3; i++)
        AWAIT(atof(json_string(get(url, rate).body, text("data.result.%d.value.1", i))) > 0, 30);
    AWAIT(json_count(get(url, "/api/v1/query?query=up%7Bjob=%22estoraje%22%7D==1").body,
                     "data.result") == 3,
          30);
    r = get(url, "/api/v1/query?query=sum(estoraje_peer_up)");
    ck_assert_double_eq(atof(json_string(r.body, "data.result.0.value.1")), 6);
    load_end_without_failure(l, "scraped");
    kill(pid, SIGTERM);
    process_wait(pid, 20);
    cluster_stop(c);
}
END_TEST

/* ================================ The list ================================ */

struct entry {
    const char *kind;
    const TTest *test;
};

int main(void)
{
    const struct entry all[] = {
        {"files", test_every_file_put_through_nginx_reads_back_from_every_node},
        {"failures", test_a_killed_node_costs_no_request_and_no_stall},
        {"failures", test_a_stopped_node_costs_no_request},
        {"failures", test_a_node_cut_off_costs_no_request_through_nginx},
        {"failures", test_a_link_cut_one_way_costs_no_request_through_nginx},
        {"failures", test_all_killed_at_once_lose_nothing_acknowledged},
        {"failures", test_a_minority_answers_503_at_once_and_keeps_its_data},
        {"failures", test_a_rolling_restart_costs_no_request},
        {"failures", test_a_node_that_was_away_catches_up},
        {"failures", test_nginx_asks_a_node_that_is_back_at_once},
        {"failures", test_a_node_is_ready_when_what_it_missed_is_there},
        {"failures", test_deleted_keys_stay_deleted_whichever_node_was_away},
        {"moves", test_a_joiner_takes_its_share_while_clients_run},
        {"moves", test_two_can_join_at_once},
        {"moves", test_a_joiner_is_ready_when_it_is_up_and_has_its_share},
        {"moves", test_a_drained_member_leaves_and_its_data_stays},
        {"moves", test_a_member_that_is_drained_right_after_it_joined_stays_away},
        {"moves", test_a_dead_member_is_evicted_and_joins_again},
        {"moves", test_nobody_is_evicted_when_too_few_would_remain},
        {"moves", test_a_join_is_called_off_when_the_joiner_dies},
        {"moves", test_a_change_goes_on_when_the_coordinator_dies},
        {"moves", test_a_node_that_missed_many_views_follows_them},
        {"moves", test_a_disk_lost_five_times_in_a_row_costs_no_request},
        {"moves", test_all_disks_of_three_nodes_are_replaced_in_turn_without_a_failed_request},
        {"moves", test_all_disks_of_five_nodes_are_replaced_in_turn_without_a_failed_request},
        {"moves", test_nodes_with_one_command_line_make_one_cluster},
        {"moves", test_one_command_line_makes_one_cluster_in_whatever_disorder},
        {"moves", test_nodes_that_move_one_after_the_other_cost_no_request},
        {"moves", test_a_cluster_whose_nodes_all_move_serves_again},
        {"moves", test_two_that_moved_in_turn_serve_without_the_third},
        {"moves", test_two_of_five_that_are_declared_lost_are_given_up},
        {"moves", test_one_of_three_makes_a_new_cluster_of_its_data},
        {"moves", test_force_new_cluster_left_in_place_makes_one_new_cluster},
        {"moves", test_force_new_cluster_said_to_a_cluster_of_one_takes_it_from_nobody_later},
        {"moves", test_a_listing_is_complete_while_data_moves},
        {"moves", test_five_nodes_live_through_everything},
        {"disks", test_a_flipped_bit_reaches_nobody_and_is_repaired},
        {"disks", test_bits_flipped_on_two_nodes_cost_a_rolling_restart_no_request},
        {"disks", test_values_damaged_at_every_node_are_all_there_after_a_restart},
        {"disks", test_damage_found_at_start_makes_a_node_rejoin_under_a_new_id},
        {"disks", test_a_directory_restored_from_an_older_copy_joins_under_a_new_id},
        {"disks", test_a_twin_serves_nothing_and_says_why},
        {"disks", test_a_lone_node_with_a_damaged_log_says_so_and_stops},
        {"disks", test_with_sync_none_holes_in_all_logs_cost_what_is_behind_them},
        {"disks", test_a_torn_tail_is_dropped},
        {"disks", test_a_full_disk_rejects_writes_and_recovers},
        {"disks", test_a_small_disk_that_is_filled_and_emptied_takes_writes_again},
        {"disks", test_a_larger_disk_that_is_filled_and_emptied_takes_writes_again},
        {"disks", test_a_full_disk_of_one_node_stops_nobody},
        {"disks", test_a_joiner_whose_disk_is_too_small_stops_and_holds_up_nobody},
        {"disks", test_a_failing_fdatasync_ends_the_process_and_loses_nothing},
        {"disks", test_slow_disks_are_slow_and_not_away},
        {"clocks", test_clocks_that_drift_two_percent_apart_cost_no_request},
        {"clocks", test_wall_clocks_that_jump_cost_no_request_for_long},
        {"disks", test_the_log_does_not_grow_without_bound},
        {"retries", test_writes_whose_node_is_killed_get_their_true_answer_once},
        {"retries", test_writes_whose_node_is_stopped_get_their_true_answer_once},
        {"retries", test_a_counter_ends_at_what_its_clients_were_answered},
        {"retries", test_a_dead_holders_lock_goes_to_the_waiting_client},
        {"others", test_prometheus_scrapes_three_nodes},
    };
    harness_begin("cluster");
    Suite *suite = suite_create("cluster");
    TCase *kind = NULL;
    const char *last = "";
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!harness_wants(all[i].test))
            continue;
        if (strcmp(all[i].kind, last)) {
            kind = tcase_create(last = all[i].kind);
            tcase_set_timeout(kind, 240);
            suite_add_tcase(suite, kind);
        }
        tcase_add_test(kind, all[i].test);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    return harness_end(runner);
}
