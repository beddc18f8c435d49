/*
 * cluster.c - real processes for the tests (cluster.h says what there is).
 */
#include "cluster.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <curl/curl.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ================================ 1. Time and processes ================================ */

static char folder_of_all[PATH_MAX];

char *text(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *s;
    REQUIRE(vasprintf(&s, format, arguments) >= 0, "no memory");
    va_end(arguments);
    return s;
}

char *in_folder(const char *folder, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *name;
    REQUIRE(vasprintf(&name, format, arguments) >= 0, "no memory");
    va_end(arguments);
    char *path = text("%s/%s", folder, name);
    free(name);
    return path;
}

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void pause_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

double slowness(void)
{
    const char *s = getenv("ESTORAJE_TEST_SLOW");
    return s ? fmax(1, atof(s)) : 1;
}

const char *harness_folder(void)
{
    return folder_of_all;
}

/* The environment's own options of the store would change what is tested. */
static void environment_clean(void)
{
    extern char **environ;
    static const char *const ours[] = {"ESTORAJE_BIN=", "ESTORAJE_NGINX_CONF=", "ESTORAJE_TEST_"};
    for (int i = 0; environ[i];) {
        bool keep = strncmp(environ[i], "ESTORAJE_", 9) != 0;
        for (size_t o = 0; o < sizeof ours / sizeof *ours; o++)
            keep |= !strncmp(environ[i], ours[o], strlen(ours[o]));
        if (keep) {
            i++;
            continue;
        }
        char *name = strndup(environ[i], strcspn(environ[i], "="));
        unsetenv(name);
        free(name);
    }
}

bool harness_wants(const TTest *test)
{
    const char *only = getenv("ESTORAJE_TEST_ONLY");
    return !only || strstr(test->name, only);
}

void harness_begin(const char *name)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder_of_all, sizeof folder_of_all, "%s/estoraje-%s-XXXXXX", base ? base : "/tmp",
             name);
    if (!mkdtemp(folder_of_all)) {
        perror(folder_of_all);
        exit(1);
    }
    chmod(folder_of_all, 0755); /* nginx's workers may be another user */
    environment_clean();
    setenv("PATH", text("%s:/usr/sbin:/sbin", getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin"),
           1);
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* The last lines of a log that a failed test left behind. */
static void log_show_end(const char *path)
{
    enum { LINES = 12 };
    size_t bytes;
    char *log = file_read(path, &bytes);
    if (!log)
        return;
    char *at = log + bytes;
    for (int lines = 0; at > log; at--)
        if (at[-1] == '\n' && ++lines > LINES)
            break;
    if (*at)
        printf("---- the end of %s\n%s", path, at);
    free(log);
}

static bool log_show_if_one(const char *path, size_t bytes, void *context)
{
    (void)bytes;
    (void)context;
    size_t length = strlen(path);
    if (length > 9 &&
        (!strcmp(path + length - 7, ".stderr") || !strcmp(path + length - 9, "error.log")))
        log_show_end(path);
    return true;
}

int harness_end(SRunner *runner)
{
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (failed)
        folder_walk(folder_of_all, log_show_if_one, NULL);
    if (failed && getenv("ESTORAJE_TEST_KEEP"))
        printf("kept: %s\n", folder_of_all);
    else
        folder_remove(folder_of_all);
    return failed ? 1 : 0;
}

int harness_run(const char *name, int timeout_seconds, const TTest *const *tests, size_t count)
{
    harness_begin(name);
    Suite *suite = suite_create(name);
    TCase *kind = tcase_create(name);
    tcase_set_timeout(kind, timeout_seconds);
    suite_add_tcase(suite, kind);
    for (size_t i = 0; i < count; i++)
        if (harness_wants(tests[i]))
            tcase_add_test(kind, tests[i]);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    return harness_end(runner);
}

static int socket_on(int port, bool listening)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1;
    if (fd >= 0 && listening)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    int failed = fd < 0;
    if (!failed && listening)
        failed = bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128);
    else if (!failed)
        failed = connect(fd, (struct sockaddr *)&address, sizeof address);
    if (failed && fd >= 0)
        close(fd);
    if (!failed)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return failed ? -1 : fd;
}

/* Ports lie below the range of outgoing connections, so that a node finds its port free again when it
 * is restarted. A block of them is of this process alone, by a name that is bound as long as it lives:
 * or another test that runs meanwhile is given the port of a node that is down here, and its node
 * receives what was meant for that one. */
enum { PORTS_FIRST = 10000, PORTS_EACH = 200, PORT_BLOCKS = 100 };

static int port_block(void)
{
    for (int tries = 0; tries < PORT_BLOCKS; tries++) {
        int block = (getpid() + tries) % PORT_BLOCKS;
        struct sockaddr_un name = {.sun_family = AF_UNIX};
        snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "estoraje-test-ports-%d", block);
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (bind(fd, (struct sockaddr *)&name, sizeof name) == 0)
            return PORTS_FIRST + block * PORTS_EACH;
        close(fd);
    }
    ck_abort_msg("too many tests run at once");
}

int free_port(void)
{
    static int first, next;
    if (!first)
        first = port_block();
    for (int tries = 0; tries < PORTS_EACH; tries++) {
        int port = first + next++ % PORTS_EACH;
        int fd = socket_on(port, true);
        if (fd >= 0) {
            close(fd);
            return port;
        }
    }
    ck_abort_msg("no port is free");
}

