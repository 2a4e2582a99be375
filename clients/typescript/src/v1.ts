// The messages, enums and services of proto/siem/v1.

export * from "./gen/siem/v1/error_pb.js";
export * from "./gen/siem/v1/event_pb.js";
export * from "./gen/siem/v1/integration_pb.js";
