import { showKey } from "./keys.js";
import { RecordReader, RecordWriter } from "./postcard.js";

/**
 * What the values of a volume's metadata mean: the same as agent/src/meta/records.rs, byte for byte. Both are held to
 * worker/test/records.json.
 */

/** Version of the records. */
export const FORMAT_VERSION = 2;
/** Bytes of a file that one block describes. */
export const BLOCK_SIZE = 4 << 20;
/** Bytes of a chunk that one frame holds (fewer in the last one): the least that can be read and checked alone. */
export const FRAME_SIZE = 128 << 10;
/** The root directory's inode number. */
export const ROOT_INODE = 1;

/** The volume itself. */
export interface Format {
  version: number;
  volumeId: bigint;
}

/** Where a volume stands. */
export interface Head {
  /** Number of the commit. */
  seq: number;
  /** Tells our own commit from another's. */
  nonce: bigint;
  /** Wall clock of the commit, in nanoseconds since 1970. */
  cutAt: bigint;
}

/** A point in time. */
export interface Time {
  secs: number;
  nanos: number;
}

/** Everything of an inode but its names and its data. */
export interface Inode {
  mode: number;
  uid: number;
  gid: number;
  rdev: number;
  size: number;
  mtime: Time;
  links: number;
  target: Uint8Array;
  xattrs: [name: Uint8Array, value: Uint8Array][];
}

/** A piece of a block that has data; what no extent covers reads as zeros. */
export interface Extent {
  start: number;
  len: number;
  chunk: Uint8Array;
  chunkOffset: number;
}

/** Where a chunk's bytes are: in the record, or in a pack from `offset` on. */
export type Location = { inline: Uint8Array } | { pack: Uint8Array; offset: number };

/** A part of a stored chunk that can be read and checked without the rest. */
export interface Frame {
  /** Length as stored; the frames of a chunk lie one after another. */
  storedLen: number;
  /** BLAKE3 of its bytes before compression, the first half. */
  hash: Uint8Array;
}

/** A stored chunk. */
export interface Chunk {
  /** Extents that use it. */
  refs: number;
  len: number;
  storedLen: number;
  codec: "raw" | "zstd";
  /** Its parts, in order; none where the chunk is not longer than {@link FRAME_SIZE}. */
  frames: Frame[];
  location: Location;
}

/** A pack in the blob store. */
export interface Pack {
  size: number;
  /** Bytes of chunks in use. */
  live: number;
}

/** What the volume holds; absent in a volume without commits. */
export interface Totals {
  /** The next free inode number. */
  nextInode: number;
  /** Inodes of all kinds. */
  inodes: number;
  /** Regular files. */
  files: number;
  /** Bytes in regular files, as their sizes say. */
  bytes: number;
}

/** What the volume may grow to; `null` is without limit. */
export interface Quota {
  /** Bytes in regular files, as their sizes say. */
  bytes: number | null;
  /** Inodes of all kinds. */
  inodes: number | null;
}

/** How one kind of record is written and read. */
export interface RecordShape<T> {
  encode(record: T): Uint8Array;
  /** Throws that the record at `key` is damaged. */
  decode(key: Uint8Array, value: Uint8Array): T;
}

function record<T>(write: (to: RecordWriter, value: T) => void, read: (from: RecordReader) => T): RecordShape<T> {
  return {
    encode(value) {
      const to = new RecordWriter();
      write(to, value);
      return to.finish();
    },
    decode(key, bytes) {
      const from = new RecordReader(bytes, showKey(key));
      return from.end(read(from));
    },
  };
}

/** {@link Format}. */
export const FormatRecord: RecordShape<Format> = record(
  (to, format) => to.uint(format.version).uint(format.volumeId),
  (from) => ({ version: from.uint(32), volumeId: from.big(128) }),
);

/** {@link Head}. */
export const HeadRecord: RecordShape<Head> = record(
  (to, head) => to.uint(head.seq).uint(head.nonce).uint(head.cutAt),
  (from) => ({ seq: from.uint(64), nonce: from.big(128), cutAt: from.big(64) }),
);

