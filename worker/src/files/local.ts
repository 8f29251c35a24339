import type { VolumeStore } from "../store/store.js";
import { hex, utf8 } from "../wire/bytes.js";
import { ErrorCode, fileError, StoreError } from "../wire/errors.js";
import type { Stat } from "../wire/messages.js";
import { readChunk } from "./chunks.js";
import * as keys from "./keys.js";
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, showPath, splitPath } from "./paths.js";
import {
  BLOCK_SIZE,
  BlockRecord,
  type Chunk,
  ChunkRecord,
  decodeChild,
  type Extent,
  FORMAT_VERSION,
  FormatRecord,
  type Inode,
  InodeRecord,
  ROOT_INODE,
  type Totals,
  TotalsRecord,
} from "./records.js";

/** Symbolic links followed in one path, as on Linux. */
const MOST_LINKS = 40;
/** Decoded chunks that are kept, in bytes: neighbouring reads mostly want the same one. */
const CACHE = 8 << 20;

/** An inode with its number. */
export interface Found {
  number: number;
  inode: Inode;
}

/** Where records are read: the store itself, or an edit over it. */
export interface Records {
  get(key: Uint8Array): Uint8Array | null;
}

/** A new volume's root, which no agent has committed yet. */
export function newInode(mode: number, owner: { uid: number; gid: number }): Inode {
  const none: Inode["xattrs"] = [];
  const mtime = timeOf(Date.now());
  return {
    mode,
    uid: owner.uid,
    gid: owner.gid,
    rdev: 0,
    size: 0,
    mtime,
    links: 1,
    target: new Uint8Array(0),
    xattrs: none,
  };
}

/** A time in milliseconds as records have it. */
export function timeOf(milliseconds: number): Inode["mtime"] {
  const secs = Math.floor(milliseconds / 1000);
  return { secs, nanos: Math.round((milliseconds - secs * 1000) * 1e6) };
}

/** Reads a volume's files out of its records and packs: what was committed, as the next agent will restore it. */
export class LocalFiles {
  private readonly cache = new Map<string, Uint8Array>();
  private cached = 0;

  constructor(
    readonly store: VolumeStore,
    /** Where programs see the volume: absolute symbolic links into it are followed. */
    private readonly mountPath: string,
  ) {}

  /** Refuses a volume of another format. */
  checkFormat(): void {
    const value = this.store.meta.get(keys.FORMAT);
    const version = value === null ? FORMAT_VERSION : FormatRecord.decode(keys.FORMAT, value).version;
    if (version !== FORMAT_VERSION) {
      throw new StoreError(
        ErrorCode.Damaged,
        `the volume has format version ${version}, this Worker knows version ${FORMAT_VERSION}; update storeshim-worker`,
      );
    }
  }

  /** What the volume holds; counted where its commits have not told it yet. */
  totals(): Totals {
    const value = this.store.meta.get(keys.TOTALS);
    if (value !== null) {
      return TotalsRecord.decode(keys.TOTALS, value);
    }
    const totals = { nextInode: ROOT_INODE + 1, inodes: 0, files: 0, bytes: 0 };
    let after: Uint8Array | null = null;
    for (let more = true; more; ) {
      const page = this.store.meta.scan({ prefix: keys.INODES, after, maxPairs: 1000, maxBytes: 1 << 20 });
      for (const [key, record] of page.pairs) {
        this.count(totals, key, record, 1);
        totals.nextInode = Math.max(totals.nextInode, keys.lastNumber(key) + 1);
        after = key;
      }
      more = page.more;
    }
    return totals;
  }

  /** Adds what an inode's record counts for `times` times. */
  count(totals: Totals, key: Uint8Array, record: Uint8Array | null, times: 1 | -1): void {
    if (record !== null) {
      const inode = InodeRecord.decode(key, record);
      const file = (inode.mode & S_IFMT) === S_IFREG;
      totals.inodes += times;
      totals.files += file ? times : 0;
      totals.bytes += file ? times * inode.size : 0;
    }
  }

  /** An inode's record. */
  inode(records: Records, number: number): Inode | null {
    const key = keys.inodeKey(number);
    const value = records.get(key);
    if (value === null) {
      return number === ROOT_INODE ? newInode(S_IFDIR | 0o755, { uid: 0, gid: 0 }) : null;
    }
    return InodeRecord.decode(key, value);
  }

