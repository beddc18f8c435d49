/*
 * fuzz_frames.c - a member of a cluster of three gets any frames, while its clients send requests,
 * time goes on and its disk writes. The input is a list of events (struct step) and of recipes for
 * messages (struct recipe). Lengths and checksums are right, so that the messages are what is tried.
 */
#define PARTITION_BITS 4
#define ring_place     ring_place_slowly
#include "../ring.c"
#undef ring_place

#include <stdio.h>
static FILE *silence; /* what the node would log */
#undef stderr
#define stderr silence
static void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                       uint64_t mask, unsigned replicas);
#include "lone.h"
#undef stderr

struct step {
    uint8_t what, who, bytes; /* that follow */
};
enum { MESSAGES, RAW_BYTES, TICK, REQUEST, LIST, DISK, WHATS };
enum { STEPS_MAX = 24, KEYS = 6 };

static const char *const keys[KEYS] = {"live", "gone", "mortal", "promise", "none", "number"};

/* The rings of few members are needed again and again, so they are kept. */
static void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                       uint64_t mask, unsigned replicas)
{
    static struct {
        uint64_t name;
        struct ring ring;
    } kept[256];
    uint64_t of[] = {XXH3_64bits(members, members_count * sizeof *members), mask, replicas};
    uint64_t name = XXH3_64bits(of, sizeof of);
    if (kept[name % 256].name != name) {
        kept[name % 256].name = name;
        ring_place_slowly(&kept[name % 256].ring, members, members_count, mask, replicas);
    }
    *ring = kept[name % 256].ring;
}

static void request(struct lone *l, uint8_t function, uint8_t flags, const char *key,
                    const void *value, size_t bytes)
{
    struct node *n = l->node;
    struct message m = {.flags = flags | FLAG_FRESH, .function = function};
    m.key_bytes = (uint16_t)strlen(key);
    if (function == DO_PUT) { /* the others have no value */
        m.flags |= FLAG_WHOLE;
        m.value_bytes = (uint32_t)bytes;
    }
    m.partition = key_partition(key, m.key_bytes);
    m.write_id = node_random(n);
    m.issued_at = clock_tick(n);
    m.number = 1;
    m.expiry = function == DO_READ ? UINT64_MAX : 0;
    node_request(n, l, &m, &(struct body){.key = key, .value = value}, flags ? 5 * SECOND : 0);
}

/* A member with a record, a tombstone, a record that expires, a promise, and requests in flight. */
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
    node_list(n, l, (struct bytes){0}, (struct bytes){0}, 5, false);
    lone_settle(l);
}

/* The id of the nth sync, listing or round in flight. */
static uint64_t id_in_flight(const struct node *n, unsigned nth)
{
    const struct listing *l = STAILQ_FIRST(&n->listings);
    for (int i = 0; i < SYNCS_MAX; i++)
        if (n->syncs[i].due && nth-- == 0)
            return n->syncs[i].page_id;
    for (; l; l = STAILQ_NEXT(l, next))
        if (nth-- == 0)
            return l->page_id;
    for (int i = 0; i < ROUND_BUCKETS; i++)
        for (const struct round *r = LIST_FIRST(&n->by_id[i]); r; r = LIST_NEXT(r, by_id))
            if (nth-- == 0)
                return r->round_id;
    return 0;
}

/* One message, in few bytes: what a peer could send about the keys that are known here. */
struct recipe {
    uint8_t type, flags, key, round, epoch, node, results, function, condition, listed;
    uint8_t value_bytes;
    int8_t time;   /* from now on, in quarters of a second */
    uint16_t text; /* above LIES: parts that no correct node sends */
    uint16_t status;
};
enum { LIES = 0xf000 };

/* The value of a list, or of the next view: well-formed, except for what the recipe changes. */
static void value_cook(const struct node *n, const struct recipe *r, struct ballot ballot,
                       struct bytes *value)
{
    for (int i = 0; r->type % M_TYPES == M_LISTED && i < KEYS; i++) {
        struct listed l = {.ballot = ballot, .write_id = 5, .modified = ballot.time};
        l.key_bytes = (uint16_t)strlen(keys[i]);
        l.flags = (uint8_t)(FLAG_RECORD | (r->status >> i & 1 ? FLAG_TOMBSTONE : 0));
        l.value_bytes = r->value_bytes;
        if (r->listed >> i & 1)
            listed_append(value, &l, keys[i]);
    }
    if (r->type % M_TYPES == M_HEARTBEAT)
        memset(bytes_extend(value, sizeof(struct heartbeat)), r->value_bytes,
               sizeof(struct heartbeat));
    if (r->type % M_TYPES != M_VIEW || !n->view)
        return;
    bytes_append(value, n->view, view_bytes(n->view));
    struct view *v = (struct view *)value->data;
    v->epoch += r->epoch % 4;
    v->members[r->node % v->members_count].state = r->function % 4;
    v->members[r->node % v->members_count].weight = r->condition % 8;
    v->members_count -= v->members_count > 1 && r->results & 1;
    value->count = view_bytes(v);
}

