import { DurableObject } from "cloudflare:workers";
import type { VolumeStorage } from "./files/storage.js";
import { INTERNAL, type VolumeEnv, VolumeHost } from "./host.js";

/** An agent that has not been heard for this long does not keep others from writing, in milliseconds. */
const TAKEOVER = 60_000;

/**
 * A volume in a Durable Object of its own, for agents that run elsewhere and connect by a WebSocket. For containers of
 * Cloudflare, `StatefulContainer` holds the volume in the container's own object.
 */
export class StorageObject<Env extends VolumeEnv = VolumeEnv> extends DurableObject<Env> {
  readonly #host: VolumeHost;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    const host: VolumeHost = new VolumeHost(
      ctx,
      { bucket: env.STORESHIM_BUCKET, token: env.STORESHIM_TOKEN },
      {
        active: () => undefined,
        agentMayLive: () => {
          const { holder, released } = host.store.meta.current;
          return holder === "agent" && !released && host.hub.silence() < TAKEOVER;
        },
        wake: (at) => ctx.waitUntil(ctx.storage.setAlarm(at)),
      },
    );
    this.#host = host;
  }

  /** The volume's files. Reachable by RPC: `env.VOLUMES.getByName(id).storage.readFile("/path")`. */
  get storage(): VolumeStorage {
    return this.#host.storage;
  }

  /** Deletes what the volume does not need any more. */
  override async alarm(): Promise<void> {
    await this.#host.collect();
  }

  /** Answers requests for the volume. */
  override async fetch(request: Request): Promise<Response> {
    if (new URL(request.url).pathname.startsWith(INTERNAL)) {
      return await this.#host.fetch(request);
    }
    return Response.json({ error: "there is no container behind this volume", code: "ENOENT" }, { status: 404 });
  }
}
