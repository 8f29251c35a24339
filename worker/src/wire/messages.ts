import { type Reader, utf8, type Writer } from "./bytes.js";
import { codeOf, StoreError } from "./errors.js";
import { NONCE, repeat, type Shape, shape } from "./shape.js";

/** What a message is about. From 0x30 on the Worker asks; below, the agent. */
export const Op = {
  Hello: 0x01,
  Ping: 0x02,
  Goodbye: 0x03,
  Open: 0x10,
  Commit: 0x11,
  Get: 0x12,
  Scan: 0x13,
  Changes: 0x14,
  Close: 0x15,
  Stage: 0x16,
  CommitStaged: 0x17,
  BlobPut: 0x20,
  BlobGet: 0x21,
  BlobDelete: 0x22,
  FileStat: 0x30,
  FileRead: 0x31,
  FileList: 0x32,
  FileWrite: 0x33,
  FileUnlink: 0x34,
} as const;

/** Who is on the other side. */
export const Role = { Agent: 1, Store: 2 } as const;

/** First message of either side: who it is and what it takes. */
export interface Hello {
  role: number;
  /** Largest message that the sender takes. */
  maxMessage: number;
  /** Unanswered requests that it takes at once. */
  maxRequests: number;
  /** Bytes of unanswered requests that it takes at once; one request may always be under way, whatever its size. */
  maxBytes: number;
  /** It sends something at least this often, in milliseconds; the other side gives up after three times that. */
  heartbeat: number;
  /** Program and version, for logs. */
  name: string;
}

/** One operation of a commit: put a value, or delete (`null`). */
export type Operation = [key: Uint8Array, value: Uint8Array | null];

/** Request of {@link Op.Commit}. */
export interface Commit {
  /** Number of the commit within its epoch, from 1, one after another. */
  number: number;
  /** Random, the same whenever this commit is sent again. */
  nonce: Uint8Array;
  ops: Operation[];
}

/** Request of {@link Op.Stage}: a part of a commit that is too large for one message. */
export interface Stage extends Commit {
  /** Which part, from 0. */
  part: number;
}

/** Request of {@link Op.CommitStaged}: makes the commit of the parts that were sent before. */
export interface CommitStaged {
  /** As in {@link Commit}. */
  number: number;
  /** As in {@link Commit}, and in all parts. */
  nonce: Uint8Array;
  /** How many there are. */
  parts: number;
}

/** Request of {@link Op.Scan}. */
export interface Scan {
  prefix: Uint8Array;
  /** Last key of the page before; `null` for the first page. */
  after: Uint8Array | null;
  maxPairs: number;
  maxBytes: number;
}

/** One page of a scan. */
export interface Page {
  more: boolean;
  pairs: [key: Uint8Array, value: Uint8Array][];
}

/** One commit in the change log. */
export interface Change {
  version: number;
  epoch: number;
  /** When, in milliseconds since 1970. */
  at: number;
  /** The keys that changed; `null` when there were too many to list: read everything again. */
  keys: Uint8Array[] | null;
}

/** Answer to {@link Op.Changes}. */
export interface Changes {
  /** Version of the volume now. */
  current: number;
  /** Oldest version from which the log can still be read on; a reader that is behind it reads everything again. */
  oldest: number;
  more: boolean;
  changes: Change[];
}

/** Bodies without content. */
export const Empty: Shape<null> = shape(
  "empty",
  () => undefined,
  () => null,
);

/** An error: in answers that have the flag, and in {@link Op.Goodbye}. */
export const Failure: Shape<StoreError> = shape(
  "error",
  (to, error) =>
    to
      .u16(error.code)
      .u16(error.errno)
      .short(utf8(error.message.slice(0, 1000))),
  (from) => {
    const [code, errno] = [codeOf(from.u16()), from.u16()];
    return new StoreError(code, from.text(), errno);
  },
);

/** {@link Op.Hello}. */
export const HelloBody: Shape<Hello> = shape(
  "hello",
  (to, hello) => {
    to.u8(hello.role).u32(hello.maxMessage).u32(hello.maxRequests).u32(hello.maxBytes).u32(hello.heartbeat);
    to.short(utf8(hello.name));
  },
  (from) => ({
    role: from.u8(),
    maxMessage: from.u32(),
    maxRequests: from.u32(),
    maxBytes: from.u32(),
    heartbeat: from.u32(),
    name: from.text(),
  }),
);

/** Request of {@link Op.Open}: a random number of this opening, and the epoch that it holds already (0 for none). */
export const OpenRequest: Shape<{ nonce: Uint8Array; held: number }> = shape(
  "open",
  (to, open) => to.raw(open.nonce).u64(open.held),
  (from) => ({ nonce: from.raw(NONCE), held: from.u64() }),
);

/** Answer to {@link Op.Open}. */
export const OpenAnswer: Shape<{ epoch: number; last: number; version: number }> = shape(
  "open answer",
  (to, open) => to.u64(open.epoch).u64(open.last).u64(open.version),
  (from) => ({ epoch: from.u64(), last: from.u64(), version: from.u64() }),
);

function writeOps(to: Writer, ops: Operation[]): void {
  to.u32(ops.length);
  for (const [key, value] of ops) {
    to.short(key).u8(value === null ? 0 : 1);
    if (value !== null) {
      to.long(value);
    }
  }
}

