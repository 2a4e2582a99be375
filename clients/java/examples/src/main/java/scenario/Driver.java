package scenario;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.meter.siem.client.ConfigurationException;
import com.meter.siem.client.Messages;
import com.meter.siem.client.PublishResult;
import com.meter.siem.client.Publisher;
import com.meter.siem.client.PublisherStats;
import com.meter.siem.client.SiemClient;
import com.meter.siem.client.SiemException;
import com.meter.siem.client.StatusEvent;
import com.meter.siem.client.StatusWatch;
import com.meter.siem.client.Tls;
import com.meter.siem.client.Token;
import com.meter.siem.client.UnacknowledgedException;
import com.meter.siem.client.Violation;
import com.meter.siem.v1.AuditEntry;
import com.meter.siem.v1.ConfigureRequest;
import com.meter.siem.v1.DeleteRequest;
import com.meter.siem.v1.ErrorReason;
import com.meter.siem.v1.Event;
import com.meter.siem.v1.EventCounts;
import com.meter.siem.v1.GenerateExternalIdRequest;
import com.meter.siem.v1.GetOnboardingRequest;
import com.meter.siem.v1.GetOnboardingResponse;
import com.meter.siem.v1.GetRequest;
import com.meter.siem.v1.GetResponse;
import com.meter.siem.v1.IdsDetection;
import com.meter.siem.v1.Integration;
import com.meter.siem.v1.IntegrationStatus;
import com.meter.siem.v1.ListAuditEntriesRequest;
import com.meter.siem.v1.ListAuditEntriesResponse;
import com.meter.siem.v1.ListRequest;
import com.meter.siem.v1.ListResponse;
import com.meter.siem.v1.OnboardingDocument;
import com.meter.siem.v1.PublishRequest;
import com.meter.siem.v1.PublishResponse;
import com.meter.siem.v1.Rejection;
import com.meter.siem.v1.SendTestRequest;
import com.meter.siem.v1.SendTestResponse;
import com.meter.siem.v1.StatusReason;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentSkipListMap;

/** Driver of clients/scenario: reads calls from standard input, and answers on standard output. */
public final class Driver {
  private static final String NETWORK = "00000000-0000-0000-0000-000000000001";
  private static final String DEVICE = "00000000-0000-0000-0000-000000000002";
  private static final Instant START = Instant.parse("2026-01-02T03:04:05Z");

  private SiemClient client;
  private StatusWatch watch;
  private Publisher publisher;
  private final Map<Integer, Rejection> rejected = new ConcurrentSkipListMap<>();

  private Driver() {}

  /** Answers each line. */
  public static void main(String[] arguments) throws IOException {
    Driver driver = new Driver();
    PrintStream output = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    String line;
    while ((line = input.readLine()) != null) {
      output.println(driver.answer(JsonParser.parseString(line).getAsJsonObject()));
    }
  }

  private JsonObject answer(JsonObject call) {
    try {
      return make(call.get("call").getAsString(), call);
    } catch (SiemException error) {
      JsonObject shown = new JsonObject();
      shown.addProperty("code", error.code().name());
      shown.addProperty("reason", error.reasonName());
      JsonArray fields = new JsonArray();
      for (Violation violation : error.violations()) {
        fields.add(violation.field());
      }
      shown.add("violations", fields);
      return failure(shown, error.message());
    } catch (ConfigurationException error) {
      JsonObject shown = new JsonObject();
      shown.addProperty("code", "CONFIGURATION");
      return failure(shown, error.getMessage());
    }
  }

  private static JsonObject failure(JsonObject shown, String message) {
    shown.addProperty("message", message);
    JsonObject answer = new JsonObject();
    answer.add("error", shown);
    return answer;
  }

