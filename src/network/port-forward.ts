// Ports of the host that lead to a guest, as they are written: `-p 8080:80`. They listen on the host's loopback unless another
// address is named.
//
//   [ADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp]        8080:80   0.0.0.0:2222:22   5353:53/udp   0:80 (any free port)

import { isIPv4 } from 'node:net';
import { UsageError } from '../base/errors.ts';

export interface PortForward {
  readonly protocol: 'tcp' | 'udp';
  readonly hostAddress: string;
  /** 0: a free one. */
  readonly hostPort: number;
  readonly guestPort: number;
}

/** A forward that is in force. */
export interface ActiveForward extends PortForward {
  close(): Promise<void>;
}

export function parsePortForward(text: string): PortForward {
  const match = /^(?:([^:]+):)?(\d{1,5}):(\d{1,5})(?:\/(tcp|udp))?$/.exec(text);
  const hostPort = Number(match?.[2]);
  const guestPort = Number(match?.[3]);
  const hostAddress = match?.[1] ?? '127.0.0.1';
  if (match === null || hostPort > 65535 || guestPort > 65535 || guestPort === 0 || !isIPv4(hostAddress)) {
    throw new UsageError(`not a port forward: ${text}`, 'write it as [ADDRESS:]HOSTPORT:GUESTPORT[/udp], e.g. 8080:80');
  }
  return { protocol: match[4] === 'udp' ? 'udp' : 'tcp', hostAddress, hostPort, guestPort };
}

export function formatForward({ protocol, hostAddress, hostPort, guestPort }: PortForward): string {
  return `${hostAddress}:${hostPort}:${guestPort}/${protocol}`;
}
