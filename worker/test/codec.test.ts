/** The codec by itself: vectors, any values, any cuts, hostile bytes. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import fc from "fast-check";
import * as wire from "../src/wire/index.js";
import { plain, SHAPES, vectors } from "./support/vectors.js";

const file = JSON.parse(readFileSync(new URL("vectors.json", import.meta.url), "utf8")) as ReturnType<typeof vectors>;

function unhex(text: string): Uint8Array {
  return wire.unhex(text) ?? assert.fail(`${text} is not hexadecimal`);
}

test("the vectors are what the code makes", () => {
  assert.deepEqual(file, JSON.parse(JSON.stringify(vectors())), "after a deliberate change: npm run vectors");
});

test("the vectors are read as what they say", () => {
  const decoder = new wire.FrameDecoder();
  assert.deepEqual([...decoder.push(unhex(file.preamble))], []);
  for (const vector of file.messages) {
    const [frame, ...more] = [...decoder.push(unhex(vector.hex))];
    assert.ok(frame !== undefined && more.length === 0, vector.name);
    const { op, flags, id, epoch } = vector;
    assert.deepEqual({ op: frame.op, flags: frame.flags, id: frame.id, epoch: frame.epoch }, { op, flags, id, epoch });
    const value = SHAPES[vector.shape].decode(frame.body);
    assert.deepEqual(JSON.parse(JSON.stringify(plain(value))), vector.value, vector.name);
  }
  for (const { message, hex } of file.json) {
    assert.deepEqual([...new wire.JsonDecoder().push(unhex(hex))], [message]);
  }
});

test("what must be refused is refused, with the right error", () => {
  for (const { name, error, hex } of file.refused) {
    assert.throws(
      () => [...new wire.FrameDecoder().push(unhex(hex))],
      (thrown) => thrown instanceof wire.StoreError && thrown.kind === error,
      name,
    );
  }
});

const bytes = (maxLength = 40) => fc.uint8Array({ maxLength });
const number = fc.maxSafeNat();
const nonce = fc.uint8Array({ minLength: 16, maxLength: 16 });
const u32 = fc.nat(0xffff_ffff);
const stat = fc.record({
  inode: number,
  mode: u32,
  uid: u32,
  gid: u32,
  links: u32,
  size: number,
  mtime: fc.maxSafeInteger(),
  version: number,
});
const optional = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: null });

/** Any value of each kind of body. */
const ANY: { [Name in keyof typeof SHAPES]?: fc.Arbitrary<unknown> } = {
  Hello: fc.record({
    role: fc.nat(255),
    maxMessage: u32,
    maxRequests: u32,
    maxBytes: u32,
    heartbeat: u32,
    name: fc.string({ unit: "grapheme" }),
  }),
  OpenRequest: fc.record({ nonce, held: number }),
  OpenAnswer: fc.record({ epoch: number, last: number, version: number }),
  CommitRequest: fc.record({ number, nonce, ops: fc.array(fc.tuple(bytes(), optional(bytes()))) }),
  CommitAnswer: number,
  StageRequest: fc.record({ number, nonce, part: u32, ops: fc.array(fc.tuple(bytes(), optional(bytes()))) }),
  CommitStagedRequest: fc.record({ number, nonce, parts: u32 }),
  GetRequest: bytes(),
  GetAnswer: optional(bytes()),
  ScanRequest: fc.record({ prefix: bytes(), after: optional(bytes()), maxPairs: u32, maxBytes: u32 }),
  ScanAnswer: fc.record({ more: fc.boolean(), pairs: fc.array(fc.tuple(bytes(), bytes())) }),
  ChangesRequest: fc.record({ since: number, max: u32 }),
  ChangesAnswer: fc.record({
    current: number,
    oldest: number,
    more: fc.boolean(),
    changes: fc.array(fc.record({ version: number, epoch: number, at: number, keys: optional(fc.array(bytes())) })),
  }),
  BlobPutRequest: fc.record({ pack: nonce, bytes: bytes() }),
  BlobGetRequest: fc.record({ pack: nonce, start: number, end: number }),
  BlobDeleteRequest: nonce,
  FileStatRequest: fc.record({ path: bytes(), follow: fc.boolean() }),
  FileStatAnswer: stat,
  FileReadRequest: fc.record({ path: bytes(), offset: number, length: u32 }),
  FileReadAnswer: fc.record({ stat, bytes: bytes() }),
  FileListRequest: fc.record({ path: bytes(), after: bytes(), max: u32 }),
  FileListAnswer: fc.record({ more: fc.boolean(), entries: fc.array(fc.record({ name: bytes(), stat })) }),
  FileWriteRequest: fc.record({ nonce, flags: u32, mode: u32, offset: number, path: bytes(), bytes: bytes() }),
  FileUnlinkRequest: fc.record({ path: bytes(), recursive: fc.boolean() }),
};

test("any value comes back", () => {
  for (const [name, arbitrary] of Object.entries(ANY)) {
    const shape = SHAPES[name as keyof typeof SHAPES] as wire.Shape<unknown>;
    fc.assert(
      fc.property(arbitrary, (value) => {
        // Through JSON, because records of the generator have no prototype.
        assert.deepEqual(plain(shape.decode(shape.encode(value))), JSON.parse(JSON.stringify(plain(value))), name);
      }),
    );
  }
});

test("any bytes are read or refused, never worse", () => {
  for (const shape of Object.values(SHAPES) as wire.Shape<unknown>[]) {
    fc.assert(
      fc.property(bytes(120), (body) => {
        try {
          shape.decode(body);
        } catch (thrown) {
          assert.ok(thrown instanceof wire.StoreError && thrown.code === wire.ErrorCode.Protocol, String(thrown));
        }
      }),
    );
  }
});

