// The state of a network card as an image has it, checked: an image is a file, and may say anything.

import { NET_QUEUES_MAX } from './backend.ts';
import type { NetConnection, QueueConnection } from './backend.ts';
import type { NetDeviceState } from './device.ts';

const QUEUE_FIELDS = ['txRef', 'rxRef', 'txPort', 'rxPort', 'txPosition', 'rxPosition'] as const;
const FEATURES = ['checksumPartial', 'tsoV4', 'tsoV6'] as const;

/** @returns undefined when it is none */
export function parseNetDeviceState(value: unknown): NetDeviceState | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { connection } = value as Partial<NetDeviceState>;
  if (connection === undefined) return { connection };
  const { queues, features, scatterGather } = (connection ?? {}) as Partial<NetConnection>;
  if (!Array.isArray(queues) || queues.length < 1 || queues.length > NET_QUEUES_MAX) return undefined;
  if (typeof scatterGather !== 'boolean' || typeof features !== 'object' || features === null) return undefined;
  if (!FEATURES.every((name) => typeof features[name] === 'boolean')) return undefined;
  const isQueue = (queue: QueueConnection | null): boolean => QUEUE_FIELDS.every((name) => isU32(queue?.[name]));
  if (!queues.every(isQueue)) return undefined;
  const { checksumPartial, tsoV4, tsoV6 } = features;
  return {
    connection: {
      scatterGather, features: { checksumPartial, tsoV4, tsoV6 },
      queues: (queues as QueueConnection[]).map(({ txRef, rxRef, txPort, rxPort, txPosition, rxPosition }) =>
        ({ txRef, rxRef, txPort, rxPort, txPosition, rxPosition })),
    },
  };
}

function isU32(value: unknown): boolean {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 0xffff_ffff;
}
