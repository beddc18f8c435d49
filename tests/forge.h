/* forge.h - frames as a node sends them, or nearly so: for the tests of what must not get in. */
#ifndef FORGE_H
#define FORGE_H

#include <stddef.h>
#include <stdint.h>

enum { FORGE_MEMBERS = 8 };

/* The id that the forger claims, and what it knows: that is in /_status, for all to read. */
struct forger {
    uint64_t cluster, epoch;
    uint64_t members[FORGE_MEMBERS]; /* ids */
    int members_count;
    uint64_t from, to;
    const char *secret; /* signs the frames; NULL: they are not signed */
};

enum forgery {
    FORGE_EVICTING_VIEW,  /* the next view, without the node */
    FORGE_VIEW_OF_64,     /* of strangers alone */
    FORGE_FAR_VIEW,       /* of an epoch far ahead */
    FORGE_FAR_PREPARE,    /* the largest ballot */
    FORGE_FAR_ACCEPT,     /* the same, with a value */
    FORGE_FAR_FLOOR,      /* every key counts as promised */
    FORGE_FAR_CLOCK,      /* of the frame itself */
    FORGE_BAD_ADDRESS,    /* with a path, a quote, a newline */
    FORGE_WRONG_ADDRESS,  /* where nobody listens */
    FORGE_ASKING,         /* lists, reads and pulls, of all there is */
    FORGE_CUT_OFF,        /* messages whose lengths do not add up */
    FORGE_UNKNOWN_TYPE,   /* types that there are none of, and those of the log */
    FORGE_STRANGER_KINDS, /* what may be said in a member's name is above; only strangers: */
    FORGE_WISHES = FORGE_STRANGER_KINDS, /* drain all */
    FORGE_JOINING,                       /* asks to become a member */
    FORGE_ACCEPT,                        /* a value in a present ballot */
    FORGERIES
};

/* The nth of a kind, as a frame that is whole: malloc'ed. */
uint8_t *forge(const struct forger *f, enum forgery what, unsigned nth, size_t *bytes);
/* A frame that says it has that many bytes; only its head is made. Without more: a POST's first frame. */
uint8_t *forge_head(const struct forger *f, uint32_t more, size_t *bytes);
/* The next whole frame in what a node sent, at or behind *at: its bytes; NULL: there is none. */
const uint8_t *forge_find(const uint8_t *sent, size_t count, size_t *at, size_t *bytes);
uint64_t forge_to(const uint8_t *frame); /* the id that it is for */

#endif
