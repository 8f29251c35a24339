/** Large packs in R2: content-addressed, made only where absent, collected when nothing refers to them. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import { Miniflare } from "miniflare";
import { type Connection, connectWebSocket } from "./support/agent.js";
import { bundle, TOKEN, until } from "./support/workerd.js";

let miniflare: Miniflare;
let url: URL;
before(async () => {
  miniflare = new Miniflare({
    modules: [{ type: "ESModule", path: "worker.js", contents: await bundle() }],
    compatibilityDate: "2026-04-01",
    durableObjects: {
      DIALED: { className: "DialedVolume", useSQLite: true },
      PLAIN: { className: "StorageObject", useSQLite: true },
    },
    r2Buckets: { STORESHIM_BUCKET: "bucket" },
    bindings: { STORESHIM_TOKEN: TOKEN },
  });
  url = await miniflare.ready;
});
after(async () => miniflare.dispose());

async function opened(id: string): Promise<Connection> {
  const connection = await connectWebSocket(
    new URL(`/container/${id}/.storeshim/agent`, url).href.replace("http", "ws"),
    TOKEN,
  );
  await until("the Worker greets", () => connection.hello !== null);
  await connection.open(randomBytes(16));
  return connection;
}

async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const send = () => fetch(new URL(path, url), { ...init, headers: { authorization: `Bearer ${TOKEN}` } });
  // A connection that was idle for some seconds may be closed by the server while it is used again.
  return await send().catch(send);
}

async function objects(): Promise<string[]> {
  const bucket = await miniflare.getR2Bucket("STORESHIM_BUCKET");
  return (await bucket.list()).objects.map((object) => object.key);
}

test("a large pack is an object that its content names; a small one stays in rows", async () => {
  const agent = await opened("one");
  const [large, small] = [randomBytes(3 << 20), randomBytes(1000)];
  const [a, b] = [randomBytes(16), randomBytes(16)];
  await agent.putPack(a, large);
  await agent.putPack(a, large);
  await agent.putPack(b, small);
  const stored = await objects();
  assert.equal(stored.length, 1);
  assert.ok(stored[0]?.endsWith(`${a.toString("hex")}-${createHash("sha256").update(large).digest("hex")}`));
  assert.ok(Buffer.from(await agent.getPack(a, 1 << 20, 2 << 20)).equals(large.subarray(1 << 20, 2 << 20)));
  assert.ok(Buffer.from(await agent.getPack(b, 0, 1000)).equals(small));
  await assert.rejects(agent.getPack(a, 0, (3 << 20) + 1), /truncated/);
  // Other bytes under the same name: the old object goes, the new one is there.
  const other = randomBytes(2 << 20);
  await agent.putPack(a, other);
  await ask("/test/one/collect");
  assert.equal((await objects()).length, 1);
  assert.ok(Buffer.from(await agent.getPack(a, 0, other.length)).equals(other));
  await agent.deletePack(a);
  await assert.rejects(agent.getPack(a, 0, 1), /is not in the Durable Object/);
  await ask("/test/one/collect");
  assert.deepEqual(await objects(), []);
});

test("an object that was lost is missed, not shown as zeros", async () => {
  const agent = await opened("lost");
  const id = randomBytes(16);
  await agent.putPack(id, randomBytes(1 << 20));
  const bucket = await miniflare.getR2Bucket("STORESHIM_BUCKET");
  await bucket.delete(await objects());
  await assert.rejects(agent.getPack(id, 0, 10), /is not in the R2 bucket/);
});

test("an object that lies there already is taken over, and an orphan is collected in a later epoch", async () => {
  const agent = await opened("two");
  const [id, bytes] = [randomBytes(16), randomBytes(1 << 20)];
  await agent.putPack(id, bytes);
  const next = await opened("two");
  await ask("/test/two/collect");
  assert.deepEqual(await objects(), []);
  await next.putPack(id, bytes);
  await next.deletePack(id);
  // Deleted, but its object is still there: storing it again must not lose it to the collection.
  await next.putPack(id, bytes);
  await ask("/test/two/collect");
  assert.ok(Buffer.from(await next.getPack(id, 0, bytes.length)).equals(bytes));
  await next.deletePack(id);
  await ask("/test/two/collect");
});

test("the Worker's own large files go to R2 and come back", async () => {
  const body = randomBytes(9 << 20);
  const path = "/container/files/files/large.bin";
  assert.equal((await ask(path, { method: "PUT", body })).status, 201);
  assert.ok((await objects()).length >= 2);
  assert.ok(Buffer.from(await (await ask(path)).arrayBuffer()).equals(body));
  assert.equal((await ask(path, { method: "DELETE" })).status, 204);
  await ask("/test/files/collect");
  assert.deepEqual(await objects(), []);
});
