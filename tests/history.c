/* history.c - the linearizability checker. history.h says what is checked.
 *
 *   1. Words         messages, memory
 *   2. Knowledge     what the whole history shows of each value and each ETag
 *   3. Plain faults  H1 to H3, each found in one pass
 *   4. Register      what one operation does to a state, and whether its answer fits
 *   5. Memory        configurations that are known to lead nowhere
 *   6. Search        Wing and Gong's, from one configuration to the next
 *   7. Verdict       history_check and the story of a violation
 *
 * To follow a check, start at history_check, then search_run and search_once.
 *
 * The search is Wing and Gong (1993): take away one operation that nothing still pending precedes,
 * do it on the register, go on from there; step back when none fits. A configuration is the set of
 * operations taken and the register's state; with Lowe (2017) none is searched twice. Seven ideas
 * keep the number of configurations near the number of operations:
 *
 * (S1) An operation that changes nothing and fits now is taken at once, with no way back: wherever
 *      another order has it, it can be moved here without a trace.
 * (S2) A value that somebody still has to read is not overwritten: each is written only once.
 * (S3) An unknown write whose value was read must have been applied, by the end of the first read.
 * (S4) All other unknown writes are never *needed* by their client, so they are tried last, and a
 *      configuration is discarded if it was met before with fewer of them used: whatever can follow
 *      the one can follow the other.
 * (S5) Unknown writes that do the same are one class, used in the order of their starts. Classes
 *      that differ only in their condition are a family: of those that fit now, the one that fits
 *      more rarely is used first. Values that nobody read are all the same value.
 * (S6) An order is first sought with few unknown writes in a row, then with any number. One that
 *      would do the same before the unknown write before it is left out: that was no use.
 * (S7) What cannot be ordered even if each unknown write may be applied any number of times cannot
 *      be ordered; and this is soon known, for then which of them were used makes no difference.
 */

#include "history.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. Words ----------------------------------------------------------------------------- */

/* Where a message grows; what does not fit is cut. */
struct text {
    char *bytes;
    size_t size, used;
};

static void text_add(struct text *, const char *, ...) __attribute__((format(printf, 2, 3)));

static void text_add(struct text *text, const char *format, ...)
{
    if (text->used + 1 >= text->size)
        return;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text->bytes + text->used, text->size - text->used, format, arguments);
    va_end(arguments);
    assert(length >= 0);
    text->used += (size_t)length;
}

static bool etag_is_known(const uint64_t etag[2])
{
    return etag[0] != 0 || etag[1] != 0;
}

static int etag_compare(const uint64_t a[2], const uint64_t b[2])
{
    if (a[0] != b[0])
        return a[0] < b[0] ? -1 : 1;
    return a[1] < b[1] ? -1 : a[1] > b[1];
}

static void text_add_value(struct text *text, uint64_t value, bool number)
{
    if (number)
        text_add(text, " number %" PRId64, (int64_t)value);
    else
        text_add(text, " value %" PRIu64, value);
}

static void text_add_op(struct text *text, const struct history_op *ops,
                        const struct history_op *op)
{
    static const char *const kinds[] = {"GET", "PUT", "DELETE", "ADD"};
    static const char *const outcomes[] = {"ok", "rejected", "unknown", "failed"};
    static const char *const existed[] = {"", ", made", ", replaced"};

    text_add(text, "    #%zu client %" PRIu64 " [%" PRIu64 ", ", (size_t)(op - ops), op->client,
             op->start);
    if (op->outcome == HISTORY_UNKNOWN)
        text_add(text, "...");
    else
        text_add(text, "%" PRIu64, op->end);
    text_add(text, "] %s", kinds[op->kind]);
    if (op->kind == HISTORY_PUT)
        text_add_value(text, op->value, op->number);
    if (op->kind == HISTORY_ADD)
        text_add(text, " %+" PRId64, op->delta);
    if (op->gone_from != 0)
        text_add(text, " gone from %" PRIu64 " to %" PRIu64, op->gone_from, op->gone_by);
    if (op->condition == HISTORY_IF_ABSENT)
        text_add(text, " if absent");
    if (op->condition == HISTORY_IF_PRESENT)
        text_add(text, " if present");
    if (op->condition == HISTORY_IF_ETAG)
        text_add(text, " if etag %" PRIx64 "-%" PRIx64, op->etag_expected[0], op->etag_expected[1]);
    text_add(text, ": %s%s", outcomes[op->outcome], existed[op->existed]);
    if (op->outcome == HISTORY_OK && op->kind == HISTORY_GET)
        text_add_value(text, op->value, op->number);
    if (op->outcome == HISTORY_OK && op->kind == HISTORY_ADD)
        text_add_value(text, op->value, true);
    if (etag_is_known(op->etag))
        text_add(text, ", etag %" PRIx64 "-%" PRIx64, op->etag[0], op->etag[1]);
    text_add(text, "\n");
}

/* Zeroed, never NULL. */
static void *memory_new(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);
    if (memory == NULL) {
        fprintf(stderr, "history: out of memory\n");
        abort();
    }
    return memory;
}

static void *memory_grow(void *memory, size_t count, size_t bytes)
{
    memory = reallocarray(memory, count, bytes);
    if (memory == NULL) {
        fprintf(stderr, "history: out of memory\n");
        abort();
    }
    return memory;
}

/* ---- 2. Knowledge ------------------------------------------------------------------------- */

/* A state's ETag. The store returns some and hides some: an unknown write's is learned when a read
 * returns it, perhaps never. One that only its own write returns is as good as any other. */
enum {
    ETAG_UNKNOWN, /* also: not returned */
    ETAG_OTHER,   /* known, and no other operation asks for it or returns it */
    ETAG_FIRST,   /* this and above: knowledge.etags[etag - ETAG_FIRST] */
};

enum { VALUE_UNREAD }; /* in the place of every value that nobody read; above: knowledge.values */

struct value {
    uint64_t id;
    const struct history_op *writer;
    const struct history_op *read;   /* the one that ended first, or NULL */
    const struct history_op *teller; /* of its ETag, or NULL */
    uint32_t reads_left;             /* in this configuration */
};

struct etag {
    uint64_t parts[2];
    const struct history_op *teller; /* of the value it names, or NULL */
    bool owned;          /* its write is known: no other state can turn out to have it */
    bool observed;       /* some other operation returns it or asks for it */
    uint32_t seen;       /* observations in this configuration: it belongs to a state already */
    uint32_t left;       /* observations still to come */
    uint64_t denied_bit; /* in struct state's denied */
};

struct knowledge {
    const struct history_op *ops;
    size_t count;
    struct value *values; /* sorted by id; 0 is VALUE_UNREAD */
    size_t value_count;
    struct etag *etags; /* sorted */
    size_t etag_count;
};

