"""Unix sockets with names below the first argument: bound, found, asked for their names; of both kinds, near and deep."""
import os
import socket
import stat
import sys

BASE = sys.argv[1]


def pair(path, kind):
    """A server at `path` and a client at `path` + c; every question about their names."""
    server, client = socket.socket(socket.AF_UNIX, kind), socket.socket(socket.AF_UNIX, kind)
    server.bind(path)
    client.bind(path + "c")
    assert server.getsockname() == path, server.getsockname()
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    if kind == socket.SOCK_STREAM:
        server.listen()
        client.connect(path)
        accepted, who = server.accept()
        assert who == path + "c", who
        assert (client.getpeername(), accepted.getpeername(), accepted.getsockname()) == (path, path + "c", path)
        accepted.sendall(b"x")
        assert client.recv(1) == b"x"
    else:
        client.sendto(b"to", path)
        data, who = server.recvfrom(10)
        assert (data, who) == (b"to", path + "c"), who
        server.sendto(b"back", who)
        assert client.recv(10) == b"back"
        client.sendmsg([b"message"], [], 0, path)
        data, _, _, who = server.recvmsg(10)
        assert (data, who) == (b"message", path + "c"), who
        client.connect(path)
        client.send(b"connected")
        assert server.recv(10) == b"connected"
    try:
        socket.socket(socket.AF_UNIX, kind).bind(path)
        raise SystemExit("a name was given twice")
    except OSError as error:
        assert error.errno == 98, error


for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    number = str(int(kind))
    os.chdir("/")
    pair(f"{BASE}/near{number}", kind)
    # As long as an address has room for; the tree's name for it is longer.
    folder = f"{BASE}/{'deep' * 7}"
    os.makedirs(folder, exist_ok=True)
    pair(folder + "/" + number * (96 - len(folder)), kind)
    os.chdir(folder)
    pair(f"relative{number}", kind)
    with_name = socket.socket(socket.AF_UNIX, kind)
    with_name.bind("\0abstract" + BASE + number)
    assert with_name.getsockname() == ("\0abstract" + BASE + number).encode()
    missing = socket.socket(socket.AF_UNIX, kind)
    assert missing.connect_ex(f"{BASE}/nobody") == 2
    assert missing.getsockname() == ""
    # The longest name there is can be used, whatever it is called when it is asked for.
    longest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = folder + "/" + number * (107 - len(folder) - 1)
    longest.bind(path)
    longest.listen()
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(path)
    assert path[len(folder) + 1:] in os.listdir(folder)
internet = socket.socket()
internet.bind(("127.0.0.1", 0))
assert internet.getsockname()[0] == "127.0.0.1"
print("done")
