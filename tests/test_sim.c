/*
 * The simulator: whole clusters of `struct node` in one process, under a network, disks and clocks
 * that a seed decides. Nothing here comes from the real clock, so that a seed replays its run.
 *
 *   1  Limits        smaller than the program's, so that little time shows much
 *   2  The world     events, hosts, what a seed chose
 *   3  Trace         what SEED=n TRACE=1 prints
 *   4  The disk      a stream of bytes; what was not synced may be lost, or torn
 *   5  Hosts         start, crash, restart, a new id
 *   6  The network   batches late, lost, doubled, cut off
 *   7  Clients       operations, repeats, and the history of each key
 *   8  Faults        what goes wrong, and when
 *   9  Judgement     histories, and the state after all is healed
 *  10  One run       of one seed
 *  11  Many runs     workers; tests; mutants
 *
 * SEEDS=n runs the first n seeds, SEED=n one of them; TRACE=1 prints what happens, TRACE=2 heartbeats
 * too; RULE=n breaks that rule of PROTOCOL.md; MIX=name takes the faults of that name.
 */
#include <stdbool.h>
#include <stdint.h>

#define PARTITION_BITS 6
#define ring_place ring_place_slowly
#include "../ring.c"
#undef ring_place

/* === 1 Limits ================================================================================= */

#define LIMITS
enum {
    KEY_BYTES_MAX = 1024,
    TYPE_BYTES_MAX = 255,
    ANSWERS_MAX = 24,
    ROUND_WRITES_MAX = 5,
    LIST_PAGE_KEYS = 3,
    PULL_BYTES_MAX = 2000,
    SYNCS_MAX = 4,
    JOINERS_MAX = 2,
    REPAIRS_MAX = 4,
    PARCEL_BYTES = 2 << 10,
    OUTBOX_BYTES_MAX = 1 << 20,
    CLEAN_STEP_BYTES = 4 << 10,
    CLEAN_SLACK_BYTES = 24 << 10,
    DISK_KEEP_BYTES = 32 << 10,
    ROUND_BUCKETS = 16,
    VIEWS_PARTITION = PARTITIONS,
    VIEWS_TOLD_MAX = 3,
};
static uint64_t sim_memory; /* microseconds; a seed's choice */
#define MS UINT64_C(1000)
#define SECOND (1000 * MS)
#define RESERVE_AHEAD (250 * MS)
#define RESERVE_MARGIN (60 * MS)
#define CLOCK_AHEAD_MAX (10 * SECOND)
#define MEMORY_OF_ANSWERS sim_memory
#define MADE_AHEAD_MAX (5 * SECOND)
#define REQUEST_TIME (2300 * MS)
#define STEP_TIME (100 * MS)
#define FORWARD_TIME SECOND
#define CONTENDED_TIME SECOND
#define WATCH_TIME (5 * SECOND)

static unsigned broken_rule; /* 0: none */
#define RULE(number) (broken_rule != (number))
#define main estoraje_main
static void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                       uint64_t mask, unsigned replicas);
#include "../estoraje.c"
#undef main

#include "history.h"

#include <check.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum {
    HOSTS_MAX = 10,
    CLIENTS_MAX = 10,
    KEYS_MAX = 24,
    SEGMENT = 8 << 10, /* files of the simulated disk */
    WARM_MAX = 16,
    OPS_MAX = 9000, /* in the history of one key */
    TICK = 10000,   /* microseconds, on average */
};
#define WALL_AT_START (UINT64_C(1763712000) * SECOND)

/* The ring of a view is the same for all nodes, and is made once. */
static void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                       uint64_t mask, unsigned replicas)
{
    static struct {
        uint64_t name;
        struct ring ring;
    } made[64];
    uint64_t of[3] = {mask, replicas, members_count};
    uint64_t name = XXH3_64bits_withSeed(of, sizeof of, 1);
    for (size_t i = 0; i < members_count; i++)
        name = XXH3_64bits_withSeed(&members[i].id, 12, name) ^
               XXH3_64bits_withSeed(members[i].zone, ZONE_BYTES, name + 1);
    if (made[name % 64].name != name) {
        made[name % 64].name = name;
        ring_place_slowly(&made[name % 64].ring, members, members_count, mask, replicas);
    }
    *ring = made[name % 64].ring;
}

/* === 2 The world ============================================================================== */

enum event_type { TICKS, MAIL, DISK_DONE, FETCHED, CLIENT, TIMEOUT, RETRY, FAULT, UP, FAULTS_END };

struct event {
    uint64_t time, sequence;
    enum event_type type;
    int host;      /* -1: none */
    uint64_t boot; /* of the host; the event is void if it was started again */
    void *data;
    size_t bytes;
    int from;
};

