import { hex } from "../wire/bytes.js";
import { ErrorCode, StoreError } from "../wire/errors.js";
import { ROW, type Room } from "./limits.js";
import type { Rows, Span } from "./rows.js";
import { blob, bytesOf } from "./schema.js";

/** Where packs go. */
export interface BlobOptions {
  /** Where packs go that are larger than `rowsUpTo`; without it all go into rows. */
  bucket?: R2Bucket | undefined;
  /** Leads the names of this volume's objects in the bucket. */
  prefix: string;
  /** Largest pack that goes into rows although there is a bucket, in bytes. */
  rowsUpTo: number;
}

/** A pack, as the table has it. */
interface Stored {
  size: number;
  /** The object in R2; `null` for rows. */
  name: string | null;
  rows: Span;
}

/** An upload that has not ended after this was given up: its request cannot live that long. */
const UPLOAD_PATIENCE = 3_600_000;
/** Objects deleted from R2 by one call. */
const AT_ONCE = 1000;

/**
 * A volume's packs: whole immutable objects, written once, read by range; in rows of at most 1 MiB, or in R2. It does
 * not look into a pack.
 *
 * An object in R2 is named by its content, made only where it is absent, and belongs to the volume from the moment on
 * at which its row is committed. Before that its name stands in the trash, so that an upload which nobody finished is
 * deleted one day.
 */
export class BlobStore {
  private readonly sql: SqlStorage;
  /** Names being deleted from R2: an upload of the same name has to wait. */
  private readonly deleting = new Map<string, Promise<void>>();

  constructor(
    private readonly storage: DurableObjectStorage,
    private readonly rows: Rows,
    private readonly room: Room,
    private readonly options: BlobOptions,
  ) {
    this.sql = storage.sql;
  }

  private find(pack: Uint8Array): Stored | null {
    const row = this.sql.exec("SELECT size, name, first FROM storeshim_packs WHERE pack = ?", blob(pack)).toArray()[0];
    if (row === undefined) {
      return null;
    }
    const size = Number(row["size"]);
    const rows = { first: Number(row["first"] ?? 0), count: Math.ceil(size / ROW) };
    return { size, name: row["name"] === null ? null : String(row["name"]), rows };
  }

  /** Stores a pack durably; storing it again replaces it. `current` throws when `epoch` has been taken by another. */
  async put(epoch: number, pack: Uint8Array, bytes: Uint8Array, current: () => void): Promise<void> {
    if (this.options.bucket === undefined || bytes.length <= this.options.rowsUpTo) {
      this.room.check(bytes.length);
      this.record(epoch, pack, bytes, null);
      return;
    }
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const name = `${this.options.prefix}${hex(pack)}-${hex(digest)}`;
    await this.deleting.get(name);
    if (this.find(pack)?.name === name) {
      return;
    }
    this.discard(name, UPLOAD_PATIENCE);
    await this.upload(this.options.bucket, name, bytes, digest);
    current();
    const noted = this.sql.exec("SELECT 1 FROM storeshim_trash WHERE name = ?", name).toArray().length > 0;
    if (!noted || this.deleting.has(name)) {
      throw new StoreError(
        ErrorCode.Unavailable,
        `the upload of pack ${hex(pack)} took too long and was given up; try again`,
      );
    }
    this.record(epoch, pack, bytes, name);
  }

  private async upload(bucket: R2Bucket, name: string, bytes: Uint8Array, digest: Uint8Array): Promise<void> {
    try {
      // Answers null where the object is there already: the same bytes, because the name says so.
      await bucket.put(name, bytes, { onlyIf: new Headers({ "If-None-Match": "*" }), sha256: digest });
    } catch (thrown) {
      throw unavailable("write", name, thrown);
    }
  }

  private record(epoch: number, pack: Uint8Array, bytes: Uint8Array, name: string | null): void {
    this.storage.transactionSync(() => {
      this.forget(pack);
      const first = name === null ? this.rows.put(bytes).first : null;
      this.sql.exec(
        "INSERT INTO storeshim_packs (pack, size, epoch, name, first) VALUES (?, ?, ?, ?, ?)",
        blob(pack),
        bytes.length,
        epoch,
        name,
        first,
      );
      if (name !== null) {
        this.sql.exec("DELETE FROM storeshim_trash WHERE name = ?", name);
      }
    });
  }

  /** Takes a pack's row away; its object in R2 is deleted later. */
  private forget(pack: Uint8Array): void {
    const old = this.find(pack);
    if (old === null) {
      return;
    }
    this.sql.exec("DELETE FROM storeshim_packs WHERE pack = ?", blob(pack));
    if (old.name === null) {
      this.rows.delete(old.rows);
    } else {
      this.discard(old.name, 0);
    }
  }

