import { hex } from "../wire/bytes.js";
import { ErrorCode, fileError, StoreError } from "../wire/errors.js";
import type { Operation } from "../wire/messages.js";
import { MAX_CHUNK, nameOf, rawFrames } from "./chunks.js";
import { cutOut } from "./extents.js";
import * as keys from "./keys.js";
import type { LocalFiles, Records } from "./local.js";
import { PackWriter } from "./pack.js";
import {
  BLOCK_SIZE,
  BlockRecord,
  type Chunk,
  ChunkRecord,
  type Extent,
  type Frame,
  HeadRecord,
  type Inode,
  InodeRecord,
  PackRecord,
  QuotaRecord,
  random128,
  type Totals,
  TotalsRecord,
} from "./records.js";

/** New chunks that together take no more than this are kept in the metadata, in bytes. */
const INLINE_MAX = 192 << 10;
/** A block with more extents than this is written anew when it changes. */
const FRAGMENTS_MAX = 48;
/** A commit with more records than this does not fit a transaction that the isolate's memory can bear. */
const MOST_RECORDS = 100_000;

/**
 * A commit in the making: changes of records over those of the store, reference counts of chunks and live bytes of
 * packs. It mirrors the agent's agent/src/volume/{plan,chunks}.rs.
 */
export class Edit implements Records {
  private readonly changes = new Map<string, Operation>();
  private readonly references = new Map<string, { hash: Uint8Array; delta: number }>();
  /** New chunks; those without a place are still loose or in the pack that is being filled. */
  private readonly fresh = new Map<string, Chunk | null>();
  private loose: { hash: Uint8Array; bytes: Uint8Array }[] = [];
  private looseBytes = 0;
  private packed = false;
  private pack = new PackWriter();
  private filling: { hash: Uint8Array; len: number; frames: Frame[]; offset: number }[] = [];
  /** The packs that were sent, with their sizes. */
  readonly packs: { id: Uint8Array; size: number }[] = [];
  private nextInode = 0;

  constructor(
    private readonly files: LocalFiles,
    /** Stores a pack. */
    private readonly send: (pack: Uint8Array, bytes: Uint8Array) => Promise<void>,
  ) {}

  get(key: Uint8Array): Uint8Array | null {
    const changed = this.changes.get(hex(key));
    return changed === undefined ? this.files.store.meta.get(key) : changed[1];
  }

  private set(key: Uint8Array, value: Uint8Array | null): void {
    this.changes.set(hex(key), [key, value]);
    if (this.changes.size > MOST_RECORDS) {
      throw new StoreError(
        ErrorCode.Refused,
        `a change of more than ${MOST_RECORDS} records at once is too large; make it in smaller steps, such as one ` +
          "directory after another",
      );
    }
  }

  /** Sets or deletes an inode's record. */
  setInode(number: number, inode: Inode | null): void {
    this.set(keys.inodeKey(number), inode === null ? null : InodeRecord.encode(inode));
  }

  /** Sets or deletes a directory entry. */
  setChild(dir: number, name: Uint8Array, value: Uint8Array | null): void {
    this.set(keys.dentryKey(dir, name), value);
  }

  /** A number that no inode has. */
  newInodeNumber(): number {
    if (this.nextInode === 0) {
      this.nextInode = this.files.totals().nextInode;
    }
    this.nextInode += 1;
    return this.nextInode - 1;
  }

  private setExtents(inode: number, block: number, extents: Extent[]): void {
    for (const extent of this.files.extents(this, inode, block)) {
      this.refer(extent.chunk, -1);
    }
    for (const extent of extents) {
      this.refer(extent.chunk, 1);
    }
    this.set(keys.blockKey(inode, block), extents.length === 0 ? null : BlockRecord.encode(extents));
  }

  private refer(hash: Uint8Array, delta: number): void {
    const name = hex(hash);
    const reference = this.references.get(name) ?? { hash, delta: 0 };
    reference.delta += delta;
    this.references.set(name, reference);
  }

