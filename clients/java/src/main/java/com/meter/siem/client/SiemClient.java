package com.meter.siem.client;

import com.meter.siem.v1.ConfigureRequest;
import com.meter.siem.v1.ConfigureResponse;
import com.meter.siem.v1.DeleteRequest;
import com.meter.siem.v1.DeleteResponse;
import com.meter.siem.v1.EventServiceGrpc;
import com.meter.siem.v1.GenerateExternalIdRequest;
import com.meter.siem.v1.GenerateExternalIdResponse;
import com.meter.siem.v1.GetOnboardingRequest;
import com.meter.siem.v1.GetOnboardingResponse;
import com.meter.siem.v1.GetRequest;
import com.meter.siem.v1.GetResponse;
import com.meter.siem.v1.ListAuditEntriesRequest;
import com.meter.siem.v1.ListAuditEntriesResponse;
import com.meter.siem.v1.ListRequest;
import com.meter.siem.v1.ListResponse;
import com.meter.siem.v1.PublishRequest;
import com.meter.siem.v1.PublishResponse;
import com.meter.siem.v1.SendTestRequest;
import com.meter.siem.v1.SendTestResponse;
import com.meter.siem.v1.SiemIntegrationServiceGrpc;
import io.grpc.Attributes;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptors;
import io.grpc.ClientStreamTracer;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Collection;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * A client of one server, or of several behind one address.
 *
 * <p>It may be used by several threads. The connection is opened at the first use and again after each loss. Each call
 * has one deadline over all its attempts, and throws {@link SiemException}; a closed client throws {@link
 * ClosedException}.
 */
public final class SiemClient implements AutoCloseable {
  /** The address that {@code siem-relay serve} and {@code siem-relay sandbox} listen on by default. */
  public static final String DEFAULT_ADDRESS = "http://127.0.0.1:50051";

  private static final Logger LOG = Logger.getLogger(SiemClient.class.getPackageName());
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
  private static final Duration DEFAULT_TIMEOUT = Duration.ofSeconds(30);
  private static final Duration DEFAULT_SILENCE_LIMIT = Duration.ofSeconds(90);

  /** A file may be replaced at any time; a new content is seen after this time. */
  private static final Duration FILE_REREAD = Duration.ofSeconds(60);

  /** Time to connect, with the handshakes of TLS and HTTP/2. */
  private static final long CONNECT_SECONDS = 20;

  private static final long CLOSE_SECONDS = 5;

  private final ManagedChannel channel;
  private final Tokens tokens;
  private final long timeout;
  private final RetryOptions retry;
  private final CallOptions options;
  // Written by one callback of the channel at a time.
  private volatile long stateChanges;
  private final CountDownLatch closed = new CountDownLatch(1);
  // Ends of watches and publishers; guarded by itself.
  private final Set<Runnable> open = new HashSet<>();

  private SiemClient(Builder builder) {
    Endpoint endpoint = new Endpoint(builder.address, builder.tls, builder.tokens != null);
    this.tokens = builder.tokens;
    this.timeout = Times.nanos("timeout", builder.timeout, false);
    this.retry = builder.retry;
    this.options = builder.gzip ? CallOptions.DEFAULT.withCompression("gzip") : CallOptions.DEFAULT;
    this.channel = endpoint.channel();
    limitConnecting();
  }

  /**
   * Returns a client, which connects at its first use.
   *
   * @param address {@code http://HOST:PORT}, {@code https://HOST:PORT}, or {@code HOST:PORT} for plaintext
   * @return the client
   * @throws ConfigurationException if the address cannot be used
   */
  public static SiemClient connect(String address) {
    return builder(address).connect();
  }

  /**
   * Returns a builder for a client with options.
   *
   * @param address {@code http://HOST:PORT}, {@code https://HOST:PORT}, or {@code HOST:PORT} (TLS if that is set, else
   *     plaintext)
   * @return the builder
   */
  public static Builder builder(String address) {
    return new Builder(address);
  }

