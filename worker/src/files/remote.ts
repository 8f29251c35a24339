import type { AgentHub } from "../session/hub.js";
import { Errno, ErrorCode, StoreError } from "../wire/errors.js";
import * as wire from "../wire/messages.js";
import { NONCE } from "../wire/shape.js";
import type { Data, WriteOptions } from "./change.js";
import { joinPath } from "./paths.js";

/** An agent that is redialled is waited for this long, in milliseconds. */
const RECONNECT = 15_000;
/** Bytes of a file that go in one message. */
const PART = 1 << 20;

/** A volume's files as a running agent shows them: what its programs see, committed or not. */
export class RemoteFiles {
  constructor(
    private readonly hub: AgentHub,
    /** An agent may be alive although it is not connected. */
    private readonly agentMayLive: () => boolean,
  ) {}

  /**
   * Asks the agent; where the connection breaks, asks the one that follows. All requests may be done twice. {@link AgentGone}
   * where none can follow.
   */
  private async ask(op: number, body: Uint8Array): Promise<{ answer: Uint8Array; again: boolean }> {
    for (let again = false; ; again = true) {
      const agent = await this.hub.waitForAgent(again ? RECONNECT : 0, this.agentMayLive);
      if (agent === null && !this.agentMayLive()) {
        throw new AgentGone();
      }
      if (agent === null) {
        throw new StoreError(
          ErrorCode.Unavailable,
          "the agent that holds the volume is not connected; try again when its container runs, or has ended",
        );
      }
      try {
        return { answer: await agent.request(op, body), again };
      } catch (thrown) {
        const lost = thrown instanceof StoreError && thrown.code === ErrorCode.Unavailable && agent.ended !== null;
        if (!lost) {
          throw thrown instanceof StoreError ? new Repeated(thrown, again) : thrown;
        }
      }
    }
  }

  async stat(path: Uint8Array[], follow: boolean): Promise<wire.Stat> {
    const body = wire.FileStatRequest.encode({ path: joinPath(path), follow });
    return wire.FileStatAnswer.decode((await this.ask(wire.Op.FileStat, body)).answer);
  }

  async read(path: Uint8Array[], offset: number, length: number): Promise<{ stat: wire.Stat; bytes: Uint8Array }> {
    const body = wire.FileReadRequest.encode({ path: joinPath(path), offset, length: Math.min(length, PART) });
    return wire.FileReadAnswer.decode((await this.ask(wire.Op.FileRead, body)).answer);
  }

  async list(path: Uint8Array[], after: Uint8Array, max: number) {
    const body = wire.FileListRequest.encode({ path: joinPath(path), after, max });
    return wire.FileListAnswer.decode((await this.ask(wire.Op.FileList, body)).answer);
  }

  async unlink(path: Uint8Array[], recursive: boolean): Promise<void> {
    const body = wire.FileUnlinkRequest.encode({ path: joinPath(path), recursive });
    try {
      await this.ask(wire.Op.FileUnlink, body);
    } catch (thrown) {
      // The first request did it, only its answer was lost.
      if (!(thrown instanceof Repeated && thrown.again && thrown.errno === Errno.ENOENT)) {
        throw thrown;
      }
    }
  }

  /** Writes a file part by part; it is durable, and in place, when the last part is answered. */
  async write(path: Uint8Array[], data: Data, options: WriteOptions): Promise<wire.Stat> {
    const nonce = crypto.getRandomValues(new Uint8Array(NONCE));
    const { mode = 0o644, parents = true } = options;
    const always = (options.offset === undefined ? wire.WriteFlag.Replace : 0) | (parents ? wire.WriteFlag.Parents : 0);
    let offset = options.offset ?? 0;
    let stat: wire.Stat | null = null;
    const send = async (bytes: Uint8Array, last: boolean) => {
      const flags = always | (last ? wire.WriteFlag.Last : 0);
      const body = wire.FileWriteRequest.encode({ nonce, flags, mode, offset, path: joinPath(path), bytes });
      stat = wire.FileStatAnswer.decode((await this.ask(wire.Op.FileWrite, body)).answer);
      offset += bytes.length;
    };
    // One part behind, because only the one after it tells whether a part is the last.
    let held: Uint8Array | null = null;
    for await (const piece of data) {
      for (let at = 0; at < piece.length; at += PART) {
        if (held !== null) {
          await send(held, false);
        }
        held = piece.slice(at, at + PART);
      }
    }
    await send(held ?? new Uint8Array(0), true);
    return stat as unknown as wire.Stat;
  }
}

/** The agent has ended while it was asked, so that what is committed is all there is; it may or may not have done it. */
export class AgentGone extends StoreError {
  constructor() {
    super(ErrorCode.Unavailable, "the agent ended while it was asked, and may or may not have done it; ask again");
  }
}

/** An agent's error, and whether it was asked a second time. */
class Repeated extends StoreError {
  constructor(
    error: StoreError,
    readonly again: boolean,
  ) {
    super(error.code, error.message, error.errno);
  }
}
