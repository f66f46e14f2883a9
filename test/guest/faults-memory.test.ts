// The host runs out of frames while Debian guests work: what needs frames and gets none stops or is refused, everything
// else goes on, and when there is memory again all of them go on as if nothing had been. Guests are those of
// stress-workload.ts, whose every line is known.
//
// ZAZEN_STRESS_ROUNDS: how often memory runs out (default 1); ZAZEN_TEST_SEED.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import type { Checkpoint, Domain } from '../../src/host/index.ts';
import { bareMetalImage, FREE, fresh } from '../bare-metal.ts';
import { until, whileGoingOn } from '../waiting.ts';
import { testHost } from './guests.ts';
import { startWork, Watch } from './stress-workload.ts';
import type { Mark } from './stress-workload.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? Date.now() % 2 ** 31);
const ROUNDS = Number(process.env['ZAZEN_STRESS_ROUNDS'] ?? 1);
const MIB = 2 ** 20;
/** What is left when the filler has taken its share. */
const LEFT_BYTES = 6 * MIB;
const SPEC = { memory: '96MiB', vcpus: 2 };

const folder = mkdtempSync(join(tmpdir(), 'zazen-faults-'));
after(() => rmSync(folder, { recursive: true }));
const host = await testHost({ pcpus: 2 }, '512MiB');
const imagePath = join(folder, 'image');

interface Held {
  readonly checkpoint: Checkpoint;
  readonly mark: Mark;
}
let origin: Watch;
/** Of a time when next to nothing of the guest's memory was as it is now. */
let beginning: Checkpoint;
let saved: Mark;

before(async () => {
  origin = await startWork(async spec => {
    const domain = await host.create({ ...spec, ...SPEC, name: 'origin', paused: true });
    beginning = await domain.checkpoint();
    await domain.unpause();
    return domain;
  });
  const { checkpoint, mark } = await origin.checkpoint();
  await checkpoint.save(imagePath);
  await checkpoint.destroy();
  saved = mark;
});

async function audit(): Promise<void> {
  assert.deepEqual((await host.audit()).problems, []);
}

/** A guest that touches nearly all memory that is free, and sleeps. */
async function fill(): Promise<Domain> {
  await until('all is given back', () => host.stats().releasingBytes === 0);
  const ownBytes = Math.floor((host.stats().freeBytes - LEFT_BYTES) / MIB) * MIB;
  const bytes = ownBytes - 16 * MIB;
  assert.ok(bytes > 0, `only ${host.stats().freeBytes} bytes are free`);
  const [touch, rest] = ['touch', 'rest'].map(fresh) as [string, string];
  const path = join(folder, 'filler');
  writeFileSync(path, bareMetalImage({ code: a => {
    a.mov(1, FREE).mov(2, bytes / 4096).label(touch).str(1, 1).add(1, 1, 4095).add(1, 1, 1).subs(2, 2, 1);
    a.bCond('ne', touch);
    a.label(rest).wfi().b(rest);
  } }));
  const filler = await host.create({ kernel: path, initrd: 'none', memory: ownBytes, name: 'filler' });
  // Or all that the others have left: they work, and write to frames of their checkpoints.
  await until('the filler has its share', () => filler.stats().residentBytes >= bytes || filler.state === 'paused');
  return filler;
}

const OUT_OF_MEMORY = { code: 'ZAZEN_HOST_OUT_OF_MEMORY' };
/** Others may still take or give a few frames. @returns what succeeded before a try did not, as it must soon */
async function failsSoon<T>(verb: () => Promise<T>, code: string): Promise<T[]> {
  const done: T[] = [];
  for (let i = 0; i < 400; i++) {
    try {
      done.push(await verb());
    } catch (error) {
      assert.equal((error as { code?: string }).code, code, String(error));
      return done;
    }
  }
  return assert.fail(`there are frames for ${verb}, over and over`);
}

