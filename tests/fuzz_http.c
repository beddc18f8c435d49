/*
 * fuzz_http.c - a node alone in its cluster gets any request that libmicrohttpd would let through. The
 * bytes are lines: the method and the URI, then headers, then an empty one and the body. What
 * libmicrohttpd does with a connection is played here.
 */
#include <microhttpd.h>
#include <stdint.h>
#include <stdio.h>

enum { FIELDS_MAX = 16 };
static FILE *silence; /* what the node has to say */
static struct {
    char *name, *value;
} fields[FIELDS_MAX];
static int fields_count, answered_status;
static char buffer[1 << 16]; /* as libmicrohttpd's, where two NULs stand for a line's end */
static union MHD_ConnectionInfo header_size, its_client;

static int fields_each(struct MHD_Connection *connection, enum MHD_ValueKind kind,
                       MHD_KeyValueIteratorN each, void *arg);

#define MHD_get_connection_values_n fields_each
#define MHD_get_connection_info(connection, kind)                                                  \
    ((void)(connection), (kind) == MHD_CONNECTION_INFO_SOCKET_CONTEXT ? &its_client : &header_size)
#define MHD_suspend_connection(connection)
#define MHD_resume_connection(connection)
#define MHD_set_connection_option(connection, option, value) ((void)(connection), (void)(value))
#define MHD_queue_response(connection, status, response)     (answered_status = (int)(status), MHD_YES)
#undef stderr
#define stderr silence
#include "lone.h"
#undef stderr

static int fields_each(struct MHD_Connection *connection, enum MHD_ValueKind kind,
                       MHD_KeyValueIteratorN each, void *arg)
{
    (void)connection;
    for (int i = 0; i < fields_count; i++)
        if (each(arg, kind, fields[i].name, strlen(fields[i].name), fields[i].value,
                 strlen(fields[i].value)) != MHD_YES)
            return i;
    return fields_count;
}

static struct server server;
static struct lone lone;

static void reply(struct node *n, void *client, const struct message *result)
{
    http_reply(n, client, result);
}

/* A member with a lease and some keys: a restart for each request would take all the time. */
static void begin(void)
{
    static const struct hooks hooks = {.reply = reply, .log_read = lone_log_read};
    struct node *n = lone_node(&lone);
    n->hooks = &hooks;
    n->wall = clock_us(CLOCK_REALTIME);
    lone.disk.count = 0;
    lone_view(&lone, 1, 0, 3);
    lone_tick(&lone, 1000, true);
    struct ballot b = {1, n->clock, LONE_ID};
    lone_accept(&lone, b, "a", "0123456789");
    lone_accept(&lone, b, "n", "41");
    lone_accept(&lone, b, "dir/b", "");
    lone_accept(&lone, b, "dir/gone", NULL);
    lone_settle(&lone);
    void *context = NULL;
    server.node = n;
    server.clients_max = CLIENTS_MIN;
    n->context = &lone;
    server.options.max_value = 1 << 20;
    server.options.memory = 1 << 20;
    if (its_client.socket_context)
        return;
    TAILQ_INIT(&server.calls);
    http_connection(&server, NULL, &context, MHD_CONNECTION_NOTIFY_STARTED);
    its_client.socket_context = context;
}

/* Cuts the next line off. */
static char *line_take(char **text)
{
    char *line = *text, *end = strchr(line, '\n');
    *text = end ? end + 1 : line + strlen(line);
    if (end)
        *end = 0;
    return line;
}

/* Copies a line, and NULs behind it, to `at`; returns where the next begins, null if it is full. */
static char *buffer_put(char *at, const char *line, size_t nuls)
{
    size_t bytes = strlen(line);
    if (!at || bytes + nuls + 2 > (size_t)(buffer + sizeof buffer - at))
        return NULL;
    memcpy(at, line, bytes);
    memset(at + bytes, 0, nuls);
    return at + bytes + nuls;
}

