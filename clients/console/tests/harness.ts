// A real Chromium, and the built server with its stand-in for AWS. Environment: SIEM_RELAY_BIN, and CHROMIUM for
// another browser than the system's.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { connect } from "../../typescript/src/index.ts";
import { Relay, StandIn } from "../../typescript/tests/server.ts";

const root = process.env["CONSOLE_ROOT"] ?? process.cwd();
const axeSource = readFileSync(createRequire(join(root, "package.json")).resolve("axe-core/axe.min.js"), "utf8");
const pictures = join(root, "screenshots");
mkdirSync(pictures, { recursive: true });

/** Widths of a desk and of a telephone. */
export const widths = [1280, 390];
export const externalId = "external-id-of-the-console-tests";
const browsers = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

let browser: Promise<Browser> | undefined;

/** Starts the browser, once. */
export function launch(): Promise<Browser> {
  const executablePath = process.env["CHROMIUM"] ?? browsers.find((path) => existsSync(path));
  assert.ok(executablePath !== undefined, "there is no Chromium: apt-get install chromium");
  browser ??= chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  return browser;
}

export async function closeBrowser(): Promise<void> {
  await (await browser)?.close();
}

/** A page, and everything that must not happen on it. */
export class Visit {
  readonly foreign: string[] = [];
  readonly errors: string[] = [];

  private constructor(
    readonly page: Page,
    readonly context: BrowserContext,
    private readonly origin: string,
  ) {}

  static async open(t: TestContext, origin: string, options: { hash?: string; header?: string } = {}): Promise<Visit> {
    const context = await (await launch()).newContext({
      ignoreHTTPSErrors: true,
      viewport: { width: 1280, height: 900 },
      acceptDownloads: true,
      ...(options.header === undefined ? {} : { extraHTTPHeaders: { authorization: options.header } }),
    });
    t.after(() => context.close());
    return Visit.in(context, origin, options.hash);
  }

  static async in(context: BrowserContext, origin: string, hash = ""): Promise<Visit> {
    const page = await context.newPage();
    const visit = new Visit(page, context, origin);
    page.on("request", (request) => {
      if (!request.url().startsWith(origin) && !request.url().startsWith("blob:")) {
        visit.foreign.push(request.url());
      }
    });
    page.on("pageerror", (error) => visit.errors.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
        visit.errors.push(message.text());
      }
    });
    await page.addInitScript(() => {
      const shifts: string[] = [];
      Object.assign(globalThis, { shifts });
      new PerformanceObserver((entries) => {
        for (const entry of entries.getEntries() as (PerformanceEntry & {
          value: number;
          hadRecentInput: boolean;
          sources: { node: Node | null }[];
        })[]) {
          if (!entry.hadRecentInput) {
            const moved = entry.sources.map(({ node }) => (node instanceof Element ? node.outerHTML : node?.textContent ?? "").slice(0, 80));
            shifts.push(`${entry.value} at ${Math.round(entry.startTime)} ms: ${moved.join(", ")}`);
          }
        }
      }).observe({ type: "layout-shift", buffered: true });
    });
    await page.goto(`${origin}/console/${hash}`);
    return visit;
  }

  get card() {
    return this.page.getByRole("region", { name: "SIEM integration" });
  }

  button(name: string) {
    return this.page.getByRole("button", { name, exact: true });
  }

  /** Waits until the badge shows a status. */
  async badge(status: string): Promise<void> {
    await this.page.locator(".badge:not(.absent)", { hasText: status }).waitFor({ timeout: 30_000 });
  }

  async text(text: string | RegExp): Promise<void> {
    await this.page.getByText(text).first().waitFor({ timeout: 30_000 });
  }

  /** Takes a picture at each width, and has axe look at each. */
  async state(name: string): Promise<void> {
    const size = this.page.viewportSize();
    for (const width of widths) {
      await this.page.setViewportSize({ width, height: 900 });
      // Animations end, so that colours are those that one reads.
      await this.page.evaluate(() => Promise.all(document.getAnimations().map((each) => each.finished)));
      await this.page.screenshot({ path: join(pictures, `${name}-${width}.png`), fullPage: true });
      const isWider = await this.page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
      assert.equal(isWider, false, `${name} at ${width} is wider than the window`);
      const clipped = await this.page.evaluate(() =>
        [...document.querySelectorAll(".badge, .status, .buttons button")].filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.textContent),
      );
      assert.deepEqual(clipped, [], `${name} at ${width} has words that do not fit`);
      await this.page.evaluate(`if (!globalThis.axe) { ${axeSource} }`);
      const found = await this.page.evaluate(async () => {
        const { axe } = globalThis as unknown as { axe: { run(): Promise<{ violations: { id: string; nodes: { html: string; failureSummary: string }[] }[] }> } };
        const { violations } = await axe.run();
        return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
      });
      assert.deepEqual(found, [], `axe: ${name} at ${width}`);
    }
    if (size !== null) {
      await this.page.setViewportSize(size);
    }
  }

  /** Layout shifts that no input caused. */
  async shifts(): Promise<string[]> {
    return this.page.evaluate(() => (globalThis as unknown as { shifts: string[] }).shifts);
  }

  /** Fails if something happened that must not. */
  check(): void {
    assert.deepEqual(this.foreign, [], "requests to other origins");
    assert.deepEqual(this.errors, [], "errors of the page");
  }
}

