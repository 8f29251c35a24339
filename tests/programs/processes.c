// Writes to files from processes and threads of all kinds. `processes list` names them; `processes WAY FILE` adds a line
// "WAY" to FILE, which exists, and removes FILE.old, which does, too.
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static const char *self, *way, *file;
static char line[64], old[4096];
static size_t length;

static int check(int result, const char *what) {
    if (result < 0) err(1, "%s: %s", way, what);
    return result;
}

static void add(void) {
    int fd = check(open(file, O_WRONLY | O_APPEND), "open");
    if (write(fd, line, length) != (ssize_t)length) err(1, "%s: write", way);
    close(fd);
    check(unlink(old), "unlink");
}

static int add_here(void *unused) {
    (void)unused;
    add();
    return 0;
}

static void *add_in_a_thread(void *unused) {
    add_here(unused);
    return NULL;
}

static void await(pid_t pid) {
    int status = 0;
    check(pid, "no child");
    check(waitpid(pid, &status, __WALL), "waitpid");
    if (status) errx(1, "%s: the child ended with %x", way, status);
}

static void spare(void) { errx(77, "%s: cannot be had here", way); }

// --- Made ---

static void forked(void) {
    pid_t pid = fork();
    if (pid == 0) _exit(add_here(NULL));
    await(pid);
}

static void forked_after_a_change(void) {
    // The parent is known to the agent; the child must make itself known anew.
    int fd = check(open(file, O_WRONLY), "open");
    check(fchmod(fd, 0640), "fchmod");
    close(fd);
    forked();
}

static void vforked(void) {
    pid_t pid = vfork();
    if (pid == 0) _exit(add_here(NULL));
    await(pid);
}

static void by_raw_clone(void) {
    pid_t pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(add_here(NULL));
    await(pid);
}

static void by_clone(int flags) {
    size_t size = 256 << 10;
    char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    await(clone(add_here, stack + size, flags | SIGCHLD, NULL));
}

static void by_clone_like_fork(void) { by_clone(0); }
static void by_clone_like_vfork(void) { by_clone(CLONE_VM | CLONE_VFORK); }
static void by_clone_with_shared_files(void) { by_clone(CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_FS); }

static void spawned(void) {
    pid_t pid;
    char *arguments[] = {(char *)self, "-add", (char *)file, (char *)way, NULL};
    errno = posix_spawn(&pid, self, NULL, NULL, arguments, environ);
    await(errno ? -1 : pid);
}

static void spawned_with_actions(void) {
    pid_t pid;
    posix_spawn_file_actions_t actions;
    char script[8192];
    snprintf(script, sizeof script, "echo %s; rm %s", way, old);
    char *arguments[] = {"sh", "-c", script, NULL}, *nothing[] = {NULL};
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 9, file, O_WRONLY | O_APPEND, 0);
    posix_spawn_file_actions_adddup2(&actions, 9, 1);
    posix_spawn_file_actions_addclose(&actions, 9);
    errno = posix_spawnp(&pid, "sh", &actions, NULL, arguments, nothing);
    await(errno ? -1 : pid);
}

// What an action opens is named from where the action before it has gone.
static void spawned_elsewhere(void) {
    pid_t pid;
    posix_spawn_file_actions_t actions;
    char directory[4096], made[4096];
    snprintf(directory, sizeof directory, "%s", file);
    *strrchr(directory, '/') = 0;
    snprintf(made, sizeof made, "%s.made", strrchr(file, '/') + 1);
    char *arguments[] = {(char *)self, "-add", (char *)file, (char *)way, NULL};
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, directory);
    posix_spawn_file_actions_addopen(&actions, 9, made, O_WRONLY | O_CREAT, 0644);
    check(chdir("/"), "chdir");
    errno = posix_spawn(&pid, self, &actions, NULL, arguments, environ);
    await(errno ? -1 : pid);
}

static void by_system(void) {
    char script[8192];
    snprintf(script, sizeof script, "echo %s >> %s; rm %s", way, file, old);
    if (system(script)) errx(1, "%s: system", way);
}

static void by_popen(void) {
    char script[8192];
    snprintf(script, sizeof script, "cat >> %s; rm %s", file, old);
    FILE *stream = popen(script, "w");
    fputs(line, stream);
    if (pclose(stream)) errx(1, "%s: pclose", way);
}

// --- Without their environment ---

static void cleared_and_by_system(void) { clearenv(); by_system(); }
static void cleared_and_by_popen(void) { clearenv(); by_popen(); }
static void cleared_and_spawned(void) { clearenv(); spawned(); }

