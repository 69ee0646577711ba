// Build the console into one HTML file, edge_agent/console/index.html; with --check compare it with the one there.
//
// The page is one file because it is also opened as a file, where a browser allows no others beside it. Its content
// security policy names the only script and the only style by their hashes.

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const page = join(here, "../../edge_agent/console/index.html");
const LARGEST_GZIP = 250 * 1024;

const sha256 = (data, form) => createHash("sha256").update(data).digest(form);

/** What the page is made of, as the test in tests/unit/console reads it, too: name and contents of each file. */
function sources() {
  const names = ["build.mjs", "package-lock.json", "package.json", ...readdirSync(join(here, "src")).map((name) => `src/${name}`)];
  const lines = names.sort().map((name) => `${sha256(readFileSync(join(here, name)), "hex")}  ${name}\n`);
  return sha256(lines.join(""), "hex");
}

async function bundle(entry, more) {
  const result = await build({
    entryPoints: [join(here, "src", entry)], bundle: true, minify: true, write: false, target: "es2022",
    charset: "ascii", legalComments: "none", logLevel: "warning", ...more,
  });
  return result.outputFiles[0].text.trim();
}

/** The licences of the packages that are in the page, those that a built package brings in itself included. */
function licences() {
  const { packages } = JSON.parse(readFileSync(join(here, "package-lock.json"), "utf8"));
  const used = Object.entries(packages).filter(([path, one]) => path !== "" && !one.dev && !path.includes("/@types/"));
  return used.map(([path, { version, license }]) => {
    const folder = join(here, path);
    const file = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
    const text = file ? readFileSync(join(folder, file), "utf8").trim() : "";
    return `${path.replace(/^.*node_modules\//, "")} ${version} (${license})\n\n${text}`;
  });
}

const script = await bundle("app.jsx", { format: "iife", jsx: "automatic", jsxImportSource: "preact" });
const style = await bundle("style.css", {});
if (/<\/script|<!--/i.test(script)) throw new Error("the script holds what would end its element");
const policy = [
  "default-src 'none'", `script-src 'sha256-${sha256(script, "base64")}'`, `style-src 'sha256-${sha256(style, "base64")}'`,
  "connect-src ws: wss:", "img-src data:", "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
].join("; ");
const notice = licences().join("\n\n").replaceAll("--", "- -");
const html = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="sources" content="${sources()}">
<title>edge-agent</title>
<link rel="icon" href="data:,">
<style>${style}</style>
<body>
<div id="page"><noscript>This page needs JavaScript.</noscript></div>
<script>${script}</script>
<!--
Built by tools/console from the sources there and these packages:

${notice}
-->
</html>
`;
const size = gzipSync(html, { level: 9 }).length;
console.log(`${page}: ${html.length} bytes, ${size} compressed (at most ${LARGEST_GZIP})`);
if (size > LARGEST_GZIP) throw new Error("the page is larger than it may be");
if (process.argv.includes("--check")) {
  if (readFileSync(page, "utf8") !== html) throw new Error("the page is not what its sources make: npm run build");
} else writeFileSync(page, html);
