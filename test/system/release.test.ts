// A release (release/pack.ts), installed as a dependency of a program that is written in TypeScript: the program type-checks,
// runs a guest, and the command line works. What npm would fetch, the dependencies, is linked from here.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { globSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { withSourcePositions } from '../../src/base/source-positions.ts';
import { MEMORY, bareMetalImage, powerOff, repeat } from '../bare-metal.ts';

const ROOT = join(import.meta.dirname, '../..');
const app = mkdtempSync(join(tmpdir(), 'zazen-release-'));
after(() => rmSync(app, { recursive: true }));
const installed = join(app, 'node_modules/zazen');
const cache = join(app, 'cache');
const env = { ...process.env, ZAZEN_CACHE_DIR: cache, ZAZEN_REGION_STORE: '', NODE_COMPILE_CACHE: '' };

/** Hot for long enough to be compiled, so the threads that run and compile guest code are there. */
const LOOPS = 30_000_000;
const kernel = bareMetalImage({ code: (a) => {
  repeat(a, LOOPS, () => {});
  powerOff(a);
} });
const PROGRAM = `
import { Host, ZazenError, formatSize } from PACKAGE;
import type { Domain, DomainSpec } from PACKAGE;

const spec: DomainSpec = { kernel: process.argv[2], initrd: 'none', memory: '${MEMORY}', nics: [{}] };
await using host = await Host.start({ memory: '512MiB', pcpus: 1 });
const vm: Domain = await host.create(spec);
console.log(await vm.waitForShutdown(), formatSize(4096), vm.stats().nics[0]!.address);
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

test('has bundles with maps, and declarations of what the library exports; no sources and no tests', () => {
  const files = globSync('**/*.*', { cwd: join(installed, 'dist') });
  assert.ok(files.includes('js/zazen.js') && files.includes('js/index.js') && files.includes('types/host/index.d.ts'));
  assert.deepEqual(files.filter((file) => !/^js\/[\w.-]+\.js(\.map)?$|^types\/[\w/-]+\.d\.ts$/.test(file) || /\.test\.|(^|\/)test-/.test(file)), []);
  assert.ok(!files.includes('types/cpu/engine.d.ts'));
});

/** What one of the bundles, and all that it imports before it runs, is made of. */
function loadedWith(...names: string[]): { files: ReadonlySet<string>; sources: ReadonlySet<string> } {
  const files = new Set(names);
  const sources = new Set<string>();
  for (const file of files) {
    const text = readFileSync(join(installed, 'dist/js', file), 'utf8');
    for (const [, name] of text.matchAll(/^(?:import|export)\b[^"]*?"\.\/([^"]+)"/gm)) files.add(name!);
    if (!/^\/\/# sourceMappingURL=/m.test(text)) continue;
    const map = JSON.parse(readFileSync(join(installed, 'dist/js', `${file}.map`), 'utf8')) as { sources: string[] };
    for (const source of map.sources) sources.add(source.replace('../../', ''));
  }
  return { files, sources };
}

test('a thread reads few files, and a verb and a thread have in them what they need', () => {
  const programs: { reads: string[]; has: string; hasNot: string[]; filesMax: number }[] = [
    { reads: ['zazen.js'], has: 'src/host/pcpu-ahead.ts', hasNot: ['src/cli/front-door.ts', 'src/host/host.ts'], filesMax: 2 },
    { reads: ['zazen.js', 'program.js', 'list.js'], has: 'src/cli/list.ts',
      hasNot: ['src/cli/run.ts', 'src/cli/top.ts', 'src/abi/xen.ts', 'src/host/host.ts', 'src/daemon/server.ts'], filesMax: 5 },
    { reads: ['zazen.js', 'program.js', 'run.js'], has: 'src/cli/session.ts', hasNot: ['src/host/host.ts', 'src/network/network.ts'], filesMax: 11 },
    { reads: ['index.js'], has: 'src/host/host.ts',
      hasNot: ['src/cli/front-door.ts', 'src/cpu/interpreter.ts', 'src/a64/table.ts', 'src/network/network.ts'], filesMax: 10 },
    { reads: ['pcpu-worker.js'], has: 'src/base/failure.ts', hasNot: ['src/host/pcpu-loop.ts'], filesMax: 2 },
    { reads: ['pcpu-worker.js', 'pcpu-worker.pcpu-loop.js'], has: 'src/cpu/engine.ts',
      hasNot: ['src/cpu/interpreter.ts', 'src/cpu/jit/compile.ts'], filesMax: 3 },
    { reads: ['translator-worker.js', 'translator-worker.translator-loop.js'], has: 'src/cpu/jit/compile.ts',
      hasNot: ['src/cpu/interpreter.ts', 'src/cpu/engine.ts'], filesMax: 3 },
    { reads: ['disk-worker.js', 'disk-worker.disk-loop.js'], has: 'src/lanes/lane.ts', hasNot: ['src/a64/table.ts'], filesMax: 3 },
    { reads: ['network-worker.js', 'network-worker.network-loop.js'], has: 'src/network/network.ts',
      hasNot: ['src/a64/table.ts', 'src/host/host-core.ts'], filesMax: 3 },
  ];
  for (const { reads, has, hasNot, filesMax } of programs) {
    const { files, sources } = loadedWith(...reads);
    const name = reads.at(-1)!;
    assert.ok(sources.has(has), `${name} has ${has}`);
    assert.deepEqual(hasNot.filter((source) => sources.has(source)), [], `${name} has no more than it needs`);
    assert.ok(files.size <= filesMax, `${name} reads ${[...files].join(', ')}`);
  }
});

test('a program that imports it type-checks, its declarations as well', () => {
  const { status, stdout } = spawnSync(join(ROOT, 'node_modules/.bin/tsc'), ['--project', app], { encoding: 'utf8' });
  assert.equal(status, 0, stdout);
});

test('a program that imports it runs a guest', () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(app, 'program.ts'), join(app, 'kernel')], { encoding: 'utf8', env });
  assert.equal(status, 0, stderr);
  assert.equal(stdout, 'poweroff 4 KiB 10.0.2.15\ntrue true\nZAZEN_SPEC_SIZE\n');
  // What was compiled is kept for the next process, so the version of the emitter is known.
  assert.notDeepEqual(readdirSync(join(cache, 'regions')), []);
});

/** That of a place `…/src/FILE.ts:LINE:COLUMN` in a stack, as it is in this checkout. */
function sourceLine(stack: string, file: string): string | undefined {
  const place = new RegExp(`/zazen/${file.replaceAll('.', '\\.')}:(\\d+):\\d+`).exec(stack);
  return place === null ? undefined : readFileSync(join(ROOT, file), 'utf8').split('\n')[Number(place[1]) - 1];
}

test('stacks name places in bundles, which lead to those in the sources', () => {
  const program = 'const { parseSize } = await import(PACKAGE); try { parseSize("much") } catch (error) { console.log(error.stack) }'.replace('PACKAGE', '"zazen"');
  const stackOf = (...options: string[]): string =>
    execFileSync(process.execPath, [...options, '--input-type=module', '--eval', program], { cwd: app, encoding: 'utf8', env });
  const plain = stackOf();
  assert.match(plain, /at parseSize \(file:.*\/dist\/js\/[\w-]+\.js:\d+:\d+\)/);
  for (const stack of [withSourcePositions(plain), stackOf('--enable-source-maps')]) {
    assert.match(sourceLine(stack, 'src/host/size.ts') ?? stack, /throw/);
  }
});

test('our own bug is told with its places in the sources', () => {
  const broken = 'const { parse } = JSON; JSON.parse = () => { JSON.parse = parse; throw new TypeError("our own bug"); };';
  const words = ['--import', `data:text/javascript,${encodeURIComponent(broken)}`, join(installed, 'dist/js/zazen.js'), '--version'];
  const { status, stderr } = spawnSync(process.execPath, words, { encoding: 'utf8', env });
  assert.equal(status, 70, stderr);
  assert.match(sourceLine(stderr, 'src/cli/version.ts') ?? stderr, /JSON\.parse/);
});

test('its command line works, and says that the benchmarks are elsewhere', () => {
  const zazen = (...words: string[]) => spawnSync('node', [join(installed, 'bin/zazen.js'), ...words], { encoding: 'utf8', env });
  assert.match(zazen('--version').stdout, /^zazen \d+\.\d+\.\d+\n$/);
  const { status, stderr } = zazen('bench', 'boot');
  assert.deepEqual([status, stderr], [1, 'zazen: this Zazen comes without its benchmarks; run it from a checkout of the source\n']);
});