/* A machine: one address, at most one node at a time. */
struct host {
    int index;
    char address[ADDRESS_BYTES];
    struct node *node; /* null: down */
    uint64_t id;       /* of its data; 0: no data */
    uint64_t boot;     /* counts starts */
    bool serves;       /* its last batch is written again, after a start */
    bool used, off;    /* off: for good */
    bool leaves;       /* it was drained, and does not come back */
    uint64_t epoch_seen;
    uint64_t paused_until, paused_time, stalled_until, slow_until, deaf_until, up_at;
    int64_t clock_error; /* microseconds */
    double clock_drift;
    bool far; /* its clock was over 10 s wrong */
    uint8_t *disk;
    uint64_t disk_bytes, disk_start, disk_synced, disk_last; /* LSN of the last batch synced */
    bool disk_flipped;
    struct {
        uint64_t lsn, bytes;
    } warm[WARM_MAX];
    unsigned warm_next;
    struct try *tries; /* requests that it has not answered */
};

enum fault {
    CRASH,
    PAUSE,
    CUT,
    DEAF,
    STALL,
    CLOCK,
    FAR_CLOCK,
    JOIN,
    DRAIN,
    AWAY, /* down for longer than the eviction time */
    WIPE,
    FLIP,
    BLACKOUT, /* all at once */
    SLOW,
    FAULT_KINDS
};

/* What a seed chose. Probabilities are of 1000. */
struct plan {
    unsigned hosts, replicas, clients, keys;
    uint64_t fault_time; /* how long faults happen */
    uint64_t fault_pause;
    unsigned weight[FAULT_KINDS];
    unsigned loss, twice, cold, late;
    uint64_t delay, delay_far; /* of mail, usually and sometimes */
    uint64_t sync_time;
    uint64_t lease, evict_after;
    uint64_t skew;          /* clocks are wrong by at most it */
    uint64_t think;         /* of a client, between operations */
    uint64_t late_repeat;   /* a repeat may come that late */
    unsigned large;         /* values above PARCEL_BYTES */
    unsigned one_keys;      /* keys of consistency=one */
    bool built_by_joins, zones, patient;
};

enum key_kind { REGISTER, COUNTER, MORTAL, ONE, LISTED };

struct key {
    enum key_kind kind;
    char name[24];
    struct history_op *ops;
    size_t ops_count, ops_capacity;
    uint64_t etag[2]; /* the last that anyone saw */
    uint64_t acked;   /* ONE: the highest `modified` that was acknowledged */
    uint64_t made_at, gone_at; /* LISTED: it surely exists from, to; 0: not (yet) */
    bool touched;              /* LISTED: a write was tried */
};

struct world {
    uint64_t seed, random, now, sequence, faults_until;
    struct event *heap;
    size_t heap_count, heap_capacity;
    struct plan plan;
    const char *mix;
    struct host hosts[HOSTS_MAX];
    unsigned hosts_count;
    uint64_t cut_until[HOSTS_MAX][HOSTS_MAX]; /* from, to */
    struct key keys[KEYS_MAX];
    unsigned keys_count;
    struct client *clients;
    unsigned clients_busy;
    bool healed, over;
    uint64_t next_value;
    uint64_t clock_error_max;
    bool lost_a_disk;
    struct view **views;
    size_t views_count;
    uint64_t operations, answered_ok, events, unknown;
};
static struct world w;
static int tracing;
static bool quiet_failures; /* a mutant is to fail */

static uint64_t chance_u64(void)
{
    w.random ^= w.random >> 12;
    w.random ^= w.random << 25;
    w.random ^= w.random >> 27;
    return w.random * UINT64_C(2685821657736338717);
}

/* A number below `n`. */
static uint64_t below(uint64_t n)
{
    return n ? (chance_u64() >> 11) % n : 0;
}

static bool chance(unsigned of_1000)
{
    return below(1000) < of_1000;
}

static uint64_t between(uint64_t low, uint64_t high)
{
    return low + below(high - low + 1);
}

static bool event_before(const struct event *a, const struct event *b)
{
    return a->time != b->time ? a->time < b->time : a->sequence < b->sequence;
}

static void event_push(struct event e)
{
    if (w.heap_count == w.heap_capacity) {
        w.heap_capacity = w.heap_capacity ? 2 * w.heap_capacity : 256;
        w.heap = realloc(w.heap, w.heap_capacity * sizeof *w.heap);
    }
    e.sequence = w.sequence++;
    size_t i = w.heap_count++;
    for (; i && event_before(&e, &w.heap[(i - 1) / 2]); i = (i - 1) / 2)
        w.heap[i] = w.heap[(i - 1) / 2];
    w.heap[i] = e;
}

