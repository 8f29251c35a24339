import { ErrorCode, StoreError } from "../wire/errors.js";

/** Bytes that one row holds at most. The platform allows 2 MB for a whole row, and keys can have 64 KiB. */
export const ROW = 1 << 20;
/** What the platform stores per object, in bytes. */
const OBJECT = 10_000_000_000;
/** Data is refused beyond this share, so that there is room left for the commits that delete some. */
const FULL = 0.9488;
/** Everything is refused beyond this share: in front of the platform's own refusal, in whose way nothing clean remains. */
const CRAMMED = 0.9872;
/** What a commit that deletes needs to write at most, in bytes. */
const SMALL = 64 << 10;
/** Longest key, in bytes, as with the agent's other engine. */
export const LONGEST_KEY = 65_535;

/** What an object can store, and refuses before the platform does. */
export class Room {
  constructor(
    /** Bytes that are stored now. */
    private readonly stored: () => number,
    private readonly capacity = OBJECT,
  ) {}

  /** Throws unless there is room for `more` bytes. */
  check(more: number): void {
    const stored = this.stored();
    const limit = Math.floor(this.capacity * (more <= SMALL ? CRAMMED : FULL));
    if (stored + more > limit) {
      throw new StoreError(
        ErrorCode.Unavailable,
        `the Durable Object holds ${Math.ceil(stored / 1e6)} MB of at most ${Math.floor(limit / 1e6)} MB and cannot take ` +
          `${more} bytes more; bind an R2 bucket for packs, or delete files and start the agent again`,
      );
    }
  }
}
