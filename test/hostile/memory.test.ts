// More memory is wanted than the host has: the guest that wants it stops and says so, everybody else lives on.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { ERRNO, XENVER, multicallEntry } from '../../src/abi/xen.ts';
import type { Domain, DomainEvent } from '../../src/host/index.ts';
import { DATA, FREE, fresh, hypercall, powerOff } from '../bare-metal.ts';
import { until, whileGoingOn } from '../waiting.ts';
import { Arena } from './arena.ts';

/** Nearly all of it are the host's own records; see `Host.stats`. */
const HOST_MEMORY = '320MiB';
const GUEST_BYTES = 120 * 2 ** 20;
const GUEST_PAGES = (GUEST_BYTES - 16 * 2 ** 20) / 4096;

let arena: Arena;
before(async () => { arena = await Arena.open(HOST_MEMORY); });
after(() => arena.close());

/** Writes a word into each page, checks all of them and powers off; does not power off if one is wrong. */
function touchAll(a: Assembler): void {
  const [write, read, wrong] = ['write', 'read', 'wrong'].map(fresh) as [string, string, string];
  const pages = (label: string) => a.mov(1, FREE).mov(2, GUEST_PAGES).mov(5, 0x1234_5678_9abcn).label(label).eorReg(3, 1, 5);
  const next = (label: string) => a.add(1, 1, 4095).add(1, 1, 1).subs(2, 2, 1).bCond('ne', label);
  pages(write).str(3, 1);
  next(write);
  pages(read).ldr(4, 1).emit('SUBS (register)', { sf: 1, Rm: 4, Rn: 3, Rd: 31 }).bCond('ne', wrong);
  next(read);
  powerOff(a);
  a.label(wrong).b(wrong);
}

/**
 * Has the hypervisor write into each page: the answers of a multicall, whose two entries lie on both sides of the page's end,
 * and a text. Does not power off if a call has failed or an answer is missing.
 */
function touchAllByHypercalls(a: Assembler): void {
  const [pages, wrong] = ['pages', 'wrong'].map(fresh) as [string, string];
  const isZero = (register: number): Assembler => a.cbnz(register, wrong);
  a.mov(20, FREE).mov(21, GUEST_PAGES).label(pages).add(22, 20, 4096 - multicallEntry.sizeBytes);
  a.movReg(0, 22).mov(1, 2);
  hypercall(a, 'multicall');
  isZero(0);
  for (const entry of [0, multicallEntry.sizeBytes]) {
    // There is no call of number 0.
    a.ldr(2, 22, entry + multicallEntry.at.result).add(2, 2, ERRNO.ENOSYS);
    isZero(2);
  }
  a.mov(0, XENVER.extraversion).add(1, 20, 2048);
  hypercall(a, 'xen_version');
  isZero(0);
  a.ldr(2, 20, 2048, 'B').sub(2, 2, '.'.charCodeAt(0)).cbnz(2, wrong);
  a.add(20, 20, 4095).add(20, 20, 1).subs(21, 21, 1).bCond('ne', pages);
  powerOff(a);
  a.label(wrong).b(wrong);
}

/** Both fit before they have touched anything; only one does in the end. */
async function startTwo(code = touchAll): Promise<[Domain, Domain]> {
  const spec = { memory: GUEST_BYTES, paused: true };
  const pair: [Domain, Domain] = [await arena.start({ code }, spec), await arena.start({ code }, spec)];
  for (const guest of pair) await guest.unpause();
  return pair;
}

async function eventsOf(domain: Domain, count: number): Promise<DomainEvent['type'][]> {
  const types: DomainEvent['type'][] = [];
  for await (const event of domain.events()) if (types.push(event.type) === count) break;
  return types;
}

for (const [what, code] of [['they', touchAll], ['their hypercalls', touchAllByHypercalls]] as const) {
  test(`guests take more memory than there is: ${what} stall, and go on when there is memory again`, () => stallAndGoOn(code));
}

