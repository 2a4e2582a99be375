package com.meter.siem.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyPairGenerator;
import java.security.interfaces.ECPrivateKey;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Tokens, addresses and keys: fetched once, ahead of the expiry, and never sent in clear. */
class TokensTest {
  private static final long LONG = TimeUnit.SECONDS.toNanos(30);

  private static <T> Set<T> together(int threads, Callable<T> body) throws Exception {
    ExecutorService pool = Executors.newFixedThreadPool(threads);
    CyclicBarrier barrier = new CyclicBarrier(threads);
    try {
      List<Future<T>> results = new ArrayList<>();
      for (int thread = 0; thread < threads; thread++) {
        results.add(
            pool.submit(
                () -> {
                  barrier.await();
                  return body.call();
                }));
      }
      Set<T> found = new HashSet<>();
      for (Future<T> result : results) {
        found.add(result.get());
      }
      return found;
    } finally {
      pool.shutdownNow();
    }
  }

  @Test
  void aHundredThreadsFetchOnce() throws Exception {
    AtomicInteger calls = new AtomicInteger();
    Tokens tokens = new Tokens(() -> Token.of("token-" + calls.incrementAndGet()), null);
    assertEquals(Set.of("token-1"), together(100, () -> tokens.get(LONG)));
    // All of them were refused with the same token.
    for (int count = 0; count < 100; count++) {
      tokens.refused("token-1");
    }
    assertEquals(Set.of("token-2"), together(100, () -> tokens.get(LONG)));
    tokens.refused("token-1");
    assertEquals("token-2", tokens.get(LONG));
    assertEquals(2, calls.get());
  }

  @Test
  void aFailingFunctionIsNotCalledByEachCall() {
    AtomicInteger calls = new AtomicInteger();
    Tokens tokens =
        new Tokens(
            () -> {
              calls.incrementAndGet();
              throw new IOException("the issuer is down");
            },
            null);
    for (int count = 0; count < 20; count++) {
      SiemException error = assertThrows(SiemException.class, () -> tokens.get(LONG));
      assertTrue(error.getMessage().contains("the issuer is down"));
      assertTrue(error.neverSent());
    }
    assertEquals(1, calls.get());
  }

  @Test
  void aHangingFunctionDoesNotOutlastTheDeadline() {
    CountDownLatch released = new CountDownLatch(1);
    Tokens tokens =
        new Tokens(
            () -> {
              released.await();
              return Token.of("late");
            },
            null);
    SiemException error = assertThrows(SiemException.class, () -> tokens.get(TimeUnit.MILLISECONDS.toNanos(50)));
    assertTrue(error.getMessage().contains("could not be fetched in time"));
    released.countDown();
  }

  @Test
  void itIsFetchedAheadAndTheOldOneIsSentMeanwhile() {
    TokenState state = new TokenState(null);
    state.fetched(Token.of("a", Instant.ofEpochSecond(1000)), 0);
    assertFalse(state.wantsFetch(799_000));
    assertTrue(state.wantsFetch(801_000));
    assertEquals("a", state.usable(900_000));
    state.failed(new IOException("down"), 801_000);
    assertFalse(state.wantsFetch(801_500));
    assertTrue(state.wantsFetch(803_000));
    assertEquals("a", state.usable(990_000));
    assertNull(state.usable(996_000));
  }

  private static String jwt(long expiry) {
    String claims = "{\"sub\":\"a\",\"exp\":" + expiry / 1000 + "}";
    return "e30." + Base64.getUrlEncoder().withoutPadding().encodeToString(claims.getBytes(StandardCharsets.UTF_8)) + ".c2ln";
  }

  @Test
  void theExpiryOfAJwtIsRead() {
    TokenState state = new TokenState(null);
    long now = 1_000_000_000;
    state.fetched(Token.of(jwt(now + 100_000)), now);
    assertFalse(state.wantsFetch(now + 70_000));
    assertTrue(state.wantsFetch(now + 90_000));
    assertNull(state.usable(now + 99_000));
    // This machine's clock is ahead: the server decides, and the function is not called again by each call.
    String expired = jwt(now - 10_000);
    state.fetched(Token.of(expired), now);
    assertEquals(expired, state.usable(now));
    assertFalse(state.wantsFetch(now + 1_000));
    for (String other : new String[] {"a.b.c", "e30.e30.e30", "e30.W10.e30", "a.b", "e30.eyJleHAiOm51bGx9.e30"}) {
      state.fetched(Token.of(other), now);
      assertEquals(other, state.usable(now + 1_000_000_000), "without an expiry");
    }
  }

