// The shape of the source tree: which room may import from which, no cycles, no file that nothing uses.

import assert from 'node:assert/strict';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { dirname, join, normalize } from 'node:path';
import { test } from 'node:test';

const ROOT = join(import.meta.dirname, '..');

/** A room imports only from itself and from rooms before it. */
const ROOMS = [
  'base', 'abi', 'wasm', 'a64', 'memory', 'cpu', 'hypervisor', 'xenstore', 'network', 'lanes', 'devices', 'image', 'lifecycle',
  'guest', 'host', 'daemon', 'cli',
];

/** Rooms that may import from even fewer. */
const ONLY_FROM: Record<string, readonly string[]> = { guest: ['base'], network: ['base'] };

interface Import {
  specifier: string;
  /** Path from the repository's root, for relative imports. */
  target?: string;
  /** Whether the module is loaded before the importing file runs: not so for types, `import()` and workers. */
  eager: boolean;
}

type ImportGraph = Map<string, Import[]>;

const IMPORT_PATTERNS: readonly { pattern: RegExp; eager: boolean }[] = [
  { pattern: /^\s*(?:import|export)\b(?!\s+type\b)[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]/gm, eager: true },
  { pattern: /^\s*import\s*['"]([^'"]+)['"]/gm, eager: true },
  { pattern: /^\s*(?:import|export)\s+type\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]/gm, eager: false },
  { pattern: /\bimport\(\s*['"]([^'"]+)['"]\s*\)/g, eager: false },
  { pattern: /\bnew URL\(\s*['"](\.[^'"]+)['"],\s*import\.meta\.url\s*\)/g, eager: false },
];

/** The modules that `source` names: in declarations, `import()`, and `new URL(…, import.meta.url)` (workers). */
function importsOf(path: string, source: string): Import[] {
  const code = withoutComments(source);
  return IMPORT_PATTERNS.flatMap(({ pattern, eager }) => [...code.matchAll(pattern)].map((match) => {
    const specifier = match[1]!;
    if (!specifier.startsWith('.')) return { specifier, eager };
    return { specifier, target: normalize(join(dirname(path), specifier)), eager };
  }));
}

