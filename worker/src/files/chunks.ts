import { blake3 } from "@noble/hashes/blake3.js";
import { decompress } from "fzstd";
import { equal, hex } from "../wire/bytes.js";
import { ErrorCode, StoreError } from "../wire/errors.js";
import type { Chunk } from "./records.js";

/** Largest chunk, in bytes, before compression. */
export const MAX_CHUNK = 4 << 20;

/** A chunk's name: BLAKE3 of its bytes. */
export function nameOf(bytes: Uint8Array): Uint8Array {
  return blake3(bytes);
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
    // Also a bound on the memory that a hostile frame can claim.
    if (contentSize(stored) !== chunk.len) {
      damaged("its length is not that of its frame");
    }
    try {
      bytes = decompress(stored);
    } catch {
      damaged("it does not decompress");
    }
  }
  if (bytes.length !== chunk.len) {
    damaged(`it has ${bytes.length} bytes instead of ${chunk.len}`);
  }
  if (!equal(nameOf(bytes), hash)) {
    damaged("its content does not match its name");
  }
  return bytes;
}
