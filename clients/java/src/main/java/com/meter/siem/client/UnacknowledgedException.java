package com.meter.siem.client;

import com.meter.siem.v1.Event;
import java.time.Instant;
import java.util.List;
import java.util.stream.Collectors;

/**
 * A publisher has events without a final answer; the server may have accepted them. The cause is the failure that
 * ended the publisher, if it was not the time-out.
 */
public final class UnacknowledgedException extends RuntimeException {
  private static final long serialVersionUID = 1;
  private static final int NAMED = 5;

  // Serialized as generated messages are.
  private final Event[] unacknowledged;

  UnacknowledgedException(String problem, List<Event> unacknowledged, Throwable cause) {
    super(
        problem + "; " + unacknowledged.size() + " unacknowledged events: " + names(unacknowledged), cause);
    this.unacknowledged = unacknowledged.toArray(new Event[0]);
  }

  /**
   * Returns the events, in the order of sending. Publish them again, unchanged: consumers drop duplicates.
   *
   * @return the events
   */
  public List<Event> unacknowledged() {
    return List.of(unacknowledged);
  }

  private static String names(List<Event> events) {
    String names =
        events.stream().limit(NAMED).map(UnacknowledgedException::name).collect(Collectors.joining(", "));
    return events.size() <= NAMED ? names : names + ", and " + (events.size() - NAMED) + " more";
  }

  /** Returns attributes that identify an event for a person. */
  private static String name(Event event) {
    String id = event.getEventId();
    if (!event.hasEventId()) {
      long seconds = event.getObservedTime().getSeconds();
      // The times of Java, beyond which ofEpochSecond throws.
      id =
          seconds < Instant.MIN.getEpochSecond() || seconds >= Instant.MAX.getEpochSecond()
              ? seconds + " s"
              : Instant.ofEpochSecond(seconds, event.getObservedTime().getNanos()).toString();
    }
    return event.getOrganizationId() + "/" + event.getDeviceId() + "/" + id;
  }
}
