// Every system call that reaches files, made by its number through syscall(). Argument: an empty directory to work in.
// Prints what each call answered; the same directory of an ordinary file system gives the same text.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
enum { setxattrat = 463, getxattrat, listxattrat, removexattrat, open_tree_attr, file_getattr, file_setattr };

static const char *base;
static char rooms[8][512];
static int room;

// A path below the base.
static char *P(const char *name) {
    char *path = rooms[room++ % 8];
    snprintf(path, sizeof rooms[0], "%s/%s", base, name);
    return path;
}

static long said(const char *call, long answer, int descriptor) {
    if (answer < 0) printf("%s: %s\n", call, strerrorname_np(errno));
    else printf("%s: %ld\n", call, descriptor ? 0 : answer);
    return answer;
}
#define S(call, ...) said(#call " " #__VA_ARGS__, syscall(SYS_##call, __VA_ARGS__), 0)
#define FD(call, ...) said(#call " " #__VA_ARGS__, syscall(SYS_##call, __VA_ARGS__), 1)
// Newer than the headers may be.
#define N(call, ...) said(#call " " #__VA_ARGS__, syscall(call, __VA_ARGS__), 0)

// A path that came back, without the base.
static void came(const char *call, const char *path, long length) {
    size_t n = strlen(base);
    if (length >= (long)n && !strncmp(path, base, n)) printf("%s: BASE%.*s\n", call, (int)(length - n), path + n);
    else printf("%s: %.*s\n", call, (int)length, path);
}

static void opening(void) {
    struct open_how how = {.flags = O_CREAT | O_RDWR, .mode = 0640};
    long dir = FD(open, base, O_RDONLY | O_DIRECTORY, 0);
    FD(creat, P("created"), 0600);
    long fd = FD(openat, AT_FDCWD, P("file"), O_CREAT | O_EXCL | O_RDWR, 0644);
    S(write, fd, "0123456789", 10);
    FD(openat, dir, "file", O_CREAT | O_EXCL | O_RDWR, 0644);
    FD(openat2, AT_FDCWD, P("by-how"), &how, sizeof how);
    FD(openat2, dir, "/nowhere/by-how", &how, sizeof how);
    how.resolve = RESOLVE_BENEATH;
    FD(openat2, dir, "beneath", &how, sizeof how);
    FD(openat2, dir, "../beneath", &how, sizeof how);
    FD(openat2, dir, P("beneath"), &how, sizeof how);
    how.resolve = RESOLVE_IN_ROOT;
    FD(openat2, dir, "/rooted", &how, sizeof how);
    FD(openat2, dir, "../../rooted2", &how, sizeof how);
    FD(openat2, dir, "/", &(struct open_how){.flags = O_RDONLY, .resolve = RESOLVE_IN_ROOT}, sizeof how);
    how.resolve = RESOLVE_NO_SYMLINKS;
    S(symlink, "file", P("link"));
    FD(openat2, dir, "link", &how, sizeof how);
    FD(openat2, dir, "file", &how, 8);
    struct { struct open_how how; long more; } longer = {{.flags = O_RDONLY}, 0};
    FD(openat2, dir, "file", &longer, sizeof longer);
    longer.more = 1;
    FD(openat2, dir, "file", &longer, sizeof longer);
    FD(openat2, dir, "file", NULL, sizeof how);
    FD(openat, dir, NULL, O_RDONLY, 0);
    struct { struct file_handle handle; char bytes[128]; } handle = {.handle = {.handle_bytes = 128}};
    int mount;
    S(name_to_handle_at, AT_FDCWD, P("file"), &handle, &mount, 0);
    long by_handle = FD(open_by_handle_at, dir, &handle, O_RDWR);
    if (by_handle >= 0) S(pwrite64, by_handle, "H", 1, 9);
    S(close_range, by_handle < 0 ? 900 : by_handle, 1000, 0);
    S(close, fd);
    S(close, dir);
}