static struct event event_pop(void)
{
    struct event top = w.heap[0], last = w.heap[--w.heap_count];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < w.heap_count) {
        child += child + 1 < w.heap_count && event_before(&w.heap[child + 1], &w.heap[child]);
        if (!event_before(&w.heap[child], &last))
            break;
        w.heap[i] = w.heap[child];
        i = child;
    }
    w.heap[i] = last;
    return top;
}

static void event_at(uint64_t time, enum event_type type, const struct host *h, void *data,
                     size_t bytes)
{
    event_push((struct event){time, 0, type, h ? h->index : -1, h ? h->boot : 0, data, bytes, -1});
}

/* === 3 Trace ================================================================================== */

static const char *const type_names[] = {
    "prepare",   "promise", "accept", "accepted", "refuse", "read", "answer", "forward", "result",
    "heartbeat", "view",    "join",   "leave",    "list",   "listed", "pull", "digest"};
_Static_assert(sizeof type_names / sizeof *type_names == M_TYPES, "all have names");

__attribute__((format(printf, 2, 3))) static void trace(const struct host *h, const char *format,
                                                        ...)
{
    if (!tracing)
        return;
    printf("%10.6f ", (double)w.now / 1e6);
    if (h)
        printf("h%d ", h->index);
    va_list list;
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    putchar('\n');
}

/* Ids are told as the host that had them last. */
static const char *id_name(uint64_t id)
{
    static char names[8][24];
    static unsigned next;
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.hosts[i].id == id) {
            char *name = names[next++ % 8];
            snprintf(name, sizeof names[0], "h%u", i);
            return name;
        }
    char *name = names[next++ % 8];
    snprintf(name, sizeof names[0], "%04" PRIx64, id >> 48);
    return name;
}

static const char *ballot_name(struct ballot b)
{
    static char names[4][64];
    static unsigned next;
    char *name = names[next++ % 4];
    if (b.time == 0)
        return "none";
    snprintf(name, sizeof names[0], "%" PRIu64 "/%.6f/%s", b.epoch,
             (double)(int64_t)(b.time - WALL_AT_START) / 1e6, id_name(b.node));
    return name;
}

static void trace_batch(const struct host *h, int from, const uint8_t *data, size_t bytes)
{
    const struct batch *b = (const struct batch *)data;
    for (size_t at = sizeof *b; tracing && at < bytes;) {
        const struct message *m = message_parse(data + at, bytes - at);
        if (!m)
            break;
        at += m->bytes;
        if (tracing < 2 && (m->type == M_HEARTBEAT || m->type == M_DIGEST))
            continue;
        struct body body = message_body(m);
        bool keyed = m->type != M_LIST && m->type != M_HEARTBEAT;
        trace(h, "<- h%d %s e%" PRIu64 " p%u op=%" PRIu64 "%s%.*s ballot=%s flags=%s%s%s%s%s", from,
              type_names[m->type], b->epoch, m->partition, m->op % 1000000000,
              m->key_bytes ? " key=" : "", keyed ? m->key_bytes : 0, (const char *)body.key,
              ballot_name(m->ballot), m->flags & FLAG_RECORD ? "record " : "",
              m->flags & FLAG_TOMBSTONE ? "tombstone " : "", m->flags & FLAG_WHOLE ? "whole " : "",
              m->flags & FLAG_REPEAT ? "repeat " : "", m->flags & FLAG_WATCH ? "watch/more" : "");
    }
}

static void report_failure(const char *why)
{
    if (quiet_failures)
        return;
    fflush(stdout);
    fprintf(stderr, "\nsimulation: seed %" PRIu64 " (%s%s%d) failed at %.6f s: %s\n", w.seed, w.mix,
            broken_rule ? ", without rule " : ", rules kept ", (int)broken_rule,
            (double)w.now / 1e6, why);
    fprintf(stderr, "  again, with all that happened: make sim SEED=%" PRIu64 " MIX=%s TRACE=1\n",
            w.seed, w.mix);
}

__attribute__((noreturn, format(printf, 1, 2))) static void violation(const char *format, ...)
{
    char why[HISTORY_WHY_BYTES + 256];
    va_list list;
    va_start(list, format);
    vsnprintf(why, sizeof why, format, list);
    va_end(list);
    report_failure(why);
    _exit(1);
}

static void on_abort(int number)
{
    report_failure(number == SIGALRM ? "it goes on for ever" : "an assert of the core, or a crash");
    signal(number, SIG_DFL);
    if (quiet_failures || number == SIGALRM)
        _exit(1);
    raise(number);
}

