import assert from 'node:assert/strict';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { ConsoleBackend } from './backend.ts';
import { ConsoleRing } from './ring.ts';
import type { ConsoleOptions } from './backend.ts';
import { writeConsoleEntries } from './store-entries.ts';
import { TestFrontEnd } from './test-front-end.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);

function setUp(more: Partial<ConsoleOptions> = {}) {
  const guest = new TestFrontEnd();
  const backend = new ConsoleBackend({ transport: new ConsoleRing(() => guest.page), notify: () => void guest.notifications++, ...more });
  const says = (words: string) => {
    guest.print(words);
    backend.service();
  };
  return { guest, backend, says };
}

/** Reads `stream` until it has `length` characters. */
async function readText(stream: AsyncIterable<Buffer> & NodeJS.ReadableStream, length: number): Promise<string> {
  let words = '';
  while (words.length < length) {
    const chunk = stream.read() as Buffer | null;
    if (chunk === null) await once(stream, 'readable');
    else words += chunk.toString();
  }
  return words;
}

test('output reaches the reader, and the guest hears that there is room', async () => {
  const { guest, backend, says } = setUp();
  const { stream } = backend;
  says('hello ');
  says('world');
  assert.equal(await readText(stream, 11), 'hello world');
  assert.equal(guest.index('out_cons'), 11);
  assert.equal(guest.notifications, 2);
  backend.service();
  assert.equal(guest.notifications, 2, 'nothing moved, nothing to signal');
  says('!');
  assert.equal(await readText(stream, 1), '!');
  assert.deepEqual(backend.metrics, {
    outputBytes: 12, inputBytes: 0, notifications: 3, outputStalls: 0, inputStalls: 0, badIndices: 0, readers: 1,
  });
});

test('without a reader the guest never waits, and the last bytes are kept for one', async () => {
  const { guest, backend, says } = setUp({ historyBytes: 1000 });
  for (let i = 0; i < 10_000; i++) says(`line ${String(i).padStart(4, '0')}\n`);
  assert.equal(guest.index('out_cons'), 100_000);
  const words = await readText(backend.stream, 1000);
  assert.equal(words, Array.from({ length: 100 }, (_, i) => `line ${9900 + i}\n`).join(''));
  assert.equal(backend.metrics.readers, 1);
});

test('a slow reader makes the guest wait; nothing is lost', async () => {
  const { guest, backend } = setUp();
  const { stream } = backend;
  stream.read(0);
  let written = '';
  for (let i = 0; guest.index('out_prod') - guest.index('out_cons') < 2048; i++) {
    const line = `${i}-`.repeat(100);
    written += line.slice(0, guest.write(Buffer.from(line)));
    backend.service();
    assert.ok(written.length < 10 * stream.readableHighWaterMark, 'the guest must wait at some time');
  }
  assert.ok(backend.metrics.outputStalls > 0);
  assert.ok(stream.readableLength <= stream.readableHighWaterMark + 2048);
  const notifications = guest.notifications;
  assert.equal(await readText(stream, written.length), written);
  assert.ok(guest.notifications > notifications);
  assert.equal(guest.index('out_prod'), guest.index('out_cons'));
});

test('a reader that goes away no longer holds the guest up, and the next one starts with the history', async () => {
  const { guest, backend, says } = setUp();
  const { stream } = backend;
  stream.read(0);
  for (let i = 0; i < 100; i++) says('x'.repeat(2048));
  assert.notEqual(guest.index('out_prod'), guest.index('out_cons'));
  assert.equal(backend.metrics.outputStalls, 100 - stream.readableHighWaterMark / 2048);
  stream.destroy();
  await once(stream, 'close');
  assert.equal(guest.index('out_prod'), guest.index('out_cons'));
  says('after');
  assert.notEqual(backend.stream, stream);
  assert.equal(backend.stream, backend.stream);
  assert.match(await readText(backend.stream, 65_536), /x{65531}after$/);
});

test('several readers each see everything, once', async () => {
  const { backend, says } = setUp();
  says('before ');
  const first = backend.attach();
  let seen = '';
  let late: Promise<string> | undefined;
  first.on('data', (chunk: Buffer) => {
    seen += chunk.toString();
    // Begins to read while output is being handed out.
    if (seen.endsWith('now ')) late ??= readText(backend.attach(), 17);
    chunk.fill(0);
  });
  await turn();
  says('now ');
  await turn();
  const second = readText(backend.attach(), 17);
  says('after ');
  assert.equal(await second, 'before now after ');
  assert.equal(await late, 'before now after ');
  assert.equal(seen, 'before now after ');
});

test('input waits for the guest, and the writer for input', async () => {
  const { guest, backend } = setUp();
  const { stream } = backend;
  const sent = Array.from({ length: 100_000 }, (_, i) => String.fromCharCode(97 + (i % 26))).join('');
  let more = true;
  let at = 0;
  while (more) more = stream.write(sent.slice(at, at += 500));
  assert.equal(guest.index('in_prod'), 1024);
  assert.ok(at < sent.length, 'write never said wait');
  assert.ok(backend.metrics.inputStalls > 0);
  stream.end(sent.slice(at));
  let got = '';
  while (got.length < sent.length) {
    const before = guest.notifications;
    got += guest.read(700).toString();
    backend.service();
    await turn();
    assert.ok(guest.notifications > before || got.length + 1024 >= sent.length);
  }
  assert.equal(got, sent);
  assert.equal(backend.metrics.inputBytes, sent.length);
  // The writer is done; the reader is not.
  guest.print('bye');
  backend.service();
  assert.equal(await readText(stream, 3), 'bye');
});

