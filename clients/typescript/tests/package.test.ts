// The packed package, installed into a clean folder: content, types, bundle, examples, README and scenario.

import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { Relay, skip, StandIn } from "./server.js";

const root = new URL("../..", import.meta.url).pathname;
const externalId = "external-id-of-the-examples";
// The oldest and the newest TypeScript that is supported.
const compilers = ["5.7.3", "7.0.2"];
const typesOfNode = "20.19.43";

let directory: string;
let files: string[];

// Runs a command without this package's settings of npm; returns its output.
function run(cwd: string, command: string, ...args: string[]): string {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(npm_|NODE_)/.test(name)));
  const done = spawnSync(command, args, { cwd, encoding: "utf8", env, timeout: 400_000, maxBuffer: 1 << 26 });
  assert.equal(done.status, 0, `${command} ${args.join(" ")} ended with ${done.status}\n${done.stdout}${done.stderr}`);
  return done.stdout;
}

function install(cwd: string, ...packages: string[]): void {
  writeFileSync(join(cwd, "package.json"), '{ "private": true, "type": "module" }');
  run(cwd, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error", ...packages);
}

let tarball: string;

before(() => {
  directory = mkdtempSync(join(tmpdir(), "siem-package-"));
  const packed = JSON.parse(run(root, "npm", "pack", "--json", "--pack-destination", directory)) as unknown;
  const [{ filename, files: found }] = packed as [{ filename: string; files: { path: string }[] }];
  files = found.map(({ path }) => path);
  tarball = join(directory, basename(filename));
  install(directory, tarball);
});

after(() => rmSync(directory, { recursive: true, force: true }));

test("it has the licence, the types and nothing else", () => {
  assert.ok(["LICENSE", "README.md", "package.json", "dist/index.js", "dist/index.d.ts"].every((f) => files.includes(f)));
  assert.deepEqual(new Set(files.map((file) => file.split("/")[0])), new Set(["LICENSE", "README.md", "package.json", "dist"]));
  const installed = join(directory, "node_modules/@siem-relay/client");
  const manifest = JSON.parse(readFileSync(join(installed, "package.json"), "utf8")) as Record<string, unknown>;
  assert.deepEqual([manifest["version"], manifest["license"]], ["0.1.0", "Apache-2.0"]);
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  const program = 'import { version } from "@siem-relay/client"; console.log(version)';
  assert.equal(run(directory, process.execPath, "--input-type=module", "-e", program).trim(), version);
});

test("its types hold under the settings of users", () => {
  for (const typescript of compilers) {
    const folder = join(directory, `types-${typescript}`);
    mkdirSync(folder);
    install(folder, tarball, `typescript@${typescript}`, `@types/node@${typesOfNode}`);
    cpSync(join(root, "examples"), join(folder, "examples"), { recursive: true });
    writeFileSync(
      join(folder, "wrong.ts"),
      'import { connect } from "@siem-relay/client";\nvoid connect({ address: 1 }).get({ organization: "acme" });\n',
    );
    writeFileSync(
      join(folder, "plain.ts"),
      'import { connect } from "@siem-relay/client";\nconnect({ address: "http://localhost:1" }).publisher();\n',
    );
    for (const [module, moduleResolution] of [
      ["node16", "node16"],
      ["esnext", "bundler"],
    ]) {
      const options = { target: "es2022", module, moduleResolution, strict: true, skipLibCheck: false, noEmit: true };
      const check = (include: string[], more: object = {}) => {
        const compilerOptions = { ...options, ...more };
        writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include }));
        return spawnSync("npx", ["--no-install", "tsc"], { cwd: folder, encoding: "utf8" });
      };
      const done = check(["examples"], { types: ["node"] });
      assert.equal(done.status, 0, `TypeScript ${typescript}, ${moduleResolution}\n${done.stdout}${done.stderr}`);
      // Without the types of Node, as in a project for browsers. All errors are those of wrong.ts.
      const { stdout } = check(["examples/browser.ts", "plain.ts", "wrong.ts"], { types: [] });
      const errors = stdout.split("\n").filter((line) => / error TS/.test(line));
      assert.ok(errors.length === 2 && errors.every((line) => line.startsWith("wrong.ts(2,")), stdout);
      assert.match(stdout, /'number' is not assignable to type 'string'[^]*'organization'/);
    }
  }
});

