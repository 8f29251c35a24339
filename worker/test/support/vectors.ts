/** The test vectors: what messages are as bytes. Both sides of the protocol are held to them. */
import * as wire from "../../src/wire/index.js";

const { Flag, Op, hex, utf8 } = wire;
const nonce = (byte: number) => new Uint8Array(16).fill(byte);
const stat: wire.Stat = {
  inode: 7,
  mode: 0o100644,
  uid: 1000,
  gid: 100,
  links: 1,
  size: 5,
  mtime: 1_763_000_000_123,
  version: 42,
};

/** A message of the list: its frame, and its body taken apart. */
interface Message {
  name: string;
  shape: keyof typeof SHAPES;
  op: number;
  flags: number;
  id: number;
  epoch: number;
  value: unknown;
}

/** The kinds of bodies, by the names that the vectors use. */
export const SHAPES = {
  Hello: wire.HelloBody,
  Failure: wire.Failure,
  Empty: wire.Empty,
  OpenRequest: wire.OpenRequest,
  OpenAnswer: wire.OpenAnswer,
  CommitRequest: wire.CommitRequest,
  CommitAnswer: wire.CommitAnswer,
  StageRequest: wire.StageRequest,
  CommitStagedRequest: wire.CommitStagedRequest,
  GetRequest: wire.GetRequest,
  GetAnswer: wire.GetAnswer,
  ScanRequest: wire.ScanRequest,
  ScanAnswer: wire.ScanAnswer,
  ChangesRequest: wire.ChangesRequest,
  ChangesAnswer: wire.ChangesAnswer,
  BlobPutRequest: wire.BlobPutRequest,
  BlobGetRequest: wire.BlobGetRequest,
  BlobDeleteRequest: wire.BlobDeleteRequest,
  FileStatRequest: wire.FileStatRequest,
  FileStatAnswer: wire.FileStatAnswer,
  FileReadRequest: wire.FileReadRequest,
  FileReadAnswer: wire.FileReadAnswer,
  FileListRequest: wire.FileListRequest,
  FileListAnswer: wire.FileListAnswer,
  FileWriteRequest: wire.FileWriteRequest,
  FileUnlinkRequest: wire.FileUnlinkRequest,
};

const ask = (name: string, shape: keyof typeof SHAPES, op: number, value: unknown, epoch = 3): Message => ({
  name,
  shape,
  op,
  flags: 0,
  id: 9,
  epoch,
  value,
});
const answer = (name: string, shape: keyof typeof SHAPES, op: number, value: unknown): Message => ({
  ...ask(name, shape, op, value),
  flags: Flag.Answer,
});

const greeting = { maxMessage: 32 << 20, maxRequests: 64, maxBytes: 16 << 20, heartbeat: 5000 };
const fenced = new wire.StoreError(wire.ErrorCode.Fenced, "another agent has taken over this volume");
const absent = wire.fileError("ENOENT", "'/x' does not exist");

