/** Looks at a volume's records as an agent would, and checks that they fit together. */
import assert from "node:assert/strict";
import * as keys from "../../src/files/keys.js";
import * as records from "../../src/files/records.js";
import { hex, utf8 } from "../../src/wire/index.js";
import type { Connection } from "./agent.js";

/** All records of a volume, by their keys in hexadecimal. */
export async function everything(agent: Connection): Promise<Map<string, [Uint8Array, Uint8Array]>> {
  return new Map((await agent.scan(new Uint8Array(0))).map((pair) => [hex(pair[0]), pair]));
}

/**
 * Fails unless every name has its inode and every inode its names, every extent its chunk, every chunk its place and the
 * right number of uses, every pack the right number of live bytes, and the totals what there is.
 */
export async function checkVolume(agent: Connection): Promise<{ inodes: number; packs: number; seq: number }> {
  const all = await everything(agent);
  const names = new Map<number, number>();
  const uses = new Map<string, number>();
  const live = new Map<string, number>();
  const inodes = new Map<number, records.Inode>();
  let seq = 0;
  const add = (to: Map<string, number>, key: string, amount: number) => to.set(key, (to.get(key) ?? 0) + amount);
  for (const [key, value] of all.values()) {
    switch (String.fromCharCode(key[0] as number)) {
      case "v":
        assert.equal(records.FormatRecord.decode(key, value).version, records.FORMAT_VERSION);
        break;
      case "h":
        ({ seq } = records.HeadRecord.decode(key, value));
        break;
      case "i":
        inodes.set(keys.lastNumber(key), records.InodeRecord.decode(key, value));
        break;
      case "d": {
        const child = records.decodeChild(key, value);
        names.set(child, (names.get(child) ?? 0) + 1);
        assert.ok(all.has(hex(keys.inodeKey(keys.lastNumber(key.subarray(0, 9))))), "a name's directory exists");
        break;
      }
      case "b": {
        let end = 0;
        for (const extent of records.BlockRecord.decode(key, value)) {
          assert.ok(extent.start >= end && extent.len > 0, "extents are sorted and do not overlap");
          end = extent.start + extent.len;
          add(uses, hex(extent.chunk), 1);
        }
        assert.ok(
          end > 0 && end <= records.BLOCK_SIZE && all.has(hex(keys.inodeKey(keys.lastNumber(key.subarray(0, 9))))),
        );
        break;
      }
    }
  }
  for (const [key, value] of all.values()) {
    if (key[0] === utf8("c")[0]) {
      const chunk = records.ChunkRecord.decode(key, value);
      assert.equal(chunk.refs, uses.get(hex(key.subarray(1))), "a chunk's uses");
      uses.delete(hex(key.subarray(1)));
      if ("pack" in chunk.location) {
        add(live, hex(chunk.location.pack), chunk.storedLen);
      }
    }
  }
  assert.equal(uses.size, 0, "every extent has its chunk");
  let packs = 0;
  for (const [key, value] of all.values()) {
    if (key[0] === utf8("p")[0]) {
      packs += 1;
      const pack = records.PackRecord.decode(key, value);
      assert.equal(pack.live, live.get(hex(key.subarray(1))), "a pack's live bytes");
      assert.equal((await agent.getPack(key.subarray(1), 0, pack.size)).length, pack.size, "a pack's bytes");
    }
  }
  assert.equal(packs, live.size, "every chunk has its pack");
  for (const [number, inode] of inodes) {
    if (number !== records.ROOT_INODE) {
      assert.equal(inode.links, names.get(number), `inode ${number} has as many names as it says`);
    }
  }
  const totals = all.get(hex(keys.TOTALS));
  if (totals !== undefined) {
    const files = [...inodes.values()].filter((inode) => (inode.mode & 0o170000) === 0o100000);
    const { nextInode, ...counted } = records.TotalsRecord.decode(...totals);
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    assert.deepEqual(counted, { inodes: inodes.size, files: files.length, bytes });
    assert.ok(nextInode > Math.max(...inodes.keys()), "the next inode's number is free");
  }
  for (const number of names.keys()) {
    assert.ok(inodes.has(number), `inode ${number} exists`);
  }
  return { inodes: inodes.size, packs, seq };
}
