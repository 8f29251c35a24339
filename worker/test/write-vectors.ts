/** Writes the vectors anew: after a deliberate change of the protocol. */
import { writeFileSync } from "node:fs";
import { vectors } from "./support/vectors.js";

writeFileSync(new URL("vectors.json", import.meta.url), `${JSON.stringify(vectors(), null, 1)}\n`);
