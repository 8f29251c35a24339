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
  const reader = socket.readable.getReader();
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
    const first = await readFirst(reader);
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
      await serveJson(pipe, reader, first, ends);
      return "json";
    }
    await serveBinary(greet(), reader, first);
    return "binary";
  } finally {
    clearTimeout(later);
    reader.cancel().catch(() => undefined);
  }
}

/** Bytes enough to tell the protocol; fewer at the end of the stream. */
async function readFirst(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<Uint8Array> {
  let first: Uint8Array = new Uint8Array(0);
  while (detect(first) === null) {
    const { value, done } = await reader.read().catch(() => ({ value: undefined, done: true }));
    if (done || value === undefined) {
      break;
    }
    first = concat([first, value]);
  }
  return first;
}

async function serveBinary(
  session: Session,
  reader: ReadableStreamDefaultReader<Uint8Array>,
  first: Uint8Array,
): Promise<void> {
  let bytes: Uint8Array | undefined = first;
  while (bytes !== undefined && session.ended === null) {
    await session.receive(bytes);
    const next = await Promise.race([reader.read().catch(() => null), session.over.then(() => null)]);
    bytes = next?.value;
  }
  session.eof();
}

async function serveJson(
  pipe: Pipe,
  reader: ReadableStreamDefaultReader<Uint8Array>,
  first: Uint8Array,
  ends: Ends,
): Promise<void> {
  const peer = new JsonPeer((bytes) => sendPieces(pipe, bytes), ends.files);
  ends.json(peer);
  let why = "the container has closed the connection";
  try {
    let bytes: Uint8Array | undefined = first;
    while (bytes !== undefined) {
      ends.active();
      await peer.receive(bytes);
      bytes = (await reader.read()).value;
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
