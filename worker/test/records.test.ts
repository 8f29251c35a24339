/** Records, chunks and packs are the same for the agent and for the Worker: records.json is made by the agent's encoder. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import fc from "fast-check";
import { nameOf, rawFrames, readChunk } from "../src/files/chunks.js";
import { cutOut } from "../src/files/extents.js";
import { PackWriter } from "../src/files/pack.js";
import * as records from "../src/files/records.js";
import { hex, StoreError, unhex } from "../src/wire/index.js";

interface Samples {
  records: { kind: keyof typeof SHAPES | "child"; key: string; says: unknown; hex: string }[];
  chunks: { hash: string; len: number; codec: "raw" | "zstd"; frames: [number, string][]; stored: string }[];
  pack: { chunks: string[]; hex: string };
}

const samples = JSON.parse(readFileSync(new URL("records.json", import.meta.url), "utf8")) as Samples;

const SHAPES = {
  format: records.FormatRecord,
  head: records.HeadRecord,
  inode: records.InodeRecord,
  block: records.BlockRecord,
  chunk: records.ChunkRecord,
  pack: records.PackRecord,
  totals: records.TotalsRecord,
  quota: records.QuotaRecord,
};

function bytes(text: string): Uint8Array {
  return unhex(text) ?? assert.fail(`${text} is not hexadecimal`);
}

/** A value as the samples have it: bytes in hexadecimal, large numbers as text. */
function plain(value: unknown): unknown {
  return JSON.parse(
    JSON.stringify(value, (_, part) => {
      if (part instanceof Uint8Array) {
        return `0x${hex(part)}`;
      }
      return typeof part === "bigint" ? String(part) : part;
    }),
  );
}

test("records of the agent are read, and written as the agent does", () => {
  for (const sample of samples.records) {
    const [key, value] = [bytes(sample.key), bytes(sample.hex)];
    if (sample.kind === "child") {
      assert.equal(records.decodeChild(key, value), sample.says);
      assert.deepEqual(records.encodeChild(sample.says as number), value);
      continue;
    }
    const shape = SHAPES[sample.kind] as records.RecordShape<unknown>;
    const record = shape.decode(key, value);
    assert.deepEqual(plain(record), sample.says, sample.kind);
    assert.equal(hex(shape.encode(record)), sample.hex, sample.kind);
    for (const bad of [value.subarray(0, -1), Uint8Array.of(...value, 0), Uint8Array.of(2, ...value.subarray(1))]) {
      assert.throws(() => shape.decode(key, bad), /metadata record .: *.* (malformed|end|version)/);
    }
    assert.throws(() => shape.decode(key, new Uint8Array(0)), /is empty/);
  }
});

test("chunks of the agent are unpacked and checked", () => {
  for (const { hash, len, codec, frames: parts, stored } of samples.chunks) {
    const [name, kept] = [bytes(hash), bytes(stored)];
    const frames = parts.map(([storedLen, half]) => ({ storedLen, hash: bytes(half) }));
    const record: records.Chunk = { refs: 1, len, storedLen: kept.length, codec, frames, location: { inline: kept } };
    const content = readChunk(name, record, kept, "a sample");
    if (codec === "raw") {
      assert.deepEqual(rawFrames(content), frames);
    }
    assert.equal(content.length, len);
    assert.equal(hex(nameOf(content)), hash);
    for (const bad of [
      { ...record, len: len + 1 },
      { ...record, len: 5 << 20 },
      { ...record, codec: codec === "raw" ? ("zstd" as const) : ("raw" as const) },
    ]) {
      assert.throws(() => readChunk(name, bad, kept, "a sample"), StoreError);
    }
    if (kept.length > 0) {
      const changed = kept.slice();
      changed[kept.length >> 1] = (changed[kept.length >> 1] as number) ^ 1;
      try {
        // A bit of a frame that means nothing may change; the content may not.
        assert.equal(hex(nameOf(readChunk(name, record, changed, "a sample"))), hash);
      } catch (thrown) {
        assert.match(String(thrown), /a sample is damaged/);
      }
      assert.throws(() => readChunk(name, record, kept.subarray(1), "a sample"), /a sample is damaged/);
    }
  }
});