  /** Ends all calls, watches and the connection. Close publishers before: their events would be unacknowledged. */
  @Override
  public void close() {
    closed.countDown();
    List<Runnable> ends;
    synchronized (open) {
      ends = List.copyOf(open);
      open.clear();
    }
    ends.forEach(Runnable::run);
    channel.shutdownNow();
    try {
      channel.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException error) {
      Thread.currentThread().interrupt();
    }
  }

  /**
   * Creates or replaces the integration of an organization. With an etag it is not sent again after a lost answer: a
   * second one would be refused although the first has succeeded.
   *
   * @param request the integration
   * @return the answer
   */
  public ConfigureResponse configure(ConfigureRequest request) {
    return configure(request, timeout);
  }

  /**
   * Creates or replaces the integration of an organization. With an etag it is not sent again after a lost answer: a
   * second one would be refused although the first has succeeded.
   *
   * @param request the integration
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public ConfigureResponse configure(ConfigureRequest request, Duration timeout) {
    return configure(request, Times.nanos("timeout", timeout, false));
  }

  private ConfigureResponse configure(ConfigureRequest request, long timeout) {
    return call(SiemIntegrationServiceGrpc.getConfigureMethod(), request, timeout, request.getEtag().isEmpty());
  }

  /**
   * Issues a new external ID to an organization. It is not sent again after a lost answer.
   *
   * @param request the organization
   * @return the answer
   */
  public GenerateExternalIdResponse generateExternalId(GenerateExternalIdRequest request) {
    return generateExternalId(request, timeout);
  }

  /**
   * Issues a new external ID to an organization. It is not sent again after a lost answer.
   *
   * @param request the organization
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public GenerateExternalIdResponse generateExternalId(GenerateExternalIdRequest request, Duration timeout) {
    return generateExternalId(request, Times.nanos("timeout", timeout, false));
  }

  private GenerateExternalIdResponse generateExternalId(GenerateExternalIdRequest request, long timeout) {
    return call(SiemIntegrationServiceGrpc.getGenerateExternalIdMethod(), request, timeout, false);
  }

  /**
   * Returns the documents that a customer applies in its AWS account.
   *
   * @param request stream, role and external ID
   * @return the answer
   */
  public GetOnboardingResponse getOnboarding(GetOnboardingRequest request) {
    return getOnboarding(request, timeout);
  }

  /**
   * Returns the documents that a customer applies in its AWS account.
   *
   * @param request stream, role and external ID
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public GetOnboardingResponse getOnboarding(GetOnboardingRequest request, Duration timeout) {
    return getOnboarding(request, Times.nanos("timeout", timeout, false));
  }

  private GetOnboardingResponse getOnboarding(GetOnboardingRequest request, long timeout) {
    return call(SiemIntegrationServiceGrpc.getGetOnboardingMethod(), request, timeout, true);
  }

  /**
   * Returns an integration with its status and counts.
   *
   * @param request the organization
   * @return the answer
   */
  public GetResponse get(GetRequest request) {
    return get(request, timeout);
  }

  /**
   * Returns an integration with its status and counts.
   *
   * @param request the organization
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public GetResponse get(GetRequest request, Duration timeout) {
    return get(request, Times.nanos("timeout", timeout, false));
  }

  private GetResponse get(GetRequest request, long timeout) {
    return call(SiemIntegrationServiceGrpc.getGetMethod(), request, timeout, true);
  }

  /**
   * Returns one page of the integrations of all organizations.
   *
   * @param request size and token of the page, and the statuses to return
   * @return the answer
   */
  public ListResponse list(ListRequest request) {
    return list(request, timeout);
  }

  /**
   * Returns one page of the integrations of all organizations.
   *
   * @param request size and token of the page, and the statuses to return
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public ListResponse list(ListRequest request, Duration timeout) {
    return list(request, Times.nanos("timeout", timeout, false));
  }

  private ListResponse list(ListRequest request, long timeout) {
    return call(SiemIntegrationServiceGrpc.getListMethod(), request, timeout, true);
  }

  /**
   * Removes an integration and its pending events. Without {@code allow_missing} it is not sent again after a lost
   * answer.
   *
   * @param request the organization
   * @return the answer
   */
  public DeleteResponse delete(DeleteRequest request) {
    return delete(request, timeout);
  }

