import { utf8 } from "../wire/bytes.js";
import { fileError } from "../wire/errors.js";
import type { Edit } from "./edit.js";
import * as keys from "./keys.js";
import { type Found, type LocalFiles, newInode, timeOf } from "./local.js";
import { S_IFDIR, S_IFMT, S_IFREG, showPath } from "./paths.js";
import { decodeChild, encodeChild, type Inode, ROOT_INODE } from "./records.js";

/** How a file is written. */
export interface WriteOptions {
  /** Permission bits of a file that is new; 0o644 unless told. */
  mode?: number;
  /** Write into the file from this byte on, instead of replacing it. */
  offset?: number;
  /** Make missing directories; on unless told. */
  parents?: boolean;
}

/** Data to write: each piece is taken as it comes, so that a large file never lies in memory whole. */
export type Data = AsyncIterable<Uint8Array>;

function isDir(inode: Inode): boolean {
  return (inode.mode & S_IFMT) === S_IFDIR;
}

/** Puts a file into an edit; the file as it is then. */
export async function putFile(
  files: LocalFiles,
  edit: Edit,
  path: Uint8Array[],
  data: Data,
  options: WriteOptions,
): Promise<Found> {
  const file = openFile(files, edit, path, options);
  if (options.offset === undefined) {
    edit.clear(file.number);
    file.inode.size = 0;
  }
  let at = options.offset ?? 0;
  for await (const piece of data) {
    await edit.write(file.number, at, piece);
    at += piece.length;
    // As with pwrite(2): writing nothing behind the end does not make a file longer.
    file.inode.size = piece.length === 0 ? file.inode.size : Math.max(file.inode.size, at);
    edit.setInode(file.number, file.inode);
    // Now, and not only in the end: what is too large is not stored first.
    edit.admit();
  }
  await edit.flush();
  file.inode.mtime = timeOf(Date.now());
  edit.setInode(file.number, file.inode);
  return file;
}

/** The file that a path names; makes it, and what leads to it, where it is missing. */
function openFile(files: LocalFiles, edit: Edit, path: Uint8Array[], options: WriteOptions): Found {
  const name = path.at(-1);
  if (name === undefined) {
    throw fileError("EISDIR", "the path '/' is the volume's root; name a file in it");
  }
  const parent = openDir(files, edit, path.slice(0, -1), options.parents ?? true);
  const known = files.child(edit, parent.number, name);
  if (known !== null) {
    const found = files.walk(edit, path, true);
    if (found === null) {
      throw fileError("ENOENT", `'${showPath(path)}' is a symbolic link to a file that does not exist`);
    }
    if ((found.inode.mode & S_IFMT) !== S_IFREG) {
      const code = isDir(found.inode) ? "EISDIR" : "EINVAL";
      throw fileError(code, `'${showPath(path)}' is not a regular file; choose another name`);
    }
    return found;
  }
  const mode = S_IFREG | ((options.mode ?? 0o644) & 0o7777);
  return add(edit, parent, name, newInode(mode, parent.inode));
}

function openDir(files: LocalFiles, edit: Edit, path: Uint8Array[], make: boolean): Found {
  const found = walkOrNull(files, edit, path, make);
  if (found !== null) {
    if (!isDir(found.inode)) {
      throw fileError("ENOTDIR", `'${showPath(path)}' is not a directory`);
    }
    return found;
  }
  const name = path.at(-1);
  if (!make || name === undefined) {
    throw fileError("ENOENT", `the directory '${showPath(path)}' does not exist`);
  }
  const parent = openDir(files, edit, path.slice(0, -1), make);
  if (files.child(edit, parent.number, name) !== null) {
    throw fileError("ENOENT", `'${showPath(path)}' is a symbolic link to a directory that does not exist`);
  }
  return add(edit, parent, name, newInode(S_IFDIR | 0o755, parent.inode));
}