  private JsonObject make(String name, JsonObject call) {
    switch (name) {
      case "connect":
        return connect(call);
      case "configure":
        return shown(client.configure(configuration(call)).getIntegration());
      case "get":
        return get(call);
      case "list":
        return list(call);
      case "generate_external_id":
        return generateExternalId(call);
      case "get_onboarding":
        return getOnboarding(call);
      case "list_audit_entries":
        return listAuditEntries(call);
      case "delete":
        return delete(call);
      case "send_test":
        return sendTest(call);
      case "publish":
        return publish(call);
      case "watch_open":
        watch = client.watchStatus(texts(call, "organization_ids"), text(call, "resume_token"));
        return new JsonObject();
      case "watch_next":
        return shown(watch.next());
      case "watch_token":
        return one("resume_token", watch.resumeToken());
      case "watch_close":
        watch.close();
        return new JsonObject();
      case "publisher_open":
        rejected.clear();
        publisher = client.publisher();
        return new JsonObject();
      case "send":
        return send(call);
      case "flush":
        return flush(call);
      case "publisher_close":
        return closePublisher(call);
      default:
        throw new IllegalArgumentException("unknown call " + name);
    }
  }

  private JsonObject connect(JsonObject call) {
    if (client != null) {
      client.close();
    }
    SiemClient.Builder builder = SiemClient.builder(text(call, "address"));
    if (call.has("ca")) {
      Tls.Builder tls = Tls.builder().ca(Path.of(text(call, "ca")));
      if (call.has("certificate")) {
        tls.certificate(Path.of(text(call, "certificate")), Path.of(text(call, "key")));
      }
      builder.tls(tls.build());
    }
    if (call.has("token")) {
      builder.token(text(call, "token"));
    }
    if (call.has("tokens")) {
      List<String> tokens = texts(call, "tokens");
      Iterator<String> next = tokens.iterator();
      builder.token(() -> Token.of(next.hasNext() ? next.next() : tokens.get(tokens.size() - 1)));
    }
    client = builder.connect();
    return new JsonObject();
  }

  private static ConfigureRequest configuration(JsonObject call) {
    return ConfigureRequest.newBuilder()
        .setOrganizationId(text(call, "organization_id"))
        .setKinesisStreamArn(text(call, "kinesis_stream_arn"))
        .setRoleArn(text(call, "role_arn"))
        .setExternalId(text(call, "external_id"))
        .setEtag(text(call, "etag"))
        .setValidateOnly(flag(call, "validate_only"))
        .setKeepPreviousExternalId(flag(call, "keep_previous_external_id"))
        .build();
  }

  private JsonObject get(JsonObject call) {
    GetRequest request = GetRequest.newBuilder().setOrganizationId(text(call, "organization_id")).build();
    GetResponse answer = call.has("timeout") ? client.get(request, timeout(call)) : client.get(request);
    return shown(answer.getIntegration());
  }

  private JsonObject list(JsonObject call) {
    ListRequest.Builder request = ListRequest.newBuilder().setPageToken(text(call, "page_token"));
    if (call.has("page_size")) {
      request.setPageSize(call.get("page_size").getAsInt());
    }
    ListResponse answer = client.list(request.build());
    JsonArray names = new JsonArray();
    answer.getIntegrationsList().forEach(each -> names.add(each.getOrganizationId()));
    JsonObject shown = one("next_page_token", answer.getNextPageToken());
    shown.add("organization_ids", names);
    return shown;
  }

  private JsonObject generateExternalId(JsonObject call) {
    GenerateExternalIdRequest request =
        GenerateExternalIdRequest.newBuilder().setOrganizationId(text(call, "organization_id")).build();
    return one("external_id", client.generateExternalId(request).getExternalId());
  }

  private JsonObject getOnboarding(JsonObject call) {
    GetOnboardingResponse answer =
        client.getOnboarding(
            GetOnboardingRequest.newBuilder()
                .setStream(text(call, "stream"))
                .setRegion(text(call, "region"))
                .setAccount(text(call, "account"))
                .setRoleName(text(call, "role_name"))
                .setExternalId(text(call, "external_id"))
                .setPrincipal(text(call, "principal"))
                .build());
    JsonArray names = new JsonArray();
    for (OnboardingDocument document : answer.getDocumentsList()) {
      names.add(document.getFileName());
    }
    JsonObject shown = one("role_arn", answer.getRoleArn());
    shown.add("file_names", names);
    return shown;
  }