/* In the child: nothing here may allocate, other threads may have held the lock. */
static void process_become(const char *const *argv, char *const *environment, const char *output,
                           int death, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, death);
    if (getppid() != parent)
        _exit(1);
    signal(SIGPIPE, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int in = open("/dev/null", O_RDONLY), out = open(output, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
        _exit(126);
    close_range(3, ~0U, 0);
    execvpe(argv[0], (char *const *)argv, environment);
    static const char message[] = "cannot be started\n";
    if (write(2, message, sizeof message - 1) < 0)
        _exit(126);
    _exit(127);
}

pid_t process_start(const char *const *argv, const char *const *environment, const char *output,
                    int death)
{
    extern char **environ;
    enum { MORE = 16 };
    int count = 0, more = 0;
    while (environ[count])
        count++;
    char **all = calloc((size_t)count + MORE + 1, sizeof *all);
    for (; environment && environment[more] && more < MORE; more++)
        all[more] = (char *)environment[more];
    memcpy(all + more, environ, (size_t)count * sizeof *all);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        process_become(argv, all, output, death, parent);
    free(all);
    REQUIRE(pid > 0, "fork: %s", strerror(errno));
    return pid;
}

int process_wait(pid_t pid, double seconds)
{
    double end = now() + seconds * slowness();
    for (;;) {
        int status;
        pid_t ended = waitpid(pid, &status, WNOHANG);
        if (ended == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
        REQUIRE(ended == 0 || errno == EINTR, "waitpid %d: %s", (int)pid, strerror(errno));
        if (now() >= end)
            return -1;
        pause_ms(5);
    }
}

struct output run(double seconds, const char *format, ...)
{
    static int runs;
    va_list arguments;
    va_start(arguments, format);
    char *command;
    REQUIRE(vasprintf(&command, format, arguments) >= 0, "no memory");
    va_end(arguments);
    char *path = in_folder(folder_of_all, "run-%d-%d", (int)getpid(), runs++);
    pid_t pid = process_start((const char *[]){"sh", "-c", command, NULL}, NULL, path, SIGKILL);
    struct output o = {.status = process_wait(pid, seconds)};
    if (o.status < 0) {
        kill(pid, SIGKILL);
        process_wait(pid, 5);
        o.status = -1;
    }
    o.text = file_read(path, NULL);
    unlink(path);
    free(path);
    free(command);
    return o;
}

bool installed(const char *program)
{
    return run(5, "command -v %s", program).status == 0;
}

char *file_read(const char *path, size_t *bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat s;
    if (fd < 0)
        return NULL;
    if (fstat(fd, &s)) {
        close(fd);
        return NULL;
    }
    char *content = malloc((size_t)s.st_size + 1);
    size_t got = 0;
    for (ssize_t n; got < (size_t)s.st_size; got += (size_t)n)
        if ((n = read(fd, content + got, (size_t)s.st_size - got)) <= 0)
            break;
    content[got] = 0;
    if (bytes)
        *bytes = got;
    close(fd);
    return content;
}

void file_write(const char *path, const void *bytes, size_t count)
{
    FILE *f = fopen(path, "w");
    REQUIRE(f != NULL, "%s: %s", path, strerror(errno));
    bool written = fwrite(bytes, 1, count, f) == count;
    REQUIRE(fclose(f) == 0 && written, "%s: %s", path, strerror(errno));
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *ftw)
{
    (void)s;
    (void)ftw;
    if (type == FTW_DP)
        umount2(path, MNT_DETACH); /* in vain, but for a full disk's */
    return remove(path) && errno == EBUSY ? 1 : 0;
}

void folder_remove(const char *path)
{
    nftw(path, remove_one, 32, FTW_DEPTH | FTW_PHYS);
}

static __thread struct {
    bool (*f)(const char *path, size_t bytes, void *context);
    void *context;
} files;

static int walk_one(const char *path, const struct stat *s, int type, struct FTW *ftw)
{
    (void)ftw;
    return type == FTW_F && S_ISREG(s->st_mode) &&
           !files.f(path, (size_t)s->st_size, files.context);
}

void folder_walk(const char *path, bool (*f)(const char *path, size_t bytes, void *context),
                 void *context)
{
    files.f = f;
    files.context = context;
    nftw(path, walk_one, 32, FTW_PHYS);
}

/* ================================ 2. HTTP ================================ */

__thread bool http_fresh;
__thread double http_timeout_s = 30;
const char *http_authority;

/* A fork must not share its parent's connections. */
static __thread CURL *http_handle;
static __thread pid_t http_owner;

static CURL *http_easy(void)
{
    if (http_owner != getpid()) {
        http_handle = curl_easy_init();
        http_owner = getpid();
    }
    curl_easy_reset(http_handle);
    return http_handle;
}

static void http_forget(void)
{
    if (http_handle && http_owner == getpid())
        curl_easy_cleanup(http_handle);
    http_handle = NULL;
    http_owner = 0;
}

struct bytes {
    char *at;
    size_t count, room;
};

static size_t bytes_append(char *from, size_t size, size_t count, void *to)
{
    struct bytes *b = to;
    size_t more = size * count;
    if (b->count + more + 1 > b->room) {
        b->room = (b->count + more + 1) * 2;
        b->at = realloc(b->at, b->room);
    }
    memcpy(b->at + b->count, from, more);
    b->count += more;
    b->at[b->count] = 0;
    return more;
}

/* Of several heads (100 Continue) only the last one counts. */
static size_t head_append(char *from, size_t size, size_t count, void *to)
{
    struct bytes *b = to;
    if (size * count > 5 && !memcmp(from, "HTTP/", 5))
        b->count = 0;
    return bytes_append(from, size, count, to);
}

static void head_parse(struct response *r)
{
    char *save = NULL;
    r->fields = strdup(r->head);
    char *line = strtok_r(r->fields, "\r\n", &save);
    if (!line || sscanf(line, "HTTP/%*s %d", &r->status) != 1)
        r->status = 0;
    while ((line = strtok_r(NULL, "\r\n", &save)) && r->header_count < HEADERS_MAX) {
        char *colon = strchr(line, ':');
        if (!colon)
            continue;
        *colon = 0;
        char *value = colon + 1 + strspn(colon + 1, " \t");
        r->headers[r->header_count].name = line;
        r->headers[r->header_count++].value = value;
    }
}

const char *header(const struct response *r, const char *name)
{
    for (int i = 0; i < r->header_count; i++)
        if (!strcasecmp(r->headers[i].name, name))
            return r->headers[i].value;
    return NULL;
}

void response_free(struct response *r)
{
    free(r->body);
    free(r->head);
    free(r->fields);
    *r = (struct response){0};
}

bool body_is(const struct response *r, const void *bytes, size_t count)
{
    return r->body_bytes == count && !memcmp(r->body, bytes, count);
}

/* libcurl's own Content-Type and Expect are not wanted; "Name:" with nothing is sent as it
 * stands. */
static struct curl_slist *headers_list(const char *headers)
{
    struct curl_slist *list = curl_slist_append(NULL, "Expect:");
    bool type = false;
    for (const char *at = headers ? headers : ""; *at;) {
        size_t length = strcspn(at, "\n");
        char *line = strndup(at, length);
        type |= !strncasecmp(line, "Content-Type:", 13);
        char *colon = strchr(line, ':');
        if (colon && !colon[1 + strspn(colon + 1, " ")])
            strcpy(colon, ";");
        list = curl_slist_append(list, line);
        free(line);
        at += length + (at[length] == '\n');
    }
    return type ? list : curl_slist_append(list, "Content-Type:");
}

static void method_set(CURL *curl, const char *method, const void *body, size_t body_bytes)
{
    bool stores = !strcmp(method, "PUT") || !strcmp(method, "POST");
    if (!strcmp(method, "HEAD")) {
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    } else if (body || stores) {
        curl_easy_setopt(curl, CURLOPT_POST, 1L);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body ? body : "");
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)(body ? body_bytes : 0));
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    } else if (strcmp(method, "GET")) {
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    }
}

