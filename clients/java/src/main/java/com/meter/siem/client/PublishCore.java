package com.meter.siem.client;

import com.google.protobuf.CodedOutputStream;
import com.google.protobuf.InvalidProtocolBufferException;
import com.meter.siem.v1.ErrorReason;
import com.meter.siem.v1.Event;
import com.meter.siem.v1.PublishResponse;
import com.meter.siem.v1.PublishStreamRequest;
import com.meter.siem.v1.PublishStreamResponse;
import com.meter.siem.v1.Rejection;
import io.grpc.Status;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.PriorityQueue;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.function.IntToLongFunction;

/**
 * Requests, acknowledgements and order of a publisher, which guards it by a lock. No I/O and no clock; {@code now} is
 * in nanoseconds of a monotonic clock.
 *
 * <p>Events pass through: pending (not yet in a request), the window (requests that are to be sent or unanswered), and
 * deferred (rejected temporarily, or behind such an event of their device).
 */
final class PublishCore {
  /** Memory of one event beside its encoded bytes: the item, its future and its entries in the queues. */
  static final int EVENT_OVERHEAD_BYTES = 1_024;

  /** Follows at once, with a new bearer token. */
  static final long WITH_NEW_TOKEN = -1;

  /** Bytes of a request_id with its tag and length; the id is a number. */
  private static final int REQUEST_ID_BYTES = 24;

  /**
   * Up to this number of organizations at a time, each request carries events of one, since an answer only counts the
   * events of organizations without an integration.
   */
  private static final int SEPARATE_ORGANIZATIONS = 8;

  private static final Set<ErrorReason> TEMPORARY =
      EnumSet.of(ErrorReason.ERROR_REASON_OVERLOADED, ErrorReason.ERROR_REASON_RATE_LIMITED);
  private static final Set<Status.Code> STOP =
      EnumSet.of(
          Status.Code.UNIMPLEMENTED,
          Status.Code.UNAUTHENTICATED,
          Status.Code.PERMISSION_DENIED,
          Status.Code.NOT_FOUND);
  private static final Set<Status.Code> AT_FAULT =
      EnumSet.of(Status.Code.INVALID_ARGUMENT, Status.Code.OUT_OF_RANGE, Status.Code.FAILED_PRECONDITION);

  private final PublisherOptions options;
  private final IntToLongFunction waits;
  final PublisherStats stats = new PublisherStats();
  private long bytes;
  private long orders;
  private final ArrayDeque<Item> pending = new ArrayDeque<>();
  private long pendingBytes;
  private long lingerUntil;
  // Events up to this order do not linger.
  private long flushed;
  private final ArrayDeque<List<Item>> window = new ArrayDeque<>();
  private int sent;
  private long frontId = 1;
  // Requests with smaller ids are sent one at a time, to find the one that breaks the stream.
  private long singlyBelow;
  private final Map<List<String>, Device> devices = new HashMap<>();
  private final PriorityQueue<Due> due =
      new PriorityQueue<>(Comparator.<Due>comparingLong(each -> each.at).thenComparingLong(each -> each.order));
  private int failures;
  private boolean refreshed;
  private long progressAt;
  private long answerDue;

  PublishCore(PublisherOptions options) {
    this(options, options.retry::backoff);
  }

  /**
   * @param waits the wait after this number of earlier failures in a row
   */
  PublishCore(PublisherOptions options, IntToLongFunction waits) {
    this.options = options;
    this.waits = waits;
  }

  /** One encoded event. */
  static final class Item {
    final byte[] data;
    final String organization;
    final List<String> device;

    /** Bytes within a request. */
    final int framed;

    final CompletableFuture<PublishResult> future = new CompletableFuture<>();

    /** Number in the order of sending. */
    long order;

    Item(Event event) {
      data = event.toByteArray();
      organization = event.getOrganizationId();
      device = List.of(event.getOrganizationId(), event.getNetworkId(), event.getDeviceId());
      framed = CodedOutputStream.computeByteArraySize(PublishStreamRequest.EVENTS_FIELD_NUMBER, data);
    }

    /** Returns the memory that it takes. */
    long weight() {
      return data.length + (long) EVENT_OVERHEAD_BYTES;
    }

    Event event() {
      try {
        return Event.parseFrom(data);
      } catch (InvalidProtocolBufferException error) {
        // The bytes are those of a message.
        throw new UncheckedIOException(error);
      }
    }
  }

