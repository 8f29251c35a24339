import type { Extent } from "./records.js";

/** What is left of extents outside of `start` to `end`. */
export function cutOut(extents: readonly Extent[], start: number, end: number): Extent[] {
  const kept: Extent[] = [];
  for (const extent of extents) {
    const extentEnd = extent.start + extent.len;
    if (extentEnd <= start || extent.start >= end) {
      kept.push(extent);
      continue;
    }
    if (extent.start < start) {
      kept.push({ ...extent, len: start - extent.start });
    }
    if (extentEnd > end) {
      const skip = end - extent.start;
      kept.push({ ...extent, start: end, len: extentEnd - end, chunkOffset: extent.chunkOffset + skip });
    }
  }
  return kept;
}
