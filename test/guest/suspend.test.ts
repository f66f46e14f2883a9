// Suspending guests in all ways: one of our own (suspend-guest.ts) that answers, late, never or by crashing, and stock
// Linux, which understands the request in the store. What a guest is told when it goes on, it says in the store.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { SCHEDOP, SHUTDOWN } from '../../src/abi/xen.ts';
import { systemClock } from '../../src/base/clock.ts';
import type { Domain, DomainEvent, EventSubscription, SuspendStats, SuspendVia } from '../../src/host/index.ts';
import { FREE, MEMORY, bareMetalImage, fresh, hypercall, powerOff } from '../bare-metal.ts';
import { until } from '../waiting.ts';
import { PATIENCE_MILLIS } from '../patience.ts';
import { FAST_BOOT, collect, limited, testHost } from './guests.ts';
import { suspendGuest } from './suspend-guest.ts';
import type { SuspendGuest } from './suspend-guest.ts';

/** By how much the host's wall clock is ahead of the true one. */
let aheadMillis = 0;
const clock = { monotonicNanos: systemClock.monotonicNanos, wallMillis: () => Date.now() + aheadMillis };
const host = await testHost({ memory: '1GiB', pcpus: 2, clock });
const folder = mkdtempSync(join(tmpdir(), 'zazen-suspend-'));
after(() => rmSync(folder, { recursive: true }));
let files = 0;

/** Longer than any of these guests takes on any machine. */
const PATIENT = PATIENCE_MILLIS;
/** Shorter than any that does not answer. */
const IMPATIENT = 20;

const read = (domain: Domain, path: string) => host.store.read(`/local/domain/${domain.id}/${path}`);
const write = (domain: Domain, path: string, value: string) => host.store.write(`/local/domain/${domain.id}/${path}`, value);
const code = (wanted: string) => (error: unknown) => (error as { code?: string }).code === wanted;

async function startImage(image: Uint8Array): Promise<Domain> {
  const kernel = join(folder, `kernel${files++}`);
  writeFileSync(kernel, image);
  return host.create({ kernel, initrd: 'none', memory: MEMORY });
}

/** Returns when it waits to be asked. */
async function start(guest: SuspendGuest = {}): Promise<Domain> {
  const domain = await startImage(suspendGuest(guest));
  if (guest.channel !== false) await until('it has a channel', () => read(domain, 'device/suspend/event-channel') === '3');
  if (guest.store !== false) await until('it watches the store', () => read(domain, 'control/feature-suspend') === '1');
  return domain;
}

/** What the guest was told, the next time after what it has said already. */
async function told(domain: Domain, before: string | undefined): Promise<string> {
  await until('the guest says what it was told', () => read(domain, 'data/resumed') !== before);
  return read(domain, 'data/resumed')!;
}

async function next<T extends DomainEvent['type']>(
  events: EventSubscription<DomainEvent>, type: T,
): Promise<DomainEvent & { type: T }> {
  for (;;) {
    const { value, done } = await events.next();
    assert.ok(done !== true, `the events ended without ${type}`);
    if (value.type === type) return value as DomainEvent & { type: T };
  }
}

function checkStats(stats: SuspendStats, via: SuspendVia, others: readonly string[]): void {
  assert.equal(stats.via, via);
  assert.deepEqual(stats.attempts.map(({ via: way, outcome }) => `${way} ${outcome}`), [...others, `${via} suspended`]);
  assert.ok(stats.completedMicros >= stats.attempts.reduce((sum, { micros }) => sum + micros, 0));
  assert.equal(stats.acknowledgedMicros !== undefined, via === 'store' || others.includes('store no-answer'));
  assert.ok((stats.acknowledgedMicros ?? 0) <= stats.completedMicros);
}

test('each way: the guest stands still, and is told that it was cancelled', async () => {
  await using domain = await start();
  const events = domain.events({ history: false });
  let said = read(domain, 'data/resumed');
  for (const via of ['event-channel', 'store', 'transparent'] as const) {
    checkStats(await domain.suspend({ via, timeoutMillis: PATIENT }), via, []);
    assert.equal(domain.state, 'suspended');
    assert.equal((await next(events, 'suspended')).via, via);
    const { instructionsRetired } = domain.stats();
    await assert.rejects(domain.suspend(), code('ZAZEN_DOMAIN_SUSPENDED'));
    assert.equal(domain.stats().instructionsRetired, instructionsRetired);
    await domain.resume();
    assert.equal(domain.state, 'running');
    assert.equal((await next(events, 'resumed')).reason, 'cancelled');
    await domain.resume();
    if (via === 'transparent') continue;
    said = await told(domain, said);
    assert.equal(said[0], '1');
  }
  assert.equal(read(domain, 'data/resumed'), said);
  assert.equal(read(domain, 'control/shutdown'), '');
});

