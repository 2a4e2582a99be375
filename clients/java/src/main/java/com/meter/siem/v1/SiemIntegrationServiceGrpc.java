package com.meter.siem.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Configures, tests and monitors the SIEM integrations of organizations.
 * A request may have 256 KiB and may be compressed by gzip (`grpc-encoding`); the limit
 * applies to the decompressed size. See ErrorReason for errors and their bounds. Every RPC that
 * names an organization fails with INVALID_FIELD if the name is malformed.
 * Room to grow: several integrations of one organization will be distinguished by a string
 * `integration_name`, in which empty means the default one. Its number is 15 in every request that
 * names an organization, in Integration and in the payloads of StreamStatusResponse. Until then
 * these numbers are unused, and a server ignores them.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class SiemIntegrationServiceGrpc {

  private SiemIntegrationServiceGrpc() {}

  public static final java.lang.String SERVICE_NAME = "siem.v1.SiemIntegrationService";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.ConfigureRequest,
      com.meter.siem.v1.ConfigureResponse> getConfigureMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Configure",
      requestType = com.meter.siem.v1.ConfigureRequest.class,
      responseType = com.meter.siem.v1.ConfigureResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.ConfigureRequest,
      com.meter.siem.v1.ConfigureResponse> getConfigureMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.ConfigureRequest, com.meter.siem.v1.ConfigureResponse> getConfigureMethod;
    if ((getConfigureMethod = SiemIntegrationServiceGrpc.getConfigureMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getConfigureMethod = SiemIntegrationServiceGrpc.getConfigureMethod) == null) {
          SiemIntegrationServiceGrpc.getConfigureMethod = getConfigureMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.ConfigureRequest, com.meter.siem.v1.ConfigureResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Configure"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.ConfigureRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.ConfigureResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("Configure"))
              .build();
        }
      }
    }
    return getConfigureMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.GenerateExternalIdRequest,
      com.meter.siem.v1.GenerateExternalIdResponse> getGenerateExternalIdMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GenerateExternalId",
      requestType = com.meter.siem.v1.GenerateExternalIdRequest.class,
      responseType = com.meter.siem.v1.GenerateExternalIdResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.GenerateExternalIdRequest,
      com.meter.siem.v1.GenerateExternalIdResponse> getGenerateExternalIdMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.GenerateExternalIdRequest, com.meter.siem.v1.GenerateExternalIdResponse> getGenerateExternalIdMethod;
    if ((getGenerateExternalIdMethod = SiemIntegrationServiceGrpc.getGenerateExternalIdMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getGenerateExternalIdMethod = SiemIntegrationServiceGrpc.getGenerateExternalIdMethod) == null) {
          SiemIntegrationServiceGrpc.getGenerateExternalIdMethod = getGenerateExternalIdMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.GenerateExternalIdRequest, com.meter.siem.v1.GenerateExternalIdResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GenerateExternalId"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.GenerateExternalIdRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.GenerateExternalIdResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("GenerateExternalId"))
              .build();
        }
      }
    }
    return getGenerateExternalIdMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.GetOnboardingRequest,
      com.meter.siem.v1.GetOnboardingResponse> getGetOnboardingMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetOnboarding",
      requestType = com.meter.siem.v1.GetOnboardingRequest.class,
      responseType = com.meter.siem.v1.GetOnboardingResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.GetOnboardingRequest,
      com.meter.siem.v1.GetOnboardingResponse> getGetOnboardingMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.GetOnboardingRequest, com.meter.siem.v1.GetOnboardingResponse> getGetOnboardingMethod;
    if ((getGetOnboardingMethod = SiemIntegrationServiceGrpc.getGetOnboardingMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getGetOnboardingMethod = SiemIntegrationServiceGrpc.getGetOnboardingMethod) == null) {
          SiemIntegrationServiceGrpc.getGetOnboardingMethod = getGetOnboardingMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.GetOnboardingRequest, com.meter.siem.v1.GetOnboardingResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetOnboarding"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.GetOnboardingRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.GetOnboardingResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("GetOnboarding"))
              .build();
        }
      }
    }
    return getGetOnboardingMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.GetRequest,
      com.meter.siem.v1.GetResponse> getGetMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Get",
      requestType = com.meter.siem.v1.GetRequest.class,
      responseType = com.meter.siem.v1.GetResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.GetRequest,
      com.meter.siem.v1.GetResponse> getGetMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.GetRequest, com.meter.siem.v1.GetResponse> getGetMethod;
    if ((getGetMethod = SiemIntegrationServiceGrpc.getGetMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getGetMethod = SiemIntegrationServiceGrpc.getGetMethod) == null) {
          SiemIntegrationServiceGrpc.getGetMethod = getGetMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.GetRequest, com.meter.siem.v1.GetResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Get"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.GetRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.GetResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("Get"))
              .build();
        }
      }
    }
    return getGetMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.ListRequest,
      com.meter.siem.v1.ListResponse> getListMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "List",
      requestType = com.meter.siem.v1.ListRequest.class,
      responseType = com.meter.siem.v1.ListResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.ListRequest,
      com.meter.siem.v1.ListResponse> getListMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.ListRequest, com.meter.siem.v1.ListResponse> getListMethod;
    if ((getListMethod = SiemIntegrationServiceGrpc.getListMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getListMethod = SiemIntegrationServiceGrpc.getListMethod) == null) {
          SiemIntegrationServiceGrpc.getListMethod = getListMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.ListRequest, com.meter.siem.v1.ListResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "List"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.ListRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.ListResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("List"))
              .build();
        }
      }
    }
    return getListMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.DeleteRequest,
      com.meter.siem.v1.DeleteResponse> getDeleteMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Delete",
      requestType = com.meter.siem.v1.DeleteRequest.class,
      responseType = com.meter.siem.v1.DeleteResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.DeleteRequest,
      com.meter.siem.v1.DeleteResponse> getDeleteMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.DeleteRequest, com.meter.siem.v1.DeleteResponse> getDeleteMethod;
    if ((getDeleteMethod = SiemIntegrationServiceGrpc.getDeleteMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getDeleteMethod = SiemIntegrationServiceGrpc.getDeleteMethod) == null) {
          SiemIntegrationServiceGrpc.getDeleteMethod = getDeleteMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.DeleteRequest, com.meter.siem.v1.DeleteResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Delete"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.DeleteRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.DeleteResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("Delete"))
              .build();
        }
      }
    }
    return getDeleteMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.SendTestRequest,
      com.meter.siem.v1.SendTestResponse> getSendTestMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "SendTest",
      requestType = com.meter.siem.v1.SendTestRequest.class,
      responseType = com.meter.siem.v1.SendTestResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.SendTestRequest,
      com.meter.siem.v1.SendTestResponse> getSendTestMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.SendTestRequest, com.meter.siem.v1.SendTestResponse> getSendTestMethod;
    if ((getSendTestMethod = SiemIntegrationServiceGrpc.getSendTestMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getSendTestMethod = SiemIntegrationServiceGrpc.getSendTestMethod) == null) {
          SiemIntegrationServiceGrpc.getSendTestMethod = getSendTestMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.SendTestRequest, com.meter.siem.v1.SendTestResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "SendTest"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.SendTestRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.SendTestResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("SendTest"))
              .build();
        }
      }
    }
    return getSendTestMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.StreamStatusRequest,
      com.meter.siem.v1.StreamStatusResponse> getStreamStatusMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "StreamStatus",
      requestType = com.meter.siem.v1.StreamStatusRequest.class,
      responseType = com.meter.siem.v1.StreamStatusResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.StreamStatusRequest,
      com.meter.siem.v1.StreamStatusResponse> getStreamStatusMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.StreamStatusRequest, com.meter.siem.v1.StreamStatusResponse> getStreamStatusMethod;
    if ((getStreamStatusMethod = SiemIntegrationServiceGrpc.getStreamStatusMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getStreamStatusMethod = SiemIntegrationServiceGrpc.getStreamStatusMethod) == null) {
          SiemIntegrationServiceGrpc.getStreamStatusMethod = getStreamStatusMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.StreamStatusRequest, com.meter.siem.v1.StreamStatusResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "StreamStatus"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.StreamStatusRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.StreamStatusResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("StreamStatus"))
              .build();
        }
      }
    }
    return getStreamStatusMethod;
  }

  private static volatile io.grpc.MethodDescriptor<com.meter.siem.v1.ListAuditEntriesRequest,
      com.meter.siem.v1.ListAuditEntriesResponse> getListAuditEntriesMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListAuditEntries",
      requestType = com.meter.siem.v1.ListAuditEntriesRequest.class,
      responseType = com.meter.siem.v1.ListAuditEntriesResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<com.meter.siem.v1.ListAuditEntriesRequest,
      com.meter.siem.v1.ListAuditEntriesResponse> getListAuditEntriesMethod() {
    io.grpc.MethodDescriptor<com.meter.siem.v1.ListAuditEntriesRequest, com.meter.siem.v1.ListAuditEntriesResponse> getListAuditEntriesMethod;
    if ((getListAuditEntriesMethod = SiemIntegrationServiceGrpc.getListAuditEntriesMethod) == null) {
      synchronized (SiemIntegrationServiceGrpc.class) {
        if ((getListAuditEntriesMethod = SiemIntegrationServiceGrpc.getListAuditEntriesMethod) == null) {
          SiemIntegrationServiceGrpc.getListAuditEntriesMethod = getListAuditEntriesMethod =
              io.grpc.MethodDescriptor.<com.meter.siem.v1.ListAuditEntriesRequest, com.meter.siem.v1.ListAuditEntriesResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListAuditEntries"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.ListAuditEntriesRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  com.meter.siem.v1.ListAuditEntriesResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SiemIntegrationServiceMethodDescriptorSupplier("ListAuditEntries"))
              .build();
        }
      }
    }
    return getListAuditEntriesMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static SiemIntegrationServiceStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<SiemIntegrationServiceStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<SiemIntegrationServiceStub>() {
        @java.lang.Override
        public SiemIntegrationServiceStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new SiemIntegrationServiceStub(channel, callOptions);
        }
      };
    return SiemIntegrationServiceStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static SiemIntegrationServiceBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<SiemIntegrationServiceBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<SiemIntegrationServiceBlockingStub>() {
        @java.lang.Override
        public SiemIntegrationServiceBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new SiemIntegrationServiceBlockingStub(channel, callOptions);
        }
      };
    return SiemIntegrationServiceBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static SiemIntegrationServiceFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<SiemIntegrationServiceFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<SiemIntegrationServiceFutureStub>() {
        @java.lang.Override
        public SiemIntegrationServiceFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new SiemIntegrationServiceFutureStub(channel, callOptions);
        }
      };
    return SiemIntegrationServiceFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Configures, tests and monitors the SIEM integrations of organizations.
   * A request may have 256 KiB and may be compressed by gzip (`grpc-encoding`); the limit
   * applies to the decompressed size. See ErrorReason for errors and their bounds. Every RPC that
   * names an organization fails with INVALID_FIELD if the name is malformed.
   * Room to grow: several integrations of one organization will be distinguished by a string
   * `integration_name`, in which empty means the default one. Its number is 15 in every request that
   * names an organization, in Integration and in the payloads of StreamStatusResponse. Until then
   * these numbers are unused, and a server ignores them.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Configure creates or replaces the integration of an organization. It calls no AWS service:
     * a new integration, or one with another stream, role or external ID, has STATUS_UNKNOWN until
     * the first delivery attempt. Pending events are delivered to the new stream.
     * Errors: INVALID_FIELD with all violations, ETAG_MISMATCH, RATE_LIMITED. An external ID that
     * cannot be used, for example because another organization uses it, is INVALID_FIELD, and the
     * answer does not say why; after five of them RATE_LIMITED.
     * </pre>
     */
    default void configure(com.meter.siem.v1.ConfigureRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.ConfigureResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getConfigureMethod(), responseObserver);
    }

    /**
     * <pre>
     * GenerateExternalId issues a new external ID to an organization, for the customer's trust
     * policy and for Configure. No other RPC returns it, and no other organization may use it. It
     * lapses after 30 days unless it was configured; Delete ends all of the organization.
     * Errors: RATE_LIMITED; without RetryInfo if ten were issued and none of them was configured.
     * </pre>
     */
    default void generateExternalId(com.meter.siem.v1.GenerateExternalIdRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.GenerateExternalIdResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGenerateExternalIdMethod(), responseObserver);
    }

    /**
     * <pre>
     * GetOnboarding returns the documents that a customer applies in its AWS account so that this
     * service may write to a stream: IAM policies, a CloudFormation template and a Terraform file, as
     * `siem-relay onboarding` prints them. It calls no AWS service and stores nothing.
     * Errors: INVALID_FIELD with all violations.
     * </pre>
     */
    default void getOnboarding(com.meter.siem.v1.GetOnboardingRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.GetOnboardingResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetOnboardingMethod(), responseObserver);
    }

    /**
     * <pre>
     * Get returns an integration with its status and counts.
     * Errors: INTEGRATION_NOT_FOUND.
     * </pre>
     */
    default void get(com.meter.siem.v1.GetRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.GetResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetMethod(), responseObserver);
    }

    /**
     * <pre>
     * List returns the integrations of all organizations, in pages.
     * </pre>
     */
    default void list(com.meter.siem.v1.ListRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.ListResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListMethod(), responseObserver);
    }

    /**
     * <pre>
     * Delete removes an integration and its pending events. Once it has answered, no new AWS write
     * starts for the integration.
     * Errors: INTEGRATION_NOT_FOUND, unless allow_missing is set; ETAG_MISMATCH.
     * </pre>
     */
    default void delete(com.meter.siem.v1.DeleteRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.DeleteResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getDeleteMethod(), responseObserver);
    }

    /**
     * <pre>
     * SendTest writes a test event in the same way as delivery, with newly assumed credentials and
     * ahead of all pending events, and sets the status of the integration accordingly. A failed test
     * is no error: the response contains the verdict.
     * Errors: INTEGRATION_NOT_FOUND, RATE_LIMITED.
     * </pre>
     */
    default void sendTest(com.meter.siem.v1.SendTestRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.SendTestResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getSendTestMethod(), responseObserver);
    }

    /**
     * <pre>
     * StreamStatus sends the current statuses, then `synced`, then every change and deletion. It
     * ends with SHUTTING_DOWN when the server stops: call it again with the last resume_token. A
     * slow subscriber misses intermediate statuses, never the last one.
     * </pre>
     */
    default void streamStatus(com.meter.siem.v1.StreamStatusRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.StreamStatusResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getStreamStatusMethod(), responseObserver);
    }

    /**
     * <pre>
     * ListAuditEntries returns the audit, newest first, in pages: every change of an integration,
     * every issued external ID and test event, and refused calls. Entries cannot be changed through
     * this API; the operator's settings `audit-retention-seconds` and `audit-max-entries` bound their
     * age and number. External IDs are in none of them. A refusal appears up to 10 s later.
     * </pre>
     */
    default void listAuditEntries(com.meter.siem.v1.ListAuditEntriesRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.ListAuditEntriesResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListAuditEntriesMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service SiemIntegrationService.
   * <pre>
   * Configures, tests and monitors the SIEM integrations of organizations.
   * A request may have 256 KiB and may be compressed by gzip (`grpc-encoding`); the limit
   * applies to the decompressed size. See ErrorReason for errors and their bounds. Every RPC that
   * names an organization fails with INVALID_FIELD if the name is malformed.
   * Room to grow: several integrations of one organization will be distinguished by a string
   * `integration_name`, in which empty means the default one. Its number is 15 in every request that
   * names an organization, in Integration and in the payloads of StreamStatusResponse. Until then
   * these numbers are unused, and a server ignores them.
   * </pre>
   */
  public static abstract class SiemIntegrationServiceImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return SiemIntegrationServiceGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service SiemIntegrationService.
   * <pre>
   * Configures, tests and monitors the SIEM integrations of organizations.
   * A request may have 256 KiB and may be compressed by gzip (`grpc-encoding`); the limit
   * applies to the decompressed size. See ErrorReason for errors and their bounds. Every RPC that
   * names an organization fails with INVALID_FIELD if the name is malformed.
   * Room to grow: several integrations of one organization will be distinguished by a string
   * `integration_name`, in which empty means the default one. Its number is 15 in every request that
   * names an organization, in Integration and in the payloads of StreamStatusResponse. Until then
   * these numbers are unused, and a server ignores them.
   * </pre>
   */
  public static final class SiemIntegrationServiceStub
      extends io.grpc.stub.AbstractAsyncStub<SiemIntegrationServiceStub> {
    private SiemIntegrationServiceStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected SiemIntegrationServiceStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new SiemIntegrationServiceStub(channel, callOptions);
    }

    /**
     * <pre>
     * Configure creates or replaces the integration of an organization. It calls no AWS service:
     * a new integration, or one with another stream, role or external ID, has STATUS_UNKNOWN until
     * the first delivery attempt. Pending events are delivered to the new stream.
     * Errors: INVALID_FIELD with all violations, ETAG_MISMATCH, RATE_LIMITED. An external ID that
     * cannot be used, for example because another organization uses it, is INVALID_FIELD, and the
     * answer does not say why; after five of them RATE_LIMITED.
     * </pre>
     */
    public void configure(com.meter.siem.v1.ConfigureRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.ConfigureResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getConfigureMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * GenerateExternalId issues a new external ID to an organization, for the customer's trust
     * policy and for Configure. No other RPC returns it, and no other organization may use it. It
     * lapses after 30 days unless it was configured; Delete ends all of the organization.
     * Errors: RATE_LIMITED; without RetryInfo if ten were issued and none of them was configured.
     * </pre>
     */
    public void generateExternalId(com.meter.siem.v1.GenerateExternalIdRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.GenerateExternalIdResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGenerateExternalIdMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * GetOnboarding returns the documents that a customer applies in its AWS account so that this
     * service may write to a stream: IAM policies, a CloudFormation template and a Terraform file, as
     * `siem-relay onboarding` prints them. It calls no AWS service and stores nothing.
     * Errors: INVALID_FIELD with all violations.
     * </pre>
     */
    public void getOnboarding(com.meter.siem.v1.GetOnboardingRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.GetOnboardingResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetOnboardingMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Get returns an integration with its status and counts.
     * Errors: INTEGRATION_NOT_FOUND.
     * </pre>
     */
    public void get(com.meter.siem.v1.GetRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.GetResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * List returns the integrations of all organizations, in pages.
     * </pre>
     */
    public void list(com.meter.siem.v1.ListRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.ListResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Delete removes an integration and its pending events. Once it has answered, no new AWS write
     * starts for the integration.
     * Errors: INTEGRATION_NOT_FOUND, unless allow_missing is set; ETAG_MISMATCH.
     * </pre>
     */
    public void delete(com.meter.siem.v1.DeleteRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.DeleteResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getDeleteMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * SendTest writes a test event in the same way as delivery, with newly assumed credentials and
     * ahead of all pending events, and sets the status of the integration accordingly. A failed test
     * is no error: the response contains the verdict.
     * Errors: INTEGRATION_NOT_FOUND, RATE_LIMITED.
     * </pre>
     */
    public void sendTest(com.meter.siem.v1.SendTestRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.SendTestResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getSendTestMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * StreamStatus sends the current statuses, then `synced`, then every change and deletion. It
     * ends with SHUTTING_DOWN when the server stops: call it again with the last resume_token. A
     * slow subscriber misses intermediate statuses, never the last one.
     * </pre>
     */
    public void streamStatus(com.meter.siem.v1.StreamStatusRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.StreamStatusResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getStreamStatusMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * ListAuditEntries returns the audit, newest first, in pages: every change of an integration,
     * every issued external ID and test event, and refused calls. Entries cannot be changed through
     * this API; the operator's settings `audit-retention-seconds` and `audit-max-entries` bound their
     * age and number. External IDs are in none of them. A refusal appears up to 10 s later.
     * </pre>
     */
    public void listAuditEntries(com.meter.siem.v1.ListAuditEntriesRequest request,
        io.grpc.stub.StreamObserver<com.meter.siem.v1.ListAuditEntriesResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListAuditEntriesMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service SiemIntegrationService.
   * <pre>
   * Configures, tests and monitors the SIEM integrations of organizations.
   * A request may have 256 KiB and may be compressed by gzip (`grpc-encoding`); the limit
   * applies to the decompressed size. See ErrorReason for errors and their bounds. Every RPC that
   * names an organization fails with INVALID_FIELD if the name is malformed.
   * Room to grow: several integrations of one organization will be distinguished by a string
   * `integration_name`, in which empty means the default one. Its number is 15 in every request that
   * names an organization, in Integration and in the payloads of StreamStatusResponse. Until then
   * these numbers are unused, and a server ignores them.
   * </pre>
   */
  public static final class SiemIntegrationServiceBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<SiemIntegrationServiceBlockingStub> {
    private SiemIntegrationServiceBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected SiemIntegrationServiceBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new SiemIntegrationServiceBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Configure creates or replaces the integration of an organization. It calls no AWS service:
     * a new integration, or one with another stream, role or external ID, has STATUS_UNKNOWN until
     * the first delivery attempt. Pending events are delivered to the new stream.
     * Errors: INVALID_FIELD with all violations, ETAG_MISMATCH, RATE_LIMITED. An external ID that
     * cannot be used, for example because another organization uses it, is INVALID_FIELD, and the
     * answer does not say why; after five of them RATE_LIMITED.
     * </pre>
     */
    public com.meter.siem.v1.ConfigureResponse configure(com.meter.siem.v1.ConfigureRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getConfigureMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * GenerateExternalId issues a new external ID to an organization, for the customer's trust
     * policy and for Configure. No other RPC returns it, and no other organization may use it. It
     * lapses after 30 days unless it was configured; Delete ends all of the organization.
     * Errors: RATE_LIMITED; without RetryInfo if ten were issued and none of them was configured.
     * </pre>
     */
    public com.meter.siem.v1.GenerateExternalIdResponse generateExternalId(com.meter.siem.v1.GenerateExternalIdRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGenerateExternalIdMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * GetOnboarding returns the documents that a customer applies in its AWS account so that this
     * service may write to a stream: IAM policies, a CloudFormation template and a Terraform file, as
     * `siem-relay onboarding` prints them. It calls no AWS service and stores nothing.
     * Errors: INVALID_FIELD with all violations.
     * </pre>
     */
    public com.meter.siem.v1.GetOnboardingResponse getOnboarding(com.meter.siem.v1.GetOnboardingRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetOnboardingMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Get returns an integration with its status and counts.
     * Errors: INTEGRATION_NOT_FOUND.
     * </pre>
     */
    public com.meter.siem.v1.GetResponse get(com.meter.siem.v1.GetRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * List returns the integrations of all organizations, in pages.
     * </pre>
     */
    public com.meter.siem.v1.ListResponse list(com.meter.siem.v1.ListRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Delete removes an integration and its pending events. Once it has answered, no new AWS write
     * starts for the integration.
     * Errors: INTEGRATION_NOT_FOUND, unless allow_missing is set; ETAG_MISMATCH.
     * </pre>
     */
    public com.meter.siem.v1.DeleteResponse delete(com.meter.siem.v1.DeleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getDeleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * SendTest writes a test event in the same way as delivery, with newly assumed credentials and
     * ahead of all pending events, and sets the status of the integration accordingly. A failed test
     * is no error: the response contains the verdict.
     * Errors: INTEGRATION_NOT_FOUND, RATE_LIMITED.
     * </pre>
     */
    public com.meter.siem.v1.SendTestResponse sendTest(com.meter.siem.v1.SendTestRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getSendTestMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * StreamStatus sends the current statuses, then `synced`, then every change and deletion. It
     * ends with SHUTTING_DOWN when the server stops: call it again with the last resume_token. A
     * slow subscriber misses intermediate statuses, never the last one.
     * </pre>
     */
    public java.util.Iterator<com.meter.siem.v1.StreamStatusResponse> streamStatus(
        com.meter.siem.v1.StreamStatusRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getStreamStatusMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ListAuditEntries returns the audit, newest first, in pages: every change of an integration,
     * every issued external ID and test event, and refused calls. Entries cannot be changed through
     * this API; the operator's settings `audit-retention-seconds` and `audit-max-entries` bound their
     * age and number. External IDs are in none of them. A refusal appears up to 10 s later.
     * </pre>
     */
    public com.meter.siem.v1.ListAuditEntriesResponse listAuditEntries(com.meter.siem.v1.ListAuditEntriesRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListAuditEntriesMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service SiemIntegrationService.
   * <pre>
   * Configures, tests and monitors the SIEM integrations of organizations.
   * A request may have 256 KiB and may be compressed by gzip (`grpc-encoding`); the limit
   * applies to the decompressed size. See ErrorReason for errors and their bounds. Every RPC that
   * names an organization fails with INVALID_FIELD if the name is malformed.
   * Room to grow: several integrations of one organization will be distinguished by a string
   * `integration_name`, in which empty means the default one. Its number is 15 in every request that
   * names an organization, in Integration and in the payloads of StreamStatusResponse. Until then
   * these numbers are unused, and a server ignores them.
   * </pre>
   */
  public static final class SiemIntegrationServiceFutureStub
      extends io.grpc.stub.AbstractFutureStub<SiemIntegrationServiceFutureStub> {
    private SiemIntegrationServiceFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected SiemIntegrationServiceFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new SiemIntegrationServiceFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Configure creates or replaces the integration of an organization. It calls no AWS service:
     * a new integration, or one with another stream, role or external ID, has STATUS_UNKNOWN until
     * the first delivery attempt. Pending events are delivered to the new stream.
     * Errors: INVALID_FIELD with all violations, ETAG_MISMATCH, RATE_LIMITED. An external ID that
     * cannot be used, for example because another organization uses it, is INVALID_FIELD, and the
     * answer does not say why; after five of them RATE_LIMITED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.ConfigureResponse> configure(
        com.meter.siem.v1.ConfigureRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getConfigureMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * GenerateExternalId issues a new external ID to an organization, for the customer's trust
     * policy and for Configure. No other RPC returns it, and no other organization may use it. It
     * lapses after 30 days unless it was configured; Delete ends all of the organization.
     * Errors: RATE_LIMITED; without RetryInfo if ten were issued and none of them was configured.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.GenerateExternalIdResponse> generateExternalId(
        com.meter.siem.v1.GenerateExternalIdRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGenerateExternalIdMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * GetOnboarding returns the documents that a customer applies in its AWS account so that this
     * service may write to a stream: IAM policies, a CloudFormation template and a Terraform file, as
     * `siem-relay onboarding` prints them. It calls no AWS service and stores nothing.
     * Errors: INVALID_FIELD with all violations.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.GetOnboardingResponse> getOnboarding(
        com.meter.siem.v1.GetOnboardingRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetOnboardingMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Get returns an integration with its status and counts.
     * Errors: INTEGRATION_NOT_FOUND.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.GetResponse> get(
        com.meter.siem.v1.GetRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * List returns the integrations of all organizations, in pages.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.ListResponse> list(
        com.meter.siem.v1.ListRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Delete removes an integration and its pending events. Once it has answered, no new AWS write
     * starts for the integration.
     * Errors: INTEGRATION_NOT_FOUND, unless allow_missing is set; ETAG_MISMATCH.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.DeleteResponse> delete(
        com.meter.siem.v1.DeleteRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getDeleteMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * SendTest writes a test event in the same way as delivery, with newly assumed credentials and
     * ahead of all pending events, and sets the status of the integration accordingly. A failed test
     * is no error: the response contains the verdict.
     * Errors: INTEGRATION_NOT_FOUND, RATE_LIMITED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.SendTestResponse> sendTest(
        com.meter.siem.v1.SendTestRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getSendTestMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * ListAuditEntries returns the audit, newest first, in pages: every change of an integration,
     * every issued external ID and test event, and refused calls. Entries cannot be changed through
     * this API; the operator's settings `audit-retention-seconds` and `audit-max-entries` bound their
     * age and number. External IDs are in none of them. A refusal appears up to 10 s later.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<com.meter.siem.v1.ListAuditEntriesResponse> listAuditEntries(
        com.meter.siem.v1.ListAuditEntriesRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListAuditEntriesMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_CONFIGURE = 0;
  private static final int METHODID_GENERATE_EXTERNAL_ID = 1;
  private static final int METHODID_GET_ONBOARDING = 2;
  private static final int METHODID_GET = 3;
  private static final int METHODID_LIST = 4;
  private static final int METHODID_DELETE = 5;
  private static final int METHODID_SEND_TEST = 6;
  private static final int METHODID_STREAM_STATUS = 7;
  private static final int METHODID_LIST_AUDIT_ENTRIES = 8;

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
        case METHODID_CONFIGURE:
          serviceImpl.configure((com.meter.siem.v1.ConfigureRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.ConfigureResponse>) responseObserver);
          break;
        case METHODID_GENERATE_EXTERNAL_ID:
          serviceImpl.generateExternalId((com.meter.siem.v1.GenerateExternalIdRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.GenerateExternalIdResponse>) responseObserver);
          break;
        case METHODID_GET_ONBOARDING:
          serviceImpl.getOnboarding((com.meter.siem.v1.GetOnboardingRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.GetOnboardingResponse>) responseObserver);
          break;
        case METHODID_GET:
          serviceImpl.get((com.meter.siem.v1.GetRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.GetResponse>) responseObserver);
          break;
        case METHODID_LIST:
          serviceImpl.list((com.meter.siem.v1.ListRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.ListResponse>) responseObserver);
          break;
        case METHODID_DELETE:
          serviceImpl.delete((com.meter.siem.v1.DeleteRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.DeleteResponse>) responseObserver);
          break;
        case METHODID_SEND_TEST:
          serviceImpl.sendTest((com.meter.siem.v1.SendTestRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.SendTestResponse>) responseObserver);
          break;
        case METHODID_STREAM_STATUS:
          serviceImpl.streamStatus((com.meter.siem.v1.StreamStatusRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.StreamStatusResponse>) responseObserver);
          break;
        case METHODID_LIST_AUDIT_ENTRIES:
          serviceImpl.listAuditEntries((com.meter.siem.v1.ListAuditEntriesRequest) request,
              (io.grpc.stub.StreamObserver<com.meter.siem.v1.ListAuditEntriesResponse>) responseObserver);
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
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getConfigureMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.ConfigureRequest,
              com.meter.siem.v1.ConfigureResponse>(
                service, METHODID_CONFIGURE)))
        .addMethod(
          getGenerateExternalIdMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.GenerateExternalIdRequest,
              com.meter.siem.v1.GenerateExternalIdResponse>(
                service, METHODID_GENERATE_EXTERNAL_ID)))
        .addMethod(
          getGetOnboardingMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.GetOnboardingRequest,
              com.meter.siem.v1.GetOnboardingResponse>(
                service, METHODID_GET_ONBOARDING)))
        .addMethod(
          getGetMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.GetRequest,
              com.meter.siem.v1.GetResponse>(
                service, METHODID_GET)))
        .addMethod(
          getListMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.ListRequest,
              com.meter.siem.v1.ListResponse>(
                service, METHODID_LIST)))
        .addMethod(
          getDeleteMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.DeleteRequest,
              com.meter.siem.v1.DeleteResponse>(
                service, METHODID_DELETE)))
        .addMethod(
          getSendTestMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.SendTestRequest,
              com.meter.siem.v1.SendTestResponse>(
                service, METHODID_SEND_TEST)))
        .addMethod(
          getStreamStatusMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              com.meter.siem.v1.StreamStatusRequest,
              com.meter.siem.v1.StreamStatusResponse>(
                service, METHODID_STREAM_STATUS)))
        .addMethod(
          getListAuditEntriesMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              com.meter.siem.v1.ListAuditEntriesRequest,
              com.meter.siem.v1.ListAuditEntriesResponse>(
                service, METHODID_LIST_AUDIT_ENTRIES)))
        .build();
  }

  private static abstract class SiemIntegrationServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    SiemIntegrationServiceBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return com.meter.siem.v1.IntegrationProto.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("SiemIntegrationService");
    }
  }

  private static final class SiemIntegrationServiceFileDescriptorSupplier
      extends SiemIntegrationServiceBaseDescriptorSupplier {
    SiemIntegrationServiceFileDescriptorSupplier() {}
  }

  private static final class SiemIntegrationServiceMethodDescriptorSupplier
      extends SiemIntegrationServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    SiemIntegrationServiceMethodDescriptorSupplier(java.lang.String methodName) {
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
      synchronized (SiemIntegrationServiceGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new SiemIntegrationServiceFileDescriptorSupplier())
              .addMethod(getConfigureMethod())
              .addMethod(getGenerateExternalIdMethod())
              .addMethod(getGetOnboardingMethod())
              .addMethod(getGetMethod())
              .addMethod(getListMethod())
              .addMethod(getDeleteMethod())
              .addMethod(getSendTestMethod())
              .addMethod(getStreamStatusMethod())
              .addMethod(getListAuditEntriesMethod())
              .build();
        }
      }
    }
    return result;
  }
}