/* === 4 The disk ===============================================================================
 *
 * One array of bytes by LSN. Up to disk_synced a crash loses nothing. Whole segments below the
 * log's first needed byte are gone: they are filled with rubbish.
 */

static void host_settle(struct host *h);

static void disk_reach(struct host *h, uint64_t end)
{
    end = (end + SEGMENT - 1) / SEGMENT * SEGMENT;
    if (end <= h->disk_bytes)
        return;
    h->disk = realloc(h->disk, end);
    uint64_t recycled = below(2) && h->disk_bytes >= SEGMENT;
    if (recycled) /* what an old segment left behind */
        for (uint64_t at = h->disk_bytes; at < end; at += SEGMENT)
            memcpy(h->disk + at, h->disk + below(h->disk_bytes / SEGMENT) * SEGMENT, SEGMENT);
    else
        memset(h->disk + h->disk_bytes, 0, end - h->disk_bytes);
    h->disk_bytes = end;
}

static void disk_clear(struct host *h)
{
    free(h->disk);
    h->disk = NULL;
    h->disk_bytes = h->disk_start = h->disk_synced = 0;
    h->disk_flipped = false;
}

/* Writes the node's next batch, if there is one and none is under way. */
static void disk_submit(struct host *h)
{
    const struct bytes *batch = log_flush(h->node);
    if (!batch)
        return;
    disk_reach(h, h->node->log.flight_lsn + batch->count);
    uint64_t start = max_u64(w.now, h->stalled_until);
    uint64_t time = 1 + below(w.plan.sync_time) + (chance(20) ? below(20 * MS) : 0);
    event_at(start + time, DISK_DONE, h, NULL, 0);
}

static void disk_done(struct host *h)
{
    struct log *log = &h->node->log;
    memcpy(h->disk + log->flight_lsn, log->flight.data, log->flight.count);
    h->disk_last = log->flight_lsn;
    h->disk_synced = log->flight_lsn + log->flight.count;
    h->serves = true;
    node_durable(h->node, 1 << 30);
}

/* A crash in the middle of a write: it is there, or not, or in part: its first bytes, or any of its
 * sectors, or other bytes. It was not synced, and may be lost in the next crash all the same. */
static void disk_tear(struct host *h)
{
    const struct log *log = &h->node->log;
    const struct bytes *flight = &log->flight;
    if (!flight->count)
        return;
    uint64_t whole = below(4);
    size_t kept = whole == 0 ? flight->count : whole == 1 ? 0 : below(flight->count);
    uint64_t end = log->flight_lsn + flight->count;
    disk_reach(h, end);
    for (uint64_t i = max_u64(h->disk_synced, log->flight_lsn); whole % 2 && i < end; i++)
        h->disk[i] = (uint8_t)i;
    memcpy(h->disk + log->flight_lsn, flight->data, kept);
    for (size_t i = kept; whole == 3 && i < flight->count; i++)
        if (i / 512 % 2 && log->flight_lsn + i >= h->disk_synced)
            h->disk[log->flight_lsn + i] = below(2) ? flight->data[i] : (uint8_t)chance_u64();
    trace(h, "its batch of %zu bytes is torn after %zu", flight->count, kept);
}

static void disk_trim(struct host *h)
{
    uint64_t first = h->node->log.first / SEGMENT * SEGMENT;
    if (first <= h->disk_start)
        return;
    memset(h->disk + h->disk_start, 0xdd, first - h->disk_start);
    h->disk_start = first;
}

static bool disk_is_warm(const struct host *h, uint64_t lsn, size_t bytes)
{
    for (int i = 0; i < WARM_MAX; i++)
        if (lsn >= h->warm[i].lsn && lsn + bytes <= h->warm[i].lsn + h->warm[i].bytes)
            return true;
    return false;
}

static bool hook_log_read(struct node *n, uint64_t lsn, void *to, size_t bytes, bool wait)
{
    struct host *h = n->world;
    ck_assert_msg(lsn >= h->disk_start, "bytes are read that were cleaned away");
    if (!wait && chance(w.plan.cold) && !disk_is_warm(h, lsn, bytes))
        return false;
    size_t there = lsn < h->disk_bytes ? min_u64(bytes, h->disk_bytes - lsn) : 0;
    memcpy(to, h->disk + lsn, there);
    memset((uint8_t *)to + there, 0, bytes - there);
    return true;
}

/* What is fetched: the bytes' place, then the message that waits for them. */
struct fetch {
    uint64_t lsn, bytes;
    struct bytes again;
};

