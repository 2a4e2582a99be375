package com.meter.siem.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Message;
import com.meter.siem.v1.ErrorReason;
import com.meter.siem.v1.GetResponse;
import com.meter.siem.v1.IntegrationStatus;
import com.meter.siem.v1.PublishStreamRequest;
import com.meter.siem.v1.PublishStreamResponse;
import com.meter.siem.v1.SendTestRequest;
import com.meter.siem.v1.SendTestResponse;
import com.meter.siem.v1.StatusReason;
import com.meter.siem.v1.StreamStatusRequest;
import com.meter.siem.v1.StreamStatusResponse;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.ServerSocket;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.Collectors;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** The client against a planned server: deadlines, retries, watches and publishers. */
class ClientTest {
  private static final StreamStatusResponse SYNCED =
      StreamStatusResponse.newBuilder()
          .setResumeToken("1")
          .setSynced(com.meter.siem.v1.StatusSynced.getDefaultInstance())
          .build();
  private static final StreamStatusResponse DELETED =
      StreamStatusResponse.newBuilder()
          .setResumeToken("2")
          .setDeleted(com.meter.siem.v1.StatusDeleted.newBuilder().setOrganizationId("acme"))
          .build();

  private Fake fake;
  private SiemClient client;

  @BeforeEach
  void start() throws IOException {
    fake = new Fake();
    client = fake.client().connect();
  }

  @AfterEach
  void stop() {
    client.close();
    fake.close();
  }

  private static int freePort() throws IOException {
    try (ServerSocket free = new ServerSocket(0)) {
      return free.getLocalPort();
    }
  }

  private static List<String> ids(List<PublishStreamRequest> requests) {
    return requests.stream()
        .flatMap(request -> request.getEventsList().stream())
        .map(event -> event.getEventId())
        .collect(Collectors.toList());
  }

  @Test
  void unknownValuesNeverThrow() {
    GetResponse.Builder newer = GetResponse.newBuilder();
    newer.getIntegrationBuilder().setStatus(IntegrationStatus.newBuilder().setStatusValue(99).setReasonValue(98));
    fake.gets.add(Fake.message(newer.build()));
    IntegrationStatus status = client.get(Fake.GET).getIntegration().getStatus();
    assertEquals(com.meter.siem.v1.Status.STATUS_UNKNOWN, Messages.statusOf(status));
    assertEquals("98", Messages.enumName(StatusReason::forNumber, status.getReasonValue()));
    assertEquals("STATUS_REASON_KMS_DENIED", Messages.enumName(StatusReason::forNumber, 3));
  }

  @Test
  void nothingListens() throws IOException {
    try (SiemClient alone =
        SiemClient.builder("127.0.0.1:" + freePort())
            .retry(RetryOptions.of(Duration.ofMillis(10), Duration.ofMillis(100)))
            .connect()) {
      long began = System.nanoTime();
      SiemException failure =
          assertThrows(SiemException.class, () -> alone.get(Fake.GET, Duration.ofSeconds(3)));
      assertTrue(failure.attempts() > 3, "attempts: " + failure.attempts());
      // The deadline may end the last attempt before the system refuses its connection.
      if (failure.code() != Status.Code.DEADLINE_EXCEEDED) {
        assertEquals(Status.Code.UNAVAILABLE, failure.code());
        assertTrue(failure.getMessage().contains("refused"), failure.getMessage());
      }
      assertTrue(System.nanoTime() - began < TimeUnit.SECONDS.toNanos(20));
    }
  }

  @Test
  void aCallThatWasNeverSentMayBeSentLater() throws Exception {
    int port = freePort();
    fake.tests.add(Fake.message(SendTestResponse.newBuilder().setDelivered(true).build()));
    try (SiemClient early =
        SiemClient.builder("127.0.0.1:" + port)
            .retry(RetryOptions.of(Duration.ofMillis(10), Duration.ofMillis(100)))
            .connect()) {
      CompletableFuture<SendTestResponse> answer =
          CompletableFuture.supplyAsync(() -> early.sendTest(SendTestRequest.getDefaultInstance()));
      assertThrows(TimeoutException.class, () -> answer.get(200, TimeUnit.MILLISECONDS));
      // The server starts only now.
      try (Proxy proxy = new Proxy(port, fake.port())) {
        assertEquals(port, proxy.port());
        assertTrue(answer.get(30, TimeUnit.SECONDS).getDelivered());
        assertEquals(1, fake.seen(SendTestRequest.class).size());
      }
    }
  }

