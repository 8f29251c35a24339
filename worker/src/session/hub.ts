import type { VolumeStore } from "../store/store.js";
import { ErrorCode, StoreError } from "../wire/errors.js";
import type { JsonPeer } from "../wire/json.js";
import { type Pipe, SESSION_DEFAULTS, Session, type SessionOptions } from "./session.js";

/** Whoever waits for an agent looks this often whether one can still come, in milliseconds. */
const LOOK = 100;

/** All connections of one volume: who may commit, and whom file operations are forwarded to. */
export class AgentHub {
  private readonly sessions = new Set<Session>();
  private waiters: (() => void)[] = [];
  /** When an agent that holds the volume was heard last, in milliseconds since 1970. */
  private seen = Date.now();
  /** The container speaks JSON: it asks us, and nobody else holds the volume. */
  json: JsonPeer | null = null;

  constructor(
    private readonly store: VolumeStore,
    private readonly activity: () => void,
    private readonly options: SessionOptions = SESSION_DEFAULTS,
  ) {}

  /** A session over a new connection. */
  connect(pipe: Pipe): Session {
    const session = new Session(
      this.store,
      pipe,
      {
        active: this.activity,
        opened: (opened) => this.opened(opened),
        ended: (ended, why) => this.ended(ended, why),
      },
      this.options,
    );
    this.sessions.add(session);
    return session;
  }

  private opened(session: Session): void {
    const { epoch } = this.store.meta.current;
    for (const other of this.sessions) {
      // By the epochs as they are now: two openings may have been answered in either order.
      if (other.epoch !== 0 && other.epoch !== epoch) {
        other.end(
          new StoreError(
            ErrorCode.Fenced,
            "another agent has taken over this volume; stop this one or start it again to take the volume back",
          ),
        );
      } else if (other !== session && other.epoch === session.epoch) {
        // The same agent over an earlier connection: it is dead, only nobody has noticed yet.
        other.end(new StoreError(ErrorCode.Unavailable, "the agent has come back over another connection"));
      }
    }
    for (const wake of this.waiters.splice(0)) {
      wake();
    }
  }

  private ended(session: Session, why: StoreError): void {
    this.sessions.delete(session);
    if (session.epoch !== 0) {
      this.seen = Date.now();
      console.warn(`storeshim: the connection of epoch ${session.epoch} ended: ${why.message}`);
    }
  }

  /** The connected agent that holds the volume; `null` when none does. */
  agent(): Session | null {
    const { epoch, released } = this.store.meta.current;
    for (const session of this.sessions) {
      if (session.epoch === epoch && epoch !== 0 && !released && session.ended === null) {
        return session;
      }
    }
    return null;
  }

  /** The same, but waits up to `patience` milliseconds for one, for as long as one `mayCome`. */
  async waitForAgent(patience: number, mayCome: () => boolean = () => true): Promise<Session | null> {
    const deadline = Date.now() + patience;
    for (;;) {
      const agent = this.agent();
      const left = deadline - Date.now();
      if (agent !== null || left <= 0 || !mayCome()) {
        return agent;
      }
      await new Promise<void>((resolve) => {
        this.waiters.push(resolve);
        setTimeout(resolve, Math.min(left, LOOK));
      });
    }
  }

  /** How long no agent that held the volume has been heard, in milliseconds. */
  silence(): number {
    return this.agent() === null ? Date.now() - this.seen : 0;
  }

  /** Ends every connection. */
  endAll(why: StoreError): void {
    for (const session of this.sessions) {
      session.end(why);
    }
  }
}
