import { ErrorCode, StoreError } from "../wire/errors.js";

/** The version byte that leads every record. */
const RECORD_VERSION = 1;

/** Writes a record as the agent does: postcard, led by the version byte. */
export class RecordWriter {
  private readonly bytes: number[] = [RECORD_VERSION];

  /** An unsigned number of any width but a byte: seven bits at a time, the lowest first. */
  uint(value: number | bigint): this {
    let rest = BigInt(value);
    while (rest > 0x7fn) {
      this.bytes.push(Number(rest & 0x7fn) | 0x80);
      rest >>= 7n;
    }
    this.bytes.push(Number(rest));
    return this;
  }

  /** A signed number: zigzag, then as an unsigned one. */
  int(value: number): this {
    const wide = BigInt(value);
    return this.uint(wide < 0n ? -2n * wide - 1n : 2n * wide);
  }

  /** Bytes of a known number. */
  fixed(bytes: Uint8Array): this {
    for (const byte of bytes) {
      this.bytes.push(byte);
    }
    return this;
  }

  /** Bytes, led by their number. */
  sequence(bytes: Uint8Array): this {
    return this.uint(bytes.length).fixed(bytes);
  }

  finish(): Uint8Array {
    return Uint8Array.from(this.bytes);
  }
}

/** Reads a record; whatever does not fit is damage, named by its key. */
export class RecordReader {
  private at = 1;

  constructor(
    private readonly bytes: Uint8Array,
    private readonly key: string,
  ) {
    if (bytes.length === 0) {
      this.fail("is empty");
    }
    if (bytes[0] !== RECORD_VERSION) {
      this.fail(`has the unknown version ${bytes[0]}`);
    }
  }

  /** Throws that this record is damaged. */
  fail(how: string): never {
    throw new StoreError(
      ErrorCode.Damaged,
      `the metadata record ${this.key} ${how}; use the version that wrote it, or restore the Durable Object to an ` +
        "earlier point in time",
    );
  }

  private byte(): number {
    const byte = this.bytes[this.at];
    this.at += 1;
    return byte ?? this.fail("is malformed");
  }

  /** An unsigned number of up to `bits` bits. */
  big(bits: number): bigint {
    let value = 0n;
    for (let shift = 0n; shift < bits; shift += 7n) {
      const byte = this.byte();
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) {
        return value >> BigInt(bits) === 0n ? value : this.fail("is malformed");
      }
    }
    return this.fail("is malformed");
  }

  /** An unsigned number that JavaScript can count with. */
  uint(bits: 32 | 64): number {
    const value = Number(this.big(bits));
    return Number.isSafeInteger(value) ? value : this.fail(`has the number ${value}, which is beyond 2^53`);
  }

  /** A signed number. */
  int(): number {
    const coded = this.big(64);
    const value = Number(coded & 1n ? -(coded >> 1n) - 1n : coded >> 1n);
    return Number.isSafeInteger(value) ? value : this.fail(`has the number ${value}, which is beyond 2^53`);
  }

  fixed(length: number): Uint8Array {
    const from = this.at;
    this.at += length;
    return this.at > this.bytes.length ? this.fail("is malformed") : this.bytes.subarray(from, this.at);
  }

  sequence(): Uint8Array {
    return this.fixed(this.uint(64));
  }

  /** As many items as the record says; each takes a byte at least. */
  list<T>(read: () => T): T[] {
    const count = this.uint(64);
    const items: T[] = [];
    while (items.length < count) {
      items.push(read());
    }
    return items;
  }

  /** The record ends here. */
  end<T>(record: T): T {
    return this.at === this.bytes.length ? record : this.fail("has bytes behind its end");
  }
}
