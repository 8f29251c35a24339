import { newFormat } from "../files/records.js";
import { compare, equal, Reader, Writer } from "../wire/bytes.js";
import { ErrorCode, StoreError } from "../wire/errors.js";
import type { Change, Changes, Commit, CommitStaged, Operation, Page, Scan, Stage } from "../wire/messages.js";
import { LONGEST_KEY, type Room } from "./limits.js";
import { NOTHING, type Rows, spanOf } from "./rows.js";
import { blob, bytesOf } from "./schema.js";
import { BESIDE_KEY, Staging } from "./staging.js";

/** Who holds the volume's epoch. */
export type Holder = "agent" | "worker";

/** An opening of the volume. */
export interface Opening {
  epoch: number;
  holder: Holder;
  /** The holder has given the volume back. */
  released: boolean;
}

/** Commits that the change log keeps at least. */
const LOG = 1024;
/** A commit whose keys take more bytes is logged without them. */
const LOGGED_KEYS = 16 << 10;
/** Openings whose random numbers are remembered. */
const OPENINGS = 64;
const FORMAT_KEY = new Uint8Array([0x76]);

/**
 * The volume's metadata: an ordered, fenced, atomic key-value store, of the same meaning as the agent's other engine.
 * It does not know what keys and values mean, but for the record that makes an empty store a volume.
 */
export class Sequencer {
  private readonly sql: SqlStorage;
  private readonly staging: Staging;
  private opening: Opening & { nonce: Uint8Array };

  constructor(
    private readonly storage: DurableObjectStorage,
    private readonly rows: Rows,
    private readonly room: Room,
  ) {
    this.sql = storage.sql;
    this.staging = new Staging(storage, rows, room);
    this.opening = this.lastOpening();
  }

  private row(query: string, ...values: SqlStorageValue[]): Record<string, SqlStorageValue> | undefined {
    return this.sql.exec(query, ...values).toArray()[0];
  }

  private lastOpening(): Opening & { nonce: Uint8Array } {
    const row = this.row("SELECT * FROM storeshim_openings ORDER BY epoch DESC LIMIT 1");
    return {
      epoch: Number(row?.["epoch"] ?? 0),
      nonce: bytesOf(row?.["nonce"]),
      holder: row?.["holder"] === "agent" ? "agent" : "worker",
      released: row === undefined || row["released"] === 1,
    };
  }

  /** Who has opened the volume last; epoch 0 when nobody has. */
  get current(): Opening {
    return this.opening;
  }

  /** Version of the volume: how many commits there were. */
  get version(): number {
    return Number(this.row("SELECT max(version) AS version FROM storeshim_commits")?.["version"] ?? 0);
  }

  /**
   * Opens the volume as its writer. With `held` 0 it takes a new epoch, or answers once more what this nonce was
   * answered before; otherwise it comes back to an epoch that it holds already.
   */
  open(nonce: Uint8Array, held: number, holder: Holder = "agent"): { epoch: number; last: number; version: number } {
    const again = equal(nonce, this.opening.nonce);
    if (held !== 0 && (held !== this.opening.epoch || !again)) {
      throw fenced();
    }
    if (!again) {
      // A request that was delayed until after its sender was replaced must not take the volume back.
      if (this.row("SELECT 1 FROM storeshim_openings WHERE nonce = ?", blob(nonce)) !== undefined) {
        throw fenced();
      }
      this.take(nonce, holder);
    } else if (this.opening.released) {
      this.sql.exec("UPDATE storeshim_openings SET released = 0 WHERE epoch = ?", this.opening.epoch);
      this.opening.released = false;
    }
    return { epoch: this.opening.epoch, last: this.last(), version: this.version };
  }

  private take(nonce: Uint8Array, holder: Holder): void {
    const epoch = this.opening.epoch + 1;
    this.storage.transactionSync(() => {
      this.sql.exec(
        "INSERT INTO storeshim_openings (epoch, nonce, at, holder, released) VALUES (?, ?, ?, ?, 0)",
        epoch,
        blob(nonce),
        Date.now(),
        holder,
      );
      this.sql.exec("DELETE FROM storeshim_openings WHERE epoch <= ?", epoch - OPENINGS);
      // Whoever sent that is fenced now.
      this.staging.discard();
      this.ensureFormat();
    });
    this.opening = { epoch, nonce: nonce.slice(), holder, released: false };
  }

  private ensureFormat(): void {
    if (this.get(FORMAT_KEY) === null) {
      if (this.row("SELECT 1 FROM storeshim_meta LIMIT 1") !== undefined) {
        throw new StoreError(
          ErrorCode.Damaged,
          "the Durable Object holds records of a volume but not its format; restore it to an earlier point in time",
        );
      }
      this.write(FORMAT_KEY, newFormat());
    }
  }

