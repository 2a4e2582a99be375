package com.meter.siem.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/** Threads and the end of the process. */
class ProcessTest {
  /** Uses everything; with an argument it closes nothing. */
  public static final class Program {
    private Program() {}

    public static void main(String[] arguments) throws Exception {
      Fake fake = new Fake();
      SiemClient client = fake.client().token(() -> Token.of("token")).connect();
      fake.gets.add(Fake.got());
      client.get(Fake.GET);
      Publisher publisher = client.publisher();
      publisher.send(Fake.event(1)).join();
      fake.watches.add(Fake.open(com.meter.siem.v1.StreamStatusResponse.newBuilder().setResumeToken("1").build()));
      StatusWatch watch = client.watchStatus();
      Thread watching = Threads.start("watching", watch::hasNext);
      Fake.until(() -> fake.watches.isEmpty());
      if (arguments.length == 0) {
        publisher.close();
        watch.close();
        client.close();
        watching.join();
        fake.close();
        // gRPC keeps its shared threads for a second, and idle ones of its pool for a minute.
        Fake.until(() -> Thread.getAllStackTraces().keySet().stream().noneMatch(Program::isOurs));
      }
      System.out.println("end of main");
    }

    private static boolean isOurs(Thread thread) {
      return thread.getName().startsWith("siem-client") || thread.getName().startsWith("grpc-");
    }
  }

  private static String run(String... arguments) throws Exception {
    String[] command = {
      Path.of(System.getProperty("java.home"), "bin", "java").toString(),
      "-cp",
      System.getProperty("java.class.path"),
      Program.class.getName()
    };
    java.util.List<String> all = new java.util.ArrayList<>(java.util.List.of(command));
    all.addAll(java.util.List.of(arguments));
    Process process = new ProcessBuilder(all).redirectError(ProcessBuilder.Redirect.INHERIT).start();
    try {
      assertTrue(process.waitFor(90, TimeUnit.SECONDS), "the process ends by itself");
      String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertEquals(0, process.exitValue(), output);
      return output;
    } finally {
      process.destroyForcibly();
    }
  }

  @Test
  void noThreadIsLeftAfterClose() throws Exception {
    assertTrue(run().contains("end of main\n"));
  }

  @Test
  void theProcessEndsWithItsMainThreadAlsoWithoutClose() throws Exception {
    assertTrue(run("unclosed").contains("end of main\n"));
  }
}
