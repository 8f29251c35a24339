import { errorResponse, serveFiles } from "./files/http.js";
import { JsonView } from "./files/json-view.js";
import { parseRange } from "./files/range.js";
import { VolumeStorage } from "./files/storage.js";
import { AgentHub } from "./session/hub.js";
import { serveWebSocket } from "./session/pipes.js";
import { SESSION_DEFAULTS, type SessionOptions } from "./session/session.js";
import { type StoreOptions, VolumeStore } from "./store/store.js";
import { unhex, utf8 } from "./wire/bytes.js";
import { ErrorCode, StoreError } from "./wire/errors.js";
import { MAX_MESSAGE } from "./wire/frame.js";
import type { JsonFiles } from "./wire/json.js";

/** What a Durable Object that holds a volume is told by its Worker's bindings. All are optional. */
export interface VolumeEnv {
  /** Secret that file requests and agents which connect by themselves have to show. Without it they are refused. */
  STORESHIM_TOKEN?: string;
  /** Bucket for large packs. */
  STORESHIM_BUCKET?: R2Bucket;
}

/** How a volume is held. */
export interface VolumeOptions extends StoreOptions {
  /** Where programs see the volume; `/storage` unless told. */
  mountPath?: string;
  /** Secret that requests have to show; without it they are refused. */
  token?: string | undefined;
  /** Settings of the connections with agents. */
  session?: Partial<SessionOptions>;
}

/** What the Durable Object around a volume knows. */
export interface VolumeSurroundings {
  /** An agent did something. */
  active(): void;
  /** An agent may be alive although it is not connected. */
  agentMayLive(): boolean;
  /** {@link VolumeHost.collect} is to be called at this time (milliseconds since 1970). */
  wake(at: number): void;
}

/** Paths that are the volume's, not the app's. */
export const INTERNAL = "/.storeshim/";

/** A volume within a Durable Object: its store, its agents, its files. The object around it lends its storage and alarm. */
export class VolumeHost {
  /** What is stored. */
  readonly store: VolumeStore;
  /** Who is connected. */
  readonly hub: AgentHub;
  /** The files. */
  readonly storage: VolumeStorage;
  /** The files, for the JSON protocol. */
  readonly jsonFiles: JsonFiles;
  private nextWake: number | null = null;

  constructor(
    state: Pick<DurableObjectState, "storage" | "id">,
    private readonly options: VolumeOptions,
    private readonly surroundings: VolumeSurroundings,
  ) {
    this.store = new VolumeStore(state, options, (at) => this.wake(at));
    this.hub = new AgentHub(this.store, () => surroundings.active(), { ...SESSION_DEFAULTS, ...options.session });
    const { mountPath = "/storage" } = options;
    this.storage = new VolumeStorage({
      store: this.store,
      hub: this.hub,
      mountPath,
      agentMayLive: () => surroundings.agentMayLive(),
    });
    this.jsonFiles = new JsonView(this.storage, mountPath);
  }

  private wake(at: number): void {
    if (this.nextWake === null || this.nextWake > at) {
      this.nextWake = at;
      this.surroundings.wake(at);
    }
  }

  /** Collects garbage; to be called when the time has come that {@link VolumeSurroundings.wake} was told. */
  async collect(): Promise<void> {
    this.nextWake = null;
    await this.store.collect();
  }

  /** Answers a request whose path begins with {@link INTERNAL}. */
  async fetch(request: Request): Promise<Response> {
    const refusal = await this.refuse(request);
    if (refusal !== null) {
      return refusal;
    }
    const path = new URL(request.url).pathname.slice(INTERNAL.length);
    const [what = ""] = path.split("/", 1);
    try {
      switch (what) {
        case "files":
          return await serveFiles(request, decodePath(path.slice(what.length)), this.storage);
        case "packs":
          return await this.servePack(request, path.slice(what.length + 1));
        case "agent":
          return this.serveAgent(request);
        default:
          return Response.json({ error: `there is nothing at ${path}`, code: "ENOENT" }, { status: 404 });
      }
    } catch (thrown) {
      return errorResponse(thrown);
    }
  }