test("messages come back, however large, mixed and cut", () => {
  const message = fc.record({
    op: fc.nat(255),
    flags: fc.constantFrom(0, 1, 3),
    id: number,
    epoch: number,
    body: fc.oneof(bytes(), fc.constant(new Uint8Array(wire.MAX_BODY)), fc.constant(new Uint8Array(wire.MAX_BODY + 5))),
  });
  const messages = fc.uniqueArray(message, { selector: ({ id }) => id, maxLength: 4 });
  fc.assert(
    fc.property(messages, fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 6 }), (sent, cuts) => {
      // Frame by frame in turn, as several messages under way at once.
      const queues = sent.map((one) => [...wire.split(one)]);
      const pieces = [wire.encodePreamble()];
      while (queues.some((queue) => queue.length > 0)) {
        pieces.push(...queues.flatMap((queue) => queue.splice(0, 1)).map(wire.encodeFrame));
      }
      const stream = wire.concat(pieces);
      const ends = [...cuts.map((cut) => Math.floor(cut * stream.length)), stream.length].sort((a, b) => a - b);
      const [decoder, assembler] = [new wire.FrameDecoder(), new wire.Assembler()];
      const received: wire.Frame[] = [];
      let from = 0;
      for (const end of ends) {
        for (const frame of decoder.push(stream.slice(from, end))) {
          const whole = assembler.push(frame);
          if (whole !== null) {
            received.push(whole);
          }
        }
        from = end;
      }
      assert.ok(decoder.idle && assembler.held === 0);
      assert.equal(received.length, sent.length);
      for (const one of sent) {
        const found = received.find(({ id }) => id === one.id);
        assert.ok(found !== undefined && found.op === one.op && found.flags === one.flags && found.epoch === one.epoch);
        assert.ok(Buffer.from(found.body).equals(Buffer.from(one.body)));
      }
    }),
    { numRuns: 30 },
  );
});

test("hostile streams are refused without claiming memory for what they announce", () => {
  fc.assert(
    fc.property(bytes(200), (noise) => {
      try {
        const decoder = new wire.FrameDecoder();
        const assembler = new wire.Assembler();
        for (const frame of decoder.push(wire.concat([wire.encodePreamble(), noise]))) {
          assembler.push(frame);
        }
      } catch (thrown) {
        assert.ok(thrown instanceof wire.StoreError && wire.endsConnection(thrown.code), String(thrown));
      }
    }),
  );
  const assembler = new wire.Assembler();
  const frame = { op: 1, flags: wire.Flag.More, id: 1, epoch: 0, body: new Uint8Array(wire.MAX_BODY) };
  assert.throws(() => {
    for (let at = 0; at < 100; at++) {
      assembler.push(frame);
    }
  }, /larger than/);
});

test("the first bytes tell the protocol", () => {
  const first = (text: string) => wire.detect(Uint8Array.from(Buffer.from(text, "latin1")));
  assert.equal(first(""), null);
  assert.equal(first("S"), "binary");
  assert.equal(first("\0\0\0"), null);
  assert.equal(first('\0\0\0\x20{"id"'), "json");
  assert.equal(first("GET / HTTP/1.1"), "garbage");
  assert.equal(first("\x7f\0\0\0{"), "garbage");
});

test("the JSON protocol works both ways round", async () => {
  const files = new Map<string, Uint8Array>();
  const view: wire.JsonFiles = {
    read: async (path, offset, size) => {
      const found = files.get(path);
      if (found === undefined) {
        throw wire.fileError("ENOENT", `'${path}' does not exist`);
      }
      return found.subarray(offset, size === undefined ? undefined : offset + size);
    },
    write: async (path, data) => {
      files.set(path, data);
    },
    stat: async () => ({ size: 1, mtime: 2, mode: 3, isFile: true, isDirectory: false }),
    readdir: async () => [...files.keys()],
    unlink: async (path) => {
      files.delete(path);
    },
  };
  const left: wire.JsonPeer = new wire.JsonPeer(async (sent) => right.receive(sent), view);
  const right: wire.JsonPeer = new wire.JsonPeer(async (sent) => left.receive(sent), view);
  for (const peer of [left, right]) {
    const data = wire.toBase64(wire.utf8("hello"));
    assert.equal((await peer.call({ operation: "write", path: "a", data })).bytesWritten, 5);
    const read = await peer.call({ operation: "read", path: "a", offset: 1, size: 3 });
    assert.equal(Buffer.from(read.data ?? "", "base64").toString(), "ell");
    assert.deepEqual((await peer.call({ operation: "readdir", path: "" })).files, ["a"]);
    assert.equal((await peer.call({ operation: "stat", path: "a" })).stat?.isFile, true);
    assert.equal((await peer.call({ operation: "unlink", path: "a" })).success, true);
    await assert.rejects(peer.call({ operation: "read", path: "a" }), /ENOENT: 'a' does not exist/);
    await assert.rejects(peer.call({ operation: "chmod", path: "a" }), /unknown/);
    await assert.rejects(peer.call({ operation: "read", path: "a", offset: -1 }), /whole number/);
  }
  const fresh = new wire.JsonPeer(async () => undefined, view);
  await assert.rejects(fresh.receive(Uint8Array.of(0, 0, 0, 2, 0x5b, 0x5d)), /JSON object/);
  await assert.rejects(fresh.receive(Uint8Array.of(0x7f, 0, 0, 0)), /allowed/);
});
