import type { VolumeStore } from "../store/store.js";
import { asStoreError, ErrorCode, endsConnection, StoreError } from "../wire/errors.js";
import {
  Assembler,
  encodeFrame,
  encodePreamble,
  Flag,
  type Frame,
  FrameDecoder,
  MAX_MESSAGE,
  split,
} from "../wire/frame.js";
import { Failure, type Hello, HelloBody, Op, Role } from "../wire/messages.js";
import { dispatch } from "./dispatch.js";

/** The far end of a connection, whatever carries it. */
export interface Pipe {
  /** Sends bytes; resolves when more may be sent. */
  send(bytes: Uint8Array): Promise<void>;
  /** Ends the connection after what was sent. */
  close(): void;
}

/** What a session tells its owner. */
export interface SessionEvents {
  /** Something other than a sign of life was received. */
  active(): void;
  /** The agent holds the volume's epoch from now on. */
  opened(session: Session): void;
  /** The connection is over. */
  ended(session: Session, why: StoreError): void;
}

/** Settings of a connection. */
export interface SessionOptions {
  /** A sign of life is sent this often, in milliseconds. */
  heartbeat: number;
  /** Unanswered requests of the agent at once. */
  maxRequests: number;
  /** Bytes of unanswered requests of the agent at once. */
  maxBytes: number;
}

/** What holds unless told otherwise. */
export const SESSION_DEFAULTS: SessionOptions = { heartbeat: 5_000, maxRequests: 64, maxBytes: 16 << 20 };

/** This program, for the other side's log. */
const NAME = "storeshim-worker/0.1.0";
/** An agent that does not answer a file operation within this, in milliseconds, is given up. */
const PATIENCE = 60_000;
/** Signs of life that may be missing in a row. */
const MISSES = 3;
/** The same while the agent has as much under way as it may. */
const MISSES_FULL = 20;

interface Waiting {
  settle(answer: Uint8Array | StoreError): void;
  op: number;
}

/**
 * One connection with an agent: handshake, its requests, ours, signs of life, the end. It does not know what carries
 * the bytes, nor what the requests do.
 */
export class Session {
  /** The epoch that the agent has opened over this connection; 0 before. */
  epoch = 0;
  /** What the agent said of itself; `null` before it did. */
  hello: Hello | null = null;
  private readonly decoder = new FrameDecoder();
  private readonly assembler = new Assembler();
  private readonly waiting = new Map<number, Waiting>();
  private asked = 0;
  private requests = 0;
  private bytes = 0;
  /** Who waits for room for further requests of the agent, and for a turn to ask it. */
  private readonly room: (() => void)[] = [];
  private readonly turns: (() => void)[] = [];
  /** What the agent was asked and has not answered. */
  private readonly asking = { requests: 0, bytes: 0 };
  private sending: Promise<void> = Promise.resolve();
  /** Beats since something was heard. Counted, not timed: an object that was busy for long was itself deaf. */
  private missed = 0;
  private timer: ReturnType<typeof setInterval>;
  private why: StoreError | null = null;
  private tellOver: () => void = () => undefined;
  /** Resolves when the connection is over. */
  readonly over = new Promise<void>((resolve) => {
    this.tellOver = resolve;
  });

  constructor(
    /** The volume. */
    readonly store: VolumeStore,
    private readonly pipe: Pipe,
    private readonly events: SessionEvents,
    private readonly options: SessionOptions = SESSION_DEFAULTS,
  ) {
    this.timer = setInterval(() => this.beat(), options.heartbeat);
  }

  /** Sends the first bytes. */
  greet(): void {
    const { heartbeat, maxRequests, maxBytes } = this.options;
    const hello = { role: Role.Store, maxMessage: MAX_MESSAGE, maxRequests, maxBytes, heartbeat, name: NAME };
    this.write(encodePreamble());
    this.sendMessage({ op: Op.Hello, flags: 0, id: 0, epoch: 0, body: HelloBody.encode(hello) });
  }

