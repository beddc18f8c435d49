/*
 * fuzz_mail.c - a member of a cluster of three gets any mail, while its clients ask for things, time
 * goes on and its disk writes. The bytes are a list of events, see struct step. What would keep mail
 * from being read at all is put right: batch headers, lengths, names of what is under way.
 */
#define PARTITION_BITS 4
#define ring_place     ring_place_slowly
#include "../ring.c"
#undef ring_place

#include <stdio.h>
static FILE *silence; /* what the node has to say */
#undef stderr
#define stderr silence
static void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                       uint64_t mask, unsigned replicas);
#include "lone.h"
#undef stderr

/* 0 what, 1 who, 2 bytes that follow (u16) */
struct step {
    uint8_t what, who;
    uint16_t bytes;
};
enum { MAIL, RAW_MAIL, TICK, REQUEST, LIST, DISK, WHATS };
enum { STEPS_MAX = 24, KEYS = 6, FREE_FORM = 0x80 };

static const char *const keys[KEYS] = {"live", "gone", "mortal", "promise", "none", "number"};

/* The ring of few members is asked for again and again. */
static void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                       uint64_t mask, unsigned replicas)
{
    static struct {
        uint64_t name;
        struct ring ring;
    } made[256];
    uint64_t of[] = {XXH3_64bits(members, members_count * sizeof *members), mask, replicas};
    uint64_t name = XXH3_64bits(of, sizeof of);
    if (made[name % 256].name != name) {
        made[name % 256].name = name;
        ring_place_slowly(&made[name % 256].ring, members, members_count, mask, replicas);
    }
    *ring = made[name % 256].ring;
}

static void request(struct lone *l, uint8_t function, uint8_t flags, const char *key,
                    const void *value, size_t bytes)
{
    struct node *n = l->node;
    struct message m = {.type = M_FORWARD, .flags = flags | FLAG_WHOLE | FLAG_FRESH};
    m.function = function;
    m.key_bytes = (uint16_t)strlen(key);
    m.value_bytes = (uint32_t)bytes;
    m.partition = key_partition(key, m.key_bytes);
    m.version = node_random(n);
    m.dropped = clock_tick(n);
    m.number = 1;
    node_request(n, l, &m, &(struct body){.key = key, .value = value}, flags ? 5 * SECOND : 0);
}

/* A member with a record, a tombstone, a record that expires, a promise, and something under way. */
static void begin(struct lone *l)
{
    struct node *n = lone_node(l);
    l->disk.count = 0;
    lone_view(l, 1, LONE_PEERS, 3);
    lone_tick(l, 1000, true);
    struct ballot b = {1, n->wall, LONE_ID + 1};
    lone_accept(l, b, keys[0], "value");
    lone_accept(l, b, keys[1], NULL);
    lone_accept(l, b, keys[2], "mortal");
    lone_accept(l, b, keys[5], "17");
    struct partition *p = &n->partitions[key_partition(keys[2], strlen(keys[2]))];
    entry_find(p, keys[2], strlen(keys[2]))->expiry = n->wall + 2 * SECOND;
    lone_settle(l);
    request(l, DO_PUT, 0, keys[0], "new", 3);
    request(l, DO_ADD, 0, keys[5], NULL, 0);
    request(l, DO_READ, 0, keys[1], NULL, 0);
    request(l, DO_READ, FLAG_WATCH, keys[4], NULL, 0);
    request(l, DO_PUT, FLAG_ONE, keys[3], "one", 3);
    node_list(n, l, "", 0, "", 0, 5);
    lone_settle(l);
}

/* The op of the nth of what is under way. */
static uint64_t op_under_way(const struct node *n, unsigned nth)
{
    const struct listing *l = n->listings;
    const struct request *q = n->forwards;
    for (int i = 0; i < SYNCS_MAX; i++)
        if (n->syncs[i].busy && nth-- == 0)
            return n->syncs[i].op;
    for (; l; l = l->next)
        if (nth-- == 0)
            return l->op;
    for (; q; q = q->next)
        if (nth-- == 0)
            return q->m->op;
    for (int i = 0; i < ROUND_BUCKETS; i++)
        for (const struct round *r = n->by_op[i]; r; r = r->next_by_op)
            if (nth-- == 0)
                return r->op;
    return 0;
}

static uint64_t time_near(const struct node *n, uint64_t time)
{
    return time < 1 << 20 ? n->clock + time - (1 << 19) : time;
}

/* Makes bytes a message: of what they say, as far as its parts have room. Returns its size, 0: no. */
static size_t message_mend(const struct node *n, uint8_t *data, size_t room)
{
    struct message *m = (struct message *)data;
    if (room < sizeof *m)
        return 0;
    size_t left = room - sizeof *m;
    bool free_form = m->zero[0] & FREE_FORM;
    m->type %= M_TYPES;
    m->answers %= 4;
    m->answers = (uint16_t)min_u64(m->answers, left / sizeof(struct answer));
    left -= m->answers * sizeof(struct answer);
    if (!free_form && m->type != M_HEARTBEAT && m->type != M_JOIN)
        m->key_bytes = (uint16_t)strlen(keys[m->key_bytes % KEYS]);
    m->key_bytes = (uint16_t)min_u64(m->key_bytes, left);
    left -= m->key_bytes;
    m->type_bytes = (uint16_t)min_u64(m->type_bytes % 64, left);
    left -= m->type_bytes;
    if (m->flags & FLAG_WHOLE)
        m->value_bytes = (uint32_t)min_u64(m->value_bytes, left);
    m->bytes = (uint32_t)message_bytes(m);
    if (m->bytes > room)
        return 0;
    uint8_t *key = data + sizeof *m + m->answers * sizeof(struct answer);
    for (int i = 0; i < KEYS && !free_form; i++)
        if (strlen(keys[i]) == m->key_bytes)
            memcpy(key, keys[i], m->key_bytes);
    m->partition = free_form ? m->partition % (VIEWS_PARTITION + 1)
                             : key_partition(key, m->key_bytes);
    m->op = m->op < 64 ? op_under_way(n, (unsigned)m->op) : m->op;
    m->ballot.epoch = m->ballot.epoch < 4 ? m->ballot.epoch : 1;
    m->ballot.time = time_near(n, m->ballot.time);
    m->dropped = time_near(n, m->dropped);
    return m->bytes;
}