  private discard(name: string, delay: number): void {
    this.sql.exec(
      "INSERT INTO storeshim_trash (name, after) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET after = excluded.after",
      name,
      Date.now() + delay,
    );
  }

  /** Bytes `start` to `end` of a pack. */
  async get(pack: Uint8Array, start: number, end: number): Promise<Uint8Array> {
    if (end <= start) {
      return new Uint8Array(0);
    }
    const stored = this.find(pack);
    if (stored === null) {
      throw new StoreError(
        ErrorCode.Missing,
        `the pack ${hex(pack)} is not in the Durable Object; restore it to an earlier point in time`,
      );
    }
    if (end > stored.size) {
      throw short(pack, start, end, stored.size);
    }
    const bytes =
      stored.name === null
        ? this.rows.get(stored.rows, start, end)
        : await this.getObject(stored.name, pack, start, end);
    if (bytes.length !== end - start) {
      throw short(pack, start, end, start + bytes.length);
    }
    return bytes;
  }

  private async getObject(name: string, pack: Uint8Array, start: number, end: number): Promise<Uint8Array> {
    const { bucket } = this.options;
    if (bucket === undefined) {
      throw new StoreError(
        ErrorCode.Refused,
        `the pack ${hex(pack)} is in R2, but no bucket is bound; bind the bucket with which the volume was written`,
      );
    }
    let object: R2ObjectBody | null;
    try {
      object = await bucket.get(name, { range: { offset: start, length: end - start } });
      if (object !== null) {
        return new Uint8Array(await object.arrayBuffer());
      }
    } catch (thrown) {
      throw unavailable("read", name, thrown);
    }
    throw new StoreError(
      ErrorCode.Missing,
      `the object ${name} is not in the R2 bucket; restore it, or bind the bucket with which the volume was written`,
    );
  }

  /** Deletes a pack; one that is not there is no error. */
  delete(pack: Uint8Array): void {
    this.storage.transactionSync(() => this.forget(pack));
  }

  /**
   * Packs that no commit names although the epoch under which they were stored is over: what an agent had sent when it
   * died. `named` tells whether the metadata knows a pack.
   */
  forgetOrphans(epoch: number, named: (pack: Uint8Array) => boolean): number {
    const old = this.sql.exec("SELECT pack FROM storeshim_packs WHERE epoch < ?", epoch).toArray();
    const orphans = old.map((row) => bytesOf(row["pack"])).filter((pack) => !named(pack));
    this.storage.transactionSync(() => {
      for (const pack of orphans) {
        this.forget(pack);
      }
    });
    return orphans.length;
  }

  /** Deletes what is due in the trash; says when more will be (milliseconds since 1970), or `null`. */
  async emptyTrash(): Promise<number | null> {
    const { bucket } = this.options;
    if (bucket === undefined) {
      return null;
    }
    for (;;) {
      const query = "SELECT name FROM storeshim_trash WHERE after <= ? ORDER BY after LIMIT ?";
      const names = this.sql
        .exec(query, Date.now(), AT_ONCE)
        .toArray()
        .map((row) => String(row["name"]));
      if (names.length === 0) {
        const next = this.sql.exec("SELECT min(after) AS next FROM storeshim_trash").toArray()[0]?.["next"];
        return typeof next === "number" ? next : null;
      }
      await this.deleteObjects(bucket, names);
    }
  }

  private async deleteObjects(bucket: R2Bucket, names: string[]): Promise<void> {
    let ended = (): void => undefined;
    const deletion = new Promise<void>((resolve) => {
      ended = resolve;
    });
    for (const name of names) {
      this.deleting.set(name, deletion);
    }
    try {
      await bucket.delete(names);
      for (const name of names) {
        this.sql.exec("DELETE FROM storeshim_trash WHERE name = ?", name);
      }
    } catch (thrown) {
      throw unavailable("delete", names[0] ?? "", thrown);
    } finally {
      for (const name of names) {
        this.deleting.delete(name);
      }
      ended();
    }
  }
}

function short(pack: Uint8Array, start: number, end: number, size: number): StoreError {
  return new StoreError(
    ErrorCode.Missing,
    `the pack ${hex(pack)} is truncated: it has ${size} bytes where bytes ${start} to ${end} are needed; restore the ` +
      "Durable Object to an earlier point in time",
  );
}

function unavailable(what: string, name: string, thrown: unknown): StoreError {
  const said = thrown instanceof Error ? thrown.message : String(thrown);
  return new StoreError(ErrorCode.Unavailable, `cannot ${what} ${name} in R2 for now: ${said}`);
}
