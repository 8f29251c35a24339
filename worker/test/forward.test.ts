/** While an agent is connected, code in the Worker and programs in the container see the same files; and the JSON protocol. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { createServer, type Socket } from "node:net";
import { after, before, test } from "node:test";
import * as wire from "../src/wire/index.js";
import { type Connection, Listener } from "./support/agent.js";
import { Runtime, until } from "./support/workerd.js";

const { Op, utf8 } = wire;
let runtime: Runtime;
before(async () => {
  runtime = await Runtime.start();
});
after(async () => {
  Listener.endAll();
  await runtime.end();
});

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString();
const file = (id: string, path: string, init: RequestInit = {}) =>
  runtime.fetch(`/container/${id}/files/${path}`, init);

/** Files in memory, shown as an agent shows a tree. */
class Tree {
  readonly files = new Map<string, Buffer>();
  private readonly parts = new Map<string, Buffer[]>();
  /** What was asked for. */
  readonly asked: number[] = [];
  /** Does not answer this many requests: the connection breaks instead. */
  breaks = 0;
  /** Called before a connection breaks. */
  ending: () => Promise<unknown> = async () => undefined;
  version = 1;

  private stat(name: string): wire.Stat {
    const found = this.files.get(name);
    const inside = [...this.files.keys()].some((other) => name === "" || other.startsWith(`${name}/`));
    if (found === undefined && !inside) {
      throw wire.fileError("ENOENT", `'/${name}' does not exist`);
    }
    const mode = found === undefined ? 0o040755 : 0o100644;
    const size = found?.length ?? 0;
    return { inode: 1, mode, uid: 0, gid: 0, links: 1, size, mtime: 0, version: this.version };
  }

  /** Serves a connection from now on. */
  serve(connection: Connection): void {
    connection.serve = async (op, body) => {
      this.asked.push(op);
      const answer = this.answer(op, body);
      if (this.breaks > 0) {
        this.breaks -= 1;
        await this.ending();
        connection.close();
        return new Uint8Array(0);
      }
      return answer;
    };
  }

  private answer(op: number, body: Uint8Array): Uint8Array {
    switch (op) {
      case Op.FileStat:
        return wire.FileStatAnswer.encode(this.stat(text(wire.FileStatRequest.decode(body).path)));
      case Op.FileRead: {
        const { path, offset, length } = wire.FileReadRequest.decode(body);
        const stat = this.stat(text(path));
        const bytes = this.files.get(text(path));
        if (bytes === undefined) {
          throw wire.fileError("EISDIR", `'/${text(path)}' is a directory`);
        }
        return wire.FileReadAnswer.encode({ stat, bytes: bytes.subarray(offset, offset + length) });
      }
      case Op.FileList: {
        const { path, after, max } = wire.FileListRequest.decode(body);
        assert.equal(text(path), "");
        const names = [...this.files.keys()].filter((name) => name > text(after)).sort();
        const entries = names.slice(0, max).map((name) => ({ name: utf8(name), stat: this.stat(name) }));
        return wire.FileListAnswer.encode({ more: names.length > max, entries });
      }
      case Op.FileWrite: {
        const { nonce, flags, path, bytes } = wire.FileWriteRequest.decode(body);
        const parts = this.parts.get(wire.hex(nonce)) ?? [];
        parts.push(Buffer.from(bytes));
        this.parts.set(wire.hex(nonce), parts);
        if ((flags & wire.WriteFlag.Last) !== 0) {
          this.files.set(text(path), Buffer.concat(parts));
          this.parts.delete(wire.hex(nonce));
          this.version += 1;
        }
        return wire.FileStatAnswer.encode(this.files.has(text(path)) ? this.stat(text(path)) : { ...this.stat("") });
      }
      case Op.FileUnlink: {
        const name = text(wire.FileUnlinkRequest.decode(body).path);
        this.stat(name);
        this.files.delete(name);
        return new Uint8Array(0);
      }
      default:
        throw new wire.StoreError(wire.ErrorCode.Refused, "unknown");
    }
  }
}

/** An agent that shows a tree, over as many connections as it takes. */
async function agentOf(id: string, tree: Tree): Promise<Listener> {
  const nonce = randomBytes(16);
  let epoch = 0;
  const listener = await Listener.start((connection) => {
    tree.serve(connection);
    connection.greet();
    void connection.open(nonce, epoch).then(
      (opened) => {
        epoch = opened.epoch;
      },
      () => undefined,
    );
  });
  await runtime.fetch(`/test/${id}/dial?port=${listener.port}`);
  await until("the agent holds the volume", () => epoch > 0);
  return listener;
}

