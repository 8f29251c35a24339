"""Changes files through a link outside of every mount: from_outside.py make|change INSIDE OUTSIDE.

`make` makes them by their names in the mount. `change` works in an ordinary directory through the link until whatever may be
remembered of it is, then turns the link to the mount and does the same work there.
"""

import ctypes
import os
import sys

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]

KEPT = ["truncated", "emptied", "appended", "chmod", "times", "attribute", "stream-w", "stream-a", "old", "gone", "linked",
        "written"]


def stream(path, mode):
    file = libc.fopen(path.encode(), mode)
    assert file, path
    libc.fputs(b"by a stream", file)
    libc.fclose(file)


def write(path, flags, data=b"by write"):
    fd = os.open(path, flags, 0o640)
    os.write(fd, data)
    os.close(fd)


def make(where):
    for name in KEPT:
        write(f"{where}/{name}", os.O_CREAT | os.O_WRONLY, b"0123456789" * 100)
    os.mkdir(f"{where}/empty")


def change(where):
    os.truncate(f"{where}/truncated", 7)
    write(f"{where}/emptied", os.O_TRUNC | os.O_WRONLY)
    write(f"{where}/appended", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    write(f"{where}/written", os.O_RDWR)
    os.chmod(f"{where}/chmod", 0o600)
    os.utime(f"{where}/times", (1, 2))
    os.setxattr(f"{where}/attribute", "user.colour", b"red")
    stream(f"{where}/stream-w", b"w")
    stream(f"{where}/stream-a", b"a")
    stream(f"{where}/stream-new", b"w")
    write(f"{where}/new", os.O_CREAT | os.O_WRONLY)
    write(f"{where}/exclusive", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.rename(f"{where}/old", f"{where}/renamed")
    os.unlink(f"{where}/gone")
    os.link(f"{where}/linked", f"{where}/link")
    os.symlink("linked", f"{where}/symlink")
    os.mkdir(f"{where}/directory")
    os.rmdir(f"{where}/empty")
    os.mkfifo(f"{where}/fifo")
    # A duplicate that outlives the descriptor that it was made of.
    fd = os.open(f"{where}/twins", os.O_CREAT | os.O_WRONLY)
    twin = os.dup(fd)
    os.close(fd)
    os.write(twin, b"by the twin")
    os.close(twin)


def main():
    what, inside, outside = sys.argv[1:]
    if what == "make":
        make(inside)
        return
    door = f"{outside}/door"
    for turn in range(3):
        plain = f"{outside}/plain-{turn}"
        os.mkdir(plain)
        os.symlink(plain, door)
        make(door)
        change(door)
        change_names = sorted(os.listdir(plain))
        os.unlink(door)
    os.symlink(inside, door)
    change(door)
    assert sorted(os.listdir(inside)) == change_names, (os.listdir(inside), change_names)
    print("done")


main()
