package com.meter.siem.client;

import com.meter.siem.v1.Event;
import com.meter.siem.v1.EventServiceGrpc;
import com.meter.siem.v1.PublishStreamResponse;
import io.grpc.ClientCall;
import io.grpc.KnownLength;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.logging.Level;
import java.util.logging.Logger;
import java.util.stream.Collectors;

/**
 * Publishes events over PublishStream, and opens the stream again whenever it breaks.
 *
 * <p>Unanswered events are kept and sent again, unchanged and so under the same CloudEvents ids: none is lost, and
 * consumers drop those that were accepted twice. Events of a device keep their order. A temporary rejection
 * (OVERLOADED, RATE_LIMITED) defers the event and later ones of its device; other devices go on.
 *
 * <p>It may be used by several threads. {@link #close} waits for all answers.
 */
public final class Publisher implements AutoCloseable {
  private static final Logger LOG = Logger.getLogger(Publisher.class.getPackageName());
  private static final Duration DEFAULT_CLOSE_TIMEOUT = Duration.ofSeconds(30);
  private static final Duration FOR_EVER = Duration.ofDays(3650);

  /** Milliseconds that the server has to end a stream whose requests are all answered. */
  private static final long END_MILLIS = 1_000;

  /** PublishStream with requests that are encoded already. */
  private static final MethodDescriptor<byte[], PublishStreamResponse> METHOD =
      EventServiceGrpc.getPublishStreamMethod().toBuilder(
              new Encoded(), EventServiceGrpc.getPublishStreamMethod().getResponseMarshaller())
          .build();

  private final SiemClient client;
  private final long connectTimeout;
  private final Runnable clientClosed = this::clientClosed;

  // Guards the core and everything below.
  private final ReentrantLock lock = new ReentrantLock();
  private final Condition changed = lock.newCondition();
  private final PublishCore core;
  private Thread thread;
  private boolean closing;
  private Throwable failure;
  // Order of the oldest event whose answer is being handed over.
  private long resolving = Long.MAX_VALUE;

  Publisher(SiemClient client, PublisherOptions options) {
    this.client = client;
    this.core = new PublishCore(options);
    this.connectTimeout = options.answerTimeout;
    client.register(clientClosed);
  }

  /**
   * Returns the counts so far.
   *
   * @return a copy
   */
  public PublisherStats stats() {
    lock.lock();
    try {
      return new PublisherStats(core.stats);
    } finally {
      lock.unlock();
    }
  }

  /**
   * Queues an event. Waits while too many are unanswered.
   *
   * @param event the event
   * @return a future with the final answer to the event. It may be dropped. What depends on it runs in a thread of gRPC,
   *     before later answers: use the methods with {@code Async} for what takes long or waits, also for {@code send}
   * @throws ClosedException if the publisher is closed or has ended; its cause has the reason
   */
  public CompletableFuture<PublishResult> send(Event event) {
    try {
      return send(event, FOR_EVER);
    } catch (TimeoutException error) {
      // Ten years have passed.
      throw new IllegalStateException(error);
    }
  }

  /**
   * Queues an event. Waits while too many are unanswered.
   *
   * @param event the event
   * @param timeout the longest wait; zero for none
   * @return a future, as of {@link #send(Event)}
   * @throws TimeoutException if there was no capacity in time; the event was not queued
   * @throws ClosedException if the publisher is closed or has ended; its cause has the reason
   */
  public CompletableFuture<PublishResult> send(Event event, Duration timeout) throws TimeoutException {
    PublishCore.Item item = new PublishCore.Item(event);
    long left = Times.nanos("timeout", timeout, true);
    lock.lock();
    try {
      while (!core.hasCapacity(item.weight())) {
        checkOpen();
        if (left <= 0) {
          throw new TimeoutException("no capacity for the event within " + timeout);
        }
        if (core.lingers()) {
          // They would be waited for in vain.
          core.flush();
          changed.signalAll();
        }
        left = changed.awaitNanos(left);
      }
      checkOpen();
      boolean isDue = core.add(item, System.nanoTime());
      if (thread == null) {
        thread = Threads.start("siem-client-publisher", this::run);
      } else if (isDue) {
        changed.signalAll();
      }
      return item.future;
    } catch (InterruptedException error) {
      throw Errors.interrupted(error);
    } finally {
      lock.unlock();
    }
  }

  /**
   * Waits until every event that was sent before has its final answer.
   *
   * @throws UnacknowledgedException if the publisher has ended before that
   */
  public void flush() {
    flush(FOR_EVER);
  }

  /**
   * Waits until every event that was sent before has its final answer.
   *
   * @param timeout the longest wait
   * @throws UnacknowledgedException if some have none; the publisher continues, unless it has ended
   */
  public void flush(Duration timeout) {
    long left = Times.nanos("timeout", timeout, true);
    lock.lock();
    try {
      long last = core.flush();
      changed.signalAll();
      while (Math.min(core.oldest(), resolving) <= last) {
        if (failure != null && core.oldest() <= last) {
          throw unacknowledged(failure.getMessage());
        }
        if (left <= 0) {
          throw unacknowledged("not flushed within " + timeout);
        }
        left = changed.awaitNanos(left);
      }
    } catch (InterruptedException error) {
      throw Errors.interrupted(error);
    } finally {
      lock.unlock();
    }
  }

