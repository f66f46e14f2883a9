// Which code of its hot pages a guest runs when it is restored, as a rehearsal has run it (rehearsal.ts), so that it can be
// decoded before the guest gets there (cpu/decode-ahead.ts).
//
//   section "working-set/code", for each hot page that has code:
//
//     ┌─────────┬───────────┬─────────┬─────────┬─ … ─┬──────────────────────────┐
//     │ gfn u32 │ count u32 │ run u16 │ run u16 │     │ zeros, to a multiple of 4 │
//     └─────────┴───────────┴─────────┴─────────┴─ … ─┴──────────────────────────┘
//
//   run: bits 6–15 number of its first instruction in the page, bits 0–5 how many come after that
//
// A reader may overlook it, and is told nothing by it but what to decode first.

import { AHEAD_PAGES_MAX, AHEAD_RUNS_MAX } from '../abi/decode-ahead.ts';
import { isRun, runsOf } from '../cpu/decode-ahead.ts';
import type { CodeRuns } from '../cpu/decode-ahead.ts';
import type { Image } from '../image/image.ts';
import type { StateSection } from '../image/format.ts';
import type { Rehearsed } from './rehearsal.ts';

const SECTION = 'working-set/code';
const HEAD_BYTES = 8;

/**
 * @param gfns of the hot pages
 * @param code of pages by GFN: which instructions a rehearsal has got to
 */
export function codeSection(gfns: readonly number[], code: Rehearsed['code']): StateSection {
  const halves: number[] = [];
  let count = 0;
  for (const gfn of gfns) {
    const decoded = code.get(gfn);
    const runs = decoded === undefined ? [] : runsOf(decoded);
    if (runs.length === 0 || count + runs.length > AHEAD_RUNS_MAX) continue;
    count += runs.length;
    halves.push(gfn & 0xffff, gfn >>> 16, runs.length, 0, ...runs);
    if (runs.length % 2 !== 0) halves.push(0);
  }
  const bytes = new Uint8Array(2 * halves.length);
  const view = new DataView(bytes.buffer);
  halves.forEach((half, i) => view.setUint16(2 * i, half, true));
  return { name: SECTION, bytes };
}

/** @returns what is to be decoded of each hot page, in their order; undefined: nothing, or nothing that makes sense */
export function decodeCode(image: Pick<Image, 'sections' | 'hotGfns'>): CodeRuns | undefined {
  const bytes = image.sections.get(SECTION);
  if (bytes === undefined || bytes.length % 4 !== 0) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const ofPages = new Map<number, Uint16Array>();
  let count = 0;
  for (let at = 0; at < bytes.length;) {
    if (bytes.length - at < HEAD_BYTES) return undefined;
    const gfn = view.getUint32(at, true);
    const length = view.getUint32(at + 4, true);
    at += HEAD_BYTES;
    count += length;
    if (count > AHEAD_RUNS_MAX || ofPages.has(gfn) || bytes.length - at < 2 * length) return undefined;
    const runs = Uint16Array.from({ length }, (_, i) => view.getUint16(at + 2 * i, true));
    if (!runs.every(isRun)) return undefined;
    ofPages.set(gfn, runs);
    at += 4 * Math.ceil(length / 2);
  }
  const ends = new Uint32Array(Math.min(image.hotGfns.length, AHEAD_PAGES_MAX));
  const runs = new Uint16Array(count);
  let end = 0;
  for (let page = 0; page < ends.length; page++) {
    const own = ofPages.get(image.hotGfns[page]!);
    if (own !== undefined) runs.set(own, end);
    ends[page] = end += own?.length ?? 0;
  }
  return end === 0 ? undefined : { ends, runs: runs.subarray(0, end) };
}
