package com.meter.siem.client;

import com.meter.siem.v1.StatusCurrent;
import com.meter.siem.v1.StreamStatusRequest;
import com.meter.siem.v1.StreamStatusResponse;
import io.grpc.Status;
import java.util.EnumSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;

/** State of a watch between messages. No I/O. */
final class WatchState {
  /** Follows at once, with a new bearer token. */
  static final long WITH_NEW_TOKEN = -1;

  /** Failures that come again however often the stream is opened. */
  private static final Set<Status.Code> FINAL =
      EnumSet.of(
          Status.Code.UNIMPLEMENTED,
          Status.Code.UNAUTHENTICATED,
          Status.Code.PERMISSION_DENIED,
          Status.Code.NOT_FOUND,
          Status.Code.INVALID_ARGUMENT,
          Status.Code.OUT_OF_RANGE,
          Status.Code.FAILED_PRECONDITION);

  private final List<String> organizationIds;
  private final RetryOptions retry;
  // Token of the last message. That of the last event is `resumeToken`.
  private String token;
  private String resumeToken;
  // The incomplete picture; null while changes are returned one by one.
  private Map<String, StatusCurrent> statuses;
  private Set<String> absent;
  private int failures;
  private boolean refreshed;
  private String sentToken = "";

  WatchState(List<String> organizationIds, String resumeToken, RetryOptions retry) {
    this.organizationIds = List.copyOf(organizationIds);
    this.retry = retry;
    this.token = resumeToken;
    this.resumeToken = resumeToken;
    if (resumeToken.isEmpty()) {
      startSnapshot();
    }
  }

  private void startSnapshot() {
    statuses = new TreeMap<>();
    absent = new TreeSet<>();
  }

  /** Returns the token that continues after the last event. */
  String resumeToken() {
    return resumeToken;
  }

  /** Returns the request of the next stream. */
  StreamStatusRequest request() {
    sentToken = token;
    return StreamStatusRequest.newBuilder().addAllOrganizationIds(organizationIds).setResumeToken(token).build();
  }

  /** Takes a message. Returns its event; null without one. */
  StatusEvent received(StreamStatusResponse message) {
    failures = 0;
    refreshed = false;
    if (message.hasReset()) {
      // The token that was sent has been refused, and must not be sent again.
      token = message.getResumeToken().equals(sentToken) ? "" : message.getResumeToken();
      startSnapshot();
      return null;
    }
    if (!message.getResumeToken().isEmpty()) {
      token = message.getResumeToken();
    }
    if (statuses == null) {
      resumeToken = token;
      switch (message.getEventCase()) {
        case CURRENT:
          return StatusEvent.of(StatusEvent.Kind.CURRENT, message.getCurrent());
        case DELETED:
          return StatusEvent.of(StatusEvent.Kind.DELETED, message.getDeleted());
        case ABSENT:
          return StatusEvent.of(StatusEvent.Kind.ABSENT, message.getAbsent());
        default:
          return null;
      }
    }
    switch (message.getEventCase()) {
      case CURRENT:
        statuses.put(message.getCurrent().getOrganizationId(), message.getCurrent());
        absent.remove(message.getCurrent().getOrganizationId());
        return null;
      case DELETED:
        statuses.remove(message.getDeleted().getOrganizationId());
        if (organizationIds.contains(message.getDeleted().getOrganizationId())) {
          absent.add(message.getDeleted().getOrganizationId());
        }
        return null;
      case ABSENT:
        statuses.remove(message.getAbsent().getOrganizationId());
        absent.add(message.getAbsent().getOrganizationId());
        return null;
      case SYNCED:
        StatusSnapshot snapshot = new StatusSnapshot(statuses, absent);
        statuses = null;
        absent = null;
        resumeToken = token;
        return StatusEvent.of(snapshot);
      default:
        return null;
    }
  }

  /**
   * Returns the wait in nanoseconds until the next stream, or {@link #WITH_NEW_TOKEN}.
   *
   * @throws SiemException if the stream would be refused again
   */
  long failed(SiemException error, boolean tokenCanChange) {
    if (error.code() == Status.Code.UNAUTHENTICATED && tokenCanChange && !refreshed) {
      refreshed = true;
      return WITH_NEW_TOKEN;
    }
    if (error.code() == Status.Code.INVALID_ARGUMENT
        && !sentToken.isEmpty()
        && error.violations().stream().anyMatch(violation -> violation.field().equals("resume_token"))) {
      // Nothing is known of the changes since then: a new picture.
      token = "";
      startSnapshot();
      return 0;
    }
    boolean exhausted = error.code() == Status.Code.RESOURCE_EXHAUSTED && !Errors.isTransportLoss(error);
    if (FINAL.contains(error.code()) || (exhausted && error.retryDelay().isEmpty())) {
      throw error;
    }
    return retry.waitAfter(error, failures++);
  }
}