struct response http(const char *url, const char *method, const char *path, const char *headers,
                     const void *body, size_t body_bytes)
{
    struct response r = {0};
    struct bytes head = {0}, content = {0};
    char *whole = text("%s%s", url, path);
    struct curl_slist *list = headers_list(headers);
    CURL *curl = http_easy();
    curl_easy_setopt(curl, CURLOPT_URL, whole);
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(http_timeout_s * slowness() * 1000));
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, list);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, r.error);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, head_append);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &head);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, bytes_append);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &content);
    curl_easy_setopt(curl, CURLOPT_FRESH_CONNECT, http_fresh ? 1L : 0L);
    curl_easy_setopt(curl, CURLOPT_FORBID_REUSE, http_fresh ? 1L : 0L);
    if (http_authority)
        curl_easy_setopt(curl, CURLOPT_CAINFO, http_authority);
    method_set(curl, method, body, body_bytes);
    double start = now();
    CURLcode code = curl_easy_perform(curl);
    r.seconds = now() - start;
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, NULL);
    r.head = head.at ? head.at : strdup("");
    r.body = content.at ? content.at : strdup("");
    r.body_bytes = content.count;
    head_parse(&r);
    if (code != CURLE_OK) {
        r.status = 0;
        long sent = 0; /* libcurl may have tried a kept connection first, and then another one */
        curl_easy_getinfo(curl, CURLINFO_REQUEST_SIZE, &sent);
        r.unconnected = code == CURLE_COULDNT_CONNECT && sent == 0;
        if (!*r.error)
            snprintf(r.error, sizeof r.error, "%s", curl_easy_strerror(code));
    }
    curl_slist_free_all(list);
    free(whole);
    return r;
}

struct response get(const char *url, const char *path)
{
    return http(url, "GET", path, NULL, NULL, 0);
}

struct response put(const char *url, const char *path, const char *value)
{
    return http(url, "PUT", path, NULL, value, strlen(value));
}

int status_of(const char *url, const char *method, const char *path, const char *headers,
              const char *body)
{
    struct response r = http(url, method, path, headers, body, body ? strlen(body) : 0);
    int status = r.status;
    response_free(&r);
    return status;
}

int raw_connect(int port)
{
    int fd = socket_on(port, false);
    REQUIRE(fd >= 0, "connect to port %d: %s", port, strerror(errno));
    return fd;
}

void raw_send(int fd, const void *bytes, size_t count)
{
    const char *at = bytes;
    while (count) {
        ssize_t n = send(fd, at, count, MSG_NOSIGNAL);
        if (n < 0)
            return; /* it may have answered and closed before it read all: raw_receive finds out */
        at += n;
        count -= (size_t)n;
    }
}

void raw_print(int fd, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *s;
    REQUIRE(vasprintf(&s, format, arguments) >= 0, "no memory");
    va_end(arguments);
    raw_send(fd, s, strlen(s));
    free(s);
}

static bool raw_readable(int fd, double end)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    double left = end - now();
    return poll(&p, 1, left > 0 ? (int)(left * 1000) + 1 : 0) > 0;
}

/* Exactly so many bytes, or up to a line's end: no byte of the next answer is read. */
static bool raw_read(int fd, struct bytes *b, size_t count, bool line, double end)
{
    char c[4096];
    while (count) {
        size_t want = line ? 1 : count < sizeof c ? count : sizeof c;
        ssize_t n = raw_readable(fd, end) ? recv(fd, c, want, 0) : -1;
        if (n <= 0)
            return false;
        bytes_append(c, 1, (size_t)n, b);
        count -= (size_t)n;
        if (line && c[0] == '\n')
            return true;
    }
    return true;
}

static bool raw_read_chunks(int fd, struct bytes *body, double end)
{
    for (;;) {
        struct bytes line = {0}, skipped = {0};
        if (!raw_read(fd, &line, SIZE_MAX, true, end))
            return false;
        size_t count = strtoul(line.at, NULL, 16);
        if (count && !raw_read(fd, body, count, false, end))
            return false;
        if (!raw_read(fd, &skipped, SIZE_MAX, true, end))
            return false;
        if (!count)
            return true;
    }
}

static bool raw_read_head(int fd, struct bytes *head, double end)
{
    for (size_t line = 0;; line = head->count) {
        if (!raw_read(fd, head, SIZE_MAX, true, end))
            return false;
        if (head->count - line <= 2)
            return true;
    }
}

struct response raw_receive(int fd, double seconds)
{
    struct response r = {0};
    struct bytes head = {0}, body = {0};
    double start = now(), end = start + seconds * slowness();
    bool whole;
    do {
        head.count = 0;
        whole = raw_read_head(fd, &head, end);
    } while (whole && head.count > 12 && !memcmp(head.at, "HTTP/1.1 1", 10));
    r.head = head.at ? head.at : strdup("");
    if (whole)
        head_parse(&r);
    const char *length = header(&r, "Content-Length"), *coding = header(&r, "Transfer-Encoding");
    if (whole && length)
        whole = raw_read(fd, &body, strtoul(length, NULL, 10), false, end);
    else if (whole && coding)
        whole = raw_read_chunks(fd, &body, end);
    else if (whole && r.status != 204 && r.status != 304)
        raw_read(fd, &body, SIZE_MAX, false, end);
    if (!whole) {
        r.status = 0;
        snprintf(r.error, sizeof r.error, "no whole answer: %.200s", r.head);
    }
    r.body = body.at ? body.at : strdup("");
    r.body_bytes = body.count;
    r.seconds = now() - start;
    return r;
}

