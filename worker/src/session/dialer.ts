import { type Ends, type Outcome, type Protocol, serveSocket } from "./pipes.js";

/** How a container is dialled. */
export interface DialOptions {
  /** Opens a socket to the agent. */
  connect(): Socket;
  /** Whether there is anybody to dial. */
  running(): boolean;
  /** What is spoken; `auto` finds out by the first bytes. */
  protocol: Protocol;
  /** What the socket is connected with. */
  ends: Ends;
}

/** After {@link Dialer.wake} a container may take this long until it counts as running, in milliseconds. */
const STARTING = 30_000;
/** Pauses between attempts, in milliseconds: the first, and the longest. */
const PAUSE = { first: 50, longest: 2_000 };
/** A connection that is not made within this is given up, in milliseconds. */
const CONNECT = 5_000;
/** A connection that held for this long begins the pauses anew, in milliseconds. */
const STABLE = 5_000;

/** How long a dial waits for the other side's first bytes before it speaks, in milliseconds. */
const LISTEN = {
  /** The port has closed without a word: it may be a program that waits to be connected, then asks in JSON. */
  unsure: 1_000,
  /** JSON was spoken before. */
  json: 30_000,
};

/**
 * Keeps a connection with the container's agent while the container runs: a deploy, a restart of the agent and a broken
 * network all look the same, and are dialled again.
 */
export class Dialer {
  private expected = 0;
  private loop: Promise<void> | null = null;
  private listen = 0;

  constructor(private readonly options: DialOptions) {}

  /** The container runs, or is being started: the connection is wanted. The promise ends with the container. */
  wake(): Promise<void> {
    this.expected = Date.now() + STARTING;
    this.loop ??= this.run().finally(() => {
      this.loop = null;
    });
    return this.loop;
  }

  private async run(): Promise<void> {
    let pause = PAUSE.first;
    this.listen = 0;
    while (this.options.running() || Date.now() < this.expected) {
      const begin = Date.now();
      if (this.options.running()) {
        this.learn(await this.dial());
      }
      pause = Date.now() - begin > STABLE ? PAUSE.first : Math.min(2 * pause, PAUSE.longest);
      await new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random() / 2)));
    }
  }

  private learn(outcome: Outcome | null): void {
    if (outcome === "json") {
      this.listen = LISTEN.json;
    } else {
      // Alternately, because an agent that is still starting is silent as well, and waits for our greeting.
      this.listen = outcome === "silent" && this.listen === 0 ? LISTEN.unsure : 0;
    }
  }

  private async dial(): Promise<Outcome | null> {
    try {
      const socket = this.options.connect();
      socket.closed.catch(() => undefined);
      await opened(socket);
      return await serveSocket(socket, this.options.protocol, this.listen, this.options.ends);
    } catch {
      // Nobody listens yet, or not any more: the usual thing while a container starts and ends.
      return null;
    }
  }
}

/** Resolves when a socket is connected; gives up after a while. */
async function opened(socket: Socket): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | null = null;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("the connection is not made")), CONNECT);
  });
  try {
    await Promise.race([socket.opened, late]);
  } catch (thrown) {
    void socket.close().catch(() => undefined);
    throw thrown;
  } finally {
    clearTimeout(timer);
  }
}