  /** The inode that a name stands for. */
  child(records: Records, dir: number, name: Uint8Array): Found | null {
    const key = keys.dentryKey(dir, name);
    const value = records.get(key);
    if (value === null) {
      return null;
    }
    const number = decodeChild(key, value);
    const inode = this.inode(records, number);
    if (inode === null) {
      throw new StoreError(
        ErrorCode.Damaged,
        `the directory entry ${keys.showKey(key)} names the inode ${number}, which the volume does not have; restore the ` +
          "Durable Object to an earlier point in time",
      );
    }
    return { number, inode };
  }

  /** Walks a path; `null` where its last name is absent. */
  walk(records: Records, path: readonly Uint8Array[], follow: boolean): Found | null {
    const todo = [...path];
    const above: Found[] = [];
    let links = 0;
    let here: Found = { number: ROOT_INODE, inode: this.inode(records, ROOT_INODE) as Inode };
    for (let name = todo.shift(); name !== undefined; name = todo.shift()) {
      if ((here.inode.mode & S_IFMT) !== S_IFDIR) {
        throw fileError("ENOTDIR", `a name in front of the last one in '${showPath(path)}' is not a directory`);
      }
      if (name.length === 2 && name[0] === 0x2e && name[1] === 0x2e) {
        here = above.pop() ?? here;
        continue;
      }
      const next = this.child(records, here.number, name);
      if (next === null) {
        if (todo.length === 0) {
          return null;
        }
        throw fileError("ENOENT", `a directory of '${showPath(path)}' does not exist`);
      }
      if ((next.inode.mode & S_IFMT) === S_IFLNK && (todo.length > 0 || follow)) {
        links += 1;
        if (links > MOST_LINKS) {
          throw fileError("ELOOP", `'${showPath(path)}' leads through more than ${MOST_LINKS} symbolic links`);
        }
        const target = this.target(next.inode.target, path);
        if (target.fromRoot) {
          here = { number: ROOT_INODE, inode: this.inode(records, ROOT_INODE) as Inode };
          above.length = 0;
        }
        todo.unshift(...target.parts);
      } else {
        above.push(here);
        here = next;
      }
    }
    return here;
  }

  private target(target: Uint8Array, path: readonly Uint8Array[]): { parts: Uint8Array[]; fromRoot: boolean } {
    if (target[0] !== 0x2f) {
      return { parts: splitPath(target), fromRoot: false };
    }
    const parts = splitPath(target);
    const mount = splitPath(utf8(this.mountPath));
    const inside = mount.every((name, at) => hex(parts[at] ?? new Uint8Array(0)) === hex(name));
    if (!inside) {
      throw fileError("ENOENT", `'${showPath(path)}' leads out of the volume by a symbolic link`);
    }
    return { parts: parts.slice(mount.length), fromRoot: true };
  }

  /** The inode of a path, which has to exist. */
  find(path: readonly Uint8Array[], follow: boolean): Found {
    this.checkFormat();
    const found = this.walk(this.store.meta, path, follow);
    if (found === null) {
      throw fileError("ENOENT", `'${showPath(path)}' does not exist`);
    }
    return found;
  }

  /** What stat tells of an inode. */
  statOf({ number, inode }: Found): Stat {
    const { mode, uid, gid, links, size } = inode;
    const mtime = inode.mtime.secs * 1000 + Math.floor(inode.mtime.nanos / 1e6);
    return { inode: number, mode, uid, gid, links, size, mtime, version: this.store.meta.version };
  }

  async stat(path: Uint8Array[], follow: boolean): Promise<Stat> {
    return this.statOf(this.find(path, follow));
  }

  async list(
    path: Uint8Array[],
    after: Uint8Array,
    max: number,
  ): Promise<{ more: boolean; entries: { name: Uint8Array; stat: Stat }[] }> {
    const dir = this.find(path, true);
    if ((dir.inode.mode & S_IFMT) !== S_IFDIR) {
      throw fileError("ENOTDIR", `'${showPath(path)}' is not a directory; read it as a file`);
    }
    const prefix = keys.dentryKey(dir.number, new Uint8Array(0));
    const from = after.length === 0 ? null : keys.dentryKey(dir.number, after);
    const page = this.store.meta.scan({ prefix, after: from, maxPairs: max, maxBytes: 1 << 20 });
    const entries = page.pairs.map(([key]) => {
      const name = key.subarray(prefix.length);
      return { name, stat: this.statOf(this.child(this.store.meta, dir.number, name) as Found) };
    });
    return { more: page.more, entries };
  }