/* `data` has room for a header and the bytes behind it. */
static void mail_to(struct lone *l, const struct step *step, uint8_t *data, size_t bytes)
{
    struct node *n = l->node;
    struct batch *b = (struct batch *)data;
    size_t count = sizeof *b, part = 1;
    *b = (struct batch){.magic = MAIL_MAGIC, .cluster = n->cluster, .from = LONE_ID + step->who % 6};
    b->to = step->who & 0x80 ? 0 : n->id;
    b->epoch = node_epoch(n) + (step->who >> 4 & 1) - (step->who >> 5 & 1);
    b->clock = n->clock + (step->who >> 6 & 1);
    if (step->what % WHATS == RAW_MAIL)
        count += bytes & ~(size_t)7;
    else
        while (part && count < sizeof *b + bytes)
            count += part = message_mend(n, data + count, sizeof *b + bytes - count);
    b->bytes = (uint32_t)count;
    b->check = XXH3_64bits(&b->cluster, count - 16);
    node_receive(n, data, count);
}

/* Whatever leaves can be read by those who get it. */
static void outboxes_check(struct node *n)
{
    struct bytes out = {0};
    for (size_t i = 0; i < n->peers_count; i++)
        for (int which = 0; which < 2; which++) {
            if (!mail_take(n, n->peers[i], which, &out))
                continue;
            for (size_t at = sizeof(struct batch); at < out.count;) {
                const struct message *m = message_parse(out.data + at, out.count - at);
                assert(m);
                at += m->bytes;
            }
        }
    bytes_free(&out);
}

/* (E1) and the sums, whatever came. */
static void index_check(const struct node *n)
{
    uint64_t count = 0, bytes = 0, live = 0;
    for (unsigned i = 0; i <= PARTITIONS; i++) {
        const struct partition *p = &n->partitions[i];
        for (uint32_t j = 0; j < p->count; j++) {
            const struct entry *e = p->entries[j], *before = j ? p->entries[j - 1] : NULL;
            assert(!before || key_compare(before->key, before->key_bytes, e->key, e->key_bytes) < 0);
            assert(e->flags & FLAG_RECORD || e->promised);
            assert(!(e->flags & FLAG_RECORD) || e->lsn + e->record_bytes <= log_end(n));
            count += entry_is_live(e) && i < PARTITIONS;
            bytes += entry_is_live(e) && i < PARTITIONS ? e->value_bytes : 0;
            live += e->record_bytes;
        }
    }
    for (size_t e = 0; e < n->views_count; e++)
        live += view_bytes(n->views[e]);
    assert(count == n->keys && bytes == n->value_bytes && live == n->log.live_bytes);
}

static void step_do(struct lone *l, const struct step *step, uint8_t *data)
{
    static const uint8_t functions[] = {DO_READ, DO_PUT, DO_DELETE, DO_ADD};
    static const uint8_t flags[] = {0, FLAG_ALL, FLAG_ONE, FLAG_WATCH};
    struct node *n = l->node;
    const uint8_t *bytes = data + sizeof(struct batch);
    switch (step->what % WHATS) {
    case MAIL:
    case RAW_MAIL:
        mail_to(l, step, data, step->bytes);
        break;
    case TICK:
        lone_tick(l, 1 + (uint64_t)step->who * 20 * MS, step->what & 0x40);
        break;
    case REQUEST:
        request(l, functions[step->who % 4], step->who & 0x40 ? 0 : flags[step->who / 4 % 4],
                keys[step->who / 16 % KEYS], bytes, step->bytes);
        break;
    case LIST:
        node_list(n, l, bytes, step->bytes % 4, bytes, min_u64(step->bytes, 8), 1 + step->who % 8);
        break;
    case DISK:
        l->cold = step->who & 1;
        if (n->self >= 0 && step->who & 2)
            node_drain(n, step->who / 4 % (int)n->view->members_count);
        break;
    }
    lone_settle(l);
    outboxes_check(n);
    if (l->replies) {
        const struct message *m = (const struct message *)l->reply.data;
        assert(m->status >= 200 && m->status <= STATUS_UNKNOWN);
        l->replies = 0;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t count)
{
    static struct lone l;
    static _Alignas(8) uint8_t room[sizeof(struct batch) + UINT16_MAX + 8];
    if (!silence)
        silence = fopen("/dev/null", "w");
    begin(&l);
    struct step step;
    for (int i = 0; i < STEPS_MAX && count >= sizeof step && !l.node->gone; i++) {
        memcpy(&step, data, sizeof step);
        data += sizeof step;
        count -= sizeof step;
        step.bytes = (uint16_t)min_u64(step.bytes, count);
        memset(room, 0, sizeof(struct batch) + step.bytes + 8u);
        memcpy(room + sizeof(struct batch), data, step.bytes);
        data += step.bytes;
        count -= step.bytes;
        step_do(&l, &step, room);
    }
    index_check(l.node);
    lone_node_free(&l);
    return 0;
}
