"""Every way to read and change a file that is not here yet. `fill` makes the files, `check` meets them cold, `after` finds what
`check` has changed in the volume that was made of it. Each way has files of its own, so that each is met cold."""
import ctypes, errno, fcntl, mmap, os, random, shutil, sqlite3, struct, subprocess, sys, tarfile

HERE = os.environ.get("STORAGE", "/storage")
PIECE = 128 << 10
failed = []


def content(name, size):
    return random.Random(name).randbytes(size)


def path(name):
    return os.path.join(HERE, name)


def make(name, size, mode=0o644):
    with open(path(name), "wb") as file:
        file.write(content(name, size))
    os.chmod(path(name), mode)


def same(what, got, wanted):
    if got != wanted:
        at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
        zeros = not any(got[at:at + 16])
        failed.append(what)
        print(f"{what}: {len(got)} bytes of {len(wanted)}, wrong from {at} on (zeros: {zeros})", flush=True)


def opened(name, flags=os.O_RDONLY):
    return os.open(path(name), flags)


WAYS = {}


def way(size, **more):
    def add(function):
        WAYS[function.__name__] = (size, function, more)
        return function
    return add


@way(9_000_000)
def cat(name, data):
    same(name, subprocess.run(["cat", path(name)], stdout=subprocess.PIPE, check=True).stdout, data)


@way(9_000_000)
def dd_offsets(name, data):
    for skip in (0, 3, 777, 8000):
        out = subprocess.run(["dd", f"if={path(name)}", "bs=1000", f"skip={skip}", "count=300", "status=none"],
                             stdout=subprocess.PIPE, check=True).stdout
        same(f"{name} {skip}", out, data[skip * 1000:skip * 1000 + 300_000])


@way(5_000_000)
def pread_backwards(name, data):
    fd = opened(name)
    for at in range(len(data) - 1000, 0, -333_333):
        same(f"{name} {at}", os.pread(fd, 1000, at), data[at:at + 1000])
    os.close(fd)


@way(30_000_000)
def one_large_read(name, data):
    fd = opened(name)
    same(name, os.read(fd, len(data) + 1), data)
    os.close(fd)


@way(30_000_000)
def vectors(name, data):
    fd = opened(name)
    parts = [bytearray(10), bytearray(20_000_000), bytearray(5_000_000)]
    n = os.readv(fd, parts)
    same(name, b"".join(parts)[:n], data[:n])
    n = os.preadv(fd, parts, 3_000_000)
    same(f"{name} at", b"".join(parts)[:n], data[3_000_000:3_000_000 + n])
    os.close(fd)


@way(3_000_000)
def readinto(name, data):
    room = bytearray(len(data))
    with open(path(name), "rb", buffering=0) as file:
        n = file.readinto(room)
    same(name, bytes(room[:n]), data)


