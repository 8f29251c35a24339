import { RpcTarget } from "cloudflare:workers";
import type { AgentHub } from "../session/hub.js";
import type { VolumeStore } from "../store/store.js";
import { lossyText, utf8 } from "../wire/bytes.js";
import { ErrorCode, fileError, StoreError } from "../wire/errors.js";
import type { Stat } from "../wire/messages.js";
import { pieces, putFile, removeName, type WriteOptions } from "./change.js";
import { Edit } from "./edit.js";
import { LocalFiles } from "./local.js";
import { parsePath, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from "./paths.js";
import { AgentGone, RemoteFiles } from "./remote.js";

/** What a file is. */
export type FileType = "file" | "directory" | "symlink" | "other";

/** What {@link VolumeStorage.stat} tells. */
export interface FileStat {
  type: FileType;
  size: number;
  /** Permission bits. */
  mode: number;
  uid: number;
  gid: number;
  mtime: Date;
  /** Changes whenever the volume does; `null` while what was read may not be committed yet. */
  etag: string | null;
}

/** An entry of a directory. */
export interface DirectoryEntry extends FileStat {
  name: string;
}

/** What a file can be written from. */
export type FileData = string | ArrayBuffer | ArrayBufferView | ReadableStream<Uint8Array>;

/** Part of a file. */
export interface FileRange {
  /** First byte; 0 unless told. */
  offset?: number;
  /** Bytes at most; to the end unless told. */
  length?: number;
}

/** What the storage needs to know of the Durable Object that it is in. */
export interface StorageHost {
  store: VolumeStore;
  hub: AgentHub;
  /** Where programs see the volume. */
  mountPath: string;
  /** An agent may be alive that holds the volume, or is about to, although it is not connected. */
  agentMayLive(): boolean;
}

/** Bytes that are read at once. */
const PIECE = 1 << 20;
/** Largest file that is given as one array, in bytes. */
const LARGEST = 32 << 20;
/** Entries of a directory that are given as one array. */
const MOST_ENTRIES = 100_000;
/** An agent that may be alive is waited for this long, in milliseconds. */
const PATIENCE = 10_000;

/**
 * A volume's files, for code in Workers; reachable by RPC as the `storage` of a Durable Object's stub. While an agent is
 * connected it is asked, so that code and container see the same bytes; else the committed state is read and written.
 */
export class VolumeStorage extends RpcTarget {
  readonly #host: StorageHost;
  readonly #local: LocalFiles;
  readonly #remote: RemoteFiles;
  #writing: Promise<unknown> = Promise.resolve();

  constructor(host: StorageHost) {
    super();
    this.#host = host;
    this.#local = new LocalFiles(host.store, host.mountPath);
    this.#remote = new RemoteFiles(host.hub, () => host.agentMayLive());
  }

  /** Reads from the agent where one is connected, and from what was committed where none is, or none any more. */
  async #read<T>(from: (files: LocalFiles | RemoteFiles) => Promise<T>): Promise<T> {
    if (this.#host.hub.agent() !== null) {
      try {
        return await from(this.#remote);
      } catch (thrown) {
        if (!(thrown instanceof AgentGone)) {
          throw thrown;
        }
      }
    }
    return await from(this.#local);
  }

  /** What a path names; a symbolic link at its end is followed unless `follow` is false. */
  async stat(path: string, options: { follow?: boolean } = {}): Promise<FileStat> {
    return describe(await this.#read((files) => files.stat(parsePath(path), options.follow ?? true)));
  }

  /** A file's bytes, or part of them; up to 32 MiB at once. */
  async readFile(path: string, range: FileRange = {}): Promise<Uint8Array> {
    const parts = parsePath(path);
    const offset = range.offset ?? 0;
    const first = await this.#read((files) => files.read(parts, offset, Math.min(range.length ?? PIECE, PIECE)));
    const end = Math.min(first.stat.size, offset + (range.length ?? first.stat.size));
    if (end - offset > LARGEST) {
      throw fileError("EFBIG", `'${path}' has more than ${LARGEST} bytes; read it with stream(), or in ranges`);
    }
    const whole = new Uint8Array(Math.max(0, end - offset));
    whole.set(first.bytes);
    for (let at = first.bytes.length; at < whole.length; ) {
      const next = await this.#next(path, parts, first.stat, offset + at, whole.length - at);
      whole.set(next, at);
      at += next.length;
    }
    return whole;
  }

  /** A file's text. */
  async readText(path: string): Promise<string> {
    return lossyText(await this.readFile(path));
  }

  /** A file's bytes, or part of them, as a stream; it fails where the file changes meanwhile. */
  async stream(path: string, range: FileRange = {}): Promise<ReadableStream<Uint8Array>> {
    const parts = parsePath(path);
    const stat = await this.#read((files) => files.stat(parts, true));
    let at = range.offset ?? 0;
    const end = Math.min(stat.size, at + (range.length ?? stat.size));
    await this.#read((files) => files.read(parts, at, 0));
    return new ReadableStream({
      type: "bytes",
      pull: async (controller: ReadableByteStreamController) => {
        if (at >= end) {
          controller.close();
          return;
        }
        const bytes = await this.#next(path, parts, stat, at, end - at);
        at += bytes.length;
        controller.enqueue(bytes);
      },
    });
  }

  async #next(path: string, parts: Uint8Array[], was: Stat, at: number, left: number): Promise<Uint8Array> {
    const { stat, bytes } = await this.#read((files) => files.read(parts, at, Math.min(left, PIECE)));
    if (stat.inode !== was.inode || stat.size !== was.size || stat.mtime !== was.mtime || bytes.length === 0) {
      throw new StoreError(ErrorCode.Unavailable, `'${path}' was changed while it was read; read it again`);
    }
    return bytes;
  }

  /** The entries of a directory, in byte order of their names. */
  async readdir(path: string): Promise<DirectoryEntry[]> {
    const entries: DirectoryEntry[] = [];
    let after = "";
    for (let more = true; more; ) {
      const page = await this.list(path, { after });
      entries.push(...page.entries);
      ({ more } = page);
      after = page.entries.at(-1)?.name ?? "";
      if (entries.length > MOST_ENTRIES) {
        throw fileError("EFBIG", `'${path}' has more than ${MOST_ENTRIES} entries; read it with list(), page by page`);
      }
    }
    return entries;
  }

  /** One page of a directory's entries: those behind the name `after`, `limit` at most. */
  async list(
    path: string,
    options: { after?: string; limit?: number } = {},
  ): Promise<{ entries: DirectoryEntry[]; more: boolean }> {
    const limit = Math.min(Math.max(1, options.limit ?? 1000), 1000);
    const page = await this.#read((files) => files.list(parsePath(path), utf8(options.after ?? ""), limit));
    const entries = page.entries.map(({ name, stat }) => ({ name: lossyText(name), ...describe(stat) }));
    return { entries, more: page.more };
  }

  /** Writes a file: replaces it, or with `offset` writes into it. It is durable when this resolves. */
  async writeFile(path: string, data: FileData, options: WriteOptions = {}): Promise<FileStat> {
    const parts = parsePath(path);
    return await this.#change(
      async () => describe(await this.#remote.write(parts, pieces(data), options)),
      async (edit) => {
        const found = await putFile(this.#local, edit, parts, pieces(data), options);
        return () => describe(this.#local.statOf(found));
      },
    );
  }

  /** Removes a file, or with `recursive` a directory and everything in it. */
  async unlink(path: string, options: { recursive?: boolean } = {}): Promise<void> {
    const parts = parsePath(path);
    const recursive = options.recursive ?? false;
    await this.#change(
      async () => this.#remote.unlink(parts, recursive),
      async (edit) => {
        removeName(this.#local, edit, parts, recursive);
        return () => undefined;
      },
    );
  }

  /** Changes files through the agent where one is connected, else by a commit of our own. */
  async #change<T>(remote: () => Promise<T>, local: (edit: Edit) => Promise<() => T>): Promise<T> {
    const host = this.#host;
    if ((await host.hub.waitForAgent(host.agentMayLive() ? PATIENCE : 0)) !== null) {
      return await remote();
    }
    if (host.agentMayLive()) {
      throw new StoreError(
        ErrorCode.Unavailable,
        "an agent holds the volume but is not connected, and may still be writing; try again when it is back or has ended",
      );
    }
    const turn = this.#writing.then(() => this.#commit(local));
    this.#writing = turn.catch(() => undefined);
    return await turn;
  }

  async #commit<T>(local: (edit: Edit) => Promise<() => T>): Promise<T> {
    const { store, hub } = this.#host;
    // Looked at once more: while others wrote, an agent may have come, and must not be fenced by us.
    if (hub.agent() !== null || this.#host.agentMayLive()) {
      throw agentCame();
    }
    this.#local.checkFormat();
    const nonce = crypto.getRandomValues(new Uint8Array(16));
    // Whoever held the volume before is fenced by this: it must not commit over what we write.
    const epoch =
      store.meta.current.holder === "worker" && store.meta.current.epoch > 0
        ? store.meta.current.epoch
        : store.open(nonce, 0, "worker").epoch;
    const edit = new Edit(this.#local, (pack, bytes) => store.putPack(epoch, pack, bytes));
    let result: () => T;
    let dead: Uint8Array[];
    try {
      result = await local(edit);
      store.meta.require(epoch);
      const commit = edit.finish();
      dead = commit.dead;
      store.commit(epoch, { number: store.meta.last() + 1, nonce, ops: commit.ops });
    } catch (thrown) {
      // Nothing was committed, so nothing refers to what was sent for it.
      if (store.meta.current.epoch === epoch) {
        for (const { id } of edit.packs) {
          store.deletePack(epoch, id);
        }
      }
      if (thrown instanceof StoreError && thrown.code === ErrorCode.Fenced) {
        throw agentCame();
      }
      throw thrown;
    }
    for (const pack of dead) {
      store.deletePack(epoch, pack);
    }
    return result();
  }
}

function agentCame(): StoreError {
  return new StoreError(ErrorCode.Unavailable, "an agent has opened the volume meanwhile; write again");
}

const TYPES = new Map<number, FileType>([
  [S_IFREG, "file"],
  [S_IFDIR, "directory"],
  [S_IFLNK, "symlink"],
]);

function describe(stat: Stat): FileStat {
  return {
    type: TYPES.get(stat.mode & S_IFMT) ?? "other",
    size: stat.size,
    mode: stat.mode & 0o7777,
    uid: stat.uid,
    gid: stat.gid,
    mtime: new Date(stat.mtime),
    etag: stat.version === 0 ? null : `"${stat.version}-${stat.inode}"`,
  };
}
