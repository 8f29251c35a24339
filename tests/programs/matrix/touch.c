// Creates the file that its argument names; linked statically, it is out of every hook's sight.
#include <fcntl.h>

int main(int argc, char **argv) {
    return argc == 2 && open(argv[1], O_WRONLY | O_CREAT, 0600) >= 0 ? 0 : 1;
}
