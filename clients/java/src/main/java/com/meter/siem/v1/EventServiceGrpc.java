package com.meter.siem.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Accepts events and stores them durably until they are delivered.
 * A message may have 8 MiB and may be compressed by gzip (`grpc-encoding`); every limit
 * applies to the decompressed size. See ErrorReason for errors and their retry delays.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class EventServiceGrpc {

  private EventServiceGrpc() {}

  public static final java.lang.String SERVICE_NAME = "siem.v1.EventService";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.PublishRequest,
      com.meter.siem.v1.PublishResponse> getPublishMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Publish",
      requestType = com.meter.siem.v1.PublishRequest.class,
      responseType = com.meter.siem.v1.PublishResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.PublishRequest,
      com.meter.siem.v1.PublishResponse> getPublishMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.PublishRequest, com.meter.siem.v1.PublishResponse> getPublishMethod;
    if ((getPublishMethod = EventServiceGrpc.getPublishMethod) == null) {
      synchronized (EventServiceGrpc.class) {
        if ((getPublishMethod = EventServiceGrpc.getPublishMethod) == null) {
          EventServiceGrpc.getPublishMethod = getPublishMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.PublishRequest, com.meter.siem.v1.PublishResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Publish"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.PublishRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.PublishResponse.getDefaultInstance()))
              .setSchemaDescriptor(new EventServiceMethodDescriptorSupplier("Publish"))
              .build();
        }
      }
    }
    return getPublishMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.PublishStreamRequest,
      com.meter.siem.v1.PublishStreamResponse> getPublishStreamMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "PublishStream",
      requestType = com.meter.siem.v1.PublishStreamRequest.class,
      responseType = com.meter.siem.v1.PublishStreamResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.PublishStreamRequest,
      com.meter.siem.v1.PublishStreamResponse> getPublishStreamMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.PublishStreamRequest, com.meter.siem.v1.PublishStreamResponse> getPublishStreamMethod;
    if ((getPublishStreamMethod = EventServiceGrpc.getPublishStreamMethod) == null) {
      synchronized (EventServiceGrpc.class) {
        if ((getPublishStreamMethod = EventServiceGrpc.getPublishStreamMethod) == null) {
          EventServiceGrpc.getPublishStreamMethod = getPublishStreamMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.PublishStreamRequest, com.meter.siem.v1.PublishStreamResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "PublishStream"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.PublishStreamRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.PublishStreamResponse.getDefaultInstance()))
              .setSchemaDescriptor(new EventServiceMethodDescriptorSupplier("PublishStream"))
              .build();
        }
      }
    }
    return getPublishStreamMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static EventServiceStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<EventServiceStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<EventServiceStub>() {
        @java.lang.Override
        public EventServiceStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new EventServiceStub(channel, callOptions);
        }
      };
    return EventServiceStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static EventServiceBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<EventServiceBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<EventServiceBlockingStub>() {
        @java.lang.Override
        public EventServiceBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new EventServiceBlockingStub(channel, callOptions);
        }
      };
    return EventServiceBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static EventServiceFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<EventServiceFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<EventServiceFutureStub>() {
        @java.lang.Override
        public EventServiceFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new EventServiceFutureStub(channel, callOptions);
        }
      };
    return EventServiceFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Accepts events and stores them durably until they are delivered.
   * A message may have 8 MiB and may be compressed by gzip (`grpc-encoding`); every limit
   * applies to the decompressed size. See ErrorReason for errors and their retry delays.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Publish stores events and answers once all accepted ones are durable. A request has at most
     * 1,000 events and 4 MiB. An invalid event is rejected alone; the others are accepted.
     * If it fails with a reason of ErrorReason other than OUTCOME_UNKNOWN, nothing of the request
     * was accepted. If it fails with OUTCOME_UNKNOWN or without a reason, for example because the
     * connection is lost, some or all of the events may have been accepted. Send them again
     * unchanged: they get the same CloudEvents ids, by which consumers drop duplicates.
     * </pre>
     */
    default void publish(com.meter.siem.v1.PublishRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.PublishResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getPublishMethod(), responseObserver);
    }

    /**
     * <pre>
     * PublishStream is Publish over one stream with up to 64 requests in flight. Responses arrive
     * in the order of the requests.
     * </pre>
     */
    default io.grpc.stub.StreamObserver<com.meter.siem.v1.PublishStreamRequest> publishStream(
        io.grpc.stub.StreamObserver<com.meter.siem.v1.PublishStreamResponse> responseObserver) {
      return io.grpc.stub.ServerCalls.asyncUnimplementedStreamingCall(getPublishStreamMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service EventService.
   * <pre>
   * Accepts events and stores them durably until they are delivered.
   * A message may have 8 MiB and may be compressed by gzip (`grpc-encoding`); every limit
   * applies to the decompressed size. See ErrorReason for errors and their retry delays.
   * </pre>
   */
  public static abstract class EventServiceImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return EventServiceGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service EventService.
   * <pre>
   * Accepts events and stores them durably until they are delivered.
   * A message may have 8 MiB and may be compressed by gzip (`grpc-encoding`); every limit
   * applies to the decompressed size. See ErrorReason for errors and their retry delays.
   * </pre>
   */
  public static final class EventServiceStub
      extends io.grpc.stub.AbstractAsyncStub<EventServiceStub> {
    private EventServiceStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected EventServiceStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new EventServiceStub(channel, callOptions);
    }

    /**
     * <pre>
     * Publish stores events and answers once all accepted ones are durable. A request has at most
     * 1,000 events and 4 MiB. An invalid event is rejected alone; the others are accepted.
     * If it fails with a reason of ErrorReason other than OUTCOME_UNKNOWN, nothing of the request
     * was accepted. If it fails with OUTCOME_UNKNOWN or without a reason, for example because the
     * connection is lost, some or all of the events may have been accepted. Send them again
     * unchanged: they get the same CloudEvents ids, by which consumers drop duplicates.
     * </pre>
     */
    public void publish(com.meter.siem.v1.PublishRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.PublishResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getPublishMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * PublishStream is Publish over one stream with up to 64 requests in flight. Responses arrive
     * in the order of the requests.
     * </pre>
     */
    public io.grpc.stub.StreamObserver<com.meter.siem.v1.PublishStreamRequest> publishStream(
        io.grpc.stub.StreamObserver<com.meter.siem.v1.PublishStreamResponse> responseObserver) {
      return io.grpc.stub.ClientCalls.asyncBidiStreamingCall(
          getChannel().newCall(getPublishStreamMethod(), getCallOptions()), responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service EventService.
   * <pre>
   * Accepts events and stores them durably until they are delivered.
   * A message may have 8 MiB and may be compressed by gzip (`grpc-encoding`); every limit
   * applies to the decompressed size. See ErrorReason for errors and their retry delays.
   * </pre>
   */
  public static final class EventServiceBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<EventServiceBlockingStub> {
    private EventServiceBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected EventServiceBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new EventServiceBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Publish stores events and answers once all accepted ones are durable. A request has at most
     * 1,000 events and 4 MiB. An invalid event is rejected alone; the others are accepted.
     * If it fails with a reason of ErrorReason other than OUTCOME_UNKNOWN, nothing of the request
     * was accepted. If it fails with OUTCOME_UNKNOWN or without a reason, for example because the
     * connection is lost, some or all of the events may have been accepted. Send them again
     * unchanged: they get the same CloudEvents ids, by which consumers drop duplicates.
     * </pre>
     */
    public com.meter.siem.v1.PublishResponse publish(com.meter.siem.v1.PublishRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getPublishMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service EventService.
   * <pre>
   * Accepts events and stores them durably until they are delivered.
   * A message may have 8 MiB and may be compressed by gzip (`grpc-encoding`); every limit
   * applies to the decompressed size. See ErrorReason for errors and their retry delays.
   * </pre>
   */
  public static final class EventServiceFutureStub
      extends io.grpc.stub.AbstractFutureStub<EventServiceFutureStub> {
    private EventServiceFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected EventServiceFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new EventServiceFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Publish stores events and answers once all accepted ones are durable. A request has at most
     * 1,000 events and 4 MiB. An invalid event is rejected alone; the others are accepted.
     * If it fails with a reason of ErrorReason other than OUTCOME_UNKNOWN, nothing of the request
     * was accepted. If it fails with OUTCOME_UNKNOWN or without a reason, for example because the
     * connection is lost, some or all of the events may have been accepted. Send them again
     * unchanged: they get the same CloudEvents ids, by which consumers drop duplicates.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.PublishResponse> publish(
        com.meter.siem.v1.PublishRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getPublishMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_PUBLISH = 0;
  private static final int METHODID_PUBLISH_STREAM = 1;

  private static final class MethodHandlers<Req, Resp> implements
      io.grpc.stub.ServerCalls.UnaryMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ServerStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ClientStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.BidiStreamingMethod<Req, Resp> {
    private final AsyncService serviceImpl;
    private final int methodId;

    MethodHandlers(AsyncService serviceImpl, int methodId) {
      this.serviceImpl = serviceImpl;
      this.methodId = methodId;
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public void invoke(Req request, io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_PUBLISH:
          serviceImpl.publish((com.meter.siem.v1.PublishRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.PublishResponse>) responseObserver);
          break;
        default:
          throw new AssertionError();
      }
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public io.grpc.stub.StreamObserver<Req> invoke(
        io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_PUBLISH_STREAM:
          return (io.grpc.stub.StreamObserver<Req>) serviceImpl.publishStream(
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.PublishStreamResponse>) responseObserver);
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getPublishMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.PublishRequest,
              com.meter.siem.v1.PublishResponse>(
                service, METHODID_PUBLISH)))
        .addMethod(
          getPublishStreamMethod(),
          io.grpc.stub.ServerCalls.asyncBidiStreamingCall(
            new MethodHandlers<
              com.meter.siem.v1.PublishStreamRequest,
              com.meter.siem.v1.PublishStreamResponse>(
                service, METHODID_PUBLISH_STREAM)))
        .build();
  }

  private static abstract class EventServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    EventServiceBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return com.meter.siem.v1.EventProto.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("EventService");
    }
  }

  private static final class EventServiceFileDescriptorSupplier
      extends EventServiceBaseDescriptorSupplier {
    EventServiceFileDescriptorSupplier() {}
  }

  private static final class EventServiceMethodDescriptorSupplier
      extends EventServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    EventServiceMethodDescriptorSupplier(java.lang.String methodName) {
      this.methodName = methodName;
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.MethodDescriptor getMethodDescriptor() {
      return getServiceDescriptor().findMethodByName(methodName);
    }
  }

  private static volatile io.grpc.ServiceDescriptor serviceDescriptor;

  public static io.grpc.ServiceDescriptor getServiceDescriptor() {
    io.grpc.ServiceDescriptor result = serviceDescriptor;
    if (result == null) {
      synchronized (EventServiceGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new EventServiceFileDescriptorSupplier())
              .addMethod(getPublishMethod())
              .addMethod(getPublishStreamMethod())
              .build();
        }
      }
    }
    return result;
  }
}
