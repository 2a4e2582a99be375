package com.meter.siem.client;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Private keys in PEM as openssl writes them, for Java, which reads only PKCS #8 (RFC 5958). */
final class PrivateKeys {
  private static final Pattern PEM =
      Pattern.compile("-----BEGIN ([A-Z ]*PRIVATE KEY)-----([^-]*)-----END \\1-----");
  private static final int SEQUENCE = 0x30;
  private static final int OCTETS = 0x04;
  private static final byte[] VERSION_0 = {2, 1, 0};

  /** rsaEncryption, 1.2.840.113549.1.1.1, with its parameter NULL. */
  private static final byte[] RSA = {6, 9, 42, (byte) 134, 72, (byte) 134, (byte) 247, 13, 1, 1, 1, 5, 0};

  /** id-ecPublicKey, 1.2.840.10045.2.1. */
  private static final byte[] EC = {6, 7, 42, (byte) 134, 72, (byte) 206, 61, 2, 1};

  private PrivateKeys() {}

  /**
   * Returns the key as PEM of PKCS #8.
   *
   * @throws ConfigurationException if it is none, or is encrypted
   */
  static byte[] pkcs8(byte[] pem) {
    Matcher found = PEM.matcher(new String(pem, StandardCharsets.ISO_8859_1));
    if (!found.find()) {
      throw new ConfigurationException("tls.key: there is no private key in the PEM");
    }
    String kind = found.group(1);
    if (kind.equals("PRIVATE KEY")) {
      return pem;
    }
    if (kind.startsWith("ENCRYPTED") || found.group(2).contains("ENCRYPTED")) {
      throw new ConfigurationException("tls.key: the key is encrypted; decrypt it with openssl pkcs8 -topk8 -nocrypt");
    }
    try {
      byte[] key = Base64.getMimeDecoder().decode(found.group(2));
      byte[] algorithm = kind.equals("RSA PRIVATE KEY") ? RSA : join(EC, curve(key));
      byte[] info = der(SEQUENCE, join(VERSION_0, der(SEQUENCE, algorithm), der(OCTETS, key)));
      String text = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(info);
      return ("-----BEGIN PRIVATE KEY-----\n" + text + "\n-----END PRIVATE KEY-----\n")
          .getBytes(StandardCharsets.US_ASCII);
    } catch (IllegalArgumentException | IndexOutOfBoundsException error) {
      throw new ConfigurationException(
          "tls.key: " + kind + " is not readable; convert it with openssl pkcs8 -topk8 -nocrypt");
    }
  }

  /** Returns the parameters of an ECPrivateKey (RFC 5915): the OID of its curve. */
  private static byte[] curve(byte[] key) {
    int[] at = {0};
    int end = enter(key, at, SEQUENCE);
    while (at[0] < end) {
      int tag = key[at[0]] & 0xff;
      int stop = enter(key, at, tag);
      if (tag == 0xa0) {
        return java.util.Arrays.copyOfRange(key, at[0], stop);
      }
      at[0] = stop;
    }
    throw new IllegalArgumentException("the key names no curve");
  }

  /** Moves from an element to its content. Returns the end of the content. */
  private static int enter(byte[] der, int[] at, int tag) {
    if ((der[at[0]++] & 0xff) != tag) {
      throw new IllegalArgumentException("unexpected element");
    }
    int length = der[at[0]++] & 0xff;
    if (length > 127) {
      int bytes = length & 127;
      length = 0;
      for (int read = 0; read < Math.min(bytes, 4); read++) {
        length = length << 8 | der[at[0]++] & 0xff;
      }
    }
    if (length < 0 || length > der.length - at[0]) {
      throw new IllegalArgumentException("the element is longer than the key");
    }
    return at[0] + length;
  }

  private static byte[] der(int tag, byte[] content) {
    int length = content.length;
    byte[] head = {(byte) tag, (byte) 0x82, (byte) (length >> 8), (byte) length};
    if (length < 128) {
      head = new byte[] {(byte) tag, (byte) length};
    } else if (length < 256) {
      head = new byte[] {(byte) tag, (byte) 0x81, (byte) length};
    }
    return join(head, content);
  }

  private static byte[] join(byte[]... parts) {
    ByteArrayOutputStream joined = new ByteArrayOutputStream();
    for (byte[] part : parts) {
      joined.write(part, 0, part.length);
    }
    return joined.toByteArray();
  }
}
