/* Processes, libraries, descriptors, locks, sockets, watches, raw numbers. */
#include "calls.h"

#include <dlfcn.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

static void wait_for(pid_t pid)
{
    int status;
    check(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "a child");
}

static void do_fork(long i)
{
    (void)i;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    wait_for(pid);
}

/* The child's output: to nowhere, or to a file outside of every mount. */
static int nowhere, somewhere;

static void open_outputs(long count)
{
    (void)count;
    char path[] = "/tmp/storeshim-bench-XXXXXX";
    nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    somewhere = mkostemp(path, O_CLOEXEC);
    check(nowhere >= 0 && somewhere >= 0 && unlink(path) == 0, "outputs");
}

static void close_outputs(long count)
{
    (void)count;
    check(close(nowhere) == 0 && close(somewhere) == 0, "close");
}

static void spawn(const char *path, int output)
{
    char *arguments[] = {"true", NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, output, 1);
    posix_spawn_file_actions_adddup2(&actions, nowhere, 2);
    check(posix_spawn(&pid, path, &actions, NULL, arguments, environ) == 0, "posix_spawn");
    posix_spawn_file_actions_destroy(&actions);
    wait_for(pid);
}

static void spawn_outside(long i) { (void)i; spawn("/bin/true", nowhere); }
static void spawn_inside(long i) { (void)i; spawn(program_path, nowhere); }
static void spawn_to_file(long i) { (void)i; spawn("/bin/true", somewhere); }

static void fork_exec(long i)
{
    (void)i;
    pid_t pid = vfork();
    if (pid == 0) {
        dup2(nowhere, 1);
        dup2(nowhere, 2);
        execl("/bin/true", "true", (char *)NULL);
        _exit(1);
    }
    wait_for(pid);
}

static void load(long i)
{
    (void)i;
    void *library = dlopen(library_path, RTLD_NOW);
    check(library != NULL && dlclose(library) == 0, "dlopen and dlclose");
}

static void load_again(long i)
{
    (void)i;
    void *library = dlopen("libc.so.6", RTLD_NOW);
    check(library != NULL && dlclose(library) == 0, "dlopen and dlclose");
}

static void do_dup(long i)
{
    (void)i;
    int fd = dup(data);
    check(fd >= 0 && close(fd) == 0, "dup and close");
}

static void do_dup2(long i) { (void)i; check(dup2(data, 200) == 200, "dup2"); }
static void close_200(long count) { (void)count; check(close(200) == 0, "close"); }
static void do_fcntl(long i) { (void)i; check(fcntl(data, F_GETFL) >= 0, "fcntl"); }

static void set_flags(long i)
{
    check(fcntl(data, F_SETFL, i % 2 ? O_NONBLOCK : 0) == 0, "fcntl");
}

static void lock_record(long i)
{
    struct flock lock = {.l_type = i % 2 ? F_UNLCK : F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    check(fcntl(data, F_SETLK, &lock) == 0, "fcntl");
}

static void do_flock(long i) { check(flock(data, i % 2 ? LOCK_UN : LOCK_EX) == 0, "flock"); }

static void do_ioctl(long i)
{
    int waiting;
    (void)i;
    check(ioctl(data, FIONREAD, &waiting) == 0, "ioctl");
}

static int sockets[NAMES];

static socklen_t address_of(struct sockaddr_un *address, const char *path)
{
    address->sun_family = AF_UNIX;
    check(snprintf(address->sun_path, sizeof address->sun_path, "%s", path) < (int)sizeof address->sun_path,
          "a directory of short name");
    return sizeof *address;
}

static void open_sockets(long count)
{
    for (long i = 0; i < count; i++)
        check((sockets[i] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) >= 0, "socket");
}

static void do_bind(long i)
{
    struct sockaddr_un address;
    socklen_t size = address_of(&address, fresh[i]);
    check(bind(sockets[i], (struct sockaddr *)&address, size) == 0, "bind");
}

static void close_sockets(long count)
{
    for (long i = 0; i < count; i++)
        check(close(sockets[i]) == 0, "close");
    unlink_fresh(count);
}

static void open_two(long count) { (void)count; open_sockets(2); do_bind(0); }

static void do_connect(long i)
{
    struct sockaddr_un address;
    socklen_t size = address_of(&address, fresh[0]);
    (void)i;
    check(connect(sockets[1], (struct sockaddr *)&address, size) == 0, "connect");
}

static void close_two(long count)
{
    (void)count;
    check(close(sockets[0]) == 0 && close(sockets[1]) == 0 && unlink(fresh[0]) == 0, "close and unlink");
}

static int watches;

static void open_watches(long count)
{
    (void)count;
    check((watches = inotify_init1(IN_CLOEXEC)) >= 0, "inotify_init1");
}

static void do_watch(long i)
{
    (void)i;
    check(inotify_add_watch(watches, data_path, IN_ATTRIB) >= 0, "inotify_add_watch");
}

static void close_watches(long count) { (void)count; check(close(watches) == 0, "close"); }

static void syscall_tid(long i) { (void)i; check(syscall(SYS_gettid) > 0, "syscall(gettid)"); }

static void syscall_stat(long i)
{
    struct stat status;
    (void)i;
    check(syscall(SYS_newfstatat, AT_FDCWD, data_path, &status, 0) == 0, "syscall(newfstatat)");
}

static void syscall_open(long i)
{
    (void)i;
    long fd = syscall(SYS_openat, AT_FDCWD, data_path, O_RDONLY);
    check(fd >= 0 && syscall(SYS_close, fd) == 0, "syscall(openat) and syscall(close)");
}

const struct operation others[] = {
    {"fork", NULL, do_fork, NULL},
    {"exec", open_outputs, fork_exec, close_outputs},
    {"spawn", open_outputs, spawn_outside, close_outputs},
    {"spawn-inside", open_outputs, spawn_inside, close_outputs},
    {"spawn-to-file", open_outputs, spawn_to_file, close_outputs},
    {"dlopen", NULL, load, NULL},
    {"dlopen-again", NULL, load_again, NULL},
    {"dup", NULL, do_dup, NULL},
    {"dup2", NULL, do_dup2, close_200},
    {"fcntl-getfl", NULL, do_fcntl, NULL},
    {"fcntl-setfl", NULL, set_flags, NULL},
    {"fcntl-lock", NULL, lock_record, NULL},
    {"flock", NULL, do_flock, NULL},
    {"ioctl", NULL, do_ioctl, NULL},
    {"bind", open_sockets, do_bind, close_sockets},
    {"connect", open_two, do_connect, close_two},
    {"inotify", open_watches, do_watch, close_watches},
    {"syscall", NULL, syscall_tid, NULL},
    {"syscall-stat", NULL, syscall_stat, NULL},
    {"syscall-open", NULL, syscall_open, NULL},
    {0},
};
