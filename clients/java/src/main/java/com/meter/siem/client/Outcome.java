package com.meter.siem.client;

/** Final answer to an event. Later versions may add others: handle them by a default. */
public enum Outcome {
  /** It is durable. */
  ACCEPTED,
  /** Its organization has no integration; it is not stored. */
  UNCONFIGURED,
  /** A filter of its integration left it out; it is not stored. */
  FILTERED,
  /** One of these three: the answer only counts, and differs between the events of the request. */
  UNDETERMINED,
  /** It is invalid; see the rejection. */
  REJECTED
}