  @Test
  void aFileIsReadAgain(@TempDir Path directory) throws Exception {
    Path file = directory.resolve("token");
    Files.writeString(file, "first\n");
    TokenState state = new TokenState(Duration.ofSeconds(60));
    state.fetched(Token.of("first"), 0);
    assertFalse(state.wantsFetch(59_000));
    assertTrue(state.wantsFetch(61_000));
    try (Fake fake = new Fake();
        SiemClient client = fake.client().tokenFile(file).connect()) {
      fake.gets.addAll(
          List.of(Fake.got(), Fake.got(), Fake.error(Status.Code.UNAUTHENTICATED, "UNAUTHENTICATED"), Fake.got()));
      client.get(Fake.GET);
      Files.writeString(file, "second\n");
      client.get(Fake.GET);
      client.get(Fake.GET);
      assertEquals(List.of("Bearer first", "Bearer first", "Bearer first", "Bearer second"), fake.authorizations);
    }
  }

  @Test
  void concurrentCallsShareTheNewToken() throws Exception {
    AtomicInteger calls = new AtomicInteger();
    try (Fake fake = new Fake();
        SiemClient client = fake.client().token(() -> Token.of("token-" + calls.incrementAndGet())).connect()) {
      for (int count = 0; count < 20; count++) {
        fake.gets.add(Fake.error(Status.Code.UNAUTHENTICATED, "UNAUTHENTICATED"));
      }
      for (int count = 0; count < 20; count++) {
        fake.gets.add(Fake.got());
      }
      together(
          20,
          () -> {
            try {
              client.get(Fake.GET);
            } catch (SiemException refused) {
              return false;
            }
            return true;
          });
    }
    // One for all that were refused with the first token, and one more where the second was refused too.
    assertTrue(calls.get() >= 2 && calls.get() <= 4, "calls: " + calls);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "http://192.0.2.1:1",
        "relay.example.com:443",
        "http://localhost.example.com",
        "http://[2001:db8::1]:1",
        "http://127.0.0.1.example.com",
        "http://127.0.0.256:1",
      })
  void noTokenInClear(String address) {
    ConfigurationException error =
        assertThrows(ConfigurationException.class, () -> SiemClient.builder(address).token("secret").connect());
    assertTrue(error.getMessage().contains("not sent in clear"));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "http://localhost:1",
        "127.0.0.1:1",
        "http://[::1]:1",
        "http://[0:0:0:0:0:0:0:1]:1",
        "https://relay.example.com",
        "127.3.2.1:9/",
      })
  void tokensToLoopbackAndOverTls(String address) {
    SiemClient.builder(address).token("secret").connect().close();
  }

  @ParameterizedTest
  @CsvSource({
    "ftp://relay, use http or https",
    "http://, is not of the form",
    "'', is not of the form",
    "http://relay:port, HOST:PORT",
    "http://relay:99999, HOST:PORT",
    "http://relay:, HOST:PORT",
    "http://relay:1/path, is not of the form",
    "http://user@relay:1, is not of the form",
    "http://::1:5, is not of the form",
    "http://relay_1:443, Invalid DNS name",
  })
  void badAddresses(String address, String problem) {
    ConfigurationException error = assertThrows(ConfigurationException.class, () -> SiemClient.connect(address));
    assertTrue(error.getMessage().contains(problem), error.getMessage());
  }

  private static void refused(String problem, SiemClient.Builder builder) {
    ConfigurationException error = assertThrows(ConfigurationException.class, builder::connect);
    assertTrue(error.getMessage().contains(problem), error.getMessage());
  }

  private static SiemClient.Builder with(Tls.Builder tls) {
    return SiemClient.builder("https://relay").tls(tls.build());
  }

  @Test
  void badOptions() {
    byte[] noPem = {1, 2, 3};
    byte[] broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".getBytes(StandardCharsets.US_ASCII);
    refused("tls.ca: ", with(Tls.builder().ca(Path.of("/absent"))));
    refused("tls.ca: this is no PEM", with(Tls.builder().ca(noPem)));
    refused("tls: the certificates or the key cannot be used", with(Tls.builder().ca(broken)));
    refused("tls.key: there is no private key", with(Tls.builder().certificate(broken, broken)));
    refused("tls.serverName 'a b'", with(Tls.builder().serverName("a b")));
    refused("plaintext", SiemClient.builder("http://relay").tls(Tls.builder().build()));
    refused("timeout", SiemClient.builder("https://relay").timeout(Duration.ZERO));
    for (String token : new String[] {"", "a\r\nb: c", "ü"}) {
      assertThrows(ConfigurationException.class, () -> SiemClient.builder("https://relay").token(token));
    }
    assertThrows(ConfigurationException.class, () -> PublisherOptions.builder().maxBatchEvents(1_001).build());
    assertThrows(ConfigurationException.class, () -> PublisherOptions.builder().linger(Duration.ofMillis(-1)).build());
    assertThrows(ConfigurationException.class, () -> RetryOptions.of(Duration.ofSeconds(2), Duration.ofSeconds(1)));
    assertFalse(Token.of("secret").toString().contains("secret"));
  }

  private static byte[] pem(String kind, byte[] der) {
    String text = Base64.getMimeEncoder().encodeToString(der);
    return ("-----BEGIN " + kind + "-----\n" + text + "\n-----END " + kind + "-----\n").getBytes(StandardCharsets.US_ASCII);
  }

  private static byte[] der(byte[] pem) {
    String text = new String(pem, StandardCharsets.US_ASCII).replaceAll("-----[A-Z ]*-----", "");
    return Base64.getMimeDecoder().decode(text);
  }

  @Test
  void rsaKeysOfOpenssl() throws Exception {
    KeyPairGenerator generator = KeyPairGenerator.getInstance("RSA");
    generator.initialize(2048);
    byte[] expected = generator.generateKeyPair().getPrivate().getEncoded();
    // The inner key follows the algorithm: a header of 22 bytes, then its own of 4 bytes.
    byte[] inner = Arrays.copyOfRange(expected, 26, expected.length);
    assertArrayEquals(expected, der(PrivateKeys.pkcs8(pem("RSA PRIVATE KEY", inner))));
    byte[] same = pem("PRIVATE KEY", expected);
    assertSame(same, PrivateKeys.pkcs8(same));
  }

  @Test
  void ecKeysOfOpenssl() throws Exception {
    KeyPairGenerator generator = KeyPairGenerator.getInstance("EC");
    generator.initialize(new ECGenParameterSpec("secp256r1"));
    ECPrivateKey key = (ECPrivateKey) generator.generateKeyPair().getPrivate();
    byte[] secret = new byte[32];
    byte[] number = key.getS().toByteArray();
    int length = Math.min(number.length, 32);
    System.arraycopy(number, number.length - length, secret, 32 - length, length);
    ByteArrayOutputStream inner = new ByteArrayOutputStream();
    inner.write(new byte[] {0x30, 3 + 34 + 12, 2, 1, 1, 4, 32});
    inner.write(secret);
    // [0] with the OID of the curve.
    inner.write(new byte[] {(byte) 0xa0, 10, 6, 8, 42, (byte) 134, 72, (byte) 206, 61, 3, 1, 7});
    byte[] parameters = pem("EC PARAMETERS", new byte[] {6, 8, 42, (byte) 134, 72, (byte) 206, 61, 3, 1, 7});
    ByteArrayOutputStream file = new ByteArrayOutputStream();
    file.write(parameters);
    file.write(pem("EC PRIVATE KEY", inner.toByteArray()));
    byte[] converted = der(PrivateKeys.pkcs8(file.toByteArray()));
    ECPrivateKey read =
        (ECPrivateKey) KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(converted));
    assertEquals(key.getS(), read.getS());
    for (int cut = 0; cut < inner.size(); cut++) {
      byte[] part = Arrays.copyOf(inner.toByteArray(), cut);
      assertThrows(ConfigurationException.class, () -> PrivateKeys.pkcs8(pem("EC PRIVATE KEY", part)));
    }
    ConfigurationException encrypted =
        assertThrows(
            ConfigurationException.class, () -> PrivateKeys.pkcs8(pem("ENCRYPTED PRIVATE KEY", new byte[] {1})));
    assertTrue(encrypted.getMessage().contains("decrypt it"));
  }
}
