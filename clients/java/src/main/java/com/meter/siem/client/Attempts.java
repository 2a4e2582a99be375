package com.meter.siem.client;

import com.meter.siem.v1.ErrorReason;
import io.grpc.Status;

/** Attempts of one call, which share one deadline. No I/O; times are in nanoseconds of a monotonic clock. */
final class Attempts {
  /** Follows at once, with a new token. */
  static final long WITH_NEW_TOKEN = -1;

  private final RetryOptions options;
  private final long deadline;
  private final boolean resend;
  private int failures;
  private boolean refreshed;
  private SiemException last;

  /**
   * @param resend whether the call may be sent twice although the first one may have taken effect
   */
  Attempts(RetryOptions options, long now, long timeout, boolean resend) {
    this.options = options;
    this.deadline = now + timeout;
    this.resend = resend;
  }

  /** Returns the nanoseconds until the deadline, at least 0. */
  long left(long now) {
    return Math.max(deadline - now, 0);
  }

  /** Returns whether the same call can succeed later. */
  static boolean isTemporary(SiemException error, boolean resend) {
    if (error.code() == Status.Code.RESOURCE_EXHAUSTED && !Errors.isTransportLoss(error)) {
      // The server refused the request before it did anything.
      return error.retryDelay().isPresent();
    }
    if (error.code() == Status.Code.UNAVAILABLE || Errors.isTransportLoss(error)) {
      // The server says that it did nothing. SHUTTING_DOWN may end a test event that is already written.
      return resend || error.neverSent() || error.reason() == ErrorReason.ERROR_REASON_STORAGE_FAILED;
    }
    return false;
  }

  /**
   * Returns the wait until the next attempt, or {@link #WITH_NEW_TOKEN}.
   *
   * @throws SiemException if the call has failed for good
   */
  long failed(SiemException error, long now, boolean tokenCanChange) {
    String text = error.message();
    if (error.code() == Status.Code.DEADLINE_EXCEEDED && last != null && error.reasonName().isEmpty()) {
      // The deadline of all attempts says less than the failure that used it up.
      text = text + "; the attempt before failed: " + last.getMessage();
    }
    SiemException failure = error.with(failures + 1, text);
    if (error.code() == Status.Code.UNAUTHENTICATED && tokenCanChange && !refreshed) {
      refreshed = true;
      failures++;
      return WITH_NEW_TOKEN;
    }
    if (!isTemporary(error, resend)) {
      throw failure;
    }
    long wait = options.waitAfter(error, failures);
    if (wait >= left(now)) {
      throw failure;
    }
    failures++;
    last = failure;
    return wait;
  }
}
