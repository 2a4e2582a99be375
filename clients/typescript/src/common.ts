// The names that both entries export.

export { create } from "@bufbuild/protobuf";
export { Code } from "@connectrpc/connect";
export type { CallOptions, CommonOptions } from "./caller.js";
export { ClosedError, ConfigurationError, SiemError, UnacknowledgedError, type Violation } from "./errors.js";
export { dateOf, type EventInit, enumName, statusOf, timestamp, toJson } from "./messages.js";
export type { RetryOptions } from "./retry.js";
export type { Token, TokenFunction, TokenSource } from "./tokens.js";
export * as v1 from "./v1.js";
export { version } from "./version.js";
export { type StatusEvent, type StatusSnapshot, StatusWatch, type WatchOptions } from "./watch.js";