function readOps(from: Reader): Operation[] {
  return repeat<Operation>(from, () => [from.short(), from.flag() ? from.long() : null]);
}

/** Request of {@link Op.Commit}. */
export const CommitRequest: Shape<Commit> = shape(
  "commit",
  (to, commit) => writeOps(to.u64(commit.number).raw(commit.nonce), commit.ops),
  (from) => ({ number: from.u64(), nonce: from.raw(NONCE), ops: readOps(from) }),
);

/** Request of {@link Op.Stage}. */
export const StageRequest: Shape<Stage> = shape(
  "stage",
  (to, stage) => writeOps(to.u64(stage.number).raw(stage.nonce).u32(stage.part), stage.ops),
  (from) => ({ number: from.u64(), nonce: from.raw(NONCE), part: from.u32(), ops: readOps(from) }),
);

/** Request of {@link Op.CommitStaged}; its answer is that to {@link Op.Commit}. */
export const CommitStagedRequest: Shape<CommitStaged> = shape(
  "commit staged",
  (to, commit) => to.u64(commit.number).raw(commit.nonce).u32(commit.parts),
  (from) => ({ number: from.u64(), nonce: from.raw(NONCE), parts: from.u32() }),
);

/** Answer to {@link Op.Commit}: the volume's version with it. */
export const CommitAnswer: Shape<number> = shape(
  "commit answer",
  (to, version) => to.u64(version),
  (from) => from.u64(),
);

/** Request of {@link Op.Get}: a key. */
export const GetRequest: Shape<Uint8Array> = shape(
  "get",
  (to, key) => to.short(key),
  (from) => from.short(),
);

/** Answer to {@link Op.Get}: the value, or `null`. */
export const GetAnswer: Shape<Uint8Array | null> = shape(
  "get answer",
  (to, value) => (value === null ? to.u8(0) : to.u8(1).long(value)),
  (from) => (from.flag() ? from.long() : null),
);

/** Request of {@link Op.Scan}. */
export const ScanRequest: Shape<Scan> = shape(
  "scan",
  (to, scan) => {
    to.short(scan.prefix).u8(scan.after === null ? 0 : 1);
    to.short(scan.after ?? new Uint8Array(0));
    to.u32(scan.maxPairs).u32(scan.maxBytes);
  },
  (from) => {
    const [prefix, some, after] = [from.short(), from.flag(), from.short()];
    return { prefix, after: some ? after : null, maxPairs: from.u32(), maxBytes: from.u32() };
  },
);

/** Answer to {@link Op.Scan}. */
export const ScanAnswer: Shape<Page> = shape(
  "scan answer",
  (to, page) => {
    to.u8(page.more ? 1 : 0).u32(page.pairs.length);
    for (const [key, value] of page.pairs) {
      to.short(key).long(value);
    }
  },
  (from) => ({ more: from.flag(), pairs: repeat(from, () => [from.short(), from.long()]) }),
);

/** Request of {@link Op.Changes}: the version that is known, and how many commits at most. */
export const ChangesRequest: Shape<{ since: number; max: number }> = shape(
  "changes",
  (to, request) => to.u64(request.since).u32(request.max),
  (from) => ({ since: from.u64(), max: from.u32() }),
);

/** Answer to {@link Op.Changes}. */
export const ChangesAnswer: Shape<Changes> = shape(
  "changes answer",
  (to, answer) => {
    to.u64(answer.current).u64(answer.oldest);
    to.u8(answer.more ? 1 : 0).u32(answer.changes.length);
    for (const change of answer.changes) {
      to.u64(change.version).u64(change.epoch).u64(change.at);
      to.u8(change.keys === null ? 0 : 1).u32(change.keys?.length ?? 0);
      for (const key of change.keys ?? []) {
        to.short(key);
      }
    }
  },
  (from) => ({
    current: from.u64(),
    oldest: from.u64(),
    more: from.flag(),
    changes: repeat(from, () => {
      const [version, epoch, at, listed] = [from.u64(), from.u64(), from.u64(), from.flag()];
      const keys = repeat(from, () => from.short());
      return { version, epoch, at, keys: listed ? keys : null };
    }),
  }),
);

/** Request of {@link Op.BlobPut}. */
export const BlobPutRequest: Shape<{ pack: Uint8Array; bytes: Uint8Array }> = shape(
  "blob put",
  (to, put) => to.raw(put.pack).raw(put.bytes),
  (from) => ({ pack: from.raw(NONCE), bytes: from.rest() }),
);

/** Request of {@link Op.BlobGet}: bytes `start` to `end` of a pack. The answer's body is the bytes. */
export const BlobGetRequest: Shape<{ pack: Uint8Array; start: number; end: number }> = shape(
  "blob get",
  (to, get) => to.raw(get.pack).u64(get.start).u64(get.end),
  (from) => ({ pack: from.raw(NONCE), start: from.u64(), end: from.u64() }),
);

/** Request of {@link Op.BlobDelete}: the pack. */
export const BlobDeleteRequest: Shape<Uint8Array> = shape(
  "blob delete",
  (to, pack) => to.raw(pack),
  (from) => from.raw(NONCE),
);

export * from "./file-messages.js";
