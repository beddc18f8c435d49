/*
 * test_crowd.c - 2,000 clients that come, send a half, stall, leave and come back, at three nodes: no
 * leak of memory, files or bytes in flight, leases are kept, and a well-behaved client beside them is
 * served as if they were not there. Then all that is dear, at once. CROWD_SECONDS=300 DEAR_SECONDS=300
 * for the long runs.
 */
#include "cluster.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CROWD = 2000, NODES = 3, LARGE = 64 << 10, BODY = 32 << 10, ANSWERS = 1 << 20 };

/* What one of them does with a request: how much of it is sent before a pause, and whether the rest
 * follows it. Then the answer is read, all of it or a little; then it leaves. */
struct visitor {
    int fd;       /* -1: away */
    double until; /* now() at which the pause ends */
    const char *request;
    size_t bytes, part, sent; /* of the request; part: up to the pause */
    bool rest, patient;       /* patient: reads as fast as it can */
    size_t got;
    char status[13]; /* "HTTP/1.1 200" */
};

struct crowd {
    struct cluster *cluster;
    struct visitor all[CROWD];
    unsigned seed;
    long visits, answers, rejected; /* rejected: 503 */
    char wrong[128];                /* the first answer that is none of those that may be */
};

static int chance(struct crowd *c, int below)
{
    return (int)((unsigned)rand_r(&c->seed) % (unsigned)below);
}

static char body[BODY];

/* Requests of all kinds; a body is not text. */
static const char *request_make(struct crowd *c, size_t *bytes)
{
    static __thread char made[BODY + 512];
    int key = chance(c, 500), count = 0;
    switch (chance(c, 6)) {
    case 0:
        count = sprintf(made, "GET /crowd/large HTTP/1.1\r\nHost: x\r\n\r\n");
        break;
    case 1:
        count = sprintf(made, "GET /crowd/%d?wait=20s HTTP/1.1\r\nHost: x\r\n\r\n", 1000 + key);
        break;
    case 2:
        count = sprintf(made, "GET /?prefix=crowd&limit=100 HTTP/1.1\r\nHost: x\r\n\r\n");
        break;
    case 3:
        count = sprintf(made, "DELETE /crowd/%d HTTP/1.1\r\nHost: x\r\n\r\n", key);
        break;
    default:
        count = sprintf(made, "PUT /crowd/%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n",
                        key, BODY);
        memcpy(made + count, body, BODY);
        count += BODY;
    }
    *bytes = (size_t)count;
    return made;
}

static void visitor_comes(struct crowd *c, struct visitor *v)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    to.sin_port = htons((uint16_t)c->cluster->nodes[chance(c, NODES)].port);
    v->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    REQUIRE(v->fd >= 0, "socket: %s", strerror(errno));
    REQUIRE(connect(v->fd, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS,
            "connect: %s", strerror(errno));
    size_t bytes;
    const char *made = request_make(c, &bytes);
    v->request = memcpy(malloc(bytes), made, bytes);
    v->bytes = bytes;
    v->part = chance(c, 3) ? (size_t)chance(c, (int)bytes) : bytes;
    v->rest = chance(c, 2);
    v->patient = chance(c, 2);
    v->sent = v->got = 0;
    v->until = now() + 0.001 * chance(c, 4000);
    c->visits++;
}

