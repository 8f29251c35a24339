/** The stand-in for a Docker engine as a program: `docker-main.ts SOCKET COMMAND…`; see tests/workerd/src/engine.rs. */
import { Docker } from "./docker.js";

const [socket = "", ...command] = process.argv.slice(2);
const docker = await Docker.start(command, socket);
process.on("SIGTERM", () => void docker.end().then(() => process.exit(0)));
process.stdout.write("ready\n");
