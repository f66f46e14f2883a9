// Files made by somebody who knows the format: mutated, with every digest put right again, so that the checks behind
// the digests are reached. They may be accepted, or refused by a typed error; nothing else.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { ZazenError } from '../base/errors.ts';
import { PageHasher } from './checksum.ts';
import { decodeNotes, decodeSuperblock, encodeHead, encodeNotes, setHeadDigest } from './elf.ts';
import type { Head, Note } from './elf.ts';
import { BLOCK_BYTES, HOT_PAGES_VERSION, IMAGE_VERSION, alignToBlock, layoutImage } from './format.ts';
import type { HotArea } from './hot-area.ts';
import { openImage } from './image.ts';
import { NOTES_MAX, ZAZEN_NOTE } from './notes.ts';
import { BASE_GFN, bankOf, fillFrame, makeFolder, makeMachine, makeRequest, makeVcpu, runsOf } from './test-images.ts';
import { writeImage } from './writer.ts';

const folder = makeFolder();
const template = join(folder, 'template.core');
const PAGES = 8;
const WINDOW = {
  virtualAddress: 0xffff_8000_0801_0000n, guestAddress: (BASE_GFN + 11) * FRAME_BYTES, sizeBytes: 2 * FRAME_BYTES,
};
const guest = makeMachine(32 * FRAME_BYTES);
fillFrame(guest, 1, 1);
await writeImage(makeRequest({
  path: template, machine: guest, banks: [bankOf(3), bankOf(PAGES - 3, BASE_GFN + 10)], vcpus: [makeVcpu(1, true)],
  pages: runsOf([1, undefined, 1]), sections: [{ name: 'a', bytes: Uint8Array.of(1, 2, 3, 4, 5) }],
  vmcoreinfo: Uint8Array.of(65, 10), kernelWindow: WINDOW,
  later: async () => ({ sections: [], hotPages: [{ gfn: BASE_GFN + 2, mfn: 1 }, { gfn: BASE_GFN, mfn: 1 }] }),
}));
const HOT_PAGES = 2;
const good = readFileSync(template);
const superblock = decodeSuperblock(good.subarray(0, BLOCK_BYTES))!;
const notesArea = good.subarray(superblock.notesOffset, superblock.notesOffset + superblock.notesBytes);
const banks = [bankOf(3), bankOf(PAGES - 3, BASE_GFN + 10)];
const machine = makeMachine(64 * 2 ** 20);
const hasher = new PageHasher(machine);

/** Digests a file whose head is the block given, and writes it. */
function seal(path: string, block: Uint8Array, pages: Uint8Array, notes: Uint8Array): void {
  machine.u8.fill(0, 0, BLOCK_BYTES);
  machine.u8.set(block.subarray(0, BLOCK_BYTES - 8));
  const sealed = block.slice();
  setHeadDigest(sealed, hasher.digest(0, 1));
  writeFileSync(path, Buffer.concat([sealed, pages, notes, Buffer.alloc(alignToBlock(notes.length) - notes.length)]));
}

function notesDigest(notes: Uint8Array) {
  machine.u8.fill(0, 0, alignToBlock(notes.length));
  machine.u8.set(notes);
  return hasher.digest(0, alignToBlock(notes.length) / BLOCK_BYTES);
}

/** A file with these notes, all else right. */
function forge(path: string, notes: Uint8Array, head: Partial<Head> = {}, version = IMAGE_VERSION): void {
  const block = new Uint8Array(BLOCK_BYTES);
  const layout = layoutImage(head.banks ?? banks, head.hotPages ?? HOT_PAGES);
  const fileBytes = layout.notesOffset + alignToBlock(notes.length);
  encodeHead(block, { banks, hotPages: HOT_PAGES, notesBytes: notes.length, notesDigest: notesDigest(notes), ...head },
    version, fileBytes);
  seal(path, block, good.subarray(BLOCK_BYTES, superblock.notesOffset), notes);
}

const HOT_MFNS = Uint32Array.from({ length: 64 }, (_, k) => 100 + k);
/** Others: both are read at the same time. */
const MFNS = Uint32Array.from({ length: 16 }, (_, k) => 200 + k);

/** Uses everything that an image offers. @returns the error's code or 'accepted' */
async function exercise(path: string): Promise<string> {
  try {
    let reading = Promise.resolve();
    const atHead = (area: HotArea): void => {
      reading = area.read(machine, 0, HOT_MFNS.subarray(0, area.pages));
      reading.catch(() => {});
    };
    await using image = await openImage(path, { atHead });
    JSON.stringify(image.header);
    for (const { gfn, count } of image.runs()) assert.ok(count > 0 && image.pageState(gfn) === 'stored');
    for (const { guestAddress, sizeBytes } of image.banks) {
      await image.readPages(machine, guestAddress / FRAME_BYTES, MFNS.subarray(0, sizeBytes / FRAME_BYTES));
    }
    await reading;
    image.findAlteredHotPages(machine, 0, HOT_MFNS.subarray(0, image.hotArea.pages));
    await image.verify();
    return 'accepted';
  } catch (error) {
    assert.ok(error instanceof ZazenError && error.code.startsWith('ZAZEN_IMAGE_'), String((error as Error).stack));
    return error.code;
  }
}

