import { utf8 } from "./bytes.js";
import { asStoreError, ErrorCode, StoreError } from "./errors.js";

/** Largest frame of the JSON protocol, in bytes. */
export const MAX_JSON = 16 << 20;

/** A request of the JSON protocol. `data` is base64. */
export interface JsonRequest {
  id: string | number;
  operation: string;
  path?: string;
  data?: string;
  offset?: number;
  size?: number;
}

/** What stat tells in the JSON protocol. */
export interface JsonStat {
  size: number;
  /** In milliseconds since 1970. */
  mtime: number;
  mode: number;
  isFile: boolean;
  isDirectory: boolean;
}

/** An answer of the JSON protocol: what was asked for, or `error`. */
export interface JsonAnswer {
  id: string | number;
  /** Base64. */
  data?: string;
  bytesWritten?: number;
  files?: string[];
  stat?: JsonStat;
  success?: boolean;
  error?: string;
}

/** A file system that the JSON protocol can show. */
export interface JsonFiles {
  read(path: string, offset: number, size: number | undefined): Promise<Uint8Array>;
  write(path: string, bytes: Uint8Array, offset: number | undefined): Promise<void>;
  stat(path: string): Promise<JsonStat>;
  readdir(path: string): Promise<string[]>;
  unlink(path: string): Promise<void>;
}

/** What the first bytes of a connection tell about its protocol; `null` while there are too few. */
export function detect(first: Uint8Array): "binary" | "json" | "garbage" | null {
  if (first.length === 0) {
    return null;
  }
  // The binary protocol begins with "S"; a length that begins so is beyond any limit.
  if (first[0] === 0x53) {
    return "binary";
  }
  if (first.length < 5) {
    return null;
  }
  const length = new DataView(first.buffer, first.byteOffset).getUint32(0);
  return length >= 2 && length <= MAX_JSON && first[4] === 0x7b ? "json" : "garbage";
}

/** Bytes as base64, in slices, because a call takes a bounded number of arguments. */
export function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}

/** The bytes of a base64 text. */
export function fromBase64(text: string): Uint8Array {
  let binary: string;
  try {
    binary = atob(text);
  } catch {
    throw new StoreError(ErrorCode.Protocol, "the data of a JSON request is not base64; encode it so");
  }
  return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
}

/** A JSON frame: four bytes of length, big-endian, and the text. */
export function encodeJson(message: JsonRequest | JsonAnswer): Uint8Array {
  const text = utf8(JSON.stringify(message));
  const bytes = new Uint8Array(4 + text.length);
  new DataView(bytes.buffer).setUint32(0, text.length);
  bytes.set(text, 4);
  return bytes;
}

/** Cuts a stream of bytes into JSON messages. */
export class JsonDecoder {
  private buffer = new Uint8Array(4);
  private held = 0;
  private body = false;

  /** Takes bytes over and gives the messages that they complete. */
  *push(bytes: Uint8Array): Generator<Record<string, unknown>> {
    let rest = bytes;
    while (rest.length > 0) {
      this.reserve(this.held + rest.length);
      const room = this.wanted - this.held;
      const taken = rest.subarray(0, room);
      this.buffer.set(taken, this.held);
      this.held += taken.length;
      rest = rest.subarray(taken.length);
      if (this.held === this.wanted) {
        const message = this.complete();
        if (message !== null) {
          yield message;
        }
      }
    }
  }

  private wanted = 4;

  /** Memory grows with what has come, not with what was announced. */
  private reserve(size: number): void {
    const needed = Math.min(size, this.wanted);
    if (needed > this.buffer.length) {
      const grown = new Uint8Array(Math.min(this.wanted, 2 * needed));
      grown.set(this.buffer.subarray(0, this.held));
      this.buffer = grown;
    }
  }

  private complete(): Record<string, unknown> | null {
    if (!this.body) {
      const length = new DataView(this.buffer.buffer).getUint32(0);
      if (length > MAX_JSON) {
        throw new StoreError(
          ErrorCode.TooLarge,
          `a JSON frame of ${length} bytes was announced, where ${MAX_JSON} are allowed; read and write in pieces`,
        );
      }
      [this.body, this.wanted, this.held] = [true, length, 0];
      return length === 0 ? this.complete() : null;
    }
    const text = new TextDecoder().decode(this.buffer.subarray(0, this.held));
    [this.body, this.wanted, this.held] = [false, 4, 0];
    let message: unknown;
    try {
      message = JSON.parse(text);
    } catch {
      message = null;
    }
    if (typeof message !== "object" || message === null || Array.isArray(message)) {
      throw new StoreError(ErrorCode.Protocol, "a JSON frame does not hold a JSON object; send one object per frame");
    }
    return message as Record<string, unknown>;
  }
}