@way(5_000_000)
def mapped(name, data):
    with open(path(name), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as at:
        same(name, at[:], data)


@way(5_000_000)
def mapped_private(name, data):
    fd = opened(name)
    with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_POPULATE", 0x8000), prot=mmap.PROT_READ) as at:
        os.close(fd)
        same(name, at[:], data)


@way(5_000_000, changed=lambda d: d[:2_000_000] + b"mapped" + d[2_000_006:])
def mapped_to_write(name, data):
    with open(path(name), "r+b") as file, mmap.mmap(file.fileno(), 0) as at:
        at[2_000_000:2_000_006] = b"mapped"
        at.flush()
        same(name, at[:], data[:2_000_000] + b"mapped" + data[2_000_006:])


@way(9_000_000)
def cp(name, data):
    for target in (path("made-" + name), os.path.join(os.environ["OUTSIDE"], name)):
        subprocess.run(["cp", path(name), target], check=True)
        same(f"{name} {target}", open(target, "rb").read(), data)


@way(9_000_000)
def cp_reflink(name, data):
    target = path("made-" + name)
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", path(name), target], check=True)
    same(name, open(target, "rb").read(), data)


@way(9_000_000)
def copy_file_range(name, data):
    source, target = opened(name), opened("made-" + name, os.O_RDWR | os.O_CREAT)
    left = len(data) - 1_000_001
    at = 1_000_001
    while left:
        n = os.copy_file_range(source, target, left, at, at)
        at, left = at + n, left - n
    os.close(source)
    same(name, os.pread(target, len(data), 1_000_001), data[1_000_001:])
    os.close(target)


@way(9_000_000)
def sendfile_to_pipe(name, data):
    source = opened(name)
    down, up = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(down)
        at = 0
        while at < len(data):
            at += os.sendfile(up, source, at, len(data))
        os._exit(0)
    os.close(up)
    with open(down, "rb") as pipe:
        same(name, pipe.read(), data)
    os.waitpid(child, 0)


@way(3_000_000)
def sendfile_to_file(name, data):
    source = opened(name)
    with open(os.path.join(os.environ["OUTSIDE"], name), "w+b") as target:
        while os.sendfile(target.fileno(), source, None, 1 << 30):
            pass
        target.seek(0)
        same(name, target.read(), data)


@way(3_000_000)
def splice(name, data):
    source = opened(name)
    down, up = os.pipe()
    got = b""
    while True:
        n = os.splice(source, up, 1 << 16)
        if n == 0:
            break
        got += os.read(down, n)
    same(name, got, data)


@way(3_000_000)
def tar(name, data):
    out = subprocess.run(["tar", "-C", HERE, "-cf", "-", name], stdout=subprocess.PIPE, check=True).stdout
    target = os.path.join(os.environ["OUTSIDE"], "tar")
    open(target, "wb").write(out)
    with tarfile.open(target) as archive:
        same(name, archive.extractfile(name).read(), data)


@way(3_000_000)
def stdin(name, data):
    with open(path(name), "rb") as file:
        for command in (["cat"], ["sort", "-z"]):
            file.seek(0)
            out = subprocess.run(command, stdin=file, stdout=subprocess.PIPE, check=True).stdout
            wanted = data if command == ["cat"] else None
            if wanted is not None:
                same(f"{name} {command}", out, wanted)
            elif len(out) < len(data):
                failed.append(name)


@way(1_000_000)
def stdin_by_stdio(name, data):
    with open(path(name), "rb") as file:
        out = subprocess.run(["md5sum"], stdin=file, stdout=subprocess.PIPE, check=True).stdout
    import hashlib
    same(name, out.split()[0], hashlib.md5(data).hexdigest().encode())


def libc():
    lib = ctypes.CDLL(None, use_errno=True)
    lib.fopen.restype = ctypes.c_void_p
    lib.fread.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    lib.fread.restype = ctypes.c_size_t
    lib.fwrite.argtypes = lib.fread.argtypes
    lib.fwrite.restype = ctypes.c_size_t
    lib.fseek.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]
    lib.fclose.argtypes = [ctypes.c_void_p]
    lib.freopen.restype = ctypes.c_void_p
    lib.freopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    return lib


@way(2_000_000)
def fopen_r(name, data):
    lib, room = libc(), ctypes.create_string_buffer(len(data))
    stream = lib.fopen(path(name).encode(), b"r")
    n = lib.fread(room, 1, len(data), stream)
    lib.fclose(stream)
    same(name, room.raw[:n], data)


@way(2_000_000)
def freopen(name, data):
    lib, room = libc(), ctypes.create_string_buffer(len(data))
    stream = lib.freopen(path(name).encode(), b"r", lib.fopen(b"/dev/null", b"r"))
    n = lib.fread(room, 1, len(data), stream)
    lib.fclose(stream)
    same(name, room.raw[:n], data)


@way(2_000_000, changed=lambda d: d[:700_000] + b"stdio" + d[700_005:])
def fopen_r_plus(name, data):
    lib, room = libc(), ctypes.create_string_buffer(len(data))
    stream = lib.fopen(path(name).encode(), b"r+")
    lib.fseek(stream, 700_000, 0)
    lib.fwrite(b"stdio", 1, 5, stream)
    lib.fseek(stream, 0, 0)
    n = lib.fread(room, 1, len(data), stream)
    lib.fclose(stream)
    same(name, room.raw[:n], data[:700_000] + b"stdio" + data[700_005:])


@way(2_000_001, changed=lambda d: d + b"more")
def fopen_a_plus(name, data):
    lib, room = libc(), ctypes.create_string_buffer(len(data) + 4)
    stream = lib.fopen(path(name).encode(), b"a+")
    lib.fwrite(b"more", 1, 4, stream)
    lib.fseek(stream, 0, 0)
    n = lib.fread(room, 1, len(data) + 4, stream)
    lib.fclose(stream)
    same(name, room.raw[:n], data + b"more")


@way(2_000_001, changed=lambda d: d + b"more")
def fopen_a(name, data):
    lib = libc()
    stream = lib.fopen(path(name).encode(), b"a")
    lib.fwrite(b"more", 1, 4, stream)
    lib.fclose(stream)


@way(2_000_000, changed=lambda d: b"new")
def fopen_w(name, data):
    lib = libc()
    stream = lib.fopen(path(name).encode(), b"w")
    lib.fwrite(b"new", 1, 3, stream)
    lib.fclose(stream)


