/** Code in the Worker reads and writes a volume while its container sleeps; the next agent finds a sound volume. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import fc from "fast-check";
import * as keys from "../src/files/keys.js";
import * as records from "../src/files/records.js";
import { hex, type Operation, utf8 } from "../src/wire/index.js";
import { type Connection, connectWebSocket } from "./support/agent.js";
import { checkVolume, everything } from "./support/volume.js";
import { Runtime, TOKEN, until } from "./support/workerd.js";

let runtime: Runtime;
before(async () => {
  runtime = await Runtime.start();
});
after(async () => runtime.end());

async function opened(id: string): Promise<Connection> {
  const connection = await connectWebSocket(runtime.url(`/container/${id}/.storeshim/agent`, "ws"), TOKEN);
  await until("the Worker greets", () => connection.hello !== null);
  await connection.open(randomBytes(16));
  return connection;
}

/** Leaves, so that the files are the Worker's again. */
async function leave(agent: Connection): Promise<void> {
  await agent.request(0x15, new Uint8Array(0));
  agent.close();
}

const file = (id: string, path: string, init: RequestInit = {}) =>
  runtime.fetch(`/container/${id}/files/${path}`, init);

async function put(id: string, path: string, body: string | Buffer): Promise<Response> {
  const answer = await file(id, path, { method: "PUT", body });
  assert.equal(answer.status, 201, await answer.clone().text());
  return answer;
}

async function rpc(id: string, method: string, ...args: unknown[]): Promise<Response> {
  return await runtime.fetch(`/test/${id}/rpc`, { method: "POST", body: JSON.stringify({ method, args }) });
}

test("a file is written, read, listed and removed over HTTP", async () => {
  const id = "http";
  assert.equal((await file(id, "a.txt")).status, 404);
  assert.deepEqual(await (await file(id, "?list")).json(), { entries: [], next: null });
  const made = await put(id, "dir/sub/a.txt", "hello");
  assert.deepEqual(await made.json(), { size: 5 });
  const got = await file(id, "dir/sub/a.txt");
  assert.equal(await got.text(), "hello");
  assert.equal(got.headers.get("content-type"), "text/plain; charset=utf-8");
  assert.equal(got.headers.get("content-length"), "5");
  assert.equal(got.headers.get("etag"), made.headers.get("etag"));
  const head = await file(id, "dir/sub/a.txt", { method: "HEAD" });
  assert.deepEqual([head.status, head.headers.get("content-length"), await head.text()], [200, "5", ""]);
  const listed = (await (await file(id, "dir?list")).json()) as { entries: { name: string; type: string }[] };
  assert.deepEqual(
    listed.entries.map(({ name, type }) => [name, type]),
    [["sub", "directory"]],
  );
  for (const [path, method, status, code] of [
    ["dir", "GET", 409, "EISDIR"],
    ["dir/sub/a.txt/x", "GET", 409, "ENOTDIR"],
    ["dir/sub/a.txt?list", "GET", 409, "ENOTDIR"],
    ["dir", "PUT", 409, "EISDIR"],
    ["dir", "DELETE", 409, "EISDIR"],
    ["", "DELETE", 403, "EPERM"],
    ["none", "DELETE", 404, "ENOENT"],
    [`${"n".repeat(256)}`, "PUT", 400, "ENAMETOOLONG"],
    ["a/b%00", "PUT", 400, "EINVAL"],
    ["a%2f..%2fb", "PUT", 400, "EINVAL"],
    ["%ff", "GET", 400, "Refused"],
    ["dir?list&limit=0", "GET", 400, "Refused"],
    ["dir/sub/a.txt", "PATCH", 405, "Refused"],
  ] as const) {
    const answer = await file(id, path, { method });
    assert.equal(answer.status, status, `${method} ${path}`);
    assert.equal(((await answer.json()) as { code: string }).code, code, `${method} ${path}`);
  }
  assert.equal((await file(id, "dir/sub/a.txt", { method: "DELETE" })).status, 204);
  assert.equal((await file(id, "dir/sub/a.txt")).status, 404);
  assert.equal((await file(id, "dir?recursive", { method: "DELETE" })).status, 204);
  assert.deepEqual(await (await file(id, "?list")).json(), { entries: [], next: null });
});