/* Half of them do not say goodbye: what they have not read is answered with a reset. */
static void visitor_leaves(struct crowd *c, struct visitor *v)
{
    struct linger at_once = {1, 0};
    if (chance(c, 2))
        setsockopt(v->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(v->fd);
    free((char *)v->request);
    v->fd = -1;
    v->until = now() + 0.001 * chance(c, 1000);
}

static void visitor_sends(struct crowd *c, struct visitor *v)
{
    bool paused = v->sent == v->part && now() < v->until;
    if (v->sent == v->bytes || paused)
        return;
    if (v->sent == v->part) {
        if (!v->rest) {
            visitor_leaves(c, v);
            return;
        }
        v->part = v->bytes;
    }
    ssize_t n = send(v->fd, v->request + v->sent, v->part - v->sent, MSG_NOSIGNAL);
    if (n > 0)
        v->sent += (size_t)n;
    else if (errno != EAGAIN && errno != ENOTCONN)
        visitor_leaves(c, v); /* a node may close what is too slow */
    if (v->fd >= 0 && v->sent == v->bytes)
        v->until = now() + 0.001 * chance(c, 3000); /* so long it stays for the answer */
}

static void answer_count(struct crowd *c, const struct visitor *v)
{
    static const char *const good[] = {"200", "201", "204", "404", "408", "503"};
    bool known = false;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        known |= strcmp(v->status + strlen("HTTP/1.1 "), good[i]) == 0;
    if (!known && !*c->wrong)
        snprintf(c->wrong, sizeof c->wrong, "'%s' for %.40s", v->status, v->request);
    c->answers++;
    c->rejected += strstr(v->status, "503") != NULL;
}

static void visitor_reads(struct crowd *c, struct visitor *v)
{
    static char sink[LARGE];
    ssize_t n = recv(v->fd, sink, v->patient ? sizeof sink : 100, 0);
    if (n > 0) {
        for (ssize_t i = 0; i < n && v->got < sizeof v->status - 1; i++, v->got++) {
            v->status[v->got] = sink[i];
            v->status[v->got + 1] = 0;
            if (v->got == sizeof v->status - 2)
                answer_count(c, v);
        }
    } else if (n == 0 || (errno != EAGAIN && errno != ENOTCONN)) {
        visitor_leaves(c, v);
    }
}

static void crowd_turn(struct crowd *c)
{
    struct pollfd polled[CROWD];
    for (int i = 0; i < CROWD; i++) {
        struct visitor *v = &c->all[i];
        if (v->fd < 0 && now() >= v->until)
            visitor_comes(c, v);
        polled[i] = (struct pollfd){v->fd, POLLIN, 0};
    }
    poll(polled, CROWD, 5);
    for (int i = 0; i < CROWD; i++) {
        struct visitor *v = &c->all[i];
        if (v->fd >= 0)
            visitor_sends(c, v);
        if (v->fd >= 0 && polled[i].revents)
            visitor_reads(c, v);
        if (v->fd >= 0 && v->sent == v->bytes && now() >= v->until)
            visitor_leaves(c, v);
    }
}

static void crowd_runs(struct crowd *c, double seconds)
{
    for (double end = now() + seconds; now() < end;)
        crowd_turn(c);
    for (int i = 0; i < CROWD; i++)
        if (c->all[i].fd >= 0)
            visitor_leaves(c, &c->all[i]);
}

/* One that behaves: writes and reads, in turn, and knows what it must read. */
struct regular {
    pthread_t thread;
    const char *url;
    bool stop;
    double *seconds; /* of each request */
    int count;
    int rejected; /* 503: too much was in flight */
    char failure[256];
};

static void *regular_run(void *context)
{
    struct regular *r = context;
    const char *last[50] = {NULL};
    r->seconds = calloc(ANSWERS, sizeof *r->seconds);
    for (int i = 0; !__atomic_load_n(&r->stop, __ATOMIC_SEQ_CST) && r->count < ANSWERS - 1; i++) {
        const char *path = text("/regular/%d", i % 50), *value = text("%d", i);
        struct response wrote = put(r->url, path, value), read = get(r->url, path);
        r->seconds[r->count++] = wrote.seconds;
        r->seconds[r->count++] = read.seconds;
        bool full = wrote.status == 503 && strstr(wrote.body, "overloaded");
        const char *is = full ? last[i % 50] : value;
        last[i % 50] = is;
        r->rejected += full;
        bool well = (full || wrote.status == 201 || wrote.status == 204) &&
                    read.status == (is ? 200 : 404) && (!is || strcmp(read.body, is) == 0);
        if (!well && !*r->failure)
            snprintf(r->failure, sizeof r->failure, "PUT %d %.100s in %.3f s, GET %d %.100s",
                     wrote.status, wrote.status ? wrote.body : wrote.error, wrote.seconds,
                     read.status, read.status ? read.body : read.error);
        response_free(&wrote);
        response_free(&read);
        pause_ms(5);
    }
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double metric_sum(const struct cluster *c, const char *name)
{
    double sum = 0;
    for (int i = 0; i < NODES; i++)
        sum += node_metric(&c->nodes[i], name);
    return sum;
}

static int sockets_of(const struct cluster *c)
{
    int sum = 0;
    for (int i = 0; i < NODES; i++)
        sum += atoi(run(10, "ls -l /proc/%d/fd | grep -c socket:", (int)c->nodes[i].pid).text);
    return sum;
}

static double seconds_to_run(void)
{
    const char *seconds = getenv("CROWD_SECONDS");
    return seconds ? atof(seconds) : 16;
}

START_TEST(test_a_crowd_of_bad_clients_costs_nothing_that_stays)
{
    struct rlimit files = {3 * CROWD, 3 * CROWD};
    setrlimit(RLIMIT_NOFILE, &files);
    for (int i = 0; i < BODY; i++)
        body[i] = (char)(i * 7);
    struct cluster *cluster = cluster_start(NODES, (const char *const[]){"--memory", "96M", NULL});
    static struct crowd c;
    c.cluster = cluster;
    c.seed = 1;
    for (int i = 0; i < CROWD; i++)
        c.all[i].fd = -1;
    char *large = calloc(1, LARGE + 1);
    memset(large, 'l', LARGE);
    ck_assert_int_eq(put(cluster->nodes[0].url, "/crowd/large", large).status, 201);
    double leases = metric_sum(cluster, "estoraje_lease_expirations_total");
    int sockets = sockets_of(cluster);
    struct regular r = {.url = cluster->nodes[0].url};
    pthread_create(&r.thread, NULL, regular_run, &r);

    crowd_runs(&c, seconds_to_run() / 2); /* afterwards all is as large as it becomes */
    double memory = metric_sum(cluster, "process_resident_memory_bytes");
    crowd_runs(&c, seconds_to_run() / 2);
    __atomic_store_n(&r.stop, true, __ATOMIC_SEQ_CST);
    pthread_join(r.thread, NULL);
    double grown = metric_sum(cluster, "process_resident_memory_bytes") - memory;

    qsort(r.seconds, (size_t)r.count, sizeof *r.seconds, by_size);
    double p99 = r.seconds[r.count * 99 / 100], slowest = r.seconds[r.count - 1];
    char *seen = text("%ld visits, %ld answers (%ld 503); beside them %d requests, p50 %.1f ms, "
                      "p99 %.1f ms, slowest %.0f ms; memory %.0f MB, then %+.1f MB",
                      c.visits, c.answers, c.rejected, r.count, r.seconds[r.count / 2] * 1e3,
                      p99 * 1e3, slowest * 1e3, memory / 1e6, grown / 1e6);
    if (getenv("CROWD_SECONDS"))
        printf("%s\n", seen);
    ck_assert_msg(!*r.failure && !r.rejected, "%s; %s", r.failure, seen);
    ck_assert_msg(!*c.wrong, "%s", c.wrong);
    ck_assert_msg(c.answers > CROWD, "%s", seen);
    ck_assert_msg(p99 < 1 * slowness(), "%s", seen);
    ck_assert_msg(grown < 32e6, "%s", seen);
    ck_assert_double_eq(metric_sum(cluster, "estoraje_lease_expirations_total"), leases);
    AWAIT(metric_sum(cluster, "estoraje_http_requests_in_flight") == NODES, 10);
    AWAIT(sockets_of(cluster) <= sockets + 2 * NODES, 10); /* our own connections are kept */
    /* What nobody has in flight any more is not counted: there is room for a large value. */
    char *largest = calloc(1, 60 << 20);
    for (int i = 0; i < NODES; i++) /* the one before is under way a little longer */
        AWAIT(http(cluster->nodes[i].url, "PUT", "/room", NULL, largest, 60 << 20).status / 100 ==
                  2,
              30);
    cluster_stop(cluster);
}
END_TEST

/* ---- All that is dear, at once ---- */

enum { DEAR_BYTES = 64 << 20, LISTED = 5000, DEAR_MAX = 4000 };

/* Clients of one kind: how many, what they ask for again and again, and how they read the answer. */
struct kind {
    int count;
    const char *request; /* NULL: none. %d is another number each time, ETag the value's */
    bool body;           /* of DEAR_BYTES */
    int reads;           /* bytes in a turn; 0: never */
};
static const struct kind kinds[] = {
    {150, "HEAD /dear HTTP/1.1\r\n", false, 4096},
    {120, "GET /dear HTTP/1.1\r\nRange: bytes=0-%d\r\n", false, 16 << 10},
    {30, "GET /dear HTTP/1.1\r\nRange: bytes=%d-60000000\r\n", false, 16 << 10},
    {100, "GET /dear?wait=20s HTTP/1.1\r\nIf-None-Match: ETag\r\n", false, 4096},
    {40, "GET /listed/?limit=100000 HTTP/1.1\r\n", false, 100},
    {17, "GET /dear HTTP/1.1\r\n", false, 0},
    {14, "PUT /put/%d HTTP/1.1\r\nContent-Length: 67108864\r\n", true, 4096},
    {20, "DELETE /never/%d HTTP/1.1\r\n", false, 4096},
    {2000, NULL, false, 0},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

struct dear {
    const struct kind *kind;
    int fd; /* -1: away */
    char *head;
    size_t sent, head_bytes;
    double until; /* it is away */
};

static char *dear_body;

static void dear_comes(struct dear *d, int port, const char *etag)
{
    static int number;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    d->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    REQUIRE(d->fd >= 0, "socket: %s", strerror(errno));
    REQUIRE(connect(d->fd, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS,
            "connect: %s", strerror(errno));
    d->sent = d->head_bytes = 0;
    if (!d->kind->request)
        return;
    char line[256];
    snprintf(line, sizeof line, d->kind->request, number++ % 100000);
    const char *at = strstr(line, "ETag");
    int count =
        asprintf(&d->head, "%.*s%s%sHost: x\r\nConnection: close\r\n\r\n",
                 at ? (int)(at - line) : (int)strlen(line), line, at ? etag : "", at ? "\r\n" : "");
    d->head_bytes = (size_t)count;
}

static void dear_leaves(struct dear *d)
{
    close(d->fd);
    free(d->head);
    d->head = NULL;
    d->fd = -1;
    d->until = now() + 0.05;
}

/* False: the node hung up. */
static bool dear_sends(struct dear *d)
{
    size_t all = d->head_bytes + (d->kind->body ? DEAR_BYTES : 0);
    if (d->sent == all)
        return true;
    bool head = d->sent < d->head_bytes;
    const char *from = head ? d->head + d->sent : dear_body + (d->sent - d->head_bytes);
    size_t part = head ? d->head_bytes - d->sent : all - d->sent;
    ssize_t n = send(d->fd, from, part < 256 << 10 ? part : 256 << 10, MSG_NOSIGNAL);
    d->sent += n > 0 ? (size_t)n : 0;
    return n >= 0 || errno == EAGAIN || errno == ENOTCONN;
}

static bool dear_reads(struct dear *d, short events)
{
    static char sink[16 << 10];
    if (!d->kind->reads)
        return !(events & (POLLHUP | POLLRDHUP | POLLERR));
    ssize_t n = recv(d->fd, sink, (size_t)d->kind->reads, 0);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == ENOTCONN));
}

/* All kinds for so long; how often clients came. */
static long dear_run(int port, const char *etag, double seconds)
{
    static struct dear all[DEAR_MAX];
    static struct pollfd polled[DEAR_MAX];
    int count = 0;
    long visits = 0;
    for (int k = 0; k < KINDS; k++)
        for (int i = 0; i < kinds[k].count; i++)
            all[count++] = (struct dear){.kind = &kinds[k], .fd = -1};
    for (double end = now() + seconds; now() < end;) {
        for (int i = 0; i < count; i++) {
            if (all[i].fd < 0 && now() >= all[i].until)
                dear_comes(&all[i], port, etag), visits++;
            short events = all[i].kind->reads ? POLLIN | POLLRDHUP : POLLRDHUP;
            polled[i] = (struct pollfd){all[i].fd, events, 0};
        }
        poll(polled, (nfds_t)count, 5);
        for (int i = 0; i < count; i++)
            if (all[i].fd >= 0 && (!dear_sends(&all[i]) ||
                                   (polled[i].revents && !dear_reads(&all[i], polled[i].revents))))
                dear_leaves(&all[i]);
    }
    for (int i = 0; i < count; i++)
        if (all[i].fd >= 0)
            dear_leaves(&all[i]);
    return visits;
}

/* The most memory that a node ever had. */
static double memory_peak(const struct node *n)
{
    return 1024 * atof(run(10, "awk '/VmHWM/ { print $2 }' /proc/%d/status", (int)n->pid).text);
}

static void all_dear_at_once(const char *memory, double limit)
{
    const char *seconds = getenv("DEAR_SECONDS");
    struct rlimit files = {3 * DEAR_MAX, 3 * DEAR_MAX};
    setrlimit(RLIMIT_NOFILE, &files);
    dear_body = calloc(1, DEAR_BYTES);
    struct cluster *c =
        cluster_start(NODES, (const char *const[]){"--memory", memory, "--lease", "4000", NULL});
    for (int i = 0; i < LISTED; i++) {
        struct response one = put(c->nodes[i % NODES].url, text("/listed/%d", i), "v");
        ck_assert_int_eq(one.status, 201);
        response_free(&one);
    }
    struct response r = http(c->nodes[0].url, "PUT", "/dear", NULL, dear_body, DEAR_BYTES);
    ck_assert_int_eq(r.status, 201);
    double leases = metric_sum(c, "estoraje_lease_expirations_total"), peak = 0;
    struct regular regular = {.url = c->nodes[0].url};
    pthread_create(&regular.thread, NULL, regular_run, &regular);
    long visits = dear_run(c->nodes[0].port, header(&r, "ETag"), seconds ? atof(seconds) : 12);
    __atomic_store_n(&regular.stop, true, __ATOMIC_SEQ_CST);
    pthread_join(regular.thread, NULL);
    for (int i = 0; i < NODES; i++)
        peak = memory_peak(&c->nodes[i]) > peak ? memory_peak(&c->nodes[i]) : peak;
    qsort(regular.seconds, (size_t)regular.count, sizeof *regular.seconds, by_size);
    double p99 = regular.seconds[regular.count * 99 / 100];
    char *seen = text(
        "--memory %s: %ld visits; beside them %d requests (%d 503), p50 %.1f ms, p99 %.0f ms, "
        "slowest %.0f ms; at most %.0f MiB",
        memory, visits, regular.count, regular.rejected, regular.seconds[regular.count / 2] * 1e3,
        p99 * 1e3, regular.seconds[regular.count - 1] * 1e3, peak / (1 << 20));
    printf("%s\n", seen);
    ck_assert_msg(!*regular.failure, "%s; %s", regular.failure, seen);
    ck_assert_msg(p99 < slowness(), "%s", seen);
    ck_assert_msg(peak < 1.25 * limit + (256 << 20), "%s", seen);
    ck_assert_double_eq(metric_sum(c, "estoraje_lease_expirations_total"), leases);
    cluster_stop(c);
}

START_TEST(test_all_that_is_dear_at_once_takes_no_more_memory_than_was_allowed)
{
    all_dear_at_once("1G", 1 << 30);
}
END_TEST

START_TEST(test_all_that_is_dear_at_once_is_borne_with_little_memory_too)
{
    all_dear_at_once("256M", 256 << 20);
}
END_TEST

int main(void)
{
    const TTest *tests[] = {
        test_a_crowd_of_bad_clients_costs_nothing_that_stays,
        test_all_that_is_dear_at_once_takes_no_more_memory_than_was_allowed,
        test_all_that_is_dear_at_once_is_borne_with_little_memory_too,
    };
    return harness_run("crowd", 600, tests, sizeof tests / sizeof *tests);
}
