import { equal } from "../wire/bytes.js";
import { ErrorCode, StoreError } from "../wire/errors.js";
import type { CommitStaged, Stage } from "../wire/messages.js";
import type { Room } from "./limits.js";
import { NOTHING, type Rows, spanOf } from "./rows.js";
import { blob, bytesOf } from "./schema.js";

/** A record of more bytes than this has its value elsewhere: it would not fit its page of a sorted table. */
export const BESIDE_KEY = 900;

/** A commit of which parts have come. */
interface Begun {
  epoch: number;
  number: number;
  nonce: Uint8Array;
  /** Parts that are there: these many from the first on. */
  parts: number;
  /** Bytes of keys and values in them. */
  bytes: number;
}

/**
 * A commit that is too large for one message: its operations lie here, part by part, until all of them are made at once. There
 * is one at a time. Nobody reads what lies here, and a new epoch throws it away.
 */
export class Staging {
  private readonly sql: SqlStorage;

  constructor(
    private readonly storage: DurableObjectStorage,
    private readonly rows: Rows,
    private readonly room: Room,
  ) {
    this.sql = storage.sql;
  }

  private begun(): Begun | null {
    const row = this.sql.exec("SELECT * FROM storeshim_staging").toArray()[0];
    if (row === undefined) {
      return null;
    }
    const number = (name: string) => Number(row[name]);
    return {
      epoch: number("epoch"),
      number: number("number"),
      nonce: bytesOf(row["nonce"]),
      parts: number("parts"),
      bytes: number("bytes"),
    };
  }

  private find(epoch: number, commit: { number: number; nonce: Uint8Array }): Begun | null {
    const begun = this.begun();
    const same = begun?.epoch === epoch && begun.number === commit.number && equal(begun.nonce, commit.nonce);
    return same ? begun : null;
  }

  /** Takes a part; one that is there already is not taken again. `bytes` is what its operations put. */
  add(epoch: number, stage: Stage, bytes: number): void {
    const begun = this.find(epoch, stage);
    const next = begun?.parts ?? 0;
    if (stage.part < next) {
      return;
    }
    if (stage.part > next) {
      throw new StoreError(
        ErrorCode.Unavailable,
        `part ${stage.part} of commit ${stage.number} cannot be taken before part ${next}; send them again in order`,
      );
    }
    this.room.check(bytes);
    this.storage.transactionSync(() => {
      if (begun === null) {
        this.discard();
      }
      for (const [key, value] of stage.ops) {
        const large = value !== null && value.length > 0 && key.length + value.length > BESIDE_KEY;
        this.sql.exec(
          "INSERT OR REPLACE INTO storeshim_staged (key, put, value, size, first) VALUES (?, ?, coalesce(?, x''), ?, ?)",
          blob(key),
          value === null ? 0 : 1,
          blob(large || value === null ? NOTHING : value),
          value?.length ?? 0,
          large ? this.rows.put(value).first : null,
        );
      }
      this.sql.exec(
        "INSERT OR REPLACE INTO storeshim_staging (one, epoch, number, nonce, parts, bytes) VALUES (1, ?, ?, ?, ?, ?)",
        epoch,
        stage.number,
        blob(stage.nonce),
        next + 1,
        (begun?.bytes ?? 0) + bytes,
      );
    });
  }

  /** Throws unless all parts of a commit are there, and there is room to make it. */
  require(epoch: number, commit: CommitStaged): void {
    const begun = this.find(epoch, commit);
    if (begun?.parts !== commit.parts) {
      throw new StoreError(
        ErrorCode.Unavailable,
        `${begun?.parts ?? 0} of ${commit.parts} parts of commit ${commit.number} are here; send all of them again`,
      );
    }
    this.room.check(begun.bytes);
  }

  /** Makes all operations, within the caller's transaction. In few statements: there may be millions of operations. */
  apply(): void {
    const replaced = this.sql.exec(
      "SELECT old.size, old.first FROM storeshim_staged AS new CROSS JOIN storeshim_meta AS old ON old.key = new.key " +
        "WHERE old.first IS NOT NULL",
    );
    for (const row of replaced.toArray()) {
      this.rows.delete(spanOf(row));
    }
    this.sql.exec("DELETE FROM storeshim_meta WHERE key IN (SELECT key FROM storeshim_staged)");
    this.sql.exec(
      "INSERT INTO storeshim_meta (key, value, size, first) " +
        "SELECT key, value, size, first FROM storeshim_staged WHERE put = 1 ORDER BY key",
    );
    this.clear();
  }

  /** Throws away what lies here, within the caller's transaction. */
  discard(): void {
    const large = this.sql.exec("SELECT size, first FROM storeshim_staged WHERE first IS NOT NULL");
    for (const row of large.toArray()) {
      this.rows.delete(spanOf(row));
    }
    this.clear();
  }

  private clear(): void {
    this.sql.exec("DELETE FROM storeshim_staged");
    this.sql.exec("DELETE FROM storeshim_staging");
  }
}
