// The steps of the guide, and what a page must survive, in a real Chromium at the built server.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";
import { connect } from "../../typescript/src/index.ts";
import { Relay, runBinary, temporary } from "../../typescript/tests/server.ts";
import { closeBrowser, externalId, Visit, World } from "./harness.ts";

after(closeBrowser);

test("the guide: configure, verify, test, deny and heal, delete", { timeout: 180_000 }, async (t) => {
  const world = await World.start(t);
  const visit = await Visit.open(t, world.relay.address);
  const { page } = visit;
  await visit.text("There are no integrations yet");
  await visit.state("empty");

  await visit.button("Configure").click();
  await page.getByRole("dialog", { name: "Configure SIEM" }).waitFor();
  // Every violation is beside its field, and the first has the focus.
  await visit.button("Save").click();
  await page.locator("#kinesis_stream_arn-error:not(:empty)").waitFor();
  for (const field of ["organization_id", "kinesis_stream_arn", "role_arn", "external_id"]) {
    assert.notEqual(await page.locator(`#${field}-error`).textContent(), "", field);
    assert.equal(await page.locator(`#${field}`).getAttribute("aria-invalid"), "true", field);
  }
  assert.equal(await page.evaluate(() => document.activeElement?.id), "organization_id");
  await visit.state("violations");

  await page.getByLabel("Organization", { exact: true }).last().fill("acme");
  await page.getByLabel("AWS Kinesis ARN").fill(world.stream);
  await page.getByLabel("Role ARN").fill(world.role);
  // An issued external ID, and the documents with it.
  await visit.button("Issue an External ID").click();
  await page.waitForFunction(() => document.querySelector<HTMLInputElement>("#external_id")?.value.length === 64);
  await page.getByText("Prepare the AWS account").click();
  await visit.button("Show the documents").click();
  await page.getByRole("heading", { name: "siem-relay.tf" }).waitFor();
  assert.equal(await page.getByRole("link", { name: /Create the stack/ }).count(), 0);
  const [download] = await Promise.all([page.waitForEvent("download"), visit.button("Download siem-relay.tf").click()]);
  assert.equal(download.suggestedFilename(), "siem-relay.tf");
  await visit.state("documents");
  await page.getByLabel("External ID", { exact: true }).fill(externalId);
  await visit.button("Save").click();
  await visit.badge("Unknown");
  await visit.button("Configuration").waitFor();
  assert.equal(await visit.button("Configure").count(), 0);
  await visit.state("unknown");

  // Delivery changes the badge without a reload.
  await world.publish("acme", 3);
  await visit.badge("Active");
  await visit.card.getByText(world.stream).waitFor();
  await page.getByRole("button", { name: "Active" }).focus();
  await page.getByRole("tooltip").getByText("Last update").waitFor();
  await page.waitForFunction(() => /Delivered3/.test(document.querySelector(".card > dl")?.textContent ?? ""));
  await visit.state("active");

  await visit.button("Send test event").click();
  await visit.text("Sequence number");
  const result = page.getByRole("region", { name: "Test event" });
  assert.match((await result.textContent()) ?? "", /Assume role: passed.*External ID required: passed.*Write record: passed.*shardId-/);
  await page.locator(".notice.success").first().waitFor();
  await visit.state("tested");

  // A denial, and its healing.
  await world.trust("another");
  await world.publish("acme", 2);
  await visit.badge("Unauthorized");
  await page.waitForFunction(() => /Pending2/.test(document.querySelector(".card > dl")?.textContent ?? ""));
  await page.getByRole("button", { name: "Unauthorized" }).hover();
  const tip = page.getByRole("tooltip");
  await tip.getByText("Assume role denied").waitFor();
  await tip.getByText("Remedy").waitFor();
  await visit.state("unauthorized");
  await visit.button("Send test event").click();
  await page.locator(".notice.failure", { hasText: "Unauthorized - check your Role ARN and External ID" }).waitFor();
  await visit.state("test-refused");
  await world.trust(externalId);
  await visit.badge("Active");

  // A stored external ID is kept, and a lost one is not shown.
  await visit.button("Configuration").click();
  assert.equal(await page.getByLabel("External ID", { exact: true }).inputValue(), "");
  await visit.state("configuration");
  await visit.button("Save").click();
  await page.getByRole("dialog", { name: "Configure SIEM" }).waitFor({ state: "hidden" });
  await visit.badge("Active");

  await visit.button("Delete").click();
  const question = page.getByRole("alertdialog");
  await question.getByText("Are you sure you want to delete this SIEM integration?").waitFor();
  await visit.state("delete");
  await question.getByRole("button", { name: "Cancel" }).click();
  await visit.badge("Active");
  await visit.button("Delete").click();
  await question.getByRole("button", { name: "Delete" }).click();
  await visit.button("Configure").waitFor();
  await visit.text("There are no integrations yet");
  visit.check();
});

