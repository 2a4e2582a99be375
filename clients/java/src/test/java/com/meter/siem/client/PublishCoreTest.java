package com.meter.siem.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.InvalidProtocolBufferException;
import com.meter.siem.v1.ErrorReason;
import com.meter.siem.v1.Event;
import com.meter.siem.v1.PublishResponse;
import com.meter.siem.v1.PublishStreamRequest;
import com.meter.siem.v1.PublishStreamResponse;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

/** The publisher's state, against a model of a server that rejects, refuses and disconnects at random. */
class PublishCoreTest {
  private static final long MILLI = 1_000_000;

  /** A server and a driver, with a clock of their own. */
  private static final class Model {
    final Random random;
    final PublishCore core;
    final int devices;
    long now;
    final ArrayDeque<PublishStreamRequest> unanswered = new ArrayDeque<>();
    final List<String> accepted = new ArrayList<>();
    final Map<String, Outcome> results = new HashMap<>();
    int maxInFlight;

    Model(long seed, int devices, PublisherOptions options) {
      random = new Random(seed);
      core = new PublishCore(options, failures -> 100 * MILLI << Math.min(failures, 5));
      this.devices = devices;
    }

    void take(List<PublishCore.Result> answers) {
      for (PublishCore.Result each : answers) {
        Outcome before = results.put(each.item.event().getEventId(), each.result.outcome());
        assertNull(before, "one answer to each event");
      }
    }

    void answer() {
      PublishStreamRequest request = unanswered.remove();
      PublishStreamResponse.Builder answer =
          PublishStreamResponse.newBuilder().setRequestId(request.getRequestId());
      boolean poisoned =
          request.getEventsList().stream().anyMatch(each -> each.getIdsDetection().getSignature().equals("detection 13"));
      if (poisoned && devices == 3) {
        answer.getErrorBuilder().setCode(Status.Code.INVALID_ARGUMENT.value());
      } else {
        PublishResponse.Builder result = answer.getResultBuilder();
        // A device whose first event is rejected keeps its order only if the later ones are rejected too.
        Set<String> full = new HashSet<>();
        for (Event each : request.getEventsList()) {
          if (random.nextDouble() < 0.1) {
            full.add(each.getDeviceId());
          }
        }
        for (int index = 0; index < request.getEventsCount(); index++) {
          Event each = request.getEvents(index);
          if (full.contains(each.getDeviceId())) {
            ErrorReason reason =
                random.nextBoolean() ? ErrorReason.ERROR_REASON_OVERLOADED : ErrorReason.ERROR_REASON_RATE_LIMITED;
            result.addRejectionsBuilder().setIndex(index).setReason(reason);
          } else if (each.getIdsDetection().getSignature().endsWith("7")) {
            result.addRejectionsBuilder().setIndex(index).setReason(ErrorReason.ERROR_REASON_INVALID_FIELD);
          } else {
            accepted.add(each.getEventId());
          }
        }
      }
      try {
        take(core.answered(answer.build(), now));
      } catch (PublishCore.Broken broken) {
        reopen(broken.error);
      }
    }

    void reopen(SiemException error) {
      unanswered.clear();
      List<PublishCore.Result> answers = new ArrayList<>();
      now += core.broke(error, now, false, answers);
      take(answers);
    }

    void step() {
      double chance = random.nextDouble();
      if (chance < 0.05) {
        // The answers are lost, although the events were accepted.
        unanswered.forEach(request -> request.getEventsList().forEach(each -> accepted.add(each.getEventId())));
        reopen(new SiemException(Status.Code.UNAVAILABLE, "planned"));
      } else if (chance < 0.5 && !unanswered.isEmpty()) {
        answer();
      } else {
        byte[] encoded = core.nextRequest(now);
        if (encoded == null) {
          now += 50 * MILLI;
          return;
        }
        unanswered.add(decoded(encoded));
        maxInFlight = Math.max(maxInFlight, unanswered.size());
      }
    }
  }

  private static PublishStreamRequest decoded(byte[] encoded) {
    try {
      return PublishStreamRequest.parseFrom(encoded);
    } catch (InvalidProtocolBufferException error) {
      throw new AssertionError(error);
    }
  }

  private static int numberOf(String id) {
    return Integer.parseInt(id.substring(id.indexOf('-') + 1));
  }