static void writing(void) {
    char data[64] = "some data to be written here and there";
    struct iovec parts[2] = {{data, 10}, {data + 10, 20}};
    long fd = FD(open, P("written"), O_CREAT | O_RDWR, 0644), other = FD(open, P("other"), O_CREAT | O_RDWR, 0644);
    long copy = FD(dup, fd), high = S(dup3, fd, 500, O_CLOEXEC);
    S(write, fd, data, 38);
    S(writev, copy, parts, 2);
    S(pwrite64, high, data, 5, 1000);
    S(pwritev, fd, parts, 2, 2000, 0);
    S(pwritev2, fd, parts, 2, 3000, 0, 0);
    S(pwritev2, fd, parts, 2, -1, -1, RWF_APPEND);
    loff_t from = 5, to = 7000;
    S(copy_file_range, fd, &from, other, &to, 30, 0);
    off_t at = 0;
    S(sendfile, other, fd, &at, 100);
    int pipe_fds[2];
    if (pipe(pipe_fds) || write(pipe_fds[1], data, 20) != 20) exit(9);
    S(splice, pipe_fds[0], NULL, other, &to, 20, 0);
    S(fallocate, other, 0, 10000, 5000);
    S(ftruncate, other, 12000);
    S(truncate, P("other"), 11000);
    S(truncate, P("none"), 11000);
    char *map = (char *)syscall(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    map[100] = 'm';
    S(msync, map, 4096, MS_SYNC);
    S(munmap, map, 4096);
    S(fsync, fd);
    S(fdatasync, other);
    S(syncfs, fd);
    S(fcntl, fd, F_SETFL, O_APPEND);
    S(write, copy, data, 4);
    aio_context_t context = 0;
    S(io_setup, 4, &context);
    struct iocb block = {.aio_fildes = other, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_buf = (long)data, .aio_nbytes = 9, .aio_offset = 1};
    struct iocb *blocks[] = {&block};
    struct io_event event;
    S(io_submit, context, 1, blocks);
    S(io_getevents, context, 1, 1, &event, NULL);
    S(io_destroy, context);
    S(dup2, other, 501);
    S(close_range, 500, 501, 0);
    S(lseek, fd, 0, SEEK_END);
}

static void names(void) {
    long dir = FD(open, base, O_RDONLY | O_DIRECTORY, 0);
    S(mkdir, P("d"), 0755);
    S(mkdirat, dir, "d/e", 0755);
    S(mkdir, P("d"), 0755);
    S(mknod, P("fifo"), S_IFIFO | 0644, 0);
    S(mknodat, dir, "d/node", S_IFREG | 0600, 0);
    S(link, P("file"), P("d/hard"));
    S(linkat, dir, "file", dir, "d/hard2", 0);
    S(symlinkat, P("file"), dir, "d/soft");
    S(rename, P("d/hard"), P("d/renamed"));
    S(renameat, dir, "d/hard2", dir, "moved");
    S(renameat2, AT_FDCWD, P("moved"), AT_FDCWD, P("d/renamed"), RENAME_NOREPLACE);
    S(renameat2, AT_FDCWD, P("moved"), AT_FDCWD, P("created"), RENAME_EXCHANGE);
    S(unlink, P("d/node"));
    S(unlinkat, dir, "d/e", AT_REMOVEDIR);
    S(rmdir, P("d"));
    S(unlinkat, dir, "none", 0);
    S(close, dir);
}

static void attributes(void) {
    struct timespec times[2] = {{1000, 1}, {2000, 2}};
    struct timeval old_times[2] = {{3000, 1}, {4000, 2}};
    struct { unsigned long value; unsigned size, flags; } value = {(unsigned long)"text", 4, 0};
    unsigned char attributes[24] = {0};
    long dir = FD(open, base, O_RDONLY | O_DIRECTORY, 0), fd = FD(open, P("file"), O_RDWR, 0);
    S(chmod, P("file"), 0600);
    S(fchmod, fd, 0610);
    S(fchmodat, dir, "file", 0620);
    S(fchmodat2, dir, "file", 0630, 0);
    S(fchmodat2, fd, "", 0631, AT_EMPTY_PATH);
    S(chown, P("file"), -1, -1);
    S(lchown, P("link"), -1, -1);
    S(fchown, fd, -1, -1);
    S(fchownat, fd, "", -1, -1, AT_EMPTY_PATH);
    S(utime, P("file"), NULL);
    S(utimes, P("file"), old_times);
    S(futimesat, dir, "file", old_times);
    S(utimensat, dir, "file", times, 0);
    S(utimensat, fd, NULL, times, 0);
    S(setxattr, P("file"), "user.one", "1", 1, 0);
    S(lsetxattr, P("file"), "user.two", "2", 1, 0);
    S(fsetxattr, fd, "user.three", "3", 1, 0);
    N(setxattrat, dir, "file", 0, "user.four", &value, sizeof value);
    S(getxattr, P("file"), "user.one", NULL, 0);
    S(lgetxattr, P("file"), "user.two", NULL, 0);
    N(getxattrat, dir, "file", 0, "user.four", &value, sizeof value);
    S(listxattr, P("file"), NULL, 0);
    S(llistxattr, P("file"), NULL, 0);
    N(listxattrat, AT_FDCWD, P("file"), 0, NULL, 0);
    S(removexattr, P("file"), "user.one");
    S(lremovexattr, P("file"), "user.two");
    S(fremovexattr, fd, "user.three");
    N(removexattrat, dir, "file", 0, "user.none");
    N(file_getattr, AT_FDCWD, P("file"), attributes, sizeof attributes, 0);
    N(file_setattr, AT_FDCWD, P("file"), attributes, sizeof attributes, 0);
}

static void questions(void) {
    char text[4096];
    struct stat stat;
    long dir = FD(open, base, O_RDONLY | O_DIRECTORY, 0);
    S(stat, P("file"), &stat);
    printf("mode %o size %ld links %ld\n", stat.st_mode, (long)stat.st_size, (long)stat.st_nlink);
    S(lstat, P("link"), &stat);
    S(newfstatat, AT_FDCWD, P("none"), &stat, 0);
    S(newfstatat, dir, "", &stat, AT_EMPTY_PATH);
    S(statx, AT_FDCWD, P("file"), 0, STATX_ALL, text);
    // A link is as long as what readlink gives.
    struct statx more;
    long length = strlen(P("file"));
    S(lstat, P("d/soft"), &stat);
    printf("as long as its target: %d\n", stat.st_size == length);
    S(newfstatat, dir, "d/soft", &stat, AT_SYMLINK_NOFOLLOW);
    printf("as long as its target: %d\n", stat.st_size == length);
    S(statx, dir, "d/soft", AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &more);
    printf("as long as its target: %d\n", (long)more.stx_size == length);
    S(access, P("file"), R_OK);
    S(faccessat, dir, "file", X_OK);
    S(faccessat2, AT_FDCWD, P("file"), W_OK, AT_EACCESS);
    S(statfs, P("file"), text);
    S(statfs, P("none"), text);
    came("readlink", text, syscall(SYS_readlink, P("d/soft"), text, sizeof text));
    came("readlinkat", text, syscall(SYS_readlinkat, dir, "link", text, sizeof text));
    S(chdir, P("d"));
    came("getcwd", text, syscall(SYS_getcwd, text, sizeof text) - 1);
    FD(open, "renamed", O_RDONLY, 0);
    S(fchdir, dir);
    came("getcwd", text, syscall(SYS_getcwd, text, sizeof text) - 1);
    long watch = FD(inotify_init1, IN_NONBLOCK);
    S(inotify_add_watch, watch, P("d"), IN_CREATE);
    FD(creat, P("d/seen"), 0600);
    printf("seen %d\n", read(watch, text, sizeof text) > 0);
    FD(open_tree, AT_FDCWD, P("none"), 0);
    S(mount, "none", P("none"), "tmpfs", 0, NULL);
    S(umount2, P("none"), 0);
    S(swapon, P("none"), 0);
    S(swapoff, P("none"));
    S(chdir, "/");
}

static void sockets(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX}, found;
    int pair[2], length = sizeof found;
    long server = FD(socket, AF_UNIX, SOCK_DGRAM, 0), client = FD(socket, AF_UNIX, SOCK_DGRAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/sock", base);
    S(bind, server, &address, sizeof address);
    S(getsockname, server, &found, &length);
    came("getsockname", found.sun_path, strlen(found.sun_path));
    S(sendto, client, "to", 2, 0, &address, sizeof address);
    S(connect, client, &address, sizeof address);
    length = sizeof found;
    S(getpeername, client, &found, &length);
    came("getpeername", found.sun_path, strlen(found.sun_path));
    // A descriptor that comes in a message, and writes.
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) exit(9);
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = {0};
    struct iovec vector = {"x", 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    int sent = open(P("passed"), O_CREAT | O_WRONLY, 0644);
    memcpy(CMSG_DATA(&control.header), &sent, sizeof sent);
    S(sendmsg, pair[0], &message, 0);
    char byte;
    vector.iov_base = &byte;
    S(recvmsg, pair[1], &message, 0);
    int received;
    memcpy(&received, CMSG_DATA(&control.header), sizeof received);
    S(write, received, "passed", 6);
}

static void processes(void) {
    char *arguments[] = {"sh", "-c", "echo ran > ran", NULL}, *empty[] = {NULL};
    char *self_made[] = {"tool", NULL};
    int status;
    S(chdir, base);
    long pid = syscall(SYS_fork);
    if (pid == 0) _exit(syscall(SYS_execve, "/bin/sh", arguments, empty));
    waitpid(pid, &status, 0);
    printf("execve: %x\n", status);
    FILE *tool = fopen(P("tool"), "w");
    fputs("#!/bin/sh\necho tool > ran2\n", tool);
    fclose(tool);
    S(chmod, P("tool"), 0755);
    pid = fork();
    if (pid == 0) _exit(syscall(SYS_execveat, AT_FDCWD, P("tool"), self_made, empty, 0));
    waitpid(pid, &status, 0);
    printf("execveat: %x\n", status);
    S(access, P("ran"), R_OK);
    S(access, P("ran2"), R_OK);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    base = argv[1];
    umask(022);
    opening();
    writing();
    names();
    attributes();
    questions();
    sockets();
    processes();
    return 0;
}
