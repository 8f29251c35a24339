/** Why something could not be done; the numbers go over the wire, the names are those of the agent's MetaError and BlobError. */
export const ErrorCode = {
  /** Another opening has taken the volume's epoch; final for this one. */
  Fenced: 1,
  /** Not now; the same call may succeed later. */
  Unavailable: 2,
  /** What is stored is damaged, foreign or of an unknown version; final. */
  Damaged: 3,
  /** It can never be done; final. */
  Refused: 4,
  /** The pack is not there, or is shorter than asked: damage. */
  Missing: 5,
  /** A file operation failed as a system call does: the errno says how. */
  File: 6,
  /** Bytes that are no frame, or a frame where it may not be; the connection ends. */
  Protocol: 16,
  /** No version that both sides speak; the connection ends. */
  Version: 17,
  /** A frame, a message or what is in flight is larger than agreed; the connection ends. */
  TooLarge: 18,
  /** Nothing was heard from the other side for too long; the connection ends. */
  Silent: 19,
} as const;

/** One of {@link ErrorCode}. */
export type ErrorCode = (typeof ErrorCode)[keyof typeof ErrorCode];

const NAMES = new Map<number, keyof typeof ErrorCode>(
  Object.entries(ErrorCode).map(([name, code]) => [code, name as keyof typeof ErrorCode]),
);

/** The errors of file operations, by the numbers that they have on Linux. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EIO: 5,
  EEXIST: 17,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EFBIG: 27,
  ENOSPC: 28,
  ENAMETOOLONG: 36,
  ENOTEMPTY: 39,
  ELOOP: 40,
  EDQUOT: 122,
} as const;

/** A name of {@link Errno}. */
export type ErrnoName = keyof typeof Errno;

/** An error that can be sent to the other side: one sentence that says what, where and what to do. */
export class StoreError extends Error {
  override readonly name: string = "StoreError";

  constructor(
    /** What kind of failure. */
    readonly code: ErrorCode,
    /** The sentence. */
    message: string,
    /** Number of the system's error, for {@link ErrorCode.File}; else 0. */
    readonly errno: number = 0,
  ) {
    super(message);
  }

  /** The code's name, such as "Fenced"; for a file error, the errno's, such as "ENOENT". */
  get kind(): string {
    if (this.code === ErrorCode.File) {
      return Object.entries(Errno).find(([, number]) => number === this.errno)?.[0] ?? `errno ${this.errno}`;
    }
    return NAMES.get(this.code) ?? `code ${this.code}`;
  }
}

/** An error of a file operation; the sentence begins with the errno's name, as Node's do. */
export function fileError(errno: ErrnoName, message: string): StoreError {
  return new StoreError(ErrorCode.File, `${errno}: ${message}`, Errno[errno]);
}

/** Whatever was thrown, as an error that can be sent. */
export function asStoreError(thrown: unknown): StoreError {
  if (thrown instanceof StoreError) {
    return thrown;
  }
  const said = thrown instanceof Error ? thrown.message : String(thrown);
  return new StoreError(ErrorCode.Unavailable, `the Durable Object could not do this for now: ${said}`);
}

/** Whether a code that came over the wire ends the connection. */
export function endsConnection(code: ErrorCode): boolean {
  return code >= ErrorCode.Protocol;
}

/** A code that came over the wire; an unknown one counts as a protocol error. */
export function codeOf(number: number): ErrorCode {
  return NAMES.has(number) ? (number as ErrorCode) : ErrorCode.Protocol;
}
