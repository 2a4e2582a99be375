package com.meter.siem.client;

import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;

/** Bearer tokens: kept while they are valid, fetched ahead of their expiry, once for all calls. */
final class Tokens {
  private final TokenState state;
  private final TokenFunction function;
  private final ReentrantLock lock = new ReentrantLock();
  private final Condition changed = lock.newCondition();
  private boolean fetching;

  /** Tokens of a function, which runs in a thread of its own, so that deadlines hold. */
  Tokens(TokenFunction function, Duration reread) {
    this.state = new TokenState(reread);
    this.function = function;
  }

  /**
   * One token for good.
   *
   * @throws ConfigurationException if it cannot be sent
   */
  Tokens(Token token) {
    this(null, null);
    try {
      state.fixed(TokenState.checked(token));
    } catch (IllegalArgumentException error) {
      throw new ConfigurationException("token: " + error.getMessage());
    }
  }

  /** Returns whether fetching again can give another token. */
  boolean canChange() {
    return function != null;
  }

  /**
   * Returns the token, and fetches it where that is needed.
   *
   * @param timeout the longest wait in nanoseconds
   * @throws SiemException UNAVAILABLE if it could not be fetched in time
   */
  String get(long timeout) {
    long left = timeout;
    lock.lock();
    try {
      while (true) {
        if (function != null && !fetching && state.wantsFetch(System.currentTimeMillis())) {
          fetching = true;
          Threads.start("siem-client-token", this::fetch);
        }
        String value = state.usable(System.currentTimeMillis());
        if (value != null) {
          return value;
        }
        if (!fetching) {
          throw unfetched(state.error());
        }
        if (left <= 0) {
          throw unfetched(null);
        }
        left = changed.awaitNanos(left);
      }
    } catch (InterruptedException error) {
      throw Errors.interrupted(error);
    } finally {
      lock.unlock();
    }
  }

  /** Drops a token that the server refused. */
  void refused(String value) {
    if (function == null) {
      return;
    }
    lock.lock();
    try {
      state.refused(value);
    } finally {
      lock.unlock();
    }
  }

  private void fetch() {
    Token token = null;
    Exception failure = null;
    try {
      token = TokenState.checked(function.fetch());
    } catch (Exception error) {
      failure = error;
    } catch (Throwable error) {
      failure = new IllegalStateException(error.toString(), error);
    }
    lock.lock();
    try {
      if (failure == null) {
        state.fetched(token, System.currentTimeMillis());
      } else {
        state.failed(failure, System.currentTimeMillis());
      }
      fetching = false;
      changed.signalAll();
    } finally {
      lock.unlock();
    }
  }

  /** Returns the error of a call without token, which no server has seen. */
  private static SiemException unfetched(Exception error) {
    String problem = error == null ? " in time" : ": " + error;
    return new SiemException(
        Status.Code.UNAVAILABLE,
        "the token could not be fetched" + problem,
        "",
        List.of(),
        null,
        true,
        1,
        error);
  }

  /** Nanoseconds for which a stream waits for its token. */
  static final long STREAM_NANOS = TimeUnit.SECONDS.toNanos(30);
}
