import type { Reader, Writer } from "./bytes.js";
import { NONCE, repeat, type Shape, shape } from "./shape.js";

/** What stat(2) tells of a file. */
export interface Stat {
  inode: number;
  /** Type and permission bits. */
  mode: number;
  uid: number;
  gid: number;
  links: number;
  size: number;
  /** Last modification, in milliseconds since 1970. */
  mtime: number;
  /** Version of the volume in which the file is so; 0 where changes may not be committed yet. */
  version: number;
}

/** Bits of an `Op.FileWrite`. */
export const WriteFlag = {
  /** The last part: make everything durable, then answer. */
  Last: 1,
  /** The parts are the whole new file, put in place of the old one at the last part; else they are written into it. */
  Replace: 2,
  /** Make missing directories. */
  Parents: 4,
} as const;

/** Request of `Op.FileWrite`. */
export interface FileWrite {
  /** Names the parts of one write, and makes retries recognisable. */
  nonce: Uint8Array;
  flags: number;
  /** Permission bits of a new file. */
  mode: number;
  offset: number;
  path: Uint8Array;
  bytes: Uint8Array;
}

function writeStat(to: Writer, stat: Stat): void {
  to.u64(stat.inode).u32(stat.mode).u32(stat.uid).u32(stat.gid).u32(stat.links);
  to.u64(stat.size).i64(stat.mtime).u64(stat.version);
}

function readStat(from: Reader): Stat {
  const [inode, mode, uid, gid, links] = [from.u64(), from.u32(), from.u32(), from.u32(), from.u32()];
  return { inode, mode, uid, gid, links, size: from.u64(), mtime: from.i64(), version: from.u64() };
}

/** Request of `Op.FileStat`: the path, and whether a symbolic link at its end is followed. */
export const FileStatRequest: Shape<{ path: Uint8Array; follow: boolean }> = shape(
  "file stat",
  (to, request) => to.u8(request.follow ? 1 : 0).short(request.path),
  (from) => ({ follow: from.flag(), path: from.short() }),
);

/** Answer to `Op.FileStat` and `Op.FileWrite`. */
export const FileStatAnswer: Shape<Stat> = shape("stat", writeStat, readStat);

/** Request of `Op.FileRead`: at most `length` bytes from `offset` on. */
export const FileReadRequest: Shape<{ path: Uint8Array; offset: number; length: number }> = shape(
  "file read",
  (to, request) => to.u64(request.offset).u32(request.length).short(request.path),
  (from) => ({ offset: from.u64(), length: from.u32(), path: from.short() }),
);

/** Answer to `Op.FileRead`: the file as it is, and the bytes, fewer than asked only at its end. */
export const FileReadAnswer: Shape<{ stat: Stat; bytes: Uint8Array }> = shape(
  "file read answer",
  (to, answer) => {
    writeStat(to, answer.stat);
    to.raw(answer.bytes);
  },
  (from) => ({ stat: readStat(from), bytes: from.rest() }),
);

/** Request of `Op.FileList`: names behind `after` (empty: from the first one on). */
export const FileListRequest: Shape<{ path: Uint8Array; after: Uint8Array; max: number }> = shape(
  "file list",
  (to, request) => to.u32(request.max).short(request.after).short(request.path),
  (from) => ({ max: from.u32(), after: from.short(), path: from.short() }),
);

/** Answer to `Op.FileList`: names in byte order, each with what lstat(2) says. */
export const FileListAnswer: Shape<{ more: boolean; entries: { name: Uint8Array; stat: Stat }[] }> = shape(
  "file list answer",
  (to, answer) => {
    to.u8(answer.more ? 1 : 0).u32(answer.entries.length);
    for (const entry of answer.entries) {
      to.short(entry.name);
      writeStat(to, entry.stat);
    }
  },
  (from) => ({
    more: from.flag(),
    entries: repeat(from, () => ({ name: from.short(), stat: readStat(from) })),
  }),
);

/** Request of `Op.FileWrite`. */
export const FileWriteRequest: Shape<FileWrite> = shape(
  "file write",
  (to, request) => {
    to.raw(request.nonce).u32(request.flags).u32(request.mode).u64(request.offset);
    to.short(request.path).raw(request.bytes);
  },
  (from) => ({
    nonce: from.raw(NONCE),
    flags: from.u32(),
    mode: from.u32(),
    offset: from.u64(),
    path: from.short(),
    bytes: from.rest(),
  }),
);

/** Request of `Op.FileUnlink`: a path, and whether a directory with everything below it may be meant. */
export const FileUnlinkRequest: Shape<{ path: Uint8Array; recursive: boolean }> = shape(
  "file unlink",
  (to, request) => to.u8(request.recursive ? 1 : 0).short(request.path),
  (from) => ({ recursive: from.flag(), path: from.short() }),
);
