// HYPERVISOR_console_io: the emergency console, e.g. Linux's earlycon=xenboot. What the guest writes goes to a log in
// machine memory that keeps the latest 2 KiB; the host's main thread reads it when its doorbell rings. Writing never
// waits, so a guest that floods the log only loses its own text.

import { CONSOLE_LOG, CONSOLE_LOG_BYTES, DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { CONSOLEIO, ERRNO } from '../abi/xen.ts';
import type { DomainRecord } from './domain-record.ts';
import type { Environment } from './environment.ts';
import { notifyHostOf } from './event-delivery.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';

/** Of one call, which cannot be interrupted. */
const WRITE_MAX_BYTES = 65536;

export function consoleIo(
  environment: Environment, host: DomainRecord, caller: Caller, args: HypercallArguments,
): number {
  const operation = args.u32(0);
  // There is never any input.
  if (operation === CONSOLEIO.read) return 0;
  if (operation !== CONSOLEIO.write) return -ERRNO.ENOSYS;
  const count = args.u32(1);
  if (count > WRITE_MAX_BYTES) return -ERRNO.E2BIG;
  const bytes = environment.guest.copyFromGuest(caller.vcpu, args.u64(2), count);
  if (bytes === undefined) return -ERRNO.EFAULT;
  append(caller.domain, bytes);
  notifyHostOf(host, caller.domain.domid);
  return 0;
}

function append(domain: DomainRecord, bytes: Uint8Array): void {
  const { u8, u32 } = domain.memory;
  const log = domain.get(DOMAIN.at.consoleLog) * FRAME_BYTES;
  domain.locked(() => {
    let written = u32[(log + CONSOLE_LOG.at.written) / 4]!;
    for (const byte of bytes) u8[log + CONSOLE_LOG.at.data + (written++ % CONSOLE_LOG_BYTES)] = byte;
    u32[(log + CONSOLE_LOG.at.written) / 4] = written;
  });
}

export interface ConsoleLogText {
  readonly bytes: Uint8Array;
  /** To read on from next time. */
  readonly cursor: number;
  /** Bytes that were overwritten before they were read. */
  readonly lost: number;
}

/** Where what a domain writes from now on begins. */
export function consoleLogEnd(domain: DomainRecord): number {
  return domain.memory.u32[(domain.get(DOMAIN.at.consoleLog) * FRAME_BYTES + CONSOLE_LOG.at.written) / 4]!;
}

/** What a domain has written since `cursor` (0 at first). */
export function readConsoleLog(domain: DomainRecord, cursor: number): ConsoleLogText {
  const { u8, u32 } = domain.memory;
  const log = domain.get(DOMAIN.at.consoleLog) * FRAME_BYTES;
  return domain.locked(() => {
    const written = u32[(log + CONSOLE_LOG.at.written) / 4]!;
    const fresh = (written - cursor) >>> 0;
    const count = Math.min(fresh, CONSOLE_LOG_BYTES);
    const bytes = new Uint8Array(count);
    for (let i = 0; i < count; i++) {
      bytes[i] = u8[log + CONSOLE_LOG.at.data + (((written - count + i) >>> 0) % CONSOLE_LOG_BYTES)]!;
    }
    return { bytes, cursor: written, lost: fresh - count };
  });
}
