/*
 * The simulator: whole clusters of `struct node` in one process, under a network, disks and clocks
 * that a seed decides. Nothing here comes from the real clock, so that a seed replays its run.
 *
 *   1  Limits        smaller than the program's, so that they are reached in a short run
 *   2  State         events, hosts, what a seed chose
 *   3  Trace         what SEED=n TRACE=1 prints
 *   4  The disk      a stream of bytes; what was not synced may be lost, or torn
 *   5  Hosts         start, crash, restart, a new id
 *   6  The network   frames late, lost, doubled, cut off
 *   7  Clients       operations, repeats, and the history of each key
 *   8  Faults        what goes wrong, and when
 *   9  Judgement     histories, and the state after all is healed
 *  10  One run       of one seed
 *  11  Many runs     workers; tests; mutants
 *
 * SEEDS=n runs the first n seeds, SEED=n one of them; TRACE=1 prints what happens, TRACE=2 heartbeats
 * too; RULE=n breaks that rule of Part I; MIX=name takes the faults of that name.
 */
#include <stdbool.h>
#include <stdint.h>

#define PARTITION_BITS 6
#define ring_place     ring_place_slowly
#include "../ring.c"
#undef ring_place

/* === 1 Limits ================================================================================= */

#define LIMITS
enum {
    KEY_BYTES_MAX = 1024,
    TYPE_BYTES_MAX = 255,
    RESULTS_MAX = 24,
    ROUND_WRITES_MAX = 5,
    LIST_PAGE_KEYS = 3,
    LISTING_PAGE_KEYS = 2,
    LISTINGS_MAX = 1,
    PULL_BYTES_MAX = 2000,
    SYNCS_MAX = 4,
    REPAIRS_MAX = 4,
    BULK_BYTES = 2 << 10,
    COLD_BYTES_MAX = 1 << 20,
    OUTBOX_BYTES_MAX = 1 << 20,
    OUTBOX_BYTES_DEAD = 256 << 10,
    BYTES_KEPT = 64 << 10,
    LARGE_BYTES_MAX = 6 << 10,
    RESENDS_MAX = 4,
    DUELS_FIRST = 1,
    DUELS_OTHER = 7,
    DELIVERED_PLACES = 64,
    CLEAN_STEP_BYTES = 16 << 10,
    CLEAN_SLACK_BYTES = 24 << 10,
    ROOM_CLEANING = 4 << 10,
    ROOM_FLOORS = 16 << 10,
    ROOM_RECORDS = 32 << 10,
    ROOM_WRITES = 48 << 10,
    ROOM_AHEAD = 64 << 10,
    READ_TRIES = 2,
    PEERS_MAX = 4 * MEMBERS_MAX,
    ENTRIES_GROWTH = 4,
    ROUND_BUCKETS = 16,
    VIEWS_PARTITION = PARTITIONS,
    VIEWS_TOLD_MAX = 3,
    BYTES_PER_US = 16,
};
static uint64_t sim_memory; /* microseconds; a seed's choice */
static uint64_t sim_margin; /* the same; of a key's time, above how far clocks differ */
#define MS                UINT64_C(1000)
#define SECOND            (1000 * MS)
#define BOUND_AHEAD       (250 * MS)
#define BOUND_MARGIN      (60 * MS)
#define WRITE_TIME_MAX    (300 * MS)
#define CLOCK_AHEAD_MAX   (10 * SECOND)
#define CLOCK_FAR_MAX     (86400 * SECOND)
#define RESULTS_KEPT_TIME sim_memory
#define KEY_TIME_SLACK    (100 * MS)
#define KEY_TIME_MARGIN   sim_margin
#define FIRST_TRY_LEAD    0 /* a client may repeat at once */
#define REPEAT_TIME       (RESULTS_KEPT_TIME - 2 * KEY_TIME_MARGIN)
#define REQUEST_TIME      (2300 * MS)
#define STEP_TIME         (100 * MS)
#define LEASE_GRACE       (200 * MS)
#define WATCH_TIME        (5 * SECOND)
#define LISTING_TIME      (40 * SECOND)

static unsigned broken_rule; /* 0: none */
#define RULE(number) (broken_rule != (number))
#define main         estoraje_main
static void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                       uint64_t mask, unsigned replicas);
#ifndef CODE
#define CODE "../estoraje.c" /* or a copy of it with mutations, each switched by MUTATED(number) */
#endif
#define MUTATED(number) (mutation == (number))
#ifdef MUTATIONS
static unsigned mutation; /* 0: none */
#endif
#include CODE
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
    AHEAD = 72 << 10,  /* space that it takes behind the log's end, if there is any */
    WARM_MAX = 16,
    OPS_MAX = 9000, /* in the history of one key */
    OVERHEARD_MAX = 64,
    TICK = 10000, /* microseconds, on average */
};
#define FORGET_TIME   (30 * SECOND)       /* owners that agree by chance have done so by then */
#define VALUE_OF_ONE  (UINT64_C(1) << 40) /* a write of consistency=one has one above it */
#define WALL_AT_START (UINT64_C(1763712000) * SECOND)

/* The ring of a view is the same for all nodes, so it is computed once. */
static void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                       uint64_t mask, unsigned replicas)
{
    static struct {
        uint64_t name;
        struct ring ring;
    } kept[64];
    uint64_t of[3] = {mask, replicas, members_count};
    uint64_t name = XXH3_64bits_withSeed(of, sizeof of, 1);
    for (size_t i = 0; i < members_count; i++)
        name = XXH3_64bits_withSeed(&members[i].id, 12, name) ^
               XXH3_64bits_withSeed(members[i].zone, ZONE_BYTES, name + 1);
    if (kept[name % 64].name != name) {
        kept[name % 64].name = name;
        ring_place_slowly(&kept[name % 64].ring, members, members_count, mask, replicas);
    }
    *ring = kept[name % 64].ring;
}

/* === 2 State ================================================================================== */

enum event_type {
    WORDS,
    TICKS,
    FRAME,
    DISK_DONE,
    ARRIVE,
    CLIENT,
    TIMEOUT,
    RETRY,
    FAULT,
    DIE,
    UP,
    DOWN
};

struct event {
    uint64_t time, sequence;
    enum event_type type;
    int host;      /* -1: none */
    uint64_t boot; /* of the host; the event is void if it was started again */
    void *data;
    size_t bytes;
    int from;
};

/* What a node had on disk, so that it must know it after a restart. */
struct memory {
    uint64_t epoch, clock_bound;
    struct ballot promise_floors[PARTITIONS];
    struct bytes records; /* struct record_kept */
};

struct record_kept {
    uint16_t partition, key_bytes;
    char key[24];
    struct ballot accepted;
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
    bool leaves;       /* it was drained, and will be switched off */
    uint64_t epoch_seen;
    uint64_t paused_until, paused_time, stalled_until, slow_until, deaf_until, full_until, up_at;
    int64_t clock_error; /* microseconds */
    double clock_drift;
    bool far;            /* its clock is over 10 s wrong */
    uint64_t hour_until; /* its wall clock is an hour ahead */
    bool deaf;           /* for good */
    uint8_t *disk;
    uint64_t disk_bytes, disk_start, disk_first, disk_synced,
        disk_last;       /* LSN of the last batch synced */
    uint64_t disk_taken; /* LSN up to which there is space */
    uint64_t disk_size;  /* all that there is, while it is full */
    bool disk_full, disk_flipped;
    unsigned moves;       /* it got so many new addresses */
    bool small;           /* its disk is full for good, until it is an UP member */
    bool damaged;         /* it lost its disk since the cluster was whole */
    struct host *aside;   /* its disk's place, while that is out of the machine */
    struct host *copy;    /* the same of a copy of its disk, which was made while it ran */
    uint64_t copy_id;     /* of the node that it was copied from */
    bool copied;          /* its disk is such a copy, so it must not take part; then id is 0 */
    struct try *tries;    /* requests that it has not answered */
    struct memory kept;   /* what its disk held for sure when it went down */
    uint64_t lease_clock; /* of the lease for which `must` was taken */
    struct ballot must[KEYS_MAX]; /* what a majority of a key's owners had when its lease began */
    bool ready;
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
    FULL,    /* no room on the disk */
    MOVE,    /* hosts get new addresses: one, or all at once */
    LOSS,    /* any disks at once, for good; an operator declares them lost */
    SWAP,    /* the disk is put aside, the machine has an empty one; or it is put back */
    HANG,    /* the disk stalls, and then the host dies */
    RESTORE, /* a host's disk is copied, or is the copy again */
    TWIN,    /* another host is started with the copy, and stopped after a while */
    JUMP,    /* one wall clock, or all, are an hour ahead for a while; or all go back, or drift */
    LIE,     /* old frames are sent again, to anyone, and a stranger sends its own */
    FAULT_KINDS
};

/* What a seed chose. Probabilities are of 1000. */
struct plan {
    unsigned hosts, replicas, clients, keys;
    uint64_t fault_time; /* how long faults happen */
    uint64_t fault_pause;
    unsigned weight[FAULT_KINDS];
    unsigned loss, twice, cold, late;
    uint64_t delay, delay_far; /* of frames, usually and sometimes */
    uint64_t sync_time;
    uint64_t lease, evict_after;
    uint64_t skew;        /* clocks are wrong by at most it */
    uint64_t think;       /* of a client, between operations */
    uint64_t late_repeat; /* a repeat may come that late */
    unsigned large;       /* values above BULK_BYTES */
    unsigned echo;        /* writes that are sent again, though they were answered */
    uint64_t away;        /* 0: as the eviction time has it */
    bool built_by_joins, zones, patient, tombstones, deaf_for_good, restart_at_once;
    bool mortal; /* keys may have a time to live: clocks are right, more or less */
    bool lose_two;
    bool expects; /* all hosts begin at once, without data */
    bool crowded; /* all keys in one partition; in the end only the first is written, for long */
    bool listed;  /* all keys are */
    bool heaped;  /* listed keys are in few partitions: a page of a listing has not all of one */
};

/* MORTAL has times to live. LISTED is also read by listings, and may have them. ONE is written and read
 * with consistency=one, and not: that is not linearizable, and less is asked of it. (Where clocks differ
 * more than KEY_TIME_SLACK only so: a repeat may not notice a write of consistency=one before it.) */
enum key_kind { REGISTER, COUNTER, MORTAL, ONE, LISTED };

struct key {
    enum key_kind kind;
    char name[24];
    struct history_op *ops;
    size_t ops_count, ops_capacity;
    uint64_t etag[2];     /* the last that anyone saw */
    struct ballot newest; /* the highest that any node had on disk; it may be down by now */
    struct ballot acked;  /* ONE: the highest that was acknowledged */
    bool acked_put;       /* and it was a PUT */
    struct fact {         /* what was reported of a record with that ETag */
        uint64_t etag[2], expiry;
        uint32_t value_bytes;
    } facts[64];
};

struct simulation {
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
    struct bytes overheard[OVERHEARD_MAX]; /* frames that a liar remembers */
    uint64_t last_reads;                   /* that are to be made when all is over */
    bool last_phase;
    bool clocks_ran_ahead; /* of the clients': what they repeat may count as too old */
    uint64_t next_value;
    uint64_t clock_error_max;
    uint64_t gone[HOSTS_MAX]; /* ids of the disks that were lost for good, all at once */
    unsigned gone_count;
    uint64_t words_after;     /* that is said then, and until they are out of the view */
    bool excused[PARTITIONS]; /* no majority of its owners is left */
    uint64_t deciding;        /* the newest view with a transition that may be at its end */
    uint64_t whole;           /* the newest view in which the cluster was seen to be whole */
    unsigned wiped;           /* the host that lost its disk last */
    uint64_t copies_until;    /* frames of a twin that was stopped may come until then */
    int64_t wall_error;       /* of all wall clocks */
    unsigned wrong_starts;    /* nodes that were started with a wall clock that is far ahead */
    struct view **views;
    size_t views_count;
    uint64_t operations, answered_ok, events, unknown;
    uint64_t histories, undecided; /* that were checked; of them those that were too much */
    struct counters sum;
};
static struct simulation w;
static int tracing;
static const char mix_calm[] = "calm";
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

static const char *const type_names[] = {"prepare", "promise",    "accept",    "accepted", "reject",
                                         "read",    "read reply", "heartbeat", "view",     "list",
                                         "listed",  "pull",       "digest"};
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

/* An id is printed as the host that had it last. */
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
    const struct frame *b = (const struct frame *)data;
    for (size_t at = sizeof *b; tracing && at < bytes;) {
        const struct message *m = message_parse(data + at, bytes - at);
        if (!m)
            break;
        at += m->bytes;
        if (tracing < 2 && (m->type == M_HEARTBEAT || m->type == M_DIGEST))
            continue;
        struct body body = message_body(m);
        bool keyed = m->key_bytes && m->type != M_LIST && m->type != M_HEARTBEAT;
        char key[32] = "", ballot[80] = "";
        if (keyed)
            snprintf(key, sizeof key, " of %.*s", m->key_bytes, (const char *)body.key);
        if (m->ballot.time)
            snprintf(ballot, sizeof ballot, " at ballot %s", ballot_name(m->ballot));
        trace(h, "<- h%d %s%s%s%s%s%s%s%s, round %" PRIu64 ", epoch %" PRIu64, from,
              type_names[m->type], key, ballot, m->flags & FLAG_RECORD ? ", a record" : "",
              m->flags & FLAG_TOMBSTONE ? ", a tombstone" : "",
              m->flags & FLAG_WHOLE && m->value_bytes ? ", with the value" : "",
              m->flags & FLAG_REPEAT ? ", a repeat" : "",
              m->flags & FLAG_MORE ? m->type == M_LISTED ? ", more to come" : ", a watch" : "",
              m->round_id % 1000000000, b->epoch);
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
    report_failure(number == SIGVTALRM ? "it goes on for ever"
                                       : "an assert of the core, or a crash");
    signal(number, SIG_DFL);
    if (quiet_failures || number == SIGVTALRM)
        _exit(1);
    raise(number);
}

/* === 4 The disk ===============================================================================
 *
 * One array of bytes by LSN. Up to disk_synced a crash loses nothing. Whole segments below the
 * log's first needed byte are removed: they are filled with garbage.
 */

static void host_settle(struct host *h);

static void drive_reach(struct host *h, uint64_t end)
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

static void drive_clear(struct host *h)
{
    free(h->disk);
    h->disk = NULL;
    h->disk_bytes = h->disk_start = h->disk_synced = h->disk_taken = 0;
    h->disk_flipped = false;
    bytes_free(&h->kept.records);
    h->kept = (struct memory){0};
}

/* Takes space behind `end`, which a batch is to reach, as disk_extend does. */
static void drive_take(struct host *h, uint64_t end)
{
    uint64_t size = h->full_until > w.now ? h->disk_size : UINT64_MAX;
    uint64_t ahead = max_u64(AHEAD, h->node->log.largest + ROOM_AHEAD);
    while (h->disk_taken < end + ahead && h->disk_taken + SEGMENT - h->disk_start <= size)
        h->disk_taken += SEGMENT;
    h->disk_full = h->disk_taken < end + ahead;
    if (end > h->disk_taken)
        violation("h%d writes up to %" PRIu64 ", and has room up to %" PRIu64, h->index, end,
                  h->disk_taken);
}

/* Writes the node's next batch, if there is one and none is under way. */
static void drive_submit(struct host *h)
{
    const struct bytes *batch = log_flush(h->node);
    if (!batch)
        return;
    drive_take(h, h->node->log.durable + batch->count);
    drive_reach(h, h->node->log.durable + batch->count);
    h->disk_first = batch->count ? h->node->log.first : h->disk_start;
    uint64_t time = 1 + below(w.plan.sync_time) + (chance(20) ? below(20 * MS) : 0);
    event_at(w.now + time, DISK_DONE, h, NULL, 0);
}

/* The log's first byte is what it was when the batch began to be written. */
static void drive_trim(struct host *h, uint64_t first)
{
    first = first / SEGMENT * SEGMENT;
    if (first <= h->disk_start)
        return;
    memset(h->disk + h->disk_start, 0xdd, first - h->disk_start);
    h->disk_start = first;
}

static void drive_done(struct host *h)
{
    struct log *log = &h->node->log;
    if (h->stalled_until > w.now) { /* looked at again and again: the stall may be healed */
        event_at(min_u64(h->stalled_until, w.now + 10 * MS) + 1, DISK_DONE, h, NULL, 0);
        return;
    }
    memcpy(h->disk + log->durable, log->flight.data, log->flight.count);
    h->disk_last = log->flight.count ? log->durable : h->disk_last;
    h->disk_synced = log->durable + log->flight.count;
    h->serves = true;
    drive_trim(h, h->disk_first);
    trace(h, "has its log on disk up to %" PRIu64, h->disk_synced);
    node_durable(h->node, h->disk_taken - h->disk_synced, h->disk_full);
}

/* A crash in the middle of a write: it is there, or not, or in part: its first bytes, or any of its
 * sectors, or other bytes. It was not synced, and may be lost in the next crash all the same. */
static void drive_tear(struct host *h)
{
    const struct log *log = &h->node->log;
    const struct bytes *flight = &log->flight;
    if (!flight->count)
        return;
    uint64_t whole = below(4);
    size_t kept = whole == 0 ? flight->count : whole == 1 ? 0 : below(flight->count);
    uint64_t end = log->durable + flight->count;
    drive_reach(h, end);
    for (uint64_t i = max_u64(h->disk_synced, log->durable); whole % 2 && i < end; i++)
        h->disk[i] = (uint8_t)i;
    memcpy(h->disk + log->durable, flight->data, kept);
    for (size_t i = kept; whole == 3 && i < flight->count; i++)
        if (i / 512 % 2 && log->durable + i >= h->disk_synced)
            h->disk[log->durable + i] = below(2) ? flight->data[i] : (uint8_t)chance_u64();
    trace(h, "its batch of %zu bytes is torn after %zu", flight->count, kept);
}

static bool hook_log_read(struct node *n, uint64_t lsn, void *to, size_t bytes, bool wait)
{
    struct host *h = n->context;
    if (lsn < h->disk_start)
        violation("h%d reads bytes that were cleaned away", h->index);
    if (!wait && chance(w.plan.cold))
        return false;
    size_t there = lsn < h->disk_bytes ? min_u64(bytes, h->disk_bytes - lsn) : 0;
    memcpy(to, h->disk + lsn, there);
    memset((uint8_t *)to + there, 0, bytes - there);
    return true;
}

/* Memory for a large value: there is none for a while, now and then. */
static bool hook_room(struct node *n, uint64_t bytes)
{
    (void)bytes;
    return !w.plan.cold || (w.now + n->id) % SECOND > SECOND / 8;
}

/* === 5 Hosts ================================================================================== */

static void hook_reply(struct node *n, void *client, const struct message *result);

static void node_free(struct node *n)
{
    n->log.live_bytes = 0;
    for (int i = 0; i <= VIEWS_PARTITION; i++)
        partition_drop(n, &n->partitions[i]);
    for (int i = 0; i < ROUND_BUCKETS; i++)
        for (struct round *r; (r = LIST_FIRST(&n->by_id[i]));)
            round_end(r, &n->large);
    for (struct request *q; (q = requests_pop(&n->large));)
        request_free(q);
    for (struct listing *l; (l = STAILQ_FIRST(&n->listings));) {
        listing_send(n, l, 503);
        listing_free(n, l);
    }
    for (size_t i = 0; i < n->peers_count; i++) {
        bytes_free(&n->peers[i]->outbox[0]);
        bytes_free(&n->peers[i]->outbox[1]);
        free(n->peers[i]);
    }
    for (size_t i = 0; i < n->views_count; i++)
        free(n->views[i]);
    sync_reset(n);
    free(n->views);
    struct bytes *all[] = {&n->log.pending,      &n->log.flight, &n->inbox, &n->handled,
                           &n->awaiting_durable, &n->scratch,    &n->cold,  &n->log.marks};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bytes_free(all[i]);
    free(n);
}