test("ranges, conditions and content types", async () => {
  const id = "ranges";
  const body = randomBytes(300_000);
  const etag = (await put(id, "b.bin", body)).headers.get("etag") ?? "";
  for (const [range, from, to] of [
    ["bytes=0-0", 0, 1],
    ["bytes=100-199999", 100, 200_000],
    ["bytes=299999-", 299_999, 300_000],
    ["bytes=-7", 299_993, 300_000],
    ["bytes=5-999999999", 5, 300_000],
  ] as const) {
    const got = await file(id, "b.bin", { headers: { range } });
    assert.equal(got.status, 206);
    assert.equal(got.headers.get("content-range"), `bytes ${from}-${to - 1}/300000`);
    assert.ok(Buffer.from(await got.arrayBuffer()).equals(body.subarray(from, to)), range);
  }
  for (const range of ["bytes=300000-", "bytes=-0"]) {
    const got = await file(id, "b.bin", { headers: { range } });
    assert.deepEqual([got.status, got.headers.get("content-range")], [416, "bytes */300000"]);
  }
  for (const range of ["bytes=5-4", "lines=1-2", "bytes=0-1,4-5"]) {
    assert.equal((await file(id, "b.bin", { headers: { range } })).status, 200, "what is no single range is the whole");
  }
  assert.equal((await file(id, "b.bin", { headers: { "if-none-match": etag } })).status, 304);
  assert.equal((await file(id, "b.bin", { headers: { range: "bytes=0-1", "if-range": etag } })).status, 206);
  await put(id, "b.bin", body);
  assert.equal((await file(id, "b.bin", { headers: { "if-none-match": etag } })).status, 200, "a new version");
  assert.equal((await file(id, "b.bin", { headers: { range: "bytes=0-1", "if-range": etag } })).status, 200);
});

test("large files go into packs, and leave nothing behind when they are replaced", async () => {
  const id = "large";
  const body = randomBytes((20 << 20) + 12_345);
  await put(id, "large.bin", body);
  const count = async () =>
    (await (await runtime.fetch(`/test/${id}/count`)).json()) as { packs: number; rows: number };
  assert.ok((await count()).packs >= 3);
  const got = Buffer.from(await (await file(id, "large.bin")).arrayBuffer());
  assert.ok(got.equals(body));
  await put(id, "large.bin", "small");
  assert.deepEqual(await (await file(id, "large.bin")).text(), "small");
  const left = await count();
  assert.deepEqual([left.packs, left.rows], [0, 0]);
  const agent = await opened(id);
  assert.deepEqual(await checkVolume(agent), { inodes: 2, packs: 0, seq: 2 });
});

