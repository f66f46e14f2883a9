// What is kept of a card with the state of its guest, and read back from an image, which may say anything.

import type { CardAddresses } from './address-alias.ts';
import type { ConnectionRecord } from './tcp-stack.ts';

const MAC_LIMIT = 2 ** 48;
const U32_LIMIT = 2 ** 32;
const U16_LIMIT = 2 ** 16;
/** As many as a guest may have. */
const CONNECTIONS_MAX = 4096;

/** Addresses as numbers. */
export interface CardState {
  /** As the network knew it. */
  readonly mac: number;
  readonly address: number;
  /** As the guest knows itself: the same, unless it is a fork. */
  readonly guest: CardAddresses;
  readonly connections: readonly ConnectionRecord[];
}

/** @returns undefined when it is none */
export function parseCardState(value: unknown): CardState | undefined {
  const state = value as CardState | null | undefined;
  if (!isAddresses(state) || !isAddresses(state.guest) || !Array.isArray(state.connections)) return undefined;
  const connections = state.connections as readonly ConnectionRecord[];
  if (connections.length > CONNECTIONS_MAX || !connections.every(isRecord)) return undefined;
  return {
    mac: state.mac, address: state.address, guest: { mac: state.guest.mac, address: state.guest.address },
    connections: connections.map(({ guestMac, guestAddress, guestPort, remoteAddress, remotePort, una }) =>
      ({ guestMac, guestAddress, guestPort, remoteAddress, remotePort, una })),
  };
}

function isBelow(value: unknown, limit: number): boolean {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) < limit;
}

function isAddresses(value: CardAddresses | null | undefined): value is CardAddresses {
  return typeof value === 'object' && value !== null
    && isBelow(value.mac, MAC_LIMIT) && isBelow(value.address, U32_LIMIT);
}

function isRecord(record: ConnectionRecord | null): boolean {
  return typeof record === 'object' && record !== null && isBelow(record.guestMac, MAC_LIMIT)
    && [record.guestAddress, record.remoteAddress, record.una].every((value) => isBelow(value, U32_LIMIT))
    && [record.guestPort, record.remotePort].every((value) => isBelow(value, U16_LIMIT));
}