static void hook_log_fetch(struct node *n, uint64_t lsn, size_t bytes, struct bytes *again)
{
    struct host *h = n->world;
    struct fetch *f = allocate(sizeof *f);
    *f = (struct fetch){lsn, bytes, *again};
    *again = (struct bytes){0};
    event_at(w.now + 1 + below(10 * MS), FETCHED, h, f, 0);
}

static void fetch_free(struct fetch *f)
{
    bytes_free(&f->again);
    free(f);
}

static void disk_fetched(struct host *h, struct fetch *f)
{
    h->warm[h->warm_next].lsn = f->lsn;
    h->warm[h->warm_next].bytes = f->bytes;
    h->warm_next = (h->warm_next + 1) % WARM_MAX;
    node_fetched(h->node, &f->again);
}

/* === 5 Hosts ================================================================================== */

static void hook_reply(struct node *n, void *client, const struct message *result);

static const struct hooks hooks = {hook_reply, hook_log_read, hook_log_fetch};

static uint64_t host_wall(const struct host *h)
{
    return WALL_AT_START + (uint64_t)((int64_t)w.now + h->clock_error +
                                      (int64_t)(h->clock_drift * (double)w.now));
}

static void host_time(struct host *h)
{
    h->node->now = w.now + 1000 * SECOND;
    h->node->wall = host_wall(h);
}

static void host_node(struct host *h)
{
    struct node *n = h->node = node_new(h->id, chance_u64(), h->address, &hooks, h);
    n->lease = w.plan.lease;
    n->evict_after = w.plan.evict_after;
    n->log.room = 1 << 30;
    n->weight = 1;
    if (w.plan.zones)
        snprintf(n->zone, sizeof n->zone, "z%d", h->index % 3);
    h->epoch_seen = 0;
    h->boot++;
    h->serves = true;
    memset(h->warm, 0, sizeof h->warm);
    host_time(h);
    event_at(w.now + 1 + below(TICK), TICKS, h, NULL, 0);
}

static void host_seeds(struct host *h)
{
    for (unsigned i = 0; i < w.hosts_count && h->node->self < 0; i++)
        if (w.hosts[i].used && (int)i != h->index)
            peer_make(h->node, 0, w.hosts[i].address);
}

/* A node with a new id and an empty log. It keeps the views, if there are any. */
static void host_begin(struct host *h, const struct node *before)
{
    disk_clear(h);
    h->id = !RULE(17) && h->id ? h->id : chance_u64();
    h->used = true;
    host_node(h);
    struct node *n = h->node;
    for (size_t e = 0; before && e < before->views_count && before->views[e]; e++) {
        views_keep(n, before->views[e]);
        n->view = n->views[e];
        log_append(n,
                   &(struct message){.type = M_VIEW,
                                     .flags = FLAG_WHOLE,
                                     .value_bytes = (uint32_t)view_bytes(n->view)},
                   &(struct body){.value = n->view});
    }
    if (n->view)
        view_apply(n);
    host_seeds(h);
    trace(h, "begins with id %016" PRIx64, h->id);
}

static void host_start(struct host *h)
{
    ck_assert(!h->node && !h->off);
    if (!h->id) {
        host_begin(h, NULL);
        host_settle(h);
        return;
    }
    host_node(h);
    trace(h, "starts");
    uint64_t end = h->disk_bytes;
    bool whole = node_recover(h->node, h->disk_start, end);
    ck_assert_msg(whole || h->disk_flipped, "the log counts as damaged, and is not");
    if (!whole || h->node->gone) {
        struct node *before = h->node;
        trace(h, whole ? "is no member any more" : "its log is damaged");
        w.lost_a_disk |= !whole;
        host_begin(h, before);
        node_free(before);
        host_settle(h);
        return;
    }
    host_seeds(h);
    if (h->node->log.flight.count) {
        h->serves = false; /* until its last batch is written again */
        event_at(w.now + 1 + below(5 * MS), DISK_DONE, h, NULL, 0);
    }
    if (h->node->log.pending_lsn < h->disk_synced)
        violation("h%d: synced bytes of its log are lost: it ends at %" PRIu64 ", not %" PRIu64,
                  h->index, h->node->log.pending_lsn, h->disk_synced);
    host_settle(h);
}

static void tries_broken(struct host *h);

static void host_crash(struct host *h)
{
    if (!h->node)
        return;
    trace(h, "crashes");
    disk_tear(h);
    struct node *n = h->node;
    h->node = NULL; /* so that no reply is heard */
    h->boot++;
    h->paused_until = 0;
    node_free(n);
    tries_broken(h);
}

static void host_wipe(struct host *h)
{
    host_crash(h);
    trace(h, "its disk is lost");
    disk_clear(h);
    if (RULE(17))
        h->id = 0;
    else
        h->disk_flipped = false;
    w.lost_a_disk = true;
}

