/*
 * Writes numbered records in every way that has an acknowledgement, and notes each acknowledgement out of band:
 *
 *   fsync_writer run DIR ACKS      until SIGTERM (exit 0) or until a call fails (exit 1)
 *   fsync_writer verify DIR ACKS   every noted record is in DIR, whole
 *
 * All descriptors, the mapping, the stream and a lock are held from the start to the end, so that they show whether
 * anything breaks when an agent goes and comes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORD 64
#define SLOT 4096
#define SLOTS 16
#define LOGS 2

enum kind { LOG, SLOT_IN_PLACE, REPLACE, STREAM, MAPPING, NEW_FILE, SYNCHRONOUS, VECTOR, KINDS };

static volatile sig_atomic_t asked_to_end;

static void on_term(int signal)
{
    (void)signal;
    asked_to_end = 1;
}

static void check(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "%s: %s (errno %d)\n", what, strerror(errno), errno);
    exit(1);
}

/* A record that says its number and cannot be mistaken for a piece of another. */
static void record(char *out, uint64_t n)
{
    char text[RECORD + 1];
    snprintf(text, sizeof text, "%020" PRIu64 " %020" PRIu64 " %020" PRIu64, n, n * 2654435761u, ~n);
    memcpy(out, text, RECORD - 1);
    out[RECORD - 1] = '\n';
}

static void run(const char *acks)
{
    char text[RECORD], path[64], slot[SLOT];
    int logs[LOGS];
    int ack = open(acks, O_WRONLY | O_CREAT | O_APPEND, 0644);
    check(ack >= 0, acks);
    int dir = open(".", O_RDONLY | O_DIRECTORY);
    check(dir >= 0, "open .");
    for (int i = 0; i < LOGS; i++) {
        snprintf(path, sizeof path, "log.%d", i);
        logs[i] = open(path, O_RDWR | O_CREAT | O_APPEND, 0644);
        check(logs[i] >= 0, path);
    }
    int slots = open("slots", O_RDWR | O_CREAT, 0644);
    check(slots >= 0 && !ftruncate(slots, SLOT * SLOTS), "slots");
    FILE *stream = fopen("stream", "a");
    check(stream != NULL, "stream");
    int map_fd = open("mapping", O_RDWR | O_CREAT, 0644);
    check(map_fd >= 0 && !ftruncate(map_fd, SLOT), "mapping");
    volatile uint64_t *word = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
    check(word != MAP_FAILED, "mmap");
    int synchronous = open("synchronous", O_WRONLY | O_CREAT | O_APPEND | O_DSYNC, 0644);
    check(synchronous >= 0, "synchronous");
    int vector = open("vector", O_WRONLY | O_CREAT | O_APPEND, 0644);
    check(vector >= 0, "vector");
    check(!mkdir("new", 0755) || errno == EEXIST, "mkdir");
    int lock = open("lock", O_RDWR | O_CREAT, 0644);
    check(lock >= 0 && !flock(lock, LOCK_EX | LOCK_NB), "flock");

    for (uint64_t n = 1; !asked_to_end; n++) {
        enum kind kind = n % KINDS;
        record(text, n);
        switch (kind) {
        case LOG: {
            int fd = logs[n / KINDS % LOGS];
            check(write(fd, text, RECORD) == RECORD, "write");
            check(!fsync(fd), "fsync");
            char back[RECORD];
            off_t end = lseek(fd, 0, SEEK_END);
            check(pread(fd, back, RECORD, end - RECORD) == RECORD && !memcmp(back, text, RECORD), "read back");
            break;
        }
        case SLOT_IN_PLACE:
            for (size_t i = 0; i < SLOT / RECORD; i++)
                memcpy(slot + i * RECORD, text, RECORD);
            check(pwrite(slots, slot, SLOT, n / KINDS % SLOTS * SLOT) == SLOT, "pwrite");
            check(!fdatasync(slots), "fdatasync");
            break;
        case REPLACE: {
            int fd = open("draft", O_WRONLY | O_CREAT | O_TRUNC, 0644);
            check(fd >= 0 && write(fd, text, RECORD) == RECORD, "draft");
            check(!fsync(fd) && !close(fd), "fsync of draft");
            check(!rename("draft", "current"), "rename");
            check(!fsync(dir), "fsync of the directory");
            break;
        }
        case STREAM:
            check(fwrite(text, RECORD, 1, stream) == 1 && !fflush(stream), "fwrite");
            check(!fsync(fileno(stream)), "fsync of a stream");
            break;
        case MAPPING:
            *word = n;
            check(!msync((void *)word, SLOT, MS_SYNC), "msync");
            break;
        case NEW_FILE: {
            snprintf(path, sizeof path, "new/%" PRIu64, n);
            int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
            check(fd >= 0 && write(fd, text, RECORD) == RECORD, path);
            check(!fsync(fd) && !close(fd), "fsync of a new file");
            int new_dir = open("new", O_RDONLY | O_DIRECTORY);
            check(new_dir >= 0 && !fsync(new_dir) && !close(new_dir), "fsync of its directory");
            break;
        }
        case SYNCHRONOUS:
            check(write(synchronous, text, RECORD) == RECORD, "write with O_DSYNC");
            break;
        case VECTOR:
            check(write(vector, text, RECORD) == RECORD, "write");
            check(!syncfs(vector), "syncfs");
            break;
        case KINDS:
            break;
        }
        char note[32];
        int length = snprintf(note, sizeof note, "%" PRIu64 "\n", n);
        check(write(ack, note, length) == length, "ack");
    }
}

