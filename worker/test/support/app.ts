/**
 * What runs in the tests' container: an agent with one record, and a web server that counts visits in it. It listens only
 * when the volume is open, as an app waits for its storage.
 */
import { randomBytes } from "node:crypto";
import { createServer as createHttp } from "node:http";
import { createServer } from "node:net";
import { utf8 } from "../../src/wire/index.js";
import { Connection } from "./agent.js";

const nonce = randomBytes(16);
let epoch = 0;
let number = 0;
let agent: Connection | null = null;

async function opened(connection: Connection): Promise<void> {
  const answer = await connection.open(nonce, epoch);
  [epoch, number, agent] = [answer.epoch, answer.last, connection];
  if (!web.listening) {
    web.listen(Number(process.env["PORT_8080"]), "127.0.0.1");
  }
}

const web = createHttp((request, response) => {
  if (!request.url?.startsWith("/path")) {
    // Asked by the platform, whether somebody listens.
    response.end("up");
    return;
  }
  void (async () => {
    while (agent === null || agent.closed) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const old = Number(Buffer.from((await agent.get("visits")) ?? []).toString() || 0);
    if (request.url === "/path/busy") {
      // Works on by itself for a while, with nobody asking.
      const until = Date.now() + 8_000;
      const timer = setInterval(() => {
        number += 1;
        void agent?.commit(number, [[utf8("busy"), utf8(String(number))]]).catch(() => undefined);
        if (Date.now() > until) {
          clearInterval(timer);
        }
      }, 500);
    }
    number += 1;
    await agent.commit(number, [[utf8("visits"), utf8(String(old + 1))]]);
    response.end(`${request.url} visit ${old + 1}`);
  })().catch((thrown) => response.writeHead(500).end(String(thrown)));
});

createServer((socket) => {
  socket.setNoDelay(true);
  const connection = new Connection({ send: (bytes) => socket.write(bytes), close: () => socket.destroy() });
  socket.on("data", (bytes) => connection.receive(bytes));
  socket.on("error", () => undefined);
  socket.on("close", () => connection.ended());
  connection.greet();
  opened(connection).catch(() => undefined);
}).listen(Number(process.env["PORT_8000"]), "127.0.0.1");
process.on("SIGTERM", () => process.exit(0));
