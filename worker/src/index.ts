/**
 * storeshim on Cloudflare: persistent storage for containers, kept in their Durable Objects.
 *
 * `StatefulContainer` is what most need; `routeContainer` sends requests to its instances.
 */
export { type ContainerClass, type Stateful, StatefulContainer, withStorage } from "./container.js";
export type { WriteOptions } from "./files/change.js";
export {
  type DirectoryEntry,
  type FileData,
  type FileRange,
  type FileStat,
  type FileType,
  VolumeStorage,
} from "./files/storage.js";
export { type VolumeEnv, VolumeHost, type VolumeOptions, type VolumeSurroundings } from "./host.js";
export { routeContainer } from "./routes.js";
export { Dialer, type DialOptions } from "./session/dialer.js";
export type { Ends, Protocol } from "./session/pipes.js";
export { StorageObject } from "./storage-object.js";