  private JsonObject listAuditEntries(JsonObject call) {
    ListAuditEntriesResponse answer =
        client.listAuditEntries(
            ListAuditEntriesRequest.newBuilder().setOrganizationId(text(call, "organization_id")).build());
    JsonArray actions = new JsonArray();
    JsonArray principals = new JsonArray();
    for (AuditEntry entry : answer.getEntriesList()) {
      actions.add(entry.getAction().name());
      principals.add(entry.getPrincipal());
    }
    JsonObject shown = new JsonObject();
    shown.add("actions", actions);
    shown.add("principals", principals);
    return shown;
  }

  private JsonObject delete(JsonObject call) {
    EventCounts counts =
        client
            .delete(
                DeleteRequest.newBuilder()
                    .setOrganizationId(text(call, "organization_id"))
                    .setAllowMissing(flag(call, "allow_missing"))
                    .setEtag(text(call, "etag"))
                    .build())
            .getCounts();
    JsonObject shown = new JsonObject();
    shown.addProperty("accepted", counts.getAccepted());
    shown.addProperty("pending", counts.getPending());
    return shown;
  }

  private JsonObject sendTest(JsonObject call) {
    SendTestResponse answer =
        client.sendTest(SendTestRequest.newBuilder().setOrganizationId(text(call, "organization_id")).build());
    JsonObject shown = shown(answer.getStatus());
    shown.addProperty("delivered", answer.getDelivered());
    shown.addProperty("message", answer.getMessage());
    return shown;
  }

  private JsonObject publish(JsonObject call) {
    PublishRequest.Builder request = PublishRequest.newBuilder();
    for (int number = first(call); number <= last(call); number++) {
      request.addEvents(event(call, number));
    }
    PublishResponse answer = client.publish(request.build());
    JsonArray rejections = new JsonArray();
    for (Rejection rejection : answer.getRejectionsList()) {
      JsonObject shown = shown(rejection);
      shown.addProperty("index", rejection.getIndex());
      rejections.add(shown);
    }
    JsonObject shown = new JsonObject();
    shown.addProperty("accepted", answer.getAccepted());
    shown.addProperty("unconfigured", answer.getUnconfigured());
    shown.add("rejections", rejections);
    return shown;
  }

  private JsonObject send(JsonObject call) {
    for (int number = first(call); number <= last(call); number++) {
      int current = number;
      publisher.send(event(call, number)).thenAccept(answer -> note(current, answer));
    }
    JsonObject shown = new JsonObject();
    shown.addProperty("sent", last(call) - first(call) + 1);
    return shown;
  }

  private void note(int number, PublishResult answer) {
    answer.rejection().ifPresent(rejection -> rejected.put(number, rejection));
  }

  private JsonObject flush(JsonObject call) {
    publisher.flush(timeout(call));
    PublisherStats stats = publisher.stats();
    JsonArray rejections = new JsonArray();
    rejected.forEach(
        (number, rejection) -> {
          JsonObject shown = shown(rejection);
          shown.addProperty("number", number);
          rejections.add(shown);
        });
    JsonObject shown = new JsonObject();
    shown.addProperty("accepted", stats.accepted());
    shown.addProperty("filtered", stats.filtered());
    shown.addProperty("unconfigured", stats.unconfigured());
    shown.add("rejected", rejections);
    return shown;
  }

  private JsonObject closePublisher(JsonObject call) {
    JsonArray unacknowledged = new JsonArray();
    try {
      publisher.close(timeout(call));
    } catch (UnacknowledgedException error) {
      error.unacknowledged().forEach(each -> unacknowledged.add(each.getEventId()));
    }
    JsonObject shown = new JsonObject();
    shown.add("unacknowledged", unacknowledged);
    return shown;
  }

