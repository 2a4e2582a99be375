package com.meter.siem.client;

import java.io.Serializable;
import java.util.Objects;

/** One violated field of a request. */
public final class Violation implements Serializable {
  private static final long serialVersionUID = 1;

  private final String field;
  private final String description;

  Violation(String field, String description) {
    this.field = field;
    this.description = description;
  }

  /**
   * Returns the path of the field.
   *
   * @return for example {@code kinesis_stream_arn}
   */
  public String field() {
    return field;
  }

  /**
   * Returns problem and remedy.
   *
   * @return a text in English
   */
  public String description() {
    return description;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Violation
        && field.equals(((Violation) other).field)
        && description.equals(((Violation) other).description);
  }

  @Override
  public int hashCode() {
    return Objects.hash(field, description);
  }

  @Override
  public String toString() {
    return field + ": " + description;
  }
}