static int holds(const char *path, off_t offset, uint64_t n)
{
    char expected[RECORD], found[RECORD];
    record(expected, n);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t length = pread(fd, found, RECORD, offset);
    close(fd);
    return length == RECORD && !memcmp(expected, found, RECORD);
}

/* The number at `offset`, 0 where there is none; what is there must be whole. */
static uint64_t number_at(const char *path, off_t offset)
{
    char found[RECORD], expected[RECORD];
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t length = pread(fd, found, RECORD, offset);
    close(fd);
    if (length != RECORD)
        return 0;
    uint64_t n = strtoull(found, NULL, 10);
    record(expected, n);
    return memcmp(found, expected, RECORD) ? 0 : n;
}

static uint64_t mapped_number(void)
{
    uint64_t n = 0;
    int fd = open("mapping", O_RDONLY);
    if (fd < 0)
        return 0;
    if (pread(fd, &n, sizeof n, 0) != sizeof n)
        n = 0;
    close(fd);
    return n;
}

static void verify(const char *acks)
{
    FILE *file = fopen(acks, "r");
    if (!file) {
        puts("0");
        return;
    }
    uint64_t n, last = 0, count = 0, lost = 0;
    uint64_t in_log[LOGS] = {0}, streamed = 0, synchronous = 0, vector = 0;
    uint64_t latest[KINDS] = {0}, latest_slot[SLOTS] = {0};
    while (fscanf(file, "%" SCNu64, &n) == 1) {
        int good = 1;
        char path[64];
        last = n;
        count++;
        latest[n % KINDS] = n;
        switch ((enum kind)(n % KINDS)) {
        case LOG: {
            int which = n / KINDS % LOGS;
            snprintf(path, sizeof path, "log.%d", which);
            good = holds(path, (off_t)in_log[which]++ * RECORD, n);
            break;
        }
        case STREAM:
            good = holds("stream", (off_t)streamed++ * RECORD, n);
            break;
        case SYNCHRONOUS:
            good = holds("synchronous", (off_t)synchronous++ * RECORD, n);
            break;
        case VECTOR:
            good = holds("vector", (off_t)vector++ * RECORD, n);
            break;
        case NEW_FILE:
            snprintf(path, sizeof path, "new/%" PRIu64, n);
            good = holds(path, 0, n);
            break;
        case SLOT_IN_PLACE:
            latest_slot[n / KINDS % SLOTS] = n;
            break;
        default:
            break;
        }
        if (!good) {
            lost++;
            fprintf(stderr, "record %" PRIu64 " (kind %d) was acknowledged and is not there\n", n, (int)(n % KINDS));
        }
    }
    /* These are overwritten: what is there may be newer than the last acknowledgement, never older. */
    for (int i = 0; i < SLOTS; i++)
        for (size_t piece = 0; latest_slot[i] && piece < SLOT / RECORD; piece++)
            if (number_at("slots", (off_t)i * SLOT + piece * RECORD) < latest_slot[i]) {
                lost++;
                fprintf(stderr, "slot %d is older than %" PRIu64 "\n", i, latest_slot[i]);
                break;
            }
    if (latest[REPLACE] && number_at("current", 0) < latest[REPLACE]) {
        lost++;
        fprintf(stderr, "current is older than %" PRIu64 "\n", latest[REPLACE]);
    }
    if (mapped_number() < latest[MAPPING]) {
        lost++;
        fprintf(stderr, "the mapping is older than %" PRIu64 "\n", latest[MAPPING]);
    }
    fclose(file);
    if (lost) {
        fprintf(stderr, "%" PRIu64 " of %" PRIu64 " acknowledged records lost, the last was %" PRIu64 "\n", lost,
                count, last);
        exit(1);
    }
    printf("%" PRIu64 "\n", count);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    check(!chdir(argv[2]), argv[2]);
    struct sigaction action = {.sa_handler = on_term, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    if (!strcmp(argv[1], "run"))
        run(argv[3]);
    else if (!strcmp(argv[1], "verify"))
        verify(argv[3]);
    else
        return 2;
    return 0;
}
