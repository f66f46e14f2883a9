import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex, Readable } from 'node:stream';
import { after, test } from 'node:test';
import { PATIENCE_MILLIS } from '../../test/patience.ts';
import { ZazenError } from '../base/errors.ts';
import { FakeHosts } from '../cli/test-fake-host.ts';
import type { FakeDomain, FakeGuest, FakeHostOptions } from '../cli/test-fake-host.ts';
import type { Host } from '../host/types.ts';
import { ControlClient } from './client.ts';
import { BODY_MAX_BYTES } from './protocol.ts';
import { findSockets, runtimeDirectory } from './runtime-directory.ts';
import { serveControl } from './server.ts';
import type { ControlServer } from './server.ts';
import { actionFor } from './stop-policies.ts';

const root = mkdtempSync(join(tmpdir(), 'zazen-control-'));
after(() => rmSync(root, { recursive: true, force: true }));
let directories = 0;

function freshDirectory(): string {
  const path = join(root, String(++directories));
  mkdirSync(path, { mode: 0o700 });
  return path;
}

interface Fixture extends AsyncDisposable {
  host: Host;
  server: ControlServer;
  client: ControlClient;
  directory: string;
  guests: FakeGuest[];
  lines: string[];
  domain(): FakeDomain;
}

/** A fake host with one domain called web, and its control socket. */
async function setUp(options: FakeHostOptions & { patienceMillis?: number } = {}): Promise<Fixture> {
  const directory = freshDirectory();
  const guests: FakeGuest[] = [];
  const lines: string[] = [];
  const hosts = new FakeHosts({ ...options, guest: (guest) => { guests.push(guest); return options.guest?.(guest); } });
  const host = await hosts.start();
  const server = await serveControl(host, {
    env: { ZAZEN_RUNTIME_DIR: directory }, version: '1.2.3', log: (line) => lines.push(line),
    patienceMillis: options.patienceMillis ?? PATIENCE_MILLIS,
  });
  const client = new ControlClient(server.socketPath);
  await host.create({ name: 'web' });
  return {
    host, server, client, directory, guests, lines,
    domain: () => host.domains()[0] as FakeDomain,
    async [Symbol.asyncDispose]() {
      await server.close();
      await host.close();
    },
  };
}

/** Waits for something that comes about by itself. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => { setTimeout(resolve, 2); });
}

/** Sends bytes as they are; gives all that comes back until the server ends the connection. */
async function sendRaw(path: string, ...parts: readonly (string | Buffer)[]): Promise<string> {
  const socket = connect(path);
  let answer = '';
  socket.on('data', (chunk: Buffer) => { answer += chunk.toString('latin1'); });
  socket.on('error', () => {});
  for (const part of parts) socket.write(part);
  await once(socket, 'close');
  return answer;
}

