/* Names: made, moved, removed; the working directory. */
#include "calls.h"

#include <limits.h>

static void do_mkdir(long i) { check(mkdir(fresh[i], 0755) == 0, "mkdir"); }
static void do_rmdir(long i) { check(rmdir(fresh[i]) == 0, "rmdir"); }
static void do_mknod(long i) { check(mknod(fresh[i], S_IFREG | 0644, 0) == 0, "mknod"); }
static void do_mkfifo(long i) { check(mkfifo(fresh[i], 0644) == 0, "mkfifo"); }
static void do_rename(long i) { check(rename(fresh[i], moved[i]) == 0, "rename"); }
static void do_link(long i) { check(link(data_path, fresh[i]) == 0, "link"); }
static void do_symlink(long i) { check(symlink("data", fresh[i]) == 0, "symlink"); }
static void do_unlink(long i) { check(unlink(fresh[i]) == 0, "unlink"); }
static void do_remove(long i) { check(remove(fresh[i]) == 0, "remove"); }

static void do_unlinkat(long i)
{
    check(unlinkat(dir_fd, strrchr(fresh[i], '/') + 1, 0) == 0, "unlinkat");
}

static void make_dirs(long count)
{
    for (long i = 0; i < count; i++)
        do_mkdir(i);
}

static void remove_dirs(long count)
{
    for (long i = 0; i < count; i++)
        do_rmdir(i);
}

static void do_readlink(long i)
{
    char target[PAGE];
    (void)i;
    check(readlink(link_path, target, sizeof target) == 4, "readlink");
}

static void do_chdir(long i) { (void)i; check(chdir(dir) == 0, "chdir"); }
static void do_fchdir(long i) { (void)i; check(fchdir(dir_fd) == 0, "fchdir"); }
static void enter(long count) { do_chdir(count); }
static void leave(long count) { (void)count; check(chdir("/") == 0, "chdir"); }

static void do_getcwd(long i)
{
    char path[PATH_MAX];
    (void)i;
    check(getcwd(path, sizeof path) != NULL, "getcwd");
}

static void do_realpath(long i)
{
    char path[PATH_MAX];
    (void)i;
    check(realpath(data_path, path) != NULL, "realpath");
}

static char template[2 * PAGE];

static void new_template(void) { snprintf(template, sizeof template, "%s/temp-XXXXXX", dir); }

static void do_mkstemp(long i)
{
    (void)i;
    new_template();
    int fd = mkstemp(template);
    check(fd >= 0 && close(fd) == 0 && unlink(template) == 0, "mkstemp, close and unlink");
}

static void do_mkdtemp(long i)
{
    (void)i;
    new_template();
    check(mkdtemp(template) != NULL && rmdir(template) == 0, "mkdtemp and rmdir");
}

const struct operation names[] = {
    {"mkdir", NULL, do_mkdir, remove_dirs},
    {"rmdir", make_dirs, do_rmdir, NULL},
    {"mknod", NULL, do_mknod, unlink_fresh},
    {"mkfifo", NULL, do_mkfifo, unlink_fresh},
    {"rename", make_fresh, do_rename, unlink_moved},
    {"link", NULL, do_link, unlink_fresh},
    {"symlink", NULL, do_symlink, unlink_fresh},
    {"unlink", make_fresh, do_unlink, NULL},
    {"unlinkat", make_fresh, do_unlinkat, NULL},
    {"remove", make_fresh, do_remove, NULL},
    {"readlink", NULL, do_readlink, NULL},
    {"chdir", NULL, do_chdir, leave},
    {"fchdir", NULL, do_fchdir, leave},
    {"getcwd", enter, do_getcwd, leave},
    {"realpath", NULL, do_realpath, NULL},
    {"mkstemp", NULL, do_mkstemp, NULL},
    {"mkdtemp", NULL, do_mkdtemp, NULL},
    {0},
};
