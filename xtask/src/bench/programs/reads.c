/*
 * Reads of a file that lies there: `reads FILE BYTES [CPU]` takes lines `pread COUNT` or `read COUNT` and answers
 * each with the CPU's time and the clock's of one call, in nanoseconds. It touches only the first BYTES of the file.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

static char buffer[PAGE];
static int file;
static long bytes;

static void check(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "reads: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void do_pread(long i)
{
    check(pread(file, buffer, PAGE, i * PAGE % bytes) == PAGE, "pread");
}

static void do_read(long i)
{
    if (i * PAGE % bytes == 0)
        check(lseek(file, 0, SEEK_SET) == 0, "lseek");
    check(read(file, buffer, PAGE) == PAGE, "read");
}

int main(int argc, char **argv)
{
    check(argc == 3 || argc == 4, "usage: reads FILE BYTES [CPU]");
    if (argc == 4) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(atoi(argv[3]), &cpus);
        check(sched_setaffinity(0, sizeof cpus, &cpus) == 0, "sched_setaffinity");
    }
    file = open(argv[1], O_RDONLY | O_CLOEXEC);
    bytes = atol(argv[2]) / PAGE * PAGE;
    check(file >= 0 && bytes > 0, argv[1]);
    for (long i = 0; i < bytes / PAGE; i++)
        do_pread(i);

    char line[100], name[30];
    long count;
    while (fgets(line, sizeof line, stdin)) {
        check(sscanf(line, "%29s %ld", name, &count) == 2 && count > 0, "a line CALL COUNT");
        void (*call)(long) = strcmp(name, "pread") == 0 ? do_pread : strcmp(name, "read") == 0 ? do_read : NULL;
        check(call != NULL, name);
        double cpu = now(CLOCK_THREAD_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
        for (long i = 0; i < count; i++)
            call(i);
        wall = now(CLOCK_MONOTONIC) - wall;
        cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
        printf("%.2f %.2f\n", cpu / count, wall / count);
        fflush(stdout);
    }
    return 0;
}
