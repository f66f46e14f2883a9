// Checkpoint, rollback and fork of a guest that works: what it computes, and what it says, is what it would have been
// without. The guest keeps files on a RAM disk, folds them into a checksum step by step, and prints each one; whoever
// knows where on the console each checkpoint was taken can put together what the guest said on the way that counts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import type { Checkpoint, Domain } from '../../src/host/index.ts';
import { collect, FAST_BOOT, limited, testHost } from './guests.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? Date.now() % 2 ** 31);
const host = await testHost({ memory: '1GiB' });
const STEPS = 20;

/** Two workers in the background, one in the foreground: what is printed does not depend on how they are scheduled. */
const WORK = `mkdir /w; mount -t tmpfs none /w
  fold() { n=0; x=7; while [ $n -lt $2 ]; do n=$((n+1)); i=0
      while [ $i -lt 60 ]; do i=$((i+1)); x=$(((x*31+i*n) & 0xffffff)); done
      echo $n $x >>/w/$1$((n%5)); read last </w/$1$((n%5)); x=$(((x+\${#last}) & 0xffffff))
      [ $((n%10)) = 0 ] && cat /w/$1* | md5sum; echo $1 $n $x; done; }
  echo WORK-BEGINS; fold b ${STEPS} >/w/out-b & fold c ${STEPS} >/w/out-c & fold a ${STEPS}; wait
  tail -n 1 /w/out-b /w/out-c; md5sum </w/out-b; md5sum </w/out-c; echo WORK-ENDS`;

const spec = { memory: '128MiB', cmdline: FAST_BOOT, exec: WORK };

function workOf(text: string): string {
  const found = /WORK-BEGINS\n[^]*WORK-ENDS\n/.exec(text.replaceAll('\r', ''));
  assert(found !== null, `no result in: ${text.slice(-2000)}`);
  return found[0];
}

/** What a guest has said that was not undone: bytes of its console, cut at checkpoints and rollbacks. */
class Timeline {
  readonly domain: Domain;
  readonly #console;
  #kept = '';
  #from = 0;
  readonly #cuts: (() => void)[] = [];
  readonly #marks = new Map<Checkpoint, string>();

  constructor(domain: Domain) {
    this.domain = domain;
    this.#console = collect(domain.attachConsole());
  }
  #cut(then: (kept: string) => string): void {
    const to = this.domain.stats().consoleOutBytes;
    // The bytes are on their way through the stream.
    this.#cuts.push(() => {
      this.#kept = then(this.#kept + this.#console.text().slice(this.#from, to));
      this.#from = to;
    });
  }
  async checkpoint(): Promise<Checkpoint> {
    let taken: Checkpoint | undefined;
    this.#cut((kept) => {
      this.#marks.set(taken!, kept);
      return kept;
    });
    return taken = await this.domain.checkpoint();
  }
  async rollback(checkpoint: Checkpoint): Promise<void> {
    this.#cut(() => this.#marks.get(checkpoint)!);
    await this.domain.rollback(checkpoint);
  }
  async work(): Promise<string> {
    assert.equal(await this.domain.waitForShutdown(), 'poweroff');
    await this.#console.until('Power down').catch(() => '');
    for (const cut of this.#cuts) cut();
    return workOf(this.#kept + this.#console.text().slice(this.#from));
  }
}

/** What the guest says when nobody disturbs it. */
async function undisturbed(): Promise<string> {
  const domain = await host.create({ ...spec, vcpus: 2 });
  const output = collect(domain.exec!.output);
  await limited(domain, () => domain.exec!.result);
  await domain.destroy();
  return workOf(output.text());
}
let reference: Promise<string> | undefined;

const pause = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis));