/** Comments that begin a line removed: only there could one look like an import. */
function withoutComments(source: string): string {
  return source.replaceAll(/^\s*\/\*[\s\S]*?\*\//gm, '').replaceAll(/^\s*\/\/.*$/gm, '');
}

function readGraph(patterns: readonly string[]): ImportGraph {
  const files = globSync(patterns, { cwd: ROOT }).toSorted();
  return new Map(files.map((file) => [file, importsOf(file, readFileSync(join(ROOT, file), 'utf8'))]));
}

/** Tests, benchmarks, and `test-*.ts` beside them, which they share; everything outside src. */
function isTest(file: string): boolean {
  return /\.(test|bench)\.ts$|\/test-[^/]*\.ts$/.test(file) || !file.startsWith('src/');
}

/** `devices/<name>` for a device, else the folder under src. */
function roomOf(file: string): { room: string; device?: string } {
  const [, room, device] = file.split('/');
  return room === 'devices' ? { room, device: device! } : { room: room! };
}

/** What is wrong with an import of `target` by `file`, or undefined. */
function judgeImport(file: string, target: string): string | undefined {
  if (!target.startsWith('src/')) {
    return `${file} imports ${target}: files under src/ import only from src/; move what they share into a room`;
  }
  if (isTest(target)) return `${file} imports ${target}: only tests use test code; move out what the product needs`;
  const from = roomOf(file);
  const to = roomOf(target);
  if (from.room === to.room) {
    if (from.device === to.device) return undefined;
    return `${file} imports ${target}: devices do not import each other; move what they share into an earlier room `
      + '(abi for layouts, hypervisor for guest memory and event channels)';
  }
  const allowed = ONLY_FROM[from.room];
  if (allowed !== undefined && !allowed.includes(to.room)) {
    return `${file} imports ${target}: ${from.room} imports only from ${allowed.join(', ')}`;
  }
  if (ROOMS.indexOf(to.room) < ROOMS.indexOf(from.room)) return undefined;
  return `${file} imports ${target}, but ${to.room} comes after ${from.room}; declare in ${from.room} the interface `
    + `that it needs and let ${to.room} (or host) provide it, or move the shared part to an earlier room`;
}

/** Cycles of eager imports, as `a -> b -> a`; at least one of each set of files that import each other. */
function findCycles(graph: ImportGraph): string[] {
  const cycles: string[] = [];
  const state = new Map<string, 'open' | 'done'>();
  const path: string[] = [];
  const visit = (file: string): void => {
    if (state.get(file) === 'done') return;
    if (state.get(file) === 'open') {
      cycles.push([...path.slice(path.indexOf(file)), file].join(' -> '));
      return;
    }
    state.set(file, 'open');
    path.push(file);
    for (const { target, eager } of graph.get(file) ?? []) if (eager && target !== undefined) visit(target);
    path.pop();
    state.set(file, 'done');
  };
  for (const file of graph.keys()) visit(file);
  return cycles;
}

/** Files that package.json starts or exports, and what the bin scripts launch. */
function entryPoints(): Set<string> {
  const files = ['package.json', ...globSync('bin/*', { cwd: ROOT })];
  const texts = files.map((file) => readFileSync(join(ROOT, file), 'utf8'));
  return new Set(texts.flatMap((text) => [
    ...[...text.matchAll(/\bsrc\/[\w/.-]+\.ts/g)].map(([path]) => path),
    ...[...text.matchAll(/^launch\('([\w/-]+)'/gm)].map(([, program]) => `src/${program}.ts`),
  ]));
}

function assertNone(problems: readonly string[]): void {
  assert.ok(problems.length === 0, `\n${problems.join('\n')}`);
}

const sources = readGraph(['src/**/*.ts']);
const product = new Map([...sources].filter(([file]) => !isTest(file)));

test('every file lies in a room of the design', () => {
  assertNone([...sources.keys()].flatMap((file) => {
    const { room, device } = roomOf(file);
    if (device?.endsWith('.ts')) return [`${file}: give each device a folder, src/devices/<name>/`];
    if (ROOMS.includes(room)) return [];
    return [`${file}: ${room} is no room; use one of ${ROOMS.join(', ')}, or add it to the design and to ROOMS here`];
  }));
});

test('rooms import only from the rooms before them', () => {
  assertNone([...product].flatMap(([file, imports]) => imports.flatMap(({ target }) => {
    const problem = target === undefined ? undefined : judgeImport(file, target);
    return problem === undefined ? [] : [problem];
  })));
});

test('relative imports name an existing .ts file; other imports are node: modules or declared dependencies', () => {
  const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>;
    devDependencies: Record<string, string>;
  };
  const everything = readGraph(['src/**/*.ts', 'test/**/*.ts', 'bench/**/*.ts']);
  assertNone([...everything].flatMap(([file, imports]) => imports.flatMap(({ specifier, target }) => {
    if (target !== undefined) {
      if (!target.endsWith('.ts')) return [`${file} imports '${specifier}': write the .ts ending`];
      return existsSync(join(ROOT, target)) ? [] : [`${file} imports '${specifier}', which does not exist`];
    }
    if (isBuiltin(specifier)) return specifier.startsWith('node:') ? [] : [`${file}: write 'node:${specifier}'`];
    const name = specifier.split('/').slice(0, specifier.startsWith('@') ? 2 : 1).join('/');
    if (name in manifest.dependencies || isTest(file) && name in manifest.devDependencies) return [];
    return [`${file} imports '${specifier}', which is not among the dependencies in package.json`];
  })));
});

test('no file imports itself through others', () => {
  assertNone(findCycles(product).map((cycle) => `${cycle}: move what both need into a third file`));
});

/** All that a file has loaded before it runs. */
function loadedWith(file: string, seen = new Set<string>()): ReadonlySet<string> {
  if (seen.has(file)) return seen;
  seen.add(file);
  for (const { target, eager } of product.get(file) ?? []) if (eager && target !== undefined) loadedWith(target, seen);
  return seen;
}

test('a thread does not load what it can do without and what takes long to load', () => {
  const without: Record<string, readonly string[]> = {
    'src/host/host.ts': ['src/a64/table.ts', 'src/cpu/interpreter.ts', 'src/network/network.ts'],
    'src/host/network-loop.ts': ['src/a64/table.ts', 'src/host/host-core.ts'],
    'src/host/disk-loop.ts': ['src/a64/table.ts'],
    'src/host/pcpu-loop.ts': ['src/cpu/interpreter.ts', 'src/cpu/jit/compile.ts'],
    'src/host/translator-loop.ts': ['src/cpu/interpreter.ts', 'src/cpu/engine.ts'],
  };
  for (const [file, files] of Object.entries(without)) {
    const loaded = loadedWith(file);
    assert.ok(loaded.size > 20, `${file} is there`);
    assertNone(files.filter((each) => loaded.has(each))
      .map((each) => `${file} has ${each} loaded: import its types only, move what is light out of it, or import it when it is needed`));
  }
});

test('every file is used by another one or is an entry point', () => {
  const used = new Set([...product].flatMap(([file, imports]) => {
    return imports.map((i) => i.target).filter((target) => target !== file);
  }));
  const entries = entryPoints();
  const isAmbient = (file: string) => file.endsWith('.d.ts'); // declarations that nobody imports by name
  const unused = [...product.keys()].filter((file) => !used.has(file) && !entries.has(file) && !isAmbient(file));
  assertNone(unused.map((file) =>
    `${file} is imported by no file but tests: use it, delete it, or call it test-….ts if only tests need it`));
});

test('the rules themselves: what is allowed, what is not, and which imports are seen', () => {
  assert.equal(judgeImport('src/cpu/a.ts', 'src/base/b.ts'), undefined);
  assert.equal(judgeImport('src/devices/net/a.ts', 'src/devices/net/b.ts'), undefined);
  assert.match(judgeImport('src/cpu/a.ts', 'src/host/b.ts')!, /host comes after cpu/);
  assert.match(judgeImport('src/guest/a.ts', 'src/abi/b.ts')!, /guest imports only from base/);
  assert.match(judgeImport('src/devices/net/a.ts', 'src/devices/block/b.ts')!, /do not import each other/);
  assert.match(judgeImport('src/cpu/a.ts', 'test/b.ts')!, /only from src/);
  assert.match(judgeImport('src/cpu/a.ts', 'src/cpu/test-b.ts')!, /only tests use test code/);
  const text = `import type { A } from './a.ts';\nimport {\n  b,\n  c,\n} from "../x/b.ts";\nexport * from './c.ts';\n`
    + `import './d.ts';\nconst e = await ${'import'}('./e.ts');\nnew Worker(${'new'} URL('./f.ts', import.meta.url));\n`
    + `// import { z } from './z.ts';\n/* \nimport { y } from './y.ts'; */\nimport fs from 'node:fs';\n`;
  const imports = importsOf('src/m/n.ts', text);
  const seen = (eager: boolean) => imports.filter((i) => i.eager === eager)
    .map((i) => i.target ?? i.specifier).toSorted();
  assert.deepEqual(seen(true), ['node:fs', 'src/m/c.ts', 'src/m/d.ts', 'src/x/b.ts']);
  assert.deepEqual(seen(false), ['src/m/a.ts', 'src/m/e.ts', 'src/m/f.ts']);
  const edge = (target: string, eager: boolean) => [{ specifier: `./${target}`, target, eager }];
  assert.deepEqual(findCycles(new Map([['a', edge('b', true)], ['b', edge('a', true)], ['c', []]])), ['a -> b -> a']);
  assert.deepEqual(findCycles(new Map([['a', edge('b', true)], ['b', edge('a', false)]])), []);
});
