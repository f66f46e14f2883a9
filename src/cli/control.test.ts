// The verbs that act over the control socket, against a daemon with a fake host.

import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { FakeIo, runCli } from './test-io.ts';
import type { Outcome } from './test-io.ts';
import type { FakeGuest, FakeHostOptions } from './test-fake-host.ts';

const root = mkdtempSync(join(tmpdir(), 'zazen-verbs-'));
after(() => rmSync(root, { recursive: true, force: true }));
const config = join(root, 'web.cfg');
writeFileSync(config, 'name="web"\nmemory=256\n');

interface Daemon extends AsyncDisposable {
  directory: string;
  guests: FakeGuest[];
  /** Runs a verb that looks for hosts where this one is. */
  zazen(...words: string[]): Promise<Outcome>;
  io(): FakeIo;
  stop(): Promise<Outcome>;
}

async function startDaemon(
  options: FakeHostOptions = {}, directory = mkdtempSync(join(root, 'd-')), ...words: string[]
): Promise<Daemon> {
  const guests: FakeGuest[] = [];
  const newIo = (): FakeIo => {
    const it = new FakeIo();
    it.env['ZAZEN_RUNTIME_DIR'] = directory;
    return it;
  };
  const io = newIo();
  const running = runCli(['daemon', ...words], {
    ...options, guest: (guest) => { guests.push(guest); return options.guest?.(guest); },
  }, io);
  await Promise.race([io.stderr.hears('listens at'), running]);
  const stop = async (): Promise<Outcome> => {
    io.interrupt();
    return running;
  };
  return {
    directory, guests, stop, io: newIo,
    zazen: (...given) => runCli(given, {}, newIo()),
    async [Symbol.asyncDispose]() { await stop(); },
  };
}

/** What a verb printed with --json; each test looks at what it knows to be there. */
type Printed = Record<string, unknown> & {
  domains: { name: string; state: string; hostPid: number; mips: number }[];
  hosts: unknown[];
};
const json = ({ out }: Outcome): Printed => JSON.parse(out) as Printed;

test('a daemon says where it listens; interrupted, it ends its guests and removes its socket', async () => {
  const daemon = await startDaemon({}, undefined, '--memory', '1GiB', '--pcpus', '3');
  await daemon.zazen('create', config);
  assert.deepEqual(readdirSync(daemon.directory), [`${process.pid}.sock`]);
  const { status, err, hosts } = await daemon.stop();
  assert.equal(status, 130);
  assert.match(err, /^zazen: host \d+ listens at .*\.sock\nzazen: ended by SIGINT\n$/);
  assert.deepEqual([hosts.open, hosts.hostOptions[0]!.memory, hosts.hostOptions[0]!.pcpus], [0, '1GiB', 3]);
  assert.deepEqual(readdirSync(daemon.directory), []);
});

test('create, list, pause, unpause, shutdown, destroy', async () => {
  await using daemon = await startDaemon();
  const { zazen } = daemon;
  const created = await zazen('create', config, 'vcpus=2', 'name=web-2', '--json', '-p');
  assert.deepEqual([created.status, json(created).name, json(created).state], [0, 'web-2', 'paused']);
  assert.deepEqual(daemon.guests[0]!.spec, { name: 'web-2', memory: '256MiB', vcpus: 2, paused: true });
  assert.match((await zazen('list')).out, /^NAME +ID +MEM +VCPUS +STATE +TIME\nweb-2 +1 +\d+ +0 +paused +4\.0\n$/);
  assert.deepEqual(await zazen('unpause', 'web-2').then(({ status, out, err }) => [status, out, err]), [0, '', '']);
  const listed = json(await zazen('list', '--json'));
  assert.deepEqual([listed.domains[0]!.state, listed.domains[0]!.hostPid, listed.hosts.length],
    ['running', process.pid, 1]);
  assert.equal(json(await zazen('pause', '1', '--json')).state, 'paused');
  const illegal = await zazen('shutdown', 'web-2');
  assert.deepEqual([illegal.status, illegal.err],
    [1, 'zazen: domain web-2 is paused; shutdown takes one that is running; unpause it first, or destroy it\n']);
  await zazen('unpause', 'web-2');
  const shutting = zazen('shutdown', '--wait', 'web-2');
  assert.equal(await daemon.guests[0]!.asked(), 'poweroff');
  daemon.guests[0]!.shutdown('poweroff');
  assert.match((await shutting).err, /web-2 has stopped: poweroff/);
  await zazen('create', config);
  assert.equal((await zazen('destroy', 'web')).status, 0);
  assert.match((await zazen('destroy', 'web')).err, /there is no domain web; zazen list/);
});

