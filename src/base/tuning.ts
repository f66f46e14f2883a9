// Sizes that matter for speed only. Tests make them tiny, so that what is rare otherwise (evictions, TLB misses, ends of
// slices) happens all the time. It is the environment that says so, because all threads of a process see the same there:
//
//   ZAZEN_TUNING=tlbEntries=4,codeBytes=1048576,emittedBytes=262144,sliceInstructions=500

import { ZazenError } from './errors.ts';

const NAMES = ['tlbEntries', 'frameCacheEntries', 'codeBytes', 'emittedBytes', 'sliceInstructions'] as const;
type Name = (typeof NAMES)[number];
/**
 * Addresses select an entry of these by their low bits. A TLB has two entries at least: emitted code takes the entry that
 * an access's first byte selects and compares its tag with the page of the last byte alone, so that a page and the one
 * behind it must never have the same place (cpu/engine-machine.ts).
 */
const POWERS_OF_TWO: readonly Name[] = ['tlbEntries', 'frameCacheEntries'];
const LEAST: Tuning = { tlbEntries: 2 };

/** What is missing is as it is for everybody. */
export type Tuning = { readonly [K in Name]?: number };

/** @throws ZazenError ZAZEN_TUNING */
export function parseTuning(text: string): Tuning {
  const tuning: { [K in Name]?: number } = {};
  for (const part of text.split(',').filter((each) => each !== '')) {
    const [, name, digits] = /^(\w+)=(\d{1,10})$/.exec(part) ?? [];
    const known = NAMES.find((each) => each === name);
    if (known === undefined) {
      throw new ZazenError('ZAZEN_TUNING', `ZAZEN_TUNING has ${part}, which is no size`, { hint: `those are ${NAMES.join(', ')}` });
    }
    const [size, least, mustBePower] = [Number(digits), LEAST[known] ?? 1, POWERS_OF_TWO.includes(known)];
    if (size < least || (mustBePower && !Number.isInteger(Math.log2(size)))) {
      throw new ZazenError('ZAZEN_TUNING', `ZAZEN_TUNING has ${part}, which no ${known} can be`,
        { hint: `it is at least ${least}${mustBePower ? ' and a power of two' : ''}` });
    }
    tuning[known] = size;
  }
  return tuning;
}

export const tuning = parseTuning(globalThis.process?.env['ZAZEN_TUNING'] ?? '');