static void without_preload_by_system(void) {
    unsetenv("LD_PRELOAD");
    by_system();
    environ = NULL;
}

static void cleared_and_execl(void) {
    clearenv();
    execl(self, self, "-add", file, way, (char *)0);
}

static void by_execle(void) {
    char *variables[] = {"A=b", "LD_PRELOAD=", NULL};
    execle(self, self, "-add", file, way, (char *)0, variables);
}

static void by_execve_of_nothing(void) {
    char *arguments[] = {(char *)self, "-add", (char *)file, (char *)way, NULL};
    execve(self, arguments, NULL);
}

static void by_fexecve(void) {
    char *arguments[] = {(char *)self, "-add", (char *)file, (char *)way, NULL}, *variables[] = {NULL};
    fexecve(check(open(self, O_RDONLY | O_CLOEXEC), "open"), arguments, variables);
}

static void by_execvp_without_path(void) {
    char script[8192];
    snprintf(script, sizeof script, "echo %s >> %s; rm %s", way, file, old);
    clearenv();
    execlp("sh", "sh", "-c", script, (char *)0);
}

// --- Threads that die ---

static void *exits(void *unused) {
    add_here(unused);
    pthread_exit(NULL);
}

static void by_a_thread_that_exits(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, exits, NULL);
    pthread_join(thread, NULL);
}

static void after_the_main_thread(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, add_in_a_thread, NULL);
    pthread_exit(NULL);
}

static int pipes[2];
static volatile int cleaned, waits;

static void clean(void *unused) {
    (void)unused;
    cleaned++;
}

static void *waits_for_a_pipe(void *fd) {
    static char much[1 << 16];
    fcntl(*(int *)fd, F_SETFL, O_NONBLOCK);
    while (write(*(int *)fd, much, sizeof much) > 0) {}
    fcntl(*(int *)fd, F_SETFL, 0);
    pthread_cleanup_push(clean, NULL);
    waits = 1;
    if (write(*(int *)fd, much, sizeof much) > 0) errx(1, "%s: the pipe has no end", way);
    pthread_cleanup_pop(1);
    return NULL;
}

static void *waits_for_a_lock(void *fd) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    pthread_cleanup_push(clean, NULL);
    waits = 1;
    fcntl(*(int *)fd, F_OFD_SETLKW, &lock);
    pthread_cleanup_pop(1);
    return NULL;
}

static void after_cancelled_threads(void) {
    pthread_t thread;
    void *result;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int mine = check(open(file, O_RDWR), "open"), its = check(open(file, O_RDWR), "open");
    check(fcntl(mine, F_OFD_SETLK, &lock), "F_OFD_SETLK");
    check(pipe(pipes), "pipe");
    for (int i = 0; i < 20; i++) {
        // musl knows no such lock as one that may be waited for until cancelled.
#ifdef __GLIBC__
        int locks = i % 2;
#else
        int locks = 0;
#endif
        pthread_create(&thread, NULL, locks ? waits_for_a_lock : waits_for_a_pipe, locks ? &its : &pipes[1]);
        while (!waits) usleep(1000);
        waits = 0;
        usleep(5000);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        if (result != PTHREAD_CANCELED || cleaned != i + 1) errx(1, "%s: round %d, %d cleaned", way, i, cleaned);
    }
    add();
}

static void *executes(void *unused) {
    (void)unused;
    execl(self, self, "-add", file, way, (char *)0);
    err(1, "%s: exec", way);
}

static void by_exec_from_a_thread(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, executes, NULL);
    for (;;) pause();
}

static void *opens_and_ends(void *unused) {
    (void)unused;
    close(check(open(file, O_WRONLY | O_APPEND), "open"));
    return NULL;
}

static void after_many_threads(void) {
    pthread_t threads[100];
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 100; i++) pthread_create(&threads[i], NULL, opens_and_ends, NULL);
        for (int i = 0; i < 100; i++) pthread_join(threads[i], NULL);
    }
    add();
}

// --- Signals ---

static volatile sig_atomic_t handled;
static int log_fd;

static void handler(int number) {
    (void)number;
    int before = errno;
    if (pwrite(log_fd, line, 1, 0) != 1) abort();
    handled++;
    errno = before;
}

static void by_signal_handlers(void) {
    log_fd = check(open(file, O_WRONLY), "open");
    char first;
    int other = open(file, O_RDONLY);
    if (pread(other, &first, 1, 0) != 1) err(1, "pread");
    line[0] = first;
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 200}, {0, 200}}, NULL);
    char name[8192];
    snprintf(name, sizeof name, "%s.old", file);
    while (handled < 500) {
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        if (fd < 0 || ftruncate(fd, handled) || close(fd)) err(1, "%s: beside a handler", way);
    }
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);
    length = snprintf(line, sizeof line, "%s\n", way);
    add();
}

