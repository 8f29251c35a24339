/*
 * Keeps an invariant over three files, by one style of writing, until it is killed:
 *
 *   invariant write|stdio|mmap|names|processes DIR
 *   invariant check STYLE DIR
 *
 * Counters a, b and c are raised in this order, so that at every instant a >= b >= c and a - c <= 1. With `names`,
 * generation n + 1 is created before generation n is removed: there are always one or two, and they are neighbours.
 * `check` says whether DIR is as it could have stood at one instant.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNTERS 3
static const char *const names[COUNTERS] = {"a", "b", "c"};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Creates all three as 0, in the reverse order: one that is missing counts as 0. */
static void create(int fds[COUNTERS], const char *text, size_t length)
{
    for (int i = 0; i < COUNTERS; i++) {
        fds[i] = open(names[i], O_RDWR | O_CREAT | O_TRUNC, 0644);
        if (fds[i] < 0 || pwrite(fds[i], text, length, 0) != (ssize_t)length)
            die(names[i]);
    }
}

static void by_write(void)
{
    int fds[COUNTERS];
    uint64_t zero = 0;
    create(fds, (const char *)&zero, sizeof zero);
    for (uint64_t n = 1;; n++)
        for (int i = 0; i < COUNTERS; i++)
            if (pwrite(fds[i], &n, sizeof n, 0) != sizeof n)
                die("pwrite");
}

static void by_stdio(void)
{
    FILE *files[COUNTERS];
    for (int i = 0; i < COUNTERS; i++)
        if (!(files[i] = fopen(names[i], "w+")))
            die(names[i]);
    for (uint64_t n = 1;; n++)
        for (int i = 0; i < COUNTERS; i++) {
            rewind(files[i]);
            if (fprintf(files[i], "%020" PRIu64 "\n", n) < 0 || fflush(files[i]))
                die("fprintf");
            usleep(1000);
        }
}

static void by_mmap(void)
{
    int fds[COUNTERS];
    uint64_t zero = 0;
    volatile uint64_t *words[COUNTERS];
    create(fds, (const char *)&zero, sizeof zero);
    for (int i = 0; i < COUNTERS; i++) {
        if (ftruncate(fds[i], 4096))
            die("ftruncate");
        void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
        if (at == MAP_FAILED)
            die("mmap");
        words[i] = at;
    }
    for (uint64_t n = 1;; n++)
        for (int i = 0; i < COUNTERS; i++) {
            *words[i] = n;
            if (msync((void *)words[i], 4096, MS_SYNC))
                die("msync");
        }
}

static void by_names(void)
{
    char old[64], new[64];
    if (mkdir("generations", 0755))
        die("mkdir");
    for (uint64_t n = 1;; n++) {
        snprintf(old, sizeof old, "generations/%" PRIu64, n - 1);
        snprintf(new, sizeof new, "generations/%" PRIu64, n);
        int fd = open("draft", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd < 0 || write(fd, &n, sizeof n) != sizeof n || close(fd))
            die("draft");
        if (rename("draft", new))
            die("rename");
        if (n > 1 && unlink(old))
            die("unlink");
    }
}

/* Three processes in a ring of pipes: each waits for its turn, writes its counter, and passes the turn on. */
static void by_processes(void)
{
    int fds[COUNTERS], ring[COUNTERS][2];
    uint64_t zero = 0;
    create(fds, (const char *)&zero, sizeof zero);
    for (int i = 0; i < COUNTERS; i++)
        if (pipe(ring[i]))
            die("pipe");
    for (int i = 0; i < COUNTERS; i++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid)
            continue;
        uint64_t n;
        while (read(ring[i][0], &n, sizeof n) == sizeof n) {
            if (pwrite(fds[i], &n, sizeof n, 0) != sizeof n)
                die("pwrite");
            n += i == COUNTERS - 1;
            if (write(ring[(i + 1) % COUNTERS][1], &n, sizeof n) != sizeof n)
                die("pipe");
        }
        die("the ring broke");
    }
    uint64_t first = 1;
    if (write(ring[0][1], &first, sizeof first) != sizeof first)
        die("pipe");
    int status;
    wait(&status);
    exit(1);
}

static uint64_t counter(const char *name, int text)
{
    char bytes[22] = {0};
    int fd = open(name, O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, bytes, text ? 21 : 8);
    close(fd);
    if (length == 0)
        return 0;
    if (length != (text ? 21 : 8)) {
        fprintf(stderr, "%s is torn: %zd bytes\n", name, length);
        exit(1);
    }
    uint64_t n;
    if (text)
        n = strtoull(bytes, NULL, 10);
    else
        memcpy(&n, bytes, sizeof n);
    return n;
}

static void check_names(void)
{
    uint64_t low = UINT64_MAX, high = 0, count = 0;
    DIR *dir = opendir("generations");
    if (!dir) {
        puts("0");
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        uint64_t n = strtoull(entry->d_name, NULL, 10), inside = 0;
        char path[300];
        snprintf(path, sizeof path, "generations/%s", entry->d_name);
        inside = counter(path, 0);
        if (inside != n) {
            fprintf(stderr, "generation %" PRIu64 " holds %" PRIu64 "\n", n, inside);
            exit(1);
        }
        low = n < low ? n : low;
        high = n > high ? n : high;
        count++;
    }
    if (count == 0) {
        /* Only before the first. */
        if (access("draft", F_OK) == 0 && counter("draft", 0) > 1) {
            fprintf(stderr, "no generation at all\n");
            exit(1);
        }
    } else if (count > 2 || high - low != count - 1) {
        fprintf(stderr, "%" PRIu64 " generations, %" PRIu64 " to %" PRIu64 "\n", count, low, high);
        exit(1);
    }
    printf("%" PRIu64 "\n", high);
}

static void check(const char *style)
{
    if (!strcmp(style, "names")) {
        check_names();
        return;
    }
    int text = !strcmp(style, "stdio");
    uint64_t a = counter("a", text), b = counter("b", text), c = counter("c", text);
    if (a < b || b < c || a - c > 1) {
        fprintf(stderr, "a=%" PRIu64 " b=%" PRIu64 " c=%" PRIu64 ": no instant was like this\n", a, b, c);
        exit(1);
    }
    printf("%" PRIu64 "\n", a);
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "check")) {
        if (chdir(argv[3]))
            die(argv[3]);
        check(argv[2]);
        return 0;
    }
    if (argc != 3)
        return 2;
    if (chdir(argv[2]))
        die(argv[2]);
    if (!strcmp(argv[1], "write"))
        by_write();
    if (!strcmp(argv[1], "stdio"))
        by_stdio();
    if (!strcmp(argv[1], "mmap"))
        by_mmap();
    if (!strcmp(argv[1], "names"))
        by_names();
    if (!strcmp(argv[1], "processes"))
        by_processes();
    return 2;
}