  /** Returns the event with a number, as clients/scenario/README.md describes it. */
  private static Event event(JsonObject call, int number) {
    Set<Integer> invalid = new HashSet<>();
    if (call.has("invalid")) {
      call.getAsJsonArray("invalid").forEach(each -> invalid.add(each.getAsInt()));
    }
    Event.Builder event =
        Event.newBuilder()
            .setOrganizationId(text(call, "organization_id"))
            .setNetworkId(NETWORK)
            .setDeviceId(DEVICE)
            .setObservedTime(Messages.timestamp(START.plusMillis(number)))
            .setIdsDetection(
                IdsDetection.newBuilder()
                    .setSrcIp(invalid.contains(number) ? "192.0.2.256" : "192.0.2.7")
                    .setDestIp("198.51.100.80")
                    .setSignature("detection " + number));
    if (flag(call, "event_ids")) {
      event.setEventId(String.format("00000000-0000-4000-8000-%012d", number));
    }
    return event.build();
  }

  private static JsonObject shown(Integration integration) {
    JsonObject shown = shown(integration.getStatus());
    shown.addProperty("organization_id", integration.getOrganizationId());
    shown.addProperty("integration_id", integration.getIntegrationId());
    shown.addProperty("etag", integration.getEtag());
    shown.addProperty("accepted", integration.getCounts().getAccepted());
    shown.addProperty("delivered", integration.getCounts().getDelivered());
    shown.addProperty("pending", integration.getCounts().getPending());
    return shown;
  }

  private static JsonObject shown(IntegrationStatus status) {
    JsonObject shown = one("status", Messages.statusOf(status).name());
    shown.addProperty("reason", Messages.enumName(StatusReason::forNumber, status.getReasonValue()));
    return shown;
  }

  private static JsonObject shown(Rejection rejection) {
    JsonObject shown = one("field", rejection.getField());
    shown.addProperty("reason", Messages.enumName(ErrorReason::forNumber, rejection.getReasonValue()));
    return shown;
  }

  private static JsonObject shown(StatusEvent event) {
    JsonObject shown;
    switch (event.kind()) {
      case SNAPSHOT:
        shown = new JsonObject();
        JsonObject statuses = new JsonObject();
        new TreeMap<>(event.snapshot().statuses())
            .forEach((name, each) -> statuses.addProperty(name, Messages.statusOf(each.getStatus()).name()));
        JsonArray organizations = new JsonArray();
        statuses.keySet().forEach(organizations::add);
        JsonArray absent = new JsonArray();
        new TreeSet<>(event.snapshot().absent()).forEach(absent::add);
        shown.add("statuses", statuses);
        shown.add("organizations", organizations);
        shown.add("absent", absent);
        break;
      case CURRENT:
        shown = shown(event.current().getStatus());
        shown.addProperty("organization_id", event.current().getOrganizationId());
        break;
      case DELETED:
        shown = one("organization_id", event.deleted().getOrganizationId());
        break;
      default:
        shown = one("organization_id", event.absent().getOrganizationId());
    }
    shown.addProperty("kind", event.kind().name().toLowerCase(java.util.Locale.ROOT));
    return shown;
  }

  private static JsonObject one(String name, String value) {
    JsonObject shown = new JsonObject();
    shown.addProperty(name, value);
    return shown;
  }

  private static int first(JsonObject call) {
    return call.get("first").getAsInt();
  }

  private static int last(JsonObject call) {
    return call.get("last").getAsInt();
  }

  private static String text(JsonObject call, String name) {
    return call.has(name) ? call.get(name).getAsString() : "";
  }

  private static List<String> texts(JsonObject call, String name) {
    List<String> texts = new ArrayList<>();
    if (call.has(name)) {
      for (JsonElement each : call.getAsJsonArray(name)) {
        texts.add(each.getAsString());
      }
    }
    return texts;
  }

  private static boolean flag(JsonObject call, String name) {
    return call.has(name) && call.get(name).getAsBoolean();
  }

  private static Duration timeout(JsonObject call) {
    return Duration.ofNanos((long) (call.get("timeout").getAsDouble() * 1e9));
  }
}
