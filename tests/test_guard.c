/*
 * test_guard.c - strangers get nothing: frames forged by them, frames that were overheard
 * and are sent again, and the secret itself. Real nodes; forge.c makes the frames.
 */
#include "cluster.h"
#include "forge.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { NODES = 3, KEYS = 20, STRANGER = 0x57a6e7 };
static const char secret[] = "open sesame, open";

static const char *const *with_secret(const char *more, const char *value)
{
    static const char *options[5] = {"--secret-file"};
    char *path = in_folder(harness_folder(), "secret-%d", (int)getpid());
    file_write(path, secret, strlen(secret));
    chmod(path, 0600);
    options[1] = path;
    options[2] = more;
    options[3] = value;
    return options;
}

static char *value_of(int key)
{
    return text("value %d", key);
}

static void keys_put(const struct cluster *c, int node)
{
    for (int i = 0; i < KEYS; i++)
        ck_assert_int_eq(put(c->nodes[node].url, text("/k%d", i), value_of(i)).status / 100, 2);
}

/* What every node holds is what was put, and each takes a write at once. */
static void keys_check(const struct cluster *c)
{
    for (int n = 0; n < c->count; n++) {
        for (int i = 0; i < KEYS; i++) {
            struct response r = get(c->nodes[n].url, text("/k%d", i));
            ck_assert_msg(r.status == 200 && !strcmp(r.body, value_of(i)), "%d: %d %s", n, r.status,
                          r.body);
            response_free(&r);
        }
        struct response r = put(c->nodes[n].url, "/after", "v");
        ck_assert_msg(r.status / 100 == 2 && r.seconds < slowness(), "%d: %d in %g s", n, r.status,
                      r.seconds);
        ck_assert_int_eq(put(c->nodes[n].url, "/forged", "v").status / 100, 2);
    }
}

/* What must not change: the members, as each node has them, and how many keys there are. */
static char *members_seen(const struct cluster *c)
{
    char *seen = strdup("");
    for (int n = 0; n < c->count; n++) {
        struct response r = get(c->nodes[n].url, "/_status");
        for (int i = 0; i < json_count(r.body, "members"); i++)
            seen = text("%s%s at %s is %s\n", seen, json_string(r.body, text("members.%d.id", i)),
                        json_string(r.body, text("members.%d.address", i)),
                        json_string(r.body, text("members.%d.state", i)));
        response_free(&r);
    }
    return seen;
}

static char *all_seen(const struct cluster *c)
{
    char *seen = members_seen(c);
    for (int n = 0; n < c->count; n++) {
        struct response r = get(c->nodes[n].url, "/_status");
        seen = text("%sepoch %g, %g keys\n", seen, json_number(r.body, "epoch"),
                    json_number(r.body, "keys"));
        response_free(&r);
    }
    return seen;
}

static double metric_sum(const struct cluster *c, const char *name)
{
    double sum = 0;
    for (int i = 0; i < c->count; i++)
        sum += node_metric(&c->nodes[i], name);
    return sum;
}

static uint64_t number_of(const char *hex)
{
    return strtoull(hex, NULL, 16);
}

/* All that a stranger can read of a node. */
static struct forger forger_of(const struct node *n, uint64_t from, const char *signs)
{
    struct response r = get(n->url, "/_status");
    struct forger f = {.from = from, .secret = signs};
    f.cluster = number_of(json_string(r.body, "cluster"));
    f.to = number_of(json_string(r.body, "node"));
    f.epoch = (uint64_t)json_number(r.body, "epoch");
    int count = json_count(r.body, "members");
    for (int i = 0; i < count && i < FORGE_MEMBERS; i++)
        f.members[f.members_count++] = number_of(json_string(r.body, text("members.%d.id", i)));
    response_free(&r);
    return f;
}

/* A member that the node is not. */
static uint64_t other_member(const struct forger *f)
{
    return f->members[f->members[0] == f->to];
}

static void post_more(int fd, const void *bytes, size_t count)
{
    raw_print(fd, "%zx\r\n", count);
    raw_send(fd, bytes, count);
    raw_send(fd, "\r\n", 2);
}

/* As a peer's POST is, with the frame that goes first unless f is NULL; more may follow. */
static int post_begin(const struct node *n, const struct forger *f)
{
    int fd = raw_connect(n->port);
    size_t bytes;
    raw_print(fd, "POST /_mail HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-estoraje-mail\r\n"
                  "Transfer-Encoding: chunked\r\n\r\n");
    uint8_t *first = f ? forge_head(f, 0, &bytes) : NULL;
    if (first)
        post_more(fd, first, bytes);
    free(first);
    return fd;
}

