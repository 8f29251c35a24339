import { concat } from "../wire/bytes.js";
import { ErrorCode, StoreError } from "../wire/errors.js";
import { MAX_BODY } from "../wire/frame.js";
import { detect, encodeJson, type JsonFiles, JsonPeer } from "../wire/json.js";
import type { Pipe, Session } from "./session.js";

/** Which protocol is spoken on a socket. */
export type Protocol = "auto" | "binary" | "json";

/** What came of a connection. */
export type Outcome =
  /** The binary protocol was spoken; how the session ended, it says itself. */
  | "binary"
  /** JSON was spoken, or heard in answer to the binary greeting: dial again, and listen first. */
  | "json"
  /** The other side has closed without a word: it may wait to be spoken to in JSON, or not be ready yet. */
  | "silent";

/** A socket that is closed may take this long to send what is left, in milliseconds. */
const LINGER = 1_000;
/** Bytes that a WebSocket may bring while earlier ones are not taken yet. */
const BACKLOG = 40 << 20;

/** Bytes that are read from a socket at once at least, where so many are awaited, and at most where it is not known. */
const SCRATCH = 64 << 10;

/** A TCP socket as a pipe. */
export class SocketPipe implements Pipe {
  private readonly writer: WritableStreamDefaultWriter<Uint8Array>;

  constructor(private readonly socket: Socket) {
    this.writer = socket.writable.getWriter();
  }

  async send(bytes: Uint8Array): Promise<void> {
    await this.writer.write(bytes);
  }

  close(): void {
    // What was sent last says why; but a peer that does not read must not keep the socket open.
    const sent = this.writer.close().catch(() => undefined);
    const patience = new Promise((resolve) => setTimeout(resolve, LINGER));
    void Promise.race([sent, patience]).then(() => this.socket.close().catch(() => undefined));
  }
}

/** What a dialled socket is connected with. */
export interface Ends {
  /** A session over this pipe. */
  session(pipe: Pipe): Session;
  /** The files that JSON requests are answered from. */
  files: JsonFiles;
  /** A JSON connection is up (`null`: is over). */
  json(peer: JsonPeer | null): void;
  /** Something was received. */
  active(): void;
}

/**
 * Serves a socket that we have dialled until it ends. With a `listen` of more than 0 nothing is sent for so many
 * milliseconds, unless the other side speaks.
 */
export async function serveSocket(socket: Socket, protocol: Protocol, listen: number, ends: Ends): Promise<Outcome> {
  const pipe = new SocketPipe(socket);
  const incoming = new Incoming(socket);
  let session: Session | null = null;
  const greet = (): Session => {
    if (session === null) {
      session = ends.session(pipe);
      session.greet();
    }
    return session;
  };
  const later = protocol === "auto" && listen > 0 ? setTimeout(greet, listen) : null;
  if (protocol === "binary" || (protocol === "auto" && listen === 0)) {
    greet();
  }
  try {
    const first = await readFirst(incoming);
    clearTimeout(later);
    const kind = detect(first);
    if (first.length === 0) {
      (session as Session | null)?.eof();
      pipe.close();
      return "silent";
    }
    if (kind === "json" && protocol !== "binary") {
      if (session !== null) {
        (session as Session).end(new StoreError(ErrorCode.Protocol, "JSON was heard; dialling again to speak it"));
        return "json";
      }
      await serveJson(pipe, incoming, first, ends);
      return "json";
    }
    await serveBinary(greet(), incoming, first);
    return "binary";
  } finally {
    clearTimeout(later);
    incoming.cancel();
  }
}

/**
 * The bytes that a socket receives. Read into buffers of ours: what the stream itself gives is a few KiB at a time, which takes
 * longer to hand over than to use.
 */
class Incoming {
  private readonly reader: ReadableStreamBYOBReader;
  private scratch = new ArrayBuffer(SCRATCH);

  constructor(socket: Socket) {
    this.reader = socket.readable.getReader({ mode: "byob" });
  }

