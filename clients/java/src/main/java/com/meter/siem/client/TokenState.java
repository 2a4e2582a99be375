package com.meter.siem.client;

import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Base64;
import java.util.regex.Pattern;

/** The current token. No I/O; times are in milliseconds since 1970. */
final class TokenState {
  /** RFC 6750, b64token. */
  private static final Pattern TOKEN = Pattern.compile("[A-Za-z0-9\\-._~+/]+=*");

  /** Part of its lifetime after which a token is replaced. */
  private static final double REFRESH_AT = 0.8;

  /** A fresh token that looks expired: the clocks differ, and the server decides. */
  private static final long SKEWED_MILLIS = 30_000;

  private static final long MIN_PAUSE_MILLIS = 1_000;
  private static final long MAX_PAUSE_MILLIS = 30_000;
  private static final long NEVER = Long.MAX_VALUE;

  private final long reread;
  private String value;
  private long refreshAt = NEVER;
  private long validUntil = NEVER;
  private int failures;
  private long blockedUntil;
  private Exception error;

  /**
   * @param reread time after which a token is fetched again whatever its expiry is; null for never
   */
  TokenState(Duration reread) {
    this.reread = reread == null ? NEVER : reread.toMillis();
  }

  /**
   * Returns a token that can be sent.
   *
   * @throws IllegalArgumentException if it is none
   */
  static Token checked(Token token) {
    if (token == null) {
      throw new IllegalArgumentException("the token function returned null");
    }
    if (!TOKEN.matcher(token.value()).matches()) {
      throw new IllegalArgumentException("the token is empty, or has characters that a bearer token cannot have");
    }
    return token;
  }

  /** Returns the time of expiry; {@link #NEVER} if it is unknown. */
  private static long expiry(Token token) {
    if (token.expiresAt().isPresent()) {
      try {
        return token.expiresAt().get().toEpochMilli();
      } catch (ArithmeticException farAway) {
        return NEVER;
      }
    }
    String[] parts = token.value().split("\\.", -1);
    if (parts.length != 3) {
      return NEVER;
    }
    try {
      String json = new String(Base64.getUrlDecoder().decode(parts[1]), StandardCharsets.UTF_8);
      JsonObject claims = JsonParser.parseString(json).getAsJsonObject();
      return (long) (claims.get("exp").getAsDouble() * 1000);
    } catch (JsonParseException
        | IllegalArgumentException
        | IllegalStateException
        | UnsupportedOperationException
        | NullPointerException noClaim) {
      // A token of this form need not be a JWT.
      return NEVER;
    }
  }

  /** Returns the token if it may be sent, else null. */
  String usable(long now) {
    return now < validUntil ? value : null;
  }

  /** Returns whether a new token should be fetched now. */
  boolean wantsFetch(long now) {
    return now >= blockedUntil && (usable(now) == null || now >= refreshAt);
  }

  /** Returns why the last fetch has failed; null if it has not. */
  Exception error() {
    return error;
  }

  void fetched(Token token, long now) {
    value = token.value();
    error = null;
    failures = 0;
    blockedUntil = 0;
    validUntil = NEVER;
    refreshAt = reread == NEVER ? NEVER : now + reread;
    long expiry = expiry(token);
    if (expiry == NEVER) {
      return;
    }
    long life = expiry - now;
    if (life <= 0) {
      refreshAt = Math.min(refreshAt, now + SKEWED_MILLIS);
    } else {
      refreshAt = Math.min(refreshAt, now + (long) (life * REFRESH_AT));
      // Not sent in its last moments, as it would expire on the way.
      validUntil = expiry - Math.min(5_000, life / 10);
    }
  }

  /** Takes a token that cannot be replaced, so that only the server decides on its expiry. */
  void fixed(Token token) {
    value = token.value();
  }

  /** Takes a failure to fetch. The next attempt follows after a pause, for all calls together. */
  void failed(Exception error, long now) {
    this.error = error;
    blockedUntil = now + Math.min(MIN_PAUSE_MILLIS << Math.min(failures, 10), MAX_PAUSE_MILLIS);
    failures++;
  }

  /** Drops a token that the server refused, unless another call has replaced it already. */
  void refused(String refused) {
    if (refused.equals(value)) {
      value = null;
    }
  }
}
