// Starts COUNT processes, some at a time; each adds its number to FOLDER/log and renames a file of its own.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void child(const char *folder, int number) {
    char log[4096], from[4096], to[4096], line[16];
    snprintf(log, sizeof log, "%s/log", folder);
    snprintf(from, sizeof from, "%s/%d", folder, number);
    snprintf(to, sizeof to, "%s/slot%d", folder, number % 50);
    int length = snprintf(line, sizeof line, "%d\n", number);
    int fd = open(log, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (fd < 0 || write(fd, line, length) != length) err(1, "%s", log);
    if (close(open(from, O_WRONLY | O_CREAT | O_EXCL, 0600)) || rename(from, to)) err(1, "%s", from);
    _exit(0);
}

int main(int argc, char **argv) {
    if (argc != 3) errx(2, "short_processes FOLDER COUNT");
    int count = atoi(argv[2]), running = 0, status;
    for (int number = 0; number < count; number++) {
        pid_t pid = fork();
        if (pid < 0) err(1, "fork");
        if (pid == 0) child(argv[1], number);
        if (++running < 4) continue;
        if (wait(&status) < 0 || status) errx(1, "a process ended with %x", status);
        running--;
    }
    while (running--) {
        if (wait(&status) < 0 || status) errx(1, "a process ended with %x", status);
    }
    return 0;
}
