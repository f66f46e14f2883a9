// The life of domains from outside: several on one host, paused, asked to go, crashing, destroyed; and that a host
// that is closed leaves nothing behind.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Domain } from '../../src/host/index.ts';
import { PATIENCE_MILLIS } from '../patience.ts';
import { assertTime, collect, FAST_BOOT, limited, testHost } from './guests.ts';

const host = await testHost({ memory: '1GiB' });

async function eventTypes(domain: Domain): Promise<string[]> {
  const types: string[] = [];
  for await (const event of domain.events()) types.push(event.type === 'shutdown' ? event.reason : event.type);
  return types;
}

/**
 * Tells of its name, then says every tenth of a second what its clocks show, until a line comes. What is in that may be
 * cut in two by a time-out in its middle.
 */
const TICKING = `hostname; xen=$(cat /sys/hypervisor/uuid); echo "uuid $xen"
  while ! read -r -t 0.1 word; do
    read -r up idle </proc/uptime; unix=$(date +%s); read -r later idle </proc/uptime; echo "tick $up $unix $later"
  done; echo stopped`;

/** `unix` was read between `up` and `later`: a guest may be kept from its core at any moment. */
const ticks = (text: string): { up: number; unix: number; later: number }[] =>
  [...text.matchAll(/^tick ([\d.]+) (\d+) ([\d.]+)$/gm)].map(([, ...numbers]) => {
    const [up, unix, later] = numbers.map(Number) as [number, number, number];
    return { up, unix, later };
  });

test('three domains at once, apart from each other; one is paused meanwhile', async () => {
  const names = ['one', 'two', 'three'];
  const created = Date.now();
  const domains = await Promise.all(names.map((name) =>
    host.create({ name, memory: '192MiB', cmdline: FAST_BOOT, exec: TICKING })));
  const outputs = domains.map((domain) => collect(domain.exec!.output));
  assert.deepEqual(host.domains().map(({ name }) => name).toSorted(), names.toSorted());
  await assert.rejects(host.create({ name: 'two' }), { code: 'ZAZEN_DOMAIN_NAME_TAKEN' });
  const [one] = domains as [Domain, Domain, Domain];
  await limited(one, async () => {
    await Promise.all(outputs.map((output) => output.until('tick ')));
    const bootMillis = Date.now() - created;
    names.forEach((name, i) => assert(outputs[i]!.text().startsWith(`${name}\nuuid ${domains[i]!.uuid}\n`)));

    await one.pause();
    await one.pause();
    assert.equal(one.state, 'paused');
    const { instructionsRetired } = one.stats();
    const shownBefore = ticks(outputs[0]!.text());
    // The others go on; when they have said a few words more, the paused one has not run at all.
    const seen = outputs[1]!.text().length;
    await outputs[1]!.until(new RegExp(`^[^]{${seen}}[^]*tick [^]*tick [^]*tick `));
    assert.equal(one.stats().instructionsRetired, instructionsRetired);
    await one.unpause();
    const [last, length] = [shownBefore.at(-1)!, outputs[0]!.text().length];
    const since = Date.now();
    await outputs[0]!.until(new RegExp(`^[^]{${length}}[^]*tick [^]*tick .*\n`));
    // As on Xen, time goes on while a domain is paused: no clock goes back, and the two of the guest agree.
    const all = ticks(outputs[0]!.text());
    for (let i = 1; i < all.length; i++) assert(all[i]!.up >= all[i - 1]!.up && all[i]!.unix >= all[i - 1]!.unix);
    const now = all.at(-1)!;
    const unixPassed = now.unix - last.unix;
    assert(unixPassed >= now.up - last.later - 1 && unixPassed <= now.later - last.up + 1, JSON.stringify([last, now]));
    assertTime(now.unix, since, bootMillis);
  });
  for (const domain of domains) domain.exec!.input.write('stop\n');
  for (const [i, domain] of domains.entries()) {
    assert.equal((await domain.exec!.result).status, 0);
    assert.equal(await domain.waitForShutdown(), 'poweroff');
    assert(outputs[i]!.text().endsWith('\nstopped\n'));
    await domain.destroy();
  }
  assert.deepEqual(await eventTypes(one), ['started', 'paused', 'unpaused', 'poweroff', 'destroyed']);
  assert.deepEqual(host.domains(), []);
  assert.deepEqual((await host.audit()).problems, []);
});

test('guests asked over the store to power off or reboot do so; a panic ends with its words', async () => {
  /** Why the guest went, and what the host has to say of the command that went with it. */
  const lifeOf = async (exec: string, request?: 'poweroff' | 'reboot'): Promise<[string, string]> => {
    const domain = await host.create({ memory: '192MiB', cmdline: FAST_BOOT, exec });
    domain.exec!.output.resume();
    return limited(domain, async () => {
      await domain.exec!.started;
      if (request !== undefined) await domain.shutdown({ reason: request });
      const reason = await domain.waitForShutdown();
      assert.deepEqual([domain.state, domain.shutdownReason], ['shutdown', reason]);
      const error = await domain.exec!.result.then(() => assert.fail('the command cannot have ended'), (thrown) => thrown);
      assert.equal(error.code, 'ZAZEN_EXEC_LOST');
      await domain.destroy();
      return [reason, error.message];
    });
  };
  const [poweroff, reboot, itself, panic] = await Promise.all([
    lifeOf('sleep 100000', 'poweroff'), lifeOf('sleep 100000', 'reboot'), lifeOf('reboot -f'),
    lifeOf('echo c >/proc/sysrq-trigger'),
  ]);
  assert.deepEqual([poweroff, reboot, itself].map(([reason]) => reason), ['poweroff', 'reboot', 'reboot']);
  // Linux tells Xen of a panic on x86 only; here it reboots, as the command line asks it to.
  assert.equal(panic[0], 'reboot');
  assert.match(panic[1], /the guest stopped before the command ended.*Kernel panic - not syncing: sysrq triggered crash/);
});

test('a domain is destroyed while it boots, and while it is busy', async () => {
  const booting = await host.create({ memory: '192MiB', vcpus: 2 });
  await limited(booting, () => collect(booting.console).until('Linux version'));
  await booting.destroy();
  assert.equal(booting.state, 'destroyed');
  assert.equal(await booting.waitForShutdown(), 'destroyed');
  await booting.destroy();
  await assert.rejects(booting.pause(), { code: 'ZAZEN_DOMAIN_GONE' });

  const busy = await host.create({ memory: '192MiB', vcpus: 2, cmdline: FAST_BOOT, exec: 'yes & yes >/dev/null' });
  await limited(busy, () => collect(busy.exec!.output).until('y\ny\ny\n'));
  await busy.destroy();
  await assert.rejects(busy.exec!.result, { code: 'ZAZEN_EXEC_LOST' });
  assert.deepEqual(await eventTypes(busy), ['started', 'destroyed']);
  assert.deepEqual((await host.audit()).problems, []);
});

test('a closed host leaves no worker behind: the process ends by itself', () => {
  const index = JSON.stringify(join(import.meta.dirname, '../../src/host/index.ts'));
  const script = `import { Host } from ${index};
    const host = await Host.start({ pcpus: 2, memory: '512MiB' });
    const domain = await host.create({ memory: '128MiB' });
    domain.console.once('data', async () => {
      await host.close();
      await host.close();
      console.log(domain.state, await host.create().catch((error) => error.code));
    });`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', script], {
    encoding: 'utf8', timeout: PATIENCE_MILLIS,
  });
  assert.deepEqual({ status, stdout, stderr }, { status: 0, stdout: 'destroyed ZAZEN_HOST_CLOSED\n', stderr: '' });
});
