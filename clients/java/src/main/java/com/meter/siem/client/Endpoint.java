package com.meter.siem.client;

import io.grpc.ChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.LoadBalancerRegistry;
import io.grpc.ManagedChannel;
import io.grpc.NameResolverRegistry;
import io.grpc.TlsChannelCredentials;
import io.grpc.internal.DnsNameResolverProvider;
import io.grpc.internal.PickFirstLoadBalancerProvider;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Address, transport security and options of a connection. */
final class Endpoint {
  static final String VERSION = "0.1.0";
  private static final Pattern HOST_PORT =
      Pattern.compile("(?:\\[([0-9A-Fa-f:.]+)\\]|([^\\s\\[\\]:/?#@]+))(?::([^:/?#@]*))?/?");
  private static final Pattern SERVER_NAME = Pattern.compile("[A-Za-z0-9._-]+");
  private static final Pattern LOOPBACK =
      Pattern.compile("localhost|127(\\.(\\d{1,2}|1\\d\\d|2[0-4]\\d|25[0-5])){3}|(0{0,4}:){2,7}0{0,3}1");
  private static final int MAX_ANSWER_BYTES = 16 << 20;

  private final String address;
  private final String target;
  private final boolean loopback;
  private final boolean plaintext;
  private final Tls tls;

  /**
   * Checks an address and what is to be sent there.
   *
   * @throws ConfigurationException if the address is malformed, its scheme contradicts {@code tls}, or a token would
   *     be sent in clear to another machine
   */
  Endpoint(String address, Tls tls, boolean hasToken) {
    int separator = address.indexOf("://");
    String scheme = separator < 0 ? (tls == null ? "http" : "https") : address.substring(0, separator);
    String rest = separator < 0 ? address : address.substring(separator + 3);
    if (!scheme.equals("http") && !scheme.equals("https")) {
      throw problem(address, ": the scheme is '" + scheme + "'; use http or https");
    }
    Matcher parts = HOST_PORT.matcher(rest);
    if (!parts.matches()) {
      throw problem(address, " is not of the form http://HOST:PORT or https://HOST:PORT");
    }
    plaintext = scheme.equals("http");
    int port = plaintext ? 80 : 443;
    if (parts.group(3) != null) {
      try {
        port = Integer.parseInt(parts.group(3));
      } catch (NumberFormatException error) {
        port = -1;
      }
      if (port < 0 || port > 65_535) {
        throw problem(address, ": the port is not a number from 0 to 65535; use HOST:PORT");
      }
    }
    if (tls != null && plaintext) {
      throw problem(address, " is plaintext, but tls is given; use https");
    }
    String host = parts.group(1) == null ? parts.group(2) : parts.group(1);
    loopback = LOOPBACK.matcher(host).matches();
    if (hasToken && plaintext && !loopback) {
      throw problem(address, ": a token is not sent in clear to another machine; use https, or loopback");
    }
    if (tls != null && tls.serverName() != null && !SERVER_NAME.matcher(tls.serverName()).matches()) {
      throw new ConfigurationException("tls.serverName '" + tls.serverName() + "' is no DNS name");
    }
    // A path, in which brackets are encoded.
    target = "dns:///" + (parts.group(1) == null ? host : "%5B" + host + "%5D") + ":" + port;
    this.address = address;
    this.tls = tls == null ? Tls.builder().build() : tls;
  }

  private static ConfigurationException problem(String address, String problem) {
    return new ConfigurationException("address '" + address + "'" + problem);
  }

  /**
   * Returns a channel, which connects at its first use.
   *
   * @throws ConfigurationException if a PEM cannot be used
   */
  ManagedChannel channel() {
    findProviders();
    NettyChannelBuilder builder;
    try {
      builder = NettyChannelBuilder.forTarget(target, plaintext ? InsecureChannelCredentials.create() : credentials());
    } catch (IOException | IllegalArgumentException error) {
      if (error instanceof ConfigurationException) {
        throw (ConfigurationException) error;
      }
      Throwable cause = error.getCause() == null ? error : error.getCause();
      throw new ConfigurationException("tls: the certificates or the key cannot be used: " + cause.getMessage());
    }
    if (!plaintext && tls.serverName() != null) {
      builder.overrideAuthority(tls.serverName());
    }
    if (loopback) {
      builder.proxyDetector(server -> null);
    }
    builder
        .userAgent("siem-client-java/" + VERSION)
        // One layer of retries, which is this package.
        .disableRetry()
        .disableServiceConfigLookUp()
        // A connection whose peer vanished ends after at most 40 s. Pings are sent only while a call is open.
        .keepAliveTime(30, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS)
        .keepAliveWithoutCalls(false)
        .withOption(ChannelOption.CONNECT_TIMEOUT_MILLIS, 5_000)
        .maxInboundMessageSize(MAX_ANSWER_BYTES);
    try {
      return builder.build();
    } catch (IllegalArgumentException error) {
      throw problem(address, ": " + error.getMessage());
    }
  }

  private ChannelCredentials credentials() throws IOException {
    TlsChannelCredentials.Builder credentials = TlsChannelCredentials.newBuilder();
    byte[] ca = tls.ca();
    if (ca != null) {
      credentials.trustManager(new ByteArrayInputStream(ca));
    }
    byte[] certificate = tls.certificate();
    if (certificate != null) {
      byte[] key = PrivateKeys.pkcs8(tls.key());
      credentials.keyManager(new ByteArrayInputStream(certificate), new ByteArrayInputStream(key));
    }
    return credentials.build();
  }

  /**
   * Registers the providers that gRPC finds by META-INF/services, which jars of several libraries in one often lose.
   */
  private static void findProviders() {
    if (LoadBalancerRegistry.getDefaultRegistry().getProvider("pick_first") == null) {
      LoadBalancerRegistry.getDefaultRegistry().register(new PickFirstLoadBalancerProvider());
    }
    if (!NameResolverRegistry.getDefaultRegistry().asFactory().getDefaultScheme().equals("dns")) {
      NameResolverRegistry.getDefaultRegistry().register(new DnsNameResolverProvider());
    }
  }
}
