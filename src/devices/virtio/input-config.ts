// What the input device says of itself (OASIS Virtual I/O Device 1.2, 5.8.4): a keyboard of two keys, with which a
// machine is turned off or started again. The driver chooses what it wants to read; in the pCPU's thread.
//
//   0 ┌────────┬────────┬──────┬──────────┐
//     │ select │ subsel │ size │ reserved │   the first two are the driver's to write
//   8 ├────────┴────────┴──────┴──────────┤
//     │ what was chosen, `size` bytes     │
//     └───────────────────────────────────┘

import { VIRTIO_CONFIG_BYTES } from '../../abi/emulated-devices.ts';
import { assert } from '../../base/assert.ts';

/** Types and codes of events, as Linux numbers them (input-event-codes.h). */
export const EV = { SYN: 0, KEY: 1 } as const;
export const KEY = { POWER: 116, RESTART: 0x198 } as const;

/** The bytes that choose. */
export const CONFIG_CHOICE_BYTES = 2;
const SELECT = { name: 1, serial: 2, ids: 3, eventBits: 0x11 } as const;
const SIZE_AT = 2;
const DATA_AT = 8;
const BUS_VIRTUAL = 6;

function bitmap(bits: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(Math.floor(Math.max(...bits) / 8) + 1);
  for (const bit of bits) bytes[bit >>> 3]! |= 1 << (bit & 7);
  return bytes;
}

/** By `select`, then `subsel`. */
const CHOICES: Readonly<Record<number, Readonly<Record<number, Uint8Array>>>> = {
  [SELECT.name]: { 0: Buffer.from('Zazen buttons') },
  [SELECT.serial]: { 0: Buffer.from('buttons') },
  // Bus, vendor, product, version; 16 bits each.
  [SELECT.ids]: { 0: Uint8Array.of(BUS_VIRTUAL, 0, 0, 0, 1, 0, 1, 0) },
  [SELECT.eventBits]: { [EV.KEY]: bitmap(Object.values(KEY)) },
};
for (const choices of Object.values(CHOICES)) {
  for (const bytes of Object.values(choices)) assert(bytes.length <= VIRTIO_CONFIG_BYTES - DATA_AT, 'no place for it');
}

/** Puts there what the driver has chosen. @param config address of the configuration space */
export function chooseInputConfig(u8: Uint8Array, config: number): void {
  const chosen = CHOICES[u8[config]!]?.[u8[config + 1]!];
  u8.fill(0, config + SIZE_AT, config + VIRTIO_CONFIG_BYTES);
  if (chosen === undefined) return;
  u8[config + SIZE_AT] = chosen.length;
  u8.set(chosen, config + DATA_AT);
}