static int value_by_id(const void *a, const void *b)
{
    uint64_t id_a = ((const struct value *)a)->id, id_b = ((const struct value *)b)->id;
    return id_a < id_b ? -1 : id_a > id_b;
}

static int etag_by_parts(const void *a, const void *b)
{
    return etag_compare(((const struct etag *)a)->parts, ((const struct etag *)b)->parts);
}

static bool op_names_value(const struct history_op *op)
{
    return (op->kind == HISTORY_PUT || op->kind == HISTORY_GET) && !op->number;
}

/* Its ETag is that of the value which was there when it came. */
static bool op_shows_current_etag(const struct history_op *op)
{
    return etag_is_known(op->etag) && (op->outcome == HISTORY_REJECTED ||
                                       (op->outcome == HISTORY_OK && op->kind == HISTORY_GET));
}

/* Its ETag is the one it was given itself. */
static bool op_shows_new_etag(const struct history_op *op)
{
    return etag_is_known(op->etag) && op->outcome == HISTORY_OK &&
           (op->kind == HISTORY_PUT || op->kind == HISTORY_ADD);
}

static bool op_asks_for_etag(const struct history_op *op)
{
    return op->condition == HISTORY_IF_ETAG && op->outcome != HISTORY_FAILED;
}

static struct value *value_find(const struct knowledge *known, uint64_t id)
{
    struct value wanted = {.id = id};
    return bsearch(&wanted, known->values + 1, known->value_count - 1, sizeof wanted, value_by_id);
}

static struct etag *etag_find(const struct knowledge *known, const uint64_t parts[2])
{
    struct etag wanted = {.parts = {parts[0], parts[1]}};
    return bsearch(&wanted, known->etags, known->etag_count, sizeof wanted, etag_by_parts);
}

/* What a state holds for this ETag of an operation. */
static uint32_t etag_number(const struct knowledge *known, const uint64_t parts[2])
{
    if (!etag_is_known(parts))
        return ETAG_UNKNOWN;
    const struct etag *etag = etag_find(known, parts);
    assert(etag != NULL);
    return etag->observed ? ETAG_FIRST + (uint32_t)(etag - known->etags) : (uint32_t)ETAG_OTHER;
}

static void op_assert_sound(const struct history_op *op)
{
    assert(op->kind <= HISTORY_ADD && op->condition <= HISTORY_IF_ETAG);
    assert(op->outcome <= HISTORY_FAILED && op->existed <= HISTORY_REPLACED);
    assert(op->outcome == HISTORY_UNKNOWN || op->start <= op->end);
    assert(op->kind != HISTORY_GET || op->condition == HISTORY_ALWAYS);
    assert(op->kind != HISTORY_PUT || op->number || op->value != 0);
    assert(op->gone_from == 0 || (op->kind == HISTORY_PUT && op->gone_from <= op->gone_by));
    assert(op->condition != HISTORY_IF_ETAG || etag_is_known(op->etag_expected));
    assert(op->existed == HISTORY_NOT_KNOWN ||
           (op->kind == HISTORY_PUT && op->outcome == HISTORY_OK));
}

static void knowledge_add_etag(struct knowledge *known, const uint64_t parts[2])
{
    struct etag *etag = &known->etags[known->etag_count++];
    *etag = (struct etag){.parts = {parts[0], parts[1]}};
}

static void knowledge_gather(struct knowledge *known, const struct history_op *ops, size_t count)
{
    *known = (struct knowledge){.ops = ops, .count = count, .value_count = 1};
    known->values = memory_new(count + 1, sizeof *known->values);
    known->etags = memory_new(2 * count, sizeof *known->etags);
    for (const struct history_op *op = ops; op < ops + count; op++) {
        op_assert_sound(op);
        if (op->kind == HISTORY_PUT && !op->number)
            known->values[known->value_count++] = (struct value){.id = op->value, .writer = op};
        if (op_shows_current_etag(op) || op_shows_new_etag(op))
            knowledge_add_etag(known, op->etag);
        if (op_asks_for_etag(op))
            knowledge_add_etag(known, op->etag_expected);
    }
    qsort(known->values + 1, known->value_count - 1, sizeof *known->values, value_by_id);
    for (size_t i = 2; i < known->value_count; i++)
        assert(known->values[i - 1].id != known->values[i].id);
    qsort(known->etags, known->etag_count, sizeof *known->etags, etag_by_parts);
    size_t kept = 0;
    for (size_t i = 0; i < known->etag_count; i++) {
        if (kept == 0 || etag_by_parts(&known->etags[kept - 1], &known->etags[i]) != 0)
            known->etags[kept++] = known->etags[i];
    }
    known->etag_count = kept;
}

/* ---- 3. Plain faults ---------------------------------------------------------------------- */

static bool fault(struct text *why, const struct knowledge *known, const char *what,
                  const struct history_op *a, const struct history_op *b)
{
    text_add(why, "%s:\n", what);
    if (b != NULL)
        text_add_op(why, known->ops, b);
    text_add_op(why, known->ops, a);
    return true;
}

/* H1, and notes each value's first read. `final`: what was rejected is never applied. */
static bool fault_in_reads(struct knowledge *known, bool final, struct text *why)
{
    for (const struct history_op *op = known->ops; op < known->ops + known->count; op++) {
        if (op->kind != HISTORY_GET || op->outcome != HISTORY_OK || op->number)
            continue;
        struct value *value = value_find(known, op->value);
        if (value == NULL)
            return fault(why, known, "H1: a value was read that nobody wrote", op, NULL);
        if (value->writer->outcome == HISTORY_FAILED)
            return fault(why, known, "H1: a failed write was read", op, value->writer);
        if (value->writer->outcome == HISTORY_REJECTED && final)
            return fault(why, known, "H1: a rejected write was read", op, value->writer);
        if (value->writer->start > op->end)
            return fault(why, known, "H1: a value was read before it was written", op,
                         value->writer);
        if (value->read == NULL || op->end < value->read->end)
            value->read = op;
        value->reads_left++;
    }
    return false;
}

