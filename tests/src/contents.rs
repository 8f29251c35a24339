//! Files whose bytes follow from their names, for Python in a tree: made by `make`, and judged by `right`. It must not know
//! how they are kept.

/// What a Python program begins with: `content(name, size)` are bytes that do not compress and are another file's for another
/// name; `make(name, size)` writes them, `right(name, size)` compares the file with them, and `same(name, data, wanted)`
/// anything else.
pub const CONTENTS: &str = "
import hashlib, mmap, os, random, sys
def content(name, size):
    return random.Random(name).randbytes(size)
def make(name, size):
    os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
    with open(name, 'wb') as f:
        f.write(content(name, size))
def same(name, data, wanted):
    first = next((i for i, (a, b) in enumerate(zip(data, wanted)) if a != b), None)
    assert data == wanted, (name, len(data), data.count(0), first)
def right(name, size):
    with open(name, 'rb') as f:
        same(name, f.read(), content(name, size))
";
