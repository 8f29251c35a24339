"""Makes one of everything a tree can hold, in the current directory."""
import errno
import os
import socket
import stat

def write(name, data, mode=None):
    with open(name, "wb") as f:
        f.write(data)
    if mode is not None:
        os.chmod(name, mode)

# Modes, also those that forbid their owner.
os.mkdir("modes")
for mode in (0o000, 0o400, 0o644, 0o755, 0o1755, 0o2755, 0o4755, 0o7777, 0o222, 0o111):
    write(f"modes/file-{mode:04o}", b"%o" % mode, mode)
    os.mkdir(f"modes/dir-{mode:04o}")
    write(f"modes/dir-{mode:04o}/inside", b"x")
    os.chmod(f"modes/dir-{mode:04o}", mode)

# Times to the nanosecond, before 1970 and after 2038.
os.mkdir("times")
for ns in (1, 123456789, 999999999, 10**18 + 1, 2**31 * 10**9 + 7, -10**9 - 1):
    write(f"times/{ns}", b"t")
    os.utime(f"times/{ns}", ns=(ns, ns))
os.symlink("nowhere", "times/link")
os.utime("times/link", ns=(5, 5), follow_symlinks=False)

# Links.
os.mkdir("links")
write("links/one", b"shared")
os.link("links/one", "links/two")
os.mkdir("links/deep")
os.link("links/one", "links/deep/three")
os.symlink("one", "links/relative")
os.symlink("/etc/passwd", "links/absolute")
os.symlink("../links/../links/one", "links/dots")
os.symlink("dangling", "links/dangling")
os.symlink("loop", "links/loop")
os.symlink("x" * 2000, "links/long")
os.symlink(b"\xff\xfe", b"links/\xfd")
os.link("links/relative", "links/relative-too", follow_symlinks=False)

# Names.
os.mkdir("names")
for name in (b" ", b"new\nline", b"tab\there", b"\xff\xfe not utf-8", "grüße-日本".encode(), b"n" * 255,
             b"-rf", b"*", b"'\"`$(x)", b"..a", b"...", b"\\", b"\x01", b"\x7f"):
    write(b"names/" + name, name)
os.mkdir(b"names/dir \xff")
write(b"names/dir \xff/\n", b"deep")

# A long path.
deep = "/".join(f"{level:02}" + "d" * 120 for level in range(20))
os.makedirs(f"deep/{deep}")
write(f"deep/{deep}/bottom", b"found")

# Contents.
os.mkdir("contents")
write("contents/empty", b"")
write("contents/byte", b"x")
write("contents/random", os.urandom(300_001))
write("contents/zeros", bytes(200_000))
write("contents/repeated", b"storeshim" * 500_000)
with open("contents/sparse", "wb") as f:
    f.truncate(64 << 20)
    f.seek(10 << 20)
    f.write(b"island")
with open("contents/sparse-end", "wb") as f:
    f.seek(20_000_000)
    f.write(b"end")
with open("contents/all-hole", "wb") as f:
    f.truncate(7_654_321)
with open("contents/punched", "wb") as f:
    f.write(os.urandom(8 << 20))
    f.truncate(1 << 20)
    f.truncate(5 << 20)

# Directories of their own kinds.
os.mkdir("empty")
os.makedirs("nested/only/directories")
os.mkdir("many")
for i in range(500):
    write(f"many/{i}", b"%d" % i)

# Special files.
os.mkfifo("fifo", 0o640)
s = socket.socket(socket.AF_UNIX)
try:
    s.bind("socket")
except OSError as error:
    raise SystemExit(f"bind: {error}")
s.close()

# Attributes.
write("attributes", b"a")
for name, value in ((b"user.plain", b"value"), (b"user.binary", bytes(range(256))), (b"user.empty", b"")):
    try:
        os.setxattr("attributes", name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
os.mkdir("attributes.d")
try:
    os.setxattr("attributes.d", b"user.dir", b"on a directory")
except OSError as error:
    if error.errno != errno.ENOTSUP:
        raise

# Renamed and replaced, so that only the last state may survive.
write("victim", b"old")
write("winner", b"new")
os.rename("winner", "victim")
os.mkdir("from")
write("from/child", b"moved")
os.rename("from", "to")
write("cut", b"0123456789")
os.truncate("cut", 4)

# Open and unlinked: must not come back.
f = open("ghost", "wb+")
f.write(b"boo")
f.flush()
os.unlink("ghost")
f.seek(0)
assert f.read() == b"boo"
assert not os.path.exists("ghost")
assert stat.S_ISFIFO(os.stat("fifo").st_mode)
