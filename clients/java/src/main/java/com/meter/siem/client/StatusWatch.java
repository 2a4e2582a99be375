package com.meter.siem.client;

import com.meter.siem.v1.SiemIntegrationServiceGrpc;
import com.meter.siem.v1.StreamStatusRequest;
import com.meter.siem.v1.StreamStatusResponse;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;

/**
 * An endless iterator of status events. A broken stream is opened again and continues after its last message.
 *
 * <p>Iterate it in one thread. {@link #close} may be called by any, and ends the iteration, as does {@link
 * SiemClient#close}.
 */
public final class StatusWatch implements Iterator<StatusEvent>, AutoCloseable {
  /** Messages that are received ahead. */
  private static final int PREFETCH = 16;

  private final SiemClient client;
  private final WatchState state;
  private final long silenceLimit;
  private final Runnable stop = this::close;

  private final ReentrantLock lock = new ReentrantLock();
  private final Condition changed = lock.newCondition();
  // Guarded by the lock.
  private boolean stopped;
  private Stream stream;

  // Of the iterating thread.
  private StatusEvent next;
  private volatile String resumeToken;

  StatusWatch(SiemClient client, List<String> organizationIds, String resumeToken, long silenceLimit) {
    this.client = client;
    this.state = new WatchState(organizationIds, resumeToken, client.retry());
    this.silenceLimit = silenceLimit;
    this.resumeToken = resumeToken;
    client.register(stop);
  }

  /**
   * Returns the token that continues after the last returned event, in another process too.
   *
   * @return the token; empty before the first event
   */
  public String resumeToken() {
    return resumeToken;
  }

  /**
   * Waits for the next event.
   *
   * @return false once the watch or its client is closed
   * @throws SiemException if the server refuses the stream, for example with {@code PERMISSION_DENIED}; the watch is
   *     then closed
   */
  @Override
  public boolean hasNext() {
    while (next == null) {
      String token = "";
      SiemException error;
      try {
        Stream current = current();
        if (current == null) {
          token = client.authorize(silenceLimit);
          open(token);
          continue;
        }
        token = current.token;
        StreamStatusResponse message = current.take(silenceLimit);
        StatusEvent event = state.received(message);
        if (event == null) {
          resumeToken = state.resumeToken();
        }
        next = event;
        continue;
      } catch (Ended ended) {
        return false;
      } catch (SiemException failure) {
        error = failure;
      }
      if (!recover(error, token)) {
        return false;
      }
    }
    return true;
  }

  /**
   * Waits for the next event.
   *
   * @return the event
   * @throws NoSuchElementException if the watch or its client is closed
   * @throws SiemException as {@link #hasNext} does
   */
  @Override
  public StatusEvent next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the watch is closed");
    }
    StatusEvent event = next;
    next = null;
    resumeToken = state.resumeToken();
    return event;
  }

  /** Ends the stream. */
  @Override
  public void close() {
    client.unregister(stop);
    Stream open;
    lock.lock();
    try {
      stopped = true;
      open = stream;
      stream = null;
      changed.signalAll();
    } finally {
      lock.unlock();
    }
    if (open != null) {
      open.call.cancel("the watch is closed", null);
    }
  }

  /** Waits after a failure. Returns false if the watch was closed. */
  private boolean recover(SiemException error, String token) {
    Stream broken;
    lock.lock();
    try {
      if (stopped) {
        return false;
      }
      broken = stream;
      stream = null;
    } finally {
      lock.unlock();
    }
    if (broken != null) {
      broken.call.cancel("the stream is broken", null);
    }
    if (Thread.currentThread().isInterrupted()) {
      close();
      throw error;
    }
    long wait;
    try {
      wait = state.failed(error, client.tokenCanChange());
    } catch (SiemException refused) {
      close();
      throw refused;
    }
    if (wait == WatchState.WITH_NEW_TOKEN) {
      client.tokenRefused(token);
      return true;
    }
    SiemClient.log("the status stream broke", wait, error);
    try {
      boolean open = pause(wait);
      client.reconnect();
      return open;
    } catch (InterruptedException interrupt) {
      close();
      throw Errors.interrupted(interrupt);
    }
  }

  private boolean pause(long nanos) throws InterruptedException {
    lock.lock();
    try {
      while (!stopped && nanos > 0) {
        nanos = changed.awaitNanos(nanos);
      }
      return !stopped;
    } finally {
      lock.unlock();
    }
  }

  private Stream current() throws Ended {
    lock.lock();
    try {
      if (stopped) {
        throw new Ended();
      }
      return stream;
    } finally {
      lock.unlock();
    }
  }

  private void open(String token) {
    ClientCall<StreamStatusRequest, StreamStatusResponse> call =
        client.newCall(SiemIntegrationServiceGrpc.getStreamStatusMethod());
    Stream opened = new Stream(call, token);
    lock.lock();
    try {
      if (stopped) {
        return;
      }
      stream = opened;
    } finally {
      lock.unlock();
    }
    call.start(opened, SiemClient.headers(token));
    call.request(PREFETCH);
    call.sendMessage(state.request());
    call.halfClose();
  }

  /** The watch was closed. */
  private static final class Ended extends Exception {
    private static final long serialVersionUID = 1;
  }

  /** One stream; its messages are taken one by one. */
  private final class Stream extends ClientCall.Listener<StreamStatusResponse> {
    final ClientCall<StreamStatusRequest, StreamStatusResponse> call;
    final String token;
    // Guarded by the lock.
    private final ArrayDeque<StreamStatusResponse> messages = new ArrayDeque<>();
    private SiemException end;

    Stream(ClientCall<StreamStatusRequest, StreamStatusResponse> call, String token) {
      this.call = call;
      this.token = token;
    }

    /**
     * Waits for the next message. The time in which the caller has an event does not count as silence.
     *
     * @throws SiemException if the stream has ended, or was silent for too long
     */
    StreamStatusResponse take(long limit) throws Ended {
      StreamStatusResponse message;
      lock.lock();
      try {
        while (messages.isEmpty()) {
          if (stopped) {
            throw new Ended();
          }
          if (end != null) {
            throw end;
          }
          if (limit <= 0) {
            throw new SiemException(Status.Code.UNAVAILABLE, "the server is silent");
          }
          limit = changed.awaitNanos(limit);
        }
        if (stopped) {
          throw new Ended();
        }
        message = messages.remove();
      } catch (InterruptedException error) {
        throw Errors.interrupted(error);
      } finally {
        lock.unlock();
      }
      call.request(1);
      return message;
    }

    @Override
    public void onMessage(StreamStatusResponse message) {
      lock.lock();
      try {
        messages.add(message);
        changed.signalAll();
      } finally {
        lock.unlock();
      }
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      lock.lock();
      try {
        end =
            status.isOk()
                ? new SiemException(Status.Code.UNAVAILABLE, "the server ended the stream")
                : Errors.of(status, trailers, false);
        changed.signalAll();
      } finally {
        lock.unlock();
      }
    }
  }
}