/** Keeps checkpoints of all until all have stalled, for want of frames to copy what they write. */
async function exhaust(watches: readonly Watch[], random: SeededRandom): Promise<Held[][]> {
  const held: Held[][] = watches.map(() => []);
  const isStalled = ({ domain }: Watch): boolean => domain.state === 'paused';
  await until('all have stalled', () => {
    watches.forEach((watch, index) => {
      if (isStalled(watch) || random.below(4) > 0) return;
      watch.checkpoint().then(taken => held[index]!.push(taken),
        (error: { code?: string }) => assert.equal(error.code, OUT_OF_MEMORY.code));
    });
    return watches.every(isStalled);
  });
  return held;
}

async function isLastStalled(domain: Domain): Promise<boolean> {
  const types: string[] = [];
  for await (const event of domain.events()) {
    types.push(event.type);
    if (event.type === 'stalled') return true;
  }
  return false;
}

test(`guests work on after the host was out of frames (seed ${seed})`, async () => {
  const random = new SeededRandom(seed);
  for (let round = 0; round < ROUNDS; round++) {
    const first = await origin.checkpoint();
    const forks = (await first.checkpoint.fork(2)).map(fork => new Watch(fork, first.mark));
    const watches = [origin, ...forks];
    const filler = await fill();
    const held = await exhaust(watches, random);
    for (const { domain } of watches) assert.ok(await isLastStalled(domain));
    await audit();

    // What needs frames is refused, and leaves everything as it was.
    const more: Checkpoint[] = await failsSoon(() => origin.domain.checkpoint(), OUT_OF_MEMORY.code);
    const made = (await failsSoon(() => first.checkpoint.fork([{ paused: true }]), 'ZAZEN_DOMAIN_LIMIT')).flat();
    await assert.rejects(first.checkpoint.fork(20), { code: 'ZAZEN_DOMAIN_LIMIT' });
    await assert.rejects(origin.rollback(beginning, first.mark), OUT_OF_MEMORY);
    await assert.rejects(origin.domain.save(join(folder, 'never')), OUT_OF_MEMORY);
    const eager = { lazy: false };
    await assert.rejects(host.restore(imagePath, { name: 'eager', ...eager }), OUT_OF_MEMORY);
    await audit();
    // What needs none is done.
    await first.checkpoint.save(join(folder, 'first'));
    await audit();

    await filler.destroy();
    for (const domain of made) await domain.destroy();
    await whileGoingOn(watches.map(({ domain }) => domain), () => Promise.all(watches.map(watch => watch.progress())));
    for (const [index, watch] of watches.entries()) {
      if (held[index]!.length === 0) continue;
      const { checkpoint, mark } = random.pick(held[index]!);
      await watch.rollback(checkpoint, mark);
    }
    await Promise.all(watches.map(watch => watch.progress()));
    for (const { checkpoint } of [first, ...held.flat()]) await checkpoint.destroy();
    for (const checkpoint of more) await checkpoint.destroy();
    for (const { domain } of forks) await domain.destroy();
    await audit();
    // And what was saved meanwhile is whole.
    const again = new Watch(await host.restore(join(folder, 'first'), { name: 'again' }), first.mark);
    await again.progress(1);
    await again.domain.destroy();
  }
});

test('a guest is restored when the host is all but full, and works when there is room', async () => {
  await origin.domain.pause();
  const filler = await fill();
  const how = { lazy: true };
  const restored = await host.restore(imagePath, { name: 'restored', ...how }).catch((error: { code?: string }) => {
    assert.ok(['ZAZEN_HOST_OUT_OF_MEMORY', 'ZAZEN_DOMAIN_LIMIT'].includes(error.code ?? ''), String(error));
  });
  if (restored) await until('it has stalled', () => restored.state === 'paused');
  await audit();
  await filler.destroy();
  const domain = restored ?? await host.restore(imagePath, { name: 'restored' });
  const watch = new Watch(domain, saved);
  await whileGoingOn([domain], () => watch.progress());
  await domain.destroy();
  await origin.domain.unpause();
  await origin.progress();
  await audit();
});