  /** Final answer to an item, to be handed to its caller. */
  static final class Result {
    final Item item;
    final PublishResult result;

    Result(Item item, PublishResult result) {
      this.item = item;
      this.result = result;
    }
  }

  /** A stream cannot continue. */
  static final class Broken extends Exception {
    private static final long serialVersionUID = 1;
    final SiemException error;

    Broken(SiemException error) {
      super(error);
      this.error = error;
    }

    Broken(Status.Code code, String message) {
      this(new SiemException(code, message));
    }
  }

  /** A device with deferred events. At most one request at a time carries events of it. */
  private static final class Device {
    /** Its deferred events. */
    final List<Item> waiting = new ArrayList<>();

    /** Its events in the window. */
    int inWindow;

    /** Those in the window were sent again, so that they precede all deferred ones. */
    boolean resent;

    /** One of those that were last in the window was rejected temporarily, or got its final answer. */
    boolean rejected;

    boolean progress;

    /** Attempts in a row without progress. */
    int failures;

    void sort() {
      waiting.sort(Comparator.comparingLong(item -> item.order));
    }
  }

  private static final class Due {
    final long at;
    final long order;
    final List<String> device;

    Due(long at, long order, List<String> device) {
      this.at = at;
      this.order = order;
      this.device = device;
    }
  }

  // Input.

  /** Returns whether memory is left for an event. */
  boolean hasCapacity(long weight) {
    return bytes == 0 || bytes + weight <= options.maxBytesInFlight;
  }

  /** Takes an event. Returns whether that changes the time of the next request. */
  boolean add(Item item, long now) {
    if (isDone()) {
      progressAt = now;
    }
    item.order = ++orders;
    boolean isFirst = pending.isEmpty();
    if (isFirst) {
      lingerUntil = now + options.linger;
    }
    pending.add(item);
    pendingBytes += item.framed;
    bytes += item.weight();
    stats.pending++;
    return isFirst || isFull();
  }

  /** Ends the linger of what is pending. Returns the order of the last event. */
  long flush() {
    flushed = orders;
    return orders;
  }

  /** Returns whether pending events wait for further ones. */
  boolean lingers() {
    return !pending.isEmpty() && pending.peek().order > flushed;
  }

  /** Returns whether every event has its final answer. */
  boolean isDone() {
    return stats.pending == 0;
  }

  /** Returns the bytes of memory that unanswered events take. */
  long bytes() {
    return bytes;
  }

  /** Returns all events without a final answer, in the order of sending. */
  List<Item> unanswered() {
    List<Item> items = new ArrayList<>(pending);
    window.forEach(items::addAll);
    devices.values().forEach(device -> items.addAll(device.waiting));
    items.sort(Comparator.comparingLong(item -> item.order));
    return items;
  }

  /** Returns the order of the oldest event without a final answer; the largest number if there is none. */
  long oldest() {
    long oldest = pending.isEmpty() ? Long.MAX_VALUE : pending.peek().order;
    for (List<Item> batch : window) {
      for (Item item : batch) {
        oldest = Math.min(oldest, item.order);
      }
    }
    for (Device device : devices.values()) {
      for (Item item : device.waiting) {
        oldest = Math.min(oldest, item.order);
      }
    }
    return oldest;
  }

  // Output.

  private boolean isFull() {
    return pending.size() >= options.maxBatchEvents || pendingBytes >= options.maxBatchBytes - REQUEST_ID_BYTES;
  }

  private boolean isReady(long now) {
    return !pending.isEmpty() && (isFull() || now - lingerUntil >= 0 || pending.peek().order <= flushed);
  }

  /** Moves the pending events of one request, or of a few, to the window. */
  private void takePending(long now) {
    Map<String, List<Item>> groups = new LinkedHashMap<>();
    List<Item> batch = new ArrayList<>();
    long size = REQUEST_ID_BYTES;
    while (!pending.isEmpty() && batch.size() < options.maxBatchEvents) {
      size += pending.peek().framed;
      if (!batch.isEmpty() && size > options.maxBatchBytes) {
        break;
      }
      Item item = pending.remove();
      pendingBytes -= item.framed;
      Device device = devices.get(item.device);
      if (device != null) {
        device.waiting.add(item);
        size -= item.framed;
      } else {
        batch.add(item);
        groups.computeIfAbsent(item.organization, any -> new ArrayList<>()).add(item);
      }
    }
    lingerUntil = now + options.linger;
    if (groups.size() <= SEPARATE_ORGANIZATIONS) {
      window.addAll(groups.values());
    } else {
      window.add(batch);
    }
  }