  @Test
  void aLostAnswerIsNotSentAgain() throws Exception {
    try (Proxy proxy = new Proxy(0, fake.port());
        SiemClient behind =
            SiemClient.builder("127.0.0.1:" + proxy.port())
                .retry(RetryOptions.of(Duration.ofMillis(10), Duration.ofMillis(100)))
                .connect()) {
      // The connection is cut between request and answer.
      fake.tests.add(observer -> proxy.cut());
      SiemException failure =
          assertThrows(SiemException.class, () -> behind.sendTest(SendTestRequest.getDefaultInstance()));
      assertEquals(1, failure.attempts());
      assertTrue(Errors.isTransportLoss(failure), failure.getMessage());
      assertEquals(1, fake.seen(SendTestRequest.class).size());
      // A call without effect is.
      fake.gets.addAll(List.of(observer -> proxy.cut(), Fake.got()));
      assertEquals("acme", behind.get(Fake.GET).getIntegration().getOrganizationId());
    }
  }

  @Test
  void closeEndsWaitingCalls() throws Exception {
    fake.gets.add(Fake.error(Status.Code.UNAVAILABLE, "", Duration.ofSeconds(8)));
    CompletableFuture<GetResponse> answer = CompletableFuture.supplyAsync(() -> client.get(Fake.GET));
    Fake.until(() -> !fake.requests.isEmpty());
    client.close();
    CompletionException failure = assertThrows(CompletionException.class, answer::join);
    assertInstanceOf(ClosedException.class, failure.getCause());
    assertThrows(ClosedException.class, () -> client.get(Fake.GET));
    assertThrows(ClosedException.class, () -> client.publisher());
    assertThrows(ClosedException.class, () -> client.watchStatus());
  }

  @Test
  void aCallInFlightEndsWithItsDeadline() {
    fake.gets.add(observer -> {});
    SiemException failure =
        assertThrows(SiemException.class, () -> client.get(Fake.GET, Duration.ofMillis(200)));
    assertEquals(Status.Code.DEADLINE_EXCEEDED, failure.code());
    assertThrows(ConfigurationException.class, () -> client.get(Fake.GET, Duration.ZERO));
  }

  @Test
  void anInterruptedThreadStopsWaiting() throws Exception {
    fake.gets.add(observer -> {});
    List<Object> seen = new ArrayList<>();
    Thread thread =
        new Thread(
            () -> {
              try {
                client.get(Fake.GET);
              } catch (SiemException error) {
                seen.add(error.code());
                seen.add(Thread.currentThread().isInterrupted());
              }
            });
    thread.start();
    Fake.until(() -> !fake.requests.isEmpty());
    thread.interrupt();
    thread.join();
    assertEquals(List.of(Status.Code.CANCELLED, true), seen);
  }

  @Test
  void aSilentStreamIsOpenedAgain() {
    fake.watches.addAll(List.of(Fake.open(SYNCED), Fake.open(DELETED)));
    try (StatusWatch watch = client.watchStatus(List.of(), "", Duration.ofSeconds(2))) {
      assertEquals(StatusEvent.Kind.SNAPSHOT, watch.next().kind());
      assertEquals("1", watch.resumeToken());
      assertTrue(watch.hasNext());
      assertEquals("1", watch.resumeToken(), "the next event is not yet returned");
      assertEquals("acme", watch.next().deleted().getOrganizationId());
      assertEquals("2", watch.resumeToken());
    }
    List<StreamStatusRequest> requests = fake.seen(StreamStatusRequest.class);
    assertEquals("1", requests.get(1).getResumeToken());
  }

  @Test
  void aWatchEndsWithAnErrorThatWouldComeAgain() {
    fake.watches.add(Fake.error(Status.Code.PERMISSION_DENIED, "PERMISSION_DENIED"));
    StatusWatch watch = client.watchStatus();
    SiemException failure = assertThrows(SiemException.class, watch::next);
    assertEquals(ErrorReason.ERROR_REASON_PERMISSION_DENIED, failure.reason());
    assertFalse(watch.hasNext());
  }