test("reads, lists, writes and unlinks reach a connected agent", async () => {
  const tree = new Tree();
  tree.files.set("a", Buffer.from("of the container"));
  const listener = await agentOf("reach", tree);
  assert.equal(await (await file("reach", "a")).text(), "of the container");
  assert.equal((await file("reach", "a", { headers: { range: "bytes=3-5" } })).status, 206);
  assert.equal((await file("reach", "none")).status, 404);
  const large = randomBytes((5 << 20) + 77);
  const put = await file("reach", "large", { method: "PUT", body: large });
  assert.equal(put.status, 201, await put.clone().text());
  assert.equal(put.headers.get("etag"), '"2-1"');
  assert.ok(tree.files.get("large")?.equals(large));
  assert.ok(Buffer.from(await (await file("reach", "large")).arrayBuffer()).equals(large));
  await file("reach", "empty", { method: "PUT", body: "" });
  assert.equal(tree.files.get("empty")?.length, 0);
  tree.version = 0;
  assert.equal((await file("reach", "a", { method: "HEAD" })).headers.get("etag"), null, "may not be committed yet");
  const list = (await (await file("reach", "?list")).json()) as { entries: { name: string }[] };
  assert.deepEqual(
    list.entries.map(({ name }) => name),
    ["a", "empty", "large"],
  );
  assert.equal((await file("reach", "a", { method: "DELETE" })).status, 204);
  assert.ok(!tree.files.has("a"));
  await runtime.fetch("/test/reach/stop");
  listener.end();
});

test("a connection that breaks within an operation: it is done over the next one", async () => {
  const tree = new Tree();
  const listener = await agentOf("breaks", tree);
  for (const [what, init] of [
    ["PUT", { method: "PUT", body: "once" }],
    ["GET", {}],
    ["DELETE", { method: "DELETE" }],
  ] as const) {
    tree.breaks = 1;
    const answer = await file("breaks", "a", init);
    assert.ok(answer.ok, `${what}: ${await answer.text()}`);
    if (what !== "DELETE") {
      assert.equal(text(tree.files.get("a") ?? Buffer.alloc(0)), "once");
    }
  }
  assert.equal(tree.files.size, 0);
  await runtime.fetch("/test/breaks/stop");
  listener.end();
});

test("a read whose agent ends is answered by what was committed, without waiting for another agent", async () => {
  const tree = new Tree();
  tree.files.set("a", Buffer.from("never committed"));
  const listener = await agentOf("ends", tree);
  assert.equal(await (await file("ends", "a")).text(), "never committed");
  // Its container is killed while it is asked.
  tree.ending = () => runtime.fetch("/test/ends/stop");
  tree.breaks = 1;
  const began = Date.now();
  const answer = await file("ends", "a");
  assert.equal(answer.status, 404, await answer.text());
  assert.ok(Date.now() - began < 5_000, `after ${Date.now() - began} ms`);
  listener.end();
});

test("no more is asked at once than the agent takes", async () => {
  const tree = new Tree();
  tree.files.set("a", Buffer.from("x"));
  let [now, most] = [0, 0];
  const listener = await Listener.start((connection) => {
    tree.serve(connection);
    const serve = connection.serve;
    connection.serve = async (op, body) => {
      now += 1;
      most = Math.max(most, now);
      await new Promise((resolve) => setTimeout(resolve, 5));
      now -= 1;
      return await serve(op, body);
    };
    connection.greet({ maxRequests: 3 });
    void connection.open(randomBytes(16)).catch(() => undefined);
  });
  await runtime.fetch(`/test/turns/dial?port=${listener.port}`);
  await until("the agent is asked", async () => (await file("turns", "a", { method: "HEAD" })).ok);
  const answers = await Promise.all(Array.from({ length: 30 }, () => file("turns", "a")));
  assert.ok(answers.every((answer) => answer.ok));
  assert.equal(most, 3);
  await runtime.fetch("/test/turns/stop");
  listener.end();
});

test("a write waits for the agent of a container that is just starting", async () => {
  const tree = new Tree();
  const port = await new Promise<number>((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
  // Nobody listens yet: the container counts as running, its agent is not up.
  await runtime.fetch(`/test/starting/dial?port=${port}`);
  const written = file("starting", "a", { method: "PUT", body: "patient" });
  await new Promise((resolve) => setTimeout(resolve, 500));
  const nonce = randomBytes(16);
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    void import("./support/agent.js").then(({ Connection }) => {
      const connection = new Connection({ send: (bytes) => socket.write(bytes), close: () => socket.destroy() });
      tree.serve(connection);
      socket.on("data", (bytes) => connection.receive(bytes));
      socket.on("error", () => undefined);
      socket.on("close", () => connection.ended());
      connection.greet();
      void connection.open(nonce).catch(() => undefined);
    });
  }).listen(port, "127.0.0.1");
  assert.equal((await written).status, 201);
  assert.equal(text(tree.files.get("a") ?? Buffer.alloc(0)), "patient");
  await runtime.fetch("/test/starting/stop");
  server.close();
  for (const socket of sockets) {
    socket.destroy();
  }
});

