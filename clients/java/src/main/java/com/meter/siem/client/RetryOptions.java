package com.meter.siem.client;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;

/** Waits between attempts. */
public final class RetryOptions {
  /** Waits of 0.1 s to 5 s. */
  public static final RetryOptions DEFAULT = new RetryOptions(Duration.ofMillis(100), Duration.ofSeconds(5));

  private final Duration minWait;
  private final Duration maxWait;

  private RetryOptions(Duration minWait, Duration maxWait) {
    this.minWait = minWait;
    this.maxWait = maxWait;
  }

  /**
   * Returns waits.
   *
   * @param minWait wait after the first failure; doubled with each further one in a row
   * @param maxWait longest wait, unless the server asks for a longer one
   * @return the options
   * @throws ConfigurationException if a wait is negative, or the second is shorter than the first
   */
  public static RetryOptions of(Duration minWait, Duration maxWait) {
    if (minWait.isNegative() || maxWait.compareTo(minWait) < 0 || maxWait.compareTo(Duration.ofDays(1)) > 0) {
      throw new ConfigurationException(
          "retry: the waits " + minWait + " and " + maxWait + " are not in ascending order from 0 to a day");
    }
    return new RetryOptions(minWait, maxWait);
  }

  /**
   * Returns the wait in nanoseconds after this number of earlier failures in a row. The jitter follows the limit, so
   * that clients stay spread once they have reached it.
   */
  long backoff(int failures) {
    double wait = Math.min(minWait.toNanos() * Math.pow(2, Math.min(failures, 60)), maxWait.toNanos());
    return (long) (wait * ThreadLocalRandom.current().nextDouble(0.5, 1.0));
  }

  /** Returns the wait in nanoseconds after a failure, never shorter than the server asked for. */
  long waitAfter(SiemException error, int failures) {
    long wait = backoff(failures);
    if (error.retryDelay().isEmpty()) {
      return wait;
    }
    long asked = error.retryDelay().get().toNanos();
    return Math.max(wait, asked + (long) (asked * ThreadLocalRandom.current().nextDouble(0, 0.25)));
  }
}