/* The answer's status, once all of it was received; 0: the node hung up. */
static int post_end(int fd)
{
    raw_send(fd, "0\r\n\r\n", 5);
    int status = raw_receive(fd, 20).status;
    close(fd);
    return status;
}

static int post(const struct node *n, const struct forger *f, const void *bytes, size_t count)
{
    int fd = post_begin(n, f);
    post_more(fd, bytes, count);
    return post_end(fd);
}

/* Some of each kind, as a stranger's or as a member's. Before them goes what a node sends first, or a
 * frame that was overheard and is right, or none. */
static void forge_some(const struct node *n, const char *signs, bool member)
{
    enum { EACH = 6 };
    struct forger f = forger_of(n, STRANGER, signs), peer = f;
    peer.secret = secret;
    f.from = member ? other_member(&f) : STRANGER;
    for (int what = 0; what < FORGERIES; what++)
        for (unsigned nth = 0; nth < EACH; nth++) {
            size_t bytes;
            uint8_t *frame = forge(&f, what, nth, &bytes);
            ck_assert_int_eq(post(n, &f, frame, bytes), 0);
            ck_assert_int_eq(post(n, &peer, frame, bytes), 0);
            ck_assert_int_eq(post(n, NULL, frame, bytes), 401);
            free(frame);
        }
}

START_TEST(test_who_does_not_know_the_secret_changes_nothing)
{
    struct cluster *c = cluster_start(NODES, with_secret(NULL, NULL));
    keys_put(c, 0);
    put(c->nodes[0].url, "/forged", "v");
    put(c->nodes[0].url, "/after", "v");
    char *before = all_seen(c);
    double leases = metric_sum(c, "estoraje_lease_expirations_total");
    for (int n = 0; n < NODES; n++)
        for (int member = 0; member < 2; member++) {
            forge_some(&c->nodes[n], NULL, member);
            forge_some(&c->nodes[n], "open rye, open barley", member);
        }
    ck_assert_str_eq(all_seen(c), before);
    ck_assert_double_eq(metric_sum(c, "estoraje_lease_expirations_total"), leases);
    keys_check(c);
    for (int n = 0; n < NODES; n++) { /* not a line for each of them */
        char *log = file_read(c->nodes[n].log, NULL), *found = strstr(log, "does not know our");
        ck_assert_msg(found && !strstr(found + 1, "does not know our"), "%s", log);
    }
    cluster_stop(c);
}
END_TEST

/* Frames that do not end, before anything showed that their sender knows the secret. */
START_TEST(test_who_does_not_know_the_secret_takes_no_memory)
{
    enum { POSTS = 8, EACH = 48 << 20 };
    struct cluster *c = cluster_start(1, with_secret(NULL, NULL));
    const struct node *n = &c->nodes[0];
    double before = node_metric(n, "process_resident_memory_bytes");
    char *zeros = calloc(1, EACH);
    int fds[POSTS];
    for (int i = 0; i < POSTS; i++) {
        struct forger f = forger_of(n, STRANGER, NULL);
        size_t bytes;
        uint8_t *head = forge_head(&f, i % 2 ? 1u << 30 : UINT32_MAX - 99, &bytes);
        fds[i] = post_begin(n, NULL);
        post_more(fds[i], head, bytes);
        post_more(fds[i], zeros, EACH);
        free(head);
    }
    AWAIT(node_metric(n, "estoraje_http_requests_in_flight") >= 1, 10);
    double grown = node_metric(n, "process_resident_memory_bytes") - before;
    ck_assert_msg(grown < 32e6, "%.0f MB", grown / 1e6);
    ck_assert_int_eq(put(n->url, "/k", "v").status, 201);
    for (int i = 0; i < POSTS; i++)
        close(fds[i]);
    cluster_stop(c);
}
END_TEST

/* Bytes that nodes sent to a process that listens where a node was. */
struct overheard {
    uint8_t *bytes;
    size_t count;
};

static int listen_at(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    REQUIRE(bind(fd, (struct sockaddr *)&address, sizeof address) == 0, "%s", strerror(errno));
    REQUIRE(listen(fd, 64) == 0, "%s", strerror(errno));
    return fd;
}