  @Test
  void everyEventGetsOneAnswerAndDevicesKeepTheirOrder() {
    for (int seed = 0; seed < 300; seed++) {
      boolean single = seed % 2 == 0;
      // With one request in flight no later event of a device can overtake a rejected one.
      PublisherOptions options =
          PublisherOptions.builder()
              .maxRequestsInFlight(single ? 1 : 4)
              .maxBatchEvents(4)
              .giveUpAfter(Duration.ofDays(1000))
              .build();
      Model model = new Model(seed, seed % 3 + 1, options);
      int total = 60;
      for (int number = 0; number < total; number++) {
        Event event = Fake.event(number, "device" + number % model.devices, "acme", 0);
        model.core.add(new PublishCore.Item(event), model.now);
        for (int steps = model.random.nextInt(4); steps > 0; steps--) {
          model.step();
        }
      }
      model.core.flush();
      for (int steps = 0; steps < 20_000 && !model.core.isDone(); steps++) {
        model.step();
      }
      String run = "seed " + seed;
      assertTrue(model.core.isDone(), run);
      assertEquals(total, model.results.size(), run);
      assertEquals(0, model.core.bytes(), run);
      assertTrue(model.core.unanswered().isEmpty(), run);
      assertTrue(model.maxInFlight <= options.maxRequestsInFlight, run);
      Set<String> firstAccepted = new LinkedHashSet<>(model.accepted);
      for (int device = 0; device < model.devices && single && model.devices != 3; device++) {
        String prefix = "device" + device + "-";
        List<Integer> numbers =
            firstAccepted.stream()
                .filter(id -> id.startsWith(prefix))
                .map(PublishCoreTest::numberOf)
                .collect(Collectors.toList());
        assertEquals(numbers.stream().sorted().collect(Collectors.toList()), numbers, run);
      }
      model.results.forEach(
          (id, outcome) -> {
            int number = numberOf(id);
            boolean isFinal = number % 10 == 7 || (number == 13 && model.devices == 3);
            if (!isFinal) {
              assertEquals(Outcome.ACCEPTED, outcome, run + " " + id);
            } else if (!firstAccepted.contains(id)) {
              assertEquals(Outcome.REJECTED, outcome, run + " " + id);
            }
          });
    }
  }

  private static PublishCore core() {
    return new PublishCore(PublisherOptions.builder().maxRequestsInFlight(64).build());
  }

  private static List<byte[]> requestsOf(PublishCore core) {
    List<byte[]> requests = new ArrayList<>();
    byte[] request;
    while ((request = core.nextRequest(TimeUnit.HOURS.toNanos(1))) != null) {
      requests.add(request);
    }
    return requests;
  }

  @Test
  void requestsStayBelowTheLimitsWithTheirFraming() {
    PublishCore core = core();
    for (int number = 0; number < 9; number++) {
      core.add(new PublishCore.Item(Fake.event(number, "device", "acme", (1 << 20) - 80)), 0);
    }
    for (int number = 0; number < 2_500; number++) {
      core.add(new PublishCore.Item(Fake.event(number)), 0);
    }
    core.flush();
    int total = 0;
    List<byte[]> requests = requestsOf(core);
    for (byte[] request : requests) {
      assertTrue(request.length <= 4 << 20);
      int events = decoded(request).getEventsCount();
      assertTrue(events <= 1_000);
      total += events;
    }
    assertEquals(2_509, total);
    // As few requests as the limits allow, but for the last of each kind.
    assertTrue(requests.size() <= 6);
  }

  @Test
  void requestsCarryOneOrganizationWhileThereAreFew() {
    for (int organizations : new int[] {8, 9}) {
      PublishCore core = core();
      for (int number = 0; number < 40; number++) {
        core.add(new PublishCore.Item(Fake.event(number, "device", "org" + number % organizations, 0)), 0);
      }
      assertEquals(organizations == 8 ? 8 : 1, requestsOf(core).size());
    }
  }

  private static Set<Outcome> outcomes(int organizations, int unconfigured) throws PublishCore.Broken {
    PublishCore core = core();
    for (int number = 0; number < 9; number++) {
      core.add(new PublishCore.Item(Fake.event(number, "device", "org" + number % organizations, 0)), 0);
    }
    requestsOf(core);
    PublishStreamResponse.Builder answer = PublishStreamResponse.newBuilder().setRequestId("1");
    answer.getResultBuilder().setAccepted(9 - unconfigured).setUnconfigured(unconfigured);
    return core.answered(answer.build(), 0).stream().map(each -> each.result.outcome()).collect(Collectors.toSet());
  }