  /** Returns the next request to send on the current stream; null if there is none. */
  byte[] nextRequest(long now) {
    while (window.size() < options.maxRequestsInFlight) {
      if (!due.isEmpty() && now - due.peek().at >= 0) {
        List<Item> batch = takeDue(now);
        if (!batch.isEmpty()) {
          window.add(batch);
        }
        continue;
      }
      if (!isReady(now)) {
        break;
      }
      takePending(now);
    }
    if (sent >= Math.min(window.size(), options.maxRequestsInFlight)) {
      return null;
    }
    if (frontId < singlyBelow && sent > 0) {
      return null;
    }
    if (sent == 0) {
      answerDue = now + options.answerTimeout;
    }
    Iterator<List<Item>> requests = window.iterator();
    for (int skipped = 0; skipped < sent; skipped++) {
      requests.next();
    }
    byte[] request = encode(Long.toString(frontId + sent), requests.next());
    sent++;
    return request;
  }

  /** Returns a {@code PublishStreamRequest} of events that are encoded already. */
  private static byte[] encode(String requestId, List<Item> items) {
    int size = CodedOutputStream.computeStringSize(PublishStreamRequest.REQUEST_ID_FIELD_NUMBER, requestId);
    for (Item item : items) {
      size += item.framed;
    }
    byte[] request = new byte[size];
    CodedOutputStream output = CodedOutputStream.newInstance(request);
    try {
      output.writeString(PublishStreamRequest.REQUEST_ID_FIELD_NUMBER, requestId);
      for (Item item : items) {
        output.writeByteArray(PublishStreamRequest.EVENTS_FIELD_NUMBER, item.data);
      }
    } catch (IOException error) {
      // The array has the size of the request.
      throw new UncheckedIOException(error);
    }
    return request;
  }

  /** Returns the nanoseconds until the next change that needs no answer and no event; the largest number if none. */
  long untilWakeup(long now) {
    long left = Long.MAX_VALUE;
    if (window.size() < options.maxRequestsInFlight) {
      if (!due.isEmpty()) {
        left = due.peek().at - now;
      }
      if (!pending.isEmpty()) {
        left = Math.min(left, lingerUntil - now);
      }
    }
    return Math.min(left, untilOverdue(now));
  }

  /** Returns the nanoseconds until an answer is overdue; the largest number if none is awaited. */
  long untilOverdue(long now) {
    return sent > 0 ? answerDue - now : Long.MAX_VALUE;
  }

  /** Returns whether the server has not answered for too long. */
  boolean isOverdue(long now) {
    return untilOverdue(now) <= 0;
  }

  // Answers.

  /**
   * Takes an answer.
   *
   * @throws Broken if the stream cannot continue
   */
  List<Result> answered(PublishStreamResponse answer, long now) throws Broken {
    if (sent == 0 || !answer.getRequestId().equals(Long.toString(frontId))) {
      throw new Broken(Status.Code.INTERNAL, "the server sent an answer to another request");
    }
    answerDue = now + options.answerTimeout;
    refreshed = false;
    switch (answer.getOutcomeCase()) {
      case RESULT:
        failures = 0;
        List<Result> results = settle(answer.getResult(), now, false);
        if (results.isEmpty() && left(now) <= 0) {
          throw new Broken(
              Status.Code.RESOURCE_EXHAUSTED, "the server rejected events temporarily until the publisher gave up");
        }
        return results;
      case ERROR:
        SiemException error = Errors.of(answer.getError());
        if (!isRefusal(error, true)) {
          throw new Broken(error);
        }
        if (window.peek().size() > 1) {
          // The next stream carries both halves, so that the others are not refused with the event at fault.
          split();
          throw new Broken(Status.Code.UNAVAILABLE, "a request was refused as a whole: " + error.getMessage());
        }
        failures = 0;
        return refuse(error, now);
      default:
        throw new Broken(Status.Code.INTERNAL, "the server sent an answer without an outcome");
    }
  }

