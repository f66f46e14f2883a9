// Guests built from one file share its frames until they write to them. Here they all write to all of them, side by
// side, and each sees what it should: the file as it was, then its own words.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import type { Domain } from '../../src/host/index.ts';
import { BASE, DATA, FREE, bareMetalImage, fresh, powerOff, repeat } from '../bare-metal.ts';
import { until } from '../waiting.ts';
import { Arena } from './arena.ts';

const PAGES = 700;
const PAGE_BYTES = 4096;
const ROUNDS = 20;
const ORIGINAL = 0x1234_5678_9abcn;
const WRITTEN = 0xfeed_0000_1111n;
/** In the page of the first instruction and of the vectors. */
const IN_CODE_PAGE = BASE + 0x100;
const RESIDENT_MAX_BYTES = 128 * 1024;

/** All of it is taken once. */
const HOST_MEMORY = '512MiB';

let arena: Arena;
before(async () => { arena = await Arena.open(HOST_MEMORY); });
after(() => arena.close());

/** A word at the start of each page, made of its address. */
function data(): Uint8Array {
  const bytes = new Uint8Array(PAGES * PAGE_BYTES);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += PAGE_BYTES) view.setBigUint64(at, BigInt(DATA + at) ^ ORIGINAL, true);
  return bytes;
}

/** For x1 = the address of each page and x3 = what it should hold. */
function forEachPage(a: Assembler, pattern: bigint, body: () => void): void {
  const again = fresh('page');
  a.mov(1, DATA).mov(2, PAGES).mov(5, pattern).label(again).eorReg(3, 1, 5);
  body();
  a.add(1, 1, PAGE_BYTES - 1).add(1, 1, 1).subs(2, 2, 1).bCond('ne', again);
}

/** Powers off if all was as it should be. */
function checkAndScribble(a: Assembler): void {
  const differs = (): Assembler => a.emit('SUBS (register)', { sf: 1, Rm: 4, Rn: 3, Rd: 31 }).bCond('ne', 'wrong');
  const check = (pattern: bigint): void => forEachPage(a, pattern, () => { a.ldr(4, 1); differs(); });
  a.mov(6, IN_CODE_PAGE).mov(3, WRITTEN).ldr(4, 6).emit('SUBS (register)', { sf: 1, Rm: 4, Rn: 3, Rd: 31 });
  a.bCond('eq', 'wrong');
  repeat(a, ROUNDS, () => check(ORIGINAL));
  a.mov(3, WRITTEN).str(3, 6).ldr(4, 6);
  differs();
  forEachPage(a, WRITTEN, () => { a.str(3, 1); });
  repeat(a, ROUNDS, () => check(WRITTEN));
  powerOff(a);
  a.label('wrong').b('wrong');
}

async function runToEnd(guests: readonly Domain[]): Promise<void> {
  for (const guest of guests) await guest.unpause();
  await until('all have seen what they should', () => guests.every((guest) => guest.state === 'shutdown'));
  for (const guest of guests) assert.equal(guest.shutdownReason, 'poweroff');
}

test('ten guests of one kernel take next to nothing, scribble over all of it, and disturb nobody', async () => {
  const kernel = arena.file(bareMetalImage({ code: checkAndScribble, data: data() }));
  const { cachedBytes } = arena.host.stats();
  const create = (): Promise<Domain> => arena.host.create({ kernel, initrd: 'none', memory: '40MiB', paused: true });
  const guests = await Promise.all(Array.from({ length: 10 }, create));
  for (const guest of guests) assert.ok(guest.stats().residentBytes <= RESIDENT_MAX_BYTES);
  const grown = arena.host.stats().cachedBytes - cachedBytes;
  assert.ok(grown >= PAGES * PAGE_BYTES && grown < 1.1 * PAGES * PAGE_BYTES, `${grown} bytes for one image`);
  await arena.audit();

  // Some at the same time, one after them that was there all along, and one that comes later.
  const last = guests.pop()!;
  await runToEnd(guests);
  await runToEnd([last]);
  await runToEnd([await create()]);
  assert.equal(arena.host.stats().cachedBytes - cachedBytes, grown);
  for (const guest of arena.host.domains()) if (guest.name !== 'witness') await arena.survive(guest);
});

test('guests that take all memory get that of images as well', async () => {
  const kernel = arena.file(bareMetalImage({ code: checkAndScribble, data: data() }));
  const user = await arena.host.create({ kernel, initrd: 'none', memory: '40MiB', paused: true });
  const { freeBytes, cachedBytes } = arena.host.stats();
  assert.ok(cachedBytes > PAGES * PAGE_BYTES);
  // Each may have so much, but not both.
  const memory = Math.floor(0.7 * freeBytes / 2 ** 20) * 2 ** 20;
  const takeAll = (a: Assembler): void => {
    a.mov(1, FREE).mov(2, (memory - 2 ** 23) / PAGE_BYTES).label('next').str(1, 1);
    a.add(1, 1, PAGE_BYTES - 1).add(1, 1, 1).subs(2, 2, 1).bCond('ne', 'next');
    powerOff(a);
  };
  const one = await arena.start({ code: takeAll }, { memory });
  const other = await arena.start({ code: takeAll }, { memory });
  await until('the host is full', () => one.state === 'paused' || other.state === 'paused');
  assert.equal(arena.host.stats().cachedBytes, 0);
  await arena.audit();
  for (const guest of [one, other]) await guest.destroy();
  // What it shares with nobody now is still the file.
  await runToEnd([user]);
  await arena.survive(user);
});
