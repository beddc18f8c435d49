/*
 * estoraje: a small distributed key-value store whose heart a reader can finish in an evening.
 *
 * Every key is its own Paxos register (CASPaxos, Rystsov 2018). A consistent-hash ring (ring.c) says
 * which nodes hold it. The membership is a register of the same kind. There is no leader and no
 * replicated log, and repair, hand-off and rebalancing are one act: deliver the accept again.
 *
 *   I  The protocol, in prose: the words, the steps, why they are safe, the rules R1 to R40
 *
 *  II  One register
 *   1  Limits                 every bound in one place
 *   2  Small tools            growing bytes, keys as text
 *   3  Ballots and messages   one format for the wire, the disk and the queue
 *   4  The node               all protocol state, in one struct
 *   5  The log                batches, group commit
 *   6  The clock              hybrid logical, with a durable bound
 *   7  The index              partitions of sorted entries, digests
 *   8  Sending                what leaves, and when it may
 *   9  The acceptor           prepare, accept, read
 *  10  Writes                 a function of the record; its result is remembered
 *  11  Rounds                 one round carries all the writes that wait
 *  12  Reads                  one round trip when the owners agree
 *
 * III  Many nodes
 *  13  Views                  who owns what, adopted one at a time
 *  14  The coordinator        leases, joins, drains, evictions
 *  15  Sync                   lists, pulls, digests, forgetting
 *  16  Cleaning               the oldest part of the log first
 *  17  Recovery               what a restart finds, and may believe
 *
 *  IV  What clients want
 *  18  Requests               where they come in, and where the reply goes out
 *  19  Waits                  a read that is told of a change
 *  20  Listings               the owners' sorted lists, merged
 *  21  The core's edge        what goes in: a frame, a tick, "it is durable"
 *
 *   V  The machine
 *  22  The disk               segments, the log thread
 *  23  The server, its wire   one loop, two endless POSTs to each peer
 *  24  Reports                status, metrics
 *  25  HTTP                   what a user meets
 *  26  The program            options, the loop, main
 *
 * Parts II to IV are the core: deterministic, without I/O, a lock or a clock of their own, so that
 * tests/ runs whole clusters of it under a simulated network and disk; they compile without Part V and
 * its headers. To follow a PUT, start at http_handle, then node_request, round_begin, on_prepare,
 * on_reply, round_decide, on_accept.
 */
#include "ring.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <xxhash.h>

#define VERSION "0.1.0"

/* === Part I: the protocol ========================================================================
 *
 * This part is prose. It says what the nodes send one another, and argues why that is safe. The
 * rules that it names, R1 and so on, are kept at the lines of the program that cite them; the table
 * at its end says what breaks without each.
 *
 * --- The idea ---
 *
 * Every key is a register of its own, which a few nodes keep with Paxos. The consistent-hash ring
 * says which nodes. There is no leader and no log of the whole store, so nothing has to be elected
 * when a node dies, and two keys never wait for each other. The list of members is a register of
 * the same kind. Repair, hand-off, rebalancing and catching up are one act: an accept message is
 * delivered once more. In Paxos that is always safe.
 *
 * --- The words ---
 *
 *    partition          one of 1024 equal arcs of the hashes of keys: the unit of ownership and of
 *                       sync
 *    view               {epoch, members}: one configuration. A member is JOINING, UP, LEAVING or
 *                       LOST
 *    stable             a view in which all members are UP; from another one, a transition leads to
 *                       the next stable view
 *    voters             the members that are UP or LEAVING
 *    C_old, C_new       the ring over UP and LEAVING (and LOST), and the ring over UP and JOINING;
 *                       one ring if the view is stable
 *    owners             the nodes, R or fewer, that a ring gives a partition; they are its
 *                       acceptors
 *    quorum             a majority of the owners in C_old and a majority of the owners in C_new
 *    ballot             (epoch, time, node), compared in that order; one proposer uses it for one
 *                       record
 *    record             what a register holds: a value or a tombstone, and the results of the last
 *                       writes
 *    round              what a proposer does to write or to read a key; its round id is echoed in
 *                       all replies
 *    write id           64 random or hashed bits that name one client's write, however often it is
 *                       sent
 *    issued at          when that write was issued; fixed when it first arrives, like its id
 *    result             what the client of a write was told, or would have been; kept in the record
 *    results lost until the latest time at which a result was recorded that the record lists no
 *                       more
 *    frame              messages to one peer, sent as a whole, with the sender's epoch and clock
 *    clock bound        a time in the log of a node; nothing that the node ever sent lies above it
 *    promise floor      a ballot of a partition up to which every key without a value counts as
 *                       promised
 *    gc floor           a ballot of a partition up to which no owner needs a tombstone any more
 *    digest             of a partition: the XOR of hashes of (key, ballot) over its keys with a
 *                       value
 *    boot               a random name of a process; with each start a node has a new one
 *    live               a peer whose heartbeat came within the lease, and says that ours reach it
 *    lease              what a node has while a majority of the voters is live
 *    complete           a new owner that has gone through the lists of a majority of the old
 *                       owners, in this epoch
 *    caught up          a partition of a node that has all that was acknowledged while the node had
 *                       no lease, or was no owner; a node is ready when all its partitions are
 *
 * --- What an acceptor keeps ---
 *
 * For each key: `promised`, the highest ballot that it promised, in memory; `accepted`, the ballot
 * of its record, and the record, in the log. It handles three messages:
 *
 *   prepare(b)      if b is not below promised: promised = b; reply with accepted and its
 *                   record (an equal b is the same prepare, sent again)
 *   accept(b, rec)  if b is not below promised: promised = accepted = b, the record is rec; reply
 *                   when the log has it on disk
 *   read            reply with accepted and, if asked for, the record
 *
 * Otherwise it replies "rejected"; the clock of that frame lets the proposer choose a higher ballot
 * next time. "Below" means in ballot or in time (R7). It handles only messages of its own epoch,
 * about partitions that it owns in its view, that are addressed to its id (R6).
 *
 * Nothing is shown that is not durable (R3). A record is visible at once to the next prepare or
 * read, but the reply that shows it waits until the log is on disk up to that record. A node whose
 * disk stalls therefore stops replying, and is no longer live.
 *
 * --- A write ---
 *
 * Any node takes it. The writes of a key wait in a queue, and one round carries all that wait.
 *
 *   1  choose a ballot b above all that was heard; prepare(b) to all owners
 *   2  at a quorum of promises: the current record is the one with the highest ballot among them,
 *      taken for deleted if it has expired
 *   3  for each write in turn: if the record lists its id, that is its result; if the result may
 *      have been lost, it is "unknown"; else the write is a function of the record: apply it
 *   4  accept(b, new record) to all owners; at a quorum of replies: answer the clients
 *
 * A read that goes this way, and a write that changes nothing, accept the current record again at
 * b; unless a quorum of the promises reported that record at one ballot: then it is chosen already.
 *
 * Why it is safe. A record is *chosen* when a quorum has accepted it at one ballot. Two quorums
 * share an acceptor. So a proposer that gets a quorum of promises at b learns of every record that
 * was chosen below b: or else the shared acceptor has promised b first, and does not accept the
 * lower ballot any more. By induction every record accepted above a chosen one was made from it or
 * from a descendant of it. A client is answered only with what is chosen, so no answer is ever
 * taken back.
 *
 * When a proposer dies between two steps, its record is at no acceptor, at a minority or at a
 * quorum. After step 1 nothing has changed but promises. In step 4, if a quorum has accepted the
 * record, it is chosen: all that follows finds it. If a minority has, the next reader either gets
 * equal ballots from a quorum without that minority, and returns the old record; or it meets the
 * minority, finds no agreement, and becomes a round. The next round whose quorum meets an acceptor
 * that has the record makes it part of history; one that does not meet it makes another record, and
 * the dead proposer's ballot is rejected from then on. Its client got no answer, or 503 with
 * "unknown", and may repeat the write (see below).
 *
 * --- Writes of consistency=one ---
 *
 * They have no step 1: such a write is made of nothing, accepted at a new ballot, and acknowledged
 * when one owner has it. The highest ballot wins, so it may destroy a write that was acknowledged
 * just before, also one of a quorum. It lists no results, and says so: its results are lost until
 * its own ballot. It is for caches, and for what is written once.
 *
 * --- Two writers at once ---
 *
 * They may reject each other's ballots for as long as they go on. A rejected proposer waits a
 * random time that doubles; the partition's first live owner waits less than the others. Safety
 * does not depend on it.
 *
 * --- A read ---
 *
 * Ask all owners for their accepted ballot, and the nearest for its record. If a quorum reports
 * *one and the same* ballot, and the record is of that ballot, it is the answer (R9): one round
 * trip, and nothing is written. The ballots are in memory; only the value may have to be read from
 * disk, at one node.
 *
 * Why the same ballot and not the highest: a ballot that fewer than a quorum report may not be
 * chosen. A read that returned it could be followed by one that does not see it. If a quorum has
 * accepted one ballot, that record is chosen. And no later write was acknowledged before the read
 * began: it would be held by a quorum, which shares an acceptor with ours, and that one would have
 * reported its later ballot. "No record" and a tombstone both mean "not found", but they are two
 * ballots: one owner without a record and one with a tombstone do not agree, because the tombstone
 * may not be chosen.
 *
 * If they do not agree the read is tried once more, because the key may be being written; then it
 * becomes a round of the key that changes nothing. That is read repair.
 *
 * --- The clock, and what a restart forgets ---
 *
 * A ballot's time is that of a hybrid logical clock, raised by every message (R4): so a new ballot
 * is above all that its maker has heard of. Promises are in memory only. What stands for them is
 * the clock bound: a time in the log, and no frame leaves with a clock above it (R2).
 *
 * A node promises only its own ballots, which are not above its clock, and those that reached it in
 * frames; no frame carries a ballot whose time is above that frame's clock, which the receiver's
 * clock is raised to. So everything that this node ever promised has a time at or below its own
 * clock then, and its reply left only when that clock was at or below the durable bound. After a
 * restart the node rejects every ballot whose time is not above the bound that it finds. That
 * rejects all that its forgotten promises excluded.
 *
 * Why a time may stand for ballots, which are ordered by their epoch first. An acceptor rejects a
 * falling time as well as a falling ballot. Any two ballots of a key that both reached step 4 share
 * an acceptor, or are linked by the lists of a transition. So among them the order by ballot and
 * the order by time are one. (Writes of consistency=one, which have no step 1, stand outside of
 * that.)
 *
 * A wall clock that jumps moves nothing (R31). A node's own time runs with the monotonic clock, and
 * is led towards the wall clock slowly. A clock that is far ahead is ignored (R5).
 *
 * --- Repeats ---
 *
 * A client that got no answer sends its write again, maybe through another node. The write has the
 * same id, so step 3 finds it (R10). Two invariants make that exact:
 *
 *   if a write was ever applied in the history of this record, and its result was recorded at time t,
 *   then the record lists the result, or its results are lost until t or later, or nobody can ask for
 *   the result any more (R35);
 *
 *   issued_at(any try of a write) <= recorded(result of any earlier try).
 *
 * Step 4 keeps the first: a new record lists the results of the one it replaces, and where it drops
 * some, "results lost until" rises to the latest of them. write_issued_at keeps the second. So in
 * step 3: if the result is listed, the write gets the same result; if it is not listed and results
 * are lost until its time of issue or later, nobody can know, and the client is told so; else it
 * was never applied, and is applied now (R11).
 *
 * A refusal (412, 409, 404) of a write that may have an earlier try under way is recorded as well.
 * Otherwise that try might be applied after its client was told "no" (R12).
 *
 * Why a write over a minute old is "unknown" even so: a tombstone may be forgotten when it is 70 s
 * old (below), and what it says of lost results goes with it.
 *
 * --- Expiry ---
 *
 * An expired record is deleted by a round (R22). If each node hid it by its own clock, a client
 * could read the value, then nothing at a node whose clock is ahead, then the value again, though
 * nobody wrote in between. So a read that finds an expired record makes a round write a tombstone,
 * and answers "not found" when that is chosen. Expiry goes by the latest time that a node has heard
 * of.
 *
 * --- The lease ---
 *
 * Every member sends every other one a heartbeat each quarter of the lease time; it names the
 * members that the sender hears. A node has a lease while a majority of the voters is live: heard
 * within the lease time, and hearing this node (R21). It is no exclusive right, as elsewhere: all
 * nodes may have one at once, and no answer is safe because of it. Each read and each write asks a
 * quorum, and no promise depends on how long something takes.
 *
 * What a lease is for: a node without one is cut off, learns it early, and refuses requests at
 * once, so that clients ask another node. Only a node with a lease tells others what time it is
 * (R31), counts the others as dead, tells a stranger that it is one (R32), and proposes views. Of
 * the live voters with a lease the one with the smallest id, the coordinator, does that alone, so
 * that proposals seldom meet. That two nodes think they are the coordinator does no harm, because a
 * view's register is written once. Each new lease begins a new comparison with the others: the node
 * is ready when all that was acknowledged without it is there (R30).
 *
 * --- Views ---
 *
 * The view of epoch e + 1 is the register view/<e + 1>, whose acceptors are the voters of view e.
 * It is written with If-None-Match: *, as a client would write it; a coordinator that loses reads
 * what the winner wrote (R16). So each view is chosen by a majority of the one before, and there is
 * never a second one: two rings cannot be. Every node adopts every view, in order, and keeps the
 * chain. A node that is behind names its epoch in its frames, and gets the views that it misses.
 *
 * In a transition a quorum is one of C_old and of C_new (R13; joint consensus in Ongaro's thesis,
 * 4.3). A proposer that adopts a view begins its rounds again at step 1: a quorum that it had in
 * the view before may be none in this one.
 *
 * A joiner has to learn what the old owners hold. It gets their lists of (key, ballot), with
 * tombstones, and pulls each record that is newer than its own. It is complete when it has gone
 * through the lists of a *majority* of the old owners, all made in this epoch (R14). A majority,
 * because any single list may lack a record that the two others chose. In this epoch, because an
 * owner that lists in epoch e accepts nothing of epoch e - 1 any more: so a record that was chosen
 * in e - 1 is in one of the lists. What is chosen in e itself, a majority of the new owners accepts
 * anyway. When a majority of the new owners of each partition is complete, the next view may end
 * the transition (R15): a majority of those is enough for what was chosen before. It also waits for
 * every joiner, because an owner of a stable view counts as one that has all, for instance when
 * tombstones are forgotten.
 *
 * A transition may be called off at any time: whatever was chosen in it is held by a majority of
 * the old owners too (R13). For the same reason its target may be replaced at any time, one view at
 * a time, as long as the voters stay: a joiner that died is exchanged, a member that died leaves as
 * well.
 *
 * What may begin. A voter is never added while another is dead, except in exchange for it:
 * otherwise a machine that loses its disk twice leaves two live voters of four, and no view can
 * follow (R23). A live member leaves only while all other voters are live (R24). Nothing begins
 * without a live majority of every partition's owners, and what moves no data for the eviction time
 * is called off (R25).
 *
 * Members whose disks are gone for good may be declared LOST. They take part in nothing any more,
 * but they count: a quorum of C_old stays as large as a majority of all its owners, of those that
 * are left or, where fewer are left, all of these (R26). What was chosen is at a majority of all,
 * and only so many are sure to meet it.
 *
 * --- Sync, and how a deleted key is forgotten ---
 *
 * Owners of a stable view compare digests now and then. Where they differ they exchange lists and
 * pull. A pulled record passes through the same rule of the acceptor as any accept (R18).
 *
 * A tombstone must stay as long as an older value of its key can come back. The anomaly: a value is
 * on three owners; a DELETE reaches two; both forget it; the third, asked for its list, brings the
 * value back. A tombstone may go once (1) no owner holds an older value, and (2) no owner can
 * accept one any more. For (2) there is the promise floor: an owner rejects ballots up to it for
 * keys without a value. An owner that reports our digest, at a floor at or above ours, has the same
 * keys with a value as we have, which is (1), and rejects anything older, which is (2). What is
 * written later lies above the floor, and cannot undo this. A late record at or below the floor
 * starts the agreement over. So the owners may report one after the other, while other keys change
 * all the time; when all have reported, the gc floor rises to the promise floor (R19, R20).
 *
 * --- The log ---
 *
 * The log is one stream of batches. A batch is written when all before it is on disk. Therefore
 * damage at the end of the stream is a torn tail, which nobody was told of; damage with a whole
 * batch behind it was on disk once, and is corruption. That rests on fdatasync keeping its word.
 * With --sync none a hole before a whole batch may be a torn tail too, which clients were told of:
 * such a node takes its data from the others, or ends its log at the hole if none has a lease.
 *
 * --- A log that was put back, and twins ---
 *
 * A node whose disk is an older copy has forgotten promises and records, and does not know it. Of
 * twins, two processes with copies of one disk, each knows nothing of what the other promised. But
 * others were told. All that a frame shows is in the log below the end that the frame names, `durable`
 * (R3), and an honest restart finds all of that. So whoever follows a process of some id follows
 * another one of that id only if that found a log, `start`, which reaches as far as the highest
 * `durable` ever heard (R32). An older copy does not, unless nothing was told since it was made; then
 * nothing is forgotten. Any other process counts as a stranger: its frames are ignored, it gets no
 * lease, and it is told why. It does nothing any more when a voter with a lease says so; when a
 * majority does, these live without it, and it rejoins under a new id.
 *
 * It rests on the memory of processes. Who was started since the newer log was last heard follows
 * whoever comes first: if that is all of a record's other owners, what they hold no copy of is lost.
 * And the log of a copy that hears others, which do not hear it, grows: after another start it may
 * reach far enough. Who is told hears no clock any more, so that it stays short.
 *
 * --- The rules, and what breaks without each ---
 *
 *     R1  promises are kept                                 two proposers both win: a lost
 *                                                           update
 *     R2  after a restart every key counts as promised up   a restarted node forgets a
 *         to the clock bound                                promise: a lost update
 *     R3  nothing is shown that is not durable: records,    an acknowledged write, a view or a
 *         lists, digests, views, the clock                  promise is gone after a crash
 *     R4  messages raise the clock                          a node with a slow clock never
 *                                                           wins a ballot
 *     R5  a clock that is far ahead is ignored              one bad clock stops the others
 *     R6  only what names the own id, epoch and partition   a wiped or evicted node votes in
 *         is handled                                        place of the node that it was;
 *                                                           two rings choose
 *     R7  a ballot is ordered by its epoch first; its time  what an old epoch wrote at a
 *         never falls for a key either                      minority comes back above what is
 *                                                           newer
 *     R8  the same accept is acknowledged again             a write succeeds, and is reported
 *                                                           as unknown
 *     R9  a read needs a quorum at one ballot, and the      a value is read and then gone
 *         record of that very ballot
 *    R10  a write's id finds its earlier application        it is applied twice
 *    R11  results lost until its time of issue, or over a   a late repeat is applied a second
 *         minute old, is unknown; that time never falls     time
 *    R12  the refusal of a repeat is recorded               a write is applied after its
 *                                                           client was told "no"
 *    R13  a quorum is one of C_old and of C_new             writes are split between the rings
 *    R14  a joiner needs the lists of a majority of the     it misses a write, or revives a
 *         old owners, made in this epoch, with tombstones   deleted key
 *    R15  a transition ends when a majority of each         a write is missed; or a joiner
 *         partition's new owners is complete, and each      counts as one that has all, and
 *         joiner                                            a deleted key comes back
 *    R16  a view is written once; views are adopted in      two rings at once; a node stranded
 *         order, and the chain is kept                      for ever
 *    R17  what is no longer owned is dropped, at replay     old records come back, or live
 *         too; a wiped or evicted node has a new id         ones go
 *    R18  a pulled record obeys the acceptor's rule; a      an old record overwrites a newer
 *         repair always accepts at a new ballot             promise; or the owners never agree
 *    R19  all owners raise the promise floor before         a deleted key comes back
 *         digests are compared; it holds for tombstones
 *         too
 *    R20  a tombstone goes when all digests are one, it is  a deleted key comes back
 *         a minute old, in a stable view, and nothing
 *         older of its key is in the log
 *    R21  live means heard both ways                        a deaf node stays coordinator
 *    R22  an expired record is deleted by a round           value, nothing, value again, and
 *                                                           no write
 *    R23  no voter is added while another is dead, except   a second lost disk leaves no
 *         in exchange for it                                majority
 *    R24  a live member leaves only while all others are    the same
 *         live
 *    R25  what cannot end is not begun, or is called off    every other change waits for ever
 *    R26  members that are LOST count in the quorums of     an acknowledged write is missed
 *         C_old
 *    R27  of nodes without data, the one with the smallest  two clusters
 *         id begins, when as many as were asked for have
 *         heard one another
 *    R30  a node is ready when all that was acknowledged    who replaces machines by it takes
 *         while it was away is there                        the next one too early
 *    R31  a node's own time is led by the wall clock,       one jump stops the cluster, or
 *         never set                                         ends keys early
 *    R32  of the processes with one id only one is          a restored disk, or a twin, votes
 *         followed: that whose log has all that was told    against its own promises
 *    R35  a result is forgotten early only when nobody can  a repeat is applied again; without
 *         ask for it                                        it records grow with each write
 *    R40  a listing shows a key as a quorum has it          a key is shown that was never
 *                                                           there, or is left out
 */

/* A rule of Part I that the line keeps. The tests define it to break one rule at a time, and the
 * simulation must then find a violation. */
#ifndef RULE
#define RULE(number) true
#endif

/* === Part II: one register =======================================================================
 *
 * What one node keeps of a key, and how the owners of a key agree on it.
 */

/* === 1 Limits ===================================================================================
 * Times are in microseconds, sizes in bytes, unless the name says otherwise. */

#ifndef LIMITS /* the simulator has its own */
enum {
    KEY_BYTES_MAX = 1024,
    TYPE_BYTES_MAX = 255,         /* a Content-Type */
    RESULTS_MAX = 256,            /* results that a record lists */
    ROUND_WRITES_MAX = 64,        /* writes that one round carries */
    LIST_PAGE_KEYS = 512,         /* keys in one message of a list, when nodes sync */
    LISTING_PAGE_KEYS = 5,        /* of one partition in a listing's page: some thousand in all */
    LISTINGS_MAX = 2,             /* listings under way; the others wait for their turn */
    PULL_BYTES_MAX = 1 << 20,     /* values under way in pulls, for one partition */
    SYNCS_MAX = 8,                /* partitions that sync at once */
    REPAIRS_MAX = 64,             /* repairs of single keys under way */
    BULK_BYTES = 64 << 10,        /* a larger message goes by the bulk channel */
    COLD_BYTES_MAX = 1 << 20,     /* messages that wait for cold bytes of the log */
    OUTBOX_BYTES_MAX = 256 << 20, /* messages that wait for one peer; above it all are lost */
    OUTBOX_BYTES_DEAD = 1 << 20,  /* the same, if the peer is not live, or memory is short */
    BYTES_KEPT = 32 << 20,        /* a buffer that grew larger is freed when it is empty */
    LARGE_BYTES_MAX = 2 << 20,    /* values of this node's large writes under way; others wait */
    RESENDS_MAX = 5,              /* a step's time doubles so often at most */
    DUELS_FIRST = 1, /* the time that a rejected round waits doubles so often: at the partition's */
    DUELS_OTHER = 7, /* first live owner, and at the other nodes */
    CLEAN_STEP_BYTES = 1 << 20,   /* copied, or looked at, in one step of cleaning */
    CLEAN_SLACK_BYTES = 16 << 20, /* garbage not worth cleaning */
    READ_TRIES = 2,               /* fast reads, before the read joins the key's write round */
    PEERS_MAX = 4 * MEMBERS_MAX,  /* members, joiners, and addresses of --join */
    ENTRIES_GROWTH = 64,          /* of a partition's array, when it is full */
    ROUND_BUCKETS = 4096,
    DELIVERED_PLACES = 1 << 17,   /* write ids whose clients have their results */
    VIEWS_PARTITION = PARTITIONS, /* the registers of the views; acceptors: the voters */
    VIEWS_TOLD_MAX = 16,          /* views sent at a time to a node that is behind */
    BYTES_PER_US = 16,            /* a large value gets time on top of that for a small one */
    /* On a full disk what is appended leaves so much room for what is more urgent: */
    ROOM_CLEANING = 64 << 10, /* copies made by cleaning, views and clock bounds */
    ROOM_FLOORS = 4 << 20,    /* promise floors, tombstones and the registers of views */
    ROOM_RECORDS = 8 << 20,   /* all other records, and requests to delete */
    ROOM_WRITES = 12 << 20,   /* all other requests to write */
    ROOM_AHEAD = 16 << 20,    /* allocated ahead of the log's end; a disk with less is full */
};
#define MS                UINT64_C(1000)
#define SECOND            (1000 * MS)
#define BOUND_AHEAD       (1700 * MS)      /* how seldom an idle node writes */
#define BOUND_MARGIN      (300 * MS)       /* a disk may stall that long, and reads do not notice */
#define WRITE_TIME_MAX    SECOND           /* a disk that takes longer for a batch is away */
#define CLOCK_AHEAD_MAX   (10 * SECOND)    /* a message from further ahead is a clock fault */
#define CLOCK_FAR_MAX     (86400 * SECOND) /* and so is such a clock, whoever names it */
#define REPEAT_TIME       (60 * SECOND)    /* how long a repeat surely finds its answer */
#define KEY_TIME_SLACK    SECOND /* a first try that comes so near its key's time is in time */
#define KEY_TIME_MARGIN   (5 * SECOND) /* clients' clocks may be ahead by so much */
#define RESULTS_KEPT_TIME (REPEAT_TIME + 2 * KEY_TIME_MARGIN) /* 70 s, Part I's "a minute" */
#define FIRST_TRY_LEAD    (100 * MS)  /* a repeat is not applied so soon after the first try came */
#define REQUEST_TIME      (2300 * MS) /* a request is answered within it */
#define STEP_TIME         (100 * MS)  /* a step of a round, before it is sent again */
#define LEASE_GRACE       (200 * MS)  /* a request waits so long for a lease that was lost */
#define WATCH_TIME        (5 * SECOND)
#define LISTING_TIME      (60 * SECOND) /* it includes the wait for its turn */
#endif

/* === 2 Small tools ============================================================================ */

/* Bytes that grow at the end. Owner: whoever holds the struct; `data` comes from malloc. */
struct bytes {
    uint8_t *data;
    size_t count, capacity;
};

/* The memory of all of them in this process: values, messages, lists, all that clients and peers cause to
 * be kept. bytes_reserve allocates it and counts it. Above the limit no new body and no value is let in;
 * above an eighth of it no empty buffer is kept. */
static uint64_t bytes_held, bytes_limit = UINT64_MAX;

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

enum log_level { LEVEL_ERROR, LEVEL_WARN, LEVEL_INFO, LEVEL_DEBUG };
static enum log_level log_level = LEVEL_INFO;

/* What the core asks of Part V beside its hooks. One logfmt line on stderr; `format` has the
 * key=value pairs after msg. */
__attribute__((format(printf, 3, 4))) static void
log_line(enum log_level level, const char *message, const char *format, ...);
/* Ends the process where nothing else can be done: no memory, a disk that fails. */
__attribute__((noreturn)) static void die(const char *message);
/* Is called when a large buffer grew. */
static void memory_grew(struct bytes *b);

static void *allocate(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (!p)
        die("out of memory");
    return p;
}

/* Room for `count` more bytes at the end. The pointer is good until the next call. */
static void *bytes_extend(struct bytes *b, size_t count)
{
    if (b->count + count > b->capacity) {
        bytes_held -= b->capacity;
        size_t more = b->capacity < BYTES_KEPT / 8 ? b->capacity + 256 : b->capacity / 8;
        b->capacity = max_u64(b->count + count, b->capacity + more);
        bytes_held += b->capacity;
        b->data = realloc(b->data, b->capacity);
        if (!b->data)
            die("out of memory");
        if (b->capacity > BYTES_KEPT / 8)
            memory_grew(b);
    }
    b->count += count;
    return b->data + b->count - count;
}

static void bytes_reserve(struct bytes *b, size_t count)
{
    if (count)
        bytes_extend(b, count);
    b->count -= count;
}

static void bytes_append(struct bytes *b, const void *data, size_t count)
{
    if (count)
        memcpy(bytes_extend(b, count), data, count);
}

/* Makes them a copy of `data`. */
static void bytes_set(struct bytes *b, const void *data, size_t count)
{
    b->count = 0;
    bytes_append(b, data, count);
}

__attribute__((format(printf, 2, 3))) static void bytes_print(struct bytes *b, const char *format,
                                                              ...)
{
    size_t start = b->count, room, count = 255; /* mostly enough, so that it is printed once */
    do {
        va_list list;
        room = count + 1;
        b->count = start;
        va_start(list, format);
        count = (size_t)vsnprintf(bytes_extend(b, room), room, format, list);
        va_end(list);
    } while (count >= room);
    b->count = start + count; /* without the zero behind it */
}

static void bytes_free(struct bytes *b)
{
    bytes_held -= b->capacity;
    free(b->data);
    *b = (struct bytes){0};
}

/* Empties it; frees its memory if that is large, or if memory is short. */
static void bytes_clear(struct bytes *b)
{
    b->count = 0;
    if (b->capacity > BYTES_KEPT || bytes_held > bytes_limit / 8)
        bytes_free(b);
}

static void bytes_swap(struct bytes *a, struct bytes *b)
{
    struct bytes t = *a;
    *a = *b;
    *b = t;
}

enum { KEY_TEXT_BYTES = 3 * KEY_BYTES_MAX + 1 };

/* A key as paths, lists, JSON and the log show it. */
static const char *percent_encode(char to[KEY_TEXT_BYTES], const void *key, size_t bytes)
{
    const uint8_t *from = key;
    char *at = to;
    for (size_t i = 0; i < bytes; i++)
        if (isalnum(from[i]) || (from[i] && strchr("-._~/", from[i])))
            *at++ = (char)from[i];
        else
            at += sprintf(at, "%%%02X", from[i]);
    *at = 0;
    return to;
}

/* Whether it can be an address, or a zone's name. Peers send them too, and they are printed in JSON and
 * in the log, and made a URL of. */
static bool text_is_plain(const char *text, size_t bytes, bool address)
{
    bool plain = true;
    for (size_t i = 0; i < bytes; i++) {
        bool part = isalnum((unsigned char)text[i]) || (text[i] && strchr("-._:[]", text[i]));
        plain &= address ? part : (uint8_t)text[i] >= ' ' && !strchr("\"\\\x7f", text[i]);
    }
    return plain;
}

/* === 3 Ballots and messages =====================================================================
 *
 * One format serves for messages on the wire, entries of the log, requests in their queues and replies to
 * clients. A record is an accept message: the log holds it as it came, and to send it again is to copy it.
 * Numbers are little-endian.
 *
 *    0 check        halves of XXH3 of bytes 16 to the value, and of the rest; in the log only
 *    8 round_id     the proposer's name for its round, echoed in replies; 0: a pull's accept
 *   16 bytes        of the whole message, a multiple of 8
 *   20 type, flags, partition (u8, u8, u16)
 *   24 ballot       epoch, time, node (request: the ETag of its If-Match: modified, then write id)
 *   48 write_id     64 bits that identify one client's write (M_DIGEST: of which it is the reply)
 *   56 modified     microseconds; with the write id the ETag. In M_READ both are what is known already
 *   64 expiry       microseconds, 0: none. M_READ, and a request for it: bytes wanted at most
 *   72 results_lost_until   newest `recorded` of the results that the record no longer lists
 *      issued_at    of a request. M_READ: bytes_max, of a part that is larger nothing is sent
 *   80 number       of a reply: a counter's, else modified. By type: amount to add; part_start of the
 *                   part wanted; total_bytes of the value; has_lease; keys_max of a list; digest;
 *                   clock_bound
 *   88 value_bytes  set even where the value itself is not there (FLAG_WHOLE not set)
 *   92 key_bytes, type_bytes, results_count, status (u16 each). In M_HEARTBEAT key and type are its
 *      sender's address and zone, and status is its weight
 *  100 function, condition (u8 each), 2 bytes zero
 *  104 results (32 bytes each), key, content type, value if FLAG_WHOLE, zeros up to a multiple of 8
 */

/* `epoch`: of the proposer's view. `time`: of its clock, the round's id as well. `node`: its id. A node
 * makes each ballot for one round and one record (clock_tick). So records with equal ballots are the same
 * record, and to compare ballots is to compare records. */
struct ballot {
    uint64_t epoch, time, node;
};

struct message {
    uint64_t check, round_id;
    uint32_t bytes;
    uint8_t type, flags;
    uint16_t partition;
    struct ballot ballot;
    uint64_t write_id, modified, expiry;
    union {
        uint64_t results_lost_until, issued_at, bytes_max;
    };
    union {
        uint64_t number, amount, part_start, total_bytes, has_lease, keys_max, digest, clock_bound;
    };
    uint32_t value_bytes;
    uint16_t key_bytes, type_bytes, results_count, status;
    uint8_t function, condition, zero[2];
};
_Static_assert(sizeof(struct message) == 104 && offsetof(struct message, bytes) == 16, "layout");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "wire and disk are little-endian");

/* The reply to a write, which its record keeps for repeats. `recorded`: the time of the ballot that put
 * it into the record. `number`: a counter's value, else modified. */
struct result {
    uint64_t write_id, recorded, number;
    uint32_t status, zero;
};
_Static_assert(sizeof(struct result) == 32, "layout");

/* Where the parts of a message are. Owned by whoever owns the message. */
struct body {
    const void *results, *key, *type, *value;
};

/* The types of messages: of Part II, of Part III, and those that stand in the log only. What comes back:
 *
 *   M_PREPARE   M_PROMISE or M_REJECT
 *   M_ACCEPT    M_ACCEPTED or M_REJECT; nothing after a pull, or if there is no room in the log
 *   M_READ      M_READ_REPLY; nothing if the record is damaged; with FLAG_WATCH another at a change
 *   M_LIST      M_LISTED
 *   M_PULL      M_ACCEPT, if there is a record that is not damaged
 *
 * Nobody relies on a reply: each may be lost, and who needs it asks again. */
enum { M_PREPARE, M_PROMISE, M_ACCEPT, M_ACCEPTED, M_REJECT, M_READ, M_READ_REPLY };
enum { M_HEARTBEAT = M_READ_REPLY + 1, M_VIEW, M_LIST, M_LISTED, M_PULL, M_DIGEST, M_TYPES };
enum { M_CLOCK_BOUND = 32, M_PROMISE_FLOOR, M_DROP, M_DAMAGED, M_LOG_TYPES };

enum {
    /* Of records, and of messages about them: */
    FLAG_RECORD = 1,    /* there is a record */
    FLAG_TOMBSTONE = 2, /* and it is a tombstone */
    FLAG_WHOLE = 4,     /* nothing is left out: the value is here (asked for, in M_READ) */
    FLAG_WATCH = 64,    /* reply again when the record changes */
    FLAG_MORE = 64,     /* of a list: there are keys behind its last */
    FLAG_DAMAGED = 128, /* its bytes in the log failed their checksum (index, M_PROMISE) */
    /* Of requests, beside FLAG_WHOLE and FLAG_WATCH: */
    FLAG_KEYED = 1,   /* its client may repeat it by a key of its own: refusals are recorded */
    FLAG_FIRST = 2,   /* its first try, of which nothing was sent */
    FLAG_REPEAT = 8,  /* an earlier try of this write may be under way */
    FLAG_ALL = 16,    /* consistency=all */
    FLAG_ONE = 32,    /* consistency=one; such a write is a one-write: no prepare, one owner */
    FLAG_FRESH = 128, /* this node made its write id, and nothing of it was ever sent */
};

/* A write is a function of the current record. */
enum function { DO_READ, DO_PUT, DO_DELETE, DO_ADD, DO_REPAIR };
enum condition { IF_NONE, IF_MATCH, IF_EXISTS, IF_ABSENT };

/* Statuses are HTTP's; this one becomes 503 with Estoraje-Outcome: unknown. */
enum { STATUS_UNKNOWN = 520 };

/* Whether they are the flags of a record that is no tombstone. */
static bool is_live(uint8_t flags)
{
    return (flags & (FLAG_RECORD | FLAG_TOMBSTONE)) == FLAG_RECORD;
}

/* By the epoch first, so that what a minority accepted in an old epoch, at a late time, is not taken for
 * newer than what was chosen after it (R7). */
static int ballot_compare(struct ballot a, struct ballot b)
{
    if (a.epoch != b.epoch && RULE(7))
        return a.epoch < b.epoch ? -1 : 1;
    if (a.time != b.time)
        return a.time < b.time ? -1 : 1;
    return a.node < b.node ? -1 : a.node > b.node;
}

static bool ballot_equal(struct ballot a, struct ballot b)
{
    return ballot_compare(a, b) == 0;
}

static struct ballot ballot_max(struct ballot a, struct ballot b)
{
    return ballot_compare(a, b) < 0 ? b : a;
}

static size_t message_bytes(const struct message *m)
{
    size_t value_bytes = m->flags & FLAG_WHOLE ? m->value_bytes : 0;
    size_t bytes =
        sizeof *m + m->results_count * sizeof(struct result) + m->key_bytes + m->type_bytes;
    return (bytes + value_bytes + 7) & ~(size_t)7;
}

static struct body message_body(const struct message *m)
{
    struct body b = {.results = m + 1};
    b.key = (const uint8_t *)b.results + m->results_count * sizeof(struct result);
    b.type = (const uint8_t *)b.key + m->key_bytes;
    b.value = (const uint8_t *)b.type + m->type_bytes;
    return b;
}

/* The message at `data`, or null if that is none. It comes from a peer or a disk: no length in it is used
 * before all of them were checked. `data` must be aligned to 8. */
static const struct message *message_parse(const uint8_t *data, size_t count)
{
    const struct message *m = (const struct message *)data;
    if (count < sizeof *m || m->bytes > count || m->bytes != message_bytes(m))
        return NULL;
    if (m->type >= M_LOG_TYPES || m->partition > VIEWS_PARTITION || m->key_bytes > KEY_BYTES_MAX ||
        m->type_bytes > TYPE_BYTES_MAX || m->results_count > RESULTS_MAX)
        return NULL;
    /* A record is stored whole; a tombstone has no value; only M_PROMISE and M_READ_REPLY may leave the
     * value out. */
    bool whole = m->flags & FLAG_WHOLE || m->value_bytes == 0;
    if ((m->type == M_ACCEPT && (~m->flags & (FLAG_RECORD | FLAG_WHOLE))) ||
        (m->flags & FLAG_TOMBSTONE && m->value_bytes) ||
        (!whole && m->type != M_PROMISE && m->type != M_READ_REPLY))
        return NULL;
    return m;
}

/* A value that consists of numbers, in place. It is aligned only if no key and no type precede it: with
 * one of these, there is none. */
static struct bytes message_value(const struct message *m)
{
    bool alone = m->key_bytes + m->type_bytes == 0;
    return (struct bytes){(uint8_t *)message_body(m).value, alone ? m->value_bytes : 0, 0};
}

/* Appends the message of `head` and `body`; a null body: the parts stand behind the head already, or
 * it has none. So a message is copied as a whole, but a copy of its head needs the body given. */
static struct message *message_append(struct bytes *to, const struct message *head,
                                      const struct body *body)
{
    struct body parts = body ? *body : message_body(head);
    size_t start = to->count, bytes = message_bytes(head);
    bytes_reserve(to, bytes);
    bytes_append(to, head, sizeof *head);
    bytes_append(to, parts.results, head->results_count * sizeof(struct result));
    bytes_append(to, parts.key, head->key_bytes);
    bytes_append(to, parts.type, head->type_bytes);
    bytes_append(to, parts.value, head->flags & FLAG_WHOLE ? head->value_bytes : 0);
    size_t padding = start + bytes - to->count;
    memset(bytes_extend(to, padding), 0, padding);
    struct message *m = (struct message *)(to->data + start);
    m->bytes = (uint32_t)bytes;
    return m;
}

/* Two checksums in one. The low half covers all but the value, the high half covers the value: so a
 * record, or a part of a value that was checked before, can be read without the rest. `whole`: both. */
static uint64_t message_check(const struct message *m, bool whole)
{
    const uint8_t *start = (const uint8_t *)m, *value = message_body(m).value;
    uint64_t head = (uint32_t)XXH3_64bits(start + 16, (size_t)(value - start) - 16);
    return whole ? head | XXH3_64bits(value, (size_t)(start + m->bytes - value)) << 32 : head;
}

/* The arc of the hashes in which the key lies. It is the same for ever: logs and peers count on it. */
static uint16_t key_partition(const void *key, size_t bytes)
{
    return (uint16_t)(XXH3_64bits(key, bytes) >> (64 - PARTITION_BITS));
}

/* === 4 The node =================================================================================
 *
 * All state of the protocol is in one struct. Events go in by the functions of chapter 21. Effects come
 * out as messages in outboxes, as bytes in the log's buffers, and as calls of the hooks.
 */

/* A view of the membership, as it stands on the wire, on disk and in the register view/<epoch>. */
struct view {
    uint64_t epoch, cluster;
    uint32_t replicas, members_count;
    struct member members[];
};
_Static_assert(sizeof(struct view) == 24, "layout");

/* What the index knows of one key. (E1) Its accepted ballot never falls. (E2) The log holds its record
 * at lsn, with that ballot; without FLAG_RECORD there is none, and the entry is a mere promise. Memory
 * is counted in keys, so a promise takes some only while it is above the accepted ballot. The fields of the
 * record are copied here, so that lists, digests, and reads of a ballot alone, need nothing of the log. */
struct entry {
    struct ballot accepted, *promised; /* promised: owned; null: no more than was accepted */
    uint64_t write_id, modified, expiry, lsn;
    uint32_t value_bytes, record_bytes;
    uint16_t key_bytes;
    uint8_t flags;
    bool checked; /* all of the record was read once, and its checksum held */
    uint8_t key[];
};

/* Six words for "all is here", each of which claims another thing:
 *
 *   compared   with one member: all that it had at some moment of this lease and view
 *   caught up  all that was acknowledged while this node had no lease, or was no owner (R30)
 *   complete   all that the old owners chose before this transition (R14); always, in a stable view
 *   agreed     one member had our digest, at a promise floor not below ours: for tombstones (R20)
 *   ready      of a node: it is healthy, and caught up with all its partitions (chapter 24)
 *   healthy    of a node: it has a lease and room on its disk; says nothing of what it holds */
struct partition {
    struct entry **entries; /* sorted by key */
    uint32_t count;
    uint64_t digest;             /* XOR over live keys of hash(key, accepted) */
    struct ballot promise_floor; /* promised for every key without a record or with a tombstone */
    uint64_t promise_floor_lsn;  /* of the log's newest entry that has the floor */
    uint64_t promised_until;     /* clock_bound_found, or 0 if it was not owned at start (R2) */
    struct ballot gc_floor;      /* no owner needs a tombstone up to it */
    uint64_t agreed;             /* members; each new promise floor and each view begin without */
    uint64_t to_sync;     /* members whose digest differs; in a transition those old owners whose
                                list this node has not gone through, if it is a new owner */
    uint64_t compared;    /* members; each lease and each view begin without */
    bool caught_up;       /* each lease begins without */
    uint64_t changed_at;  /* when a record was last accepted */
    struct bytes watches; /* struct queued: M_READs that wait for a change of their keys */
};

/* The value of M_HEARTBEAT. Members are bits, by their places in its sender's view. */
struct heartbeat {
    uint64_t keys, value_bytes, requests; /* for reports */
    uint64_t moved; /* records that it pulled, and lists that it finished: progress */
    uint64_t leave; /* members whose drain was requested, as far as it knows */
    uint8_t complete[PARTITIONS / 8]; /* partitions of which all is there, in this epoch */
    uint64_t heard[MEMBERS_MAX];      /* those whose heartbeats it hears, id ^ boot; 0: none */
};

#define STRANGER UINT64_MAX

/* Another node, or this one. The members have places of their own in n->member_peer. */
struct peer {
    uint64_t id; /* 0: a seed, known by its address alone */
    char address[ADDRESS_BYTES], zone[ZONE_BYTES];
    uint32_t weight;
    struct bytes outbox[2];          /* the next frames: of the channel, of the bulk channel */
    uint64_t epoch, clock;           /* of its last frame; epoch: or STRANGER (R32) */
    uint64_t boot, durable;          /* of the process that is followed (R32), the highest */
    uint64_t beat_epoch, beat_clock; /* of that with its last heartbeat */
    struct heartbeat beat;           /* the last */
    bool hears_us, has_lease;        /* as its last heartbeat says */
    bool disowns_us;                 /* it follows another process of our id (R32) */
    bool leave; /* a drain was requested, here or at another member, or is under way, or is over */
    uint64_t heard_at;    /* when its heartbeat last came, 0: never */
    uint64_t live_at;     /* when it was last live */
    int64_t clock_offset; /* its wall clock less ours, when last heard, microseconds */
    uint64_t messages_in, messages_out;
    void *channels; /* the server's, two of them */
};

/* A client's request, or one of the node itself. It is in one list at a time: queued or in flight in a
 * round, or in n->large. request_reply ends it. */
struct request {
    STAILQ_ENTRY(request) next;
    struct message *m; /* in `copy`; it is never sent, and has no type */
    struct bytes copy;
    void *client;            /* null if it is the node's own, or if `listing` is set */
    uint64_t deadline;       /* this node's monotonic clock */
    uint64_t waits_until;    /* the same; FLAG_WATCH alone */
    uint64_t allowed;        /* time for a large value; the deadline includes it four times */
    struct listing *listing; /* that the read is for, and the key's entry there */
    struct listed *listed;
    unsigned tries;       /* fast reads that found no agreement */
    uint32_t large_bytes; /* its share of n->large_bytes */
    struct result result; /* of step 3; the client's once a quorum holds it */
};
STAILQ_HEAD(requests, request); /* the oldest first */

/* The first four are states of the key's one write round, which is found by its key: other requests are
 * queued behind those in flight. The rest carry one request (ACCEPT_ALL: one or more) and queue none. */
enum round_state { REST, PREPARE, FETCH, ACCEPT, ACCEPT_ALL, ACCEPT_ONE, READ, READ_ONE, WATCH };

/* What a round asks of the owners in each state, how many replies are enough, and what follows then, on
 * a rejection, and when it is due (the table `steps`, chapter 12):
 *
 *   state       asks for              enough        then         rejected        due
 *   REST        nothing                                                          round_begin
 *   PREPARE     a promise             a quorum      round_decide round_rejected  round_send
 *   FETCH       the value             one           round_decide                 round_begin
 *   ACCEPT      that it be accepted   a quorum      round_finish round_rejected  round_send
 *   ACCEPT_ALL  the same              every owner   round_finish round_rejected  round_send
 *   ACCEPT_ONE  the same              one           round_finish round_rejected  round_send
 *   READ        ballots, the record   a quorum at   read_finish                  read_late
 *                                     one ballot
 *   READ_ONE    the record            one           read_finish                  read_late
 *   WATCH       news of a change      one           round_begin                  round_begin
 *
 *   round_begin     first four: -> PREPARE at a new ballot, or the end if nothing waits. Last five: the
 *                   end, and what was in flight is admitted again. It is also what is due after a rejection
 *   round_decide    -> ACCEPT (round_propose), FETCH (round_fetch), or round_finish
 *   round_finish    the clients get their replies, then round_begin; or -> ACCEPT_ALL
 *   round_rejected  PREPARE, ACCEPT -> REST, when no quorum is left
 *   round_send      the same state: asks again those that have not replied
 *   read_finish     round_finish; or round_fetch, in the same state; or read_again
 *   read_late       round_fetch, round_send or read_again
 *   read_again      the end: the read is admitted again, at last to the key's write round
 */
/* Owner: n->by_id; round_end frees it. It is in memory only: if the node dies, what the acceptors hold of
 * it is all that is left, and any later round deals with that. */
struct round {
    LIST_ENTRY(round) by_id, by_key;
    struct requests queued, in_flight; /* between events at least one is in flight */
    enum round_state state;
    uint16_t partition;
    uint64_t round_id;          /* = ballot.time; not of a WATCH */
    struct ballot ballot;       /* of a WATCH: that of the record that its client knows */
    uint64_t replied, rejected; /* owners, in this state */
    uint64_t at_highest;        /* owners that reported the ballot of `record` */
    struct ballot damaged_at; /* the highest ballot of a record that an owner reported as damaged */
    uint64_t damaged_by;      /* owners that reported a damaged record */
    struct bytes record;      /* round_record has it */
    bool fetching;            /* its value was asked for, in this state */
    unsigned rejections, sends; /* sends: in this state */
    uint64_t due;
    uint16_t key_bytes;
    uint8_t key[];
};

/* A partition being made equal to what one other member has. */
struct sync {
    uint16_t partition; /* at rest: the last one */
    unsigned source;    /* the other member; at rest: the last one */
    uint64_t page_id;   /* of the page that was asked for, 0: it came */
    uint64_t due;       /* it ends then if nothing comes; 0: it is at rest */
    bool more;
    struct bytes page; /* struct listed; the next page comes after its last */
    /* In the page: all records before `pulled_to` are here, all before `asked_to` were asked for. */
    size_t pulled_to, asked_to;
};

/* The stream, by LSN; sizes are in bytes:
 *
 *   first, `cleaned` (if it goes on), durable     on disk, and may be shown
 *   durable to durable + flight.count             on its way to disk: may be there after a crash, or not
 *   then to log_end, pending.count bytes          in memory: the next batch */
struct log {
    uint64_t first, durable; /* LSNs: nothing is needed below; all is on disk below */
    struct bytes flight;     /* the batch being written, at `durable` */
    struct bytes pending;    /* the batch being filled, behind it; header first */
    uint64_t pending_entries;
    uint64_t flight_clock_bound; /* the newest in `flight` or below */
    uint64_t flight_at;          /* when it was handed to the disk, microseconds */
    bool writing;                /* the disk writes that batch or, if it is empty, looks for room */
    uint64_t write_time;         /* of a batch: the longest, less an eighth for each since */
    struct bytes marks;          /* uint64_t: where batches begin, CLEAN_STEP_BYTES apart or more */
    uint64_t cleaned;            /* what is live below it is being copied; 0: nothing is */
    uint64_t cleaned_until; /* `first` becomes `cleaned` when all below it is durable; 0: not yet */
    uint16_t clean_next;    /* partition */
    uint64_t live_bytes;
    uint64_t largest; /* bytes of the largest that is appended at once: a record, or all views */
    uint64_t room;    /* bytes that are allocated on disk from `durable` on */
    bool full;        /* the disk has no more */
    bool starved;     /* a record that was pulled found no room */
    bool torn;        /* at start: whole batches follow a hole behind its end */
};

struct counters {
    uint64_t proposals_ok, proposals_unknown, proposals_rejected, lease_expirations;
    uint64_t repairs_damage, repairs_pull, repairs_read, pulled, listed;
};

/* The two configurations of a transition (joint consensus: Ongaro's thesis, 4.3); one if stable. */
enum { C_OLD, C_NEW };

struct node;
/* What a node asks of its caller, whose n->context is. */
struct hooks {
    /* `result`: a status, and what was read; valid during the call. */
    void (*reply)(struct node *n, void *client, const struct message *result);
    /* Copies bytes of the log that are in no buffer any more. False: they are not in memory, and the
     * disk was asked for them; with `wait` it waits for the disk instead. */
    bool (*log_read)(struct node *n, uint64_t lsn, void *to, size_t bytes, bool wait);
    /* Whether a client that waits has gone, or is to get its reply now. Null: never. */
    bool (*client_gone)(struct node *n, void *client);
    /* Whether there is memory to read so much of a value now. Null: always. */
    bool (*room)(struct node *n, uint64_t bytes);
};

struct node {
    uint64_t id, cluster;
    const struct hooks *hooks;
    void *context;
    uint64_t lease, evict_after; /* microseconds */
    uint64_t random;
    uint64_t boot, start; /* this process's name; where it found the log's end (R32) */

    uint64_t now; /* monotonic, microseconds; set by every event, as `wall` is */
    uint64_t wall, time, latest_time; /* since 1970, microseconds: chapter 6 tells them apart */
    uint64_t clock;                   /* the hybrid one: frames carry it, ballots are made of it */
    /* The newest in the log; the newest that is durable; that which a restart found there. */
    uint64_t clock_bound, clock_bound_durable, clock_bound_found;

    struct view **views; /* views[epoch - 1], owned */
    size_t views_count;
    uint64_t views_bytes; /* that they take in the log */
    struct view *view;    /* the newest, null before the first */
    uint64_t view_lsn;    /* where the log ends with it */
    uint64_t views_lsn;   /* behind it, the log has all views */
    int self;             /* our index in the view, -1: no member */
    bool stable, gone;    /* gone: it was a member, and left the cluster */
    uint64_t expected;    /* nodes without data, to begin a cluster; 0: it does not */
    uint32_t replicas;    /* of a cluster that it begins */
    uint64_t up, joining, leaving, lost;     /* members in that state */
    uint64_t voters;                         /* up and leaving */
    struct ring rings[2];                    /* C_OLD, C_NEW */
    uint64_t owners[2][VIEWS_PARTITION + 1]; /* members, as bits */
    struct peer *member_peer[MEMBERS_MAX];
    struct peer *peers[PEERS_MAX];
    size_t peers_count;
    struct peer *self_peer;
    bool has_lease;
    bool disowned;        /* by a voter that has a lease: it does nothing any more (R32) */
    uint64_t lease_at;    /* when it was gained or lost */
    uint64_t lease_clock; /* the clock then: digests that are asked for under this lease echo it */
    uint64_t next_heartbeat;
    uint64_t next_fault;  /* until then no clock fault is logged again */
    uint64_t progress_at; /* when a transition last moved data, as far as this node heard */
    uint64_t begin_after; /* no change begins until then, because one was called off */
    uint16_t digest_next, sweep_next;
    uint64_t swept_at;

    struct partition partitions[VIEWS_PARTITION + 1];
    uint64_t keys, value_bytes; /* live ones here */
    uint64_t tombstones;
    struct log log;
    /* Struct queued, all three: what is to be handled or sent later. A new view discards all of it. */
    struct bytes inbox; /* messages to itself, and those that were in `cold` */
    struct bytes awaiting_durable,
        cold;             /* what waits for the log: to be durable, to be in memory */
    struct bytes handled; /* what was in one of these, while it is sent, or handled */
    LIST_HEAD(rounds, round) by_id[ROUND_BUCKETS];
    struct rounds by_key[VIEWS_PARTITION + 1]; /* of each partition */
    size_t rounds_resting;
    uint64_t delivered[DELIVERED_PLACES]; /* write ids, each at itself modulo that (R35) */
    STAILQ_HEAD(, listing) listings;
    struct sync syncs[SYNCS_MAX];
    struct requests large; /* writes of large values that wait until others end */
    uint64_t large_bytes;  /* values of large writes in flight: LARGE_BYTES_MAX or less, or one */
    uint64_t repairs;
    uint64_t requests;
    struct counters counters;
    struct bytes scratch;
};

static uint64_t node_random(struct node *n)
{
    /* xorshift64* (Vigna 2014) */
    n->random ^= n->random >> 12;
    n->random ^= n->random << 25;
    n->random ^= n->random >> 27;
    return n->random * UINT64_C(2685821657736338717);
}

/* === 5 The log ==================================================================================
 *
 * An endless stream of bytes; an LSN is a position in it. The disk (chapter 22) holds its end in
 * files. One batch is in flight at a time, so that a batch is written only when all before it is
 * durable. Hence at start: a damaged batch with another one after it was durable once, and is
 * corruption; damage with nothing after it is a torn tail. A corrupt batch is read message by message:
 * a value that fails its checksum is a damaged record of that key, which other owners have; what cannot
 * be told apart makes the node rejoin under a new id.
 *
 *    0 magic    "eLg2"
 *    4 bytes    of the batch, header included, a multiple of 8
 *    8 check    XXH3 of bytes 16 to the end
 *   16 lsn      where it stands: a batch is valid only there
 *   24 first    where the log began when it was written; nothing below is needed
 *   32 id       of the node whose log it is
 *   40 messages: M_ACCEPT (a record), M_VIEW, M_CLOCK_BOUND, M_PROMISE_FLOOR, M_DROP, M_DAMAGED (what the index
 *      knew of a record that is damaged); each has its check
 */

#define LOG_MAGIC 0x32674c65u

struct log_header {
    uint32_t magic, bytes;
    uint64_t check, lsn, first, id;
};
_Static_assert(sizeof(struct log_header) == 40, "layout");

static uint64_t log_end(const struct node *n)
{
    return n->log.durable + n->log.flight.count + n->log.pending.count;
}

/* Whether space for so many bytes more is allocated on the disk. */
static bool log_has_room(const struct node *n, uint64_t bytes)
{
    return log_end(n) - n->log.durable + bytes <= n->log.room;
}

/* Appends an entry; returns its LSN. What depends on it may be shown when the log is durable up to the
 * log_end of now (R3). */
static uint64_t log_append(struct node *n, const struct message *head, const struct body *body)
{
    struct log *log = &n->log;
    if (log->pending.count == 0)
        bytes_extend(&log->pending, sizeof(struct log_header));
    uint64_t lsn = log_end(n);
    struct message *m = message_append(&log->pending, head, body);
    log->pending_entries++;
    m->check = message_check(m, true);
    return lsn;
}

/* A batch begins at `lsn`: cleaning may end there. */
static void log_mark(struct log *log, uint64_t lsn)
{
    size_t count = log->marks.count / sizeof lsn;
    if (!count || lsn >= ((uint64_t *)log->marks.data)[count - 1] + CLEAN_STEP_BYTES)
        bytes_append(&log->marks, &lsn, sizeof lsn);
}

/* The batch to be written now at n->log.durable, or null if there is none or one is under way. Of a full
 * disk, an empty one asks for room now and then: without room nothing is appended, not even a clock bound,
 * and no other batch would report that there is some again. */
static const struct bytes *log_flush(struct node *n)
{
    struct log *log = &n->log;
    bool asks = log->full && log->flight_at + SECOND <= n->now;
    if (log->writing || (!log->pending.count && !asks))
        return NULL;
    assert(log->flight.count == 0); /* one batch at a time, or a torn tail is no tail */
    log->writing = true;
    log->flight_at = n->now;
    if (!log->pending.count)
        return &log->flight;
    bytes_swap(&log->flight, &log->pending);
    struct log_header *h = (struct log_header *)log->flight.data;
    *h = (struct log_header){LOG_MAGIC, log->flight.count, 0, log->durable, log->first, n->id};
    h->check = XXH3_64bits(&h->lsn, h->bytes - 16);
    log_mark(log, log->durable);
    log->flight_clock_bound = n->clock_bound;
    log->pending_entries = 0;
    return &log->flight;
}

/* The header at `data` if a whole and undamaged batch of the log stands there, else null. */
static const struct log_header *log_batch(const uint8_t *data, size_t count, uint64_t lsn)
{
    const struct log_header *h = (const struct log_header *)data;
    if (count < sizeof *h || h->magic != LOG_MAGIC || h->lsn != lsn || h->bytes > count ||
        h->bytes < sizeof *h || h->bytes % 8 || h->check != XXH3_64bits(&h->lsn, h->bytes - 16))
        return NULL;
    return h;
}

/* Copies `bytes` at `lsn` from the buffers or the disk. False: they would have to be waited for. */
static bool log_read(struct node *n, uint64_t lsn, void *to, size_t bytes)
{
    const struct log *log = &n->log;
    if (lsn < log->durable)
        return n->hooks->log_read(n, lsn, to, bytes, false);
    size_t at = lsn - log->durable, flight = log->flight.count;
    memcpy(to, at < flight ? log->flight.data + at : log->pending.data + (at - flight), bytes);
    return true;
}

/* === 6 The clock ================================================================================
 *
 * A node has four times, in microseconds since 1970:
 *
 *   wall         what the machine says; it may jump
 *   own time     the wall clock at the start, and what passed since by the monotonic clock
 *   latest time  the latest own time of any node that this one has heard of: expiry goes by it
 *   clock        the hybrid logical one (Kulkarni et al. 2014): never behind the own time, raised by
 *                every frame (R4); ballots, round ids and times of issue are made of it
 *
 * The clock bound is a time in the log, and no frame leaves with a clock above it. So a node that restarts,
 * which counts every key as promised up to the bound that it finds, forgets no promise (R2).
 *
 * A wall clock that jumps moves nothing (R31): the own time is led towards it by a sixteenth of what
 * passes, at most. A node that is started with a wrong wall clock would be the only one to go by that. So
 * an own time counts, for the node and for others, only while it has a lease, or lost it a moment ago;
 * else the node takes over the latest time that a frame names. Until its first lease its clock stands at
 * the clock bound and at what it heard: no frame with a wrong time leaves it.
 */

/* Whether this node cannot tell what time it is: it has had no lease since its start, or for long. Then
 * its own time counts for nobody, and its frames name no latest time. */
static bool time_is_unsure(const struct node *n)
{
    return !n->has_lease && (!n->lease_at || n->lease_at + 4 * n->lease < n->now);
}

/* Sets the time of this event: `now` monotonic, `wall` since 1970, in microseconds. */
static void node_time(struct node *n, uint64_t now, uint64_t wall)
{
    int64_t passed = (int64_t)(now - n->now), wrong = (int64_t)(wall - n->time) - passed;
    int64_t lead = passed / 16, led = wrong < -lead ? -lead : wrong > lead ? lead : wrong;
    n->time = n->now && RULE(31) ? n->time + (uint64_t)(passed + led) : wall;
    n->now = now;
    n->wall = wall;
}

/* Takes over a time that a frame named, if this node cannot tell it by itself. */
static void time_adopt(struct node *n, uint64_t time)
{
    if (!time_is_unsure(n) || llabs((int64_t)(time - n->time)) <= (int64_t)CLOCK_AHEAD_MAX)
        return;
    int64_t ahead = (int64_t)(n->wall - time);
    if (llabs(ahead) > (int64_t)SECOND) /* else its own time was wrong, of an earlier wall clock */
        log_line(LEVEL_ERROR, "the wall clock differs from the cluster's time: set it right",
                 "ahead_seconds=%.3f", (double)ahead / 1e6);
    n->time = time;
}

/* Takes over a frame's clock. False: it, or the latest time that the frame names, is too far ahead (R5).
 * A frame that names none, 0, is of a node that cannot tell the time: its clock is what a clock bound
 * holds, so it was a majority's time once, and is followed. And a node that cannot tell the time itself
 * has none to defend. */
static bool clock_raise(struct node *n, uint64_t clock, uint64_t latest_time)
{
    uint64_t most = max_u64(n->time, n->clock_bound_found) + CLOCK_AHEAD_MAX;
    if ((latest_time > most || clock > most + CLOCK_FAR_MAX) && !time_is_unsure(n) && RULE(5))
        return false;
    if (RULE(4))
        n->clock = max_u64(n->clock, clock);
    if (n->clock > n->time + CLOCK_AHEAD_MAX && RULE(5))
        n->time = n->clock; /* a clock bound is behind it: there is no way back */
    return true;
}

/* What expiry goes by. Not this node's own time alone: it may be behind that of a node which has found
 * the key expired (R22). Nor the clock: it may be ahead of all own times, by CLOCK_AHEAD_MAX at most, and
 * would end keys early. */
static uint64_t node_latest_time(const struct node *n)
{
    return RULE(22) ? max_u64(n->time, n->latest_time) : n->time;
}

/* A time that this node never gave before: ballots and round ids are made of it. Nor did it show one
 * before a restart, because the clock begins at the clock bound then (R2). */
static uint64_t clock_tick(struct node *n)
{
    n->clock = max_u64(n->clock + 1, n->lease_at ? n->time : 0);
    return n->clock;
}

static void clock_bound_log(struct node *n)
{
    log_append(n, &(struct message){.type = M_CLOCK_BOUND, .clock_bound = n->clock_bound}, NULL);
}

/* Raises the clock bound before the clock reaches it, early enough for the batch in flight and the one
 * behind it: so a slow disk makes requests slow, not impossible. Without room in the log the bound stays,
 * and the node stops sending. */
static void clock_bound_raise(struct node *n)
{
    n->clock = max_u64(n->clock, n->lease_at ? n->time : 0);
    uint64_t margin = BOUND_MARGIN + 2 * n->log.write_time;
    bool room = !n->log.full || log_has_room(n, ROOM_CLEANING);
    if (n->clock + margin <= n->clock_bound || !room)
        return;
    n->clock_bound = n->clock + margin + BOUND_AHEAD;
    clock_bound_log(n);
}

/* === 7 The index ================================================================================
 *
 * Each partition is a sorted array of pointers to entries: a look-up is a binary search, and a list is a
 * part of the array. Records stay in the log; an entry has the place.
 */

static int key_compare(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);
    return order ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

/* The first place whose key is not below `key`. */
static uint32_t partition_seek(const struct partition *p, const void *key, size_t bytes)
{
    uint32_t low = 0, high = p->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct entry *e = p->entries[middle];
        if (key_compare(e->key, e->key_bytes, key, bytes) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct entry *entry_find(const struct partition *p, const void *key, size_t bytes)
{
    uint32_t at = partition_seek(p, key, bytes);
    struct entry *e = at < p->count ? p->entries[at] : NULL;
    return e && key_compare(e->key, e->key_bytes, key, bytes) == 0 ? e : NULL;
}

/* The entry of the key that a message is about, or null. */
static struct entry *message_entry(const struct node *n, const struct message *m)
{
    return entry_find(&n->partitions[m->partition], message_body(m).key, m->key_bytes);
}

static struct entry *entry_make(struct partition *p, const void *key, size_t bytes)
{
    uint32_t at = partition_seek(p, key, bytes);
    struct entry *e = at < p->count ? p->entries[at] : NULL;
    if (e && key_compare(e->key, e->key_bytes, key, bytes) == 0)
        return e;
    if (p->count % ENTRIES_GROWTH == 0)
        p->entries = realloc(p->entries, (p->count + ENTRIES_GROWTH) * sizeof *p->entries);
    if (!p->entries)
        die("out of memory");
    e = allocate(offsetof(struct entry, key) + bytes);
    e->key_bytes = (uint16_t)bytes;
    memcpy(e->key, key, bytes);
    memmove(p->entries + at + 1, p->entries + at, (p->count - at) * sizeof *p->entries);
    p->entries[at] = e;
    p->count++;
    return e;
}

/* Adds the entry's record to the sums (sign 1), or takes it out of them (-1). The digest leaves out
 * tombstones: otherwise a node that forgot one would differ for ever. */
static void entry_count(struct node *n, struct partition *p, const struct entry *e, int sign)
{
    n->log.live_bytes += (uint64_t)((int64_t)e->record_bytes * sign);
    n->tombstones += e->flags & FLAG_TOMBSTONE ? (uint64_t)sign : 0;
    if (!is_live(e->flags) || p == &n->partitions[VIEWS_PARTITION])
        return;
    uint64_t of[3] = {e->accepted.epoch, e->accepted.time, e->accepted.node};
    p->digest ^= XXH3_64bits_withSeed(e->key, e->key_bytes, XXH3_64bits(of, sizeof of));
    n->keys += (uint64_t)sign;
    n->value_bytes += (uint64_t)((int64_t)e->value_bytes * sign);
}

/* Promises b for the key. What is not above the accepted ballot is promised by that already. Nothing goes
 * to the log: after a restart the clock bound stands for all promises (R2). */
static void entry_promise(struct entry *e, struct ballot b)
{
    free(e->promised);
    bool above = ballot_compare(b, e->accepted) > 0;
    e->promised = above ? memcpy(allocate(sizeof b), &b, sizeof b) : NULL;
}

/* Removes the entry from the index: this node has neither a record nor a promise of its key then. */
static void entry_forget(struct node *n, struct partition *p, struct entry *e)
{
    entry_count(n, p, e, -1);
    uint32_t at = partition_seek(p, e->key, e->key_bytes);
    memmove(p->entries + at, p->entries + at + 1, (p->count - at - 1) * sizeof *p->entries);
    p->count--;
    free(e->promised);
    free(e);
}

/* The entry's record is now `m`, which stands in the log at `lsn`. */
static void entry_store(struct node *n, struct partition *p, struct entry *e,
                        const struct message *m, uint64_t lsn)
{
    assert(ballot_compare(m->ballot, e->accepted) >= 0 || !RULE(18)); /* (E1) */
    entry_count(n, p, e, -1);
    e->accepted = m->ballot;
    e->write_id = m->write_id;
    e->modified = m->modified;
    e->expiry = m->expiry;
    e->lsn = lsn;
    e->value_bytes = m->value_bytes;
    e->record_bytes = (uint32_t)message_bytes(m);
    n->log.largest = max_u64(n->log.largest, e->record_bytes);
    e->flags = m->flags & (FLAG_RECORD | FLAG_TOMBSTONE);
    e->checked = false;
    if (ballot_compare(m->ballot, p->promise_floor) <= 0) {
        p->gc_floor = (struct ballot){0}; /* late: the owners agreed without it (R20) */
        p->agreed = 0;
    }
    entry_promise(e, e->promised ? *e->promised : e->accepted);
    entry_count(n, p, e, 1);
    p->changed_at = n->now;
}

/* Drops all of a partition that is no longer owned (R17), with its floors and promises. */
static void partition_drop(struct node *n, struct partition *p)
{
    while (p->count)
        entry_forget(n, p, p->entries[p->count - 1]);
    free(p->entries);
    bytes_free(&p->watches);
    *p = (struct partition){0};
}

static void promise_floor_log(struct node *n, uint16_t partition)
{
    struct partition *p = &n->partitions[partition];
    struct message m = {
        .type = M_PROMISE_FLOOR, .partition = partition, .ballot = p->promise_floor};
    p->promise_floor_lsn = log_append(n, &m, NULL);
}

/* A floor only rises. It is sent to others only when the log is durable up to its end (chapter 8).
 * Where there is little room it stays: a lower one claims less. */
static void promise_floor_raise(struct node *n, uint16_t partition, struct ballot to)
{
    struct partition *p = &n->partitions[partition];
    if (ballot_compare(to, p->promise_floor) <= 0 || !log_has_room(n, ROOM_FLOORS))
        return;
    p->promise_floor = to;
    p->agreed = 0;
    promise_floor_log(n, partition);
}

/* === 8 Sending ==================================================================================
 *
 * Any message may be lost, late, doubled or out of order. Nothing undurable is shown (R3): a message
 * that tells of a record waits in `awaiting_durable` until the log is durable up to that record; no frame
 * leaves before the view and the clock that it is sent with are durable.
 *
 *    0 magic "eMl6"   4 bytes of the frame   8 check: XXH3 of bytes 32 to the end
 *   16 mac: of the same bytes, by the cluster's secret (chapter 23); zeros without one
 *   32 cluster       40 from: id
 *   48 to: id, or 0 to whoever has this address, or id ^ boot to a process that is not followed (R32)
 *   56 clock         64 latest_time, or 0 if it cannot tell the time   72 epoch   80 wall (chapter 6)
 *   88 boot: a random name of the sender's process
 *   96 start: where that process found the end of its log   104 durable: its log is on disk up to there
 *  112 messages
 */

#define FRAME_MAGIC 0x366c4d65u

struct frame {
    uint32_t magic, bytes;
    uint64_t check;
    uint8_t mac[16];
    uint64_t cluster, from, to, clock, latest_time, epoch, wall, boot, start, durable;
};
_Static_assert(sizeof(struct frame) == 112 && offsetof(struct frame, cluster) == 32, "layout");

static uint64_t frame_check(const struct frame *b)
{
    return XXH3_64bits(&b->cluster, b->bytes - offsetof(struct frame, cluster));
}

/* A message that is kept inside the node, its parts behind it: in `awaiting_durable` one to the peer, in
 * `inbox`, `cold` and a partition's `watches` one from it. It is void if another node has the peer's
 * place by then, which its id shows. */
struct queued {
    struct peer *peer;
    uint64_t id;   /* the peer's */
    uint64_t gate; /* the log must be durable up to it; of a watch, when that ends */
    struct message message;
};

static uint64_t node_epoch(const struct node *n)
{
    return n->view ? n->view->epoch : 0;
}

static int member_index(const struct view *view, uint64_t id)
{
    for (uint32_t i = 0; view && i < view->members_count; i++)
        if (view->members[i].id == id)
            return (int)i;
    return -1;
}

/* The peer of that id or, with id 0, of that address; else a new one. If all places are taken, it gets the
 * place of the peer that is no member and was not live for the longest time: a member gets it at once,
 * another node only if that is over 60 s ago. Null: there is no place. */
static struct peer *peer_make(struct node *n, uint64_t id, const char *address)
{
    struct peer *p = NULL;
    for (size_t i = 0; i < n->peers_count; i++) {
        struct peer *q = n->peers[i];
        if (q->id == id && (id || strcmp(q->address, address) == 0))
            return q;
        bool stays = q == n->self_peer || member_index(n->view, q->id) >= 0;
        if (!stays && (!p || q->live_at < p->live_at))
            p = q;
    }
    if (n->peers_count < PEERS_MAX)
        p = n->peers[n->peers_count++] = allocate(sizeof *p);
    else if (!p || (member_index(n->view, id) < 0 && p->live_at + 60 * SECOND > n->now))
        return NULL;
    bytes_free(&p->outbox[0]);
    bytes_free(&p->outbox[1]);
    *p = (struct peer){.id = id, .live_at = n->now, .channels = p->channels};
    snprintf(p->address, sizeof p->address, "%s", address);
    return p;
}

/* Whether its heartbeat came within the lease. */
static bool peer_is_heard(const struct node *n, const struct peer *p)
{
    return p->heard_at && p->heard_at + n->lease > n->now;
}

static bool peer_is_live(const struct node *n, const struct peer *p)
{
    return p == n->self_peer || (peer_is_heard(n, p) && (p->hears_us || !RULE(21)));
}

static void queue_append(struct bytes *queue, struct peer *peer, uint64_t gate,
                         const struct message *head, const struct body *body)
{
    struct queued w = {.peer = peer, .id = peer->id, .gate = gate};
    bytes_append(queue, &w, offsetof(struct queued, message));
    message_append(queue, head, body);
}

static const struct queued *queue_next(const struct bytes *queue, const struct queued *last)
{
    const uint8_t *at = last ? (const uint8_t *)&last->message + last->message.bytes : queue->data;
    return at && at < queue->data + queue->count ? (const struct queued *)at : NULL;
}

/* Sends a message when the log is durable up to `gate`; one to this node itself, too: its own vote counts
 * as any other, and must not be lost in a crash either (R3). An outbox that is too full is emptied: what
 * is lost is sent again by whoever needs it. */
static void message_send(struct node *n, struct peer *to, uint64_t gate, const struct message *head,
                         const struct body *body)
{
    bool waits = gate > n->log.durable && RULE(3);
    if (waits || to == n->self_peer) {
        queue_append(waits ? &n->awaiting_durable : &n->inbox, to, gate, head, body);
        return;
    }
    struct bytes *box = &to->outbox[message_bytes(head) > BULK_BYTES];
    bool short_of_memory = bytes_held / 5 > bytes_limit / 4; /* bodies do not take so much */
    bool keeps = peer_is_live(n, to) && !short_of_memory;
    if (box->count > (keeps ? OUTBOX_BYTES_MAX : OUTBOX_BYTES_DEAD))
        bytes_clear(box);
    if (box->count == 0)
        bytes_extend(box, sizeof(struct frame));
    message_append(box, head, body);
    to->messages_out++;
}

static void messages_send(struct node *n, uint64_t members, uint64_t gate,
                          const struct message *head, const struct body *body)
{
    for (uint32_t i = 0; n->view && i < n->view->members_count; i++)
        if (members >> i & 1)
            message_send(n, n->member_peer[i], gate, head, body);
}

/* Sends what waited until the log is durable, and need not wait any more. */
static void messages_release(struct node *n)
{
    bytes_swap(&n->awaiting_durable, &n->handled);
    for (const struct queued *w = NULL; (w = queue_next(&n->handled, w));)
        if (w->peer->id == w->id)
            message_send(n, w->peer, w->gate, &w->message, NULL);
    bytes_clear(&n->handled);
}

/* No frame leaves before the view and the clock that it is sent with are durable. Otherwise a restart
 * could find a clock bound below what was promised (R2), or an older view than this node replied for. */
static bool frame_may_leave(const struct node *n)
{
    return (n->clock <= n->clock_bound_durable && n->log.durable >= n->view_lsn) || !RULE(3);
}

/* Moves all messages that wait for the peer's channel, or with `which` 1 for its bulk channel, into `out`
 * as one frame. False: there is none, or it may not leave yet. */
static bool frame_take(struct node *n, struct peer *p, int which, struct bytes *out)
{
    struct bytes *box = &p->outbox[which];
    if (box->count == 0 || !frame_may_leave(n))
        return false;
    bytes_clear(out);
    bytes_swap(out, box);
    /* While this node was away other nodes may have come to the addresses that it knows. It asks whatever
     * node is there. */
    bool stranded = !n->has_lease && p->heard_at + 4 * n->lease < n->now && RULE(16);
    uint64_t to = stranded ? 0 : p->id, latest = time_is_unsure(n) ? 0 : node_latest_time(n);
    struct frame *f = (struct frame *)out->data;
    assert(n->log.durable >= n->start || !RULE(3)); /* it shows all that it found (R32) */
    *f = (struct frame){FRAME_MAGIC, out->count, 0,        {0},           n->cluster,
                        n->id,       to,         n->clock, latest,        node_epoch(n),
                        n->wall,     n->boot,    n->start, n->log.durable};
    f->check = frame_check(f);
    return true;
}

/* What was not sent belongs to an older view. A frame names one epoch for all its messages, that of the
 * moment when it leaves: so an old promise would pass for one of the new view (R6). */
static void messages_discard(struct node *n)
{
    n->awaiting_durable.count = n->inbox.count = n->cold.count = 0;
    for (size_t i = 0; i < 2 * n->peers_count; i++)
        bytes_clear(&n->peers[i / 2]->outbox[i % 2]);
}

/* === 9 The acceptor =============================================================================
 *
 * It replies for a partition only that it owns in its view, and only to messages of its epoch (R6). It
 * accepts nothing below what it promised, in ballot or in time (R1, R7).
 *
 * After a restart every key of a partition that it owned counts as promised up to the clock bound (R2).
 * Of others it has promised nothing that still counts: what it promised in a view is in a partition that
 * the view gives it, no promise leaves before the view is in the log, and a stable view that takes the
 * partition away drops its promises, too (R17). So what it is given later can be pulled.
 */

static uint64_t self_bit(const struct node *n)
{
    return n->self < 0 ? 0 : UINT64_C(1) << n->self;
}

/* The owners that are asked: of both rings in a transition, without those that are LOST. */
static uint64_t partition_owners(const struct node *n, uint16_t partition)
{
    return (n->owners[C_OLD][partition] & ~n->lost) | n->owners[C_NEW][partition];
}

static bool partition_is_ours(const struct node *n, uint16_t partition)
{
    return !RULE(6) || (partition_owners(n, partition) & self_bit(n));
}

static bool majority(uint64_t members, uint64_t of)
{
    return __builtin_popcountll(members & of) * 2 > __builtin_popcountll(of);
}

/* Whether these members are a majority of the owners in C_old. Owners that are LOST count, though they
 * never reply (R26): what was chosen is at a majority of all. Only as many as are a majority of all are
 * sure to meet that; where fewer owners are left, all of these are needed. */
static bool old_majority(const struct node *n, unsigned partition, uint64_t members)
{
    uint64_t all = n->owners[C_OLD][partition], left = all & ~n->lost;
    int needed = __builtin_popcountll(RULE(26) ? all : left) / 2 + 1;
    return __builtin_popcountll(members & left) >= needed || (left & ~members) == 0;
}

/* A majority of the owners in C_old and of those in C_new (R13; joint consensus). Of a partition whose
 * owners in C_old are all LOST there is no quorum until the transition has ended: then it is empty. */
static bool quorum(const struct node *n, uint16_t partition, uint64_t members)
{
    return (old_majority(n, partition, members) || !RULE(13)) &&
           n->owners[C_OLD][partition] & ~n->lost && majority(members, n->owners[C_NEW][partition]);
}

/* What is promised for a key: by its entry and, if it has no value, by the promise floor as well. The floor
 * holds for a key that is not in the index, too: its tombstone may have been forgotten (R19). */
static struct ballot register_promised(const struct node *n, uint16_t partition,
                                       const struct entry *e)
{
    struct ballot none = {0}, held = e ? e->accepted : none;
    struct ballot promised = e && e->promised && RULE(1) ? *e->promised : held;
    if (RULE(19) && (!e || !is_live(e->flags)))
        promised = ballot_max(promised, n->partitions[partition].promise_floor);
    return promised;
}

/* Whether a ballot may be promised or accepted. Its time may not fall either: a ballot of an
 * old epoch with a late time must not lose to one of a new epoch with an earlier time (R7). */
static bool ballot_allowed(const struct node *n, uint16_t partition, struct ballot b,
                           struct ballot promised)
{
    return ballot_compare(b, promised) >= 0 && b.time >= promised.time &&
           (b.time > n->partitions[partition].promised_until || !RULE(2));
}

/* It need not say what is promised: the frame's clock is not below that, and raises the proposer's, so that
 * its next ballot is above (R4). */
static void reject(struct node *n, struct peer *from, const struct message *m)
{
    message_send(n, from, 0, &(struct message){.type = M_REJECT, .round_id = m->round_id}, NULL);
}

static void repair_key(struct node *n, uint16_t partition, const void *key, uint16_t key_bytes);

/* A record failed its checksum. Until another owner sends it, this node replies of the key only that it is
 * damaged, in a promise. */
static void pull_damaged(struct node *n, uint16_t partition, struct entry *e)
{
    char text[KEY_TEXT_BYTES];
    if (!(e->flags & FLAG_DAMAGED)) {
        log_line(LEVEL_ERROR, "damaged record", "lsn=%" PRIu64 " key=%s", e->lsn,
                 percent_encode(text, e->key, e->key_bytes));
        n->counters.repairs_damage++;
    }
    e->flags |= FLAG_DAMAGED;
    struct message m = {.type = M_PULL, .partition = partition, .key_bytes = e->key_bytes};
    messages_send(n, partition_owners(n, partition) & ~self_bit(n), 0, &m,
                  &(struct body){.key = e->key});
    repair_key(n, partition, e->key, e->key_bytes); /* theirs may be older, or none */
}

/* The entry's record, in n->scratch; of its value the part alone. All of it is read, and its checksum
 * tried, unless that was done once since it was written; then a part may be read alone. Null: it is
 * damaged, and so marked and pulled; or its bytes were sent for, and are to be waited for. */
static struct message *record_read(struct node *n, uint16_t partition, struct entry *e,
                                   uint64_t from, uint64_t part)
{
    assert(e->lsn >= n->log.first && e->lsn + e->record_bytes <= log_end(n)); /* (E2) */
    bool all = part && (part == e->value_bytes || !e->checked);
    bool damaged = e->flags & FLAG_DAMAGED;
    bytes_clear(&n->scratch);
    struct message *m = bytes_extend(&n->scratch, e->record_bytes);
    if (!damaged && !log_read(n, e->lsn, m, e->record_bytes - (all ? 0 : e->value_bytes)))
        return NULL;
    bool ours = !damaged && m->bytes == e->record_bytes && m->bytes == message_bytes(m) &&
                m->type == M_ACCEPT && m->key_bytes == e->key_bytes &&
                ballot_equal(m->ballot, e->accepted);
    if (!ours || message_check(m, all) != (all ? m->check : (uint32_t)m->check)) {
        pull_damaged(n, partition, e);
        return NULL;
    }
    e->checked |= all;
    size_t at = (size_t)((const uint8_t *)message_body(m).value - n->scratch.data) + from;
    bool here = !part || all || log_read(n, e->lsn + at, n->scratch.data + at, part);
    return here ? m : NULL;
}

/* The part of a value of `total` bytes that M_READ asks for. Its `expiry` is the number of bytes
 * wanted, from part_start on or, if that is above all sizes, the last ones. None are if the client has this
 * record: M_READ's `modified` and write_id name the one that it has. */
static uint64_t read_part(const struct message *read, uint64_t modified, uint64_t write_id,
                          uint64_t total, uint64_t *from)
{
    uint64_t most = read->modified == modified && read->write_id == write_id ? 0 : read->expiry;
    *from = min_u64(read->part_start > UINT32_MAX ? total - min_u64(total, most) : read->part_start,
                    total);
    return min_u64(most, total - *from);
}

/* Whether no repeat can ask any more for a result that was recorded at this ballot. */
static bool is_old(const struct node *n, struct ballot b)
{
    return b.time + RESULTS_KEPT_TIME < n->clock;
}

/* Replies from the index: with a record without its value and its results. Because the results are not
 * listed, all count as lost up to the record's ballot (R11). Of a tombstone that was forgotten only the
 * promise floor is left. */
static void index_reply(struct node *n, struct peer *to, const struct message *m,
                        const struct entry *found, uint8_t type)
{
    static const struct entry nothing;
    const struct entry *e = found ? found : &nothing;
    struct message head = {.type = type, .round_id = m->round_id, .partition = m->partition};
    uint64_t lost =
        e->flags & FLAG_RECORD ? e->accepted.time : n->partitions[m->partition].promise_floor.time;
    head.flags = e->flags;
    head.ballot = e->accepted;
    head.write_id = e->write_id;
    head.modified = e->modified;
    head.expiry = e->expiry;
    head.results_lost_until = RULE(11) ? lost : 0;
    head.value_bytes = e->value_bytes;
    message_send(n, to, e->lsn + e->record_bytes, &head, NULL);
}

/* Replies from the log: with the record and that part of its value; a promise comes without the value. If
 * the bytes are not in memory, `m` is handled again at the next tick. */
static void log_reply(struct node *n, struct peer *to, const struct message *m, struct entry *e,
                      uint8_t type, uint64_t start, uint64_t part)
{
    struct message *record = record_read(n, m->partition, e, start, part);
    if (!record) {
        if (n->cold.count > COLD_BYTES_MAX)
            n->cold.count = 0;
        if (!(e->flags & FLAG_DAMAGED))
            queue_append(&n->cold, to, 0, m, NULL);
        return;
    }
    struct body body = message_body(record);
    record->type = type;
    record->round_id = m->round_id; /* of a pull: 0 */
    if (type == M_PROMISE && record->value_bytes)
        record->flags &= (uint8_t)~FLAG_WHOLE;
    if (type == M_READ_REPLY) {
        body.value = (const uint8_t *)body.value + start;
        record->total_bytes = record->value_bytes;
        record->value_bytes = (uint32_t)part;
    }
    message_send(n, to, e->lsn + e->record_bytes, record, &body);
}

/* Promises, and reports the record. While a repeat may ask for one of its results the record comes with
 * them, from the log; later the index is enough. The promise needs no disk (R2), but a record that is not
 * durable yet holds the reply back (R3). */
static void on_prepare(struct node *n, struct peer *from, const struct message *m)
{
    assert(partition_is_ours(n, m->partition)); /* R6 */
    struct entry *e = message_entry(n, m);
    struct ballot promised = register_promised(n, m->partition, e);
    if (!ballot_allowed(n, m->partition, m->ballot, promised)) {
        reject(n, from, m);
        return;
    }
    if (!e)
        e = entry_make(&n->partitions[m->partition], message_body(m).key, m->key_bytes);
    entry_promise(e, m->ballot);
    if (!(e->flags & FLAG_RECORD) || e->flags & FLAG_DAMAGED || is_old(n, e->accepted))
        index_reply(n, from, m, e, M_PROMISE);
    else
        log_reply(n, from, m, e, M_PROMISE, 0, 0);
}

/* Replies once more to those that watch the key of a new record, and forgets them: once notified, they read
 * again. A null entry: forgets only the watches whose time is over. */
static void watches_notify(struct node *n, uint16_t partition, const struct entry *e)
{
    struct bytes *watches = &n->partitions[partition].watches, before = *watches;
    *watches = (struct bytes){0};
    for (const struct queued *w = NULL; (w = queue_next(&before, w));) {
        if (w->gate <= n->now || w->peer->id != w->id)
            continue;
        if (e && message_entry(n, &w->message) == e)
            index_reply(n, w->peer, &w->message, e, M_READ_REPLY);
        else
            queue_append(watches, w->peer, w->gate, &w->message, NULL);
    }
    bytes_free(&before);
}

/* What becomes of an accept, the first that is true:
 *
 *   its ballot is our record's      accepted again: that still holds, though more be promised (R8);
 *                                   where our record is damaged it is stored, which mends it
 *   it is allowed (R1, R7)          stored, and accepted
 *   it is not, and was pulled       if it is newer than ours, a round is to accept it anew (R18)
 *   it is not                       rejected
 *
 * Without room in the log it is ignored: its sender repeats it. */
static void on_accept(struct node *n, struct peer *from, const struct message *m)
{
    assert(partition_is_ours(n, m->partition)); /* R6 */
    struct partition *p = &n->partitions[m->partition];
    const void *key = message_body(m).key;
    struct entry *e = entry_find(p, key, m->key_bytes);
    bool pulled = m->round_id == 0;
    bool same = e && e->flags & FLAG_RECORD && ballot_equal(e->accepted, m->ballot);
    bool mends = same && e->flags & FLAG_DAMAGED, again = same && !mends && RULE(8);
    bool small = m->flags & FLAG_TOMBSTONE || m->partition == VIEWS_PARTITION;
    struct ballot promised = register_promised(n, m->partition, e);
    bool allowed = ballot_allowed(n, m->partition, m->ballot, promised) || (pulled && !RULE(18));
    if (!again && !mends && !allowed) {
        if (!pulled)
            reject(n, from, m);
        else if (!e || ballot_compare(m->ballot, e->accepted) > 0)
            repair_key(n, m->partition, key, m->key_bytes);
        return;
    }
    if (!again && !log_has_room(n, m->bytes + (small ? ROOM_FLOORS : ROOM_RECORDS))) {
        n->log.starved |= pulled;
        return;
    }
    if (!again) {
        e = entry_make(p, key, m->key_bytes);
        entry_store(n, p, e, m, log_append(n, m, NULL));
        n->counters.pulled += pulled;
        watches_notify(n, m->partition, e);
    }
    if (!pulled)
        message_send(n, from, e->lsn + e->record_bytes,
                     &(struct message){.type = M_ACCEPTED, .round_id = m->round_id}, NULL);
}

/* A read of a damaged record gets no reply, not even from the index: nobody could be given its value. */
static void on_read(struct node *n, struct peer *from, const struct message *m)
{
    struct entry *e = message_entry(n, m);
    if (m->flags & FLAG_WATCH)
        queue_append(&n->partitions[m->partition].watches, from, n->now + WATCH_TIME, m, NULL);
    if (e && e->flags & FLAG_DAMAGED)
        return;
    if (m->flags & FLAG_WHOLE && e && is_live(e->flags)) {
        uint64_t start, part = read_part(m, e->modified, e->write_id, e->value_bytes, &start);
        part = part > m->bytes_max ? 0 : part; /* the reader has no memory for it yet */
        log_reply(n, from, m, e, M_READ_REPLY, start, part);
    } else {
        index_reply(n, from, m, e, M_READ_REPLY);
    }
}

/* Sends the record itself, as an accept with round id 0: the acceptor that pulled it stores it only if its
 * promises allow (R18). No quorum is asked: to deliver an accept once more decides nothing. */
static void on_pull(struct node *n, struct peer *from, const struct message *m)
{
    struct entry *e = message_entry(n, m);
    if (e && (e->flags & (FLAG_RECORD | FLAG_DAMAGED)) == FLAG_RECORD)
        log_reply(n, from, m, e, M_ACCEPT, 0, e->value_bytes);
}

/* === 10 Writes ==================================================================================
 *
 * A write is a function of the current record. It has a write id, fixed when it arrived; the record
 * lists the ids of the writes that made it and their results, so that a write that goes round again,
 * from here or from another node, finds that it was applied (R10) or refused (R12).
 *
 * The life of a write, in this chapter and the next:
 *
 *   request_admit   puts it into the queue of its key's round, or makes that round (chapter 18)
 *   round_begin     takes it in flight, with others of the queue, and asks for promises
 *   round_decide    at a quorum of them: loads the current record into a draft, and takes the writes in
 *                   flight in turn. Each finds its earlier result, or changes the draft, or is refused,
 *                   or is "unknown"
 *   round_propose   asks all owners to accept the draft. From here on a try of the write may succeed
 *                   without this node: if its time ends now, its client gets "unknown"
 *   round_finish    at a quorum of accepts, or at once where none is needed: each client gets the result
 *                   that its write had in the draft
 *
 * Until the last step a result is worth nothing. If the round is rejected, or a new view comes, the same
 * writes begin again with a new draft of the record as it is by then, and may have other results.
 */

/* The record that a round will propose, while the writes are applied to it. It lives for one call of
 * round_decide. The parts of `body` stand in the round's record, in a request, or in `digits`; `results` is
 * a copy, with a place for each write of the round on top of those that the record listed. */
struct draft {
    struct message head; /* its ballot is the round's */
    struct body body;
    struct result results[RESULTS_MAX + ROUND_WRITES_MAX];
    size_t results_count;
    char digits[24];
    uint64_t number; /* of the result of the last write */
    bool changed;
    bool missing; /* the value is not here: promises come without it */
};

/* Step 2: the current record, as it came with the promises. */
static void draft_load(struct draft *d, const struct message *m, struct ballot ballot)
{
    d->head = *m;
    d->head.ballot = ballot;
    d->head.number = 0; /* M_READ_REPLY has total_bytes there */
    d->body = message_body(m);
    d->results_count = m->results_count;
    memcpy(d->results, d->body.results, m->results_count * sizeof *d->results);
    d->changed = false;
    d->missing = is_live(m->flags) && !(m->flags & FLAG_WHOLE);
}

/* Makes the draft a record with this value; a null `value` makes it a tombstone. The writes of a round
 * share its ballot; so `modified` rises with each, and the ETags of a key do not repeat. */
static void draft_write(struct draft *d, uint64_t write_id, const void *value, uint32_t value_bytes)
{
    d->head.flags = value ? FLAG_RECORD : FLAG_RECORD | FLAG_TOMBSTONE;
    d->head.write_id = write_id;
    d->head.modified = d->number = max_u64(d->head.ballot.time, d->head.modified + 1);
    d->head.value_bytes = value_bytes;
    d->body.value = value;
    d->head.expiry = value ? d->head.expiry : 0;
    d->head.type_bytes = value ? d->head.type_bytes : 0;
    d->changed = true;
    d->missing = false;
}

static bool record_is_expired(const struct node *n, const struct message *m)
{
    return is_live(m->flags) && m->expiry && m->expiry <= node_latest_time(n);
}

/* An expired record counts as deleted (R22). This is checked before each write, and once more before
 * the reads: a write may have been queued for longer than its own ttl. */
static void draft_expire(const struct node *n, struct draft *d)
{
    if (record_is_expired(n, &d->head))
        draft_write(d, d->head.write_id, NULL, 0);
}

/* Whether the condition of request `m` holds for a record. Its ballot is an ETag: the time is that of
 * `modified`, the node is the write id. */
static bool condition_holds(const struct message *record, const struct message *m)
{
    bool exists = is_live(record->flags);
    if (m->condition == IF_MATCH)
        return exists && m->ballot.time == record->modified && m->ballot.node == record->write_id;
    return m->condition == IF_NONE || exists == (m->condition == IF_EXISTS);
}

/* A counter: the value is a 64-bit integer as text. False: it is none, or would overflow. */
static bool draft_add(struct draft *d, const struct message *m)
{
    bool exists = is_live(d->head.flags);
    const char *value = exists ? d->body.value : "0";
    uint32_t bytes = exists ? d->head.value_bytes : 1;
    char text[24], *end;
    snprintf(text, sizeof text, "%.*s", (int)min_u64(bytes, sizeof text), value);
    errno = 0;
    int64_t sum, old = strtoll(text, &end, 10);
    if (errno || end == text || (size_t)(end - text) != bytes || isspace((unsigned char)*text) ||
        __builtin_add_overflow(old, (int64_t)m->amount, &sum))
        return false;
    int count = snprintf(d->digits, sizeof d->digits, "%" PRId64, sum);
    draft_write(d, m->write_id, d->digits, (uint32_t)count);
    d->number = (uint64_t)sum;
    return true;
}

/* Applies a write; returns the status of its reply. A write that is refused leaves the draft as it was. A
 * one-write sees no record: its DELETE cannot know that there is none, and always writes a tombstone. */
static uint16_t draft_apply(struct draft *d, const struct message *m)
{
    struct body body = message_body(m);
    bool existed = is_live(d->head.flags);
    if (!condition_holds(&d->head, m))
        return 412;
    if (m->function == DO_ADD)
        return draft_add(d, m) ? 200 : 409;
    if (m->function == DO_DELETE) {
        if (!existed && !(m->flags & FLAG_ONE))
            return 404;
        draft_write(d, m->write_id, NULL, 0);
        return 200;
    }
    draft_write(d, m->write_id, body.value, m->value_bytes);
    d->head.expiry = m->expiry;
    d->head.type_bytes = m->type_bytes;
    d->body.type = body.type;
    return existed ? 204 : 201;
}

/* The client of a write has its result, and nobody can ask for it again. So what this node proposes
 * next for the key need not list it (R35). It may be forgotten here at any time: then the result is
 * kept for RESULTS_KEPT_TIME. */
static void node_delivered(struct node *n, uint64_t write_id)
{
    n->delivered[write_id % DELIVERED_PLACES] = write_id;
}

static bool is_delivered(const struct node *n, uint64_t write_id)
{
    return n->delivered[write_id % DELIVERED_PLACES] == write_id || !RULE(35);
}

/* The result that the record lists for a write (R10), or null. */
static const struct result *draft_result(const struct draft *d, uint64_t write_id)
{
    for (size_t i = 0; i < d->results_count; i++)
        if (d->results[i].write_id == write_id && RULE(10))
            return &d->results[i];
    return NULL;
}

/* Whether a write whose result is not listed may have been applied even so (R11). A fresh one was
 * not, because no try of it was sent before; and one-writes are applied each time. The age goes
 * by the clock as the promises raised it: an owner may have forgotten a tombstone by its own. */
static bool result_may_be_lost(const struct node *n, const struct draft *d, const struct message *m)
{
    uint64_t lead = m->flags & FLAG_FIRST ? FIRST_TRY_LEAD : 0;
    if (m->flags & (FLAG_FRESH | FLAG_ONE) || !RULE(11))
        return false;
    return d->head.results_lost_until >= max_u64(m->issued_at + lead, 1) ||
           (m->issued_at && m->issued_at + RESULTS_KEPT_TIME < n->clock) ||
           (is_delivered(n, m->write_id) && RULE(35));
}

/* Step 3 for one write:
 *
 *                            fresh        first try, or a repeat    consistency=one
 *     its result is listed   -            that result               -
 *     it may be lost         apply        "unknown"                 apply
 *     it cannot be lost      apply        apply                     apply
 *
 * The result is listed then, except a refusal that no repeat can ask for (R12). A one-write sees no
 * results of others: so it counts all of them as lost, and lists none. */
static struct result draft_take(struct node *n, struct draft *d, const struct message *m)
{
    struct result a = {.write_id = m->write_id, .recorded = d->head.ballot.time};
    const struct result *listed = draft_result(d, m->write_id);
    if (listed) {
        a = *listed;
        n->delivered[a.write_id % DELIVERED_PLACES] = 0; /* its client may repeat it once more */
    } else if (result_may_be_lost(n, d, m)) {
        a.status = STATUS_UNKNOWN;
    } else {
        a.status = draft_apply(d, m);
        a.number = d->number;
        if (m->flags & FLAG_ONE) {
            d->head.results_lost_until = d->head.ballot.time;
        } else if (a.status < 400 || (m->flags & (FLAG_REPEAT | FLAG_KEYED) && RULE(12))) {
            d->results[d->results_count++] = a;
            d->changed = true;
        }
    }
    if (a.status == 412) { /* with the ETag of the moment */
        a.number = is_live(d->head.flags) ? d->head.modified : 0;
        a.write_id = d->head.write_id;
    }
    return a;
}

/* No longer lists the results that nobody can ask for (R35), and those that are too old or too many;
 * how late these were recorded is kept (R11). The results are in the order of the rounds that
 * recorded them. */
static void draft_trim(const struct node *n, struct draft *d)
{
    size_t first = d->results_count;
    for (size_t i = d->results_count; i-- > 0;) {
        struct result a = d->results[i];
        if (is_delivered(n, a.write_id))
            continue;
        bool old = a.recorded + RESULTS_KEPT_TIME < d->head.ballot.time;
        if (!old && d->results_count - first < RESULTS_MAX)
            d->results[--first] = a;
        else if (RULE(11))
            d->head.results_lost_until = max_u64(d->head.results_lost_until, a.recorded);
    }
    d->results_count -= first;
    memmove(d->results, d->results + first, d->results_count * sizeof *d->results);
}

/* === 11 Rounds ==================================================================================
 *
 * The writes of one key wait in a queue, and one round of Paxos carries all that wait. A read that
 * finds no agreement is one of them, a write that changes nothing. The states are drawn at struct
 * round; the table `steps`, at the end of chapter 12, makes the transitions.
 *
 * A write round that meets no trouble goes PREPARE, ACCEPT, and then PREPARE again at a new ballot for what
 * was queued meanwhile, until nothing is. FETCH comes between if the value is needed: promises come
 * without it. REST is the wait after a rejection. A key has one such round at a node, so that its writes
 * share ballots and disk writes; safety does not depend on it, because rounds meet only at the acceptors,
 * those of one node like those of two.
 *
 * A round is known by its round id, which changes with its ballot. So a reply that comes late, to an
 * earlier ballot of the same round, finds no round, and is not counted for the new one.
 */

static void request_reply(struct node *n, struct request *q, const struct message *reply);
static void request_admit(struct node *n, struct request *q);
static bool request_waits(struct node *n, struct request *q, const struct message *m);

static void request_free(struct request *q)
{
    bytes_free(&q->copy);
    free(q);
}

/* Takes the oldest request from a list; null if there is none. */
static struct request *requests_pop(struct requests *list)
{
    struct request *q = STAILQ_FIRST(list);
    if (q)
        STAILQ_REMOVE_HEAD(list, next);
    return q;
}

static void requests_admit(struct node *n, struct requests *list)
{
    for (struct request *q; (q = requests_pop(list));)
        request_admit(n, q);
}

static bool is_write(const struct request *q)
{
    return q->m->function != DO_READ && q->m->function != DO_REPAIR;
}

/* Ends a request that was not carried out: with `status`, or as "unknown" if a try of it may still be
 * under way. */
static void request_fail(struct node *n, struct request *q, uint16_t status)
{
    bool open = is_write(q) && q->m->flags & FLAG_REPEAT;
    n->counters.proposals_unknown += open;
    request_reply(n, q, &(struct message){.status = open ? STATUS_UNKNOWN : status});
}

/* Ends the requests whose time is over, whatever their round is doing. What it proposed may still be
 * chosen: so a write that was proposed ends as "unknown". */
static void requests_expire(struct node *n, struct requests *list)
{
    struct requests all = STAILQ_HEAD_INITIALIZER(all);
    STAILQ_CONCAT(&all, list);
    for (struct request *q; (q = requests_pop(&all));) {
        if (q->deadline > n->now)
            STAILQ_INSERT_TAIL(list, q, next);
        else
            request_fail(n, q, 503);
    }
}

/* Whether it is the key's write round, found by its key: the first states are that one's. */
static bool is_write_round(const struct round *r)
{
    return r->state <= ACCEPT;
}

static struct round *round_by_id(const struct node *n, uint64_t round_id)
{
    struct round *r = LIST_FIRST(&n->by_id[round_id % ROUND_BUCKETS]);
    while (r && r->round_id != round_id)
        r = LIST_NEXT(r, by_id);
    return r;
}

static struct round *round_by_key(const struct node *n, const struct message *m)
{
    struct round *r = LIST_FIRST(&n->by_key[m->partition]);
    while (r && key_compare(r->key, r->key_bytes, message_body(m).key, m->key_bytes) != 0)
        r = LIST_NEXT(r, by_key);
    return r;
}

/* Gives the round a new id and ballot, so that replies to the old ones are no longer counted. */
static void round_rename(struct node *n, struct round *r)
{
    if (r->round_id)
        LIST_REMOVE(r, by_id);
    r->round_id = clock_tick(n);
    r->ballot = (struct ballot){node_epoch(n), r->round_id, n->id};
    r->record.count = 0;
    LIST_INSERT_HEAD(&n->by_id[r->round_id % ROUND_BUCKETS], r, by_id);
}

/* A round of the request's key that carries it. */
static struct round *round_make(struct node *n, struct request *q, enum round_state state)
{
    const struct message *m = q->m;
    struct round *r = allocate(sizeof *r + m->key_bytes);
    r->state = state;
    r->partition = m->partition;
    r->key_bytes = m->key_bytes;
    memcpy(r->key, message_body(m).key, m->key_bytes);
    STAILQ_INIT(&r->queued);
    STAILQ_INIT(&r->in_flight);
    STAILQ_INSERT_TAIL(&r->in_flight, q, next);
    if (is_write_round(r))
        LIST_INSERT_HEAD(&n->by_key[r->partition], r, by_key);
    round_rename(n, r);
    return r;
}

/* Ends the round; what it has not carried out goes to the end of `left`. */
static void round_end(struct round *r, struct requests *left)
{
    STAILQ_CONCAT(left, &r->in_flight);
    STAILQ_CONCAT(left, &r->queued);
    LIST_REMOVE(r, by_id);
    if (is_write_round(r))
        LIST_REMOVE(r, by_key);
    bytes_free(&r->record);
    free(r);
}

/* The one request that a READ or a WATCH is about; of others, the first. */
static struct request *round_request(const struct round *r)
{
    return STAILQ_FIRST(&r->in_flight);
}

/* The record of the highest ballot that owners reported, and later the one that they are asked to
 * accept. Its ballot is zero if nobody has replied, or nobody has a record. */
static const struct message *round_record(const struct round *r)
{
    static const struct message nothing;
    return r->record.count ? (const struct message *)r->record.data : &nothing;
}

static uint64_t live_members(const struct node *n)
{
    uint64_t live = 0;
    for (uint32_t i = 0; n->view && i < n->view->members_count; i++)
        if (peer_is_live(n, n->member_peer[i]))
            live |= UINT64_C(1) << i;
    return live & ~n->lost;
}

/* The first live owner in C_old's order, as a bit; 0: none is, or it is a view's register. */
static uint64_t first_live_owner(const struct node *n, uint16_t partition)
{
    uint64_t live = live_members(n);
    for (unsigned i = 0; partition < PARTITIONS && i < n->rings[C_OLD].owners_count; i++)
        if (live >> n->rings[C_OLD].owners[partition][i] & 1)
            return UINT64_C(1) << n->rings[C_OLD].owners[partition][i];
    return 0;
}

/* The nearest owner, which is asked for a value: this node if it is one of C_old, else the first live one
 * in C_old's order. The owners of C_old have all that was chosen among them; a joiner may still pull it. */
static uint64_t nearest_owner(const struct node *n, uint16_t partition)
{
    uint64_t self = n->owners[C_OLD][partition] & self_bit(n);
    return self ? self : first_live_owner(n, partition);
}

static void round_message(struct node *n, const struct round *r, uint64_t members,
                          struct message head)
{
    head.round_id = r->round_id;
    head.partition = r->partition;
    head.ballot = r->ballot;
    head.key_bytes = r->key_bytes;
    messages_send(n, members, 0, &head, &(struct body){.key = r->key});
}

/* The part of a value that the round needs, in the fields of M_READ: the key's write round needs all of
 * it, a fast read what its client asked for. */
static struct message round_part(const struct round *r)
{
    return is_write_round(r) ? (struct message){.expiry = UINT64_MAX} : *round_request(r)->m;
}

/* Asks for the record, with what the round needs of its value if that is not above `most` bytes. */
static void round_read(struct node *n, const struct round *r, uint64_t members, uint64_t most)
{
    struct message head = round_part(r);
    head.type = M_READ;
    head.flags = FLAG_WHOLE;
    head.bytes_max = most;
    round_message(n, r, members, head);
}

/* Sends what the round asks to those owners that have not replied: first, and when they are late.
 * The time until it is sent again doubles: what is late because too much is under way must not make
 * more of it. */
static void round_send(struct node *n, struct round *r)
{
    uint64_t missing = partition_owners(n, r->partition) & ~r->replied, time = STEP_TIME;
    uint64_t nearest = nearest_owner(n, r->partition);
    switch (r->state) {
    case PREPARE:
        round_message(n, r, missing, (struct message){.type = M_PREPARE});
        break;
    case READ:
        round_read(n, r, missing & nearest, BULK_BYTES);
        round_message(n, r, missing & ~nearest, (struct message){.type = M_READ});
        break;
    case READ_ONE: /* the nearest; when it is late, the others of C_old, too */
        missing &= r->sends ? n->owners[C_OLD][r->partition] : nearest;
        round_read(n, r, missing, BULK_BYTES);
        break;
    default:
        assert(r->state >= ACCEPT && r->state <= ACCEPT_ONE);
        messages_send(n, missing, 0, round_record(r), NULL);
        time += round_record(r)->value_bytes / BYTES_PER_US;
    }
    r->due = n->now + (time << min_u64(r->sends++, RESENDS_MAX));
}

/* Enters a state in which the owners are asked for something. None has replied yet. */
static void round_ask(struct node *n, struct round *r, enum round_state state)
{
    r->state = state;
    r->damaged_at = (struct ballot){0};
    r->replied = r->at_highest = r->rejected = r->damaged_by = 0;
    r->sends = 0;
    r->fetching = false;
    round_send(n, r);
}

/* Step 1: a new ballot; the writes that are queued by now, those of a try that failed first;
 * prepare to all owners. The round is over if nothing is queued, or if it is not the key's write
 * round: its requests begin again then, each write as a repeat of itself. */
static void round_begin(struct node *n, struct round *r)
{
    struct requests all = STAILQ_HEAD_INITIALIZER(all);
    struct request *q;
    STAILQ_CONCAT(&all, &r->in_flight);
    STAILQ_CONCAT(&all, &r->queued);
    if (!is_write_round(r) || STAILQ_EMPTY(&all)) {
        round_end(r, &all);
        requests_admit(n, &all);
        return;
    }
    for (unsigned i = 0; i < ROUND_WRITES_MAX && (q = requests_pop(&all)); i++)
        STAILQ_INSERT_TAIL(&r->in_flight, q, next);
    STAILQ_CONCAT(&r->queued, &all);
    round_rename(n, r);
    round_ask(n, r, PREPARE);
}

/* One rejection ends nothing: the round goes on while those that have not rejected it can be a quorum.
 * Two proposers in a duel wait for a random time that doubles. The first live owner waits less
 * than the others, so that it wins soon: then it carries out all that is queued there, before
 * another one does. */
static void round_rejected(struct node *n, struct round *r, uint64_t member)
{
    assert(r->state != REST);
    r->rejected |= member & ~r->replied;
    if (quorum(n, r->partition, partition_owners(n, r->partition) & ~r->rejected))
        return;
    n->counters.proposals_rejected++;
    bool first = first_live_owner(n, r->partition) == self_bit(n);
    uint64_t most = MS << min_u64(r->rejections++, first ? DUELS_FIRST : DUELS_OTHER);
    r->due = n->now + 1 + node_random(n) % most;
    if (is_write_round(r))
        r->state = REST;
}

/* How large the whole value of a record is: M_READ_REPLY may bring a part of it. */
static uint64_t value_total(const struct message *m)
{
    return m->type == M_READ_REPLY && m->flags & FLAG_WHOLE ? m->total_bytes : m->value_bytes;
}

/* How many bytes of the record's value the round needs. */
static uint64_t value_wanted(const struct round *r)
{
    const struct message *m = round_record(r), part = round_part(r);
    uint64_t from;
    return read_part(&part, m->modified, m->write_id, value_total(m), &from);
}

static bool value_is_here(const struct round *r)
{
    const struct message *m = round_record(r);
    return !is_live(m->flags) || (m->flags & FLAG_WHOLE && m->value_bytes >= value_wanted(r));
}

/* Counts a reply. Of the records that owners report, that of the highest ballot is kept, and once
 * more if a reply brings the value that was still missing. Owners that report one ballot may have lost
 * different results: where they have no record, one alone may have forgotten a tombstone (R11). */
static void round_count_reply(struct round *r, uint64_t member, const struct message *m)
{
    r->replied |= member;
    if (m->type == M_ACCEPTED)
        return;
    if (m->flags & FLAG_DAMAGED) {
        r->damaged_at = ballot_max(r->damaged_at, m->ballot);
        r->damaged_by |= member;
        return;
    }
    struct message *kept = (struct message *)r->record.data;
    int order = r->record.count ? ballot_compare(m->ballot, kept->ballot) : 1;
    if (order > 0)
        r->at_highest = 0;
    if (order >= 0)
        r->at_highest |= member;
    if (order > 0 || (order == 0 && m->flags & FLAG_WHOLE && !value_is_here(r))) {
        r->record.count = 0;
        message_append(&r->record, m, NULL);
    } else if (order == 0 && RULE(11)) {
        kept->results_lost_until = max_u64(kept->results_lost_until, m->results_lost_until);
    }
}

/* A record that is damaged where it was reported, and above all others, may have been chosen; but
 * not if every owner has replied, and those where it is damaged are no majority. */
static bool record_may_be_damaged(const struct node *n, const struct round *r)
{
    return ballot_compare(r->damaged_at, round_record(r)->ballot) > 0 &&
           (partition_owners(n, r->partition) & ~r->replied ||
            majority(r->damaged_by, n->owners[C_OLD][r->partition]));
}

/* Whether the replies take the round on. A READ needs a quorum that reports one ballot: the highest of a
 * quorum may be at a minority, and the next reader may not find it (R9). PREPARE needs no agreement,
 * because its round has the highest accepted anew where it may not be chosen. */
static bool round_has_enough(const struct node *n, const struct round *r)
{
    switch (r->state) {
    case FETCH:
        return value_is_here(r);
    case ACCEPT_ALL:
        return !(partition_owners(n, r->partition) & ~r->replied);
    case ACCEPT_ONE:
    case READ_ONE:
        return r->replied;
    case READ:
        return quorum(n, r->partition, RULE(9) ? r->at_highest : r->replied);
    case WATCH:
        return ballot_compare(round_record(r)->ballot, r->ballot) > 0;
    default:
        return quorum(n, r->partition, r->replied) && !record_may_be_damaged(n, r);
    }
}

/* The value is needed after all: one that reported the highest ballot is asked for it, and it
 * counts only if it comes at that very ballot (R9). If it is large, the round and its requests get
 * time for it. */
static void round_fetch(struct node *n, struct round *r)
{
    assert(r->state == PREPARE || r->state == FETCH || r->state >= READ);
    uint64_t from = r->at_highest & live_members(n), bytes = value_wanted(r);
    uint64_t time = bytes / BYTES_PER_US;
    if (is_write_round(r))
        r->state = FETCH;
    r->due = n->now + STEP_TIME / 4;
    if (n->hooks->room && !n->hooks->room(n, bytes))
        return;                                    /* it is asked for again then */
    bytes_reserve(&r->record, bytes + BULK_BYTES); /* and what stands before it */
    r->fetching = true;
    struct request *q;
    STAILQ_FOREACH(q, &r->in_flight, next) { /* once, however often it is asked for */
        q->deadline += 4 * (max_u64(q->allowed, time) - q->allowed);
        q->allowed = max_u64(q->allowed, time);
    }
    r->due = n->now + STEP_TIME + 2 * round_request(r)->allowed;
    round_read(n, r, from & self_bit(n) ? self_bit(n) : from & -from, UINT64_MAX);
}

/* Step 4: the draft is the record that all owners are asked to accept. From here on a try of each
 * write may be under way: none is fresh or a first try any more, and a refusal of one of them, in a later
 * round, has to be recorded (R12). Where the draft drops a result that a repeat may ask for, draft_trim
 * raises results_lost_until (R11). */
static void round_propose(struct node *n, struct round *r, struct draft *d)
{
    draft_trim(n, d);
    d->head.type = M_ACCEPT;
    d->head.round_id = r->round_id;
    d->head.partition = r->partition;
    d->head.flags = (d->head.flags & FLAG_TOMBSTONE) | FLAG_RECORD | FLAG_WHOLE;
    d->head.key_bytes = r->key_bytes;
    d->head.results_count = (uint16_t)d->results_count;
    d->body.key = r->key;
    d->body.results = d->results;
    bytes_clear(&n->scratch); /* the body may stand in r->record */
    message_append(&n->scratch, &d->head, &d->body);
    bytes_swap(&n->scratch, &r->record);
    struct request *q;
    STAILQ_FOREACH(q, &r->in_flight, next)
        q->m->flags = (uint8_t)((q->m->flags | FLAG_REPEAT) & ~(FLAG_FRESH | FLAG_FIRST));
    round_ask(n, r, r->state == ACCEPT_ONE ? ACCEPT_ONE : ACCEPT);
}

/* What a client gets of a record that was read. A round made a tombstone of what had expired (R22); only
 * a read of consistency=one, which has no round, hides it by what this node knows of the time. */
static void read_reply(struct node *n, struct request *q, const struct message *m)
{
    bool hidden = record_is_expired(n, m) && (q->m->flags & FLAG_ONE || !RULE(22));
    struct message head = {.status = 404};
    struct body body = message_body(m);
    if (is_live(m->flags) && !hidden) {
        head = *m;
        head.status = 200;
        head.results_count = head.key_bytes = 0;
        head.total_bytes = value_total(m);
    }
    bytes_clear(&n->scratch);
    request_reply(n, q, message_append(&n->scratch, &head, &body));
}

static void write_reply(struct node *n, struct request *q)
{
    struct message head = {.status = (uint16_t)q->result.status, .write_id = q->result.write_id};
    head.modified = head.number = q->result.number;
    n->counters.proposals_ok += head.status < 300;
    request_reply(n, q, &head);
}

/* A quorum holds the record at one ballot: now the clients get their replies. Those of
 * consistency=all wait for every owner; the key's queue goes on without them. */
static void round_finish(struct node *n, struct round *r)
{
    assert(round_has_enough(n, r));
    uint64_t missing = partition_owners(n, r->partition) & ~r->replied;
    struct requests all = STAILQ_HEAD_INITIALIZER(all);
    STAILQ_CONCAT(&all, &r->in_flight);
    r->rejections = 0;
    for (struct request *q; (q = requests_pop(&all));) {
        if (r->state == ACCEPT && q->m->flags & FLAG_ALL && missing)
            STAILQ_INSERT_TAIL(&r->in_flight, q, next);
        else if (is_write(q))
            write_reply(n, q);
        else if (!request_waits(n, q, round_record(r)))
            read_reply(n, q, round_record(r));
    }
    if (STAILQ_EMPTY(&r->in_flight)) {
        round_begin(n, r);
    } else {
        LIST_REMOVE(r, by_key);
        r->state = ACCEPT_ALL;
        requests_admit(n, &r->queued);
    }
}

/* Steps 2 to 4. A write of consistency=one comes here without a prepare: the highest ballot wins. What
 * follows, the first that is true:
 *
 *   the value is needed, and did not come           round_fetch, and this is done again with it
 *   the draft is not the record that was loaded     round_propose
 *   a repair, or consistency=all                    round_propose: all owners are to have it at one ballot
 *   no quorum of promises reported the record at    round_propose: it may not be chosen, and a reply must
 *   one ballot                                      not show what the next reader may not find (R9)
 *   else                                            round_finish: it is chosen, and nothing is written */
static void round_decide(struct node *n, struct round *r)
{
    assert(r->state == PREPARE || r->state == FETCH || r->state == ACCEPT_ONE);
    struct draft draft, *d = &draft;
    draft_load(d, round_record(r), r->ballot);
    struct request *q;
    bool anew = false;
    STAILQ_FOREACH(q, &r->in_flight, next) {
        draft_expire(n, d);
        if (d->missing && (q->m->function == DO_ADD || q->m->function == DO_READ))
            break;
        if (is_write(q))
            q->result = draft_take(n, d, q->m);
        anew |= q->m->function == DO_REPAIR || q->m->flags & FLAG_ALL;
    }
    draft_expire(n, d);
    bool held = quorum(n, r->partition, r->at_highest) || !RULE(9);
    bool propose = d->changed || anew || !held;
    if (d->missing && (q || propose)) {
        round_fetch(n, r);
        return;
    }
    if (propose && !(d->head.flags & FLAG_RECORD))
        draft_write(d, 0, NULL, 0); /* "nothing", said so that it covers what a minority has */
    if (propose)
        round_propose(n, r, d);
    else
        round_finish(n, r);
}

/* === 12 Reads ===================================================================================
 *
 * All owners are asked for their ballot, the nearest for the record as well. A quorum that reports one
 * and the same ballot, with the record of that very ballot, ends the read (R9): one round trip, no disk
 * write. If they do not come to agree, the read becomes a write that changes nothing.
 *
 * What a reader sees is chosen, and not older than any write that was acknowledged, nor than anything that
 * was read, before it asked. A write that is under way, or ended as "unknown", it may see or not; once one
 * reader has seen it, all later ones do, or see what was made of it. Outside of this stand writes of
 * consistency=one, and reads of it: such a read shows what one owner has, which may be older, and may never
 * be chosen.
 */

/* Once more, because owners of a key that is being written may agree then; after that in a round
 * of Paxos. */
static void read_again(struct node *n, struct round *r)
{
    n->counters.repairs_read += ++round_request(r)->tries == READ_TRIES;
    round_begin(n, r);
}

/* The owners agree. If the value is not here, the nearest's reply may still bring it; if that
 * came, it was too large, or of another ballot. That a record expired, a round must say, not this
 * node's clock (R22). */
static void read_finish(struct node *n, struct round *r)
{
    assert(r->state == READ || r->state == READ_ONE);
    if (!value_is_here(r)) {
        if (!r->fetching && r->replied & nearest_owner(n, r->partition))
            round_fetch(n, r);
    } else if (r->state == READ && record_is_expired(n, round_record(r)) && RULE(22)) {
        round_request(r)->tries = READ_TRIES - 1;
        read_again(n, r);
    } else {
        round_finish(n, r);
    }
}

/* The value did not come, or the owners do not agree, or they are late. If too few have replied, those
 * that are missing are asked again: a round of Paxos would wait for the same owners. */
static void read_late(struct node *n, struct round *r)
{
    assert(r->state == READ || r->state == READ_ONE);
    if (round_has_enough(n, r) && r->at_highest & live_members(n))
        round_fetch(n, r);
    else if (quorum(n, r->partition, r->replied))
        read_again(n, r);
    else
        round_send(n, r);
}

/* What takes a round on: enough replies of the type that its state waits for, or that it is due. */
static const struct {
    uint8_t reply;
    void (*next)(struct node *n, struct round *r);
    void (*due)(struct node *n, struct round *r);
} steps[] = {
    [REST] = {.due = round_begin},
    [PREPARE] = {M_PROMISE, round_decide, round_send},
    [FETCH] = {M_READ_REPLY, round_decide, round_begin},
    [ACCEPT] = {M_ACCEPTED, round_finish, round_send},
    [ACCEPT_ALL] = {M_ACCEPTED, round_finish, round_send},
    [ACCEPT_ONE] = {M_ACCEPTED, round_finish, round_send},
    [READ] = {M_READ_REPLY, read_finish, read_late},
    [READ_ONE] = {M_READ_REPLY, read_finish, read_late},
    [WATCH] = {M_READ_REPLY, round_begin, round_begin},
};

/* Counts a reply if its round is there, its sender is an owner, and its type is what the state waits for:
 * so one that belongs to an earlier state is ignored, and one that comes twice sets its bit again. When
 * all live owners have replied to a READ without agreement, nothing is left to wait for. */
static void on_reply(struct node *n, struct peer *from, const struct message *m)
{
    struct round *r = round_by_id(n, m->round_id);
    int index = member_index(n->view, from->id);
    if (!r || index < 0 || !(partition_owners(n, r->partition) >> index & 1))
        return;
    assert(round_request(r));
    if (m->type == M_REJECT && r->state != REST)
        round_rejected(n, r, UINT64_C(1) << index);
    if (m->type != steps[r->state].reply)
        return;
    if (r->state == FETCH && !ballot_equal(m->ballot, round_record(r)->ballot)) {
        round_begin(n, r); /* this is not the record that came with the promises (R9) */
        return;
    }
    round_count_reply(r, UINT64_C(1) << index, m);
    if (round_has_enough(n, r))
        steps[r->state].next(n, r);
    else if (r->state == READ &&
             !(partition_owners(n, r->partition) & live_members(n) & ~r->replied))
        read_late(n, r);
}

/* Is called at each tick for each round. Requests that are late are answered first. A round that has none
 * left in flight begins again with those that are queued, or ends: nobody waits for its result. */
static void round_due(struct node *n, struct round *r)
{
    requests_expire(n, &r->queued);
    requests_expire(n, &r->in_flight);
    bool due = r->due <= n->now;
    if (STAILQ_EMPTY(&r->in_flight) || (due && r->rejected))
        round_begin(n, r); /* the turn of those that are queued, or it is over; or a duel goes on */
    else if (due)
        steps[r->state].due(n, r);
}

/* === Part III: many nodes ========================================================================
 *
 * Who owns what, how that changes, how owners become equal again, and what a restart finds.
 *
 * Part II rests on two claims, which this part has to keep. Any two quorums of a key share an acceptor, also
 * where the ring has changed between them (chapters 13 and 14). And that acceptor still has what it accepted,
 * and still rejects what it promised to reject: after a copy (15), a forgotten tombstone (15 and 16), and a
 * restart (17). The rest is about when things happen: who counts as dead, what is pulled first, when a change
 * of members begins. It may be late or wrong, and no answer is wrong because of it.
 */

/* === 13 Views ===================================================================================
 *
 * A view is written once, in the register view/<epoch>, whose acceptors are the voters of the view
 * before it. Views are adopted in order, none is skipped, and the chain is kept (R16). A node replies for
 * its newest view only (R6). In a transition, while members are JOINING, LEAVING or LOST, there are two
 * rings, C_OLD and C_NEW (R13).
 *
 * An example. A, B and C are UP, with three replicas, and D joins. Some partition is owned by A, B, C in C_OLD
 * and by B, C, D in C_NEW. A quorum is two of the first and two of the second: B and C are one, A, B and D are
 * one, A and B are none. So a round of the transition meets all rounds before it, which had two of A, B, C, and
 * all rounds after it, which will have two of B, C, D. A round that counts only one ring would meet only one.
 *
 * How a view reaches the nodes. The coordinator proposes it (chapter 14), reads what its register holds,
 * and adopts that. Whoever adopts a view sends it to all of its members. If that is lost, the next frame
 * of a node that lacks the view tells so, by its epoch, and whoever gets the frame sends what is missing.
 * So a node need not ask, and one that was away for a hundred views gets them a few at a time.
 *
 * What a partition keeps of the other owners, as members of the present view:
 *
 *   differs    to pull from. In a transition: the old owners whose lists are not finished. In a stable view:
 *              those whose digest differed. A finished list, or an equal digest, takes its member away
 *   compared   all that these had was here once since the lease began, or since the view was adopted
 *   agreed     these had our digest at a promise floor not below ours; begins anew with each floor
 *   caught_up  stays set once `compared` was a majority: until the lease is lost, not only in this view
 *
 * The first decides when a transition may end (R14), the second and the last when the node is ready (R30),
 * the third when tombstones go (R20). None follows from another: a member may be compared and have changed
 * since, agree on an older floor, or be away.
 */

static void rounds_restart(struct node *n);

/* A view that is being made. */
struct view_draft {
    struct view view;
    struct member members[MEMBERS_MAX];
};

static uint32_t view_bytes(const struct view *v)
{
    return sizeof *v + v->members_count * sizeof(struct member);
}

static uint64_t view_members(const struct view *v, unsigned states)
{
    uint64_t members = 0;
    for (uint32_t i = 0; i < v->members_count; i++)
        if (states >> v->members[i].state & 1)
            members |= UINT64_C(1) << i;
    return members;
}

/* Whether `bytes` at `v` are a view; they come from a peer or a disk. Members are counted as bits, by their
 * places: so an id that stood twice would vote twice. A view without voters could have no successor. */
static bool view_makes_sense(const struct view *v, size_t bytes)
{
    if (bytes < sizeof *v || v->members_count == 0 || v->members_count > MEMBERS_MAX ||
        bytes != view_bytes(v) || v->epoch == 0 || v->replicas == 0 || v->replicas > REPLICAS_MAX)
        return false;
    for (uint32_t i = 0; i < v->members_count; i++) {
        const struct member *m = &v->members[i];
        if (m->id == 0 || m->weight == 0 || m->weight > WEIGHT_MAX || m->state > MEMBER_LOST ||
            !memchr(m->zone, 0, sizeof m->zone) || !memchr(m->address, 0, sizeof m->address) ||
            !text_is_plain(m->zone, strlen(m->zone), false) ||
            !text_is_plain(m->address, strlen(m->address), true) ||
            member_index(v, m->id) != (int)i)
            return false;
    }
    return view_members(v, 1u << MEMBER_UP | 1u << MEMBER_LEAVING) != 0;
}

/* The register of the next view has the same owners in both rings: the voters. So joiners have no say in
 * views, and the voters can end a transition or call it off without them. LOST members do not count there,
 * though they do in C_OLD: they are no voters of this view, so no part of its successor was ever at them. */
static void ring_members(struct node *n, int which, uint64_t members)
{
    struct ring *ring = &n->rings[which];
    ring_place(ring, n->view->members, n->view->members_count, members, n->view->replicas);
    memcpy(n->owners[which], ring->sets, sizeof ring->sets);
    n->owners[which][VIEWS_PARTITION] = n->voters;
}

/* Derives from n->view what the node keeps of it. It is called where a view is adopted, and at the start.
 *
 * A partition whose owners change, and which this node is to hold, needs the lists of its old owners (R14),
 * also where this node is one of them: it may lack a record that the two others chose. What was compared
 * or agreed counts by members' places in the view before, so it begins anew. So does the gc floor: an owner
 * that is new in this view has not agreed to it, and may hold an older value. */
static void view_apply(struct node *n)
{
    const struct view *v = n->view;
    n->cluster = v->cluster;
    n->up = view_members(v, 1u << MEMBER_UP);
    n->joining = view_members(v, 1u << MEMBER_JOINING);
    n->leaving = view_members(v, 1u << MEMBER_LEAVING);
    n->lost = view_members(v, 1u << MEMBER_LOST);
    n->voters = n->up | n->leaving;
    n->self = member_index(v, n->id);
    n->self = self_bit(n) & n->lost ? -1 : n->self;
    n->stable = !(n->joining | n->leaving | n->lost);
    n->self_peer->epoch = v->epoch;
    ring_members(n, C_OLD, n->voters | n->lost);
    ring_members(n, C_NEW, n->up | n->joining);
    for (uint32_t i = 0; i < v->members_count; i++) {
        struct peer *p = n->member_peer[i] = peer_make(n, v->members[i].id, v->members[i].address);
        assert(p);               /* there are four times as many places as members */
        if (!peer_is_live(n, p)) /* else its heartbeats say where it is */
            snprintf(p->address, sizeof p->address, "%s", v->members[i].address);
    }
    unsigned without_copy = 0;
    for (unsigned p = 0; p < PARTITIONS; p++) {
        struct partition *q = &n->partitions[p];
        bool comes =
            n->owners[C_NEW][p] & self_bit(n) && n->owners[C_OLD][p] != n->owners[C_NEW][p];
        q->to_sync = comes ? n->owners[C_OLD][p] & ~n->lost & ~self_bit(n) : 0; /* R14 */
        q->agreed = q->compared = 0;
        q->gc_floor = (struct ballot){0};
        without_copy += !(n->owners[C_OLD][p] & ~n->lost);
    }
    if (n->lost)
        log_line(LEVEL_WARN, "members are given up as lost: README says what that may cost",
                 "partitions=%d without_any_copy=%u", PARTITIONS, without_copy);
}

static void sync_reset(struct node *n);

/* Whether all that was acknowledged while this node had no lease, or was no owner, is here (R30). It was
 * at a majority of the owners; so it is here if this node was compared with any majority since. Each
 * live owner counts, too: a write of consistency=one may be at that owner alone.
 *
 * Why a majority that includes this node is enough: it shares an owner with the one that chose the record.
 * That is a member that was compared, or this node itself, which then has it. Example: A was cut off while B
 * and C wrote on. If C is dead now, B's records are enough, because B was in every quorum without A. Without
 * the rule, A would call itself ready and lack them; whoever replaces machines one by one would take B away,
 * and the writes of that time would be at C alone. */
static bool partition_is_caught_up(const struct node *n, unsigned partition)
{
    uint64_t owners = n->owners[C_OLD][partition];
    uint64_t same = n->partitions[partition].compared | self_bit(n);
    return n->partitions[partition].caught_up || !RULE(30) ||
           (majority(same, owners) && !(owners & live_members(n) & ~same));
}

/* Partitions that this node is to hold, and has not all of. */
static unsigned partitions_behind(const struct node *n)
{
    unsigned behind = 0;
    for (unsigned p = 0; n->self >= 0 && p < PARTITIONS; p++)
        behind += n->owners[C_NEW][p] & self_bit(n) && !partition_is_caught_up(n, p);
    return behind;
}

/* Drops what a stable view gives to others only (R17). It is safe: if the transition ended, a majority of the
 * new owners is complete (R15); if it was called off, a majority of the old ones has all (R13). It is needed:
 * no deletion reaches a copy that stays here. If the partition came back when the owners have forgotten the
 * tombstone, the old value would come back with it. */
static void view_drop(struct node *n)
{
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        struct partition *q = &n->partitions[p];
        if (partition_is_ours(n, p) || (q->count == 0 && q->promise_floor.time == 0))
            continue;
        partition_drop(n, q);
        log_append(n, &(struct message){.type = M_DROP, .partition = p}, NULL);
    }
}

/* Adds a view to the chain. While the log is read the chain may have gaps, and a later view of the
 * same epoch counts: node_bootstrap may have renamed them all. */
static void views_keep(struct node *n, const struct view *v)
{
    while (n->views_count < v->epoch) {
        n->views = realloc(n->views, (n->views_count + 1) * sizeof *n->views);
        if (!n->views)
            die("out of memory");
        n->views[n->views_count++] = NULL;
    }
    struct view *before = n->views[v->epoch - 1];
    uint64_t more = sizeof(struct message) + view_bytes(v);
    more -= before ? sizeof(struct message) + view_bytes(before) : 0;
    free(before);
    n->views_bytes += more;
    n->log.largest = max_u64(n->log.largest, n->views_bytes);
    n->log.live_bytes += more;
    n->views[v->epoch - 1] = memcpy(allocate(view_bytes(v)), v, view_bytes(v));
}

/* Sends the views after `epoch`, a few at a time, to a peer that is behind. */
static void views_send(struct node *n, struct peer *to, uint64_t epoch)
{
    uint64_t last = min_u64(node_epoch(n), epoch + VIEWS_TOLD_MAX);
    for (uint64_t e = epoch; e < last; e++) {
        const struct view *v = n->views[e];
        struct message m = {.type = M_VIEW, .flags = FLAG_WHOLE, .value_bytes = view_bytes(v)};
        message_send(n, to, 0, &m, &(struct body){.value = v});
    }
}

static void view_log(struct node *n, const struct view *v)
{
    struct message m = {.type = M_VIEW, .flags = FLAG_WHOLE, .value_bytes = view_bytes(v)};
    log_append(n, &m, &(struct body){.value = v});
}

/* Appends all views again, at once: one by one, copies that a crash left would be copied for ever. */
static void views_log(struct node *n)
{
    n->views_lsn = log_end(n);
    for (uint64_t e = 0; e < node_epoch(n); e++)
        view_log(n, n->views[e]);
}

/* Adopts the next view. It and the drops are in one batch of the log, as nothing is flushed in the
 * middle of an event: so after a crash a node has both or neither.
 *
 * The order matters. What waits to be sent was counted for the view before, so it is discarded first. The
 * drops need the new rings. No frame leaves until the log has the view (view_lsn): a node that forgot it
 * in a crash could reply in the old epoch to what it had promised in the new one. The rounds are last: they
 * send their prepares to the new owners.
 *
 * From here on the node handles no prepare and no accept that was sent in an earlier epoch (R6). Joiners rely
 * on that: what it lists in this epoch includes all that it will ever have accepted in earlier ones (R14). */
static void view_adopt(struct node *n, const struct view *v)
{
    assert(v->epoch == node_epoch(n) + 1); /* R16 */
    assert(!n->view || v->cluster == n->view->cluster);
    bool was_member = n->self >= 0;
    bool ends = !view_members(v, ~(1u << MEMBER_UP)), called_off = false;
    for (uint32_t i = 0; n->view && i < n->view->members_count; i++) {
        bool stays = member_index(v, n->view->members[i].id) >= 0;
        called_off |= ends && (stays ? n->leaving : n->joining) >> i & 1;
        n->member_peer[i]->leave &= !(stays && n->leaving >> i & 1); /* the drain was called off */
    }
    if (called_off) { /* R25: what began now would be called off again */
        n->begin_after = n->now + n->evict_after;
        log_line(LEVEL_WARN, "change of members called off: no data moved, or who takes it is dead",
                 "epoch=%" PRIu64, v->epoch);
    }
    n->progress_at = n->now;
    views_keep(n, v);
    n->view = n->views[v->epoch - 1];
    sync_reset(n);
    messages_discard(n);
    view_apply(n);
    view_log(n, v);
    if (n->stable && RULE(17))
        view_drop(n);
    n->view_lsn = log_end(n);
    n->gone = was_member && n->self < 0;
    n->next_heartbeat = 0;
    log_line(LEVEL_INFO, "view adopted", "epoch=%" PRIu64 " members=%u stable=%d", v->epoch,
             v->members_count, n->stable);
    for (uint32_t i = 0; i < v->members_count; i++)
        if ((int)i != n->self)
            views_send(n, n->member_peer[i], v->epoch - 1);
    rounds_restart(n);
}

/* Whether this node would be no member any more, or LOST, though a majority of the voters was live a
 * moment ago. It gives up its log then, so one peer's word is not enough. Voters that have such a view
 * send it no heartbeats: if the view is real the lease ends, and the view is sent again. */
static bool view_is_doubtful(const struct node *n, const struct view *v)
{
    uint64_t lately = 0;
    for (uint32_t i = 0; n->view && i < n->view->members_count; i++)
        lately |= (uint64_t)(n->member_peer[i]->live_at + 2 * n->lease > n->now) << i;
    int index = member_index(v, n->id);
    bool stays = index >= 0 && v->members[index].state != MEMBER_LOST;
    return n->self >= 0 && !stays && majority(lately, n->voters);
}

static void on_view(struct node *n, struct peer *from, const struct message *m)
{
    struct bytes value = message_value(m);
    const struct view *v = (const struct view *)value.data;
    uint64_t drops_bytes = PARTITIONS * sizeof(struct message);
    if (!view_makes_sense(v, value.count) || (n->cluster && v->cluster != n->cluster) ||
        v->epoch != node_epoch(n) + 1 ||
        !log_has_room(n, ROOM_CLEANING + value.count + drops_bytes))
        return;
    if (from == n->self_peer || !view_is_doubtful(n, v)) /* its own was read at a majority */
        view_adopt(n, v);
}

/* === 14 The coordinator =========================================================================
 *
 * Every node sends every member a heartbeat each quarter of a lease. A heartbeat of a node that is no
 * member asks to join. The coordinator is a role: of the live voters with a lease, the one with the
 * smallest id has it. It alone proposes views, so that proposals rarely duel. Two nodes that believe
 * to have the role do no harm, as a view's register is written once.
 *
 * The life of a member, and the rings that it is in. Each arrow is one view:
 *
 *   asks --> JOINING --> UP --> LEAVING --> gone    JOINING: C_NEW    UP: both    LEAVING: C_OLD
 *   JOINING --> gone                                called off, or exchanged for another joiner
 *   LEAVING --> UP                                  called off, or other members were declared LOST
 *   UP or LEAVING --> LOST --> gone                 an operator said that its disk is gone; LOST: C_OLD
 *
 * The exchange of a dead member. C of A, B, C is dead, and D asks to join. One view makes C LEAVING and D
 * JOINING. The voters are A, B and C as before, and A and B are their majority. D is complete when it has the
 * lists of A and B, two of three old owners. Then one view removes C and makes D a voter. If D came as a fourth
 * voter, a majority would be three, and the next death would stop the cluster (R23).
 *
 * What the coordinator knows comes in heartbeats: who is live, who asks to join, which members are to be
 * drained, which partitions each member has completely, and whether data still moves. All of it may be late
 * or wrong by a lease. Safety does not depend on it, except on one claim: a member that reports a partition
 * as complete, in this epoch, has what the old owners had (R14). A heartbeat leaves when all that it tells of
 * is durable (R3), so that this stays true if the member crashes.
 *
 * What is safe about every view that is proposed: its epoch is the next one, so that its register's
 * acceptors are the present voters; and its voters are the present ones, unless all its members are UP, or
 * some are declared LOST, which count on (R26). So the quorums of C_old stay what they are until a transition
 * ends, by R15, or is called off.
 */

/* Whether all that the old owners have is here, as a majority of them listed it in this epoch (R14). Its
 * own list counts: a record that it accepted before is in no need of being pulled. Where old owners are
 * LOST, those that are left must be as many as meet each majority of all (old_majority, R26).
 *
 * Why one list is too little: of A, B and C, a write may have been chosen at A and B. D has gone through C's
 * list alone, so it lacks the write. When A has left, C and D are a majority of the owners B, C and D, and
 * neither has it. */
static bool partition_is_complete(const struct node *n, unsigned partition)
{
    return n->stable || old_majority(n, partition, ~n->partitions[partition].to_sync) || !RULE(14);
}

/* Whether it sent a heartbeat, as no member of this node's view, within a lease. It had this very view
 * then: what a member sent before it left does not bring it back. */
static bool peer_asks_to_join(const struct node *n, const struct peer *p)
{
    return peer_is_heard(n, p) && p->beat_epoch == node_epoch(n) &&
           member_index(n->view, p->id) < 0;
}

/* To the members, and to those that ask to join. A node that is no member, or that misses one, sends it
 * also to whoever is at the addresses of --join, or where a member was: to join, or to be found.
 *
 * `heard` names processes, not nodes (id ^ boot). So a node that has just started again does not take a member
 * for live because that one heard the process before: it must have heard this one (R21). */
static void heartbeat_send(struct node *n)
{
    struct heartbeat beat = {.keys = n->keys, .value_bytes = n->value_bytes};
    beat.requests = n->requests;
    beat.moved = n->counters.pulled + n->counters.listed;
    for (unsigned p = 0; p < PARTITIONS; p++)
        if (partition_is_complete(n, p))
            beat.complete[p / 8] |= (uint8_t)(1 << p % 8);
    for (uint32_t i = 0; n->view && i < n->view->members_count; i++) {
        const struct peer *p = n->member_peer[i];
        beat.heard[i] = peer_is_heard(n, p) ? p->id ^ p->boot : 0;
        beat.leave |= (uint64_t)p->leave << i;
        if (!n->has_lease && strcmp(p->address, n->self_peer->address) != 0)
            peer_make(n, 0, p->address);
    }
    for (size_t i = 0; !n->view && i < MEMBERS_MAX && i < n->peers_count; i++)
        beat.heard[i] = peer_asks_to_join(n, n->peers[i]) ? n->peers[i]->id ^ n->peers[i]->boot : 0;
    struct message head = {.type = M_HEARTBEAT, .flags = FLAG_WHOLE, .value_bytes = sizeof beat};
    head.key_bytes = (uint16_t)strlen(n->self_peer->address);
    head.type_bytes = (uint16_t)strlen(n->self_peer->zone);
    head.status = (uint16_t)n->self_peer->weight;
    head.has_lease = n->has_lease;
    struct body body = {.key = n->self_peer->address, .type = n->self_peer->zone, .value = &beat};
    bool misses = !n->has_lease || view_members(n->view, ~0u) & ~live_members(n);
    if (n->self >= 0)
        messages_send(n, ~UINT64_C(0), log_end(n), &head, &body);
    for (size_t i = 0; i < n->peers_count; i++) {
        struct peer *p = n->peers[i];
        if (p->id ? n->self >= 0 && peer_asks_to_join(n, p) : misses && !n->self_peer->leave)
            message_send(n, p, log_end(n), &head, &body);
    }
}

/* The clock of the frame tells a late heartbeat from the newest. One that says that this node is heard makes the
 * sender live (R21). Its bits are places in the sender's view: a drain counts only if that is
 * this node's view, and a request to join as well. A drain only spreads: whoever has heard of it repeats it,
 * and only a view ends it (view_adopt). So it outlives the coordinator, and the node that was asked. It is in
 * no log: a restart of all nodes at once ends it. */
static void on_heartbeat(struct node *n, struct peer *from, const struct message *m)
{
    const struct heartbeat *beat = &from->beat;
    struct body body = message_body(m);
    bool member = member_index(n->view, from->id) >= 0;
    uint64_t moved = beat->moved;
    if (m->value_bytes != sizeof *beat || m->key_bytes >= ADDRESS_BYTES ||
        m->type_bytes >= ZONE_BYTES || m->status == 0 || m->status > WEIGHT_MAX ||
        !text_is_plain(body.key, m->key_bytes, true) ||
        !text_is_plain(body.type, m->type_bytes, false) || from->clock < from->beat_clock)
        return;
    memcpy(&from->beat, body.value, sizeof *beat);
    snprintf(from->address, sizeof from->address, "%.*s", m->key_bytes, (const char *)body.key);
    snprintf(from->zone, sizeof from->zone, "%.*s", m->type_bytes, (const char *)body.type);
    from->weight = m->status;
    from->beat_epoch = from->epoch;
    from->beat_clock = from->clock;
    from->heard_at = n->now;
    from->has_lease = m->has_lease;
    from->hears_us = false;
    for (int i = 0; i < MEMBERS_MAX; i++)
        from->hears_us |= beat->heard[i] == (n->id ^ n->boot);
    if (!from->hears_us && member) /* it should, soon */
        n->next_heartbeat = min_u64(n->next_heartbeat, n->now + n->lease / 20);
    if (beat->moved > moved)
        n->progress_at = n->now;
    if (from->epoch == STRANGER) /* it learns by the id that it is one (R32) */
        message_send(n, from, 0, &(struct message){.type = M_VIEW}, NULL);
    if (from->epoch != node_epoch(n))
        return; /* it may have been a member: it gets the views first (R17) */
    if (!member)
        from->live_at = n->now;
    for (uint32_t i = 0; member && i < n->view->members_count; i++)
        n->member_peer[i]->leave |= beat->leave >> i & 1;
}

/* Whether a member may be drained: another live UP member must remain. */
static bool member_may_leave(const struct node *n, int index)
{
    uint64_t bit = UINT64_C(1) << index;
    return n->up & bit && n->up & live_members(n) & ~bit;
}

/* Requests the drain of a member, by way of all members' heartbeats, until it is gone: so the member
 * knows why. False: it is the last. */
static bool node_drain(struct node *n, int index)
{
    if (!member_may_leave(n, index))
        return false;
    n->member_peer[index]->leave = true;
    n->next_heartbeat = 0;
    return true;
}

/* Whether nothing came since `at` for the eviction time, in which this node had a lease all along. */
static bool rests_since(const struct node *n, uint64_t at)
{
    return max_u64(at, n->lease_at) + n->evict_after < n->now;
}

/* Members that were not live for so long. A coordinator that has just got its lease does not know how long
 * the others were away: it counts from its lease on. */
static uint64_t dead_members(const struct node *n)
{
    uint64_t dead = 0;
    for (uint32_t i = 0; i < n->view->members_count; i++)
        dead |= (uint64_t)rests_since(n, n->member_peer[i]->live_at) << i;
    return dead;
}

/* The members that have reported, in this epoch, that they hold all of a partition. What one reported in an
 * earlier epoch was about other old owners. One that has died since still counts: what it reported is on its
 * disk (R3). */
static uint64_t complete_members(const struct node *n, unsigned partition)
{
    uint64_t members = 0;
    for (uint32_t i = 0; i < n->view->members_count; i++)
        if (n->member_peer[i]->beat_epoch == n->view->epoch &&
            n->member_peer[i]->beat.complete[partition / 8] >> partition % 8 & 1)
            members |= UINT64_C(1) << i;
    return members;
}

/* Partitions whose owners change, and how many of them are complete: each at a majority of its new
 * owners, and at every joiner that is to have it (R15). */
static void transition_progress(const struct node *n, unsigned *complete, unsigned *changing)
{
    *complete = *changing = 0;
    for (unsigned p = 0; p < PARTITIONS; p++) {
        uint64_t owners = n->owners[C_NEW][p], done = complete_members(n, p);
        if (owners == n->owners[C_OLD][p])
            continue;
        ++*changing;
        *complete += majority(done, owners) && !(owners & n->joining & ~done);
    }
}

/* Whether the live members are a majority of the owners of every partition. */
static bool all_partitions_live(const struct node *n)
{
    uint64_t live = live_members(n);
    for (unsigned p = 0; p < PARTITIONS; p++)
        if (!majority(live, n->owners[C_OLD][p]))
            return false;
    return true;
}

/* Whether the transition may never end: nobody pulled a record or finished a list for the eviction time
 * (R25), because who is to take data is dead, or has no room. LOST members alone are not called back. */
static bool transition_is_stuck(const struct node *n)
{
    return n->joining | n->leaving && rests_since(n, n->progress_at) && RULE(25);
}

/* Whether there will be more voters than before. Then a dead member must not stay: it would count in the
 * larger majority, which one more loss could make impossible (R23). */
static bool transition_grows(const struct node *n)
{
    return __builtin_popcountll(n->joining) > __builtin_popcountll(n->leaving | n->lost);
}

/* Whether this node joins, and its disk cannot take its share, or not even the views: it is to stop, as
 * all other changes wait for it (R25). */
static bool node_is_too_small(const struct node *n)
{
    bool joins = n->self >= 0 ? n->view->members[n->self].state == MEMBER_JOINING : !n->gone;
    return joins && n->log.full && (n->log.starved || !log_has_room(n, ROOM_RECORDS + BULK_BYTES));
}

/* The next view begins as a copy of this one. Each function below makes one change to it, if there is
 * a reason. In a transition the voters stay what they are. So whatever was chosen is held by majorities
 * of C_old, and C_new may change as often as need be, one view at a time.
 *
 *   this view is    in the next one
 *   any             members have new addresses, or are LOST as an operator says (node_lose)
 *   stable          a joiner comes, alone or in exchange for a dead member; or a member is LEAVING that
 *                   is drained, or that is dead and not needed to hold all copies
 *   in transition   a joiner comes in exchange for a dead one, or for a dead member; a dead member is
 *                   LEAVING in exchange for a joiner under way; the transition ends, or is called off
 */
static bool view_set(struct view *next, uint64_t members, enum member_state state)
{
    for (uint32_t i = 0; i < next->members_count; i++)
        if (members >> i & 1)
            next->members[i].state = state;
    return members;
}

/* The addresses that live members send from are in the view, so that every node hears of them, also one
 * that comes back later. */
static bool view_move(const struct node *n, struct view *next)
{
    bool moved = false;
    for (uint32_t i = 0; i < next->members_count; i++) {
        const struct peer *p = n->member_peer[i];
        char *address = next->members[i].address;
        if (!(live_members(n) >> i & 1) || strcmp(address, p->address) == 0)
            continue;
        memset(address, 0, ADDRESS_BYTES);
        memcpy(address, p->address, strlen(p->address));
        moved = true;
    }
    return moved;
}

/* The member that a joiner is exchanged for, as a bit: one that was JOINING, or UP, at its address; in a
 * stable view also any that is dead. 0: none. In a transition a member that is dead elsewhere is not: a joiner
 * is under way already, which may take its place (view_leave). */
static uint64_t joiner_exchange(const struct node *n, uint64_t here)
{
    uint64_t others = here & n->joining ? here & n->joining : here & n->up;
    others = others || !n->stable ? others : dead_members(n);
    return RULE(23) ? others & -others : 0;
}

/* A node that asks to join is JOINING. It hears this node: so the views reached it, at that address, and
 * it is no member of them. While a voter is not live it comes in exchange or not at all: it would be one
 * more whose loss stops the cluster (R23). Nor does it while a member at its address is live. */
static bool view_join(const struct node *n, struct view *next)
{
    uint64_t live = live_members(n);
    for (size_t i = 0; i < n->peers_count; i++) {
        const struct peer *p = n->peers[i];
        uint64_t here = 0;
        for (uint32_t j = 0; j < n->view->members_count; j++)
            here |= (uint64_t)(strcmp(n->member_peer[j]->address, p->address) == 0) << j;
        uint64_t old = joiner_exchange(n, here);
        bool may_come = old || (n->stable && (!(n->voters & ~live) || !RULE(23)));
        bool adds = !(old & n->joining);
        if (!peer_asks_to_join(n, p) || !p->hears_us || !may_come || here & live ||
            (adds && next->members_count == MEMBERS_MAX))
            continue;
        view_set(next, old, MEMBER_LEAVING);
        struct member *m =
            &next->members[adds ? next->members_count++ : (uint32_t)__builtin_ctzll(old)];
        *m = (struct member){.id = p->id, .weight = p->weight, .state = MEMBER_JOINING};
        memcpy(m->address, p->address, strlen(p->address));
        memcpy(m->zone, p->zone, strlen(p->zone));
        return true;
    }
    return false;
}

/* A member leaves that is drained, while all other voters are live (R24); or that is dead, if enough live
 * members remain to hold all copies, or a joiner under way takes its place.
 *
 * Of three nodes with three replicas a dead one stays: no other node can take its copies, and when it comes
 * back it has most of the data still. Of four a dead one leaves: the three others take its copies. */
static bool view_leave(const struct node *n, struct view *next)
{
    uint64_t live = live_members(n), leaves = 0;
    bool spare = (uint32_t)__builtin_popcountll(n->up & live) >= next->replicas;
    for (uint32_t i = 0; n->stable && i < next->members_count; i++) {
        bool others_live = !(n->voters & ~live & ~(UINT64_C(1) << i));
        if (n->member_peer[i]->leave && member_may_leave(n, (int)i) && (others_live || !RULE(24)))
            leaves |= UINT64_C(1) << i;
    }
    if (n->stable ? spare && n->begin_after <= n->now : transition_grows(n))
        leaves |= n->up & dead_members(n);
    return view_set(next, leaves & -leaves, MEMBER_LEAVING);
}

/* The transition ends: JOINING become UP, LEAVING and LOST are gone. Or it is called off: JOINING are
 * gone, LEAVING become UP. It does not end with more voters than before while a member that would stay
 * is not live (R23). */
static bool view_stabilize(const struct node *n, struct view *next)
{
    unsigned complete, changing;
    uint64_t live = live_members(n);
    transition_progress(n, &complete, &changing);
    bool done = (complete == changing || !RULE(15)) && !(n->joining & ~live) &&
                !(transition_grows(n) && n->up & ~live && RULE(23));
    if (!done && !transition_is_stuck(n))
        return false;
    uint64_t gone = done ? n->leaving | n->lost : n->joining;
    view_set(next, ~n->lost, MEMBER_UP);
    next->members_count = 0;
    for (uint32_t i = 0; i < n->view->members_count; i++)
        if (!(gone >> i & 1))
            next->members[next->members_count++] = next->members[i];
    return true;
}

/* Nothing begins while a partition has no live majority of its owners, as it might never end; and after a
 * change was called off nothing but a drain does, for the eviction time (R25). New addresses come first:
 * without them the members may not find one another, and no view could follow. One change is made at a time.
 * The others wait for the next view: what is a good change then depends on who is live then. */
static bool view_next(const struct node *n, struct view *next)
{
    memcpy(next, n->view, view_bytes(n->view));
    next->epoch++;
    if (view_move(n, next))
        return true;
    if (!n->stable)
        return view_join(n, next) || view_leave(n, next) || view_stabilize(n, next);
    if (!all_partitions_live(n) && RULE(25))
        return false;
    return (n->begin_after <= n->now && view_join(n, next)) || view_leave(n, next);
}

static void node_bootstrap(struct node *n, uint32_t replicas);

/* Nodes without data send heartbeats to one another. When this one has heard as many as are expected,
 * which hear it, and none has a smaller id, it makes the first view (R27). No other node does: it would
 * have to count this machine, too, under a larger id; but it has heard the smaller.
 *
 * Example: A < B < C are each told to expect three. A begins when it has heard B and C, and both hear it. B
 * and C have to count A to get to three, and A's id is below theirs. If A is dead, nobody begins: to wait is
 * safe, and two clusters are not. */
static void expect_tick(struct node *n)
{
    uint64_t count = 1;
    for (size_t i = 0; i < n->peers_count; i++) {
        const struct peer *p = n->peers[i];
        bool counts = p->hears_us && peer_asks_to_join(n, p);
        for (size_t j = 0; j < i; j++) { /* a machine counts once, though its disk was lost since */
            const struct peer *q = n->peers[j];
            bool here = q == n->self_peer || peer_asks_to_join(n, q);
            counts &= !here || strcmp(q->address, p->address) != 0;
        }
        if (counts && p->id < n->id && RULE(27))
            return;
        count += counts;
    }
    if (count >= n->expected)
        node_bootstrap(n, n->replicas);
}

static void node_request_own(struct node *n, const struct message *head, const struct body *body);

/* Writes a view to the register of the next one, or (null) reads it. */
static void view_request(struct node *n, const struct view *next)
{
    char key[32];
    struct message m = {.partition = VIEWS_PARTITION, .function = next ? DO_PUT : DO_READ};
    m.condition = next && RULE(16) ? IF_ABSENT : IF_NONE;
    m.key_bytes = (uint16_t)sprintf(key, "view/%" PRIu64, node_epoch(n) + 1);
    m.value_bytes = next ? view_bytes(next) : 0;
    m.expiry = next ? 0 : UINT64_MAX; /* all of it is read */
    assert(!next || view_makes_sense(next, m.value_bytes));
    node_request_own(n, &m, &(struct body){.key = key, .value = next});
}

/* Proposes that members are LOST: an operator says that their disks are gone for good. No other node knows
 * it, so this one proposes it, coordinator or not. LEAVING members stay: one may be the last that holds a
 * record. False: one of them is live, or no other voter is left.
 *
 * The view is chosen like any other, by a majority of the voters of this view, in which the lost ones are voters
 * still. So a minority that is cut off cannot give up the others.
 *
 * Example: five members, three replicas; the disks of D and E are gone. Where A, B and D were the owners, each
 * write is at A or at B, but neither need have all: both are needed until the transition ends. Where A, D and E
 * were, A's copy is all that is left: a write that was chosen at D and E is lost. */
static bool node_lose(struct node *n, uint64_t lost)
{
    struct view_draft next;
    if (lost & live_members(n) || !(n->voters & ~lost))
        return false;
    memcpy(&next, n->view, view_bytes(n->view));
    next.view.epoch++;
    view_set(&next.view, n->leaving, MEMBER_UP);
    view_set(&next.view, n->voters & lost, MEMBER_LOST);
    view_request(n, &next.view);
    return true;
}

/* Proposes the next view, if this node is the coordinator and there is a reason for one. A node without a lease
 * is passed over: it may be cut off, and then takes all others for dead. */
static void coordinator_tick(struct node *n)
{
    struct view_draft next;
    uint64_t live_voters = live_members(n) & n->voters;
    for (uint32_t i = 0; i < n->view->members_count; i++)
        if (live_voters >> i & 1 && n->view->members[i].id < n->id && n->member_peer[i]->has_lease)
            return;
    bool proposed = LIST_FIRST(&n->by_key[VIEWS_PARTITION]); /* its round is under way */
    if (!(n->voters & self_bit(n)) || !n->has_lease || proposed || !view_next(n, &next.view))
        return;
    bool ends = !view_members(&next.view, ~(1u << MEMBER_UP));
    uint64_t voters = view_members(&next.view, 1u << MEMBER_UP | 1u << MEMBER_LEAVING);
    assert(ends || voters == n->voters); /* the one rule of transitions (view_set) */
    view_request(n, &next.view);
}

/* The register of the next view replied. Whoever wrote it, what it holds is the view. So it is read, and
 * comes as a message to this node: to adopt it restarts all rounds, also the one that read it. */
static void view_decided(struct node *n, const struct message *result)
{
    struct message m = {.type = M_VIEW, .flags = FLAG_WHOLE, .value_bytes = result->value_bytes};
    if (result->status == 200 && result->flags & FLAG_WHOLE)
        message_send(n, n->self_peer, 0, &m, &(struct body){.value = message_body(result).value});
    else if (result->status == 201 || result->status == 204 || result->status == 412)
        view_request(n, NULL);
}

/* A lease lasts while a majority of the voters is live. While this node had none, the others may have gone on
 * without it: so when it gets one, all that was compared before counts no more (R30). `lease_clock` names the
 * lease: a digest that brings it back was made since. One voter with a lease that follows another process of
 * this node's id is enough to end the lease; to give up the log takes a majority, which lives without it (R32). */
static void lease_tick(struct node *n)
{
    uint64_t live = live_members(n), disown = 0;
    for (uint32_t i = 0; i < n->view->members_count; i++) {
        struct peer *p = n->member_peer[i];
        p->live_at = live >> i & 1 ? n->now : p->live_at;
        disown |= (uint64_t)(p->disowns_us && p->has_lease) << i;
    }
    n->disowned = disown & n->voters;
    n->gone |= majority(disown, n->voters); /* they live without what its disk has (R32) */
    if (n->has_lease == (majority(live, n->voters) && !n->disowned))
        return;
    n->has_lease = !n->has_lease;
    n->lease_at = n->now;
    if (n->has_lease) {
        n->lease_clock = clock_tick(n);
        sync_reset(n); /* its lists are of before */
        for (unsigned p = 0; p < PARTITIONS; p++)
            n->partitions[p].compared = n->partitions[p].caught_up = false;
        log_line(LEVEL_INFO, "lease gained", "epoch=%" PRIu64, n->view->epoch);
    } else {
        n->counters.lease_expirations++;
        log_line(LEVEL_WARN, n->gone ? "this node is no member any more" : "lease lost",
                 "epoch=%" PRIu64, n->view->epoch);
    }
}

/* === 15 Sync ====================================================================================
 *
 * Rebalancing, hand-off and repair are one act. A node gets a list of (key, ballot) of a partition
 * from another owner, and pulls what is newer than its own: the other owner sends its accept again,
 * and the acceptor's rule decides (R18). In a transition the lists of a majority of the old owners
 * make a partition complete (R14). In a stable view owners sync whose digests differ.
 *
 *   at rest     due = 0                  sync_tick looks for a partition that differs from a live member
 *   asked       page_id set              on_listed: a page of the list came
 *   pulling     page_id = 0, due set     sync_pull, each tick: what is wanted of the page is pulled, some of it
 *                                        at a time; then the next page is asked for, or the list is over
 *
 * Any of it may be lost, or rejected. Then nothing comes until `due`, and the sync is over. Nothing was noted
 * of it, but what was pulled stays: so the next try has less to do.
 *
 * Why a copy that comes late can do no harm. A's record has ballot 5; B and C have one of ballot 7, which A
 * missed. A pulls it, and B sends the accept of 7 again, as if the first one had been on its way until now. If
 * A has promised 9 meanwhile, it rejects 7, late or not: whoever prepared 9 may rely on that promise.
 * A asks for a repair instead, a round at a ballot above 9, which finds the record at B or C (R18).
 *
 * In a stable view no answer depends on sync, because each asks a quorum. What does: how many disks may fail
 * before a record is lost, whether the node is ready (R30), and whether tombstones go (R20).
 *
 * Why a list that is read page by page is as good as one read at once: an owner lists each key at its ballot
 * at that moment. A record that is accepted behind the page was accepted in this epoch, so that a majority of
 * the new owners accepts it too.
 */

/* One entry of a list; the key follows, padded to a multiple of 8. Sync goes by the ballot, the key and the
 * flags, and by the bytes of the value, of which it pulls so many at a time. The rest is for listings (Part
 * IV). The ballot is what was accepted at the sender, which may be chosen or not: sync need not know. */
struct listed {
    struct ballot ballot;
    uint64_t write_id, modified, expiry;
    uint32_t value_bytes;
    uint16_t key_bytes;
    uint8_t flags, member; /* member: set by the receiver */
    uint8_t key[];
};
_Static_assert(sizeof(struct listed) == 56, "layout");

static size_t listed_bytes(const struct listed *l)
{
    return (sizeof *l + l->key_bytes + 7) & ~(size_t)7;
}

static void listed_append(struct bytes *to, const struct listed *l, const void *key)
{
    struct listed *copy = bytes_extend(to, listed_bytes(l));
    memset(copy, 0, listed_bytes(l));
    *copy = *l;
    memcpy(copy->key, key, l->key_bytes);
}

/* The entry of a list at *at, which moves behind it, or null if there is no whole one: lists come
 * from peers. */
static struct listed *list_next(const struct bytes *list, size_t *at)
{
    size_t left = list->count - *at;
    if (left < sizeof(struct listed))
        return NULL;
    struct listed *l = (struct listed *)(list->data + *at);
    if (l->key_bytes > KEY_BYTES_MAX || left < listed_bytes(l))
        return NULL;
    *at += listed_bytes(l);
    return l;
}

/* Lists the keys of a partition that have a record and that M_LIST asks for, up to `bound` if there is
 * one. If they are more than its number, the last of so many is returned. `to`: null to list nothing. */
static const struct entry *partition_list(const struct partition *p, const struct message *m,
                                          const struct entry *bound, struct bytes *to)
{
    struct body body = message_body(m);
    uint32_t prefix = partition_seek(p, body.value, m->value_bytes);
    uint32_t after = partition_seek(p, body.key, m->key_bytes);
    const struct entry *last = NULL;
    uint64_t told = 0;
    for (uint32_t i = prefix > after ? prefix : after; i < p->count; i++) {
        const struct entry *e = p->entries[i];
        if (e->key_bytes < m->value_bytes || memcmp(e->key, body.value, m->value_bytes) != 0 ||
            (bound && key_compare(e->key, e->key_bytes, bound->key, bound->key_bytes) > 0))
            break;
        bool skip = !(e->flags & FLAG_RECORD) || (!RULE(14) && !is_live(e->flags));
        if (skip || key_compare(e->key, e->key_bytes, body.key, m->key_bytes) <= 0)
            continue;
        if (told++ == m->keys_max)
            return last;
        last = e;
        struct listed l = {e->accepted,    e->write_id,  e->modified, e->expiry,
                           e->value_bytes, e->key_bytes, e->flags,    0};
        if (to)
            listed_append(to, &l, e->key);
    }
    return NULL;
}

/* M_LIST asks for the keys that begin with its value and come after its key, at most so many (number)
 * of a partition; VIEWS_PARTITION stands for all partitions, in one list that ends for all where it
 * has to end for one.
 *
 * The index may be ahead of the disk. So a list waits until the log is durable up to its present end: it shows
 * nothing that a crash could take back (R3). */
static void on_list(struct node *n, struct peer *from, const struct message *m)
{
    bool all = m->partition == VIEWS_PARTITION;
    struct message head = {.type = M_LISTED, .round_id = m->round_id, .partition = m->partition};
    const struct entry *bound = NULL, *end;
    if (!all && !partition_is_ours(n, m->partition))
        return;
    bytes_clear(&n->scratch);
    for (unsigned i = 0; i < 2 * PARTITIONS; i++) { /* first to find the end, then to list */
        uint16_t p = (uint16_t)(i % PARTITIONS);
        struct bytes *to = i < PARTITIONS ? NULL : &n->scratch;
        if ((all || p == m->partition) && partition_is_ours(n, p) &&
            (end = partition_list(&n->partitions[p], m, bound, to)))
            bound = end;
    }
    head.flags = bound ? FLAG_WHOLE | FLAG_MORE : FLAG_WHOLE;
    head.value_bytes = (uint32_t)n->scratch.count;
    message_send(n, from, log_end(n), &head, &(struct body){.value = n->scratch.data});
}

static void sync_end(struct sync *s)
{
    bytes_free(&s->page);
    *s = (struct sync){.partition = s->partition, .source = s->source};
}

static void sync_reset(struct node *n)
{
    for (int i = 0; i < SYNCS_MAX; i++)
        sync_end(&n->syncs[i]);
}

/* Asks for the next page. Each request has a new id, so that a page that comes late, for a sync that was given
 * up, is not taken for one of this sync: it may be of another member. */
static void sync_ask(struct node *n, struct sync *s)
{
    const struct listed *l, *last = NULL;
    for (size_t at = 0; (l = list_next(&s->page, &at));)
        last = l;
    struct message m = {.type = M_LIST, .flags = FLAG_WHOLE, .partition = s->partition};
    m.round_id = s->page_id = clock_tick(n);
    m.keys_max = LIST_PAGE_KEYS;
    m.key_bytes = last ? last->key_bytes : 0;
    s->due = n->now + 5 * STEP_TIME;
    message_send(n, n->member_peer[s->source], 0, &m,
                 &(struct body){.key = last ? last->key : NULL});
}

/* Whether this node needs a record that is listed. In a transition tombstones are wanted like values: a new
 * owner that skipped one would then pull an older value of the key, which another owner lists (R14). */
static bool sync_wants(const struct node *n, const struct sync *s, const struct listed *l)
{
    const struct partition *p = &n->partitions[s->partition];
    const struct entry *e = entry_find(p, l->key, l->key_bytes);
    if (e && e->flags & FLAG_RECORD)
        return ballot_compare(l->ballot, e->accepted) > 0 || e->flags & FLAG_DAMAGED;
    /* Else owners would pull forgotten tombstones from one another for ever (R19). */
    return !(n->stable && l->flags & FLAG_TOMBSTONE &&
             ballot_compare(l->ballot, p->promise_floor) <= 0);
}

/* All that the member has of the partition at this moment is here. */
static void partition_compared(struct node *n, unsigned partition, uint64_t member)
{
    struct partition *p = &n->partitions[partition];
    p->to_sync &= ~member;
    p->compared |= member;
    p->caught_up = partition_is_caught_up(n, partition);
}

/* Pulls what is wanted of the page, PULL_BYTES_MAX at a time, then asks for the next page. A record that
 * does not come, or is rejected here, ends the sync when it is due; it begins again in its turn. */
static void sync_pull(struct node *n, struct sync *s)
{
    const struct listed *l;
    for (size_t at = s->pulled_to; (l = list_next(&s->page, &at)) && !sync_wants(n, s, l);
         s->pulled_to = at)
        s->due = max_u64(s->due, n->now + 5 * STEP_TIME);
    if (!l && s->more) {
        sync_ask(n, s);
    } else if (!l) {
        partition_compared(n, s->partition, UINT64_C(1) << s->source);
        n->counters.listed++;
        sync_end(s);
    } else if (s->pulled_to >= s->asked_to) {
        uint64_t pulled_bytes = 0;
        s->asked_to = s->pulled_to;
        while (pulled_bytes < PULL_BYTES_MAX && (l = list_next(&s->page, &s->asked_to))) {
            struct message m = {.type = M_PULL, .partition = s->partition};
            m.key_bytes = l->key_bytes;
            if (!sync_wants(n, s, l))
                continue;
            pulled_bytes += sizeof m + l->value_bytes;
            message_send(n, n->member_peer[s->source], 0, &m, &(struct body){.key = l->key});
        }
        s->due = n->now + 5 * STEP_TIME + pulled_bytes / BYTES_PER_US;
    }
}

/* Ends the syncs that are due, and begins others: each has partitions of its own, and takes them in turn. */
static void sync_tick(struct node *n)
{
    uint64_t live = live_members(n);
    for (unsigned i = 0; i < SYNCS_MAX; i++) {
        struct sync *s = &n->syncs[i];
        if (s->due && (s->due <= n->now || !(live >> s->source & 1)))
            sync_end(s);
        else if (s->due && s->page_id == 0)
            sync_pull(n, s);
        for (unsigned tries = 0; !s->due && tries < PARTITIONS / SYNCS_MAX; tries++) {
            unsigned turn = (s->partition / SYNCS_MAX + 1) % (PARTITIONS / SYNCS_MAX);
            s->partition = (uint16_t)(turn * SYNCS_MAX + i);
            uint64_t sources = n->partitions[s->partition].to_sync & live;
            if (!sources)
                continue;
            uint64_t above = sources & ~((UINT64_C(2) << s->source) - 1); /* the next one's turn */
            s->source = (unsigned)__builtin_ctzll(above ? above : sources);
            sync_ask(n, s);
        }
    }
}

static void listing_listed(struct node *n, const struct peer *from, const struct message *m);

static void on_listed(struct node *n, struct peer *from, const struct message *m)
{
    struct sync *s = &n->syncs[m->partition % SYNCS_MAX]; /* as sync_tick deals them out */
    struct bytes list = message_value(m);
    if (m->partition == VIEWS_PARTITION)
        listing_listed(n, from, m);
    if (!s->page_id || s->page_id != m->round_id)
        return;
    bytes_set(&s->page, list.data, list.count);
    s->more = list.count && m->flags & FLAG_MORE;
    s->page_id = s->pulled_to = s->asked_to = 0;
    s->due = n->now + 5 * STEP_TIME;
    sync_tick(n);
}

/* Sends a partition's digest and promise floor to some of its owners. Until it has caught up, it asks for
 * theirs by the lease's clock, as the round id; `answers`: that of an owner that asked, or 0, is sent back
 * as the write id. */
static void digest_send(struct node *n, uint16_t partition, uint64_t to, uint64_t answers)
{
    const struct partition *p = &n->partitions[partition];
    struct message m = {.type = M_DIGEST, .partition = partition, .ballot = p->promise_floor};
    m.digest = p->digest;
    m.write_id = answers;
    m.round_id = answers || p->caught_up ? 0 : n->lease_clock;
    to &= partition_owners(n, partition) & ~self_bit(n);
    messages_send(n, to, log_end(n), &m, NULL);
}

/* Of some partitions in turn, and of all that have not caught up. */
static void digests_send(struct node *n)
{
    uint64_t live = live_members(n);
    for (uint16_t p = 0; p < PARTITIONS; p++)
        if (partition_is_ours(n, p) &&
            (p % 16 == n->digest_next % 16 || !n->partitions[p].caught_up))
            digest_send(n, p, live, 0);
    n->digest_next++;
}

/* How tombstones are forgotten. An owner whose digest is ours, at a promise floor not below ours, has no
 * value of a key that has none here, and accepts none up to the floor any more. No later change undoes
 * that: what is stored above the floor, here or there, is above these tombstones; and a tombstone that
 * comes later, at or below the floor, starts the agreement over (entry_store). So owners may agree one
 * after the other, while keys change. When all have, nobody needs the tombstones up to the floor (R19,
 * R20).
 *
 * An equal digest ends the need for a list, whenever it was sent. To count as compared it must have been sent
 * since this node's lease began: an older one says nothing of what was written while this node was cut off. */
static void on_digest(struct node *n, struct peer *from, const struct message *m)
{
    int index = member_index(n->view, from->id);
    if (!n->stable || index < 0 || m->partition >= PARTITIONS)
        return;
    struct partition *p = &n->partitions[m->partition];
    uint64_t bit = UINT64_C(1) << index;
    promise_floor_raise(n, m->partition, m->ballot);
    if (m->round_id)
        digest_send(n, m->partition, bit, m->round_id);
    if (m->digest == p->digest) {
        p->to_sync &= ~bit;
        if (m->write_id == n->lease_clock) /* else it may have been sent before the lease */
            partition_compared(n, m->partition, bit);
        if (ballot_compare(m->ballot, p->promise_floor) >= 0 || !RULE(19))
            p->agreed |= bit;
        return;
    }
    if (p->changed_at + 2 * SECOND < n->now || !p->caught_up || node_random(n) % 8 == 0)
        p->to_sync |= bit; /* one that is being written differs each time: now and then will do */
}

/* Sweeps a partition's entries: mends what is damaged, deletes what expired, and folds old promises and
 * the ballots of old tombstones into the promise floor. The owners have to agree anew on each floor, so
 * it rises when they have. While one is away it rises late, for promises alone: these take memory.
 *
 * The life of a tombstone. A and B have it, at ballot 5; C missed it and has the value, at 3. The digests of A
 * and C differ, so C pulls the tombstone. Now all digests are equal, and the floors as well: agreed. After 70 s
 * the sweep of A raises A's promise floor to 5, and the digest that A sends next takes the floor to B and C. When
 * both have sent theirs at 5, A's gc floor is 5, and cleaning leaves the tombstone out. B and C do the same,
 * each when it knows as much. Had C been away, it would not have agreed, and the tombstone would wait for it. */
static void partition_sweep(struct node *n, uint16_t partition)
{
    struct partition *p = &n->partitions[partition];
    struct ballot floor = p->promise_floor;
    bool agreed = !(partition_owners(n, partition) & ~self_bit(n) & ~p->agreed);
    bool first = first_live_owner(n, partition) == self_bit(n);
    bool folds = n->stable && log_has_room(n, ROOM_FLOORS); /* as in promise_floor_raise */
    bool late = p->promise_floor.time + 10 * RESULTS_KEPT_TIME < n->clock;
    if (agreed && n->stable)
        p->gc_floor = p->promise_floor;
    for (uint32_t i = 0; i < p->count; i++) {
        struct entry *e = p->entries[i];
        if (e->flags & FLAG_DAMAGED)
            pull_damaged(n, partition, e);
        bool record = e->flags & FLAG_RECORD;
        struct ballot most = register_promised(n, partition, e);
        if (is_live(e->flags)) {
            if (first && e->expiry && e->expiry <= node_latest_time(n))
                repair_key(n, partition, e->key, e->key_bytes);
        } else if (folds && is_old(n, most) && (agreed || (late && !record))) {
            floor = ballot_max(floor, most);
            entry_promise(e, e->accepted);
            if (!record)
                entry_forget(n, p, p->entries[i--]);
        }
    }
    promise_floor_raise(n, partition, floor);
    watches_notify(n, partition, NULL);
}

/* === 16 Cleaning ================================================================================
 *
 * The log is circular: its oldest part is cleaned first. What is live there is appended again; once the
 * copies are durable, `first` moves past it, and the disk removes the files below. The index knows what
 * is live and where, so cleaning reads the index and not the log: damage hides nothing. When an entry of
 * the log is cleaned, nothing older of its key is left: then a tombstone may be forgotten, and a drop.
 *
 *   first        durable part                      cleaned                                 end
 *   |            what is live here is copied ...   |                ... to the end         |
 *
 *   at rest      cleaned = 0           clean_begin, when more than half of the log is garbage
 *   copying      cleaned set           clean_tick, a step at a time: clean_next is the partition
 *   copied       cleaned_until set     when the log is durable up to there, first = cleaned: at rest
 *
 * The boundary. No live record stands below `first`, at any time: `first` moves only when each copy is on disk.
 * A crash before that leaves a record in two places, at one ballot, and replay takes the later one. A crash
 * after it leaves the copy alone. What is appended meanwhile stands behind `cleaned`, and is not looked at.
 *
 * Why a tombstone is forgotten here and nowhere else. Older values of its key may stand below it in the log.
 * If it were gone from the log before them, a restart would bring one of them back. Here all go at once, when
 * `first` moves; a restart before that finds the tombstone, and forgets it another time.
 *
 * A step is bounded in bytes that it copies, and in entries that it looks at, so that requests do not wait
 * for it. The promise floors, the views and the clock bound are in the log too: they are appended again when
 * they stand below `cleaned`. Cleaning needs room itself, and the other appends leave it that (ROOM_CLEANING):
 * otherwise a full log could never be cleaned.
 */

/* Appends an entry's record again, or forgets a tombstone that nobody needs (R20). A damaged record leaves
 * a mark: it counts as damaged at its ballot until another owner sends it, and if none ever does, cleaning
 * goes on. False: its bytes, or room, are not there yet.
 *
 * A tombstone with a promise above it stays, because the promise would go with its entry (R1). The sweep folds
 * old promises into the promise floor, which then stands for them: another cleaning takes the tombstone. */
static bool entry_clean(struct node *n, uint16_t partition, struct entry *e)
{
    struct partition *p = &n->partitions[partition];
    if (e->flags & FLAG_TOMBSTONE && n->stable && partition != VIEWS_PARTITION &&
        (ballot_compare(e->accepted, p->gc_floor) <= 0 || !RULE(20)) && is_old(n, e->accepted) &&
        !e->promised) {
        entry_forget(n, p, e);
        return true;
    }
    if (!log_has_room(n, e->record_bytes + ROOM_CLEANING))
        return false;
    const struct message *record = record_read(n, partition, e, 0, e->value_bytes);
    if (record) {
        e->lsn = log_append(n, record, NULL);
    } else if (e->flags & FLAG_DAMAGED) {
        struct message mark = {.type = M_DAMAGED, .partition = partition, .ballot = e->accepted};
        mark.flags = e->flags & (FLAG_RECORD | FLAG_TOMBSTONE);
        mark.key_bytes = e->key_bytes;
        entry_store(n, p, e, &mark, log_append(n, &mark, &(struct body){.key = e->key}));
        e->flags |= FLAG_DAMAGED;
    }
    return record || e->flags & FLAG_DAMAGED;
}

/* Cleans a partition while the log ends before `end`. False: that was not yet all. */
static bool partition_clean(struct node *n, uint16_t partition, uint64_t end)
{
    struct partition *p = &n->partitions[partition];
    bool done = true;
    for (uint32_t i = p->count; i-- > 0 && log_end(n) < end;) {
        struct entry *e = p->entries[i];
        if (e->flags & FLAG_RECORD && e->lsn < n->log.cleaned)
            done &= entry_clean(n, partition, e);
    }
    done = done && log_has_room(n, ROOM_CLEANING);
    if (done && p->promise_floor.time && p->promise_floor_lsn < n->log.cleaned)
        promise_floor_log(n, partition);
    return done && log_end(n) < end;
}

/* Takes up the oldest eighth of the log or, where the disk is full, what there is room for. An eighth,
 * because each time the whole index is looked at for what is live there: eight times for each time that the
 * log is written anew. It ends where a batch begins, as a log can only begin there. */
static void clean_begin(struct node *n)
{
    struct log *log = &n->log;
    uint64_t bytes = log_end(n) - log->first, *marks = (uint64_t *)log->marks.data;
    uint64_t least = log->first + max_u64(CLEAN_STEP_BYTES, log->full ? 0 : bytes / 8);
    size_t count = log->marks.count / sizeof *marks, i, gone = 0;
    uint64_t most = log->full
                        ? log->live_bytes + CLEAN_STEP_BYTES /* while there is room for that */
                        : 2 * log->live_bytes + CLEAN_SLACK_BYTES;
    if (bytes < most)
        return;
    for (i = 0; i < count && marks[i] < least; i++)
        gone += marks[i] <= log->first;
    if (i == count)
        return;
    if (!log->cleaned || marks[i] < log->cleaned) {
        log->cleaned = marks[i];
        log->clean_next = 0;
    }
    log->marks.count = (count - gone) * sizeof *marks;
    memmove(marks, marks + gone, log->marks.count);
}

/* One step. Whatever the log must say besides records is appended behind the copies and before
 * `cleaned_until`: a restart that reads the log from `cleaned` on still finds a clock bound, and all views.
 * Without the bound, the node would forget its promises (R2). */
static void clean_tick(struct node *n)
{
    struct log *log = &n->log;
    if (log->cleaned_until && log->durable >= log->cleaned_until) {
        log->first = log->cleaned;
        log->cleaned = log->cleaned_until = 0;
        clock_bound_log(n); /* its batch says so, and makes room: there may be none for another */
    }
    if (!log->cleaned_until && (!log->cleaned || log->full))
        clean_begin(n);
    if (!log->cleaned || log->cleaned_until)
        return;
    uint64_t end = log_end(n) + CLEAN_STEP_BYTES, seen_bytes = 0;
    while (log->clean_next <= VIEWS_PARTITION && seen_bytes < CLEAN_STEP_BYTES) {
        if (!partition_clean(n, log->clean_next, end))
            return;
        seen_bytes += n->partitions[log->clean_next++].count * sizeof(struct entry);
    }
    bool views = n->views_lsn < log->cleaned;
    if (log->clean_next <= VIEWS_PARTITION ||
        !log_has_room(n, ROOM_CLEANING + (views ? n->views_bytes : 0)))
        return;
    clock_bound_log(n);
    if (views)
        views_log(n);
    log->cleaned_until = log_end(n);
}

/* === 17 Recovery ================================================================================
 *
 * A node that starts reads its log. Damage is told apart from what was never durable (chapter 5). Where
 * the log cannot be trusted, the node rejoins under a new id.
 *
 *   what stands there                          what it is
 *   a batch whose checksum holds               replayed; it is the newest, if none follows
 *   damage, and no batch behind it             a torn tail: the log ends before it
 *   damage, and the next batch behind it       was durable once: its messages are replayed one by one; a value
 *                                              that fails its checksum is a damaged record of its key
 *   a hole, and a batch behind it              corruption: false; or with --sync none a torn tail (torn)
 *   no batch where the newest one says that    the beginning of the log is missing: false
 *   the log begins
 *
 * An example. Batch 3 is written only when batch 2 is on disk. If 3 is damaged and nothing follows, the power
 * failed while it was written: nobody was told of it, so the log may end before it. If 2 is damaged and 3 is
 * whole, 2 was on disk, and clients and nodes were told of it.
 *
 * Why a node with a hole in its log does not go on with the rest. A write was acknowledged by A and B, and is
 * not at C yet. If A loses it and keeps its id, A and C are a quorum that knows nothing of it, and the next
 * write takes its place unseen. The same holds for a promise. Under a new id A is another node. The old owners
 * are A, B and C still, and of these only B and C can reply: so each quorum has B, which has the write.
 *
 * The newest batch may have been written and not synced. So it counts as in flight, and is written once
 * more where it stands, before anything that it holds is shown (R3).
 */

/* An entry of the log, at start. `damaged`: it is a record whose value is. At equal ballots the later entry
 * counts, because it is the copy that cleaning made: the earlier one may be cut away next. Promises of single
 * keys are not in the log; node_begin stands in for them. */
static void node_replay(struct node *n, const struct message *m, uint64_t lsn, bool damaged)
{
    struct partition *p = &n->partitions[m->partition];
    struct body body = message_body(m);
    switch (m->type) {
    case M_CLOCK_BOUND:
        n->clock_bound = max_u64(n->clock_bound, m->clock_bound);
        break;
    case M_PROMISE_FLOOR:
        if (ballot_compare(m->ballot, p->promise_floor) >= 0) {
            p->promise_floor = m->ballot;
            p->promise_floor_lsn = lsn;
        }
        break;
    case M_VIEW:
        views_keep(n, body.value); /* aligned, as view_log appended it: alone */
        break;
    case M_DROP:
        if (RULE(17))
            partition_drop(n, p);
        break;
    case M_ACCEPT:
    case M_DAMAGED: {
        struct entry *e = entry_make(p, body.key, m->key_bytes);
        if (!(e->flags & FLAG_RECORD) || ballot_compare(m->ballot, e->accepted) >= 0) {
            entry_store(n, p, e, m, lsn);
            e->flags |= damaged || m->type == M_DAMAGED ? FLAG_DAMAGED : 0;
        }
        break;
    }
    }
}

/* The part of the log that is read at start, many bytes at a time. What window_at returns is valid until its
 * next call, which may read other bytes into the same place. */
struct window {
    struct bytes bytes;
    uint64_t lsn, end; /* of its first byte; of the log's files */
};

static const void *window_at(struct node *n, struct window *w, uint64_t lsn, uint64_t bytes)
{
    if (lsn + bytes > w->lsn + w->bytes.count) {
        w->bytes.count = 0;
        w->lsn = lsn;
        bytes = min_u64(w->end - lsn, max_u64(bytes, 1 << 20));
        n->hooks->log_read(n, lsn, bytes_extend(&w->bytes, bytes), bytes, true);
    }
    return w->bytes.data + (lsn - w->lsn);
}

/* Replays a batch message by message. False: it is damaged, and what is in it cannot be told apart. A
 * value alone may be damaged, of a record: others have it, too. */
static bool batch_replay(struct node *n, const struct log_header *h, bool sound)
{
    for (size_t i = sizeof *h; i < h->bytes;) {
        const struct message *m = message_parse((const uint8_t *)h + i, h->bytes - i);
        assert(m || !sound); /* the batch's checksum says that we wrote it */
        if (!m || (!sound && (uint32_t)m->check != message_check(m, false)))
            return false;
        bool damaged = !sound && m->check != message_check(m, true);
        if (damaged && m->type != M_ACCEPT)
            return false;
        node_replay(n, m, h->lsn + i, damaged);
        i += m->bytes;
    }
    return true;
}

/* Whether a batch whose checksum fails was durable once: the next one was written behind it. Where a log
 * begins it cannot be told whose it is. `bytes`: so many are there. Of a damaged head nothing is believed
 * but what the next batch's head confirms: the length, the place and the id. */
static bool batch_was_durable(const struct node *n, const struct log_header *h, size_t bytes)
{
    if (h->magic != LOG_MAGIC || h->bytes < sizeof *h || h->bytes % 8 ||
        h->bytes + sizeof *h > bytes)
        return false;
    const struct log_header *next = (const void *)((const uint8_t *)h + h->bytes);
    return next->magic == LOG_MAGIC && next->lsn == h->lsn + h->bytes && next->id == n->id &&
           h->id == n->id && next->first < h->lsn && h->first < h->lsn && n->log.flight.count;
}

/* Takes a batch into the node. It may not be durable: it is in flight, to be written again where it stands.
 * False: it is damaged, or stands behind a hole; the log's end stays where that begins. */
static bool batch_recover(struct node *n, const struct log_header *h, bool sound)
{
    struct log *log = &n->log;
    bool begins = h->first == h->lsn, follows = log->flight.count;
    n->id = n->self_peer->id = h->id;
    for (unsigned p = 0; begins && p <= VIEWS_PARTITION; p++)
        partition_drop(n, &n->partitions[p]); /* R17 */
    n->clock_bound = begins ? 0 : n->clock_bound;
    if ((follows && h->lsn != log_end(n)) || !batch_replay(n, h, sound)) {
        log->torn = follows;
        return false;
    }
    log->first = follows ? log->first : h->lsn;
    log->durable = h->lsn;
    log->writing = true;
    bytes_set(&log->flight, h, h->bytes);
    log_mark(log, h->lsn);
    return true;
}

/* All that follows from what the log has. A member's promises are forgotten, so every key of the partitions
 * that it owns counts as promised up to the clock bound (R2). So does every register of a view. That costs
 * little: the clock starts at the bound and goes out with each frame, so the ballots that follow are above it.
 * A node that is no member any more may have promised as well. One that never was a member never did. */
static void node_begin(struct node *n)
{
    n->clock_bound_durable = n->log.flight_clock_bound = n->clock = n->clock_bound;
    if (n->views_count) {
        n->view = n->views[n->views_count - 1];
        view_apply(n);
    }
    for (size_t e = 0; n->self < 0 && e < n->views_count; e++)
        n->gone |= member_index(n->views[e], n->id) >= 0;
    bool promised = n->self >= 0 || n->gone; /* else it was never a member */
    n->clock_bound_found = promised ? n->clock_bound : 0;
    for (uint16_t p = 0; p <= VIEWS_PARTITION; p++) {
        struct partition *q = &n->partitions[p];
        if (partition_is_ours(n, p) || p == VIEWS_PARTITION)
            q->promised_until = n->clock_bound_found;
        for (uint32_t i = 0; i < q->count; i++)
            if (q->entries[i]->flags & FLAG_DAMAGED)
                log_line(LEVEL_WARN, "damaged record", "lsn=%" PRIu64, q->entries[i]->lsn);
    }
    if (n->clock_bound_found > n->time + CLOCK_AHEAD_MAX)
        n->time = n->clock_bound_found; /* the wall clock went back; others still go by that time */
    n->view_lsn = n->start = log_end(n);
}

/* Reads the log, whose files hold the bytes from `start` to `end`. False: it is damaged below what was
 * durable once (chapter 5). */
static bool node_recover(struct node *n, uint64_t start, uint64_t end)
{
    struct window window = {.lsn = start, .end = end};
    uint64_t first = start, bytes;
    bool whole = true;
    n->log.first = n->log.durable = start;
    for (uint64_t at = start; whole && at + sizeof(struct log_header) <= end; at += bytes) {
        const struct log_header *h = window_at(n, &window, at, sizeof *h);
        bytes = h->lsn == at ? min_u64(h->bytes, end - at) : 0;
        /* Of another version: it counts as damage, as it must not be written over. */
        whole = bytes == 0 || h->magic == LOG_MAGIC || h->magic << 8 != LOG_MAGIC << 8;
        uint64_t seen = bytes ? min_u64(bytes + sizeof *h, end - at) : 0;
        h = window_at(n, &window, at, seen);
        bool sound = log_batch((const uint8_t *)h, bytes, at);
        if (sound || batch_was_durable(n, h, seen)) {
            first = sound ? h->first : first;
            whole = batch_recover(n, h, sound);
        } else {
            bytes = 8; /* it may begin at the next multiple */
        }
    }
    bytes_free(&window.bytes);
    node_begin(n);
    return whole && n->log.first <= first;
}

/* The log of a node that rejoins under a new id, at `lsn`. Of the old one it keeps only the views (R17),
 * up to the first that is not there; the others send the rest. They tell it where the members are and which
 * cluster this is, so it needs no --join. Under the old id it could promise again what it has forgotten. */
static const struct bytes *node_rejoin(struct node *n, const struct node *before, uint64_t lsn)
{
    n->log.first = n->log.durable = lsn;
    for (size_t e = 0; e < before->views_count && before->views[e]; e++)
        view_log(n, before->views[e]);
    clock_bound_raise(n);
    return log_flush(n);
}

/* A node before its first view. `random` seeds all that is left to chance. Owned by the caller. */
static struct node *node_new(uint64_t id, uint64_t random, const char *address,
                             const struct hooks *hooks, void *context)
{
    struct node *n = allocate(sizeof *n);
    n->id = id;
    n->random = random | 1;
    n->boot = XXH3_64bits(&random, sizeof random) | 1;
    n->hooks = hooks;
    n->context = context;
    n->self = -1;
    n->lease = 2 * SECOND;
    n->evict_after = 60 * SECOND;
    STAILQ_INIT(&n->listings);
    STAILQ_INIT(&n->large);
    n->self_peer = peer_make(n, id, address);
    n->self_peer->weight = 1;
    return n;
}

/* Makes a new cluster of this node alone. If it has data, that goes with it, and so do the views before,
 * under the new name, so that whoever joins can follow them; the old cluster's nodes hear nothing of it,
 * nor it of them. This view is in no register, and nobody voted for it: a new name makes that safe, because
 * frames of another cluster are ignored (R6). */
static void node_bootstrap(struct node *n, uint32_t replicas)
{
    const struct peer *self = n->self_peer;
    struct view_draft alone = {{node_epoch(n) + 1, node_random(n), replicas, 1},
                               {{.id = n->id, .weight = self->weight, .state = MEMBER_UP}}};
    memcpy(alone.members[0].address, self->address, sizeof self->address);
    memcpy(alone.members[0].zone, self->zone, sizeof self->zone);
    for (size_t e = 0; e < n->views_count; e++)
        n->views[e]->cluster = alone.view.cluster;
    view_adopt(n, &alone.view);
    views_log(n);
    n->view_lsn = log_end(n);
    n->begin_after = 0;
    log_line(LEVEL_WARN, "this node is a new cluster", "cluster=%016" PRIx64, n->cluster);
}

/* === Part IV: what clients want ==================================================================
 *
 * Requests, waits and listings; and the core's edge.
 */

/* === 18 Requests ================================================================================
 *
 * Where what a client asks for comes in, and where the reply goes out.
 */

static void listing_read(struct node *n, const struct request *q, const struct message *result);

static void request_reply(struct node *n, struct request *q, const struct message *reply)
{
    if (q->m->function == DO_REPAIR)
        n->repairs--;
    else if (q->m->partition == VIEWS_PARTITION)
        view_decided(n, reply);
    else if (q->listing)
        listing_read(n, q, reply);
    else
        n->hooks->reply(n, q->client, reply);
    n->large_bytes -= q->large_bytes;
    request_free(q);
}

/* A request begins: as a fast read, a one-write, or in the queue of its key. */
static void request_admit(struct node *n, struct request *q)
{
    const struct message *m = q->m;
    bool one = m->flags & FLAG_ONE;
    if (!n->has_lease && !one && !(m->flags & FLAG_WATCH)) /* the lease may come back at once */
        q->deadline = min_u64(q->deadline, n->lease_at + LEASE_GRACE);
    bool over = m->partition == VIEWS_PARTITION && m->ballot.epoch != node_epoch(n);
    if (n->self < 0 || q->deadline < n->now || over) {
        request_fail(n, q, 503);
        return;
    }
    struct round *r;
    if (m->function == DO_READ && q->tries < READ_TRIES) {
        r = round_make(n, q, one ? READ_ONE : READ);
        round_ask(n, r, r->state);
    } else if (is_write(q) && one) {
        round_decide(n, round_make(n, q, ACCEPT_ONE));
    } else if ((r = round_by_key(n, m))) {
        STAILQ_INSERT_TAIL(&r->queued, q, next);
    } else {
        round_begin(n, round_make(n, q, REST));
    }
}

/* Admits writes of large values while those in flight are not too many: more than the links and
 * the disks take within a step's time would all be sent again, and none of them would end. */
static void larges_admit(struct node *n)
{
    struct request *q;
    while ((q = STAILQ_FIRST(&n->large)) &&
           (!n->large_bytes || n->large_bytes + q->m->value_bytes <= LARGE_BYTES_MAX)) {
        requests_pop(&n->large);
        q->large_bytes = q->m->value_bytes;
        n->large_bytes += q->large_bytes;
        request_admit(n, q);
    }
}

static struct request *request_make(struct node *n, const struct message *m,
                                    const struct body *body)
{
    struct request *q = allocate(sizeof *q);
    q->m = message_append(&q->copy, m, body);
    q->allowed = m->value_bytes / BYTES_PER_US;
    q->deadline = n->now + REQUEST_TIME + 4 * q->allowed;
    return q;
}

/* When a write counts as issued, for R11. `key_time`: the Unix time that its Idempotency-Key begins
 * with, by its client's clock; 0: none. What has to hold is the second invariant of Part I, Repeats:
 *
 *    issued_at(any try of a write) <= recorded(the result of any earlier try)
 *
 * For if the earlier try was applied, and its result is listed no more, then results are lost until
 * `recorded` or later, so until issued_at or later: unknown.
 *
 * - A first try that comes within KEY_TIME_SLACK of its key's time, or before, counts as issued when
 *   it comes: no clock of a client makes a new write unknown, and how long results are kept goes by
 *   arrival. (FIRST_TRY_LEAD: a one-write by a node whose clock is 50 ms ahead makes the record say
 *   that results are lost until 50 ms from now. A PUT that comes here next is new all the same: until
 *   something of it was sent, results lost up to 100 ms after its time of issue cannot be its own.)
 * - One that comes later may have been overtaken by its repeat, and counts as one.
 * - A repeat counts as issued KEY_TIME_MARGIN before its key's time: the first try did not come earlier
 *   than that, as long as its client's clock is not ahead by more than the margin.
 * - Of a repeat without a time, or of one that is further ahead, nobody knows when its first try
 *   came: 0. Then the record must list its result, or no result may ever have been lost. */
static void write_issued_at(struct node *n, struct message *m, uint64_t key_time)
{
    bool late = key_time && key_time + KEY_TIME_SLACK < n->wall;
    m->flags |= late || m->flags & FLAG_REPEAT ? 0 : FLAG_FIRST;
    if (m->flags & FLAG_FIRST)
        m->issued_at = clock_tick(n);
    else if (!key_time || key_time > n->time + KEY_TIME_MARGIN)
        m->issued_at = 0;
    else
        m->issued_at = key_time - KEY_TIME_MARGIN;
}

/* A client's request. `m`: key, function, condition, and for a write its id and when it was
 * issued; copied. The reply comes by the hook, maybe before this returns. `wait`: for FLAG_WATCH,
 * microseconds. */
static void node_request(struct node *n, void *client, const struct message *m,
                         const struct body *body, uint64_t wait)
{
    struct request *q = request_make(n, m, body);
    q->client = client;
    q->waits_until = n->now + wait;
    n->requests++;
    if (!is_write(q)) /* what a quorum has is the latest: no more owners are needed */
        q->m->flags &= (uint8_t)~FLAG_ALL;
    uint64_t keep = m->function == DO_DELETE ? ROOM_RECORDS : ROOM_WRITES;
    if (is_write(q) && n->log.full && !log_has_room(n, q->m->bytes + keep))
        request_fail(n, q, 507);
    else if (is_write(q) && m->flags & FLAG_ALL &&
             partition_owners(n, m->partition) & ~live_members(n))
        request_fail(n, q, 503); /* it would be applied, and could not be acknowledged */
    else if (m->value_bytes > BULK_BYTES)
        STAILQ_INSERT_TAIL(&n->large, q, next);
    else
        request_admit(n, q);
}

/* A request of the node itself: of a view's register, or a repair. */
static void node_request_own(struct node *n, const struct message *head, const struct body *body)
{
    struct message m = *head;
    m.flags = FLAG_WHOLE | FLAG_FRESH;
    m.write_id = node_random(n);
    m.issued_at = clock_tick(n);
    m.ballot.epoch = node_epoch(n);
    request_admit(n, request_make(n, &m, body));
}

static void repair_key(struct node *n, uint16_t partition, const void *key, uint16_t key_bytes)
{
    struct message m = {.partition = partition, .function = DO_REPAIR, .key_bytes = key_bytes};
    if (n->repairs >= REPAIRS_MAX)
        return;
    n->repairs++;
    n->counters.repairs_pull++;
    node_request_own(n, &m, &(struct body){.key = key});
}

/* A new view: everything begins again from prepare (R6), because a quorum that was counted in the
 * view before may be none in this one. A request of that view's own register is over. */
static void rounds_restart(struct node *n)
{
    struct requests all = STAILQ_HEAD_INITIALIZER(all);
    for (int i = 0; i < ROUND_BUCKETS; i++)
        for (struct round *r; (r = LIST_FIRST(&n->by_id[i]));)
            round_end(r, &all);
    requests_admit(n, &all);
}

/* === 19 Waits ===================================================================================
 *
 * A read may wait until its key changes. Each owner is asked to report the next change, once; the read
 * begins again then.
 */

/* Whether the client of a GET with wait waits on, because the record is as it knows it. Then its
 * request is parked: each owner is asked to report the next change, and what it has now, if that
 * changed meanwhile. A quorum holds the record by now; so an owner of each quorum that accepts
 * another one was asked, and has not reported yet. If its report is lost, the next read, which is
 * due soon, finds the change. */
static bool request_waits(struct node *n, struct request *q, const struct message *m)
{
    bool exists = is_live(m->flags);
    bool same = q->m->condition == IF_MATCH ? condition_holds(m, q->m) : !exists;
    if (!same || q->waits_until <= n->now ||
        (n->hooks->client_gone && n->hooks->client_gone(n, q->client)))
        return false;
    struct round *r = round_make(n, q, WATCH);
    r->ballot = m->ballot;
    round_message(n, r, partition_owners(n, r->partition),
                  (struct message){.type = M_READ, .flags = FLAG_WATCH});
    uint64_t time = node_latest_time(n), expiry = exists && m->expiry ? m->expiry : UINT64_MAX;
    r->due = n->now + min_u64(WATCH_TIME / 2, expiry - min_u64(expiry, time));
    r->due = min_u64(r->due, q->waits_until);
    q->deadline = r->due + REQUEST_TIME; /* then it is read again */
    q->tries = 0;
    return true;
}

/* === 20 Listings ================================================================================
 *
 * The keys of a prefix lie on all nodes, ordered by their hashes. To list them in byte order, every
 * member is asked for the next keys of its partitions above a given key, and the lists are merged. This
 * goes in pages of some thousand keys, so that no turn of the loop takes long and no list takes much
 * memory, and the client gets the listing page by page.
 *
 * A list with more to come says nothing of the keys above its last one. So a page ends at the lowest of
 * these last keys: up to there, every list is complete.
 *
 * A key is reported as a quorum of its owners has it (R40). A list shows what one owner has accepted,
 * which need not be chosen. If a quorum lists a key at one ballot, that record is chosen, as with a read
 * (R9). A key on which they do not agree, or which has expired, is read as by GET. The highest of a
 * majority's records will not do: if only a minority holds it, later reads may not find it; and if it is
 * a tombstone, a key would be left out that is there all the time. A page needs lists of a quorum of
 * every partition's owners: a key that is in none of them was not there when they were made.
 *
 * With consistency=one the lists that come in time are enough, and what they show is reported. A listing
 * in progress holds the lists of all members, so there are only few at a time; the others wait.
 */

struct listing {
    STAILQ_ENTRY(listing) next; /* in the order in which they came */
    void *client;
    struct bytes prefix, after; /* keys; the next page begins above `after` */
    uint64_t left;              /* keys that may still be reported */
    uint64_t page_id; /* of the lists that were asked for, 0: they came, or its turn did not */
    uint64_t due, deadline; /* due is 0 until its turn came */
    uint64_t listed_by;     /* members whose lists came */
    struct bytes lists;     /* struct listed: all of these lists, one after another */
    struct bytes keys; /* struct listed *: one entry of them for each key of the page, sorted */
    uint64_t reads;    /* in progress: each marks its key's entry with what it finds */
    bool more, failed; /* more: there are keys above `after` */
    bool one;          /* consistency=one: the lists that come in time are enough */
};

static void listing_ask(struct node *n, struct listing *l)
{
    l->listed_by = l->lists.count = l->keys.count = 0;
    l->due = n->now + 5 * STEP_TIME;
    struct message m = {.type = M_LIST, .flags = FLAG_WHOLE, .partition = VIEWS_PARTITION};
    m.round_id = l->page_id = clock_tick(n);
    m.keys_max = LISTING_PAGE_KEYS;
    m.key_bytes = (uint16_t)l->after.count;
    m.value_bytes = (uint32_t)l->prefix.count;
    messages_send(n, ~UINT64_C(0), 0, &m,
                  &(struct body){.key = l->after.data, .value = l->prefix.data});
}

/* Sends the client a page; `status` 100: there is more of the listing to come. */
static void listing_send(struct node *n, struct listing *l, uint16_t status)
{
    struct bytes page = {0};
    struct listed **keys = (struct listed **)l->keys.data;
    for (size_t i = 0; i < l->keys.count / sizeof *keys; i++)
        if (is_live(keys[i]->flags))
            listed_append(&page, keys[i], keys[i]->key);
    struct message m = {.status = status, .flags = FLAG_WHOLE};
    m.flags |= l->more ? FLAG_MORE : 0;
    m.value_bytes = (uint32_t)page.count;
    bytes_clear(&n->scratch);
    n->hooks->reply(n, l->client,
                    message_append(&n->scratch, &m, &(struct body){.value = page.data}));
    bytes_free(&page);
}

static void listing_free(struct node *n, struct listing *l)
{
    STAILQ_REMOVE(&n->listings, l, listing, next);
    bytes_free(&l->prefix);
    bytes_free(&l->after);
    bytes_free(&l->lists);
    bytes_free(&l->keys);
    free(l);
}

/* When no read of the page is in progress any more, it is sent. Then the next one is asked for, unless
 * this was the last, or a read failed: a listing that leaves out a key would be wrong. */
static void listing_go_on(struct node *n, struct listing *l)
{
    bool ends = l->failed || !l->more || !l->left;
    if (l->reads)
        return;
    listing_send(n, l, l->failed ? 503 : ends ? 200 : 100);
    if (ends)
        listing_free(n, l);
    else
        listing_ask(n, l);
}

/* Takes a key into the page, or reads it first (R40). `e`: its highest ballot in the lists; `same`: the
 * members that list it at that ballot. */
static void listing_add(struct node *n, struct listing *l, struct listed *e, uint64_t same)
{
    uint16_t partition = key_partition(e->key, e->key_bytes);
    bool agreed = quorum(n, partition, same) || !RULE(40);
    bool expired = e->expiry && e->expiry <= node_latest_time(n);
    if (l->one && expired)
        e->flags |= FLAG_TOMBSTONE;
    if (l->one || (agreed && !expired)) {
        l->left -= is_live(e->flags);
        return;
    }
    struct message m = {.partition = partition, .function = DO_READ, .key_bytes = e->key_bytes};
    struct request *q = request_make(n, &m, &(struct body){.key = e->key});
    q->listing = l;
    q->listed = e;
    l->reads++;
    l->left--;
    request_admit(n, q);
}

/* A key that the page needed was read. */
static void listing_read(struct node *n, const struct request *q, const struct message *result)
{
    struct listing *l = q->listing;
    assert(l->reads > 0 && !l->page_id);
    struct listed *e = q->listed;
    bool found = result->status == 200;
    e->flags = found ? FLAG_RECORD : 0;
    e->write_id = result->write_id;
    e->modified = result->modified;
    e->expiry = result->expiry;
    e->value_bytes = (uint32_t)result->total_bytes;
    l->failed |= !found && result->status != 404;
    l->left += !found;
    l->reads--;
    listing_go_on(n, l);
}

static int listed_compare(const struct listed *x, const struct listed *y)
{
    return key_compare(x->key, x->key_bytes, y->key, y->key_bytes);
}

/* For qsort: by key; of one key, the highest ballot first. */
static int listed_order(const void *a, const void *b)
{
    const struct listed *x = *(struct listed *const *)a, *y = *(struct listed *const *)b;
    int order = listed_compare(x, y);
    return order ? order : ballot_compare(y->ballot, x->ballot);
}

/* Makes a page of the lists. It ends with the first key that is the last of a list with more to come,
 * or when as many keys are reported as the client asked for. */
static void listing_merge(struct node *n, struct listing *l)
{
    assert(!l->reads && !l->keys.count);
    struct listed *e;
    for (size_t at = 0; (e = list_next(&l->lists, &at));)
        bytes_append(&l->keys, &e, sizeof e);
    struct listed **all = (struct listed **)l->keys.data;
    size_t count = l->keys.count / sizeof e, i = 0, keys = 0;
    if (count)
        qsort(all, count, sizeof e, listed_order);
    bool ends = false;
    l->page_id = 0;
    l->reads = 1; /* so that the page is not sent before all of it is there */
    while (i < count && l->left && !ends) {
        uint64_t same = 0;
        e = all[keys++] = all[i];
        for (; i < count && listed_compare(all[i], e) == 0; i++) {
            same |= (uint64_t)ballot_equal(all[i]->ballot, e->ballot) << all[i]->member;
            ends |= all[i]->flags & FLAG_MORE;
        }
        listing_add(n, l, e, same);
    }
    l->more = ends || i < count;
    l->keys.count = keys * sizeof e;
    if (keys)
        bytes_set(&l->after, e->key, e->key_bytes);
    l->reads--;
    listing_go_on(n, l);
}

/* A member's list came. If there is more behind it, its last entry is marked with FLAG_MORE. */
static void listing_listed(struct node *n, const struct peer *from, const struct message *m)
{
    struct listing *l = STAILQ_FIRST(&n->listings);
    while (l && (!l->page_id || l->page_id != m->round_id))
        l = STAILQ_NEXT(l, next);
    int index = member_index(n->view, from->id);
    if (!l || index < 0 || l->listed_by >> index & 1)
        return;
    struct bytes list = message_value(m);
    struct listed *e, *last = NULL;
    size_t at = l->lists.count;
    bytes_append(&l->lists, list.data, list.count);
    while ((e = list_next(&l->lists, &at))) {
        e->flags &= FLAG_RECORD | FLAG_TOMBSTONE;
        e->member = (uint8_t)index;
        last = !last || listed_compare(e, last) > 0 ? e : last;
    }
    l->lists.count = at; /* it is a peer's: part of an entry may stand behind the last one */
    if (last)
        last->flags |= m->flags & FLAG_MORE;
    l->due = n->now + 5 * STEP_TIME;
    l->listed_by |= UINT64_C(1) << index;
    for (uint16_t p = 0; p < PARTITIONS; p++)
        if (!quorum(n, p, l->listed_by))
            return;
    listing_merge(n, l);
}

/* Begins the listings whose turn it is. If lists do not come, as when the view changed, all are asked for
 * again: owners and quorums of two views must not be mixed. */
static void listings_tick(struct node *n)
{
    unsigned turn = 0;
    for (struct listing *l = STAILQ_FIRST(&n->listings), *next; l; l = next, turn++) {
        next = STAILQ_NEXT(l, next);
        bool begins = !l->due && turn < LISTINGS_MAX, late = l->due && l->due <= n->now;
        bool unable = n->self < 0 || (!n->has_lease && !l->one);
        if (l->due && !l->page_id)
            continue; /* its reads have deadlines of their own */
        if (begins && n->hooks->client_gone)
            unable |= n->hooks->client_gone(n, l->client);
        l->failed = unable || l->deadline <= n->now;
        if (l->failed)
            listing_go_on(n, l);
        else if (late && l->one && l->listed_by)
            listing_merge(n, l);
        else if (begins || late)
            listing_ask(n, l);
    }
}

/* Lists the keys above `after` that begin with `prefix`, at most `limit`, in byte order. The reply comes
 * in parts, by the hook: each one's value is a list of struct listed, and all but the last have status
 * 100. FLAG_MORE in the last one: there are more keys than were asked for. */
static void node_list(struct node *n, void *client, struct bytes prefix, struct bytes after,
                      uint64_t limit, bool one)
{
    struct listing *l = allocate(sizeof *l);
    STAILQ_INSERT_TAIL(&n->listings, l, next);
    l->client = client;
    l->left = limit;
    l->one = one;
    l->deadline = n->now + LISTING_TIME;
    bytes_append(&l->prefix, prefix.data, prefix.count);
    bytes_append(&l->after, after.data, after.count);
    n->requests++;
    listings_tick(n);
}

/* === 21 The core's edge =========================================================================
 *
 * All that happens to a node goes in by these functions: a client's request by node_request or
 * node_list (chapters 18 and 20), a peer's frame by node_receive, the end of a write to disk by
 * node_durable, and the passing of time by node_tick. None of them waits for anything. After each of
 * them the caller carries out what the core wants done: it writes what log_flush returns, and sends what
 * frame_take returns. Replies to clients leave by a hook.
 *
 * What a peer sends is never asserted. A frame that is damaged, or whose messages do not fit into it,
 * closes its channel. One from another cluster, for another node, or from a clock that is far ahead (R5) is
 * ignored. A frame's clock is taken over before its messages are handled (R4), and none of these may
 * have a ballot above it. That is what the durable clock bound rests on (R2): whatever this node promises
 * has a time at or below its own clock.
 */

struct handler {
    void (*handle)(struct node *n, struct peer *from, const struct message *m);
    bool owned;     /* only for a partition that this node owns */
    bool any_epoch; /* also from a node whose view is older or newer */
};

static const struct handler handlers[M_TYPES] = {
    [M_PREPARE] = {on_prepare, .owned = true},   [M_PROMISE] = {on_reply, .owned = false},
    [M_ACCEPT] = {on_accept, .owned = true},     [M_ACCEPTED] = {on_reply, .owned = false},
    [M_REJECT] = {on_reply, .owned = false},     [M_READ] = {on_read, .owned = true},
    [M_READ_REPLY] = {on_reply, .owned = false}, [M_HEARTBEAT] = {on_heartbeat, .any_epoch = true},
    [M_VIEW] = {on_view, .any_epoch = true},     [M_LIST] = {on_list, .owned = false},
    [M_LISTED] = {on_listed, .owned = false},    [M_PULL] = {on_pull, .owned = true},
    [M_DIGEST] = {on_digest, .owned = false},
};

/* Most messages count only if they come from a member, and were sent in the epoch of this node's view
 * (R6). A node that is no member sends heartbeats, to join, and gets the views. `epoch`: the frame's. */
static void message_handle(struct node *n, struct peer *from, const struct message *m,
                           uint64_t epoch)
{
    if (m->type >= M_TYPES || n->gone)
        return;
    const struct handler *h = &handlers[m->type];
    bool ours = !h->owned || partition_is_ours(n, m->partition);
    bool same_view = epoch == node_epoch(n) || !RULE(6);
    same_view &= member_index(n->view, from->id) >= 0 && !n->disowned && !from->disowns_us;
    if (ours && (same_view || h->any_epoch))
        h->handle(n, from, m);
}

/* Handles the messages that this node sent to itself, until there is none. If one of them changes the
 * view, those behind it are of an earlier epoch, and do not count. */
static void node_run(struct node *n)
{
    clock_bound_raise(n);
    for (larges_admit(n); n->inbox.count; larges_admit(n)) {
        uint64_t epoch = node_epoch(n);
        bytes_swap(&n->inbox, &n->handled);
        for (const struct queued *w = NULL; (w = queue_next(&n->handled, w));) {
            if (w->peer->id == w->id)
                message_handle(n, w->peer, &w->message, epoch);
        }
        bytes_clear(&n->handled);
    }
}

/* The peer that sent a frame, whose clock and time are taken over; null: the frame is ignored. A frame to
 * nobody by name is for whoever has this address: its sender was away for so long that others may live
 * at the addresses it knows.
 *
 * Of the processes with one id one is followed (R32): the first that is heard, then one that found a log
 * with all that was ever shown of that id's. Any other counts as a stranger, a peer that is named by its
 * process: no member, and it cannot join. That name, in frames to it, says so. Its log should not
 * grow then, or it would seem to reach far enough after another start: so it hears no clock. */
static struct peer *frame_sender(struct node *n, const struct frame *f)
{
    bool disowns = f->to == (n->id ^ n->boot);
    bool to_us = f->to == n->id || f->to == 0 || disowns || !RULE(6);
    bool foreign = f->cluster && n->cluster && f->cluster != n->cluster;
    if (!to_us || foreign || f->from == 0 || f->from == n->id)
        return NULL;
    struct peer *from = peer_make(n, f->from, "");
    bool lacks = from && f->boot != from->boot && f->start < from->durable && RULE(32);
    uint64_t stranger = f->from ^ f->boot;
    bool forged = stranger == n->id || member_index(n->view, stranger) >= 0;
    if (lacks)
        from = forged ? NULL : peer_make(n, stranger, "");
    if (!from)
        return NULL;
    from->disowns_us |= disowns;
    bool late = from->live_at + n->lease > n->now; /* it was sent before a restart, maybe */
    bool copy = (lacks && !late) || disowns;
    bool faulty = !lacks && !from->disowns_us && !clock_raise(n, f->clock, f->latest_time);
    if ((copy || faulty) && n->next_fault <= n->now) {
        n->next_fault = n->now + 10 * SECOND; /* it goes on sending */
        log_line(LEVEL_WARN,
                 faulty ? "clock fault: frames of a node are ignored, set its clock right"
                        : "a copy of a node's data directory runs, or an old one: it is ignored",
                 "node=%016" PRIx64 " address=%s ahead_seconds=%.3f", disowns ? n->id : f->from,
                 disowns ? n->self_peer->address : from->address,
                 (double)(f->clock - n->time) / 1e6);
    }
    if (faulty)
        return NULL;
    from->boot = f->boot;
    from->durable = max_u64(from->durable, f->durable);
    if (f->latest_time && !lacks && !from->disowns_us) {
        time_adopt(n, f->latest_time);
        n->latest_time = max_u64(n->latest_time, min_u64(f->latest_time, f->clock));
    }
    return from;
}

/* A frame came, aligned to 8. False: it is damaged, and its channel is not worth keeping. */
static bool node_receive(struct node *n, const uint8_t *data, size_t bytes)
{
    const struct frame *f = (const struct frame *)data;
    assert((uintptr_t)data % 8 == 0);
    if (bytes < sizeof *f || f->magic != FRAME_MAGIC || f->bytes != bytes || bytes % 8 ||
        f->check != frame_check(f))
        return false;
    struct peer *from = frame_sender(n, f);
    if (!from)
        return true;
    from->epoch = from->id == f->from ? f->epoch : STRANGER;
    from->clock = f->clock;
    from->clock_offset = (int64_t)(f->wall - n->wall);
    for (size_t at = sizeof *f; at < bytes;) {
        const struct message *m = message_parse(data + at, bytes - at);
        if (!m)
            return false;
        at += m->bytes;
        from->messages_in++;
        /* A promise of a ballot above the frame's clock would be above this node's clock bound (R2).
         * `modified` may be above it by a little: each write of a round has another one. (M_READ has a
         * client's there, which is only compared, and a number of bytes.) */
        uint64_t latest = max_u64(m->modified, m->results_lost_until);
        if (m->ballot.time > f->clock || (latest > f->clock + SECOND && m->type != M_READ))
            continue;
        /* In a frame to nobody by name only heartbeats and views count. */
        message_handle(n, from, m, f->to || !RULE(6) ? f->epoch : UINT64_MAX);
    }
    if (f->epoch < node_epoch(n) && *from->address) /* it lacks these views */
        views_send(n, from, f->epoch);
    node_run(n);
    return true;
}

/* What log_flush returned is on disk, so what waited for it may be shown (R3). `room`: bytes that are
 * taken on the disk behind the log's end; `full`: it has no more. */
static void node_durable(struct node *n, uint64_t room, bool full)
{
    struct log *log = &n->log;
    assert(log->writing);
    uint64_t took = log->flight_at ? n->now - log->flight_at : 0; /* 0: it was there at start */
    log->write_time = max_u64(min_u64(took, WRITE_TIME_MAX), log->write_time - log->write_time / 8);
    log->durable += log->flight.count;
    log->room = room;
    log->full = full;
    log->writing = false;
    bytes_clear(&log->flight);
    n->clock_bound_durable = log->flight_clock_bound;
    messages_release(n);
    node_run(n);
}

/* Time has passed; called every 20 ms or so. All that is due by now is done: steps of rounds are sent
 * again, leases and transitions are looked after, and a partition is swept every 10 ms. A node that was
 * stopped for a while does not make up for the sweeps that it missed. */
static void node_tick(struct node *n, uint64_t now, uint64_t wall)
{
    node_time(n, now, wall);
    clock_bound_raise(n);
    n->rounds_resting = 0;
    requests_expire(n, &n->large);
    for (int i = 0; i < ROUND_BUCKETS; i++) {
        for (struct round *r = LIST_FIRST(&n->by_id[i]), *next; r; r = next) {
            next = LIST_NEXT(r, by_id);
            n->rounds_resting += r->state == REST;
            round_due(n, r);
        }
    }
    /* What cold messages need may be in memory by now. */
    bytes_append(&n->inbox, n->cold.data, n->cold.count);
    bytes_clear(&n->cold);
    bytes_clear(&n->scratch); /* who used it last may have left a large value in it */
    listings_tick(n);
    if (n->view)
        lease_tick(n);
    else if (n->expected)
        expect_tick(n);
    if (n->self >= 0) {
        sync_tick(n);
        coordinator_tick(n);
        for (; n->swept_at + 10 * MS <= now;
             n->swept_at = max_u64(n->swept_at + 10 * MS, now - 20 * MS))
            partition_sweep(n, n->sweep_next++ % (VIEWS_PARTITION + 1));
    }
    clean_tick(n);
    if (n->next_heartbeat <= now) {
        n->next_heartbeat = now + n->lease / 4;
        if (!n->gone)
            heartbeat_send(n);
        if (n->self >= 0 && n->stable)
            digests_send(n);
    }
    node_run(n);
}

/* Whether it wants a tick soon: something waits for a random moment, or for bytes of the log. */
static bool node_is_restless(const struct node *n)
{
    return n->rounds_resting || n->cold.count;
}

/* === Part V: the machine =========================================================================
 *
 * Files, sockets, threads and clocks. Nothing above has seen these headers.
 *
 * The core asks for what it needs through `struct hooks`, and gets everything else as arguments: the time by
 * node_time, what a disk did by node_durable, requests by node_request and node_list, frames by
 * node_receive. It hands over a batch of the log by log_flush, and frames by frame_take. So this Part can be
 * read without the others, and decides nothing about what is stored. What it does decide: how much comes in
 * at once, when the disk and the network are used, and how a reply looks.
 */

#include <argp.h>
#include <curl/curl.h>
#include <dirent.h>
#include <error.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <glob.h>
#include <gnutls/crypto.h>
#include <malloc.h>
#include <microhttpd.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static uint64_t clock_us(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec / 1000;
}

/* A time since 1970 as text, in UTC and in a format of strftime. */
static const char *time_text(char to[64], const char *format, uint64_t us)
{
    time_t seconds = (time_t)(us / SECOND);
    struct tm utc;
    strftime(to, 64, format, gmtime_r(&seconds, &utc));
    return to;
}

/* One line a call, in one write, because two threads log. A value that clients or peers choose is encoded or
 * checked before (percent_encode, text_is_plain): no quote or line feed can forge a line. */
static void log_line(enum log_level level, const char *message, const char *format, ...)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    if (level > log_level)
        return;
    char pairs[512], date[64];
    va_list list;
    va_start(list, format);
    vsnprintf(pairs, sizeof pairs, format, list);
    va_end(list);
    uint64_t now = clock_us(CLOCK_REALTIME);
    time_text(date, "%Y-%m-%dT%H:%M:%S", now);
    fprintf(stderr, "time=%s.%03" PRIu64 "Z level=%s msg=\"%s\"%s%s\n", date, now / MS % 1000,
            names[level], message, *pairs ? " " : "", pairs);
}

/* For what cannot be handled: no memory, a disk that fails. A disk error is never retried: after a
 * failed fdatasync the kernel may call lost pages clean. */
static void die(const char *message)
{
    log_line(LEVEL_ERROR, message, "error=\"%s\"", strerror(errno));
    _exit(1); /* maybe of the log's thread, while the other goes on */
}

/* Huge pages: a fault for each 2 MiB, not for each 4 KiB. All that malloc mapped: mremap moves no mapping
 * of which a part is unlike the rest, and realloc would copy it, each time that it grows. */
static void memory_grew(struct bytes *b)
{
    uintptr_t before = (uintptr_t)b->data % 4096;
    madvise(b->data - before, malloc_usable_size(b->data) + before, MADV_HUGEPAGE);
}

/* === 22 The disk ================================================================================
 *
 * The log is one endless stream of bytes (chapter 5). It lies in files of one size, the segments, named
 * by their number: the byte at an LSN is in the file LSN / SEGMENT_BYTES. A batch may span several.
 * When the log's first byte moves past a file, the file is removed.
 *
 * Space is taken far ahead of the log's end, so that a full disk is noticed before anything is promised
 * that would need it: what the core appends always fits. A little ahead of the end zeros are written,
 * because fdatasync of bytes that were written before is faster than of those that make a file longer.
 *
 * The log's thread writes one batch at a time and makes it durable. A job goes to it by a socket pair,
 * which the loop can poll, and comes back with its outcome. Meanwhile the loop may read the batch, and
 * does not change it. The loop never waits for the disk: a read of what is not in the page cache makes
 * the kernel fetch it, and the core asks again at its next tick.
 *
 * A disk that fails ends the program (die): after a failed fdatasync nobody knows what is durable.
 *
 *      removed |  oldest.log  |     ...      |  written.log          |  made ahead  |
 *                   ^ log.first                  ^ log.durable           ^          ^ allocated
 *                                                  the batch, then zeros, to `zeroed`
 *
 * (D1) The files from the oldest to `allocated` are all there, and all but the last have the full size.
 *      disk_open takes anything else for damage: a file that somebody removed or cut short.
 * (D2) Behind the last batch there are zeros, or bytes of a torn write that fit no checksum. So the end of
 *      the log can be found by reading, and need not be written down.
 * (D3) A file is removed only after a batch became durable that says that the log begins behind it. Else a
 *      crash could leave a log whose beginning is missing.
 */

enum {
    SEGMENT_BYTES = ROOM_RECORDS / 2, /* so that a full disk has room to clean a whole one */
    HOT_SEGMENTS = 64,
    ZEROS_BYTES = 1 << 20,
    BOUNDS = 14,
};

/* Upper bounds in seconds; one more bucket is for what is above. */
static const double histogram_bounds[BOUNDS] = {.0001, .00025, .0005, .001, .0025, .005, .01,
                                                .025,  .05,    .1,    .25,  .5,    1,    2.5};

struct histogram {
    uint64_t buckets[BOUNDS + 1];
    double sum;
};

/* Owners: the thread has everything that it needs to write (`oldest` to `written`), the loop what it reads
 * by. They share no field while a job is with the thread. `ahead_bytes` changes only between two jobs. */
struct disk {
    int dir;
    bool sync;
    uint64_t ahead_bytes; /* space to be taken behind the log's end */
    int ends[2];          /* of the socket pair: the loop's, the thread's */
    uint64_t oldest;      /* number of the first file; from here to `written` all is the thread's */
    uint64_t allocated, zeroed; /* LSNs up to which there is space, and zeros or data */
    struct segment {
        uint64_t number;
        int file;                     /* 0: none */
    } written;                        /* what was written to last, kept open */
    struct segment hot[HOT_SEGMENTS]; /* the loop's: read last, by number modulo HOT_SEGMENTS */
};

/* Travels to the thread and back. The batch stays in the core's memory (log->flight) and is not copied. */
struct disk_job {
    const struct bytes *batch; /* to be written at lsn; nothing is needed below `first` */
    uint64_t lsn, first;
    bool damaged;   /* files below `first` are not removed, but renamed, for a person to look at */
    uint64_t room;  /* the outcome: space behind the batch */
    double seconds; /* that the write took */
};

/* A value that is equal to a bound belongs to that bound's bucket: Prometheus says `le`. */
static void histogram_add(struct histogram *h, double value)
{
    int i = 0;
    while (i < BOUNDS && value > histogram_bounds[i])
        i++;
    h->buckets[i]++;
    h->sum += value;
}

/* Ten digits, so that the names sort as the numbers do: disk_open relies on that. */
static void segment_name(char name[32], uint64_t number)
{
    snprintf(name, 32, "%010" PRIu64 ".log", number);
}

/* How many of the bytes at `lsn` are in one file. */
static size_t segment_part(uint64_t lsn, size_t bytes)
{
    return min_u64(bytes, SEGMENT_BYTES - lsn % SEGMENT_BYTES);
}

/* The file where `lsn` stands, kept open at `s`; negative: it cannot be opened. */
static int segment_open(const struct disk *d, struct segment *s, uint64_t lsn, int flags)
{
    uint64_t number = lsn / SEGMENT_BYTES;
    char name[32];
    if (s->file > 0 && s->number == number)
        return s->file;
    if (s->file > 0)
        close(s->file);
    segment_name(name, number);
    *s = (struct segment){number, openat(d->dir, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600)};
    return s->file;
}

/* Copies bytes of the stream. What cannot be read becomes zeros, which fit no checksum. False: some are
 * not in memory; the kernel was asked to fetch them. With `wait` it waits for them instead. */
static bool disk_read(struct disk *d, uint64_t lsn, void *to, size_t bytes, bool wait)
{
    bool all = true;
    uint8_t *at = to, *end = at + bytes;
    for (size_t part; at < end; at += part, lsn += part) {
        part = segment_part(lsn, (size_t)(end - at));
        struct segment *hot = &d->hot[lsn / SEGMENT_BYTES % HOT_SEGMENTS];
        int file = segment_open(d, hot, lsn, O_RDONLY);
        off_t offset = (off_t)(lsn % SEGMENT_BYTES);
        ssize_t count = preadv2(file, &(struct iovec){at, part}, 1, offset, wait ? 0 : RWF_NOWAIT);
        if (count < 0 && errno == EOPNOTSUPP) /* not every filesystem supports RWF_NOWAIT */
            count = pread(file, at, part, offset);
        if (count < 0 && errno == EAGAIN) {
            posix_fadvise(file, offset, (off_t)part, POSIX_FADV_WILLNEED);
            all = false;
        }
        if (count > 0)
            part = (size_t)count;
        else
            memset(at, 0, part);
    }
    return all;
}

/* Writes bytes of the stream, file by file. Each file is made durable before the next one is begun: a batch
 * that spans two is found damaged in its second part, never in its first part alone. */
static void stream_write(struct disk *d, uint64_t lsn, const uint8_t *from, size_t bytes, bool sync)
{
    for (size_t part; bytes; from += part, lsn += part, bytes -= part) {
        int file = segment_open(d, &d->written, lsn, O_WRONLY);
        off_t offset = (off_t)(lsn % SEGMENT_BYTES);
        ssize_t count = file < 0 ? -1 : pwrite(file, from, segment_part(lsn, bytes), offset);
        if (count <= 0 || (sync && fdatasync(file) < 0))
            die("the disk failed");
        part = (size_t)count;
    }
}

/* Makes the next file. False: the disk is full. The directory is made durable too, or the file might be
 * gone after a crash, and all that was acknowledged in it. */
static bool segment_make(struct disk *d)
{
    int file = segment_open(d, &d->written, d->allocated, O_WRONLY | O_CREAT);
    int fault = file < 0 ? errno : posix_fallocate(file, 0, SEGMENT_BYTES);
    if (fault == ENOSPC || fault == EDQUOT)
        return false;
    errno = fault;
    if (fault || fsync(d->dir) < 0)
        die("cannot create a file of the log");
    d->allocated += SEGMENT_BYTES;
    return true;
}

/* Works ahead, so that a batch itself changes nothing but bytes: a file that grows, or gets its first bytes at a
 * place, costs fdatasync a write to the filesystem's journal as well.
 * Takes space and writes zeros behind `end`, the log's end when the batch at hand is written. Returns
 * the space that is there, less than `ahead_bytes` only if the disk has no more. */
static uint64_t disk_extend(struct disk *d, uint64_t end)
{
    static const uint8_t zeros[ZEROS_BYTES];
    while (d->allocated < end + d->ahead_bytes && segment_make(d))
        continue;
    d->zeroed = max_u64(d->zeroed, end);
    for (; d->zeroed < end + ZEROS_BYTES / 2 && d->zeroed + ZEROS_BYTES <= d->allocated;
         d->zeroed += ZEROS_BYTES)
        stream_write(d, d->zeroed, zeros, ZEROS_BYTES, false);
    return d->allocated - min_u64(d->allocated, end);
}

/* Writes a batch and makes it durable; then removes the files below the log's first byte. */
static void disk_write(struct disk *d, struct disk_job *job)
{
    char name[32], aside[64];
    assert(job->first <= job->lsn);
    job->room = disk_extend(d, job->lsn + job->batch->count);
    uint64_t start = clock_us(CLOCK_MONOTONIC);
    stream_write(d, job->lsn, job->batch->data, job->batch->count, d->sync);
    job->seconds = (double)(clock_us(CLOCK_MONOTONIC) - start) / 1e6;
    for (; (d->oldest + 1) * SEGMENT_BYTES <= job->first; d->oldest++) {
        segment_name(name, d->oldest);
        snprintf(aside, sizeof aside, "%s.damaged", name);
        int file = segment_open(d, &d->written, d->oldest * SEGMENT_BYTES, O_WRONLY);
        if (job->damaged)
            renameat(d->dir, name, d->dir, aside);
        else if (!d->sync && syncfs(d->dir) < 0) /* or cleaning's copies may be lost as well */
            die("the disk failed");
        else if (unlinkat(d->dir, name, 0) == 0 &&
                 ftruncate(file, 0) < 0) /* the loop has it open */
            die("the disk failed");
    }
}

/* The log's thread. It ends with the process: a job that is under way at the end was acknowledged to nobody. */
static void *disk_thread(void *arg)
{
    struct disk *d = arg;
    struct disk_job job;
    while (recv(d->ends[1], &job, sizeof job, 0) == sizeof job) {
        disk_write(d, &job);
        send(d->ends[1], &job, sizeof job, 0);
    }
    return NULL;
}

/* Hands the batch in flight to the thread. An empty one, which only asks for space, removes nothing: no
 * batch on disk says yet that the log begins at `first`. */
static void disk_submit(const struct disk *d, const struct log *log)
{
    struct disk_job job = {.batch = &log->flight, .lsn = log->durable};
    job.first = log->flight.count ? log->first : 0;
    if (send(d->ends[0], &job, sizeof job, 0) < 0)
        die("cannot hand a batch to the thread that writes the log");
}

/* Warns if every user of this machine may read, or even change, what is at `path`. */
static void warn_if_open(const char *path)
{
    struct stat file;
    if (stat(path, &file) == 0 && file.st_mode & S_IRWXO)
        log_line(LEVEL_WARN, "open to every user: chmod go-rwx", "path=\"%s\"", path);
}

/* Other files in the directory, such as those set aside as damaged, are left alone. */
static int is_segment(const struct dirent *e)
{
    return strspn(e->d_name, "0123456789") == 10 && strcmp(e->d_name + 10, ".log") == 0;
}

/* Opens the data directory for this process alone. It and those above it are made if need be. */
static int folder_open(const char *path)
{
    char above[PATH_MAX];
    for (size_t i = 1; i <= strlen(path); i++) {
        snprintf(above, sizeof above, "%.*s", (int)i, path);
        if (path[i] == '/' || !path[i])
            mkdir(above, 0700); /* if that fails, so does open */
    }
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        die("cannot create the data directory");
    if (flock(folder, LOCK_EX | LOCK_NB) < 0)
        die("another process uses this data directory");
    return folder;
}

/* Opens the log in the data directory; its files hold the stream from `start` to `end`. False: a file is
 * missing or was cut short. (All but the last have the full size.) */
static bool disk_open(struct disk *d, const char *path, uint64_t *start, uint64_t *end)
{
    struct dirent **names;
    d->dir = folder_open(path);
    int count = scandirat(d->dir, ".", &names, is_segment, alphasort);
    bool whole = true;
    if (count < 0)
        die("cannot read the data directory");
    warn_if_open(path);
    d->oldest = count ? strtoull(names[0]->d_name, NULL, 10) : 0;
    *start = *end = d->oldest * SEGMENT_BYTES;
    for (int i = 0; i < count; i++) {
        struct stat file;
        uint64_t number = strtoull(names[i]->d_name, NULL, 10);
        if (fstatat(d->dir, names[i]->d_name, &file, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISREG(file.st_mode))
            error(1, 0, "'%s/%s' is no file of the log; a link to one is not followed", path,
                  names[i]->d_name);
        whole &= *end == number * SEGMENT_BYTES;
        *end = number * SEGMENT_BYTES + (uint64_t)file.st_size;
        free(names[i]);
    }
    free(names);
    d->allocated = (*end + SEGMENT_BYTES - 1) / SEGMENT_BYTES * SEGMENT_BYTES;
    return whole;
}

/* The copy is durable before its place is cleared. After a crash in between the hole is found again, larger, and
 * what is left behind it is appended to the copy.
 * Ends the log at `lsn`, where a hole begins. Batches behind the hole would count as the log's own once
 * it has grown as far: they are copied to a file, for a person to look at, and zeros take their place. */
static void disk_cut(struct disk *d, uint64_t lsn, uint64_t end)
{
    char name[32];
    struct bytes tail = {0};
    snprintf(name, sizeof name, "%" PRIu64 ".damaged", lsn);
    int file = openat(d->dir, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    for (; lsn < end; lsn += tail.count, tail.count = 0) {
        size_t part = segment_part(lsn, end - lsn);
        disk_read(d, lsn, bytes_extend(&tail, part), part, true);
        if (write(file, tail.data, part) != (ssize_t)part || fsync(file) < 0 || fsync(d->dir) < 0)
            die("cannot set aside the end of the log");
        stream_write(d, lsn, memset(tail.data, 0, part), part, true);
    }
    bytes_free(&tail);
    close(file);
}

/* Begins to write behind `end`, the log's end as it was recovered. */
static void disk_start(struct disk *d, uint64_t end)
{
    pthread_t thread;
    d->allocated = end / SEGMENT_BYTES * SEGMENT_BYTES;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, d->ends) < 0 ||
        pthread_create(&thread, NULL, disk_thread, d))
        die("cannot start the thread that writes the log");
}

/* === 23 The server, and its wire ================================================================
 *
 * One thread, one loop, one poll: libmicrohttpd serves what comes in, libcurl sends what goes out, and a
 * socket reports what the log's thread has done.
 *
 * Frames travel in HTTP. To each peer this node has two POSTs of /_mail whose bodies never end: the
 * channel, and the bulk channel for large messages, so that a large value holds up no heartbeat. Each body is a
 * sequence of frames (chapter 8). Nothing comes back on them but an error; a peer's replies come in its
 * own POSTs. When a POST breaks, its frames are lost, as any message may be; it is opened again when
 * there is something to send.
 *
 * A frame carries a MAC if there is a secret. The secret itself is never sent, so whoever listens at the
 * address of a dead node does not learn it.
 *
 *    closed --channel_open--> open --channel_read--> sending a frame --channel_read--> open (paused)
 *      `<------ channel_close: the POST broke, or the peer's lease ran out ------------------'
 *
 * TCP needs minutes to find out that a peer is gone, and what is written until then is lost. The core knows
 * it within a lease, so it decides; the next channel begins with a new connection and a fresh look at what
 * address the peer's name has.
 */

enum {
    CALLS_MAX = 20000,
    TICK_MS = 20,
    METHODS = 6,
    CODES = 600,
    MHD_RUNS_MAX = 3,   /* in a turn: until what was answered is sent, but not without end */
    DAMAGED_TRIES = 10, /* leases to wait for a healthy node when the log is damaged */
    BATCH_UNIT = 10000, /* records that are counted as one second, in a histogram */
    SECRET_BYTES_MIN = 16,
    TURN_BYTES_MAX = 8 << 20,
    CLIENTS_MIN = 256,
    CLIENTS_SPARE = 32, /* free connections, until an idle one is closed */
};

/* What the command line and the environment say (option_rows). The texts are not copied: they live as long
 * as the process. */
struct options {
    const char *listen, *advertise, *data, *join, *zone, *secret_file;
    const char *tls_cert, *tls_key, *tls_ca;
    bool force_new_cluster, bootstrap, insecure;
    uint64_t sync, log_level; /* places among their choices, from 1 on */
    uint64_t expected, replicas, weight, lease, evict_after, max_value, memory;
};

static volatile sig_atomic_t stop_asked; /* the signal, from which on new work is rejected */

/* Everything outside of the core. There is one, and the core knows it as the context of its hooks. Times are
 * in microseconds of the monotonic clock, as node->now. */
struct server {
    struct options options;
    char **arguments;
    struct node *node;
    struct disk disk;
    struct MHD_Daemon *daemon;
    CURLM *multi;
    bool resumed;             /* libmicrohttpd has an answer to send */
    bool ready_notified;      /* to the service manager */
    char *secret;             /* null: none */
    TAILQ_HEAD(, call) calls; /* one of each connection: first those in state WHOLE, then by age */
    uint64_t clients_count, clients_max;
    uint64_t no_memory_at; /* when a request was last denied memory */
    uint64_t swept_at;     /* when calls_sweep ran last */
    uint64_t calls_count;
    uint64_t turn_bytes; /* of values that are read in this turn of the loop */
    uint64_t responses[METHODS][CODES];
    struct histogram seconds[METHODS], batch_records, fsync_seconds;
    uint64_t ticked_at;
    uint64_t held_at;    /* since then the batch and frames wait for more; 0: they do not */
    uint64_t next_fault; /* until then no fault of a peer's frames is logged again */
};

/* No form of a web page can be of this type. */
#define FRAME_TYPE "application/x-estoraje-mail"
/* A frame has what an outbox may hold, and one more message, with the largest value that --max-value can
 * allow. (This node's own may have been lowered; larger values are still copied.) */
enum { FRAME_BYTES_MAX = OUTBOX_BYTES_MAX + (1 << 30) + (1 << 20) };

/* One of the two POSTs to a peer. A channel belongs to a place for a peer, and stays with it. `sending` holds
 * one signed frame at most, to which nothing is added: its MAC would no longer be right. */
struct channel {
    struct server *server;
    struct peer *peer;
    int which;            /* of the peer's outboxes; 1: the bulk channel */
    CURL *easy;           /* null: not open */
    struct bytes sending; /* a frame, of which `sent` bytes are on their way */
    size_t sent;
    uint64_t opened_at, retry_at; /* retry_at is 0 until it broke for the first time */
};

/* The MAC is 16 bytes of an HMAC (RFC 2104). It covers the receiver's id, so that nobody can pass a frame
 * on to another node. */
static void frame_sign(const struct server *s, struct frame *f)
{
    uint8_t mac[32] = {0};
    if (s->secret && gnutls_hmac_fast(GNUTLS_MAC_SHA256, s->secret, strlen(s->secret), &f->cluster,
                                      f->bytes - offsetof(struct frame, cluster), mac))
        die("cannot sign a frame");
    memcpy(f->mac, mac, sizeof f->mac);
}

/* Compared in constant time: how long it takes tells nothing of the right MAC. */
static bool frame_is_signed(const struct server *s, struct frame *f)
{
    struct frame came = *f;
    frame_sign(s, f); /* again: it is what it was, if that was right */
    return !s->secret || gnutls_memcmp(came.mac, f->mac, sizeof f->mac) == 0;
}

/* libcurl asks for more of the body. A frame is taken from the outbox only when the one before has left: so
 * what waits grows into one large frame while the peer or the network is slow, and is not queued twice. */
static size_t channel_read(char *to, size_t size, size_t count, void *arg)
{
    struct channel *c = arg;
    if (c->sent == c->sending.count) {
        c->sent = 0;
        bytes_clear(&c->sending);
        if (!frame_take(c->server->node, c->peer, c->which, &c->sending))
            return CURL_READFUNC_PAUSE;
        frame_sign(c->server, (struct frame *)c->sending.data);
    }
    size_t part = min_u64(size * count, c->sending.count - c->sent);
    memcpy(to, c->sending.data + c->sent, part);
    c->sent += part;
    return part;
}

/* The body of a peer's answer: a peer answers only with an error, of which the status says enough. */
static size_t channel_ignore(char *data, size_t size, size_t count, void *arg)
{
    (void)data, (void)arg;
    return size * count;
}

/* A request to a peer, with all that every such request needs. */
static CURL *peer_request(const struct server *s, const char *address, const char *path)
{
    CURL *easy = curl_easy_init();
    char url[128];
    if (!easy)
        die("out of memory");
    snprintf(url, sizeof url, "%s://%s%s", s->options.tls_cert ? "https" : "http", address, path);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_DNS_CACHE_TIMEOUT, 0L); /* a name may move */
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, 1000L);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, channel_ignore);
    curl_easy_setopt(easy, CURLOPT_CAINFO, s->options.tls_ca);
    curl_easy_setopt(easy, CURLOPT_SSLCERT, s->options.tls_cert);
    curl_easy_setopt(easy, CURLOPT_SSLKEY, s->options.tls_key);
    curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    return easy;
}

/* An upload without a size is chunked. libcurl would ask whether it may begin: it need not. */
static void channel_open(struct channel *c)
{
    struct server *s = c->server;
    static struct curl_slist type = {"Content-Type: " FRAME_TYPE, NULL};
    c->easy = peer_request(s, c->peer->address, "/_mail");
    curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, &type);
    curl_easy_setopt(c->easy, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(c->easy, CURLOPT_CUSTOMREQUEST, "POST");
    curl_easy_setopt(c->easy, CURLOPT_EXPECT_100_TIMEOUT_MS, 0L);
    curl_easy_setopt(c->easy, CURLOPT_READFUNCTION, channel_read);
    curl_easy_setopt(c->easy, CURLOPT_READDATA, c);
    curl_easy_setopt(c->easy, CURLOPT_PRIVATE, c);
    curl_easy_setopt(c->easy, CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
    /* An empty frame goes first: from a sender that has not signed one, a peer accepts no larger one. */
    struct frame *f = bytes_extend(&c->sending, sizeof *f);
    *f = (struct frame){.magic = FRAME_MAGIC, .bytes = sizeof *f, .to = c->peer->id};
    f->check = frame_check(f);
    frame_sign(s, f);
    c->opened_at = s->node->now;
    curl_multi_add_handle(s->multi, c->easy);
}

/* Closes a channel; what was on its way is lost. It may be opened again after a while, which is the
 * longer, the longer the peer has not been live. */
static void channel_close(struct channel *c)
{
    struct node *n = c->server->node;
    curl_multi_remove_handle(c->server->multi, c->easy);
    curl_easy_cleanup(c->easy);
    c->easy = NULL;
    c->sent = c->sending.count = 0;
    c->retry_at = n->now + 20 * MS + min_u64((n->now - c->peer->live_at) / 8, 600 * MS);
}

/* Opens a channel when there is something to send. Closes it when the peer is dead: the lease shows that
 * earlier than TCP. libcurl paused an open one when there was nothing to send: it goes on. */
static void channels_turn(struct server *s)
{
    const struct node *n = s->node;
    for (size_t i = 0; i < 2 * n->peers_count; i++) {
        struct peer *p = n->peers[i / 2];
        if (p == n->self_peer || !*p->address)
            continue;
        if (!p->channels)
            p->channels = allocate(2 * sizeof(struct channel));
        struct channel *c = (struct channel *)p->channels + i % 2;
        c->server = s;
        c->peer = p;
        c->which = i % 2;
        bool waits = p->outbox[c->which].count;
        if (c->easy && !peer_is_live(n, p) && c->opened_at + 3 * n->lease < n->now)
            channel_close(c);
        else if (!c->easy && waits && c->retry_at <= n->now)
            channel_open(c);
        else if (c->easy && waits && frame_may_leave(n))
            curl_easy_pause(c->easy, CURLPAUSE_CONT);
    }
}

/* Closes channels that broke, and says why: once for each time that one worked, not with each try. A log full
 * of one dead peer's failures would hide everything else. */
static void channels_check(struct server *s)
{
    int left;
    CURLMsg *done;
    while ((done = curl_multi_info_read(s->multi, &left))) {
        struct channel *c;
        long code = 0;
        curl_easy_getinfo(done->easy_handle, CURLINFO_PRIVATE, (char **)&c);
        curl_easy_getinfo(done->easy_handle, CURLINFO_RESPONSE_CODE, &code);
        if (!c->retry_at || c->opened_at + 2 * SECOND < s->node->now)
            log_line(LEVEL_WARN, "no link to a peer: is it up, with the same secret and CA?",
                     "peer=%s status=%ld error=\"%s\"", c->peer->address, code,
                     curl_easy_strerror(done->data.result));
        channel_close(c);
    }
}

/* === 24 Reports =================================================================================
 *
 * What an operator sees of a node: _status and _nodes as JSON and text, _ring as a page, _metrics for
 * Prometheus, and why a node is not healthy or not ready. These functions append text to a buffer, and
 * change nothing; HTTP is the next chapter's.
 *
 * Each report is what this one node knows. It needs no quorum, so that it can be had when the cluster cannot
 * be used; two nodes may differ while a view spreads. Ids are 16 hex digits in a string, because JSON's
 * numbers lose the last bits of 64. Keys are percent-encoded, and addresses and zones have no quotes
 * (text_is_plain): no text has to be escaped here.
 *
 *    healthy    a load balancer may send requests here: a member, with a lease, with room on its disk
 *    ready      healthy, and also up, with all its data: another node may be stopped or replaced
 */

static const char *const methods[METHODS] = {"GET", "HEAD", "PUT", "POST", "DELETE", "other"};
enum { GET, HEAD, PUT, POST, DELETE, OTHER };

/* Which members hold a key, by each ring if it moves. */
static void print_place(struct bytes *out, const struct node *n, const void *key, size_t bytes)
{
    char text[KEY_TEXT_BYTES];
    uint16_t partition = key_partition(key, bytes);
    bool moves = n->owners[C_OLD][partition] != n->owners[C_NEW][partition];
    bytes_print(out, "{\"key\":\"%s\",\"hash\":\"%016" PRIx64 "\",\"partition\":%u",
                percent_encode(text, key, bytes), XXH3_64bits(key, bytes), partition);
    for (int which = C_OLD; which <= (moves ? C_NEW : C_OLD); which++) {
        bytes_print(out, which == C_OLD ? ",\"owners\":[" : "],\"owners_new\":[");
        for (unsigned i = 0; i < n->rings[which].owners_count; i++) {
            uint8_t owner = n->rings[which].owners[partition][i];
            bytes_print(out, "%s{\"id\":\"%016" PRIx64 "\",\"address\":\"%s\"}", i ? "," : "",
                        n->view->members[owner].id, n->member_peer[owner]->address);
        }
    }
    bytes_print(out, "]}\n");
}

/* The owners of each partition, by each ring. */
static void print_rings(struct bytes *out, const struct node *n)
{
    for (int which = C_OLD; n->view && which <= (n->stable ? C_OLD : C_NEW); which++) {
        bytes_print(out, which == C_OLD ? ",\"ring\":" : ",\"ring_new\":");
        for (unsigned p = 0; p < PARTITIONS; p++) {
            bytes_print(out, p ? "],[" : "[[");
            for (unsigned i = 0; i < n->rings[which].owners_count; i++)
                bytes_print(out, "%s%u", i ? "," : "", n->rings[which].owners[p][i]);
        }
        bytes_print(out, "]]");
    }
}

/* Before a node has its first view it reports no members. */
static uint32_t members_count(const struct node *n)
{
    return n->view ? n->view->members_count : 0;
}

/* The members in the order of the view: rings name them by their place in it. `live` and the lease are how
 * this node sees them; keys, bytes and requests are what they sent with their last heartbeat. */
static void print_members(struct bytes *out, const struct node *n)
{
    static const char *const states[] = {"joining", "up", "leaving", "lost"};
    for (uint32_t i = 0; i < members_count(n); i++) {
        const struct member *m = &n->view->members[i];
        const struct peer *p = n->member_peer[i];
        uint64_t until = peer_is_live(n, p) ? max_u64(p->heard_at + n->lease, n->now) : n->now;
        bytes_print(out,
                    "%s{\"id\":\"%016" PRIx64 "\",\"address\":\"%s\",\"zone\":\"%s\",\"weight\":%u,"
                    "\"state\":\"%s\",\"live\":%s,\"lease_ms\":%" PRIu64 ",\"keys\":%" PRIu64
                    ",\"bytes\":%" PRIu64 ",\"requests\":%" PRIu64 "}",
                    i ? "," : "", m->id, p->address, m->zone, m->weight, states[m->state],
                    peer_is_live(n, p) ? "true" : "false", (until - n->now) / MS, p->beat.keys,
                    p->beat.value_bytes, p->beat.requests);
    }
}

/* The clock offset is the largest of all peers, with its sign. Garbage is what cleaning can give back. */
static void print_status(struct bytes *out, const struct server *s)
{
    const struct node *n = s->node;
    unsigned complete = 0, changing = 0;
    int64_t offset = 0;
    if (n->view)
        transition_progress(n, &complete, &changing);
    for (uint32_t i = 0; i < members_count(n); i++)
        if (llabs(n->member_peer[i]->clock_offset) > llabs(offset))
            offset = n->member_peer[i]->clock_offset;
    bytes_print(out,
                "{\"node\":\"%016" PRIx64 "\",\"version\":\"" VERSION "\",\"cluster\":\"%016" PRIx64
                "\",\"epoch\":%" PRIu64 ",\"replicas\":%u,\"lease_ms\":%" PRIu64 ",\"members\":[",
                n->id, n->cluster, node_epoch(n), n->view ? n->view->replicas : 0, n->lease / MS);
    print_members(out, n);
    bytes_print(out,
                "],\"keys\":%" PRIu64 ",\"tombstones\":%" PRIu64 ",\"bytes\":%" PRIu64
                ",\"log_bytes\":%" PRIu64 ",\"garbage_bytes\":%" PRIu64
                ",\"transition\":{\"complete\":%u,\"to_do\":%u}"
                ",\"clock_offset_ms\":%.3f",
                n->keys, n->tombstones, n->value_bytes, log_end(n) - n->log.first,
                log_end(n) - n->log.first - n->log.live_bytes, complete, changing - complete,
                (double)offset / 1e3);
    print_rings(out, n);
    bytes_print(out, "}\n");
}

/* One address a line: what a generator of a load balancer's configuration reads. */
static void print_nodes(struct bytes *out, const struct server *s)
{
    for (uint32_t i = 0; i < members_count(s->node); i++)
        if (s->node->view->members[i].state == MEMBER_UP)
            bytes_print(out, "%s\n", s->node->member_peer[i]->address);
}

extern const char ring_html_start[], ring_html_end[];

/* The page is linked into the program (see the Makefile), and reads _status and _nodes by itself. */
static void print_page(struct bytes *out, const struct server *s)
{
    (void)s;
    bytes_append(out, ring_html_start, (size_t)(ring_html_end - ring_html_start));
}

/* What a metric means, before its first sample. A total is a counter. Null: a row before had it. */
static void print_help(struct bytes *out, const char *name, const char *help)
{
    const char *type = strstr(name, "_total") ? "counter" : "gauge";
    if (help)
        bytes_print(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* 15 digits: a counter is exact up to 10^15. */
static void print_sample(struct bytes *out, const char *name, const char *labels, double value)
{
    bytes_print(out, "%s%s %.15g\n", name, labels, value);
}

/* Prometheus wants cumulative buckets. `unit`: how much one second of the histogram stands for. */
static void print_histogram(struct bytes *out, const char *name, const char *label,
                            const char *help, double unit, const struct histogram *h)
{
    uint64_t count = 0;
    const char *comma = *label ? "," : "", *left = *label ? "{" : "", *right = *label ? "}" : "";
    if (help)
        bytes_print(out, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name);
    for (int i = 0; i < BOUNDS; i++)
        bytes_print(out, "%s_bucket{%s%sle=\"%g\"} %" PRIu64 "\n", name, label, comma,
                    histogram_bounds[i] * unit, count += h->buckets[i]);
    count += h->buckets[BOUNDS];
    bytes_print(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", name, label, comma, count);
    bytes_print(out, "%s_sum%s%s%s %.12g\n", name, left, label, right, h->sum * unit);
    bytes_print(out, "%s_count%s%s%s %" PRIu64 "\n", name, left, label, right, count);
}

/* Only statuses that occurred, and 200, so that each method has a series from the start. */
static void print_requests(struct bytes *out, const struct server *s)
{
    const char *wait = "From a request's headers to its answer's end.";
    char labels[64];
    print_help(out, "estoraje_http_requests_total", "Requests answered.");
    for (int m = 0; m < METHODS; m++)
        for (int code = 0; code < CODES; code++) {
            snprintf(labels, sizeof labels, "{method=\"%s\",code=\"%d\"}", methods[m], code);
            if (s->responses[m][code] || code == 200)
                print_sample(out, "estoraje_http_requests_total", labels, s->responses[m][code]);
        }
    for (int m = 0; m < METHODS; m++) {
        snprintf(labels, sizeof labels, "method=\"%s\"", methods[m]);
        print_histogram(out, "estoraje_http_request_duration_seconds", labels, m ? NULL : wait, 1,
                        &s->seconds[m]);
    }
}

/* By metric, then by peer: Prometheus wants all samples of a metric together. A node without peers reports
 * the metrics' names alone. */
static void print_peers(struct bytes *out, const struct node *n)
{
    static const struct {
        const char *name, *more, *help;
    } rows[] = {
        {"estoraje_peer_up", "", "Whether heartbeats come and go."},
        {"estoraje_clock_offset_seconds", "", "The peer's wall clock less ours."},
        {"estoraje_peer_messages_total", ",direction=\"in\"", "Messages from and to the peer."},
        {"estoraje_peer_messages_total", ",direction=\"out\"", NULL},
    };
    for (int row = 0; row < 4; row++) {
        print_help(out, rows[row].name, rows[row].help);
        for (uint32_t i = 0; i < members_count(n); i++) {
            const struct peer *p = n->member_peer[i];
            double values[] = {peer_is_live(n, p), (double)p->clock_offset / 1e6, p->messages_in,
                               p->messages_out};
            char labels[128];
            /* A node that is being replaced leaves, and its address, the label, may be another's. */
            if (p == n->self_peer || n->view->members[i].state >= MEMBER_LEAVING)
                continue;
            snprintf(labels, sizeof labels, "{peer=\"%s\"%s}", p->address, rows[row].more);
            print_sample(out, rows[row].name, labels, values[row]);
        }
    }
}

/* Resident memory in bytes, and open files; 0 where the kernel does not show them. */
static void process_measure(double *memory, double *files)
{
    unsigned long pages = 0;
    glob_t found = {0};
    FILE *statm = fopen("/proc/self/statm", "r");
    *memory = 0;
    if (statm && fscanf(statm, "%*u %lu", &pages) == 1)
        *memory = (double)pages * (double)sysconf(_SC_PAGESIZE);
    if (statm)
        fclose(statm);
    glob("/proc/self/fd/[0-9]*", GLOB_NOSORT, NULL, &found);
    *files = (double)found.gl_pathc;
    globfree(&found);
}

/* The table has what is one number. A row without a help text continues the metric of the row before, with
 * another label. No label holds a key or anything else that clients choose: the number of series is bounded. */
static void print_metrics(struct bytes *out, const struct server *s)
{
    const struct node *n = s->node;
    const struct counters *k = &n->counters;
    unsigned owned = 0;
    double memory, files, log_bytes = (double)(log_end(n) - n->log.first);
    process_measure(&memory, &files);
    for (uint16_t p = 0; n->self >= 0 && p < PARTITIONS; p++)
        owned += (partition_owners(n, p) & self_bit(n)) != 0;
    const struct {
        const char *name, *labels, *help;
        double value;
    } rows[] = {
        {"estoraje_http_requests_in_flight", "", "Requests in flight.", s->calls_count},
        {"estoraje_keys", "", "Live keys on this node.", n->keys},
        {"estoraje_data_bytes", "", "Bytes of live values.", n->value_bytes},
        {"estoraje_log_bytes", "", "Bytes of the log.", log_bytes},
        {"estoraje_log_garbage_bytes", "", "Bytes of garbage in it.",
         log_bytes - n->log.live_bytes},
        {"estoraje_lease_expirations_total", "", "Leases that ran out.", k->lease_expirations},
        {"estoraje_epoch", "", "Epoch of the membership.", node_epoch(n)},
        {"estoraje_partitions_owned", "", "Partitions held here.", owned},
        {"estoraje_partitions_incomplete", "", "Partitions to be completed.", partitions_behind(n)},
        {"estoraje_proposals_total", "{outcome=\"ok\"}", "Rounds of writes.", k->proposals_ok},
        {"estoraje_proposals_total", "{outcome=\"unknown\"}", NULL, k->proposals_unknown},
        {"estoraje_proposals_total", "{outcome=\"duel\"}", NULL, k->proposals_rejected},
        {"estoraje_repairs_total", "{reason=\"damage\"}", "Records repaired.", k->repairs_damage},
        {"estoraje_repairs_total", "{reason=\"promise\"}", NULL, k->repairs_pull},
        {"estoraje_repairs_total", "{reason=\"read\"}", NULL, k->repairs_read},
        {"estoraje_repairs_total", "{reason=\"pulled\"}", NULL, k->pulled},
        {"estoraje_build_info", "{version=\"" VERSION "\"}", "What this node runs.", 1},
        {"process_cpu_seconds_total", "", "CPU time used.",
         (double)clock_us(CLOCK_PROCESS_CPUTIME_ID) / 1e6},
        {"process_resident_memory_bytes", "", "Memory in use.", memory},
        {"process_open_fds", "", "Open files.", files},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        print_help(out, rows[i].name, rows[i].help);
        print_sample(out, rows[i].name, rows[i].labels, rows[i].value);
    }
    print_histogram(out, "estoraje_fsync_duration_seconds", "",
                    "Making a batch of the log durable.", 1, &s->fsync_seconds);
    print_histogram(out, "estoraje_batch_records", "", "Records in a batch of the log.", BATCH_UNIT,
                    &s->batch_records);
    print_requests(out, s);
    print_peers(out, n);
}

/* Why this node cannot serve, for a load balancer; null: it can. Looks at this node's state alone and asks nobody,
 * so it may be called at any rate. log.full: there is no room for the largest value. That alone does not count:
 * smaller ones are stored until less than ROOM_AHEAD is left. */
static const char *unhealthy(const struct server *s)
{
    if (s->node->self < 0)
        return "not a member of a cluster yet";
    if (!s->node->has_lease)
        return "no lease from a majority";
    if (s->node->log.full && s->node->log.room < ROOM_AHEAD)
        return "the disk is full";
    return NULL;
}

/* Why no other node should be stopped or replaced yet (R30): this one lacks data. Null: it has all. */
static const char *unready(const struct server *s)
{
    static char text[128];
    const struct node *n = s->node;
    const char *reason = unhealthy(s);
    unsigned behind = partitions_behind(n);
    snprintf(text, sizeof text, "data of %u partitions is not here or not compared yet", behind);
    if (!reason && n->view->members[n->self].state != MEMBER_UP)
        reason = "this node is about to join or to leave: see /_status";
    return reason || !behind ? reason : text;
}

/* === 25 HTTP ====================================================================================
 *
 * A call is what a connection serves: one request after the other. A request is checked when its headers
 * are there; then its body is collected; then the connection is suspended, until the core replies:
 *
 *    http_handle (headers) -> http_handle (pieces of the body) -> calls_answer -> routes[].answer
 *       `-> call_begin                      call_resume <- call_respond <- http_reply <- core <-'
 *
 *    IDLE --http_uri--> HEADERS --call_begin--> BODY --http_handle--> WHOLE --calls_answer--> SUSPENDED
 *      `<------------------ http_done -------------------- OVER <-------------------- call_resume --'
 *
 * A request whose headers are invalid is answered only after its body was read: a client that is still
 * sending would not see the answer. Where that is not worth it, the connection is closed after the answer.
 *
 * Checks stand in this order, and the first that fails gives the answer:
 *
 *    call_wire        can two readers see two different requests here?     400, 414, 431, closed
 *    call_route       is there such a path, with such a method, for this   404, 414, 405, 403, 401
 *                     client?
 *    call_query       are all parameters known, well-formed and in place?  400
 *    call_condition   is it a condition that can be decided exactly?       400
 *    call_write       can the write be stored and repeated?                400, 411, 413, 503
 *    call_begin       does the node take requests at all now?              503
 *
 * What a failed write did is part of its answer: nothing (503, 507), or nobody knows (503 with
 * Estoraje-Outcome: unknown). call_text alone writes this, for every cause.
 *
 * Bodies are the memory that clients can take, so they are counted in bytes_held before they come. Three
 * limits keep the rest bounded: the number of connections, the memory that libmicrohttpd gives to each, and
 * the time that one may stand still.
 */

/* The methods of a route, as the Allow header names them. */
static const char reading[] = "GET, HEAD", storing[] = "PUT, POST",
                  every[] = "GET, HEAD, PUT, POST, DELETE";
enum { ROUTE_KEY, ROUTE_LIST, ROUTE_CREATE, ROUTE_MESSAGES, ROUTE_NODE };
/* libmicrohttpd rejects headers of twice that size itself, with a page of HTML. A larger limit would cost
 * memory for each connection: libmicrohttpd writes zeros to all of the memory that a connection may use. */
enum { HEAD_BYTES_MAX = 12 << 10, RETRY_KEY_BYTES_MAX = 255 };
#define HOLD_TIME   MS             /* frames and the log's batch are held so long, for more */
#define UPLOAD_TIME (600 * SECOND) /* of a request's body */
/* How many seconds a client may neither send nor take a byte; fewer while others are denied memory. */
enum { STALL_SECONDS_MAX = 75, STALL_SECONDS_FULL = 3 };

/* The headers that the program reads. If one is sent twice, a proxy may have read the first and we the
 * second: such a request is rejected. Only Accept may be repeated; the last one counts. */
struct headers {
    const char *length, *coding, *host, *match, *none_match, *range, *if_range, *content_range;
    const char *type, *key, *retry, *forget, *site, *secret, *accept, *other;
};
/* In the order of struct headers. */
static const char *const header_names[] = {
    "Content-Length", "Transfer-Encoding", "Host",           "If-Match",      "If-None-Match",
    "Range",          "If-Range",          "Content-Range",  "Content-Type",  "Idempotency-Key",
    "Estoraje-Retry", "Estoraje-Forget",   "Sec-Fetch-Site", "Authorization", "Accept"};
enum { HEADER_NAMES = sizeof header_names / sizeof *header_names };
_Static_assert(sizeof(struct headers) == (HEADER_NAMES + 1) * sizeof(char *),
               "one place for each name");

/* What a query says; 0: nothing. */
struct query {
    uint64_t consistency, ttl, wait, op, by, limit, create;
    struct bytes after, prefix; /* not owned */
    bool lost;
};

/* The forms of a listing. An entry's arguments are 1 the key, 2 a comma or nothing, 3 the size, 4 and 5
 * the ETag's numbers, 6 when it was modified, 7 when it expires. */
enum { LIST_TEXT, LIST_JSON, LIST_RESTIC };
static const struct {
    const char *type, *start, *entry, *end,
        *next; /* the end of the last page, and of another one */
} formats[] = {
    {"text/plain", "", "%1$s\n", "", ""},
    {"application/json", "{\"keys\":[",
     "%2$s{\"key\":\"%1$s\",\"size\":%3$u,\"etag\":\"%4$016" PRIx64 "-%5$016" PRIx64
     "\",\"modified\":%6$.6f,\"expires\":%7$s}",
     "],\"next\":null}\n", "],\"next\":\"%s\"}\n"},
    {"application/vnd.x.restic.rest.v2", "[", "%2$s{\"name\":\"%1$s\",\"size\":%3$u}", "]\n",
     "]\n"},
};

/* A connection keeps its call from its first byte to its last; http_uri clears all but the first three fields
 * for each request. The buffers are freed in http_done, which libmicrohttpd calls however a request ends. */
struct call {
    struct server *server;
    struct MHD_Connection *connection;
    TAILQ_ENTRY(call) place; /* in server->calls */
    enum { IDLE, HEADERS, BODY, WHOLE, SUSPENDED, OVER } state;
    size_t uri_bytes;        /* as it came */
    const char *headers_end; /* the end of the last value that each_header has seen */
    union {
        struct headers header; /* null: not sent */
        const char *headers[HEADER_NAMES + 1];
    };
    char *uri, *text; /* owned; the text is decoded in place, and `key` and `query` point into it */
    int method, route;   /* indexes in methods and routes */
    int format;          /* of a listing */
    bool close, is_peer; /* is_peer: it sent a frame that is signed */
    uint64_t started;    /* when its headers were there; 0: they are not */
    struct bytes body;   /* of the request, later of the answer */
    uint64_t unsent;     /* bytes that Content-Length counts, and HEAD does not send */
    bool under_way;      /* it is in server->calls_count */
    bool forgets;        /* a write that nobody repeats once it was answered */
    uint64_t answered;   /* the id of such a write, answered before; 0: none */
    struct bytes key;
    struct query query;
    struct message m;                        /* the request as the core takes it */
    char retry_key[RETRY_KEY_BYTES_MAX + 1]; /* Idempotency-Key: the client's, or one made here */
    uint64_t key_time; /* microseconds since 1970, by the client's clock; 0: unknown */
    int status;
    struct MHD_Response *response;
};

/* Answers with what stands in c->body. */
static void call_respond(struct call *c, int status, const char *type)
{
    void *body = c->body.count ? c->body.data : (void *)""; /* for HEAD there is none */
    c->response =
        MHD_create_response_from_buffer(c->body.count + c->unsent, body, MHD_RESPMEM_PERSISTENT);
    if (!c->response)
        die("out of memory");
    c->status = status;
    if (type)
        MHD_add_response_header(c->response, "Content-Type", type);
}

/* Values are made here or checked before: libmicrohttpd rejects line breaks in them. */
__attribute__((format(printf, 3, 4))) static void call_header(struct call *c, const char *name,
                                                              const char *format, ...)
{
    char value[4 * KEY_TEXT_BYTES + 64];
    va_list list;
    va_start(list, format);
    vsnprintf(value, sizeof value, format, list);
    va_end(list);
    MHD_add_response_header(c->response, name, value);
}

/* Answers with one line of text: mostly what is wrong, and what to do. If a write failed, the line says
 * whether it may have been applied. The answer to a repeat never says that nothing was changed, because the
 * first try may have been applied. Returns false. */
__attribute__((format(printf, 3, 4))) static bool call_text(struct call *c, int status,
                                                            const char *format, ...)
{
    bool busy = status == 503 || status == 507, keyed = *c->retry_key && !(c->m.flags & FLAG_ONE);
    bool unknown = status == STATUS_UNKNOWN || (busy && c->m.flags & FLAG_REPEAT);
    const char *outcome = unknown && keyed
                              ? "; it may or may not have been applied: to find out, repeat it "
                                "within a minute with Idempotency-Key: %s and Estoraje-Retry: 1; "
                                "later, read the key\n"
                          : unknown ? "; it may or may not have been applied: read the key\n"
                          : busy && c->m.function != DO_READ ? "; nothing was changed\n"
                                                             : "\n";
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    c->body.count = 0;
    bytes_print(&c->body, "%s", text);
    bytes_print(&c->body, outcome, c->retry_key);
    call_respond(c, unknown ? 503 : status, "text/plain");
    c->close |= status == 401 || status == 411 || status == 413;
    if (status == 401)
        call_header(c, "WWW-Authenticate", "Bearer");
    if (c->status == 503 || c->status == 507)
        call_header(c, "Retry-After", "1");
    if (unknown)
        call_header(c, "Estoraje-Outcome", "unknown");
    if (unknown && keyed)
        call_header(c, "Idempotency-Key", "%s", c->retry_key);
    return false;
}

/* Queues the response that call_respond made. A node that stops closes each connection behind its answer, so
 * that a load balancer or client goes elsewhere. */
static enum MHD_Result call_send(struct call *c)
{
    c->state = OVER;
    c->server->resumed = true; /* libmicrohttpd is to run once more, to send it */
    if (c->close || stop_asked)
        call_header(c, "Connection", "close");
    return MHD_queue_response(c->connection, (unsigned)c->status, c->response);
}

/* --- parsing: each says by its result whether the text was well-formed --- */

/* Decodes in place, and puts a NUL behind. Returns the number of bytes, -1 if the text is malformed. */
static int percent_decode(char *text)
{
    char *to = text;
    for (const char *at = text; *at; at++) {
        bool coded = *at == '%';
        if (coded && !(isxdigit((unsigned char)at[1]) && isxdigit((unsigned char)at[2])))
            return -1;
        *to++ = coded ? (char)strtoul((char[]){at[1], at[2], 0}, NULL, 16) : *at;
        at += coded ? 2 : 0;
    }
    *to = 0;
    return (int)(to - text);
}

/* A setting is an option of the command line or a parameter of a query. Both are rows of a table, so that a value
 * is checked in one place, and an error names what would be right.
 *
 *    TEXT           anything                     CHOICE, FLAG    one of some words
 *    KEY            percent-decoded, any byte    SIGNED          a 64-bit integer, for counters
 *    COUNT          a number                     BYTES           a number, or with k, M or G
 *    MILLISECONDS, SECONDS                       a number of these, or with ms, s, m, h or d
 */
struct setting {
    const char *name;
    enum { TEXT, FLAG, CHOICE, KEY, SIGNED, COUNT, BYTES, MILLISECONDS, SECONDS } kind;
    const char *argument;        /* null: none; of a CHOICE: all of them, "a|b|c" */
    const char *standard, *help; /* of an option */
    size_t offset; /* of a const char *; a bool for FLAG, a struct bytes for KEY, else a uint64_t */
    uint64_t least, most;
    const char *methods; /* of a parameter: with which it goes, and with which route */
    int route;
};

/* The place of `text` among "a|b|c", from 1 on; 0: none of them. */
static uint64_t choice_find(const char *choices, const char *text)
{
    uint64_t place = 1;
    for (char *one, *all = strdupa(choices); (one = strsep(&all, "|")); place++)
        if (strcmp(one, text) == 0)
            return place;
    return 0;
}

/* A whole number with a unit: bytes, or microseconds. What overflows is malformed: a limit that wraps around would
 * be a small one. */
static bool parse_number(const char *text, int kind, uint64_t *value)
{
    static const struct {
        const char *name;
        bool time;
        uint64_t scale;
    } units[] = {{"k", false, 1 << 10},      {"M", false, 1 << 20},      {"G", false, 1 << 30},
                 {"ms", true, MS},           {"s", true, SECOND},        {"m", true, 60 * SECOND},
                 {"h", true, 3600 * SECOND}, {"d", true, 86400 * SECOND}};
    char *end;
    errno = 0;
    uint64_t number = strtoull(text, &end, 10);
    uint64_t scale = *end ? 0 : kind == SECONDS ? SECOND : kind == MILLISECONDS ? MS : 1;
    for (size_t i = 0; i < sizeof units / sizeof *units && kind != COUNT; i++)
        if (units[i].time == (kind != BYTES) && strcmp(end, units[i].name) == 0)
            scale = units[i].scale;
    return isdigit((unsigned char)*text) && scale && !errno &&
           !__builtin_mul_overflow(number, scale, value);
}

/* Sets the field of `to` that the setting is about; the text is not copied. */
static bool setting_parse(const struct setting *s, void *to, char *text, size_t bytes)
{
    void *field = (char *)to + s->offset;
    uint64_t *number = field, place;
    char *end;
    if (s->kind != KEY && strlen(text) != bytes)
        return false; /* a NUL would hide the rest */
    switch (s->kind) {
    case TEXT:
        *(const char **)field = text;
        return true;
    case FLAG:
        place = choice_find("1|true|yes|on|0|false|no|off", text);
        *(bool *)field = place <= 4;
        return place > 0;
    case KEY:
        *(struct bytes *)field = (struct bytes){(uint8_t *)text, bytes, 0};
        return bytes <= KEY_BYTES_MAX;
    case CHOICE:
        *number = choice_find(s->argument, text);
        return *number > 0;
    case SIGNED:
        errno = 0;
        *number = (uint64_t)strtoll(text, &end, 10);
        return !errno && !*end && (isdigit((unsigned char)*text) || *text == '-');
    default:
        return parse_number(text, s->kind, number) && *number >= s->least && *number <= s->most;
    }
}

/* RFC 9110, 8.8.3:  entity-tag = [ W/ ] DQUOTE *etagc DQUOTE,  and a list has commas between them. Tags of
 * other servers are well-formed and match nothing, since a cache may send what it got elsewhere.
 * One entity tag of a list, "modified-write_id" in hex; {0} if it is nobody's, or weak and that counts.
 * Returns what follows it, null if it is malformed. */
static const char *parse_etag(const char *text, bool weak, struct ballot *etag)
{
    static const char digits[] = "0123456789abcdef", blanks[] = " \t";
    text += strspn(text, blanks);
    const char *tag = text + (strncmp(text, "W/", 2) == 0 ? 2 : 0),
               *end = *tag == '"' ? strchr(tag + 1, '"') : NULL;
    *etag = (struct ballot){0};
    if (end == tag + 34 && strspn(tag + 1, digits) == 16 && tag[17] == '-' &&
        strspn(tag + 18, digits) == 16 && (weak || tag == text))
        *etag = (struct ballot){0, strtoull(tag + 1, NULL, 16), strtoull(tag + 18, NULL, 16)};
    return end ? end + 1 + strspn(end + 1, blanks) : NULL;
}

/* The Unix time that an Idempotency-Key begins with: ten digits, maybe a fraction, then `after`; in
 * quotes or not. 0: it does not. (The first part of a UUID has eight digits, and is none.) */
static uint64_t parse_unix_time(const char *text, char after)
{
    static const char digits[] = "0123456789";
    const char *start = text + (*text == '"'), *end = start + strspn(start, digits);
    if (end != start + 10)
        return 0;
    end += *end == '.' ? 1 + strspn(end + 1, digits) : 0;
    return *end == after ? (uint64_t)(strtod(start, NULL) * 1e6) : 0;
}

/* RFC 9110, 14.1.2. Several ranges at once are not served: a server may ignore a Range. A size that is not
 * known yet is UINT64_MAX, as when the core is asked for the part alone.
 * Range: bytes=a-b, a- or -n; of another form: false, and it is ignored: `from` and `count` stay.
 * count 0: not satisfiable. */
static bool parse_range(const char *text, uint64_t size, uint64_t *from, uint64_t *count)
{
    static const char digits[] = "0123456789";
    if (!text || strncasecmp(text, "bytes=", 6) != 0)
        return false;
    const char *first = text + 6, *dash = first + strspn(first, digits);
    if (*dash != '-' || dash[1 + strspn(dash + 1, digits)] || strlen(first) == 1)
        return false;
    uint64_t start = strtoull(first, NULL, 10),
             last = dash[1] ? strtoull(dash + 1, NULL, 10) : UINT64_MAX;
    if (dash == first) {
        start = size - min_u64(last, size);
        last = UINT64_MAX;
    }
    if (last < start)
        return false;
    *from = start;
    *count = start < size ? min_u64(last, size - 1) - start + 1 : 0;
    return true;
}

/* --- a request becomes a message --- */

static const char gap[] = "a control character, a folded line or a bare line feed is ambiguous";
/* A header's name may have none of these, a path may have the first, and a value the first two. */
static const char controls[] =
    " \t\1\2\3\4\5\6\7\10\13\14\15\16\17\20\21\22\23\24\25\26\27\30\31\32\33\34\35\36\37\177";

/* What libmicrohttpd read must be all that there is. The pointers that it hands out point into what came:
 *
 *    PUT /key HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n
 *    ^method  ^version  ^name ^value                  ^headers_end, after the last value
 *
 * Each byte of the headers must belong to a name, a value or what separates them. Where libmicrohttpd
 * stopped at a NUL, or accepted a folded line or a bare line feed, there is a gap between one value and the
 * next name: another reader could see other headers there. Blanks behind a value are cut off. */
static enum MHD_Result each_header(void *arg, enum MHD_ValueKind kind, const char *name,
                                   size_t name_bytes, const char *value, size_t value_bytes)
{
    struct call *c = arg;
    unsigned i = 0;
    (void)kind;
    while (i < HEADER_NAMES && strcasecmp(name, header_names[i]) != 0)
        i++;
    bool twice = i < HEADER_NAMES - 1 && c->headers[i];
    c->headers[i] = value;
    const char *length = c->header.length, *coding = c->header.coding;
    const char *fault =
        name != c->headers_end + 2 || strpbrk(value, controls + 2) ? gap
        : !name_bytes || strpbrk(name, controls) ? "white space before the colon is ambiguous"
        : twice || (length && coding)            ? "sent twice, or beside another length"
        : length && (!*length || length[strspn(length, "0123456789")]) ? "it must be a number"
        : coding && strcasecmp(coding, "chunked") != 0                 ? "it must be chunked"
                                                                       : NULL;
    c->headers_end = value + value_bytes;
    while (value_bytes && strchr(" \t", value[value_bytes - 1]))
        ((char *)value)[--value_bytes] = 0;
    return !fault || call_text(c, 400, "header %.40s: %s", name, fault) ? MHD_YES : MHD_NO;
}

/* Rejects a request that two readers could read as two different ones (request smuggling). */
static bool call_wire(struct call *c, const char *method, const char *version)
{
    size_t bytes = MHD_get_connection_info(c->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE)
                       ->header_size;
    c->headers_end = version + strlen(version);
    MHD_get_connection_values_n(c->connection, MHD_HEADER_KIND, each_header, c);
    bool plain = version == method + strlen(method) + c->uri_bytes + 2 &&
                 c->headers_end + 4 == method + bytes && !strpbrk(c->uri, controls + 1);
    bool host = c->header.host || strcmp(version, "HTTP/1.0") == 0;
    c->close = c->response || (!plain && !call_text(c, 400, gap)) ||
               (!host && !call_text(c, 400, "a Host header is missing"));
    return !c->close && (bytes <= HEAD_BYTES_MAX ||
                         call_text(c, c->uri_bytes > HEAD_BYTES_MAX / 2 ? 414 : 431,
                                   "too large: a key has at most %d bytes, all headers %d",
                                   KEY_BYTES_MAX, HEAD_BYTES_MAX));
}

#define QUERY(field) .offset = offsetof(struct query, field)
enum { PARAMETER_BY, PARAMETER_OP, PARAMETER_CONSISTENCY };
/* A parameter belongs to one route (ROUTE_KEY if none is named) and some methods; elsewhere it is an error,
 * since a limit= on a key or a ttl= on a GET is a mistake. consistency= also goes with a listing. */
static const struct setting parameters[] = {
    {"by", SIGNED, "a 64-bit integer", QUERY(by), .methods = "POST"},
    {"op", CHOICE, "add", QUERY(op), .methods = "POST"},
    {"consistency", CHOICE, "quorum|one|all", QUERY(consistency), .methods = every},
    {"ttl", SECONDS, "a time above 0, such as 500ms, 30s or 1d", QUERY(ttl), 1, INT64_MAX / 2,
     storing},
    {"wait", SECONDS, "a time of at most 5m, such as 30s", QUERY(wait), 0, 300 * SECOND, "GET"},
    {"limit", COUNT, "1 to 100000", QUERY(limit), 1, 100000, reading, ROUTE_LIST},
    {"after", KEY, "a key", QUERY(after), .methods = reading, ROUTE_LIST},
    {"prefix", KEY, "a key", QUERY(prefix), .methods = reading, ROUTE_LIST},
    {"create", CHOICE, "true", QUERY(create), .methods = "POST", ROUTE_CREATE},
    {"lost", FLAG, "true or false", QUERY(lost), .methods = "DELETE", ROUTE_NODE},
};
enum { PARAMETERS = sizeof parameters / sizeof *parameters };

/* Reads the query into c->query, and what the core has to know of it into the message. */
static bool call_query(struct call *c, char *query)
{
    struct query *q = &c->query;
    static const uint8_t consistencies[] = {0, 0, FLAG_ONE, FLAG_ALL};
    unsigned seen = 0;
    *q = (struct query){.limit = 1000, .by = 1};
    for (char *save, *part = strtok_r(query, "&", &save); part; part = strtok_r(NULL, "&", &save)) {
        char *value = part + strcspn(part, "=");
        if (*value)
            *value++ = 0;
        for (char *plus = value; (plus = strchr(plus, '+'));)
            *plus = ' ';
        int i = 0, bytes = percent_decode(value);
        while (i < PARAMETERS && strcmp(parameters[i].name, part) != 0)
            i++;
        if (i == PARAMETERS && c->m.function == DO_READ)
            continue; /* caches and git send such; on a write, a misspelt one must not be lost */
        bool goes = i == PARAMETER_CONSISTENCY && c->route == ROUTE_LIST;
        if (i == PARAMETERS || (parameters[i].route != c->route && !goes) ||
            !strstr(parameters[i].methods, methods[c->method]) || seen >> i & 1)
            return call_text(c, 400, "parameter '%.40s' is unknown here, or given twice", part);
        if (bytes < 0 || !setting_parse(&parameters[i], q, value, (size_t)bytes))
            return call_text(c, 400, "%s= needs %s", part, parameters[i].argument);
        seen |= 1u << i;
    }
    c->m.flags = consistencies[q->consistency] | (q->wait ? FLAG_WATCH : 0);
    if (q->op ? c->m.flags & FLAG_ONE || q->ttl : seen >> PARAMETER_BY & 1)
        return call_text(c, 400, "by= needs op=add, which takes neither ttl= nor consistency=one");
    c->m.amount = q->op ? q->by : 0;
    c->m.function = q->op ? DO_ADD : c->m.function;
    return true;
}

/* What the core is asked to check, on which requests (RFC 9110, 13.1):
 *
 *                        a write                    a read
 *    If-Match: *         IF_EXISTS                  http_reply: 412 if there is no value
 *    If-Match: "etag"    IF_MATCH, one tag          http_reply: 412 if it is none of these
 *    If-None-Match: *    IF_ABSENT                  reply_value: 304 if there is a value
 *    If-None-Match: "e"  400                        reply_value: 304; with wait=, the core waits for another
 *
 * A write's condition is checked by the round that applies it, so nothing can come between the two.
 * If-Match, or (none) If-None-Match: a list of entity tags. Those that are not of our form match nothing.
 * A read may list several of ours; a write, and a read that waits for a change, one. */
static bool call_condition(struct call *c, const char *text, bool none)
{
    bool reads = c->m.function == DO_READ, any = text && strcmp(text, "*") == 0;
    struct ballot tag, mine = {0};
    int ours = 0;
    const char *end = text;
    if (!text)
        return true;
    for (; !any && (end = parse_etag(end, none, &tag)); end++) {
        ours += tag.time && !ballot_equal(tag, mine);
        mine = tag.time ? tag : mine;
        if (*end != ',')
            break;
    }
    if (c->m.condition || (!any && (!end || *end || (none && !reads))) ||
        (ours > 1 && (!reads || (none && c->m.flags & FLAG_WATCH))))
        return call_text(c, 400,
                         "If-Match takes * or one ETag in quotes, If-None-Match *, or on GET ETags "
                         "(one with wait=)");
    if (c->m.flags & FLAG_ONE && !reads)
        return call_text(c, 400, "consistency=one takes no condition: nothing orders it");
    if (reads && !none)
        return true; /* http_reply compares it */
    c->m.ballot = mine;
    c->m.condition = !any ? IF_MATCH : none && !reads ? IF_ABSENT : IF_EXISTS;
    return true;
}

/* Room for so many more bytes of a body, if they are not too many. With Content-Length all of it is counted
 * before the first byte comes: a body that has begun is not broken off for want of memory. */
static bool call_reserve(struct call *c, uint64_t bytes)
{
    struct server *s = c->server;
    uint64_t small = bytes > BULK_BYTES ? 0 : bytes_limit / 8; /* these pass when others wait */
    if (c->body.count + bytes > s->options.max_value)
        return call_text(c, 413, "a value has at most %" PRIu64 " bytes", s->options.max_value);
    if (c->body.count + bytes > c->body.capacity && bytes_held + bytes > bytes_limit + small) {
        s->no_memory_at = s->node->now;
        return call_text(c, 503, "overloaded: too much is in flight");
    }
    bytes_reserve(&c->body, bytes);
    return true;
}

/* Checks the headers of a write, and makes room for its body. What the client says about repeats becomes flags:
 *
 *    Idempotency-Key  Estoraje-Retry
 *    none             none, 0           FLAG_FRESH later: a key is made here, which no repeat can have
 *    given            none              FLAG_KEYED: it may be a repeat, although it does not say so
 *    given            0                 a first try; `forgets` if nobody will repeat it once it is answered
 *    any              1, or a time      FLAG_REPEAT: what is not remembered is unknown, never applied anew
 *
 * A key's time may be old by REPEAT_TIME at most: results are remembered as long (R11). */
static bool call_write(struct call *c)
{
    const char *type = c->header.type, *retry = c->header.retry, *key = c->header.key;
    uint64_t bytes = c->header.length ? strtoull(c->header.length, NULL, 10) : 0;
    const struct node *n = c->server->node; /* the wall clock may have jumped */
    uint64_t wall = min_u64(n->wall, n->time), tried = retry ? parse_unix_time(retry, 0) : 0;
    bool repeat = tried || (retry && strcmp(retry, "1") == 0);
    if (c->header.content_range)
        return call_text(c, 400, "Content-Range: a part of a value cannot be written");
    if (retry && !repeat && strcmp(retry, "0") != 0)
        return call_text(c, 400, "Estoraje-Retry is 0, 1, or the Unix time of the first try");
    c->m.flags |= repeat ? FLAG_REPEAT : 0;
    if (key && !(c->m.flags & FLAG_ONE)) {
        if (!*key || strlen(key) > RETRY_KEY_BYTES_MAX)
            return call_text(c, 400, "Idempotency-Key has 1 to %d bytes", RETRY_KEY_BYTES_MAX);
        memcpy(c->retry_key, key, strlen(key) + 1);
        /* A client that sends Estoraje-Retry marks its repeats; those of others come unmarked. */
        c->m.flags |= retry ? 0 : FLAG_KEYED;
        c->forgets = retry && !repeat && c->header.forget;
        uint64_t time = parse_unix_time(key, '-');
        c->key_time = time ? time : tried;
        if (c->key_time && c->key_time + REPEAT_TIME < wall)
            return call_text(c, 503, "the Idempotency-Key is %" PRIu64 " s behind, over 60",
                             (wall - c->key_time) / SECOND);
    }
    if (type && strlen(type) > TYPE_BYTES_MAX)
        return call_text(c, 400, "Content-Type has at most %d bytes", TYPE_BYTES_MAX);
    if (!c->header.length && !c->header.coding && c->m.function == DO_PUT)
        return call_text(c, 411, "send Content-Length or Transfer-Encoding: chunked");
    return call_reserve(c, bytes);
}

/* A write's id and when it was issued: from its Idempotency-Key, so that a repeat has the same (R11); from
 * one made here if it has none. Called when the body is there: the headers may have come long before. */
static void call_write_id(struct call *c)
{
    const char *type = c->header.type;
    struct bytes all = {0};
    if (!*c->retry_key) {
        c->m.flags |= FLAG_FRESH;
        c->key_time = c->server->node->time;
        snprintf(c->retry_key, sizeof c->retry_key, "%" PRIu64 ".%06" PRIu64 "-%016" PRIx64,
                 c->key_time / SECOND, c->key_time % SECOND, node_random(c->server->node));
    }
    write_issued_at(c->server->node, &c->m, c->key_time);
    bytes_print(&all, "%s %s %s %s %d %" PRIu64 " %" PRIu64 "\n", c->retry_key, methods[c->method],
                c->uri, type ? type : "", c->m.condition, c->m.ballot.time, c->m.ballot.node);
    c->m.write_id =
        XXH3_64bits_withSeed(c->body.data, c->body.count, XXH3_64bits(all.data, all.count));
    bytes_free(&all);
}

/* With TLS, only who has a certificate of our CA is a peer; clients need none. */
static bool certificate_is_ours(const struct call *c)
{
    unsigned faults;
    if (!c->server->options.tls_ca)
        return true;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    return gnutls_certificate_verify_peers2(info->tls_session, &faults) == 0 && faults == 0;
}

/* In constant time, so that the secret cannot be found out byte by byte. */
static bool secret_matches(const struct call *c)
{
    const char *secret = c->server->secret, *got = c->header.secret;
    size_t bytes = secret ? strlen(secret) : 0;
    return !secret || (got && strncasecmp(got, "Bearer ", 7) == 0 && strlen(got) == bytes + 7 &&
                       gnutls_memcmp(got + 7, secret, bytes) == 0);
}

/* http_handle is called again, to send the response. */
static void call_resume(struct call *c)
{
    assert(c->state == SUSPENDED);
    c->state = OVER;
    c->server->resumed = true;
    MHD_resume_connection(c->connection);
}

/* The core reads no more of a value than is sent: a large one would cost memory and the disk's time for nothing.
 * What the core is asked for: of a range its part alone, and no value if the client has it already. With
 * If-Range all of the value is asked for, as it may turn out to be wanted. */
static void call_part(struct call *c)
{
    c->m.expiry = c->method == HEAD ? 0 : UINT64_MAX;
    if (!c->header.if_range)
        parse_range(c->header.range, UINT64_MAX, &c->m.part_start, &c->m.expiry);
    if (c->header.none_match) {
        c->m.modified = c->m.ballot.time;
        c->m.write_id = c->m.ballot.node;
    }
}

/* --- the routes --- */

/* The whole body is there. The write id covers it, so that the same key on another body is another write. */
static void answer_key(struct call *c)
{
    const char *type = c->header.type;
    if (c->m.function != DO_READ)
        call_write_id(c);
    else
        call_part(c);
    if (c->query.ttl) /* it runs from when the body is there */
        c->m.expiry = node_latest_time(c->server->node) + c->query.ttl;
    if (c->m.function == DO_PUT) { /* the others have neither value nor type */
        c->m.flags |= FLAG_WHOLE;
        c->m.type_bytes = type ? (uint16_t)strlen(type) : 0;
        c->m.value_bytes = (uint32_t)c->body.count;
    }
    c->m.partition = key_partition(c->key.data, c->key.count);
    c->m.key_bytes = (uint16_t)c->key.count;
    node_request(c->server->node, c, &c->m,
                 &(struct body){.key = c->key.data, .type = type, .value = c->body.data},
                 c->query.wait);
    if (!c->response)
        bytes_free(&c->body); /* the core has a copy */
}

/* GET /a/?prefix=b lists what begins with a/b. restic's listings are whole, because it knows no pages. */
static void answer_list(struct call *c)
{
    struct bytes prefix = {0};
    bytes_append(&prefix, c->key.data, c->key.count);
    bytes_append(&prefix, c->query.prefix.data, c->query.prefix.count);
    bytes_print(&c->body, "%s", formats[c->format].start);
    node_list(c->server->node, c, prefix, c->query.after,
              c->format == LIST_RESTIC ? UINT32_MAX : c->query.limit, c->m.flags & FLAG_ONE);
    bytes_free(&prefix);
}

/* Estoraje-Cluster lets a node that starts find out whether it asked a member of its own cluster. */
static void answer_health(struct call *c)
{
    bool ready = c->key.count == strlen("_ready");
    const char *reason = ready ? unready(c->server) : unhealthy(c->server);
    call_text(c, reason ? 503 : 200, "%s", reason ? reason : "ok");
    if (c->server->node->cluster)
        call_header(c, "Estoraje-Cluster", "%016" PRIx64, c->server->node->cluster);
}

/* The members of these ids, with commas between, as bits; 0: one is unknown, or there is none. */
static uint64_t parse_members(const struct node *n, char *text)
{
    uint64_t members = 0;
    for (char *id, *end; (id = strsep(&text, ","));) {
        int index = member_index(n->view, strtoull(id, &end, 16));
        if (index < 0 || end != id + 16 || *end)
            return 0;
        members |= UINT64_C(1) << index;
    }
    return members;
}

/* Drains a member, or declares some lost. 202 says that it has begun; views follow, which _status shows. To ask
 * for a drain again is no error: a client that got no answer does. */
static void answer_leave(struct call *c, uint64_t members)
{
    struct node *n = c->server->node;
    int index = members ? __builtin_ctzll(members) : 0;
    if (!members || (!c->query.lost && members & (members - 1)))
        call_text(c, 404, "no member has this id: see /_status");
    else if (c->query.lost && !node_lose(n, members))
        call_text(c, 409, "one of these is live: what it holds is not lost; drain it, or stop it");
    else if (c->query.lost)
        call_text(c, 202, "proposed: ask again unless /_status shows them lost");
    else if (n->view->members[index].state == MEMBER_LEAVING || node_drain(n, index))
        call_text(c, 202, "draining: see /_status for progress");
    else
        call_text(c, 409, "no other member is live and up to take its data");
}

/* Where a key is; or, to be drained, a member. */
static void answer_node(struct call *c)
{
    struct node *n = c->server->node;
    char *name = (char *)c->key.data + strlen("_nodes/");
    size_t bytes = c->key.count - strlen("_nodes/");
    if (!n->view || (c->method == DELETE && !n->has_lease)) {
        call_text(c, 503, "%s", unhealthy(c->server));
    } else if (c->method == DELETE || !bytes) {
        answer_leave(c, bytes && strlen(name) == bytes ? parse_members(n, name) : 0);
    } else {
        print_place(&c->body, n, name, bytes);
        call_respond(c, 200, "application/json");
    }
}

/* A peer's POST does not end. */
static void answer_messages(struct call *c)
{
    call_text(c, c->server->secret ? 401 : 400, "for nodes alone: clients store under /KEY");
}

/* All that is served. The first five stand at fixed places; the core replies to the first two, and the others
 * are answered at once. A path with an underscore is looked for from ROUTE_MESSAGES on. */
static const struct route {
    const char *path; /* null: any that does not begin with an underscore; see fnmatch */
    const char *methods;
    void (*answer)(struct call *c); /* null: it is 200, with what `print` writes, if set */
    void (*print)(struct bytes *out, const struct server *s);
    const char *type;
} routes[] = {
    [ROUTE_KEY] = {.methods = every, answer_key},
    [ROUTE_LIST] = {.methods = reading, answer_list},
    [ROUTE_CREATE] = {.methods = "POST"}, /* restic makes a repository: nothing is to be done */
    [ROUTE_MESSAGES] = {.path = "_mail", "POST", answer_messages},
    [ROUTE_NODE] = {.path = "_nodes[/]*", "GET, HEAD, DELETE", answer_node},
    {.path = "_health", reading, answer_health},
    {.path = "_ready", reading, answer_health},
    {.path = "_status", reading, .print = print_status, "application/json"},
    {.path = "_nodes", reading, .print = print_nodes, "text/plain"},
    {.path = "_ring", reading, .print = print_page, "text/html; charset=utf-8"},
    {.path = "_metrics", reading, .print = print_metrics, "text/plain; version=0.0.4"},
};
enum { ROUTES = sizeof routes / sizeof *routes };

/* Suspends and answers the requests that are there as a whole. This is done outside of the handler, when
 * libmicrohttpd waits for no more bytes of them: else it would read once more when it is resumed, and a
 * client that had closed its sending side would get no answer. */
static void calls_answer(struct server *s)
{
    for (struct call *c; (c = TAILQ_FIRST(&s->calls)) && c->state == WHOLE;) {
        TAILQ_REMOVE(&s->calls, c, place);
        TAILQ_INSERT_TAIL(&s->calls, c, place);
        c->state = SUSPENDED;
        MHD_suspend_connection(c->connection);
        const struct route *r = &routes[c->route];
        if (r->print)
            r->print(&c->body, c->server);
        if (r->answer)
            r->answer(c);
        else
            call_respond(c, 200, r->type);
        if (c->route > ROUTE_LIST) /* else the core replies */
            call_resume(c);
    }
}

/* Finds the route and the key that the path names, and whether this client may use them.
 *
 *    /KEY         ROUTE_KEY                      /PREFIX/, /    ROUTE_LIST; with POST and a query ROUTE_CREATE
 *    /_NAME       a row with a path, or 404      /_nodes/KEY    ROUTE_NODE: any key, so it may hold a NUL
 *
 * The path was decoded before it is compared: /%5Fmail is /_mail, for a proxy's rules and for this function.
 * Dots and double slashes mean nothing, so that every string of bytes is a key of its own. */
static bool call_route(struct call *c, char *path, bool queried)
{
    bool all = c->method == OTHER && strcmp(path, "*") == 0; /* OPTIONS *: it is 405 */
    int bytes = *path == '/' || all ? percent_decode(++path) : -1;
    if (bytes < 0)
        return call_text(c, 400, "the path is not well-formed: %% needs two hex digits after it");
    bool list = !bytes || path[bytes - 1] == '/', reserved = *path == '_';
    c->key = (struct bytes){(uint8_t *)path, (size_t)bytes, 0};
    c->route = !list ? ROUTE_KEY : c->method == POST && queried ? ROUTE_CREATE : ROUTE_LIST;
    if (reserved) {
        bool cut = strlen(path) != (size_t)bytes && strncmp(path, "_nodes/", 7) != 0;
        c->route = cut ? ROUTES : ROUTE_MESSAGES;
        while (c->route < ROUTES && fnmatch(routes[c->route].path, path, 0) != 0)
            c->route++;
    }
    const char *possible = c->route < ROUTES ? routes[c->route].methods : every;
    const char *site = c->header.site, *type = c->header.type;
    bool changes = c->method > HEAD;
    if (c->route == ROUTES)
        call_text(c, 404, "there are _health, _ready, _status, _nodes, _ring and _metrics");
    else if (bytes > KEY_BYTES_MAX + reserved * (int)strlen("_nodes/"))
        call_text(c, 414, "a key has at most %d bytes", KEY_BYTES_MAX);
    else if (!strstr(possible, methods[c->method]))
        call_text(c, 405, "this method is not possible here; possible: %s", possible);
    else if (changes && site && strcmp(site, "cross-site") == 0)
        call_text(c, 403, "a page of another site may not change anything here");
    else if (changes && reserved && !certificate_is_ours(c))
        call_text(c, 401, "a certificate of the cluster's CA is needed, not an expired one");
    else if (c->route == ROUTE_MESSAGES && (!type || strcmp(type, FRAME_TYPE) != 0))
        answer_messages(c);
    else if (reserved && c->method == DELETE && !secret_matches(c))
        call_text(c, 401, "the cluster's secret is needed: Authorization: Bearer SECRET");
    if (c->status == 405)
        call_header(c, "Allow", "%s", possible);
    return !c->response;
}

/* Begins a request when its headers are there. Nothing is sent yet, even if the answer is known, unless the
 * connection is to be closed: http_handle sends it when the body was read. A node that is stopping or is no
 * member says so here, last: an error of the request's own is an error at every node. */
static void call_begin(struct call *c, const char *method, const char *version)
{
    static const uint8_t functions[METHODS] = {DO_READ, DO_READ, DO_PUT, DO_PUT, DO_DELETE, 0};
    char *query = c->text + strcspn(c->text, "?");
    c->state = BODY;
    c->started = c->server->node->now;
    while (c->method < OTHER && strcmp(methods[c->method], method) != 0)
        c->method++;
    c->m.function = functions[c->method];
    if (*query)
        *query++ = 0;
    bool fine = call_wire(c, method, version) && call_route(c, c->text, *query != 0) &&
                call_query(c, query) && call_condition(c, c->header.match, false) &&
                call_condition(c, c->header.none_match, true) &&
                (c->route != ROUTE_KEY || c->m.function == DO_READ || call_write(c));
    if (c->method != GET)
        c->header.range = NULL; /* RFC 9110, 14.2 */
    c->format = c->header.accept ? LIST_RESTIC : LIST_TEXT;
    while (c->format && !strstr(c->header.accept, formats[c->format].type))
        c->format--;
    c->under_way = c->route != ROUTE_MESSAGES && !stop_asked;
    c->server->calls_count += c->under_way;
    if (fine && stop_asked && c->route != ROUTE_MESSAGES)
        call_text(c, 503, "this node is stopping: ask another");
    else if (fine && c->server->node->self < 0 && !routes[c->route].path)
        call_text(c, 503, "%s", unhealthy(c->server));
    else if (fine && c->server->clients_count + CLIENTS_SPARE / 2 > c->server->clients_max &&
             !routes[c->route].path) /* the rest is for peers and operators */
        c->close = !call_text(c, 503, "overloaded: too many connections");
}

/* --- a reply becomes a response --- */

/* Whether a list of entity tags is "*" or has this one; `weak`: also as a weak tag. */
static bool etag_is_listed(const char *list, const char *etag, bool weak)
{
    const char *same = strstr(list, etag);
    return strcmp(list, "*") == 0 || (same && (weak || same == list || same[-1] != '/'));
}

/* The core sends a whole value, the part that call_part asked for, or none for a HEAD and for a client that has
 * the value already. total_bytes is the value's size in every case.
 *
 *    304    an ETag of If-None-Match is the value's
 *    416    the range begins behind the end
 *    206    a range of one part, and If-Range is absent or names this value
 *    200    else
 *
 * nosniff and sandbox: a value is whatever somebody stored. A browser that shows it must not run it as a
 * page of this site, from which requests to all other keys would be allowed. */
static void reply_value(struct call *c, const struct message *m, const char *etag)
{
    struct body body = message_body(m);
    const char *if_range = c->header.if_range, *none = c->header.none_match;
    uint64_t from = 0, count = m->total_bytes;
    static const char http_date[] = "%a, %d %b %Y %H:%M:%S GMT";
    char date[64], type[TYPE_BYTES_MAX + 1] = "application/octet-stream";
    if (m->type_bytes)
        snprintf(type, sizeof type, "%.*s", m->type_bytes, (const char *)body.type);
    bool part = (!if_range || strcmp(if_range, etag) == 0) &&
                parse_range(c->header.range, m->total_bytes, &from, &count);
    bool whole = m->value_bytes == m->total_bytes; /* else it is the part that was asked for */
    if (none && etag_is_listed(none, etag, true)) {
        call_respond(c, 304, NULL);
    } else if (part && !count) {
        call_text(c, 416, "the value has %" PRIu64 " bytes", m->total_bytes);
        call_header(c, "Content-Range", "bytes */%" PRIu64, m->total_bytes);
    } else {
        c->unsent = c->method == HEAD ? count : 0;
        bytes_append(&c->body, (const uint8_t *)body.value + (whole ? from : 0), count - c->unsent);
        call_respond(c, part ? 206 : 200, type);
        if (part)
            call_header(c, "Content-Range", "bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64, from,
                        from + count - 1, m->total_bytes);
    }
    call_header(c, "Last-Modified", "%s", time_text(date, http_date, m->modified));
    MHD_add_response_header(c->response, "Accept-Ranges", "bytes");
    MHD_add_response_header(c->response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(c->response, "Content-Security-Policy", "sandbox");
    if (m->expiry)
        call_header(c, "Estoraje-Expires", "%s", time_text(date, http_date, m->expiry));
}

/* In JSON an entry that follows another has a comma before it: then the text so far ends with a brace. restic
 * wants the keys directly under the path, by the rest of their names. */
static void print_listed(struct bytes *out, const struct call *c, const struct listed *e)
{
    const char *comma = out->count && out->data[out->count - 1] == '}' ? "," : "";
    char text[KEY_TEXT_BYTES], expires[32] = "null";
    size_t skipped = c->format == LIST_RESTIC ? c->key.count : 0, bytes = e->key_bytes - skipped;
    if (c->format == LIST_RESTIC && (!bytes || memchr(e->key + skipped, '/', bytes)))
        return;
    if (e->expiry)
        snprintf(expires, sizeof expires, "%.6f", (double)e->expiry / 1e6);
    bytes_print(out, formats[c->format].entry, percent_encode(text, e->key + skipped, bytes), comma,
                e->value_bytes, e->modified, e->write_id, (double)e->modified / 1e6, expires);
}

/* Adds a part of the listing to the body (status 100), or the last one and the end. If there are more keys
 * than were asked for, the next page starts behind the last key of this one; its address repeats what the
 * client asked. */
static void reply_list(struct call *c, const struct message *m)
{
    struct bytes list = message_value(m);
    const struct listed *e, *last = NULL;
    char next[4 * KEY_TEXT_BYTES] = "", after[KEY_TEXT_BYTES] = "", prefix[KEY_TEXT_BYTES],
                  path[KEY_TEXT_BYTES];
    for (size_t at = 0; (e = list_next(&list, &at)); last = e)
        print_listed(&c->body, c, e);
    if (m->status == 100)
        return;
    if (last)
        percent_encode(after, last->key, last->key_bytes);
    percent_encode(path, c->key.data, c->key.count);
    percent_encode(prefix, c->query.prefix.data, c->query.prefix.count);
    bool slash = *path == '/'; /* what follows two slashes would be read as a host */
    if (m->flags & FLAG_MORE)
        snprintf(next, sizeof next, "/%s%s?limit=%" PRIu64 "&after=%s%s%s%s", slash ? "%2F" : "",
                 path + slash, c->query.limit, after, *prefix ? "&prefix=" : "", prefix,
                 c->m.flags & FLAG_ONE ? "&consistency=one" : "");
    bytes_print(&c->body, *next ? formats[c->format].next : formats[c->format].end, next);
    call_respond(c, 200, formats[c->format].type);
    if (*next)
        call_header(c, "Link", "<%s>; rel=\"next\"", next);
}

/* The core's hook: `client` is the call that waits. A listing comes in parts: those before the last have status
 * 100 and leave the call suspended. Reads are given the value's ETag by what is in the message, so the
 * condition of a read is decided here, on the same value that is sent. */
static void http_reply(struct node *n, void *client, const struct message *m)
{
    static const char *const texts[CODES] = {
        [409] = "the value is no 64-bit integer, or the sum would overflow",
        [412] = "the condition is not met: read the key and decide again",
        [503] = "no quorum in time: try again",
        [507] = "this node's disk is full: ask another",
        [STATUS_UNKNOWN] = "no quorum in time, or an earlier try is no longer remembered",
    };
    struct call *c = client;
    char etag[40];
    if (c->m.flags & FLAG_FRESH && m->status < 500)
        node_delivered(n, c->m.write_id);
    if (c->route != ROUTE_LIST || m->status == 503)
        c->body.count = 0;
    snprintf(etag, sizeof etag, "\"%016" PRIx64 "-%016" PRIx64 "\"", m->modified, m->write_id);
    /* If-Match of a write is for the core; a listing has no ETag. */
    const char *match = c->route == ROUTE_KEY && c->m.function == DO_READ ? c->header.match : NULL;
    uint16_t status = m->status;
    if (match && (status == 404 || (status == 200 && !etag_is_listed(match, etag, false))))
        status = 412;
    if (c->m.function == DO_ADD)
        bytes_print(&c->body, "%" PRId64, (int64_t)m->number);
    if (texts[status])
        call_text(c, status, "%s", texts[status]);
    else if (status == 404)
        call_respond(c, 404, NULL);
    else if (c->route == ROUTE_LIST)
        reply_list(c, m);
    else if (c->m.function == DO_READ)
        reply_value(c, m, etag);
    else
        call_respond(c, c->method == POST || c->m.flags & FLAG_ONE ? 200 : status,
                     c->m.function == DO_ADD ? "text/plain" : NULL);
    if (m->modified && c->status != 503 &&
        (status == 412 || (c->method != DELETE && c->m.function != DO_ADD)))
        MHD_add_response_header(c->response, "ETag", etag);
    if (m->status != 100) /* else a part of a listing */
        call_resume(c);
}

/* The core's hook: whether a value of this size may be read now. In one turn of the loop only so many bytes
 * are, or nothing else would be done. On its way it is there three times: read, as a message, as the answer. */
static bool http_room(struct node *n, uint64_t bytes)
{
    struct server *s = n->context;
    uint64_t all = bytes < bytes_limit / 3 ? 3 * bytes : bytes;
    bool full = bytes_held + all > bytes_limit, room = !full && s->turn_bytes < TURN_BYTES_MAX;
    s->no_memory_at = full ? n->now : s->no_memory_at;
    s->turn_bytes += room ? bytes : 0;
    return room;
}

/* libmicrohttpd watches the socket of a connection unless it is suspended; the functions below look themselves.
 */
static int connection_file(struct MHD_Connection *connection)
{
    return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
}

/* Whether the client sends no more: it closed its sending side, or left. */
static bool call_ended(const struct call *c)
{
    uint8_t byte;
    return recv(connection_file(c->connection), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* The core's hook, asked now and then: libmicrohttpd does not watch a suspended connection. A client that
 * closed its sending side may have left, or may still listen. It is sent an interim response, which clients
 * ignore: if it left, the next attempt to send fails. */
static bool http_client_gone(struct node *n, void *client)
{
    static const char interim[] = "HTTP/1.1 100 Continue\r\n\r\n";
    const struct call *c = client;
    bool asks = c->started + SECOND < n->now && call_ended(c);
    int file = connection_file(c->connection), flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    return stop_asked || (asks && send(file, interim, strlen(interim), flags) < 0);
}

/* Looks at every connection, so it runs ten times a second and not in each turn.
 * Closes connections that libmicrohttpd would keep. Of a client that left while its request came, the end
 * may have come together with the last bytes, and epoll reports no other edge. And while memory is refused
 * to others, a client that stands still is given less time; but peers are not. */
static void calls_sweep(struct server *s)
{
    struct call *c;
    bool full = s->no_memory_at + SECOND > s->node->now;
    TAILQ_FOREACH(c, &s->calls, place) {
        bool arrives = c->state == HEADERS || c->state == BODY;
        if (arrives && call_ended(c))
            shutdown(connection_file(c->connection), SHUT_RDWR);
        if (full && (arrives || c->state == OVER) && c->route != ROUTE_MESSAGES)
            MHD_set_connection_option(c->connection, MHD_CONNECTION_OPTION_TIMEOUT,
                                      STALL_SECONDS_FULL);
    }
    s->swept_at = s->node->now;
}

/* --- libmicrohttpd's side --- */

/* A piece of a peer's endless POST. Each frame that is complete goes to the core.
 *
 * Anyone who reaches the port can send here, so nothing is kept of a sender that has not signed a frame yet: the
 * first one is empty, and more bytes than its header are an error. A frame that is damaged or wrongly signed
 * ends the connection: behind it nobody knows where the next one begins. */
static enum MHD_Result frame_piece(struct call *c, const char *data, size_t bytes)
{
    size_t at = 0;
    struct server *s = c->server;
    bytes_append(&c->body, data, bytes);
    while (c->body.count - at >= sizeof(struct frame)) {
        struct frame *f = (struct frame *)(c->body.data + at);
        uint64_t most = c->is_peer ? FRAME_BYTES_MAX : sizeof *f;
        if (f->magic != FRAME_MAGIC || f->bytes < sizeof *f || f->bytes > most) {
            answer_messages(c);
            return MHD_YES;
        }
        if (f->bytes > c->body.count - at)
            break;
        const char *fault =
            !frame_is_signed(s, f) ? "a frame from a node that does not know our secret"
            : !node_receive(s->node, (const uint8_t *)f, f->bytes) ? "a damaged frame"
                                                                   : NULL;
        if (fault) {
            if (s->next_fault < s->node->now) /* its sender will go on */
                log_line(LEVEL_WARN, fault, "node=%016" PRIx64, f->from);
            s->next_fault = s->node->now + 60 * SECOND;
            return MHD_NO;
        }
        c->is_peer = true;
        at += f->bytes;
    }
    if (at) { /* not for each piece, or a large frame would be moved many times */
        memmove(c->body.data, c->body.data + at, c->body.count - at);
        c->body.count -= at;
        if (!c->body.count)
            bytes_clear(&c->body);
    }
    return MHD_YES;
}

/* A piece of a request's body. A chunked body is counted as it comes, another one was counted before. */
static enum MHD_Result body_piece(struct call *c, const char *data, size_t bytes)
{
    if (c->started + UPLOAD_TIME < c->server->node->now)
        return MHD_NO;
    /* The body of a request that has its answer already is read, but not kept. */
    if (!c->response && c->route == ROUTE_KEY && call_reserve(c, bytes))
        bytes_append(&c->body, data, bytes);
    return MHD_YES;
}

/* A connection begins, or ends. When places get scarce, the one that was idle longest is closed: clients that
 * keep connections open must not lock out peers and operators. A keep-alive connection may be closed between
 * two requests at any time (RFC 9112, 9.3), and clients try again; one that is in use is never closed here. */
static void http_connection(void *cls, struct MHD_Connection *connection, void **context,
                            enum MHD_ConnectionNotificationCode what)
{
    struct server *s = cls;
    struct call *c = *context, *oldest = TAILQ_FIRST(&s->calls);
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        TAILQ_REMOVE(&s->calls, c, place);
        s->clients_count--;
        free(c);
        return;
    }
    bool scarce = ++s->clients_count + CLIENTS_SPARE > s->clients_max;
    while (scarce && oldest && oldest->state > HEADERS)
        oldest = TAILQ_NEXT(oldest, place);
    if (scarce && oldest) {
        oldest->state = OVER;
        shutdown(connection_file(oldest->connection), SHUT_RDWR);
    }
    c = *context = allocate(sizeof *c);
    c->connection = connection;
    TAILQ_INSERT_TAIL(&s->calls, c, place);
}

/* Called with the headers, then with each piece of the body, then when all is there: first answers in
 * the first call would close the connection. */
static enum MHD_Result http_handle(void *cls, struct MHD_Connection *connection, const char *url,
                                   const char *method, const char *version, const char *data,
                                   size_t *bytes, void **arg)
{
    struct call *c = *arg;
    size_t count = *bytes;
    (void)cls, (void)connection, (void)url;
    *bytes = 0;
    if (!c->started) {
        call_begin(c, method, version);
        return c->close ? call_send(c) : MHD_YES;
    }
    if (count)
        return c->route == ROUTE_MESSAGES && !c->response ? frame_piece(c, data, count)
                                                          : body_piece(c, data, count);
    if (c->response)
        return call_send(c);
    TAILQ_REMOVE(&c->server->calls, c, place);
    TAILQ_INSERT_HEAD(&c->server->calls, c, place);
    c->state = WHOLE;
    return MHD_YES;
}

/* A request begins. A client whose write `forgets` promised not to pipeline: so it has had the answer, and
 * the result need not be kept any more (R35). The URI is taken here, before libmicrohttpd decodes it: it
 * would cut it at %00, and accept a % without digits. */
static void *http_uri(void *cls, const char *uri, struct MHD_Connection *connection)
{
    struct server *s = cls;
    struct call *c =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    node_delivered(s->node, c->answered);
    size_t bytes = strlen(uri), skipped = 0; /* http://host, RFC 9112, 3.2.2 */
    if (*uri != '/')
        sscanf(uri, "%*[A-Za-z]://%*[^/?]%zn", &skipped);
    char *text;
    if (asprintf(&text, "%s%s", skipped && uri[skipped] != '/' ? "/" : "", uri + skipped) < 0)
        die("out of memory");
    *c = (struct call){s, connection, c->place, .state = HEADERS, .uri = text, .uri_bytes = bytes};
    c->text = strdup(text);
    return c;
}

/* A request ends: its answer was sent, or the client left. The connection stays, idle, and goes to the end of
 * the list, whose first is closed when places get scarce. */
static void http_done(void *cls, struct MHD_Connection *connection, void **arg,
                      enum MHD_RequestTerminationCode why)
{
    struct server *s = cls;
    struct call *c = *arg;
    c->state = IDLE;
    TAILQ_REMOVE(&s->calls, c, place);
    TAILQ_INSERT_TAIL(&s->calls, c, place);
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, STALL_SECONDS_MAX);
    if (c->forgets && c->status < 500 && why == MHD_REQUEST_TERMINATED_COMPLETED_OK)
        c->answered = c->m.write_id;
    s->calls_count -= c->under_way;
    if (c->under_way) {
        histogram_add(&s->seconds[c->method], (double)(s->node->now - c->started) / 1e6);
        s->responses[c->method][c->status] += c->status != 0; /* 0: the client left */
    }
    if (c->response)
        MHD_destroy_response(c->response);
    bytes_free(&c->body);
    free(c->uri);
    free(c->text);
}

/* === 26 The program =============================================================================
 *
 * The options, from the environment and the command line; recovery from the data directory; the loop; the
 * end. One turn of the loop takes what has arrived, runs the core, and sends what the core produced. Everything
 * but writing the log happens in this one thread, so that nothing needs a lock.
 *
 * At the start a node is in one of these states (server_recover, server_open):
 *
 *    no log                 --bootstrap makes a cluster, --join asks to enter one; else exit 2
 *    a whole log            a member again, under its old id, with all that it promised
 *    a damaged log, and     the log is set aside; the program starts again and joins under a new id. The
 *      a healthy cluster    node may have forgotten a promise, so the old id must never vote again
 *    a damaged log, and     waits for others; then exit 1, and a person decides. With --sync none a hole
 *      nobody healthy       is what a power failure leaves: there it goes on with what is before the hole
 *
 * Before it serves, a node waits until its clock has passed what it promised before the restart (R2), if
 * that is near; a clock bound that is far ahead means that the wall clock was put back, and the core knows
 * how to go on from there.
 *
 * At the end (SIGTERM, SIGINT, SIGHUP) the node stays a member: it answers what is under way, makes the log
 * durable and exits. Its lease runs out by itself, and the others serve without it.
 */

/* The core's hook: reads the log as it is on disk. */
static bool server_log_read(struct node *n, uint64_t lsn, void *to, size_t bytes, bool wait)
{
    struct server *s = n->context;
    return disk_read(&s->disk, lsn, to, bytes, wait);
}

static const struct hooks server_hooks = {http_reply, server_log_read, http_client_gone, http_room};

/* Hands the log's next batch to its thread. */
static void log_submit(struct server *s)
{
    uint64_t entries = s->node->log.pending_entries;
    const struct bytes *batch = log_flush(s->node);
    if (!batch)
        return;
    if (batch->count)
        histogram_add(&s->batch_records, (double)entries / BATCH_UNIT);
    /* The thread is at rest. Cleaning copies also what is above a --max-value that was lowered since. */
    s->disk.ahead_bytes = max_u64(s->disk.ahead_bytes, s->node->log.largest + ROOM_AHEAD);
    disk_submit(&s->disk, &s->node->log);
}

/* Takes note of what the log's thread has done. */
static void disk_events(struct server *s)
{
    struct disk_job done;
    if (recv(s->disk.ends[0], &done, sizeof done, MSG_DONTWAIT) != sizeof done)
        return;
    if (s->node->log.flight.count)
        histogram_add(&s->fsync_seconds, done.seconds);
    bool full = done.room < s->disk.ahead_bytes;
    if (full != s->node->log.full)
        log_line(LEVEL_WARN, full ? "the disk is full: make room" : "the disk has room again",
                 "data=\"%s\"", s->options.data);
    node_durable(s->node, done.room, full);
}

/* A node under a new random id, with what the options say of it. If a log is recovered into it, it takes the
 * id that it finds there. Of the options only these reach the core. */
static struct node *server_node(struct server *s)
{
    const struct options *o = &s->options;
    uint64_t random[2];
    arc4random_buf(random, sizeof random);
    struct node *n =
        node_new(random[0] | 1, random[1], o->advertise, &server_hooks, s); /* 0: no id */
    node_time(n, clock_us(CLOCK_BOOTTIME), clock_us(CLOCK_REALTIME));
    n->lease = o->lease;
    n->evict_after = o->evict_after;
    n->self_peer->weight = (uint32_t)o->weight;
    n->replicas = (uint32_t)o->replicas;
    n->expected = o->expected;
    snprintf(n->self_peer->zone, sizeof n->self_peer->zone, "%s", o->zone);
    return n;
}

/* Rejoins under a new id, keeping only the views (R17). It takes one batch of the log, which nothing below
 * is needed for; then the program starts again. Behind damage it has files of its own. A crash leaves one
 * of two logs behind: until the batch is durable the old one, with which the node comes here again, and
 * then the new one, which begins at the batch. */
__attribute__((noreturn)) static void server_rejoin(struct server *s, bool damaged)
{
    struct node *n = server_node(s);
    struct disk_job job = {.damaged = damaged};
    log_line(LEVEL_WARN, "joining again under a new id, without the old data",
             "old=%016" PRIx64 " new=%016" PRIx64, s->node->id, n->id);
    job.lsn = job.first = damaged ? s->disk.allocated : s->node->log.durable;
    job.batch = node_rejoin(n, s->node, job.lsn);
    s->disk.sync = true; /* before the old log goes */
    disk_write(&s->disk, &job);
    close_range(3, UINT_MAX, 0);
    execv("/proc/self/exe", s->arguments);
    die("cannot start again");
}

/* Whether another node holds a lease, of those in --join or, at will, of the members, too: then a majority
 * lives without this one. They are asked while there is nothing else to do. Data of another cluster than
 * that of --join ends the program. */
static bool others_are_healthy(const struct server *s, bool members)
{
    const struct node *n = s->node;
    bool healthy = false;
    for (size_t i = 0; i < n->peers_count && !healthy; i++) {
        const struct peer *p = n->peers[i];
        if (p == n->self_peer || (p->id && !members))
            continue;
        CURL *easy = peer_request(s, p->address, "/_health");
        struct curl_header *cluster;
        curl_easy_setopt(easy, CURLOPT_FAILONERROR, 1L);
        curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, 2000L);
        healthy = curl_easy_perform(easy) == CURLE_OK;
        if (!p->id && n->cluster &&
            !curl_easy_header(easy, "Estoraje-Cluster", 0, CURLH_HEADER, -1, &cluster) &&
            strtoull(cluster->value, NULL, 16) != n->cluster)
            error(1, 0, "the data in %s is of another cluster than --join: give an empty directory",
                  s->options.data);
        curl_easy_cleanup(easy);
    }
    return healthy;
}

/* Reads the log into a node. If the log is damaged, the node joins again, once a majority is known to live
 * without it. The last resort is for a log with a hole that was written with --sync none: the node goes on
 * with what stands before the hole. It forgets what it accepted and promised behind it. */
static void server_recover(struct server *s)
{
    struct options *o = &s->options;
    uint64_t start, end;
    bool whole = disk_open(&s->disk, o->data, &start, &end);
    struct node *n = s->node = server_node(s);
    /* Space is always taken ahead of what is written: where none follows, a file was cut short. */
    whole &= node_recover(n, start, end) &&
             (log_end(n) == start || log_end(n) + ROOM_CLEANING / 2 <= end);
    for (char *one, *list = o->join ? strdupa(o->join) : NULL; (one = strsep(&list, ","));)
        if (strcmp(one, o->advertise) != 0)
            peer_make(n, 0, one);
    if (whole)
        return;
    log_line(LEVEL_ERROR, "the log is damaged, others are asked: start them", "data=\"%s\"",
             o->data);
    for (int tries = 0; tries < DAMAGED_TRIES; tries++) {
        if (others_are_healthy(s, true))
            server_rejoin(s, true);
        usleep((useconds_t)o->lease);
    }
    if (!n->log.torn || n->self < 0 || s->disk.sync)
        die("the log is damaged: move it away, and join others or restore a backup");
    log_line(LEVEL_ERROR, "writes are lost behind a hole in the log", "lsn=%" PRIu64, log_end(n));
    disk_cut(&s->disk, log_end(n), end);
    close(s->disk.dir);
    server_recover(s);
}

/* Opens the data directory, and makes this node a member of a new cluster, or one that asks to join. */
static void server_open(struct server *s)
{
    const struct options *o = &s->options;
    server_recover(s);
    struct node *n = s->node;
    if (!n->view && o->force_new_cluster)
        error(2, 0, "--force-new-cluster needs the data of a member: '%s' has none", o->data);
    if (!n->view && !o->bootstrap == !o->join && !o->expected)
        error(2, 0, "an empty data directory needs --bootstrap (a new cluster) or else --join");
    disk_start(&s->disk, log_end(n));
    if (n->log.flight.count)
        disk_submit(&s->disk, &n->log);
    if (n->clock_bound > n->wall && n->clock_bound < n->wall + 2 * (BOUND_AHEAD + BOUND_MARGIN))
        usleep((useconds_t)(n->clock_bound - n->wall));
    node_time(n, clock_us(CLOCK_BOOTTIME), clock_us(CLOCK_REALTIME));
    /* Once: left in place, it must not part this node from those that joined it since. */
    if (!o->force_new_cluster)
        unlinkat(s->disk.dir, "forced", AT_REMOVEDIR);
    else if (mkdirat(s->disk.dir, "forced", 0700) < 0 || fsync(s->disk.dir) < 0)
        log_line(LEVEL_WARN, "--force-new-cluster is done: start without it", "errno=%d", errno);
    else if (n->self >= 0 && n->view->members_count > 1)
        node_bootstrap(n, n->view->replicas);
    if (!n->view && o->bootstrap)
        node_bootstrap(n, n->replicas);
    if (n->view)
        others_are_healthy(s, false);
}

/* An address is checked here but looked up by libcurl when a channel opens: a name may move to another host.
 * "host:port", [v6] in brackets. The host is numeric, unless `to` is null: then it may be a name. */
static bool parse_address(const char *text, struct sockaddr_storage *to)
{
    char host[ADDRESS_BYTES], port[6];
    int bytes = 0;
    struct addrinfo *found, hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE};
    if (strlen(text) >= ADDRESS_BYTES ||
        (sscanf(text, "[%[^]]]:%5[0-9]%n", host, port, &bytes) < 2 &&
         sscanf(text, "%[^]:[]:%5[0-9]%n", host, port, &bytes) < 2))
        return false;
    if (text[bytes] || atoi(port) < 1 || atoi(port) > UINT16_MAX)
        return false;
    if (!to)
        return text_is_plain(text, strlen(text), true);
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return false;
    memcpy(to, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return true;
}

/* What stands in a file that an option names; null: it names none. */
static char *read_file(const char *path)
{
    gnutls_datum_t text = {0};
    if (path && (gnutls_load_file(path, &text) < 0 || !text.size || strchr("\r\n", *text.data)))
        error(2, 0, "cannot read the file '%s', or its first line is empty", path);
    return path ? strndup((char *)text.data, text.size) : NULL;
}

/* Files and memory are shared out here, before the first client comes. TLS is served with version 1.2 or later; a
 * client needs no certificate, a peer does (certificate_is_ours).
 * Clients take at most half of the files that may be open: without one for itself, the log ends the
 * program, and a record that cannot be read counts as damaged. */
static void server_listen(struct server *s)
{
    const struct options *o = &s->options;
    struct sockaddr_storage address;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    parse_address(o->listen, &address);
    static char tls_versions[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
    struct MHD_OptionItem tls[] = {{MHD_OPTION_HTTPS_MEM_CERT, 0, read_file(o->tls_cert)},
                                   {MHD_OPTION_HTTPS_MEM_KEY, 0, read_file(o->tls_key)},
                                   {MHD_OPTION_HTTPS_MEM_TRUST, 0, read_file(o->tls_ca)},
                                   {MHD_OPTION_HTTPS_PRIORITIES, 0, tls_versions},
                                   {MHD_OPTION_END, 0, NULL}};
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | (o->tls_cert ? MHD_USE_TLS : 0) |
                     (address.ss_family == AF_INET6 ? MHD_USE_DUAL_STACK : 0);
    /* A quarter of the memory is for connections, and half of the files. */
    s->clients_max = max_u64(bytes_limit / 4 / (2 * HEAD_BYTES_MAX), CLIENTS_MIN);
    s->clients_max = min_u64(min_u64(s->clients_max, CALLS_MAX), files.rlim_cur / 2);
    TAILQ_INIT(&s->calls);
    s->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, http_handle, s, MHD_OPTION_SOCK_ADDR, &address,
        MHD_OPTION_URI_LOG_CALLBACK, http_uri, s, MHD_OPTION_NOTIFY_COMPLETED, http_done, s,
        MHD_OPTION_NOTIFY_CONNECTION, http_connection, s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)2 * HEAD_BYTES_MAX, MHD_OPTION_CONNECTION_LIMIT, (unsigned)s->clients_max,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)STALL_SECONDS_MAX,
        o->tls_cert ? MHD_OPTION_ARRAY : MHD_OPTION_END, tls, MHD_OPTION_END);
    if (!s->daemon)
        error(1, errno, "cannot listen at %s: is the port in use?", o->listen);
}

/* Nothing else is safe in a handler. The loop looks at it in each turn. */
static void on_signal(int number)
{
    stop_asked = number;
}

/* Notifies the service manager, if there is one, by the protocol of sd_notify(3). */
static bool notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (!path || strlen(path) >= sizeof to.sun_path)
        return true;
    memcpy(to.sun_path, path, strlen(path));
    to.sun_path[0] = *path == '@' ? 0 : *path;
    int file = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sendto(file, state, strlen(state), 0, (struct sockaddr *)&to,
           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path)));
    close(file);
    return true;
}

/* One turn of the loop:
 *
 *    1  wait for a socket, for the log's thread, or for the next tick
 *    2  give the core the time, and what the log's thread has done: it may reply to writes
 *    3  libmicrohttpd reads requests and sends responses, and the core runs what came
 *    4  at a tick: leases, time limits and repairs; channels that broke; connections that stand still
 *    5  hand over the log's batch, and send frames
 *
 * A batch costs one fdatasync, and a frame one checksum and one write, however large they are. So both are held
 * back while more arrives, but for HOLD_TIME at most. */
static void server_turn(struct server *s)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    struct curl_waitfd files[2] = {{info->epoll_fd, CURL_WAIT_POLLIN, 0},
                                   {s->disk.ends[0], CURL_WAIT_POLLIN, 0}};
    /* 0: it read a part of what came, epoll is silent of the rest */
    MHD_UNSIGNED_LONG_LONG ready_ms;
    bool ready = s->resumed || (MHD_get_timeout(s->daemon, &ready_ms) == MHD_YES && !ready_ms);
    int tick_ms = node_is_restless(s->node) ? 1 : TICK_MS; /* not each turn: a tick looks at much */
    int events = 0;
    curl_multi_poll(s->multi, files, 2, ready || s->held_at ? 0 : tick_ms, &events);
    node_time(s->node, clock_us(CLOCK_BOOTTIME), clock_us(CLOCK_REALTIME));
    s->turn_bytes = 0;
    disk_events(s);
    for (int runs = 0; runs == 0 || (runs < MHD_RUNS_MAX && s->resumed); runs++) {
        s->resumed = false;
        MHD_run(s->daemon);
        calls_answer(s);
        node_run(s->node);
    }
    if (s->ticked_at + (uint64_t)tick_ms * MS <= s->node->now) {
        s->ticked_at = s->node->now;
        node_tick(s->node, s->node->now, s->node->wall);
        channels_check(s);
        if (s->swept_at + 100 * MS <= s->node->now)
            calls_sweep(s);
        if (!s->ready_notified && !unready(s))
            s->ready_notified = notify("READY=1");
    }
    node_run(s->node);
    if (s->node->gone && !s->node->self_peer->leave && !s->node->log.writing)
        server_rejoin(s, false); /* unless it was drained; when the log's thread is at rest */
    errno = ENOSPC;
    if (node_is_too_small(s->node))
        die("joining needs more disk: give the data directory more space");
    if (!s->held_at)
        s->held_at = s->node->now;
    if (!(events || ready) || s->held_at + HOLD_TIME <= s->node->now) {
        log_submit(s);
        channels_turn(s);
        s->held_at = 0;
    }
    int running;
    curl_multi_perform(s->multi, &running);
}

#define STOP_TIME (10 * SECOND) /* for what is under way when it is asked to stop */

/* Finishes what is under way, and makes it durable. Until then it listens, and rejects new requests. */
static void server_stop(struct server *s)
{
    log_line(LEVEL_INFO, "stopping", "signal=%d", (int)stop_asked);
    notify("STOPPING=1");
    uint64_t until = s->node->now + STOP_TIME;
    const struct log *log = &s->node->log;
    while (s->node->now < until && (s->calls_count || log->writing || log->pending.count))
        server_turn(s);
    struct call *c;
    TAILQ_FOREACH(c, &s->calls, place) {
        if (c->state != SUSPENDED)
            continue;
        call_text(c, c->m.function == DO_READ ? 503 : STATUS_UNKNOWN, "stopping");
        call_resume(c); /* the core does not reply any more */
    }
    MHD_run(s->daemon);
    MHD_stop_daemon(s->daemon);
}

#define DAYS      (30 * 86400 * SECOND)
#define AT(field) offsetof(struct options, field)
/* By name: what kind of value, how --help shows it, the default, the help text, the field, and the limits. */
static const struct setting option_rows[] = {
    {.name = "listen", TEXT, "ADDR:PORT", "127.0.0.1:8001", "where to serve", AT(listen)},
    {.name = "advertise", TEXT, "HOST:PORT", NULL, "where peers reach it", AT(advertise)},
    {.name = "data", TEXT, "DIR", "data", "the data directory", AT(data)},
    {.name = "bootstrap", FLAG, NULL, NULL, "begin a new cluster", AT(bootstrap)},
    {.name = "join", TEXT, "LIST", NULL, "enter the cluster of these", AT(join)},
    {.name = "bootstrap-expect", COUNT, "1 to 64", NULL, "once so many join", AT(expected), 1, 64},
    {.name = "force-new-cluster", FLAG, NULL, NULL, "of this data alone", AT(force_new_cluster)},
    {.name = "replicas", COUNT, "1 to 7", "3", "copies; the first node says", AT(replicas), 1, 7},
    {.name = "zone", TEXT, "NAME", "", "what fails together", AT(zone)},
    {.name = "weight", COUNT, "1 to 100", "1", "share of the keys", AT(weight), 1, WEIGHT_MAX},
    {.name = "lease", MILLISECONDS, "MS", "2000", "of a node, to 30d", AT(lease), 1, DAYS},
    {.name = "evict-after", SECONDS, "SECONDS", "60", "silent, to 30d", AT(evict_after), 1, DAYS},
    {.name = "max-value", BYTES, "BYTES", "64M", "of a value, to 1G", AT(max_value), 1, 1 << 30},
    {.name = "memory", BYTES, "BYTES", "1G", "most bodies in flight", AT(memory), 1, INT64_MAX},
    {.name = "sync", CHOICE, "always|none", "always", "none: writes may be lost", AT(sync)},
    {.name = "secret-file", TEXT, "FILE", NULL, "a secret that all nodes share", AT(secret_file)},
    {.name = "insecure", FLAG, NULL, NULL, "serve a network without one", AT(insecure)},
    {.name = "tls-cert", TEXT, "FILE", NULL, "this node's certificate", AT(tls_cert)},
    {.name = "tls-key", TEXT, "FILE", NULL, "and its key", AT(tls_key)},
    {.name = "tls-ca", TEXT, "FILE", NULL, "whose certificates are trusted", AT(tls_ca)},
    {.name = "log-level", CHOICE, "error|warn|info|debug", "info", "on stderr", AT(log_level)},
};
enum { OPTIONS = sizeof option_rows / sizeof *option_rows, OPTION_KEY = 256 };

/* argp prints what is before the \v, the options, and what is behind it. */
static const char help[] =
    "A small distributed key-value store.\n\n"
    "  estoraje --listen 127.0.0.1:8001 --data data/8001 --bootstrap\n"
    "  estoraje --listen 127.0.0.1:8002 --data data/8002 --join 127.0.0.1:8001\n"
    "or the same on all of three:\n"
    "  estoraje --listen 10.0.0.1:8001 --bootstrap-expect 3 --join n1:8001,n2:8001,n3:8001\n\n"
    "A data directory that is in use needs neither --bootstrap nor --join.\n"
    "\v" /* behind the options */
    "Each option can come from the environment, as ESTORAJE_LISTEN or ESTORAJE_MAX_VALUE.\n"
    "Sizes take k, M, G; times ms, s, m, h.\n"
    "Store: curl -T file http://127.0.0.1:8001/key\nRead: curl http://127.0.0.1:8001/key\n"
    "Status: /_status /_ring /_metrics";

/* A wrong value ends the program with status 2, as all wrong usage does. */
static void option_set(struct options *o, const struct setting *s, char *value)
{
    if (!setting_parse(s, o, value, strlen(value)))
        error(2, 0, "--%s, or its variable ESTORAJE_..., needs %s (%s), not '%s'", s->name,
              s->argument ? s->argument : "1 or 0", s->help, value);
}

/* argp's side. A flag has no value: to be named sets it. */
static error_t option_parse(int key, char *value, struct argp_state *state)
{
    if (key < OPTION_KEY || key >= OPTION_KEY + OPTIONS)
        return ARGP_ERR_UNKNOWN;
    option_set(state->input, &option_rows[key - OPTION_KEY], value ? value : (char[]){"1"});
    return 0;
}

/* What one value alone cannot show: which options need, or exclude, one another. */
static void options_check(struct options *o)
{
    struct sockaddr_storage address;
    o->advertise = o->advertise ? o->advertise : o->listen;
    log_level = (enum log_level)(o->log_level - 1);
    if (!parse_address(o->listen, &address) || !parse_address(o->advertise, NULL))
        error(2, 0, "--listen needs ADDR:PORT, with a numeric address, --advertise HOST:PORT");
    bool near = strncmp(o->listen, "127.", 4) == 0 || strncmp(o->listen, "[::1]", 5) == 0;
    if (!near && !o->secret_file && !o->tls_ca && !o->insecure)
        error(2, 0,
              "--listen beyond loopback needs --secret-file, --tls-ca or --insecure: "
              "whoever reaches this node can destroy all data");
    if (strspn(o->advertise, "[0.:]") >= (size_t)(strrchr(o->advertise, ':') - o->advertise))
        log_line(LEVEL_WARN, "peers need --advertise to reach it", "listen=%s", o->advertise);
    uint64_t places = 0;
    for (char *one, *list = o->join ? strdupa(o->join) : NULL; (one = strsep(&list, ",")); places++)
        if (!parse_address(one, NULL))
            error(2, 0, "--join needs HOST:PORT[,HOST:PORT...], and '%s' is none", one);
    /* Or more nodes than these could make two clusters of them. The list may leave this node out. */
    bool exact = places == o->expected || places + 1 == o->expected;
    if (o->expected && (o->bootstrap || !exact))
        error(2, 0, "--bootstrap-expect N needs all N nodes in --join, and no --bootstrap");
    if (strlen(o->zone) >= ZONE_BYTES || !text_is_plain(o->zone, strlen(o->zone), false))
        error(2, 0, "--zone has at most 15 bytes, without quotes");
    if (!o->tls_cert != !o->tls_key || !o->tls_cert != !o->tls_ca)
        error(2, 0, "--tls-cert, --tls-key and --tls-ca go together");
}

/* Each option has its default, or what the environment says, and the command line goes over both. An empty
 * variable counts as none: a service manager cannot always unset one. */
static void options_read(struct options *o, int count, char **arguments)
{
    struct argp_option longs[OPTIONS + 1] = {{0}};
    const struct argp argp = {.options = longs, .parser = option_parse, .doc = help};
    char name[64], docs[OPTIONS][64];
    for (int i = 0; i < OPTIONS; i++) {
        const struct setting *s = &option_rows[i];
        char *value, *standard = (char *)(uintptr_t)s->standard;
        bool shown = standard && *standard;
        snprintf(docs[i], sizeof docs[i], shown ? "%s; default: %s" : "%s", s->help, standard);
        longs[i] = (struct argp_option){s->name, OPTION_KEY + i, s->argument, 0, docs[i], 0};
        snprintf(name, sizeof name, "ESTORAJE_%s", s->name);
        for (char *at = name; *at; at++)
            *at = *at == '-' ? '_' : (char)toupper((unsigned char)*at);
        value = getenv(name);
        value = value && *value ? value : standard;
        if (value)
            option_set(o, s, value);
    }
    argp_program_version = "estoraje " VERSION;
    argp_err_exit_status = 2;
    argp_parse(&argp, count, arguments, 0, NULL, o);
    options_check(o);
}

/* The secret is the first line of its file, so that an editor's line feed at the end does no harm. */
static void secret_read(struct server *s)
{
    const char *path = s->options.secret_file;
    s->secret = read_file(path);
    if (!path)
        return;
    warn_if_open(path);
    s->secret[strcspn(s->secret, "\r\n")] = 0;
    if (strlen(s->secret) < SECRET_BYTES_MIN)
        error(2, 0, "--secret-file needs %d bytes in its first line", SECRET_BYTES_MIN);
    prctl(PR_SET_DUMPABLE, 0); /* no secret in a core file */
}

int main(int count, char **arguments)
{
    static struct server s;
    options_read(&s.options, count, arguments);
    s.arguments = arguments;
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    signal(SIGHUP, on_signal);
    signal(SIGPIPE, SIG_IGN);
    secret_read(&s);
    curl_global_init(CURL_GLOBAL_ALL);
    s.multi = curl_multi_init();
    s.disk.sync = s.options.sync == 1;
    bytes_limit = s.options.memory;
    s.disk.ahead_bytes = s.options.max_value + ROOM_AHEAD;
    if (!s.disk.sync)
        log_line(LEVEL_WARN, "acknowledged writes may be lost when the power fails", "sync=none");
    server_open(&s);
    server_listen(&s);
    log_line(LEVEL_INFO, "serving",
             "version=" VERSION " node=%016" PRIx64 " listen=%s keys=%" PRIu64, s.node->id,
             s.options.listen, s.node->keys);
    while (!stop_asked)
        server_turn(&s);
    server_stop(&s);
    return 0;
}