for (const vcpus of [1, 2]) {
  const name = `a guest with ${vcpus} vCPUs computes the same across checkpoints, rollbacks and forks (seed ${seed})`;
  test(name, async () => {
    const random = new SeededRandom(seed + vcpus);
    const wanted = await (reference ??= undisturbed());
    const domain = await host.create({ ...spec, vcpus });
    domain.exec!.output.resume();
    const timeline = new Timeline(domain);
    const forks: { domain: Domain; text: () => string }[] = [];
    await limited(domain, async () => {
      await domain.exec!.started;
      const checkpoints: Checkpoint[] = [await timeline.checkpoint()];
      for (let action = 0; action < 50; action++) {
        await pause(random.below(25));
        if (domain.state !== 'running') await timeline.rollback(random.pick(checkpoints));
        const choice = random.below(100);
        if (choice < 55) checkpoints.push(await timeline.checkpoint());
        else if (choice < 90) await timeline.rollback(random.pick(checkpoints));
        else if (forks.length < 2) {
          const [fork] = await random.pick(checkpoints).fork();
          const console = collect(fork!.console);
          forks.push({ domain: fork!, text: () => console.text() });
        }
        if (checkpoints.length > 6) await checkpoints.splice(1 + random.below(5), 1)[0]!.destroy();
        if (action % 20 === 0) assert.deepEqual((await host.audit()).problems, []);
      }
      await Promise.all(checkpoints.map((checkpoint) => checkpoint.destroy()));
      assert.equal(await timeline.work(), wanted);
      for (const fork of forks) {
        assert.equal(await fork.domain.waitForShutdown(), 'poweroff');
        await fork.domain.destroy();
        // Its console began with all that had been said before.
        assert.equal(workOf(fork.text()), wanted);
      }
    });
    await domain.destroy();
    assert.deepEqual((await host.audit()).problems, []);
  });
}

/** A shell at the guest's end of the console. */
class Shell {
  readonly domain: Domain;
  readonly #console;
  readonly #text;
  #count = 0;

  constructor(domain: Domain, name: string) {
    this.domain = domain;
    this.name = name;
    this.#console = domain.attachConsole();
    this.#text = collect(this.#console);
  }
  readonly name: string;

  /** @returns the output of a command */
  async ask(command: string): Promise<string> {
    const mark = `${this.name}-${++this.#count}`;
    this.#console.write(`echo "<${mark}>"; ${command}; echo "<$((0))${mark}>"\n`);
    const all = await this.#text.until(`<0${mark}>\n`);
    return all.slice(all.lastIndexOf(`<${mark}>\n`) + mark.length + 3, all.lastIndexOf(`<0${mark}>`)).trimEnd();
  }
}
const SHELL = 'while read -r line; do eval "$line"; done';

test('forks have an identity of their own and go their own ways; forks of forks, and rollback while they live', async () => {
  const origin = await host.create({ ...spec, name: 'origin', exec: SHELL });
  origin.exec!.output.resume();
  await limited(origin, async () => {
    await origin.exec!.started;
    const shell = new Shell(origin, 'origin');
    assert.equal(await shell.ask('value=first; echo file >/f; echo $value'), 'first');
    await using checkpoint = await origin.checkpoint();
    assert.equal(await shell.ask('value=second; rm /f; echo $value'), 'second');

    const forks = await checkpoint.fork([{ name: 'left' }, {}]);
    const [left, right] = forks.map((fork) => new Shell(fork, `fork${fork.id}`)) as [Shell, Shell];
    assert.equal(left.domain.name, 'left');
    assert.equal(new Set([origin, ...forks].map(({ uuid }) => uuid)).size, 3);
    assert.equal(await left.ask('echo $value; cat /f; value=left'), 'first\nfile');
    assert.equal(await right.ask('echo $value; value=right'), 'first');
    assert.equal(await left.ask('cat /sys/hypervisor/uuid'), left.domain.uuid);
    assert.equal(await shell.ask('echo $value'), 'second');
    const { store } = host;
    for (const { id, name, uuid } of forks) {
      assert.equal(store.read(`/local/domain/${id}/name`), name);
      assert.equal(store.read(`/local/domain/${id}/domid`), String(id));
      assert.equal(store.read(`/local/domain/${id}/vm`), `/vm/${uuid}`);
      assert.equal(store.read(`/vm/${uuid}/uuid`), uuid);
      assert.deepEqual(store.getPerms(`/local/domain/${id}/data`), [`n${id}`]);
    }
    await assert.rejects(checkpoint.fork([{ name: 'left' }]), { code: 'ZAZEN_DOMAIN_NAME_TAKEN' });

    // A fork of a fork, which is of the same family: it can go back to what its ancestors were.
    await using later = await left.domain.checkpoint();
    const [grandchild] = await later.fork();
    const third = new Shell(grandchild!, 'third');
    assert.equal(await third.ask('echo $value'), 'left');
    await grandchild!.rollback(checkpoint);
    assert.equal(await third.ask('echo $value; cat /f'), 'first\nfile');
    assert.equal(await third.ask('cat /sys/hypervisor/uuid'), grandchild!.uuid);
    await origin.rollback(later);
    assert.equal(await shell.ask('echo $value; cat /sys/hypervisor/uuid'), `left\n${origin.uuid}`);
    await origin.rollback(checkpoint);
    assert.equal(await shell.ask('echo $value; cat /f'), 'first\nfile');
    assert.equal(await left.ask('echo $value'), 'left');
    assert.equal(await right.ask('echo $value'), 'right');

    // The clocks: the guest's own time goes on from the checkpoint, the time of day is the host's.
    const now = await third.ask('date +%s');
    assert(Math.abs(Number(now) - Date.now() / 1000) < 30, now);

    // They are asked over the store, each its own part of it, and go without the others.
    await left.domain.shutdown();
    assert.equal(await left.domain.waitForShutdown(), 'poweroff');
    assert.equal(await right.ask('echo $value'), 'right');
    assert.equal(grandchild!.state, 'running');

    // What has shut down can be rolled back, too.
    await left.domain.rollback(later);
    const again = new Shell(left.domain, 'again');
    assert.equal(await again.ask('echo $value'), 'left');
    for (const fork of [...forks, grandchild!]) await fork.destroy();
    assert.deepEqual((await host.audit()).problems, []);
  });
  await origin.destroy();
});