  @Test
  void closeOfAWatchOrOfTheClientEndsTheIteration() throws Exception {
    for (boolean all : new boolean[] {false, true}) {
      fake.watches.add(Fake.open());
      StatusWatch watch = client.watchStatus();
      CompletableFuture<Boolean> more = CompletableFuture.supplyAsync(watch::hasNext);
      int opened = all ? 2 : 1;
      Fake.until(() -> fake.seen(StreamStatusRequest.class).size() == opened);
      if (all) {
        client.close();
      } else {
        watch.close();
      }
      assertFalse(more.get(10, TimeUnit.SECONDS));
      assertThrows(NoSuchElementException.class, watch::next);
    }
  }

  @Test
  void aFullPublisherWaits() throws Exception {
    CompletableFuture<StreamObserver<Message>> held = new CompletableFuture<>();
    fake.publishes.add(held::complete);
    List<CompletableFuture<PublishResult>> answers = new ArrayList<>();
    Publisher publisher =
        client.publisher(PublisherOptions.builder().maxBytesInFlight(20_000).maxRequestsInFlight(1).build());
    assertThrows(
        TimeoutException.class,
        () -> {
          for (int number = 0; number < 100; number++) {
            answers.add(publisher.send(Fake.event(number), Duration.ofMillis(100)));
          }
        });
    PublishStreamResponse.Builder accepted = PublishStreamResponse.newBuilder();
    accepted.getResultBuilder().setAccepted(1);
    held.get().onNext(accepted.build());
    assertTrue(answers.size() > 10 && answers.size() < 20, "events: " + answers.size());
    for (int number = answers.size(); number < 200; number++) {
      answers.add(publisher.send(Fake.event(number)));
    }
    publisher.close();
    for (CompletableFuture<PublishResult> answer : answers) {
      assertEquals(Outcome.ACCEPTED, answer.getNow(null).outcome());
    }
    assertThrows(ClosedException.class, () -> publisher.send(Fake.event(1)));
  }

  @Test
  void aFullPublisherDoesNotLinger() {
    PublisherOptions options =
        PublisherOptions.builder().maxBytesInFlight(20_000).linger(Duration.ofHours(1)).build();
    try (Publisher publisher = client.publisher(options)) {
      for (int number = 0; number < 100; number++) {
        publisher.send(Fake.event(number));
      }
      publisher.flush();
      assertEquals(100, publisher.stats().accepted());
    }
  }

  @Test
  void aRefusedPublisherEndsAndNamesItsEvents() {
    fake.publishes.add(Fake.error(Status.Code.PERMISSION_DENIED, "PERMISSION_DENIED"));
    Publisher publisher = client.publisher();
    CompletableFuture<PublishResult> answer = publisher.send(Fake.event(1));
    UnacknowledgedException failure =
        assertThrows(UnacknowledgedException.class, () -> publisher.flush(Duration.ofSeconds(10)));
    assertTrue(failure.getMessage().contains("device-1"), failure.getMessage());
    assertInstanceOf(SiemException.class, failure.getCause());
    assertInstanceOf(SiemException.class, assertThrows(CompletionException.class, answer::join).getCause());
    ClosedException closed = assertThrows(ClosedException.class, () -> publisher.send(Fake.event(2)));
    assertTrue(closed.getMessage().contains("PERMISSION_DENIED"), closed.getMessage());
    assertThrows(UnacknowledgedException.class, publisher::close);
  }

  @Test
  void closeWithoutAServerEndsInTimeAndNamesTheEvents() throws IOException {
    try (SiemClient alone = SiemClient.connect("127.0.0.1:" + freePort())) {
      Publisher publisher = alone.publisher();
      CompletableFuture<PublishResult> answer = publisher.send(Fake.event(1));
      UnacknowledgedException failure =
          assertThrows(UnacknowledgedException.class, () -> publisher.close(Duration.ofMillis(300)));
      assertEquals(List.of(Fake.event(1)), failure.unacknowledged());
      assertTrue(answer.isCompletedExceptionally());
      publisher.close();
    }
  }