  /**
   * Flushes and ends the publisher, within 30 s.
   *
   * @throws UnacknowledgedException if some events have no final answer; their futures have the same error
   */
  @Override
  public void close() {
    close(DEFAULT_CLOSE_TIMEOUT);
  }

  /**
   * Flushes and ends the publisher. A second call does nothing.
   *
   * @param timeout the longest wait
   * @throws UnacknowledgedException if some events have no final answer; their futures have the same error
   */
  public void close(Duration timeout) {
    long left = Times.nanos("timeout", timeout, true);
    client.unregister(clientClosed);
    UnacknowledgedException error = null;
    List<PublishCore.Item> items = List.of();
    Thread running;
    lock.lock();
    try {
      if (closing) {
        return;
      }
      closing = true;
      core.flush();
      changed.signalAll();
      boolean interrupted = false;
      while (failure == null && (!core.isDone() || resolving != Long.MAX_VALUE) && left > 0 && !interrupted) {
        try {
          left = changed.awaitNanos(left);
        } catch (InterruptedException interrupt) {
          interrupted = true;
          Thread.currentThread().interrupt();
        }
      }
      if (!core.isDone()) {
        String problem = interrupted ? "interrupted while closing" : "not closed within " + timeout;
        error = unacknowledged(failure == null ? problem : failure.getMessage());
        items = core.unanswered();
        if (failure == null) {
          failure = error;
        }
      }
      changed.signalAll();
      running = thread;
    } finally {
      lock.unlock();
    }
    fail(items, error);
    if (running != null && running != Thread.currentThread()) {
      try {
        running.join(2 * END_MILLIS);
      } catch (InterruptedException interrupt) {
        Thread.currentThread().interrupt();
      }
    }
    if (error != null) {
      throw error;
    }
  }

  private void clientClosed() {
    end(new ClosedException("the client is closed", null));
  }

  /** Ends the publisher with a failure. */
  private void end(Throwable error) {
    List<PublishCore.Item> items;
    lock.lock();
    try {
      if (failure == null) {
        failure = error;
      }
      items = core.unanswered();
      changed.signalAll();
    } finally {
      lock.unlock();
    }
    client.unregister(clientClosed);
    fail(items, error);
  }

  private void checkOpen() {
    if (failure != null) {
      throw new ClosedException("the publisher has ended: " + failure.getMessage(), failure);
    }
    if (closing) {
      throw new ClosedException("the publisher is closed", null);
    }
  }

  private UnacknowledgedException unacknowledged(String problem) {
    List<Event> events = core.unanswered().stream().map(PublishCore.Item::event).collect(Collectors.toList());
    return new UnacknowledgedException(problem, events, failure);
  }

  private static void fail(List<PublishCore.Item> items, Throwable error) {
    items.forEach(item -> item.future.completeExceptionally(error));
  }

  private boolean isOver() {
    return failure != null || (closing && core.isDone());
  }

  /**
   * Hands answers to the callers, before {@code flush} returns. Not under the lock, since what depends on a future may
   * wait for a thread that sends.
   */
  private void resolve(List<PublishCore.Result> results) {
    results.forEach(each -> each.item.future.complete(each.result));
    lock.lock();
    try {
      resolving = Long.MAX_VALUE;
      changed.signalAll();
    } finally {
      lock.unlock();
    }
  }

  private void resolving(List<PublishCore.Result> results) {
    resolving = results.stream().mapToLong(each -> each.item.order).min().orElse(Long.MAX_VALUE);
  }

  /** Runs streams until the publisher is closed or fails; the body of its thread. */
  private void run() {
    try {
      while (awaitEvents()) {
        String token = "";
        SiemException error;
        try {
          token = client.authorize(Tokens.STREAM_NANOS);
          error = new Stream().run(token);
        } catch (SiemException refused) {
          error = refused;
        }
        if (!recover(error, token)) {
          return;
        }
      }
    } catch (Throwable error) {
      // A defect must reach the callers, who would wait for ever.
      end(error);
    }
  }

  /** Returns false once the publisher is over. No stream is opened before there is something to send. */
  private boolean awaitEvents() throws InterruptedException {
    lock.lock();
    try {
      while (core.isDone() && !isOver()) {
        changed.await();
      }
      return !isOver();
    } finally {
      lock.unlock();
    }
  }

