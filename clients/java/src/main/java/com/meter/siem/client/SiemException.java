package com.meter.siem.client;

import com.meter.siem.v1.ErrorReason;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Optional;

/** A call failed. */
public final class SiemException extends RuntimeException {
  private static final long serialVersionUID = 1;

  private final Status.Code code;
  private final String text;
  private final String reasonName;
  private final ArrayList<Violation> violations;
  private final Duration retryDelay;
  private final boolean neverSent;
  private final int attempts;

  SiemException(Status.Code code, String text) {
    this(code, text, "", List.of(), null, false, 1, null);
  }

  SiemException(
      Status.Code code,
      String text,
      String reasonName,
      List<Violation> violations,
      Duration retryDelay,
      boolean neverSent,
      int attempts,
      Throwable cause) {
    super(text, cause);
    this.code = code;
    this.text = text;
    this.reasonName = reasonName;
    this.violations = new ArrayList<>(violations);
    this.retryDelay = retryDelay;
    this.neverSent = neverSent;
    this.attempts = attempts;
  }

  /** Returns this failure as that of a whole call. */
  SiemException with(int attempts, String text) {
    SiemException changed =
        new SiemException(code, text, reasonName, violations, retryDelay, neverSent, attempts, getCause());
    changed.setStackTrace(getStackTrace());
    return changed;
  }

  /**
   * Returns the gRPC code.
   *
   * @return for example {@code NOT_FOUND}
   */
  public Status.Code code() {
    return code;
  }

  /**
   * Returns the message of the server, or of gRPC if no server answered.
   *
   * @return a text in English; {@link #getMessage} has code and reason before it
   */
  public String message() {
    return text;
  }

  /**
   * Returns the reason.
   *
   * @return {@code ERROR_REASON_UNSPECIFIED} if there is none, or one that this version does not know
   */
  public ErrorReason reason() {
    return Errors.reason(reasonName);
  }

  /**
   * Returns the reason as sent, also if it is unknown.
   *
   * @return for example {@code ETAG_MISMATCH}; empty without one
   */
  public String reasonName() {
    return reasonName;
  }

  /**
   * Returns every violated field that the server names.
   *
   * @return at most 20
   */
  public List<Violation> violations() {
    return Collections.unmodifiableList(violations);
  }

  /**
   * Returns the time after which the server asks to try again.
   *
   * @return empty if it does not ask
   */
  public Optional<Duration> retryDelay() {
    return Optional.ofNullable(retryDelay);
  }

  /**
   * Returns the number of attempts that were made.
   *
   * @return at least 1
   */
  public int attempts() {
    return attempts;
  }

  /** Returns whether no server can have seen the call. */
  boolean neverSent() {
    return neverSent;
  }

  /**
   * Returns code, reason and message. The server's message repeats the violations.
   *
   * @return for example {@code ABORTED/ETAG_MISMATCH: ...}
   */
  @Override
  public String getMessage() {
    return (reasonName.isEmpty() ? code.name() : code + "/" + reasonName) + ": " + text;
  }
}