test('a configuration that asks for too much creates nothing', async () => {
  await using daemon = await startDaemon();
  const bad = join(root, 'bad.cfg');
  writeFileSync(bad, 'vfb=["vnc=1"]\n');
  const { status, err } = await daemon.zazen('create', bad);
  assert.deepEqual([status, err.includes('bad.cfg, line 1: vfb: framebuffers are not supported')], [1, true]);
  // What the host would not take at any time the file has asked for, too.
  for (const [text, says] of [['disk=["a,b,c,d"]', /bad\.cfg: disk "a,b,c,d": there is no format "b"/],
    ['vif=["forward=8"]', /bad\.cfg: not a port forward: 8/], ['cpu_weight=0', /bad\.cfg: create's spec's cpuWeight must be/]] as const) {
    writeFileSync(bad, text);
    const refused = await daemon.zazen('create', bad);
    assert.equal(refused.status, 1);
    assert.match(refused.err, says);
  }
  assert.match((await daemon.zazen('create', join(root, 'none.cfg'))).err, /cannot read .*none\.cfg/);
  assert.equal((await daemon.zazen('create')).status, 2);
  assert.equal(daemon.guests.length, 0);
});

test('weights and caps are given, shown and changed', async () => {
  await using daemon = await startDaemon();
  const { zazen } = daemon;
  await zazen('create', config, 'cpu_weight=512', 'cap=50');
  await zazen('create', config, 'name="other"');
  assert.equal((await zazen('sched-credit')).out, 'Name   ID  Weight  Cap\nweb     1     512   50\nother   2     256    0\n');
  assert.equal((await zazen('sched-credit', '-d', 'web', '-w', '100')).out, 'Name  ID  Weight  Cap\nweb    1     100   50\n');
  assert.deepEqual(json(await zazen('sched-credit', '-d', '1', '-c', '0', '--json')), { domains: [{ id: 1, name: 'web', weight: 100, cap: 0 }] });
  assert.match((await zazen('sched-credit', '-d', 'web', '-w', '70000')).err, /weight must be a whole number from 1 to 65535/);
  for (const words of [['-w', '1'], ['-d', 'web', '-w', 'x']]) assert.equal((await zazen('sched-credit', ...words)).status, 2);
});

test('network cards come and go, and ports of the host lead to them', async () => {
  await using daemon = await startDaemon();
  const { zazen } = daemon;
  await zazen('create', config);
  assert.equal((await zazen('network-attach', 'web', 'bridge=blue,mac=00:16:3e:0a:0b:0c', 'forward=8080:80')).out, '0\n');
  assert.equal((await zazen('network-forward', 'web', '5353:53/udp', '--card', '0')).out, '5353:53/udp\n');
  assert.deepEqual(json(await zazen('network-forward', 'web', '2222:22', '--json')), { forward: '2222:22' });
  assert.equal((await zazen('network-forward', 'web', '8080:80', '--remove')).status, 0);
  assert.match((await zazen('network-list', 'web')).out, /^0 +blue +00:16:3e:0a:0b:0c +10\.0\.2\.15 +yes .* 5353:53\/udp 2222:22\n$/m);
  const unknown = await zazen('network-forward', 'web', '1:2', '-r');
  assert.deepEqual([unknown.status, unknown.err], [1, 'zazen: no port is forwarded to web as 1:2\n']);
  assert.equal((await zazen('network-forward', 'web', '80')).status, 2);
  assert.match((await zazen('network-forward', 'web', '1:2', '--card', '7')).err, /web has no network card 7/);
  assert.equal((await zazen('network-detach', 'web', '00:16:3E:0A:0B:0C')).status, 0);
  assert.match((await zazen('network-list', 'web')).err, /it has no network cards/);
});

