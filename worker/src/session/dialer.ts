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
/** A connection that held for this long begins the pauses anew, in milliseconds. */
const STABLE = 5_000;

/** Keeps a connection with the container's agent while the container runs: a deploy, a restart of the agent and a broken
 * network all look the same, and are dialled again. */
export class Dialer {
  private expected = 0;
  private loop: Promise<void> | null = null;
  /** What the container was found to speak, until it ends. */
  private learned: Protocol;
  private patient = false;

  constructor(private readonly options: DialOptions) {
    this.learned = options.protocol;
  }

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
    while (this.options.running() || Date.now() < this.expected) {
      const begin = Date.now();
      if (this.options.running()) {
        this.learn(await this.dial());
      }
      pause = Date.now() - begin > STABLE ? PAUSE.first : Math.min(2 * pause, PAUSE.longest);
      await new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random() / 2)));
    }
    this.learned = this.options.protocol;
    this.patient = false;
  }

  private learn(outcome: Outcome | null): void {
    if (outcome === "speaks json") {
      this.learned = "json";
    }
    // Alternately, because an agent that is still starting is silent as well, and waits for our greeting.
    this.patient = outcome === "silent" && !this.patient;
  }

  private async dial(): Promise<Outcome | null> {
    try {
      const socket = this.options.connect();
      socket.closed.catch(() => undefined);
      await socket.opened;
      return await serveSocket(socket, this.learned, this.patient, this.options.ends);
    } catch {
      // Nobody listens yet, or not any more: the usual thing while a container starts and ends.
      return null;
    }
  }
}
