/*
 * Makes calls in a directory, as many as it is asked for:
 *
 *   calls DIR LIBRARY [CPU]
 *
 * For each line "CALL COUNT" on its input it prints "CPU WALL": nanoseconds per call, of the thread's CPU time (and of the
 * processes that it waited for) and by the clock. Several of these, with the shim and without, are asked by turns, so
 * that all see the same machine. CPU is the one that it stays on.
 */
#include "calls.h"

#include <sched.h>
#include <sys/resource.h>
#include <time.h>

char dir[PAGE], data_path[2 * PAGE], missing_path[2 * PAGE], few_path[2 * PAGE], link_path[2 * PAGE];
char program_path[2 * PAGE], library_path[2 * PAGE];
char fresh[NAMES][2 * PAGE], moved[NAMES][2 * PAGE];
int data, data_read, other, dir_fd;
char buffer[16 * PAGE];

void check(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "calls: %s: %s\n", what, strerror(errno));
    exit(1);
}

void make(const char *path)
{
    int fd = open(path, O_CREAT | O_WRONLY, 0644);
    check(fd >= 0 && close(fd) == 0, path);
}

void make_fresh(long count)
{
    for (long i = 0; i < count; i++)
        make(fresh[i]);
}

void unlink_fresh(long count)
{
    for (long i = 0; i < count; i++)
        check(unlink(fresh[i]) == 0, "unlink");
}

void unlink_moved(long count)
{
    for (long i = 0; i < count; i++)
        check(unlink(moved[i]) == 0, "unlink");
}

static double now(clockid_t clock)
{
    struct timespec t;
    check(clock_gettime(clock, &t) == 0, "clock_gettime");
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static double cpu_time(void)
{
    struct rusage children;
    check(getrusage(RUSAGE_CHILDREN, &children) == 0, "getrusage");
    double micros = (children.ru_utime.tv_sec + children.ru_stime.tv_sec) * 1e6 + children.ru_utime.tv_usec
                    + children.ru_stime.tv_usec;
    return now(CLOCK_THREAD_CPUTIME_ID) + micros * 1e3;
}

static void copy(const char *from, const char *to)
{
    int in = open(from, O_RDONLY), out = open(to, O_CREAT | O_WRONLY | O_TRUNC, 0755);
    ssize_t n;
    check(in >= 0 && out >= 0, from);
    while ((n = read(in, buffer, sizeof buffer)) > 0)
        check(write(out, buffer, n) == n, to);
    check(n == 0 && close(in) == 0 && close(out) == 0, to);
}

static void set_up(const char *root, const char *library)
{
    snprintf(dir, sizeof dir, "%s", root);
    snprintf(data_path, sizeof data_path, "%s/data", dir);
    snprintf(missing_path, sizeof missing_path, "%s/none", dir);
    snprintf(few_path, sizeof few_path, "%s/few", dir);
    snprintf(link_path, sizeof link_path, "%s/link", dir);
    snprintf(program_path, sizeof program_path, "%s/true", dir);
    snprintf(library_path, sizeof library_path, "%s/library.so", dir);
    for (int i = 0; i < NAMES; i++) {
        snprintf(fresh[i], sizeof fresh[i], "%s/fresh-%d", dir, i);
        snprintf(moved[i], sizeof moved[i], "%s/moved-%d", dir, i);
    }
    check(mkdir(few_path, 0755) == 0 || errno == EEXIST, few_path);
    for (int i = 0; i < FEW; i++) {
        char path[3 * PAGE];
        snprintf(path, sizeof path, "%s/file-%d", few_path, i);
        make(path);
    }
    check(symlink("data", link_path) == 0 || errno == EEXIST, link_path);
    copy("/bin/true", program_path);
    copy(library, library_path);
    dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    data = open(data_path, O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    data_read = open(data_path, O_RDONLY | O_CLOEXEC);
    snprintf(fresh[0], sizeof fresh[0], "%s/other", dir);
    other = open(fresh[0], O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    snprintf(fresh[0], sizeof fresh[0], "%s/fresh-0", dir);
    check(dir_fd >= 0 && data >= 0 && data_read >= 0 && other >= 0, dir);
    for (int i = 0; i < PAGES; i++) {
        memset(buffer, i, PAGE);
        check(write(data, buffer, PAGE) == PAGE && write(other, buffer, PAGE) == PAGE, "write");
    }
}

static const struct operation *find(const char *name)
{
    const struct operation *lists[] = {opens, names, attributes, data_calls, others};
    for (size_t n = 0; n < sizeof lists / sizeof *lists; n++)
        for (const struct operation *one = lists[n]; one->name; one++)
            if (strcmp(one->name, name) == 0)
                return one;
    check(0, name);
    return NULL;
}

int main(int argc, char **argv)
{
    check(argc == 3 || argc == 4, "usage: calls DIR LIBRARY [CPU]");
    if (argc == 4) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(atoi(argv[3]), &cpus);
        check(sched_setaffinity(0, sizeof cpus, &cpus) == 0, "sched_setaffinity");
    }
    set_up(argv[1], argv[2]);

    char line[100], name[30];
    long count;
    while (fgets(line, sizeof line, stdin)) {
        check(sscanf(line, "%29s %ld", name, &count) == 2 && count > 0, "a line CALL COUNT");
        const struct operation *one = find(name);
        if (one->prepare)
            one->prepare(count);
        double cpu = cpu_time(), wall = now(CLOCK_MONOTONIC);
        for (long i = 0; i < count; i++)
            one->call(i);
        wall = now(CLOCK_MONOTONIC) - wall;
        cpu = cpu_time() - cpu;
        if (one->tidy)
            one->tidy(count);
        printf("%.2f %.2f\n", cpu / count, wall / count);
        fflush(stdout);
    }
    return 0;
}