static const struct hooks hooks = {
    .reply = hook_reply, .log_read = hook_log_read, .room = hook_room};

static uint64_t host_wall(const struct host *h)
{
    return WALL_AT_START +
           (uint64_t)((int64_t)w.now + h->clock_error + w.wall_error +
                      (int64_t)(h->clock_drift * (double)w.now)) +
           (h->hour_until > w.now ? 3600 * SECOND : 0);
}

static void host_time(struct host *h)
{
    node_time(h->node, w.now + 1000 * SECOND, host_wall(h));
}

static void host_node(struct host *h)
{
    struct node *n = h->node = node_new(h->id, chance_u64(), h->address, &hooks, h);
    n->lease = w.plan.lease;
    n->evict_after = w.plan.evict_after;
    n->self_peer->weight = 1;
    n->replicas = w.plan.replicas;
    n->expected = w.plan.expects ? w.plan.hosts : 0;
    if (w.plan.zones)
        snprintf(n->self_peer->zone, sizeof n->self_peer->zone, "z%d", h->index % 3);
    h->epoch_seen = 0;
    w.wrong_starts += host_wall(h) > WALL_AT_START + w.now + CLOCK_AHEAD_MAX;
    h->boot++;
    h->serves = true;
    host_time(h);
    event_at(w.now + 1 + below(TICK), TICKS, h, NULL, 0);
}

static void host_seeds(struct host *h)
{
    for (unsigned i = 0; i < w.hosts_count; i++)
        if ((w.hosts[i].used || w.plan.expects) && (int)i != h->index)
            peer_make(h->node, 0, w.hosts[i].address);
}

/* A node with a new id and an empty log. It keeps the views, if there are any. */
static void host_begin(struct host *h, const struct node *before)
{
    drive_clear(h);
    h->id = !RULE(17) && h->id ? h->id : chance_u64();
    h->copied = false;
    h->used = true;
    host_node(h);
    struct node *n = h->node;
    for (size_t e = 0; before && e < before->views_count && before->views[e]; e++) {
        views_keep(n, before->views[e]);
        n->view = n->views[e];
        view_log(n, n->view);
    }
    if (n->view)
        view_apply(n);
    host_seeds(h);
    trace(h, "begins with id %016" PRIx64, h->id);
}

static void host_start(struct host *h);

/* As server_rejoin does it: the new log begins behind the old one, behind damage in a segment of its
 * own. It may stop before what is below is gone. */
static void host_rejoin(struct host *h, struct node *before, bool damaged)
{
    if (!RULE(17)) { /* the id is kept: it would count as gone for ever */
        host_begin(h, before);
        node_free(before);
        host_settle(h);
        return;
    }
    uint64_t lsn = damaged ? h->disk_bytes : before->log.durable + before->log.flight.count;
    h->disk_taken = max_u64(h->disk_taken, lsn);
    h->full_until = damaged ? 0 : h->full_until; /* it would stop */
    h->id = chance_u64();
    h->copied = false;
    h->node = node_new(h->id, chance_u64(), h->address, &hooks, h);
    host_time(h);
    const struct bytes *batch = node_rejoin(h->node, before, lsn);
    drive_take(h, lsn + batch->count);
    drive_reach(h, lsn + batch->count);
    memcpy(h->disk + lsn, batch->data, batch->count);
    h->disk_last = lsn;
    h->disk_synced = lsn + batch->count;
    if (damaged || below(2))
        drive_trim(h, lsn);
    h->disk_flipped &= !damaged;
    bytes_free(&h->kept.records);
    h->kept = (struct memory){0};
    node_free(before);
    node_free(h->node);
    h->node = NULL;
    trace(h, "rejoins under the new id %016" PRIx64, h->id);
    host_start(h);
}

/* Notes what is on disk for sure, though not what a batch holds that was being written. */
static void host_notes(struct host *h)
{
    const struct node *n = h->node;
    struct memory *k = &h->kept;
    k->records.count = 0;
    k->epoch = n->log.durable >= n->view_lsn ? node_epoch(n) : 0;
    k->clock_bound = n->clock_bound_durable;
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        const struct partition *q = &n->partitions[p];
        bool durable = q->promise_floor.time && q->promise_floor_lsn < n->log.durable;
        k->promise_floors[p] = durable ? q->promise_floor : (struct ballot){0};
        for (uint32_t i = 0; i < q->count; i++) {
            const struct entry *e = q->entries[i];
            struct record_kept r = {p, e->key_bytes, {0}, e->accepted};
            memcpy(r.key, e->key, min_u64(e->key_bytes, sizeof r.key));
            if (e->flags & FLAG_RECORD && e->lsn + e->record_bytes <= n->log.durable)
                bytes_append(&k->records, &r, sizeof r);
        }
    }
}

/* A restart forgets nothing that was on disk, wherever cleaning has moved it. */
static void host_remembers(const struct host *h)
{
    const struct node *n = h->node;
    const struct memory *k = &h->kept;
    if (n->clock_bound < k->clock_bound || node_epoch(n) < k->epoch)
        violation("h%d: a restart forgot the clock bound, or a view", h->index);
    if (node_epoch(n) > k->epoch)
        return; /* a view adopted in the batch that was being written may drop what was there */
    for (uint16_t p = 0; p < PARTITIONS; p++)
        if (ballot_compare(n->partitions[p].promise_floor, k->promise_floors[p]) < 0)
            violation("h%d: a restart forgot the promise floor of partition %u", h->index, p);
    const struct record_kept *r = (const struct record_kept *)k->records.data;
    for (size_t i = 0; i < k->records.count / sizeof *r; i++) {
        const struct entry *e =
            entry_find(&n->partitions[r[i].partition], r[i].key, r[i].key_bytes);
        if (!e || !(e->flags & FLAG_RECORD) || ballot_compare(e->accepted, r[i].accepted) < 0)
            violation("h%d: a restart forgot a record of %.*s", h->index, r[i].key_bytes, r[i].key);
    }
}

static void host_start(struct host *h)
{
    ck_assert(!h->node && !h->off);
    if (!h->id && !h->copied) {
        host_begin(h, NULL);
        host_settle(h);
        return;
    }
    host_node(h);
    trace(h, "starts");
    uint64_t end = h->disk_bytes;
    bool whole = node_recover(h->node, h->disk_start, end);
    if (!whole && !h->disk_flipped)
        violation("h%d: its log counts as damaged, and is not", h->index);
    if (!whole || h->node->gone) {
        trace(h, whole ? "is no member any more" : "its log is damaged");
        struct node *before = h->node;
        h->node = NULL;
        host_rejoin(h, before, !whole);
        return;
    }
    host_remembers(h);
    host_seeds(h);
    if (h->node->log.flight.count) {
        h->serves = false; /* until its last batch is written again */
        h->disk_first = h->node->log.first;
        drive_take(h, log_end(h->node));
        uint64_t wait = h->node->clock_bound - min_u64(h->node->clock_bound, host_wall(h));
        wait = wait < SECOND && !w.plan.restart_at_once ? wait : 0;
        event_at(w.now + wait + 1 + below(5 * MS), DISK_DONE, h, NULL, 0);
    }
    if (log_end(h->node) < h->disk_synced)
        violation("h%d: synced bytes of its log are lost: it ends at %" PRIu64 ", not %" PRIu64,
                  h->index, log_end(h->node), h->disk_synced);
    host_settle(h);
}

static void tries_broken(struct host *h);

static void host_crash(struct host *h)
{
    if (!h->node)
        return;
    trace(h, "crashes");
    if (h->serves) /* else it knows no more than before */
        host_notes(h);
    drive_tear(h);
    struct node *n = h->node;
    h->node = NULL; /* so that no reply counts */
    h->boot++;
    h->paused_until = 0;
    node_free(n);
    tries_broken(h);
}

static void host_wipe(struct host *h)
{
    host_crash(h);
    trace(h, "its disk is lost");
    drive_clear(h);
    if (RULE(17))
        h->id = 0;
    else
        h->disk_flipped = false;
}

static void views_check(struct host *h)
{
    struct node *n = h->node;
    for (; h->epoch_seen < n->views_count && n->views[h->epoch_seen]; h->epoch_seen++) {
        const struct view *v = n->views[h->epoch_seen];
        uint64_t e = h->epoch_seen;
        if (n->log.durable < n->view_lsn && w.plan.expects && !e)
            break; /* only this node knows of it, and may forget it in a crash */
        if (e >= w.views_count) {
            w.views = realloc(w.views, (e + 1) * sizeof *w.views);
            memset(w.views + w.views_count, 0, (e + 1 - w.views_count) * sizeof *w.views);
            w.views_count = e + 1;
        }
        if (!w.views[e]) {
            w.views[e] = memcpy(allocate(view_bytes(v)), v, view_bytes(v));
            for (uint32_t i = 0; tracing && i < v->members_count; i++)
                trace(h, "view %" PRIu64 " member %u: %s %s", v->epoch, i,
                      id_name(v->members[i].id),
                      (const char *[]){"joining", "up", "leaving", "lost"}[v->members[i].state]);
        }
        if (view_bytes(v) != view_bytes(w.views[e]) || memcmp(v, w.views[e], view_bytes(v)) != 0)
            violation("h%d adopted another view %" PRIu64 " than others", h->index, v->epoch);
    }
    if (n->view && h->epoch_seen < n->view->epoch && n->log.durable >= n->view_lsn)
        violation("h%d has a view but not all before it", h->index);
}

/* === 6 The network ============================================================================ */

static bool is_cut(int from, int to)
{
    return w.cut_until[from][to] > w.now || w.hosts[to].deaf_until > w.now;
}

static void frame_push(int from, int to, uint64_t at, const struct bytes *batch)
{
    void *data = memcpy(allocate(batch->count), batch->data, batch->count);
    event_push((struct event){at, 0, FRAME, to, 0, data, batch->count, from});
}

static void frame_send(struct host *h, const struct peer *p, const struct bytes *batch)
{
    int to = *p->address == 'h' ? atoi(p->address + 1) : -1;
    if (to < 0 || to >= (int)w.hosts_count || is_cut(h->index, to) ||
        strcmp(p->address, w.hosts[to].address) != 0)
        return;
    if (w.plan.weight[LIE] && chance(100))
        bytes_set(&w.overheard[below(OVERHEARD_MAX)], batch->data, batch->count);
    for (int copies = chance(w.plan.loss)    ? 0
                      : chance(w.plan.twice) ? 2
                                             : 1;
         copies > 0; copies--) {
        uint64_t delay =
            50 + below(w.plan.delay) + (chance(w.plan.late) ? below(w.plan.delay_far) : 0);
        if (h->slow_until > w.now || w.hosts[to].slow_until > w.now)
            delay += below(300 * MS);
        frame_push(h->index, to, w.now + delay, batch);
    }
}

static struct host *host_of(uint64_t id);

/* What a stranger that has read all frames to a node may send it: bad addresses, requests to leave,
 * messages of rounds, ballots and promise floors. (Without a secret, views are believed of anybody.) */
static void lie_make(const struct node *n, struct bytes *frame)
{
    static const uint8_t types[] = {M_HEARTBEAT, M_PREPARE, M_ACCEPT,     M_ACCEPTED,
                                    M_PROMISE,   M_READ,    M_LIST,       M_LISTED,
                                    M_PULL,      M_DIGEST,  M_READ_REPLY, M_VIEW};
    struct heartbeat beat = {.heard = {n->id}, .leave = ~UINT64_C(0)};
    bytes_extend(frame, sizeof(struct frame));
    for (uint64_t i = 1 + below(8); i; i--) {
        const struct key *k = &w.keys[below(w.keys_count)];
        struct message m = {.type = types[below(sizeof types)], .round_id = below(3)};
        struct body body = {.key = m.type == M_HEARTBEAT ? "h1/?" : k->name, .value = "lie"};
        m.key_bytes = m.type == M_VIEW ? 0 : (uint16_t)strlen(body.key);
        m.partition = key_partition(k->name, strlen(k->name));
        m.flags = FLAG_WHOLE | FLAG_RECORD;
        m.value_bytes = m.type == M_ACCEPT || m.type == M_READ_REPLY || m.type == M_LISTED ? 3 : 0;
        m.ballot = (struct ballot){node_epoch(n), n->clock + below(2 * SECOND), n->id};
        m.modified = n->clock;
        m.status = 1;
        if (m.type == M_HEARTBEAT) {
            m.value_bytes = sizeof beat;
            body.type = "";
            body.value = &beat;
        }
        message_append(frame, &m, &body);
    }
    struct frame *f = (struct frame *)frame->data;
    *f = (struct frame){.magic = FRAME_MAGIC, .bytes = (uint32_t)frame->count};
    f->cluster = n->cluster;
    f->from = 0x11e5 + below(16);
    f->to = n->id;
    f->clock = n->clock;
    f->epoch = node_epoch(n) + (chance(100) ? below(5) : 0);
    f->wall = n->wall;
    f->check = frame_check(f);
}

/* A liar sends some frames that it overheard, however old and from anyone, and some of its own. */
static void fault_lie(void)
{
    trace(NULL, "a liar sends");
    for (uint64_t i = 1 + below(chance(100) ? 400 : 40); i; i--) {
        struct host *to = &w.hosts[below(w.hosts_count)];
        struct bytes frame = {0};
        const struct bytes *old = &w.overheard[below(OVERHEARD_MAX)];
        if (chance(700))
            bytes_append(&frame, old->data, old->count);
        else if (to->node)
            lie_make(to->node, &frame);
        if (frame.count)
            frame_push(to->index, to->index, w.now + below(200 * MS), &frame);
        bytes_free(&frame);
    }
}

static const struct entry *owner_entry(const struct node *n, int ring, uint32_t member,
                                       const struct key *k)
{
    uint16_t partition = key_partition(k->name, strlen(k->name));
    const struct host *h =
        n->owners[ring][partition] >> member & 1 ? host_of(n->view->members[member].id) : NULL;
    const struct entry *e =
        h ? entry_find(&h->node->partitions[partition], k->name, strlen(k->name)) : NULL;
    return e && e->flags & FLAG_RECORD ? e : NULL;
}

/* The highest ballot that so many of a key's owners in that ring of n's view have reached on disk (or,
 * if one, at all). `live`: whether one of them holds a live record at it. */
static struct ballot key_reached(const struct node *n, int ring, const struct key *k,
                                 unsigned owners, bool *live)
{
    struct ballot reached[MEMBERS_MAX] = {{0}}, most;
    const struct entry *e;
    unsigned count = 0;
    for (uint32_t i = 0; i < n->view->members_count; i++) {
        const struct host *h = host_of(n->view->members[i].id);
        if (!(e = owner_entry(n, ring, i, k)))
            continue;
        if (owners > 1 && e->lsn + e->record_bytes > h->node->log.durable)
            continue; /* no other node knows of it, and a crash may undo it */
        unsigned at = count++;
        for (; at && ballot_compare(reached[at - 1], e->accepted) < 0; at--)
            reached[at] = reached[at - 1];
        reached[at] = e->accepted;
    }
    most = reached[owners - 1]; /* zero if fewer have any */
    *live = false;
    for (uint32_t i = 0; i < n->view->members_count; i++)
        if ((e = owner_entry(n, ring, i, k)))
            *live |= is_live(e->flags) && ballot_equal(e->accepted, most);
    return most;
}

/* What may have been acknowledged: the highest ballot that a majority of the owners has; of those in
 * each ring, but for what was written before the transition. */
static struct ballot key_chosen(const struct node *n, const struct key *k)
{
    struct ballot chosen[2];
    const struct view *before = node_epoch(n) > 1 ? n->views[node_epoch(n) - 2] : NULL;
    bool live;
    for (int ring = 0; ring < 2; ring++) {
        uint64_t owners = n->owners[ring][key_partition(k->name, strlen(k->name))];
        unsigned majority = (unsigned)__builtin_popcountll(owners) / 2 + 1;
        chosen[ring] = key_reached(n, ring, k, majority, &live);
    }
    if (before && !view_members(before, ~(1u << MEMBER_UP)) && chosen[0].epoch <= before->epoch)
        return chosen[0];
    return chosen[ballot_compare(chosen[1], chosen[0]) < 0];
}

/* Called when more of what this node accepted is on disk: from then on others may know of it. */
static void keys_note(const struct host *h)
{
    for (unsigned i = 0; i < w.keys_count; i++) {
        struct key *k = &w.keys[i];
        uint16_t partition = key_partition(k->name, strlen(k->name));
        const struct entry *e =
            entry_find(&h->node->partitions[partition], k->name, strlen(k->name));
        if (e && e->flags & FLAG_RECORD && e->lsn + e->record_bytes <= h->node->log.durable &&
            ballot_compare(e->accepted, k->newest) > 0)
            k->newest = e->accepted;
    }
}

/* A node that says it is ready has all that was acknowledged before its lease began: judged by the
 * live records that are the newest of their key still. (One that compared digests with an owner
 * whose tombstone is newer is as far as that one is, though it is down the next moment.) */
static void judge_ready(struct host *h)
{
    const struct node *n = h->node;
    bool live;
    if (!n->has_lease || n->self < 0)
        return;
    if (h->lease_clock != n->lease_clock) {
        h->lease_clock = n->lease_clock;
        h->ready = false;
        for (unsigned i = 0; i < w.keys_count; i++)
            h->must[i] = key_chosen(n, &w.keys[i]);
    }
    if (h->ready || !n->stable || partitions_behind(n))
        return;
    h->ready = true;
    trace(h, "is ready");
    for (unsigned i = 0; i < w.keys_count; i++) {
        const struct key *k = &w.keys[i];
        uint16_t partition = key_partition(k->name, strlen(k->name));
        const struct entry *e = entry_find(&n->partitions[partition], k->name, strlen(k->name));
        struct ballot newest = key_reached(n, 0, k, 1, &live);
        if (ballot_compare(k->newest, newest) > 0)
            continue;
        if (n->owners[C_NEW][partition] & self_bit(n) && live && !w.excused[partition] &&
            ballot_equal(newest, h->must[i]) && !(e && ballot_equal(e->accepted, newest)))
            violation("h%d is ready, and has not %s of before its lease", h->index, k->name);
    }
}

/* What the program does after each event of a node: write, send, see whether it is gone. */
static void host_settle(struct host *h)
{
    struct node *n = h->node;
    struct bytes batch = {0};
    node_run(n);
    views_check(h);
    judge_ready(h);
    if (n->gone && !n->log.writing) {
        trace(h, "is gone from the view");
        h->node = NULL;
        h->boot++;
        tries_broken(h);
        host_rejoin(h, n, false);
        if (h->leaves)
            event_at(w.now + 2 * w.plan.lease, DOWN, h, NULL, 0);
        return;
    }
    if (h->small && n->self >= 0 && n->view->members[n->self].state == MEMBER_UP) {
        h->small = false;
        h->full_until = 0;
    }
    if (node_is_too_small(n)) { /* it stops, as server_turn has it; only a larger disk would help */
        trace(h, "its disk is too small");
        host_crash(h);
        event_at(w.now + (h->small ? 2 * w.plan.evict_after : below(4 * w.plan.lease)), UP, h, NULL,
                 0);
        return;
    }
    if (n->view && !n->stable && LIST_FIRST(&n->by_key[VIEWS_PARTITION]))
        w.deciding = max_u64(w.deciding, n->view->epoch);
    drive_submit(h);
    for (size_t i = 0; i < n->peers_count && h->serves; i++)
        for (int which = 0; which < 2; which++)
            if (n->peers[i] != n->self_peer && frame_take(n, n->peers[i], which, &batch))
                frame_send(h, n->peers[i], &batch);
    bytes_free(&batch);
}

/* Of the nodes with copies of a disk none gets a lease, and no other is taken for one of them. */
static void judge_copy(const struct host *h)
{
    const struct node *n = h->node;
    for (uint32_t i = 0; n->view && i < n->view->members_count; i++)
        if (n->member_peer[i]->disowns_us && !h->copied)
            violation("h%d counts as a copy", h->index);
    if (h->copied && n->has_lease && RULE(32))
        violation("h%d has an old copy of a disk, and a lease", h->index);
}

