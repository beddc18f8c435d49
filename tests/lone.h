/*
 * lone.h - estoraje.c, and one node of its core whose log is an array of bytes: for the tests of
 * what a single node does. The test plays its peers.
 */
#pragma once

#pragma GCC diagnostic ignored "-Wunused-function" /* not every test needs all of this file */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wgnu-variable-sized-type-not-at-end"
#endif

#define main estoraje_main
#include "../estoraje.c"
#undef main

enum { LONE_ID = 0x11, LONE_PEERS = 2 }; /* peers have the ids after it */
#define LONE_CLUSTER   UINT64_C(0xc1)
#define LONE_WALL      (UINT64_C(1763712000) * SECOND)
#define LONE_MONOTONIC (1000 * SECOND)

struct lone {
    struct node *node;
    struct bytes disk;  /* the log's stream, from LSN 0 on */
    uint64_t last_lsn;  /* of the batch that was written last */
    struct bytes reply; /* the last */
    void *reply_client;
    unsigned replies;
    bool cold; /* what may be waited for is not in memory */
};

static void lone_reply(struct node *n, void *client, const struct message *result)
{
    struct lone *l = n->context;
    l->reply_client = client;
    l->reply.count = 0;
    bytes_append(&l->reply, result, message_bytes(result));
    l->replies++;
}

/* What is beyond the end is zeros, as disk_read has it. */
static bool lone_log_read(struct node *n, uint64_t lsn, void *to, size_t bytes, bool wait)
{
    const struct lone *l = n->context;
    if (l->cold && !wait)
        return false;
    size_t there = lsn < l->disk.count ? min_u64(bytes, l->disk.count - lsn) : 0;
    if (there)
        memcpy(to, l->disk.data + lsn, there);
    memset((uint8_t *)to + there, 0, bytes - there);
    return true;
}

static const struct hooks lone_hooks = {.reply = lone_reply, .log_read = lone_log_read};

/* A node before its first view; the disk stays as it is. */
static struct node *lone_node(struct lone *l)
{
    struct node *n = l->node = node_new(LONE_ID, 7, "127.0.0.1:1", &lone_hooks, l);
    n->log.room = 1 << 30;
    node_time(n, LONE_MONOTONIC, LONE_WALL);
    return n;
}

static void lone_node_free(struct lone *l)
{
    struct node *n = l->node;
    for (int i = 0; i <= VIEWS_PARTITION; i++)
        partition_drop(n, &n->partitions[i]);
    for (int i = 0; i < ROUND_BUCKETS; i++)
        for (struct round *r; (r = LIST_FIRST(&n->by_id[i]));)
            round_end(r, &n->large);
    for (struct request *q; (q = requests_pop(&n->large));)
        request_free(q);
    for (struct listing *left; (left = STAILQ_FIRST(&n->listings));) {
        listing_send(n, left, 503);
        listing_free(n, left);
    }
    for (size_t i = 0; i < n->peers_count; i++) {
        bytes_free(&n->peers[i]->outbox[0]);
        bytes_free(&n->peers[i]->outbox[1]);
        free(n->peers[i]);
    }
    for (size_t i = 0; i < n->views_count; i++)
        free(n->views[i]);
    free(n->views);
    sync_reset(n);
    struct bytes *all[] = {&n->log.pending,      &n->log.flight, &n->inbox, &n->handled,
                           &n->awaiting_durable, &n->scratch,    &n->cold,  &n->log.marks};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bytes_free(all[i]);
    free(n);
    l->node = NULL;
}

static void lone_free(struct lone *l)
{
    if (l->node)
        lone_node_free(l);
    bytes_free(&l->disk);
    bytes_free(&l->reply);
}

/* Puts a batch on the disk; the node learns of it later. */
static void lone_write(struct lone *l, const struct bytes *batch, uint64_t lsn)
{
    if (lsn + batch->count > l->disk.count) {
        size_t more = lsn + batch->count - l->disk.count;
        memset(bytes_extend(&l->disk, more), 0, more);
    }
    memcpy(l->disk.data + lsn, batch->data, batch->count);
    l->last_lsn = lsn;
}

/* All that came of the last event: what is to be durable is, again and again until nothing is left. */
static void lone_settle(struct lone *l)
{
    struct node *n = l->node;
    const struct bytes *batch = n->log.flight.count ? &n->log.flight : NULL;
    node_run(n);
    while (batch || (batch = log_flush(n))) {
        lone_write(l, batch, n->log.durable);
        node_durable(n, 1 << 30, n->log.full);
        batch = NULL;
    }
}

/* Its view: itself and `peers` others, all UP. */
static void lone_view(struct lone *l, uint64_t epoch, unsigned peers, uint32_t replicas)
{
    struct {
        struct view view;
        struct member members[MEMBERS_MAX];
    } v = {{epoch, LONE_CLUSTER, replicas, peers + 1}, {{0}}};
    for (unsigned i = 0; i <= peers; i++) {
        v.members[i].id = LONE_ID + i;
        v.members[i].weight = 1;
        v.members[i].state = MEMBER_UP;
        snprintf(v.members[i].address, ADDRESS_BYTES, "127.0.0.1:%u", i + 1);
    }
    view_adopt(l->node, &v.view);
    lone_settle(l);
}

/* Time goes on, and every member is live, if `alive`. */
static void lone_tick(struct lone *l, uint64_t us, bool alive)
{
    struct node *n = l->node;
    for (uint32_t i = 0; alive && n->view && i < n->view->members_count; i++) {
        n->member_peer[i]->heard_at = n->now + us;
        n->member_peer[i]->hears_us = true;
    }
    node_tick(n, n->now + us, n->wall + us);
    lone_settle(l);
}

/* An accept, as a proposer would send it: a record, or (value null) a tombstone. */
static void lone_accept(struct lone *l, struct ballot ballot, const char *key, const char *value)
{
    struct message m = {.type = M_ACCEPT, .round_id = 1, .ballot = ballot};
    m.flags = FLAG_RECORD | FLAG_WHOLE | (value ? 0 : FLAG_TOMBSTONE);
    m.key_bytes = (uint16_t)strlen(key);
    m.value_bytes = value ? (uint32_t)strlen(value) : 0;
    m.partition = key_partition(key, m.key_bytes);
    m.write_id = ballot.time * 31;
    m.modified = ballot.time;
    struct bytes whole = {0};
    message_append(&whole, &m, &(struct body){.key = key, .value = value});
    on_accept(l->node, l->node->self_peer, (const struct message *)whole.data);
    bytes_free(&whole);
}
