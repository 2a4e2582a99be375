package com.meter.siem.client;

import com.google.protobuf.Any;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.meter.siem.v1.Event;
import com.meter.siem.v1.EventServiceGrpc;
import com.meter.siem.v1.GetRequest;
import com.meter.siem.v1.GetResponse;
import com.meter.siem.v1.IdsDetection;
import com.meter.siem.v1.PublishResponse;
import com.meter.siem.v1.PublishStreamRequest;
import com.meter.siem.v1.PublishStreamResponse;
import com.meter.siem.v1.SendTestRequest;
import com.meter.siem.v1.SendTestResponse;
import com.meter.siem.v1.SiemIntegrationServiceGrpc;
import com.meter.siem.v1.StreamStatusRequest;
import com.meter.siem.v1.StreamStatusResponse;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;

/** A server on loopback that answers as planned. Without a plan, calls are UNIMPLEMENTED, and PublishStream accepts. */
final class Fake implements AutoCloseable {
  /** Action of a call. */
  interface Answer {
    void to(StreamObserver<Message> observer);
  }

  private static final Context.Key<String> TOKEN = Context.key("authorization");

  final Queue<Answer> gets = new ConcurrentLinkedQueue<>();
  final Queue<Answer> tests = new ConcurrentLinkedQueue<>();
  final Queue<Answer> watches = new ConcurrentLinkedQueue<>();
  /** Of PublishStream: the answer to each request; its request_id is filled in. */
  final Queue<Answer> publishes = new ConcurrentLinkedQueue<>();

  final List<Message> requests = new CopyOnWriteArrayList<>();
  final List<String> authorizations = new CopyOnWriteArrayList<>();
  private final Server server;