/** A program that speaks only JSON: asks over whatever connection it gets. */
async function jsonProgram(speakFirst: boolean) {
  let give: (socket: Socket) => void = () => undefined;
  const connected = new Promise<Socket>((resolve) => {
    give = resolve;
  });
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    if (speakFirst) {
      socket.write(wire.encodeJson({ id: "first", operation: "readdir", path: "/storage" }));
    }
    let heard = Buffer.alloc(0);
    socket.on("data", (bytes: Buffer) => {
      heard = Buffer.concat([heard, bytes]);
      if (heard[0] === 0x53) {
        // To this program the binary greeting is a frame of a gigabyte.
        socket.destroy();
      } else if (heard.length > 0) {
        give(socket);
      }
    });
    if (!speakFirst) {
      // It waits a little before it asks for the first time.
      setTimeout(() => {
        if (!socket.destroyed) {
          socket.write(wire.encodeJson({ id: "first", operation: "readdir", path: "/storage" }));
        }
      }, 300);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  return { server, connected, port: typeof address === "object" && address !== null ? address.port : 0 };
}

for (const speakFirst of [true, false]) {
  test(`a program that speaks JSON ${speakFirst ? "at once" : "after a while"} has its files in the volume`, async () => {
    const id = `json-${speakFirst}`;
    await file(id, "before", { method: "PUT", body: "from the Worker" });
    const { server, connected, port } = await jsonProgram(speakFirst);
    await runtime.fetch(`/test/${id}/dial?port=${port}`);
    const socket = await connected;
    const answers = new Map<string | number, wire.JsonAnswer>();
    const decoder = new wire.JsonDecoder();
    socket.removeAllListeners("data");
    socket.on("data", (bytes) => {
      for (const answer of decoder.push(bytes) as Iterable<unknown>) {
        answers.set((answer as wire.JsonAnswer).id, answer as wire.JsonAnswer);
      }
    });
    const ask = async (request: Omit<wire.JsonRequest, "id">): Promise<wire.JsonAnswer> => {
      const id = answers.size + 100;
      socket.write(wire.encodeJson({ id, ...request }));
      await until("an answer", () => answers.has(id));
      return answers.get(id) as wire.JsonAnswer;
    };
    const read = await ask({ operation: "read", path: "/storage/before" });
    assert.equal(Buffer.from(read.data ?? "", "base64").toString(), "from the Worker");
    const data = Buffer.from("hello").toString("base64");
    assert.equal((await ask({ operation: "write", path: "/storage/dir/a", data })).bytesWritten, 5);
    assert.equal((await ask({ operation: "write", path: "dir/a", data, offset: 3 })).bytesWritten, 5);
    const part = await ask({ operation: "read", path: "/dir/a", offset: 2, size: 3 });
    assert.equal(Buffer.from(part.data ?? "", "base64").toString(), "lhe");
    assert.equal((await ask({ operation: "stat", path: "/storage/dir/a" })).stat?.size, 8);
    assert.deepEqual((await ask({ operation: "readdir", path: "/storage" })).files, ["before", "dir"]);
    assert.equal((await ask({ operation: "unlink", path: "/storage/before" })).success, true);
    assert.match((await ask({ operation: "read", path: "/storage/before" })).error ?? "", /^ENOENT/);
    assert.equal(await (await file(id, "dir/a")).text(), "helhello");
    const closed = new Promise((resolve) => socket.once("close", resolve));
    socket.write(Uint8Array.of(0x7f, 0xff, 0xff, 0xff));
    await closed;
    assert.match(answers.get("")?.error ?? "", /a JSON frame of 2147483647 bytes was announced/);
    await runtime.fetch(`/test/${id}/stop`);
    socket.destroy();
    server.close();
  });
}

test("a port that speaks neither is given up, again and again, without harm", async () => {
  let dialled = 0;
  const server = createServer((socket) => {
    dialled += 1;
    socket.on("error", () => undefined);
    socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await runtime.fetch(`/test/neither/dial?port=${typeof address === "object" && address !== null ? address.port : 0}`);
  await until("it is dialled again", () => dialled >= 3);
  await runtime.fetch("/test/neither/stop");
  server.close();
});