  /** Takes all data of a file away. */
  clear(inode: number): void {
    const prefix = keys.blocksOf(inode);
    let after: Uint8Array | null = null;
    for (let more = true; more; ) {
      const page = this.files.store.meta.scan({ prefix, after, maxPairs: 1000, maxBytes: 1 << 20 });
      for (const [key] of page.pairs) {
        this.setExtents(inode, keys.lastNumber(key), []);
        after = key;
      }
      more = page.more;
    }
  }

  /** Puts data into a file from byte `at` on, over what is there. */
  async write(inode: number, at: number, bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const block = Math.floor((at + done) / BLOCK_SIZE);
      const start = at + done - block * BLOCK_SIZE;
      const piece = bytes.subarray(done, done + Math.min(BLOCK_SIZE - start, MAX_CHUNK));
      const chunk = await this.store(piece);
      const extents = cutOut(this.files.extents(this, inode, block), start, start + piece.length);
      extents.push({ start, len: piece.length, chunk, chunkOffset: 0 });
      extents.sort((a, b) => a.start - b.start);
      this.setExtents(inode, block, extents);
      if (extents.length > FRAGMENTS_MAX) {
        await this.defragment(inode, block, extents, piece, start);
      }
      done += piece.length;
    }
  }

  /** Writes a block of many small pieces as one, unless this edit has changed more of it than the last piece. */
  private async defragment(inode: number, block: number, extents: Extent[], piece: Uint8Array, start: number) {
    const last = extents.at(-1) as Extent;
    const committed = extents.every((extent) => extent.start === start || !this.fresh.has(hex(extent.chunk)));
    if (committed) {
      const from = block * BLOCK_SIZE;
      const whole = await this.files.bytes(inode, from, from + last.start + last.len);
      whole.set(piece, start);
      const chunk = await this.store(whole);
      this.setExtents(inode, block, [{ start: 0, len: whole.length, chunk, chunkOffset: 0 }]);
    }
  }

  private async store(bytes: Uint8Array): Promise<Uint8Array> {
    const hash = nameOf(bytes);
    const name = hex(hash);
    if (this.fresh.has(name) || this.files.chunkRecord(this.files.store.meta, hash) !== null) {
      return hash;
    }
    this.fresh.set(name, null);
    const copy = bytes.slice();
    if (this.packed) {
      await this.append(hash, copy);
      return hash;
    }
    this.loose.push({ hash, bytes: copy });
    this.looseBytes += copy.length;
    if (this.looseBytes > INLINE_MAX) {
      this.packed = true;
      for (const chunk of this.loose.splice(0)) {
        await this.append(chunk.hash, chunk.bytes);
      }
    }
    return hash;
  }

  private async append(hash: Uint8Array, bytes: Uint8Array): Promise<void> {
    if (!this.pack.fits(bytes.length)) {
      await this.sendPack();
    }
    const [len, frames] = [bytes.length, rawFrames(bytes)];
    this.filling.push({ hash, len, frames, offset: this.pack.append(hash, bytes) });
  }

  private async sendPack(): Promise<void> {
    if (this.pack.empty) {
      return;
    }
    const id = crypto.getRandomValues(new Uint8Array(16));
    const bytes = this.pack.finish();
    this.pack = new PackWriter();
    for (const { hash, len, frames, offset } of this.filling.splice(0)) {
      const location = { pack: id, offset };
      this.fresh.set(hex(hash), { refs: 0, len, storedLen: len, codec: "raw", frames, location });
    }
    this.packs.push({ id, size: bytes.length });
    await this.send(id, bytes);
  }

  /** All data has been written: stores what is left of it. */
  async flush(): Promise<void> {
    for (const { hash, bytes } of this.loose.splice(0)) {
      const [len, frames, location] = [bytes.length, rawFrames(bytes), { inline: bytes }];
      this.fresh.set(hex(hash), { refs: 0, len, storedLen: len, codec: "raw", frames, location });
    }
    await this.sendPack();
  }

  /** Refuses what has outgrown the volume's quota; what only shrinks, or was too large before, may go on. */
  admit(): void {
    const value = this.files.store.meta.get(keys.QUOTA);
    if (value === null) {
      return;
    }
    const quota = QuotaRecord.decode(keys.QUOTA, value);
    const [before, now] = [this.files.totals(), this.countTotals()];
    for (const [what, most] of Object.entries(quota) as ["bytes" | "inodes", number | null][]) {
      if (most !== null && now[what] > Math.max(most, before[what])) {
        throw fileError(
          "EDQUOT",
          `the volume would have ${now[what]} ${what}, where its quota allows ${most}; delete files, or raise the mount's ` +
            `quota_${what}`,
        );
      }
    }
  }

  /** The operations of the commit, with the volume's new head, and the packs that it leaves without live bytes. */
  finish(): { ops: Operation[]; dead: Uint8Array[] } {
    this.admit();
    const dead = this.countReferences();
    const { meta } = this.files.store;
    const old = meta.get(keys.HEAD);
    const seq = (old === null ? 0 : HeadRecord.decode(keys.HEAD, old).seq) + 1;
    const head = { seq, nonce: random128(), cutAt: BigInt(Date.now()) * 1_000_000n };
    this.set(keys.HEAD, HeadRecord.encode(head));
    this.set(keys.TOTALS, TotalsRecord.encode(this.countTotals()));
    return { ops: [...this.changes.values()], dead };
  }

  private countTotals(): Totals {
    const totals = this.files.totals();
    totals.nextInode = Math.max(totals.nextInode, this.nextInode);
    for (const [key, value] of this.changes.values()) {
      if (key[0] === keys.INODES[0]) {
        const old = this.files.store.meta.get(key);
        this.files.count(totals, key, old, -1);
        this.files.count(totals, key, value, 1);
      }
    }
    return totals;
  }

  private countReferences(): Uint8Array[] {
    const packs = new Map<string, { id: Uint8Array; size: number; live: number }>();
    for (const { id, size } of this.packs) {
      packs.set(hex(id), { id, size, live: 0 });
    }
    for (const [name, { hash, delta }] of this.references) {
      const old = this.files.chunkRecord(this.files.store.meta, hash);
      const chunk = old ?? this.fresh.get(name) ?? null;
      if (chunk === null) {
        throw new StoreError(ErrorCode.Damaged, `the chunk ${name} is used but not stored; restore the Durable Object`);
      }
      const refs = Math.max(0, chunk.refs + delta);
      if ("pack" in chunk.location) {
        const pack = this.packOf(packs, chunk.location.pack);
        pack.live += old === null && refs > 0 ? chunk.storedLen : 0;
        pack.live -= old !== null && refs === 0 ? Math.min(chunk.storedLen, pack.live) : 0;
      }
      if (delta !== 0 || old === null) {
        this.set(keys.chunkKey(hash), refs > 0 ? ChunkRecord.encode({ ...chunk, refs }) : null);
      }
    }
    const dead: Uint8Array[] = [];
    for (const { id, size, live } of packs.values()) {
      this.set(keys.packKey(id), live > 0 ? PackRecord.encode({ size, live }) : null);
      if (live === 0) {
        dead.push(id);
      }
    }
    return dead;
  }

  private packOf(packs: Map<string, { id: Uint8Array; size: number; live: number }>, id: Uint8Array) {
    const name = hex(id);
    let pack = packs.get(name);
    if (pack === undefined) {
      const key = keys.packKey(id);
      const value = this.files.store.meta.get(key);
      if (value === null) {
        // Never guessed: a pack that seems to have no live bytes is deleted.
        throw new StoreError(
          ErrorCode.Damaged,
          `the pack ${name} has chunks but no record; restore the Durable Object to an earlier point in time`,
        );
      }
      pack = { id, ...PackRecord.decode(key, value) };
      packs.set(name, pack);
    }
    return pack;
  }
}
