// Builds the tests into build/ and runs them; arguments go to Node's test runner.

import { spawnSync } from "node:child_process";
import { build } from "esbuild";

const folder = new URL(".", import.meta.url).pathname;
await build({
  absWorkingDir: folder,
  entryPoints: ["tests/console.test.ts"],
  outdir: "build",
  outExtension: { ".js": ".mjs" },
  bundle: true,
  platform: "node",
  format: "esm",
  external: ["playwright-core"],
  logLevel: "warning",
});
const args = ["--test", "--test-reporter=spec", ...process.argv.slice(2), "build/console.test.mjs"];
const { status } = spawnSync(process.execPath, args, { cwd: folder, stdio: "inherit" });
process.exit(status ?? 1);
