/** The whole way on the real container interface of workerd: request, container, agent, volume; then the machine is lost. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Docker } from "./support/docker.js";
import { Runtime, until } from "./support/workerd.js";

const APP = new URL("support/app.ts", import.meta.url).pathname;
let docker: Docker;
let runtime: Runtime;
before(async () => {
  docker = await Docker.start([process.execPath, "--import", "tsx", APP]);
  runtime = await Runtime.start(docker.socket);
});
after(async () => {
  await runtime.end();
  await docker.end();
});

/** Packs of the container that is made of another class. */
async function packs(what = "count"): Promise<number> {
  return Number(await (await runtime.fetch(`/mixed-packs/one/${what}`)).text());
}

async function visit(): Promise<string> {
  const answer = await runtime.fetch("/real/one/path?x=1");
  const text = await answer.text();
  assert.equal(answer.status, 200, text);
  return text;
}

test("a container class of somebody else's is given storage", { timeout: 60_000 }, async () => {
  const answer = await runtime.fetch("/mixed/one/path");
  assert.equal(await answer.text(), "/path visit 1");
  assert.equal(answer.headers.get("x-theirs"), "kept", "their code is asked as before");
  // An orphan for the last test: what a later epoch does not need goes by the object's alarm, a minute after it began.
  assert.equal(await packs("plant"), 1);
  await docker.kill();
  assert.equal(await (await runtime.fetch("/mixed/one/path")).text(), "/path visit 2");
  await docker.kill();
});

test("a visit counter goes on over lost containers and a killed workerd", { timeout: 120_000 }, async () => {
  const before = docker.starts;
  assert.equal(await visit(), "/path?x=1 visit 1");
  assert.equal(await visit(), "/path?x=1 visit 2");
  await docker.kill();
  assert.equal(await visit(), "/path?x=1 visit 3");
  assert.equal(docker.starts - before, 2);
  await runtime.kill();
  await runtime.run();
  // The container has outlived the object that dialled it: a new one dials it again.
  assert.equal(await visit(), "/path?x=1 visit 4");
  await docker.kill();
  assert.equal(await visit(), "/path?x=1 visit 5");
});

test("files are served while the container sleeps, and its next agent comes back to its records", {
  timeout: 60_000,
}, async () => {
  await docker.kill();
  await until("a file is written", async () => {
    return (await runtime.fetch("/real/one/files/a.txt", { method: "PUT", body: "while it sleeps" })).status === 201;
  });
  assert.equal(await (await runtime.fetch("/real/one/files/a.txt")).text(), "while it sleeps");
  assert.match(await visit(), /visit 6/);
});

test("an idle container sleeps in spite of signs of life; one whose agent works does not", {
  timeout: 90_000,
}, async () => {
  await docker.kill();
  const sleepy = async (path: string) => await (await runtime.fetch(`/sleepy/one/${path}`)).text();
  assert.equal(await sleepy("path/busy"), "/path/busy visit 1");
  const begin = Date.now();
  await until("it sleeps", () => !docker.running, 60_000);
  assert.ok(Date.now() - begin > 8_000, `after ${Date.now() - begin} ms, although it worked for 8 s`);
  assert.equal(await sleepy("path"), "/path visit 2");
});

test("a container's alarm collects what nobody needs", { timeout: 90_000 }, async () => {
  await until("it is collected", async () => (await packs()) === 0, 80_000);
});
