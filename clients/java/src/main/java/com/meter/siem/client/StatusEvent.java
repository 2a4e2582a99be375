package com.meter.siem.client;

import com.google.protobuf.Message;
import com.meter.siem.v1.StatusAbsent;
import com.meter.siem.v1.StatusCurrent;
import com.meter.siem.v1.StatusDeleted;

/** An event of a watch: a new picture, or a change of it. */
public final class StatusEvent {
  /** Kind of an event. Later versions may add others: ignore them by a default. */
  public enum Kind {
    /** A new picture. */
    SNAPSHOT,
    /** The status of an integration has changed. */
    CURRENT,
    /** An integration was deleted. */
    DELETED,
    /** A named organization has no integration. */
    ABSENT
  }

  private final Kind kind;
  private final StatusSnapshot snapshot;
  private final Message change;

  private StatusEvent(Kind kind, StatusSnapshot snapshot, Message change) {
    this.kind = kind;
    this.snapshot = snapshot;
    this.change = change;
  }

  static StatusEvent of(StatusSnapshot snapshot) {
    return new StatusEvent(Kind.SNAPSHOT, snapshot, null);
  }

  static StatusEvent of(Kind kind, Message change) {
    return new StatusEvent(kind, null, change);
  }

  /**
   * Returns the kind, which says which of the other methods may be called.
   *
   * @return the kind
   */
  public Kind kind() {
    return kind;
  }

  /**
   * Returns the new picture.
   *
   * @return the snapshot
   * @throws IllegalStateException if the event is of another kind
   */
  public StatusSnapshot snapshot() {
    require(Kind.SNAPSHOT);
    return snapshot;
  }

  /**
   * Returns the new status of an integration.
   *
   * @return the message
   * @throws IllegalStateException if the event is of another kind
   */
  public StatusCurrent current() {
    require(Kind.CURRENT);
    return (StatusCurrent) change;
  }

  /**
   * Returns the deletion of an integration.
   *
   * @return the message
   * @throws IllegalStateException if the event is of another kind
   */
  public StatusDeleted deleted() {
    require(Kind.DELETED);
    return (StatusDeleted) change;
  }

  /**
   * Returns the organization without integration.
   *
   * @return the message
   * @throws IllegalStateException if the event is of another kind
   */
  public StatusAbsent absent() {
    require(Kind.ABSENT);
    return (StatusAbsent) change;
  }

  private void require(Kind wanted) {
    if (kind != wanted) {
      throw new IllegalStateException("the event is " + kind + ", not " + wanted);
    }
  }

  @Override
  public String toString() {
    return kind == Kind.SNAPSHOT ? "SNAPSHOT of " + snapshot.statuses().size() + " integrations" : kind + " " + change;
  }
}
