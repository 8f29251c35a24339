/** Commits in parts, on the real runtime: all or nothing, in order, over kills, and who is fenced leaves nothing. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import { ErrorCode, type Operation, StoreError, utf8 } from "../src/wire/index.js";
import { type Connection, connectWebSocket } from "./support/agent.js";
import { Runtime, TOKEN, until } from "./support/workerd.js";

let runtime: Runtime;
before(async () => {
  runtime = await Runtime.start();
});
after(async () => {
  await runtime.end();
});

async function attach(id: string): Promise<Connection> {
  const connection = await connectWebSocket(runtime.url(`/container/${id}/.storeshim/agent`, "ws"), TOKEN);
  await until("the Worker greets", () => connection.hello !== null);
  return connection;
}

const put = (key: string, value: string | Uint8Array): Operation => [
  utf8(key),
  typeof value === "string" ? utf8(value) : value,
];

async function pairs(agent: Connection): Promise<Map<string, string>> {
  const all = await agent.scan(new Uint8Array(0));
  return new Map(all.map(([key, value]) => [Buffer.from(key).toString(), Buffer.from(value).toString("latin1")]));
}

async function unavailable(promise: Promise<unknown>): Promise<void> {
  await assert.rejects(promise, (thrown) => thrown instanceof StoreError && thrown.code === ErrorCode.Unavailable);
}

async function rows(id: string): Promise<number> {
  return ((await (await runtime.fetch(`/test/${id}/count`)).json()) as { rows: number }).rows;
}

test("parts are one commit: nobody sees one before, and all replace and delete as one", async () => {
  const agent = await attach("whole");
  await agent.open(randomBytes(16));
  const large = new Uint8Array(3 << 20).fill(7);
  await agent.commit(1, [put("a", "old"), put("gone", large), put("large", large), put("stays", "1")]);
  const nonce = randomBytes(16);
  await agent.stage(2, nonce, 0, [put("a", "new"), [utf8("gone"), null]]);
  await agent.stage(2, nonce, 1, [put("large", large.subarray(0, 5000)), put("b", ""), [utf8("never"), null]]);
  // Sent again, as over a new connection: it changes nothing.
  await agent.stage(2, nonce, 0, [put("a", "another"), put("extra", "x")]);
  assert.deepEqual([...(await pairs(agent)).keys()], ["a", "gone", "large", "stays", "v"]);
  await unavailable(agent.commitStaged(2, nonce, 3));
  await unavailable(agent.commitStaged(2, randomBytes(16), 2));
  assert.equal(await agent.commitStaged(2, nonce, 2), 2);
  const held = await pairs(agent);
  assert.deepEqual([...held.keys()], ["a", "b", "large", "stays", "v"]);
  assert.deepEqual([held.get("a"), held.get("b"), held.get("large")?.length], ["new", "", 5000]);
  assert.equal(await rows("whole"), 1, "rows of what was replaced and deleted have gone");
  // Answered as the first time, and its parts as well.
  await agent.stage(2, nonce, 0, [put("a", "late")]);
  assert.equal(await agent.commitStaged(2, nonce, 2), 2);
  assert.equal(await agent.commit(3, [put("c", "3")]), 3);
  assert.equal((await pairs(agent)).get("a"), "new");
});

test("parts come in order, for the next commit only", async () => {
  const agent = await attach("order");
  await agent.open(randomBytes(16));
  const nonce = randomBytes(16);
  await unavailable(agent.stage(2, nonce, 0, [put("a", "1")]));
  await unavailable(agent.stage(1, nonce, 1, [put("a", "1")]));
  await agent.stage(1, nonce, 0, [put("a", "1")]);
  // Another commit of this number takes the place of what was staged.
  const other = randomBytes(16);
  await agent.stage(1, other, 0, [put("b", new Uint8Array(2000))]);
  await unavailable(agent.commitStaged(1, nonce, 1));
  await agent.stage(1, nonce, 0, [put("a", "2")]);
  await agent.commitStaged(1, nonce, 1);
  assert.deepEqual([...(await pairs(agent)).keys()], ["a", "v"]);
  assert.equal(await rows("order"), 0);
});

test("parts outlive a kill, and go with their epoch", async () => {
  const [mine, nonce] = [randomBytes(16), randomBytes(16)];
  const first = await attach("kill");
  const { epoch } = await first.open(mine);
  await first.stage(1, nonce, 0, [put("a", new Uint8Array(5000))]);
  await runtime.kill();
  await runtime.run();
  const again = await attach("kill");
  await again.open(mine, epoch);
  await again.stage(1, nonce, 1, [put("b", "2")]);
  assert.equal(await again.commitStaged(1, nonce, 2), 1);
  await again.stage(2, nonce, 0, [put("c", new Uint8Array(5000))]);
  assert.equal(await rows("kill"), 2);
  const next = await attach("kill");
  await next.open(randomBytes(16));
  assert.equal(await rows("kill"), 1);
  await assert.rejects(again.commitStaged(2, nonce, 1));
  assert.deepEqual([...(await pairs(next)).keys()], ["a", "b", "v"]);
});

test("a million operations are one commit", { timeout: 180_000 }, async () => {
  const agent = await attach("million");
  await agent.open(randomBytes(16));
  const [nonce, value, parts] = [randomBytes(16), randomBytes(60), 25];
  for (let part = 0; part < parts; part++) {
    const ops = Array.from({ length: 40_000 }, (_, at): Operation => [utf8(`i${part}-${at}`), value]);
    await agent.stage(1, nonce, part, ops);
  }
  await agent.commitStaged(1, nonce, parts);
  assert.deepEqual(await agent.get("i24-39999"), new Uint8Array(value));
  assert.equal(await agent.commit(2, [put("on", "and on")]), 2);
});
