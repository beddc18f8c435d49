/* history.h - is what the clients of one key saw linearizable?
 *
 * A history is every operation on one key: when it was asked, when it was answered, and what the
 * answer returned. It is linearizable if each operation can be given one moment between its question
 * and its answer such that a single register, doing them one after the other in the order of these
 * moments, gives exactly those answers. The register starts absent. It holds a value, the ETag that
 * the store gave to the write of that value, and perhaps an expiry.
 *
 * Times are in any one unit (the simulator's microseconds). One operation precedes another only if
 * it ended *before* the other started; at the same instant either may have come first, so a client
 * should let time pass between an answer and its next question, or the checker sees less.
 *
 * Besides linearizability these are checked, first, because their messages say more:
 * (H1) a value that was read was written by a write that may have been applied, begun by then
 * (H2) a value has one ETag, and an ETag names one value
 * (H3) ETags never sort lower as time goes on, and each write's sorts higher than all before it
 */

#ifndef HISTORY_H
#define HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HISTORY_OPS_MAX = 10000,              /* operations in one history; more is a failed assert */
    HISTORY_CONFIGURATIONS_MAX = 2000000, /* tried before giving up: some 200 MB, some seconds */
    HISTORY_WHY_BYTES = 8192,             /* a `why` of this size holds any message whole */
};

enum history_kind {
    HISTORY_GET,
    HISTORY_PUT,
    HISTORY_DELETE,
    HISTORY_ADD, /* a counter; a missing key counts as 0, and an expiry stays as it was */
};

/* What the key must be for a PUT, DELETE or ADD to be applied. */
enum history_condition {
    HISTORY_ALWAYS,
    HISTORY_IF_ABSENT,  /* If-None-Match: * */
    HISTORY_IF_PRESENT, /* If-Match: * */
    HISTORY_IF_ETAG,    /* If-Match: "etag_expected" */
};

enum history_outcome {
    HISTORY_OK,       /* a write: it was applied. A GET: there was a value */
    HISTORY_REJECTED, /* the register said no: 412; 404 to a GET or DELETE; 409 to an ADD */
    HISTORY_UNKNOWN,  /* applied at any moment after its start, even long after its end, or never */
    HISTORY_FAILED,   /* surely never applied: only H1 looks at it */
};

enum history_existed {
    HISTORY_NOT_KNOWN,
    HISTORY_CREATED,  /* there was nothing: 201 */
    HISTORY_REPLACED, /* there was a value: 204 */
};

/* All zero but what is named by the operation's kind. An ETag of {0, 0} is one that was not returned.
 * A value stands for the bytes: no two PUTs of a history write the same, but numbers may repeat.
 *
 *              GET             PUT             DELETE          ADD
 * condition                    yes             yes             yes
 * value        that it read    that it wrote                   the counter's, known if ok
 * number       of what it read of what it wrote
 * delta                                                        yes
 * etag         if ok: of the   if ok: that it                  if ok: that it
 *              value read      was given                       was given
 * etag              if rejected, whatever the kind: that of the value in the way
 * existed                      if ok
 * gone_from/by                 yes
 */
struct history_op {
    enum history_kind kind;
    enum history_condition condition;
    enum history_outcome outcome;
    enum history_existed existed;
    uint64_t start; /* when it was asked */
    uint64_t end;   /* when it was answered; not looked at if UNKNOWN */
    uint64_t value; /* not 0, and another for each PUT; of a number: the int64_t itself */
    bool number;    /* the bytes are a decimal 64-bit integer, which an ADD can add to */
    int64_t delta;
    uint64_t etag_expected[2]; /* if HISTORY_IF_ETAG */
    uint64_t etag[2];
    uint64_t gone_from; /* the written value may expire from then on (0: it never does) */
    uint64_t gone_by;   /* and must have by then; UINT64_MAX: whenever */
    uint64_t client;    /* for the message only */
};

enum history_verdict {
    HISTORY_LINEARIZABLE,
    HISTORY_VIOLATED,
    HISTORY_GAVE_UP, /* too many configurations: neither shown nor excluded. It is no pass */
};

/* Judges `count` operations on one key, in any order. The array stays the caller's and is not kept.
 * `why` is empty if linearizable, else a message of several lines, cut at `why_bytes` (0: none);
 * operations are named in it by their index in `ops`. Ends the program when out of memory.
 * May be called from several threads at once. */
enum history_verdict history_check(const struct history_op *ops, size_t count, char *why,
                                   size_t why_bytes);

/* The same, but of H1 and H2 alone: what holds for a key that is also read and written without a quorum.
 * A read may then return what one node alone has, of a write that is rejected in the end. */
enum history_verdict history_check_names(const struct history_op *ops, size_t count, char *why,
                                         size_t why_bytes);

#endif
