/* A program of an image in docker/check.sh. `durable FILE TEXT` writes a file and syncs it, `durable FILE` prints one. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int failed(const char *what)
{
    perror(what);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: durable FILE [TEXT]\n");
        return 2;
    }
    int file = open(argv[1], argc == 3 ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0644);
    if (file < 0)
        return failed(argv[1]);
    if (argc == 3) {
        ssize_t length = (ssize_t)strlen(argv[2]);
        if (write(file, argv[2], length) != length || fsync(file) != 0)
            return failed(argv[1]);
        return 0;
    }
    char bytes[4096];
    ssize_t got;
    while ((got = read(file, bytes, sizeof bytes)) > 0)
        if (write(STDOUT_FILENO, bytes, got) != got)
            return failed("standard output");
    return got < 0 ? failed(argv[1]) : 0;
}