// --- Daemons ---

static void detached(void) {
    int ready[2];
    check(pipe(ready), "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        check(chdir(getenv("STORAGE")), "chdir");
        // Goes to the root directory and leaves the terminal.
        check(daemon(0, 0), "daemon");
        char here[4096];
        if (strcmp(getcwd(here, sizeof here), "/") || access(file + 1, W_OK)) _exit(1);
        add();
        _exit(write(ready[1], "x", 1) != 1);
    }
    await(pid);
    close(ready[1]);
    char byte;
    if (read(ready[0], &byte, 1) != 1) errx(1, "%s: the daemon has failed", way);
}

static void adopted(void) {
    check(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl");
    pid_t pid = fork();
    if (pid == 0) {
        if (fork()) _exit(0);
        setsid();
        usleep(20000);
        add();
        _exit(0);
    }
    await(pid);
    int status;
    if (wait(&status) < 0 || status) errx(1, "%s: the orphan ended with %x", way, status);
}

// --- Restricted ---

static void not_dumpable(void) {
    check(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl");
    add();
}

static void limit(int which, rlim_t hard) {
    struct rlimit limit = {hard, hard};
    check(setrlimit(which, &limit), "setrlimit");
}

static void with_small_files(void) {
    limit(RLIMIT_FSIZE, 4096);
    add();
}

static void with_small_files_in_a_child(void) {
    limit(RLIMIT_FSIZE, 64 << 10);
    forked();
}

// Every descriptor is taken; those that are needed are already open.
static void without_descriptors(void) {
    int fd = check(open(file, O_WRONLY | O_APPEND), "open");
    limit(RLIMIT_NOFILE, 64);
    while (dup(fd) >= 0) {}
    if (errno != EMFILE) err(1, "%s: dup", way);
    // A child knows nothing yet and must make itself known.
    pid_t pid = fork();
    if (pid == 0) {
        if (write(fd, line, length) != (ssize_t)length) err(1, "%s: write", way);
        check(unlink(old), "unlink");
        if (open(file, O_RDONLY) >= 0 || errno != EMFILE) errx(1, "%s: a descriptor appeared", way);
        _exit(0);
    }
    await(pid);
}

static void from_the_start_without_descriptors(void) {
    char *arguments[] = {(char *)self, "-unlink", (char *)file, (char *)way, NULL};
    int fd = check(open(file, O_WRONLY | O_APPEND), "open");
    // The loader needs one, and closes it again before the program starts.
    limit(RLIMIT_NOFILE, 32);
    while (dup(fd) >= 0) {}
    close(31);
    execv(self, arguments);
}

static void unlink_without_descriptors(void) {
    while (dup(1) >= 0) {}
    check(unlink(old), "unlink");
    if (open(file, O_RDONLY) >= 0 || errno != EMFILE) errx(1, "%s: a descriptor appeared", way);
    for (int i = 3; i < 32; i++) close(i);
    int fd = check(open(file, O_WRONLY | O_APPEND), "open");
    if (write(fd, line, length) != (ssize_t)length) err(1, "%s: write", way);
}

// linux/filter.h and linux/seccomp.h, which musl does not have.
struct instruction { unsigned short code; unsigned char yes, no; unsigned value; };
struct filter { unsigned short count; struct instruction *list; };
enum { LOAD = 0x20, IF_EQUAL = 0x15, RETURN = 0x06, ALLOW = 0x7fff0000, FILTER = 2, SET_FILTER = 1 };
#define KILL 0x80000000u

static void confined(void) {
    // What the library needs to make itself known is forbidden afterwards.
    struct instruction list[] = {
        {LOAD, 0, 0, 0},
        {IF_EQUAL, 4, 0, SYS_ftruncate}, {IF_EQUAL, 3, 0, SYS_madvise},
        {IF_EQUAL, 2, 0, SYS_membarrier}, {IF_EQUAL, 1, 0, SYS_getrandom},
        {RETURN, 0, 0, ALLOW}, {RETURN, 0, 0, KILL},
    };
    struct filter filter = {sizeof list / sizeof *list, list};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    if (strstr(way, "syscall"))
        check(syscall(SYS_seccomp, SET_FILTER, 0, &filter), "seccomp");
    else
        check(prctl(PR_SET_SECCOMP, FILTER, &filter, 0, 0), "prctl");
    add();
}

static void confined_by_syscall(void) { confined(); }

// Where no memory can be had for telling, nothing changes, and the error says so.
static void without_memory(void) {
    struct rlimit limit = {0, 0}, before;
    check(getrlimit(RLIMIT_AS, &before), "getrlimit");
    FILE *stream = fopen("/proc/self/statm", "r");
    unsigned long pages;
    if (fscanf(stream, "%lu", &pages) != 1) errx(1, "statm");
    fclose(stream);
    limit.rlim_cur = pages * 4096 + (512 << 10);
    limit.rlim_max = before.rlim_max;
    check(setrlimit(RLIMIT_AS, &limit), "setrlimit");
    if (unlink(old) == 0) errx(1, "%s: it was done untold, or the limit is too high", way);
    if (errno != EIO) err(1, "%s: unlink", way);
    check(setrlimit(RLIMIT_AS, &before), "setrlimit");
    add();
}

// --- Other users (root only) ---

static void as_changing_users(void) {
    if (geteuid()) spare();
    check(chmod(file, 0666), "chmod");
    for (uid_t id = 1; id < 6; id++) {
        check(setresgid(-1, id, -1), "setresgid");
        check(setresuid(-1, id, -1), "setresuid");
        if (chmod(file, 0600) == 0) errx(1, "%s: user %d may too much", way, id);
        close(check(open(file, O_WRONLY | O_APPEND), "open"));
        check(setresuid(-1, 0, -1), "setresuid");
        check(setresgid(-1, 0, -1), "setresgid");
    }
    add();
}

static void as_a_user_for_good(void) {
    if (geteuid()) spare();
    check(chmod(file, 0666), "chmod");
    check(chown(old, 1234, 1234), "chown");
    int fd = check(open(file, O_WRONLY | O_APPEND), "open");
    pid_t pid = fork();
    if (pid == 0) {
        check(setgid(1234), "setgid");
        check(setuid(1234), "setuid");
        if (write(fd, line, length) != (ssize_t)length) err(1, "%s: write", way);
        _exit(0);
    }
    await(pid);
    check(unlink(old), "unlink");
}

static void in_another_root(void) {
    if (geteuid()) spare();
    int fd = check(open(file, O_WRONLY | O_APPEND), "open");
    pid_t pid = fork();
    if (pid == 0) {
        check(chroot("/proc/self/fdinfo"), "chroot");
        check(chdir("/"), "chdir");
        // There is no such name here.
        if (open(file, O_RDONLY) >= 0 || errno != ENOENT) errx(1, "%s: the prefix is seen", way);
        if (write(fd, line, length) != (ssize_t)length) err(1, "%s: write", way);
        _exit(0);
    }
    await(pid);
    check(unlink(old), "unlink");
}

#define WAY(name) {#name, name}
static const struct { const char *name; void (*run)(void); } ways[] = {
    WAY(forked), WAY(forked_after_a_change), WAY(vforked), WAY(by_raw_clone), WAY(by_clone_like_fork), WAY(by_clone_like_vfork),
    WAY(by_clone_with_shared_files), WAY(spawned), WAY(spawned_with_actions), WAY(spawned_elsewhere),
    WAY(by_system), WAY(by_popen),
    WAY(cleared_and_by_system), WAY(cleared_and_by_popen), WAY(cleared_and_spawned), WAY(without_preload_by_system),
    WAY(cleared_and_execl), WAY(by_execle), WAY(by_execve_of_nothing), WAY(by_fexecve), WAY(by_execvp_without_path),
    WAY(by_a_thread_that_exits), WAY(after_the_main_thread), WAY(after_cancelled_threads), WAY(by_exec_from_a_thread),
    WAY(after_many_threads), WAY(by_signal_handlers), WAY(detached), WAY(adopted), WAY(not_dumpable), WAY(with_small_files),
    WAY(with_small_files_in_a_child), WAY(without_descriptors), WAY(from_the_start_without_descriptors), WAY(confined),
    WAY(confined_by_syscall), WAY(without_memory), WAY(as_changing_users), WAY(as_a_user_for_good), WAY(in_another_root),
};

int main(int argc, char **argv) {
    size_t count = sizeof ways / sizeof *ways;
    if (argc == 2 && !strcmp(argv[1], "list")) {
        for (size_t i = 0; i < count; i++) puts(ways[i].name);
        return 0;
    }
    if (argc < 3) errx(2, "processes WAY FILE");
    self = argv[0];
    way = argv[argc == 4 ? 3 : 1];
    file = argv[2];
    length = snprintf(line, sizeof line, "%s\n", way);
    snprintf(old, sizeof old, "%s.old", file);
    if (argc == 4) {
        if (!strcmp(argv[1], "-unlink")) unlink_without_descriptors();
        else add();
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
