// The command line with real guests behind it: bytes pass unaltered in and out, statuses come back, a guest that
// cannot start is an error, and `npm start` shows what it promises.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import { FAST_BOOT } from '../guest/guests.ts';
import { PATIENCE_MILLIS } from '../patience.ts';

const ROOT = join(import.meta.dirname, '../..');
const ZAZEN = join(ROOT, 'src/cli/main.ts');
const LIMIT = ['--timeout', String(PATIENCE_MILLIS / 1000)];
const FAST = ['--cmdline', FAST_BOOT];

const scratch = mkdtempSync(join(tmpdir(), 'zazen-front-door-'));
after(() => rmSync(scratch, { recursive: true, force: true }));

interface Ended {
  status: number | null;
  out: Buffer;
  err: string;
}

function runProgram(program: string, args: readonly string[], input: Uint8Array = Buffer.alloc(0)): Promise<Ended> {
  const child = spawn(process.execPath, [program, ...args]);
  const out: Buffer[] = [];
  let err = '';
  child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => { err += chunk.toString(); });
  // A program that ends before it has read everything is judged by its status.
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  return new Promise((resolve) => {
    child.on('close', (status) => resolve({ status, out: Buffer.concat(out), err }));
  });
}

test('any bytes go through a command in the guest and come back unaltered, with its status', async () => {
  const random = new SeededRandom(20261121);
  // Every byte value, lines longer than a terminal takes, and an end in the middle of a line.
  const noise = Buffer.from(Uint8Array.from({ length: 60_000 }, () => random.u32() & 255));
  const input = Buffer.concat([noise, Buffer.alloc(6000, 'x'), Buffer.from('\n\n\x04end')]);
  const { status, out, err } = await runProgram(ZAZEN, ['run', ...LIMIT, ...FAST, '--exec', 'cat; exit 42'], input);
  assert.equal(err, '');
  assert.equal(status, 42);
  assert.ok(out.equals(input), `${out.length} bytes came back of ${input.length}`);
});

test('without a command, standard input is a script; --json has output, status and what it cost', async () => {
  const script = Buffer.from('uname -m\ncat /sys/hypervisor/type\nexit 3\n');
  const args = ['run', ...LIMIT, ...FAST, '--json', '--memory', '128M', '--name', 'front'];
  const { status, out } = await runProgram(ZAZEN, args, script);
  const report = JSON.parse(out.toString());
  assert.equal(status, 3);
  assert.deepEqual([report.status, report.outcome, report.output], [3, 'exit', 'aarch64\nxen\n']);
  assert.equal(report.domain.name, 'front');
  assert.equal(report.stats.memoryBytes, 128 * 2 ** 20);
  assert.ok(report.stats.instructionsRetired > 100e6);
  assert.ok(report.timings.initMillis > 0 && report.timings.initMillis < report.timings.commandStartMillis);
});

test('a guest whose kernel panics is an error with its last words', async () => {
  const garbage = join(scratch, 'initrd');
  writeFileSync(garbage, Buffer.alloc(5000, 'no archive '));
  const args = ['run', ...LIMIT, '--initrd', garbage, '--exec', 'true'];
  const { status, out, err } = await runProgram(ZAZEN, args);
  assert.deepEqual([status, out.length], [1, 0]);
  assert.match(err, /^zazen: the guest stopped before the command began; its last words: [^\n]*Kernel panic[^\n]*\n$/);
});

test('npm start without a terminal: the guest introduces itself, then come the times', async () => {
  const { status, out } = await runProgram(join(ROOT, 'bin/start.js'), []);
  const text = out.toString();
  assert.equal(status, 0);
  for (const shown of [/# uname -a\nLinux zazen .* aarch64 /, /\ntype +xen\n/, /\nMem: +\d+/, /GICv3.*arch_timer/,
    /\nboot to init +\d+\.\d\d s\n/, /\ninstructions retired +\d+ million\n/, /\nspeed +\d+ MIPS\n/,
    /\n100 checkpoints, downtime +median [\d.]+ ms/, /\nsave, \d+ MiB +\d/, /\nrestore +\d/, /\nfork of 10 +\d/,
    /\nrollback +\d/, /\ndestroy +\d/]) {
    assert.match(text, shown);
  }
});
