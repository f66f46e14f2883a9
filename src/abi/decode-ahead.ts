// Code of a restored guest that is to be decoded before it runs (cpu/decode-ahead.ts): one list for a host, of the image that
// was opened last. The main thread writes pages and runs, then counts `ready` up; whoever decodes takes pages by `next`, and
// is counted in `workers` for as long as he looks at any of it.

import { array, struct, u16, u32 } from './struct.ts';

export const AHEAD_PAGES_MAX = 1024;
export const AHEAD_RUNS_MAX = 16384;

/** A run of instructions in a page, 16 bits: the first one's number, and how many come after it. */
export const RUN_FIRST_SHIFT = 6;
export const RUN_LENGTH_MAX = 64;

export const DECODE_AHEAD = struct('decodeAhead', {
  next: u32,
  ready: u32,
  workers: u32,
  /** Of each page: its frame, 0 where it is to be left out. */
  frames: array(u32, AHEAD_PAGES_MAX),
  /** Of each page: where its runs end, which is where those of the next one begin. */
  ends: array(u32, AHEAD_PAGES_MAX),
  runs: array(u16, AHEAD_RUNS_MAX),
});
