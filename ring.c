/* ring.c - consistent hashing with bounded loads (Mirrokni et al. 2016; Kleppmann ch. 6).
 *
 * The problem: every node must work out, from the list of members alone, who holds a key; nobody
 * may hold much more than its share; and when a member comes or goes, little more may move than
 * must.
 *
 * The idea: each member puts many points on the circle of hashes, and each partition walks
 * clockwise from its start to the first point of a member that may have it. Points alone leave one
 * member a fifth above its share, and first for two fifths more partitions than it should be. So
 * each has a capacity, a little above its share, and who is full is walked past. This goes rank by
 * rank (a first owner for every partition in order, then a second one for each, ...), so that being
 * first, which is more work, is shared out as evenly.
 *
 *   (G1) The owners of a partition are distinct.
 *   (G2) No zone has two of them while a zone that has none is left.
 *   (G3) At no rank does a member go over its capacity while another, that (G1) and (G2) allow,
 *        has room.
 *
 * (G1) holds always, and every partition gets all its owners. (G2) and (G3) hold for each choice by
 * itself, as walk_choose says; where not both can be kept, (G3) yields: a zone that fails must not
 * take a majority with it, even if a lone member of a zone then holds more than the others.
 *
 * Whom a walk meets first depends only on how far off each member's next point is. So no sorted
 * list of points is kept, only those distances. That takes half a MiB of stack whatever the weights
 * are, and 1.6 million hashes, some 20 ms, in the worst case (64 members of weight 100). */
#include "ring.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>
#include <xxhash.h>

enum {
    POINTS_PER_WEIGHT = 256, /* 64: twice as much moves without need, at worst */
    CAPACITY_PERCENT = 105,  /* of its share; 100: three times as much moves */
};

static const uint64_t ARC = UINT64_MAX / PARTITIONS + 1; /* the length of a partition */
static const uint64_t FAR = UINT64_MAX;                  /* no point yet */

/* Sets of members are bits, by index into `members`. */
struct walk {
    const struct member *members;
    unsigned members_count;
    uint64_t mask;                              /* who takes part */
    uint64_t weight;                            /* of all of them */
    uint64_t zone[MEMBERS_MAX];                 /* of each member: who is in its zone, itself too */
    unsigned copies[MEMBERS_MAX];               /* of each member: what it was given so far */
    const uint64_t *owners;                     /* of each partition, so far */
    uint64_t owners_zones[PARTITIONS];          /* the same, and all others in their zones */
    uint64_t distance[PARTITIONS][MEMBERS_MAX]; /* from its start clockwise to the next point */
};

static void walk_add_zone(struct walk *walk, unsigned m)
{
    for (unsigned other = 0; other < walk->members_count; other++)
        if (strncmp(walk->members[m].zone, walk->members[other].zone, ZONE_BYTES) == 0)
            walk->zone[m] |= UINT64_C(1) << other;
}

/* Every node must find the same points, for ever: they depend on the id alone. */
static void walk_add_points(struct walk *walk, unsigned m)
{
    for (unsigned partition = 0; partition < PARTITIONS; partition++)
        walk->distance[partition][m] = FAR;
    for (uint64_t i = 0; i < walk->members[m].weight * POINTS_PER_WEIGHT; i++) {
        uint64_t name[] = {walk->members[m].id, i};
        uint64_t point = XXH3_64bits(name, sizeof(name));
        uint64_t *distance = &walk->distance[point / ARC][m];
        if (point % ARC < *distance)
            *distance = point % ARC;
    }
    /* Who has no point inside a partition has the next one's. Twice round, for the last ones. */
    for (unsigned i = 2 * PARTITIONS; i-- > 0;) {
        uint64_t *distance = &walk->distance[i % PARTITIONS][m];
        uint64_t next = walk->distance[(i + 1) % PARTITIONS][m];
        if (*distance == FAR && next != FAR)
            *distance = next + ARC;
    }
}

/* Fewer copies than the capacity: its share of `ranks` copies of everything and a little, rounded
 * up: of 64 equal members each may be first for 17 partitions, 6.25 % above its 16. Where zones are
 * few, (G2) gives a member more. (In whole numbers: every machine must come to the same answer.) */
static bool walk_has_room(const struct walk *walk, unsigned m, unsigned ranks)
{
    uint64_t share = (uint64_t)ranks * PARTITIONS * walk->members[m].weight;
    return walk->copies[m] * walk->weight * 100 < share * CAPACITY_PERCENT;
}

/* The nearest of those who take part, hold no copy of it yet (G1), and break the fewest of (G2),
 * which counts most, and (G3). */
static unsigned walk_choose(const struct walk *walk, unsigned partition, unsigned ranks)
{
    uint64_t allowed = walk->mask & ~walk->owners[partition];
    const uint64_t *distance = walk->distance[partition];
    unsigned best = 0, best_fault = UINT32_MAX;
    for (unsigned m = 0; m < walk->members_count; m++) {
        if (!(allowed >> m & 1))
            continue;
        unsigned fault = 2 * (walk->owners_zones[partition] >> m & 1);
        fault += !walk_has_room(walk, m, ranks);
        if (fault < best_fault || (fault == best_fault && distance[m] < distance[best])) {
            best = m;
            best_fault = fault;
        }
    }
    assert(allowed >> best & 1); /* (G1) */
    return best;
}

void ring_place(struct ring *ring, const struct member *members, size_t members_count,
                uint64_t mask, unsigned replicas)
{
    assert(members_count <= MEMBERS_MAX && replicas <= REPLICAS_MAX);
    struct walk walk = {members, members_count, mask, .owners = ring->sets};
    unsigned owners_max = 0;
    for (unsigned m = 0; m < members_count; m++) {
        if (!(mask >> m & 1))
            continue;
        assert(members[m].weight >= 1 && members[m].weight <= WEIGHT_MAX);
        walk.weight += members[m].weight;
        walk_add_zone(&walk, m);
        walk_add_points(&walk, m);
        owners_max++;
    }
    *ring = (struct ring){.owners_count = replicas < owners_max ? replicas : owners_max};
    for (unsigned rank = 0; rank < ring->owners_count; rank++) {
        for (unsigned partition = 0; partition < PARTITIONS; partition++) {
            unsigned m = walk_choose(&walk, partition, rank + 1);
            ring->owners[partition][rank] = m;
            ring->sets[partition] |= UINT64_C(1) << m;
            walk.owners_zones[partition] |= walk.zone[m];
            walk.copies[m]++;
        }
    }
}