function isRequest(message: Record<string, unknown>): boolean {
  return typeof message["operation"] === "string";
}

function nothing(value: unknown): boolean {
  return value === undefined || value === null;
}

function checked(message: Record<string, unknown>): JsonRequest {
  const { id, path, data, offset, size } = message;
  const count = (value: unknown) => nothing(value) || (Number.isSafeInteger(value) && (value as number) >= 0);
  const text = (value: unknown) => nothing(value) || typeof value === "string";
  if (typeof id !== "string" && typeof id !== "number") {
    throw new StoreError(ErrorCode.Protocol, "a JSON request has no id that is a text or a number; give it one");
  }
  if (!count(offset) || !count(size) || !text(path) || !text(data)) {
    throw new StoreError(
      ErrorCode.Refused,
      "a JSON request has a path or data that is not text, or an offset or size that is not a whole number; correct it",
    );
  }
  return message as unknown as JsonRequest;
}

/** One end of the JSON protocol: answers requests out of `files`, and can ask the other end. */
export class JsonPeer {
  private readonly decoder = new JsonDecoder();
  private readonly waiting = new Map<string | number, (answer: JsonAnswer | StoreError) => void>();
  private asked = 0;

  constructor(
    private readonly send: (bytes: Uint8Array) => Promise<void>,
    private readonly files: JsonFiles,
  ) {}

  /** Takes bytes of the other end over; ends when what they ask is answered, so that reading waits for answering. */
  async receive(bytes: Uint8Array): Promise<void> {
    for (const message of this.decoder.push(bytes)) {
      if (isRequest(message)) {
        await this.send(encodeJson(await this.answer(message)));
      } else {
        const { id } = message as unknown as JsonAnswer;
        this.waiting.get(id)?.(message as unknown as JsonAnswer);
        this.waiting.delete(id);
      }
    }
  }

  /** Asks the other end. */
  async call(request: Omit<JsonRequest, "id">): Promise<JsonAnswer> {
    this.asked += 1;
    const id = `w${this.asked}`;
    const answered = new Promise<JsonAnswer | StoreError>((resolve) => this.waiting.set(id, resolve));
    await this.send(encodeJson({ id, ...request }));
    const answer = await answered;
    if (answer instanceof StoreError) {
      throw answer;
    }
    if (typeof answer.error === "string") {
      throw new StoreError(ErrorCode.Refused, answer.error);
    }
    return answer;
  }

  /** The connection has ended: whoever waits is told so. */
  end(why: StoreError): void {
    for (const settle of this.waiting.values()) {
      settle(why);
    }
    this.waiting.clear();
  }

  private async answer(message: Record<string, unknown>): Promise<JsonAnswer> {
    const id = message["id"] as string | number;
    try {
      return { id, ...(await this.perform(checked(message))) };
    } catch (thrown) {
      const error = asStoreError(thrown);
      if (error.code === ErrorCode.Protocol) {
        throw error;
      }
      return { id, error: error.message };
    }
  }

  private async perform(request: JsonRequest): Promise<Omit<JsonAnswer, "id">> {
    const path = request.path ?? "";
    switch (request.operation) {
      case "read": {
        const bytes = await this.files.read(path, request.offset ?? 0, request.size ?? undefined);
        return { data: toBase64(bytes), success: true };
      }
      case "write": {
        const bytes = fromBase64(request.data ?? "");
        await this.files.write(path, bytes, request.offset ?? undefined);
        return { bytesWritten: bytes.length, success: true };
      }
      case "stat":
        return { stat: await this.files.stat(path), success: true };
      case "readdir":
        return { files: await this.files.readdir(path), success: true };
      case "unlink":
        await this.files.unlink(path);
        return { success: true };
      default:
        throw new StoreError(
          ErrorCode.Refused,
          `the operation '${request.operation}' is unknown; use read, write, stat, readdir or unlink`,
        );
    }
  }
}
