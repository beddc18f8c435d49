/*
 * test_clients.c - programs that people have already, unchanged, at three nodes behind nginx, of which
 * one is killed in the middle.
 */
#include "cluster.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct cluster *behind_nginx(void)
{
    struct cluster *c = cluster_start(3, NULL);
    cluster_nginx(c);
    return c;
}

/* A command in the background: its status and output when it has ended. */
struct command {
    pid_t pid;
    char *output;
};

static struct command command_start(const char *line)
{
    static int count;
    struct command c = {.output =
                            in_folder(harness_folder(), "command-%d-%d", (int)getpid(), count++)};
    c.pid = process_start((const char *const[]){"sh", "-c", line, NULL}, NULL, c.output, SIGKILL);
    return c;
}

static void command_end(struct command *c, double seconds, const char *what)
{
    int status = process_wait(c->pid, seconds);
    ck_assert_msg(status == 0, "%s: %d %.1500s", what, status, file_read(c->output, NULL));
}

static void do_command(double seconds, const char *line)
{
    struct command c = command_start(line);
    command_end(&c, seconds, line);
}

START_TEST(test_restic_backs_up_and_restores_with_a_node_killed)
{
    if (!installed("restic"))
        return;
    struct cluster *c = behind_nginx();
    setenv("RESTIC_REPOSITORY", text("rest:%s/backup/", c->nginx_url), 1);
    setenv("RESTIC_PASSWORD", "secret", 1);
    setenv("RESTIC_CACHE_DIR", in_folder(c->folder, "cache"), 1);
    char *target = in_folder(c->folder, "restored");
    do_command(60, "restic init");
    struct command backup = command_start("restic backup /usr/include/linux /usr/bin/[a-d]*");
    AWAIT(node_metric(&c->nodes[0], "estoraje_keys") >= 4, 60);
    node_kill(c, 1);
    command_end(&backup, 120, "backup");
    do_command(120, "restic backup /usr/include/linux /usr/include/asm-generic");
    node_start(c, 1);
    do_command(120, "restic check --read-data");
    node_kill(c, 2);
    do_command(120, text("restic restore latest --target %s && diff -r --no-dereference "
                         "/usr/include/linux %s/usr/include/linux",
                         target, target));
    do_command(120, "restic forget --keep-last 1 --prune");
    node_start(c, 2);
    cluster_await(c, 3, 60);
    do_command(120, "restic check --read-data");
    cluster_stop(c);
}
END_TEST

START_TEST(test_ccache_finds_what_it_stored_with_a_node_killed)
{
    if (!installed("ccache"))
        return;
    struct cluster *c = behind_nginx();
    char *sources = in_folder(c->folder, "sources");
    mkdir(sources, 0755);
    for (int i = 0; i < 6; i++) {
        char *code = text("#include <stdio.h>\n#include <stdlib.h>\nint f%d(int x) { return "
                          "printf(\"%%d\", x + %d); }\n",
                          i, i);
        file_write(in_folder(sources, "f%d.c", i), code, strlen(code));
    }
    setenv("CCACHE_REMOTE_STORAGE", text("%s/ccache", c->nginx_url), 1);
    setenv("CCACHE_SECONDARY_STORAGE", text("%s/ccache", c->nginx_url),
           1); /* its name before version 4.7 */
    const char *compile = "cd %s && export CCACHE_DIR=%s && for f in f*.c; do ccache cc -O1 -c $f "
                          "-o $f.o || exit 1; done "
                          "&& ccache --print-stats";
    char *first = text(compile, sources, in_folder(c->folder, "one")),
         *second = text(compile, sources, in_folder(c->folder, "two"));
    do_command(90, first);
    node_kill(c, 0);
    struct output o = run(90, "%s", second);
    ck_assert_msg(o.status == 0, "%s", o.text);
    const char *hits = strstr(o.text, "remote_storage_hit\t");
    hits = hits ? hits : strstr(o.text, "secondary_storage_hit\t");
    ck_assert_msg(hits && atoi(strchr(hits, '\t')) >= 6, "%s", o.text);
    cluster_stop(c);
}
END_TEST

int main(void)
{
    const TTest *tests[] = {test_restic_backs_up_and_restores_with_a_node_killed,
                            test_ccache_finds_what_it_stored_with_a_node_killed};
    harness_begin("clients");
    Suite *suite = suite_create("clients");
    TCase *kind = tcase_create("clients");
    tcase_set_timeout(kind, 240);
    suite_add_tcase(suite, kind);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (harness_wants(tests[i]))
            tcase_add_test(kind, tests[i]);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    return harness_end(runner);
}