test("it survives restarts, and two pages show the same", { timeout: 120_000 }, async (t) => {
  const world = await World.start(t);
  const client = connect({ address: world.relay.address });
  t.after(() => client.close());
  await client.configure({ organizationId: "acme", kinesisStreamArn: world.stream, roleArn: world.role, externalId });
  const visit = await Visit.open(t, world.relay.address);
  const second = await Visit.in(visit.context, world.relay.address, "#acme");
  // The only integration is shown without being asked for.
  await visit.badge("Unknown");
  await second.badge("Unknown");
  await world.relay.kill();
  await visit.text("Connection lost. Reconnecting…");
  await visit.state("reconnecting");
  await world.relay.start();
  await visit.text("Live");
  await world.publish("acme", 1);
  await Promise.all([visit.badge("Active"), second.badge("Active")]);
  assert.deepEqual([...(await visit.shifts()), ...(await second.shifts())], [], "layout shifts");
  visit.check();
  second.check();
});

test("10,000 integrations, by keyboard, with few elements", { timeout: 900_000 }, async (t) => {
  const world = await World.start(t);
  const client = connect({ address: world.relay.address, timeoutMs: 120_000 });
  t.after(() => client.close());
  const names = Array.from({ length: 10_000 }, (_, index) => `customer-${String(index).padStart(5, "0")}`);
  const queue = names[Symbol.iterator]();
  const configure = async () => {
    for (const organizationId of queue) {
      await client.configure({ organizationId, kinesisStreamArn: world.stream, roleArn: world.role, externalId: `id-of-${organizationId}` });
    }
  };
  const began = performance.now();
  await Promise.all(Array.from({ length: 64 }, configure));
  t.diagnostic(`configured in ${Math.round((performance.now() - began) / 1000)} s`);
  const visit = await Visit.open(t, world.relay.address);
  const { page } = visit;
  await visit.text("10,000 integrations");
  const box = page.getByRole("listbox");
  await box.focus();
  await page.keyboard.press("End");
  await page.getByRole("option", { name: "customer-09999" }).waitFor();
  assert.ok((await page.getByRole("option").count()) < 40);
  await page.keyboard.press("Enter");
  await visit.badge("Unknown");
  await visit.card.getByText("Organization customer-09999").waitFor();
  await page.getByLabel("Search").fill("0123");
  await visit.text("11 of 10,000 integrations");
  await page.getByLabel("Search").fill("");
  await page.getByLabel("Status").selectOption("Active");
  await visit.text("0 of 10,000 integrations");
  await client.sendTest({ organizationId: "customer-00000" });
  await page.getByLabel("Status").selectOption("Unauthorized");
  await page.getByRole("option", { name: "customer-00000" }).click();
  await visit.badge("Unauthorized");
  await visit.state("many");
  assert.deepEqual(await visit.shifts(), [], "layout shifts");
  visit.check();
});

