// Guests that write nonsense into the pages that they share with the store and the console, ask the store for more
// than anybody should have, and flood their console. Seeds are in the tests' names. ZAZEN_FUZZ_ROUNDS: more of what it asks for.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { XENCONS_INTERFACE, XENCONS_OUT_BYTES } from '../../src/abi/xen-console.ts';
import { GUEST_CONSOLE_GFN, GUEST_XENSTORE_GFN, SCHEDOP } from '../../src/abi/xen.ts';
import { XENSTORE_DOMAIN_INTERFACE, XENSTORE_PAYLOAD_MAX, XENSTORE_RECONNECT, XENSTORE_RING_SIZE, XS_TYPE } from '../../src/abi/xenstore-wire.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { DATA, FREE, forEachRow, forever, fresh, hypercall, powerOff, repeat } from '../bare-metal.ts';
import { until } from '../waiting.ts';
import { Arena } from './arena.ts';

let arena: Arena;
before(async () => { arena = await Arena.open(); });
after(() => arena.close());

/** Of 20,000 each. Every few dozen of them wait for the host's thread, which on a busy machine takes its time. */
const WATCH_ROUNDS = Number(process.env['ZAZEN_FUZZ_ROUNDS'] ?? 4);

const STORE_PAGE = GUEST_XENSTORE_GFN * 4096;
const CONSOLE_PAGE = GUEST_CONSOLE_GFN * 4096;
/** In the order in which DomainBuilder makes them. */
const STORE_PORT = 1;
const CONSOLE_PORT = 2;
const EVTCHNOP_SEND = 4;
const store = XENSTORE_DOMAIN_INTERFACE.at;
const cons = XENCONS_INTERFACE.at;

function notify(a: Assembler, port: number): void {
  a.mov(1, FREE).mov(2, port).str(2, 1, 0, 'W').mov(0, EVTCHNOP_SEND);
  hypercall(a, 'event_channel_op');
}
function giveWay(a: Assembler): void {
  a.mov(0, SCHEDOP.yield);
  hypercall(a, 'sched_op');
}

/** Asks for a clean start and waits for it. */
function reconnect(a: Assembler): void {
  const wait = fresh('wait');
  a.mov(3, XENSTORE_RECONNECT).str(3, 19, store.connection, 'W').dsb();
  notify(a, STORE_PORT);
  a.label(wait);
  giveWay(a);
  a.ldr(3, 19, store.connection, 'W').cbnz(3, wait);
}

/** Sends the bytes at DATA through the ring, throws away all answers, and connects again whenever it was cut off. */
function sendStream(a: Assembler, sizeBytes: number): void {
  const [again, full, go, sound, done] = ['again', 'full', 'go', 'sound', 'done'].map(fresh) as [string, string, string, string, string];
  a.mov(19, STORE_PAGE).mov(10, DATA).mov(11, sizeBytes).b(again).label(full);
  notify(a, STORE_PORT);
  giveWay(a);
  a.label(again).ldr(3, 19, store.rsp_prod, 'W').str(3, 19, store.rsp_cons, 'W');
  a.ldr(3, 19, store.error, 'W').cbz(3, sound);
  reconnect(a);
  a.label(sound).ldr(4, 19, store.req_prod, 'W').ldr(5, 19, store.req_cons, 'W').add(5, 5, XENSTORE_RING_SIZE);
  a.emit('SUBS (register)', { sf: 0, Rm: 4, Rn: 5, Rd: 31 }).bCond('ne', go).b(full);
  a.label(go).cbz(11, done).emit('UBFM', { sf: 1, N: 1, immr: 0, imms: 9, Rn: 4, Rd: 6 }).addReg(6, 6, 19);
  a.ldr(7, 10, 0, 'B').str(7, 6, 0, 'B').add(10, 10, 1).sub(11, 11, 1);
  a.add(4, 4, 1).dsb().str(4, 19, store.req_prod, 'W').b(again);
  a.label(done);
}

