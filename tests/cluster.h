/*
 * cluster.h - real processes for the tests: nodes of the store, nginx, cut links, clients, load.
 *
 *   1. Time and processes   now, AWAIT, process_start, run
 *   2. HTTP                 http, raw_*, header, json_*
 *   3. Clusters             cluster_start, node_kill, cluster_await, cluster_nginx, cluster_cut
 *   4. Load                 load_start, load_stop, load_check: clients that know what must be there
 *
 * Each test is a process of its own (Check forks), so what it allocates and does not free goes with
 * it, and so do the nodes that it started: they die with the thread that started them. Start
 * processes from the main thread only. Everything runs on 127.0.0.1 and in folders below
 * harness_folder().
 */
#ifndef CLUSTER_H
#define CLUSTER_H

#include <check.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { NODES_MAX = 8, HEADERS_MAX = 48 };

/* ---- 1. Time and processes ---- */

/* To be called by main before and after all tests; the second one shows the ends of what was
 * left of failed tests. */
void harness_begin(const char *name);
int harness_end(SRunner *runner);
/* All of that for a suite of one kind: main's result. */
int harness_run(const char *name, int timeout_seconds, const TTest *const *tests, size_t count);
/* ESTORAJE_TEST_ONLY=words runs the tests with these in their names. */
bool harness_wants(const TTest *test);
const char *harness_folder(void);
/* A path below the folder, as printf would make it. */
char *in_folder(const char *folder, const char *format, ...) __attribute__((format(printf, 2, 3)));
char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));

double now(void); /* s, monotonic */
void pause_ms(int ms);
double slowness(void); /* ESTORAJE_TEST_SLOW: by how much all bounds are wider, for sanitizers */

/* As ck_assert_msg, but may stand where no test runs, and in any thread: it speaks to Check only
 * when it fails. */
#define REQUIRE(condition, ...)                                                                    \
    do {                                                                                           \
        if (!(condition))                                                                          \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)

