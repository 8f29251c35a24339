/** The platform's limits are met with a clear error before the platform meets them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { parseRange } from "../src/files/range.js";
import { Room } from "../src/store/limits.js";
import { StoreError } from "../src/wire/index.js";

test("a full object refuses data for now, and takes what deletes some", () => {
  const full = 9_600_000_000;
  const checkRoom = (stored: number, more: number) => new Room(() => stored).check(more);
  checkRoom(0, 16 << 20);
  checkRoom(full, 1000);
  assert.throws(
    () => checkRoom(full, 1 << 20),
    (thrown) =>
      thrown instanceof StoreError && thrown.kind === "Unavailable" && /holds 9600 MB.*R2/.test(thrown.message),
  );
  assert.throws(() => checkRoom(9_900_000_000, 10), /delete files/);
  assert.throws(() => checkRoom(9_480_000_000, 16 << 20), /delete files/, "what would lead beyond it");
});

test("ranges", () => {
  assert.deepEqual(parseRange("bytes=0-0", 1), { offset: 0, length: 1 });
  assert.deepEqual(parseRange("bytes=-5", 3), { offset: 0, length: 3 });
  assert.deepEqual(parseRange("bytes=2-", 3), { offset: 2, length: 1 });
  assert.equal(parseRange("bytes=3-", 3), "none");
  assert.equal(parseRange("bytes=0-", 0), "none");
  for (const whole of [null, "", "bytes=", "bytes=-", "bytes=2-1", "bytes=0-1,3-4", "items=0-1"]) {
    assert.equal(parseRange(whole, 10), null);
  }
});
