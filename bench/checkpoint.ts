// Checkpoints of a guest that writes to its memory all the time: how long the guest stands still. Small and large guest
// in one run: the size must not matter. What is checked: the guest's checksums, and the host's account of its memory.

import { setTimeout as sleep } from 'node:timers/promises';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import { BusyGuest } from './busy-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const CHECKPOINTS = 100;
const WARM_UP = 50;
const PERIOD_MILLIS = 20;
const ROUND_BYTES = 4_000_000;

async function measure(memory: string) {
  await using host = await Host.start({ memory: '4GiB' });
  const guest = await BusyGuest.start(host, memory, ROUND_BYTES);
  const stop: number[] = [];
  const down: number[] = [];
  for (let i = -WARM_UP; i < CHECKPOINTS; i++) {
    await using checkpoint = await guest.domain.checkpoint();
    const { stopMicros, downtimeMicros } = checkpoint.stats;
    await sleep(PERIOD_MILLIS);
    if (i < 0) continue;
    stop.push(stopMicros);
    down.push(downtimeMicros);
  }
  await guest.untilRounds(guest.rounds + 2);
  const rounds = guest.verify();
  assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
  return { stopMicros: summarize(stop), downtimeMicros: summarize(down), rounds };
}

const benchmark: Benchmark = {
  name: 'checkpoint',
  description: `${CHECKPOINTS} checkpoints of a guest that dirties memory all the time, 128 MiB and 3 GiB`,
  async run({ log }) {
    const small = await measure('128MiB');
    log(`128 MiB: down ${round(small.downtimeMicros.median)} µs, at most ${round(small.downtimeMicros.max)}`);
    const large = await measure('3GiB');
    log(`3 GiB: down ${round(large.downtimeMicros.median)} µs, at most ${round(large.downtimeMicros.max)}`);
    return { small, large, ratio: round(large.downtimeMicros.median / small.downtimeMicros.median) };
  },
};
export default benchmark;
