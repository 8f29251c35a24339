import { INTERNAL } from "./host.js";

/** What leads an id in the path of a request. */
const ROUTE = /^\/container\/([^/]+)(\/.*)?$/;
/** Longest name of an instance, in characters. */
const LONGEST_ID = 256;

/**
 * Sends `/container/:id/…` to the instance of that id, and gives its answer; `null` for every other path. The instance's
 * app sees the path behind the id. `/container/:id/files/…` are the files of its volume.
 */
export async function routeContainer<T extends Rpc.DurableObjectBranded | undefined>(
  request: Request,
  namespace: DurableObjectNamespace<T>,
): Promise<Response | null> {
  const url = new URL(request.url);
  const found = ROUTE.exec(url.pathname);
  if (found === null) {
    return null;
  }
  const [, escaped = "", rest = "/"] = found;
  let id: string;
  try {
    id = decodeURIComponent(escaped);
  } catch {
    id = "";
  }
  if (id === "" || id.length > LONGEST_ID) {
    const error = `a container's id has 1 to ${LONGEST_ID} characters, escaped as UTF-8; correct the path`;
    return Response.json({ error, code: "Refused" }, { status: 400 });
  }
  const isFiles = rest === "/files" || rest.startsWith("/files/");
  url.pathname = isFiles ? `${INTERNAL}${rest.slice(1)}` : rest;
  const stub = namespace.get(namespace.idFromName(id));
  return await stub.fetch(new Request(url, request));
}
