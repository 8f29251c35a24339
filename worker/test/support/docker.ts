/**
 * A stand-in for the Docker engine that workerd starts containers with: a "container" is a plain process, with a directory
 * of its own that is lost when it ends. Ports are mapped to free ones, told by the environment (PORT_8000 and so on). The
 * sidecar that workerd wants beside each container is a CONNECT proxy in this process.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort } from "./workerd.js";

/** The image that the tests' configuration names. */
const IMAGE = "agent:dev";

interface Made {
  name: string;
  request: { Image: string; Env?: string[] };
  running: boolean;
  code: number;
  process?: ChildProcess;
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
  private readonly ports = new Map<number, number>();
  private readonly server: Server;
  private readonly directory = mkdtempSync(join(tmpdir(), "storeshim-docker-"));

  private constructor(private readonly command: string[]) {
    this.socket = join(this.directory, "docker.sock");
    this.server = createServer((request, response) => {
      void this.answer(request, response).catch((thrown) => response.writeHead(500).end(String(thrown)));
    });
  }

  /** Starts the engine; `command` is what every container runs. */
  static async start(command: string[]): Promise<Docker> {
    const docker = new Docker(command);
    for (const port of [8000, 8080]) {
      docker.ports.set(port, await freePort());
    }
    await new Promise<void>((resolve) => docker.server.listen(docker.socket, resolve));
    return docker;
  }

  /** Whether an app runs. */
  get running(): boolean {
    return [...this.made.values()].some((made) => made.process !== undefined && made.running);
  }

  /** Kills the app as a lost machine would, with its disk. */
  async kill(): Promise<void> {
    for (const made of this.made.values()) {
      const child = made.process;
      if (child !== undefined && made.running) {
        const ended = new Promise((resolve) => child.once("exit", resolve));
        child.kill("SIGKILL");
        await ended;
      }
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
        made.process?.kill((/^\d+$/.test(signal) ? Number(signal) : signal) as NodeJS.Signals);
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
        made.process?.kill("SIGKILL");
        made.sidecar?.close();
        this.made.delete(made.name);
        response.writeHead(204).end();
        return;
      default:
        response.writeHead(200).end();
    }
  }

  private startApp(made: Made): void {
    this.starts += 1;
    const disk = mkdtempSync(join(this.directory, "disk-"));
    const told = Object.fromEntries(
      (made.request.Env ?? []).map((entry) => [
        entry.slice(0, entry.indexOf("=")),
        entry.slice(entry.indexOf("=") + 1),
      ]),
    );
    const ports = Object.fromEntries([...this.ports].map(([port, mapped]) => [`PORT_${port}`, String(mapped)]));
    const [program = "", ...args] = this.command;
    const env = { ...process.env, ...told, ...ports, DISK: disk };
    const child = spawn(program, args, { env, stdio: ["ignore", "inherit", "inherit"] });
    made.process = child;
    made.running = true;
    child.on("exit", (code, signal) => {
      made.running = false;
      made.code = code ?? (signal === "SIGKILL" ? 137 : 143);
      rmSync(disk, { recursive: true, force: true });
      for (const resolve of made.waiting.splice(0)) {
        resolve();
      }
    });
  }

  private async startSidecar(made: Made): Promise<void> {
    const server = createServer((_, response) => response.writeHead(200).end());
    server.on("connect", (request: IncomingMessage, socket: Socket, head: Buffer) => {
      const port = Number(request.url?.split(":").at(-1));
      const far = connect(this.ports.get(port) ?? port, "127.0.0.1", () => {
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