bool raw_closed(int fd, double seconds)
{
    double end = now() + seconds * slowness();
    char c[4096];
    while (raw_readable(fd, end))
        if (recv(fd, c, sizeof c, 0) <= 0)
            return true;
    return false;
}

static const char *json_space(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

static const char *json_string_end(const char *at)
{
    for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1])
            at++;
    return *at ? at + 1 : NULL;
}

/* Behind the value that begins here; NULL if it is broken. */
static const char *json_end(const char *at)
{
    at = json_space(at);
    if (*at == '"')
        return json_string_end(at);
    if (*at != '{' && *at != '[') {
        size_t length = strcspn(at, ",]} \t\r\n");
        return length ? at + length : NULL;
    }
    char close = *at == '{' ? '}' : ']';
    at = json_space(at + 1);
    while (*at != close) {
        if (close == '}') {
            at = *at == '"' ? json_string_end(at) : NULL;
            at = at ? json_space(at) : NULL;
            if (!at || *at++ != ':')
                return NULL;
        }
        at = json_end(at);
        if (!at)
            return NULL;
        at = json_space(at);
        if (*at == ',')
            at = json_space(at + 1);
        else if (*at != close)
            return NULL;
    }
    return at + 1;
}

static const char *json_member(const char *at, const char *name, size_t length)
{
    bool object = *at == '{';
    long wanted = object ? 0 : strtol(name, NULL, 10);
    char close = object ? '}' : ']';
    at = json_space(at + 1);
    for (long i = 0; at && *at && *at != close; i++) {
        bool found = !object && i == wanted;
        if (object) {
            const char *end = json_string_end(at);
            found = end && (size_t)(end - at) == length + 2 && !memcmp(at + 1, name, length);
            at = end ? strchr(end, ':') : NULL;
            if (!at)
                return NULL;
            at = json_space(at + 1);
        }
        if (found)
            return at;
        at = json_end(at);
        at = at ? json_space(at) : NULL;
        if (at && *at == ',')
            at = json_space(at + 1);
    }
    return NULL;
}

const char *json_at(const char *json, const char *path)
{
    const char *at = json_space(json);
    if (!json_end(at))
        return NULL;
    while (at && *path) {
        size_t length = strcspn(path, ".");
        at = *at == '{' || *at == '[' ? json_member(at, path, length) : NULL;
        path += length + (path[length] == '.');
    }
    return at;
}

double json_number(const char *json, const char *path)
{
    const char *at = json_at(json, path);
    char *end;
    double number = at ? strtod(at, &end) : NAN;
    return at && end != at ? number : NAN;
}

char *json_string(const char *json, const char *path)
{
    const char *at = json_at(json, path);
    const char *end = at ? json_end(at) : NULL;
    if (!end)
        return strdup("");
    return *at == '"' ? strndup(at + 1, (size_t)(end - at) - 2) : strndup(at, (size_t)(end - at));
}

int json_count(const char *json, const char *path)
{
    const char *at = json_at(json, path);
    if (!at || *at != '[')
        return -1;
    int count = 0;
    while (json_member(at, text("%d", count), 0))
        count++;
    return count;
}

/* ================================ 3. Clusters ================================ */

/*
 * A proxy listens for one node, the address that this node gives to the others, and passes on what
 * comes, each way of each connection by a thread of its own. It has to know the caller: the socket's
 * inode, looked for among the nodes' open files.
 */
struct proxy {
    struct cluster *cluster;
    int to; /* its node */
    int port, listening;
};

struct pipe_way {
    struct proxy *proxy;
    int in, out;
    int from, to; /* nodes; -1: somebody else, never cut */
    int *open;    /* ways of this connection that are */
};

static bool way_cut(const struct pipe_way *w)
{
    return w->from >= 0 && w->to >= 0 &&
           __atomic_load_n(&w->proxy->cluster->cut[w->from][w->to], __ATOMIC_SEQ_CST);
}

static void *way_run(void *argument)
{
    struct pipe_way *w = argument;
    char bytes[65536];
    for (;;) {
        ssize_t count = recv(w->in, bytes, sizeof bytes, 0);
        while (way_cut(w))
            pause_ms(10);
        if (count <= 0)
            break;
        for (ssize_t sent = 0, n; sent < count; sent += n)
            if ((n = send(w->out, bytes + sent, (size_t)(count - sent), MSG_NOSIGNAL)) <= 0)
                goto end;
    }
end:
    shutdown(w->in, SHUT_RDWR);
    shutdown(w->out, SHUT_RDWR);
    if (__atomic_sub_fetch(w->open, 1, __ATOMIC_SEQ_CST) == 0) {
        close(w->in);
        close(w->out);
        free(w->open);
    }
    free(w);
    return NULL;
}

static void way_start(struct pipe_way way)
{
    struct pipe_way *w = malloc(sizeof *w);
    *w = way;
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 512 << 10);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attributes, way_run, w))
        abort();
}

/* The inode of the socket on this machine that is bound to the port and connected to the other
 * one. */
static unsigned long socket_inode(int port, int other)
{
    FILE *f = fopen("/proc/net/tcp", "r");
    char line[512];
    unsigned long inode = 0;
    while (f && !inode && fgets(line, sizeof line, f)) {
        unsigned local, remote;
        unsigned long found;
        if (sscanf(line, " %*d: %*8x:%4x %*8x:%4x %*x %*x:%*x %*x:%*x %*x %*u %*u %lu", &local,
                   &remote, &found) == 3 &&
            (int)local == port && (int)remote == other)
            inode = found;
    }
    if (f)
        fclose(f);
    return inode;
}