/** A request that has an answer, whatever was before; returns when the answer is there. */
function provesAlive(a: Assembler): void {
  const wait = fresh('wait');
  a.mov(19, STORE_PAGE);
  reconnect(a);
  const header = [XS_TYPE.READ, 1, 0, 6];
  const words = [...header, 0x696d_6f64, 0x0000_0064];
  words.forEach((word, index) => a.mov(3, word).str(3, 19, 4 * index, 'W'));
  a.mov(3, 22).str(3, 19, store.req_prod, 'W').dsb();
  notify(a, STORE_PORT);
  a.label(wait);
  giveWay(a);
  a.ldr(3, 19, store.rsp_prod, 'W').cmp(3, 17).bCond('cc', wait);
}

function message(type: number, payload: string | Uint8Array, transaction = 0, sizeBytes?: number): Buffer {
  const body = typeof payload === 'string' ? Buffer.from(payload, 'latin1') : Buffer.from(payload);
  const header = Buffer.alloc(16);
  [type, 7, transaction, sizeBytes ?? body.length].forEach((value, index) => header.writeUInt32LE(value >>> 0, 4 * index));
  return Buffer.concat([header, body]);
}

async function stream(bytes: Buffer, times = 1): Promise<void> {
  assert.ok(bytes.length <= FREE - DATA);
  await arena.runToEnd({ data: bytes, code: a => {
    repeat(a, times, () => sendStream(a, bytes.length));
    provesAlive(a);
    powerOff(a);
  } });
}

for (const seed of [41, 42]) {
  test(`random bytes in the store's ring, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    await stream(Buffer.from(Array.from({ length: 30_000 }, () => dice.below(256))));
  });

  test(`random requests to the store, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    const texts = ['domid', 'name', '/', '//', '/local/domain/0', 'control/shutdown', '@introduceDomain', 'a/b/../c', '',
      '/local/domain/1/name', 'device', 'x'.repeat(300), '1', '0', 'T', 'F', 'n0', 'r1', 'b', '\xff\x80', '-1', '4294967296'];
    await stream(Buffer.concat(Array.from({ length: 1500 }, () => {
      const parts = Array.from({ length: dice.below(4) }, () => dice.pick(texts));
      const payload = parts.join('\0') + dice.pick(['', '\0', '\0\0']);
      const length = dice.below(40) === 0 ? dice.u32() : undefined;
      return message(dice.below(20) === 0 ? dice.u32() : dice.below(28), payload, dice.pick([0, 0, 1, 2, 3, dice.u32()]), length);
    })));
  });

  test(`nonsense in the fields of the store's page, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    const rows = 1000;
    const words = Uint32Array.from({ length: rows * 8 }, () => dice.pick([dice.u32(), dice.below(2000), 0, 1, 0xffff_ffff]));
    await arena.runToEnd({ data: new Uint8Array(words.buffer), code: a => {
      a.mov(19, STORE_PAGE);
      forEachRow(a, rows, 32, () => {
        for (let field = 0; field < 7; field++) a.ldr(3, 20, 4 * field, 'W').str(3, 19, store.req_cons + 4 * field, 'W');
        notify(a, STORE_PORT);
        giveWay(a);
      });
      a.mov(3, 0).str(3, 19, store.connection, 'W');
      provesAlive(a);
      powerOff(a);
    } });
  });
}

test('a message that never ends', async () => {
  await stream(Buffer.concat([message(XS_TYPE.WRITE, 'a\0b', 0, XENSTORE_PAYLOAD_MAX), Buffer.alloc(100)]));
  await stream(Buffer.concat(Array.from({ length: 30 }, () => message(XS_TYPE.WRITE, '', 0, 0xffff_ffff))));
});

test('watches without number', async () => {
  await stream(Buffer.concat(Array.from({ length: 20_000 }, (_, index) =>
    message(XS_TYPE.WATCH, `data/${index % 50}\0token${index}\0`))), WATCH_ROUNDS);
});

test('nodes without number, deep paths, large values, many transactions at once', async () => {
  const deep = (levels: number) => Array.from({ length: levels }, () => 'd').join('/');
  await stream(Buffer.concat([
    ...Array.from({ length: 3000 }, (_, index) => message(XS_TYPE.MKDIR, `data/n${index}\0`)),
    ...Array.from({ length: 200 }, (_, index) => message(XS_TYPE.WRITE, `data/${deep(index * 5)}\0value`)),
    ...Array.from({ length: 100 }, (_, index) => message(XS_TYPE.WRITE, `data/v${index}\0${'v'.repeat(4000)}`)),
    ...Array.from({ length: 500 }, () => message(XS_TYPE.TRANSACTION_START, '\0')),
    ...Array.from({ length: 3000 }, (_, index) => message(XS_TYPE.WRITE, `data/t${index}\0x`, 1 + index % 10)),
    ...Array.from({ length: 10 }, (_, index) => message(XS_TYPE.TRANSACTION_END, 'T\0', 1 + index)),
  ]));
});

// ---- console

for (const seed of [43, 44]) {
  test(`nonsense in the indices of the console's ring, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    const rows = 2000;
    const words = Uint32Array.from({ length: rows * 4 }, () => dice.pick([dice.u32(), dice.below(4000), 0, 1, 0xffff_ffff]));
    const guest = await arena.start({ data: new Uint8Array(words.buffer), code: a => {
      a.mov(19, CONSOLE_PAGE);
      forEachRow(a, rows, 16, () => {
        for (let field = 0; field < 4; field++) a.ldr(3, 20, 4 * field, 'W').str(3, 19, cons.in_cons + 4 * field, 'W');
        notify(a, CONSOLE_PORT);
      });
      powerOff(a);
    } });
    guest.console.resume();
    guest.console.write('input for a guest that does not want it');
    assert.equal(await guest.waitForShutdown(), 'poweroff');
    await arena.survive(guest);
  });
}

