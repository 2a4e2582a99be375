package com.meter.siem.client;

import java.time.Instant;
import java.util.Objects;
import java.util.Optional;

/** A bearer token with its expiry. A JWT needs none: the client reads its claim {@code exp}. */
public final class Token {
  private final String value;
  private final Instant expiresAt;

  private Token(String value, Instant expiresAt) {
    this.value = Objects.requireNonNull(value, "value");
    this.expiresAt = expiresAt;
  }

  /**
   * Returns a token whose expiry is unknown, or in the token itself.
   *
   * @param value the token, without {@code Bearer}
   * @return the token
   */
  public static Token of(String value) {
    return new Token(value, null);
  }

  /**
   * Returns a token.
   *
   * @param value the token, without {@code Bearer}
   * @param expiresAt time of expiry
   * @return the token
   */
  public static Token of(String value, Instant expiresAt) {
    return new Token(value, Objects.requireNonNull(expiresAt, "expiresAt"));
  }

  String value() {
    return value;
  }

  Optional<Instant> expiresAt() {
    return Optional.ofNullable(expiresAt);
  }

  @Override
  public String toString() {
    return "Token(value=…, expiresAt=" + expiresAt + ")";
  }
}
