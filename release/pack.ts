// `npm run release [-- FOLDER]`: the package that `npm install` can use, as a file. Node strips no types of what is below
// `node_modules`, so a release has what `tsc` makes of the sources, with declarations beside it, where a checkout has the sources
// themselves. What is in FOLDER, by default `.release`, and has these names is replaced:
//
//   package/   package.json   dist/**/*.{js,d.ts}   bin/   docs/   README.md   LICENSE
//   zazen-VERSION.tgz

import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

const ROOT = join(import.meta.dirname, '..');
const OUT = resolve(process.argv[2] ?? join(ROOT, '.release'));
const PACKAGE = join(OUT, 'package');
/** Beside the sources. Not `bin/start.js`, which is what a checkout shows of itself. */
const COPIED = ['bin/zazen.js', 'bin/launcher.js', 'docs', 'README.md', 'LICENSE'];
const ONLY_IN_CHECKOUT = ['private', 'scripts', 'devDependencies', 'allowScripts'];
const EXPORTS = { '.': { types: './dist/host/index.d.ts', default: './dist/host/index.js' } };

interface Manifest extends Record<string, unknown> {
  name: string;
  version: string;
}

rmSync(PACKAGE, { recursive: true, force: true });
mkdirSync(PACKAGE, { recursive: true });
run(join(ROOT, 'node_modules/.bin/tsc'), ['--project', join(import.meta.dirname, 'tsconfig.json'), '--outDir', join(PACKAGE, 'dist')]);
for (const path of COPIED) cpSync(join(ROOT, path), join(PACKAGE, path), { recursive: true });
const manifest = releaseManifest(JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as Manifest);
writeFileSync(join(PACKAGE, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
run('npm', ['pack', '--silent', '--pack-destination', OUT, PACKAGE]);
console.log(join(OUT, `${manifest.name}-${manifest.version}.tgz`));

/** That of the checkout without what only a checkout has; `private`, which keeps that from being published, is among it. */
function releaseManifest(checkout: Manifest): Manifest {
  const kept = Object.entries(checkout).filter(([key]) => !ONLY_IN_CHECKOUT.includes(key));
  return { ...Object.fromEntries(kept) as Manifest, exports: EXPORTS };
}

function run(command: string, words: readonly string[]): void {
  execFileSync(command, words, { cwd: ROOT, stdio: ['ignore', 'ignore', 'inherit'] });
}
