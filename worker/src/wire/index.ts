/** The protocol between agent and Durable Object; see docs/wire.md. Runs wherever JavaScript does. */
export * from "./bytes.js";
export * from "./errors.js";
export * from "./frame.js";
export * from "./json.js";
export * from "./messages.js";
export * from "./shape.js";