@way(3_000_003, changed=lambda d: d + b"appended")
def append(name, data):
    fd = opened(name, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"appended")
    os.close(fd)


@way(3_000_003, changed=lambda d: d + b"line\n")
def append_by_shell(name, data):
    subprocess.run(["sh", "-c", f"echo line >> {path(name)}"], check=True)


@way(9_000_000, changed=lambda d: d[:4_444_444] + b"middle" * 1000 + d[4_450_444:])
def overwrite_middle(name, data):
    fd = opened(name, os.O_RDWR)
    os.pwrite(fd, b"middle" * 1000, 4_444_444)
    same(name, os.pread(fd, len(data), 0), data[:4_444_444] + b"middle" * 1000 + data[4_450_444:])
    os.close(fd)


@way(9_000_000, changed=lambda d: d[:PIECE] + b"x" * 3 * PIECE + d[4 * PIECE:])
def overwrite_pieces(name, data):
    command = ["dd", "of=" + path(name), f"bs={PIECE}", "seek=1", "count=3", "conv=notrunc", "iflag=fullblock"]
    subprocess.run(command, input=b"x" * 3 * PIECE, stderr=subprocess.DEVNULL, check=True)


@way(9_000_000, changed=lambda d: d[:5_000_001])
def truncate_down(name, data):
    os.truncate(path(name), 5_000_001)
    with open(path(name), "rb") as file:
        same(name, file.read(), data[:5_000_001])


@way(3_000_000, changed=lambda d: d + bytes(1_000_000))
def truncate_up(name, data):
    with open(path(name), "r+b") as file:
        file.truncate(4_000_000)
        same(name, file.read(), data + bytes(1_000_000))


@way(3_000_000, changed=lambda d: d[:1_000_000] + bytes(1_500_000))
def truncate_down_and_up(name, data):
    fd = opened(name, os.O_RDWR)
    os.ftruncate(fd, 1_000_000)
    os.ftruncate(fd, 2_500_000)
    same(name, os.pread(fd, len(data), 0), data[:1_000_000] + bytes(1_500_000))
    os.close(fd)


@way(9_000_000, changed=lambda d: b"emptied")
def opened_to_empty(name, data):
    with open(path(name), "wb") as file:
        file.write(b"emptied")


@way(3_000_000, changed=lambda d: d[:500_001] + bytes(1_000_000) + d[1_500_001:])
def punched(name, data):
    subprocess.run(["fallocate", "-p", "-o", "500001", "-l", "1000000", path(name)], check=True)
    with open(path(name), "rb") as file:
        same(name, file.read(), data[:500_001] + bytes(1_000_000) + data[1_500_001:])


@way(3_000_000)
def allocated(name, data):
    fd = opened(name, os.O_RDWR)
    os.posix_fallocate(fd, 0, len(data))
    same(name, os.pread(fd, len(data), 0), data)
    os.close(fd)


@way(3_000_000)
def direct(name, data):
    fd = opened(name, os.O_RDONLY | os.O_DIRECT)
    room = mmap.mmap(-1, 1 << 20)
    n = os.preadv(fd, [room], 1 << 20)
    same(name, room[:n], data[1 << 20:(1 << 20) + n])
    n = os.readv(fd, [room])
    same(name, room[:n], data[:n])
    os.close(fd)


@way(3_000_000)
def advised(name, data):
    fd = opened(name)
    os.posix_fadvise(fd, 1_000_000, 1_000_000, os.POSIX_FADV_WILLNEED)
    same(name, os.pread(fd, 1_500_000, 900_000), data[900_000:2_400_000])
    os.close(fd)


@way(3_000_000)
def received(name, data):
    import socket
    a, b = socket.socketpair()
    if os.fork() == 0:
        socket.send_fds(a, [b"x"], [opened(name)])
        os._exit(0)
    _, fds, _, _ = socket.recv_fds(b, 1, 1)
    same(name, os.read(fds[0], len(data)), data)
    os.wait()


@way(3_000_000)
def by_number(name, data):
    lib = ctypes.CDLL(None, use_errno=True)
    room, fd = ctypes.create_string_buffer(len(data)), opened(name)
    n = lib.syscall(ctypes.c_long(17), fd, room, ctypes.c_size_t(len(data)), ctypes.c_long(0))
    same(name, room.raw[:n], data)
    os.close(fd)


@way(2_000_000)
def position_shared_by_processes(name, data):
    fd = opened(name)
    first = os.read(fd, 700_000)
    if os.fork() == 0:
        os._exit(0 if os.read(fd, 600_000) == data[700_000:1_300_000] else 1)
    _, status = os.wait()
    same(name, first + bytes([status]) + os.read(fd, 700_000), data[:700_000] + b"\0" + data[1_300_000:])


