import { hex, utf8 } from "../wire/bytes.js";

/** Keys of a volume's records, as the agent makes them. Numbers in keys are big-endian, so that ranges are in order. */

function numbers(kind: string, ...values: number[]): Uint8Array {
  const key = new Uint8Array(1 + 8 * values.length);
  key.set(utf8(kind));
  const view = new DataView(key.buffer);
  for (const [at, value] of values.entries()) {
    view.setBigUint64(1 + 8 * at, BigInt(value));
  }
  return key;
}

function join(head: Uint8Array, tail: Uint8Array): Uint8Array {
  const key = new Uint8Array(head.length + tail.length);
  key.set(head);
  key.set(tail, head.length);
  return key;
}

/** The volume's format. */
export const FORMAT = utf8("v");
/** The volume's head. */
export const HEAD = utf8("h");
/** What the volume holds. */
export const TOTALS = utf8("t");
/** What the volume may grow to. */
export const QUOTA = utf8("q");
/** Prefix of all inodes. */
export const INODES = utf8("i");

/** An inode. */
export const inodeKey = (inode: number): Uint8Array => numbers("i", inode);

/** The entry `name` of a directory; with an empty name, the prefix of all entries. */
export const dentryKey = (dir: number, name: Uint8Array): Uint8Array => join(numbers("d", dir), name);

/** A block of a file. */
export const blockKey = (inode: number, block: number): Uint8Array => numbers("b", inode, block);

/** Prefix of a file's blocks. */
export const blocksOf = (inode: number): Uint8Array => numbers("b", inode);

/** A chunk, by its name. */
export const chunkKey = (hash: Uint8Array): Uint8Array => join(utf8("c"), hash);

/** A pack. */
export const packKey = (pack: Uint8Array): Uint8Array => join(utf8("p"), pack);

/** The mark of a pack that is to be deleted. */
export const garbageKey = (pack: Uint8Array): Uint8Array => join(utf8("g"), pack);

/** The number at the end of an inode's or a block's key. */
export function lastNumber(key: Uint8Array): number {
  return Number(new DataView(key.buffer, key.byteOffset + key.length - 8).getBigUint64(0));
}

/** A key for people: its letter, and the rest in hexadecimal, shortened. */
export function showKey(key: Uint8Array): string {
  const rest = hex(key.subarray(1, 49));
  return `${String.fromCharCode(key[0] ?? 0x3f)}:${rest}${key.length > 49 ? "…" : ""}`;
}
