// Sizes of memory as people write them.

import { ZazenError } from '../base/errors.ts';
import type { Size } from './types.ts';

const UNIT_SHIFT: Readonly<Record<string, number>> = { k: 10, m: 20, g: 30, t: 40 };
const GUEST_PAGE_BYTES = 4096;

/**
 * Bytes, rounded up to whole pages. Text is a number, fractions allowed, and a unit: K, M, G or T, alone or with B or
 * iB, all powers of 1024 as in xl; without a unit it is MiB, also as in xl. A number is bytes.
 * @throws ZazenError ZAZEN_SPEC_SIZE
 */
export function parseSize(size: Size, what = 'memory'): number {
  const bytes = typeof size === 'number' ? size : parseText(size);
  if (bytes === undefined || !(bytes > 0 && bytes <= 2 ** 50)) {
    throw new ZazenError('ZAZEN_SPEC_SIZE', `${what} cannot be "${String(size)}"`, {
      hint: 'give a size such as 400MiB or 1GiB',
    });
  }
  return Math.ceil(bytes / GUEST_PAGE_BYTES) * GUEST_PAGE_BYTES;
}

function parseText(text: string): number | undefined {
  const match = /^\s*(\d{1,15}(?:\.\d{1,9})?)\s*(?:([kmgt])(?:i?b)?)?\s*$/i.exec(text);
  if (match === null) return undefined;
  return Number(match[1]) * 2 ** UNIT_SHIFT[(match[2] ?? 'm').toLowerCase()]!;
}

/** A size for people: `400 MiB`. */
export function formatSize(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : Number(value.toFixed(1))} ${units[unit]!}`;
}