async function stallAndGoOn(code: typeof touchAll): Promise<void> {
  const free = () => arena.host.stats().freeBytes;
  // The frames of earlier guests are given back little by little.
  await until(`there is room for a guest of ${GUEST_BYTES} bytes`, () => free() > GUEST_BYTES);
  assert.ok(free() < 2 * GUEST_BYTES, `the host has ${free()} bytes for guests`);
  const [first, second] = await startTwo(code);
  await until('one has stalled', () => first.state === 'paused' || second.state === 'paused');
  await until('the other is through, or has stalled too', () => first.state !== 'running' && second.state !== 'running');
  const stalled = [first, second].filter(domain => domain.state === 'paused');
  const [hungry] = stalled;
  assert.ok(hungry !== undefined);
  assert.deepEqual(await eventsOf(hungry, 4), ['started', 'paused', 'unpaused', 'stalled']);
  await arena.audit();

  // Without more memory it does not get further.
  const { instructionsRetired } = hungry.stats();
  await hungry.unpause();
  await until('it has stalled again', () => hungry.state === 'paused');
  assert.deepEqual(await eventsOf(hungry, 6), ['started', 'paused', 'unpaused', 'stalled', 'unpaused', 'stalled']);
  assert.ok(hungry.stats().instructionsRetired < instructionsRetired + 10_000);
  await arena.audit();

  // A domain that is paused when it stalls, or stalled when it is paused, is paused once.
  await hungry.pause();
  assert.equal(hungry.state, 'paused');

  const other = hungry === first ? second : first;
  await arena.survive(other);
  assert.equal(await whileGoingOn([hungry], () => hungry.waitForShutdown()), 'poweroff');
  await arena.survive(hungry);
}

test('a stalled guest is destroyed, and its memory is there for the next', async () => {
  for (let round = 0; round < 3; round++) {
    const guests = await startTwo();
    await until('one has stalled', () => guests.some(guest => guest.state === 'paused'));
    // No pause between: what is being given back must not be missed.
    for (const guest of guests) await guest.destroy();
    await arena.runToEnd({ code: touchAll }, { memory: GUEST_BYTES });
  }
});

test('several vCPUs stall at once', async () => {
  const code = (a: Assembler): void => {
    a.adr(2, 'second').mov(0, 0xc400_0003).mov(1, 1).mov(3, 0).hvc(0);
    a.label('second');
    touchAll(a);
  };
  const spec = { memory: GUEST_BYTES, paused: true };
  const first = await arena.start({ code: touchAll }, spec);
  const second = await arena.start({ code }, { ...spec, vcpus: 2 });
  await first.unpause();
  assert.equal(await first.waitForShutdown(), 'poweroff');
  await second.unpause();
  await until('it has stalled', () => second.state === 'paused');
  assert.deepEqual(await eventsOf(second, 4), ['started', 'paused', 'unpaused', 'stalled']);
  await first.destroy();
  assert.equal(await whileGoingOn([second], () => second.waitForShutdown()), 'poweroff');
  await arena.survive(second);
});

test('hypercalls when no frame is left are refused', async () => {
  const spec = { memory: GUEST_BYTES, paused: true };
  const calls = 4000;
  const greedy = await arena.start({ data: new Uint8Array(4096).fill(0xff), code: a => {
    a.mov(19, DATA);
    for (let round = 0; round < calls / 5; round++) {
      // EVTCHNOP_alloc_unbound, for the host.
      a.mov(2, 0x7ff0).str(2, 19, 0, 'W').mov(0, 6).movReg(1, 19);
      hypercall(a, 'event_channel_op');
      // GNTTABOP_setup_table, with its list in memory that was never written.
      a.mov(2, 0x7ff0 + round % 64 * 2 ** 32).str(2, 19).mov(2, FREE + 4096 * round).str(2, 19, 16);
      a.mov(0, 2).movReg(1, 19).mov(2, 1);
      hypercall(a, 'grant_table_op');
      // XENMEM_add_to_physmap of a grant frame, each time where the p2m has no node yet.
      a.mov(2, 0x1_7ff0).str(2, 19).mov(2, round % 64).str(2, 19, 8).mov(2, 0x100_0000 + round * 512).str(2, 19, 16);
      a.mov(0, 7).movReg(1, 19);
      hypercall(a, 'memory_op');
      // XENVER_extraversion and get_runstate_info, to memory that was never written.
      a.mov(0, 1).mov(1, FREE + 4096 * round);
      hypercall(a, 'xen_version');
      a.mov(0, 4).mov(1, 0).mov(2, FREE + 4096 * round);
      hypercall(a, 'vcpu_op');
    }
    powerOff(a);
  } }, spec);
  const first = await arena.start({ code: touchAll }, spec);
  const second = await arena.start({ code: touchAll }, spec);
  await first.unpause();
  await second.unpause();
  await until('the host is full', () => first.state === 'paused' || second.state === 'paused');
  await greedy.unpause();
  await until('all calls are made', () => greedy.stats().hypercalls >= calls || greedy.state !== 'running');
  await arena.audit();
  for (const guest of [greedy, first, second]) await arena.survive(guest);
});

test('a guest that could never fit is refused, and nothing is lost', async () => {
  const earlier = arena.host.stats();
  for (const memory of ['240MiB', '1GiB', '100GiB']) {
    await assert.rejects(arena.start({}, { memory }), { name: 'ZazenError' });
  }
  await arena.audit();
  await until('all is given back', () => arena.host.stats().freeBytes >= earlier.freeBytes);
  assert.equal(arena.host.stats().domains, earlier.domains);
});
