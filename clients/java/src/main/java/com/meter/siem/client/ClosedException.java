package com.meter.siem.client;

/** The client or the publisher is closed, or has ended; the cause, if there is one, says why. */
public final class ClosedException extends IllegalStateException {
  private static final long serialVersionUID = 1;

  ClosedException(String message, Throwable cause) {
    super(message, cause);
  }
}
