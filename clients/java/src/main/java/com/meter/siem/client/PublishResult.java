package com.meter.siem.client;

import com.meter.siem.v1.Rejection;
import java.util.Optional;

/** Final answer to one event. */
public final class PublishResult {
  private final Outcome outcome;
  private final Rejection rejection;

  PublishResult(Outcome outcome, Rejection rejection) {
    this.outcome = outcome;
    this.rejection = rejection;
  }

  /**
   * Returns the answer.
   *
   * @return the outcome
   */
  public Outcome outcome() {
    return outcome;
  }

  /**
   * Returns reason, field and message of a rejected event.
   *
   * @return the rejection, whose index is 0; empty for other outcomes
   */
  public Optional<Rejection> rejection() {
    return Optional.ofNullable(rejection);
  }

  @Override
  public String toString() {
    return rejection == null ? outcome.name() : outcome + " " + rejection.getField() + ": " + rejection.getMessage();
  }
}