  /** The holder of `epoch` gives the volume back: until somebody opens it, the Worker may write. */
  release(epoch: number): void {
    if (epoch === this.opening.epoch && !this.opening.released) {
      this.sql.exec("UPDATE storeshim_openings SET released = 1 WHERE epoch = ?", epoch);
      this.opening.released = true;
    }
  }

  /** Throws unless `epoch` is the current one. */
  require(epoch: number): void {
    if (epoch !== this.opening.epoch || epoch === 0) {
      throw fenced();
    }
  }

  /** Number of the current epoch's last commit; 0 before the first. */
  last(): number {
    const row = this.row("SELECT epoch, number FROM storeshim_commits ORDER BY version DESC LIMIT 1");
    return row?.["epoch"] === this.opening.epoch ? Number(row["number"]) : 0;
  }

  /** Makes all operations durable at once, or none; a commit that is sent again is answered as it was. */
  commit(epoch: number, commit: Commit): number {
    const { ops } = commit;
    return this.make(epoch, commit, {
      check: () => this.room.check(checkOperations(ops)),
      apply: () => {
        for (const [key, value] of ops) {
          if (value === null) {
            this.delete(key);
          } else {
            this.write(key, value);
          }
        }
        return loggedKeys(ops);
      },
    });
  }

  /** Takes a part of the next commit, which {@link commitStaged} makes. */
  stage(epoch: number, stage: Stage): void {
    this.require(epoch);
    const last = this.last();
    // One that was made already is not asked for its parts any more.
    if (stage.number > last) {
      checkNext(stage.number, last);
      this.staging.add(epoch, stage, checkOperations(stage.ops));
    }
  }

  /** As {@link commit}, of the parts that came before. */
  commitStaged(epoch: number, commit: CommitStaged): number {
    return this.make(epoch, commit, {
      check: () => this.staging.require(epoch, commit),
      apply: () => {
        this.staging.apply();
        return null;
      },
    });
  }

  /** Makes the next commit; `apply` is within its transaction, and gives the keys for the change log, if they fit. */
  private make(
    epoch: number,
    commit: { number: number; nonce: Uint8Array },
    how: { check: () => void; apply: () => Uint8Array | null },
  ): number {
    this.require(epoch);
    const last = this.last();
    if (commit.number <= last) {
      return this.repeated(commit, last);
    }
    checkNext(commit.number, last);
    how.check();
    const version = this.version + 1;
    this.storage.transactionSync(() => {
      const keys = how.apply();
      this.sql.exec(
        "INSERT INTO storeshim_commits (version, epoch, number, nonce, at, keys) VALUES (?, ?, ?, ?, ?, ?)",
        version,
        epoch,
        commit.number,
        blob(commit.nonce),
        Date.now(),
        keys === null ? null : blob(keys),
      );
      if (version % 256 === 0) {
        this.sql.exec("DELETE FROM storeshim_commits WHERE version <= ?", version - LOG);
      }
    });
    return version;
  }

  /** Numbers run on within an epoch, so a commit's row is as far from the last one as its number. */
  private repeated(commit: { number: number; nonce: Uint8Array }, last: number): number {
    const version = this.version - (last - commit.number);
    const row = this.row("SELECT nonce FROM storeshim_commits WHERE version = ?", version);
    if (row === undefined || !equal(bytesOf(row["nonce"]), commit.nonce)) {
      throw new StoreError(
        ErrorCode.Refused,
        `commit ${commit.number} was made already, with other content; this is a bug of the agent, report it`,
      );
    }
    return version;
  }

  private write(key: Uint8Array, value: Uint8Array): void {
    const large = key.length + value.length > BESIDE_KEY;
    this.delete(key);
    this.sql.exec(
      "INSERT INTO storeshim_meta (key, value, size, first) VALUES (?, coalesce(?, x''), ?, ?)",
      blob(key),
      blob(large ? NOTHING : value),
      value.length,
      large && value.length > 0 ? this.rows.put(value).first : null,
    );
  }

  private delete(key: Uint8Array): void {
    const old = this.row("DELETE FROM storeshim_meta WHERE key = ? RETURNING size, first", blob(key));
    if (old !== undefined && old["first"] !== null) {
      this.rows.delete(spanOf(old));
    }
  }

  /** The value of a key. */
  get(key: Uint8Array): Uint8Array | null {
    const row = this.row("SELECT value, size, first FROM storeshim_meta WHERE key = ?", blob(key));
    return row === undefined ? null : this.value(row);
  }

  private value(row: Record<string, SqlStorageValue>): Uint8Array {
    return row["first"] === null ? bytesOf(row["value"]) : this.rows.get(spanOf(row), 0, Number(row["size"]));
  }