/** The stand-in with a customer, and a server for it. */
export class World {
  private constructor(
    readonly relay: Relay,
    private readonly aws: string,
    readonly stream: string,
    readonly role: string,
  ) {}

  static async start(t: TestContext, ...flags: string[]): Promise<World> {
    const standIn = await StandIn.start(t);
    const { stream, role } = await standIn.customer("console", externalId);
    const relay = await Relay.start(
      t,
      ["--console", "--retry-first-ms", "200", "--retry-most-ms", "1000", "--test-interval-seconds", "0", ...flags].filter((flag) => flag !== ""),
      standIn.aws,
    );
    return new World(relay, standIn.aws["AWS_ENDPOINT_URL_STS"] as string, stream, role);
  }

  /** Lets the customer's role want another external ID, and ends its sessions. */
  async trust(wanted: string): Promise<void> {
    const statement = (content: object) => JSON.stringify({ Version: "2012-10-17", Statement: [content] });
    const body = {
      role_arn: this.role,
      trust_policy: statement({
        Effect: "Allow",
        Principal: { AWS: "arn:aws:iam::444455556666:root" },
        Action: "sts:AssumeRole",
        Condition: { StringEquals: { "sts:ExternalId": wanted } },
      }),
      permission_policy: statement({ Effect: "Allow", Action: ["kinesis:PutRecord", "kinesis:PutRecords"], Resource: this.stream }),
    };
    await this.control("PUT", "roles", body);
    await this.control("DELETE", "sessions");
  }

  async control(method: string, path: string, body?: object): Promise<void> {
    const headers = { "content-type": "application/json" };
    const answer = await fetch(`${this.aws}/_control/${path}`, {
      method,
      headers,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${await answer.clone().text()}`);
  }

  /** Publishes detections of an organization. */
  async publish(organizationId: string, count: number): Promise<void> {
    const client = connect({ address: this.relay.address });
    const seconds = BigInt(Math.floor(Date.now() / 1000));
    const events = Array.from({ length: count }, (_, index) => ({
      organizationId,
      networkId: "4e740000-0000-4000-8000-000000000001",
      deviceId: "de71ce00-0000-4000-8000-000000000001",
      observedTime: { seconds, nanos: index },
      payload: { case: "idsDetection" as const, value: { srcIp: "192.0.2.1", signature: "test" } },
    }));
    const answer = await client.publish({ events });
    client.close();
    assert.equal(answer.accepted, count, JSON.stringify(answer.rejections));
  }
}
