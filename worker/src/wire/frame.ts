import { concat, Writer } from "./bytes.js";
import { ErrorCode, StoreError } from "./errors.js";

/** The first bytes on a connection, from either side. Read as the length of a JSON frame they are beyond any limit. */
export const MAGIC = new Uint8Array([0x53, 0x53, 0x57, 0x49, 0x52, 0x45, 0x0d, 0x0a]);
/** Bytes of the preamble. */
export const PREAMBLE = 16;
/** Lowest version that this side speaks. */
export const LOWEST_VERSION = 1;
/** Highest version that this side speaks. */
export const HIGHEST_VERSION = 1;
/** Bytes of a frame in front of its body. */
export const HEADER = 24;
/** Largest body of one frame; longer messages go in several. */
export const MAX_BODY = 1 << 20;
/** Largest message, all its frames together. */
export const MAX_MESSAGE = 32 << 20;

/** Bytes that are worth being read in their place. */
const LENT = 64 << 10;

/** Bits of a frame's flags. */
export const Flag = {
  /** Answers the request of this number. */
  Answer: 1,
  /** An answer that is an error. */
  Error: 2,
  /** The message goes on in another frame. */
  More: 4,
} as const;

/** One frame. */
export interface Frame {
  op: number;
  flags: number;
  /** Number of the request, counted by the side that asks; 0 where nothing is answered. */
  id: number;
  /** Epoch under which a request is made; 0 for none. */
  epoch: number;
  body: Uint8Array;
}

/** The preamble of this side. */
export function encodePreamble(lowest = LOWEST_VERSION, highest = HIGHEST_VERSION): Uint8Array {
  return new Writer().raw(MAGIC).u16(lowest).u16(highest).u32(0).finish();
}

/** The version that both sides speak best, from the preamble of the other side. */
export function agreeVersion(preamble: Uint8Array): number {
  const view = new DataView(preamble.buffer, preamble.byteOffset, preamble.byteLength);
  const [lowest, highest] = [view.getUint16(8, true), view.getUint16(10, true)];
  const version = Math.min(highest, HIGHEST_VERSION);
  if (version < Math.max(lowest, LOWEST_VERSION)) {
    throw new StoreError(
      ErrorCode.Version,
      `the other side speaks versions ${lowest} to ${highest} of the protocol, this side ${LOWEST_VERSION} to ` +
        `${HIGHEST_VERSION}; update the older of agent and Worker`,
    );
  }
  return version;
}

/** A frame as bytes. */
export function encodeFrame(frame: Frame): Uint8Array {
  const bytes = new Uint8Array(HEADER + frame.body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, HEADER - 4 + frame.body.length, true);
  view.setUint8(4, frame.op);
  view.setUint8(5, frame.flags);
  view.setBigUint64(8, BigInt(frame.id), true);
  view.setBigUint64(16, BigInt(frame.epoch), true);
  bytes.set(frame.body, HEADER);
  return bytes;
}

/** A message as frames. */
export function* split(message: Frame): Generator<Frame> {
  let at = 0;
  do {
    const body = message.body.subarray(at, at + MAX_BODY);
    at += body.length;
    const more = at < message.body.length ? Flag.More : 0;
    yield { ...message, flags: message.flags | more, body };
  } while (at < message.body.length);
}

function garbage(how: string): StoreError {
  return new StoreError(ErrorCode.Protocol, `the other side sent ${how}; it must speak storeshim's protocol`);
}

function decodeHeader(header: Uint8Array): { frame: Omit<Frame, "body">; body: number } {
  const view = new DataView(header.buffer, header.byteOffset, header.byteLength);
  const length = view.getUint32(0, true);
  const [op, flags, zero] = [view.getUint8(4), view.getUint8(5), view.getUint16(6, true)];
  const [id, epoch] = [Number(view.getBigUint64(8, true)), Number(view.getBigUint64(16, true))];
  if (length < HEADER - 4 || zero !== 0 || (flags & ~7) !== 0) {
    throw garbage("bytes that are no frame");
  }
  if (length > HEADER - 4 + MAX_BODY) {
    throw new StoreError(
      ErrorCode.TooLarge,
      `a frame of ${length} bytes was announced, where ${HEADER - 4 + MAX_BODY} are allowed; split it`,
    );
  }
  if (!Number.isSafeInteger(id) || !Number.isSafeInteger(epoch)) {
    throw garbage("a number beyond 2^53");
  }
  return { frame: { op, flags, id, epoch }, body: length - (HEADER - 4) };
}