test('console: a person attaches and leaves, a pipe reads to the end', async () => {
  await using daemon = await startDaemon();
  await daemon.zazen('create', config);
  const [guest] = daemon.guests as [FakeGuest];
  guest.say('login: ');
  const io = daemon.io().terminal();
  const attached = runCli(['console', 'web'], {}, io);
  await io.stdout.hears('login: ');
  io.stdin.write('root\r\x1ddropped');
  const { status, err } = await attached;
  assert.equal(status, 0);
  assert.match(err, /left the console of web; the guest runs on/);
  assert.deepEqual([io.stdin.rawModes, io.pending], [[true, false], 0]);
  assert.equal(await guest.typed('\r'), 'root\r');
  const pipe = daemon.io();
  const piped = runCli(['console', 'web'], {}, pipe);
  pipe.stdin.end('ls\n');
  await guest.typed('ls\n');
  guest.say('bye\n');
  guest.shutdown('poweroff');
  assert.equal((await piped).out, 'login: bye\n');
});

test('create -c attaches at once', async () => {
  await using daemon = await startDaemon({
    guest: (guest) => {
      guest.say('hello\n');
      setImmediate(() => guest.shutdown('poweroff'));
    },
  });
  const { status, out } = await daemon.zazen('create', '-c', config, 'on_poweroff=preserve');
  assert.deepEqual([status, out], [0, 'hello\n']);
});

test('suspend and resume, and a save that suspends', async () => {
  await using daemon = await startDaemon();
  const { zazen } = daemon;
  await zazen('create', config);
  const told = await zazen('suspend', 'web', '--timeout', '2');
  assert.equal(told.err, 'zazen: web is suspended: transparent, in 0.26 ms (event-channel: not offered)\n');
  assert.match((await zazen('list')).out, /web .* suspended /);
  assert.match((await zazen('pause', 'web')).err, /web is suspended; .*; resume it first/);
  assert.equal((await zazen('resume', 'web')).status, 0);
  const { suspend } = json(await zazen('suspend', 'web', '--via', 'store', '--json'));
  assert.equal((suspend as { via: string }).via, 'store');
  await zazen('resume', 'web');
  assert.match((await zazen('save', 'web', 'x', '--via', 'store')).err,
    /x: 100 KiB in .*\n.*suspended for it: store, in 0\.26 ms\n$/);
  assert.match((await zazen('suspend', 'web', '--via', 'event-channel')).err, /offers no suspend event channel/);
  for (const words of [['--via', 'mail'], ['--timeout', 'soon']]) {
    assert.equal((await zazen('suspend', 'web', ...words)).status, 2);
  }
  const io = daemon.io();
  const following = runCli(['events', 'web', '--history'], {}, io);
  await io.stdout.hears('suspended: store');
  await zazen('destroy', 'web');
  assert.match((await following).out, / suspended: transparent\n.* resumed: cancelled\n.* suspended: store\n/);
});

test('checkpoint, checkpoints, rollback, fork, checkpoint-destroy', async () => {
  await using daemon = await startDaemon();
  const { zazen } = daemon;
  await zazen('create', config);
  const id = (await zazen('checkpoint', 'web')).out.trim();
  assert.match((await zazen('checkpoints')).out, new RegExp(`\\n *${id} +web .*0\\.00 ms\\n$`));
  assert.match((await zazen('rollback', 'web')).err, new RegExp(`web is at checkpoint ${id}; it took 0\\.00 ms`));
  assert.equal((await zazen('fork', '-k', id, '-n', '2', '--name', 'kid')).out, 'kid-1\nkid-2\n');
  assert.equal(json(await zazen('fork', 'web', '--json')).domains.length, 1);
  assert.equal((await zazen('fork')).status, 2);
  assert.equal((await zazen('checkpoint-destroy', id)).status, 0);
  assert.match((await zazen('checkpoint-destroy', id)).err, /there is no checkpoint/);
  assert.deepEqual(json(await zazen('checkpoints', '--json')), { checkpoints: [] });
});