  /**
   * Removes an integration and its pending events. Without {@code allow_missing} it is not sent again after a lost
   * answer.
   *
   * @param request the organization
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public DeleteResponse delete(DeleteRequest request, Duration timeout) {
    return delete(request, Times.nanos("timeout", timeout, false));
  }

  private DeleteResponse delete(DeleteRequest request, long timeout) {
    return call(SiemIntegrationServiceGrpc.getDeleteMethod(), request, timeout, request.getAllowMissing());
  }

  /**
   * Writes a test event. It is not sent again after a lost answer. A failed test is no error: the answer has the
   * verdict.
   *
   * @param request the organization
   * @return the answer
   */
  public SendTestResponse sendTest(SendTestRequest request) {
    return sendTest(request, timeout);
  }

  /**
   * Writes a test event. It is not sent again after a lost answer. A failed test is no error: the answer has the
   * verdict.
   *
   * @param request the organization
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public SendTestResponse sendTest(SendTestRequest request, Duration timeout) {
    return sendTest(request, Times.nanos("timeout", timeout, false));
  }

  private SendTestResponse sendTest(SendTestRequest request, long timeout) {
    return call(SiemIntegrationServiceGrpc.getSendTestMethod(), request, timeout, false);
  }

  /**
   * Returns one page of the audit, newest entries first.
   *
   * @param request organization and times, and size and token of the page
   * @return the answer
   */
  public ListAuditEntriesResponse listAuditEntries(ListAuditEntriesRequest request) {
    return listAuditEntries(request, timeout);
  }

  /**
   * Returns one page of the audit, newest entries first.
   *
   * @param request organization and times, and size and token of the page
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public ListAuditEntriesResponse listAuditEntries(ListAuditEntriesRequest request, Duration timeout) {
    return listAuditEntries(request, Times.nanos("timeout", timeout, false));
  }

  private ListAuditEntriesResponse listAuditEntries(ListAuditEntriesRequest request, long timeout) {
    return call(SiemIntegrationServiceGrpc.getListAuditEntriesMethod(), request, timeout, true);
  }

  /**
   * Publishes at most 1,000 events and 4 MiB in one call, which is sent again after failures. Temporary rejections are
   * returned like others; a {@link #publisher} sends those events again.
   *
   * @param request the events
   * @return the answer
   */
  public PublishResponse publish(PublishRequest request) {
    return publish(request, timeout);
  }

  /**
   * Publishes at most 1,000 events and 4 MiB in one call, which is sent again after failures. Temporary rejections are
   * returned like others; a {@link #publisher} sends those events again.
   *
   * @param request the events
   * @param timeout deadline over all attempts
   * @return the answer
   */
  public PublishResponse publish(PublishRequest request, Duration timeout) {
    return publish(request, Times.nanos("timeout", timeout, false));
  }

  private PublishResponse publish(PublishRequest request, long timeout) {
    return call(EventServiceGrpc.getPublishMethod(), request, timeout, true);
  }

  /**
   * Returns a publisher for a large number of events. Close it, for example by a {@code try} statement.
   *
   * @return the publisher
   * @throws ClosedException if the client is closed
   */
  public Publisher publisher() {
    return publisher(PublisherOptions.DEFAULT);
  }

  /**
   * Returns a publisher for a large number of events. Close it, for example by a {@code try} statement.
   *
   * @param options limits and waits
   * @return the publisher
   * @throws ClosedException if the client is closed
   */
  public Publisher publisher(PublisherOptions options) {
    return new Publisher(this, options);
  }

  /**
   * Returns a watch of all organizations.
   *
   * @return an endless iterator: a snapshot, then each change
   * @throws ClosedException if the client is closed
   */
  public StatusWatch watchStatus() {
    return watchStatus(List.of(), "");
  }

