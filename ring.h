/* ring.h - which members of the cluster hold which keys. How, and why so: ring.c.
 *
 * The circle of 64-bit hashes is cut into 1024 equal arcs, the partitions: partition = hash >> 54.
 * A ring gives each of them its owners, distinct members in an order that all nodes agree on. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef PARTITION_BITS /* the simulator makes do with fewer */
#define PARTITION_BITS 10
#endif

enum {
    PARTITIONS = 1 << PARTITION_BITS,
    MEMBERS_MAX = 64,
    REPLICAS_MAX = 7,
    WEIGHT_MAX = 100, /* bounds the work of ring_place */
    ZONE_BYTES = 16,
    ADDRESS_BYTES = 48,
};

enum member_state {
    MEMBER_JOINING,
    MEMBER_UP,
    MEMBER_LEAVING,
    MEMBER_LOST, /* its disk is gone for good: it is not heard any more, but counts in the old ring */
};

/* One member of a view, also as it stands in views on the wire and in the log (little-endian):
 *
 *   0      8        12      16                  32                                           80
 *   | id   | weight | state | zone, NUL-filled  | address "host:port", NUL-filled            | */
struct member {
    uint64_t id;
    uint32_t weight;             /* 1..WEIGHT_MAX, in proportion to what it shall hold */
    uint32_t state;              /* enum member_state, nothing to the ring */
    char zone[ZONE_BYTES];       /* what fails together: a rack, a power line, a building */
    char address[ADDRESS_BYTES]; /* nothing to the ring */
};

_Static_assert(sizeof(struct member) == 80, "the format of views");
_Static_assert(offsetof(struct member, zone) == 16, "the format of views");
_Static_assert(offsetof(struct member, address) == 32, "the format of views");

struct ring {
    unsigned owners_count; /* of each partition: min(replicas, members that take part) */
    uint8_t owners[PARTITIONS][REPLICAS_MAX]; /* indexes into the members; the first owner first */
    uint64_t sets[PARTITIONS];                /* the same, as bits */
};

/* Only the members whose bit is set in `mask` take part. Who gets what depends on their ids (each
 * different), weights and zones, not on their order, state or address, nor on anything else. */
void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                uint64_t mask, unsigned replicas);
