import { lossyText, utf8 } from "../wire/bytes.js";
import { fileError } from "../wire/errors.js";

/** Type bits of a mode. */
export const S_IFMT = 0o170000;
/** A regular file. */
export const S_IFREG = 0o100000;
/** A directory. */
export const S_IFDIR = 0o040000;
/** A symbolic link. */
export const S_IFLNK = 0o120000;

/** Longest name of a directory entry, in bytes. */
const LONGEST_NAME = 255;
/** Longest path, in bytes. */
const LONGEST_PATH = 4096;

/** A path as errors show it. */
export function showPath(parts: readonly Uint8Array[]): string {
  return `/${parts.map(lossyText).join("/")}`;
}

/**
 * The names of a path below the volume's root. A leading slash means the root; "." and empty names mean nothing. ".." is
 * refused: what it means depends on symbolic links, and no caller of this interface needs it.
 */
export function parsePath(path: string | Uint8Array): Uint8Array[] {
  const bytes = typeof path === "string" ? utf8(path) : path;
  const shown = () => lossyText(bytes.subarray(0, 200));
  if (bytes.length > LONGEST_PATH) {
    throw fileError("ENAMETOOLONG", `a path of ${bytes.length} bytes ('${shown()}…'); ${LONGEST_PATH} are allowed`);
  }
  const parts = splitPath(bytes);
  for (const part of parts) {
    if (part.length > LONGEST_NAME) {
      throw fileError("ENAMETOOLONG", `a name of ${part.length} bytes in '${shown()}'; ${LONGEST_NAME} are allowed`);
    }
    if (part.includes(0) || lossyText(part) === "..") {
      throw fileError("EINVAL", `the path '${shown()}' has '..' or a zero byte in it; give the path itself`);
    }
  }
  return parts;
}

/** The names between slashes, without empty ones and ".". */
export function splitPath(path: Uint8Array): Uint8Array[] {
  const parts: Uint8Array[] = [];
  let from = 0;
  for (let at = 0; at <= path.length; at++) {
    if (at === path.length || path[at] === 0x2f) {
      const part = path.subarray(from, at);
      if (part.length > 0 && !(part.length === 1 && part[0] === 0x2e)) {
        parts.push(part);
      }
      from = at + 1;
    }
  }
  return parts;
}

/** Names as a path relative to the root, as it goes over the wire. */
export function joinPath(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length + 1, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
    whole[at] = 0x2f;
    at += 1;
  }
  return whole.subarray(0, Math.max(0, at - 1));
}
