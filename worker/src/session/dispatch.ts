import { ErrorCode, StoreError } from "../wire/errors.js";
import { type Frame, MAX_MESSAGE } from "../wire/frame.js";
import * as wire from "../wire/messages.js";
import type { Session } from "./session.js";

const NOTHING = new Uint8Array(0);
/** What is left of a message for a blob's bytes, with room for what leads them. */
const LARGEST_BLOB = MAX_MESSAGE - (64 << 10);
/** A page of a scan never has more bytes than this, but for a single large value. */
const LARGEST_PAGE = 4 << 20;

/** Does what an agent asks for; the answer's body. */
export async function dispatch(session: Session, request: Frame): Promise<Uint8Array> {
  const { store } = session;
  const { meta, blobs } = store;
  const { epoch, body } = request;
  if (epoch !== 0) {
    meta.require(epoch);
  }
  switch (request.op) {
    case wire.Op.Open: {
      const { nonce, held } = wire.OpenRequest.decode(body);
      const opened = store.open(nonce, held);
      session.epoch = opened.epoch;
      return wire.OpenAnswer.encode(opened);
    }
    case wire.Op.Commit:
      return wire.CommitAnswer.encode(store.commit(epoch, wire.CommitRequest.decode(body)));
    case wire.Op.Stage:
      meta.stage(epoch, wire.StageRequest.decode(body));
      return NOTHING;
    case wire.Op.CommitStaged:
      return wire.CommitAnswer.encode(meta.commitStaged(epoch, wire.CommitStagedRequest.decode(body)));
    case wire.Op.Get:
      return wire.GetAnswer.encode(meta.get(wire.GetRequest.decode(body)));
    case wire.Op.Scan: {
      const scan = wire.ScanRequest.decode(body);
      return wire.ScanAnswer.encode(meta.scan({ ...scan, maxBytes: Math.min(scan.maxBytes, LARGEST_PAGE) }));
    }
    case wire.Op.Changes: {
      const { since, max } = wire.ChangesRequest.decode(body);
      return wire.ChangesAnswer.encode(meta.changes(since, max));
    }
    case wire.Op.Close:
      wire.Empty.decode(body);
      meta.require(epoch);
      meta.release(epoch);
      return NOTHING;
    case wire.Op.BlobPut: {
      const { pack, bytes } = wire.BlobPutRequest.decode(body);
      checkBlob(bytes.length);
      await store.putPack(epoch, pack, bytes);
      return NOTHING;
    }
    case wire.Op.BlobGet: {
      const { pack, start, end } = wire.BlobGetRequest.decode(body);
      checkBlob(end - start);
      return await blobs.get(pack, start, end);
    }
    case wire.Op.BlobDelete:
      store.deletePack(epoch, wire.BlobDeleteRequest.decode(body));
      return NOTHING;
    default:
      throw new StoreError(
        ErrorCode.Refused,
        `the request ${request.op} is unknown to this Worker; update storeshim-worker`,
      );
  }
}

function checkBlob(size: number): void {
  if (size > LARGEST_BLOB) {
    throw new StoreError(
      ErrorCode.Refused,
      `${size} bytes of a pack were sent or asked for at once, where ${LARGEST_BLOB} are allowed; use smaller packs`,
    );
  }
}