  private async refuse(request: Request): Promise<Response | null> {
    const { token } = this.options;
    if (token === undefined || token === "") {
      const error = "this Worker has no token, so nobody is let in; set one with `wrangler secret put STORESHIM_TOKEN`";
      return Response.json({ error, code: "Refused" }, { status: 403 });
    }
    const shown = /^Bearer (.+)$/i.exec(request.headers.get("authorization") ?? "")?.[1] ?? "";
    // Hashes, so that neither content nor length show in the time that it takes.
    const [a, b] = await Promise.all(
      [token, shown].map((text) => crypto.subtle.digest("SHA-256", utf8(text) as BufferSource)),
    );
    if (crypto.subtle.timingSafeEqual(a as ArrayBuffer, b as ArrayBuffer)) {
      return null;
    }
    const error = "the token is missing or wrong; send the Worker's STORESHIM_TOKEN as 'Authorization: Bearer …'";
    return Response.json({ error, code: "Refused" }, { status: 401, headers: { "www-authenticate": "Bearer" } });
  }

  private serveAgent(request: Request): Response {
    if (request.headers.get("upgrade")?.toLowerCase() !== "websocket") {
      const error = "agents connect here by a WebSocket; send an upgrade request";
      return Response.json({ error, code: "Protocol" }, { status: 426, headers: { upgrade: "websocket" } });
    }
    const { 0: client, 1: server } = new WebSocketPair();
    serveWebSocket(server, (pipe) => this.hub.connect(pipe));
    return new Response(null, { status: 101, webSocket: client });
  }

  /** A pack over HTTP: for packs that are too large to share a connection with small commits. */
  private async servePack(request: Request, name: string): Promise<Response> {
    const pack = unhex(name);
    const epoch = Number(request.headers.get("storeshim-epoch") ?? 0);
    if (pack === null || pack.length !== 16 || !Number.isSafeInteger(epoch)) {
      throw new StoreError(ErrorCode.Refused, `'${name}' is not the name of a pack, or the epoch is no number`);
    }
    switch (request.method) {
      case "GET": {
        const range = parseRange(request.headers.get("range"), Number.MAX_SAFE_INTEGER);
        if (range === null || range === "none" || range.length > MAX_MESSAGE) {
          throw new StoreError(ErrorCode.Refused, `packs are read by a range of at most ${MAX_MESSAGE} bytes`);
        }
        const bytes = await this.store.blobs.get(pack, range.offset, range.offset + range.length);
        return new Response(bytes as BodyInit, { status: 206 });
      }
      case "PUT": {
        // Read in any case: an answer to a request that is still being sent often does not arrive.
        await this.store.putPack(epoch, pack, await readBody(request));
        return new Response(null, { status: 204 });
      }
      case "DELETE":
        this.store.deletePack(epoch, pack);
        return new Response(null, { status: 204 });
      default:
        throw new StoreError(ErrorCode.Refused, `${request.method} is not possible on packs; use GET, PUT or DELETE`);
    }
  }
}

/** The path in a URL; its names may have any bytes but slashes escaped. */
function decodePath(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    throw new StoreError(ErrorCode.Refused, `the path '${path}' is not correctly escaped; escape it as UTF-8`);
  }
}

/** A request's body, which has to be as long as it says. */
async function readBody(request: Request): Promise<Uint8Array> {
  const length = Number(request.headers.get("content-length") ?? Number.NaN);
  if (!Number.isSafeInteger(length) || length > MAX_MESSAGE) {
    throw new StoreError(ErrorCode.TooLarge, `a pack is sent with its Content-Length, of at most ${MAX_MESSAGE} bytes`);
  }
  const body = new Uint8Array(await request.arrayBuffer());
  if (body.length !== length) {
    throw new StoreError(ErrorCode.Unavailable, `only ${body.length} bytes of ${length} arrived; send the pack again`);
  }
  return body;
}