  @Test
  void outcomesOfUnconfiguredOrganizations() throws PublishCore.Broken {
    assertEquals(Set.of(Outcome.ACCEPTED), outcomes(1, 0));
    assertEquals(Set.of(Outcome.UNCONFIGURED), outcomes(1, 9));
    assertEquals(Set.of(Outcome.UNDETERMINED), outcomes(9, 4));
  }

  @Test
  void itGivesUpAfterATimeWithoutProgress() {
    PublishCore core = new PublishCore(PublisherOptions.builder().giveUpAfter(Duration.ofSeconds(10)).build());
    core.add(new PublishCore.Item(Fake.event(1)), 0);
    long now = 0;
    SiemException failure = null;
    while (failure == null) {
      try {
        long wait = core.broke(new SiemException(Status.Code.UNAVAILABLE, "planned"), now, false, new ArrayList<>());
        assertTrue(wait > 0 && wait <= TimeUnit.SECONDS.toNanos(5));
        now += wait;
      } catch (SiemException error) {
        failure = error;
      }
    }
    assertTrue(failure.getMessage().contains("gave up after 10.0 s"), failure.getMessage());
    assertEquals(TimeUnit.SECONDS.toNanos(10), now);
  }

  @Test
  void itNeverSendsEarlierThanTheServerAsks() {
    PublishCore core = core();
    core.add(new PublishCore.Item(Fake.event(1)), 0);
    SiemException error =
        Errors.of(Fake.status(Status.Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", Duration.ofSeconds(30)));
    long wait = core.broke(error, 0, false, new ArrayList<>());
    assertTrue(wait >= TimeUnit.SECONDS.toNanos(30) && wait <= TimeUnit.MILLISECONDS.toNanos(37_500));
  }

  @Test
  void anAnswerToAnotherRequestBreaksTheStream() {
    PublishCore core = core();
    core.add(new PublishCore.Item(Fake.event(1)), 0);
    requestsOf(core);
    PublishStreamResponse.Builder answer = PublishStreamResponse.newBuilder().setRequestId("2");
    answer.getResultBuilder().setAccepted(1);
    assertThrows(PublishCore.Broken.class, () -> core.answered(answer.build(), 0));
    assertFalse(core.isDone());
  }

  private static PublishStreamRequest sent(PublishCore core, long now) {
    byte[] encoded = core.nextRequest(now);
    assertNotNull(encoded);
    return decoded(encoded);
  }

  private static void overloaded(PublishCore core, PublishStreamRequest request, long now) throws PublishCore.Broken {
    PublishStreamResponse.Builder answer =
        PublishStreamResponse.newBuilder().setRequestId(request.getRequestId());
    for (int index = 0; index < request.getEventsCount(); index++) {
      answer.getResultBuilder().addRejectionsBuilder().setIndex(index).setReason(ErrorReason.ERROR_REASON_OVERLOADED);
    }
    assertTrue(core.answered(answer.build(), now).isEmpty());
  }

  @Test
  void theSecondHalfOfASplitRequestWaitsForTheFirst() throws PublishCore.Broken {
    PublishCore core = new PublishCore(PublisherOptions.builder().build(), failures -> 1_000 * MILLI);
    core.add(new PublishCore.Item(Fake.event(1)), 0);
    core.add(new PublishCore.Item(Fake.event(2)), 0);
    core.flush();
    overloaded(core, sent(core, 0), 0);
    long now = 1_000 * MILLI;
    PublishStreamResponse.Builder refusal =
        PublishStreamResponse.newBuilder().setRequestId(sent(core, now).getRequestId());
    refusal.getErrorBuilder().setCode(Status.Code.INVALID_ARGUMENT.value());
    PublishCore.Broken broken =
        assertThrows(PublishCore.Broken.class, () -> core.answered(refusal.build(), now));
    core.broke(broken.error, now, false, new ArrayList<>());
    PublishStreamRequest half = sent(core, now);
    assertEquals(1, half.getEventsCount());
    assertEquals(Fake.event(1).getEventId(), half.getEvents(0).getEventId());
    overloaded(core, half, now);
    assertNull(core.nextRequest(now), "event 2 would overtake event 1");
    assertEquals(Fake.event(1).getEventId(), sent(core, 2 * now).getEvents(0).getEventId());
  }
}
