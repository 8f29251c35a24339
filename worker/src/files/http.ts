import { asStoreError, Errno, ErrorCode, StoreError } from "../wire/errors.js";
import { parseRange } from "./range.js";
import type { DirectoryEntry, FileStat, VolumeStorage } from "./storage.js";

/** Statuses of file errors; others are 400. */
const STATUSES = new Map<number, number>([
  [Errno.ENOENT, 404],
  [Errno.EPERM, 403],
  [Errno.EEXIST, 409],
  [Errno.EISDIR, 409],
  [Errno.ENOTDIR, 409],
  [Errno.ENOTEMPTY, 409],
  [Errno.EFBIG, 413],
  [Errno.ENOSPC, 507],
  [Errno.EDQUOT, 507],
  [Errno.EIO, 500],
]);

function statusOf(error: StoreError): number {
  switch (error.code) {
    case ErrorCode.File:
      return STATUSES.get(error.errno) ?? 400;
    case ErrorCode.Refused:
    case ErrorCode.Protocol:
      return 400;
    case ErrorCode.Missing:
    case ErrorCode.Damaged:
      return 500;
    case ErrorCode.Fenced:
      return 409;
    case ErrorCode.TooLarge:
      return 413;
    default:
      return 503;
  }
}

/** An error as an answer: JSON with the sentence and the kind. */
export function errorResponse(thrown: unknown): Response {
  const error = asStoreError(thrown);
  const status = statusOf(error);
  const headers = new Headers(status === 503 ? { "retry-after": "1" } : {});
  return Response.json({ error: error.message, code: error.kind }, { status, headers });
}

/** Content types by the end of a name; what is not here is bytes. */
const CONTENT_TYPES = new Map([
  ["avif", "image/avif"],
  ["css", "text/css; charset=utf-8"],
  ["csv", "text/csv; charset=utf-8"],
  ["gif", "image/gif"],
  ["htm", "text/html; charset=utf-8"],
  ["html", "text/html; charset=utf-8"],
  ["ico", "image/x-icon"],
  ["jpeg", "image/jpeg"],
  ["jpg", "image/jpeg"],
  ["js", "text/javascript; charset=utf-8"],
  ["json", "application/json"],
  ["log", "text/plain; charset=utf-8"],
  ["md", "text/markdown; charset=utf-8"],
  ["mjs", "text/javascript; charset=utf-8"],
  ["mp3", "audio/mpeg"],
  ["mp4", "video/mp4"],
  ["pdf", "application/pdf"],
  ["png", "image/png"],
  ["svg", "image/svg+xml"],
  ["txt", "text/plain; charset=utf-8"],
  ["wasm", "application/wasm"],
  ["webm", "video/webm"],
  ["webp", "image/webp"],
  ["xml", "application/xml"],
  ["zip", "application/zip"],
]);

function contentType(path: string): string {
  const ending = path.slice(path.lastIndexOf(".") + 1).toLowerCase();
  return CONTENT_TYPES.get(ending) ?? "application/octet-stream";
}

function fileHeaders(path: string, stat: FileStat): Headers {
  const headers = new Headers({
    "accept-ranges": "bytes",
    "cache-control": "no-cache",
    "content-type": contentType(path),
    "last-modified": stat.mtime.toUTCString(),
    // Users' files must not act with the rights of the site that they are served from.
    "content-security-policy": "sandbox",
    "x-content-type-options": "nosniff",
  });
  if (stat.etag !== null) {
    headers.set("etag", stat.etag);
  }
  return headers;
}

function matches(header: string | null, etag: string | null): boolean {
  const tags = (header ?? "").split(",").map((tag) => tag.trim().replace(/^W\//, ""));
  return header !== null && (tags.includes("*") || (etag !== null && tags.includes(etag)));
}

/** Answers a request for a file or a directory of the volume. `path` is decoded. */
export async function serveFiles(request: Request, path: string, storage: VolumeStorage): Promise<Response> {
  const url = new URL(request.url);
  try {
    switch (request.method) {
      case "GET":
      case "HEAD":
        return url.searchParams.has("list")
          ? await serveList(url, path, storage)
          : await serveFile(request, path, storage);
      case "PUT":
        return await serveWrite(request, path, storage);
      case "DELETE":
        await storage.unlink(path, { recursive: url.searchParams.has("recursive") });
        return new Response(null, { status: 204 });
      default:
        return Response.json(
          { error: `${request.method} is not possible on files; use GET, HEAD, PUT or DELETE`, code: "Refused" },
          { status: 405, headers: { allow: "GET, HEAD, PUT, DELETE" } },
        );
    }
  } catch (thrown) {
    return errorResponse(thrown);
  }
}

async function serveFile(request: Request, path: string, storage: VolumeStorage): Promise<Response> {
  const stat = await storage.stat(path);
  const headers = fileHeaders(path, stat);
  if (matches(request.headers.get("if-none-match"), stat.etag)) {
    return new Response(null, { status: 304, headers });
  }
  // A range of an older version would be glued to what the client has of it.
  const condition = request.headers.get("if-range");
  const wanted = condition === null || condition === stat.etag ? request.headers.get("range") : null;
  const range = parseRange(wanted, stat.size);
  if (range === "none") {
    headers.set("content-range", `bytes */${stat.size}`);
    return new Response(null, { status: 416, headers });
  }
  const length = range?.length ?? stat.size;
  headers.set("content-length", String(length));
  if (range !== null) {
    headers.set("content-range", `bytes ${range.offset}-${range.offset + length - 1}/${stat.size}`);
  }
  const status = range === null ? 200 : 206;
  if (request.method === "HEAD") {
    return new Response(null, { status, headers });
  }
  const stream = await storage.stream(path, range ?? {});
  // Tells the runtime the length, which it then sends instead of chunks.
  return new Response(stream.pipeThrough(new FixedLengthStream(length)), { status, headers });
}

async function serveList(url: URL, path: string, storage: VolumeStorage): Promise<Response> {
  const after = url.searchParams.get("after") ?? "";
  const limit = Number(url.searchParams.get("limit") ?? 1000);
  if (!Number.isInteger(limit) || limit < 1) {
    throw new StoreError(ErrorCode.Refused, "the limit of a list is not a number from 1 to 1000; correct it");
  }
  const { entries, more } = await storage.list(path, { after, limit });
  const shown = entries.map((entry: DirectoryEntry) => {
    const { name, type, size, mode, mtime } = entry;
    return { name, type, size, mode, mtime: mtime.toISOString() };
  });
  return Response.json({ entries: shown, next: more ? (entries.at(-1)?.name ?? null) : null });
}

async function serveWrite(request: Request, path: string, storage: VolumeStorage): Promise<Response> {
  const stat = await storage.writeFile(path, request.body ?? new Uint8Array(0));
  const headers = new Headers(stat.etag === null ? {} : { etag: stat.etag });
  return Response.json({ size: stat.size }, { status: 201, headers });
}
