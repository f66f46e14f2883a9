// Nothing is lost: guests at work (stress-workload.ts) are checkpointed, rolled back, forked, saved and restored at
// random moments, forks of forks and images of images included, and every line that any of them ever says must be
// right. On a host with 32-bit addresses and on one with 64-bit addresses; at the end a guest of each goes on in the other.
//
// ZAZEN_STRESS_ACTIONS: how many verbs on each host (default 160); ZAZEN_TEST_SEED: which.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import { Host } from '../../src/host/index.ts';
import type { Checkpoint, Domain } from '../../src/host/index.ts';
import { HOST_SIZES } from './guests.ts';
import { startWork, Watch } from './stress-workload.ts';
import type { Mark } from './stress-workload.ts';

const ACTIONS = Number(process.env['ZAZEN_STRESS_ACTIONS'] ?? 160);
const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? Date.now() % 2 ** 31);
const PAUSE_MILLIS_MAX = 16;
const LIVES_MAX = 3;
const CHECKPOINTS_MAX = 8;
const IMAGES_MAX = 2;
const AUDIT_EVERY = 60;
/** On the host of each size: as many as pCPUs, mostly, and more. */
const VCPUS = [2, 8];

const folder = mkdtempSync(join(tmpdir(), 'zazen-stress-'));
after(() => rmSync(folder, { recursive: true }));

interface Held {
  readonly checkpoint: Checkpoint;
  readonly mark: Mark;
  /** Of the image that its family came out of: rollback is within a family. */
  readonly family: number;
}
interface Life {
  readonly watch: Watch;
  readonly family: number;
  isPaused: boolean;
}
interface Saved {
  readonly path: string;
  readonly mark: Mark;
}

class Stress {
  readonly #host: Host;
  readonly #random: SeededRandom;
  readonly #tag: string;
  readonly counts: Record<string, number> = {};
  readonly lives: Life[] = [];
  readonly #held: Held[] = [];
  readonly #images: Saved[] = [];
  /** Under way while other verbs go on. */
  #save: Promise<void> | undefined;
  #files = 0;
  #families = 0;
  /** Lines of domains that are gone. */
  #lines = 0;

  constructor(host: Host, random: SeededRandom, tag: string) {
    this.#host = host;
    this.#random = random;
    this.#tag = tag;
  }

