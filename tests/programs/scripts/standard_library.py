"""json, shutil, tempfile, mmap, sqlite3 and multiprocessing, in the current directory."""
import fcntl
import glob
import json
import mmap
import multiprocessing
import os
import pathlib
import shutil
import sqlite3
import tempfile
import zipfile

def count(where, times):
    for _ in range(times):
        with open(os.path.join(where, "counter"), "r+") as f:
            fcntl.lockf(f, fcntl.LOCK_EX)
            n = int(f.read() or 0)
            f.seek(0)
            f.truncate()
            f.write(str(n + 1))
            f.flush()
        draft = os.path.join(where, f"draft.{os.getpid()}")
        with open(draft, "w") as f:
            f.write("x" * 1000)
        os.replace(draft, os.path.join(where, "latest"))

def main():
    root = os.getcwd()
    with open("data.json", "w") as f:
        json.dump({"numbers": list(range(10000)), "text": "äöü\n"}, f, indent=1)
    with open("data.json") as f:
        assert json.load(f)["numbers"][9999] == 9999
    os.makedirs("tree/a/b/c")
    for i in range(50):
        pathlib.Path(f"tree/a/b/{i}.txt").write_text(str(i))
    shutil.copytree("tree", "copy", symlinks=True)
    shutil.move("copy/a/b", "moved")
    shutil.rmtree("copy")
    shutil.make_archive("archive", "gztar", "tree")
    shutil.unpack_archive("archive.tar.gz", "unpacked")
    assert len(glob.glob("unpacked/a/b/*.txt")) == 50
    with zipfile.ZipFile("z.zip", "w") as z:
        z.write("data.json")
    with tempfile.NamedTemporaryFile(dir=".", delete=False) as f:
        f.write(b"kept")
    os.rename(f.name, "named")
    with tempfile.TemporaryFile(dir=".") as f:
        f.write(b"gone")
    with tempfile.TemporaryDirectory(dir=".") as d:
        pathlib.Path(d, "x").touch()
    with open("mapped", "wb+") as f:
        f.truncate(1 << 20)
        with mmap.mmap(f.fileno(), 0) as m:
            m[:5] = b"start"
            m[500_000:500_006] = b"middle"
            m[-3:] = b"end"
            m.flush()
            m[100:104] = b"late"
    with sqlite3.connect("python.db") as db:
        db.execute("create table t (n integer)")
        db.executemany("insert into t values (?)", ((n,) for n in range(1000)))
    db.close()
    assert os.path.realpath("tree/a/../a") == os.path.join(root, "tree/a"), os.path.realpath("tree/a/../a")
    assert os.getcwd() == root

    open("counter", "w").close()
    workers = [multiprocessing.Process(target=count, args=(root, 50)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert open("counter").read() == "200", open("counter").read()
    with multiprocessing.Pool(3) as pool:
        assert sum(pool.map(len, [str(n) for n in range(100)])) == 190
    os.sync()

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
