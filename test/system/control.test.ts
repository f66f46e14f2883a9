// A daemon in a process of its own with two real guests, driven by the command line and by two clients at once: what a
// person sees is what the guests do, clients that are killed disturb nobody, and at the end nothing is left.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { DomainActivity } from '../../src/cli/top.ts';
import { ControlClient } from '../../src/daemon/client.ts';
import type { ListedDomain } from '../../src/daemon/command.ts';
import { FAST_BOOT, collect } from '../guest/guests.ts';
import { TEST_PATIENCE_MILLIS } from '../patience.ts';

const ZAZEN = join(import.meta.dirname, '../../src/cli/main.ts');
/** What Zazen's init gives a person. */
const PROMPT = /root@\w+:.*# /;

const scratch = mkdtempSync(join(tmpdir(), 'zazen-system-'));
const sockets = mkdtempSync(join(scratch, 's-'));
const env = { ...process.env, ZAZEN_RUNTIME_DIR: sockets };
const started = new Set<ChildProcess>();
after(() => {
  for (const child of started) child.kill('SIGKILL');
  rmSync(scratch, { recursive: true, force: true });
});

type Heard = ReturnType<typeof collect>;

interface Listing {
  hosts: unknown[];
  domains: ListedDomain[];
}

function start(...words: string[]): ChildProcess {
  const child = spawn(process.execPath, [ZAZEN, ...words], { env, stdio: ['pipe', 'pipe', 'pipe'] });
  started.add(child);
  child.on('exit', () => started.delete(child));
  child.stdin!.on('error', () => {});
  return child;
}

/** Runs a verb to its end; what it printed on standard output. */
async function zazen(...words: string[]): Promise<string> {
  const child = start(...words);
  child.stdin!.end();
  const [out, err] = [collect(child.stdout!), collect(child.stderr!)];
  const [status] = await once(child, 'close');
  assert.equal(status, 0, `zazen ${words.join(' ')}: ${err.text()}`);
  return out.text();
}

/** What a verb prints with --json; each test looks at what it knows to be there. */
async function json<T = Listing>(...words: string[]): Promise<T> {
  return JSON.parse(await zazen(...words, '--json')) as T;
}

function writeConfig(name: string, more: string): string {
  const path = join(scratch, `${name}.cfg`);
  writeFileSync(path, `name = "${name}"; memory = 0x80 # MiB\nvif = []\nextra = "${FAST_BOOT}"\n${more}`);
  return path;
}

