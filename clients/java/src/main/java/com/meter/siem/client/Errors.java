package com.meter.siem.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.meter.siem.v1.ErrorReason;
import io.grpc.Metadata;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;

/** Extraction of typed errors from gRPC's. */
final class Errors {
  private static final String DOMAIN = "siem.v1";
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  /** Messages of gRPC's own transport. A server's handler that fails has other messages. */
  private static final Pattern TRANSPORT =
      Pattern.compile(
          "rst.?stream|goaway|socket closed|broken pipe|stream removed|end.of.(file|stream)|\\beof\\b|\\beos\\b"
              + "|connection|channel closed|transport|io exception|network closed|keepalive|ping timeout|http/?2"
              + "|\\bh2\\b",
          Pattern.CASE_INSENSITIVE);

  private Errors() {}

  static ErrorReason reason(String name) {
    try {
      return ErrorReason.valueOf("ERROR_REASON_" + name);
    } catch (IllegalArgumentException unknown) {
      return ErrorReason.ERROR_REASON_UNSPECIFIED;
    }
  }

  /**
   * Returns the error of a failed call.
   *
   * @param neverSent whether the call ended before there was a connection to send it on
   */
  static SiemException of(Status status, Metadata trailers, boolean neverSent) {
    com.google.rpc.Status details = com.google.rpc.Status.getDefaultInstance();
    byte[] encoded = trailers == null ? null : trailers.get(DETAILS);
    if (encoded != null) {
      try {
        details = com.google.rpc.Status.parseFrom(encoded);
      } catch (InvalidProtocolBufferException unreadable) {
        // The code and the message remain.
      }
    }
    String message = status.getDescription() == null ? "" : status.getDescription();
    Throwable cause = status.getCause();
    if (cause != null && cause.getMessage() != null) {
      // gRPC's description says little, such as "io exception".
      message = message.isEmpty() ? cause.getMessage() : message + ": " + cause.getMessage();
    }
    return of(status.getCode(), message, details, neverSent, cause);
  }

  /** Returns the error that a {@code google.rpc.Status} describes. */
  static SiemException of(com.google.rpc.Status status) {
    return of(Status.fromCodeValue(status.getCode()).getCode(), status.getMessage(), status, false, null);
  }

  /** Reads the details; those that cannot be read are ignored. */
  private static SiemException of(
      Status.Code code, String message, com.google.rpc.Status details, boolean neverSent, Throwable cause) {
    String reasonName = "";
    List<Violation> violations = new ArrayList<>();
    Duration delay = null;
    for (Any detail : details.getDetailsList()) {
      try {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          if (info.getDomain().equals(DOMAIN)) {
            reasonName = info.getReason();
          }
        } else if (detail.is(BadRequest.class)) {
          for (BadRequest.FieldViolation each : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            violations.add(new Violation(each.getField(), each.getDescription()));
          }
        } else if (detail.is(RetryInfo.class)) {
          com.google.protobuf.Duration asked = detail.unpack(RetryInfo.class).getRetryDelay();
          // Bounded, so that later sums of nanoseconds do not overflow.
          long seconds = Math.max(-1, Math.min(asked.getSeconds(), Duration.ofDays(3650).getSeconds()));
          Duration read = Duration.ofSeconds(seconds, asked.getNanos());
          delay = read.isNegative() ? Duration.ZERO : read;
        }
      } catch (InvalidProtocolBufferException unreadable) {
        continue;
      }
    }
    return new SiemException(code, message, reasonName, violations, delay, neverSent, 1, cause);
  }

  /** Returns whether the connection failed, rather than the server answered. */
  static boolean isTransportLoss(SiemException error) {
    if (!error.reasonName().isEmpty()) {
      return false;
    }
    switch (error.code()) {
      case UNAVAILABLE:
        return true;
      case UNKNOWN:
      case CANCELLED:
      case INTERNAL:
        return TRANSPORT.matcher(error.message()).find();
      case RESOURCE_EXHAUSTED:
        // The whole connection was ended, for example because of pings.
        return error.message().startsWith("HTTP/2 error code: ENHANCE_YOUR_CALM");
      default:
        return false;
    }
  }

  /** Returns the error of a thread that was interrupted while it waited; it stays interrupted. */
  static SiemException interrupted(InterruptedException cause) {
    Thread.currentThread().interrupt();
    return new SiemException(
        Status.Code.CANCELLED, "the thread was interrupted", "", List.of(), null, false, 1, cause);
  }
}
