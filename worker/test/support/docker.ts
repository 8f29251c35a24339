/**
 * A stand-in for the Docker engine that workerd starts containers with: a "container" is a plain process group, with a
 * directory of its own (DISK) that is lost when it ends. Ports are mapped to free ones, told by the environment (PORT_8000
 * and so on). The sidecar that workerd wants beside each container is a CONNECT proxy in this process.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort } from "./workerd.js";

/** The image that the tests' configuration names. */
const IMAGE = "agent:dev";

interface Made {
  name: string;
  request: { Image: string; Env?: string[]; HostConfig?: { NetworkMode?: string } };
  running: boolean;
  code: number;
  process?: ChildProcess;
  ports?: Map<number, number>;
  disk?: string;
  sidecar?: Server;
  waiting: (() => void)[];
}

async function body(request: IncomingMessage): Promise<string> {
  let text = "";
  for await (const piece of request) {
    text += String(piece);
  }
  return text;
}

/** See the module. */
export class Docker {
  /** Path of the engine's socket. */
  readonly socket: string;
  /** Starts of the app so far. */
  starts = 0;
  private readonly made = new Map<string, Made>();
  /** Processes whose containers the engine does not know any more. */
  private readonly lingering = new Set<ChildProcess>();
  private readonly server: Server;
  private readonly directory = mkdtempSync(join(tmpdir(), "storeshim-docker-"));

  private constructor(
    private readonly command: string[],
    socket?: string,
  ) {
    this.socket = socket ?? join(this.directory, "docker.sock");
    this.server = createServer((request, response) => {
      void this.answer(request, response).catch((thrown) => response.writeHead(500).end(String(thrown)));
    });
  }

  /** Starts the engine; `command` is what every container runs. */
  static async start(command: string[], socket?: string): Promise<Docker> {
    const docker = new Docker(command, socket);
    await new Promise<void>((resolve) => docker.server.listen(docker.socket, resolve));
    return docker;
  }

  private get apps(): Made[] {
    return [...this.made.values()].filter((made) => made.process !== undefined && made.running);
  }

  /** Whether an app runs. */
  get running(): boolean {
    return this.apps.length > 0;
  }

  /** Kills the apps as lost machines would, with their disks, and those that linger; says how many. */
  async kill(): Promise<number> {
    const children = [...this.apps.map((made) => made.process as ChildProcess), ...this.lingering];
    this.lingering.clear();
    for (const child of children) {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      if (child.exitCode === null && child.signalCode === null) {
        signalGroup(child, "SIGKILL");
        await ended;
      }
    }
    return children.length;
  }

  /** Says of all apps that they have ended, while their processes run on: machines that linger. */
  private forget(): number {
    const { apps } = this;
    for (const made of apps) {
      this.lingering.add(made.process as ChildProcess);
      this.ended(made, 137);
    }
    return apps.length;
  }

  private ended(made: Made, code: number): void {
    made.running = false;
    made.code = code;
    for (const resolve of made.waiting.splice(0)) {
      resolve();
    }
  }

  /** What tests ask of the stand-in itself. */
  private async control(what: string): Promise<string> {
    switch (what) {
      case "kill":
        return String(await this.kill());
      case "forget":
        return String(this.forget());
      case "starts":
        return String(this.starts);
      case "disks":
        return this.apps.map((made) => `${made.disk}\n`).join("");
      default:
        throw new Error(`the stand-in cannot ${what}`);
    }
  }

  /** Ends everything. */
  async end(): Promise<void> {
    await this.kill();
    for (const made of this.made.values()) {
      made.sidecar?.close();
      made.sidecar?.closeAllConnections();
    }
    this.server.close();
    this.server.closeAllConnections();
    rmSync(this.directory, { recursive: true, force: true });
  }

