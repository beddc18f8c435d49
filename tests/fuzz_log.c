/*
 * fuzz_log.c - a log of any bytes is read at a start. The bytes are a list of batches (struct piece):
 * whole ones, whose messages are what the log holds and whose checksum fits, and anything between.
 * Any log is read without harm, read twice it gives the same, and a node that got through
 * goes on.
 */
#define PARTITION_BITS 4
#include <stdio.h>
static FILE *silence; /* what the node has to say */
#undef stderr
#define stderr     silence
#define ring_place ring_place_slowly
#include "../ring.c"
#undef ring_place
#define ring_place ring_place_slowly
#include "lone.h"
#undef stderr

struct piece {
    uint8_t what, bytes; /* that follow */
};
enum { RUBBISH = 1, TORN = 2, MOVED = 4, UNCHECKED = 8, FIRST_IS_HERE = 16 };

struct recipe {
    uint8_t type, key, value_bytes, flags, time, epoch;
};

static void entry_cook(const struct recipe *r, const uint8_t *value, struct bytes *to)
{
    static const uint8_t types[] = {M_ACCEPT,        M_ACCEPT, M_ACCEPT, M_CLOCK_BOUND,
                                    M_PROMISE_FLOOR, M_VIEW,   M_DROP,   M_ACCEPT};
    char key[4] = {(char)('a' + r->key % 16)};
    struct message m = {.type = types[r->type % 8], .flags = FLAG_RECORD | FLAG_WHOLE};
    struct {
        struct view view;
        struct member member;
    } v = {{1 + r->epoch % 4, LONE_CLUSTER, 3, 1}, {.id = LONE_ID + r->key % 2, .weight = 1}};
    v.member.state = MEMBER_UP;
    m.ballot = (struct ballot){1 + r->epoch % 4, LONE_WALL + r->time, LONE_ID};
    m.partition = key_partition(key, 1);
    m.number = LONE_WALL + r->time * SECOND / 16;
    m.modified = m.ballot.time;
    struct body body = {.key = key, .value = value};
    if (m.type == M_ACCEPT) {
        m.flags |= r->flags & FLAG_TOMBSTONE;
        m.key_bytes = 1;
        m.value_bytes = r->flags & FLAG_TOMBSTONE ? 0 : r->value_bytes;
    } else if (m.type == M_VIEW) {
        m.value_bytes = (uint32_t)view_bytes(&v.view);
        body.value = &v;
    }
    message_append(to, &m, &body);
}

static void batch_cook(struct lone *l, const struct piece *p, const uint8_t *data)
{
    struct bytes b = {0};
    struct recipe r;
    bytes_extend(&b, sizeof(struct log_header));
    for (size_t at = 0; at + sizeof r <= p->bytes; at += r.value_bytes) {
        memcpy(&r, data + at, sizeof r);
        at += sizeof r;
        r.value_bytes = (uint8_t)min_u64(r.value_bytes, p->bytes - at);
        size_t start = b.count;
        entry_cook(&r, data + at, &b);
        struct message *m = (struct message *)(b.data + start);
        m->check = m->type == M_ACCEPT ? message_check(m, true) : 0;
        m->check ^= r.flags & 0x40; /* a record may be damaged by itself */
    }
    struct log_header *h = (struct log_header *)b.data;
    *h = (struct log_header){.magic = LOG_MAGIC, .bytes = (uint32_t)b.count};
    h->lsn = l->disk.count + (p->what & MOVED ? 8 : 0);
    h->first = p->what & FIRST_IS_HERE ? l->disk.count : 0;
    h->id = LONE_ID;
    h->check = XXH3_64bits(&h->lsn, h->bytes - 16) + !!(p->what & UNCHECKED);
    bytes_append(&l->disk, b.data, p->what & TORN ? b.count / 2 : b.count);
    bytes_free(&b);
}

static uint64_t state_of(const struct node *n)
{
    uint64_t of[] = {n->keys, n->log.live_bytes, n->clock_bound, log_end(n), node_epoch(n)};
    uint64_t sum = XXH3_64bits(of, sizeof of);
    for (unsigned p = 0; p <= PARTITIONS; p++) {
        const struct partition *q = &n->partitions[p];
        sum = XXH3_64bits_withSeed(&q->promise_floor, sizeof q->promise_floor, sum ^ q->digest);
        for (uint32_t i = 0; i < q->count; i++)
            if (q->entries[i]->flags & FLAG_RECORD)
                sum = XXH3_64bits_withSeed(&q->entries[i]->accepted, sizeof(struct ballot), sum);
    }
    return sum;
}

/* The state that a start finds; 0: the log is damaged. */
static uint64_t recover(struct lone *l, uint64_t start)
{
    struct node *n = lone_node(l);
    bool whole = node_recover(n, start, l->disk.count);
    assert(log_end(n) >= start && log_end(n) <= l->disk.count);
    assert(n->log.first <= log_end(n));
    return whole ? state_of(n) : 0;
}

/* A request for each key, and time: reads what the log says is there. */
static void go_on(struct lone *l)
{
    lone_tick(l, SECOND, true);
    for (char key = 'a'; key < 'a' + 16; key++) {
        struct message m = {.function = DO_READ, .key_bytes = 1};
        m.expiry = UINT64_MAX;
        m.partition = key_partition(&key, 1);
        node_request(l->node, l, &m, &(struct body){.key = &key}, 0);
        lone_settle(l);
    }
    node_list(l->node, l, (struct bytes){0}, (struct bytes){0}, 100, false);
    for (int i = 0; i < 5; i++)
        lone_tick(l, SECOND, true);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t count)
{
    static struct lone l;
    static const struct recipe member = {.type = 5};
    struct piece p;
    if (!silence)
        silence = fopen("/dev/null", "w");
    l.disk.count = 0;
    if (count % 4) /* mostly, it is a member; count % 4 == 0: it may be anything */
        batch_cook(&l, &(struct piece){0, sizeof member}, (const uint8_t *)&member);
    while (count >= sizeof p) {
        memcpy(&p, data, sizeof p);
        data += sizeof p;
        count -= sizeof p;
        p.bytes = (uint8_t)min_u64(p.bytes, count);
        if (p.what & RUBBISH)
            bytes_append(&l.disk, data, p.bytes & ~7u);
        else
            batch_cook(&l, &p, data);
        data += p.bytes;
        count -= p.bytes;
    }
    uint64_t state = recover(&l, 0);
    lone_node_free(&l);
    assert(recover(&l, 0) == state);
    bool chained = true; /* a damaged log may lack a view; it is not gone on with */
    for (size_t e = 0; e < l.node->views_count; e++)
        chained &= l.node->views[e] != NULL;
    if (state && chained) {
        lone_settle(&l); /* the last batch is written again */
        go_on(&l);
        state = state_of(l.node);
        lone_node_free(&l);
        assert(recover(&l, 0) == state);
    }
    lone_node_free(&l);
    return 0;
}
