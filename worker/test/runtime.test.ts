/** The sequencer and the packs over the real runtime: order, atomicity, fencing, retries, limits, a killed workerd. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import * as wire from "../src/wire/index.js";
import { ErrorCode, type Operation, StoreError, utf8 } from "../src/wire/index.js";
import { type Connection, connectWebSocket, Listener } from "./support/agent.js";
import { Runtime, TOKEN, until } from "./support/workerd.js";

let runtime: Runtime;
before(async () => {
  runtime = await Runtime.start();
});
after(async () => {
  Listener.endAll();
  await runtime.end();
});

let ids = 0;
/** An id that no other test uses. */
function fresh(): string {
  ids += 1;
  return `id ${ids}`;
}

async function attach(id: string): Promise<Connection> {
  const url = runtime.url(`/container/${encodeURIComponent(id)}/.storeshim/agent`, "ws");
  const connection = await connectWebSocket(url, TOKEN);
  await until("the Worker greets", () => connection.hello !== null);
  return connection;
}

async function opened(id: string): Promise<Connection> {
  const connection = await attach(id);
  await connection.open(randomBytes(16));
  return connection;
}

const op = (key: string, value: string | Uint8Array | null): Operation => [
  utf8(key),
  typeof value === "string" ? utf8(value) : value,
];

async function all(
  connection: Connection,
  prefix: Uint8Array = new Uint8Array(0),
  maxPairs = 1000,
): Promise<Map<string, string>> {
  const pairs = await connection.scan(prefix, maxPairs);
  return new Map(
    pairs.map(([key, value]) => [Buffer.from(key).toString("latin1"), Buffer.from(value).toString("latin1")]),
  );
}

async function fails(code: ErrorCode, promise: Promise<unknown>): Promise<StoreError> {
  const error = await promise.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof StoreError, `an error of the store, not ${String(error)}`);
  assert.equal(error.code, code, `${error.kind}: ${error.message}`);
  return error;
}

test("a new volume holds its format only, and the same one is opened again", async () => {
  const id = fresh();
  const first = await opened(id);
  const pairs = await all(first);
  assert.deepEqual([...pairs.keys()], ["v"]);
  const again = await opened(id);
  assert.deepEqual(await all(again), pairs);
  assert.deepEqual([...(await all(await opened(fresh()))).keys()], ["v"]);
});

test("commits in flight at once become durable in order, and survive a kill", async () => {
  const id = fresh();
  const agent = await opened(id);
  const answers = Array.from({ length: 50 }, (_, at) => agent.commit(at + 1, [op("last", `${at}`), op(`i${at}`, "x")]));
  assert.deepEqual(
    await Promise.all(answers),
    answers.map((_, at) => at + 1),
  );
  await runtime.kill();
  await runtime.run();
  const again = await opened(id);
  assert.equal(Buffer.from((await again.get("last")) ?? []).toString(), "49");
  assert.equal((await all(again, utf8("i"))).size, 50);
});

test("deletes, overwrites, and empty values", async () => {
  const agent = await opened(fresh());
  await agent.commit(1, [op("a", "1"), op("b", "2"), op("c", "")]);
  await agent.commit(2, [op("a", null), op("b", "3"), op("never", null)]);
  assert.equal(await agent.get("a"), null);
  assert.deepEqual(await agent.get("b"), utf8("3"));
  assert.deepEqual(await agent.get("c"), new Uint8Array(0), "an empty value is a value");
  assert.equal((await all(agent)).size, 3);
  assert.equal(await agent.commit(3, []), 3, "an empty batch is a commit like any other");
});

test("scans respect their prefix, page by page", async () => {
  const agent = await opened(fresh());
  const keys = ["d", "d\x00", "d\x00\xff", "d\xff", "d\xff\xff", "e", "\xff", "\xff\xff", "\xff\xff\x01"];
  const bytes = (text: string) => Uint8Array.from(Buffer.from(text, "latin1"));
  await agent.commit(
    1,
    keys.map((key): Operation => [bytes(key), bytes(key)]),
  );
  for (const prefix of ["", "d", "d\x00", "d\xff", "\xff", "\xff\xff", "e", "f", "\x01"]) {
    const expected = [...keys, "v"].filter((key) => key.startsWith(prefix)).sort();
    for (const page of [1, 2, 1000]) {
      assert.deepEqual([...(await all(agent, bytes(prefix), page)).keys()], expected, `${prefix} by ${page}`);
    }
  }
});