const path = join(folder, 'mutant.core');
const isHeader = ({ name, type }: Note) => name === 'Zazen' && type === ZAZEN_NOTE.type.header;
const value = fc.oneof(fc.constantFrom(0, 1, 3, 4, 12, 64, 0x7fffffff, 0x80000000, 0xfffffff4, 0xffffffff),
  fc.nat(0xffffffff));

test('the forger here makes an image that is accepted when nothing is changed', async () => {
  forge(path, notesArea);
  assert.equal(await exercise(path), 'accepted');
});

test('mutated notes under right digests', async () => {
  const outcomes = new Map<string, number>();
  await fc.assert(fc.asyncProperty(
    fc.array(fc.tuple(fc.nat(notesArea.length / 4 - 1), value), { minLength: 1, maxLength: 3 }),
    fc.option(fc.nat(notesArea.length)),
    async (changes, cut) => {
      const notes = Buffer.from(notesArea);
      for (const [word, number] of changes) notes.writeUInt32LE(number, 4 * word);
      forge(path, notes.subarray(0, cut ?? undefined));
      const outcome = await exercise(path);
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    }), { numRuns: 400 });
  assert.ok(outcomes.has('accepted') && outcomes.has('ZAZEN_IMAGE_FORMAT'), [...outcomes].join(' '));
});

/** Of three program headers before it; the kernel may have put its image anywhere. */
const WINDOW_ADDRESS_WORD = (64 + 3 * 56 + 16) / 4;

test('mutated heads under right digests', async () => {
  await fc.assert(fc.asyncProperty(
    fc.array(fc.tuple(fc.oneof(fc.nat(WINDOW_ADDRESS_WORD - 1), fc.integer({ min: 1010, max: 1021 })), value),
      { minLength: 1, maxLength: 2 }),
    async (changes) => {
      const block = Buffer.from(good.subarray(0, BLOCK_BYTES));
      for (const [word, number] of changes) block.writeUInt32LE(number, 4 * word);
      seal(path, block, good.subarray(BLOCK_BYTES, superblock.notesOffset), notesArea);
      const outcome = await exercise(path);
      if (!block.equals(good.subarray(0, BLOCK_BYTES))) assert.notEqual(outcome, 'accepted');
    }), { numRuns: 300 });
});

test('banks that no guest has', async () => {
  const wrong = [
    [bankOf(0)], [bankOf(4), bankOf(4)], [bankOf(4, BASE_GFN + 4), bankOf(4)], [{ guestAddress: 1, sizeBytes: 4096 }],
    [{ guestAddress: 4096, sizeBytes: 2 ** 45 }], [{ guestAddress: 2 ** 48, sizeBytes: 4096 }],
  ];
  for (const banksGiven of wrong) {
    forge(path, notesArea, { banks: banksGiven });
    assert.equal(await exercise(path), 'ZAZEN_IMAGE_FORMAT');
  }
});

test('windows that show no memory, or where no kernel is', async () => {
  const { virtualAddress, guestAddress } = WINDOW;
  const wrong: [Partial<typeof WINDOW>, string][] = [
    [{}, 'accepted'], [{ sizeBytes: 7 * FRAME_BYTES }, 'ZAZEN_IMAGE_FORMAT'], [{ sizeBytes: 0 }, 'ZAZEN_IMAGE_FORMAT'],
    [{ guestAddress: guestAddress + 1 }, 'ZAZEN_IMAGE_FORMAT'], [{ sizeBytes: 100 }, 'ZAZEN_IMAGE_FORMAT'],
    [{ virtualAddress: virtualAddress + 1n }, 'ZAZEN_IMAGE_FORMAT'],
    [{ virtualAddress: 2n ** 62n }, 'ZAZEN_IMAGE_FORMAT'],
    [{ virtualAddress: 2n ** 64n - 4096n }, 'ZAZEN_IMAGE_FORMAT'],
  ];
  for (const [part, outcome] of wrong) {
    forge(path, notesArea, { kernelWindow: { ...WINDOW, ...part } });
    assert.equal(await exercise(path), outcome, Object.entries(part).join());
  }
});