  /**
   * Takes the end of a stream, and adds events that are refused for good to the results. Returns the wait in
   * nanoseconds until the next stream, or {@link #WITH_NEW_TOKEN}.
   *
   * @throws SiemException if the publisher must end
   */
  long broke(SiemException error, long now, boolean tokenCanChange, List<Result> results) {
    int inFlight = sent;
    sent = 0;
    if (error.code() == Status.Code.UNAUTHENTICATED && tokenCanChange && !refreshed) {
      refreshed = true;
      reclaim(now);
      return WITH_NEW_TOKEN;
    }
    if (STOP.contains(error.code())) {
      throw error;
    }
    if (inFlight > 0 && isRefusal(error, false)) {
      if (inFlight > 1) {
        singlyBelow = frontId + inFlight;
      } else if (window.peek().size() > 1) {
        split();
      } else {
        results.addAll(refuse(error, now));
      }
    }
    if (isDone()) {
      reclaim(now);
      return 0;
    }
    stats.reconnects++;
    long left = left(now);
    if (left <= 0) {
      String text = "gave up after " + Times.seconds(now - progressAt) + " without progress: " + error.getMessage();
      throw error.with(error.attempts(), text);
    }
    long wait = waits.applyAsLong(failures);
    if (error.retryDelay().isPresent()) {
      wait = Math.max(wait, options.retry.waitAfter(error, 0));
    } else {
      wait = Math.min(wait, left);
    }
    failures++;
    reclaim(now);
    return wait;
  }

  private long left(long now) {
    return options.giveUpAfter - (now - progressAt);
  }

  /** Returns whether the request is at fault and would fail again. */
  private static boolean isRefusal(SiemException error, boolean answered) {
    if (error.retryDelay().isPresent()) {
      return false;
    }
    if (AT_FAULT.contains(error.code())) {
      return true;
    }
    if (error.code() == Status.Code.RESOURCE_EXHAUSTED) {
      return answered || !Errors.isTransportLoss(error);
    }
    return answered && (STOP.contains(error.code()) || error.code() == Status.Code.ALREADY_EXISTS);
  }

  private void split() {
    List<Item> batch = window.remove();
    int half = batch.size() / 2;
    window.addFirst(new ArrayList<>(batch.subList(half, batch.size())));
    window.addFirst(new ArrayList<>(batch.subList(0, half)));
    singlyBelow = frontId + 2;
  }

  /** Settles the oldest request, of one event, with an error. */
  private List<Result> refuse(SiemException error, long now) {
    Rejection.Builder rejection = Rejection.newBuilder().setReason(error.reason()).setMessage(error.getMessage());
    if (!error.violations().isEmpty()) {
      Violation first = error.violations().get(0);
      rejection.setField(first.field()).setMessage(first.description());
    }
    // The reason is final here, whatever it is for single events.
    return settle(PublishResponse.newBuilder().addRejections(rejection).build(), now, true);
  }

  /** Settles the oldest request. Events that were rejected temporarily are deferred. */
  private List<Result> settle(PublishResponse response, long now, boolean isFinal) {
    List<Item> batch = window.remove();
    frontId++;
    sent = Math.max(sent - 1, 0);
    Map<Integer, Rejection> rejections = new HashMap<>();
    Set<Integer> temporary = new HashSet<>();
    for (Rejection rejection : response.getRejectionsList()) {
      int index = rejection.getIndex();
      if (index >= 0 && index < batch.size()) {
        rejections.put(index, rejection);
        if (!isFinal && TEMPORARY.contains(rejection.getReason())) {
          temporary.add(index);
        }
      }
    }
    int valid = batch.size() - rejections.size();
    Outcome outcome = Outcome.ACCEPTED;
    if (response.getUnconfigured() != 0 || response.getFiltered() != 0) {
      outcome = Outcome.UNDETERMINED;
      if (Integer.compareUnsigned(response.getUnconfigured(), valid) >= 0) {
        outcome = Outcome.UNCONFIGURED;
      } else if (Integer.compareUnsigned(response.getFiltered(), valid) >= 0) {
        outcome = Outcome.FILTERED;
      }
    }
    PublishResult kept = new PublishResult(outcome, null);
    List<Result> results = new ArrayList<>(batch.size());
    if (devices.isEmpty() && rejections.isEmpty()) {
      batch.forEach(item -> results.add(new Result(item, kept)));
    } else {
      settleEach(batch, rejections, temporary, kept, now, results);
    }
    for (Result each : results) {
      bytes -= each.item.weight();
      count(each.result.outcome());
    }
    stats.pending -= results.size();
    stats.deferred += temporary.size();
    if (!results.isEmpty()) {
      progressAt = now;
    }
    return results;
  }

  private void count(Outcome outcome) {
    switch (outcome) {
      case ACCEPTED:
        stats.accepted++;
        break;
      case UNCONFIGURED:
        stats.unconfigured++;
        break;
      case FILTERED:
        stats.filtered++;
        break;
      case REJECTED:
        stats.rejected++;
        break;
      default:
        stats.undetermined++;
    }
  }

