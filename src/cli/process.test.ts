// Real processes: signals, broken pipes, a real terminal, and the launcher.

import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { closeSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, openSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { TestContext } from 'node:test';

const ROOT = join(import.meta.dirname, '../..');
const PROGRAM = join(import.meta.dirname, 'test-fake-main.ts');
const LAUNCHER = join(ROOT, 'bin/zazen.js');

const scratch = mkdtempSync(join(tmpdir(), 'zazen-process-'));
after(() => rmSync(scratch, { recursive: true, force: true }));

interface Running {
  child: ChildProcess;
  ended: Promise<{ status: number | null; signal: NodeJS.Signals | null; out: string; err: string }>;
  /** Waits until either output holds `wanted`. */
  hears(wanted: string): Promise<void>;
}

function startProgram(command: string, args: readonly string[], stdin: 'pipe' | 'ignore' = 'ignore'): Running {
  const child = spawn(command, args, { stdio: [stdin, 'pipe', 'pipe'] });
  const said = { out: '', err: '' };
  let hasEnded = false;
  let heard = Promise.withResolvers<void>();
  const tell = (): void => {
    heard.resolve();
    heard = Promise.withResolvers();
  };
  for (const [name, stream] of [['out', child.stdout!], ['err', child.stderr!]] as const) {
    stream.on('data', (chunk: Buffer) => {
      said[name] += chunk.toString();
      tell();
    });
  }
  const ended = new Promise<Awaited<Running['ended']>>((resolve) => {
    child.on('close', (status, signal) => {
      hasEnded = true;
      tell();
      resolve({ status, signal, ...said });
    });
  });
  const hears = async (wanted: string): Promise<void> => {
    while (!said.out.includes(wanted) && !said.err.includes(wanted)) {
      assert.ok(!hasEnded, `ended without saying ${wanted}: ${said.out}${said.err}`);
      await heard.promise;
    }
  };
  return { child, ended, hears };
}

const fake = (...args: string[]): Running => startProgram(process.execPath, [PROGRAM, ...args], 'pipe');

for (const [signal, status] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) {
  test(`${signal} ends the guest: exit status ${status}, nothing left over`, async () => {
    const program = fake('hang', 'run', '--exec', 'x');
    await program.hears('ready');
    program.child.kill(signal);
    assert.deepEqual(await program.ended, { status, signal: null, out: 'ready\n', err: `zazen: ended by ${signal}\n` });
  });
}

test('a signal told twice at once is one; a later one forces the end', async () => {
  const program = fake('stuck', 'run', '--exec', 'x');
  await program.hears('ready');
  program.child.kill('SIGINT');
  program.child.kill('SIGINT');
  const again = setInterval(() => program.child.kill('SIGINT'), 300);
  const { status, err } = await program.ended;
  clearInterval(again);
  // The host never closes, so the line that follows that was never reached.
  assert.deepEqual([status, err], [130, '']);
});

test('a reader that goes ends the command quietly, as SIGPIPE would', async () => {
  const program = fake('yes', 'run', '--exec', 'yes');
  await program.hears('y\n');
  program.child.stdout!.destroy();
  const { status, err } = await program.ended;
  assert.deepEqual([status, err], [141, '']);
});

for (const words of [['quick', 'run', '--exec', 'x'], ['quick', '--help']]) {
  test(`what cannot be written is told, also where the command has ended before: ${words.join(' ')}`, async () => {
    const full = openSync('/dev/full', 'w');
    const { status, stderr } = spawnSync(process.execPath, [PROGRAM, ...words], { stdio: ['ignore', full, 'pipe'], encoding: 'utf8' });
    closeSync(full);
    assert.match(stderr, /^zazen: cannot write standard output: ENOSPC[^\n]*\n$/);
    assert.equal(status, 1);
  });
}

test('the process ends with its guest although its input is open', async () => {
  const program = fake('quick', 'run', '--exec', 'x');
  assert.deepEqual(await program.ended, { status: 3, signal: null, out: 'done\n', err: '' });
});

for (const bug of ['bug', 'strayBug']) {
  test(`our own bug shows its stack and exits with 70: ${bug}`, async () => {
    const { status, err } = await fake(bug, 'run', '--exec', 'x').ended;
    assert.equal(status, 70);
    assert.match(err, /TypeError: our own bug\n +at /);
  });
}

// ---- a real terminal, by script(1)

function inTerminal(t: TestContext, act: (program: Running) => void): Promise<Awaited<Running['ended']>> | undefined {
  if (spawnSync('script', ['--version']).status !== 0) {
    t.skip('needs script, from the Debian package bsdutils');
    return undefined;
  }
  const zazen = `'${process.execPath}' '${PROGRAM}' shell run`;
  const command = `stty -g; ${zazen}; echo "status $?"; stty -g`;
  const program = startProgram('script', ['-q', '-e', '-c', command, '/dev/null'], 'pipe');
  void program.hears('ready').then(() => act(program));
  return program.ended;
}

function assertRestored(out: string, status: number): void {
  const lines = out.split(/\r?\n/).map((line) => line.trim());
  const modes = lines.filter((line) => /^[0-9a-f]+(:[0-9a-f]+){10,}$/.test(line));
  assert.equal(modes.length, 2, out);
  assert.equal(modes[0], modes[1], 'the terminal has its mode back');
  assert.ok(lines.includes(`status ${status}`), out);
}

test('a terminal has its mode back after Ctrl-]; Ctrl-C went to the guest', async (t) => {
  const ended = inTerminal(t, (program) => {
    program.child.stdin!.write('hello\x03');
    void program.hears('hello').then(() => program.child.stdin!.write('\x1d'));
  });
  if (ended === undefined) return;
  const { out } = await ended;
  assert.match(out, /hello/);
  assertRestored(out, 0);
});

test('a terminal has its mode back after a signal', async (t) => {
  const ended = inTerminal(t, (program) => {
    // The program is the child of the shell, the child of script.
    const pids = spawnSync('ps', ['-A', '-o', 'pid=,ppid=,args='], { encoding: 'utf8' }).stdout.split('\n')
      .map((line) => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line)).filter((match) => match !== null);
    const childOf = (parent: string) => pids.filter((match) => match[2] === parent).map((match) => match[1]!);
    const descendants = childOf(String(program.child.pid)).flatMap((shell) => [shell, ...childOf(shell)]);
    const target = pids.find((match) => descendants.includes(match[1]!) && match[3]!.startsWith(process.execPath));
    process.kill(Number(target![1]), 'SIGTERM');
  });
  if (ended === undefined) return;
  assertRestored((await ended).out, 143);
});