static void views_check(struct host *h)
{
    struct node *n = h->node;
    for (; h->epoch_seen < n->views_count && n->views[h->epoch_seen]; h->epoch_seen++) {
        const struct view *v = n->views[h->epoch_seen];
        uint64_t e = h->epoch_seen;
        if (e >= w.views_count) {
            w.views = realloc(w.views, (e + 1) * sizeof *w.views);
            memset(w.views + w.views_count, 0, (e + 1 - w.views_count) * sizeof *w.views);
            w.views_count = e + 1;
        }
        if (!w.views[e]) {
            w.views[e] = memcpy(allocate(view_bytes(v)), v, view_bytes(v));
            for (uint32_t i = 0; tracing && i < v->members_count; i++)
                trace(h, "view %" PRIu64 " member %u: %s %s", v->epoch, i, id_name(v->members[i].id),
                      (const char *[]){"joining", "up", "leaving"}[v->members[i].state]);
        }
        if (view_bytes(v) != view_bytes(w.views[e]) || memcmp(v, w.views[e], view_bytes(v)) != 0)
            violation("h%d adopted another view %" PRIu64 " than others", h->index, v->epoch);
    }
    if (n->view && h->epoch_seen < n->view->epoch)
        violation("h%d has a view but not all before it", h->index);
}

/* === 6 The network ============================================================================ */

static bool is_cut(int from, int to)
{
    return w.cut_until[from][to] > w.now || w.hosts[to].deaf_until > w.now;
}

static void mail_send(struct host *h, const struct peer *p, const struct bytes *batch)
{
    int to = *p->address == 'h' ? atoi(p->address + 1) : -1;
    if (to < 0 || to >= (int)w.hosts_count || is_cut(h->index, to))
        return;
    for (int copies = chance(w.plan.loss) ? 0 : chance(w.plan.twice) ? 2 : 1; copies > 0; copies--) {
        uint64_t delay = 50 + below(w.plan.delay) + (chance(w.plan.late) ? below(w.plan.delay_far) : 0);
        if (h->slow_until > w.now || w.hosts[to].slow_until > w.now)
            delay += below(300 * MS);
        void *data = memcpy(allocate(batch->count), batch->data, batch->count);
        event_push((struct event){w.now + delay, 0, MAIL, to, 0, data, batch->count, h->index});
    }
}

/* What the program does after each event of a node: write, send, see whether it is gone. */
static void host_settle(struct host *h)
{
    struct node *n = h->node;
    struct bytes batch = {0};
    node_run(n);
    views_check(h);
    if (n->gone) {
        trace(h, "is gone from the view");
        h->node = NULL;
        h->boot++;
        tries_broken(h);
        if (h->leaves) {
            h->off = true;
            h->id = 0;
        } else {
            host_begin(h, n);
        }
        node_free(n);
        if (h->node)
            host_settle(h);
        return;
    }
    disk_submit(h);
    disk_trim(h);
    for (size_t i = 0; i < n->peers_count && h->serves; i++)
        for (int which = 0; which < 2; which++)
            if (n->peers[i] != n->self_peer && mail_take(n, n->peers[i], which, &batch))
                mail_send(h, n->peers[i], &batch);
    bytes_free(&batch);
}


static void mail_deliver(struct host *h, const struct event *e)
{
    if (is_cut(e->from, h->index) || !h->serves)
        return;
    host_time(h);
    trace_batch(h, e->from, e->data, e->bytes);
    if (!node_receive(h->node, e->data, e->bytes))
        violation("h%d got mail from h%d that it could not read", h->index, e->from);
    host_settle(h);
}

/* === 7 Clients ================================================================================
 *
 * A client does one operation after the other. It goes to a random host; unanswered for too long, or
 * "unknown", a write may be sent again through another with the same version, as nginx does.
 */

struct client {
    uint64_t name;
    struct op *op;
};

struct op {
    struct client *client;
    struct key *key;
    struct history_op told; /* for the key's history */
    struct message m;       /* as the first try sent it */
    char value[24];
    uint32_t value_bytes;
    uint64_t wait, ttl, tries;
    struct try *try; /* the one that is listened to */
    bool sent;       /* a try reached a node: the write is open unless an answer says no */
    bool fresh;      /* no Idempotency-Key: it cannot be repeated */
    bool listing;
    struct bytes after, found; /* of a listing: where the next page begins; the keys */
};

struct try {
    struct try *next; /* of its host */
    struct op *op;    /* null: nobody listens any more */
    struct host *host;
    uint64_t deadline, paused_time;
    bool repeat;
};

