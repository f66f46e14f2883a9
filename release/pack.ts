// `npm run release [-- FOLDER]`: the package that `npm install` can use, as a file. Node strips no types of what is below
// `node_modules`, so a release has JavaScript where a checkout has the sources. What is in FOLDER, by default `.release`, and has
// these names is replaced:
//
//   package/   package.json   bin/   docs/   README.md   LICENSE
//              dist/js/           bundles and their source maps: bundle.ts
//              dist/types/        declarations of what the library exports, and of what those name
//              dist/emitter-digest    src/host/emitter-version.ts
//   zazen-VERSION.tgz

import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { DIGEST_FILE, emitterDigest } from '../src/host/emitter-version.ts';
import { writeBundles } from './bundle.ts';

const ROOT = join(import.meta.dirname, '..');
const OUT = resolve(process.argv[2] ?? join(ROOT, '.release'));
const PACKAGE = join(OUT, 'package');
/** Beside the sources. Not `bin/start.js`, which is what a checkout shows of itself. */
const COPIED = ['bin/zazen.js', 'bin/launcher.js', 'docs', 'README.md', 'LICENSE'];
const ONLY_IN_CHECKOUT = ['private', 'scripts', 'devDependencies', 'allowScripts'];
const EXPORTS = { '.': { types: './dist/types/host/index.d.ts', default: './dist/js/index.js' } };

interface Manifest extends Record<string, unknown> {
  name: string;
  version: string;
}

rmSync(PACKAGE, { recursive: true, force: true });
mkdirSync(PACKAGE, { recursive: true });
await writeBundles(join(PACKAGE, 'dist/js'));
writeDeclarations('host/index.d.ts', join(PACKAGE, 'dist/types'));
writeFileSync(join(PACKAGE, 'dist', DIGEST_FILE), `${emitterDigest()}\n`);
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

/** `entry` and all that it imports, as the type checker declares them. */
function writeDeclarations(entry: string, folder: string): void {
  const all = join(OUT, 'declarations');
  rmSync(all, { recursive: true, force: true });
  run(join(ROOT, 'node_modules/.bin/tsc'), ['--project', join(import.meta.dirname, 'tsconfig.json'), '--outDir', all]);
  const needed = new Set([entry]);
  for (const file of needed) {
    const text = readFileSync(join(all, file), 'utf8');
    for (const [, path] of text.matchAll(/(?:\bfrom |\bimport\(|^import )['"](\.[^'"]+)\.[jt]s['"]/gm)) {
      needed.add(join(dirname(file), `${path}.d.ts`));
    }
    mkdirSync(join(folder, dirname(file)), { recursive: true });
    writeFileSync(join(folder, file), text);
  }
  rmSync(all, { recursive: true });
}

function run(command: string, words: readonly string[]): void {
  execFileSync(command, words, { cwd: ROOT, stdio: ['ignore', 'ignore', 'inherit'] });
}