  get lines(): number {
    return this.lives.reduce((sum, { watch }) => sum + watch.lines, this.#lines);
  }

  adopt(watch: Watch, family = ++this.#families): Life {
    const life: Life = { watch, family, isPaused: false };
    this.lives.push(life);
    return life;
  }
  #pickHeld(): Held {
    return this.#random.pick(this.#held);
  }
  async #destroy(life: Life): Promise<void> {
    this.lives.splice(this.lives.indexOf(life), 1);
    life.watch.assertGood();
    await life.watch.domain.destroy();
    this.#lines += life.watch.lines;
  }

  readonly #verbs: Readonly<Record<string, { readonly weight: number; run(life: Life): Promise<boolean | void> }>> = {
    checkpoint: { weight: 34, run: async life => {
      this.#held.push({ ...await life.watch.checkpoint(), family: life.family });
      if (this.#held.length > CHECKPOINTS_MAX) {
        await this.#held.splice(this.#random.below(CHECKPOINTS_MAX), 1)[0]!.checkpoint.destroy();
      }
    } },
    rollback: { weight: 34, run: async life => {
      const own = this.#held.filter(({ family }) => family === life.family);
      if (own.length === 0) return false;
      const { checkpoint, mark } = this.#random.pick(own);
      await life.watch.rollback(checkpoint, mark);
    } },
    fork: { weight: 10, run: async () => {
      if (this.#held.length === 0) return false;
      const { checkpoint, mark, family } = this.#pickHeld();
      const [fork] = await checkpoint.fork();
      this.adopt(new Watch(fork!, mark), family);
    } },
    pause: { weight: 5, run: async life => {
      await (life.isPaused ? life.watch.domain.unpause() : life.watch.domain.pause());
      life.isPaused = !life.isPaused;
    } },
    destroy: { weight: 4, run: async life => {
      if (this.lives.length === 1 || life.isPaused) return false;
      await this.#destroy(life);
    } },
    save: { weight: 4, run: async () => {
      if (this.#save !== undefined || this.#held.length === 0) return false;
      const { checkpoint, mark } = this.#pickHeld();
      const path = join(folder, `${this.#tag}-${this.#files++}`);
      this.#save = this.#saveImage(checkpoint, { path, mark });
    } },
    restore: { weight: 6, run: async () => {
      if (this.#images.length === 0) return false;
      const { path, mark } = this.#random.pick(this.#images);
      const how = { lazy: this.#random.below(2) === 0 };
      const domain = await this.#host.restore(path, { name: `${this.#tag}-restored-${this.#files++}`, ...how });
      this.adopt(new Watch(domain, mark));
    } },
  };

  async #saveImage(checkpoint: Checkpoint, image: Saved): Promise<void> {
    await checkpoint.save(image.path);
    this.#images.push(image);
    if (this.#images.length > IMAGES_MAX) rmSync(this.#images.shift()!.path);
    this.#save = undefined;
  }

  async run(actions: number): Promise<void> {
    const names = Object.entries(this.#verbs)
      .flatMap(([name, { weight }]) => Array.from({ length: weight }, () => name));
    for (let action = 0; action < actions; action++) {
      await new Promise(resolve => { setTimeout(resolve, this.#random.below(PAUSE_MILLIS_MAX)); });
      const name = this.#random.pick(names);
      const wasDone = await this.#verbs[name]!.run(this.#random.pick(this.lives));
      if (wasDone !== false) this.counts[name] = (this.counts[name] ?? 0) + 1;
      while (this.lives.length > LIVES_MAX) await this.#destroy(this.lives[this.#random.below(LIVES_MAX)]!);
      for (const { watch } of this.lives) watch.assertGood();
      if (action % AUDIT_EVERY === 0) await this.audit();
    }
    await this.#save;
  }

  async audit(): Promise<void> {
    assert.deepEqual((await this.#host.audit({ readClean: true })).problems, []);
  }

  /** All that is there works on: domains, a fork of each checkpoint, what is in the images. @returns an image */
  async end(): Promise<Saved> {
    for (const life of this.lives) if (life.isPaused) await life.watch.domain.unpause();
    await Promise.all(this.lives.map(({ watch }) => watch.progress()));
    const image = { path: join(folder, `${this.#tag}-last`), ...await this.lives[0]!.watch.checkpoint() };
    await image.checkpoint.save(image.path);
    await image.checkpoint.destroy();
    for (const life of [...this.lives]) await this.#destroy(life);
    for (const { checkpoint, mark } of this.#held.splice(0)) {
      const [fork] = await checkpoint.fork();
      await checkpoint.destroy();
      const life = this.adopt(new Watch(fork!, mark));
      await life.watch.progress(1);
      await this.#destroy(life);
    }
    await this.audit();
    return image;
  }
}

const hosts = await Promise.all(HOST_SIZES.map(memory => Host.start({ memory })));
after(() => Promise.all(hosts.map(host => host.close())));
const images: Saved[] = [];

for (const [index, host] of hosts.entries()) {
  test(`guests at work lose nothing on a host of ${HOST_SIZES[index]} (seed ${seed})`, async t => {
    const create = (spec: object): Promise<Domain> => host.create({ ...spec, memory: '96MiB', vcpus: VCPUS[index]! });
    const stress = new Stress(host, new SeededRandom(seed), `on-${HOST_SIZES[index]}`);
    stress.adopt(await startWork(create));
    await stress.run(ACTIONS);
    images.push(await stress.end());
    t.diagnostic(`${JSON.stringify(stress.counts)}, ${stress.lines} lines`);
  });
}

test('a guest of either host works on in the other', async () => {
  assert.equal(images.length, hosts.length);
  for (const [index, { path, mark }] of images.entries()) {
    const host = hosts[(index + 1) % hosts.length]!;
    const domain = await host.restore(path, { name: 'elsewhere' });
    await new Watch(domain, mark).progress();
    await domain.destroy();
    assert.deepEqual((await host.audit()).problems, []);
  }
});