#define AWAIT(condition, seconds)                                                                  \
    do {                                                                                           \
        double await_end = now() + (seconds)*slowness();                                           \
        while (!(condition)) {                                                                     \
            REQUIRE(now() < await_end, "not within %g s: %s", (double)(seconds), #condition);      \
            pause_ms(10);                                                                          \
        }                                                                                          \
    } while (0)

int free_port(void);
/* argv and environment ("NAME=value") end with NULL; output goes to the end of the file. death:
 * what it gets when we die. */
pid_t process_start(const char *const *argv, const char *const *environment, const char *output,
                    int death);
/* The exit status, 1000 + the signal that killed it, or -1 if it still runs when the time is
 * over. */
int process_wait(pid_t pid, double seconds);
/* A shell command, bounded in time (-1, and it is killed): its exit status, and all it wrote. */
struct output {
    int status;
    char *text;
};
struct output run(double seconds, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool installed(const char *program);

char *file_read(const char *path, size_t *bytes); /* with a NUL after it; NULL if there is none */
void file_write(const char *path, const void *bytes, size_t count);
void folder_remove(const char *path);
/* Calls f with each regular file below path, at most `most` of them; stops when f says false. */
void folder_walk(const char *path, bool (*f)(const char *path, size_t bytes, void *context),
                 void *context);

/* ---- 2. HTTP ---- */

struct response {
    int status; /* 0: no answer came; error says why */
    double seconds;
    char *body; /* with a NUL after it */
    size_t body_bytes;
    char *head;   /* as it came */
    char *fields; /* what the headers point into */
    struct {
        const char *name, *value;
    } headers[HEADERS_MAX];
    int header_count;
    bool unconnected; /* there was no connection, so nothing can have happened */
    char error[256];
};

/* headers: one a line. body: NULL for none. The path goes out as it is written. */
struct response http(const char *url, const char *method, const char *path, const char *headers,
                     const void *body, size_t body_bytes);
struct response get(const char *url, const char *path);
struct response put(const char *url, const char *path, const char *value);
int status_of(const char *url, const char *method, const char *path, const char *headers,
              const char *body);
const char *header(const struct response *r, const char *name); /* NULL: not there */
bool body_is(const struct response *r, const void *bytes, size_t count);
void response_free(struct response *r);
extern __thread bool
    http_fresh; /* a connection for each request: libcurl repeats nothing by itself */
extern __thread double http_timeout_s; /* 30 */
extern const char *http_authority;     /* a file of the certificate authority, for https */

/* For what libcurl would never send. */
int raw_connect(int port);
void raw_send(int fd, const void *bytes, size_t count);
void raw_print(int fd, const char *format, ...) __attribute__((format(printf, 2, 3)));
struct response raw_receive(int fd, double seconds); /* one answer, no byte more */
bool raw_closed(int fd, double seconds); /* does the other side close it in that time? */

/* Looks up "members.0.id" in JSON: a pointer to the value in the text, NULL if there is none. */
const char *json_at(const char *json, const char *path);
double json_number(const char *json, const char *path); /* NAN: none */
char *json_string(const char *json, const char *path);  /* "": none */
int json_count(const char *json, const char *path);     /* elements of an array; -1: none */

/* ---- 3. Clusters ---- */

struct proxy;

struct node {
    int port;
    char url[64];
    char address[32]; /* what the others call it: itself, or its proxy */
    const char *folder, *log;
    pid_t pid;               /* 0: not running */
    const char *options[16]; /* more of its own, before it is started */
    const char *environment[8];
    struct proxy *proxy;
};

struct cluster {
    const char *folder;
    const char *const *options; /* of every node */
    int count;
    struct node nodes[NODES_MAX];
    pid_t nginx;
    int nginx_port;
    char nginx_url[64];
    bool proxied;
    int cut[NODES_MAX][NODES_MAX]; /* [from][to] */
};

/* A cluster of that many nodes, all UP and well; extra_options of every node end with NULL
 * (NULL: none). */
struct cluster *cluster_start(int nodes, const char *const *extra_options);
/* The same, each behind a proxy that can cut the frames that it gets from the others. */
struct cluster *cluster_start_proxied(int nodes, const char *const *extra_options);
/* All stop as asked and with status 0, no log shows a sanitizer's complaint, the folder goes. */
void cluster_stop(struct cluster *c);
/* By steps: an empty cluster, one more node (its index), which is not started yet. */
struct cluster *cluster_new(const char *const *extra_options, bool proxied);
int cluster_add(struct cluster *c);

void node_start(
    struct cluster *c,
    int i); /* also again; the first with an empty folder makes the cluster, others join */
void node_signal(struct cluster *c, int i, int signal);
void node_kill(struct cluster *c, int i); /* -9 */
int node_stop(struct cluster *c, int i);  /* SIGTERM; its exit status */
bool node_healthy(const struct node *n);
bool node_ready(const struct node *n);
char *node_id(const struct node *n); /* from _status */
double node_metric(const struct node *n,
                   const char *name); /* with its labels, if it has some; NAN: none */

/* All that run are well, get each other's heartbeats and see that many members, all UP, in one epoch. */
bool cluster_at_rest(const struct cluster *c, int members);
void cluster_await(const struct cluster *c, int members, double seconds);
/* Cut: what `from` sends to `to` stays in the wire until it is healed. */
void cluster_cut(struct cluster *c, int from, int to, bool cut);
void cluster_isolate(struct cluster *c, int node, bool cut);

/* nginx with the project's own configuration, in front of the nodes there are now; again: with
 * those of that moment. */
void cluster_nginx(struct cluster *c);
/* The nodes moved: as nginx -s reload, which cuts no request off. */
void cluster_nginx_reload(struct cluster *c);
void cluster_nginx_stop(struct cluster *c);

/* ---- 4. Load ---- */

struct load_plan {
    const char *urls[NODES_MAX]; /* asked in turn, ends with NULL */
    const char *prefix;          /* of the keys: "/load" */
    int clients;                 /* each has keys of its own */
    int keys;                    /* a client's */
    int value_bytes;             /* at least; 0: 64 */
    int put_percent;             /* the others read; 0: 50 */
    int pause_ms;                /* after each request */
    const char *query;           /* "?consistency=one", or NULL */
};

struct load_report {
    long requests, acknowledged; /* acknowledged: writes */
    long failed;                 /* no answer, or one that is none of 200, 201, 204, 404 */
    long
        unknown; /* of these, writes that may have been applied: no answer, or the answer said so */
    long wrong;  /* reads of what cannot be there */
    double slowest; /* s */
    char slowest_what[128], first_failure[256], first_wrong[256];
};

struct load;
struct load *load_start(const struct load_plan *plan);
struct load_report load_report(struct load *l); /* so far */
double load_slowest(struct load *l, double from,
                    double to); /* of the requests that began then, s */
long load_requests(struct load *l);
struct load_report load_stop(struct load *l);
/* Reads all keys through that node: how many are not what they must be; says the first one. */
int load_check(struct load *l, const char *url);
/* How many keys are there for sure: written, and nothing is unknown. */
int load_keys(struct load *l);

#endif