  /** Why the connection is over; `null` while it is not. */
  get ended(): StoreError | null {
    return this.why;
  }

  /** Takes bytes of the agent over; ends when there is room for more. Never throws: what is wrong ends the session. */
  async receive(bytes: Uint8Array): Promise<void> {
    await this.takeAll(this.decoder.push(bytes));
  }

  /** Where the next bytes may be put, to be given to {@link filled}; `null` where {@link receive} takes them. */
  lend(): Uint8Array | null {
    return this.decoder.lend();
  }

  /** As {@link receive}, of bytes that were put where {@link lend} said. */
  async filled(bytes: Uint8Array): Promise<void> {
    await this.takeAll(this.decoder.filled(bytes));
  }

  private async takeAll(frames: Iterable<Frame>): Promise<void> {
    this.missed = 0;
    try {
      for (const frame of frames) {
        if (this.why !== null) {
          return;
        }
        if (frame.op !== Op.Ping) {
          this.events.active();
        }
        const message = this.assembler.push(frame);
        if (message !== null) {
          this.take(message);
        }
      }
    } catch (thrown) {
      this.end(asStoreError(thrown));
    }
    while (this.why === null && this.full()) {
      await new Promise<void>((resolve) => this.room.push(resolve));
    }
  }

  /** Whether the agent has as much under way as it may. */
  private full(): boolean {
    return this.requests >= this.options.maxRequests || this.bytes >= this.options.maxBytes;
  }

  private take(message: Frame): void {
    if ((message.flags & Flag.Answer) !== 0) {
      this.answered(message);
      return;
    }
    switch (message.op) {
      case Op.Hello:
        this.introduce(HelloBody.decode(message.body));
        return;
      case Op.Ping:
        return;
      case Op.Goodbye:
        this.finish(Failure.decode(message.body));
        return;
    }
    if (this.hello === null || message.id === 0) {
      throw new StoreError(
        ErrorCode.Protocol,
        `the agent sent request ${message.op} ${this.hello === null ? "before its greeting" : "without a number"}; use ` +
          "matching versions of agent and Worker",
      );
    }
    void this.serve(message);
  }

  private introduce(hello: Hello): void {
    if (this.hello !== null || hello.role !== Role.Agent) {
      throw new StoreError(
        ErrorCode.Protocol,
        `the other side greeted ${this.hello === null ? "in another role than an agent's" : "twice"}; connect an agent`,
      );
    }
    this.hello = hello;
  }

  private async serve(request: Frame): Promise<void> {
    this.requests += 1;
    this.bytes += request.body.length;
    const answer = { op: request.op, id: request.id, epoch: request.epoch };
    try {
      const body = await dispatch(this, request);
      await this.sendMessage({ ...answer, flags: Flag.Answer, body });
      if (request.op === Op.Open) {
        this.events.opened(this);
      }
    } catch (thrown) {
      const error = asStoreError(thrown);
      if (endsConnection(error.code)) {
        this.end(error);
      } else {
        const flags = Flag.Answer | Flag.Error;
        await this.sendMessage({ ...answer, flags, body: Failure.encode(error) });
      }
    } finally {
      this.requests -= 1;
      this.bytes -= request.body.length;
      wakeAll(this.room);
    }
  }

  private answered(message: Frame): void {
    const waiting = this.waiting.get(message.id);
    // An answer that came too late: the one who asked has gone.
    if (waiting === undefined || waiting.op !== message.op) {
      return;
    }
    this.waiting.delete(message.id);
    waiting.settle((message.flags & Flag.Error) === 0 ? message.body : Failure.decode(message.body));
  }

