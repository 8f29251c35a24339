// What storeshim's Durable Object is measured against: one that writes the bytes it is sent into rows, and answers when they are
// durable.
import { DurableObject } from "cloudflare:workers";

const ROW = 1 << 20;

export class Plain extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, bytes BLOB)");
  }

  async fetch(request) {
    const bytes = await request.arrayBuffer();
    this.ctx.storage.transactionSync(() => {
      for (let at = 0; at < bytes.byteLength; at += ROW) {
        this.ctx.storage.sql.exec("INSERT INTO rows (bytes) VALUES (?)", bytes.slice(at, at + ROW));
      }
    });
    return new Response("stored");
  }
}

export default {
  async fetch(request, env) {
    if (request.method !== "PUT") {
      return new Response("up");
    }
    return await env.PLAIN.get(env.PLAIN.idFromName("one")).fetch(request);
  },
};
