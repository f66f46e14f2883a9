// A domain whose memory is still on its way: it is there, and is let go when it can run, unless somebody has said otherwise.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { DOMAIN } from '../abi/domain-record.ts';
import { HeldCheckpoint } from './checkpoint.ts';
import { loadCheckpoint } from './image-files.ts';
import type { Domain } from './types.ts';
import { smallMachine } from './warm-up.ts';

test('a guest is not made of an image before a pCPU can run it: its time would go on', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'zazen-'));
  t.after(() => rm(folder, { recursive: true }));
  const { core, domain } = smallMachine();
  const path = join(folder, 'small.core');
  await domain.save(path);
  const order: string[] = [];
  Object.defineProperty(core, 'firstPcpuRuns', { get: async () => {
    await new Promise(setImmediate);
    order.push('runs');
  } });
  const { parts, done } = await loadCheckpoint(core, path, {});
  order.push('loaded');
  const checkpoint = new HeldCheckpoint(core, parts);
  done();
  await checkpoint.destroy();
  assert.deepEqual(order, ['runs', 'loaded']);
  await domain.destroy();
  await core.close();
});

test('a restored domain is let go when its memory is there, once, and not if it was paused or destroyed meanwhile', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'zazen-'));
  t.after(() => rm(folder, { recursive: true }));
  const { core, domain } = smallMachine();
  const path = join(folder, 'small.core');
  await domain.save(path);
  const pauses = ({ id }: Domain): number => core.thread.hypercalls.domains.record(id).get(DOMAIN.at.pauseCount);
  const restore = async (act: (domain: Domain) => Promise<unknown> | undefined): Promise<[string, number, string[]]> => {
    const { parts, done } = await loadCheckpoint(core, path, {});
    const memory = Promise.withResolvers<void>();
    await using checkpoint = new HeldCheckpoint(core, { ...parts, memoryReady: memory.promise });
    done();
    const forking = checkpoint.fork();
    const restored = [...core.domains.values()].find((one) => one !== domain)!;
    const events: string[] = [];
    const heard = (async () => { for await (const { type } of restored.events()) events.push(type); })();
    assert.deepEqual([restored.state, pauses(restored)], ['paused', 1]);
    await act(restored);
    memory.resolve();
    assert.deepEqual(await forking, [restored]);
    const found: [string, number] = [restored.state, pauses(restored)];
    await restored.destroy();
    await heard;
    return [...found, events];
  };
  assert.deepEqual(await restore(() => undefined), ['running', 0, ['started', 'destroyed']]);
  assert.deepEqual(await restore((one) => one.pause()), ['paused', 1, ['started', 'paused', 'destroyed']]);
  assert.deepEqual(await restore((one) => one.unpause()), ['running', 0, ['started', 'unpaused', 'destroyed']]);
  assert.deepEqual(await restore(async (one) => { await one.pause(); await one.unpause(); }),
    ['running', 0, ['started', 'paused', 'unpaused', 'destroyed']]);
  const [state, , events] = await restore((one) => one.destroy());
  assert.deepEqual([state, events], ['destroyed', ['started', 'destroyed']]);
  assert.deepEqual(core.audit().problems, []);
  await domain.destroy();
  await core.close();
});
