// Writes to files through descriptors that came by all sorts of ways. `descriptors list` names the ways; `descriptors WAY
// FILE` adds a line "WAY" to FILE, which exists. Between opening and writing there is a pause, longer than the agent needs
// to look at the file and find nothing new: what is written then must be told anew, or be expected.
#define _GNU_SOURCE
#include <aio.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *self, *way, *file;
static char line[64];
static size_t length;

// Above the table of descriptors that the shim remembers.
enum { HIGH = 66000, MOVED = 77 };

static int check(int result, const char *what) {
    if (result < 0) err(1, "%s: %s", way, what);
    return result;
}

static void pause_a_while(void) { usleep(300000); }

static int opened(int flags) { return check(open(file, flags), "open"); }

static void add(int fd) {
    pause_a_while();
    if (write(fd, line, length) != (ssize_t)length) err(1, "%s: write", way);
}

static void print(FILE *stream) {
    if (!stream) err(1, "%s: no stream", way);
    pause_a_while();
    if (fputs(line, stream) < 0 || fflush(stream)) err(1, "%s: print", way);
}

static void await(pid_t pid) {
    int status = 0;
    check(waitpid(pid, &status, 0), "waitpid");
    if (status) errx(1, "%s: the child ended with %x", way, status);
}

// --- Moved ---

static void by_dup(void) { int fd = opened(O_WRONLY | O_APPEND), twin = dup(fd); close(fd); add(twin); }
static void by_dup2(void) { int fd = opened(O_WRONLY | O_APPEND); check(dup2(fd, MOVED), "dup2"); close(fd); add(MOVED); }
static void by_dup3(void) { int fd = opened(O_WRONLY | O_APPEND); check(dup3(fd, MOVED, O_CLOEXEC), "dup3"); close(fd); add(MOVED); }
static void by_f_dupfd(void) { int fd = opened(O_WRONLY | O_APPEND), twin = fcntl(fd, F_DUPFD, 100); close(fd); add(twin); }
static void by_f_dupfd_cloexec(void) { int fd = opened(O_WRONLY | O_APPEND), twin = fcntl(fd, F_DUPFD_CLOEXEC, 255); close(fd); add(twin); }