  /**
   * Returns a watch.
   *
   * @param organizationIds at most 1,000 organizations; none means all
   * @param resumeToken {@link StatusWatch#resumeToken} of an earlier watch, to continue after its last event; empty for
   *     a snapshot first
   * @return an endless iterator
   * @throws ClosedException if the client is closed
   */
  public StatusWatch watchStatus(Collection<String> organizationIds, String resumeToken) {
    return watchStatus(organizationIds, resumeToken, DEFAULT_SILENCE_LIMIT);
  }

  /**
   * Returns a watch.
   *
   * @param organizationIds at most 1,000 organizations; none means all
   * @param resumeToken {@link StatusWatch#resumeToken} of an earlier watch, to continue after its last event; empty for
   *     a snapshot first
   * @param silenceLimit time without a message after which the stream is opened again, 90 s by default; it must exceed
   *     the server's setting {@code heartbeat-seconds}
   * @return an endless iterator
   * @throws ClosedException if the client is closed
   */
  public StatusWatch watchStatus(Collection<String> organizationIds, String resumeToken, Duration silenceLimit) {
    return new StatusWatch(
        this, List.copyOf(organizationIds), resumeToken, Times.nanos("silenceLimit", silenceLimit, false));
  }

  /**
   * Makes a call, with as many attempts as its deadline and its kind allow.
   *
   * @param resend whether it may be sent twice although the first one may have taken effect
   */
  private <Q, R> R call(MethodDescriptor<Q, R> method, Q request, long timeout, boolean resend) {
    Attempts attempts = new Attempts(retry, System.nanoTime(), timeout, resend);
    while (true) {
      checkOpen(null);
      String token = "";
      SiemException error;
      try {
        token = authorize(attempts.left(System.nanoTime()));
        return attempt(method, request, token, attempts.left(System.nanoTime()));
      } catch (SiemException failure) {
        error = failure;
      }
      checkOpen(error);
      long wait = attempts.failed(error, System.nanoTime(), tokenCanChange());
      if (wait == Attempts.WITH_NEW_TOKEN) {
        tokenRefused(token);
        continue;
      }
      log("a call failed", wait, error);
      try {
        closed.await(wait, TimeUnit.NANOSECONDS);
      } catch (InterruptedException interrupt) {
        throw Errors.interrupted(interrupt);
      }
      checkOpen(error);
      reconnect();
    }
  }

