// Builds the page into the folder given, or into dist/, which is committed and embedded in the server.

import { copyFileSync, mkdirSync } from "node:fs";
import { build } from "esbuild";

const folder = new URL(".", import.meta.url).pathname;
const out = process.argv[2] ?? `${folder}dist`;
mkdirSync(out, { recursive: true });
await build({
  absWorkingDir: folder,
  entryPoints: ["src/main.ts"],
  outfile: `${out}/console.js`,
  alias: { "@siem-relay/client/browser": "../typescript/dist/browser.js" },
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "eof",
  logLevel: "warning",
});
await build({
  absWorkingDir: folder,
  entryPoints: ["src/console.css"],
  outfile: `${out}/console.css`,
  minify: true,
  target: "es2022",
  logLevel: "warning",
});
for (const name of ["index.html", "icon.svg"]) {
  copyFileSync(`${folder}src/${name}`, `${out}/${name}`);
}
