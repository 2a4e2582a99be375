package com.meter.siem.client;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * Transport security. Files are read once, by {@link SiemClient.Builder#connect}; connect again after they were
 * replaced.
 */
public final class Tls {
  private static final Pem NONE = () -> null;

  private final Pem ca;
  private final Pem certificate;
  private final Pem key;
  private final String serverName;

  private Tls(Builder builder) {
    this.ca = builder.ca;
    this.certificate = builder.certificate;
    this.key = builder.key;
    this.serverName = builder.serverName;
  }

  /**
   * Returns a builder: without changes it trusts the authorities of the Java runtime.
   *
   * @return the builder
   */
  public static Builder builder() {
    return new Builder();
  }

  byte[] ca() {
    return read("ca", ca);
  }

  byte[] certificate() {
    return read("certificate", certificate);
  }

  byte[] key() {
    return read("key", key);
  }

  String serverName() {
    return serverName;
  }

  private static byte[] read(String name, Pem pem) {
    byte[] content;
    try {
      content = pem.read();
    } catch (IOException error) {
      throw new ConfigurationException("tls." + name + ": " + error);
    }
    if (content != null && !new String(content, StandardCharsets.ISO_8859_1).contains("-----BEGIN")) {
      throw new ConfigurationException("tls." + name + ": this is no PEM; convert DER with openssl");
    }
    return content;
  }

  @Override
  public String toString() {
    return "Tls(serverName=" + serverName + ")";
  }

  private interface Pem {
    byte[] read() throws IOException;
  }

  /** Builds transport security. Each PEM is given as bytes, or as a file. */
  public static final class Builder {
    private Pem ca = NONE;
    private Pem certificate = NONE;
    private Pem key = NONE;
    private String serverName;

    private Builder() {}

    /**
     * Sets the authorities to trust, instead of those of the Java runtime.
     *
     * @param file their certificates
     * @return this
     */
    public Builder ca(Path file) {
      ca = () -> Files.readAllBytes(file);
      return this;
    }

    /**
     * Sets the authorities to trust, instead of those of the Java runtime.
     *
     * @param pem their certificates
     * @return this
     */
    public Builder ca(byte[] pem) {
      byte[] copy = pem.clone();
      ca = () -> copy;
      return this;
    }

    /**
     * Sets the certificate of this client, for a server that asks for one.
     *
     * @param chain its certificate chain
     * @param privateKey its private key, PKCS #8 and not encrypted
     * @return this
     */
    public Builder certificate(Path chain, Path privateKey) {
      certificate = () -> Files.readAllBytes(chain);
      key = () -> Files.readAllBytes(privateKey);
      return this;
    }

    /**
     * Sets the certificate of this client, for a server that asks for one.
     *
     * @param chain its certificate chain
     * @param privateKey its private key, PKCS #8 and not encrypted
     * @return this
     */
    public Builder certificate(byte[] chain, byte[] privateKey) {
      byte[] chainCopy = chain.clone();
      byte[] keyCopy = privateKey.clone();
      certificate = () -> chainCopy;
      key = () -> keyCopy;
      return this;
    }

    /**
     * Sets the name to expect in the server's certificate, if it is not the host of the address.
     *
     * @param name a DNS name
     * @return this
     */
    public Builder serverName(String name) {
      serverName = name;
      return this;
    }

    /**
     * Returns the transport security.
     *
     * @return the options
     */
    public Tls build() {
      return new Tls(this);
    }
  }
}