static void message_cook(const struct node *n, const struct recipe *r, const uint8_t *text,
                         struct bytes *to)
{
    static const struct result results[4] = {{1, 1, 1, 200, 0}, {7, 7, 7, 412, 0}};
    const char *key = keys[r->key % KEYS];
    struct message m = {.type = r->type % M_TYPES, .flags = r->flags, .status = r->status};
    struct bytes value = {0};
    m.ballot = (struct ballot){r->epoch % 4, n->clock + (uint64_t)(r->time * 250 * (int64_t)MS),
                               LONE_ID + r->node % 4};
    m.key_bytes = (uint16_t)strlen(key);
    m.partition = key_partition(key, m.key_bytes);
    if (m.type == M_LISTED || m.type == M_VIEW) /* else the node ignores their values */
        m.key_bytes = 0;
    m.round_id = r->round ? id_in_flight(n, r->round - 1u) : 0;
    m.results_count = r->results % 5;
    m.function = r->function;
    m.condition = r->condition;
    m.modified = m.results_lost_until = m.ballot.time;
    m.write_id = m.number = r->listed;
    m.expiry = r->listed & 1 ? m.ballot.time : 0;
    if (r->text > LIES) {
        m.partition = r->text % (VIEWS_PARTITION + 1);
        m.key_bytes = (uint16_t)min_u64(strlen(key), r->text % 8);
    }
    value_cook(n, r, m.ballot, &value);
    if (!value.count)
        bytes_append(&value, text, r->value_bytes);
    m.value_bytes = r->text > LIES && !(r->flags & FLAG_WHOLE) ? r->text : (uint32_t)value.count;
    struct body body = {results, key, NULL, value.data};
    if (m.results_count == 4) /* more than there are */
        m.results_count = 0;
    message_append(to, &m, &body);
    bytes_free(&value);
}

/* Recipes, each followed by the bytes of its value. */
static void messages_cook(const struct node *n, const uint8_t *data, size_t bytes, struct bytes *to)
{
    struct recipe r;
    while (bytes >= sizeof r) {
        memcpy(&r, data, sizeof r);
        bytes -= sizeof r;
        data += sizeof r;
        r.value_bytes = (uint8_t)min_u64(r.value_bytes, bytes);
        message_cook(n, &r, data, to);
        data += r.value_bytes;
        bytes -= r.value_bytes;
    }
}

static void frame_to(struct lone *l, const struct step *step, const uint8_t *data)
{
    struct node *n = l->node;
    struct bytes frame = {0};
    struct frame *b = bytes_extend(&frame, sizeof *b);
    if (step->what % WHATS == RAW_BYTES)
        bytes_append(&frame, data, step->bytes & ~7u);
    else
        messages_cook(n, data, step->bytes, &frame);
    b = (struct frame *)frame.data;
    *b = (struct frame){
        .magic = FRAME_MAGIC, .cluster = n->cluster, .from = LONE_ID + step->who % 6};
    b->from *= (step->who & 0xf) != 0xf;
    b->to = step->who & 0x80 ? 0 : n->id;
    b->epoch = node_epoch(n) + (step->who >> 4 & 1) - (step->who >> 5 & 1);
    b->clock = n->clock + (step->who >> 6 & 1);
    b->bytes = (uint32_t)frame.count;
    b->check = frame_check(b);
    node_receive(n, frame.data, frame.count);
    bytes_free(&frame);
}

/* Every frame that leaves can be parsed. */
static void outboxes_check(struct node *n)
{
    struct bytes out = {0};
    for (size_t i = 0; i < n->peers_count; i++)
        for (int which = 0; which < 2; which++) {
            if (!frame_take(n, n->peers[i], which, &out))
                continue;
            for (size_t at = sizeof(struct frame); at < out.count;) {
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
            assert(!before ||
                   key_compare(before->key, before->key_bytes, e->key, e->key_bytes) < 0);
            assert(e->flags & FLAG_RECORD || e->promised);
            assert(!(e->flags & FLAG_RECORD) || e->lsn + e->record_bytes <= log_end(n));
            count += is_live(e->flags) && i < PARTITIONS;
            bytes += is_live(e->flags) && i < PARTITIONS ? e->value_bytes : 0;
            live += e->record_bytes;
        }
    }
    for (size_t e = 0; e < n->views_count; e++)
        live += sizeof(struct message) + view_bytes(n->views[e]);
    assert(count == n->keys && bytes == n->value_bytes && live == n->log.live_bytes);
}

static void step_do(struct lone *l, const struct step *step, const uint8_t *bytes)
{
    static const uint8_t functions[] = {DO_READ, DO_PUT, DO_DELETE, DO_ADD};
    static const uint8_t flags[] = {0, FLAG_ALL, FLAG_ONE, FLAG_WATCH};
    struct node *n = l->node;
    switch (step->what % WHATS) {
    case MESSAGES:
    case RAW_BYTES:
        frame_to(l, step, bytes);
        break;
    case TICK:
        lone_tick(l, 1 + (uint64_t)step->who * 20 * MS, step->what & 0x40);
        break;
    case REQUEST:
        request(l, functions[step->who % 4], step->who & 0x40 ? 0 : flags[step->who / 4 % 4],
                keys[step->who / 16 % KEYS], bytes, step->bytes);
        break;
    case LIST:
        node_list(n, l, (struct bytes){(uint8_t *)bytes, step->bytes % 4, 0},
                  (struct bytes){(uint8_t *)bytes, min_u64(step->bytes, 8), 0}, 1 + step->who % 8,
                  step->who % 2);
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
    if (!silence)
        silence = fopen("/dev/null", "w");
    begin(&l);
    struct step step;
    for (int i = 0; i < STEPS_MAX && count >= sizeof step && !l.node->gone; i++) {
        memcpy(&step, data, sizeof step);
        data += sizeof step;
        count -= sizeof step;
        step.bytes = (uint8_t)min_u64(step.bytes, count);
        step_do(&l, &step, data);
        data += step.bytes;
        count -= step.bytes;
    }
    index_check(l.node);
    lone_node_free(&l);
    return 0;
}