test('the way that the guest offers is chosen, the quickest first', async () => {
  await using both = await start();
  checkStats(await both.suspend({ timeoutMillis: PATIENT }), 'event-channel', []);
  await using storeOnly = await start({ channel: false });
  checkStats(await storeOnly.suspend({ timeoutMillis: PATIENT }), 'store', ['event-channel not-offered']);
  await using neither = await startImage(bareMetalImage({}));
  checkStats(await neither.suspend(), 'transparent', ['event-channel not-offered', 'store not-offered']);
  await neither.resume();
  await assert.rejects(neither.suspend({ via: 'event-channel' }), code('ZAZEN_SUSPEND_NOT_OFFERED'));
  // Asked all the same when somebody insists.
  await assert.rejects(neither.suspend({ via: 'store', timeoutMillis: IMPATIENT }), code('ZAZEN_SUSPEND_NO_ANSWER'));
  assert.equal(neither.state, 'running');
});

test('a guest that never answers is left running, and told no more', async () => {
  await using domain = await start({ answer: 'never', store: false });
  for (const via of ['event-channel', 'store'] as const) {
    await assert.rejects(domain.suspend({ via, timeoutMillis: IMPATIENT }), code('ZAZEN_SUSPEND_NO_ANSWER'));
    assert.equal(domain.state, 'running');
  }
  assert.equal(read(domain, 'control/shutdown'), '');
  write(domain, 'control/feature-suspend', '1');
  const { via, attempts, acknowledgedMicros } = await domain.suspend({ timeoutMillis: IMPATIENT });
  assert.deepEqual([via, acknowledgedMicros], ['transparent', undefined]);
  assert.deepEqual(attempts.map(({ outcome }) => outcome), ['no-answer', 'no-answer', 'suspended']);
  await domain.resume();
  await assert.rejects(domain.suspend({ timeoutMillis: -1 }), code('ZAZEN_SUSPEND_TIMEOUT_RANGE'));
});

test('a guest that acknowledges and then never stops', async () => {
  await using domain = await start({ channel: false, answer: 'never' });
  const stopped = ['event-channel not-offered', 'store no-answer'];
  for (let timeoutMillis = IMPATIENT; ; timeoutMillis *= 2) {
    const stats = await domain.suspend({ timeoutMillis });
    // On a busy machine it may not have got to that in so short a time.
    if (stats.acknowledgedMicros !== undefined) return checkStats(stats, 'transparent', stopped);
    assert.deepEqual(stats.attempts.map(({ via, outcome }) => `${via} ${outcome}`), [...stopped, 'transparent suspended']);
    await domain.resume();
  }
});

/** As soon as the guest has taken the request. */
function acknowledged(domain: Domain): Promise<void> {
  return new Promise(resolve => {
    const unwatch = host.store.watch(`/local/domain/${domain.id}/control/shutdown`, () => {
      if (read(domain, 'control/shutdown') !== '') return;
      resolve();
      queueMicrotask(() => unwatch());
    });
  });
}

/** @returns false: it has suspended itself before it could be told that nobody waits for that any more */
async function giveUpAcknowledged(domain: Domain): Promise<boolean> {
  const stop = new AbortController();
  const asked = domain.suspend({ via: 'store', timeoutMillis: PATIENT, signal: stop.signal });
  const given = asked.then(() => false, (error: Error) => {
    assert.equal(error.message, 'enough');
    return true;
  });
  await acknowledged(domain);
  stop.abort(new Error('enough'));
  return given;
}