  private void settleEach(
      List<Item> batch,
      Map<Integer, Rejection> rejections,
      Set<Integer> temporary,
      PublishResult kept,
      long now,
      List<Result> results) {
    for (Item item : batch) {
      Device known = devices.get(item.device);
      if (known != null) {
        known.inWindow--;
      }
    }
    Set<List<String>> touched = new HashSet<>();
    Set<List<String>> opened = new HashSet<>();
    boolean rejectedAgain = false;
    for (int index = 0; index < batch.size(); index++) {
      Item item = batch.get(index);
      touched.add(item.device);
      if (temporary.contains(index)) {
        Device device = devices.get(item.device);
        if (device == null) {
          device = new Device();
          devices.put(item.device, device);
          opened.add(item.device);
        }
        // The second half of a request that was split must not precede it.
        rejectedAgain |= device.resent;
        device.resent = false;
        device.rejected = true;
        device.waiting.add(item);
        continue;
      }
      Rejection rejection = rejections.get(index);
      if (rejection == null) {
        results.add(new Result(item, kept));
      } else {
        Rejection alone = rejection.toBuilder().setIndex(0).build();
        results.add(new Result(item, new PublishResult(Outcome.REJECTED, alone)));
      }
      Device device = devices.get(item.device);
      if (device != null) {
        device.progress = true;
      }
    }
    if (!opened.isEmpty()) {
      for (List<Item> waiting : window) {
        for (Item item : waiting) {
          if (opened.contains(item.device)) {
            devices.get(item.device).inWindow++;
          }
        }
      }
    }
    if (!opened.isEmpty() || rejectedAgain) {
      touched.addAll(withdraw());
    }
    schedule(touched, now);
  }

  // Deferred events.

  /** Defers events that must be sent again although earlier ones of their device are deferred. */
  private void reclaim(long now) {
    if (!devices.isEmpty()) {
      schedule(withdraw(), now);
    }
  }

  /** Moves events that must not be sent now out of the window. Returns their devices. */
  private Set<List<String>> withdraw() {
    Set<List<String>> touched = new HashSet<>();
    List<List<Item>> requests = new ArrayList<>(window);
    window.clear();
    window.addAll(requests.subList(0, sent));
    for (List<Item> batch : requests.subList(sent, requests.size())) {
      List<Item> staying = new ArrayList<>();
      for (Item item : batch) {
        Device device = devices.get(item.device);
        if (device == null || device.resent) {
          staying.add(item);
          continue;
        }
        device.inWindow--;
        device.waiting.add(item);
        touched.add(item.device);
      }
      if (!staying.isEmpty()) {
        window.add(staying);
      }
    }
    return touched;
  }

  /** Decides when devices without events in the window may send again. */
  private void schedule(Collection<List<String>> touched, long now) {
    for (List<String> key : touched) {
      Device device = devices.get(key);
      if (device == null || device.inWindow > 0) {
        continue;
      }
      if (device.waiting.isEmpty()) {
        devices.remove(key);
        continue;
      }
      if (device.progress || !device.rejected) {
        device.failures = 0;
      }
      long at = now;
      if (device.rejected) {
        at += waits.applyAsLong(device.failures);
        device.failures++;
      }
      device.resent = false;
      device.rejected = false;
      device.progress = false;
      device.sort();
      due.add(new Due(at, device.waiting.get(0).order, key));
    }
  }

  /** Returns the events of one request, in order for each device. */
  private List<Item> takeDue(long now) {
    List<Item> batch = new ArrayList<>();
    long size = REQUEST_ID_BYTES;
    while (!due.isEmpty() && now - due.peek().at >= 0) {
      Device device = devices.get(due.peek().device);
      // Events that came since then are newer than all of these.
      device.sort();
      int taken = 0;
      for (Item item : device.waiting) {
        boolean fits =
            batch.size() < options.maxBatchEvents && size + item.framed <= options.maxBatchBytes;
        if (!batch.isEmpty() && (!fits || !item.organization.equals(batch.get(0).organization))) {
          break;
        }
        batch.add(item);
        size += item.framed;
        taken++;
      }
      if (taken == 0) {
        break;
      }
      device.waiting.subList(0, taken).clear();
      device.inWindow += taken;
      device.resent = true;
      due.remove();
    }
    return batch;
  }
}
