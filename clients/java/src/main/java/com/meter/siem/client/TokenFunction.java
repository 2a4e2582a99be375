package com.meter.siem.client;

/** Fetches a token. It is called by one thread at a time. */
@FunctionalInterface
public interface TokenFunction {
  /**
   * Returns a token.
   *
   * @return the token, never null
   * @throws Exception if there is none; calls fail with it as cause while no earlier token is valid
   */
  Token fetch() throws Exception;
}