// ---- the launcher

test('the launcher passes words, streams and the exit status', async () => {
  const program = startProgram('node', [LAUNCHER, '--version']);
  const { status, out } = await program.ended;
  assert.equal(status, 0);
  assert.match(out, /^zazen \d/);
  const wrong = await startProgram('node', [LAUNCHER, 'run', '--oops']).ended;
  assert.equal(wrong.status, 2);
  assert.match(wrong.err, /^zazen: unknown option --oops[^\n]*\n$/);
});

/** A checkout with this launcher, and a program of the test's in place of Zazen's. */
function checkout(name: string, withNode: boolean): string {
  const root = join(scratch, name);
  for (const dir of ['bin', 'src/cli', 'node_modules/node/bin']) mkdirSync(join(root, dir), { recursive: true });
  for (const file of ['zazen.js', 'launcher.js']) copyFileSync(join(ROOT, 'bin', file), join(root, 'bin', file));
  writeFileSync(join(root, 'package.json'), '{"type":"module"}');
  symlinkSync(PROGRAM, join(root, 'src/cli/main.ts'));
  if (withNode) symlinkSync(process.execPath, join(root, 'node_modules/node/bin/node'));
  return join(root, 'bin/zazen.js');
}

test('the launcher passes signals on', async () => {
  const program = startProgram('node', [checkout('signals', true), 'hang', 'run', '--exec', 'x']);
  await program.hears('ready');
  program.child.kill('SIGTERM');
  assert.deepEqual(await program.ended,
    { status: 143, signal: null, out: 'ready\n', err: 'zazen: ended by SIGTERM\n' });
});

test('the launcher gives V8 no more threads than cores and a large heap, where the verb runs guests in its own process', async () => {
  const launcher = checkout('options', true);
  const program = join(scratch, 'options/src/cli/main.ts');
  rmSync(program);
  writeFileSync(program, 'console.log(process.execArgv.join());');
  const optionsOf = async (...words: string[]): Promise<string> =>
    (await startProgram('node', [launcher, ...words]).ended).out.trim();
  assert.equal(await optionsOf('run', '--exec', 'x'), `--v8-pool-size=${Math.min(4, availableParallelism())},--max-old-space-size=40960`);
  assert.equal(await optionsOf('list'), '');
});

test('the launcher is the program itself where the Node that runs it is the right one already', async () => {
  const launcher = checkout('itself', true);
  const program = join(scratch, 'itself/src/cli/main.ts');
  rmSync(program);
  writeFileSync(program, 'console.log(process.ppid, process.argv.slice(2).join());');
  const outputOf = async (...command: [string, ...string[]]): Promise<string[]> =>
    (await startProgram(command[0], command.slice(1)).ended).out.trim().split(' ');
  const own = String(process.pid);
  assert.deepEqual((await outputOf(process.execPath, launcher, 'list', 'x')).slice(0, 2), [own, 'list,x']);
  assert.notEqual((await outputOf(process.execPath, launcher, 'run'))[0], own);
});

test('npm start takes no words, and says so instead of starting a guest', async () => {
  const { status, out, err } = await startProgram(process.execPath, [join(ROOT, 'bin/start.js'), '--help']).ended;
  assert.deepEqual([status, out], [2, '']);
  assert.match(err, /^zazen: npm start takes nothing behind it, so not "--help"; see: .*\n$/);
});

test('without its dependencies the launcher says what to do', async () => {
  const { status, err } = await startProgram('node', [checkout('bare', false), 'info']).ended;
  assert.equal(status, 1);
  assert.match(err, /^zazen: its Node is not installed; run: npm ci[^\n]*\n$/);
  assert.ok(existsSync(LAUNCHER));
});
