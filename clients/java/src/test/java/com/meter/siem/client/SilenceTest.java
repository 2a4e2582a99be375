package com.meter.siem.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.meter.siem.v1.StatusSynced;
import com.meter.siem.v1.StreamStatusResponse;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.parallel.Execution;
import org.junit.jupiter.api.parallel.ExecutionMode;

/** Peers that vanish without a word. */
@Execution(ExecutionMode.CONCURRENT)
class SilenceTest {
  private static SiemClient through(Proxy proxy) {
    return SiemClient.builder("127.0.0.1:" + proxy.port())
        .retry(RetryOptions.of(Duration.ofMillis(10), Duration.ofMillis(100)))
        .connect();
  }

  @Test
  void aDeadConnectionIsNoticedWithin45Seconds() throws Exception {
    try (Fake fake = new Fake();
        Proxy proxy = new Proxy(0, fake.port());
        SiemClient client = through(proxy)) {
      StreamStatusResponse.Builder synced =
          StreamStatusResponse.newBuilder().setSynced(StatusSynced.getDefaultInstance());
      fake.watches.addAll(
          List.of(
              Fake.open(synced.setResumeToken("1").build()),
              Fake.open(
                  StreamStatusResponse.newBuilder()
                      .setResumeToken("2")
                      .setDeleted(com.meter.siem.v1.StatusDeleted.newBuilder().setOrganizationId("acme"))
                      .build())));
      try (StatusWatch watch = client.watchStatus()) {
        watch.next();
        // Established connections only: the next one is forwarded again.
        proxy.silence(true);
        long began = System.nanoTime();
        Threads.start(
            "heal",
            () -> {
              try {
                Fake.until(() -> client.connectivity() != io.grpc.ConnectivityState.READY, 60);
              } catch (InterruptedException error) {
                throw new AssertionError(error);
              }
              proxy.silence(false);
              proxy.cut();
            });
        assertEquals("acme", watch.next().deleted().getOrganizationId());
        assertTrue(System.nanoTime() - began < TimeUnit.SECONDS.toNanos(45));
      }
    }
  }

  @Test
  void aPeerThatAcceptsAndIsSilentIsLeftAfterATime() throws Exception {
    try (Fake fake = new Fake();
        Proxy proxy = new Proxy(0, fake.port());
        SiemClient client = through(proxy)) {
      proxy.silence(true);
      fake.gets.add(Fake.got());
      SiemException failure =
          assertThrows(SiemException.class, () -> client.get(Fake.GET, Duration.ofSeconds(1)));
      assertEquals(Status.Code.DEADLINE_EXCEEDED, failure.code());
      proxy.silence(false);
      // The first connection stays silent for ever.
      assertEquals("acme", client.get(Fake.GET, Duration.ofSeconds(45)).getIntegration().getOrganizationId());
    }
  }
}