/* H2, and notes what each ETag names. */
static bool fault_in_names(struct knowledge *known, struct text *why)
{
    for (const struct history_op *op = known->ops; op < known->ops + known->count; op++) {
        if (op_asks_for_etag(op))
            etag_find(known, op->etag_expected)->observed = true;
        if (op_shows_current_etag(op))
            etag_find(known, op->etag)->observed = true;
        if (!etag_is_known(op->etag) || op->outcome != HISTORY_OK || op->kind == HISTORY_DELETE)
            continue;
        struct etag *etag = etag_find(known, op->etag);
        bool number = op->number || op->kind == HISTORY_ADD;
        if (etag->teller != NULL) {
            bool other_number = etag->teller->number || etag->teller->kind == HISTORY_ADD;
            if (etag->teller->value != op->value || other_number != number)
                return fault(why, known, "H2: an ETag names two values", op, etag->teller);
            if (etag->teller->kind != HISTORY_GET && op->kind != HISTORY_GET)
                return fault(why, known, "H2: two writes got one ETag", op, etag->teller);
        }
        if (etag->teller == NULL || op->kind != HISTORY_GET)
            etag->teller = op;
        etag->owned = etag->owned || !number || op_shows_new_etag(op);
        struct value *value = op_names_value(op) ? value_find(known, op->value) : NULL;
        if (value == NULL)
            continue;
        if (value->teller != NULL && etag_compare(value->teller->etag, op->etag) != 0)
            return fault(why, known, "H2: a value has two ETags", op, value->teller);
        value->teller = op;
    }
    return false;
}

static int op_by_start(const void *a, const void *b)
{
    const struct history_op *op_a = *(const struct history_op *const *)a;
    const struct history_op *op_b = *(const struct history_op *const *)b;
    if (op_a->start != op_b->start)
        return op_a->start < op_b->start ? -1 : 1;
    return op_a < op_b ? -1 : op_a > op_b;
}

static int op_by_end(const void *a, const void *b)
{
    const struct history_op *op_a = *(const struct history_op *const *)a;
    const struct history_op *op_b = *(const struct history_op *const *)b;
    if (op_a->end != op_b->end)
        return op_a->end < op_b->end ? -1 : 1;
    return op_a < op_b ? -1 : op_a > op_b;
}

/* H3: goes through the starts and compares with each the highest ETag of all that had ended before. */
static bool fault_in_order(const struct knowledge *known, struct text *why)
{
    const struct history_op **starts = memory_new(known->count, sizeof *starts);
    const struct history_op **ends = memory_new(known->count, sizeof *ends);
    size_t count = 0;
    for (const struct history_op *op = known->ops; op < known->ops + known->count; op++) {
        if (op_shows_current_etag(op) || op_shows_new_etag(op)) {
            starts[count] = op;
            ends[count++] = op;
        }
    }
    qsort(starts, count, sizeof *starts, op_by_start);
    qsort(ends, count, sizeof *ends, op_by_end);
    const struct history_op *highest = NULL;
    bool found = false;
    for (size_t i = 0, ended = 0; i < count && !found; i++) {
        for (; ends[ended]->end < starts[i]->start; ended++) {
            if (highest == NULL || etag_compare(highest->etag, ends[ended]->etag) < 0)
                highest = ends[ended];
        }
        int order = highest == NULL ? -1 : etag_compare(highest->etag, starts[i]->etag);
        if (order > 0)
            found = fault(why, known, "H3: a later ETag sorts lower", starts[i], highest);
        else if (order == 0 && op_shows_new_etag(starts[i]))
            found =
                fault(why, known, "H3: an ETag was returned before its write", starts[i], highest);
    }
    free(starts);
    free(ends);
    return found;
}

/* ---- 4. Register -------------------------------------------------------------------------- */

enum holds {
    HOLDS_NOTHING,
    HOLDS_VALUE,
    HOLDS_NUMBER,
};

/* Fields that say nothing of what it holds are 0, so that equal states are equal fields. */
struct state {
    enum holds holds;
    uint32_t etag;
    uint64_t value;     /* index into knowledge.values, or the number */
    uint64_t gone_from; /* UINT64_MAX: it does not expire */
    uint64_t gone_by;
    uint64_t denied; /* ETags that this state, whose ETag is unknown, is known not to have */
    uint64_t moment; /* the last step was not before; 0 in a history without expiry */
    uint64_t row;    /* unknown writes in a row just now; 0 while any number may be (S6) */
};

/* An operation, as the search sees it. */
struct item {
    const struct history_op *op;
    uint64_t hash[2];   /* of being taken */
    uint64_t end;       /* S3; UINT64_MAX for those that need not be taken */
    uint64_t gone_from; /* UINT64_MAX: it does not expire */
    uint64_t gone_by;
    uint64_t value;        /* as in a state */
    uint32_t etag_current; /* what it shows of the state it found */
    uint32_t etag_new;
    uint32_t etag_expected;
    uint32_t
        etag_observed; /* it shows that a state has this: returned, or asked for with success */
    bool taken;
};

static bool item_changes_state(const struct item *item)
{
    return item->op->kind != HISTORY_GET && item->op->outcome != HISTORY_REJECTED;
}

static bool state_same(const struct state *a, const struct state *b)
{
    return a->holds == b->holds && a->etag == b->etag && a->value == b->value &&
           a->gone_from == b->gone_from && a->gone_by == b->gone_by && a->denied == b->denied;
}

static void state_empty(struct state *state)
{
    *state = (struct state){.holds = HOLDS_NOTHING, .moment = state->moment, .row = state->row};
}

enum met { MET_NO, MET_YES, MET_EITHER };

/* Whether the state's ETag is this one. An unknown one can be, unless that is another state's. */
static enum met state_has_etag(const struct knowledge *known, const struct state *state,
                               uint32_t etag)
{
    if (state->holds == HOLDS_NOTHING)
        return MET_NO;
    if (state->etag != ETAG_UNKNOWN)
        return state->etag == etag ? MET_YES : MET_NO;
    assert(etag >= ETAG_FIRST);
    const struct etag *asked = &known->etags[etag - ETAG_FIRST];
    if (asked->owned || asked->seen > 0 || (state->denied & asked->denied_bit) != 0)
        return MET_NO;
    return MET_EITHER;
}

static enum met state_meets_condition(const struct knowledge *known, const struct state *state,
                                      const struct item *item)
{
    switch (item->op->condition) {
    case HISTORY_IF_ABSENT:
        return state->holds == HOLDS_NOTHING ? MET_YES : MET_NO;
    case HISTORY_IF_PRESENT:
        return state->holds == HOLDS_NOTHING ? MET_NO : MET_YES;
    case HISTORY_IF_ETAG:
        return state_has_etag(known, state, item->etag_expected);
    case HISTORY_ALWAYS:
        break;
    }
    return MET_YES;
}

/* Whether the state rejects an operation whose condition is met. For an ADD, `sum` is the number
 * that it would make. */
static bool state_rejects(const struct state *state, const struct history_op *op, int64_t *sum)
{
    switch (op->kind) {
    case HISTORY_GET:
    case HISTORY_DELETE:
        return state->holds == HOLDS_NOTHING;
    case HISTORY_ADD:
        return state->holds == HOLDS_VALUE ||
               __builtin_add_overflow((int64_t)state->value, op->delta, sum);
    case HISTORY_PUT:
        break;
    }
    return false;
}

