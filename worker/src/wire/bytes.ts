import { ErrorCode, StoreError } from "./errors.js";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The bytes of a text. */
export function utf8(text: string): Uint8Array {
  return encoder.encode(text);
}

/** The text in bytes; what is not UTF-8 becomes U+FFFD. */
export function lossyText(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

/** Bytes in hexadecimal. */
export function hex(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) {
    text += byte.toString(16).padStart(2, "0");
  }
  return text;
}

/** The bytes of a text in hexadecimal, or `null` where it is none. */
export function unhex(text: string): Uint8Array | null {
  if (text.length % 2 !== 0 || !/^[0-9a-f]*$/.test(text)) {
    return null;
  }
  const bytes = new Uint8Array(text.length / 2);
  for (let at = 0; at < bytes.length; at++) {
    bytes[at] = Number.parseInt(text.slice(2 * at, 2 * at + 2), 16);
  }
  return bytes;
}

/** Whether two byte strings are the same. */
export function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && compare(a, b) === 0;
}

/** Order of two byte strings, as SQLite and the agent have it. */
export function compare(a: Uint8Array, b: Uint8Array): number {
  const shorter = Math.min(a.length, b.length);
  for (let at = 0; at < shorter; at++) {
    const difference = (a[at] as number) - (b[at] as number);
    if (difference !== 0) {
      return difference;
    }
  }
  return a.length - b.length;
}

/** Pieces as one. */
export function concat(pieces: readonly Uint8Array[]): Uint8Array {
  if (pieces.length === 1) {
    return pieces[0] as Uint8Array;
  }
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/** Puts a message's body together. Numbers are little-endian. */
export class Writer {
  private bytes = new Uint8Array(256);
  private view = new DataView(this.bytes.buffer);
  private length = 0;

  /** Where the next bytes go. It may move the buffer, so that callers take the buffer after it. */
  private room(more: number): number {
    const at = this.length;
    this.length += more;
    if (this.length > this.bytes.length) {
      const grown = new Uint8Array(Math.max(this.length, 2 * this.bytes.length));
      grown.set(this.bytes.subarray(0, at));
      this.bytes = grown;
      this.view = new DataView(grown.buffer);
    }
    return at;
  }

  u8(value: number): this {
    const at = this.room(1);
    this.view.setUint8(at, value);
    return this;
  }

  u16(value: number): this {
    const at = this.room(2);
    this.view.setUint16(at, value, true);
    return this;
  }

  u32(value: number): this {
    const at = this.room(4);
    this.view.setUint32(at, value, true);
    return this;
  }

  u64(value: number): this {
    const at = this.room(8);
    this.view.setBigUint64(at, BigInt(value), true);
    return this;
  }

  i64(value: number): this {
    const at = this.room(8);
    this.view.setBigInt64(at, BigInt(value), true);
    return this;
  }

  /** Bytes without a length. */
  raw(bytes: Uint8Array): this {
    const at = this.room(bytes.length);
    this.bytes.set(bytes, at);
    return this;
  }

  /** Up to 65,535 bytes, led by their number in 2 bytes. */
  short(bytes: Uint8Array): this {
    if (bytes.length > 0xffff) {
      throw new StoreError(ErrorCode.Refused, `${bytes.length} bytes do not fit a field of 65535 bytes; shorten them`);
    }
    return this.u16(bytes.length).raw(bytes);
  }

  /** Bytes, led by their number in 4 bytes. */
  long(bytes: Uint8Array): this {
    return this.u32(bytes.length).raw(bytes);
  }

  /** What was written. */
  finish(): Uint8Array {
    return this.bytes.subarray(0, this.length);
  }
}

/** Takes a message's body apart. Whatever does not fit is a protocol error that names the field. */
export class Reader {
  private at = 0;
  private readonly view: DataView;

  constructor(
    private readonly bytes: Uint8Array,
    /** Which message, for errors. */
    private readonly what: string,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  private fail(how: string): never {
    throw new StoreError(ErrorCode.Protocol, `a ${this.what} message ${how}; use matching versions on both sides`);
  }

  private take(length: number): number {
    if (this.bytes.length - this.at < length) {
      this.fail(`ends after ${this.bytes.length} bytes, where ${this.at + length} are needed`);
    }
    const from = this.at;
    this.at += length;
    return from;
  }

  u8(): number {
    return this.view.getUint8(this.take(1));
  }

  /** 0 or 1. */
  flag(): boolean {
    const value = this.u8();
    return value > 1 ? this.fail(`has ${value} where 0 or 1 stands`) : value === 1;
  }

  u16(): number {
    return this.view.getUint16(this.take(2), true);
  }

  u32(): number {
    return this.view.getUint32(this.take(4), true);
  }

  u64(): number {
    return this.safe(this.view.getBigUint64(this.take(8), true));
  }

  i64(): number {
    return this.safe(this.view.getBigInt64(this.take(8), true));
  }

  private safe(value: bigint): number {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : this.fail(`has the number ${value}, which is beyond 2^53`);
  }

  raw(length: number): Uint8Array {
    const from = this.take(length);
    return this.bytes.subarray(from, from + length);
  }

  short(): Uint8Array {
    return this.raw(this.u16());
  }

  long(): Uint8Array {
    return this.raw(this.u32());
  }

  text(): string {
    const bytes = this.short();
    try {
      return decoder.decode(bytes);
    } catch {
      return this.fail("has a text that is not UTF-8");
    }
  }

  /** Everything that is left. */
  rest(): Uint8Array {
    return this.raw(this.bytes.length - this.at);
  }

  /** How many bytes are left. */
  get left(): number {
    return this.bytes.length - this.at;
  }

  /** Nothing may be left. */
  end(): void {
    if (this.at !== this.bytes.length) {
      this.fail(`has ${this.bytes.length - this.at} bytes behind its end`);
    }
  }
}
