/*
 * test_install.c - at home on a Debian machine: `make install`, its man page and systemd unit, and
 * the installation of packages.
 */
#include "cluster.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void mode_is(const char *path, mode_t mode)
{
    struct stat found;
    REQUIRE(stat(path, &found) == 0, "%s is missing", path);
    REQUIRE((found.st_mode & 07777) == mode, "%s has the mode %o", path, found.st_mode & 07777);
}

/* What `make` says is an error, unless it ends well. */
static void make(const char *arguments)
{
    struct output got = run(60, "env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s %s", arguments);
    REQUIRE(got.status == 0, "make %s: %d %s", arguments, got.status, got.text);
}

START_TEST(test_make_install_puts_all_in_place_and_uninstall_removes_it)
{
    char *root = in_folder(harness_folder(), "root");
    make(text("install DESTDIR=%s PREFIX=/opt", root));
    mode_is(in_folder(root, "opt/bin/estoraje"), 0755);
    mode_is(in_folder(root, "opt/share/man/man1/estoraje.1"), 0644);
    mode_is(in_folder(root, "opt/lib/systemd/system/estoraje.service"), 0644);
    mode_is(in_folder(root, "opt/share/doc/estoraje/nginx.conf"), 0644);
    struct output version = run(10, "%s/opt/bin/estoraje --version", root);
    ck_assert_ptr_nonnull(strstr(version.text, "estoraje "));
    char *unit = file_read(in_folder(root, "opt/lib/systemd/system/estoraje.service"), NULL);
    ck_assert_ptr_nonnull(strstr(unit, "\nExecStart=/opt/bin/estoraje\n"));
    make(text("uninstall DESTDIR=%s PREFIX=/opt", root));
    struct output left = run(10, "find %s ! -type d", root);
    ck_assert_str_eq(left.text, "");
}
END_TEST

START_TEST(test_the_man_page_names_each_option)
{
    char *prefix = in_folder(harness_folder(), "man");
    make(text("install PREFIX=%s", prefix));
    char *page = file_read(in_folder(prefix, "share/man/man1/estoraje.1"), NULL), *save;
    struct output help = run(10, "%s --help", getenv("ESTORAJE_BIN"));
    int count = 0;
    for (char *word = strtok_r(help.text, " \n=.,", &save); word;
         word = strtok_r(NULL, " \n=.,", &save)) {
        if (strncmp(word, "--", 2) != 0)
            continue;
        char escaped[64] = "", *to = escaped; /* man's way to write a minus */
        for (char *at = word; *at; at++)
            to = stpcpy(to, *at == '-' ? "\\-" : (char[]){*at, 0});
        ck_assert_msg(strstr(page, escaped) != NULL, "%s is not in the man page", word);
        count++;
    }
    ck_assert_int_gt(count, 15);
}
END_TEST

START_TEST(test_systemd_finds_no_fault_with_the_unit)
{
    if (!installed("systemd-analyze"))
        return;
    char *prefix = in_folder(harness_folder(), "unit");
    make(text("install PREFIX=%s", prefix));
    struct output got = run(
        30, "MANPATH=%s/share/man systemd-analyze verify %s/lib/systemd/system/estoraje.service",
        prefix, prefix);
    ck_assert_msg(got.status == 0 && !*got.text, "%d %s", got.status, got.text);
}
END_TEST

/* An apt-get that can only run once at a time, as the real one, and notes when that was tried. */
static const char apt_get[] = "#!/bin/sh\n"
                              "cd \"$(dirname \"$0\")\"\n"
                              "mkdir lock || { echo \"$*\" >>clashes; exit 100; }\n"
                              "sleep 0.2\n"
                              "for word; do case $word in package-*) echo >>$word; esac; done\n"
                              "rmdir lock\n";
static const char dpkg_query[] =
    "#!/bin/sh\n"
    "for word; do :; done\n"
    "[ -e \"$(dirname \"$0\")/$word\" ] && echo install ok installed\n";

static void script_write(const char *path, const char *script)
{
    file_write(path, script, strlen(script));
    ck_assert_int_eq(chmod(path, 0755), 0);
}

START_TEST(test_packages_are_installed_by_one_at_a_time)
{
    if (geteuid() != 0) /* it would ask sudo for the real apt-get */
        return;
    char *folder = in_folder(harness_folder(), "apt");
    ck_assert_int_eq(mkdir(folder, 0755), 0);
    script_write(in_folder(folder, "apt-get"), apt_get);
    script_write(in_folder(folder, "dpkg-query"), dpkg_query);
    struct output got = run(60,
                            "export PATH=%s:$PATH; for p in a b 'a package-b' c; do "
                            "tests/install.sh package-$p & pids=\"$pids $!\"; done; "
                            "for pid in $pids; do wait $pid || exit; done",
                            folder);
    ck_assert_msg(got.status == 0, "%d %s", got.status, got.text);
    char *clashes = file_read(in_folder(folder, "clashes"), NULL);
    ck_assert_msg(!clashes, "two at once: %s", clashes);
    for (const char *name = "abc"; *name; name++) {
        char *times = file_read(in_folder(folder, "package-%c", *name), NULL);
        ck_assert_msg(times && strlen(times) == 1, "package-%c was not installed once", *name);
    }
}
END_TEST

int main(void)
{
    const TTest *tests[] = {test_make_install_puts_all_in_place_and_uninstall_removes_it,
                            test_the_man_page_names_each_option,
                            test_systemd_finds_no_fault_with_the_unit,
                            test_packages_are_installed_by_one_at_a_time};
    return harness_run("install", 120, tests, sizeof tests / sizeof *tests);
}