test('save, dump-core, restore; a bar where a person looks', async () => {
  await using daemon = await startDaemon();
  const { zazen } = daemon;
  await zazen('create', config);
  const io = daemon.io().terminal();
  const { status, err } = await runCli(['save', 'web', join(root, 'web.core')], {}, io);
  assert.equal(status, 0);
  const lines = err.split('\r\x1b[K');
  assert.deepEqual(lines.slice(0, 2), ['', `save [${'.'.repeat(30)}] 0 %`]);
  assert.match(lines.at(-1)!, /^zazen: .*web\.core: 100 KiB in 0\.00 s\n$/);
  assert.match((await zazen('dump-core', 'web', 'x')).err, new RegExp(`^zazen: ${process.cwd()}/x: 100 KiB in`));
  const id = (await zazen('checkpoint', 'web')).out.trim();
  assert.equal((await zazen('save', '-k', id, 'y')).status, 0);
  const increment = await zazen('save', 'web', 'y', '--parent', 'web.core');
  assert.match(increment.err, /100 KiB in 0\.00 s, 80 KiB in its parent\n$/);
  assert.equal((await zazen('save', 'web')).status, 2);
  assert.equal((await zazen('save', 'web', 'z', '--destroy')).status, 0);
  assert.equal((await zazen('restore', 'a.core', '--name', 'again', '-p')).out, 'again\n');
  assert.match((await zazen('list')).out, /^NAME .*\nagain +2 .* paused .*\n$/);
});

test('store ls, read, write, rm, watch', async () => {
  await using daemon = await startDaemon();
  const { zazen } = daemon;
  const io = daemon.io();
  const watching = runCli(['store', 'watch', '/a'], {}, io);
  await io.stdout.hears('/a\n');
  assert.equal((await zazen('store', 'write', '/a/b', 'value')).status, 0);
  await io.stdout.hears('/a/b\n');
  io.interrupt();
  assert.equal((await watching).status, 130);
  assert.equal((await zazen('store', 'read', '/a/b')).out, 'value\n');
  assert.deepEqual(json(await zazen('store', 'ls', '/a', '--json')), { names: ['b'] });
  await zazen('store', 'rm', '/a');
  assert.match((await zazen('store', 'ls', '/a')).err, /store: \/a: no such node/);
});

test('events of one domain end with it', async () => {
  await using daemon = await startDaemon();
  await daemon.zazen('create', config);
  const jsonIo = daemon.io();
  const following = runCli(['events', 'web', '--history', '--json'], {}, jsonIo);
  await jsonIo.stdout.hears('started');
  await daemon.zazen('pause', 'web');
  const io = daemon.io();
  const plain = runCli(['events', 'web', '--history'], {}, io);
  await io.stdout.hears('paused');
  await daemon.zazen('destroy', 'web');
  const lines = (await following).out.trim().split('\n').map((line) => JSON.parse(line));
  assert.deepEqual(lines.map(({ name, type }) => `${name} ${type}`), ['web started', 'web paused', 'web destroyed']);
  assert.match((await plain).out, /Z {2}web \(1\) {2}paused\n.* destroyed\n$/);
});