static void frame_deliver(struct host *h, const struct event *e)
{
    if (is_cut(e->from, h->index) || !h->serves)
        return;
    host_time(h);
    trace_batch(h, e->from, e->data, e->bytes);
    if (!node_receive(h->node, e->data, e->bytes))
        violation("h%d could not read a frame from h%d", h->index, e->from);
    judge_copy(h);
    host_settle(h);
}

/* === 7 Clients ================================================================================
 *
 * A client does one operation after the other. It goes to a random host; unanswered for too long, or
 * "unknown", a write may be sent again through another with the same Idempotency-Key, as nginx does:
 * the client's own, or the one that an answer gave it.
 */

struct client {
    uint64_t name;
    uint64_t serial; /* counts what it began or learned: an event of an older one is void */
    struct op *op;
};

struct op {
    struct client *client;
    struct key *key;
    struct history_op seen; /* for the key's history */
    struct message m;       /* as the first try sent it */
    char value[24];
    uint32_t value_bytes;
    uint64_t wait, ttl, tries;
    char retry_key[40]; /* Idempotency-Key; none: the node makes one */
    uint64_t first_try; /* by its proxy's clock, sent with a repeat; 0: not sent */
    uint64_t expiry;    /* as its last try had it */
    uint64_t arrived, gone_from, gone_by; /* tries that came, and when what they wrote ends */
    struct try *try;                      /* the one that is listened to */
    bool sent;     /* a try reached a node: the write is open unless an answer says no */
    bool echo;     /* it was answered, `first`, and is sent once more nevertheless */
    bool recorded; /* if it was rejected, that is remembered */
    bool forgets;  /* it is not repeated once it was answered */
    bool listing;
    struct message first;
    uint64_t changed_at;       /* of a wait: when a change was acknowledged; 0: none was */
    uint64_t held;             /* of a read of consistency=one: key_held when it was sent */
    uint64_t page_start;       /* of a listing's page */
    struct bytes after, found; /* of that page: the key it comes after; struct listed_key */
};

struct listed_key {
    char name[24];
    uint64_t modified, write_id, expiry;
    uint32_t value_bytes;
};

struct
try {
    struct try *next; /* of its host, once it is there */
    struct op *op;    /* null: nobody listens any more */
    struct message m;
    char key[24], value[24];
    uint64_t deadline, paused_time, wait, ttl, limit, first_try;
    char retry_key[40];
    uint64_t write_id;
    bool fresh, forgets; /* it had no key; its client repeats it no more once it was answered */
    struct bytes after;
};

static struct history_op *history_add(struct key *k)
{
    if (k->ops_count == k->ops_capacity) {
        k->ops_capacity = k->ops_capacity ? 2 * k->ops_capacity : 64;
        k->ops = realloc(k->ops, k->ops_capacity * sizeof *k->ops);
    }
    return &k->ops[k->ops_count++];
}

static void client_wakes(struct client *c, uint64_t time, enum event_type type)
{
    event_at(time, type, NULL, c, ++c->serial);
}

static void try_free(struct try *t)
{
    bytes_free(&t->after);
    free(t);
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
    if (known) {
        op->seen.end = w.now;
        *history_add(op->key) = op->seen;
    }
    op_free(op);
    c->op = NULL;
    client_wakes(c, w.now + 1 + below(w.plan.think), CLIENT);
}

static bool op_writes(const struct op *op)
{
    return op->m.function != DO_READ && !op->listing;
}

/* Given up: a write may or may not have been applied. */
static void op_give_up(struct op *op)
{
    op->seen.outcome = op->sent ? HISTORY_UNKNOWN : HISTORY_FAILED;
    w.unknown += op->sent;
    op_end(op, op_writes(op) && !op->echo);
}

/* No answer, or that nobody knows. */
static void op_open(struct op *op)
{
    if (op->try)
        op->try->op = NULL;
    op->try = NULL;
    if (!op_writes(op) || !*op->retry_key || op->echo || w.over || op->tries > 4 || chance(200)) {
        op_give_up(op);
        return;
    }
    uint64_t later = chance(100) ? below(w.plan.late_repeat) : below(200 * MS);
    client_wakes(op->client, w.now + 1 + later, RETRY);
}

static uint64_t value_parse(const struct op *op, const struct message *m, const struct body *b)
{
    char text[24] = "";
    size_t digits = 0;
    const char *value = b->value;
    if (!(m->flags & FLAG_WHOLE))
        violation("%s: a value was not there", op->key->name);
    while (digits < m->value_bytes && digits < sizeof text - 1 && value[digits] != ':')
        text[digits] = value[digits], digits++;
    for (size_t i = digits; i < m->value_bytes; i++)
        if (value[i] != ':')
            violation("wrong bytes in a value of %s", op->key->name);
    return (uint64_t)strtoll(text, NULL, 10);
}

/* Every answer about a record must agree on its size and its end. */
static void key_learns(struct key *k, uint64_t modified, uint64_t write_id, uint32_t value_bytes,
                       uint64_t expiry)
{
    struct fact *f = &k->facts[write_id % (sizeof k->facts / sizeof *k->facts)];
    if (f->etag[0] != modified || f->etag[1] != write_id)
        *f = (struct fact){{modified, write_id}, expiry, value_bytes};
    if (f->value_bytes != value_bytes || f->expiry != expiry)
        violation(
            "%s: answers differ in the size or the end of one record: %u and %u bytes, %" PRIu64
            " and %" PRIu64,
            k->name, f->value_bytes, value_bytes, f->expiry, expiry);
}

static void op_saw_etag(struct op *op, const struct message *m)
{
    bool one = op->m.flags & FLAG_ONE;
    if (op->seen.value > VALUE_OF_ONE || (one && op->m.function == DO_READ))
        return; /* it may be put in place twice, as it knows nothing of what was there before */
    op->seen.etag[0] = m->modified;
    op->seen.etag[1] = m->write_id;
    if (m->modified > op->key->etag[0])
        memcpy(op->key->etag, op->seen.etag, sizeof op->seen.etag);
}

/* A wait ends soon after a change, or when its time is over: then the answer is that of a read made
 * then, not when the wait began. (A read takes a while where something goes wrong.) */
static void wait_answered(struct op *op, bool same)
{
    bool calm = w.mix == mix_calm;
    uint64_t read = calm ? 200 * MS : REQUEST_TIME, end = op->seen.start + op->wait;
    if (same && w.now < end)
        violation("a wait on %s ended without a change", op->key->name);
    if (same)
        op->seen.start = max_u64(op->seen.start, end - min_u64(end, read));
    if (calm && op->changed_at && w.now > op->changed_at + 300 * MS)
        violation("a wait on %s was answered %.3f s after the change", op->key->name,
                  (double)(w.now - op->changed_at) / 1e6);
}

/* The key has changed: every wait for that must end soon. */
static void waits_note(const struct op *by, const struct message *m)
{
    for (unsigned i = 0; i < w.plan.clients; i++) {
        struct op *op = w.clients[i].op;
        if (op && op->wait && op->key == by->key && op->m.condition == IF_MATCH &&
            op->seen.start + MS < by->seen.start && m->modified > op->m.ballot.time &&
            !op->changed_at)
            op->changed_at = w.now;
    }
}

/* If all owners have a record of the key that never expires, but for those that still pull: a number
 * that stays the same while nothing changes. Else 0. */
static uint64_t key_held(const struct key *k)
{
    uint64_t mark = w.views_count;
    uint16_t partition = key_partition(k->name, strlen(k->name));
    for (unsigned i = 0; i < w.hosts_count; i++) {
        const struct node *n = w.hosts[i].node;
        if (!n || n->self < 0 || node_epoch(n) != w.views_count)
            return 0;
        const struct entry *e = entry_find(&n->partitions[partition], k->name, strlen(k->name));
        if (n->owners[C_OLD][partition] & self_bit(n) ||
            (n->owners[C_NEW][partition] & self_bit(n) && partition_is_complete(n, partition))) {
            if (!e || !is_live(e->flags) || e->expiry)
                return 0;
            mark = XXH3_64bits_withSeed(&e->accepted, sizeof e->accepted, mark);
        }
        mark = 31 * mark + w.hosts[i].boot;
    }
    return mark;
}

static void op_read_answered(struct op *op, const struct message *m)
{
    struct body body = message_body(m);
    if (op->m.flags & FLAG_ONE && m->status == 404 && op->held && op->held == key_held(op->key))
        violation("%s: consistency=one found nothing, and all complete owners have it",
                  op->key->name);
    if (m->status != 200 && m->status != 404) {
        op_end(op, false);
        return;
    }
    bool is = m->status == 200;
    bool same = is ? op->m.condition == IF_MATCH && m->modified == op->m.ballot.time &&
                         m->write_id == op->m.ballot.node
                   : op->m.condition == IF_ABSENT;
    if (op->wait)
        wait_answered(op, same);
    op->seen.outcome = is ? HISTORY_OK : HISTORY_REJECTED;
    if (is) {
        op->seen.value = value_parse(op, m, &body);
        op_saw_etag(op, m);
        key_learns(op->key, m->modified, m->write_id, m->value_bytes, m->expiry);
    }
    op_end(op, true);
}

/* It is in the history now, and is sent once more, as by a proxy that missed the answer. */
static void op_echoes(struct op *op, const struct message *m, uint64_t at)
{
    op->seen.end = w.now;
    *history_add(op->key) = op->seen;
    op->echo = true;
    op->first = *m;
    client_wakes(op->client, at, RETRY);
}

static void op_write_answered(struct op *op, const struct message *m)
{
    struct key *k = op->key;
    switch (m->status) {
    case 200:
    case 201:
    case 204:
        op->seen.outcome = HISTORY_OK;
        if (m->status != 200)
            op->seen.existed = m->status == 201 ? HISTORY_CREATED : HISTORY_REPLACED;
        if (op->m.function == DO_ADD)
            op->seen.value = m->number;
        else if (op->m.function == DO_PUT)
            op_saw_etag(op, m);
        if (op->m.function == DO_PUT)
            waits_note(op, m);
        if (op->m.function == DO_PUT && op->tries == 1)
            key_learns(k, m->modified, m->write_id, op->m.value_bytes, op->expiry);
        break;
    case 404:
    case 409:
    case 412:
        op->seen.outcome = HISTORY_REJECTED;
        if (m->status == 412 && op->m.condition != IF_EXISTS && m->modified)
            op_saw_etag(op, m);
        break;
    default:
        violation("a write was answered %u", m->status);
    }
    bool echoes = op->seen.outcome == HISTORY_OK || op->recorded;
    uint64_t later = below(chance(700) ? 300 * MS : sim_memory + w.plan.late_repeat);
    if (w.now + later < w.faults_until && *op->retry_key && echoes && !op->forgets &&
        chance(w.plan.echo))
        op_echoes(op, m, w.now + 1 + later);
    else
        op_end(op, true);
}

/* A repeat of a write that was answered gets the same answer, or "unknown". */
static void echo_answered(struct op *op, const struct message *m)
{
    const struct message *first = &op->first;
    bool etag = m->status != 412; /* that is of the moment */
    if (m->status != STATUS_UNKNOWN && !w.excused[op->m.partition] &&
        (m->status != first->status || (etag && m->number != first->number)))
        violation("a write to %s was answered %u and number %" PRIu64
                  ", its repeat %u and %" PRIu64,
                  op->key->name, first->status, first->number, m->status, m->number);
    op_end(op, false);
}

static void listing_page_part(struct op *op, const struct message *m);
static void listing_answered(struct op *op, const struct message *m);

/* What HTTP answers then: that nothing was changed, or the key to repeat it with. */
static void op_failed(struct op *op, const struct try *t, uint16_t status)
{
    struct call c = {.method = PUT, .m = t->m};
    memcpy(c.retry_key, t->retry_key, sizeof t->retry_key);
    call_text(&c, status, "failed");
    const char *outcome = MHD_get_response_header(c.response, "Estoraje-Outcome"),
               *key = MHD_get_response_header(c.response, "Idempotency-Key");
    if (outcome && key && chance(800))
        snprintf(op->retry_key, sizeof op->retry_key, "%s", key);
    op->sent &= outcome != NULL;
    if (!outcome && t->m.flags & FLAG_REPEAT)
        violation("a repeat was answered that nothing was changed");
    MHD_destroy_response(c.response);
    bytes_free(&c.body);
    if (outcome)
        op_open(op);
    else
        op_give_up(op);
}

static void op_answered(struct op *op, const struct message *m, const struct try *t)
{
    w.answered_ok += m->status < 500;
    if (w.last_phase && (m->status == 503 || (m->status > 503 && !w.clocks_ran_ahead)))
        violation("%s: answered %u when all was healed", op->key->name, m->status);
    if (op->listing) {
        listing_answered(op, m);
    } else if (!op_writes(op)) {
        op_read_answered(op, m);
    } else if (op->echo && m->status != 503 && m->status != 507) {
        echo_answered(op, m);
    } else if (m->status >= 500) {
        op_failed(op, t, m->status);
    } else {
        op_write_answered(op, m);
    }
}

static struct host *host_of(uint64_t id)
{
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.hosts[i].id == id && w.hosts[i].node && !w.hosts[i].deaf)
            return &w.hosts[i];
    return NULL;
}

/* A write of consistency=all is acknowledged: every owner that is up has it, or a later one. */
static void judge_all(const struct host *h, const struct try *t, const struct message *m)
{
    const struct node *n = h->node;
    bool etag = t->m.function != DO_ADD;
    for (uint32_t i = 0; i < n->view->members_count; i++) {
        const struct host *o = host_of(n->view->members[i].id);
        if (!o || !(partition_owners(n, t->m.partition) >> i & 1) ||
            node_epoch(o->node) != node_epoch(n))
            continue;
        const struct entry *e =
            entry_find(&o->node->partitions[t->m.partition], t->key, strlen(t->key));
        if (!e || (etag && e->modified < m->modified))
            violation("a write of consistency=all to %s was acknowledged, and h%d does not have it",
                      t->key, o->index);
    }
}

/* Whether disks were lost, or partitions moved: what one owner alone had may be gone. */
static bool owners_changed(void)
{
    const unsigned *weight = w.plan.weight;
    return w.views_count > 1 || weight[WIPE] || weight[RESTORE] || weight[LOSS] || weight[FLIP] ||
           weight[FAR_CLOCK];
}

/* One of consistency=one: some owner has it on disk, or a later one. It may be down by now. */
static void judge_one(const struct try *t, const struct message *m)
{
    bool found = owners_changed();
    for (unsigned i = 0; i < w.hosts_count; i++) {
        const struct host *h = &w.hosts[i];
        const struct entry *e =
            h->node ? entry_find(&h->node->partitions[t->m.partition], t->key, strlen(t->key))
                    : NULL;
        found |= h->used && (!h->node || !h->serves); /* it had it on disk, maybe */
        if (!e || e->accepted.time < m->modified ||
            (e->accepted.time == m->modified && e->write_id == m->write_id &&
             e->lsn + e->record_bytes > h->node->log.durable))
            continue;
        found = true;
        struct key *k = t->op ? t->op->key : NULL;
        if (k && e->write_id == m->write_id && ballot_compare(e->accepted, k->acked) > 0) {
            k->acked = e->accepted;
            k->acked_put = t->m.function == DO_PUT;
        }
    }
    if (!found)
        violation("a write of consistency=one to %s was acknowledged, and is on no disk", t->key);
}

static void hook_reply(struct node *n, void *client, const struct message *m)
{
    struct host *h = n->context;
    struct try *t = client;
    if (h->node != n)
        return;
    if (m->status == 100) { /* more of the listing comes */
        if (t->op)
            listing_page_part(t->op, m);
        return;
    }
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
    if (t->m.flags & FLAG_ALL && m->status < 300)
        judge_all(h, t, m);
    if (t->m.flags & FLAG_ONE && t->m.function != DO_READ && m->status < 300)
        judge_one(t, m);
    char etag[64] = "";
    if (m->modified)
        snprintf(etag, sizeof etag, ", ETag %.6f-%04" PRIx64,
                 (double)(int64_t)(m->modified - WALL_AT_START) / 1e6, m->write_id >> 48);
    trace(h, "answers client %" PRIu64 ": %u%s", t->op ? t->op->client->name : 99, m->status, etag);
    if (t->write_id && m->status < 500 && (t->fresh || (t->forgets && t->op)))
        node_delivered(n, t->write_id);
    if (t->op) {
        struct op *op = t->op;
        op->try = NULL;
        op->expiry = t->m.expiry;
        op_answered(op, m, t);
    }
    try_free(t);
}

