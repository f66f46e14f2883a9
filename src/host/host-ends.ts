// The host's ends of a domain that is made from a saved state: its event channels to console and store.

import { HVM_PARAM } from '../abi/xen.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { getHvmParam } from '../hypervisor/hvm-params.ts';
import type { DomainEnds } from './guest-devices.ts';
import type { HostCore } from './host-core.ts';

/** The host's ends of console and store of a new domain. A guest that had closed its end gets none. */
export function connectHost({ thread }: HostCore, domain: DomainRecord): DomainEnds {
  const { channels } = thread.hypercalls;
  const bind = (param: number) =>
    channels.bindInterdomain(channels.domains.record(0), domain.domid, Number(getHvmParam(domain, param)));
  return { domain, xenstorePort: bind(HVM_PARAM.STORE_EVTCHN), consolePort: bind(HVM_PARAM.CONSOLE_EVTCHN) };
}

/** To look at its rings: the event that told it may have been on its way when the state was taken. */
export function tellGuest({ ports }: HostCore, { consolePort, xenstorePort }: DomainEnds): void {
  for (const port of [consolePort, xenstorePort]) ports.notify(port);
}