  private async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const text = await body(request);
    const url = new URL(request.url ?? "/", "http://docker");
    const [kind, name = "", action = ""] = url.pathname.split("/").filter((part) => part !== "");
    const json = (status: number, value: unknown) =>
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    if (kind === "standin") {
      response.writeHead(200).end(await this.control(name));
      return;
    }
    if (kind === "networks") {
      json(200, { IPAM: { Config: [{ Gateway: "127.0.0.1", Subnet: "127.0.0.0/8" }] } });
      return;
    }
    if (kind === "volumes") {
      json(200, { Volumes: [] });
      return;
    }
    if (name === "create") {
      const named = url.searchParams.get("name") ?? "";
      this.made.set(named, { name: named, request: JSON.parse(text), running: false, code: 0, waiting: [] });
      json(201, { Id: named });
      return;
    }
    const made = this.made.get(decodeURIComponent(name));
    if (made === undefined) {
      json(404, { message: "no such container" });
      return;
    }
    await this.act(made, request.method === "DELETE" ? "delete" : action, url, response, json);
  }

  private async act(
    made: Made,
    action: string,
    url: URL,
    response: ServerResponse,
    json: (status: number, value: unknown) => void,
  ): Promise<void> {
    switch (action) {
      case "json": {
        const port = (made.sidecar?.address() as AddressInfo | undefined)?.port;
        const ports = port === undefined ? {} : { "39001/tcp": [{ HostIp: "127.0.0.1", HostPort: String(port) }] };
        const state = { Status: made.running ? "running" : "exited", Running: made.running, ExitCode: made.code };
        const { Image } = made.request;
        json(200, { Id: made.name, State: state, Config: { Image }, NetworkSettings: { Ports: ports } });
        return;
      }
      case "start":
        await (made.request.Image === IMAGE ? this.startApp(made) : this.startSidecar(made));
        response.writeHead(204).end();
        return;
      case "kill": {
        const signal = url.searchParams.get("signal") ?? "SIGKILL";
        signalGroup(made.running ? made.process : undefined, /^\d+$/.test(signal) ? Number(signal) : signal);
        response.writeHead(204).end();
        return;
      }
      case "wait":
        if (made.running) {
          await new Promise<void>((resolve) => made.waiting.push(resolve));
        }
        json(200, { StatusCode: made.code });
        return;
      case "delete":
        signalGroup(made.running ? made.process : undefined, "SIGKILL");
        made.sidecar?.close();
        this.made.delete(made.name);
        response.writeHead(204).end();
        return;
      default:
        response.writeHead(200).end();
    }
  }

  private async startApp(made: Made): Promise<void> {
    this.starts += 1;
    made.ports = new Map([
      [8000, await freePort()],
      [8080, await freePort()],
    ]);
    const disk = mkdtempSync(join(this.directory, "disk-"));
    const told = Object.fromEntries(
      (made.request.Env ?? []).map((entry) => [
        entry.slice(0, entry.indexOf("=")),
        entry.slice(entry.indexOf("=") + 1),
      ]),
    );
    const ports = Object.fromEntries([...made.ports].map(([port, mapped]) => [`PORT_${port}`, String(mapped)]));
    const [program = "", ...args] = this.command;
    const env = { ...process.env, ...told, ...ports, DISK: disk };
    // Its standard output is not ours: that says when we are ready.
    const child = spawn(program, args, { env, stdio: ["ignore", 2, 2], detached: true });
    made.process = child;
    made.disk = disk;
    made.running = true;
    child.on("exit", (code, signal) => {
      // What the first process has left behind goes with it, as in a container, and before its disk.
      killAllOn(disk);
      rmSync(disk, { recursive: true, force: true });
      if (made.running) {
        this.ended(made, code ?? (signal === "SIGKILL" ? 137 : 143));
      }
    });
  }

  /** Where a port of the app beside a sidecar really is. */
  private portBeside(sidecar: Made, port: number): number {
    const beside = (app: Made) =>
      app.name.startsWith(sidecar.name) ||
      sidecar.name.startsWith(app.name) ||
      (app.request.HostConfig?.NetworkMode ?? "").includes(sidecar.name) ||
      (sidecar.request.HostConfig?.NetworkMode ?? "").includes(app.name);
    return this.apps.find(beside)?.ports?.get(port) ?? 9;
  }

  private async startSidecar(made: Made): Promise<void> {
    const server = createServer((_, response) => response.writeHead(200).end());
    server.on("connect", (request: IncomingMessage, socket: Socket, head: Buffer) => {
      const port = Number(request.url?.split(":").at(-1));
      const far = connect(this.portBeside(made, port), "127.0.0.1", () => {
        far.setNoDelay(true);
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        far.write(head);
        far.pipe(socket);
        socket.pipe(far);
      });
      let refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
      far.on("connect", () => {
        refusal = "";
      });
      far.on("error", () => socket.end(refusal));
      socket.on("error", () => far.destroy());
      socket.on("close", () => far.destroy());
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    made.sidecar = server;
    made.running = true;
  }
}

/** Kills every process that was started with this disk, whatever its group: the last of them while it is looked for. */
function killAllOn(disk: string): void {
  for (let found = true; found; ) {
    found = false;
    for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
      try {
        const state = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ").at(-1)?.[0];
        if (state !== "Z" && readFileSync(`/proc/${pid}/environ`, "latin1").split("\0").includes(`DISK=${disk}`)) {
          process.kill(Number(pid), "SIGKILL");
          found = true;
        }
      } catch {
        // It has ended, or is somebody else's.
      }
    }
  }
}

function signalGroup(child: ChildProcess | undefined, signal: string | number): void {
  try {
    if (child?.pid !== undefined) {
      process.kill(-child.pid, signal as NodeJS.Signals);
    }
  } catch {
    // It has ended.
  }
}