static void tries_broken(struct host *h)
{
    while (h->tries) {
        struct try *t = h->tries;
        h->tries = t->next;
        struct op *op = t->op;
        try_free(t);
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

static const struct view *newest_view(void)
{
    return w.views_count ? w.views[w.views_count - 1] : NULL;
}

static struct host *random_host(void)
{
    unsigned start = (unsigned)below(w.hosts_count);
    for (unsigned i = 0; i < w.hosts_count; i++) {
        struct host *h = &w.hosts[(start + i) % w.hosts_count];
        if (h->node && h->serves && h->node->view && !h->deaf)
            return h;
    }
    return NULL;
}

/* A key with a time to live: when it may be, and must be, gone. The time runs from when a try comes
 * to a node, by the latest time known there. A try that has not come may come at any time. */
static void op_may_expire(struct op *op)
{
    uint64_t due = w.now + op->ttl,
             error =
                 2 * w.clock_error_max; /* of the node that sets it, and of the one that judges */
    uint64_t from = max_u64(due, error + 1) - error;
    op->seen.gone_from = op->seen.gone_from ? min_u64(op->seen.gone_from, from) : from;
    op->seen.gone_by = UINT64_MAX;
}

static void op_expires(struct op *op, uint64_t expiry)
{
    uint64_t error = w.clock_error_max, due = max_u64(expiry, WALL_AT_START) - WALL_AT_START;
    uint64_t from = max_u64(due, error + 1) - error;
    op->gone_from = op->gone_from ? min_u64(op->gone_from, from) : from;
    op->gone_by = max_u64(op->gone_by, due + error);
    if (++op->arrived < op->tries)
        return;
    op->seen.gone_from = op->gone_from;
    op->seen.gone_by = op->gone_by;
}

/* Sends it to a random host, where it arrives a little later, or when that is no longer paused. */
static void op_send(struct op *op)
{
    struct host *h = random_host();
    if (!h) {
        op_open(op); /* nobody is there */
        return;
    }
    struct try *t = op->try = allocate(sizeof *t);
    t->op = op;
    t->m = op->m;
    t->wait = op->wait;
    t->limit = between(1, 6);
    bytes_append(&t->after, op->after.data, op->after.count);
    memcpy(t->key, op->key->name, sizeof t->key);
    memcpy(t->value, op->value, sizeof t->value);
    t->ttl = op->ttl;
    memcpy(t->retry_key, op->retry_key, sizeof t->retry_key);
    t->m.flags |= op->sent                                        ? FLAG_REPEAT
                  : *op->retry_key && !op->forgets && chance(500) ? FLAG_KEYED
                                                                  : 0;
    t->forgets = op->forgets && !op->sent;
    t->first_try = op->sent ? op->first_try : 0;
    op->recorded = t->m.flags & (FLAG_REPEAT | FLAG_KEYED);
    op->sent = true;
    op->page_start = w.now;
    op->held = key_held(op->key);
    bytes_extend(&op->after, 1); /* an address, though it is empty */
    op->after.count--;
    op->found.count = 0;
    op->tries++;
    if (op->ttl)
        op_may_expire(op);
    uint64_t patience = w.plan.patient ? 30 * SECOND : 2 * MS + below(2500 * MS);
    event_at(w.now + 20 + below(200), ARRIVE, h, t, 0);
    client_wakes(op->client, w.now + patience + op->wait + op->listing * LISTING_TIME, TIMEOUT);
}

/* What HTTP does with a write before the core gets it: it makes an Idempotency-Key if there is none,
 * derives the write id from it, and rejects a write that is too old; or any, if memory is short. */
static bool try_identify(struct host *h, struct try *t, const char *value, struct message *m)
{
    static struct server s;
    s.node = h->node;
    struct call c = {.server = &s, .method = PUT, .uri = t->key, .m = *m};
    c.body = (struct bytes){(uint8_t *)value, m->value_bytes, 0};
    memcpy(c.retry_key, t->retry_key, sizeof t->retry_key);
    uint64_t time = parse_unix_time(c.retry_key, '-');
    c.key_time = time ? time : t->first_try;
    if ((c.key_time && c.key_time + REPEAT_TIME < h->node->wall) || chance(w.healed ? 0 : 2)) {
        hook_reply(h->node, t, &(struct message){.status = 503});
        return false;
    }
    call_write_id(&c);
    memcpy(t->retry_key, c.retry_key, sizeof t->retry_key);
    *m = c.m;
    t->write_id = m->write_id;
    t->fresh = m->flags & FLAG_FRESH;
    return true;
}

/* The request is there. */
static void try_arrive(struct host *h, struct try *t)
{
    struct node *n = h->node;
    uint64_t time = t->m.type == M_LIST ? LISTING_TIME + REQUEST_TIME : REQUEST_TIME;
    t->deadline = w.now + time + t->wait + 100 * MS;
    t->paused_time = h->paused_time;
    t->next = h->tries;
    h->tries = t;
    w.operations++;
    trace(h, "is asked by client %" PRIu64 ": %s %s%s%s", t->op ? t->op->client->name : 99,
          (const char *[]){"GET", "PUT", "DELETE", "ADD"}[t->m.function], t->key,
          t->m.flags & FLAG_REPEAT ? ", a repeat" : "",
          (const char *[]){"", ", if-match", ", if it exists", ", if absent"}[t->m.condition]);
    if (t->m.type == M_LIST) {
        node_list(n, t, (struct bytes){(uint8_t *)"l/", 2, 0}, t->after, t->limit, false);
        return;
    }
    if (t->m.function != DO_READ)
        t->m.expiry = t->ttl ? node_latest_time(n) + t->ttl : 0;
    if (t->ttl && t->op)
        op_expires(t->op, t->m.expiry);
    char *value = allocate(t->m.value_bytes + 1);
    memset(value, ':', t->m.value_bytes);
    memcpy(value, t->value, min_u64(strlen(t->value), t->m.value_bytes));
    struct message m = t->m;
    if (m.function == DO_READ || try_identify(h, t, value, &m))
        node_request(n, t, &m, &(struct body){.key = t->key, .value = value}, t->wait);
    free(value);
}

/* The host went down before it came. */
static void try_lost(struct try *t)
{
    struct op *op = t->op;
    try_free(t);
    if (op) {
        op->try = NULL;
        op_open(op);
    }
}

/* --- what clients do --- */

static void op_etag(struct op *op)
{
    op->m.condition = IF_MATCH;
    op->m.ballot.time = op->seen.etag_expected[0] = op->key->etag[0];
    op->m.ballot.node = op->seen.etag_expected[1] = op->key->etag[1];
}

static void op_value(struct op *op, bool number)
{
    uint64_t value = number ? below(1000) : ++w.next_value;
    value += op->m.flags & FLAG_ONE ? VALUE_OF_ONE : 0;
    if (number && chance(50)) /* to be added to in vain */
        value = (uint64_t)(chance(500) ? INT64_MAX - (int64_t)value : INT64_MIN + (int64_t)value);
    snprintf(op->value, sizeof op->value, "%" PRId64, (int64_t)value);
    op->m.value_bytes = (uint32_t)strlen(op->value);
    if (!number)
        op->m.value_bytes += (uint32_t)(chance(w.plan.large) ? below(3 * BULK_BYTES) : below(30));
    op->m.flags |= FLAG_WHOLE;
    op->seen.value = value;
    op->seen.number = number;
}

static void op_choose_condition(struct op *op)
{
    uint64_t dice = below(10);
    if (dice < 3 && op->key->etag[0])
        op_etag(op);
    else if (dice < 5)
        op->m.condition = IF_ABSENT;
    else if (dice < 6)
        op->m.condition = IF_EXISTS;
    op->seen.condition = (const enum history_condition[]){
        HISTORY_ALWAYS, HISTORY_IF_ETAG, HISTORY_IF_PRESENT, HISTORY_IF_ABSENT}[op->m.condition];
}

static void op_choose_write(struct op *op)
{
    enum key_kind kind = op->key->kind;
    bool deletes = chance(kind == COUNTER ? 50 : w.plan.tombstones ? 500 : 250);
    op->m.function = deletes ? DO_DELETE : kind == COUNTER ? DO_ADD : DO_PUT;
    op->seen.kind = deletes ? HISTORY_DELETE : kind == COUNTER ? HISTORY_ADD : HISTORY_PUT;
    if (kind == COUNTER && !deletes) {
        op->seen.delta = (int64_t)below(100) - 30;
        op->m.number = (uint64_t)op->seen.delta;
        op->seen.number = true;
        return;
    }
    bool mortal = kind == MORTAL || (kind == LISTED && w.plan.mortal && chance(500));
    if (mortal && !deletes)
        op->ttl = between(200 * MS, 4 * SECOND);
    if (kind == ONE && (chance(600) || w.plan.skew > KEY_TIME_SLACK))
        op->m.flags |= FLAG_ONE;
    else
        op_choose_condition(op);
    if (op->m.function == DO_PUT)
        op_value(op, kind == COUNTER);
    if (chance(100) && kind != ONE)
        op->m.flags |= FLAG_ALL;
}

static void op_choose_read(struct op *op)
{
    op->m.function = DO_READ;
    op->m.number = 0;
    op->m.expiry = UINT64_MAX; /* the whole value */
    op->seen.kind = HISTORY_GET;
    op->seen.number = op->key->kind == COUNTER;
    if (op->key->kind == ONE && chance(600)) {
        op->m.flags |= FLAG_ONE;
    } else if (op->key->kind == REGISTER && chance(60)) {
        op->wait = between(1, 3 * SECOND);
        op->m.flags |= FLAG_WATCH;
        if (op->key->etag[0] && chance(700)) {
            op->m.condition = IF_MATCH;
            op->m.ballot = (struct ballot){0, op->key->etag[0], op->key->etag[1]};
        } else {
            op->m.condition = IF_ABSENT;
        }
    }
}

/* What a proxy's clock shows: it is right, or as late as those of the nodes are. */
static uint64_t proxy_time(void)
{
    uint64_t time = WALL_AT_START + w.now;
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.hosts[i].node && w.hosts[i].node->has_lease)
            time = min_u64(time, w.hosts[i].node->clock);
    return time;
}

/* None, one without a time, or one whose time is right, behind, or ahead. */
static void op_choose_retry_key(struct op *op)
{
    uint64_t time = proxy_time(), dice = w.over ? 900 : below(1000);
    unsigned serial = (unsigned)chance_u64();
    if (dice < 150)
        return;
    if (dice < 200)
        time -= below(sim_memory);
    else if (dice < 300)
        time += below(100 * MS);
    else if (dice < 400)
        op->first_try = time;
    if (dice >= 300 && dice < 500)
        snprintf(op->retry_key, sizeof op->retry_key, "%08x-7dec-11d0", serial);
    else
        snprintf(op->retry_key, sizeof op->retry_key, "%" PRIu64 ".%03" PRIu64 "-%08x",
                 time / SECOND, time % SECOND / MS, serial);
}

static void client_begins(struct client *c)
{
    if (w.over && !w.last_reads) {
        w.clients_busy--;
        return;
    }
    struct op *op = c->op = allocate(sizeof *op);
    op->client = c;
    op->key = &w.keys[w.over ? --w.last_reads % w.keys_count : below(w.keys_count)];
    if (w.plan.tombstones && !w.over && (w.now / (4 * SECOND) + (uint64_t)(op->key - w.keys)) % 3)
        op->key = &w.keys[0]; /* others are left alone for a while */
    if (w.plan.crowded && w.healed && !w.over)
        op->key = &w.keys[0];
    op->seen.start = w.now;
    op->seen.client = c->name;
    if (op->key->kind == LISTED && chance(400)) {
        op->listing = true;
        op->m.type = M_LIST;
    } else if (w.over && op->key->kind == REGISTER && chance(400)) {
        op->m.function = DO_PUT;
        op->seen.kind = HISTORY_PUT;
        op_value(op, false);
    } else if (!w.over && op->key->ops_count < OPS_MAX && chance(550)) {
        op_choose_write(op);
    } else {
        op_choose_read(op);
    }
    op->m.key_bytes = (uint16_t)strlen(op->key->name);
    op->m.partition = key_partition(op->key->name, op->m.key_bytes);
    if (!(op->m.flags & FLAG_ONE))
        op_choose_retry_key(op);
    op->forgets = chance(500);
    op_send(op);
}

/* A part of a page: its keys are in order, and after those of the parts before. */
static void listing_page_part(struct op *op, const struct message *m)
{
    struct bytes list = message_value(m);
    const struct listed *l;
    for (size_t at = 0; (l = list_next(&list, &at));) {
        struct listed_key t = {{0}, l->modified, l->write_id, l->expiry, l->value_bytes};
        memcpy(t.name, l->key, min_u64(l->key_bytes, sizeof t.name - 1));
        const struct listed_key *so_far = (const struct listed_key *)op->found.data;
        size_t count = op->found.count / sizeof t;
        const void *before = count ? (const void *)so_far[count - 1].name : op->after.data;
        size_t before_bytes = count ? strlen(before) : op->after.count;
        if (key_compare(before, before_bytes, l->key, l->key_bytes) >= 0)
            violation("a listing has %s out of order", t.name);
        bytes_append(&op->found, &t, sizeof t);
    }
}

/* What a page says of one key: that it was absent at some moment of the page, or that it was there
 * with that ETag. The latter is in the history as a DELETE whose condition "absent" was not met. */
static void listing_observe(const struct op *op, struct key *k, const struct listed_key *t)
{
    struct history_op seen = {.kind = HISTORY_GET, .outcome = HISTORY_REJECTED};
    seen.start = op->page_start;
    seen.end = w.now;
    seen.client = op->client->name;
    if (t) {
        seen.kind = HISTORY_DELETE;
        seen.condition = HISTORY_IF_ABSENT;
        seen.etag[0] = t->modified;
        seen.etag[1] = t->write_id;
        key_learns(k, t->modified, t->write_id, t->value_bytes, t->expiry);
    }
    if (k->ops_count < OPS_MAX + CLIENTS_MAX)
        *history_add(k) = seen;
}

/* Every key between the page's ends is on it, or was absent. Then comes the next page. */
static void listing_answered(struct op *op, const struct message *m)
{
    if (m->status != 200) {
        op_end(op, false);
        return;
    }
    listing_page_part(op, m);
    const struct listed_key *found = (const struct listed_key *)op->found.data;
    size_t count = op->found.count / sizeof *found;
    bool more = m->flags & FLAG_MORE;
    if (more && !count)
        violation("a listing's page was empty, and not the last");
    for (unsigned i = 0; i < w.keys_count; i++) {
        struct key *k = &w.keys[i];
        const struct listed_key *t = NULL;
        for (size_t j = 0; j < count && !t; j++)
            t = strcmp(found[j].name, k->name) == 0 ? &found[j] : NULL;
        bool within = key_compare(k->name, strlen(k->name), op->after.data, op->after.count) > 0 &&
                      (!more || strcmp(k->name, found[count - 1].name) <= 0);
        if (k->kind == LISTED && within)
            listing_observe(op, k, t);
        else if (t)
            violation("a listing has %s, which is not within its page", k->name);
    }
    if (!more) {
        op_end(op, false);
        return;
    }
    bytes_set(&op->after, found[count - 1].name, strlen(found[count - 1].name));
    op_send(op);
}

static void client_event(const struct event *e)
{
    struct client *c = e->data;
    if (e->bytes != c->serial)
        return;
    if (e->type == CLIENT)
        client_begins(c);
    else if (e->type == RETRY)
        op_send(c->op);
    else
        op_open(c->op); /* TIMEOUT */
}

/* === 8 Faults ================================================================================= */

static struct host *host_with(bool up)
{
    unsigned start = (unsigned)below(w.hosts_count);
    for (unsigned i = 0; i < w.hosts_count; i++) {
        struct host *h = &w.hosts[(start + i) % w.hosts_count];
        if (h->used && !h->off && !h->far && (h->node != NULL) == up)
            return h;
    }
    return NULL;
}

enum { /* states: of the members of the old and of the new ring */
       VOTERS = 1u << MEMBER_UP | 1u << MEMBER_LEAVING,
       TARGET = 1u << MEMBER_UP | 1u << MEMBER_JOINING,
};

/* The hosts' disks that hold members of a view, if `but` loses its own. */
static uint64_t members_kept(const struct view *v, const struct host *but)
{
    uint64_t kept = 0;
    for (uint32_t i = 0; i < v->members_count; i++)
        for (unsigned j = 0; j < w.hosts_count; j++) {
            const struct host *h = &w.hosts[j];
            if (h->id == v->members[i].id && h != but && !h->disk_flipped && !h->far && !h->deaf)
                kept |= UINT64_C(1) << i;
        }
    return kept;
}

static struct host *host_of_disk(uint64_t id)
{
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.hosts[i].id == id && !w.hosts[i].far && !w.hosts[i].disk_flipped)
            return &w.hosts[i];
    return NULL;
}

/* Whether a majority of the owners of each partition, and of all, keeps its disk. */
static bool ring_keeps(const struct view *v, unsigned states, uint64_t kept)
{
    struct ring ring;
    uint64_t members = view_members(v, states);
    bool keeps = majority(kept, members);
    ring_place(&ring, v->members, v->members_count, members, v->replicas);
    for (unsigned p = 0; p < PARTITIONS; p++)
        keeps &= majority(kept, ring.sets[p]);
    return keeps;
}

/* Whether this node, by the heartbeats it has, may end the transition. */
static bool joiners_are_complete(const struct node *n)
{
    uint64_t joiners = view_members(n->view, 1u << MEMBER_JOINING) & ~self_bit(n);
    bool complete = !(joiners & ~live_members(n));
    for (unsigned p = 0; p < PARTITIONS; p++)
        complete &= !(n->owners[C_NEW][p] & joiners & ~complete_members(n, p));
    return complete;
}

static uint32_t count(uint64_t members)
{
    return (uint32_t)__builtin_popcountll(members);
}

/* The members that have the view durably. */
static uint64_t members_knowing(const struct view *v)
{
    uint64_t knowing = 0;
    for (uint32_t i = 0; i < v->members_count; i++)
        for (unsigned j = 0; j < w.hosts_count; j++) {
            const struct node *n = w.hosts[j].node;
            if (n && n->id == v->members[i].id && n->view && n->view->epoch == v->epoch &&
                n->log.durable >= n->view_lsn)
                knowing |= UINT64_C(1) << i;
        }
    return knowing;
}

/* How many members the smaller of a view's rings has, without those that are being drained, and at most
 * the number of copies. */
static uint64_t ring_least(const struct view *v)
{
    uint64_t before = view_members(v, VOTERS), after = view_members(v, TARGET);
    for (unsigned i = 0; i < w.hosts_count; i++) {
        const struct node *n = w.hosts[i].node;
        for (uint32_t j = 0; n && n->view && j < v->members_count; j++)
            if (n->view->epoch == v->epoch && n->member_peer[j]->leave)
                after &= ~(UINT64_C(1) << j);
    }
    return min_u64(v->replicas, min_u64(count(before), count(after)));
}

/* Machines: those that lost theirs since the cluster was whole are fewer than half of the copies,
 * however often each of them does. It is whole when the newest view is stable, each of its members is
 * there, and a majority of them knows it. */
static bool machines_allow(const struct view *v, struct host *but)
{
    uint64_t damaged = 0, least = REPLICAS_MAX, all = view_members(v, 1u << MEMBER_UP);
    bool whole = count(all) == v->members_count && members_kept(v, NULL) == all &&
                 majority(members_knowing(v), all);
    for (unsigned i = 0; i < w.hosts_count; i++) {
        struct host *h = &w.hosts[i];
        h->damaged &= !whole || h->disk_flipped || h->far || h->deaf;
        damaged += h->damaged || h == but;
    }
    w.whole = whole ? v->epoch : w.whole;
    for (uint64_t e = max_u64(w.whole, 1); e <= v->epoch; e++)
        least = min_u64(least, ring_least(w.views[e - 1]));
    return 2 * damaged < least;
}

/* Rings: what counts is the newest view that any node has: all that was acknowledged is at a majority of
 * its old ring's owners, so these decide. The new ring's do only when somebody may be about to end the
 * transition: then a joiner's last heartbeat counts. And another host must know that view. */
static bool rings_allow(const struct view *v, const struct host *but)
{
    uint64_t kept = members_kept(v, but);
    bool known = false, may_end = w.deciding >= v->epoch;
    for (unsigned i = 0; i < w.hosts_count; i++) {
        const struct node *n = w.hosts[i].node;
        if (!n || !n->view || n->view->epoch != v->epoch)
            continue;
        known |= &w.hosts[i] != but && n->log.durable >= n->view_lsn;
        may_end |= joiners_are_complete(n);
    }
    return known && ring_keeps(v, VOTERS, kept) && (!may_end || ring_keeps(v, TARGET, kept));
}

/* Whether a host may lose its disk, by what README promises: either of two will do. */
static bool may_lose_a_disk(struct host *but)
{
    const struct view *v = newest_view();
    if (!v)
        return w.plan.expects; /* nobody has anything yet */
    bool may = !w.gone_count && (machines_allow(v, but) || rings_allow(v, but));
    but->damaged |= may;
    return may;
}

static void fault_cut(void)
{
    unsigned a = (unsigned)below(w.hosts_count), b = (unsigned)below(w.hosts_count);
    uint64_t until = w.now + below(3 * w.plan.lease);
    if (chance(300)) { /* one side from the other */
        uint64_t side = chance_u64();
        for (unsigned i = 0; i < w.hosts_count; i++)
            for (unsigned j = 0; j < w.hosts_count; j++)
                if ((side >> i & 1) != (side >> j & 1))
                    w.cut_until[i][j] = until;
        trace(NULL, "the network is split: %" PRIx64, side % (1u << w.hosts_count));
        return;
    }
    bool both = chance(500);
    w.cut_until[a][b] = until;
    if (both)
        w.cut_until[b][a] = until;
    trace(NULL, "cut from h%u to h%u%s", a, b, both ? " and back" : "");
}

static void host_down(struct host *h, uint64_t time)
{
    host_crash(h);
    event_at(w.now + time, UP, h, NULL, 0);
}

/* Flips a bit of a live record, but not in the last batch: that would count as torn. */
static void fault_flip(struct host *h)
{
    for (int tries = 0; tries < 40; tries++) {
        const struct partition *p = &h->node->partitions[below(PARTITIONS)];
        const struct entry *e = p->count ? p->entries[below(p->count)] : NULL;
        if (!e || !is_live(e->flags) || e->lsn + e->record_bytes > h->disk_last)
            continue;
        uint64_t at = e->lsn + below(e->record_bytes);
        h->disk[at] ^= (uint8_t)(1 << below(8));
        h->disk_flipped = true;
        trace(h, "a bit of the record of %.*s is flipped", e->key_bytes, (const char *)e->key);
        return;
    }
}

/* The disk is taken out, and an empty one put in; or the one taken out comes back: with it, the node
 * that was there before, at its address. */
static void fault_swap(struct host *h)
{
    struct host *now = allocate(sizeof *now), *old = h->aside;
    host_crash(h);
    trace(h, old ? "has its old disk again" : "its disk is put aside");
    *now = *h;
    h->disk = NULL;
    h->id = 0;
    drive_clear(h);
    if (old) {
        h->disk = old->disk, h->id = old->id, h->disk_bytes = old->disk_bytes;
        h->disk_start = old->disk_start, h->disk_first = old->disk_first;
        h->disk_synced = old->disk_synced, h->disk_last = old->disk_last;
        h->disk_taken = old->disk_taken;
        free(old);
        free(now->disk);
        free(now);
        now = NULL;
    }
    h->aside = now;
    event_at(w.now + below(2 * w.plan.lease), UP, h, NULL, 0);
}

