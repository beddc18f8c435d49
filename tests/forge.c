/* forge.c - see forge.h. What a frame looks like is the program's own text. */
#pragma GCC diagnostic ignored "-Wunused-function"
#define main forge_estoraje_main
#include "../estoraje.c"
#undef main

#include "forge.h"

static const char key[] = "forged";

static uint64_t forge_clock(void)
{
    return clock_us(CLOCK_REALTIME);
}

/* Makes the frame's head, now that its messages are there. */
static uint8_t *frame_close(const struct forger *f, struct bytes *frame, uint64_t ahead,
                            size_t *bytes)
{
    struct frame *b = (struct frame *)frame->data;
    uint64_t clock = forge_clock() + ahead;
    *b = (struct frame){.magic = FRAME_MAGIC, .bytes = (uint32_t)frame->count};
    b->cluster = f->cluster;
    b->from = f->from;
    b->to = f->to;
    b->clock = b->latest_time = b->wall = clock;
    b->epoch = f->epoch;
    b->check = frame_check(b);
    struct server signer = {.secret = (char *)f->secret};
    frame_sign(&signer, b);
    *bytes = frame->count;
    return frame->data;
}

static void view_forge(const struct forger *f, enum forgery what, struct bytes *frame)
{
    struct {
        struct view view;
        struct member members[MEMBERS_MAX];
    } v = {{f->epoch + (what == FORGE_FAR_VIEW ? UINT32_MAX : 1), f->cluster, 3, 0}, {{0}}};
    for (int i = 0; i < (what == FORGE_VIEW_OF_64 ? MEMBERS_MAX : f->members_count); i++) {
        struct member *m = &v.members[v.view.members_count];
        *m = (struct member){.id = 7000 + (uint64_t)i, .weight = 1, .state = MEMBER_UP};
        if (what != FORGE_VIEW_OF_64)
            m->id = f->members[i];
        snprintf(m->address, sizeof m->address, "127.0.0.1:%d", i + 1);
        v.view.members_count += m->id != f->to;
    }
    struct message m = {.type = M_VIEW, .flags = FLAG_WHOLE, .value_bytes = view_bytes(&v.view)};
    message_append(frame, &m, &(struct body){.value = &v});
}

static void heartbeat_forge(const struct forger *f, enum forgery what, unsigned nth,
                            struct bytes *frame)
{
    static const char *const bad[] = {"127.0.0.1:1/_mail?", "127.0.0.1:1\"", "127.0.0.1\n:1",
                                      "user@127.0.0.1:1", "127.0.0.1:1 "};
    struct heartbeat beat = {.heard = {f->to}};
    char *address = (char[ADDRESS_BYTES]){0};
    if (what == FORGE_WISHES)
        beat.leave = ~UINT64_C(0);
    snprintf(address, ADDRESS_BYTES, "127.0.0.1:%u", 1 + nth % 9);
    if (what == FORGE_BAD_ADDRESS)
        snprintf(address, ADDRESS_BYTES, "%s", bad[nth % (sizeof bad / sizeof *bad)]);
    struct message m = {.type = M_HEARTBEAT, .flags = FLAG_WHOLE, .value_bytes = sizeof beat};
    m.key_bytes = (uint16_t)strlen(address);
    m.status = 1;
    m.number = 1;
    message_append(frame, &m, &(struct body){.key = address, .type = "", .value = &beat});
}

static void record_forge(enum forgery what, unsigned nth, struct bytes *frame)
{
    static const uint8_t types[] = {[FORGE_FAR_PREPARE] = M_PREPARE,
                                    [FORGE_FAR_ACCEPT] = M_ACCEPT,
                                    [FORGE_ACCEPT] = M_ACCEPT,
                                    [FORGE_FAR_FLOOR] = M_DIGEST};
    struct message m = {
        .type = types[what], .round_id = nth % 2, .flags = FLAG_WHOLE | FLAG_RECORD};
    uint64_t now = forge_clock();
    m.ballot = (struct ballot){UINT64_MAX, UINT64_MAX, UINT64_MAX};
    if (what == FORGE_ACCEPT)
        m.ballot = (struct ballot){1, now, 1};
    m.modified = m.ballot.time;
    m.write_id = now;
    m.key_bytes = what == FORGE_FAR_FLOOR ? 0 : sizeof key - 1;
    m.value_bytes = what == FORGE_FAR_FLOOR ? 0 : sizeof key - 1;
    m.partition = what == FORGE_FAR_FLOOR ? nth % PARTITIONS : key_partition(key, sizeof key - 1);
    message_append(frame, &m, &(struct body){.key = key, .value = key});
}

