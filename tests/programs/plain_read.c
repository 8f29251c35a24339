/*
 * `plain_read FILE…` reads each file in one go, from its beginning, and prints an FNV-1a sum of it and its length. Built without
 * a loader it is a program that no hook sees.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static unsigned char buffer[1 << 16];
    for (int i = 1; i < argc; i++) {
        int fd = open(argv[i], O_RDONLY);
        if (fd < 0) {
            perror(argv[i]);
            return 1;
        }
        uint64_t sum = 0xcbf29ce484222325u;
        long all = 0, got;
        while ((got = read(fd, buffer, sizeof buffer)) > 0) {
            for (long k = 0; k < got; k++)
                sum = (sum ^ buffer[k]) * 0x100000001b3u;
            all += got;
        }
        if (got < 0) {
            perror(argv[i]);
            return 1;
        }
        close(fd);
        printf("%016llx %ld\n", (unsigned long long)sum, all);
    }
    return 0;
}