  Fake() throws IOException {
    server =
        NettyServerBuilder.forAddress(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0))
            .addService(new Integrations())
            .addService(new Events())
            .intercept(new Notes())
            .build()
            .start();
  }

  int port() {
    return server.getPort();
  }

  String address() {
    return "127.0.0.1:" + port();
  }

  SiemClient.Builder client() {
    return SiemClient.builder(address())
        .timeout(Duration.ofSeconds(60))
        .retry(RetryOptions.of(Duration.ofMillis(10), Duration.ofMillis(100)));
  }

  <T extends Message> List<T> seen(Class<T> kind) {
    return requests.stream().filter(kind::isInstance).map(kind::cast).collect(java.util.stream.Collectors.toList());
  }

  @Override
  public void close() {
    try {
      server.shutdownNow().awaitTermination(10, TimeUnit.SECONDS);
    } catch (InterruptedException error) {
      Thread.currentThread().interrupt();
    }
  }

  static final GetRequest GET = GetRequest.newBuilder().setOrganizationId("acme").build();

  static Answer got() {
    GetResponse.Builder response = GetResponse.newBuilder();
    response.getIntegrationBuilder().setOrganizationId("acme");
    return message(response.build());
  }

  static Answer message(Message message) {
    return observer -> {
      observer.onNext(message);
      observer.onCompleted();
    };
  }

  /** Sends messages, and leaves the stream open. */
  static Answer open(Message... messages) {
    return observer -> List.of(messages).forEach(observer::onNext);
  }

  static Answer error(Status.Code code, String reason) {
    return error(code, reason, null);
  }

  static Answer error(Status.Code code, String reason, Duration retryDelay) {
    return observer -> observer.onError(exception(status(code, reason, retryDelay)));
  }

  static com.google.rpc.Status status(Status.Code code, String reason, Duration retryDelay, String... violations) {
    com.google.rpc.Status.Builder status =
        com.google.rpc.Status.newBuilder().setCode(code.value()).setMessage("planned");
    if (!reason.isEmpty()) {
      status.addDetails(Any.pack(ErrorInfo.newBuilder().setDomain("siem.v1").setReason(reason).build()));
    }
    if (retryDelay != null) {
      RetryInfo.Builder info = RetryInfo.newBuilder();
      info.getRetryDelayBuilder().setSeconds(retryDelay.getSeconds()).setNanos(retryDelay.getNano());
      status.addDetails(Any.pack(info.build()));
    }
    if (violations.length > 0) {
      BadRequest.Builder bad = BadRequest.newBuilder();
      for (String field : violations) {
        bad.addFieldViolationsBuilder().setField(field).setDescription(field + " is missing");
      }
      status.addDetails(Any.pack(bad.build()));
    }
    return status.build();
  }

  private static StatusRuntimeException exception(com.google.rpc.Status status) {
    Metadata trailers = new Metadata();
    trailers.put(Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER), status.toByteArray());
    return Status.fromCodeValue(status.getCode()).withDescription(status.getMessage()).asRuntimeException(trailers);
  }

  static Event event(int number) {
    return event(number, "device", "acme", 0);
  }

  /** Returns an event with a recognisable id. */
  static Event event(int number, String device, String organization, int size) {
    return Event.newBuilder()
        .setOrganizationId(organization)
        .setDeviceId(device)
        .setEventId(device + "-" + number)
        .setIdsDetection(
            IdsDetection.newBuilder().setSignature("detection " + number).setContextJson("x".repeat(size)))
        .build();
  }

  /** Waits for something that has no signal; fails after 30 s. */
  static void until(BooleanSupplier condition) throws InterruptedException {
    until(condition, 30);
  }

  /** Waits for something that has no signal; fails after a number of seconds. */
  static void until(BooleanSupplier condition, long seconds) throws InterruptedException {
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
    while (!condition.getAsBoolean()) {
      if (System.nanoTime() > deadline) {
        throw new AssertionError("waited for " + seconds + " s");
      }
      Thread.sleep(5);
    }
  }

  private <Q extends Message, R extends Message> void answer(Q request, StreamObserver<R> observer, Queue<Answer> plan) {
    requests.add(request);
    authorizations.add(TOKEN.get());
    Answer answer = plan.poll();
    if (answer == null) {
      observer.onError(Status.UNIMPLEMENTED.withDescription("no plan").asRuntimeException());
      return;
    }
    @SuppressWarnings("unchecked") // The plan has messages of the method.
    StreamObserver<Message> any = (StreamObserver<Message>) observer;
    answer.to(any);
  }

  private static final class Notes implements ServerInterceptor {
    @Override
    public <Q, R> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
      String token = headers.get(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER));
      Context context = Context.current().withValue(TOKEN, token == null ? "" : token);
      return io.grpc.Contexts.interceptCall(context, call, headers, next);
    }
  }

  private final class Integrations extends SiemIntegrationServiceGrpc.SiemIntegrationServiceImplBase {
    @Override
    public void get(GetRequest request, StreamObserver<GetResponse> observer) {
      answer(request, observer, gets);
    }

    @Override
    public void sendTest(SendTestRequest request, StreamObserver<SendTestResponse> observer) {
      answer(request, observer, tests);
    }

    @Override
    public void streamStatus(StreamStatusRequest request, StreamObserver<StreamStatusResponse> observer) {
      answer(request, observer, watches);
    }
  }

  private final class Events extends EventServiceGrpc.EventServiceImplBase {
    @Override
    public StreamObserver<PublishStreamRequest> publishStream(StreamObserver<PublishStreamResponse> observer) {
      Queue<Boolean> ended = new ArrayDeque<>();
      return new StreamObserver<>() {
        @Override
        public void onNext(PublishStreamRequest request) {
          requests.add(request);
          if (!ended.isEmpty()) {
            return;
          }
          Answer answer = publishes.poll();
          if (answer == null) {
            PublishResponse accepted = PublishResponse.newBuilder().setAccepted(request.getEventsCount()).build();
            answer = any -> any.onNext(PublishStreamResponse.newBuilder().setResult(accepted).build());
          }
          answer.to(
              new StreamObserver<>() {
                @Override
                public void onNext(Message message) {
                  PublishStreamResponse response = (PublishStreamResponse) message;
                  observer.onNext(response.toBuilder().setRequestId(request.getRequestId()).build());
                }

                @Override
                public void onError(Throwable error) {
                  ended.add(true);
                  observer.onError(error);
                }

                @Override
                public void onCompleted() {
                  ended.add(true);
                  observer.onCompleted();
                }
              });
        }

        @Override
        public void onError(Throwable error) {}

        @Override
        public void onCompleted() {
          if (ended.isEmpty()) {
            observer.onCompleted();
          }
        }
      };
    }
  }
}
