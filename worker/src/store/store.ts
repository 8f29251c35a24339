import { packKey } from "../files/keys.js";
import type { Commit } from "../wire/messages.js";
import { type BlobOptions, BlobStore } from "./blobs.js";
import { Room } from "./limits.js";
import { Rows } from "./rows.js";
import { prepare } from "./schema.js";
import { Sequencer } from "./sequencer.js";

/** A pack up to this many bytes stays in the Durable Object although there is a bucket: it is one row. */
export const ROWS_UP_TO = 1 << 20;

/** How a volume is stored. */
export interface StoreOptions {
  /** Bucket for packs that are larger than `rowsUpTo`. */
  bucket?: R2Bucket | undefined;
  /** Largest pack that is kept in the Durable Object although there is a bucket, in bytes; 1 MiB unless told. */
  rowsUpTo?: number;
  /** What the object can store, in bytes; what the platform allows unless told. */
  capacity?: number;
  /** Collecting is due this long after there may be something to collect, in milliseconds; a minute unless told. */
  collectAfter?: number;
}

/** See {@link StoreOptions.collectAfter}. */
const COLLECT_AFTER = 60_000;

/**
 * A volume in the storage of one Durable Object: sequencer and packs. Usable in any Durable Object with SQLite storage;
 * its tables' names begin with `storeshim_`.
 */
export class VolumeStore {
  /** The metadata. */
  readonly meta: Sequencer;
  /** The packs. */
  readonly blobs: BlobStore;
  private readonly collectAfter: number;

  constructor(
    state: Pick<DurableObjectState, "storage" | "id">,
    options: StoreOptions,
    /** Asks for {@link collect} to be called at a time (milliseconds since 1970). */
    private readonly wake: (at: number) => void,
  ) {
    this.collectAfter = options.collectAfter ?? COLLECT_AFTER;
    prepare(state.storage);
    const blobs: BlobOptions = {
      bucket: options.bucket,
      prefix: `storeshim/${state.id.toString()}/`,
      rowsUpTo: options.rowsUpTo ?? ROWS_UP_TO,
    };
    const rows = new Rows(state.storage.sql);
    const room = new Room(() => state.storage.sql.databaseSize, options.capacity);
    this.meta = new Sequencer(state.storage, rows, room);
    this.blobs = new BlobStore(state.storage, rows, room, blobs);
  }

  /** Opens the volume; see {@link Sequencer.open}. */
  open(nonce: Uint8Array, held: number, holder: "agent" | "worker" = "agent"): ReturnType<Sequencer["open"]> {
    const before = this.meta.current.epoch;
    const opened = this.meta.open(nonce, held, holder);
    if (opened.epoch !== before) {
      this.wake(Date.now() + this.collectAfter);
    }
    return opened;
  }

  /** See {@link Sequencer.commit}. */
  commit(epoch: number, commit: Commit): number {
    return this.meta.commit(epoch, commit);
  }

  /** Stores a pack; see {@link BlobStore.put}. */
  async putPack(epoch: number, pack: Uint8Array, bytes: Uint8Array): Promise<void> {
    this.meta.require(epoch);
    await this.blobs.put(epoch, pack, bytes, () => this.meta.require(epoch));
  }

  /** Deletes a pack. */
  deletePack(epoch: number, pack: Uint8Array): void {
    this.meta.require(epoch);
    this.blobs.delete(pack);
    this.wake(Date.now() + this.collectAfter);
  }

  /** Deletes what nothing refers to any more. Asks to be called again where something is left. */
  async collect(): Promise<void> {
    try {
      const { epoch } = this.meta.current;
      this.blobs.forgetOrphans(epoch, (pack) => this.meta.get(packKey(pack)) !== null);
      const next = await this.blobs.emptyTrash();
      if (next !== null) {
        this.wake(next);
      }
    } catch (thrown) {
      console.warn(`storeshim: collecting garbage failed and is tried again: ${String(thrown)}`);
      this.wake(Date.now() + this.collectAfter);
    }
  }
}