test('an answer that comes too late is answered at once', async () => {
  await using domain = await start({ answer: 'late' });
  for (const via of ['event-channel', 'store'] as const) {
    const said = read(domain, 'data/resumed');
    const events = domain.events({ history: false });
    if (read(domain, 'data/go') !== undefined) host.store.rm(`/local/domain/${domain.id}/data/go`);
    // An event stays where it is. What is in the store is taken back if the guest has not acknowledged it in time.
    if (via === 'event-channel') {
      await assert.rejects(domain.suspend({ via, timeoutMillis: IMPATIENT }), code('ZAZEN_SUSPEND_NO_ANSWER'));
    } else assert.ok(await giveUpAcknowledged(domain));
    await domain.pause();
    write(domain, 'data/go', '');
    assert.equal(domain.state, 'paused');
    await domain.unpause();
    assert.equal((await next(events, 'suspended')).via, via);
    assert.equal((await next(events, 'resumed')).reason, 'cancelled');
    assert.equal(domain.state, 'running');
    assert.equal((await told(domain, said))[0], '1');
  }
  checkStats(await domain.suspend({ timeoutMillis: PATIENT }), 'event-channel', []);
  assert.equal(domain.state, 'suspended');
});

test('a guest that crashes, or is destroyed, instead of suspending itself', async () => {
  for (const via of ['event-channel', 'store'] as const) {
    await using domain = await start({ answer: 'crash' });
    await assert.rejects(domain.suspend({ via, timeoutMillis: PATIENT }), code('ZAZEN_DOMAIN_SHUTDOWN'));
    assert.equal(await domain.waitForShutdown(), 'crash');
    await assert.rejects(domain.suspend(), code('ZAZEN_DOMAIN_SHUTDOWN'));
    await assert.rejects(domain.resume(), code('ZAZEN_DOMAIN_SHUTDOWN'));
  }
  for (const via of ['event-channel', 'store'] as const) {
    const domain = await start({ answer: 'never' });
    const gone = assert.rejects(domain.suspend({ via, timeoutMillis: PATIENT }), code('ZAZEN_DOMAIN_GONE'));
    await domain.destroy();
    await gone;
    await assert.rejects(domain.suspend(), code('ZAZEN_DOMAIN_GONE'));
  }
});

test('two at once: the second is refused; one that is aborted leaves the guest running', async () => {
  await using domain = await start({ answer: 'never' });
  const stop = new AbortController();
  const first = assert.rejects(domain.suspend({ timeoutMillis: PATIENT, signal: stop.signal }), /enough/);
  await assert.rejects(domain.suspend({ via: 'transparent' }), code('ZAZEN_SUSPEND_UNDER_WAY'));
  stop.abort(new Error('enough'));
  await first;
  assert.equal(domain.state, 'running');
  await domain.pause();
  await assert.rejects(domain.suspend({ via: 'event-channel' }), code('ZAZEN_SUSPEND_PAUSED'));
  checkStats(await domain.suspend(), 'transparent', ['event-channel paused', 'store paused']);
  await domain.resume();
  assert.equal(domain.state, 'paused');
});

test('a guest that is stopped unasked while it gets ready answers, or crashes, when it runs again', async () => {
  for (const answer of ['late', 'late-crash'] as const) {
    await using domain = await start({ answer });
    const events = domain.events({ history: false });
    assert.ok(await giveUpAcknowledged(domain));
    checkStats(await domain.suspend({ via: 'transparent' }), 'transparent', []);
    await assert.rejects(domain.suspend({ via: 'transparent' }), code('ZAZEN_DOMAIN_SUSPENDED'));
    assert.equal((await next(events, 'suspended')).via, 'transparent');
    await domain.resume();
    assert.equal((await next(events, 'resumed')).reason, 'cancelled');
    write(domain, 'data/go', '');
    if (answer === 'late') {
      assert.equal((await next(events, 'suspended')).via, 'store');
      assert.equal((await next(events, 'resumed')).reason, 'cancelled');
      assert.equal((await told(domain, undefined))[0], '1');
    } else {
      assert.equal(await domain.waitForShutdown(), 'crash');
      await assert.rejects(domain.suspend({ via: 'transparent' }), code('ZAZEN_DOMAIN_SHUTDOWN'));
    }
  }
});

test('many suspends, in all ways in turn', async () => {
  await using domain = await start();
  let said = read(domain, 'data/resumed');
  for (let i = 0; i < 60; i++) {
    const via = (['event-channel', 'store', 'transparent'] as const)[i % 3]!;
    await domain.suspend({ via, timeoutMillis: PATIENT });
    await domain.resume();
    if (via !== 'transparent') said = await told(domain, said);
    assert.equal(said?.[0], '1');
  }
});