test('checkpoints outlive their domain, paused domains stay paused, and strangers are refused', async () => {
  const origin = await host.create({ ...spec, exec: SHELL });
  const stranger = await host.create({ ...spec, paused: true });
  origin.exec!.output.resume();
  await limited(origin, async () => {
    await origin.exec!.started;
    const shell = new Shell(origin, 'origin');
    assert.equal(await shell.ask('x=1; echo $x'), '1');
    await origin.pause();
    const checkpoint = await origin.checkpoint();
    assert.equal(origin.state, 'paused');
    await origin.rollback(checkpoint);
    assert.equal(origin.state, 'paused');
    await assert.rejects(stranger.rollback(checkpoint), { code: 'ZAZEN_CHECKPOINT_FOREIGN' });
    await origin.destroy();
    await assert.rejects(origin.checkpoint(), { code: 'ZAZEN_DOMAIN_GONE' });
    const [fork] = await checkpoint.fork([{ paused: true }]);
    assert.equal(fork!.state, 'paused');
    await checkpoint.destroy();
    await checkpoint.destroy();
    await assert.rejects(checkpoint.fork(), { code: 'ZAZEN_CHECKPOINT_GONE' });
    await assert.rejects(fork!.rollback(checkpoint), { code: 'ZAZEN_CHECKPOINT_GONE' });
    const forked = new Shell(fork!, 'forked');
    await fork!.unpause();
    assert.equal(await forked.ask('echo $x'), '1');
    await fork!.destroy();
  });
  await stranger.destroy();
  assert.deepEqual((await host.audit()).problems, []);
});

test('a host without memory refuses forks and lives', async () => {
  const origin = await host.create({ ...spec, exec: SHELL });
  origin.exec!.output.resume();
  await limited(origin, async () => {
    await origin.exec!.started;
    const checkpoint = await origin.checkpoint();
    const forks: Domain[] = [];
    await assert.rejects(async () => {
      for (;;) forks.push(...await checkpoint.fork(Array.from({ length: 16 }, () => ({ paused: true }))));
    }, { code: 'ZAZEN_DOMAIN_LIMIT' });
    await Promise.all(forks.map((fork) => fork.destroy()));
    await checkpoint.destroy();
    assert.deepEqual((await host.audit()).problems, []);
    assert.equal(await new Shell(origin, 'origin').ask('echo alive'), 'alive');
  });
  await origin.destroy();
});
