// Makes a module of compiled regions, in the way that V8 shall treat it: compiled at once, and optimised early.

import { setFlagsFromString } from 'node:v8';

/**
 * V8 runs a function from its quick tier until that has executed so many bytes of machine code, some three hundred for each
 * entry of a region. A region is made of code that was found hot, and what it takes until then is slow twice: the code,
 * and what V8 collects at each entry and each way out.
 */
export const REGION_TIERING_BUDGET = 1_000_000;
/**
 * V8's own, and that of regions that are made while a guest boots: by optimising these as early as others, V8's threads would keep
 * the vCPU from its core for longer than it gains. (Code that V8 has kept from former processes is good for processes with the same
 * options only.)
 */
export const DEFAULT_TIERING_BUDGET = 13_000_000;

/**
 * Without further ado V8 would compile a function when it is first called: by the pCPU's thread, while the guest waits.
 * The options belong to the whole process, so they are changed for no longer than the call takes; a module has the budget
 * of when it was made.
 * @param isBooting whether a guest boots, the first one
 */
export function makeRegionModule(bytes: Uint8Array<ArrayBuffer>, isBooting: boolean): WebAssembly.Module {
  setFlagsFromString('--no-wasm-lazy-compilation');
  setFlagsFromString(`--wasm-tiering-budget=${isBooting ? DEFAULT_TIERING_BUDGET : REGION_TIERING_BUDGET}`);
  try {
    return new WebAssembly.Module(bytes);
  } finally {
    setFlagsFromString('--wasm-lazy-compilation');
    setFlagsFromString(`--wasm-tiering-budget=${DEFAULT_TIERING_BUDGET}`);
  }
}
