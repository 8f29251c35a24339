/** An agent that speaks the codec, without any volume behind it: what tests send, it sends. */
import { randomBytes } from "node:crypto";
import { createServer, type Server, type Socket } from "node:net";
import WebSocket from "ws";
import * as wire from "../../src/wire/index.js";
import {
  Assembler,
  encodeFrame,
  encodePreamble,
  Failure,
  Flag,
  type Frame,
  FrameDecoder,
  type Hello,
  HelloBody,
  MAX_MESSAGE,
  Op,
  type Operation,
  Role,
  StoreError,
  split,
  utf8,
} from "../../src/wire/index.js";

/** Whatever carries the bytes. */
export interface Wire {
  send(bytes: Uint8Array): void;
  close(): void;
}

type Served = (op: number, body: Uint8Array) => Uint8Array | Promise<Uint8Array>;

/** One connection. */
export class Connection {
  private readonly decoder = new FrameDecoder();
  private readonly assembler = new Assembler();
  private readonly waiting = new Map<number, { resolve(body: Uint8Array): void; reject(error: Error): void }>();
  private asked = 0;
  private beat: NodeJS.Timeout | null = null;
  /** The Worker's greeting. */
  hello: Hello | null = null;
  /** Why the Worker ended the connection. */
  goodbye: StoreError | null = null;
  /** The connection has ended. */
  closed = false;
  /** Signs of life that came. */
  pings = 0;
  /** Epoch under which requests are made. */
  epoch = 0;
  /** Answers what the Worker asks for. */
  serve: Served = () => {
    throw new StoreError(wire.ErrorCode.Refused, "this agent serves no files");
  };

  constructor(private readonly wire: Wire) {}

  /** Sends the first bytes, and signs of life from then on. */
  greet(change: Partial<Hello> = {}): void {
    this.wire.send(encodePreamble());
    const hello = { role: Role.Agent, maxMessage: MAX_MESSAGE, maxRequests: 64, maxBytes: 16 << 20, heartbeat: 200 };
    this.message(Op.Hello, HelloBody.encode({ ...hello, name: "test", ...change }), 0);
    this.beat = setInterval(() => this.message(Op.Ping, new Uint8Array(0), 0), 200);
  }

  /** No further sign of life. */
  mute(): void {
    clearInterval(this.beat ?? undefined);
  }

  private message(op: number, body: Uint8Array, id: number, flags = 0): void {
    for (const frame of split({ op, flags, id, epoch: this.epoch, body })) {
      this.wire.send(encodeFrame(frame));
    }
  }

  /** Sends whatever bytes. */
  raw(bytes: Uint8Array): void {
    this.wire.send(bytes);
  }

  /** Takes the Worker's bytes. */
  receive(bytes: Uint8Array): void {
    for (const frame of this.decoder.push(bytes)) {
      const message = this.assembler.push(frame);
      if (message !== null) {
        this.take(message);
      }
    }
  }

  private take(message: Frame): void {
    if ((message.flags & Flag.Answer) !== 0) {
      const waiting = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      if ((message.flags & Flag.Error) !== 0) {
        waiting?.reject(Failure.decode(message.body));
      } else {
        waiting?.resolve(message.body);
      }
    } else if (message.op === Op.Hello) {
      this.hello = HelloBody.decode(message.body);
    } else if (message.op === Op.Goodbye) {
      this.goodbye = Failure.decode(message.body);
    } else if (message.op === Op.Ping) {
      this.pings += 1;
    } else {
      void this.answer(message);
    }
  }

  private async answer(request: Frame): Promise<void> {
    try {
      this.message(request.op, await this.serve(request.op, request.body), request.id, Flag.Answer);
    } catch (thrown) {
      const error = thrown instanceof StoreError ? thrown : new StoreError(wire.ErrorCode.Refused, String(thrown));
      this.message(request.op, Failure.encode(error), request.id, Flag.Answer | Flag.Error);
    }
  }

  /** Asks the Worker. */
  async request(op: number, body: Uint8Array): Promise<Uint8Array> {
    this.asked += 1;
    const id = this.asked;
    return await new Promise<Uint8Array>((resolve, reject) => {
      if (this.closed) {
        reject(new Error("the connection is closed"));
      }
      this.waiting.set(id, { resolve, reject });
      this.message(op, body, id);
    });
  }

  /** The connection is over. */
  ended(): void {
    this.closed = true;
    this.mute();
    for (const { reject } of this.waiting.values()) {
      reject(new Error("the connection broke"));
    }
    this.waiting.clear();
  }

  /** Closes it. */
  close(): void {
    this.wire.close();
    this.ended();
  }

