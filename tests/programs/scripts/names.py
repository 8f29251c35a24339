"""Names that come and go, checked against a model: names.py make|work|verify MODEL TREE NUMBER SEED SECONDS.

Each number has a tree of its own below TREE, and a model of it in MODEL: what every path holds, None for a directory.
"""

import errno
import json
import os
import random
import sys
import time

what, models, tree, number, seed, seconds = sys.argv[1:]
chance = random.Random(f"{seed} {number}")
root = f"{tree}/{number}"
place = f"{models}/{number}"


def fail(why):
    sys.exit(f"names.py {number}, seed {seed}: {why}")


def save(model):
    with open(place + ".new", "w") as file:
        json.dump(model, file)
    os.rename(place + ".new", place)


def load():
    with open(place) as file:
        return json.load(file)


def write(path, data):
    with open(root + path, "x") as file:
        file.write(data)


def read(path):
    with open(root + path) as file:
        return file.read()


def verify(model):
    """All that there is, and nothing else."""
    found = {"": None}
    for directory, dirs, files in os.walk(root, onerror=fail):
        below = directory[len(root):]
        found.update({f"{below}/{name}": None for name in dirs})
        found.update({f"{below}/{name}": read(f"{below}/{name}") for name in files})
    lost, more = sorted(model.keys() - found.keys()), sorted(found.keys() - model.keys())
    other = [path for path in model.keys() & found.keys() if model[path] != found[path]]
    if lost or more or other:
        fail(f"lost {lost[:20]}, not to be there {more[:20]}, other {other[:20]}")


def make():
    model = {"": None}
    os.mkdir(root)
    for i in range(150):
        path = ""
        for name in (f"d{i % 7}", f"e{i}", "f", "g"):
            path += f"/{name}"
            if path not in model:
                os.mkdir(root + path)
                model[path] = None
        for name in "ab":
            model[f"{path}/{name}"] = f"{i} {name}"
            write(f"{path}/{name}", model[f"{path}/{name}"])
    return model


class Work:
    def __init__(self, model):
        self.model = model
        self.serial = 0
        self.prefix = f"{int(time.time())}"

    def dirs(self):
        return [path for path, data in self.model.items() if data is None]

    def files(self):
        return [path for path, data in self.model.items() if data is not None]

    def below(self, path):
        return [other for other in self.model if other.startswith(path + "/")]

    def fresh(self, directory):
        self.serial += 1
        return f"{directory}/{self.prefix}.{self.serial}"

    def moved(self, old, new):
        for path in [old, *self.below(old)]:
            self.model[new + path[len(old):]] = self.model.pop(path)

    def refused(self, number, call, *arguments):
        try:
            call(*arguments)
        except OSError as error:
            if error.errno == number:
                return
            raise
        fail(f"{call.__name__}{arguments} was to be {errno.errorcode[number]}")

    def mkdir(self):
        path = self.fresh(chance.choice(self.dirs()))
        os.mkdir(root + path)
        self.model[path] = None

    def create(self):
        path = self.fresh(chance.choice(self.dirs()))
        write(path, path)
        self.model[path] = path

    def churn(self):
        """What is gone at once: its numbers are given out again."""
        directory = chance.choice(self.dirs())
        names = [self.fresh(directory) for _ in range(chance.randrange(1, 8))]
        for name in names:
            os.mkdir(root + name)
            write(name + "/x", "x")
        time.sleep(chance.random() * 0.03)
        for name in names:
            os.unlink(root + name + "/x")
            os.rmdir(root + name)

    def unlink(self):
        if files := self.files():
            path = chance.choice(files)
            os.unlink(root + path)
            del self.model[path]

    def rmdir(self):
        path = chance.choice(self.dirs())
        if self.below(path):
            self.refused(errno.ENOTEMPTY, os.rmdir, root + path)
        elif path:
            os.rmdir(root + path)
            del self.model[path]

    def rename(self):
        old = chance.choice(list(self.model))
        into = chance.choice(self.dirs())
        if old and into != old and not into.startswith(old + "/"):
            new = self.fresh(into)
            os.rename(root + old, root + new)
            self.moved(old, new)

    def replace(self):
        files = self.files()
        if len(files) > 1:
            old, new = chance.sample(files, 2)
            if self.model[old] == self.model[new]:
                return  # Two names of one file: rename(2) does nothing then.
            os.rename(root + old, root + new)
            self.model[new] = self.model.pop(old)

    def again(self):
        """The name of what is there already."""
        path = chance.choice(list(self.model))
        self.refused(errno.EEXIST, os.mkdir, root + path)

    def link(self):
        if files := self.files():
            old, new = chance.choice(files), self.fresh(chance.choice(self.dirs()))
            os.link(root + old, root + new)
            self.model[new] = self.model[old]

    def list(self):
        path = chance.choice(self.dirs())
        names = {other[len(path) + 1:] for other in self.below(path) if "/" not in other[len(path) + 1:]}
        found = set(os.listdir(root + path))
        if names != found:
            fail(f"{path}: lost {sorted(names - found)}, not to be there {sorted(found - names)}")

    def look(self):
        path = chance.choice(list(self.model))
        if self.model[path] is not None and read(path) != self.model[path]:
            fail(f"{path} holds {read(path)!r}, not {self.model[path]!r}")
        self.refused(errno.ENOENT, os.stat, root + self.fresh(chance.choice(self.dirs())))


def work(model):
    worker = Work(model)
    calls = [worker.mkdir, worker.create, worker.create, worker.unlink, worker.unlink, worker.rmdir, worker.rename,
             worker.replace, worker.again, worker.link, worker.list, worker.list, worker.look, worker.churn]
    end = time.time() + float(seconds)
    done = 0
    while time.time() < end:
        chance.choice(calls)()
        done += 1
    print(done)


match what:
    case "make":
        save(make())
    case "work":
        model = load()
        work(model)
        save(model)
    case "verify":
        verify(load())