test("large values and large batches", async () => {
  const id = fresh();
  const agent = await opened(id);
  const value = new Uint8Array(randomBytes(10 << 20));
  await agent.commit(1, [op("large", value), op("row", value.subarray(0, 1 << 20))]);
  const many = Array.from({ length: 10_000 }, (_, at): Operation => {
    const key = Buffer.alloc(4);
    key.writeUInt32BE(at);
    return [key, new Uint8Array(100).fill(1)];
  });
  await agent.commit(2, many);
  for (const open of [async () => agent, () => opened(id)]) {
    const reader = await open();
    assert.ok(Buffer.from((await reader.get("large")) ?? []).equals(Buffer.from(value)));
    assert.equal((await all(reader, new Uint8Array(1))).size, 10_000);
  }
  const next = await opened(id);
  await next.commit(1, [op("large", "small")]);
  assert.deepEqual(await next.get("large"), utf8("small"));
  await next.commit(2, [op("large", value.subarray(0, 3 << 20))]);
  assert.equal((await next.get("large"))?.length, 3 << 20);
});

test("the older opening is fenced, and told so", async () => {
  const id = fresh();
  const older = await attach(id);
  const nonce = randomBytes(16);
  const { epoch } = await older.open(nonce);
  await older.commit(1, [op("a", "old")]);
  await older.putPack(new Uint8Array(16), utf8("pack"));
  const newer = await opened(id);
  await newer.commit(1, [op("a", "new")]);
  await until("the older one is told", () => older.goodbye !== null);
  assert.equal(older.goodbye?.code, ErrorCode.Fenced);
  await until("and cut off", () => older.closed);
  // It comes back over another connection: every request under its epoch is refused.
  const back = await attach(id);
  await fails(ErrorCode.Fenced, back.open(nonce, epoch));
  await fails(ErrorCode.Fenced, back.open(nonce));
  back.epoch = epoch;
  await fails(ErrorCode.Fenced, back.commit(2, [op("a", "stale")]));
  await fails(ErrorCode.Fenced, back.get("a"));
  await fails(ErrorCode.Fenced, back.putPack(new Uint8Array(16), utf8("stale")));
  await fails(ErrorCode.Fenced, back.deletePack(new Uint8Array(16)));
  assert.deepEqual(await newer.get("a"), utf8("new"));
  assert.deepEqual(await newer.getPack(new Uint8Array(16), 0, 4), utf8("pack"));
});

test("of agents that open at the same time one holds the volume, and is connected", async () => {
  for (let round = 0; round < 5; round++) {
    const id = fresh();
    const agents = await Promise.all(Array.from({ length: 6 }, () => attach(id)));
    const openings = await Promise.all(agents.map((agent) => agent.open(randomBytes(16))));
    assert.equal(new Set(openings.map(({ epoch }) => epoch)).size, 6);
    const last = Math.max(...openings.map(({ epoch }) => epoch));
    await until("the others are cut off", () => agents.filter((agent) => !agent.closed).length <= 1);
    const winner = agents.find((agent) => agent.epoch === last);
    assert.ok(winner !== undefined && !winner.closed);
    assert.equal(await winner.commit(1, [op("a", "1")]), 1);
  }
});

test("what is sent again is answered as it was the first time", async () => {
  const id = fresh();
  const agent = await attach(id);
  const nonce = randomBytes(16);
  const first = await agent.open(nonce);
  assert.deepEqual(await agent.open(nonce), first, "an opening");
  const nonces = [randomBytes(16), randomBytes(16), randomBytes(16)];
  for (const [at, of] of nonces.entries()) {
    assert.equal(await agent.commit(at + 1, [op("n", `${at}`)], of), at + 1);
  }
  agent.close();
  const back = await attach(id);
  assert.deepEqual(await back.open(nonce, first.epoch), { ...first, last: 3, version: 3 }, "and the epoch is kept");
  assert.equal(await back.commit(2, [op("n", "1")], nonces[1]), 2, "a commit");
  assert.deepEqual(await back.get("n"), utf8("2"), "which is not made twice");
  await fails(ErrorCode.Refused, back.commit(2, [op("n", "x")], randomBytes(16)));
  await fails(ErrorCode.Unavailable, back.commit(5, [op("n", "x")]));
  assert.equal(await back.commit(4, [op("n", "4")]), 4);
});