  async read(path: Uint8Array[], offset: number, length: number): Promise<{ stat: Stat; bytes: Uint8Array }> {
    for (let attempt = 1; ; attempt++) {
      const found = this.find(path, true);
      if ((found.inode.mode & S_IFMT) !== S_IFREG) {
        const [code, what] = (found.inode.mode & S_IFMT) === S_IFDIR ? (["EISDIR", "a directory"] as const) : NO_DATA;
        throw fileError(code, `'${showPath(path)}' is ${what}, not a file that can be read`);
      }
      const stat = this.statOf(found);
      try {
        const end = Math.min(offset + length, found.inode.size);
        return { stat, bytes: await this.bytes(found.number, offset, end) };
      } catch (thrown) {
        // A commit may have taken a pack away while we were reading; then what it left is to be read.
        if (attempt === 3 || this.store.meta.version === stat.version) {
          throw thrown;
        }
      }
    }
  }

  /** Bytes `start` to `end` of a file; holes are zeros. All records are read before anything is waited for. */
  async bytes(inode: number, start: number, end: number): Promise<Uint8Array> {
    const pieces: { from: number; to: number; skip: number; hash: Uint8Array; chunk: Chunk }[] = [];
    for (let block = Math.floor(start / BLOCK_SIZE); block * BLOCK_SIZE < end; block++) {
      for (const extent of this.extents(this.store.meta, inode, block)) {
        const at = block * BLOCK_SIZE + extent.start;
        const [from, to] = [Math.max(start, at), Math.min(end, at + extent.len)];
        const skip = extent.chunkOffset + from - at;
        if (from < to) {
          pieces.push({ from, to, skip, hash: extent.chunk, chunk: this.chunkOf(extent.chunk, skip + to - from) });
        }
      }
    }
    const whole = new Uint8Array(Math.max(0, end - start));
    for (const { from, to, skip, hash, chunk } of pieces) {
      const bytes = await this.load(hash, chunk);
      whole.set(bytes.subarray(skip, skip + to - from), from - start);
    }
    return whole;
  }

  /** The record of a chunk that has to have `needed` bytes. */
  private chunkOf(hash: Uint8Array, needed: number): Chunk {
    const chunk = this.chunkRecord(this.store.meta, hash);
    if (chunk === null || chunk.len < needed) {
      throw new StoreError(
        ErrorCode.Damaged,
        `the chunk ${hex(hash)} is used but ${chunk === null ? "not stored" : "too short"}; restore the Durable Object ` +
          "to an earlier point in time",
      );
    }
    return chunk;
  }

  /** The extents of a block. */
  extents(records: Records, inode: number, block: number): Extent[] {
    const key = keys.blockKey(inode, block);
    const value = records.get(key);
    return value === null ? [] : BlockRecord.decode(key, value);
  }

  /** A chunk's record. */
  chunkRecord(records: Records, hash: Uint8Array): Chunk | null {
    const key = keys.chunkKey(hash);
    const value = records.get(key);
    return value === null ? null : ChunkRecord.decode(key, value);
  }

  /** A chunk's bytes, checked. */
  private async load(hash: Uint8Array, chunk: Chunk): Promise<Uint8Array> {
    const name = hex(hash);
    const known = this.cache.get(name);
    if (known !== undefined) {
      return known;
    }
    const { location } = chunk;
    const [stored, place] =
      "inline" in location
        ? [location.inline, "the metadata"]
        : [
            await this.store.blobs.get(location.pack, location.offset, location.offset + chunk.storedLen),
            `pack ${hex(location.pack)}`,
          ];
    const bytes = readChunk(hash, chunk, stored, place);
    this.keep(name, bytes);
    return bytes;
  }

  private keep(name: string, bytes: Uint8Array): void {
    this.cache.set(name, bytes);
    this.cached += bytes.length;
    for (const [oldest, held] of this.cache) {
      if (this.cached <= CACHE) {
        break;
      }
      this.cache.delete(oldest);
      this.cached -= held.length;
    }
  }
}

const NO_DATA = ["EINVAL", "a device, a pipe or a socket"] as const;
