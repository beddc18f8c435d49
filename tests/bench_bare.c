/*
 * bench_bare.c - the least that any server of this kind costs: libmicrohttpd alone, which suspends each
 * request, resumes it in the next turn of the loop, and answers 100 bytes. For bench.sh.
 */
#include <microhttpd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

enum { WAITING_MAX = 4096 };

static struct MHD_Connection *waiting[WAITING_MAX];
static unsigned waiting_count;

static enum MHD_Result handle(void *cls, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *bytes, void **state)
{
    static char began, suspended;
    struct MHD_Response *response = cls;
    (void)url, (void)method, (void)version, (void)data;
    *bytes = 0;
    if (*state == &suspended)
        return MHD_queue_response(connection, 200, response);
    if (*state == &began && waiting_count < WAITING_MAX) {
        MHD_suspend_connection(connection);
        waiting[waiting_count++] = connection;
        *state = &suspended;
    } else {
        *state = &began;
    }
    return MHD_YES;
}

int main(int count, char **arguments)
{
    static char value[100];
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME;
    struct MHD_Response *response =
        MHD_create_response_from_buffer(sizeof value, value, MHD_RESPMEM_PERSISTENT);
    struct MHD_Daemon *daemon = count == 2
                                    ? MHD_start_daemon(flags, (uint16_t)atoi(arguments[1]), NULL,
                                                       NULL, handle, response, MHD_OPTION_END)
                                    : NULL;
    if (!daemon) {
        fprintf(stderr, "bench_bare: needs a port that is free\n");
        return 1;
    }
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD);
    for (;;) {
        struct pollfd file = {info->epoll_fd, POLLIN, 0};
        MHD_UNSIGNED_LONG_LONG ready_ms;
        int ready = waiting_count || (MHD_get_timeout(daemon, &ready_ms) == MHD_YES && !ready_ms);
        poll(&file, 1, ready ? 0 : 100);
        ready = waiting_count > 0;
        for (; waiting_count; waiting_count--)
            MHD_resume_connection(waiting[waiting_count - 1]);
        MHD_run(daemon);
        if (ready) /* what was answered is sent when it runs once more */
            MHD_run(daemon);
    }
}