test('a daemon, two guests, and everything that can be asked of them', { timeout: TEST_PATIENCE_MILLIS }, async () => {
  const daemon = start('daemon', '--memory', '1GiB', '--pcpus', '2');
  const said = collect(daemon.stderr!);
  await said.until('listens at');
  const client = new ControlClient(join(sockets, `${daemon.pid}.sock`));
  await zazen('create', writeConfig('one', ''));
  await zazen('create', writeConfig('two', 'vcpus = 2'));

  // Both boot; two at one console see the same.
  const consoles = await Promise.all(['one', 'one', 'two'].map((name) => client.console(name)));
  const [one, oneToo, two] = consoles.map((stream) => collect(stream)) as [Heard, Heard, Heard];
  const events = collect(start('events', '--history').stdout!);
  await Promise.all([one.until(PROMPT), oneToo.until(PROMPT), two.until(PROMPT)]);
  consoles[0]!.write('echo from-$((6*7)); n=1\n');
  await Promise.all([one.until('from-42\r\n'), oneToo.until('from-42\r\n')]);
  consoles[2]!.write('echo cpus-$(nproc)\n');
  await two.until('cpus-2\r\n');

  // A client that is killed takes nothing with it.
  const killed = start('console', 'one');
  await collect(killed.stdout!).until('from-42');
  killed.kill('SIGKILL');
  await once(killed, 'close');

  const listed = await json('list');
  assert.deepEqual(listed.domains.map((it) => [it.name, it.state, it.vcpus.length, it.memoryBytes]),
    [['one', 'running', 1, 128 * 2 ** 20], ['two', 'running', 2, 128 * 2 ** 20]]);
  assert.equal((await zazen('store', 'read', '/local/domain/1/name')).trim(), 'one');

  // Paused is paused.
  await zazen('pause', 'one');
  consoles[0]!.write('echo awake-$((1+1))\n');
  const before = await json('list');
  const [later] = (await json<{ domains: DomainActivity[] }>('top', '-d', '0.2')).domains;
  assert.deepEqual([before.domains[0]!.state, later!.state, later!.mips], ['paused', 'paused', 0]);
  const [still] = (await client.send({ command: 'list' })).domains;
  assert.equal(still!.instructionsRetired, before.domains[0]!.instructionsRetired);
  assert.doesNotMatch(one.text(), /awake-2/);
  await zazen('unpause', 'one');
  await one.until('awake-2\r\n');

  // A checkpoint, what came after it, and back; forks go their own ways.
  await zazen('checkpoint', 'one');
  consoles[0]!.write('n=2; echo n-is-$n\n');
  await one.until('n-is-2\r\n');
  await zazen('rollback', 'one');
  consoles[0]!.write('echo back-at-$n\n');
  await one.until('back-at-1\r\n');
  assert.equal(await zazen('fork', 'one', '--count', '2', '--name', 'kid'), 'kid-1\nkid-2\n');
  const kids = await Promise.all(['kid-1', 'kid-2'].map((name) => client.console(name)));
  for (const [i, kid] of kids.entries()) kid.write(`n=kid-${i}; echo I-am-$n\n`);
  await Promise.all(kids.map((kid, i) => collect(kid).until(`I-am-kid-${i}\r\n`)));
  consoles[0]!.write('echo still-$n\n');
  await one.until('still-1\r\n');
  for (const name of ['kid-1', 'kid-2']) await zazen('destroy', name);

  // Into a file, gone, and back under its name, where it was.
  const file = join(scratch, 'one.core');
  const saved = await json<{ pagesWritten: number }>('save', 'one', file, '--destroy');
  assert.ok(saved.pagesWritten > 1000);
  assert.deepEqual((await json('list')).domains.map((it) => it.name), ['two']);
  assert.equal(await zazen('restore', file), 'one\n');
  const restored = await client.console('one');
  restored.write('echo restored-$n\n');
  await collect(restored).until('restored-1\r\n');

  // One shuts down and is destroyed; the other reboots and comes up again under its name.
  assert.equal((await json<{ reason: string }>('shutdown', '--wait', 'one')).reason, 'poweroff');
  await zazen('reboot', 'two');
  await events.until(/two \(2\) {2}shutdown: reboot\n(?:.*\n)*.* two \(\d+\) {2}started\n/);
  await events.until(/one \((?!1\))\d+\) {2}destroyed\n/);
  assert.deepEqual((await json('list')).domains.map((it) => it.name), ['two']);
  const again = collect(await client.console('two'));
  await again.until(PROMPT);

  daemon.kill('SIGINT');
  const [status] = await once(daemon, 'close');
  assert.equal(status, 130);
  assert.match(said.text(), /^zazen: host \d+ listens at .*\nzazen: ended by SIGINT\n$/);
  assert.deepEqual(readdirSync(sockets), []);
  assert.deepEqual(await json('list'), { hosts: [], domains: [] });
});

test('a daemon that is killed leaves a socket, which the next look removes', { timeout: TEST_PATIENCE_MILLIS }, async () => {
  const daemon = start('daemon', '--memory', '256MiB', '--pcpus', '1');
  await collect(daemon.stderr!).until('listens at');
  assert.equal(readdirSync(sockets).length, 1);
  daemon.kill('SIGKILL');
  await once(daemon, 'close');
  assert.equal(readdirSync(sockets).length, 1);
  assert.deepEqual((await json('list')).hosts, []);
  assert.deepEqual(readdirSync(sockets), []);
});