static bool register_put(struct state *state, const struct item *item)
{
    if (item->op->existed == HISTORY_CREATED && state->holds != HOLDS_NOTHING)
        return false;
    if (item->op->existed == HISTORY_REPLACED && state->holds == HOLDS_NOTHING)
        return false;
    *state = (struct state){
        .holds = item->op->number ? HOLDS_NUMBER : HOLDS_VALUE,
        .etag = item->etag_new,
        .value = item->value,
        .gone_from = item->gone_from,
        .gone_by = item->gone_by,
        .moment = state->moment,
        .row = state->row,
    };
    if (state->gone_by < state->moment) /* applied so late that nobody ever saw it */
        state_empty(state);
    return true;
}

static bool register_add(struct state *state, const struct item *item, int64_t sum)
{
    if (item->op->outcome == HISTORY_OK && (int64_t)item->op->value != sum)
        return false;
    if (state->holds == HOLDS_NOTHING)
        state->gone_from = state->gone_by = UINT64_MAX;
    state->holds = HOLDS_NUMBER;
    state->value = (uint64_t)sum;
    state->etag = item->etag_new;
    state->denied = 0;
    return true;
}

/* Does one operation on `before`. False if its answer does not fit, or, for one of unknown outcome,
 * if it would not be applied. `expiring`: the history has expiry, so moments matter. */
static bool register_step(const struct knowledge *known, bool expiring, const struct state *before,
                          const struct item *item, struct state *after)
{
    const struct history_op *op = item->op;
    *after = *before;
    if (before->holds != HOLDS_NOTHING && before->gone_by < op->start)
        return false; /* the expiry comes first */
    if (expiring && op->start > after->moment)
        after->moment = op->start;
    if (item->etag_current != ETAG_UNKNOWN) {
        if (state_has_etag(known, after, item->etag_current) == MET_NO)
            return false;
        after->etag = item->etag_current;
        after->denied = 0;
    }
    int64_t sum = 0;
    enum met met = state_meets_condition(known, after, item);
    bool rejects = state_rejects(after, op, &sum);
    if (op->outcome == HISTORY_REJECTED) {
        if (met == MET_EITHER && !rejects)
            after->denied |= known->etags[item->etag_expected - ETAG_FIRST].denied_bit;
        return met != MET_YES || rejects;
    }
    if (met == MET_NO || rejects)
        return false;
    switch (op->kind) {
    case HISTORY_GET:
        return (after->holds == HOLDS_NUMBER) == op->number && after->value == item->value;
    case HISTORY_PUT:
        return register_put(after, item);
    case HISTORY_DELETE:
        state_empty(after);
        return true;
    case HISTORY_ADD:
        return register_add(after, item, sum);
    }
    return false;
}

/* ---- 5. Memory ---------------------------------------------------------------------------- */

/* The set of operations taken is not kept, only a 128-bit sum of random numbers (Zobrist 1970), one
 * for each, mixed with the state. That two configurations of two million share one has a chance of
 * 2^-87. The unknown writes used (S4) are no part of it: they are compared bit by bit. */
struct memo_entry {
    uint64_t key[2];
    uint32_t next; /* in its bucket: index + 1, 0 is the end */
};

struct memo {
    struct memo_entry *entries;
    uint64_t *used; /* `words` for each entry */
    uint32_t *buckets;
    size_t words;
    uint32_t count, count_max;
    uint32_t room; /* for entries; also the number of buckets, a power of two */
    uint64_t compared;
};

enum {
    MEMO_ROOM_FIRST = 1024,
    MEMO_COMPARED_MAX = 50, /* for each of count_max, on average: long buckets are an end, too */
};

enum memo_answer { MEMO_NEW, MEMO_MET, MEMO_FULL };

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static void memo_start(struct memo *memo, size_t words, uint32_t count_max)
{
    *memo = (struct memo){.words = words, .count_max = count_max, .room = MEMO_ROOM_FIRST};
    memo->entries = memory_new(memo->room, sizeof *memo->entries);
    memo->used = memory_new(memo->room, words * sizeof *memo->used);
    memo->buckets = memory_new(memo->room, sizeof *memo->buckets);
}

static void memo_free(struct memo *memo)
{
    free(memo->entries);
    free(memo->used);
    free(memo->buckets);
}

static void memo_link(struct memo *memo, uint32_t index)
{
    uint32_t *bucket = &memo->buckets[memo->entries[index].key[0] & (memo->room - 1)];
    memo->entries[index].next = *bucket;
    *bucket = index + 1;
}

static void memo_double(struct memo *memo)
{
    memo->room *= 2;
    memo->entries = memory_grow(memo->entries, memo->room, sizeof *memo->entries);
    memo->used = memory_grow(memo->used, (size_t)memo->room * memo->words + 1, sizeof *memo->used);
    free(memo->buckets);
    memo->buckets = memory_new(memo->room, sizeof *memo->buckets);
    for (uint32_t i = 0; i < memo->count; i++)
        memo_link(memo, i);
}

static bool used_within(const uint64_t *few, const uint64_t *many, size_t words)
{
    for (size_t i = 0; i < words; i++) {
        if ((few[i] & ~many[i]) != 0)
            return false;
    }
    return true;
}

static enum memo_answer memo_add(struct memo *memo, const uint64_t set[2],
                                 const struct state *state, const uint64_t *used)
{
    const uint64_t fields[] = {state->holds,   state->etag,   state->value,  state->gone_from,
                               state->gone_by, state->denied, state->moment, state->row};
    uint64_t key[2] = {set[0], set[1]};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        key[0] = mix(key[0] ^ fields[i]);
        key[1] = mix(key[1] + fields[i]);
    }
    for (uint32_t at = memo->buckets[key[0] & (memo->room - 1)]; at != 0;) {
        const struct memo_entry *entry = &memo->entries[at - 1];
        memo->compared++;
        if (entry->key[0] == key[0] && entry->key[1] == key[1] &&
            used_within(memo->used + (at - 1) * memo->words, used, memo->words))
            return MEMO_MET;
        at = entry->next;
    }
    if (memo->count == memo->count_max || memo->compared / MEMO_COMPARED_MAX > memo->count_max)
        return MEMO_FULL;
    if (memo->count == memo->room)
        memo_double(memo);
    memo->entries[memo->count] = (struct memo_entry){.key = {key[0], key[1]}};
    if (memo->words > 0)
        memcpy(memo->used + memo->count * memo->words, used, memo->words * sizeof *used);
    memo_link(memo, memo->count++);
    return MEMO_NEW;
}

