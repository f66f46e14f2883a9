// What the benchmarks stand on: statistics, goals, tables, the front door, and the QEMU that they compare with.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { pbkdf2 } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { programs } from '../bench/compute-programs.ts';
import { goals, judge } from '../bench/goals.ts';
import { QemuProcess } from '../bench/peers/qemu-monitor.ts';
import { formatGoals, formatResult } from '../bench/report.ts';
import { RunDelays } from '../bench/run-delay.ts';
import { histogram, summarize, summarizeFields } from '../bench/statistics.ts';
import { bareMetalImage, forever, fresh } from './bare-metal.ts';
import { findTool, needsTool } from './tools.ts';

const ROOT = join(import.meta.dirname, '..');
const folder = mkdtempSync(join(tmpdir(), 'zazen-benchmarks-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const bench = (...words: string[]) =>
  spawnSync(process.execPath, [join(ROOT, 'bench/run.ts'), ...words], { encoding: 'utf8' });

// ---- statistics, goals, tables

test('percentiles are samples, by the nearest rank', () => {
  const hundred = Array.from({ length: 100 }, (_, i) => (i * 37) % 100 + 1);
  assert.deepEqual(summarize(hundred), { samples: 100, median: 50, p99: 99, max: 100 });
  assert.deepEqual(summarize([7]), { samples: 1, median: 7, p99: 7, max: 7 });
  assert.deepEqual(summarizeFields([{ a: 1, b: 9 }, { a: 3, b: 8 }, { a: 2, b: 7 }]).b, summarize([9, 8, 7]));
  fc.assert(fc.property(fc.array(fc.double({ noNaN: true }), { minLength: 1 }), values => {
    const { samples, median, p99, max } = summarize(values);
    assert.ok(samples === values.length && [median, p99, max].every(one => values.includes(one)));
    assert.ok(median <= p99 && p99 <= max && values.every(value => value <= max));
    assert.ok(values.filter(value => value <= median).length >= samples / 2);
  }));
});

test('a histogram has each value once', () => {
  assert.deepEqual(histogram([1, 2, 2.5, 3, 9], [2, 3]), { '≤ 2': 2, '≤ 3': 2, more: 1 });
  assert.deepEqual(histogram([], [2]), { '≤ 2': 0, more: 0 });
});

test('what threads got of the cores is told by kind', { skip: !existsSync('/proc/self/schedstat') && 'not told here' }, async () => {
  // Computed by a thread of Node's pool, which the first such work starts.
  const digest = promisify(pbkdf2);
  await digest('x', 'x', 1, 8, 'sha256');
  const delays = new RunDelays();
  const idle = delays.end();
  delays.begin();
  await digest('x', 'x', 20_000, 8, 'sha256');
  const busy = delays.end();
  assert.deepEqual([idle.pcpuWaitedMicros, busy.pcpuWaitedMicros], [0, 0], 'there is none');
  assert.ok(busy.othersRanMicros > 1000, JSON.stringify(busy));
  assert.ok(busy.mainWaitedMicros >= 0);
});

test('a goal is reached, missed, or not measured; those of benchmarks that did not run are left out', () => {
  const wanted = [
    { what: 'fast', unit: 'ms', atMost: 10, path: 'one.millis.median' },
    { what: 'faster', unit: '×', atLeast: 3, path: 'one.ratio' },
    { what: 'peer', unit: '×', atLeast: 3, path: 'one.qemu.ratio' },
    { what: 'other', unit: 'ms', atMost: 1, path: 'two.millis' },
  ];
  const reports = judge({ one: { millis: { median: 10 }, ratio: 2.99999, qemu: 'not installed' } }, wanted);
  assert.deepEqual(reports, [
    { what: 'fast', unit: 'ms', goal: '≤ 10', measured: 10, reached: true },
    { what: 'faster', unit: '×', goal: '≥ 3', measured: 3, reached: false },
    { what: 'peer', unit: '×', goal: '≥ 3' },
  ]);
  assert.equal(formatGoals(reports), `${[
    '        goal  measured',
    'fast    ≤ 10        10  ms  reached',
    'faster   ≥ 3         3  ×   missed',
    'peer     ≥ 3         -  ×   not measured',
  ].join('\n')}\n`);
});

test('what is compared with v86 are the programs that make the same of it on both architectures', async () => {
  const { comparable } = await import('../bench/v86.ts');
  assert.deepEqual(comparable.map(({ name }) => name), programs.map(({ name }) => name).filter(name => name !== 'compiler'));
  // A decoder that rounds otherwise, numbers with more digits than are kept, a file of the other architecture.
  for (const { name, prepare = '', script } of comparable) {
    assert.doesNotMatch(prepare + script, /--decode|aarch64|usr\/bin\/lua/, name);
    assert.ok(script.trim() !== '', name);
  }
});

test('a result as a table', () => {
  const micros = { samples: 3, median: 1.23456, p99: 2, max: 30 };
  const result = { zazen: { micros, missing: undefined }, checked: 'sums' };
  assert.equal(formatResult(result), `${[
    '              median  p99  max  samples',
    'zazen.micros   1.235    2   30        3',
    'checked  sums',
  ].join('\n')}\n`);
});

// ---- the front door

test('wrong usage is told, with status 2 and nothing on standard output', () => {
  for (const [words, message] of [
    [['checkpiont'], /^bench: no benchmark is called "checkpiont"; there are: .*\bcheckpoint\b/],
    [['--jsno'], /^bench: Unknown option '--jsno'; there are: /],
    [['interpreter', '--json=yes'], /^bench: .*--json/],
  ] as const) {
    const { status, stdout, stderr } = bench(...words);
    assert.deepEqual([status, stdout], [2, '']);
    assert.match(stderr, message);
  }
});

test('every goal belongs to a benchmark, and every file with one is listed', () => {
  const { status, stdout } = bench('--help');
  assert.equal(status, 0);
  const names = /^benchmarks: (.*)$/m.exec(stdout)![1]!.split(', ');
  for (const { path } of goals) assert.ok(names.includes(path.split('.')[0]!), `no benchmark for ${path}`);
  for (const name of names) assert.ok(readdirSync(join(ROOT, 'bench')).includes(`${name}.ts`));
});

test('--json prints one document with results and goals', () => {
  const { status, stdout } = bench('interpreter', '--json');
  assert.equal(status, 0);
  const { interpreter, goals: reports, ...rest } = JSON.parse(stdout);
  assert.deepEqual([rest, reports], [{}, []]);
  assert.equal(interpreter.dispatch.nanosPerIteration.samples, 15);
});

// ---- the peer

const UART_DATA = 0x0900_0000;
const DELAY = 2 ** 20;

/** Prints A to Z, slowly, again and again. */
const alphabet = bareMetalImage({ code: a => forever(a, () => {
  const [letter, wait] = [fresh('letter'), fresh('wait')];
  a.mov(1, UART_DATA).mov(2, 65).label(letter).str(2, 1).mov(3, DELAY).label(wait).subs(3, 3, 1).bCond('ne', wait);
  a.add(2, 2, 1).subs(4, 2, 91).bCond('ne', letter);
}) });

const letterAfter = (letter: string): string => String.fromCharCode(65 + (letter.charCodeAt(0) - 64) % 26);

test('QEMU as a peer: pause, snapshot and back, a saved state in another process, quit', async t => {
  if (!needsTool(t, 'qemu-system-aarch64', 'qemu-system-arm')) return;
  const qemuPath = findTool('qemu-system-aarch64')!;
  const kernelPath = join(folder, 'alphabet');
  writeFileSync(kernelPath, alphabet);
  const guest = { kernelPath, cmdline: '', memoryMib: 64 };
  await using qemu = await QemuProcess.start(qemuPath, guest, folder);
  await qemu.until('ABC');
  const paused = await qemu.pauseAndContinue();
  assert.ok(paused.downtimeMicros > 0 && paused.downtimeMicros < paused.totalMicros);

  await qemu.addSnapshotFile();
  const from = await qemu.until('XYZ');
  await qemu.saveSnapshot('there');
  const savedAt = await qemu.until('ABC', from);
  await qemu.until('LMN', savedAt);
  const loaded = await qemu.loadSnapshot('there');
  assert.ok(loaded.downtimeMicros > 0 && loaded.downtimeMicros <= loaded.totalMicros);
  await qemu.until('ABCDEFGHIJKLMNOPQRSTUVWXYZ', qemu.output.length);
  // It went back: in one place a letter is not followed by the next one.
  const breaks = [...qemu.output].filter((letter, i) => i > 0 && letter !== letterAfter(qemu.output[i - 1]!));
  assert.equal(breaks.length, 1, qemu.output);

  const path = join(folder, 'state');
  await qemu.save(path);
  const next = letterAfter(qemu.output.at(-1)!);
  await using again = await QemuProcess.start(qemuPath, guest, folder, path);
  assert.equal(again.output, '');
  await again.resume();
  await again.until('XYZ');
  assert.equal(again.output[0], next);
  assert.ok(again.ownBytes > 0);
  assert.ok(await again.quit() > 0);
  await assert.rejects(again.until('never'), /QEMU has ended/);
});

test('QEMU as a peer: what it refuses and why it does not start is told', async t => {
  if (!needsTool(t, 'qemu-system-aarch64', 'qemu-system-arm')) return;
  const qemuPath = findTool('qemu-system-aarch64')!;
  const guest = { kernelPath: join(folder, 'nowhere'), cmdline: '', memoryMib: 64 };
  await assert.rejects(QemuProcess.start(qemuPath, guest, folder), /QEMU has ended:[^]*nowhere/);
  const kernelPath = join(folder, 'alphabet-2');
  writeFileSync(kernelPath, alphabet);
  await using qemu = await QemuProcess.start(qemuPath, { ...guest, kernelPath }, folder);
  await assert.rejects(qemu.command('no-such-command'), /QEMU refuses no-such-command/);
  await assert.rejects(qemu.saveSnapshot('nowhere to go'), /QEMU failed in snapshot-save/);
});