test('forks of a suspended guest are told that they are in a new place, and can be suspended in turn', async () => {
  await using domain = await start();
  for (const via of ['event-channel', 'store'] as const) {
    const said = read(domain, 'data/resumed');
    await domain.suspend({ via, timeoutMillis: PATIENT });
    await using checkpoint = await domain.checkpoint();
    const [fork] = await checkpoint.fork() as [Domain];
    const events = fork.events();
    assert.equal((await next(events, 'resumed')).reason, 'new-place');
    const here = await told(fork, said);
    assert.equal(here[0], '0');
    checkStats(await fork.suspend({ via, timeoutMillis: PATIENT }), via, []);
    await fork.resume();
    assert.equal((await told(fork, here))[0], '1');
    await fork.destroy();
    // The original was suspended all the while.
    assert.equal(read(domain, 'data/resumed'), said);
    await domain.resume();
    const onward = await told(domain, said);
    assert.equal(onward[0], '1');
    // Rolled back, it is suspended again, and goes on where it was again.
    await domain.rollback(checkpoint);
    assert.equal(domain.state, 'suspended');
    assert.equal(read(domain, 'data/resumed'), said);
    await domain.resume();
    assert.equal(await told(domain, said), onward);
  }
});

test('a rollback to where it was running ends a suspend', async () => {
  await using domain = await start();
  await using checkpoint = await domain.checkpoint();
  for (const via of ['event-channel', 'transparent'] as const) {
    await domain.suspend({ via, timeoutMillis: PATIENT });
    await domain.rollback(checkpoint);
    assert.equal(domain.state, 'running');
  }
  checkStats(await domain.suspend({ timeoutMillis: PATIENT }), 'event-channel', []);
});

test('saved suspended, the guest goes on in both places and knows in which it is', async () => {
  await using domain = await start();
  const path = join(folder, 'saved');
  for (const via of ['event-channel', 'store', 'transparent'] as const) {
    const said = read(domain, 'data/resumed');
    const events = domain.events({ history: false });
    const stats = await domain.save(path, { via });
    assert.equal(stats.suspend?.via, via);
    for (const type of ['suspended', 'resumed', 'saved'] as const) await next(events, type);
    assert.equal(domain.state, 'running');
    await using restored = await host.restore(path, { name: `restored-${via}` });
    const its = restored.events();
    if (via !== 'transparent') {
      assert.equal((await next(its, 'resumed')).reason, 'new-place');
      assert.equal((await told(restored, said))[0], '0');
      assert.equal((await told(domain, said))[0], '1');
    }
    assert.equal((await next(its, 'restored')).path, path);
    checkStats(await restored.suspend({ timeoutMillis: PATIENT }), 'event-channel', []);
  }
  // Without `via` nobody is told.
  const said = read(domain, 'data/resumed');
  assert.equal((await domain.save(path)).suspend, undefined);
  assert.equal(read(domain, 'data/resumed'), said);
});

test('a guest that suspends itself unasked waits for somebody to resume it', async () => {
  await using domain = await startImage(bareMetalImage({ code: a => {
    const isCancelled = fresh('cancelled');
    a.mov(1, FREE).mov(2, SHUTDOWN.suspend).str(2, 1, 0, 'W').mov(0, SCHEDOP.shutdown);
    hypercall(a, 'sched_op');
    a.cmp(0, 1).bCond('eq', isCancelled).mov(2, SHUTDOWN.crash).str(2, 1, 0, 'W').mov(0, SCHEDOP.shutdown);
    hypercall(a, 'sched_op');
    a.label(isCancelled);
    powerOff(a);
  } }));
  assert.equal((await next(domain.events(), 'suspended')).via, 'guest');
  assert.equal(domain.state, 'suspended');
  assert.equal(domain.shutdownReason, undefined);
  await domain.resume();
  assert.equal(await domain.waitForShutdown(), 'poweroff');
});

test('whatever a guest advertises as its channel, it is suspended', async () => {
  await using domain = await startImage(bareMetalImage({}));
  const ports = ['0', '-1', '1', '2', '3', '16383', '16384', '4294967295', '4294967296', '99999999999', '1e1', ' 3', 'x', '\0'];
  for (const port of ports) {
    write(domain, 'device/suspend/event-channel', port);
    checkStats(await domain.suspend(), 'transparent', ['event-channel not-offered', 'store not-offered']);
    await domain.resume();
  }
  host.store.rm(`/local/domain/${domain.id}/device/suspend`);
  assert.equal((await domain.suspend()).via, 'transparent');
});

