/** Version of the tables; a Durable Object with a newer one is refused. */
const SCHEMA = 1;

const TABLES = [
  // The volume's records. Without rowids, because each index would be another row to write and to pay for. A large
  // value lies in storeshim_rows, from the row `first` on.
  `CREATE TABLE IF NOT EXISTS storeshim_meta
     (key BLOB PRIMARY KEY, value BLOB NOT NULL, size INTEGER NOT NULL, first INTEGER) WITHOUT ROWID`,
  "CREATE TABLE IF NOT EXISTS storeshim_rows (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)",
  // The change log: one row per commit, which is also what recognises a commit that is sent again.
  `CREATE TABLE IF NOT EXISTS storeshim_commits
     (version INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, number INTEGER NOT NULL, nonce BLOB NOT NULL,
      at INTEGER NOT NULL, keys BLOB)`,
  `CREATE TABLE IF NOT EXISTS storeshim_openings
     (epoch INTEGER PRIMARY KEY, nonce BLOB NOT NULL, at INTEGER NOT NULL, holder TEXT NOT NULL,
      released INTEGER NOT NULL)`,
  // A pack lies in R2 under `name`, or in storeshim_rows from the row `first` on.
  `CREATE TABLE IF NOT EXISTS storeshim_packs
     (pack BLOB PRIMARY KEY, size INTEGER NOT NULL, epoch INTEGER NOT NULL, name TEXT, first INTEGER) WITHOUT ROWID`,
  // The operations of a commit that comes in parts, and how many parts have come; see staging.ts.
  `CREATE TABLE IF NOT EXISTS storeshim_staged
     (key BLOB PRIMARY KEY, put INTEGER NOT NULL, value BLOB NOT NULL, size INTEGER NOT NULL, first INTEGER) WITHOUT ROWID`,
  `CREATE TABLE IF NOT EXISTS storeshim_staging
     (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, number INTEGER NOT NULL, nonce BLOB NOT NULL,
      parts INTEGER NOT NULL, bytes INTEGER NOT NULL)`,
  // Objects in R2 that are to be deleted after a time: deleted packs, and uploads that were never finished.
  `CREATE TABLE IF NOT EXISTS storeshim_trash (name TEXT PRIMARY KEY, after INTEGER NOT NULL) WITHOUT ROWID`,
  "CREATE TABLE IF NOT EXISTS storeshim_state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
];

/** Makes the tables where they are missing. */
export function prepare(storage: DurableObjectStorage): void {
  storage.transactionSync(() => {
    const { sql } = storage;
    for (const table of TABLES) {
      sql.exec(table);
    }
    const found = sql.exec("SELECT value FROM storeshim_state WHERE name = 'schema'").toArray()[0]?.["value"];
    if (found === undefined) {
      sql.exec("INSERT INTO storeshim_state (name, value) VALUES ('schema', ?)", SCHEMA);
    } else if (found !== SCHEMA) {
      throw new Error(
        `the Durable Object has tables of version ${String(found)}, this Worker knows version ${SCHEMA}; deploy the ` +
          "version of storeshim-worker that wrote them",
      );
    }
  });
}

/** A value that SQLite keeps as a BLOB; bytes without content would be bound as NULL by some runtimes. */
export function blob(bytes: Uint8Array): ArrayBuffer {
  return bytes.buffer.byteLength === bytes.byteLength
    ? (bytes.buffer as ArrayBuffer)
    : (bytes.slice().buffer as ArrayBuffer);
}

/** The bytes of a BLOB column. */
export function bytesOf(value: SqlStorageValue | undefined): Uint8Array {
  return value instanceof ArrayBuffer ? new Uint8Array(value) : new Uint8Array(0);
}
