// System calls that pass by libc: inline, from every kind of thread and process that a program can make.
//
//   raw_calls DIR          everything, in directories of its own below DIR; says what went wrong and fails
//   raw_calls scene DIR    one scene: what each of them does
//   raw_calls stay         nothing, until it is killed
//   raw_calls time         what a call costs, in nanoseconds
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

// The kernel's structures, which musl's compiler has no headers for.
struct open_how { unsigned long flags, mode, resolve; };
struct clone_args {
    unsigned long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
enum { IN_ROOT = 0x10 };

extern char **environ;
static const char *self, *base;

static long raw6(long n, long a, long b, long c, long d, long e, long f) {
    long answer;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return answer;
}
#define RAW(n, a, b, c, d, e) raw6(SYS_##n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

#define MUST(what)                                                         \
    do {                                                                   \
        if (!(what)) {                                                     \
            dprintf(2, "%s: %s is not so (errno %d)\n", dir, #what, errno); \
            return 1;                                                      \
        }                                                                  \
    } while (0)

// Files made, changed, moved and asked about below `dir`, which it makes. Only stack and inline calls.
static int scene(const char *dir) {
    char path[300], other[300], text[300];
    struct stat stat;
    MUST(RAW(mkdir, dir, 0755, 0, 0, 0) == 0);
    snprintf(path, sizeof path, "%s/file", dir);
    snprintf(other, sizeof other, "%s/moved", dir);
    long fd = RAW(openat, AT_FDCWD, path, O_CREAT | O_EXCL | O_RDWR, 0644, 0);
    MUST(fd >= 0);
    MUST(RAW(write, fd, "hello world", 11, 0, 0) == 11);
    MUST(RAW(pwrite64, fd, "HE", 2, 0, 0) == 2);
    MUST(RAW(ftruncate, fd, 5, 0, 0, 0) == 0);
    char *map = (char *)RAW(mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    MUST((long)map > 0);
    map[4] = 'O';
    MUST(RAW(munmap, map, 4096, 0, 0, 0) == 0);
    MUST(RAW(close, fd, 0, 0, 0, 0) == 0);
    MUST(RAW(rename, path, other, 0, 0, 0) == 0);
    MUST(RAW(stat, path, &stat, 0, 0, 0) == -ENOENT);
    MUST(RAW(newfstatat, AT_FDCWD, other, &stat, 0, 0) == 0 && stat.st_size == 5);
    MUST(RAW(symlink, other, path, 0, 0, 0) == 0);
    MUST(RAW(readlink, path, text, sizeof text, 0, 0) == (long)strlen(other) && !memcmp(text, other, strlen(other)));
    MUST(RAW(chmod, path, 0600, 0, 0, 0) == 0);
    long at = RAW(open, dir, O_RDONLY | O_DIRECTORY, 0, 0, 0);
    MUST(at >= 0);
    MUST(RAW(mkdirat, at, "sub", 0700, 0, 0) == 0);
    MUST(RAW(linkat, at, "moved", at, "sub/hard", 0) == 0);
    MUST(RAW(unlinkat, at, "file", 0, 0, 0) == 0);
    struct open_how how = {.flags = O_CREAT | O_WRONLY, .mode = 0644, .resolve = IN_ROOT};
    long in = RAW(openat2, at, "/../sub/rooted", &how, sizeof how, 0);
    MUST(in >= 0 && RAW(write, in, "rooted", 6, 0, 0) == 6 && RAW(close, in, 0, 0, 0, 0) == 0);
    MUST(RAW(close, at, 0, 0, 0, 0) == 0);
    return 0;
}

static char *name(char *room, const char *what) {
    sprintf(room, "%s/%s", base, what);
    return room;
}

// --- Who plays it ---

static int here(const char *what) {
    char dir[300];
    return scene(name(dir, what));
}

static int ended(long pid, const char *dir) {
    int status = -1;
    MUST(pid > 0);
    MUST(waitpid(pid, &status, __WALL) == pid);
    if (status != 0) dprintf(2, "%s: status %x\n", dir, status);
    return status != 0;
}

static void *in_thread(void *what) { return here(what) ? what : NULL; }
static int in_c11_thread(void *what) { return here(what); }

static int threads(void) {
    const char *dir = "threads";
    pthread_t thread[8];
    char names[8][16];
    for (int i = 0; i < 8; i++) {
        sprintf(names[i], "thread%d", i);
        MUST(pthread_create(&thread[i], NULL, in_thread, names[i]) == 0);
    }
    for (int i = 0; i < 8; i++) {
        void *answer;
        MUST(pthread_join(thread[i], &answer) == 0 && answer == NULL);
    }
    thrd_t other;
    int answer;
    MUST(thrd_create(&other, in_c11_thread, "c11") == thrd_success);
    MUST(thrd_join(other, &answer) == thrd_success && answer == 0);
    return 0;
}

static volatile sig_atomic_t handled = -1;
static void on_signal(int signal) {
    (void)signal;
    handled = here(handled == -1 ? "handler" : "handler2");
}

static int masks(void) {
    const char *dir = "masks";
    struct sigaction action = {.sa_handler = on_signal}, old;
    sigset_t all, none, was;
    sigfillset(&all);
    sigemptyset(&none);
    action.sa_mask = all;
    MUST(sigaction(SIGUSR1, &action, NULL) == 0);
    MUST(sigprocmask(SIG_BLOCK, &all, &was) == 0);
    MUST(here("blocked") == 0);
    raise(SIGUSR1);
    MUST(handled == -1);
    MUST(sigprocmask(SIG_SETMASK, &none, NULL) == 0);
    MUST(handled == 0);
    unsigned long raw_all = ~0ul, raw_was = 7, raw_now = 7;
    MUST(RAW(rt_sigprocmask, SIG_BLOCK, &raw_all, &raw_was, 8, 0) == 0 && raw_was == 0);
    MUST(here("blocked_raw") == 0);
    MUST(RAW(rt_sigprocmask, SIG_SETMASK, &raw_was, &raw_now, 8, 0) == 0 && (raw_now | 1ul << 30) == (~0ul & ~(1ul << 8 | 1ul << 18)));
    // The action of the net's own signal is the program's to have and not to take.
    action.sa_handler = SIG_IGN;
    MUST(sigaction(SIGSYS, &action, &old) == 0 && old.sa_handler == SIG_DFL);
    MUST(sigaction(SIGSYS, NULL, &old) == 0 && old.sa_handler == SIG_IGN);
    raise(SIGSYS);
    MUST(here("ignored") == 0);
    // An alternate stack, and calls made on it.
    static char stack[1 << 16];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    MUST(RAW(sigaltstack, &alternate, 0, 0, 0, 0) == 0);
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    MUST(sigaction(SIGUSR1, &action, NULL) == 0);
    handled = 5;
    raise(SIGUSR1);
    MUST(handled == 0);
    return 0;
}

// A child on a stack of its own: runs `scene(dir)` there and exits. One function, so that the child needs no frame.
static long clone_raw(long number, long a, void *top, const char *dir) {
    void **stack = top;
    *--stack = NULL; // Twice, so that the stack is aligned at the call.
    *--stack = NULL;
    *--stack = (void *)dir;
    *--stack = (void *)scene;
    struct clone_args args = {0};
    long b;
    if (number == SYS_clone3) {
        args.flags = a & ~0xfful;
        args.exit_signal = a & 0xff;
        args.stack = (unsigned long)stack - 65536;
        args.stack_size = 65536;
        a = (long)&args;
        b = sizeof args;
    } else {
        b = (long)stack;
    }
    long answer;
    register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0;
    __asm__ volatile("syscall\n"
                     "test %%rax, %%rax\n"
                     "jnz 1f\n"
                     "xor %%ebp, %%ebp\n"
                     "pop %%rax\n"
                     "pop %%rdi\n"
                     "call *%%rax\n"
                     "mov %%eax, %%edi\n"
                     "mov $60, %%eax\n"
                     "syscall\n"
                     "1:\n"
                     : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(0L), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return answer;
}

static int child_of_clone(void *dir) { return scene(dir); }

static int clones(void) {
    const char *dir = "clones";
    static _Alignas(16) char stacks[5][1 << 18];
    static char names[5][300];
    long shared = CLONE_VM | CLONE_FILES | CLONE_FS | SIGCHLD;
    for (int i = 0; i < 5; i++) {
        sprintf(names[i], "%s/clone%d", base, i);
    }
    MUST(ended(clone_raw(SYS_clone, shared, stacks[0] + sizeof stacks[0], names[0]), "clone shared") == 0);
    MUST(ended(clone_raw(SYS_clone3, shared, stacks[1] + sizeof stacks[1], names[1]), "clone3 shared") == 0);
    MUST(ended(clone_raw(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, stacks[2] + sizeof stacks[2], names[2]), "clone vfork") == 0);
    MUST(ended(clone(child_of_clone, stacks[3] + sizeof stacks[3], CLONE_VM | SIGCHLD, names[3]), "clone(3)") == 0);
    MUST(ended(clone(child_of_clone, stacks[4] + sizeof stacks[4], SIGCHLD, names[4]), "clone(3) copied") == 0);
    return 0;
}

static int forks(void) {
    const char *dir = "forks";
    char *const child[] = {(char *)self, "scene", NULL, NULL};
    char path[300];
    long pid = fork();
    if (pid == 0) _exit(here("fork"));
    MUST(ended(pid, "fork") == 0);
    pid = RAW(fork, 0, 0, 0, 0, 0);
    if (pid == 0) RAW(exit_group, here("fork_raw"), 0, 0, 0, 0);
    MUST(ended(pid, "raw fork") == 0);
    pid = RAW(vfork, 0, 0, 0, 0, 0);
    if (pid == 0) RAW(exit_group, here("vfork_raw"), 0, 0, 0, 0);
    MUST(ended(pid, "raw vfork") == 0);
    pid = syscall(SYS_fork);
    if (pid == 0) _exit(here("fork_by_number"));
    MUST(ended(pid, "syscall(SYS_fork)") == 0);
    pid = syscall(SYS_vfork);
    if (pid == 0) _exit(here("vfork_by_number"));
    MUST(ended(pid, "syscall(SYS_vfork)") == 0);
    struct clone_args args = {.exit_signal = SIGCHLD};
    pid = RAW(clone3, &args, sizeof args, 0, 0, 0);
    if (pid == 0) RAW(exit_group, here("clone3_copied"), 0, 0, 0, 0);
    MUST(ended(pid, "raw clone3") == 0);
    pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(here("clone_by_number"));
    MUST(ended(pid, "syscall(SYS_clone)") == 0);

    char *arguments[4] = {child[0], child[1], name(path, "exec"), NULL};
    pid = vfork();
    if (pid == 0) {
        execv(self, arguments);
        _exit(99);
    }
    MUST(ended(pid, "vfork and exec") == 0);
    arguments[2] = name(path, "exec_raw");
    pid = vfork();
    if (pid == 0) {
        char *empty[] = {NULL};
        RAW(execve, self, arguments, empty, 0, 0);
        _exit(99);
    }
    MUST(ended(pid, "raw execve with an empty environment") == 0);
    arguments[2] = name(path, "spawn");
    pid_t spawned = 0;
    MUST(posix_spawn(&spawned, self, NULL, NULL, arguments, environ) == 0);
    MUST(ended(spawned, "posix_spawn") == 0);
    return 0;
}

static long per_call(long calls, long (*call)(void)) {
    struct timespec a, b;
    long best = 1L << 60;
    for (int round = 0; round < 20; round++) {
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (long i = 0; i < calls; i++) call();
        clock_gettime(CLOCK_MONOTONIC, &b);
        long ns = ((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec) / calls;
        if (ns < best) best = ns;
    }
    return best;
}

static long libc_call(void) { return getppid(); }
static long number_call(void) { return syscall(SYS_getppid); }
static long raw_call(void) { return RAW(getppid, 0, 0, 0, 0, 0); }
static long raw_hooked(void) { return RAW(dup, -1, 0, 0, 0, 0); }

int main(int argc, char **argv) {
    const char *dir = "raw_calls";
    self = "/proc/self/exe";
    char exe[300];
    ssize_t length = readlink(self, exe, sizeof exe - 1);
    MUST(length > 0);
    exe[length] = 0;
    self = exe;
    if (argc == 2 && !strcmp(argv[1], "time")) {
        printf("libc %ld, syscall() %ld, raw %ld, raw with a hook %ld\n", per_call(20000, libc_call),
               per_call(20000, number_call), per_call(20000, raw_call), per_call(20000, raw_hooked));
        return 0;
    }
    if (argc == 2 && !strcmp(argv[1], "stay")) return pause();
    if (argc == 3 && !strcmp(argv[1], "scene")) return scene(argv[2]);
    MUST(argc == 2);
    base = argv[1];
    MUST(here("main") == 0);
    MUST(threads() == 0);
    MUST(masks() == 0);
    MUST(forks() == 0);
    MUST(clones() == 0);
    MUST(here("after") == 0);
    puts("all is well");
    return 0;
}