/* ---- 6. Search ---------------------------------------------------------------------------- */

/* The starts and ends of the operations that must still be taken, in the order of time; a start
 * comes before an end of the same instant. Those that may be next are the starts before the first
 * end. Taking an operation unlinks both, stepping back links them again where they were. */
struct link {
    struct link *before, *after;
    struct link *end; /* NULL if this is one, or the head */
    struct item *item;
    uint64_t time;
};

static const uint64_t ROW_ANY = UINT64_MAX;

enum { ORDER_EXPIRY = UINT32_MAX }; /* in an order, in the place of an item's index */

/* A configuration on the way from the first to the one that the search is at, and what was tried
 * from it: first what must be taken, then expiry, then what may be. */
struct frame {
    struct state now;
    size_t order_before; /* where the operations taken on entering it (S1) begin in the order */
    enum step { STEP_MUST, STEP_EXPIRY, STEP_MAY } step; /* the last one tried */
    bool by_may;               /* it was reached by an unknown write alone */
    struct link *link;         /* STEP_MUST's, or NULL */
    size_t class;              /* STEP_MAY's */
    const struct item *fitted; /* the last that surely fitted; families are side by side (S5) */
};

struct search {
    struct knowledge known;
    struct item *items; /* first those that must be taken; then those that may, class by class */
    size_t must_count, item_count;
    struct link *links; /* 0 is the ring's head; item i's start is 1 + 2 * i, its end the next */
    struct item **class_next; /* of each class the first not taken, or class_end */
    struct item **class_end;
    size_t class_count;
    struct item **expiring; /* all that write an expiry; none: moments do not matter */
    size_t expiring_count;

    /* the way here */
    struct frame *frames;
    size_t depth, frames_room;

    /* the configuration, but for its state */
    size_t must_left;
    uint64_t set[2];
    uint64_t *used; /* bits, of items from must_count on */
    uint32_t *order;
    size_t order_count;

    struct memo memo;
    uint64_t row_max; /* S6 */
    bool reuse;       /* S7 */
    bool cut;         /* some row ended for its length, so that to find nothing says nothing */
    bool gave_up;

    /* the configuration with the fewest left that nothing can follow, for the message */
    size_t best_left, best_count;
    uint32_t *best_order;
    struct state best_state;
};

static void link_remove(struct link *link)
{
    link->before->after = link->after;
    link->after->before = link->before;
}

static void link_restore(struct link *link)
{
    link->before->after = link;
    link->after->before = link;
}

static void item_count_observation(struct search *search, const struct item *item, int step)
{
    if (item->etag_observed >= ETAG_FIRST) {
        struct etag *etag = &search->known.etags[item->etag_observed - ETAG_FIRST];
        etag->seen += (uint32_t)step;
        if (item < search->items + search->must_count)
            etag->left -= (uint32_t)step;
    }
    if (item->op->kind == HISTORY_GET && item->op->outcome == HISTORY_OK && !item->op->number)
        search->known.values[item->value].reads_left -= (uint32_t)step;
}

/* Undone by item_put_back, the last first. */
static void item_take(struct search *search, struct item *item)
{
    size_t index = (size_t)(item - search->items);
    search->order[search->order_count++] = (uint32_t)index;
    if (search->reuse && index >= search->must_count)
        return;
    item->taken = true;
    item_count_observation(search, item, 1);
    if (index < search->must_count) {
        search->set[0] ^= item->hash[0];
        search->set[1] ^= item->hash[1];
        search->must_left--;
    } else {
        size_t bit = index - search->must_count;
        search->used[bit / 64] |= UINT64_C(1) << bit % 64;
    }
}

static void item_put_back(struct search *search)
{
    struct item *item = &search->items[search->order[--search->order_count]];
    size_t index = (size_t)(item - search->items);
    if (search->reuse && index >= search->must_count)
        return;
    item->taken = false;
    item_count_observation(search, item, -1);
    if (index < search->must_count) {
        search->set[0] ^= item->hash[0];
        search->set[1] ^= item->hash[1];
        search->must_left++;
    } else {
        size_t bit = index - search->must_count;
        search->used[bit / 64] &= ~(UINT64_C(1) << bit % 64);
    }
}

static void link_take(struct search *search, struct link *link)
{
    link_remove(link->end);
    link_remove(link);
    item_take(search, link->item);
}

static void link_put_back(struct search *search, struct link *link)
{
    item_put_back(search);
    link_restore(link);
    link_restore(link->end);
}

/* S2: somebody still has to see what is here, or the ETag that was just asked for with success. */
static bool state_is_awaited(const struct search *search, const struct state *state,
                             uint32_t etag_observed)
{
    uint32_t etag = state->etag == ETAG_UNKNOWN ? etag_observed : state->etag;
    if (etag >= ETAG_FIRST && search->known.etags[etag - ETAG_FIRST].left > 0)
        return true;
    return state->holds == HOLDS_VALUE && search->known.values[state->value].reads_left > 0;
}

/* Whether S1 would let time pass by the last moment of a value that is yet to be written. */
static bool moment_would_skip(const struct search *search, const struct state *now, uint64_t moment)
{
    for (size_t i = 0; i < search->expiring_count; i++) {
        const struct item *item = search->expiring[i];
        if (!item->taken && now->moment <= item->gone_by && item->gone_by < moment)
            return true;
    }
    return false;
}

/* S1: takes all that changes nothing. What it took is order[from, order_count). */
static void search_take_readers(struct search *search, struct state *now)
{
    for (struct link *link = search->links[0].after; link->end != NULL; link = link->after) {
        struct state after;
        if (!item_changes_state(link->item) &&
            register_step(&search->known, search->expiring_count > 0, now, link->item, &after) &&
            state_same(now, &after) && !moment_would_skip(search, now, after.moment)) {
            *now = after;
            now->row = 0;
            link_take(search, link);
        }
    }
}

/* Unknown writes that it finds equal do the same, whenever they do something. */
static int item_by_family(const struct item *a, const struct item *b)
{
    const uint64_t fields[][2] = {
        {a->op->kind, b->op->kind},   {a->op->number, b->op->number},
        {a->value, b->value},         {(uint64_t)a->op->delta, (uint64_t)b->op->delta},
        {a->gone_from, b->gone_from}, {a->gone_by, b->gone_by},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i][0] != fields[i][1])
            return fields[i][0] < fields[i][1] ? -1 : 1;
    }
    return 0;
}

/* Unknown writes that it finds equal do the same. The one that fits more rarely comes first. */
static int item_by_class(const struct item *a, const struct item *b)
{
    int order = item_by_family(a, b);
    if (order == 0)
        order = (int)b->op->condition - (int)a->op->condition;
    if (order == 0 && a->etag_expected != b->etag_expected)
        order = a->etag_expected < b->etag_expected ? -1 : 1;
    return order;
}