static struct history_op *history_add(struct key *k)
{
    if (k->ops_count == k->ops_capacity) {
        k->ops_capacity = k->ops_capacity ? 2 * k->ops_capacity : 64;
        k->ops = realloc(k->ops, k->ops_capacity * sizeof *k->ops);
    }
    return &k->ops[k->ops_count++];
}

static void client_next(struct client *c)
{
    c->op = NULL;
    event_at(w.now + 1 + below(w.plan.think), CLIENT, NULL, c, 0);
}

static void op_free(struct op *op)
{
    if (op->try)
        op->try->op = NULL;
    bytes_free(&op->after);
    bytes_free(&op->found);
    free(op);
}

/* The operation is over; `known`: the history learns of it. */
static void op_end(struct op *op, bool known)
{
    struct client *c = op->client;
    if (known && op->key->kind != ONE && op->key->kind != LISTED) {
        op->told.end = w.now;
        *history_add(op->key) = op->told;
    }
    op_free(op);
    client_next(c);
}

static bool op_writes(const struct op *op)
{
    return op->m.function != DO_READ && !op->listing;
}

/* Given up: a write may or may not have been applied. */
static void op_give_up(struct op *op)
{
    op->told.outcome = op->sent ? HISTORY_UNKNOWN : HISTORY_FAILED;
    w.unknown += op->sent;
    if (op->sent && op->key && op->key->kind == LISTED)
        op->key->touched = true;
    op_end(op, op_writes(op));
}

/* No answer, or that nobody knows. */
static void op_open(struct op *op)
{
    if (op->try)
        op->try->op = NULL;
    op->try = NULL;
    if (!op_writes(op) || op->fresh || w.over || op->tries > 4 || chance(200)) {
        op_give_up(op);
        return;
    }
    uint64_t later = chance(100) ? below(w.plan.late_repeat) : below(200 * MS);
    event_at(w.now + 1 + later, RETRY, NULL, op, 0);
}

static uint64_t value_parse(const struct op *op, const struct message *m, const struct body *b)
{
    char text[24] = "";
    size_t digits = 0;
    const char *value = b->value;
    ck_assert_msg(m->flags & FLAG_WHOLE, "a value was not there");
    while (digits < m->value_bytes && digits < sizeof text - 1 && value[digits] != ':')
        text[digits] = value[digits], digits++;
    for (size_t i = digits; i < m->value_bytes; i++)
        if (value[i] != ':')
            violation("wrong bytes in a value of %s", op->key->name);
    return (uint64_t)strtoll(text, NULL, 10);
}

static void op_told_etag(struct op *op, const struct message *m)
{
    op->told.etag[0] = m->modified;
    op->told.etag[1] = m->version;
    if (m->modified > op->key->etag[0])
        memcpy(op->key->etag, op->told.etag, sizeof op->told.etag);
}

static void op_read_answered(struct op *op, const struct message *m)
{
    struct body body = message_body(m);
    if (m->status != 200 && m->status != 404) {
        op_end(op, false);
        return;
    }
    bool is = m->status == 200;
    bool same = is ? op->m.condition == IF_MATCH && m->modified == op->m.ballot.time &&
                         m->version == op->m.ballot.node
                   : op->m.condition == IF_ABSENT;
    if (op->wait && same && w.now < op->told.start + op->wait)
        violation("a wait on %s ended without a change", op->key->name);
    op->told.outcome = is ? HISTORY_OK : HISTORY_REFUSED;
    if (is) {
        op->told.value = value_parse(op, m, &body);
        op_told_etag(op, m);
    }
    op_end(op, true);
}

static void op_write_answered(struct op *op, const struct message *m)
{
    struct key *k = op->key;
    switch (m->status) {
    case 200:
    case 201:
    case 204:
        op->told.outcome = HISTORY_OK;
        if (m->status != 200)
            op->told.existed = m->status == 201 ? HISTORY_MADE : HISTORY_REPLACED;
        if (op->m.function == DO_ADD)
            op->told.value = m->number;
        else if (op->m.function == DO_PUT)
            op_told_etag(op, m);
        if (k->kind == ONE)
            k->acked = max_u64(k->acked, m->modified);
        if (k->kind == LISTED && op->m.function == DO_PUT)
            k->made_at = w.now;
        if (k->kind == LISTED && op->m.function == DO_DELETE)
            k->gone_at = w.now;
        break;
    case 404:
    case 409:
    case 412:
        op->told.outcome = HISTORY_REFUSED;
        if (m->status == 412 && op->m.condition != IF_EXISTS && m->modified)
            op_told_etag(op, m);
        break;
    default:
        violation("a write was answered %u", m->status);
    }
    op_end(op, true);
}