test("an agent's files are read: holes, links, chunks in packs and in records", async () => {
  const id = "agents";
  const agent = await opened(id);
  const { nameOf, rawFrames } = await import("../src/files/chunks.js");
  const [inline, packed] = [utf8("inline data"), new Uint8Array(randomBytes(5000))];
  const pack = randomBytes(16);
  await agent.putPack(pack, Buffer.concat([randomBytes(100), packed]));
  const inode = (mode: number, size: number, change: Partial<records.Inode> = {}) =>
    records.InodeRecord.encode({
      ...{ mode, uid: 1000, gid: 1000, rdev: 0, size, mtime: { secs: 1_700_000_000, nanos: 5 } },
      ...{ links: 1, target: new Uint8Array(0), xattrs: [], ...change },
    });
  const entry = (dir: number, name: string, child: number): Operation => [
    keys.dentryKey(dir, utf8(name)),
    records.encodeChild(child),
  ];
  const link = (target: string) => inode(0o120777, target.length, { target: utf8(target) });
  const chunk = (bytes: Uint8Array, location: records.Location, refs: number) =>
    records.ChunkRecord.encode({
      ...{ refs, len: bytes.length, storedLen: bytes.length, codec: "raw" },
      ...{ frames: rawFrames(bytes), location },
    });
  const size = (4 << 20) + 8192;
  const extents = [
    { start: 4096, len: 5000, chunk: nameOf(packed), chunkOffset: 0 },
    { start: 20_000, len: 4, chunk: nameOf(inline), chunkOffset: 7 },
  ];
  await agent.commit(1, [
    [keys.inodeKey(1), inode(0o040755, 0)],
    [keys.inodeKey(2), inode(0o100644, size, { links: 2 })],
    [keys.inodeKey(3), inode(0o040700, 0)],
    [keys.inodeKey(4), link("dir/../file")],
    [keys.inodeKey(5), link("/storage/dir/hard")],
    [keys.inodeKey(6), link("/etc/passwd")],
    [keys.inodeKey(7), link("loop")],
    [keys.inodeKey(8), inode(0o010600, 0)],
    entry(1, "file", 2),
    entry(1, "dir", 3),
    entry(3, "hard", 2),
    entry(1, "relative", 4),
    entry(3, "absolute", 5),
    entry(1, "outside", 6),
    entry(1, "loop", 7),
    entry(1, "pipe", 8),
    [keys.blockKey(2, 0), records.BlockRecord.encode(extents)],
    [keys.blockKey(2, 1), records.BlockRecord.encode([{ ...extents[1], start: 8188, len: 4 } as records.Extent])],
    [keys.chunkKey(nameOf(packed)), chunk(packed, { pack, offset: 100 }, 1)],
    [keys.chunkKey(nameOf(inline)), chunk(inline, { inline }, 2)],
    [keys.packKey(pack), records.PackRecord.encode({ size: 5100, live: 5000 })],
    [keys.HEAD, records.HeadRecord.encode({ seq: 11, nonce: 5n, cutAt: 6n })],
  ]);
  await checkVolume(agent);
  await leave(agent);
  const expected = Buffer.alloc(size);
  expected.set(packed, 4096);
  expected.set(utf8("data"), 20_000);
  expected.set(utf8("data"), size - 4);
  for (const path of ["file", "dir/hard", "relative", "dir/absolute"]) {
    assert.ok(Buffer.from(await (await file(id, path)).arrayBuffer()).equals(expected), path);
  }
  for (const [path, status] of [
    ["outside", 404],
    ["loop", 400],
    ["pipe", 400],
  ] as const) {
    assert.equal((await file(id, path)).status, status, path);
  }
  const stat = (await (await rpc(id, "stat", "/relative", { follow: false })).json()) as { type: string };
  assert.equal(stat.type, "symlink");
  // A write goes through the link; the other name sees it, and removing one name leaves the other.
  await put(id, "relative", "new");
  assert.equal(await (await file(id, "dir/hard")).text(), "new");
  await file(id, "file", { method: "DELETE" });
  assert.equal(await (await file(id, "dir/hard")).text(), "new");
  const next = await opened(id);
  assert.equal((await checkVolume(next)).seq, 13);
  const written = records.InodeRecord.decode(keys.inodeKey(2), (await next.get(keys.inodeKey(2))) ?? new Uint8Array(0));
  assert.deepEqual([written.uid, written.mode, written.links], [1000, 0o100644, 1], "owner and mode stay");
});

test("damage is named, not shown as zeros", async () => {
  const id = "damage";
  await put(id, "a", "hello");
  const agent = await opened(id);
  const all = await everything(agent);
  const chunk = [...all.values()].find(([key]) => key[0] === 0x63);
  assert.ok(chunk !== undefined);
  const record = records.ChunkRecord.decode(chunk[0], chunk[1]);
  const bad = { ...record, location: { inline: utf8("jello") } };
  await agent.commit(1, [[chunk[0], records.ChunkRecord.encode(bad)]]);
  await leave(agent);
  const wrong = await rpc(id, "readFile", "/a");
  assert.match(await wrong.text(), new RegExp(`${hex(chunk[0].subarray(1))}.*does not match its name`));
  const again = await opened(id);
  await again.commit(1, [[chunk[0], null]]);
  await leave(again);
  assert.match(await (await rpc(id, "readFile", "/a")).text(), /is used but not stored/);
});

