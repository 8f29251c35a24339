import { concat, utf8, Writer } from "../wire/bytes.js";
import { nameOf } from "./chunks.js";

/** The layout of a pack; see agent/src/blob/pack.rs. Chunks are stored here as they are. */

const VERSION = 1;
const MAGIC = utf8("SSPACK\0\n");
/** A pack is finished before it grows beyond this, in bytes: half of the agent's, to spare the isolate's memory. */
const TARGET = 8 << 20;

/** Puts a pack together. */
export class PackWriter {
  private readonly chunks: { hash: Uint8Array; bytes: Uint8Array; offset: number }[] = [];
  private size = 0;

  /** Whether nothing has been appended. */
  get empty(): boolean {
    return this.chunks.length === 0;
  }

  /** Whether a chunk of this size still fits; the first one always does. */
  fits(size: number): boolean {
    return this.empty || this.size + size <= TARGET;
  }

  /** Appends a chunk; says where in the pack it lies. */
  append(hash: Uint8Array, bytes: Uint8Array): number {
    const offset = this.size;
    this.chunks.push({ hash, bytes, offset });
    this.size += bytes.length;
    return offset;
  }

  /** The finished pack. */
  finish(): Uint8Array {
    const trailer = new Writer();
    for (const { hash, bytes, offset } of this.chunks) {
      trailer.raw(hash).u32(offset).u32(bytes.length).u32(bytes.length).u32(0);
    }
    trailer.u32(this.chunks.length).u32(VERSION);
    const covered = trailer.finish();
    const entries = covered.subarray(0, covered.length - 8);
    const footer = covered.subarray(covered.length - 8);
    return concat([...this.chunks.map((chunk) => chunk.bytes), entries, nameOf(covered), footer, MAGIC]);
  }
}