  async open(nonce: Uint8Array, held = 0): Promise<{ epoch: number; last: number; version: number }> {
    const body = wire.OpenRequest.encode({ nonce, held });
    const opened = wire.OpenAnswer.decode(await this.request(Op.Open, body));
    this.epoch = opened.epoch;
    return opened;
  }

  async commit(number: number, ops: Operation[], nonce: Uint8Array = randomBytes(16)): Promise<number> {
    const body = wire.CommitRequest.encode({ number, nonce, ops });
    return wire.CommitAnswer.decode(await this.request(Op.Commit, body));
  }

  async stage(number: number, nonce: Uint8Array, part: number, ops: Operation[]): Promise<void> {
    await this.request(Op.Stage, wire.StageRequest.encode({ number, nonce, part, ops }));
  }

  async commitStaged(number: number, nonce: Uint8Array, parts: number): Promise<number> {
    const body = wire.CommitStagedRequest.encode({ number, nonce, parts });
    return wire.CommitAnswer.decode(await this.request(Op.CommitStaged, body));
  }

  async get(key: string | Uint8Array): Promise<Uint8Array | null> {
    const body = wire.GetRequest.encode(typeof key === "string" ? utf8(key) : key);
    return wire.GetAnswer.decode(await this.request(Op.Get, body));
  }

  /** All pairs with a prefix, in pages of `maxPairs`. */
  async scan(prefix: Uint8Array, maxPairs = 1000): Promise<[Uint8Array, Uint8Array][]> {
    const pairs: [Uint8Array, Uint8Array][] = [];
    for (let after: Uint8Array | null = null, more = true; more; ) {
      const body = wire.ScanRequest.encode({ prefix, after, maxPairs, maxBytes: 1 << 20 });
      const page = wire.ScanAnswer.decode(await this.request(Op.Scan, body));
      pairs.push(...page.pairs);
      after = pairs.at(-1)?.[0] ?? null;
      ({ more } = page);
    }
    return pairs;
  }

  async putPack(pack: Uint8Array, bytes: Uint8Array): Promise<void> {
    await this.request(Op.BlobPut, wire.BlobPutRequest.encode({ pack, bytes }));
  }

  async getPack(pack: Uint8Array, start: number, end: number): Promise<Uint8Array> {
    return await this.request(Op.BlobGet, wire.BlobGetRequest.encode({ pack, start, end }));
  }

  async deletePack(pack: Uint8Array): Promise<void> {
    await this.request(Op.BlobDelete, wire.BlobDeleteRequest.encode(pack));
  }
}

/** An agent that listens, as the one in a container does. */
export class Listener {
  /** Connections that came, the latest last. */
  readonly connections: Connection[] = [];
  private static readonly all = new Set<Listener>();
  private readonly sockets = new Set<Socket>();

  private constructor(
    private readonly server: Server,
    /** Where. */
    readonly port: number,
  ) {}

  static async start(onConnection: (connection: Connection) => void = (c) => c.greet()): Promise<Listener> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    const listener = new Listener(server, typeof address === "object" && address !== null ? address.port : 0);
    server.on("connection", (socket) => {
      socket.setNoDelay(true);
      const connection = new Connection({ send: (bytes) => socket.write(bytes), close: () => socket.destroy() });
      listener.sockets.add(socket);
      socket.on("data", (bytes) => connection.receive(bytes));
      socket.on("error", () => undefined);
      socket.on("close", () => connection.ended());
      listener.connections.push(connection);
      onConnection(connection);
    });
    Listener.all.add(listener);
    return listener;
  }

  /** Ends those that a failed test has left: they would keep the process alive. */
  static endAll(): void {
    for (const listener of Listener.all) {
      listener.end();
    }
  }

  /** The next connection behind the first `seen` that has been greeted. */
  async connection(seen = 0): Promise<Connection> {
    const deadline = Date.now() + 10_000;
    for (;;) {
      const found = this.connections.slice(seen).find((connection) => connection.hello !== null && !connection.closed);
      if (found !== undefined) {
        return found;
      }
      if (Date.now() > deadline) {
        throw new Error("nobody dials");
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  end(): void {
    this.server.close();
    for (const socket of this.sockets) {
      socket.destroy();
    }
  }
}

/** An agent that connects by a WebSocket. */
export async function connectWebSocket(url: string, token: string): Promise<Connection> {
  const socket = new WebSocket(url, { headers: { authorization: `Bearer ${token}` } });
  const connection = new Connection({ send: (bytes) => socket.send(bytes), close: () => socket.terminate() });
  socket.on("message", (data: Buffer) => connection.receive(data));
  socket.on("close", () => connection.ended());
  await new Promise<void>((resolve, reject) => {
    socket.on("open", () => resolve());
    socket.on("error", reject);
  });
  connection.greet();
  return connection;
}
