package com.meter.siem.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.meter.siem.v1.ErrorReason;
import com.meter.siem.v1.Event;
import io.grpc.Metadata;
import io.grpc.Status;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.ObjectInputStream;
import java.io.ObjectOutputStream;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Decisions about failures, waits, and the extraction of errors. */
class RetryTest {
  private static final long SECOND = TimeUnit.SECONDS.toNanos(1);

  private static SiemException error(Status.Code code, String message, String reason, Duration delay, boolean neverSent) {
    return new SiemException(code, message, reason, List.of(), delay, neverSent, 1, null);
  }

  @Test
  void theJitterFollowsTheLimit() {
    long low = Long.MAX_VALUE;
    long high = 0;
    for (int count = 0; count < 200; count++) {
      long wait = RetryOptions.DEFAULT.backoff(50);
      low = Math.min(low, wait);
      high = Math.max(high, wait);
      assertTrue(RetryOptions.DEFAULT.backoff(0) <= SECOND / 10);
    }
    assertTrue(low >= 2.5 * SECOND && high <= 5 * SECOND && high - low > SECOND);
  }

  @ParameterizedTest
  @CsvSource({
    "UNAVAILABLE, io exception, '', true",
    "UNKNOWN, channel closed, '', true",
    "CANCELLED, 'HTTP/2 error code: CANCEL Received Rst Stream', '', true",
    "INTERNAL, 'HTTP/2 error code: INTERNAL_ERROR', '', true",
    "INTERNAL, Received unexpected EOS on empty DATA frame from server, '', true",
    "INTERNAL, Encountered end-of-stream mid-frame, '', true",
    "INTERNAL, a defect, INTERNAL, false",
    "INTERNAL, planned, '', false",
    "UNKNOWN, a defect, '', false",
    "CANCELLED, the thread was interrupted, '', false",
    "NOT_FOUND, connection, '', false",
    "RESOURCE_EXHAUSTED, 'HTTP/2 error code: ENHANCE_YOUR_CALM', '', true",
    "RESOURCE_EXHAUSTED, planned, RATE_LIMITED, false",
  })
  void lostTransports(Status.Code code, String message, String reason, boolean lost) {
    SiemException error = error(code, message, reason, null, false);
    assertEquals(lost, Errors.isTransportLoss(error));
    assertEquals(lost, Attempts.isTemporary(error, true));
    assertFalse(Attempts.isTemporary(error, false));
  }

  @Test
  void callsThatAreNeverSentTwice() {
    Duration second = Duration.ofSeconds(1);
    assertFalse(Attempts.isTemporary(error(Status.Code.UNAVAILABLE, "", "SHUTTING_DOWN", second, false), false));
    assertFalse(Attempts.isTemporary(error(Status.Code.UNAVAILABLE, "", "OUTCOME_UNKNOWN", second, false), false));
    assertFalse(Attempts.isTemporary(error(Status.Code.RESOURCE_EXHAUSTED, "", "RATE_LIMITED", null, false), false));
    assertTrue(Attempts.isTemporary(error(Status.Code.RESOURCE_EXHAUSTED, "", "RATE_LIMITED", second, false), false));
    assertTrue(Attempts.isTemporary(error(Status.Code.UNAVAILABLE, "", "STORAGE_FAILED", second, false), false));
    assertTrue(Attempts.isTemporary(error(Status.Code.UNAVAILABLE, "", "", null, true), false));
  }

  @Test
  void oneDeadlineOverAllAttempts() {
    RetryOptions second = RetryOptions.of(Duration.ofSeconds(1), Duration.ofSeconds(1));
    Attempts attempts = new Attempts(second, 0, 10 * SECOND, true);
    SiemException lost = new SiemException(Status.Code.UNAVAILABLE, "io exception");
    long now = 0;
    int waits = 0;
    SiemException failure = null;
    while (failure == null) {
      try {
        long wait = attempts.failed(lost, now, false);
        assertTrue(wait < attempts.left(now));
        now += wait;
        waits++;
      } catch (SiemException error) {
        failure = error;
      }
    }
    assertEquals(waits + 1, failure.attempts());
    assertTrue(now > 9 * SECOND && now < 10 * SECOND);
  }

  @Test
  void theEndOfTheDeadlineSaysWhyItWasUsedUp() {
    Attempts attempts = new Attempts(RetryOptions.DEFAULT, 0, 10 * SECOND, true);
    attempts.failed(new SiemException(Status.Code.UNAVAILABLE, "io exception"), 0, false);
    SiemException failure =
        assertThrows(
            SiemException.class,
            () -> attempts.failed(new SiemException(Status.Code.DEADLINE_EXCEEDED, "too late"), 9 * SECOND, false));
    assertTrue(failure.getMessage().contains("the attempt before failed: UNAVAILABLE: io exception"));
  }

  @Test
  void detailsAreReadWhateverTheyAre() throws IOException, ClassNotFoundException {
    com.google.rpc.Status status =
        Fake.status(Status.Code.UNKNOWN, "FROM_THE_FUTURE", Duration.ofMillis(1500), "a", "b").toBuilder()
            .setCode(99)
            .addDetails(0, any("google.rpc.BadRequest"))
            .addDetails(0, any("of.another.Type"))
            .build();
    SiemException error = Errors.of(status);
    assertEquals(Status.Code.UNKNOWN, error.code());
    assertEquals(ErrorReason.ERROR_REASON_UNSPECIFIED, error.reason());
    assertEquals("FROM_THE_FUTURE", error.reasonName());
    assertEquals(List.of(new Violation("a", "a is missing"), new Violation("b", "b is missing")), error.violations());
    assertEquals(Duration.ofMillis(1500), error.retryDelay().orElseThrow());

    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    new ObjectOutputStream(bytes).writeObject(error);
    SiemException copy =
        (SiemException) new ObjectInputStream(new ByteArrayInputStream(bytes.toByteArray())).readObject();
    assertEquals(error.violations(), copy.violations());
    assertEquals(error.getMessage(), copy.getMessage());

    Metadata trailers = new Metadata();
    trailers.put(Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER), new byte[] {-1, -1});
    SiemException unreadable = Errors.of(Status.ABORTED.withDescription("stale"), trailers, false);
    assertEquals("ABORTED: stale", unreadable.getMessage());
  }

  private static Any any(String type) {
    return Any.newBuilder()
        .setTypeUrl("type.googleapis.com/" + type)
        .setValue(ByteString.copyFrom(new byte[] {-1, -1}))
        .build();
  }

  @Test
  void unacknowledgedEventsAreNamed() throws IOException, ClassNotFoundException {
    Event unnamed = Event.newBuilder().setOrganizationId("acme").setDeviceId("d").build();
    UnacknowledgedException error =
        new UnacknowledgedException(
            "late",
            List.of(unnamed, Fake.event(1), Fake.event(2), Fake.event(3), Fake.event(4), Fake.event(5)),
            null);
    assertTrue(error.getMessage().contains("acme/d/1970-01-01T00:00:00Z, acme/device/device-1"), error.getMessage());
    assertTrue(error.getMessage().endsWith("and 1 more"), error.getMessage());
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    new ObjectOutputStream(bytes).writeObject(error);
    UnacknowledgedException copy =
        (UnacknowledgedException) new ObjectInputStream(new ByteArrayInputStream(bytes.toByteArray())).readObject();
    assertEquals(error.unacknowledged(), copy.unacknowledged());
    assertSame(6, copy.unacknowledged().size());
  }
}
