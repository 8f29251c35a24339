// Counts visits in a file. Plain Node: nothing in it knows of storeshim.
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { createServer } from "node:http";
import { dirname } from "node:path";

const FILE = `${process.env.STORAGE ?? "/storage"}/visits`;

function count() {
  try {
    return Number(readFileSync(FILE, "utf8"));
  } catch (error) {
    if (error.code === "ENOENT") return 0;
    throw error;
  }
}

function save(visits) {
  const file = openSync(`${FILE}.new`, "w");
  writeSync(file, String(visits));
  fsyncSync(file);
  closeSync(file);
  renameSync(`${FILE}.new`, FILE);
  const directory = openSync(dirname(FILE), "r");
  // When this returns, the visit survives the loss of the machine.
  fsyncSync(directory);
  closeSync(directory);
}

createServer((request, response) => {
  // The platform asks whether somebody listens; that is no visit.
  if (["ping", "containerstarthealthcheck"].includes(request.headers.host)) {
    response.end("up\n");
    return;
  }
  const visits = count() + 1;
  save(visits);
  response.end(`visit ${visits}\n`);
}).listen(Number(process.env.PORT ?? 8080), () => console.log("counting visits"));

process.on("SIGTERM", () => process.exit(0));