  /** A page of the pairs whose keys begin with a prefix, in the keys' order; one pair at least, whatever its size. */
  scan(scan: Scan): Page {
    const after = scan.after !== null && compare(scan.after, scan.prefix) >= 0 ? scan.after : null;
    const end = successor(scan.prefix);
    const query =
      `SELECT key, value, size, first FROM storeshim_meta WHERE key ${after === null ? ">=" : ">"} coalesce(?, x'')` +
      `${end === null ? "" : " AND key < ?"} ORDER BY key LIMIT ?`;
    const pairs: Page["pairs"] = [];
    const most = Math.max(1, scan.maxPairs);
    const bounds = [blob(after ?? scan.prefix), ...(end === null ? [] : [blob(end)]), most + 1];
    let bytes = 0;
    for (const row of this.sql.exec(query, ...bounds)) {
      if (pairs.length > 0 && (bytes >= scan.maxBytes || pairs.length >= most)) {
        return { more: true, pairs };
      }
      const key = bytesOf(row["key"]);
      const value = this.value(row);
      pairs.push([key, value]);
      bytes += key.length + value.length;
    }
    return { more: false, pairs };
  }

  /** The last key with a prefix; `null` when there is none. */
  lastKey(prefix: Uint8Array): Uint8Array | null {
    const end = successor(prefix) ?? new Uint8Array([0xff]);
    const query = "SELECT key FROM storeshim_meta WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT 1";
    const row = this.row(query, blob(prefix), blob(end));
    return row === undefined ? null : bytesOf(row["key"]);
  }

  /** The commits behind version `since`, as far as the log goes back. */
  changes(since: number, max: number): Changes {
    const bounds = this.row("SELECT min(version) AS oldest, max(version) AS newest FROM storeshim_commits");
    const current = Number(bounds?.["newest"] ?? 0);
    const oldest = Math.max(0, Number(bounds?.["oldest"] ?? 1) - 1);
    const most = Math.min(Math.max(1, max), 256);
    const query = "SELECT * FROM storeshim_commits WHERE version > ? ORDER BY version LIMIT ?";
    const changes = this.sql
      .exec(query, since, most)
      .toArray()
      .map((row): Change => {
        const [version, epoch, at] = [Number(row["version"]), Number(row["epoch"]), Number(row["at"])];
        return { version, epoch, at, keys: row["keys"] === null ? null : splitKeys(bytesOf(row["keys"])) };
      });
    return { current, oldest, more: (changes.at(-1)?.version ?? current) < current, changes };
  }
}

function fenced(): StoreError {
  return new StoreError(
    ErrorCode.Fenced,
    "another agent has taken over this volume; stop this one or start it again to take the volume back",
  );
}

/** Refuses a commit behind a gap. */
function checkNext(number: number, last: number): void {
  if (number !== last + 1) {
    throw new StoreError(
      ErrorCode.Unavailable,
      `commit ${number} cannot be made before commit ${last + 1}; send them again in order`,
    );
  }
}

/** The first key behind all that begin with a prefix; `null` where there is none. */
function successor(prefix: Uint8Array): Uint8Array | null {
  let length = prefix.length;
  while (length > 0 && prefix[length - 1] === 0xff) {
    length -= 1;
  }
  if (length === 0) {
    return null;
  }
  const end = prefix.slice(0, length);
  end[length - 1] = (end[length - 1] as number) + 1;
  return end;
}

/** Refuses what can never be stored; gives the bytes that are put. */
function checkOperations(ops: readonly Operation[]): number {
  const seen = new Set<string>();
  let bytes = 0;
  for (const [key, value] of ops) {
    const reserved = key.length === 1 && key[0] === 0;
    if (key.length === 0 || key.length > LONGEST_KEY || reserved) {
      throw new StoreError(
        ErrorCode.Refused,
        `a metadata record with a key of ${key.length} bytes cannot be stored; this is a bug, report it`,
      );
    }
    const name = String.fromCharCode(...key.subarray(0, 64)) + (key.length > 64 ? `…${key.subarray(64).join()}` : "");
    if (seen.has(name)) {
      throw new StoreError(ErrorCode.Refused, "a commit names a key twice; this is a bug of the agent, report it");
    }
    seen.add(name);
    bytes += value === null ? 0 : key.length + value.length;
  }
  return bytes;
}

function loggedKeys(ops: readonly Operation[]): Uint8Array | null {
  const keys = new Writer();
  let bytes = 0;
  for (const [key] of ops) {
    bytes += 2 + key.length;
    if (bytes > LOGGED_KEYS) {
      return null;
    }
    keys.short(key);
  }
  return keys.finish();
}

function splitKeys(bytes: Uint8Array): Uint8Array[] {
  const from = new Reader(bytes, "change log");
  const keys: Uint8Array[] = [];
  while (from.left > 0) {
    keys.push(from.short());
  }
  return keys;
}