test('every subscriber gets every event, in order; one that leaves or is slow holds up nobody', async () => {
  await using domain = await start();
  const slow = domain.events();
  const left = domain.events();
  const waiting = left.next().then(() => left.next()).then(() => left.next());
  const all = Array.from({ length: 5 }, () => domain.events());
  const ofHost = host.events({ history: false });
  const given = left.return();
  for (let i = 0; i < 3; i++) {
    await domain.suspend({ timeoutMillis: PATIENT });
    await domain.resume();
  }
  assert.deepEqual([(await given).done, (await waiting).done], [true, true]);
  const take = async (events: EventSubscription<DomainEvent>, count: number): Promise<DomainEvent[]> => {
    const taken: DomainEvent[] = [];
    while (taken.length < count) taken.push((await events.next()).value!);
    return taken;
  };
  const expected = ['started', ...Array.from({ length: 3 }, () => ['suspended', 'resumed']).flat()];
  for (const events of [...all, slow]) {
    const taken = await take(events, expected.length);
    assert.deepEqual(taken.map(({ type }) => type), expected);
    assert.deepEqual(taken.map(({ sequence }) => sequence), expected.map((_, i) => i + 1));
    assert.equal(events.missed, 0);
  }
  const mine = (await take(ofHost, 6)).map(event => ({ id: event.domainId, sequence: event.sequence }));
  assert.deepEqual(mine, [2, 3, 4, 5, 6, 7].map(sequence => ({ id: domain.id, sequence })));
  await ofHost.return();
});

test('what everybody is told by the store comes beside it, once', async () => {
  await using domain = await start();
  let notices = -1;
  const unwatch = host.store.watch('@releaseDomain', () => { notices++; });
  await domain.suspend({ timeoutMillis: PATIENT });
  await until('the store tells', () => notices === 1);
  await domain.resume();
  await domain.suspend({ timeoutMillis: PATIENT });
  await until('the store tells again', () => notices === 2);
  unwatch();
});

test('stock Linux suspends itself when the store asks, and goes on where it was and in a new place', async () => {
  const domain = await host.create({ memory: '128MiB', vcpus: 2, cmdline: `${FAST_BOOT} no_console_suspend panic=-1` });
  await limited(domain, async () => {
    const console = collect(domain.console);
    // Typed input waits until the shell reads it.
    domain.console.write('stty -echo; echo re"a"dy\n');
    await console.until('ready');
    assert.equal(read(domain, 'control/feature-suspend'), '1');
    for (let i = 0; i < 3; i++) {
      checkStats(await domain.suspend({ timeoutMillis: PATIENT }), 'store', ['event-channel not-offered']);
      await domain.resume();
      domain.console.write(`seq 1 1000 | md5sum; echo round $((${i} + 10))\n`);
      await console.until(`round ${i + 10}`);
    }
    const first = await lag(domain, console);
    await domain.suspend({ timeoutMillis: PATIENT });
    aheadMillis += DAY_MILLIS;
    await domain.resume();
    await checkClock(first, domain, console);
    await domain.suspend({ timeoutMillis: PATIENT });
    await using checkpoint = await domain.checkpoint();
    aheadMillis += 30 * DAY_MILLIS;
    const forks = await checkpoint.fork(2);
    for (const fork of forks) {
      await limited(fork, async () => {
        const its = collect(fork.attachConsole());
        fork.console.write('grep -c ^processor /proc/cpuinfo; seq 1 1000 | md5sum; echo fork $((40 + 2))\n');
        await its.until('fork 42');
        await checkClock(first, fork, its);
        // Its events come anew, its connection to the store goes on: it can be asked again.
        checkStats(await fork.suspend({ timeoutMillis: PATIENT }), 'store', ['event-channel not-offered']);
        await fork.resume();
        fork.console.write('echo again $((40 + 3))\n');
        const text = await its.until('again 43');
        assert.doesNotMatch(text, /BUG|Oops|Call trace/);
        await fork.shutdown();
        assert.equal(await fork.waitForShutdown(), 'poweroff');
      });
      await fork.destroy();
    }
    await domain.resume();
    domain.console.write('echo still $((50 + 1))\n');
    assert.doesNotMatch(await console.until('still 51'), /BUG|Oops|Call trace/);
    await checkClock(first, domain, console);
    await inspectStubborn(domain, console);
  });
  await domain.destroy();
});

const DAY_MILLIS = 86_400_000;