test("what the agent's mount may grow to holds for the Worker, too", async () => {
  const id = "quota";
  const agent = await opened(id);
  await agent.commit(1, [[keys.QUOTA, records.QuotaRecord.encode({ bytes: 1000, inodes: 4 })]]);
  await leave(agent);
  await put(id, "a", "x".repeat(600));
  const refused = async (path: string, body: string | Buffer, said: RegExp) => {
    const answer = await file(id, path, { method: "PUT", body });
    assert.equal(answer.status, 507);
    const { error, code } = (await answer.json()) as { error: string; code: string };
    assert.equal(code, "EDQUOT");
    assert.match(error, said);
    assert.equal((await file(id, path, { method: "HEAD" })).status === 200, path === "a", "nothing of it is there");
  };
  await refused("b", "x".repeat(401), /1001 bytes.*1000.*quota_bytes/);
  await refused("large", randomBytes(9 << 20), /quota_bytes/);
  await refused("a", "x".repeat(1001), /quota_bytes/);
  await put(id, "b", "x".repeat(400));
  await put(id, "a", "x".repeat(600));
  await refused("d/c", "", /5 inodes.*4.*quota_inodes/);
  const again = await opened(id);
  assert.deepEqual((await checkVolume(again)).packs, 0);
  // A quota that is smaller than what is there lets nothing grow, and everything shrink.
  await again.commit(1, [[keys.QUOTA, records.QuotaRecord.encode({ bytes: 100, inodes: null })]]);
  await leave(again);
  await put(id, "a", "x".repeat(500));
  await refused("a", "x".repeat(501), /quota_bytes/);
  assert.equal((await file(id, "b", { method: "DELETE" })).status, 204);
});

test("random changes leave what a model says, and a sound volume", async () => {
  const names = fc.constantFrom("a", "b", "d/a", "d/e/f", "d/e/g");
  const data = fc.oneof(
    fc.tuple(fc.constantFrom(0, 1, 5000, 250_000), fc.nat(3)),
    fc.tuple(fc.constantFrom((4 << 20) + 1), fc.nat(1)),
  );
  const step = fc.oneof(
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("write" as const), name: names, data }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("patch" as const), name: names, data, at: fc.nat(6000) }) },
    {
      weight: 2,
      arbitrary: fc.record({ kind: fc.constant("unlink" as const), name: fc.oneof(names, fc.constant("d")) }),
    },
  );
  let runs = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), async (steps) => {
      runs += 1;
      const id = `model${runs}`;
      const model = new Map<string, Buffer>();
      for (const change of steps) {
        if (change.kind === "unlink") {
          const inside = [...model.keys()].filter((name) => name === change.name || name.startsWith(`${change.name}/`));
          const answer = await file(id, `${change.name}?recursive`, { method: "DELETE" });
          assert.ok(answer.status === 204 || inside.length === 0, await answer.text());
          for (const name of inside) {
            model.delete(name);
          }
          continue;
        }
        const [size, seed] = change.data;
        const bytes = Buffer.alloc(size, `content ${seed} `);
        if (change.kind === "write") {
          await put(id, change.name, bytes);
          model.set(change.name, bytes);
        } else {
          const text = bytes.toString().slice(0, 5000);
          const wrote = await rpc(id, "writeFile", change.name, text, { offset: change.at });
          assert.equal(wrote.status, 200, await wrote.text());
          const old = model.get(change.name) ?? Buffer.alloc(0);
          const grown = Buffer.alloc(Math.max(old.length, text.length === 0 ? old.length : change.at + text.length));
          grown.set(old);
          grown.set(utf8(text), change.at > grown.length ? 0 : change.at);
          model.set(change.name, grown);
        }
      }
      for (const [name, bytes] of model) {
        const got = Buffer.from(await (await file(id, name)).arrayBuffer());
        assert.ok(got.equals(bytes), `${name}: ${got.length} bytes, ${bytes.length} expected`);
      }
      const agent = await opened(id);
      await checkVolume(agent);
      agent.close();
    }),
    { numRuns: 10 },
  );
});

test("many small writes into one block stay few extents", async () => {
  const id = "fragments";
  await put(id, "f", Buffer.alloc(100_000));
  const expected = Buffer.alloc(100_000);
  for (let at = 0; at < 60; at++) {
    const wrote = await rpc(id, "writeFile", "f", `piece ${at}`, { offset: at * 1500 });
    assert.equal(wrote.status, 200, await wrote.text());
    expected.set(utf8(`piece ${at}`), at * 1500);
  }
  assert.ok(Buffer.from(await (await file(id, "f")).arrayBuffer()).equals(expected));
  const agent = await opened(id);
  await checkVolume(agent);
  const block = await agent.get(keys.blockKey(2, 0));
  assert.ok(records.BlockRecord.decode(utf8("b"), block ?? new Uint8Array(0)).length <= 49);
});