  /** Asks the agent, as soon as it takes another request. */
  async request(op: number, body: Uint8Array): Promise<Uint8Array> {
    await this.turn(body.length);
    this.asked += 1;
    const id = this.asked;
    let timer: ReturnType<typeof setTimeout> | null = null;
    const answer = new Promise<Uint8Array | StoreError>((settle) => {
      this.waiting.set(id, { settle, op });
      timer = setTimeout(() => settle(noAnswer()), PATIENCE);
    });
    try {
      // Not waited for: an agent that reads nothing must not hold us beyond our patience.
      void this.sendMessage({ op, flags: 0, id, epoch: this.epoch, body });
      const result = await answer;
      if (result instanceof StoreError) {
        throw result;
      }
      return result;
    } finally {
      clearTimeout(timer);
      this.waiting.delete(id);
      this.asking.requests -= 1;
      this.asking.bytes -= body.length;
      wakeAll(this.turns);
    }
  }

  /** Waits until the agent has answered enough of what it was asked, by the limits of its greeting. */
  private async turn(size: number): Promise<void> {
    const { maxRequests, maxBytes } = this.hello ?? this.options;
    while (
      this.why === null &&
      this.asking.requests > 0 &&
      (this.asking.requests >= maxRequests || this.asking.bytes + size > maxBytes)
    ) {
      await new Promise<void>((resolve) => this.turns.push(resolve));
    }
    if (this.why !== null) {
      throw this.why;
    }
    // At once, before anybody else who was woken looks.
    this.asking.requests += 1;
    this.asking.bytes += size;
  }

  /** Sends the frames of a message one after another; those of other messages may come in between. */
  private async sendMessage(message: Frame): Promise<void> {
    for (const frame of split(message)) {
      await this.write(encodeFrame(frame));
    }
  }

  private write(bytes: Uint8Array): Promise<void> {
    this.sending = this.sending.then(async () => {
      if (this.why === null) {
        await this.pipe.send(bytes);
      }
    });
    this.sending = this.sending.catch((thrown) => {
      this.finish(new StoreError(ErrorCode.Unavailable, `the connection with the agent broke: ${String(thrown)}`));
    });
    return this.sending;
  }

  private beat(): void {
    const interval = this.options.heartbeat;
    // While its requests wait because of us, or it does not read our answers, nothing of it is read: that may take longer.
    const misses = this.full() ? MISSES_FULL : MISSES;
    const patience = misses * Math.max(interval, this.hello?.heartbeat ?? 0);
    this.missed += 1;
    if (this.missed * interval > patience) {
      this.end(
        new StoreError(
          ErrorCode.Silent,
          `nothing was heard from the agent for ${patience / 1000} s, so the connection is given up; see whether it runs`,
        ),
      );
      return;
    }
    void this.sendMessage({ op: Op.Ping, flags: 0, id: 0, epoch: 0, body: new Uint8Array(0) });
  }

  /** Ends the connection and tells the agent why. */
  end(why: StoreError): void {
    if (this.why === null) {
      const goodbye = { op: Op.Goodbye, flags: 0, id: 0, epoch: 0, body: Failure.encode(why) };
      // Past the queue: what waits there may wait for ever.
      void this.pipe.send(encodeFrame(goodbye)).catch(() => undefined);
      this.finish(why);
    }
  }

  /** The stream has ended. */
  eof(): void {
    const whole = this.decoder.idle || this.decoder.version === 0;
    this.finish(
      new StoreError(
        ErrorCode.Unavailable,
        whole ? "the agent has closed the connection" : "the connection with the agent broke within a frame",
      ),
    );
  }

  private finish(why: StoreError): void {
    if (this.why !== null) {
      return;
    }
    this.why = why;
    this.tellOver();
    clearInterval(this.timer);
    for (const waiting of this.waiting.values()) {
      waiting.settle(new StoreError(ErrorCode.Unavailable, `the agent went away: ${why.message}`));
    }
    this.waiting.clear();
    wakeAll(this.room);
    wakeAll(this.turns);
    this.pipe.close();
    this.events.ended(this, why);
  }
}

function wakeAll(waiting: (() => void)[]): void {
  for (const resume of waiting.splice(0)) {
    resume();
  }
}

function noAnswer(): StoreError {
  return new StoreError(
    ErrorCode.Unavailable,
    `the agent did not answer for ${PATIENCE / 1000} s; see its log, then try again`,
  );
}