/** Walks; with `make`, a missing directory on the way counts like a missing one at the end. */
function walkOrNull(files: LocalFiles, edit: Edit, path: Uint8Array[], make: boolean): Found | null {
  for (let length = make ? 1 : path.length; length < path.length; length++) {
    if (files.walk(edit, path.slice(0, length), true) === null) {
      return null;
    }
  }
  return files.walk(edit, path, true);
}

function add(edit: Edit, parent: Found, name: Uint8Array, inode: Inode): Found {
  const number = edit.newInodeNumber();
  edit.setInode(number, inode);
  edit.setChild(parent.number, name, encodeChild(number));
  touch(edit, parent);
  return { number, inode };
}

function touch(edit: Edit, dir: Found): void {
  dir.inode.mtime = timeOf(Date.now());
  edit.setInode(dir.number, dir.inode);
}

/** Takes a name away, and with its last name the file; `recursive` allows a directory with all that is in it. */
export function removeName(files: LocalFiles, edit: Edit, path: Uint8Array[], recursive: boolean): void {
  const name = path.at(-1);
  if (name === undefined) {
    throw fileError("EPERM", "the path '/' is the volume's root, which stays; name what is in it");
  }
  const parent = openDir(files, edit, path.slice(0, -1), false);
  const found = files.child(edit, parent.number, name);
  if (found === null) {
    throw fileError("ENOENT", `'${showPath(path)}' does not exist`);
  }
  if (isDir(found.inode) && !recursive) {
    throw fileError("EISDIR", `'${showPath(path)}' is a directory; ask for it to be removed with all that is in it`);
  }
  edit.setChild(parent.number, name, null);
  touch(edit, parent);
  drop(files, edit, found);
}

/** A name of an inode has gone. */
function drop(files: LocalFiles, edit: Edit, found: Found): void {
  if (isDir(found.inode)) {
    const prefix = keys.dentryKey(found.number, new Uint8Array(0));
    let after: Uint8Array | null = null;
    for (let more = true; more; ) {
      const page = files.store.meta.scan({ prefix, after, maxPairs: 1000, maxBytes: 1 << 20 });
      for (const [key, value] of page.pairs) {
        const number = decodeChild(key, value);
        // Through the edit: an inode with several names in this directory loses one after another.
        const inode = number === ROOT_INODE ? null : files.inode(edit, number);
        edit.setChild(found.number, key.subarray(prefix.length), null);
        if (inode !== null) {
          drop(files, edit, { number, inode });
        }
        after = key;
      }
      more = page.more;
    }
  } else if (found.inode.links > 1) {
    edit.setInode(found.number, { ...found.inode, links: found.inode.links - 1 });
    return;
  } else {
    edit.clear(found.number);
  }
  edit.setInode(found.number, null);
}

/** Data that is in memory, or comes as a stream, as pieces. */
export async function* pieces(data: string | ArrayBuffer | ArrayBufferView | ReadableStream<Uint8Array>): Data {
  if (typeof data === "string") {
    yield utf8(data);
  } else if (data instanceof ReadableStream) {
    yield* gather(data);
  } else if (ArrayBuffer.isView(data)) {
    yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  } else {
    yield new Uint8Array(data);
  }
}

/** A stream brings pieces of a few KiB; files want larger ones. */
const PIECE = 4 << 20;

async function* gather(stream: ReadableStream<Uint8Array>): Data {
  let held = new Uint8Array(64 << 10);
  let length = 0;
  const reader = stream.getReader();
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
      for (let rest = next.value; rest.length > 0; ) {
        if (length + rest.length > held.length && held.length < PIECE) {
          const grown = new Uint8Array(Math.min(PIECE, Math.max(2 * held.length, length + rest.length)));
          grown.set(held.subarray(0, length));
          held = grown;
        }
        const taken = rest.subarray(0, held.length - length);
        held.set(taken, length);
        length += taken.length;
        rest = rest.subarray(taken.length);
        if (length === PIECE) {
          yield held;
          length = 0;
        }
      }
    }
  } finally {
    reader.releaseLock();
  }
  if (length > 0) {
    yield held.subarray(0, length);
  }
}
