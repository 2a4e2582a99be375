package com.meter.siem.client;

import com.google.protobuf.Timestamp;
import com.meter.siem.v1.IntegrationStatus;
import com.meter.siem.v1.Status;
import java.time.Instant;
import java.util.function.IntFunction;

/** Helpers for messages: enums, whose values may be newer than this package, and times. */
public final class Messages {
  private Messages() {}

  /**
   * Returns the status of an integration.
   *
   * @param status the status message
   * @return {@code STATUS_UNKNOWN} for a status that this version does not know; never {@code UNRECOGNIZED}
   */
  public static Status statusOf(IntegrationStatus status) {
    switch (status.getStatus()) {
      case STATUS_UNSPECIFIED:
      case UNRECOGNIZED:
        return Status.STATUS_UNKNOWN;
      default:
        return status.getStatus();
    }
  }

  /**
   * Returns the name of a value of an enum, such as {@code enumName(StatusReason::forNumber,
   * status.getReasonValue())}.
   *
   * @param forNumber the enum's {@code forNumber}
   * @param value the number, as sent
   * @return the name; the number as text if this version does not know it
   */
  public static String enumName(IntFunction<? extends Enum<?>> forNumber, int value) {
    Enum<?> known = forNumber.apply(value);
    return known == null ? Integer.toString(value) : known.name();
  }

  /**
   * Returns a time for a message, such as {@code observed_time}.
   *
   * @param when the time
   * @return the message
   */
  public static Timestamp timestamp(Instant when) {
    return Timestamp.newBuilder().setSeconds(when.getEpochSecond()).setNanos(when.getNano()).build();
  }

  /**
   * Returns the present time for a message.
   *
   * @return the message
   */
  public static Timestamp timestamp() {
    return timestamp(Instant.now());
  }
}
