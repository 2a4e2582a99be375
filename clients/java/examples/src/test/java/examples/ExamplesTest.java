package examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Every example, and the first lines of the README, against {@code siem-relay sandbox} of SIEM_RELAY_BIN. */
class ExamplesTest {
  private static final String ROLE = "arn:aws:iam::222222222222:role/siem-delivery";
  private static final Pattern ADDRESS = Pattern.compile("siem-relay +(http://\\S+)");
  private static final Pattern STREAM = Pattern.compile("delivers to (arn:\\S+)");

  private static Process sandbox;
  private static String address;
  private static String stream;
  private final Set<String> ran = new TreeSet<>();

  private interface Main {
    void run(String[] arguments) throws Exception;
  }

  @BeforeAll
  static void start() throws IOException {
    String binary = System.getenv("SIEM_RELAY_BIN");
    assertNotNull(binary, "SIEM_RELAY_BIN names the server: cargo build makes target/debug/siem-relay");
    ProcessBuilder builder = new ProcessBuilder(binary, "sandbox", "--port", "0");
    builder.redirectOutput(ProcessBuilder.Redirect.DISCARD);
    builder.environment().keySet().removeIf(name -> name.startsWith("AWS_") || name.startsWith("SIEM_RELAY_"));
    sandbox = builder.start();
    BufferedReader output = new BufferedReader(new InputStreamReader(sandbox.getErrorStream(), StandardCharsets.UTF_8));
    while (address == null || stream == null) {
      String line = output.readLine();
      assertNotNull(line, "the sandbox has ended");
      address = found(ADDRESS, line, address);
      stream = found(STREAM, line, stream);
    }
    // So that it never waits for its output to be read.
    Thread reading = new Thread(() -> drain(output));
    reading.setDaemon(true);
    reading.start();
  }

  private static void drain(BufferedReader output) {
    try {
      output.transferTo(Writer.nullWriter());
    } catch (IOException ended) {
      // With the process.
    }
  }

  private static String found(Pattern pattern, String line, String before) {
    Matcher matcher = pattern.matcher(line);
    return matcher.find() ? matcher.group(1) : before;
  }

  @AfterAll
  static void stop() throws InterruptedException {
    sandbox.destroy();
    sandbox.waitFor(45, TimeUnit.SECONDS);
    sandbox.destroyForcibly();
  }

  /** Runs an example; returns its output. */
  private String run(Class<?> example, Main main, String... arguments) throws Exception {
    ran.add(example.getSimpleName());
    List<String> all = new ArrayList<>(List.of(address));
    all.addAll(List.of(arguments));
    PrintStream before = System.out;
    ByteArrayOutputStream output = new ByteArrayOutputStream();
    System.setOut(new PrintStream(output, true, StandardCharsets.UTF_8));
    try {
      main.run(all.toArray(new String[0]));
    } finally {
      System.setOut(before);
    }
    return output.toString(StandardCharsets.UTF_8);
  }

  private static Process java(Path directory, String... arguments) throws IOException {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(List.of("-cp", System.getProperty("java.class.path")));
    command.addAll(List.of(arguments));
    return new ProcessBuilder(command).directory(directory.toFile()).redirectError(ProcessBuilder.Redirect.INHERIT).start();
  }

  private static void contains(String output, String expected) {
    assertTrue(output.contains(expected), "instead of " + expected + ": " + output);
  }

  @Test
  void allExamples(@TempDir Path directory) throws Exception {
    String id = run(GenerateExternalId.class, GenerateExternalId::main, "other").strip();
    assertEquals(64, id.length());
    contains(run(Configure.class, Configure::main, "other", stream, ROLE, id), " etag ");
    contains(run(SendTest.class, SendTest::main, "acme"), "delivered");
    contains(run(Publish.class, Publish::main, "acme"), "1 accepted");
    contains(run(PublishStream.class, PublishStream::main, "acme", "250"), "250 accepted");
    contains(run(Get.class, Get::main, "acme"), " events delivered");
    contains(run(Get.class, Get::main, "absent"), "absent has no integration");
    contains(run(examples.List.class, examples.List::main), "acme STATUS_ACTIVE");
    contains(run(ListAuditEntries.class, ListAuditEntries::main, "other"), "AUDIT_ACTION_CREATE by ");
    String documents =
        run(GetOnboarding.class, GetOnboarding::main, stream, "siem", id, "444455556666", directory.toString());
    contains(documents, "siem-relay.tf: ");
    contains(Files.readString(directory.resolve("siem-relay.tf")), "444455556666");

    ran.add(StreamStatus.class.getSimpleName());
    Process watch = java(directory, StreamStatus.class.getName(), address);
    try {
      BufferedReader lines = new BufferedReader(new InputStreamReader(watch.getInputStream(), StandardCharsets.UTF_8));
      assertEquals("2 integrations", lines.readLine());
      contains(lines.readLine(), "resume token ");
      contains(run(Delete.class, Delete::main, "other"), " discarded");
      List<String> seen = new ArrayList<>();
      String line;
      while ((line = lines.readLine()) != null && !line.equals("other deleted")) {
        seen.add(line);
      }
      assertEquals("other deleted", line, seen.toString());
    } finally {
      watch.destroyForcibly();
    }

    try (Stream<Path> files = Files.list(Path.of("src/main/java/examples"))) {
      Set<String> all =
          files.map(file -> file.getFileName().toString().replace(".java", "")).collect(Collectors.toSet());
      assertEquals(all, ran, "each example runs here");
    }
  }

  @Test
  void theFirstLinesOfTheReadme(@TempDir Path directory) throws Exception {
    String readme = Files.readString(Path.of("README.md"));
    String block = readme.split("```java\n")[1].split("```")[0];
    List<String> imports = block.lines().filter(line -> line.startsWith("import ")).collect(Collectors.toList());
    List<String> statements =
        block.lines().filter(line -> !line.isBlank() && !line.startsWith("import ")).collect(Collectors.toList());
    assertEquals(5, statements.size());
    String program =
        String.join("\n", imports)
            + "\nclass Program { public static void main(String[] arguments) {\n"
            + String.join("\n", statements).replace("http://127.0.0.1:50051", address)
            + "\n} }\n";
    Files.writeString(directory.resolve("Program.java"), program);
    Process process = java(directory, "Program.java");
    assertTrue(process.waitFor(60, TimeUnit.SECONDS));
    String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertEquals(0, process.exitValue(), output);
    contains(output, "STATUS_");
  }
}