static int item_by_class_and_start(const void *a, const void *b)
{
    const struct history_op *x = ((const struct item *)a)->op, *y = ((const struct item *)b)->op;
    int order = item_by_class(a, b);
    if (order == 0 && x->start != y->start)
        order = x->start < y->start ? -1 : 1;
    return order != 0 ? order : x < y ? -1 : x > y;
}

/* The next operation after frame->link that fits, of those that must be taken. */
static bool frame_takes_must(struct search *search, struct frame *frame, struct state *after)
{
    struct link *link = frame->link == NULL ? &search->links[0] : frame->link;
    for (link = link->after; link->end != NULL; link = link->after) {
        const struct item *item = link->item;
        if (!register_step(&search->known, search->expiring_count > 0, &frame->now, item, after))
            continue;
        after->row = 0;
        frame->link = link;
        link_take(search, link);
        if (!item_changes_state(item) ||
            !state_is_awaited(search, &frame->now, item->etag_observed))
            return true;
        link_put_back(search, link);
    }
    return false;
}

/* What comes next comes before this. */
static uint64_t search_first_end(const struct search *search)
{
    const struct link *link = search->links[0].after;
    while (link->end != NULL)
        link = link->after;
    return link->time;
}

static bool frame_takes_expiry(struct search *search, const struct frame *frame,
                               struct state *after)
{
    const struct state *now = &frame->now;
    if (now->holds == HOLDS_NOTHING || now->gone_from == UINT64_MAX ||
        now->gone_from > search_first_end(search) || state_is_awaited(search, now, ETAG_UNKNOWN))
        return false;
    *after = *now;
    state_empty(after);
    if (after->moment < now->gone_from)
        after->moment = now->gone_from;
    search->order[search->order_count++] = ORDER_EXPIRY;
    return true;
}

/* S6. */
static bool may_was_no_use(const struct search *search, const struct state *before_may,
                           const struct item *item, const struct state *after)
{
    struct state without;
    return before_may != NULL &&
           register_step(&search->known, search->expiring_count > 0, before_may, item, &without) &&
           state_same(&without, after) && without.moment <= after->moment;
}

/* The next unknown write that fits, from frame->class on. */
static bool frame_takes_may(struct search *search, struct frame *frame, struct state *after)
{
    const struct state *now = &frame->now, *before_may = frame->by_may ? &frame[-1].now : NULL;
    uint64_t end = search_first_end(search);
    for (; frame->class < search->class_count; frame->class ++) {
        struct item *item = search->class_next[frame->class];
        if (item == search->class_end[frame->class] || item->op->start > end ||
            (frame->fitted != NULL && item_by_family(frame->fitted, item) == 0) ||
            !register_step(&search->known, search->expiring_count > 0, now, item, after) ||
            state_same(now, after) || state_is_awaited(search, now, item->etag_observed) ||
            may_was_no_use(search, before_may, item, after))
            continue;
        /* Only S7 can come to the second: it may count for ever. */
        if (now->row == search->row_max || search->order_count >= 2 * search->known.count) {
            search->cut = true;
            return false;
        }
        if (state_meets_condition(&search->known, now, item) == MET_YES)
            frame->fitted = item;
        if (search->row_max < ROW_ANY)
            after->row = now->row + 1;
        search->class_next[frame->class] += !search->reuse;
        item_take(search, item);
        return true;
    }
    return false;
}

/* Takes the next step that leads on from here, or says that there is none. */
static bool frame_takes_step(struct search *search, struct frame *frame, struct state *after)
{
    if (frame->step == STEP_MUST) {
        if (frame_takes_must(search, frame, after))
            return true;
        frame->step = STEP_EXPIRY;
        if (frame_takes_expiry(search, frame, after))
            return true;
    }
    frame->step = STEP_MAY;
    return frame_takes_may(search, frame, after);
}

static void frame_steps_back(struct search *search, struct frame *frame)
{
    switch (frame->step) {
    case STEP_MUST:
        link_put_back(search, frame->link);
        break;
    case STEP_EXPIRY:
        search->order_count--;
        break;
    case STEP_MAY:
        item_put_back(search);
        search->class_next[frame->class ++] -= !search->reuse;
        break;
    }
}

/* Comes to a new configuration: true if it is worth going on from. */
static bool search_enter(struct search *search, const struct state *now, bool by_may)
{
    if (search->depth == search->frames_room) {
        search->frames_room = 2 * search->frames_room + 64;
        search->frames = memory_grow(search->frames, search->frames_room, sizeof *search->frames);
    }
    struct frame *frame = &search->frames[search->depth++];
    *frame = (struct frame){.now = *now, .order_before = search->order_count};
    search_take_readers(search, &frame->now);
    frame->by_may = by_may && search->order_count == frame->order_before;
    if (search->must_left == 0)
        return true;
    enum memo_answer answer = memo_add(&search->memo, search->set, &frame->now, search->used);
    if (answer == MEMO_FULL)
        search->gave_up = true;
    return answer == MEMO_NEW;
}

/* Leaves a configuration from which there is no way on. All is as it was before it was entered. */
static void search_leave(struct search *search)
{
    struct frame *frame = &search->frames[--search->depth];
    if (search->must_left < search->best_left && !search->reuse) {
        search->best_left = search->must_left;
        search->best_count = search->order_count;
        search->best_state = frame->now;
        memcpy(search->best_order, search->order, search->order_count * sizeof *search->order);
    }
    while (search->order_count > frame->order_before)
        link_put_back(search, &search->links[1 + 2 * search->order[search->order_count - 1]]);
}

/* One search, with what search_run has chosen. Whether all can be taken; leaves all as it was. */
static bool search_once(struct search *search)
{
    struct state after = {.holds = HOLDS_NOTHING};
    bool go_on = search_enter(search, &after, false);
    for (;;) {
        struct frame *frame = &search->frames[search->depth - 1];
        if (search->must_left == 0)
            break;
        if (go_on && frame_takes_step(search, frame, &after)) {
            go_on = search_enter(search, &after, frame->step == STEP_MAY);
            continue;
        }
        search_leave(search);
        if (search->depth == 0)
            return false;
        frame_steps_back(search, frame - 1);
        go_on = !search->gave_up;
    }
    while (search->depth > 0) {
        search_leave(search);
        if (search->depth > 0)
            frame_steps_back(search, &search->frames[search->depth - 1]);
    }
    return true;
}

