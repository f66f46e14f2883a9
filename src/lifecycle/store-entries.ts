// What the store says of a domain from the start (libxl's libxl__domain_make): who it is, where its console is, and the
// directories that the guest's own drivers write to.

import type { Store } from '../xenstore/store.ts';

export interface StoreEntries {
  readonly domainId: number;
  readonly name: string;
  readonly uuid: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
}

/** Directories that the guest may write to, and those that it may only read. */
const OF_GUEST = ['data', 'drivers', 'feature', 'attr', 'error', 'control/shutdown', 'control/feature-poweroff',
  'control/feature-reboot', 'control/feature-suspend', 'control/sysrq', 'device/suspend/event-channel'];
const OF_HOST = ['memory', 'device', 'control', 'console', 'cpu'];

export const domainPath = (domainId: number): string => `/local/domain/${domainId}`;
export const vmPath = (uuid: string): string => `/vm/${uuid}`;

/** Writes the entries below /local/domain/<id> and /vm/<uuid>, with libxl's permissions. */
export function writeDomainEntries(store: Store, entries: StoreEntries): void {
  const { domainId, name, uuid, memoryBytes, vcpus } = entries;
  const base = domainPath(domainId);
  const vm = vmPath(uuid);
  const readable = ['n0', `r${domainId}`];
  const writable = [`n${domainId}`];
  // Nodes that the host makes have the permissions of what they are in.
  const write = (path: string, value: string): void => store.write(path, value);
  for (const path of [base, vm]) {
    write(path, '');
    store.setPerms(path, readable);
  }
  for (const folder of OF_HOST) write(`${base}/${folder}`, '');
  for (const path of OF_GUEST) {
    write(`${base}/${path}`, '');
    store.setPerms(`${base}/${path}`, writable);
  }
  write(`${vm}/name`, name);
  write(`${vm}/uuid`, uuid);
  write(`${base}/vm`, vm);
  write(`${base}/name`, name);
  write(`${base}/domid`, String(domainId));
  write(`${base}/memory/target`, String(memoryBytes / 1024));
  write(`${base}/memory/static-max`, String(memoryBytes / 1024));
  write(`${base}/control/platform-feature-multiprocessor-suspend`, '1');
  write(`${base}/control/platform-feature-xs_reset_watches`, '1');
  for (let id = 0; id < vcpus; id++) {
    write(`${base}/cpu/${id}`, '');
    write(`${base}/cpu/${id}/availability`, 'online');
  }
}

export function removeDomainEntries(store: Store, { domainId, uuid }: Pick<StoreEntries, 'domainId' | 'uuid'>): void {
  for (const path of [domainPath(domainId), vmPath(uuid)]) if (store.exists(path)) store.rm(path);
}
