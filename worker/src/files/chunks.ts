import { blake3 } from "@noble/hashes/blake3.js";
import { decompress } from "fzstd";
import { concat, equal, hex } from "../wire/bytes.js";
import { ErrorCode, StoreError } from "../wire/errors.js";
import { type Chunk, FRAME_SIZE, type Frame } from "./records.js";

/** Largest chunk, in bytes, before compression. */
export const MAX_CHUNK = 4 << 20;

/** A chunk's name: BLAKE3 of its bytes. */
export function nameOf(bytes: Uint8Array): Uint8Array {
  return blake3(bytes);
}

/** The frames of a chunk that is stored as it is. */
export function rawFrames(bytes: Uint8Array): Frame[] {
  const frames: Frame[] = [];
  for (let at = 0; bytes.length > FRAME_SIZE && at < bytes.length; at += FRAME_SIZE) {
    const part = bytes.subarray(at, at + FRAME_SIZE);
    frames.push({ storedLen: part.length, hash: nameOf(part).slice(0, 16) });
  }
  return frames;
}

/** The size that a zstd frame says its content has; `null` where it does not say. */
function contentSize(frame: Uint8Array): number | null {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  if (frame.length < 6 || view.getUint32(0, true) !== 0xfd2fb528) {
    return null;
  }
  const descriptor = view.getUint8(4);
  const single = (descriptor & 0x20) !== 0;
  const at = 5 + (single ? 0 : 1) + ([0, 1, 2, 4][descriptor & 3] as number);
  try {
    switch (descriptor >> 6) {
      case 0:
        return single ? view.getUint8(at) : null;
      case 1:
        return view.getUint16(at, true) + 256;
      case 2:
        return view.getUint32(at, true);
      default:
        return Number(view.getBigUint64(at, true));
    }
  } catch {
    return null;
  }
}

function decompressed(frame: Uint8Array): Uint8Array | null {
  try {
    return decompress(frame);
  } catch {
    return null;
  }
}

/** The bytes of a chunk from what is stored of it, checked against length and name. `place` says where it was read. */
export function readChunk(hash: Uint8Array, chunk: Chunk, stored: Uint8Array, place: string): Uint8Array {
  const damaged = (how: string): never => {
    throw new StoreError(
      ErrorCode.Damaged,
      `the chunk ${hex(hash)} in ${place} is damaged (${how}); restore the Durable Object to an earlier point in time`,
    );
  };
  if (chunk.len > MAX_CHUNK) {
    damaged("its length is impossible");
  }
  let bytes = stored;
  if (chunk.codec === "zstd") {
    const ends = chunk.frames.length === 0 ? [stored.length] : chunk.frames.map((frame) => frame.storedLen);
    let at = 0;
    const parts = ends.map((length, number) => {
      const frame = stored.subarray(at, at + length);
      at += length;
      const size = chunk.frames.length === 0 ? chunk.len : Math.min(FRAME_SIZE, chunk.len - number * FRAME_SIZE);
      // Also a bound on the memory that a hostile frame can claim.
      if (contentSize(frame) !== size) {
        damaged("its length is not that of its frame");
      }
      return decompressed(frame) ?? damaged("it does not decompress");
    });
    if (at !== stored.length) {
      damaged("its frames are not all that is stored");
    }
    bytes = concat(parts);
  }
  if (bytes.length !== chunk.len) {
    damaged(`it has ${bytes.length} bytes instead of ${chunk.len}`);
  }
  if (!equal(nameOf(bytes), hash)) {
    damaged("its content does not match its name");
  }
  return bytes;
}
