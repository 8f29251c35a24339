/** What goes wrong on connections: half frames, garbage, silence, stalls, wrong tokens; each ends clearly, and nothing is lost. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import WebSocket from "ws";
import { type ErrorCode as Code, ErrorCode, encodeFrame, encodePreamble, Op, utf8 } from "../src/wire/index.js";
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

async function attach(id: string): Promise<Connection> {
  const connection = await connectWebSocket(runtime.url(`/container/${id}/.storeshim/agent`, "ws"), TOKEN);
  await until("the Worker greets", () => connection.hello !== null);
  return connection;
}

async function ends(connection: Connection, code: Code): Promise<void> {
  await until("the connection ends", () => connection.closed);
  assert.equal(connection.goodbye?.code, code, connection.goodbye?.message ?? "without a goodbye");
}

test("a wrong token, and none, are refused with what to do", async () => {
  for (const path of ["agent", "files/x", `packs/${"0".repeat(32)}`]) {
    for (const token of ["Bearer wrong", "", `Basic ${TOKEN}`, `Bearer ${TOKEN} `.repeat(2)]) {
      const answer = await runtime.fetch(`/container/t/.storeshim/${path}`, { headers: { authorization: token } });
      assert.equal(answer.status, 401);
      assert.match(await answer.text(), /STORESHIM_TOKEN/);
    }
  }
  await assert.rejects(connectWebSocket(runtime.url("/container/t/.storeshim/agent", "ws"), "wrong"), /401/);
  const upgrade = await runtime.fetch("/container/t/.storeshim/agent");
  assert.equal(upgrade.status, 426);
  assert.equal((await runtime.fetch("/container/t/.storeshim/nothing")).status, 404);
});

test("garbage, oversize frames, unfit bodies and early requests end the connection with the reason", async () => {
  const oversize = new Uint8Array(24);
  new DataView(oversize.buffer).setUint32(0, 0x7fff_ffff, true);
  const request = { flags: 0, epoch: 0 };
  for (const [code, bytes] of [
    [ErrorCode.Protocol, new Uint8Array(24)],
    [ErrorCode.TooLarge, oversize],
    [ErrorCode.Protocol, encodeFrame({ ...request, op: Op.Get, id: 1, body: utf8("\xff\xff") })],
    [ErrorCode.Protocol, encodeFrame({ ...request, op: Op.Get, id: 0, body: new Uint8Array(2) })],
    [ErrorCode.Protocol, encodeFrame({ ...request, op: Op.Hello, id: 0, body: new Uint8Array(19) })],
  ] as const) {
    const agent = await attach("garbage");
    agent.raw(bytes);
    await ends(agent, code);
  }
  const socket = new WebSocket(runtime.url("/container/garbage/.storeshim/agent", "ws"), {
    headers: { authorization: `Bearer ${TOKEN}` },
  });
  await new Promise((resolve) => socket.on("open", resolve));
  socket.send("text");
  await new Promise((resolve) => socket.on("close", resolve));
  const early = await Listener.start((connection) => {
    connection.raw(encodePreamble());
    connection.raw(encodeFrame({ ...request, op: Op.Get, id: 1, body: new Uint8Array(2) }));
  });
  await runtime.fetch(`/test/early/dial?port=${early.port}`);
  await until("the early one is refused", () => early.connections.some((c) => c.goodbye?.code === ErrorCode.Protocol));
  await runtime.fetch("/test/early/stop");
  early.end();
});

test("an unknown request is refused, and the connection goes on", async () => {
  const agent = await attach("unknown");
  await assert.rejects(agent.request(0x2f, new Uint8Array(0)), /unknown/);
  assert.ok((await agent.open(randomBytes(16))).epoch > 0);
});

test("another version is refused on both transports", async () => {
  const listener = await Listener.start((connection) => connection.raw(encodePreamble(7, 9)));
  await runtime.fetch(`/test/version/dial?port=${listener.port}`);
  await until("a goodbye", () => listener.connections.some((connection) => connection.goodbye !== null));
  const told = listener.connections.find((connection) => connection.goodbye !== null)?.goodbye;
  assert.equal(told?.code, ErrorCode.Version);
  assert.match(told?.message ?? "", /versions 7 to 9/);
  await runtime.fetch("/test/version/stop");
  listener.end();
});

test("a frame that is cut in half changes nothing, and its request is made over the next connection", async () => {
  const listener = await Listener.start();
  await runtime.fetch(`/test/half/dial?port=${listener.port}`);
  const agent = await listener.connection();
  const nonce = randomBytes(16);
  const { epoch } = await agent.open(nonce);
  await agent.commit(1, [[utf8("a"), utf8("1")]]);
  const frame = encodeFrame({ op: Op.Commit, flags: 0, id: 77, epoch, body: randomBytes(300) });
  for (const length of [1, 3, 4, 23, 24, 25, 200, 323]) {
    const connection = await listener.connection(listener.connections.length - 1);
    connection.raw(frame.subarray(0, length));
    await new Promise((resolve) => setTimeout(resolve, 30));
    const seen = listener.connections.length;
    connection.close();
    const next = await listener.connection(seen);
    assert.deepEqual(await next.open(nonce, epoch), { epoch, last: 1, version: 1 }, `after ${length} bytes`);
  }
  const last = await listener.connection(listener.connections.length - 1);
  assert.equal(await last.commit(2, [[utf8("a"), utf8("2")]]), 2);
  await runtime.fetch("/test/half/stop");
  listener.end();
});

test("a silent agent is given up and dialled again; one that shows signs of life is not", async () => {
  const listener = await Listener.start();
  await runtime.fetch(`/test/silent/dial?port=${listener.port}`);
  const agent = await listener.connection();
  await new Promise((resolve) => setTimeout(resolve, 4500));
  assert.ok(!agent.closed && agent.pings >= 3, `${agent.pings} signs of life`);
  agent.mute();
  await ends(agent, ErrorCode.Silent);
  assert.ok((await listener.connection(1)).hello !== null);
  await runtime.fetch("/test/silent/stop");
  listener.end();
});

test("signs of life do not count as activity, requests do", async () => {
  const agent = await attach("activity");
  const activity = async () =>
    ((await (await runtime.fetch("/test/activity/count")).json()) as { activity: number }).activity;
  await agent.open(randomBytes(16));
  const before = await activity();
  await new Promise((resolve) => setTimeout(resolve, 700));
  assert.equal(await activity(), before, "the container would never sleep");
  await agent.get("v");
  assert.equal(await activity(), before + 1);
});

test("a stalled Durable Object is waited for, and loses nothing", async () => {
  const agent = await attach("stalled");
  await agent.open(randomBytes(16));
  await agent.commit(1, [[utf8("a"), utf8("1")]]);
  runtime.signal("SIGSTOP");
  const answers = [2, 3, 4].map((number) => agent.commit(number, [[utf8(`k${number}`), utf8("x")]]));
  let answered = false;
  void Promise.race(answers).then(() => {
    answered = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 1500));
  assert.ok(!answered, "no false success");
  runtime.signal("SIGCONT");
  assert.deepEqual(await Promise.all(answers), [2, 3, 4]);
  assert.equal((await agent.scan(utf8("k"))).length, 3);
});

test("what is sent ahead is held back, not lost: 40 MB of packs and 3,000 commits at once", async () => {
  const listener = await Listener.start();
  await runtime.fetch(`/test/flood/dial?port=${listener.port}`);
  const agent = await listener.connection();
  await agent.open(randomBytes(16));
  const packs = Array.from({ length: 10 }, () => ({ id: randomBytes(16), bytes: randomBytes(4 << 20) }));
  const stored = packs.map(({ id, bytes }) => agent.putPack(id, bytes));
  const commits = Array.from({ length: 3000 }, (_, at) => agent.commit(at + 1, [[utf8(`k${at}`), utf8("x")]]));
  await Promise.all([...stored, ...commits]);
  assert.equal((await agent.scan(utf8("k"))).length, 3000);
  for (const { id, bytes } of packs) {
    assert.ok(Buffer.from(await agent.getPack(id, 0, bytes.length)).equals(bytes));
  }
  await runtime.fetch("/test/flood/stop");
  listener.end();
});

test("a message of more than 32 MiB is refused", async () => {
  const listener = await Listener.start();
  await runtime.fetch(`/test/huge/dial?port=${listener.port}`);
  const agent = await listener.connection();
  await agent.open(randomBytes(16));
  await assert.rejects(agent.putPack(randomBytes(16), new Uint8Array(33 << 20)));
  await until("the goodbye arrives or the stream breaks", () => agent.closed);
  await runtime.fetch("/test/huge/stop");
  listener.end();
});
