package com.meter.siem.client;

import java.time.Duration;

/** Durations as nanoseconds. */
final class Times {
  /** Longer times are cut to this one, so that sums do not overflow. */
  private static final Duration LONGEST = Duration.ofDays(3650);

  private Times() {}

  /**
   * Returns a duration in nanoseconds.
   *
   * @throws ConfigurationException if it is negative, or zero where that has no meaning
   */
  static long nanos(String name, Duration time, boolean orZero) {
    if (time.isNegative() || (time.isZero() && !orZero)) {
      throw new ConfigurationException(name + ": " + time + " is not a positive time");
    }
    return (time.compareTo(LONGEST) > 0 ? LONGEST : time).toNanos();
  }

  static String seconds(long nanos) {
    return String.format(java.util.Locale.ROOT, "%.1f s", nanos / 1e9);
  }
}
