/**
 * Client of siem-relay's API {@code siem.v1}, whose messages and enums are in {@code com.meter.siem.v1}.
 *
 * <pre>{@code
 * try (SiemClient client = SiemClient.connect("http://127.0.0.1:50051")) {
 *   GetRequest request = GetRequest.newBuilder().setOrganizationId("acme").build();
 *   System.out.println(client.get(request).getIntegration());
 * }
 * }</pre>
 *
 * <p>Calls block. A thread that is interrupted while it waits gets a {@link
 * com.meter.siem.client.SiemException} with the code {@code CANCELLED}, and stays interrupted.
 */
package com.meter.siem.client;
