// What is known at the blocks of small programs.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Assembler } from '../../a64/test-assembler.ts';
import { registersOf } from './register-set.ts';
import { settleStates } from './path-states.ts';
import type { BlockState, Effects } from './path-states.ts';
import { PAGE_INSTRUCTIONS, formRegion } from './region.ts';
import type { Instruction } from './region.ts';

/** Operands `d`, `t`, `link` are written, all others read: enough for what is used here. */
function effectsOf({ operands, row }: Instruction): Effects {
  const named = (isWritten: boolean) => registersOf(Object.entries(operands)
    .filter(([key]) => ['d', 't', 'link'].includes(key) === isWritten && row.branch === undefined || (!isWritten && row.branch !== undefined))
    .map(([, operand]) => operand));
  return { reads: named(false), writes: named(true), setsFlags: row.name.startsWith('SUBS'), accesses: row.name.startsWith('LDR'), forgets: row.name.startsWith('LDXR') };
}

function statesOf(write: (a: Assembler) => void): Map<number, BlockState> {
  const words = new Uint32Array(PAGE_INSTRUCTIONS);
  const a = new Assembler(0n);
  write(a);
  words.set(a.words());
  const region = formRegion(words, 0, () => false)!;
  const effects = new Map(region.blocks.flatMap(({ instructions }) => instructions).map(one => [one, effectsOf(one)]));
  return new Map([...settleStates(region, effects)].map(([block, state]) => [block.start, state]));
}
const bits = (...registers: number[]): number => registers.reduce((mask, n) => mask | (1 << n), 0);

test('what a loop uses is there before it, and what it changes is dirty at its head', () => {
  const states = statesOf(a => a.add(1, 1, 8).label('again').add(2, 3, 1).cbnz(4, 'again').add(5, 5, 1).udf());
  const head = states.get(1)!;
  assert.equal(head.isMerge, true);
  assert.equal(head.available.general, bits(1, 2, 3, 4));
  assert.equal(head.dirty.general, bits(1, 2));
  const after = states.get(3)!;
  assert.deepEqual([after.isMerge, after.available.general], [false, bits(1, 2, 3, 4)]);
});

test('where two ways meet: only what both have, and what either has changed', () => {
  const states = statesOf(a => a.cbz(0, 'other').add(1, 7, 1).b('end').label('other').add(2, 8, 1).label('end').add(9, 9, 1).udf());
  const end = states.get(4)!;
  assert.equal(end.isMerge, true);
  assert.equal(end.dirty.general, bits(1, 2));
  // Both have register 0; 1 and 2 have to be, as they may be stored from here on.
  assert.equal(end.available.general, bits(0, 1, 2));
});

test('flags: as one instruction has set them on all ways, differently, or not at all', () => {
  const name = (state: BlockState): string => typeof state.flags === 'string' ? state.flags : `${state.flags.index}`;
  const same = statesOf(a => a.subs(0, 0, 1).cbz(1, 'end').add(2, 2, 1).label('end').add(3, 3, 1).udf());
  assert.equal(name(same.get(3)!), '0');
  const differing = statesOf(a => a.subs(0, 0, 1).cbz(1, 'end').subs(2, 2, 1).label('end').add(3, 3, 1).udf());
  assert.equal(name(differing.get(3)!), 'merged');
  const none = statesOf(a => a.cbz(1, 'end').add(2, 2, 1).label('end').add(3, 3, 1).udf());
  assert.equal(name(none.get(2)!), 'record');
  const loop = statesOf(a => a.subs(0, 0, 1).label('again').subs(2, 2, 1).cbnz(1, 'again').add(3, 3, 1).udf());
  assert.equal(name(loop.get(1)!), 'merged');
});

test('outside of loops an access leaves nothing dirty but what it writes itself', () => {
  const states = statesOf(a => a.add(1, 1, 1).ldr(2, 3).cbz(4, 'end').add(5, 5, 1).label('end').add(6, 6, 1).udf());
  assert.equal(states.get(4)!.dirty.general, bits(2, 5));
});