  private <Q, R> R attempt(MethodDescriptor<Q, R> method, Q request, String token, long left) {
    Channel authorized = ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(headers(token)));
    Sent sent = new Sent();
    CallOptions once = options.withDeadlineAfter(left, TimeUnit.NANOSECONDS).withStreamTracerFactory(sent);
    try {
      return ClientCalls.blockingUnaryCall(authorized, method, once, request);
    } catch (StatusRuntimeException failure) {
      throw Errors.of(failure.getStatus(), failure.getTrailers(), !sent.sent);
    }
  }

  /** Notes whether a call got a connection, so that a server may have seen it. */
  private static final class Sent extends ClientStreamTracer.Factory {
    volatile boolean sent;

    @Override
    public ClientStreamTracer newClientStreamTracer(ClientStreamTracer.StreamInfo info, Metadata headers) {
      return new ClientStreamTracer() {
        @Override
        public void streamCreated(Attributes transport, Metadata headers) {
          sent = true;
        }
      };
    }
  }

  private void checkOpen(SiemException cause) {
    if (isClosed()) {
      throw new ClosedException("the client is closed", cause);
    }
  }

  /** Notes what must end with the client. */
  void register(Runnable end) {
    synchronized (open) {
      checkOpen(null);
      open.add(end);
    }
  }

  void unregister(Runnable end) {
    synchronized (open) {
      open.remove(end);
    }
  }

  boolean isClosed() {
    return closed.getCount() == 0;
  }

  RetryOptions retry() {
    return retry;
  }

  /** Returns a call without deadline, for a stream. */
  <Q, R> ClientCall<Q, R> newCall(MethodDescriptor<Q, R> method) {
    return channel.newCall(method, options);
  }

  /**
   * Returns the token to send; empty for none.
   *
   * @param left the longest wait in nanoseconds
   */
  String authorize(long left) {
    return tokens == null ? "" : tokens.get(left);
  }

  static Metadata headers(String token) {
    Metadata headers = new Metadata();
    if (!token.isEmpty()) {
      headers.put(AUTHORIZATION, "Bearer " + token);
    }
    return headers;
  }

  void tokenRefused(String token) {
    if (tokens != null) {
      tokens.refused(token);
    }
  }

  boolean tokenCanChange() {
    return tokens != null && tokens.canChange();
  }

  /**
   * Makes the next call connect and wait for the outcome, if the last attempt to connect has failed. By itself gRPC would
   * fail it at once, and wait for up to two minutes; the waits of this package are already over.
   */
  void reconnect() {
    if (channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE) {
      channel.enterIdle();
    }
  }

  /** Ends attempts to connect to a peer that accepts the connection and then is silent, for which gRPC has no limit. */
  private void limitConnecting() {
    ConnectivityState state = channel.getState(false);
    long change = ++stateChanges;
    if (state == ConnectivityState.CONNECTING) {
      CompletableFuture.delayedExecutor(CONNECT_SECONDS, TimeUnit.SECONDS)
          .execute(
              () -> {
                if (stateChanges == change && !isClosed()) {
                  channel.enterIdle();
                }
              });
    }
    if (state != ConnectivityState.SHUTDOWN) {
      channel.notifyWhenStateChanged(state, this::limitConnecting);
    }
  }

  ConnectivityState connectivity() {
    return channel.getState(false);
  }

  static void log(String what, long wait, Exception error) {
    LOG.log(Level.FINE, error, () -> what + ", next in " + Times.seconds(wait));
  }

  /** Builds a client with options. */
  public static final class Builder {
    private final String address;
    private Tls tls;
    private Tokens tokens;
    private Duration timeout = DEFAULT_TIMEOUT;
    private RetryOptions retry = RetryOptions.DEFAULT;
    private boolean gzip;

    private Builder(String address) {
      this.address = address;
    }

    /**
     * Sets authorities to trust, and the certificate of this client.
     *
     * @param options the transport security; {@code https} without it trusts the authorities of the Java runtime
     * @return this
     */
    public Builder tls(Tls options) {
      tls = options;
      return this;
    }

    /**
     * Sets a bearer token for good.
     *
     * @param token the token, without {@code Bearer}
     * @return this
     * @throws ConfigurationException if it has characters that a token cannot have
     */
    public Builder token(String token) {
      tokens = new Tokens(Token.of(token));
      return this;
    }

    /**
     * Sets a function that gives bearer tokens. It is called once for all calls, after 80 % of a token's lifetime, and
     * again, once, when the server has refused a token.
     *
     * @param function the function
     * @return this
     */
    public Builder token(TokenFunction function) {
      tokens = new Tokens(function, null);
      return this;
    }

    /**
     * Sets a file with a bearer token, such as a projected service account token of Kubernetes. It is read again every
     * minute, ahead of the token's expiry, and when the server has refused the token.
     *
     * @param file the file
     * @return this
     */
    public Builder tokenFile(Path file) {
      tokens = new Tokens(() -> Token.of(read(file)), FILE_REREAD);
      return this;
    }

    private static String read(Path file) throws IOException {
      return new String(Files.readAllBytes(file), StandardCharsets.US_ASCII).trim();
    }

    /**
     * Sets the deadline of calls that have none of their own.
     *
     * @param time time for all attempts of a call, positive; 30 s by default
     * @return this
     */
    public Builder timeout(Duration time) {
      timeout = time;
      return this;
    }

    /**
     * Sets the waits between attempts.
     *
     * @param options the waits; 0.1 s to 5 s by default
     * @return this
     */
    public Builder retry(RetryOptions options) {
      retry = options;
      return this;
    }

    /**
     * Sets whether requests are compressed.
     *
     * @param compress false by default
     * @return this
     */
    public Builder gzip(boolean compress) {
      gzip = compress;
      return this;
    }

    /**
     * Returns the client, which connects at its first use.
     *
     * @return the client
     * @throws ConfigurationException if an option cannot be used, or a token would be sent in clear to another machine
     */
    public SiemClient connect() {
      return new SiemClient(this);
    }
  }
}
