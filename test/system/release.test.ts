// A release (release/pack.ts), installed as a dependency of a program that is written in TypeScript: the program type-checks,
// runs a guest, and the command line works. What npm would fetch, the dependencies, is linked from here.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { MEMORY, bareMetalImage, powerOff, repeat } from '../bare-metal.ts';

const ROOT = join(import.meta.dirname, '../..');
const app = mkdtempSync(join(tmpdir(), 'zazen-release-'));
after(() => rmSync(app, { recursive: true }));
const installed = join(app, 'node_modules/zazen');

/** Hot for long enough to be compiled, so the threads that run and compile guest code are there. */
const LOOPS = 30_000_000;
const kernel = bareMetalImage({ code: (a) => {
  repeat(a, LOOPS, () => {});
  powerOff(a);
} });
const PROGRAM = `
import { Host, ZazenError, formatSize } from PACKAGE;
import type { Domain, DomainSpec } from PACKAGE;

const spec: DomainSpec = { kernel: process.argv[2], initrd: 'none', memory: '${MEMORY}' };
await using host = await Host.start({ memory: '512MiB', pcpus: 1 });
const vm: Domain = await host.create(spec);
console.log(await vm.waitForShutdown(), formatSize(4096));
console.log(vm.stats().instructionsRetired > 2 * ${LOOPS}, host.stats().codeCache.regions > 0);
await host.create({ memory: 'much' }).catch((error: unknown) => console.log((error as ZazenError).code));
`.replaceAll('PACKAGE', '\'zazen\'');
/** Strict, and what the package declares is looked at as well. */
const COMPILER_OPTIONS = {
  target: 'esnext', module: 'nodenext', lib: ['esnext'], types: ['node'], strict: true, skipLibCheck: false, noEmit: true,
};

function link(name: string): void {
  const path = join(app, 'node_modules', name);
  mkdirSync(dirname(path), { recursive: true });
  symlinkSync(join(ROOT, 'node_modules', name), path);
}

before(() => {
  const file = execFileSync(process.execPath, [join(ROOT, 'release/pack.ts'), join(app, 'release')], { encoding: 'utf8' }).trim();
  mkdirSync(installed, { recursive: true });
  execFileSync('tar', ['-xzf', file, '-C', installed, '--strip-components', '1']);
  const { dependencies } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as { dependencies: object };
  for (const name of [...Object.keys(dependencies), '@types/node', 'undici-types']) link(name);
  writeFileSync(join(app, 'package.json'), '{ "type": "module" }');
  writeFileSync(join(app, 'program.ts'), PROGRAM);
  writeFileSync(join(app, 'kernel'), kernel);
  writeFileSync(join(app, 'tsconfig.json'), JSON.stringify({ compilerOptions: COMPILER_OPTIONS, files: ['program.ts'] }));
});

test('has JavaScript and declarations, no sources and no tests', () => {
  const files = globSync('**/*.*', { cwd: join(installed, 'dist') });
  assert.ok(files.includes('cli/main.js') && files.includes('host/index.d.ts'));
  assert.deepEqual(files.filter((file) => !/\.(js|d\.ts)$/.test(file) || /\.test\.|(^|\/)test-/.test(file)), []);
});

test('a program that imports it type-checks, its declarations as well', () => {
  const { status, stdout } = spawnSync(join(ROOT, 'node_modules/.bin/tsc'), ['--project', app], { encoding: 'utf8' });
  assert.equal(status, 0, stdout);
});

test('a program that imports it runs a guest', () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(app, 'program.ts'), join(app, 'kernel')], { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  assert.equal(stdout, 'poweroff 4 KiB\ntrue true\nZAZEN_SPEC_SIZE\n');
});

test('its command line works, and says that the benchmarks are elsewhere', () => {
  const zazen = (...words: string[]) => spawnSync('node', [join(installed, 'bin/zazen.js'), ...words], { encoding: 'utf8' });
  assert.match(zazen('--version').stdout, /^zazen \d+\.\d+\.\d+\n$/);
  const { status, stderr } = zazen('bench', 'boot');
  assert.deepEqual([status, stderr], [1, 'zazen: this Zazen comes without its benchmarks; run it from a checkout of the source\n']);
});
