import { ErrorCode, StoreError } from "../wire/errors.js";

/** Bytes that one row holds at most. The platform allows 2 MB for a whole row, and keys can have 64 KiB. */
export const ROW = 1 << 20;
/** What the platform stores per object, in bytes. */
const OBJECT = 10_000_000_000;
/** Data is refused from here on, so that there is room left for the commits that delete some. */
const FULL = OBJECT - 512_000_000;
/** Everything is refused from here on: in front of the platform's own refusal, in whose way nothing clean remains. */
const CRAMMED = OBJECT - 128_000_000;
/** What a commit that deletes needs to write at most, in bytes. */
const SMALL = 64 << 10;
/** Longest key, in bytes, as with the agent's other engine. */
export const LONGEST_KEY = 65_535;

/** Refuses what would not fit any more, before the platform does. */
export function checkRoom(stored: number, more: number): void {
  const limit = more <= SMALL ? CRAMMED : FULL;
  if (stored + more > limit) {
    throw new StoreError(
      ErrorCode.Unavailable,
      `the Durable Object holds ${Math.ceil(stored / 1e6)} MB of at most ${Math.floor(limit / 1e6)} MB and cannot take ` +
        `${more} bytes more; delete files, or bind an R2 bucket for packs`,
    );
  }
}
