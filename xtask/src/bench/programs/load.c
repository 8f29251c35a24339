/*
 * Loads that the agent has to cope with:
 *
 *   load writers DIR COUNT SECONDS   COUNT processes overwrite pages of a file of their own; prints writes per second
 *   load names DIR COUNT             COUNT new files of one page, then one fsync
 *   load fsync DIR COUNT             COUNT times one page and an fsync; prints p50 and p99 in nanoseconds
 *   load files DIR COUNT             COUNT files of some bytes, a thousand to a directory
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 256

static char page[PAGE];
static char path[4200];

static void check(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

/* What does not compress, and is different each time. */
static void scribble(void)
{
    static uint64_t state;
    if (!state)
        state = 0x9e3779b97f4a7c15u ^ (uint64_t)getpid() << 32 ^ (uint64_t)now();
    for (size_t i = 0; i < PAGE; i += sizeof state) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(page + i, &state, sizeof state);
    }
}

static int create(const char *dir, const char *kind, long number)
{
    snprintf(path, sizeof path, "%s/%s-%ld", dir, kind, number);
    int fd = open(path, O_CREAT | O_RDWR, 0644);
    check(fd >= 0, path);
    return fd;
}

static long write_for(const char *dir, int number, double seconds)
{
    int fd = create(dir, "writer", number);
    long count = 0;
    scribble();
    for (double end = now() + seconds * 1e9; now() < end; count++) {
        memcpy(page, &count, sizeof count);
        check(pwrite(fd, page, PAGE, count * 7 % PAGES * PAGE) == PAGE, "pwrite");
    }
    return count;
}

static void writers(const char *dir, int count, double seconds)
{
    int results[2];
    long all = 0, one;
    check(pipe(results) == 0, "pipe");
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        check(pid >= 0, "fork");
        if (pid == 0) {
            one = write_for(dir, i, seconds);
            check(write(results[1], &one, sizeof one) == sizeof one, "the pipe");
            _exit(0);
        }
    }
    for (int i = 0; i < count; i++) {
        int status;
        check(wait(&status) > 0 && status == 0, "a writer");
        check(read(results[0], &one, sizeof one) == sizeof one, "the pipe");
        all += one;
    }
    printf("%.0f\n", all / seconds);
}

static void names(const char *dir, long count)
{
    int fd = -1;
    for (long i = 0; i < count; i++) {
        if (fd >= 0)
            check(close(fd) == 0, "close");
        fd = create(dir, "name", i);
        scribble();
        check(write(fd, page, PAGE) == PAGE, "write");
    }
    check(fsync(fd) == 0, "fsync");
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void fsyncs(const char *dir, long count)
{
    int fd = create(dir, "synced", 0);
    double *took = calloc(count, sizeof *took);
    check(took != NULL, "memory");
    for (long i = 0; i < count; i++) {
        scribble();
        double from = now();
        check(pwrite(fd, page, PAGE, i % PAGES * PAGE) == PAGE && fsync(fd) == 0, "pwrite and fsync");
        took[i] = now() - from;
    }
    qsort(took, count, sizeof *took, compare);
    printf("%.0f %.0f\n", took[count / 2], took[count * 99 / 100]);
}

static void files(const char *dir, long count)
{
    char folder[4100];
    for (long i = 0; i < count; i++) {
        snprintf(folder, sizeof folder, "%s/%ld", dir, i / 1000);
        if (i % 1000 == 0)
            check(mkdir(folder, 0755) == 0, folder);
        int fd = create(folder, "file", i);
        int length = snprintf(page, PAGE, "the content of file %ld\n", i);
        check(write(fd, page, length) == length && close(fd) == 0, "write and close");
    }
}

int main(int argc, char **argv)
{
    check(argc >= 4, "usage: load writers|names|fsync|files DIR COUNT [SECONDS]");
    const char *what = argv[1], *dir = argv[2];
    long count = atol(argv[3]);
    check(count > 0, "a count above zero");
    if (strcmp(what, "writers") == 0 && argc == 5)
        writers(dir, count, atof(argv[4]));
    else if (strcmp(what, "names") == 0)
        names(dir, count);
    else if (strcmp(what, "fsync") == 0)
        fsyncs(dir, count);
    else if (strcmp(what, "files") == 0)
        files(dir, count);
    else
        check(0, "a load that exists");
    return 0;
}