test("a directory of many entries is listed page by page", async () => {
  const id = "many";
  const agent = await opened(id);
  const inode = records.InodeRecord.encode({
    ...{ mode: 0o100644, uid: 0, gid: 0, rdev: 0, size: 0, mtime: { secs: 0, nanos: 0 } },
    ...{ links: 2500, target: new Uint8Array(0), xattrs: [] },
  });
  const names = Array.from({ length: 2500 }, (_, at) => `n${String(at).padStart(5, "0")}`);
  await agent.commit(1, [
    [keys.inodeKey(2), inode],
    ...names.map((name): Operation => [keys.dentryKey(1, utf8(name)), records.encodeChild(2)]),
  ]);
  await leave(agent);
  const listed: string[] = [];
  for (let next: string | null = ""; next !== null; ) {
    const page: Response = await file(id, `?list&limit=700&after=${next}`);
    const { entries, next: more } = (await page.json()) as { entries: { name: string }[]; next: string | null };
    listed.push(...entries.map(({ name }) => name));
    next = more;
  }
  assert.deepEqual(listed, names);
  assert.equal(((await (await rpc(id, "readdir", "/")).json()) as unknown[]).length, 2500);
});

test("two ids never see each other's files, whatever they are called", async () => {
  for (const id of ["one", "two", "..%3a", "a%20b", "%C3%A4"]) {
    await put(id, "same", `of ${id}`);
  }
  for (const id of ["one", "two", "..%3a", "a%20b", "%C3%A4"]) {
    assert.equal(await (await file(id, "same")).text(), `of ${id}`);
  }
  assert.equal((await file("x".repeat(257), "same")).status, 400);
  assert.equal((await runtime.fetch("/plain/one/files/same")).status, 404, "another class, another volume");
});

test("a write of the Worker fences an agent that had left without a word, and is there after a kill", async () => {
  const id = "takeover";
  const agent = await opened(id);
  await agent.commit(1, [[utf8("x"), utf8("1")]]);
  const { epoch } = agent;
  agent.close();
  await until("the Worker notices", async () => (await file(id, "a", { method: "PUT", body: "kept" })).status === 201);
  await runtime.kill();
  await runtime.run();
  assert.equal(await (await file(id, "a")).text(), "kept");
  const back = await connectWebSocket(runtime.url(`/container/${id}/.storeshim/agent`, "ws"), TOKEN);
  back.epoch = epoch;
  await assert.rejects(back.commit(2, [[utf8("x"), utf8("stale")]]), /taken over/);
  const next = await opened(id);
  const { inodes } = await checkVolume(next);
  assert.equal(inodes, 2);
});

test("writes at the same time are made one after another, and none is lost", async () => {
  const id = "parallel";
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, at) => file(id, `dir/${at % 7}/${at}`, { method: "PUT", body: `content ${at}` })),
  );
  assert.ok(answers.every((answer) => answer.status === 201));
  for (let at = 0; at < 20; at++) {
    assert.equal(await (await file(id, `dir/${at % 7}/${at}`)).text(), `content ${at}`);
  }
  const agent = await opened(id);
  const { inodes, seq } = await checkVolume(agent);
  assert.deepEqual([inodes, seq], [1 + 1 + 7 + 20, 20]);
});

test("an agent that opens the volume while a large file is written wins; nothing of the write is left", async () => {
  const id = "overtaken";
  await put(id, "small", "there");
  const writing = file(id, "large", { method: "PUT", body: randomBytes(12 << 20) });
  const agent = await opened(id);
  const answer = await writing;
  if (answer.status === 201) {
    // It was faster than the agent.
    assert.equal((await checkVolume(agent)).inodes, 3);
    return;
  }
  assert.equal(answer.status, 503, await answer.text());
  assert.equal((await checkVolume(agent)).inodes, 2);
  await agent.commit(1, [[utf8("x"), utf8("the agent goes on")]]);
});