static void question_forge(unsigned nth, struct bytes *frame)
{
    static const uint8_t types[] = {M_LIST, M_READ, M_PULL, M_VIEW};
    struct message m = {.type = types[nth % 4], .round_id = 1 + nth, .expiry = UINT64_MAX};
    m.results_lost_until = UINT64_MAX;
    m.flags = m.type == M_READ ? FLAG_WHOLE | FLAG_WATCH : 0;
    m.key_bytes = m.type == M_VIEW ? 0 : sizeof key - 1;
    m.partition = (uint16_t)(m.type == M_LIST ? nth % PARTITIONS : key_partition(key, m.key_bytes));
    message_append(frame, &m, &(struct body){.key = key});
}

/* Whole messages of which the last is spoilt. */
static void spoilt_forge(enum forgery what, unsigned nth, struct bytes *frame)
{
    size_t at = frame->count;
    record_forge(FORGE_FAR_PREPARE, nth, frame);
    struct message *m = (struct message *)(frame->data + at);
    if (what == FORGE_UNKNOWN_TYPE)
        m->type = (uint8_t)(nth % 2 ? M_TYPES + nth / 2 % 8 : M_CLOCK_BOUND + nth / 2 % 8);
    else if (nth % 3 == 0)
        m->bytes += 8 << nth % 24;
    else if (nth % 3 == 1)
        m->key_bytes = m->type_bytes = m->results_count = UINT16_MAX;
    else
        frame->count -= 8 * (1 + nth % 13);
}

uint8_t *forge(const struct forger *f, enum forgery what, unsigned nth, size_t *bytes)
{
    struct bytes frame = {0};
    memset(bytes_extend(&frame, sizeof(struct frame)), 0, sizeof(struct frame));
    switch (what) {
    case FORGE_EVICTING_VIEW:
    case FORGE_VIEW_OF_64:
    case FORGE_FAR_VIEW:
        view_forge(f, what, &frame);
        break;
    case FORGE_ASKING:
        for (unsigned i = 0; i < 100; i++)
            question_forge(100 * nth + i, &frame);
        break;
    case FORGE_FAR_PREPARE:
    case FORGE_FAR_ACCEPT:
    case FORGE_FAR_FLOOR:
    case FORGE_ACCEPT:
        record_forge(what, nth, &frame);
        break;
    case FORGE_CUT_OFF:
    case FORGE_UNKNOWN_TYPE:
        spoilt_forge(what, nth, &frame);
        break;
    default:
        heartbeat_forge(f, what, nth, &frame);
    }
    uint64_t ahead = what == FORGE_FAR_CLOCK ? (nth % 2 ? 3600 * SECOND : UINT64_MAX / 2) : 0;
    return frame_close(f, &frame, ahead, bytes);
}

uint8_t *forge_head(const struct forger *f, uint32_t more, size_t *bytes)
{
    struct bytes frame = {0};
    bytes_extend(&frame, sizeof(struct frame));
    frame_close(f, &frame, 0, bytes);
    ((struct frame *)frame.data)->bytes += more;
    return frame.data;
}

const uint8_t *forge_find(const uint8_t *sent, size_t count, size_t *at, size_t *bytes)
{
    for (; *at + sizeof(struct frame) <= count; ++*at) {
        struct frame b;
        memcpy(&b, sent + *at, sizeof b);
        if (b.magic == FRAME_MAGIC && b.bytes >= sizeof b && b.bytes <= count - *at) {
            *bytes = b.bytes;
            return sent + *at;
        }
    }
    return NULL;
}

uint64_t forge_to(const uint8_t *frame)
{
    struct frame b;
    memcpy(&b, frame, sizeof b);
    return b.to;
}
