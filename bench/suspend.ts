// Suspending a 128 MiB guest, each way a hundred times in one run: from the request until a subscriber has the event that
// it is done. The guest answers at once; what differs is how it is asked: by an event, or by a watch on the store, which
// takes the guest a message to hear of it, one to read it and one to acknowledge it. Beside it, of the same guest, a
// checkpoint, which asks nobody anything; and stock Linux, which freezes its processes and devices first.
//
// What is checked: that the guest stood still, that it was told how it ended each time, and the host's account of its
// memory.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import type { Domain, SuspendVia } from '../src/host/index.ts';
import { suspendGuest } from '../test/guest/suspend-guest.ts';
import type { Benchmark } from './run.ts';
import { settled } from './settled.ts';
import { round, summarize } from './statistics.ts';

const SUSPENDS = 100;
const WARM_UP = 50;
const LINUX_SUSPENDS = 20;
const MEMORY = '128MiB';
const PERIOD_MILLIS = 5;
const WAYS: readonly SuspendVia[] = ['event-channel', 'store', 'transparent'];
const MICROS_PER_MILLI = 1000;

/** @returns micros until the event has come */
async function suspendOnce(domain: Domain, via: SuspendVia): Promise<number> {
  const events = domain.events({ history: false });
  const seen = events.next();
  const start = performance.now();
  const done = domain.suspend({ via });
  const { value } = await seen;
  const micros = (performance.now() - start) * MICROS_PER_MILLI;
  await events.return();
  await done;
  assert(value?.type === 'suspended' && value.via === via, 'another event came first');
  const { instructionsRetired } = domain.stats();
  await sleep(PERIOD_MILLIS);
  assert(domain.stats().instructionsRetired === instructionsRetired, 'a suspended guest runs');
  await domain.resume();
  return micros;
}

async function checkpointOnce(domain: Domain): Promise<number> {
  const start = performance.now();
  await using checkpoint = await domain.checkpoint();
  assert(checkpoint.memoryBytes > 0, 'an empty checkpoint');
  return (performance.now() - start) * MICROS_PER_MILLI;
}

async function measureOwn(host: Host, kernel: string, log: (line: string) => void) {
  await using domain = await host.create({ kernel, initrd: 'none', memory: MEMORY });
  const told = (): string | undefined => host.store.read(`/local/domain/${domain.id}/data/resumed`);
  while (host.store.read(`/local/domain/${domain.id}/control/feature-suspend`) !== '1') await sleep(1);
  const samples: Record<SuspendVia | 'checkpoint', number[]> = {
    'event-channel': [], 'store': [], 'transparent': [], 'checkpoint': [],
  };
  // In turns, so that whatever else the machine does concerns all alike.
  for (let i = -WARM_UP; i < SUSPENDS; i++) {
    for (const via of WAYS) {
      const before = told();
      const micros = await suspendOnce(domain, via);
      if (i >= 0) samples[via].push(micros);
      if (via === 'transparent') continue;
      while (told() === before) await sleep(1);
      assert(told()!.startsWith('1'), 'the guest was not told that it was cancelled');
      await sleep(PERIOD_MILLIS);
    }
    const micros = await checkpointOnce(domain);
    if (i >= 0) samples.checkpoint.push(micros);
    await sleep(PERIOD_MILLIS);
  }
  const micros = {
    eventChannel: summarize(samples['event-channel']), store: summarize(samples.store),
    transparent: summarize(samples.transparent), checkpoint: summarize(samples.checkpoint),
  };
  for (const [name, { median, p99, max }] of Object.entries(micros)) {
    log(`${name}: ${round(median)} µs, p99 ${round(p99)}, at most ${round(max)}`);
  }
  return micros;
}

async function measureLinux(host: Host, log: (line: string) => void) {
  await using domain = await host.create({ memory: MEMORY, cmdline: 'quiet' });
  domain.console.resume();
  while (host.store.read(`/local/domain/${domain.id}/control/feature-suspend`) !== '1') await sleep(10);
  const samples: number[] = [];
  for (let i = -2; i < LINUX_SUSPENDS; i++) {
    const micros = await suspendOnce(domain, 'store');
    if (i >= 0) samples.push(micros);
    await sleep(10 * PERIOD_MILLIS);
  }
  const store = summarize(samples);
  log(`stock Linux over the store: ${round(store.median)} µs, p99 ${round(store.p99)}, at most ${round(store.max)}`);
  return store;
}

const benchmark: Benchmark = {
  name: 'suspend',
  description: `${SUSPENDS} suspends of a 128 MiB guest over its event channel, over the store and transparently`,
  async run({ log }) {
    const folder = mkdtempSync(join(tmpdir(), 'zazen-suspend-'));
    try {
      const kernel = join(folder, 'kernel');
      writeFileSync(kernel, suspendGuest());
      await using host = await Host.start({ memory: '1GiB' });
      await settled(host);
      const micros = await measureOwn(host, kernel, log);
      const linuxStoreMicros = await measureLinux(host, log);
      assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
      return {
        micros, linuxStoreMicros,
        storeToEventChannel: round(micros.store.median / micros.eventChannel.median),
        linuxStoreToEventChannel: round(linuxStoreMicros.median / micros.eventChannel.median),
        transparentToCheckpoint: round(micros.transparent.median / micros.checkpoint.median),
        checked: 'what the guest was told, that it stood still, audit',
      };
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};
export default benchmark;
