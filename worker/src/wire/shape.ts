import { Reader, Writer } from "./bytes.js";

/** Length of the random numbers that make retries recognisable, and of a pack's name. */
export const NONCE = 16;

/** A kind of body: how it is written and read. */
export interface Shape<T> {
  encode(value: T): Uint8Array;
  decode(body: Uint8Array): T;
}

/** A kind of body, from how its fields are written and read. */
export function shape<T>(what: string, write: (to: Writer, value: T) => void, read: (from: Reader) => T): Shape<T> {
  return {
    encode(value) {
      const to = new Writer();
      write(to, value);
      return to.finish();
    },
    decode(body) {
      const from = new Reader(body, what);
      const value = read(from);
      from.end();
      return value;
    },
  };
}

/** As many items as a number in front of them says. */
export function repeat<T>(from: Reader, read: () => T): T[] {
  const count = from.u32();
  const items: T[] = [];
  // A count that cannot be true fails at the first item that is missing: memory is claimed only for what is there.
  while (items.length < count) {
    items.push(read());
  }
  return items;
}