const post = (body: string, headers = ''): string =>
  'POST /v1/command HTTP/1.1\r\nHost: x\r\nConnection: close\r\n'
  + `${headers}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

async function read(stream: Readable, wanted: string): Promise<string> {
  let text = '';
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    text += String(chunk);
    if (text.includes(wanted)) break;
  }
  return text;
}

// ---- commands

test('commands act on the host, and answer with what they did', async () => {
  await using it = await setUp();
  const { client } = it;
  const { host, domains } = await client.send({ command: 'list' });
  assert.deepEqual([host.pid, host.version, domains.map(({ name }) => name)], [process.pid, '1.2.3', ['web']]);
  const paused = await client.send({ command: 'pause', domain: 'web' });
  assert.deepEqual([paused.name, paused.id, paused.state], ['web', 1, 'paused']);
  assert.equal((await client.send({ command: 'unpause', domain: '1' })).state, 'running');
  const shutting = client.send({ command: 'shutdown', domain: 'web', wait: true });
  assert.equal(await it.guests[0]!.asked(), 'poweroff');
  it.guests[0]!.shutdown('poweroff');
  assert.equal((await shutting).reason, 'poweroff');
  assert.equal((await client.send({ command: 'list' })).domains[0]!.shutdownReason, 'poweroff');
  assert.equal((await client.send({ command: 'destroy', domain: 'web' })).state, 'destroyed');
  assert.deepEqual(it.host.domains(), []);
});

test('suspend, what may be done meanwhile, resume; a save that suspends', async () => {
  await using it = await setUp();
  const { client } = it;
  const { state, suspend } = await client.send({ command: 'suspend', domain: 'web', timeoutMillis: 5 });
  assert.deepEqual([state, suspend.via, suspend.attempts.length], ['suspended', 'transparent', 2]);
  for (const command of ['pause', 'unpause', 'shutdown', 'suspend'] as const) {
    await assert.rejects(client.send({ command, domain: 'web' }), { code: 'ZAZEN_DOMAIN_STATE' });
  }
  await client.send({ command: 'checkpoint', domain: 'web' });
  assert.equal((await client.send({ command: 'save', domain: 'web', path: '/x', via: 'store' })).suspend, undefined);
  assert.equal((await client.send({ command: 'resume', domain: 'web' })).state, 'running');
  await assert.rejects(client.send({ command: 'resume', domain: 'web' }), { code: 'ZAZEN_DOMAIN_STATE' });
  assert.equal((await client.send({ command: 'save', domain: 'web', path: '/x', via: 'store' })).suspend?.via, 'store');
  assert.equal(it.domain().state, 'running');
  const refused = { command: 'save', domain: 'web', path: '/x', via: 'event-channel', destroy: true } as const;
  await assert.rejects(client.send(refused), { code: 'ZAZEN_SUSPEND_NOT_OFFERED' });
  assert.equal(it.domain().state, 'running');
  await assert.rejects(client.send({ command: 'save', checkpoint: 1, path: '/x', via: 'store' }), { code: 'ZAZEN_COMMAND_INVALID' });
  // One that cannot be written lets the guest go on.
  const stop = new AbortController();
  const saving = client.send({ ...refused, via: 'store', path: '/slow' }, { signal: stop.signal });
  await until(() => it.domain().state === 'suspended');
  stop.abort();
  await assert.rejects(saving);
  await until(() => it.domain().state === 'running');
  assert.equal((await client.send({ ...refused, via: 'store' })).suspend?.via, 'store');
  assert.deepEqual(it.host.domains(), []);
});

test('errors come out as the ones that the API throws', async () => {
  await using it = await setUp({
    create: async ({ name }) => {
      if (name === 'bad') throw new ZazenError('ZAZEN_KERNEL_TRUNCATED', 'cut', { hint: 'mend it' });
    },
  });
  const { client } = it;
  await assert.rejects(client.send({ command: 'pause', domain: 'nobody' }), { code: 'ZAZEN_DOMAIN_UNKNOWN' });
  await assert.rejects(client.send({ command: 'create', spec: { name: 'bad' } }),
    { code: 'ZAZEN_KERNEL_TRUNCATED', message: 'cut', hint: 'mend it' });
  it.guests[0]!.shutdown('crash');
  await assert.rejects(client.send({ command: 'pause', domain: 'web' }), { code: 'ZAZEN_DOMAIN_STATE' });
  await assert.rejects(client.send({ command: 'store-read', path: '/nowhere' }), { code: 'ZAZEN_STORE_ENOENT' });
  await assert.rejects(client.send({ command: 'store-read', path: '//' }), { code: 'ZAZEN_STORE_EINVAL' });
  await assert.rejects(client.send({ command: 'fork' }), { code: 'ZAZEN_COMMAND_INVALID' });
});

test('a bug behind a command is told to both sides, and the server lives on', async () => {
  await using it = await setUp({ create: async ({ name }) => { if (name === 'bug') throw new TypeError('oops'); } });
  await assert.rejects(it.client.send({ command: 'create', spec: { name: 'bug' } }), { code: 'ZAZEN_INTERNAL' });
  assert.match(it.lines.join('\n'), /TypeError: oops\n +at /);
  assert.equal((await it.client.send({ command: 'list' })).domains.length, 1);
});

test('steps of a command that takes time are told on the way', async () => {
  await using it = await setUp({ create: async (_spec, { log }) => { log?.('fetching a kernel'); } });
  const lines: string[] = [];
  await it.client.send({ command: 'create', spec: { name: 'b' } }, { log: (line) => lines.push(line) });
  assert.deepEqual(lines, ['fetching a kernel']);
  // Who did not ask for lines gets one document.
  const plain = await sendRaw(it.server.socketPath, post('{"command":"create","spec":{"name":"c"}}'));
  assert.match(plain, /^HTTP\/1\.1 200 OK\r\ncontent-type: application\/json\r\n/);
  assert.match(plain, /\r\n\r\n\{"result":\{"id":3,"name":"c"/);
});

test('the store over the socket', async () => {
  await using it = await setUp();
  const { client } = it;
  const seen: string[] = [];
  const watching = new AbortController();
  const watched = (async () => {
    const changes = client.follow({ command: 'store-watch', path: '/test' }, { signal: watching.signal });
    for await (const { path } of changes) if (seen.push(path) === 2) break;
  })();
  await until(() => seen.length === 1);
  await client.send({ command: 'store-write', path: '/test/a', value: 'höhe' });
  await watched;
  assert.deepEqual(seen, ['/test', '/test/a']);
  assert.deepEqual(await client.send({ command: 'store-ls', path: '/test' }), { names: ['a'] });
  assert.deepEqual(await client.send({ command: 'store-read', path: '/test/a' }), { value: 'höhe' });
  it.host.store.write('/test/b', Uint8Array.of(0xff, 0));
  assert.deepEqual(await client.send({ command: 'store-read', path: '/test/b' }), { valueBase64: '/wA=' });
  await client.send({ command: 'store-rm', path: '/test' });
  await assert.rejects(client.send({ command: 'store-rm', path: '/test' }), { code: 'ZAZEN_STORE_ENOENT' });
});

test('events: of all domains, of one until it is destroyed, with history; two who follow at once', async () => {
  await using it = await setUp();
  const follow = async (domain?: string): Promise<string[]> => {
    const seen: string[] = [];
    const command = { command: 'events' as const, history: true, ...(domain === undefined ? {} : { domain }) };
    for await (const event of it.client.follow(command)) {
      seen.push(`${event.name} ${event.type}`);
      if (seen.at(-1) === 'other destroyed') break;
    }
    return seen;
  };
  const [all, web] = [follow(), follow('web')];
  const other = await it.client.send({ command: 'create', spec: { name: 'other' } });
  await it.client.send({ command: 'pause', domain: 'web' });
  await it.client.send({ command: 'destroy', domain: 'web' });
  await it.client.send({ command: 'destroy', domain: String(other.id) });
  assert.deepEqual(await web, ['web started', 'web paused', 'web destroyed']);
  assert.deepEqual(await all, ['web started', 'other started', 'web paused', 'web destroyed', 'other destroyed']);
});

test('checkpoints are kept by number, rolled back to, forked and dropped', async () => {
  await using it = await setUp();
  const { client } = it;
  await assert.rejects(client.send({ command: 'rollback', domain: 'web' }), { code: 'ZAZEN_CHECKPOINT_UNKNOWN' });
  const first = await client.send({ command: 'checkpoint', domain: 'web' });
  const second = await client.send({ command: 'checkpoint', domain: 'web' });
  assert.equal((await client.send({ command: 'rollback', domain: 'web' })).checkpoint, second.id);
  const forks = { command: 'fork' as const, checkpoint: first.id, count: 2, name: 'kid', paused: true };
  const { domains } = await client.send(forks);
  assert.deepEqual(domains.map(({ name, state }) => [name, state]), [['kid-1', 'paused'], ['kid-2', 'paused']]);
  assert.equal((await client.send({ command: 'fork', domain: 'web' })).domains.length, 1);
  await assert.rejects(client.send({ command: 'rollback', domain: 'kid-1', checkpoint: first.id }),
    { code: 'ZAZEN_CHECKPOINT_FOREIGN' });
  await client.send({ command: 'checkpoint-destroy', checkpoint: first.id });
  const { checkpoints } = await client.send({ command: 'checkpoints', domain: 'web' });
  assert.deepEqual(checkpoints.map(({ id }) => id), [second.id]);
});

test('save, dump-core and restore, and how far they are; who goes ends a save, and the guest goes on', async () => {
  await using it = await setUp();
  const { client } = it;
  const seen: number[] = [];
  const onProgress = ({ done, total }: { done: number; total: number }): void => void seen.push(done / total);
  const saved = await client.send({ command: 'save', domain: 'web', path: '/x.core' }, { onProgress });
  assert.deepEqual([saved.path, saved.pagesWritten, seen[0]], ['/x.core', 25, 0]);
  assert.equal((await client.send({ command: 'dump-core', domain: 'web', path: '/x' })).fileBytes, 409_600);
  const { id } = await client.send({ command: 'checkpoint', domain: 'web' });
  await client.send({ command: 'save', checkpoint: id, path: '/y.core' });
  const both = client.send({ command: 'save', checkpoint: id, path: '/y', destroy: true });
  await assert.rejects(both, { code: 'ZAZEN_COMMAND_INVALID' });
  const stop = new AbortController();
  const slow = client.send({ command: 'save', domain: 'web', path: '/slow', destroy: true }, { signal: stop.signal });
  await until(() => it.domain().state === 'paused');
  stop.abort(new Error('enough'));
  await assert.rejects(slow, /enough/);
  await until(() => it.domain().state === 'running');
  await client.send({ command: 'save', domain: 'web', path: '/z.core', destroy: true });
  assert.deepEqual(it.host.domains(), []);
  assert.equal((await client.send({ command: 'restore', path: '/z.core', name: 'again' })).name, 'again');
  await assert.rejects(client.send({ command: 'restore', path: '/z' }), { code: 'ZAZEN_IMAGE_BROKEN' });
});

// ---- what becomes of domains that stop

test('on_poweroff, on_reboot, on_crash', async (t) => {
  await using it = await setUp();
  t.mock.method(performance, 'now', () => Date.now() * 1000);
  const { client } = it;
  const stop = async (name: string, reason: 'poweroff' | 'reboot' | 'crash'): Promise<void> => {
    it.guests.findLast(({ spec }) => spec.name === name)!.shutdown(reason);
    await new Promise((resolve) => { setImmediate(resolve); });
  };
  const idOf = (name: string): number | undefined => it.host.domains().find((one) => one.name === name)?.id;
  await client.send({ command: 'create', spec: { name: 'a', paused: true } });
  await until(() => it.guests.length === 2);
  await new Promise((resolve) => { setTimeout(resolve, 5); });
  await stop('a', 'reboot');
  await until(() => idOf('a') === 3);
  assert.deepEqual(it.guests[2]!.spec, { name: 'a', uuid: it.host.domains().at(-1)!.uuid, paused: false });
  await stop('a', 'poweroff');
  await until(() => idOf('a') === undefined);
  const policy = { onCrash: 'preserve' as const, onReboot: 'destroy' as const };
  await client.send({ command: 'create', spec: { name: 'b' }, policy });
  await stop('b', 'crash');
  assert.equal(it.host.domains().find(({ name }) => name === 'b')!.state, 'shutdown');
  // Who made it without a policy keeps it.
  await stop('web', 'poweroff');
  assert.equal(it.domain().state, 'shutdown');
  assert.equal(actionFor('watchdog', { onCrash: 'restart' }), 'restart');
});

test('a guest that reboots at once again and again is not started for ever', async () => {
  await using it = await setUp({
    guest: (guest) => { if (guest.spec.name === 'loop') setImmediate(() => guest.shutdown('reboot')); },
  });
  await it.client.send({ command: 'create', spec: { name: 'loop' } });
  await until(() => it.lines.length > 0);
  assert.match(it.lines[0]!, /loop stopped \(reboot\) at once; it is not started again/);
  assert.deepEqual(it.host.domains().map(({ name }) => name), ['web']);
});

// ---- consoles

test('two at one console see everything, type both, and leave without disturbing it', async () => {
  await using it = await setUp();
  it.guests[0]!.say('history ');
  const first = await it.client.console('web');
  const second = await it.client.console('web');
  it.guests[0]!.say('now\n');
  assert.deepEqual(await Promise.all([read(first, 'now'), read(second, 'now')]), ['history now\n', 'history now\n']);
  first.write('one');
  await it.guests[0]!.typed('one');
  first.destroy();
  await until(() => it.domain().attached === 1);
  second.write('two');
  assert.equal(await it.guests[0]!.typed('two'), 'onetwo');
  assert.equal(it.domain().state, 'running');
  it.guests[0]!.say('last words');
  it.guests[0]!.shutdown('poweroff');
  assert.equal(await read(second, 'nothing more'), 'last words');
});

test('a console that is not read holds the guest up for a while only', async () => {
  await using it = await setUp({ patienceMillis: 100 });
  // So little patience has it with who wants to attach, too.
  const attach = (): Promise<Duplex> => it.client.console('web').catch(attach);
  const stuck = await attach();
  stuck.pause();
  await until(() => it.domain().attached === 1);
  const flood = setInterval(() => it.guests[0]!.say(Buffer.alloc(65536, 'x')), 1);
  await until(() => it.domain().attached === 0);
  clearInterval(flood);
  stuck.destroy();
});

test('a console that cannot be had is refused as a command is', async () => {
  await using it = await setUp();
  await assert.rejects(it.client.console('nobody'), { code: 'ZAZEN_DOMAIN_UNKNOWN' });
  await assert.rejects(it.client.console('x'.repeat(100)), { code: 'ZAZEN_COMMAND_INVALID' });
  const upgrade = (path: string, protocol: string): Promise<string> => sendRaw(it.server.socketPath,
    `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n\r\n`);
  assert.match(await upgrade('/v1/console?domain=web', 'websocket'), /^HTTP\/1\.1 400 [^]*ZAZEN_COMMAND_INVALID/);
  assert.match(await upgrade('http://[', 'zazen-console'), /^HTTP\/1\.1 400 /);
  const posted = await sendRaw(it.server.socketPath, post('{"command":"console","domain":"web"}'));
  assert.match(posted, /needs an upgraded connection/);
});

// ---- hostile and clumsy peers

test('what is no command is refused, and what is too long or too slow is cut off', async () => {
  await using it = await setUp();
  const path = it.server.socketPath;
  assert.match(await sendRaw(path, post('{')), /^HTTP\/1\.1 400 [^]*the body is no JSON/);
  assert.match(await sendRaw(path, post('')), /^HTTP\/1\.1 400 /);
  assert.match(await sendRaw(path, post('[1]')), /^HTTP\/1\.1 400 [^]*must be an object/);
  assert.match(await sendRaw(path, 'GET / HTTP/1.1\r\nHost: x\r\n\r\n'), /^HTTP\/1\.1 400 [^]*there is nothing here/);
  const large = await sendRaw(path, post('x'.repeat(BODY_MAX_BYTES + 1)));
  assert.match(large, /^HTTP\/1\.1 413 [^]*ZAZEN_COMMAND_TOO_LARGE/);
  // Chunked, without an end.
  const chunk = `8000\r\n${'y'.repeat(0x8000)}\r\n`;
  const chunked = 'POST /v1/command HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n';
  assert.match(await sendRaw(path, chunked, chunk, chunk, chunk), /^HTTP\/1\.1 413 /);
  const longHeader = post('{"command":"list"}', `X: ${'h'.repeat(10_000)}\r\n`);
  assert.doesNotMatch(await sendRaw(path, longHeader), /^HTTP\/1\.1 200/);
  assert.doesNotMatch(await sendRaw(path, Buffer.alloc(20_000, '\xff\0 garbage', 'latin1')), /^HTTP\/1\.1 200/);
  // Never says what it wants; says it only half.
  {
    await using impatient = await setUp({ patienceMillis: 150 });
    assert.doesNotMatch(await sendRaw(impatient.server.socketPath, ''), /^HTTP\/1\.1 200/);
    assert.doesNotMatch(await sendRaw(impatient.server.socketPath, post('{"command":"list"}').slice(0, -5)), /^HTTP\/1\.1 200/);
  }
  assert.match(await sendRaw(path, post('{"command":"list"}')), /^HTTP\/1\.1 200/);
});

test('who goes while a command runs ends the waiting and nothing else', async () => {
  const created = Promise.withResolvers<AbortSignal>();
  await using it = await setUp({
    create: ({ name }, { signal }) => new Promise((resolve, reject) => {
      if (name !== 'slow') return resolve();
      created.resolve(signal!);
      signal!.addEventListener('abort', () => reject(signal!.reason));
    }),
  });
  const gone: Socket = connect(it.server.socketPath);
  gone.on('error', () => {});
  gone.write(post('{"command":"create","spec":{"name":"slow"}}'));
  const signal = await created.promise;
  gone.destroy();
  await until(() => signal.aborted);
  const stop = new AbortController();
  const waiting = it.client.send({ command: 'shutdown', domain: 'web', wait: true }, { signal: stop.signal });
  await it.guests[0]!.asked();
  stop.abort(new Error('enough'));
  await assert.rejects(waiting, /enough/);
  assert.equal((await it.client.send({ command: 'list' })).domains[0]!.state, 'running');
  assert.deepEqual(it.lines, []);
});

test('who follows events and does not read is let go', async () => {
  await using it = await setUp();
  const socket = connect(it.server.socketPath);
  socket.on('error', () => {});
  socket.write(post('{"command":"store-watch","path":"/flood"}'));
  await once(socket, 'readable');
  socket.pause();
  let closed = false;
  socket.on('close', () => { closed = true; });
  for (let i = 0; i < 200; i++) {
    for (let j = 0; j < 200; j++) it.host.store.write(`/flood/${'long'.repeat(20)}`, String(j));
    await new Promise((resolve) => { setImmediate(resolve); });
  }
  let text = '';
  socket.on('data', (chunk: Buffer) => { text += chunk.toString(); }).resume();
  await until(() => closed);
  assert.match(text, /ZAZEN_CLIENT_SLOW/);
});

test('when the host closes, who waits is told, and the socket is gone', async () => {
  const it = await setUp();
  const waiting = it.client.send({ command: 'shutdown', domain: 'web', wait: true });
  const following = it.client.follow({ command: 'events' }).next();
  const attached = await it.client.console('web');
  await it.guests[0]!.asked();
  const both = Promise.allSettled([waiting, following]);
  await it.server.close();
  await it.server.close();
  for (const settled of await both) {
    assert.equal(settled.status, 'rejected');
    assert.match((settled.reason as ZazenError).code, /^ZAZEN_HOST_(CLOSED|UNREACHABLE)$/);
  }
  await once(attached.resume(), 'close');
  assert.equal(existsSync(it.server.socketPath), false);
  await assert.rejects(it.client.send({ command: 'list' }), { code: 'ZAZEN_HOST_UNREACHABLE' });
  await it.host.close();
});

// ---- the socket and its directory

test('the socket is the user\'s alone, and found by its PID; a stale one is removed', async () => {
  await using it = await setUp();
  const env = { ZAZEN_RUNTIME_DIR: it.directory };
  assert.equal(statSync(it.server.socketPath).mode & 0o777, 0o600);
  // As a killed host leaves it; a process of that number cannot be.
  const stale = join(it.directory, '4194399.sock');
  writeFileSync(stale, '');
  writeFileSync(join(it.directory, 'notes.txt'), 'not ours');
  assert.deepEqual(await findSockets(env), [{ path: it.server.socketPath, pid: process.pid }]);
  assert.equal(existsSync(stale), false);
  assert.equal(existsSync(join(it.directory, 'notes.txt')), true);
});

/** As a host leaves it that is killed. */
function leaveSocket(path: string): void {
  const program = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  assert.equal(spawnSync(process.execPath, ['--eval', program]).signal, 'SIGKILL');
  assert.ok(lstatSync(path).isSocket());
}

test('a path that is taken is refused while somebody listens, and taken over when nobody does', async () => {
  await using it = await setUp();
  const env = { ZAZEN_RUNTIME_DIR: it.directory };
  await assert.rejects(serveControl(it.host, { env, version: '' }), { code: 'ZAZEN_SOCKET_TAKEN' });
  const left = join(it.directory, 'left.sock');
  leaveSocket(left);
  const notes = join(it.directory, 'notes.txt');
  writeFileSync(notes, 'dear');
  await assert.rejects(serveControl(it.host, { env, version: '', socketPath: notes }),
    { code: 'ZAZEN_SOCKET_TAKEN', message: `${notes}: a file is there, and it is no socket`, hint: 'choose another path with --socket' });
  assert.equal(readFileSync(notes, 'utf8'), 'dear');
  await using second = await serveControl(it.host, { env, version: '', socketPath: left });
  assert.equal((await new ControlClient(second.socketPath).send({ command: 'list' })).domains.length, 1);
});

test('a runtime directory that others could reach is refused', async () => {
  const host = await new FakeHosts({}).start();
  const serve = (directory: string): Promise<ControlServer> =>
    serveControl(host, { env: { ZAZEN_RUNTIME_DIR: directory }, version: '' });
  const open = freshDirectory();
  chmodSync(open, 0o755);
  await assert.rejects(serve(open), { code: 'ZAZEN_RUNTIME_DIR', hint: `chmod 700 ${open}` });
  await assert.rejects(findSockets({ ZAZEN_RUNTIME_DIR: open }), { code: 'ZAZEN_RUNTIME_DIR' });
  const link = join(root, 'link');
  symlinkSync(freshDirectory(), link);
  await assert.rejects(serve(link), /it is no directory/);
  await assert.rejects(serve(join(root, 'no', 'parent')), { code: 'ZAZEN_RUNTIME_DIR' });
  const deep = join(freshDirectory(), 'd'.repeat(100));
  mkdirSync(deep, { mode: 0o700 });
  await assert.rejects(serve(deep), { code: 'ZAZEN_SOCKET_PATH', hint: 'name another directory in ZAZEN_RUNTIME_DIR' });
  const long = serveControl(host, { env: {}, version: '', socketPath: join(deep, 'a.sock') });
  await assert.rejects(long, { code: 'ZAZEN_SOCKET_PATH', hint: 'choose another path with --socket' });
  const nowhere = serveControl(host, { env: {}, version: '', socketPath: join(root, 'no', 'a.sock') });
  await assert.rejects(nowhere, { code: 'ZAZEN_SOCKET_PATH', hint: 'choose another path with --socket' });
  assert.deepEqual(await findSockets({ ZAZEN_RUNTIME_DIR: join(root, 'nothing') }), []);
  const file = join(root, 'file');
  writeFileSync(file, '');
  await assert.rejects(findSockets({ ZAZEN_RUNTIME_DIR: file }), { code: 'ZAZEN_RUNTIME_DIR', message: /ENOTDIR/ });
  await host.close();
});

test('a path where no socket can be says so', async () => {
  const reach = (path: string): Promise<unknown> => new ControlClient(path).send({ command: 'list' });
  const long = join(root, 'd'.repeat(100), 'a.sock');
  await assert.rejects(reach(long), { code: 'ZAZEN_HOST_UNREACHABLE', message: `no host listens at ${long} (EINVAL)` });
  const none = join(root, 'none.sock');
  await assert.rejects(reach(none), { code: 'ZAZEN_HOST_UNREACHABLE', message: `no host listens at ${none}` });
});

test('where the runtime directory is', () => {
  const home = freshDirectory();
  assert.equal(runtimeDirectory({ ZAZEN_RUNTIME_DIR: '/r', XDG_RUNTIME_DIR: home }), '/r');
  assert.equal(runtimeDirectory({ XDG_RUNTIME_DIR: home }), join(home, 'zazen'));
  assert.equal(runtimeDirectory({ XDG_RUNTIME_DIR: join(home, 'gone') }), `/tmp/zazen-${process.getuid!()}`);
});

test('an answer that is no answer is an error of its own', async () => {
  const path = join(freshDirectory(), 'other.sock');
  const other = createServer((socket) => { socket.on('error', () => {}).end('HTTP/1.1 200 OK\r\n\r\nhello\n'); });
  await once(other.listen(path), 'listening');
  await assert.rejects(new ControlClient(path).send({ command: 'list' }), { code: 'ZAZEN_HOST_PROTOCOL' });
  other.close();
});
