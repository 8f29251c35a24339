/** A range that a request asks for: first byte and how many; `null` for the whole, "none" for one that cannot be met. */
export function parseRange(header: string | null, size: number): { offset: number; length: number } | null | "none" {
  const found = /^bytes=(\d*)-(\d*)$/.exec(header ?? "");
  if (found === null || (found[1] === "" && found[2] === "")) {
    // Several ranges, or another unit: the whole may always be sent.
    return null;
  }
  if (found[1] === "") {
    const length = Math.min(Number(found[2]), size);
    return length === 0 ? "none" : { offset: size - length, length };
  }
  const offset = Number(found[1]);
  const last = found[2] === "" ? size - 1 : Math.min(Number(found[2]), size - 1);
  if (offset >= size) {
    return "none";
  }
  // A range whose end lies before its begin is no range.
  return last < offset ? null : { offset, length: last - offset + 1 };
}