/* `to` has the disk of `from`, as that is on disk now. */
static void drive_copy(struct host *to, const struct host *from)
{
    drive_clear(to);
    to->disk = memcpy(allocate(from->disk_bytes), from->disk, from->disk_bytes);
    to->disk_bytes = from->disk_bytes, to->disk_start = from->disk_start;
    to->disk_first = from->disk_first, to->disk_synced = from->disk_synced;
    to->disk_last = from->disk_last, to->disk_taken = from->disk_taken;
}

/* Whether all others can distinguish the copy from what was written since: they are members, all run, and each
 * has a heartbeat of this process that says that its log reaches further. */
static bool copy_is_known(const struct host *h)
{
    for (unsigned i = 0; i < w.hosts_count; i++) {
        const struct host *o = &w.hosts[i];
        if (o->off || o == h)
            continue;
        if (o->copied || !o->node || !o->serves || o->node->self < 0 || !o->node->stable ||
            node_epoch(o->node) != newest_view()->epoch)
            return false;
        int index = member_index(o->node->view, h->id);
        const struct peer *p = index < 0 ? NULL : o->node->member_peer[index];
        if (!p || p->boot != h->node->boot || p->durable <= h->copy->disk_synced)
            return false;
    }
    return true;
}

static struct host *copied_host(void)
{
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.hosts[i].copied && !w.hosts[i].off)
            return &w.hosts[i];
    return NULL;
}

static bool copies_run(void)
{
    return copied_host() || w.now < w.copies_until;
}

/* A copy is made; later, once at a time, the disk is that copy again. */
static void fault_restore(struct host *h)
{
    if (copies_run())
        return;
    if (!h->copy || h->copy_id != h->id || !copy_is_known(h)) {
        h->copy = h->copy ? h->copy : allocate(sizeof *h->copy);
        drive_copy(h->copy, h);
        h->copy_id = h->id;
        trace(h, "its disk is copied, up to %" PRIu64, h->disk_synced);
    } else if (may_lose_a_disk(h)) {
        host_crash(h);
        trace(h, "its disk is the copy again, up to %" PRIu64, h->copy->disk_synced);
        drive_copy(h, h->copy);
        h->copied = RULE(32); /* without it nobody notices */
        h->id = h->copied ? 0 : h->id;
        event_at(w.now + below(2 * w.plan.lease), UP, h, NULL, 0);
    }
}

static void host_stop_twin(struct host *twin)
{
    host_crash(twin);
    drive_clear(twin);
    twin->copied = false;
    twin->off = true;
    w.copies_until = w.now + w.plan.delay_far + SECOND;
}

static void fault_twin(const struct host *h)
{
    struct host *twin = copied_host();
    if (twin && twin->index >= (int)w.plan.hosts) {
        host_stop_twin(twin);
    } else if (!copies_run() && h->copy && h->copy_id == h->id && copy_is_known(h) &&
               w.hosts_count < HOSTS_MAX) {
        twin = &w.hosts[w.hosts_count++];
        drive_copy(twin, h->copy);
        twin->copied = twin->used = true;
        trace(twin, "begins with a copy of the disk of h%d", h->index);
        host_start(twin);
    }
}

static void fault_drain(struct host *by)
{
    const struct view *v = by->node->view;
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.hosts[i].disk_flipped || w.hosts[i].far || w.hosts[i].deaf)
            return; /* nobody knows yet that its disk is lost */
    if (!v || by->node->self < 0)
        return;
    int index = (int)below(v->members_count);
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.hosts[i].id == v->members[index].id) {
            host_time(by);
            if (!node_drain(by->node, index))
                return;
            w.hosts[i].leaves = v->members_count > w.plan.replicas && chance(500);
            trace(by, "is asked to drain h%u", i);
            host_settle(by);
            return;
        }
}

/* A drained host is switched off, and its disk thrown away. */
static void host_off(struct host *h)
{
    unsigned others = 0; /* they can hold all copies without it */
    for (unsigned i = 0; i < w.hosts_count; i++)
        others += &w.hosts[i] != h && w.hosts[i].used && !w.hosts[i].off && !w.hosts[i].small;
    if (w.healed || others < w.plan.replicas || !may_lose_a_disk(h))
        return;
    host_wipe(h);
    h->off = true;
    h->id = 0;
}

/* Disks are lost for good, as many as may be: not a majority of the voters', nor those of all that know
 * the newest view. What a majority of a partition's owners, of each ring, keeps must be there again. One
 * of them may come back after all, when others go by without it. */
static void fault_loss(void)
{
    const struct view *v = newest_view();
    uint64_t side = w.plan.lose_two
                        ? UINT64_C(1) << below(w.hosts_count) | UINT64_C(1) << below(w.hosts_count)
                        : chance_u64();
    uint64_t kept = 0, known = 0, excused = 0;
    bool may_end = w.deciding >= v->epoch, back = chance(300);
    for (uint32_t i = 0; i < v->members_count; i++) {
        const struct host *h = host_of_disk(v->members[i].id);
        if (!h || side >> h->index & 1)
            continue;
        kept |= UINT64_C(1) << i;
        if (h->node && h->node->view && h->node->view->epoch == v->epoch)
            may_end |= joiners_are_complete(h->node);
    }
    known = members_knowing(v) & kept & view_members(v, VOTERS);
    if (w.gone_count || !known || !majority(kept, view_members(v, VOTERS)) ||
        (may_end && !majority(kept, view_members(v, TARGET))))
        return;
    struct ring before, after;
    ring_place(&before, v->members, v->members_count, view_members(v, VOTERS), v->replicas);
    ring_place(&after, v->members, v->members_count, view_members(v, TARGET), v->replicas);
    for (unsigned p = 0; p < PARTITIONS; p++) {
        w.excused[p] =
            !majority(kept, before.sets[p]) || (may_end && !majority(kept, after.sets[p]));
        excused += w.excused[p];
    }
    trace(NULL, "disks are lost for good, %" PRIx64 " keep theirs; excused: %" PRIu64 " partitions",
          kept, excused);
    for (uint32_t i = 0; i < v->members_count; i++)
        if (!(kept >> i & 1))
            w.gone[w.gone_count++] = v->members[i].id;
    for (unsigned j = 0; j < w.hosts_count; j++) {
        struct host *h = &w.hosts[j];
        if (!(side >> j & 1) || !h->id || h->aside || h->off)
            continue;
        if (back) {
            host_down(h, below(8 * w.plan.lease));
            back = false;
            continue;
        }
        host_wipe(h);
        h->off = chance(500);
        if (!h->off)
            event_at(w.now + below(8 * w.plan.lease), UP, h, NULL, 0);
    }
    w.words_after = w.now + below(4 * w.plan.lease);
}

/* An operator declares the disks lost, to one host or another, until no view has them any more. */
static void words(void)
{
    struct host *h = random_host();
    uint64_t lost = 0;
    if (!w.gone_count || !h || w.now < w.words_after || h->node->self < 0 || !h->node->has_lease)
        return;
    for (unsigned i = 0; i < w.gone_count; i++) {
        int index = member_index(h->node->view, w.gone[i]);
        w.gone[i] = host_of(w.gone[i]) ? 0 : w.gone[i]; /* it is back */
        if (index >= 0 && h->node->voters >> index & 1 && w.gone[i])
            lost |= UINT64_C(1) << index;
    }
    if (!lost)
        return;
    host_time(h);
    bool accepted = node_lose(h->node, lost);
    trace(h, "is asked to declare %" PRIx64 " lost: %d", lost, accepted);
    host_settle(h);
}

static void fault_clock(struct host *h, bool far)
{
    int64_t most = (int64_t)w.plan.skew;
    h->clock_error = (int64_t)below(2 * w.plan.skew + 1) - most;
    if (far) {
        h->clock_error = (int64_t)(between(16, 60) * SECOND) * (chance(700) ? 1 : -1);
        h->far = true;
    }
    trace(h, "its clock is now %.3f s wrong", (double)h->clock_error / 1e6);
}

/* Nothing is lost by it: a node goes by its own time. */
static void fault_jump(struct host *h)
{
    uint64_t dice = below(10), until = w.now + 4 * SECOND;
    if (dice < 5)
        h->hour_until = until;
    for (unsigned i = 0; i < HOSTS_MAX && dice >= 5; i++)
        if (dice < 8)
            w.hosts[i].hour_until = until;
        else if (dice < 9)
            w.hosts[i].clock_drift = i % 2 ? .01 : -.01;
    if (dice == 9 && !w.wall_error)
        w.wall_error = -120 * (int64_t)SECOND;
    trace(dice < 5 ? h : NULL, "wall clocks jump: %" PRIu64, dice);
}

static void fault_join(void)
{
    for (uint64_t count = 1 + below(2); count && w.hosts_count < HOSTS_MAX; count--) {
        struct host *h = &w.hosts[w.hosts_count++];
        h->small = w.plan.weight[FULL] && chance(300);
        h->disk_size = ROOM_RECORDS + below(AHEAD);
        h->full_until = h->small ? UINT64_MAX : 0;
        host_start(h);
    }
}

static void fault_happens(enum fault fault)
{
    struct host *h = host_with(true);
    if (!h || !h->serves)
        return;
    if (fault == CRASH && copies_run())
        return; /* it would forget which process it follows; a copy that nobody could detect would seem newer */
    uint64_t lease = w.plan.lease;
    switch (fault) {
    case CRASH:
        host_down(h, w.plan.restart_at_once ? below(10 * MS) : 10 * MS + below(2 * lease));
        break;
    case PAUSE: {
        uint64_t time = below(3 * lease);
        if (h->paused_until > w.now)
            break;
        h->paused_until = w.now + time;
        h->paused_time += time;
        trace(h, "stops for %.3f s", (double)time / 1e6);
        break;
    }
    case CUT:
        fault_cut();
        break;
    case DEAF:
        h->deaf_until = w.now + below(5 * lease);
        trace(h, "is deaf");
        break;
    case STALL:
        h->stalled_until = w.now + below(2 * lease);
        trace(h, "its disk stalls");
        break;
    case CLOCK:
        fault_clock(h, false);
        break;
    case FAR_CLOCK:
        if (may_lose_a_disk(h))
            fault_clock(h, true);
        break;
    case JUMP:
        fault_jump(h);
        break;
    case LIE:
        fault_lie();
        break;
    case JOIN:
        fault_join();
        break;
    case DRAIN:
        fault_drain(h);
        break;
    case AWAY:
        host_down(h, w.plan.away ? below(w.plan.away)
                                 : w.plan.evict_after + below(w.plan.evict_after) + 2 * lease);
        break;
    case WIPE:
        if (w.hosts[w.wiped].used && !w.hosts[w.wiped].off && chance(700))
            h = &w.hosts[w.wiped]; /* again */
        if (may_lose_a_disk(h)) {
            w.wiped = (unsigned)h->index;
            host_wipe(h);
            event_at(w.now + below(4 * lease), UP, h, NULL, 0);
        }
        break;
    case MOVE:
        for (unsigned i = 0, all = chance(300); i < w.hosts_count; i++) {
            struct host *moved = &w.hosts[i];
            if (!moved->used || moved->off || (!all && moved != h))
                continue;
            host_down(moved, 10 * MS + below(2 * lease));
            snprintf(moved->address, sizeof moved->address, "h%u.%u", i, ++moved->moves);
            trace(moved, "gets another address");
        }
        break;
    case LOSS:
        fault_loss();
        break;
    case SWAP:
        if (may_lose_a_disk(h))
            fault_swap(h);
        break;
    case FLIP:
        for (unsigned i = 0; i < w.hosts_count; i++)
            if (w.hosts[i].disk_flipped && w.hosts[i].node)
                h = &w.hosts[i]; /* always the same */
        for (unsigned i = 0; i < w.hosts_count; i++)
            if (w.hosts[i].disk_flipped && !h->disk_flipped)
                return; /* for two of them, see M4 */
        if (h->disk_flipped || may_lose_a_disk(h))
            fault_flip(h);
        break;
    case BLACKOUT:
        for (unsigned i = 0; i < w.hosts_count; i++)
            if (w.hosts[i].node)
                host_down(&w.hosts[i], 10 * MS + below(lease));
        break;
    case FULL:
        if (h->small)
            break;
        h->full_until = w.now + below(chance(500) ? 4 * lease : 60 * SECOND);
        h->disk_size = h->disk_taken - h->disk_start + below(AHEAD);
        trace(h, "its disk is full");
        break;
    case HANG:
        h->stalled_until = w.now + below(2 * lease);
        event_at(h->stalled_until - 1, DIE, h, NULL, 0);
        trace(h, "its disk hangs");
        break;
    case RESTORE:
        fault_restore(h);
        break;
    case TWIN:
        fault_twin(h);
        break;
    case SLOW:
        h->slow_until = w.now + below(4 * lease);
        trace(h, "its network is slow");
        break;
    default:
        break;
    }
}

static void fault_event(void)
{
    if (w.now >= w.faults_until)
        return;
    unsigned all = 0;
    for (int i = 0; i < FAULT_KINDS; i++)
        all += w.plan.weight[i];
    uint64_t dice = below(all);
    for (int i = 0; all && i < FAULT_KINDS; i++) {
        if (dice < w.plan.weight[i]) {
            fault_happens((enum fault)i);
            break;
        }
        dice -= w.plan.weight[i];
    }
    event_at(w.now + 1 + below(2 * w.plan.fault_pause), FAULT, NULL, NULL, 0);
}

/* All faults end. Wall clocks that went back together stay there. */
static void heal(void)
{
    trace(NULL, "all faults end");
    w.healed = true;
    w.plan.loss = w.plan.twice = 0;
    w.plan.late = 0;
    memset(w.cut_until, 0, sizeof w.cut_until);
    for (unsigned i = 0; i < w.hosts_count; i++) {
        struct host *h = &w.hosts[i];
        h->deaf_until = h->slow_until = h->stalled_until = 0;
        h->full_until = h->small ? UINT64_MAX : 0;
        if (w.plan.deaf_for_good && h->node && may_lose_a_disk(h)) {
            h->deaf = true;
            h->deaf_until = UINT64_MAX;
            w.plan.deaf_for_good = false;
            trace(h, "is deaf for good");
        }
        if (h->copied && h->index >= (int)w.plan.hosts)
            host_stop_twin(h);
        if (h->far)
            h->clock_error = 0;
        h->far = false;
        h->hour_until = 0;
        if (h->used && !h->off && !h->node)
            host_start(h);
        if (h->node)
            host_seeds(h); /* names of --join mean the addresses of now */
    }
}

/* === 9 Judgement ============================================================================== */

static const char *host_not_at_rest(const struct host *h, char why[200])
{
    const struct node *n = h->node;
    const struct view *v = newest_view();
    unsigned rounds = 0, syncs = 0;
    for (int i = 0; i < ROUND_BUCKETS; i++)
        for (const struct round *r = LIST_FIRST(&n->by_id[i]); r; r = LIST_NEXT(r, by_id))
            rounds++;
    for (int i = 0; i < SYNCS_MAX; i++)
        syncs += n->syncs[i].due != 0;
    const char *what = NULL;
    if (h->paused_until + w.plan.lease > w.now && h->paused_until)
        what = "was stopped";
    else if (!n->view || n->view->epoch != v->epoch)
        what = "has an old view";
    else if (n->self < 0)
        what = "is no member";
    else if (!n->stable)
        what = "is in a transition";
    else if (!n->has_lease)
        what = "has no lease";
    else if (rounds && w.over)
        what = "has rounds";
    else if (STAILQ_FIRST(&n->listings) && w.over)
        what = "has listings";
    else if (syncs && w.over)
        what = "has syncs";
    else if (n->repairs && w.over)
        what = "has repairs";
    else if (LIST_FIRST(&n->by_key[VIEWS_PARTITION]))
        what = "proposes a view";
    else if (h->tries && w.over)
        what = "has requests";
    else if (log_end(n) - n->log.first > 2 * n->log.live_bytes + 2 * CLEAN_SLACK_BYTES)
        what = "has a log full of garbage";
    if (!what)
        return NULL;
    snprintf(why, 200, "h%d %s", h->index, what);
    return why;
}

/* The next live entry of a partition. */
static const struct entry *live_entry(const struct partition *p, uint32_t *i)
{
    while (*i < p->count && !is_live(p->entries[*i]->flags))
        ++*i;
    return *i < p->count ? p->entries[(*i)++] : NULL;
}

static const char *unequal(const struct host *a, const struct host *b, unsigned partition,
                           char why[200])
{
    const struct partition *p = &a->node->partitions[partition];
    const struct partition *q = &b->node->partitions[partition];
    uint32_t i = 0, j = 0;
    const struct entry *e, *f;
    do {
        e = live_entry(p, &i);
        f = live_entry(q, &j);
        if (!e != !f || (e && (key_compare(e->key, e->key_bytes, f->key, f->key_bytes) != 0 ||
                               !ballot_equal(e->accepted, f->accepted)))) {
            snprintf(why, 200, "h%d and h%d differ in %.*s (partition %u)", a->index, b->index,
                     e ? e->key_bytes : f->key_bytes, (const char *)(e ? e->key : f->key),
                     partition);
            return why;
        }
    } while (e);
    if (p->digest != q->digest) {
        snprintf(why, 200, "h%d and h%d have different digests of equal partitions", a->index,
                 b->index);
        return why;
    }
    return NULL;
}

/* Why the cluster has not come to rest, or null. */
static const char *not_at_rest(char why[200])
{
    const struct view *v = newest_view();
    const char *found = NULL;
    struct node *any = NULL;
    if (!v)
        return "there is no view yet";
    for (unsigned i = 0; i < w.hosts_count && !found; i++)
        if (w.hosts[i].node && !w.hosts[i].deaf)
            found = host_not_at_rest(&w.hosts[i], why), any = w.hosts[i].node;
    for (uint32_t i = 0; i < v->members_count && !found; i++)
        if (!host_of(v->members[i].id)) {
            snprintf(why, 200, "a member of the view is no more");
            found = why;
        }
    for (unsigned p = 0; p < PARTITIONS && !found && w.over; p++) {
        const struct host *first = NULL;
        for (uint32_t i = 0; i < v->members_count && !found; i++) {
            const struct host *h = host_of(v->members[i].id);
            bool owner = partition_owners(any, (uint16_t)p) >> i & 1;
            if (owner && first)
                found = unequal(first, h, p, why);
            else if (owner)
                first = h;
            uint32_t at = 0;
            if (!owner && live_entry(&h->node->partitions[p], &at)) {
                snprintf(why, 200, "h%d holds partition %u and is no owner", h->index, p);
                found = why;
            }
        }
    }
    return found;
}

/* A tombstone that no owner needs must be forgotten, however much goes on in its partition. */
static void judge_forgetting(const struct host *h)
{
    for (unsigned i = 0; i < PARTITIONS; i++) {
        const struct partition *p = &h->node->partitions[i];
        for (uint32_t j = 0; j < p->count; j++) {
            const struct entry *e = p->entries[j];
            if (e->flags & FLAG_TOMBSTONE && e->accepted.time + FORGET_TIME < h->node->clock &&
                ballot_compare(e->accepted, p->gc_floor) > 0)
                violation("h%d: the tombstone of %.*s is %.3f s old, and still needed", h->index,
                          e->key_bytes, (const char *)e->key,
                          (double)(h->node->clock - e->accepted.time) / 1e6);
        }
    }
}

/* Rounds end with their requests. */
static void judge_rounds(const struct host *h)
{
    for (int i = 0; h->node && i < ROUND_BUCKETS; i++)
        for (const struct round *r = LIST_FIRST(&h->node->by_id[i]); r; r = LIST_NEXT(r, by_id))
            if (STAILQ_EMPTY(&r->in_flight))
                violation("h%d has a round of %.*s that nobody waits for", h->index, r->key_bytes,
                          (const char *)r->key);
}