@way(2_000_000)
def python_text(name, data):
    with open(path(name), "r", encoding="latin-1", newline="") as file:
        same(name, file.read().encode("latin-1"), data)


def fill_special():
    shutil.copy(os.path.realpath("/bin/true"), path("program-true"))
    shutil.copy(os.path.realpath("/bin/cat"), path("program-cat"))
    with open(path("script"), "w") as file:
        file.write(f"#!{HERE}/program-cat\n" + "body\n" * 100_000)
    os.chmod(path("script"), 0o755)
    with open(path("shell"), "w") as file:
        file.write("#!/bin/sh\n" + "# body\n" * 100_000 + "echo ran\n")
    os.chmod(path("shell"), 0o755)
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if ".so" in line}
    known = ("/libc.", "/ld-", "/libstoreshim", "/libpthread", "/libdl")
    shutil.copy(sorted(so for so in mapped if not any(name in so for name in known))[0], path("library.so"))
    with sqlite3.connect(path("db")) as db:
        db.execute("create table t (a integer primary key, b blob)")
        db.executemany("insert into t values (?, ?)", ((i, content(str(i), 3000)) for i in range(1000)))
    with open(path("sparse"), "wb") as file:
        file.truncate(16 << 20)
        for at in (1 << 20, 9 << 20):
            file.seek(at)
            file.write(b"d" * (1 << 20))
    os.makedirs(path("small"))
    for i in range(200):
        make(f"small/{i}", 37 * i)


def check_special():
    for _ in range(2):
        same("true", bytes([subprocess.run([path("program-true")]).returncode]), b"\0")
        out = subprocess.run([path("script")], stdout=subprocess.PIPE).stdout
        same("script", out, f"#!{HERE}/program-cat\n".encode() + b"body\n" * 100_000)
        same("shell", subprocess.run([path("shell")], stdout=subprocess.PIPE).stdout, b"ran\n")
        same("cat", subprocess.run([path("program-cat")], input=b"x", stdout=subprocess.PIPE).stdout, b"x")
    try:
        ctypes.CDLL(path("library.so"))
    except OSError as error:
        failed.append(f"library.so: {error}")
    fd = opened("sparse")
    seen = [os.lseek(fd, at, how) for at, how in
            ((0, os.SEEK_DATA), (1 << 20, os.SEEK_HOLE), (3 << 20, os.SEEK_DATA), (9 << 20, os.SEEK_HOLE))]
    same("sparse extents", seen, [1 << 20, 2 << 20, 9 << 20, 10 << 20])
    blocks = os.stat(path("sparse")).st_blocks
    same("sparse blocks", [2 << 11 <= blocks <= (2 << 11) + 64], [True])
    for at, byte in ((0, 0), (1 << 20, 100), ((9 << 20) + 5, 100), (11 << 20, 0)):
        same(f"sparse {at}", os.pread(fd, 1000, at), bytes([byte]) * 1000)
    same("sparse copy", subprocess.run(["sh", "-c", f"cp {path('sparse')} {path('made-sparse')} && cmp {path('sparse')} "
                                        f"{path('made-sparse')}"], stdout=subprocess.PIPE).stdout, b"")
    for i in range(200):
        same(f"small {i}", open(path(f"small/{i}"), "rb").read(), content(f"small/{i}", 37 * i))
    db = sqlite3.connect(path("db"))
    same("db check", db.execute("pragma integrity_check").fetchone()[0], "ok")
    same("db row", db.execute("select b from t where a = 777").fetchone()[0], content("777", 3000))
    with db:
        db.execute("update t set b = ? where a = 500", (b"changed",))


def after_special():
    db = sqlite3.connect(path("db"))
    same("db check after", db.execute("pragma integrity_check").fetchone()[0], "ok")
    same("db row after", db.execute("select b from t where a = 500").fetchone()[0], b"changed")


def main(what):
    for name, (size, check, more) in WAYS.items():
        data = content(name, size)
        if what == "fill":
            make(name, size)
        elif what == "check":
            try:
                check(name, data)
            except (OSError, subprocess.SubprocessError) as error:
                failed.append(name)
                print(f"{name}: {error}")
        else:
            wanted = more.get("changed", lambda d: d)(data)
            with open(path(name), "rb") as file:
                same(f"{name} afterwards", file.read(), wanted)
    {"fill": fill_special, "check": check_special, "after": after_special}[what]()
    print("all is right" if not failed else f"failed: {failed}")


main(sys.argv[1])