/* How many frames there are in it. */
static int frames_count(const struct overheard *h)
{
    int count = 0;
    size_t bytes;
    for (size_t at = 0; forge_find(h->bytes, h->count, &at, &bytes); at += bytes)
        count++;
    return count;
}

/* Receives so many frames at a port where nobody else listens. */
static struct overheard overhear(int port, int frames)
{
    enum { LINKS = 32, ROOM = 8 << 20 };
    struct pollfd fds[LINKS] = {{listen_at(port), POLLIN, 0}};
    struct overheard of[LINKS] = {{0}}, all = {malloc(ROOM), 0};
    int links = 1, found = 0;
    for (double end = now() + 30 * slowness(); found < frames;) {
        REQUIRE(now() < end, "%d frames came", found);
        poll(fds, (nfds_t)links, 100);
        if (fds[0].revents && links < LINKS) {
            fds[links] = (struct pollfd){accept(fds[0].fd, NULL, NULL), POLLIN, 0};
            of[links++].bytes = malloc(ROOM);
        }
        found = 0;
        for (int i = 1; i < links; i++) {
            ssize_t n =
                recv(fds[i].fd, of[i].bytes + of[i].count, ROOM - of[i].count, MSG_DONTWAIT);
            of[i].count += n > 0 ? (size_t)n : 0;
            found += frames_count(&of[i]);
        }
    }
    for (int i = 1; i < links; i++) {
        REQUIRE(all.count + of[i].count <= ROOM, "too much");
        memcpy(all.bytes + all.count, of[i].bytes, of[i].count);
        all.count += of[i].count;
        free(of[i].bytes);
    }
    for (int i = 0; i < links; i++)
        close(fds[i].fd);
    return all;
}

/* Frames that nodes sent to one that was away, sent once more to it and to all others: by then those of
 * one are old, and the other's id is lost. */
START_TEST(test_old_frames_and_those_of_a_lost_id_change_nothing)
{
    enum { FRAMES = 60, AGAIN = 10 };
    struct cluster *c = cluster_start(NODES, with_secret("--lease", "1000"));
    keys_put(c, 0);
    node_kill(c, 0);
    struct overheard h = overhear(c->nodes[0].port, FRAMES);
    ck_assert_ptr_null(memmem(h.bytes, h.count, secret, strlen(secret)));
    node_start(c, 0);
    cluster_await(c, NODES, 30);
    node_kill(c, 2);
    folder_remove(in_folder(c->nodes[2].folder, "data"));
    node_start(c, 2);
    cluster_await(c, NODES, 60);
    for (int n = 0; n < NODES; n++)
        AWAIT(node_ready(&c->nodes[n]), 30);
    keys_put(c, 1);
    keys_check(c);
    char *before = all_seen(c);
    double leases = metric_sum(c, "estoraje_lease_expirations_total");
    for (int n = 0; n < NODES; n++) {
        size_t bytes;
        for (int again = 0; again < AGAIN; again++) {
            int fd = post_begin(&c->nodes[n], NULL);
            const uint8_t *frame;
            for (size_t at = 0; (frame = forge_find(h.bytes, h.count, &at, &bytes)); at += bytes) {
                ck_assert_int_eq(
                    forge_to(frame) == number_of(node_id(&c->nodes[0])) || !forge_to(frame), 1);
                post_more(fd, frame, bytes);
            }
            ck_assert_int_eq(post_end(fd), 401); /* they are signed, and it goes on to the end */
        }
    }
    keys_check(c);
    ck_assert_str_eq(all_seen(c), before);
    ck_assert_double_eq(metric_sum(c, "estoraje_lease_expirations_total"), leases);
    cluster_stop(c);
}
END_TEST

/* Frames of all kinds, each from another stranger or, of those that may be, from a member. What a member
 * may say for good (values, wishes, the next view) is not among these: without a secret that is not
 * promised. */
static void forge_all(const struct node *n, bool member)
{
    enum { EACH = 400 };
    for (int what = 0; what < (member ? FORGE_STRANGER_KINDS : FORGERIES); what++) {
        struct forger f = forger_of(n, STRANGER, NULL);
        int fd = post_begin(n, &f);
        for (unsigned nth = 0; nth < EACH; nth++) {
            size_t bytes;
            f.from = member ? other_member(&f) : STRANGER + (uint64_t)what * EACH + nth;
            uint8_t *frame = forge(&f, what, nth, &bytes);
            if (what == FORGE_CUT_OFF) { /* after such a one the node hangs up */
                post_end(fd);
                fd = post_begin(n, &f);
            }
            post_more(fd, frame, bytes);
            free(frame);
        }
        post_end(fd);
    }
}

