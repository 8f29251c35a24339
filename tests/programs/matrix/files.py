"""What Python programs do with files below argv[1], by absolute paths."""
import ctypes, glob, mmap, os, pathlib, shutil, sqlite3, stat, subprocess, sys, tempfile, zipfile

root = sys.argv[1]
at = lambda name: os.path.join(root, name)

os.makedirs(at("py/a/b"))
with open(at("py/text"), "w") as f:
    f.write("one\n")
with open(at("py/text"), "a") as f:
    f.write("two\n")
with open(at("py/text"), "r+b", buffering=0) as f:
    f.seek(4)
    f.write(b"TWO")
print(open(at("py/text")).read().split())
fd = os.open(at("py/raw"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
os.pwrite(fd, b"x" * 5000, 100)
os.posix_fallocate(fd, 0, 8192)
os.ftruncate(fd, 6000)
os.fchmod(fd, 0o600)
with mmap.mmap(fd, 6000) as m:
    m[0:4] = b"maps"
    m.flush()
os.fsync(fd)
print(os.readlink(f"/proc/self/fd/{fd}"))
os.close(fd)
os.rename(at("py/raw"), at("py/a/renamed"))
os.replace(at("py/a/renamed"), at("py/a/b/raw"))
os.link(at("py/text"), at("py/hard"))
os.symlink("text", at("py/soft"))
os.symlink(at("py/a"), at("py/absolute"))
print(os.readlink(at("py/soft")), os.readlink(at("py/absolute")))
print(sorted(os.listdir(at("py/absolute/b"))), os.path.realpath(at("py/absolute/b/..")))
os.utime(at("py/text"), ns=(10**18, 10**18 + 5), follow_symlinks=True)
os.utime(at("py/soft"), (1, 1), follow_symlinks=False)
os.chmod(at("py/text"), 0o604)
os.chown(at("py/text"), -1, os.getgid())
info = os.stat(at("py/soft"))
os.truncate(at("py/hard"), 3)
print(info.st_size, oct(info.st_mode), info.st_nlink, info.st_mtime_ns, os.access(at("py/text"), os.W_OK))
os.setxattr(at("py/text"), "user.colour", b"blue")
print(os.getxattr(at("py/soft"), "user.colour"), os.listxattr(at("py/text")))
os.removexattr(at("py/text"), "user.colour")
os.mkfifo(at("py/pipe"))
print(stat.S_ISFIFO(os.lstat(at("py/pipe")).st_mode), os.statvfs(at("py")).f_namemax)
print(os.pathconf(at("py"), "PC_NAME_MAX"))
for folder, folders, files in os.walk(root):
    folders.sort()
    print(folder, sorted(files))
print(sorted(glob.glob(at("py/**"), recursive=True)))
print(sorted(str(p) for p in pathlib.Path(root).rglob("*")))
print(pathlib.Path(at("py/absolute/../text")).resolve(), pathlib.Path(at("py")).exists())
with os.scandir(at("py")) as entries:
    print(sorted((e.name, e.is_dir(), e.is_symlink()) for e in entries))
shutil.copytree(at("py/a"), at("py/copy"))
shutil.copy2(at("py/text"), at("py/copied"))
shutil.copyfile(at("py/a/b/raw"), at("py/copy/raw"))
shutil.move(at("py/copy"), at("py/moved"))
shutil.make_archive(at("archive"), "zip", at("py/a"))
print(zipfile.ZipFile(at("archive.zip")).namelist())
with tempfile.NamedTemporaryFile(dir=root) as f, tempfile.TemporaryDirectory(dir=root) as folder:
    f.write(b"temporary")
    print(os.path.dirname(f.name), os.path.dirname(folder))
with tempfile.TemporaryFile(dir=root) as f:
    f.write(b"no name")
db = sqlite3.connect(at("db"))
db.execute("pragma journal_mode=wal").fetchall()
db.execute("create table t (v)")
db.executemany("insert into t values (?)", ((i,) for i in range(1000)))
db.commit()
print(db.execute("select sum(v) from t").fetchone())
db.close()
os.chdir(at("py/a"))
print(os.getcwd(), os.path.abspath("b"), open("../text").read())
folder = os.open("b", os.O_RDONLY | os.O_DIRECTORY)
os.mkdir("below", dir_fd=folder)
os.unlink("raw", dir_fd=folder)
os.rmdir(at("py/a/b/below"))
os.fchdir(folder)
print(os.getcwd())
with open(at("py/script"), "w") as f:
    f.write("#!/bin/sh\necho \"script $0 $1\"; pwd\n")
os.chmod(at("py/script"), 0o755)
print(subprocess.run([at("py/script"), "x"], cwd=at("py"), capture_output=True, text=True, check=True).stdout)
print(subprocess.run(["cat", at("py/text")], capture_output=True, text=True, env={}).stdout)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.access(at("py/text").encode(), 4), libc.access(at("py/none").encode(), 4), ctypes.get_errno())
for attempt in (
    lambda: open(at("none")),
    lambda: os.mkdir(at("py")),
    lambda: os.rmdir(at("py")),
    lambda: os.mkdir(root),
    lambda: os.unlink(at("py")),
    lambda: os.rename(at("py"), at("py/a/inside")),
    lambda: os.open(at("py/text/below"), os.O_RDONLY),
):
    try:
        attempt()
    except OSError as error:
        print(error)
shutil.rmtree(at("py/moved"))
print(sorted(os.listdir(root)))