test("a browser's bundle has no module of Node", async (t) => {
  for (const name of ["@siem-relay/client", "@siem-relay/client/browser"]) {
    const program = readFileSync(join(root, "examples/browser.ts"), "utf8").replace("@siem-relay/client/browser", name);
    const bundle = await build({
      stdin: { contents: program, resolveDir: directory, loader: "ts" },
      bundle: true,
      platform: "browser",
      format: "esm",
      minify: true,
      metafile: true,
      write: false,
      logLevel: "silent",
    });
    const inputs = Object.keys(bundle.metafile.inputs);
    assert.ok(!inputs.some((input) => /connect-node|publisher|^node:|connection\.js/.test(input)), inputs.join("\n"));
    const bytes = gzipSync(bundle.outputFiles[0]?.contents ?? new Uint8Array()).length;
    t.diagnostic(`${name}: ${bytes} bytes with gzip`);
    assert.ok(bytes < 60_000, `${bytes}`);
  }
});

// Copies a compiled program beside the installed package.
function program(path: string): string {
  const copy = join(directory, basename(path));
  copyFileSync(join(root, "build", path), copy);
  return copy;
}

test("scenario", { skip }, () => {
  const driver = program("scenario_driver.js");
  console.log(run(directory, join(root, "../scenario/run"), process.execPath, driver));
});

test("examples, and the lines of the README", { skip }, async (t) => {
  const standIn = await StandIn.start(t);
  const { stream, role } = await standIn.customer("examples", externalId);
  const relay = await Relay.start(t, [], standIn.aws);
  const ran = new Set(["browser"]);
  const example = (name: string, ...args: string[]) => {
    ran.add(name);
    return run(directory, process.execPath, program(`examples/${name}.js`), relay.address, ...args);
  };
  assert.equal(example("generate_external_id", "acme").trim().length, 64);
  assert.match(example("configure", "acme", stream, role, externalId), / etag /);
  assert.match(example("send_test", "acme"), /CHECK_RESULT_PASSED/);
  assert.match(example("publish", "acme"), /^1 accepted/);
  assert.match(example("publisher", "acme", "250"), /^250 accepted/);
  assert.match(example("get", "acme"), /of 251 events delivered\n\{.*"accepted":"251"/);
  assert.match(example("list"), /^acme STATUS_ACTIVE/);
  assert.match(example("list_audit_entries", "acme"), /AUDIT_ACTION_CREATE by/);
  assert.match(example("get_onboarding", stream, "siem-relay", externalId), /siem-relay\.tf: /);
  assert.match(readFileSync(join(directory, "siem-relay.tf"), "utf8"), /kinesis/);

  const readme = readFileSync(join(root, "README.md"), "utf8");
  const lines = (readme.split("```ts\n")[1] ?? "").split("```")[0] ?? "";
  assert.ok(lines.split("\n").filter((line) => line !== "" && !line.startsWith("import")).length <= 5);
  const first = lines.replace("http://127.0.0.1:50051", relay.address);
  assert.match(run(directory, process.execPath, "--input-type=module", "-e", first), /^STATUS_ACTIVE/);

  const watch: ChildProcess = spawn(process.execPath, [program("examples/watch_status.js"), relay.address]);
  ran.add("watch_status");
  t.after(() => watch.kill("SIGKILL"));
  const seen = createInterface({ input: watch.stdout as NonNullable<ChildProcess["stdout"]> })[Symbol.asyncIterator]();
  assert.equal((await seen.next()).value, "1 integrations");
  assert.match(String((await seen.next()).value), /^resume token ./);
  assert.match(example("delete", "acme"), /251 events were delivered, 0 discarded/);
  assert.equal((await seen.next()).value, "acme deleted");
  const ended = once(watch, "exit");
  watch.kill();
  await ended;
  const all = readdirSync(join(root, "examples")).map((file) => basename(file, ".ts"));
  assert.deepEqual([...ran].sort(), all.sort(), "each example runs here");
});