static void above_the_table(void) {
    struct rlimit limit;
    check(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (limit.rlim_max <= HIGH + 1) errx(77, "%s: the hard limit of descriptors is %ld", way, (long)limit.rlim_max);
    check(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
    int fd = opened(O_WRONLY | O_APPEND), high = check(fcntl(fd, F_DUPFD, HIGH), "F_DUPFD");
    close(fd);
    add(high);
    close(high);
}

// --- Streams ---

static void stdout_by_dup2(void) { int fd = opened(O_WRONLY | O_APPEND); dup2(fd, 1); close(fd); print(stdout); }
static void stdout_by_close_and_open(void) { close(1); opened(O_WRONLY | O_APPEND); print(stdout); }
static void stdout_by_close_and_dup(void) { int fd = opened(O_WRONLY | O_APPEND); close(1); check(dup(fd), "dup"); close(fd); print(stdout); }
static void stdout_by_freopen(void) { print(freopen(file, "a", stdout)); }

static void stream_by_dup2(void) {
    FILE *stream = fopen("/dev/null", "w");
    int fd = opened(O_WRONLY | O_APPEND);
    check(dup2(fd, fileno(stream)), "dup2");
    close(fd);
    print(stream);
}

static void stream_by_close_and_open(void) {
    FILE *stream = fopen("/dev/null", "w");
    int number = fileno(stream);
    close(number);
    if (opened(O_WRONLY | O_APPEND) != number) errx(1, "%s: another number", way);
    print(stream);
}

static void stream_by_close_and_dup(void) {
    int fd = opened(O_WRONLY | O_APPEND);
    FILE *stream = fdopen(check(open("/dev/null", O_WRONLY), "open"), "w");
    int number = fileno(stream);
    close(number);
    if (dup(fd) != number) errx(1, "%s: another number", way);
    close(fd);
    print(stream);
}

static void by_fopen(void) { print(fopen(file, "a")); }
static void by_fdopen(void) { print(fdopen(opened(O_WRONLY | O_APPEND), "a")); }

static void reopened_for_writing(void) {
    // musl changes no more than the flags.
#ifdef __GLIBC__
    FILE *stream = fopen(file, "r");
#else
    FILE *stream = fopen(file, "r+");
#endif
    print(freopen(NULL, "a", stream));
}

// --- By other names ---

static const char *name_of(int fd, const char *folder) {
    static char name[64];
    snprintf(name, sizeof name, "%s/%d", folder, fd);
    return name;
}

static void proc_self_fd(void) { add(check(open(name_of(opened(O_RDONLY), "/proc/self/fd"), O_WRONLY | O_APPEND), "open")); }
static void dev_fd(void) { print(fopen(name_of(opened(O_RDONLY), "/dev/fd"), "a")); }
static void dev_fd_of_a_writer(void) { add(check(open(name_of(opened(O_RDWR), "/dev/fd"), O_RDWR | O_APPEND), "open")); }

// --- From other processes ---

static void send_descriptor(int socket, int fd) {
    char byte = 'x', control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    check(sendmsg(socket, &message, 0), "sendmsg");
}

static int receive_descriptor(int socket) {
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    check(recvmsg(socket, &message, 0), "recvmsg");
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static void by_scm_rights(void) {
    int pair[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    pid_t pid = check(fork(), "fork");
    if (pid == 0) {
        // The number is known here as something else.
        int other = open("/dev/null", O_WRONLY);
        if (write(other, "x", 1) != 1) _exit(1);
        close(other);
        add(receive_descriptor(pair[0]));
        _exit(0);
    }
    int fd = opened(O_WRONLY | O_APPEND);
    send_descriptor(pair[1], fd);
    close(fd);
    await(pid);
}

static void stdout_by_scm_rights(void) {
    int pair[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    int fd = opened(O_WRONLY | O_APPEND);
    send_descriptor(pair[1], fd);
    close(fd);
    close(1);
    // It takes the lowest number.
    if (receive_descriptor(pair[0]) != 1) errx(1, "%s: another number", way);
    print(stdout);
}

static void by_pidfd_getfd(void) {
    int ready[2], done[2];
    check(pipe(ready), "pipe");
    check(pipe(done), "pipe");
    pid_t pid = check(fork(), "fork");
    if (pid == 0) {
        int fd = opened(O_WRONLY | O_APPEND);
        char byte;
        if (write(ready[1], &fd, sizeof fd) < 0) _exit(1);
        close(done[1]);
        _exit(read(done[0], &byte, 1) < 0);
    }
    int fd, pidfd = check(syscall(434, pid, 0), "pidfd_open");
    if (read(ready[0], &fd, sizeof fd) != sizeof fd) err(1, "read");
    int mine = check(syscall(438, pidfd, fd, 0), "pidfd_getfd");
    close(done[1]);
    await(pid);
    add(mine);
}

// --- Inherited by exec ---

static void hand_on(const char *how) {
    int fd = opened(O_RDWR | O_APPEND);
    if (!strcmp(how, "map") || !strcmp(how, "truncate")) fcntl(fd, F_SETFL, 0);
    check(dup2(fd, MOVED), "dup2");
    pid_t pid = check(fork(), "fork");
    if (pid == 0) {
        execl(self, self, how, file, way, (char *)0);
        err(1, "%s: exec", way);
    }
    close(fd);
    close(MOVED);
    await(pid);
}

static void inherited(void) { hand_on("-write"); }
static void inherited_stream(void) { hand_on("-stream"); }
static void inherited_dprintf(void) { hand_on("-dprintf"); }
static void inherited_writev(void) { hand_on("-writev"); }
static void inherited_pwrite(void) { hand_on("-pwrite"); }
static void inherited_map(void) { hand_on("-map"); }
static void inherited_sendfile(void) { hand_on("-sendfile"); }
static void inherited_splice(void) { hand_on("-splice"); }
static void inherited_copy(void) { hand_on("-copy"); }
static void inherited_aio(void) { hand_on("-aio"); }
static void inherited_allocate(void) { hand_on("-allocate"); }

static int source(void) {
    FILE *stream = tmpfile();
    if (!stream || fputs(line, stream) < 0 || fflush(stream)) err(1, "tmpfile");
    rewind(stream);
    return fileno(stream);
}

static void got(const char *how) {
    struct stat info;
    check(fstat(MOVED, &info), "fstat");
    off_t end = info.st_size, zero = 0;
    if (!strcmp(how, "-write")) add(MOVED);
    if (!strcmp(how, "-stream")) print(fdopen(MOVED, "a"));
    pause_a_while();
    if (!strcmp(how, "-dprintf")) check(dprintf(MOVED, "%s", line), how);
    if (!strcmp(how, "-writev")) check(writev(MOVED, (struct iovec[]){{line, 3}, {line + 3, length - 3}}, 2), how);
    if (!strcmp(how, "-pwrite")) check(pwrite(MOVED, line, length, end), how);
    if (!strcmp(how, "-splice")) {
        int pair[2];
        check(pipe(pair), "pipe");
        if (write(pair[1], line, length) < 0) err(1, "write");
        fcntl(MOVED, F_SETFL, 0);
        check(splice(pair[0], NULL, MOVED, &end, length, 0), how);
    }
    if (!strcmp(how, "-sendfile")) {
        fcntl(MOVED, F_SETFL, 0);
        lseek(MOVED, 0, SEEK_END);
        check(sendfile(MOVED, source(), &zero, length), how);
    }
    if (!strcmp(how, "-copy")) {
        fcntl(MOVED, F_SETFL, 0);
        // Across file systems some kernels refuse, and programs copy by hand.
        int from = source();
        if (copy_file_range(from, &zero, MOVED, &end, length, 0) < 0) check(pwrite(MOVED, line, length, end), how);
    }
    if (!strcmp(how, "-map")) {
        fcntl(MOVED, F_SETFL, 0);
        check(ftruncate(MOVED, end + length), "ftruncate");
        char *map = mmap(NULL, end + length, PROT_READ | PROT_WRITE, MAP_SHARED, MOVED, 0);
        if (map == MAP_FAILED) err(1, "mmap");
        close(MOVED);
        pause_a_while();
        memcpy(map + end, line, length);
    }
    if (!strcmp(how, "-aio")) {
        struct aiocb block = {.aio_fildes = MOVED, .aio_buf = line, .aio_nbytes = length, .aio_offset = end};
        check(aio_write(&block), how);
        const struct aiocb *list[] = {&block};
        while (aio_error(&block) == EINPROGRESS) aio_suspend(list, 1, NULL);
        if (aio_return(&block) != (ssize_t)length) errx(1, "%s", how);
    }
    if (!strcmp(how, "-allocate")) {
        if (posix_fallocate(MOVED, end, length)) errx(1, "%s", how);
        pause_a_while();
        fcntl(MOVED, F_SETFL, 0);
        check(pwrite(MOVED, line, length, end), how);
    }
}

// --- Closed all at once ---

static void after_a_close_loop(void) {
    int fd = opened(O_WRONLY);
    for (int i = 3; i < 4096; i++) close(i);
    if (open("/dev/null", O_RDONLY) != fd) errx(1, "%s: another number", way);
    add(opened(O_WRONLY | O_APPEND));
}

static void after_close_range(void) {
    opened(O_WRONLY);
    check(syscall(436, 3, ~0U, 0), "close_range");
    add(opened(O_WRONLY | O_APPEND));
}

static void after_a_vfork_that_closes(void) {
    FILE *stream = fopen(file, "a");
    int fd = opened(O_WRONLY | O_APPEND);
    pid_t pid = vfork();
    if (pid == 0) {
        for (int i = 3; i < 256; i++) close(i);
        execl("/bin/true", "true", (char *)0);
        _exit(127);
    }
    await(pid);
    length--;
    add(fd);
    line[0] = '\n', line[1] = 0;
    print(stream);
}

// --- Between threads ---

static void *writes(void *fd) { add(*(int *)fd); return NULL; }

static void closed_by_another_thread(void) {
    pthread_t thread;
    int fd = opened(O_WRONLY | O_APPEND);
    int twin = dup(fd);
    pthread_create(&thread, NULL, writes, &twin);
    close(fd);
    open("/dev/null", O_WRONLY);
    pthread_join(thread, NULL);
}

static void *has_its_own(void *unused) {
    (void)unused;
    check(unshare(CLONE_FILES), "unshare");
    int fd = opened(O_WRONLY | O_APPEND);
    if (fd != MOVED) check(dup2(fd, MOVED), "dup2");
    add(MOVED);
    return NULL;
}

static void own_descriptors_of_a_thread(void) {
    pthread_t thread;
    // The same number is something else for the others, and known as that.
    int other = open("/dev/null", O_WRONLY);
    dup2(other, MOVED);
    if (write(MOVED, "x", 1) != 1) err(1, "write");
    pthread_create(&thread, NULL, has_its_own, NULL);
    for (int i = 0; i < 100; i++) {
        if (write(MOVED, "x", 1) != 1) err(1, "write");
        usleep(2000);
    }
    pthread_join(thread, NULL);
}

// What has no contents has attributes.
static void of_a_fifo(void) {
    char fifo[4096];
    snprintf(fifo, sizeof fifo, "%s.fifo", file);
    check(mkfifo(fifo, 0644), "mkfifo");
    int fd = check(open(fifo, O_RDWR), "open a FIFO");
    add(opened(O_WRONLY | O_APPEND));
    check(fchmod(fd, 0600), "fchmod");
}

// A hole, made by fallocate's older name.
static void hole_by_ioctl(void) {
    struct { short type, whence; long long start, length; int system; unsigned pid; int pad[4]; } all = {0, 0, 0, 65536, 0, 0, {0}};
    static char data[65536];
    char name[4096];
    snprintf(name, sizeof name, "%s.hole", file);
    int fd = check(open(name, O_RDWR | O_CREAT, 0644), "create");
    memset(data, 'x', sizeof data);
    if (write(fd, data, sizeof data) != sizeof data) err(1, "%s: write", way);
    add(opened(O_WRONLY | O_APPEND));
    // FS_IOC_UNRESVSP64
    if (ioctl(fd, 0x4030582b, &all) && errno != EOPNOTSUPP && errno != ENOTTY) err(1, "%s: ioctl", way);
}

#define WAY(name) {#name, name}
static const struct { const char *name; void (*run)(void); } ways[] = {
    WAY(by_dup), WAY(by_dup2), WAY(by_dup3), WAY(by_f_dupfd), WAY(by_f_dupfd_cloexec), WAY(above_the_table),
    WAY(stdout_by_dup2), WAY(stdout_by_close_and_open), WAY(stdout_by_close_and_dup), WAY(stdout_by_freopen),
    WAY(stream_by_dup2), WAY(stream_by_close_and_open), WAY(stream_by_close_and_dup), WAY(by_fopen), WAY(by_fdopen),
    WAY(reopened_for_writing), WAY(proc_self_fd), WAY(dev_fd), WAY(dev_fd_of_a_writer), WAY(by_scm_rights), WAY(stdout_by_scm_rights),
    WAY(by_pidfd_getfd), WAY(inherited), WAY(inherited_stream), WAY(inherited_dprintf), WAY(inherited_writev),
    WAY(inherited_pwrite), WAY(inherited_map), WAY(inherited_sendfile), WAY(inherited_splice), WAY(inherited_copy),
    WAY(inherited_aio), WAY(inherited_allocate), WAY(after_a_close_loop), WAY(after_close_range),
    WAY(after_a_vfork_that_closes), WAY(closed_by_another_thread), WAY(own_descriptors_of_a_thread),
    WAY(of_a_fifo), WAY(hole_by_ioctl),
};

int main(int argc, char **argv) {
    size_t count = sizeof ways / sizeof *ways;
    if (argc == 2 && !strcmp(argv[1], "list")) {
        for (size_t i = 0; i < count; i++) puts(ways[i].name);
        return 0;
    }
    if (argc < 3) errx(2, "descriptors WAY FILE");
    self = argv[0];
    way = argv[argc == 4 ? 3 : 1];
    file = argv[2];
    length = snprintf(line, sizeof line, "%s\n", way);
    if (argc == 4) {
        got(argv[1]);
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(ways[i].name, way)) {
            ways[i].run();
            return 0;
        }
    }
    errx(2, "no such way: %s", way);
}
