// What checkpoints, forks and rollbacks are to those who ask for them: who the domains are, what each of them knows,
// and what is refused. That nothing is lost on the way is shown by stress.test.ts.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import type { Checkpoint, Domain } from '../../src/host/index.ts';
import { assertTime, FAST_BOOT, limited, testHost } from './guests.ts';
import { Shell, SHELL } from './shell.ts';

const host = await testHost({ memory: '1GiB' });
const spec = { memory: '128MiB', cmdline: FAST_BOOT };

/** With the shell at its console; each test's origin is a fork of it. */
let booted: Checkpoint;
let createdMillis: number;
before(async () => {
  createdMillis = Date.now();
  const domain = await host.create({ ...spec, exec: SHELL });
  domain.exec!.output.resume();
  await limited(domain, async () => {
    await domain.exec!.started;
    await new Shell(domain, 'first').ask('true');
    booted = await domain.checkpoint();
  });
  await domain.destroy();
});
async function bootOrigin(name?: string): Promise<Domain> {
  const [origin] = await booted.fork([name === undefined ? {} : { name }]);
  return origin!;
}

test('forks have an identity of their own and go their own ways; forks of forks, and rollback while they live', async () => {
  const origin = await bootOrigin('origin');
  await limited(origin, async () => {
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

    // The clocks: the time of day was the host's when the first of them was made, and has gone on as the guest's own time has.
    const [now, uptime] = (await third.ask('date +%s; cat /proc/uptime')).split(/\s/).map(Number) as [number, number];
    assertTime(now, createdMillis + 1000 * uptime);

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
  const origin = await bootOrigin();
  const stranger = await host.create({ ...spec, paused: true });
  await limited(origin, async () => {
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
  const origin = await bootOrigin();
  await limited(origin, async () => {
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
