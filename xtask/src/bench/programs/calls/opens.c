/* Opening, by descriptors and streams; asking about a path; walking. */
#include "calls.h"

#include <dirent.h>
#include <ftw.h>
#include <fts.h>
#include <glob.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>

static void open_close(const char *path, int flags)
{
    int fd = open(path, flags, 0644);
    check(fd >= 0 && close(fd) == 0, "open and close");
}

static void open_read(long i) { (void)i; open_close(data_path, O_RDONLY); }
static void open_write(long i) { (void)i; open_close(data_path, O_RDWR); }
static void open_there(long i) { (void)i; open_close(data_path, O_RDWR | O_CREAT); }
static void open_new(long i) { open_close(fresh[i], O_WRONLY | O_CREAT | O_EXCL); }
static void open_miss(long i) { (void)i; check(open(missing_path, O_RDONLY) < 0, "open of nothing"); }

static void open_trunc(long i)
{
    open_close(fresh[i], O_WRONLY | O_TRUNC);
}

static void openat_read(long i)
{
    (void)i;
    int fd = openat(dir_fd, "data", O_RDONLY);
    check(fd >= 0 && close(fd) == 0, "openat and close");
}

static void do_creat(long i)
{
    int fd = creat(fresh[i], 0644);
    check(fd >= 0 && close(fd) == 0, "creat and close");
}

static void create(long i)
{
    const char *path = fresh[i];
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
    check(fd >= 0, "create");
    check(write(fd, buffer, PAGE) == PAGE, "write");
    check(close(fd) == 0 && unlink(path) == 0, "close and unlink");
}

static void stream(const char *path, const char *mode)
{
    FILE *file = fopen(path, mode);
    check(file && fclose(file) == 0, "fopen and fclose");
}

static void fopen_read(long i) { (void)i; stream(data_path, "r"); }
static void fopen_append(long i) { (void)i; stream(data_path, "a"); }
static void fopen_write(long i) { stream(fresh[i], "w"); }

static struct stat status;

static void do_stat(long i) { (void)i; check(stat(data_path, &status) == 0, "stat"); }
static void do_lstat(long i) { (void)i; check(lstat(data_path, &status) == 0, "lstat"); }
static void stat_miss(long i) { (void)i; check(stat(missing_path, &status) < 0, "stat of nothing"); }
static void do_fstat(long i) { (void)i; check(fstat(data, &status) == 0, "fstat"); }
static void do_fstatat(long i) { (void)i; check(fstatat(dir_fd, "data", &status, 0) == 0, "fstatat"); }
static void stat_relative(long i) { (void)i; check(stat("data", &status) == 0, "stat of a relative path"); }
static void do_access(long i) { (void)i; check(access(data_path, R_OK) == 0, "access"); }
static void access_miss(long i) { (void)i; check(access(missing_path, R_OK) < 0, "access to nothing"); }

static void enter_dir(long count) { (void)count; check(chdir(dir) == 0, "chdir"); }
static void leave_dir(long count) { (void)count; check(chdir("/") == 0, "chdir"); }

static void do_statx(long i)
{
    struct statx extended;
    (void)i;
    check(statx(AT_FDCWD, data_path, 0, STATX_BASIC_STATS, &extended) == 0, "statx");
}

static void statx_miss(long i)
{
    struct statx extended;
    (void)i;
    check(statx(AT_FDCWD, missing_path, 0, STATX_BASIC_STATS, &extended) < 0, "statx of nothing");
}

static void do_statfs(long i)
{
    struct statfs system;
    (void)i;
    check(statfs(data_path, &system) == 0, "statfs");
}

static void do_statvfs(long i)
{
    struct statvfs system;
    (void)i;
    check(statvfs(data_path, &system) == 0, "statvfs");
}

static void do_opendir(long i)
{
    (void)i;
    DIR *stream = opendir(few_path);
    check(stream != NULL, "opendir");
    int n = 0;
    while (readdir(stream))
        n++;
    check(n == FEW + 2 && closedir(stream) == 0, "readdir and closedir");
}

static void do_scandir(long i)
{
    struct dirent **list;
    (void)i;
    int n = scandir(few_path, &list, NULL, alphasort);
    check(n == FEW + 2, "scandir");
    while (n > 0)
        free(list[--n]);
    free(list);
}

static int seen(const char *path, const struct stat *found, int kind, struct FTW *where)
{
    (void)path, (void)found, (void)kind, (void)where;
    return 0;
}

static void do_nftw(long i) { (void)i; check(nftw(few_path, seen, 8, FTW_PHYS) == 0, "nftw"); }

static void do_fts(long i)
{
    char *roots[] = {few_path, NULL};
    (void)i;
    FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    check(walk != NULL, "fts_open");
    int n = 0;
    while (fts_read(walk))
        n++;
    check(n == FEW + 2 && fts_close(walk) == 0, "fts_read and fts_close");
}

static void do_glob(long i)
{
    static char pattern[3 * PAGE];
    glob_t found;
    (void)i;
    if (!*pattern)
        snprintf(pattern, sizeof pattern, "%s/*", few_path);
    check(glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc == FEW, "glob");
    globfree(&found);
}

const struct operation opens[] = {
    {"open", NULL, open_read, NULL},
    {"openat", NULL, openat_read, NULL},
    {"open-miss", NULL, open_miss, NULL},
    {"open-write", NULL, open_write, NULL},
    {"open-there", NULL, open_there, NULL},
    {"open-trunc", make_fresh, open_trunc, unlink_fresh},
    {"open-new", NULL, open_new, unlink_fresh},
    {"creat", make_fresh, do_creat, unlink_fresh},
    {"create", NULL, create, NULL},
    {"fopen-read", NULL, fopen_read, NULL},
    {"fopen-append", NULL, fopen_append, NULL},
    {"fopen-write", make_fresh, fopen_write, unlink_fresh},
    {"stat", NULL, do_stat, NULL},
    {"stat-miss", NULL, stat_miss, NULL},
    {"stat-relative", enter_dir, stat_relative, leave_dir},
    {"lstat", NULL, do_lstat, NULL},
    {"fstat", NULL, do_fstat, NULL},
    {"fstatat", NULL, do_fstatat, NULL},
    {"statx", NULL, do_statx, NULL},
    {"statx-miss", NULL, statx_miss, NULL},
    {"access", NULL, do_access, NULL},
    {"access-miss", NULL, access_miss, NULL},
    {"statfs", NULL, do_statfs, NULL},
    {"statvfs", NULL, do_statvfs, NULL},
    {"opendir", NULL, do_opendir, NULL},
    {"scandir", NULL, do_scandir, NULL},
    {"nftw", NULL, do_nftw, NULL},
    {"fts", NULL, do_fts, NULL},
    {"glob", NULL, do_glob, NULL},
    {0},
};