/* Returns what follows the headers, and in `at` where they end. */
static char *fields_take(char *text, char **at)
{
    fields_count = 0;
    while (*text && *text != '\n' && fields_count < FIELDS_MAX) {
        char *line = line_take(&text), *next = buffer_put(*at, line, 2), *colon = strchr(line, ':');
        if (!colon || !next)
            continue;
        fields[fields_count].name = *at;
        colon = *at + (colon - line);
        *colon++ = 0;
        fields[fields_count++].value = colon + strspn(colon, " \t");
        *at = next;
    }
    memset(*at, 0, 2); /* buffer_put left room for it */
    *at += 2;
    return *text ? text + 1 : text;
}

/* What the URI is about, computed in another way. */
static void check(const char *uri, const struct call *c)
{
    assert(c->status >= 200 && c->status < CODES);
    assert(answered_status == c->status);
    char key[KEY_BYTES_MAX + 32], text[4 * KEY_TEXT_BYTES];
    if (c->route != ROUTE_KEY || strlen(uri) > KEY_BYTES_MAX || !c->key.count ||
        c->key.count > KEY_BYTES_MAX)
        return;
    memcpy(key, c->key.data, c->key.count);
    percent_encode(text, key, c->key.count);
    assert(percent_decode(text) == (int)c->key.count && memcmp(text, key, c->key.count) == 0);
}

static void request_do(char *text)
{
    char *first = line_take(&text), *method = first, *uri = strchr(first, ' ');
    if (!uri || uri[1] != '/')
        return;
    *uri++ = 0;
    char *line = buffer_put(buffer, method, 1), *version = buffer_put(line, uri, 1),
         *at = buffer_put(version, "HTTP/1.1", 2);
    if (!at)
        return;
    method = buffer;
    char *body = fields_take(text, &at);
    header_size.header_size = (size_t)(at - buffer);
    size_t bytes = strlen(body), none = 0, left = bytes;
    struct call *c = http_uri(&server, line, NULL);
    void *arg = c;
    answered_status = 0;
    stop_asked = 0;
    enum MHD_Result go_on = http_handle(&server, NULL, line, method, version, NULL, &none, &arg);
    bool frames = c->route == ROUTE_MESSAGES && !c->response;
    if (!c->close && go_on == MHD_YES && bytes)
        go_on = http_handle(&server, NULL, line, method, version, body, &left, &arg);
    if (!answered_status && go_on == MHD_YES)
        go_on = http_handle(&server, NULL, line, method, version, NULL, &none, &arg);
    for (int i = 0; go_on == MHD_YES && !answered_status && i < 400; i++) {
        calls_answer(&server);
        if (!c->response)
            lone_tick(&lone, SECOND, true);
        else
            http_handle(&server, NULL, line, method, version, NULL, &none, &arg);
    }
    assert(go_on == MHD_YES || frames || bytes);
    if (go_on == MHD_YES)
        check(line, c);
    http_done(&server, NULL, &arg, MHD_REQUEST_TERMINATED_COMPLETED_OK);
    assert(server.calls_count == 0 && c->state == IDLE);
}

static void parsers_try(const char *text)
{
    struct ballot etag;
    uint64_t from = 0, count = 0, value;
    const char *end = parse_etag(text, true, &etag);
    assert(!end || (end > text && end <= text + strlen(text)));
    for (uint64_t size = 0; size < 12; size += 5)
        if (parse_range(text, size, &from, &count) && count)
            assert(from < size && count <= size - from);
    value = parse_unix_time(text, '-');
    assert(value == 0 || value % SECOND == 0 || strchr(text, '.'));
    assert(value < UINT64_C(10000000000) * SECOND);
    for (int kind = COUNT; kind <= SECONDS; kind++)
        parse_number(text, kind, &value);
    struct sockaddr_storage address;
    parse_address(text, &address);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t count)
{
    if (!silence)
        silence = fopen("/dev/null", "w");
    if (lone.node && (lone.disk.count > 1 << 20 || lone.node->now > LONE_MONOTONIC + 900 * SECOND))
        lone_node_free(&lone);
    if (!lone.node)
        begin();
    char *text = allocate(count + 1);
    memcpy(text, data, count);
    parsers_try(text);
    request_do(text);
    free(text);
    return 0;
}
