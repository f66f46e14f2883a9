// Guests at work on disks and networks, of both types and with one and two vCPUs, are checkpointed, rolled back, forked, saved,
// restored and destroyed at random moments, several at once, while their requests and connections are under way. What
// they read must be what was written and what the host sent; and after every few verbs each frame must be accounted
// for, and nothing may have been written to a free one.
//
// ZAZEN_STRESS_ACTIONS: how many verbs (default 24); ZAZEN_STRESS_PCPUS: of the host (default 2); ZAZEN_TEST_SEED: which.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import { prepareGuest } from '../../src/guest/initramfs.ts';
import type { Checkpoint, Domain } from '../../src/host/index.ts';
import { PATIENCE_MILLIS } from '../patience.ts';
import { FAST_BOOT, testHost } from './guests.ts';

const ACTIONS = Number(process.env['ZAZEN_STRESS_ACTIONS'] ?? 24);
const PCPUS = Number(process.env['ZAZEN_STRESS_PCPUS'] ?? 2);
const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? Date.now() % 2 ** 31);
const BODY = randomBytes(1 << 19);
const DISK_BYTES = 8 << 20;
const PAUSE_MILLIS_MAX = 12;
const LIVES_MAX = 5;
const CHECKPOINTS_MAX = 6;
const IMAGES_MAX = 2;
const AUDIT_EVERY = 20;

const folder = mkdtempSync(join(tmpdir(), 'zazen-stress-devices-'));
after(() => rmSync(folder, { recursive: true }));
const digest = createHash('md5').update(BODY).digest('hex');
const web = createServer((request, response) => {
  if (request.method === 'PUT') request.resume().on('end', () => response.end());
  else response.end(BODY);
});
await new Promise<void>((resolve) => web.listen(0, '127.0.0.1', resolve));
after(() => {
  web.closeAllConnections();
  web.close();
});
const host = await testHost({ memory: '2GiB', pcpus: PCPUS });

/**
 * Says `n` for each download, `d` for each part of the disk, that was right, and `bad` for what was wrong. A connection may be
 * cut by what becomes of the guest, a disk may not. Now and then so much memory is written that a rollback puts all of it
 * back anew.
 */
function work(disk: string): string {
  const url = `http://10.0.2.2:${(web.address() as AddressInfo).port}/`;
  return `cd /tmp
    net() { while :; do
      if wget -q -O got ${url}; then set -- $(md5sum <got); [ $1 = ${digest} ] && echo n || echo bad download $1 $(wc -c <got)
      else sleep 0.05; fi; done; }
    disk() { n=0; while :; do n=$((n+1)); head -c 131072 /dev/urandom >part
      dd if=part of=${disk} bs=4096 seek=$((n%61*32)) conv=fsync,notrunc 2>/dev/null || echo bad write
      echo 3 >/proc/sys/vm/drop_caches
      dd if=${disk} bs=65536 skip=$((n%61*2)) count=2 2>/dev/null | cmp - part && echo d || echo bad disk; done; }
    memory() { while :; do head -c 12000000 /dev/urandom >much; sleep 0.2; done; }
    net & disk & memory & wait`;
}

/** Counts what a guest says. */
class Watch {
  readonly domain: Domain;
  readonly counts = { n: 0, d: 0 };
  readonly bad: string[] = [];
  #rest = '';

  constructor(domain: Domain) {
    this.domain = domain;
    const stream = domain.attachConsole();
    stream.on('data', (chunk: Buffer) => {
      const lines = (this.#rest + chunk.toString('latin1')).split(/\r?\n/);
      this.#rest = lines.pop()!;
      for (const line of lines) {
        if (line === 'n' || line === 'd') this.counts[line]++;
        else if (/bad |I\/O error|BUG|Oops|panic|not a head|Call trace/.test(line)) this.bad.push(`${domain.name}: ${line}`);
      }
    });
  }

  /** Waits until it has done so many further rounds of both kinds. */
  async progress(rounds: number): Promise<void> {
    const wanted = { n: this.counts.n + rounds, d: this.counts.d + rounds };
    const start = performance.now();
    while ((this.counts.n < wanted.n || this.counts.d < wanted.d) && this.bad.length === 0) {
      assert(performance.now() - start < PATIENCE_MILLIS,
        `${this.domain.name} (${this.domain.state}) does not get on: ${JSON.stringify([this.counts, wanted, this.domain.stats().nics])}`);
      await new Promise((resolve) => { setTimeout(resolve, 20); });
    }
  }
}

interface Held {
  readonly checkpoint: Checkpoint;
  readonly origin: Origin;
}
/** What can be put back to each other's checkpoints. */
interface Origin {
  readonly name: string;
}
interface Life {
  readonly watch: Watch;
  readonly origin: Origin;
  /** Verbs of one guest come one after the other. */
  turn: Promise<unknown>;
  isGone: boolean;
}

class Stress {
  readonly #random = new SeededRandom(seed);
  readonly counts: Record<string, number> = {};
  readonly lives: Life[] = [];
  readonly held: Held[] = [];
  readonly bad: string[] = [];
  readonly done = { n: 0, d: 0 };
  readonly #images: string[] = [];
  #files = 0;