  /** Waits before the next stream. Returns false if there is none. */
  private boolean recover(SiemException error, String token) throws InterruptedException {
    List<PublishCore.Result> results = new ArrayList<>();
    boolean idle;
    long wait;
    lock.lock();
    try {
      if (isOver()) {
        return false;
      }
      idle = core.isDone();
      wait = core.broke(error, System.nanoTime(), client.tokenCanChange(), results);
      resolving(results);
      changed.signalAll();
    } finally {
      lock.unlock();
    }
    resolve(results);
    if (wait == PublishCore.WITH_NEW_TOKEN) {
      client.tokenRefused(token);
      return true;
    }
    if (!idle) {
      LOG.log(Level.WARNING, "the publish stream broke, next in {0}: {1}", new Object[] {
        Times.seconds(wait), error.getMessage()
      });
    }
    pause(wait);
    client.reconnect();
    return true;
  }

  private void pause(long nanos) throws InterruptedException {
    lock.lock();
    try {
      while (!isOver() && nanos > 0) {
        nanos = changed.awaitNanos(nanos);
      }
    } finally {
      lock.unlock();
    }
  }

  /** One stream: the publisher's thread writes, and threads of gRPC read. */
  private final class Stream extends ClientCall.Listener<PublishStreamResponse> {
    private final ClientCall<byte[], PublishStreamResponse> call = client.newCall(METHOD);
    // Guarded by the publisher's lock.
    private SiemException end;
    private boolean closed;
    // Until the stream is there.
    private final long waitingSince = System.nanoTime();
    private boolean connected;

    /** Runs until the stream ends, for whatever reason. Returns that. */
    SiemException run(String token) throws InterruptedException {
      call.start(this, SiemClient.headers(token));
      call.request(2);
      try {
        byte[] request;
        while ((request = nextRequest()) != null) {
          call.sendMessage(request);
        }
        if (!isFailing()) {
          call.halfClose();
        }
      } catch (IllegalStateException afterEnd) {
        // gRPC refuses messages on a call that has just ended; the listener has its status.
      }
      return await();
    }

    /** Waits for the next request; null once the stream has ended, or is to end. */
    private byte[] nextRequest() throws InterruptedException {
      lock.lock();
      try {
        while (true) {
          if (end != null || isOver()) {
            return null;
          }
          long now = System.nanoTime();
          if (core.isOverdue(now)) {
            end = new SiemException(Status.Code.DEADLINE_EXCEEDED, "the server does not answer");
            return null;
          }
          // Not more than gRPC can write, so that a slow connection does not fill the memory.
          boolean ready = call.isReady();
          byte[] request = ready ? core.nextRequest(now) : null;
          if (request != null) {
            return request;
          }
          connected |= ready;
          long left = connectTimeout - (now - waitingSince);
          if (ready) {
            left = core.untilWakeup(now);
          } else if (connected) {
            left = core.untilOverdue(now);
          } else if (left <= 0) {
            end = new SiemException(Status.Code.UNAVAILABLE, "there is no connection");
            return null;
          }
          changed.awaitNanos(Math.max(left, 1_000_000));
        }
      } finally {
        lock.unlock();
      }
    }

    /** Ends the call, and waits until no listener runs any more. */
    private SiemException await() throws InterruptedException {
      long left = isFailing() ? 0 : TimeUnit.MILLISECONDS.toNanos(END_MILLIS);
      boolean cancelled = false;
      lock.lock();
      try {
        while (!closed) {
          if (!cancelled && left <= 0) {
            cancelled = true;
            // Its listener may run in this thread, which may hold the lock.
            call.cancel("the stream is over", null);
          } else if (cancelled) {
            changed.await();
          } else {
            left = changed.awaitNanos(left);
          }
        }
        return end;
      } finally {
        lock.unlock();
      }
    }

    private boolean isFailing() {
      lock.lock();
      try {
        return end != null || failure != null;
      } finally {
        lock.unlock();
      }
    }

    @Override
    public void onReady() {
      signal();
    }

    @Override
    public void onMessage(PublishStreamResponse answer) {
      List<PublishCore.Result> results = List.of();
      lock.lock();
      try {
        if (end == null) {
          results = core.answered(answer, System.nanoTime());
          resolving(results);
        }
      } catch (PublishCore.Broken broken) {
        end = broken.error;
      } finally {
        lock.unlock();
      }
      resolve(results);
      call.request(1);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      lock.lock();
      try {
        closed = true;
        if (end == null) {
          end =
              status.isOk()
                  ? new SiemException(Status.Code.UNAVAILABLE, "the server ended the stream")
                  : Errors.of(status, trailers, false);
        }
        changed.signalAll();
      } finally {
        lock.unlock();
      }
    }

    private void signal() {
      lock.lock();
      try {
        changed.signalAll();
      } finally {
        lock.unlock();
      }
    }
  }

  /** Hands encoded requests on. */
  private static final class Encoded implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] request) {
      return new KnownSize(request);
    }

    @Override
    public byte[] parse(InputStream stream) {
      throw new UnsupportedOperationException("requests are only sent");
    }
  }

  private static final class KnownSize extends ByteArrayInputStream implements KnownLength {
    KnownSize(byte[] request) {
      super(request);
    }
  }
}