/** Keeps the ring full for ever. */
const flood = { code: (a: Assembler) => {
  a.mov(19, CONSOLE_PAGE);
  forever(a, () => {
    a.ldr(3, 19, cons.out_cons, 'W').add(3, 3, XENCONS_OUT_BYTES).str(3, 19, cons.out_prod, 'W').dsb();
    notify(a, CONSOLE_PORT);
  });
} };

test('guests flood their consoles, and nobody reads', async () => {
  const guests = await Promise.all([1, 2, 3].map(() => arena.start(flood)));
  await until('much was written', () => guests.every(guest => guest.stats().consoleOutBytes > 500_000));
  for (const guest of guests) await arena.survive(guest);
});

test('a guest floods its console, and the reader reads fast', async () => {
  const guest = await arena.start(flood);
  let received = 0;
  guest.console.on('data', (bytes: Buffer) => { received += bytes.length; });
  await until('much has arrived', () => received > 2_000_000);
  await arena.survive(guest);
});

test('a guest floods its console, and the reader is slow: the guest waits, nothing piles up', async () => {
  const guest = await arena.start(flood);
  guest.console.read(0);
  await until('the stream is full', () => guest.console.readableLength > 0);
  for (let read = 0; read < 50; read++) {
    guest.console.read(10);
    const { instructionsRetired } = guest.stats();
    await until('the guest runs on', () => guest.stats().instructionsRetired > instructionsRetired);
    assert.ok(guest.console.readableLength < 2 ** 19, 'output piles up');
  }
  await arena.survive(guest);
});

test('a guest floods the emergency console', async () => {
  await arena.run({ code: a => {
    forever(a, () => {
      a.mov(0, 0).mov(1, 2048).mov(2, DATA);
      hypercall(a, 'console_io');
    });
  } }, 30_000);
});