static bool process_has_socket(pid_t pid, unsigned long inode)
{
    char path[64], target[64], wanted[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    snprintf(wanted, sizeof wanted, "socket:[%lu]", inode);
    DIR *folder = opendir(path);
    bool found = false;
    for (struct dirent *e; folder && !found && (e = readdir(folder));) {
        ssize_t length = readlinkat(dirfd(folder), e->d_name, target, sizeof target - 1);
        target[length > 0 ? length : 0] = 0;
        found = !strcmp(target, wanted);
    }
    if (folder)
        closedir(folder);
    return found;
}

static int proxy_caller(const struct proxy *p, int fd)
{
    struct sockaddr_in peer;
    socklen_t size = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &size))
        return -1;
    unsigned long inode = socket_inode(ntohs(peer.sin_port), p->port);
    for (int i = 0; inode && i < p->cluster->count; i++)
        if (p->cluster->nodes[i].pid && process_has_socket(p->cluster->nodes[i].pid, inode))
            return i;
    return -1;
}

static void *connection_run(void *argument)
{
    struct pipe_way *w = argument; /* towards the node; its out is not there yet */
    while (way_cut(w))
        pause_ms(10);
    w->out = socket_on(w->proxy->cluster->nodes[w->to].port, false);
    if (w->out < 0) {
        close(w->in);
        free(w);
        return NULL;
    }
    w->open = malloc(sizeof *w->open);
    *w->open = 2;
    way_start((struct pipe_way){w->proxy, w->out, w->in, w->to, w->from, w->open});
    return way_run(w);
}

static void *proxy_run(void *argument)
{
    struct proxy *p = argument;
    for (;;) {
        int fd = accept4(p->listening, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct pipe_way *w = malloc(sizeof *w);
        *w = (struct pipe_way){.proxy = p, .in = fd, .from = proxy_caller(p, fd), .to = p->to};
        pthread_t thread;
        if (pthread_create(&thread, NULL, connection_run, w))
            abort();
        pthread_detach(thread);
    }
}

static struct proxy *proxy_start(struct cluster *c, int to)
{
    struct proxy *p = calloc(1, sizeof *p);
    p->cluster = c;
    p->to = to;
    p->port = free_port();
    p->listening = socket_on(p->port, true);
    REQUIRE(p->listening >= 0, "listen: %s", strerror(errno));
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, proxy_run, p) == 0, "no thread");
    pthread_detach(thread);
    return p;
}

void cluster_cut(struct cluster *c, int from, int to, bool cut)
{
    __atomic_store_n(&c->cut[from][to], cut, __ATOMIC_SEQ_CST);
}

void cluster_isolate(struct cluster *c, int node, bool cut)
{
    for (int i = 0; i < c->count; i++)
        if (i != node) {
            cluster_cut(c, i, node, cut);
            cluster_cut(c, node, i, cut);
        }
}

struct cluster *cluster_new(const char *const *extra_options, bool proxied)
{
    struct cluster *c = calloc(1, sizeof *c);
    char *folder = in_folder(folder_of_all, "cluster-XXXXXX");
    REQUIRE(mkdtemp(folder) != NULL, "%s: %s", folder, strerror(errno));
    chmod(folder, 0755);
    c->folder = folder;
    c->options = extra_options;
    c->proxied = proxied;
    return c;
}

int cluster_add(struct cluster *c)
{
    REQUIRE(c->count < NODES_MAX, "too many nodes");
    struct node *n = &c->nodes[c->count];
    n->port = free_port();
    if (c->proxied)
        n->proxy = proxy_start(c, c->count);
    snprintf(n->url, sizeof n->url, "http%s://127.0.0.1:%d", http_authority ? "s" : "", n->port);
    snprintf(n->address, sizeof n->address, "127.0.0.1:%d", n->proxy ? n->proxy->port : n->port);
    n->folder = in_folder(c->folder, "node-%d", c->count);
    n->log = text("%s.stderr", n->folder);
    mkdir(n->folder, 0755);
    return c->count++;
}

static bool folder_empty(const char *path)
{
    DIR *folder = opendir(path);
    bool empty = true;
    for (struct dirent *e; folder && (e = readdir(folder));)
        empty &= !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    if (folder)
        closedir(folder);
    return empty;
}

/* All nodes that have data: they can bring a new one in. NULL: it is the first. */
static char *join_list(const struct cluster *c, int i)
{
    char *list = NULL;
    for (int other = 0; other < c->count; other++) {
        char *data = in_folder(c->nodes[other].folder, "data");
        if (other != i && (c->nodes[other].pid || !folder_empty(data)))
            list = list ? text("%s,%s", list, c->nodes[other].address)
                        : strdup(c->nodes[other].address);
        free(data);
    }
    return list;
}

void node_start(struct cluster *c, int i)
{
    struct node *n = &c->nodes[i];
    REQUIRE(n->pid == 0, "node %d runs already", i);
    const char *binary = getenv("ESTORAJE_BIN");
    const char *argv[64] = {binary ? binary : "./estoraje", "--listen"};
    char *data = in_folder(n->folder, "data");
    int count = 2;
    argv[count++] = text("127.0.0.1:%d", n->port);
    argv[count++] = "--data";
    argv[count++] = data;
    if (n->proxy) {
        argv[count++] = "--advertise";
        argv[count++] = n->address;
    }
    bool first =
        folder_empty(data) && !(n->options[0] && strcmp(n->options[0], "--bootstrap-expect") == 0);
    char *others = first ? join_list(c, i) : NULL;
    if (first)
        argv[count++] = others ? "--join" : "--bootstrap";
    if (others)
        argv[count++] = others;
    for (int o = 0; c->options && c->options[o] && count < 40; o++)
        argv[count++] = c->options[o];
    for (int o = 0; o < 16 && n->options[o]; o++)
        argv[count++] = n->options[o];
    n->pid = process_start(argv, n->environment, n->log, SIGKILL);
}

void node_signal(struct cluster *c, int i, int signal)
{
    pid_t pid = c->nodes[i].pid;
    REQUIRE(pid > 0 && kill(pid, signal) == 0, "node %d is not running", i);
}