static void judge_digests(const struct host *h)
{
    uint64_t keys = 0;
    for (unsigned p = 0; p < PARTITIONS; p++) {
        uint64_t digest = 0;
        uint32_t i = 0;
        const struct entry *e;
        while ((e = live_entry(&h->node->partitions[p], &i))) {
            uint64_t of[3] = {e->accepted.epoch, e->accepted.time, e->accepted.node};
            digest ^= XXH3_64bits_withSeed(e->key, e->key_bytes, XXH3_64bits(of, sizeof of));
            keys++;
        }
        if (digest != h->node->partitions[p].digest)
            violation("h%d: a digest is not that of its keys", h->index);
    }
    if (keys != h->node->keys)
        violation("h%d counts %" PRIu64 " keys, and has %" PRIu64, h->index, h->node->keys, keys);
}

/* A key of consistency=one: what was acknowledged, or something later, is at some owner, and live
 * records are equal at all; or it was deleted and forgotten. (Where disks are lost or partitions move,
 * a repair by a quorum that never saw the write may be all that is left.) */
static void judge_one_at_end(const struct key *k)
{
    const struct view *v = newest_view();
    uint16_t partition = key_partition(k->name, strlen(k->name));
    bool found = !k->acked.time || owners_changed();
    for (uint32_t i = 0; i < v->members_count; i++) {
        const struct partition *p = &host_of(v->members[i].id)->node->partitions[partition];
        const struct entry *e = entry_find(p, k->name, strlen(k->name));
        bool forgotten = ballot_compare(p->promise_floor, k->acked) >= 0 || !k->acked_put;
        found |=
            e && e->flags & FLAG_RECORD ? ballot_compare(e->accepted, k->acked) >= 0 : forgotten;
    }
    if (!found)
        violation("%s: a write of consistency=one was acknowledged and is lost", k->name);
}

static void judge(void)
{
    char why[HISTORY_WHY_BYTES];
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.hosts[i].node) {
            judge_digests(&w.hosts[i]);
        }
    for (unsigned i = 0; i < w.keys_count; i++) {
        struct key *k = &w.keys[i];
        if (w.excused[key_partition(k->name, strlen(k->name))])
            continue;
        if (k->kind == ONE)
            judge_one_at_end(k);
        enum history_verdict verdict = (k->kind == ONE ? history_check_names : history_check)(
            k->ops, k->ops_count, why, sizeof why);
        if (verdict == HISTORY_VIOLATED)
            violation("the history of %s is not linearizable\n%s", k->name, why);
        w.histories++;
        w.undecided += verdict == HISTORY_GAVE_UP;
        if (verdict == HISTORY_GAVE_UP && !quiet_failures)
            printf("seed %" PRIu64 " (%s): the history of %s, %zu operations, is undecided\n",
                   w.seed, w.mix, k->name, k->ops_count);
    }
}

/* === 10 One run =============================================================================== */

struct mix {
    const char *name;
    unsigned weight[FAULT_KINDS];
    void (*shape)(struct plan *p); /* what else is special about it */
};

/* Tombstones are forgotten soon, nobody is evicted, and frames may come after that. */
static void shape_forget(struct plan *p)
{
    p->hosts = (unsigned)between(3, 4);
    p->replicas = 3;
    p->lease = between(200, 400) * MS;
    p->evict_after = 60 * SECOND;
    p->away = between(2, 5) * SECOND;
    p->keys = 12;
    p->fault_time = between(12, 20) * SECOND;
    p->late = (unsigned)below(100);
    p->delay_far = between(3, 7) * SECOND;
    p->loss = p->twice = 0;
    p->large = 200;
    p->built_by_joins = false;
    p->tombstones = true;
    sim_memory = between(700, 1200) * MS;
}

/* The same, and partitions move: their promise floors are gone with them. */
static void shape_forget_moves(struct plan *p)
{
    shape_forget(p);
    p->hosts = 4;
    p->echo = 400;
    p->late_repeat = 6 * SECOND;
    p->evict_after = 6 * p->lease; /* after a change is called off nothing begins for so long */
    p->away = 0;
    p->fault_pause = between(500, 2000) * MS;
    sim_memory = between(500, 700) * MS;
}

/* What a node sends while its disk hangs is lost with it. Partitions have few owners. */
static void shape_hangs(struct plan *p)
{
    p->replicas = (unsigned)between(1, 3);
    p->lease = between(300, 600) * MS;
    p->fault_pause = between(50, 300) * MS;
    p->built_by_joins = false;
}

/* Keys are deleted where others are written all the time. */
static void shape_busy(struct plan *p)
{
    shape_forget(p);
    p->fault_time = between(4, 8) * SECOND;
    p->think = between(60, 130) * MS;
    p->crowded = true;
}

/* Minutes go by, and results are kept as long as in the program. */
static void shape_minutes(struct plan *p)
{
    p->fault_time = between(90, 180) * SECOND;
    p->fault_pause = between(1, 4) * SECOND;
    p->late_repeat = 90 * SECOND;
    p->evict_after = 20 * SECOND;
    sim_memory = 60 * SECOND;
}

/* Clocks differ much, and members change all the time. */
static void shape_epochs(struct plan *p)
{
    p->hosts = (unsigned)between(3, 4);
    p->skew = 4 * SECOND;
    p->keys = 2;
    p->lease = between(200, 300) * MS;
    p->evict_after = 4 * p->lease;
    p->loss = 100 + (unsigned)below(200);
    p->fault_pause = between(30, 150) * MS;
}

/* One host is deaf for good: it must be evicted. */
static void shape_deaf(struct plan *p)
{
    p->hosts = 5;
    p->replicas = 3;
    p->built_by_joins = false;
    p->evict_after = 4 * p->lease;
    p->deaf_for_good = true;
}

/* Nodes are back before old frames arrive. */
static void shape_restarts(struct plan *p)
{
    p->hosts = p->replicas = 3;
    p->keys = 1;
    p->delay = 30 * MS;
    p->loss = 0;
    p->lease = SECOND;
    p->fault_pause = 40 * MS;
    p->restart_at_once = true;
    p->built_by_joins = false;
}

/* What a node sent while its disk hung is lost, and it is back before old frames arrive. */
static void shape_amnesia(struct plan *p)
{
    shape_restarts(p);
    p->lease = between(150, 300) * MS;
    p->keys = 2;
}

/* Listings of keys that come and go. */
static void shape_listings(struct plan *p)
{
    p->hosts = (unsigned)between(3, 4);
    p->lease = between(200, 500) * MS;
    p->keys = (unsigned)between(3, 6);
    p->fault_pause = between(30, 200) * MS;
    p->loss = 100;
    p->listed = true;
}

/* Many nodes think that they are the coordinator. */
static void shape_coordinators(struct plan *p)
{
    p->hosts = (unsigned)between(4, 5);
    p->fault_pause = between(30, 150) * MS;
    p->keys = 3;
    p->delay = between(5, 40) * MS;
    p->lease = 3 * p->delay + 200 * MS;
    p->evict_after = 2 * p->lease;
    p->built_by_joins = false;
}

/* More is stored than the disks hold. */
static void shape_full(struct plan *p)
{
    p->keys = (unsigned)between(12, KEYS_MAX);
    p->large = 700;
    p->fault_pause = between(100, 1000) * MS;
}

/* Hosts without data begin at once, in any order, and are stopped and lose their disks meanwhile. */
static void shape_first(struct plan *p)
{
    p->expects = true;
    p->built_by_joins = false;
    p->replicas = (unsigned)between(1, 3);
    p->hosts = (unsigned)between(1, 5);
    p->fault_pause = between(10, 200) * MS;
    p->fault_time = between(2, 8) * SECOND;
}

/* Many disks are lost at once, for good. */
static void shape_lost(struct plan *p)
{
    p->replicas = (unsigned)between(1, 5);
    p->hosts = (unsigned)between(2, 6);
}

/* Two of five, while what is written is at three of them. */
static void shape_lost5(struct plan *p)
{
    p->replicas = p->hosts = 5;
    p->built_by_joins = false;
    p->lose_two = true;
    p->keys = 6;
    p->loss = 350;
    p->think = 5 * MS;
    p->fault_pause = between(30, 150) * MS;
    p->fault_time = 5 * SECOND;
}

/* Disks are lost, the same again and again, with any number of copies. */
static void shape_again(struct plan *p)
{
    p->replicas = (unsigned)between(1, 5);
    p->hosts = (unsigned)between(p->replicas > 2 ? p->replicas : 2, p->replicas + 2);
    p->fault_time = between(6, 16) * SECOND;
    p->fault_pause = between(50, 400) * MS;
    p->large = chance(500) ? 500 : 0;
}

/* Old copies of disks come back, or are at two hosts; no node is evicted that would then forget. */
static void shape_copies(struct plan *p)
{
    p->hosts = (unsigned)between(3, 4);
    p->replicas = 3;
    p->keys = (unsigned)between(2, 4);
    p->lease = between(200, 500) * MS;
    p->evict_after = 60 * SECOND;
    p->fault_pause = between(50, 300) * MS;
    p->fault_time = between(5, 12) * SECOND;
    p->loss = (unsigned)below(200);
    p->built_by_joins = false;
}

static const struct mix mixes[] = {
    {mix_calm, {0}, NULL},
    {"crashes", {[CRASH] = 5, [PAUSE] = 2, [STALL] = 2, [BLACKOUT] = 2, [SLOW] = 1}, NULL},
    {"network", {[CUT] = 5, [DEAF] = 1, [SLOW] = 2, [PAUSE] = 1, [CRASH] = 1}, NULL},
    {"moves", {[JOIN] = 3, [DRAIN] = 3, [CRASH] = 2, [CUT] = 2, [PAUSE] = 1, [STALL] = 1}, NULL},
    {"deaths", {[AWAY] = 3, [WIPE] = 3, [JOIN] = 1, [CRASH] = 2, [CUT] = 1, [PAUSE] = 1}, NULL},
    {"clocks", {[CLOCK] = 4, [FAR_CLOCK] = 2, [CRASH] = 3, [PAUSE] = 2, [CUT] = 1}, NULL},
    {"disks", {[FLIP] = 4, [CRASH] = 3, [STALL] = 3, [FULL] = 3, [BLACKOUT] = 1, [CUT] = 1}, NULL},
    {"full", {[FULL] = 6, [CRASH] = 1, [CUT] = 1, [DRAIN] = 1, [JOIN] = 1}, shape_full},
    {"jumps", {[JUMP] = 3, [CRASH] = 3, [CUT] = 2, [PAUSE] = 1, [JOIN] = 1, [WIPE] = 1}, NULL},
    {"skew", {[CLOCK] = 4, [CUT] = 1, [PAUSE] = 1}, NULL},
    {"forget", {[AWAY] = 3, [CUT] = 3, [DEAF] = 1, [CRASH] = 2, [PAUSE] = 1}, shape_forget},
    {"forgetmoves", {[JOIN] = 2, [DRAIN] = 3, [CUT] = 1}, shape_forget_moves},
    {"hangs", {[HANG] = 6, [CRASH] = 1, [DRAIN] = 3, [JOIN] = 2, [BLACKOUT] = 1}, shape_hangs},
    {"amnesia", {[HANG] = 4, [CRASH] = 1}, shape_amnesia},
    {"listings", {[CUT] = 5, [PAUSE] = 2, [DEAF] = 1, [CRASH] = 3}, shape_listings},
    {"busy", {[CUT] = 1, [CRASH] = 1, [PAUSE] = 1}, shape_busy},
    {"epochs", {[JOIN] = 2, [DRAIN] = 5, [CUT] = 5, [CRASH] = 1, [CLOCK] = 1}, shape_epochs},
    {"deaf", {[CUT] = 1}, shape_deaf},
    {"restarts", {[CRASH] = 1}, shape_restarts},
    {"lost",
     {[LOSS] = 1, [CRASH] = 3, [CUT] = 2, [PAUSE] = 2, [JOIN] = 1, [DRAIN] = 1, [STALL] = 1},
     shape_lost},
    {"addresses",
     {[MOVE] = 5, [CRASH] = 2, [CUT] = 2, [AWAY] = 1, [JOIN] = 1, [WIPE] = 1, [PAUSE] = 1},
     NULL},
    {"first", {[WIPE] = 3, [CRASH] = 5, [CUT] = 2, [PAUSE] = 2, [STALL] = 1}, shape_first},
    {"lost5", {[LOSS] = 1, [CRASH] = 3, [CUT] = 2, [PAUSE] = 2, [STALL] = 1}, shape_lost5},
    {"again",
     {[WIPE] = 12, [SWAP] = 1, [CRASH] = 2, [CUT] = 1, [PAUSE] = 1, [JOIN] = 1, [DRAIN] = 1},
     shape_again},
    {"copies",
     {[RESTORE] = 8, [TWIN] = 2, [CUT] = 4, [DEAF] = 1, [PAUSE] = 2, [CRASH] = 3, [STALL] = 1},
     shape_copies},
    {"coordinators",
     {[CUT] = 8, [DEAF] = 3, [PAUSE] = 3, [JOIN] = 3, [DRAIN] = 3},
     shape_coordinators},
    {"lies",
     {[LIE] = 8, [CRASH] = 2, [CUT] = 2, [WIPE] = 2, [PAUSE] = 1, [JOIN] = 1, [DRAIN] = 1},
     NULL},
    {"minutes",
     {[CRASH] = 4, [PAUSE] = 2, [CUT] = 2, [AWAY] = 2, [JOIN] = 1, [DRAIN] = 1, [STALL] = 1},
     shape_minutes},
    {"all",
     {[CRASH] = 4,
      [PAUSE] = 3,
      [CUT] = 4,
      [DEAF] = 1,
      [STALL] = 2,
      [CLOCK] = 2,
      [JOIN] = 2,
      [DRAIN] = 2,
      [AWAY] = 1,
      [WIPE] = 1,
      [FLIP] = 1,
      [BLACKOUT] = 1,
      [SLOW] = 1,
      [FULL] = 1,
      [FAR_CLOCK] = 1},
     NULL},
};
enum { MIXES = sizeof mixes / sizeof *mixes };

static void plan_make(const struct mix *mix)
{
    struct plan *p = &w.plan;
    bool calm = mix == &mixes[0];
    memcpy(p->weight, mix->weight, sizeof p->weight);
    p->hosts = (unsigned)between(3, chance(200) ? 7 : 5);
    p->replicas = chance(800) ? 3 : chance(500) ? 5 : (unsigned)between(1, 2);
    p->clients = (unsigned)between(3, CLIENTS_MAX);
    p->keys = (unsigned)between(2, chance(300) ? 16 : 6);
    p->echo = (unsigned)below(200);
    p->fault_time = between(3, 10) * SECOND;
    p->fault_pause = between(50, 600) * MS;
    p->loss = calm || chance(400) ? 0 : (unsigned)below(80);
    p->twice = calm ? 0 : (unsigned)below(60);
    p->late = calm ? 0 : (unsigned)below(100);
    p->delay = below(3 * MS);
    p->delay_far = below(chance(500) ? 100 * MS : 2 * SECOND);
    p->sync_time = below(5 * MS);
    p->lease = between(300, 1500) * MS;
    p->evict_after = between(2, 6) * p->lease;
    p->cold = chance(500) ? 0 : (unsigned)below(300);
    p->skew = p->weight[CLOCK] || p->weight[JUMP] ? below(4 * SECOND) : below(100 * MS);
    p->think = between(1, 60) * MS;
    p->late_repeat = chance(500) ? SECOND : 10 * SECOND;
    p->large = chance(300) ? 100 : 0;
    p->built_by_joins = chance(300);
    p->zones = chance(200);
    p->patient = chance(400);
    p->heaped = chance(500);
    sim_memory = chance(700) ? between(3, 8) * SECOND : 60 * SECOND;
    if (mix->shape)
        mix->shape(p);
    bool jumps = p->weight[CLOCK] || p->weight[JUMP];
    p->mortal = !p->weight[FAR_CLOCK] && !p->weight[JUMP] && !p->restart_at_once;
    /* They drift, too, until the last reads: at most 0.1 ms in a second. */
    w.clock_error_max = p->skew + MS + (p->fault_time + 200 * SECOND) / 10000;
    sim_margin = 100 * MS + w.clock_error_max; /* a client's clock is right, but for the first */
    /* A first try comes in time also where the clock is ahead of its key's. */
    uint64_t late = w.clock_error_max + (jumps ? SECOND : 50 * MS);
    sim_memory = max_u64(sim_memory, 2 * sim_margin + late);
    p->think =
        max_u64(p->think, p->clients * p->fault_time / (p->keys * 1500)); /* for the checker */
}

static void keys_make(void)
{
    static const char names[] = "rrrctrcolt";
    for (unsigned i = 0; i < w.plan.keys; i++) {
        struct key *k = &w.keys[w.keys_count++];
        char letter = names[below(sizeof names - 1)];
        k->kind = letter == 'r'   ? REGISTER
                  : letter == 'c' ? COUNTER
                  : letter == 'o' ? ONE
                  : letter == 't' ? MORTAL
                                  : LISTED;
        if (k->kind == MORTAL && !w.plan.mortal)
            k->kind = REGISTER;
        if (i == 0 && w.plan.crowded)
            k->kind = REGISTER;
        if (w.plan.listed)
            k->kind = LISTED;
        if ((k->kind == LISTED || k->kind == ONE) && w.plan.weight[LOSS])
            k->kind = REGISTER;
        unsigned of = w.plan.crowded ? PARTITIONS : w.plan.heaped ? PARTITIONS / 2 : 1, j = 0;
        do
            snprintf(k->name, sizeof k->name, k->kind == LISTED ? "l/%02u-%u" : "k%02u-%u", i, j++);
        while ((w.plan.crowded || k->kind == LISTED) &&
               key_partition(k->name, strlen(k->name)) % of);
    }
}

/* The first view has all hosts, or one, and the others join it. */
static void cluster_begin(void)
{
    struct {
        struct view view;
        struct member members[HOSTS_MAX];
    } first = {{1, chance_u64(), w.plan.replicas, w.plan.hosts}, {{0}}};
    w.hosts_count = w.plan.built_by_joins ? 1 : w.plan.hosts;
    for (unsigned i = 0; i < w.hosts_count; i++)
        host_start(&w.hosts[i]);
    for (unsigned i = 0; i < w.hosts_count; i++) {
        const struct node *n = w.hosts[i].node;
        first.members[i] = (struct member){.id = n->id, .weight = 1, .state = MEMBER_UP};
        memcpy(first.members[i].address, n->self_peer->address, sizeof first.members[i].address);
        memcpy(first.members[i].zone, n->self_peer->zone, sizeof first.members[i].zone);
    }
    if (w.plan.expects)
        return;
    if (w.plan.built_by_joins) {
        node_bootstrap(w.hosts[0].node, w.plan.replicas);
        for (w.hosts_count = 1; w.hosts_count < w.plan.hosts;)
            host_start(&w.hosts[w.hosts_count++]);
        host_settle(&w.hosts[0]);
        return;
    }
    for (unsigned i = 0; i < w.hosts_count; i++) {
        view_adopt(w.hosts[i].node, &first.view);
        host_settle(&w.hosts[i]);
    }
}

static void event_free(const struct event *e)
{
    if (e->type == ARRIVE)
        try_lost(e->data);
    else if (e->type == FRAME)
        free(e->data);
}

static void host_event(struct host *h, const struct event *e)
{
    host_time(h);
    switch (e->type) {
    case TICKS:
        tries_check(h);
        event_at(w.now + TICK / 2 + below(TICK), TICKS, h, NULL, 0);
        if (h->serves) {
            node_tick(h->node, h->node->now, h->node->wall);
            judge_rounds(h);
        }
        break;
    case DISK_DONE:
        drive_done(h);
        keys_note(h);
        break;
    case DIE:
        if (!w.healed)
            host_down(h, w.plan.restart_at_once ? below(10 * MS) : below(w.plan.lease));
        break;
    case ARRIVE:
        if (h->serves)
            try_arrive(h, e->data);
        else
            try_lost(e->data);
        break;
    default:
        break;
    }
    if (h->node)
        host_settle(h);
}

