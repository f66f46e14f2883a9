// What a front end says of itself in the store, checked: its rings, its event channels, and what it takes. The guest
// writes what it likes there.

import { NET_QUEUES_MAX } from './backend.ts';
import type { NetConnection, QueueConnection } from './backend.ts';

const NUMBER_MAX = 0xffff_ffff;

/**
 * @param read an entry of the front end's directory
 * @returns why it cannot be used, where it cannot
 */
export function readFrontEnd(read: (name: string) => string | undefined): NetConnection | string {
  const number = (name: string): number | undefined => {
    const text = read(name)?.trim();
    return text !== undefined && /^\d{1,10}$/.test(text) && Number(text) <= NUMBER_MAX ? Number(text) : undefined;
  };
  const has = (name: string): boolean => number(name) === 1;
  // The other way, exchanging pages, went out of use long ago.
  if (!has('request-rx-copy')) return 'it does not ask for frames to be copied';
  const count = number('multi-queue-num-queues');
  if (count !== undefined && (count < 1 || count > NET_QUEUES_MAX)) return `it has ${count} queues`;
  const queues: QueueConnection[] = [];
  for (let i = 0; i < (count ?? 1); i++) {
    const prefix = count === undefined || count === 1 && read('queue-0/tx-ring-ref') === undefined ? '' : `queue-${i}/`;
    const txRef = number(`${prefix}tx-ring-ref`);
    const rxRef = number(`${prefix}rx-ring-ref`);
    const both = number(`${prefix}event-channel`);
    const txPort = both ?? number(`${prefix}event-channel-tx`);
    const rxPort = both ?? number(`${prefix}event-channel-rx`);
    if (txRef === undefined || rxRef === undefined || txPort === undefined || rxPort === undefined) {
      return `queue ${i} is not complete`;
    }
    queues.push({ txRef, rxRef, txPort, rxPort, txPosition: 0, rxPosition: 0 });
  }
  const scatterGather = has('feature-sg');
  const checksumPartial = !has('feature-no-csum-offload');
  return {
    queues, scatterGather,
    features: {
      checksumPartial,
      tsoV4: scatterGather && checksumPartial && has('feature-gso-tcpv4'),
      tsoV6: scatterGather && checksumPartial && has('feature-gso-tcpv6') && has('feature-ipv6-csum-offload'),
    },
  };
}