  @Test
  void closeOfTheClientEndsPublishers() throws Exception {
    fake.publishes.add(observer -> {});
    Publisher publisher = client.publisher();
    CompletableFuture<PublishResult> answer = publisher.send(Fake.event(1));
    Fake.until(() -> !fake.requests.isEmpty());
    client.close();
    assertInstanceOf(ClosedException.class, assertThrows(CompletionException.class, answer::join).getCause());
    assertThrows(UnacknowledgedException.class, publisher::close);
  }

  @Test
  void anAnswerThatDoesNotComeOpensANewStream() {
    fake.publishes.add(observer -> {});
    PublisherOptions options =
        PublisherOptions.builder()
            .answerTimeout(Duration.ofSeconds(2))
            .retryWaits(Duration.ofMillis(10), Duration.ofMillis(100))
            .build();
    try (Publisher publisher = client.publisher(options)) {
      assertEquals(Outcome.ACCEPTED, publisher.send(Fake.event(1)).join().outcome());
    }
    assertEquals(List.of("device-1", "device-1"), ids(fake.seen(PublishStreamRequest.class)));
  }

  @Test
  void anEventDoesNotWaitForTheAnswerToOthers() throws Exception {
    fake.publishes.addAll(List.of(observer -> {}, observer -> {}));
    Publisher publisher = client.publisher();
    publisher.send(Fake.event(1));
    Fake.until(() -> fake.seen(PublishStreamRequest.class).size() == 1);
    // The first request is never answered.
    publisher.send(Fake.event(2));
    Fake.until(() -> fake.seen(PublishStreamRequest.class).size() == 2);
    UnacknowledgedException failure =
        assertThrows(UnacknowledgedException.class, () -> publisher.close(Duration.ofMillis(100)));
    assertEquals(List.of(Fake.event(1), Fake.event(2)), failure.unacknowledged());
  }

  @Test
  void compressedRequests() {
    fake.gets.add(Fake.got());
    try (SiemClient compressing = fake.client().gzip(true).connect();
        Publisher publisher = compressing.publisher()) {
      assertEquals("acme", compressing.get(Fake.GET).getIntegration().getOrganizationId());
      assertEquals(
          Outcome.ACCEPTED, publisher.send(Fake.event(1, "device", "acme", 100_000)).join().outcome());
    }
  }

  @Test
  void callbacksMayUseThePublisher() {
    try (Publisher publisher = client.publisher()) {
      CompletableFuture<PublishResult> second =
          publisher.send(Fake.event(1)).thenCompose(first -> publisher.send(Fake.event(2)));
      assertEquals(Outcome.ACCEPTED, second.join().outcome());
      publisher.flush();
      assertEquals(2, publisher.stats().accepted());
    }
  }

  @Test
  void manyThreadsPublish() throws Exception {
    Publisher publisher = client.publisher();
    List<CompletableFuture<Void>> threads = new ArrayList<>();
    for (int device = 0; device < 8; device++) {
      String name = "device" + device;
      threads.add(
          CompletableFuture.runAsync(
              () -> {
                for (int number = 0; number < 500; number++) {
                  publisher.send(Fake.event(number, name, "acme", 0));
                }
              },
              task -> new Thread(task).start()));
    }
    threads.forEach(CompletableFuture::join);
    publisher.close();
    assertEquals(4_000, publisher.stats().accepted());
    assertEquals(0, publisher.stats().pending());
    List<String> ids = ids(fake.seen(PublishStreamRequest.class));
    for (int device = 0; device < 8; device++) {
      String prefix = "device" + device + "-";
      List<String> expected = new ArrayList<>();
      for (int number = 0; number < 500; number++) {
        expected.add(prefix + number);
      }
      assertEquals(expected, ids.stream().filter(id -> id.startsWith(prefix)).collect(Collectors.toList()));
    }
  }

  @Test
  void anUnusedPublisherOpensNoStream() {
    try (Publisher publisher = client.publisher()) {
      publisher.flush(Duration.ofSeconds(1));
    }
    assertTrue(fake.requests.isEmpty());
  }
}
