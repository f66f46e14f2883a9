// The verbs of a domain's life, run in advance on a machine of its own that nobody sees: V8 reads a function when it is
// first called and compiles it when it has been called often, so that the first rollback of a process would cost forty
// times what the hundredth does. It happens in the main thread, in turns of a few milliseconds, and keeps no process
// from ending; at two times in its life:
//
//   the first host settles     some rounds: its first guest has booted, and does not wait for this thread's core any more
//   the first checkpoint       as many as V8 wants to have seen before it optimises (400 calls, for most functions),
//   that somebody asks for     which takes its compilers longer than they have time for in a boot

import { DOMAIN } from '../abi/domain-record.ts';
import { GUEST_RAM0_BASE } from '../abi/xen.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { systemClock } from '../base/clock.ts';
import { assert } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import { SeededRandom } from '../base/random.ts';
import { HostedDomain } from './domain.ts';
import { HostCore } from './host-core.ts';
import type { Domain } from './types.ts';

/** Reserved, not used: the tables of a machine of any size and a few frames. */
const MACHINE_BYTES = 256 * 2 ** 20;
const RAM_GFN = GUEST_RAM0_BASE / FRAME_BYTES;
const RAM_PAGES = 2048;
/** Pages that are written between checkpoint and rollback, in several nodes of the p2m. */
const DIRTIED_PAGES = 40;
const PAGE_STRIDE = RAM_PAGES / DIRTIED_PAGES;
export const FEW = { rounds: 16, roundsPerTurn: 1 } as const;
export const MANY = { rounds: 400, roundsPerTurn: 4 } as const;
/** Forks cost ten times a rollback, and what they do besides is not as urgent. */
const ROUNDS_WITH_FORK = 4;
const DELAY_AFTER_CHECKPOINT_MILLIS = 20;
const PAUSE_MILLIS = 5;
const UUID = '00000000-0000-4000-8000-000000000000';

let isWarm = false;
let isHot = false;
let underWay = 0;

/** Something is being run in advance, or will be at once. */
export const isWarmingUp = (): boolean => underWay > 0;

/** Soon, unless it was done before. */
export function warmUpLater(): void {
  if (isWarm || isHot) return;
  isWarm = true;
  warmUpAfter(0, FEW);
}

/** Somebody takes checkpoints: soon, unless it was done before. */
export function warmUpForCheckpoints(): void {
  if (isHot) return;
  isHot = true;
  warmUpAfter(DELAY_AFTER_CHECKPOINT_MILLIS, MANY);
}

function warmUpAfter(millis: number, howOften: typeof FEW | typeof MANY): void {
  underWay++;
  // A process that may not reserve the memory does without.
  pause(millis).then(() => warmUp(howOften)).catch((error: unknown) => {
    if (!(error instanceof ZazenError)) throw error;
  }).finally(() => { underWay--; });
}

const pause = (millis: number): Promise<void> => new Promise(resolve => { setTimeout(resolve, millis).unref(); });

/** Here and now; nothing is left of it. */
export async function warmUp({ rounds, roundsPerTurn }: typeof FEW | typeof MANY): Promise<void> {
  const { core, domain } = smallMachine();
  for (let round = 0; round < rounds; round++) {
    if (round % roundsPerTurn === 0) await pause(PAUSE_MILLIS);
    await oneRound(core, domain, round < ROUNDS_WITH_FORK);
  }
  await domain.destroy();
  await core.close();
}

/** Without pCPUs, and a domain in it. */
export function smallMachine(): { core: HostCore; domain: Domain } {
  const core = new HostCore({
    memoryBytes: MACHINE_BYTES, pcpus: 1, clock: systemClock, random: new SeededRandom(1), log: () => {},
  });
  core.makeHosted = parts => new HostedDomain(core, parts);
  return { core, domain: build(core) };
}

/** A paused domain with some memory, and a vCPU that never runs. */
function build(core: HostCore): Domain {
  const { thread, builder } = core;
  const vcpuAddresses = core.takeVcpus(1)!;
  const ends = builder.createDomain({ vcpuAddresses, handle: new Uint8Array(16), maxPages: 2 * RAM_PAGES });
  assert(ends !== undefined && builder.addRam(ends.domain, RAM_GFN, RAM_PAGES), 'the machine is large enough');
  const { domain } = ends;
  thread.gic.resetDomain(domain.domid, vcpuAddresses);
  for (const address of vcpuAddresses) thread.scheduling.attach(address);
  thread.timers.setTime(domain.domid, 0);
  const identity = { name: 'warm-up', uuid: UUID, memoryBytes: RAM_PAGES * FRAME_BYTES, vcpus: 1 };
  const hosted = core.makeHosted({ identity, ends, vcpuAddresses, family: { image: undefined } });
  core.domains.set(domain.domid, hosted);
  hosted.start(true);
  return hosted;
}

async function oneRound(core: HostCore, domain: Domain, withFork: boolean): Promise<void> {
  await using checkpoint = await domain.checkpoint();
  dirty(core, domain.id);
  await domain.rollback(checkpoint);
  if (withFork) for (const fork of await checkpoint.fork([{ paused: true }])) await fork.destroy();
  core.thread.heap.tearDown.finish();
}

/** As a guest would. */
function dirty({ thread }: HostCore, domid: number): void {
  const root = thread.hypercalls.domains.record(domid).get(DOMAIN.at.p2mRoot);
  for (let page = 0; page < RAM_PAGES; page += PAGE_STRIDE) {
    assert(thread.p2m.frameForWrite(root, RAM_GFN + Math.floor(page)) > 0, 'the machine is large enough');
  }
  thread.p2m.releaseStale();
}