/* One whose disk was too small is given a larger one if it was needed after all, else left off. */
static void host_up(struct host *h)
{
    int index = member_index(newest_view(), h->id);
    if (h->node || h->off)
        return;
    if (h->small && index >= 0) {
        h->small = false;
        h->full_until = 0;
    }
    h->off = h->small;
    if (!h->off)
        host_start(h);
}

static void event_handle(struct event *e)
{
    struct host *h = e->host < 0 ? NULL : &w.hosts[e->host];
    w.events++;
    if (e->type == UP) {
        host_up(h);
    } else if (e->type == WORDS) {
        words();
        event_at(w.now + 1 + below(2 * w.plan.lease / 3), WORDS, NULL, NULL, 0);
    } else if (e->type == FAULT) {
        fault_event();
    } else if (e->type == DOWN) {
        host_off(h);
    } else if (!h) {
        client_event(e);
    } else if (!h->node || (e->type != FRAME && e->boot != h->boot)) {
        event_free(e);
    } else if (h->paused_until > w.now) {
        e->time = h->paused_until + 1;
        event_push(*e);
    } else if (e->type == FRAME) {
        frame_deliver(h, e);
        free(e->data);
    } else {
        host_event(h, e);
    }
}

static void run_until(uint64_t time)
{
    while (w.heap_count && w.heap[0].time <= time) {
        struct event e = event_pop();
        w.now = e.time;
        event_handle(&e);
    }
    w.now = time;
}

static void clients_start(struct client *clients)
{
    w.clients_busy = w.plan.clients;
    for (unsigned i = 0; i < w.plan.clients; i++)
        client_wakes(&clients[i], w.now + 1 + below(w.plan.think), CLIENT);
}

/* What each host thinks, for the trace. */
static void trace_hosts(void)
{
    for (unsigned i = 0; i < w.hosts_count; i++) {
        const struct host *h = &w.hosts[i];
        const struct node *n = h->node;
        if (!n || !n->view)
            continue;
        unsigned complete, changing;
        transition_progress(n, &complete, &changing);
        trace(h,
              "epoch %" PRIu64 " self %d lease %d live %" PRIx64 " voters %" PRIx64
              " complete %u of %u proposed %d durable %" PRIu64 " of %" PRIu64 " id %" PRIx64,
              node_epoch(n), n->self, n->has_lease, live_members(n), n->voters, complete, changing,
              LIST_FIRST(&n->by_key[VIEWS_PARTITION]) != NULL, n->log.durable, log_end(n), n->id);
        trace(h, "clock %.3f time %.3f wall %.3f bound at start %.3f latest %.3f leaves %d",
              (double)(int64_t)(n->clock - WALL_AT_START) / 1e6,
              (double)(int64_t)(n->time - WALL_AT_START) / 1e6,
              (double)(int64_t)(n->wall - WALL_AT_START) / 1e6,
              (double)(int64_t)(n->clock_bound_found - WALL_AT_START) / 1e6,
              (double)(int64_t)(n->latest_time - WALL_AT_START) / 1e6, n->self_peer->leave);
        for (unsigned p = 0; p < PARTITIONS; p++)
            if (n->owners[C_OLD][p] != n->owners[C_NEW][p])
                trace(h,
                      "partition %u: owners %" PRIx64 " then %" PRIx64 " complete %" PRIx64
                      " here %d entries %u",
                      p, n->owners[C_OLD][p], n->owners[C_NEW][p], complete_members(n, p),
                      partition_is_complete(n, p), n->partitions[p].count);
        for (int j = 0; j < SYNCS_MAX; j++)
            if (n->syncs[j].due)
                trace(h,
                      "syncs partition %u from %u page id %" PRIu64
                      " page %zu here %zu in flight %zu",
                      n->syncs[j].partition, n->syncs[j].source, n->syncs[j].page_id,
                      n->syncs[j].page.count, n->syncs[j].pulled_to, n->syncs[j].asked_to);
        for (int j = 0; j < ROUND_BUCKETS; j++)
            for (const struct round *r = LIST_FIRST(&n->by_id[j]); r; r = LIST_NEXT(r, by_id))
                trace(h,
                      "round %.*s state %d tries %u replied %" PRIx64 " at highest %" PRIx64
                      " rejections %u highest %s queued %d",
                      r->key_bytes, (const char *)r->key, r->state, round_request(r)->tries,
                      r->replied, r->at_highest, r->rejections,
                      ballot_name(round_record(r)->ballot), !STAILQ_EMPTY(&r->queued));
    }
}

/* Runs on until clients are done and all is at rest, at most for `most`. */
static void rest(uint64_t most)
{
    char why[200];
    const char *found = "clients are busy";
    for (uint64_t end = w.now + most; found && w.now < end;) {
        run_until(w.now + 100 * MS);
        found = w.clients_busy ? "clients are busy" : not_at_rest(why);
    }
    if (found)
        trace_hosts();
    if (found)
        violation("%.0f s after all faults ended: %s", (double)most / 1e6, found);
}

static void simulation_free(void)
{
    for (int i = 0; i < OVERHEARD_MAX; i++)
        bytes_free(&w.overheard[i]);
    while (w.heap_count) {
        struct event e = event_pop();
        event_free(&e);
    }
    for (unsigned i = 0; i < HOSTS_MAX; i++) {
        struct node *n = w.hosts[i].node;
        w.hosts[i].node = NULL;
        for (size_t j = 0; n && j < sizeof w.sum / sizeof(uint64_t); j++)
            ((uint64_t *)&w.sum)[j] += ((uint64_t *)&n->counters)[j];
        if (n)
            node_free(n);
        tries_broken(&w.hosts[i]);
        free(w.hosts[i].disk);
        bytes_free(&w.hosts[i].kept.records);
        if (w.hosts[i].aside)
            free(w.hosts[i].aside->disk);
        free(w.hosts[i].aside);
        if (w.hosts[i].copy)
            free(w.hosts[i].copy->disk);
        free(w.hosts[i].copy);
    }
    for (unsigned i = 0; i < w.keys_count; i++)
        free(w.keys[i].ops);
    for (size_t i = 0; i < w.views_count; i++)
        free(w.views[i]);
    free(w.views);
    free(w.heap);
}

static const struct mix *mix_find(const char *name)
{
    for (int i = 0; i < MIXES; i++)
        if (name && strcmp(mixes[i].name, name) == 0)
            return &mixes[i];
    return NULL;
}

static void simulate(uint64_t seed, const struct mix *mix)
{
    struct client clients[CLIENTS_MAX] = {{0}};
    mix = mix ? mix : &mixes[seed % MIXES];
    w = (struct simulation){.seed = seed, .mix = mix->name};
    w.random = XXH3_64bits(&seed, sizeof seed) | 1;
    plan_make(mix);
    for (int i = 0; i < HOSTS_MAX; i++) {
        w.hosts[i].index = i;
        snprintf(w.hosts[i].address, sizeof w.hosts[i].address, "h%d", i);
        w.hosts[i].clock_error = (int64_t)below(2 * w.plan.skew + 1) - (int64_t)w.plan.skew;
        w.hosts[i].clock_drift = (double)below(200) / 1e6 - 1e-4;
    }
    w.clients = clients;
    for (unsigned i = 0; i < w.plan.clients; i++)
        clients[i].name = i;
    trace(NULL, "%u copies, %u hosts", w.plan.replicas, w.plan.hosts);
    w.faults_until = w.plan.fault_time;
    keys_make();
    cluster_begin();
    clients_start(clients);
    event_at(w.plan.expects ? 1 : SECOND, FAULT, NULL, NULL, 0);
    if (w.plan.weight[LOSS])
        event_at(SECOND, WORDS, NULL, NULL, 0);
    run_until(w.plan.fault_time);
    heal();
    run_until(w.now + (w.plan.crowded ? FORGET_TIME + 5 * SECOND : SECOND));
    for (unsigned i = 0; i < w.hosts_count; i++)
        if (w.plan.crowded && w.hosts[i].node)
            judge_forgetting(&w.hosts[i]);
    w.over = true;
    rest(120 * SECOND);
    w.last_reads = 3 * w.keys_count;
    w.last_phase = w.plan.patient = true;
    w.clocks_ran_ahead = w.plan.skew > KEY_TIME_SLACK; /* a key may be further ahead than that */
    for (unsigned i = 0; i < w.hosts_count; i++) {
        const struct node *n = w.hosts[i].node;
        uint64_t right = WALL_AT_START + w.now;
        if (n && n->clock > right + w.clock_error_max + CLOCK_AHEAD_MAX &&
            !w.plan.restart_at_once && !w.wrong_starts)
            violation("h%u: its clock followed one that is wrong", i);
        w.clocks_ran_ahead |= n && max_u64(n->clock, n->wall) > proxy_time() + 100 * MS;
    }
    clients_start(clients);
    rest(30 * SECOND);
    judge();
    trace(NULL, "well: %" PRIu64 " events, %" PRIu64 " operations, %" PRIu64 " unknown", w.events,
          w.operations, w.unknown);
    simulation_free();
}

/* === 11 Many runs ============================================================================= */

struct totals {
    uint64_t seeds, operations, answered, unknown, events, views, histories, undecided;
    uint64_t rejected, repairs, pulled, damaged, leases; /* of the nodes that were left */
};

/* Of the processor's time, as others may have most of it; 0: any. */
static void seconds_allow(int seconds)
{
    setitimer(ITIMER_VIRTUAL, &(struct itimerval){.it_value.tv_sec = seconds}, NULL);
}

static void seed_run(uint64_t seed, const struct mix *mix, struct totals *totals)
{
    seconds_allow(60);
    simulate(seed, mix);
    seconds_allow(0);
    totals->seeds++;
    totals->operations += w.operations;
    totals->answered += w.answered_ok;
    totals->unknown += w.unknown;
    totals->events += w.events;
    totals->views += w.views_count;
    totals->histories += w.histories;
    totals->undecided += w.undecided;
    totals->rejected += w.sum.proposals_rejected;
    totals->repairs += w.sum.repairs_pull + w.sum.repairs_read;
    totals->pulled += w.sum.pulled;
    totals->damaged += w.sum.repairs_damage;
    totals->leases += w.sum.lease_expirations;
}

/* Runs that once found something: a sync that was forgotten, an accept without its key, a view that
 * its last voters took with them, a wait cut short, bits flipped in a record's head, copies of views
 * that added up, a round that a slow network restarted for ever, a node whose peers all had new ids,
 * a damaged record that one of two owners alone had, an owner that was compared with and went down, a
 * round that reached a majority of the old ring's owners alone. */
static const struct {
    uint64_t seed;
    const char *mix;
} known[] = {
    {9, "calm"},
    {19, "calm"},
    {4, "crashes"},
    {11, "crashes"},
    {15, "network"},
    {3, "moves"},
    {4, "moves"},
    {17, "moves"},
    {14, "deaths"},
    {49, "deaths"},
    {3, "clocks"},
    {47, "clocks"},
    {1310, "disks"},
    {157, "disks"},
    {40, "skew"},
    {55, "restarts"},
    {71, "coordinators"},
    {1933, "minutes"},
    {2365, "all"},
    {1798, "minutes"},
    {492, "all"},
    {30061, "restarts"},
    {20027, "forgetmoves"},
    {100467, "full"},
    {101170, "coordinators"},
};
enum { KNOWN = sizeof known / sizeof *known };