/**
 * The guest's wall clock goes as the host's does, and the time since it was started includes what it was away. (Linux is
 * behind from the start by what it took until it first looked at its counter.)
 * @returns how much it is behind, milliseconds, at least and at most
 */
async function lag(domain: Domain, console: ReturnType<typeof collect>): Promise<[number, number]> {
  const mark = `clock${++clockChecks}`;
  const before = clock.wallMillis();
  domain.console.write(`echo ${mark} $(date +%s) $(cat /proc/uptime) "e"nd\n`);
  const pattern = new RegExp(`${mark} (\\d+) ([\\d.]+) [\\d.]+ end`);
  const [, seconds, uptime] = pattern.exec(await console.until(pattern))!.map(Number);
  assert.ok(uptime! > aheadMillis / 1000 && uptime! < aheadMillis / 1000 + 3600, `${uptime}`);
  return [before - (seconds! + 1) * 1000, clock.wallMillis() - seconds! * 1000];
}
let clockChecks = 0;

async function checkClock(first: [number, number], domain: Domain, console: ReturnType<typeof collect>): Promise<void> {
  const [least, most] = await lag(domain, console);
  assert.ok(least < first[1] + CLOCK_TOLERANCE_MILLIS && most > first[0] - CLOCK_TOLERANCE_MILLIS, `${[first, least, most]}`);
}
const CLOCK_TOLERANCE_MILLIS = 500;

/** Stock Linux again: two at once, stopped unasked, an answer that comes late, none at all, and a crash instead of one. */
async function inspectStubborn(domain: Domain, console: ReturnType<typeof collect>): Promise<void> {
  const first = domain.suspend({ via: 'store', timeoutMillis: PATIENT });
  for (const via of ['store', 'transparent'] as const) {
    await assert.rejects(domain.suspend({ via }), code('ZAZEN_SUSPEND_UNDER_WAY'));
  }
  checkStats(await first, 'store', []);
  await assert.rejects(domain.suspend({ via: 'store' }), code('ZAZEN_DOMAIN_SUSPENDED'));
  await domain.resume();
  checkStats(await domain.suspend({ via: 'transparent' }), 'transparent', []);
  await domain.resume();

  // It takes some milliseconds, and may have answered when this thread gets to hear that it will.
  let events = domain.events({ history: false });
  while (!await giveUpAcknowledged(domain)) {
    await domain.resume();
    events = domain.events({ history: false });
  }
  assert.equal((await next(events, 'suspended')).via, 'store');
  assert.equal((await next(events, 'resumed')).reason, 'cancelled');
  domain.console.write('echo late $((60 + 1))\n');
  await console.until('late 61');

  // A process that waits for a disk cannot be frozen, and Linux gives up; so slow is this one that it waits for minutes.
  const disk = join(folder, 'slow.raw');
  writeFileSync(disk, new Uint8Array(8 * 2 ** 20));
  await domain.attachDisk({ path: disk, bytesPerSecond: 2 ** 14 });
  domain.console.write('until (: </dev/xvda) 2>/dev/null; do usleep 10000; done\n'
    + '(dd if=/dev/zero of=/dev/xvda bs=64k count=64 conv=fsync 2>/dev/null &)\n'
    + 'until grep -q "(dd) D" /proc/[0-9]*/stat 2>/dev/null; do usleep 10000; done\n'
    + 'dmesg -n 8; echo 10 >/sys/power/pm_freeze_timeout; echo waits $((70 + 1))\n');
  await console.until('waits 71');
  const givenUp = new AbortController();
  const never = assert.rejects(domain.suspend({ via: 'store', timeoutMillis: PATIENT, signal: givenUp.signal }), /fails/);
  await console.until('do_suspend: freeze processes failed');
  givenUp.abort(new Error('it fails'));
  await never;
  assert.equal(domain.state, 'running');
  // It is left running: it does all that it could do before. Then its watch over processes that hang finds this one.
  domain.console.write('cd /proc/sys/kernel; echo 30000 >/sys/power/pm_freeze_timeout; '
    + 'echo 1 >hung_task_panic; echo 3 >hung_task_timeout_secs; echo runs $((80 + 1))\n');
  await console.until('runs 81');
  await assert.rejects(domain.suspend({ via: 'store', timeoutMillis: PATIENT }), code('ZAZEN_DOMAIN_SHUTDOWN'));
  assert.equal(await domain.waitForShutdown(), 'reboot');
  await console.until('Kernel panic');
  assert.equal(read(domain, 'control/shutdown'), '');
}