  adopt(domain: Domain, origin: Origin): Life {
    const life = { watch: new Watch(domain), origin, turn: Promise.resolve(), isGone: false };
    this.lives.push(life);
    return life;
  }
  async destroy(life: Life): Promise<void> {
    life.isGone = true;
    this.lives.splice(this.lives.indexOf(life), 1);
    await life.watch.domain.destroy();
    this.bad.push(...life.watch.bad);
    this.done.n += life.watch.counts.n;
    this.done.d += life.watch.counts.d;
  }

  readonly #verbs: Readonly<Record<string, { readonly weight: number; run(life: Life): Promise<void> }>> = {
    checkpoint: { weight: 30, run: async ({ watch: { domain }, origin }) => {
      this.held.push({ checkpoint: await domain.checkpoint(), origin });
      if (this.held.length > CHECKPOINTS_MAX) await this.held.splice(this.#random.below(CHECKPOINTS_MAX), 1)[0]!.checkpoint.destroy();
    } },
    rollback: { weight: 30, run: async ({ watch: { domain }, origin }) => {
      const own = this.held.filter((held) => held.origin === origin);
      if (own.length > 0) await domain.rollback(this.#random.pick(own).checkpoint);
    } },
    fork: { weight: 12, run: async () => {
      if (this.held.length === 0) return;
      const { checkpoint, origin } = this.#random.pick(this.held);
      const [fork] = await checkpoint.fork();
      this.adopt(fork!, origin);
    } },
    destroy: { weight: 8, run: async (life) => {
      if (this.lives.length > 1) await this.destroy(life);
    } },
    save: { weight: 4, run: async ({ watch: { domain } }) => {
      const path = join(folder, `image${this.#files++}`);
      await domain.save(path);
      this.#images.push(path);
      if (this.#images.length > IMAGES_MAX) rmSync(this.#images.shift()!);
    } },
    restore: { weight: 6, run: async () => {
      if (this.#images.length === 0) return;
      const name = `restored${this.#files++}`;
      this.adopt(await host.restore(this.#images.at(-1)!, { name }), { name });
    } },
  };

  async #act(name: string, life: Life): Promise<void> {
    if (life.isGone) return;
    await this.#verbs[name]!.run(life);
    this.counts[name] = (this.counts[name] ?? 0) + 1;
  }

  async run(actions: number): Promise<void> {
    const names = Object.entries(this.#verbs).flatMap(([name, { weight }]) => Array.from({ length: weight }, () => name));
    for (let action = 0; action < actions; action++) {
      await new Promise((resolve) => { setTimeout(resolve, this.#random.below(PAUSE_MILLIS_MAX)); });
      const name = this.#random.pick(names);
      const life = this.#random.pick(this.lives);
      // The next verb, of another guest perhaps, begins while this one is under way.
      life.turn = life.turn.then(() => this.#act(name, life));
      if (this.#random.below(3) === 0) await Promise.all(this.lives.map(({ turn }) => turn));
      while (this.lives.length > LIVES_MAX) {
        const surplus = this.#random.pick(this.lives);
        await surplus.turn;
        if (!surplus.isGone) await this.destroy(surplus);
      }
      this.assertGood();
      if (action % AUDIT_EVERY === 0) await this.audit();
    }
    await Promise.all(this.lives.map(({ turn }) => turn));
  }

  assertGood(): void {
    assert.deepEqual([...this.bad, ...this.lives.flatMap(({ watch }) => watch.bad)], []);
  }
  async audit(): Promise<void> {
    assert.deepEqual((await host.audit({ readClean: true })).problems, []);
  }

  /** All that is there works on: what lives, and a fork of each checkpoint. */
  async end(): Promise<void> {
    await Promise.all(this.lives.map(({ watch }) => watch.progress(1)));
    for (const life of [...this.lives]) await this.destroy(life);
    await Promise.all(this.held.splice(0).map(async ({ checkpoint, origin }) => {
      const [fork] = await checkpoint.fork();
      await checkpoint.destroy();
      const life = this.adopt(fork!, origin);
      await life.watch.progress(1);
      await this.destroy(life);
    }));
    this.assertGood();
    await this.audit();
  }
}

test(`disks and networks in use through all verbs (seed ${seed}, ${PCPUS} pCPUs)`, async (t) => {
  const stress = new Stress();
  await Promise.all((['pvh', 'hvm'] as const).map(async (type, i) => {
    const disk = join(folder, `disk-${type}`);
    writeFileSync(disk, '');
    truncateSync(disk, DISK_BYTES);
    const { initramfsPath: initrd } = await prepareGuest({ devices: type === 'hvm' ? 'virtio' : 'xen' });
    const domain = await host.create({
      type, name: type, memory: '128MiB', vcpus: 1 + (seed + i) % 2, initrd, cmdline: FAST_BOOT,
      exec: work(type === 'hvm' ? '/dev/vda' : '/dev/xvda'), disks: [{ path: disk, format: 'raw' }], nics: [{}],
    });
    domain.exec!.output.resume();
    await stress.adopt(domain, { name: type }).watch.progress(2);
  }));
  await stress.run(ACTIONS);
  await stress.end();
  t.diagnostic(`${JSON.stringify(stress.counts)}, ${JSON.stringify(stress.done)} rounds`);
});
