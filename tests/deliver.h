/*
 * deliver.h - a frame with one message, from a peer. For tests that have included estoraje.c.
 */
#ifndef DELIVER_H
#define DELIVER_H

#include <check.h>

static void message_deliver(struct node *n, uint64_t from, uint64_t clock,
                            const struct message *head, const struct body *body)
{
    struct bytes frame = {0};
    struct frame *f = bytes_extend(&frame, sizeof *f);
    *f = (struct frame){.magic = FRAME_MAGIC, .cluster = n->cluster, .from = from, .to = n->id};
    f->clock = clock;
    f->epoch = node_epoch(n);
    message_append(&frame, head, body);
    f = (struct frame *)frame.data;
    f->bytes = (uint32_t)frame.count;
    f->check = frame_check(f);
    ck_assert(node_receive(n, frame.data, frame.count));
    bytes_free(&frame);
}

#endif