START_TEST(test_without_a_secret_a_forger_stops_and_fills_no_node_and_nothing_of_it_stays)
{
    struct cluster *c =
        cluster_start(NODES, (const char *const[]){"--evict-after", "4", "--memory", "64M", NULL});
    keys_put(c, 0);
    char *large = calloc(1, (4 << 20) + 1);
    memset(large, 'f', 4 << 20);
    ck_assert_int_eq(put(c->nodes[0].url, "/forged", large).status, 201);
    char *before = members_seen(c);
    for (int round = 0; round < 4; round++)
        for (int n = 0; n < NODES; n++) {
            forge_all(&c->nodes[n], round % 2);
            double memory = node_metric(&c->nodes[n], "process_resident_memory_bytes");
            ck_assert_msg(memory < (64 + 64 + 256) << 20, "%.0f MB", memory / 1e6);
        }
    cluster_await(c, NODES, 60);
    ck_assert_str_eq(members_seen(c), before);
    for (int n = 0; n < NODES; n++) /* what it had asked for is sent by then */
        AWAIT(put(c->nodes[n].url, "/after", "v").status / 100 == 2, 10);
    keys_check(c);
    struct response r = get(c->nodes[0].url, "/after");
    const char *etag = header(&r, "ETag");
    double ahead = (double)strtoull(etag + 1, NULL, 16) / 1e6 - (double)time(NULL);
    ck_assert_msg(ahead < 15, "%s is %g s ahead", etag, ahead);
    cluster_stop(c);
}
END_TEST

static bool shows(const char *bytes, size_t count)
{
    return memmem(bytes, count, secret, strlen(secret)) != NULL;
}

/* Whether the system made a core of a node that aborts. */
static bool leaves_a_core(struct cluster *c, int i)
{
    int status = 0;
    node_signal(c, i, SIGABRT);
    ck_assert_int_eq(waitpid(c->nodes[i].pid, &status, 0), c->nodes[i].pid);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    c->nodes[i].pid = 0;
    return WCOREDUMP(status);
}

START_TEST(test_the_secret_is_in_no_log_report_answer_or_core)
{
    static const char *const paths[] = {"/_status", "/_metrics", "/_nodes", "/_nodes/k",
                                        "/_ring",   "/_health",  "/_ready", "/_mail",
                                        "/_other",  "/?limit=9"};
    struct rlimit cores = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_CORE, &cores);
    struct cluster *c = cluster_start(NODES, with_secret("--log-level", "debug"));
    struct forger f = forger_of(&c->nodes[0], STRANGER, "open rye, open barley");
    size_t bytes;
    post(&c->nodes[0], &f, forge(&f, FORGE_JOINING, 0, &bytes), bytes);
    keys_put(c, 0);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        for (int wrong = 0; wrong < 2; wrong++) {
            struct response r = http(c->nodes[0].url, wrong ? "DELETE" : "GET", paths[i],
                                     "Authorization: Bearer open rye, open barley", NULL, 0);
            ck_assert_msg(!shows(r.head, strlen(r.head)) && !shows(r.body, r.body_bytes), "%s",
                          paths[i]);
            response_free(&r);
        }
    ck_assert(!leaves_a_core(c, 0));
    node_start(c, 0);
    cluster_await(c, NODES, 30);
    for (int n = 0; n < NODES; n++) {
        size_t count;
        char *log = file_read(c->nodes[n].log, &count);
        ck_assert(!shows(log, count));
        struct output o = run(20, "grep -rlF '%s' %s", secret, c->nodes[n].folder);
        ck_assert_msg(o.status == 1, "%s", o.text);
    }
    cluster_stop(c);
    chdir(harness_folder()); /* where a core would be left */
    c = cluster_start(1, NULL);
    if (!leaves_a_core(c, 0))
        printf("that there is no core shows nothing: this system makes none\n");
    cluster_stop(c);
}
END_TEST

int main(void)
{
    const TTest *tests[] = {
        test_who_does_not_know_the_secret_changes_nothing,
        test_who_does_not_know_the_secret_takes_no_memory,
        test_old_frames_and_those_of_a_lost_id_change_nothing,
        test_without_a_secret_a_forger_stops_and_fills_no_node_and_nothing_of_it_stays,
        test_the_secret_is_in_no_log_report_answer_or_core,
    };
    return harness_run("guard", 180, tests, sizeof tests / sizeof *tests);
}