test("impossible records are refused, and leave nothing behind", async () => {
  const agent = await opened(fresh());
  for (const key of ["", "\0"]) {
    await fails(ErrorCode.Refused, agent.commit(1, [op("left", "behind"), op(key, null)]));
  }
  await fails(ErrorCode.Refused, agent.commit(1, [op("twice", "1"), op("twice", "2")]));
  assert.equal(await agent.get("left"), null);
  assert.equal(await agent.commit(1, [[new Uint8Array(65_535).fill(7), utf8("longest")]]), 1);
});

test("readers without an epoch read, and tail the change log", async () => {
  const id = fresh();
  const agent = await opened(id);
  await agent.commit(1, [op("a", "1"), op("b", "2")]);
  await agent.commit(2, [op("a", null)]);
  await agent.commit(
    3,
    Array.from({ length: 2000 }, (_, at) => op(`many ${at}`, "x")),
  );
  const reader = await attach(id);
  assert.deepEqual(await reader.get("b"), utf8("2"));
  const ask = async (since: number, max: number) =>
    wire.ChangesAnswer.decode(await reader.request(wire.Op.Changes, wire.ChangesRequest.encode({ since, max })));
  const log = await ask(0, 2);
  assert.deepEqual([log.current, log.oldest, log.more], [3, 0, true]);
  assert.deepEqual(
    log.changes.map(({ version, keys }) => [version, keys?.map((key) => Buffer.from(key).toString())]),
    [
      [1, ["a", "b"]],
      [2, ["a"]],
    ],
  );
  assert.deepEqual((await ask(2, 10)).changes[0]?.keys, null, "too many keys to list");
  await fails(ErrorCode.Fenced, reader.commit(1, [op("a", "no writer")]));
});

test("packs are stored, read by range, replaced and deleted", async () => {
  const agent = await opened(fresh());
  const id = randomBytes(16);
  await fails(ErrorCode.Missing, agent.getPack(id, 0, 1));
  await agent.putPack(id, utf8("0123456789"));
  await agent.putPack(id, utf8("0123456789"));
  assert.deepEqual(await agent.getPack(id, 2, 5), utf8("234"));
  assert.deepEqual(await agent.getPack(id, 5, 5), new Uint8Array(0));
  for (const [start, end] of [
    [5, 11],
    [10, 12],
    [100, 101],
  ] as const) {
    assert.match((await fails(ErrorCode.Missing, agent.getPack(id, start, end))).message, /truncated/);
  }
  await agent.deletePack(id);
  await agent.deletePack(id);
  await fails(ErrorCode.Missing, agent.getPack(id, 0, 1));
  const large = new Uint8Array(randomBytes(16 << 20));
  const other = randomBytes(16);
  await agent.putPack(other, large);
  for (const [start, end] of [
    [0, large.length],
    [(1 << 20) - 1, (1 << 20) + 1],
    [(3 << 20) + 5, (7 << 20) - 9],
  ] as const) {
    assert.ok(Buffer.from(await agent.getPack(other, start, end)).equals(Buffer.from(large.subarray(start, end))));
  }
});

test("packs of an agent that died before its commit are collected in a later epoch", async () => {
  const id = fresh();
  const agent = await opened(id);
  const [orphan, named] = [randomBytes(16), randomBytes(16)];
  await agent.putPack(orphan, utf8("orphan"));
  await agent.putPack(named, utf8("named"));
  await agent.commit(1, [[Buffer.concat([Buffer.from("p"), named]), utf8("record")]]);
  await runtime.fetch(`/test/${id}/collect`);
  assert.deepEqual(await agent.getPack(orphan, 0, 6), utf8("orphan"), "it may still commit");
  const next = await opened(id);
  await runtime.fetch(`/test/${id}/collect`);
  await fails(ErrorCode.Missing, next.getPack(orphan, 0, 6));
  assert.deepEqual(await next.getPack(named, 0, 5), utf8("named"));
});

test("what nobody needs is collected by the object's alarm, also when it was killed meanwhile", async () => {
  const id = fresh();
  const count = async () => ((await (await runtime.fetch(`/test/${id}/count`)).json()) as { packs: number }).packs;
  await (await opened(id)).putPack(randomBytes(16), utf8("orphan"));
  await opened(id);
  assert.equal(await count(), 1);
  await runtime.kill();
  await runtime.run();
  await until("the alarm", async () => (await count()) === 0);
});

