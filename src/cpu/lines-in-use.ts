// Which lines of a vCPU's TLBs and caches of stage 2 are in use (abi/vcpu.ts): what empties them, or looks for single entries,
// goes through those only. Emitted code notes them as well (emitted-walk.ts). Only the thread that runs the vCPU does it.

import { LINE_BYTES, linesInUseOffset, linesOffset } from '../abi/vcpu.ts';

interface Record {
  /** Byte address of the vCPU record. */
  readonly address: number;
  readonly u32: Uint32Array;
}

const LINE_WORDS = LINE_BYTES / 4;
/** So many bytes have a word of bits. */
const WORD_REACH = 32 * LINE_BYTES;

/**
 * Before something is put into a line.
 * @param index of a word in it
 * @returns whether it was not in use
 */
export function useLine({ address, u32 }: Record, index: number): boolean {
  const line = Math.trunc((index - (address + linesOffset) / 4) / LINE_WORDS);
  const word = (address + linesInUseOffset) / 4 + (line >>> 5);
  const bits = u32[word]!;
  const bit = 1 << (line & 31);
  if ((bits & bit) !== 0) return false;
  u32[word] = bits | bit;
  return true;
}

/**
 * The lines in use between two places, as places of their first words.
 * @param offset in the record, of what has whole words of bits, as its size
 * @param isEmptied none of them is in use from now on
 */
export function linesInUse({ address, u32 }: Record, offset: number, sizeBytes: number, isEmptied = false): number[] {
  const lines: number[] = [];
  let first = (address + offset) / 4;
  let word = (address + linesInUseOffset) / 4 + (offset - linesOffset) / WORD_REACH;
  const end = word + sizeBytes / WORD_REACH;
  for (; word < end; word++, first += WORD_REACH / 4) {
    let bits = u32[word]!;
    if (bits === 0) continue;
    if (isEmptied) u32[word] = 0;
    while (bits !== 0) {
      const place = 31 - Math.clz32(bits);
      lines.push(first + place * LINE_WORDS);
      bits &= ~(1 << place);
    }
  }
  return lines;
}
