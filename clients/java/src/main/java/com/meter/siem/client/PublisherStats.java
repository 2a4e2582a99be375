package com.meter.siem.client;

/** Counts since the publisher was made, at one moment. */
public final class PublisherStats {
  long accepted;
  long unconfigured;
  long rejected;
  long filtered;
  long undetermined;
  long deferred;
  long reconnects;
  long pending;

  PublisherStats() {}

  PublisherStats(PublisherStats other) {
    accepted = other.accepted;
    unconfigured = other.unconfigured;
    rejected = other.rejected;
    filtered = other.filtered;
    undetermined = other.undetermined;
    deferred = other.deferred;
    reconnects = other.reconnects;
    pending = other.pending;
  }

  /**
   * Returns the number of events that are durable.
   *
   * @return the count
   */
  public long accepted() {
    return accepted;
  }

  /**
   * Returns the number of events of organizations without an integration.
   *
   * @return the count
   */
  public long unconfigured() {
    return unconfigured;
  }

  /**
   * Returns the number of events that were rejected for good.
   *
   * @return the count
   */
  public long rejected() {
    return rejected;
  }

  /**
   * Returns the number of events that a filter left out.
   *
   * @return the count
   */
  public long filtered() {
    return filtered;
  }

  /**
   * Returns the number of events with {@link Outcome#UNDETERMINED}.
   *
   * @return the count
   */
  public long undetermined() {
    return undetermined;
  }

  /**
   * Returns the number of temporary rejections; each event counts as often as it was rejected.
   *
   * @return the count
   */
  public long deferred() {
    return deferred;
  }

  /**
   * Returns the number of streams that broke while events were unanswered.
   *
   * @return the count
   */
  public long reconnects() {
    return reconnects;
  }

  /**
   * Returns the number of events without a final answer.
   *
   * @return the count
   */
  public long pending() {
    return pending;
  }

  @Override
  public String toString() {
    return String.format(
        "accepted=%d unconfigured=%d rejected=%d filtered=%d undetermined=%d deferred=%d reconnects=%d pending=%d",
        accepted, unconfigured, rejected, filtered, undetermined, deferred, reconnects, pending);
  }
}
