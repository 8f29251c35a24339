/** Starts the real runtime with the tests' Worker; kills it as a power cut would. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import workerd from "workerd";

/** The token that the tests' Worker wants. */
export const TOKEN = "the token of the tests";

/** A port that nobody listens on. Below those that the kernel gives to connections, which could take it before it is listened on. */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 100; tries++) {
    const port = 10_000 + Math.floor(Math.random() * 22_000);
    const free = await new Promise<boolean>((resolve) => {
      const server = createServer();
      server.on("error", () => resolve(false));
      server.listen(port, () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
  throw new Error("no port is free; end what listens on them");
}

/** Resolves when `condition` holds; fails after `patience` milliseconds. */
export async function until(what: string, condition: () => boolean | Promise<boolean>, patience = 10_000) {
  const deadline = Date.now() + patience;
  while (!(await condition())) {
    if (Date.now() > deadline) {
      throw new Error(`${what}: not within ${patience} ms`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The tests' Worker as one module. */
export async function bundle(): Promise<string> {
  const result = await build({
    entryPoints: [new URL("../worker/index.ts", import.meta.url).pathname],
    bundle: true,
    write: false,
    format: "esm",
    target: "es2023",
    conditions: ["workerd", "worker", "browser", "import"],
    external: ["cloudflare:*"],
  });
  return result.outputFiles[0]?.text ?? "";
}

function configuration(dockerSocket: string | null): string {
  const container = dockerSocket === null ? "" : ', container = (imageName = "agent:dev")';
  const engine =
    dockerSocket === null
      ? ""
      : `containerEngine = (localDocker = (socketPath = "unix:${dockerSocket}", containerEgressInterceptorImage = "egress:dev")),`;
  return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .worker),
    (name = "network", network = (allow = ["public", "private"])),
    (name = "disk", disk = (writable = true, path = "set on the command line")),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
const worker :Workerd.Worker = (
  modules = [(name = "worker", esModule = embed "worker.js")],
  compatibilityDate = "2026-04-01",
  globalOutbound = "network",
  durableObjectStorage = (localDisk = "disk"),
  ${engine}
  durableObjectNamespaces = [
    (className = "DialedVolume", uniqueKey = "dialed", enableSql = true),
    (className = "StorageObject", uniqueKey = "plain", enableSql = true),
    (className = "TestContainer", uniqueKey = "container", enableSql = true${container}),
    (className = "SleepyContainer", uniqueKey = "sleepy", enableSql = true${container}),
    (className = "MixedContainer", uniqueKey = "mixed", enableSql = true${container}),
  ],
  bindings = [
    (name = "DIALED", durableObjectNamespace = "DialedVolume"),
    (name = "PLAIN", durableObjectNamespace = "StorageObject"),
    (name = "CONTAINER", durableObjectNamespace = "TestContainer"),
    (name = "SLEEPY", durableObjectNamespace = "SleepyContainer"),
    (name = "MIXED", durableObjectNamespace = "MixedContainer"),
    (name = "STORESHIM_TOKEN", text = "${TOKEN}"),
  ],
);
`;
}

/** A workerd with its disk, which outlives its process. */
export class Runtime {
  private process: ChildProcess | null = null;
  private port = 0;

  private constructor(private readonly directory: string) {}

  /** Writes the configuration and starts. */
  static async start(dockerSocket: string | null = null): Promise<Runtime> {
    const directory = mkdtempSync(join(tmpdir(), "storeshim-worker-"));
    writeFileSync(join(directory, "worker.js"), await bundle());
    writeFileSync(join(directory, "config.capnp"), configuration(dockerSocket));
    const runtime = new Runtime(directory);
    await runtime.run();
    return runtime;
  }

  /** Starts the process. */
  async run(): Promise<void> {
    this.port = await freePort();
    const { mkdirSync } = await import("node:fs");
    const disk = join(this.directory, "disk");
    mkdirSync(disk, { recursive: true });
    const args = ["serve", "config.capnp", "--experimental", "--socket-addr", `http=127.0.0.1:${this.port}`];
    args.push("--directory-path", `disk=${disk}`);
    // The binary itself, not the script that stands before it: a kill has to reach it.
    const binary = typeof workerd === "string" ? workerd : workerd.default;
    const child = spawn(binary, args, { cwd: this.directory, stdio: ["ignore", "inherit", "pipe"] });
    const loud = process.env["STORESHIM_TEST_LOG"] !== undefined;
    child.stderr?.on("data", (text) => loud && process.stderr.write(text));
    this.process = child;
    await until("workerd answers", async () => {
      if (child.exitCode !== null) {
        throw new Error(`workerd ended with ${child.exitCode}; run with STORESHIM_TEST_LOG=1 to see why`);
      }
      return await fetch(this.url("/")).then(
        () => true,
        () => false,
      );
    });
  }

  /** An address in the Worker. */
  url(path: string, scheme = "http"): string {
    return `${scheme}://127.0.0.1:${this.port}${path}`;
  }

  /** Asks the Worker, with its token. */
  async fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    if (!headers.has("authorization")) {
      headers.set("authorization", `Bearer ${TOKEN}`);
    }
    return await fetch(this.url(path), { ...init, headers });
  }

  /** Kills the process as a power cut would. */
  async kill(): Promise<void> {
    const child = this.process;
    if (child !== null && child.exitCode === null && child.signalCode === null) {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGKILL");
      await ended;
    }
    this.process = null;
  }

  /** Stops the process for a while: a Durable Object that does not answer. */
  signal(signal: "SIGSTOP" | "SIGCONT"): void {
    this.process?.kill(signal);
  }

  /** Kills the process and deletes its disk. */
  async end(): Promise<void> {
    await this.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }
}
