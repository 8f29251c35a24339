/** The Worker of the tests: volumes that dial wherever they are told, so that no container is needed. */

import { connect } from "cloudflare:sockets";
import { DurableObject } from "cloudflare:workers";
import { Container } from "@cloudflare/containers";
import { INTERNAL, type VolumeEnv } from "../../src/host.js";
import {
  Dialer,
  type Protocol,
  routeContainer,
  StatefulContainer,
  StorageObject,
  VolumeHost,
  type VolumeStorage,
  withStorage,
} from "../../src/index.js";

interface Env extends VolumeEnv {
  DIALED: DurableObjectNamespace<DialedVolume>;
  PLAIN: DurableObjectNamespace<StorageObject>;
  CONTAINER?: DurableObjectNamespace<TestContainer>;
  SLEEPY?: DurableObjectNamespace<SleepyContainer>;
  MIXED?: DurableObjectNamespace<MixedContainer>;
}

/** As small as users' ones are. */
export class TestContainer extends StatefulContainer {}

/** Sleeps soon. */
export class SleepyContainer extends StatefulContainer {
  override sleepAfter = "3s";
}

/** A class of somebody else's. */
class TheirContainer extends Container<Env> {
  override async fetch(request: Request): Promise<Response> {
    const answer = await super.fetch(request);
    const headers = new Headers(answer.headers);
    headers.set("x-theirs", "kept");
    return new Response(answer.body, { status: answer.status, headers });
  }
}

/** Made of theirs; shows what it stores. */
export class MixedContainer extends withStorage(TheirContainer) {
  /** Leaves a pack as an agent does that dies before its commit. */
  plant(): void {
    this.ctx.storage.sql.exec(
      "INSERT INTO storeshim_packs (pack, size, epoch, name, first) VALUES (x'00', 0, 0, NULL, 1)",
    );
  }

  /** How many packs there are. */
  packs(): number {
    return Number(this.ctx.storage.sql.exec("SELECT count(*) AS n FROM storeshim_packs").one()["n"]);
  }
}

export { StorageObject };

/** A volume whose agent listens on a port of this machine. */
export class DialedVolume extends DurableObject<Env> {
  readonly #host: VolumeHost;
  #running = false;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    const host: VolumeHost = new VolumeHost(
      ctx,
      {
        bucket: env.STORESHIM_BUCKET,
        token: env.STORESHIM_TOKEN,
        rowsUpTo: 100_000,
        collectAfter: 2_000,
        capacity: 200_000_000,
        session: { heartbeat: 1_000, maxBytes: 4 << 20 },
      },
      {
        active: () => {
          this.activity += 1;
        },
        agentMayLive: () => this.#running && host.hub.json === null,
        wake: (at) => ctx.waitUntil(ctx.storage.setAlarm(at)),
      },
    );
    this.#host = host;
  }

  /** Frames that were not signs of life. */
  activity = 0;

  get storage(): VolumeStorage {
    return this.#host.storage;
  }

  dial(port: number, protocol: Protocol): void {
    this.#running = true;
    const host = this.#host;
    const dialer = new Dialer({
      connect: () => connect(`127.0.0.1:${port}`),
      running: () => this.#running,
      protocol,
      ends: {
        session: (pipe) => host.hub.connect(pipe),
        files: host.jsonFiles,
        json: (peer) => {
          host.hub.json = peer;
        },
        active: () => undefined,
      },
    });
    this.ctx.waitUntil(dialer.wake());
  }

  stop(): void {
    this.#running = false;
  }

  async count(): Promise<{ activity: number; trash: number; packs: number; rows: number; version: number }> {
    const count = (table: string) =>
      Number(this.ctx.storage.sql.exec(`SELECT count(*) AS n FROM storeshim_${table}`).one()["n"]);
    const { version } = this.#host.store.meta;
    const { activity } = this;
    return { activity, trash: count("trash"), packs: count("packs"), rows: count("rows"), version };
  }

  async collect(): Promise<void> {
    await this.#host.collect();
  }

  override async alarm(): Promise<void> {
    await this.#host.collect();
  }

  override async fetch(request: Request): Promise<Response> {
    return new URL(request.url).pathname.startsWith(INTERNAL)
      ? await this.#host.fetch(request)
      : new Response("no app", { status: 404 });
  }
}

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    const url = new URL(request.url);
    const [, kind = "", id = "", what = ""] = url.pathname.split("/");
    if (kind === "plain") {
      const rest = new URL(`/container/${url.pathname.slice("/plain/".length)}${url.search}`, url);
      return (await routeContainer(new Request(rest, request), env.PLAIN)) ?? new Response("no", { status: 404 });
    }
    if (kind === "mixed-packs" && env.MIXED !== undefined) {
      const mixed = env.MIXED.get(env.MIXED.idFromName(id));
      if (what === "plant") {
        await mixed.plant();
      }
      return Response.json(await mixed.packs());
    }
    const containers: Record<string, DurableObjectNamespace<StatefulContainer> | undefined> = {
      real: env.CONTAINER,
      sleepy: env.SLEEPY,
      mixed: env.MIXED as unknown as DurableObjectNamespace<StatefulContainer> | undefined,
    };
    const namespace = containers[kind];
    if (namespace !== undefined) {
      const rest = new URL(`/container/${url.pathname.slice(kind.length + 2)}${url.search}`, url);
      return (await routeContainer(new Request(rest, request), namespace)) ?? new Response("no", { status: 404 });
    }
    if (kind !== "test") {
      return (await routeContainer(request, env.DIALED)) ?? new Response("no such path", { status: 404 });
    }
    const stub = env.DIALED.get(env.DIALED.idFromName(decodeURIComponent(id)));
    switch (what) {
      case "dial":
        await stub.dial(Number(url.searchParams.get("port")), (url.searchParams.get("protocol") ?? "auto") as Protocol);
        return new Response("dialling");
      case "stop":
        await stub.stop();
        return new Response("stopped");
      case "count":
        return Response.json(await stub.count());
      case "collect":
        await stub.collect();
        return new Response("collected");
      case "rpc": {
        // Calls the storage by RPC, as users' code does.
        const { method, args } = (await request.json()) as { method: string; args: unknown[] };
        const storage = stub.storage as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
        try {
          const result = await (storage[method] as (...args: unknown[]) => Promise<unknown>)(...args);
          return result instanceof Uint8Array ? new Response(result as BodyInit) : Response.json(result ?? null);
        } catch (thrown) {
          return new Response(String(thrown), { status: 500 });
        }
      }
      default:
        return new Response("no such test", { status: 404 });
    }
  },
} satisfies ExportedHandler<Env>;