test("packs are laid out as the agent's", () => {
  const pack = new PackWriter();
  for (const chunk of samples.pack.chunks.map(bytes)) {
    assert.ok(pack.fits(chunk.length));
    pack.append(nameOf(chunk), chunk);
  }
  assert.equal(hex(pack.finish()), samples.pack.hex);
});

test("any record comes back, and any bytes are read or refused", () => {
  const [u32, big] = [fc.nat(0xffff_ffff), fc.maxSafeNat()];
  const data = fc.uint8Array({ maxLength: 30 });
  const any: Record<keyof typeof SHAPES, fc.Arbitrary<unknown>> = {
    format: fc.record({ version: u32, volumeId: fc.bigInt(0n, (1n << 128n) - 1n) }),
    head: fc.record({ seq: big, nonce: fc.bigInt(0n, (1n << 128n) - 1n), cutAt: fc.bigInt(0n, (1n << 64n) - 1n) }),
    inode: fc.record({
      ...{ mode: u32, uid: u32, gid: u32, rdev: big, size: big, links: u32, target: data },
      mtime: fc.record({ secs: fc.maxSafeInteger(), nanos: u32 }),
      xattrs: fc.array(fc.tuple(data, data)),
    }),
    block: fc.array(
      fc.record({ start: u32, len: u32, chunk: fc.uint8Array({ minLength: 32, maxLength: 32 }), chunkOffset: u32 }),
    ),
    chunk: fc.record({
      ...{ refs: u32, len: u32, storedLen: u32, codec: fc.constantFrom("raw", "zstd") },
      frames: fc.array(fc.record({ storedLen: u32, hash: fc.uint8Array({ minLength: 16, maxLength: 16 }) })),
      location: fc.oneof(
        fc.record({ inline: data }),
        fc.record({ pack: fc.uint8Array({ minLength: 16, maxLength: 16 }), offset: u32 }),
      ),
    }),
    pack: fc.record({ size: big, live: big }),
    totals: fc.record({ nextInode: big, inodes: big, files: big, bytes: big }),
    quota: fc.record({ bytes: fc.option(big, { nil: null }), inodes: fc.option(big, { nil: null }) }),
  };
  const key = new Uint8Array(9).fill(0x69);
  for (const [kind, arbitrary] of Object.entries(any)) {
    const shape = SHAPES[kind as keyof typeof SHAPES] as records.RecordShape<unknown>;
    fc.assert(
      fc.property(arbitrary, (record) => {
        assert.deepEqual(plain(shape.decode(key, shape.encode(record))), plain(record));
      }),
    );
    fc.assert(
      fc.property(data, (noise) => {
        try {
          shape.decode(key, Uint8Array.of(1, ...noise));
        } catch (thrown) {
          assert.ok(thrown instanceof StoreError && thrown.kind === "Damaged", String(thrown));
        }
      }),
    );
  }
});

test("extents that are cut cover what is left, and nothing else", () => {
  const write = fc.tuple(fc.nat(99), fc.integer({ min: 1, max: 40 }), fc.boolean());
  fc.assert(
    fc.property(fc.array(write, { maxLength: 20 }), (writes) => {
      let extents: records.Extent[] = [];
      const model = new Array<string>(160).fill("");
      for (const [at, [start, len, hole]] of writes.entries()) {
        extents = cutOut(extents, start, start + len);
        if (!hole) {
          extents.push({ start, len, chunk: new Uint8Array(32).fill(at), chunkOffset: 0 });
          extents.sort((a, b) => a.start - b.start);
        }
        for (let k = 0; k < len; k++) {
          model[start + k] = hole ? "" : `${at}:${k}`;
        }
      }
      const read = new Array<string>(160).fill("");
      let end = 0;
      for (const extent of extents) {
        assert.ok(extent.start >= end && extent.len > 0);
        end = extent.start + extent.len;
        for (let k = 0; k < extent.len; k++) {
          read[extent.start + k] = `${extent.chunk[0]}:${extent.chunkOffset + k}`;
        }
      }
      assert.deepEqual(read, model);
    }),
  );
});
