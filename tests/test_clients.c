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

/* Puts all files of a folder below a path of the store. */
static void put_files(const struct cluster *c, const char *folder, const char *path)
{
    do_command(120, text("cd %s && find . -type f | sed 's|^\\./\\(.*\\)|url = \"%s%s/\\1\"\\n"
                         "upload-file = \"\\1\"\\noutput = /dev/null|' | curl -sSf -K -",
                         folder, c->nginx_url, path));
}

/* A file of bytes that nothing can compress, and the same in the store. */
static char *put_random(const struct cluster *c, const char *name, int mebibytes)
{
    char *file = in_folder(c->folder, "%s", name);
    do_command(60, text("head -c %dM /dev/urandom >%s && curl -sSf -T %s %s/%s", mebibytes, file,
                        file, c->nginx_url, name));
    return file;
}

/* As far as the nodes that run have answered them. */
static double ranges_asked(const struct cluster *c)
{
    double sum = 0;
    for (int i = 0; i < c->count; i++) {
        double count =
            node_metric(&c->nodes[i], "estoraje_http_requests_total{method=\"GET\",code=\"206\"}");
        sum += count > 0 ? count : 0; /* it is NAN where there was none, or no answer */
    }
    return sum;
}

static off_t size_of(const char *path)
{
    struct stat found;
    return stat(path, &found) == 0 ? found.st_size : 0;
}

/* How many files there are below a folder. */
static int files_in(const char *folder)
{
    return atoi(run(20, "find %s -type f 2>/dev/null | wc -l", folder).text);
}

START_TEST(test_git_clones_with_a_node_killed)
{
    if (!installed("git"))
        return;
    struct cluster *c = behind_nginx();
    setenv("HOME", c->folder, 1);
    setenv("GIT_CONFIG_NOSYSTEM", "1", 1);
    /* Objects that are not in packs are asked for one by one. */
    do_command(60,
               text("cd %s && git init -q work && cd work && git config user.name me && "
                    "git config user.email me@example.org && git config gc.auto 0 && "
                    "for i in $(seq 150); do echo $i >$i; git add $i; git commit -qm $i; done && "
                    "cp -r .git ../repo.git && git --git-dir ../repo.git update-server-info",
                    c->folder));
    put_files(c, in_folder(c->folder, "repo.git"), "/repo.git");
    char *copy = in_folder(c->folder, "copy");
    struct command clone = command_start(text("git clone -q %s/repo.git %s", c->nginx_url, copy));
    AWAIT(files_in(text("%s/.git/objects", copy)) > 50, 60);
    ck_assert_int_eq(process_wait(clone.pid, 0), -1); /* in its middle */
    node_kill(c, 1);
    command_end(&clone, 120, "git clone");
    do_command(20, text("git -C %s fsck && diff -r -x .git %s/work %s", copy, c->folder, copy));
    cluster_stop(c);
}
END_TEST

START_TEST(test_nix_copies_there_and_back_with_a_node_killed)
{
    if (!installed("nix"))
        return;
    struct cluster *c = behind_nginx();
    setenv("HOME", c->folder, 1);
    setenv("NIX_CONFIG", "experimental-features = nix-command", 1);
    char *here = in_folder(c->folder, "here"), *there = in_folder(c->folder, "there");
    do_command(60, text("mkdir %s/tree && cd %s/tree && for i in $(seq 40); do "
                        "head -c 100K /dev/urandom >$i; done && for i in $(seq 40); do "
                        "nix-store --store %s --add $i; done >../paths",
                        c->folder, c->folder, here));
    struct command copy =
        command_start(text("nix copy --no-check-sigs --store %s --to %s/nix?compression=none "
                           "$(cat %s/paths)",
                           here, c->nginx_url, c->folder));
    AWAIT(node_metric(&c->nodes[0], "estoraje_keys") > 10, 60);
    ck_assert_int_eq(process_wait(copy.pid, 0), -1);
    node_kill(c, 1);
    command_end(&copy, 120, "nix copy --to");
    node_start(c, 1);
    node_kill(c, 2);
    do_command(120, text("nix copy --no-check-sigs --from %s/nix --to %s $(cat %s/paths) && "
                         "cd %s && diff -r here/nix/store there/nix/store -x .links",
                         c->nginx_url, there, c->folder, c->folder));
    cluster_stop(c);
}
END_TEST

