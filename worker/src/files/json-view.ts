import { fileError } from "../wire/errors.js";
import type { JsonFiles, JsonStat } from "../wire/json.js";
import type { VolumeStorage } from "./storage.js";

/** Most bytes of a file that a JSON answer can hold. */
const LARGEST_JSON = 8 << 20;

/** Files in the JSON protocol's terms; paths may lead from the volume's root or from where programs see it. */
export class JsonView implements JsonFiles {
  constructor(
    private readonly storage: VolumeStorage,
    private readonly mountPath: string,
  ) {}

  private inside(path: string): string {
    const under = path === this.mountPath || path.startsWith(`${this.mountPath}/`);
    return under ? path.slice(this.mountPath.length) : path;
  }

  async read(path: string, offset: number, size: number | undefined): Promise<Uint8Array> {
    const length = size ?? Math.max(0, (await this.storage.stat(this.inside(path))).size - offset);
    if (length > LARGEST_JSON) {
      throw fileError(
        "EFBIG",
        `${length} bytes of '${path}' do not fit an answer; read ${LARGEST_JSON} at most at once`,
      );
    }
    return await this.storage.readFile(this.inside(path), { offset, length });
  }

  async write(path: string, bytes: Uint8Array, offset: number | undefined): Promise<void> {
    await this.storage.writeFile(this.inside(path), bytes, offset === undefined ? {} : { offset });
  }

  async stat(path: string): Promise<JsonStat> {
    const { size, mtime, mode, type } = await this.storage.stat(this.inside(path));
    return { size, mtime: mtime.getTime(), mode, isFile: type === "file", isDirectory: type === "directory" };
  }

  async readdir(path: string): Promise<string[]> {
    return (await this.storage.readdir(this.inside(path))).map((entry) => entry.name);
  }

  async unlink(path: string): Promise<void> {
    await this.storage.unlink(this.inside(path));
  }
}
