/*
 * Single calls, measured inside of the program: calls DIR. Reads lines "CALL COUNT" and answers each by a line "CPU WALL":
 * nanoseconds per call, of the thread's CPU time and of the clock. Two of these, one with the shim and one without, are
 * asked by turns, so that both see the same machine.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 1024
#define NAMES 64

static char page[PAGE];
static char data_path[4096];
static char fresh_path[NAMES][4200];
static int data;

static void check(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "calls: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(clockid_t clock)
{
    struct timespec t;
    check(clock_gettime(clock, &t) == 0, "clock_gettime");
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void do_pread(long i)
{
    check(pread(data, page, PAGE, i % PAGES * PAGE) == PAGE, "pread");
}

static void do_pwrite(long i)
{
    check(pwrite(data, page, PAGE, i % PAGES * PAGE) == PAGE, "pwrite");
}

static void do_open(long i)
{
    (void)i;
    int fd = open(data_path, O_RDONLY);
    check(fd >= 0 && close(fd) == 0, "open and close");
}

static void do_stat(long i)
{
    struct stat status;
    (void)i;
    check(stat(data_path, &status) == 0, "stat");
}

static void do_create(long i)
{
    const char *path = fresh_path[i % NAMES];
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
    check(fd >= 0, "create");
    check(write(fd, page, PAGE) == PAGE, "write");
    check(close(fd) == 0 && unlink(path) == 0, "close and unlink");
}

static const struct {
    const char *name;
    void (*call)(long);
} CALLS[] = {
    {"pread", do_pread}, {"pwrite", do_pwrite}, {"open", do_open}, {"stat", do_stat}, {"create", do_create},
};

int main(int argc, char **argv)
{
    check(argc == 2, "usage: calls DIR");
    snprintf(data_path, sizeof data_path, "%s/data", argv[1]);
    for (int i = 0; i < NAMES; i++)
        snprintf(fresh_path[i], sizeof fresh_path[i], "%s/fresh-%d", argv[1], i);
    data = open(data_path, O_CREAT | O_RDWR, 0644);
    check(data >= 0, data_path);
    for (int i = 0; i < PAGES; i++) {
        memset(page, i, PAGE);
        do_pwrite(i);
    }

    char line[100], name[20];
    long count;
    while (fgets(line, sizeof line, stdin)) {
        check(sscanf(line, "%19s %ld", name, &count) == 2 && count > 0, "a line CALL COUNT");
        size_t n = 0;
        while (n < sizeof CALLS / sizeof *CALLS && strcmp(CALLS[n].name, name) != 0)
            n++;
        check(n < sizeof CALLS / sizeof *CALLS, "a known call");
        void (*call)(long) = CALLS[n].call;
        double cpu = now(CLOCK_THREAD_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
        for (long i = 0; i < count; i++)
            call(i);
        cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
        wall = now(CLOCK_MONOTONIC) - wall;
        printf("%.2f %.2f\n", cpu / count, wall / count);
        fflush(stdout);
    }
    return 0;
}