test('what a destroyed stream had still to write is dropped, what others had is not', async () => {
  const { guest, backend } = setUp();
  const [gone, stays] = [backend.attach(), backend.attach()];
  gone.write(Buffer.alloc(2000, 'a'));
  stays.write('b');
  gone.destroy();
  await once(gone, 'close');
  assert.equal(guest.read().toString(), 'a'.repeat(1024));
  backend.service();
  assert.equal(guest.read().toString(), 'b');
});

test('a reader may answer from its callback', async () => {
  const { guest, backend, says } = setUp();
  backend.stream.on('data', (chunk: Buffer) => backend.stream.write(chunk.toString().toUpperCase()));
  await turn();
  says('echo');
  await turn();
  assert.equal(guest.read().toString(), 'ECHO');
});

test('a guest that writes without end holds nobody for ever', async () => {
  const guest = new TestFrontEnd();
  const seen = { looks: 0 };
  const page = () => {
    // A second vCPU that fills the ring whenever one looks.
    if (seen.looks++ < 1000) guest.setIndex('out_prod', guest.index('out_cons') + 2048);
    return guest.page;
  };
  const backend = new ConsoleBackend({ transport: new ConsoleRing(page), notify: () => {} });
  for (let i = 0; i < 10; i++) backend.service();
  assert.ok(seen.looks < 500, 'each call does a bounded piece of work');
  const { looks } = seen;
  await turn();
  assert.ok(seen.looks - looks < 60, 'and they do not add up');
  while (seen.looks < 1000) await turn();
  await turn();
  await turn();
  assert.equal(guest.index('out_prod'), guest.index('out_cons'));
});

test('whatever is in the page at whatever time, nothing throws and memory stays bounded', async () => {
  const name = fc.constantFrom('in_cons', 'in_prod', 'out_cons', 'out_prod');
  const action = fc.oneof(
    fc.tuple(fc.constant('set'), name, fc.nat({ max: 0xffff_ffff })),
    fc.tuple(fc.constant('nudge'), name, fc.integer({ min: -3000, max: 3000 })),
    fc.tuple(fc.constant('write'), name, fc.nat({ max: 5000 })),
    fc.tuple(fc.constant('turn'), name, fc.constant(0)),
  );
  await fc.assert(fc.asyncProperty(fc.array(action, { maxLength: 60 }), async (actions) => {
    const { guest, backend } = setUp({ historyBytes: 4096 });
    const { stream } = backend;
    stream.on('data', () => {});
    for (const [kind, index, value] of actions) {
      if (kind === 'set') guest.setIndex(index, value);
      if (kind === 'nudge') guest.setIndex(index, guest.index(index) + value);
      if (kind === 'write') stream.write(Buffer.alloc(value));
      if (kind === 'turn') await turn();
      backend.service();
    }
    assert.ok(backend.save().history.length <= 4096);
    guest.startAt(0, 0);
    backend.close();
    await once(stream, 'close');
  }), { seed, numRuns: 100 });
});

test('when the guest is gone, readers get its last words and an end', async () => {
  const { guest, backend, says } = setUp();
  const { stream } = backend;
  const words = text(stream);
  says('first, ');
  stream.write(Buffer.alloc(3000));
  guest.print('last');
  backend.close();
  backend.close();
  assert.equal(await words, 'first, last');
  assert.ok(stream.writableEnded);
  says('from the grave');
  assert.equal(await text(backend.stream), 'first, last');
});

test('closing from a reader loses nothing for the others', async () => {
  const { backend, guest, says } = setUp();
  const [first, second] = [backend.attach(), backend.attach()];
  first.on('data', () => {
    guest.print('more');
    backend.close();
  });
  const words = text(second);
  await turn();
  says('some, ');
  assert.equal(await words, 'some, more');
});

test('while a reader is given output the guest is still to be told that there is room', async () => {
  const { backend, says } = setUp();
  const owed: boolean[] = [];
  const { stream } = backend;
  stream.on('data', () => owed.push(backend.owesEvent));
  await turn();
  says('some');
  await turn();
  assert.deepEqual([...owed, backend.owesEvent], [true, false]);
});

test('a saved console goes on where it was', async () => {
  const { guest, backend, says } = setUp();
  says('one ');
  guest.print('two ');
  const state = structuredClone(backend.save());
  const page = guest.page.slice();
  backend.service();

  const again = setUp({ state });
  again.guest.page.set(page);
  again.says('three');
  assert.equal(await readText(again.backend.stream, 13), 'one two three');

  // Rollback of the first: its page and its state are put back, its reader sees the words again.
  const reader = readText(backend.stream, 'one two two other'.length);
  await turn();
  guest.page.set(page);
  backend.restore(state);
  says('other');
  assert.equal(await reader, 'one two two other');
  assert.equal(Buffer.from(backend.save().history).toString(), 'one two other');
});

test('the store gets what a front-end looks for', () => {
  const store = new Map<string, string>();
  writeConsoleEntries({ domainId: 7, gfn: 0x39000, port: 2 }, (path, value) => void store.set(path, value));
  assert.deepEqual(Object.fromEntries(store), {
    '/local/domain/7/console/ring-ref': '233472',
    '/local/domain/7/console/port': '2',
    '/local/domain/7/console/type': 'xenconsoled',
    '/local/domain/7/console/limit': '1048576',
    '/local/domain/7/console/output': 'pty',
    '/local/domain/7/console/tty': '',
  });
});