test('notes: unknown types are refused unless marked as optional; so are missing and double ones', async () => {
  const notes = decodeNotes(notesArea, NOTES_MAX)!;
  const judge = async (changed: readonly Note[]) => {
    forge(path, encodeNotes(changed));
    return exercise(path);
  };
  const bytes = new Uint8Array(6);
  assert.equal(await judge([...notes, { name: 'Zazen', type: 0x80000001, bytes }]), 'accepted');
  assert.equal(await judge([...notes, { name: 'Other', type: 1, bytes }]), 'accepted');
  assert.equal(await judge([...notes, { name: 'Zazen', type: 99, bytes }]), 'ZAZEN_IMAGE_FORMAT');
  for (const note of notes) {
    const isNeeded = note.name === 'Zazen' && note.type !== ZAZEN_NOTE.type.section;
    const isUnique = note.name === 'Zazen';
    const without = notes.filter((other) => other !== note);
    // Registers may be missing, but SIMD registers belong to general ones.
    const expected = isNeeded || note.name === 'CORE' && note.type === 1 ? 'ZAZEN_IMAGE_FORMAT' : 'accepted';
    assert.equal(await judge(without), expected, `${note.name} ${note.type}`);
    if (isUnique) assert.equal(await judge([...notes, note]), 'ZAZEN_IMAGE_FORMAT');
  }
});

test('headers that are not what they should be', async () => {
  const notes = decodeNotes(notesArea, NOTES_MAX)!;
  const header = JSON.parse(new TextDecoder().decode(notes.find(isHeader)!.bytes));
  const parent = { path: 'mutant.core', id: header.id, digest: '0'.repeat(16) };
  const cases: [unknown, string][] = [
    [{ ...header, later: true }, 'accepted'], [null, 'ZAZEN_IMAGE_FORMAT'], [[], 'ZAZEN_IMAGE_FORMAT'],
    [{ ...header, id: 7 }, 'ZAZEN_IMAGE_FORMAT'], [{ ...header, domain: undefined }, 'ZAZEN_IMAGE_FORMAT'],
    [{ ...header, parent: 'x' }, 'ZAZEN_IMAGE_FORMAT'],
    [{ ...header, parent: { ...parent, path: 'a\0b' } }, 'ZAZEN_IMAGE_FORMAT'],
    // Itself; a folder; a device; a file that is none.
    [{ ...header, parent }, 'ZAZEN_IMAGE_PARENT'],
    ...['.', '/dev/zero', '/dev/tty', '/none', '/proc/self/mem'].map((file): [unknown, string] =>
      [{ ...header, parent: { ...parent, id: header.id.replaceAll(/\d/g, '0'), path: file } }, 'ZAZEN_IMAGE_PARENT']),
  ];
  const withHeader = (text: string) => notes.map((note) =>
    isHeader(note) ? { ...note, bytes: new TextEncoder().encode(text) } : note);
  for (const [changed, expected] of cases) {
    forge(path, encodeNotes(withHeader(JSON.stringify(changed))));
    assert.equal(await exercise(path), expected, JSON.stringify(changed));
  }
  for (const text of ['', '{', '['.repeat(2 ** 19), `"${'x'.repeat(2 ** 20)}"`]) {
    forge(path, encodeNotes(withHeader(text)));
    assert.equal(await exercise(path), 'ZAZEN_IMAGE_FORMAT');
  }
});

test('lists of hot pages that no writer makes', async () => {
  const notes = decodeNotes(notesArea, NOTES_MAX)!;
  const withList = (gfns: readonly number[]): Uint8Array => encodeNotes(notes.map((note) =>
    note.name === 'Zazen' && note.type === ZAZEN_NOTE.type.hotPages
      ? { ...note, bytes: new Uint8Array(Uint32Array.from(gfns).buffer) } : note));
  forge(path, withList([BASE_GFN, BASE_GFN + 2]));
  assert.equal(await exercise(path), 'accepted');
  // Too few, too many, one of them twice, zero, beyond the guest's memory
  const wrong = [[], [BASE_GFN], [BASE_GFN, BASE_GFN + 2, BASE_GFN], [BASE_GFN, BASE_GFN], [BASE_GFN, BASE_GFN + 1],
    [BASE_GFN, BASE_GFN + 5], [BASE_GFN, 0xffff_ffff]];
  for (const gfns of wrong) {
    forge(path, withList(gfns));
    assert.equal(await exercise(path), 'ZAZEN_IMAGE_FORMAT', String(gfns));
  }
  forge(path, encodeNotes(notes.filter(({ type }) => type !== ZAZEN_NOTE.type.hotPages)));
  assert.equal(await exercise(path), 'ZAZEN_IMAGE_FORMAT');
});

test('an image of a version without hot pages has none', async () => {
  forge(path, notesArea, {}, HOT_PAGES_VERSION - 1);
  assert.equal(await exercise(path), 'ZAZEN_IMAGE_FORMAT');
});
