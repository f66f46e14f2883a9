// Rolling a guest back that has dirtied some tens of pages since the checkpoint, again and again to the same one.

import { setTimeout as sleep } from 'node:timers/promises';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import { BusyGuest } from './busy-guest.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const ROLLBACKS = 200;
const WARM_UP = 100;
const PERIOD_MILLIS = 3;

const benchmark: Benchmark = {
  name: 'rollback',
  description: `${ROLLBACKS} rollbacks of a guest to one checkpoint`,
  async run({ log }) {
    await using host = await Host.start();
    const guest = await BusyGuest.start(host, '128MiB', 100_000, 0.01);
    await using checkpoint = await guest.domain.checkpoint();
    const base = guest.domain.stats().residentBytes;
    const samples = { stopMicros: [] as number[], downtimeMicros: [] as number[], totalMicros: [] as number[] };
    const pages: number[] = [];
    for (let i = -WARM_UP; i < ROLLBACKS; i++) {
      await sleep(PERIOD_MILLIS);
      const dirtied = (guest.domain.stats().residentBytes - base) / 4096;
      const stats = await guest.domain.rollback(checkpoint);
      if (i < 0) continue;
      pages.push(dirtied);
      for (const name of ['stopMicros', 'downtimeMicros', 'totalMicros'] as const) samples[name].push(stats[name]);
    }
    await guest.untilRounds(guest.rounds + 3);
    const rounds = guest.verify();
    assert((await host.audit()).problems.length === 0, 'the host lost count of its memory');
    const total = summarize(samples.totalMicros);
    log(`${round(total.median)} µs with ${round(summarize(pages).median)} pages dirtied, at most ${round(total.max)}`);
    return {
      stopMicros: summarize(samples.stopMicros), downtimeMicros: summarize(samples.downtimeMicros), totalMicros: total,
      dirtiedPages: summarize(pages), rounds,
    };
  },
};
export default benchmark;
