import { concat } from "../wire/bytes.js";
import { ErrorCode, StoreError } from "../wire/errors.js";
import { ROW } from "./limits.js";
import { blob, bytesOf } from "./schema.js";

/** Where bytes lie: `count` rows from the number `first` on. */
export interface Span {
  first: number;
  count: number;
}

/** Bytes without content. */
export const NOTHING = new Uint8Array(0);

/** Where a large value lies, from columns `size` and `first`. */
export function spanOf(row: Record<string, SqlStorageValue>): Span {
  return { first: Number(row["first"]), count: Math.ceil(Number(row["size"]) / ROW) };
}

/**
 * Bytes of any length in rows of at most 1 MiB, addressed by number. SQLite finds a row by its number without touching
 * others; in a table that is sorted by a key of bytes, each comparison with a large row would read all of it.
 */
export class Rows {
  private next: number;

  constructor(private readonly sql: SqlStorage) {
    this.next = Number(sql.exec("SELECT max(id) AS last FROM storeshim_rows").one()["last"] ?? 0) + 1;
  }

  /** Stores bytes. */
  put(bytes: Uint8Array): Span {
    const span = { first: this.next, count: Math.ceil(bytes.length / ROW) };
    this.next += span.count;
    for (let at = 0; at < span.count; at++) {
      const piece = bytes.subarray(at * ROW, (at + 1) * ROW);
      this.sql.exec("INSERT INTO storeshim_rows (id, bytes) VALUES (?, ?)", span.first + at, blob(piece));
    }
    return span;
  }

  /** Bytes `start` to `end` of what was stored; fewer where it is shorter. */
  get(span: Span, start: number, end: number): Uint8Array {
    const skip = Math.floor(start / ROW);
    const last = Math.min(Math.ceil(end / ROW), span.count) - 1;
    const query = "SELECT id, bytes FROM storeshim_rows WHERE id BETWEEN ? AND ? ORDER BY id";
    const pieces: Uint8Array[] = [];
    for (const row of this.sql.exec(query, span.first + skip, span.first + last)) {
      const from = (Number(row["id"]) - span.first) * ROW;
      pieces.push(bytesOf(row["bytes"]).subarray(Math.max(0, start - from), end - from));
    }
    if (pieces.length !== last - skip + 1) {
      throw new StoreError(
        ErrorCode.Damaged,
        `row ${span.first} and those behind it are not complete; restore the Durable Object to an earlier point in time`,
      );
    }
    return concat(pieces);
  }

  /** Deletes what was stored. */
  delete(span: Span): void {
    if (span.count > 0) {
      this.sql.exec("DELETE FROM storeshim_rows WHERE id BETWEEN ? AND ?", span.first, span.first + span.count - 1);
    }
  }
}
