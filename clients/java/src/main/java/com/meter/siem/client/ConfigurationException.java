package com.meter.siem.client;

/** An option of a client or of a publisher cannot be used; the message says why. */
public final class ConfigurationException extends IllegalArgumentException {
  private static final long serialVersionUID = 1;

  ConfigurationException(String message) {
    super(message);
  }
}
