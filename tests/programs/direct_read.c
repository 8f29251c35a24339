// The sum of a file's bytes, read past the page cache; without a name, of standard input's.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECT) : 0;
    void *buffer;
    if (fd < 0 || posix_memalign(&buffer, 4096, 1 << 16) != 0)
        return 1;
    unsigned long sum = 0;
    ssize_t got;
    while ((got = read(fd, buffer, 1 << 16)) > 0)
        for (ssize_t i = 0; i < got; i++)
            sum += ((unsigned char *)buffer)[i];
    printf("%lu\n", sum);
    return got == 0 ? 0 : 1;
}