test('top: once without a terminal, until q with one', async () => {
  await using daemon = await startDaemon();
  await daemon.zazen('create', config);
  const once = await daemon.zazen('top', '-d', '0.05');
  assert.match(once.out, /^host \d+: domains 1, .*code: 20 of 100 pages, 7 regions compiled\n {2}compiled 0%, .*\nNAME +ID +STATE .*\nweb +1 +running /);
  const { domains } = json(await daemon.zazen('top', '--json', '-d', '0.05'));
  assert.deepEqual([domains[0]!.name, domains[0]!.mips], ['web', 0]);
  const io = daemon.io().terminal();
  const running = runCli(['top', '-d', '0.05'], {}, io);
  await io.stdout.hears('web');
  io.stdin.write('q');
  assert.equal((await running).status, 0);
  assert.ok(io.stdout.text.endsWith('\x1b[?25h\x1b[?1049l'));
  assert.deepEqual([io.stdin.rawModes, io.pending], [[true, false], 0]);
  assert.equal((await daemon.zazen('top', '-d', '0')).status, 2);
});

test('without a host: an empty list, and for the rest an error that says what to do', async () => {
  const io = (): FakeIo => {
    const it = new FakeIo();
    it.env['ZAZEN_RUNTIME_DIR'] = join(root, 'nothing');
    return it;
  };
  const list = await runCli(['list'], {}, io());
  assert.deepEqual([list.status, list.out.split('\n').length], [0, 2]);
  for (const words of [['pause', 'web'], ['store', 'ls', '/'], ['create', config]]) {
    const { status, err } = await runCli(words, {}, io());
    assert.deepEqual([status, err], [1, 'zazen: no host runs; zazen daemon starts one, and so does zazen run\n']);
  }
  const { status, out } = await runCli(['list', '--host', '1', '--json'], {}, io());
  assert.deepEqual([status, JSON.parse(out).error.code], [1, 'ZAZEN_HOST_UNREACHABLE']);
});

test('with two hosts a name is looked up on both, and --host chooses', async () => {
  await using first = await startDaemon();
  // A second one of this process stands for one of another.
  const socket = join(first.directory, `${process.ppid}.sock`);
  await using second = await startDaemon({}, first.directory, '--socket', socket);
  const { zazen } = first;
  assert.match((await zazen('create', config)).err, /2 hosts run; choose one with --host/);
  for (const host of [String(process.pid), socket]) {
    assert.equal((await zazen('create', config, '--host', host)).status, 0);
  }
  await zazen('create', config, 'name=only', '--host', String(process.ppid));
  assert.deepEqual([first.guests.length, second.guests.length], [1, 2]);
  assert.equal((await zazen('list')).out.split('\n').length, 5);
  assert.equal((await zazen('pause', 'only')).status, 0);
  assert.match((await zazen('pause', 'web')).err, /2 hosts have a domain web; choose one with --host/);
  assert.match((await zazen('pause', 'nobody')).err, /there is no domain nobody/);
  assert.equal((await zazen('pause', 'web', '--host', socket)).status, 0);
  assert.match((await zazen('info', '--host', String(process.ppid))).out, /domains +web only\n/);
});

test('zazen run serves its guest\'s socket, and runs without one where there can be none', async () => {
  const io = new FakeIo();
  const directory = mkdtempSync(join(root, 'r-'));
  io.env['ZAZEN_RUNTIME_DIR'] = directory;
  io.stdin.end();
  let guest: FakeGuest | undefined;
  const running = runCli(['run', '--name', 'one', '--exec', 'x'], {
    guest: (it) => {
      guest = it;
      it.begin();
      it.say('ready');
    },
  }, io);
  await io.stdout.hears('ready');
  const other = new FakeIo();
  other.env['ZAZEN_RUNTIME_DIR'] = directory;
  assert.match((await runCli(['list'], {}, other)).out, /\none +1 /);
  guest!.end(4);
  assert.equal((await running).status, 4);
  assert.equal(existsSync(join(directory, `${process.pid}.sock`)), false);
  const without = new FakeIo();
  without.env['ZAZEN_RUNTIME_DIR'] = '/proc/no/where';
  without.stdin.end();
  const { status, err } = await runCli(['run', '--exec', 'x'], { guest: (it) => it.command('', 0) }, without);
  assert.equal(status, 0);
  assert.match(err, /^zazen: no control socket: \/proc\/no\/where cannot hold control sockets: [^\n]*\n$/);
});