void node_kill(struct cluster *c, int i)
{
    node_signal(c, i, SIGKILL);
    int status = process_wait(c->nodes[i].pid, 30);
    REQUIRE(status == 1000 + SIGKILL, "killed, node %d ended with %d", i, status);
    c->nodes[i].pid = 0;
}

int node_stop(struct cluster *c, int i)
{
    node_signal(c, i, SIGTERM);
    int status = process_wait(c->nodes[i].pid, 15);
    if (status >= 0)
        c->nodes[i].pid = 0;
    return status;
}

static bool node_is_ok(const struct node *n, const char *path)
{
    double timeout = http_timeout_s;
    http_timeout_s = 5;
    bool ok = status_of(n->url, "GET", path, NULL, NULL) == 200;
    http_timeout_s = timeout;
    return ok;
}

bool node_healthy(const struct node *n)
{
    return node_is_ok(n, "/_health");
}

bool node_ready(const struct node *n)
{
    return node_is_ok(n, "/_ready");
}

char *node_id(const struct node *n)
{
    struct response r = get(n->url, "/_status");
    char *id = json_string(r.body, "node");
    response_free(&r);
    return id;
}

double node_metric(const struct node *n, const char *name)
{
    struct response r = get(n->url, "/_metrics");
    size_t length = strlen(name);
    double value = NAN;
    for (char *line = r.body; line && *line;
         line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (!strncmp(line, name, length) && line[length] == ' ')
            value = strtod(line + length, NULL);
    response_free(&r);
    return value;
}

static int running(const struct cluster *c)
{
    int count = 0;
    for (int i = 0; i < c->count; i++)
        count += c->nodes[i].pid != 0;
    return count;
}

/* What one node thinks: the epoch, if that many members are there and UP, and so many of them
 * live; else -1. */
static double epoch_at_rest(const char *status, int members, int live)
{
    if (json_count(status, "members") != members)
        return -1;
    for (int m = 0; m < members; m++) {
        char *state = json_string(status, text("members.%d.state", m));
        char *lives = json_string(status, text("members.%d.live", m));
        live -= !strcmp(lives, "true");
        if (strcmp(state, "up"))
            return -1;
    }
    double epoch = json_number(status, "epoch");
    return isnan(epoch) || live > 0 ? -1 : epoch;
}

bool cluster_at_rest(const struct cluster *c, int members)
{
    double timeout = http_timeout_s, epoch = -1;
    bool at_rest = true;
    http_timeout_s = 5;
    for (int i = 0; at_rest && i < c->count; i++) {
        if (!c->nodes[i].pid)
            continue;
        struct response r = get(c->nodes[i].url, "/_status");
        double seen = r.status == 200 ? epoch_at_rest(r.body, members, running(c)) : -1;
        at_rest = seen >= 0 && (epoch < 0 || seen == epoch) && node_healthy(&c->nodes[i]);
        epoch = seen;
        response_free(&r);
    }
    http_timeout_s = timeout;
    return at_rest;
}

void cluster_await(const struct cluster *c, int members, double seconds)
{
    double end = now() + seconds * slowness();
    while (!cluster_at_rest(c, members)) {
        for (int i = 0; i < c->count; i++)
            if (c->nodes[i].pid && waitpid(c->nodes[i].pid, NULL, WNOHANG) == c->nodes[i].pid) {
                log_show_end(c->nodes[i].log);
                ck_abort_msg("node %d ended by itself", i);
            }
        if (now() > end) {
            for (int i = 0; i < c->count; i++)
                if (c->nodes[i].pid) {
                    char *status = get(c->nodes[i].url, "/_status").body, *ring;
                    if ((ring = strstr(status, "\"ring\":")))
                        *ring = 0; /* that is long */
                    printf("node %d: %s\n", i, status);
                }
            ck_abort_msg("not at rest with %d members within %g s", members, seconds);
        }
        pause_ms(20);
    }
}

static struct cluster *cluster_start_any(int nodes, const char *const *extra_options, bool proxied)
{
    struct cluster *c = cluster_new(extra_options, proxied);
    for (int i = 0; i < nodes; i++)
        cluster_add(c);
    for (int i = 0; i < nodes; i++) {
        node_start(c, i);
        if (i == 0)
            AWAIT(node_healthy(&c->nodes[0]), 20);
    }
    cluster_await(c, nodes, 40);
    return c;
}

struct cluster *cluster_start(int nodes, const char *const *extra_options)
{
    return cluster_start_any(nodes, extra_options, false);
}

struct cluster *cluster_start_proxied(int nodes, const char *const *extra_options)
{
    return cluster_start_any(nodes, extra_options, true);
}

static void log_check(const char *path)
{
    static const char *const complaints[] = {"AddressSanitizer", "LeakSanitizer", "ThreadSanitizer",
                                             "runtime error:", "Assertion"};
    char *log = file_read(path, NULL);
    for (size_t i = 0; log && i < sizeof complaints / sizeof *complaints; i++)
        REQUIRE(!strstr(log, complaints[i]), "%s: %.2000s", path, strstr(log, complaints[i]));
    free(log);
}

void cluster_stop(struct cluster *c)
{
    cluster_nginx_stop(c);
    for (int i = 0; i < c->count; i++) {
        cluster_isolate(c, i, false);
        if (c->nodes[i].pid) {
            kill(c->nodes[i].pid, SIGCONT);
            kill(c->nodes[i].pid, SIGTERM);
        }
    }
    for (int i = 0; i < c->count; i++) {
        if (c->nodes[i].pid) {
            int status = process_wait(c->nodes[i].pid, 15);
            REQUIRE(status == 0, "node %d was stopped and ended with %d", i, status);
            c->nodes[i].pid = 0;
        }
        log_check(c->nodes[i].log);
    }
    folder_remove(c->folder);
}

/* The project's nginx.conf with this cluster's ports: the line of the first upstream server
 * becomes one for each node. */
static void nginx_configure(const struct cluster *c)
{
    const char *source = getenv("ESTORAJE_NGINX_CONF");
    char *from = file_read(source ? source : "nginx.conf", NULL), *save = NULL;
    REQUIRE(from != NULL, "nginx.conf is not there");
    FILE *to = fopen(in_folder(c->folder, "nginx.conf"), "w");
    REQUIRE(to != NULL, "nginx.conf cannot be written");
    for (char *line = strtok_r(from, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *at = strstr(line, "127.0.0.1:800");
        if (!at || line[strspn(line, " ")] == '#') {
            fprintf(to, "%s\n", line);
        } else if (strstr(line, "listen")) {
            fprintf(to, "%.*s127.0.0.1:%d%s\n", (int)(at - line), line, c->nginx_port,
                    at + strlen("127.0.0.1:8000"));
        } else if (at[strlen("127.0.0.1:800")] == '1') {
            for (int i = 0; i < c->count; i++)
                fprintf(to, "%.*s127.0.0.1:%d%s\n", (int)(at - line), line, c->nodes[i].port,
                        at + strlen("127.0.0.1:8001"));
        }
    }
    REQUIRE(fclose(to) == 0, "nginx.conf cannot be written");
}

void cluster_nginx(struct cluster *c)
{
    bool first = !c->nginx_port;
    if (first)
        c->nginx_port = free_port();
    snprintf(c->nginx_url, sizeof c->nginx_url, "http://127.0.0.1:%d", c->nginx_port);
    nginx_configure(c);
    mkdir(in_folder(c->folder, "nginx"), 0777);
    chmod(in_folder(c->folder, "nginx"), 0777);
    cluster_nginx_stop(c);
    const char *argv[] = {"nginx",
                          "-p",
                          in_folder(c->folder, "nginx"),
                          "-c",
                          in_folder(c->folder, "nginx.conf"),
                          "-e",
                          "stderr",
                          NULL};
    c->nginx = process_start(argv, NULL, in_folder(c->folder, "nginx.stderr"), SIGTERM);
    AWAIT(status_of(c->nginx_url, "GET", "/_health", NULL, NULL) != 0, 10);
}

void cluster_nginx_reload(struct cluster *c)
{
    nginx_configure(c);
    REQUIRE(kill(c->nginx, SIGHUP) == 0, "nginx is not running");
}

void cluster_nginx_stop(struct cluster *c)
{
    if (!c->nginx)
        return;
    kill(c->nginx, SIGTERM);
    process_wait(c->nginx, 10);
    c->nginx = 0;
}

/* ================================ 4. Load ================================ */

/* A value holds its key and which write of that key it is, so that a read can be judged by
 * itself. */

enum { UNKNOWN_MAX = 32, RECORDS_MAX = 400000 };

struct load_key {
    long acknowledged; /* the last write that was; 0: none */
    long tried;        /* the last write */
    long unknown[UNKNOWN_MAX];
    int unknown_count;
};

struct load_client {
    struct load *load;
    int index;
    pthread_t thread;
    pthread_mutex_t lock;
    struct load_key *keys;
    struct load_report report;
    struct {
        double start;
        float seconds;
    } * records;
    long record_count;
    unsigned seed;
};

struct load {
    struct load_plan plan;
    struct load_client *clients;
    double start;
    int stop, url_count;
    bool stopped;
};

static char *load_path(const struct load *l, int client, int key, bool query)
{
    return text("%s/%d/%d%s", l->plan.prefix, client, key,
                query && l->plan.query ? l->plan.query : "");
}

/* "/load/3/7#12|" and then letters that depend on all of that. */
static size_t load_value(const struct load *l, int client, int key, long number, char *to,
                         size_t room)
{
    size_t wanted = (size_t)l->plan.value_bytes < room ? (size_t)l->plan.value_bytes : room - 1;
    size_t count = (size_t)snprintf(to, room, "%s/%d/%d#%ld|", l->plan.prefix, client, key, number);
    for (unsigned x = (unsigned)number * 31U + (unsigned)key; count < wanted; count++) {
        x = x * 1664525U + 1013904223U;
        to[count] = (char)('a' + (x >> 24) % 26);
    }
    return count;
}

static bool number_allowed(const struct load_key *k, long number)
{
    if (number == k->acknowledged)
        return true;
    for (int i = 0; i < k->unknown_count && i < UNKNOWN_MAX; i++)
        if (k->unknown[i] == number)
            return true;
    return k->unknown_count > UNKNOWN_MAX && number < k->tried;
}

/* Is that what may be there? 404 is the value before the first write. */
static bool load_right(const struct load *l, int client, int key, const struct response *r)
{
    const struct load_key *k = &l->clients[client].keys[key];
    if (r->status == 404)
        return number_allowed(k, 0);
    const char *hash = r->status == 200 ? memchr(r->body, '#', r->body_bytes) : NULL;
    if (!hash)
        return false;
    long number = strtol(hash + 1, NULL, 10);
    size_t room = r->body_bytes + 128;
    char *wanted = malloc(room + (size_t)l->plan.value_bytes);
    size_t count = load_value(l, client, key, number, wanted, room + (size_t)l->plan.value_bytes);
    bool right = number_allowed(k, number) && body_is(r, wanted, count);
    free(wanted);
    return right;
}

/* Was it a good one? */
static bool load_record(struct load_client *client, const struct response *r, const char *method,
                        const char *path, const char *url, double start, bool right)
{
    struct load_report *report = &client->report;
    struct load *l = client->load;
    bool answered = r->status == 200 || r->status == 201 || r->status == 204 || r->status == 404;
    pthread_mutex_lock(&client->lock);
    report->requests++;
    if (r->seconds > report->slowest) {
        report->slowest = r->seconds;
        snprintf(report->slowest_what, sizeof report->slowest_what,
                 "%s %s at %.2f s took %.3f s, status %d", method, path, start - l->start,
                 r->seconds, r->status);
    }
    if (!answered && !report->failed++)
        snprintf(report->first_failure, sizeof report->first_failure,
                 "%s %s%s at %.2f s after %.2f s: %d %.60s%.60s", method, url, path,
                 start - l->start, r->seconds, r->status, r->error, r->status ? r->body : "");
    if (answered && !right && !report->wrong++)
        snprintf(report->first_wrong, sizeof report->first_wrong, "%s %s%s at %.2f s: %d %.80s",
                 method, url, path, start - l->start, r->status, r->body);
    if (client->record_count < RECORDS_MAX) {
        if (!(client->record_count & (client->record_count - 1)))
            client->records = realloc(client->records, (size_t)(client->record_count * 2 + 1) *
                                                           sizeof *client->records);
        client->records[client->record_count].start = start;
        client->records[client->record_count++].seconds = (float)r->seconds;
    }
    pthread_mutex_unlock(&client->lock);
    return answered;
}

static bool load_put(struct load_client *client, int key, const char *url)
{
    struct load *l = client->load;
    struct load_key *k = &client->keys[key];
    char *path = load_path(l, client->index, key, true),
         *value = malloc((size_t)l->plan.value_bytes + 256);
    long number = ++k->tried;
    size_t count =
        load_value(l, client->index, key, number, value, (size_t)l->plan.value_bytes + 256);
    double start = now();
    struct response r = http(url, "PUT", path, NULL, value, count);
    pthread_mutex_lock(&client->lock);
    if (r.status == 200 || r.status == 201 || r.status == 204) {
        k->acknowledged = number;
        client->report.acknowledged++;
    } else if ((r.status == 0 && !r.unconnected) || header(&r, "Estoraje-Outcome")) {
        client->report.unknown++;
        k->unknown[k->unknown_count++ % UNKNOWN_MAX] = number;
    }
    pthread_mutex_unlock(&client->lock);
    bool good = load_record(client, &r, "PUT", path, url, start, r.status != 404);
    response_free(&r);
    free(value);
    free(path);
    return good;
}

static bool load_get(struct load_client *client, int key, const char *url)
{
    char *path = load_path(client->load, client->index, key, true);
    double start = now();
    struct response r = get(url, path);
    bool good = load_record(client, &r, "GET", path, url, start,
                            load_right(client->load, client->index, key, &r));
    response_free(&r);
    free(path);
    return good;
}

static void *load_run(void *argument)
{
    struct load_client *client = argument;
    struct load *l = client->load;
    http_timeout_s = 15;
    for (int turn = client->index; !__atomic_load_n(&l->stop, __ATOMIC_SEQ_CST); turn++) {
        const char *url = l->plan.urls[turn % l->url_count];
        int key = (int)((unsigned)rand_r(&client->seed) % (unsigned)l->plan.keys);
        bool puts = rand_r(&client->seed) % 100 < l->plan.put_percent;
        bool good = puts ? load_put(client, key, url) : load_get(client, key, url);
        if (!good || l->plan.pause_ms)
            pause_ms(good ? l->plan.pause_ms : 20);
    }
    http_forget();
    return NULL;
}

struct load *load_start(const struct load_plan *plan)
{
    struct load *l = calloc(1, sizeof *l);
    l->plan = *plan;
    l->plan.value_bytes = plan->value_bytes ? plan->value_bytes : 64;
    l->plan.put_percent = plan->put_percent ? plan->put_percent : 50;
    l->start = now();
    l->clients = calloc((size_t)plan->clients, sizeof *l->clients);
    while (l->url_count < NODES_MAX && plan->urls[l->url_count])
        l->url_count++;
    for (int i = 0; i < plan->clients; i++) {
        struct load_client *client = &l->clients[i];
        client->load = l;
        client->index = i;
        client->seed = (unsigned)i + 1;
        client->keys = calloc((size_t)plan->keys, sizeof *client->keys);
        pthread_mutex_init(&client->lock, NULL);
        REQUIRE(pthread_create(&client->thread, NULL, load_run, client) == 0, "no thread");
    }
    return l;
}

struct load_report load_report(struct load *l)
{
    struct load_report all = {0};
    for (int i = 0; i < l->plan.clients; i++) {
        struct load_client *client = &l->clients[i];
        pthread_mutex_lock(&client->lock);
        const struct load_report *one = &client->report;
        if (one->slowest > all.slowest)
            memcpy(all.slowest_what, one->slowest_what, sizeof all.slowest_what);
        all.slowest = fmax(all.slowest, one->slowest);
        if (one->failed && !all.failed)
            memcpy(all.first_failure, one->first_failure, sizeof all.first_failure);
        if (one->wrong && !all.wrong)
            memcpy(all.first_wrong, one->first_wrong, sizeof all.first_wrong);
        all.requests += one->requests;
        all.acknowledged += one->acknowledged;
        all.failed += one->failed;
        all.unknown += one->unknown;
        all.wrong += one->wrong;
        pthread_mutex_unlock(&client->lock);
    }
    return all;
}

long load_requests(struct load *l)
{
    return load_report(l).requests;
}

double load_slowest(struct load *l, double from, double to)
{
    double slowest = 0;
    for (int i = 0; i < l->plan.clients; i++) {
        struct load_client *client = &l->clients[i];
        pthread_mutex_lock(&client->lock);
        for (long r = 0; r < client->record_count; r++)
            if (client->records[r].start >= from && client->records[r].start <= to)
                slowest = fmax(slowest, (double)client->records[r].seconds);
        pthread_mutex_unlock(&client->lock);
    }
    return slowest;
}

struct load_report load_stop(struct load *l)
{
    __atomic_store_n(&l->stop, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; !l->stopped && i < l->plan.clients; i++)
        pthread_join(l->clients[i].thread, NULL);
    l->stopped = true;
    return load_report(l);
}

int load_keys(struct load *l)
{
    int count = 0;
    for (int i = 0; i < l->plan.clients; i++)
        for (int k = 0; k < l->plan.keys; k++)
            count += l->clients[i].keys[k].acknowledged && !l->clients[i].keys[k].unknown_count;
    return count;
}

int load_check(struct load *l, const char *url)
{
    int wrong = 0;
    for (int i = 0; i < l->plan.clients; i++) {
        for (int k = 0; k < l->plan.keys; k++) {
            char *path = load_path(l, i, k, false);
            struct response r = get(url, path);
            if (!load_right(l, i, k, &r) && !wrong++)
                printf("%s%s: %d %.80s%s; the last one acknowledged is %ld of %ld, %d unknown\n",
                       url, path, r.status, r.body, r.error, l->clients[i].keys[k].acknowledged,
                       l->clients[i].keys[k].tried, l->clients[i].keys[k].unknown_count);
            response_free(&r);
            free(path);
        }
    }
    return wrong;
}
