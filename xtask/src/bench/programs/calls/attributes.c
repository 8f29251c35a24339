/* Attributes of a path and of a descriptor, extended ones too; length. */
#include "calls.h"

#include <sys/time.h>
#include <sys/xattr.h>
#include <utime.h>

static void do_chmod(long i) { check(chmod(data_path, i % 2 ? 0644 : 0600) == 0, "chmod"); }
static void do_fchmod(long i) { check(fchmod(data, i % 2 ? 0644 : 0600) == 0, "fchmod"); }
static void do_chown(long i) { (void)i; check(chown(data_path, getuid(), -1) == 0, "chown"); }
static void do_fchown(long i) { (void)i; check(fchown(data, getuid(), -1) == 0, "fchown"); }

static struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};

static void do_utimensat(long i)
{
    times[1].tv_nsec = i;
    check(utimensat(AT_FDCWD, data_path, times, 0) == 0, "utimensat");
}

static void do_futimens(long i)
{
    times[1].tv_nsec = i;
    check(futimens(data, times) == 0, "futimens");
}

static void do_utimes(long i)
{
    struct timeval both[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000, .tv_usec = i % 1000}};
    check(utimes(data_path, both) == 0, "utimes");
}

static void do_truncate(long i) { check(truncate(data_path, PAGES * PAGE + i % 2) == 0, "truncate"); }
static void do_ftruncate(long i) { check(ftruncate(data, PAGES * PAGE + i % 2) == 0, "ftruncate"); }

static void whole(long count) { (void)count; check(ftruncate(data, PAGES * PAGE) == 0, "ftruncate"); }

static const char name[] = "user.bench";

static void do_setxattr(long i) { check(setxattr(data_path, name, &i, sizeof i, 0) == 0, "setxattr"); }
static void do_fsetxattr(long i) { check(fsetxattr(data, name, &i, sizeof i, 0) == 0, "fsetxattr"); }
static void set(long count) { do_fsetxattr(count); }
static void unset(long count) { (void)count; check(fremovexattr(data, name) == 0, "fremovexattr"); }

static void do_getxattr(long i)
{
    check(getxattr(data_path, name, &i, sizeof i) == sizeof i, "getxattr");
}

static void do_listxattr(long i)
{
    char list[256];
    (void)i;
    check(listxattr(data_path, list, sizeof list) > 0, "listxattr");
}

const struct operation attributes[] = {
    {"chmod", NULL, do_chmod, NULL},
    {"fchmod", NULL, do_fchmod, NULL},
    {"chown", NULL, do_chown, NULL},
    {"fchown", NULL, do_fchown, NULL},
    {"utimensat", NULL, do_utimensat, NULL},
    {"utimes", NULL, do_utimes, NULL},
    {"futimens", NULL, do_futimens, NULL},
    {"truncate", NULL, do_truncate, whole},
    {"ftruncate", NULL, do_ftruncate, whole},
    {"setxattr", NULL, do_setxattr, unset},
    {"fsetxattr", NULL, do_fsetxattr, unset},
    {"getxattr", set, do_getxattr, unset},
    {"listxattr", set, do_listxattr, unset},
    {0},
};
