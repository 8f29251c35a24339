/*
 * `redirected FILE WAY` lets FILE take the number of a stream that is read, in one of the ways below, and prints an FNV-1a sum of
 * what the stream then reads and its length. Where the way itself fails, it says so and ends with 2.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *path;

static int checked(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(2);
    }
    return result;
}

static int opened(void) { return checked(open(path, O_RDONLY), "open"); }

static FILE *close_and_open(void) { close(0); opened(); return stdin; }
static FILE *close_and_open_by_number(void)
{
    close(0);
    checked(syscall(SYS_openat, AT_FDCWD, path, O_RDONLY), "openat");
    return stdin;
}
static FILE *close_and_openat2_by_number(void)
{
    struct { uint64_t flags, mode, resolve; } how = { .flags = O_RDONLY };
    close(0);
    checked(syscall(437 /* SYS_openat2 */, AT_FDCWD, path, &how, sizeof how), "openat2");
    return stdin;
}
static FILE *close_and_getfd_by_number(void)
{
    int fd = opened(), process = checked(syscall(434 /* SYS_pidfd_open */, getpid(), 0), "pidfd_open");
    close(0);
    checked(syscall(438 /* SYS_pidfd_getfd */, process, fd, 0), "pidfd_getfd");
    return stdin;
}
static FILE *read_and_append(void)
{
    checked(dup2(checked(open(path, O_RDWR | O_APPEND), "open"), 0), "dup2");
    return stdin;
}
static FILE *by_dup2(void) { checked(dup2(opened(), 0), "dup2"); return stdin; }
static FILE *by_dup3(void) { checked(dup3(opened(), 0, 0), "dup3"); return stdin; }
static FILE *close_and_dup(void) { int fd = opened(); close(0); checked(dup(fd), "dup"); return stdin; }
static FILE *close_and_fcntl(void)
{
    int fd = opened();
    close(0);
    checked(fcntl(fd, F_DUPFD, 0), "fcntl");
    return stdin;
}
static FILE *another_stream(void)
{
    FILE *stream = fopen("/dev/null", "r");
    checked(stream ? 0 : -1, "fopen");
    checked(dup2(opened(), fileno(stream)), "dup2");
    return stream;
}
static FILE *received(void)
{
    int fd = opened(), pair[2];
    checked(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), "socketpair");
    char byte = 0, room[CMSG_SPACE(sizeof fd)] = { 0 };
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    checked(sendmsg(pair[0], &message, 0), "sendmsg");
    close(0);
    checked(recvmsg(pair[1], &message, 0), "recvmsg");
    return stdin;
}

static const struct { const char *name; FILE *(*way)(void); } WAYS[] = {
#define WAY(name) { #name, name }
    WAY(close_and_open), WAY(close_and_open_by_number), WAY(close_and_openat2_by_number),
    WAY(close_and_getfd_by_number), WAY(read_and_append), WAY(by_dup2), WAY(by_dup3), WAY(close_and_dup),
    WAY(close_and_fcntl), WAY(another_stream), WAY(received),
};

int main(int argc, char **argv)
{
    if (argc != 3)
        return 1;
    path = argv[1];
    for (size_t i = 0; i < sizeof WAYS / sizeof *WAYS; i++) {
        if (strcmp(WAYS[i].name, argv[2]))
            continue;
        FILE *stream = WAYS[i].way();
        uint64_t sum = 0xcbf29ce484222325u;
        long all = 0;
        int c;
        while ((c = getc(stream)) != EOF) {
            sum = (sum ^ (unsigned)c) * 0x100000001b3u;
            all++;
        }
        if (ferror(stream)) {
            perror(argv[2]);
            return 2;
        }
        printf("%016llx %ld\n", (unsigned long long)sum, all);
        return 0;
    }
    fprintf(stderr, "no such way: %s\n", argv[2]);
    return 1;
}