/** {@link Inode}. */
export const InodeRecord: RecordShape<Inode> = record(
  (to, inode) => {
    to.uint(inode.mode).uint(inode.uid).uint(inode.gid).uint(inode.rdev).uint(inode.size);
    to.int(inode.mtime.secs).uint(inode.mtime.nanos).uint(inode.links).sequence(inode.target);
    to.uint(inode.xattrs.length);
    for (const [name, value] of inode.xattrs) {
      to.sequence(name).sequence(value);
    }
  },
  (from) => {
    const [mode, uid, gid, rdev, size] = [from.uint(32), from.uint(32), from.uint(32), from.uint(64), from.uint(64)];
    const mtime = { secs: from.int(), nanos: from.uint(32) };
    const [links, target] = [from.uint(32), from.sequence()];
    const xattrs = from.list((): [Uint8Array, Uint8Array] => [from.sequence(), from.sequence()]);
    return { mode, uid, gid, rdev, size, mtime, links, target, xattrs };
  },
);

/** The extents of one block, sorted, not overlapping. */
export const BlockRecord: RecordShape<Extent[]> = record(
  (to, extents) => {
    to.uint(extents.length);
    for (const extent of extents) {
      to.uint(extent.start).uint(extent.len).fixed(extent.chunk).uint(extent.chunkOffset);
    }
  },
  (from) =>
    from.list(() => ({
      start: from.uint(32),
      len: from.uint(32),
      chunk: from.fixed(32),
      chunkOffset: from.uint(32),
    })),
);

/** {@link Chunk}. */
export const ChunkRecord: RecordShape<Chunk> = record(
  (to, chunk) => {
    to.uint(chunk.refs).uint(chunk.len).uint(chunk.storedLen);
    to.uint(chunk.codec === "zstd" ? 1 : 0).uint(chunk.frames.length);
    for (const frame of chunk.frames) {
      to.uint(frame.storedLen).fixed(frame.hash);
    }
    if ("inline" in chunk.location) {
      to.uint(0).sequence(chunk.location.inline);
    } else {
      to.uint(1).fixed(chunk.location.pack).uint(chunk.location.offset);
    }
  },
  (from) => {
    const [refs, len, storedLen] = [from.uint(32), from.uint(32), from.uint(32)];
    const codec = choice(from, ["raw", "zstd"] as const);
    const frames = from.list(() => ({ storedLen: from.uint(32), hash: from.fixed(16) }));
    const where = choice(from, ["inline", "pack"] as const);
    const location = where === "inline" ? { inline: from.sequence() } : { pack: from.fixed(16), offset: from.uint(32) };
    return { refs, len, storedLen, codec, frames, location };
  },
);

/** {@link Pack}. */
export const PackRecord: RecordShape<Pack> = record(
  (to, pack) => to.uint(pack.size).uint(pack.live),
  (from) => ({ size: from.uint(64), live: from.uint(64) }),
);

/** {@link Totals}. */
export const TotalsRecord: RecordShape<Totals> = record(
  (to, totals) => to.uint(totals.nextInode).uint(totals.inodes).uint(totals.files).uint(totals.bytes),
  (from) => ({ nextInode: from.uint(64), inodes: from.uint(64), files: from.uint(64), bytes: from.uint(64) }),
);

/** {@link Quota}. */
export const QuotaRecord: RecordShape<Quota> = record(
  (to, quota) => {
    for (const most of [quota.bytes, quota.inodes]) {
      if (most === null) {
        to.uint(0);
      } else {
        to.uint(1).uint(most);
      }
    }
  },
  (from) => {
    const most = () => (choice(from, ["none", "some"] as const) === "none" ? null : from.uint(64));
    return { bytes: most(), inodes: most() };
  },
);

function choice<const T extends readonly string[]>(from: RecordReader, names: T): T[number] {
  return names[from.uint(32)] ?? from.fail("is malformed");
}

/** The value of a directory entry: the child's inode number. */
export function encodeChild(inode: number): Uint8Array {
  const value = new Uint8Array(8);
  new DataView(value.buffer).setBigUint64(0, BigInt(inode));
  return value;
}

/** See {@link encodeChild}. */
export function decodeChild(key: Uint8Array, value: Uint8Array): number {
  if (value.length !== 8) {
    new RecordReader(Uint8Array.of(1), showKey(key)).fail(`has ${value.length} bytes instead of 8`);
  }
  return Number(new DataView(value.buffer, value.byteOffset).getBigUint64(0));
}

/** A random number of 128 bits. */
export function random128(): bigint {
  return crypto.getRandomValues(new BigUint64Array(2)).reduce((sum, part) => (sum << 64n) | part, 0n);
}

/** The format of a new volume. */
export function newFormat(): Uint8Array {
  return FormatRecord.encode({ version: FORMAT_VERSION, volumeId: random128() });
}
