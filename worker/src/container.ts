import { Container } from "@cloudflare/containers";
import type { VolumeStorage } from "./files/storage.js";
import { INTERNAL, type VolumeEnv, VolumeHost } from "./host.js";
import { Dialer } from "./session/dialer.js";
import type { Protocol } from "./session/pipes.js";
import { ErrorCode, StoreError } from "./wire/errors.js";

/** What a container with storage has beyond a container. */
export interface Stateful {
  /** The port on which the agent listens for this Durable Object; 8000 unless told. */
  storagePort: number;
  /** What the container speaks on that port: storeshim's protocol, JSON, or whatever is found out. */
  storageProtocol: Protocol;
  /** Where programs see the volume; `/storage` unless told. */
  mountPath: string;
  /** The volume's files. Reachable by RPC: `env.MY_CONTAINER.getByName(id).storage.readFile("/path")`. */
  readonly storage: VolumeStorage;
  /** Deletes what the volume does not need any more; called by the object's schedule. */
  collectStorage(): Promise<void>;
}

// biome-ignore lint/suspicious/noExplicitAny: the language wants a mixin's constructor so.
type Arguments = any[];

/** A class of containers, for {@link withStorage}. */
// biome-ignore lint/suspicious/noExplicitAny: whatever its Env is; only what VolumeEnv names is read from it.
export type ContainerClass = new (...args: Arguments) => Container<any>;

/**
 * A class of containers with a persistent `/storage`, made of one that you have already. Its Durable Object holds the volume,
 * dials the agent in the container and keeps dialling; every id has a volume of its own.
 *
 * ```ts
 * export class MyContainer extends withStorage(TheirContainer) {}
 * ```
 *
 * The app's port is 8080 where `Base` names none.
 */
export function withStorage<Base extends ContainerClass>(Base: Base): Base & (new (...args: Arguments) => Stateful) {
  return class extends Base implements Stateful {
    storagePort = 8000;
    storageProtocol: Protocol = "auto";
    mountPath = "/storage";
    #volume: VolumeHost | null = null;
    #dialer: Dialer | null = null;

    constructor(...args: Arguments) {
      super(...args);
      this.defaultPort ??= 8080;
      void this.ctx.blockConcurrencyWhile(async () => {
        // One turn later the fields of the subclass are there. A container that runs has outlived an earlier instance of
        // this object, as at a deploy.
        await Promise.resolve();
        if (this.ctx.container?.running) {
          this.#dial();
        }
      });
    }

    get #host(): VolumeHost {
      const env: VolumeEnv = this.env;
      this.#volume ??= new VolumeHost(
        this.ctx,
        { bucket: env.STORESHIM_BUCKET, token: env.STORESHIM_TOKEN, mountPath: this.mountPath },
        {
          active: () => this.renewActivityTimeout(),
          agentMayLive: () => this.#running() && this.#host.hub.json === null,
          wake: (at) => this.ctx.waitUntil(this.schedule(new Date(at), "collectStorage", null)),
        },
      );
      return this.#volume;
    }

    #running(): boolean {
      return this.ctx.container?.running ?? false;
    }

    get storage(): VolumeStorage {
      return this.#host.storage;
    }

    async collectStorage(): Promise<void> {
      await this.#host.collect();
    }

    #dial(): void {
      const { container } = this.ctx;
      if (container === undefined) {
        return;
      }
      const host = this.#host;
      if (!container.running) {
        // Whoever is still connected is of a container that has gone: it must not keep us from dialling the new one.
        const why = "its container has ended, and another one is being started";
        host.hub.endAll(new StoreError(ErrorCode.Unavailable, why));
      }
      this.#dialer ??= new Dialer({
        connect: () => container.getTcpPort(this.storagePort).connect(`10.0.0.1:${this.storagePort}`),
        running: () => container.running,
        protocol: this.storageProtocol,
        ends: {
          session: (pipe) => host.hub.connect(pipe),
          files: host.jsonFiles,
          json: (peer) => {
            host.hub.json = peer;
          },
          active: () => this.renewActivityTimeout(),
        },
      });
      this.ctx.waitUntil(this.#dialer.wake());
    }

    /** Starts the container; its agent is dialled from now on, because the app waits for its storage. */
    override async start(...args: Parameters<Container["start"]>): Promise<void> {
      this.#dial();
      await super.start(...args);
    }

    /** The same as {@link start}, and waits until ports are listened on. */
    override async startAndWaitForPorts(...args: Parameters<Container["startAndWaitForPorts"]>): Promise<void> {
      this.#dial();
      await super.startAndWaitForPorts(...args);
    }

    /** Answers requests for the volume; sends all others to the container. */
    override async fetch(request: Request): Promise<Response> {
      if (new URL(request.url).pathname.startsWith(INTERNAL)) {
        return await this.#host.fetch(request);
      }
      return await super.fetch(request);
    }
  };
}

/**
 * A container with a persistent `/storage`: {@link withStorage} of a plain one. This is all it takes:
 *
 * ```ts
 * export class MyContainer extends StatefulContainer {}
 * ```
 */
export class StatefulContainer<Env extends VolumeEnv = VolumeEnv> extends withStorage(Container)<Env> {
  /** The app's port. */
  override defaultPort = 8080;
}