static void listing_answered(struct op *op, const struct message *m);

static void op_answered(struct op *op, const struct message *m, bool repeat)
{
    w.answered_ok += m->status < 500;
    if (op->listing) {
        listing_answered(op, m);
    } else if (!op_writes(op)) {
        op_read_answered(op, m);
    } else if (m->status == STATUS_UNKNOWN) {
        op_open(op);
    } else if (m->status == 503 || m->status == 507) {
        if (repeat)
            violation("a repeat was told %u", m->status);
        op->sent = false;
        op_give_up(op);
    } else {
        op_write_answered(op, m);
    }
}

static void hook_reply(struct node *n, void *client, const struct message *m)
{
    struct host *h = n->world;
    struct try *t = client;
    if (h->node != n)
        return;
    struct try **at = &h->tries;
    while (*at && *at != t)
        at = &(*at)->next;
    if (!*at)
        violation("h%d answered a request twice", h->index);
    *at = t->next;
    uint64_t paused = h->paused_time - t->paused_time;
    if (w.now > t->deadline + paused)
        violation("h%d answered a request %.3f s late", h->index,
                  (double)(w.now - paused - t->deadline) / 1e6);
    trace(h, "answers %u to client %" PRIu64 " value=%u etag=%.6f-%04" PRIx64, m->status,
          t->op ? t->op->client->name : 99, m->value_bytes,
          (double)(int64_t)(m->modified - WALL_AT_START) / 1e6, m->version >> 48);
    if (t->op) {
        struct op *op = t->op;
        op->try = NULL;
        op_answered(op, m, t->repeat);
    }
    free(t);
}

static void tries_broken(struct host *h)
{
    while (h->tries) {
        struct try *t = h->tries;
        h->tries = t->next;
        struct op *op = t->op;
        free(t);
        if (op) {
            op->try = NULL;
            op_open(op);
        }
    }
}

static void tries_check(const struct host *h)
{
    for (const struct try *t = h->tries; t; t = t->next)
        if (h->paused_until <= w.now && w.now > t->deadline + (h->paused_time - t->paused_time))
            violation("h%d did not answer a request by its deadline", h->index);
}

static struct host *random_host(void)
{
    unsigned start = (unsigned)below(w.hosts_count);
    for (unsigned i = 0; i < w.hosts_count; i++) {
        struct host *h = &w.hosts[(start + i) % w.hosts_count];
        if (h->node && h->serves && h->node->view)
            return h;
    }
    return NULL;
}

/* A key with a time to live: when it may be, and must be, gone. */
static void op_expires(struct op *op, uint64_t expiry)
{
    uint64_t due = expiry - WALL_AT_START, error = w.clock_error_max + MS;
    uint64_t from = due > error ? due - error : 1;
    if (!op->told.gone_from || from < op->told.gone_from)
        op->told.gone_from = from;
    op->told.gone_by = max_u64(op->told.gone_by, due + error);
}

static void op_try(struct op *op, struct host *h)
{
    struct try *t = op->try = allocate(sizeof *t);
    uint64_t most = op->listing ? 20 * SECOND + REQUEST_TIME : REQUEST_TIME;
    *t = (struct try){h->tries, op, h, w.now + most + op->wait + 100 * MS, h->paused_time, false};
    h->tries = t;
    op->tries++;
    w.operations++;
    if (h->paused_until > w.now)
        t->deadline += h->paused_until - w.now;
    struct message m = op->m;
    if (op->ttl) {
        m.expiry = host_wall(h) + op->ttl;
        op_expires(op, m.expiry);
    }
    if (op->fresh) {
        m.flags |= FLAG_FRESH;
        m.version = node_random(h->node);
        m.dropped = clock_tick(h->node);
    }
    if (op->sent)
        m.flags |= FLAG_REPEAT;
    t->repeat = m.flags & FLAG_REPEAT;
    op->sent = true;
    uint64_t patience = w.plan.patient ? 10 * SECOND : below(2 * SECOND);
    event_at(w.now + patience + op->wait + (op->listing ? 10 * SECOND : 0), TIMEOUT, NULL, op,
             op->tries);
}

/* A request reaches its node: `data` is the try's host at that time. */
static void op_send(struct op *op)
{
    struct host *h = random_host();
    if (!h || h->paused_until > w.now || (h->far && w.now < h->up_at)) {
        op_open(op);
        return;
    }
    uint64_t wall = host_wall(h);
    if (op_writes(op) && !op->fresh && op->m.dropped > wall + MADE_AHEAD_MAX) {
        op_open(op); /* 400: nothing was done by this try */
        return;
    }
    (void)wall;
    op_try(op, h);
}
