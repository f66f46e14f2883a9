// Names of virtual disks and their numbers (Xen: docs/man/xen-vbd-interface.7): what a guest calls a disk depends on it.
//
//   xvdN, N below 16     202 << 8 | N << 4 | partition          sdN     8 << 8 | N << 4 | partition
//   xvdN, N from 16 on   1 << 28 | N << 8 | partition           hdN     3 << 8 (a, b) or 22 << 8 (c, d) | (N & 1) << 6 | partition

import { diskError } from './errors.ts';

export interface VirtualDevice {
  readonly name: string;
  readonly number: number;
}

const FIRST_LETTER = 'a'.charCodeAt(0);
const DISKS_MAX = 702;

/** @throws ZazenError ZAZEN_DISK_SPEC */
export function virtualDevice(name: string): VirtualDevice {
  const [, kind, letters, digits] = /^(xvd|sd|hd)([a-z]{1,2})(\d{0,2})$/.exec(name) ?? [];
  const number = kind === undefined ? undefined : numberOf(kind, diskIndex(letters!), Number(digits || 0));
  if (number !== undefined) return { name, number };
  throw diskError('SPEC', name, 'is no name of a virtual disk', { hint: 'use xvda, xvdb, and so on' });
}

/** a is 0, z 25, aa 26. */
function diskIndex(letters: string): number {
  return [...letters].reduce((index, letter) => (index + 1) * 26 + letter.charCodeAt(0) - FIRST_LETTER, -1);
}

function numberOf(kind: string, disk: number, partition: number): number | undefined {
  if (disk >= DISKS_MAX) return undefined;
  if (kind === 'xvd' && disk < 16 && partition < 16) return (202 << 8) | (disk << 4) | partition;
  if (kind === 'xvd') return (1 << 28) | (disk << 8) | partition;
  if (kind === 'sd' && disk < 16 && partition < 16) return (8 << 8) | (disk << 4) | partition;
  if (kind === 'hd' && disk < 4 && partition < 64) return ((disk < 2 ? 3 : 22) << 8) | ((disk & 1) << 6) | partition;
  return undefined;
}

/** The first name of xvda, xvdb … that nobody has. */
export function freeDevice(taken: ReadonlySet<number>): VirtualDevice {
  for (let disk = 0; ; disk++) {
    const first = disk < 26 ? '' : String.fromCharCode(FIRST_LETTER + Math.floor(disk / 26) - 1);
    const device = virtualDevice(`xvd${first}${String.fromCharCode(FIRST_LETTER + disk % 26)}`);
    if (!taken.has(device.number)) return device;
  }
}
