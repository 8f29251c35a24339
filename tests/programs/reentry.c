// Writers that are interrupted in the middle of it: by handlers that write, by handlers that jump out, by cancellation,
// and by the end of their thread. Argument: the directory to work in.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int handled_fd, main_fd;
static atomic_long interrupts;

static void die(const char *what) {
    perror(what);
    _exit(1);
}

static int make(const char *name) {
    int fd = open(name, O_CREAT | O_RDWR, 0644);
    if (fd < 0) die(name);
    return fd;
}

// A handler that opens, writes, renames and closes, whatever it interrupts.
static void writes(int signal) {
    char line[64];
    (void)signal;
    long n = atomic_fetch_add(&interrupts, 1);
    int length = snprintf(line, sizeof line, "interrupt %ld\n", n);
    if (write(handled_fd, line, length) != length) die("write in a handler");
    int fd = open("handled.new", O_CREAT | O_WRONLY | O_TRUNC, 0644);
    if (fd < 0 || pwrite(fd, line, length, n % 7 * 100) != length || close(fd) || rename("handled.new", "handled"))
        die("files in a handler");
}

static void every(long microseconds) {
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    if (setitimer(ITIMER_REAL, &timer, NULL)) die("setitimer");
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void write_for(double seconds) {
    char block[5000];
    memset(block, 'b', sizeof block);
    for (double end = now() + seconds; now() < end;) {
        for (int i = 0; i < 50; i++) {
            if (pwrite(main_fd, block, sizeof block, (i * 977 % 300) * 4096L) != sizeof block) die("pwrite");
            char name[32];
            sprintf(name, "n%d", i % 5);
            close(make(name));
            if (unlink(name)) die("unlink");
        }
    }
}

static sigjmp_buf out;
static void jumps(int signal) {
    (void)signal;
    siglongjmp(out, 1);
}

static void *cancelled(void *asynchronous) {
    char block[100000];
    memset(block, 'c', sizeof block);
    pthread_setcanceltype(asynchronous ? PTHREAD_CANCEL_ASYNCHRONOUS : PTHREAD_CANCEL_DEFERRED, NULL);
    for (;;) {
        if (pwrite(main_fd, block, sizeof block, 1 << 20) < 0) die("pwrite");
        pthread_testcancel();
    }
    return NULL;
}

static void *exits(void *raw) {
    char line[] = "a thread that ends\n";
    if (pwrite(main_fd, line, sizeof line, 3 << 20) < 0) die("pwrite");
    if (raw) syscall(SYS_exit, 0);
    pthread_exit(NULL);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2 || chdir(argv[1])) die("chdir");
    handled_fd = open("log", O_CREAT | O_WRONLY | O_APPEND, 0644);
    main_fd = make("main");

    signal(SIGALRM, writes);
    every(700);
    write_for(2);
    every(0);

    // Out of calls, again and again.
    struct sigaction action = {.sa_handler = jumps};
    sigaction(SIGALRM, &action, NULL);
    for (int i = 0; i < 300; i++) {
        if (sigsetjmp(out, 1) == 0) {
            struct itimerval timer = {{0, 0}, {0, 300 + i}};
            setitimer(ITIMER_REAL, &timer, NULL);
            write_for(5);
        }
    }
    signal(SIGALRM, SIG_IGN);

    for (int i = 0; i < 60; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, cancelled, i % 2 ? "asynchronously" : NULL)) die("pthread_create");
        usleep(i * 50);
        pthread_cancel(thread);
        pthread_join(thread, NULL);
        if (pthread_create(&thread, NULL, exits, i % 2 ? "raw" : NULL)) die("pthread_create");
        pthread_detach(thread);
    }
    write_for(0.3);
    fsync(main_fd);
    printf("%ld\n", atomic_load(&interrupts));
    return 0;
}