test("a full object says so, takes what deletes some, and goes on", async () => {
  const agent = await opened(fresh());
  const packs: Uint8Array[] = [];
  const fill = async () => {
    for (;;) {
      const pack = randomBytes(16);
      await agent.putPack(pack, randomBytes(16 << 20));
      packs.push(pack);
    }
  };
  await assert.rejects(fill(), /holds 1\d\d MB of at most 189 MB .* bind an R2 bucket .* delete files/);
  assert.equal(packs.length, 11);
  // What is there is there, and so is what a commit deletes.
  assert.equal((await agent.getPack(packs[0] as Uint8Array, 0, 16 << 20)).length, 16 << 20);
  await agent.commit(1, [op("a", "1")]);
  await fails(ErrorCode.Unavailable, agent.commit(2, [op("large", randomBytes(8 << 20))]));
  await agent.deletePack(packs[0] as Uint8Array);
  await agent.commit(2, [op("large", randomBytes(8 << 20))]);
});

test("packs over HTTP", async () => {
  const id = fresh();
  const agent = await opened(id);
  const pack = randomBytes(16);
  const path = `/container/${id}/.storeshim/packs/${pack.toString("hex")}`;
  const body = randomBytes(5 << 20);
  const put = (epoch: number) =>
    runtime.fetch(path, { method: "PUT", body, headers: { "storeshim-epoch": String(epoch) } });
  assert.equal((await put(agent.epoch)).status, 204);
  assert.equal((await put(agent.epoch + 1)).status, 409, "fenced");
  const got = await runtime.fetch(path, { headers: { range: "bytes=1000000-2999999" } });
  assert.equal(got.status, 206);
  assert.ok(Buffer.from(await got.arrayBuffer()).equals(body.subarray(1_000_000, 3_000_000)));
  assert.ok(Buffer.from(await agent.getPack(pack, 0, body.length)).equals(body), "the same pack as over the wire");
});

test("two ids never see each other's records or packs", async () => {
  const [one, two] = [await opened(fresh()), await opened(fresh())];
  const pack = randomBytes(16);
  await one.commit(1, [op("a", "one")]);
  await one.putPack(pack, utf8("one"));
  assert.equal(await two.get("a"), null);
  await fails(ErrorCode.Missing, two.getPack(pack, 0, 3));
});

test("nothing acknowledged is lost when workerd is killed while it commits", async () => {
  const id = fresh();
  const nonce = randomBytes(16);
  let epoch = 0;
  let acknowledged = 0;
  const sent = new Map<number, Buffer>();
  for (let round = 0; round < 4; round++) {
    const agent = await attach(id);
    const opened = await agent.open(nonce, epoch);
    assert.ok(opened.last >= acknowledged, `commit ${acknowledged} was acknowledged, ${opened.last} is the last`);
    epoch = opened.epoch;
    const writing = (async () => {
      for (let number = acknowledged + 1; ; number++) {
        // Commits that were not acknowledged are sent again, as they were.
        const of = sent.get(number) ?? randomBytes(16);
        sent.set(number, of);
        await agent.commit(number, [op("n", `${number}`), op(`k${number}`, "x".repeat(2000))], of);
        acknowledged = number;
      }
    })().catch(() => undefined);
    await new Promise((resolve) => setTimeout(resolve, 150));
    await runtime.kill();
    await writing;
    await runtime.run();
  }
  const agent = await attach(id);
  const { last } = await agent.open(nonce, epoch);
  assert.ok(acknowledged > 20 && last >= acknowledged && last <= acknowledged + 1, `${acknowledged} of ${last}`);
  assert.equal((await all(agent, utf8("k"))).size, last);
});

test("an agent in a container is dialled, and dialled again", async () => {
  const id = fresh();
  const listener = await Listener.start();
  await runtime.fetch(`/test/${id}/dial?port=${listener.port}`);
  const agent = await listener.connection();
  const nonce = randomBytes(16);
  const { epoch } = await agent.open(nonce);
  await agent.commit(1, [op("a", "1")]);
  agent.close();
  const again = await listener.connection(1);
  assert.deepEqual(await again.open(nonce, epoch), { epoch, last: 1, version: 1 });
  assert.deepEqual(await again.get("a"), utf8("1"));
  await runtime.fetch(`/test/${id}/stop`);
  listener.end();
});
