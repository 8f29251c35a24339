/*
 * Spawns /bin/true by turns in this environment and in one with a library preloaded:
 *
 *   spawn ROUNDS COUNT OUTPUT NAME=VALUE...
 *
 * with OUTPUT as its output. Prints a line "PLAIN PRELOADED" for each round: the median of COUNT spawns each, in nanoseconds from posix_spawn to
 * the end of waitpid. This program itself runs without the library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void check(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "spawn: %s: %s\n", what, strerror(errno));
    exit(1);
}

static posix_spawn_file_actions_t actions;

static double spawn(char **environment)
{
    char *arguments[] = {"true", NULL};
    struct timespec from, to;
    pid_t pid;
    int status;
    clock_gettime(CLOCK_MONOTONIC, &from);
    check(posix_spawn(&pid, "/bin/true", &actions, NULL, arguments, environment) == 0, "posix_spawn");
    check(waitpid(pid, &status, 0) == pid && status == 0, "/bin/true");
    clock_gettime(CLOCK_MONOTONIC, &to);
    return (to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, count, sizeof *values, compare);
    return values[count / 2];
}

int main(int argc, char **argv)
{
    check(argc > 4, "usage: spawn ROUNDS COUNT OUTPUT NAME=VALUE...");
    int rounds = atoi(argv[1]), count = atoi(argv[2]), n = 0;
    check(rounds > 0 && count > 0, "numbers above zero");
    int output = open(argv[3], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    check(output >= 0, argv[3]);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, 1);
    posix_spawn_file_actions_adddup2(&actions, output, 2);
    while (environ[n])
        n++;
    char **preloaded = calloc(n + argc, sizeof *preloaded);
    double *plain_ns = calloc(count, sizeof *plain_ns), *preloaded_ns = calloc(count, sizeof *preloaded_ns);
    check(preloaded && plain_ns && preloaded_ns, "memory");
    memcpy(preloaded, environ, n * sizeof *preloaded);
    memcpy(preloaded + n, argv + 4, (argc - 4) * sizeof *preloaded);
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < count; i++) {
            plain_ns[i] = spawn(environ);
            preloaded_ns[i] = spawn(preloaded);
        }
        printf("%.0f %.0f\n", median(plain_ns, count), median(preloaded_ns, count));
    }
    return 0;
}