/** Cuts a stream of bytes, however it arrives, into the preamble and frames. */
export class FrameDecoder {
  /** What is being received: the preamble, a header or a body, each of a known and bounded size. */
  private buffer = new Uint8Array(PREAMBLE);
  private held = 0;
  private header: Omit<Frame, "body"> | null = null;
  /** The version agreed on; 0 until the preamble has arrived. */
  version = 0;

  /** Takes bytes over and gives the frames that they complete. Throws a {@link StoreError} for what cannot be one. */
  *push(bytes: Uint8Array): Generator<Frame> {
    let rest = bytes;
    while (rest.length > 0) {
      const wanted = rest.subarray(0, this.buffer.length - this.held);
      this.buffer.set(wanted, this.held);
      this.held += wanted.length;
      rest = rest.subarray(wanted.length);
      if (this.version === 0) {
        this.checkMagic();
      }
      if (this.held === this.buffer.length) {
        const frame = this.complete(this.buffer);
        if (frame !== null) {
          yield frame;
        }
      }
    }
  }

  /**
   * Where what is left of a large body may be put, instead of {@link push} copying it; to be given back by {@link filled}. `null`
   * where nothing large is awaited.
   */
  lend(): Uint8Array | null {
    return this.header !== null && this.buffer.length - this.held >= LENT ? this.buffer.subarray(this.held) : null;
  }

  /** Takes the bytes at the begin of what was lent, in whatever buffer they are now, and gives the frame that they complete. */
  *filled(bytes: Uint8Array): Generator<Frame> {
    this.buffer = new Uint8Array(bytes.buffer as ArrayBuffer);
    this.held += bytes.length;
    const frame = this.held === this.buffer.length ? this.complete(this.buffer) : null;
    if (frame !== null) {
      yield frame;
    }
  }

  /** Whether the stream may end here. */
  get idle(): boolean {
    return this.held === 0 && this.header === null && this.version > 0;
  }

  /** Garbage is told by its first byte, not only when 16 have come. */
  private checkMagic(): void {
    for (let at = 0; at < Math.min(this.held, MAGIC.length); at++) {
      if (this.buffer[at] !== MAGIC[at]) {
        throw garbage("bytes that are not the protocol's first ones");
      }
    }
  }

  private await(size: number): void {
    this.buffer = new Uint8Array(size);
    this.held = 0;
  }

  private complete(whole: Uint8Array): Frame | null {
    if (this.version === 0) {
      this.version = agreeVersion(whole);
      this.await(HEADER);
      return null;
    }
    if (this.header !== null) {
      const frame = { ...this.header, body: whole };
      this.header = null;
      this.await(HEADER);
      return frame;
    }
    const { frame, body } = decodeHeader(whole);
    if (body > 0) {
      this.header = frame;
      this.await(body);
      return null;
    }
    this.await(HEADER);
    return { ...frame, body: new Uint8Array(0) };
  }
}

/** Puts messages together from their frames, which may alternate with those of other messages. */
export class Assembler {
  private readonly partial = new Map<string, { pieces: Uint8Array[]; size: number }>();
  /** Bytes held of messages that are not whole. */
  held = 0;

  /** Takes a frame; gives the message when it is whole. */
  push(frame: Frame): Frame | null {
    const key = `${frame.flags & Flag.Answer}:${frame.id}:${frame.op}`;
    const begun = this.partial.get(key);
    const more = (frame.flags & Flag.More) !== 0;
    if (begun === undefined && !more) {
      return frame;
    }
    const message = begun ?? { pieces: [], size: 0 };
    message.pieces.push(frame.body);
    message.size += frame.body.length;
    this.held += frame.body.length;
    if (this.held > MAX_MESSAGE) {
      throw new StoreError(
        ErrorCode.TooLarge,
        `a message is larger than ${MAX_MESSAGE} bytes, or too many are half sent; split it, or send one after another`,
      );
    }
    if (more) {
      this.partial.set(key, message);
      return null;
    }
    this.partial.delete(key);
    this.held -= message.size;
    return { ...frame, flags: frame.flags & ~Flag.More, body: concat(message.pieces) };
  }
}