/* Runs seeds in two workers until one fails, or all are done. Returns the exit status. */
static int workers_run(uint64_t first, uint64_t count, const struct mix *mix, struct totals *sum)
{
    enum { WORKERS = 2 };
    struct totals *totals = mmap(NULL, WORKERS * sizeof *totals, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t workers[WORKERS];
    fflush(stdout);
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = fork();
        if (workers[i] != 0)
            continue;
        signal(SIGABRT, on_abort);
        signal(SIGSEGV, on_abort);
        signal(SIGVTALRM, on_abort);
        for (unsigned j = i; j < KNOWN && !mix; j += WORKERS)
            seed_run(known[j].seed, mix_find(known[j].mix), &totals[i]);
        for (uint64_t seed = first + i; seed < first + count; seed += WORKERS)
            seed_run(seed, mix, &totals[i]);
        exit(0);
    }
    int bad = 0;
    for (int left = WORKERS; left; left--) {
        int status;
        pid_t done = wait(&status);
        if (status == 0 || bad)
            continue;
        bad = 1;
        for (unsigned i = 0; i < WORKERS; i++)
            if (workers[i] != done)
                kill(workers[i], SIGKILL);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        for (size_t j = 0; j < sizeof *sum / sizeof(uint64_t); j++)
            ((uint64_t *)sum)[j] += ((uint64_t *)&totals[i])[j];
    munmap(totals, WORKERS * sizeof *totals);
    return bad;
}

#ifdef MUTANTS
/* === 12 Mutants ===============================================================================
 *
 * Without each rule of Part I something must go wrong: in a run of some mix of faults or, where
 * chance would be slow, in a scenario by hand: one node, member 10 of 10, 20 and 30, and the test
 * plays the others.
 */

static uint64_t hand_ahead;  /* how far the clocks of those that the test plays are ahead */
static uint16_t hand_status; /* of the answer to the last request; 0: none has come */

#include "deliver.h"

static void hand_deliver(struct node *n, uint64_t from, const struct message *head,
                         const struct body *body)
{
    message_deliver(n, from, max_u64(n->clock, head->ballot.time) + hand_ahead, head, body);
}

static bool hand_log_read(struct node *n, uint64_t lsn, void *to, size_t bytes, bool wait)
{
    struct bytes *disk = n->context;
    (void)wait;
    memcpy(to, disk->data + lsn, bytes);
    return true;
}

static void hand_reply(struct node *n, void *client, const struct message *result)
{
    (void)n, (void)client;
    hand_status = result->status;
}

static struct node *hand_node(struct bytes *disk)
{
    static const struct hooks by_hand = {.log_read = hand_log_read, .reply = hand_reply};
    struct {
        struct view view;
        struct member members[3];
    } first = {{1, 77, 3, 3}, {{.id = 10}, {.id = 20}, {.id = 30}}};
    struct node *n = node_new(10, 1, "h", &by_hand, disk);
    node_time(n, 1000 * SECOND, WALL_AT_START);
    n->log.room = 1 << 30;
    for (int i = 0; i < 3; i++) {
        first.members[i].weight = 1;
        first.members[i].state = MEMBER_UP;
        first.members[i].address[0] = 'h';
    }
    view_adopt(n, &first.view);
    node_run(n);
    return n;
}

/* Copies into `found` the last message of that type that may leave to a member now. */
static bool hand_sent(struct node *n, uint64_t to, uint8_t type, struct bytes *found)
{
    struct bytes frame = {0};
    found->count = 0;
    if (!frame_take(n, n->member_peer[member_index(n->view, to)], 0, &frame))
        return false;
    for (size_t at = sizeof(struct frame); at < frame.count;) {
        const struct message *m = (const struct message *)(frame.data + at);
        if (m->type == type)
            bytes_set(found, m, m->bytes);
        at += m->bytes;
    }
    bytes_free(&frame);
    return found->count > 0;
}

static void hand_flush(struct node *n)
{
    struct bytes *disk = n->context;
    const struct bytes *batch;
    while ((batch = log_flush(n))) {
        bytes_append(disk, batch->data, batch->count);
        node_durable(n, 1 << 30, n->log.full);
    }
}

/* The same once the log is on disk. */
static bool hand_sent_after_flush(struct node *n, uint64_t to, uint8_t type, struct bytes *found)
{
    hand_flush(n);
    return hand_sent(n, to, type, found);
}

static struct message hand_message(uint8_t type, uint64_t epoch, uint64_t time, uint64_t round_id)
{
    struct message m = {
        .type = type, .round_id = round_id, .partition = key_partition("k", 1), .key_bytes = 1};
    m.ballot = (struct ballot){epoch, WALL_AT_START + time, 20};
    if (type == M_ACCEPT) {
        m.flags = FLAG_RECORD | FLAG_WHOLE;
        m.modified = m.ballot.time;
    }
    return m;
}

#ifndef MUTATIONS
/* R8: the first reply may have been lost, and another node has prepared since. */
static bool hand_a_repeated_accept_is_answered_again(struct node *n)
{
    struct bytes found = {0};
    const struct body key = {.key = "k"};
    struct message accept = hand_message(M_ACCEPT, 1, 100, 5),
                   prepare = hand_message(M_PREPARE, 1, 200, 6);
    hand_deliver(n, 20, &accept, &key);
    bool first = hand_sent_after_flush(n, 20, M_ACCEPTED, &found);
    hand_deliver(n, 30, &prepare, &key);
    hand_deliver(n, 20, &accept, &key);
    bool second = hand_sent_after_flush(n, 20, M_ACCEPTED, &found);
    bytes_free(&found);
    return first && second;
}

/* R7: what a fast clock wrote in an old epoch orders below what a new epoch wrote. */
static bool hand_old_epoch_comes_below(struct node *n)
{
    const struct body key = {.key = "k"};
    struct message late = hand_message(M_ACCEPT, 1, 5 * SECOND, 0),
                   now = hand_message(M_ACCEPT, 2, 100, 0);
    hand_deliver(n, 20, &now, &key);
    hand_deliver(n, 30, &late, &key);
    const struct entry *e = entry_find(&n->partitions[late.partition], "k", 1);
    return e && ballot_equal(e->accepted, now.ballot);
}

static void hand_beat(struct node *n, uint64_t id, const char *address)
{
    struct heartbeat beat = {.heard = {10 ^ n->boot}};
    struct message m = {.type = M_HEARTBEAT, .flags = FLAG_WHOLE, .value_bytes = sizeof beat};
    m.key_bytes = (uint16_t)strlen(address);
    m.status = 1;
    hand_deliver(n, id, &m, &(struct body){.key = address, .value = &beat});
}

/* Whether it proposes a view within so many seconds, while 20 sends heartbeats, and 40 asks to join. */
static bool hand_proposes(struct node *n, uint64_t seconds, bool joins)
{
    struct bytes found = {0};
    bool proposes = false;
    for (uint64_t end = n->now + seconds * SECOND; n->now < end && !proposes;) {
        node_tick(n, n->now + 100 * MS, n->wall + 100 * MS);
        hand_beat(n, 20, "h");
        if (joins)
            hand_beat(n, 40, "h4");
        proposes = hand_sent_after_flush(n, 20, M_PREPARE, &found);
    }
    bytes_free(&found);
    return proposes;
}

/* R24: while 30 is dead, and may come back without its disk, 20 must not leave; 30 may. */
static bool hand_live_member_stays_while_another_is_dead(struct node *n)
{
    hand_proposes(n, 1, false);
    n->member_peer[1]->leave = true;
    if (hand_proposes(n, 4, false))
        return false;
    n->member_peer[2]->leave = true; /* a dead one may leave */
    return hand_proposes(n, 4, false);
}

/* R25: with two copies, a majority needs both: also the one that a dead member holds. */
static bool hand_nothing_begins_that_cannot_end(struct node *n)
{
    struct {
        struct view view;
        struct member members[3];
    } second;
    memcpy(&second, n->view, view_bytes(n->view));
    second.view.epoch = 2;
    second.view.replicas = 2;
    n->evict_after = 2 * SECOND;
    view_adopt(n, &second.view);
    if (hand_proposes(n, 8, true))
        return false;
    for (int i = 0; i < 8; i++) { /* it is back */
        hand_beat(n, 30, "h");
        if (hand_proposes(n, 1, true))
            return true;
    }
    return false;
}

/* R16: a minority has accepted another coordinator's view: that view is proposed again. */
static bool hand_view_is_written_once(struct node *n)
{
    struct bytes found = {0};
    struct {
        struct view view;
        struct member members[3];
    } other = {{2, 77, 3, 2}, {{.id = 10}, {.id = 20}, {.id = 0}}};
    for (uint64_t id = 20; id <= 40; id += 10) /* 40 is no member: it asks to join */
        hand_beat(n, id, id == 40 ? "h4" : "h9");
    for (int i = 0; i < 200 && !hand_sent_after_flush(n, 20, M_PREPARE, &found); i++) {
        node_tick(n, n->now + 10 * MS, n->wall + 10 * MS);
    }
    if (!found.count)
        return false;
    struct message m = *(const struct message *)found.data;
    m.type = M_PROMISE;
    m.flags = FLAG_RECORD | FLAG_WHOLE;
    m.ballot.time -= 50;
    m.key_bytes = 0;
    m.value_bytes = (uint32_t)view_bytes(&other.view);
    hand_deliver(n, 20, &m, &(struct body){.value = &other});
    bool same = hand_sent_after_flush(n, 20, M_ACCEPT, &found);
    const struct message *accept = (const struct message *)found.data;
    same = same && accept->value_bytes == m.value_bytes &&
           memcmp(message_body(accept).value, &other, m.value_bytes) == 0;
    bytes_free(&found);
    return same;
}

/* R5: a node with a lease rejects a frame whose time is far ahead. */
static bool hand_far_time_is_not_followed(struct node *n)
{
    struct bytes frame = {0};
    struct frame *b = bytes_extend(&frame, sizeof *b);
    n->has_lease = true;
    *b = (struct frame){.magic = FRAME_MAGIC, .cluster = n->cluster, .from = 20, .to = n->id};
    b->clock = b->latest_time = n->time + 11 * SECOND;
    b->epoch = node_epoch(n);
    b->bytes = sizeof *b;
    b->check = frame_check(b);
    uint64_t clock = b->clock;
    bool follows = node_receive(n, frame.data, frame.count) && n->clock >= clock;
    bytes_free(&frame);
    return !follows;
}

#else
static void hand_ticks(struct node *n, uint64_t time)
{
    for (uint64_t end = n->now + time; n->now < end;) {
        node_tick(n, n->now + 10 * MS, n->wall + 10 * MS);
    }
}

static void hand_beat(struct node *n, uint64_t from, bool complete)
{
    struct heartbeat beat = {.heard = {10 ^ n->boot}};
    struct message m = {.type = M_HEARTBEAT, .flags = FLAG_WHOLE, .value_bytes = sizeof beat};
    memset(beat.complete, complete ? 0xff : 0, sizeof beat.complete);
    m.key_bytes = from == 40 ? 2 : 1; /* as in the view */
    m.status = 1;
    hand_deliver(n, from, &m, &(struct body){.key = "h9", .value = &beat});
}

/* The view after the first: 40 joins. */
static void hand_joins(struct node *n)
{
    struct {
        struct view view;
        struct member members[4];
    } next = {{2, 77, 3, 4}, {{0}}};
    memcpy(next.members, n->view->members, 3 * sizeof *next.members);
    next.members[3] = (struct member){.id = 40, .weight = 1, .address = "h9"};
    next.members[3].state = MEMBER_JOINING;
    view_adopt(n, &next.view);
    node_run(n);
}

static struct entry *hand_entry(const struct node *n)
{
    return entry_find(&n->partitions[key_partition("k", 1)], "k", 1);
}

static void hand_accept(struct node *n, uint64_t epoch, uint64_t time, bool tombstone)
{
    struct message m = hand_message(M_ACCEPT, epoch, time, 5);
    m.flags |= tombstone ? FLAG_TOMBSTONE : 0;
    hand_deliver(n, 20, &m, &(const struct body){.key = "k"});
}

/* Whether cleaning keeps the key's record, though all owners agree up to this gc floor. */
static bool hand_cleaning_keeps(struct node *n, struct ballot gc_floor)
{
    n->partitions[key_partition("k", 1)].gc_floor = gc_floor;
    hand_flush(n);
    entry_clean(n, key_partition("k", 1), hand_entry(n));
    return hand_entry(n);
}

/* Sends n a request. Its round then has sent prepares to 20 and 30, which have not promised yet. */
static bool hand_asks(struct node *n, const struct message *head, struct bytes *prepare)
{
    struct message m = *head;
    m.partition = key_partition("k", 1);
    m.key_bytes = 1;
    hand_status = 0;
    node_request(n, NULL, &m, &(struct body){.key = "k", .value = "1"}, 0);
    node_run(n);
    return hand_sent_after_flush(n, 20, M_PREPARE, prepare);
}

static void hand_promise(struct node *n, uint64_t from, const struct bytes *prepare,
                         const struct message *record)
{
    struct message m = *record;
    m.type = M_PROMISE;
    m.round_id = ((const struct message *)prepare->data)->round_id;
    m.partition = key_partition("k", 1);
    m.key_bytes = 0;
    hand_deliver(n, from, &m, NULL);
}

/* R11: the clocks of 20 and 30 are ahead, so they have forgotten the result. n must measure the
 * write's age by the latest clock it knows, not by its ballot. */
static bool hand_a_repeat_ages_by_the_latest_clock(struct node *n)
{
    struct bytes prepare = {0}, accept = {0};
    struct message put = {.function = DO_PUT, .flags = FLAG_REPEAT | FLAG_WHOLE, .write_id = 55};
    put.issued_at = n->wall - RESULTS_KEPT_TIME + SECOND;
    put.value_bytes = 1;
    bool asked = hand_asks(n, &put, &prepare);
    hand_ahead = 2 * SECOND;
    hand_promise(n, 20, &prepare, &(struct message){.flags = 0});
    bool sent = hand_sent_after_flush(n, 20, M_ACCEPT, &accept);
    bytes_free(&prepare);
    bytes_free(&accept);
    return asked && !sent && hand_status == STATUS_UNKNOWN;
}

/* R11: the present owners may have forgotten the result of a write this old, without a trace. */
static bool hand_an_old_repeat_is_unknown(struct node *n)
{
    struct bytes prepare = {0}, accept = {0};
    struct message put = {.function = DO_PUT, .flags = FLAG_REPEAT | FLAG_WHOLE, .write_id = 55};
    put.issued_at = n->wall - RESULTS_KEPT_TIME - SECOND;
    put.value_bytes = 1;
    bool asked = hand_asks(n, &put, &prepare);
    hand_promise(n, 20, &prepare, &(struct message){.flags = 0});
    bool sent = hand_sent_after_flush(n, 20, M_ACCEPT, &accept);
    bytes_free(&prepare);
    bytes_free(&accept);
    return asked && !sent && hand_status == STATUS_UNKNOWN;
}

/* R11: the promise of a record too old to list results reports that they are lost. */
static bool hand_the_index_reports_lost_results(struct node *n)
{
    struct bytes found = {0};
    struct message prepare = hand_message(M_PREPARE, 1, 2 * RESULTS_KEPT_TIME, 6);
    hand_accept(n, 1, 100, false);
    hand_ticks(n, RESULTS_KEPT_TIME + SECOND);
    hand_deliver(n, 30, &prepare, &(const struct body){.key = "k"});
    bool sent = hand_sent_after_flush(n, 30, M_PROMISE, &found) &&
                ((const struct message *)found.data)->results_lost_until >= WALL_AT_START + 100;
    bytes_free(&found);
    return sent;
}

/* R3: a message that reports this node's state leaves only once that state is durable. */
static bool hand_waits_until_durable(struct node *n, uint8_t type)
{
    struct bytes found = {0};
    hand_flush(n);
    hand_beat(n, 20, true);
    hand_beat(n, 30, true);
    hand_sent(n, 20, type, &found);
    hand_accept(n, 1, 100, false);
    n->next_heartbeat = 0; /* before the clock bound moves on, which holds up every frame */
    hand_ticks(n, 10 * MS);
    bool sent = hand_sent(n, 20, type, &found), later = hand_sent_after_flush(n, 20, type, &found);
    bytes_free(&found);
    return !sent && later;
}

static bool hand_a_heartbeat_waits_until_durable(struct node *n)
{
    return hand_waits_until_durable(n, M_HEARTBEAT);
}

static bool hand_a_digest_waits_until_durable(struct node *n)
{
    for (unsigned p = 0; p < PARTITIONS; p++)
        n->partitions[p].caught_up = 0; /* so that each digest is sent each time */
    return hand_waits_until_durable(n, M_DIGEST);
}

/* R3: nor does a frame leave with a clock above the durable clock bound. */
static bool hand_no_frame_leaves_above_the_clock_bound(struct node *n)
{
    struct bytes found = {0};
    struct message prepare = hand_message(M_PREPARE, 1, 300, 6);
    hand_flush(n);
    hand_ticks(n, 4 * SECOND); /* the clock bound moves on, and is not on disk */
    prepare.ballot.time = n->clock;
    hand_deliver(n, 30, &prepare, &(const struct body){.key = "k"});
    bool sent = hand_sent(n, 30, M_PROMISE, &found),
         later = hand_sent_after_flush(n, 30, M_PROMISE, &found);
    bytes_free(&found);
    return !sent && later;
}

/* R19: cleaning copies the promise floor to the log's end. */
static bool hand_cleaning_copies_promise_floors(struct node *n)
{
    uint16_t partition = key_partition("k", 1);
    promise_floor_raise(n, partition, (struct ballot){1, WALL_AT_START + 300, 20});
    hand_flush(n);
    n->log.cleaned = log_end(n);
    partition_clean(n, partition, UINT64_MAX);
    return n->partitions[partition].promise_floor_lsn >= n->log.cleaned;
}

/* R7: a slow clock in a new epoch is rejected below a fast clock in an old one: the clock bound is a
 * time alone, and would not cover it. */
static bool hand_a_time_never_falls(struct node *n)
{
    hand_accept(n, 1, 5 * SECOND, false);
    hand_accept(n, 2, 100, false);
    return hand_entry(n)->accepted.epoch == 1;
}

/* R6: a reply that awaited durability when a view was adopted is not sent in the new view. */
static bool hand_messages_end_with_their_view(struct node *n)
{
    struct bytes found = {0};
    hand_flush(n);
    hand_accept(n, 1, 100, false);
    hand_joins(n);
    bool sent = hand_sent_after_flush(n, 20, M_ACCEPTED, &found);
    bytes_free(&found);
    return !sent;
}

/* R14: while data moves, tombstones below the promise floor are pulled, too. */
static bool hand_a_transition_pulls_tombstones(struct node *n)
{
    struct {
        struct listed listed;
        char key[8];
    } l = {{.key_bytes = 1, .flags = FLAG_RECORD | FLAG_TOMBSTONE}, "k"};
    struct sync s = {.partition = key_partition("k", 1), .source = 1};
    struct ballot floor = {1, WALL_AT_START + 200, 20};
    l.listed.ballot = (struct ballot){1, WALL_AT_START + 100, 20};
    promise_floor_raise(n, s.partition, floor);
    bool stable = sync_wants(n, &s, &l.listed);
    hand_joins(n);
    promise_floor_raise(n, s.partition, floor);
    return !stable && sync_wants(n, &s, &l.listed);
}

/* R19: a key with a tombstone below the promise floor rejects values below that floor, too. */
static bool hand_promise_floors_hold_for_tombstones(struct node *n)
{
    hand_accept(n, 1, 100, true);
    promise_floor_raise(n, key_partition("k", 1), (struct ballot){1, WALL_AT_START + 300, 20});
    hand_accept(n, 1, 200, false);
    return hand_entry(n)->flags & FLAG_TOMBSTONE;
}

/* R20: the owners agreed while the value was still there. A tombstone that comes late is not what they
 * agreed on: another owner may still have the value. */
static bool hand_a_late_tombstone_is_kept(struct node *n)
{
    struct partition *p = &n->partitions[key_partition("k", 1)];
    hand_accept(n, 1, 100, false);
    promise_floor_raise(n, key_partition("k", 1), (struct ballot){1, WALL_AT_START + 300, 20});
    p->gc_floor = p->promise_floor;
    hand_accept(n, 1, 200, true);
    hand_ticks(n, 2 * RESULTS_KEPT_TIME);
    bool accepted = hand_entry(n)->flags & FLAG_TOMBSTONE;
    return accepted && hand_cleaning_keeps(n, p->gc_floor);
}

/* R1: a tombstone stays while it carries a promise. */
static bool hand_cleaning_keeps_a_promise(struct node *n)
{
    struct message prepare = hand_message(M_PREPARE, 1, 300, 6);
    hand_accept(n, 1, 100, true);
    hand_deliver(n, 30, &prepare, &(const struct body){.key = "k"});
    hand_ticks(n, 2 * RESULTS_KEPT_TIME);
    n->partitions[key_partition("k", 1)].promise_floor = (struct ballot){0};
    return hand_cleaning_keeps(n, (struct ballot){1, WALL_AT_START + 200, 20});
}

/* R20: below the gc floor by its epoch, but young: its results are still needed. */
static bool hand_cleaning_keeps_what_is_young(struct node *n)
{
    hand_accept(n, 1, SECOND, true);
    return hand_cleaning_keeps(n, (struct ballot){2, WALL_AT_START + 100, 20});
}

/* R15: a joiner reports that it is complete, and then falls silent. */
static bool hand_a_dead_joiner_stays_one(struct node *n)
{
    struct bytes found = {0};
    bool proposed = false;
    hand_joins(n);
    for (unsigned p = 0; p < PARTITIONS; p++)
        n->partitions[p].to_sync = 0;
    hand_beat(n, 40, true);
    n->now += 2 * n->lease;
    for (int i = 0; i < 12; i++) {
        hand_beat(n, 20, i > 6);
        hand_beat(n, 30, i > 6);
        hand_ticks(n, n->lease / 4);
        while (hand_sent_after_flush(n, 20, M_PREPARE, &found))
            proposed |= ((const struct message *)found.data)->partition == VIEWS_PARTITION;
    }
    bytes_free(&found);
    return !proposed;
}

/* R9: a value that is fetched counts only at the ballot that was promised. */
static bool hand_a_value_counts_at_its_ballot(struct node *n)
{
    struct bytes prepare = {0}, found = {0};
    struct message add = {.function = DO_ADD, .flags = FLAG_FRESH, .write_id = 55, .number = 1};
    struct message record = {.flags = FLAG_RECORD, .value_bytes = 1, .write_id = 44};
    record.ballot = (struct ballot){1, n->wall - 300, 20};
    bool asked = hand_asks(n, &add, &prepare);
    hand_promise(n, 20, &prepare, &record);
    hand_promise(n, 30, &prepare, &record);
    record.type = M_READ_REPLY;
    record.flags |= FLAG_WHOLE;
    record.ballot.time += 100;
    record.round_id = ((const struct message *)prepare.data)->round_id;
    hand_deliver(n, 20, &record, &(struct body){.value = "7"});
    bool accepts = hand_sent_after_flush(n, 20, M_ACCEPT, &found);
    bytes_free(&prepare);
    bytes_free(&found);
    return asked && !accepts;
}
#endif

struct mutant {
    unsigned number; /* of the rule, or of the mutation */
    const char *mix;
    bool (*holds)(struct node *n); /* by hand */
};
#ifdef MUTATIONS
#define MUTATION(number, name, mix, seeds, holds) {number, mix, holds},
static const struct mutant mutants[] = {
#include "mutations.h"
};
#undef MUTATION
#define MUTATION(number, name, mix, seeds, holds) {name, seeds},
static const struct {
    const char *name;
    unsigned seeds;
} limits[] = {
#include "mutations.h"
};
static unsigned *const broken = &mutation;
#else
static const struct mutant mutants[] = {
    {1, "restarts", NULL},
    {2, "restarts", NULL},
    {3, "crashes", NULL},
    {4, "skew", NULL},
    {5, NULL, hand_far_time_is_not_followed},
    {6, "crashes", NULL},
    {7, NULL, hand_old_epoch_comes_below},
    {8, NULL, hand_a_repeated_accept_is_answered_again},
    {9, "crashes", NULL},
    {10, "crashes", NULL},
    {11, "crashes", NULL},
    {12, "moves", NULL},
    {13, "crashes", NULL},
    {14, "crashes", NULL},
    {15, "crashes", NULL},
    {16, NULL, hand_view_is_written_once},
    {17, "crashes", NULL},
    {18, "crashes", NULL},
    {19, "forget", NULL},
    {20, "forget", NULL},
    {21, "deaf", NULL},
    {22, "skew", NULL},
    {40, "listings", NULL},
    {30, "crashes", NULL},
    {23, "again", NULL},
    {24, NULL, hand_live_member_stays_while_another_is_dead},
    {25, NULL, hand_nothing_begins_that_cannot_end},
    {26, "lost5", NULL},
    {27, "first", NULL},
    {32, "copies", NULL},
    {35, "crashes", NULL},
    {31, "jumps", NULL},
};
static unsigned *const broken = &broken_rule;
#endif
enum { MUTANTS_COUNT = sizeof mutants / sizeof *mutants };

static bool by_hand(const struct mutant *m)
{
    struct bytes disk = {0};
    struct node *n = hand_node(&disk);
    hand_ahead = 0;
    sim_memory = 4 * SECOND;
    sim_margin = 200 * MS;
#ifdef MUTATIONS
    hand_beat(n, 20, true);
    hand_beat(n, 30, true);
    hand_ticks(n, 10 * MS); /* it has a lease, and so a time of its own */
#endif
    bool holds = m->holds(n);
    node_free(n);
    bytes_free(&disk);
    return holds;
}

START_TEST(test_without_this_rule_something_goes_wrong)
{
    const struct mutant *m = &mutants[_i];
    struct totals sum = {0};
    char name[64];
#ifdef MUTATIONS
    unsigned seeds = limits[_i].seeds;
    snprintf(name, sizeof name, "%s", limits[_i].name);
#else
    unsigned seeds = 12000; /* R26 and R19 are found late */
    snprintf(name, sizeof name, "R%u", m->number);
#endif
    *broken = 0;
    if (m->holds) {
        ck_assert_msg(by_hand(m), "%s does not hold", name);
        *broken = m->number;
        ck_assert_msg(!by_hand(m), "without %s nothing goes wrong", name);
        return;
    }
    *broken = m->number;
    quiet_failures = true;
    ck_assert_msg(workers_run(1, seeds, mix_find(m->mix), &sum),
                  "without %s nothing goes wrong in %u runs of %s", name, seeds, m->mix);
    printf("without %s: found in run %" PRIu64 " (%s)\n", name, sum.seeds + 1, m->mix);
}
END_TEST

#else
static uint64_t number_from(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

START_TEST(test_no_seed_finds_a_violation)
{
    struct totals sum = {0};
    const struct mix *mix = mix_find(getenv("MIX"));
    broken_rule = (unsigned)number_from("RULE", 0);
    if (getenv("SEED")) {
        signal(SIGABRT, on_abort);
        signal(SIGSEGV, on_abort);
        tracing = (int)number_from("TRACE", 0);
        seed_run(number_from("SEED", 1), mix, &sum);
        return;
    }
    ck_assert_msg(!workers_run(number_from("FIRST", 1), number_from("SEEDS", 600), mix, &sum),
                  "a run failed: see above");
    printf("simulated: %" PRIu64 " runs, %" PRIu64 " requests, %" PRIu64 " answered, %" PRIu64
           " unknown, %" PRIu64 " events, %" PRIu64 " views; %" PRIu64 " rejections, %" PRIu64
           " repairs, %" PRIu64 " pulls, %" PRIu64 " damaged, %" PRIu64 " leases lost; of %" PRIu64
           " histories %" PRIu64 " undecided\n",
           sum.seeds, sum.operations, sum.answered, sum.unknown, sum.events, sum.views,
           sum.rejected, sum.repairs, sum.pulled, sum.damaged, sum.leases, sum.histories,
           sum.undecided);
}
END_TEST
#endif

int main(void)
{
    log_level = LEVEL_ERROR;
    Suite *suite = suite_create("sim");
    TCase *cases = tcase_create("sim");
    tcase_set_timeout(cases, 1000);
#ifdef MUTANTS
    tcase_add_loop_test(cases, test_without_this_rule_something_goes_wrong, 0, MUTANTS_COUNT);
#else
    tcase_add_test(cases, test_no_seed_finds_a_violation);
#endif
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