  /** Some bytes, valid until the next call; `null` at the end. */
  async read(): Promise<Uint8Array | null> {
    const { value } = await this.reader.read(new Uint8Array(this.scratch));
    if (value === undefined || value.length === 0) {
      return null;
    }
    this.scratch = value.buffer as ArrayBuffer;
    return value;
  }

  /** Bytes from the begin of `into` on, whose buffer is another one afterwards; `null` at the end. */
  async fill(into: Uint8Array): Promise<Uint8Array | null> {
    // Not all of it: a slow connection would seem silent meanwhile.
    const { value } = await this.reader.readAtLeast(Math.min(into.length, SCRATCH), into);
    return value === undefined || value.length === 0 ? null : value;
  }

  /** Ends it. */
  cancel(): void {
    this.reader.cancel().catch(() => undefined);
  }
}

/** Bytes enough to tell the protocol; fewer at the end of the stream. */
async function readFirst(incoming: Incoming): Promise<Uint8Array> {
  let first: Uint8Array = new Uint8Array(0);
  while (detect(first) === null) {
    const value = await incoming.read().catch(() => null);
    if (value === null) {
      break;
    }
    first = concat([first, value]);
  }
  return first;
}

async function serveBinary(session: Session, incoming: Incoming, first: Uint8Array): Promise<void> {
  const over = session.over.then(() => null);
  const next = async (reading: Promise<Uint8Array | null>) => await Promise.race([reading.catch(() => null), over]);
  await session.receive(first);
  while (session.ended === null) {
    const lent = session.lend();
    const bytes = await next(lent === null ? incoming.read() : incoming.fill(lent));
    if (bytes === null) {
      break;
    }
    await (lent === null ? session.receive(bytes) : session.filled(bytes));
  }
  session.eof();
}

async function serveJson(pipe: Pipe, incoming: Incoming, first: Uint8Array, ends: Ends): Promise<void> {
  const peer = new JsonPeer((bytes) => sendPieces(pipe, bytes), ends.files);
  ends.json(peer);
  let why = "the container has closed the connection";
  try {
    let bytes: Uint8Array | null = first;
    while (bytes !== null) {
      ends.active();
      await peer.receive(bytes);
      bytes = await incoming.read();
    }
  } catch (thrown) {
    why = thrown instanceof Error ? thrown.message : String(thrown);
    console.warn(`storeshim: a JSON connection ended: ${why}`);
    await pipe.send(encodeJson({ id: "", error: why })).catch(() => undefined);
  } finally {
    ends.json(null);
    peer.end(new StoreError(ErrorCode.Unavailable, why));
    pipe.close();
  }
}

async function sendPieces(pipe: Pipe, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; at += MAX_BODY) {
    await pipe.send(bytes.subarray(at, at + MAX_BODY));
  }
}

/** Serves an agent that has connected by a WebSocket. Binary messages are pieces of the stream, cut anywhere. */
export function serveWebSocket(socket: WebSocket, connect: (pipe: Pipe) => Session): void {
  let open = true;
  const session = connect({
    send: async (bytes) => socket.send(bytes),
    close: () => {
      if (open) {
        open = false;
        socket.close(1000, "the session is over");
      }
    },
  });
  let backlog = 0;
  let taken: Promise<void> = Promise.resolve();
  socket.addEventListener("message", (event) => {
    if (!(event.data instanceof ArrayBuffer)) {
      session.end(new StoreError(ErrorCode.Protocol, "a WebSocket message of text was sent; send binary ones only"));
      return;
    }
    const bytes = new Uint8Array(event.data);
    backlog += bytes.length;
    if (backlog > BACKLOG) {
      session.end(
        new StoreError(ErrorCode.TooLarge, `${backlog} bytes were sent ahead; keep to the limits of the greeting`),
      );
      return;
    }
    taken = taken
      .then(() => session.receive(bytes))
      .then(() => {
        backlog -= bytes.length;
      });
  });
  const ended = () => {
    open = false;
    taken.then(() => session.eof());
  };
  socket.addEventListener("close", ended);
  socket.addEventListener("error", ended);
  // From some compatibility date on the default is Blob, whose bytes cannot be had at once.
  socket.binaryType = "arraybuffer";
  socket.accept();
  session.greet();
}
