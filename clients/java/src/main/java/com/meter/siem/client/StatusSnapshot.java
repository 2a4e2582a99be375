package com.meter.siem.client;

import com.meter.siem.v1.StatusCurrent;
import java.util.Collections;
import java.util.Map;
import java.util.Set;

/** The complete current statuses. It replaces everything that the watch returned before. */
public final class StatusSnapshot {
  private final Map<String, StatusCurrent> statuses;
  private final Set<String> absent;

  StatusSnapshot(Map<String, StatusCurrent> statuses, Set<String> absent) {
    this.statuses = Collections.unmodifiableMap(statuses);
    this.absent = Collections.unmodifiableSet(absent);
  }

  /**
   * Returns the current status of each integration.
   *
   * @return the statuses by organization; cannot be changed
   */
  public Map<String, StatusCurrent> statuses() {
    return statuses;
  }

  /**
   * Returns those of the named organizations that have no integration.
   *
   * @return their ids; cannot be changed
   */
  public Set<String> absent() {
    return absent;
  }
}