START_TEST(test_qemu_converts_an_image_by_ranges_with_a_node_killed)
{
    if (!installed("qemu-img"))
        return;
    struct cluster *c = behind_nginx();
    do_command(60, text("cd %s && head -c 16M /dev/urandom >raw && truncate -s 80M raw && "
                        "qemu-img convert -O qcow2 raw image.qcow2 && "
                        "curl -sSf -T image.qcow2 %s/image.qcow2",
                        c->folder, c->nginx_url));
    struct command convert = command_start(
        text("cd %s && qemu-img convert -m 1 -r 8M -f qcow2 -O raw %s/image.qcow2 copy", c->folder,
             c->nginx_url));
    AWAIT(ranges_asked(c) > 5, 60);
    ck_assert_int_eq(process_wait(convert.pid, 0), -1);
    node_kill(c, 1);
    command_end(&convert, 25, "qemu-img convert");
    do_command(20, text("cmp %s/raw %s/copy", c->folder, c->folder));
    cluster_stop(c);
}
END_TEST

START_TEST(test_aria2c_fetches_over_four_connections_with_a_node_killed)
{
    if (!installed("aria2c"))
        return;
    struct cluster *c = behind_nginx();
    char *file = put_random(c, "large", 40), *copy = in_folder(c->folder, "copy");
    struct command fetch =
        command_start(text("aria2c -q -x 4 -s 4 -k 1M --max-overall-download-limit=20M "
                           "--retry-wait=1 -d %s -o copy %s/large",
                           c->folder, c->nginx_url));
    AWAIT(ranges_asked(c) >= 3 && size_of(copy) > 0, 60);
    ck_assert_int_eq(process_wait(fetch.pid, 0), -1);
    node_kill(c, 1);
    command_end(&fetch, 120, "aria2c");
    do_command(20, text("cmp %s %s", file, copy));
    cluster_stop(c);
}
END_TEST

START_TEST(test_wget_resumes_with_a_node_killed)
{
    if (!installed("wget"))
        return;
    struct cluster *c = behind_nginx();
    char *file = put_random(c, "large", 40), *copy = in_folder(c->folder, "copy");
    char *line = text("wget -q -c --limit-rate=20m -O %s %s/large", copy, c->nginx_url);
    struct command fetch = command_start(text("exec %s", line));
    AWAIT(size_of(copy) > 1 << 20, 60);
    kill(fetch.pid, SIGKILL);
    ck_assert_int_eq(process_wait(fetch.pid, 10), 1000 + SIGKILL);
    off_t had = size_of(copy);
    fetch = command_start(line);
    AWAIT(size_of(copy) > had + (1 << 20), 60);
    ck_assert_int_eq(process_wait(fetch.pid, 0), -1);
    node_kill(c, 1);
    command_end(&fetch, 120, "wget -c");
    ck_assert_double_ge(ranges_asked(c), 1);
    do_command(20, text("cmp %s %s", file, copy));
    cluster_stop(c);
}
END_TEST

int main(void)
{
    const TTest *tests[] = {
        test_restic_backs_up_and_restores_with_a_node_killed,
        test_ccache_finds_what_it_stored_with_a_node_killed,
        test_git_clones_with_a_node_killed,
        test_nix_copies_there_and_back_with_a_node_killed,
        test_qemu_converts_an_image_by_ranges_with_a_node_killed,
        test_aria2c_fetches_over_four_connections_with_a_node_killed,
        test_wget_resumes_with_a_node_killed,
    };
    return harness_run("clients", 240, tests, sizeof tests / sizeof *tests);
}