static int link_by_time(const void *a, const void *b)
{
    const struct link *x = *(const struct link *const *)a, *y = *(const struct link *const *)b;
    if (x->time != y->time)
        return x->time < y->time ? -1 : 1;
    if ((x->end == NULL) != (y->end == NULL))
        return x->end != NULL ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* The first read that shows an unknown write to have been applied, or NULL (S3). */
static const struct history_op *op_first_read(const struct knowledge *known,
                                              const struct history_op *op)
{
    if (op->kind != HISTORY_PUT || op->number)
        return NULL;
    return value_find(known, op->value)->read;
}

static struct item item_of(const struct knowledge *known, const struct history_op *op)
{
    struct item item = {.op = op, .end = op->end, .gone_from = UINT64_MAX, .gone_by = UINT64_MAX};
    if (op->outcome == HISTORY_UNKNOWN) {
        const struct history_op *read = op_first_read(known, op);
        item.end = read == NULL ? UINT64_MAX : read->end;
    }
    if (op->gone_from != 0) {
        item.gone_from = op->gone_from;
        item.gone_by = op->gone_by;
    }
    if (op->number && op->kind != HISTORY_ADD)
        item.value = op->value;
    if (op_shows_new_etag(op))
        item.etag_new = etag_number(known, op->etag);
    if (op_names_value(op)) {
        item.value = VALUE_UNREAD;
        const struct value *value = value_find(known, op->value);
        if (value != NULL && value->read != NULL)
            item.value = (uint64_t)(value - known->values);
        if (value != NULL && value->teller != NULL)
            item.etag_new = etag_number(known, value->teller->etag);
    }
    if (op_shows_current_etag(op))
        item.etag_current = etag_number(known, op->etag);
    if (op_asks_for_etag(op))
        item.etag_expected = etag_number(known, op->etag_expected);
    item.etag_observed = op->outcome == HISTORY_REJECTED || op->kind == HISTORY_GET
                             ? item.etag_current
                             : item.etag_expected;
    return item;
}

static void search_add_items(struct search *search)
{
    const struct knowledge *known = &search->known;
    const struct history_op *end = known->ops + known->count;
    for (const struct history_op *op = known->ops; op < end; op++) {
        if (op->outcome == HISTORY_OK || op->outcome == HISTORY_REJECTED ||
            (op->outcome == HISTORY_UNKNOWN && op_first_read(known, op) != NULL))
            search->items[search->must_count++] = item_of(known, op);
    }
    search->item_count = search->must_count;
    for (const struct history_op *op = known->ops; op < end; op++) {
        if (op->outcome == HISTORY_UNKNOWN && op->kind != HISTORY_GET &&
            op_first_read(known, op) == NULL)
            search->items[search->item_count++] = item_of(known, op);
    }
    qsort(search->items + search->must_count, search->item_count - search->must_count,
          sizeof *search->items, item_by_class_and_start);
    uint64_t denied_bit = 1;
    for (size_t i = 0; i < search->item_count; i++) {
        struct item *item = &search->items[i];
        item->hash[0] = mix(i);
        item->hash[1] = mix(~i);
        if (item->gone_from != UINT64_MAX)
            search->expiring[search->expiring_count++] = item;
        if (i < search->must_count && item->etag_observed >= ETAG_FIRST)
            known->etags[item->etag_observed - ETAG_FIRST].left++;
        if (item->op->outcome == HISTORY_REJECTED && item->etag_expected >= ETAG_FIRST) {
            /* After 64 such the bit is 0, and such a rejection is dropped at once: some
             * violations would pass. No client knows an ETag so early, but by guessing. */
            struct etag *etag = &known->etags[item->etag_expected - ETAG_FIRST];
            if (!etag->owned && etag->denied_bit == 0) {
                etag->denied_bit = denied_bit;
                denied_bit <<= 1;
            }
        }
    }
}

static void search_add_links(struct search *search)
{
    size_t count = 2 * search->must_count;
    struct link **sorted = memory_new(count, sizeof *sorted);
    for (size_t i = 0; i < search->must_count; i++) {
        struct item *item = &search->items[i];
        struct link *start = &search->links[1 + 2 * i], *end = start + 1;
        *start = (struct link){.end = end, .item = item, .time = item->op->start};
        *end = (struct link){.item = item, .time = item->end};
        sorted[2 * i] = start;
        sorted[2 * i + 1] = end;
    }
    qsort(sorted, count, sizeof *sorted, link_by_time);
    struct link *last = &search->links[0];
    for (size_t i = 0; i < count; i++) {
        last->after = sorted[i];
        sorted[i]->before = last;
        last = sorted[i];
    }
    last->after = &search->links[0];
    search->links[0].before = last;
    free(sorted);
}

static void search_add_classes(struct search *search)
{
    struct item *end = search->items + search->item_count;
    for (struct item *item = search->items + search->must_count; item < end; item++) {
        if (search->class_count == 0 || item_by_class(item - 1, item) != 0)
            search->class_next[search->class_count++] = item;
        search->class_end[search->class_count - 1] = item + 1;
    }
}

/* Takes over what is known. */
static void search_start(struct search *search, const struct knowledge *known)
{
    size_t count = known->count;
    *search = (struct search){.known = *known};
    search->items = memory_new(count, sizeof *search->items);
    search->links = memory_new(2 * count + 1, sizeof *search->links);
    search->class_next = memory_new(count, sizeof *search->class_next);
    search->class_end = memory_new(count, sizeof *search->class_end);
    search->expiring = memory_new(count, sizeof *search->expiring);
    size_t order_max = 4 * count; /* each write may expire, and see frame_takes_may */
    search->order = memory_new(order_max, sizeof *search->order);
    search->best_order = memory_new(order_max, sizeof *search->best_order);
    search_add_items(search);
    search_add_links(search);
    search_add_classes(search);
    size_t words = (search->item_count - search->must_count + 63) / 64;
    search->used = memory_new(words, sizeof *search->used);
    search->must_left = search->must_count;
    search->best_left = search->must_count + 1;
}

static void search_free(struct search *search)
{
    free(search->items);
    free(search->links);
    free(search->class_next);
    free(search->class_end);
    free(search->expiring);
    free(search->order);
    free(search->best_order);
    free(search->used);
    free(search->frames);
}

/* The searches, in this order. The first is enough for nearly all, the second for most that are not
 * linearizable; the others are for counters with many unknown ADDs: what is not found soon with
 * rows of one is found sooner with rows of two than by trying all that rows of one can do. */
static const struct {
    uint64_t row_max;
    bool reuse;
    uint32_t configurations_max;
} searches[] = {
    {.row_max = 1, .configurations_max = 10000},
    {.row_max = ROW_ANY, .configurations_max = 30000, .reuse = true},
    {.row_max = 1, .configurations_max = 60000},
    {.row_max = 2, .configurations_max = 60000},
    {.row_max = 4, .configurations_max = 60000},
    {.row_max = ROW_ANY, .configurations_max = 60000},
    {.row_max = 1, .configurations_max = 600000},
    {.row_max = 2, .configurations_max = 600000},
    {.row_max = 4, .configurations_max = 600000},
    {.row_max = ROW_ANY, .configurations_max = HISTORY_CONFIGURATIONS_MAX}, /* the last word */
};

static enum history_verdict search_run(struct search *search)
{
    size_t words = (search->item_count - search->must_count + 63) / 64;
    for (size_t i = 0; i < sizeof searches / sizeof *searches; i++) {
        search->row_max = searches[i].row_max;
        search->reuse = searches[i].reuse;
        search->cut = search->gave_up = false;
        memo_start(&search->memo, words, searches[i].configurations_max);
        bool found = search_once(search);
        memo_free(&search->memo);
        if (found && !search->reuse)
            return HISTORY_LINEARIZABLE;
        if (!found && !search->cut && !search->gave_up)
            return HISTORY_VIOLATED;
    }
    return HISTORY_GAVE_UP;
}

/* ---- 7. Verdict --------------------------------------------------------------------------- */

enum { STORY_BEFORE_MAX = 8, STORY_AFTER_MAX = 16 }; /* operations shown */

static void story_add_state(struct text *why, const struct search *search)
{
    const struct state *state = &search->best_state;
    const struct history_op *writer = NULL;
    for (size_t i = 0; i < search->best_count; i++) {
        const struct item *item =
            search->best_order[i] == ORDER_EXPIRY ? NULL : &search->items[search->best_order[i]];
        if (item != NULL && item_changes_state(item))
            writer = item->op;
    }
    if (state->holds == HOLDS_NOTHING) {
        text_add(why, "leaves nothing");
        return;
    }
    assert(writer != NULL);
    text_add(why, "leaves what #%zu wrote:", (size_t)(writer - search->known.ops));
    text_add_value(why, state->holds == HOLDS_NUMBER ? state->value : writer->value,
                   state->holds == HOLDS_NUMBER);
    if (state->etag >= ETAG_FIRST) {
        const uint64_t *parts = search->known.etags[state->etag - ETAG_FIRST].parts;
        text_add(why, ", etag %" PRIx64 "-%" PRIx64, parts[0], parts[1]);
    }
}

/* Why what can be next must not be: others still have to see what it would overwrite. */
static void story_add_awaiting(struct text *why, const struct search *search)
{
    const struct state *state = &search->best_state;
    size_t shown = 0;
    for (size_t i = 0; i < search->must_count; i++) {
        const struct item *item = &search->items[i];
        bool reads = item->op->kind == HISTORY_GET && item->op->outcome == HISTORY_OK &&
                     state->holds == HOLDS_VALUE && !item->op->number &&
                     item->value == state->value;
        bool shows = state->etag >= ETAG_FIRST && item->etag_observed == state->etag;
        if (item->taken || (!reads && !shows))
            continue;
        if (shown++ == 0)
            text_add(why, ", which must stay for");
        if (shown > STORY_AFTER_MAX) {
            text_add(why, " ...");
            break;
        }
        text_add(why, " #%zu", (size_t)(item->op - search->known.ops));
    }
    text_add(why, ".\n");
}

/* Describes the configuration that came farthest: what was done last, and what should follow. */
static void story_add(struct text *why, struct search *search)
{
    const struct history_op *ops = search->known.ops;
    size_t count = search->best_count;
    for (size_t i = 0; i < search->must_count; i++)
        search->items[i].taken = false;
    text_add(why, "%zu of %zu operations can be put in order, ending with\n",
             search->must_count - search->best_left, search->must_count);
    for (size_t i = 0; i < count; i++) {
        uint32_t index = search->best_order[i];
        if (index != ORDER_EXPIRY)
            search->items[index].taken = true;
        if (i + STORY_BEFORE_MAX < count)
            continue;
        if (index == ORDER_EXPIRY)
            text_add(why, "    (expiry)\n");
        else
            text_add_op(why, ops, search->items[index].op);
    }
    text_add(why, "which ");
    story_add_state(why, search);
    story_add_awaiting(why, search);
    const struct item *first = NULL;
    for (size_t i = 0; i < search->must_count; i++) {
        const struct item *item = &search->items[i];
        if (!item->taken && (first == NULL || item->end < first->end))
            first = item;
    }
    assert(first != NULL);
    text_add(why, "One of these had to be next, the first by %" PRIu64 ", and none can be:\n",
             first->end);
    text_add_op(why, ops, first->op);
    size_t shown = 1;
    for (size_t i = 0; i < search->must_count; i++) {
        const struct item *item = &search->items[i];
        if (item->taken || item == first || item->op->start > first->end)
            continue;
        if (shown++ == STORY_AFTER_MAX) {
            text_add(why, "    ...\n");
            break;
        }
        text_add_op(why, ops, item->op);
    }
}

enum history_verdict history_check(const struct history_op *ops, size_t count, char *why,
                                   size_t why_bytes)
{
    assert(count <= HISTORY_OPS_MAX);
    struct text text = {.bytes = why, .size = why_bytes};
    if (why_bytes > 0)
        why[0] = '\0';

    struct knowledge known;
    knowledge_gather(&known, ops, count);
    enum history_verdict verdict = HISTORY_VIOLATED;
    if (!fault_in_reads(&known, true, &text) && !fault_in_names(&known, &text) &&
        !fault_in_order(&known, &text)) {
        struct search search;
        search_start(&search, &known);
        verdict = search_run(&search);
        if (verdict == HISTORY_GAVE_UP)
            text_add(&text, "Gave up: too many configurations to try. ");
        if (verdict == HISTORY_VIOLATED)
            text_add(&text, "Not linearizable. ");
        if (verdict != HISTORY_LINEARIZABLE)
            story_add(&text, &search);
        search_free(&search);
    }
    free(known.values);
    free(known.etags);
    return verdict;
}

enum history_verdict history_check_names(const struct history_op *ops, size_t count, char *why,
                                         size_t why_bytes)
{
    assert(count <= HISTORY_OPS_MAX);
    struct text text = {.bytes = why, .size = why_bytes};
    if (why_bytes > 0)
        why[0] = '\0';
    struct knowledge known;
    knowledge_gather(&known, ops, count);
    bool faulty = fault_in_reads(&known, false, &text) || fault_in_names(&known, &text);
    free(known.values);
    free(known.etags);
    return faulty ? HISTORY_VIOLATED : HISTORY_LINEARIZABLE;
}