const MESSAGES: Message[] = [
  { ...ask("greeting of an agent", "Hello", Op.Hello, { role: 1, ...greeting, name: "storeshim/0.1.0" }, 0), id: 0 },
  { ...ask("sign of life", "Empty", Op.Ping, null, 0), id: 0 },
  { ...ask("goodbye", "Failure", Op.Goodbye, fenced, 0), id: 0 },
  ask("open anew", "OpenRequest", Op.Open, { nonce: nonce(0xa1), held: 0 }, 0),
  ask("come back to an epoch", "OpenRequest", Op.Open, { nonce: nonce(0xa1), held: 3 }, 0),
  answer("opened", "OpenAnswer", Op.Open, { epoch: 3, last: 17, version: 40 }),
  ask("commit", "CommitRequest", Op.Commit, {
    number: 18,
    nonce: nonce(0xb2),
    ops: [
      [utf8("i\0\0\0\0\0\0\0\x01"), utf8("\x01value")],
      [utf8("d"), null],
      [utf8("empty"), new Uint8Array(0)],
    ],
  }),
  answer("committed", "CommitAnswer", Op.Commit, 41),
  ask("a part of a commit", "StageRequest", Op.Stage, {
    number: 10,
    nonce: nonce(0xcd),
    part: 1,
    ops: [
      [utf8("h"), utf8("head")],
      [utf8("gone"), null],
    ],
  }),
  answer("a part is there", "Empty", Op.Stage, null),
  ask("a commit of its parts", "CommitStagedRequest", Op.CommitStaged, { number: 10, nonce: nonce(0xcd), parts: 2 }),
  answer("its parts are committed", "CommitAnswer", Op.CommitStaged, 42),
  { ...answer("fenced", "Failure", Op.Commit, fenced), flags: Flag.Answer | Flag.Error },
  ask("get", "GetRequest", Op.Get, utf8("v"), 0),
  answer("got", "GetAnswer", Op.Get, utf8("value")),
  answer("got nothing", "GetAnswer", Op.Get, null),
  ask("scan", "ScanRequest", Op.Scan, { prefix: utf8("i"), after: null, maxPairs: 1024, maxBytes: 1 << 20 }),
  ask("scan on", "ScanRequest", Op.Scan, { prefix: utf8("i"), after: utf8("i7"), maxPairs: 2, maxBytes: 99 }),
  answer("scanned", "ScanAnswer", Op.Scan, {
    more: true,
    pairs: [
      [utf8("i8"), utf8("x")],
      [utf8("i9"), utf8("")],
    ],
  }),
  ask("changes", "ChangesRequest", Op.Changes, { since: 40, max: 100 }, 0),
  answer("changed", "ChangesAnswer", Op.Changes, {
    current: 42,
    oldest: 12,
    more: false,
    changes: [
      { version: 41, epoch: 3, at: 1_763_000_000_000, keys: [utf8("a"), utf8("b")] },
      { version: 42, epoch: 3, at: 1_763_000_000_001, keys: null },
    ],
  }),
  ask("close", "Empty", Op.Close, null),
  answer("closed", "Empty", Op.Close, null),
  ask("put a pack", "BlobPutRequest", Op.BlobPut, { pack: nonce(0xc3), bytes: utf8("pack") }),
  ask("get of a pack", "BlobGetRequest", Op.BlobGet, { pack: nonce(0xc3), start: 1, end: 3 }),
  ask("delete a pack", "BlobDeleteRequest", Op.BlobDelete, nonce(0xc3)),
  ask("stat a file", "FileStatRequest", Op.FileStat, { path: utf8("dir/file"), follow: true }),
  answer("a file's stat", "FileStatAnswer", Op.FileStat, stat),
  { ...answer("no such file", "Failure", Op.FileStat, absent), flags: Flag.Answer | Flag.Error },
  ask("read a file", "FileReadRequest", Op.FileRead, { path: utf8("dir/file"), offset: 4096, length: 65536 }),
  answer("read of a file", "FileReadAnswer", Op.FileRead, { stat, bytes: utf8("hello") }),
  ask("list a directory", "FileListRequest", Op.FileList, { path: utf8(""), after: utf8("a"), max: 1000 }),
  answer("a directory's list", "FileListAnswer", Op.FileList, { more: false, entries: [{ name: utf8("b"), stat }] }),
  ask("write a file", "FileWriteRequest", Op.FileWrite, {
    nonce: nonce(0xd4),
    flags: wire.WriteFlag.Last | wire.WriteFlag.Replace | wire.WriteFlag.Parents,
    mode: 0o644,
    offset: 0,
    path: utf8("new/file"),
    bytes: utf8("hello"),
  }),
  ask("unlink a file", "FileUnlinkRequest", Op.FileUnlink, { path: utf8("dir/file"), recursive: false }),
];

/** Streams that must be refused: by which error, and from which byte on at the latest. */
const BAD = [
  { name: "an HTTP request", error: "Protocol", bytes: utf8("GET / HTTP/1.1\r\n\r\n") },
  { name: "a wrong last byte of the magic", error: "Protocol", bytes: utf8("SSWIRE\r\r\x01\0\x01\0\0\0\0\0") },
  { name: "only newer versions", error: "Version", bytes: wire.encodePreamble(7, 9) },
  { name: "a frame that is too long", error: "TooLarge", bytes: header(20 + (1 << 20) + 1) },
  { name: "a frame that is too short", error: "Protocol", bytes: header(19) },
  { name: "an unknown flag", error: "Protocol", bytes: header(20, 8) },
  { name: "a reserved byte", error: "Protocol", bytes: header(20, 0, 1) },
  { name: "a number beyond 2^53", error: "Protocol", bytes: header(20, 0, 0, 0xff) },
];

function header(length: number, flags = 0, reserved = 0, high = 0): Uint8Array {
  const frame = new Uint8Array(24);
  const view = new DataView(frame.buffer);
  view.setUint32(0, length, true);
  frame.set([Op.Get, flags, reserved, 0], 4);
  frame[15] = high;
  return wire.concat([wire.encodePreamble(), frame]);
}

/** A value as JSON has it: bytes in hexadecimal, led by "0x". */
export function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) {
    return `0x${hex(value)}`;
  }
  if (value instanceof wire.StoreError) {
    return { code: value.code, errno: value.errno, message: value.message };
  }
  if (Array.isArray(value)) {
    return value.map(plain);
  }
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, plain(part)]));
  }
  return value;
}

/** All vectors, as the file has them. */
export function vectors() {
  const messages = MESSAGES.map(({ name, shape, op, flags, id, epoch, value }) => {
    const body = (SHAPES[shape] as wire.Shape<unknown>).encode(value);
    return {
      name,
      shape,
      op,
      flags,
      id,
      epoch,
      value: plain(value),
      hex: hex(wire.encodeFrame({ op, flags, id, epoch, body })),
    };
  });
  const json = [
    { id: "1", operation: "read", path: "/storage/a", offset: 0, size: 5 },
    { id: "1", data: "aGVsbG8=", success: true },
    { id: 2, operation: "write", path: "/storage/a", data: "aGVsbG8=", offset: 3 },
    { id: 2, bytesWritten: 5, success: true },
    { id: 3, error: "ENOENT: '/b' does not exist" },
  ].map((message) => ({ message, hex: hex(wire.encodeJson(message)) }));
  return {
    preamble: hex(wire.encodePreamble()),
    messages,
    refused: BAD.map(({ name, error, bytes }) => ({ name, error, hex: hex(bytes) })),
    json,
  };
}
