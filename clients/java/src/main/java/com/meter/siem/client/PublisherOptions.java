package com.meter.siem.client;

import java.time.Duration;

/** Limits and waits of a publisher. */
public final class PublisherOptions {
  /** Events of one request. */
  static final int MAX_EVENTS = 1_000;

  /** Bytes of one request with its framing. */
  static final int MAX_BYTES = 4 << 20;

  /** The options without changes. */
  public static final PublisherOptions DEFAULT = builder().build();

  final int maxRequestsInFlight;
  final long maxBytesInFlight;
  final int maxBatchEvents;
  final int maxBatchBytes;
  final long linger;
  final RetryOptions retry;
  final long giveUpAfter;
  final long answerTimeout;

  private PublisherOptions(Builder builder) {
    maxRequestsInFlight = (int) check("maxRequestsInFlight", builder.maxRequestsInFlight, 1, 64);
    maxBytesInFlight = check("maxBytesInFlight", builder.maxBytesInFlight, 1, Long.MAX_VALUE / 2);
    maxBatchEvents = (int) check("maxBatchEvents", builder.maxBatchEvents, 1, MAX_EVENTS);
    maxBatchBytes = (int) check("maxBatchBytes", builder.maxBatchBytes, 1, MAX_BYTES);
    linger = Times.nanos("linger", builder.linger, true);
    retry = RetryOptions.of(builder.minRetryWait, builder.maxRetryWait);
    giveUpAfter = Times.nanos("giveUpAfter", builder.giveUpAfter, false);
    answerTimeout = Times.nanos("answerTimeout", builder.answerTimeout, false);
  }

  private static long check(String name, long value, long low, long high) {
    if (value < low || value > high) {
      throw new ConfigurationException(name + ": " + value + " is not in the range from " + low + " to " + high);
    }
    return value;
  }

  /**
   * Returns a builder with the default options.
   *
   * @return the builder
   */
  public static Builder builder() {
    return new Builder();
  }

  /** Builds options of a publisher. */
  public static final class Builder {
    private int maxRequestsInFlight = 16;
    private long maxBytesInFlight = 16 << 20;
    private int maxBatchEvents = MAX_EVENTS;
    private int maxBatchBytes = MAX_BYTES;
    private Duration linger = Duration.ofMillis(10);
    private Duration minRetryWait = Duration.ofMillis(100);
    private Duration maxRetryWait = Duration.ofSeconds(5);
    private Duration giveUpAfter = Duration.ofSeconds(300);
    private Duration answerTimeout = Duration.ofSeconds(60);

    private Builder() {}

    /**
     * Sets the number of unanswered requests.
     *
     * @param requests 1 to 64; 16 by default
     * @return this
     */
    public Builder maxRequestsInFlight(int requests) {
      maxRequestsInFlight = requests;
      return this;
    }

    /**
     * Sets the memory for unanswered events; {@code send} waits beyond it. Each event counts 1 KiB more than its
     * encoded size. One event alone may exceed it.
     *
     * @param bytes at least 1; 16 MiB by default
     * @return this
     */
    public Builder maxBytesInFlight(long bytes) {
      maxBytesInFlight = bytes;
      return this;
    }

    /**
     * Sets the number of events of one request.
     *
     * @param events 1 to 1,000; 1,000 by default
     * @return this
     */
    public Builder maxBatchEvents(int events) {
      maxBatchEvents = events;
      return this;
    }

    /**
     * Sets the size of one request with its framing. A larger event is sent alone.
     *
     * @param bytes 1 to 4 MiB; 4 MiB by default
     * @return this
     */
    public Builder maxBatchBytes(int bytes) {
      maxBatchBytes = bytes;
      return this;
    }

    /**
     * Sets the longest time for which the first event of a request waits for further ones.
     *
     * @param time not negative; 10 ms by default
     * @return this
     */
    public Builder linger(Duration time) {
      linger = time;
      return this;
    }

    /**
     * Sets the waits after failures, and after temporary rejections of events of a device.
     *
     * @param minWait wait after the first one, doubled with each further one in a row; 0.1 s by default
     * @param maxWait longest wait, unless the server asks for a longer one; 5 s by default
     * @return this
     */
    public Builder retryWaits(Duration minWait, Duration maxWait) {
      minRetryWait = minWait;
      maxRetryWait = maxWait;
      return this;
    }

    /**
     * Sets the time without any final answer after which the publisher ends with an error.
     *
     * @param time positive; 300 s by default
     * @return this
     */
    public Builder giveUpAfter(Duration time) {
      giveUpAfter = time;
      return this;
    }

    /**
     * Sets the time without an answer after which the stream is opened again.
     *
     * @param time positive; 60 s by default
     * @return this
     */
    public Builder answerTimeout(Duration time) {
      answerTimeout = time;
      return this;
    }

    /**
     * Returns the options.
     *
     * @return the options
     * @throws ConfigurationException if a value is out of its range
     */
    public PublisherOptions build() {
      return new PublisherOptions(this);
    }
  }
}