test("files have their types, validators and policy, and nothing else is served", { timeout: 60_000 }, async (t) => {
  const world = await World.start(t, "--console-template-url", "https://templates.s3.us-east-1.amazonaws.com/siem-relay.yaml");
  const get = (path: string, options: RequestInit = {}) => fetch(`${world.relay.address}${path}`, { redirect: "manual", ...options });
  for (const [name, type] of [["", "text/html"], ["console.js", "text/javascript"], ["console.css", "text/css"], ["icon.svg", "image/svg+xml"]]) {
    const answer = await get(`/console/${name}`);
    assert.equal(answer.status, 200, name);
    assert.ok(answer.headers.get("content-type")?.startsWith(type as string), name);
    assert.match(answer.headers.get("content-security-policy") ?? "", /default-src 'none'.*frame-ancestors 'none'/);
    assert.equal(answer.headers.get("x-content-type-options"), "nosniff");
    const etag = answer.headers.get("etag") as string;
    assert.equal((await get(`/console/${name}`, { headers: { "if-none-match": etag } })).status, 304, name);
    const head = await get(`/console/${name}`, { method: "HEAD" });
    assert.deepEqual([head.status, (await head.text()).length], [200, 0]);
  }
  assert.equal((await get("/console")).headers.get("location"), "/console/");
  assert.equal((await get("/console/../Cargo.toml")).status, 405);
  assert.equal((await get("/console/none")).status, 404);
  assert.equal((await get("/console/", { method: "POST" })).headers.get("allow"), "GET, HEAD");
  const visit = await Visit.open(t, world.relay.address, { hash: "#acme" });
  const { page } = visit;
  await visit.button("Configure").click();
  await page.getByLabel("AWS Kinesis ARN").fill(world.stream);
  await page.getByLabel("Role ARN").fill(world.role);
  await page.getByText("Prepare the AWS account").click();
  await visit.button("Show the documents").click();
  const href = await page.getByRole("link", { name: "Create the stack in the AWS console" }).getAttribute("href");
  assert.match(href ?? "", /^https:\/\/us-west-2\.console\.aws\.amazon\.com\/.*templateURL=https%3A%2F%2Ftemplates/);
  visit.check();
});

test("a token that is bound to one organization, pasted or set by a proxy, and one that is refused", { timeout: 90_000 }, async (t) => {
  const made = join(temporary(t), "credentials");
  runBinary("dev-credentials", "--organization", "acme", made);
  const file = (name: string) => join(made, name);
  const flags = ["--console", "--callers", file("callers.toml"), "--tls-cert", file("server.pem"), "--tls-key", file("server.key")];
  const tls = { ca: file("ca.pem") };
  const token = readFileSync(file("write.token"), "utf8").trim();
  const relay = await Relay.start(t, flags, undefined, { tls, token });
  const origin = `https://127.0.0.1:${relay.port}`;
  const client = connect({ address: origin, tls, token });
  t.after(() => client.close());
  const arns = { kinesisStreamArn: "arn:aws:kinesis:us-west-2:111122223333:stream/a", roleArn: "arn:aws:iam::111122223333:role/a" };
  await client.configure({ organizationId: "acme", ...arns, externalId });

  const visit = await Visit.open(t, origin);
  const { page } = visit;
  const dialog = page.getByRole("dialog", { name: "Sign in" });
  await dialog.waitFor();
  await visit.state("sign-in");
  await page.getByLabel("Token").fill(`${token.slice(0, -8)}AAAAAAAA`);
  await visit.button("Sign in").click();
  await page.getByText("The token was refused").waitFor();
  await visit.text("Not signed in, or no right to read");
  await visit.state("token-refused");
  await page.getByLabel("Token").fill(token);
  await visit.button("Sign in").click();
  await visit.badge("Unknown");
  await visit.card.getByText(arns.kinesisStreamArn).waitFor();
  assert.equal(await page.evaluate(() => localStorage.length + sessionStorage.length + document.cookie.length), 0);

  // Another organization looks as if it had no integration, and may not get one.
  await page.goto(`${origin}/console/#other`);
  await visit.button("Configure").click();
  await page.getByLabel("AWS Kinesis ARN").fill(arns.kinesisStreamArn);
  await page.getByLabel("Role ARN").fill(arns.roleArn);
  await page.getByLabel("External ID", { exact: true }).fill("another-external-id");
  await visit.button("Save").click();
  await page.locator(".drawer [role=alert]:not(:empty)").waitFor();
  await visit.state("denied");

  // A page that is loaded again has no token.
  await page.reload();
  await dialog.waitFor();
  visit.check();

  const proxied = await Visit.open(t, origin, { header: `Bearer ${token}` });
  await proxied.badge("Unknown");
  assert.equal(await proxied.page.getByRole("dialog").count(), 0);
  proxied.check();
});
